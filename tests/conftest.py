"""Settings that every test shares."""

import os

import matplotlib
from hypothesis import settings

matplotlib.use("Agg")

# No deadlines: a loaded machine is slow, not wrong. In CI the examples are the same at every run,
# so that a red run there can be repeated; elsewhere each run explores new ones.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")

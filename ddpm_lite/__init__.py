"""ddpm_lite: denoising diffusion, compact and complete, checked against exact truths.

The public names are imported from here; see the chapters for the mathematics behind each.
"""

from ddpm_lite.process import Gaussian, GaussianDiffusion, Prediction
from ddpm_lite.schedule import NoiseSchedule

__version__ = "0.1.0"

__all__ = ["Gaussian", "GaussianDiffusion", "NoiseSchedule", "Prediction", "__version__"]

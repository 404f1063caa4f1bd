"""For `pytest --nbval chapters`: clean kernels, no unexecuted cells, a summary at the end."""

import pytest

from ddpm_lite.book.pytest_summary import ChapterSummary


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(ChapterSummary(), "ddpm_lite chapters")

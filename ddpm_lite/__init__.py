"""ddpm_lite: denoising diffusion, compact and complete, checked against exact truths.

The public names are imported from here; see the chapters for the mathematics behind each.
"""

from ddpm_lite.guidance import drop_labels, guided, scale_from_w, w_from_scale
from ddpm_lite.objective import bits_per_dim, simple_loss, variational_bound
from ddpm_lite.process import Gaussian, GaussianDiffusion, Prediction
from ddpm_lite.sampling import (
    State,
    ddim_invert,
    generate,
    sample,
    slerp,
    solve,
    trajectory,
)
from ddpm_lite.schedule import NoiseSchedule
from ddpm_lite.storage import Model, load_model, save_model, shipped
from ddpm_lite.training import Trainer, TrainingConfig
from ddpm_lite.unet import PRESETS, UNet, UNetConfig

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "Gaussian",
    "GaussianDiffusion",
    "Model",
    "NoiseSchedule",
    "Prediction",
    "State",
    "Trainer",
    "TrainingConfig",
    "UNet",
    "UNetConfig",
    "__version__",
    "bits_per_dim",
    "ddim_invert",
    "drop_labels",
    "generate",
    "guided",
    "load_model",
    "sample",
    "save_model",
    "scale_from_w",
    "shipped",
    "simple_loss",
    "slerp",
    "solve",
    "trajectory",
    "variational_bound",
    "w_from_scale",
]

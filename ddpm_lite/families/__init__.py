"""Seven families of generative models behind one interface.

`common.py` says what they share. Each other file is one family, and reads like its definition.
"""

from ddpm_lite.families.autoregressive import Autoregressive
from ddpm_lite.families.common import Family, mode_shares, modes_covered
from ddpm_lite.families.diffusion import Diffusion
from ddpm_lite.families.flow import Flow
from ddpm_lite.families.flow_matching import FlowMatching
from ddpm_lite.families.gan import GAN
from ddpm_lite.families.vae import VAE
from ddpm_lite.families.vq_vae import VQVAE

__all__ = [
    "GAN",
    "VAE",
    "VQVAE",
    "Autoregressive",
    "Diffusion",
    "Family",
    "Flow",
    "FlowMatching",
    "mode_shares",
    "modes_covered",
]

"""A network and data small enough that a training step takes milliseconds."""

import dataclasses

import torch

from ddpm_lite.unet import PRESETS, UNet

SMALL = dataclasses.replace(
    PRESETS["digits"],
    image_size=4,
    base_channels=4,
    channel_multipliers=(1, 1),
    attention_resolutions=(2,),
    norm_groups=2,
)


def small_network(seed=0, **changes):
    """A UNet for 4×4 images of one channel; `changes` vary its configuration."""
    return UNet(dataclasses.replace(SMALL, **changes), torch.Generator().manual_seed(seed))


def small_images(count=37, seed=5):
    """(count, 1, 4, 4), uniform in [−1, 1]."""
    return 2 * torch.rand((count, 1, 4, 4), generator=torch.Generator().manual_seed(seed)) - 1

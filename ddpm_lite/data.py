"""Data that comes with the book: handwritten digits and point sets in the plane.

Nothing is downloaded. The digits are those that scikit-learn bundles, and the point sets are
drawn from a generator that the caller seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ddpm_lite.oracle import GaussianMixture

DIGITS_LEVELS = 17  # a pixel is one of 0, 1, …, 16
SPLITS = ("train", "heldout", "all")


def digits(split: str = "train") -> tuple[Tensor, Tensor]:
    """1,797 handwritten digits, 8×8 pixels, 17 grey levels.

    Level 0..16 becomes level/8 − 1 in [−1, 1], exactly: neighbouring levels differ by 1/8.

    The split is a rule, not a random draw, so that it cannot change with a library's version: of
    each class, in the order of the data set, every fifth image is held out. That leaves 1,442
    images to train on and 355 held out, with the classes in the same proportions. Thirteen people
    wrote the digits, and the split does not keep them apart: it measures generalisation to new
    images, not to new hands.

    Args:
        split: "train", "heldout" or "all", each in the order of the data set.

    Returns:
        images float32 (N, 1, 8, 8) and labels int64 (N,).

    Source: the bundled copy in ``sklearn.datasets.load_digits``.
    Raises:
        ValueError: if split is none of these.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
    from sklearn.datasets import load_digits  # here, because importing it takes a second

    bunch = load_digits()
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    images = (torch.from_numpy(bunch.images) / 8 - 1).to(torch.float32)[:, None]
    if split == "all":
        return images, labels
    held_out = _every_fifth_of_each_class(labels)
    chosen = held_out if split == "heldout" else ~held_out
    return images[chosen], labels[chosen]


def _every_fifth_of_each_class(labels: Tensor) -> Tensor:
    """True at the 5th, 10th, … member of each class, bool (N,)."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        chosen[(labels == label).nonzero()[4::5, 0]] = True
    return chosen


# ---- point sets in the plane --------------------------------------------------------------------


def toy(
    name: str, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Tensor:
    """n points in the plane, (n, 2), centred near 0 with coordinates of size about 1.

    Drawn in float64 and then cast, so one seed gives the same points in every dtype.

    Args:
        name: "mixture" and "ring-of-gaussians" (whose exact law is `toy_law(name)`),
            "two-moons", "spiral", "swiss-roll", "checkerboard".

    Raises:
        ValueError: if the name is none of these, or n < 1.
    """
    if name not in TOYS:
        raise ValueError(f"the toy must be one of {', '.join(TOYS)}, got {name!r}.")
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"the number of points must be an int of at least 1, got {n!r}.")
    if name in _LAWS:
        return toy_law(name).sample(n, generator).to(dtype)
    return _DRAWS[name](n, generator).to(dtype)


def toy_law(name: str) -> GaussianMixture:
    """The exact law of the toys that are mixtures of Gaussians.

    Raises:
        ValueError: if the toy has no such law.
    """
    if name not in _LAWS:
        raise ValueError(f"the toys with an exact law are {', '.join(_LAWS)}; {name!r} is not one.")
    return _LAWS[name]()


def _mixture() -> GaussianMixture:
    """Three unequal components, one round, one narrow and slanted, one broad: nothing symmetric."""
    return GaussianMixture(
        weights=[0.5, 0.3, 0.2],
        means=[[-1.2, -0.6], [1.0, 0.9], [0.9, -1.3]],
        covariances=[
            [[0.10, 0.00], [0.00, 0.10]],
            [[0.20, 0.15], [0.15, 0.14]],
            [[0.25, -0.05], [-0.05, 0.08]],
        ],
    )


def _ring_of_gaussians() -> GaussianMixture:
    """Eight equal round components of standard deviation 0.12 on a circle of radius 1.4."""
    angle = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
    centres = 1.4 * torch.stack([angle.cos(), angle.sin()], dim=1)
    round_ = 0.12**2 * torch.eye(2, dtype=torch.float64)
    return GaussianMixture([1 / 8] * 8, centres, round_.expand(8, 2, 2))


def _two_moons(n: int, generator: torch.Generator) -> Tensor:
    """Two interleaved half circles with a little noise."""
    angle = math.pi * _uniform(n, generator)
    upper = _coin(n, generator)
    x = torch.where(upper, angle.cos(), 1 - angle.cos()) - 0.5
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin()) - 0.25
    return 1.3 * torch.stack([x, y], dim=1) + 0.08 * _normal(n, generator)


def _spiral(n: int, generator: torch.Generator) -> Tensor:
    """Two arms that wind outwards, each the other turned by half a circle."""
    turn = _uniform(n, generator).sqrt()  # the root spreads points evenly along the arm
    sign = torch.where(_coin(n, generator), 1.0, -1.0).to(torch.float64)
    return sign[:, None] * _wound(turn, turns=1.25) + 0.05 * _normal(n, generator)


def _swiss_roll(n: int, generator: torch.Generator) -> Tensor:
    """One arm that winds outwards and starts away from the centre."""
    turn = (0.1 + 0.9 * _uniform(n, generator)).sqrt()
    return _wound(turn, turns=2.0) + 0.05 * _normal(n, generator)


def _checkerboard(n: int, generator: torch.Generator) -> Tensor:
    """Uniform on the eight dark squares of a 4×4 board with side 4: density 1/8 there, else 0."""
    column = torch.randint(4, (n,), generator=generator, device=generator.device).cpu()
    row = 2 * torch.randint(2, (n,), generator=generator, device=generator.device).cpu()
    corner = torch.stack([column, row + column % 2], dim=1)
    return corner + torch.stack([_uniform(n, generator), _uniform(n, generator)], dim=1) - 2


_LAWS: dict[str, Callable[[], GaussianMixture]] = {
    "mixture": _mixture,
    "ring-of-gaussians": _ring_of_gaussians,
}
_DRAWS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "two-moons": _two_moons,
    "spiral": _spiral,
    "swiss-roll": _swiss_roll,
    "checkerboard": _checkerboard,
}
TOYS = (*_LAWS, *_DRAWS)


def _wound(turn: Tensor, turns: float) -> Tensor:
    """The point at radius 2·turn and angle 2π·turns·turn of a spiral with equal gaps."""
    angle = 2 * math.pi * turns * turn
    return 2 * turn[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)


def _uniform(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator, dtype=torch.float64, device=generator.device).cpu()


def _coin(n: int, generator: torch.Generator) -> Tensor:
    return _uniform(n, generator) < 0.5


def _normal(n: int, generator: torch.Generator) -> Tensor:
    shape = (n, 2)
    return torch.randn(
        shape, generator=generator, dtype=torch.float64, device=generator.device
    ).cpu()

"""An autoregressive model: one coordinate after the other, each from those before it.

    p(x) = ∏_d p(x_d | x_1, …, x_{d−1})

Coordinates are sorted into K bins of equal width on [low, high], and each factor is a softmax over
the bins: next-token prediction, with a bin for a token. One network gives all D factors in one
call, because masks on its weights keep output d from seeing any input ≥ d. Sampling cannot use
that: coordinate d must be drawn before d + 1 can be asked for, so it takes D calls.

Source: the masks, Germain et al., "MADE: Masked Autoencoder for Distribution Estimation",
arXiv:1502.03509.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lite.families.common import Family, check_count, mlp

WAVES = 16  # cosines by which the network reads a coordinate


class Autoregressive(Family):
    """The laws on [low, high]^D that are constant on K^D cells, the masses from a masked MLP.

    Args:
        dimension: D.
        bins: K, at least 2.
        low, high: the range that is cut into bins; data outside it are refused. For images on K
            grey levels −1 + 2k/(K−1), take bins = K and ±(1 + 1/(K−1)): a bin around each level.
        width: of the two hidden layers.
        generator: draws the first weights.
    """

    name = "Autoregressive"
    passes = "D passes"
    likelihood = "exact"
    default_learning_rate = 1e-2

    def __init__(
        self,
        dimension: int,
        *,
        bins: int,
        low: float,
        high: float,
        width: int = 128,
        generator: torch.Generator,
    ) -> None:
        if check_count("bins", bins) < 2:
            raise ValueError("bins must be an int of at least 2, got 1.")
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"low must lie below high, both finite, got {low!r} and {high!r}.")
        self.dimension = check_count("dimension", dimension)
        self.bins, self.low, self.high = bins, float(low), float(high)
        self.network = MaskedNetwork(dimension, bins, check_count("width", width), generator)

    def loss(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The mean over coordinates of −log mass of the bin that x_d is in."""
        return -self._log_masses(self.bin_of(x)).mean()

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        """The log density of the cell that x is in: log mass − D·log(bin width), nats, (B,).

        Book: (B.29).
        """
        volume = self.dimension * math.log(self.bin_width)
        return self.log_mass(self.bin_of(self._points(x))) - volume

    @torch.no_grad()
    def log_mass(self, index: Tensor) -> Tensor:
        """log p of cells given by their bins, int64 (B, D): nats, (B,). Over all cells Σ p = 1.

        Book: (B.27).
        """
        return self._log_masses(index).sum(1)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """D calls, a coordinate each; then a uniform place in its bin: (n, D)."""
        shape = (check_count("the number of samples", n), self.dimension)
        index = torch.zeros(shape, dtype=torch.int64, device=self.device)
        for d in range(self.dimension):
            mass = self.network(index)[:, d].softmax(-1)
            index[:, d] = torch.multinomial(mass, 1, generator=generator)[:, 0]
        place = torch.rand(shape, generator=generator, dtype=self.dtype, device=self.device)
        return self.low + (index + place) * self.bin_width

    @property
    def bin_width(self) -> float:
        """(high − low)/K."""
        return (self.high - self.low) / self.bins

    def bin_of(self, x: Tensor) -> Tensor:
        """Which bin each coordinate is in, int64 (B, D).

        With h the width of a bin, bin j is [low + j·h, low + (j+1)·h); the last holds `high` too.

        Raises:
            ValueError: if a coordinate lies outside [low, high].
        """
        outside = (x < self.low) | (x > self.high)
        if outside.any():
            raise ValueError(
                f"the bins cover [{self.low:g}, {self.high:g}], but a coordinate is "
                f"{x[outside][0].item():.6g}."
            )
        return ((x - self.low) / self.bin_width).long().clamp(max=self.bins - 1)

    def _log_masses(self, index: Tensor) -> Tensor:
        """log p(bin of x_d | bins before it), (B, D)."""
        log_mass = self.network(index).log_softmax(-1)
        return log_mass.gather(-1, index[..., None])[..., 0]


class MaskedNetwork(nn.Module):
    """Bins (B, D) to logits (B, D, K), where logits d depend on the bins before d alone.

    Every hidden unit has a number m in 1..D−1. It sees the coordinates ≤ m, and the units whose
    numbers are ≤ m; output d sees the units whose numbers are < d. So whatever reaches output d
    started at a coordinate before d. Output 1 sees nothing, and is a bias.

    Source: MADE Eq. 13 for the last layer.
    Book: (B.28).
    """

    def __init__(self, dimension: int, bins: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.bins = bins
        self.layers = mlp([dimension * WAVES, width, width, dimension * bins], generator)
        place = torch.arange(1, dimension + 1)
        unit = torch.arange(width) % max(1, dimension - 1) + 1
        inputs, outputs = place.repeat_interleave(WAVES), place.repeat_interleave(bins)
        masks = (unit[:, None] >= inputs, unit[:, None] >= unit, outputs[:, None] > unit)
        self.masks = [mask.to(generator.device) for mask in masks]

    def forward(self, index: Tensor) -> Tensor:
        """int64 (B, D) → (B, D, K)."""
        return self.logits(self.read(index))

    def read(self, index: Tensor) -> Tensor:
        """Bins as numbers: cos(πk·(j + ½)/K), k = 1..WAVES, for bin j; (B, D·WAVES).

        A few smooth waves, and not one input for each bin: so neighbouring bins are alike.
        """
        speed = math.pi * torch.arange(1, WAVES + 1, device=index.device) / self.bins
        waves = torch.cos((index[..., None] + 0.5) * speed).flatten(1)
        return waves.to(next(self.parameters()).dtype)

    def logits(self, x: Tensor) -> Tensor:
        """The masked layers on what `read` gives: (B, D·WAVES) → (B, D, K)."""
        linears = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        for depth, (linear, mask) in enumerate(zip(linears, self.masks, strict=True)):
            x = F.linear(F.silu(x) if depth else x, linear.weight * mask, linear.bias)
        return x.unflatten(1, (-1, self.bins))

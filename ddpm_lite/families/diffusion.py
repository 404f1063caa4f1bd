"""Diffusion on points: the package's own process, with a network that fits on a line.

Everything but the network is the library's: the chain, the loss, the sampler and the bound.

Source: Ho et al., "Denoising Diffusion Probabilistic Models", arXiv:2006.11239.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ddpm_lite.families.common import Family, check_count, mlp, normal
from ddpm_lite.objective import sample_steps, simple_loss, variational_bound
from ddpm_lite.process import GaussianDiffusion
from ddpm_lite.sampling import generate
from ddpm_lite.schedule import NoiseSchedule

WAVES = 4  # of each kind, by which a network reads a coordinate or the time


class Diffusion(Family):
    """The laws that DDPM's reverse chain of T steps gives for an MLP that predicts ε.

    β_t rises linearly from 0.1/T to 20/T: at T = 1000 these are DDPM's ends, and with T they keep
    ᾱ_T near e⁻¹⁰. The reverse variance is β_t, at small t near the best one, (4.32): a first step
    of noise is small beside the data's spread.

    Args:
        dimension: D. width: of the three hidden layers. T: the chain's length, above 20.
        generator: draws the first weights.

    `diffusion` and `denoise` are what the library's functions take: so `sample`, `solve` and
    `variational_bound` (with grey levels, for images) can be called on this family as well.
    """

    name = "Diffusion"
    passes = "a chain of T calls"
    likelihood = "bound"
    default_learning_rate = 1e-2

    def __init__(
        self, dimension: int, *, width: int = 64, T: int = 100, generator: torch.Generator
    ) -> None:
        self.dimension = check_count("dimension", dimension)
        if check_count("T", T) <= 20:
            raise ValueError(f"T must be above 20, got {T}: beta_T = 20/T must lie below 1.")
        schedule = NoiseSchedule.linear(T, beta_1=0.1 / T, beta_T=20 / T)
        self.diffusion = GaussianDiffusion(schedule, variance="beta")
        self.network = PointNetwork(dimension, width, generator)
        angle = torch.acos(schedule.alpha_bar.sqrt()) / (math.pi / 2)
        self.clock = angle.to(generator.device)

    def denoise(self, x_t: Tensor, t: Tensor) -> Tensor:
        """ε̂(x_t, t), (B, D), for t int64 (B,) in 1..T.

        The network is told the angle φ_t of (4.45), as a share of π/2: even steps of the angle
        are even steps in what changes, while t itself hardly tells the first steps apart.
        """
        return self.network(x_t, self.clock[t])

    def loss(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """L_simple at one random step for each row of the batch.

        Book: (5.21).
        """
        t = sample_steps(len(x), self.diffusion.T, generator, "stratified")
        noise = normal(tuple(x.shape), generator, x.dtype)
        return simple_loss(self.denoise, self.diffusion, x, t, noise).mean()

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """The whole chain, T calls: (n, D).

        Paper: DDPM Algorithm 2.
        """
        return generate(
            self.denoise,
            self.diffusion,
            (check_count("the number of samples", n), self.dimension),
            steps=self.diffusion.T,
            eta=1.0,
            generator=generator,
            dtype=self.dtype,
        )

    def elbo(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Minus the variational bound on −log p(x), in nats, with one noise for each step: (B,).

        Book: (5.13).
        """
        bound = variational_bound(
            self.denoise, self.diffusion, self._points(x), levels=None, generator=generator
        )
        return bound.total.neg()


class PointNetwork(nn.Module):
    """An MLP of (x, clock): x (B, D), clock (B,) in [0, 1], to (B, D).

    It reads x beside sin kx and cos kx, and the clock as sin πk·clock and cos πk·clock, k = 1..4:
    without such waves an MLP is slow to learn what changes over a short way.
    """

    def __init__(self, dimension: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        check_count("width", width)
        inputs = dimension * (1 + 2 * WAVES) + 2 * WAVES
        self.layers = mlp([inputs, width, width, width, dimension], generator)

    def forward(self, x: Tensor, clock: Tensor) -> Tensor:
        k = torch.arange(1, WAVES + 1, dtype=x.dtype, device=x.device)
        place, angle = (x[..., None] * k).flatten(1), math.pi * k * clock.to(x.dtype)[:, None]
        waves = [wave(a) for a in (place, angle) for wave in (torch.sin, torch.cos)]
        return self.layers(torch.cat([x, *waves], dim=1))

"""Flow matching: learn the velocity that carries noise to data along straight lines on average.

Noise ε ~ N(0, I) and data x_0 are joined by a line, walked in the time ρ from 0 to 1:

    x_ρ = (1−ρ)·ε + ρ·x_0,        dx_ρ/dρ = x_0 − ε.

**ρ runs from noise to data**, against the chain's t: ρ = 0 is noise, ρ = 1 is clean data. The
velocity field is the average over all lines through a point, u(x, ρ) = E[x_0 − ε | x_ρ = x]. It is
the least-squares answer to "x_0 − ε", so a network learns it by regression; and the ODE
dx/dρ = u(x, ρ) gives x the law of x_ρ at every ρ. What it starts from N(0, I), it ends in the data.

x_ρ is an x_t of another size: both are a signal plus a noise, and the ratio of the two decides.
So a velocity, an x̂_0 and an ε̂ are one prediction in three forms, and the functions here convert
them, and ρ and ᾱ, exactly. (The v of the package, √ᾱ·ε − √(1−ᾱ)·x_0, belongs to its own path.)

Source: Lipman et al., "Flow Matching for Generative Modeling", arXiv:2210.02747 (with σ_min = 0);
Liu et al., "Flow Straight and Fast", arXiv:2209.03003.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from ddpm_lite.families.common import Family, check_count, normal
from ddpm_lite.families.diffusion import PointNetwork
from ddpm_lite.families.flow import standard_log_prob
from ddpm_lite.oracle import GaussianMixture
from ddpm_lite.schedule import NoiseSchedule

SOLVERS = ("euler", "heun")

Field = Callable[[Tensor, "float | Tensor"], Tensor]  # u(x, ρ): x (B, D), ρ a number or (B,)


class FlowMatching(Family):
    """The laws to which dx/dρ = u_θ(x, ρ), an MLP, carries N(0, I).

    Args:
        dimension: D. width: of the three hidden layers.
        steps: how many steps of Heun's method the ODE is given, in `sample` and `log_prob`; each
            costs two calls of the network.
        generator: draws the first weights.

    The network is that of `Diffusion`.
    """

    name = "Flow matching"
    passes = "an ODE, 2 calls a step"
    likelihood = "exact"  # up to the solver's error
    default_learning_rate = 1e-2

    def __init__(
        self, dimension: int, *, width: int = 64, steps: int = 40, generator: torch.Generator
    ) -> None:
        self.dimension = check_count("dimension", dimension)
        self.steps = check_count("steps", steps)
        self.network = PointNetwork(dimension, width, generator)

    def velocity(self, x: Tensor, rho: float | Tensor) -> Tensor:
        """u_θ(x, ρ), (B, D), for one ρ or a ρ for each row."""
        return self.network(x, torch.as_tensor(rho, dtype=x.dtype, device=x.device).expand(len(x)))

    def loss(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The mean over coordinates of (u_θ(x_ρ, ρ) − (x_0 − ε))², ρ uniform on [0, 1].

        Book: (B.33).
        """
        noise = normal(tuple(x.shape), generator, x.dtype)
        drawn = torch.rand(len(x), generator=generator, dtype=x.dtype, device=x.device)
        output = self.velocity(between(noise, x, drawn), drawn)
        return (output - (x - noise)).square().mean()

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n draws of N(0, I), carried from ρ = 0 to 1: (n, D)."""
        shape = (check_count("the number of samples", n), self.dimension)
        noise = normal(shape, generator, self.dtype)
        return carry(self.velocity, noise, 0.0, 1.0, steps=self.steps, solver="heun")

    def log_prob(self, x: Tensor) -> Tensor:
        """The density of what `sample` draws, up to the solver's error, in nats: (B,).

        D gradients for each call of the network: cheap for points, slow for images.
        """
        points = self._points(x)
        return log_prob_along(self.velocity, points, steps=self.steps, solver="heun")


# ---- the path, and its conversions --------------------------------------------------------------


def between(noise: Tensor, x0: Tensor, rho: float | Tensor) -> Tensor:
    """x_ρ = (1−ρ)·ε + ρ·x_0, (B, D).

    Book: (B.31).
    """
    rho = _column(rho, x0)
    return (1 - rho) * noise + rho * x0


def velocity_from_x0(x0: Tensor, x_rho: Tensor, rho: float | Tensor) -> Tensor:
    """u = (x̂_0 − x_ρ)/(1−ρ), for 0 ≤ ρ < 1: the way that is left, over the time that is left."""
    rho = _column(rho, x_rho)
    if (rho == 1).any():
        raise ValueError("at rho = 1 the noise is gone: x0 does not determine the velocity there.")
    return (x0 - x_rho) / (1 - rho)


def x0_from_velocity(velocity: Tensor, x_rho: Tensor, rho: float | Tensor) -> Tensor:
    """x̂_0 = x_ρ + (1−ρ)·u: walk on, straight, to ρ = 1."""
    return x_rho + (1 - _column(rho, x_rho)) * velocity


def velocity_from_eps(eps: Tensor, x_rho: Tensor, rho: float | Tensor) -> Tensor:
    """u = (x_ρ − ε̂)/ρ, for 0 < ρ ≤ 1: the way that lies behind, over the time it took."""
    rho = _column(rho, x_rho)
    if (rho == 0).any():
        raise ValueError(
            "at rho = 0 there is no signal: eps does not determine the velocity there."
        )
    return (x_rho - eps) / rho


def eps_from_velocity(velocity: Tensor, x_rho: Tensor, rho: float | Tensor) -> Tensor:
    """ε̂ = x_ρ − ρ·u: walk back, straight, to ρ = 0."""
    return x_rho - _column(rho, x_rho) * velocity


def rho_from_alpha_bar(alpha_bar: float | Tensor) -> Tensor:
    """ρ = √ᾱ/(√ᾱ + √(1−ᾱ)): where ρ/(1−ρ), signal over noise, is √ᾱ/√(1−ᾱ); float64.

    Book: (B.37).
    """
    value = _unit(alpha_bar, "alpha_bar")
    return value.sqrt() / (value.sqrt() + (1 - value).sqrt())


def alpha_bar_from_rho(rho: float | Tensor) -> Tensor:
    """ᾱ = ρ²/(ρ² + (1−ρ)²), the inverse of `rho_from_alpha_bar`; float64."""
    rho = _unit(rho, "rho")
    return rho.square() / (rho.square() + (1 - rho).square())


def size(rho: float | Tensor) -> Tensor:
    """√(ρ² + (1−ρ)²), float64: x_ρ is this times the x_t of the same signal-to-noise ratio.

    Book: (B.37).
    """
    rho = _unit(rho, "rho")
    return (rho.square() + (1 - rho).square()).sqrt()


def denoiser_of(field: Field, schedule: NoiseSchedule) -> Callable[..., Tensor]:
    """A velocity field as a denoiser of the package: (x_t, t) → ε̂, for t = 1..T of the schedule.

    With it every sampler of the package walks the field. A step of DDIM from t to s then is a step
    of Euler's method from ρ_t to ρ_s.

    Book: (B.38).
    """
    level = rho_from_alpha_bar(schedule.alpha_bar)

    def denoise(x_t: Tensor, t: int | Tensor) -> Tensor:
        rho = level.to(x_t.device)[t].expand(len(x_t))
        x_rho = _column(size(rho), x_t) * x_t
        return eps_from_velocity(field(x_rho, rho), x_rho, rho)

    return denoise


def exact_velocity(law: GaussianMixture) -> Field:
    """u(x, ρ) = E[x_0 | x_ρ] − E[ε | x_ρ] for data of a known law: the perfect network; float64.

    Both means are the oracle's, at x_t = x_ρ/√(ρ² + (1−ρ)²) and ᾱ = ρ²/(ρ² + (1−ρ)²). Their
    difference is defined at both ends: E[x_0] − x at ρ = 0, x at ρ = 1. One ρ for all rows.

    Book: (B.32).
    """

    def field(x: Tensor, rho: float | Tensor) -> Tensor:
        alpha_bar = alpha_bar_from_rho(rho)
        if alpha_bar == 1:  # to all digits: what is left of the noise, (1−ρ)², is below 1e-16
            return x.double()
        level = NoiseSchedule.from_alpha_bar([1.0, alpha_bar.item()])
        x_t = x.double() / size(rho)
        return law.posterior_mean(level, x_t, 1) - law.eps(level, x_t, 1)

    return field


# ---- the ODE ------------------------------------------------------------------------------------


def carry(field: Field, x: Tensor, start: float, end: float, *, steps: int, solver: str) -> Tensor:
    """Solve dx/dρ = u(x, ρ) from ρ = start to ρ = end, in equal steps: (B, …), like x.

    solver: "euler", of first order; or "heun", of second, which averages the velocities at both
    ends of Euler's step and calls the field twice.

    Raises:
        ValueError: if the solver is none of these, or steps is not an int of at least 1.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}.")
    times = torch.linspace(start, end, check_count("steps", steps) + 1, dtype=torch.float64)
    for now, then in pairwise(times.tolist()):
        first = field(x, now)
        there = x + (then - now) * first
        if solver == "heun":
            there = x + (then - now) / 2 * (first + field(there, then))
        x = there
    return x


def log_prob_along(field: Field, x: Tensor, *, steps: int, solver: str) -> Tensor:
    """log density at x (B, D), ρ = 1, of N(0, I) carried along the field from ρ = 0: (B,), nats.

    Along a solution d log p/dρ = −div u. So x is carried back to a z, the divergence is summed up
    on the way, and log p(x) = log N(z; 0, I) − ∫_0^1 div u dρ.

    Book: (B.36).
    Source: Chen et al., "Neural Ordinary Differential Equations", arXiv:1806.07366, Theorem 1.
    """

    def with_divergence(state: Tensor, rho: float | Tensor) -> Tensor:
        velocity, spread = divergence(field, state[:, :-1], rho)
        return torch.cat([velocity, spread[:, None]], dim=1)

    state = torch.cat([x.detach(), x.new_zeros(len(x), 1)], dim=1)
    state = carry(with_divergence, state, 1.0, 0.0, steps=steps, solver=solver)
    return standard_log_prob(state[:, :-1]) + state[:, -1]


def divergence(field: Field, x: Tensor, rho: float | Tensor) -> tuple[Tensor, Tensor]:
    """u(x, ρ), (B, D), and div u = Σ_d ∂u_d/∂x_d, (B,), exactly, by D gradients; both detached."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        velocity = field(x, rho)
        total = x.new_zeros(len(x))
        for d in range(x.shape[1]):  # rows do not mix, so one gradient of the sum serves them all
            (slope,) = torch.autograd.grad(velocity[:, d].sum(), x, retain_graph=True)
            total = total + slope[:, d]
    return velocity.detach(), total


def _unit(value: float | Tensor, name: str) -> Tensor:
    """value as a float64 tensor, if it lies in [0, 1]."""
    tensor = torch.as_tensor(value, dtype=torch.float64)
    outside = ~((tensor >= 0) & (tensor <= 1))
    if outside.any():
        raise ValueError(f"{name} must lie in [0, 1], got {tensor[outside].flatten()[0].item()}.")
    return tensor


def _column(rho: float | Tensor, like: Tensor) -> Tensor:
    """ρ, a number or (B,), in a shape and dtype that multiply (B, D)."""
    tensor = torch.as_tensor(rho).to(like.device, like.dtype)
    return tensor if tensor.ndim == 0 else tensor[:, None]

"""A normalising flow: an invertible map from data to noise, whose determinant is known.

With z = f(x) and z ~ N(0, I), the law of x has the density

    p(x) = N(f(x); 0, I)·|det ∂f/∂x|,

and both directions of f cost one pass through the networks. What makes that possible is the
coupling: it moves every other coordinate, each along an increasing curve, and the curve's shape is
any function of the coordinates that stay. So its inverse needs no inverse of a network, and its
Jacobian is triangular.

Source: couplings, Dinh et al., arXiv:1605.08803; curves made of rational quadratics, Durkan et
al., "Neural Spline Flows", arXiv:1906.04032.
"""

from __future__ import annotations

import math
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_lite.families.common import Family, check_count, check_data, mlp, normal

REACH = 5.0  # the curves live on [−5, 5] of a standardised coordinate; outside, the identity
LEAST = 1e-3  # the smallest width and height of a piece, as a share of all; the smallest slope


class Flow(Family):
    """The laws of f⁻¹(z), z ~ N(0, I), for f a chain of couplings after a standardisation.

    Args:
        dimension: D ≥ 2: a coupling needs a coordinate to move and one to look at.
        width: of the two hidden layers in each coupling's network.
        layers: how many couplings; even and odd coordinates move in turn.
        pieces: of which each coordinate's curve is made.
        generator: draws the first weights.

    The data need a density. Images on grey levels have none: add noise first, with `dequantise`.
    """

    name = "Flow"
    passes = "one pass"
    likelihood = "exact"
    default_learning_rate = 3e-3

    def __init__(
        self,
        dimension: int,
        *,
        width: int = 64,
        layers: int = 4,
        pieces: int = 12,
        generator: torch.Generator,
    ) -> None:
        if check_count("dimension", dimension) < 2:
            raise ValueError("a coupling flow needs a dimension of at least 2, got 1.")
        for name, count in (("width", width), ("layers", layers), ("pieces", pieces)):
            check_count(name, count)
        self.dimension = dimension
        self.standardise = Standardisation(dimension).to(generator.device)
        self.couplings = nn.ModuleList(
            Coupling(dimension, i % 2, width, pieces, generator) for i in range(layers)
        )

    def fit(self, data: Tensor, **settings: Any) -> Self:
        """As every family; but first, set the standardisation to the data's mean and deviation."""
        self.standardise.set(check_data(data, self.dimension))
        return super().fit(data, **settings)

    def loss(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The mean of −log p(x)/D over a batch."""
        z, log_det = self.to_noise(x)
        return -(standard_log_prob(z) + log_det).mean() / self.dimension

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        """log N(f(x); 0, I) + log|det ∂f/∂x| in nats, (B,): exact.

        Book: (B.22).
        """
        z, log_det = self.to_noise(self._points(x))
        return standard_log_prob(z) + log_det

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """f⁻¹(z) for n draws of z, (n, D)."""
        shape = (check_count("the number of samples", n), self.dimension)
        return self.to_data(normal(shape, generator, self.dtype))

    def to_noise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z = f(x), (B, D), and log|det ∂f/∂x|, (B,): along a chain, determinants multiply."""
        z, log_det = self.standardise(x)
        for coupling in self.couplings:
            z, more = coupling(z)
            log_det = log_det + more
        return z, log_det

    def to_data(self, z: Tensor) -> Tensor:
        """x = f⁻¹(z), (B, D): the inverses of the layers, in the opposite order."""
        for coupling in reversed(self.couplings):
            z = cast(Coupling, coupling).inverse(z)
        return self.standardise.inverse(z)


class Coupling(nn.Module):
    """z_b = curve(x_b; θ(x_a)),  z_a = x_a,  log|det| = Σ_b log curve'.

    b: the coordinates first, first + 2, …; a: all others. θ: a network's answer, the widths,
    heights and slopes of the curve's pieces.

    Book: (B.23).
    """

    def __init__(
        self, dimension: int, first: int, width: int, pieces: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.b, self.a = slice(first, None, 2), slice(1 - first, None, 2)
        self.pieces = pieces
        seen = len(range(1 - first, dimension, 2))
        answers = (dimension - seen) * (3 * pieces - 1)
        self.network = mlp([seen, width, width, answers], generator)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        moved, log_slope = spline(x[:, self.b], *self._knots(x[:, self.a]))
        return self._with(x, moved), log_slope.sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        return self._with(z, spline_inverse(z[:, self.b], *self._knots(z[:, self.a])))

    def _with(self, x: Tensor, moved: Tensor) -> Tensor:
        result = x.clone()
        result[:, self.b] = moved
        return result

    def _knots(self, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        answer = self.network(seen).unflatten(1, (-1, 3 * self.pieces - 1))
        return knots(*answer.split([self.pieces, self.pieces, self.pieces - 1], dim=2))


class Standardisation(nn.Module):
    """z = (x − mean)/deviation, coordinate by coordinate; the identity until `set`."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dimension))
        self.register_buffer("deviation", torch.ones(dimension))

    def set(self, data: Tensor) -> None:
        """Take mean and deviation from data (N, D).

        Raises:
            ValueError: if a coordinate never varies: a density could grow there without end.
        """
        still = (data == data[0]).all(0)
        if still.any():
            which = int(still.nonzero()[0])
            raise ValueError(
                f"a flow needs data with a density, but coordinate {which} is always "
                f"{data[0, which].item():.6g}: add noise, as `dequantise` does for grey levels."
            )
        self.mean.copy_(data.mean(0))
        self.deviation.copy_(data.std(0, correction=0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (x - self.mean) / self.deviation, -self.deviation.log().sum().expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return z * self.deviation + self.mean


# ---- the curve ----------------------------------------------------------------------------------


def knots(widths: Tensor, heights: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The K+1 knots (x_k, y_k) of an increasing curve and the slopes δ_k there, (…, K+1) each.

    Any real numbers will do: widths and heights, (…, K), become shares of [−5, 5] by a softmax,
    the K − 1 slopes positive by a softplus. At both ends the slope is 1, where the identity begins.
    """
    places = []
    for raw in (widths, heights):
        share = LEAST + (1 - LEAST * raw.shape[-1]) * raw.softmax(-1)
        place = F.pad(2 * REACH * share.cumsum(-1) - REACH, (1, 0), value=-REACH)
        places.append(place)
    one = math.log(math.expm1(1 - LEAST))  # what the softplus below turns into slope 1
    return places[0], places[1], LEAST + F.softplus(F.pad(slopes + one, (1, 1), value=one))


def spline(x: Tensor, xs: Tensor, ys: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """The curve's value and the logarithm of its slope at x (…); the identity outside [−5, 5].

    In piece k, with ξ = (x − x_k)/(x_{k+1} − x_k), h = y_{k+1} − y_k, the mean slope
    m = h/(x_{k+1} − x_k) and N = m + (δ_{k+1} + δ_k − 2m)·ξ(1−ξ),

        value = y_k + h·(m·ξ² + δ_k·ξ(1−ξ))/N,
        slope = m²·(δ_{k+1}·ξ² + 2m·ξ(1−ξ) + δ_k·(1−ξ)²)/N².

    Source: arXiv:1906.04032 section 3.1.
    Book: (B.24), (B.25).
    """
    inside = x.abs() <= REACH
    x_in = x.clamp(-REACH, REACH)
    left, width, low, height, first, last = _piece(x_in, xs, xs, ys, slopes)
    mean = height / width
    at = (x_in - left) / width
    cross = at * (1 - at)
    below = mean + (last + first - 2 * mean) * cross
    value = low + height * (mean * at.square() + first * cross) / below
    above = last * at.square() + 2 * mean * cross + first * (1 - at).square()
    log_slope = 2 * mean.log() + above.log() - 2 * below.log()
    return torch.where(inside, value, x), log_slope.masked_fill(~inside, 0.0)


def spline_inverse(y: Tensor, xs: Tensor, ys: Tensor, slopes: Tensor) -> Tensor:
    """The x whose `spline` is y: ξ solves a quadratic, whose root is taken without cancellation.

    Source: arXiv:1906.04032 section 3.1.
    Book: (B.26).
    """
    inside = y.abs() <= REACH
    y_in = y.clamp(-REACH, REACH)
    left, width, low, height, first, last = _piece(y_in, ys, xs, ys, slopes)
    mean = height / width
    rise = y_in - low
    bend = rise * (last + first - 2 * mean)
    a, b, c = height * (mean - first) + bend, height * first - bend, -mean * rise
    at = 2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())
    return torch.where(inside, left + width * at, y)


def _piece(at: Tensor, edges: Tensor, xs: Tensor, ys: Tensor, slopes: Tensor) -> list[Tensor]:
    """Of the piece whose edges hold each point: x_k, its width, y_k, its height, δ_k, δ_{k+1}."""
    last = edges.shape[-1] - 2
    k = torch.searchsorted(edges.detach(), at.detach()[..., None], right=True) - 1
    k = k.clamp(0, last)
    parts = (
        xs[..., :-1],
        xs.diff(dim=-1),
        ys[..., :-1],
        ys.diff(dim=-1),
        slopes[..., :-1],
        slopes[..., 1:],
    )
    return [part.gather(-1, k)[..., 0] for part in parts]


# ---- around it ----------------------------------------------------------------------------------


def dequantise(x: Tensor, levels: int, generator: torch.Generator) -> Tensor:
    """x + noise uniform over one grey level, for x on the K = levels values −1 + 2k/(K−1).

    The result has a density. A flow's E[log p(x + noise)] plus D·log(2/(K−1)), the logarithm of a
    cell's volume, is at most its log probability of the cell around x, by Jensen.

    Source: Theis et al., arXiv:1511.01844 section 3.1.
    Raises:
        ValueError: if levels is not an int of at least 2.
    """
    if isinstance(levels, bool) or not isinstance(levels, int) or levels < 2:
        raise ValueError(f"levels must be an int of at least 2, got {levels!r}.")
    drawn = torch.rand(x.shape, generator=generator, dtype=torch.float64, device=generator.device)
    return x + ((2 * drawn - 1) / (levels - 1)).to(x.device, x.dtype)


def standard_log_prob(z: Tensor) -> Tensor:
    """log N(z; 0, I) in nats, (B, D) → (B,)."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)

"""GAN: a network turns noise into points, and a second one teaches it by telling them from data.

    x = G(z),   z ~ N(0, I)

p_θ is whatever law G(z) has: nothing writes it down, so there is no likelihood to climb. Instead a
discriminator gives each point a logit h(x), its log odds that x is data. It goes up, and G down, in

    value(h, G) = E_data log sigmoid(h(x)) + E_z log(1 − sigmoid(h(G(z)))).

The best h for a given G is log p_data − log p_θ; the value is then 2·JS(p_data, p_θ) − log 4.

Source: I. Goodfellow et al., "Generative Adversarial Nets", arXiv:1406.2661; the penalty that keeps
    the game from circling is R_1 of L. Mescheder, A. Geiger and S. Nowozin, "Which Training Methods
    for GANs do actually Converge?", arXiv:1801.04406.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ddpm_lite.families.common import (
    Family,
    check_count,
    check_data,
    check_rate,
    decayed,
    minibatches,
    mlp,
    normal,
)

BETAS = (0.0, 0.99)  # Adam without momentum: in a game, yesterday's gradient points elsewhere


class GAN(Family):
    """A generator z ↦ x and a discriminator x ↦ h(x), two small networks that play against
    each other.

    Args:
        dimension: D.
        width: of the two hidden layers of both networks.
        latent: the number of coordinates of z.
        penalty: γ, the weight of the R_1 penalty; 0 leaves it out.
        generator: draws the first weights.

    Raises:
        ValueError: if a size is not positive, or the penalty is negative.
    """

    name = "GAN"
    passes = "one pass"
    likelihood = "none"
    default_learning_rate = 5e-3

    def __init__(
        self,
        dimension: int,
        *,
        width: int = 64,
        latent: int = 2,
        penalty: float = 0.1,
        generator: torch.Generator,
    ) -> None:
        if not penalty >= 0:
            raise ValueError(f"penalty must be at least 0, got {penalty!r}.")
        self.dimension = check_count("dimension", dimension)
        self.latent = check_count("latent", latent)
        self.penalty = penalty
        self.generator = mlp([latent, width, width, dimension], generator, _leaky)
        self.discriminator = mlp([dimension, width, width, 1], generator, _leaky)

    def fit(
        self,
        data: Tensor,
        *,
        steps: int,
        batch_size: int,
        learning_rate: float | None = None,
        generator: torch.Generator,
    ) -> Self:
        """Play `steps` rounds: one step of the discriminator, then one of the generator.

        Both learn at the same rate, which falls to zero along a half cosine. Arguments and errors
        are those of `Family.fit`.
        """
        data = check_data(data, self.dimension).to(self.device, self.dtype)
        rate = check_rate(self._rate(learning_rate))
        critic = torch.optim.Adam(self.discriminator.parameters(), lr=rate, betas=BETAS, fused=True)
        artist = torch.optim.Adam(self.generator.parameters(), lr=rate, betas=BETAS, fused=True)
        for step, real in enumerate(minibatches(data, steps, batch_size, generator)):
            for optimiser in (critic, artist):
                optimiser.param_groups[0]["lr"] = decayed(rate, step, steps)
            fake = self.sample(batch_size, generator)
            loss = discriminator_loss(self.discriminator(real), self.discriminator(fake))
            if self.penalty > 0:
                loss = loss + self.penalty * r1_penalty(self.discriminator, real)
            _descend(critic, loss, step)
            fake = self.generator(self._noise(batch_size, generator))
            _descend(artist, generator_loss(self.discriminator(fake)), step)
        return self

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """G(z) for n fresh z, (n, D)."""
        return self.generator(self._noise(check_count("n", n), generator))

    def _noise(self, n: int, generator: torch.Generator) -> Tensor:
        return normal((n, self.latent), generator, self.dtype)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """−E log sigmoid(h(x)) − E log(1 − sigmoid(h(G(z)))), from logits at data and at samples.

    It is minus the game's value, and each mean is over all entries. Its least value, reached at
    h = log p_data − log p_θ, is log 4 − 2·JS(p_data, p_θ).

    Book: (B.1), (B.3).
    Paper: GAN Eq. 1, Theorem 1.
    """
    return softplus(-real).mean() + softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """−E log sigmoid(h(G(z))), the non-saturating loss, from logits at samples.

    What the value itself asks of G, to make E log(1 − sigmoid(h)) small, has the slope
    −sigmoid(h) in h, which vanishes where the discriminator is sure, h → −∞: the slope of this
    loss is −sigmoid(−h), and does not.

    Book: (B.5), (B.6).
    Paper: GAN, section 3.
    """
    return softplus(-fake).mean()


def r1_penalty(discriminator: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """½ E ‖∇_x h(x)‖² over a batch of data (B, D); differentiable in the discriminator's weights.

    Without it the game can circle for ever around its solution; where samples and data agree, the
    best logit is flat on the data, and the penalty asks for just that.

    Paper: Mescheder et al. Eq. 9.

    Book: (B.7).
    """
    real = real.detach().requires_grad_()
    # row i of the output depends on row i of the input only, so the gradient of the sum is them all
    (slope,) = torch.autograd.grad(discriminator(real).sum(), real, create_graph=True)
    return slope.square().sum(dim=1).mean() / 2


def _leaky() -> nn.Module:
    """Kinks let a small network cut the plane between modes sooner than a smooth curve does."""
    return nn.LeakyReLU(0.2)


def _descend(optimiser: torch.optim.Optimizer, loss: Tensor, step: int) -> None:
    """One step for the weights of this player only."""
    if not loss.isfinite():
        raise ValueError(f"a loss of the game became {loss.item()} at training step {step}.")
    weights: list[nn.Parameter] = optimiser.param_groups[0]["params"]
    for weight, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
        weight.grad = slope
    optimiser.step()

"""VAE: a point is decoded from a hidden z, and a second network guesses which z it was.

    z ~ N(0, I),   x | z ~ N(m(z), ς² I),        q(z | x) = N(μ(x), diag(ρ(x)²))

The marginal p_θ(x) = ∫ p(z) p_θ(x | z) dz is out of reach, but for every q it is bounded by

    log p_θ(x) ≥ ELBO(x) = E_q log p_θ(x | z) − KL(q(z | x) ‖ p(z)),

and what is missing is KL(q(z | x) ‖ p_θ(z | x)). The decoder m, its one variance ς² and the encoder
(μ, log ρ²) climb this bound together. The variance is learned, like a weight.

Source: D. Kingma and M. Welling, "Auto-Encoding Variational Bayes", arXiv:1312.6114; the bound with
    several draws is that of Y. Burda, R. Grosse and R. Salakhutdinov, "Importance Weighted
    Autoencoders", arXiv:1509.00519.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ddpm_lite.families.common import Family, check_count, mlp, normal


class VAE(Family):
    """An encoder x ↦ (μ, log ρ²), a decoder z ↦ m, and the decoder's variance ς².

    Args:
        dimension: D.
        width: of the hidden layers of both networks.
        latent: the number of coordinates of z.
        variance: where ς² begins. Well below the data's own: if noise explains the data as well as
            the decoder does, a q that ignores x is the way to a better bound, and an encoder that
            has taken it gives the decoder nothing to learn from (posterior collapse).
        hidden: the number of hidden layers; with none, both networks are linear, and the best
            VAE is probabilistic principal component analysis.
        generator: draws the first weights.

    Raises:
        ValueError: if a size or the variance is not positive, or hidden is negative.
    """

    name = "VAE"
    passes = "one pass"
    likelihood = "bound"
    default_learning_rate = 1e-2

    def __init__(
        self,
        dimension: int,
        *,
        width: int = 64,
        latent: int = 2,
        hidden: int = 2,
        variance: float = 0.05,
        generator: torch.Generator,
    ) -> None:
        if isinstance(hidden, bool) or not isinstance(hidden, int) or hidden < 0:
            raise ValueError(f"hidden must be an int of at least 0, got {hidden!r}.")
        if not 0 < variance < math.inf:
            raise ValueError(f"variance must be a positive number, got {variance!r}.")
        self.dimension = check_count("dimension", dimension)
        self.latent = check_count("latent", latent)
        layers = [check_count("width", width)] * hidden
        self.encoder = mlp([dimension, *layers, 2 * latent], generator, nn.Tanh)
        self.decoder = mlp([latent, *layers, dimension], generator, nn.Tanh)
        begin = torch.tensor(math.log(variance), dtype=torch.float32, device=generator.device)
        self.log_variance = nn.ParameterList([begin])

    @property
    def variance(self) -> float:
        """ς², of the decoder."""
        return self.log_variance[0].exp().item()

    def loss(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """−ELBO in nats, averaged over the batch, with one draw of z for each point."""
        return -self._bound(x, generator).mean()

    @torch.no_grad()
    def elbo(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """An unbiased estimate of the bound in nats, (B,), from one z for each x.
        The divergence is in closed form, so only the first term of the bound is estimated.

        Book: (B.12).
        """
        return self._bound(self._points(x), generator)

    @torch.no_grad()
    def iwae(self, x: Tensor, k: int, generator: torch.Generator) -> Tensor:
        """log (1/k) Σ_i p_θ(x, z_i)/q(z_i | x) in nats, (B,), with k independent z_i for each x.

        Its mean is a bound on log p_θ(x): the ELBO for k = 1, never lower for a larger k, and
        log p_θ(x) itself in the limit if the weights are bounded.

        Book: (B.14).
        Source: arXiv:1509.00519.
        Raises:
            ValueError: if x is not a finite (B, D), or k is not positive.
        """
        x, k = self._points(x), check_count("k", k)
        mean, log_variance = self.encode(x)
        noise = normal((k, len(x), self.latent), generator, self.dtype)
        z = mean + (log_variance / 2).exp() * noise
        log_weight = self.log_joint(x, z) - log_normal(z, mean, log_variance)
        return log_weight.logsumexp(dim=0) - math.log(k)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean μ and log variance log ρ² of q(z | x), (B, latent) each."""
        mean, log_variance = self.encoder(x).chunk(2, dim=-1)
        return mean, log_variance

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(z) + log p_θ(x | z), (…, B), for x (B, D) and z (…, B, latent)."""
        prior = log_normal(z, torch.zeros_like(z), torch.zeros_like(z))
        return prior + log_normal(x, self.decoder(z), self.log_variance[0])

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw z, then x from N(m(z), ς² I): a draw from p_θ, (n, D)."""
        mean = self.sample_mean(n, generator)
        noise = normal((n, self.dimension), generator, self.dtype)
        return mean + (self.log_variance[0] / 2).exp() * noise

    @torch.no_grad()
    def sample_mean(self, n: int, generator: torch.Generator) -> Tensor:
        """m(z) for n fresh z, (n, D): what is often shown as a VAE's samples, without the noise
        that belongs to p_θ."""
        return self.decoder(normal((check_count("n", n), self.latent), generator, self.dtype))

    def _bound(self, x: Tensor, generator: torch.Generator) -> Tensor:
        mean, log_variance = self.encode(x)
        noise = normal((len(x), self.latent), generator, self.dtype)
        z = mean + (log_variance / 2).exp() * noise
        fit = log_normal(x, self.decoder(z), self.log_variance[0])
        return fit - kl_to_standard(mean, log_variance)


def log_normal(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log N(x; mean, diag(variance)) in nats, summed over the last dimension."""
    scaled = (x - mean).square() * (-log_variance).exp()
    return -0.5 * (scaled + log_variance + math.log(2 * math.pi)).sum(dim=-1)


def kl_to_standard(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, diag(variance)) ‖ N(0, I)) in nats, (B,), for (B, latent) each.

    ½ Σ (variance + mean² − 1 − log variance).

    Book: (B.12).
    Paper: VAE, appendix B.
    """
    return 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance).sum(dim=-1)

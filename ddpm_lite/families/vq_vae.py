"""VQ-VAE: a point becomes a few letters of a learned alphabet, and a language model writes them.

    x → E(x), P vectors → c = (c_1, …, c_P), the nearest of K codebook vectors e_1, …, e_K each
    x | c ~ N(m(e_{c_1}, …, e_{c_P}), ς² I),        p(c) = Π_i p(c_i | c_1, …, c_{i−1})

The alphabet comes first: encoder, decoder and codebook learn to give each point back. Then the
prior p(c), in `vq_prior.py`, learns which words the data spells. To sample is to write a word and
to decode it. p_θ(x) = Σ_c p(c) N(x; m(c), ς² I) is a mixture of K^P Gaussians: exact where they can
be counted, and elsewhere bounded by one term of the sum, that of the word which x itself is given.

Source: A. van den Oord, O. Vinyals and K. Kavukcuoglu, "Neural Discrete Representation Learning",
    arXiv:1711.00937.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from ddpm_lite.families.common import (
    Family,
    check_count,
    check_data,
    minibatches,
    minimise,
    mlp,
    normal,
)
from ddpm_lite.families.vae import log_normal
from ddpm_lite.families.vq_prior import Prior

MOST_WORDS = 65_536  # up to which K^P the exact log_prob will count


class VQVAE(Family):
    """An encoder, a codebook, a decoder with one variance ς², and a prior over words of P letters.

    Args:
        dimension: D.
        width: of the two hidden layers of encoder and decoder, and the one of the prior.
        positions: P, the letters of a word.
        codes: K, the letters of the alphabet, which all positions share.
        code_size: the coordinates of a codebook vector.
        commitment: β, what it costs the encoder to stay away from the codebook.
        generator: draws the first weights. ς² begins at 1.

    Raises:
        ValueError: if a size is not positive, or the commitment is negative.
    """

    name = "VQ-VAE"
    passes = "P + 1 passes"
    likelihood = "bound"
    default_learning_rate = 5e-3

    def __init__(
        self,
        dimension: int,
        *,
        width: int = 64,
        positions: int = 2,
        codes: int = 16,
        code_size: int = 2,
        commitment: float = 0.25,
        generator: torch.Generator,
    ) -> None:
        if not commitment >= 0:
            raise ValueError(f"commitment must be at least 0, got {commitment!r}.")
        self.dimension = check_count("dimension", dimension)
        self.positions = check_count("positions", positions)
        self.codes = check_count("codes", codes)
        self.commitment = commitment
        size = positions * check_count("code_size", code_size)
        self.encoder = mlp([dimension, width, width, size], generator)
        self.decoder = mlp([size, width, width, dimension], generator)
        first = normal((codes, code_size), generator, torch.float32)
        self.codebook = nn.ParameterList([first])
        self.prior = Prior(positions, codes, width, generator)
        self.variance = 1.0

    def fit(
        self,
        data: Tensor,
        *,
        steps: int,
        batch_size: int,
        learning_rate: float | None = None,
        generator: torch.Generator,
    ) -> Self:
        """`steps` steps for encoder, decoder and codebook, then as many for the prior.

        Letter k begins at what the encoder says of a random point, at position k mod P; ς² is set
        between the two parts to the mean squared error, its most likely value. Arguments and
        errors are those of `Family.fit`.
        """
        data = check_data(data, self.dimension).to(self.device, self.dtype)
        (start,) = minibatches(data, 1, self.codes, generator)
        letter = torch.arange(self.codes)
        with torch.no_grad():
            self.codebook[0].copy_(self.encode(start)[letter, letter % self.positions])
        alphabet = [*self.encoder.parameters(), *self.decoder.parameters(), *self.codebook]
        rate = self._rate(learning_rate)
        options = {"steps": steps, "batch_size": batch_size}
        minimise(self.loss, alphabet, data, learning_rate=rate, generator=generator, **options)
        words = self.words(data)
        with torch.no_grad():
            self.variance = (data - self.decode(words)).square().mean().item()
        minimise(
            self.prior.loss,
            self.prior.parameters(),
            words,
            learning_rate=rate,
            generator=generator,
            **options,
        )
        return self

    def loss(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """What encoder, decoder and codebook make small: the squared errors of three things.

        ‖x − m‖²  +  ‖sg[E] − e‖²  +  β ‖E − sg[e]‖², each a mean over batch and coordinates; sg
        stops the gradient. The first moves encoder and decoder, the second the codebook towards
        the encoder, the third the encoder towards the codebook. It draws nothing.

        Book: (B.19).
        Source: arXiv:1711.00937, with a Gaussian of fixed variance for its first term.
        """
        encoded = self.encode(x)
        chosen = self.codebook[0][self._nearest(encoded)]
        restored = self.decoder(straight_through(encoded, chosen).flatten(1))
        error = (x - restored).square().mean()
        follow = (encoded.detach() - chosen).square().mean()
        commit = (encoded - chosen.detach()).square().mean()
        return error + follow + self.commitment * commit

    def encode(self, x: Tensor) -> Tensor:
        """E(x), before it is replaced by letters, (B, P, code_size)."""
        return self.encoder(x).unflatten(1, (self.positions, -1))

    @torch.no_grad()
    def words(self, x: Tensor) -> Tensor:
        """c(x): at each position the nearest codebook vector, int64 (B, P).

        Book: (B.17).
        """
        return self._nearest(self.encode(self._points(x)))

    def decode(self, words: Tensor) -> Tensor:
        """m(c), (B, D), of words int64 (B, P)."""
        return self.decoder(self.codebook[0][words].flatten(1))

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Write a word, decode it, add N(0, ς² I): a draw from p_θ, (n, D)."""
        mean = self.sample_mean(n, generator)
        noise = normal((n, self.dimension), generator, self.dtype)
        return mean + self.variance**0.5 * noise

    @torch.no_grad()
    def sample_mean(self, n: int, generator: torch.Generator) -> Tensor:
        """m(c) for n words from the prior, (n, D): without the noise that belongs to p_θ."""
        return self.decode(self.prior.sample(check_count("n", n), generator))

    @torch.no_grad()
    def elbo(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """log p(c) + log N(x; m(c), ς² I) at c = c(x), in nats, (B,): one term of the sum over c.

        So it is exact, not an estimate, and the generator is not used.

        Book: (B.21).
        """
        x = self._points(x)
        words = self.words(x)
        return self.prior.log_prob(words) + self._log_fit(x, self.decode(words))

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        """log Σ_c p(c) N(x; m(c), ς² I) in nats, (B,), by counting all K^P words.

        Book: (B.20).
        Raises:
            ValueError: if x is not a finite (B, D), or there are more than 65,536 words.
        """
        count = self.codes**self.positions
        if count > MOST_WORDS:
            raise ValueError(
                f"log_prob counts at most {MOST_WORDS:,} words, and {self.codes} letters at "
                f"{self.positions} positions make {count:,}: use elbo."
            )
        x = self._points(x)
        words = self.prior.every_word()
        log_weight, mean = self.prior.log_prob(words), self.decode(words)
        rows = [log_weight + self._log_fit(x[i : i + 1], mean) for i in range(len(x))]
        return torch.stack(rows).logsumexp(dim=1)

    def _log_fit(self, x: Tensor, mean: Tensor) -> Tensor:
        return log_normal(x, mean, torch.full_like(mean, self.variance).log())

    def _nearest(self, encoded: Tensor) -> Tensor:
        away = encoded.detach()[:, :, None] - self.codebook[0].detach()
        return away.square().sum(dim=-1).argmin(dim=-1)


def straight_through(encoded: Tensor, chosen: Tensor) -> Tensor:
    """`chosen` on the way forward, as if it were `encoded` on the way back.

    The choice of the nearest vector has derivative zero almost everywhere, so the gradient that
    arrives at the chosen vectors is handed to the encoder unchanged.

    Book: (B.18).
    """
    return encoded + (chosen - encoded).detach()


def perplexity(words: Tensor, codes: int) -> float:
    """exp of the entropy of the letters' frequencies, all positions together: 1 to K.

    How many letters of the alphabet are in use, where a rare one counts less than one: a codebook
    that has collapsed to one vector has 1.

    Raises:
        ValueError: if there is no letter.
    """
    if words.numel() == 0:
        raise ValueError("the perplexity of no letters is not defined: words is empty.")
    share = torch.bincount(words.flatten(), minlength=codes).double() / words.numel()
    return torch.special.entr(share).sum().exp().item()

"""The prior of the VQ-VAE: an autoregressive law over words of P letters, all of it exact."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ddpm_lite.families.common import mlp


class Prior(nn.Module):
    """p(c) = Π_i p(c_i | c_1, …, c_{i−1}) over words of P letters from an alphabet of K.

    One small network for all positions: it is told the position, and every letter before it; what
    comes after is blank. So all its P conditionals cost one call in training, P in sampling.
    """

    def __init__(self, positions: int, codes: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.positions, self.codes = positions, codes
        self.network = mlp([positions * (codes + 1), width, codes], generator)

    def forward(self, words: Tensor) -> Tensor:
        """log p(c_i = k | c_1, …, c_{i−1}) for every i and k, (B, P, K), of int64 (B, P)."""
        dtype = next(self.parameters()).dtype
        place = torch.eye(self.positions, device=words.device, dtype=dtype)
        before = torch.ones_like(place).tril(-1)  # (i, j): 1 where j < i
        letters = one_hot(words, self.codes).to(dtype)
        seen = torch.einsum("ij,bjk->bijk", before, letters).flatten(2)
        logits = self.network(torch.cat([seen, place.expand(len(words), -1, -1)], dim=2))
        return logits.log_softmax(dim=2)

    def loss(self, words: Tensor, generator: torch.Generator) -> Tensor:
        """−log p(c) in nats, averaged over the batch. It draws nothing."""
        return -self.log_prob(words).mean()

    def log_prob(self, words: Tensor) -> Tensor:
        """log p(c) in nats, (B,), of words int64 (B, P)."""
        return self(words).gather(2, words[..., None])[..., 0].sum(dim=1)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n words, int64 (n, P), letter by letter."""
        words = torch.zeros(n, self.positions, dtype=torch.int64, device=generator.device)
        for i in range(self.positions):
            chance = self(words)[:, i].exp()
            words[:, i] = torch.multinomial(chance, 1, generator=generator)[:, 0]
        return words

    def every_word(self) -> Tensor:
        """All K^P words, int64 (K^P, P)."""
        device = next(self.parameters()).device
        letters = [torch.arange(self.codes, device=device)] * self.positions
        return torch.cartesian_prod(*letters).reshape(-1, self.positions)

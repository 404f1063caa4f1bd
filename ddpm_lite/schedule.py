"""The noise schedule: ᾱ_0, …, ᾱ_T, from which every other coefficient of the book is derived.

The index runs 0..T, as on paper. Index 0 is clean data, so there is no ``alphas_cumprod_prev``
and no shift by one: ``alpha_bar[0] == 1``, ``beta[0] == 0``, ``snr[0] == inf``.

Internally the schedule keeps log ᾱ. A step from s to t multiplies the signal by √(ᾱ_t/ᾱ_s) and
adds noise of variance 1 − ᾱ_t/ᾱ_s; written as −expm1(log ᾱ_t − log ᾱ_s) that variance keeps its
digits even where ᾱ_t/ᾱ_s differs from 1 by 1e-5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

SPACINGS = ("trailing", "leading", "linspace", "quadratic", "log-snr")

FloatSequence = Sequence[float] | np.ndarray | Tensor


def one_minus_exp(log_value: Tensor) -> Tensor:
    """1 − e^x for x ≤ 0, without cancellation; 0.0 − 0.0, unlike −0.0, is +0."""
    return 0.0 - torch.expm1(log_value)


class NoiseSchedule:
    """A decreasing sequence 1 = ᾱ_0 > ᾱ_1 > … > ᾱ_T ≥ 0.

    Build one with `linear`, `cosine`, `from_betas` or `from_alpha_bar`; shorten one with `respace`.
    All tables are float64 tensors of shape (T+1,) on the CPU, made afresh at each access, so
    changing one in place cannot corrupt the schedule.
    """

    def __init__(self, log_alpha_bar: Tensor, timesteps: Tensor | None = None) -> None:
        """Take log ᾱ_0..log ᾱ_T, float64 (T+1,). Prefer the named constructors.

        Raises:
            ValueError: if the sequence is empty, does not start at log 1 = 0, or does not fall.
        """
        _check_log_alpha_bar(log_alpha_bar)
        self._log_alpha_bar = log_alpha_bar.detach().clone()
        number = torch.arange(len(log_alpha_bar)) if timesteps is None else timesteps
        self._timesteps = number.detach().clone()

    # ---- constructors ---------------------------------------------------------------------

    @classmethod
    def linear(cls, T: int, beta_1: float = 1e-4, beta_T: float = 2e-2) -> NoiseSchedule:
        """β_t = β_1 + (t−1)/(T−1)·(β_T − β_1); a chain of one step has β_1 alone.

        The default ends are those that Ho et al. (2020) chose for T = 1000. They are *not*
        rescaled with T: a shorter chain with the same ends leaves signal in x_T.

        Book: (2.18).
        Paper: DDPM section 4.
        Raises:
            ValueError: if T < 1 or an end lies outside (0, 1).
        """
        return cls.from_betas(torch.linspace(beta_1, beta_T, _length(T), dtype=torch.float64))

    @classmethod
    def cosine(cls, T: int, offset: float = 0.008, beta_max: float = 0.999) -> NoiseSchedule:
        """ᾱ_t = f(t)/f(0), f(t) = cos²(((t/T + offset)/(1 + offset))·π/2), with β_t ≤ beta_max.

        f(T) = 0 would make β_T = 1. Where β is clipped, ᾱ is re-derived from the clipped β, so
        that the schedule stays one chain.

        Book: (2.19), (2.20), (2.21).
        Paper: Improved DDPM Eq. 17.
        Raises:
            ValueError: if T < 1, the offset is not positive, or beta_max lies outside (0, 1).
        """
        if not (math.isfinite(offset) and offset > 0):
            raise ValueError(f"offset must be a positive number, got {offset!r}.")
        if not 0 < beta_max < 1:
            raise ValueError(f"beta_max must lie between 0 and 1, both excluded, got {beta_max!r}.")
        step = torch.arange(_length(T) + 1, dtype=torch.float64)
        angle = (step / T + offset) / (1 + offset) * (math.pi / 2)
        later, earlier = angle[1:], angle[:-1]
        # 1 − cos²a/cos²b = sin(a+b)·sin(a−b)/cos²b: no difference of nearly equal numbers
        betas = torch.sin(later + earlier) * torch.sin(later - earlier) / torch.cos(earlier) ** 2
        return cls.from_betas(betas.clamp(max=beta_max))

    @classmethod
    def from_betas(cls, betas: FloatSequence) -> NoiseSchedule:
        """ᾱ_t = ∏_{k≤t} (1 − β_k), from β_1..β_T (length T: there is no β_0 in the list).

        Book: (2.15).
        Raises:
            ValueError: if the list is empty, or an entry is not finite or outside (0, 1).
        """
        beta = _vector(betas, "betas")
        if len(beta) == 0:
            raise ValueError("betas must hold at least one number: T is at least 1.")
        outside = ~((beta > 0) & (beta < 1))
        if outside.any():
            t = int(outside.nonzero()[0])
            raise ValueError(
                f"every beta must lie between 0 and 1, both excluded, but beta_{t + 1} is "
                f"{beta[t].item()!r}."
            )
        zero = torch.zeros(1, dtype=torch.float64)
        return cls(torch.cat([zero, torch.log1p(-beta).cumsum(0)]))

    @classmethod
    def from_alpha_bar(cls, alpha_bar: FloatSequence) -> NoiseSchedule:
        """Take ᾱ_0..ᾱ_T, length T+1, starting at exactly 1. ᾱ_T = 0 is allowed, and only there.

        Raises:
            ValueError: if the sequence is too short, not finite, does not start at 1, does not
                fall strictly, or goes below 0.
        """
        value = _vector(alpha_bar, "alpha_bar")
        if (value < 0).any():
            t = int((value < 0).nonzero()[0])
            raise ValueError(f"alpha_bar must not be negative, but entry {t} is {value[t].item()}.")
        return cls(value.log())

    # ---- tables ---------------------------------------------------------------------------

    @property
    def T(self) -> int:
        """The length of the chain."""
        return len(self._log_alpha_bar) - 1

    @property
    def timesteps(self) -> Tensor:
        """The original number of each kept step, int64 (T+1,); ``timesteps[0] == 0``.

        0, 1, …, T unless the schedule came out of `respace`.
        """
        return self._timesteps.clone()

    @property
    def log_alpha_bar(self) -> Tensor:
        """log ᾱ_t, float64 (T+1,): the table that the library computes with.

        Book: (3.35).
        """
        return self._log_alpha_bar.clone()

    @property
    def alpha_bar(self) -> Tensor:
        """ᾱ_t = ∏_{k≤t} α_k, the share of the data's variance that is left at step t.

        Book: (2.15), (3.9).
        """
        return self._log_alpha_bar.exp()

    @property
    def one_minus_alpha_bar(self) -> Tensor:
        """1 − ᾱ_t, the variance of the noise in x_t, without cancellation.

        Book: (2.16), (3.17).
        """
        return one_minus_exp(self._log_alpha_bar)

    @property
    def alpha(self) -> Tensor:
        """α_t = 1 − β_t = ᾱ_t/ᾱ_{t−1}; α_0 = 1.

        Book: (2.1).
        """
        return torch.cat([torch.ones(1, dtype=torch.float64), self._log_alpha_bar.diff().exp()])

    @property
    def beta(self) -> Tensor:
        """β_t = 1 − ᾱ_t/ᾱ_{t−1}, the variance of the noise that step t adds; β_0 = 0.

        Book: (2.1), (2.20).
        """
        step = one_minus_exp(self._log_alpha_bar.diff())
        return torch.cat([torch.zeros(1, dtype=torch.float64), step])

    @property
    def snr(self) -> Tensor:
        """ᾱ_t/(1 − ᾱ_t), the signal-to-noise ratio; infinite at t = 0.

        Book: (2.17), (3.18).
        """
        return self.alpha_bar / self.one_minus_alpha_bar

    @property
    def posterior_variance(self) -> Tensor:
        """β̃_t = (1 − ᾱ_{t−1})/(1 − ᾱ_t)·β_t, the variance of q(x_{t−1} | x_t, x_0).

        β̃_0 = β̃_1 = 0: given x_0, nothing is left to be uncertain about.

        Book: (4.10).
        Paper: DDPM Eq. 7.
        """
        noise = self.one_minus_alpha_bar
        value = noise[:-1] / noise[1:] * self.beta[1:]
        return torch.cat([torch.zeros(1, dtype=torch.float64), value])

    # ---- shorter chains -------------------------------------------------------------------

    def steps(self, count: int, spacing: str) -> Tensor:
        """Choose `count` distinct steps out of 1..T, increasing, int64 (count,).

        With S = count and i = 0..S−1:
            trailing   round(T − i·T/S): always contains T
            leading    1 + i·⌊T/S⌋: always contains 1, and never T unless S = T
            linspace   round(1 + i·(T−1)/(S−1)): contains both ends
            quadratic  round(1 + (T−1)·(i/(S−1))²): both ends, dense near the data
            log-snr    the steps nearest to S levels uniform in log SNR, both ends

        Rounding is to the nearest even number at a tie. Where two rounded steps coincide, the
        later one is moved up to the next free step (and the last ones down from T).

        Book: (9.17).

        Raises:
            ValueError: if count or spacing is not one of those allowed.
        """
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"the number of steps must be an int, got {count!r}.")
        if not 1 <= count <= self.T:
            raise ValueError(f"the number of steps must lie in 1..T = {self.T}, got {count}.")
        if spacing not in SPACINGS:
            raise ValueError(f"spacing must be one of {', '.join(SPACINGS)}, got {spacing!r}.")
        if count == 1 and spacing in ("linspace", "quadratic", "log-snr") and self.T > 1:
            raise ValueError(
                f"spacing {spacing!r} contains both 1 and T, so it needs at least 2 steps, got 1."
            )
        return _distinct(_SPACING_RULES[spacing](self, count), self.T)

    def respace(
        self, steps: int | Sequence[int] | Tensor, spacing: str | None = None
    ) -> NoiseSchedule:
        """A shorter chain that visits only the given steps: every kept ᾱ stays, β is re-derived.

        With the kept steps τ_1 < … < τ_S, the new chain has ᾱ'_i = ᾱ_{τ_i}, hence
        β'_i = 1 − ᾱ_{τ_i}/ᾱ_{τ_{i−1}}, τ_0 = 0. `timesteps` of the result holds τ_0..τ_S in the
        numbering of the original chain, which is what a denoiser must be called with.

        Book: (3.23), (4.17), (9.16).
        Paper: Improved DDPM section 4.

        Args:
            steps: increasing step numbers in 1..T, or how many of them together with `spacing`.
            spacing: a rule of `steps`, given if and only if `steps` is a number.

        Raises:
            ValueError: if the list is empty, unsorted, repeats a step or leaves 1..T.
        """
        if isinstance(steps, int):  # `steps` refuses a bool
            if spacing is None:
                raise ValueError(
                    f"respace({steps}) needs a spacing, one of {', '.join(SPACINGS)}: the grid "
                    "changes the samples, so it has no default."
                )
            kept = self.steps(steps, spacing)
        else:
            if spacing is not None:
                raise ValueError(f"a list of steps is taken as it is; drop spacing={spacing!r}.")
            kept = _step_list(steps, self.T)
        index = torch.cat([torch.zeros(1, dtype=torch.int64), kept])
        return NoiseSchedule(self._log_alpha_bar[index], self._timesteps[index])

    # ---- the usual ------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NoiseSchedule):
            return NotImplemented
        return torch.equal(self._log_alpha_bar, other._log_alpha_bar) and torch.equal(
            self._timesteps, other._timesteps
        )

    __hash__ = None  # type: ignore[assignment]  # equal by value, so not hashable by identity

    def __repr__(self) -> str:
        return f"NoiseSchedule(T={self.T}, alpha_bar_T={self.alpha_bar[-1].item():.4g})"


# ---- spacing rules: real-valued step numbers, increasing ----------------------------------


def _trailing(schedule: NoiseSchedule, count: int) -> np.ndarray:
    return (schedule.T - np.arange(count) * (schedule.T / count))[::-1]


def _leading(schedule: NoiseSchedule, count: int) -> np.ndarray:
    return 1 + np.arange(count) * (schedule.T // count)


def _linspace(schedule: NoiseSchedule, count: int) -> np.ndarray:
    return np.linspace(1, schedule.T, count)


def _quadratic(schedule: NoiseSchedule, count: int) -> np.ndarray:
    return 1 + (schedule.T - 1) * np.linspace(0, 1, count) ** 2


def _log_snr(schedule: NoiseSchedule, count: int) -> np.ndarray:
    log_snr = schedule.snr[1:].log().numpy()
    if not np.isfinite(log_snr[-1]):
        raise ValueError("spacing 'log-snr' needs alpha_bar_T > 0: here log SNR_T is -inf.")
    levels = np.linspace(log_snr[0], log_snr[-1], count)
    return 1 + np.abs(log_snr[None, :] - levels[:, None]).argmin(axis=1)


_SPACING_RULES = {
    "trailing": _trailing,
    "leading": _leading,
    "linspace": _linspace,
    "quadratic": _quadratic,
    "log-snr": _log_snr,
}


def _distinct(wanted: np.ndarray, T: int) -> Tensor:
    """Round to steps in 1..T and move repeats apart, keeping the order and the count."""
    step = np.round(wanted).astype(np.int64)
    free = np.arange(len(step))
    step = np.maximum.accumulate(np.maximum(step, 1) - free) + free  # repeats move up …
    step = np.minimum(step, T - free[::-1])  # … but the last ones stop at T
    return torch.from_numpy(step)


# ---- checks at the boundary ---------------------------------------------------------------


def _length(T: int) -> int:
    if isinstance(T, bool) or not isinstance(T, int):
        raise TypeError(f"T must be an int, got {T!r}.")
    if T < 1:
        raise ValueError(f"T must be at least 1, got {T}.")
    return T


def _vector(values: FloatSequence, name: str) -> Tensor:
    vector = torch.as_tensor(values, dtype=torch.float64, device="cpu").detach()
    if vector.ndim != 1:
        raise ValueError(f"{name} must be a list of numbers, got shape {tuple(vector.shape)}.")
    if not vector.isfinite().all():
        t = int((~vector.isfinite()).nonzero()[0])
        raise ValueError(f"{name} must be finite, but entry {t} is {vector[t].item()}.")
    return vector


def _check_log_alpha_bar(log_alpha_bar: Tensor) -> None:
    if log_alpha_bar.dtype != torch.float64 or log_alpha_bar.ndim != 1:
        raise ValueError(
            f"log_alpha_bar must be a float64 vector, got {log_alpha_bar.dtype} of shape "
            f"{tuple(log_alpha_bar.shape)}."
        )
    if len(log_alpha_bar) < 2:
        raise ValueError(
            f"a schedule needs alpha_bar_0 and at least one step (T >= 1), got "
            f"{len(log_alpha_bar)} entries."
        )
    value = log_alpha_bar.exp()
    if value[0] != 1:
        raise ValueError(
            f"alpha_bar must start at alpha_bar_0 = 1 (clean data), got {value[0].item()!r}; "
            "a list that starts at step 1 needs a 1 in front."
        )
    stuck = ~(value[1:] < value[:-1])
    if stuck.any():
        t = int(stuck.nonzero()[0]) + 1
        raise ValueError(
            f"alpha_bar must fall at every step, but alpha_bar_{t} = {value[t].item()!r} follows "
            f"alpha_bar_{t - 1} = {value[t - 1].item()!r}."
        )


def _step_list(steps: Sequence[int] | Tensor, T: int) -> Tensor:
    kept = torch.as_tensor(steps, device="cpu")
    if kept.ndim != 1 or kept.numel() == 0:
        raise ValueError(f"the list of steps must hold at least one step, got {steps!r}.")
    if kept.dtype.is_floating_point or kept.dtype == torch.bool:
        raise TypeError(f"step numbers must be ints, got {kept.dtype}.")
    kept = kept.to(torch.int64)
    outside = (kept < 1) | (kept > T)
    if outside.any():
        raise ValueError(f"steps must lie in 1..T = {T}, got {kept[outside][0].item()}.")
    falls = kept.diff() <= 0
    if falls.any():
        i = int(falls.nonzero()[0])
        raise ValueError(
            f"steps must increase without repeats, but {kept[i].item()} is followed by "
            f"{kept[i + 1].item()}."
        )
    return kept

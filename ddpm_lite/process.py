"""The diffusion process: every distribution of the chain, and the one conversion of predictions.

Whatever steps t and s < t are given, a coefficient depends only on the pair (ᾱ_t, ᾱ_s). So one
method serves a single step, a strided chain, DDPM (η = 1) and DDIM (η = 0).

Coefficients are computed in float64 and cast last; results have
``torch.promote_types(x.dtype, torch.float32)``, so half-precision input never meets
half-precision coefficients. t and s are an int for the whole batch or an int64 tensor (B,).
Ranges are checked for ints and CPU tensors; a tensor on a GPU is not read back for a check.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_lite.schedule import NoiseSchedule, one_minus_exp

PREDICTIONS = ("eps", "x0", "v")
VARIANCES = ("posterior", "beta", "learned")

Step = int | Tensor


@dataclass(frozen=True)
class Gaussian:
    """N(mean, variance·I), or with one variance per coordinate.

    mean: (B, …). variance: broadcasts against mean; shape () for an int step, (B, 1, …, 1) for a
    step per sample, the full shape where a network learned it.
    """

    mean: Tensor
    variance: Tensor

    def sample(self, generator: torch.Generator) -> Tensor:
        """mean + √variance·z with z ~ N(0, I); where the one variance is 0, no noise is drawn.

        Book: (2.2), (T.29).
        """
        if self._is_one_number() and self.variance.item() == 0:
            return self.mean.clone()
        noise = torch.randn(
            self.mean.shape, generator=generator, dtype=self.mean.dtype, device=generator.device
        )
        return self.mean + self.variance.sqrt() * noise.to(self.mean.device)

    def log_prob(self, x: Tensor) -> Tensor:
        """log density at x in nats, summed over all but the batch: shape (B,).

        Book: (T.3).
        Raises:
            ValueError: if a variance is 0: a point has no density.
        """
        self._refuse_zero_variance("log_prob")
        density = -0.5 * (
            (x - self.mean) ** 2 / self.variance + torch.log(2 * math.pi * self.variance)
        )
        return _sum_but_batch(density)

    def kl(self, other: Gaussian) -> Tensor:
        """KL(self ∥ other) in nats, summed over all but the batch: shape (B,).

        Per coordinate: ½(r − 1 − log r) + (mean − mean')²/(2·variance'), r = variance/variance'.

        Book: (2.23), (T.24).
        Raises:
            ValueError: if a variance is 0.
        """
        self._refuse_zero_variance("kl")
        other._refuse_zero_variance("kl")
        ratio = self.variance / other.variance
        per_coordinate = 0.5 * (
            ratio - 1 - ratio.log() + (self.mean - other.mean) ** 2 / other.variance
        )
        return _sum_but_batch(per_coordinate)

    def _is_one_number(self) -> bool:
        return self.variance.numel() == 1 and self.variance.device.type == "cpu"

    def _refuse_zero_variance(self, name: str) -> None:
        if self.variance.device.type == "cpu" and (self.variance <= 0).any():
            raise ValueError(
                f"{name} needs a positive variance, got {self.variance.min().item()}: at s = 0 "
                "the posterior is a point and has no density."
            )


@dataclass(frozen=True)
class Prediction:
    """A denoiser's output in all its forms, consistent with one another and with x_t.

    x0, eps: (B, …). f: the interpolation weight of a learned variance, same shape, else None.
    The last two fields are √ᾱ_t and √(1−ᾱ_t), from which v and score follow.
    """

    x0: Tensor
    eps: Tensor
    f: Tensor | None
    signal: Tensor
    noise: Tensor

    @property
    def v(self) -> Tensor:
        """v = √ᾱ_t·ε − √(1−ᾱ_t)·x_0.

        Book: (4.45).
        Source: Salimans and Ho, arXiv 2202.00512.
        """
        return self.signal * self.eps - self.noise * self.x0

    @property
    def score(self) -> Tensor:
        """∇ log p_t(x_t) = −ε/√(1−ᾱ_t), where ε stands for E[ε | x_t].

        Book: (4.44).
        """
        return -self.eps / self.noise


class GaussianDiffusion:
    """The forward chain, its posterior family and the reverse step of one noise schedule.

    prediction: what the denoiser's output means, one of eps, x0, v.
    variance: that of the reverse step, one of
        posterior  σ² = η²·β̃_{t|s}
        beta       σ² = β_{t|s} = 1 − ᾱ_t/ᾱ_s, with the mean of η = 1
        learned    exp(f·log β_{t|s} + (1−f)·log β̃_{t|s}), f = (raw+1)/2, where the denoiser gives
                   twice the channels: the prediction first, raw second
    """

    def __init__(
        self, schedule: NoiseSchedule, prediction: str = "eps", variance: str = "posterior"
    ) -> None:
        if prediction not in PREDICTIONS:
            raise ValueError(
                f"prediction must be one of {', '.join(PREDICTIONS)}, got {prediction!r}."
            )
        if variance not in VARIANCES:
            raise ValueError(f"variance must be one of {', '.join(VARIANCES)}, got {variance!r}.")
        self.schedule = schedule
        self.prediction = prediction
        self.variance = variance
        self._tables = {torch.device("cpu"): schedule.log_alpha_bar}

    @property
    def T(self) -> int:
        """The length of the chain."""
        return self.schedule.T

    # ---- forward --------------------------------------------------------------------------

    def transition(self, x_s: Tensor, t: Step, s: Step) -> Gaussian:
        """q(x_t | x_s) = N(√(ᾱ_t/ᾱ_s)·x_s, (1 − ᾱ_t/ᾱ_s)·I) for 0 ≤ s < t ≤ T.

        Book: (2.3), (3.7), (3.23), (3.25).
        Paper: DDPM Eq. 2 (for s = t−1).
        Raises:
            ValueError: if a step is out of range or s is not below t.
        """
        self._check_pair(t, s, x_s)
        log_ratio = self._log(t, x_s) - self._log(s, x_s)
        mean = _cast((0.5 * log_ratio).exp(), x_s) * _cast(x_s, x_s)
        return Gaussian(mean, _cast(one_minus_exp(log_ratio), x_s))

    def marginal(self, x0: Tensor, t: Step) -> Gaussian:
        """q(x_t | x_0) = N(√ᾱ_t·x_0, (1 − ᾱ_t)·I) for 0 ≤ t ≤ T; at t = 0 the variance is 0.

        Book: (3.10).
        Paper: DDPM Eq. 4.
        Raises:
            ValueError: if t is out of range.
        """
        signal, noise_variance = self._marginal_coefficients(x0, t)
        return Gaussian(signal * _cast(x0, x0), noise_variance)

    def q_sample(self, x0: Tensor, t: Step, noise: Tensor) -> Tensor:
        """x_t = √ᾱ_t·x_0 + √(1−ᾱ_t)·ε for the ε that is given, 0 ≤ t ≤ T.

        Book: (3.14).
        Paper: DDPM, the argument of ε_θ in Eq. 14.
        Raises:
            ValueError: if t is out of range or the noise has another shape than x0.
        """
        _check_same_shape(x0, noise, "x0", "noise")
        signal, noise_variance = self._marginal_coefficients(x0, t)
        return signal * _cast(x0, x0) + noise_variance.sqrt() * _cast(noise, x0)

    # ---- backward, given x_0 --------------------------------------------------------------

    def posterior(
        self, x_t: Tensor, x0: Tensor, t: Step, s: Step | None = None, eta: float = 1.0
    ) -> Gaussian:
        """q_σ(x_s | x_t, x_0) for 0 ≤ s < t ≤ T; s defaults to t − 1.

        mean = √ᾱ_s·x_0 + √(1−ᾱ_s−σ²)·(x_t − √ᾱ_t·x_0)/√(1−ᾱ_t)
        variance σ² = η²·(1−ᾱ_s)/(1−ᾱ_t)·(1 − ᾱ_t/ᾱ_s)

        η = 1 is the posterior of the Markov chain at any stride; η = 0 is DDIM. The mean is
        evaluated as c_0·x_0 + c_t·x_t in a form without cancellation (see `_posterior_weights`).

        Book: (4.10), (4.12), (4.18), (9.4), (9.9).
        Paper: DDPM Eqs. 6 and 7 (η = 1, s = t−1); DDIM Eq. 7, and Eq. 16 for σ(η).
        Raises:
            ValueError: if a step is out of range, s is not below t, or η is outside [0, 1].
        """
        s = _previous(t) if s is None else s
        self._check_pair(t, s, x_t)
        _check_same_shape(x_t, x0, "x_t", "x0")
        weight_x0, weight_xt, variance = self._posterior_weights(t, s, _check_eta(eta), x_t)
        mean = _cast(weight_x0, x_t) * _cast(x0, x_t) + _cast(weight_xt, x_t) * _cast(x_t, x_t)
        return Gaussian(mean, _cast(variance, x_t))

    def _posterior_weights(
        self, t: Step, s: Step, eta: float, like: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(weight of x_0, weight of x_t, σ²) of q_σ(x_s | x_t, x_0), float64.

        With a = ᾱ_t/ᾱ_s and b = 1 − a, 1 − ᾱ_t = b + a(1−ᾱ_s) turns every difference of the
        textbook form into a sum:
            1−ᾱ_s−σ²          = (1−ᾱ_s)·((1−η²)b + a(1−ᾱ_s))/(1−ᾱ_t)
            √ᾱ_s − √ᾱ_t·c_t   = ᾱ_s(b + aσ²)/((1−ᾱ_t)(√ᾱ_s + √ᾱ_t·c_t)),
        so that at s = 0 the weights are exactly 1 and 0.
        """
        log_t, log_s = self._log(t, like), self._log(s, like)
        ratio, beta = (log_t - log_s).exp(), one_minus_exp(log_t - log_s)
        noise_t, noise_s = one_minus_exp(log_t), one_minus_exp(log_s)
        variance = eta**2 * noise_s / noise_t * beta
        left = noise_s * ((1 - eta**2) * beta + ratio * noise_s) / noise_t
        weight_xt = (left / noise_t).sqrt()
        root_t, root_s = (0.5 * log_t).exp(), (0.5 * log_s).exp()
        weight_x0 = (
            log_s.exp() * (beta + ratio * variance) / (noise_t * (root_s + root_t * weight_xt))
        )
        return weight_x0, weight_xt, variance

    # ---- backward, with a denoiser --------------------------------------------------------

    def predict(
        self, output: Tensor, x_t: Tensor, t: Step, clip: tuple[float, float] | None = None
    ) -> Prediction:
        """Read a denoiser's output at (x_t, t), 1 ≤ t ≤ T, as x̂_0, ε̂, v̂ and score.

        eps: x̂_0 = (x_t − √(1−ᾱ_t)·ε̂)/√ᾱ_t. x0: ε̂ = (x_t − √ᾱ_t·x̂_0)/√(1−ᾱ_t).
        v: x̂_0 = √ᾱ_t·x_t − √(1−ᾱ_t)·v̂ and ε̂ = √(1−ᾱ_t)·x_t + √ᾱ_t·v̂.
        With clip = (low, high), x̂_0 is clamped and ε̂ is re-derived from it, here and nowhere else.

        Book: (4.21), (4.46), (4.48).
        Raises:
            ValueError: if t is out of range, the output's shape does not fit, clip is not an
                interval, or ε is asked for x̂_0 at a step with ᾱ_t = 0.
        """
        self._check_step(t, x_t, low=1)
        raw, f = self._split(output, x_t)
        x_t = _cast(x_t, x_t)
        log_alpha_bar = self._log(t, x_t)
        signal = _cast((0.5 * log_alpha_bar).exp(), x_t)
        noise = _cast((one_minus_exp(log_alpha_bar)).sqrt(), x_t)
        if self.prediction == "eps":
            self._refuse_eps_without_signal(t)
            eps, x0 = raw, (x_t - noise * raw) / signal
        elif self.prediction == "x0":
            x0, eps = raw, (x_t - signal * raw) / noise
        else:
            x0, eps = signal * x_t - noise * raw, noise * x_t + signal * raw
        if clip is not None:
            low, high = _check_clip(clip)
            x0 = x0.clamp(low, high)
            eps = (x_t - signal * x0) / noise
        return Prediction(x0, eps, f, signal, noise)

    def reverse(
        self,
        output: Tensor,
        x_t: Tensor,
        t: Step,
        s: Step | None = None,
        eta: float = 1.0,
        clip: tuple[float, float] | None = None,
    ) -> Gaussian:
        """p_θ(x_s | x_t): the mean of q_σ(x_s | x_t, x̂_0), with the variance this process has.

        With variance `beta` or `learned`, η must be 1. `beta` is then *not* a member of the
        family q_σ: it does not keep the marginals. `learned` at s = 0, where β̃ = 0 has no
        logarithm, takes the smallest positive β̃ of the chain in its place (β_1 if T = 1).

        Book: (4.23), (4.49), (9.14).
        Paper: DDPM Eqs. 1 and 11; Improved DDPM section 3.1; DDIM Eq. 12.
        Raises:
            ValueError: as `predict` and `posterior`, or if η ≠ 1 meets `beta` or `learned`.
        """
        return self.reverse_given(self.predict(output, x_t, t, clip), x_t, t, s, eta)

    def reverse_given(
        self,
        prediction: Prediction,
        x_t: Tensor,
        t: Step,
        s: Step | None = None,
        eta: float = 1.0,
    ) -> Gaussian:
        """`reverse`, for an output that `predict` has already read at (x_t, t)."""
        if self.variance != "posterior" and eta != 1:
            raise ValueError(
                f"variance {self.variance!r} is defined for eta = 1 only, got {eta!r}."
            )
        s = _previous(t) if s is None else s
        member = self.posterior(x_t, prediction.x0, t, s, eta)
        if self.variance == "posterior":
            return member
        beta = one_minus_exp(self._log(t, x_t) - self._log(s, x_t))
        if self.variance == "beta":
            return Gaussian(member.mean, _cast(beta, x_t))
        if prediction.f is None:
            raise ValueError("a learned variance needs a prediction with f, this one has none.")
        lower = torch.where(member.variance > 0, member.variance, self._smallest_variance(x_t))
        log_variance = prediction.f * _cast(beta.log(), x_t) + (1 - prediction.f) * lower.log()
        return Gaussian(member.mean, log_variance.exp())

    # ---- small parts ----------------------------------------------------------------------

    def _smallest_variance(self, like: Tensor) -> Tensor:
        """The smallest positive β̃ of the chain, the stand-in for β̃_1 = 0; β_1 if T = 1."""
        variance = self.schedule.posterior_variance
        positive = variance[variance > 0]
        return _cast(positive.min() if len(positive) else self.schedule.beta[1], like)

    def _marginal_coefficients(self, x0: Tensor, t: Step) -> tuple[Tensor, Tensor]:
        """(√ᾱ_t, 1−ᾱ_t), cast."""
        self._check_step(t, x0, low=0)
        log_alpha_bar = self._log(t, x0)
        return _cast((0.5 * log_alpha_bar).exp(), x0), _cast(one_minus_exp(log_alpha_bar), x0)

    def _log(self, t: Step, like: Tensor) -> Tensor:
        """log ᾱ_t, float64: shape () on the CPU for an int, (B, 1, …, 1) beside t for a tensor."""
        if isinstance(t, int):
            return self._tables[torch.device("cpu")][t]
        if t.device not in self._tables:
            self._tables[t.device] = self._tables[torch.device("cpu")].to(t.device)
        return self._tables[t.device][t].reshape(-1, *[1] * (like.ndim - 1))

    def _split(self, output: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor | None]:
        """Separate prediction and interpolation weight f of a learned variance."""
        if self.variance != "learned":
            _check_same_shape(x_t, output, "x_t", "the denoiser's output")
            return _cast(output, x_t), None
        wanted = (x_t.shape[0], 2 * x_t.shape[1], *x_t.shape[2:])
        if tuple(output.shape) != wanted:
            raise ValueError(
                f"a learned variance needs twice the channels, {wanted}, got {tuple(output.shape)}."
            )
        raw, f = output.chunk(2, dim=1)
        return _cast(raw, x_t), (_cast(f, x_t) + 1) / 2

    def _refuse_eps_without_signal(self, t: Step) -> None:
        """ᾱ_T = 0 leaves no signal to solve for. The schedule is checked before t, which may be
        on a GPU: only a schedule with ᾱ_T = 0 pays for the look."""
        if self._tables[torch.device("cpu")][-1].isfinite():
            return
        if bool(torch.as_tensor(t).eq(self.T).any()):
            raise ValueError(
                f"alpha_bar_{self.T} is 0, so x_{self.T} holds no signal and eps does not "
                "determine x0 there; use prediction='v' or 'x0'."
            )

    def _check_step(self, t: Step, x: Tensor, low: int, name: str = "t") -> None:
        if isinstance(t, bool) or not isinstance(t, int | Tensor):
            raise TypeError(f"{name} must be an int or an int64 tensor, got {t!r}.")
        if isinstance(t, int):
            if not low <= t <= self.T:
                raise ValueError(f"{name} must lie in {low}..T = {self.T}, got {t}.")
            return
        if t.dtype != torch.int64 or tuple(t.shape) != tuple(x.shape[:1]):
            raise ValueError(
                f"{name} must be an int or an int64 tensor of shape {tuple(x.shape[:1])}, got "
                f"{t.dtype} of shape {tuple(t.shape)}."
            )
        if t.device.type == "cpu":
            outside = (t < low) | (t > self.T)
            if outside.any():
                raise ValueError(
                    f"{name} must lie in {low}..T = {self.T}, got {t[outside][0].item()}."
                )

    def _check_pair(self, t: Step, s: Step, x: Tensor) -> None:
        self._check_step(t, x, low=1)
        self._check_step(s, x, low=0, name="s")
        on_gpu = any(isinstance(step, Tensor) and step.device.type != "cpu" for step in (t, s))
        if not on_gpu and not bool(torch.all(torch.as_tensor(s) < torch.as_tensor(t))):
            raise ValueError(f"s must be smaller than t, got t = {t}, s = {s}.")


def _cast(value: Tensor, like: Tensor) -> Tensor:
    """To the dtype of results. Explicit, because a coefficient of shape () does not promote x."""
    return value.to(torch.promote_types(like.dtype, torch.float32))


def _previous(t: Step) -> Step:
    return t - 1


def _sum_but_batch(value: Tensor) -> Tensor:
    return value.flatten(1).sum(1) if value.ndim > 1 else value


def _check_same_shape(x: Tensor, y: Tensor, name_x: str, name_y: str) -> None:
    if x.shape != y.shape:
        raise ValueError(
            f"{name_y} must have the shape of {name_x}, {tuple(x.shape)}, got {tuple(y.shape)}."
        )


def _check_eta(eta: float) -> float:
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta!r}.")
    return float(eta)


def _check_clip(clip: tuple[float, float]) -> tuple[float, float]:
    low, high = clip
    if not low < high:
        raise ValueError(f"clip must be an interval (low, high) with low < high, got {clip!r}.")
    return low, high

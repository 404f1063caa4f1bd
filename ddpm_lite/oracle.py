"""Data whose every marginal, score, posterior and likelihood is known exactly.

Three kinds of data: one Gaussian (`GaussianData`), a mixture of Gaussians in any dimension with
full covariances (`GaussianMixture`), and a finite set of points (`FiniteData`). The second covers
the other two: a Gaussian is a mixture of one, and a point is a Gaussian without spread. So the
mathematics is written once, for

    x_0 ~ Σ_k w_k N(m_k, C_k),        C_k = U_k diag(λ_k) U_kᵀ,        λ ≥ 0.

Noising shrinks C_k and adds a multiple of I, and neither changes its eigenvectors. One
eigendecomposition per component, made at construction, therefore serves every t and every pair
(t, s): each law below is a few products of eigenvalues. Two consequences are worth having:
nothing is inverted, and no variance is computed as a difference of two larger ones.

Points are rows: x is (B, D). Images are flattened by the caller, except for `denoiser`, which
takes any trailing shape. All arithmetic is float64 on the CPU, whatever the dtype or device of the
input; only `denoiser` casts back. Everything is differentiable once with respect to x.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_lite.process import PREDICTIONS
from ddpm_lite.schedule import NoiseSchedule

ArrayLike = Tensor | np.ndarray | Sequence[Any] | float


class GaussianMixture:
    """The law Σ_k w_k N(m_k, C_k) on D-dimensional points.

    Args:
        weights: (K,), positive, with sum 1 (to 1e-6; they are then divided by their sum).
        means: (K, D).
        covariances: (K, D, D), each symmetric and positive definite.

    Raises:
        ValueError: on a wrong shape, a number that is not finite, weights that are not a
            distribution, or a covariance that is not symmetric or not positive definite.
    """

    def __init__(self, weights: ArrayLike, means: ArrayLike, covariances: ArrayLike) -> None:
        weight = _distribution(weights)
        mean = _finite(means, "means", 2)
        covariance = _finite(covariances, "covariances", 3)
        count, size = mean.shape
        if len(weight) != count:
            raise ValueError(f"{len(weight)} weights cannot go with {count} means.")
        if covariance.shape != (count, size, size):
            raise ValueError(
                f"covariances must have shape {(count, size, size)} to go with means of shape "
                f"{(count, size)}, got {tuple(covariance.shape)}."
            )
        spread, basis = _eigen(covariance)
        self._fill(weight.log(), mean, spread, basis)

    def _fill(
        self, log_weights: Tensor, means: Tensor, spread: Tensor, basis: Tensor | None
    ) -> None:
        """Set the parts: log w (K,), m (K, D), eigenvalues (K, D) with eigenvectors (K, D, D).

        Isotropic components have no basis, and their one eigenvalue stands in a (K, 1) spread:
        a data set of a thousand images would otherwise carry a thousand identity matrices.
        """
        self._log_weights = log_weights
        self._means = means
        self._spread = spread
        self._basis = basis

    @staticmethod
    def _of_parts(
        kind: type[GaussianMixture],
        log_weights: Tensor,
        means: Tensor,
        spread: Tensor,
        basis: Tensor | None,
    ) -> GaussianMixture:
        law = object.__new__(kind)
        law._fill(log_weights, means, spread, basis)
        return law

    # ---- the law itself ------------------------------------------------------------------------

    @property
    def dimension(self) -> int:
        """D, the number of coordinates of a point."""
        return self._means.shape[1]

    @property
    def weights(self) -> Tensor:
        """w_k, float64 (K,)."""
        return self._log_weights.exp()

    @property
    def means(self) -> Tensor:
        """m_k, float64 (K, D)."""
        return self._means.clone()

    @property
    def covariances(self) -> Tensor:
        """C_k, float64 (K, D, D)."""
        return _matrices(self._spread, self._basis, self.dimension)

    @property
    def mean(self) -> Tensor:
        """E[x] = Σ_k w_k m_k, float64 (D,)."""
        return self.weights @ self._means

    @property
    def covariance(self) -> Tensor:
        """Cov[x] = Σ_k w_k (C_k + (m_k − E[x])(m_k − E[x])ᵀ), float64 (D, D)."""
        within = torch.einsum("k,kde->de", self.weights, self.covariances)
        apart = self._means - self.mean
        return within + torch.einsum("k,kd,ke->de", self.weights, apart, apart)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n points, float64 (n, D): a component by its weight, then m_k + C_k^½ z.

        C_k^½ is the symmetric root. It does not depend on the signs of the eigenvectors, which
        are arbitrary, so one seed gives one sample whatever linear algebra library is beneath.
        """
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"the number of samples must be an int of at least 1, got {n!r}.")
        chosen = _draw_component(self.weights, n, generator)
        noise = _normal((n, self.dimension), generator)
        basis = None if self._basis is None else self._basis[chosen]
        return self._means[chosen] + _rotate(self._spread[chosen].sqrt(), basis, noise)

    def log_prob(self, x: Tensor) -> Tensor:
        """log Σ_k w_k N(x; m_k, C_k) in nats, float64 (B,).

        Raises:
            ValueError: if x is not (B, D), holds a NaN, or the law has no density.
        """
        return torch.logsumexp(self._log_joint(self._points(x)), dim=1)

    def score(self, x: Tensor) -> Tensor:
        """∇_x log p(x) = −Σ_k p(k | x) C_k⁻¹ (x − m_k), float64 (B, D).

        Written out, not left to autograd: so it can itself be differentiated, and its agreement
        with the gradient of `log_prob` is a test.
        """
        x = self._points(x)
        return -self._pull(x, self._log_joint(x).softmax(dim=1), 1 / self._spread)

    def cdf(self, x: ArrayLike) -> Tensor:
        """P(X ≤ x) = Σ_k w_k Φ((x − m_k)/√C_k) for D = 1; x of any shape, taken elementwise."""
        below = (self.weights * _normal_cdf(self._standardised(x))).sum(-1)
        return below.clamp(max=1.0)  # rounding can carry the sum of the weights past 1

    def quantile(self, p: ArrayLike) -> Tensor:
        """The x with P(X ≤ x) = p for D = 1; p in [0, 1] of any shape, taken elementwise.

        By bisection between the smallest and the largest quantile of the components, which
        enclose that of the mixture, down to neighbouring floating-point numbers. Above the median
        it compares P(X > x) with 1 − p: near 1 a cdf has no digits left for its tail.
        """
        self._need_one_dimension("quantile")
        p = torch.as_tensor(p, dtype=torch.float64)
        if not ((p >= 0) & (p <= 1)).all():
            worst = p[~((p >= 0) & (p <= 1))].flatten()[0].item()
            raise ValueError(f"a probability must lie in [0, 1], got {worst}.")
        upper = p > 0.5
        tail = torch.where(upper, 1 - p, p)
        flip = torch.where(upper, -1.0, 1.0).to(torch.float64)
        reach = flip[..., None] * torch.special.ndtri(tail)[..., None] * self._spread[:, 0].sqrt()
        ends = self._means[:, 0] + reach
        low, high = ends.amin(-1), ends.amax(-1)
        for _ in range(_BISECTIONS):
            middle = torch.where(low == high, low, low / 2 + high / 2)
            z = flip[..., None] * self._standardised(middle)
            mass = (self.weights * _normal_cdf(z)).sum(-1)
            beyond = torch.where(upper, mass < tail, mass > tail)
            low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
        return torch.where(low == high, low, low / 2 + high / 2)

    # ---- noised data ---------------------------------------------------------------------------

    def marginal(self, schedule: NoiseSchedule, t: int) -> GaussianMixture:
        """The law of x_t: Σ_k w_k N(√ᾱ_t m_k, ᾱ_t C_k + (1−ᾱ_t) I), for 0 ≤ t ≤ T.

        Of the same kind as the data, except that a noised finite set is a mixture of Gaussians.

        Book: (2.27), (3.30).
        """
        t = _step(schedule, t, lowest=0)
        if t == 0:
            return self
        signal = schedule.alpha_bar[t]
        kind = GaussianMixture if isinstance(self, FiniteData) else type(self)
        spread = signal * self._spread + schedule.one_minus_alpha_bar[t]
        return self._of_parts(
            kind, self._log_weights, signal.sqrt() * self._means, spread, self._basis
        )

    def responsibilities(self, schedule: NoiseSchedule, x_t: Tensor, t: int | Tensor) -> Tensor:
        """p(k | x_t): how likely x_t started in component k (or at point k), float64 (B, K).

        t: an int, or int64 (B,) with a step for each row; in 0..T (1..T for a finite set).
        """

        def at_step(x: Tensor, t: int) -> Tensor:
            return self.marginal(schedule, t)._log_joint(x).softmax(dim=1)

        _steps_in_range(schedule, t, lowest=0)
        return _step_by_step(at_step, self._points(x_t, "x_t"), t)

    def posterior_mean(self, schedule: NoiseSchedule, x_t: Tensor, t: int | Tensor) -> Tensor:
        """E[x_0 | x_t], the best guess of the clean point, float64 (B, D); 1 ≤ t ≤ T.

        Σ_k p(k | x_t) (m_k + √ᾱ_t C_k (ᾱ_t C_k + (1−ᾱ_t) I)⁻¹ (x_t − √ᾱ_t m_k)), by conditioning
        each component on x_t. Tweedie's formula (x_t + (1−ᾱ_t)·score)/√ᾱ_t gives the same.

        Book: (4.43), (T.20).

        Source: the second form is Tweedie's, as reported by Robbins (1956); see B. Efron,
        "Tweedie's Formula and Selection Bias", 2011.
        """
        return self._denoise(schedule, x_t, t)[0]

    def eps(self, schedule: NoiseSchedule, x_t: Tensor, t: int | Tensor) -> Tensor:
        """ε*(x_t, t) = E[ε | x_t], the exact minimiser of E‖ε − ε̂(x_t, t)‖², float64 (B, D).

        Equal to −√(1−ᾱ_t) times the score of the marginal, and computed so: as the difference
        (x_t − √ᾱ_t E[x_0 | x_t])/√(1−ᾱ_t) it would lose digits at small t.

        Book: (4.44).
        """
        return self._denoise(schedule, x_t, t)[1]

    def v(self, schedule: NoiseSchedule, x_t: Tensor, t: int | Tensor) -> Tensor:
        """v*(x_t, t) = √ᾱ_t ε* − √(1−ᾱ_t) E[x_0 | x_t], the exact minimiser for v, (B, D).

        Book: (4.45).
        """
        return self._predict(schedule, x_t, t, "v")

    def reverse(self, schedule: NoiseSchedule, x_t: Tensor, t: int, s: int) -> ConditionalMixture:
        """The true q(x_s | x_t), one law for each row of x_t, for 0 ≤ s < t ≤ T.

        Given component k, x_s and x_t are jointly Gaussian. With r² = ᾱ_t/ᾱ_s and the marginal
        covariances S = ᾱ_s C_k + (1−ᾱ_s) I and R = ᾱ_t C_k + (1−ᾱ_t) I = r² S + (1−r²) I,

            x_s | x_t, k ~ N(r S R⁻¹ x_t + √ᾱ_s (1−r²) R⁻¹ m_k,  (1−r²) S R⁻¹),

        and component k has probability p(k | x_t).

        Book: (4.1), (4.2).

        Raises:
            ValueError: unless 0 ≤ s < t ≤ T.
        """
        t = _step(schedule, t, lowest=1)
        s = _step(schedule, s, lowest=0)
        if s >= t:
            raise ValueError(f"a reverse step goes from t down to s < t, got t = {t}, s = {s}.")
        x_t = self._points(x_t, "x_t")
        log_signal = schedule.log_alpha_bar
        fresh = -torch.expm1(log_signal[t] - log_signal[s])
        keep = ((log_signal[t] - log_signal[s]) / 2).exp()
        signal_s, noise_s = schedule.alpha_bar[s], schedule.one_minus_alpha_bar[s]
        later = self.marginal(schedule, t)
        ratio = (signal_s * self._spread + noise_s) / later._spread
        pulled = _rotate(signal_s.sqrt() * fresh / later._spread, self._basis, self._means)
        return ConditionalMixture(
            log_weights=later._log_joint(x_t).log_softmax(dim=1),
            given=x_t,
            gain=keep * ratio,
            offset=pulled,
            spread=fresh * ratio,
            basis=self._basis,
        )

    def denoiser(self, schedule: NoiseSchedule, prediction: str = "eps") -> Callable[..., Tensor]:
        """The perfect network: a callable (x_t, t, y=None) → E[target | x_t], shaped like x_t.

        x_t: (B, …) with D numbers to a sample, any float dtype or device; t: int64 (B,), or an
        int. y: int64 (B,) conditions sample i on component y[i]; K, the number of components, is
        the null class, and None means all null. The result has x_t's device and
        ``promote_types(x_t.dtype, float32)``. Steps are those of `schedule`; with a respaced chain
        give the original schedule here, since denoisers are called with original step numbers.

        Raises:
            ValueError: if prediction is not one of eps, x0, v.
        """
        if prediction not in PREDICTIONS:
            raise ValueError(
                f"prediction must be one of {', '.join(PREDICTIONS)}, got {prediction!r}."
            )

        def denoise(x_t: Tensor, t: int | Tensor, y: Tensor | None = None) -> Tensor:
            rows = x_t.flatten(1) if x_t.ndim > 1 else x_t[:, None]
            output = self._predict(schedule, rows, t, prediction, y)
            dtype = torch.promote_types(x_t.dtype, torch.float32)
            return output.reshape(x_t.shape).to(x_t.device, dtype)

        denoise.num_classes = len(self._log_weights)  # type: ignore[attr-defined]  # for guidance
        return denoise

    # ---- beneath -------------------------------------------------------------------------------

    def _predict(
        self,
        schedule: NoiseSchedule,
        x_t: Tensor,
        t: int | Tensor,
        prediction: str,
        y: Tensor | None = None,
    ) -> Tensor:
        x0, eps = self._denoise(schedule, x_t, t, y)
        if prediction == "x0":
            return x0
        if prediction == "eps":
            return eps
        index = torch.as_tensor(t, device="cpu").reshape(-1, 1)
        signal, noise = schedule.alpha_bar[index], schedule.one_minus_alpha_bar[index]
        return signal.sqrt() * eps - noise.sqrt() * x0

    def _denoise(
        self, schedule: NoiseSchedule, x_t: Tensor, t: int | Tensor, y: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """E[x_0 | x_t] and E[ε | x_t], also given the component y."""
        x_t = self._points(x_t, "x_t")
        _steps_in_range(schedule, t, lowest=1)
        barred = None if y is None else self._barred_components(y, len(x_t))

        def at_step(x: Tensor, t: int, barred: Tensor | None = None) -> Tensor:
            law = self.marginal(schedule, t)
            joint = law._log_joint(x)
            share = (joint if barred is None else joint.masked_fill(barred, -math.inf)).softmax(1)
            signal, noise = schedule.alpha_bar[t].sqrt(), schedule.one_minus_alpha_bar[t].sqrt()
            x0 = share @ self._means + law._pull(x, share, signal * self._spread / law._spread)
            eps = law._pull(x, share, noise / law._spread)
            return torch.stack([x0, eps], dim=1)

        both = _step_by_step(at_step, x_t, t, barred)
        return both[:, 0], both[:, 1]

    def _barred_components(self, y: Tensor, rows: int) -> Tensor:
        """Which components a class rules out, bool (B, K); the null class K rules out none."""
        count = len(self._log_weights)
        y = torch.as_tensor(y, device="cpu")
        if y.shape != (rows,) or y.dtype != torch.int64:
            raise ValueError(
                f"y must be int64 of shape ({rows},), got {y.dtype} of shape {tuple(y.shape)}."
            )
        if ((y < 0) | (y > count)).any():
            wrong = y[(y < 0) | (y > count)][0].item()
            raise ValueError(
                f"y must name a component in 0..{count - 1}, or {count} for none, got {wrong}."
            )
        y = y[:, None]
        return (y != torch.arange(count)) & (y != count)

    def _points(self, x: Tensor, name: str = "x") -> Tensor:
        """x as float64 rows, after a look at its shape."""
        x = torch.as_tensor(x).to("cpu", torch.float64)
        if x.ndim != 2 or x.shape[1] != self.dimension:
            raise ValueError(f"{name} must have shape (B, {self.dimension}), got {tuple(x.shape)}.")
        if x.isnan().any():
            raise ValueError(f"{name} holds a NaN in row {int(x.isnan().any(1).nonzero()[0])}.")
        return x

    def _log_joint(self, x: Tensor) -> Tensor:
        """log w_k + log N(x; m_k, C_k), (B, K)."""
        self._need_density()
        if self._basis is None:
            # direct differences: the faster product form loses digits where distances are small
            distance = torch.cdist(x, self._means, compute_mode="donot_use_mm_for_euclid_dist")
            square = distance.square() / self._spread[:, 0]
        else:
            square = (self._residual(x).square() / self._spread).sum(-1)
        log_det = self._spread.log().expand(-1, self.dimension).sum(-1)
        constant = self.dimension * math.log(2 * math.pi)
        return self._log_weights - 0.5 * (square + log_det + constant)

    def _pull(self, x: Tensor, share: Tensor, factor: Tensor) -> Tensor:
        """Σ_k share_k F_k (x − m_k), F_k = U_k diag(factor_k) U_kᵀ: (B, D)."""
        if self._basis is None:
            share = share * factor[:, 0]
            return share.sum(1, keepdim=True) * x - share @ self._means
        return torch.einsum("bk,bke,kde->bd", share, self._residual(x) * factor, self._basis)

    def _residual(self, x: Tensor) -> Tensor:
        """U_kᵀ (x − m_k), (B, K, D)."""
        return torch.einsum("bkd,kde->bke", x[:, None] - self._means, self._basis)

    def _standardised(self, x: ArrayLike) -> Tensor:
        self._need_one_dimension("cdf")
        self._need_density()
        x = torch.as_tensor(x, dtype=torch.float64)
        return (x[..., None] - self._means[:, 0]) / self._spread[:, 0].sqrt()

    def _need_one_dimension(self, name: str) -> None:
        if self.dimension != 1:
            raise ValueError(f"{name} needs points on a line (D = 1), here D = {self.dimension}.")

    def _need_density(self) -> None:
        if (self._spread == 0).any():
            raise ValueError(_NO_DENSITY)


class GaussianData(GaussianMixture):
    """The law N(mean, covariance): a mixture of one.

    Args:
        mean: (D,).
        covariance: (D, D), symmetric and positive definite.

    Raises:
        ValueError: on a wrong shape, a number that is not finite, or a covariance that is not
            symmetric or not positive definite.
    """

    def __init__(self, mean: ArrayLike, covariance: ArrayLike) -> None:
        centre = _finite(mean, "mean", 1)
        matrix = _finite(covariance, "covariance", 2)
        size = len(centre)
        if matrix.shape != (size, size):
            raise ValueError(
                f"covariance must have shape {(size, size)} to go with a mean of length {size}, "
                f"got {tuple(matrix.shape)}."
            )
        super().__init__([1.0], centre[None], matrix[None])

    def entropy(self) -> float:
        """−E[log p(x)] = ½ Σ_d log(2πe λ_d) in nats."""
        return 0.5 * float((self._spread[0].log() + math.log(2 * math.pi * math.e)).sum())


class FiniteData(GaussianMixture):
    """The empirical distribution: each of N points with probability 1/N.

    It has no density, so `log_prob`, `score` and `cdf` refuse. From t = 1 on, its marginals are
    mixtures of N isotropic Gaussians, and every other method works. This is what a network of
    unlimited capacity would learn from a training set.

    Args:
        points: (N, D).

    Raises:
        ValueError: on a wrong shape, no points, or a number that is not finite.
    """

    def __init__(self, points: ArrayLike) -> None:
        point = _finite(points, "points", 2)
        count = len(point)
        log_weights = torch.full((count,), -math.log(count), dtype=torch.float64)
        self._fill(log_weights, point.clone(), torch.zeros(count, 1, dtype=torch.float64), None)


class ConditionalMixture:
    """A mixture of Gaussians for each row: x_s | x_t ~ Σ_k p(k | x_t) N(G_k x_t + c_k, V_k).

    Made by `reverse`. ``law[i]`` is row i's law as a `GaussianMixture` (a `FiniteData` with
    unequal weights, if it is discrete), with densities on a grid, score, cdf and quantile.
    At s = 0 the law of finite data is discrete: weights on the data points. Then `log_prob`
    refuses, and the rest works.
    """

    def __init__(
        self,
        log_weights: Tensor,
        given: Tensor,
        gain: Tensor,
        offset: Tensor,
        spread: Tensor,
        basis: Tensor | None,
    ) -> None:
        """log p(k | x_t) (B, K), x_t (B, D), eigenvalues of G_k and V_k (K, D) or (K, 1), c_k."""
        self._log_weights = log_weights
        self._given = given
        self._gain = gain
        self._offset = offset
        self._spread = spread
        self._basis = basis

    def __len__(self) -> int:
        return len(self._given)

    def __getitem__(self, row: int) -> GaussianMixture:
        kind = FiniteData if self._discrete else GaussianMixture
        means = self._component_means(self._given[row][None])[0]
        return GaussianMixture._of_parts(
            kind, self._log_weights[row], means, self._spread, self._basis
        )

    @property
    def weights(self) -> Tensor:
        """p(k | x_t), float64 (B, K)."""
        return self._log_weights.exp()

    @property
    def means(self) -> Tensor:
        """G_k x_t + c_k, float64 (B, K, D)."""
        return self._component_means(self._given)

    @property
    def covariances(self) -> Tensor:
        """V_k, float64 (K, D, D): the same for every row."""
        return _matrices(self._spread, self._basis, self._given.shape[1])

    @property
    def mean(self) -> Tensor:
        """E[x_s | x_t], float64 (B, D)."""
        if self._basis is None:  # without the (B, K, D) array of all means
            return (self.weights @ self._gain) * self._given + self.weights @ self._offset
        return torch.einsum("bk,bkd->bd", self.weights, self.means)

    @property
    def covariance(self) -> Tensor:
        """Cov[x_s | x_t], float64 (B, D, D)."""
        within = torch.einsum("bk,kde->bde", self.weights, self.covariances)
        apart = self.means - self.mean[:, None]
        return within + torch.einsum("bk,bkd,bke->bde", self.weights, apart, apart)

    def log_prob(self, x_s: Tensor) -> Tensor:
        """log q(x_s | x_t) in nats, row by row: x_s (B, D) → float64 (B,).

        Raises:
            ValueError: if x_s is not shaped like x_t, holds a NaN, or the law is discrete.
        """
        if self._discrete:
            raise ValueError(_NO_DENSITY)
        x_s = torch.as_tensor(x_s).to("cpu", torch.float64)
        if x_s.shape != self._given.shape:
            raise ValueError(
                f"x_s must have the shape {tuple(self._given.shape)} of x_t, one point for each "
                f"row, got {tuple(x_s.shape)}; for many points given one x_t use law[i].log_prob."
            )
        if x_s.isnan().any():
            raise ValueError(f"x_s holds a NaN in row {int(x_s.isnan().any(1).nonzero()[0])}.")
        size = self._given.shape[1]
        residual = x_s[:, None] - self.means
        if self._basis is not None:
            residual = torch.einsum("bkd,kde->bke", residual, self._basis)
        square = (residual.square() / self._spread).sum(-1)
        log_det = self._spread.log().expand(-1, size).sum(-1)
        joint = self._log_weights - 0.5 * (square + log_det + size * math.log(2 * math.pi))
        return torch.logsumexp(joint, dim=1)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw x_s for each row, float64 (B, D)."""
        chosen = _draw_component(self.weights, len(self), generator)
        basis = None if self._basis is None else self._basis[chosen]
        centre = _rotate(self._gain[chosen], basis, self._given) + self._offset[chosen]
        noise = _normal(self._given.shape, generator)
        return centre + _rotate(self._spread[chosen].sqrt(), basis, noise)

    @property
    def _discrete(self) -> bool:
        return bool((self._spread == 0).any())

    def _component_means(self, given: Tensor) -> Tensor:
        if self._basis is None:
            return self._gain * given[:, None] + self._offset
        turned = torch.einsum("bd,kde->bke", given, self._basis) * self._gain
        return torch.einsum("bke,kde->bkd", turned, self._basis) + self._offset


# ---- linear algebra and draws -------------------------------------------------------------------

# A bracket of width 1e6 halved 80 times is 1e-18 wide: below one unit in the last place of any
# quantile above 1e-2 in size, and to 1e-18 absolutely of the others.
_BISECTIONS = 80

_NO_DENSITY = (
    "a law that puts probability on single points has no density: use t >= 1 for finite data, "
    "and s >= 1 for its reverse step."
)


def _normal_cdf(z: Tensor) -> Tensor:
    """Φ(z). Not ``torch.special.ndtr``, which is 0 from z = −9 down: erfc keeps the tail."""
    return 0.5 * torch.special.erfc(-z * math.sqrt(0.5))


def _rotate(factor: Tensor, basis: Tensor | None, x: Tensor) -> Tensor:
    """U diag(factor) Uᵀ x, row by row: factor (N, D) or (N, 1), basis (N, D, D), x (N, D)."""
    if basis is None:
        return factor * x
    turned = torch.einsum("nde,nd->ne", basis, x)
    return torch.einsum("nde,ne->nd", basis, factor * turned)


def _matrices(spread: Tensor, basis: Tensor | None, size: int) -> Tensor:
    """U diag(spread) Uᵀ for each component, (K, D, D)."""
    if basis is None:
        return spread[:, :, None] * torch.eye(size, dtype=torch.float64)
    return torch.einsum("kde,ke,kfe->kdf", basis, spread, basis)


def _eigen(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (K, D) and eigenvectors (K, D, D) of symmetric positive definite matrices."""
    scale = covariance.abs().amax(dim=(1, 2))
    skew = (covariance - covariance.mT).abs().amax(dim=(1, 2))
    if (skew > 1e-8 * scale).any():
        k = int((skew > 1e-8 * scale).nonzero()[0])
        raise ValueError(
            f"covariance {k} is not symmetric: it differs from its transpose by "
            f"{skew[k].item():.3g}."
        )
    spread, basis = torch.linalg.eigh((covariance + covariance.mT) / 2)
    # below this, an eigenvalue cannot be told from a zero that rounding has moved
    floor = spread.shape[1] * torch.finfo(torch.float64).eps * scale
    bad = spread[:, 0] <= floor
    if bad.any():
        k = int(bad.nonzero()[0])
        raise ValueError(
            f"covariance {k} is not positive definite: its smallest eigenvalue is "
            f"{spread[k, 0].item():.3g}."
        )
    return spread, basis


def _draw_component(weights: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """n component numbers, int64 (n,), by inverting the cumulative sum of the weights.

    weights: (K,), the same for every draw, or (n, K).
    """
    level = torch.rand(n, generator=generator, dtype=torch.float64, device=generator.device).cpu()
    steps = weights.cumsum(-1)
    if weights.ndim == 2:
        level = level[:, None]
    # scaled by the last step, which rounding may have moved away from 1
    chosen = torch.searchsorted(steps, level * steps[..., -1:], right=True).reshape(n)
    return chosen.clamp(max=weights.shape[-1] - 1)


def _normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    noise = torch.randn(
        tuple(shape), generator=generator, dtype=torch.float64, device=generator.device
    )
    return noise.cpu()


def _step_by_step(
    function: Callable[..., Tensor], x: Tensor, t: int | Tensor, *extra: Tensor | None
) -> Tensor:
    """Call function(rows, t, …) once for each step number that occurs, and put the rows back."""
    if not isinstance(t, Tensor) or t.ndim == 0:
        return function(x, int(t), *extra)
    t = t.cpu()
    if t.shape != (len(x),):
        raise ValueError(f"t must be an int or have shape ({len(x)},), got {tuple(t.shape)}.")
    if len(x) == 0:
        raise ValueError("a step for each row needs at least one row, got none.")
    groups = [(t == step).nonzero()[:, 0] for step in t.unique()]
    parts = [
        function(x[rows], int(t[rows[0]]), *(None if e is None else e[rows] for e in extra))
        for rows in groups
    ]
    return torch.cat(parts)[torch.cat(groups).argsort()]


# ---- checks at the boundary ---------------------------------------------------------------------


def _finite(values: ArrayLike, name: str, dimensions: int) -> Tensor:
    array = torch.as_tensor(values, dtype=torch.float64, device="cpu").detach()
    if array.ndim != dimensions or array.numel() == 0:
        shape = ("(D,)", "(N, D)", "(K, D, D)")[dimensions - 1]
        if name == "covariance":
            shape = "(D, D)"
        raise ValueError(
            f"{name} must have shape {shape}, none of it empty, got {tuple(array.shape)}."
        )
    if not array.isfinite().all():
        wrong = array[~array.isfinite()][0].item()
        raise ValueError(f"{name} must hold finite numbers, got {wrong}.")
    return array


def _distribution(weights: ArrayLike) -> Tensor:
    weight = _finite(weights, "weights", 1)
    if (weight <= 0).any():
        raise ValueError(f"every weight must be positive, got {weight.min().item()}.")
    total = weight.sum().item()
    if abs(total - 1) > 1e-6:
        raise ValueError(f"the weights must sum to 1, got {total:.8g}.")
    return weight / total


def _step(schedule: NoiseSchedule, t: int | Tensor, lowest: int) -> int:
    if isinstance(t, Tensor) and t.ndim == 0 and not t.dtype.is_floating_point:
        t = int(t)
    if isinstance(t, bool) or not isinstance(t, int):
        raise TypeError(f"a step number must be an int here, got {t!r}.")
    if not lowest <= t <= schedule.T:
        raise ValueError(f"the step must lie in {lowest}..T = {schedule.T}, got {t}.")
    return t


def _steps_in_range(schedule: NoiseSchedule, t: int | Tensor, lowest: int) -> None:
    if not isinstance(t, Tensor) or t.ndim == 0:
        _step(schedule, t, lowest)
        return
    if t.dtype != torch.int64:
        raise TypeError(f"t must be an int or an int64 tensor, got {t.dtype}.")
    outside = (t < lowest) | (t > schedule.T)
    if outside.any():
        wrong = t[outside][0].item()
        raise ValueError(f"the step must lie in {lowest}..T = {schedule.T}, got {wrong}.")

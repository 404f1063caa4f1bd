"""The exercises of chapter 10."""

from __future__ import annotations

import numpy as np
import torch

from ddpm_lite.exercises.exercise import Exercise

# ---- 10.1 ----------------------------------------------------------------------------------------


def diluted_cost(log_p, log_noise, a):
    """The larger of the two terms is taken out before the exponentials are added."""
    first, second = np.log(a) + log_p, np.log(1 - a) + log_noise
    return -torch.logaddexp(first, second)


def _logs_mixed(log_p, log_noise, a):
    return -(a * log_p + (1 - a) * log_noise)


def _the_bound(log_p, log_noise, a):
    return -log_p - np.log(a)


def _positive(log_p, log_noise, a):
    return -diluted_cost(log_p, log_noise, a)


def _underflows(log_p, log_noise, a):
    return -torch.log(a * log_p.exp() + (1 - a) * log_noise.exp())


def _shares_exchanged(log_p, log_noise, a):
    return diluted_cost(log_p, log_noise, 1 - a)


def _log_densities(rng):
    """Far below what a float's exponential can hold, and a few nats apart either way."""
    calls = []
    for _ in range(5):
        log_p = rng.uniform(-3.0, -1.0, 6)
        log_noise = log_p + rng.uniform(-1.5, 1.5, 6)
        calls.append((log_p, log_noise, float(rng.uniform(0.1, 0.3))))
    far = rng.uniform(-850.0, -800.0)
    log_p = far + rng.uniform(-2.0, 2.0, 6)
    return [*calls, (log_p, log_p + rng.uniform(-1.5, 1.5, 6), 0.2)]


# ---- 10.3 ----------------------------------------------------------------------------------------


def floor(eigenvalues, n, m):
    """The means' part, and one term for each entry of the covariance."""
    L = torch.as_tensor(eigenvalues)
    products = L[:, None] * L[None, :] * (1 + torch.eye(len(L), dtype=L.dtype))
    return (1 / n + 1 / m) * (L.sum() + (products / (2 * (L[:, None] + L[None, :]))).sum())


def _means_only(eigenvalues, n, m):
    return (1 / n + 1 / m) * torch.as_tensor(eigenvalues).sum()


def _line_by_line(eigenvalues, n, m):
    return 1.5 * (1 / n + 1 / m) * torch.as_tensor(eigenvalues).sum()


def _no_doubled_diagonal(eigenvalues, n, m):
    L = torch.as_tensor(eigenvalues)
    products = L[:, None] * L[None, :]
    return (1 / n + 1 / m) * (L.sum() + (products / (2 * (L[:, None] + L[None, :]))).sum())


def _one_sample(eigenvalues, n, m):
    return floor(eigenvalues, n, m) * (1 / n) / (1 / n + 1 / m)


def _total_of_draws(eigenvalues, n, m):
    return floor(eigenvalues, n, m) * (1 / (n + m)) / (1 / n + 1 / m)


def _spectra(rng):
    calls = []
    for F in (2, 3, 4, 5):
        n = int(rng.integers(40, 90))
        calls.append((rng.uniform(0.2, 3.0, F), n, 2 * n + int(rng.integers(5, 60))))
    return calls


# ---- 10.4 ----------------------------------------------------------------------------------------


def density(real, new, k):
    """Row i of the sorted distances among real points begins with the point itself."""
    among = ((real[:, None] - real[None, :]) ** 2).sum(-1) ** 0.5
    radius = among.sort(1).values[:, k]
    apart = ((new[:, None] - real[None, :]) ** 2).sum(-1) ** 0.5
    return (apart <= radius[None, :]).sum() / (k * len(new))


def _counts_itself(real, new, k):
    among = ((real[:, None] - real[None, :]) ** 2).sum(-1) ** 0.5
    radius = among.sort(1).values[:, k - 1]
    apart = ((new[:, None] - real[None, :]) ** 2).sum(-1) ** 0.5
    return (apart <= radius[None, :]).sum() / (k * len(new))


def _any_ball(real, new, k):
    among = ((real[:, None] - real[None, :]) ** 2).sum(-1) ** 0.5
    radius = among.sort(1).values[:, k]
    apart = ((new[:, None] - real[None, :]) ** 2).sum(-1) ** 0.5
    return (apart <= radius[None, :]).any(1).sum() / len(new)


def _not_over_k(real, new, k):
    return density(real, new, k) * k


def _over_the_real(real, new, k):
    return density(real, new, k) * len(new) / len(real)


def _balls_of_the_new(real, new, k):
    return density(new, real, k)


def _clouds(rng):
    """Sets of different sizes, the new one wider, drawn again until no two answers are alike; and
    one whose new point 2 lies on the edge of the ball of 1, with exact distances.
    """
    calls: list[tuple[np.ndarray, np.ndarray, int]] = []
    while len(calls) < 4:
        real = rng.normal(size=(int(rng.integers(12, 18)), 2))
        new = 1.4 * rng.normal(size=(int(rng.integers(22, 30)), 2)) + 0.3
        k = int(rng.integers(2, 5))
        one, other = torch.as_tensor(real), torch.as_tensor(new)
        answers = (density, _counts_itself, _any_ball, _not_over_k, _over_the_real)
        found = [float(f(one, other, k)) for f in (*answers, _balls_of_the_new)]
        gaps = np.diff(np.sort(found))
        if min(gaps) > 0.02:
            calls.append((real, new, k))
    return [*calls, (np.array([[0.0], [1.0], [3.0]]), np.array([[2.0], [7.0]]), 1)]


# ---- 10.6 ----------------------------------------------------------------------------------------


def min_snr(alpha_bar_t, gamma):
    """The weight of x0, and what (10.15) makes of it for the other two losses."""
    snr = alpha_bar_t / (1 - alpha_bar_t)
    cut = snr.clamp(max=gamma)
    return cut, cut / snr, cut / (snr + 1)


def _largest(alpha_bar_t, gamma):
    snr = alpha_bar_t / (1 - alpha_bar_t)
    cut = snr.clamp(min=gamma)
    return cut, cut / snr, cut / (snr + 1)


def _one_too_many(alpha_bar_t, gamma):
    snr = alpha_bar_t / (1 - alpha_bar_t)
    cut = snr.clamp(max=gamma)
    return cut, cut / snr, (snr + 1).clamp(max=gamma) / (snr + 1)


def _all_alike(alpha_bar_t, gamma):
    cut = (alpha_bar_t / (1 - alpha_bar_t)).clamp(max=gamma)
    return cut, cut, cut


def _rooted(alpha_bar_t, gamma):
    snr = (alpha_bar_t / (1 - alpha_bar_t)) ** 0.5
    cut = snr.clamp(max=gamma)
    return cut, cut / snr, cut / (snr + 1)


def _order_mixed(alpha_bar_t, gamma):
    cut, of_eps, of_v = min_snr(alpha_bar_t, gamma)
    return of_eps, cut, of_v


def _levels(rng):
    """SNRs on both sides of γ in every call."""
    calls = []
    for _ in range(5):
        gamma = float(rng.uniform(2.0, 6.0))
        snr = np.concatenate([rng.uniform(0.05, 0.7, 3) * gamma, rng.uniform(1.5, 9.0, 3) * gamma])
        calls.append((snr / (1 + snr), gamma))
    return calls


# ---- 10.7 ----------------------------------------------------------------------------------------


def as_flow(x_t, eps, alpha_bar_t):
    """Scale the state; the velocity is the guess of the data minus the guess of the noise."""
    signal, noise = alpha_bar_t**0.5, (1 - alpha_bar_t) ** 0.5
    rho = signal / (signal + noise)
    x0 = (x_t - noise * eps) / signal
    return rho, x_t / (signal + noise), x0 - eps


def _towards_the_noise(x_t, eps, alpha_bar_t):
    rho, x_rho, u = as_flow(x_t, eps, alpha_bar_t)
    return rho, x_rho, -u


def _not_scaled(x_t, eps, alpha_bar_t):
    rho, _, u = as_flow(x_t, eps, alpha_bar_t)
    return rho, x_t, u


def _v_of_diffusion(x_t, eps, alpha_bar_t):
    rho, x_rho, _ = as_flow(x_t, eps, alpha_bar_t)
    signal, noise = alpha_bar_t**0.5, (1 - alpha_bar_t) ** 0.5
    return rho, x_rho, signal * eps - noise * (x_t - noise * eps) / signal


def _share_of_variance(x_t, eps, alpha_bar_t):
    signal, noise = alpha_bar_t**0.5, (1 - alpha_bar_t) ** 0.5
    x0 = (x_t - noise * eps) / signal
    return alpha_bar_t, (1 - alpha_bar_t) * eps + alpha_bar_t * x0, x0 - eps


def _other_clock(x_t, eps, alpha_bar_t):
    rho, x_rho, u = as_flow(x_t, eps, alpha_bar_t)
    return 1 - rho, x_rho, u


def _states(rng):
    low = [float(rng.uniform(0.08, 0.3)) for _ in range(2)]
    high = [float(rng.uniform(0.62, 0.9)) for _ in range(2)]
    return [(rng.normal(size=(3, 2)), rng.normal(size=(3, 2)), bar) for bar in (*low, *high)]


EXERCISES = [
    Exercise(
        id="10.1",
        title="What dilution costs",
        kind="formula",
        points=2,
        minutes=10,
        difficulty=1,
        equation="10.1",
        inputs=_log_densities,
        reference=diluted_cost,
        tolerance=1e-6,  # of 850 nats
        wrong={
            "logs-mixed": (
                _logs_mixed,
                "You mixed the logarithms. The densities are mixed; the logarithm comes after.",
            ),
            "the-bound": (_the_bound, "That is the right side of (10.1), a bound. Keep the noise."),
            "positive": (_positive, "That is log p_dil. The cost is minus that."),
            "underflows": (
                _underflows,
                "Right on paper; but e to the power of -800 is 0 for a float, and its logarithm is "
                "infinite. Take the larger of the two exponents out before you add.",
            ),
            "shares-exchanged": (
                _shares_exchanged,
                "The shares are exchanged: a belongs to p, and 1 − a to the noise.",
            ),
        },
        hints=(
            "log(a·p) is log a + log p. What is the logarithm of a sum of two such terms?",
            "Take the larger of the two out of the sum, so that no exponential overflows or "
            "vanishes; torch.logaddexp does it.",
            "-torch.logaddexp(math.log(a) + log_p, math.log(1 - a) + log_noise).",
        ),
    ),
    Exercise(
        id="10.2",
        title="Predict the number",
        kind="number",
        points=1,
        minutes=4,
        difficulty=1,
        equation="10.1",
        reference=float(np.log2(1000) / 3072),
        tolerance=1.5e-2,  # 0.0032 is right, too
        wrong={
            "nats": (float(np.log(1000) / 3072), "These are nats. A bit is log 2 of them."),
            "whole-picture": (float(np.log2(1000)), "That is for the whole picture."),
            "one-colour": (float(np.log2(1000) / 1024), "Each pixel has three numbers."),
            "of-the-noise": (
                float(-np.log2(0.999) / 3072),
                "You took the share of the noise; the good part has the share 1/1000.",
            ),
        },
        hints=(
            "The right side of (10.1), for the whole picture, in nats: log(1/a).",
            "Then over the number of dimensions, and over log 2.",
            "log2(1000)/(32·32·3).",
        ),
    ),
    Exercise(
        id="10.3",
        title="The floor, predicted",
        kind="formula",
        points=3,
        minutes=15,
        difficulty=2,
        equation="10.6",
        inputs=_spectra,
        reference=floor,
        wrong={
            "means-only": (
                _means_only,
                "That is the part of the means. The covariances are estimated as well.",
            ),
            "line-by-line": (
                _line_by_line,
                "You added (T.45) for each direction. The entries off the diagonal err too, though "
                "the true ones are zero.",
            ),
            "no-doubled-diagonal": (
                _no_doubled_diagonal,
                "On the diagonal Var[z_i²] is 2λ_i², twice as large as λ_i·λ_i.",
            ),
            "one-sample": (
                _one_sample,
                "Both samples err: the factor is 1/n + 1/m.",
            ),
            "total-of-draws": (
                _total_of_draws,
                "The factor is 1/n + 1/m, not 1/(n + m): the samples are compared, not pooled.",
            ),
        },
        hints=(
            "Two parts: a sum over i for the means, a sum over all pairs i, j for the covariance.",
            "For Gaussian data Var[z_i z_j] is λ_i λ_j, and twice that where i = j.",
            "(1/n + 1/m)·(L.sum() + (L_i·L_j·(1 + δ_ij)/(2·(L_i + L_j))).sum()), with L[:, None] "
            "and L[None, :] for L_i and L_j, and torch.eye for δ_ij.",
        ),
    ),
    Exercise(
        id="10.4",
        title="Density",
        kind="code",
        points=3,
        minutes=15,
        difficulty=2,
        equation="10.11",
        inputs=_clouds,
        reference=density,
        wrong={
            "counts-itself": (
                _counts_itself,
                "The nearest real point to a real point is itself, at distance 0: it must not be "
                "counted among the k.",
            ),
            "any-ball": (
                _any_ball,
                "That is precision: whether any ball holds the point. Density counts the balls.",
            ),
            "not-over-k": (_not_over_k, "Divide by k, so that a perfect model has about 1."),
            "over-the-real": (_over_the_real, "The mean is over the new points, not the real."),
            "balls-of-the-new": (
                _balls_of_the_new,
                "The balls are those of the real points, and they hold new ones.",
            ),
        },
        hints=(
            "First the radius of each real point's ball, then the distances of new from real.",
            "Sort each row of the distances among real points: entry 0 is the point itself, so the "
            "radius is entry k.",
            "(torch.cdist(new, real) <= radius).sum() / (k * len(new)).",
        ),
    ),
    Exercise(
        id="10.5",
        title="A table to distrust",
        kind="explain",
        points=3,
        minutes=20,
        difficulty=2,
        equation="10.6",
        reference=(
            "FID. Three differences, and all push the same way. More samples: the bias falls like "
            "1/n, so 10,000 samples against 50,000 raise the baseline's number. Reference: the "
            "training set is nearer to what a model learned than the test set is (DDPM itself has "
            "3.17 against one and 5.24 against the other), so the baseline is judged by the "
            "harder one. Best of three: on average 0.85 standard deviations below the mean, for "
            "ours only. With 5.31 against 4.98 nothing is left to conclude; the sign may be the "
            "other one. Bits per dimension. A bound lies above the model's own cost, while an "
            "ODE's likelihood is an estimate of the cost itself, of another model (the one that "
            "samples by the ODE); so 3.75 against 3.70 may be the slack of the bound alone. "
            "Precision. It rises with k, because the balls grow; k = 5 flatters ours, and it "
            "depends on the number of samples, which differs too; neither value means anything "
            "without what real images reach. Copies. Nearness in pixels is blind to shifts, and "
            "a few pictures looked at say nothing about a small share of copies: with n samples "
            "and none found, up to 3.7/n cannot be excluded. Cost. 50 calls against 1000 is a "
            "comparison only if parameters and training are equal, and if the 50 were not chosen "
            "on the same numbers. Instead: the same n, the same held-out reference and the same "
            "code for both rows; five generations each, with intervals, and if possible several "
            "trainings; the same kind of likelihood for both; one k, with real images as a row of "
            "the table; the baseline also at 50 calls; and a copy test in features with the number "
            "of samples stated."
        ),
        rubric=(
            "FID: different numbers of samples; fewer samples raise the baseline's number.",
            "FID: training set against test set as reference, and which way it pushes.",
            "FID: best of three for one row only (about 0.85 deviations).",
            "Bits: a bound against a likelihood of another kind; the bound's slack may be all.",
            "Precision: k = 5 against 3 (larger k, larger balls), other n, no row of real images.",
            "Copies: pixel distance, and a small share is not excluded by looking at a few.",
            "Says what to run instead: equal conditions, intervals, the baseline at 50 calls.",
        ),
        hints=(
            "Go through the columns one by one with the ten questions beside you.",
            "For each difference ask: if both models were the same, which row would look better?",
            "There are three differences in the first column alone.",
        ),
    ),
    Exercise(
        id="10.6",
        title="Three weights",
        kind="formula",
        points=2,
        minutes=10,
        difficulty=2,
        equation="10.16",
        inputs=_levels,
        reference=min_snr,
        wrong={
            "largest": (
                _largest,
                "You took the larger of SNR and γ. Large weights are to be cut: the smaller.",
            ),
            "one-too-many": (
                _one_too_many,
                "For v only the denominator has SNR + 1; the minimum is that of SNR and γ, see the "
                "pitfall.",
            ),
            "all-alike": (
                _all_alike,
                "The three losses are of different size, (10.15), so their weights differ.",
            ),
            "rooted": (_rooted, "The SNR is a ratio of variances, ᾱ/(1 − ᾱ), without a root."),
            "order-mixed": (_order_mixed, "The order is x_0, ε, v: you exchanged the first two."),
        },
        hints=(
            "Start with the SNR, (N.1), and cut it at γ: that is the first weight.",
            "The other two are the first over SNR, and over SNR + 1.",
            "snr = ab/(1 − ab); cut = snr.clamp(max=gamma); cut, cut/snr, cut/(snr + 1).",
        ),
    ),
    Exercise(
        id="10.7",
        title="One network, two names",
        kind="code",
        points=3,
        minutes=15,
        difficulty=2,
        equation="10.22",
        inputs=_states,
        reference=as_flow,
        wrong={
            "towards-the-noise": (
                _towards_the_noise,
                "Your velocity points to the noise. ρ runs to the data: u is x̂_0 − ε̂.",
            ),
            "not-scaled": (
                _not_scaled,
                "x_ρ is not x_t: it is smaller by the factor √(ρ² + (1 − ρ)²), see (10.21).",
            ),
            "v-of-diffusion": (
                _v_of_diffusion,
                "That is v of (4.45), the velocity on the circle. On the straight line it is "
                "x̂_0 − ε̂.",
            ),
            "share-of-variance": (
                _share_of_variance,
                "You took ᾱ for ρ. The weights of data and noise are ρ and 1 − ρ, in the ratio of "
                "√ᾱ to √(1 − ᾱ).",
            ),
            "other-clock": (_other_clock, "ρ is 0 at the noise and 1 at the data."),
        },
        hints=(
            "The clock is (10.21). For the velocity you need x̂_0, (4.21).",
            "√(ρ² + (1 − ρ)²) is 1/(√ᾱ + √(1 − ᾱ)).",
            "rho = √ᾱ/(√ᾱ + √(1 − ᾱ)); x_rho = x_t/(√ᾱ + √(1 − ᾱ)); u = x̂_0 − eps.",
        ),
    ),
]

"""The exercises of chapter 5."""

from __future__ import annotations

import math

import numpy as np
import torch

from ddpm_lite.exercises.exercise import Exercise
from ddpm_lite.exercises.mistakes import known
from ddpm_lite.exercises.standins import Drifting


def _strong_chain(rng, T):
    """ᾱ_0..ᾱ_T of a short chain with large steps, on which a slip shows."""
    return np.concatenate([[1.0], np.cumprod(1 - rng.uniform(0.05, 0.6, T))])


# ---- 5.1 -----------------------------------------------------------------------------------------


def prior_bits(x0, alpha_bar_T):
    """The divergence (5.14), per coordinate, in bits."""
    x0 = torch.as_tensor(x0)
    nats = (alpha_bar_T * (x0**2).mean() - alpha_bar_T - math.log(1 - alpha_bar_T)) / 2
    return nats / math.log(2)


def _prior_in_nats(x0, alpha_bar_T):
    return prior_bits(x0, alpha_bar_T) * math.log(2)


def _prior_summed(x0, alpha_bar_T):
    return prior_bits(x0, alpha_bar_T) * len(x0)


def _prior_turned(x0, alpha_bar_T):
    variance = 1 - alpha_bar_T
    square = alpha_bar_T * (x0**2).mean()
    nats = ((1 + square) / variance - 1 + math.log(variance)) / 2
    return nats / math.log(2)


def _prior_means_only(x0, alpha_bar_T):
    return alpha_bar_T * (x0**2).mean() / 2 / math.log(2)


def _images(rng):
    """Six images of a few pixels, noised to various levels."""
    return [(rng.normal(size=int(rng.integers(3, 8))), a) for a in rng.uniform(0.2, 0.7, 6)]


# ---- 5.2 -----------------------------------------------------------------------------------------


def step_price(x_t, x0, x0_hat, t, alpha_bar):
    """Price of the variance, and of the mean: the two differ by c_0·(x_0 − x̂_0) only."""
    alpha = alpha_bar[t] / alpha_bar[t - 1]
    beta = 1 - alpha
    ratio = (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])
    weight_x0 = alpha_bar[t - 1] ** 0.5 * beta / (1 - alpha_bar[t])
    variance_price = len(x0) * (ratio - 1 - math.log(ratio)) / 2
    return variance_price + weight_x0**2 * ((x0 - x0_hat) ** 2).sum() / (2 * beta)


def _parts_of_price(x0, x0_hat, t, alpha_bar):
    """(β, β̃/β, squared distance of the means)."""
    beta = 1 - alpha_bar[t] / alpha_bar[t - 1]
    ratio = (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])
    weight_x0 = alpha_bar[t - 1] ** 0.5 * beta / (1 - alpha_bar[t])
    return beta, ratio, weight_x0**2 * ((x0 - x0_hat) ** 2).sum()


def _mean_price_only(x_t, x0, x0_hat, t, alpha_bar):
    beta, _, square = _parts_of_price(x0, x0_hat, t, alpha_bar)
    return square / (2 * beta)


def _variance_priced_once(x_t, x0, x0_hat, t, alpha_bar):
    beta, ratio, square = _parts_of_price(x0, x0_hat, t, alpha_bar)
    return (ratio - 1 - math.log(ratio)) / 2 + square / (2 * beta)


def _price_with_tilde(x_t, x0, x0_hat, t, alpha_bar):
    beta, ratio, square = _parts_of_price(x0, x0_hat, t, alpha_bar)
    return square / (2 * beta * ratio)


def _price_turned(x_t, x0, x0_hat, t, alpha_bar):
    beta, ratio, square = _parts_of_price(x0, x0_hat, t, alpha_bar)
    return len(x0) * (1 / ratio - 1 + math.log(ratio)) / 2 + square / (2 * beta * ratio)


def _distance_of_x0(x_t, x0, x0_hat, t, alpha_bar):
    beta, ratio, _ = _parts_of_price(x0, x0_hat, t, alpha_bar)
    variance_price = len(x0) * (ratio - 1 - math.log(ratio)) / 2
    return variance_price + ((x0 - x0_hat) ** 2).sum() / (2 * beta)


def _guesses(rng):
    """Every step of a strong chain but the first, with a guess of x_0 that is not far off."""
    T = int(rng.integers(4, 9))
    alpha_bar = _strong_chain(rng, T)
    calls = []
    for t in (2, 3, T):
        x_t, x0, miss = rng.normal(size=(3, 4))
        calls.append((x_t, x0, x0 + 0.7 * miss, t, alpha_bar))
    return calls


# ---- 5.3 -----------------------------------------------------------------------------------------


def stride_weight(alpha_bar_t, alpha_bar_s):
    """Half the relative gain in SNR, by (5.20)."""
    snr_t, snr_s = alpha_bar_t / (1 - alpha_bar_t), alpha_bar_s / (1 - alpha_bar_s)
    return (snr_s / snr_t - 1) / 2


def _weight_without_half(alpha_bar_t, alpha_bar_s):
    return 2 * stride_weight(alpha_bar_t, alpha_bar_s)


def _weight_for_beta(alpha_bar_t, alpha_bar_s):
    ratio = alpha_bar_t / alpha_bar_s
    return (1 - ratio) / (2 * ratio * (1 - alpha_bar_t))


def _weight_of_x0(alpha_bar_t, alpha_bar_s):
    return (alpha_bar_s / (1 - alpha_bar_s) - alpha_bar_t / (1 - alpha_bar_t)) / 2


def _weight_over_the_other_end(alpha_bar_t, alpha_bar_s):
    snr_t, snr_s = alpha_bar_t / (1 - alpha_bar_t), alpha_bar_s / (1 - alpha_bar_s)
    return (1 - snr_t / snr_s) / 2


# ---- 5.5 -----------------------------------------------------------------------------------------


def gap(V, alpha_bar):
    """(5.29): what is left at the top, and a wrong variance at every step."""
    V_t = alpha_bar * V + 1 - alpha_bar
    beta = 1 - alpha_bar[1:] / alpha_bar[:-1]
    tilde = (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:]) * beta
    sigma2 = torch.cat([tilde[1:2], tilde[1:]])
    r = beta * V_t[:-1] / (sigma2 * V_t[1:])
    top = (V_t[-1] - 1 - torch.log(V_t[-1])) / 2
    return top + ((r - 1 - torch.log(r)) / 2).sum()


def _gap_parts(V, alpha_bar):
    """The price at the top, and that of each step."""
    V_t = alpha_bar * V + 1 - alpha_bar
    beta = 1 - alpha_bar[1:] / alpha_bar[:-1]
    tilde = (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:]) * beta
    r = beta * V_t[:-1] / (torch.cat([tilde[1:2], tilde[1:]]) * V_t[1:])
    return (V_t[-1] - 1 - torch.log(V_t[-1])) / 2, (r - 1 - torch.log(r)) / 2, r


def _gap_without_top(V, alpha_bar):
    return _gap_parts(V, alpha_bar)[1].sum()


def _gap_without_decoder(V, alpha_bar):
    top, prices, _ = _gap_parts(V, alpha_bar)
    return top + prices[1:].sum()


def _gap_turned(V, alpha_bar):
    top, _, r = _gap_parts(V, alpha_bar)
    return top + ((1 / r - 1 + torch.log(r)) / 2).sum()


def _gap_with_entropy(V, alpha_bar):
    return gap(V, alpha_bar) + math.log(2 * math.pi * math.e * V) / 2


def _gap_given_x0(V, alpha_bar):
    V_t = alpha_bar * V + 1 - alpha_bar
    return (V_t[-1] - 1 - torch.log(V_t[-1])) / 2


def _variances(rng):
    """Narrow and wide data, on chains so short that some signal is left in x_T."""
    widths = [*rng.uniform(0.1, 0.4, 2), *rng.uniform(2.5, 6.0, 2)]
    calls = []
    for V in widths:
        alphas = rng.uniform(0.6, 0.85, int(rng.integers(2, 5)))
        calls.append((V, np.concatenate([[1.0], np.cumprod(alphas)])))
    return calls


# ---- 5.6 -----------------------------------------------------------------------------------------


def level_masses(mean, std, K):
    """Differences of Φ at the edges between levels, with both ends open."""
    j = torch.arange(K - 1, dtype=torch.float64)
    between = -1 + (2 * j + 1) / (K - 1)
    below = torch.special.ndtr((between - mean) / std)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return torch.cat([ends[:1], below, ends[1:]]).diff()


def _masses_between(mean, std, K, left, right):
    below = torch.special.ndtr((left - mean) / std)
    return torch.special.ndtr((right - mean) / std) - below


def _ends_closed(mean, std, K):
    level = -1 + 2 * torch.arange(K, dtype=torch.float64) / (K - 1)
    return _masses_between(mean, std, K, level - 1 / (K - 1), level + 1 / (K - 1))


def _bins_too_wide(mean, std, K):
    level = -1 + 2 * torch.arange(K, dtype=torch.float64) / (K - 1)
    left, right = level - 2 / (K - 1), level + 2 / (K - 1)
    left[0], right[-1] = -math.inf, math.inf
    return _masses_between(mean, std, K, left, right)


def _deviation_squared(mean, std, K):
    return level_masses(mean, std**2, K)


def _density_at_levels(mean, std, K):
    level = -1 + 2 * torch.arange(K, dtype=torch.float64) / (K - 1)
    return torch.softmax(-((level - mean) ** 2) / (2 * std**2), 0)


def _from_level_to_level(mean, std, K):
    level = -1 + 2 * torch.arange(K, dtype=torch.float64) / (K - 1)
    left, right = level.clone(), level + 2 / (K - 1)
    left[0], right[-1] = -math.inf, math.inf
    return _masses_between(mean, std, K, left, right)


def _pixels(rng):
    """Predictions at both ends and between, about as uncertain as a bin is wide."""
    centres = [-1 + rng.uniform(0.0, 0.1), 1 - rng.uniform(0.0, 0.1), *rng.uniform(-0.6, 0.6, 3)]
    calls = []
    for mean in centres:
        K = int(rng.integers(4, 9))
        calls.append((mean, rng.uniform(0.8, 1.4) / (K - 1), K))
    return calls


# ---- 5.8 -----------------------------------------------------------------------------------------


def simple_loss(denoiser, x0, t, noise, alpha_bar):
    """Noise x_0 to level t row by row, ask for the noise, average the squared error."""
    level = alpha_bar[t][:, None]
    x_t = level**0.5 * x0 + (1 - level) ** 0.5 * noise
    return ((noise - denoiser(x_t, t)) ** 2).mean()


def _loss_across(denoiser, x0, t, noise, alpha_bar):
    level = alpha_bar[t]
    x_t = level**0.5 * x0 + (1 - level) ** 0.5 * noise
    return ((noise - denoiser(x_t, t)) ** 2).mean()


def _loss_summed(denoiser, x0, t, noise, alpha_bar):
    return simple_loss(denoiser, x0, t, noise, alpha_bar) * x0.shape[1]


def _loss_of_x0(denoiser, x0, t, noise, alpha_bar):
    level = alpha_bar[t][:, None]
    x_t = level**0.5 * x0 + (1 - level) ** 0.5 * noise
    return ((x0 - denoiser(x_t, t)) ** 2).mean()


def _loss_one_early(denoiser, x0, t, noise, alpha_bar):
    level = alpha_bar[t][:, None]
    x_t = level**0.5 * x0 + (1 - level) ** 0.5 * noise
    return ((noise - denoiser(x_t, t - 1)) ** 2).mean()


def _loss_without_roots(denoiser, x0, t, noise, alpha_bar):
    level = alpha_bar[t][:, None]
    x_t = level * x0 + (1 - level) * noise
    return ((noise - denoiser(x_t, t)) ** 2).mean()


def _batches(rng):
    """As many rows as coordinates, so that levels laid along the wrong axis would fit too."""
    calls = []
    for size in (4, 5, 6):
        alpha_bar = _strong_chain(rng, T=9)
        t = rng.permutation(np.arange(1, 10))[:size]
        network = Drifting(float(rng.uniform(0.5, 1.5)), float(rng.uniform(0.15, 0.3)))
        x0, noise = rng.normal(size=(2, size, size))
        calls.append((network, x0, t, noise, alpha_bar))
    return calls


EXERCISES = [
    Exercise(
        id="5.1",
        title="The price at the top",
        kind="formula",
        points=2,
        minutes=10,
        difficulty=1,
        equation="5.14",
        inputs=_images,
        reference=prior_bits,
        wrong={
            "in-nats": (
                _prior_in_nats,
                "That is the price in nats; divide by log 2 for bits.",
            ),
            "sum-for-mean": (
                _prior_summed,
                "That is the price of the whole image; per dimension, divide by the number of "
                "coordinates.",
            ),
            "turned-round": (
                _prior_turned,
                "You took KL(N(0, I) ‖ q). In (5.14) q comes first.",
            ),
            "means-only": (
                _prior_means_only,
                "You priced the mean of x_T only. Its variance is 1 − ᾱ_T, not 1, and that costs "
                "as well, see (5.14).",
            ),
        },
        hints=(
            "It is (5.14), divided by two things.",
            "Divided by D, the sum of squares becomes a mean of squares; divided by log 2, nats "
            "become bits.",
            "(alpha_bar_T·mean(x0²) − alpha_bar_T − log(1 − alpha_bar_T))/(2·log 2).",
        ),
    ),
    Exercise(
        id="5.2",
        title="The price of one step",
        kind="code",
        points=3,
        minutes=15,
        difficulty=2,
        equation="5.15",
        inputs=_guesses,
        reference=step_price,
        wrong={
            "variance-is-free": (
                _mean_price_only,
                "You priced the means only. The variances β̃_t and β_t differ too: the first half "
                "of (5.15).",
            ),
            "variance-priced-once": (
                _variance_priced_once,
                "The price of the variance is per coordinate; (5.15) has a factor D.",
            ),
            **known(
                "beta-tilde-for-beta",
                _price_with_tilde,
                "You gave the model the variance β̃_t. Here it has β_t.",
            ),
            "turned-round": (
                _price_turned,
                "You took KL(p_θ ‖ q). In (5.15) q comes first, and the squared distance is "
                "divided by the second variance, the model's.",
            ),
            "distance-of-x0": (
                _distance_of_x0,
                "‖x_0 − x̂_0‖² is not the distance of the means: in both, x_0 has the weight c_0 "
                "of (4.18).",
            ),
        },
        hints=(
            "Two Gaussians: which mean and variance has each? Then (T.24).",
            "Both means are c_0·(x_0 or x̂_0) + c_t·x_t, so x_t cancels in their difference; the "
            "ratio of the variances is β̃_t/β_t = (1 − ᾱ_{t−1})/(1 − ᾱ_t).",
            "D/2·(ratio − 1 − log ratio) + c_0²·‖x_0 − x̂_0‖²/(2β_t), with c_0 = "
            "√ᾱ_{t−1}·β_t/(1 − ᾱ_t) and β_t = 1 − ᾱ_t/ᾱ_{t−1}.",
        ),
    ),
    Exercise(
        id="5.3",
        title="The weight of a stride",
        kind="formula",
        points=2,
        minutes=10,
        difficulty=2,
        equation="5.20",
        inputs=lambda rng: [
            (earlier * rng.uniform(0.3, 0.8), earlier) for earlier in rng.uniform(0.4, 0.9, 7)
        ],
        reference=stride_weight,
        wrong={
            "half-lost": (
                _weight_without_half,
                "The logarithm of a Gaussian carries a factor of one half, see (5.18).",
            ),
            **known(
                "beta-for-beta-tilde",
                _weight_for_beta,
                "That is the weight for σ² = β_{t|s}. Here the variance is β̃_{t|s}.",
            ),
            "weight-of-x0": (
                _weight_of_x0,
                "That is the weight of ‖x_0 − x̂_0‖², the second half of (5.20).",
            ),
            "over-the-other-end": (
                _weight_over_the_other_end,
                "You divided by the SNR at s; (5.20) divides by the one at t, where the noise is "
                "guessed.",
            ),
        },
        hints=(
            "Nothing in (5.20) used that the two steps are neighbours.",
            "Put s for t − 1: only two SNRs are needed, ᾱ/(1 − ᾱ) at t and at s.",
            "(SNR_s/SNR_t − 1)/2.",
        ),
    ),
    Exercise(
        id="5.4",
        title="Predict the number",
        kind="number",
        points=1,
        minutes=5,
        difficulty=1,
        equation="5.24",
        reference=0.36 * 4 / (0.36 * 4 + 0.64),
        tolerance=1e-3,
        wrong={
            "zero": (
                0.0,
                "Even a perfect network cannot guess the noise from x_t: the floor of (5.24) is "
                "not zero.",
            ),
            "predictable-share": (
                0.64 / (0.36 * 4 + 0.64),
                "That is the share that can be predicted; the smallest loss is the rest, (4.33).",
            ),
            "variance-one": (
                0.36,
                "That is the floor for data of variance 1. These have 4, see (4.33).",
            ),
            "no-guess": (
                1.0,
                "That is the loss of the guess 0. The best predictor does better.",
            ),
            "error-of-x0": (
                4 * 0.64 / (0.36 * 4 + 0.64),
                "That is the smallest squared error of x_0. The noise was asked for: (4.47) "
                "converts.",
            ),
        },
        hints=(
            "The floor is the unpredictable share ξ_t, and for Gaussian data (4.33) gives it.",
            "ξ_t = ᾱ_t·V/(ᾱ_t·V + 1 − ᾱ_t), an equality for Gaussian data, with V = 4.",
            "1.44 divided by 2.08.",
        ),
    ),
    Exercise(
        id="5.5",
        title="The gap of the other variance",
        kind="code",
        points=4,
        minutes=25,
        difficulty=3,
        equation="5.29",
        inputs=_variances,
        reference=gap,
        wrong={
            "top-forgotten": (
                _gap_without_top,
                "The first term of (5.29) is missing: x_T is not quite standard normal.",
            ),
            "decoder-forgotten": (
                _gap_without_decoder,
                "The sum of (5.29) begins at t = 1: the decoder's variance may be wrong too.",
            ),
            "turned-round": (
                _gap_turned,
                "Your ratio stands on its head: in (5.29) r_t is the true variance over the "
                "model's.",
            ),
            "the-bound-itself": (
                _gap_with_entropy,
                "That is the bound. The gap is what remains after subtracting the entropy.",
            ),
            "steps-are-free": (
                _gap_given_x0,
                "β̃_t is the right variance if x_0 is known. The model does not know it: the true "
                "step back has the variance β_t·V_{t−1}/V_t.",
            ),
        },
        hints=(
            "(5.29) holds for any σ_t²; which one belongs into r_t here?",
            "V_t = ᾱ_t·V + 1 − ᾱ_t for t = 0..T; β_t and β̃_t from neighbours of ᾱ; at t = 1 take "
            "β̃_2 for β̃_1.",
            "r_t = β_t·V_{t−1}/(β̃_t·V_t); the answer is (V_T − 1 − log V_T)/2 plus the sum of "
            "(r_t − 1 − log r_t)/2 over t = 1..T.",
        ),
    ),
    Exercise(
        id="5.6",
        title="Masses that sum to one",
        kind="code",
        points=3,
        minutes=15,
        difficulty=2,
        equation="5.31",
        inputs=_pixels,
        reference=level_masses,
        wrong={
            "ends-closed": (
                _ends_closed,
                "Your masses sum to less than one: the first bin is open to the left, the last to "
                "the right.",
            ),
            "bins-too-wide": (
                _bins_too_wide,
                "Your bins overlap: their half-width is 1/(K − 1), half the distance of two "
                "levels.",
            ),
            "deviation-squared": (
                _deviation_squared,
                "`std` is the standard deviation already; you squared it.",
            ),
            "density-at-levels": (
                _density_at_levels,
                "You weighed each level by the density there. (5.31) wants the mass of its bin.",
            ),
            "from-level-to-level": (
                _from_level_to_level,
                "Your bins reach from one level to the next. A level sits in the middle of its "
                "bin.",
            ),
        },
        hints=(
            "K levels have K − 1 edges between them. Where do they lie?",
            "The edges are −1 + (2j + 1)/(K − 1) for j = 0..K−2; Φ at them, with a 0 in front and "
            "a 1 behind.",
            "below = torch.special.ndtr((edges − mean)/std), then the differences of "
            "[0, below, 1].",
        ),
    ),
    Exercise(
        id="5.7",
        title="Explain",
        kind="explain",
        points=3,
        minutes=15,
        difficulty=2,
        equation="5.22",
        reference=(
            "It is right that both losses have the same minimiser, if the network can make every "
            "ℓ_t as small as possible: each ℓ_t belongs to its own t, and positive weights do not "
            "change where a sum of separate terms is smallest. It is wrong that both are the "
            "ELBO. The bound is a constant plus D·Σ ω_t·ℓ_t, and the simple loss replaces all ω_t "
            "by one number. A real network shares its weights over all t and reaches no floor; "
            "then the weights decide where its errors go. The bound's weights are fifty to "
            "eighty times their average at the first steps, so training on it spends the network "
            "on t near 1, where the noise left is a fraction of a grey level and nobody sees the "
            "result. The simple loss moves effort to larger t, where the coarse structure is "
            "decided, and the pictures gain. The price is small in bits, 0.05 per dimension, but "
            "it is a price: the two numbers are both right. Likelihood and looks are different "
            "measures; more than half of the bits describe invisible detail, so a model can be "
            "better in bits and worse in pictures."
        ),
        rubric=(
            "Says that the minimiser is the same only for a network that can reach every floor.",
            "Says that the simple loss is not the bound: the weights ω_t are dropped.",
            "Says that with shared, finite capacity the weights decide where the errors go.",
            "Locates the attention: the bound at the smallest t, the simple loss at larger t.",
            "Concludes that both numbers can be right: bits measure invisible detail as well.",
        ),
        hints=(
            "Compare (5.21) with (5.22), factor by factor.",
            "When do two weighted sums of the same terms have the same minimiser, and when not? "
            "The one-parameter example at (5.23) is the second case.",
            "Look at the figure of the weights, and ask what can be seen of an error at t = 1 in "
            "a picture.",
        ),
    ),
    Exercise(
        id="5.8",
        title="Your own loss",
        kind="code",
        points=2,
        minutes=10,
        difficulty=2,
        equation="5.21",
        inputs=_batches,
        reference=simple_loss,
        wrong={
            "level-along-the-wrong-axis": (
                _loss_across,
                "alpha_bar[t] has shape (B,) and was laid along the coordinates. Each row has its "
                "own t: give it a second axis, alpha_bar[t][:, None].",
            ),
            "sum-for-mean": (
                _loss_summed,
                "You summed over the coordinates where (5.21) takes the mean.",
            ),
            "target-x0": (
                _loss_of_x0,
                "The network guesses the noise; you compared its guess with x_0.",
            ),
            "one-step-early": (
                _loss_one_early,
                "You noised to level t, but told the network t − 1.",
            ),
            "no-roots": (
                _loss_without_roots,
                "Both ᾱ_t and 1 − ᾱ_t carry a square root in x_t, see (3.14).",
            ),
        },
        hints=(
            "Three lines: make x_t, ask the network, average the squared error.",
            "level = alpha_bar[t][:, None] has shape (B, 1) and goes with x0 row by row.",
            "x_t = √level·x0 + √(1 − level)·noise, then ((noise − denoiser(x_t, t))²).mean().",
        ),
    ),
]

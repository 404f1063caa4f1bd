"""The exercises of chapter 8."""

from __future__ import annotations

import numpy as np
import torch

from ddpm_lite.exercises.exercise import Exercise
from ddpm_lite.exercises.mistakes import known
from ddpm_lite.exercises.standins import Labelled, LabelsWatched


def _strong_chain(rng, T):
    """ᾱ_0..ᾱ_T of a short chain with large steps, on which a slip shows."""
    return np.concatenate([[1.0], np.cumprod(1 - rng.uniform(0.1, 0.5, T))])


# ---- 8.1 -----------------------------------------------------------------------------------------


def steer(eps, gradient, t, w, alpha_bar):
    """The gradient, (1 + w) times, as noise."""
    return eps - (1 + w) * (1 - alpha_bar[t]) ** 0.5 * gradient


def _with_the_gradient(eps, gradient, t, w, alpha_bar):
    return eps + (1 + w) * (1 - alpha_bar[t]) ** 0.5 * gradient


def _w_for_scale(eps, gradient, t, w, alpha_bar):
    return eps - w * (1 - alpha_bar[t]) ** 0.5 * gradient


def _variance_for_deviation(eps, gradient, t, w, alpha_bar):
    return eps - (1 + w) * (1 - alpha_bar[t]) * gradient


def _score_left_as_it_is(eps, gradient, t, w, alpha_bar):
    return eps - (1 + w) * gradient


def _beta_of_one_step(eps, gradient, t, w, alpha_bar):
    return eps - (1 + w) * (1 - alpha_bar[t] / alpha_bar[t - 1]) ** 0.5 * gradient


def _gradients(rng):
    T = int(rng.integers(4, 9))
    alpha_bar = _strong_chain(rng, T)
    calls = []
    for t in (2, T, T // 2 + 1):
        eps, gradient = rng.normal(size=(2, 5))
        calls.append((eps, gradient, t, float(rng.uniform(0.5, 3)), alpha_bar))
    return calls


# ---- 8.3 -----------------------------------------------------------------------------------------


def dropped(y, coins, share, null):
    """The null class where the coin is below the share."""
    return torch.where(coins < share, null, y)


def _kept_for_dropped(y, coins, share, null):
    return torch.where(coins < share, y, null)


def _one_coin_for_all(y, coins, share, null):
    return torch.where(coins[0] < share, torch.full_like(y, null), y)


def _class_zero(y, coins, share, null):
    return torch.where(coins < share, 0, y)


def _share_of_the_batch(y, coins, share, null):
    places = torch.arange(len(y)) < round(share * len(y))
    return torch.where(places, null, y)


def _in_place(y, coins, share, null):
    y[coins < share] = null
    return y


def _batches(rng):
    """Labels from 1 on, coins on both sides of the share, one on it, the first on either side."""
    calls = []
    for first_low in (True, False, True):
        classes, share = int(rng.integers(4, 8)), float(rng.uniform(0.3, 0.6))
        low = np.array([first_low, *([not first_low, False, True] * 4)])
        coins = np.where(low, share * rng.uniform(0.1, 0.9, 13), 1 - 0.3 * rng.uniform(0, 1, 13))
        coins[2] = share  # not below it, so this label stays
        calls.append((rng.integers(1, classes, 13), coins, share, classes))
    return calls


# ---- 8.4 -----------------------------------------------------------------------------------------


def guided_eps(denoiser, x, t, y, w, null):
    """Both guesses in one call, and the line through them."""
    labels = torch.cat([y, torch.full_like(y, null)])
    told, untold = denoiser(torch.cat([x, x]), torch.cat([t, t]), labels).chunk(2)
    return (1 + w) * told - w * untold


def _two(denoiser, x, t, y, null):
    return denoiser(x, t, y), denoiser(x, t, torch.full_like(y, null))


def _w_counted_as_scale(denoiser, x, t, y, w, null):
    told, untold = _two(denoiser, x, t, y, null)
    return untold + w * (told - untold)


def _exchanged(denoiser, x, t, y, w, null):
    told, untold = _two(denoiser, x, t, y, null)
    return (1 + w) * untold - w * told


def _plus(denoiser, x, t, y, w, null):
    told, untold = _two(denoiser, x, t, y, null)
    return (1 + w) * told + w * untold


def _zero_for_null(denoiser, x, t, y, w, null):
    return guided_eps(denoiser, x, t, y, w, 0)


def _labels_overwritten(denoiser, x, t, y, w, null):
    told = denoiser(x, t, y)
    return (1 + w) * told - w * denoiser(x, t, y.fill_(null))


def _asked(rng):
    """Three classes, of which the batch holds 1 and 2, and the null class 3."""
    calls = []
    for _ in range(3):
        slopes = rng.uniform(0.4, 1.0, 9)
        shifts = rng.permutation([-1.2, -0.5, 0.4, 1.1]) + rng.uniform(-0.1, 0.1, 4)
        network = Labelled(tuple(slopes.tolist()), tuple(shifts.tolist()))
        x, t = rng.normal(size=(6, 3)), rng.integers(1, 9, 6)
        y = np.array([1, 2, 1, 2, 1, 2])
        calls.append((network, x, t, y, float(rng.uniform(0.5, 2.5)), 3))
    return calls


# ---- 8.5 -----------------------------------------------------------------------------------------


def tilted_eps(x, t, y, w, weights, means, variances, alpha_bar):
    """Every class has its noise; the mixture's is their mean by q(k | x_t)."""
    spread = alpha_bar[t] * variances + 1 - alpha_bar[t]
    gap = x[:, None] - alpha_bar[t] ** 0.5 * means
    share = (weights.log() - gap**2 / (2 * spread) - spread.log() / 2).softmax(1)
    noise = (1 - alpha_bar[t]) ** 0.5 * gap / spread
    return (1 + w) * noise[:, y] - w * (share * noise).sum(1)


def _prior_for_posterior(x, t, y, w, weights, means, variances, alpha_bar):
    spread = alpha_bar[t] * variances + 1 - alpha_bar[t]
    noise = (1 - alpha_bar[t]) ** 0.5 * (x[:, None] - alpha_bar[t] ** 0.5 * means) / spread
    return (1 + w) * noise[:, y] - w * noise @ weights


def _classes_not_noised(x, t, y, w, weights, means, variances, alpha_bar):
    spread = alpha_bar[t] * variances + 1 - alpha_bar[t]
    noise = (1 - alpha_bar[t]) ** 0.5 * (x[:, None] - alpha_bar[t] ** 0.5 * means) / spread
    clean = (x[:, None] - means) ** 2 / (2 * variances)
    share = (weights.log() - clean - variances.log() / 2).softmax(1)
    return (1 + w) * noise[:, y] - w * (share * noise).sum(1)


def _score_for_noise(x, t, y, w, weights, means, variances, alpha_bar):
    found = tilted_eps(x, t, y, w, weights, means, variances, alpha_bar)
    return -found / (1 - alpha_bar[t]) ** 0.5


def _power_w(x, t, y, w, weights, means, variances, alpha_bar):
    return tilted_eps(x, t, y, w - 1, weights, means, variances, alpha_bar)


def _tilt_noised(x, t, y, w, weights, means, variances, alpha_bar):
    clean = torch.linspace(-8, 8, 4001, dtype=x.dtype)
    gap = clean[:, None] - means
    parts = weights.log() - gap**2 / (2 * variances) - variances.log() / 2
    tilt = parts.logsumexp(1) + (1 + w) * parts.log_softmax(1)[:, y]
    noise = (x[:, None] - alpha_bar[t] ** 0.5 * clean) / (1 - alpha_bar[t]) ** 0.5
    return ((tilt - noise**2 / 2).softmax(1) * noise).sum(1)


def _mixtures(rng):
    calls = []
    for y in (0, 1, 2):
        T = int(rng.integers(4, 8))
        weights = rng.dirichlet([6.0, 3.0, 4.0])
        means = np.array([-1.0, 0.2, 1.1]) + rng.uniform(-0.2, 0.2, 3)
        variances = rng.uniform(0.2, 0.6, 3)
        x, t = rng.uniform(-1.5, 1.5, 7), int(rng.integers(2, T))
        chain = _strong_chain(rng, T)
        calls.append((x, t, y, float(rng.uniform(0.7, 2)), weights, means, variances, chain))
    return calls


# ---- 8.7 -----------------------------------------------------------------------------------------


def interval_variance(U, V, w, low, high):
    """R/(U + n) changes only where guidance acts, by the power w of a ratio of ratios."""
    return U * ((U + low) / (V + low) * (V + high) / (U + high)) ** w


def _whole_way(U, V, w, low, high):
    return U * (U / V) ** w


def _ends_exchanged(U, V, w, low, high):
    return U * ((U + low) / (V + low) * (V + high) / (U + high)) ** -w


def _label_counted_again(U, V, w, low, high):
    return interval_variance(U, V, w + 1, low, high)


def _tail_forgotten(U, V, w, low, high):
    return interval_variance(U, V, w, low, high) * (U + low) / U


def _upper_end_forgotten(U, V, w, low, high):
    return U * ((U + low) / (V + low)) ** w


def _intervals(rng):
    calls = []
    for _ in range(5):
        U = float(rng.uniform(0.1, 0.3))
        low = float(rng.uniform(0.1, 0.3))
        high = float(rng.uniform(1.2, 2.0))
        calls.append((U, float(U * rng.uniform(3, 5)), float(rng.uniform(0.6, 1.5)), low, high))
    return calls


# ---- 8.8 -----------------------------------------------------------------------------------------


def rescaled(v_w, v_y, share):
    """Each row of v_w times a blend of 1 and the ratio of the deviations."""
    ratio = v_y.std(1, keepdim=True) / v_w.std(1, keepdim=True)
    return (share * ratio + 1 - share) * v_w


def _over_the_batch(v_w, v_y, share):
    return (share * v_y.std() / v_w.std() + 1 - share) * v_w


def _upside_down(v_w, v_y, share):
    return (share * v_w.std(1, keepdim=True) / v_y.std(1, keepdim=True) + 1 - share) * v_w


def _share_exchanged(v_w, v_y, share):
    return rescaled(v_w, v_y, 1 - share)


def _blended_with_conditional(v_w, v_y, share):
    return rescaled(v_w, v_y, share) + (1 - share) * (v_y - v_w)


def _guesses(rng):
    calls = []
    for _ in range(4):
        v_y = rng.normal(size=(4, 6)) * rng.uniform(0.5, 1.5, (4, 1))
        stretch = np.array([[1.4], [3.0], [2.0], [4.0]]) * rng.uniform(0.95, 1.05, (4, 1))
        v_w = stretch * v_y + 0.3 * rng.normal(size=(4, 6))
        share = float(rng.choice([rng.uniform(0.2, 0.35), rng.uniform(0.65, 0.8)]))
        calls.append((v_w, v_y, share))
    return calls


EXERCISES = [
    Exercise(
        id="8.1",
        title="A gradient becomes noise",
        kind="formula",
        points=2,
        minutes=10,
        difficulty=1,
        equation="8.5",
        inputs=_gradients,
        reference=steer,
        wrong={
            "with-the-gradient": (
                _with_the_gradient,
                "The sign: the score points to the images, the noise away from them, see (8.4).",
            ),
            "w-for-scale": (
                _w_for_scale,
                "This network has no label yet, so the gradient counts 1 + w times, see (8.5).",
            ),
            "variance-for-deviation": (
                _variance_for_deviation,
                "The factor from a score to noise is √(1 − ᾱ_t); yours lacks the root.",
            ),
            "score-left-as-it-is": (
                _score_left_as_it_is,
                "A gradient is a score, and eps is noise: between them stands the factor "
                "√(1 − ᾱ_t).",
            ),
            "beta-of-one-step": (
                _beta_of_one_step,
                "You used the noise of one step, √β_t. The noise in x_t is that of all, "
                "√(1 − ᾱ_t).",
            ),
        },
        hints=(
            "(8.5) is the answer; only ᾱ_t has to be looked up.",
            "eps minus a factor times the gradient. The factor holds w and ᾱ_t.",
            "eps − (1 + w)·√(1 − alpha_bar[t])·gradient.",
        ),
    ),
    Exercise(
        id="8.2",
        title="Predict the number",
        kind="number",
        points=1,
        minutes=5,
        difficulty=1,
        equation="8.11",
        reference=-0.5,
        tolerance=1e-3,
        wrong={
            "the-same": (0.5, "Their s counts from the guess without label, ours from the other."),
            "the-scale-you-wanted": (1.5, "That is the s that you should have typed."),
            "half-a-sign": (-1.5, "Both are subtracted; s = 1 + w, so w = s − 1."),
        },
        hints=(
            "Which s gives the conditional guess alone, and which w?",
            "s = 1 + w, see (8.11).",
            "w = s − 1. It is negative: the label counted half.",
        ),
    ),
    Exercise(
        id="8.3",
        title="Drop labels",
        kind="code",
        points=2,
        minutes=10,
        difficulty=1,
        equation="8.13",
        inputs=_batches,
        observe=LabelsWatched(0),
        reference=dropped,
        wrong={
            "kept-for-dropped": (
                _kept_for_dropped,
                "You kept the labels that should go: where the coin is below the share, the null "
                "class stands.",
            ),
            "one-coin-for-all": (
                _one_coin_for_all,
                "Each label has a coin of its own; you let the first decide for the batch.",
            ),
            "class-zero": (
                _class_zero,
                "A dropped label becomes the null class, whose number is given. 0 is a class.",
            ),
            "share-of-the-batch": (
                _share_of_the_batch,
                "You dropped a fixed part of the batch. The coins decide which, and how many.",
            ),
            "in-place": (
                _in_place,
                "The labels that you return are right, but you changed y itself. Whoever called "
                "you still needs it.",
            ),
        },
        hints=(
            "Compare all coins with the share at once.",
            "torch.where(condition, a, b) takes a where the condition holds, else b.",
            "torch.where(coins < share, null, y).",
        ),
    ),
    Exercise(
        id="8.4",
        title="Your own guided denoiser",
        kind="code",
        points=3,
        minutes=15,
        difficulty=2,
        equation="8.8",
        inputs=_asked,
        observe=LabelsWatched(3),
        reference=guided_eps,
        wrong={
            "w-counted-as-scale": (
                _w_counted_as_scale,
                "You counted w from the guess without label: that is a scale. Here it counts from "
                "the guess with it, see (8.11).",
            ),
            **known("guidance-sign", _exchanged, see="8.8"),
            "plus": (
                _plus,
                "The weights must add up to 1: (1 + w) and −w. You added the second.",
            ),
            "zero-for-null": (
                _zero_for_null,
                "“No label” is the class with the number null, and you asked with class 0.",
            ),
            "labels-overwritten": (
                _labels_overwritten,
                "What you return is right, but you changed y itself: at the next step of a sampler "
                "there would be no labels left.",
            ),
        },
        hints=(
            "Two guesses, one with y and one with null for every row, then (8.8).",
            "torch.full_like(y, null) is a batch of null classes.",
            "(1 + w)·denoiser(x, t, y) − w·denoiser(x, t, torch.full_like(y, null)).",
        ),
    ),
    Exercise(
        id="8.5",
        title="From densities alone",
        kind="formula",
        points=3,
        minutes=20,
        difficulty=2,
        equation="8.9",
        inputs=_mixtures,
        reference=tilted_eps,
        wrong={
            "prior-for-posterior": (
                _prior_for_posterior,
                "You averaged the classes by their weights in the data. At x_t they count by "
                "q(k | x_t).",
            ),
            "classes-not-noised": (
                _classes_not_noised,
                "Your q(k | x_t) is that of clean data. At step t every class is shrunk and "
                "noised, see (3.30).",
            ),
            "score-for-noise": (
                _score_for_noise,
                "That is the score; the noise is −√(1 − ᾱ_t) times it, see (8.9).",
            ),
            "power-w": (
                _power_w,
                "Next to q(x_t) the class has the power 1 + w; w goes with q(x_t | y), see (8.15).",
            ),
            "tilt-noised": (
                _tilt_noised,
                "You noised the tilt: that is (8.17), and guidance is (8.15).",
            ),
        },
        hints=(
            "Class k alone is Gaussian at step t: mean √ᾱ_t·m_k, variance ᾱ_t·V_k + 1 − ᾱ_t.",
            "Its noise is √(1 − ᾱ_t)·(x − √ᾱ_t·m_k)/(ᾱ_t·V_k + 1 − ᾱ_t). The noise without label "
            "is the mean of these, weighted by q(k | x_t), a softmax.",
            "(1 + w)·noise[:, y] − w·(share·noise).sum(1), with share the softmax over k of "
            "log weights − gap²/(2·spread) − ½·log spread.",
        ),
    ),
    Exercise(
        id="8.6",
        title="Explain",
        kind="explain",
        points=3,
        minutes=15,
        difficulty=2,
        equation="8.18",
        reference=(
            "Right is that at every t the guided guess is the score of q(x_t)·q(y | x_t)^(1+w), "
            "by (8.9), and that at t → 0 this is the density that the colleague names. Wrong is "
            "the step from the scores to the samples. A reverse walk undoes noising, so it would "
            "draw from that density only if the tilted density at step t were the tilted clean "
            "density with noise added. It is not: noising gives the mean of q(y | x_0)^(1+w) given "
            "x_t, guidance has the (1+w)-th power of the mean, and these agree only for w = 0 and "
            "w = −1. So more steps and a better network lead to another density, which depends on "
            "the sampler: DDIM and DDPM, given the same scores, draw from different ones. For "
            "Gaussians all is known in closed form (8.22): the tilt's variance falls like 1/w, "
            "DDPM's like 1/(2w), DDIM's exponentially. To show it, take two classes on a line with "
            "exact denoisers, walk a grid of starting points down with many steps, and lay the "
            "density of the ends beside the tilt. “Temperature” fails in one more respect: where "
            "q(y | x_0) is 1 already, the tilt does not sharpen at all."
        ),
        rubric=(
            "Grants that the guided guess is, at each t, exactly the score of the tilted law of "
            "x_t.",
            "Says that this family of laws is not one noising process: noised tilt and tilted "
            "noise differ.",
            "Names the reason or the formula: power of a mean against mean of a power; equal for "
            "w = 0 and −1.",
            "Concludes that more steps or a better network do not help, and that samplers differ "
            "from one another.",
            "Gives an example with exact denoisers on which it can be seen or computed.",
        ),
        hints=(
            "Is (8.9) true? At which t?",
            "Which density would the sampler have to be given the scores of, to end in the tilt? "
            "Compare (8.15) with (8.17).",
            "For the example, section 8.10 has numbers for three densities that should be one.",
        ),
    ),
    Exercise(
        id="8.7",
        title="Guidance on part of the way",
        kind="formula",
        points=3,
        minutes=30,
        difficulty=3,
        equation="8.21",
        inputs=_intervals,
        reference=interval_variance,
        wrong={
            "whole-way": (
                _whole_way,
                "That is guidance all the way, (8.22). It acts between low and high only.",
            ),
            "ends-exchanged": (
                _ends_exchanged,
                "Guidance makes the variance smaller than U; yours is larger. Which end is which?",
            ),
            "label-counted-again": (
                _label_counted_again,
                "Outside the interval the label still counts once, so the interval adds w, not "
                "1 + w.",
            ),
            "tail-forgotten": (
                _tail_forgotten,
                "That is the variance of u at n = low. Below it R/(U + n) stays as it is, and n "
                "still falls to 0.",
            ),
            "upper-end-forgotten": (
                _upper_end_forgotten,
                "At n = high the ratio (U + n)/(V + n) is not yet 1: divide by its value there.",
            ),
        },
        hints=(
            "For η = 0, (8.21) is d log R/dn = a(n). What is a outside the interval, and what is "
            "d log(R/(U + n))/dn?",
            "Outside, R/(U + n) does not change. Inside, d log(R/(U + n))/dn = w/(U + n) − "
            "w/(V + n), which is w times the derivative of log((U + n)/(V + n)).",
            "From high down to low R/(U + n) is multiplied by the power w of "
            "[(U + low)/(V + low)]/[(U + high)/(V + high)], and it starts at 1.",
        ),
    ),
    Exercise(
        id="8.8",
        title="Bring back the contrast",
        kind="code",
        points=2,
        minutes=10,
        difficulty=1,
        equation="8.26",
        inputs=_guesses,
        reference=rescaled,
        wrong={
            "over-the-batch": (
                _over_the_batch,
                "You took one deviation of the whole batch. Each sample has its own.",
            ),
            "upside-down": (
                _upside_down,
                "The ratio is upside down: the guided guess has to shrink to the conditional's "
                "deviation.",
            ),
            "share-exchanged": (
                _share_exchanged,
                "share = 1 rescales fully and share = 0 not at all; yours does the reverse.",
            ),
            "blended-with-conditional": (
                _blended_with_conditional,
                "You blended with the conditional guess. The blend is of the guided guess, "
                "rescaled and as it was.",
            ),
        },
        hints=(
            "One deviation for each row of v_y and of v_w: std(1, keepdim=True).",
            "The fully rescaled guess is v_w times their ratio. Then (8.26) blends it with v_w.",
            "(share·ratio + 1 − share)·v_w, with ratio = v_y.std(1, keepdim=True) / "
            "v_w.std(1, keepdim=True).",
        ),
    ),
]

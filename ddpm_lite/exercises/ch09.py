"""The exercises of chapter 9."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from ddpm_lite.exercises.exercise import Exercise
from ddpm_lite.exercises.mistakes import variance_as_std
from ddpm_lite.exercises.standins import Stepwise


def _strong_chain(rng, T):
    """ᾱ_0..ᾱ_T of a short chain with large steps, on which a slip shows."""
    return np.concatenate([[1.0], np.cumprod(1 - rng.uniform(0.1, 0.55, T))])


# ---- 9.1 -----------------------------------------------------------------------------------------


def family_step(x_t, x0, t, s, sigma, alpha_bar):
    """√ᾱ_s·x_0, plus the old noise cut to what σ² leaves room for."""
    noise = (x_t - alpha_bar[t] ** 0.5 * x0) / (1 - alpha_bar[t]) ** 0.5
    mean = alpha_bar[s] ** 0.5 * x0 + (1 - alpha_bar[s] - sigma**2) ** 0.5 * noise
    return mean, sigma**2


def _noise_not_cut(x_t, x0, t, s, sigma, alpha_bar):
    return family_step(x_t, x0, t, s, 0.0, alpha_bar)[0], sigma**2


def _displacement_for_noise(x_t, x0, t, s, sigma, alpha_bar):
    moved = x_t - alpha_bar[t] ** 0.5 * x0
    mean = alpha_bar[s] ** 0.5 * x0 + (1 - alpha_bar[s] - sigma**2) ** 0.5 * moved
    return mean, sigma**2


def _level_of_t(x_t, x0, t, s, sigma, alpha_bar):
    noise = (x_t - alpha_bar[t] ** 0.5 * x0) / (1 - alpha_bar[t]) ** 0.5
    mean = alpha_bar[t] ** 0.5 * x0 + (1 - alpha_bar[s] - sigma**2) ** 0.5 * noise
    return mean, sigma**2


def _deviations_subtracted(x_t, x0, t, s, sigma, alpha_bar):
    noise = (x_t - alpha_bar[t] ** 0.5 * x0) / (1 - alpha_bar[t]) ** 0.5
    mean = alpha_bar[s] ** 0.5 * x0 + ((1 - alpha_bar[s]) ** 0.5 - sigma) * noise
    return mean, sigma**2


def _members(rng):
    """Single steps, strides and the last step, with σ between 0.3 and 0.9 of what is allowed."""
    T = int(rng.integers(5, 11))
    alpha_bar = _strong_chain(rng, T)
    calls = []
    for t, s in [(2, 1), (T, T - 1), (T, 1), (4, 2), (3, 2)]:
        sigma = float(rng.uniform(0.3, 0.9) * (1 - alpha_bar[s]) ** 0.5)
        calls.append((rng.normal(size=4), rng.normal(size=4), t, s, sigma, alpha_bar))
    return calls


# ---- 9.3 -----------------------------------------------------------------------------------------


def ddim_step(x_t, t, s, eps, z, eta, alpha_bar):
    """Predicted x_0, direction, noise; at s = 0 the last two factors are 0."""
    x0 = (x_t - (1 - alpha_bar[t]) ** 0.5 * eps) / alpha_bar[t] ** 0.5
    beta = 1 - alpha_bar[t] / alpha_bar[s]
    variance = eta**2 * (1 - alpha_bar[s]) / (1 - alpha_bar[t]) * beta
    direction = (1 - alpha_bar[s] - variance) ** 0.5 * eps
    return alpha_bar[s] ** 0.5 * x0 + direction + variance**0.5 * z


def _step(x_t, s, eps, z, variance, cut, alpha_bar, t):
    x0 = (x_t - (1 - alpha_bar[t]) ** 0.5 * eps) / alpha_bar[t] ** 0.5
    direction = (1 - alpha_bar[s] - cut) ** 0.5 * eps
    return alpha_bar[s] ** 0.5 * x0 + direction + variance**0.5 * z


def _tilde(t, s, alpha_bar):
    return (1 - alpha_bar[s]) / (1 - alpha_bar[t]) * (1 - alpha_bar[t] / alpha_bar[s])


def _direction_not_cut(x_t, t, s, eps, z, eta, alpha_bar):
    variance = eta**2 * _tilde(t, s, alpha_bar)
    return _step(x_t, s, eps, z, variance, 0 * variance, alpha_bar, t)


def _eta_not_squared(x_t, t, s, eps, z, eta, alpha_bar):
    variance = eta * _tilde(t, s, alpha_bar)
    return _step(x_t, s, eps, z, variance, variance, alpha_bar, t)


def _beta_of_one_step(x_t, t, s, eps, z, eta, alpha_bar):
    beta = 1 - alpha_bar[t] / alpha_bar[t - 1]
    variance = eta**2 * (1 - alpha_bar[s]) / (1 - alpha_bar[t]) * beta
    return _step(x_t, s, eps, z, variance, variance, alpha_bar, t)


def _variance_times_z(x_t, t, s, eps, z, eta, alpha_bar):
    variance = eta**2 * _tilde(t, s, alpha_bar)
    return _step(x_t, s, eps, z, variance**2, variance, alpha_bar, t)


def _x0_not_shrunk(x_t, t, s, eps, z, eta, alpha_bar):
    x0 = (x_t - (1 - alpha_bar[t]) ** 0.5 * eps) / alpha_bar[t] ** 0.5
    return ddim_step(x_t, t, s, eps, z, eta, alpha_bar) + (1 - alpha_bar[s] ** 0.5) * x0


def _updates(rng):
    T = int(rng.integers(5, 11))
    alpha_bar = _strong_chain(rng, T)
    calls = []
    for t, s in [(1, 0), (2, 1), (T, T - 1), (T, 1), (4, 2), (T, 0)]:
        x_t, eps, z = rng.normal(size=(3, 4))
        calls.append((x_t, t, s, eps, z, float(rng.uniform(0.3, 0.8)), alpha_bar))
    return [*calls, (*calls[3][:5], 0.0, alpha_bar), (*calls[4][:5], 1.0, alpha_bar)]


# ---- 9.4 -----------------------------------------------------------------------------------------


def trailing_steps(T, S):
    """From T down, in even strides that need not be whole numbers."""
    return torch.tensor([round(T - i * T / S) for i in range(S)])


def _upwards(T, S):
    return trailing_steps(T, S).flip(0)


def _leading(T, S):
    return torch.tensor([1 + i * (T // S) for i in range(S)]).flip(0)


def _whole_strides(T, S):
    return torch.tensor([T - i * (T // S) for i in range(S)])


def _down_to_one(T, S):
    return torch.linspace(T, 1, S).round().long()


def _ends_at_0(T, S):
    return torch.tensor([round(T - (i + 1) * T / S) for i in range(S)])


def _lengths(rng):
    """S is odd, so that no step is a half; it does not divide T."""
    calls = []
    for S in (3, 5, 7):
        T = int(S * rng.integers(3, 8) + rng.integers(1, S))
        calls.append((T, S))
    return [*calls, (int(rng.integers(20, 60)) * 9, 9)]


# ---- 9.6 -----------------------------------------------------------------------------------------


def arc(a, b, share):
    """Two sines over the sine of the whole angle."""
    angle = ((a @ b) / ((a @ a) ** 0.5 * (b @ b) ** 0.5)).acos()
    return (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / angle.sin()


def _angle(a, b):
    return ((a @ b) / ((a @ a) ** 0.5 * (b @ b) ** 0.5)).acos()


def _straight(a, b, share):
    return (1 - share) * a + share * b


def _not_divided(a, b, share):
    return arc(a, b, share) * _angle(a, b).sin()


def _cosine_for_angle(a, b, share):
    angle = _angle(a, b).cos()
    return (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / angle.sin()


def _as_if_orthogonal(a, b, share):
    quarter = torch.pi / 2
    return float(np.sin((1 - share) * quarter)) * a + float(np.sin(share * quarter)) * b


def _pairs(rng):
    """Vectors of different lengths at angles between 60 and 70 or 110 and 130 degrees."""
    calls = []
    for low, high in ((60, 70), (110, 130), (60, 70), (110, 130)):
        a, other = np.linalg.qr(rng.normal(size=(6, 2)))[0].T
        angle = np.deg2rad(rng.uniform(low, high))
        b = np.cos(angle) * a + np.sin(angle) * other
        share = float(rng.choice([rng.uniform(0.15, 0.35), rng.uniform(0.65, 0.85)]))
        calls.append((rng.uniform(1, 2) * a, rng.uniform(1, 2) * b, share))
    return calls


# ---- 9.7 -----------------------------------------------------------------------------------------


def ddim_sample(denoiser, x_T, steps, eta, noises, alpha_bar):
    """One update for each pair of neighbours in the list, the last pair being (τ_1, 0)."""
    x = x_T
    for t, s in zip(steps, [*steps[1:], 0], strict=True):
        eps = denoiser(x, torch.full((len(x),), t))
        x0 = (x - (1 - alpha_bar[t]) ** 0.5 * eps) / alpha_bar[t] ** 0.5
        beta = 1 - alpha_bar[t] / alpha_bar[s]
        variance = eta**2 * (1 - alpha_bar[s]) / (1 - alpha_bar[t]) * beta
        direction = (1 - alpha_bar[s] - variance) ** 0.5 * eps
        x = alpha_bar[s] ** 0.5 * x0 + direction + variance**0.5 * noises[t]
    return x


def _stopped_early(denoiser, x_T, steps, eta, noises, alpha_bar):
    x = x_T
    for t, s in pairwise(steps):
        eps = denoiser(x, torch.full((len(x),), t))
        x = ddim_step(x, t, s, eps, noises[t], eta, alpha_bar)
    return x


def _told_its_place(denoiser, x_T, steps, eta, noises, alpha_bar):
    x = x_T
    for i, (t, s) in enumerate(zip(steps, [*steps[1:], 0], strict=True)):
        eps = denoiser(x, torch.full((len(x),), len(steps) - i))
        x = ddim_step(x, t, s, eps, noises[t], eta, alpha_bar)
    return x


def _one_step_down(denoiser, x_T, steps, eta, noises, alpha_bar):
    x = x_T
    for t in steps:
        eps = denoiser(x, torch.full((len(x),), t))
        x = ddim_step(x, t, t - 1, eps, noises[t], eta, alpha_bar)
    return x


def _told_where_it_goes(denoiser, x_T, steps, eta, noises, alpha_bar):
    x = x_T
    for t, s in zip(steps, [*steps[1:], 0], strict=True):
        eps = denoiser(x, torch.full((len(x),), s))
        x = ddim_step(x, t, s, eps, noises[t], eta, alpha_bar)
    return x


def _without_noise(denoiser, x_T, steps, eta, noises, alpha_bar):
    return ddim_sample(denoiser, x_T, steps, eta, 0 * noises, alpha_bar)


def _walks(rng):
    calls = []
    for _ in range(3):
        T = int(rng.integers(7, 11))
        slopes, shifts = rng.uniform(0.3, 0.9, T + 1), rng.uniform(-0.8, 0.8, T + 1)
        network = Stepwise(tuple(slopes.tolist()), tuple(shifts.tolist()))
        middle = sorted(rng.choice(np.arange(4, T), 2, replace=False).tolist(), reverse=True)
        steps = [T, *middle, 2]
        noises = rng.normal(size=(T + 1, 5, 3))
        eta = float(rng.uniform(0.4, 1.0))
        calls.append((network, rng.normal(size=(5, 3)), steps, eta, noises, _strong_chain(rng, T)))
    return calls


EXERCISES = [
    Exercise(
        id="9.1",
        title="A member of the family",
        kind="formula",
        points=2,
        minutes=10,
        difficulty=1,
        equation="9.4",
        inputs=_members,
        reference=family_step,
        wrong={
            "noise-not-cut": (
                _noise_not_cut,
                "The fresh noise comes on top of all the old noise. The old one must be cut to "
                "1 − ᾱ_s − σ², or the variances do not add up to 1 − ᾱ_s, see (9.8).",
            ),
            "displacement-for-noise": (
                _displacement_for_noise,
                "x_t − √ᾱ_t·x_0 is the noise times √(1 − ᾱ_t). Divide by that, see (9.4).",
            ),
            "level-of-t": (
                _level_of_t,
                "x_0 stands at the level where you arrive: its factor is √ᾱ_s, not √ᾱ_t.",
            ),
            "deviations-subtracted": (
                _deviations_subtracted,
                "Variances add, standard deviations do not: √(1 − ᾱ_s − σ²) is not √(1 − ᾱ_s) − σ.",
            ),
            **variance_as_std(family_step, value=1, see="9.4"),
        },
        hints=(
            "First the noise in x_t, by (9.1). The rest is (9.4).",
            "The mean is √ᾱ_s·x_0 plus a factor times that noise. All numbers but σ come from "
            "alpha_bar[t] and alpha_bar[s].",
            "noise = (x_t − √ᾱ_t·x0)/√(1 − ᾱ_t); mean = √ᾱ_s·x0 + √(1 − ᾱ_s − σ²)·noise; the "
            "variance is σ².",
        ),
    ),
    Exercise(
        id="9.2",
        title="Predict the number",
        kind="number",
        points=1,
        minutes=5,
        difficulty=1,
        equation="9.4",
        reference=0.4,
        tolerance=1e-3,
        wrong={
            "not-cut": (0.5, "That is √(1 − ᾱ_s). The fresh noise takes its share, see (9.4)."),
            "no-root": (0.16, "That is the variance that is left; the factor is its root."),
            "deviations-subtracted": (0.2, "Variances are subtracted, not deviations."),
            "factor-of-the-difference": (
                0.4 / 0.9,
                "That is c_t^σ of (9.7), the factor of x_t − √ᾱ_t·x_0. ε itself is that "
                "difference over √(1 − ᾱ_t).",
            ),
            "added": (0.34**0.5, "You added σ²; the fresh noise leaves less room for the old."),
        },
        hints=(
            "Only ᾱ_s and σ are needed.",
            "The variance 1 − ᾱ_s is made of fresh noise, σ², and old noise.",
            "√(0.25 − 0.09).",
        ),
    ),
    Exercise(
        id="9.3",
        title="Your own update",
        kind="code",
        points=3,
        minutes=15,
        difficulty=2,
        equation="9.14",
        inputs=_updates,
        reference=ddim_step,
        wrong={
            "direction-not-cut": (
                _direction_not_cut,
                "The direction has the factor √(1 − ᾱ_s − σ²); you left out the σ², so the noise "
                "grows with every step.",
            ),
            "eta-not-squared": (
                _eta_not_squared,
                "η multiplies the standard deviation, so the variance has η², see (9.9).",
            ),
            "beta-of-one-step": (
                _beta_of_one_step,
                "You used the β of one step, 1 − ᾱ_t/ᾱ_{t−1}. For a step to s it is 1 − ᾱ_t/ᾱ_s, "
                "see (9.9).",
            ),
            "variance-times-z": (
                _variance_times_z,
                "z is multiplied by the standard deviation σ, and you used the variance.",
            ),
            "x0-not-shrunk": (
                _x0_not_shrunk,
                "The predicted x_0 enters at level s: multiply it by √ᾱ_s, see (9.14).",
            ),
        },
        hints=(
            "Four lines: the guess of x_0, the variance, the direction, the sum.",
            "The guess is (4.21), with ᾱ_t. The variance is (9.9), with ᾱ_t and ᾱ_s.",
            "√ᾱ_s·x0 + √(1 − ᾱ_s − variance)·eps + √variance·z, where variance = "
            "eta²·(1 − ᾱ_s)/(1 − ᾱ_t)·(1 − ᾱ_t/ᾱ_s).",
        ),
    ),
    Exercise(
        id="9.4",
        title="Your own grid",
        kind="code",
        points=2,
        minutes=10,
        difficulty=1,
        equation="9.17",
        inputs=_lengths,
        reference=trailing_steps,
        wrong={
            "upwards": (_upwards, "The steps are right, but the sampler visits them from T down."),
            "leading": (
                _leading,
                "These are the leading steps: the walk would start below T with pure noise.",
            ),
            "whole-strides": (
                _whole_strides,
                "The stride T/S need not be a whole number: round each step, not the stride.",
            ),
            "down-to-one": (
                _down_to_one,
                "These go from T to 1. The trailing grid's lowest step is a whole stride from 0.",
            ),
            "ends-at-0": (
                _ends_at_0,
                "You start one stride below T and end at 0. The first step is T itself, i = 0; "
                "0 is not on the list, the network is never asked there.",
            ),
        },
        hints=(
            "The first is T and the distance between two is T/S, before rounding.",
            "round(T − i·T/S) for i = 0, …, S − 1.",
            "torch.tensor([round(T − i * T / S) for i in range(S)]).",
        ),
    ),
    Exercise(
        id="9.5",
        title="Explain",
        kind="explain",
        points=3,
        minutes=15,
        difficulty=2,
        equation="9.6",
        reference=(
            "The mistake is to read off the forward process from the sampler's noise. With η = 0 "
            "no fresh noise is added on the way back, given x_0; but the joint law of the family "
            "starts from a noisy x_T, and by the theorem (9.6) every x_t given x_0 is "
            "√ᾱ_t·x_0 plus Gaussian noise of variance 1 − ᾱ_t, for every member, η = 0 included. "
            "The noise is the same ε at all levels, carried along instead of drawn again. So at "
            "each step the network is asked about x_t with the very law on which it was trained, "
            "and the training loss, which depends on the pairs (x_0, x_t) alone, does not "
            "distinguish the two. What differs is the relation of x_t to x_{t−1}, which the "
            "network never sees, neither in training nor in sampling. What is true in the worry: "
            "the theorem supposes that x_0 is known; when sampling, the network's guess takes its "
            "place, so with an imperfect network or long steps the law of x_t drifts from the "
            "marginal, and with η = 0 no fresh noise corrects the drift. How much that matters "
            "has to be measured, as a function of the number of steps."
        ),
        rubric=(
            "Separates the fresh noise of the backward step (σ) from the noise in x_t.",
            "States that every member has the marginals q(x_t | x_0), so x_t is as noisy as in "
            "training.",
            "Says that the loss depends on the pairs (x_0, x_t) only.",
            "Says what does differ: the joint law of x_t and x_{t−1} (one shared noise).",
            "Names a limit: x̂_0 in the place of x_0, so errors accumulate; to be measured.",
        ),
        hints=(
            "Which noise is zero at η = 0: that in x_t, or that which a step adds?",
            "What does (9.6) say about x_t at η = 0? Compare it with what training feeds in.",
            "For the last question: the theorem knows x_0. What does the sampler know?",
        ),
    ),
    Exercise(
        id="9.6",
        title="Along the arc",
        kind="formula",
        points=2,
        minutes=12,
        difficulty=2,
        equation="9.23",
        inputs=_pairs,
        reference=arc,
        wrong={
            "straight": (_straight, "That is the straight line, which is too short half way."),
            "not-divided": (_not_divided, "Divide both weights by the sine of the whole angle."),
            "cosine-for-angle": (
                _cosine_for_angle,
                "You used the cosine of the angle as if it were the angle: take acos.",
            ),
            "exchanged": (
                lambda a, b, share: arc(b, a, share),
                "The ends are exchanged: share 0 gives a, share 1 gives b.",
            ),
            "as-if-orthogonal": (
                _as_if_orthogonal,
                "You took the angle for a right one. It is nearly so in many dimensions only.",
            ),
        },
        hints=(
            "You need the angle first: its cosine is the scalar product of the two directions.",
            "cos ϑ = a·b/(|a||b|), with a·b = a @ b; then (9.23).",
            "(sin((1 − share)·ϑ)·a + sin(share·ϑ)·b)/sin ϑ.",
        ),
    ),
    Exercise(
        id="9.7",
        title="Your own DDIM",
        kind="code",
        points=4,
        minutes=25,
        difficulty=3,
        equation="9.16",
        inputs=_walks,
        reference=ddim_sample,
        wrong={
            "stopped-early": (
                _stopped_early,
                "You stopped at τ_1. The last step goes from there to 0.",
            ),
            "told-its-place": (
                _told_its_place,
                "The network must be told the original step number t, not its place in the list.",
            ),
            "one-step-down": (
                _one_step_down,
                "Each step has to go to the next number on the list, not to t − 1.",
            ),
            "told-where-it-goes": (
                _told_where_it_goes,
                "The network is asked about x_t, so it is told t; you told it s.",
            ),
            "without-noise": (
                _without_noise,
                "You left out the fresh noise: the step from t adds σ·noises[t].",
            ),
        },
        hints=(
            "The pairs (t, s) are zip(steps, [*steps[1:], 0]).",
            "In the loop: ask the network about (x, t), with torch.full((len(x),), t) for t; then "
            "one update with noises[t].",
            "x = ddim_step(x, t, s, eps, noises[t], eta, alpha_bar), and after the loop return x.",
        ),
    ),
]

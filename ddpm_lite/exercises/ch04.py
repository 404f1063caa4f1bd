"""The exercises of chapter 4."""

from __future__ import annotations

import numpy as np
import torch

from ddpm_lite.exercises.exercise import Exercise
from ddpm_lite.exercises.mistakes import known, variance_as_std


def _strong_chain(rng, T):
    """ᾱ_0..ᾱ_T of a short chain with large steps, on which a slip shows."""
    return np.concatenate([[1.0], np.cumprod(1 - rng.uniform(0.05, 0.6, T))])


# ---- 4.1 -----------------------------------------------------------------------------------------


def reverse_on_grid(x_t, places, before, ratio):
    """Forward step times q(x_s), at the places, divided by its integral."""
    product = torch.exp(-((x_t - ratio**0.5 * places) ** 2) / (2 * (1 - ratio))) * before
    return product / torch.trapezoid(product, places)


def _bell(x, mean, variance):
    return torch.exp(-((x - mean) ** 2) / (2 * variance)) / (2 * torch.pi * variance) ** 0.5


def _normalised(density, places):
    return density / torch.trapezoid(density, places)


def _as_probabilities(x_t, places, before, ratio):
    product = _bell(x_t, ratio**0.5 * places, 1 - ratio) * before
    return product / product.sum()


def _grids(rng):
    """Two-humped q(x_s) on a grid, of random places and widths."""
    places = np.linspace(-6.0, 6.0, 241)
    calls = []
    for _ in range(6):
        weight, width = rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.6)
        left, right = np.exp(
            -0.5 * ((places - rng.uniform([-1.8, 0.8], [-0.8, 1.8])[:, None]) / width) ** 2
        )
        before = (weight * left + (1 - weight) * right) / (width * np.sqrt(2 * np.pi))
        calls.append((rng.uniform(-1.2, 1.2), places, before, rng.uniform(0.3, 0.8)))
    return calls


# ---- 4.2 -----------------------------------------------------------------------------------------


def posterior(x_t, x0, t, s, alpha_bar):
    """Mean and variance of q(x_s | x_t, x_0), from ᾱ_t and ᾱ_s alone."""
    ratio = alpha_bar[t] / alpha_bar[s]
    beta = 1 - ratio
    weight_x0 = alpha_bar[s] ** 0.5 * beta / (1 - alpha_bar[t])
    weight_xt = ratio**0.5 * (1 - alpha_bar[s]) / (1 - alpha_bar[t])
    variance = (1 - alpha_bar[s]) / (1 - alpha_bar[t]) * beta
    return weight_x0 * x0 + weight_xt * x_t, variance


def _with_one_step_beta(x_t, x0, t, s, alpha_bar):
    alpha = alpha_bar[t] / alpha_bar[t - 1]
    weight_x0 = alpha_bar[s] ** 0.5 * (1 - alpha) / (1 - alpha_bar[t])
    weight_xt = alpha**0.5 * (1 - alpha_bar[s]) / (1 - alpha_bar[t])
    return weight_x0 * x0 + weight_xt * x_t, (1 - alpha_bar[s]) / (1 - alpha_bar[t]) * (1 - alpha)


def _with_forward_variance(x_t, x0, t, s, alpha_bar):
    return posterior(x_t, x0, t, s, alpha_bar)[0], 1 - alpha_bar[t] / alpha_bar[s]


def _weights_exchanged(x_t, x0, t, s, alpha_bar):
    return posterior(x0, x_t, t, s, alpha_bar)


def _one_minus_the_other(x_t, x0, t, s, alpha_bar):
    beta = 1 - alpha_bar[t] / alpha_bar[s]
    weight_x0 = alpha_bar[s] ** 0.5 * beta / (1 - alpha_bar[t])
    return weight_x0 * x0 + (1 - weight_x0) * x_t, posterior(x_t, x0, t, s, alpha_bar)[1]


def _pairs_of_steps(rng):
    """Every kind of pair: the first step, the last one, a long stride, a stride to 0."""
    T = int(rng.integers(5, 13))
    alpha_bar = _strong_chain(rng, T)
    middle = int(rng.integers(3, T))
    pairs = [(1, 0), (2, 1), (T, T - 1), (T, 1), (middle, 1), (middle, 0), (T, middle), (4, 2)]
    return [(rng.normal(size=3), rng.normal(size=3), t, s, alpha_bar) for t, s in pairs]


# ---- 4.3 -----------------------------------------------------------------------------------------


def mean_from_eps(x_t, eps, alpha_bar_t, alpha_bar_s):
    """Take away the share of the noise that the step brought, and undo the shrinking."""
    ratio = alpha_bar_t / alpha_bar_s
    return (x_t - (1 - ratio) / (1 - alpha_bar_t) ** 0.5 * eps) / ratio**0.5


def _all_the_noise(x_t, eps, alpha_bar_t, alpha_bar_s):
    return (x_t - (1 - alpha_bar_t) ** 0.5 * eps) / (alpha_bar_t / alpha_bar_s) ** 0.5


def _noise_of_the_step(x_t, eps, alpha_bar_t, alpha_bar_s):
    ratio = alpha_bar_t / alpha_bar_s
    return (x_t - (1 - ratio) ** 0.5 * eps) / ratio**0.5


def _divided_by_alpha_bar(x_t, eps, alpha_bar_t, alpha_bar_s):
    beta = 1 - alpha_bar_t / alpha_bar_s
    return (x_t - beta / (1 - alpha_bar_t) ** 0.5 * eps) / alpha_bar_t**0.5


def _no_noise_level(x_t, eps, alpha_bar_t, alpha_bar_s):
    ratio = alpha_bar_t / alpha_bar_s
    return (x_t - (1 - ratio) * eps) / ratio**0.5


def _noise_added(x_t, eps, alpha_bar_t, alpha_bar_s):
    return mean_from_eps(x_t, -eps, alpha_bar_t, alpha_bar_s)


def _levels(rng):
    """Pairs ᾱ_t < ᾱ_s, the last with s = 0, as (ᾱ_t, ᾱ_s)."""
    later = [*rng.uniform(0.4, 0.95, 6), 1.0]
    return [(earlier * rng.uniform(0.3, 0.8), earlier) for earlier in later]


# ---- 4.5 -----------------------------------------------------------------------------------------


def best_variance(alpha_bar_t, alpha_bar_s, V):
    """Between β̃ and β/ᾱ_{t|s}, as far up as the noise is unpredictable."""
    ratio = alpha_bar_t / alpha_bar_s
    beta = 1 - ratio
    tilde = (1 - alpha_bar_s) / (1 - alpha_bar_t) * beta
    share = alpha_bar_t * V / (alpha_bar_t * V + 1 - alpha_bar_t)
    return (1 - share) * tilde + share * beta / ratio


def _tilde(alpha_bar_t, alpha_bar_s, V):
    return (1 - alpha_bar_s) / (1 - alpha_bar_t) * (1 - alpha_bar_t / alpha_bar_s)


def _forward(alpha_bar_t, alpha_bar_s, V):
    return 1 - alpha_bar_t / alpha_bar_s


def _up_to_beta(alpha_bar_t, alpha_bar_s, V):
    share = alpha_bar_t * V / (alpha_bar_t * V + 1 - alpha_bar_t)
    tilde = _tilde(alpha_bar_t, alpha_bar_s, V)
    return (1 - share) * tilde + share * _forward(alpha_bar_t, alpha_bar_s, V)


def _nothing_learned(alpha_bar_t, alpha_bar_s, V):
    weight_x0 = alpha_bar_s**0.5 * _forward(alpha_bar_t, alpha_bar_s, V) / (1 - alpha_bar_t)
    return _tilde(alpha_bar_t, alpha_bar_s, V) + weight_x0**2 * V


def _shares_exchanged(alpha_bar_t, alpha_bar_s, V):
    tilde = _tilde(alpha_bar_t, alpha_bar_s, V)
    upper = _forward(alpha_bar_t, alpha_bar_s, V) * alpha_bar_s / alpha_bar_t
    return tilde + upper - best_variance(alpha_bar_t, alpha_bar_s, V)


# ---- 4.7 -----------------------------------------------------------------------------------------


def from_v(x_t, v, alpha_bar_t):
    """Turn (x_t, v) back by the angle: the transpose of the rotation."""
    cos, sin = alpha_bar_t**0.5, (1 - alpha_bar_t) ** 0.5
    return cos * x_t - sin * v, sin * x_t + cos * v


def _turned_on(x_t, v, alpha_bar_t):
    cos, sin = alpha_bar_t**0.5, (1 - alpha_bar_t) ** 0.5
    return cos * x_t + sin * v, cos * v - sin * x_t


def _exchanged(x_t, v, alpha_bar_t):
    x0, eps = from_v(x_t, v, alpha_bar_t)
    return eps, x0


def _no_roots(x_t, v, alpha_bar_t):
    return alpha_bar_t * x_t - (1 - alpha_bar_t) * v, (1 - alpha_bar_t) * x_t + alpha_bar_t * v


def _v_taken_for_eps(x_t, v, alpha_bar_t):
    return (x_t - (1 - alpha_bar_t) ** 0.5 * v) / alpha_bar_t**0.5, v


# ---- 4.8 -----------------------------------------------------------------------------------------


def x0_from_eps(x_t, t, eps, alpha_bar):
    """Take the noise away and undo the shrinking."""
    return (x_t - (1 - alpha_bar[t]) ** 0.5 * eps) / alpha_bar[t] ** 0.5


def _not_stretched(x_t, t, eps, alpha_bar):
    return x_t - (1 - alpha_bar[t]) ** 0.5 * eps


def _without_roots(x_t, t, eps, alpha_bar):
    return (x_t - (1 - alpha_bar[t]) * eps) / alpha_bar[t]


def _with_alpha(x_t, t, eps, alpha_bar):
    alpha = alpha_bar[t] / alpha_bar[t - 1]
    return (x_t - (1 - alpha) ** 0.5 * eps) / alpha**0.5


def _noise_put_in(x_t, t, eps, alpha_bar):
    return x0_from_eps(x_t, t, -eps, alpha_bar)


def _every_step(rng):
    T = int(rng.integers(4, 10))
    alpha_bar = _strong_chain(rng, T)
    return [(rng.normal(size=3), t, rng.normal(size=3), alpha_bar) for t in range(1, T + 1)]


EXERCISES = [
    Exercise(
        id="4.1",
        title="Turn a step around",
        kind="code",
        points=3,
        minutes=15,
        difficulty=2,
        equation="4.1",
        inputs=_grids,
        reference=reverse_on_grid,
        wrong={
            "not-normalised": (
                lambda x_t, places, before, ratio: (
                    _bell(x_t, ratio**0.5 * places, 1 - ratio) * before
                ),
                "Its integral over the places is q(x_t), not 1: divide by it.",
            ),
            "sums-to-one": (
                _as_probabilities,
                "Your numbers sum to 1, like probabilities. A density integrates to 1: divide by "
                "the sum times the spacing of the grid.",
            ),
            "step-not-turned": (
                lambda x_t, places, before, ratio: _normalised(
                    _bell(places, ratio**0.5 * x_t, 1 - ratio) * before, places
                ),
                "You put x_t where the forward step has x_s. The bell is centred at √ratio·x_s "
                "and is evaluated at x_t.",
            ),
            "root-dropped": (
                lambda x_t, places, before, ratio: _normalised(
                    _bell(x_t, ratio * places, 1 - ratio) * before, places
                ),
                "The forward step multiplies x_s by the square root of the ratio, see (3.23).",
            ),
            "variance-as-std": (
                lambda x_t, places, before, ratio: _normalised(
                    _bell(x_t, ratio**0.5 * places, (1 - ratio) ** 2) * before, places
                ),
                "1 − ratio is the variance of the forward step; you used it as the standard "
                "deviation.",
            ),
        },
        hints=(
            "For each place x_s: how probable is the jump from there to x_t? That is a number "
            "per place.",
            "The forward density is that of a Gaussian with mean √ratio·x_s and variance 1 − "
            "ratio, evaluated at x_t. Multiply it by `before`.",
            "A factor that is the same for all places may be left out, q(x_t) too: divide at the "
            "end by torch.trapezoid(product, places).",
        ),
    ),
    Exercise(
        id="4.2",
        title="Your own posterior",
        kind="code",
        points=3,
        minutes=20,
        difficulty=2,
        equation="4.18",
        inputs=_pairs_of_steps,
        reference=posterior,
        wrong={
            "one-step-beta": (
                _with_one_step_beta,
                "You used the β of one step, 1 − ᾱ_t/ᾱ_{t−1}, for a jump from s to t: β_{t|s} is "
                "1 − ᾱ_t/ᾱ_s, see (4.17).",
            ),
            **known("beta-for-beta-tilde", _with_forward_variance, see="4.18"),
            "weights-exchanged": (
                _weights_exchanged,
                "The two weights are exchanged. At s = 0 the mean must be x_0, see (4.20).",
            ),
            "one-minus-the-other": (
                _one_minus_the_other,
                "You took one minus the weight of x_0 for the weight of x_t. They do not sum to "
                "one, see (4.24).",
            ),
            **variance_as_std(posterior, value=1, see="4.18"),
        },
        hints=(
            "All you need are the two numbers alpha_bar[t] and alpha_bar[s].",
            "First the ratio ᾱ_t/ᾱ_s and β = 1 − ratio; then the three fractions of "
            "(4.18), all over 1 − ᾱ_t.",
            "The weight of x_0 is √ᾱ_s·β/(1 − ᾱ_t), the weight of x_t is √ratio·(1 − ᾱ_s)/(1 − "
            "ᾱ_t), the variance (1 − ᾱ_s)·β/(1 − ᾱ_t).",
        ),
    ),
    Exercise(
        id="4.3",
        title="The sampler's line",
        kind="formula",
        points=2,
        minutes=10,
        difficulty=2,
        equation="4.23",
        inputs=lambda rng: [
            (rng.normal(size=3), rng.normal(size=3), *pair) for pair in _levels(rng)
        ],
        reference=mean_from_eps,
        wrong={
            "all-the-noise": (
                _all_the_noise,
                "You took away all the noise in x_t. The step takes the share β/(1 − ᾱ_t) of it, "
                "see (4.23).",
            ),
            "noise-of-the-step": (
                _noise_of_the_step,
                "√β·ε would be the noise that the last step added by itself. ε is all the noise "
                "in x_t; its factor is β/√(1 − ᾱ_t), see (4.23).",
            ),
            "divided-by-alpha-bar": (
                _divided_by_alpha_bar,
                "Dividing by √ᾱ_t undoes the shrinking all the way to x_0. Go back to x_s only: "
                "divide by √(ᾱ_t/ᾱ_s).",
            ),
            "no-noise-level": (
                _no_noise_level,
                "The factor of ε is β/√(1 − ᾱ_t); you left out the root below.",
            ),
            "noise-added": (_noise_added, "You added the noise; it has to be taken away."),
        },
        hints=(
            "It is (4.23). With s = t − 1 every DDPM sampler contains this line.",
            "ratio = alpha_bar_t / alpha_bar_s plays the part of α, and 1 − ratio that of β.",
            "(x_t − (1 − ratio)/√(1 − alpha_bar_t)·eps)/√ratio.",
        ),
    ),
    Exercise(
        id="4.4",
        title="Predict the number",
        kind="number",
        points=1,
        minutes=5,
        difficulty=1,
        equation="4.26",
        reference=(1 - 0.9**2) / (1 - 0.9**3),
        tolerance=1e-3,
        wrong={
            "small-beta": (
                2 / 3,
                "That is (t − 1)/t, the limit of very small β. With β = 0.1 each step also "
                "shrinks the older noise, see (4.26).",
            ),
            "inverted": (
                (1 - 0.9**3) / (1 - 0.9**2),
                "That is above 1: the fraction stands on its head, see (4.26).",
            ),
            "not-a-ratio": (
                0.1 * (1 - 0.9**2) / (1 - 0.9**3),
                "That is the posterior's variance itself; divide by β.",
            ),
            "one-step-early": (
                (1 - 0.9) / (1 - 0.9**2),
                "That is the ratio at t = 2. ᾱ_t counts t steps, and ᾱ_0 = 1.",
            ),
            "roots": (
                ((1 - 0.9**2) / (1 - 0.9**3)) ** 0.5,
                "That is the ratio of the standard deviations; the question is about variances.",
            ),
        },
        hints=(
            "The β in front cancels: (4.26) needs two noise levels only.",
            "1 − ᾱ_2 and 1 − ᾱ_3, with ᾱ_t = 0.9^t.",
            "0.19 divided by 0.271.",
        ),
    ),
    Exercise(
        id="4.5",
        title="The best variance for Gaussian data",
        kind="formula",
        points=3,
        minutes=15,
        difficulty=3,
        equation="4.32",
        inputs=lambda rng: [
            (*pair, V) for pair, V in zip(_levels(rng), rng.uniform(0.2, 6.0, 7), strict=True)
        ],
        reference=best_variance,
        wrong={
            "x0-known": (
                _tilde,
                "That is the variance if x_0 were known. Here it is not: something is added, see "
                "(4.29).",
            ),
            **known(
                "beta-for-beta-tilde",
                _forward,
                "That is β_{t|s}. It is the best variance for V = 1 only, see (4.34).",
            ),
            "up-to-beta": (
                _up_to_beta,
                "The upper end is not β but β/ᾱ_{t|s}, see (4.31).",
            ),
            "nothing-learned": (
                _nothing_learned,
                "You used V, the variance of x_0 before looking. Seeing x_t makes it smaller: "
                "use Var[x_0 | x_t], see (4.29).",
            ),
            "shares-exchanged": (
                _shares_exchanged,
                "The two shares are exchanged: the unpredictable one goes with the upper end, "
                "see (4.32).",
            ),
        },
        hints=(
            "For these data (4.33) is an equality: it gives the unpredictable share of the noise.",
            "With it (4.32) mixes two numbers, the posterior variance and β/ratio, where "
            "ratio = alpha_bar_t / alpha_bar_s.",
            "share = alpha_bar_t·V/(alpha_bar_t·V + 1 − alpha_bar_t), and the answer is (1 − "
            "share)·posterior variance + share·β/ratio. Check: V = 1 gives β.",
        ),
    ),
    Exercise(
        id="4.6",
        title="Explain",
        kind="explain",
        points=3,
        minutes=15,
        difficulty=2,
        equation="4.2",
        reference=(
            "It is true that each forward step q(x_t | x_{t-1}) is Gaussian, and true that "
            "q(x_{t-1} | x_t, x_0) is Gaussian exactly. The argument fails where it applies "
            "Bayes' rule 'for Gaussians': the rule for q(x_{t-1} | x_t) has three factors, and "
            "one of them is q(x_{t-1}), the law of noised data, which is a Gaussian only if the "
            "data are. Equivalently, q(x_{t-1} | x_t) is an average of the Gaussians q(x_{t-1} | "
            "x_t, x_0) over the x_0 that may have led to x_t, and an average of Gaussians with "
            "different means is in general no Gaussian; for data with two humps it can have two "
            "humps. If the data were Gaussian, everything the colleague says about shape would "
            "hold: every q(x_{t-1} | x_t) would be Gaussian. In general it is only approximately "
            "so, because a small step confines x_{t-1} to a neighbourhood in which log "
            "q(x_{t-1}) is nearly quadratic; against the Gaussian with the right mean and "
            "variance the KL divergence falls like β³, and with one variance for all x_t like "
            "β². So the number of steps matters for sampling even with a perfect network: fewer, "
            "longer steps mean larger β and a larger error of the Gaussian family itself."
        ),
        rubric=(
            "Says that the forward step, and q(x_{t-1} | x_t, x_0), are exactly Gaussian.",
            "Locates the failure: q(x_{t-1}) (or q(x_0 | x_t), as mixing weights) is not "
            "Gaussian for general data.",
            "Names the condition that would save the argument: Gaussian data.",
            "Says why small steps help (log q nearly quadratic over a step), or quotes the order "
            "β³ or β².",
            "Concludes that the number of steps matters for sampling even with a perfect network.",
        ),
        hints=(
            "Write down Bayes' rule for q(x_{t-1} | x_t) and go through its factors one by one.",
            "Which of them contains the data? Compare (4.1) with (4.5).",
            "Use (4.37) for the exception and (4.39), (4.40) for the number of steps.",
        ),
    ),
    Exercise(
        id="4.7",
        title="Turn back",
        kind="formula",
        points=2,
        minutes=10,
        difficulty=2,
        equation="4.46",
        inputs=lambda rng: [
            (rng.normal(size=4), rng.normal(size=4), x) for x in rng.uniform(0.1, 0.9, 6)
        ],
        reference=from_v,
        wrong={
            "turned-on": (
                _turned_on,
                "You applied the rotation (4.45) once more instead of turning back: the "
                "two signs change places, see (4.46).",
            ),
            "exchanged": (_exchanged, "Both are right, in the wrong order: return (x_0, ε)."),
            "no-roots": (
                _no_roots,
                "Cosine and sine are the roots √ᾱ_t and √(1 − ᾱ_t), see (4.45).",
            ),
            "sign-of-v": (
                lambda x_t, v, alpha_bar_t: from_v(x_t, -v, alpha_bar_t),
                "v is turned round: it is √ᾱ_t·ε − √(1 − ᾱ_t)·x_0, not its negative, see (4.45).",
            ),
            "v-taken-for-eps": (
                _v_taken_for_eps,
                "You read v as if it were ε. v is a combination of ε and x_0, see (4.45).",
            ),
        },
        hints=(
            "(4.45) turns the pair (x_0, ε) by an angle. You want to go the other way.",
            "The inverse of a rotation is its transpose: the two minus signs change places.",
            "x_0 = √ᾱ_t·x_t − √(1 − ᾱ_t)·v, and ε = √(1 − ᾱ_t)·x_t + √ᾱ_t·v.",
        ),
    ),
    Exercise(
        id="4.8",
        title="Your own conversion",
        kind="code",
        points=2,
        minutes=10,
        difficulty=1,
        equation="4.21",
        inputs=_every_step,
        reference=x0_from_eps,
        wrong={
            "not-stretched": (
                _not_stretched,
                "The noise is gone, but what is left is still shrunk: divide by √ᾱ_t, see (4.21).",
            ),
            "no-roots": (
                _without_roots,
                "Both ᾱ_t and 1 − ᾱ_t carry a square root, see (4.21).",
            ),
            **known("alpha-for-alpha-bar", _with_alpha, see="4.21"),
            "noise-added": (_noise_put_in, "You added the noise; it has to be taken away."),
        },
        hints=(
            "Solve x_t = √ᾱ_t·x_0 + √(1 − ᾱ_t)·ε for x_0.",
            "Bring the noise to the other side, then divide.",
            "(x_t − √(1 − alpha_bar[t])·eps)/√alpha_bar[t].",
        ),
    ),
]

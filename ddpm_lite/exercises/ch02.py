"""The exercises of chapter 2, the forward process."""

import math

import numpy as np
import torch

from ddpm_lite.exercises.exercise import Exercise

# ---- 2.1 one step -------------------------------------------------------------------------------


def one_step(x, beta, noise):
    return math.sqrt(1 - beta) * x + math.sqrt(beta) * noise


def _step_inputs(rng):
    return [
        (rng.normal(size=3), float(rng.uniform(0.05, 0.4)), rng.normal(size=3)) for _ in range(8)
    ]


# ---- 2.3 two estimators of one gradient ---------------------------------------------------------


def linear_variances(a, m, V):
    return 0.0, a**2 * (m**2 / V + 2)


def _linear_inputs(rng):
    signs = rng.choice([-1.0, 1.0], size=8)
    return [
        (
            float(sign * rng.uniform(0.5, 2)),
            float(rng.uniform(0.5, 2)),
            float(rng.uniform(0.2, 0.7)),
        )
        for sign in signs
    ]


# ---- 2.4 and 2.6: my_ddpm.py --------------------------------------------------------------------


def _betas(rng):
    """A short, strong chain: what a mistake does to it shows."""
    return rng.uniform(0.05, 0.6, size=int(rng.integers(4, 13)))


def _beta_inputs(rng):
    return [(_betas(rng),) for _ in range(6)]


def alpha_bars(betas):
    return torch.cat([betas.new_ones(1), torch.cumprod(1 - betas, dim=0)])


def _led_by_one(values):
    return torch.cat([values.new_ones(1), values])


def _alpha_bars_power(betas):
    t = torch.arange(1, len(betas) + 1)
    return _led_by_one((1 - betas) ** t)


def forward_step(x, t, noise, alpha_bar):
    alpha = alpha_bar[t] / alpha_bar[t - 1]
    return alpha.sqrt() * x + (1 - alpha).sqrt() * noise


def _forward_inputs(rng):
    calls = []
    for place in ("first", "last", "between", "between", "between", "between"):
        betas = _betas(rng)
        T = len(betas)
        t = {"first": 1, "last": T}.get(place, int(rng.integers(2, T)))
        alpha_bar = np.concatenate([[1.0], np.cumprod(1 - betas)])
        calls.append((rng.normal(size=(2, 3)), t, rng.normal(size=(2, 3)), alpha_bar))
    return calls


def _forward_from_start(x, t, noise, alpha_bar):
    return alpha_bar[t].sqrt() * x + (1 - alpha_bar[t]).sqrt() * noise


def _forward_off_by_one(x, t, noise, alpha_bar):
    alpha = alpha_bar[t + 1] / alpha_bar[t]
    return alpha.sqrt() * x + (1 - alpha).sqrt() * noise


def _forward_variance_as_std(x, t, noise, alpha_bar):
    alpha = alpha_bar[t] / alpha_bar[t - 1]
    return alpha.sqrt() * x + (1 - alpha) * noise


def _forward_no_root(x, t, noise, alpha_bar):
    alpha = alpha_bar[t] / alpha_bar[t - 1]
    return alpha * x + (1 - alpha).sqrt() * noise


# ---- 2.5 the cosine -----------------------------------------------------------------------------


def cosine_alpha_bar(t, T, offset):
    def f(u):
        return math.cos((u / T + offset) / (1 + offset) * math.pi / 2) ** 2

    return f(t) / f(0)


def _cosine_inputs(rng):
    calls = []
    for place in ("start", "end", *["between"] * 8):
        T = int(rng.integers(4, 13))
        t = {"start": 0, "end": T}.get(place, int(rng.integers(1, T)))
        calls.append((t, T, float(rng.uniform(0.1, 0.3))))
    return calls


def _cosine_not_normalised(t, T, offset):
    return math.cos((t / T + offset) / (1 + offset) * math.pi / 2) ** 2


def _cosine_not_squared(t, T, offset):
    return math.sqrt(max(cosine_alpha_bar(t, T, offset), 0.0))


def _cosine_t_not_divided(t, T, offset):
    def f(u):
        return math.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2

    return f(t) / f(0)


def _cosine_fixed_offset(t, T, offset):
    return cosine_alpha_bar(t, T, 0.008)


def _cosine_no_denominator(t, T, offset):
    def f(u):
        return math.cos((u / T + offset) * math.pi / 2) ** 2

    return f(t) / f(0)


# ---- the list -----------------------------------------------------------------------------------

EXERCISES = [
    Exercise(
        id="2.1",
        title="One step",
        kind="code",
        points=1,
        minutes=5,
        difficulty=1,
        equation="2.2",
        inputs=_step_inputs,
        reference=one_step,
        wrong={
            "variance-as-std": (
                lambda x, beta, noise: math.sqrt(1 - beta) * x + beta * noise,
                "You multiplied the noise by its variance β. A "
                "factor of √β gives variance β: see (2.2).",
            ),
            "signal-without-root": (
                lambda x, beta, noise: (1 - beta) * x + math.sqrt(beta) * noise,
                "You multiplied x by α. In (2.2) x carries √α; α is "
                "what its variance is multiplied by.",
            ),
            "no-shrink": (
                lambda x, beta, noise: x + math.sqrt(beta) * noise,
                "You added the noise but did not shrink x first: the "
                "√α in front of x in (2.2) is missing.",
            ),
            "alpha-and-beta-swapped": (
                lambda x, beta, noise: math.sqrt(beta) * x + math.sqrt(1 - beta) * noise,
                "Signal and noise have changed places: β, the small "
                "one, is the noise's share, see (2.1).",
            ),
        },
        hints=(
            "Equation (2.2), with α = 1 − β from (2.1).",
            "Both factors are square roots: the shares α and β are shares of variance.",
            "√(1 − beta) times x, plus √beta times noise.",
        ),
    ),
    Exercise(
        id="2.2",
        title="Where does it settle?",
        kind="number",
        points=1,
        minutes=8,
        difficulty=2,
        equation="2.8",
        reference=0.2,
        tolerance=2.5e-3,
        wrong={
            "variance": (
                0.04,
                "That is the variance at which it settles; the standard deviation is asked for.",
            ),
            "preserved": (
                1.0,
                "That is where the right step (2.2) settles. Put a = √α and b = β into (2.8).",
            ),
            "one-steps-noise": (
                0.0016,
                "β² is the variance that one step adds. It adds up over the steps that are still "
                "remembered: that is what the denominator of (2.8) does.",
            ),
            "both-roots-dropped": (
                math.sqrt(0.0016 / (1 - 0.96**2)),
                "You dropped the root on the signal too. Here a = √0.96, so a² = 0.96 in (2.8).",
            ),
        },
        hints=(
            "Which a and which b has this step, in the form x ← a·x + b·ε?",
            "Equation (2.8) with a² = 1 − β and b = β.",
            "The variance is β²/(1 − (1 − β)) = β. You are asked for its root.",
        ),
    ),
    Exercise(
        id="2.3",
        title="A straight line",
        kind="formula",
        points=2,
        minutes=12,
        difficulty=2,
        equation="2.10",
        inputs=_linear_inputs,
        reference=linear_variances,
        wrong={
            "not-centred": (
                lambda a, m, V: (0.0, a**2 * (m**2 / V + 3)),
                "The second number is E[G²]. A variance is E[G²] "
                "− (E G)², and E G = a, see (2.10).",
            ),
            "fourth-moment-one": (
                lambda a, m, V: (0.0, a**2 * m**2 / V),
                "You took E[ε⁴] = 1. It is 3: see (2.11) with g(ε) = ε³.",
            ),
            "of-the-function": (
                lambda a, m, V: (a**2 * V, a**2 * (m**2 / V + 2)),
                "The first number is the variance of h(x) = a·x. The "
                "pathwise estimator is h′(x), see (2.9).",
            ),
            "constant-not-centred": (
                lambda a, m, V: (a**2, a**2 * (m**2 / V + 2)),
                "The first number is E[G²]. The pathwise estimator is h′(x) = a at every draw, and "
                "what never changes has no variance.",
            ),
            "variance-as-std": (
                lambda a, m, V: (0.0, a**2 * (m**2 / V**2 + 2 / V)),
                "(x − m)/V is ε/√V, not ε/V: x − m = √V·ε. See (2.10).",
            ),
        },
        hints=(
            "Write both estimators for h(x) = a·x, from (2.9) "
            "and (2.10). One of them is not random.",
            "The other is a·(m + √V·ε)·ε/√V. Square it; odd powers of ε average to zero.",
            "E[G²] = a²·(m²·E[ε²] + V·E[ε⁴])/V; then subtract a².",
        ),
    ),
    Exercise(
        id="2.4",
        title="Your own table",
        kind="code",
        points=2,
        minutes=10,
        difficulty=1,
        equation="2.15",
        inputs=_beta_inputs,
        reference=alpha_bars,
        wrong={
            "no-entry-for-clean-data": (
                lambda betas: torch.cumprod(1 - betas, dim=0),
                "Your table starts at t = 1. Entry t belongs to "
                "step t, so entry 0 is 1, for clean data.",
            ),
            "product-of-betas": (
                lambda betas: _led_by_one(torch.cumprod(betas, dim=0)),
                "You multiplied the β. What survives a step is α = 1 − β: see (2.15).",
            ),
            "sum-for-product": (
                lambda betas: _led_by_one(1 - torch.cumsum(betas, dim=0)),
                "You subtracted the sum of the β from 1. Each step "
                "takes its share of what is left: a product.",
            ),
            "power": (
                _alpha_bars_power,
                "That is α_t to the power t. The factors of (2.15) "
                "are α_1, …, α_t, not t times the last.",
            ),
            "exponential": (
                lambda betas: _led_by_one(torch.exp(-torch.cumsum(betas, dim=0))),
                "exp(−Σβ) is the limit of small β, and an upper "
                "bound: see (2.22). The product is exact.",
            ),
        },
        hints=(
            "Equation (2.15). How many entries has the table, and what is entry 0?",
            "torch.cumprod gives all the products of 1 − betas at once.",
            "Concatenate a one and torch.cumprod(1 - betas, dim=0).",
        ),
    ),
    Exercise(
        id="2.5",
        title="The cosine",
        kind="formula",
        points=2,
        minutes=10,
        difficulty=1,
        equation="2.19",
        inputs=_cosine_inputs,
        reference=cosine_alpha_bar,
        wrong={
            "not-normalised": (
                _cosine_not_normalised,
                "Your value at t = 0 is not 1: divide by f(0), see (2.19).",
            ),
            "not-squared": (
                _cosine_not_squared,
                "That is √ᾱ_t. The cosine in (2.19) is squared.",
            ),
            "t-not-divided": (
                _cosine_t_not_divided,
                "The argument of the cosine holds t/T, not t: see (2.19).",
            ),
            "no-denominator": (
                _cosine_no_denominator,
                "The angle is divided by 1 + offset, so that f(T) = 0 exactly: see (2.19).",
            ),
            "fixed-offset": (
                _cosine_fixed_offset,
                "You used δ = 0.008, the paper's choice. Here δ is the argument offset.",
            ),
        },
        hints=(
            "Equation (2.19), with a function f inside your function.",
            "f(u) = cos²((u/T + offset)/(1 + offset)·π/2), and the answer is f(t)/f(0).",
            "Use math.cos(...) ** 2 and math.pi; check that t = 0 gives 1 and t = T gives 0.",
        ),
    ),
    Exercise(
        id="2.6",
        title="Your own step",
        kind="code",
        points=2,
        minutes=10,
        difficulty=2,
        equation="2.20",
        inputs=_forward_inputs,
        reference=forward_step,
        wrong={
            "alpha-bar-for-alpha": (
                _forward_from_start,
                "You used ᾱ_t where one step has α_t = ᾱ_t/ᾱ_{t−1}: your step does all the damage "
                "since t = 0 again.",
            ),
            "off-by-one": (
                _forward_off_by_one,
                "You took the step from t to t + 1. Step t leads "
                "from t − 1 to t: α_t = ᾱ_t/ᾱ_{t−1}.",
            ),
            "variance-as-std": (
                _forward_variance_as_std,
                "You multiplied the noise by its variance 1 − α_t. Its "
                "factor is the root of that: see (2.2).",
            ),
            "signal-without-root": (
                _forward_no_root,
                "You multiplied x by α_t. In (2.2) x carries √α_t.",
            ),
        },
        hints=(
            "Equation (2.2) wants α_t; your function is given ᾱ. "
            "How do you get the one from the other?",
            "α_t = ᾱ_t/ᾱ_{t−1}, which (2.20) uses too. The entry "
            "for clean data makes t = 1 no special case.",
            "alpha = alpha_bar[t] / alpha_bar[t - 1], then (2.2) with alpha and 1 - alpha.",
        ),
    ),
    Exercise(
        id="2.7",
        title="Without the shrink",
        kind="explain",
        points=3,
        minutes=15,
        difficulty=3,
        equation="2.7",
        reference=(
            "The chain without the shrink is usable, but not with these numbers. By (2.7) its "
            "variance is V_0 + Σβ. With Σβ ≈ 10 the end is x_T = x_0 + noise of variance 10: the "
            "picture is still there, with signal-to-noise ratio 1/10 (for data of variance 1), "
            "where the chain with the shrink leaves 4e-5. Starting to sample from N(0, I) is "
            "wrong twice: the true x_T has variance about 11, not 1, and it still holds the "
            "picture. To repair it, let Σβ grow until 1/Σβ is as small as ᾱ_T was, to about "
            "25,000, and start from N(0, Σβ·I). The inputs of the network then range over "
            "standard deviations from 1 to about 160, so they have to be rescaled. Dividing x_t "
            "by √(1 + Σβ), the sum taken up to t, is such a rescaling. It turns the chain into "
            "one with shrink and ᾱ_t = 1/(1 + Σβ): the two designs are the same process in "
            "different units."
        ),
        rubric=(
            "Says that the variance grows as V_0 + Σβ, equation (2.7), and gives or uses Σβ ≈ 10.",
            "Says that the end is not N(0, I): wrong variance "
            "(about 11), and the picture is still in it.",
            "Compares what is left: signal-to-noise 1/Σβ ≈ 0.1 against 4e-5 with the shrink.",
            "Gives a repair: larger Σβ and a start from N(0, Σβ·I), or rescaling x_t.",
            "For the third point: notices that rescaling gives the "
            "chain with shrink and ᾱ_t = 1/(1 + Σβ).",
        ),
        hints=(
            "What are mean and variance of x_T given x_0, with and without the shrink?",
            "Compare the signal-to-noise ratios at T, and the law that sampling starts from.",
            "What becomes of x_t/√(1 + Σβ)? Compare its two factors with √ᾱ_t and √(1 − ᾱ_t).",
        ),
    ),
]

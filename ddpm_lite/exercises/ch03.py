"""The exercises of chapter 3, the one-step marginal."""

import math

import numpy as np

from ddpm_lite.exercises.exercise import Exercise

# ---- short, strong chains to draw inputs from ----------------------------------------------------


def _chain(rng, least=4):
    """ᾱ_0..ᾱ_T and α_0 = 1, α_1..α_T of a random chain with β in [0.05, 0.6]."""
    alpha = 1 - rng.uniform(0.05, 0.6, size=int(rng.integers(least, 13)))
    return np.concatenate([[1.0], np.cumprod(alpha)]), np.concatenate([[1.0], alpha])


def _steps(rng, T):
    """Some t of a chain: the first, the last, and three in between."""
    return [1, T, *(int(t) for t in rng.integers(2, T, size=3))]


# ---- 3.2 several steps as one --------------------------------------------------------------------


def compose(alphas):
    """(3.8): all that counts is the product of the shares."""
    product = alphas.prod()
    return product.sqrt(), 1 - product


def _compose_inputs(rng):
    return [(1 - rng.uniform(0.05, 0.6, size=size),) for size in (2, 3, 4, 6, 8)]


def _compose_shared(alphas):
    deviation = 0.0
    for alpha in alphas:
        deviation = alpha.sqrt() * deviation + (1 - alpha).sqrt()
    return alphas.prod().sqrt(), deviation**2


# ---- 3.3 my_ddpm.q_sample ------------------------------------------------------------------------


def q_sample(x0, t, noise, alpha_bar):
    """(3.14), with the noise that is given."""
    return alpha_bar[t].sqrt() * x0 + (1 - alpha_bar[t]).sqrt() * noise


def _q_sample_inputs(rng):
    alpha_bar, _ = _chain(rng)
    return [
        (rng.normal(size=(2, 3)), t, rng.normal(size=(2, 3)), alpha_bar)
        for t in [0, *_steps(rng, len(alpha_bar) - 1)]
    ]


def _q_sample_of_one_step(x0, t, noise, alpha_bar):
    alpha = alpha_bar[t] / alpha_bar[max(t - 1, 0)]
    return alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise


# ---- 3.4 the weight of one noise -----------------------------------------------------------------


def noise_weight(t, k, alpha):
    """(3.16): noise k is shrunk by the steps after k, up to and with t."""
    return ((1 - alpha[k]) * alpha[k + 1 : t + 1].prod()).sqrt()


def _weight_inputs(rng):
    _, alpha = _chain(rng, least=6)
    T = len(alpha) - 1
    return [(t, k, alpha) for t, k in ((T, 1), (T, T), (1, 1), (T - 1, 2), (5, 3), (4, 3))]


# ---- 3.5 a jump ----------------------------------------------------------------------------------


def jump(x_s, t, s, alpha_bar):
    """(3.23): the share that the steps s+1 … t let through is one ratio."""
    kept = alpha_bar[t] / alpha_bar[s]
    return kept.sqrt() * x_s, 1 - kept


def _pairs_of_steps(rng, T, lowest):
    """Pairs s < t: the longest, two neighbours, and some in between."""
    pairs = [(T, lowest), (T, T - 1), (lowest + 1, lowest), (lowest + 3, lowest + 1)]
    for _ in range(2):
        s, t = sorted(rng.choice(np.arange(lowest, T + 1), size=2, replace=False))
        pairs.append((int(t), int(s)))
    return pairs


def _jump_inputs(rng):
    alpha_bar, _ = _chain(rng)
    return [
        (rng.normal(size=(2, 3)), t, s, alpha_bar)
        for t, s in _pairs_of_steps(rng, len(alpha_bar) - 1, lowest=0)
    ]


# ---- 3.6 a pair ----------------------------------------------------------------------------------


def pair(x0, t, s, noise_1, noise_2, alpha_bar):
    """(3.14) from x_0 to x_s, then (3.26) from x_s to x_t."""
    x_s = alpha_bar[s].sqrt() * x0 + (1 - alpha_bar[s]).sqrt() * noise_1
    kept = alpha_bar[t] / alpha_bar[s]
    return x_s, kept.sqrt() * x_s + (1 - kept).sqrt() * noise_2


def _pair_inputs(rng):
    alpha_bar, _ = _chain(rng, least=5)
    return [
        (*rng.normal(size=(1, 2, 3)), t, s, *rng.normal(size=(2, 2, 3)), alpha_bar)
        for t, s in _pairs_of_steps(rng, len(alpha_bar) - 1, lowest=1)
    ]


def _pair_unshrunk(x0, t, s, noise_1, noise_2, alpha_bar):
    """Adds what is missing from one marginal's variance to the other's, without shrinking."""
    x_s = alpha_bar[s].sqrt() * x0 + (1 - alpha_bar[s]).sqrt() * noise_1
    kept = alpha_bar[t] / alpha_bar[s]
    return x_s, kept.sqrt() * x_s + (alpha_bar[s] - alpha_bar[t]).sqrt() * noise_2


# ---- 3.8 moments ---------------------------------------------------------------------------------


def moments(mean_0, var_0, alpha_bar_t):
    """(3.31) and (3.32) for one pixel."""
    return math.sqrt(alpha_bar_t) * mean_0, alpha_bar_t * var_0 + 1 - alpha_bar_t


def _moment_inputs(rng):
    return [
        (float(rng.normal()), float(rng.uniform(0.2, 3)), float(rng.uniform(0.1, 0.9)))
        for _ in range(6)
    ]


# ---- the list ------------------------------------------------------------------------------------

EXERCISES = [
    Exercise(
        id="3.1",
        title="Predict the number",
        kind="number",
        points=1,
        minutes=3,
        difficulty=1,
        equation="3.6",
        reference=0.6,
        wrong={
            "variances-summed": (
                0.7,
                "That is (1 − 0.8) + (1 − 0.5), the two variances added at full strength. The "
                "second step also shrinks the older noise, see (3.5).",
            ),
            "shared-noise": (
                (math.sqrt(0.5 * 0.2) + math.sqrt(0.5)) ** 2,
                "That is the square of the sum of the two standard deviations: one noise used "
                "twice. Both noises are fresh, so variances add, see (3.3).",
            ),
            "share-kept": (
                0.4,
                "0.4 is the share of the variance of x_{t−2} that is left. The variance of the "
                "noise is the rest, see (3.6).",
            ),
            "new-noise-only": (
                0.5,
                "That is the new noise alone. The older noise is still there, shrunk, see (3.5).",
            ),
            "standard-deviation": (
                math.sqrt(0.6),
                "That is the standard deviation; the question is for the variance.",
            ),
        },
        hints=(
            "The equation that answers it has the number (3.6).",
            "Given x_{t−2}, only the two noises vary. Their squared weights in (3.5) are what "
            "adds up.",
            "Put α_t = 0.5 and α_{t−1} = 0.8 into 1 − α_t·α_{t−1}.",
        ),
    ),
    Exercise(
        id="3.2",
        title="Any number of steps",
        kind="code",
        points=2,
        minutes=8,
        difficulty=1,
        equation="3.8",
        inputs=_compose_inputs,
        reference=compose,
        wrong={
            "variance-as-std": (
                lambda alphas: (alphas.prod().sqrt(), (1 - alphas.prod()).sqrt()),
                "The second number is to be the variance of the noise; you returned its square "
                "root, the standard deviation.",
            ),
            "variances-summed": (
                lambda alphas: (alphas.prod().sqrt(), (1 - alphas).sum()),
                "You added the variances 1 − α of all steps at full strength. Each later step "
                "also shrinks the noise that is already there, see (3.5).",
            ),
            "factor-no-root": (
                lambda alphas: (alphas.prod(), 1 - alphas.prod()),
                "The product of the α's is the share of the *variance*. The factor multiplies x "
                "itself, so it carries the square root, see (3.8).",
            ),
            "shared-noise": (
                _compose_shared,
                "You added standard deviations, as if one noise served all steps. Variances of "
                "independent noises add, see (3.3).",
            ),
        },
        hints=(
            "Look at (3.7) and (3.8): what do two steps and three steps have in common?",
            "Both numbers depend on the steps only through the product of their α's.",
            "With p = alphas.prod(): the factor is √p, and the variance is what p lacks of 1.",
        ),
    ),
    Exercise(
        id="3.3",
        title="Your own q_sample",
        kind="code",
        points=3,
        minutes=15,
        difficulty=2,
        equation="3.14",
        inputs=_q_sample_inputs,
        reference=q_sample,
        wrong={
            "noise-no-root": (
                lambda x0, t, noise, a: a[t].sqrt() * x0 + (1 - a[t]) * noise,
                "The noise is multiplied by 1 − ᾱ_t, its variance. A factor on a noise is a "
                "standard deviation: take the square root, see (3.14).",
            ),
            "signal-no-root": (
                lambda x0, t, noise, a: a[t] * x0 + (1 - a[t]).sqrt() * noise,
                "x_0 is multiplied by ᾱ_t, a share of the variance. The factor on x_0 is its "
                "square root, see (3.14).",
            ),
            "alpha-for-alpha-bar": (
                _q_sample_of_one_step,
                "This is one step of the chain, with α_t = ᾱ_t/ᾱ_{t−1}. From x_0 all steps "
                "count: use ᾱ_t itself, see (3.9) and (3.14).",
            ),
            "product-up-to-T": (
                lambda x0, t, noise, alpha_bar: q_sample(x0, -1, noise, alpha_bar),
                "You used the last entry, ᾱ_T, at every t. The product runs up to t, see (3.9).",
            ),
            "off-by-one": (
                lambda x0, t, noise, alpha_bar: q_sample(x0, max(t - 1, 0), noise, alpha_bar),
                "t is off by one: alpha_bar[0] is ᾱ_0 = 1, so ᾱ_t is alpha_bar[t] and nothing is "
                "to be subtracted.",
            ),
        },
        hints=(
            "The equation is (3.14), with the noise that is given.",
            "alpha_bar[t] is one number; torch broadcasts it over x0.",
            "√ᾱ_t times x0, plus √(1 − ᾱ_t) times noise, where ᾱ_t is alpha_bar[t].",
        ),
    ),
    Exercise(
        id="3.4",
        title="One weight",
        kind="formula",
        points=2,
        minutes=10,
        difficulty=2,
        equation="3.16",
        inputs=_weight_inputs,
        reference=noise_weight,
        wrong={
            "own-step-shrinks": (
                lambda t, k, alpha: ((1 - alpha[k]) * alpha[k : t + 1].prod()).sqrt(),
                "Your product includes α_k. Step k adds ε_k *after* it has shrunk what was "
                "there; only the steps after k shrink it, see (3.16).",
            ),
            "last-step-left-out": (
                lambda t, k, alpha: ((1 - alpha[k]) * alpha[k + 1 : t].prod()).sqrt(),
                "Your product stops at step t − 1. Step t shrinks ε_k as well (a slice a:b "
                "leaves out b), see (3.16).",
            ),
            "no-root": (
                lambda t, k, alpha: (1 - alpha[k]) * alpha[k + 1 : t + 1].prod(),
                "That is c_{t,k} squared, the share of the variance. The weight is its square "
                "root, see (3.16).",
            ),
            "steps-before-k": (
                lambda t, k, alpha: ((1 - alpha[k]) * alpha[1:k].prod()).sqrt(),
                "You multiplied by the α's of the steps before k. They came before ε_k was "
                "there; the steps *after* k shrink it, see (3.16).",
            ),
            "never-shrunk": (
                lambda t, k, alpha: (1 - alpha[k]).sqrt(),
                "That is the weight of ε_k in x_k, where it enters. The steps after k, up to and "
                "with t, shrink it, see (3.16).",
            ),
        },
        hints=(
            "The formula is (3.16); the question is which steps its product runs over.",
            "Noise k enters at step k. Which steps still come after that, up to and with t?",
            "alpha[k + 1 : t + 1].prod() is the product; an empty slice gives 1, as it should.",
        ),
    ),
    Exercise(
        id="3.5",
        title="Jump",
        kind="code",
        points=2,
        minutes=8,
        difficulty=2,
        equation="3.23",
        inputs=_jump_inputs,
        reference=jump,
        wrong={
            "variance-difference": (
                lambda x_s, t, s, alpha_bar: (
                    (alpha_bar[t] / alpha_bar[s]).sqrt() * x_s,
                    alpha_bar[s] - alpha_bar[t],
                ),
                "Your variance is the difference of the two marginal variances. It leaves out "
                "that the noise in x_s is shrunk on the way, see (3.25).",
            ),
            "from-the-data": (
                lambda x_s, t, s, alpha_bar: (alpha_bar[t].sqrt() * x_s, 1 - alpha_bar[t]),
                "That is the jump from x_0, whatever s is. Between s and t only the factors "
                "α_{s+1}…α_t count, see (3.23).",
            ),
            "variance-as-std": (
                lambda x_s, t, s, alpha_bar: (
                    (alpha_bar[t] / alpha_bar[s]).sqrt() * x_s,
                    (1 - alpha_bar[t] / alpha_bar[s]).sqrt(),
                ),
                "The second value is to be the variance; you returned its square root.",
            ),
            "factor-no-root": (
                lambda x_s, t, s, alpha_bar: (
                    alpha_bar[t] / alpha_bar[s] * x_s,
                    1 - alpha_bar[t] / alpha_bar[s],
                ),
                "The factor on x_s is the square root of ᾱ_t/ᾱ_s, see (3.23).",
            ),
            "variance-of-the-marginal": (
                lambda x_s, t, s, alpha_bar: (
                    (alpha_bar[t] / alpha_bar[s]).sqrt() * x_s,
                    1 - alpha_bar[t],
                ),
                "Your variance is that of x_t given x_0. Given x_s, the noise that x_s already "
                "holds is fixed: only the steps after s count, see (3.23).",
            ),
        },
        hints=(
            "The law is (3.23). The table holds ᾱ, and one ratio of its entries is all you need.",
            "ᾱ_t contains the factors of steps 1…t. Which division leaves only those after s?",
            "With kept = alpha_bar[t] / alpha_bar[s]: mean √kept·x_s, variance 1 − kept.",
        ),
    ),
    Exercise(
        id="3.6",
        title="A true pair",
        kind="code",
        points=3,
        minutes=12,
        difficulty=2,
        equation="3.26",
        inputs=_pair_inputs,
        reference=pair,
        wrong={
            "two-shortcuts": (
                lambda x0, t, s, noise_1, noise_2, alpha_bar: (
                    q_sample(x0, s, noise_1, alpha_bar),
                    q_sample(x0, t, noise_2, alpha_bar),
                ),
                "Both are made from x_0, each with its own noise. Each has the right law, but "
                "given x_0 they are independent, and on the chain they are not, see (3.29).",
            ),
            "one-noise-for-both": (
                lambda x0, t, s, noise_1, noise_2, alpha_bar: (
                    q_sample(x0, s, noise_1, alpha_bar),
                    q_sample(x0, t, noise_1, alpha_bar),
                ),
                "Both are made from noise_1, so their correlation given x_0 is 1. On the chain "
                "new noise comes in between s and t, see (3.26).",
            ),
            "unshrunk": (
                _pair_unshrunk,
                "Your second noise has the variance ᾱ_s − ᾱ_t. The jump must bring 1 − ᾱ_t/ᾱ_s, "
                "because the noise in x_s is shrunk on the way, see (3.25).",
            ),
            "jump-no-root": (
                lambda x0, t, s, noise_1, noise_2, alpha_bar: (
                    q_sample(x0, s, noise_1, alpha_bar),
                    (alpha_bar[t] / alpha_bar[s]).sqrt() * q_sample(x0, s, noise_1, alpha_bar)
                    + (1 - alpha_bar[t] / alpha_bar[s]) * noise_2,
                ),
                "The second noise is multiplied by a variance. Its factor is the square root of "
                "1 − ᾱ_t/ᾱ_s, see (3.26).",
            ),
            "order-swapped": (
                lambda x0, t, s, noise_1, noise_2, alpha_bar: pair(
                    x0, t, s, noise_1, noise_2, alpha_bar
                )[::-1],
                "You returned (x_t, x_s); the exercise asks for (x_s, x_t), the earlier one first.",
            ),
        },
        hints=(
            "x_s first, by (3.14). Then x_t from x_s, not from x_0.",
            "The way from x_s to x_t is (3.26): the jump of Exercise 3.5, with noise_2.",
            "x_t = √kept·x_s + √(1 − kept)·noise_2, with kept = alpha_bar[t] / alpha_bar[s].",
        ),
    ),
    Exercise(
        id="3.7",
        title="Right and wrong independence",
        kind="explain",
        points=2,
        minutes=10,
        difficulty=2,
        equation="3.27",
        reference=(
            "Ada is right and Ben is not. Her loss looks at one t at a time, so it depends only "
            "on the law of each single x_t, the marginal (3.14), and a fresh shortcut has "
            "exactly that law; that her draws are independent of one another even makes her "
            "averages less noisy. Ben shows x_t and x_{t+1} together, so the joint law counts: "
            "on the chain they have the covariance (3.27) and are nearly the same image, while "
            "his frames share nothing but x_0 and flicker. He should walk, or jump from frame to "
            "frame by (3.26)."
        ),
        rubric=(
            "says that Ada is right and Ben is not",
            "says that Ada's loss needs only the law of each single x_t, the marginal (3.14) or "
            "(3.10)",
            "says that Ben's film needs the joint law of x_t at several t, and names one of (3.26) "
            "to (3.29)",
            "says what is wrong with his frames: given x_0 they are independent (correlation 0), "
            "where the chain's neighbours have a correlation near 1",
        ),
        hints=(
            "Of how many different t does each of them look at the images *together*?",
            "A marginal says nothing about how two images go together; section 3.9 has the "
            "equation that does.",
            "Compare the correlation (3.28) of two neighbouring frames with that of two fresh "
            "calls.",
        ),
    ),
    Exercise(
        id="3.8",
        title="Moments of a noisy pixel",
        kind="formula",
        points=2,
        minutes=8,
        difficulty=1,
        equation="3.32",
        inputs=_moment_inputs,
        reference=moments,
        wrong={
            "fixed-image": (
                lambda mean_0, var_0, a: (math.sqrt(a) * mean_0, 1 - a),
                "That is the variance for one fixed image. Over the data, x_0 varies as well: "
                "add its share, see (3.32).",
            ),
            "data-not-shrunk": (
                lambda mean_0, var_0, a: (math.sqrt(a) * mean_0, var_0 + 1 - a),
                "You added the data's variance at full strength. x_0 is shrunk, and its variance "
                "with it, see (3.32).",
            ),
            "root-on-variance": (
                lambda mean_0, var_0, a: (math.sqrt(a) * mean_0, math.sqrt(a) * var_0 + 1 - a),
                "The factor on x_0 is √ᾱ_t, so the factor on its variance is the square of that, "
                "see (3.32).",
            ),
            "mean-no-root": (
                lambda mean_0, var_0, a: (a * mean_0, a * var_0 + 1 - a),
                "The mean is multiplied by the factor on x_0, which is √ᾱ_t, see (3.31).",
            ),
        },
        hints=(
            "Two equations, one for each number: (3.31) and (3.32).",
            "One pixel is the case of a 1×1 covariance matrix.",
            "The variance is a weighted mean of var_0 and 1, with the weights ᾱ_t and 1 − ᾱ_t.",
        ),
    ),
]

"""The exercises of the toolbox."""

import math

from ddpm_lite.exercises.exercise import Exercise

# ---- T.1 ---------------------------------------------------------------------------------------


def from_exponent(a, b):
    """Minus the coefficient of x² is half the precision; the coefficient of x is precision·mean."""
    precision = 2 * a
    return b / precision, 1 / precision


def _exponents(rng):
    sign = rng.choice([-1.0, 1.0], 8)
    return [(float(rng.uniform(0.7, 3.0)), float(s * rng.uniform(0.5, 2.0))) for s in sign]


# ---- T.2 ---------------------------------------------------------------------------------------


def weighted_sum(weights, means, variances):
    """(T.12) for any number of terms: weights on the means, squared weights on the variances."""
    return (weights * means).sum(), (weights**2 * variances).sum()


def _weighted_terms(rng):
    terms = []
    for n in (2, 3, 3, 4, 5):
        weights = rng.uniform(0.3, 1.6, n) * rng.choice([-1.0, 1.0], n)
        terms.append((weights, rng.uniform(-2, 2, n), rng.uniform(0.3, 2.5, n)))
    return terms


def _weights_not_squared(weights, means, variances):
    return (weights * means).sum(), (weights * variances).sum()


def _deviations_added(weights, means, variances):
    return (weights * means).sum(), (weights.abs() * variances.sqrt()).sum() ** 2


def _weights_on_the_means_only(weights, means, variances):
    return (weights * means).sum(), variances.sum()


def _deviation_of_the_sum(weights, means, variances):
    return (weights * means).sum(), (weights**2 * variances).sum().sqrt()


# ---- T.3 ---------------------------------------------------------------------------------------


def combine(means, variances):
    """(T.14) for any number of factors: precisions add, and weight the means."""
    precision = (1 / variances).sum()
    return (means / variances).sum() / precision, 1 / precision


def _instruments(rng):
    return [(rng.uniform(-3, 3, n), rng.uniform(0.2, 3.0, n)) for n in (2, 2, 3, 4, 6)]


def _plain_average(means, variances):
    return means.mean(), 1 / (1 / variances).sum()


def _weighted_by_variance(means, variances):
    return (means * variances).sum() / variances.sum(), 1 / (1 / variances).sum()


def _variances_added(means, variances):
    return combine(means, variances)[0], variances.sum()


def _precision_returned(means, variances):
    return combine(means, variances)[0], (1 / variances).sum()


def _mean_not_divided(means, variances):
    return (means / variances).sum(), 1 / (1 / variances).sum()


# ---- T.5 ---------------------------------------------------------------------------------------


def heun(x, r, h):
    """Guess by Euler, then go back and use the average of the two slopes."""
    slope_here = -2 * x + math.sin(5 * r)
    guess = x + h * slope_here
    slope_there = -2 * guess + math.sin(5 * (r + h))
    return x + h * (slope_here + slope_there) / 2


def _heun_starts(rng):
    return [tuple(rng.uniform([0.5, 0.0, 0.3], [2.0, 1.0, 0.6])) for _ in range(8)]  # x, r, h


def _slope(x, r):
    return -2 * x + math.sin(5 * r)


def _euler(x, r, h):
    return x + h * _slope(x, r)


def _midpoint(x, r, h):
    return x + h * _slope(x + h / 2 * _slope(x, r), r + h / 2)


def _both_slopes_at_r(x, r, h):
    return x + h / 2 * (_slope(x, r) + _slope(_euler(x, r, h), r))


def _slopes_not_halved(x, r, h):
    return x + h * (_slope(x, r) + _slope(_euler(x, r, h), r + h))


def _from_the_guess(x, r, h):
    guess = _euler(x, r, h)
    return guess + h / 2 * (_slope(x, r) + _slope(guess, r + h))


# ---- T.6 ---------------------------------------------------------------------------------------


def frechet(m_a, V_a, m_b, V_b):
    """(T.44) with numbers for matrices: the cross term is the root of the product of variances."""
    spread = V_a + V_b - 2 * (V_a * V_b) ** 0.5
    return ((m_a - m_b) ** 2).sum() + spread.sum()


def _two_laws(rng):
    laws = []
    for n in (2, 2, 3, 4, 6):
        means = rng.uniform(-2, 2, (2, n))
        small, large = rng.uniform(0.1, 0.6, n), rng.uniform(1.5, 4.0, n)
        laws.append((means[0], small, means[1], large))
    return laws


def _variances_as_deviations(m_a, V_a, m_b, V_b):
    return ((m_a - m_b) ** 2).sum() + ((V_a - V_b) ** 2).sum()


def _not_squared(m_a, V_a, m_b, V_b):
    return frechet(m_a, V_a, m_b, V_b) ** 0.5


def _cross_term_once(m_a, V_a, m_b, V_b):
    return ((m_a - m_b) ** 2).sum() + (V_a + V_b - (V_a * V_b) ** 0.5).sum()


def _means_only(m_a, V_a, m_b, V_b):
    return ((m_a - m_b) ** 2).sum()


def _averaged(m_a, V_a, m_b, V_b):
    return frechet(m_a, V_a, m_b, V_b) / len(m_a)


# ---- the list ----------------------------------------------------------------------------------

EXERCISES = [
    Exercise(
        id="T.1",
        title="Read the exponent",
        kind="formula",
        points=1,
        minutes=5,
        difficulty=1,
        equation="T.4",
        inputs=_exponents,
        reference=from_exponent,
        wrong={
            "half-assumed": (
                lambda a, b: (b / a, 1 / a),
                "You read the exponent as -½ax² + bx. Here the coefficient of x² is -a, so "
                "the precision is 2a, see (T.4).",
            ),
            "half-in-the-mean-only": (
                lambda a, b: (b / (2 * a), 1 / a),
                "The mean is right, the variance twice too large: one precision, 2a, belongs to "
                "both, see (T.4).",
            ),
            "precision-as-variance": (
                lambda a, b: (b / (2 * a), 2 * a),
                "The second number is the precision; the variance is one over it, see (T.4).",
            ),
            "variance-as-std": (
                lambda a, b: (b / (2 * a), (1 / (2 * a)) ** 0.5),
                "The second number is the variance; you returned its square root.",
            ),
            "mean-not-divided": (
                lambda a, b: (b, 1 / (2 * a)),
                "The coefficient of x is precision times mean, not the mean itself, see (T.4).",
            ),
        },
        hints=(
            "Compare -a·x² + b·x with the exponent of (T.4).",
            "Minus twice the coefficient of x² is the precision: here 2a.",
            "The variance is 1/(2a), and b = precision × mean.",
        ),
    ),
    Exercise(
        id="T.2",
        title="A weighted sum",
        kind="code",
        points=1,
        minutes=8,
        difficulty=1,
        equation="T.12",
        inputs=_weighted_terms,
        reference=weighted_sum,
        wrong={
            "weights-not-squared": (
                _weights_not_squared,
                "You weighted the variances by c; scaling x by c multiplies its variance by c², "
                "see (T.6).",
            ),
            "deviations-added": (
                _deviations_added,
                "You added standard deviations and squared. Independent terms add variances, "
                "see (T.12) and the pitfall below it.",
            ),
            "weights-forgotten": (
                _weights_on_the_means_only,
                "You added the variances without their weights: scaling x by c multiplies its "
                "variance by c², see (T.6).",
            ),
            "variance-as-std": (
                _deviation_of_the_sum,
                "The second number is the variance; you returned its square root.",
            ),
        },
        hints=(
            "First (T.6) for each term, then (T.9) for the sum.",
            "The term c·x has mean c·m and variance c²·V.",
            "Sum c·m for the mean, and sum c²·V for the variance.",
        ),
    ),
    Exercise(
        id="T.3",
        title="Several thermometers",
        kind="code",
        points=2,
        minutes=10,
        difficulty=2,
        equation="T.14",
        inputs=_instruments,
        reference=combine,
        wrong={
            "plain-average": (
                _plain_average,
                "You averaged the means with equal weights; a precise instrument counts for more: "
                "weight by 1/V, see (T.14).",
            ),
            "weighted-by-variance": (
                _weighted_by_variance,
                "You weighted the means by their variances, so the worst instrument counts most. "
                "Weight by 1/V, see (T.14).",
            ),
            "variances-added": (
                _variances_added,
                "You added variances. That is the rule for a sum of random variables, (T.9); "
                "for a product of densities precisions add, (T.14).",
            ),
            "precision-returned": (
                _precision_returned,
                "The second number is the precision; the variance is one over it.",
            ),
            "mean-not-divided": (
                _mean_not_divided,
                "Your first number is m/V, precision times mean; multiply by V, see (T.14).",
            ),
        },
        hints=(
            "Take two of them first: that is (T.14). Then the result and the third.",
            "The precisions 1/V add up, and so do the products m/V.",
            "variance = 1/sum(1/V_i), and mean = variance·sum(m_i/V_i).",
        ),
    ),
    Exercise(
        id="T.4",
        title="Bits",
        kind="number",
        points=1,
        minutes=6,
        difficulty=1,
        equation="T.25",
        reference=64 * 0.1**2 / (2 * 0.04) / math.log(2),
        tolerance=0.005,
        wrong={
            "nats": (
                64 * 0.1**2 / (2 * 0.04),
                "That is the divergence in nats; one nat is 1/log 2 bits, so divide by log 2.",
            ),
            "one-coordinate": (
                0.1**2 / (2 * 0.04) / math.log(2),
                "That is one coordinate; the squared distance sums over all 64, see (T.25).",
            ),
            "half-forgotten": (
                64 * 0.1**2 / 0.04 / math.log(2),
                "Twice too much: there is a 2 in the denominator of (T.25).",
            ),
            "variance-as-std": (
                64 * 0.1**2 / (2 * 0.2) / math.log(2),
                "You divided by twice the standard deviation 0.2; (T.25) has the variance, 0.04.",
            ),
            "multiplied-by-log-2": (
                64 * 0.1**2 / (2 * 0.04) * math.log(2),
                "A bit is smaller than a nat, so there are more of them: divide by log 2.",
            ),
        },
        hints=(
            "The variances are equal, so (T.25) is enough.",
            "The squared distance of the means is 64 × 0.01.",
            "0.64/(2 × 0.04) nats, divided by log 2 = 0.693.",
        ),
    ),
    Exercise(
        id="T.5",
        title="One step of Heun",
        kind="code",
        points=2,
        minutes=12,
        difficulty=2,
        equation="T.40",
        inputs=_heun_starts,
        reference=heun,
        wrong={
            "euler": (
                _euler,
                "That is Euler's step (T.36); Heun's uses it as a guess only, see (T.40).",
            ),
            "midpoint": (
                _midpoint,
                "That is the midpoint method, one slope at half the step. It is of order two as "
                "well, but (T.40) averages the slopes at both ends.",
            ),
            "clock-not-advanced": (
                _both_slopes_at_r,
                "Your second slope is taken at the guess but still at time r; it belongs to time "
                "r + h, see (T.40). The order drops to one.",
            ),
            "slopes-not-halved": (
                _slopes_not_halved,
                "You added the two slopes; (T.40) averages them, hence h/2.",
            ),
            "from-the-guess": (
                _from_the_guess,
                "You started the final step from the guess; it starts from x again, see (T.40).",
            ),
        },
        hints=(
            "Two evaluations of the slope: at (x, r), and at the guess one step later.",
            "The guess is x + h·slope(x, r), and its slope is taken at time r + h.",
            "Return x + h/2·(first slope + second slope), from the old x.",
        ),
    ),
    Exercise(
        id="T.6",
        title="The distance, coordinate by coordinate",
        kind="code",
        points=1,
        minutes=8,
        difficulty=2,
        equation="T.44",
        inputs=_two_laws,
        reference=frechet,
        wrong={
            "variance-as-std": (
                _variances_as_deviations,
                "You subtracted variances. In (T.44) their square roots are subtracted: "
                "V_a + V_b - 2·sqrt(V_a·V_b) is (sqrt V_a - sqrt V_b)².",
            ),
            "root-taken": (
                _not_squared,
                "That is d; (T.44), like everybody's FID, is its square.",
            ),
            "cross-term-once": (
                _cross_term_once,
                "The cross term of (T.44) has a factor 2; without it, two equal laws are apart.",
            ),
            "means-only": (
                _means_only,
                "You compared the means only; (T.44) has a second term, for the variances.",
            ),
            "mean-for-sum": (
                _averaged,
                "You averaged over the coordinates; the norm and the trace in (T.44) add them up.",
            ),
        },
        hints=(
            "Diagonal matrices multiply, and have roots, entry by entry.",
            "So the trace in (T.44) is a sum of V_a + V_b - 2·sqrt(V_a·V_b).",
            "Return ((m_a - m_b)**2).sum() + ((V_a**0.5 - V_b**0.5)**2).sum().",
        ),
    ),
]

"""The exercises of chapter 1."""

from __future__ import annotations

import numpy as np
import torch

from ddpm_lite.exercises.exercise import Exercise
from ddpm_lite.exercises.mistakes import variance_as_std

# ---- 1.1 -----------------------------------------------------------------------------------------


def bits_by_counting(counts):
    """The mean over the pixels of the entropies of their histograms, in bits; 0·log 0 = 0."""
    shares = counts / counts.sum(1, keepdim=True)
    return -torch.special.xlogy(shares, shares).sum() / len(counts) / torch.log(torch.tensor(2.0))


def _nats(counts):
    return bits_by_counting(counts) * float(np.log(2))


def _of_the_image(counts):
    return bits_by_counting(counts) * len(counts)


def _pooled(counts):
    return bits_by_counting(counts.sum(0, keepdim=True))


def _uniform_levels(counts):
    """Every level that occurs taken as equally likely."""
    return (counts > 0).sum(1).double().log2().mean()


def _histograms(rng):
    """Five to eight pixels of six levels; two levels never occur, not the same for all pixels."""
    calls = []
    for _ in range(6):
        D = int(rng.integers(5, 9))
        levels = rng.permuted(np.tile(np.arange(6), (D, 1)), axis=1)
        shares = np.exp(rng.uniform(0.4, 1.1, (D, 1)) * levels) * (levels > 1)
        calls.append(((10 * shares).round().astype(int),))
    return calls


# ---- 1.2 -----------------------------------------------------------------------------------------


def nearest_gaussian(weights, means, variances):
    """Mean and variance of the mixture: the variance within the humps plus that between them."""
    m = (weights * means).sum()
    return m, (weights * (variances + (means - m) ** 2)).sum()


def _within_only(weights, means, variances):
    return (weights * means).sum(), (weights * variances).sum()


def _between_only(weights, means, variances):
    m = (weights * means).sum()
    return m, (weights * (means - m) ** 2).sum()


def _not_centred(weights, means, variances):
    return (weights * means).sum(), (weights * (variances + means**2)).sum()


def _of_a_sum(weights, means, variances):
    """The variance of a weighted sum of draws, which is another thing than a mixture."""
    return (weights * means).sum(), (weights**2 * variances).sum()


def _mixtures(rng):
    calls = []
    for K in (2, 2, 3, 4):
        weights = rng.dirichlet(np.full(K, 5.0))
        means = rng.permutation(np.linspace(-2, 2, K)) + rng.uniform(0.6, 1.2)
        calls.append((weights, means, rng.uniform(0.3, 1.2, K)))
    return calls


# ---- 1.4 -----------------------------------------------------------------------------------------


def best_classifier(p, p_theta, share):
    """Bayes' rule: the part of the density at each point that comes from the data."""
    real = share * p
    return real / (real + (1 - share) * p_theta)


def _shares_forgotten(p, p_theta, share):
    return p / (p + p_theta)


def _of_the_fakes(p, p_theta, share):
    return 1 - best_classifier(p, p_theta, share)


def _odds(p, p_theta, share):
    return share * p / ((1 - share) * p_theta)


def _shares_exchanged(p, p_theta, share):
    return best_classifier(p, p_theta, 1 - share)


def _densities(rng):
    calls = []
    for _ in range(5):
        share = float(rng.choice([rng.uniform(0.2, 0.4), rng.uniform(0.6, 0.8)]))
        calls.append((rng.uniform(0.1, 1.0, 6), rng.uniform(0.1, 1.0, 6), share))
    return calls


# ---- 1.6 -----------------------------------------------------------------------------------------


def sequence_log_prob(tokens, first, then):
    """log p(first token), plus log p(token | the one before it) for all others."""
    start = first[tokens[:, 0]].log()
    return start + then[tokens[:, :-1], tokens[:, 1:]].log().sum(1)


def _start_forgotten(tokens, first, then):
    return then[tokens[:, :-1], tokens[:, 1:]].log().sum(1)


def _transposed(tokens, first, then):
    return sequence_log_prob(tokens, first, then.T)


def _probability(tokens, first, then):
    return sequence_log_prob(tokens, first, then).exp()


def _for_each_token(tokens, first, then):
    return sequence_log_prob(tokens, first, then) / tokens.shape[1]


def _independent(tokens, first, then):
    return first[tokens].log().sum(1)


def _sequences(rng):
    """Three or four tokens in sequences of three to five."""
    calls = []
    for _ in range(4):
        K, D = int(rng.integers(3, 5)), int(rng.integers(3, 6))
        first, then = rng.dirichlet(np.ones(K)), rng.dirichlet(np.ones(K), K)
        mixed = 0.9 * then + 0.1 / K  # no probability so small that one sequence decides all
        calls.append((rng.integers(K, size=(7, D)), 0.9 * first + 0.1 / K, mixed))
    return calls


# ---- 1.7 -----------------------------------------------------------------------------------------


def affine_log_prob(x, A, b):
    """log N(z; 0, I) at z = A⁻¹(x − b), minus log|det A|."""
    z = torch.linalg.solve(A, (x - b).T).T
    constant = 0.5 * len(b) * torch.log(torch.tensor(2 * torch.pi, dtype=x.dtype))
    return -0.5 * (z**2).sum(1) - constant - torch.linalg.det(A).abs().log()


def _volume(A):
    return torch.linalg.det(A).abs().log()


def _volume_added(x, A, b):
    return affine_log_prob(x, A, b) + 2 * _volume(A)


def _volume_forgotten(x, A, b):
    return affine_log_prob(x, A, b) + _volume(A)


def _wrong_way(x, A, b):
    z = x @ A.T + b
    constant = 0.5 * len(b) * float(np.log(2 * np.pi))
    return -0.5 * (z**2).sum(1) - constant - _volume(A)


def _constant_forgotten(x, A, b):
    return affine_log_prob(x, A, b) + 0.5 * len(b) * float(np.log(2 * np.pi))


def _map_transposed(x, A, b):
    return affine_log_prob(x, A.T, b)


def _maps(rng):
    """Two or three coordinates; no map is near symmetric, none keeps the volume, some flip it."""
    calls = []
    for D in (2, 3, 2, 3):
        A = np.diag(rng.uniform(0.4, 0.7, D)) + np.triu(rng.uniform(0.4, 0.8, (D, D)), 1)
        A[0] *= rng.choice([-1.0, 1.0])
        b = rng.normal(size=D)
        calls.append((rng.normal(size=(5, D)) @ A.T + b, A, b))
    return calls


EXERCISES = [
    Exercise(
        id="1.1",
        title="Bits by counting",
        kind="formula",
        points=2,
        minutes=10,
        difficulty=1,
        equation="1.4",
        inputs=_histograms,
        reference=bits_by_counting,
        wrong={
            "nats": (_nats, "That is in nats. Divide by log 2, or take log2, for bits."),
            "of-the-image": (
                _of_the_image,
                "You summed over the pixels. Bits per pixel divide by D, see (1.3).",
            ),
            "pooled": (
                _pooled,
                "You made one histogram for all pixels together. The model has one for each "
                "pixel, see (1.2).",
            ),
            "uniform-levels": (
                _uniform_levels,
                "You counted how many levels occur, as if they were equally frequent. The entropy "
                "weights each level by its share.",
            ),
        },
        hints=(
            "Turn the counts of each pixel into shares. Then (1.4).",
            "Mind the levels that never occur: they add nothing, but 0·log 0 is not a number to a "
            "computer. torch.special.xlogy(a, a) is a·log a with the right value at 0.",
            "shares = counts / counts.sum(1, keepdim=True); the answer is "
            "−xlogy(shares, shares).sum() / D / log 2.",
        ),
    ),
    Exercise(
        id="1.2",
        title="The nearest Gaussian",
        kind="code",
        points=2,
        minutes=10,
        difficulty=1,
        equation="1.8",
        inputs=_mixtures,
        reference=nearest_gaussian,
        wrong={
            "within-only": (
                _within_only,
                "You averaged the variances of the humps. That the humps lie apart adds to the "
                "variance of the whole.",
            ),
            "between-only": (
                _between_only,
                "That is the variance of the humps' centres. Each hump has a width as well.",
            ),
            "not-centred": (
                _not_centred,
                "That is E[x²]. The variance in (1.8) is taken about the mean.",
            ),
            "of-a-sum": (
                _of_a_sum,
                "That is the variance of a weighted sum of draws, one from each hump. A draw of "
                "a mixture comes from one hump only, and may lie anywhere.",
            ),
            **variance_as_std(nearest_gaussian, value=1, see="1.8"),
        },
        hints=(
            "By (1.8) you need the mean and the variance of the mixture, no more.",
            "E x = Σ λ_k m_k, the λ_k being the weights. For V, take E (x − m)² hump by hump.",
            "m = Σ λ_k m_k, V = Σ λ_k (V_k + (m_k − m)²).",
        ),
    ),
    Exercise(
        id="1.3",
        title="Predict the number",
        kind="number",
        points=1,
        minutes=5,
        difficulty=1,
        equation="1.11",
        reference=-float(np.log(0.8)),
        tolerance=1e-3,
        wrong={
            "other-hump": (-float(np.log(0.2)), "That is a minimum too, but not the lowest one."),
            "bits": (-float(np.log2(0.8)), "That is in bits, and nats are asked for."),
            "entropy": (
                -float(0.8 * np.log(0.8) + 0.2 * np.log(0.2)),
                "That is the entropy of the choice between the humps. The Gaussian sits on one "
                "hump only, see (1.11).",
            ),
            "missed-share": (
                0.2,
                "That is the share of the data that is missed. The divergence is a logarithm, see "
                "(1.11).",
            ),
        },
        hints=(
            "Where the Gaussian sits on one hump of weight w, what is p there?",
            "There p is w times the hump, so log p_θ − log p is −log w everywhere.",
            "Choose the hump for which −log w is smaller.",
        ),
    ),
    Exercise(
        id="1.4",
        title="The best classifier",
        kind="formula",
        points=1,
        minutes=8,
        difficulty=1,
        equation="1.14",
        inputs=_densities,
        reference=best_classifier,
        wrong={
            "shares-forgotten": (
                _shares_forgotten,
                "That is right for equal shares. Here the classifier meets real points with "
                "probability `share`, and Bayes' rule weights both densities.",
            ),
            "of-the-fakes": (
                _of_the_fakes,
                "That is the probability that the point was generated. Real is asked for.",
            ),
            "odds": (_odds, "These are the odds. The probability divides by the sum of both."),
            "shares-exchanged": (
                _shares_exchanged,
                "The weights are exchanged: `share` belongs to the data.",
            ),
        },
        hints=(
            "Imagine a heap of points, a part `share` of them real. Look at those near one x.",
            "Near x there are share·p(x) real ones for every (1 − share)·p_θ(x) generated ones.",
            "share·p / (share·p + (1 − share)·p_θ).",
        ),
    ),
    Exercise(
        id="1.5",
        title="Explain",
        kind="explain",
        points=3,
        minutes=15,
        difficulty=2,
        equation="1.18",
        reference=(
            "The number is possible, and it shows that the model has memorised. Over all laws on "
            "the images, the average log-likelihood of N different training images is at most "
            "−log N, because it is −log N minus a KL divergence from the empirical law, and the "
            "empirical law reaches it. A model at that score is the empirical law: it draws one of "
            "the N training images. So its samples are real images, sharp and varied, and no look "
            "at them will find a fault; but it has learned nothing about p_data that is not in the "
            "list of the training images, and it gives probability 0 to every new image, so its "
            "held-out log-likelihood is minus infinity. Training likelihood measures the distance "
            "to the empirical law, and the question was the distance to p_data. To settle it, "
            "measure the log-likelihood of held-out images, which the training has not seen, and "
            "compare the distance from each sample to its nearest training image with the same "
            "distance for held-out images."
        ),
        rubric=(
            "Says that −log N is the largest average that is possible, and why (1.18).",
            "Identifies the model as the empirical law: samples are copies of training images.",
            "Explains why looking at samples, or their sharpness, cannot reveal it.",
            "Distinguishes the distance to the empirical law from the distance to p_data.",
            "Names a test: held-out likelihood, or nearest-neighbour distances to training images "
            "compared with those of held-out images.",
        ),
        hints=(
            "What is log 1442, and where does it stand in section 1.4?",
            "Which law reaches that score? What does it draw, and what does it say of a new image?",
            "Then say which distance was made small and which one was wanted.",
        ),
    ),
    Exercise(
        id="1.6",
        title="A tiny autoregressive model",
        kind="code",
        points=2,
        minutes=12,
        difficulty=2,
        equation="1.22",
        inputs=_sequences,
        reference=sequence_log_prob,
        wrong={
            "start-forgotten": (
                _start_forgotten,
                "The first token has a probability too: `first`, see (1.22) at d = 1.",
            ),
            "transposed": (
                _transposed,
                "Rows and columns are exchanged: then[a, b] is the probability of b after a.",
            ),
            "probability": (_probability, "That is the probability; its logarithm is asked for."),
            "for-each-token": (
                _for_each_token,
                "You took the mean over the tokens. A sequence has the sum, see (1.22).",
            ),
            "independent": (
                _independent,
                "You took every token from `first`, as if they were independent. From the second "
                "on, the token before counts.",
            ),
        },
        hints=(
            "Logarithms turn the product (1.22) into a sum.",
            "Two parts: first[x_1], and then[x_{d−1}, x_d] for d = 2, …, D. Index with tensors: "
            "table[rows, columns].",
            "first[tokens[:, 0]].log() + then[tokens[:, :-1], tokens[:, 1:]].log().sum(1).",
        ),
    ),
    Exercise(
        id="1.7",
        title="The smallest flow",
        kind="formula",
        points=2,
        minutes=12,
        difficulty=2,
        equation="1.23",
        inputs=_maps,
        reference=affine_log_prob,
        wrong={
            "volume-added": (
                _volume_added,
                "The sign of log|det A| is wrong: a map that stretches makes the density smaller.",
            ),
            "volume-forgotten": (
                _volume_forgotten,
                "The determinant is missing: a map that stretches spreads the probability, see "
                "(1.23).",
            ),
            "wrong-way": (
                _wrong_way,
                "You pushed x through the map. To find the z that made x, undo it: A⁻¹(x − b).",
            ),
            "constant-forgotten": (
                _constant_forgotten,
                "The constant of the Gaussian, ½·log 2π for each coordinate, is missing.",
            ),
            "map-transposed": (
                _map_transposed,
                "You undid the transposed map. With points as rows, A acts as z @ A.T.",
            ),
        },
        hints=(
            "Which z made x? Solve x = A z + b.",
            "log N(z; 0, I) is −½‖z‖² − ½·D·log 2π. Then the volume, (1.23).",
            "z = torch.linalg.solve(A, (x − b).T).T; the answer is −½·(z²).sum(1) − ½·D·log 2π "
            "− log|det A|.",
        ),
    ),
]

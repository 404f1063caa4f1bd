"""How good the samples are: distances between sets, and the protocol that makes them honest.

Three questions need three kinds of numbers. Are the samples distributed like the data
(`frechet_distance`, `sliced_wasserstein`, `mmd`)? If not, are they unlike any data, or is part of
the data missing (`precision_recall`, `class_histogram`)? Are they new, or copies of the training
images (`nearest`, `memorisation`)?

`evaluate` asks all of them by one protocol. Generated images are compared with images *held out*
from training, as many as there are of those; the floor is what real images, subsets of the
training set, reach in the same comparison; intervals come from independent generations and
disjoint subsets.

Images are compared in the features of a small classifier that ships with the book, so the numbers
cannot be compared with published FIDs, which use another network's features.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import scipy.linalg
import scipy.stats
import torch
from torch import Tensor, nn

from ddpm_lite.storage import WEIGHTS, check_tensors, read_tensors

Points = Tensor | np.ndarray

FEATURES = 24
CLASSES = 10
CONFIDENCE = 0.95  # of every interval
FEWEST_GENERATIONS = 5
NEAR_COPY = 0.5  # nearest training image closer than this share of the distance to the second
NEARER_THAN_REAL = 0.75  # generated images nearer to the training set than real ones, 3 to 1
WIDEST = 2.0  # "at the floor" excludes a distance of more than twice the floor


# ---- the classifier -----------------------------------------------------------------------------


class Classifier(nn.Module):
    """Ten classes of 8×8 digits: two convolutions, 24 features, one linear layer on top.

    The features are taken before their nonlinearity, so none is stuck at zero, and are scaled to
    mean 0 and variance 1 over the training images.
    """

    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, FEATURES),
        )
        self.classify = nn.Sequential(nn.SiLU(), nn.Linear(FEATURES, CLASSES))
        self.register_buffer("feature_mean", torch.zeros(FEATURES))
        self.register_buffer("feature_scale", torch.ones(FEATURES))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, 8, 8) in [−1, 1]."""
        return self.classify(self.embed(images))

    def features(self, images: Tensor) -> Tensor:
        """The 24 scaled features of each image, float64 (N, 24) on the CPU.

        Computed in float64, so that the machine does not show in the digits of a distance.

        Raises:
            ValueError: if the images are not (N, 1, 8, 8), or not finite.
        """
        raw = self._in_float64(images)[0]
        return (raw - self.feature_mean.double().cpu()) / self.feature_scale.double().cpu()

    def probabilities(self, images: Tensor) -> Tensor:
        """p(class | image), float64 (N, 10).

        Raises:
            ValueError: as `features`.
        """
        return self._in_float64(images)[1].softmax(dim=1)

    def predict(self, images: Tensor) -> Tensor:
        """The most probable class of each image, int64 (N,).

        Raises:
            ValueError: as `features`.
        """
        return self._in_float64(images)[1].argmax(dim=1)

    @torch.no_grad()
    def _in_float64(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Unscaled features and logits."""
        images = _check_images(images, "images")
        if images.shape[1:] != (1, 8, 8):
            raise ValueError(
                f"this classifier knows 8×8 digits, (N, 1, 8, 8), got {tuple(images.shape)}."
            )
        twin = copy.deepcopy(self).to("cpu", torch.float64)
        features = torch.cat([twin.embed(part) for part in images.split(1024)])
        return features, twin.classify(features)


def classifier() -> Classifier:
    """The classifier that ships with the book, trained on ``digits("train")`` only.

    Beside its weights, in ``ddpm_lite/weights/digit-classifier``, lie the recipe and the seed that
    made it, and what it reaches on the held-out digits; `tools/train_classifier.py` makes it again.

    Raises:
        FileNotFoundError: if the file is missing from the installation.
        ValueError: if it is not a classifier's.
    """
    with torch.device("meta"):  # no weights are drawn only to be overwritten
        network = Classifier().float()  # whatever torch's default is
    path = WEIGHTS / "digit-classifier" / "classifier.safetensors"
    tensors, _ = read_tensors(path)
    check_tensors(tensors, network.state_dict(), path)
    network.load_state_dict(tensors, assign=True)
    return network.eval()


_shipped_classifier = classifier  # `evaluate` has an argument of that name


def quantise(images: Tensor, levels: int | None) -> Tensor:
    """The images as they would be stored: clamped to [−1, 1], each pixel at the nearest level.

    The levels are −1 + 2k/(levels − 1), k = 0..levels − 1. With None, for data that have none,
    only clamped.
    """
    clamped = images.clamp(-1, 1)
    if levels is None:
        return clamped
    if isinstance(levels, bool) or not isinstance(levels, int) or levels < 2:
        raise ValueError(f"levels must be an int of at least 2, or None, got {levels!r}.")
    half = (levels - 1) / 2
    return ((clamped + 1) * half).round() / half - 1


# ---- distances between distributions ------------------------------------------------------------


def frechet_distance(a: Points, b: Points) -> float:
    """The squared Fréchet distance between Gaussians fitted to two sets of features.

    ‖m_a − m_b‖² + tr(C_a + C_b − 2(C_a C_b)^½), with the averages m and the unbiased covariances C
    of a (N, F) and b (M, F). Of two finite samples of *one* law it is positive, and the less so the
    larger they are: compare only values at equal N and M.

    Book: (T.44), (T.45).
    Source: FID is this for the features of an Inception network; Heusel et al., arXiv 1706.08500.
    Raises:
        ValueError: on a wrong shape, fewer than two rows, or a number that is not finite.
    """
    sets = _points(a, "a", 2), _points(b, "b", 2)
    _same_dimension(*sets)
    moments = [(x.mean(0).numpy(), np.atleast_2d(torch.cov(x.T).numpy())) for x in sets]
    return gaussian_frechet_distance(*moments[0], *moments[1])


def gaussian_frechet_distance(
    mean_a: np.ndarray, covariance_a: np.ndarray, mean_b: np.ndarray, covariance_b: np.ndarray
) -> float:
    """The squared Fréchet distance of two Gaussians, which is also their squared W_2 distance.

    With symmetric roots R of the covariances, tr (C_a C_b)^½ is the sum of the singular values of
    R_a R_b. Singular covariances are welcome, and no root of a non-symmetric matrix is taken.

    Book: (T.44).
    Source: Dowson and Landau, "The Fréchet distance between multivariate normal distributions",
    1982.
    """
    overlap = scipy.linalg.svdvals(_symmetric_root(covariance_a) @ _symmetric_root(covariance_b))
    apart = np.sum((np.asarray(mean_a) - np.asarray(mean_b)) ** 2)
    spread = np.trace(covariance_a) + np.trace(covariance_b) - 2 * overlap.sum()
    return float(max(apart + spread, 0.0))


def _symmetric_root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = scipy.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T  # rounding makes zeros negative


def wasserstein(x: Points, y: Points, order: int) -> float:
    """W_p of two sets of numbers, x (N,) and y (M,): p = order, 1 or 2.

    (∫_0^1 |F_x⁻¹(u) − F_y⁻¹(u)|^p du)^{1/p} between the two empirical laws: on a line the best
    transport keeps the order.

    Book: (T.49).
    Raises:
        ValueError: on a wrong shape, a number that is not finite, or another order.
    """
    x, y = _points(x, "x", 1, dimensions=1), _points(y, "y", 1, dimensions=1)
    if order not in (1, 2):
        raise ValueError(f"the order must be 1 or 2, got {order!r}.")
    return float(_transport_cost(x[None], y[None], order)[0] ** (1 / order))


def sliced_wasserstein(x: Points, y: Points, projections: int, generator: torch.Generator) -> float:
    """The sliced W_2 distance of x (N, D) and y (M, D): √ of the average W_2² along directions.

    The directions are uniform on the sphere, drawn from the generator; the same for both sets.

    Book: (T.50).
    Raises:
        ValueError: on a wrong shape, a number that is not finite, or no projection.
    """
    x, y = _points(x, "x", 1), _points(y, "y", 1)
    _same_dimension(x, y)
    if isinstance(projections, bool) or not isinstance(projections, int) or projections < 1:
        raise ValueError(f"projections must be an int of at least 1, got {projections!r}.")
    shape = (projections, x.shape[1])
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)
    direction = nn.functional.normalize(drawn.cpu(), dim=1)
    return math.sqrt(_transport_cost(direction @ x.T, direction @ y.T, 2).mean())


def _transport_cost(x: Tensor, y: Tensor, order: int) -> Tensor:
    """∫|F_x⁻¹ − F_y⁻¹|^p for each row of x (P, N) and y (P, M), (P,).

    Both quantile functions are steps. On a common scale of N·M ticks they step at multiples of M
    and of N, so the integral is a sum over the joint steps, and exact.
    """
    n, m = x.shape[1], y.shape[1]
    step = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    width = torch.diff(step, prepend=step.new_zeros(1)).to(torch.float64) / (n * m)
    gap = x.sort(dim=1).values[:, (step - 1) // m] - y.sort(dim=1).values[:, (step - 1) // n]
    return gap.abs().pow(order) @ width


def mmd(x: Points, y: Points, bandwidths: Sequence[float]) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy of x (N, D) and y (M, D).

    E k(x, x') + E k(y, y') − 2 E k(x, y), without the pairs of a point with itself, for k the
    average of the kernels exp(−‖x − y‖²/(2h²)) over the bandwidths h. Zero on average for two
    samples of one law, whatever their sizes; so it may come out negative.

    Book: (T.51).
    Source: Gretton et al., "A kernel two-sample test", 2012.
    Raises:
        ValueError: on a wrong shape, fewer than two rows, a number that is not finite, or a
            bandwidth that is not positive.
    """
    x, y = _points(x, "x", 2), _points(y, "y", 2)
    _same_dimension(x, y)
    widths = torch.as_tensor(list(bandwidths), dtype=torch.float64)
    if len(widths) == 0 or not bool((widths > 0).all()):
        raise ValueError(f"bandwidths must hold positive numbers, got {list(bandwidths)!r}.")

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        square = _distances(a, b).square()
        return torch.stack([torch.exp(-square / (2 * h**2)) for h in widths]).mean(0)

    def among(a: Tensor) -> Tensor:
        return (kernel(a, a).sum() - len(a)) / (len(a) * (len(a) - 1))  # k(x, x) = 1

    return float(among(x) + among(y) - 2 * kernel(x, y).mean())


# ---- fidelity and coverage ----------------------------------------------------------------------


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]: of generated points among the real, of real points among the generated."""

    precision: float
    recall: float


def precision_recall(real: Points, generated: Points, k: int) -> PrecisionRecall:
    """How many generated points look real, and how much of the real data is covered.

    A set of points covers the balls around its points, each reaching to that point's k-th nearest
    neighbour in the set. Precision is the share of `generated` (M, D) covered by `real` (N, D),
    recall the share of `real` covered by `generated`. Both fall with the sizes of the sets, so
    equal sizes are compared.

    Book: (T.47).
    Source: Kynkäänniemi et al., arXiv 1904.06991 (with k = 3).
    Raises:
        ValueError: on a wrong shape, a number that is not finite, or sets of k points or fewer.
    """
    real, generated = _points(real, "real", 1), _points(generated, "generated", 1)
    _same_dimension(real, generated)
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k must be an int of at least 1, got {k!r}.")
    if min(len(real), len(generated)) <= k:
        raise ValueError(
            f"each set must hold more than k = {k} points, got {len(real)} and {len(generated)}."
        )
    return PrecisionRecall(_covered(generated, real, k), _covered(real, generated, k))


def _covered(points: Tensor, by: Tensor, k: int) -> float:
    among = _distances(by, by).fill_diagonal_(math.inf)
    radius = among.kthvalue(k, dim=1).values
    return float((_distances(points, by) <= radius).any(dim=1).double().mean())


def class_histogram(labels: Tensor, classes: int) -> Tensor:
    """How many labels fall in each of 0..classes − 1, int64 (classes,).

    Raises:
        ValueError: if a label is none of these.
    """
    if labels.dtype != torch.int64 or labels.ndim != 1:
        raise ValueError(
            f"labels must be int64 (N,), got {labels.dtype} of shape {tuple(labels.shape)}."
        )
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        raise ValueError(f"a label must lie in 0..{classes - 1}, got {outside[0].item()}.")
    return torch.bincount(labels.cpu(), minlength=classes)


# ---- copies -------------------------------------------------------------------------------------


class Neighbours(NamedTuple):
    """For each query, the distance to the nearest point of a set, and that point's number."""

    distances: Tensor
    indices: Tensor


def nearest(queries: Tensor, reference: Tensor) -> Neighbours:
    """The nearest of `reference` (M, …) to each of `queries` (N, …): float64 (N,), int64 (N,).

    Euclidean distance between the flattened rows; the first of several equally near.

    Raises:
        ValueError: if the shapes of the rows differ, or a number is not finite.
    """
    queries, reference = _rows(queries, "queries"), _rows(reference, "reference")
    _same_dimension(queries, reference)
    found = [_distances(part, reference).min(dim=1) for part in queries.split(256)]
    return Neighbours(torch.cat([f.values for f in found]), torch.cat([f.indices for f in found]))


@dataclass(frozen=True)
class Memorisation:
    """How near the generated images lie to the training images, beside what unseen ones do.

    share_nearer: how often a generated image is nearer to its nearest training image than a
        held-out image is to its own: over all pairs of one of each, ties counting half. One half
        for images like the held-out ones; one if every generated image is nearer.
    share_copied: how many generated images are less than half as far from their nearest training
        image as from their second nearest: near one image, not only near where images are.
    heldout_copied: the same share among the held-out images, which cannot be copies.
    """

    share_nearer: float
    share_copied: float
    heldout_copied: float


def memorisation(generated: Tensor, train: Tensor, heldout: Tensor) -> Memorisation:
    """Whether generated images (N, …) repeat training images; see `Memorisation`.

    An image of a law learned well lies as near to the training images as a held-out image does.
    A copy lies nearer, and much nearer to one of them than to any other. A model that draws only
    typical images also lies nearer, but not to a single one: `share_copied` tells these apart.

    Book: (T.48), (7.20).
    Raises:
        ValueError: if shapes differ, a number is not finite, or there are fewer than two training
            images.
    """
    new, known, unseen = (
        _rows(x, name)
        for x, name in ((generated, "generated"), (train, "train"), (heldout, "heldout"))
    )
    _same_dimension(new, known)
    _same_dimension(unseen, known)
    if len(known) < 2:
        raise ValueError("the second nearest training image needs at least two of them.")
    new_first, new_second = _two_nearest(new, known)
    unseen_first, unseen_second = _two_nearest(unseen, known)
    return Memorisation(
        share_nearer=_probability_below(new_first, unseen_first),
        share_copied=float((new_first < NEAR_COPY * new_second).double().mean()),
        heldout_copied=float((unseen_first < NEAR_COPY * unseen_second).double().mean()),
    )


def _two_nearest(queries: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    parts = [
        _distances(part, reference).topk(2, dim=1, largest=False).values
        for part in queries.split(256)
    ]
    both = torch.cat(parts)
    return both[:, 0], both[:, 1]


def _probability_below(a: Tensor, b: Tensor) -> float:
    """P(a < b) + ½P(a = b) over all pairs: the Mann–Whitney statistic divided by its largest."""
    below = (a[:, None] < b).double() + 0.5 * (a[:, None] == b).double()
    return float(below.mean())


# ---- the protocol -------------------------------------------------------------------------------


class FeatureMap(Protocol):
    """What `evaluate` needs of a classifier."""

    def features(self, images: Tensor) -> Tensor: ...

    def predict(self, images: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Estimate:
    """An average over independent repetitions, and its 95 % interval.

    mean ± t·s/√R for R repetitions with standard deviation s, t from Student's law with R − 1
    degrees of freedom.
    """

    mean: float
    low: float
    high: float
    values: tuple[float, ...]

    @staticmethod
    def of(values: Sequence[float]) -> Estimate:
        """Average and interval of two or more numbers.

        Book: (T.46).
        """
        array = np.asarray(values, dtype=np.float64)
        error = array.std(ddof=1) / math.sqrt(len(array))
        half = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(array) - 1) * error)
        mean = float(array.mean())
        return Estimate(mean, mean - half, mean + half, tuple(array.tolist()))

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Report:
    """What `evaluate` found. `size` images in each set, `generations` sets of generated ones.

    distance: generated against held-out. floor: training subsets against held-out, the same
    comparison for real images. ratio: distance over the floor. precision, recall: of generated
    images; real_precision, real_recall: of the training subsets. class_shares, heldout_shares: the
    predicted classes. share_nearer, share_copied, heldout_copied: see `Memorisation`.
    verdict: "memorises", "at the floor", "above the floor" or "undecided". reasons: what led to it.
    """

    size: int
    generations: int
    distance: Estimate
    floor: Estimate
    ratio: Estimate
    precision: Estimate
    recall: Estimate
    real_precision: Estimate
    real_recall: Estimate
    class_shares: tuple[float, ...]
    heldout_shares: tuple[float, ...]
    share_nearer: Estimate
    share_copied: Estimate
    heldout_copied: float
    verdict: str
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and strings, for JSON."""
        return asdict(self)

    def summary(self) -> str:
        """A few lines for a person."""
        return "\n".join(
            (
                f"{self.generations} generations of {self.size} images, against as many held out",
                f"Fréchet distance  {self.distance}  (95 % interval)",
                f"floor             {self.floor}  (real images in the same comparison)",
                f"ratio             {self.ratio}",
                f"precision         {self.precision}  (real images {self.real_precision.mean:.3f})",
                f"recall            {self.recall}  (real images {self.real_recall.mean:.3f})",
                f"nearer to a training image than held-out images are: {self.share_nearer} "
                "(0.5 if new)",
                f"near-copies of one training image: {self.share_copied} "
                f"(held-out images {self.heldout_copied:.3f})",
                f"verdict: {self.verdict}: {'; '.join(self.reasons)}",
            )
        )


def evaluate(
    generations: Sequence[Tensor],
    train: Tensor,
    heldout: Tensor,
    *,
    levels: int | None,
    generator: torch.Generator,
    classifier: FeatureMap | None = None,
    classes: int = CLASSES,
    neighbours: int = 3,
    partitions: int = 25,
) -> Report:
    """Measure generated images by the honest protocol.

    1. Each generation holds as many images as are held out, n, and is an independent run of the
       sampler. At least five give the interval of the mean: a bootstrap of one set cannot, since
       resampling repeats images and raises every distance.
    2. The distance is generated against held-out. Its floor is what real images reach: the
       training set is cut at random into disjoint subsets of n, each compared with the held-out
       images; the average of one cut is one repetition, and there are `partitions` of them.
    3. Precision, recall and the shares of near-copies come beside it; see their functions.
    4. The verdict is "memorises" if the interval of the distance lies below that of the floor, or
       if `share_copied` or `share_nearer` is beyond what images can reach that were not copied
       (for the latter, 3/4); "above the floor" if the interval of the distance lies above that of
       the floor; "at the floor" if they overlap and the ratio's interval ends below 2; and
       "undecided" if they overlap only because there are too few generations to tell.

    Everything is measured against one held-out set, so the intervals hold for this set. Subsets
    without replacement are a little more alike than fresh images would be: the floor is strict.

    Args:
        generations: five or more of (n, C, H, W), in [−1, 1] up to what clamping removes.
        train, heldout: real images (N, C, H, W) and (n, C, H, W), N ≥ 2n.
        levels: the generated images are rounded to these, like the data (`quantise`).
        generator: draws the cuts of the training set.
        classifier: with `features` and `predict`; default the one that ships with the book.
        classes: how many classes it knows.
        neighbours: k of `precision_recall`.

    Raises:
        ValueError: if sizes or shapes do not fit.
    """
    _check_sizes(generations, train, heldout, partitions)
    network: FeatureMap = _shipped_classifier() if classifier is None else classifier
    sets = [quantise(images.detach().cpu(), levels) for images in generations]
    real = network.features(heldout)
    features = [[network.features(images)] for images in sets]
    subsets = _cuts(network.features(train), len(heldout), partitions, generator)
    distance, floor = (
        _repeat(group, lambda f: frechet_distance(f, real)) for group in (features, subsets)
    )
    precision, recall = _repeat_shares(features, real, neighbours)
    # fewer cuts than for the floor: these shares move little, and cost more
    real_precision, real_recall = _repeat_shares(subsets[:5], real, neighbours)
    copies = [memorisation(images, train, heldout) for images in sets]
    nearer = Estimate.of([m.share_nearer for m in copies])
    copied = Estimate.of([m.share_copied for m in copies])
    innocent = copies[0].heldout_copied
    verdict, reasons = _memorises(distance, floor, nearer, copied, innocent, len(heldout))
    if not verdict:
        verdict, reasons = _judge(distance, floor)
    return Report(
        size=len(heldout),
        generations=len(sets),
        distance=distance,
        floor=floor,
        ratio=_ratio(distance, floor),
        precision=precision,
        recall=recall,
        real_precision=real_precision,
        real_recall=real_recall,
        class_shares=_class_shares(network, torch.cat(sets), classes),
        heldout_shares=_class_shares(network, heldout, classes),
        share_nearer=nearer,
        share_copied=copied,
        heldout_copied=innocent,
        verdict=verdict,
        reasons=reasons,
    )


def _cuts(
    features: Tensor, size: int, partitions: int, generator: torch.Generator
) -> list[list[Tensor]]:
    """`partitions` times: the rows in random order, cut into as many whole subsets as there are."""
    cuts = []
    for _ in range(partitions):
        order = torch.randperm(len(features), generator=generator, device=generator.device).cpu()
        pieces = features[order].split(size)
        cuts.append([piece for piece in pieces if len(piece) == size])
    return cuts


def _repeat(groups: list[list[Tensor]], measure: Callable[[Tensor], float]) -> Estimate:
    """One repetition for each group: the average of `measure` over the sets in it."""
    return Estimate.of([math.fsum(map(measure, group)) / len(group) for group in groups])


def _repeat_shares(groups: list[list[Tensor]], real: Tensor, k: int) -> tuple[Estimate, Estimate]:
    """Precision and recall, repeated like `_repeat`."""
    shares = [np.mean([precision_recall(real, f, k) for f in group], axis=0) for group in groups]
    return Estimate.of([p for p, _ in shares]), Estimate.of([r for _, r in shares])


def _ratio(distance: Estimate, floor: Estimate) -> Estimate:
    """distance/floor: the relative errors of independent averages add as squares."""
    mean = distance.mean / floor.mean
    relative = [(e.high - e.mean) / e.mean for e in (distance, floor)]
    half = mean * math.hypot(*relative)
    return Estimate(mean, mean - half, mean + half, tuple(v / floor.mean for v in distance.values))


def _class_shares(network: FeatureMap, images: Tensor, classes: int) -> tuple[float, ...]:
    counts = class_histogram(network.predict(images), classes)
    return tuple((counts.double() / len(images)).tolist())


def _judge(distance: Estimate, floor: Estimate) -> tuple[str, tuple[str, ...]]:
    """The verdict on a model that does not memorise, and the reason."""
    ratio = _ratio(distance, floor)
    if distance.low > floor.high:
        return "above the floor", (f"{ratio.mean:.2f} times the floor",)
    if ratio.high > WIDEST:
        return "undecided", (
            f"the ratio may be anything up to {ratio.high:.1f}: more generations are needed",
        )
    return "at the floor", ("the intervals of distance and floor overlap",)


def _memorises(
    distance: Estimate,
    floor: Estimate,
    nearer: Estimate,
    copied: Estimate,
    heldout_copied: float,
    size: int,
) -> tuple[str, tuple[str, ...]]:
    """The verdict "memorises" and every sign of it; or an empty verdict."""
    found = round(heldout_copied * size)
    # the largest share that would leave as few near-copies among the held-out images (97.5 %)
    most = float(scipy.stats.beta.ppf((1 + CONFIDENCE) / 2, found + 1, size - found))
    reasons = []
    if distance.high < floor.low:
        reasons.append("the distance lies below the floor: real images are not as near")
    if copied.low > most:
        reasons.append(
            f"{copied.mean:.1%} are near-copies of one training image, where new images have at "
            f"most {most:.1%}"
        )
    if nearer.low > NEARER_THAN_REAL:
        reasons.append(
            f"in {nearer.mean:.0%} of all pairs the generated image is nearer to the training "
            "images than the held-out one"
        )
    return ("memorises" if reasons else ""), tuple(reasons)


# ---- checks at the boundary ---------------------------------------------------------------------


def _check_sizes(
    generations: Sequence[Tensor], train: Tensor, heldout: Tensor, partitions: int
) -> None:
    if len(generations) < FEWEST_GENERATIONS:
        raise ValueError(
            f"an interval needs at least {FEWEST_GENERATIONS} independent generations, got "
            f"{len(generations)}."
        )
    for i, images in enumerate(generations):
        if images.shape != heldout.shape:
            raise ValueError(
                f"generation {i} must have the shape of the held-out images, "
                f"{tuple(heldout.shape)}, got {tuple(images.shape)}: distances of sets of "
                "different sizes are not comparable."
            )
    if train.shape[1:] != heldout.shape[1:] or len(train) < 2 * len(heldout):
        raise ValueError(
            f"the floor needs disjoint training subsets of the held-out images' size, so at least "
            f"{2 * len(heldout)} images of shape {tuple(heldout.shape[1:])}, got "
            f"{tuple(train.shape)}."
        )
    if isinstance(partitions, bool) or not isinstance(partitions, int) or partitions < 2:
        raise ValueError(f"partitions must be an int of at least 2, got {partitions!r}.")


def _check_images(images: Tensor, name: str) -> Tensor:
    """Images as float64 (N, …) on the CPU."""
    values = images.detach().to("cpu", torch.float64)
    if values.ndim < 2 or len(values) == 0:
        raise ValueError(f"{name} must hold at least one image, got shape {tuple(values.shape)}.")
    if not bool(values.isfinite().all()):
        wrong = (~values.isfinite().flatten(1).all(1)).nonzero()[0].item()
        raise ValueError(f"{name} {wrong} holds a number that is not finite.")
    return values


def _rows(images: Tensor, name: str) -> Tensor:
    return _check_images(images, name).flatten(1)


def _points(values: Points, name: str, fewest: int, dimensions: int = 2) -> Tensor:
    """Points or numbers as float64 on the CPU."""
    points = torch.as_tensor(values).detach().to("cpu", torch.float64)
    if points.ndim != dimensions or len(points) < fewest:
        form = "(N, D)" if dimensions == 2 else "(N,)"
        raise ValueError(
            f"{name} must have shape {form} with N at least {fewest}, got {tuple(points.shape)}."
        )
    if not bool(points.isfinite().all()):
        raise ValueError(f"{name} holds a number that is not finite.")
    return points


def _same_dimension(x: Tensor, y: Tensor) -> None:
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"both sets must have the same dimension, got {x.shape[1]}, {y.shape[1]}.")


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances (N, M), by direct differences: equal points are at distance zero."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")

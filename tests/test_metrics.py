"""metrics.py: closed forms, brute force on small sets, and verdicts on sets that deserve them."""

import importlib.util
import json
import math
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpm_lite import metrics
from ddpm_lite.data import digits
from ddpm_lite.metrics import (
    Classifier,
    Estimate,
    class_histogram,
    classifier,
    evaluate,
    frechet_distance,
    gaussian_frechet_distance,
    memorisation,
    mmd,
    nearest,
    precision_recall,
    quantise,
    sliced_wasserstein,
    wasserstein,
)
from ddpm_lite.storage import WEIGHTS, read_tensors

ROOT = Path(__file__).resolve().parent.parent
FOLDER = WEIGHTS / "digit-classifier"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def covariance(size, seed):
    root = normal(size, size + 2, seed=seed)
    return (root @ root.T).numpy()


@pytest.fixture(scope="module")
def network():
    return classifier()


# ---- the classifier -----------------------------------------------------------------------------


def test_the_classifier_knows_digits_that_it_never_saw(network):
    images, labels = digits("heldout")
    right = (network.predict(images) == labels).double().mean().item()
    assert right >= 0.98
    record = json.loads((FOLDER / "classifier.json").read_text())
    assert right == pytest.approx(record["accuracy"]["heldout"], abs=0.003)


def test_its_features_are_scaled_on_the_training_images(network):
    features = network.features(digits("train")[0])
    assert features.shape == (1442, metrics.FEATURES) and features.dtype == torch.float64
    assert features.mean(0).abs().max() < 1e-4
    assert (features.std(0) - 1).abs().max() < 1e-4


def test_its_features_span_all_their_dimensions(network):
    """No unit is dead: the covariance of even the held-out images is far from singular."""
    values = torch.linalg.eigvalsh(torch.cov(network.features(digits("heldout")[0]).T))
    assert values[0] > 1e-4 * values[-1]


def test_an_image_has_its_features_in_any_company(network):
    images = digits("heldout")[0]
    features = network.features(images)
    assert torch.allclose(network.features(images[3:5]), features[3:5], atol=1e-12)
    assert torch.allclose(network.features(images.double()), features, atol=1e-12)
    many = images.repeat(4, 1, 1, 1)  # more than one batch
    assert torch.allclose(network.features(many), features.repeat(4, 1), atol=1e-12)


def test_probabilities_and_classes_agree(network):
    images = digits("heldout")[0][:20]
    p = network.probabilities(images)
    assert torch.allclose(p.sum(1), torch.ones(20, dtype=torch.float64))
    assert torch.equal(p.argmax(1), network.predict(images))
    with torch.no_grad():
        logits = network(images)
    assert torch.allclose(logits.double().softmax(1), p, atol=1e-5)


def test_loading_and_measuring_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    classifier().features(digits("heldout")[0][:2])
    assert torch.equal(before, torch.get_rng_state())


def test_the_default_dtype_of_torch_does_not_matter(network):
    images = digits("heldout")[0][:3]
    try:
        torch.set_default_dtype(torch.float64)
        assert torch.equal(classifier().features(images), network.features(images))
        assert wasserstein(normal(5), normal(7), 1) > 0
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_file_is_small_and_says_how_it_was_made():
    path = FOLDER / "classifier.safetensors"
    assert path.stat().st_size < 200_000
    tensors, record = read_tensors(path)
    assert record == json.loads((FOLDER / "classifier.json").read_text())
    assert record["recipe"] == tool().RECIPE
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def tool():
    spec = importlib.util.spec_from_file_location(
        "train_classifier", ROOT / "tools" / "train_classifier.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_recipe_can_be_followed_again():
    """Shortened: equal seeds give equal weights, and weights that classify."""
    recipe = {**tool().RECIPE, "epochs": 4}
    first, second = (tool().train(recipe) for _ in range(2))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    assert tool().accuracy(first, "heldout") > 0.9


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 8, 8), r"knows 8×8 digits, \(N, 1, 8, 8\), got \(2, 3, 8, 8\)"),
        (torch.zeros(0, 1, 8, 8), "at least one image"),
        (torch.full((2, 1, 8, 8), torch.nan), "images 0 holds a number that is not finite"),
    ],
)
def test_the_classifier_refuses(network, images, message):
    with pytest.raises(ValueError, match=message):
        network.features(images)


# ---- levels -------------------------------------------------------------------------------------


def test_quantising_leaves_the_data_as_they_are():
    images = digits("heldout")[0]
    assert torch.equal(quantise(images, 17), images)
    nudged = images + 0.06 * (2 * torch.rand(images.shape, generator=seeded()) - 1)
    assert torch.equal(quantise(nudged, 17), images)  # 1/16 = 0.0625 is half a level


def test_quantised_values_are_the_nearest_levels():
    x = 1.5 * normal(500)
    levels = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    wanted = levels[(x[:, None] - levels).abs().argmin(1)]
    assert torch.equal(quantise(x, 3), wanted)
    assert torch.equal(quantise(x, None), x.clamp(-1, 1))


@pytest.mark.parametrize("levels", [1, 2.5, True])
def test_levels_are_a_number_of_levels(levels):
    with pytest.raises(ValueError, match="int of at least 2, or None"):
        quantise(torch.zeros(1), levels)


# ---- the Fréchet distance -----------------------------------------------------------------------


def test_frechet_of_commuting_covariances():
    """With common eigenvectors the roots subtract: Σ(√a − √b)²."""
    a, b = np.array([0.3, 1.0, 4.0, 0.0]), np.array([0.5, 0.2, 9.0, 1.0])
    turn, _ = np.linalg.qr(normal(4, 4).numpy())
    found = gaussian_frechet_distance(
        np.zeros(4), turn @ np.diag(a) @ turn.T, np.ones(4), turn @ np.diag(b) @ turn.T
    )
    assert found == pytest.approx(4 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_frechet_in_the_plane_has_a_closed_form(seed):
    """For 2×2 matrices (tr M^½)² = tr M + 2√det M, M = C_a C_b; they do not commute here."""
    a, b = covariance(2, seed), covariance(2, seed + 10)
    assert np.abs(a @ b - b @ a).max() > 0.1
    m = a @ b
    trace_root = math.sqrt(np.trace(m) + 2 * math.sqrt(np.linalg.det(m)))
    wanted = np.trace(a) + np.trace(b) - 2 * trace_root
    assert gaussian_frechet_distance(np.zeros(2), a, np.zeros(2), b) == pytest.approx(
        wanted, rel=1e-10
    )


def test_frechet_against_the_matrix_root_of_scipy():
    a, b = covariance(24, 0), covariance(24, 1)
    wanted = np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)
    assert gaussian_frechet_distance(np.zeros(24), a, np.zeros(24), b) == pytest.approx(
        wanted, rel=1e-9
    )


def test_frechet_of_samples_uses_their_average_and_unbiased_covariance():
    x, y = normal(40, 3), normal(30, 3, seed=1) * 2 + 1
    by_hand = gaussian_frechet_distance(
        x.numpy().mean(0), np.cov(x.numpy().T), y.numpy().mean(0), np.cov(y.numpy().T)
    )
    assert frechet_distance(x, y) == pytest.approx(by_hand, rel=1e-12)


def test_frechet_on_a_line():
    x, y = normal(50, 1), 3 * normal(60, 1, seed=1) + 2
    wanted = (x.mean() - y.mean()) ** 2 + (x.std() - y.std()) ** 2
    assert frechet_distance(x, y) == pytest.approx(wanted.item(), rel=1e-12)


def test_frechet_is_a_distance_of_sets():
    x, y = normal(50, 5), normal(50, 5, seed=1) @ normal(5, 5, seed=2)
    v = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0], dtype=torch.float64)
    turn, _ = torch.linalg.qr(normal(5, 5, seed=3))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-12)
    assert frechet_distance(x @ turn + v, y @ turn + v) == pytest.approx(
        frechet_distance(x, y), rel=1e-10
    )
    assert frechet_distance(x, x + v) == pytest.approx((v @ v).item(), rel=1e-10)
    assert frechet_distance(x[torch.randperm(50, generator=seeded())], x) == pytest.approx(
        0, abs=1e-12
    )


def test_frechet_of_a_stretched_set():
    x = normal(80, 4)
    x = x - x.mean(0)
    assert frechet_distance(x, 3 * x) == pytest.approx(4 * torch.cov(x.T).trace().item(), rel=1e-10)


def test_frechet_with_singular_covariances():
    """Fewer points than dimensions, and a dead feature: no complex roots, no failure."""
    x, y = normal(5, 12), normal(6, 12, seed=1)
    x[:, 3] = y[:, 3] = 0
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)
    a, b = np.cov(x.numpy().T), np.cov(y.numpy().T)
    centred = [(z - z.mean(0)) / math.sqrt(len(z) - 1) for z in (x, y)]
    overlap = torch.linalg.matrix_norm(centred[0] @ centred[1].T, "nuc")  # another road to it
    wanted = (x.mean(0) - y.mean(0)).square().sum() + np.trace(a + b) - 2 * overlap
    assert frechet_distance(x, y) == pytest.approx(wanted.item(), rel=1e-7)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (normal(1, 3), normal(5, 3), "a must have shape .* N at least 2"),
        (normal(5), normal(5, 3), "a must have shape"),
        (normal(5, 3), normal(5, 2), "same dimension, got 3, 2"),
        (normal(5, 3), torch.full((5, 3), torch.inf), "b holds a number that is not finite"),
    ],
)
def test_frechet_refuses(a, b, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(a, b)


# ---- Wasserstein and MMD ------------------------------------------------------------------------

numbers = st.lists(st.floats(-5, 5), min_size=1, max_size=7)


@given(numbers, numbers)
def test_wasserstein_of_order_one_is_scipys(x, y):
    ours = wasserstein(np.array(x), np.array(y), 1)
    assert ours == pytest.approx(scipy.stats.wasserstein_distance(x, y), abs=1e-12)


@given(st.integers(1, 5).flatmap(lambda n: st.tuples(*[st.lists(st.floats(-5, 5), min_size=n,
                                                               max_size=n)] * 2)))  # fmt: skip
def test_wasserstein_of_order_two_is_the_best_pairing(pair):
    x, y = map(np.array, pair)
    best = min(np.mean((x - np.array(order)) ** 2) for order in permutations(y))
    assert wasserstein(x, y, 2) == pytest.approx(math.sqrt(best), abs=1e-9)


def test_repeating_every_number_changes_nothing():
    x, y = normal(6), normal(4, seed=1)
    for order in (1, 2):
        assert wasserstein(x.repeat(3), y.repeat(2), order) == pytest.approx(
            wasserstein(x, y, order), rel=1e-12
        )


def test_wasserstein_of_gaussians():
    """On fine quantiles: W_2² = (m − m')² + (σ − σ')²."""
    u = (np.arange(20_000) + 0.5) / 20_000
    x, y = scipy.stats.norm.ppf(u), 1 + 2 * scipy.stats.norm.ppf(u)
    assert wasserstein(x, y, 2) == pytest.approx(math.sqrt(2), rel=1e-3)


def test_sliced_wasserstein_on_a_line_is_wasserstein():
    x, y = normal(7), normal(9, seed=1)
    assert sliced_wasserstein(x[:, None], y[:, None], 3, seeded()) == pytest.approx(
        wasserstein(x, y, 2), rel=1e-12
    )


def test_sliced_wasserstein_of_a_moved_and_of_a_stretched_set():
    """Along θ a shift v costs (θ·v)², a stretch by c (c−1)²·θᵀMθ: on average over D, v², tr M."""
    x, count = normal(30, 5), 20_000
    v = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0], dtype=torch.float64)
    second = (x.T @ x / 30).trace().item()
    for y, wanted in ((x + v, (v @ v).item() / 5), (3 * x, 4 * second / 5)):
        found = sliced_wasserstein(x, y, count, seeded()) ** 2
        # a quadratic form of a direction varies by less than its mean times √2
        assert found == pytest.approx(wanted, abs=5 * wanted * math.sqrt(2 / count))


def test_sliced_wasserstein_basics():
    x, y = normal(20, 3), normal(25, 3, seed=1)
    assert sliced_wasserstein(x, x.flip(0), 50, seeded()) < 1e-12
    assert sliced_wasserstein(x, y, 50, seeded(1)) == sliced_wasserstein(x, y, 50, seeded(1))
    assert sliced_wasserstein(x, y, 50, seeded(1)) == pytest.approx(
        sliced_wasserstein(y, x, 50, seeded(1)), rel=1e-12
    )
    assert sliced_wasserstein(x, y, 50, seeded(1)) != sliced_wasserstein(x, y, 50, seeded(2))


def test_mmd_by_hand():
    x, y = normal(4, 2), normal(3, 2, seed=1)

    def k(a, b):
        return sum(math.exp(-((a - b) ** 2).sum() / (2 * h**2)) for h in (0.5, 2.0)) / 2

    wanted = np.mean([k(a, b) for a, b in permutations(x, 2)])
    wanted += np.mean([k(a, b) for a, b in permutations(y, 2)])
    wanted -= 2 * np.mean([k(a, b) for a in x for b in y])
    assert mmd(x, y, [0.5, 2.0]) == pytest.approx(wanted, rel=1e-10)


def test_mmd_of_gaussians_in_closed_form():
    """E k(x, y) = (h²/(h²+a+b))^{D/2}·exp(−‖m‖²/(2(h²+a+b))); unbiased at any sizes."""
    h, a, b, m, size = 0.8, 1.0, 0.25, 0.7, 3

    def expected(variance, shift):
        total = h**2 + variance
        return (h**2 / total) ** (size / 2) * math.exp(-size * shift**2 / (2 * total))

    wanted = expected(2 * a, 0) + expected(2 * b, 0) - 2 * expected(a + b, m)
    drawn = [
        mmd(normal(12, size, seed=i), m + math.sqrt(b) * normal(15, size, seed=9999 + i), [h])
        for i in range(2000)
    ]
    error = np.std(drawn) / math.sqrt(len(drawn))
    assert error < 0.02 * wanted
    assert np.mean(drawn) == pytest.approx(wanted, abs=5 * error)


@pytest.mark.parametrize("bandwidths", [[], [0.0], [1.0, -1.0]])
def test_mmd_refuses_bandwidths(bandwidths):
    with pytest.raises(ValueError, match="positive numbers"):
        mmd(normal(3, 2), normal(3, 2), bandwidths)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wasserstein(normal(3), normal(3), 3), "order must be 1 or 2, got 3"),
        (lambda: wasserstein(normal(3, 1), normal(3), 1), r"x must have shape \(N,\)"),
        (lambda: sliced_wasserstein(normal(3, 2), normal(3, 1), 5, seeded()), "same dimension"),
        (lambda: sliced_wasserstein(normal(3, 2), normal(3, 2), 0, seeded()), "at least 1, got 0"),
        (lambda: mmd(normal(1, 2), normal(3, 2), [1.0]), "N at least 2"),
    ],
)
def test_distances_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- precision, recall, classes -----------------------------------------------------------------


def test_precision_and_recall_by_hand():
    real = torch.tensor([[0.0], [1.0], [3.0], [10.0]])  # radii with k = 1: 1, 1, 2, 7
    generated = torch.tensor([[-1.5], [2.5], [2.9], [20.0]])  # radii: 4, 0.4, 0.4, 17.1
    # −1.5 is outside all real balls, 20 also; of the real points all but none are covered:
    # [−5.5, 2.5], [2.1, 2.9], [2.5, 3.3], [2.9, 37.1]
    assert precision_recall(real, generated, 1) == (0.5, 1.0)
    assert precision_recall(generated, real, 1) == (1.0, 0.5)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_by_brute_force(k):
    real, generated = normal(20, 2), 0.5 * normal(15, 2, seed=1) + 0.5

    def covered(point, cloud):
        for i, centre in enumerate(cloud):
            others = sorted(
                np.linalg.norm(centre - other) for j, other in enumerate(cloud) if j != i
            )
            if np.linalg.norm(centre - point) <= others[k - 1]:
                return True
        return False

    found = precision_recall(real, generated, k)
    assert found.precision == pytest.approx(
        np.mean([covered(p, real.numpy()) for p in generated.numpy()])
    )
    assert found.recall == pytest.approx(
        np.mean([covered(p, generated.numpy()) for p in real.numpy()])
    )


def test_precision_and_recall_tell_two_failures_apart():
    real = torch.cat([normal(60, 2), normal(60, 2, seed=1) + 20])
    one_mode, noisy = normal(120, 2, seed=2), 30 * normal(120, 2, seed=3)
    assert precision_recall(real, real, 3) == (1, 1)
    assert precision_recall(real, real + 100, 3) == (0, 0)
    missing = precision_recall(real, one_mode, 3)
    assert missing.precision > 0.85 and missing.recall < 0.55
    spread = precision_recall(real, noisy, 3)
    assert spread.precision < 0.1 and spread.recall > 0.5


@pytest.mark.parametrize(
    ("k", "message"), [(0, "at least 1, got 0"), (3, "more than k = 3 points, got 3 and 5")]
)
def test_precision_and_recall_refuse(k, message):
    with pytest.raises(ValueError, match=message):
        precision_recall(normal(3, 2), normal(5, 2), k)


def test_class_histogram():
    assert class_histogram(torch.tensor([2, 0, 2, 2]), 4).tolist() == [1, 0, 3, 0]
    with pytest.raises(ValueError, match=r"0..3, got 4"):
        class_histogram(torch.tensor([1, 4]), 4)
    with pytest.raises(ValueError, match="int64"):
        class_histogram(torch.tensor([1.0]), 4)


# ---- copies -------------------------------------------------------------------------------------


def test_nearest_by_brute_force():
    queries, reference = normal(600, 1, 2, 3), normal(50, 1, 2, 3, seed=1)
    queries[7] = reference[31]
    found = nearest(queries, reference)
    distance = np.linalg.norm(
        queries.flatten(1).numpy()[:, None] - reference.flatten(1).numpy(), axis=2
    )
    assert torch.equal(found.indices, torch.from_numpy(distance.argmin(1)))
    np.testing.assert_allclose(found.distances, distance.min(1), rtol=1e-12)
    assert found.distances[7] == 0


def test_memorisation_by_hand():
    train = torch.tensor([[0.0], [10.0], [11.0]])
    heldout = torch.tensor([[2.0], [14.0]])  # nearest 2 (second 8), and 3 (second 4)
    generated = torch.tensor([[1.0], [13.0], [10.5], [20.0]])  # 1 (9), 2 (3), 0.5 (0.5), 9 (10)
    found = memorisation(generated, train, heldout)
    # 1 is below both, 2 ties with 2 and is below 3, 0.5 is below both, 9 below none
    assert found.share_nearer == pytest.approx((2 + 1.5 + 2 + 0) / 8)
    assert found.share_copied == 0.25  # 1 of 9; 0.5 of 0.5 is between two
    assert found.heldout_copied == 0.5  # 2 of 8


def test_share_nearer_is_the_mann_whitney_statistic():
    generated, train, heldout = normal(30, 4), normal(40, 4, seed=1), normal(25, 4, seed=2)
    a, b = (nearest(x, train).distances.numpy() for x in (generated, heldout))
    statistic = scipy.stats.mannwhitneyu(b, a).statistic  # counts pairs with b above a
    assert memorisation(generated, train, heldout).share_nearer == pytest.approx(
        statistic / (30 * 25)
    )


def test_copies_are_found_and_new_images_are_not_accused():
    train, _ = digits("train")
    heldout, _ = digits("heldout")
    order = torch.randperm(len(train), generator=seeded())
    copies = train[order[:355]] + 0.05 * torch.randn(355, 1, 8, 8, generator=seeded())
    found = memorisation(copies, train, heldout)
    assert found.share_nearer > 0.99 and found.share_copied > 0.99 and found.heldout_copied == 0
    unseen = memorisation(train[order[:355]], train[order[355:]], heldout)
    assert abs(unseen.share_nearer - 0.5) < 0.11 and unseen.share_copied == 0
    # five standard errors of the Mann–Whitney statistic are 5·√((n+m+1)/(12nm)) = 0.108


def test_some_copies_among_bad_images_are_found():
    """One in ten copied; the rest so far off that the median would say nothing."""
    train, _ = digits("train")
    heldout, _ = digits("heldout")
    images = torch.randn(350, 1, 8, 8, generator=seeded())
    images[:35] = train[:35]
    found = memorisation(images, train, heldout)
    assert found.share_copied == pytest.approx(0.1)
    assert found.share_nearer < 0.2


# ---- the protocol -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halves():
    """Unseen images to pass for generated ones, a training set, and the held-out images."""
    train, _ = digits("train")
    order = torch.randperm(len(train), generator=seeded(1))
    return train[order[:721]], train[order[721:]], digits("heldout")[0]


def judged(generations, train, heldout, **settings):
    return evaluate(
        generations, train, heldout, levels=17, generator=seeded(2), partitions=8, **settings
    )


def five(images, seed=3):
    """Five disjoint-as-can-be draws of 355 out of more."""
    g = seeded(seed)
    return [images[torch.randperm(len(images), generator=g)[:355]] for _ in range(5)]


def test_copies_with_a_little_noise_memorise(halves):
    _, train, heldout = halves
    g = seeded(4)
    copies = [x + 0.03 * torch.randn(x.shape, generator=g) for x in five(train)]
    report = judged(copies, train, heldout)
    assert report.verdict == "memorises"
    assert "near-copies of one training image" in " ".join(report.reasons)
    assert report.ratio.low < 1.3  # by distance alone it would have passed
    assert report.share_nearer.low > 0.95


def test_blends_of_training_images_memorise():
    """Half way between two neighbours: near no single image, yet nearer than new ones."""
    train, _ = digits("train")
    flat = train.flatten(1).double()
    distance = torch.cdist(flat, flat).fill_diagonal_(math.inf)
    blends = (train + train[distance.argmin(1)]) / 2
    report = judged(five(blends), train, digits("heldout")[0])
    assert report.verdict == "memorises"
    assert "nearer to the training images" in " ".join(report.reasons)


def test_new_real_images_are_at_the_floor(halves):
    unseen, train, heldout = halves
    report = judged(five(unseen), train, heldout)
    assert report.verdict == "at the floor"
    assert 0.6 < report.ratio.mean < 1.7
    assert report.share_copied.high < 0.01
    assert abs(report.share_nearer.mean - 0.5) < 0.1
    assert report.precision.mean == pytest.approx(report.real_precision.mean, abs=0.06)
    assert report.recall.mean == pytest.approx(report.real_recall.mean, abs=0.06)


def test_noisy_and_blurred_images_are_above_the_floor(halves):
    unseen, train, heldout = halves
    g = seeded(5)
    noisy = [x + 0.3 * torch.randn(x.shape, generator=g) for x in five(unseen)]
    blur = torch.nn.functional.avg_pool2d
    blurred = [0.5 * x + 0.5 * blur(x, 3, 1, padding=1) for x in five(unseen)]
    for images, least in ((noisy, 2), (blurred, 5)):
        report = judged(images, train, heldout)
        assert report.verdict == "above the floor"
        assert report.ratio.low > least


def test_a_missing_class_shows_in_recall_and_in_the_histogram(halves):
    unseen, train, heldout = halves
    known = unseen[classifier().predict(unseen) < 5]
    generations = [known[torch.randint(len(known), (355,), generator=seeded(i))] for i in range(5)]
    report = judged(generations, train, heldout)
    assert report.verdict == "above the floor"
    assert max(report.class_shares[5:]) == 0 and min(report.heldout_shares) > 0.05
    assert report.precision.mean > 0.85 and report.recall.mean < 0.75


def test_a_distance_below_the_floor_is_reported(halves):
    """The held-out images themselves: nearer than any honest sampler can be."""
    _, train, heldout = halves
    report = judged([heldout] * 5, train, heldout)
    assert report.distance.mean == pytest.approx(0, abs=1e-12)
    assert report.verdict == "memorises"
    assert "below the floor" in report.reasons[0]


def test_too_few_generations_for_a_verdict_are_no_praise(halves):
    """Four good sets and a bad one: the interval overlaps the floor only because it is wide."""
    unseen, train, heldout = halves
    images = five(unseen)
    images[4] = images[4] + 0.5 * torch.randn(images[4].shape, generator=seeded(6))
    report = judged(images, train, heldout)
    assert report.distance.low <= report.floor.high and report.ratio.high > 2
    assert report.verdict == "undecided"
    assert "more generations" in report.reasons[0]


def test_distance_and_floor_compare_equal_sizes_with_the_held_out(halves, monkeypatch):
    unseen, train, heldout = halves
    seen = []

    def recording(a, b):
        seen.append((len(a), b))
        return frechet_distance(a, b)

    monkeypatch.setattr(metrics, "frechet_distance", recording)
    network = classifier()
    report = judged(five(unseen), train, heldout)
    assert {n for n, _ in seen} == {355}
    real = network.features(heldout)
    assert all(torch.equal(b, real) for _, b in seen)
    assert len(seen) == 5 + 8 * 2  # 721 training images hold two disjoint subsets
    by_hand = [frechet_distance(network.features(x), real) for x in five(unseen)]
    assert report.distance.values == pytest.approx(by_hand, rel=1e-10)
    assert report.ratio.mean == pytest.approx(report.distance.mean / report.floor.mean)


def test_the_cuts_are_disjoint():
    features = torch.arange(23.0)[:, None]
    for cut in metrics._cuts(features, 5, 6, seeded()):
        assert [len(piece) for piece in cut] == [5, 5, 5, 5]
        assert len(torch.cat(cut).unique()) == 20
    first, second = (metrics._cuts(features, 5, 1, seeded(i))[0][0] for i in (0, 1))
    assert not torch.equal(first, second)


def test_generated_images_are_stored_like_the_data_before_they_are_measured(halves):
    unseen, train, heldout = halves
    nudged = [x + 0.06 for x in five(unseen)]  # less than half a level
    assert judged(nudged, train, heldout) == judged(five(unseen), train, heldout)


def test_the_report_is_plain_data_and_reads_well(halves):
    unseen, train, heldout = halves
    report = judged(five(unseen), train, heldout)
    record = report.to_dict()
    assert json.loads(json.dumps(record)) == json.loads(json.dumps(record))
    assert record["distance"]["values"] == report.distance.values
    summary = report.summary()
    assert "5 generations of 355 images" in summary
    assert f"verdict: {report.verdict}" in summary
    assert all(len(line) < 120 for line in summary.splitlines())


def test_another_feature_map_may_be_used(halves):
    class Pixels:
        def features(self, images):
            return images.double().flatten(1)[:, 20:24]

        def predict(self, images):
            return (images.flatten(1).mean(1) > -0.4).long()

    unseen, train, heldout = halves
    report = judged(five(unseen), train, heldout, classifier=Pixels(), classes=2)
    real = Pixels().features(heldout)
    assert report.distance.values[0] == pytest.approx(
        frechet_distance(Pixels().features(five(unseen)[0]), real)
    )
    assert len(report.class_shares) == 2 and sum(report.class_shares) == pytest.approx(1)


def test_an_estimate_is_students_interval():
    values = [0.3, 0.5, 0.1, 0.4, 0.45, 0.2]
    found = Estimate.of(values)
    low, high = scipy.stats.t.interval(0.95, 5, np.mean(values), scipy.stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values), low, high))


def test_the_error_of_a_ratio_has_both_errors_in_it():
    """To first order: the spread of quotients of two independent, narrow Gaussians."""
    distance, floor = Estimate(0.6, 0.54, 0.66, (0.6, 0.6)), Estimate(0.2, 0.17, 0.23, (0.2, 0.2))
    found = metrics._ratio(distance, floor)
    share = 1 / 50  # narrow, so that the first order is all there is
    drawn = (0.6 + 0.06 * share * normal(400_000)) / (0.2 + 0.03 * share * normal(400_000, seed=1))
    assert found.mean == pytest.approx(3)
    assert found.high - found.mean == pytest.approx((drawn.std() / share).item(), rel=0.01)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


def test_intervals_cover():
    """The interval of a mean of five holds the truth in 95 % of all cases."""
    drawn = normal(2000, 5)
    covered = [Estimate.of(row).low <= 0 <= Estimate.of(row).high for row in drawn.numpy()]
    assert np.mean(covered) == pytest.approx(0.95, abs=5 * math.sqrt(0.95 * 0.05 / 2000))


def test_the_naive_bootstrap_excludes_its_own_point_estimate(network):
    """Resampling repeats images, so every resampled distance is larger: why generations repeat."""
    a = network.features(digits("train")[0][:355])
    b = network.features(digits("heldout")[0])
    g = seeded(7)

    def resampled(x):
        return x[torch.randint(len(x), (len(x),), generator=g)]

    drawn = [frechet_distance(resampled(a), resampled(b)) for _ in range(300)]
    assert np.quantile(drawn, 0.025) > frechet_distance(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g, t, h: (g[:4], t, h), "at least 5 independent generations, got 4"),
        (lambda g, t, h: ([x[:100] for x in g], t, h), "generation 0 must have the shape"),
        (lambda g, t, h: (g, t[:700], h), "at least 710 images"),
        (lambda g, t, h: (g, t.flatten(1), h), "at least 710 images of shape"),
        (lambda g, t, h: ([*g[:4], g[4] * math.nan], t, h), "not finite"),
    ],
)
def test_evaluate_refuses(halves, change, message):
    unseen, train, heldout = halves
    arguments = change(five(unseen), train, heldout)
    with pytest.raises(ValueError, match=message):
        judged(*arguments)


def test_evaluate_needs_two_cuts(halves):
    unseen, train, heldout = halves
    with pytest.raises(ValueError, match="partitions must be an int of at least 2, got 1"):
        evaluate(five(unseen), train, heldout, levels=17, generator=seeded(), partitions=1)


def test_a_classifier_can_be_built_and_moved():
    network = Classifier().half()
    assert network.features(torch.zeros(2, 1, 8, 8)).dtype == torch.float64
    assert network.embed[0].weight.dtype == torch.float16  # measuring leaves it as it is

"""The data of the book: what is in it, that the split is fixed, and that a seed is a sample."""

import hashlib
import math
import socket

import pytest
import torch
from sklearn.datasets import load_digits

from ddpm_lite.data import DIGITS_LEVELS, TOYS, digits, toy, toy_law


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing downloads: a socket that is opened fails the test."""

    def refuse(*_, **__):
        raise AssertionError("the data must not come from the network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


# ---- digits -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "count"), [("train", 1442), ("heldout", 355), ("all", 1797)])
def test_digits_have_the_stated_sizes_types_and_range(split, count):
    images, labels = digits(split)
    assert images.shape == (count, 1, 8, 8) and images.dtype == torch.float32
    assert labels.shape == (count,) and labels.dtype == torch.int64
    assert images.min() == -1 and images.max() == 1
    assert labels.unique().tolist() == list(range(10))


def test_digits_are_exact_multiples_of_an_eighth_on_all_levels():
    images, _ = digits("all")
    level = (images + 1) * 8
    assert torch.equal(level, level.round())
    assert level.unique().tolist() == list(range(DIGITS_LEVELS))


def test_digits_are_those_of_scikit_learn():
    images, labels = digits("all")
    bunch = load_digits()
    assert torch.equal(((images[:, 0] + 1) * 8).double(), torch.from_numpy(bunch.images))
    assert labels.tolist() == bunch.target.tolist()


def test_the_split_parts_the_data_set_without_overlap():
    images, labels = digits("all")
    rows = {split: iter(zip(*digits(split), strict=True)) for split in ("train", "heldout")}
    seen = dict.fromkeys(range(10), 0)
    for image, label in zip(images, labels.tolist(), strict=True):
        seen[label] += 1
        split = "heldout" if seen[label] % 5 == 0 else "train"
        other, other_label = next(rows[split])
        assert torch.equal(image, other) and label == other_label
    assert [next(left, None) for left in rows.values()] == [None, None]


def test_the_split_keeps_the_proportions_of_the_classes():
    counts = {split: digits(split)[1].bincount() for split in ("heldout", "all")}
    assert torch.equal(counts["heldout"], counts["all"] // 5)


def test_the_split_is_the_one_that_stored_results_rest_on():
    """If this changes, so does every number in the book that comes from the digits."""
    images, _ = digits("heldout")
    level = ((images + 1) * 8).to(torch.uint8).numpy()
    assert hashlib.sha256(level.tobytes()).hexdigest()[:16] == "208645cd23e83018"


def test_changing_the_images_does_not_change_the_next_ones():
    images, labels = digits()
    images.zero_()
    labels.zero_()
    again, labels_again = digits()
    assert again.abs().max() == 1 and labels_again.max() == 9


@pytest.mark.parametrize("split", ["test", "Train", "", None])
def test_an_unknown_split_is_refused(split):
    with pytest.raises(ValueError, match=f"train, heldout, all, got {split!r}"):
        digits(split)


# ---- toys ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOYS)
def test_a_toy_is_a_function_of_its_seed(name):
    points = toy(name, 500, seeded(1))
    assert points.shape == (500, 2) and points.dtype == torch.float32
    assert torch.equal(points, toy(name, 500, seeded(1)))
    assert not torch.equal(points, toy(name, 500, seeded(2)))
    precise = toy(name, 500, seeded(1), dtype=torch.float64)
    assert precise.dtype == torch.float64 and torch.equal(precise.float(), points)


@pytest.mark.parametrize("name", TOYS)
def test_a_toy_leaves_the_global_generator_alone(name):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    toy(name, 10, seeded())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", TOYS)
def test_a_toy_is_centred_and_of_size_one(name):
    points = toy(name, 20_000, seeded(), dtype=torch.float64)
    assert points.mean(0).abs().max() < 0.4
    assert points.std(0).min() > 0.6 and points.std(0).max() < 1.3
    assert points.abs().max() < 4
    assert toy(name, 1, seeded()).shape == (1, 2)


@pytest.mark.parametrize("name", ["mixture", "ring-of-gaussians"])
def test_a_toy_with_a_law_follows_it(name):
    """Mean and second moments within five standard errors."""
    law = toy_law(name)
    n = 100_000
    points = toy(name, n, seeded(3), dtype=torch.float64)
    apart = points - law.mean
    error = apart.mean(0) / (law.covariance.diagonal() / n).sqrt()
    assert error.abs().max() < 5
    products = torch.einsum("nd,ne->nde", apart, apart)
    error = (products.mean(0) - law.covariance) / (products.std(0) / math.sqrt(n))
    assert error.abs().max() < 5


def test_the_ring_has_eight_equal_components_on_a_circle():
    law = toy_law("ring-of-gaussians")
    assert law.weights.tolist() == pytest.approx([1 / 8] * 8)
    assert torch.allclose(law.covariances, 0.0144 * torch.eye(2, dtype=torch.float64))
    assert law.means.norm(dim=1).tolist() == pytest.approx([1.4] * 8)
    gaps = (law.means - law.means.roll(1, 0)).norm(dim=1)
    assert gaps.tolist() == pytest.approx([2 * 1.4 * math.sin(math.pi / 8)] * 8)


def test_the_checkerboard_covers_every_other_square_evenly():
    n = 80_000
    points = toy("checkerboard", n, seeded(), dtype=torch.float64)
    assert points.abs().max() < 2
    square = (points + 2).floor().long()
    assert ((square.sum(1) % 2) == 0).all()
    counts = (square @ torch.tensor([4, 1])).bincount(minlength=16)
    used = counts[counts > 0]
    assert len(used) == 8
    assert ((used - n / 8).abs() / math.sqrt(n / 8 * 7 / 8)).max() < 5


def test_the_moons_are_half_circles():
    points = toy("two-moons", 20_000, seeded(), dtype=torch.float64)
    centres = 1.3 * torch.tensor([[-0.5, -0.25], [0.5, 0.25]], dtype=torch.float64)
    distance = (points[:, None] - centres).norm(dim=2)
    off = (distance - 1.3).abs()
    upper = (off[:, 0] < 0.45) & (points[:, 1] > centres[0, 1] - 0.4)
    lower = (off[:, 1] < 0.45) & (points[:, 1] < centres[1, 1] + 0.4)
    assert (upper | lower).all()
    assert upper.any() and lower.any()


@pytest.mark.parametrize(("name", "turns", "arms"), [("spiral", 1.25, 2), ("swiss-roll", 2.0, 1)])
def test_a_spiral_turns_in_proportion_to_its_radius(name, turns, arms):
    points = toy(name, 20_000, seeded(), dtype=torch.float64)
    radius = points.norm(dim=1)
    angle = torch.atan2(points[:, 1], points[:, 0])
    # winding back by the angle that belongs to the radius lays every arm on a ray
    wound_back = angle - 2 * math.pi * turns * radius / 2
    period = 2 * math.pi / arms
    off = (wound_back + period / 2).remainder(period) - period / 2
    far = radius > 1  # nearer in, the noise moves the angle too much
    # noise of 0.05 along the radius turns by π·turns·0.05, across it by 0.05/radius
    expected = 0.05 * ((math.pi * turns) ** 2 + radius[far].pow(-2).mean()).sqrt()
    assert off[far].std().item() == pytest.approx(expected.item(), rel=0.05)
    assert abs(off[far].mean()) < 0.02


@pytest.mark.parametrize("name", ["moons", "Mixture", "", None])
def test_an_unknown_toy_is_refused(name):
    with pytest.raises(ValueError, match=f"mixture, .*, checkerboard, got {name!r}"):
        toy(name, 10, seeded())


def test_a_toy_without_an_exact_law_says_which_have_one():
    with pytest.raises(ValueError, match="are mixture, ring-of-gaussians; 'spiral' is not one"):
        toy_law("spiral")


@pytest.mark.parametrize("n", [0, -1, 2.0, True])
def test_a_number_of_points_that_is_none_is_refused(n):
    with pytest.raises(ValueError, match=f"at least 1, got {n!r}"):
        toy("spiral", n, seeded())

"""The autoregressive model: masks that hide the future, and probabilities that sum to one."""

import math

import pytest
import torch
from torch.nn import functional as F

from ddpm_lite.data import digits, toy, toy_law
from ddpm_lite.families.autoregressive import Autoregressive


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small(dimension=3, bins=4, seed=0):
    """A float64 model with weights large enough that its conditionals are far from uniform."""
    model = Autoregressive(
        dimension, bins=bins, low=-1.0, high=1.0, width=12, generator=seeded(seed)
    ).double()
    for weight in model.weights():
        weight.data *= 4
    return model


def all_cells(dimension, bins):
    return torch.cartesian_prod(*[torch.arange(bins)] * dimension).reshape(-1, dimension)


@pytest.mark.parametrize(("dimension", "bins"), [(1, 5), (2, 7), (3, 4), (5, 3)])
def test_the_probabilities_of_all_cells_sum_to_one(dimension, bins):
    mass = small(dimension, bins).log_mass(all_cells(dimension, bins)).exp()
    assert mass.sum().item() == pytest.approx(1, abs=1e-12)
    assert mass.max() > 3 * mass.min()


@pytest.mark.parametrize("dimension", [2, 3, 6])
def test_no_output_depends_on_its_own_input_or_a_later_one(dimension):
    network = small(dimension).network
    index = torch.randint(4, (1, dimension), generator=seeded(1))
    jacobian = torch.autograd.functional.jacobian(
        lambda x: network.logits(x)[0], network.read(index)
    )
    # (outputs d, bins, inputs d'): the size of ∂(logits of d)/∂(what is read of d')
    size = jacobian[:, :, 0].unflatten(-1, (dimension, -1)).abs().sum(dim=(1, 3))
    before = torch.ones(dimension, dimension).tril(-1).bool()
    assert (size[~before] == 0).all()
    assert (size[before] > 0).all()


def test_one_call_gives_the_conditionals_that_the_joint_law_has():
    # p(x_2 | x_1) and p(x_3 | x_1, x_2) from sums over the table of all cells, Bayes' rule
    model = small(3, 4)
    table = model.log_mass(all_cells(3, 4)).exp().reshape(4, 4, 4)
    conditional = model.network(torch.tensor([[2, 1, 0]]))[0].softmax(-1)
    assert torch.allclose(conditional[0], table.sum((1, 2)), atol=1e-12)
    assert torch.allclose(conditional[1], table[2].sum(1) / table[2].sum(), atol=1e-12)
    assert torch.allclose(conditional[2], table[2, 1] / table[2, 1].sum(), atol=1e-12)


def test_the_density_is_mass_over_volume_and_has_mass_one():
    model = small(2, 7)
    x = torch.tensor([[-0.99, 0.3], [0.1, 0.1]], dtype=torch.float64)
    index = model.bin_of(x)
    assert index.tolist() == [[0, 4], [3, 3]]
    expected = model.log_mass(index) - 2 * math.log(2 / 7)
    assert torch.allclose(model.log_prob(x), expected, atol=1e-12)
    line = -1 + 2 * (torch.arange(70, dtype=torch.float64) + 0.5) / 70
    total = model.log_prob(torch.cartesian_prod(line, line)).exp().sum() * (2 / 70) ** 2
    assert total.item() == pytest.approx(1, abs=1e-12)


def test_the_loss_is_the_mean_cross_entropy():
    model = small(3, 4)
    x = 2 * torch.rand(50, 3, generator=seeded(2), dtype=torch.float64) - 1
    logits, index = model.network(model.bin_of(x)), model.bin_of(x)
    expected = F.cross_entropy(logits.flatten(0, 1), index.flatten())
    assert model.loss(x, seeded()).item() == pytest.approx(expected.item(), rel=1e-12)
    assert model.loss(x, seeded()).item() == pytest.approx(
        -model.log_mass(index).mean().item() / 3, rel=1e-12
    )


def test_samples_come_as_often_as_their_probabilities():
    # 27 cells, 20,000 samples: no count further from its mean than 5 standard errors
    model = small(3, 3)
    index = model.bin_of(model.sample(20_000, seeded(3)))
    counts = torch.bincount(index @ torch.tensor([9, 3, 1]), minlength=27)
    mass = model.log_mass(all_cells(3, 3)).exp()
    away = (counts / 20_000 - mass).abs()
    assert (away < 5 * (mass * (1 - mass) / 20_000).sqrt()).all()


def test_sampling_takes_one_call_for_each_coordinate():
    model = small(5, 3)
    calls = []
    model.network.register_forward_hook(lambda *_: calls.append(1))
    model.sample(2, seeded())
    assert len(calls) == 5


def test_places_within_a_bin_are_uniform_and_stay_in_it():
    model = small(1, 2)
    x = model.sample(20_000, seeded(4))
    place = (x + 1) % 1
    assert place.min() >= 0 and place.max() <= 1 and x.min() >= -1 and x.max() <= 1
    assert place.mean().item() == pytest.approx(0.5, abs=5 / math.sqrt(12 * 20_000))


def test_the_grey_levels_of_digits_sit_in_the_middle_of_their_bins():
    images, _ = digits()
    model = Autoregressive(64, bins=17, low=-17 / 16, high=17 / 16, width=64, generator=seeded())
    x = images.flatten(1)
    index = model.bin_of(x)
    assert torch.allclose(model.low + (index + 0.5) * model.bin_width, x, atol=1e-6)
    before = model.log_mass(index[:100]).mean().item()
    assert before == pytest.approx(-64 * math.log(17), rel=0.05)  # nothing learnt: 17 equal levels
    model.fit(x, steps=10, batch_size=64, generator=seeded(1))
    assert model.log_mass(index[:100]).mean().item() > 0.9 * before
    assert model.sample(2, seeded(2)).shape == (2, 64)


def test_training_brings_it_near_the_data():
    law = toy_law("mixture")
    model = Autoregressive(2, bins=32, low=-4.0, high=4.0, generator=seeded())
    model.fit(toy("mixture", 2000, seeded(1)), steps=150, batch_size=128, generator=seeded(2))
    test = law.sample(1000, seeded(7))
    gap = (law.log_prob(test) - model.log_prob(test.float())).mean().item()
    assert 0 < gap < 0.5


def test_both_ends_of_the_range_belong_to_it():
    ends = torch.tensor([[-1.0, 1.0]], dtype=torch.float64)
    assert small(2, 4).bin_of(ends).tolist() == [[0, 3]]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"cover \[-1, 1\], but a coordinate is 1\.5"):
        small(2).log_prob(torch.tensor([[0.0, 1.5]]))
    with pytest.raises(ValueError, match=r"cover \[-1, 1\], but a coordinate is -2"):
        small(2).fit(torch.tensor([[0.0, -2.0]]), steps=1, batch_size=1, generator=seeded())
    with pytest.raises(ValueError, match=r"low must lie below high, both finite, got 1\.0 and 1"):
        Autoregressive(2, bins=4, low=1.0, high=1.0, generator=seeded())
    with pytest.raises(ValueError, match="bins must be an int of at least 2, got 1"):
        Autoregressive(2, bins=1, low=0.0, high=1.0, generator=seeded())

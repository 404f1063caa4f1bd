"""What the families share: seeded networks, batches, training, the counting of modes, refusals."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from ddpm_lite.data import toy_law
from ddpm_lite.families.common import (
    Family,
    check_data,
    decayed,
    minibatches,
    minimise,
    mlp,
    mode_shares,
    modes_covered,
    normal,
)
from ddpm_lite.oracle import GaussianMixture

RING = toy_law("ring-of-gaussians")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Shift(Family):
    """N(b, I), b learned: a family whose best member is known."""

    name, passes, likelihood, default_learning_rate = "shift", "one pass", "none", 0.1

    def __init__(self, dimension, *, generator):
        self.dimension = dimension
        self.shift = nn.ParameterList([normal((dimension,), generator, torch.float32)])

    def loss(self, x, generator):
        return 0.5 * (x - self.shift[0]).square().sum(1).mean()

    def sample(self, n, generator):
        return self.shift[0].detach() + normal((n, self.dimension), generator, self.dtype)


# ---- networks and batches -----------------------------------------------------------------------


def test_a_network_is_drawn_from_its_generator_alone():
    state = torch.get_rng_state()
    twins = [mlp([3, 16, 2], seeded(1)) for _ in range(2)]
    assert torch.equal(state, torch.get_rng_state())
    for a, b in zip(twins[0].parameters(), twins[1].parameters(), strict=True):
        assert torch.equal(a, b)
    other = mlp([3, 16, 2], seeded(2))
    assert not torch.equal(twins[0][0].weight, other[0].weight)


def test_first_weights_have_the_variance_that_is_promised():
    layer = mlp([300, 400], seeded())[0]
    assert layer.weight.var().item() == pytest.approx(1 / (3 * 300), rel=0.02)
    assert layer.weight.abs().max() <= 1 / math.sqrt(300)


def test_a_network_is_linear_layers_with_a_nonlinearity_between():
    kinds = [type(part) for part in mlp([2, 5, 6, 1], seeded(), nn.Tanh)]
    assert kinds == [nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]
    assert [type(part) for part in mlp([2, 3], seeded())] == [nn.Linear]
    with pytest.raises(ValueError, match="at least an input and an output size"):
        mlp([2], seeded())
    with pytest.raises(ValueError, match="a layer's size must be an int of at least 1, got 0"):
        mlp([2, 0, 1], seeded())


def test_batches_are_independent_draws_with_replacement():
    data = torch.arange(5.0)[:, None]
    drawn = torch.stack(list(minibatches(data, 400, 50, seeded())))
    assert drawn.shape == (400, 50, 1)
    share = torch.stack([(drawn == value).double().mean() for value in range(5)])
    error = math.sqrt(0.2 * 0.8 / 20_000)
    assert (share - 0.2).abs().max() < 5 * error
    # of two draws in a batch, one in five is a repetition: without replacement there were fewer
    repeated = (drawn[:, 0] == drawn[:, 1]).double().mean()
    assert abs(repeated - 0.2) < 5 * math.sqrt(0.2 * 0.8 / 400)


def test_noise_is_the_same_in_every_dtype():
    single, double = (normal((20,), seeded(), kind) for kind in (torch.float32, torch.float64))
    assert torch.equal(single, double.float())


# ---- training -----------------------------------------------------------------------------------


def test_training_finds_the_minimum():
    data = torch.randn(400, 2, generator=seeded()) + torch.tensor([1.0, -3.0])
    model = Shift(2, generator=seeded(1))
    same = model.fit(data, steps=400, batch_size=400, generator=seeded(2))
    assert same is model
    assert (model.shift[0] - data.mean(0)).abs().max() < 0.05


def test_one_seed_one_model():
    data = torch.randn(50, 2, generator=seeded())
    twins = [
        Shift(2, generator=seeded(1)).fit(data, steps=5, batch_size=8, generator=seeded(2))
        for _ in range(2)
    ]
    assert torch.equal(twins[0].shift[0], twins[1].shift[0])


def test_the_learning_rate_falls_from_its_full_value_to_zero():
    rates = [decayed(0.3, step, 10) for step in range(10)]
    assert rates[0] == 0.3 and rates[5] == pytest.approx(0.15)
    assert all(a > b for a, b in pairwise(rates)) and 0 < rates[-1] < 0.01


def test_a_loss_that_is_no_number_stops_the_training():
    weight = nn.Parameter(torch.ones(()))
    with pytest.raises(ValueError, match="the loss became nan at training step 0"):
        minimise(
            lambda x, _: weight * math.nan,
            [weight],
            torch.ones(3, 1),
            steps=2,
            batch_size=2,
            learning_rate=0.1,
            generator=seeded(),
        )
    assert weight.item() == 1


def test_weights_are_counted_over_all_networks():
    model = Shift(3, generator=seeded())
    assert model.parameters == 3
    model.extra = mlp([3, 4, 2], seeded())
    assert model.parameters == 3 + (3 * 4 + 4) + (4 * 2 + 2)
    assert model.dtype == torch.float32 and model.double().dtype == torch.float64
    assert all(weight.dtype == torch.float64 for weight in model.weights())


# ---- modes --------------------------------------------------------------------------------------


def test_samples_of_the_mixture_itself_cover_every_mode():
    samples = RING.sample(20_000, seeded())
    shares = mode_shares(samples, RING)
    within = 1 - math.exp(-4.5)  # P(χ²_2 ≤ 9)
    error = math.sqrt(within * (1 - within) / 20_000)
    assert abs(shares.sum().item() - within) < 5 * error
    assert modes_covered(samples, RING) == 8


@pytest.mark.parametrize("kept", [1, 3, 7])
def test_modes_that_are_left_out_are_missed(kept):
    few = GaussianMixture([1 / kept] * kept, RING.means[:kept], RING.covariances[:kept])
    samples = few.sample(4000, seeded())
    assert modes_covered(samples, RING) == kept
    assert (mode_shares(samples, RING)[kept:] == 0).all()


def test_a_mode_needs_a_quarter_of_its_due():
    """Two far modes of weight ½: the second is covered from a share of ⅛·P(χ²_2 ≤ 9) on."""
    pair = GaussianMixture([0.5, 0.5], [[0.0, 0], [9, 0]], torch.eye(2).expand(2, 2, 2))
    due = 0.5 * (1 - math.exp(-4.5)) / 4
    for share, covered in ((due - 0.002, 1), (due + 0.002, 2)):
        count = round(share * 10_000)
        samples = torch.zeros(10_000, 2)
        samples[:count, 0] = 9
        assert modes_covered(samples, pair) == covered


def test_near_a_mode_is_measured_in_its_own_standard_deviations():
    slanted = GaussianMixture([1.0], [[1.0, 0.0]], [[[4.0, 0.0], [0.0, 0.01]]])
    points = torch.tensor([[6.9, 0.0], [7.1, 0.0], [1.0, 0.29], [1.0, 0.31]])
    at = [mode_shares(point[None], slanted).item() for point in points]
    assert at == [1, 0, 1, 0]


def test_between_the_modes_is_at_none():
    samples = torch.zeros(1000, 2)
    assert mode_shares(samples, RING).sum() == 0 and modes_covered(samples, RING) == 0


def test_too_few_samples_to_tell_are_refused():
    with pytest.raises(ValueError, match=r"10 samples are too few .* at least 33 are needed"):
        modes_covered(RING.sample(10, seeded()), RING)
    assert modes_covered(RING.means.repeat(5, 1), RING) == 8


# ---- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (torch.zeros(0, 2), ValueError, "data must have at least one row, got none"),
        (torch.zeros(5, 3), ValueError, r"data must have shape \(N, 2\), got \(5, 3\)"),
        (torch.zeros(5), ValueError, r"data must have shape \(N, 2\), got \(5,\)"),
        (torch.tensor([[0, math.nan]]), ValueError, "data must be finite, got nan in row 0"),
        (
            torch.tensor([[0, 0], [-math.inf, 0]]),
            ValueError,
            "data must be finite, got -inf in row 1",
        ),
        (torch.zeros(5, 2, dtype=torch.int64), TypeError, "tensor of floats, got torch.int64"),
        ([[0.0, 1.0]], TypeError, "data must be a tensor of floats, got list"),
    ],
)
def test_data_that_cannot_be_learned_from_is_refused(data, error, message):
    with pytest.raises(error, match=message):
        check_data(data, 2)
    with pytest.raises(error, match=message):
        Shift(2, generator=seeded()).fit(data, steps=1, batch_size=1, generator=seeded())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 0}, "steps must be an int of at least 1, got 0"),
        ({"steps": 2.0}, "steps must be an int of at least 1, got 2.0"),
        ({"batch_size": -1}, "batch_size must be an int of at least 1, got -1"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive number, got 0.0"),
        ({"learning_rate": math.nan}, "learning_rate must be a positive number, got nan"),
        ({"learning_rate": "fast"}, "learning_rate must be a positive number, got 'fast'"),
    ],
)
def test_settings_out_of_range_are_refused(changed, message):
    settings = {"steps": 1, "batch_size": 1, "learning_rate": 0.1, **changed}
    with pytest.raises(ValueError, match=message):
        Shift(2, generator=seeded()).fit(torch.zeros(3, 2), **settings, generator=seeded())


def test_what_a_family_lacks_it_says():
    model = Shift(2, generator=seeded())
    with pytest.raises(NotImplementedError, match=r"shift has no log p\(x\) that can be computed"):
        model.log_prob(torch.zeros(1, 2))
    with pytest.raises(NotImplementedError, match=r"shift has no bound on log p\(x\)"):
        model.elbo(torch.zeros(1, 2), seeded())

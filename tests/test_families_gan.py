"""GAN: what its losses are at the optimum, and what its penalty is, held against quadrature."""

import math

import numpy as np
import pytest
import torch

from ddpm_lite.families.common import modes_covered
from ddpm_lite.families.gan import GAN, discriminator_loss, generator_loss, r1_penalty
from ddpm_lite.oracle import GaussianMixture

DATA = GaussianMixture([0.3, 0.7], [[-1.0], [1.0]], [[[0.3]], [[0.2]]])
MODEL = GaussianMixture([1.0], [[0.4]], [[[0.8]]])
LINE = torch.linspace(-9, 9, 401, dtype=torch.float64)[:, None]
STEP = 18 / 400  # the trapezoidal rule, exact to rounding for smooth functions that end at zero


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def densities():
    return DATA.log_prob(LINE).exp(), MODEL.log_prob(LINE).exp()


def game_loss(logit):
    """The discriminator's loss with both expectations as integrals over the line."""
    p, q = densities()

    def expected(density, at_data):
        # the loss of one logit alone, the other so sure that it costs nothing
        sure = torch.tensor(math.inf)
        pairs = [(h, -sure) if at_data else (sure, h) for h in logit]
        each = torch.stack([discriminator_loss(*pair) for pair in pairs])
        return (density * each).sum() * STEP

    return (expected(p, True) + expected(q, False)).item()


def jensen_shannon():
    p, q = (density.numpy() for density in densities())
    middle = (p + q) / 2
    return STEP * 0.5 * np.sum(p * np.log(p / middle) + q * np.log(q / middle))


def test_at_the_best_discriminator_the_value_is_the_jensen_shannon_divergence():
    best = DATA.log_prob(LINE) - MODEL.log_prob(LINE)
    assert -game_loss(best) == pytest.approx(2 * jensen_shannon() - math.log(4), abs=1e-10)
    assert jensen_shannon() > 0.05


def test_no_other_discriminator_does_better():
    best = DATA.log_prob(LINE) - MODEL.log_prob(LINE)
    least = game_loss(best)
    for change in (0.1, -0.1, 0.1 * LINE[:, 0], 0.2 * LINE[:, 0].sin()):
        assert game_loss(best + change) > least + 1e-5
    assert game_loss(torch.zeros_like(best)) == pytest.approx(math.log(4), abs=1e-10)


def test_the_losses_are_cross_entropies():
    real, fake = torch.tensor([0.3, -2.0]).double(), torch.tensor([1.5, -0.4, 0.0]).double()
    by_hand = -real.sigmoid().log().mean() - (1 - fake.sigmoid()).log().mean()
    assert discriminator_loss(real, fake).item() == pytest.approx(by_hand.item(), abs=1e-14)
    expected = -fake.sigmoid().log().mean().item()
    assert generator_loss(fake).item() == pytest.approx(expected, abs=1e-14)
    assert discriminator_loss(torch.tensor(-1e4), torch.tensor(1e4)) == 2e4  # no overflow


def test_the_generator_still_learns_where_the_discriminator_is_sure():
    """The slopes, −sigmoid(−h) and −sigmoid(h): from h = −20 only the first moves anything."""
    h = torch.tensor([-20.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(generator_loss(h), h)
    assert slope.item() == pytest.approx(-1, abs=1e-8)
    (slope,) = torch.autograd.grad(torch.log(1 - h.sigmoid()).mean(), h)
    assert slope.item() == pytest.approx(-math.exp(-20), rel=1e-6)


def test_the_penalty_is_half_the_mean_squared_slope():
    x = torch.randn(50, 3, dtype=torch.float64, generator=seeded())
    slope = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    linear = r1_penalty(lambda x: (x @ slope + 7)[:, None], x)
    assert linear.item() == pytest.approx(slope.square().sum().item() / 2, abs=1e-12)
    square = r1_penalty(lambda x: x.square().sum(1, keepdim=True), x)
    assert square.item() == pytest.approx(2 * x.square().sum(1).mean().item(), abs=1e-12)
    assert r1_penalty(lambda x: 0 * x[:, :1] + 3, x) == 0
    assert not x.requires_grad


def test_the_penalty_can_be_descended():
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    x = torch.randn(50, 2, dtype=torch.float64, generator=seeded())
    (slope,) = torch.autograd.grad(r1_penalty(lambda x: scale * x[:, :1], x), scale)
    assert slope.item() == pytest.approx(2.0, abs=1e-12)  # of scale²/2


def test_the_generator_climbs_what_the_discriminator_says():
    """Against a discriminator that cannot learn, samples must come to lie where it is highest."""
    model = GAN(1, width=8, generator=seeded())

    class Hill(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.idle = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return 0 * self.idle - (x - 2).square()

    model.discriminator = Hill()
    model.fit(torch.zeros(10, 1), steps=200, batch_size=64, generator=seeded(1))
    samples = model.sample(500, seeded(2))
    assert abs(samples.mean() - 2) < 0.1 and samples.std() < 0.3


def test_without_the_penalty_a_wide_gap_is_learned_too():
    model = GAN(2, width=16, penalty=0.0, generator=seeded())
    data = torch.tensor([3.0, -1.0]) + 0.1 * torch.randn(500, 2, generator=seeded(1))
    before = model.sample(500, seeded(3)).mean(0)
    model.fit(data, steps=150, batch_size=64, generator=seeded(2))
    after = model.sample(500, seeded(3)).mean(0)
    target = data.mean(0)
    assert (after - target).norm() < 0.5 * (before - target).norm()


def test_one_seed_one_model_and_the_global_generator_is_left_alone():
    data = torch.randn(100, 2, generator=seeded())
    state = torch.get_rng_state()
    twins = [
        GAN(2, width=8, generator=seeded(1)).fit(data, steps=3, batch_size=16, generator=seeded(2))
        for _ in range(2)
    ]
    assert torch.equal(twins[0].sample(50, seeded(3)), twins[1].sample(50, seeded(3)))
    assert torch.equal(state, torch.get_rng_state())
    assert twins[0].sample(50, seeded(3)).shape == (50, 2)
    assert twins[0].parameters == 2 * (2 * 8 + 8 + 8 * 8 + 8) + (8 * 2 + 2) + (8 + 1)


def test_a_collapsed_generator_is_seen():
    ring = GaussianMixture(
        [0.25] * 4, [[2.0, 0], [-2, 0], [0, 2], [0, -2]], 0.01 * torch.eye(2).expand(4, 2, 2)
    )
    model = GAN(2, width=8, generator=seeded())
    with torch.no_grad():
        model.generator[-1].weight.zero_()
        model.generator[-1].bias.copy_(torch.tensor([2.0, 0.0]))
    assert modes_covered(model.sample(400, seeded(1)), ring) == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"penalty": -1.0}, "penalty must be at least 0, got -1.0"),
        ({"penalty": math.nan}, "penalty must be at least 0, got nan"),
        ({"latent": 0}, "latent must be an int of at least 1, got 0"),
        ({"width": 0}, "a layer's size must be an int of at least 1, got 0"),
    ],
)
def test_bad_settings_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        GAN(2, **changed, generator=seeded())


def test_it_has_no_likelihood_and_says_so():
    model = GAN(2, width=4, generator=seeded())
    with pytest.raises(NotImplementedError, match="GAN has no log p"):
        model.log_prob(torch.zeros(1, 2))
    with pytest.raises(NotImplementedError, match="GAN has no bound"):
        model.elbo(torch.zeros(1, 2), seeded())
    with pytest.raises(NotImplementedError, match="not trained by one loss"):
        model.loss(torch.zeros(1, 2), seeded())

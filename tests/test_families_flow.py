"""The normalising flow: an exact inverse, an exact determinant, a density of mass one."""

import math

import pytest
import torch

from ddpm_lite.data import toy, toy_law
from ddpm_lite.families.flow import (
    REACH,
    Flow,
    dequantise,
    knots,
    spline,
    spline_inverse,
    standard_log_prob,
)

PIECES = 5


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def flow(dimension=2, **settings):
    """A float64 flow whose layers bend: its weights are larger than at the start."""
    model = Flow(dimension, width=16, generator=seeded(), **settings).double()
    model.standardise.set(1.5 * torch.randn(50, dimension, generator=seeded(1)).double() + 0.3)
    for weight in model.weights():
        weight.data *= 1.4
    return model


def points(n, dimension, spread=2.0, seed=2):
    return spread * torch.randn(n, dimension, generator=seeded(seed), dtype=torch.float64)


def curve(rows):
    drawn = 2 * torch.randn(3 * PIECES - 1, generator=seeded(3), dtype=torch.float64)
    parts = drawn.split([PIECES, PIECES, PIECES - 1])
    return [part.repeat(rows, 1) for part in knots(*parts)]


# ---- the curve ----------------------------------------------------------------------------------


def test_knots_rise_from_end_to_end_and_have_slope_one_there():
    xs, ys, slopes = (part[0] for part in curve(1))
    for place in (xs, ys):
        assert (place.diff() > 0).all() and len(place) == PIECES + 1
        assert place[0].item() == -REACH and place[-1].item() == pytest.approx(REACH, abs=1e-12)
    assert (slopes > 0).all()
    assert slopes[[0, -1]].tolist() == pytest.approx([1, 1], abs=1e-12)


def test_the_curve_passes_through_its_knots_with_its_slopes():
    xs, ys, slopes = curve(PIECES + 1)
    value, log_slope = spline(xs[0], xs, ys, slopes)
    assert torch.allclose(value, ys[0], rtol=0, atol=1e-12)
    assert torch.allclose(log_slope.exp(), slopes[0], rtol=1e-10)


def test_the_slope_is_the_derivative_and_positive_and_the_inverse_is_one():
    x = torch.linspace(-7, 7, 401, dtype=torch.float64, requires_grad=True)
    value, log_slope = spline(x, *curve(401))
    (slope,) = torch.autograd.grad(value.sum(), x)
    assert (value.diff() > 0).all()
    assert torch.allclose(log_slope.exp(), slope, rtol=1e-10)
    assert torch.allclose(spline_inverse(value, *curve(401)), x, rtol=0, atol=1e-11)
    outside = x.abs() > REACH
    assert torch.equal(value[outside], x[outside]) and (log_slope[outside] == 0).all()


def test_raw_zeros_give_the_identity():
    rows = [torch.zeros(9, n, dtype=torch.float64) for n in (PIECES, PIECES, PIECES - 1)]
    x = torch.linspace(-6, 6, 9, dtype=torch.float64)
    value, log_slope = spline(x, *knots(*rows))
    assert torch.allclose(value, x, rtol=0, atol=1e-12)
    assert torch.allclose(log_slope, torch.zeros_like(x), atol=1e-12)


# ---- the whole map ------------------------------------------------------------------------------


@pytest.mark.parametrize("dimension", [2, 3, 5])
def test_there_and_back(dimension):
    model = flow(dimension)
    x = points(200, dimension)
    z, _ = model.to_noise(x)
    assert (z - x).abs().max() > 0.3
    assert torch.allclose(model.to_data(z), x, rtol=0, atol=1e-10)
    assert torch.allclose(model.to_noise(model.to_data(x))[0], x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dimension", [2, 3])
def test_the_log_determinant_is_that_of_autograds_jacobian(dimension):
    model = flow(dimension)
    x = points(20, dimension)
    _, log_det = model.to_noise(x)
    for row, found in zip(x, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda a: model.to_noise(a[None])[0][0], row)
        expected = torch.linalg.slogdet(jacobian)[1]
        assert found.item() == pytest.approx(expected.item(), abs=1e-10)


def test_every_coordinate_is_moved_and_depends_on_every_other():
    model = flow(3)
    row = points(1, 3)[0]
    jacobian = torch.autograd.functional.jacobian(lambda a: model.to_noise(a[None])[0][0], row)
    assert (jacobian.abs() > 1e-4).all()


def test_the_density_has_mass_one():
    # the midpoint rule on 300² cells; what lies beyond ±12 is below 1e-6
    model = flow()
    cell = 24 / 300
    line = -12 + cell * (torch.arange(300, dtype=torch.float64) + 0.5)
    mass = model.log_prob(torch.cartesian_prod(line, line)).exp().sum() * cell**2
    assert mass.item() == pytest.approx(1, abs=2e-3)


def test_the_density_is_that_of_what_is_sampled():
    # P(x in a box): by counting 20,000 samples, and by quadrature of the density; 5 standard errors
    model = flow()
    drawn = model.sample(20_000, seeded(4))
    low, side = torch.tensor([-0.5, 0.2]), 0.8
    counted = ((drawn > low) & (drawn < low + side)).all(1).double().mean().item()
    line = side * (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    grid = low + torch.cartesian_prod(line, line)
    share = model.log_prob(grid).exp().mean().item() * side**2
    assert 0.01 < share < 0.9
    assert abs(counted - share) < 5 * math.sqrt(share * (1 - share) / 20_000)


def test_samples_are_the_images_of_gaussian_noise():
    model = flow()
    z, log_det = model.to_noise(model.sample(5, seeded(6)))
    noise = torch.randn(5, 2, generator=seeded(6), dtype=torch.float64)
    assert torch.allclose(z, noise, rtol=0, atol=1e-9)
    expected = standard_log_prob(noise) + log_det
    assert torch.allclose(model.log_prob(model.sample(5, seeded(6))), expected, atol=1e-8)
    normal = torch.distributions.Normal(0.0, 1.0)
    assert torch.allclose(standard_log_prob(noise), normal.log_prob(noise).sum(1), rtol=1e-12)


# ---- training -----------------------------------------------------------------------------------


def test_training_brings_it_near_the_data():
    law = toy_law("mixture")
    test = law.sample(1000, seeded(7))
    model = Flow(2, generator=seeded())
    model.fit(toy("mixture", 2000, seeded(1)), steps=60, batch_size=128, generator=seeded(2))
    gap = (law.log_prob(test) - model.log_prob(test.float())).mean().item()
    # the best Gaussian is 1.25 nats away
    assert 0 < gap < 0.5


def test_one_seed_gives_one_model():
    first, second = (
        Flow(2, width=8, generator=seeded()).fit(
            toy("mixture", 100, seeded(1)), steps=3, batch_size=8, generator=seeded(2)
        )
        for _ in range(2)
    )
    assert torch.equal(first.sample(4, seeded(3)), second.sample(4, seeded(3)))


def test_digits_go_through_the_same_interface():
    x = dequantise(torch.full((64, 64), -1.0), 17, seeded(1))
    model = Flow(64, width=16, layers=2, pieces=4, generator=seeded())
    before = model.fit(x, steps=1, batch_size=16, generator=seeded(2)).log_prob(x).mean()
    after = model.fit(x, steps=30, batch_size=16, generator=seeded(2)).log_prob(x).mean()
    assert model.sample(3, seeded(3)).shape == (3, 64) and after > before


# ---- grey levels, and refusals ------------------------------------------------------------------


def test_dequantised_levels_fill_their_own_cells():
    levels = -1 + 2 * torch.arange(17.0) / 16
    x = dequantise(levels.expand(2000, 17), 17, seeded())
    assert torch.equal(((x + 1) * 8).round().long(), torch.arange(17).expand(2000, 17))
    away = (x - levels) * 16  # uniform on [−1, 1]: standard deviation 1/√3
    assert away.abs().max() <= 1 + 1e-5
    assert away.std().item() == pytest.approx(3**-0.5, abs=0.02)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="dimension of at least 2, got 1"):
        Flow(1, generator=seeded())
    with pytest.raises(ValueError, match="pieces must be an int of at least 1, got 0"):
        Flow(2, pieces=0, generator=seeded())
    flat = torch.stack([torch.arange(5.0), torch.full((5,), 2.5)], dim=1)
    with pytest.raises(ValueError, match=r"coordinate 1 is always 2\.5"):
        Flow(2, generator=seeded()).fit(flat, steps=1, batch_size=2, generator=seeded())
    with pytest.raises(ValueError, match="levels must be an int of at least 2, got 1"):
        dequantise(torch.zeros(1, 1), 1, seeded())
    with pytest.raises(ValueError, match="must be finite, got nan"):
        flow().log_prob(torch.tensor([[0.0, math.nan]]))

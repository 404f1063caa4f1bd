"""Flow matching: velocities against closed forms, the ODE against exact maps, conversions."""

import math

import numpy as np
import pytest
import torch

from ddpm_lite import GaussianDiffusion, NoiseSchedule, generate
from ddpm_lite.data import toy, toy_law
from ddpm_lite.families.flow_matching import (
    FlowMatching,
    alpha_bar_from_rho,
    between,
    carry,
    denoiser_of,
    divergence,
    eps_from_velocity,
    exact_velocity,
    log_prob_along,
    rho_from_alpha_bar,
    size,
    velocity_from_eps,
    velocity_from_x0,
    x0_from_velocity,
)
from ddpm_lite.oracle import GaussianData, GaussianMixture

MIXTURE = GaussianMixture([0.3, 0.7], [[-1.0], [1.0]], [[[0.1]], [[0.05]]])
SCHEDULE = NoiseSchedule.linear(40, 0.0025, 0.5)
COUNTS = (16, 32, 64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def at(rho):
    """The law of x_ρ for MIXTURE: N((1−ρ)²) added to the mixture shrunk by ρ, in closed form."""
    return GaussianMixture(
        MIXTURE.weights,
        rho * MIXTURE.means,
        rho**2 * MIXTURE.covariances + (1 - rho) ** 2 * torch.eye(1, dtype=torch.float64),
    )


def order(errors):
    return -np.polyfit(np.log(COUNTS), np.log(errors), 1)[0]


# ---- the exact field ----------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.05, 0.4, 0.8, 0.97])
def test_the_velocity_is_a_mean_over_the_posterior_by_quadrature(rho):
    # E[x_0 − ε | x_ρ], with ε = (x_ρ − ρ·x_0)/(1−ρ) and p(x_0 | x_ρ) ∝ p(x_0)·N(ε; 0, 1)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    grid = torch.linspace(-4, 4, 40_001, dtype=torch.float64)
    eps = (x[:, None] - rho * grid) / (1 - rho)
    weight = (MIXTURE.log_prob(grid[:, None]) - eps.square() / 2).softmax(1)
    expected = (weight * (grid - eps)).sum(1)
    found = exact_velocity(MIXTURE)(x[:, None], rho)[:, 0]
    assert torch.allclose(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("rho", [0.1, 0.5, 0.9])
def test_law_and_velocity_obey_the_continuity_equation(rho):
    # ∂p/∂ρ = −∂(p·u)/∂x, by central differences of closed forms
    x, h = torch.linspace(-1.5, 1.5, 13, dtype=torch.float64)[:, None], 1e-5
    flux = lambda x: at(rho).log_prob(x).exp() * exact_velocity(MIXTURE)(x, rho)[:, 0]  # noqa: E731
    change = (at(rho + h).log_prob(x).exp() - at(rho - h).log_prob(x).exp()) / (2 * h)
    outflow = (flux(x + h) - flux(x - h)) / (2 * h)
    assert torch.allclose(change, -outflow, rtol=1e-6, atol=1e-7)
    assert change.abs().max() > 0.1


def test_at_both_ends_the_velocity_is_what_the_line_says():
    x = normal(5, 1)
    field = exact_velocity(MIXTURE)
    assert torch.allclose(field(x, 0.0), MIXTURE.mean - x, atol=1e-12)
    assert torch.equal(field(x, 1.0), x)
    assert torch.allclose(field(x, 1 - 1e-9), x, atol=1e-6)


def test_the_target_of_the_regression_has_the_exact_velocity_for_its_mean():
    # in each bin of x_ρ the mean of (x_0 − ε) − u(x_ρ) is 0 within 5 standard errors
    rho, n = 0.6, 100_000
    x0, noise = MIXTURE.sample(n, seeded(1)), normal(n, 1, seed=2)
    x_rho = between(noise, x0, rho)
    rest = (x0 - noise - exact_velocity(MIXTURE)(x_rho, rho))[:, 0]
    bins = torch.bucketize(x_rho[:, 0], torch.linspace(-1.2, 1.2, 9, dtype=torch.float64))
    for b in range(10):
        part = rest[bins == b]
        assert len(part) > 500
        assert abs(part.mean()) < 5 * part.std() / math.sqrt(len(part))


def test_the_loss_is_the_squared_error_of_the_difference_on_the_line():
    # the noise that the loss drew is read back from x_ρ and ρ: then x_0 − ε is known, and is 0 away
    data = MIXTURE.sample(50, seeded(3))
    model = FlowMatching(1, generator=seeded()).double()
    times = []

    def told(x, rho):
        times.append(rho)
        return (data - x) / (1 - rho[:, None])

    model.velocity = told
    assert model.loss(data, seeded(4)).item() == pytest.approx(0, abs=1e-20)
    model.velocity = lambda x, rho: told(x, rho) + 0.5
    assert model.loss(data, seeded(4)).item() == pytest.approx(0.25, rel=1e-9)
    assert times[0].min() > 0 and times[0].max() < 1 and 0.35 < times[0].mean() < 0.65


# ---- the ODE ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("solver", "expected"), [("euler", 1), ("heun", 2)])
def test_the_exact_field_carries_noise_to_the_mixture_by_its_quantiles(solver, expected):
    # on a line paths cannot cross, so the ODE's map keeps quantiles
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    goal = MIXTURE.quantile(0.5 * (1 + torch.special.erf(z / math.sqrt(2))))
    field = exact_velocity(MIXTURE)
    errors = [
        (carry(field, z, 0.0, 1.0, steps=n, solver=solver) - goal).square().mean().sqrt().item()
        for n in COUNTS
    ]
    assert errors[-1] < {"euler": 0.05, "heun": 1e-2}[solver]
    assert order(errors) == pytest.approx(expected, abs=0.35)


@pytest.mark.parametrize(("solver", "expected"), [("euler", 1), ("heun", 2)])
def test_the_likelihood_along_the_ode_is_that_of_a_gaussian(solver, expected):
    law = GaussianData([0.5, -1.0], [[0.6, 0.3], [0.3, 0.5]])
    x = law.sample(4, seeded(5))
    errors = [
        (log_prob_along(exact_velocity(law), x, steps=n, solver=solver) - law.log_prob(x))
        .abs()
        .max()
        .item()
        for n in COUNTS
    ]
    assert errors[-1] < {"euler": 0.2, "heun": 1e-2}[solver]
    assert order(errors) == pytest.approx(expected, abs=0.2)


def test_the_divergence_is_the_trace_of_autograds_jacobian():
    model = FlowMatching(3, width=16, generator=seeded()).double()
    x = normal(4, 3)
    velocity, found = divergence(model.velocity, x, 0.3)
    assert torch.allclose(velocity, model.velocity(x, 0.3), atol=1e-14)
    for row, value in zip(x, found, strict=True):
        jacobian = torch.autograd.functional.jacobian(
            lambda a: model.velocity(a[None], 0.3)[0], row
        )
        assert value.item() == pytest.approx(jacobian.trace().item(), abs=1e-12)


def test_there_and_back_is_the_identity_to_the_solvers_order():
    model = FlowMatching(2, width=16, generator=seeded()).double()
    x = normal(6, 2)
    with torch.no_grad():
        z = carry(model.velocity, x, 1.0, 0.0, steps=200, solver="heun")
        assert torch.allclose(
            carry(model.velocity, z, 0.0, 1.0, steps=200, solver="heun"), x, atol=1e-5
        )


# ---- conversions --------------------------------------------------------------------------------


def test_one_prediction_has_three_forms():
    x0, noise = normal(6, 3, seed=1), normal(6, 3, seed=2)
    rho = torch.tensor([0.001, 0.2, 0.5, 0.7, 0.9, 0.999], dtype=torch.float64)
    x_rho, velocity = between(noise, x0, rho), x0 - noise
    assert torch.allclose(velocity_from_x0(x0, x_rho, rho), velocity, atol=1e-11)
    assert torch.allclose(velocity_from_eps(noise, x_rho, rho), velocity, atol=1e-11)
    assert torch.allclose(x0_from_velocity(velocity, x_rho, rho), x0, atol=1e-14)
    assert torch.allclose(eps_from_velocity(velocity, x_rho, rho), noise, atol=1e-14)
    assert torch.allclose(velocity_from_x0(x0[:1], x_rho[:1], 0.001), velocity[:1], atol=1e-11)


def test_rho_and_alpha_bar_have_the_same_signal_to_noise_ratio():
    alpha_bar = SCHEDULE.alpha_bar
    rho = rho_from_alpha_bar(alpha_bar)
    assert rho[0] == 1 and (rho.diff() < 0).all()
    assert torch.allclose((rho / (1 - rho))[1:].square(), SCHEDULE.snr[1:], rtol=1e-10)
    assert torch.allclose(alpha_bar_from_rho(rho), alpha_bar, rtol=1e-10)
    assert rho_from_alpha_bar(0.5).item() == 0.5 and rho_from_alpha_bar(0.0).item() == 0


def test_x_rho_is_x_t_of_another_size():
    x0, noise = normal(4, 2, seed=1), normal(4, 2, seed=2)
    for t in (1, 13, 40):
        alpha_bar = SCHEDULE.alpha_bar[t]
        rho = rho_from_alpha_bar(alpha_bar)
        x_t = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
        assert torch.allclose(between(noise, x0, rho), size(rho) * x_t, atol=1e-13)


def test_as_a_denoiser_the_exact_field_is_the_oracles_eps():
    law, x = toy_law("mixture"), normal(7, 2)
    field = exact_velocity(law)
    denoise = denoiser_of(lambda x, rho: field(x, rho[0].item()), SCHEDULE)
    for t in (1, 13, 40):
        assert torch.allclose(denoise(x, t), law.eps(SCHEDULE, x, t), rtol=1e-8, atol=1e-9)


def test_ddim_with_it_is_eulers_method_on_the_chains_rhos():
    model = FlowMatching(2, width=16, generator=seeded()).double()
    x_T, steps = normal(5, 2), [40, 31, 17, 6, 1]
    walked = generate(
        denoiser_of(model.velocity, SCHEDULE),
        GaussianDiffusion(SCHEDULE),
        (5, 2),
        steps=steps,
        eta=0.0,
        generator=seeded(),
        x_T=x_T,
    )
    rho = rho_from_alpha_bar(SCHEDULE.alpha_bar)
    x = size(rho[40]) * x_T
    with torch.no_grad():
        for t, s in zip(steps, [*steps[1:], 0], strict=True):
            x = x + (rho[s] - rho[t]) * model.velocity(x, rho[t])
    assert torch.allclose(walked, x, rtol=0, atol=1e-12)


# ---- training -----------------------------------------------------------------------------------


def test_training_brings_it_near_the_data():
    law = toy_law("mixture")
    model = FlowMatching(2, generator=seeded())
    model.fit(toy("mixture", 2000, seeded(1)), steps=250, batch_size=128, generator=seeded(2))
    x = law.sample(300, seeded(7))
    gap = (law.log_prob(x) - model.log_prob(x.float())).mean().item()
    assert 0 < gap < 0.4
    assert model.sample(500, seeded(3)).mean(0).tolist() == pytest.approx(
        law.mean.tolist(), abs=0.2
    )


def test_one_seed_gives_one_model():
    first, second = (
        FlowMatching(2, width=8, generator=seeded()).fit(
            toy("mixture", 100, seeded(1)), steps=3, batch_size=8, generator=seeded(2)
        )
        for _ in range(2)
    )
    assert torch.equal(first.sample(4, seeded(3)), second.sample(4, seeded(3)))


def test_digits_go_through_the_same_interface():
    x = 2 * torch.rand(40, 64, generator=seeded(1)) - 1
    model = FlowMatching(64, width=16, steps=2, generator=seeded())
    model.fit(x, steps=2, batch_size=16, generator=seeded(2))
    assert model.sample(3, seeded(3)).shape == (3, 64)
    assert model.log_prob(x[:2]).shape == (2,)


def test_what_does_not_fit_is_refused():
    x = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="at rho = 1 the noise is gone"):
        velocity_from_x0(x, x, 1.0)
    with pytest.raises(ValueError, match="at rho = 0 there is no signal"):
        velocity_from_eps(x, x, 0.0)
    with pytest.raises(ValueError, match=r"rho must lie in \[0, 1\], got 1\.5"):
        alpha_bar_from_rho(1.5)
    with pytest.raises(ValueError, match="solver must be one of euler, heun, got 'rk4'"):
        carry(exact_velocity(MIXTURE), x, 0.0, 1.0, steps=1, solver="rk4")
    with pytest.raises(ValueError, match="steps must be an int of at least 1, got 0"):
        FlowMatching(2, steps=0, generator=seeded())

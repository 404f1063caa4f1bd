"""The oracle is the truth of the other tests, so it is held to identities that do not use it.

Each law is compared with plain matrix formulas (inverses, torch.distributions), with integrals on
a grid (the trapezoidal rule converges exponentially fast for these functions), with Bayes' rule
written out, or with process.py, which knows nothing of the data.
"""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal

from ddpm_lite import GaussianDiffusion, NoiseSchedule
from ddpm_lite.oracle import FiniteData, GaussianData, GaussianMixture

SCHEDULE = NoiseSchedule.from_betas([0.10, 0.25, 0.40, 0.55])  # short and strong
LINE = GaussianMixture([0.3, 0.5, 0.2], [[-1.5], [0.4], [2.0]], [[[0.09]], [[0.6]], [[0.02]]])


def close(left, right, rtol=1e-10, atol=1e-11):
    np.testing.assert_allclose(np.asarray(left), np.asarray(right), rtol=rtol, atol=atol)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def parameters(seed, components, size):
    """Weights, means and full covariances, eigenvalues between about 0.05 and 5."""
    g = seeded(seed)
    weights = torch.rand(components, generator=g, dtype=torch.float64) + 0.1
    root = normal(g, components, size, size) * 0.8
    covariances = root @ root.mT + 0.05 * torch.eye(size, dtype=torch.float64)
    return weights / weights.sum(), 1.5 * normal(g, components, size), covariances


def component_log_prob(x, means, covariances):
    """(B, K), by torch.distributions and its Cholesky factors."""
    law = MultivariateNormal(means, covariances)
    return law.log_prob(x[:, None])


schedules = st.lists(st.floats(0.01, 0.6), min_size=2, max_size=8).map(NoiseSchedule.from_betas)
parts = st.builds(parameters, st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4))
on_the_line = st.builds(parameters, st.integers(0, 10**6), st.integers(1, 4), st.just(1))


@st.composite
def cases(draw):
    """Data of one of the three kinds, a schedule, s < t, and a few points x_t."""
    weights, means, covariances = draw(parts)
    kind = draw(st.sampled_from(["mixture", "gaussian", "finite"]))
    data = {
        "mixture": lambda: GaussianMixture(weights, means, covariances),
        "gaussian": lambda: GaussianData(means[0], covariances[0]),
        "finite": lambda: FiniteData(means),
    }[kind]()
    schedule = draw(schedules)
    t = draw(st.integers(1, schedule.T))
    s = draw(st.integers(0, t - 1))
    x_t = 2 * normal(seeded(draw(st.integers(0, 10**6))), 5, data.dimension)
    return data, schedule, t, s, x_t


def line(low=-9.0, high=9.0, count=6001):
    """Grid points (count, 1) and the weight of each, for integrals over the line."""
    x = torch.linspace(low, high, count, dtype=torch.float64)
    return x[:, None], (high - low) / (count - 1)


# ---- the law itself ------------------------------------------------------------------------------


@given(parts)
def test_log_prob_is_that_of_torch_distributions(given_parts):
    weights, means, covariances = given_parts
    x = 2 * normal(seeded(1), 6, means.shape[1])
    expected = torch.logsumexp(weights.log() + component_log_prob(x, means, covariances), 1)
    law = GaussianMixture(weights, means, covariances)
    close(law.log_prob(x), expected)
    close(law.covariances, covariances)


@given(cases())
def test_score_is_the_gradient_of_log_prob(case):
    data, schedule, t, _, x = case
    law = data.marginal(schedule, t)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(law.log_prob(x).sum(), x)
    close(law.score(x.detach()), gradient, rtol=1e-9)


def test_score_can_itself_be_differentiated():
    law = LINE.marginal(SCHEDULE, 2)
    x = torch.tensor([[0.3]], dtype=torch.float64, requires_grad=True)
    (curvature,) = torch.autograd.grad(law.score(x).sum(), x)
    h = 1e-4
    difference = (law.score(x + h) - law.score(x - h)).item() / (2 * h)
    assert curvature.item() == pytest.approx(difference, rel=1e-6)


@pytest.mark.parametrize("t", [0, 1, 4])
def test_density_on_the_line_has_mass_mean_and_variance(t):
    x, dx = line(count=20001)
    law = LINE.marginal(SCHEDULE, t)
    density = law.log_prob(x).exp()[:, None] * dx
    mean = (density * x).sum()
    close(density.sum(), 1.0)
    close(mean, law.mean[0])
    close((density * (x - mean) ** 2).sum(), law.covariance[0, 0])


def test_density_in_the_plane_has_mass_mean_and_covariance():
    law = GaussianMixture(*parameters(5, 3, 2))
    axis = torch.linspace(-14, 14, 701, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    mass = law.log_prob(x).exp() * (28 / 700) ** 2
    close(mass.sum(), 1.0, rtol=1e-9)
    close(mass @ x, law.mean, rtol=1e-9)
    apart = x - law.mean
    close((mass[:, None] * apart).T @ apart, law.covariance, rtol=1e-8)


def test_log_prob_far_away_does_not_overflow():
    x = torch.tensor([[1e3], [-1e8]], dtype=torch.float64)
    value = LINE.log_prob(x)
    assert value.isfinite().all()
    # far out the broadest component alone is left
    expected = math.log(0.5) - 0.5 * (1e3 - 0.4) ** 2 / 0.6 - 0.5 * math.log(2 * math.pi * 0.6)
    close(value[0], expected)
    close(LINE.score(x)[0], [-(1e3 - 0.4) / 0.6])


def test_entropy_is_minus_the_mean_of_log_prob():
    law = GaussianData([0.7], [[0.3]])
    x, dx = line()
    log_density = law.log_prob(x)
    close(law.entropy(), -(log_density.exp() * log_density).sum() * dx)
    _, means, covariances = parameters(3, 1, 4)
    wide = GaussianData(means[0], covariances[0])
    close(wide.entropy(), MultivariateNormal(means[0], covariances[0]).entropy())


# ---- cdf and quantile ----------------------------------------------------------------------------


def test_cdf_is_the_integral_of_the_density():
    low, high = -9.0, 0.9
    x, dx = line(low, high, 40001)
    density = LINE.log_prob(x).exp()
    simpson = torch.ones(40001, dtype=torch.float64)
    simpson[1:-1:2], simpson[2:-1:2] = 4, 2
    close(LINE.cdf(high), (simpson * density).sum() * dx / 3)
    assert LINE.cdf(torch.zeros(2, 3)).shape == (2, 3)


@given(on_the_line, st.floats(-3, 3))
def test_quantile_undoes_cdf(given_parts, place):
    law = GaussianMixture(*given_parts)
    x = law.mean + place * law.covariance[0].sqrt()
    p = law.cdf(x)
    assume(p < 1 - 1e-9)  # there p itself has lost the digits of the tail
    # where the density is low, a rounding error in p is a large step in x
    slack = 1e-15 / law.log_prob(x[:, None]).exp().item()
    close(law.quantile(p), x, rtol=1e-12, atol=1e-12 + slack)


def test_cdf_never_exceeds_one():
    laws = [GaussianMixture(*parameters(seed, 4, 1)) for seed in range(20)]
    assert any(law.weights.sum() > 1 for law in laws)  # by rounding
    assert all(law.cdf(1e6) <= 1 for law in laws)


@given(on_the_line, st.floats(1e-200, 1.0))
def test_cdf_undoes_quantile_down_to_the_far_tail(given_parts, p):
    law = GaussianMixture(*given_parts)
    close(law.cdf(law.quantile(p)), p, rtol=1e-9, atol=0)


def test_quantile_above_the_median_keeps_the_digits_of_the_upper_tail():
    tail = 2.0**-45
    above = LINE.quantile(1 - tail).item()
    survival = sum(
        w * 0.5 * math.erfc((above - m) / math.sqrt(2 * c))
        for w, m, c in [(0.3, -1.5, 0.09), (0.5, 0.4, 0.6), (0.2, 2.0, 0.02)]
    )
    assert survival == pytest.approx(tail, rel=1e-12, abs=0)


def test_quantile_of_a_single_gaussian_of_the_ends_and_of_many():
    law = GaussianData([2.0], [[9.0]])
    close(law.quantile([0.0, 0.5, 1.0]), [-math.inf, 2.0, math.inf])
    close(law.quantile(0.975), 2 + 3 * 1.959963984540054, rtol=1e-14)
    grid = torch.rand(4, 5, generator=seeded(), dtype=torch.float64)
    ordered = LINE.quantile(grid.flatten().sort().values)
    assert LINE.quantile(grid).shape == (4, 5)
    assert (ordered.diff() > 0).all()


# ---- marginals -----------------------------------------------------------------------------------


@given(parts, schedules, st.data())
def test_marginal_has_the_moments_of_the_noised_components(given_parts, schedule, data):
    weights, means, covariances = given_parts
    t = data.draw(st.integers(1, schedule.T))
    law = GaussianMixture(weights, means, covariances).marginal(schedule, t)
    signal = math.prod(1 - b for b in schedule.beta[1 : t + 1].tolist())
    eye = torch.eye(means.shape[1], dtype=torch.float64)
    close(law.weights, weights)
    close(law.means, math.sqrt(signal) * means)
    close(law.covariances, signal * covariances + (1 - signal) * eye)


@pytest.mark.parametrize("t", [1, 3])
def test_marginal_is_the_integral_over_clean_data(t):
    x0, dx = line()
    x_t = torch.tensor([[-1.1], [0.2], [1.7]], dtype=torch.float64)
    kernel = GaussianDiffusion(SCHEDULE).marginal(x0, t)
    expected = [
        (LINE.log_prob(x0) + kernel.log_prob(x.expand(len(x0), 1))).exp().sum() * dx for x in x_t
    ]
    close(LINE.marginal(SCHEDULE, t).log_prob(x_t).exp(), torch.stack(expected))


@given(cases())
def test_noising_a_marginal_further_gives_the_later_marginal(case):
    data, schedule, t, s, x = case
    between = NoiseSchedule.from_alpha_bar([1.0, schedule.alpha_bar[t] / schedule.alpha_bar[s]])
    later = data.marginal(schedule, s).marginal(between, 1)
    close(later.log_prob(x), data.marginal(schedule, t).log_prob(x), rtol=1e-9)


def test_a_marginal_is_of_the_same_kind_as_the_data():
    points = [[0.0, 1.0], [2.0, -1.0]]
    assert type(GaussianData([0.0], [[1.0]]).marginal(SCHEDULE, 2)) is GaussianData
    assert type(LINE.marginal(SCHEDULE, 2)) is GaussianMixture
    assert type(FiniteData(points).marginal(SCHEDULE, 2)) is GaussianMixture
    assert type(FiniteData(points).marginal(SCHEDULE, 0)) is FiniteData


def test_without_signal_the_marginal_is_standard_normal():
    schedule = NoiseSchedule.from_alpha_bar([1.0, 0.5, 0.0])
    law = GaussianMixture(*parameters(8, 3, 3))
    x = normal(seeded(2), 7, 3)
    standard = -0.5 * (x.square().sum(1) + 3 * math.log(2 * math.pi))
    close(law.marginal(schedule, 2).log_prob(x), standard)
    close(law.eps(schedule, x, 2), x)
    close(law.posterior_mean(schedule, x, 2), law.mean.expand(7, 3))
    close(law.v(schedule, x, 2), -law.mean.expand(7, 3))
    # x_T is then independent of everything before it
    earlier = law.reverse(schedule, x, 2, 1)
    y = normal(seeded(3), 7, 3)
    close(earlier.log_prob(y), law.marginal(schedule, 1).log_prob(y))


def test_at_the_end_of_a_long_chain_the_marginal_is_nearly_standard_normal():
    schedule = NoiseSchedule.linear(T=1000)
    law = GaussianMixture(*parameters(8, 3, 2)).marginal(schedule, 1000)
    signal = schedule.alpha_bar[1000].item()
    assert 0 < signal < 1e-4
    x = normal(seeded(2), 50, 2)
    standard = -0.5 * (x.square().sum(1) + 2 * math.log(2 * math.pi))
    worst = (law.log_prob(x) - standard).abs().max().item()
    assert 1e-4 < worst < 10 * math.sqrt(signal)  # of the order √ᾱ_T, and not zero


# ---- what x_t says about x_0 ---------------------------------------------------------------------


@given(parts, schedules, st.data())
def test_posterior_mean_conditions_each_component_by_matrix_algebra(given_parts, schedule, data):
    weights, means, covariances = given_parts
    t = data.draw(st.integers(1, schedule.T))
    x = 2 * normal(seeded(4), 5, means.shape[1])
    signal = schedule.alpha_bar[t]
    eye = torch.eye(means.shape[1], dtype=torch.float64)
    noised = signal * covariances + (1 - signal) * eye
    joint = weights.log() + component_log_prob(x, signal.sqrt() * means, noised)
    share = joint.softmax(1)
    gain = signal.sqrt() * covariances @ torch.linalg.inv(noised)
    innovation = x[:, None] - signal.sqrt() * means
    guess = means + torch.einsum("kde,bke->bkd", gain, innovation)
    oracle = GaussianMixture(weights, means, covariances)
    close(oracle.responsibilities(schedule, x, t), share, rtol=1e-8)
    expected = torch.einsum("bk,bkd->bd", share, guess)
    close(oracle.posterior_mean(schedule, x, t), expected, rtol=1e-8, atol=1e-10)


@given(cases())
def test_posterior_mean_is_tweedies_formula(case):
    data, schedule, t, _, x = case
    signal, noise = schedule.alpha_bar[t], schedule.one_minus_alpha_bar[t]
    tweedie = (x + noise * data.marginal(schedule, t).score(x)) / signal.sqrt()
    close(data.posterior_mean(schedule, x, t), tweedie, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("t", [1, 2, 4])
def test_posterior_mean_is_bayes_rule_on_a_grid(t):
    x0, dx = line()
    for place in (-1.4, 0.0, 0.9):
        x_t = torch.tensor([[place]], dtype=torch.float64)
        likelihood = GaussianDiffusion(SCHEDULE).marginal(x0, t).log_prob(x_t.expand_as(x0))
        joint = (LINE.log_prob(x0) + likelihood).exp()[:, None] * dx
        evidence = joint.sum()
        noise = (x_t - SCHEDULE.alpha_bar[t].sqrt() * x0) / SCHEDULE.one_minus_alpha_bar[t].sqrt()
        close(LINE.posterior_mean(SCHEDULE, x_t, t).item(), (joint * x0).sum() / evidence)
        close(LINE.eps(SCHEDULE, x_t, t).item(), (joint * noise).sum() / evidence)


@given(cases())
def test_eps_x0_v_and_score_are_one_object(case):
    """The conversions are those of process.py, which is tested on its own."""
    data, schedule, t, _, x = case
    d = GaussianDiffusion(schedule)
    prediction = d.predict(data.eps(schedule, x, t), x, t)
    close(data.posterior_mean(schedule, x, t), prediction.x0, rtol=1e-9, atol=1e-9)
    close(data.v(schedule, x, t), prediction.v, rtol=1e-9, atol=1e-9)
    close(data.marginal(schedule, t).score(x), prediction.score, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["eps", "v", "posterior_mean"])
@pytest.mark.parametrize("t", [1, 3])
def test_no_function_of_x_t_has_a_smaller_error(name, t):
    """E[(target − f*(x_t))·g(x_t)] = 0 for every g, and moving f* by ±g/10 costs E[g²]/100."""
    x0, dx = line(count=1201)
    eps, de = line(-8.5, 8.5, 401)
    signal, noise = SCHEDULE.alpha_bar[t].sqrt(), SCHEDULE.one_minus_alpha_bar[t].sqrt()
    x_t = signal * x0 + noise * eps.T  # (x_0, ε)
    gauss = torch.exp(-0.5 * eps.T**2) / math.sqrt(2 * math.pi) * de
    mass = LINE.log_prob(x0).exp()[:, None] * dx * gauss
    target = {"eps": eps.T, "v": signal * eps.T - noise * x0, "posterior_mean": x0}[name]
    best = getattr(LINE, name)(SCHEDULE, x_t.reshape(-1, 1), t).reshape(x_t.shape)
    least = (mass * (target - best) ** 2).sum()
    for g in (torch.ones_like(x_t), x_t, torch.sin(2 * x_t), torch.tanh(x_t - 1)):
        close((mass * (target - best) * g).sum(), 0.0, atol=1e-9)
        for step in (0.1, -0.1):
            moved = (mass * (target - best - step * g) ** 2).sum()
            close(moved - least, (mass * g**2).sum() / 100, rtol=1e-7)


def test_eps_keeps_its_digits_at_the_first_step_of_a_long_chain():
    """Against fifty-digit arithmetic, where 1 − ᾱ_1 = 1e-4."""
    schedule = NoiseSchedule.linear(T=1000)
    mpmath.mp.dps = 50
    signal = 1 - mpmath.mpf(1e-4)
    x = 0.4003
    joint, pulled = mpmath.mpf(0), mpmath.mpf(0)
    for w, m, c in zip(LINE.weights, LINE.means[:, 0], LINE.covariances[:, 0, 0], strict=True):
        variance = signal * mpmath.mpf(c.item()) + 1 - signal
        apart = mpmath.mpf(x) - mpmath.sqrt(signal) * mpmath.mpf(m.item())
        density = w.item() * mpmath.exp(-(apart**2) / (2 * variance)) / mpmath.sqrt(variance)
        joint += density
        pulled += density * apart / variance
    expected = float(mpmath.sqrt(1 - signal) * pulled / joint)
    value = LINE.eps(schedule, torch.tensor([[x]], dtype=torch.float64), 1).item()
    assert value == pytest.approx(expected, rel=3e-12)


@pytest.mark.parametrize("name", ["eps", "v", "posterior_mean", "responsibilities"])
def test_a_step_for_each_row_is_row_by_row(name):
    data = GaussianMixture(*parameters(11, 3, 2))
    x = normal(seeded(6), 6, 2)
    t = torch.tensor([4, 1, 3, 1, 4, 2])
    together = getattr(data, name)(SCHEDULE, x, t)
    for i in range(6):
        close(together[i], getattr(data, name)(SCHEDULE, x[i : i + 1], int(t[i]))[0])


def test_gradients_reach_x_through_a_step_for_each_row():
    data = GaussianMixture(*parameters(11, 3, 2))
    x = normal(seeded(6), 4, 2).requires_grad_()
    t = torch.tensor([4, 1, 3, 1])
    (gradient,) = torch.autograd.grad(data.eps(SCHEDULE, x, t)[:, 0].sum(), x)
    h = torch.tensor([[0.0, 1e-4]], dtype=torch.float64)
    change = data.eps(SCHEDULE, x.detach() + h, t) - data.eps(SCHEDULE, x.detach() - h, t)
    close(gradient[:, 1], change[:, 0] / 2e-4, rtol=1e-5, atol=1e-7)


# ---- the true reverse step -----------------------------------------------------------------------


@given(cases())
def test_reverse_times_marginal_is_the_joint(case):
    data, schedule, t, s, x_t = case
    if isinstance(data, FiniteData) and s == 0:
        return  # discrete; tested below
    x_s = x_t + normal(seeded(9), *x_t.shape)
    forward = GaussianDiffusion(schedule).transition(x_s, t, s)
    joint = data.marginal(schedule, s).log_prob(x_s) + forward.log_prob(x_t)
    law = data.reverse(schedule, x_t, t, s)
    close(law.log_prob(x_s) + data.marginal(schedule, t).log_prob(x_t), joint, rtol=1e-8, atol=1e-8)


@given(cases())
def test_reverse_has_the_mean_and_covariance_that_the_gaussian_posterior_averages_to(case):
    """x_s = μ̃(x_t, x_0) + √β̃ z, and μ̃ is affine in x_0: so its mean needs E[x_0 | x_t] only."""
    data, schedule, t, s, x_t = case
    d = GaussianDiffusion(schedule)
    law = data.reverse(schedule, x_t, t, s)
    middle = d.posterior(x_t, data.posterior_mean(schedule, x_t, t), t, s)
    close(law.mean, middle.mean, rtol=1e-9, atol=1e-9)
    zero = torch.zeros_like(x_t)
    slope = (d.posterior(zero, zero + 1, t, s).mean - d.posterior(zero, zero, t, s).mean)[0, 0]
    spread = data.reverse(schedule, x_t, t, 0).covariance
    eye = torch.eye(data.dimension, dtype=torch.float64)
    close(law.covariance, middle.variance * eye + slope**2 * spread, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("t", "s"), [(4, 3), (4, 1), (3, 0)])
def test_reverse_has_mass_mean_and_variance_on_a_grid(t, s):
    x_s, dx = line(count=30001)
    x_t = torch.tensor([[-0.8], [0.7]], dtype=torch.float64)
    law = LINE.reverse(SCHEDULE, x_t, t, s)
    for i in range(2):
        mass = law[i].log_prob(x_s).exp()[:, None] * dx
        mean = (mass * x_s).sum()
        close(mass.sum(), 1.0)
        close(law.mean[i], [mean])
        close(law.covariance[i], [[(mass * (x_s - mean) ** 2).sum()]])


def test_total_expectation_over_the_reverse_law():
    """E[x_0 | x_t] = E[ E[x_0 | x_s] | x_t ], and averaging q(x_s | x_t) over x_t gives q(x_s)."""
    x_s, dx = line(count=20001)
    x_t = torch.tensor([[0.6]], dtype=torch.float64)
    mass = LINE.reverse(SCHEDULE, x_t, 4, 2)[0].log_prob(x_s).exp()[:, None] * dx
    inner = LINE.posterior_mean(SCHEDULE, x_s, 2)
    close((mass * inner).sum(), LINE.posterior_mean(SCHEDULE, x_t, 4).item())

    grid, step = line()
    place = torch.tensor([[1.2]], dtype=torch.float64)
    weight = LINE.marginal(SCHEDULE, 4).log_prob(grid).exp() * step
    density = LINE.reverse(SCHEDULE, grid, 4, 2).log_prob(place.expand_as(grid)).exp()
    close((weight * density).sum(), LINE.marginal(SCHEDULE, 2).log_prob(place).exp().item())


def test_reverse_of_one_gaussian_is_gaussian_by_matrix_algebra():
    _, means, covariances = parameters(13, 1, 3)
    data = GaussianData(means[0], covariances[0])
    x_t = normal(seeded(3), 4, 3)
    t, s = 3, 1
    a_t, a_s = SCHEDULE.alpha_bar[t], SCHEDULE.alpha_bar[s]
    eye = torch.eye(3, dtype=torch.float64)
    early = a_s * covariances[0] + (1 - a_s) * eye
    late = a_t * covariances[0] + (1 - a_t) * eye
    gain = (a_t / a_s).sqrt() * early @ torch.linalg.inv(late)
    mean = a_s.sqrt() * means[0] + (x_t - a_t.sqrt() * means[0]) @ gain.T
    covariance = early - gain @ late @ gain.T
    law = data.reverse(SCHEDULE, x_t, t, s)
    close(law.mean, mean)
    close(law.covariance, covariance.expand(4, 3, 3))
    close(law.weights, torch.ones(4, 1))
    x_s = normal(seeded(4), 4, 3)
    expected = MultivariateNormal(mean, (covariance + covariance.T) / 2).log_prob(x_s)
    close(law.log_prob(x_s), expected)


@given(cases())
def test_a_row_of_the_reverse_law_is_that_law_for_one_point(case):
    data, schedule, t, s, x_t = case
    law = data.reverse(schedule, x_t, t, s)
    assert len(law) == len(x_t)
    row = law[2]
    close(row.mean, law.mean[2])
    close(row.covariance, law.covariance[2], atol=1e-10)
    close(row.weights, law.weights[2])
    close(row.means, law.means[2])
    close(row.covariances, law.covariances)
    if isinstance(data, FiniteData) and s == 0:
        assert type(row) is FiniteData
    else:
        x_s = normal(seeded(9), *x_t.shape)
        close(row.log_prob(x_s)[2], law.log_prob(x_s)[2])


# ---- finite data ---------------------------------------------------------------------------------


def test_finite_data_is_the_limit_of_narrow_components():
    points = normal(seeded(5), 6, 3)
    data = FiniteData(points)
    narrow = GaussianMixture(
        [1 / 6] * 6, points, 1e-13 * torch.eye(3, dtype=torch.float64).expand(6, 3, 3)
    )
    x = normal(seeded(6), 8, 3)
    for t in (1, 4):
        close(data.marginal(SCHEDULE, t).log_prob(x), narrow.marginal(SCHEDULE, t).log_prob(x))
        for name in ("eps", "v", "posterior_mean", "responsibilities"):
            left, right = getattr(data, name), getattr(narrow, name)
            close(left(SCHEDULE, x, t), right(SCHEDULE, x, t), rtol=1e-9, atol=1e-10)
    left, right = data.reverse(SCHEDULE, x, 4, 2), narrow.reverse(SCHEDULE, x, 4, 2)
    close(left.log_prob(x), right.log_prob(x), rtol=1e-9)
    close(left.mean, right.mean, rtol=1e-9)
    close(left.covariance, right.covariance, rtol=1e-9)
    close(data.mean, points.mean(0))
    close(data.covariance, torch.cov(points.T, correction=0))


def test_finite_data_weighs_its_points_by_bayes_rule():
    points = normal(seeded(5), 6, 3)
    data = FiniteData(points)
    x_t = normal(seeded(6), 4, 3)
    t = 2
    squares = ((x_t[:, None] - SCHEDULE.alpha_bar[t].sqrt() * points) ** 2).sum(-1)
    share = torch.softmax(-squares / (2 * SCHEDULE.one_minus_alpha_bar[t]), dim=1)
    close(data.responsibilities(SCHEDULE, x_t, t), share)
    close(data.posterior_mean(SCHEDULE, x_t, t), share @ points)
    law = data.reverse(SCHEDULE, x_t, t, 0)
    close(law.weights, share)
    close(law.means, points.expand(4, 6, 3))
    close(law.covariances, torch.zeros(6, 3, 3))
    close(law.mean, share @ points)


def test_responsibilities_of_near_points_far_from_the_origin_keep_their_digits():
    """‖x‖² − 2x·m + ‖m‖² would leave an error of 1e-6 in the exponent here."""
    schedule = NoiseSchedule.linear(T=1000)
    root = schedule.alpha_bar[1].sqrt()
    points = torch.tensor([[1000.0], [1000.01]], dtype=torch.float64)
    x_t = root * 1000.0 + torch.tensor([[0.003]], dtype=torch.float64)
    apart = (x_t - root * points.T)[0]
    exponent = -apart.square() / (2 * schedule.one_minus_alpha_bar[1])
    share = FiniteData(points).responsibilities(schedule, x_t, 1)[0]
    close(share, exponent.softmax(0), rtol=1e-12)


def test_reverse_of_finite_data_to_the_start_draws_data_points():
    points = normal(seeded(5), 4, 2)
    data = FiniteData(points)
    n = 20_000
    x_t = torch.tensor([[0.1, -0.2]], dtype=torch.float64).expand(n, 2)
    law = data.reverse(SCHEDULE, x_t, 3, 0)
    drawn = law.sample(seeded(1))
    nearest = torch.cdist(drawn, points).argmin(1)
    close(drawn, points[nearest], atol=1e-14)
    share = law.weights[0]
    error = (nearest.bincount(minlength=4) / n - share) / (share * (1 - share) / n).sqrt()
    assert error.abs().max() < 5
    with pytest.raises(ValueError, match="no density"):
        law.log_prob(drawn)
    with pytest.raises(ValueError, match="no density"):
        law[0].log_prob(points)


# ---- sampling ------------------------------------------------------------------------------------


def standardised_moments(draws, law_mean, law_covariance):
    """How many standard errors the sample mean and the sample second moments are off."""
    n = len(draws)
    apart = draws - law_mean
    mean_error = apart.mean(0) / (law_covariance.diagonal(dim1=-2, dim2=-1) / n).sqrt()
    products = torch.einsum("nd,ne->nde", apart, apart)
    moment_error = (products.mean(0) - law_covariance) / (products.std(0) / math.sqrt(n))
    return torch.cat([mean_error.flatten(), moment_error.flatten()]).abs().max().item()


@pytest.mark.parametrize("seed", [0, 1])
def test_samples_have_the_moments_of_the_law(seed):
    law = GaussianMixture(*parameters(20, 3, 3))
    draws = law.sample(200_000, seeded(seed))
    assert draws.dtype == torch.float64 and draws.shape == (200_000, 3)
    assert standardised_moments(draws, law.mean, law.covariance) < 5
    finite = FiniteData(normal(seeded(5), 6, 2))
    assert (
        standardised_moments(finite.sample(100_000, seeded(seed)), finite.mean, finite.covariance)
        < 5
    )


@pytest.mark.parametrize("kind", ["mixture", "finite"])
def test_samples_of_the_reverse_law_have_its_moments(kind):
    weights, means, covariances = parameters(21, 3, 2)
    data = FiniteData(means) if kind == "finite" else GaussianMixture(weights, means, covariances)
    x_t = torch.tensor([[0.3, -0.4]], dtype=torch.float64).expand(200_000, 2)
    draws = data.reverse(SCHEDULE, x_t, 4, 2).sample(seeded(3))
    one = data.reverse(SCHEDULE, x_t[:1], 4, 2)
    assert standardised_moments(draws, one.mean[0], one.covariance[0]) < 5


def test_samples_follow_the_cdf():
    """The largest gap between the empirical and the true cdf: beyond 2.3/√n once in 20,000."""
    n = 100_000
    levels = LINE.cdf(LINE.sample(n, seeded(4))[:, 0]).sort().values
    gap = (levels - (torch.arange(n) + 0.5) / n).abs().max().item()
    assert gap < 2.3 / math.sqrt(n)


def test_walking_the_chain_and_back_by_the_true_reverse_law_returns_the_data():
    """x_0 → x_T by process.py, then down by `reverse`: the law at the end is the data's own."""
    n = 50_000
    g = seeded(7)
    x = LINE.sample(n, g)
    d = GaussianDiffusion(SCHEDULE)
    x = d.marginal(x, 4).sample(g)
    for t in (4, 3, 2, 1):
        x = LINE.reverse(SCHEDULE, x, t, t - 1).sample(g)
    gap = (LINE.cdf(x[:, 0]).sort().values - (torch.arange(n) + 0.5) / n).abs().max().item()
    assert gap < 2.3 / math.sqrt(n)


def test_a_sample_does_not_depend_on_the_signs_of_eigenvectors():
    one, other = (GaussianMixture(*parameters(20, 3, 3)) for _ in range(2))
    other._basis = other._basis * torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    close(one.sample(50, seeded()), other.sample(50, seeded()))
    x_t = normal(seeded(1), 50, 3)
    draws = [law.reverse(SCHEDULE, x_t, 3, 1).sample(seeded()) for law in (one, other)]
    close(*draws)


def test_one_seed_gives_one_sample():
    assert torch.equal(LINE.sample(9, seeded(1)), LINE.sample(9, seeded(1)))
    assert not torch.equal(LINE.sample(9, seeded(1)), LINE.sample(9, seeded(2)))


# ---- the perfect network -------------------------------------------------------------------------


def test_denoiser_takes_images_and_casts_last():
    points = normal(seeded(5), 10, 12)
    data = FiniteData(points)
    x = normal(seeded(6), 3, 3, 2, 2)
    t = torch.tensor([1, 4, 2])
    for prediction, method in (("eps", data.eps), ("v", data.v), ("x0", data.posterior_mean)):
        network = data.denoiser(SCHEDULE, prediction)
        exact = method(SCHEDULE, x.flatten(1), t).reshape(x.shape)
        assert torch.equal(network(x, t), exact)
        single = network(x.float(), t)
        assert single.dtype == torch.float32 and single.shape == x.shape
        close(single, exact, rtol=1e-4, atol=1e-5)
        assert network(x.half(), t).dtype == torch.float32
    flat = LINE.denoiser(SCHEDULE)(torch.tensor([0.2, -1.0]), 2)  # numbers, as points on a line
    close(flat, LINE.eps(SCHEDULE, [[0.2], [-1.0]], 2)[:, 0], rtol=1e-6)
    close(network(x, 2), data.posterior_mean(SCHEDULE, x.flatten(1), 2).reshape(x.shape))


def test_denoiser_conditions_on_a_component_and_the_null_class_on_none():
    weights, means, covariances = parameters(30, 3, 2)
    data = GaussianMixture(weights, means, covariances)
    network = data.denoiser(SCHEDULE)
    x = normal(seeded(6), 4, 2)
    t = torch.tensor([1, 4, 2, 4])
    y = torch.tensor([0, 2, 3, 2])
    value = network(x, t, y)
    for i in (0, 1, 3):
        alone = GaussianData(means[y[i]], covariances[y[i]])
        close(value[i], alone.eps(SCHEDULE, x[i : i + 1], int(t[i]))[0])
    close(value[2], network(x, t)[2])
    assert (value[0] - network(x, t)[0]).abs().max() > 1e-3


# ---- bad input -----------------------------------------------------------------------------------

EYE = [[[1.0, 0.0], [0.0, 1.0]]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.5, 0.6], [[0.0], [1.0]], [[[1.0]], [[1.0]]]), r"weights must sum to 1, got 1\.1"),
        (([1.5, -0.5], [[0.0], [1.0]], [[[1.0]], [[1.0]]]), r"positive, got -0\.5"),
        (([0.5, 0.5], [[0.0]], [[[1.0]]]), "2 weights cannot go with 1 means"),
        (([1.0], [[0.0, 0.0]], [[[1.0]]]), r"shape \(1, 2, 2\).*got \(1, 1, 1\)"),
        (([1.0], [0.0, 0.0], EYE), r"means must have shape \(N, D\).*got \(2,\)"),
        (([1.0], [[0.0, math.nan]], EYE), "means must hold finite numbers, got nan"),
        (([1.0], [[0.0, 0.0]], [[[1.0, math.inf], [0.0, 1.0]]]), "covariances.*got inf"),
        (([], [], []), "weights must have shape .* none of it empty"),
        (([1.0], [[0.0, 0.0]], [[[1.0, 0.5], [0.0, 1.0]]]), r"not symmetric.*by 0\.5"),
        (([1.0], [[0.0, 0.0]], [[[1.0, 2.0], [2.0, 1.0]]]), "not positive definite.*is -1"),
        (([1.0], [[0.0, 0.0]], [[[1.0, 1.0], [1.0, 1.0]]]), "not positive definite"),
    ],
)
def test_a_mixture_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(*arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianData([0.0], EYE[0]), r"shape \(1, 1\).*got \(2, 2\)"),
        (lambda: GaussianData(0.0, [[1.0]]), r"mean must have shape \(D,\).*got \(\)"),
        (lambda: GaussianData([0.0], [[-1.0]]), "not positive definite.*is -1"),
        (lambda: FiniteData(torch.zeros(0, 2)), r"points must have shape \(N, D\)"),
        (lambda: FiniteData([1.0, 2.0]), r"points must have shape \(N, D\)"),
        (lambda: FiniteData([[math.nan]]), "points must hold finite numbers, got nan"),
        (lambda: LINE.sample(0, seeded()), "at least 1, got 0"),
        (lambda: LINE.log_prob(torch.zeros(3)), r"x must have shape \(B, 1\), got \(3,\)"),
        (lambda: LINE.log_prob(torch.tensor([[0.0], [math.nan]])), "NaN in row 1"),
        (lambda: LINE.quantile([0.5, 1.5]), r"must lie in \[0, 1\], got 1\.5"),
        (lambda: LINE.quantile(math.nan), "got nan"),
        (lambda: GaussianMixture([1.0], [[0.0, 0.0]], EYE).cdf(0.0), "D = 2"),
        (lambda: GaussianMixture([1.0], [[0.0, 0.0]], EYE).quantile(0.5), "D = 2"),
        (lambda: FiniteData([[1.0]]).log_prob(torch.zeros(1, 1)), "no density"),
        (lambda: FiniteData([[1.0]]).score(torch.zeros(1, 1)), "no density"),
        (lambda: FiniteData([[1.0]]).cdf(0.0), "no density"),
        (lambda: FiniteData([[1.0]]).quantile(0.2), "no density"),
        (lambda: LINE.marginal(SCHEDULE, 5), r"0\.\.T = 4, got 5"),
        (lambda: LINE.marginal(SCHEDULE, -1), r"0\.\.T = 4, got -1"),
        (lambda: LINE.eps(SCHEDULE, torch.zeros(1, 1), 0), r"1\.\.T = 4, got 0"),
        (lambda: LINE.posterior_mean(SCHEDULE, torch.zeros(1, 1), 5), r"1\.\.T = 4, got 5"),
        (lambda: LINE.eps(SCHEDULE, torch.zeros(2, 1), torch.tensor([1, 9])), "got 9"),
        (lambda: LINE.eps(SCHEDULE, torch.zeros(2, 1), torch.tensor([1])), r"shape \(2,\)"),
        (lambda: LINE.eps(SCHEDULE, torch.zeros(0, 1), torch.ones(0).long()), "at least one row"),
        (lambda: LINE.reverse(SCHEDULE, torch.zeros(1, 1), 2, 2), "t = 2, s = 2"),
        (lambda: LINE.reverse(SCHEDULE, torch.zeros(1, 1), 0, 0), r"1\.\.T = 4, got 0"),
        (lambda: LINE.reverse(SCHEDULE, torch.zeros(1, 2), 2, 1), r"x_t must have shape \(B, 1\)"),
        (lambda: LINE.denoiser(SCHEDULE, "noise"), "eps, x0, v, got 'noise'"),
    ],
)
def test_it_refuses_in_one_sentence(make, message):
    with pytest.raises(ValueError, match=message) as refusal:
        make()
    assert "\n" not in str(refusal.value) and str(refusal.value).endswith(".")


@pytest.mark.parametrize("t", [1.0, True, "1", None, torch.tensor(1.0)])
def test_a_step_that_is_no_int_is_refused(t):
    with pytest.raises(TypeError, match="must be an int"):
        LINE.marginal(SCHEDULE, t)
    with pytest.raises(TypeError, match="must be an int"):
        LINE.eps(SCHEDULE, torch.zeros(1, 1), t)


@pytest.mark.parametrize("name", ["eps", "v", "posterior_mean", "responsibilities"])
def test_a_step_for_each_row_must_be_int64(name):
    with pytest.raises(TypeError, match="int64"):
        getattr(LINE, name)(SCHEDULE, torch.zeros(2, 1), torch.tensor([1.0, 2.5]))


def test_the_reverse_law_refuses_what_does_not_fit():
    law = LINE.reverse(SCHEDULE, torch.zeros(2, 1), 3, 1)
    with pytest.raises(ValueError, match=r"\(2, 1\) of x_t.*got \(5, 1\)"):
        law.log_prob(torch.zeros(5, 1))
    with pytest.raises(ValueError, match="NaN in row 1"):
        law.log_prob(torch.tensor([[0.0], [math.nan]]))


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.tensor([0, 4]), r"0\.\.2, or 3 for none, got 4"),
        (torch.tensor([-1, 0]), "got -1"),
        (torch.tensor([0]), r"shape \(2,\)"),
        (torch.tensor([0.0, 1.0]), "int64"),
    ],
)
def test_a_class_that_does_not_exist_is_refused(y, message):
    with pytest.raises(ValueError, match=message):
        LINE.denoiser(SCHEDULE)(torch.zeros(2, 1), 1, y)


def test_weights_rounded_to_float32_are_made_to_sum_to_one():
    rounded = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float32)
    assert rounded.double().sum() != 1
    law = GaussianMixture(rounded, [[0.0], [1.0], [2.0]], [[[1.0]]] * 3)
    close(law.weights.sum(), 1.0, rtol=1e-15, atol=0)
    close(law.weights, [0.1, 0.2, 0.7], rtol=1e-6)


def test_inputs_are_never_changed_and_parts_are_copies():
    weights, means, covariances = parameters(2, 2, 2)
    before = means.clone()
    law = GaussianMixture(weights, means, covariances)
    law.means.zero_()
    close(law.means, before)
    points = normal(seeded(), 3, 2)
    finite = FiniteData(points)
    points.zero_()
    assert finite.means.abs().max() > 0

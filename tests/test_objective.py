"""The losses and the bound: against entropies, exact expectations and torch.distributions.

Where data and denoiser are Gaussian, every term is a quadratic in (x_0, ε), so Gauss–Hermite
quadrature with three nodes a side gives its expectation to the last digits, and no test of a bound
needs a tolerance for chance.
"""

import math

import numpy as np
import papers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch.distributions import Normal, kl_divergence

from ddpm_lite import Gaussian, GaussianDiffusion, NoiseSchedule
from ddpm_lite.data import DIGITS_LEVELS, digits
from ddpm_lite.objective import (
    STEP_SAMPLING,
    bits_per_dim,
    bound_term,
    decoder_log_masses,
    decoder_log_prob,
    dropped_weights,
    hybrid_loss,
    prior_term,
    sample_steps,
    simple_loss,
    variational_bound,
)
from ddpm_lite.oracle import GaussianData, GaussianMixture

HALF_LOG_2PI_E = 0.5 * math.log(2 * math.pi * math.e)
SHORT = NoiseSchedule.linear(6, 0.05, 0.5)
VARIANCES = ("posterior", "beta", "learned")
PREDICTIONS = ("eps", "x0", "v")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def close(left, right, rtol=1e-10, atol=1e-12):
    np.testing.assert_allclose(np.asarray(left), np.asarray(right), rtol=rtol, atol=atol)


def quadrature(nodes=3):
    """Two independent standard normals: points (N, 1) twice, and weights (N,)."""
    point, weight = np.polynomial.hermite_e.hermegauss(nodes)
    weight = torch.from_numpy(weight / weight.sum())
    first, second = torch.cartesian_prod(*[torch.from_numpy(point)] * 2).T
    return first[:, None], second[:, None], torch.outer(weight, weight).flatten()


def marginal_variance(schedule, c):
    """Var[x_t] for t = 0..T when x_0 has variance c."""
    return schedule.alpha_bar * c + schedule.one_minus_alpha_bar


def network(diffusion, scale=0.7):
    """An imperfect denoiser of any shape, with a raw variance that differs from point to point."""

    def denoise(x_t, t, y=None):
        out = torch.sin(x_t) * scale + 0.01 * t.reshape(-1, *[1] * (x_t.ndim - 1))
        if y is not None:
            out = out + 0.1 * y.reshape(-1, *[1] * (x_t.ndim - 1))
        if diffusion.variance == "learned":
            return torch.cat([out, torch.cos(x_t)], dim=1)
        return out

    return denoise


# ---- L_simple -----------------------------------------------------------------------------


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_simple_loss_is_the_mean_squared_error_of_the_target(prediction, variance):
    d = GaussianDiffusion(SHORT, prediction, variance)
    x0, noise = normal(2, 5, 3, 4)
    t = torch.tensor([1, 2, 4, 5, 6])
    signal = SHORT.alpha_bar[t].sqrt().reshape(5, 1, 1)
    sigma = (1 - SHORT.alpha_bar[t]).sqrt().reshape(5, 1, 1)
    x_t = signal * x0 + sigma * noise
    target = {"eps": noise, "x0": x0, "v": signal * noise - sigma * x0}[prediction]
    output = network(d)(x_t, t)[:, :3]
    close(simple_loss(network(d), d, x0, t, noise), ((target - output) ** 2).mean((1, 2)))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_right_answer_has_no_loss_and_another_has_the_square_of_its_error(prediction):
    d = GaussianDiffusion(SHORT, prediction)
    x0, noise = normal(2, 4, 7)
    t = torch.tensor([1, 3, 5, 6])
    signal, sigma = SHORT.alpha_bar[t].sqrt()[:, None], SHORT.one_minus_alpha_bar[t].sqrt()[:, None]
    answer = {"eps": noise, "x0": x0, "v": signal * noise - sigma * x0}[prediction]
    close(simple_loss(lambda x, t: answer, d, x0, t, noise), torch.zeros(4))
    close(simple_loss(lambda x, t: answer + 0.25, d, x0, t, noise), torch.full((4,), 0.0625))


@pytest.mark.parametrize("c", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("t", [1, 4, 6])
def test_the_exact_denoiser_reaches_the_floor(t, c):
    """For x_0 ~ N(0, c): Var[ε | x_t] = ᾱ_t·c/(ᾱ_t·c + 1 − ᾱ_t), and nothing gets below it."""
    d = GaussianDiffusion(SHORT)
    law = GaussianData([0.0], [[c]])
    z, noise, weight = quadrature()
    floor = SHORT.alpha_bar[t] * c / marginal_variance(SHORT, c)[t]
    exact = law.denoiser(SHORT)
    close(weight @ simple_loss(exact, d, math.sqrt(c) * z, t, noise), floor)
    off = weight @ simple_loss(lambda x, t: 1.01 * exact(x, t), d, math.sqrt(c) * z, t, noise)
    assert off > floor


@pytest.mark.parametrize("t", [2, 4, 6])
def test_the_loss_is_denoising_score_matching(t):
    """For any network ŝ = −ε̂/√(1−ᾱ): E‖ε − ε̂‖² = (1−ᾱ)·(E‖ŝ − ∇log p_t‖² + C), and C is

    E‖∇log q(x_t|x_0)‖² − E‖∇log p_t‖², which knows nothing of the network.
    """
    law = GaussianMixture([0.3, 0.7], [[-0.5], [0.6]], [[[0.5]], [[0.8]]])
    d = GaussianDiffusion(SHORT)
    z, noise, weight = quadrature(120)
    x0 = torch.cat(
        [m + c.sqrt() * z for m, c in zip(law.means, law.covariances[..., 0], strict=True)]
    )
    weight = torch.cat([w * weight for w in law.weights])
    noise = noise.repeat(2, 1)
    x_t = d.q_sample(x0, t, noise)
    spread = SHORT.one_minus_alpha_bar[t]
    score = law.marginal(SHORT, t).score(x_t)
    constant = weight @ ((noise**2)[:, 0] / spread - (score**2)[:, 0])
    for scale in (0.0, 0.7, -2.0):
        eps = network(d, scale)
        distance = (-eps(x_t, torch.tensor(t)) / spread.sqrt() - score) ** 2
        loss = weight @ simple_loss(eps, d, x0, t, noise)
        close(loss, spread * (weight @ distance[:, 0] + constant), rtol=1e-7)
    close(weight @ simple_loss(law.denoiser(SHORT), d, x0, t, noise), spread * constant, rtol=1e-7)


def test_simple_loss_leaves_the_learned_variance_alone():
    d = GaussianDiffusion(SHORT, variance="learned")
    x0, noise = normal(2, 3, 2, 4)
    output = normal(3, 4, 4, seed=1).requires_grad_()
    simple_loss(lambda x, t: output, d, x0, 3, noise).sum().backward()
    assert (output.grad[:, 2:] == 0).all()
    assert (output.grad[:, :2] != 0).all()


# ---- the prior term -----------------------------------------------------------------------


@given(st.floats(-3, 3), st.lists(st.floats(0.01, 0.6), min_size=1, max_size=8))
def test_prior_term_is_the_kl_to_the_standard_normal(x, betas):
    d = GaussianDiffusion(NoiseSchedule.from_betas(betas))
    mean, variance = papers.ddpm_eq_4([0.0, *betas], x, len(betas))
    q = Normal(torch.tensor(mean, dtype=torch.float64), math.sqrt(variance))
    wanted = kl_divergence(q, Normal(torch.zeros((), dtype=torch.float64), 1.0))
    x0 = torch.full((1, 2, 3), x, dtype=torch.float64)
    close(prior_term(d, x0), 6 * wanted[None], rtol=1e-9)


def test_prior_term_vanishes_where_no_signal_is_left():
    d = GaussianDiffusion(NoiseSchedule.from_alpha_bar([1.0, 0.5, 0.0]), "v")
    assert torch.equal(prior_term(d, normal(3, 2)), torch.zeros(3, dtype=torch.float64))


def test_prior_term_keeps_its_digits_on_a_long_chain():
    """At T = 1000 the variance is 1 − 4e-5, and ½(v − 1 − log v) is 4e-10: lost in float32."""
    schedule = NoiseSchedule.linear(1000)
    bar = schedule.alpha_bar[-1].item()
    got = prior_term(GaussianDiffusion(schedule), torch.zeros(1, 1)).item()
    assert abs(got / (0.5 * (-bar - math.log1p(-bar))) - 1) < 1e-5


# ---- the terms of the bound ---------------------------------------------------------------


@given(
    st.lists(st.floats(0.01, 0.6), min_size=2, max_size=6),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.sampled_from(["posterior", "beta"]),
)
def test_each_kl_against_torch_distributions(betas, x0, noise, eps, variance):
    """Means and variances from the paper's equations 4, 6, 7 and 11, the KL from PyTorch."""
    d = GaussianDiffusion(NoiseSchedule.from_betas(betas), "eps", variance)
    paper = [0.0, *betas]
    for t in range(2, d.T + 1):
        signal, spread = papers.ddpm_eq_4(paper, 1.0, t)
        x_t = signal * x0 + math.sqrt(spread) * noise
        mean, smaller = papers.ddpm_eq_6_7(paper, x_t, x0, t)
        guess = papers.ddpm_eq_11(paper, x_t, eps, t)
        width = smaller if variance == "posterior" else paper[t]
        wanted = kl_divergence(
            Normal(torch.tensor(mean, dtype=torch.float64), math.sqrt(smaller)),
            Normal(torch.tensor(guess, dtype=torch.float64), math.sqrt(width)),
        )
        rows = torch.ones(2, 1, dtype=torch.float64)
        got = bound_term(
            lambda x, t: torch.full_like(x, eps), d, x0 * rows, t, noise * rows, levels=None
        )
        close(got, [wanted, wanted], rtol=1e-7, atol=1e-10)


def test_the_kl_of_a_learned_variance_against_torch_distributions():
    d = GaussianDiffusion(SHORT, variance="learned")
    x0, noise = normal(2, 4, 3, 2)
    for t in range(2, 7):
        x_t = d.q_sample(x0, t, noise)
        output = network(d)(x_t, torch.full((4,), t))
        f = (output[:, 3:] + 1) / 2
        beta, smaller = SHORT.beta[t], SHORT.posterior_variance[t]
        mean = d.posterior(x_t, d.predict(output, x_t, t).x0, t).mean
        wanted = kl_divergence(
            Normal(d.posterior(x_t, x0, t).mean, smaller.sqrt()),
            Normal(mean, (beta**f * smaller ** (1 - f)).sqrt()),
        ).sum((1, 2))
        close(bound_term(network(d), d, x0, t, noise, levels=None), wanted)


DECODER_VARIANCE = {
    "posterior": SHORT.posterior_variance[2],  # β̃_1 = 0 cannot be one, and 1e-20 would be absurd
    "beta": SHORT.beta[1],
    "learned": (SHORT.posterior_variance[2] ** 0.8 * SHORT.beta[1] ** 0.2),  # raw −0.6, f = 0.2
}


@pytest.mark.parametrize("variance", VARIANCES)
def test_the_decoder_has_a_variance_of_its_own(variance):
    d = GaussianDiffusion(SHORT, "x0", variance)
    x0, noise = normal(2, 3, 2, 4)
    pixels = torch.randint(5, x0.shape, generator=generator()).double() / 2 - 1
    mean = pixels + 0.2 * normal(3, 2, 4, seed=1)
    output = torch.cat([mean, torch.full_like(mean, -0.6)], 1) if variance == "learned" else mean
    law = Normal(mean, DECODER_VARIANCE[variance].sqrt())
    density = bound_term(lambda x, t: output, d, x0, 1, noise, levels=None)
    close(density, -law.log_prob(x0).sum((1, 2)))
    masses = bound_term(lambda x, t: output, d, pixels, 1, noise, levels=5)
    above = torch.where(pixels == 1, torch.ones_like(pixels), law.cdf(pixels + 0.25))
    below = torch.where(pixels == -1, torch.zeros_like(pixels), law.cdf(pixels - 0.25))
    close(masses, -(above - below).log().sum((1, 2)), rtol=1e-9)


def test_the_decoder_of_a_schedule_whose_smallest_posterior_variance_is_not_the_second():
    schedule = NoiseSchedule.from_betas([0.3, 0.3, 0.01, 0.3])
    assert schedule.posterior_variance[1:].argmin() == 0
    assert schedule.posterior_variance[2:].argmin() == 1
    d = GaussianDiffusion(schedule, "x0")
    x0, noise = normal(2, 3, 1)
    got = bound_term(lambda x, t: torch.zeros_like(x), d, x0, 1, noise, levels=None)
    close(got, -Normal(0.0, schedule.posterior_variance[3].sqrt()).log_prob(x0)[:, 0])


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("levels", [None, 5])
def test_a_step_per_row_equals_one_row_at_a_time(variance, levels):
    d = GaussianDiffusion(SHORT, "v", variance)
    x0 = torch.randint(5, (6, 2, 3), generator=generator()).double() / 2 - 1
    noise = normal(6, 2, 3)
    for steps in ([1, 2, 3, 4, 5, 6], [2, 6, 6, 3, 2, 4], [1] * 6):
        t = torch.tensor(steps)
        together = bound_term(network(d), d, x0, t, noise, levels=levels, clip=(-1, 1))
        for i, step in enumerate(steps):
            alone = bound_term(
                network(d), d, x0[i : i + 1], step, noise[i : i + 1], levels=levels, clip=(-1, 1)
            )
            close(together[i : i + 1], alone)


@pytest.mark.parametrize("variance", VARIANCES)
def test_gradients_of_mixed_steps_are_finite_and_those_of_each_row(variance):
    """The rows that a choice leaves out must not bring a NaN into the gradient."""
    d = GaussianDiffusion(NoiseSchedule.linear(1000), "eps", variance)
    x0 = torch.randint(17, (4, 1, 8), generator=generator()).double() / 8 - 1
    noise, t = normal(4, 1, 8), torch.tensor([1, 2, 1000, 400])
    whole = normal(4, 2 if variance == "learned" else 1, 8, seed=1).requires_grad_()
    bound_term(lambda x, t: whole, d, x0, t, noise, levels=17).sum().backward()
    assert whole.grad.isfinite().all()
    for i in range(4):
        row = whole.detach()[i : i + 1].clone().requires_grad_()
        one = slice(i, i + 1)
        bound_term(
            lambda x, t, row=row: row, d, x0[one], int(t[i]), noise[one], levels=17
        ).backward()
        close(whole.grad[one], row.grad)


def test_clipping_happens_inside_the_model():
    d = GaussianDiffusion(SHORT, "x0")
    x0, noise = normal(2, 3, 4)
    for t in range(1, 7):
        wild = bound_term(lambda x, t: 5 + 0 * x, d, x0, t, noise, levels=None, clip=(-1, 1))
        tame = bound_term(lambda x, t: 1 + 0 * x, d, x0, t, noise, levels=None)
        close(wild, tame)


def test_a_chain_of_one_step_has_a_prior_and_a_decoder():
    d = GaussianDiffusion(NoiseSchedule.from_betas([0.3]))
    x0, noise = normal(2, 3, 2)
    for t in (1, torch.ones(3, dtype=torch.int64)):
        got = bound_term(lambda x, t: 0 * x, d, x0, t, noise, levels=None)
        mean = d.q_sample(x0, 1, noise) / math.sqrt(0.7)
        close(got, -Normal(mean, math.sqrt(0.3)).log_prob(x0).sum(1))
    bound = variational_bound(lambda x, t: 0 * x, d, x0, levels=None, generator=generator())
    assert bound.steps.shape == (3, 0)
    close(bound.total, bound.prior + bound.decoder)


# ---- the whole bound, on data whose entropy is known --------------------------------------


def expected_bound(diffusion, denoiser, c):
    """E[L] for x_0 ~ N(0, c) and a linear denoiser, exactly."""
    z, noise, weight = quadrature()
    x0 = math.sqrt(c) * z
    terms = [weight @ prior_term(diffusion, x0)]
    terms += [
        weight @ bound_term(denoiser, diffusion, x0, t, noise, levels=None)
        for t in range(1, diffusion.T + 1)
    ]
    return sum(terms).item()


CHAINS = {
    "short": SHORT,
    "long": NoiseSchedule.linear(1000),
    "cosine": NoiseSchedule.cosine(50),
    "one step": NoiseSchedule.from_betas([0.3]),
    "respaced": NoiseSchedule.linear(1000).respace(7, "quadratic"),
}


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("chain", CHAINS)
def test_the_bound_of_standard_normal_data_is_their_entropy(chain, prediction):
    """x_0 ~ N(0, 1), exact denoiser, σ² = β: every conditional is exact, so nothing is lost."""
    schedule = CHAINS[chain]
    d = GaussianDiffusion(schedule, prediction, "beta")
    original = NoiseSchedule.linear(1000) if chain == "respaced" else schedule
    exact = GaussianData([0.0], [[1.0]]).denoiser(original, prediction)
    assert abs(expected_bound(d, exact, 1.0) - 1.4189385332046727) < 1e-10


def variance_cost(true, used):
    """KL(N(m, true) ∥ N(m, used))."""
    return 0.5 * (true / used - 1 - math.log(true / used))


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("c", [0.05, 0.6, 1.0, 2.5])
@pytest.mark.parametrize("chain", ["short", "cosine", "one step"])
def test_the_gap_of_gaussian_data_is_what_the_wrong_variances_cost(chain, c, variance):
    """With exact means the gap is KL(q(x_T) ∥ N(0,1)) + Σ_t KL of N(·, V_t) from N(·, σ_t²), where

    V_t = β_t·Var[x_{t−1}]/Var[x_t] is the true variance of x_{t−1} given x_t.
    """
    schedule = CHAINS[chain]
    d = GaussianDiffusion(schedule, "eps", variance)
    eps = GaussianData([0.0], [[c]]).denoiser(schedule)
    raw = 0.4  # f = 0.7
    exact = eps if variance != "learned" else lambda x, t: torch.cat([eps(x, t), raw + 0 * x], 1)
    spread = marginal_variance(schedule, c)
    lower = schedule.posterior_variance
    lower[1] = lower[2:].min() if schedule.T > 1 else schedule.beta[1]
    used = {
        "posterior": lower,
        "beta": schedule.beta,
        "learned": schedule.beta**0.7 * lower**0.3,
    }[variance]
    gap = variance_cost(spread[-1].item(), 1.0)
    for t in range(1, schedule.T + 1):
        true = schedule.beta[t] * spread[t - 1] / spread[t]
        gap += variance_cost(true.item(), used[t].item())
    entropy = HALF_LOG_2PI_E + 0.5 * math.log(c)
    close(expected_bound(d, exact, c), entropy + gap, rtol=1e-9)
    assert gap > -1e-12


def test_the_bound_is_above_the_true_log_likelihood_of_every_level():
    """Two steps, one coordinate, five levels: p(x_0) by integrating x_1 and x_2 out.

    The masses p(x_0) sum to 1, and each bound, its ε integrated too, is at least −log p(x_0).
    """
    d = GaussianDiffusion(NoiseSchedule.from_betas([0.2, 0.6]), "x0")
    level = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    denoise = network(d)
    grid = torch.linspace(-9, 9, 1201, dtype=torch.float64)[:, None]
    step = (grid[1] - grid[0]).item()
    last = Normal(0.0, 1.0).log_prob(grid[:, 0]).exp() * step
    back = d.reverse(denoise(grid, torch.full((1201,), 2)), grid, 2)
    first = Normal(back.mean, back.variance.sqrt()).log_prob(grid.T).exp() * step  # (x_2, x_1)
    decoder = d.reverse(denoise(grid, torch.full((1201,), 1)), grid, 1).mean
    law = Gaussian(decoder[:, 0], d.schedule.posterior_variance[2])
    probability = last @ first @ decoder_log_masses(law, 5).exp()
    close(probability.sum(), 1.0, rtol=1e-9)
    point, weight = np.polynomial.hermite_e.hermegauss(80)
    noise, weight = torch.from_numpy(point)[:, None], torch.from_numpy(weight / weight.sum())
    for k in range(5):
        x0 = level[k].expand(80, 1)
        bound = weight @ prior_term(d, x0)
        for t in (1, 2):
            bound = bound + weight @ bound_term(denoise, d, x0, t, noise, levels=5)
        assert bound > -probability[k].log()
        assert bound < -probability[k].log() + 2


# ---- variational_bound --------------------------------------------------------------------


@pytest.mark.parametrize("variance", VARIANCES)
def test_variational_bound_is_its_terms_at_the_noise_it_drew(variance):
    d = GaussianDiffusion(SHORT, "eps", variance)
    x0 = torch.randint(17, (5, 1, 4), generator=generator()).double() / 8 - 1
    bound = variational_bound(
        network(d), d, x0, levels=17, generator=generator(3), clip=(-1, 1), batch_size=4
    )
    assert bound.steps.shape == (5, 5)
    close(bound.prior, prior_term(d, x0))
    g = generator(3)
    for t in range(1, 7):
        noise = torch.randn(x0.shape, generator=g, dtype=torch.float64)
        wanted = bound_term(network(d), d, x0, t, noise, levels=17, clip=(-1, 1))
        close(bound.decoder if t == 1 else bound.steps[:, t - 2], wanted)
    close(bound.total, bound.prior + bound.steps.sum(1) + bound.decoder)


@pytest.mark.parametrize("batch_size", [1, 3, 5, 7, 12, 1000])
def test_the_batch_size_changes_nothing(batch_size):
    d = GaussianDiffusion(SHORT)
    x0, y = normal(5, 2), torch.arange(5)
    seen = []

    def denoise(x_t, t, y):
        seen.append(len(x_t))
        return network(d)(x_t, t, y)

    def bound(size):
        return variational_bound(
            denoise, d, x0, levels=None, generator=generator(), y=y, batch_size=size
        )

    usual = bound(512)
    seen.clear()
    other = bound(batch_size)
    assert max(seen) <= batch_size
    assert sum(seen) == 30
    for part in ("prior", "steps", "decoder", "total"):
        close(getattr(usual, part), getattr(other, part))


def test_variational_bound_meets_the_exact_expectation():
    """20,000 draws of (x_0, ε): the mean is within five standard errors of the quadrature."""
    d = GaussianDiffusion(SHORT)
    law = GaussianData([0.0], [[0.6]])
    exact = law.denoiser(SHORT)
    bound = variational_bound(
        exact, d, law.sample(20_000, generator()), levels=None, generator=generator(1)
    )
    error = bound.total.std() / math.sqrt(20_000)
    assert abs(bound.total.mean() - expected_bound(d, exact, 0.6)) < 5 * error
    assert error < 0.02


def test_every_coordinate_counts_once():
    """Three copies of a coordinate cost three times as many nats, and as many bits each."""
    d = GaussianDiffusion(SHORT, "eps", "beta")
    x0, noise = normal(2, 4, 1)
    wide, wide_noise = x0.expand(4, 3), noise.expand(4, 3)
    for t in range(1, 7):
        one = bound_term(network(d), d, x0, t, noise, levels=None)
        close(bound_term(network(d), d, wide, t, wide_noise, levels=None), 3 * one)
        close(
            simple_loss(network(d), d, wide, t, wide_noise),
            simple_loss(network(d), d, x0, t, noise),
        )
    close(prior_term(d, wide), 3 * prior_term(d, x0))


def test_a_respaced_chain_asks_with_the_original_numbers():
    original = NoiseSchedule.linear(1000)
    short = original.respace([1, 40, 300, 1000])
    d = GaussianDiffusion(short, "eps", "learned")
    asked = []

    def denoise(x_t, t):
        asked.append(t.tolist())
        return torch.cat([x_t, x_t], dim=1)

    x0, noise = normal(2, 3, 1, 2)
    simple_loss(denoise, d, x0, 2, noise)
    bound_term(denoise, d, x0, torch.tensor([1, 3, 4]), noise, levels=None)
    hybrid_loss(denoise, d, x0, torch.tensor([4, 4, 1]), noise, levels=None, weight=1.0)
    assert asked == [[40] * 3, [1, 300, 1000], [1000, 1000, 1]]
    asked.clear()
    variational_bound(denoise, d, x0, levels=None, generator=generator(), batch_size=3)
    assert asked == [[1] * 3, [40] * 3, [300] * 3, [1000] * 3]


def test_a_respaced_chain_is_another_model_with_another_bound():
    """Looser for σ² = β. For σ² = β̃ it may be tighter: a long chain has more steps near the data,

    and each of the first few of them pays for a variance that is much too small.
    """
    original = NoiseSchedule.linear(1000)
    law = GaussianData([0.0], [[0.3]])
    exact = law.denoiser(original)
    chains = [original.respace(10, "trailing"), original.respace(100, "trailing"), original]
    bounds = {
        variance: [
            expected_bound(GaussianDiffusion(chain, "eps", variance), exact, 0.3)
            for chain in chains
        ]
        for variance in ("beta", "posterior")
    }
    assert bounds["beta"][0] > bounds["beta"][1] > bounds["beta"][2] > law.entropy()
    assert law.entropy() < bounds["posterior"][0] < bounds["posterior"][2] - 0.3


def test_what_the_denoiser_is_given():
    """x_t in the dtype of x_0 (at least float32), int64 steps (B,), and y only if there is one."""
    d = GaussianDiffusion(SHORT)
    calls = []

    def denoise(*given):
        calls.append(given)
        return torch.zeros_like(given[0])

    for dtype in (torch.float16, torch.float32, torch.float64):
        x0 = torch.zeros(2, 3, dtype=dtype)
        wanted = torch.promote_types(dtype, torch.float32)
        y = torch.tensor([4, 7])
        assert simple_loss(denoise, d, x0, 3, x0).dtype == wanted
        assert bound_term(denoise, d, x0, 3, x0, levels=17).dtype == wanted
        assert prior_term(d, x0).dtype == wanted
        bound = variational_bound(denoise, d, x0, levels=17, generator=generator(), y=y)
        assert {bound.prior.dtype, bound.steps.dtype, bound.decoder.dtype} == {torch.float64}
        for x_t, t, *rest in calls:
            assert x_t.dtype == wanted
            assert t.dtype == torch.int64
            assert t.shape == (len(x_t),)
            assert all(torch.equal(label, y.repeat(len(x_t) // 2)) for label in rest)
        assert [len(given) for given in calls] == [2, 2, 3]
        calls.clear()


def test_the_bound_of_float32_data_is_computed_in_float64():
    """A thousand terms whose float32 rounding would all fall to one side."""
    schedule = NoiseSchedule.linear(1000)
    d = GaussianDiffusion(schedule, "eps", "beta")
    x0 = digits("heldout")[0][:4]
    bounds = []
    for image in (x0, x0.double()):
        terms = []
        for t in range(2, 1001, 3):
            noise = normal(*x0.shape, seed=t).to(torch.float32).to(image.dtype)
            value = bound_term(
                lambda x, t: torch.zeros_like(x), d, image, t, noise, levels=DIGITS_LEVELS
            )
            terms.append(value.double())
        bounds.append(torch.stack(terms).sum(0))
    close(bounds[0], bounds[1], rtol=2e-7)


def test_no_gradient_is_kept():
    d = GaussianDiffusion(SHORT)
    scale = torch.ones(1, dtype=torch.float64, requires_grad=True)
    bound = variational_bound(
        lambda x, t: scale * x, d, normal(2, 3), levels=None, generator=generator()
    )
    assert not bound.total.requires_grad


# ---- bits per dimension -------------------------------------------------------------------


def test_bits_per_dim_is_the_bound_in_other_units():
    d = GaussianDiffusion(SHORT)
    x0 = digits("heldout")[0][:3]
    arguments = dict(levels=DIGITS_LEVELS, clip=(-1, 1), batch_size=2)
    nats = variational_bound(network(d), d, x0, generator=generator(), **arguments).total
    bits = bits_per_dim(network(d), d, x0, generator=generator(), **arguments)
    close(bits, nats / 64 / math.log(2))


def test_a_model_that_ignores_its_input_needs_the_bits_of_its_guess():
    """x̂_0 = 0 always, one step, wide decoder: −log₂ of the masses of N(0, β_1), plus the prior."""
    d = GaussianDiffusion(NoiseSchedule.from_betas([0.9]), "x0", "beta")
    x0 = torch.linspace(-1, 1, 17, dtype=torch.float64)[:, None]
    bits = bits_per_dim(lambda x, t: 0 * x, d, x0, levels=17, generator=generator())
    edge = torch.linspace(-1, 1, 17, dtype=torch.float64)[1:] - 1 / 16
    cdf = torch.cat([torch.zeros(1), Normal(0.0, math.sqrt(0.9)).cdf(edge), torch.ones(1)])
    wanted = -cdf.diff().log2() + prior_term(d, x0) / math.log(2)
    close(bits, wanted, rtol=1e-6)
    close((2 ** -(bits - prior_term(d, x0) / math.log(2))).sum(), 1.0)


# ---- the decoder --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [2, 3, 17, 256])
def test_the_masses_sum_to_one_however_far_out_the_mean_is(levels, dtype):
    mean = torch.tensor([0.0, 0.03, -0.9, 1.0, -1.0, 5.0, -5.0, 1e3, -1e3], dtype=dtype)
    for deviation in (1e-3, 0.01, 0.3, 2.0, 50.0):
        log_mass = decoder_log_masses(Gaussian(mean, torch.tensor(deviation**2)), levels)
        assert log_mass.shape == (9, levels)
        assert log_mass.dtype == dtype
        assert log_mass.isfinite().all()
        total = torch.logsumexp(log_mass.double(), dim=1)
        close(total, torch.zeros(9), atol=1e-13 if dtype == torch.float64 else 3e-6)


def test_the_masses_are_right_where_a_difference_of_cdfs_has_no_digits():
    """Against 60-digit arithmetic, up to 1,000 standard deviations out, on both sides."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(60):
        for mean in (0.0, 0.4, 3.0, -3.0):
            for deviation in (0.004, 0.05, 1.5):
                law = Gaussian(
                    torch.tensor([mean], dtype=torch.float64), torch.tensor(deviation**2)
                )
                law = Gaussian(law.mean, law.variance.double())
                got = decoder_log_masses(law, 17)[0]
                width = mpmath.sqrt(mpmath.mpf(law.variance.item()))
                for k in range(17):
                    centre = mpmath.mpf(-1) + mpmath.mpf(k) / 8
                    low = (centre - mpmath.mpf(1) / 16 - mean) / width if k > 0 else -mpmath.inf
                    high = (centre + mpmath.mpf(1) / 16 - mean) / width if k < 16 else mpmath.inf
                    # by the symmetry of Φ to the side where it is small
                    if low + high > 0:
                        low, high = -high, -low
                    mass = (
                        mpmath.erfc(-high / mpmath.sqrt(2)) - mpmath.erfc(-low / mpmath.sqrt(2))
                    ) / 2
                    close(got[k].item(), float(mpmath.log(mass)), rtol=1e-12, atol=1e-13)


@given(st.integers(0, 255), st.floats(-1.2, 1.2), st.floats(1e-3, 1.0))
def test_a_mass_is_the_papers_equation_13(k, mean, variance):
    x = -1 + 2 * k / 255
    law = Gaussian(torch.tensor([mean], dtype=torch.float64), torch.tensor(variance).double())
    wanted = papers.ddpm_eq_13(1.0 if k == 255 else x, mean, float(law.variance))
    close(decoder_log_masses(law, 256)[0, k].exp(), wanted, rtol=1e-7, atol=1e-14)


def test_log_prob_picks_the_masses_of_the_data():
    images = digits("heldout")[0][:4]
    mean = normal(4, 1, 8, 8).float()
    for variance in (torch.tensor(0.02), torch.rand(4, 1, 8, 8, generator=generator()) + 0.01):
        law = Gaussian(mean, variance)
        masses = decoder_log_masses(law, 17)
        index = ((images + 1) * 8).long()
        wanted = masses.gather(-1, index[..., None])[..., 0].double().sum((1, 2, 3))
        close(decoder_log_prob(images, law, 17), wanted, rtol=1e-6)
    assert decoder_log_prob(images, law, 17).dtype == torch.float32


def test_a_narrow_bin_is_density_times_width():
    law = Gaussian(normal(3, 4), torch.tensor(0.5, dtype=torch.float64))
    levels = 100_001
    x0 = (normal(3, 4, seed=1).clamp(-0.9, 0.9) * 50_000).round() / 50_000
    density = decoder_log_prob(x0, law, None)
    close(density, law.log_prob(x0))
    close(decoder_log_prob(x0, law, levels), density + 4 * math.log(2 / 100_000), rtol=1e-8)


def test_continuous_data_have_the_density_in_any_dtype():
    law = Gaussian(normal(3, 4).float(), torch.tensor(0.5))
    x0 = normal(3, 4, seed=1).float()
    got = decoder_log_prob(x0, law, None)
    assert got.dtype == torch.float32
    close(got, law.log_prob(x0), rtol=1e-6)


def test_eight_bit_images_in_float32_are_on_their_levels():
    x0 = (torch.arange(256) / 127.5 - 1)[:, None]
    law = Gaussian(x0.clone(), torch.tensor(1e-6))
    close(decoder_log_prob(x0, law, 256), torch.zeros(256), atol=1e-4)


def test_gradients_of_the_decoder_are_right_and_finite_far_out():
    levels = torch.tensor([[-1.0, -0.5, 0.0, 0.5, 1.0]], dtype=torch.float64)
    mean = (levels + torch.tensor([0.3, -0.2, 0.1, 0.4, -0.1])).requires_grad_()
    variance = torch.full((1, 5), 0.1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda m, v: decoder_log_prob(levels, Gaussian(m, v), 5), (mean, variance)
    )
    for away in (-40.0, 40.0):
        mean = (levels + away).requires_grad_()
        law = Gaussian(mean, torch.tensor(1e-4, dtype=torch.float64))
        decoder_log_prob(levels, law, 5).sum().backward()
        assert mean.grad.isfinite().all()
        # the nearest edge of the bin pulls like a point: d/dm of −(edge − m)²/(2σ²)
        edge = levels + math.copysign(0.25, away)
        pull = (edge - mean.detach()) / 1e-4
        inner = levels.abs() < 1
        close(mean.grad[inner], pull[inner], rtol=1e-3)


# ---- the hybrid loss ----------------------------------------------------------------------


def hybrid_parts(t, weight=0.01, levels=None):
    d = GaussianDiffusion(SHORT, variance="learned")
    x0, noise = normal(2, 6, 2, 3)
    output = normal(6, 4, 3, seed=1).requires_grad_()

    def gradient(loss):
        return torch.autograd.grad(loss.sum(), output)[0]

    simple = simple_loss(lambda x, t: output, d, x0, t, noise)
    term = bound_term(lambda x, t: output, d, x0, t, noise, levels=levels)
    hybrid = hybrid_loss(lambda x, t: output, d, x0, t, noise, levels=levels, weight=weight)
    return simple, term / (6 * math.log(2)), hybrid, gradient


@pytest.mark.parametrize("t", [1, 4, torch.tensor([1, 2, 3, 4, 5, 6])], ids=["1", "4", "all"])
def test_hybrid_loss_is_simple_plus_the_bound_in_bits(t):
    simple, bits, hybrid, _ = hybrid_parts(t)
    close(hybrid.detach(), (simple + 0.01 * 6 * bits).detach())


@pytest.mark.parametrize("t", [1, 4, torch.tensor([1, 2, 3, 4, 5, 6])], ids=["1", "4", "all"])
def test_the_bound_in_the_hybrid_loss_does_not_reach_the_mean(t):
    """Its gradient to the prediction is that of L_simple, to the last bit; the bound's is not 0."""
    simple, bits, hybrid, gradient = hybrid_parts(t)
    of_simple, of_bits, of_hybrid = gradient(simple), gradient(bits), gradient(hybrid)
    assert torch.equal(of_hybrid[:, :2], of_simple[:, :2])
    assert (of_bits[:, :2].abs() > 0).all()
    assert (of_hybrid[:, 2:].abs() > 0).all()
    close(of_hybrid[:, 2:], 0.01 * 6 * of_bits[:, 2:])


def test_over_all_steps_the_hybrid_loss_holds_the_whole_bound():
    """The mean over t of T·L_{t−1} is the sum: without the factor T it would be T times less."""
    d = GaussianDiffusion(SHORT, variance="learned")
    x0, noise = normal(2, 1, 2, 3)
    x0, noise, t = x0.expand(6, 2, 3), noise.expand(6, 2, 3), torch.arange(1, 7)
    arguments = (network(d), d, x0, t, noise)
    extra = hybrid_loss(*arguments, levels=None, weight=0.5) - simple_loss(*arguments)
    nats = bound_term(*arguments, levels=None).sum()
    close(extra.mean(), 0.5 * nats / (6 * math.log(2)))


# ---- the weights --------------------------------------------------------------------------


@pytest.mark.parametrize("chain", ["short", "cosine", "respaced", "one step"])
@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_dropped_weight_is_what_stands_before_the_squared_error(prediction, variance, chain):
    """L_{t−1} less its value at the right answer is w_t times the squared error, also at t = 1.

    Its value at the right answer is the constant: for σ² = β̃ and t ≥ 2 it is 0.
    """
    schedule = CHAINS[chain]
    d = GaussianDiffusion(schedule, prediction, variance)
    weight = dropped_weights(d)
    assert weight.shape == (d.T + 1,)
    assert weight[0].isnan()
    x0, noise = normal(2, 2, 3)
    for t in range(1, d.T + 1):
        signal, sigma = schedule.alpha_bar[t].sqrt(), schedule.one_minus_alpha_bar[t].sqrt()
        answer = {"eps": noise, "x0": x0, "v": signal * noise - sigma * x0}[prediction]
        error = normal(2, 3, seed=t)

        def term(output, t=t):
            return bound_term(lambda x, t: output, d, x0, t, noise, levels=None)

        floor = term(answer)
        close(term(answer + error) - floor, weight[t] * (error**2).sum(1), rtol=1e-8)
        if t > 1 and variance == "posterior":
            close(floor, torch.zeros(2), atol=1e-9)
        elif t > 1:
            smaller = schedule.posterior_variance[t].item()
            close(floor, [3 * variance_cost(smaller, schedule.beta[t].item())] * 2, rtol=1e-8)


@given(st.lists(st.floats(0.01, 0.6), min_size=2, max_size=8))
def test_the_weight_is_the_papers_equation_12(betas):
    schedule = NoiseSchedule.from_betas(betas)
    for variance, table in {
        "posterior": schedule.posterior_variance,
        "beta": schedule.beta,
    }.items():
        weight = dropped_weights(GaussianDiffusion(schedule, "eps", variance))
        for t in range(2, len(betas) + 1):
            wanted = papers.ddpm_eq_12([0.0, *betas], table[t].item(), t)
            close(weight[t], wanted, rtol=1e-9)


def test_for_x0_the_weight_is_half_a_step_of_the_signal_to_noise_ratio():
    """½(SNR_{t−1} − SNR_t) with σ² = β̃: the sum over t forgets the steps in between."""
    schedule = NoiseSchedule.linear(1000)
    weight = dropped_weights(GaussianDiffusion(schedule, "x0"))[2:]
    snr = schedule.snr
    close(weight, 0.5 * (snr[1:-1] - snr[2:]), rtol=1e-9)
    close(weight.sum(), 0.5 * (snr[1] - snr[-1]), rtol=1e-9)


def test_without_signal_the_weight_of_eps_is_infinite_and_the_others_are_not():
    schedule = NoiseSchedule.from_alpha_bar([1.0, 0.6, 0.3, 0.0])
    assert dropped_weights(GaussianDiffusion(schedule, "eps"))[3] == math.inf
    for prediction in ("x0", "v"):
        close(dropped_weights(GaussianDiffusion(schedule, prediction))[3], 0.5 * 3 / 7)


# ---- random steps -------------------------------------------------------------------------


@pytest.mark.parametrize("method", STEP_SAMPLING)
@pytest.mark.parametrize(("n", "T"), [(1, 5), (2, 3), (4, 6), (5, 4), (3, 10), (7, 7)])
def test_every_row_is_uniform(n, T, method):
    g = generator(n * 100 + T)
    draws = torch.stack([sample_steps(n, T, g, method) for _ in range(6000)])
    assert draws.shape == (6000, n)
    assert draws.dtype == torch.int64
    for row in draws.T:
        assert chisquare(row.bincount(minlength=T + 1)[1:]).pvalue > 1e-5
        assert len(row.bincount()) == T + 1


@pytest.mark.parametrize("method", STEP_SAMPLING)
def test_the_first_and_the_last_step_are_drawn(method):
    draws = sample_steps(60_000, 1000, generator(), method)
    assert draws.min() == 1
    assert draws.max() == 1000


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 1000))
def test_antithetic_steps_come_in_pairs(n, T, seed):
    t = sample_steps(n, T, generator(seed), "antithetic")
    half = (n + 1) // 2
    assert torch.equal(t[half:], T + 1 - t[: n - half])
    assert ((t >= 1) & (t <= T)).all()


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 1000))
def test_stratified_steps_hold_one_from_each_part(n, T, seed):
    """Step i in order lies in the i-th of n equal parts of (0, T], whose ends need not be whole."""
    t = sample_steps(n, T, generator(seed), "stratified").sort().values
    i = torch.arange(n)
    assert (t >= i * T // n + 1).all()
    assert (t <= -(-(i + 1) * T // n)).all()
    if n % T == 0:
        assert torch.equal(t.bincount(minlength=T + 1)[1:], torch.full((T,), n // T))


@pytest.mark.parametrize(("n", "T"), [(2, 3), (3, 5), (5, 3), (4, 6), (3, 3)])
def test_the_parts_of_a_stratified_draw_together_are_exactly_uniform(n, T):
    """Of the n·T equally likely pairs (part, number), each step owns exactly n."""
    owned = torch.tensor([(part * T + r) // n + 1 for part in range(n) for r in range(T)])
    assert torch.equal(owned.bincount(minlength=T + 1)[1:], torch.full((T,), n))
    seen = torch.stack([sample_steps(n, T, generator(s), "stratified") for s in range(3000)])
    counts = seen.flatten().bincount(minlength=T + 1)[1:].double() / (3000 * n)
    assert (counts - 1 / T).abs().max() < 5 * math.sqrt(0.25 / (3000 * n))


def test_stratified_and_antithetic_steps_calm_the_loss_of_a_batch():
    """On the floor of N(0, 0.3) data, as a function of t: the batch means scatter less, round the

    same mean, and a stratified batch of 32 scatters at least thirty times less than 32 free draws.
    """
    schedule = NoiseSchedule.linear(1000)
    floor = (schedule.alpha_bar * 0.3 / marginal_variance(schedule, 0.3))[1:]
    g = generator()
    scatter = {}
    for method in STEP_SAMPLING:
        means = torch.stack(
            [floor[sample_steps(32, 1000, g, method) - 1].mean() for _ in range(3000)]
        )
        assert abs(means.mean() - floor.mean()) < 5 * means.std() / math.sqrt(3000)
        scatter[method] = means.var().item()
    close(scatter["uniform"], floor.var(correction=0) / 32, rtol=0.15)
    assert scatter["antithetic"] < 0.7 * scatter["uniform"]
    assert scatter["stratified"] < scatter["uniform"] / 30


def test_stratified_steps_come_in_random_order():
    """Rows in order of t would tie the first image of every batch to small steps."""
    t = torch.stack([sample_steps(8, 80, generator(s), "stratified") for s in range(200)])
    assert len({tuple(row.tolist()) for row in t.argsort(1)}) > 190


def test_the_seed_decides_the_steps():
    for method in STEP_SAMPLING:
        one, same, other = (sample_steps(64, 1000, generator(s), method) for s in (1, 1, 2))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


# ---- accelerators -------------------------------------------------------------------------


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("levels", [None, 17])
def test_nothing_is_read_back_from_an_accelerator(variance, levels):
    """On the meta device no value exists, so a check that looked at one would raise."""
    d = GaussianDiffusion(SHORT, "eps", variance)
    x0 = torch.zeros(4, 1, 8, device="meta")

    def denoise(x_t, t):
        assert t.device.type == "meta"
        return torch.zeros(4, 2 if variance == "learned" else 1, 8, device="meta")

    for t in (1, 3, torch.ones(4, dtype=torch.int64, device="meta")):
        assert simple_loss(denoise, d, x0, t, x0).shape == (4,)
        assert bound_term(denoise, d, x0, t, x0, levels=levels).device.type == "meta"
        if variance == "learned":
            hybrid = hybrid_loss(denoise, d, x0, t, x0, levels=levels, weight=0.1)
            assert hybrid.device.type == "meta"
    assert prior_term(d, x0).device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("variance", VARIANCES)
def test_a_gpu_gives_the_numbers_of_the_cpu(variance):
    d = GaussianDiffusion(NoiseSchedule.linear(1000).respace(20, "trailing"), "v", variance)
    x0 = digits("heldout")[0][:5].double()
    here = variational_bound(network(d), d, x0, levels=17, generator=generator())
    away = variational_bound(network(d), d, x0.cuda(), levels=17, generator=generator())
    assert away.steps.is_cuda
    close(away.steps.cpu(), here.steps)
    close(away.total.cpu(), here.total)
    masses = decoder_log_masses(Gaussian(x0.cuda(), torch.tensor(0.01)), 17)
    close(masses.cpu(), decoder_log_masses(Gaussian(x0, torch.tensor(0.01)), 17))


# ---- refusals -----------------------------------------------------------------------------

X = torch.zeros(2, 3)
D = GaussianDiffusion(SHORT)
L = GaussianDiffusion(SHORT, variance="learned")
G = torch.Generator()
UNIT = Gaussian(X, torch.tensor(1.0))


def zeros(x_t, t, y=None):
    return torch.zeros_like(x_t)


def never(x_t, t, y=None):
    raise AssertionError("the denoiser must not be asked")


REFUSED = {
    "t = 0 in the loss": (lambda: simple_loss(never, D, X, 0, X), "1..T = 6, got 0"),
    "t = 7 in the loss": (lambda: simple_loss(never, D, X, 7, X), "1..T = 6, got 7"),
    "t = 0 in the bound": (lambda: bound_term(never, D, X, 0, X, levels=None), "got 0"),
    "one t is 0": (
        lambda: bound_term(never, D, X, torch.tensor([3, 0]), X, levels=None),
        "got 0",
    ),
    "one t is -1": (lambda: simple_loss(never, D, X, torch.tensor([3, -1]), X), "got -1"),
    "noise of another shape": (lambda: simple_loss(never, D, X, 1, X[:1]), "noise must have"),
    "output of another shape": (
        lambda: simple_loss(lambda x, t: x[:1], D, X, 1, X),
        "the denoiser's output must have the shape",
    ),
    "no second half": (lambda: simple_loss(zeros, L, X, 1, X), "twice the channels"),
    "one level": (lambda: bound_term(never, D, X, 1, X, levels=1), "at least 2, .* got 1"),
    "a float of levels": (lambda: bound_term(never, D, X, 1, X, levels=17.0), "got 17.0"),
    "off the levels": (
        lambda: bound_term(zeros, D, X + 0.3, 1, X, levels=17),
        r"with 17 levels x0 must sit on -1 \+ 2k/16.*one value is 0.3",
    ),
    "beyond the levels": (lambda: decoder_log_prob(X + 1.125, UNIT, 17), "one value is 1.125"),
    "nan": (lambda: decoder_log_prob(X + math.nan, UNIT, 17), "one value is nan"),
    "0..255 instead of -1..1": (lambda: decoder_log_prob(X + 255, UNIT, 256), "value is 255.0"),
    "x0 unlike the law": (lambda: decoder_log_prob(X[:1], UNIT, 17), r"\(2, 3\), got \(1, 3\)"),
    "masses of continuous data": (lambda: decoder_log_masses(UNIT, None), "have no masses"),
    "masses of true": (lambda: decoder_log_masses(UNIT, True), "got True"),
    "bits of continuous data": (
        lambda: bits_per_dim(never, D, X, levels=None, generator=G),
        "needs data with levels",
    ),
    "no batch size": (
        lambda: variational_bound(never, D, X, levels=None, generator=G, batch_size=0),
        "batch_size must be an int of at least 1, got 0",
    ),
    "no rows": (
        lambda: variational_bound(never, D, X[:0], levels=None, generator=G),
        "at least one row",
    ),
    "hybrid with a fixed variance": (
        lambda: hybrid_loss(never, D, X, 1, X, levels=None, weight=1.0),
        "variance='posterior'",
    ),
    "negative weight": (
        lambda: hybrid_loss(never, L, X, 1, X, levels=None, weight=-1.0),
        "at least 0, got -1.0",
    ),
    "weight nan": (
        lambda: hybrid_loss(never, L, X, 1, X, levels=None, weight=math.nan),
        "got nan",
    ),
    "weights of a learned variance": (lambda: dropped_weights(L), "no weight that depends on t"),
    "eps without signal": (
        lambda: simple_loss(
            zeros, GaussianDiffusion(NoiseSchedule.from_alpha_bar([1, 0.5, 0])), X, 2, X
        ),
        "use prediction='v' or 'x0'",
    ),
    "method": (lambda: sample_steps(3, 4, G, "sobol"), "uniform, antithetic, stratified, got 'sob"),
    "n = 0": (lambda: sample_steps(0, 4, G, "uniform"), "at least 1, got 0"),
    "T a float": (lambda: sample_steps(3, 4.0, G, "uniform"), "T must be an int .* got 4.0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_in_one_sentence(case):
    call, words = REFUSED[case]
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_the_kind_of_data_has_no_default():
    for call in (
        lambda: bound_term(never, D, X, 1, X),
        lambda: variational_bound(never, D, X, generator=G),
        lambda: bits_per_dim(never, D, X, generator=G),
        lambda: hybrid_loss(never, L, X, 1, X, weight=1.0),
        lambda: decoder_log_prob(X, UNIT),
        lambda: decoder_log_masses(UNIT),
    ):
        with pytest.raises(TypeError, match="levels"):
            call()

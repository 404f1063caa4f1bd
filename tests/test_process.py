"""GaussianDiffusion: identities in float64 and the papers' equations transcribed in papers.py."""

import math

import numpy as np
import papers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_lite import Gaussian, GaussianDiffusion, NoiseSchedule

betas_lists = st.lists(st.floats(0.01, 0.6), min_size=2, max_size=10)
values = st.floats(-3, 3)


def number(x):
    return torch.tensor([[x]], dtype=torch.float64)


def close(left, right, rtol=1e-10):
    np.testing.assert_allclose(np.asarray(left), np.asarray(right), rtol=rtol, atol=1e-12)


@st.composite
def chains(draw, steps=2):
    """A diffusion and `steps` increasing step numbers from 0..T."""
    betas = draw(st.lists(st.floats(0.01, 0.6), min_size=steps, max_size=10))
    d = GaussianDiffusion(NoiseSchedule.from_betas(betas))
    numbers = draw(
        st.lists(st.integers(0, d.T), min_size=steps, max_size=steps, unique=True).map(sorted)
    )
    return d, [0.0, *betas], numbers


# ---- forward ------------------------------------------------------------------------------


@given(chains(steps=3), values)
def test_transitions_compose(chain, x):
    """s → t → u is s → u: the means compose, the shrunk old variance and the new one add."""
    d, _, (s, t, u) = chain
    first = d.transition(number(x), t, s)
    second = d.transition(first.mean, u, t)
    direct = d.transition(number(x), u, s)
    shrink = d.transition(number(1.0), u, t).mean ** 2
    close(second.mean, direct.mean)
    close(shrink * first.variance + second.variance, direct.variance)


@given(betas_lists, values)
def test_marginal_is_the_composed_chain(betas, x0):
    d = GaussianDiffusion(NoiseSchedule.from_betas(betas))
    mean, variance = x0, 0.0
    for t, beta in enumerate(betas, start=1):
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        q = d.marginal(number(x0), t)
        close(q.mean.item(), mean)
        close(q.variance.item(), variance)
        paper = papers.ddpm_eq_4([0.0, *betas], x0, t)
        close([q.mean.item(), q.variance.item()], paper)


def test_marginal_at_zero_is_the_data():
    d = GaussianDiffusion(NoiseSchedule.linear(10))
    x = torch.randn(3, 2, dtype=torch.float64)
    q = d.marginal(x, 0)
    assert torch.equal(q.mean, x)
    assert q.variance == 0
    assert torch.equal(d.q_sample(x, 0, torch.randn_like(x)), x)


@given(chains(), values, values)
def test_q_sample_is_a_draw_of_the_marginal(chain, x0, noise):
    d, _, (_, t) = chain
    q = d.marginal(number(x0), t)
    close(d.q_sample(number(x0), t, number(noise)), q.mean + q.variance.sqrt() * noise)


# ---- the posterior family -----------------------------------------------------------------


@given(chains(), values, values, values)
def test_posterior_times_marginal_is_the_joint(chain, x0, x_s, x_t):
    """log q(x_s|x_t,x_0) + log q(x_t|x_0) = log q(x_t|x_s) + log q(x_s|x_0) for s ≥ 1."""
    d, _, (s, t) = chain
    if s == 0:
        return
    backward = d.posterior(number(x_t), number(x0), t, s).log_prob(number(x_s))
    backward = backward + d.marginal(number(x0), t).log_prob(number(x_t))
    forward = d.transition(number(x_s), t, s).log_prob(number(x_t))
    forward = forward + d.marginal(number(x0), s).log_prob(number(x_s))
    close(backward, forward, rtol=1e-8)


@given(betas_lists, values, values)
def test_posterior_is_the_papers_equations_6_and_7(betas, x_t, x0):
    d = GaussianDiffusion(NoiseSchedule.from_betas(betas))
    for t in range(1, d.T + 1):
        q = d.posterior(number(x_t), number(x0), t)
        mean, variance = papers.ddpm_eq_6_7([0.0, *betas], x_t, x0, t)
        close(q.mean.item(), mean)
        close(q.variance.item(), variance, rtol=1e-9)


@given(chains(), values, values, st.floats(0, 1))
def test_family_is_the_ddim_papers_equation_7(chain, x_t, x0, eta):
    d, betas, (s, t) = chain
    bar_s, bar_t = papers.ddpm_alpha_bar(betas, s), papers.ddpm_alpha_bar(betas, t)
    sigma = papers.ddim_eq_16(bar_s, bar_t, eta)
    if 1 - bar_s - sigma**2 < 0:  # the paper's form loses the last digit at s = 0
        sigma = math.sqrt(1 - bar_s)
    q = d.posterior(number(x_t), number(x0), t, s, eta)
    mean, variance = papers.ddim_eq_7(bar_s, bar_t, sigma, x_t, x0)
    close(q.mean.item(), mean, rtol=1e-7)
    close(q.variance.item(), variance, rtol=1e-8)


@given(chains(), values, st.floats(0, 1))
def test_every_member_keeps_the_marginals(chain, x0, eta):
    """Drawing x_t ~ q(x_t|x_0), then x_s ~ q_σ(x_s|x_t,x_0), gives q(x_s|x_0) for any η."""
    d, _, (s, t) = chain
    q_t, q_s = d.marginal(number(x0), t), d.marginal(number(x0), s)
    at = d.posterior(q_t.mean, number(x0), t, s, eta)
    slope = d.posterior(q_t.mean + 1, number(x0), t, s, eta).mean - at.mean
    close(at.mean, q_s.mean)
    close(slope**2 * q_t.variance + at.variance, q_s.variance, rtol=1e-9)


@given(chains())
def test_eta_one_has_the_posterior_variance_at_any_stride(chain):
    d, _, (s, t) = chain
    x = number(0.3)
    bar = d.schedule.alpha_bar
    wanted = (1 - bar[s]) / (1 - bar[t]) * (1 - bar[t] / bar[s])
    close(d.posterior(x, x, t, s, eta=1.0).variance, wanted, rtol=1e-9)
    if s > 0:
        short = d.schedule.respace([s, t])
        close(short.posterior_variance[2], wanted, rtol=1e-9)


@given(chains(), values, values, st.sampled_from([0.0, 0.3, 1.0]))
def test_a_strided_step_is_a_step_of_the_respaced_chain(chain, x_t, x0, eta):
    d, _, (s, t) = chain
    if s == 0:
        return
    short = GaussianDiffusion(d.schedule.respace([s, t]))
    whole = d.posterior(number(x_t), number(x0), t, s, eta)
    respaced = short.posterior(number(x_t), number(x0), 2, 1, eta)
    close(whole.mean, respaced.mean)
    close(whole.variance, respaced.variance)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("t", [1, 2, 500, 1000])
def test_a_step_to_zero_lands_on_x0_exactly(t, eta):
    d = GaussianDiffusion(NoiseSchedule.linear(1000))
    x_t, x0 = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    q = d.posterior(x_t, x0, t, 0, eta)
    assert torch.equal(q.mean, x0)
    assert q.variance == 0


def test_weights_keep_their_digits_where_the_textbook_form_cancels():
    """Against 50-digit arithmetic, on neighbouring steps of a long chain."""
    mpmath = pytest.importorskip("mpmath")
    T = 100_000
    d = GaussianDiffusion(NoiseSchedule.linear(T, 1e-7, 2e-5))
    with mpmath.workdps(50):
        for t in (2, 3, 50_000):
            log_s, log_t = (mpmath.mpf(d.schedule.log_alpha_bar[i].item()) for i in (t - 1, t))
            bar_s, bar_t = mpmath.exp(log_s), mpmath.exp(log_t)
            weight = mpmath.sqrt(bar_s) * (1 - bar_t / bar_s) / (1 - bar_t)
            got = d.posterior(number(0.0), number(1.0), t).mean.item()
            assert abs(got / weight - 1) < 1e-9


# ---- predictions --------------------------------------------------------------------------


@given(chains(), values, values)
def test_all_forms_of_a_prediction_agree(chain, x0, eps):
    d, _, (_, t) = chain
    x_t = d.q_sample(number(x0), t, number(eps))
    bar = d.schedule.alpha_bar[t].item()
    v = math.sqrt(bar) * eps - math.sqrt(1 - bar) * x0
    for prediction, output in {"eps": eps, "x0": x0, "v": v}.items():
        p = GaussianDiffusion(d.schedule, prediction).predict(number(output), x_t, t)
        close(p.x0.item(), x0, rtol=1e-8)
        close(p.eps.item(), eps, rtol=1e-8)
        close(p.v.item(), v, rtol=1e-8)
        close(p.score.item(), -eps / math.sqrt(1 - bar), rtol=1e-8)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_clipping_rederives_eps(prediction):
    d = GaussianDiffusion(NoiseSchedule.linear(10, 0.1, 0.5), prediction)
    g = torch.Generator().manual_seed(0)
    x_t, output = torch.randn(2, 50, 3, generator=g, dtype=torch.float64)
    p = d.predict(3 * output, x_t, 6, clip=(-1, 1))
    assert p.x0.abs().max() == 1
    close(d.q_sample(p.x0, 6, p.eps), x_t)
    free = d.predict(3 * output, x_t, 6)
    inside = free.x0.abs() < 1
    assert inside.any()
    assert not inside.all()
    close(p.eps[inside], free.eps[inside])
    close(p.score, -p.eps / math.sqrt(1 - d.schedule.alpha_bar[6]))


@given(betas_lists, values, values)
def test_reverse_is_the_papers_equation_11(betas, x_t, eps):
    schedule = NoiseSchedule.from_betas(betas)
    for t in range(1, schedule.T + 1):
        mean = papers.ddpm_eq_11([0.0, *betas], x_t, eps, t)
        for variance in ("posterior", "beta"):
            p = GaussianDiffusion(schedule, "eps", variance).reverse(number(eps), number(x_t), t)
            close(p.mean.item(), mean, rtol=1e-8)
        close(p.variance.item(), betas[t - 1])


@given(chains(), values, values, st.floats(0, 1))
def test_reverse_is_the_ddim_papers_equation_12(chain, x_t, eps, eta):
    d, betas, (s, t) = chain
    bar_s, bar_t = papers.ddpm_alpha_bar(betas, s), papers.ddpm_alpha_bar(betas, t)
    sigma = min(papers.ddim_eq_16(bar_s, bar_t, eta), math.sqrt(1 - bar_s))
    p = d.reverse(number(eps), number(x_t), t, s, eta)
    mean, variance = papers.ddim_eq_12(bar_s, bar_t, sigma, x_t, eps)
    np.testing.assert_allclose(p.mean.item(), mean, rtol=1e-6, atol=1e-7)
    close(p.variance.item(), variance, rtol=1e-8)


def test_learned_variance_interpolates_in_the_logarithm():
    d = GaussianDiffusion(NoiseSchedule.linear(10, 0.1, 0.5), variance="learned")
    x_t = torch.zeros(3, 2, 4, dtype=torch.float64)
    raw = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64).reshape(3, 1, 1).expand(3, 2, 4)
    p = d.reverse(torch.cat([x_t, raw], dim=1), x_t, 7, 4)
    bar = d.schedule.alpha_bar
    beta = (1 - bar[7] / bar[4]).item()
    tilde = ((1 - bar[4]) / (1 - bar[7])).item() * beta
    assert p.mean.shape == x_t.shape
    for row, wanted in zip(p.variance, (tilde, math.sqrt(beta * tilde), beta), strict=True):
        close(row, torch.full((2, 4), wanted, dtype=torch.float64))


def test_learned_variance_at_the_last_step_uses_the_smallest_positive_one():
    schedule = NoiseSchedule.linear(10, 0.1, 0.5)
    d = GaussianDiffusion(schedule, variance="learned")
    x_t = torch.zeros(1, 1, dtype=torch.float64)
    lowest = d.reverse(torch.tensor([[0.0, -1.0]], dtype=torch.float64), x_t, 1)
    highest = d.reverse(torch.tensor([[0.0, 1.0]], dtype=torch.float64), x_t, 1)
    close(lowest.variance, schedule.posterior_variance[2].reshape(1, 1))
    close(highest.variance, schedule.beta[1].reshape(1, 1))
    one = GaussianDiffusion(NoiseSchedule.from_betas([0.3]), variance="learned")
    close(one.reverse(torch.tensor([[0.0, -0.4]], dtype=torch.float64), x_t, 1).variance, 0.3)


# ---- shapes, steps, dtypes ----------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 1, 8, 8), (4, 2, 3, 5, 2)])
def test_a_step_per_sample_equals_one_sample_at_a_time(shape):
    d = GaussianDiffusion(NoiseSchedule.linear(10, 0.05, 0.5))
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, *shape, generator=g, dtype=torch.float64)
    t, s = torch.tensor([1, 4, 10, 7]), torch.tensor([0, 1, 9, 2])
    calls = [
        lambda x, y, t, s: d.transition(x, t, s),
        lambda x, y, t, s: d.marginal(x, t),
        lambda x, y, t, s: d.posterior(x, y, t, s, eta=0.4),
        lambda x, y, t, s: d.reverse(y, x, t, s, eta=0.4, clip=(-1, 1)),
        lambda x, y, t, s: Gaussian(d.predict(y, x, t).score, d.q_sample(x, t, y)),
    ]
    for call in calls:
        together = call(x, y, t, s)
        assert together.mean.shape == shape
        for i in range(4):
            alone = call(x[i : i + 1], y[i : i + 1], int(t[i]), int(s[i]))
            close(together.mean[i : i + 1], alone.mean)
            close((together.variance + 0 * x)[i : i + 1], alone.variance + 0 * x[i : i + 1])


def test_s_defaults_to_the_step_before():
    d = GaussianDiffusion(NoiseSchedule.linear(10, 0.05, 0.5))
    x, y = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(2))
    for t in (4, torch.tensor([1, 5, 10])):
        before = t - 1
        assert torch.equal(d.posterior(x, y, t).mean, d.posterior(x, y, t, before).mean)
        assert torch.equal(d.reverse(y, x, t).mean, d.reverse(y, x, t, before).mean)


@pytest.mark.parametrize("t", [3, torch.tensor([3, 3])], ids=["int", "tensor"])
@pytest.mark.parametrize(
    ("given_dtype", "result"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_results_are_at_least_float32(given_dtype, result, t):
    d = GaussianDiffusion(NoiseSchedule.linear(1000))
    x = torch.ones(2, 3, dtype=given_dtype)
    gaussians = [
        d.transition(x, t, t - 1),
        d.marginal(x, t),
        d.posterior(x, x, t),
        d.reverse(x, x, t),
    ]
    tensors = [part for q in gaussians for part in (q.mean, q.variance)]
    p = d.predict(x, x, t)
    tensors += [d.q_sample(x, t, x), p.x0, p.eps, p.v, p.score]
    assert {tensor.dtype for tensor in tensors} == {result}


@pytest.mark.parametrize("variance", ["posterior", "beta", "learned"])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_nothing_is_read_back_from_an_accelerator(prediction, variance):
    """On the meta device no value exists, so a check that looked at one would raise."""
    d = GaussianDiffusion(NoiseSchedule.linear(10), prediction, variance)
    x = torch.zeros(4, 2, 8, device="meta")
    output = torch.zeros(4, 4 if variance == "learned" else 2, 8, device="meta")
    for t, s in ((torch.full((4,), 7, device="meta"), torch.full((4,), 3, device="meta")), (7, 3)):
        gaussians = [
            d.transition(x, t, s),
            d.marginal(x, t),
            d.posterior(x, x, t, s),
            d.reverse(output, x, t, s, clip=(-1, 1)),
        ]
        assert {q.mean.device.type for q in gaussians} == {"meta"}
        assert {q.log_prob(x).shape for q in gaussians} == {(4,)}
        assert d.predict(output, x, t).score.shape == x.shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_gives_the_numbers_of_the_cpu():
    d = GaussianDiffusion(NoiseSchedule.linear(1000))
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 4, 3, generator=g, dtype=torch.float64)
    for t in (torch.tensor([1, 2, 500, 1000]), 500):
        there = t if isinstance(t, int) else t.cuda()
        here, away = d.reverse(y, x, t), d.reverse(y.cuda(), x.cuda(), there)
        assert away.mean.is_cuda
        close(away.mean.cpu(), here.mean)
        close(
            away.sample(torch.Generator().manual_seed(1)).cpu(),
            here.sample(torch.Generator().manual_seed(1)),
        )


def test_half_precision_data_still_gets_its_noise():
    """With coefficients in bfloat16, 1 − ᾱ_1 = 1e-4 rounds to exactly 0 and no noise is added."""
    d = GaussianDiffusion(NoiseSchedule.linear(1000))
    x = torch.zeros(1, 3, dtype=torch.bfloat16)
    noisy = d.q_sample(x, 1, torch.ones_like(x))
    close(noisy, torch.full((1, 3), 0.01), rtol=1e-6)


# ---- Gaussian -----------------------------------------------------------------------------


def test_log_prob_and_kl_against_torch_distributions():
    g = torch.Generator().manual_seed(3)
    mean, other, x = torch.randn(3, 5, 2, 3, generator=g, dtype=torch.float64)
    variance, other_variance = torch.rand(2, 5, 1, 1, generator=g, dtype=torch.float64) + 0.1
    p, q = Gaussian(mean, variance), Gaussian(other, other_variance)
    normal_p = torch.distributions.Normal(mean, variance.sqrt().expand_as(mean))
    normal_q = torch.distributions.Normal(other, other_variance.sqrt().expand_as(mean))
    close(p.log_prob(x), normal_p.log_prob(x).sum((1, 2)))
    close(p.kl(q), torch.distributions.kl_divergence(normal_p, normal_q).sum((1, 2)))
    close(p.kl(p), torch.zeros(5, dtype=torch.float64))
    assert p.log_prob(x).shape == (5,)


def test_kl_counts_every_coordinate_when_the_variance_is_one_number():
    p = Gaussian(torch.zeros(2, 7), torch.tensor(1.0))
    q = Gaussian(torch.zeros(2, 7), torch.tensor(2.0))
    close(p.kl(q), torch.full((2,), 7 * 0.5 * (0.5 - 1 + math.log(2))), rtol=1e-6)


def test_sample_has_the_moments_and_the_seed_decides():
    q = Gaussian(torch.full((200_000, 1), 2.0, dtype=torch.float64), torch.tensor(0.25))
    x = q.sample(torch.Generator().manual_seed(4))
    assert torch.equal(x, q.sample(torch.Generator().manual_seed(4)))
    assert not torch.equal(x, q.sample(torch.Generator().manual_seed(5)))
    n = len(x)
    assert abs(x.mean().item() - 2) < 5 * (0.25 / n) ** 0.5
    assert abs(x.var().item() - 0.25) < 5 * 0.25 * (2 / n) ** 0.5


def test_a_point_is_returned_without_drawing_and_has_no_density():
    g = torch.Generator().manual_seed(6)
    before = g.get_state()
    point = Gaussian(torch.ones(2, 3), torch.tensor(0.0))
    assert torch.equal(point.sample(g), torch.ones(2, 3))
    assert torch.equal(g.get_state(), before)
    for call in (lambda: point.log_prob(torch.ones(2, 3)), lambda: point.kl(point)):
        with pytest.raises(ValueError, match="positive variance"):
            call()


# ---- refusals -----------------------------------------------------------------------------

X = torch.zeros(2, 3)
D = GaussianDiffusion(NoiseSchedule.linear(10))

REFUSED = {
    "t beyond T": (lambda: D.marginal(X, 11), r"t must lie in 0..T = 10, got 11"),
    "t negative": (lambda: D.marginal(X, -1), "got -1"),
    "t = 0 in posterior": (lambda: D.posterior(X, X, 0, 0), r"1..T = 10, got 0"),
    "t = 0 in predict": (lambda: D.predict(X, X, 0), "got 0"),
    "one of t is 0": (lambda: D.predict(X, X, torch.tensor([3, 0])), "got 0"),
    "s = t": (lambda: D.transition(X, 4, 4), "t = 4, s = 4"),
    "s > t": (lambda: D.transition(X, 4, 5), "t = 4, s = 5"),
    "one s > t": (lambda: D.transition(X, torch.tensor([4, 4]), torch.tensor([3, 5])), "smaller"),
    "s negative": (lambda: D.posterior(X, X, 4, -1), r"s must lie in 0..T = 10, got -1"),
    "t of another batch": (lambda: D.marginal(X, torch.tensor([1, 2, 3])), r"shape \(3,\)"),
    "t a float tensor": (lambda: D.marginal(X, torch.tensor([1.0, 2.0])), "float32"),
    "noise shape": (lambda: D.q_sample(X, 4, torch.zeros(2, 1)), r"\(2, 1\)"),
    "x0 shape": (lambda: D.posterior(X, X[:1], 4), r"\(1, 3\)"),
    "output shape": (lambda: D.predict(torch.zeros(2, 6), X, 4), r"\(2, 6\)"),
    "eta": (lambda: D.posterior(X, X, 4, eta=1.5), r"\[0, 1\], got 1.5"),
    "eta nan": (lambda: D.posterior(X, X, 4, eta=math.nan), "nan"),
    "clip": (lambda: D.predict(X, X, 4, clip=(1, -1)), r"\(1, -1\)"),
    "prediction": (lambda: GaussianDiffusion(D.schedule, "epsilon"), "'epsilon'"),
    "variance": (lambda: GaussianDiffusion(D.schedule, variance="fixed"), "'fixed'"),
    "eta with beta": (
        lambda: GaussianDiffusion(D.schedule, variance="beta").reverse(X, X, 4, eta=0.0),
        "eta = 1 only, got 0.0",
    ),
    "learned without channels": (
        lambda: GaussianDiffusion(D.schedule, variance="learned").predict(X, X, 4),
        r"twice the channels, \(2, 6\), got \(2, 3\)",
    ),
    "eps without signal": (
        lambda: GaussianDiffusion(NoiseSchedule.from_alpha_bar([1, 0.5, 0])).predict(X, X, 2),
        "alpha_bar_2 is 0",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_in_a_sentence_that_names_it(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("t", [True, 3.0, "3", None])
def test_steps_must_be_ints_or_tensors(t):
    with pytest.raises(TypeError, match="t must be an int"):
        D.marginal(X, t)


def test_no_signal_at_T_is_fine_for_v_and_for_earlier_steps():
    schedule = NoiseSchedule.from_alpha_bar([1, 0.5, 0])
    g = torch.Generator().manual_seed(7)
    x_t, v = torch.randn(2, 2, 3, generator=g)
    p = GaussianDiffusion(schedule, "v").predict(v, x_t, 2)
    assert torch.equal(p.x0, -v)
    assert torch.equal(p.eps, x_t)
    assert GaussianDiffusion(schedule).predict(v, x_t, 1).x0.isfinite().all()
    q = GaussianDiffusion(schedule, "v").reverse(v, x_t, 2)
    assert q.mean.isfinite().all()


@settings(max_examples=20)
@given(st.integers(1, 1000))
def test_gradients_flow_to_x_and_output(t):
    d = GaussianDiffusion(NoiseSchedule.linear(1000))
    x_t = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    output = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    d.reverse(output, x_t, t).mean.sum().backward()
    assert x_t.grad is not None and x_t.grad.isfinite().all()
    assert output.grad is not None and (output.grad != 0).all()

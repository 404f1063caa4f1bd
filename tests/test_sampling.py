"""sampling.py: laws in closed form, the papers' updates transcribed, and what must not happen.

With Gaussian data the exact denoiser is linear, so a sampler is an affine map of its draws
(x_T, z_T, …, z_2). The map is recovered from its values and compared with a hand-made propagation:
nothing here is statistical, unless it says so.
"""

import math

import numpy as np
import papers
import pytest
import torch
from torch import nn

from ddpm_lite import GaussianDiffusion, NoiseSchedule
from ddpm_lite.oracle import FiniteData, GaussianData
from ddpm_lite.sampling import State, generate, sample, trajectory

BETAS = [0.05, 0.12, 0.3, 0.45, 0.6, 0.5]
SCHEDULE = NoiseSchedule.from_betas(BETAS)
T = SCHEDULE.T
LISTED = [0.0, *BETAS]  # as the papers count
MEAN, VARIANCE = 0.7, 0.4  # of the data
DATA = GaussianData([MEAN], [[VARIANCE]])
WALKS = {"all": [6, 5, 4, 3, 2, 1], "some": [6, 4, 1], "one": [6], "low start": [4, 2]}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(shape, seed, count):
    """What a sampler draws from this seed: x_T, then one z for each of `count` steps."""
    g = seeded(seed)
    return [torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(1 + count)]


def run(diffusion, steps, eta=1.0, n=40, seed=0, data=DATA, dim=1, **settings):
    """Samples of an exact denoiser, float64 (n, dim)."""
    denoiser = data.denoiser(SCHEDULE, diffusion.prediction)
    shape = (n, dim)
    settings = {"dtype": torch.float64, "generator": seeded(seed), **settings}
    return generate(denoiser, diffusion, shape, steps=steps, eta=eta, **settings)


def learned(denoiser, f):
    """A denoiser with a second half of channels that says f everywhere."""

    def both(x, t, y=None):
        return torch.cat([denoiser(x, t), torch.full_like(x, 2 * f - 1)], dim=1)

    return both


def guess(x, t):
    """E[x_0 | x_t] for the Gaussian data, from the two variances."""
    bar = papers.ddpm_alpha_bar(LISTED, t)
    gain = math.sqrt(bar) * VARIANCE / (bar * VARIANCE + 1 - bar)
    return MEAN + gain * (x - math.sqrt(bar) * MEAN)


def step_variance(kind, bar_s, bar_t, eta):
    beta, tilde = 1 - bar_t / bar_s, papers.ddim_eq_16(bar_s, bar_t, 1.0) ** 2
    if kind == "posterior":
        return eta**2 * tilde
    return {"beta": beta, "learned": beta**0.3 * tilde**0.7 if tilde else 0.0}[kind]


def by_hand(kind, grid, eta, draws):
    """The samples, by the printed equations: DDIM Eq. 12, with another variance where asked."""
    x, draws = draws[0], iter(draws[1:])
    for t, s in zip(grid, [*grid[1:], 0], strict=True):
        bar_t, bar_s = (papers.ddpm_alpha_bar(LISTED, k) for k in (t, s))
        eps = (x - math.sqrt(bar_t) * guess(x, t)) / math.sqrt(1 - bar_t)
        x, _ = papers.ddim_eq_12(bar_s, bar_t, papers.ddim_eq_16(bar_s, bar_t, eta), x, eps)
        variance = step_variance(kind, bar_s, bar_t, eta)
        if s > 0 and variance > 0:
            x = x + math.sqrt(variance) * next(draws)
    return x


def law_by_hand(kind, grid, eta):
    """Mean and variance of the samples, propagated through the same affine steps."""
    mean, variance = 0.0, 1.0
    for t, s in zip(grid, [*grid[1:], 0], strict=True):
        bar_t, bar_s = (papers.ddpm_alpha_bar(LISTED, k) for k in (t, s))
        sigma = papers.ddim_eq_16(bar_s, bar_t, eta)

        def step(x, t=t, bar_s=bar_s, bar_t=bar_t, sigma=sigma):
            return papers.ddim_eq_7(bar_s, bar_t, sigma, x, guess(x, t))[0]

        slope = step(1.0) - step(0.0)
        mean, variance = step(mean), slope**2 * variance
        if s > 0:
            variance += step_variance(kind, bar_s, bar_t, eta)
    return mean, variance


# ---- laws and transcriptions ----------------------------------------------------------------


CASES = [
    *[("posterior", walk, eta) for walk in WALKS for eta in (0.0, 0.5, 1.0)],
    *[(kind, walk, 1.0) for kind in ("beta", "learned") for walk in WALKS],
]


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize(("kind", "walk", "eta"), CASES)
def test_samples_are_the_papers_updates(kind, walk, eta, prediction):
    grid = WALKS[walk]
    d = GaussianDiffusion(SCHEDULE, prediction, kind)
    denoiser = DATA.denoiser(SCHEDULE, prediction)
    denoiser = learned(denoiser, 0.3) if kind == "learned" else denoiser
    ours = generate(
        denoiser, d, (5, 1), steps=grid, eta=eta, generator=seeded(3), dtype=torch.float64
    )
    theirs = by_hand(kind, grid, eta, draw((5, 1), 3, len(grid)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("kind", "walk", "eta"), CASES)
def test_law_of_the_samples_in_closed_form(kind, walk, eta):
    """Least squares recovers the affine map exactly, and the map gives the law."""
    grid = WALKS[walk]
    denoiser = DATA.denoiser(SCHEDULE)
    denoiser = learned(denoiser, 0.3) if kind == "learned" else denoiser
    d = GaussianDiffusion(SCHEDULE, "eps", kind)
    x = generate(
        denoiser, d, (40, 1), steps=grid, eta=eta, generator=seeded(1), dtype=torch.float64
    )
    draws = draw((40, 1), 1, 0 if eta == 0 else len(grid) - 1)
    design = torch.cat([torch.ones(40, 1, dtype=torch.float64), *draws], dim=1)
    weights = torch.linalg.lstsq(design, x).solution[:, 0]
    assert torch.allclose(design @ weights, x[:, 0], atol=1e-12)  # it is affine, in these draws
    mean, variance = law_by_hand(kind, grid, eta)
    assert weights[0].item() == pytest.approx(mean, abs=1e-12)
    assert weights[1:].square().sum().item() == pytest.approx(variance, rel=1e-10)


def test_standard_normal_data_keep_their_law_at_every_level():
    """x_0 ~ N(0, 1): σ² = β is the true reverse variance, so each level above 0 is N(0, 1)."""
    d = GaussianDiffusion(SCHEDULE, "eps", "beta")
    data = GaussianData([0.0], [[1.0]])
    draws = draw((40, 1), 2, T - 1)
    walk = sample(
        data.denoiser(SCHEDULE),
        d,
        (40, 1),
        steps=T,
        eta=1.0,
        generator=seeded(2),
        dtype=torch.float64,
    )
    for count, state in enumerate(walk, start=1):
        used = torch.cat(draws[: 1 + min(count, T - 1)], dim=1)
        weights = torch.linalg.lstsq(used, state.x).solution[:, 0]
        left_out = BETAS[0] if state.t == 0 else 0.0  # the noise that the last step does not add
        assert weights.square().sum().item() == pytest.approx(1 - left_out, rel=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("walk", WALKS)
def test_one_point_is_hit_exactly(walk, eta):
    point = torch.tensor([[0.25, -1.5]], dtype=torch.float64)
    x = run(
        GaussianDiffusion(SCHEDULE), WALKS[walk], eta, data=FiniteData(point), dim=2, n=6, seed=4
    )
    assert torch.allclose(x, point.expand(6, 2), atol=1e-12)


def test_many_small_steps_give_the_data():
    """DDIM's law converges to the data's with order one, on steps that are equal in angle."""
    misses = []
    for count in (100, 200, 400):
        schedule = NoiseSchedule.from_alpha_bar(np.cos(np.linspace(0, 1.56, count + 1)) ** 2)
        x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
        ends = generate(
            DATA.denoiser(schedule),
            GaussianDiffusion(schedule),
            (2, 1),
            steps=count,
            eta=0.0,
            generator=seeded(),
            x_T=x,
        )
        misses.append(abs((ends[1] - ends[0]).item() / 2 - math.sqrt(VARIANCE)))
    assert misses[0] / misses[1] == pytest.approx(2, abs=0.1)
    assert misses[1] / misses[2] == pytest.approx(2, abs=0.1)
    assert abs(2 * misses[2] - misses[1]) < 0.002  # what is left when the first order is removed


def test_ddpm_is_ddim_with_eta_one():
    """The textbook form of Algorithm 2 in ε, with σ² = β̃, against the η = 1 member."""
    x, *noise = draw((7, 3), 5, T)
    data = GaussianData([0.3, 0.0, -1.0], np.diag([0.2, 1.0, 2.0]) + 0.1)
    eps = data.denoiser(SCHEDULE)
    ours = run(GaussianDiffusion(SCHEDULE), T, data=data, dim=3, n=7, seed=5)
    for t in range(T, 0, -1):
        output = eps(x, torch.full((7,), t))
        x = papers.ddpm_eq_11(LISTED, x, output, t)
        if t > 1:
            x = x + math.sqrt(papers.ddpm_eq_6_7(LISTED, 0.0, 0.0, t)[1]) * noise.pop(0)
    np.testing.assert_allclose(ours, x, rtol=1e-10, atol=1e-12)


# ---- states and levels ------------------------------------------------------------------------


def test_states_walk_down_the_levels():
    seen = []

    def denoiser(x, t):
        seen.append(t)
        return torch.zeros_like(x)

    d = GaussianDiffusion(SCHEDULE)
    walk = sample(denoiser, d, (3, 2, 4), steps=[6, 3, 2], eta=0.5, generator=seeded())
    assert walk.levels == (6, 3, 2, 0)
    states = list(walk)
    assert [state.t for state in states] == [3, 2, 0]
    assert [t.tolist() for t in seen] == [[6] * 3, [3] * 3, [2] * 3]
    assert all(t.dtype == torch.int64 for t in seen)
    assert all(state.x.shape == state.x0.shape == (3, 2, 4) for state in states)
    with pytest.raises(AttributeError):
        states[0].t = 5


def test_x0_is_the_prediction_that_made_the_step():
    d = GaussianDiffusion(SCHEDULE)
    x_T = torch.linspace(-3, 3, 8, dtype=torch.float64)[:, None]
    before = x_T
    walk = sample(DATA.denoiser(SCHEDULE), d, (8, 1), steps=T, eta=1.0, generator=seeded(), x_T=x_T)
    for level, state in zip(range(T, 0, -1), walk, strict=True):
        assert torch.allclose(state.x0, guess(before, level), atol=1e-12)
        before = state.x
    assert torch.equal(state.x, state.x0)  # the last step returns the prediction itself


def test_clipping_bounds_x0_and_rederives_eps():
    d = GaussianDiffusion(SCHEDULE)
    clip = (-0.5, 0.5)
    x, *noise = draw((20, 1), 6, T - 1)
    walk = sample(
        DATA.denoiser(SCHEDULE),
        d,
        (20, 1),
        steps=T,
        eta=0.4,
        generator=seeded(6),
        clip=clip,
        dtype=torch.float64,
    )
    for t, state in zip(range(T, 0, -1), walk, strict=True):
        x0 = guess(x, t).clamp(*clip)
        bar_t, bar_s = (papers.ddpm_alpha_bar(LISTED, k) for k in (t, t - 1))
        sigma = papers.ddim_eq_16(bar_s, bar_t, 0.4)
        x, _ = papers.ddim_eq_7(bar_s, bar_t, sigma, x, x0)
        x = x + sigma * noise[T - t] if t > 1 else x
        assert torch.allclose(state.x0, x0, atol=1e-12)
        assert torch.allclose(state.x, x, atol=1e-12)
    assert state.x.abs().max() <= 0.5


@pytest.mark.parametrize("kind", ["posterior", "beta", "learned"])
def test_no_noise_in_the_result(kind):
    """From one state at level 1, every generator gives the same result."""
    denoiser = DATA.denoiser(SCHEDULE)
    denoiser = learned(denoiser, 0.3) if kind == "learned" else denoiser
    d = GaussianDiffusion(SCHEDULE, "eps", kind)
    x = torch.randn(4, 1, generator=seeded(), dtype=torch.float64)
    ends = [
        generate(denoiser, d, (4, 1), steps=[1], eta=1.0, generator=seeded(k), x_T=x)
        for k in (1, 2)
    ]
    assert torch.equal(*ends)
    assert torch.allclose(ends[0], guess(x, 1), atol=1e-12)


def test_a_deterministic_walk_draws_x_T_and_nothing_else():
    g = seeded(9)
    run(GaussianDiffusion(SCHEDULE), T, eta=0.0, n=3, generator=g)
    other = seeded(9)
    torch.randn(3, 1, generator=other, dtype=torch.float64)
    assert torch.equal(g.get_state(), other.get_state())
    run(GaussianDiffusion(SCHEDULE), T, eta=0.0, n=3, generator=g, x_T=torch.zeros(3, 1))
    assert torch.equal(g.get_state(), other.get_state())


def test_same_seed_same_samples():
    d = GaussianDiffusion(SCHEDULE)
    assert torch.equal(run(d, T, seed=1), run(d, T, seed=1))
    assert not torch.equal(run(d, T, seed=1), run(d, T, seed=2))


def test_x_T_given_replaces_the_draw():
    x_T, *_ = draw((40, 1), 0, 0)
    g = seeded(0)
    torch.randn(40, 1, generator=g, dtype=torch.float64)
    d = GaussianDiffusion(SCHEDULE)
    assert torch.equal(run(d, T, seed=0), run(d, T, generator=g, x_T=x_T))


def test_respaced_chain_equals_the_walk_over_the_same_steps():
    """A respaced chain counts its own steps, and calls the denoiser with the original numbers."""
    steps = [2, 3, 6]
    short = GaussianDiffusion(SCHEDULE.respace(steps))
    assert torch.allclose(
        run(short, 3, seed=3), run(GaussianDiffusion(SCHEDULE), steps[::-1], seed=3), atol=1e-12
    )


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace", "quadratic", "log-snr"])
def test_spacings_are_those_of_the_schedule(spacing):
    schedule = NoiseSchedule.linear(100)
    walk = sample(
        DATA.denoiser(schedule),
        GaussianDiffusion(schedule),
        (1, 1),
        steps=7,
        spacing=spacing,
        eta=0.0,
        generator=seeded(),
    )
    assert list(walk.levels) == [*schedule.steps(7, spacing).flip(0).tolist(), 0]


def test_trajectory_holds_the_levels_asked_for():
    d = GaussianDiffusion(SCHEDULE)
    settings = {"steps": [6, 4, 2, 1], "eta": 1.0, "dtype": torch.float64}
    denoiser = DATA.denoiser(SCHEDULE)
    kept = trajectory(denoiser, d, (5, 1), [0, 6, 2], generator=seeded(1), **settings)
    states = {s.t: s.x for s in sample(denoiser, d, (5, 1), generator=seeded(1), **settings)}
    assert list(kept) == [0, 6, 2]
    assert torch.equal(kept[6], draw((5, 1), 1, 0)[0])
    assert torch.equal(kept[2], states[2])
    assert torch.equal(kept[0], states[0])
    with pytest.raises(ValueError, match=r"walk \(6, 4, 2, 1, 0\), but 3 does not"):
        trajectory(denoiser, d, (5, 1), [3], generator=seeded(1), **settings)


# ---- the denoiser's side ----------------------------------------------------------------------


class Dropping(nn.Module):
    """Records its mode and whether gradients were on."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1)
        self.frozen = nn.Dropout(0.5).eval()
        self.calls = []

    def forward(self, x, t, y=None):
        self.calls.append((self.training, torch.is_grad_enabled(), y))
        return self.frozen(self.linear(x))


def test_modules_rest_while_called_and_wake_again():
    network = Dropping()
    d = GaussianDiffusion(SCHEDULE)
    for _ in sample(network, d, (2, 1), steps=T, eta=0.0, generator=seeded()):
        assert network.training and not network.frozen.training
        assert torch.is_grad_enabled()  # the caller may train between two steps
    assert network.calls == [(False, False, None)] * T


def test_a_module_that_fails_gets_its_mode_back():
    network = Dropping()
    d = GaussianDiffusion(SCHEDULE)
    with pytest.raises(RuntimeError):
        generate(network, d, (2, 3), steps=T, eta=0.0, generator=seeded())
    assert network.training


def test_samples_carry_no_graph():
    network = Dropping()
    start = torch.zeros(2, 1, requires_grad=True)
    settings = {"steps": T, "eta": 1.0, "generator": seeded(), "x_T": start}
    walk = sample(network, GaussianDiffusion(SCHEDULE), (2, 1), **settings)
    assert not walk.start.requires_grad
    for state in walk:
        assert not state.x.requires_grad and not state.x0.requires_grad


def test_labels_are_passed_on():
    network = Dropping()
    y = torch.tensor([3, 1])
    generate(network, GaussianDiffusion(SCHEDULE), (2, 1), steps=2, spacing="trailing", eta=0.0,
             generator=seeded(), y=y)  # fmt: skip
    assert all(torch.equal(got, y) for _, _, got in network.calls)


def test_labels_condition_an_exact_mixture():
    data = FiniteData([[-1.0], [2.0]])
    y = torch.tensor([1, 0, 1])
    x = run(GaussianDiffusion(SCHEDULE), T, data=data, n=3, y=y)
    assert torch.allclose(x, torch.tensor([[2.0], [-1.0], [2.0]], dtype=torch.float64))


def test_results_keep_dtype_and_start_from_a_half_precision_state():
    d = GaussianDiffusion(SCHEDULE)
    zeros = {"steps": T, "eta": 1.0, "generator": seeded()}
    assert generate(lambda x, t: x, d, (2, 1), **zeros).dtype == torch.float32
    for given, wanted in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
    ):
        start = torch.zeros(2, 1, dtype=given)
        assert generate(lambda x, t: x, d, (2, 1), x_T=start, **zeros).dtype == wanted


def test_the_start_is_left_alone():
    start = torch.ones(3, 1, dtype=torch.float64)
    run(GaussianDiffusion(SCHEDULE), T, n=3, x_T=start)
    assert torch.equal(start, torch.ones(3, 1, dtype=torch.float64))


def test_progress_bar_only_when_asked_for(capsys):
    d = GaussianDiffusion(SCHEDULE)
    run(d, T)
    assert capsys.readouterr().err == ""
    run(d, T, progress=True)
    assert f"{T}/{T}" in capsys.readouterr().err


def test_a_walk_may_be_left_early():
    calls = []

    def denoiser(x, t):
        calls.append(int(t[0]))
        return x

    settings = {"steps": T, "eta": 1.0, "generator": seeded()}
    for state in sample(denoiser, GaussianDiffusion(SCHEDULE), (2, 1), **settings):
        if state.t == 4:
            break
    assert calls == [6, 5]


# ---- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 3}, "3 steps of T = 6 need a spacing, one of trailing"),
        ({"steps": 0, "spacing": "trailing"}, "number of steps must lie in 1..T = 6, got 0"),
        ({"steps": 3, "spacing": "even"}, "spacing must be one of"),
        ({"steps": [6, 1], "spacing": "trailing"}, "taken as it is; drop spacing='trailing'"),
        ({"steps": []}, "at least one step number"),
        ({"steps": [1, 2, 3]}, "must decrease strictly.* but 2 follows 1"),
        ({"steps": [6, 3, 3]}, "3 follows 3"),
        ({"steps": [7, 1]}, "1..T = 6, got 7"),
        ({"steps": [6, 0]}, "1..T = 6, got 0"),
        ({"steps": [5.0, 1.0]}, "list of at least one step number"),
        ({"eta": 1.5}, r"eta must lie in \[0, 1\], got 1.5"),
        ({"clip": (1, -1)}, "clip must be an interval"),
        ({"y": torch.zeros(2)}, r"int64 of shape \(4,\), one label for each sample"),
        ({"x_T": torch.zeros(3, 1)}, r"shape \(4, 1\) of the result, got \(3, 1\)"),
        ({"dtype": torch.float16}, "float32 or float64, got torch.float16"),
        ({"dtype": torch.int64}, "float32 or float64, got torch.int64"),
        ({"shape": ()}, "whole numbers of at least 1"),
        ({"shape": (0, 1)}, "whole numbers of at least 1"),
        ({"shape": (4, -1)}, "whole numbers of at least 1"),
        ({"variance": "beta", "eta": 0.0}, "'beta' is defined for eta = 1 only, got 0.0"),
        ({"variance": "learned", "eta": 0.0}, "'learned' is defined for eta = 1 only"),
    ],
)
def test_bad_arguments_are_refused_before_the_denoiser_runs(settings, message):
    def denoiser(x, t, y=None):
        raise AssertionError("called")

    settings = {"steps": T, "eta": 1.0, "generator": seeded(), "shape": (4, 1), **settings}
    d = GaussianDiffusion(SCHEDULE, "eps", settings.pop("variance", "posterior"))
    shape = settings.pop("shape")
    with pytest.raises(ValueError, match=message):
        sample(denoiser, d, shape, **settings)  # not even asked for a state


def test_a_bool_is_no_number_of_steps():
    d = GaussianDiffusion(NoiseSchedule.from_betas([0.5]))
    with pytest.raises(TypeError, match="must be an int, got True"):
        sample(lambda x, t: x, d, (1, 1), steps=True, eta=1.0, generator=seeded())


def test_eps_without_signal_is_refused_at_once():
    schedule = NoiseSchedule.from_alpha_bar([1.0, 0.5, 0.0])
    settings = {"steps": 2, "eta": 1.0, "generator": seeded()}
    with pytest.raises(ValueError, match="holds no signal"):
        sample(lambda x, t: x, GaussianDiffusion(schedule), (1, 1), **settings)
    state = next(sample(lambda x, t: x, GaussianDiffusion(schedule, "x0"), (1, 1), **settings))
    assert isinstance(state, State) and state.t == 1


# ---- another implementation -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"), [("posterior", "fixed_small"), ("beta", "fixed_large")]
)
def test_a_whole_ddpm_walk_equals_another_implementation(ours, theirs):
    diffusers = pytest.importorskip("diffusers", reason="parity needs the extra 'oracle'")
    count = 40
    scheduler = diffusers.DDPMScheduler(
        count, beta_start=0.01, beta_end=0.3, variance_type=theirs, clip_sample=True
    )
    schedule = NoiseSchedule.linear(count, 0.01, 0.3)
    data = GaussianData([0.2, -0.3], [[0.3, 0.1], [0.1, 0.2]])
    eps = data.denoiser(schedule)
    ours = generate(
        eps,
        GaussianDiffusion(schedule, "eps", ours),
        (16, 2),
        steps=count,
        eta=1.0,
        clip=(-1, 1),
        generator=seeded(8),
    )
    g = seeded(8)
    x = torch.randn(16, 2, generator=g)
    for t in range(count - 1, -1, -1):  # they count from 0
        x = scheduler.step(eps(x, torch.full((16,), t + 1)), t, x, generator=g).prev_sample
    np.testing.assert_allclose(ours, x, rtol=1e-4, atol=1e-4)

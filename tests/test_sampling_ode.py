"""The deterministic half of sampling.py: solvers of the ODE, inversion, spherical interpolation.

The ODE carries p_t into p_s without crossing of paths, so on a line its map is the one that keeps
quantiles: known exactly for a mixture, and affine for a Gaussian. Orders of convergence are
measured against that map.
"""

import math
from itertools import pairwise

import numpy as np
import papers
import pytest
import torch

from ddpm_lite import GaussianDiffusion, NoiseSchedule, generate, shipped
from ddpm_lite.oracle import FiniteData, GaussianData, GaussianMixture
from ddpm_lite.sampling import SOLVERS, State, ddim_invert, half_log_snr, slerp, solve

BETAS = [0.05, 0.12, 0.3, 0.45, 0.6, 0.5]
SCHEDULE = NoiseSchedule.from_betas(BETAS)
T = SCHEDULE.T
DIFFUSION = GaussianDiffusion(SCHEDULE)
MIXTURE = GaussianMixture([0.3, 0.7], [[-1.0], [1.0]], [[[0.1]], [[0.05]]])
GAUSSIAN = GaussianData([0.7], [[0.4]])
SECOND_ORDER = ("heun", "dpmpp-2m")

# For the orders: DDPM's chain at 65 times as many steps, so that T = 2^16.
FINE_T = 2**16
FINE = NoiseSchedule.linear(FINE_T, 0.1 / FINE_T, 20 / FINE_T)
HIGH, LOW = 58982, 6554  # 0.9 T and 0.1 T
COUNTS = (64, 128, 256, 512, 1024)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def seven_points():
    return torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None]


def exact(data, schedule):
    """ε*(x, t) for data on a line, from the mixture's formula: quick on a long schedule."""
    signal, noise = schedule.alpha_bar.tolist(), schedule.one_minus_alpha_bar.tolist()
    weights, means, variances = data.weights, data.means[:, 0], data.covariances[:, 0, 0]

    def eps(x, t):
        a, b = signal[int(t[0])], noise[int(t[0])]
        spread = a * variances + b
        away = x - math.sqrt(a) * means
        share = (weights.log() - 0.5 * away**2 / spread - 0.5 * spread.log()).softmax(1)
        return math.sqrt(b) * (share * away / spread).sum(1, keepdim=True)

    return eps


def quantile_map(data, x, t, s, schedule=FINE):
    """Where the ODE carries x from level t to level s."""
    return data.marginal(schedule, s).quantile(data.marginal(schedule, t).cdf(x))


def slope(counts, errors):
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


# ---- single steps, by hand ----------------------------------------------------------------------


def pair(t):
    """(√ᾱ, √(1−ᾱ)) from the list of betas."""
    bar = papers.ddpm_alpha_bar([0.0, *BETAS], t)
    return math.sqrt(bar), math.sqrt(1 - bar)


def euler(x, t, s, eps):
    """In u = x/√ᾱ, with r = √(1−ᾱ)/√ᾱ as the time: u_s = u_t + (r_s − r_t)·ε."""
    (a, b), (c, d) = pair(t), pair(s)
    return c * (x / a + (d / c - b / a) * eps)


def heun_by_hand(eps, x, grid):
    for t, s in zip(grid, [*grid[1:], 0], strict=True):
        first = eps(x, t)
        end = euler(x, t, s, first)
        x = end if s == 0 else euler(x, t, s, (first + eps(end, s)) / 2)
    return x


def two_m_by_hand(eps, x, grid):
    """DPM-Solver++(2M) as Lu et al. print it: D = (1 + 1/2r)·x̂_0 − 1/2r·x̂_0 before, r = h'/h."""

    def level(t):
        return math.inf if t == 0 else math.log(pair(t)[0] / pair(t)[1])

    before = None
    for t, s in zip(grid, [*grid[1:], 0], strict=True):
        (a, b), (c, d) = pair(t), pair(s)
        x0 = (x - b * eps(x, t)) / a
        h = level(s) - level(t)
        mixed = x0
        if before is not None and s > 0:
            r = (level(t) - level(before[0])) / h
            mixed = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before[1]
        x = d / b * x - c * (math.exp(-h) - 1) * mixed
        before = t, x0
    return x


def ddim_by_hand(eps, x, grid):
    for t, s in zip(grid, [*grid[1:], 0], strict=True):
        x = euler(x, t, s, eps(x, t))
    return x


BY_HAND = {"ddim": ddim_by_hand, "heun": heun_by_hand, "dpmpp-2m": two_m_by_hand}


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("grid", [[6, 5, 4, 3, 2, 1], [6, 4, 1], [5, 2], [3]])
@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_are_their_formulas(solver, grid, prediction):
    diffusion = GaussianDiffusion(SCHEDULE, prediction)
    denoiser = MIXTURE.denoiser(SCHEDULE, prediction)
    x = seven_points()
    walk = solve(denoiser, diffusion, (7, 1), solver=solver, steps=grid, x_T=x)
    eps = MIXTURE.denoiser(SCHEDULE)
    wanted = BY_HAND[solver](eps, x, grid)
    np.testing.assert_allclose(walk.result(), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("clip", [None, (-0.4, 0.4)])
def test_ddim_is_the_sampler_without_noise(clip):
    x = seven_points()
    settings = {"steps": [6, 4, 3, 1], "clip": clip, "x_T": x}
    denoiser = MIXTURE.denoiser(SCHEDULE)
    walk = solve(denoiser, DIFFUSION, (7, 1), solver="ddim", **settings)
    other = generate(denoiser, DIFFUSION, (7, 1), eta=0.0, generator=seeded(), **settings)
    assert torch.allclose(walk.result(), other, atol=1e-14)


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_point_is_hit_exactly(solver):
    """All solvers are exact where ε̂ along a path stays what it is."""
    point = torch.tensor([[0.25, -1.5]], dtype=torch.float64)
    walk = solve(
        FiniteData(point).denoiser(SCHEDULE),
        DIFFUSION,
        (6, 2),
        solver=solver,
        steps=[6, 4, 3, 1],
        generator=seeded(),
        dtype=torch.float64,
    )
    assert torch.allclose(walk.result(), point.expand(6, 2), atol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_respaced_chain_is_the_walk_over_the_same_steps(solver):
    x, denoiser = seven_points(), MIXTURE.denoiser(SCHEDULE)
    short = GaussianDiffusion(SCHEDULE.respace([2, 3, 6]))
    ours = solve(denoiser, short, (7, 1), solver=solver, steps=3, x_T=x).result()
    other = solve(denoiser, DIFFUSION, (7, 1), solver=solver, steps=[6, 3, 2], x_T=x).result()
    assert torch.allclose(ours, other, atol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_clipping_bounds_every_prediction(solver):
    """The solver of the clipped denoiser: x̂_0 clamped, ε re-derived."""

    def clamped(x, t):
        a, b = pair(int(t) if not isinstance(t, torch.Tensor) else int(t[0]))
        return (x - a * MIXTURE.denoiser(SCHEDULE, "x0")(x, t).clamp(-0.5, 0.5)) / b

    x, grid = seven_points(), [6, 5, 3, 1]
    walk = solve(
        MIXTURE.denoiser(SCHEDULE),
        DIFFUSION,
        (7, 1),
        solver=solver,
        steps=grid,
        x_T=x,
        clip=(-0.5, 0.5),
    )
    states = list(walk)
    assert all(state.x0.abs().max() <= 0.5 for state in states)
    np.testing.assert_allclose(states[-1].x, BY_HAND[solver](clamped, x, grid), atol=1e-12)


def test_half_log_snr():
    assert half_log_snr(SCHEDULE)[0] == math.inf
    for t in range(1, T + 1):
        assert half_log_snr(SCHEDULE)[t].item() == pytest.approx(math.log(pair(t)[0] / pair(t)[1]))
    assert half_log_snr(NoiseSchedule.from_alpha_bar([1.0, 0.5, 0.0]))[2] == -math.inf


# ---- the order of convergence -------------------------------------------------------------------


def grids(count, spacing):
    """`count` steps from HIGH to LOW, even in t or in λ, as the levels' numbers."""
    if spacing == "t":
        return torch.linspace(HIGH, LOW, count + 1).round().long().tolist()
    level = half_log_snr(FINE)[1:].numpy()[::-1]  # rising, as searchsorted wants it
    wanted = np.linspace(level[FINE_T - HIGH], level[FINE_T - LOW], count + 1)
    return (FINE_T - np.searchsorted(level, wanted - 1e-12)).tolist()


def errors_between(data, solver, spacing):
    """The largest error at LOW of walks from HIGH, for each count of steps."""
    denoiser, diffusion = exact(data, FINE), GaussianDiffusion(FINE)
    x = data.marginal(FINE, HIGH).quantile(torch.linspace(0.05, 0.95, 7, dtype=torch.float64))
    truth = quantile_map(data, x, HIGH, LOW)
    errors = []
    for count in COUNTS:
        grid = grids(count, spacing)
        assert (len(grid), grid[0], grid[-1]) == (count + 1, HIGH, LOW)
        walk = solve(denoiser, diffusion, (7, 1), solver=solver, steps=grid, x_T=x[:, None])
        end = next(state for state in walk if state.t == LOW)
        errors.append((end.x[:, 0] - truth).abs().max().item())
    return errors


@pytest.mark.parametrize(
    ("data", "spacing"), [(GAUSSIAN, "t"), (MIXTURE, "λ")], ids=["Gaussian", "mixture"]
)
@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("heun", 2), ("dpmpp-2m", 2)])
def test_order_between_two_levels(solver, order, data, spacing):
    errors = errors_between(data, solver, spacing)
    assert slope(COUNTS, errors) == pytest.approx(order, abs=0.1)
    assert errors[-1] < (3e-3 if order == 1 else 1e-5)  # and it is the truth that they tend to


def test_the_gaussian_truth_is_the_affine_map():
    """(x − √ᾱ_t m)/σ_t is kept, σ_t² = ᾱ_t σ² + 1 − ᾱ_t: the quantile map, in closed form."""
    x = seven_points()[:, 0]
    signal, noise = FINE.alpha_bar, FINE.one_minus_alpha_bar
    spread = (0.4 * signal + noise).sqrt()
    kept = (x - signal[HIGH].sqrt() * 0.7) / spread[HIGH]
    wanted = signal[LOW].sqrt() * 0.7 + spread[LOW] * kept
    assert torch.allclose(quantile_map(GAUSSIAN, x, HIGH, LOW), wanted, atol=1e-12)


def errors_to_the_data(solver, spacing, counts):
    denoiser, diffusion = exact(GAUSSIAN, FINE), GaussianDiffusion(FINE)
    x = seven_points()
    truth = quantile_map(GAUSSIAN, x[:, 0], FINE_T, 0)[:, None]
    settings = {"solver": solver, "spacing": spacing, "x_T": x}
    return [
        (solve(denoiser, diffusion, (7, 1), steps=n, **settings).result() - truth).abs().max()
        for n in counts
    ]


def test_down_to_the_data_the_second_order_is_lost_where_the_last_step_is_long():
    """The last step, to 0, is of first order. Even in t, on the linear schedule, its length in r is
    √(1−ᾱ) ~ 1/√S, and its error 1/S: Heun falls to order one. Where the grid is dense near the
    data, the last step is short, and the order stays."""
    uniform = errors_to_the_data("heun", "trailing", (256, 512, 1024))
    assert slope((256, 512, 1024), uniform) == pytest.approx(1.1, abs=0.1)
    dense = errors_to_the_data("heun", "quadratic", (64, 128, 256))
    assert slope((64, 128, 256), dense) > 1.8


def test_second_order_needs_fewer_calls():
    """Against the exact map, on the quadratic grid: half the calls of either beat 96 of DDIM."""
    denoiser, diffusion = exact(MIXTURE, FINE), GaussianDiffusion(FINE)
    x = seven_points()
    truth = quantile_map(MIXTURE, x[:, 0], FINE_T, 0)[:, None]
    misses = {}
    for solver, steps in (("ddim", 96), ("heun", 24), ("dpmpp-2m", 32)):
        settings = {"steps": steps, "spacing": "quadratic", "x_T": x}
        walk = solve(denoiser, diffusion, (7, 1), solver=solver, **settings)
        assert walk.calls <= (96 if solver == "ddim" else 48)
        misses[solver] = (walk.result() - truth).abs().mean().item()
    assert misses["heun"] < misses["ddim"] and misses["dpmpp-2m"] < misses["ddim"]


# ---- walks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "asked"),
    [
        ("ddim", [6, 4, 3, 1]),
        ("heun", [6, 4, 4, 3, 3, 1, 1]),
        ("dpmpp-2m", [6, 4, 3, 1]),
    ],
)
def test_calls_are_counted_and_in_order(solver, asked):
    seen = []

    def denoiser(x, t, y):
        seen.append(t.tolist())
        assert t.dtype == torch.int64 and y.tolist() == [3, 1]
        return torch.zeros_like(x)

    y = torch.tensor([3, 1])
    settings = {"steps": [6, 4, 3, 1], "generator": seeded(), "y": y}
    walk = solve(denoiser, DIFFUSION, (2, 3), solver=solver, **settings)
    assert walk.levels == (6, 4, 3, 1, 0)
    states = list(walk)
    assert seen == [[t, t] for t in asked]
    assert walk.calls == len(asked)
    assert [state.t for state in states] == [4, 3, 1, 0]
    assert all(state.x.shape == state.x0.shape == (2, 3) for state in states)
    assert torch.equal(walk.result(), states[-1].x)


def test_x0_is_the_prediction_at_the_level_above():
    x, x0 = seven_points(), MIXTURE.denoiser(SCHEDULE, "x0")
    for solver in SOLVERS:
        before, level = x, 6
        for state in solve(
            MIXTURE.denoiser(SCHEDULE), DIFFUSION, (7, 1), solver=solver, steps=T, x_T=x
        ):
            assert torch.allclose(state.x0, x0(before, level), atol=1e-12)
            before, level = state.x, state.t


def test_only_the_start_is_drawn():
    g, other = seeded(4), seeded(4)
    settings = {"solver": "heun", "steps": T, "dtype": torch.float64}
    denoiser = MIXTURE.denoiser(SCHEDULE)
    walk = solve(denoiser, DIFFUSION, (7, 1), generator=g, **settings)
    walk.result()
    x = torch.randn(7, 1, generator=other, dtype=torch.float64)
    assert torch.equal(walk.start, x)
    assert torch.equal(g.get_state(), other.get_state())
    again = solve(denoiser, DIFFUSION, (7, 1), x_T=x, **settings)
    assert torch.equal(again.result(), walk.result())


def test_keep_and_result():
    x, denoiser = seven_points(), MIXTURE.denoiser(SCHEDULE)
    settings = {"solver": "dpmpp-2m", "steps": [6, 3, 1], "x_T": x}
    states = {s.t: s.x for s in solve(denoiser, DIFFUSION, (7, 1), **settings)}
    kept = solve(denoiser, DIFFUSION, (7, 1), **settings).keep([0, 6, 3])
    assert list(kept) == [0, 6, 3]
    assert torch.equal(kept[6], x)
    assert torch.equal(kept[3], states[3]) and torch.equal(kept[0], states[0])
    walk = solve(denoiser, DIFFUSION, (7, 1), **settings)
    with pytest.raises(ValueError, match=r"walk \(6, 3, 1, 0\), but 2 does not"):
        walk.keep([2])
    next(walk)
    assert torch.equal(walk.result(), states[0])
    assert torch.equal(walk.result(), states[0])  # at its end it stays there


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_learned_variance_plays_no_part(solver):
    def both(x, t):
        return torch.cat([MIXTURE.denoiser(SCHEDULE)(x, t), torch.full_like(x, 7.0)], dim=1)

    settings = {"solver": solver, "steps": T, "x_T": seven_points()}
    learned = GaussianDiffusion(SCHEDULE, "eps", "learned")
    ours = solve(both, learned, (7, 1), **settings).result()
    plain = solve(MIXTURE.denoiser(SCHEDULE), DIFFUSION, (7, 1), **settings).result()
    assert torch.equal(ours, plain)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_a_schedule_without_signal_at_the_end(solver, prediction):
    """ᾱ_T = 0: r_T is infinite and λ_T is −∞, and the first step is DDIM's: it goes to x̂_0(T)."""
    schedule = NoiseSchedule.from_alpha_bar([1.0, 0.8, 0.5, 0.2, 0.0])
    diffusion = GaussianDiffusion(schedule, prediction)
    denoiser = MIXTURE.denoiser(schedule, prediction)
    x = seven_points()
    walk = solve(denoiser, diffusion, (7, 1), solver=solver, steps=4, x_T=x)
    assert walk.calls == (6 if solver == "heun" else 4)
    first = next(walk)
    mean = MIXTURE.mean
    assert torch.allclose(first.x, math.sqrt(0.2) * mean + math.sqrt(0.8) * x, atol=1e-12)
    # and from there on it is the walk from that state
    rest = solve(denoiser, diffusion, (7, 1), solver=solver, steps=[3, 2, 1], x_T=first.x)
    assert torch.allclose(walk.result(), rest.result(), atol=1e-12)
    with pytest.raises(ValueError, match="holds no signal"):
        solve(denoiser, GaussianDiffusion(schedule), (7, 1), solver=solver, steps=4, x_T=x)


def test_float32_keeps_its_dtype_and_its_digits():
    x = seven_points()
    for solver in SOLVERS:
        settings = {"solver": solver, "steps": T}
        single, double = (
            solve(MIXTURE.denoiser(SCHEDULE), DIFFUSION, (7, 1), x_T=x.to(dtype), **settings)
            for dtype in (torch.float32, torch.float64)
        )
        assert single.result().dtype == torch.float32
        assert torch.allclose(single.result().double(), double.result(), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": "euler"}, "solver must be one of ddim, heun, dpmpp-2m, got 'euler'"),
        ({"steps": 3}, "3 steps of T = 6 need a spacing"),
        ({"steps": [1, 2]}, "must decrease strictly"),
        ({"steps": [7, 1]}, "1..T = 6, got 7"),
        ({"clip": (1, -1)}, "clip must be an interval"),
        ({"x_T": torch.zeros(3, 1)}, r"shape \(4, 1\) of the result, got \(3, 1\)"),
        ({"generator": None}, "begins with x_T, or with a generator to draw it"),
        ({"y": torch.zeros(4)}, "one label for each sample"),
        ({"dtype": torch.float16}, "float32 or float64"),
    ],
)
def test_bad_arguments_are_refused_before_the_denoiser_runs(settings, message):
    def denoiser(x, t, y=None):
        raise AssertionError("called")

    settings = {"solver": "heun", "steps": T, "generator": seeded(), **settings}
    with pytest.raises(ValueError, match=message):
        solve(denoiser, DIFFUSION, (4, 1), **settings)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs
@pytest.mark.parametrize("count", [8, 20])
def test_two_m_equals_another_implementation(count):
    diffusers = pytest.importorskip("diffusers", reason="parity needs the extra 'oracle'")
    schedule = NoiseSchedule.linear(1000)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        1000, beta_start=1e-4, beta_end=2e-2, final_sigmas_type="zero"
    )
    data = GaussianData([0.2, -0.3], [[0.3, 0.1], [0.1, 0.2]])
    eps = data.denoiser(schedule)
    x_T = torch.randn(16, 2, generator=seeded(8))
    grid = schedule.steps(count, "trailing").flip(0).tolist()
    settings = {"solver": "dpmpp-2m", "steps": grid, "x_T": x_T}
    ours = solve(eps, GaussianDiffusion(schedule), (16, 2), **settings).result()
    scheduler.set_timesteps(timesteps=[t - 1 for t in grid])  # they count from 0
    x = x_T
    for t in scheduler.timesteps.tolist():
        x = scheduler.step(eps(x, torch.full((16,), t + 1)), t, x).prev_sample
    np.testing.assert_allclose(ours, x, rtol=1e-3, atol=1e-3)


# ---- η = 1 is DDPM, respaced and clipped ---------------------------------------------------------


@pytest.mark.parametrize("grid", [[6, 5, 4, 3, 2, 1], [6, 4, 1], [5, 3, 2]])
@pytest.mark.parametrize("clip", [None, (-0.5, 0.5)])
def test_eta_one_is_ddpm_respaced_and_clipped(grid, clip):
    """Algorithm 2 on the chain of the kept steps, its β re-derived from ᾱ, with σ² = β̃."""
    bars = [1.0] + [papers.ddpm_alpha_bar([0.0, *BETAS], t) for t in reversed(grid)]
    betas = [0.0] + [1 - later / earlier for earlier, later in pairwise(bars)]
    g = seeded(5)
    x, *noise = (torch.randn(9, 1, generator=g, dtype=torch.float64) for _ in range(len(grid)))
    ours = generate(
        MIXTURE.denoiser(SCHEDULE),
        DIFFUSION,
        (9, 1),
        steps=grid,
        eta=1.0,
        clip=clip,
        generator=seeded(5),
        dtype=torch.float64,
    )
    for i, t in zip(range(len(grid), 0, -1), grid, strict=True):
        x0 = MIXTURE.denoiser(SCHEDULE, "x0")(x, t)
        x0 = x0 if clip is None else x0.clamp(*clip)
        mean, variance = papers.ddpm_eq_6_7(betas, x, x0, i)
        x = mean if i == 1 else mean + math.sqrt(variance) * noise.pop(0)
    np.testing.assert_allclose(ours, x, rtol=0, atol=1e-12)


# ---- inversion ----------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_inversion_is_ddims_step_upwards(prediction):
    """u_t = u_s + (r_t − r_s)·ε̂(x_s, s); from x_0, where r = 0, with ε̂(x_0, 1)."""
    x0, eps = seven_points(), MIXTURE.denoiser(SCHEDULE)
    diffusion = GaussianDiffusion(SCHEDULE, prediction)
    denoiser = MIXTURE.denoiser(SCHEDULE, prediction)
    walk = ddim_invert(denoiser, diffusion, x0, steps=[6, 3, 2])
    assert walk.levels == (0, 2, 3, 6) and walk.calls == 3
    states = list(walk)
    x = euler(x0, 0, 2, eps(x0, 1))
    assert torch.allclose(states[0].x, x, atol=1e-12)
    assert torch.equal(states[0].x0, x0)
    for state, s, t in zip(states[1:], (2, 3), (3, 6), strict=True):
        assert torch.allclose(state.x0, MIXTURE.denoiser(SCHEDULE, "x0")(x, s), atol=1e-12)
        x = euler(x, s, t, eps(x, s))
        assert torch.allclose(state.x, x, atol=1e-12)
    assert [state.t for state in states] == [2, 3, 6]


def test_inversion_asks_for_original_steps_without_gradients():
    seen = []

    def denoiser(x, t, y):
        seen.append((t.tolist(), y.tolist(), torch.is_grad_enabled()))
        return torch.zeros_like(x)

    x0 = torch.ones(2, 3, requires_grad=True)
    short = GaussianDiffusion(SCHEDULE.respace([2, 3, 6]))
    walk = ddim_invert(denoiser, short, x0, steps=3, y=torch.tensor([0, 1]))
    states = list(walk)
    assert seen == [([t, t], [0, 1], False) for t in (2, 2, 3)]  # the first: step 1 of this chain
    assert all(isinstance(s, State) and not s.x.requires_grad for s in states)
    assert walk.result().dtype == torch.float32


def test_inversion_clips():
    x0 = seven_points()
    walk = ddim_invert(MIXTURE.denoiser(SCHEDULE), DIFFUSION, x0, steps=T, clip=(-0.3, 0.3))
    states = list(walk)[1:]
    assert all(state.x0.abs().max() <= 0.3 for state in states)
    x = states[0].x
    for before, state in pairwise(states):
        (a, b), (c, d) = pair(before.t), pair(state.t)
        assert torch.allclose(state.x, c * state.x0 + d * (x - a * state.x0) / b, atol=1e-12)
        x = state.x


def test_round_trips_improve_with_steps_at_first_order():
    denoiser, diffusion = exact(MIXTURE, FINE), GaussianDiffusion(FINE)
    x0 = MIXTURE.quantile(torch.linspace(0.05, 0.95, 7, dtype=torch.float64))[:, None]
    truth = quantile_map(MIXTURE, x0[:, 0], 0, FINE_T)[:, None]
    counts, up, round_trip = (64, 128, 256, 512), [], []
    for count in counts:
        settings = {"steps": count, "spacing": "quadratic"}
        x_T = ddim_invert(denoiser, diffusion, x0, **settings).result()
        back = solve(denoiser, diffusion, (7, 1), solver="ddim", x_T=x_T, **settings).result()
        up.append((x_T - truth).abs().max().item())
        round_trip.append((back - x0).abs().max().item())
    assert slope(counts, up) == pytest.approx(1, abs=0.2)
    assert slope(counts, round_trip) == pytest.approx(1, abs=0.2)
    assert round_trip[-1] < 0.02


def test_the_shipped_network_finds_its_digits_again():
    model = shipped("digits")
    settings = {"steps": 12, "spacing": "quadratic"}
    x_T = torch.randn(3, 1, 8, 8, generator=seeded(2))
    digits = solve(
        model.network, model.diffusion, (3, 1, 8, 8), solver="dpmpp-2m", x_T=x_T, **settings
    ).result()
    misses = []
    for steps in (10, 40):
        settings = {"steps": steps, "spacing": "quadratic"}
        up = ddim_invert(model.network, model.diffusion, digits, **settings).result()
        back = solve(
            model.network, model.diffusion, (3, 1, 8, 8), solver="ddim", x_T=up, **settings
        ).result()
        misses.append((back - digits).square().mean().sqrt().item())
    assert misses[1] < 0.5 * misses[0]
    assert misses[1] < 0.2  # of a range of 2


@pytest.mark.parametrize(
    ("x0", "settings", "message"),
    [
        (torch.zeros(2, 1, dtype=torch.int64), {}, "x0 must be a batch of numbers"),
        (torch.zeros(0, 1), {}, "x0 must be a batch of numbers"),
        (torch.tensor(0.5), {}, "x0 must be a batch of numbers"),
        (torch.zeros(2, 1), {"steps": 2}, "2 steps of T = 6 need a spacing"),
        (torch.zeros(2, 1), {"steps": [1, 6]}, "must decrease strictly"),
        (torch.zeros(2, 1), {"clip": (1, 1)}, "clip must be an interval"),
        (torch.zeros(2, 1), {"y": torch.zeros(1, dtype=torch.int64)}, "one label for each sample"),
    ],
)
def test_bad_inversions_are_refused(x0, settings, message):
    def denoiser(x, t, y=None):
        raise AssertionError("called")

    with pytest.raises(ValueError, match=message):
        ddim_invert(denoiser, DIFFUSION, x0, **{"steps": T, **settings})


# ---- spherical interpolation --------------------------------------------------------------------


def two_batches(n=5, dim=40, dtype=torch.float64):
    g = seeded(7)
    return (torch.randn(n, 2, dim // 2, generator=g, dtype=dtype) for _ in range(2))


def test_slerp_has_its_ends_and_divides_the_angle():
    a, b = two_batches()

    def angle(u, v):
        u, v = u.flatten(1), v.flatten(1)
        return torch.acos((u * v).sum(1) / u.norm(dim=1) / v.norm(dim=1))

    assert torch.allclose(slerp(a, b, 0.0), a, atol=1e-14)
    assert torch.allclose(slerp(a, b, 1.0), b, atol=1e-14)
    b = b * (a.flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1))[:, None, None]
    for share in (0.2, 0.5, 0.9, 1.3):
        c = slerp(a, b, share)
        assert c.shape == a.shape
        assert torch.allclose(c.flatten(1).norm(dim=1), a.flatten(1).norm(dim=1), rtol=1e-12)
        assert torch.allclose(angle(a, c), share * angle(a, b), atol=1e-10)
        assert torch.allclose(angle(b, c), abs(1 - share) * angle(a, b), atol=1e-10)


def test_slerp_takes_a_share_for_each_sample():
    a, b = two_batches()
    shares = torch.tensor([0.0, 0.3, 0.5, 0.8, 1.0])
    together = slerp(a, b, shares)
    for i, share in enumerate(shares):
        one = slerp(a[i : i + 1], b[i : i + 1], share.item())
        assert torch.allclose(together[i], one[0], atol=1e-7)


def test_slerp_keeps_the_length_of_noise_and_the_straight_line_does_not():
    """E‖x‖² = D for N(0, I). Half way it is D on the arc, and D/2 on the line."""
    n, dim = 4000, 64
    g = seeded(1)
    a, b = (torch.randn(n, dim, generator=g, dtype=torch.float64) for _ in range(2))
    error = math.sqrt(2 / (n * dim))  # of the mean of n squared lengths, over D
    for share in (0.25, 0.5):
        arc = slerp(a, b, share).square().sum(1).mean().item() / dim
        line = ((1 - share) * a + share * b).square().sum(1).mean().item() / dim
        assert arc == pytest.approx(1, abs=5 * error)
        assert line == pytest.approx(share**2 + (1 - share) ** 2, abs=5 * error)


def test_slerp_between_neighbours_is_the_straight_line():
    a, b = two_batches()
    near = a + 1e-7 * b
    for other in (a, near):
        line = 0.7 * a + 0.3 * other
        assert torch.allclose(slerp(a, other, 0.3), line, rtol=1e-13, atol=1e-14)


def test_slerp_keeps_dtype():
    a, b = two_batches(dtype=torch.float32)
    assert slerp(a, b, 0.3).dtype == torch.float32
    assert torch.equal(slerp(a, b, 0.3), slerp(a.double(), b.double(), 0.3).float())


@pytest.mark.parametrize(
    ("a", "b", "share", "message"),
    [
        ([[1.0, 2.0]], [[-1.0, -2.0]], 0.5, "not defined where one of them is 0"),
        ([[1.0, 2.0]], [[0.0, 0.0]], 0.5, "not defined where one of them is 0"),
        ([[1.0, 2.0]], [[1.0]], 0.5, r"one shape \(B, …\), got \(1, 2\) and \(1, 1\)"),
        ([1.0, 2.0], [2.0, 1.0], 0.5, r"one shape \(B, …\), got \(2,\) and \(2,\)"),
        ([[1.0, 2.0]], [[2.0, 1.0]], [0.1, 0.2], r"have shape \(1,\), got \(2,\)"),
    ],
)
def test_bad_arcs_are_refused(a, b, share, message):
    with pytest.raises(ValueError, match=message):
        slerp(torch.tensor(a), torch.tensor(b), torch.tensor(share))

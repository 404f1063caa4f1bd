"""NoiseSchedule: identities in float64, against products written out here."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from papers import ddpm_alpha_bar

from ddpm_lite import NoiseSchedule
from ddpm_lite.schedule import SPACINGS

betas_lists = st.lists(st.floats(1e-5, 0.9), min_size=1, max_size=12)


def schedules():
    return [
        NoiseSchedule.linear(1000),
        NoiseSchedule.linear(1),
        NoiseSchedule.cosine(1000),
        NoiseSchedule.cosine(4),
        NoiseSchedule.from_betas([0.1, 0.25, 0.4, 0.55]),
        NoiseSchedule.from_alpha_bar([1.0, 0.5, 0.25, 0.0]),
    ]


@pytest.mark.parametrize("a", schedules(), ids=repr)
def test_index_zero_is_clean_data(a):
    assert a.alpha_bar[0] == 1
    assert a.alpha[0] == 1
    assert a.beta[0] == 0
    assert a.snr[0] == math.inf
    assert a.posterior_variance[0] == 0
    assert a.posterior_variance[1] == 0
    assert a.timesteps.tolist() == list(range(a.T + 1))
    for table in (a.alpha_bar, a.alpha, a.beta, a.snr, a.posterior_variance, a.one_minus_alpha_bar):
        assert table.dtype == torch.float64
        assert table.shape == (a.T + 1,)
        assert not torch.signbit(table).any()  # -0.0 at index 0 would make snr[0] = -inf


@given(betas_lists)
def test_alpha_bar_is_the_product_of_the_alphas(betas):
    a = NoiseSchedule.from_betas(betas)
    by_hand = [ddpm_alpha_bar([0.0, *betas], t) for t in range(len(betas) + 1)]
    np.testing.assert_allclose(a.alpha_bar, by_hand, rtol=1e-12)
    np.testing.assert_allclose(a.beta[1:], betas, rtol=1e-10)
    np.testing.assert_allclose(a.alpha + a.beta, 1, rtol=1e-14)
    np.testing.assert_allclose(a.snr[1:], a.alpha_bar[1:] / (1 - a.alpha_bar[1:]), rtol=1e-10)


@given(betas_lists)
def test_posterior_variance_against_its_definition(betas):
    a = NoiseSchedule.from_betas(betas)
    bar = [ddpm_alpha_bar([0.0, *betas], t) for t in range(len(betas) + 1)]
    for t in range(2, a.T + 1):
        by_hand = (1 - bar[t - 1]) / (1 - bar[t]) * betas[t - 1]
        assert a.posterior_variance[t].item() == pytest.approx(by_hand, rel=1e-9)
        assert a.posterior_variance[t] < a.beta[t]


@pytest.mark.parametrize("T", [2, 1000, 16384])
def test_beta_survives_the_round_trip_through_alpha_bar(T):
    betas = torch.linspace(1e-4, 2e-2, T, dtype=torch.float64)
    np.testing.assert_allclose(NoiseSchedule.from_betas(betas).beta[1:], betas, rtol=1e-10)
    a = NoiseSchedule.from_alpha_bar(NoiseSchedule.linear(min(T, 1000)).alpha_bar)
    np.testing.assert_allclose(a.beta, NoiseSchedule.linear(min(T, 1000)).beta, rtol=1e-10)


def test_linear_ends_and_equal_steps():
    a = NoiseSchedule.linear(1000, beta_1=1e-4, beta_T=2e-2)
    assert a.beta[1].item() == pytest.approx(1e-4, rel=1e-12)
    assert a.beta[1000].item() == pytest.approx(2e-2, rel=1e-10)
    np.testing.assert_allclose(a.beta[1:].diff(), (2e-2 - 1e-4) / 999, rtol=1e-8)


@pytest.mark.parametrize("T", [4, 50, 1000])
@pytest.mark.parametrize("offset", [0.008, 0.1])
def test_cosine_is_the_papers_formula_until_beta_is_clipped(T, offset):
    a = NoiseSchedule.cosine(T, offset=offset)

    def f(t):
        return math.cos((t / T + offset) / (1 + offset) * math.pi / 2) ** 2

    wanted = [min(1 - f(t) / f(t - 1), 0.999) for t in range(1, T + 1)]
    np.testing.assert_allclose(a.beta[1:], wanted, rtol=1e-8)
    unclipped = [t for t in range(T + 1) if all(b < 0.999 for b in wanted[:t])]
    np.testing.assert_allclose(a.alpha_bar[unclipped], [f(t) / f(0) for t in unclipped], rtol=1e-10)
    assert a.alpha_bar[0] == 1


def test_cosine_rederives_alpha_bar_where_beta_is_clipped():
    a = NoiseSchedule.cosine(1000)
    assert a.beta[1000].item() == pytest.approx(0.999, rel=1e-12)  # only the last is clipped
    assert a.beta[999] < 0.76
    assert a.alpha_bar[1000].item() == pytest.approx(a.alpha_bar[999].item() * 0.001, rel=1e-10)


@given(st.data())
def test_respace_keeps_every_alpha_bar_and_rederives_beta(data):
    betas = data.draw(st.lists(st.floats(1e-4, 0.8), min_size=2, max_size=12))
    a = NoiseSchedule.from_betas(betas)
    kept = sorted(data.draw(st.sets(st.integers(1, a.T), min_size=1)))
    short = a.respace(kept)
    assert short.timesteps.tolist() == [0, *kept]
    assert torch.equal(short.alpha_bar, a.alpha_bar[[0, *kept]])
    for i, (s, t) in enumerate(zip([0, *kept], kept, strict=False), start=1):
        survived = math.prod(1 - b for b in betas[s:t])
        assert short.beta[i].item() == pytest.approx(1 - survived, rel=1e-9)
    again = short.respace(list(range(1, short.T + 1)))
    assert again == short


def test_respacing_twice_keeps_the_original_numbers():
    a = NoiseSchedule.linear(1000).respace(50, "trailing").respace([10, 50])
    assert a.timesteps.tolist() == [0, 200, 1000]
    assert torch.equal(a.alpha_bar, NoiseSchedule.linear(1000).alpha_bar[[0, 200, 1000]])


def by_hand(T, S, spacing):
    if spacing == "trailing":
        return sorted(round(T - i * T / S) for i in range(S))
    if spacing == "leading":
        return [1 + i * (T // S) for i in range(S)]
    if spacing == "linspace":
        return [round(1 + i * (T - 1) / (S - 1)) for i in range(S)]
    return [round(1 + (T - 1) * (i / (S - 1)) ** 2) for i in range(S)]


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace", "quadratic"])
@pytest.mark.parametrize("S", [10, 20, 30])
def test_spacings_are_their_formulas(spacing, S):
    assert NoiseSchedule.linear(1000).steps(S, spacing).tolist() == by_hand(1000, S, spacing)


@settings(max_examples=200, deadline=None)
@given(
    T=st.integers(2, 300),
    share=st.floats(0, 1),
    spacing=st.sampled_from(SPACINGS),
    kind=st.sampled_from([NoiseSchedule.linear, NoiseSchedule.cosine]),
)
def test_spacings_are_distinct_and_in_range(T, share, spacing, kind):
    S = 2 + round(share * (T - 2))
    a = kind(T)
    step = a.steps(S, spacing)
    assert len(step) == S
    assert (step.diff() > 0).all()
    assert step[0] >= 1 and step[-1] <= T
    if spacing in ("linspace", "quadratic", "log-snr"):
        assert step[0] == 1
    if spacing != "leading":
        assert step[-1] == T
    if S == T:
        assert step.tolist() == list(range(1, T + 1))


def test_log_snr_spacing_is_nearly_uniform_in_log_snr():
    a = NoiseSchedule.linear(1000)
    gaps = a.snr.log()[a.steps(10, "log-snr")].diff()
    mean = (a.snr.log()[1000] - a.snr.log()[1]) / 9
    widest = a.snr.log()[1:].diff().abs().max()  # no step can be nearer than half a grid cell
    assert (gaps - mean).abs().max() <= widest


@pytest.mark.parametrize("spacing", ["linspace", "quadratic", "log-snr"])
def test_one_step_cannot_hold_both_ends(spacing):
    with pytest.raises(ValueError, match="contains both 1 and T"):
        NoiseSchedule.linear(10).steps(1, spacing)


def test_tables_cannot_be_corrupted_through_their_copies():
    a = NoiseSchedule.linear(10)
    a.alpha_bar[3] = 7
    a.log_alpha_bar[3] = 7
    a.timesteps[3] = 7
    assert a == NoiseSchedule.linear(10)
    source = torch.tensor([0.1, 0.2], dtype=torch.float64)
    b = NoiseSchedule.from_betas(source)
    source[0] = 0.9
    log_alpha_bar = b.log_alpha_bar
    c = NoiseSchedule(log_alpha_bar)
    log_alpha_bar[1] = -0.001
    assert c == b
    assert b == NoiseSchedule.from_betas([0.1, 0.2])


def test_float32_input_is_widened_not_accumulated_in_float32():
    betas = torch.linspace(1e-4, 2e-2, 1000)
    a = NoiseSchedule.from_betas(betas)
    wanted = math.prod(1 - b for b in betas.double().tolist())
    assert a.alpha_bar[-1].item() == pytest.approx(wanted, rel=1e-12)


def test_equality_sees_the_original_numbers_too():
    a = NoiseSchedule.from_alpha_bar([1.0, 0.5])
    b = NoiseSchedule.from_alpha_bar([1.0, 0.7, 0.5]).respace([2])
    assert torch.equal(a.alpha_bar, b.alpha_bar)
    assert a != b
    assert a != "a schedule"


REFUSED = {
    "T = 0": (lambda: NoiseSchedule.linear(0), r"T must be at least 1, got 0"),
    "T = -3": (lambda: NoiseSchedule.cosine(-3), r"got -3"),
    "beta = 0": (lambda: NoiseSchedule.from_betas([0.1, 0.0]), r"beta_2 is 0\.0"),
    "beta = 1": (lambda: NoiseSchedule.from_betas([1.0]), r"beta_1 is 1\.0"),
    "beta < 0": (lambda: NoiseSchedule.from_betas([0.1, 0.2, -0.5]), r"beta_3 is -0\.5"),
    "beta_T = 2": (lambda: NoiseSchedule.linear(10, 1e-4, 2.0), r"beta_6 is 1\.11"),
    "no beta": (lambda: NoiseSchedule.from_betas([]), "at least one number"),
    "nan": (lambda: NoiseSchedule.from_betas([0.1, math.nan]), "entry 1 is nan"),
    "inf": (lambda: NoiseSchedule.from_alpha_bar([1.0, math.inf]), "entry 1 is inf"),
    "matrix": (lambda: NoiseSchedule.from_betas(torch.full((2, 2), 0.1)), r"shape \(2, 2\)"),
    "starts late": (lambda: NoiseSchedule.from_alpha_bar([0.9, 0.5]), r"got 0\.9"),
    "rises": (lambda: NoiseSchedule.from_alpha_bar([1, 0.5, 0.6]), r"alpha_bar_2 = 0\.6"),
    "flat": (lambda: NoiseSchedule.from_alpha_bar([1, 0.5, 0.5]), r"alpha_bar_2 = 0\.5"),
    "zero twice": (lambda: NoiseSchedule.from_alpha_bar([1, 0.0, 0.0]), "alpha_bar_2"),
    "negative": (lambda: NoiseSchedule.from_alpha_bar([1, -0.1]), r"-0\.1"),
    "only clean": (lambda: NoiseSchedule.from_alpha_bar([1.0]), "at least one step"),
    "underflow": (lambda: NoiseSchedule.from_betas([0.5] * 2000), "must fall at every step"),
    "offset": (lambda: NoiseSchedule.cosine(10, offset=0.0), r"got 0\.0"),
    "beta_max": (lambda: NoiseSchedule.cosine(10, beta_max=1.0), r"got 1\.0"),
    "unsorted": (lambda: NoiseSchedule.linear(10).respace([3, 2]), "3 is followed by 2"),
    "repeated": (lambda: NoiseSchedule.linear(10).respace([2, 2]), "2 is followed by 2"),
    "too late": (lambda: NoiseSchedule.linear(10).respace([2, 11]), "got 11"),
    "step 0": (lambda: NoiseSchedule.linear(10).respace([0, 3]), "got 0"),
    "no step": (lambda: NoiseSchedule.linear(10).respace([]), "at least one step"),
    "no spacing": (lambda: NoiseSchedule.linear(10).respace(5), "needs a spacing"),
    "spacing and list": (lambda: NoiseSchedule.linear(10).respace([5], "trailing"), "trailing"),
    "unknown spacing": (lambda: NoiseSchedule.linear(10).respace(5, "even"), "'even'"),
    "too many": (lambda: NoiseSchedule.linear(10).respace(11, "trailing"), "got 11"),
    "none": (lambda: NoiseSchedule.linear(10).respace(0, "trailing"), "got 0"),
    "log-snr of zero": (
        lambda: NoiseSchedule.from_alpha_bar([1, 0.5, 0.0]).steps(2, "log-snr"),
        "alpha_bar_T > 0",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_in_a_sentence_that_names_it(name):
    build, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("T", [2.0, "10", True, None])
def test_length_must_be_an_int(T):
    with pytest.raises(TypeError, match="T must be an int"):
        NoiseSchedule.linear(T)


@pytest.mark.parametrize("steps", [[1.0, 2.0], [True, False]])
def test_step_numbers_must_be_ints(steps):
    with pytest.raises(TypeError, match="step numbers must be ints"):
        NoiseSchedule.linear(10).respace(steps)

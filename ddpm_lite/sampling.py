"""Sampling: from noise to data along the reverse chain, one state at a time.

    for state in sample(denoiser, diffusion, (16, 1, 8, 8), steps=1000, eta=1.0, generator=g):
        ...                    # state.x at level state.t; the last one, at level 0, is the sample

Three walks, each an iterator of states, so that a caller may draw, log or stop between two steps,
and nothing is kept that the caller does not keep:

    sample       DDPM, DDIM and all between, by η
    solve        the ODE that DDIM solves at η = 0, with solvers of first and second order
    ddim_invert  the same ODE upwards, from data to the noise that would give it

They walk the steps of `diffusion.schedule`, all of them or any subset, and need nothing of the
denoiser but a call (x_t, t, y=None): a network, an exact oracle and a guided pair are the same to
them. ``walk.result()`` runs a walk to its end and returns the last x, ``walk.keep(levels)`` the x
at chosen levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_lite.process import GaussianDiffusion, Prediction
from ddpm_lite.schedule import SPACINGS, NoiseSchedule

SOLVERS = ("ddim", "heun", "dpmpp-2m")

Denoiser = Callable[..., Tensor]  # (x_t, t, y=None) -> output
Pairs = list[tuple[int, int]]  # (level before, level after) of each step
Predict = Callable[[Tensor, int], Prediction]  # (x, t) -> the denoiser's answer


@dataclass(frozen=True)
class State:
    """What a walk has after one step.

    x: (B, …) at level t. t: the step number just reached, 0 for the sample itself. x0: (B, …), the
    prediction of x_0 that made the step (clipped, if it was asked for): it looked at the level
    before.
    """

    x: Tensor
    t: int
    x0: Tensor


class Walk(Iterator[State]):
    """The states of one walk, each made when it is asked for.

    levels: the steps that it visits, in their order; the first holds `start`.
    start: the x (B, …) that it begins with.
    calls: how often the whole walk calls the denoiser.
    """

    def __init__(
        self, levels: tuple[int, ...], start: Tensor, states: Iterator[State], calls: int
    ) -> None:
        self.levels = levels
        self.start = start
        self.calls = calls
        self._states = states
        self._x = start

    def __next__(self) -> State:
        state = next(self._states)
        self._x = state.x
        return state

    def result(self) -> Tensor:
        """Walk on to the end, and return the last x."""
        for _ in self:
            pass
        return self._x

    def keep(self, levels: Sequence[int]) -> dict[int, Tensor]:
        """Walk on to the end, and return the x at the levels asked for: {level: x, (B, …)}.

        Raises:
            ValueError: if a level is not on the walk.
        """
        for level in levels:
            if level not in self.levels:
                raise ValueError(
                    f"the levels to keep must lie on the walk ({_abridged(self.levels)}), but "
                    f"{level!r} does not."
                )
        kept = {self.levels[0]: self.start}
        for state in self:
            if state.t in levels:
                kept[state.t] = state.x
        return {level: kept[level] for level in levels}


def sample(
    denoiser: Denoiser,
    diffusion: GaussianDiffusion,
    shape: Sequence[int],
    *,
    steps: int | Sequence[int] | Tensor,
    eta: float,
    generator: torch.Generator,
    spacing: str | None = None,
    y: Tensor | None = None,
    clip: tuple[float, float] | None = None,
    x_T: Tensor | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> Walk:
    """Walk x_T, …, x_t, x_s, …, x_0, and yield a `State` after each step.

    A step from t to s draws x_s = μ + σ·z, with μ and σ² those of `diffusion.reverse` (its
    `variance`; η = 1 is DDPM, η = 0 with variance `posterior` is DDIM). The step to s = 0 returns
    μ: whatever the variance, no noise is added to the result.

    Book: (7.2), (7.4), (7.5), (9.14), (9.16).
    Paper: DDPM Algorithm 2; DDIM Eq. 12.

    Args:
        shape: of the result, (B, C, H, W) or (B, …).
        steps: which steps of 1..T to visit. T itself: the whole chain. A smaller number: that many
            by the rule `spacing` (see `NoiseSchedule.steps`). Or a strictly decreasing list. The
            walk starts at the first of them, from N(0, I), whether or not that step is T.
        eta: has no default, because it changes the law of the result.
        generator: draws x_T (unless given), then one z for each step that needs one, on the
            generator's own device; the draws are moved from there.
        y: int64 (B,), passed on to the denoiser; None is not passed on.
        clip: (low, high) for the prediction of x_0; see `GaussianDiffusion.predict`.
        x_T: the state to start from, (B, …), in place of a draw.
        device: default that of x_T, else of the denoiser's parameters, else of the generator.
        dtype: float32 or float64; default that of x_T (at least float32), else float32.
        progress: show a bar.

    The denoiser gets the original step numbers, ``diffusion.schedule.timesteps[t]``, as int64 (B,).
    It is called without gradients; an ``nn.Module`` in evaluation mode, without dropout, and with
    its own mode restored after each call.

    Raises:
        ValueError, TypeError: here, before the denoiser is called, if the arguments do not fit.
    """
    size = _check_shape(shape)
    grid = _grid(diffusion.schedule, steps, spacing)
    _rehearse(diffusion, grid[0], eta, clip)
    x = _start(x_T, size, generator, _dtype(dtype, x_T), _device(device, x_T, denoiser, generator))
    predict = _predicting(denoiser, diffusion, y, clip, x)

    def steps_down(x: Tensor) -> Iterator[State]:
        for t, s in _bar(list(pairwise([*grid, 0])), progress):
            guess = predict(x, t)
            law = diffusion.reverse_given(guess, x, t, s, eta)
            x = law.sample(generator) if s > 0 else law.mean
            yield State(x, s, guess.x0)

    return Walk((*grid, 0), x, steps_down(x), calls=len(grid))


def generate(
    denoiser: Denoiser, diffusion: GaussianDiffusion, shape: Sequence[int], **settings: Any
) -> Tensor:
    """The result of `sample`, which says what the settings are: the last x, at level 0."""
    return sample(denoiser, diffusion, shape, **settings).result()


def trajectory(
    denoiser: Denoiser,
    diffusion: GaussianDiffusion,
    shape: Sequence[int],
    keep: Sequence[int],
    **settings: Any,
) -> dict[int, Tensor]:
    """The states of one walk at the levels in `keep`, for a picture: {level: x, (B, …)}.

    The levels of a walk are the steps that it visits, the first of which holds x_T, and 0, which
    holds the result. The settings are those of `sample`.

    Raises:
        ValueError: if a level is not on the walk, and as `sample`.
    """
    return sample(denoiser, diffusion, shape, **settings).keep(keep)


# ---- the ODE ------------------------------------------------------------------------------------


def solve(
    denoiser: Denoiser,
    diffusion: GaussianDiffusion,
    shape: Sequence[int],
    *,
    solver: str,
    steps: int | Sequence[int] | Tensor,
    spacing: str | None = None,
    generator: torch.Generator | None = None,
    y: Tensor | None = None,
    clip: tuple[float, float] | None = None,
    x_T: Tensor | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> Walk:
    """Walk x_T, …, x_0 along the ODE of the diffusion, and yield a `State` after each step.

    With the noise-to-signal ratio r_t = √(1−ᾱ_t)/√ᾱ_t as its time, the ODE is

        d(x_t/√ᾱ_t)/dr_t = ε̂(x_t, t),

    and it carries each marginal into the next without any noise. A step from t to s by `solver`:

        ddim      x_s = √ᾱ_s·x̂_0 + √(1−ᾱ_s)·ε̂, first order: as if ε̂ stayed what it is at t. The
                  same walk as `sample` with η = 0.
        heun      DDIM's step, a second call at its end (x_s, s), then the step again with the mean
                  of the two ε̂. Second order, two calls a step.
        dpmpp-2m  DPM-Solver++(2M): DDIM's step, with x̂_0 continued along the line through this
                  step's and the one before in λ = log(√ᾱ/√(1−ᾱ)), to the middle of the step.
                  Second order, one call a step. The first step has nothing to continue from.

    A denoiser cannot be called at level 0, and there λ is infinite, so the last step, to s = 0, is
    DDIM's for all three. Between levels above 0 the orders are as stated; down to 0 they are so
    where the last step is short in r, as on the grids that are dense near the data. Where ᾱ_T = 0,
    r_T is infinite, and Heun's first step is DDIM's too. The walk's `calls` counts the calls.

    Book: (9.20), (9.24), (9.29), (9.30).
    Paper: DDIM Eq. 13, the step of "ddim", and Eq. 14, the ODE.
    Source: Heun's method in r: Karras et al., arXiv 2206.00364; 2M: Lu et al., arXiv 2211.01095.

    Args:
        solver: one of ddim, heun, dpmpp-2m; has no default, because it changes the result.
        generator: draws x_T, and nothing else; not needed if x_T is given.

    The other arguments, and how the denoiser is called, are those of `sample`. The variance of
    `diffusion` plays no part; of a learned variance only the prediction is read.

    Raises:
        ValueError, TypeError: here, before the denoiser is called, if the arguments do not fit.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}.")
    size = _check_shape(shape)
    grid = _grid(diffusion.schedule, steps, spacing)
    _rehearse_prediction(diffusion, grid[0], clip)
    device = _device(device, x_T, denoiser, generator)
    x = _start(x_T, size, generator, _dtype(dtype, x_T), device)
    pairs = list(pairwise([*grid, 0]))
    calls = len(grid)
    if solver == "heun":
        calls += sum(_twice(diffusion, t, s) for t, s in pairs)
    predict = _predicting(denoiser, diffusion, y, clip, x)
    states = _SOLVERS[solver](predict, diffusion, x, pairs, progress)
    return Walk((*grid, 0), x, states, calls)


def ddim_invert(
    denoiser: Denoiser,
    diffusion: GaussianDiffusion,
    x0: Tensor,
    *,
    steps: int | Sequence[int] | Tensor,
    spacing: str | None = None,
    y: Tensor | None = None,
    clip: tuple[float, float] | None = None,
    progress: bool = False,
) -> Walk:
    """Walk x_0, …, x_T upwards: the noise from which DDIM with η = 0 would come back to x_0.

    A step from s to t > s is DDIM's, taken the other way: x_t = √ᾱ_t·x̂_0 + √(1−ᾱ_t)·ε̂, with both
    read off the denoiser at (x_s, s), where the walk down reads them at (x_t, t). So the round trip
    has an error of first order in the steps. At s = 0, where no denoiser can be called, it is
    called with x_0 at step 1; x_0 itself is the prediction there, and only ε̂ is taken.

    Book: (9.21).
    Paper: DDIM Eq. 13, upwards.

    Args:
        x0: (B, …), the data; results have its device, and at least float32.
        steps, spacing: the levels to visit, given as for `sample` (a list decreases), so that the
            same arguments walk back.

    The other arguments are those of `sample`. The last state's x is x_T, at the highest step.

    Raises:
        ValueError, TypeError: here, before the denoiser is called, if the arguments do not fit.
    """
    if not x0.is_floating_point() or x0.ndim < 1 or x0.numel() == 0:
        raise ValueError(
            f"x0 must be a batch of numbers, (B, …), got {x0.dtype} of shape {tuple(x0.shape)}."
        )
    grid = [0, *_grid(diffusion.schedule, steps, spacing)[::-1]]
    _rehearse_prediction(diffusion, 1, clip)
    x = x0.detach().to(_dtype(None, x0))
    predict = _predicting(denoiser, diffusion, y, clip, x)

    def steps_up(x: Tensor) -> Iterator[State]:
        for s, t in _bar(list(pairwise(grid)), progress):
            guess = predict(x, max(s, 1))
            clean = guess.x0 if s > 0 else x
            x = diffusion.q_sample(clean, t, guess.eps)
            yield State(x, t, clean)

    return Walk(tuple(grid), x, steps_up(x), calls=len(grid) - 1)


def slerp(a: Tensor, b: Tensor, share: float | Tensor) -> Tensor:
    """From a (share 0) to b (share 1) along the arc between them, sample by sample.

    (sin((1−λ)θ)·a + sin(λθ)·b)/sin θ, with λ the share and θ the angle between the two samples.

    Between two draws of N(0, I) in many dimensions, which are nearly orthogonal and nearly equal in
    length, the straight line passes through points that are too short, by √½ half way, and that no
    denoiser has met at t = T. The arc keeps the length: exactly for equal ones.

    Book: (9.23).
    Source: Song et al., arXiv 2010.02502, interpolate so.

    Args:
        a, b: (B, …), of one shape. share: a number or a tensor (B,); outside [0, 1] it goes on.
    Raises:
        ValueError: if the shapes differ, or a sample is 0 or points exactly against its partner.
    """
    if a.shape != b.shape or a.ndim < 2:
        raise ValueError(
            f"a and b must have one shape (B, …), got {tuple(a.shape)} and {tuple(b.shape)}."
        )
    share = torch.as_tensor(share, dtype=torch.float64, device=a.device)
    if share.ndim > 1 or (share.ndim == 1 and share.shape != a.shape[:1]):
        raise ValueError(
            f"share must be a number or have shape ({len(a)},), got {tuple(share.shape)}."
        )
    rows = [v.flatten(1).double() for v in (a, b)]
    unit_a, unit_b = (v / v.norm(dim=1, keepdim=True) for v in rows)
    # not the arc cosine, which loses half the digits at small angles
    angle = 2 * torch.atan2((unit_a - unit_b).norm(dim=1), (unit_a + unit_b).norm(dim=1))
    if not bool((angle < math.pi - 1e-6).all()):  # a NaN is refused too
        raise ValueError(
            "the arc between two samples is not defined where one of them is 0 or where they "
            "point exactly against each other."
        )
    # sin(λθ)/sin θ as a ratio of sinc: for θ → 0 it is λ, the straight line
    whole = torch.sinc(angle / math.pi)
    to_a, to_b = (part * torch.sinc(part * angle / math.pi) / whole for part in (1 - share, share))
    mixed = to_a[:, None] * rows[0] + to_b[:, None] * rows[1]
    return mixed.reshape(a.shape).to(torch.promote_types(a.dtype, b.dtype))


# ---- one solver each ----------------------------------------------------------------------------


def _ddim(
    predict: Predict, diffusion: GaussianDiffusion, x: Tensor, pairs: Pairs, progress: bool
) -> Iterator[State]:
    for t, s in _bar(pairs, progress):
        guess = predict(x, t)
        x = diffusion.posterior(x, guess.x0, t, s, eta=0.0).mean
        yield State(x, s, guess.x0)


def _heun(
    predict: Predict, diffusion: GaussianDiffusion, x: Tensor, pairs: Pairs, progress: bool
) -> Iterator[State]:
    log_alpha_bar = diffusion.schedule.log_alpha_bar
    ratio = (-half_log_snr(diffusion.schedule)).exp().tolist()
    signal = (0.5 * log_alpha_bar).exp().tolist()
    for t, s in _bar(pairs, progress):
        guess = predict(x, t)
        x = diffusion.posterior(x, guess.x0, t, s, eta=0.0).mean
        if _twice(diffusion, t, s):
            # as a correction: √ᾱ_s·(r_s − r_t)·mean would subtract large numbers at high noise
            slope = predict(x, s).eps
            x = x + signal[s] * (ratio[s] - ratio[t]) / 2 * (slope - guess.eps)
        yield State(x, s, guess.x0)


def _twice(diffusion: GaussianDiffusion, t: int, s: int) -> bool:
    """Whether Heun's step from t to s has its second call; see `solve`."""
    return s > 0 and math.isfinite(diffusion.schedule.log_alpha_bar[t])


def _dpmpp_2m(
    predict: Predict, diffusion: GaussianDiffusion, x: Tensor, pairs: Pairs, progress: bool
) -> Iterator[State]:
    level = half_log_snr(diffusion.schedule).tolist()
    before: tuple[int, Tensor] | None = None
    for t, s in _bar(pairs, progress):
        guess = predict(x, t)
        x0 = guess.x0
        if before is not None and s > 0:
            # the slope of x̂_0 in λ, taken half a step on; from λ = −∞, no slope
            share = (level[s] - level[t]) / (2 * (level[t] - level[before[0]]))
            x0 = x0 + share * (x0 - before[1])
        x = diffusion.posterior(x, x0, t, s, eta=0.0).mean
        before = t, guess.x0
        yield State(x, s, guess.x0)


_SOLVERS = {"ddim": _ddim, "heun": _heun, "dpmpp-2m": _dpmpp_2m}


def half_log_snr(schedule: NoiseSchedule) -> Tensor:
    """λ_t = log(√ᾱ_t/√(1−ᾱ_t)), float64 (T+1,): +∞ at t = 0, and −∞ where ᾱ_T = 0."""
    return 0.5 * (schedule.log_alpha_bar - schedule.one_minus_alpha_bar.log())


# ---- which steps --------------------------------------------------------------------------------


def _grid(
    schedule: NoiseSchedule, steps: int | Sequence[int] | Tensor, spacing: str | None
) -> list[int]:
    """The steps to visit, decreasing."""
    if isinstance(steps, int):
        if spacing is not None or isinstance(steps, bool):
            return schedule.steps(steps, spacing or "").flip(0).tolist()  # refuses a bool
        if steps != schedule.T:
            raise ValueError(
                f"{steps} steps of T = {schedule.T} need a spacing, one of "
                f"{', '.join(SPACINGS)}: it changes the samples, so it has no default."
            )
        return list(range(schedule.T, 0, -1))
    if spacing is not None:
        raise ValueError(f"a list of steps is taken as it is; drop spacing={spacing!r}.")
    return _check_list(steps, schedule.T)


def _check_list(steps: Sequence[int] | Tensor, T: int) -> list[int]:
    grid = torch.as_tensor(steps, device="cpu")
    if grid.ndim != 1 or len(grid) == 0 or grid.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"steps must be a number of steps or a list of at least one step number, got {steps!r}."
        )
    outside = grid[(grid < 1) | (grid > T)]
    if len(outside):
        raise ValueError(f"a step must lie in 1..T = {T}, got {outside[0].item()}.")
    rising = (grid[1:] >= grid[:-1]).nonzero()
    if len(rising):
        i = int(rising[0])
        raise ValueError(
            f"steps must decrease strictly, the way a sampler walks, but {grid[i + 1].item()} "
            f"follows {grid[i].item()}."
        )
    return grid.tolist()


def _abridged(levels: Sequence[int]) -> str:
    if len(levels) <= 8:
        return ", ".join(map(str, levels))
    return ", ".join(map(str, levels[:3])) + ", …, " + ", ".join(map(str, levels[-3:]))


def _bar(pairs: list[tuple[int, int]], progress: bool) -> Iterator[tuple[int, int]]:
    if not progress:
        return iter(pairs)
    from tqdm.auto import tqdm  # here, because most calls do without it

    return iter(tqdm(pairs, desc="sampling", unit="step"))


# ---- the denoiser -------------------------------------------------------------------------------


def _predicting(
    denoiser: Denoiser,
    diffusion: GaussianDiffusion,
    y: Tensor | None,
    clip: tuple[float, float] | None,
    like: Tensor,
) -> Predict:
    """(x, t) → the denoiser's answer at x and the original number of step t, in all its forms.

    No gradients and evaluation mode are for the call alone: the caller has the turn between two.
    """
    number = diffusion.schedule.timesteps.tolist()
    labels = () if y is None else (_check_labels(y, len(like)).to(like.device),)
    # listed once: to walk through a network at every step would cost a small one half a percent
    modules = list(denoiser.modules()) if isinstance(denoiser, nn.Module) else []

    def predict(x: Tensor, t: int) -> Prediction:
        step = torch.full((len(x),), number[t], dtype=torch.int64, device=x.device)
        with torch.no_grad(), _at_rest(modules):
            output = denoiser(x, step, *labels)
        return diffusion.predict(output.detach(), x, t, clip)

    return predict


@contextmanager
def _at_rest(modules: list[nn.Module]) -> Iterator[None]:
    """Evaluation mode for the time of a call, then each module's own mode again."""
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _module_device(denoiser: Denoiser) -> torch.device | None:
    if not isinstance(denoiser, nn.Module):
        return None
    parameter = next(denoiser.parameters(), None)
    return None if parameter is None else parameter.device


# ---- checks at the boundary ---------------------------------------------------------------------


def _rehearse(
    diffusion: GaussianDiffusion, t: int, eta: float, clip: tuple[float, float] | None
) -> None:
    """One step on a single number: what the process refuses, it refuses before any network runs."""
    channels = 2 if diffusion.variance == "learned" else 1
    diffusion.reverse(torch.zeros(1, channels), torch.zeros(1, 1), t, 0, eta, clip)


def _rehearse_prediction(
    diffusion: GaussianDiffusion, t: int, clip: tuple[float, float] | None
) -> None:
    """As `_rehearse`, where no variance plays a part."""
    channels = 2 if diffusion.variance == "learned" else 1
    diffusion.predict(torch.zeros(1, channels), torch.zeros(1, 1), t, clip)


def _start(
    x_T: Tensor | None,
    size: tuple[int, ...],
    generator: torch.Generator | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    if x_T is not None:
        return _check_start(x_T, size).detach().to(device, dtype)
    if generator is None:
        raise ValueError("a walk begins with x_T, or with a generator to draw it.")
    x = torch.randn(size, generator=generator, dtype=dtype, device=generator.device)
    return x.to(device)


def _check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    size = tuple(shape)
    if not size or not all(isinstance(n, int) and n >= 1 for n in size):
        raise ValueError(f"shape must hold whole numbers of at least 1, (B, …), got {size}.")
    return size


def _check_start(x_T: Tensor, size: tuple[int, ...]) -> Tensor:
    if tuple(x_T.shape) != size:
        raise ValueError(f"x_T must have the shape {size} of the result, got {tuple(x_T.shape)}.")
    return x_T


def _check_labels(y: Tensor, count: int) -> Tensor:
    if y.dtype != torch.int64 or tuple(y.shape) != (count,):
        raise ValueError(
            f"y must be int64 of shape ({count},), one label for each sample, got {y.dtype} of "
            f"shape {tuple(y.shape)}."
        )
    return y


def _dtype(dtype: torch.dtype | None, x_T: Tensor | None) -> torch.dtype:
    if dtype is None:
        given = torch.float32 if x_T is None else x_T.dtype
        dtype = torch.promote_types(given, torch.float32)
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"dtype must be float32 or float64, got {dtype}: half precision belongs inside the "
            "network."
        )
    return dtype


def _device(
    device: torch.device | str | None,
    x_T: Tensor | None,
    denoiser: Denoiser,
    generator: torch.Generator | None,
) -> torch.device:
    if device is not None:
        return torch.device(device)
    if x_T is not None:
        return x_T.device
    drawn_on = torch.device("cpu") if generator is None else generator.device
    return _module_device(denoiser) or drawn_on

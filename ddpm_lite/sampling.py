"""Sampling: from noise to data along the reverse chain, one state at a time.

    for state in sample(denoiser, diffusion, (16, 1, 8, 8), steps=1000, eta=1.0, generator=g):
        ...                    # state.x at level state.t; the last one, at level 0, is the sample

`sample` is a generator, so a caller may draw, log or stop between two steps, and nothing is kept
that the caller does not keep. It walks the steps of `diffusion.schedule`, all of them or any
subset, and needs nothing of the denoiser but a call (x_t, t, y=None): a network, an exact oracle
and a guided pair are the same to it. `generate` returns the last state's x, `trajectory` the x at
chosen levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_lite.process import GaussianDiffusion
from ddpm_lite.schedule import SPACINGS, NoiseSchedule

Denoiser = Callable[..., Tensor]  # (x_t, t, y=None) -> output


@dataclass(frozen=True)
class State:
    """What a sampler has after one step.

    x: (B, …) at level t. t: the step number just reached, 0 for the sample itself. x0: (B, …), the
    prediction of x_0 that made the step (clipped, if it was asked for): it looked at the level
    above.
    """

    x: Tensor
    t: int
    x0: Tensor


class Walk(Iterator[State]):
    """The states of one walk, each made when it is asked for.

    levels: the steps that it visits, decreasing, and 0. start: the x_T (B, …) that it begins with.
    """

    def __init__(self, levels: tuple[int, ...], start: Tensor, states: Iterator[State]) -> None:
        self.levels = levels
        self.start = start
        self._states = states

    def __next__(self) -> State:
        return next(self._states)


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
    dtype = _dtype(dtype, x_T)
    device = _device(device, x_T, denoiser, generator)
    labels = () if y is None else (_check_labels(y, size[0]).to(device),)
    if x_T is None:
        x = torch.randn(size, generator=generator, dtype=dtype, device=generator.device)
    else:
        x = _check_start(x_T, size).detach()
    x = x.to(device, dtype)
    number = diffusion.schedule.timesteps.tolist()

    def steps_down(x: Tensor) -> Iterator[State]:
        for t, s in _bar(list(zip(grid, [*grid[1:], 0], strict=True)), progress):
            with torch.no_grad():  # not held while the caller has the turn
                step = torch.full(size[:1], number[t], dtype=torch.int64, device=device)
                with _at_rest(denoiser):
                    output = denoiser(x, step, *labels)
                law = diffusion.reverse(output, x, t, s, eta, clip)
                x0 = diffusion.predict(output, x, t, clip).x0
                x = law.sample(generator) if s > 0 else law.mean
            yield State(x, s, x0)

    return Walk((*grid, 0), x, steps_down(x))


def generate(
    denoiser: Denoiser, diffusion: GaussianDiffusion, shape: Sequence[int], **settings: Any
) -> Tensor:
    """The result of `sample`, which says what the settings are: the last x, at level 0."""
    for state in sample(denoiser, diffusion, shape, **settings):
        x = state.x
    return x


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
    walk = sample(denoiser, diffusion, shape, **settings)
    for level in keep:
        if level not in walk.levels:
            raise ValueError(
                f"the levels to keep must lie on the walk ({_abridged(walk.levels)}), but "
                f"{level!r} does not."
            )
    kept = {walk.levels[0]: walk.start}
    for state in walk:
        if state.t in keep:
            kept[state.t] = state.x
    return {level: kept[level] for level in keep}


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


@contextmanager
def _at_rest(denoiser: Denoiser) -> Iterator[None]:
    """Evaluation mode for the time of a call, then each module's own mode again."""
    modules = denoiser.modules() if isinstance(denoiser, nn.Module) else ()
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
    generator: torch.Generator,
) -> torch.device:
    if device is not None:
        return torch.device(device)
    if x_T is not None:
        return x_T.device
    return _module_device(denoiser) or generator.device

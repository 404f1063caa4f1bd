"""What stands for a network in an exercise, and what watches an answer at work.

None of it knows an answer: the students' edition of the library has this file as it is. All are
frozen dataclasses of numbers, so that a table of inputs can hold them by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


class _Network:
    """A stand-in for a network, whose numbers are nobody's business in a sentence about a call."""

    def __repr__(self) -> str:
        return "<a stand-in for a network>"


@dataclass(frozen=True, repr=False)
class Drifting(_Network):
    """A network whose output depends on x_t and on t: tanh(slope·x_t) + drift·t."""

    slope: float
    drift: float

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(self.slope * x_t) + self.drift * t[:, None].to(x_t.dtype)


@dataclass(frozen=True, repr=False)
class Stepwise(_Network):
    """A network with a slope and a shift for each step: ε̂ = a_t·tanh(x) + b_t."""

    slopes: tuple[float, ...]
    shifts: tuple[float, ...]

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        slope = torch.tensor(self.slopes, dtype=x.dtype)[t]
        shift = torch.tensor(self.shifts, dtype=x.dtype)[t]
        return slope[:, None] * torch.tanh(x) + shift[:, None]


@dataclass(frozen=True, repr=False)
class Labelled(_Network):
    """A network with a slope for each step and a shift for each label: ε̂ = a_t·tanh(x + b_y)."""

    slopes: tuple[float, ...]
    shifts: tuple[float, ...]

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        slope = torch.tensor(self.slopes, dtype=x.dtype)[t]
        shift = torch.tensor(self.shifts, dtype=x.dtype)[y]
        return slope[:, None] * torch.tanh(x + shift[:, None])


class _Watched:
    """Labels that an answer is given as a tensor, which stays at hand to be read after the call."""

    def __init__(self, labels: Any) -> None:
        self.given = torch.from_numpy(np.array(labels, dtype=np.int64))

    def __deepcopy__(self, memo: object) -> Tensor:
        # An answer is given copies of its arguments. This one's copy is the tensor that is watched.
        return self.given


@dataclass(frozen=True)
class LabelsWatched:
    """An ``observe`` for answers with labels as argument ``place``: results, and what is left of y.

    The labels come first, so that they are also the first thing in which an answer is found to
    differ: a result that was made from spoilt labels says less.
    """

    place: int

    def __call__(self, answer: Any, inputs: Sequence[tuple[Any, ...]]) -> Mapping[str, np.ndarray]:
        results, left = {}, []
        for call, arguments in enumerate(inputs):
            labels = _Watched(arguments[self.place])
            changed = [*arguments[: self.place], labels, *arguments[self.place + 1 :]]
            results[f"0@{call}"] = np.asarray(answer(*changed))
            left.append(labels.given.numpy())
        return {"your y after the calls": np.stack(left), **results}

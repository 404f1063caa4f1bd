"""An exercise as data, and the register of all of them.

The exercises of chapter 3 stand in ``ch03.py``, in a list named ``EXERCISES``. Nothing in an
exercise knows about notebooks: the engine calls the reader's code and the reference on the same
inputs, and compares what they return, as arrays.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import ddpm_lite.exercises as package

KINDS = ("code", "formula", "number", "explain")


@dataclass(frozen=True, kw_only=True, eq=False)
class Exercise:
    """One exercise.

    ``inputs(rng)`` draws a list of argument tuples; arrays in them reach the answer as torch
    tensors. The ``reference`` is a right answer with the signature of the chapter's stub. ``wrong``
    maps a short name to a wrong answer and to what to say to a reader who gave it.
    ``observe(answer, inputs)`` turns an answer into named arrays, where calling it on each tuple is
    not enough. ``tolerance`` is relative to the scale of each array.

    For ``kind="number"`` the reference and the wrong answers are numbers, and ``inputs`` is left
    out. For ``kind="explain"`` the reference is a model answer and ``rubric`` says what a marker
    looks for.
    """

    id: str
    title: str
    kind: str
    points: int
    minutes: int
    difficulty: int
    equation: str
    reference: Any
    hints: tuple[str, ...]
    inputs: Callable[[np.random.Generator], Sequence[tuple[Any, ...]]] | None = None
    wrong: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    observe: Callable[..., Mapping[str, np.ndarray]] | None = None
    tolerance: float = 1e-4
    rubric: tuple[str, ...] = ()
    tables: Any = None  # what the students' edition has in the place of inputs and answers

    def __post_init__(self) -> None:
        explains = self.kind == "explain"
        rules = (
            (re.fullmatch(r"(\d+|[A-Z])\.\d+", self.id), "an id looks like 3.2 or T.1"),
            (self.kind in KINDS, f"kind is {self.kind!r}; one of {', '.join(KINDS)}"),
            (min(self.points, self.minutes) >= 1, "points and minutes are at least 1"),
            (self.difficulty in (1, 2, 3), f"difficulty is {self.difficulty}, not 1, 2 or 3"),
            (isinstance(self.hints, tuple) and len(self.hints) == 3, "there are three hints"),
            (0 < self.tolerance < 1, f"tolerance {self.tolerance} is not between 0 and 1"),
            (self.is_code == self._has_inputs, "inputs are for code and formula"),
            (not self.is_code or callable(self.reference), "the reference is a function"),
            (explains == bool(self.rubric), "a rubric is for explain"),
            (not explains or isinstance(self.reference, str), "the reference is a model answer"),
        )
        for holds, rule in rules:
            if not holds:
                raise ValueError(f"exercise {self.id}: {rule}.")

    @property
    def _has_inputs(self) -> bool:
        return self.inputs is not None or (self.tables is not None and self.is_code)

    @property
    def is_code(self) -> bool:
        """Whether the answer is a function."""
        return self.kind in ("code", "formula")

    @property
    def chapter(self) -> str:
        """The part of the id before the point: ``"3"``, or ``"T"`` for the toolbox."""
        return self.id.partition(".")[0]

    @property
    def heading(self) -> str:
        """How the statement in the chapter begins; a test holds the two together."""
        points = "1 point" if self.points == 1 else f"{self.points} points"
        minutes = "1 minute" if self.minutes == 1 else f"{self.minutes} minutes"
        stars = "●" * self.difficulty + "○" * (3 - self.difficulty)
        stop = "" if self.title[-1] in "?!." else "."
        return f"**Exercise {self.id}** ({points}, {minutes}, {stars}) — *{self.title}{stop}*"


_registered: dict[str, Exercise] = {}


def register(exercise: Exercise) -> Exercise:
    """Add one exercise to the register; an id is given once."""
    if _registered.setdefault(exercise.id, exercise) is not exercise:
        raise ValueError(f"exercise {exercise.id} is registered twice.")
    return exercise


def all_exercises() -> list[Exercise]:
    """Every exercise of the book, in the order of the chapters' files and of the lists in them."""
    for name in _chapter_modules():
        _load(name)
    return list(_registered.values())


def find(id: str) -> Exercise | None:
    """The exercise with this id, or None; most are found in their own chapter's file."""
    chapter = str(id).partition(".")[0]
    own = f"ch{int(chapter):02d}" if chapter.isdecimal() else ""
    for name in sorted(_chapter_modules(), key=lambda name: name != own):
        if id in _registered:
            break
        _load(name)
    return _registered.get(id)


def _chapter_modules() -> list[str]:
    names = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in names if re.fullmatch(r"ch(\d\d|[A-Z])", name))


def _load(name: str) -> None:
    module = importlib.import_module(f"{package.__name__}.{name}")
    for exercise in getattr(module, "EXERCISES", ()):
        register(exercise)

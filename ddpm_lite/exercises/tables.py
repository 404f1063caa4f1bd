"""An exercise without its answers: tables of inputs and of what known answers return for them.

The students' edition of the library holds these in the place of the chapters' exercises. ``check``
works as in the book, on one of the stored draws; the right function is not there. A number is not
there either, only what its hash is: a slow one, which makes guessing slow, and no more than that.

`python -m ddpm_lite book student-wheel` writes what is read here.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_lite.exercises import standins
from ddpm_lite.exercises.exercise import Exercise

FOLDER = Path(__file__).with_name("tables")
OBJECTS = ("Drifting", "Stepwise", "Labelled", "LabelsWatched")  # of standins
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Drawn:
    """One draw: the inputs, and what the known answers return for them."""

    inputs: list[tuple[Any, ...]]
    reference: Arrays
    wrong: dict[str, Arrays]


class Unknown:
    """In the place of the right answer: its name and its parameters, to speak of it."""

    def __init__(self, name: str, parameters: Iterable[str]) -> None:
        self.__name__ = name
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        self.__signature__ = inspect.Signature([inspect.Parameter(p, kind) for p in parameters])

    def __call__(self, *_: Any) -> Any:
        raise LookupError("this edition of the library holds no solutions")


@dataclass(frozen=True)
class Tables:
    """The stored draws of one exercise, or the hashes of its number."""

    about: Mapping[str, Any]
    content: bytes = b""

    @cached_property
    def arrays(self) -> Arrays:
        """All arrays, by their names in the tables."""
        with np.load(io.BytesIO(self.content), allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}

    def draw(self, seed: int | None) -> Drawn:
        """One of the stored draws; the same one for the same seed."""
        draws = self.about["draws"]
        one = draws[int(np.random.default_rng(seed).integers(len(draws)))]
        inputs = [tuple(self._value(value) for value in call) for call in one["inputs"]]
        known = {name: self._known(keys) for name, keys in one["known"].items()}
        return Drawn(inputs, known.pop(""), known)

    def _known(self, keys: Mapping[str, str]) -> Arrays:
        return {key: self.arrays[name] for key, name in keys.items()}

    def _value(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if "array" in value:
            return self.arrays[value["array"]]
        return made(value)

    def named(self, number: float) -> str | None:
        """For a number: "" if it is right, a mistake's name, or None if it is neither."""
        keys = set(hashes(number, self.about["tolerance"], self.about["salt"], around=0))
        for name, known in self.about["hashes"].items():
            if keys & set(known):
                return str(name)
        return None


def made(described: Mapping[str, Any]) -> Any:
    """A stand-in, from the name of its class and its fields."""
    name, fields = described["object"], described["fields"]
    if name not in OBJECTS:
        raise ValueError(f"{name!r} is none of {', '.join(OBJECTS)}")
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
    return getattr(standins, name)(**values)


def hashes(number: float, tolerance: float, salt: str, around: float) -> list[str]:
    """The hashes of the places on a grid, in ratios of the tolerance, within ``around`` of it.

    The grid is one for all numbers, so that nothing about the right one follows from it.
    """
    if abs(number) < 1e-9:
        places = [(0, 0)]
    else:
        sign, height = (1 if number > 0 else -1), math.log(abs(number)) / tolerance
        low, high = math.floor(height - around), math.floor(height + around)
        places = [(sign, place) for place in range(low, high + 1)]
    return [
        hashlib.scrypt(f"{place}".encode(), salt=salt.encode(), n=2**13, r=8, p=1).hex()[:32]
        for place in places
    ]


def read(folder: Path, id: str) -> Exercise:
    """One exercise of the students' edition."""
    about = json.loads((folder / f"{id}.json").read_text(encoding="utf-8"))
    stored = folder / f"{id}.npz"
    tables = Tables(about, stored.read_bytes() if stored.is_file() else b"")
    kind = about["kind"]
    return Exercise(
        id=id,
        kind=kind,
        reference="" if kind == "explain" else Unknown(about["name"], about["parameters"]),
        wrong={name: (None, message) for name, message in about["messages"].items()},
        rubric=("A person marks this.",) if kind == "explain" else (),
        observe=made(about["observe"]) if about["observe"] else None,
        hints=tuple(about["hints"]),
        tables=tables,
        **{name: about[name] for name in PLAIN},
    )


PLAIN = ("title", "points", "minutes", "difficulty", "equation", "tolerance")


def read_chapter(chapter: str, folder: Path = FOLDER) -> Sequence[Exercise]:
    """A chapter's exercises, in their order."""
    paths = [path for path in folder.glob("*.json") if path.stem.partition(".")[0] == chapter]
    return [read(folder, path.stem) for path in sorted(paths, key=lambda p: int(p.suffixes[0][1:]))]

"""Writing the tables of the students' edition: what ``ddpm_lite.exercises.tables`` reads."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_lite.exercises.engine import draw, known_answers
from ddpm_lite.exercises.exercise import Exercise
from ddpm_lite.exercises.tables import OBJECTS, PLAIN, hashes

DRAWS = 6  # of each exercise: enough that an answer is not written for one of them
NO_HINTS = tuple(f"Hints are off in this edition ({n} of 3)." for n in (1, 2, 3))


def tables(exercise: Exercise, hints: bool = True) -> dict[str, bytes]:
    """The files of one exercise, by name; the same each time."""
    arrays: dict[str, np.ndarray] = {}
    about: dict[str, Any] = {name: getattr(exercise, name) for name in PLAIN} | {
        "kind": exercise.kind,
        "hints": exercise.hints if hints else NO_HINTS,
        "messages": {name: message for name, (_, message) in exercise.wrong.items()},
        "name": "answer",
        "parameters": [],
        "observe": _described(exercise.observe) if exercise.observe else None,
    }
    if exercise.kind == "number":
        about |= _hashed(exercise)
    if exercise.is_code:
        about["name"] = exercise.reference.__name__
        about["parameters"] = list(inspect.signature(exercise.reference).parameters)
        about["draws"] = [_draw(exercise, number, arrays) for number in range(DRAWS)]
    text = json.dumps(about, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
    files = {f"{exercise.id}.json": text.encode()}
    if arrays:
        stored = io.BytesIO()
        np.savez_compressed(stored, allow_pickle=False, **arrays)
        files[f"{exercise.id}.npz"] = stored.getvalue()
    return files


def _draw(exercise: Exercise, number: int, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """One draw; its arrays go to ``arrays``, and their names stand in their places."""
    seed = hashlib.sha256(f"{exercise.id} {number}".encode()).digest()[:6]
    inputs = draw(exercise, int.from_bytes(seed, "big"))
    reference, wrong = known_answers(exercise, inputs)

    def kept(name: str, array: np.ndarray) -> str:
        arrays[f"{number}.{name}"] = array
        return f"{number}.{name}"

    def value(place: str, one: Any) -> Any:
        if isinstance(one, np.ndarray):
            return {"array": kept(f"in.{place}", one)}
        if isinstance(one, np.generic):
            return one.item()
        return _described(one) if callable(one) else one

    return {
        "inputs": [
            [value(f"{call}.{place}", one) for place, one in enumerate(arguments)]
            for call, arguments in enumerate(inputs)
        ],
        "known": {
            name: {key: kept(f"known.{i}.{key}", array) for key, array in outcome.items()}
            for i, (name, outcome) in enumerate({"": reference, **wrong}.items())
        },
    }


def _described(thing: Any) -> dict[str, Any]:
    """A stand-in by its class and fields; whatever else an exercise might hold is refused."""
    name = type(thing).__name__
    if name not in OBJECTS:
        raise ValueError(f"tables can hold {', '.join(OBJECTS)}, not {name!r}")
    return {"object": name, "fields": dataclasses.asdict(thing)}


def _hashed(exercise: Exercise) -> Mapping[str, Any]:
    salt = hashlib.sha256(exercise.id.encode()).hexdigest()[:16]
    numbers = {"": exercise.reference} | {n: answer for n, (answer, _) in exercise.wrong.items()}
    return {
        "salt": salt,
        "hashes": {
            name: hashes(float(number), exercise.tolerance, salt, around=1.0)
            for name, number in numbers.items()
        },
    }

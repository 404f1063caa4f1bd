"""Where an answer parts from the reference, in words that let the reader try it again."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import torch

from ddpm_lite.exercises.compare import Arrays, Place
from ddpm_lite.exercises.exercise import Exercise
from ddpm_lite.exercises.observe import Inputs, Observation


def describe(
    exercise: Exercise, inputs: Inputs, reference: Arrays, got: Observation, place: Place
) -> str:
    """One sentence: for which input and where in the output, what was expected, what came."""
    if exercise.kind == "number":
        return _describe_number(place)
    where = _where(exercise, inputs, reference, place)
    if place.reason == "raised":
        return got.troubles[place.key] + (f" The call was {where}." if where else "")
    if place.reason == "shape":
        return f"Wrong shape from {where}: expected {place.expected}, got {place.got}."
    if place.reason == "count":
        return f"Wrong number of values from {where}: expected {place.expected}, got {place.got}."
    expected, found = _digits_apart(place.expected, place.got)
    return f"First difference, {where}: expected {expected}, got {found}."


def _describe_number(place: Place) -> str:
    """Without the number that was expected: the reader may still find it."""
    if place.reason != "value" or not math.isfinite(place.got):
        return "The answer to this exercise is one finite number."
    return f"Your number is too {'large' if place.got > place.expected else 'small'}."


def _where(exercise: Exercise, inputs: Inputs, reference: Arrays, place: Place) -> str:
    slot, _, call = place.key.partition("@")
    index = f"[{', '.join(map(str, place.index))}]" if place.index else ""
    if not call:  # an observation that the exercise made in its own way, and named in words
        return "" if place.reason == "raised" else f"{slot}{index}"
    words = _call(exercise, inputs[int(call)])
    if slot.isdecimal() and f"1@{call}" in reference:
        words += f", value {int(slot) + 1}"
    return words + (f", index {index}" if index else "")


def _call(exercise: Exercise, arguments: tuple[Any, ...]) -> str:
    """A call as the reader could write it, with long arrays shortened to their shapes."""
    names = inspect.signature(exercise.reference).parameters
    shown = (f"{name}={_shown(value)}" for name, value in zip(names, arguments, strict=False))
    return f"{exercise.reference.__name__}({', '.join(shown)})"


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray | torch.Tensor):
        array = np.asarray(value)
        if array.ndim == 1 and array.size <= 13:
            return f"[{', '.join(f'{x:.4g}' for x in array)}]"
        return f"<{' × '.join(map(str, array.shape))} numbers>"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _digits_apart(one: float, other: float) -> tuple[str, str]:
    """Two numbers with as many digits as tell them apart, and at least four."""
    pairs = ((f"{one:.{digits}g}", f"{other:.{digits}g}") for digits in range(4, 18))
    return next((pair for pair in pairs if pair[0] != pair[1]), (str(one), str(other)))

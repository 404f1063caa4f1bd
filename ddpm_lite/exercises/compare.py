"""Arrays in, outcome out: which known answer do these numbers come from, and where do they part?

Only NumPy, and only arrays: the right answer and the wrong ones may be computed on the spot, or
come from a table that was written elsewhere.

What a function returned is named ``"slot@call"``: ``"1@0"`` is the second value of the first call.
Arrays that share the part before the ``@`` share one scale. A call that raised an exception is
recorded as ``"raised@call"``, an array that holds the exception's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Place:
    """The first place where an answer parts from the reference, and how it parts there."""

    key: str
    reason: str  # value | shape | count | raised
    index: tuple[int, ...] = ()
    expected: Any = None
    got: Any = None


@dataclass(frozen=True)
class Comparison:
    """Right, or wrong from some place on, with the known mistake that it looks like."""

    right: bool
    mistake: str | None = None
    place: Place | None = None


def compare(
    reference: Arrays, wrong: Mapping[str, Arrays], got: Arrays, tolerance: float
) -> Comparison:
    """Whether ``got`` is the reference; if not, which wrong answer it is, and where it parts."""
    if distance(got, reference) <= tolerance:
        return Comparison(right=True)
    distances = {name: distance(got, arrays) for name, arrays in wrong.items()}
    closest = min(distances, key=distances.__getitem__, default=None)
    named = closest is not None and distances[closest] <= tolerance
    place = first_difference(got, reference, tolerance)
    return Comparison(False, closest if named else None, place)


def distance(got: Arrays, target: Arrays) -> float:
    """The largest difference between two observations, relative to the scale of ``target``."""
    got = align(got, target)
    if got.keys() != target.keys():
        return np.inf
    scales = _scales(target)
    worst = 0.0
    for key, wanted in target.items():
        if got[key].shape != wanted.shape:
            return np.inf
        worst = max(worst, _apart(got[key], wanted).max(initial=0.0) / scales[_slot(key)])
    return worst


def first_difference(got: Arrays, reference: Arrays, tolerance: float) -> Place | None:
    """The first array, and in it the first index, at which ``got`` is not the reference."""
    got, scales = align(got, reference), _scales(reference)
    for key, wanted in reference.items():
        call = _call(key)
        if f"raised@{call}" in got:
            return Place(f"raised@{call}", "raised")
        counts = len(_values(reference, call)), len(_values(got, call))
        if key not in got or counts[0] != counts[1]:
            return Place(key, "count", (), *counts)
        if got[key].shape != wanted.shape:
            return Place(key, "shape", (), wanted.shape, got[key].shape)
        parts = np.argwhere(_apart(got[key], wanted) > tolerance * scales[_slot(key)])
        if len(parts):
            index = tuple(int(i) for i in parts[0])
            return Place(key, "value", index, wanted[index].item(), got[key][index].item())
    surplus = next((key for key in got if key not in reference), None)
    return None if surplus is None else Place(surplus, "count", (), 0, 1)


def align(got: Arrays, like: Arrays) -> dict[str, np.ndarray]:
    """The same numbers, arranged as in ``like`` where only the packaging differs.

    A pair may come as a tuple, a list or an array of two; a vector as a list of numbers; a number
    as an array that holds one. Shapes that differ otherwise are left as they are.
    """
    aligned: dict[str, np.ndarray] = {}
    for call in dict.fromkeys(map(_call, got)):
        values = _repack(_values(got, call), [x.shape for x in _values(like, call)])
        aligned |= {f"{slot}@{call}": value for slot, value in enumerate(values)}
        aligned |= {k: x for k, x in got.items() if _call(k) == call and not _is_value(k)}
    for key, value in aligned.items():
        if key in like and value.size == like[key].size == 1:
            aligned[key] = value.reshape(like[key].shape)
    return aligned


def _repack(values: list[np.ndarray], wanted: list[tuple[int, ...]]) -> list[np.ndarray]:
    shapes = {value.shape for value in values}
    if len(values) == 1 < len(wanted) and values[0].shape[:1] == (len(wanted),):
        return list(values[0])
    if len(wanted) == 1 == len(shapes) and wanted[0] == (len(values), *shapes.pop()):
        return [np.stack(values)]
    return values


def _apart(got: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """``|got - wanted|``, infinite where one is not finite, and 0 where both are so alike."""
    if not (_is_numeric(got) and _is_numeric(wanted)):
        return np.where(got == wanted, 0.0, np.inf)
    same = (got == wanted) | (np.isnan(got) & np.isnan(wanted))
    with np.errstate(all="ignore"):
        return np.where(same, 0.0, np.nan_to_num(np.abs(got - wanted), nan=np.inf, posinf=np.inf))


def _scales(arrays: Arrays) -> dict[str, float]:
    """For each slot the largest finite magnitude over all calls; 1 where all of it is zero."""
    scales: dict[str, float] = {}
    for key, array in arrays.items():
        finite = np.abs(array[np.isfinite(array)]) if _is_numeric(array) else np.zeros(0)
        scales[_slot(key)] = max(scales.get(_slot(key), 0.0), float(finite.max(initial=0.0)))
    return {slot: scale or 1.0 for slot, scale in scales.items()}


def _values(arrays: Arrays, call: str) -> list[np.ndarray]:
    return [x for key, x in arrays.items() if _is_value(key) and _call(key) == call]


def _is_value(key: str) -> bool:
    return re.fullmatch(r"\d+@\d*", key) is not None


def _is_numeric(array: np.ndarray) -> bool:
    return array.dtype.kind in "iuf"


def _slot(key: str) -> str:
    return key.partition("@")[0]


def _call(key: str) -> str:
    return key.partition("@")[2]

"""What is not good enough about an exercise, for whoever writes one.

`python -m ddpm_lite book exercise-check 3.2` says it in sentences, and a test holds every exercise
of the book to the same rules.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator

import numpy as np
import torch

from ddpm_lite.book import BookError
from ddpm_lite.exercises.compare import distance
from ddpm_lite.exercises.engine import draw, judge, known_answers
from ddpm_lite.exercises.exercise import Exercise, find

DRAWS = 20
APART = 20  # tolerances between any two of the reference and the wrong answers
SECONDS = 2.0  # for one check; a student checks often
WRONG = (2, 5)  # how many named mistakes: what real students do, and no padding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("exercises", nargs="+", metavar="ID", help="3.2 T.4")


def run(given: argparse.Namespace) -> int:
    """Print what is not good enough; 0 if nothing is."""
    failed = False
    for id in given.exercises:
        exercise = find(id)
        if exercise is None:
            raise BookError(f"there is no exercise {id} in ddpm_lite/exercises")
        found = faults(exercise)
        failed |= bool(found)
        print(f"{'✗' if found else '✓'} {id} {exercise.title}")
        for fault in found:
            print(f"    {fault}")
    return int(failed)


def faults(exercise: Exercise) -> list[str]:
    """All that is not good enough, a sentence each; empty if it is good."""
    found = list(_words(exercise))
    if exercise.kind != "explain":
        found += _answers(exercise)
    if exercise.is_code:
        found += [*_inputs(exercise), *_precision(exercise), *_speed(exercise)]
    return found


def _words(exercise: Exercise) -> Iterator[str]:
    """Hints, messages, the rubric."""
    if len({hint.strip() for hint in exercise.hints} - {""}) < 3:
        yield "its three hints should differ, from where to look to almost the answer"
    for name, (_, message) in exercise.wrong.items():
        if not 20 <= len(message) <= 300:
            yield f"the message for {name} should be one or two sentences"
    messages = [message for _, message in exercise.wrong.values()]
    if len(set(messages)) < len(messages):
        yield "two wrong answers have the same message"
    if exercise.is_code and not WRONG[0] <= len(exercise.wrong) <= WRONG[1]:
        yield f"it names {len(exercise.wrong)} wrong answers; {WRONG[0]} to {WRONG[1]} are right"
    if exercise.kind == "explain" and (
        len(exercise.reference.split()) < 20 or len(exercise.rubric) < 2
    ):
        yield "its model answer wants some sentences, and its rubric at least two lines"


def _answers(exercise: Exercise) -> Iterator[str]:
    """The reference is right, every wrong answer is named, no two known answers are alike."""
    told: set[str] = set()
    for seed in range(DRAWS if exercise.is_code else 1):
        reference, wrong = known_answers(exercise, draw(exercise, seed))
        if not all(_is_finite(array) for array in reference.values()):
            yield f"its reference fails or is not finite on the inputs of seed {seed}"
            return
        for one, other in itertools.combinations({"the reference": reference, **wrong}.items(), 2):
            apart = min(distance(one[1], other[1]), distance(other[1], one[1]))
            pair = f"{one[0]} and {other[0]}"
            if apart <= APART * exercise.tolerance and pair not in told:
                told.add(pair)
                yield f"{pair} are only {apart / exercise.tolerance:.2g} tolerances apart"
        for name, (answer, _) in exercise.wrong.items():
            verdict = judge(exercise, answer, seed)
            if verdict.mistake != name and name not in told:
                told.add(name)
                yield f"{name} is not named on the inputs of seed {seed}: {verdict.status}"


def _is_finite(array: np.ndarray) -> bool:
    return array.dtype.kind in "iuf" and bool(np.isfinite(array).all())


def _inputs(exercise: Exercise) -> Iterator[str]:
    """Fresh ones each time, the same for the same seed, and more than one or two."""
    draws = [draw(exercise, seed) for seed in (1, 2, 1)]
    if repr(draws[0]) == repr(draws[1]):
        yield "its inputs do not differ from draw to draw"
    if repr(draws[0]) != repr(draws[2]):
        yield "its inputs are not the same for the same seed"
    if len(draws[0]) < 3:
        yield f"it draws {len(draws[0])} inputs; three or more show a mistake that hides at one"


def _precision(exercise: Exercise) -> Iterator[str]:
    """An answer in single precision is as right."""

    def single(*arguments: object) -> object:
        values = exercise.reference(*arguments)
        several = isinstance(values, tuple | list)
        rounded = [_rounded(value) for value in (values if several else [values])]
        return tuple(rounded) if several else rounded[0]

    if judge(exercise, exercise.reference, 1).status != "right":
        yield "its reference is not right"
    if judge(exercise, single, 1).status != "right":
        yield "its tolerance is too small for an answer in single precision"


def _rounded(value: object) -> object:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.float()
    return float(np.float32(value)) if isinstance(value, float) else value


def _speed(exercise: Exercise) -> Iterator[str]:
    start = time.process_time()
    judge(exercise, exercise.reference, 1)
    seconds = time.process_time() - start
    if seconds > SECONDS:
        yield f"one check takes {seconds:.1f} s of the processor; at most {SECONDS:g}"

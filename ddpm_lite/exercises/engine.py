"""What a reader calls in a chapter: ``check``, ``hint``, ``solution`` and ``progress``."""

from __future__ import annotations

import inspect
import textwrap
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddpm_lite.exercises import observe as observing
from ddpm_lite.exercises import policy
from ddpm_lite.exercises.compare import Arrays, compare
from ddpm_lite.exercises.describe import describe
from ddpm_lite.exercises.exercise import Exercise, all_exercises, find
from ddpm_lite.exercises.observe import Blank, Inputs, Observation, Trouble, observe
from ddpm_lite.exercises.render import Box, Row, show
from ddpm_lite.exercises.store import Store


@dataclass(frozen=True)
class Verdict:
    """What became of an answer.

    ``status`` is right, wrong, trouble (there was nothing to compare), blank, or noted (a person
    marks it); ``mistake`` is the wrong answer that it looks like; ``lines`` say so to the reader.
    """

    status: str
    lines: tuple[str, ...] = ()
    mistake: str | None = None


def check(id: str, answer: Any, *, seed: int | None = None) -> None:
    """Check an answer on fresh inputs, say what is wrong with it, and note the progress.

    ``answer`` is what the exercise asks for: a function, a number, a text, or the name of a
    function in a file of yours, such as ``"my_ddpm.q_sample"``, which is read afresh. ``seed``
    fixes the inputs.
    """
    exercise = find(id)
    if exercise is None:
        _say_unknown(id)
        return
    verdict = judge(exercise, answer, seed)
    lines = list(verdict.lines)
    if verdict.status != "blank":
        status = {"right": "done", "noted": "noted"}.get(verdict.status, "attempted")
        _, complaint = Store().mark(id, status)
        lines += complaint
    said = {"right": "right", "noted": "noted; a person marks this", "blank": "not attempted"}
    tone = verdict.status if verdict.status in said else "wrong"
    show(Box(tone, f"{_name(exercise)}: {said.get(verdict.status, 'not yet right')}.", lines))


# ---- from an answer to a verdict -----------------------------------------------------------------


def judge(exercise: Exercise, answer: Any, seed: int | None = None) -> Verdict:
    """Run an answer and compare it with the reference and with the known mistakes."""
    if exercise.kind == "explain":
        return _judge_text(answer)
    drawn = exercise.tables.draw(seed) if exercise.tables and exercise.is_code else None
    inputs = drawn.inputs if drawn else draw(exercise, seed)
    try:
        answer = prepared(exercise, answer)
        with observing.time_limit(observing.TIME_LIMIT, observing.code_of(answer)):
            got = observe(exercise, answer, inputs)
    except Blank:
        return Verdict("blank")
    except Trouble as trouble:
        return Verdict("trouble", (trouble.sentence,))
    if drawn:
        return verdict_on(exercise, inputs, drawn.reference, drawn.wrong, got)
    if exercise.tables:
        return _judge_hashed(exercise, got.arrays["0@"])
    reference, wrong = known_answers(exercise, inputs)
    return verdict_on(exercise, inputs, reference, wrong, got)


def draw(exercise: Exercise, seed: int | None = None) -> Inputs:
    """Fresh inputs for one check."""
    return list(exercise.inputs(np.random.default_rng(seed))) if exercise.inputs else []


def known_answers(exercise: Exercise, inputs: Inputs) -> tuple[Arrays, dict[str, Arrays]]:
    """What the reference and the known mistakes return for these inputs."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # a wrong answer may divide by zero
        reference = observe(exercise, exercise.reference, inputs).arrays
        wrong = {
            name: observe(exercise, answer, inputs).arrays
            for name, (answer, _) in exercise.wrong.items()
        }
    return reference, dict(wrong)


def verdict_on(
    exercise: Exercise,
    inputs: Inputs,
    reference: Arrays,
    wrong: Mapping[str, Arrays],
    got: Observation,
) -> Verdict:
    """The comparison in words; everything that it rests on is arrays."""
    result = compare(reference, wrong, got.arrays, exercise.tolerance)
    if result.right:
        return Verdict("right")
    assert result.place is not None
    where = describe(exercise, inputs, reference, got, result.place)
    see = f'See equation ({exercise.equation}), or ask for hint("{exercise.id}").'
    if result.mistake is not None:
        return Verdict("wrong", (exercise.wrong[result.mistake][1], where, see), result.mistake)
    if result.place.reason == "raised":
        return Verdict("trouble", (where,))
    return Verdict("wrong", (where, see))


def prepared(exercise: Exercise, answer: Any) -> Any:
    """The answer in the form that its kind has, or ``Blank`` or ``Trouble``."""
    if exercise.kind == "number":
        if answer is None:
            raise Blank
        if callable(answer):
            raise Trouble("type", "The answer to this exercise is a number, not a function.")
        return answer
    if isinstance(answer, str):
        return observing.load_answer(answer)
    if not callable(answer):
        given = "None" if answer is None else f"a value of type {type(answer).__name__}"
        raise Trouble("type", f"check() wants the function itself, without brackets, not {given}.")
    return answer


def _judge_hashed(exercise: Exercise, got: np.ndarray) -> Verdict:
    """A number in the students' edition, where the right one is not to be found."""
    see = f'See equation ({exercise.equation}), or ask for hint("{exercise.id}").'
    if got.size != 1 or not np.isfinite(got).all():
        return Verdict("wrong", ("The answer to this exercise is one finite number.", see))
    name = exercise.tables.named(float(got.reshape(())))
    if name == "":
        return Verdict("right")
    if name is None:
        return Verdict("wrong", ("That is another number.", see))
    return Verdict("wrong", (exercise.wrong[name][1], see), name)


def _judge_text(answer: Any) -> Verdict:
    if isinstance(answer, str):
        return Verdict("noted" if answer.strip() else "blank")
    given = type(answer).__name__
    return Verdict("trouble", (f"The answer to this exercise is a text in quotes, not {given}.",))


# ---- hints, solutions, progress ------------------------------------------------------------------


def hint(id: str) -> None:
    """Show one hint more than last time: where to look, then more, then almost the answer."""
    exercise = find(id)
    if exercise is None:
        _say_unknown(id)
        return
    if closed := policy.closed("hints"):
        show(Box("hint", f"{_name(exercise)}: no hint", [closed]))
        return
    entry, complaint = Store().count_hint(id, len(exercise.hints))
    given, most = entry["hints"], len(exercise.hints)
    lines = [f"{number}. {text}" for number, text in enumerate(exercise.hints[:given], 1)]
    if given == most:
        solved = f'solution("{id}") shows an answer.'
        lines.append(f"That was the last one; {_no_solution(exercise) or solved}")
    show(Box("hint", f"{_name(exercise)}: hint {given} of {most}", lines + complaint))


def solution(id: str) -> None:
    """Show a right answer."""
    exercise = find(id)
    if exercise is None:
        _say_unknown(id)
        return
    if closed := _no_solution(exercise):
        show(Box("hint", f"{_name(exercise)}: no solution", [closed]))
        return
    title = f"{_name(exercise)}: a solution"
    if exercise.kind == "explain":
        rubric = ["A marker looks for:", *(f"– {line}" for line in exercise.rubric)]
        show(Box("hint", title, [exercise.reference, *rubric]))
    elif callable(exercise.reference):
        show(Box("hint", title, code=source_of(exercise)))
    else:
        show(Box("hint", title, [f"{exercise.reference:.6g}"]))


def _no_solution(exercise: Exercise) -> str:
    """Why a solution may not, or cannot, be shown; empty if it can."""
    if exercise.tables:
        return "This edition of the library holds no solutions; ask whoever gave it to you."
    return policy.closed("solutions")


def source_of(exercise: Exercise) -> str:
    """The text of the reference."""
    return textwrap.dedent(inspect.getsource(exercise.reference)).strip()


def progress(chapter: str | None = None) -> None:
    """Show what is done: ``progress("3")`` for one chapter, ``"T"`` for the toolbox, or for all."""
    exercises = [e for e in all_exercises() if chapter in (None, e.chapter)]
    state, complaint = Store().read()
    rows: list[Row] = []
    for part in dict.fromkeys(e.chapter for e in exercises):
        mine = [e for e in exercises if e.chapter == part]
        status = {e: state.get(e.id, {}).get("status", "blank") for e in mine}
        done = sum(e.points for e in mine if status[e] == "done")
        name = f"Chapter {part}" if part.isdecimal() else "Toolbox"
        rows.append(Row(name, f"{done} of {sum(e.points for e in mine)} points", heading=True))
        rows += [Row(f"{e.id}  {e.title}", _standing(e, status[e]), status[e]) for e in mine]
    nothing = [] if exercises else ["There are no such exercises."]
    show(Box("hint", "Your progress", [*complaint, *nothing], rows=rows))


def _standing(exercise: Exercise, status: str) -> str:
    points = exercise.points
    return {
        "done": f"done, {points} of {points}",
        "noted": f"noted, {points} to be marked",
        "attempted": f"attempted, 0 of {points}",
    }.get(status, f"not attempted, 0 of {points}")


def _name(exercise: Exercise) -> str:
    return f"Exercise {exercise.id} ({exercise.title.rstrip('.')})"


def _say_unknown(id: object) -> None:
    show(Box("wrong", f"There is no exercise {id}.", ['An exercise is named by a text, as "3.2".']))

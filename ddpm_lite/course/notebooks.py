"""An assignment as notebooks: nbgrader's source, the students' plain edition, the instructor's.

All three have the same cells under the same names, so that marking finds the answers in whichever
came back. Nothing in them depends on the time or on chance: same input, same bytes out.
"""

from __future__ import annotations

import ast
import hashlib
import json
import textwrap
from typing import Any, Literal

from ddpm_lite.course.answers import answer_source
from ddpm_lite.course.assignment import Assignment, Task, answer_name, grade_id
from ddpm_lite.course.statements import Statement

Edition = Literal["source", "plain", "instructor"]
Cell = dict[str, Any]

SETUP = """\
import math

import numpy as np
import torch

from ddpm_lite.exercises import check, hint, obey, solution

obey(hints={hints!r}, solutions={solutions!r})
"""
NOT_YET = 'raise NotImplementedError("your turn")'
YOUR_WORDS = "*Your answer, in place of this line.*"


def notebook(assignment: Assignment, statements: list[Statement], edition: Edition) -> str:
    """One edition of an assignment, as the text of its file."""
    setup = SETUP.format(hints=assignment.hints, solutions=assignment.solutions)
    cells = [
        _cell("markdown", grade_id("intro"), _intro(assignment, edition), locked=True),
        _cell("code", grade_id("setup"), setup.rstrip(), locked=True),
    ]
    for task, statement in zip(assignment.tasks, statements, strict=True):
        cells += _task(assignment, task, statement, edition)
    if edition == "plain":
        for cell in cells:
            if cell["metadata"]["nbgrader"]["locked"]:
                cell["metadata"]["editable"] = False
    content = {
        "cells": cells,
        "metadata": {
            "ddpm_lite": {"assignment": assignment.name, "edition": edition},
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def script(text: str) -> str:
    """The plain edition as a percent script, for those who work without Jupyter."""
    import jupytext

    return str(jupytext.writes(jupytext.reads(text, fmt="ipynb"), fmt="py:percent"))


def _task(assignment: Assignment, task: Task, statement: Statement, edition: Edition) -> list[Cell]:
    exercise = statement.exercise
    cells = [_cell("markdown", grade_id("statement", task.id), _text(task, statement), locked=True)]
    answer = grade_id("answer", task.id)
    if exercise.kind == "explain":
        words = YOUR_WORDS if edition == "plain" else _model_answer(statement)
        cells.append(_cell("markdown", answer, words, solution=True, points=task.points))
    else:
        code = statement.stub if edition == "plain" else solved(statement)
        if edition == "instructor":
            code = answer_source(exercise, exercise.reference)
        cells.append(_cell("code", answer, code.rstrip(), solution=True))
        test = _test(assignment, statement, hidden=edition == "source")
        test_id = grade_id("test", task.id)
        cells.append(_cell("code", test_id, test, locked=True, points=task.points))
    if edition == "instructor":
        notes = _marking_notes(statement)
        cells.append(_cell("markdown", grade_id("notes", task.id), notes, locked=True))
    return cells


def _cell(
    kind: str,
    name: str,
    source: str,
    *,
    locked: bool = False,
    solution: bool = False,
    points: int | None = None,
) -> Cell:
    """One cell with nbgrader's metadata; its id follows from its name."""
    about: dict[str, Any] = {
        "grade": points is not None,
        "grade_id": name,
        "locked": locked,
        "schema_version": 3,
        "solution": solution,
        "task": False,
    }
    if points is not None:
        about["points"] = points
    cell: Cell = {
        "cell_type": kind,
        "id": hashlib.sha256(name.encode()).hexdigest()[:8],
        "metadata": {"nbgrader": about},
        "source": source,
    }
    if kind == "code":
        cell |= {"execution_count": None, "outputs": []}
    return cell


# ---- what the cells say --------------------------------------------------------------------------


def _intro(assignment: Assignment, edition: Edition) -> str:
    points = "1 point" if assignment.points == 1 else f"{assignment.points} points"
    lines = [
        f"# Assignment {assignment.name}",
        "",
        f"{len(assignment.tasks)} exercises, {points}. Write each answer in the cell below its "
        "statement and run the cell with `check` after it: it confirms a right answer, and says of "
        "a wrong one which mistake it looks like. You may check as often as you like; what counts "
        "in the end is your answer on inputs that are drawn when it is marked. Keep the cells "
        "where they are, and the names of your functions as they are.",
    ]
    if edition == "instructor":
        lines += ["", "**Instructor's edition: with solutions. Not to be handed out.**"]
    return "\n".join(lines)


def _text(task: Task, statement: Statement) -> str:
    exercise = statement.exercise
    points = "1 point" if task.points == 1 else f"{task.points} points"
    parts = [f"## Exercise {exercise.id}: {exercise.title} ({points})", "", statement.text]
    if statement.cited:
        parts += ["", "The equations that this cites:"]
        for _, latex in statement.cited:
            parts += ["", "$$", latex.strip(), "$$"]
    return "\n".join(parts)


def _test(assignment: Assignment, statement: Statement, hidden: bool) -> str:
    exercise, name = statement.exercise, answer_name(statement.exercise)
    answer = name if exercise.is_code else f'globals().get("{name}")'
    lines = [f'check("{exercise.id}", {answer})']
    if hidden:
        lines += [
            "### BEGIN HIDDEN TESTS",
            f"from ddpm_hidden_{assignment.name} import mark",
            f'mark("{exercise.id}", {answer})',
            "### END HIDDEN TESTS",
        ]
    return "\n".join(lines)


def solved(statement: Statement) -> str:
    """The stub with the reference in it, between the marks of what nbgrader takes out again."""
    exercise, stub = statement.exercise, statement.stub
    name = answer_name(exercise)
    if exercise.kind == "number":
        return (
            f"{name} = None  # your number in the place of None\n"
            f"if {name} is None:\n"
            f"    ### BEGIN SOLUTION\n    {name} = {exercise.reference!r}\n    ### END SOLUTION\n"
        )
    *before, function = ast.parse(answer_source(exercise, exercise.reference)).body
    assert isinstance(function, ast.FunctionDef)
    inside = "\n".join(map(ast.unparse, [*before, *function.body]))
    head, marker, _ = stub.partition(NOT_YET)
    if not marker:
        raise ValueError(f"the stub of exercise {exercise.id} has no line {NOT_YET}")
    region = f"### BEGIN SOLUTION\n{inside}\n### END SOLUTION"
    return head.rstrip(" ") + textwrap.indent(region, "    ") + "\n"


def _model_answer(statement: Statement) -> str:
    exercise = statement.exercise
    rubric = "\n".join(f"- {line}" for line in exercise.rubric)
    return (
        f"### BEGIN SOLUTION\n{exercise.reference}\n\n"
        f"A marker looks for:\n\n{rubric}\n### END SOLUTION"
    )


def _marking_notes(statement: Statement) -> str:
    """For whoever marks or teaches: the mistakes that marking knows, or the rubric."""
    exercise = statement.exercise
    if exercise.kind == "explain":
        return "**Marking notes.** A person marks this exercise, by the list above."
    lines = [f"- *{name}*: {message}" for name, (_, message) in exercise.wrong.items()]
    return "\n".join([f"**Marking notes.** See ({exercise.equation}). Known mistakes:", "", *lines])

"""The hidden tests of an assignment that nbgrader runs, in the student's own kernel.

nbgrader executes the test cell after the student's code, in one process; whoever wants to cheat
there can. ``python -m ddpm_lite book grade`` marks in a process of its own, and is to be trusted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ddpm_lite.course.assignment import Assignment, hidden_seeds
from ddpm_lite.course.verdicts import Outcome, Question, together
from ddpm_lite.exercises import observe as observing
from ddpm_lite.exercises.engine import prepared
from ddpm_lite.exercises.exercise import Exercise


class Hidden:
    """The hidden tests of the assignment whose record is in a file."""

    def __init__(self, record: Path) -> None:
        self.assignment = Assignment.read(record)

    def mark(self, id: str, answer: Any) -> int:
        """Print what became of an answer and return its points; nbgrader takes the number."""
        exercise = self.assignment.exercise(id)
        seeds = hidden_seeds(self.assignment, id)
        outcome = together([tried(exercise, answer, seed) for seed in seeds], exercise)
        print(f"Exercise {id}: {outcome.status}.", *outcome.lines)
        points = {task.id: task.points for task in self.assignment.tasks}[id]
        return points if outcome.status == "right" else 0


def tried(exercise: Exercise, answer: Any, seed: int) -> Outcome:
    """An answer on the inputs of one seed."""
    question = Question.drawn(exercise, seed)
    try:
        answer = prepared(exercise, answer)
        with observing.time_limit(observing.TIME_LIMIT, observing.code_of(answer)):
            got = observing.observe(exercise, answer, question.inputs)
    except observing.Blank:
        return Outcome("blank", None, ("Not attempted.",))
    except observing.Trouble as trouble:
        return Outcome("trouble", None, (trouble.sentence,))
    return question.outcome(got.arrays)

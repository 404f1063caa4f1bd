"""From what an answer did on the hidden inputs to what may be said about it.

A student reads the outcome, so it holds no hidden input, no expected number, and nothing that the
student's own code could have made it print: only which known mistake it looks like, or of what kind
the difference is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ddpm_lite.exercises.compare import Arrays, compare
from ddpm_lite.exercises.engine import draw, known_answers
from ddpm_lite.exercises.exercise import Exercise
from ddpm_lite.exercises.observe import Inputs

DIFFERENCES = {
    "value": "Some of your numbers differ from what was expected.",
    "shape": "What you return has another shape than was expected.",
    "count": "You return another number of values than was expected.",
}


@dataclass(frozen=True)
class Outcome:
    """right | wrong | trouble | blank, the known mistake if it is one, and a sentence or two."""

    status: str
    mistake: str | None = None
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    """One draw of hidden inputs, and what the known answers return for them."""

    exercise: Exercise
    inputs: Inputs
    reference: Arrays
    wrong: dict[str, Arrays]

    @classmethod
    def drawn(cls, exercise: Exercise, seed: int) -> Question:
        """The inputs of this seed; the same ones each time."""
        inputs = draw(exercise, seed)
        reference, wrong = known_answers(exercise, inputs)
        return cls(exercise, inputs, reference, wrong)

    def outcome(self, got: Arrays, troubles: Mapping[str, str] | None = None) -> Outcome:
        """What became of an answer that returned these arrays.

        ``troubles`` has a sentence for each call that raised; without, its exception is named.
        """
        exercise = self.exercise
        result = compare(self.reference, self.wrong, got, exercise.tolerance)
        if result.right:
            return Outcome("right")
        if result.mistake is not None:
            return Outcome("wrong", result.mistake, _named(exercise, result.mistake))
        assert result.place is not None
        if result.place.reason == "raised":
            key = result.place.key
            said = f"Your code raised {got[key]}."
            return Outcome("trouble", None, ((troubles or {}).get(key, said),))
        return Outcome("wrong", None, (DIFFERENCES[result.place.reason], _see(exercise)))


def together(outcomes: list[Outcome], exercise: Exercise) -> Outcome:
    """Right if right on every draw; a mistake is named if the draws that are not right agree."""
    faults = [outcome for outcome in outcomes if outcome.status != "right"]
    if not faults:
        return Outcome("right")
    if len({(fault.status, fault.mistake) for fault in faults}) == 1:
        return faults[0]
    statuses = {fault.status for fault in faults}
    if "trouble" in statuses:
        return next(fault for fault in faults if fault.status == "trouble")
    return Outcome("wrong", None, (DIFFERENCES["value"], _see(exercise)))


def _named(exercise: Exercise, mistake: str) -> tuple[str, ...]:
    message = exercise.wrong[mistake][1]
    return (message,) if f"({exercise.equation})" in message else (message, _see(exercise))


def _see(exercise: Exercise) -> str:
    return f"See equation ({exercise.equation})."

"""What was handed out, as a record: which exercises, for how many points, on which hidden inputs.

The record, ``private/ps1.json`` in the course's folder, is all that marking needs besides the book.
It never leaves the instructor's machine.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from ddpm_lite.book import BookError
from ddpm_lite.book.files import write_whole
from ddpm_lite.exercises.exercise import Exercise, find

HIDDEN_DRAWS = 2  # inputs that an answer is marked on; it is right if it is right on each
CELLS = ("setup", "intro", "statement", "answer", "test", "notes")


@dataclass(frozen=True)
class Task:
    """One exercise of an assignment, for as many points as the instructor gives."""

    id: str
    points: int


@dataclass(frozen=True)
class Assignment:
    """An assignment; ``hints`` and ``solutions`` are "on", "off" or the ISO date they open on."""

    name: str
    tasks: tuple[Task, ...]
    seed: int
    hints: str = "on"
    solutions: str = "off"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", self.name):
            raise BookError(
                f"an assignment's name has letters, digits and _, as ps1 has; not {self.name!r}"
            )
        if not self.tasks:
            raise BookError(f"assignment {self.name} has no exercises")
        ids = [task.id for task in self.tasks]
        if twice := sorted({id for id in ids if ids.count(id) > 1}):
            raise BookError(f"assignment {self.name} has exercise {', '.join(twice)} twice")
        for task in self.tasks:
            if find(task.id) is None:
                raise BookError(f"there is no exercise {task.id}")
            if task.points < 0:
                raise BookError(f"exercise {task.id}: {task.points} points; 0 is the least")

    @property
    def points(self) -> int:
        """What all exercises together are worth."""
        return sum(task.points for task in self.tasks)

    def exercise(self, id: str) -> Exercise:
        """The exercise itself."""
        found = find(id)
        assert found is not None, id
        return found

    @classmethod
    def read(cls, path: Path) -> Assignment:
        """The record in a file; BookError if it is none."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            tasks = tuple(Task(**task) for task in raw.pop("tasks"))
            return cls(tasks=tasks, **raw)
        except OSError as error:
            raise BookError(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise BookError(f"{path} is not the record of an assignment") from None

    def write(self, path: Path) -> bool:
        """Write the record; whether the file has changed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_whole(path, json.dumps(asdict(self), indent=1, sort_keys=True) + "\n")


def default_seed(name: str) -> int:
    """The seed of an assignment whose instructor chose none: the same name, the same inputs."""
    return _number("assignment", name) % 2**31


def hidden_seeds(assignment: Assignment, id: str) -> tuple[int, ...]:
    """The seeds of the hidden inputs of one exercise."""
    return tuple(_number(assignment.seed, id, draw) for draw in range(HIDDEN_DRAWS))


def _number(*words: object) -> int:
    text = "\n".join(map(str, words)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:6], "big")


def grade_id(kind: str, id: str = "") -> str:
    """The name of a cell: ``("answer", "3.2")`` -> ``"answer-3-2"``, and ``"setup"`` alone."""
    assert kind in CELLS, kind
    return f"{kind}-{id.replace('.', '-')}" if id else kind


def answer_name(exercise: Exercise) -> str:
    """What an answer cell has to define: the function's name, or ``answer_3_1`` for a number."""
    if exercise.is_code:
        return str(exercise.reference.__name__)
    return f"answer_{exercise.id.replace('.', '_')}"

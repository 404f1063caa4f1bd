"""Marks as tables: the gradebook that an LMS takes, and the marks that a person gives.

``manual.csv`` has a row for every answer that a person has to mark. What was typed into it is never
overwritten, and enters the totals the next time.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ddpm_lite.book import BookError
from ddpm_lite.book.files import write_whole
from ddpm_lite.course.assignment import Assignment
from ddpm_lite.course.marking import Mark
from ddpm_lite.course.submissions import Submission

MANUAL = ("student", "exercise", "points", "comment", "why")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would execute


@dataclass(frozen=True)
class ByHand:
    """What a person gave for one exercise: points, and what to say about them."""

    points: float
    comment: str = ""


Manual = Mapping[tuple[str, str], ByHand]  # by student and exercise


@dataclass(frozen=True)
class Result:
    """One student's marks, those of a person among them."""

    submission: Submission
    marks: tuple[Mark, ...]  # none, if a person has to look at the whole submission
    by_hand: Mapping[str, ByHand]

    @property
    def student(self) -> str:
        """The student's name, as the uploads have it."""
        return self.submission.student

    def points(self, id: str) -> float | None:
        """What one exercise has earned; None as long as nobody knows."""
        if id in self.by_hand:
            return self.by_hand[id].points
        mark = next((mark for mark in self.marks if mark.id == id), None)
        return mark.points if mark else None

    def waiting(self, assignment: Assignment) -> dict[str, str]:
        """The exercises that wait for a person, and why."""
        why = self.submission.person
        ids = [task.id for task in assignment.tasks if self.points(task.id) is None]
        return {id: why.get(id, why.get("", "a person marks this exercise")) for id in ids}


def result(submission: Submission, marks: Iterable[Mark], manual: Manual) -> Result:
    """One student's marks together with what a person gave."""
    by_hand = {
        id: given for (student, id), given in manual.items() if student == submission.student
    }
    return Result(submission, tuple(marks), by_hand)


# ---- tables --------------------------------------------------------------------------------------


def gradebook(assignment: Assignment, results: Iterable[Result]) -> str:
    """One row for each student: every exercise, the totals, and what a person must look at."""
    ids = [task.id for task in assignment.tasks]
    rows = [["student", "assignment", *ids, "automatic", "manual", "total", "out of", "a person"]]
    for one in results:
        points = {id: one.points(id) for id in ids}
        manual = sum(one.by_hand[id].points for id in ids if id in one.by_hand)
        total = sum(value for value in points.values() if value is not None)
        waiting = "; ".join(f"{id}: {why}" for id, why in one.waiting(assignment).items())
        numbers = [*points.values(), total - manual, manual, total, assignment.points]
        rows.append([one.student, assignment.name, *map(_number, numbers), waiting])
    return table(rows)


def needs_a_person(assignment: Assignment, results: Iterable[Result]) -> str:
    """Whom and what a person has to look at, and why."""
    rows = [["student", "exercise", "why", "file"]]
    rows += [
        [one.student, id, why, one.submission.source]
        for one in results
        for id, why in one.waiting(assignment).items()
    ]
    return table(rows)


def table(rows: Iterable[Iterable[str]]) -> str:
    """Rows as CSV; no cell of it is a formula to a spreadsheet."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([map(_harmless, row) for row in rows])
    return text.getvalue()


def _harmless(cell: str) -> str:
    return f"'{cell}" if cell.startswith(FORMULA) else cell


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


# ---- what a person gives -------------------------------------------------------------------------


def read_manual(path: Path, assignment: Assignment) -> dict[tuple[str, str], ByHand]:
    """The marks that a person has typed in; BookError names the line of one that cannot be."""
    most = {task.id: task.points for task in assignment.tasks}
    found = {}
    for line, row in _rows(path):
        typed = (row.get("points") or "").strip().replace(",", ".")
        if not typed:
            continue
        id = row["exercise"]
        try:
            points = float(typed)
        except ValueError:
            points = math.nan
        if id not in most or not 0 <= points <= most[id]:
            wanted = f"a number from 0 to {most[id]}" if id in most else f"one of {', '.join(most)}"
            what = typed if id in most else id
            raise BookError(f"{path}, line {line}: {what!r} should be {wanted}")
        found[row["student"], id] = ByHand(points, row.get("comment") or "")
    return found


def write_manual(path: Path, assignment: Assignment, results: Iterable[Result]) -> None:
    """Add a row for whatever waits for a person now; rows that are there stay as they are."""
    rows = [{name: row.get(name) or "" for name in MANUAL} for _, row in _rows(path)]
    known = {(row["student"], row["exercise"]) for row in rows}
    for one in results:
        for id, why in one.waiting(assignment).items():
            student = _harmless(one.student)
            if not {(one.student, id), (student, id)} & known:
                rows.append({"student": student, "exercise": id, "why": why})
    lines = [MANUAL, *([row.get(name, "") for name in MANUAL] for row in rows)]
    write_whole(path, table(lines))


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = [(reader.line_num, _named(row)) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BookError(f"{path} cannot be read: {error}") from None
    if missing := [name for name in MANUAL[:3] if rows and name not in rows[0][1]]:
        raise BookError(f"{path} has no column {', '.join(missing)}")
    return rows


def _named(row: dict[str, str]) -> dict[str, str]:
    """A row with the student's name as it is, not as it is kept from being a formula."""
    name = row.get("student") or ""
    plain = name[1:] if name.startswith("'") and name[1:].startswith(FORMULA) else name
    return row | {"student": plain}

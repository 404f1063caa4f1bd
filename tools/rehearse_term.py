"""Rehearse a term: assignments out of three chapters, sixty submissions, marked twice.

    .venv/bin/python tools/rehearse_term.py FOLDER [--submissions 20] [--workers 2]

The submissions are generated: right ones, blank ones, one for each catalogued wrong answer, and
hostile ones. Each comes with the mark that it has earned, which is compared with the gradebook that
`python -m ddpm_lite book grade` wrote, as read back with the csv module. FOLDER keeps everything,
so that the pages can be looked at.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from ddpm_lite.course.answers import answer_source
from ddpm_lite.course.assignment import Assignment, answer_name, grade_id
from ddpm_lite.exercises import Exercise

TERM = {
    "ps1": ["3.1", "3.2", "3.4", "3.5", "3.7"],
    "ps2": ["4.1", "4.2", "4.5", "4.6", "4.8"],
    "ps3": ["9.1", "9.3", "9.4", "9.6", "9.7"],
}

# What a hostile cell does before, or in the place of, its answer. It may not earn a point.
HOSTILE = {
    "forks": "import os\nwhile True:\n    os.fork()",
    "prints-for-ever": "while True:\n    print('x' * 10**6)",
    "eats-memory": "hoard = []\nwhile True:\n    hoard.append(bytearray(10**8))",
    "exits": "import os\nos._exit(0)",
    "kills": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nos.kill(0, signal.SIGKILL)",
    "swallows": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "patches": "import numpy, torch\nnumpy.allclose = torch.allclose = lambda *a, **k: True",
    "reads-solutions": "from ddpm_lite.exercises import ch03, ch04, ch09",
}


@dataclass
class Expected:
    """What a generated submission has earned: points by exercise, and the mistakes it shows."""

    points: dict[str, int] = field(default_factory=dict)
    mistakes: dict[str, str] = field(default_factory=dict)


def right(exercise: Exercise) -> str:
    """The reference as the text of an answer cell or of an answer in words."""
    if exercise.kind == "explain":
        return "Because the steps draw their noises afresh."
    return answer_source(exercise, exercise.reference)


def submissions(assignment: Assignment, count: int) -> dict[str, tuple[dict[str, str], Expected]]:
    """Student -> (exercise -> answer, what it has earned); `count` of them, the same each time."""
    marked = [t for t in assignment.tasks if assignment.exercise(t.id).kind != "explain"]
    full = {task.id: right(assignment.exercise(task.id)) for task in assignment.tasks}
    everything = {task.id: task.points for task in marked}
    nothing = dict.fromkeys(everything, 0)
    made = {
        "right": (full, Expected(everything)),
        "blank": ({}, Expected(nothing)),
    }
    for name, code in HOSTILE.items():
        answers = full | {marked[0].id: code}
        made[f"hostile-{name}"] = (answers, Expected(everything | {marked[0].id: 0}))
    known = [[(task.id, name) for name in assignment.exercise(task.id).wrong] for task in marked]
    in_turn = [pair for row in itertools.zip_longest(*known) for pair in row if pair]
    for id, name in in_turn:
        exercise = assignment.exercise(id)
        answers = full | {id: answer_source(exercise, exercise.wrong[name][0])}
        made[f"wrong-{id}-{name}"] = (answers, Expected(everything | {id: 0}, {id: name}))
    return dict(itertools.islice(made.items(), count))


def write(assignment: Assignment, blank: Path, answers: dict[str, str], target: Path) -> None:
    """A student's notebook: the plain one as handed out, with these answers in their cells."""
    notebook = json.loads(blank.read_text(encoding="utf-8"))
    cells = {c["metadata"].get("nbgrader", {}).get("grade_id"): c for c in notebook["cells"]}
    for id, answer in answers.items():
        cells[grade_id("answer", id)]["source"] = answer
        assert assignment.exercise(id).kind == "explain" or answer_name(assignment.exercise(id))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(notebook), encoding="utf-8")


def book(*words: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "ddpm_lite", "book", *map(str, words)], check=True)


def rehearse(folder: Path, count: int, workers: int) -> list[str]:
    """Hand out, hand in, mark twice; the differences between what was earned and what was given."""
    expected: dict[tuple[str, str], Expected] = {}
    for name, exercises in TERM.items():
        book("assign", name, "--exercises", *exercises, "--out", folder)
        assignment = Assignment.read(folder / "private" / f"{name}.json")
        for student, (answers, earned) in submissions(assignment, count).items():
            target = folder / "submitted" / student / name / f"{name}.ipynb"
            write(assignment, folder / "plain" / name / f"{name}.ipynb", answers, target)
            expected[name, student] = earned
    books = []
    for again in ([], ["--force"]):
        words = ["--out", folder / "graded", "--workers", workers, *again]
        book("grade", folder / "submitted", *words)
        books.append({n: (folder / "graded" / n / "gradebook.csv").read_bytes() for n in TERM})
    faults = [] if books[0] == books[1] else ["marked again, the gradebooks differ"]
    return faults + [line for name in TERM for line in compare(folder, name, expected)]


def compare(folder: Path, name: str, expected: dict[tuple[str, str], Expected]) -> list[str]:
    """One gradebook, read back, against what its submissions have earned."""
    with (folder / "graded" / name / "gradebook.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    mine = {student: earned for (of, student), earned in expected.items() if of == name}
    faults = [f"{name}: no row for {student}" for student in mine.keys() - rows.keys()]
    for student in mine.keys() & rows.keys():
        for id, points in mine[student].points.items():
            given = float(rows[student][id] or 0)
            if given != points:
                faults.append(f"{name}, {student}: exercise {id} has {given:g}, earned {points}")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a new folder for the course")
    parser.add_argument("--submissions", type=int, default=20, help="for each of the assignments")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    if given.folder.exists():
        parser.error(f"{given.folder} is there already; name a new folder")
    faults = rehearse(given.folder, given.submissions, given.workers)
    print("\n".join(faults) or f"{len(TERM) * given.submissions} marks are as earned, twice")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())

"""`book assign`: a course's folder with one more assignment in it.

What is written under `private/`, `source/` and `instructor/` holds solutions, or leads to them, and
stays with the instructor; `plain/` is for students. `nbgrader generate_assignment` makes its own
release out of `source/`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from ddpm_lite.book import BookError
from ddpm_lite.book.files import write_whole
from ddpm_lite.book.manifest import Book, load
from ddpm_lite.course import notebooks
from ddpm_lite.course.assignment import Assignment, Task, default_seed
from ddpm_lite.course.statements import statement
from ddpm_lite.exercises.exercise import Exercise
from ddpm_lite.exercises.policy import check_rule

CONFIG = '''\
"""nbgrader's settings for this course; yours to change, `book assign` never writes it again."""

import os

c = get_config()  # noqa: F821
here = os.path.dirname(os.path.abspath(__file__))

c.CourseDirectory.course_id = "ddpm"
c.CourseDirectory.root = here
# A notebook's paired script holds its solutions: only notebooks leave this folder.
c.CourseDirectory.ignore = [
    ".ipynb_checkpoints", "*.pyc", "__pycache__", "*.py", ".DS_Store", "private", "feedback",
]
c.ClearSolutions.code_stub = {"python": 'raise NotImplementedError("your turn")'}
c.ClearSolutions.text_stub = "*Your answer, in place of this line.*"
c.ExecutePreprocessor.timeout = 30  # seconds for a cell; each takes a few at most
c.ExportApp.plugin_class = "nbgrader.plugins.export.CsvExportPlugin"

# Where the locked test cells find their hidden half; it never reaches students.
private = os.path.join(here, "private")
os.environ["PYTHONPATH"] = os.pathsep.join(
    [private, *filter(None, [os.environ.get("PYTHONPATH")])]
)
'''

HIDDEN = '''\
"""The hidden tests of {name}, which nbgrader's test cells import. Not to be handed out."""

from pathlib import Path

from ddpm_lite.course.hidden import Hidden

mark = Hidden(Path(__file__).with_name("{name}.json")).mark
'''


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add("name", help="of the assignment: ps1")
    add("--exercises", nargs="+", default=[], metavar="ID", help="3.1 3.2 T.4")
    add("--chapter", nargs="+", default=[], metavar="CHAPTER", help="all exercises of chapters")
    add("--all", action="store_true", help="all exercises of the book")
    add("--points", nargs="+", default=[], metavar="ID=N", help="other points than the book's")
    add("--hints", default="on", help="on, off, or the date from which on: 2026-12-15 (on)")
    add("--solutions", default="off", help="the same for solution() (off)")
    add("--seed", type=int, help="of the hidden inputs; from the name, if not given")
    add("--instructor", action="store_true", help="also an edition with solutions and notes")
    add("--out", type=Path, required=True, metavar="FOLDER", help="the course's folder")
    add("--force", action="store_true", help="replace an assignment that is another one")


def run(given: argparse.Namespace) -> int:
    """Write the assignment, and say what is where."""
    book = load()
    assignment = chosen(book, given)
    written = write(book, assignment, given.out, given.force, given.instructor)
    counted = f"{len(assignment.tasks)} exercises, {assignment.points} points"
    print(f"{given.out}: assignment {assignment.name}, {counted}")
    for path, what in written.items():
        print(f"    {path.relative_to(given.out)}  {what}")
    return 0


def chosen(book: Book, given: argparse.Namespace) -> Assignment:
    """The assignment that the options describe, in the order in which they name it."""
    for name in ("hints", "solutions"):
        try:
            check_rule(f"--{name}", getattr(given, name))
        except ValueError as error:
            raise BookError(str(error)) from None
    exercises = _exercises(book, given)
    points = {exercise.id: exercise.points for exercise in exercises}
    points |= _other_points(given.points, points)
    return Assignment(
        name=given.name,
        tasks=tuple(Task(id, number) for id, number in points.items()),
        seed=default_seed(given.name) if given.seed is None else given.seed,
        hints=given.hints,
        solutions=given.solutions,
    )


def _exercises(book: Book, given: argparse.Namespace) -> list[Exercise]:
    known = {e.id: e for chapter in book.chapters for e in chapter.exercise_data}
    if unknown := [id for id in given.exercises if id not in known]:
        raise BookError(f"there is no exercise {', '.join(unknown)}; there are {', '.join(known)}")
    if twice := sorted({id for id in given.exercises if given.exercises.count(id) > 1}):
        raise BookError(f"--exercises names {', '.join(twice)} twice")
    chapters = book.chapters if given.all else [book.chapter(name) for name in given.chapter]
    found = {id: known[id] for id in given.exercises}
    found |= {e.id: e for chapter in chapters for e in chapter.exercise_data if e.id not in found}
    if not found:
        raise BookError("an assignment wants exercises: --exercises 3.1 3.2, --chapter 4 or --all")
    return list(found.values())


def _other_points(words: Iterable[str], known: dict[str, int]) -> dict[str, int]:
    found = {}
    for word in words:
        id, _, number = word.partition("=")
        if id not in known or not number.isdecimal():
            raise BookError(
                f"--points {word}: write an exercise of the assignment and a whole number, "
                f"such as {next(iter(known))}=4"
            )
        found[id] = int(number)
    return found


def write(
    book: Book, assignment: Assignment, course: Path, force: bool, instructor: bool
) -> dict[Path, str]:
    """Write all files of an assignment; each with what it is for."""
    name = assignment.name
    record = course / "private" / f"{name}.json"
    _refuse_another(record, assignment, force)
    statements = [statement(book, assignment.exercise(task.id)) for task in assignment.tasks]
    plain = notebooks.notebook(assignment, statements, "plain")
    files = {
        course / "source" / name / f"{name}.ipynb": (
            notebooks.notebook(assignment, statements, "source"),
            f"for nbgrader generate_assignment {name}; has the solutions",
        ),
        course / "plain" / name / f"{name}.ipynb": (plain, "for students, without nbgrader"),
        course / "plain" / name / f"{name}.py": (notebooks.script(plain), "the same as a script"),
        course / "private" / f"ddpm_hidden_{name}.py": (
            HIDDEN.format(name=name),
            "hidden tests; never hand out",
        ),
    }
    if instructor:
        files[course / "instructor" / name / f"{name}.ipynb"] = (
            notebooks.notebook(assignment, statements, "instructor"),
            "with solutions and marking notes",
        )
    if not (course / "nbgrader_config.py").exists():
        files[course / "nbgrader_config.py"] = (CONFIG, "settings of nbgrader; yours to change")
    for path, (content, _) in files.items():
        write_whole(path, content)
    assignment.write(record)
    return {path: what for path, (_, what) in files.items()} | {
        record: "what marking needs; never hand out"
    }


def _refuse_another(record: Path, assignment: Assignment, force: bool) -> None:
    """Students may have an assignment of this name already, and marking must stay with it."""
    if record.exists() and not force and Assignment.read(record) != assignment:
        raise BookError(
            f"{record} is another assignment of that name; choose another name, or --force if "
            "nobody has been given it"
        )

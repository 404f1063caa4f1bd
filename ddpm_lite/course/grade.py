"""`book grade`: submissions in, a gradebook, feedback and a report on misconceptions out.

No submission stops the run. What has been marked is kept, so that marking again costs only what has
changed since, and an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ddpm_lite.book import BookError
from ddpm_lite.book.files import write_whole
from ddpm_lite.course import feedback, gradebook, misconceptions, submissions
from ddpm_lite.course.assignment import Assignment
from ddpm_lite.course.gradebook import Result
from ddpm_lite.course.marking import Mark, Marker
from ddpm_lite.course.sandbox import LIBRARY, Sandbox
from ddpm_lite.course.submissions import Submission

Marks = tuple[Mark, ...]
Kept = dict[str, Any]  # what marks.json holds of one student


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add("submitted", type=Path, help="uploads of an LMS, or nbgrader's folder of that name")
    add("--out", type=Path, required=True, metavar="FOLDER", help="course/graded")
    add("--assignment", metavar="NAME", help="mark this one only: ps1")
    add(
        "--course", type=Path, metavar="FOLDER", help="the folder that holds private/, if not above"
    )
    add("--require-sandbox", action="store_true", help="refuse to mark without bubblewrap")
    add("--workers", type=int, default=1, metavar="N", help="submissions at a time (1)")
    add("--force", action="store_true", help="mark again also what has not changed")


def run(given: argparse.Namespace) -> int:
    """Mark everything that is there; 0 also if some of it needs a person."""
    if given.workers < 1:
        raise BookError(f"--workers {given.workers}: at least 1")
    if not given.submitted.is_dir():
        raise BookError(f"{given.submitted} is not a folder of submissions")
    assignments = records(given.course or _course_above(given.submitted), given.assignment)
    sandbox = Sandbox.find(given.require_sandbox)
    print(f"Protection: {sandbox.protection}.")
    found = submissions.find(given.submitted, assignments)
    unclear = [s for s in found if s.assignment not in assignments]
    if not found:
        raise BookError(f"{given.submitted} holds no submissions: no .ipynb and no .zip")
    for name, assignment in assignments.items():
        mine = [s for s in found if s.assignment == name]
        if mine:
            _mark_all(assignment, mine, sandbox, given)
    for submission in unclear:
        print(f"needs a person: {submission.source}, because {submission.person['']}")
    return 0


def records(course: Path, name: str | None) -> dict[str, Assignment]:
    """The assignments of a course, or the one that was asked for."""
    paths = sorted((course / "private").glob("*.json"))
    found = {path.stem: Assignment.read(path) for path in paths}
    if name is not None and name not in found:
        raise BookError(f"{course} has no assignment {name!r}; there are {', '.join(found) or '-'}")
    if not found:
        raise BookError(f"{course / 'private'} holds no assignment; `book assign` makes one")
    return {name: found[name]} if name else found


def _course_above(folder: Path) -> Path:
    for above in (folder.resolve(), *folder.resolve().parents):
        if (above / "private").is_dir():
            return above
    raise BookError(f"no folder above {folder} holds private/: name the course with --course")


# ---- one assignment ------------------------------------------------------------------------------


def _mark_all(
    assignment: Assignment, found: list[Submission], sandbox: Sandbox, given: argparse.Namespace
) -> None:
    folder = given.out / assignment.name
    manual = gradebook.read_manual(folder / "manual.csv", assignment)
    kept = {} if given.force else _kept(folder / "marks.json")
    marks = _marks(assignment, found, sandbox, kept, given.workers, folder / "marks.json")
    results = [gradebook.result(s, marks[s.student], manual) for s in found]
    write(assignment, results, folder)
    gradebook.write_manual(folder / "manual.csv", assignment, results)
    waiting = [one for one in results if one.waiting(assignment)]
    print(f"{assignment.name}: {len(results)} submissions, {folder}/gradebook.csv")
    for one in waiting:
        for id, why in one.submission.person.items():
            print(f"    needs a person: {one.student}{f', {id}' if id else ''}, because {why}")
    if waiting:
        print(f"    {len(waiting)} with something for a person to mark: {folder}/manual.csv")


def write(assignment: Assignment, results: list[Result], folder: Path) -> None:
    """All that follows from the marks."""
    found = misconceptions.summaries(assignment, results)
    image = misconceptions.picture(found)
    files: dict[str, str | bytes] = {
        "gradebook.csv": gradebook.gradebook(assignment, results),
        "needs_a_person.csv": gradebook.needs_a_person(assignment, results),
        "misconceptions.csv": misconceptions.as_csv(found),
        "misconceptions.png": image,
        "misconceptions.html": misconceptions.report(assignment, results, image),
    }
    files |= {
        f"feedback/{feedback.file_name(one.student)}": feedback.feedback(assignment, one)
        for one in results
    }
    for name, content in files.items():
        write_whole(folder / name, content)


def _marks(
    assignment: Assignment,
    found: Iterable[Submission],
    sandbox: Sandbox,
    kept: Mapping[str, Kept],
    workers: int,
    path: Path,
) -> dict[str, Marks]:
    """The marks of every submission; those that are kept are not made again."""
    prints = {s.student: _fingerprint(assignment, s) for s in found}
    done: dict[str, Marks] = {}
    waiting = []
    for submission in found:
        before = kept.get(submission.student, {})
        if "" in submission.person:
            done[submission.student] = ()
        elif before.get("fingerprint") == prints[submission.student]:
            done[submission.student] = tuple(_mark(one) for one in before["marks"])
        else:
            waiting.append(submission)
    if not waiting:
        return done
    with Marker(assignment, sandbox) as marker, ThreadPoolExecutor(workers) as pool:
        jobs = {pool.submit(_one, marker, submission): submission for submission in waiting}
        try:
            for job in tqdm(as_completed(jobs), assignment.name, len(jobs), unit="submission"):
                submission = jobs[job]
                done[submission.student] = _kept_from_falling(job, submission, assignment)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            message = f"interrupted: {len(done)} are marked; the same command goes on from there"
            raise BookError(message) from None
        finally:
            _keep(path, done, prints)
    return done


def _one(marker: Marker, submission: Submission) -> Marks:
    """A submission's marks; what is not clear waits for a person, what is empty for nobody."""

    def settled(mark: Mark) -> Mark:
        if mark.id in submission.person:
            return Mark(mark.id, None, mark.out_of, "person", None, ("A person looks at this.",))
        if mark.status == "person" and not submission.texts.get(mark.id, "").strip():
            return Mark(mark.id, 0, mark.out_of, "blank", None, ("Not attempted.",))
        return mark

    return tuple(map(settled, marker.mark(submission.answers)))


def _kept_from_falling(job: Future[Marks], submission: Submission, assignment: Assignment) -> Marks:
    """A job's marks; a fault of the marker's own is shown, and leaves all to a person."""
    error = job.exception()
    if error is None:
        return job.result()
    if not isinstance(error, Exception):
        raise error
    said = f"marking failed: {type(error).__name__}: {error}"
    print(f"{submission.student}: {said}", file=sys.stderr)
    return tuple(
        Mark(task.id, None, task.points, "person", None, ("A person looks at this.",))
        for task in assignment.tasks
    )


# ---- what is kept --------------------------------------------------------------------------------


def _fingerprint(assignment: Assignment, submission: Submission) -> str:
    """Of everything that the marks follow from: answers, assignment, exercises, and this code."""
    texts = {id: bool(text.strip()) for id, text in submission.texts.items()}
    content = [
        asdict(assignment),
        dict(submission.answers),
        texts,
        dict(submission.person),
        _code(),
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@cache
def _code() -> str:
    paths = [*LIBRARY.glob("exercises/*.py"), *LIBRARY.glob("course/*.py")]
    content = b"\0".join(path.read_bytes() for path in sorted(paths))
    return hashlib.sha256(content).hexdigest()


def _kept(path: Path) -> dict[str, Kept]:
    """What an earlier run has marked; nothing if the file is not one of ours."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return {name: one for name, one in raw.items() if {"fingerprint", "marks"} <= one.keys()}
    except (OSError, ValueError, AttributeError):
        return {}


def _keep(path: Path, done: Mapping[str, Marks], prints: Mapping[str, str]) -> None:
    content = {
        student: {"fingerprint": prints[student], "marks": [asdict(mark) for mark in marks]}
        for student, marks in sorted(done.items())
    }
    write_whole(path, json.dumps(content, indent=1) + "\n")


def _mark(raw: Mapping[str, Any]) -> Mark:
    return Mark(**{**raw, "lines": tuple(raw["lines"])})

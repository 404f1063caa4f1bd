"""What came back: a folder of uploads, or nbgrader's tree, read as text and nothing else.

A notebook is read as JSON. Nothing in it is executed here, shown as HTML, or unpickled. Whatever
is not clear is not guessed: the submission, or one exercise of it, is left to a person, who is told
why.
"""

from __future__ import annotations

import ast
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ddpm_lite.book import BookError
from ddpm_lite.course.assignment import Assignment, answer_name, grade_id
from ddpm_lite.course.notebooks import YOUR_WORDS

LARGEST = 20 << 20  # bytes of a notebook, packed or not
MOST_FILES = 5000  # in one archive
LMS_FOLDER = re.compile(r"(_\d+)?_assignsubmission_(file|onlinetext)_?$")  # as Moodle names them
CONFLICT = re.compile(r"^(<{7}|={7}|>{7})( |$)", re.MULTILINE)


@dataclass(frozen=True)
class Submission:
    """One student's answers to one assignment.

    ``answers`` has the text of each answer's cell, ``texts`` each answer in words. ``person`` says
    why a person must look: at an exercise, or with the key "" at the whole. ``notes`` is for the
    instructor to know.
    """

    student: str
    assignment: str
    source: str
    answers: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    person: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Upload:
    """A notebook as it was found: whose, where, and its bytes, or why there are none."""

    student: str
    place: str
    content: bytes = b""
    fault: str = ""


class Unreadable(Exception):
    """Why a notebook cannot be read, in words."""


def find(folder: Path, assignments: Mapping[str, Assignment]) -> list[Submission]:
    """All submissions in a folder, one for each student and assignment, in the order of names."""
    if not folder.is_dir():
        raise BookError(f"{folder} is not a folder of submissions")
    found: dict[tuple[str, str], list[Submission]] = {}
    for upload in uploads(folder):
        submission = _read(upload, assignments)
        found.setdefault((submission.student, submission.assignment), []).append(submission)
    return [_one(same) for _, same in sorted(found.items())]


# ---- whose file is it? ---------------------------------------------------------------------------


def uploads(folder: Path) -> Iterator[Upload]:
    """Every notebook in a folder and in the archives there; a student with none is named too."""
    empty = {path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."}
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        hidden = any(part.startswith((".", "__MACOSX")) for part in place.parts)
        if hidden or path.is_symlink() or not path.is_file():
            continue
        if path.suffix == ".zip":
            for upload in _unpacked(path, place):
                empty.discard(place.parts[0])
                yield upload
        elif path.suffix == ".ipynb":
            empty.discard(place.parts[0])
            yield _upload(_student(place.parts), str(place), path.stat().st_size, path.read_bytes)
    for name in sorted(empty):
        yield Upload(_tidy(name), name, fault="there is no notebook in the folder")


def _student(parts: tuple[str, ...]) -> str:
    """The outermost folder, or the name of a file that lies loose."""
    return _tidy(parts[0] if len(parts) > 1 else PurePosixPath(parts[0]).stem)


def _tidy(name: str) -> str:
    return LMS_FOLDER.sub("", name).strip() or name


def _upload(student: str, place: str, size: int, read: Any) -> Upload:
    if size > LARGEST:
        return Upload(student, place, fault=f"the file has {size >> 20} MB, at most 20 are read")
    return Upload(student, place, read())


def _unpacked(path: Path, place: Path) -> Iterator[Upload]:
    """The notebooks in an archive: a student's own, or everybody's in a folder each."""
    own = _student(place.parts)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [e for e in archive.infolist() if e.filename.endswith(".ipynb")]
            entries = [e for e in entries if "__MACOSX" not in e.filename]
            if len(archive.infolist()) > MOST_FILES:
                yield Upload(own, str(place), fault=f"the archive holds over {MOST_FILES} files")
                return
            inside = [PurePosixPath(entry.filename).parts for entry in entries]
            everybodys = len(place.parts) == 1 and len({p[0] for p in inside if len(p) > 1}) > 1
            for entry, parts in zip(entries, inside, strict=True):
                student = _student(parts) if everybodys else own
                where = f"{place}/{entry.filename}"
                # a size that lies is caught by zipfile, which checks what it unpacks
                yield _upload(student, where, entry.file_size, lambda e=entry: archive.read(e))
            if not entries:
                yield Upload(own, str(place), fault="there is no notebook in the archive")
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, OSError) as error:
        yield Upload(own, str(place), fault=f"the archive cannot be opened: {error}")


# ---- what is in it? ------------------------------------------------------------------------------


def _read(upload: Upload, assignments: Mapping[str, Assignment]) -> Submission:
    """An upload as a submission; a fault becomes a reason for a person."""
    assignment = _guessed(upload, assignments)
    try:
        if upload.fault:
            raise Unreadable(upload.fault)
        notebook = _notebook(upload.content)
        assignment = _assignment(upload, notebook, assignments)
        cells = _cells(notebook)
    except Unreadable as reason:
        student = _without(upload.student, assignment)
        return Submission(student, assignment, upload.place, person={"": str(reason)})
    return _sorted_out(upload, assignments[assignment], cells)


def _guessed(upload: Upload, assignments: Mapping[str, Assignment]) -> str:
    """By the names of folders and files; "?" if they do not say."""
    if len(assignments) == 1:
        return next(iter(assignments))
    words = re.split(r"[^A-Za-z0-9]+", upload.place)
    named = [name for name in assignments if name in words]
    return named[0] if len(named) == 1 else "?"


def _without(student: str, assignment: str) -> str:
    """ "ada_ps1" is Ada's: the assignment's name at an end of a file's name is not hers."""
    name = re.escape(assignment)
    return re.sub(rf"^{name}[-_. ]+|[-_. ]+{name}$", "", student) or student


def _notebook(content: bytes) -> dict[str, Any]:
    if not content.strip():
        raise Unreadable("the file is empty")
    try:
        notebook = json.loads(content)
    except (ValueError, RecursionError):
        if CONFLICT.search(content.decode("utf-8", errors="replace")):
            raise Unreadable("it holds the marks of a merge that was not finished") from None
        raise Unreadable("it is not a notebook: not valid JSON") from None
    if not isinstance(notebook, dict) or not {"cells", "worksheets"} & notebook.keys():
        raise Unreadable("it is not a notebook: it has no cells")
    return notebook


def _assignment(
    upload: Upload, notebook: dict[str, Any], assignments: Mapping[str, Assignment]
) -> str:
    metadata = notebook.get("metadata")
    mine = metadata.get("ddpm_lite") if isinstance(metadata, dict) else None
    name = mine.get("assignment") if isinstance(mine, dict) else None
    if not isinstance(name, str):
        name = _guessed(upload, assignments)
    if name not in assignments:
        known = ", ".join(assignments)
        raise Unreadable(f"it is of assignment {name!r:.40}; marked are {known}")
    return name


@dataclass(frozen=True)
class Cell:
    """A cell, as far as it matters here."""

    kind: str
    name: str  # nbgrader's grade_id, or ""
    source: str


def _cells(notebook: dict[str, Any]) -> list[Cell]:
    """The cells of a notebook of version 4 or 3; what is none is passed over."""
    raw = notebook.get("cells")
    if raw is None:
        sheets = notebook.get("worksheets")
        sheet = sheets[0] if isinstance(sheets, list) and sheets else None
        raw = sheet.get("cells") if isinstance(sheet, dict) else None
    if not isinstance(raw, list):
        raise Unreadable("it is not a notebook: its cells are no list")
    return [_cell(one) for one in raw if isinstance(one, dict)]


def _cell(raw: dict[str, Any]) -> Cell:
    source = raw.get("source", raw.get("input", ""))
    if isinstance(source, list):
        source = "".join(part for part in source if isinstance(part, str))
    metadata = raw.get("metadata")
    about = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    name = about.get("grade_id") if isinstance(about, dict) else ""
    return Cell(
        str(raw.get("cell_type")),
        name if isinstance(name, str) else "",
        source if isinstance(source, str) else "",
    )


# ---- which cell answers which exercise? ----------------------------------------------------------


def _sorted_out(upload: Upload, assignment: Assignment, cells: list[Cell]) -> Submission:
    answers: dict[str, str] = {}
    texts: dict[str, str] = {}
    person: dict[str, str] = {}
    notes: list[str] = []
    for task in assignment.tasks:
        exercise = assignment.exercise(task.id)
        named = [cell for cell in cells if cell.name == grade_id("answer", task.id)]
        if not named and exercise.kind != "explain":
            named = [cell for cell in cells if _defines(cell, answer_name(exercise))]
            if named:
                notes.append(f"{task.id}: its answer stands in a cell of another name")
        sources = list(dict.fromkeys(cell.source for cell in named))
        if not sources:
            person[task.id] = "its answer's cell has been deleted"
        elif len(sources) > 1:
            person[task.id] = (
                f"its answer's cell is there {len(sources)} times, with other contents"
            )
        elif CONFLICT.search(sources[0]):
            person[task.id] = "its answer holds the marks of a merge that was not finished"
        elif exercise.kind == "explain":
            texts[task.id] = "" if sources[0].strip() == YOUR_WORDS else sources[0]
        else:
            answers[task.id] = sources[0]
        notes += _about_the_test(task.id, cells) if exercise.kind != "explain" else []
    if len(person) == len(assignment.tasks):
        person = {"": "it holds no cell of this assignment"}
    student = _without(upload.student, assignment.name)
    return Submission(student, assignment.name, upload.place, answers, texts, person, tuple(notes))


def _defines(cell: Cell, name: str) -> bool:
    """Whether a code cell defines a name at its top level."""
    if cell.kind != "code" or name not in cell.source:
        return False
    try:
        body = ast.parse(cell.source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    targets = [t for s in body if isinstance(s, ast.Assign) for t in s.targets]
    return any(isinstance(s, ast.FunctionDef) and s.name == name for s in body) or any(
        isinstance(target, ast.Name) and target.id == name for target in targets
    )


def _about_the_test(id: str, cells: list[Cell]) -> list[str]:
    """Test cells are never run, so nothing done to them counts; the instructor may wish to know."""
    tests = [cell for cell in cells if cell.name == grade_id("test", id)]
    if not tests:
        return [f"{id}: its test cell has been deleted"]
    if len(tests) > 1:
        return [f"{id}: its test cell has been doubled"]
    if f'check("{id}"' not in tests[0].source:
        return [f"{id}: its test cell has been changed"]
    return []


def _one(same: list[Submission]) -> Submission:
    """One submission of several by one student: any if they agree, else a person chooses."""
    first = same[0]
    contents = {json.dumps([dict(s.answers), dict(s.texts), dict(s.person)]) for s in same}
    if len(contents) == 1:
        return first
    places = ", ".join(submission.source for submission in same)
    why = f"there are {len(same)} submissions that differ: {places}"
    return Submission(first.student, first.assignment, places, person={"": why})

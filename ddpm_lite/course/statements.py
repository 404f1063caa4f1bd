"""An exercise as the chapter states it: the text, the stub, and the equations that it cites."""

from __future__ import annotations

import ast
import functools
import itertools
import re
from dataclasses import dataclass

from ddpm_lite.book import BookError, equations, pairs
from ddpm_lite.book.manifest import Book, Chapter
from ddpm_lite.course.assignment import answer_name
from ddpm_lite.exercises.exercise import Exercise

# What a statement says of the reader's own file, which an assignment's answer cell replaces.
OWN_FILE = (
    (re.compile(r"Open `my_ddpm\.py` beside this notebook and fill in"), "Write"),
    (
        re.compile(r"In (?:the |your )?(?:file )?`my_ddpm\.py`(?: beside this notebook)?, write"),
        "Write",
    ),
    (re.compile(r"\s*This file is yours: it grows with\s+the chapters[^.]*\."), ""),
)


@dataclass(frozen=True)
class Statement:
    """What a student needs to see of an exercise."""

    exercise: Exercise
    text: str  # Markdown, without the heading
    stub: str  # the function to fill in, or a line that sets the number to None; "" for explain
    cited: tuple[tuple[str, str], ...]  # the equations that the text cites: (number, LaTeX)


def statement(book: Book, exercise: Exercise) -> Statement:
    """Read one exercise out of its chapter."""
    chapter = next((c for c in book.chapters if exercise.id in c.exercises), None)
    if chapter is None:
        raise BookError(f"no chapter in book.toml holds exercise {exercise.id}")
    source, after = _cell_of(chapter, exercise)
    text = source[source.index(exercise.heading) + len(exercise.heading) :].strip()
    stub = _stub(chapter, exercise, after)
    known = {e.number: e.latex for part in _readings(book) for e in part.numbered}
    numbers = dict.fromkeys(re.findall(r"\(((?:\d+|[A-Z])\.\d+)", text + stub))
    cited = tuple((number, known[number]) for number in numbers if number in known)
    return Statement(exercise, _alone(text, exercise), stub, cited)


def _cell_of(chapter: Chapter, exercise: Exercise) -> tuple[str, str]:
    """The text cell that states the exercise, and the code cell after it."""
    cells = _cells(chapter)
    for (kind, source), (_, after) in itertools.pairwise(cells):
        if kind == "markdown" and exercise.heading in source:
            return source, after
    raise BookError(f"{chapter.file}.py does not state exercise {exercise.id}")


@functools.cache
def _cells(chapter: Chapter) -> tuple[tuple[str, str], ...]:
    notebook = pairs.read_script(chapter.source)
    return tuple((cell.cell_type, cell.source) for cell in notebook.cells)


@functools.cache
def _readings(book: Book) -> tuple[equations.Reading, ...]:
    return tuple(map(equations.read, book.chapters))


def _alone(text: str, exercise: Exercise) -> str:
    """The text as it reads outside its chapter: no links to files, no file of the reader's own."""
    text = re.sub(r"\[([^\]]+)\]\([^)\s]*\.ipynb[^)\s]*\)", r"\1", text)
    for pattern, instead in OWN_FILE:
        text = pattern.sub(instead, text)
    return text.replace("`answer`", f"`{answer_name(exercise)}`")


def _stub(chapter: Chapter, exercise: Exercise, after: str) -> str:
    """What stands in the answer's cell before anybody has answered."""
    name = answer_name(exercise)
    if exercise.kind == "explain":
        return ""
    if exercise.kind == "number":
        return f"{name} = None  # your number\n"
    own_file = chapter.source.with_name("my_ddpm.py")
    for text in (after, own_file.read_text(encoding="utf-8") if own_file.is_file() else ""):
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return f"{ast.get_source_segment(text, node)}\n"
    raise BookError(f"neither {chapter.file}.py nor my_ddpm.py has a stub of {name}()")

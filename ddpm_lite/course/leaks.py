"""Is there a solution in what is handed out? Every byte of every file is searched.

`leaks(folder)` lists what was found: distinctive lines of the reference answers and of the wrong
ones, model answers, rubrics, and the name of the hidden tests. Archives are opened; the cells of
notebooks are read, and what JSON escapes elsewhere is looked for in its escaped form too. A number
is no text that could be told from others, and is not looked for.
"""

from __future__ import annotations

import functools
import io
import json
import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from ddpm_lite.course.answers import answer_source
from ddpm_lite.exercises.exercise import Exercise, all_exercises

HIDDEN = b"ddpm_hidden_"  # the module with the hidden tests of an assignment
SHORTEST = 24  # characters without spaces: a shorter line may stand in any program
ARCHIVES = (".zip", ".whl", ".npz")


def leaks(folder: Path, public: Iterable[Path] = ()) -> list[str]:
    """What of a solution is in a folder's files: "file: exercise 3.2: the text".

    What also stands in ``public`` files, such as the library's own, is nobody's secret.
    """
    known = b"\n".join(_squeezed(path.read_bytes()) for path in public)
    secrets = {text: id for text, id in _secrets().items() if text not in known}
    found = []
    for name, content in _files(folder):
        squeezed = _squeezed(content)
        found += [
            f"{name}: exercise {id}: {text.decode()}"
            for text, id in secrets.items()
            if any(form in squeezed for form in {text, _escaped(text)})
        ]
    return found


@functools.cache
def _secrets() -> dict[bytes, str]:
    """What may not be in a release, without its spaces -> the exercise that it belongs to."""
    found: dict[bytes, str] = {HIDDEN: "any"}
    for exercise in all_exercises():
        for line in _lines(exercise):
            text = _squeezed(line.encode())
            if len(text.decode()) >= SHORTEST:
                found.setdefault(text, exercise.id)
    return found


def _lines(exercise: Exercise) -> Iterator[str]:
    if exercise.kind == "explain":
        yield from re.split(r"(?<=[.!?])\s+|\n", exercise.reference)
        yield from exercise.rubric
        return
    if exercise.kind == "number":
        return
    for answer in [exercise.reference, *(answer for answer, _ in exercise.wrong.values())]:
        for line in answer_source(exercise, answer).splitlines():
            if not line.lstrip().startswith(("def ", "import ", "from ")):
                yield line


def _squeezed(content: bytes) -> bytes:
    """Without white space and without the quotes that may be of either kind."""
    return re.sub(rb"""[\s"']+""", b"", content)


def _escaped(text: bytes) -> bytes:
    return json.dumps(text.decode())[1:-1].encode()


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield from _opened(str(path.relative_to(folder)), path.read_bytes())


def _plain(name: str, content: bytes) -> bytes:
    """The text of a notebook's cells or of a script's comments, whose lines are else apart."""
    if name.endswith(".py"):
        return re.sub(rb"(?m)^ *# ?", b"", content)
    if not name.endswith(".ipynb"):
        return b""
    try:
        cells = json.loads(content)["cells"]
        return "\n".join("".join(cell["source"]) for cell in cells).encode()
    except (ValueError, KeyError, TypeError):
        return b""  # no notebook; its bytes are searched as they are


def _opened(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    """A file as it is, or if it is an archive, the files in it."""
    if not (name.endswith(ARCHIVES) and zipfile.is_zipfile(io.BytesIO(content))):
        yield name, content + _plain(name, content)
        return
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for inner in archive.namelist():
            yield from _opened(f"{name}/{inner}", archive.read(inner))

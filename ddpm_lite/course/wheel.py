"""`book student-wheel`: the library for students, with tables in the place of the solutions.

The wheel is built from a copy of the package in which every file of exercises is replaced by the
tables of its exercises, and in which marking and the press are left out. Nothing is fetched: the
backend is setuptools, which built what is installed here.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ddpm_lite.book import BookError
from ddpm_lite.book.files import write_whole
from ddpm_lite.book.manifest import Book, load
from ddpm_lite.course.tables import tables
from ddpm_lite.exercises.exercise import all_exercises

EPOCH = "315619200"  # 1980-01-02: what archives can hold, and the same for every build
CHAPTER = '''\
"""The exercises of this chapter, as tables: their solutions are not in this edition."""

from ddpm_lite.exercises.tables import read_chapter

EXERCISES = read_chapter("{chapter}")
'''


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--out", type=Path, default=Path("dist"), metavar="FOLDER", help="dist")
    parser.add_argument("--hints", choices=("on", "off"), default="on", help="off leaves them out")


def run(given: argparse.Namespace) -> int:
    """Build the wheel and say where it is."""
    path = build(load(), given.out, hints=given.hints == "on")
    print(f"{path}: for students, with `pip install {path.name}`; no solution is in it")
    return 0


def build(book: Book, out: Path, hints: bool = True) -> Path:
    """Build the wheel into a folder; the same bytes each time."""
    with tempfile.TemporaryDirectory(prefix="ddpm-lite-wheel-") as place:
        tree = Path(place) / "tree"
        _write_tree(book.root, tree, hints)
        made = _built(tree, Path(place) / "made")
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / made.name, made.read_bytes())
        return out / made.name


def _write_tree(root: Path, tree: Path, hints: bool) -> None:
    """The students' source tree: package, metadata, licences."""
    ignored = shutil.ignore_patterns("__pycache__", "book", "course", "ch??.py", "ch?.py")
    shutil.copytree(root / "ddpm_lite", tree / "ddpm_lite", ignore=ignored)
    for name in ("README.md", "LICENSE", "LICENSE-text"):
        shutil.copyfile(root / name, tree / name)
    exercises = tree / "ddpm_lite" / "exercises"
    for chapter in dict.fromkeys(exercise.chapter for exercise in all_exercises()):
        stem = f"ch{int(chapter):02d}" if chapter.isdecimal() else f"ch{chapter}"
        (exercises / f"{stem}.py").write_text(CHAPTER.format(chapter=chapter), encoding="utf-8")
    (exercises / "tables").mkdir()
    for exercise in all_exercises():
        for name, content in tables(exercise, hints).items():
            (exercises / "tables" / name).write_bytes(content)
    _edit(tree / "ddpm_lite" / "__init__.py", r'(__version__ = "[^"+]*)"', r'\1+student"')
    shutil.copyfile(root / "pyproject.toml", tree / "pyproject.toml")
    _edit(
        tree / "pyproject.toml",
        r'(?m)^"ddpm_lite\.book" = .*$',
        '"ddpm_lite.exercises" = ["tables/*"]',
    )


def _edit(path: Path, pattern: str, instead: str) -> None:
    text, count = re.subn(pattern, instead, path.read_text(encoding="utf-8"))
    if count != 1:
        raise BookError(f"{path.name} has {count} lines like {pattern}; one was expected")
    path.write_text(text, encoding="utf-8")


def _built(tree: Path, out: Path) -> Path:
    """Have setuptools make the wheel, in a process of its own since it changes the folder."""
    out.mkdir()
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tree,
        env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH},
        capture_output=True,
        text=True,
    )
    wheels = list(out.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        end = "\n".join(done.stderr.strip().splitlines()[-3:])
        raise BookError(f"setuptools did not make the wheel:\n{end}")
    return wheels[0]

"""`python -m ddpm_lite book …`: one function for each subcommand.

Modules are imported where they are used: opening the book needs no executor, pressing no server.
"""

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType

import ddpm_lite.book
from ddpm_lite.book import BookError
from ddpm_lite.book.manifest import Book, Chapter, load


def press(given: argparse.Namespace) -> int:
    """Execute the chapters whose code changed, and store their outputs if every cell is green."""
    from ddpm_lite.book import execute

    failed = 0
    for chapter in _chosen(load(), given.chapters):
        try:
            done = execute.press(chapter, always=given.all)
        except BookError as error:
            failed += 1
            print(f"✗ {chapter.file}: {error}", file=sys.stderr)
        else:
            what = (
                f"executed in {done.seconds:.0f} s"
                if done.seconds
                else "code unchanged, nothing run"
            )
            print(
                f"✓ {chapter.file}: {what}{'' if done.changed else ', file unchanged'}", flush=True
            )
    return int(failed > 0)


def check(given: argparse.Namespace) -> int:
    """Check what needs no running: pairs, equations, claims, references, links, generated pages."""
    from ddpm_lite.book import (
        contents,
        equations,
        glossary,
        index,
        links,
        pairs,
        pitfalls,
        references,
    )

    book = load()
    book.check_files()
    readings = equations.read_book(book)
    reports = {
        chapter.file: pairs.problems(chapter.source, chapter.notebook) for chapter in book.chapters
    }
    reports["equations"] = equations.problems(readings)
    reports["index"] = index.problems(readings, index.implementations(book))
    reports["links"] = links.problems(book)
    reports["glossary"] = glossary.problems(book)
    reports["pitfalls"] = pitfalls.problems(book)
    reports["references"] = references.problems(book)
    reports["generated pages"] = contents.problems(book)
    for what, found in reports.items():
        print(f"{'✗' if found else '✓'} {what}" + "".join(f"\n    {line}" for line in found))
    return int(any(reports.values()))


def perturb(given: argparse.Namespace) -> int:
    """Run the chapters and list each claim with the change of its left side that turned it red."""
    from ddpm_lite.book import plain

    for chapter in _chosen(load(), given.chapters):
        claims = plain.perturbed(chapter.source)
        print(f"{chapter.file}: {len(claims)} claims held, and each failed when it should:")
        for claim in claims:
            print(f"    ({claim.equation})  {claim.kind}, {claim.numbers} numbers: {claim.bite}")
    return 0


def equations(given: argparse.Namespace) -> int:
    """Count equations, claims and exercises, and list the displays that have no number."""
    from ddpm_lite.book import equations

    for reading in map(equations.read, _chosen(load(), given.chapters)):
        print(
            f"{reading.chapter.file}: {len(reading.numbered)} equations, "
            f"{len(reading.claims)} claims, {len(reading.chapter.exercises)} exercises, "
            f"{len(reading.unnumbered)} displays without number"
        )
        for display in reading.unnumbered:
            print(f"    {reading.where(display.line)}: {' '.join(display.latex.split())[:70]}")
        for problem in equations.problems((reading,), elsewhere=False):
            print(f"    ✗ {problem}")
    return 0


def contents(given: argparse.Namespace) -> int:
    """Renew the tables in README.md and START.md, and the pages that follow from the chapters."""
    from ddpm_lite.book import contents

    changed = [path.name for path in contents.write(load())]
    print(f"wrote {', '.join(changed)}" if changed else "all pages are in step")
    return 0


def copy(given: argparse.Namespace) -> int:
    """Make or update a reader's copy of the book; what the reader changed is left alone."""
    from ddpm_lite.book import readers

    print(readers.copy(load(), given.folder).in_words(given.folder))
    return 0


def read(given: argparse.Namespace) -> int:
    """Update the reader's copy and open it in JupyterLab, which gets --port, --no-browser …"""
    from ddpm_lite.book import lab, readers

    book = load()
    folder = given.folder or book.root / "my-book"
    done = readers.copy(book, folder)
    print(done.in_words(folder))
    lab.trust(folder / name for name in done.new + done.refreshed)
    return lab.serve(folder.resolve(), given.options)


# What instructors use: each module of ddpm_lite.course says what it takes and what it does.
COURSE = {
    "assign": "make an assignment out of exercises: for nbgrader, and as plain notebooks",
    "grade": "mark submissions, isolated: gradebook, feedback for each student, misconceptions",
    "student-wheel": "build the library for students, without the solutions of the exercises",
    "exercise-check": "say what is not good enough about an exercise",
}


def _chosen(book: Book, names: list[str]) -> list[Chapter]:
    return [book.chapter(name) for name in names] if names else list(book.chapters)


def _parser(prog: str, asked: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=ddpm_lite.book.__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    added = {}
    for function in (press, check, equations, contents, perturb, copy, read):
        summary = (function.__doc__ or "").strip()
        added[function] = commands.add_parser(function.__name__, help=summary, description=summary)
        added[function].set_defaults(function=function, options=[])
    for function in (press, equations, perturb):
        added[function].add_argument(
            "chapters", nargs="*", metavar="CHAPTER", help="3, 03 or the file's name"
        )
    added[press].add_argument("--all", action="store_true", help="execute also what is up to date")
    added[copy].add_argument("folder", type=Path, help="my-book")
    added[read].add_argument("folder", type=Path, nargs="?", help="my-book, if not given")
    for name, summary in COURSE.items():
        one = commands.add_parser(name, help=summary, description=summary)
        if name == asked:  # only then is its module imported
            one.set_defaults(function=_course(name).run, options=[])
            _course(name).add_arguments(one)
    return parser


def _course(name: str) -> ModuleType:
    modules = {"student-wheel": "wheel", "exercise-check": "quality"}
    return importlib.import_module(f"ddpm_lite.course.{modules.get(name, name)}")


def main(argv: list[str], prog: str) -> int:
    parser = _parser(prog, asked=argv[0] if argv else "")
    given, rest = parser.parse_known_args(argv)
    if rest and given.function is not read:
        parser.error(f"unknown: {' '.join(rest)}")
    if rest and given.folder and given.folder.name.isdigit():  # what "--port 8899" looks like
        parser.error(f"write options with an equals sign, {rest[-1]}={given.folder}")
    given.options = rest
    try:
        return int(given.function(given))
    except BookError as error:
        print(error, file=sys.stderr)
        return 1

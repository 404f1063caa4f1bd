"""What the press writes besides notebooks: tables in pages, the index of equations, the cover.

A page is written by people; between `<!-- contents -->` and `<!-- /contents -->` (or `paths`, or
`totals`) stands what the press puts there, and a test holds it in step.
"""

import base64
import re
from collections.abc import Callable
from pathlib import Path

from ddpm_lite.book import (
    BookError,
    equations,
    glossary,
    index,
    pairs,
    pitfalls,
    references,
    sections,
)
from ddpm_lite.book.files import write_whole
from ddpm_lite.book.manifest import Book, Chapter, ReadingPath


def pages(book: Book) -> dict[Path, bytes]:
    """Every file that the press writes, wholly or between markers, as it should be."""
    made = {
        page: fill(page, _sections(book, page.parent == book.root)).encode()
        for page in (book.root / "README.md", book.start_page)
    }
    readings = equations.read_book(book)
    made[book.generated] = index.page(book, readings, index.implementations(book)).encode()
    if boxes := pitfalls.read_book(book):
        made[book.pitfalls] = pitfalls.page(boxes).encode()
    if works := references.cited(book):
        made[book.references] = references.page(book, works).encode()
    if book.cover:
        made[book.cover_picture] = first_picture(book.chapter(book.cover))
    return made


def first_picture(chapter: Chapter) -> bytes:
    """The first picture among a chapter's stored outputs, as PNG."""
    for cell in pairs.code_cells(pairs.read_notebook(chapter.notebook)):
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                return base64.b64decode(output.data["image/png"])
    raise BookError(f"{chapter.file}.ipynb holds no picture: press it first")


def write(book: Book) -> list[Path]:
    """Bring the pages up to date; which of them changed."""
    return [path for path, content in pages(book).items() if write_whole(path, content)]


def problems(book: Book) -> list[str]:
    """Pages that are not what the press would write."""
    return [
        f"{path.relative_to(book.root)} is not in step: `python -m ddpm_lite book contents`"
        for path, content in pages(book).items()
        if not path.is_file() or path.read_bytes() != content
    ]


def fill(path: Path, sections: dict[str, Callable[[], str]]) -> str:
    """The text of `path` with every marked section that it has renewed."""
    if not path.is_file():
        raise BookError(f"{path.name} does not exist")
    text = path.read_text(encoding="utf-8")
    for name, make in sections.items():
        opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
        if (text.count(opening), text.count(closing)) not in ((0, 0), (1, 1)):
            raise BookError(f"{path.name}: {opening} and {closing} must stand there once each")
        text = re.sub(
            f"{opening}.*?{closing}",
            lambda _: f"{opening}\n{make()}\n{closing}",  # noqa: B023
            text,
            flags=re.DOTALL,
        )
    if "<!-- contents -->" not in text:
        raise BookError(
            f"{path.name} has no place for the contents: <!-- contents --> <!-- /contents -->"
        )
    return text


def _sections(book: Book, from_root: bool) -> dict[str, Callable[[], str]]:
    folder = "chapters/" if from_root else ""
    return {
        "contents": lambda: _contents(book, folder),
        "paths": lambda: _paths(book, folder),
        "totals": lambda: _totals(book),
    }


def _contents(book: Book, folder: str) -> str:
    lines = []
    for part in book.parts:
        lines += [
            f"**{part.title}**",
            "",
            "| Chapter | You will | You need | Reading | Runs in at most | Exercises |",
            "|---|---|---|---|---|---|",
            *(_row(book, c, folder) for c in book.chapters if c.part == part.title),
            "",
        ]
    return "\n".join([*lines, *_back(book, folder)])


def _back(book: Book, folder: str) -> list[str]:
    """The pages after the chapters, those that there are."""
    terms, boxes, works = glossary.read(book), pitfalls.read_book(book), references.read(book)
    entries = [("Index of equations", book.generated, "what checks each, which function it is")]
    if terms:
        what = f"{_plural(len(terms), 'term')}, English and Chinese, and where each is defined"
        entries.append(("Glossary", book.glossary, what))
    if boxes:
        what = f"{_plural(len(boxes), 'mistake')} of real code and papers, and where to see each"
        entries.append(("Pitfalls", book.pitfalls, what))
    if works:
        what = f"{_plural(len(works), 'work')}, what the book takes from each, and who cites it"
        entries.append(("References", book.references, what))
    if book.instructors.is_file():
        what = "handing exercises out, marking them, and writing new ones"
        entries.append(("For instructors", book.instructors, what))
    listed = [f"- [{title}]({folder}{page.name}): {what}." for title, page, what in entries]
    return ["**At the back**", "", *listed]


def _row(book: Book, chapter: Chapter, folder: str) -> str:
    count = len(chapter.exercises)
    exercises = (
        f"{count}, {_plural(chapter.points, 'point')}, {duration(chapter.minutes_exercises)}"
        if count
        else "–"
    )
    cells = (
        f"[{chapter.heading}]({folder}{chapter.file}.ipynb)",
        "; ".join(chapter.goals),
        ", ".join(book.chapter(number).short for number in chapter.needs) or "–",
        duration(chapter.minutes_reading),
        run_time(chapter.seconds),
        exercises,
    )
    return f"| {' | '.join(cells)} |"


def _paths(book: Book, folder: str) -> str:
    lines = ["| If you have | Read, in this order | It takes |", "|---|---|---|"]
    for path in book.paths:
        names = ", ".join(link for link, _ in stops(book, path, folder))
        lines.append(
            f"| {path.title} | {names}{', with the exercises' if path.exercises else ''} "
            f"| {_length(book, path)} |"
        )
    return "\n".join(lines)


def stops(book: Book, path: ReadingPath, folder: str) -> list[tuple[str, float]]:
    """The chapters and sections on a path, as links, with their minutes."""
    stops = []
    for number in path.chapters:
        chapter = next(c for c in book.chapters if c.number == number.partition(".")[0])
        if "." in number:
            section = sections.named(chapter, number)
            link = f"[{number}]({folder}{section.target})"
            stops.append((link, sections.minutes(section)))
        else:
            minutes = chapter.minutes_reading + path.exercises * chapter.minutes_exercises
            stops.append((f"[{chapter.title}]({folder}{chapter.file}.ipynb)", minutes))
    return stops


def _length(book: Book, path: ReadingPath) -> str:
    exact = sum(minutes for _, minutes in stops(book, path, ""))
    # A section's minutes are its share of the chapter's, no more exact than to five of them.
    minutes = 5 * round(exact / 5) if any("." in n for n in path.chapters) else round(exact)
    return duration(minutes) + (
        f", {duration(round(minutes / path.weeks))} a week" if path.weeks else ""
    )


def _totals(book: Book) -> str:
    exercises = [e for c in book.chapters for e in c.exercise_data]
    return (
        f"{len(book.chapters)} chapters, {len(exercises)} exercises worth "
        f"{_plural(sum(e.points for e in exercises), 'point')}, about "
        f"{duration(sum(c.minutes_reading for c in book.chapters))} of reading and "
        f"{duration(sum(c.minutes_exercises for c in book.chapters))} of exercises."
    )


def run_time(seconds: int) -> str:
    """ "90 s", or from two minutes on "10 min"."""
    return f"{seconds} s" if seconds < 120 else duration(round(seconds / 60))


def duration(minutes: int) -> str:
    """ "50 min" or "1 h 20 min"."""
    hours, rest = divmod(minutes, 60)
    return " ".join(
        filter(None, (f"{hours} h" if hours else "", f"{rest} min" if rest or not hours else ""))
    )


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")

"""The index of pitfalls, gathered from the boxes in the chapters.

A box is a quotation that begins

    > **Pitfall: its title.** What one sees, and why.

and stands in the section that shows it.
"""

import re
from dataclasses import dataclass

from ddpm_lite.book import sections
from ddpm_lite.book.manifest import Book
from ddpm_lite.book.sections import Section

BOX = re.compile(r"^> \*\*Pitfall: (\S.*?)\*\*", re.MULTILINE | re.DOTALL)
LIKE_A_BOX = re.compile(r"^>\W*pitfall\b", re.IGNORECASE)


@dataclass(frozen=True)
class Pitfall:
    """A box in a chapter."""

    title: str  # without the full stop
    section: Section


def read_book(book: Book) -> list[Pitfall]:
    """Every pitfall, in the order of the chapters."""
    return [
        Pitfall(_title(section.text[box.start(1) : box.end(1)]), section)
        for section in sections.read_book(book)
        for box in BOX.finditer(section.text)
    ]


def _title(raw: str) -> str:
    title = " ".join(re.sub(r"\n> ?", " ", raw).split()).removesuffix(".")
    return re.sub(r'^"?[a-z]', lambda start: start[0].upper(), title)  # `code` stays as it is


def problems(book: Book) -> list[str]:
    """Boxes that the index would miss, because they begin in another way."""
    return [
        f"{section.chapter.file}.py, {section.heading}: a box that begins {line[:40]!r} should "
        "begin '> **Pitfall: its title.**'"
        for section in sections.read_book(book)
        for line in section.text.splitlines()
        if LIKE_A_BOX.match(line) and not BOX.match(f"{line}**")  # a title may take two lines
    ]


def page(found: list[Pitfall]) -> str:
    """chapters/pitfalls.md."""
    lines = [
        "# Pitfalls",
        "",
        f"The {len(found)} mistakes that the chapters warn of: real code or real papers make them, "
        "and most of them raise no error. Each link leads to the section that explains the "
        "mistake, says by what it shows, and as a rule makes it before your eyes.",
        "",
    ]
    for chapter in dict.fromkeys(pitfall.section.chapter for pitfall in found):
        lines += [f"## {chapter.heading}", "", "| Pitfall | Section |", "|---|---|"]
        lines += [
            f"| {_cell(pitfall.title)} | {_cell(pitfall.section.link)} |"
            for pitfall in found
            if pitfall.section.chapter == chapter
        ]
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", r"\|")

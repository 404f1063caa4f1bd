"""The sections of the chapters: a heading, and all that stands under it until the next."""

import re
from dataclasses import dataclass
from functools import lru_cache

from ddpm_lite.book import BookError, pairs
from ddpm_lite.book.links import heading_id
from ddpm_lite.book.manifest import Book, Chapter
from ddpm_lite.book.markdown import blank_code

HEADING = re.compile(r"^#{1,3} +(.+?)\s*$", re.MULTILINE)
NUMBER = re.compile(r"(\d+|[A-Z]\.\d+|\d+\.\d+)(?= )")


@dataclass(frozen=True)
class Section:
    """What stands under one heading of level one to three."""

    chapter: Chapter
    heading: str  # "4.9 The best variance depends on the data"
    text: str  # of its text cells, with the heading
    line: int  # of the script, at which the heading stands
    size: int  # characters, code included

    @property
    def number(self) -> str:
        """ "4.9"; "4" for what stands under a chapter's title; empty where there is none."""
        found = NUMBER.match(self.heading)
        return found[1] if found else ""

    @property
    def label(self) -> str:
        """Its number, or the chapter and the heading."""
        if self.heading in (self.chapter.title, self.chapter.heading):
            return self.chapter.short
        return self.number or f"{self.chapter.short}, {self.heading}"

    @property
    def target(self) -> str:
        """What a link on a page beside the chapters leads to."""
        return f"{self.chapter.file}.ipynb#{heading_id(self.heading)}"

    @property
    def link(self) -> str:
        return f"[{self.heading}]({self.target})"


def read(chapter: Chapter) -> list[Section]:
    """A chapter's sections in order; its source alone is read."""
    return list(_read(chapter, chapter.source.read_text(encoding="utf-8")))


@lru_cache(maxsize=32)  # four pages are made of them, and to take a script apart is slow
def _read(chapter: Chapter, script: str) -> tuple[Section, ...]:
    found: list[Section] = []
    heading, first, texts, size = chapter.title, 1, [""], 0
    starts = pairs.marker_lines(script)
    for cell, start in zip(pairs.read_script(chapter.source).cells, starts, strict=True):
        if cell.cell_type != "markdown":
            size += len(cell.source)
            continue
        at = 0
        for match in HEADING.finditer(blank_code(cell.source)):
            texts.append(cell.source[at : match.start()])
            found.append(_section(chapter, heading, first, texts, size))
            heading = cell.source[match.start(1) : match.end(1)]  # code in a heading is part of it
            first = start + 1 + cell.source.count("\n", 0, match.start())
            texts, size, at = [], 0, match.start()
        texts.append(cell.source[at:])
    found.append(_section(chapter, heading, first, texts, size))
    return tuple(section for section in found if section.size)


def _section(chapter: Chapter, heading: str, line: int, texts: list[str], code: int) -> Section:
    text = "\n\n".join(filter(None, texts))
    return Section(chapter, heading, text, line, code + len(text))


def read_book(book: Book) -> list[Section]:
    """The sections of all chapters, in the book's order."""
    return [section for chapter in book.chapters for section in read(chapter)]


def named(chapter: Chapter, number: str) -> Section:
    """The section of a chapter that bears this number."""
    for section in read(chapter):
        if section.number == number:
            return section
    raise BookError(f"{chapter.file}.py has no section {number}")


def minutes(section: Section) -> float:
    """The section's share of the chapter's minutes, by its length."""
    whole = sum(each.size for each in read(section.chapter))
    return section.chapter.minutes_reading * section.size / whole

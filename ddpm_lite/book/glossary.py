"""chapters/glossary.md: written by people, in one table, and held to the chapters by `problems`.

A row holds the term, with other names for it after commas; its Chinese; one sentence; and a link
to the section that defines it, in which the term, or one of its other names, must occur. A word in
parentheses after a name, as in "encoder (of a U-Net)", tells it from its namesakes.
"""

import re
from dataclasses import dataclass
from itertools import pairwise
from urllib.parse import unquote

from ddpm_lite.book import sections
from ddpm_lite.book.equations import REFERENCE, TAG
from ddpm_lite.book.manifest import Book
from ddpm_lite.book.markdown import blank_code, blank_formulas

HEAD = "| Term | 中文 | Meaning | Defined in |"
LINK = re.compile(r"\[([^\]]+)\]\(([^#]+)\.ipynb#(.+)\)")
CHINESE = re.compile(r"[\u4e00-\u9fff]")
NUMBER = re.compile(r"(?:\d+|[A-Z])\.[1-9]\d*")


@dataclass(frozen=True)
class Term:
    """A row of the table."""

    names: tuple[str, ...]
    chinese: str
    meaning: str
    link: str
    line: int


def read(book: Book) -> list[Term]:
    """The rows in their order; none if there is no glossary. A row of another form is left out."""
    if not book.glossary.is_file():
        return []
    lines = book.glossary.read_text(encoding="utf-8").splitlines()
    rows = [(number, _cells(line)) for number, line in enumerate(lines, 1) if line[:1] == "|"]
    return [
        Term(tuple(map(str.strip, cells[0].split(","))), cells[1], cells[2], cells[3], line)
        for line, cells in rows[2:]
        if len(cells) == 4
    ]


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip().strip("|"))]


def problems(book: Book) -> list[str]:
    """Rows out of form or out of order, links that lead elsewhere, terms that are not there."""
    terms = read(book)
    if not book.glossary.is_file():
        return []
    lines = book.glossary.read_text(encoding="utf-8").splitlines()
    rows = sum(line[:1] == "|" for line in lines) - 2
    faults = [] if rows == len(terms) else [f"{rows - len(terms)} rows have not four cells"]
    if HEAD not in lines:
        faults.append(f"the table must begin with {HEAD}")
    names = [_flat(name) for term in terms for name in term.names]
    faults += [f"{name!r} stands there twice" for name in set(names) if names.count(name) > 1]
    firsts = [_flat(term.names[0]) for term in terms]
    faults += [f"{b!r} must come before {a!r}" for a, b in pairwise(firsts) if b < a]
    texts = {section.target: section for section in sections.read_book(book)}
    known = {tag[1].strip() for section in texts.values() for tag in TAG.finditer(section.text)}
    for term in terms:
        found = [*_form(term, known), *_place(term, texts)]
        faults += [f"line {term.line}, {term.names[0]!r}: {fault}" for fault in found]
    return [f"glossary.md: {fault}" for fault in faults]


def _form(term: Term, known: set[str]) -> list[str]:
    faults = []
    if not CHINESE.search(term.chinese):
        faults.append("has no Chinese")
    prose = blank_formulas(blank_code(term.meaning))
    if not prose.rstrip().endswith(".") or re.search(r"[.;:!?] +[A-Z]", prose):
        faults.append("its meaning must be one sentence, with its full stop")
    for match in REFERENCE.finditer(prose):
        faults += [
            f"({n}) is nowhere in the book" for n in NUMBER.findall(match[1]) if n not in known
        ]
    return faults


def _place(term: Term, texts: dict[str, sections.Section]) -> list[str]:
    link = LINK.fullmatch(term.link)
    if not link:
        return [f"{term.link!r} is no link to a section of a chapter"]
    section = texts.get(f"{link[2]}.ipynb#{unquote(link[3])}")
    if section is None:
        return [f"{term.link} leads to no section"]
    faults = []
    if link[1] != section.label:
        faults.append(f"the link's text should be {section.label!r}, not {link[1]!r}")
    text = _flat(section.text)
    names = [_flat(re.sub(r" \(.*\)$", "", name)) for name in term.names]
    if not any(re.search(rf"(?<!\w){re.escape(name)}", text) for name in names):
        faults.append(f"does not occur in {section.heading!r}, nor do its other names")
    return faults


def _flat(text: str) -> str:
    """Lower case, without markup, hyphens as blanks: what two spellings have in common."""
    return " ".join(re.sub(r"[*_`>]|(?<=\w)[-–](?=\w)", " ", text).casefold().split())

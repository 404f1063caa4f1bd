"""references.toml as data, who cites what, and the page of references.

A work is cited where its arXiv number stands; where one of the words of its `cited_as` stands; and,
if book.toml gives it a short name, where a numbered thing of it is named, as in "DDPM Eq. 4".
Chapters are searched section by section, the library module by module.
"""

import re
import tomllib
from dataclasses import dataclass
from functools import cached_property

from ddpm_lite.book import BookError, manifest, sections
from ddpm_lite.book.manifest import Book
from ddpm_lite.book.sections import Section

# Two digits for the year, two for the month; not a part of a longer number.
ARXIV = re.compile(r"(?<![\d.])((?:0[7-9]|[12]\d)(?:0[1-9]|1[0-2])\.\d{4,5})(?!\d|\.\d)")
PART = r"(?:['’]s)?,? (?:Eqs?\.|Tables?|Algorithms?|[Aa]ppendix|[Ss]ections?|Theorems?|Figures?)"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A work that the book cites; at least one of `arxiv`, `doi` and `venue` says where it is."""

    authors: str  # "Jonathan Ho, Ajay Jain, Pieter Abbeel"
    title: str
    year: int
    takes: str  # a sentence: what the book takes from it
    arxiv: str = ""
    doi: str = ""
    venue: str = ""
    cited_as: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, int, str]:
        """By the first author's last name, then by year."""
        return self.authors.partition(",")[0].split()[-1].casefold(), self.year, self.title

    @cached_property
    def source(self) -> str:
        """Where to find it, as links."""
        links = [
            self.venue,
            self.arxiv and f"[arXiv {self.arxiv}](https://arxiv.org/abs/{self.arxiv})",
            self.doi and f"[doi {self.doi}](<https://doi.org/{self.doi}>)",
        ]
        return ", ".join(filter(None, links))


@dataclass(frozen=True)
class Cited:
    """A reference, and where it is cited."""

    reference: Reference
    sections: tuple[Section, ...]
    modules: tuple[str, ...]  # "ddpm_lite.sampling"


def read(book: Book) -> list[Reference]:
    """The references in alphabetical order; none if there is no references.toml."""
    path = book.root / "references.toml"
    if not path.is_file():
        return []
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise BookError(f"references.toml is not valid TOML: {error}") from None
    entries = raw.pop("reference", [])
    if raw:
        raise BookError(f"references.toml: only [[reference]] is known, not {', '.join(raw)}")
    built = [
        manifest.build(Reference, f"references.toml, {entry.get('title', number)!r}", entry)
        for number, entry in enumerate(entries, 1)
    ]
    return sorted(built, key=lambda reference: reference.key)


def cited(book: Book) -> list[Cited]:
    """Every reference with the places that cite it."""
    found = read(book)
    if not found:
        return []
    named = _named(book)
    texts = [(section, Text.of(section.text, named)) for section in sections.read_book(book)]
    modules = [(name, Text.of(text, named)) for name, text in _modules(book).items()]
    return [
        Cited(
            reference,
            tuple(section for section, text in texts if text.cites(reference)),
            tuple(name for name, text in modules if text.cites(reference)),
        )
        for reference in found
    ]


def _modules(book: Book) -> dict[str, str]:
    """The library's modules as text, but for the press, which cites nothing."""
    library = book.root / "ddpm_lite"
    return {
        ".".join(path.relative_to(book.root).with_suffix("").parts).removesuffix(".__init__"): (
            path.read_text(encoding="utf-8")
        )
        for path in sorted(library.rglob("*.py"))
        if "book" not in path.relative_to(library).parts
    }


def _named(book: Book) -> dict[re.Pattern[str], str]:
    """For each paper with a short name, how a numbered thing of it is cited, and its arXiv number.

    "Improved DDPM Eq. 4" cites no equation of DDPM, hence the look behind.
    """
    names = [paper.name for paper in book.papers]
    patterns = {}
    for paper in book.papers:
        longer = [name.removesuffix(paper.name) for name in names if name.endswith(paper.name)]
        others = "".join(rf"(?<!{re.escape(start)})" for start in longer if start)
        patterns[re.compile(rf"(?<![\w-]){others}{re.escape(paper.name)}{PART}")] = paper.arxiv
    return patterns


@dataclass(frozen=True)
class Text:
    """What a section or a module cites, and its words in one line."""

    arxiv: frozenset[str]
    words: str

    @classmethod
    def of(cls, text: str, named: dict[re.Pattern[str], str]) -> "Text":
        words = " ".join(re.sub(r"\n[#>]? *", " ", text).split())
        by_name = {arxiv for pattern, arxiv in named.items() if pattern.search(words)}
        return cls(frozenset(by_name | set(ARXIV.findall(text))), words)

    def cites(self, reference: Reference) -> bool:
        return reference.arxiv in self.arxiv or any(w in self.words for w in reference.cited_as)


def problems(book: Book) -> list[str]:
    """What is cited and not listed, listed and not cited, or listed twice or with no place."""
    found = read(book)
    if not found:
        return []
    known = {reference.arxiv for reference in found}
    texts = {f"{c.file}.py": c.source.read_text(encoding="utf-8") for c in book.chapters}
    texts |= _modules(book)
    faults = [
        f"{where} cites arXiv {number}, which references.toml does not have"
        for where, text in texts.items()
        for number in dict.fromkeys(ARXIV.findall(text))
        if number not in known
    ]
    for what in ("title", "arxiv", "doi"):
        names = [getattr(reference, what).casefold() for reference in found]
        faults += [
            f"references.toml: {what} {name!r} stands there twice"
            for name in dict.fromkeys(names)
            if name and names.count(name) > 1
        ]
    for each in cited(book):
        faults += _faults(each)
    return faults + _unlisted_papers(book, found)


def _faults(each: Cited) -> list[str]:
    reference = each.reference
    where = f"references.toml, {reference.title!r}"
    faults = []
    if not reference.source:
        faults.append(f"{where}: has neither arxiv nor doi nor venue")
    if reference.arxiv and not ARXIV.fullmatch(reference.arxiv):
        faults.append(f"{where}: {reference.arxiv!r} is no arXiv number of the form 2006.11239")
    elif reference.arxiv and abs(2000 + int(reference.arxiv[:2]) - reference.year) > 1:
        faults.append(f"{where}: arXiv {reference.arxiv} is not of {reference.year}")
    if not reference.takes.endswith("."):
        faults.append(f"{where}: 'takes' must be a sentence, with its full stop")
    if not each.sections and not each.modules:
        faults.append(f"{where}: nothing cites it")
    return faults


def _unlisted_papers(book: Book, found: list[Reference]) -> list[str]:
    """The papers of book.toml are references too, under the same title."""
    titles = {reference.arxiv: reference.title for reference in found}
    return [
        f"book.toml, paper {paper.name!r}: references.toml has no {paper.arxiv} of this title"
        for paper in book.papers
        if titles.get(paper.arxiv) != paper.title
    ]


def page(book: Book, found: list[Cited]) -> str:
    """chapters/references.md."""
    names = {paper.arxiv: paper.name for paper in book.papers}
    lines = [
        "# References",
        "",
        "The works that the book stands on, by first author: where to find each, what the book "
        "takes from it, and the sections and modules that cite it. A short name in bold is the one "
        "that the text and the library use.",
        "",
    ]
    for each in found:
        reference = each.reference
        name = names.get(reference.arxiv, "") if reference.arxiv else ""
        places = [f"[{section.label}]({section.target})" for section in each.sections]
        places += [f"`{module}`" for module in each.modules]
        lines.append(
            f"- {reference.authors} ({reference.year}). *{reference.title}*. {reference.source}. "
            f"{f'**{name}**: ' if name else ''}{reference.takes} Cited in {', '.join(places)}."
        )
    return "\n".join(lines) + "\n"

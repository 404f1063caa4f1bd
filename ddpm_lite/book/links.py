"""Follows every link of the book: to a file, and to a heading in it.

JupyterLab gives a heading an id, its text with each blank replaced by "-", in notebooks as in
rendered Markdown, and a link to `03_x.ipynb#3.2-Two-steps` opens the notebook at that heading.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from ddpm_lite.book import pairs
from ddpm_lite.book.manifest import Book
from ddpm_lite.book.markdown import FENCE, blank, blank_code, blank_formulas

LINK = re.compile(
    r"""\]\(<?((?:[^()\s<>]|\([^()\s]*\))+)>?(?:\s+"[^"]*")?\)|(?:href|src)="([^"]+)\""""
)
HEADING = re.compile(r"^#{1,6} +(.+?)\s*#*$", re.MULTILINE)
MARKUP = re.compile(r"[*_`]|\[([^\]]*)\]\([^)]*\)")


def heading_id(heading: str) -> str:
    """The fragment by which JupyterLab knows a heading."""
    return MARKUP.sub(lambda m: m[1] or "", heading).strip().replace(" ", "-")


def problems(book: Book) -> list[str]:
    """Links that lead nowhere, from every page of the book and from the README."""
    pages = {c.notebook: list(chapter_text(c.source)) for c in book.chapters}
    for path in (*book.pages, book.root / "README.md"):
        if path.is_file():
            pages[path] = [(path.read_text(encoding="utf-8"), 1)]
    headings = {
        path: {heading_id(h) for text, _ in texts for h in HEADING.findall(blank(FENCE, text))}
        for path, texts in pages.items()
    }
    return [
        f"{path.with_suffix('.py').name if path.suffix == '.ipynb' else path.name}:{line}: {fault}"
        for path, texts in pages.items()
        for text, start in texts
        for target, line in links_in(text, start)
        if (fault := _fault(target, path, book, headings))
    ]


def chapter_text(source: Path) -> Iterator[tuple[str, int]]:
    """The text cells of a chapter, with the line of the script at which each begins."""
    starts = pairs.marker_lines(source.read_text(encoding="utf-8"))
    for cell, start in zip(pairs.read_script(source).cells, starts, strict=True):
        if cell.cell_type == "markdown":
            yield cell.source, start + 1


def links_in(text: str, start: int = 1) -> Iterator[tuple[str, int]]:
    """The targets of a page's links, with their lines."""
    text = blank_formulas(blank_code(text))
    for match in LINK.finditer(text):
        yield match[1] or match[2], start + text.count("\n", 0, match.start())


def _fault(target: str, page: Path, book: Book, headings: dict[Path, set[str]]) -> str:
    """What is wrong with a link on `page`; empty if it leads somewhere, or out into the world."""
    if re.match(r"[a-z][a-z0-9+.-]*:", target, re.IGNORECASE):
        return ""
    name, _, fragment = target.partition("#")
    aim = (page.parent / unquote(name)).resolve() if name else page
    if page.parent.name == "chapters" and aim.parent != page.parent:
        return (
            f"the link to {target} leaves the folder of chapters, which is all that a reader gets"
        )
    if aim not in headings and not aim.exists():
        return f"the link to {target} leads nowhere: there is no such file"
    if fragment and aim not in headings:
        return f"the link to {target} names a place in a file that has no headings"
    if (
        fragment
        and unquote(fragment) not in headings[aim]
        and not _on_github(fragment, page, headings[aim])
    ):
        return f"the link to {target} leads nowhere: {aim.name} has no heading with that text"
    return ""


def _on_github(fragment: str, page: Path, ids: set[str]) -> bool:
    """GitHub shows the README, and makes ids of its own: lower case, punctuation dropped."""
    return page.name == "README.md" and fragment in {
        re.sub(r"[^\w-]", "", id.lower()) for id in ids
    }

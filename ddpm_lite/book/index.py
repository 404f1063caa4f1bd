"""The index: equation → section → what checks it → function in ddpm_lite → equation in the paper.

The last two come from doc-strings. A function that is an equation says so on a line of its own,

    Book: (3.7), (3.9).
    Paper: DDPM Eq. 4; DDIM Eq. 12 (η = 0).

`Book:` holds numbers of the book's equations in parentheses, separated by commas, and a full stop.
`Paper:`, on the same line or the next, holds citations separated by semicolons and a full stop,
each beginning with a paper's name from book.toml. A longer line may go on in the next, indented
deeper. Several `Book:` lines in one doc-string stand for themselves.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ddpm_lite.book.equations import NUMBER, Reading
from ddpm_lite.book.links import heading_id
from ddpm_lite.book.manifest import Book

NUMBERS = re.compile(rf"\({NUMBER}\)(?:(?:,| and) \({NUMBER}\))*\.")


@dataclass(frozen=True)
class Implementation:
    """A function, method or class whose doc-string names equations."""

    name: str  # "GaussianDiffusion.marginal"
    module: str  # "ddpm_lite.process"
    line: int
    equations: tuple[str, ...]
    papers: tuple[str, ...]  # "DDPM Eq. 4"
    fault: str = ""


def implementations(book: Book) -> list[Implementation]:
    """All of ddpm_lite that names an equation; read as text, nothing is imported."""
    found: list[Implementation] = []
    for path in sorted((book.root / "ddpm_lite").rglob("*.py")):
        if "book" in path.relative_to(book.root).parts:
            continue  # the press only talks about such lines
        module = ".".join(path.relative_to(book.root).with_suffix("").parts).removesuffix(
            ".__init__"
        )
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for name, node in _documented(tree):
            found += _of_docstring(book, name or module, module, node)
    return found


def _documented(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """The module itself under the name "", then every class and function with its dotted name."""
    yield prefix, node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _documented(child, f"{prefix}.{child.name}".lstrip("."))


def _of_docstring(book: Book, name: str, module: str, node: ast.AST) -> Iterator[Implementation]:
    lines = [*(ast.get_docstring(node) or "").splitlines(), ""]  # type: ignore[arg-type]
    for start, line in enumerate(lines):
        if not line.lstrip().startswith("Book:"):
            continue
        text, after = _with_continuations(lines, start)
        numbers, paper, cited = text.partition("Paper:")
        if not paper and lines[after].lstrip().startswith("Paper:"):
            cited = _with_continuations(lines, after)[0].lstrip().removeprefix("Paper:")
        numbers = numbers.strip().removeprefix("Book:").strip()
        papers = tuple(
            item.strip() for item in cited.strip().removesuffix(".").split(";") if item.strip()
        )
        yield Implementation(
            name,
            module,
            getattr(node, "lineno", 1),
            tuple(re.findall(NUMBER, numbers)),
            papers,
            _fault(book, numbers, papers),
        )


def _with_continuations(lines: list[str], start: int) -> tuple[str, int]:
    """A line with those after it that are indented deeper, and where the next one is."""

    def depth(line: str) -> int:
        return len(line) - len(line.lstrip())

    end = start + 1
    while lines[end].strip() and depth(lines[end]) > depth(lines[start]):
        end += 1
    return " ".join(line.strip() for line in lines[start:end]), end


def _fault(book: Book, numbers: str, papers: tuple[str, ...]) -> str:
    if not NUMBERS.fullmatch(numbers):
        return f"'Book: {numbers}' should look like 'Book: (3.7), (3.9).'"
    known = [paper.name for paper in book.papers]
    for citation in papers:
        if not any(citation.startswith((f"{name} ", f"{name},")) for name in known):
            return f"'{citation}' begins with no paper of book.toml ({', '.join(known)})"
    return ""


def problems(readings: tuple[Reading, ...], found: list[Implementation]) -> list[str]:
    """Lines that cannot be read, and equations that are named but do not exist."""
    known = {e.number for reading in readings for e in reading.numbered}
    faults = [f"{i.module}:{i.line}: {i.name}: {i.fault}" for i in found if i.fault]
    return faults + [
        f"{i.module}:{i.line}: {i.name}: ({number}) is nowhere in the book"
        for i in found
        for number in i.equations
        if number not in known
    ]


def page(book: Book, readings: tuple[Reading, ...], found: list[Implementation]) -> str:
    """chapters/equations.md."""
    lines = [
        "# Index of equations",
        "",
        "Every numbered equation, where it stands, what checks it each time the book is tested, "
        "the function of `ddpm_lite` that is it, and its number in the papers. "
        "`==` compares numbers to rounding, `Monte Carlo` to five standard errors, `<=` is an "
        "inequality, `order` a measured slope, `definition` a comparison with the library's own.",
        "",
    ]
    for reading in readings:
        if reading.numbered:
            lines += [
                f"## {reading.chapter.heading}",
                "",
                "| Equation | Section | Checked by | In `ddpm_lite` | In the papers |",
                "|---|---|---|---|---|",
                *_rows(reading, found),
                "",
            ]
    lines += ["## The papers", ""]
    lines += [
        f"- {p.name}: *{p.title}*, [arXiv {p.arxiv}](https://arxiv.org/abs/{p.arxiv})"
        for p in book.papers
    ]
    return "\n".join(lines) + "\n"


def _rows(reading: Reading, found: list[Implementation]) -> Iterator[str]:
    for equation in reading.numbered:
        here = [i for i in found if equation.number in i.equations]
        link = f"{reading.chapter.file}.ipynb#{heading_id(equation.section)}"
        cells = (
            f"({equation.number})",
            f"[{equation.section}]({link})",
            _counted(reading.behind(equation.number)),
            ", ".join(f"`{i.name}`" for i in here),
            "; ".join(dict.fromkeys(p for i in here for p in i.papers)),
        )
        yield "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _counted(items: list[str]) -> str:
    """["==", "==", "exercise 3.2"] as "2 × ==, exercise 3.2"."""
    texts = [f"`{item}`" if not item.startswith("exercise") else item for item in items]
    return ", ".join(
        f"{texts.count(t)} × {t}" if texts.count(t) > 1 else t for t in dict.fromkeys(texts)
    )

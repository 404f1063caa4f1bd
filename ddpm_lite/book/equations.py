"""Every numbered equation of the book, and what stands behind it.

Read from the sources alone, nothing is executed: `\\tag{3.5}` in a text cell numbers an equation,
`claim("3.5", …)` in a code cell or an exercise with `equation="3.5"` stands behind it, and "(3.5)"
in a sentence refers to it. `problems` lists all that does not fit together.
"""

import ast
import contextlib
import io
import re
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from nbformat import NotebookNode

from ddpm_lite.book import pairs
from ddpm_lite.book.manifest import Book, Chapter
from ddpm_lite.book.markdown import DISPLAY, INLINE, blank, blank_code, blank_formulas
from ddpm_lite.book.selfclaims import same_expression

UNNUMBERED_SHARE = 1 / 5  # of a chapter's displayed equations

NUMBER = r"(?:\d+|[A-Z])\.[1-9]\d*"  # 3.5 or T.12; 0.5 and 2.0 are no equations
NUMBER_IN_TEXT = r"(?:[1-9]\d*|[A-Z])\.[1-9]\d*"
JOINT = r"\s*(?:,|;|–|-|and|to)\s*"
REFERENCE = re.compile(rf"(?<![\w)\]}}])\(\s*({NUMBER_IN_TEXT}(?:{JOINT}{NUMBER_IN_TEXT})*)\s*\)")
TAG = re.compile(r"\\tag\*?\{([^}]*)\}")
OTHER_DISPLAY = re.compile(r"\\\[|\\begin\{(equation|align|gather|multline)\*?\}")
IN_FORMULA = re.compile(
    r"\\text\{[^{}]*\}|\{\([^(){}]*\)\}"
)  # words in a formula, and \overset{(3.5)}{=}


@dataclass(frozen=True)
class Equation:
    """A displayed equation; `number` is empty for one that has none."""

    number: str
    latex: str
    line: int  # of the script
    section: str  # the heading it stands under


@dataclass(frozen=True)
class Claim:
    """One call of `claim` in a chapter."""

    equation: str  # empty if the call does not name it by a literal
    relation: str  # "==", "<=", "order", "definition", or "Monte Carlo"
    line: int
    same: bool  # do both sides turn out to be the same expression?


@dataclass(frozen=True)
class Reading:
    """What the equation checks need to know of a chapter."""

    chapter: Chapter
    equations: tuple[Equation, ...]
    claims: tuple[Claim, ...]
    references: tuple[tuple[str, int], ...]  # (number, line)
    faults: tuple[str, ...] = field(default=())  # found while reading

    @cached_property
    def numbered(self) -> tuple[Equation, ...]:
        return tuple(e for e in self.equations if e.number)

    @cached_property
    def unnumbered(self) -> tuple[Equation, ...]:
        return tuple(e for e in self.equations if not e.number)

    def where(self, line: int) -> str:
        return f"{self.chapter.file}.py:{line}"

    def behind(self, number: str) -> list[str]:
        """What stands behind an equation: its claims' relations, its exercises."""
        relations = [c.relation for c in self.claims if c.equation == number]
        exercises = [f"exercise {e.id}" for e in self.chapter.exercise_data if e.equation == number]
        return relations + exercises


def read(chapter: Chapter) -> Reading:
    """Parse a chapter's script."""
    notebook = pairs.read_script(chapter.source)
    starts = [n + 1 for n in pairs.marker_lines(chapter.source.read_text(encoding="utf-8"))]
    equations: list[Equation] = []
    references: list[tuple[str, int]] = []
    faults: list[str] = []
    section = chapter.title
    for cell, start in zip(notebook.cells, starts, strict=True):
        if cell.cell_type == "markdown":
            text = blank_code(cell.source)
            found, section = _equations(cell.source, start, section)
            equations += found
            references += _references(text, start)
            faults += [
                f"{chapter.file}.py:{line}: {fault}" for fault, line in _odd_displays(text, start)
            ]
        elif cell.cell_type == "code":
            references += _references_in_code(cell.source, start)
    claims, code_faults = _claims(chapter, notebook, starts)
    return Reading(chapter, tuple(equations), claims, tuple(references), (*faults, *code_faults))


def _line(text: str, start: int, position: int) -> int:
    return start + text.count("\n", 0, position)


def _equations(source: str, start: int, section: str) -> tuple[list[Equation], str]:
    """The displayed equations of a text cell, and the heading that holds at its end."""
    text = blank_code(source)
    found = []
    marks = [(m.start(), m) for m in re.finditer(r"^#{1,3} +(.+?)\s*$", text, re.MULTILINE)]
    marks += [(m.start(), m) for m in DISPLAY.finditer(text)]
    for position, match in sorted(marks, key=lambda mark: mark[0]):
        if match[0].startswith("#"):
            section = source[match.start(1) : match.end(1)]  # code in a heading is part of it
            continue
        tags = list(TAG.finditer(match[1]))
        for tag in tags:
            line = _line(text, start, position + 2 + tag.start())
            found.append(Equation(tag[1].strip(), match[1].strip(), line, section))
        if not tags:
            found.append(Equation("", match[1].strip(), _line(text, start, position), section))
    return found, section


def _odd_displays(text: str, start: int) -> Iterator[tuple[str, int]]:
    """What the checks would not see: other delimiters, an odd number of $$, a tag outside."""
    outside = blank(DISPLAY, text)
    for match in OTHER_DISPLAY.finditer(outside):
        yield (
            f"{match[0]} outside $$: write displayed equations between $$",
            _line(text, start, match.start()),
        )
    if "$$" in outside:
        yield "a $$ without its partner", _line(text, start, outside.index("$$"))
    for match in TAG.finditer(outside):
        yield f"{match[0]} stands outside $$", _line(text, start, match.start())


def _references(text: str, start: int) -> Iterator[tuple[str, int]]:
    """Equation numbers in parentheses, in sentences and in the words inside formulas."""
    yield from _numbers_in(blank_formulas(text), start)
    for formula in (*DISPLAY.finditer(text), *INLINE.finditer(blank(DISPLAY, text))):
        for words in IN_FORMULA.finditer(formula[0]):
            yield from _numbers_in(
                words[0].replace("{", " "), _line(text, start, formula.start() + words.start())
            )


def _numbers_in(text: str, start: int) -> Iterator[tuple[str, int]]:
    for match in REFERENCE.finditer(text):
        for number in re.findall(NUMBER_IN_TEXT, match[1]):
            yield number, _line(text, start, match.start())


def _references_in_code(source: str, start: int) -> Iterator[tuple[str, int]]:
    """Equation numbers in comments and doc-strings."""
    with contextlib.suppress(
        tokenize.TokenError, SyntaxError
    ):  # `_claims` reports what is no Python
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            doc = token.type == tokenize.STRING and token.string.endswith('"""')
            if doc or token.type == tokenize.COMMENT:
                yield from _numbers_in(token.string, start + token.start[0] - 1)


def _claims(
    chapter: Chapter, notebook: NotebookNode, starts: list[int]
) -> tuple[tuple[Claim, ...], list[str]]:
    trees, faults = [], []
    for cell, start in zip(notebook.cells, starts, strict=True):
        if cell.cell_type == "code":
            try:
                trees.append((ast.parse(cell.source), start))
            except SyntaxError as error:
                line = start + (error.lineno or 1) - 1
                faults.append(f"{chapter.file}.py:{line}: not Python: {error.msg}")
    code = ast.Module([statement for tree, _ in trees for statement in tree.body], [])
    same = same_expression(code)
    claims = tuple(
        _claim(call, start, same)
        for tree, start in trees
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and _called(call) == "claim"
    )
    return tuple(sorted(claims, key=lambda claim: claim.line)), faults


def _called(call: ast.Call) -> str:
    return getattr(call.func, "id", getattr(call.func, "attr", ""))


def _claim(call: ast.Call, start: int, same: Callable[[ast.expr, ast.expr], bool]) -> Claim:
    names = dict(zip(("equation", "left", "right"), call.args, strict=False))
    names |= {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}

    def literal(name: str, default: str) -> str:
        value = names.get(name)
        return (
            value.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str)
            else default
        )

    relation = "Monte Carlo" if "standard_error" in names else literal("relation", "==")
    alike = "left" in names and "right" in names and same(names["left"], names["right"])
    return Claim(literal("equation", ""), relation, start + call.lineno - 1, alike)


def read_book(book: Book) -> tuple[Reading, ...]:
    return tuple(read(chapter) for chapter in book.chapters)


def problems(readings: tuple[Reading, ...], elsewhere: bool = True) -> list[str]:
    """All that is wrong with equations, claims and references, each with file and line.

    `elsewhere=False` is for a look at some chapters only: references to others are let pass.
    """
    known = {e.number for reading in readings for e in reading.numbered}
    if not elsewhere:
        here = {reading.chapter.number for reading in readings}
        known |= {
            n for reading in readings for n, _ in reading.references if n.split(".")[0] not in here
        }
    return [
        problem
        for reading in readings
        for problem in (
            *reading.faults,
            *_tag_problems(reading),
            *_claim_problems(reading),
            *_reference_problems(reading, known),
            *_unnumbered_problems(reading),
        )
    ]


def _tag_problems(reading: Reading) -> Iterator[str]:
    """Numbers run N.1, N.2, … without gap or repetition, and each has something behind it."""
    seen: Counter[str] = Counter()
    expected = 1
    for equation in reading.numbered:
        where, number = reading.where(equation.line), equation.number
        prefix, _, count = number.rpartition(".")
        seen[number] += 1
        if prefix != reading.chapter.number or not re.fullmatch(NUMBER, number):
            yield f"{where}: ({number}) is no equation number of chapter {reading.chapter.number}"
        elif seen[number] > 1:
            yield f"{where}: ({number}) is given to two equations"
        elif int(count) != expected:
            yield f"{where}: ({number}) is out of order: ({prefix}.{expected}) is next"
            expected = int(count) + 1
        else:
            expected += 1
        if not reading.behind(number):
            yield f"{where}: nothing stands behind ({number}): no claim and no exercise"


def _claim_problems(reading: Reading) -> Iterator[str]:
    numbers = {e.number for e in reading.numbered}
    for claim in reading.claims:
        where = reading.where(claim.line)
        if not claim.equation:
            yield f'{where}: a claim must name its equation by a literal, as in claim("3.5", …)'
        elif claim.equation not in numbers:
            yield f"{where}: claim of ({claim.equation}), which is no equation of this chapter"
        if claim.same:
            yield f"{where}: claim of ({claim.equation}): both sides are the same expression"
    for exercise in reading.chapter.exercise_data:
        if exercise.equation and exercise.equation not in numbers:
            yield (
                f"{reading.chapter.file}.py: exercise {exercise.id} is about "
                f"({exercise.equation}), which is no equation of this chapter"
            )


def _reference_problems(reading: Reading, known: set[str]) -> Iterator[str]:
    for number, line in reading.references:
        if number not in known:
            yield f"{reading.where(line)}: refers to ({number}), which is nowhere in the book"
    for exercise in reading.chapter.exercise_data:
        for number, _ in _numbers_in("\n".join(_words_of(exercise)), 0):
            if number not in known:
                yield (
                    f"exercise {exercise.id}: its hints or answers refer to ({number}), "
                    "which is nowhere in the book"
                )


def _words_of(exercise: Any) -> list[str]:
    """What an exercise may say to its reader, apart from its statement."""
    replies = [message for _, message in exercise.wrong.values()]
    model = [exercise.reference] if isinstance(exercise.reference, str) else []
    return [*exercise.hints, *replies, *exercise.rubric, *model]


def _unnumbered_problems(reading: Reading) -> Iterator[str]:
    if len(reading.unnumbered) > UNNUMBERED_SHARE * len(reading.equations):
        lines = ", ".join(str(e.line) for e in reading.unnumbered)
        yield (
            f"{reading.chapter.file}.py: {len(reading.unnumbered)} of {len(reading.equations)} "
            f"displayed equations have no number (at most a fifth may): lines {lines}"
        )

"""book.toml as data: which chapters there are, in what order, what they promise and need.

Nothing else lists chapters. Points and minutes of an exercise live with the exercise, in
ddpm_lite/exercises; the manifest names exercises by id and adds their numbers up.
"""

import dataclasses
import tomllib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ddpm_lite.book import BookError


@dataclass(frozen=True)
class Part:
    """A part of the book: a heading in the table of contents."""

    title: str


@dataclass(frozen=True, kw_only=True)
class ReadingPath:
    """A way through the book; its length follows from the chapters on it."""

    title: str
    chapters: tuple[str, ...]  # numbers in reading order; "4.9" is a single section
    exercises: bool  # are they counted in?
    weeks: int | None = None  # spread evenly over so many weeks


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A paper that doc-strings cite by its short name, "DDPM Eq. 4"."""

    name: str
    title: str
    arxiv: str


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """One chapter: `chapters/<file>.py`, the source, and `<file>.ipynb`, the same executed."""

    file: str  # the stem, "03_one_step_marginal"
    number: str  # "3", or a letter: equations are (3.1), (T.1), …
    title: str
    part: str  # the title of a part
    goals: tuple[str, ...]  # each completes "You will …"
    minutes_reading: int
    seconds: int  # run-time budget of the notebook on two cores
    needs: tuple[str, ...] = ()  # numbers of chapters
    exercises: tuple[str, ...] = ()  # ids, "3.1"
    root: Path = field(default=Path(), repr=False)

    @property
    def source(self) -> Path:
        return self.root / "chapters" / f"{self.file}.py"

    @property
    def notebook(self) -> Path:
        return self.root / "chapters" / f"{self.file}.ipynb"

    @property
    def heading(self) -> str:
        """The title with its number: "3 The one-step marginal"; lettered pages carry no number."""
        return f"{self.number} {self.title}" if self.number.isdigit() else self.title

    @property
    def short(self) -> str:
        """ "3", or the title of a lettered page."""
        return self.number if self.number.isdigit() else self.title

    @cached_property
    def exercise_data(self) -> tuple:
        """The exercises themselves, in the manifest's order."""
        known = known_exercises() if self.exercises else {}
        missing = [id for id in self.exercises if id not in known]
        if missing:
            raise BookError(
                f"book.toml, chapter {self.number}: no exercise {', '.join(missing)} in "
                "ddpm_lite/exercises"
            )
        return tuple(known[id] for id in self.exercises)

    @property
    def points(self) -> int:
        return sum(exercise.points for exercise in self.exercise_data)

    @property
    def minutes_exercises(self) -> int:
        return sum(exercise.minutes for exercise in self.exercise_data)


@dataclass(frozen=True, kw_only=True)
class Book:
    """The whole manifest."""

    title: str
    subtitle: str
    version: str
    language: str
    parts: tuple[Part, ...]
    chapters: tuple[Chapter, ...]
    paths: tuple[ReadingPath, ...]
    papers: tuple[Paper, ...]
    root: Path
    cover: str = ""  # the number of the chapter whose first picture is the book's

    @property
    def cover_picture(self) -> Path:
        """The picture that README.md shows, copied by the press out of the cover's chapter."""
        return self.root / "chapters" / "figures" / "cover.png"

    @property
    def generated(self) -> Path:
        """The index of equations, written by the press."""
        return self.root / "chapters" / "equations.md"

    @property
    def glossary(self) -> Path:
        """Written by people, and held to the chapters by a test."""
        return self.root / "chapters" / "glossary.md"

    @property
    def pitfalls(self) -> Path:
        """The index of pitfalls, written by the press if there are any."""
        return self.root / "chapters" / "pitfalls.md"

    @property
    def references(self) -> Path:
        """The references, written by the press out of references.toml, if that is there."""
        return self.root / "chapters" / "references.md"

    @property
    def instructors(self) -> Path:
        """How to hand exercises out and mark them, if there is such a page."""
        return self.root / "chapters" / "INSTRUCTORS.md"

    @property
    def pages(self) -> tuple[Path, ...]:
        """What there is beside the chapters, START.md first."""
        back = (self.generated, self.glossary, self.pitfalls, self.references, self.instructors)
        return tuple(page for page in (self.start_page, *back) if page.is_file())

    @property
    def start_page(self) -> Path:
        return self.root / "chapters" / "START.md"

    def check_files(self) -> None:
        """Refuse a manifest that names what is not there: a chapter's source, an exercise."""
        for chapter in self.chapters:
            if not chapter.source.is_file():
                raise BookError(f"book.toml: chapters/{chapter.file}.py does not exist")
            _ = chapter.exercise_data

    def chapter(self, name: str) -> Chapter:
        """The chapter that a person means by "3", "03" or "03_one_step_marginal"."""
        name = Path(name).stem  # a path to the .py or .ipynb will do as well
        exact = [c for c in self.chapters if name in (c.number, c.file)]
        found = exact or [c for c in self.chapters if c.file.startswith(name)]
        if len(found) != 1:
            known = ", ".join(c.file for c in self.chapters)
            raise BookError(f"{'which' if found else 'no'} chapter {name!r}? There are: {known}")
        return found[0]


def find_root(start: Path | None = None) -> Path:
    """The folder that holds book.toml: `start` (the current folder) or one above it."""
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "book.toml").is_file():
            return folder
    raise BookError(f"no book.toml in {start} or above it: run this inside a clone of the book")


def load(root: Path | None = None) -> Book:
    """Read and check book.toml; every mistake is named."""
    root = find_root(root)
    try:
        raw = tomllib.loads((root / "book.toml").read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise BookError(f"book.toml is not valid TOML: {error}") from None
    _refuse_unknown("book.toml", raw, {"book", "part", "chapter", "path", "paper"})
    parts = tuple(build(Part, f"part {i}", p) for i, p in enumerate(raw.get("part", []), 1))
    chapters = tuple(
        build(Chapter, f"chapter {c.get('file', i)}", c, root=root)
        for i, c in enumerate(raw.get("chapter", []), 1)
    )
    paths = tuple(build(ReadingPath, f"path {i}", p) for i, p in enumerate(raw.get("path", []), 1))
    papers = tuple(build(Paper, f"paper {i}", p) for i, p in enumerate(raw.get("paper", []), 1))
    book = build(
        Book,
        "[book]",
        raw.get("book", {}),
        parts=parts,
        chapters=chapters,
        paths=paths,
        papers=papers,
        root=root,
    )
    _check(book)
    return book


def known_exercises() -> dict:
    """Every exercise of ddpm_lite.exercises by its id."""
    from ddpm_lite.exercises.exercise import all_exercises

    return {exercise.id: exercise for exercise in all_exercises()}


def _refuse_unknown(where: str, table: dict, known: set[str]) -> None:
    unknown = sorted(set(table) - known)
    if unknown:
        raise BookError(
            f"{where}: unknown key {', '.join(map(repr, unknown))}; "
            f"known are {', '.join(sorted(known))}"
        )


def build(kind: Any, where: str, table: dict[str, Any], **given: Any) -> Any:
    """An instance of the dataclass `kind` from a TOML table; it may not set what is `given`."""
    fields = {f.name: f for f in dataclasses.fields(kind) if f.name not in given}
    where = where if where.startswith("book.toml") else f"book.toml, {where}"
    _refuse_unknown(where, table, set(fields))
    values = {}
    for name, spec in fields.items():
        if name not in table:
            if spec.default is dataclasses.MISSING:
                raise BookError(f"{where}: {name!r} is missing")
            continue
        values[name] = _typed(where, name, table[name], spec.type)
    return kind(**values, **given)


def _typed(where: str, name: str, value: Any, kind: Any) -> Any:
    """`value` as the type that the field declares; a TOML array becomes a tuple of strings."""
    if kind == tuple[str, ...]:
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise BookError(f"{where}: {name!r} must be an array of strings, not {value!r}")
    wanted = int if kind == int | None else kind
    if type(value) is not wanted:
        raise BookError(f"{where}: {name!r} must be of type {wanted.__name__}, not {value!r}")
    return value


def _check(book: Book) -> None:
    """What the types cannot say: nothing twice, every name known."""
    for what in ("file", "number", "title"):
        _refuse_repeats(f"chapter {what}", [getattr(c, what) for c in book.chapters])
    _refuse_repeats("part", [p.title for p in book.parts])
    _refuse_repeats("exercise", [id for c in book.chapters for id in c.exercises])
    numbers = {c.number for c in book.chapters}
    for c in book.chapters:
        where = f"book.toml, chapter {c.number}"
        if c.part not in {p.title for p in book.parts}:
            raise BookError(f"{where}: there is no part {c.part!r}")
        if unknown := [n for n in c.needs if n not in numbers]:
            raise BookError(
                f"{where}: needs chapter {', '.join(unknown)}, which is not in the book"
            )
        if odd := [id for id in c.exercises if id.rpartition(".")[0] != c.number]:
            raise BookError(f"{where}: exercise {', '.join(odd)} belongs to another chapter")
    for path in book.paths:
        where = f"book.toml, path {path.title!r}"
        if unknown := [n for n in path.chapters if n.partition(".")[0] not in numbers]:
            raise BookError(f"{where}: chapter {', '.join(unknown)} is not in the book")
        if path.exercises and any("." in n for n in path.chapters):
            raise BookError(f"{where}: exercises are counted by whole chapters only")


def _refuse_repeats(what: str, names: list[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise BookError(f"book.toml: {what} {', '.join(map(repr, repeated))} stands there twice")

"""What `pytest --nbval chapters` needs besides nbval, registered by chapters/conftest.py.

- Kernels see nothing of the user's: no progress file, IPython start-up files, matplotlib settings.
- A cell without an execution count is an error: nbval would run it and compare nothing.
- `-n 2` keeps each notebook in one process, whatever `--dist` says by default.
- At the end, a table: what was executed and compared, and how long it took.
"""

import atexit
import os
import re
import shutil
import tempfile
from collections.abc import Generator, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from nbformat import NotebookNode

from ddpm_lite.book import BookError, manifest
from ddpm_lite.book.execute import clean_variables
from ddpm_lite.book.pairs import first_line

PROPERTY = "ddpm_lite cell"  # under which a worker's counts travel to the process that prints
NUMERAL = re.compile(r"(?<![\w.])[-+−]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?!\w)", re.IGNORECASE)
MARKS = "✓✗○✎•"  # lines of claims and exercises begin so; what they count is not a result
TAGS = re.compile(r"<[^>]*>")


@dataclass
class Counts:
    """What one cell, or all cells of a chapter, came to."""

    executed: int = 0
    compared: int = 0  # cells whose stored text was compared, and agreed
    numbers: int = 0  # numerals in that text
    seconds: float = 0.0

    def __add__(self, other: "Counts") -> "Counts":
        mine, theirs = asdict(self), asdict(other)
        return Counts(**{name: mine[name] + theirs[name] for name in mine})


class ChapterSummary:
    """The plugin; one lives in every process of a run."""

    def __init__(self) -> None:
        self.chapters: dict[str, Counts] = {}
        self.home = tempfile.mkdtemp(prefix="ddpm-lite-")
        atexit.register(shutil.rmtree, self.home, ignore_errors=True)  # kernels may outlive the run

    def pytest_configure(self, config: pytest.Config) -> None:
        os.environ.update(clean_variables(Path(self.home)))
        if "PYTEST_XDIST_WORKER" in os.environ:
            os.environ.setdefault("OMP_NUM_THREADS", "1")
        if getattr(config.option, "dist", "no") == "load":
            config.option.dist = "loadfile"

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        cell = getattr(item, "cell", None)
        if cell is None:
            return report
        counts = Counts(seconds=report.duration)
        if call.when == "call" and not report.skipped:
            counts.executed = 1
            if report.passed and cell.execution_count is None:
                report.outcome = "failed"
                report.longrepr = (
                    "This cell was never executed, so nothing was compared: "
                    f"{first_line(cell)}\nExecute the chapter: python -m ddpm_lite book press"
                )
            elif report.passed and "nbval-ignore-output" not in cell.metadata.get("tags", []):
                text = compared_text(cell)
                counts.compared, counts.numbers = int(bool(text.strip())), count_numbers(text)
        report.user_properties.append((PROPERTY, asdict(counts)))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == PROPERTY and isinstance(value, dict):
                chapter = Path(report.nodeid.split("::")[0]).stem
                self.chapters[chapter] = self.chapters.get(chapter, Counts()) + Counts(**value)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.chapters:
            terminalreporter.section("chapters")
            for line in table(self.chapters):
                terminalreporter.write_line(line)


def compared_text(cell: NotebookNode) -> str:
    """The text among a cell's stored outputs, without what goes with pictures."""
    return "\n".join(filter(None, map(_text, cell.outputs)))


def _text(output: NotebookNode) -> str:
    if output.output_type == "stream":
        return str(output.text)
    data = output.get("data", {})
    if any(kind.startswith("image/") for kind in data) or output.output_type == "error":
        return ""
    for kind in ("text/plain", "text/markdown", "text/latex"):
        if kind in data:
            return str(data[kind])
    return TAGS.sub(" ", data.get("text/html", ""))


def count_numbers(text: str) -> int:
    """The numerals in it, but for the lines in which claims and exercises report."""
    results = (line for line in text.splitlines() if not line.strip().startswith(tuple(MARKS)))
    return sum(len(NUMERAL.findall(line)) for line in results)


def table(chapters: dict[str, Counts]) -> Iterable[str]:
    """The lines of the summary; time is set against the budget in book.toml, if there is one."""
    try:
        budgets = {chapter.file: chapter.seconds for chapter in manifest.load().chapters}
    except BookError:
        budgets = {}
    rows = [*sorted(chapters.items()), ("together", sum(chapters.values(), Counts()))]
    width = max(len(name) for name, _ in rows)
    yield f"{'':{width}}  {'executed':>8}  {'compared':>8}  {'numbers':>7}  {'seconds':>7}"
    for name, c in rows:
        over = f"  over its {budgets[name]} s" if c.seconds > budgets.get(name, 1e9) else ""
        yield (
            f"{name:{width}}  {c.executed:8}  {c.compared:8}  {c.numbers:7}  {c.seconds:7.1f}{over}"
        )

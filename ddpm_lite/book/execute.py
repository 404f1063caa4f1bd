"""Executing a chapter: the outputs are stored if every cell is green, and otherwise nothing is.

A chapter runs in its own folder, in a kernel of this very environment, that sees nothing of the
user's: no progress file, no IPython start-up files, no matplotlib back end from the shell.
"""

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

import ddpm_lite
from ddpm_lite.book import BookError, pairs
from ddpm_lite.book.files import write_whole
from ddpm_lite.book.manifest import Chapter

CELL_TIMEOUT = 1200  # seconds; more than chapter 7 takes as a whole, on one busy core
INLINE = "module://matplotlib_inline.backend_inline"
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@contextmanager
def clean_room(backend: str = INLINE) -> Iterator[dict[str, str]]:
    """An environment for a chapter, with an empty home for progress and for IPython's files."""
    with tempfile.TemporaryDirectory(prefix="ddpm-lite-") as home:
        yield os.environ | clean_variables(Path(home), backend)


def clean_variables(home: Path, backend: str = INLINE) -> dict[str, str]:
    """The environment variables that stand between a chapter and the user's own settings."""
    return {
        "PYTHONPATH": library_path(),
        "DDPM_LITE_HOME": str(home / "progress"),
        "IPYTHONDIR": str(home / "ipython"),
        "MPLBACKEND": backend,
        "MATPLOTLIBRC": os.devnull,
        "PYTHONWARNINGS": "",
        "PYTHONIOENCODING": "utf-8",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def library_path() -> str:
    """PYTHONPATH with the ddpm_lite that runs now in front, installed or not."""
    library = str(Path(ddpm_lite.__file__).parents[1])
    return os.pathsep.join(filter(None, (library, os.environ.get("PYTHONPATH"))))


@dataclass(frozen=True)
class Pressed:
    """What the press did with a chapter."""

    chapter: Chapter
    seconds: float  # 0 if nothing had to run
    changed: bool  # was the file written?


def press(chapter: Chapter, always: bool = False) -> Pressed:
    """Bring the chapter's notebook up to date; run it only if its code changed, or `always`."""
    fresh = pairs.read_script(chapter.source)
    _tidy(chapter.source, fresh)
    old = pairs.read_notebook(chapter.notebook) if chapter.notebook.is_file() else None
    notebook = pairs.adopt(fresh, old)
    seconds = 0.0
    if always or _needs_running(notebook):
        started = time.perf_counter()
        execute(notebook, chapter.source)
        seconds = time.perf_counter() - started
        notebook.metadata[pairs.RECORD] = {"executed": pairs.code_hash(notebook)}
    return Pressed(chapter, seconds, pairs.write_notebook(chapter.notebook, notebook))


def _needs_running(notebook: NotebookNode) -> bool:
    recorded = notebook.metadata.get(pairs.RECORD, {}).get("executed")
    return recorded != pairs.code_hash(notebook) or bool(pairs.execution_problems(notebook))


def _tidy(source: Path, fresh: NotebookNode) -> None:
    """Give the script its one form, a blank line between cells: a notebook turns back into it."""
    if write_whole(source, pairs.script_of(fresh)):
        print(f"{source.name}: blank lines between cells tidied")


def execute(notebook: NotebookNode, source: Path) -> None:
    """Run all code cells of `notebook` in `source`'s folder and keep their outputs in it."""
    # no folders to look in, so that "python3" is this Python and not one that the user installed
    own = KernelSpecManager(kernel_dirs=[])
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=own)
    client = NotebookClient(
        notebook,
        km=manager,
        timeout=CELL_TIMEOUT,
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,  # how the printed text was cut into messages is chance
        resources={"metadata": {"path": str(source.parent)}},
    )
    for cell in pairs.code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    language = notebook.metadata["language_info"]
    try:
        with clean_room() as variables:
            client.execute(env=variables, cleanup_kc=True, stderr=subprocess.DEVNULL)
    except CellExecutionError as error:
        raise BookError(_what_failed(notebook, source, error)) from None
    except CellTimeoutError:
        raise BookError(f"{_where(notebook, source)} ran for more than {CELL_TIMEOUT} s") from None
    except DeadKernelError:
        raise BookError(f"{_where(notebook, source)}: the kernel died (out of memory?)") from None
    notebook.metadata["language_info"] = language  # nbclient writes Python's version there
    _refuse_stderr(notebook, source)


def _what_failed(notebook: NotebookNode, source: Path, error: CellExecutionError) -> str:
    """Place, line and reason, in three lines instead of a traceback of pages."""
    _, cell = _failed_cell(notebook)
    traceback = ANSI.sub(
        "", "\n".join(cell.outputs[-1].get("traceback", [])) if cell.outputs else ""
    )
    lines = re.findall(rf"Cell In\[{cell.execution_count}\], line (\d+)", traceback)
    line = int(lines[-1]) if lines else 1
    text = cell.source.splitlines()[line - 1].strip()
    reason = ANSI.sub("", f"{error.ename}: {error.evalue}").strip()
    return f"{_where(notebook, source, line)} failed; nothing was stored\n    {text}\n{reason}"


def _where(notebook: NotebookNode, source: Path, line: int = 1) -> str:
    """ "03_x.py:214, cell 12": cells are counted from 0, code cells only, as nbval counts them."""
    index, cell = _failed_cell(notebook)
    return f"{source.name}:{_marker(notebook, source, cell) + line}, cell {index}"


def _marker(notebook: NotebookNode, source: Path, cell: NotebookNode) -> int:
    lines = pairs.marker_lines(source.read_text(encoding="utf-8"))
    return next(line for line, one in zip(lines, notebook.cells, strict=True) if one.id == cell.id)


def _failed_cell(notebook: NotebookNode) -> tuple[int, NotebookNode]:
    """The last cell that was begun."""
    cells = pairs.code_cells(notebook)
    for index, cell in reversed(list(enumerate(cells))):
        if cell.execution_count is not None or cell.outputs:
            return index, cell
    return 0, cells[0]


def _refuse_stderr(notebook: NotebookNode, source: Path) -> None:
    """A warning carries a process number in its path: the stored text would differ at every run."""
    for index, cell in enumerate(pairs.code_cells(notebook)):
        noise = "".join(
            o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stderr"
        )
        if noise and "nbval-ignore-output" not in cell.metadata.get("tags", []):
            line = _marker(notebook, source, cell) + 1
            raise BookError(
                f"{source.name}:{line}, cell {index} writes to stderr, which differs from run to "
                f"run; nothing was stored\n    {noise.strip().splitlines()[0]}"
            )

"""A chapter's two faces: the percent script that people write, the notebook that holds its outputs.

The script is the source. The two are compared by content, never by modification time, and the
notebook is brought up to date in place, so that a cell that stays keeps its id and a diff shows
only what changed.
"""

import hashlib
import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from pathlib import Path

import jupytext
import nbformat
from jupytext.config import JupytextConfiguration
from nbformat import NotebookNode

from ddpm_lite.book import BookError
from ddpm_lite.book.files import write_whole

FORMAT = "py:percent"
# The same two filters stand in chapters/jupytext.toml, for those who edit in JupyterLab.
FILTERS = {
    "notebook_metadata_filter": "kernelspec,-all",
    "cell_metadata_filter": "tags,nbgrader,-all",
}
HEADER = """\
# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---
"""
FOLDED = "hide-input"  # a cell with this tag opens in JupyterLab with its code folded away
RECORD = "ddpm_lite"  # the notebook metadata in which the press keeps its record


def script_of(notebook: NotebookNode) -> str:
    """The percent script that says the same as `notebook`."""
    bare = nbformat.from_dict({**notebook, "metadata": {**notebook.metadata}})
    bare.metadata.pop("jupytext", None)
    return jupytext.writes(bare, FORMAT, config=JupytextConfiguration(**FILTERS))


def read_script(path: Path) -> NotebookNode:
    """The cells of a percent script, without outputs; metadata reduced to what a notebook keeps."""
    if not path.is_file():
        raise BookError(f"{path.name} does not exist")
    text = path.read_text(encoding="utf-8")
    if not text.startswith(HEADER):
        raise BookError(
            f"{path.name} must begin with the seven-line jupyter header that names the kernel "
            "(copy it from another chapter)"
        )
    script = jupytext.reads(text, FORMAT, config=JupytextConfiguration(**FILTERS))
    if len(script.cells) != len(marker_lines(text)):
        raise BookError(f"{path.name}: every cell, the first too, must begin with a `# %%` line")
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": script.metadata["kernelspec"]})
    for cell in script.cells:
        kept = {key: cell.metadata[key] for key in ("tags", "nbgrader") if key in cell.metadata}
        if FOLDED in kept.get("tags", []):
            kept["jupyter"] = {"source_hidden": True}
        make = {
            "code": nbformat.v4.new_code_cell,
            "markdown": nbformat.v4.new_markdown_cell,
            "raw": nbformat.v4.new_raw_cell,
        }[cell.cell_type]
        notebook.cells.append(make(cell.source.strip("\n"), metadata=kept))
    return notebook


def marker_lines(script: str) -> list[int]:
    """The line, counted from 1, of the `# %%` that begins each cell; its text starts one below."""
    return [n for n, line in enumerate(script.splitlines(), 1) if re.match(r"# %%( |$)", line)]


def read_notebook(path: Path) -> NotebookNode:
    try:
        return nbformat.read(path, as_version=4)
    except (ValueError, nbformat.reader.NotJSONError) as error:
        raise BookError(
            f"{path.name} is not a readable notebook: {str(error).splitlines()[0][:120]}"
        ) from None


def write_notebook(path: Path, notebook: NotebookNode) -> bool:
    nbformat.validate(notebook)
    return write_whole(path, nbformat.writes(notebook) + "\n")


def code_hash(notebook: NotebookNode) -> str:
    """A fingerprint of what execution depends on: the code cells in order, and their tags."""
    digest = hashlib.sha256()
    for cell in code_cells(notebook):
        digest.update(repr((cell.source, list(cell.metadata.get("tags", [])))).encode())
    return digest.hexdigest()[:16]


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def adopt(fresh: NotebookNode, old: NotebookNode | None) -> NotebookNode:
    """`fresh` with the ids of the cells of `old` that it keeps, and the outputs of unchanged code.

    A cell that was edited in place keeps its id as well; a new cell gets one made from its text, so
    that two people who press the same source get the same file.
    """
    old_cells = old.cells if old else []
    taken: set[str] = set()
    for kept, new in _matches(old_cells, fresh.cells):
        if "id" in kept and kept.id not in taken:
            new.id = kept.id
            taken.add(kept.id)
            new.metadata["kept"] = True
        if new.cell_type == "code" and kept.source == new.source:
            new.outputs, new.execution_count = kept.outputs, kept.execution_count
    for cell in fresh.cells:
        if not cell.metadata.pop("kept", False):
            cell.id = _new_id(cell, taken)
            taken.add(cell.id)
    if old and RECORD in old.metadata:
        fresh.metadata[RECORD] = old.metadata[RECORD]
    fresh.metadata["language_info"] = {
        "name": "python",
        "file_extension": ".py",
        "mimetype": "text/x-python",
    }
    return fresh


def _matches(
    old: list[NotebookNode], new: list[NotebookNode]
) -> Iterator[tuple[NotebookNode, NotebookNode]]:
    """Pairs (old cell, new cell): the same text, or one kind of cell edited in the same place."""
    before, after = ([(cell.cell_type, cell.source) for cell in cells] for cells in (old, new))
    for kind, i, i_end, j, j_end in SequenceMatcher(
        None, before, after, autojunk=False
    ).get_opcodes():
        if kind in ("equal", "replace"):
            for a, b in zip(old[i:i_end], new[j:j_end], strict=False):
                if a.cell_type == b.cell_type:
                    yield a, b


def _new_id(cell: NotebookNode, taken: set[str]) -> str:
    for attempt in range(len(taken) + 1):
        id = hashlib.sha256(f"{cell.cell_type} {attempt} {cell.source}".encode()).hexdigest()[:8]
        if id not in taken:
            return id
    raise AssertionError("more ids tried than are taken")


def problems(source: Path, notebook: Path) -> list[str]:
    """Why the pair is not fit to print, one sentence each; empty if it is."""
    if not notebook.is_file():
        return ["has never been executed: there is no .ipynb"]
    found = []
    pressed, written = read_notebook(notebook), source.read_text(encoding="utf-8")
    if (line := _first_difference(script_of(pressed), written)) is not None:
        found.append(f"the notebook and {source.name} differ, first at line {line} of the script")
    elif pressed.metadata.get(RECORD, {}).get("executed") != code_hash(pressed):
        found.append("its outputs were made by other code than it now holds")
    return found + execution_problems(pressed)


def execution_problems(notebook: NotebookNode) -> list[str]:
    """What shows that the code cells were not run once each, in order, in a fresh kernel."""
    found = []
    for index, cell in enumerate(code_cells(notebook)):
        if not cell.source.strip():
            found.append(f"cell {index} is empty")
        elif cell.execution_count is None:
            found.append(
                f"cell {index} was not executed, so nothing would be compared: {first_line(cell)}"
            )
        elif cell.execution_count != index + 1:
            found.append(
                f"cell {index} was executed out of order, as number {cell.execution_count}"
            )
        if any(output.output_type == "error" for output in cell.outputs):
            found.append(f"cell {index} ended in an error: {first_line(cell)}")
    return found


def first_line(cell: NotebookNode) -> str:
    """The first line of a cell that says something."""
    lines = [line.strip() for line in cell.source.splitlines() if line.strip()]
    return next(
        (line for line in lines if not line.startswith("#")), lines[0] if lines else "(empty)"
    )


def _first_difference(a: str, b: str) -> int | None:
    """The 1-based line at which two texts part, or None."""
    if a == b:
        return None
    left, right = a.splitlines(keepends=True), b.splitlines(keepends=True)
    for number, (x, y) in enumerate(zip(left, right, strict=False), 1):
        if x != y:
            return number
    return min(len(left), len(right)) + 1

"""A chapter as a plain script: `python chapters/03_….py` prints what its notebook stores.

That is how a chapter is tried on a machine without Jupyter, and it holds the two ways of running a
chapter together. Pictures are left out; the text of a cell tagged `nbval-ignore-output` may be any.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path

from nbformat import NotebookNode

from ddpm_lite.book import BookError, pairs
from ddpm_lite.book.execute import clean_room

ANYTHING = "…"  # stands, in a difference, for text that may be any
TIMEOUT = 600  # seconds


def problems(source: Path, notebook: Path) -> list[str]:
    """How the script's text differs from the stored text; empty if it does not."""
    return differences(run(source), notebook)


def differences(printed: str, notebook: Path) -> list[str]:
    """How what a script printed differs from the stored text; empty if it does not."""
    pieces, faults = stored_text(pairs.read_notebook(notebook))
    if not faults and not _fits(printed, pieces):
        wanted = f"{ANYTHING}\n".join(pieces).splitlines()
        difference = unified_diff(
            wanted, printed.splitlines(), "notebook", "script", n=1, lineterm=""
        )
        faults.append("\n".join(["prints other text than is stored:", *list(difference)[:30]]))
    return faults


def run(source: Path) -> str:
    """What the script prints."""
    return _python(source, str(source))


def _python(source: Path, *arguments: str) -> str:
    """What Python prints; BookError with the end of its traceback if it fails."""
    with clean_room(backend="Agg") as variables:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=source.parent,
            env=variables,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=TIMEOUT,
        )
    if done.returncode:
        end = "\n".join(done.stderr.strip().splitlines()[-3:])
        raise BookError(f"python {source.name} failed:\n{end}")
    return done.stdout


def stored_text(notebook: NotebookNode) -> tuple[list[str], list[str]]:
    """The printed text, cut where a cell's text may be any, and what a script could not print."""
    pieces, faults = [""], []
    for index, cell in enumerate(pairs.code_cells(notebook)):
        if "nbval-ignore-output" in cell.metadata.get("tags", []):
            pieces.append("")
            continue
        if any(output.output_type == "execute_result" for output in cell.outputs):
            faults.append(f"cell {index} ends in a value; a script shows none: print it")
        pieces[-1] += "".join(map(_printed, cell.outputs))
    return pieces, faults


def _printed(output: NotebookNode) -> str:
    if output.output_type == "stream":
        return str(output.text)
    data = output.get("data", {})
    shown = "" if any(kind.startswith("image/") for kind in data) else data.get("text/plain", "")
    return f"{shown}\n" if shown else ""


def _fits(printed: str, pieces: list[str]) -> bool:
    """Do the pieces stand in the text, in order, the first at its start and the last at its end?"""
    *earlier, last = pieces
    at = 0
    for number, piece in enumerate(earlier):
        at = printed.find(piece, at)
        if at < 0 or (number == 0 and at > 0):
            return False
        at += len(piece)
    return printed[at:] == last if not earlier else printed[at:].endswith(last)


@dataclass(frozen=True)
class Perturbed:
    """A claim that held, and the change of its left side after which it did not."""

    equation: str
    kind: str
    numbers: int
    bite: str


LEDGER = """
import dataclasses, json, runpy, sys
runpy.run_path(sys.argv[1], run_name="__main__")
from ddpm_lite.claims import ledger
print("\\n" + json.dumps([dataclasses.asdict(passed) for passed in ledger()]))
"""


def perturbed(source: Path) -> list[Perturbed]:
    """Run a chapter and read the ledger of its claims."""
    entries = json.loads(_python(source, "-c", LEDGER, str(source)).splitlines()[-1])
    names = ("equation", "kind", "numbers", "bite")
    return [Perturbed(**{name: entry[name] for name in names}) for entry in entries]

"""Measurements that take too long for a chapter, kept as JSON and refused when they are stale.

A chapter that needs a curve which takes minutes reads it from ``measurements/NAME.json`` and
measures one cheap point of it live. ``measurements/NAME.py`` is the program that wrote the file;
``make measure`` runs those whose files are missing or stale. A file says what was run, with which
seed, on which machine, and from which code and weights:

    {"name": "digits", "command": "python measurements/digits.py", "seed": 0, "seconds": 812.0,
     "machine": {"processor": …, "cores": 2, "python": …, "torch": …, …},
     "sources": {"ddpm_lite/sampling.py": <fingerprint>, …, "…/model.safetensors": <SHA-256>},
     "results": {…}}

Stale means that one of these sources has another fingerprint now. For Python it is a hash of the
code without comments, documentation strings and blank lines, so that better words cost nothing;
for every other file it is a hash of its bytes.
"""

from __future__ import annotations

import ast
import hashlib
import io
import os
import platform
import sys
import time
import tokenize
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from ddpm_lite.storage import read_json, to_json, write_atomically

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "measurements"


def measured(name: str, folder: Path = FOLDER) -> dict[str, Any]:
    """The results in ``measurements/<name>.json``.

    Raises:
        FileNotFoundError: if there is no such file, in one sentence that says what makes it.
    """
    path = folder / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"There is no measurement {path}: `make measure` makes it.")
    results: dict[str, Any] = read_json(path)["results"]
    return results


def measure(
    name: str,
    work: Callable[[], dict[str, Any]],
    *,
    seed: int,
    sources: Iterable[str],
    folder: Path = FOLDER,
) -> None:
    """Call `work` and write what it returns to ``measurements/<name>.json``, whole or not at all.

    Args:
        work: returns the results, as JSON can hold them.
        seed: the one that `work` uses, for the record.
        sources: the files on which the results depend, from the repository's root.
    """
    before = {source: fingerprint(ROOT / source) for source in sorted(sources)}
    start = time.monotonic()
    results = work()
    record = {
        "name": name,
        "command": f"python measurements/{name}.py",
        "seed": seed,
        "seconds": round(time.monotonic() - start, 1),
        "machine": machine(),
        "sources": before,
        "results": results,
    }
    write_atomically(folder / f"{name}.json", to_json(record))


def problems(path: Path) -> list[str]:
    """Why a measurement's file is stale, a sentence for each of its sources; [] if it is not."""
    found = []
    for source, noted in read_json(path)["sources"].items():
        if not (ROOT / source).is_file():
            found.append(f"{path.name}: {source} is gone; run `make measure`.")
        elif fingerprint(ROOT / source) != noted:
            found.append(f"{path.name}: {source} has changed since; run `make measure`.")
    return found


def machine() -> dict[str, Any]:
    """What a number of seconds, or the last digits of a result, may depend on."""
    record: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        record["gpu"] = torch.cuda.get_device_name()
    return record


def _processor() -> str:
    """The processor's name, where Linux tells it; else what Python knows."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


# ---- fingerprints -------------------------------------------------------------------------------


def fingerprint(path: Path) -> str:
    """A hash of what the file does: of Python without its words, of anything else every byte."""
    content = path.read_bytes()
    if path.suffix == ".py":
        content = _without_words(content.decode("utf-8")).encode("utf-8")
    return hashlib.sha256(content).hexdigest()[:32]


def _without_words(code: str) -> str:
    """Python without comments, documentation strings, blank lines and space at a line's end."""
    lines: list[str] = code.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            _blank_docstring(node, lines)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _blank_docstring(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]
) -> None:
    if ast.get_docstring(node, clean=False) is None:
        return
    statement = node.body[0]
    for row in range(statement.lineno, (statement.end_lineno or statement.lineno) + 1):
        lines[row - 1] = ""


# ---- `make measure` -----------------------------------------------------------------------------


def main() -> int:
    """Run each program in ``measurements/`` whose file is missing or stale."""
    import subprocess

    for program in sorted(FOLDER.glob("*.py")):
        path = program.with_suffix(".json")
        reasons = problems(path) if path.is_file() else [f"{path.name} is missing."]
        if not reasons:
            print(f"✓ {path.name} is up to date")
            continue
        print("\n".join(reasons), flush=True)
        if subprocess.run([sys.executable, str(program)], cwd=ROOT).returncode:
            print(f"✗ {program.name} failed; {path.name} is as it was", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

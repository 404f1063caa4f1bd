"""The folder of a training run: what lies in it, how it is written, and what is refused.

    config.json                      what is trained, on what, how, and what was chosen for it
    metrics.jsonl                    one JSON object per record
    checkpoints/step-*.safetensors   the last two, each with all that going on needs

A checkpoint carries the run's identity (network, process, settings, a hash of the data) and its
records: it can only be resumed as the same run, and metrics.jsonl can be written again from it.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm_lite.storage import (
    Record,
    clear_partial_files,
    make_folder,
    read_json,
    read_tensors,
    to_json,
    write_atomically,
    write_tensors,
)

CHECKPOINT_FORMAT = "ddpm-lite checkpoint 1"
RUN_FORMAT = "ddpm-lite run 1"
CHECKPOINTS_KEPT = 2


@dataclass(frozen=True)
class RunFolder:
    """A folder that one process writes, for a run of one identity (a record as JSON has it)."""

    path: Path
    identity: Record

    def open(self, chosen: Record, *, new: bool) -> None:
        """Make the folder, or take it over; `chosen` is what was decided for this machine.

        Raises:
            FileExistsError: if it should be new and holds a run.
            OSError: if it cannot be written.
        """
        if new and (self.path / "config.json").exists():
            raise FileExistsError(
                f"{self.path} holds a run already: go on with it by Trainer.resume, or choose "
                "another folder."
            )
        make_folder(self.path / "checkpoints")
        for place in (self.path, self.path / "checkpoints"):
            clear_partial_files(place)
        record = {"format": RUN_FORMAT, "run": self.identity, "chosen": chosen}
        write_atomically(self.path / "config.json", to_json(record))

    def append(self, record: Record) -> None:
        """Add a line to metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(_json_line(record))
        except OSError as error:
            reason = error.strerror or error
            raise type(error)(
                f"could not write {path}: {reason}; the checkpoints are as they were."
            ) from error

    def write_metrics(self, history: list[Record]) -> None:
        """metrics.jsonl anew: no torn line in it, and none from beyond the last of these."""
        lines = "".join(_json_line(record) for record in history)
        write_atomically(self.path / "metrics.jsonl", lines.encode())

    def save(self, step: int, tensors: dict[str, Tensor], history: list[Record]) -> None:
        """Write the checkpoint of this step; only then let go of all but the last two."""
        record = {
            "format": CHECKPOINT_FORMAT,
            "step": step,
            "run": self.identity,
            "history": history,
        }
        path = self.path / "checkpoints" / f"step-{step:08d}.safetensors"
        write_tensors(path, tensors, record)
        for old in checkpoints(self.path)[:-CHECKPOINTS_KEPT]:
            old.unlink(missing_ok=True)


def checkpoints(folder: Path) -> list[Path]:
    """Those in a run's folder, oldest first."""
    found = (folder / "checkpoints").glob("step-*.safetensors")
    named = [path for path in found if re.fullmatch(r"step-\d+", path.stem)]
    return sorted(named, key=lambda path: int(path.stem.removeprefix("step-")))


def read_checkpoint(folder: Path) -> tuple[Path, dict[str, Tensor], Record]:
    """(path, tensors, record) of the newest one.

    Raises:
        OSError: if there is none, or it cannot be read.
        ValueError: if it is truncated or foreign, or of another run than config.json describes.
    """
    found = checkpoints(folder)
    if not found:
        raise FileNotFoundError(f"there is no run in {folder}: it holds no checkpoint.")
    path = found[-1]
    try:
        tensors, record = read_tensors(path)
        if record.get("format") != CHECKPOINT_FORMAT:
            raise ValueError(
                f"{path} is not a checkpoint: its record says {record.get('format')!r}."
            )
    except ValueError as error:
        if len(found) == 1:
            raise
        raise ValueError(f"{error} Delete it to resume from {found[-2].name}.") from error
    kept = read_json(folder / "config.json").get("run", {})
    refuse_difference(path, record["run"], kept, str(folder / "config.json"))
    return path, tensors, record


def refuse_difference(path: Path, kept: Any, here: Any, source: str) -> None:
    """Refuse a checkpoint that was written under another description, naming where they part.

    Raises:
        ValueError: if the two are not equal.
    """
    found = _first_difference(kept, here, "")
    if found is not None:
        key, before, now = found
        raise ValueError(
            f"{path} belongs to another run: it was written with {key} = {before!r}, but "
            f"{source} says {now!r}."
        )


def _first_difference(left: Any, right: Any, key: str) -> tuple[str, Any, Any] | None:
    if isinstance(left, dict) and isinstance(right, dict):
        for name in [*left, *(right.keys() - left.keys())]:
            inner = f"{key}.{name}" if key else str(name)
            found = _first_difference(left.get(name), right.get(name), inner)
            if found is not None:
                return found
        return None
    return None if left == right else (key, left, right)


def describe_data(images: Tensor, labels: Tensor | None) -> Record:
    """Shape and hash: enough to tell whether a run goes on with the data it began with."""
    return {
        "shape": list(images.shape),
        "sha256": sha256(images),
        "labels_sha256": None if labels is None else sha256(labels),
    }


def sha256(*tensors: Tensor) -> str:
    """Of the tensors' bytes, one after the other."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _json_line(record: Record) -> str:
    return json.dumps(record, allow_nan=False) + "\n"

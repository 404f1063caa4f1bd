"""The reader's progress: one JSON file of their own, outside the repository.

It is written to a temporary file, synced and renamed, so that it is whole at any moment. A change
is made to the newest contents, under a lock, so that two notebooks at once lose nothing. A damaged
file is set aside. What cannot be written is kept, and tried again with the next change.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Entry = dict[str, Any]  # of one exercise: its "status" and the number of "hints" that were shown
State = dict[str, Entry]  # by exercise id
Change = Callable[[Entry], None]

RANK = {"attempted": 1, "noted": 2, "done": 3}
_unwritten: list[tuple[str, Change]] = []  # changes of this session that are in no file yet


def home() -> Path:
    """The folder of the progress file; the environment variable DDPM_LITE_HOME overrides it."""
    if folder := os.environ.get("DDPM_LITE_HOME"):
        return Path(folder).expanduser()
    from platformdirs import user_data_path

    return user_data_path("ddpm-lite", appauthor=False)


class Store:
    """The progress file in ``home()``. Complaints are lists of sentences to show to the reader."""

    def __init__(self) -> None:
        self.path = home() / "progress.json"

    def read(self) -> tuple[State, list[str]]:
        """The state now, with what could not be written yet."""
        try:
            state, complaint = self._load()
        except OSError as error:
            state, complaint = {}, [f"Your progress cannot be read: {_reason(error)}."]
        for id, change in _unwritten:
            change(state.setdefault(id, {}))
        return state, complaint

    def mark(self, id: str, status: str) -> tuple[Entry, list[str]]:
        """Note that an exercise was attempted, noted or done; what is done stays done."""

        def change(entry: Entry) -> None:
            if RANK[status] > RANK.get(entry.get("status", ""), 0):
                entry["status"] = status

        return self._change(id, change)

    def count_hint(self, id: str, most: int) -> tuple[Entry, list[str]]:
        """Note that one more hint was shown, up to ``most``."""

        def change(entry: Entry) -> None:
            entry["hints"] = min(entry.get("hints", 0) + 1, most)

        return self._change(id, change)

    def _change(self, id: str, change: Change) -> tuple[Entry, list[str]]:
        _unwritten.append((id, change))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _lock(self.path.with_suffix(".lock")):
                state, complaint = self.read()
                _write(self.path, {"version": 1, "exercises": state})
            _unwritten.clear()
        except OSError as error:
            state, _ = self.read()
            complaint = [f"Your progress cannot be saved: {_reason(error)}."]
        return state[id], complaint

    def _load(self) -> tuple[State, list[str]]:
        """The file's contents; a damaged file is renamed, and that is said."""
        try:
            state = json.loads(self.path.read_bytes())["exercises"]
            if all(map(_is_sound, state.values())):
                return state, []
        except FileNotFoundError:
            return {}, []
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            pass
        aside = _set_aside(self.path)
        return {}, [f"Your progress file was damaged; it is now {aside}, and a new one is begun."]


def _is_sound(entry: Any) -> bool:
    hints = entry.get("hints", 0)
    return entry.get("status", "done") in RANK and isinstance(hints, int) and hints >= 0


def _set_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_suffix(f".damaged-{number}.json")).exists():
        number += 1
    return path.rename(aside)


def _write(path: Path, contents: Any) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".new")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(contents, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the lock while the block runs, where the system has locks; closing the file frees it."""
    with open(path, "w") as file:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()

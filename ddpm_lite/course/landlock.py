"""Which files a Linux process may read, decided by itself and never again more (Landlock).

After ``allow_only(places)`` everything else on the machine cannot be read, and nothing can be
written. It needs no privilege and nothing installed, but a kernel of 2021 or later (5.13).
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on every architecture
ASK_VERSION, PATH_BENEATH, PR_SET_NO_NEW_PRIVS = 1, 1, 38
EXECUTE, READ_FILE, READ_DIR = 1 << 0, 1 << 2, 1 << 3
EVERYTHING = (1 << 13) - 1  # all rights that the first version knows, so that none is left open


def possible() -> bool:
    """Whether this kernel has Landlock, switched on."""
    return sys.platform == "linux" and _call(CREATE_RULESET, None, 0, ASK_VERSION) > 0


def allow_only(places: Iterable[Path], hidden: Path) -> None:
    """From here on, this process and its threads may read these places only, but not ``hidden``.

    Places that do not exist are passed over. Raises OSError where the kernel refuses.
    """
    rules = struct.pack("Q", EVERYTHING)
    ruleset = _checked(CREATE_RULESET, rules, len(rules), 0)
    for place in places:
        for path, rights in _around(place, hidden):
            _add(ruleset, path, rights)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _checked(RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _around(place: Path, hidden: Path) -> Iterator[tuple[Path, int]]:
    """A place with all that is in it, or piece by piece if ``hidden`` is in it."""
    if not place.exists() or place == hidden:
        return
    if not hidden.is_relative_to(place):
        yield place, EXECUTE | READ_FILE | READ_DIR
        return
    yield place, READ_DIR  # the names, which imports want; not the contents
    for inside in place.iterdir():
        yield from _around(inside, hidden)


def _add(ruleset: int, path: Path, rights: int) -> None:
    if not path.is_dir():
        rights &= ~READ_DIR
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = struct.pack("=Qi", rights, descriptor)
        _checked(ADD_RULE, ruleset, PATH_BENEATH, rule, 0)
    finally:
        os.close(descriptor)


def _checked(number: int, *arguments: object) -> int:
    result = _call(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock: {os.strerror(code)}")
    return result


def _call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.syscall(number, *arguments))

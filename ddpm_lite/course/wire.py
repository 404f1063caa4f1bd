"""Messages between the marker and the process that runs a student's code: JSON and plain arrays.

A message is the length of its header, the header as JSON, and the bytes of its arrays. Nothing is
pickled, nothing is executed, and whatever a student's code may write into the pipe is either a
message of this form or ``Garbled``. Only the standard library and NumPy: both sides load it.
"""

from __future__ import annotations

import json
import math
import os
import select
import struct
import time
from typing import Any

import numpy as np

HEADER = 1 << 20  # bytes, at most
ARRAYS = 1 << 26  # bytes, all arrays of a message together, at most
DTYPES = ("<f8", "<i8", "|b1")
DIMENSIONS = 16
# What reading a header of another form may raise.
MALFORMED = (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError)


class Garbled(Exception):
    """What came is no message, or too large for one."""


class Closed(Exception):
    """The other side is gone."""


class Late(Exception):
    """The other side did not answer in time."""


class Wire:
    """One end of two pipes, by their file descriptors."""

    def __init__(self, read: int, write: int) -> None:
        self.read, self.write = read, write

    def send(self, message: dict[str, Any], deadline: float | None = None) -> None:
        """Send a message, arrays anywhere in it. ``deadline`` is by the monotonic clock."""
        arrays: list[np.ndarray] = []
        header = json.dumps({"message": _pack(message, arrays), "arrays": _described(arrays)})
        encoded = header.encode()
        content = [struct.pack(">I", len(encoded)), encoded, *(a.tobytes() for a in arrays)]
        if len(encoded) > HEADER or sum(a.nbytes for a in arrays) > ARRAYS:
            raise Garbled("the message is too large")
        self._write(b"".join(content), deadline)

    def receive(self, deadline: float | None = None) -> dict[str, Any]:
        """The next message."""
        (length,) = struct.unpack(">I", self._read(4, deadline))
        if length > HEADER:
            raise Garbled(f"a header of {length} bytes")
        try:
            header = json.loads(self._read(length, deadline))
            shapes = [_checked(one) for one in header["arrays"]]
            if sum(_bytes(*one) for one in shapes) > ARRAYS:
                raise Garbled("too many numbers")
            arrays = [
                np.frombuffer(self._read(_bytes(dtype, shape), deadline), dtype).reshape(shape)
                for dtype, shape in shapes
            ]
            message = _unpack(header["message"], arrays)
        except MALFORMED as error:
            raise Garbled(f"no message: {type(error).__name__}") from None
        if not isinstance(message, dict):
            raise Garbled("no message: not an object")
        return message

    def _read(self, count: int, deadline: float | None) -> bytes:
        parts = []
        while count:
            _wait(self.read, select.POLLIN, deadline)
            part = os.read(self.read, min(count, 1 << 20))
            if not part:
                raise Closed
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _write(self, content: bytes, deadline: float | None) -> None:
        rest = memoryview(content)
        while rest:
            _wait(self.write, select.POLLOUT, deadline)
            try:
                rest = rest[os.write(self.write, rest[: 1 << 12]) :]
            except BrokenPipeError:
                raise Closed from None


def _wait(descriptor: int, event: int, deadline: float | None) -> None:
    """Until something can be read, or a page can be written without blocking."""
    left = None if deadline is None else deadline - time.monotonic()
    if left is not None and left <= 0:  # also if more is there: it might never end
        raise Late
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(None if left is None else left * 1000):
        raise Late


def _pack(value: Any, arrays: list[np.ndarray]) -> Any:
    """``value`` as JSON has it; each array is put aside and its number stands in its place."""
    if isinstance(value, np.ndarray):
        dtype = {"b": "|b1", "i": "<i8", "u": "<i8"}.get(value.dtype.kind, "<f8")
        arrays.append(np.ascontiguousarray(value, dtype=dtype).reshape(value.shape))
        return {"array": len(arrays) - 1}
    if isinstance(value, dict):
        return {"object": {str(key): _pack(one, arrays) for key, one in value.items()}}
    if isinstance(value, list | tuple):
        return [_pack(one, arrays) for one in value]
    return value


def _unpack(value: Any, arrays: list[np.ndarray]) -> Any:
    if isinstance(value, dict):
        if "array" in value:
            return arrays[value["array"]]
        return {key: _unpack(one, arrays) for key, one in value["object"].items()}
    if isinstance(value, list):
        return [_unpack(one, arrays) for one in value]
    return value


def _described(arrays: list[np.ndarray]) -> list[list[Any]]:
    return [[array.dtype.str, list(array.shape)] for array in arrays]


def _checked(described: Any) -> tuple[str, tuple[int, ...]]:
    dtype, shape = described
    sizes = tuple(shape)
    if dtype not in DTYPES or len(sizes) > DIMENSIONS:
        raise Garbled(f"an array of type {dtype!r:.20}")
    if not all(type(size) is int and 0 <= size <= ARRAYS for size in sizes):
        raise Garbled("an array of an impossible shape")
    return dtype, sizes


def _bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return np.dtype(dtype).itemsize * math.prod(shape)

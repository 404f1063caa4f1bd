"""What runs in the isolated process: it executes a student's cells and calls their functions.

Started by its path, with the numbers of two pipes, the folder of the library with the solutions,
which may be installed beside PyTorch, and the limits. It answers requests until the pipe closes:

    {"cell": text, "name": "3.2"}                    execute a cell
    {"value": "answer_3_1"}                          a number that a cell defined
    {"call": "compose", "parameters": [...], "arguments": [...]}    what a function returns

A student's code may do anything to this process. All that leaves it are arrays, the name of an
exception and the number of a line; nothing in it knows a right answer.
"""

from __future__ import annotations

import builtins
import inspect
import json
import linecache
import re
import resource
import sys
from pathlib import Path
from typing import Any

RUNTIME = Path(__file__).resolve().parents[2]  # the copy of the library that students may use
sys.path.insert(0, str(RUNTIME))

from ddpm_lite.course import confine, landlock  # noqa: E402

READABLE = (
    *("/usr", "/lib", "/lib64", "/etc/ld.so.cache"),
    *("/proc/self", "/proc/cpuinfo", "/sys", "/dev/null", "/dev/urandom"),
)


def limit(cpu_seconds: int, memory: int, file_size: int, open_files: int, **_: float) -> None:
    """Limits that only root could lift again, and the lock below keeps root from that."""
    for which, most in (
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, file_size),
        (resource.RLIMIT_NOFILE, open_files),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(which, (most, most))


def lock(hidden: Path) -> None:
    """From here on only Python and the library can be read, and nothing changed or started."""
    if landlock.possible():
        python = (sys.base_prefix, sys.prefix, str(RUNTIME))
        landlock.allow_only([Path(place) for place in (*READABLE, *python)], hidden)
    confine.lock()


if __name__ == "__main__":
    limit(**json.loads(sys.argv[4]))
    lock(Path(sys.argv[3]))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from ddpm_lite.course.wire import Closed, Garbled, Wire  # noqa: E402
from ddpm_lite.exercises import observe  # noqa: E402
from ddpm_lite.exercises.observe import Blank, Trouble  # noqa: E402

Reply = dict[str, Any]


class Like:
    """Something with the signature that an answer should have."""

    def __init__(self, parameters: list[str]) -> None:
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        self.__signature__ = inspect.Signature([inspect.Parameter(p, kind) for p in parameters])

    def __call__(self) -> None:
        raise AssertionError("only its signature is wanted")


class Room:
    """The namespace of the cells, and what can be asked of it."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.names: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins}

    def answer(self, request: Reply) -> Reply:
        """Do what was asked; a fault of the student's becomes a reply as well."""
        try:
            if "cell" in request:
                return self._cell(request["cell"], request["name"])
            if "value" in request:
                return {"values": [self._value(request["value"])]}
            return self._call(**request)
        except Blank:
            return {"blank": True}
        except Trouble as trouble:
            line = re.search(r"in line (\d+) of", trouble.sentence)
            return {"trouble": trouble.name, "line": int(line[1]) if line else 0} | (
                {"parameters": trouble.sentence} if trouble.name == "arguments" else {}
            )

    def _cell(self, text: str, name: str) -> Reply:
        file = f"<exercise {name}>"
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
        try:
            code = compile(text, file, "exec")
        except (SyntaxError, ValueError) as error:
            return {"trouble": type(error).__name__, "line": getattr(error, "lineno", 0) or 0}
        with observe.speak_of_errors(code):
            exec(code, self.names)
        return {}

    def _value(self, name: str) -> np.ndarray:
        value = self.names.get(name)
        if value is None:
            raise Blank
        if callable(value):
            raise Trouble("function", "")
        return observe.as_array(value, "Your answer is")

    def _call(self, call: str, parameters: list[str], arguments: list[Any]) -> Reply:
        function = self.names.get(call)
        if not callable(function):
            raise Trouble("name", "")
        given = [self._argument(one) for one in arguments]
        before = [one.clone() if isinstance(one, torch.Tensor) else one for one in given]
        values = observe.call(function, given, Like(parameters))
        changed = {
            str(place): now.detach().numpy()
            for place, (now, was) in enumerate(zip(given, before, strict=True))
            if isinstance(was, torch.Tensor) and not torch.equal(now, was)
        }
        return {"values": values, "changed": changed}

    def _argument(self, value: Any) -> Any:
        """An argument as the student's function is given it."""
        if isinstance(value, np.ndarray):
            return torch.from_numpy(np.array(value))
        if isinstance(value, dict):  # a stand-in for a network, which stays on the other side
            return lambda *arguments: self._call_back(value["callable"], arguments)
        return value

    def _call_back(self, place: int, arguments: tuple[Any, ...]) -> torch.Tensor:
        """Ask the other side what a network returns."""
        packed = [
            one.detach().numpy() if isinstance(one, torch.Tensor) else one for one in arguments
        ]
        self.wire.send({"call back": place, "arguments": packed})
        reply = self.wire.receive()
        if "raised" in reply:
            raise ValueError("the network cannot be called with these arguments")
        return torch.from_numpy(np.array(reply["value"]))


def serve(wire: Wire) -> None:
    """Answer requests until the other side closes."""
    room = Room(wire)
    torch.set_num_threads(1)
    try:
        wire.send({"ready": True})
        while True:
            reply = room.answer(wire.receive())
            try:
                wire.send(reply)
            except Garbled:
                wire.send({"trouble": "size", "line": 0})
    except Closed:
        return


if __name__ == "__main__":
    serve(Wire(int(sys.argv[1]), int(sys.argv[2])))

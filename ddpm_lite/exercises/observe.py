"""Run an answer and keep only arrays of what it returns.

A reader's code may do anything: loop for ever, call itself, exit, change what it was given, return
a string. Each of these becomes one sentence (a ``Trouble``), never a traceback.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import linecache
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import numpy as np
import torch

from ddpm_lite.exercises.exercise import Exercise

TIME_LIMIT = 10.0  # seconds for all the calls of one check, of which a right answer needs few
Inputs = Sequence[tuple[Any, ...]]


class Blank(Exception):
    """The stub is as the chapter left it."""


class Trouble(Exception):
    """Nothing to compare: why, in a word (an exception has its name) and in a sentence."""

    def __init__(self, name: str, sentence: str) -> None:
        super().__init__(sentence)
        self.name, self.sentence = name, sentence


class _TimeUp(BaseException):
    """Not an ``Exception``, so that ``except Exception`` in the reader's loop lets it through."""


@dataclass
class Observation:
    """What an answer returned, as arrays; for a call that raised, the sentence by the same key."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    troubles: dict[str, str] = field(default_factory=dict)

    def note(self, call: int | str, trouble: Trouble) -> None:
        """Record a call that raised."""
        self.arrays[f"raised@{call}"] = np.array(trouble.name)
        self.troubles[f"raised@{call}"] = trouble.sentence


def observe(exercise: Exercise, answer: Any, inputs: Inputs) -> Observation:
    """Run an answer on every input; ``Blank`` or ``Trouble`` if that is pointless."""
    seen = Observation()
    if exercise.kind == "number":
        number = answer() if callable(answer) else answer
        seen.arrays["0@"] = as_array(number, "Your answer is")
    elif exercise.observe is not None:
        _observe_specially(exercise, answer, inputs, seen)
    else:
        for call, arguments in enumerate(inputs):
            try:
                values = run(answer, arguments, exercise.reference)
            except Trouble as trouble:
                if trouble.name == "arguments":
                    raise
                seen.note(call, trouble)
            else:
                seen.arrays |= {f"{slot}@{call}": value for slot, value in enumerate(values)}
    return seen


def _observe_specially(exercise: Exercise, answer: Any, inputs: Inputs, seen: Observation) -> None:
    """The exercise's own ``observe``, with an answer that returns float64 arrays or raises."""

    def guarded(*arguments: Any) -> Any:
        values = run(answer, arguments, exercise.reference)
        return values[0] if len(values) == 1 else tuple(values)

    assert exercise.observe is not None
    try:
        arrays = exercise.observe(guarded, inputs)
    except Trouble as trouble:
        seen.note("", trouble)
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        # The exercise's own arithmetic met another shape, or another number of values.
        seen.note("", Trouble("type", f"What you return does not fit the question: {error}."))
    else:
        seen.arrays |= {key: np.asarray(array) for key, array in arrays.items()}


# ---- one call ------------------------------------------------------------------------------------


def run(answer: Callable[..., Any], arguments: Sequence[Any], like: Any) -> list[np.ndarray]:
    """Call an answer on fresh copies and return its values; ``like`` has the right signature."""
    return call(answer, [_fresh(argument) for argument in arguments], like)


def call(answer: Callable[..., Any], arguments: Sequence[Any], like: Any) -> list[np.ndarray]:
    """Call an answer on the arguments themselves, which it may change."""
    _check_arguments(answer, arguments, like)
    with speak_of_errors(code_of(answer)):
        result = answer(*arguments)
    several = isinstance(result, tuple | list) and len(result) > 0
    return [
        as_array(value, "Your function returned") for value in (result if several else [result])
    ]


def _fresh(argument: Any) -> Any:
    """A copy of an argument, in the form in which the reader sees it."""
    if isinstance(argument, np.ndarray):
        dtype = {"b": np.bool_, "i": np.int64, "u": np.int64}.get(argument.dtype.kind, np.float64)
        return torch.from_numpy(np.array(argument, dtype=dtype))
    if isinstance(argument, np.generic):
        return argument.item()
    if isinstance(argument, torch.Tensor):
        return argument.detach().clone()
    return argument if callable(argument) else copy.deepcopy(argument)


def _check_arguments(answer: Callable[..., Any], arguments: Sequence[Any], like: Any) -> None:
    try:
        signature = inspect.signature(answer)
    except (TypeError, ValueError):  # some built-in functions have none
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        given, wanted = (_parameters(s) for s in (signature, inspect.signature(like)))
        said = f"Your function takes {given}, and should take {wanted}."
        raise Trouble("arguments", said) from None


def _parameters(signature: inspect.Signature) -> str:
    return ", ".join(map(str, signature.parameters.values())) or "no arguments"


# ---- whatever the reader's code may do -----------------------------------------------------------


@contextlib.contextmanager
def speak_of_errors(code: CodeType | None) -> Iterator[None]:
    """Turn whatever the reader's ``code`` raises into ``Blank`` or ``Trouble``, but for Ctrl-C."""
    try:
        yield
    except (Blank, Trouble):  # what stands for a function that ran elsewhere says it itself
        raise
    except RecursionError:
        raise Trouble("RecursionError", "Your function calls itself without end.") from None
    except (Exception, SystemExit) as error:
        if type(error) is NotImplementedError and _raised_by(error, code):
            raise Blank from None
        name = type(error).__name__
        reason = " ".join(str(error).split()).rstrip(".")
        said = f"{name}: {reason}" if reason and error.args != (None,) else name
        raise Trouble(name, f"Your code raised {said}{_line_of(error, code)}.") from None


@contextlib.contextmanager
def time_limit(seconds: float, code: CodeType | None) -> Iterator[None]:
    """Stop the block after some seconds, where there is an alarm and this is the main thread.

    The alarm rings again every half second, in case the reader's code swallows it. An alarm that
    somebody else had set is set again afterwards.
    """
    main = threading.current_thread() is threading.main_thread()
    if not (hasattr(signal, "setitimer") and main):
        yield
        return

    def ring(*_: object) -> None:
        raise _TimeUp

    handler = signal.signal(signal.SIGALRM, ring)
    earlier = signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)
    try:
        yield
    except _TimeUp as error:
        said = f"Your code was stopped after {seconds:g} seconds{_line_of(error, code)}"
        raise Trouble("time", f"{said}: is there an endless loop?") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if earlier[0]:
            signal.setitimer(signal.ITIMER_REAL, *earlier)


def code_of(answer: Any) -> CodeType | None:
    """The compiled body of a function, by which its frames are known in a traceback."""
    return getattr(answer, "__code__", None)


def _raised_by(error: BaseException, code: CodeType | None) -> bool:
    """Whether the error comes from this body itself, not from something that it called."""
    *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
    return code is None or frame.f_code is code


def _line_of(error: BaseException, code: CodeType | None) -> str:
    """In words, the last line of the reader's own file or cell that an error passed through."""
    if code is None:
        return ""
    own = code.co_filename
    frames = traceback.walk_tb(error.__traceback__)
    lines = [number for frame, number in frames if frame.f_code.co_filename == own]
    if not lines:
        return ""
    text = linecache.getline(own, lines[-1]).strip()
    place = Path(own).name if os.path.isfile(own) else "your cell"
    return f", in line {lines[-1]} of {place}" + (f" ({text})" if text else "")


# ---- what it returned ----------------------------------------------------------------------------


def as_array(value: Any, said: str) -> np.ndarray:
    """One value as a float64 array on the CPU, or a sentence on why it is none."""
    if value is None:
        raise Trouble("type", f"{said} None; is a return missing?")
    try:
        array = np.asarray(_on_cpu(value))
        if array.size == 0 or array.dtype.kind not in "iufO":
            raise TypeError
        return np.array(array, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        what = _name_of_type(value)
        raise Trouble("type", f"{said} {what}; that should be numbers.") from None


def _on_cpu(value: Any) -> Any:
    """Torch tensors, also inside lists, as NumPy arrays."""
    if isinstance(value, tuple | list):
        return [_on_cpu(one) for one in value]
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach().cpu()
    return (value.double() if value.is_floating_point() else value).numpy()


def _name_of_type(value: Any) -> str:
    dtype = str(getattr(value, "dtype", type(value).__name__))
    if "bool" in dtype:
        return "True or False"
    if "complex" in dtype:
        return "complex numbers"
    if 0 in tuple(getattr(value, "shape", ())) or value in ([], ()):
        return "nothing: it is empty"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


# ---- an answer in a file of the reader's ---------------------------------------------------------


def load_answer(spec: str) -> Callable[..., Any]:
    """The function that ``"my_ddpm.q_sample"`` names, from the reader's file as it is now."""
    module, _, name = spec.rpartition(".")
    if not (module.isidentifier() and name.isidentifier()):
        raise Trouble("name", f"{spec!r} names no function in a file, as 'my_ddpm.q_sample' does.")
    path = _find(f"{module}.py")
    linecache.checkcache(str(path))
    namespace = ModuleType(module)
    namespace.__file__ = str(path)
    try:
        code = compile(path.read_bytes(), str(path), "exec")
    except SyntaxError as error:
        sentence = f"{path.name}, line {error.lineno}, is not valid Python: {error.msg}."
        raise Trouble("SyntaxError", sentence) from None
    except (OSError, ValueError) as error:
        raise Trouble("file", f"{path.name} cannot be read: {error}.") from None
    with time_limit(TIME_LIMIT, code), speak_of_errors(code):
        exec(code, namespace.__dict__)
    function = getattr(namespace, name, None)
    if not callable(function):
        raise Trouble("name", f"{path.name} has no function named {name}.")
    return function


def _find(name: str) -> Path:
    """The reader's file: beside the notebook, or beside the chapter that runs as a script."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    for folder in [Path.cwd(), *([Path(script).resolve().parent] if script else [])]:
        if (folder / name).is_file():
            return folder / name
    raise Trouble("file", f"There is no {name} beside this notebook; start from the book's own.")

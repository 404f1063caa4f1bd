"""Marks from answers: the student's code runs in a sandbox, the comparison here.

This process draws the hidden inputs, holds the right answers and the known wrong ones, and
compares. The other one is handed arguments, one call at a time, and hands back arrays. Patching
NumPy, the library or the check over there changes nothing here.
"""

from __future__ import annotations

import inspect
import re
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from ddpm_lite.course.assignment import Assignment, Task, answer_name, hidden_seeds
from ddpm_lite.course.sandbox import Box, Sandbox, runtime
from ddpm_lite.course.verdicts import Outcome, Question, together
from ddpm_lite.course.wire import Closed, Garbled, Late
from ddpm_lite.exercises.exercise import Exercise
from ddpm_lite.exercises.observe import Blank, Trouble, observe

SETUP = """\
import math

import numpy as np
import torch

from ddpm_lite.exercises import check, hint, obey, solution
"""
UNFIT = "What you return does not fit the question."
FORGED = "Your code wrote into the pipe that answers are read from."
Reply = dict[str, Any]


@dataclass(frozen=True)
class Mark:
    """What one exercise of a submission has earned; ``points`` is None if a person marks it."""

    id: str
    points: float | None
    out_of: int
    status: str  # right | wrong | trouble | blank | person
    mistake: str | None = None
    lines: tuple[str, ...] = ()


class Died(BaseException):
    """The student's process has to be given up; why, in a sentence.

    Not an ``Exception``: no later call of the same answer could go on without the process.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence


class Marker:
    """Marks submissions of one assignment, one after the other; use it in a ``with`` statement."""

    def __init__(self, assignment: Assignment, sandbox: Sandbox) -> None:
        self.assignment, self.sandbox = assignment, sandbox
        self.questions = {
            task.id: [
                Question.drawn(assignment.exercise(task.id), seed)
                for seed in hidden_seeds(assignment, task.id)
            ]
            for task in assignment.tasks
            if assignment.exercise(task.id).kind != "explain"
        }

    def __enter__(self) -> Marker:
        self._stack = ExitStack()
        self.library = self._stack.enter_context(runtime())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def mark(self, answers: Mapping[str, str]) -> list[Mark]:
        """One mark for each exercise of the assignment, in its order.

        ``answers`` has the text of each answer's cell; an exercise that is not in it is blank.
        """
        with tempfile.TemporaryDirectory(prefix="ddpm-lite-scratch-") as scratch:
            session = Session(self.sandbox, self.library, Path(scratch))
            try:
                return [
                    self._mark(task, answers.get(task.id), session)
                    for task in self.assignment.tasks
                ]
            finally:
                session.end()

    def _mark(self, task: Task, text: str | None, session: Session) -> Mark:
        exercise = self.assignment.exercise(task.id)
        if exercise.kind == "explain":
            return Mark(task.id, None, task.points, "person", lines=("A person marks this.",))
        if text is None or not text.strip():
            return Mark(task.id, 0, task.points, "blank", lines=("Not attempted.",))
        try:
            outcome = self._outcome(exercise, text, session)
        except Died as died:
            session.end()
            outcome = Outcome("trouble", None, (died.sentence,))
        points = task.points if outcome.status == "right" else 0
        return Mark(task.id, points, task.points, outcome.status, outcome.mistake, outcome.lines)

    def _outcome(self, exercise: Exercise, text: str, session: Session) -> Outcome:
        try:
            session.begin(exercise, text)
            outcomes = [session.ask(question) for question in self.questions[exercise.id]]
        except Blank:
            return Outcome("blank", None, ("Not attempted.",))
        except Trouble as trouble:
            return Outcome("trouble", None, (trouble.sentence,))
        session.well.append((exercise.id, text))
        return together(outcomes, exercise)


class Session:
    """One submission's process; a new one takes its place if a task has killed it."""

    def __init__(self, sandbox: Sandbox, library: Path, scratch: Path) -> None:
        self.sandbox, self.library, self.scratch = sandbox, library, scratch
        self.box: Box | None = None
        self.well: list[tuple[str, str]] = []  # cells that did no harm: others may call them
        self.said: set[str] = set()  # the sentences on an answer's troubles that are our own
        self.deadline = 0.0

    def begin(self, exercise: Exercise, text: str) -> None:
        """Execute an answer's cell; its time begins here."""
        box = self._running()
        self.deadline = time.monotonic() + self.sandbox.limits.task_seconds
        reply = self._request(box, {"cell": text, "name": exercise.id})
        self.text, self.fault = text, reply

    def ask(self, question: Question) -> Outcome:
        """What an answer returns for one draw of hidden inputs, judged."""
        exercise, name = question.exercise, answer_name(question.exercise)
        assert self.box is not None
        if exercise.kind == "number":
            reply = self._request(self.box, {"value": name})
            if "blank" in reply and "trouble" in self.fault:  # the cell did not come to it
                reply = self.fault
            return question.outcome({"0@": _arrays(self._checked(exercise, reply), 1)[0]})
        proxy = Proxy(self, exercise, name)
        got = observe(exercise, proxy, question.inputs)
        # Any other sentence has the words of an exception on this side, which knows the inputs.
        troubles = {key: one if one in self.said else UNFIT for key, one in got.troubles.items()}
        return question.outcome(got.arrays, troubles)

    def call(self, exercise: Exercise, name: str, arguments: tuple[Any, ...]) -> Reply:
        """One call of the student's function; networks among the arguments stay on this side."""
        assert self.box is not None
        networks = {place: one for place, one in enumerate(arguments) if callable(one)}
        packed = [
            {"callable": place} if callable(one) else _plain(one)
            for place, one in enumerate(arguments)
        ]
        parameters = list(inspect.signature(exercise.reference).parameters)
        request = {"call": name, "parameters": parameters, "arguments": packed}
        return self._checked(exercise, self._request(self.box, request, networks))

    def end(self) -> None:
        """Kill the process, if there is one."""
        if self.box is not None:
            self.box.kill()
            self.box = None

    def _running(self) -> Box:
        """The process; a new one first executes the cells that earlier tasks may be used from."""
        if self.box is None:
            self.box = self.sandbox.start(self.library, self.scratch)
            self.deadline = time.monotonic() + self.sandbox.limits.start_seconds
            try:
                self._reply(self.box)
            except Died:
                raise RuntimeError("the process for students' code does not start") from None
            for name, text in [("setup", SETUP), *self.well]:
                self._request(self.box, {"cell": text, "name": name})
        return self.box

    def _request(
        self, box: Box, request: Reply, networks: Mapping[int, Any] | None = None
    ) -> Reply:
        """Send a request and serve what comes back until it is the answer."""
        self._guarded(lambda: box.wire.send(request, self.deadline))
        while "call back" in (reply := self._reply(box)):
            back = _called_back(reply, networks or {})
            self._guarded(lambda back=back: box.wire.send(back, self.deadline))
        return reply

    def _reply(self, box: Box) -> Reply:
        return self._guarded(lambda: box.wire.receive(self.deadline))

    def _guarded(self, exchange: Any) -> Any:
        try:
            return exchange()
        except Late:
            seconds = self.sandbox.limits.task_seconds
            raise Died(f"Your code was stopped after {seconds:g} seconds.") from None
        except Closed:
            raise Died("Your code ended the process that it was running in.") from None
        except Garbled:
            raise Died(FORGED) from None

    def _checked(self, exercise: Exercise, reply: Reply) -> Reply:
        """A reply with values; Blank or Trouble if it has none."""
        if reply.get("blank") is True:
            raise Blank
        if "trouble" in reply:
            trouble = self._trouble(exercise, reply)
            self.said.add(trouble.sentence)
            raise trouble
        return reply

    def _trouble(self, exercise: Exercise, reply: Reply) -> Trouble:
        """In our own words: a student's code may have written the reply."""
        name = reply["trouble"]
        if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z_]\w{0,40}", name)):
            raise Died(FORGED)
        if name == "name" and "trouble" in self.fault:  # the cell failed before it came to that
            fault, self.fault = self.fault, {}
            return self._trouble(exercise, fault)
        words = {
            "SyntaxError": f"This is not valid Python{_line(reply, self.text)}.",
            "name": f"The cell defines no {answer_name(exercise)}.",
            "function": "The answer to this exercise is a number, not a function.",
            "type": "What you return should be numbers.",
            "size": "What you return is far too large.",
            "arguments": "Your function takes other arguments than the exercise says.",
            "RecursionError": "Your function calls itself without end.",
        }
        said = f"Your code raised {name}{_line(reply, self.text)}."
        return Trouble(name, words.get(name, said))


class Proxy:
    """Stands for the student's function: ``observe`` calls it, the sandbox runs it."""

    def __init__(self, session: Session, exercise: Exercise, name: str) -> None:
        self.session, self.exercise, self.name = session, exercise, name

    def __call__(self, *arguments: Any) -> Any:
        reply = self.session.call(self.exercise, self.name, arguments)
        values = _arrays(reply, 64)
        changed = reply.get("changed")
        for place, now in (changed if isinstance(changed, dict) else {}).items():
            _copy_back(arguments, place, now)
        return values[0] if len(values) == 1 else tuple(values)


def _arrays(reply: Reply, most: int) -> list[np.ndarray]:
    """The values of a reply, none of which needs to be what it should be."""
    values = reply.get("values")
    if isinstance(values, list) and 0 < len(values) <= most:
        arrays = [one for one in values if isinstance(one, np.ndarray)]
        if len(arrays) == len(values):
            return arrays
    raise Died(FORGED)


def _copy_back(arguments: tuple[Any, ...], place: str, now: Any) -> None:
    """Make a change of an argument over there a change here, so that it is noticed."""
    mine = {str(number): one for number, one in enumerate(arguments)}.get(place)
    if isinstance(mine, torch.Tensor) and isinstance(now, np.ndarray) and now.shape == mine.shape:
        mine.copy_(torch.from_numpy(np.array(now)))


def _called_back(reply: Reply, networks: Mapping[int, Any]) -> Reply:
    """What a network returns that stayed on this side."""
    place, arguments = reply["call back"], reply.get("arguments")
    network = networks.get(place) if isinstance(place, int) else None
    if network is None or not isinstance(arguments, list):
        raise Died(FORGED)
    given = [torch.from_numpy(np.array(a)) if isinstance(a, np.ndarray) else a for a in arguments]
    try:
        return {"value": network(*given).detach().numpy()}
    except (TypeError, ValueError, IndexError, RuntimeError, AttributeError):
        return {"raised": True}  # called as no network is


def _plain(argument: Any) -> Any:
    return argument.numpy() if isinstance(argument, torch.Tensor) else argument


def _line(reply: Reply, text: str) -> str:
    """In words, the line of the answer that a fault came from; the text of it is our own copy."""
    number, lines = reply.get("line"), text.splitlines()
    if not (isinstance(number, int) and 1 <= number <= len(lines)):
        return ""
    return f", in line {number} ({lines[number - 1].strip()})"

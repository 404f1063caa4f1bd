"""Every exercise of the book: its data, and the stub, the statement and the check in its chapter.

The chapters run once, as scripts, and print what their notebooks store; then each stub is filled,
in its chapter's own namespace, with the reference and with every wrong answer, and the chapter's
own call of ``check`` is made.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import io
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from ddpm_lite.book import manifest, plain
from ddpm_lite.exercises import all_exercises, observe, store
from ddpm_lite.exercises import exercise as register_module
from ddpm_lite.exercises.engine import judge, source_of
from ddpm_lite.exercises.exercise import Exercise

CHAPTERS = Path(__file__).resolve().parents[1] / "chapters"
BOOK = manifest.load(CHAPTERS.parent)
EXERCISES = all_exercises()
SEEDS = range(20)

each = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.id)
each_code = pytest.mark.parametrize(
    "exercise", [e for e in EXERCISES if e.is_code], ids=lambda exercise: exercise.id
)


@pytest.fixture(autouse=True)
def reader(monkeypatch, tmp_path):
    """A reader with no progress, in a folder of their own that holds the starter my_ddpm.py."""
    monkeypatch.setenv("DDPM_LITE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(store, "_unwritten", [])
    folder = tmp_path / "my-book"
    folder.mkdir()
    starter = (CHAPTERS / "my_ddpm.py").read_text(encoding="utf-8")
    (folder / "my_ddpm.py").write_text(starter, encoding="utf-8")
    monkeypatch.chdir(folder)


# ---- the data of an exercise (more of it in test_exercises_quality.py) --------------------------


def test_there_are_exercises():
    assert {e.chapter for e in EXERCISES} >= {"2", "3", "4", "T"}


@each
def test_it_is_complete(exercise):
    assert exercise.title.strip() == exercise.title != ""
    assert len({hint.strip() for hint in exercise.hints} - {""}) == 3
    messages = [message for _, message in exercise.wrong.values()]
    assert len(set(messages)) == len(messages) and all(messages)
    assert "\n" not in "".join([*exercise.hints, *messages])
    if exercise.is_code:
        assert 2 <= len(exercise.wrong) <= 5
        assert exercise.reference.__name__.isidentifier()
    if exercise.kind == "explain":
        assert len(exercise.reference.split()) >= 20 and len(exercise.rubric) >= 2


@each_code
def test_wrong_answers_are_called_as_the_reference_is(exercise):
    def kinds(answer):
        return [(p.kind, p.default) for p in inspect.signature(answer).parameters.values()]

    for name, (answer, _) in exercise.wrong.items():
        assert kinds(answer) == kinds(exercise.reference), name


@each_code
def test_the_solution_is_one_function_that_stands_alone(exercise):
    (definition,) = ast.parse(source_of(exercise)).body
    assert isinstance(definition, ast.FunctionDef)
    assert definition.name == exercise.reference.__name__


# ---- whatever a reader may give ------------------------------------------------------------------


def returning(exercise: Exercise, change: Callable[[Any], Any]) -> Callable[..., Any]:
    """The reference with a change made to each of its values."""

    @functools.wraps(exercise.reference)
    def answer(*arguments):
        result = exercise.reference(*arguments)
        if isinstance(result, tuple | list):
            return type(result)(change(value) for value in result)
        return change(result)

    return answer


def as_tensor(value, dtype, grad):
    return torch.as_tensor(value).detach().clone().to(dtype).requires_grad_(grad)


PACKAGES = {
    "float64 tensors": lambda x: as_tensor(x, torch.float64, False),
    "float32 tensors with gradients": lambda x: as_tensor(x, torch.float32, True),
    "float32 arrays": lambda x: np.asarray(x, dtype=np.float32),
    "lists and plain numbers": lambda x: np.asarray(x, dtype=np.float64).tolist(),
}


@each_code
@pytest.mark.parametrize("package", PACKAGES)
def test_a_right_answer_is_right_in_any_package(exercise, package):
    for seed in SEEDS:
        answer = returning(exercise, PACKAGES[package])
        assert judge(exercise, answer, seed).status == "right", f"seed {seed}"


def nonsense(exercise: Exercise) -> Iterator[tuple[str, Any]]:
    """Answers that make no sense, each with a word for it."""
    count = len(inspect.signature(exercise.reference).parameters)

    def deep(*arguments):
        return deep(*arguments)

    def failing(*arguments):
        raise ZeroDivisionError("a reader's slip")

    def leaving(*arguments):
        raise SystemExit

    def untouched(*arguments):
        raise NotImplementedError("not in the stub") from None

    yield "no function", 3
    yield "none", None
    yield "no such file", "no_such_file.function"
    yield "one argument more", eval(f"lambda {', '.join(f'x{i}' for i in range(count + 1))}: 0.0")
    yield "an exception", failing
    yield "no end of calls", deep
    yield "an exit", leaving
    for name, value in {
        "None": None,
        "a text": "x",
        "a dictionary": {},
        "complex": 1j,
        "not a number": float("nan"),
        "infinity": float("inf"),
        "a truth value": True,
        "a function": len,
        "nothing": (),
        "five axes": np.zeros((2, 3, 2, 3, 2)),
        "fourteen values": tuple(float(i) for i in range(14)),
    }.items():
        yield f"returns {name}", lambda *arguments, value=value: value


@each_code
def test_nonsense_gets_a_sentence(exercise):
    for name, answer in nonsense(exercise):
        verdict = judge(exercise, answer)
        assert verdict.status in ("wrong", "trouble"), name
        assert verdict.mistake is None, name
        assert verdict.lines and "Traceback" not in "".join(verdict.lines), name


@each_code
def test_an_endless_loop_is_stopped(exercise, monkeypatch):
    monkeypatch.setattr(observe, "TIME_LIMIT", 0.05)

    def endless(*arguments):
        while True:
            pass

    assert "was stopped after" in judge(exercise, endless).lines[0]


@pytest.mark.parametrize(
    "exercise", [e for e in EXERCISES if e.kind == "number"], ids=lambda exercise: exercise.id
)
def test_a_number_that_is_none_gets_a_sentence(exercise):
    for answer in ("0.5", True, 1j, [1.0, 2.0], np.zeros(2), float("nan"), len, [], {}):
        verdict = judge(exercise, answer)
        assert verdict.status in ("wrong", "trouble") and verdict.lines, answer
        assert verdict.mistake is None, answer
    assert judge(exercise, None).status == "blank"


@pytest.mark.parametrize(
    "exercise", [e for e in EXERCISES if e.kind == "explain"], ids=lambda exercise: exercise.id
)
def test_a_text_goes_to_a_person(exercise):
    statuses = [judge(exercise, answer).status for answer in ("", "  ", "Because.", None, 3)]
    assert statuses == ["blank", "blank", "noted", "trouble", "trouble"]


# ---- a chapter -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """One call of ``check`` in a chapter."""

    id: str
    line: int
    answer: ast.expr
    expression: ast.Expression


class Chapter:
    """A chapter's source, what it prints when it runs, and the namespace that it leaves."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.printed = ""  # until the namespace has been asked for
        self.text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)
        self.calls = [call for call in map(self._call, ast.walk(self.tree)) if call is not None]

    @staticmethod
    def _call(node: ast.AST) -> Call | None:
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            return None
        if node.func.id != "check" or len(node.args) != 2:
            return None
        return Call(ast.literal_eval(node.args[0]), node.lineno, node.args[1], ast.Expression(node))

    def cell_of(self, line: int) -> int:
        """The number of the cell that a line stands in."""
        before = self.text.splitlines()[:line]
        return sum(text.startswith("# %%") for text in before)

    def stub(self, name: str, call: Call) -> ast.stmt | None:
        """The last statement before a call that gives a value to a name, in the same cell."""
        for node in reversed(self.tree.body):
            defines = isinstance(node, ast.FunctionDef) and node.name == name
            assigns = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
            if (defines or assigns) and node.lineno < call.line:
                return node if self.cell_of(node.lineno) == self.cell_of(call.line) else None
        return None

    @functools.cached_property
    def namespace(self) -> dict[str, Any]:
        """What the chapter leaves behind when it runs as a script: silent, figures off screen."""
        names: dict[str, Any] = {"__name__": "__main__", "__file__": str(self.path)}
        dtype = torch.get_default_dtype()
        printed = io.StringIO()
        with (
            tempfile.TemporaryDirectory() as home,
            mock.patch.dict(os.environ, DDPM_LITE_HOME=home),
            mock.patch.object(plt, "show", lambda: plt.close("all")),
            contextlib.chdir(self.path.parent),
            warnings.catch_warnings(action="ignore"),  # nbval compares what a chapter warns of
            contextlib.redirect_stdout(printed),
            plt.rc_context(),
        ):
            try:
                exec(compile(self.tree, str(self.path), "exec"), names)
            finally:
                torch.set_default_dtype(dtype)  # some chapters compute in float64 throughout
        self.printed = printed.getvalue()
        return names

    def reply(self, call: Call, names: dict[str, Any]) -> str:
        """What the chapter's call of ``check`` prints, with some names given other values."""
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            eval(compile(call.expression, str(self.path), "eval"), self.namespace | names)
        return out.getvalue()


def signature_of(definition: ast.FunctionDef) -> str:
    """A signature as it is written, with a default's text as it stands."""
    return ast.unparse(definition.args)


def is_blank(definition: ast.FunctionDef) -> bool:
    """Whether a stub holds at most a docstring before it raises NotImplementedError."""
    body = definition.body[1:] if ast.get_docstring(definition) else definition.body
    return len(body) == 1 and ast.unparse(body[0]).startswith("raise NotImplementedError")


def statement_faults(exercise: Exercise, chapter: Chapter) -> Iterator[str]:
    """Where the statement in the text and the data disagree."""
    count = len(re.findall(rf"^# \*\*Exercise {re.escape(exercise.id)}\*\*", chapter.text, re.M))
    if count != 1:
        yield f"{count} statements begin with **Exercise {exercise.id}**"
    elif f"# {exercise.heading}" not in chapter.text:
        yield f"the statement does not begin as the data say: {exercise.heading}"


def stub_faults(exercise: Exercise, chapter: Chapter, starter: Path) -> Iterator[str]:
    """Where the stub does not fit its check."""
    calls = [call for call in chapter.calls if call.id == exercise.id]
    if len(calls) != 1:
        yield f"it is checked {len(calls)} times"
        return
    (call,) = calls
    if exercise.is_code and isinstance(call.answer, ast.Constant):
        module, _, name = str(call.answer.value).partition(".")
        tree = ast.parse(starter.read_text(encoding="utf-8"))
        found = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name]
        stub = found[0] if found and module == starter.stem else None
    else:
        name = ast.unparse(call.answer)
        stub = chapter.stub(name, call)
    if stub is None:
        yield f"there is no stub named {name} where line {call.line} checks one"
    elif exercise.is_code:
        yield from _function_faults(exercise, stub)
    else:
        blank = "None" if exercise.kind == "number" else "''"
        if not (isinstance(stub, ast.Assign) and ast.unparse(stub.value) == blank):
            yield f"the stub does not read {name} = {blank}"


def _function_faults(exercise: Exercise, stub: ast.stmt) -> Iterator[str]:
    (reference,) = ast.parse(source_of(exercise)).body
    assert isinstance(reference, ast.FunctionDef)
    if not isinstance(stub, ast.FunctionDef):
        yield "the stub is no function"
        return
    if stub.name != reference.name:
        yield f"the stub is named {stub.name}, the reference {reference.name}"
    if signature_of(stub) != signature_of(reference):
        yield f"the stub takes {signature_of(stub)}, the reference {signature_of(reference)}"
    if not is_blank(stub):
        yield "the stub is not blank"


def filling_faults(exercise: Exercise, chapter: Chapter) -> Iterator[str]:
    """What goes wrong when the stub is left, filled rightly, and filled with each mistake."""
    (call,) = [call for call in chapter.calls if call.id == exercise.id]
    reply = chapter.reply(call, {})
    if not re.fullmatch(r"○ [^\n]*: not attempted\.\n", reply):
        yield f"left blank, the check says {reply!r}"
    for answer, mark, words in _fillings(exercise):
        reply = chapter.reply(call, _put(exercise, call, answer, chapter))
        if not (reply.startswith(mark) and words in reply):
            yield f"filled with {answer!r}, the check says {reply!r}"


def _fillings(exercise: Exercise) -> Iterator[tuple[Any, str, str]]:
    """Answers, each with the mark and the words that the check must show."""
    if exercise.kind == "explain":
        yield "A text.", "✎", "noted"
        return
    yield None, "✓", "right"  # None stands for the source of the reference
    for answer, message in exercise.wrong.values():
        yield answer, "✗", f"\n  {message}\n"


def _put(exercise: Exercise, call: Call, answer: Any, chapter: Chapter) -> dict[str, Any]:
    """Put an answer in the place of the stub: in the namespace, or in the reader's my_ddpm.py."""
    if exercise.is_code and isinstance(call.answer, ast.Constant):
        name = call.answer.value.partition(".")[2]
        text = f"import math\n\nimport numpy as np\nimport torch\n\n\n{source_of(exercise)}\n"
        if answer is not None:
            planted = f"{__name__}_planted"
            sys.modules[planted] = mock.Mock(answer=answer)
            text = f"import sys\n\n{name} = sys.modules[{planted!r}].answer\n"
        Path("my_ddpm.py").write_text(text, encoding="utf-8")
        return {}
    name = ast.unparse(call.answer)
    if answer is None and exercise.is_code:  # pasted, as a reader would paste the solution
        names = dict(chapter.namespace)
        exec(source_of(exercise), names)
        return names
    answer = exercise.reference if answer is None else answer
    return {name: answer() if exercise.kind == "number" and callable(answer) else answer}


# ---- every chapter, and every exercise in it -----------------------------------------------------


@functools.cache
def chapter_of(id: str) -> Chapter:
    """The chapter that checks an exercise."""
    found = [chapter for chapter in chapters() if id in {call.id for call in chapter.calls}]
    assert len(found) == 1, f"exercise {id} is checked in {[c.path.name for c in found]}"
    return found[0]


@functools.cache
def chapters() -> tuple[Chapter, ...]:
    paths = sorted(CHAPTERS.glob("*.py"))
    return tuple(Chapter(path) for path in paths if path.stem not in ("conftest", "my_ddpm"))


@pytest.mark.parametrize("chapter", BOOK.chapters, ids=lambda chapter: chapter.file)
def test_the_script_prints_what_the_notebook_stores(chapter):
    (ran,) = [other for other in chapters() if other.path == chapter.source]
    assert ran.namespace
    assert plain.differences(ran.printed, chapter.notebook) == []


def test_every_check_has_an_exercise_and_every_exercise_its_check():
    checked = sorted(call.id for chapter in chapters() for call in chapter.calls)
    assert checked == sorted(exercise.id for exercise in EXERCISES)


@each
def test_the_statement_agrees_with_the_data(exercise):
    assert list(statement_faults(exercise, chapter_of(exercise.id))) == []


@each
def test_the_stub_fits_its_check(exercise):
    faults = stub_faults(exercise, chapter_of(exercise.id), CHAPTERS / "my_ddpm.py")
    assert list(faults) == []


@each
def test_filling_the_stub_in_the_chapter(exercise):
    assert list(filling_faults(exercise, chapter_of(exercise.id))) == []


# ---- the tests above bite: a chapter made up here, with faults planted ---------------------------


def half(x):
    return x / 2


HALF = Exercise(
    id="9.1",
    title="Half",
    kind="code",
    points=1,
    minutes=5,
    difficulty=1,
    equation="9.1",
    inputs=lambda rng: [(float(x),) for x in rng.uniform(1, 2, 4)],
    reference=half,
    wrong={
        "double": (lambda x: 2 * x, "You doubled."),
        "whole": (lambda x: x, "You did nothing."),
    },
    hints=("Look.", "Divide.", "By two."),
)

GOOD = '''\
# %%
from ddpm_lite.exercises import check

# %% [markdown]
# **Exercise 9.1** (1 point, 5 minutes, ●○○) — *Half.* Write `half(x)`.

# %%
def half(x):
    """Half of x."""
    raise NotImplementedError("your turn")

check("9.1", half)
'''

STARTER = '''\
def half(x):
    """Half of x."""
    raise NotImplementedError("your turn")
'''


@pytest.fixture
def faults_of(tmp_path, monkeypatch):
    """All faults of a chapter's text, taken as the home of exercise 9.1."""
    monkeypatch.setitem(register_module._registered, "9.1", HALF)

    def faults(text: str, starter: str = STARTER, exercise: Exercise = HALF) -> list[str]:
        monkeypatch.setitem(register_module._registered, "9.1", exercise)
        (tmp_path / "09_fake.py").write_text(text, encoding="utf-8")
        for folder in (tmp_path, Path.cwd()):
            (folder / "my_ddpm.py").write_text(starter, encoding="utf-8")
        chapter = Chapter(tmp_path / "09_fake.py")
        found = list(statement_faults(exercise, chapter))
        found += stub_faults(exercise, chapter, tmp_path / "my_ddpm.py")
        if len(chapter.calls) == 1:
            found += filling_faults(exercise, chapter)
        return found

    return faults


def test_a_good_chapter_has_no_faults(faults_of):
    assert faults_of(GOOD) == []
    assert faults_of(GOOD.replace('check("9.1", half)', 'check("9.1", "my_ddpm.half")')) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("def half(x):", "def half(y):", "the stub takes y, the reference x"),
        ("def half(x):", "def half(x, y):", "the stub takes x, y, the reference x"),
        ("def half(x):", "def half(x=1):", "the stub takes x=1, the reference x"),
        ("def half(x):", "def half(*, x):", "the stub takes *, x, the reference x"),
        ("half", "halve", "the stub is named halve"),
        ('"""Half of x."""', "return x / 2", "the stub is not blank"),
        ('"""Half of x."""', "return x / 2", "left blank, the check says"),
        ('check("9.1"', "# %%\ncheck('9.1'", "there is no stub named half"),
        ("def half", "half = 3\n\ndef other", "the stub is no function"),
        ("check(", "None and check(", "left blank, the check says"),
        ('check("9.1", half)', "", "it is checked 0 times"),
        ('check("9.1", half)', 'check("9.1", half)\ncheck("9.1", half)', "it is checked 2 times"),
        ('"9.1", half)', '"9.1", "my_ddpm.third")', "there is no stub named third"),
        ('"9.1", half)', '"9.1", "my_other.half")', "there is no stub named half"),
        ("(1 point,", "(2 points,", "the statement does not begin as the data say"),
        ("●○○", "●●○", "the statement does not begin as the data say"),
        ("*Half.*", "*Halves.*", "the statement does not begin as the data say"),
        ("**Exercise 9.1**", "**Exercise 9.2**", "0 statements begin with"),
    ],
)
def test_a_planted_fault_is_found(faults_of, old, new, fault):
    assert old in GOOD
    text = GOOD.replace(old, new)
    if "None and" in new:  # the call is still there, but it is never made
        text = text.replace("None and check(", "check = print\ncheck(")
    assert any(fault in found for found in faults_of(text)), faults_of(text)


def test_a_starter_that_does_not_fit_is_found(faults_of):
    text = GOOD.replace('check("9.1", half)', 'check("9.1", "my_ddpm.half")')
    faults = faults_of(text, STARTER.replace("half(x)", "half(x, y)"))
    assert "the stub takes x, y, the reference x" in faults


def needs_a_helper(x):
    return HALF.reference(x)


def test_a_solution_that_does_not_stand_alone_is_found(faults_of):
    needs_a_helper.__name__ = "half"
    exercise = Exercise(**(vars(HALF) | {"reference": needs_a_helper}))
    text = GOOD.replace("half", "needs_a_helper")
    assert any("NameError" in fault for fault in faults_of(text, exercise=exercise))


def test_a_wrong_answer_that_its_chapter_does_not_name_is_found(faults_of):
    wrong = HALF.wrong | {"half-too": (lambda x: x / 2, "You halved.")}
    exercise = Exercise(**(vars(HALF) | {"wrong": wrong}))
    (fault,) = faults_of(GOOD, exercise=exercise)
    assert fault.startswith("filled with") and "right" in fault

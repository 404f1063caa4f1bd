"""The engine of the exercises, on exercises made up here: verdicts, files, progress, rendering."""

import ast
import contextlib
import html.parser
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm_lite import exercises
from ddpm_lite.exercises import check, compare, hint, mistakes, observe, progress, render, solution
from ddpm_lite.exercises import exercise as register_module
from ddpm_lite.exercises.engine import judge
from ddpm_lite.exercises.exercise import Exercise, find, register
from ddpm_lite.exercises.render import Box, Row, as_html, as_text
from ddpm_lite.exercises.store import Store


def two_steps(a, b):
    """The factor on x and the variance of the noise after two steps."""
    return (a * b) ** 0.5, 1 - a * b


def smooth(x, t, weights):
    """A weighted mean of x and its neighbour, by the weight of step t."""
    return weights[t] * x + (1 - weights[t]) * x.roll(1, dims=1)


def _smooth_inputs(rng):
    return [
        (rng.normal(size=(2, 3)), t, np.concatenate([[1.0], rng.uniform(0.2, 0.6, 4)]))
        for t in (4, 2, 1)
    ]


def made_up(**changes):
    values = {
        "id": "9.1",
        "title": "Two steps",
        "kind": "code",
        "points": 2,
        "minutes": 10,
        "difficulty": 2,
        "equation": "9.3",
        "inputs": lambda rng: [tuple(rng.uniform(0.3, 0.9, 2)) for _ in range(6)],
        "reference": two_steps,
        "wrong": {
            "variance-as-std": (
                lambda a, b: ((a * b) ** 0.5, (1 - a * b) ** 0.5),
                "The second number is the variance; you returned its root.",
            ),
            "summed": (lambda a, b: ((a * b) ** 0.5, 2 - a - b), "You added the variances."),
        },
        "hints": ("Look at (9.2).", "Apply it twice.", "The product a·b takes a's place."),
    }
    return Exercise(**(values | changes))


SMOOTH = made_up(
    id="9.2",
    title="Smooth",
    inputs=_smooth_inputs,
    reference=smooth,
    wrong={
        "late": (lambda x, t, weights: smooth(x, t + 1, weights), "Your t is one too large."),
        "short": (lambda x, t, weights: smooth(x, t, weights)[:, 1:], "You lost a column."),
    },
)
NUMBER = made_up(
    id="9.3",
    title="A guess",
    kind="number",
    inputs=None,
    reference=0.374,
    tolerance=0.02,
    wrong={"squared": (0.14, "That is its square."), "rooted": (lambda: 0.6116, "Its root.")},
)
EXPLAIN = made_up(
    id="9.4",
    title="Why?",
    kind="explain",
    inputs=None,
    wrong={},
    reference="Because variances add.",
    rubric=("names independence", "says what adds"),
)


@pytest.fixture(autouse=True)
def made_up_book(monkeypatch, tmp_path):
    """A book of four exercises, an empty progress folder, and an empty working directory."""
    book = {e.id: e for e in (made_up(), SMOOTH, NUMBER, EXPLAIN)}
    monkeypatch.setattr(register_module, "_registered", book)
    monkeypatch.setattr(register_module, "_chapter_modules", lambda: [])
    monkeypatch.setattr("ddpm_lite.exercises.store._unwritten", [])
    monkeypatch.setenv("DDPM_LITE_HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def python(code):
    """What a fresh Python prints, with this package on its path."""
    root = str(Path(exercises.__file__).parents[2])
    command = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": root, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def said(capsys):
    """Call something and return what it printed."""

    def call(function, *arguments):
        assert function(*arguments) is None
        return capsys.readouterr().out

    return call


def verdict(answer, exercise=None, seed=0):
    return judge(exercise or made_up(), answer, seed)


# ---- blank, right, wrong -------------------------------------------------------------------------


def test_a_blank_stub_is_not_attempted_and_leaves_no_trace(said, tmp_path):
    def stub(a, b):
        """What the chapter says."""
        raise NotImplementedError("your turn")

    assert said(check, "9.1", stub) == "○ Exercise 9.1 (Two steps): not attempted.\n"
    assert said(check, "9.3", None) == "○ Exercise 9.3 (A guess): not attempted.\n"
    assert said(check, "9.4", " \n") == "○ Exercise 9.4 (Why?): not attempted.\n"
    assert not (tmp_path / "home").exists()


def test_a_stub_that_a_finished_function_calls_is_not_blank():
    def helper():
        raise NotImplementedError("your turn")

    result = verdict(lambda a, b: helper())
    assert result.status == "trouble"
    assert "NotImplementedError" in result.lines[0]


def test_right_is_confirmed(said):
    assert said(check, "9.1", two_steps) == "✓ Exercise 9.1 (Two steps): right.\n"


def test_wrong_is_named_and_shown_where_it_parts(said):
    lines = said(check, "9.1", lambda a, b: (a**0.5 * b**0.5, 2 - a - b)).splitlines()
    assert lines[0] == "✗ Exercise 9.1 (Two steps): not yet right."
    assert lines[1] == "  You added the variances."
    assert lines[2].startswith("  First difference, two_steps(a=0.")
    assert "value 2: expected 0." in lines[2] and ", got " in lines[2]
    assert lines[3] == '  See equation (9.3), or ask for hint("9.1").'


def test_the_first_difference_is_the_first_and_is_true():
    seen = []

    def late_to_err(a, b):
        seen.append((a, b))
        factor, variance = two_steps(a, b)
        return factor + (0.5 if len(seen) == 3 else 0), variance

    (line, _) = verdict(late_to_err).lines
    a, b = seen[2]
    expected = (a * b) ** 0.5
    assert line == (
        f"First difference, two_steps(a={a:.4g}, b={b:.4g}), value 1: "
        f"expected {expected:.4g}, got {expected + 0.5:.4g}."
    )


def test_an_unknown_wrong_answer_is_shown_without_a_name():
    result = verdict(lambda a, b: ((a * b) ** 0.5, 1 - a))
    assert (result.status, result.mistake, len(result.lines)) == ("wrong", None, 2)


def test_a_wrong_index_in_an_array_is_shown():
    def answer(x, t, weights):
        y = smooth(x, t, weights)
        y[1, 2] += 1
        return y

    line = verdict(answer, SMOOTH).lines[0]
    assert "smooth(x=<2 × 3 numbers>, t=4, weights=[1, 0." in line
    assert "), index [1, 2]: expected" in line


def test_a_small_difference_is_shown_with_enough_digits():
    line = verdict(lambda a, b: (1.0002 * (a * b) ** 0.5, 1 - a * b)).lines[0]
    expected, got = line.removesuffix(".").split("expected ")[1].split(", got ")
    assert expected != got


def test_a_slip_that_raises_at_the_end_of_the_chain_is_named():
    """t + 1 at t = T is an IndexError in the reader's code, and the same in the known mistake."""
    result = verdict(lambda x, t, w: w[t + 1] * x + (1 - w[t + 1]) * x.roll(1, dims=1), SMOOTH)
    assert (result.status, result.mistake) == ("wrong", "late")
    assert result.lines[0] == "Your t is one too large."
    assert "IndexError" in result.lines[1]


def test_a_slip_that_changes_the_shape_is_named():
    result = verdict(lambda x, t, w: smooth(x, t, w)[:, 1:], SMOOTH)
    assert result.mistake == "short"
    assert "expected (2, 3), got (2, 2)" in result.lines[1]


def test_inputs_are_fresh_at_each_check_unless_a_seed_is_given():
    seen = []

    def answer(a, b):
        seen.append(a)
        return two_steps(a, b)

    for seed in (None, None, 7, 7):
        judge(made_up(), answer, seed)
    first, second, third, fourth = np.array(seen).reshape(4, 6)
    assert not np.array_equal(first, second)
    assert np.array_equal(third, fourth)


def test_an_unknown_exercise_is_said_to_be_unknown(said):
    for function, arguments in [(check, ("8.8", None)), (hint, ("8.8",)), (solution, (3.2,))]:
        assert said(function, *arguments).startswith("✗ There is no exercise ")


# ---- every correct answer is right ---------------------------------------------------------------


@pytest.mark.parametrize(
    "package",
    [
        tuple,
        list,
        np.array,
        torch.tensor,
        partial(np.array, dtype=np.float32),
        partial(torch.tensor, dtype=torch.float32),
        partial(torch.tensor, dtype=torch.float64, requires_grad=True),
        lambda pair: [np.array([pair[0]]), torch.tensor([[pair[1]]])],
        lambda pair: (np.float32(pair[0]), torch.tensor(pair[1], requires_grad=True)),
    ],
)
def test_a_pair_may_come_in_any_package(package):
    assert verdict(lambda a, b: package(two_steps(a, b))).status == "right"


@pytest.mark.parametrize(
    "package",
    [
        lambda y: y.tolist(),
        lambda y: list(y),
        lambda y: tuple(y),
        lambda y: y.numpy(),
        lambda y: y.float(),
        lambda y: y.numpy().astype(np.float32),
        lambda y: y.requires_grad_(),
        lambda y: [row.tolist() for row in y],
    ],
)
def test_an_array_may_come_in_any_package(package):
    assert verdict(lambda x, t, w: package(smooth(x, t, w)), SMOOTH).status == "right"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_an_array_may_lie_on_a_gpu():
    answer = verdict(lambda x, t, w: smooth(x.cuda(), t, w.cuda()), SMOOTH)
    assert answer.status == "right"


def test_a_loop_is_as_right_as_a_vectorised_answer():
    def answer(x, t, weights):
        rows = []
        for row in x:
            rows.append([])
            for j in range(3):
                w = float(weights[t])
                rows[-1].append(w * float(row[j]) + (1 - w) * float(row[j - 1]))
        return rows

    assert verdict(answer, SMOOTH).status == "right"


def test_arguments_arrive_as_tensors_and_plain_numbers():
    kinds = []

    def answer(x, t, weights):
        kinds.append((type(x), x.dtype, type(t), type(weights)))
        return smooth(x, t, weights)

    assert verdict(answer, SMOOTH).status == "right"
    assert set(kinds) == {(torch.Tensor, torch.float64, int, torch.Tensor)}


def test_changing_the_inputs_in_place_harms_nobody():
    def answer(x, t, weights):
        y = smooth(x, t, weights)
        x.zero_()
        weights.fill_(float("nan"))
        return y

    assert verdict(answer, SMOOTH).status == "right"


def test_extra_arguments_with_defaults_are_fine():
    assert verdict(lambda a, b, c=0: two_steps(a, b)).status == "right"
    assert verdict(lambda *both: two_steps(*both)).status == "right"
    assert verdict(partial(lambda c, a, b: two_steps(a, b), 1)).status == "right"


# ---- nonsense gets a sentence --------------------------------------------------------------------


def endless(a, b):
    while True:
        time.sleep(0.001)


def stubborn(a, b):
    """An endless loop that swallows what it can."""
    while True:
        with contextlib.suppress(Exception):
            time.sleep(0.001)


def stubborn_for_a_while(a, b):
    """Swallows even the alarm, three times."""
    for _ in range(3):
        with contextlib.suppress(BaseException):
            endless(a, b)
    return endless(a, b)


def recursive(a, b):
    return recursive(a, b)


def raising(a, b):
    return 1 / 0  # what a reader might write


def leaving(a, b):
    sys.exit(3)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "check() wants the function itself, without brackets, not None."),
        (3, "without brackets, not a value of type int."),
        (lambda a, b: None, "Your function returned None; is a return missing?"),
        (lambda a, b: (None, 1.0), "Your function returned None"),
        (lambda a, b: "x", "Your function returned a str; that should be numbers."),
        (lambda a, b: {"mean": 1}, "Your function returned a dict"),
        (lambda a, b: [], "Your function returned nothing: it is empty"),
        (lambda a, b: torch.zeros(0), "Your function returned nothing: it is empty"),
        (lambda a, b: (1j, 1.0), "Your function returned complex numbers"),
        (lambda a, b: torch.tensor([1j, 2j]), "Your function returned complex numbers"),
        (lambda a, b: (a < b, 1.0), "Your function returned True or False"),
        (lambda a, b: torch.nn.Linear(1, 1), "Your function returned a Linear"),
        (lambda a, b: lambda: 1, "Your function returned a function"),
        (lambda a, b: [[(a * b) ** 0.5], [1.0, 2.0]], "value 2: expected (), got (2,)"),
        (lambda a, b: ([[1.0], [1.0, 2.0]], 1.0), "Your function returned a list"),
        (lambda a, b: (np.zeros(4), 1.0), "value 1: expected (), got (4,)"),
        (lambda a, b: 1.0, "expected 2, got 1"),
        (lambda a, b: (1.0, 2.0, 3.0), "expected 2, got 3"),
        (lambda a, b: (float("nan"), 1.0), "got nan"),
        (lambda a, b: (float("inf"), 1.0), "got inf"),
        (lambda a: 1.0, "Your function takes a, and should take a, b."),
        (lambda: 1.0, "Your function takes no arguments, and should take a, b."),
        (lambda a, b, c: 1.0, "Your function takes a, b, c, and should take a, b."),
        (raising, "Your code raised ZeroDivisionError: division by zero, in line "),
        (raising, "of test_exercises_engine.py (return 1 / 0  # what a reader might write)."),
        (leaving, "Your code raised SystemExit: 3"),
        (recursive, "Your function calls itself without end."),
        ("9", "'9' names no function in a file"),
    ],
)
def test_nonsense_gets_a_sentence(answer, words, said):
    result = verdict(answer)
    assert result.status in ("trouble", "wrong")
    assert result.mistake is None
    assert any(words in line for line in result.lines), result.lines
    text = said(check, "9.1", answer)
    assert text.startswith("✗ Exercise 9.1 (Two steps): not yet right.\n")
    assert "Traceback" not in text


def test_a_wrong_number_of_values_is_counted():
    line = verdict(lambda a, b: (*two_steps(a, b), 3.0)).lines[0]
    assert line.startswith("Wrong number of values from two_steps(a=")
    assert line.endswith(": expected 2, got 3.")


def test_an_exception_in_some_calls_says_in_which():
    def answer(x, t, weights):
        return smooth(x, t, weights) if t > 1 else [][t]

    result = verdict(answer, SMOOTH)
    assert result.status == "trouble"
    assert "IndexError" in result.lines[0] and "t=1" in result.lines[0]


def test_a_known_mistake_that_is_not_finite_is_named():
    exercise = made_up(wrong={"zero": (lambda a, b: (np.nan, np.inf), "You divided by zero.")})
    assert verdict(lambda a, b: (torch.tensor(torch.nan), torch.inf), exercise).mistake == "zero"
    assert verdict(lambda a, b: (torch.nan, -torch.inf), exercise).mistake is None


@pytest.mark.parametrize("answer", [endless, stubborn, stubborn_for_a_while])
def test_an_endless_loop_is_stopped(answer, monkeypatch):
    monkeypatch.setattr(observe, "TIME_LIMIT", 0.2)
    start = time.monotonic()
    result = verdict(answer)
    assert result.status == "trouble"
    assert "was stopped after 0.2 seconds, in line" in result.lines[0]
    assert time.monotonic() - start < 5


def test_the_time_limit_is_for_all_calls_together(monkeypatch):
    monkeypatch.setattr(observe, "TIME_LIMIT", 0.3)
    assert "was stopped" in verdict(lambda a, b: time.sleep(0.1)).lines[0]


def test_an_alarm_that_was_set_before_rings_again_afterwards():
    rings = []
    handler = signal.signal(signal.SIGALRM, lambda *_: rings.append(1))
    signal.setitimer(signal.ITIMER_REAL, 100)
    try:
        verdict(two_steps)
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 100
        signal.raise_signal(signal.SIGALRM)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert rings == [1]


def test_no_alarm_is_left_behind():
    handler = signal.getsignal(signal.SIGALRM)
    verdict(two_steps)
    verdict(raising)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGALRM) == handler


def test_a_check_runs_in_a_thread_too():
    results = []
    thread = threading.Thread(target=lambda: results.append(verdict(two_steps).status))
    thread.start()
    thread.join()
    assert results == ["right"]


def test_ctrl_c_goes_through():
    def interrupted(a, b):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verdict(interrupted)


def test_the_book_s_own_warnings_are_silent(recwarn):
    with np.errstate(all="warn"):
        exercise = made_up(
            wrong={"div": (lambda a, b: (np.float64(a) / 0, 1.0), "You divided by zero.")}
        )
        assert verdict(two_steps, exercise).status == "right"
    assert len(recwarn) == 0


# ---- numbers and texts ---------------------------------------------------------------------------


def test_a_number_is_judged_by_the_tolerance_and_never_given_away(said):
    for right in (0.374, 0.38, torch.tensor(0.37), np.float32(0.374), [0.374]):
        assert verdict(right, NUMBER).status == "right"
    for wrong, name in ((0.14, "squared"), (0.6116, "rooted"), (0.9, None), (0.01, None)):
        result = verdict(wrong, NUMBER)
        assert (result.status, result.mistake) == ("wrong", name)
        assert "0.37" not in "".join(result.lines)
    assert "too large" in said(check, "9.3", 0.5)
    assert "too small" in said(check, "9.3", 0.3)


@pytest.mark.parametrize("answer", ["0.374", True, 1j, [0.1, 0.2], float("nan"), [], object()])
def test_a_number_that_is_none_gets_a_sentence(answer):
    result = verdict(answer, NUMBER)
    assert result.status in ("wrong", "trouble") and result.lines


def test_a_function_is_no_number():
    assert "a number, not a function" in verdict(two_steps, NUMBER).lines[0]


def test_a_text_is_noted_for_a_person(said):
    said_so = "✎ Exercise 9.4 (Why?): noted; a person marks this.\n"
    assert said(check, "9.4", "Because.") == said_so
    assert verdict(3, EXPLAIN).status == "trouble"
    assert verdict(None, EXPLAIN).status == "trouble"


# ---- an exercise's own way of observing ----------------------------------------------------------


def moments(rng_free_answer, inputs):
    draws = np.array([rng_free_answer(*arguments)[1] for arguments in inputs])
    return {"mean of the draws": draws.mean(), "spread of the draws": np.array([draws.std()])}


def test_an_exercise_may_observe_in_its_own_way():
    exercise = made_up(observe=moments, wrong={"ones": (lambda a, b: (1.0, 1.0), "All ones.")})
    assert verdict(two_steps, exercise).status == "right"
    assert verdict(lambda a, b: torch.ones(2), exercise).mistake == "ones"
    result = verdict(lambda a, b: (0.0, 2 - 2 * a * b), exercise)
    assert result.lines[0].startswith("First difference, mean of the draws: expected")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda a, b: None, "is a return missing"),
        (lambda a, b: 1.0, "What you return does not fit the question"),
        (raising, "ZeroDivisionError"),
        (lambda a: 1.0, "should take a, b"),
    ],
)
def test_nonsense_there_gets_a_sentence_too(answer, words):
    result = verdict(answer, made_up(observe=moments))
    assert result.status == "trouble"
    assert words in result.lines[0]


def test_a_blank_there_is_blank():
    def stub(a, b):
        raise NotImplementedError("your turn")

    assert verdict(stub, made_up(observe=moments)).status == "blank"


# ---- the comparison, on bare arrays --------------------------------------------------------------


def arrays(*values):
    return {f"{slot}@0": np.array(value, dtype=float) for slot, value in enumerate(values)}


def test_the_closest_of_several_mistakes_is_named():
    wrong = {"near": arrays(2.0), "nearer": arrays(2.0001), "far": arrays(9.0)}
    for got, name in ((2.00009, "nearer"), (2.00001, "near"), (5.0, None)):
        assert compare.compare(arrays(1.0), wrong, arrays(got), 1e-3).mistake == name


def test_a_mistake_that_coincides_with_the_truth_is_right():
    assert compare.compare(arrays(1.0), {"same": arrays(1.0)}, arrays(1.0), 1e-4).right


def test_calls_share_the_scale_of_their_slot():
    """A zero among larger numbers is judged by their scale, not by its own."""
    reference = {"0@0": np.array(0.0), "0@1": np.array(100.0), "1@0": np.array(1.0)}
    off = {"0@0": np.array(0.005), "0@1": np.array(100.0), "1@0": np.array(1.0)}
    assert compare.distance(off, reference) == pytest.approx(5e-5)
    off["1@0"] = np.array(1.005)
    assert compare.distance(off, reference) == pytest.approx(5e-3)


def test_all_zeros_are_judged_absolutely():
    assert compare.distance(arrays(1e-6), arrays(0.0)) == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("got", "target", "apart"),
    [
        (np.nan, 1.0, True),
        (1.0, np.nan, True),
        (np.inf, 1.0, True),
        (np.nan, np.nan, False),
        (np.inf, np.inf, False),
        (np.inf, -np.inf, True),
        (np.inf, np.nan, True),
    ],
)
def test_what_is_not_finite_is_equal_to_its_like_only(got, target, apart):
    distance = compare.distance(arrays([got, 2.0]), arrays([target, 2.0]))
    assert (distance == np.inf) if apart else (distance == 0)


def test_arrays_are_never_broadcast():
    assert compare.distance(arrays([1.0, 1.0]), arrays(1.0)) == np.inf
    assert compare.distance(arrays(1.0), arrays([1.0, 1.0])) == np.inf
    assert compare.distance(arrays([[1.0], [1.0]]), arrays([1.0, 1.0])) == np.inf


def test_only_numpy_is_needed_for_the_comparison():
    """A table of inputs and outputs can be compared where there is neither torch nor a reader."""
    with open(compare.__file__, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert names == {"__future__", "re", "collections.abc", "dataclasses", "typing", "numpy"}


# ---- an answer in a file -------------------------------------------------------------------------

HEAD = "import torch\n\n\ndef two_steps(a, b):\n"


def test_a_file_is_read_afresh_at_every_check(tmp_path):
    file = tmp_path / "work" / "my_ddpm.py"
    for body, status in [
        ("    raise NotImplementedError('your turn')\n", "blank"),
        ("    return (a * b) ** 0.5, 2 - a - b\n", "wrong"),
        ("    return (a * b) ** 0.5, 1 - a * b\n", "right"),
        ("    return (a * b) ** 0.5, 3 - a * b\n", "wrong"),
    ]:
        file.write_text(HEAD + body, encoding="utf-8")
        assert verdict("my_ddpm.two_steps").status == status
    assert "my_ddpm" not in sys.modules


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "There is no my_ddpm.py beside this notebook"),
        ("", "my_ddpm.py has no function named two_steps."),
        ("two_steps = 3", "my_ddpm.py has no function named two_steps."),
        ("def two_steps(a, b:\n    return 1", "my_ddpm.py, line 1, is not valid Python"),
        ("def two_steps(a, b):\nreturn 1", "my_ddpm.py, line 2, is not valid Python"),
        ("import nowhere_to_be_found", "ModuleNotFoundError"),
        ("x = 1\ny = x / 0", "ZeroDivisionError: division by zero, in line 2 of my_ddpm.py (y = x"),
        ("raise SystemExit", "SystemExit"),
        ("def two_steps(a, b):\n    return a / 0", "in line 2 of my_ddpm.py (return a / 0)"),
        ("while True: pass", "was stopped after 0.3 seconds, in line 1 of my_ddpm.py"),
        ("\0", "is not valid Python"),
    ],
)
def test_what_is_wrong_with_the_file_is_said(text, words, tmp_path, monkeypatch):
    monkeypatch.setattr(observe, "TIME_LIMIT", 0.3)
    if text is not None:
        (tmp_path / "work" / "my_ddpm.py").write_text(text, encoding="utf-8")
    result = verdict("my_ddpm.two_steps")
    assert result.status == "trouble"
    assert words in result.lines[0]


def test_a_file_in_another_encoding_gets_a_sentence(tmp_path):
    (tmp_path / "work" / "my_ddpm.py").write_bytes(b"x = '\xff'\n")
    assert "is not valid Python" in verdict("my_ddpm.two_steps").lines[0]


def test_a_chapter_run_as_a_script_finds_the_file_beside_it(tmp_path, monkeypatch):
    folder = tmp_path / "chapters"
    folder.mkdir()
    (folder / "my_ddpm.py").write_text(HEAD + "    return (a * b) ** 0.5, 1 - a * b\n")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(folder / "x.py"), raising=False)
    assert verdict("my_ddpm.two_steps").status == "right"


# ---- an exercise as data -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": "3"}, "an id looks like"),
        ({"kind": "essay"}, "kind is 'essay'"),
        ({"points": 0}, "at least 1"),
        ({"difficulty": 4}, "difficulty is 4"),
        ({"hints": ("one", "two")}, "three hints"),
        ({"hints": "one"}, "three hints"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"inputs": None}, "inputs are for code"),
        ({"reference": 3.0}, "reference is a function"),
        ({"rubric": ("x",)}, "rubric"),
        ({"kind": "explain", "inputs": None}, "rubric"),
        ({"kind": "explain", "inputs": None, "rubric": ("x",)}, "model answer"),
    ],
)
def test_bad_data_is_refused_at_once(changes, reason):
    with pytest.raises(ValueError, match=reason):
        made_up(**changes)


def test_an_id_is_given_once():
    again = made_up()
    with pytest.raises(ValueError, match=r"9\.1 is registered twice"):
        register(again)
    other = made_up(id="9.9")
    assert register(other) is register(other) is find("9.9")


def test_the_heading_is_what_the_chapter_prints():
    assert made_up().heading == "**Exercise 9.1** (2 points, 10 minutes, ●●○) — *Two steps.*"
    one = made_up(points=1, minutes=1, difficulty=1, title="Why?")
    assert one.heading == "**Exercise 9.1** (1 point, 1 minute, ●○○) — *Why?*"


# ---- the general mistakes ------------------------------------------------------------------------


def test_mechanical_mistakes_are_made_from_the_reference():
    def std(a, b):
        return (1 - a * b) ** 0.5

    pair = mistakes.variance_as_std(two_steps, value=1, see="9.3")
    (name, (answer, message)) = next(iter(pair.items()))
    assert (name, message) == (
        "variance-as-std",
        "That is the square root of the variance, see (9.3).",
    )
    assert answer(0.5, 0.5) == (0.5, 0.75**0.5)
    wrong = mistakes.root_dropped(two_steps, value=0, see="9.3")
    assert wrong["root-dropped"][0](0.5, 0.5) == (0.25, 0.75)
    wrong = mistakes.std_as_variance(std, see="9.3")
    assert wrong["std-as-variance"][0](0.5, 0.5) == pytest.approx(0.75)


def test_off_by_one_is_named_in_both_directions():
    exercise = made_up(
        inputs=_smooth_inputs, reference=smooth, wrong=mistakes.off_by_one(smooth, argument="t")
    )
    for by, name in ((1, "one-step-late"), (-1, "one-step-early")):
        result = verdict(lambda x, t, weights, by=by: smooth(x, t + by, weights), exercise)
        assert result.mistake == name


def test_a_written_out_mistake_has_the_catalogue_s_words_or_its_own():
    assert mistakes.known("guidance-sign", 1, see="8.4") == {
        "guidance-sign": (1, mistakes.MESSAGES["guidance-sign"].format(see="8.4"))
    }
    assert mistakes.known("stale-eps", 1, "My words.")["stale-eps"] == (1, "My words.")
    with pytest.raises(ValueError, match="no general mistake"):
        mistakes.known("typo", 1)


# ---- hints and solutions -------------------------------------------------------------------------


def test_hints_come_one_by_one(said):
    first = said(hint, "9.1")
    assert first == "• Exercise 9.1 (Two steps): hint 1 of 3\n  1. Look at (9.2).\n"
    assert "Apply it twice" in said(hint, "9.1")
    last = said(hint, "9.1")
    assert "The product" in last and 'solution("9.1") shows an answer' in last
    assert said(hint, "9.1") == last
    assert said(hint, "9.2").startswith("• Exercise 9.2 (Smooth): hint 1 of 3")


def test_solutions_are_shown_in_full(said):
    text = said(solution, "9.1")
    assert text.startswith("• Exercise 9.1 (Two steps): a solution\n    def two_steps(a, b):\n")
    assert "        return (a * b) ** 0.5, 1 - a * b\n" in text
    assert said(solution, "9.3").endswith("\n  0.374\n")
    text = said(solution, "9.4")
    assert "Because variances add." in text and "– says what adds" in text


# ---- progress ------------------------------------------------------------------------------------

EMPTY = """\
• Your progress
    Chapter 9       0 of 8 points
  ○ 9.1  Two steps  not attempted, 0 of 2
  ○ 9.2  Smooth     not attempted, 0 of 2
  ○ 9.3  A guess    not attempted, 0 of 2
  ○ 9.4  Why?       not attempted, 0 of 2
"""


def wrong_answer(a, b):
    return 0.0, 0.0


def test_progress_is_shown_by_chapter(said):
    assert said(progress) == said(progress, "9") == EMPTY
    assert "no such exercises" in said(progress, "8")
    said(check, "9.1", two_steps)
    said(check, "9.2", wrong_answer)
    said(check, "9.4", "Because.")
    assert said(progress).splitlines()[1:] == [
        "    Chapter 9       2 of 8 points",
        "  ✓ 9.1  Two steps  done, 2 of 2",
        "  ✗ 9.2  Smooth     attempted, 0 of 2",
        "  ○ 9.3  A guess    not attempted, 0 of 2",
        "  ✎ 9.4  Why?       noted, 2 to be marked",
    ]


def test_what_is_done_stays_done(said):
    said(check, "9.1", two_steps)
    said(check, "9.1", wrong_answer)
    assert "✓ 9.1" in said(progress)


def test_progress_survives_a_restart(said, tmp_path):
    said(check, "9.1", two_steps)
    code = "from ddpm_lite.exercises.store import Store; print(Store().read())"
    assert python(code) == "({'9.1': {'status': 'done'}}, [])"


def test_the_file_is_outside_the_repository_by_default(monkeypatch):
    monkeypatch.delenv("DDPM_LITE_HOME")
    path = Store().path
    assert path.is_absolute() and path.name == "progress.json" and "ddpm-lite" in path.parts


DAMAGE = [
    b"",
    b"{",
    b"\xff\xfe",
    b"[]",
    b"3",
    b"{}",
    b'{"exercises": []}',
    b'{"exercises": {"9.1": "done"}}',
    b'{"exercises": {"9.1": {"status": "perfect"}}}',
    b'{"exercises": {"9.1": {"status": ["done"]}}}',
    b'{"exercises": {"9.1": {"hints": "many"}}}',
    b'{"exercises": {"9.1": {"hints": -1}}}',
    b"[" * 100_000,
]


@pytest.mark.parametrize("contents", DAMAGE, ids=range(len(DAMAGE)))
def test_a_damaged_file_is_set_aside(contents, said, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    for number in (1, 2):
        (home / "progress.json").write_bytes(contents)
        text = said(check, "9.1", two_steps)
        assert text.startswith("✓ Exercise 9.1 (Two steps): right.\n  Your progress file was dam")
        aside = home / f"progress.damaged-{number}.json"
        assert str(aside) in text and aside.read_bytes() == contents
        assert "damaged" not in said(check, "9.1", two_steps)
    assert "✓ 9.1" in said(progress)


def test_looking_at_damaged_progress_sets_it_aside_too(said, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "progress.json").write_text("{")
    assert "was damaged" in said(progress)
    assert said(progress) == EMPTY


def test_a_folder_that_cannot_be_written_costs_no_verdict(said, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DDPM_LITE_HOME", str(tmp_path / "file"))
    lines = said(check, "9.1", two_steps).splitlines()
    assert lines[0] == "✓ Exercise 9.1 (Two steps): right."
    assert len(lines) == 2 and lines[1].startswith("  Your progress cannot be saved: ")
    assert "hint 1 of 3" in said(hint, "9.1")
    assert "hint 2 of 3" in said(hint, "9.1")
    assert "✓ 9.1" in said(progress)
    monkeypatch.setenv("DDPM_LITE_HOME", str(tmp_path / "home"))  # the disk is back
    assert "hint 3 of 3" in said(hint, "9.1")
    saved = json.loads((tmp_path / "home" / "progress.json").read_text())["exercises"]
    assert saved == {"9.1": {"status": "done", "hints": 3}}


def test_an_interrupted_write_leaves_the_old_file_whole(said, tmp_path, monkeypatch):
    said(check, "9.1", two_steps)
    before = (tmp_path / "home" / "progress.json").read_bytes()

    def interrupted(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check("9.2", wrong_answer)
    assert (tmp_path / "home" / "progress.json").read_bytes() == before
    assert not list((tmp_path / "home").glob("*.new"))


def test_a_full_disk_is_said(said, tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    text = said(check, "9.1", two_steps)
    assert "  Your progress cannot be saved: no space left on device.\n" in text


def test_unknown_parts_of_the_file_are_kept(said, tmp_path):
    (tmp_path / "home").mkdir()
    path = tmp_path / "home" / "progress.json"
    path.write_text('{"version": 1, "exercises": {"1.1": {"status": "done", "later": [1]}}}')
    said(check, "9.1", two_steps)
    assert json.loads(path.read_text())["exercises"]["1.1"] == {"status": "done", "later": [1]}


def _mark_many(first: int) -> None:
    for number in range(first, first + 40):
        Store().mark(f"1.{number}", "done")


def test_two_notebooks_at_once_lose_nothing():
    context = multiprocessing.get_context("spawn")
    notebooks = [context.Process(target=_mark_many, args=(first,)) for first in (100, 200, 300)]
    for notebook in notebooks:
        notebook.start()
    for notebook in notebooks:
        notebook.join()
    assert [notebook.exitcode for notebook in notebooks] == [0, 0, 0]
    state, complaint = Store().read()
    assert len(state) == 120 and complaint == []


# ---- what the reader sees ------------------------------------------------------------------------


class Kernel:
    """Stands in for IPython's shell in a kernel, and keeps what is displayed."""

    kernel = object()


class Tags(html.parser.HTMLParser):
    """The tags that are opened and closed, and the words between them."""

    def __init__(self, page):
        super().__init__()
        self.opened, self.open, self.words = [], [], ""
        self.feed(page)
        assert self.open == [], "a tag is left open"

    def handle_starttag(self, tag, attrs):
        self.opened.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


@pytest.fixture
def displayed(monkeypatch):
    """Be in a notebook; what is displayed is put into the list."""
    bundles = []
    IPython = pytest.importorskip("IPython")
    monkeypatch.setattr(IPython, "get_ipython", lambda: Kernel)
    monkeypatch.setattr(
        "IPython.display.display", lambda bundle, raw: bundles.append((bundle, raw))
    )
    return bundles


def test_a_notebook_gets_the_same_words_twice(displayed, capsys, monkeypatch):
    answer = lambda a, b: (1 / 0, "<script>")  # noqa: E731
    check("9.1", answer, seed=1)
    assert capsys.readouterr().out == ""
    ((bundle, raw),) = displayed
    assert raw is True and set(bundle) == {"text/plain", "text/html"}
    for line in bundle["text/plain"].splitlines():
        assert line.strip() in Tags(bundle["text/html"]).words
    monkeypatch.setattr(render, "_in_notebook", lambda: False)
    check("9.1", answer, seed=1)
    assert capsys.readouterr().out == bundle["text/plain"] + "\n"


def test_a_terminal_in_ipython_is_no_notebook(monkeypatch, capsys):
    IPython = pytest.importorskip("IPython")
    monkeypatch.setattr(IPython, "get_ipython", lambda: object())
    render.show(Box("right", "words"))
    assert capsys.readouterr().out == "✓ words\n"


def test_ipython_is_not_imported_to_look_for_it():
    code = (
        "import sys; from ddpm_lite.exercises import hint; hint('0.0');"
        "assert 'IPython' not in sys.modules"
    )
    assert python(code).startswith("✗ There is no exercise")


def test_what_came_from_the_reader_is_escaped(displayed):
    def answer(a, b):
        raise ValueError("<img src=x onerror=alert(1)> & 'more'")

    check("9.1", answer)
    page = displayed[0][0]["text/html"]
    assert "<img" not in page and "&lt;img src=x onerror=alert(1)&gt; &amp;" in page
    check("<b>", None)
    assert "<b><b>" not in displayed[1][0]["text/html"]


BOXES = [
    Box("right", "Right."),
    Box("wrong", "No <b>.", ["One & two.", "Three."]),
    Box("hint", "Look", rows=[Row("All", "0 of 2", heading=True), Row("9.1", "x", "blank")]),
    Box("hint", "Code", code="def f(x):\n\n    return x < 1"),
]


@pytest.mark.parametrize("box", BOXES, ids=lambda box: box.title)
def test_a_box_stands_by_itself_in_light_and_dark(box):
    tags = Tags(as_html(box))
    assert {tag for tag, _ in tags.opened} <= {"div", "b", "span", "table", "tr", "td", "pre"}
    for _, attributes in tags.opened:
        assert set(attributes) <= {"style"}  # nothing to load, no script, no class of a theme
    for tag, attributes in tags.opened:
        if tag != "span":  # the text has the colour that the page gives it
            assert not attributes.get("style", "").startswith("color")
            assert ";color" not in attributes.get("style", "")


@pytest.mark.parametrize("box", BOXES, ids=lambda box: box.title)
def test_text_and_html_have_the_same_words(box):
    words = Tags(as_html(box)).words.split()
    assert "".join(words) == "".join(as_text(box).split())


def test_the_colours_are_visible_on_white_and_on_black():
    """A contrast of 3 to 1, which is asked of marks and borders, against both."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    for colour in render.COLOURS.values():
        light = luminance(colour)
        assert 1.05 / (light + 0.05) >= 3 and (light + 0.05) / 0.05 >= 3


def test_the_public_names_are_what_chapters_import():
    assert {"check", "hint", "progress", "solution"} <= set(exercises.__all__)

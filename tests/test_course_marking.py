"""Fairness of isolated marking: right answers of every form, every known mistake, nothing else."""

import numpy as np
import pytest
from course_tools import MARKED, assignment, right, wrong

from ddpm_lite.book import BookError
from ddpm_lite.course import sandbox
from ddpm_lite.course.marking import UNFIT, Marker
from ddpm_lite.course.sandbox import Sandbox
from ddpm_lite.course.verdicts import DIFFERENCES, Outcome, Question, together
from ddpm_lite.exercises import find

IDS = [exercise.id for exercise in MARKED]


@pytest.fixture(scope="module")
def box():
    return Sandbox.find()


def marked(ids, answers, box):
    with Marker(assignment(*ids), box) as marker:
        return marker.mark(answers)


def test_right_answers_earn_everything_and_each_known_mistake_its_name(box):
    """All exercises of the book in one assignment; one wrong answer of each at a time."""
    with Marker(assignment(*IDS), box) as marker:
        for mark in marker.mark(right(*IDS)):
            assert (mark.status, mark.points) == ("right", find(mark.id).points), mark
        for turn in range(5):
            names = {id: list(find(id).wrong)[turn] for id in IDS if turn < len(find(id).wrong)}
            for mark in marker.mark({id: wrong(id, name) for id, name in names.items()}):
                if mark.id in names:
                    assert (mark.mistake, mark.points) == (names[mark.id], 0), mark
                    assert mark.lines[0] == find(mark.id).wrong[mark.mistake][1]
                else:
                    assert (mark.status, mark.points) == ("blank", 0)


VARIANTS = {
    "a loop over floats": """
        def compose(alphas):
            factor, kept = 1.0, 1.0
            for alpha in alphas:
                factor, kept = factor * float(alpha) ** 0.5, kept * float(alpha)
            return factor, 1 - kept""",
    "NumPy and single precision": """
        def compose(a):
            share = np.float32(1)
            for one in a.numpy().astype(np.float32):
                share = share * one
            return np.sqrt(share), np.float32(1) - share""",
    "a list, other names, a helper, a check left in": """
        import torch as th
        def product(x): return th.exp(th.log(x).sum())
        def compose(shares): return [product(shares).sqrt(), 1 - product(shares)]
        check("3.2", compose); print(compose(th.tensor([0.5, 0.5])))""",
    "a lambda and an array of two": """
        compose = lambda alphas: torch.stack([alphas.prod().sqrt(), 1 - alphas.prod()])""",
    "an error after the function": """
        def compose(alphas): return alphas.prod().sqrt(), 1 - alphas.prod()
        compose("my own test")""",
}


def dedented(text):
    lines = text.strip("\n").splitlines()
    return "\n".join(line[8:] for line in lines)


def test_variants_of_a_right_answer_lose_nothing(box):
    with Marker(assignment("3.2"), box) as marker:
        for name, text in VARIANTS.items():
            (mark,) = marker.mark({"3.2": dedented(text)})
            assert mark.status == "right", (name, mark)


TROUBLES = {
    "def compose(alphas):\n    return alphas.prod(": "This is not valid Python, in line 2",
    "composed = 1": "The cell defines no compose.",
    "def compose():\n    return 1, 2": "other arguments",
    "def compose(alphas):\n    return None": "should be numbers",
    "def compose(alphas):\n    return alphas[100], 1": "raised IndexError, in line 2 (return",
    "def compose(alphas):\n    raise ValueError(str(alphas))": "raised ValueError, in line 2",
    "1/0\ndef compose(alphas): return 1, 2": "raised ZeroDivisionError, in line 1 (1/0)",
    "def compose(alphas):\n    return compose(alphas)": "calls itself without end",
    "def compose(alphas):\n    return torch.zeros(10**7), 1": "far too large",
}


def test_what_cannot_be_compared_gets_one_sentence(box):
    with Marker(assignment("3.2"), box) as marker:
        for text, said in TROUBLES.items():
            (mark,) = marker.mark({"3.2": text})
            assert (mark.status, mark.points) == ("trouble", 0), mark
            assert len(mark.lines) == 1 and said in mark.lines[0], (text, mark)


def test_no_hidden_input_and_no_expected_number_is_in_the_words(box):
    """Not even through the text of an exception, which the student's code may make of its input."""
    telling = "def compose(alphas):\n    raise ValueError(repr(alphas.tolist()))"
    off = "def compose(alphas):\n    return alphas.prod() + 7, alphas[0]"
    question = Question.drawn(find("3.2"), 1)
    assert question.outcome({"0@0": np.array(3.0)}).lines[0].startswith("You return another number")
    for text in (telling, off):
        (mark,) = marked(["3.2"], {"3.2": text}, box)
        assert mark.points == 0
        assert not any(character.isdigit() for line in mark.lines for character in _plain(line))


def test_no_error_of_this_side_is_told(box):
    """What the marker's own arithmetic stumbles over may name shapes of hidden inputs."""
    special = [exercise for exercise in MARKED if exercise.observe is not None]
    ids = [exercise.id for exercise in special]
    odd = {
        exercise.id: f"def {exercise.reference.__name__}(*arguments): return torch.ones(2, 3, 5, 7)"
        for exercise in special
    }
    forged = """
import sys
def forged(self, **request):
    return {"values": [np.ones(())] * 2, "changed": {"9" * 5000: np.ones(3)}}
sys.modules["__main__"].Room._call = forged
def compose(alphas): return 1, 2"""
    for mark in [*marked(ids, odd, box), *marked(["3.2"], {"3.2": forged}, box)]:
        assert mark.points == 0 and mark.status in ("wrong", "trouble"), mark
        said = mark.lines[0]
        assert said in (*DIFFERENCES.values(), UNFIT) or "Error, in line 1" in said, mark


def _plain(line):
    return line.replace("in line 2", "").replace("(3.8)", "").partition("(raise")[0]


def test_blank_cells_and_numbers(box):
    ids = ["3.1", "3.2", "3.4", "3.7"]
    stub = "def compose(alphas):\n    raise NotImplementedError('your turn')"
    marks = marked(ids, {"3.1": "answer_3_1 = None", "3.2": stub, "3.4": "  \n"}, box)
    assert [mark.status for mark in marks] == ["blank", "blank", "blank", "person"]
    assert [mark.points for mark in marks] == [0, 0, 0, None]
    raising = (
        "answer_3_1 = None\nif answer_3_1 is None:\n    raise NotImplementedError('your turn')"
    )
    (mark,) = marked(["3.1"], {"3.1": raising}, box)
    assert mark.status == "blank"
    (mark,) = marked(["3.1"], {"3.1": "1/0\nanswer_3_1 = 0.6"}, box)
    assert mark.lines == ("Your code raised ZeroDivisionError, in line 1 (1/0).",)
    (mark,) = marked(["3.1"], {"3.1": "answer_3_1 = lambda: 0.6"}, box)
    assert mark.lines == ("The answer to this exercise is a number, not a function.",)


def test_answers_may_build_on_each_other_but_not_on_one_that_failed(box):
    text = right("9.3", "9.7")
    own = "def ddim_sample(denoiser, x_T, steps, eta, noises, alpha_bar):\n"
    own += "    x = x_T\n    for t, s in zip(steps, [*steps[1:], 0]):\n"
    own += "        eps = denoiser(x, torch.full((len(x),), t))\n"
    own += "        x = ddim_step(x, t, s, eps, noises[t], eta, alpha_bar)\n    return x"
    both = marked(["9.3", "9.7"], text | {"9.7": own}, box)
    assert [mark.status for mark in both] == ["right", "right"]
    killed = marked(["9.3", "9.7"], {"9.3": "import os\nos._exit(3)", "9.7": own}, box)
    assert [mark.status for mark in killed] == ["trouble", "trouble"]


def test_two_draws_that_disagree_name_no_mistake():
    exercise = find("3.2")
    one, other = (Outcome("wrong", name, ("said",)) for name in list(exercise.wrong)[:2])
    assert together([one, one], exercise) == one
    assert together([one, Outcome("right")], exercise) == one
    assert together([one, other], exercise).mistake is None
    assert together([one, Outcome("trouble", None, ("time",))], exercise).status == "trouble"


def test_without_bubblewrap_it_says_so_and_may_be_refused(monkeypatch):
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    assert "bubblewrap" not in Sandbox.find().protection
    monkeypatch.setattr(sandbox.landlock, "possible", lambda: False)
    assert "NO protection of the files that you can read" in Sandbox.find().protection
    with pytest.raises(BookError, match="bubblewrap \\(bwrap\\) is not installed"):
        Sandbox.find(require=True)
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: "/bin/false")
    with pytest.raises(BookError, match="does not work here"):
        Sandbox.find(require=True)
    assert Sandbox.find().bwrap is None


def test_the_copy_for_students_holds_no_answer():
    with sandbox.runtime() as place:
        names = {path.relative_to(place).as_posix() for path in place.rglob("*.py")}
    assert "ddpm_lite/exercises/observe.py" in names
    assert not [name for name in names if "/ch" in name or "/book/" in name]

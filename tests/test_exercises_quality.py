"""What tells an author that an exercise is not good enough, held against exercises that are not."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from ddpm_lite.book.cli import main
from ddpm_lite.course import quality
from ddpm_lite.course.quality import faults
from ddpm_lite.exercises import Exercise, all_exercises, find

PAGE = Path(__file__).resolve().parent.parent / "chapters" / "INSTRUCTORS.md"
(TEMPLATE,) = re.findall(r"(?s)```python\n(.*?)```", PAGE.read_text(encoding="utf-8"))


def template():
    """The exercise that the instructors' page holds up as a whole one."""
    names = {"Exercise": Exercise}
    exec(TEMPLATE, names)
    return names["EXERCISE"]


GOOD = template()


def changed(**fields):
    return dataclasses.replace(GOOD, **fields)


def with_wrong(name, answer, message="You have made the mistake that this is about."):
    return changed(wrong={**GOOD.wrong, name: (answer, message)})


BAD = {
    "should differ": changed(hints=("a", "a", "b")),
    "one or two sentences": with_wrong("x", lambda x: x.max(), "No."),
    "have the same message": with_wrong("x", lambda x: x.max(), GOOD.wrong["sum"][1]),
    "names 0 wrong answers": changed(wrong={}),
    "the reference and near": with_wrong("near", lambda x: x.mean() * (1 + 1e-4)),
    "sum and twice": with_wrong("twice", lambda x: x.sum() * 1.0001),
    "near is not named": with_wrong("near", lambda x: x.mean() * (1 + 1e-6)),
    "fails or is not finite": changed(reference=lambda x: x.mean() / 0),
    "do not differ from draw": changed(inputs=lambda rng: [(np.ones(3) * n,) for n in (1, 2, 3)]),
    "not the same for the same seed": changed(
        inputs=lambda rng: [(np.random.default_rng().normal(size=3),) for _ in range(3)]
    ),
    "it draws 1 inputs": changed(inputs=lambda rng: [(rng.uniform(1, 2, size=4),)]),
    "single precision": changed(tolerance=1e-9),
}


def test_a_good_one_has_no_faults():
    assert faults(GOOD) == []


@pytest.mark.parametrize("said", BAD)
def test_every_fault_is_found(said):
    found = faults(BAD[said])
    assert any(said in fault for fault in found), found


def test_a_slow_check_is_found(monkeypatch):
    monkeypatch.setattr(quality, "SECONDS", 0.0)
    assert any("of the processor" in fault for fault in faults(GOOD))


def test_a_thin_rubric_is_found():
    thin = dataclasses.replace(find("3.7"), reference="Ada.", rubric=("Ada",))
    assert faults(thin) == [
        "its model answer wants some sentences, and its rubric at least two lines"
    ]


@pytest.mark.parametrize("exercise", all_exercises(), ids=lambda exercise: exercise.id)
def test_the_exercises_of_the_book_are_good_enough(exercise):
    assert faults(exercise) == []


def test_the_command(capsys):
    assert main(["exercise-check", "3.2", "T.4"], "book") == 0
    assert capsys.readouterr().out.splitlines()[0] == "✓ 3.2 Any number of steps"
    assert main(["exercise-check", "3.77"], "book") == 1
    assert "there is no exercise 3.77" in capsys.readouterr().err

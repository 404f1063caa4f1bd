"""What tells an author that an exercise is not good enough, held against exercises that are not."""

import dataclasses

import numpy as np
import pytest

from ddpm_lite.book.cli import main
from ddpm_lite.course import quality
from ddpm_lite.course.quality import faults
from ddpm_lite.exercises import Exercise, all_exercises, find


def mean(x):
    """The template of the instructors' page."""
    return x.mean()


GOOD = Exercise(
    id="3.99",
    title="The mean",
    kind="code",
    points=1,
    minutes=3,
    difficulty=1,
    equation="3.1",
    inputs=lambda rng: [(rng.uniform(1, 2, size=size),) for size in (2, 3, 5)],
    reference=mean,
    wrong={
        "sum": (lambda x: x.sum(), "You summed; the mean divides by the number of entries."),
        "one-less": (
            lambda x: x.sum() / (len(x) - 1),
            "That divides by one less than the number, which is for variances.",
        ),
    },
    hints=("What is it divided by?", "Add up, and count.", "x.sum() / len(x)."),
)


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

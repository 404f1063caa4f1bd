"""The students' edition: it checks and names mistakes, and no solution is in any byte of it."""

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from ddpm_lite.book.cli import main
from ddpm_lite.course import tables as writing
from ddpm_lite.course.leaks import leaks
from ddpm_lite.exercises import all_exercises, find
from ddpm_lite.exercises.engine import judge
from ddpm_lite.exercises.tables import Unknown, hashes, made, read, read_chapter

EXERCISES = all_exercises()


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The tables of every exercise."""
    folder = tmp_path_factory.mktemp("tables")
    for exercise in EXERCISES:
        for name, content in writing.tables(exercise).items():
            (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("id", [e.id for e in EXERCISES if e.kind != "explain"])
def test_from_tables_an_exercise_judges_as_in_the_book(stored, id):
    book, tabled = find(id), read(stored, id)
    assert isinstance(tabled.reference, Unknown) and tabled.inputs is None
    assert tabled.heading == book.heading
    for seed in range(4 if book.is_code else 1):
        assert judge(tabled, book.reference, seed).status == "right"
        for name, (answer, message) in book.wrong.items():
            verdict = judge(tabled, answer, seed)
            assert (verdict.status, verdict.mistake) == ("wrong", name)
            assert verdict.lines[0] == message
    assert judge(tabled, None).status == ("blank" if book.kind == "number" else "trouble")
    with pytest.raises(LookupError):
        tabled.reference()


def test_every_draw_is_another_and_all_are_drawn(stored):
    tabled = read(stored, "3.2")
    seen = {repr(tabled.tables.draw(seed).inputs) for seed in range(60)}
    assert len(seen) == writing.DRAWS


def test_a_number_is_found_within_its_tolerance_and_not_beyond(stored):
    for exercise in EXERCISES:
        if exercise.kind == "number":
            tabled, right, width = read(stored, exercise.id), exercise.reference, exercise.tolerance
            for off in (0, 0.99, -0.99):
                assert judge(tabled, right * (1 + off * width)).status == "right", exercise.id
            for off in (3.1, -3.1):
                given = right * (1 + off * width)
                assert judge(tabled, given).status == "wrong", exercise.id
            assert judge(tabled, -right).status == "wrong"
            assert judge(tabled, float("nan")).lines[0].endswith("one finite number.")
            text = (stored / f"{exercise.id}.json").read_text("utf-8")
            assert "reference" not in text and "draws" not in text


def test_hashes_depend_on_the_salt_and_the_place_alone():
    assert hashes(2.0, 1e-2, "a", 0.0) != hashes(2.0, 1e-2, "b", 0.0)
    assert hashes(0.0, 1e-2, "a", 1.0) == hashes(0.0, 1e-2, "a", 0.0)
    assert hashes(2.0, 1e-2, "a", 0.0)[0] in hashes(2.01, 1e-2, "a", 1.0)


def test_the_order_and_what_tables_cannot_hold(stored):
    assert [e.id for e in read_chapter("9", stored)] == [f"9.{n}" for n in range(1, 8)]
    with pytest.raises(ValueError, match="'eval' is none of"):
        made({"object": "eval", "fields": {}})
    with pytest.raises(ValueError, match="tables can hold Drifting"):
        writing._described(lambda x: x)


def test_what_is_stored_is_plain_data(stored):
    for path in stored.glob("*.npz"):
        with np.load(path, allow_pickle=False) as arrays:
            assert {arrays[name].dtype.kind for name in arrays.files} <= set("fiubU")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """The wheel, built twice, and once more without hints."""
    place = tmp_path_factory.mktemp("wheels")
    for name, words in {"a": [], "b": [], "quiet": ["--hints", "off"]}.items():
        assert main(["student-wheel", "--out", str(place / name), *words], "book") == 0
    return place


def test_same_input_same_bytes(wheels):
    (one,), (other,) = ((wheels / name).iterdir() for name in "ab")
    assert one.name == other.name and "+student" in one.name
    assert one.read_bytes() == other.read_bytes()


def test_no_byte_of_it_is_a_solution(wheels):
    """With hints, only a line that a hint quotes; without, nothing at all."""
    assert leaks(wheels / "quiet") == []
    hints = "".join("".join(e.hints) for e in EXERCISES).replace(" ", "")
    for line in leaks(wheels / "a"):
        assert line.rpartition(": ")[2] in hints, line


def test_the_numbers_stand_nowhere_in_the_tables(wheels):
    (wheel,) = (wheels / "quiet").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        for exercise in EXERCISES:
            if exercise.kind == "number":
                name = f"ddpm_lite/exercises/tables/{exercise.id}.json"
                about = json.loads(archive.read(name))
                about = {k: v for k, v in about.items() if k not in ("messages", "title")}
                assert not {str(exercise.reference), exercise.reference} & set(
                    map(str, about.values())
                )
        names = archive.namelist()
    assert not [n for n in names if "/course/" in n or "/book/" in n or n.endswith("chA.py")]
    assert any(name.endswith("/licenses/LICENSE") for name in names)


USE = """
import sys
sys.path.insert(0, sys.argv[1])
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
import ddpm_lite
from ddpm_lite.__main__ import main
from ddpm_lite.exercises import all_exercises, check, hint, progress, solution
assert ddpm_lite.__version__.endswith("+student") and len(all_exercises()) == int(sys.argv[2])
check("3.2", lambda alphas: (alphas.prod(), 1 - alphas.prod()))
check("3.2", lambda alphas: (alphas.prod().sqrt(), 1 - alphas.prod()))
check("3.1", 0.4)
check("T.1", lambda a, b: 1)
solution("3.2")
solution("3.7")
[hint("3.2") for _ in range(3)]
progress("3")
assert main(["book", "read"]) == 2
"""


def test_a_student_uses_it(wheels, tmp_path, monkeypatch):
    (wheel,) = (wheels / "a").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    monkeypatch.setenv("DDPM_LITE_HOME", str(tmp_path / "home"))
    command = [sys.executable, "-c", USE, str(tmp_path / "site"), str(len(EXERCISES))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert find("3.2").wrong["factor-no-root"][1] in done.stdout
    assert "Exercise 3.2 (Any number of steps): right." in done.stdout
    assert find("3.1").wrong["share-kept"][1] in done.stdout
    assert done.stdout.count("holds no solutions") == 3  # twice asked for, once after the last hint
    assert "without the book" in done.stderr

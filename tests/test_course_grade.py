"""`book grade`: the gradebook, the feedback, what a person types, what is kept, the mistakes."""

import csv
import json
from typing import ClassVar

import pytest
from course_tools import assignment, right, wrong
from test_course_submissions import cell, notebook, put

from ddpm_lite.book.cli import main
from ddpm_lite.course import feedback, grade
from ddpm_lite.course.marking import Mark
from ddpm_lite.exercises import find

IDS = ("3.1", "3.2", "3.7")
MESSAGE = find("3.2").wrong["factor-no-root"][1]


def homework(answers):
    cells = [cell(f"test-{id.replace('.', '-')}", f'check("{id}", x)') for id in IDS[:2]]
    return notebook(
        *cells,
        cell("answer-3-1", answers.get("3.1", "answer_3_1 = None")),
        cell("answer-3-2", answers.get("3.2", "")),
        cell("answer-3-7", answers.get("3.7", ""), "markdown"),
    )


@pytest.fixture
def course(tmp_path):
    assignment(*IDS).write(tmp_path / "private" / "ps1.json")
    return tmp_path


def hand_in(course, student, answers):
    put(course / "submitted" / student / "ps1" / "ps1.ipynb", homework(answers))


def run(course, *words):
    submitted, out = course / "submitted", course / "graded"
    return main(["grade", str(submitted), "--out", str(out), *map(str, words)], "book")


def table(course, name="gradebook.csv"):
    with (course / "graded" / "ps1" / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def page(course, student):
    return (course / "graded/ps1/feedback" / feedback.file_name(student)).read_text("utf-8")


class Fake:
    """Marks 1 for an answer that says so, without running anything; counts what it has marked."""

    marked: ClassVar[list[str]] = []

    def __init__(self, assignment, sandbox):
        self.assignment = assignment

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def mark(self, answers):
        self.marked.append(answers["3.2"])
        if answers["3.2"] == "fall":
            raise LookupError("marker's own fault")
        if answers["3.2"] == "stop":
            raise KeyboardInterrupt
        good = Mark("3.2", 2, 2, "right") if answers["3.2"] == "good" else None
        return [
            Mark("3.1", 0, 1, "blank"),
            good or Mark("3.2", 0, 2, "wrong", "factor-no-root", (MESSAGE,)),
            Mark("3.7", None, 2, "person"),
        ]


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(grade, "Marker", Fake)
    Fake.marked.clear()
    return Fake


def test_from_submissions_to_pages_for_real(course, capsys):
    hand_in(course, "ada", right("3.1", "3.2") | {"3.7": "Because."})
    hand_in(course, "ben", {"3.2": wrong("3.2", "factor-no-root"), "3.1": "answer_3_1 = 1 / 0"})
    put(course / "submitted" / "cy" / "ps1" / "ps1.ipynb", b"")
    assert run(course, "--workers", 2) == 0
    rows = {row["student"]: row for row in table(course)}
    assert [rows["ada"][id] for id in IDS] == ["1", "2", ""]
    assert [rows["ben"][id] for id in IDS] == ["0", "0", "0"]
    assert (rows["ada"]["total"], rows["ada"]["out of"]) == ("3", "5")
    assert rows["ben"]["a person"] == "" and "3.7" in rows["ada"]["a person"]
    assert "the file is empty" in rows["cy"]["a person"]
    shown = page(course, "ben")
    assert "0 of 5 points" in shown and MESSAGE.replace("*variance*", "<em>variance</em>") in (
        shown.replace("&#x27;", "'")
    )
    assert "raised ZeroDivisionError" in shown and "3 of 5 points" in page(course, "ada")
    said = capsys.readouterr().out
    assert "Protection: " in said and "needs a person: cy, because the file is empty" in said


def test_marking_again_marks_what_has_changed(course, fake):
    for student in ("ada", "ben"):
        hand_in(course, student, {"3.2": "good"})
    run(course)
    first = (course / "graded/ps1/gradebook.csv").read_bytes()
    run(course)
    assert len(fake.marked) == 2
    assert (course / "graded/ps1/gradebook.csv").read_bytes() == first
    hand_in(course, "ben", {"3.2": "bad"})
    run(course)
    assert fake.marked[2:] == ["bad"]
    run(course, "--force")
    assert len(fake.marked) == 5
    other = json.loads((course / "private" / "ps1.json").read_text())
    (course / "private" / "ps1.json").write_text(json.dumps({**other, "seed": 6}))
    run(course)
    assert len(fake.marked) == 7


def test_a_fault_of_the_markers_own_stops_nobody_else(course, fake, capsys):
    for student, answer in {"ada": "fall", "ben": "good"}.items():
        hand_in(course, student, {"3.2": answer})
    assert run(course) == 0
    rows = {row["student"]: row for row in table(course)}
    assert rows["ada"]["total"] == "0" and "3.2: " in rows["ada"]["a person"]
    assert rows["ben"]["3.2"] == "2"
    assert "marker's own fault" in capsys.readouterr().err


def test_interrupted_it_keeps_what_is_marked(course, fake, capsys):
    for student, answer in {"ada": "good", "ben": "good", "cy": "stop"}.items():
        hand_in(course, student, {"3.2": answer})
    assert run(course) == 1
    assert "the same command goes on from there" in capsys.readouterr().err
    done = len(fake.marked)
    hand_in(course, "cy", {"3.2": "good"})
    run(course)
    assert done < 4 and fake.marked[done:].count("good") < 3


def test_what_a_person_types_counts_and_is_never_overwritten(course, fake):
    hand_in(course, "ada", {"3.2": "good", "3.7": "Ada is right."})
    run(course)
    (row,) = table(course, "manual.csv")
    assert (row["student"], row["exercise"], row["points"]) == ("ada", "3.7", "")
    path = course / "graded/ps1/manual.csv"
    path.write_text("student,exercise,points,comment,why\nada,3.7,1.5,half <b>right</b>,\n")
    hand_in(course, "ben", {"3.2": "good", "3.7": "Ben."})
    run(course)
    rows = {row["student"]: row for row in table(course)}
    assert (rows["ada"]["manual"], rows["ada"]["total"]) == ("1.5", "3.5")
    assert rows["ada"]["a person"] == ""
    shown = page(course, "ada")
    assert "3.5 of 5 points" in shown and "half &lt;b&gt;right&lt;/b&gt;" in shown
    kept = table(course, "manual.csv")
    assert [(row["student"], row["points"]) for row in kept] == [("ada", "1.5"), ("ben", "")]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("ada,3.7,9,,", "'9' should be a number from 0 to 2"),
        ("ada,3.7,many,,", "'many' should be a number from 0 to 2"),
        ("ada,4.4,1,,", "'4.4' should be one of 3.1, 3.2, 3.7"),
    ],
)
def test_what_a_person_cannot_have_meant_is_refused(course, fake, capsys, line, complaint):
    hand_in(course, "ada", {"3.2": "good"})
    run(course)
    path = course / "graded/ps1/manual.csv"
    path.write_text(f"student,exercise,points,comment,why\n{line}\n")
    before = path.read_bytes()
    assert run(course) == 1
    assert complaint in capsys.readouterr().err and path.read_bytes() == before


def test_names_and_answers_are_text_everywhere(course, fake):
    evil, script = "=HYPERLINK(1)", "<script>alert(1)</script>"
    hand_in(course, evil, {"3.2": script, "3.7": f"**bold** {script}"})
    hand_in(course, "Zoë Ångström", {"3.2": "good"})
    run(course)
    rows = [row["student"] for row in table(course)]
    assert rows == ["'=HYPERLINK(1)", "Zoë Ångström"]
    shown = page(course, evil)
    assert "<script" not in shown and "&lt;script&gt;" in shown
    assert "default-src 'none'" in shown and "http" not in shown.replace("http-equiv", "")
    names = {path.name for path in (course / "graded/ps1/feedback").iterdir()}
    assert len(names) == 2 and all(name.isascii() and "=" not in name for name in names)
    run(course)  # the neutralised name in manual.csv is still hers
    assert len(table(course, "manual.csv")) == 1


def test_a_class_and_its_mistakes(course, fake):
    for student, answer in {"ada": "good", "ben": "bad", "cy": "worse", "dee": "good"}.items():
        hand_in(course, student, {"3.2": answer})
    run(course)
    rows = table(course, "misconceptions.csv")
    assert {"exercise": "3.2", "outcome": "factor-no-root", "students": "2"}.items() <= (
        rows[0].items()
    )
    assert {"exercise": "3.2", "outcome": "right", "students": "2", "message": ""} in rows
    shown = (course / "graded/ps1/misconceptions.html").read_text("utf-8")
    assert "3.2 (50% of 4)" in shown and "ben" not in shown
    assert 'alt="exercise 3.2: 2 right, 2 a known mistake' in shown
    assert (course / "graded/ps1/misconceptions.png").read_bytes()[:4] == b"\x89PNG"


def test_two_assignments_each_with_its_own_book(course, fake):
    assignment(*IDS, name="ps2").write(course / "private" / "ps2.json")
    hand_in(course, "ada", {"3.2": "good"})
    second = homework({"3.2": "bad"})
    second["metadata"]["ddpm_lite"]["assignment"] = "ps2"
    put(course / "submitted" / "ada" / "ps2" / "ps2.ipynb", second)
    run(course)
    assert {path.name for path in (course / "graded").iterdir()} == {"ps1", "ps2"}
    assert table(course)[0]["3.2"] == "2"
    assert run(course, "--assignment", "ps9") == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--workers", "0"], "--workers 0: at least 1"),
        (["--assignment", "ps7"], "no assignment 'ps7'; there are ps1"),
        (["--course", "/nowhere"], "holds no assignment"),
    ],
)
def test_mistakes_are_one_sentence(course, fake, capsys, words, complaint):
    hand_in(course, "ada", {"3.2": "good"})
    assert run(course, *words) == 1
    said = capsys.readouterr().err
    assert complaint in said and said.count("\n") == 1


def test_an_empty_folder_and_a_broken_record(course, capsys):
    (course / "submitted").mkdir()
    assert run(course) == 1
    assert "holds no submissions" in capsys.readouterr().err
    (course / "private" / "ps1.json").write_text("{}")
    assert run(course) == 1
    assert "is not the record of an assignment" in capsys.readouterr().err

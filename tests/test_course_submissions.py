"""Uploads of every kind, the broken ones too: whose they are, and what is in them."""

import json
import zipfile

import pytest
from course_tools import assignment

from ddpm_lite.book import BookError
from ddpm_lite.course import submissions
from ddpm_lite.course.assignment import grade_id
from ddpm_lite.course.notebooks import YOUR_WORDS

PS1 = {"ps1": assignment("3.2", "3.7")}
COMPOSE = "def compose(alphas):\n    return 1, 2"


def cell(name, source, kind="code"):
    return {"cell_type": kind, "metadata": {"nbgrader": {"grade_id": name}}, "source": source}


def notebook(*cells, name="ps1"):
    metadata = {"ddpm_lite": {"assignment": name}} if name else {}
    return {"cells": list(cells), "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def usual(answer=COMPOSE, words="Because.", **options):
    return notebook(
        cell("answer-3-2", answer),
        cell("test-3-2", 'check("3.2", compose)'),
        cell("answer-3-7", words, "markdown"),
        **options,
    )


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def found(folder, assignments=PS1):
    return {s.student: s for s in submissions.find(folder, assignments)}


def test_an_nbgrader_tree_loose_files_and_archives(tmp_path):
    put(tmp_path / "ada" / "ps1" / "ps1.ipynb", usual())
    put(tmp_path / "ben_ps1.ipynb", usual())
    put(tmp_path / "Cy Young_123_assignsubmission_file_" / "final (2).ipynb", usual())
    with zipfile.ZipFile(tmp_path / "dee.zip", "w") as archive:
        archive.writestr("homework/x.ipynb", json.dumps(usual()))
        archive.writestr("__MACOSX/homework/._x.ipynb", "junk")
    with zipfile.ZipFile(tmp_path / "everybody.zip", "w") as archive:
        archive.writestr("eve/x.ipynb", json.dumps(usual()))
        archive.writestr("fay/x.ipynb", json.dumps(usual()))
    put(tmp_path / "ada" / "ps1" / ".ipynb_checkpoints" / "ps1.ipynb", b"old")
    read = found(tmp_path)
    assert list(read) == ["Cy Young", "ada", "ben", "dee", "eve", "fay"]
    for submission in read.values():
        assert submission.answers == {"3.2": COMPOSE}
        assert submission.texts == {"3.7": "Because."}
        assert not submission.person and not submission.notes


def test_an_older_format_and_sources_in_lines(tmp_path):
    old = usual()
    put(tmp_path / "lines.ipynb", usual([line + "\n" for line in COMPOSE.split("\n")]))
    for one in old["cells"]:
        if one["cell_type"] == "code":
            one["input"] = one.pop("source")
    sheets = {"worksheets": [{"cells": old["cells"]}], "nbformat": 3, "metadata": old["metadata"]}
    put(tmp_path / "old.ipynb", sheets)
    read = found(tmp_path)
    assert read["old"].answers == {"3.2": COMPOSE}
    assert read["lines"].answers == {"3.2": COMPOSE + "\n"}


BROKEN = {
    "empty": (b"  \n", "the file is empty"),
    "text": (b"compose = 1", "not valid JSON"),
    "merge": (b'{"cells": [\n<<<<<<< HEAD\n1\n=======\n2\n>>>>>>> main\n]}', "merge"),
    "list": (b"[1, 2]", "it has no cells"),
    "cells": (b'{"cells": 7}', "its cells are no list"),
    "deep": (b"[" * 100_000, "not valid JSON"),
    "other": (usual(name="ps9"), "it is of assignment 'ps9'; marked are ps1"),
    "none": (notebook(cell("x", "1")), "it holds no cell of this assignment"),
    "junk": ({"cells": [3, None, {"source": {"a": 1}}]}, "it holds no cell of this assignment"),
    "zip": (None, "the archive cannot be opened"),
    "bomb": (None, "MB, at most 20 are read"),
    "nothing": (None, "there is no notebook in the archive"),
    "folder": (None, "there is no notebook in the folder"),
}


def test_what_cannot_be_read_is_left_to_a_person_who_is_told_why(tmp_path):
    for name, (content, _) in BROKEN.items():
        if content is not None:
            put(tmp_path / f"{name}.ipynb", content)
    put(tmp_path / "zip.zip", b"PK not really")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.ipynb", bytes(30 << 20))
    with zipfile.ZipFile(tmp_path / "nothing.zip", "w") as archive:
        archive.writestr("../../escape.txt", "x")
    (tmp_path / "folder").mkdir()
    put(tmp_path / "good.ipynb", usual())
    read = found(tmp_path)
    for name, (_, reason) in BROKEN.items():
        assert reason in read[name].person[""], name
        assert not read[name].answers
    assert not read["good"].person
    assert not (tmp_path.parent.parent / "escape.txt").exists()


def test_a_link_is_not_followed(tmp_path):
    put(tmp_path / "outside" / "secret.ipynb", usual())
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "eve.ipynb").symlink_to(tmp_path / "outside" / "secret.ipynb")
    put(tmp_path / "up" / "ada.ipynb", usual())
    assert list(found(tmp_path / "up")) == ["ada"]


def test_answers_in_other_cells_and_cells_that_are_gone_or_doubled(tmp_path):
    plain = {"cell_type": "code", "metadata": {}, "source": COMPOSE}
    words = cell("answer-3-7", "Because.", "markdown")
    test = cell("test-3-2", 'check("3.2", compose)')
    answer = cell("answer-3-2", COMPOSE)
    put(tmp_path / "rebuilt.ipynb", notebook(plain, test, words))
    put(tmp_path / "gone.ipynb", notebook(test, words))
    put(tmp_path / "equal.ipynb", notebook(answer, answer, test, words))
    put(tmp_path / "unlike.ipynb", notebook(answer, cell("answer-3-2", "x = 1"), test, words))
    conflict = "<<<<<<< HEAD\nx = 1\n=======\nx = 2\n>>>>>>> main"
    put(tmp_path / "marks.ipynb", notebook(cell("answer-3-2", conflict), test, words))
    read = found(tmp_path)
    assert read["rebuilt"].answers == {"3.2": COMPOSE}
    assert read["rebuilt"].notes == ("3.2: its answer stands in a cell of another name",)
    assert "deleted" in read["gone"].person["3.2"]
    assert read["equal"].answers == {"3.2": COMPOSE}
    assert "2 times" in read["unlike"].person["3.2"] and "3.2" not in read["unlike"].answers
    assert "merge" in read["marks"].person["3.2"]
    assert all(one.texts == {"3.7": "Because."} for one in read.values())


def test_test_cells_are_looked_at_and_never_used(tmp_path):
    answer, words = cell("answer-3-2", COMPOSE), cell("answer-3-7", YOUR_WORDS, "markdown")
    changed = cell("test-3-2", "print('full marks')")
    kept = cell("test-3-2", 'check("3.2", compose)')
    for name, tests in {"deleted": [], "changed": [changed], "doubled": [kept, kept]}.items():
        put(tmp_path / f"{name}.ipynb", notebook(answer, *tests, words))
    for name, one in found(tmp_path).items():
        assert one.notes == (f"3.2: its test cell has been {name}",)
        assert one.answers == {"3.2": COMPOSE} and one.texts == {"3.7": ""}


def test_two_uploads_of_one_student(tmp_path):
    put(tmp_path / "ada" / "first.ipynb", usual())
    put(tmp_path / "ada" / "again.ipynb", usual())
    put(tmp_path / "ben" / "first.ipynb", usual())
    put(tmp_path / "ben" / "better.ipynb", usual("def compose(a):\n    return 3, 4"))
    read = found(tmp_path)
    assert read["ada"].answers == {"3.2": COMPOSE}
    reason = read["ben"].person[""]
    assert "2 submissions that differ" in reason and "first" in reason and "better" in reason


def test_a_notebook_that_does_not_say_what_it_is_of(tmp_path):
    both = {**PS1, "ps2": assignment("3.2", name="ps2")}
    put(tmp_path / "ada_ps2.ipynb", usual(name=None))
    put(tmp_path / "ben.ipynb", usual(name=None))
    read = found(tmp_path, both)
    assert read["ada"].assignment == "ps2"
    assert read["ben"].assignment == "?" and "marked are ps1, ps2" in read["ben"].person[""]


def test_names_of_cells():
    assert grade_id("answer", "T.1") == "answer-T-1" and grade_id("setup") == "setup"


def test_no_folder(tmp_path):
    with pytest.raises(BookError, match="not a folder of submissions"):
        submissions.find(tmp_path / "x", PS1)

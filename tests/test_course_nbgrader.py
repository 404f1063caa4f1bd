"""nbgrader itself, unchanged, on what `book assign` wrote: release, marks, feedback, export."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from course_tools import right, wrong

from ddpm_lite.book.cli import main
from ddpm_lite.course.assignment import grade_id
from ddpm_lite.course.leaks import leaks
from ddpm_lite.exercises import find

pytest.importorskip("nbgrader")

IDS = ("3.1", "3.2", "3.7")
LOOP = "def compose(alphas):\n    while True:\n        pass"


def nbgrader(course, *words):
    # it looks for a program of its own, alembic, on the path
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [sys.executable, "-m", "nbgrader", *words]
    environ = {**os.environ, "PATH": path}
    done = subprocess.run(command, cwd=course, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def hand_in(course, student, answers):
    notebook = json.loads((course / "release" / "ps1" / "ps1.ipynb").read_text("utf-8"))
    for cell in notebook["cells"]:
        for id, answer in answers.items():
            if cell["metadata"]["nbgrader"]["grade_id"] == grade_id("answer", id):
                cell["source"] = answer
    target = course / "submitted" / student / "ps1" / "ps1.ipynb"
    target.parent.mkdir(parents=True)
    target.write_text(json.dumps(notebook), "utf-8")


def test_the_whole_way_through_nbgrader(tmp_path):
    assert main(["assign", "ps1", "--exercises", *IDS, "--out", str(tmp_path)], "book") == 0
    nbgrader(tmp_path, "generate_assignment", "ps1")
    assert leaks(tmp_path / "release") == []
    released = (tmp_path / "release" / "ps1" / "ps1.ipynb").read_text("utf-8")
    assert "ddpm_hidden" not in released and 'check(\\"3.2\\", compose)' in released
    assert [path.name for path in (tmp_path / "release" / "ps1").iterdir()] == ["ps1.ipynb"]

    hand_in(tmp_path, "ada", right("3.1", "3.2"))
    hand_in(tmp_path, "ben", {})
    hand_in(tmp_path, "cy", right("3.1") | {"3.2": wrong("3.2", "factor-no-root")})
    nbgrader(tmp_path, "autograde", "ps1")
    nbgrader(tmp_path, "generate_feedback", "ps1")
    nbgrader(tmp_path, "export", "--to", "grades.csv")
    with (tmp_path / "grades.csv").open(encoding="utf-8", newline="") as file:
        scores = {row["student_id"]: float(row["score"]) for row in csv.DictReader(file)}
    assert scores == {"ada": 3.0, "ben": 0.0, "cy": 1.0}

    page = (tmp_path / "feedback" / "cy" / "ps1" / "ps1.html").read_text("utf-8")
    assert "The factor multiplies x itself" in page
    for secret in ("_inputs", "rng", "hidden_seeds", find("3.7").rubric[0]):
        assert secret not in page

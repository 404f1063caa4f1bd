"""`book assign`: what is handed out is whole, runs, is always the same, and holds no solution."""

import ast
import dataclasses
import json
import shutil
from pathlib import Path

import jupytext
import nbformat
import pytest
from course_tools import MARKED, assignment, wrong
from nbclient import NotebookClient

from ddpm_lite.book import BookError
from ddpm_lite.book.cli import main
from ddpm_lite.book.manifest import load
from ddpm_lite.course.answers import answer_source
from ddpm_lite.course.assignment import Assignment, answer_name, hidden_seeds
from ddpm_lite.course.hidden import Hidden
from ddpm_lite.course.leaks import leaks
from ddpm_lite.course.statements import statement
from ddpm_lite.exercises import all_exercises, find, policy
from ddpm_lite.exercises.engine import judge


def assign(out, *words, name="ps1"):
    return main(["assign", name, *map(str, words), "--out", str(out)], "book")


def cells(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return {cell.metadata.nbgrader.grade_id: cell for cell in notebook.cells}


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """An assignment of the whole book."""
    out = tmp_path_factory.mktemp("everything")
    assert assign(out, "--all", "--instructor", name="everything") == 0
    return out


def test_every_known_answer_stands_alone_as_text():
    """From its text alone, in an empty namespace, each does what it does in the book."""
    for exercise in MARKED:
        answers = {"": exercise.reference} | {n: a for n, (a, _) in exercise.wrong.items()}
        for name, answer in answers.items():
            namespace = {}
            exec(answer_source(exercise, answer), namespace)
            verdict = judge(exercise, namespace[answer_name(exercise)], seed=3)
            expected = judge(exercise, answer, seed=3)
            assert verdict.mistake == expected.mistake == (name or None), (exercise.id, name)
            assert verdict.status == expected.status


def test_every_statement_stands_alone():
    book = load()
    for exercise in all_exercises():
        stated = statement(book, exercise)
        assert len(stated.text) > 60 and "my_ddpm" not in stated.text.partition("`alpha_bars`")[0]
        assert ".ipynb" not in stated.text and "`answer`" not in stated.text
        assert exercise.id != "7.5" or "7.19" in dict(stated.cited)  # its stub cites it
        assert all(f"\\tag{{{number}}}" in latex for number, latex in stated.cited)
        if exercise.kind != "explain":
            assert answer_name(exercise) in stated.stub


def test_nothing_for_students_holds_a_solution(everything):
    assert leaks(everything / "plain") == []


# One sentence alone, with a letter that JSON escapes: no other sentence can be found in its place.
WITH_ETA = next(part for part in find("9.5").reference.split(". ") if "η" in part)
SPLIT = {"cells": [{"source": [f"{line} \n" for line in find("3.7").rubric[0].split()]}]}
PLANTED = {  # a file's name and what is in it
    "escaped": ("x.json", json.dumps(WITH_ETA + ".")),
    "lines of a cell": ("x.ipynb", json.dumps(SPLIT)),
    "comments": ("x.py", "# " + find("3.7").rubric[0].replace(" ", "\n# ")),
    "hidden tests": ("x.py", "from ddpm_hidden_ps1 import mark"),
}


@pytest.mark.parametrize("how", PLANTED)
def test_a_leak_is_found_in_any_form(tmp_path, how):
    name, content = PLANTED[how]
    (tmp_path / name).write_text(content)
    assert leaks(tmp_path)


@pytest.mark.parametrize("how", ["text", "JSON", "archive", "renamed quotes"])
def test_a_leak_is_found(tmp_path, how):
    line = answer_source(find("3.6"), find("3.6").reference)
    model = find("3.7").reference
    if how == "text":
        (tmp_path / "x.py").write_text(line)
    elif how == "JSON":
        (tmp_path / "x.ipynb").write_text(json.dumps({"source": f"{model}\n"}))
    elif how == "archive":
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "x.txt").write_text(line)
        shutil.make_archive(str(tmp_path / "x"), "zip", tmp_path / "in")
        shutil.rmtree(tmp_path / "in")
    else:
        (tmp_path / "x.md").write_text(wrong("3.6", "jump-no-root").replace("'", '"'))
    assert leaks(tmp_path)


def test_the_source_and_the_instructors_edition_do_hold_them(everything):
    """Or else the search would find nothing anywhere."""
    for edition in ("source", "instructor"):
        found = leaks(everything / edition)
        assert len({line.partition("exercise ")[2].partition(":")[0] for line in found}) > 55


def test_same_input_same_bytes_and_another_assignment_is_refused(tmp_path, capsys):
    words = ["--exercises", "3.2", "3.7", "T.4", "--points", "3.2=5", "--hints", "2026-12-15"]
    assert assign(tmp_path / "a", *words, "--instructor") == 0
    assert assign(tmp_path / "b", *words, "--instructor") == 0
    files = {p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()}
    assert len(files) == 7
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    record = Assignment.read(tmp_path / "a" / "private" / "ps1.json")
    assert [(task.id, task.points) for task in record.tasks] == [("3.2", 5), ("3.7", 2), ("T.4", 1)]
    assert (record.points, record.hints, record.solutions) == (8, "2026-12-15", "off")
    config = tmp_path / "a" / "nbgrader_config.py"
    config.write_text("# mine")
    assert assign(tmp_path / "a", *words) == 0
    assert config.read_text() == "# mine"
    assert assign(tmp_path / "a", "--exercises", "3.2") == 1
    assert "is another assignment of that name" in capsys.readouterr().err
    assert assign(tmp_path / "a", "--exercises", "3.2", "--force") == 0


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "an assignment wants exercises"),
        (["--exercises", "3.99"], "there is no exercise 3.99"),
        (["--exercises", "3.2", "3.2"], "names 3.2 twice"),
        (["--chapter", "77"], "no chapter '77'"),
        (["--exercises", "3.2", "--points", "3.4=2"], "--points 3.4=2: write an exercise"),
        (["--exercises", "3.2", "--points", "3.2=-1"], "--points 3.2=-1"),
        (["--exercises", "3.2", "--hints", "soon"], "--hints is 'soon'; allowed are"),
    ],
)
def test_mistakes_are_one_sentence_and_nothing_is_written(tmp_path, capsys, words, complaint):
    assert assign(tmp_path / "course", *words) == 1
    said = capsys.readouterr().err
    assert complaint in said and said.count("\n") == 1
    assert not (tmp_path / "course").exists()


def test_a_name_that_is_no_name(tmp_path, capsys):
    assert assign(tmp_path / "course", "--exercises", "3.2", name="../ps1") == 1
    assert "letters, digits and _" in capsys.readouterr().err


def test_the_cells_are_nbgraders(everything):
    """Locked statements and tests, one answer each, points where marking adds them up."""
    source = cells(everything / "source" / "everything" / "everything.ipynb")
    plain = cells(everything / "plain" / "everything" / "everything.ipynb")
    assert source.keys() == plain.keys()
    for exercise in all_exercises():
        id = exercise.id.replace(".", "-")
        about = source[f"answer-{id}"].metadata.nbgrader
        assert about.solution and about.grade == (exercise.kind == "explain")
        assert "### BEGIN SOLUTION" in source[f"answer-{id}"].source
        assert "### BEGIN" not in plain[f"answer-{id}"].source
        if exercise.kind != "explain":
            about = source[f"test-{id}"].metadata.nbgrader
            assert about.locked and about.points == exercise.points
            assert "from ddpm_hidden_everything import mark" in source[f"test-{id}"].source
            assert "hidden" not in plain[f"test-{id}"].source
        assert source[f"statement-{id}"].source == plain[f"statement-{id}"].source
    script = jupytext.read(everything / "plain" / "everything" / "everything.py")
    assert [cell.source for cell in script.cells] == [cell.source for cell in plain.values()]


def test_the_solved_source_is_right_in_every_cell(everything):
    """What the regions hold is the reference, and the hidden tests give full marks for it."""
    source = cells(everything / "source" / "everything" / "everything.ipynb")
    hidden = Hidden(everything / "private" / "everything.json")
    for exercise in MARKED:
        namespace = {}
        exec(source["setup"].source, namespace)
        policy.obey()
        exec(source[f"answer-{exercise.id.replace('.', '-')}"].source, namespace)
        given = hidden.mark(exercise.id, namespace[answer_name(exercise)])
        assert given == exercise.points, exercise.id


def test_hidden_tests_name_the_mistake_and_show_no_number(everything, capsys):
    hidden = Hidden(everything / "private" / "everything.json")
    exercise = find("3.2")
    answer, message = exercise.wrong["factor-no-root"]
    assert hidden.mark("3.2", answer) == 0
    assert message in capsys.readouterr().out

    def stub(alphas):
        raise NotImplementedError("your turn")

    assert hidden.mark("3.2", stub) == 0
    assert "blank" in capsys.readouterr().out
    assert hidden.mark("3.2", lambda alphas: (alphas.sum(), alphas[0])) == 0
    said = capsys.readouterr().out
    assert said == (
        "Exercise 3.2: wrong. Some of your numbers differ from what was expected. "
        "See equation (3.8).\n"
    )


def test_hidden_inputs_differ_between_assignments_and_exercises():
    one = assignment("3.2", "3.4")
    other = dataclasses.replace(one, seed=6)
    seeds = [hidden_seeds(each, id) for each in (one, other) for id in ("3.2", "3.4")]
    assert len({seed for pair in seeds for seed in pair}) == 8


def test_a_students_notebook_runs_as_it_was_handed_out(tmp_path):
    assert assign(tmp_path, "--exercises", "3.1", "3.2", "3.7") == 0
    notebook = nbformat.read(tmp_path / "plain" / "ps1" / "ps1.ipynb", as_version=4)
    NotebookClient(notebook, timeout=60).execute()
    shown = [
        output.data["text/plain"]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    ]
    assert len(shown) == 2 and all("not attempted" in text for text in shown)


def test_hints_and_solutions_obey(capsys):
    policy.obey(hints="off", solutions="2999-01-31")
    try:
        from ddpm_lite.exercises import hint, solution

        hint("3.2")
        solution("3.2")
        said = capsys.readouterr().out
        assert "hints are off" in said and "solutions open on 31 January 2999" in said
        policy.obey(hints="on", solutions="2020-01-31")
        solution("3.2")
        assert "prod" in capsys.readouterr().out
        with pytest.raises(ValueError, match="hints is 'never'; allowed are"):
            policy.obey(hints="never")
    finally:
        policy.obey()


def test_records_round_trip_and_refuse_what_is_none(tmp_path):
    assert assign(tmp_path, "--exercises", "3.2", "--seed", "7") == 0
    path = tmp_path / "private" / "ps1.json"
    assert Assignment.read(path).seed == 7
    for broken in ("", "[]", '{"name": "x"}', '{"tasks": [{"id": "3.2"}]}'):
        path.write_text(broken)
        with pytest.raises(BookError, match="is not the record of an assignment"):
            Assignment.read(path)
    with pytest.raises(BookError, match="cannot be read"):
        Assignment.read(Path("nowhere.json"))


def test_answers_are_valid_python():
    for exercise in MARKED:
        ast.parse(answer_source(exercise, exercise.reference))

"""Stored measurements: fresh, complete, and refused as soon as what they rest on has changed."""

from pathlib import Path

import pytest

from ddpm_lite import measurements
from ddpm_lite.measurements import FOLDER, ROOT, fingerprint, measure, measured, problems
from ddpm_lite.storage import read_json

STORED = sorted(FOLDER.glob("*.json"))
CODE = '''"""Words."""

SIZE = 2  # a comment


def area(side):
    """More words."""
    return side**SIZE + len("# no comment")
'''


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_a_stored_measurement_is_fresh_and_says_where_it_comes_from(path):
    assert problems(path) == []
    record = read_json(path)
    assert record["name"] == path.stem
    assert record["command"] == f"python measurements/{path.stem}.py"
    assert {"processor", "cores", "threads", "python", "torch"} <= set(record["machine"])
    assert record["seconds"] > 0 and isinstance(record["seed"], int)
    assert record["results"] == measured(path.stem)
    assert f"measurements/{path.stem}.py" in record["sources"]


def test_every_program_has_its_measurement_and_the_other_way_round():
    assert [path.with_suffix(".py") for path in STORED] == sorted(FOLDER.glob("*.py"))


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("Words", "Better words", True),
        ("More words", "Other\n    words", True),
        ("# a comment", "# another", True),
        ("\n\n\n", "\n", True),
        ("SIZE = 2", "SIZE = 3", False),
        ("side**SIZE", "side * SIZE", False),
        ("# no comment", "# none", False),
    ],
)
def test_a_fingerprint_changes_with_the_code_and_not_with_the_words(tmp_path, old, new, same):
    one, two = tmp_path / "one.py", tmp_path / "two.py"
    one.write_text(CODE, encoding="utf-8")
    two.write_text(CODE.replace(old, new), encoding="utf-8")
    assert CODE.replace(old, new) != CODE
    assert (fingerprint(one) == fingerprint(two)) is same


def test_of_other_files_every_byte_counts(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"# 1\n")
    (tmp_path / "b.safetensors").write_bytes(b"# 2\n")
    assert fingerprint(tmp_path / "a.safetensors") != fingerprint(tmp_path / "b.safetensors")


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A repository of its own with one source and an empty folder of measurements."""
    monkeypatch.setattr(measurements, "ROOT", tmp_path)
    (tmp_path / "code.py").write_text(CODE, encoding="utf-8")
    return tmp_path


def test_a_measurement_goes_stale_with_its_source(house):
    measure("m", lambda: {"area": 4.0}, seed=7, sources=["code.py"], folder=house)
    path = house / "m.json"
    assert measured("m", house) == {"area": 4.0}
    assert read_json(path)["seed"] == 7
    assert problems(path) == []
    (house / "code.py").write_text(CODE.replace("2", "3"), encoding="utf-8")
    assert problems(path) == ["m.json: code.py has changed since; run `make measure`."]
    (house / "code.py").unlink()
    assert problems(path) == ["m.json: code.py is gone; run `make measure`."]


def test_a_source_that_changes_during_the_work_makes_it_stale(house):
    def work():
        (house / "code.py").write_text(CODE.replace("2", "3"), encoding="utf-8")
        return {}

    measure("m", work, seed=0, sources=["code.py"], folder=house)
    assert problems(house / "m.json") != []


def test_work_that_fails_leaves_the_old_measurement(house):
    measure("m", lambda: {"x": 1}, seed=0, sources=["code.py"], folder=house)

    def fails():
        raise RuntimeError("out of patience")

    with pytest.raises(RuntimeError):
        measure("m", fails, seed=0, sources=["code.py"], folder=house)
    assert measured("m", house) == {"x": 1}


def test_what_is_missing_is_said_in_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no measurement .*none\.json: `make"):
        measured("none", tmp_path)


def test_the_folder_is_the_repositorys():
    assert Path(measurements.__file__).parents[1] == ROOT
    assert (ROOT / "pyproject.toml").is_file()

"""`pytest --nbval chapters`, run for real on the tiny book: what is planted in it turns it red."""

import json
import re
from pathlib import Path

import pytest
import tiny_book

from ddpm_lite.book import pairs
from ddpm_lite.book.execute import ANSI
from ddpm_lite.book.pytest_summary import compared_text, count_numbers

CONFTEST = Path(__file__).parents[1] / "chapters" / "conftest.py"
IGNORED = """
# %% tags=["nbval-ignore-output"]
import time

print(time.time())
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return tiny_book.pressed(
        tmp_path_factory.mktemp("pressed") / "book", tiny_book.CHAPTER + IGNORED
    )


@pytest.fixture
def chapter(template, tmp_path):
    book = tiny_book.make(tmp_path / "book", tiny_book.CHAPTER + IGNORED)
    book.chapters[0].notebook.write_bytes(template.chapters[0].notebook.read_bytes())
    (book.root / "chapters" / "conftest.py").write_bytes(CONFTEST.read_bytes())
    (book.root / "pytest.ini").write_text(
        "[pytest]\naddopts = --nbval-current-env\nfilterwarnings = error\n"
    )
    return book.chapters[0]


def nbval(chapter, *options):
    return tiny_book.python(
        chapter.root, "-m", "pytest", "--nbval", "chapters", "--color=no", "-p", "no:cacheprovider",
        *options,
    )  # fmt: skip


def change(chapter, what):
    notebook = json.loads(chapter.notebook.read_text(encoding="utf-8"))
    what([cell for cell in notebook["cells"] if cell["cell_type"] == "code"])
    chapter.notebook.write_text(json.dumps(notebook), encoding="utf-8")


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["alone", "two processes"])
def test_green_ends_with_a_table(chapter, options):
    done = nbval(chapter, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    table = lines[next(i for i, line in enumerate(lines) if re.fullmatch("=+ chapters =+", line)) :]
    assert table[1].split() == ["executed", "compared", "numbers", "seconds"]
    assert table[2].split()[:4] == ["03_tiny", "3", "1", "1"]  # the ignored cell does not count
    assert table[3].split()[:4] == ["together", "3", "1", "1"]


def test_a_stale_output_is_red(chapter):
    tiny_book.edit(chapter.notebook, "the sum: 0.75", "the sum: 0.74")
    done = nbval(chapter)
    assert done.returncode == 1
    assert "Cell outputs differ" in done.stdout
    assert "03_tiny  " in done.stdout  # the table is there all the same


def test_a_wrong_equation_is_red(chapter):
    tiny_book.edit(chapter.notebook, "b - (-a))", "b - a)")
    done = nbval(chapter)
    assert done.returncode == 1
    assert "ClaimError: (3.1) does not hold" in ANSI.sub("", done.stdout)


def test_an_unexecuted_cell_is_red(chapter):
    """nbval alone runs such a cell, compares nothing, and calls it passed."""
    change(chapter, lambda cells: cells[0].update(execution_count=None))
    done = nbval(chapter)
    assert done.returncode == 1
    assert "never executed, so nothing was compared: from ddpm_lite.claims" in done.stdout
    (chapter.notebook.parent / "conftest.py").unlink()
    assert nbval(chapter).returncode == 0


def test_kernels_see_nothing_of_the_users(chapter, monkeypatch):
    """The tiny chapter's first cell shows what it finds; the stored output is made to differ."""
    monkeypatch.setenv("DDPM_LITE_HOME", "/home/reader/progress")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    code = (
        "import os, pathlib\n"
        'assert not pathlib.Path(os.environ["DDPM_LITE_HOME"]).exists()\n'
        'assert "inline" in os.environ["MPLBACKEND"]\n'
        'assert "reader" not in os.environ["DDPM_LITE_HOME"]\n'
    )
    change(chapter, lambda cells: cells[0].update(source=code + "".join(cells[0]["source"])))
    done = nbval(chapter)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("the sum: 0.75", 1),
        ("at t = 3: -1.5, 2e-3 and −4", 4),
        ("✓ (3.5)  left = right to 1e-10, 12 numbers", 0),
        ("○ Exercise 3.2 (Three steps): not attempted.", 0),
        ("x0 and v2.1 are names", 0),
        ("", 0),
    ],
)
def test_counts_numbers_but_not_those_of_claims_and_names(text, numbers):
    assert count_numbers(text) == numbers


def test_text_that_is_compared_leaves_out_pictures(chapter):
    def show(cells):
        cells[1]["outputs"] += [
            {"output_type": "display_data", "metadata": {}, "data": data}
            for data in (
                {"image/png": "", "text/plain": "<Figure 640x480>"},
                {"text/html": '<p style="margin:3px">seven 7</p>'},
                {"text/plain": "plain 8", "text/html": "html 9"},
            )
        ]

    change(chapter, show)
    cell = pairs.code_cells(pairs.read_notebook(chapter.notebook))[1]
    text = compared_text(cell)
    assert ("seven 7" in text, "plain 8" in text) == (True, True)
    assert not any(word in text for word in ("640", "3px", "html 9"))

"""Script and notebook: compared by content, updated in place, executed whole or left alone."""

import json

import nbformat
import pytest
import tiny_book

from ddpm_lite.book import BookError, execute, pairs
from ddpm_lite.book.files import write_whole


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A tiny book that was pressed, to be copied: a kernel costs seconds."""
    return tiny_book.pressed(tmp_path_factory.mktemp("pressed") / "book").chapters[0]


@pytest.fixture
def chapter(template, tmp_path):
    """The tiny chapter, pressed, in a folder of this test's own."""
    copy = tiny_book.make(tmp_path / "book").chapters[0]
    copy.source.write_bytes(template.source.read_bytes())
    copy.notebook.write_bytes(template.notebook.read_bytes())
    return copy


def problems(chapter):
    return pairs.problems(chapter.source, chapter.notebook)


def line_of(chapter, words):
    """The line of the script that holds `words`."""
    lines = chapter.source.read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if words in line)


def change(chapter, what):
    """Apply `what` to the parsed notebook and write it back."""
    notebook = pairs.read_notebook(chapter.notebook)
    what(notebook)
    nbformat.write(notebook, chapter.notebook)


def test_a_pressed_chapter_is_fit_to_print(chapter):
    assert problems(chapter) == []
    notebook = pairs.read_notebook(chapter.notebook)
    assert "".join(pairs.code_cells(notebook)[1].outputs[0].text).endswith("the sum: 0.75\n")
    assert pairs.script_of(notebook) == chapter.source.read_text(encoding="utf-8")


def test_nothing_volatile_is_stored(chapter):
    stored = json.loads(chapter.notebook.read_text(encoding="utf-8"))
    assert stored["metadata"].keys() == {"ddpm_lite", "kernelspec", "language_info"}
    assert "version" not in stored["metadata"]["language_info"]
    assert all(cell["metadata"] == {} for cell in stored["cells"])


def test_pressing_again_runs_nothing_and_writes_nothing(chapter):
    before = chapter.notebook.stat().st_mtime_ns
    done = execute.press(chapter)
    assert (done.seconds, done.changed) == (0.0, False)
    assert chapter.notebook.stat().st_mtime_ns == before


def test_pressing_again_by_force_gives_the_same_bytes(chapter):
    before = chapter.notebook.read_bytes()
    assert execute.press(chapter, always=True).seconds > 0
    assert chapter.notebook.read_bytes() == before


def test_an_edit_of_the_text_needs_no_kernel_and_keeps_ids_and_outputs(chapter):
    before = pairs.read_notebook(chapter.notebook)
    tiny_book.edit(chapter.source, "the larger one", "the smaller one")
    line = line_of(chapter, "the smaller one")
    assert problems(chapter) == [
        f"the notebook and 03_tiny.py differ, first at line {line} of the script"
    ]
    assert execute.press(chapter).seconds == 0
    after = pairs.read_notebook(chapter.notebook)
    assert problems(chapter) == []
    assert [cell.id for cell in after.cells] == [cell.id for cell in before.cells]
    assert pairs.code_cells(after)[1].outputs == pairs.code_cells(before)[1].outputs


def test_cells_that_stay_keep_their_ids_when_others_come_and_go(chapter):
    old = pairs.read_notebook(chapter.notebook)
    text = chapter.source.read_text(encoding="utf-8")
    chapter.source.write_text(text.replace("# %%\na, b", "# %% [markdown]\n# New.\n\n# %%\na, b"))
    new = pairs.adopt(pairs.read_script(chapter.source), old)
    assert [cell.id for cell in new.cells if cell.source != "New."] == [c.id for c in old.cells]
    assert len({cell.id for cell in new.cells}) == len(new.cells) == 4


def test_ids_of_new_cells_follow_from_their_text(chapter):
    one, two = (pairs.adopt(pairs.read_script(chapter.source), None) for _ in range(2))
    assert [cell.id for cell in one.cells] == [cell.id for cell in two.cells]


def test_changed_code_is_stale_and_is_run(chapter):
    tiny_book.edit(chapter.source, "0.25", "0.3")
    assert problems(chapter)
    assert execute.press(chapter).seconds > 0
    outputs = pairs.code_cells(pairs.read_notebook(chapter.notebook))[1].outputs
    assert "the sum: 0.80" in outputs[0].text


def test_outputs_that_other_code_made_are_noticed(chapter):
    """Both faces edited alike: they agree with each other, and not with what was run."""
    tiny_book.edit(chapter.source, "0.25", "0.75")
    change(chapter, lambda nb: pairs.code_cells(nb)[1].update(source=_replaced(nb)))
    assert problems(chapter) == ["its outputs were made by other code than it now holds"]


def _replaced(notebook):
    return pairs.code_cells(notebook)[1].source.replace("0.25", "0.75")


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (lambda cells: cells[1].update(execution_count=None), "cell 1 was not executed"),
        (lambda cells: cells[1].update(execution_count=7), "cell 1 was executed out of order"),
        (
            lambda cells: cells[1].outputs.append(
                nbformat.v4.new_output("error", ename="E", evalue="e", traceback=[])
            ),
            "cell 1 ended in an error",
        ),
    ],
)
def test_a_notebook_that_was_not_run_through_is_refused(chapter, fault, complaint):
    change(chapter, lambda notebook: fault(pairs.code_cells(notebook)))
    assert complaint in "\n".join(problems(chapter))


def test_a_missing_or_broken_notebook_is_named(chapter):
    chapter.notebook.write_text("{", encoding="utf-8")
    with pytest.raises(BookError, match=r"03_tiny\.ipynb is not a readable notebook"):
        problems(chapter)
    chapter.notebook.unlink()
    assert problems(chapter) == ["has never been executed: there is no .ipynb"]


def test_a_failing_cell_is_named_and_nothing_is_stored(chapter):
    before = chapter.notebook.read_bytes()
    tiny_book.edit(chapter.source, 'claim("3.1", a + b', 'claim("3.1", a + 2 * b')
    with pytest.raises(BookError) as error:
        execute.press(chapter)
    first, line, reason = str(error.value).splitlines()[:3]
    number = line_of(chapter, "2 * b")
    assert first == f"03_tiny.py:{number}, cell 1 failed; nothing was stored"
    assert line.strip() == 'claim("3.1", a + 2 * b, b - (-a))'
    assert reason.startswith("ClaimError: (3.1) does not hold")
    assert len(str(error.value).splitlines()) <= 5
    assert chapter.notebook.read_bytes() == before


def test_a_warning_is_refused_unless_the_cell_is_tagged(chapter):
    noisy = "import warnings; warnings.warn('loud', stacklevel=1)"
    text = chapter.source.read_text(encoding="utf-8")
    chapter.source.write_text(f"{text}\n# %%\n{noisy}\n", encoding="utf-8")
    with pytest.raises(BookError, match="cell 2 writes to stderr"):
        execute.press(chapter)
    tiny_book.edit(chapter.source, f"# %%\n{noisy}", f'# %% tags=["nbval-ignore-output"]\n{noisy}')
    execute.press(chapter)
    assert problems(chapter) == []


def test_a_chapter_runs_in_a_clean_room(chapter, monkeypatch):
    monkeypatch.setenv("DDPM_LITE_HOME", "/home/reader/progress")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    text = chapter.source.read_text(encoding="utf-8")
    chapter.source.write_text(
        text + "\n# %%\nimport os\nfrom pathlib import Path\n\nhome = Path(os.environ"
        '["DDPM_LITE_HOME"])\nprint(home.exists(), home.name, os.environ["MPLBACKEND"])\n'
        "print(Path.cwd().name)\n",
        encoding="utf-8",
    )
    execute.press(chapter)
    printed = pairs.code_cells(pairs.read_notebook(chapter.notebook))[2].outputs[0].text
    assert printed == f"False progress {execute.INLINE}\nchapters\n"


def test_blank_lines_between_cells_are_tidied(chapter, capsys):
    tidy = chapter.source.read_text(encoding="utf-8")
    tiny_book.edit(chapter.source, "\n\n# %%\na, b", "\n\n\n\n# %%\na, b")
    execute.press(chapter)
    assert chapter.source.read_text(encoding="utf-8") == tidy
    assert "tidied" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("#     name: python3\n", "", "must begin with the seven-line jupyter header"),
        ("# %% [markdown]\n# # The", "# # The", "every cell, the first too"),
    ],
)
def test_a_script_of_another_form_is_refused(chapter, old, new, complaint):
    tiny_book.edit(chapter.source, old, new)
    with pytest.raises(BookError, match=complaint):
        pairs.read_script(chapter.source)


def test_a_tagged_cell_is_folded_and_the_script_knows_only_the_tag(chapter):
    """The reader meets the picture first; one click shows the code that made it."""
    tiny_book.edit(chapter.source, "# %%\nfrom", '# %% tags=["hide-input"]\nfrom')
    execute.press(chapter)
    notebook = pairs.read_notebook(chapter.notebook)
    folded = [cell.metadata.get("jupyter") for cell in pairs.code_cells(notebook)]
    assert folded == [{"source_hidden": True}, None]
    assert pairs.script_of(notebook) == chapter.source.read_text(encoding="utf-8")
    assert problems(chapter) == []


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]

"""The reader's copy: what they changed stays, whatever happens; what they did not is renewed."""

import json

import pytest
import tiny_book

from ddpm_lite.book import BookError, readers

NAME = "03_tiny.ipynb"


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return tiny_book.pressed(tmp_path_factory.mktemp("pressed") / "book")


@pytest.fixture
def book(template, tmp_path):
    book = tiny_book.make(tmp_path / "book")
    book.chapters[0].notebook.write_bytes(template.chapters[0].notebook.read_bytes())
    (book.root / "chapters" / "my_ddpm.py").write_text("def alpha_bars(betas): ...\n")
    (book.root / "chapters" / "ddpm_in_100_lines.py").write_text("T = 1000\n")
    return book


@pytest.fixture
def mine(book, tmp_path):
    folder = tmp_path / "my-book"
    readers.copy(book, folder)
    return folder


def source(path, cell=-1):
    return "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][cell]["source"])


def edit_cell(path, text, cell=-1):
    """What a reader does in JupyterLab: another source in one cell, saved."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["cells"][cell]["source"] = text
    path.write_text(json.dumps(notebook), encoding="utf-8")


def run(path):
    """What running does: outputs and counts change, the sources do not; saved in another layout."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["execution_count"] = 17
            cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "mine\n"}]
    path.write_text(json.dumps(notebook), encoding="utf-8")


def new_edition(book, text="claim(3)"):
    edit_cell(book.chapters[0].notebook, text)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_first_copy_holds_what_a_reader_needs(book, mine):
    assert contents(mine).keys() == {
        NAME,
        "START.md",
        "my_ddpm.py",
        "ddpm_in_100_lines.py",
        ".book.json",
    }
    notebook = json.loads((mine / NAME).read_text(encoding="utf-8"))
    original = json.loads(book.chapters[0].notebook.read_text(encoding="utf-8"))
    assert notebook["cells"] == original["cells"]  # outputs, ids and all
    assert "version" in notebook["metadata"]["language_info"]  # as JupyterLab would save it


def test_a_second_copy_changes_nothing(book, mine):
    before = contents(mine)
    done = readers.copy(book, mine)
    assert contents(mine) == before
    assert (done.new, done.refreshed, done.beside) == ([], [], {})
    assert done.in_words(mine) == f"{mine}: 4 left as they are"


def test_an_untouched_file_becomes_the_new_edition(book, mine):
    new_edition(book)
    done = readers.copy(book, mine)
    assert done.refreshed == [NAME]
    assert source(mine / NAME) == "claim(3)"


def test_new_outputs_alone_reach_a_file_that_was_never_run(book, mine):
    run(book.chapters[0].notebook)
    assert readers.copy(book, mine).refreshed == [NAME]
    assert "mine" in (mine / NAME).read_text(encoding="utf-8")


def test_running_is_no_change_and_its_outputs_stay_until_a_new_edition(book, mine):
    run(mine / NAME)
    before = contents(mine)[NAME]
    assert readers.copy(book, mine).refreshed == []
    assert contents(mine)[NAME] == before
    new_edition(book)
    assert readers.copy(book, mine).refreshed == [NAME]
    assert source(mine / NAME) == "claim(3)"


def test_an_edited_file_stays_and_the_new_edition_is_laid_beside_it_once(book, mine):
    edit_cell(mine / NAME, "my answer")
    before = contents(mine)[NAME]
    assert readers.copy(book, mine).beside == {}  # nothing new to lay there
    new_edition(book)
    done = readers.copy(book, mine)
    assert done.beside == {NAME: "03_tiny.new.ipynb"}
    assert "you changed 03_tiny.ipynb" in done.in_words(mine)
    assert contents(mine)[NAME] == before
    assert source(mine / "03_tiny.new.ipynb") == "claim(3)"
    (mine / "03_tiny.new.ipynb").unlink()  # "I do not want it"
    assert readers.copy(book, mine).beside == {}
    assert not (mine / "03_tiny.new.ipynb").exists()


def test_editions_that_follow_replace_the_one_beside_unless_it_was_edited(book, mine):
    edit_cell(mine / NAME, "my answer")
    new_edition(book, "second")
    readers.copy(book, mine)
    new_edition(book, "third")
    assert readers.copy(book, mine).beside == {NAME: "03_tiny.new.ipynb"}
    assert source(mine / "03_tiny.new.ipynb") == "third"
    edit_cell(mine / "03_tiny.new.ipynb", "my second answer")
    new_edition(book, "fourth")
    assert readers.copy(book, mine).beside == {NAME: "03_tiny.new2.ipynb"}
    assert source(mine / NAME) == "my answer"
    assert source(mine / "03_tiny.new.ipynb") == "my second answer"
    assert source(mine / "03_tiny.new2.ipynb") == "fourth"


def test_a_reader_who_takes_the_new_edition_is_up_to_date_again(book, mine):
    edit_cell(mine / NAME, "my answer")
    new_edition(book, "second")
    readers.copy(book, mine)
    (mine / "03_tiny.new.ipynb").replace(mine / NAME)
    assert readers.copy(book, mine).beside == {}
    new_edition(book, "third")
    assert readers.copy(book, mine).refreshed == [NAME]
    assert source(mine / NAME) == "third"


def test_a_reader_who_undoes_their_changes_gets_the_new_edition(book, mine):
    original = source(mine / NAME)
    edit_cell(mine / NAME, "my answer")
    new_edition(book, "second")
    readers.copy(book, mine)
    edit_cell(mine / NAME, original)
    assert readers.copy(book, mine).refreshed == [NAME]
    assert source(mine / NAME) == "second"


def test_the_readers_own_module_grows_beside_theirs(book, mine):
    (mine / "my_ddpm.py").write_text("def alpha_bars(betas): return betas\n")
    (book.root / "chapters" / "my_ddpm.py").write_text("def alpha_bars(betas): ...\n# more\n")
    assert readers.copy(book, mine).beside == {"my_ddpm.py": "my_ddpm.new.py"}
    assert (mine / "my_ddpm.py").read_text() == "def alpha_bars(betas): return betas\n"


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"handed": {"a": 1}, "beside": {}}', None])
def test_without_its_record_a_copy_takes_every_difference_for_the_readers(book, mine, damage):
    edit_cell(mine / NAME, "my answer")
    record = mine / readers.RECORD
    if damage is None:
        record.unlink()
    else:
        record.write_text(damage)
    done = readers.copy(book, mine)
    assert source(mine / NAME) == "my answer"
    assert done.beside == {NAME: "03_tiny.new.ipynb"}
    assert readers.copy(book, mine).beside == {}  # the record is whole again


def test_a_file_that_is_no_notebook_any_more_is_the_readers(book, mine):
    (mine / NAME).write_text("<<<<<<< mine")
    new_edition(book)
    assert readers.copy(book, mine).beside == {NAME: "03_tiny.new.ipynb"}
    assert (mine / NAME).read_text() == "<<<<<<< mine"


@pytest.mark.parametrize("stop_at", range(6))
def test_an_interrupted_copy_loses_nothing_and_is_finished_by_the_next(
    book, tmp_path, monkeypatch, stop_at
):
    """Stopped at each write in turn, of a file or of the record; in a copy, then in an update."""
    folder = tmp_path / "my-book"
    whole, count = readers.write_whole, iter(range(100))

    def stopping(path, content):
        if next(count) == stop_at:
            raise KeyboardInterrupt
        return whole(path, content)

    monkeypatch.setattr(readers, "write_whole", stopping)
    with pytest.raises(KeyboardInterrupt):
        readers.copy(book, folder)
    monkeypatch.undo()
    assert readers.copy(book, folder).beside == {}
    edit_cell(folder / NAME, "my answer")
    new_edition(book)
    (book.root / "chapters" / "START.md").write_text("another")
    count = iter(range(100))
    monkeypatch.setattr(readers, "write_whole", stopping)
    with pytest.raises(KeyboardInterrupt):
        readers.copy(book, folder)
        raise KeyboardInterrupt  # fewer writes than that: it was not interrupted
    monkeypatch.undo()
    readers.copy(book, folder)
    assert source(folder / NAME) == "my answer"
    assert source(folder / "03_tiny.new.ipynb") == "claim(3)"
    assert (folder / "START.md").read_text() == "another"
    assert readers.copy(book, folder).in_words(folder).endswith("4 left as they are")
    assert not list(folder.glob(".*.tmp"))


def test_it_does_not_copy_onto_the_book_or_onto_a_file(book, tmp_path):
    for folder in (book.root, book.root / "chapters"):
        with pytest.raises(BookError, match="holds the book itself"):
            readers.copy(book, folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(BookError, match="is a file"):
        readers.copy(book, tmp_path / "file")


def test_a_book_that_was_not_pressed_is_not_handed_out(book, tmp_path):
    book.chapters[0].notebook.unlink()
    with pytest.raises(BookError, match="no notebook for 03_tiny"):
        readers.copy(book, tmp_path / "my-book")
    assert not list((tmp_path / "my-book").iterdir())

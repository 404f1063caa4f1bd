"""book.toml: what it may say, and how a mistake in it is named."""

from types import SimpleNamespace

import pytest
import tiny_book

from ddpm_lite.book import BookError, manifest


@pytest.fixture
def book(tmp_path):
    return tiny_book.make(tmp_path)


def test_reads_what_it_says(book):
    (chapter,) = book.chapters
    assert (book.title, book.version, book.language) == ("Tiny", "1", "en-GB")
    assert [part.title for part in book.parts] == ["All of it"]
    assert chapter.source == book.root / "chapters" / "03_tiny.py"
    assert chapter.notebook == book.root / "chapters" / "03_tiny.ipynb"
    assert chapter.goals == ("see how it works",)
    assert chapter.heading == "3 The tiny chapter"
    book.check_files()


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('title = "Tiny"', 'titel = "Tiny"', r"\[book\]: unknown key 'titel'"),
        ('title = "Tiny"\n', "", r"\[book\]: 'title' is missing"),
        ("seconds = 20", 'seconds = "20"', "chapter 03_tiny: 'seconds' must be of type int"),
        ("seconds = 20", "seconds = true", "'seconds' must be of type int, not True"),
        ('goals = ["see how it works"]', 'goals = "see"', "'goals' must be an array of strings"),
        ("seconds = 20", "seconds = 20\nhours = 1", "chapter 03_tiny: unknown key 'hours'"),
        ("[[paper]]", "[[papers]]", "book.toml: unknown key 'papers'"),
        ('part = "All of it"', 'part = "Half"', "chapter 3: there is no part 'Half'"),
        (
            "seconds = 20",
            'seconds = 20\nneeds = ["9"]',
            "needs chapter 9, which is not in the book",
        ),
        ("seconds = 20", 'seconds = 20\nexercises = ["4.1"]', "4.1 belongs to another chapter"),
        (
            "seconds = 20",
            'seconds = 20\nexercises = ["3.1", "3.1"]',
            "exercise '3.1' stands there tw",
        ),
        ("seconds = 20", "seconds = = 20", "book.toml is not valid TOML"),
        (
            "[[paper]]",
            '[[path]]\ntitle = "x"\nchapters = ["7"]\nexercises = true\n[[paper]]',
            "path 'x': chapter 7 is not in the book",
        ),
    ],
)
def test_names_the_mistake(book, old, new, complaint):
    tiny_book.edit(book.root / "book.toml", old, new)
    with pytest.raises(BookError, match=complaint):
        manifest.load(book.root)


def test_a_chapter_may_not_stand_there_twice(book):
    text = (book.root / "book.toml").read_text()
    chapter = text[text.index("[[chapter]]") : text.index("[[paper]]")]
    (book.root / "book.toml").write_text(text + "\n" + chapter)
    with pytest.raises(BookError, match="chapter file '03_tiny' stands there twice"):
        manifest.load(book.root)


def test_files_must_exist(book):
    book.chapters[0].source.unlink()
    with pytest.raises(BookError, match=r"chapters/03_tiny\.py does not exist"):
        book.check_files()


def test_exercises_must_exist(book):
    tiny_book.edit(book.root / "book.toml", "seconds = 20", 'seconds = 20\nexercises = ["3.99"]')
    with pytest.raises(BookError, match=r"no exercise 3\.99 in ddpm_lite/exercises"):
        manifest.load(book.root).check_files()


def test_totals_come_from_the_exercises(book, monkeypatch):
    known = {
        "3.1": SimpleNamespace(id="3.1", points=2, minutes=10),
        "3.2": SimpleNamespace(id="3.2", points=3, minutes=25),
    }
    monkeypatch.setattr(manifest, "known_exercises", lambda: known)
    tiny_book.edit(
        book.root / "book.toml", "seconds = 20", 'seconds = 20\nexercises = ["3.2", "3.1"]'
    )
    (chapter,) = manifest.load(book.root).chapters
    assert (chapter.points, chapter.minutes_exercises) == (5, 35)
    assert [exercise.id for exercise in chapter.exercise_data] == ["3.2", "3.1"]


@pytest.mark.parametrize("name", ["3", "03", "03_tiny", "03_tiny.py", "chapters/03_tiny.ipynb"])
def test_finds_a_chapter_by_any_of_its_names(book, name):
    assert book.chapter(name) is book.chapters[0]


def test_unknown_chapter_is_refused_with_what_there_is(book):
    with pytest.raises(BookError, match=r"no chapter '4'.*03_tiny"):
        book.chapter("4")


def test_the_root_is_found_from_below_and_missed_from_outside(book, tmp_path_factory):
    assert manifest.find_root(book.root / "chapters") == book.root.resolve()
    with pytest.raises(BookError, match=r"no book\.toml"):
        manifest.find_root(tmp_path_factory.mktemp("elsewhere"))

"""The index of equations, the generated tables, and the links between pages."""

import base64
import re

import nbformat
import pytest
import tiny_book

from ddpm_lite.book import BookError, contents, equations, index, links, manifest, pairs

LIBRARY = '''"""A module.

Book: (3.1).
"""

class Law:
    """A law."""

    def mean(self):
        """The mean.

        Book: (3.1).
        Paper: DDPM Eq. 4 (for
            s = 1); DDPM, in the text after Eq. 7.
        Raises:
            nothing.
        """

def other():
    """Says nothing of equations. The Book: is not at the start of its line."""
'''


@pytest.fixture
def book(tmp_path):
    book = tiny_book.make(tmp_path / "book")
    (book.root / "ddpm_lite" / "laws.py").write_text(LIBRARY, encoding="utf-8")
    contents.write(book)
    return book


def index_problems(book):
    return index.problems(equations.read_book(book), index.implementations(book))


def test_doc_strings_name_equations_and_papers(book):
    module, method = index.implementations(book)
    assert (module.name, module.equations, module.papers) == ("ddpm_lite.laws", ("3.1",), ())
    assert (method.name, method.module) == ("Law.mean", "ddpm_lite.laws")
    assert method.papers == ("DDPM Eq. 4 (for s = 1)", "DDPM, in the text after Eq. 7")
    assert index_problems(book) == []


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (
            "Book: (3.1).\n        Paper",
            "Book: (3.9).\n        Paper",
            "(3.9) is nowhere in the book",
        ),
        ("Book: (3.1).\n        Paper", "Book: 3.1.\n        Paper", "should look like"),
        ("Book: (3.1).\n        Paper", "Book:\n        Paper", "should look like"),
        ("DDPM Eq. 4", "DDPMs Eq. 4", "begins with no paper of book.toml (DDPM)"),
    ],
)
def test_faults_in_doc_strings(book, old, new, complaint):
    tiny_book.edit(book.root / "ddpm_lite" / "laws.py", old, new)
    (problem,) = index_problems(book)
    assert complaint in problem
    assert problem.startswith("ddpm_lite.laws:")
    assert "Law.mean" in problem


def test_the_index_leads_from_equation_to_paper(book):
    page = book.generated.read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith("| (3.1)"))
    assert row == (
        "| (3.1) | [3.1 A sum](03_tiny.ipynb#3.1-A-sum) | `==` | `ddpm_lite.laws`, `Law.mean` "
        "| DDPM Eq. 4 (for s = 1); DDPM, in the text after Eq. 7 |"
    )
    assert "https://arxiv.org/abs/2006.11239" in page


def test_generated_pages_are_in_step_until_something_changes(book):
    assert contents.problems(book) == []
    assert contents.write(book) == []
    readme, start = (path.read_text(encoding="utf-8") for path in _tables(book))
    row = "see how it works | – | 1 h 10 min | 20 s | – |"
    assert f"| [3 The tiny chapter](chapters/03_tiny.ipynb) | {row}" in readme
    assert f"| [3 The tiny chapter](03_tiny.ipynb) | {row}" in start
    tiny_book.edit(book.root / "book.toml", "minutes_reading = 70", "minutes_reading = 5")
    assert len(contents.problems(manifest.load(book.root))) == 2
    tiny_book.edit(book.chapters[0].source, "## 3.1 A sum", "## 3.1 Sums")
    assert len(contents.problems(manifest.load(book.root))) == 3


def test_the_cover_is_the_first_picture_of_its_chapter(book):
    tiny_book.edit(book.root / "book.toml", "[book]\n", '[book]\ncover = "3"\n')
    covered = manifest.load(book.root)
    notebook = pairs.read_script(covered.chapters[0].source)
    cell = pairs.code_cells(notebook)[0]
    cell.outputs = [nbformat.v4.new_output("display_data", {"text/plain": "no picture"})]
    pairs.write_notebook(covered.chapters[0].notebook, notebook)
    with pytest.raises(BookError, match="holds no picture"):
        contents.problems(covered)
    for picture in (b"the first", b"another"):
        data = {"image/png": base64.b64encode(picture).decode()}
        cell.outputs = [nbformat.v4.new_output("display_data", data)]
        pairs.write_notebook(covered.chapters[0].notebook, notebook)
        (problem,) = contents.problems(covered)
        assert "cover.png is not in step" in problem
        contents.write(covered)
        assert covered.cover_picture.read_bytes() == picture
        assert contents.problems(covered) == []


def _tables(book):
    return book.root / "README.md", book.start_page


def test_what_people_wrote_around_the_tables_stays(book):
    tiny_book.edit(book.start_page, "# Tiny", "# Tiny\n\nBy hand, \\1 \\g<0>.")
    contents.write(book)
    text = book.start_page.read_text(encoding="utf-8")
    assert "By hand, \\1 \\g<0>." in text
    assert contents.problems(book) == []


@pytest.mark.parametrize("old", ["<!-- contents -->", "<!-- /contents -->"])
def test_a_lost_marker_is_refused(book, old):
    tiny_book.edit(book.start_page, old, "")
    with pytest.raises(BookError, match=r"START\.md"):
        contents.pages(book)


@pytest.mark.parametrize(("seconds", "shown"), [(20, "20 s"), (119, "119 s"), (600, "10 min")])
def test_the_contents_say_how_long_a_chapter_may_run(book, seconds, shown):
    tiny_book.edit(book.root / "book.toml", "seconds = 20", f"seconds = {seconds}")
    contents.write(manifest.load(book.root))
    (row,) = re.findall(r"\| \[3 .*\|", book.start_page.read_text(encoding="utf-8"))
    assert row.split(" | ")[4] == shown


def test_reading_paths_add_up(book):
    path = '[[path]]\ntitle = "Soon"\nchapters = ["3"]\nexercises = true\nweeks = 7\n\n[[paper]]'
    tiny_book.edit(book.root / "book.toml", "[[paper]]", path)
    tiny_book.edit(book.start_page, "# Tiny", "# Tiny\n<!-- paths -->\n<!-- /paths -->")
    contents.write(manifest.load(book.root))
    reading = "[The tiny chapter](03_tiny.ipynb), with the exercises"
    row = f"| Soon | {reading} | 1 h 10 min, 10 min a week |"
    assert row in book.start_page.read_text(encoding="utf-8")


def test_links_of_the_tiny_book_lead_somewhere(book):
    assert links.problems(book) == []


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("#3.1-A-sum", ""),
        ("03_tiny.ipynb#3.1-A-sum", ""),
        ("03_tiny.ipynb#3.1%20A-sum", "has no heading"),
        ("03_tiny.ipynb#3.1-a-sum", "03_tiny.ipynb has no heading with that text"),
        ("#3.1", "03_tiny.ipynb has no heading with that text"),
        ("04_none.ipynb", "there is no such file"),
        ("03_tiny.py", ""),
        ("03_tiny.py#3.1-A-sum", "a file that has no headings"),
        ("START.md#Tiny", ""),
        ("equations.md#The-papers", ""),
        ("../README.md", "leaves the folder of chapters"),
        ("https://arxiv.org/abs/2006.11239", ""),
        ("mailto:someone@example.org", ""),
    ],
)
def test_links(book, target, complaint):
    tiny_book.edit(book.chapters[0].source, "(#3.1-A-sum)", f"({target})")
    found = links.problems(book)
    if complaint:
        assert len(found) == 1, found
        assert complaint in found[0]
        assert found[0].startswith("03_tiny.py:")
    else:
        assert found == []


def test_links_with_parentheses_formulas_and_code_around_them(book):
    source = book.chapters[0].source
    tiny_book.edit(source, "## 3.1 A sum", "## 3.1 A sum (of `two`)")
    assert len(links.problems(book)) == 2  # the chapter's own, and the index that is out of step
    tiny_book.edit(source, "(#3.1-A-sum)", "(#3.1-A-sum-(of-two)) $a[i](x)$ `[a](b)`")
    contents.write(book)
    assert links.problems(book) == []


def test_links_of_the_readme_are_followed_too(book):
    tiny_book.edit(
        book.root / "README.md", "# Tiny", "# Tiny Book\n\n[a](chapters/none.md) [b](#tiny-book)"
    )
    (problem,) = links.problems(book)
    assert problem.startswith("README.md:3: the link to chapters/none.md leads nowhere")

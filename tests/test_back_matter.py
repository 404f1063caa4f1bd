"""The pages after the chapters: glossary, pitfalls, references; and reading paths by sections."""

import re
from pathlib import Path

import pytest
import tiny_book

from ddpm_lite.book import (
    BookError,
    contents,
    glossary,
    links,
    manifest,
    pitfalls,
    readers,
    references,
    sections,
)

ROOT = Path(__file__).parents[1]
BOOK = manifest.load(ROOT)

# ------------------------------------------------------------------------------------- this book


def test_the_glossary_leads_to_where_each_term_is():
    assert glossary.problems(BOOK) == []
    assert len(glossary.read(BOOK)) >= 90


def test_every_pitfall_is_in_the_index():
    assert pitfalls.problems(BOOK) == []
    boxes = pitfalls.read_book(BOOK)
    in_the_sources = sum(
        chapter.source.read_text(encoding="utf-8").count("**Pitfall: ") for chapter in BOOK.chapters
    )
    assert len(boxes) == in_the_sources >= 40


def test_every_work_that_is_cited_is_listed_and_the_other_way_round():
    assert references.problems(BOOK) == []


def test_the_references_are_in_alphabetical_order_on_their_page():
    page = BOOK.references.read_text(encoding="utf-8")
    titles = re.findall(r"(?m)^- .*? \(\d{4}\)\. \*(.+?)\*\. ", page)
    assert titles == [reference.title for reference in references.read(BOOK)]
    assert page.index("Yuri Burda") < page.index("Jonathan Ho") < page.index("Aaron van den Oord")


def test_the_sections_are_what_the_sources_say():
    for chapter in BOOK.chapters:
        found = sections.read(chapter)
        lines = chapter.source.read_text(encoding="utf-8").splitlines()
        for section in found:
            assert re.fullmatch(
                rf"# #{{1,3}} {re.escape(section.heading)}", lines[section.line - 1]
            )
        whole = sum(sections.minutes(section) for section in found)
        assert whole == pytest.approx(chapter.minutes_reading)
        numbers = [section.number for section in found if section.number]
        assert len(set(numbers)) == len(numbers), f"{chapter.file}: two sections of one number"


def test_there_is_a_way_through_for_two_hours_a_weekend_six_weeks_and_twelve():
    starts = ("Two hours", "A weekend", "Six weeks", "Twelve weeks")
    assert [path.title.startswith(s) for path, s in zip(BOOK.paths, starts, strict=True)] == [
        True
    ] * 4
    assert [path.weeks for path in BOOK.paths] == [None, None, 6, 12]
    short = sum(minutes for _, minutes in contents.stops(BOOK, BOOK.paths[0], ""))
    assert 90 <= short <= 122.5  # to five minutes, no more than the two hours that it promises
    assert set(BOOK.paths[-1].chapters) == {chapter.number for chapter in BOOK.chapters}


def test_a_readers_copy_holds_the_pages_and_all_that_they_link_to(tmp_path):
    readers.copy(BOOK, tmp_path / "my-book")
    handed = {path.name for path in (tmp_path / "my-book").iterdir()}
    for page in (BOOK.glossary, BOOK.pitfalls, BOOK.references):
        assert page.name in handed
        targets = [t for t, _ in links.links_in(page.read_text(encoding="utf-8")) if "//" not in t]
        assert targets
        assert {target.partition("#")[0] for target in targets} <= handed


def test_the_start_page_and_the_readme_lead_to_the_pages():
    for path, folder in ((BOOK.start_page, ""), (ROOT / "README.md", "chapters/")):
        text = path.read_text(encoding="utf-8")
        for name in ("equations", "glossary", "pitfalls", "references"):
            assert f"]({folder}{name}.md)" in text


# ------------------------------------------------------------------- a book with a fault planted

CHAPTER = tiny_book.CHAPTER.replace(
    "# %%\nfrom ddpm_lite.claims",
    """# %% [markdown]
# > **Pitfall: the sum
# > is no product.** It happens, says Gauss (1801), and arXiv 2006.11239.
#
# ## 3.2 A *difference* of `a` and b
#
# The commuted sum is a self-made word; see DDPM Eq. 4.
#
# > **Pitfall: `a-b`.** It is not b-a.
#
# %%
from ddpm_lite.claims""",
    1,
)
REFERENCES = """
[[reference]]
authors = "Jonathan Ho, Ajay Jain, Pieter Abbeel"
title = "Denoising Diffusion Probabilistic Models"
year = 2020
arxiv = "2006.11239"
takes = "The chain."

[[reference]]
authors = "Carl Friedrich Gauss"
title = "Disquisitiones arithmeticae"
year = 1801
venue = "Leipzig"
takes = "Sums."
cited_as = ["Gauss (1801)"]
"""
TARGET = "03_tiny.ipynb#3.2-A-difference-of-a-and-b"
GLOSSARY = f"""# Glossary

| Term | 中文 | Meaning | Defined in |
|---|---|---|---|
| difference, word | 差 | What is left, by (3.1). | [3.2]({TARGET}) |
| sum (of two) | 和 | What there is together. | [3.1](03_tiny.ipynb#3.1-A-sum) |
"""


@pytest.fixture
def book(tmp_path):
    book = tiny_book.make(tmp_path / "book", CHAPTER)
    (book.root / "references.toml").write_text(REFERENCES, encoding="utf-8")
    book.glossary.write_text(GLOSSARY, encoding="utf-8")
    contents.write(book)
    return book


def edited(book, path, old, new):
    tiny_book.edit(path, old, new)
    return manifest.load(book.root)


def test_a_small_book_is_in_order(book):
    assert glossary.problems(book) == pitfalls.problems(book) == references.problems(book) == []
    assert contents.problems(book) == links.problems(book) == []


def test_a_book_without_back_matter_has_none(tmp_path):
    book = tiny_book.make(tmp_path / "book")
    contents.write(book)
    assert book.pages == (book.start_page, book.generated)
    assert "Glossary" not in book.start_page.read_text(encoding="utf-8")
    assert glossary.problems(book) == pitfalls.problems(book) == references.problems(book) == []


def test_sections_hold_what_stands_under_their_heading(book):
    title, first, second = sections.read(book.chapters[0])
    assert (title.heading, title.number, title.label) == ("The tiny chapter", "", "3")
    assert (first.number, first.label) == ("3.1", "3.1")
    assert second.heading == "3.2 A *difference* of `a` and b"
    assert second.target == TARGET
    assert "self-made" in second.text
    assert "self-made" not in first.text
    assert second.size > len(second.text)  # code counts


def test_a_pitfall_is_listed_under_its_title_and_section(book):
    page = book.pitfalls.read_text(encoding="utf-8")
    assert "| The sum is no product | [3.1 A sum](03_tiny.ipynb#3.1-A-sum) |" in page
    assert "| `a-b` | [3.2 A *difference* of `a` and b](" in page
    assert "The 2 mistakes" in page


@pytest.mark.parametrize("start", ["> **Pitfall.** ", "> Pitfall: ", "> *Pitfall*: "])
def test_a_box_in_another_form_is_refused(book, start):
    edited(book, book.chapters[0].source, "> **Pitfall: `a-b`.** ", start)
    (problem,) = pitfalls.problems(book)
    assert "03_tiny.py" in problem
    assert "should begin '> **Pitfall: its title.**'" in problem


def test_pages_fall_out_of_step_when_a_chapter_changes(book):
    edited(book, book.chapters[0].source, "## 3.1 A sum", "## 3.1 Sums")
    late = [problem.partition(" is not in step")[0] for problem in contents.problems(book)]
    assert late == [f"chapters/{name}.md" for name in ("equations", "pitfalls", "references")]
    assert any("glossary.md" in problem for problem in links.problems(book))
    assert any("leads to no section" in problem for problem in glossary.problems(book))


def test_references_know_who_cites_them(book):
    (book.root / "ddpm_lite" / "laws.py").write_text('"""Paper: DDPM Eq. 4."""\n', encoding="utf-8")
    (book.root / "ddpm_lite" / "odd.py").write_text('"""NewDDPM Eq. 4."""\n', encoding="utf-8")
    (book.root / "ddpm_lite" / "book").mkdir()
    press = '"""The press only talks of numbers such as 1312.6114, and of DDPM Eq. 4."""\n'
    (book.root / "ddpm_lite" / "book" / "press.py").write_text(press, encoding="utf-8")
    assert references.problems(book) == []
    gauss, ho = references.cited(book)
    assert [section.label for section in ho.sections] == ["3.1", "3.2"]  # by number, by name
    assert ho.modules == ("ddpm_lite.laws",)
    assert [section.label for section in gauss.sections] == ["3.1"]  # by the words of cited_as
    page = references.page(book, [gauss, ho])
    assert page.splitlines()[-1] == (
        "- Jonathan Ho, Ajay Jain, Pieter Abbeel (2020). *Denoising Diffusion Probabilistic "
        "Models*. [arXiv 2006.11239](https://arxiv.org/abs/2006.11239). **DDPM**: The chain. "
        "Cited in [3.1](03_tiny.ipynb#3.1-A-sum), "
        f"[3.2]({TARGET}), `ddpm_lite.laws`."
    )


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('arxiv = "2006.11239"', 'doi = "10.1/x"', "03_tiny.py cites arXiv 2006.11239, which"),
        ('cited_as = ["Gauss (1801)"]', "", "'Disquisitiones arithmeticae': nothing cites it"),
        ('venue = "Leipzig"', "", "has neither arxiv nor doi nor venue"),
        ("year = 2020", "year = 2017", "arXiv 2006.11239 is not of 2017"),
        ('arxiv = "2006.11239"', 'arxiv = "2006.1"', "is no arXiv number of the form"),
        ('takes = "Sums."', 'takes = "Sums"', "must be a sentence"),
        ('"Disquisitiones arithmeticae"', '"Denoising Diffusion Probabilistic Models"', "twice"),
        ('"Denoising Diffusion P', '"Diffusion P', "book.toml, paper 'DDPM': references.toml has"),
    ],
)
def test_faults_in_references(book, old, new, complaint):
    edited(book, book.root / "references.toml", old, new)
    assert any(complaint in problem for problem in references.problems(book))


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("year = 2020", 'year = "2020"', "'Denoising Diffusion Probabilistic Models': 'year' must"),
        ("year = 2020", "", "'year' is missing"),
        ("year = 2020", "yeer = 2020", "unknown key 'yeer'"),
        ("[[reference]]", "[[work]]", r"only \[\[reference\]\] is known, not work"),
        ("year = 2020", "year =", "not valid TOML"),
    ],
)
def test_references_that_cannot_be_read(book, old, new, complaint):
    edited(book, book.root / "references.toml", old, new)
    with pytest.raises(BookError, match=complaint):
        references.read(book)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[1](https://arxiv.org/abs/2006.11239)", ["2006.11239"]),
        ("arXiv:1312.6114, 2102.09672v2 and 1401.4082.", ["1312.6114", "2102.09672", "1401.4082"]),
        ("2013.1234 02006.11239 1.2006.11239 2006.112391 0.2006", []),  # no month, parts, too long
    ],
)
def test_arxiv_numbers_are_recognised(text, found):
    assert references.ARXIV.findall(text) == found


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("| sum (of two)", "| quotient", "'quotient': does not occur in '3.1 A sum'"),
        ("| sum (of two)", "| ads", "'ads' must come before 'difference'"),
        ("| sum (of two)", "| word", "'word' stands there twice"),
        ("| 和 |", "| sum |", "has no Chinese"),
        ("there is together.", "there is together", "one sentence"),
        ("What is left, by (3.1).", "It is left. By (3.1).", "one sentence"),
        ("(3.1)", "(3.9)", "(3.9) is nowhere in the book"),
        ("#3.1-A-sum", "#3.1-A-product", "leads to no section"),
        ("03_tiny.ipynb#3.1", "START.md#3.1", "is no link to a section"),
        ("[3.1](", "[3.2](", "the link's text should be '3.1', not '3.2'"),
        ("| 和 |", "|", "1 rows have not four cells"),
        ("| Term | 中文 |", "| Word | 中文 |", "the table must begin with"),
    ],
)
def test_faults_in_the_glossary(book, old, new, complaint):
    edited(book, book.glossary, old, new)
    assert any(complaint in problem for problem in glossary.problems(book))


@pytest.mark.parametrize("name", ["self-made word", "self made", "commuted sum"])
def test_a_term_may_be_hyphenated_and_an_other_name_will_do(book, name):
    edited(book, book.glossary, "| difference, word |", f"| difer, {name} |")
    assert glossary.problems(book) == []
    edited(book, book.glossary, f"difer, {name}", "difer, elf-made")  # words are found whole
    assert len(glossary.problems(book)) == 1


def test_a_path_may_go_through_single_sections(book):
    tiny_book.edit(book.start_page, "# Tiny", "# Tiny\n<!-- paths -->\n<!-- /paths -->")
    path = '[[path]]\ntitle = "Soon"\nchapters = ["3.2"]\nexercises = false\n\n[[paper]]'
    book = edited(book, book.root / "book.toml", "[[paper]]", path)
    contents.write(book)
    whole = sections.read(book.chapters[0])
    share = 70 * whole[2].size / sum(section.size for section in whole)
    row = f"| Soon | [3.2]({TARGET}) | {contents.duration(5 * round(share / 5))} |"
    assert row in book.start_page.read_text(encoding="utf-8")
    book = edited(book, book.root / "book.toml", '["3.2"]', '["3.7"]')
    with pytest.raises(BookError, match=r"03_tiny\.py has no section 3\.7"):
        contents.pages(book)
    tiny_book.edit(book.root / "book.toml", '["3.7"]', '["5.1"]')
    with pytest.raises(BookError, match=r"chapter 5\.1 is not in the book"):
        manifest.load(book.root)
    tiny_book.edit(
        book.root / "book.toml", '["5.1"]\nexercises = false', '["3.2"]\nexercises = true'
    )
    with pytest.raises(BookError, match="exercises are counted by whole chapters only"):
        manifest.load(book.root)

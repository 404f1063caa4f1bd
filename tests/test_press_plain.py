"""A chapter as a plain script, against what its notebook stores; and its ledger of claims."""

import nbformat
import pytest
import tiny_book

from ddpm_lite.book import BookError, plain

ANY = nbformat.v4.new_code_cell(metadata={"tags": ["nbval-ignore-output"]})


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    return tiny_book.pressed(tmp_path_factory.mktemp("pressed") / "book")


def test_the_script_prints_what_the_notebook_stores(book):
    (chapter,) = book.chapters
    assert plain.problems(chapter.source, chapter.notebook) == []


def test_other_text_is_shown_as_a_difference(book, tmp_path):
    (chapter,) = book.chapters
    other = tmp_path / chapter.source.name
    other.write_bytes(chapter.source.read_bytes())
    tiny_book.edit(other, '"the sum"', '"their sum"')
    (problem,) = plain.problems(other, chapter.notebook)
    assert "-the sum: 0.75" in problem
    assert "+their sum: 0.75" in problem


def test_a_script_that_fails_is_named(tmp_path):
    script = tmp_path / "x.py"
    script.write_text("print(1)\n1 / 0\n")
    with pytest.raises(BookError, match=r"python x\.py failed:\n(.*\n)*ZeroDivisionError"):
        plain.run(script)


def test_values_pictures_and_ignored_cells():
    def cell(*outputs, tags=()):
        return nbformat.v4.new_code_cell(outputs=list(outputs), metadata={"tags": list(tags)})

    def shown(**data):
        return nbformat.v4.new_output(
            "display_data", {k.replace("_", "/"): v for k, v in data.items()}
        )

    stream = nbformat.v4.new_output("stream", text="one\n")
    notebook = nbformat.v4.new_notebook(
        cells=[
            cell(stream, shown(image_png="", text_plain="Figure: …"), shown(text_plain="box")),
            cell(stream, tags=["nbval-ignore-output"]),
            cell(stream, shown(text_html="<i></i>", text_plain="")),
        ]
    )
    assert plain.stored_text(notebook) == (["one\nbox\n", "one\n"], [])
    notebook.cells.append(cell(nbformat.v4.new_output("execute_result", {"text/plain": "7"})))
    assert plain.stored_text(notebook)[1] == [
        "cell 3 ends in a value; a script shows none: print it"
    ]


@pytest.mark.parametrize(
    ("printed", "pieces", "fits"),
    [
        ("a\nb\n", ["a\nb\n"], True),
        ("a\nb\nc\n", ["a\nb\n"], False),
        ("c\na\nb\n", ["a\nb\n"], False),
        ("a\n17\nb\n", ["a\n", "b\n"], True),
        ("a\nb\n", ["a\n", "b\n"], True),
        ("17\na\nb\n", ["a\n", "b\n"], False),
        ("a\n17\nb\n18\n", ["a\n", "b\n"], False),
        ("a\n17\nb\n18\n", ["a\n", "b\n", ""], True),
        ("17\nb\n18\nc\n", ["", "b\n", "c\n"], True),
        ("17\nc\n", ["", "b\n", "c\n"], False),
    ],
)
def test_text_between_ignored_cells_must_stand_in_its_order(printed, pieces, fits):
    assert plain._fits(printed, pieces) is fits


def test_the_ledger_says_how_each_claim_was_made_to_fail(book):
    (claim,) = plain.perturbed(book.chapters[0].source)
    assert (claim.equation, claim.kind, claim.numbers) == ("3.1", "exact", 1)
    assert "1.01" in claim.bite or "1 %" in claim.bite

"""The book itself: pairs in step, equations backed, links followed, generated pages in step."""

import ast
import importlib
import re
import tomllib
from pathlib import Path

import pytest
import tiny_book

import ddpm_lite
from ddpm_lite.book import contents, equations, index, links, manifest, pairs, readers
from ddpm_lite.book.pytest_summary import NUMERAL, compared_text

ROOT = Path(__file__).parents[1]
BOOK = manifest.load(ROOT)
chapters = pytest.mark.parametrize("chapter", BOOK.chapters, ids=lambda chapter: chapter.file)
FACT = re.compile(rf"^.+: (?:{NUMERAL.pattern})(?:, {NUMERAL.pattern})*$", re.MULTILINE)
IGNORE = "nbval-ignore-output"


def full_chapters():
    """Those that teach: from chapter 2 on."""
    full = [c for c in BOOK.chapters if c.number.isdigit() and int(c.number) >= 2]
    return pytest.mark.parametrize("chapter", full, ids=lambda chapter: chapter.file)


def test_the_manifest_names_what_exists():
    BOOK.check_files()
    pages = {path.stem for path in (ROOT / "chapters").glob("[0-9A-Z]*_*.py")}
    assert pages == {chapter.file for chapter in BOOK.chapters}


@chapters
def test_script_and_notebook_are_in_step_and_executed(chapter):
    assert pairs.problems(chapter.source, chapter.notebook) == []


@chapters
def test_equations_claims_and_references(chapter):
    found = equations.problems(equations.read_book(BOOK))
    assert [problem for problem in found if problem.startswith(chapter.file)] == []


def test_equations_of_the_whole_book():
    assert equations.problems(equations.read_book(BOOK)) == []


def test_doc_strings_name_equations_that_exist():
    assert index.problems(equations.read_book(BOOK), index.implementations(BOOK)) == []


def test_every_function_of_the_index_can_be_imported():
    for found in index.implementations(BOOK):
        thing = importlib.import_module(found.module)
        for name in [] if found.name == found.module else found.name.split("."):
            thing = getattr(thing, name)
        assert "Book:" in thing.__doc__


def test_links_lead_somewhere():
    assert links.problems(BOOK) == []


def test_generated_pages_are_in_step():
    assert contents.problems(BOOK) == []


@chapters
def test_at_most_one_code_cell_in_ten_is_not_compared(chapter):
    cells = pairs.code_cells(pairs.read_script(chapter.source))
    ignored = [cell for cell in cells if IGNORE in cell.metadata.get("tags", [])]
    assert 10 * len(ignored) <= len(cells)


@full_chapters()
def test_a_chapter_prints_fifteen_numbers_or_more(chapter):
    cells = pairs.code_cells(pairs.read_notebook(chapter.notebook))
    compared = [cell for cell in cells if IGNORE not in cell.metadata.get("tags", [])]
    facts = FACT.findall("\n".join(map(compared_text, compared)))
    assert len(facts) >= 15


@chapters
def test_a_chapter_checks_the_exercises_that_the_manifest_lists(chapter):
    code = "\n".join(cell.source for cell in pairs.code_cells(pairs.read_script(chapter.source)))
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    checks = [call for call in calls if getattr(call.func, "id", "") == "check"]
    checked = [call.args[0].value for call in sorted(checks, key=lambda call: call.lineno)]
    assert checked == list(chapter.exercises)


def test_the_start_page_and_the_version_are_those_of_the_book():
    assert BOOK.start_page.read_text(encoding="utf-8").startswith(f"# {BOOK.title}\n")
    assert BOOK.version == ddpm_lite.__version__


@chapters
def test_the_title_is_that_of_the_manifest(chapter):
    first = pairs.read_script(chapter.source).cells[0]
    heading = first.source.splitlines()[0].removeprefix("# ")
    assert heading in (chapter.heading, chapter.title)


def test_jupyterlab_writes_the_same_pairs_as_the_press():
    settings = tomllib.loads((ROOT / "chapters" / "jupytext.toml").read_text())
    assert settings == {"formats": f"ipynb,{pairs.FORMAT}", **pairs.FILTERS}


def test_a_readers_copy_holds_every_page_that_the_pages_link_to(tmp_path):
    readers.copy(BOOK, tmp_path / "my-book")
    handed = {path.name for path in (tmp_path / "my-book").iterdir()}
    linked = {
        target.partition("#")[0]
        for page in (BOOK.start_page, BOOK.generated)
        for target, _ in links.links_in(page.read_text(encoding="utf-8"))
        if ":" not in target
    }
    for chapter in BOOK.chapters:
        for text, _ in links.chapter_text(chapter.source):
            linked |= {t.partition("#")[0] for t, _ in links.links_in(text) if ":" not in t}
    assert linked - {""} <= handed


# Nothing stands on the press.


def test_nothing_in_the_library_imports_the_press():
    package = Path(ddpm_lite.__file__).parent
    for path in package.rglob("*.py"):
        if path.parent.name not in ("book", "course") and path.name != "__main__.py":
            text = path.read_text(encoding="utf-8")
            assert "ddpm_lite.book" not in text and "ddpm_lite.course" not in text, path.name


def test_the_library_needs_no_jupyter():
    code = (
        "import sys\n"
        "for name in ('IPython', 'ipykernel', 'jupyter_client', 'jupytext', 'nbclient',\n"
        "             'nbformat', 'nbval', 'jupyterlab', 'pytest'):\n"
        "    sys.modules[name] = None  # importing it raises ImportError\n"
        "import ddpm_lite, ddpm_lite.__main__, ddpm_lite.claims, ddpm_lite.exercises\n"
        "import ddpm_lite.data, ddpm_lite.oracle, ddpm_lite.plotting\n"
        "print(ddpm_lite.__main__.main(['book', 'check']))\n"
    )
    done = tiny_book.python(ROOT, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "2"
    assert re.fullmatch(r"`book` needs \w+, which is not installed: .*\n", done.stderr)

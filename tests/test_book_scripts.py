"""Every chapter as a plain script prints what its notebook stores; slow, so in its own file."""

from pathlib import Path

import pytest

from ddpm_lite.book import manifest, plain

BOOK = manifest.load(Path(__file__).parents[1])


@pytest.mark.parametrize("chapter", BOOK.chapters, ids=lambda chapter: chapter.file)
def test_the_script_prints_what_the_notebook_stores(chapter):
    assert plain.problems(chapter.source, chapter.notebook) == []

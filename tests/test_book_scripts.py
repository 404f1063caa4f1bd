"""`python chapters/….py`, in a process of its own, prints what the notebook stores.

For all chapters this is tested, within one process, where their exercises are
(test_exercises_book.py).
"""

from pathlib import Path

from ddpm_lite.book import manifest, plain

BOOK = manifest.load(Path(__file__).parents[1])


def test_a_script_prints_what_its_notebook_stores():
    shortest = min(BOOK.chapters, key=lambda chapter: chapter.seconds)
    assert plain.problems(shortest.source, shortest.notebook) == []

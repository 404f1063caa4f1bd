"""A book of one short chapter in a temporary folder, for tests that plant a fault in it."""

import os
import subprocess
import sys
from pathlib import Path

import ddpm_lite
from ddpm_lite.book import execute, manifest
from ddpm_lite.book.pairs import HEADER

MANIFEST = """\
[book]
title = "Tiny"
subtitle = "one chapter"
version = "1"
language = "en-GB"

[[part]]
title = "All of it"

[[chapter]]
file = "03_tiny"
number = "3"
title = "The tiny chapter"
part = "All of it"
goals = ["see how it works"]
minutes_reading = 70
seconds = 20

[[paper]]
name = "DDPM"
title = "Denoising Diffusion Probabilistic Models"
arxiv = "2006.11239"
"""

CHAPTER = (
    HEADER
    + r"""
# %% [markdown]
# # The tiny chapter
#
# ## 3.1 A sum
#
# Numbers may be added, and the order does not matter:
#
# $$
# a + b = b + a .
# \tag{3.1}
# $$
#
# By (3.1) we may start with the larger one, see [3.1](#3.1-A-sum).

# %%
from ddpm_lite.claims import claim, fact

# %%
a, b = 0.25, 0.5
claim("3.1", a + b, b - (-a))
fact("the sum", a + b, digits=2)
"""
)

PAGE = "# Tiny\n\n<!-- contents -->\n<!-- /contents -->\n"


def make(root: Path, chapter: str = CHAPTER, manifest_text: str = MANIFEST) -> manifest.Book:
    """Write the tiny book to `root`, not executed."""
    (root / "chapters").mkdir(parents=True)
    (root / "ddpm_lite").mkdir()
    (root / "book.toml").write_text(manifest_text, encoding="utf-8")
    (root / "chapters" / "03_tiny.py").write_text(chapter, encoding="utf-8")
    (root / "chapters" / "START.md").write_text(PAGE, encoding="utf-8")
    (root / "README.md").write_text(PAGE, encoding="utf-8")
    return manifest.load(root)


def pressed(root: Path, chapter: str = CHAPTER) -> manifest.Book:
    """The tiny book, executed."""
    book = make(root, chapter)
    execute.press(book.chapters[0])
    return book


def edit(path: Path, old: str, new: str) -> None:
    """Replace `old`, which must stand there, by `new`."""
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{old!r} is not in {path.name}"
    path.write_text(text.replace(old, new), encoding="utf-8")


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in `folder` with this ddpm_lite; the caller looks at what came of it."""
    library = str(Path(ddpm_lite.__file__).parents[1])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": library},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )

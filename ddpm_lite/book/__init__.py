"""The press: it reads book.toml, executes and checks the chapters, and hands out copies to readers.

Nothing else in ddpm_lite imports this package, and `import ddpm_lite` needs none of the Jupyter
packages that it stands on. The commands are `python -m ddpm_lite book …`.
"""


class BookError(Exception):
    """Something a person can mend, said in a sentence or two and shown without a traceback."""

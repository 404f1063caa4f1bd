"""The commands, as typed: their output, their exit codes, and JupyterLab started and stopped."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import tiny_book
from jupyterlab_server.config import get_page_config

from ddpm_lite.__main__ import main
from ddpm_lite.book import lab


@pytest.fixture
def book(tmp_path, monkeypatch):
    book = tiny_book.make(tmp_path / "book")
    monkeypatch.chdir(book.root / "chapters")
    return book


def run(*words):
    return main(["book", *words])


def test_from_a_script_to_a_readers_copy(book, capsys):
    assert run("check") == 1
    assert "has never been executed" in capsys.readouterr().out
    assert run("press", "03") == 0
    assert capsys.readouterr().out.startswith("✓ 03_tiny: executed in")
    assert run("press") == 0
    assert capsys.readouterr().out == "✓ 03_tiny: code unchanged, nothing run, file unchanged\n"
    assert run("contents") == 0
    assert capsys.readouterr().out == "wrote README.md, START.md, equations.md\n"
    assert run("contents") == 0
    assert capsys.readouterr().out == "all pages are in step\n"
    assert run("check") == 0
    assert "✗" not in capsys.readouterr().out
    assert run("copy", "../my-book") == 0
    assert capsys.readouterr().out == "../my-book: 3 new\n"
    assert (book.root / "my-book" / "03_tiny.ipynb").is_file()


def test_a_chapter_that_fails_gives_three_lines_and_exit_code_1(book, capsys):
    tiny_book.edit(book.chapters[0].source, "a, b = 0.25, 0.5", "a, b = 0.25, 1 / 0")
    assert run("press") == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("✗ 03_tiny: 03_tiny.py:")
    assert lines[1:] == ["    a, b = 0.25, 1 / 0", "ZeroDivisionError: division by zero"]
    assert not book.chapters[0].notebook.exists()


def test_the_listing_names_displays_without_number_and_faults(book, capsys):
    source = book.chapters[0].source
    tiny_book.edit(source, "# By (3.1) we", "# $$ x = 7 $$\n#\n# By (3.9) and (4.1) we")
    assert run("equations", "3") == 0
    out = capsys.readouterr().out
    assert out.startswith(
        "03_tiny: 1 equations, 1 claims, 0 exercises, 1 displays without number\n"
    )
    assert "x = 7" in out
    assert "✗ 03_tiny.py:23: refers to (3.9), which is nowhere in the book" in out
    assert "(4.1)" not in out  # another chapter's: looked up only when the whole book is checked


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("press", "9"), "no chapter '9'? There are: 03_tiny"),
        (("copy", "."), "holds the book itself"),
    ],
)
def test_mistakes_are_one_sentence(book, capsys, words, complaint):
    assert run(*words) == 1
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("words", [("press", "--alll"), ("nothing",), (), ("read", "--port", "9")])
def test_unknown_options_and_commands_are_refused(book, words):
    with pytest.raises(SystemExit) as end:
        run(*words)
    assert end.value.code == 2


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    assert "press, check, copy and open the book" in capsys.readouterr().out


def test_the_settings_are_ones_that_jupyterlab_has():
    """A setting that an update renames would be passed over in silence."""
    schemas = Path(sys.prefix) / "share" / "jupyter" / "lab" / "schemas"
    for plugin, settings in json.loads((lab.SETTINGS / "overrides.json").read_text()).items():
        package, _, name = plugin.partition(":")
        schema = json.loads((schemas / package / f"{name}.json").read_text(encoding="utf-8"))
        for key, value in settings.items():
            known = schema["properties"][key]
            choices = [choice["const"] for choice in known.get("oneOf", [])]
            assert value in choices or not choices


def test_the_gradebooks_menus_stay_out_of_the_readers_lab():
    """It is installed for instructors; a misspelt name here would be passed over in silence."""
    installed = Path(sys.prefix) / "share" / "jupyter" / "labextensions"
    page = get_page_config([str(installed)], str(lab.SETTINGS))
    assert "@jupyter/nbgrader" in page["disabledExtensions"]
    assert (installed / "@jupyter" / "nbgrader" / "package.json").is_file()


# `python -m ddpm_lite` as in a terminal: a shell without one starts what it puts in the background
# deaf to Ctrl-C, and these tests may run in such a place.
HEARING = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("ddpm_lite", run_name="__main__", alter_sys=True)
"""


def test_reading_opens_jupyterlab_and_ctrl_c_closes_it(book, tmp_path):
    """A real server on the reader's copy, with the book's settings; the reader's home is let be."""
    run("press")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path / "home"
    home.mkdir()
    words = ["read", "--no-browser", f"--port={port}", "--IdentityProvider.token=t"]
    server = subprocess.Popen(
        [sys.executable, "-c", HEARING, "book", *words],
        env={**os.environ, "HOME": str(home), "PYTHONPATH": str(Path(lab.__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        settings = ask(f"{url}/lab/api/settings/@jupyterlab/notebook-extension:tracker?token=t")
        assert settings["schema"]["properties"]["windowingMode"]["default"] == "defer"
        news = ask(f"{url}/lab/api/settings/@jupyterlab/apputils-extension:notification?token=t")
        assert news["schema"]["properties"]["fetchNews"]["default"] == "false"
        names = {entry["name"] for entry in ask(f"{url}/api/contents/?token=t")["content"]}
        assert names == {"03_tiny.ipynb", "START.md"}
    finally:
        os.killpg(server.pid, signal.SIGINT)  # as a terminal does: to the whole group
        out, _ = server.communicate(timeout=60)
    assert server.returncode == 0, out
    assert "Traceback" not in out
    assert "nbgrader" not in out.lower()  # it has nothing to say to a reader
    assert (book.root / "my-book" / "03_tiny.ipynb").is_file()
    assert not list(home.rglob("*.jupyterlab-settings"))
    assert not (home / ".jupyter" / "lab" / "user-settings").exists()


def test_a_server_that_will_not_close_is_made_to(monkeypatch):
    monkeypatch.setattr(lab, "GRACE", 0.5)
    deaf = ["import signal, time", "signal.signal(signal.SIGTERM, signal.SIG_IGN)", "print()"]
    code = "; ".join([*deaf, "time.sleep(99)"])
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    with server:
        server.stdout.readline()  # it hears nothing from here on
        lab._end(server)
    assert server.returncode == -signal.SIGKILL


def ask(url):
    """The JSON behind `url`, as soon as the server answers."""
    for _ in range(300):
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                return json.load(answer)
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise TimeoutError(f"no answer from {url}")

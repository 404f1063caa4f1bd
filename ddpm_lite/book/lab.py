"""`book read`: JupyterLab on the reader's copy, with the settings that the book ships.

Nothing is written to the reader's own Jupyter settings, and what they set there still holds: the
book's settings are defaults in a folder of their own, and the window's layout is kept in the copy.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import nbformat
from nbformat.sign import NotebookNotary

from ddpm_lite.book import BookError
from ddpm_lite.book.execute import library_path

SETTINGS = Path(__file__).with_name("lab")
GRACE = 8  # seconds that the server and its kernels have to end by themselves
VARIABLES = {
    "PYTHONPATH": library_path(),  # a kernel finds ddpm_lite, installed or not
    "JUPYTER_PREFER_ENV_PATH": "1",  # "Python 3" is this environment's, whatever the user's is
}


def command(folder: Path, extra: list[str]) -> list[str]:
    """The command line that opens JupyterLab in `folder`, on its start page."""
    traits = {
        "ServerApp.root_dir": folder,
        "LabApp.default_url": "/lab/tree/START.md",
        "LabApp.app_settings_dir": SETTINGS,
        "LabApp.workspaces_dir": folder / ".lab" / "workspaces",  # not the layout of other work
        "LabApp.news_url": None,  # no questions, no requests
        "LabApp.check_for_updates_class": "jupyterlab.handlers.announcements.NeverCheckForUpdate",
        "ServerApp.answer_yes": True,  # Ctrl-C quits at once
        "ServerApp.log_level": "WARN",  # the address is still shown
    }
    # nbgrader is installed for instructors; with no course here its parts would only complain
    gradebook = ("formgrader", "validate_assignment", "assignment_list", "course_list")
    off = [f"nbgrader.server_extensions.{part}=False" for part in gradebook]
    root = hasattr(os, "geteuid") and os.geteuid() == 0  # as in most containers
    return [
        sys.executable,
        "-m",
        "jupyterlab",
        *(f"--{name}={value}" for name, value in traits.items()),
        *(f"--ServerApp.jpserver_extensions={part}" for part in off),
        *(["--allow-root"] if root else []),
        *extra,
    ]


def trust(paths: Iterable[Path]) -> None:
    """Sign notebooks that were handed out just now, so that their stored HTML is shown as made."""
    notary = NotebookNotary()
    for path in paths:
        if path.suffix == ".ipynb":
            notary.sign(nbformat.read(path, as_version=4))


def serve(folder: Path, extra: list[str]) -> int:
    """Run JupyterLab until it is interrupted."""
    print(
        "JupyterLab opens in your browser. Save there what you want to keep; Ctrl-C here ends it.",
        flush=True,
    )
    try:
        server = subprocess.Popen(command(folder, extra), env=os.environ | VARIABLES)
    except OSError as error:
        raise BookError(f"JupyterLab did not start: {error}") from None
    try:
        return server.wait()
    except KeyboardInterrupt:  # the server had it too, if it came from the keyboard
        _end(server)
        return 0


def _end(server: subprocess.Popen[bytes]) -> None:
    """Let the server close; if it does not, insist; if it still does not, force it.

    Its kernels end first. What can then hang is the interpreter itself: it waits for a worker
    thread that served a page a moment ago and was not told to stop.
    """
    for insist in (lambda: None, server.terminate, server.kill):
        insist()
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            server.wait(timeout=GRACE)
            return

"""Where a student's code runs: a process of its own, under limits, cut off where possible.

Always: limits of processor time, memory, open files and file size, and a time by the clock. On
Linux the process locks itself: no new process, no socket, no signal to others, no change of files
(``confine``), and nothing to read but Python and the students' library (``landlock``). Where
bubblewrap is installed, the rest of the machine is not even there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import ddpm_lite
from ddpm_lite.book import BookError
from ddpm_lite.course import confine, landlock
from ddpm_lite.course.wire import Wire

LIBRARY = Path(ddpm_lite.__file__).parent
NOT_FOR_STUDENTS = ("book", "course", "exercises", "__pycache__")
FOR_THE_RUNNER = (
    "course/__init__.py",
    "course/confine.py",
    "course/landlock.py",
    "course/student.py",
    "course/wire.py",
    "exercises/exercise.py",
    "exercises/observe.py",
)
# What a student's cell may call, and what it does where it is marked: nothing.
EXERCISES = '''\
"""Checks are for working at home; where answers are marked they do nothing."""


def _nothing(*arguments, **options):
    return None


check = hint = solution = progress = obey = register = find = _nothing
'''


@dataclass(frozen=True)
class Limits:
    """What one process may use."""

    task_seconds: float = 10.0  # by the clock, for one exercise
    start_seconds: float = 60.0  # by the clock, to import PyTorch on a busy machine
    cpu_seconds: int = 120  # of the processor, for all exercises together
    memory: int = 3 << 30  # bytes of address space; PyTorch alone takes 0.7 GB
    file_size: int = 16 << 20  # bytes
    open_files: int = 64


@dataclass
class Box:
    """A running process and the wire to it."""

    process: subprocess.Popen[bytes]
    wire: Wire

    def kill(self) -> None:
        """End the process and all that it may have started, and free the pipes."""
        with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.wire.read)
        os.close(self.wire.write)


@dataclass(frozen=True)
class Sandbox:
    """How processes for students' code are started on this machine."""

    bwrap: str | None
    limits: Limits = Limits()

    @classmethod
    def find(cls, require: bool = False, limits: Limits = Limits()) -> Sandbox:
        """Bubblewrap if it is there and works; BookError if it is required and does not."""
        path = shutil.which("bwrap")
        box = cls(path, limits)
        if path and box._works():
            return box
        if require:
            found = "does not work here" if path else "is not installed"
            raise BookError(f"--require-sandbox: bubblewrap (bwrap) {found}")
        return cls(None, limits)

    @property
    def protection(self) -> str:
        """In words, what protects this machine from a student's code."""
        said = ["limits of time, memory and files"]
        if self.bwrap:
            said.insert(0, "bubblewrap (the code sees nothing of this machine but Python)")
        if confine.possible():
            said.append("seccomp (no new process, no network, no signals, no change of files)")
        if landlock.possible():
            said.append("Landlock (only Python and the library can be read)")
        if not (self.bwrap or landlock.possible()):
            said.append("NO protection of the files that you can read, solutions among them")
        return "; ".join(said)

    def _works(self) -> bool:
        with runtime() as library:
            command = [*self._command(library), sys.executable, "-I", "-c", "print(1)"]
            done = subprocess.run(command, capture_output=True, env={}, check=False)
        return done.returncode == 0 and done.stdout.strip() == b"1"

    def start(self, library: Path, scratch: Path) -> Box:
        """Start the program that executes cells, in an empty folder; it says when it is ready."""
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        program = library / "ddpm_lite" / "course" / "student.py"
        pipes = (str(theirs_in), str(theirs_out))
        limits = json.dumps(asdict(self.limits))
        words = [sys.executable, "-I", "-B", str(program), *pipes, str(LIBRARY), limits]
        try:
            process = subprocess.Popen(
                [*self._command(library), *words],
                cwd=scratch,
                env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(scratch)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs_in, theirs_out),
                start_new_session=True,
            )
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        return Box(process, Wire(ours_in, ours_out))

    def _command(self, library: Path) -> list[str]:
        """What stands before Python on the command line."""
        if not self.bwrap:
            return []
        words = [self.bwrap, "--unshare-all", "--die-with-parent", "--new-session"]
        for place in ("/bin", "/sbin", "/lib", "/lib32", "/lib64"):
            if os.path.islink(place):
                words += ["--symlink", os.readlink(place), place]
            elif os.path.isdir(place):
                words += ["--ro-bind", place, place]
        words += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
        for place in dict.fromkeys(("/usr", sys.base_prefix, sys.prefix, str(library))):
            words += ["--ro-bind", place, place]
        if any(LIBRARY.is_relative_to(place) for place in (sys.base_prefix, sys.prefix)):
            words += ["--tmpfs", str(LIBRARY)]  # installed there, with its solutions
        scratch = ["--size", str(self.limits.file_size), "--tmpfs", "/scratch"]
        return [*words, "--proc", "/proc", "--dev", "/dev", *scratch, "--chdir", "/scratch"]


@contextmanager
def runtime() -> Iterator[Path]:
    """A folder with the library as students' code may see it: without exercises and marking."""
    with tempfile.TemporaryDirectory(prefix="ddpm-lite-marking-") as place:
        target = Path(place) / "ddpm_lite"
        # The weights are for the chapters; an answer has no use for them.
        ignored = shutil.ignore_patterns("weights", *NOT_FOR_STUDENTS)
        shutil.copytree(LIBRARY, target, ignore=ignored)
        for name in FOR_THE_RUNNER:
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(LIBRARY / name, target / name)
        (target / "exercises" / "__init__.py").write_text(EXERCISES, encoding="utf-8")
        yield Path(place)

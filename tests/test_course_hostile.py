"""Submissions that attack whoever marks them: each ends in a mark that it has earned, or in none.

Everything runs in both kinds of sandbox; where bubblewrap is missing, that half is skipped.
"""

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from course_tools import MARKED, assignment, right

from ddpm_lite.course import confine, landlock
from ddpm_lite.course.marking import Marker
from ddpm_lite.course.sandbox import Limits, Sandbox
from ddpm_lite.course.wire import Garbled, Late, Wire

ROOT = Path(__file__).resolve().parent.parent
LIMITS = Limits(task_seconds=2.0)
FALSE = "def compose(alphas): return 1, 2"  # what an attack must not make pass

ATTACKS = {
    "a fork bomb": "import os\nwhile True:\n    os.fork()",
    "a daemon": "import os\nif os.fork() == 0:\n    os.setsid()\n    while True: pass",
    "a program": "import subprocess\nsubprocess.run(['true'])",
    "memory": "hoard = []\nwhile True:\n    hoard.append(bytearray(10**8))",
    "the end": "import os\nos._exit(0)",
    "an exception of its own kind": "class End(BaseException): pass\nraise End",
    "kills its parent": "import os\nos.kill(os.getppid(), 9)",
    "kills everybody": "import os\nos.kill(-1, 9)",
    "lifts its limits": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "the solutions": "from ddpm_lite.exercises import ch03\ncompose = ch03.compose",
    "the library's own folder": f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
for name in [name for name in sys.modules if name.startswith("ddpm_lite")]:
    del sys.modules[name]
from ddpm_lite.exercises import ch03
compose = ch03.compose""",
    "deletes Python": "import os, sys\nos.unlink(sys.executable)",
    "patched comparisons": f"""
import numpy, torch
numpy.allclose = torch.allclose = numpy.testing.assert_allclose = lambda *a, **k: True
import ddpm_lite.exercises.observe, ddpm_lite.course.wire
ddpm_lite.exercises.check = lambda *a: "right"
{FALSE}""",
    "forged replies": f"""
import json, os, struct
reply = json.dumps({{"message": {{"object": {{"values": [{{"array": 0}}]}}}},
                    "arrays": [["<f8", []]]}}).encode()
for pipe in range(3, 20):
    try: os.write(pipe, (struct.pack(">I", len(reply)) + reply + bytes(8)) * 50)
    except OSError: pass
{FALSE}""",
    "a length of four gigabytes": f"""
import os
for pipe in range(3, 20):
    try: os.write(pipe, b"\\xff" * 4)
    except OSError: pass
{FALSE}""",
    "a message of another form": f"""
import json, os, struct
header = json.dumps({{"message": {{"object": []}}, "arrays": []}}).encode()
for pipe in range(3, 20):
    try: os.write(pipe, struct.pack(">I", len(header)) + header)
    except OSError: pass
{FALSE}""",
    "closed pipes": f"import os\nos.closerange(3, 40)\n{FALSE}",
    "a liar": """
class Liar:
    def __eq__(self, other): return True
    def __array__(self, *a, **k): return NotImplemented
    def __float__(self): return 0.5
def compose(alphas): return Liar(), Liar()""",
    "a bomb in what it returns": """
class Bomb:
    def __array__(self, *a, **k): raise SystemExit
def compose(alphas): return Bomb(), 1""",
    "a generator": "compose = lambda alphas: (one for one in (1, 2))",
    "a tensor of its own kind": """
class Own(torch.Tensor):
    @classmethod
    def __torch_function__(cls, *arguments): raise SystemExit
def compose(alphas): return alphas.as_subclass(Own), 1""",
    "an alarm": f"import signal, time\nsignal.setitimer(0, 0.1)\ntime.sleep(1)\n{FALSE}",
    "a signal to itself": "import signal\nsignal.raise_signal(signal.SIGKILL)",
    "exit handlers": f"import atexit\natexit.register(lambda: 1 / 0)\n{FALSE}",
    "shadows": f"import sys, types\nsys.modules['torch'] = types.ModuleType('torch')\n{FALSE}",
}
REFUSED = (  # by the kernel, with an exception: they can share one process
    "a fork bomb",
    "a daemon",
    "a program",
    "kills its parent",
    "kills everybody",
    "lifts its limits",
    "deletes Python",
)
# What meets bubblewrap first, or leaves something behind; the rest is the same without it.
ALONE = ("memory", "the end", "the solutions", "the library's own folder", "for ever", "threads")
SLOW = {  # each of them costs the time of its task
    "for ever": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "prints for ever": "while True:\n    print('x' * 10**6)",
    "threads": "import threading\ndef spin():\n    while True: pass\nfor _ in range(8): "
    "threading.Thread(target=spin).start()\nspin()",
}


@pytest.fixture(scope="module", params=["bubblewrap", "limits alone"])
def box(request):
    found = Sandbox.find(limits=LIMITS)
    if request.param == "limits alone":
        if not (confine.possible() and landlock.possible()):
            pytest.skip("without bubblewrap, these attacks are met by locks of Linux 5.13")
        return Sandbox(None, LIMITS)
    if found.bwrap is None:
        pytest.skip("bubblewrap is not installed, or does not work here")
    return found


def processes(library):
    """Those that still run with this copy of the library, as children of whomsoever."""
    return [
        path
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if str(library).encode() in _read(path)
    ]


def _read(path):
    try:
        return path.read_bytes()
    except OSError:  # it has just ended
        return b""


def test_no_attack_earns_a_point_or_costs_another_exercise_one(box, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    port = socket.create_server(("127.0.0.1", 0))
    own = {
        "writes": f"open({str(tmp_path / 'evil')!r}, 'w').write('x')",
        "overwrites": f"open({str(precious)!r}, 'w')",
        "deletes": f"import os\nos.unlink({str(precious)!r})",
        "calls home": "import socket\n"
        f"socket.create_connection(('127.0.0.1', {port.getsockname()[1]}), 2)",
    }
    refused = {name: ATTACKS[name] for name in REFUSED} | own
    crowd = [exercise.id for exercise in MARKED if exercise.chapter != "3"][: len(refused)]
    with port, Marker(assignment(*crowd, "3.4", points=2), box) as marker:
        *attacks, last = marker.mark(right("3.4") | dict(zip(crowd, refused.values(), strict=True)))
        for name, mark in zip(refused, attacks, strict=True):
            assert mark.points == 0 and "Error, in line" in mark.lines[0], (name, mark)
        assert last.points == 2
    with Marker(assignment("3.2", "3.4", points=2), box) as marker:
        for name, text in {**ATTACKS, **SLOW}.items():
            if name in REFUSED or (box.bwrap is None and name not in ALONE):
                continue
            first, second = marker.mark(right("3.4") | {"3.2": text})
            assert first.points == 0 and first.status in ("trouble", "wrong"), (name, first)
            if name not in ("shadows", "forged replies"):  # these spoil what is their own
                assert second.points == 2, (name, second)
    assert precious.read_text() == "mine"
    assert not (tmp_path / "evil").exists()
    assert not processes(marker.library)


def test_nothing_of_this_machine_can_be_read(box, tmp_path):
    (tmp_path / "file").write_text("x")
    with Marker(assignment("3.1"), box) as marker:
        for path in (
            ROOT / "book.toml",
            ROOT / "ddpm_lite" / "exercises" / "ch03.py",
            tmp_path / "file",
            "/etc/passwd",
            f"/proc/{os.getpid()}/environ",
        ):
            (mark,) = marker.mark({"3.1": f"open({str(path)!r}).read()\nanswer_3_1 = 0.6"})
            assert mark.status == "trouble", (path, mark)
            assert "Error, in line 1" in mark.lines[0]


def test_a_library_that_is_installed_beside_pytorch_is_hidden_too(tmp_path):
    """In a fresh Python, since what a process has locked stays locked."""
    if not landlock.possible():
        pytest.skip("needs Landlock")
    for name in ("packages/torch/x.py", "packages/ddpm_lite/ch03.py", "elsewhere/x.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("x = 1")
    program = f"""
import sys
from pathlib import Path
from ddpm_lite.course.landlock import allow_only
place = Path({str(tmp_path)!r})
allow_only([place / "packages"], place / "packages" / "ddpm_lite")
for path in sorted(place.joinpath("packages").iterdir()):
    print(path.name)
for name in ("packages/torch/x.py", "packages/ddpm_lite/ch03.py", "elsewhere/x.py"):
    try: print(open(place / name).read())
    except PermissionError: print("refused")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    expected = ["ddpm_lite", "torch", "x = 1", "refused", "refused"]
    assert done.stdout.splitlines() == expected, done.stderr


@pytest.mark.skipif(not confine.possible(), reason="the lock is for Linux on x86-64 and AArch64")
def test_the_lock_holds_and_lets_threads_and_reading_through(tmp_path):
    program = """
import os, subprocess, sys, threading
from ddpm_lite.course import confine, landlock
confine.lock()
print(open(sys.argv[1]).read())
worker = threading.Thread(target=lambda: print("thread"))
worker.start(); worker.join()
for what in (os.fork, lambda: subprocess.run(["true"]), lambda: os.kill(os.getppid(), 0),
             lambda: open(sys.argv[1], "a"), lambda: os.rename(sys.argv[1], "x")):
    try: what()
    except PermissionError: print("refused")
"""
    file = tmp_path / "file"
    file.write_text("content")
    done = subprocess.run(
        [sys.executable, "-c", program, str(file)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.split() == ["content", "thread", *["refused"] * 5], done.stderr


def test_scratch_and_runtime_folders_are_gone_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Marker(assignment("3.2"), Sandbox.find(limits=LIMITS)) as marker:
        marker.mark({"3.2": "open('here', 'w').write('x' * 1000)"})
        assert len(list(tmp_path.iterdir())) == 1  # the library for students
    assert not list(tmp_path.iterdir())
    shutil.rmtree(tmp_path)


HUGE = 1 << 26
NO_MESSAGES = {
    "a list": [],
    "an object that is a list": {"message": {"object": []}, "arrays": []},
    "an object that is nothing": {"message": {"object": None}, "arrays": []},
    "an array without a number": {"message": {"array": {}}, "arrays": []},
    "an array that does not come": {"message": {"object": {"x": {"array": 3}}}, "arrays": []},
    "a number of arrays": {"message": {"object": {}}, "arrays": 5},
    "a negative size": {"message": {"object": {}}, "arrays": [["<f8", [-1]]]},
    "objects": {"message": {"object": {}}, "arrays": [["|O", [1]]]},
    "too many dimensions": {"message": {"object": {}}, "arrays": [["<f8", [0] * 17]]},
    "more than there is memory": {"message": {"object": {}}, "arrays": [["<f8", [HUGE] * 16]]},
    "not an object": {"message": 3, "arrays": []},
}
NO_HEADERS = {
    "no text": b"\xff\xfe",
    "deep": b"[" * 20_000,
    "a number of 9000 digits": b"1" * 9000,
}
GARBLED = {name: json.dumps(header).encode() for name, header in NO_MESSAGES.items()} | NO_HEADERS


def pipe_with(*headers):
    """A wire into which somebody wrote these headers, each with its length."""
    read, write = os.pipe()
    for header in headers:
        os.write(write, struct.pack(">I", len(header)) + header)
    os.close(write)
    return Wire(read, -1)


@pytest.mark.parametrize("name", GARBLED)
def test_what_is_no_message_is_garbled_and_nothing_else(name):
    wire = pipe_with(GARBLED[name])
    with pytest.raises(Garbled):
        wire.receive(time.monotonic() + 5)
    os.close(wire.read)


def test_a_flood_of_messages_does_not_outrun_the_clock():
    header = json.dumps({"message": {"object": {"call back": 0}}, "arrays": []}).encode()
    wire = pipe_with(*[header] * 3)
    assert wire.receive(time.monotonic() + 5) == {"call back": 0}
    with pytest.raises(Late):
        wire.receive(time.monotonic() - 1)
    os.close(wire.read)

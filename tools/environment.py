"""Build the virtual environment .venv, or find that it is up to date.

    python3 tools/environment.py

`make` calls this before everything else. When nothing has changed it takes a few hundredths of a
second. It needs no package, and it is written so that every Python since 2.7 can run it: whoever
has an old `python3` should read one sentence about it, not a syntax error.

  PYTHON=python3.12   build with that Python, and with no other
  TORCH=cpu | cuda    that build of PyTorch; by default `cuda` where `nvidia-smi` finds a GPU

How an interruption is survived: .venv/building is there from before the first package arrives until
after the last one is checked. Whoever finds it knows that somebody was stopped half-way, and starts
from nothing, since an installer that was killed may leave half a package that looks like a whole
one. At the end .venv/ready says what was built and from what; if that no longer matches, the
environment is brought up to date in place.
"""

import errno
import hashlib
import io
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
READY = os.path.join(VENV, "ready")
BUILDING = os.path.join(VENV, "building")
LOG = os.path.join(VENV, "install.log")
VENV_PYTHON = os.path.join(VENV, "bin", "python")

OLDEST, NEWEST = (3, 11), (3, 13)
NAMES = ["python3", "python3.11", "python3.12", "python3.13"]
EXTRAS = "book,dev,oracle,grading"
PACKAGES_OF_INTEREST = "numpy, scipy, sklearn, matplotlib, jupyterlab, ipykernel, nbval, ddpm_lite"

# PyPI's PyTorch for Linux is the CUDA build: several gigabytes that do nothing without an NVIDIA
# GPU. PyTorch's own index has the CPU build, under the version "2.13.0+cpu".
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"

#                  to download, on disk, free space asked for (all in GB)
SIZES = {"cpu": (0.4, 2, 3), "cuda": (2, 6, 10)}

# Said by pip when it cannot reach a package index (its own words, and those of the system).
NO_NETWORK = re.compile(
    r"Failed to establish a new connection|NewConnectionError|Name or service not known"
    r"|Temporary failure in name resolution|nodename nor servname|Network is unreachable"
    r"|Connection refused|Connection to \S+ timed out|ConnectTimeoutError|Read timed out"
    r"|Cannot connect to proxy|ProxyError|Connection aborted|SSLError"
)

# Said by pip when the index has no such version; the second form, where a constraint asks for it.
MISSING = re.compile(
    r"No matching distribution found for (\S+)|The user requested \(constraint\) (\S+)"
)

PROBE = """
import sys
print("%d.%d.%d" % sys.version_info[:3])
sys.stdout.flush()
import ensurepip, venv
"""


held = None  # the open file whose lock is the right to build


class Problem(Exception):
    """Something that the person at the keyboard can put right, in one sentence."""


def say(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def read(path):
    """The text of a file; empty if there is no such file."""
    try:
        with io.open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except (IOError, OSError):
        return ""


# ------------------------------------------------------------------ what there is, what is wanted


def recipe():
    """A hash of everything that an environment is built from."""
    digest = hashlib.sha256()
    for name in ("constraints.txt", "pyproject.toml", os.path.join("tools", "environment.py")):
        digest.update(read(os.path.join(ROOT, name)).encode("utf-8"))
    return digest.hexdigest()


def built():
    """What .venv/ready says, as a dictionary; None if no environment was ever finished."""
    if os.path.exists(BUILDING) or not os.path.exists(VENV_PYTHON):
        return None
    try:
        return json.loads(read(READY))
    except ValueError:
        return None


def suits(state, python, torch):
    """Whether what was built here is of the kind wished for; `python`, `torch` may be None."""
    if state is None or state["root"] != ROOT:  # a folder that was moved: its scripts are broken
        return False
    if torch is not None and state["torch"] != torch:
        return False
    return python is None or state["python"] == probe(python)[0]


def is_current(python, torch):
    """Whether .venv is what would be built now."""
    state = built()
    return suits(state, python, torch) and state["recipe"] == recipe()


def probe(python):
    """(version or None if it does not run, whether it can make virtual environments)."""
    try:
        process = subprocess.Popen(
            [python, "-c", PROBE], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except OSError:
        return None, False
    lines = process.communicate()[0].decode("ascii", "replace").split()
    return (lines[0] if lines else None), process.returncode == 0


def fault(python, version, can_make_venvs):
    """What is wrong with a Python, in one sentence; None if it will do."""
    if version is None:
        return "{0} does not run: install Python 3.11, 3.12 or 3.13.".format(python)
    needed = "the book needs Python 3.11, 3.12 or 3.13 (to name one: make PYTHON=python3.12 ...)."
    number = tuple(int(part) for part in version.split(".")[:2])
    if number < OLDEST:
        return "Python {0} is too old: {1}".format(version, needed)
    if number > NEWEST:
        return "Python {0} is too new for the pinned packages: {1}".format(version, needed)
    if not can_make_venvs:
        return (
            "Python {0} has no venv or ensurepip module: install it (Debian and Ubuntu: "
            "sudo apt install python{1}.{2}-venv).".format(version, *number)
        )
    return None


def find_python(wish):
    """(path, version) of the Python to build with: the one wished for, or the first that fits."""
    names = [wish] if wish else [sys.executable] + NAMES
    faults = []
    for name in names:
        version, can_make_venvs = probe(name)
        wrong = fault(name, version, can_make_venvs)
        if wrong is None:
            return name, version
        if version is not None or name == wish:
            faults.append(wrong)
    raise Problem(faults[0])


def wanted_torch(wish):
    """Which build of PyTorch: "cpu" or "cuda"."""
    if wish:
        if wish not in SIZES:
            raise Problem("TORCH={0} is not known: it can be cpu or cuda.".format(wish))
        return wish
    try:
        process = subprocess.Popen(
            ["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        output = process.communicate()[0]
    except OSError:
        return "cpu"
    return "cuda" if process.returncode == 0 and b"GPU " in output else "cpu"


def check_disk(torch):
    status = os.statvfs(ROOT)
    free = status.f_bavail * status.f_frsize / 1e9
    needed = SIZES[torch][2]
    if free < needed:
        raise Problem(
            "not enough disk: {0} has {1:.1f} GB free, and building the environment takes "
            "{2} GB.".format(ROOT, free, needed)
        )


# -------------------------------------------------------------------------------- running a step


def last_line(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def run(command):
    """Run a command with its output in the log, showing that it is alive; True if it succeeded.

    On a terminal one line is rewritten; elsewhere a line appears every 20 seconds.
    """
    terminal = sys.stdout.isatty()
    start = shown = time.time()
    with open(LOG, "ab") as log:
        log.write(("\n$ " + " ".join(command) + "\n").encode("utf-8"))
        log.flush()
        # The lock as standard input: if this process is killed outright, its pip lives on and
        # still has it, and the next attempt waits instead of building beside it.
        process = subprocess.Popen(command, stdin=held, stdout=log, stderr=log, cwd=ROOT)
        try:
            while process.poll() is None:
                time.sleep(0.1)
                if time.time() - shown > (0.5 if terminal else 20):
                    shown = time.time()
                    line = "      {0:3.0f} s  {1}".format(shown - start, last_line(read(LOG)))[:78]
                    sys.stdout.write("\r" + line.ljust(78) if terminal else line + "\n")
                    sys.stdout.flush()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
            if terminal:
                sys.stdout.write("\r" + " " * 78 + "\r")
                sys.stdout.flush()
    return process.returncode == 0


def explain(text):
    """What the output of a failed installation means, in a clause."""
    if "No space left on device" in text or "Errno 28" in text:
        return "the disk filled up; free some space and run the same command again"
    if "Disk quota exceeded" in text:
        return "your disk quota is used up; free some space and run the same command again"
    if NO_NETWORK.search(text):
        return "no network: pip could not reach the package index"
    missing = MISSING.search(text)
    if missing:
        package = missing.group(1) or missing.group(2)
        return "the package index has no {0} for this machine".format(package)
    return "installing failed with: " + last_line(text)


def failed(clause):
    return Problem("{0}.\nWhat pip said is in .venv/install.log.".format(clause))


def pip(arguments):
    """Call pip in the environment; (whether it succeeded, what it said)."""
    before = len(read(LOG))
    command = [VENV_PYTHON, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    succeeded = run(command + arguments)
    return succeeded, read(LOG)[before:]


def install(arguments):
    succeeded, output = pip(["install", "--progress-bar", "off"] + arguments)
    if not succeeded:
        raise failed(explain(output))


# ------------------------------------------------------------------------------------- the steps


def create(python):
    """An empty virtual environment, with nothing left of an earlier attempt."""
    if os.path.lexists(VENV):
        shutil.rmtree(VENV)
    os.makedirs(VENV)
    write(BUILDING, "not finished: see tools/environment.py\n")
    if not run([python, "-m", "venv", VENV]):
        raise failed(explain(read(LOG)))


def write(path, text):
    """Write a small file so that it is there whole or not at all."""
    with open(path + ".new", "wb") as file:
        file.write(text.encode("utf-8"))
    os.rename(path + ".new", path)


def install_torch(torch):
    """PyTorch alone and first, so that nothing that needs it can bring in another build."""
    pin = re.search(r"(?m)^torch==(\S+)", read(os.path.join(ROOT, "constraints.txt"))).group(1)
    if torch == "cuda" or platform.system() != "Linux":
        # PyPI's build: with CUDA on Linux; elsewhere there is only one.
        return install(["-c", "constraints.txt", "torch==" + pin])
    # "+cpu" can never be met by PyPI's CUDA build. Who has a mirror or a folder of wheels set up
    # may have the CPU build there, so pip is asked as it is configured before PyTorch's index.
    wish = ["install", "--progress-bar", "off", "--no-deps", "torch==" + pin + "+cpu"]
    succeeded, output = pip(wish)
    if succeeded:
        return None
    if NO_NETWORK.search(output) or not MISSING.search(output):
        raise failed(explain(output))
    succeeded, output = pip(wish + ["--index-url", TORCH_CPU_INDEX])
    if not succeeded:
        raise failed(
            "the CPU build of PyTorch {0} could not be had from {1}: {2} (TORCH=cuda takes PyPI's "
            "build, which runs without a GPU too, but is much larger)".format(
                pin, TORCH_CPU_INDEX, explain(output)
            )
        )
    return None


def check():
    """Import what matters, once; the version of PyTorch and of the CUDA in it ("None" without)."""
    code = "import torch; print(torch.__version__, torch.version.cuda); import "
    process = subprocess.Popen(
        [VENV_PYTHON, "-c", code + PACKAGES_OF_INTEREST],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
    )
    output = process.communicate()[0].decode("utf-8", "replace")
    if process.returncode != 0:
        with io.open(LOG, "a", encoding="utf-8") as log:
            log.write(output)
        raise failed("it was built, but does not work: " + last_line(output))
    return output.split()[:2]


def build(python, version, torch, fresh):
    download, disk, _ = SIZES[torch]
    if fresh:
        check_disk(torch)
        say(
            "Building the environment in .venv, once: about {0} GB to download, {1} GB on disk,"
            " a few minutes.".format(download, disk)
        )
        say("It can be interrupted and run again. What pip says goes to .venv/install.log.")
        say("[1/4] a virtual environment with Python {0}".format(version))
        create(python)
    else:
        say("Bringing the environment in .venv up to date.")
        write(BUILDING, "not finished: see tools/environment.py\n")
        say("[1/4] the virtual environment is there")
    constraints = ["-c", "constraints.txt"]
    install(constraints + ["pip", "setuptools"])
    say("[2/4] PyTorch, the {0} build".format({"cpu": "CPU", "cuda": "CUDA"}[torch]))
    install_torch(torch)
    say("[3/4] JupyterLab, NumPy, SciPy, Matplotlib and what they need (some 120 packages)")
    # Without isolation the package is built by the pinned setuptools that is there already.
    install(constraints + ["--no-build-isolation", "-e", ".[" + EXTRAS + "]"])
    say("[4/4] checking that it imports")
    torch_version, cuda = check()
    state = {"recipe": recipe(), "root": ROOT, "python": version, "torch": torch}
    write(READY, json.dumps(state, indent=1, sort_keys=True) + "\n")
    os.remove(BUILDING)
    if cuda != "None":
        say("Ready: Python {0}, PyTorch {1} with CUDA {2}.".format(version, torch_version, cuda))
    else:
        say("Ready: Python {0}, PyTorch {1}, without CUDA.".format(version, torch_version))
        if torch == "cuda":
            say("(The CUDA build was asked for; this one runs on the CPU.)")


def lock():
    """Take the right to build, waiting for whoever has it. It ends with this process *and* its pip.

    The lock is on this very file, since .venv comes and goes.
    """
    global held
    held = open(os.path.abspath(__file__))  # noqa: SIM115 - held until the end of the process
    if fcntl is not None:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (IOError, OSError):
            say("Another process is building the environment: waiting for it.")
            fcntl.flock(held, fcntl.LOCK_EX)


def somebody_elses():
    """Whether there is a .venv that this program did not begin."""
    mine = os.path.exists(BUILDING) or os.path.exists(READY)
    return os.path.exists(VENV_PYTHON) and not mine


def adopt(wished_python):
    """The version of somebody else's environment, if the book can be installed into it."""
    version, complete = probe(VENV_PYTHON)
    if wished_python and probe(wished_python)[0] != version:
        complete = False
    with_pip = subprocess.call([VENV_PYTHON, "-c", "import pip"], stderr=subprocess.PIPE) == 0
    if fault(VENV_PYTHON, version, complete and with_pip):
        raise Problem(".venv was not made by make and will not do: remove or rename that folder.")
    return version


def main():
    python = os.environ.get("PYTHON") or None
    torch = os.environ.get("TORCH") or None
    if is_current(python, torch):
        return
    lock()
    state = built()
    if is_current(python, torch):  # built by the one waited for
        return
    if suits(state, python, torch):
        build(VENV_PYTHON, state["python"], state["torch"], fresh=False)
    elif somebody_elses():
        build(VENV_PYTHON, adopt(python), wanted_torch(torch), fresh=False)
    else:
        path, version = find_python(python)
        build(path, version, wanted_torch(torch), fresh=True)


def stopped(number, frame):
    raise KeyboardInterrupt


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stopped)  # as on Ctrl-C: take pip along
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nInterrupted: run the same command again, and it starts afresh.")
    except Problem as problem:
        sys.exit("The environment cannot be built: {0}".format(problem))
    except (IOError, OSError) as error:
        known = explain("No space left on device") if error.errno == errno.ENOSPC else error
        sys.exit("The environment cannot be built: {0}".format(known))

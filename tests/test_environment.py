"""tools/environment.py: what it builds, what it says when it cannot, how it survives interruption.

A shell script stands in for Python, so nothing is installed and every failure can be had at will.
"""

import ast
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

FAKE_PYTHON = """\
#!/bin/sh
# A stand-in for Python: FAKE_VERSION, FAKE_PIP and so on say how it behaves.
case "$1 $2" in
    *ensurepip*) echo "${FAKE_VERSION-3.11.9}"; exit "${FAKE_PROBE-0}" ;;
    *"import torch"*)
        echo "2.13.0 ${FAKE_CUDA-None}"
        if [ -n "$FAKE_IMPORT" ]; then echo "$FAKE_IMPORT"; exit 1; fi ;;
    "-m venv") echo venv >> calls; mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
    "-m pip") echo "$@" >> calls; eval "$FAKE_PIP" ;;
esac
"""

# What pip says without a network: the cause first, and in the end that it found nothing.
NO_NETWORK = (
    "WARNING: Retrying (Retry(total=0)) after connection broken by NewConnectionError: Failed to "
    "establish a new connection: [Errno -2] Name or service not known\n"
    "ERROR: No matching distribution found for pip==26.3"
)


def failing(words: str) -> str:
    """Shell commands for a pip that says this and fails."""
    return f"echo '{words}'; exit 1"


class House:
    """A folder with what the environment is built from, and a fake Python to build it with."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.venv = folder / ".venv"
        (folder / "tools").mkdir(parents=True)
        (folder / "programs").mkdir()
        for name in ("constraints.txt", "pyproject.toml", "tools/environment.py"):
            shutil.copy(ROOT / name, folder / name)
        self.program("python-fake", FAKE_PYTHON)
        self.program("nvidia-smi", "#!/bin/sh\nexit 9\n")

    def program(self, name: str, text: str) -> None:
        path = self.folder / "programs" / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    def start(self, **variables: str) -> subprocess.Popen[str]:
        path = f"{self.folder / 'programs'}{os.pathsep}{os.environ['PATH']}"
        environ = {**os.environ, "PATH": path, "PYTHON": "python-fake", "TORCH": "", **variables}
        return subprocess.Popen(
            [sys.executable, "tools/environment.py"],
            cwd=self.folder,
            env=environ,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def build(self, **variables: str) -> tuple[int, str]:
        process = self.start(**variables)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def calls(self) -> list[str]:
        """What was asked of the fake Python since the last time."""
        path = self.folder / "calls"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines


@pytest.fixture
def house(tmp_path):
    return House(tmp_path / "house")


def wait_for(path: Path) -> None:
    end = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.02)


def test_it_is_built_once_and_says_what_it_does(house):
    status, output = house.build()
    assert status == 0
    assert "[1/4] a virtual environment with Python 3.11.9" in output
    assert "Ready: Python 3.11.9, PyTorch 2.13.0, without CUDA." in output
    venv, installers, torch, rest = house.calls()
    assert venv == "venv"
    assert installers.endswith("-c constraints.txt pip setuptools")
    assert torch.endswith("--no-deps torch==2.13.0+cpu")
    assert rest.endswith("-c constraints.txt --no-build-isolation -e .[book,dev,oracle,grading]")

    assert house.build() == (0, "")
    assert house.calls() == []


@pytest.mark.parametrize("name", ["constraints.txt", "pyproject.toml", "tools/environment.py"])
def test_a_change_of_what_it_is_built_from_updates_it_in_place(house, name):
    house.build()
    house.calls()
    with (house.folder / name).open("a", encoding="utf-8") as file:
        file.write("\n# changed\n")
    status, output = house.build()
    assert status == 0
    assert "up to date" in output
    assert "venv" not in house.calls()
    assert house.build() == (0, "")


def test_an_update_that_broke_off_is_not_trusted(house):
    house.build()
    with (house.folder / "constraints.txt").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    assert house.build(FAKE_PIP="exit 1")[0] == 1
    house.calls()
    assert house.build()[0] == 0
    assert house.calls()[0] == "venv"


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"FAKE_VERSION": "3.8.2"}, "Python 3.8.2 is too old: the book needs Python 3.11"),
        ({"FAKE_VERSION": "2.7.18"}, "Python 2.7.18 is too old"),
        ({"FAKE_VERSION": "3.14.0"}, "Python 3.14.0 is too new"),
        ({"FAKE_PROBE": "1"}, "no venv or ensurepip module: install it (Debian and Ubuntu: sudo "),
        ({"FAKE_PROBE": "1"}, "apt install python3.11-venv"),
        ({"FAKE_VERSION": "", "FAKE_PROBE": "127"}, "python-fake does not run"),
        ({"PYTHON": "python-of-nobody"}, "python-of-nobody does not run"),
        ({"TORCH": "gpu"}, "TORCH=gpu is not known: it can be cpu or cuda."),
    ],
)
def test_a_missing_prerequisite_is_named_in_a_sentence(house, variables, sentence):
    status, output = house.build(**variables)
    assert status == 1
    assert output.startswith("The environment cannot be built: ")
    assert sentence in output
    assert output.count("\n") == 1
    assert not house.venv.exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (NO_NETWORK, "no network: pip could not reach the package index."),
        (
            "ERROR: Could not install packages: [Errno 28] No space left on device",
            "the disk filled up; free some space and run the same command again.",
        ),
        ("OSError: [Errno 122] Disk quota exceeded", "your disk quota is used up"),
        (
            "ERROR: No matching distribution found for setuptools==84.2.1",
            "the package index has no setuptools==84.2.1 for this machine.",
        ),
        (
            "    The user requested (constraint) pip==26.3",
            "the package index has no pip==26.3 for this machine.",
        ),
        ("ERROR: the sky fell", "installing failed with: ERROR: the sky fell."),
    ],
)
def test_a_failed_installation_is_explained_and_then_starts_afresh(house, words, sentence):
    status, output = house.build(FAKE_PIP=failing(words))
    assert status == 1
    assert sentence in output
    assert "What pip said is in .venv/install.log." in output
    assert words in (house.venv / "install.log").read_text("utf-8")

    (house.venv / "half-a-package").touch()
    house.calls()
    assert house.build()[0] == 0
    assert house.calls()[0] == "venv"
    assert not (house.venv / "half-a-package").exists()


def test_an_environment_that_does_not_import_is_not_called_ready(house):
    status, output = house.build(FAKE_IMPORT="ModuleNotFoundError: No module named 'numpy'")
    assert status == 1
    assert "it was built, but does not work: ModuleNotFoundError: No module named" in output
    assert not (house.venv / "ready").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_it_takes_pip_along_and_the_next_run_starts_afresh(house, number):
    process = house.start(FAKE_PIP="echo $$ > pid; exec sleep 60")
    wait_for(house.folder / "pid")
    time.sleep(0.1)
    process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "Interrupted: run the same command again" in output
    pip = int((house.folder / "pid").read_text("utf-8"))
    with pytest.raises(ProcessLookupError):
        os.kill(pip, 0)
    house.calls()
    assert house.build()[0] == 0
    assert house.calls()[0] == "venv"


def test_killed_outright_its_pip_is_waited_for_and_the_next_run_starts_afresh(house):
    process = house.start(FAKE_PIP="touch begun; sleep 2; touch .venv/late")
    wait_for(house.folder / "begun")
    process.kill()
    process.communicate()
    house.calls()
    status, output = house.build()
    assert status == 0
    assert "Another process is building the environment: waiting for it." in output
    assert house.calls()[0] == "venv"
    assert not (house.venv / "late").exists()


def test_two_at_once_build_it_once(house):
    first = house.start(FAKE_PIP="touch begun; sleep 0.5")
    wait_for(house.folder / "begun")
    status, output = house.build()
    assert "Ready" in first.communicate()[0]
    assert (status, output) == (
        0,
        "Another process is building the environment: waiting for it.\n",
    )
    assert house.calls().count("venv") == 1


def test_the_build_of_pytorch(house):
    house.program("nvidia-smi", "#!/bin/sh\necho 'GPU 0: a card'\n")
    _, output = house.build(FAKE_CUDA="13.0")
    assert "PyTorch 2.13.0 with CUDA 13.0." in output
    assert house.calls()[2].endswith("-c constraints.txt torch==2.13.0")

    house.build(TORCH="cpu")
    calls = house.calls()
    assert calls[0] == "venv"
    assert calls[2].endswith("torch==2.13.0+cpu")

    house.program("nvidia-smi", "#!/bin/sh\necho 'No devices were found'\n")
    assert house.build() == (0, "")  # once built it stays, whatever the driver says today
    shutil.rmtree(house.venv)
    house.build()
    assert house.calls()[2].endswith("torch==2.13.0+cpu")


# A pip whose index has no CPU build of PyTorch; PyTorch's own index is asked with --index-url.
NO_CPU_BUILD = (
    "case $* in *constraints*) ;; *index-url*) {} ;; "
    "*) echo No matching distribution found for torch; exit 1 ;; esac"
)


def test_the_cpu_build_is_looked_for_on_pytorchs_own_index_last(house):
    assert house.build(FAKE_PIP=NO_CPU_BUILD.format("true"))[0] == 0
    _, _, first, second, _ = house.calls()
    assert second == f"{first} --index-url https://download.pytorch.org/whl/cpu"


def test_without_a_network_pytorchs_own_index_is_not_tried(house):
    status, output = house.build(FAKE_PIP=f"case $* in *torch*) {failing(NO_NETWORK)} ;; esac")
    assert status == 1
    assert "cannot be built: no network: pip could not reach the package index." in output
    assert len(house.calls()) == 3


def test_without_pytorchs_own_index_the_way_out_is_named(house):
    status, output = house.build(FAKE_PIP=NO_CPU_BUILD.format(failing(NO_NETWORK)))
    assert status == 1
    assert "could not be had from https://download.pytorch.org/whl/cpu: no network" in output
    assert "TORCH=cuda" in output


def test_another_python_is_built_with_only_when_asked_for(house):
    house.build()
    house.calls()
    assert house.build(FAKE_VERSION="3.12.4") != (0, "")  # PYTHON is set, and it is another one now
    assert house.calls()[0] == "venv"
    assert house.build(PYTHON="") == (0, "")  # no wish: what is there will do


def test_somebody_elses_environment_is_used_or_refused_never_removed(house):
    subprocess.run(["programs/python-fake", "-m", "venv", ".venv"], cwd=house.folder, check=True)
    (house.venv / "mine").touch()
    status, output = house.build(FAKE_VERSION="3.9.1")
    assert status == 1
    assert ".venv was not made by make and will not do: remove or rename that folder." in output
    house.calls()
    assert house.build()[0] == 0
    assert "venv" not in house.calls()
    assert (house.venv / "mine").exists()


def test_a_folder_that_was_moved_gets_a_new_environment(house, tmp_path):
    house.build()
    house.calls()
    house.folder = house.folder.rename(tmp_path / "elsewhere")
    assert house.build()[0] == 0
    assert house.calls()[0] == "venv"


@pytest.fixture
def environment():
    """tools/environment.py as a module."""
    spec = importlib.util.spec_from_file_location("environment", ROOT / "tools/environment.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_full_disk_is_noticed_before_anything_is_installed(environment, monkeypatch):
    environment.check_disk("cpu")
    monkeypatch.setitem(environment.SIZES, "cpu", (0.4, 2, 1e9))
    with pytest.raises(environment.Problem, match=r"not enough disk: .* has \d+\.\d GB free"):
        environment.check_disk("cpu")


@pytest.mark.parametrize(
    ("pythons", "found"),
    [
        ({"python3": ("3.8.2", True), "python3.12": ("3.12.4", True)}, "python3.12"),
        ({"python3": ("3.13.1", False), "python3.11": ("3.11.2", True)}, "python3.11"),
        ({"python3": ("3.8.2", True), "python3.12": (None, False)}, "Python 3.8.2 is too old"),
        ({"python3": ("3.14.0", True)}, "Python 3.14.0 is too new"),
    ],
)
def test_the_first_python_that_fits_is_taken(environment, monkeypatch, pythons, found):
    monkeypatch.setattr(environment.sys, "executable", "python3")
    monkeypatch.setattr(environment, "probe", lambda name: pythons.get(name, (None, False)))
    if found in pythons:
        assert environment.find_python(None) == (found, pythons[found][0])
    else:
        with pytest.raises(environment.Problem, match=found):
            environment.find_python(None)


def test_every_python_since_2_7_can_read_it():
    tree = ast.parse((ROOT / "tools/environment.py").read_text("utf-8"))
    too_new = (ast.JoinedStr, ast.AnnAssign, ast.NamedExpr, ast.Nonlocal, ast.YieldFrom, ast.Match)
    for node in ast.walk(tree):
        assert not isinstance(node, too_new), node.lineno
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            assert not any(isinstance(part, ast.Starred) for part in node.elts), node.lineno
        if isinstance(node, ast.FunctionDef):
            assert not node.args.kwonlyargs and node.returns is None, node.lineno
        if isinstance(node, ast.Raise):
            assert node.cause is None, node.lineno

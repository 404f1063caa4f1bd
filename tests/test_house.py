"""The files around the book agree: pins, versions, commands, licences, what the README promises."""

import ast
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ddpm_lite

ROOT = Path(__file__).resolve().parent.parent
CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib"}
IMPORT_NAMES = {"scikit-learn": "sklearn", "pytest-xdist": "xdist", "pillow": "PIL"}
# Used by typing their names, or by another package that finds them.
COMMANDS = {
    "hypothesis",
    "ipykernel",
    "jupyterlab",
    "mypy",
    "nbgrader",
    "nbval",
    "pytest-xdist",
    "ruff",
}


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def files(*, inside: str = "") -> list[Path]:
    """The files that git tracks, or would if told to; without git, what is there."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", inside or "."],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode == 0:
        found = [ROOT / name for name in listed.stdout.splitlines()]
    else:
        hidden = re.compile(r"/(\.venv|my-book|build|dist|__pycache__|\.\w+_cache)/")
        found = [path for path in ROOT.rglob("*") if not hidden.search(str(path))]
    return [path for path in found if path.is_file() and path.is_relative_to(ROOT / inside)]


README = text("README.md")
PROJECT = tomllib.loads(text("pyproject.toml"))["project"]
LAYERS = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
DIRECT = {
    canonicalize_name(requirement.name): requirement
    for requirement in (Requirement(line) for lines in LAYERS.values() for line in lines)
}


@pytest.fixture(scope="module")
def pins_tool():
    """tools/pins.py as a module."""
    spec = importlib.util.spec_from_file_location("pins", ROOT / "tools/pins.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pins(pins_tool):
    return pins_tool.pins(text("constraints.txt"))


# ------------------------------------------------------------------------------- pins and ranges


def test_every_direct_dependency_is_pinned_within_its_range(pins):
    assert set(DIRECT) <= set(pins)
    for name, requirement in DIRECT.items():
        assert pins[name] in requirement.specifier, name
    assert pins["torch"] == "2.13.0"
    assert "2.6.0" in DIRECT["torch"].specifier


def test_constraints_hold_one_plain_pin_a_line(pins):
    lines = [line.partition("#")[0].strip() for line in text("constraints.txt").splitlines()]
    assert sorted(filter(None, lines)) == sorted(set(filter(None, lines)))
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in lines if line)
    assert len(pins) == len(list(filter(None, lines)))


@pytest.mark.skipif(
    platform.system() != "Linux" or torch.version.cuda is not None,
    reason="constraints.txt holds what is needed on Linux, on the CPU",
)
def test_constraints_hold_exactly_what_is_needed(pins, pins_tool):
    roots = [Requirement(line) for lines in LAYERS.values() for line in lines]
    needed = set(pins_tool.closure(roots)) | set(pins_tool.INSTALLERS)
    missing, idle = needed - set(pins), set(pins) - needed
    assert not missing, "make pins"
    # An older Python needs a few packages more than a newer one.
    assert not idle or sys.version_info >= (3, 12), "make pins"


def test_the_tool_writes_what_it_reads(pins_tool):
    written = pins_tool.pins(pins_tool.render())
    assert written["numpy"] == pins_tool.metadata.version("numpy")
    assert written["torch"] == torch.__version__.partition("+")[0]
    assert set(DIRECT) | set(pins_tool.INSTALLERS) <= set(written)


def test_conda_gets_the_same_versions(pins):
    entries = re.findall(r"(?m)^  - ([a-z0-9-]+)=([0-9.]+)$", text("environment.yml"))
    versions = {CONDA_NAMES.get(name, name): version for name, version in entries}
    lines = text("environment.yml").partition("dependencies:")[2].splitlines()
    assert len(entries) == len(versions) == sum(line.startswith("  - ") for line in lines) - 1
    assert versions.pop("python") == "3.11"
    assert set(versions) == set(DIRECT) | {"pip", "setuptools"}
    for name, version in versions.items():
        assert pins[name].split(".")[:2] == version.split("."), name
    assert text("environment.yml").rstrip().endswith("- --editable .")


def test_python_versions_are_the_same_everywhere():
    assert PROJECT["requires-python"] == ">=3.11,<3.14"
    listed = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if ":: 3." in line]
    assert listed == ["3.11", "3.12", "3.13"]
    assert "OLDEST, NEWEST = (3, 11), (3, 13)" in text("tools/environment.py")
    assert "Python 3.11, 3.12 or\n3.13" in text("README.md")


def test_versions_agree():
    version = ddpm_lite.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert PROJECT["dynamic"] == ["version"]
    assert f"\nversion: {version}\n" in text("CITATION.cff")
    assert re.search(r"(?m)^## (\S+)", text("CHANGELOG.md"))[1] == version
    assert tomllib.loads(text("book.toml"))["book"]["version"] == version


def test_the_title_is_the_same_everywhere():
    title = tomllib.loads(text("book.toml"))["book"]["title"]
    assert text("README.md").startswith(f"# {title}\n")
    assert f'\ntitle: "{title}"\n' in text("CITATION.cff")
    assert f'"{title}"' in text("LICENSE-text")


# ----------------------------------------------------------------------------------- the library


def imported_names(folder: str, *, apart_from: tuple[str, ...] = ()) -> set[str]:
    """The packages that the modules there import, anywhere in them."""
    found = set()
    for path in files(inside=folder):
        if path.suffix == ".py" and not any(part in path.as_posix() for part in apart_from):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found.update(alias.name.partition(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    found.add((node.module or "").partition(".")[0])
                elif isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.importorskip":
                    found.add(ast.literal_eval(node.args[0]))
    return found - set(sys.stdlib_module_names) - {"ddpm_lite"}


def import_names(*layers: str) -> set[str]:
    names = [Requirement(line).name for layer in layers for line in LAYERS[layer]]
    return {IMPORT_NAMES.get(name, name) for name in names}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    library = imported_names("ddpm_lite", apart_from=("/ddpm_lite/book/", "/ddpm_lite/course/"))
    # Shown in JupyterLab if that is where the reader is; SymPy's numbers are accepted if met;
    # cycler is Matplotlib's own.
    optional = {"IPython", "sympy", "cycler"}
    assert library - optional <= import_names("")
    folders = ("ddpm_lite/book", "ddpm_lite/course", "chapters")
    press = set().union(*map(imported_names, folders))
    # These come with jupyterlab, and would not be asked for without it.
    parts = {"jupyter_client", "jupyter_core", "jupyter_server", "traitlets", "IPython"}
    assert press - parts <= import_names("", "book")
    used = library | press | imported_names("tests") | imported_names("tools")
    idle = {name for name in DIRECT if IMPORT_NAMES.get(name, name) not in used} - COMMANDS
    assert not idle, "declared in pyproject.toml, imported nowhere"


def test_the_library_needs_neither_jupyter_nor_the_extras():
    refused = sorted(
        (import_names("book", "dev", "oracle") - {"sympy"})  # PyTorch itself needs SymPy
        | {"IPython", "jupyter_client", "jupyter_core", "jupyter_server", "notebook"}
    )
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in files(inside="ddpm_lite")
        if path.suffix == ".py" and path.parent.name not in ("book", "course")
    ]
    assert "ddpm_lite.exercises.engine" in modules
    code = f"""
import importlib, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {refused}:
            raise ImportError(name + " is refused")
sys.meta_path.insert(0, Refuse())
for module in {modules}:
    importlib.import_module(module)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_installed_copy_holds_the_whole_package_and_nothing_else(tmp_path):
    source = tmp_path / "source"
    for path in files(inside="ddpm_lite"):
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    for name in ("pyproject.toml", "README.md", "LICENSE", "LICENSE-text"):
        shutil.copy(ROOT / name, source / name)
    (source / "another").mkdir()
    (source / "another" / "__init__.py").touch()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path)]
    done = subprocess.run([*pip, *options, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"ddpm_lite-{ddpm_lite.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        described = archive.read(metadata).decode()
    assert names == {path.relative_to(ROOT).as_posix() for path in files(inside="ddpm_lite")}
    plain = re.findall(r"(?m)^Requires-Dist: ([^;\n]+)$", described)
    assert {Requirement(line).name for line in plain} == {
        Requirement(line).name for line in LAYERS[""]
    }


# ---------------------------------------------------------------------- commands and the README


def makefile_targets() -> set[str]:
    return set(re.findall(r"(?m)^([a-z-]+):", text("Makefile")))


def make(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=ROOT,
        env={**environ, **variables},
        capture_output=True,
        text=True,
    )


def test_every_command_of_the_readme_exists_and_the_other_way_round():
    named = set(re.findall(r"(?m)(?:`|^ {4})make ([a-z-]+)", README + text("CHANGELOG.md")))
    assert {"read", "test", "lint"} <= named <= makefile_targets()
    assert makefile_targets() - named <= {"help", "environment"}
    shown = re.findall(r"(?m)^  make ([a-z-]+) ", make("help").stdout)
    assert set(shown) == makefile_targets() - {"help", "environment"}


def test_every_file_that_the_readme_runs_exists():
    paths = re.findall(r"\b(?:pytest|python)(?: --nbval)? ((?:chapters|tests|tools)\S*)", README)
    assert len(paths) >= 3
    for path in paths:
        assert (ROOT / path).exists(), path
    modules = re.findall(r"python -m ddpm_lite (\w+) (\w+)", README)
    assert modules
    for command in modules:
        help = [sys.executable, "-m", "ddpm_lite", *command, "--help"]
        done = subprocess.run(help, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


BLOCKS = re.findall(r"(?ms)^```python\n(.*?)^```", README)


@pytest.mark.parametrize("block", BLOCKS)
def test_the_code_of_the_readme_runs(block, capsys):
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert "tensor(0.396" in capsys.readouterr().out
    assert (names["x_0"] - names["images"]).abs().max() < 1e-5


def test_the_readme_has_code():
    assert BLOCKS


def test_the_readme_says_what_has_been_run(pins):
    said = README.partition("## What has been run")[2]
    assert f"PyTorch {pins['torch']}" in said
    assert "Not run: macOS, conda" in said


def test_every_message_that_the_readme_explains_is_one_that_is_said():
    table = README.partition("| Symptom |")[2].partition("\n\n")[0].splitlines()[2:]
    symptoms = [row.split("|")[1] for row in table]
    messages = [m for row in symptoms[:-1] for m in re.findall(r"`([^`]+)`", row)]
    assert len(messages) >= 7
    said = re.sub(r'"\s*"', "", text("tools/environment.py"))
    said = re.sub(r"\{\d\}", "…", said)
    for message in messages:
        for part in re.sub(r"3\.8\.18", "…", message).split("…"):
            assert part in said, message


def test_ci_runs_what_the_readme_names_and_nothing_else():
    lines = [line for line in text(".ci/run").splitlines() if line and not line.startswith("#")]
    assert lines == [
        "set -euo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")/.."',
        "make lint",
        "make test",
    ]
    assert text(".ci/run").startswith("#!/usr/bin/env bash\n")
    assert os.access(ROOT / ".ci/run", os.X_OK)


@pytest.mark.parametrize(
    ("failing", "status"), [("", 0), ("tests", 2), ("--nbval", 2), ("tests --nbval", 2)]
)
def test_make_test_runs_both_halves_and_is_red_if_one_is(tmp_path, failing, status):
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\necho "ran $*, OMP_NUM_THREADS=$OMP_NUM_THREADS"\n'
        f'for word in {failing}; do case " $* " in *" $word "*) exit 1 ;; esac; done\n'
    )
    python.chmod(0o755)
    done = make("test", "STARTER=true", f"VENV_PYTHON={python}")
    assert done.returncode == status, done.stderr
    assert done.stdout.splitlines() == [
        "ran -m pytest -n 2 --dist loadfile tests, OMP_NUM_THREADS=1",
        "ran -m pytest -n 2 --dist loadfile --nbval chapters, OMP_NUM_THREADS=1",
    ]


def test_without_any_python_make_says_so_in_a_sentence():
    done = make("environment", "STARTER=")
    assert done.returncode == 2
    assert done.stderr.startswith("There is no python3 here: install Python 3.11, 3.12 or 3.13.\n")


# ------------------------------------------------------------------------------------ every file


def test_no_file_names_a_folder_of_somebodys_machine():
    # Not after a letter, a dot or a slash: pictures are base64, in which anything can occur.
    path = re.compile(r"(?<![\w.+/~])/(?:home|opt|root|tmp|Users|work)/(?!reader/)[A-Za-z.]")
    found = []
    for file in files():
        try:
            content = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(content.splitlines(), 1):
            if path.search(line) and file != Path(__file__):
                found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)


def test_the_code_of_the_chapters_fits_in_100_columns():
    scripts = [path for path in files(inside="chapters") if path.suffix == ".py"]
    assert scripts
    for script in scripts:
        for number, line in enumerate(script.read_text(encoding="utf-8").splitlines(), 1):
            is_text = line.startswith("#")
            assert is_text or len(line) <= 100, f"{script.name}:{number} has {len(line)} columns"


def test_what_is_not_to_be_tracked_is_ignored():
    names = [".venv/ready", "my-book/START.md", "build/x", "ddpm_lite/__pycache__/x.pyc"]
    done = subprocess.run(["git", "check-ignore", *names], cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 128:
        pytest.skip("not in a git repository")
    assert done.stdout.split() == names


def test_the_licences_are_there_and_named():
    assert text("LICENSE").startswith("MIT License\n")
    assert "https://creativecommons.org/licenses/by/4.0/legalcode" in text("LICENSE-text")
    assert PROJECT["license"] == "MIT AND CC-BY-4.0"
    assert all((ROOT / name).is_file() for name in PROJECT["license-files"])
    assert "license:\n  - MIT\n  - CC-BY-4.0\n" in text("CITATION.cff")

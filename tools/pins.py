"""Write constraints.txt: every version that the running environment holds for the book.

    make pins

To move to newer versions: install them into .venv (`.venv/bin/python -m pip install -U ...`), run
`make test`, execute the chapters again (`make press`), and then write down what they ran with. Only
what pyproject.toml asks for, and what that needs in turn, is written; the rest of the environment
is nobody's business.
"""

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent

HEADER = """\
# The versions that the stored outputs of the book were made with: what pyproject.toml asks for, and
# everything that this needs in turn, on Linux with the CPU build of PyTorch. `make` installs
# exactly these. Another system may need a few more packages, which are then not pinned.
#
# Written by `make pins` (tools/pins.py), which records the environment it runs in; not by hand.
# environment.yml repeats the direct ones for conda, and a test holds the two files together.
"""

TITLES = {
    "": "the library",
    "book": "the book: reading, exercises, running the chapters",
    "dev": "work on the library",
    "oracle": "another implementation, for the tests to compare with",
    "grading": "the gradebook through which exercises can be handed out",
}
INSTALLERS = ["pip", "setuptools"]


def direct_dependencies() -> dict[str, list[Requirement]]:
    """Layer ("" for the library itself, then the extras) -> its requirements in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    layers = {"": project["dependencies"], **project["optional-dependencies"]}
    return {layer: [Requirement(line) for line in lines] for layer, lines in layers.items()}


def needs(requirement: Requirement) -> list[Requirement]:
    """What an installed package needs here, with the extras under which it was asked for."""
    asked = [Requirement(line) for line in metadata.requires(requirement.name) or []]
    extras = requirement.extras or {""}
    return [
        one
        for one in asked
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras)
    ]


def closure(roots: list[Requirement]) -> dict[str, set[str]]:
    """Every package needed, directly or not -> the packages that need it."""
    parents: dict[str, set[str]] = {canonicalize_name(root.name): set() for root in roots}
    waiting, seen = list(roots), set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        for needed in needs(requirement):
            parents.setdefault(canonicalize_name(needed.name), set()).add(name)
            waiting.append(needed)
    return parents


def pin(name: str) -> str:
    """name==version, without the build's own suffix ("+cpu"), which other machines do not have."""
    return f"{name}=={Version(metadata.version(name)).public}"


def render() -> str:
    layers = direct_dependencies()
    parents = closure([requirement for layer in layers.values() for requirement in layer])
    lines = [HEADER]
    written = set(INSTALLERS)
    for layer, requirements in layers.items():
        names = [canonicalize_name(requirement.name) for requirement in requirements]
        lines += [f"# {TITLES.get(layer, layer)}", *map(pin, names), ""]
        written.update(names)
    lines += ["# what installs them", *map(pin, INSTALLERS), "", "# what they need, and for whom"]
    for name in sorted(parents.keys() - written):
        whom = sorted(parents[name])
        lines.append(f"{pin(name)}  # {', '.join(whom[:3])}{', ...' if len(whom) > 3 else ''}")
    return "\n".join(lines) + "\n"


def pins(text: str) -> dict[str, str]:
    """Package -> version, read from the text of constraints.txt."""
    found = re.findall(r"(?m)^([A-Za-z0-9._-]+)==([^\s#]+)", text)
    return {canonicalize_name(name): version for name, version in found}


def main() -> None:
    path = ROOT / "constraints.txt"
    before = pins(path.read_text("utf-8")) if path.exists() else {}
    text = render()
    path.write_text(text, "utf-8")
    after = pins(text)
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            print(f"{name}: {before.get(name, 'new')} -> {after.get(name, 'gone')}")
    print(f"constraints.txt: {len(after)} packages, Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()

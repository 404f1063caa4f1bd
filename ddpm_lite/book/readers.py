"""The reader's working copy: handed out once, refreshed where untouched, never overwritten.

Beside the copies lies a record of what was handed out. By it an update tells three cases apart:

- the file is as it was handed out, or was run but not changed: it becomes the new edition;
- the reader changed it: it stays, and a new edition is laid beside it as `03_x.new.ipynb`, once;
- no new edition came out: it stays, outputs and all.

What counts as a change of a notebook is the text of its cells. A notebook that was run keeps its
outputs as long as its chapter has no new edition; when there is one, they go with the old text.
Every file and the record are written whole or not at all, a file before its record; a run that was
interrupted is finished by the next.
"""

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ddpm_lite.book import BookError
from ddpm_lite.book.files import write_whole
from ddpm_lite.book.manifest import Book

RECORD = ".book.json"


@dataclass(frozen=True)
class Fingerprint:
    """What a file says, and its every byte; running a notebook changes only the second."""

    text: str
    whole: str

    @classmethod
    def of(cls, path: Path, content: bytes | None = None) -> "Fingerprint":
        """That of `path`, or of `content` that is to go there."""
        content = path.read_bytes() if content is None else content
        text = content.decode("utf-8", errors="replace").replace("\r\n", "\n")
        if path.suffix == ".ipynb":
            # what is no notebook any more is the reader's own, whatever it is
            with contextlib.suppress(ValueError, KeyError, TypeError):
                cells = json.loads(text)["cells"]
                text = repr([(cell["cell_type"], "".join(cell["source"])) for cell in cells])
        return cls(_hash(text.encode()), _hash(content))


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


@dataclass
class Record:
    """What the reader was given, by file name: in its place, and beside a file of their own."""

    handed: dict[str, Fingerprint] = field(default_factory=dict)
    beside: dict[str, Fingerprint] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Record":
        """The record; if it is lost, whatever differs from the new edition is the reader's."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                **{
                    part: {name: Fingerprint(**prints) for name, prints in raw[part].items()}
                    for part in ("handed", "beside")
                }
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return cls()

    def write(self, path: Path) -> None:
        write_whole(path, json.dumps(asdict(self), indent=1, sort_keys=True) + "\n")


@dataclass
class Copied:
    """What a copy did, by file name."""

    new: list[str] = field(default_factory=list)
    refreshed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    beside: dict[str, str] = field(
        default_factory=dict
    )  # the reader's file -> the new edition beside it

    def in_words(self, folder: Path) -> str:
        counts = [
            f"{len(names)} {what}"
            for names, what in (
                (self.new, "new"),
                (self.refreshed, "refreshed"),
                (self.kept, "left as they are"),
            )
            if names
        ]
        lines = [f"{folder}: {', '.join(counts) or 'nothing to do'}"]
        lines += [
            f"    you changed {mine}, so it was left alone; the new edition is beside it: {theirs}"
            for mine, theirs in self.beside.items()
        ]
        return "\n".join(lines)


def edition(book: Book) -> dict[str, bytes]:
    """The files that make up a reader's copy."""
    missing = [c.file for c in book.chapters if not c.notebook.is_file()]
    if missing:
        raise BookError(f"no notebook for {', '.join(missing)}: `python -m ddpm_lite book press`")
    # the reader's own library, and chapter 7's file to take apart
    scripts = [book.root / "chapters" / name for name in ("my_ddpm.py", "ddpm_in_100_lines.py")]
    pages = [*book.pages, *scripts]
    files = {page.name: page.read_bytes() for page in pages if page.is_file()}
    return files | {c.notebook.name: _for_readers(c.notebook) for c in book.chapters}


def _for_readers(notebook: Path) -> bytes:
    """The notebook as JupyterLab saves it here; or else opening it would be a change to save."""
    from ipykernel.ipkernel import IPythonKernel

    content = json.loads(notebook.read_text(encoding="utf-8"))
    content["metadata"] = {
        "kernelspec": content["metadata"]["kernelspec"],
        "language_info": IPythonKernel.language_info,
    }
    return (json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode()


def copy(book: Book, folder: Path) -> Copied:
    """Make or update the working copy in `folder`."""
    folder = folder.resolve()
    if folder == book.root / "chapters" or (folder / "book.toml").exists():
        raise BookError(f"{folder} holds the book itself; name another folder, my-book")
    if folder.exists() and not folder.is_dir():
        raise BookError(f"{folder} is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    record = Record.read(folder / RECORD)
    done = Copied()
    for name, content in edition(book).items():
        _copy_one(content, folder / name, record, done)
        record.write(folder / RECORD)
    return done


def _copy_one(content: bytes, mine: Path, record: Record, done: Copied) -> None:
    name, new, handed = mine.name, Fingerprint.of(mine, content), record.handed.get(mine.name)
    match _state(mine, handed, new):
        case "absent":
            done.new.append(name)
            write_whole(mine, content)
        case "superseded":
            done.refreshed.append(name)
            write_whole(mine, content)
        case "current":
            done.kept.append(name)
        case "changed":
            done.kept.append(name)
            if handed is None or handed.text != new.text:
                _lay_beside(content, mine, record, done)
            return  # what they started from stays on record
    record.handed[name] = new


def _state(mine: Path, handed: Fingerprint | None, new: Fingerprint) -> str:
    if not mine.exists():
        return "absent"
    now = Fingerprint.of(mine)
    if now == handed != new:
        return "superseded"  # not even run
    if now.text == new.text:
        return "current"  # with the reader's outputs, perhaps
    return "superseded" if handed and now.text == handed.text else "changed"


def _lay_beside(content: bytes, mine: Path, record: Record, done: Copied) -> None:
    """Put a new edition under a name of its own; not again if the reader was given it before."""
    new, before = Fingerprint.of(mine, content), record.beside.get(mine.name)
    if before and before.text == new.text:
        return
    for count in range(1, 1000):
        path = mine.with_name(f"{mine.stem}.new{count if count > 1 else ''}{mine.suffix}")
        if not path.exists() or Fingerprint.of(path).text in (new.text, before and before.text):
            break  # free, or an edition that the reader has not written in
    write_whole(path, content)
    record.beside[mine.name] = new
    done.beside[mine.name] = path.name

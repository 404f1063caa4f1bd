"""What the commands share: options and their checks, refusals in one sentence, models by name."""

from __future__ import annotations

import argparse
import hashlib
import io
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

import ddpm_lite
from ddpm_lite.interchange import WEIGHTS_NAME, from_diffusers
from ddpm_lite.storage import WEIGHTS, Model, Record, load_model, to_json, write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image

Command = Callable[[argparse.Namespace], None]


# ---- refusals -----------------------------------------------------------------------------------


class Refused(Exception):
    """A request that cannot be met: one sentence, exit code 2."""


class Failed(Exception):
    """Something that went wrong on the way: one sentence, exit code 1."""


@contextmanager
def refusing() -> Iterator[None]:
    """What the library refuses in here is the request's fault, and becomes one sentence.

    Only for what checks and reads the request: a ValueError from the work itself is a mistake in
    the program, and keeps its traceback.
    """
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        raise Refused(in_words(error)) from error


def in_words(error: Exception) -> str:
    """An error as a sentence; the system's own get their file in front in place of a number."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}."
    return str(error)


def run(parser: argparse.ArgumentParser, arguments: list[str], command: Command) -> int:
    """Parse the arguments, run the command on them, and turn what it raises into an exit code."""
    try:
        command(parser.parse_args(arguments))
    except Refused as refusal:
        if speaks():
            print(f"{parser.prog}: {refusal}", file=sys.stderr)
        return 2
    except (Failed, FloatingPointError, OSError) as error:
        print(f"{parser.prog}: {in_words(error)}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError:
        print(
            f"{parser.prog}: the device's memory is full; a smaller --batch-size needs less.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt as interrupt:
        if speaks():
            print(f"\n{parser.prog}: stopped{interrupt}.", file=sys.stderr)
        return 130
    return 0


def speaks() -> bool:
    """Whether this process is the one of a torchrun that prints and writes, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def say(words: str) -> None:
    if speaks():
        print(words, flush=True)


# ---- options ------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """An argparse parser that refuses in one sentence, and shows help as it was written."""

    def __init__(self, prog: str, usage: str, description: str) -> None:
        super().__init__(
            prog=prog,
            usage=f"{prog} {usage}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # --s would mean another option once a new one is added
        )

    def error(self, message: str) -> NoReturn:
        raise Refused(f"{message.rstrip('.')}; see --help.")


def whole_number(low: int, high: int | None = None) -> Callable[[str], int]:
    """The type of an option: an int in low..high."""

    def convert(text: str) -> int:
        allowed = f"of at least {low}" if high is None else f"in {low}..{high}"
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"must be a whole number {allowed}, got {text!r}")
        return value

    return convert


def number(
    low: float, high: float = math.inf, *, open_below: bool = False
) -> Callable[[str], float]:
    """The type of an option: a finite number in [low, high], or (low, high]."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (low < value or (low == value and not open_below)) or not value <= high:
            value = math.nan
        if not math.isfinite(value):
            bounds = f"above {low:g}" if open_below else f"of at least {low:g}"
            bounds += f" and at most {high:g}" if high < math.inf else ""
            raise argparse.ArgumentTypeError(f"must be a number {bounds}, got {text!r}")
        return value

    return convert


def whole_numbers(text: str) -> tuple[int, ...]:
    """The type of an option: whole numbers between commas, such as 1,2,2; "none" for no number."""
    if text == "none":
        return ()
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise argparse.ArgumentTypeError(
            f"must be whole numbers between commas, such as 1,2,2, got {text!r}"
        )
    return tuple(int(part) for part in text.split(","))


def device_name(text: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?|mps", text):
        raise argparse.ArgumentTypeError(f"must be cpu, cuda, cuda:1, … or mps, got {text!r}")
    return text


SEED = whole_number(0, 2**31 - 1)


def add_model_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="a folder that `train` or `export` made (or any with model.safetensors in it, or of "
        "diffusers), or the name of a model that comes with the book: digits, or "
        "digits-conditional, which has classes. A folder of that name is ./digits",
    )


def add_device_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        type=device_name,
        metavar="DEVICE",
        help="cpu, cuda, cuda:1, …; if not given, a GPU if there is one. Random numbers are drawn "
        "on the CPU, so a seed means the same numbers everywhere",
    )


def add_image_options(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--size",
        type=whole_number(1),
        metavar="N",
        help="for PNG and JPEG: cut each image's central square out and shrink it to N×N",
    )
    parser.add_argument(
        "--channels",
        type=int,
        choices=(1, 3),
        help="for PNG and JPEG: convert all to grey (1) or RGB (3)",
    )


# ---- models -------------------------------------------------------------------------------------


def model_folder(name: str) -> Path:
    """Where a model lies: with the book if it has one of that name, else in that folder."""
    return WEIGHTS / name if name in _shipped_names() else Path(name)


def _shipped_names() -> list[str]:
    return sorted(path.parent.name for path in WEIGHTS.glob("*/model.json"))


def open_model(name: str, device: str | torch.device = "cpu") -> tuple[Model, Path]:
    """A model and the file of its weights, by its folder, or by its name if the book has it.

    Raises:
        OSError, ValueError: if it is not there, or not a whole model; see `load_model` and
            `from_diffusers`.
    """
    folder = model_folder(name)
    if not folder.is_dir():
        names = _shipped_names()
        raise ValueError(
            f"there is no folder {name}, and the models that come with the book are "
            f"{', '.join(names) or 'none'}."
        )
    for inside in (folder, folder / "unet"):
        weights = inside / WEIGHTS_NAME
        if weights.is_file() and not (folder / "model.safetensors").exists():
            network, diffusion = from_diffusers(folder)
            if diffusion is None:
                raise ValueError(
                    f"{folder} holds a network of diffusers, but no scheduler: without the noise "
                    "schedule that it was trained with it cannot be used."
                )
            return Model(network.to(device), diffusion, {}), weights
    if (folder / "config.json").is_file() and not (folder / "model.safetensors").exists():
        raise ValueError(
            f"{folder} holds a run that has not come to its end, and so no model yet: "
            f"`train --resume --out {folder}` goes on with it."
        )
    return load_model(folder, device), folder / "model.safetensors"


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- results ------------------------------------------------------------------------------------


def origin(prog: str, arguments: list[str]) -> Record:
    """What a record says of how its results were made."""
    return {
        "command": shlex.join([*prog.split(), *arguments]),
        "ddpm_lite": ddpm_lite.__version__,
        "torch": torch.__version__,
    }


def refuse_existing(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise Refused(f"{path} is a folder; the result is a file.")
    if path.exists() and not overwrite:
        raise Refused(f"{path} is there already: choose another name, or say --overwrite.")
    if not path.parent.is_dir():
        raise Refused(f"there is no folder {path.parent} to write {path.name} into.")


def write_json(path: Path, record: Record) -> None:
    write_atomically(path, to_json(record))


def to_bytes(images: Tensor) -> Tensor:
    """Images in [−1, 1], clamped, as uint8 on the CPU: −1 is 0 and 1 is 255."""
    return ((images.detach().cpu().double().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def grid_png(images: Tensor, columns: int | None = None) -> bytes:
    """Images (N, C, H, W) in [−1, 1] side by side as a PNG, pixel for pixel; see `grid`."""
    buffer = io.BytesIO()
    grid(to_bytes(images), columns).save(buffer, format="PNG")
    return buffer.getvalue()


def grid_gif(
    frames: Sequence[Tensor], columns: int | None, *, milliseconds: int, last: int
) -> bytes:
    """A film of grids, uint8 (N, C, H, W) each, as a GIF that begins again when it is over.

    Grey levels are kept; of colours a GIF has 256 in a frame, and the nearest are taken.

    milliseconds: of each frame, and `last` of the last one.
    """
    first, *rest = (grid(frame, columns) for frame in frames)
    buffer = io.BytesIO()
    duration = [milliseconds] * len(rest) + [last]
    first.save(buffer, format="GIF", save_all=True, append_images=rest, duration=duration, loop=0)
    return buffer.getvalue()


def grid(images: Tensor, columns: int | None = None) -> Image:
    """Images uint8 (N, C, H, W) side by side.

    Small images are enlarged by a whole factor, without smoothing, to about 64 pixels a side.
    Light grey parts them.

    columns: default: as many as make the grid nearly square.
    """
    from PIL import Image

    count, channels, height, width = images.shape
    columns = min(count, columns or math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    factor = max(1, 64 // max(height, width))
    tiles = images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    gap = max(2, factor // 2)
    tall, wide = height * factor + gap, width * factor + gap
    sheet = torch.full((channels, rows * tall + gap, columns * wide + gap), 200, dtype=torch.uint8)
    for i, tile in enumerate(tiles):
        top, left = gap + i // columns * tall, gap + i % columns * wide
        sheet[:, top : top + tile.shape[1], left : left + tile.shape[2]] = tile
    pixels = sheet[0].numpy() if channels == 1 else sheet.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels)


def table(rows: dict[str, Any]) -> str:
    """Names and values as two columns; a value of several lines stays in its column."""
    width = max(map(len, rows)) + 2
    return "\n".join(
        f"{name:{width}}" + str(value).replace("\n", "\n" + " " * width)
        for name, value in rows.items()
    )

"""`python -m ddpm_lite sample`: images from a trained model, as a picture, a film and numbers."""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_lite.commands import common, recipe
from ddpm_lite.commands.common import Refused
from ddpm_lite.hardware import choose_device
from ddpm_lite.storage import Model, Record, to_json, write_atomically, write_tensors

DESCRIPTION = """\
Draw images from a trained model.

Sampling starts from noise and walks the chain backwards, calling the network once for each step
(DDPM's Algorithm 2; chapter 7 derives it). Written are

  samples.png     all samples side by side, small ones enlarged pixel by pixel
  samples.json    what was run, on what, with which seed

and with --raw the samples themselves, float32 (N, C, H, W) in [-1, 1], with their labels if they
have any; with --trajectory the walk from noise to images, as a film.

  python -m ddpm_lite sample --model digits --n 64 --out samples.png

In a tenth of the time and less, with other samplers (chapter 9):

  python -m ddpm_lite sample --model digits --sampler ddim --steps 50 --spacing trailing \\
      --out fifty.png
  python -m ddpm_lite sample --model digits --sampler dpmpp-2m --steps 20 --spacing log-snr \\
      --trajectory walk.gif --out twenty.png

A model with classes draws each in turn, or those asked for, and can be guided towards them
(chapter 8):

  python -m ddpm_lite sample --model digits-conditional --class 7 --guidance 1 --sampler ddim \\
      --steps 50 --spacing trailing --out sevens.png
"""

MOST_FRAMES = 60
MOST_IN_A_FILM = 256  # samples
FILM_SECONDS = 4.0
FRAME_SECONDS = (0.05, 0.4)  # the least and the most
LAST_FRAME_SECONDS = 2.0


def main(arguments: list[str], prog: str) -> int:
    return common.run(_parser(prog), arguments, lambda given: _sample(given, prog, arguments))


# ---- options ------------------------------------------------------------------------------------


def _parser(prog: str) -> common.Parser:
    parser = common.Parser(prog, "--model MODEL --out FILE.png [options]", DESCRIPTION)
    common.add_model_option(parser)
    common.add_device_option(parser)
    parser.add_argument(
        "--n", type=common.whole_number(1), default=64, metavar="N", help="samples (%(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=common.SEED,
        default=0,
        help="of all random numbers (%(default)s): the same seed, the same samples",
    )
    _add_output_options(parser)
    recipe.add_recipe_options(parser)
    recipe.add_guidance_options(parser).add_argument(
        "--class",
        dest="classes",
        type=_class_list,
        metavar="CLASS",
        help="by name, or by number from 0 where names are words: one, or several between commas, "
        "drawn in turn (0,1,2); none draws without a class. If not given, each class in turn",
    )
    return parser


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE.png", help="the picture to write"
    )
    parser.add_argument(
        "--raw",
        type=Path,
        metavar="FILE",
        help="also write the samples themselves, as .safetensors or .npz, under the name "
        "'samples', and their classes' numbers, if any, as 'labels'",
    )
    parser.add_argument(
        "--trajectory",
        type=Path,
        metavar="FILE.gif",
        help="also write the walk as a film: the picture at each level, from noise to the samples, "
        f"which stay for {LAST_FRAME_SECONDS:g} seconds; then it begins again. A walk of more than "
        f"{MOST_FRAMES} levels is shown at {MOST_FRAMES} of them, evenly spaced along it, both "
        f"ends included; samples.json lists them. For at most {MOST_IN_A_FILM} samples",
    )
    parser.add_argument(
        "--columns",
        type=common.whole_number(1),
        metavar="N",
        help="of the picture; if not given, nearly a square, with each class in columns of its own",
    )
    parser.add_argument("--json", action="store_true", help="print the record instead of words")
    parser.add_argument("--overwrite", action="store_true", help="replace files of these names")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _class_list(text: str) -> tuple[str, ...]:
    """The type of --class: names between commas; "none" for no class."""
    names = tuple(part.strip() for part in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(
            f"must be classes between commas, such as 0,1,2, or none, got {text!r}"
        )
    return () if names == ("none",) else names


def _classes_from(given: argparse.Namespace, model: Model) -> Sequence[int]:
    """The labels to draw in turn; none for a network without classes, or if none is asked for."""
    names = recipe.class_names(model)
    if given.classes is None:
        return recipe.every_class(model)
    if not names:
        raise Refused(
            "--class asks for a class, and this model knows none: `train --class-conditional` "
            "makes one that does."
        )
    if not given.classes:
        recipe.refuse_unlearned_null(model, "--class none")
    return [_label_of(name, names) for name in given.classes]


def _label_of(asked: str, names: Sequence[str]) -> int:
    if asked in names:
        return names.index(asked)
    # where names are numbers themselves, a number is a name: the two must not be mixed
    if asked.isdecimal() and not any(map(str.isdecimal, names)) and int(asked) < len(names):
        return int(asked)
    listed = ", ".join(names[:12]) + ", …" * (len(names) > 12)
    raise Refused(f"this model has no class {asked!r}: its {len(names)} classes are {listed}.")


# ---- the command --------------------------------------------------------------------------------


def _sample(given: argparse.Namespace, prog: str, arguments: list[str]) -> None:
    record_path = _check_outputs(given)
    with common.refusing():
        device = choose_device(given.device)
        model, weights = common.open_model(given.model, device)
        diffusion = recipe.diffusion_from(given, model)
        classes = _classes_from(given, model)
        way = recipe.recipe_from(given, model, diffusion, labelled=bool(classes))
    labels = recipe.in_turn(classes, given.n)
    film = Film(way.rehearse(diffusion).levels) if given.trajectory else None
    start = time.perf_counter()
    samples = way.draw(
        model.network,
        diffusion,
        recipe.image_shape(model, given.n),
        recipe.generator_for(given.seed),
        y=labels,
        device=device,
        progress=not given.quiet,
        watch=film.watch if film else None,
    )
    seconds = time.perf_counter() - start
    record: Record = {
        **common.origin(prog, arguments),
        "model": {"name": given.model, "sha256": common.sha256_of(weights)},
        "sampling": way.describe(diffusion)
        | {"n": given.n, "seed": given.seed}
        | _classes_drawn(model, classes),
        "device": str(device),
        "seconds": round(seconds, 3),
        "files": {what: path.name for what, path in _outputs(given).items()},
        **({"trajectory": film.describe()} if film else {}),
    }
    columns = given.columns or recipe.columns_for(classes, given.n)
    if given.raw:
        _write_raw(given.raw, samples, labels, record)
    if film:
        write_atomically(given.trajectory, film.gif(columns))
    write_atomically(given.out, common.grid_png(samples, columns))
    common.write_json(record_path, record)  # last: where it is, the others are too
    if given.json:
        print(to_json(record).decode(), end="")
    else:
        files = ", ".join(map(str, [*_outputs(given).values(), record_path]))
        calls = way.calls_in_words(diffusion)
        print(f"{given.n} samples in {seconds:.1f} s ({calls}): {files}")


def _classes_drawn(model: Model, classes: Sequence[int]) -> Record:
    """Their names, for a model that has any; an empty list says: drawn without."""
    names = recipe.class_names(model)
    return {"classes": [names[label] for label in classes]} if names else {}


def _outputs(given: argparse.Namespace) -> dict[str, Path]:
    """What is written beside the record, by what it is."""
    paths = {"picture": given.out, "trajectory": given.trajectory, "samples": given.raw}
    return {what: path for what, path in paths.items() if path is not None}


def _check_outputs(given: argparse.Namespace) -> Path:
    """The path of the record, after a look at all that will be written."""
    if given.out.suffix != ".png":
        raise Refused(f"--out must end in .png, got {given.out}.")
    record_path: Path = given.out.with_suffix(".json")
    for path in (record_path, *_outputs(given).values()):
        common.refuse_existing(path, given.overwrite)
    if given.raw and given.raw.suffix not in (".safetensors", ".npz"):
        raise Refused(f"--raw must end in .safetensors or .npz, got {given.raw}.")
    if given.trajectory and given.trajectory.suffix != ".gif":
        raise Refused(f"--trajectory must end in .gif, got {given.trajectory}.")
    if given.trajectory and given.n > MOST_IN_A_FILM:
        raise Refused(
            f"--trajectory shows at most {MOST_IN_A_FILM} samples at once, got --n {given.n}."
        )
    return record_path


def _write_raw(path: Path, samples: Tensor, labels: Tensor | None, record: Record) -> None:
    tensors = {"samples": samples} | ({} if labels is None else {"labels": labels})
    if path.suffix == ".safetensors":
        write_tensors(path, tensors, record)
        return
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


# ---- the film -----------------------------------------------------------------------------------


class Film:
    """The walk's x at some of its levels, as it will be shown: a byte a value, on the CPU."""

    def __init__(self, levels: Sequence[int]) -> None:
        last = len(levels) - 1
        count = min(MOST_FRAMES, len(levels))
        self.levels = [levels[round(i * last / (count - 1))] for i in range(count)]
        self._parts: dict[int, list[Tensor]] = {level: [] for level in self.levels}

    def watch(self, level: int, x: Tensor) -> None:
        if level in self._parts:
            self._parts[level].append(common.to_bytes(x))

    @property
    def milliseconds(self) -> int:
        """Of a frame: so that the film takes FILM_SECONDS; whole hundredths, as a GIF counts."""
        least, most = FRAME_SECONDS
        return 10 * round(100 * min(most, max(least, FILM_SECONDS / len(self.levels))))

    def gif(self, columns: int | None) -> bytes:
        return common.grid_gif(
            [torch.cat(self._parts[level]) for level in self.levels],
            columns,
            milliseconds=self.milliseconds,
            last=round(1000 * LAST_FRAME_SECONDS),
        )

    def describe(self) -> Record:
        return {"levels": self.levels, "milliseconds": self.milliseconds}

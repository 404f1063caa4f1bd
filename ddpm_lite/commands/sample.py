"""`python -m ddpm_lite sample`: images from a trained model, as a picture and as numbers."""

from __future__ import annotations

import argparse
import io
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm_lite.commands import common
from ddpm_lite.commands.common import Refused
from ddpm_lite.hardware import choose_device
from ddpm_lite.process import GaussianDiffusion
from ddpm_lite.sampling import Denoiser, generate, sample
from ddpm_lite.schedule import SPACINGS
from ddpm_lite.storage import Model, Record, to_json, write_atomically, write_tensors

CLIP = (-1.0, 1.0)  # where images live

DESCRIPTION = """\
Draw images from a trained model.

Sampling starts from noise and walks the chain backwards, calling the network once for each step
(DDPM's Algorithm 2; chapter 7 derives it). Written are

  samples.png     all samples side by side, small ones enlarged pixel by pixel
  samples.json    what was run, on what, with which seed

and with --raw the samples themselves, float32 (N, C, H, W) in [-1, 1].

  python -m ddpm_lite sample --model digits --n 64 --out samples.png
"""


# ---- how to sample: shared with `train` and `evaluate` -------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """How to walk from noise to images."""

    steps: int
    spacing: str | None
    eta: float
    clip: bool
    batch_size: int

    def draw(
        self,
        denoiser: Denoiser,
        diffusion: GaussianDiffusion,
        shape: tuple[int, ...],
        generator: torch.Generator,
        *,
        y: Tensor | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
    ) -> Tensor:
        """shape[0] samples on the CPU, in batches that follow one another in the random numbers."""
        parts = [
            generate(
                denoiser,
                diffusion,
                (min(self.batch_size, shape[0] - start), *shape[1:]),
                steps=self.steps,
                spacing=self.spacing,
                eta=self.eta,
                generator=generator,
                y=None if y is None else y[start : start + self.batch_size],
                clip=CLIP if self.clip else None,
                device=device,
                progress=progress,
            ).cpu()
            for start in range(0, shape[0], self.batch_size)
        ]
        return torch.cat(parts)

    def check(self, diffusion: GaussianDiffusion) -> None:
        """Raises ValueError for what this process does not sample; no network is called."""
        sample(
            lambda x, t: x,
            diffusion,
            (1, 1),
            steps=self.steps,
            spacing=self.spacing,
            eta=self.eta,
            generator=torch.Generator(),
        )

    def describe(self, diffusion: GaussianDiffusion) -> Record:
        return {
            "steps": self.steps,
            "of": diffusion.T,
            "spacing": self.spacing,
            "eta": self.eta,
            "variance": diffusion.variance,
            "prediction": diffusion.prediction,
            "clip": list(CLIP) if self.clip else None,
            "batch_size": self.batch_size,
        }


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how to sample")
    group.add_argument(
        "--steps",
        type=common.whole_number(1),
        metavar="S",
        help="network calls for each sample; if not given, the whole chain, T. Fewer are faster "
        "and coarser, and need --spacing",
    )
    group.add_argument(
        "--spacing",
        choices=SPACINGS,
        help="which S of the T steps to visit: evenly, with the last (trailing) or the first "
        "(leading) or both (linspace); denser near the data (quadratic); evenly in log "
        "signal-to-noise (log-snr). trailing is the usual one",
    )
    group.add_argument(
        "--eta",
        type=common.number(0, 1),
        default=1.0,
        metavar="ETA",
        help="how much fresh noise each step adds: 1 is DDPM (the default), 0 is DDIM, which adds "
        "none and is the better choice where S is small",
    )
    group.add_argument(
        "--variance",
        choices=("posterior", "beta"),
        help="of a step: the posterior's, β̃_t, or β_t, the larger; DDPM found them alike at "
        "T = 1000. If not given, the one that the model was trained with",
    )
    group.add_argument(
        "--no-clip",
        action="store_true",
        help="do not clip the predicted image to [-1, 1] at each step; DDPM clips",
    )
    group.add_argument(
        "--batch-size",
        type=common.whole_number(1),
        default=256,
        metavar="N",
        help="samples at a time (%(default)s): a matter of memory, but also of which random "
        "numbers a sample gets",
    )


def recipe_from(given: argparse.Namespace, diffusion: GaussianDiffusion) -> Recipe:
    """Raises Refused if the steps and the spacing do not belong together."""
    steps = diffusion.T if given.steps is None else given.steps
    if steps > diffusion.T:
        raise Refused(f"--steps must be at most T = {diffusion.T}, got {steps}.")
    if steps < diffusion.T and given.spacing is None:
        raise Refused(
            f"{steps} of T = {diffusion.T} steps need --spacing ({', '.join(SPACINGS)}): which "
            "steps are visited changes the samples."
        )
    return Recipe(steps, given.spacing, given.eta, not given.no_clip, given.batch_size)


def diffusion_from(given: argparse.Namespace, model: Model) -> GaussianDiffusion:
    """The model's process, with another variance if one is asked for."""
    trained = model.diffusion
    if given.variance in (None, trained.variance):
        return trained
    if trained.variance == "learned":
        raise Refused(
            f"this model learned its variance, so --variance {given.variance} is not to be had."
        )
    return GaussianDiffusion(trained.schedule, trained.prediction, given.variance)


def image_shape(model: Model, count: int) -> tuple[int, ...]:
    config = model.network.config
    return (count, config.in_channels, config.image_size, config.image_size)


def class_by_class(model: Model, count: int) -> Tensor | None:
    """Labels for `count` samples: each class in turn, 0, 1, …; None for a network without."""
    classes = model.network.config.num_classes
    return None if classes is None else torch.arange(count) % classes


def generator_for(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- the command --------------------------------------------------------------------------------


def main(arguments: list[str], prog: str) -> int:
    return common.run(_parser(prog), arguments, lambda given: _sample(given, prog, arguments))


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
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE.png", help="the picture to write"
    )
    parser.add_argument(
        "--raw",
        type=Path,
        metavar="FILE",
        help="also write the samples themselves, as .safetensors or .npz, under the name 'samples'",
    )
    parser.add_argument(
        "--columns", type=common.whole_number(1), metavar="N", help="of the picture (a square)"
    )
    parser.add_argument("--json", action="store_true", help="print the record instead of words")
    parser.add_argument("--overwrite", action="store_true", help="replace files of these names")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_recipe_options(parser)
    return parser


def _sample(given: argparse.Namespace, prog: str, arguments: list[str]) -> None:
    record_path = _check_outputs(given)
    with common.refusing():
        device = choose_device(given.device)
        model, weights = common.open_model(given.model, device)
        diffusion = diffusion_from(given, model)
        recipe = recipe_from(given, diffusion)
        shape = image_shape(model, given.n)
        recipe.check(diffusion)
    start = time.perf_counter()
    samples = recipe.draw(
        model.network,
        diffusion,
        shape,
        generator_for(given.seed),
        device=device,
        progress=not given.quiet,
    )
    seconds = time.perf_counter() - start
    record: Record = {
        **common.origin(prog, arguments),
        "model": {"name": given.model, "sha256": common.sha256_of(weights)},
        "sampling": recipe.describe(diffusion) | {"n": given.n, "seed": given.seed},
        "device": str(device),
        "seconds": round(seconds, 3),
        "files": {"picture": given.out.name} | ({"samples": given.raw.name} if given.raw else {}),
    }
    if given.raw:
        _write_raw(given.raw, samples, record)
    write_atomically(given.out, common.grid_png(samples, given.columns))
    common.write_json(record_path, record)  # last: where it is, the others are too
    if given.json:
        print(to_json(record).decode(), end="")
    else:
        files = [given.out, *([given.raw] if given.raw else []), record_path]
        print(f"{given.n} samples in {seconds:.1f} s: {', '.join(map(str, files))}")


def _check_outputs(given: argparse.Namespace) -> Path:
    """The path of the record, after a look at all that will be written."""
    if given.out.suffix != ".png":
        raise Refused(f"--out must end in .png, got {given.out}.")
    record_path: Path = given.out.with_suffix(".json")
    for path in (given.out, record_path, *([given.raw] if given.raw else [])):
        common.refuse_existing(path, given.overwrite)
    if given.raw and given.raw.suffix not in (".safetensors", ".npz"):
        raise Refused(f"--raw must end in .safetensors or .npz, got {given.raw}.")
    return record_path


def _write_raw(path: Path, samples: Tensor, record: Record) -> None:
    if path.suffix == ".safetensors":
        write_tensors(path, {"samples": samples}, record)
        return
    buffer = io.BytesIO()
    np.savez_compressed(buffer, samples=samples.numpy())
    write_atomically(path, buffer.getvalue())

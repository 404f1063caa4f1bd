"""`python -m ddpm_lite train`: from a folder of images to a model and its first samples."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ddpm_lite.commands import common
from ddpm_lite.commands.common import Refused, say
from ddpm_lite.commands.recipe import columns_for, every_class, image_shape, in_turn, whole_chain
from ddpm_lite.data import Dataset, load
from ddpm_lite.hardware import PRECISIONS, process_group
from ddpm_lite.objective import STEP_SAMPLING
from ddpm_lite.process import PREDICTIONS, VARIANCES, GaussianDiffusion
from ddpm_lite.schedule import NoiseSchedule
from ddpm_lite.storage import Model, Record, read_json, write_atomically
from ddpm_lite.training import Trainer, TrainingConfig
from ddpm_lite.unet import BLOCKS, PRESETS, UNet, UNetConfig

DESCRIPTION = """\
Train a diffusion model on images, and draw the first samples from it.

A network learns to tell the noise in a noisy image at every step of the chain (DDPM's Algorithm 1;
chapters 5 to 7 derive it). In the run's folder are, at the end,

  model.safetensors, model.json   the averaged weights: what `sample`, `evaluate`, `export` take
  metrics.jsonl                   the loss along the way, one JSON object a line
  samples.png, samples.json       samples of the finished model
  config.json, checkpoints/       what `--resume` needs

Ctrl-C finishes the current step, keeps a checkpoint and stops; even after a power cut the run goes
on from the last checkpoint:

  python -m ddpm_lite train --data digits --out runs/digits
  python -m ddpm_lite train --resume --out runs/digits
  torchrun --nproc_per_node=2 -m ddpm_lite train --data digits --out runs/digits
"""

# What is usual for each preset. The paper's settings for CIFAR-10 are those of ddpm-cifar10.
_PAPER = {"batch_size": 128, "learning_rate": 2e-4, "warmup_steps": 5000, "ema_decay": 0.9999}
USUAL: dict[str, dict[str, Any]] = {
    name: {"steps": None, "horizontal_flip": False, **_PAPER} for name in PRESETS
}
USUAL["ddpm-cifar10"] |= {"steps": 800_000, "horizontal_flip": True}
USUAL["digits"] |= {  # what the model that comes with the book was trained with
    "steps": 8000,
    "batch_size": 64,
    "learning_rate": 2e-3,
    "warmup_steps": 100,
    "ema_decay": 0.999,
    "step_sampling": "stratified",
    "dropout": 0.1,
}

USUAL["glyphs"] |= {  # for minutes on a GPU, where bf16 is at home
    "steps": 6000,
    "batch_size": 256,
    "learning_rate": 1e-3,
    "warmup_steps": 500,
    "ema_decay": 0.999,
    "step_sampling": "stratified",
    "dropout": 0.1,
}

LABEL_DROPOUT = 0.1  # with classes; Ho and Salimans, arXiv 2207.12598, tried 0.1, 0.2 and 0.5
MOST_SIGNAL_LEFT = 0.02  # ᾱ_T; DDPM's is 0.00004
NETWORK_SEED = 1_000_003  # added to the seed: the weights' numbers are not to be the noise's too
GIVEN_ON_RESUME = {"out", "resume", "data", "steps", "device", "samples", "quiet"}


def main(arguments: list[str], prog: str) -> int:
    return common.run(_parser(prog), arguments, lambda given: _train(given, prog, arguments))


# ---- options ------------------------------------------------------------------------------------


def _parser(prog: str) -> common.Parser:
    parser = common.Parser(prog, "--data DATA --out FOLDER [options]", DESCRIPTION)
    _add_run_options(parser)
    _add_network_options(parser)
    _add_process_options(parser)
    _add_training_options(parser)
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what, where to, on what")
    group.add_argument(
        "--data",
        metavar="DATA",
        help="digits (1,442 handwritten digits, 8×8, which come with the book), glyphs (20,412 "
        "printed digits and capitals, 32×32, which it draws: for a GPU), or a folder: of PNG and "
        "JPEG files; of MNIST's or Fashion-MNIST's idx files, packed or not; of CIFAR-10's binary "
        "version (data_batch_1.bin, …). Labels are used with --class-conditional only",
    )
    common.add_image_options(group)
    group.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="the run's folder; new or empty"
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --out. Its settings stay as they are; only --steps (the new "
        "total), --device, --samples, --quiet and --data (if the images were moved) may be given",
    )
    group.add_argument(
        "--device",
        type=common.device_name,
        metavar="DEVICE",
        help="cpu, cuda, cuda:1, …; if not given, a GPU if there is one",
    )
    group.add_argument(
        "--samples",
        type=common.whole_number(0),
        metavar="N",
        help="in samples.png, at the end (64). Each takes T calls of the network; 0: no picture",
    )
    group.add_argument("--quiet", action="store_true", help="no report and no progress bar")


def _add_network_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the network (chapter 6)")
    group.add_argument(
        "--preset",
        choices=PRESETS,
        help="the U-Net to start from; its image size and channels become those of the data. If "
        "not given, the one that is made for images like these. ddpm-cifar10 is the paper's, with "
        "35.7 million weights: for a GPU",
    )
    group.add_argument(
        "--base-channels", type=common.whole_number(4), metavar="C", help="width at full resolution"
    )
    group.add_argument(
        "--channel-multipliers",
        type=common.whole_numbers,
        metavar="1,2,2",
        help="width of each level over C; as many levels as numbers, each half the resolution of "
        "the one before, so the image size must be divisible by 2 once less often",
    )
    group.add_argument(
        "--blocks-per-level", type=common.whole_number(1), metavar="N", help="residual blocks"
    )
    group.add_argument(
        "--attention-resolutions",
        type=common.whole_numbers,
        metavar="16,8",
        help="pixels a side at which blocks are followed by attention, or none; its cost grows "
        "with the fourth power of the resolution",
    )
    group.add_argument("--block", choices=BLOCKS, help="kind of residual block")
    group.add_argument(
        "--class-conditional",
        action="store_true",
        default=None,
        help="give the network each image's class too, so that `sample --class` can ask for one "
        "(chapter 8); the data must have classes: a folder's sub-folders, or a data set's labels",
    )
    group.add_argument(
        "--dropout",
        type=common.number(0, 0.9),
        metavar="P",
        help="while training, against overfitting: 0.1 for digits, glyphs and, as the paper, for "
        "ddpm-cifar10, else 0",
    )


def _add_process_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the chain (chapters 2 to 5)")
    group.add_argument(
        "--T", type=common.whole_number(2), metavar="T", help="steps of the chain (1000, as DDPM)"
    )
    group.add_argument(
        "--schedule",
        choices=("linear", "cosine"),
        help="of the noise: linear is DDPM's, β from 0.0001 to 0.02, made for T = 1000 (the "
        "default); cosine is Improved DDPM's, gentler at both ends, for any T",
    )
    group.add_argument(
        "--prediction",
        choices=PREDICTIONS,
        help="what the network tells: the noise (eps, DDPM's and the default), the image (x0) or "
        "the velocity (v); section 4.12 translates",
    )
    group.add_argument(
        "--variance",
        choices=VARIANCES,
        help="of a reverse step: the posterior's (the default), β_t (beta), or learned by the "
        "network, which Improved DDPM does for better likelihoods",
    )


def _add_training_options(parser: argparse.ArgumentParser) -> None:
    digits, glyphs = USUAL["digits"], USUAL["glyphs"]
    group = parser.add_argument_group("training (chapter 7)")
    group.add_argument(
        "--steps",
        type=common.whole_number(1),
        metavar="N",
        help=f"optimiser steps: {digits['steps']:,} for digits, ten minutes on two cores; "
        f"{glyphs['steps']:,} for glyphs; 800,000 for ddpm-cifar10, as the paper; to be given for "
        "any other preset",
    )
    group.add_argument(
        "--batch-size",
        type=common.whole_number(1),
        metavar="B",
        help=f"images a step: {digits['batch_size']} for digits, {glyphs['batch_size']} for "
        "glyphs, else the paper's 128",
    )
    group.add_argument(
        "--learning-rate",
        "--lr",
        type=common.number(0, open_below=True),
        metavar="RATE",
        help=f"AdamW's learning rate: {digits['learning_rate']:g} for digits, "
        f"{glyphs['learning_rate']:g} for glyphs, else the paper's 0.0002",
    )
    group.add_argument(
        "--warmup-steps",
        type=common.whole_number(0),
        metavar="N",
        help=f"steps over which the rate rises from 0: {digits['warmup_steps']} for digits, "
        f"{glyphs['warmup_steps']} for glyphs, else the paper's 5000",
    )
    group.add_argument(
        "--weight-decay", type=common.number(0), metavar="W", help="AdamW's (0, as the paper)"
    )
    group.add_argument(
        "--clip-norm",
        type=common.number(0, open_below=True),
        metavar="G",
        help="shorten gradients longer than this (1, as the paper)",
    )
    group.add_argument(
        "--ema-decay",
        type=common.number(0, 0.999999),
        metavar="D",
        help=f"decay of the averaged weights, which are kept: {digits['ema_decay']} for digits "
        "and glyphs, else the paper's 0.9999; it averages over about 1/(1-D) steps",
    )
    group.add_argument(
        "--horizontal-flip",
        action=argparse.BooleanOptionalAction,
        help="mirror half of the images left to right: right for most photographs, wrong for "
        "anything with writing in it",
    )
    group.add_argument(
        "--label-dropout",
        type=common.number(0, 0.999),
        metavar="P",
        help="with --class-conditional: the share of labels that are withheld, so that the network "
        f"learns to do without, as guidance needs ({LABEL_DROPOUT})",
    )
    group.add_argument(
        "--step-sampling",
        choices=STEP_SAMPLING,
        help="how t is drawn: uniform (the paper's), or with the same expectation and less "
        "variance of the loss: antithetic, stratified (the default for digits and glyphs)",
    )
    group.add_argument(
        "--hybrid-weight",
        type=common.number(0, open_below=True),
        metavar="W",
        help="with --variance learned: weight of the bound beside the loss (0.001)",
    )
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of the network's products: auto (the default) is bf16 where the hardware computes "
        "with it, and says so",
    )
    group.add_argument(
        "--channels-last",
        action="store_true",
        default=None,
        help="images as (B, H, W, C) in memory: faster on a GPU with bf16",
    )
    group.add_argument(
        "--compile",
        action="store_true",
        default=None,
        help="torch.compile: a slow start, then faster on a GPU",
    )
    group.add_argument("--seed", type=common.SEED, help="of all random numbers (0)")
    group.add_argument(
        "--log-every", type=common.whole_number(1), metavar="N", help="steps between records (100)"
    )
    group.add_argument(
        "--checkpoint-every",
        type=common.whole_number(1),
        metavar="N",
        help="steps between checkpoints (1000): this much work is at stake",
    )


# ---- the command --------------------------------------------------------------------------------


def _train(given: argparse.Namespace, prog: str, arguments: list[str]) -> None:
    with common.refusing():
        dataset, build = _resumed(given) if given.resume else _new(given)
    # joined only now: a process that is refused must not leave others waiting for it
    with process_group(given.device):
        with common.refusing():
            trainer = build()
        if not given.quiet:
            say(f"images     {dataset}\n{trainer.report()}")
        target = max(given.steps or trainer.config.steps, trainer.step)
        try:
            trainer.run(target, progress=not given.quiet)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f" after step {trainer.step:,}; `{prog} --resume --out {given.out}` goes on"
            ) from None
        if common.speaks():
            _finish(given, trainer, prog, arguments)


def _new(given: argparse.Namespace) -> tuple[Dataset, Callable[[], Trainer]]:
    """Check all of the request that can be checked now: the data, and what builds the trainer."""
    if given.data is None:
        raise Refused("--data is missing: digits, glyphs, or a folder of images.")
    _refuse_used_folder(given.out)
    dataset = load(given.data, "train", size=given.size, channels=given.channels)
    preset = given.preset or _preset_for(dataset)
    diffusion = _diffusion(given)
    config = _network_config(given, preset, dataset, diffusion)
    settings = _training_config(given, preset, dataset, diffusion)
    about = {
        "data": given.data,
        "data_options": {"size": given.size, "channels": given.channels},
        "levels": dataset.levels,
        "preset": preset,
    }
    if config.num_classes is not None:
        about["classes"] = list(dataset.classes)
    return dataset, lambda: Trainer(
        UNet(config, torch.Generator().manual_seed(settings.seed + NETWORK_SEED)),
        diffusion,
        dataset.images,
        settings,
        labels=None if config.num_classes is None else dataset.labels,
        folder=given.out,
        device=given.device,
        about=about,
    )


def _resumed(given: argparse.Namespace) -> tuple[Dataset, Callable[[], Trainer]]:
    fixed = [
        name
        for name, value in vars(given).items()
        if name not in GIVEN_ON_RESUME and value is not None
    ]
    if fixed:
        raise Refused(
            f"--resume goes on with the settings in {given.out}: --{fixed[0].replace('_', '-')} "
            "cannot be changed, only --steps, --device, --samples, --quiet and --data."
        )
    if not (given.out / "config.json").is_file():
        raise Refused(f"there is no run in {given.out} to go on with: it holds no config.json.")
    about = read_json(given.out / "config.json").get("run", {}).get("about", {})
    if "data" not in about:
        raise Refused(f"the run in {given.out} was not begun by this command.")
    dataset = load(given.data or about["data"], "train", **about.get("data_options", {}))
    labels = dataset.labels if "classes" in about else None
    return dataset, lambda: Trainer.resume(
        given.out, dataset.images, labels=labels, device=given.device
    )


def _finish(given: argparse.Namespace, trainer: Trainer, prog: str, arguments: list[str]) -> None:
    """The picture, and where everything is."""
    count = 64 if given.samples is None else given.samples
    lines = {
        "model": f"{given.out / 'model.safetensors'}: `sample --model {given.out}` draws from it",
        "loss": f"{given.out / 'metrics.jsonl'}",
    }
    if count:
        recipe = whole_chain(trainer.diffusion)
        model = Model(trainer.ema, trainer.diffusion, trainer.about)
        samples = recipe.draw(
            trainer.ema,
            trainer.diffusion,
            image_shape(model, count),
            torch.Generator().manual_seed(trainer.config.seed),
            y=in_turn(every_class(model), count),
            progress=not given.quiet,
        )
        record: Record = {
            **common.origin(prog, arguments),
            "model": {"sha256": common.sha256_of(given.out / "model.safetensors")},
            "sampling": recipe.describe(trainer.diffusion)
            | {"n": count, "seed": trainer.config.seed},
            "files": {"picture": "samples.png"},
        }
        picture = common.grid_png(samples, columns_for(every_class(model), count))
        write_atomically(given.out / "samples.png", picture)
        common.write_json(given.out / "samples.json", record)
        lines["samples"] = str(given.out / "samples.png")
    if not given.quiet:
        say(common.table(lines))


def _refuse_used_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise Refused(f"{out} is a file; the run needs a folder.")
    if (out / "config.json").exists():
        raise Refused(f"{out} holds a run already: --resume goes on with it.")
    if out.is_dir() and any(out.iterdir()):
        raise Refused(f"{out} is not empty: name a new folder.")


# ---- settings -----------------------------------------------------------------------------------


def _preset_for(dataset: Dataset) -> str:
    """The preset made for images of this shape, the smallest if there are several."""
    _, channels, height, width = dataset.images.shape
    for name, config in PRESETS.items():
        if (config.in_channels, config.image_size) == (channels, height) and height == width:
            return name
    raise Refused(
        f"no preset is made for {height}×{width} images with {channels} channels: say --preset, "
        "and what of it to change (--channel-multipliers, --attention-resolutions, …)."
    )


def _diffusion(given: argparse.Namespace) -> GaussianDiffusion:
    make = NoiseSchedule.cosine if given.schedule == "cosine" else NoiseSchedule.linear
    schedule = make(given.T or 1000)
    left = schedule.alpha_bar[-1].item()
    if left > MOST_SIGNAL_LEFT:
        raise Refused(
            f"after T = {schedule.T} steps of the linear schedule {left:.0%} of the image's "
            "variance is still there, and sampling starts from pure noise: say --schedule cosine, "
            "which fits any T."
        )
    return GaussianDiffusion(schedule, given.prediction or "eps", given.variance or "posterior")


def _network_config(
    given: argparse.Namespace, preset: str, dataset: Dataset, diffusion: GaussianDiffusion
) -> UNetConfig:
    """The preset with what was asked for, fitted to the data."""
    _, channels, height, width = dataset.images.shape
    if height != width:
        raise Refused(f"the network takes square images, these are {height}×{width}: say --size.")
    if given.class_conditional and not dataset.classes:
        raise Refused(f"--class-conditional needs classes, and {dataset.name} has none.")
    outputs = 2 * channels if diffusion.variance == "learned" else channels
    fitted: dict[str, Any] = {
        "image_size": height,
        "in_channels": channels,
        "out_channels": outputs,
        "num_classes": len(dataset.classes) if given.class_conditional else None,
    }
    config = dataclasses.replace(PRESETS[preset], **fitted, **_settings(given, preset, UNetConfig))
    narrowest = config.base_channels * min(config.channel_multipliers) * config.width_factor
    if config.time_conditioning == "add" and narrowest <= config.norm_groups:
        # group normalisation takes away what is added to all pixels of a channel alike
        raise Refused(
            f"--base-channels must be above {config.norm_groups}, got {config.base_channels}: with "
            "one channel to a group the network cannot see the step (chapter 6, exercise 6.6)."
        )
    return config


def _training_config(
    given: argparse.Namespace, preset: str, dataset: Dataset, diffusion: GaussianDiffusion
) -> TrainingConfig:
    """What is usual for the preset, with what was asked for."""
    settings = {"seed": 0, **_settings(given, preset, TrainingConfig)}
    if settings["steps"] is None:
        raise Refused("--steps is missing: how long to train has no usual value for these images.")
    if given.class_conditional:
        settings = {"label_dropout": LABEL_DROPOUT, **settings}
    elif given.label_dropout is not None:
        raise Refused("--label-dropout is for --class-conditional: without it no labels are used.")
    if diffusion.variance == "learned":
        settings = {"hybrid_weight": 0.001, **settings, "levels": dataset.levels}
    return TrainingConfig(**settings)


def _settings(given: argparse.Namespace, preset: str, config: type) -> dict[str, Any]:
    """Those of this configuration that are usual for the preset, or were asked for."""
    names = {field.name for field in dataclasses.fields(config)}
    asked = {name: value for name, value in vars(given).items() if value is not None}
    return {name: value for name, value in {**USUAL[preset], **asked}.items() if name in names}

"""`python -m ddpm_lite info`: what is in a model, and how far a run has come."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ddpm_lite.commands import common
from ddpm_lite.process import GaussianDiffusion
from ddpm_lite.runs import checkpoints
from ddpm_lite.schedule import NoiseSchedule
from ddpm_lite.storage import Model, Record, read_json, to_json
from ddpm_lite.unet import PRESETS, UNetConfig, count_parameters

DESCRIPTION = """\
Say what is in a model, or how far a run has come.

  python -m ddpm_lite info --model digits
  python -m ddpm_lite info --model runs/digits --json
"""


def main(arguments: list[str], prog: str) -> int:
    return common.run(_parser(prog), arguments, _info)


def _parser(prog: str) -> common.Parser:
    parser = common.Parser(prog, "--model MODEL [--json]", DESCRIPTION)
    common.add_model_option(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, with every setting")
    return parser


def _info(given: argparse.Namespace) -> None:
    folder = common.model_folder(given.model)
    record: Record = {}
    with common.refusing():
        run = _describe_run(folder)
        if run is None or (folder / "model.safetensors").is_file():
            model, weights = common.open_model(given.model)
            record |= _describe_model(model, weights)
        if run is not None:
            record["run"] = run
    if given.json:
        print(to_json(record).decode(), end="")
    else:
        print(common.table(_in_words(record)))


# ---- a model ------------------------------------------------------------------------------------


def _describe_model(model: Model, weights: Path) -> Record:
    return {
        "file": str(weights),
        "bytes": weights.stat().st_size,
        "sha256": common.sha256_of(weights),
        "parameters": count_parameters(model.network),
        "preset": _preset_of(model.network.config),
        "network": model.network.config.to_dict(),
        "diffusion": _describe_diffusion(model.diffusion),
        "about": model.about,
    }


def _describe_diffusion(diffusion: GaussianDiffusion) -> Record:
    schedule = diffusion.schedule
    return {
        "T": diffusion.T,
        "schedule": _name_of(schedule),
        "alpha_bar_T": schedule.alpha_bar[-1].item(),
        "beta_1": schedule.beta[1].item(),
        "beta_T": schedule.beta[-1].item(),
        "prediction": diffusion.prediction,
        "variance": diffusion.variance,
    }


def _name_of(schedule: NoiseSchedule) -> str | None:
    """The usual schedule that this one is, if it is one; a model file holds only its numbers."""
    for name, make in (("linear", NoiseSchedule.linear), ("cosine", NoiseSchedule.cosine)):
        usual = make(schedule.T)
        if schedule.log_alpha_bar.allclose(usual.log_alpha_bar, rtol=1e-6, atol=1e-12):
            return name
    return None


def _preset_of(config: UNetConfig) -> str | None:
    return next((name for name, preset in PRESETS.items() if preset == config), None)


# ---- a run --------------------------------------------------------------------------------------


def _describe_run(folder: Path) -> Record | None:
    """How far a run has come, from what it has written so far; None if this is not a run."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    config = read_json(path)
    if "run" not in config:
        return None  # diffusers calls its own settings so, too
    kept = [int(found.stem.removeprefix("step-")) for found in checkpoints(folder)]
    return {
        "steps": config["run"]["training"]["steps"],
        "checkpoints": kept,
        "last_record": _last_record(folder / "metrics.jsonl"),
        "chosen": config.get("chosen"),
        "settings": config["run"]["training"],
        "about": config["run"].get("about"),
    }


def _last_record(path: Path) -> Any:
    """The last whole line: the run may be writing the next one at this moment."""
    if not path.is_file():
        return None
    for line in reversed(path.read_text(encoding="utf-8").splitlines()):
        try:
            return json.loads(line)
        except ValueError:
            continue
    return None


# ---- for people ---------------------------------------------------------------------------------


def _in_words(record: Record) -> dict[str, str]:
    rows = {}
    if "file" in record:
        rows["file"] = f"{record['file']}, {record['bytes'] / 1e6:.1f} MB"
        rows["sha256"] = record["sha256"]
        rows["network"] = _network_in_words(record)
        rows["chain"] = _chain_in_words(record["diffusion"])
        rows |= _about_in_words(record["about"])
    if "run" in record:
        rows["run"] = _run_in_words(record["run"])
    return rows


def _network_in_words(record: Record) -> str:
    network = record["network"]
    shape = f"{network['image_size']}×{network['image_size']}"
    words = f"U-Net, {record['parameters']:,} parameters, {shape} with {network['in_channels']} "
    words += f"channel{'s' * (network['in_channels'] != 1)}, widths {network['base_channels']} × "
    words += f"{tuple(network['channel_multipliers'])}"
    if network.get("num_classes"):
        words += f", {network['num_classes']} classes"
    return words + (f"; the preset {record['preset']}" if record["preset"] else "")


def _chain_in_words(chain: Record) -> str:
    name = f"{chain['schedule']} schedule" if chain["schedule"] else "a schedule of its own"
    return (
        f"T = {chain['T']}, {name} (β from {chain['beta_1']:.3g} to {chain['beta_T']:.3g}, "
        f"ᾱ_T = {chain['alpha_bar_T']:.3g}), predicts {chain['prediction']}, "
        f"variance {chain['variance']}"
    )


def _about_in_words(about: Record) -> dict[str, str]:
    rows = {}
    if "data" in about:
        levels = f", {about['levels']} levels" if about.get("levels") else ""
        rows["data"] = f"{about['data']}{levels}"
    if "classes" in about:
        rows["classes"] = ", ".join(about["classes"])
    training = about.get("training")
    if training:
        settings = training.get("settings", {})
        rows["training"] = (
            f"{training['steps']:,} steps of {settings.get('batch_size')}, learning rate "
            f"{settings.get('learning_rate'):g}, seed {settings.get('seed')}, "
            f"{training.get('precision')} on {training.get('device')}"
        )
        if settings.get("label_dropout"):
            rows["training"] += f", {settings['label_dropout']:.0%} of the labels withheld"
        if training.get("last_record"):
            rows["loss"] = f"{training['last_record']['loss']:.4f} (last record)"
    return rows


def _run_in_words(run: Record) -> str:
    last = run["last_record"]
    at = f"step {last['step']:,}" if last else "nothing recorded yet"
    words = f"{at} of {run['steps']:,}"
    if last:
        words += f", loss {last['loss']:.4f}, {last['images_per_second']:.0f} images/s"
    kept = ", ".join(f"{step:,}" for step in run["checkpoints"]) or "none"
    return f"{words}; checkpoints at {kept}"

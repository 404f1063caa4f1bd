"""`python -m ddpm_lite evaluate`: a model against images that it has not seen."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from torch import Tensor

from ddpm_lite.commands import common, sample
from ddpm_lite.commands.common import Refused
from ddpm_lite.data import Dataset, load
from ddpm_lite.hardware import choose_device
from ddpm_lite.metrics import FEWEST_GENERATIONS, FeatureMap, Report, classifier, evaluate
from ddpm_lite.objective import bits_per_dim
from ddpm_lite.process import GaussianDiffusion
from ddpm_lite.runs import describe_data
from ddpm_lite.storage import Model, Record, to_json

DESCRIPTION = """\
Measure a model by the honest protocol (section T.12, in the toolbox, explains it).

Several independent generations are compared with images held out from training, as many in each as
are held out. Beside the distance stands its floor: real training images in the same comparison.
Intervals come from the generations and from disjoint subsets. A model whose samples lie nearer to
the training images than held-out images do is reported as memorising.

  python -m ddpm_lite evaluate --model digits --out evaluation.json

Most of the time goes into sampling: five times 355 digits of 1,000 steps each take some ten minutes
on two cores, and --steps 100 --spacing trailing a tenth of that, for another sampler's result.

Held out are every fifth digit, the test files of MNIST and CIFAR-10, and every tenth image of a
folder. The distance is Fréchet's, in the 24 features of a small classifier for the digits, for
other images in their first 24 principal components: it cannot be compared with published FIDs,
nor with that of other data.
"""

COMPONENTS = 24  # as many as the classifier has features
MOST_HELD_OUT = 1000  # if --n does not say otherwise


def main(arguments: list[str], prog: str) -> int:
    return common.run(_parser(prog), arguments, lambda given: _evaluate(given, prog, arguments))


def _parser(prog: str) -> common.Parser:
    parser = common.Parser(
        prog, "--model MODEL [--data DATA] [--out FILE.json] [options]", DESCRIPTION
    )
    common.add_model_option(parser)
    common.add_device_option(parser)
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="digits, or a folder of images as for `train`; if not given, what the model was "
        "trained on",
    )
    common.add_image_options(parser)
    parser.add_argument(
        "--generations",
        type=common.whole_number(FEWEST_GENERATIONS),
        default=FEWEST_GENERATIONS,
        metavar="R",
        help="independent sets of samples (%(default)s, which is the least that gives an interval)",
    )
    parser.add_argument(
        "--n",
        type=common.whole_number(COMPONENTS + 1),
        metavar="N",
        help="images in each set: this many of the held-out ones, evenly spaced in their order. "
        f"If not given, all of them, but at most {MOST_HELD_OUT}",
    )
    parser.add_argument(
        "--bits",
        type=common.whole_number(2),
        metavar="N",
        help="also the variational bound in bits per dimension, on N held-out images. It takes T "
        "calls of the network for each",
    )
    parser.add_argument(
        "--seed",
        type=common.SEED,
        default=0,
        help="of all random numbers (%(default)s); generation i is drawn with seed + i",
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the result there")
    parser.add_argument("--json", action="store_true", help="print JSON instead of words")
    parser.add_argument("--overwrite", action="store_true", help="replace --out")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    sample.add_recipe_options(parser)
    return parser


# ---- the command --------------------------------------------------------------------------------


def _evaluate(given: argparse.Namespace, prog: str, arguments: list[str]) -> None:
    if given.out:
        if given.out.suffix != ".json":
            raise Refused(f"--out must end in .json, got {given.out}.")
        common.refuse_existing(given.out, given.overwrite)
    with common.refusing():
        device = choose_device(given.device)
        model, weights = common.open_model(given.model, device)
        diffusion = sample.diffusion_from(given, model)
        recipe = sample.recipe_from(given, diffusion)
        recipe.check(diffusion)
        train, heldout = _data(given, model)
        chosen = _chosen(given, train, heldout)
        features, feature_name = _features(train)
    start = time.perf_counter()
    generations = [
        recipe.draw(
            model.network,
            diffusion,
            tuple(chosen.shape),
            sample.generator_for(given.seed + i),
            device=device,
            progress=not given.quiet,
        )
        for i in range(given.generations)
    ]
    report = evaluate(
        generations,
        train.images,
        chosen,
        levels=train.levels,
        generator=sample.generator_for(given.seed + given.generations),
        classifier=features,
        classes=max(1, len(train.classes)) if feature_name == "classifier" else 1,
    )
    record: Record = {
        **common.origin(prog, arguments),
        "model": {"name": given.model, "sha256": common.sha256_of(weights)},
        "data": {
            "name": train.name,
            "trained_on_these": _trained_on(model, train),
            "train": len(train.images),
            "held_out": len(heldout.images),
            "compared": len(chosen),
        },
        "sampling": recipe.describe(diffusion) | {"seed": given.seed},
        "features": feature_name,
        "report": _without_classes(report) if feature_name != "classifier" else report.to_dict(),
    }
    if given.bits:
        record["bits_per_dim"] = _bits(given, model, diffusion, heldout, recipe.clip, device)
    record["seconds"] = round(time.perf_counter() - start, 1)
    record["device"] = str(device)
    if given.out:
        common.write_json(given.out, record)
    print(to_json(record).decode() if given.json else _in_words(record, report, given), end="")


def _data(given: argparse.Namespace, model: Model) -> tuple[Dataset, Dataset]:
    """Training and held-out images, of the shape that the model makes."""
    spec = given.data or model.about.get("data")
    if spec is None:
        raise Refused("--data is missing, and the model does not say what it was trained on.")
    trained = {} if spec == "digits" else model.about.get("data_options", {})
    options = {
        name: trained.get(name) if getattr(given, name) is None else getattr(given, name)
        for name in ("size", "channels")
    }
    train, heldout = (load(spec, split, **options) for split in ("train", "heldout"))
    wanted = sample.image_shape(model, 1)[1:]
    if tuple(train.images.shape[1:]) != wanted:
        raise Refused(
            f"the model makes images {wanted}, and those of {spec} are "
            f"{tuple(train.images.shape[1:])}."
        )
    return train, heldout


def _chosen(given: argparse.Namespace, train: Dataset, heldout: Dataset) -> Tensor:
    """The held-out images to compare with, evenly spaced."""
    there = len(heldout.images)
    count = given.n or min(there, MOST_HELD_OUT)
    if count > there:
        raise Refused(f"--n must be at most the {there} images held out, got {count}.")
    if count <= COMPONENTS or len(train.images) < 2 * count:
        raise Refused(
            f"the protocol compares {COMPONENTS + 1} held-out images or more, and needs twice as "
            f"many to train on; of {train.name} {there} are held out and {len(train.images)} are "
            "for training."
        )
    return heldout.images[torch.arange(count) * there // count]


def _trained_on(model: Model, train: Dataset) -> bool | None:
    """Whether these are the images that the model was trained on; None if it does not say."""
    known = model.about.get("training", {}).get("data", {}).get("sha256")
    return None if known is None else bool(known == describe_data(train.images, None)["sha256"])


def _bits(
    given: argparse.Namespace,
    model: Model,
    diffusion: GaussianDiffusion,
    heldout: Dataset,
    clip: bool,
    device: torch.device,
) -> Record:
    """Mean and standard error over images."""
    count = min(given.bits, len(heldout.images))
    images = heldout.images[torch.arange(count) * len(heldout.images) // count]
    bits = bits_per_dim(
        model.network,
        diffusion,
        images.to(device),
        levels=heldout.levels,
        generator=sample.generator_for(given.seed),
        clip=sample.CLIP if clip else None,
        batch_size=given.batch_size,
        progress=not given.quiet,
    )
    return {
        "images": count,
        "levels": heldout.levels,
        "mean": bits.mean().item(),
        "standard_error": (bits.std() / math.sqrt(count)).item(),
    }


# ---- features -----------------------------------------------------------------------------------


class PrincipalComponents:
    """An image's coordinates along the directions in which the training images vary most.

    Each is scaled to variance 1 over the training images. There are no classes to predict, so all
    images are in one.
    """

    def __init__(self, images: Tensor, count: int) -> None:
        rows = images.flatten(1)
        self.mean = rows.double().mean(0)
        covariance = torch.zeros(2 * [rows.shape[1]], dtype=torch.float64)
        for part in rows.split(1024):
            apart = part.double() - self.mean
            covariance += apart.T @ apart / len(rows)
        variance, direction = torch.linalg.eigh(covariance)  # ascending
        most = min(count, int((variance > 1e-9 * variance[-1]).sum()))
        self.direction = direction[:, -most:] / variance[-most:].sqrt()

    def features(self, images: Tensor) -> Tensor:
        parts = images.flatten(1).split(1024)
        return torch.cat([(part.double() - self.mean) @ self.direction for part in parts])

    def predict(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), dtype=torch.int64)


def _features(train: Dataset) -> tuple[FeatureMap, str]:
    if train.kind == "digits":
        return classifier(), "classifier"
    return PrincipalComponents(train.images, COMPONENTS), "principal components"


def _without_classes(report: Report) -> Record:
    return {name: x for name, x in report.to_dict().items() if not name.endswith("_shares")}


# ---- for people ---------------------------------------------------------------------------------


def _in_words(record: Record, report: Report, given: argparse.Namespace) -> str:
    lines = [report.summary()]
    if record["features"] == "classifier":
        shares = (report.class_shares, report.heldout_shares)
        lines += [
            f"{name} " + "  ".join(f"{share:5.1%}" for share in values)
            for name, values in zip(
                ("classes, generated", "classes, held out "), shares, strict=True
            )
        ]
    if "bits_per_dim" in record:
        bits = record["bits_per_dim"]
        lines.append(
            f"bits/dim          at most {bits['mean']:.3f} ± {bits['standard_error']:.3f} "
            f"({bits['images']} held-out images, {bits['levels']} levels)"
        )
    if record["data"]["trained_on_these"] is False:
        lines.append(
            "note: the model was trained on other images than these, so that it can hardly have "
            "memorised them"
        )
    lines.append(f"features: {record['features']}; {record['seconds']:.0f} s")
    if given.out:
        lines.append(f"written to {given.out}")
    return "\n".join(lines) + "\n"

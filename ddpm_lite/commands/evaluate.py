"""`python -m ddpm_lite evaluate`: a model against images that it has not seen."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ddpm_lite.commands import common, recipe
from ddpm_lite.commands.common import Refused
from ddpm_lite.data import Dataset, load
from ddpm_lite.hardware import choose_device
from ddpm_lite.metrics import (
    FEWEST_GENERATIONS,
    Estimate,
    FeatureMap,
    Report,
    class_histogram,
    classifier,
    evaluate,
    quantise,
)
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

A model with classes is asked for those of training images drawn at random, as the floor's are; for
the digits, the report says how often the classifier finds the class that was asked for. Guidance
(chapter 8) pays for that share with diversity: look at the distance and the recall, too.

  python -m ddpm_lite evaluate --model digits-conditional --guidance 1 --sampler ddim --steps 50 \\
      --spacing trailing
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
        help="also the variational bound in bits per dimension, on N held-out images, given their "
        "classes if the model knows any. It takes T calls of the network for each, and neither the "
        "sampler nor guidance plays a part",
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
    recipe.add_recipe_options(parser)
    recipe.add_guidance_options(parser).add_argument(
        "--class",
        dest="classes",
        choices=("none",),
        help="none: draw without classes. If not given, each generation has the classes of as many "
        "training images, drawn at random like the subsets of them that make the floor",
    )
    return parser


# ---- the command --------------------------------------------------------------------------------


def _evaluate(given: argparse.Namespace, prog: str, arguments: list[str]) -> None:
    _check_out(given)
    with common.refusing():
        device = choose_device(given.device)
        model, weights = common.open_model(given.model, device)
        diffusion = recipe.diffusion_from(given, model)
        way = recipe.recipe_from(given, model, diffusion, labelled=_labelled(given, model))
        train, heldout = _data(given, model)
        chosen = _chosen(given, train, heldout)
        labelled = _check_classes(given, model, train, heldout)
        network, features = _features(train)
    images = heldout.images[chosen]
    generators = [recipe.generator_for(given.seed + i) for i in range(given.generations)]
    asked = [_classes_like(train, len(images), g) for g in generators] if labelled else []
    start = time.perf_counter()
    draw = partial(way.draw, model.network, diffusion, tuple(images.shape), device=device)
    generations = [
        draw(generator, y=asked[i] if labelled else None, progress=not given.quiet)
        for i, generator in enumerate(generators)
    ]
    report = evaluate(
        generations,
        train.images,
        images,
        levels=train.levels,
        generator=recipe.generator_for(given.seed + given.generations),
        classifier=network,
        classes=max(1, len(train.classes)) if features == "classifier" else 1,
    )
    record: Record = {
        **common.origin(prog, arguments),
        "model": {"name": given.model, "sha256": common.sha256_of(weights)},
        "data": _describe_data(model, train, heldout, len(images)),
        "sampling": way.describe(diffusion) | {"seed": given.seed} | _classes(model, asked),
        "features": features,
        "report": report.to_dict() if features == "classifier" else _without_classes(report),
    }
    if labelled and features == "classifier":
        sets = [quantise(each, train.levels) for each in generations]
        record["accuracy"] = _accuracy(network, sets, asked, heldout, chosen)
    if given.bits:
        record["bits_per_dim"] = _bits(given, model, diffusion, heldout, labelled, device)
    record["seconds"] = round(time.perf_counter() - start, 1)
    record["device"] = str(device)
    if given.out:
        common.write_json(given.out, record)
    print(to_json(record).decode() if given.json else _in_words(record, report, given), end="")


def _check_out(given: argparse.Namespace) -> None:
    if given.out and given.out.suffix != ".json":
        raise Refused(f"--out must end in .json, got {given.out}.")
    if given.out:
        common.refuse_existing(given.out, given.overwrite)


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
    wanted = recipe.image_shape(model, 1)[1:]
    if tuple(train.images.shape[1:]) != wanted:
        raise Refused(
            f"the model makes images {wanted}, and those of {spec} are "
            f"{tuple(train.images.shape[1:])}."
        )
    return train, heldout


def _chosen(given: argparse.Namespace, train: Dataset, heldout: Dataset) -> Tensor:
    """The numbers of the held-out images to compare with, evenly spaced."""
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
    return torch.arange(count) * there // count


def _describe_data(model: Model, train: Dataset, heldout: Dataset, compared: int) -> Record:
    return {
        "name": train.name,
        "trained_on_these": _trained_on(model, train),
        "train": len(train.images),
        "held_out": len(heldout.images),
        "compared": compared,
    }


def _trained_on(model: Model, train: Dataset) -> bool | None:
    """Whether these are the images that the model was trained on; None if it does not say."""
    known = model.about.get("training", {}).get("data", {}).get("sha256")
    return None if known is None else bool(known == describe_data(train.images, None)["sha256"])


def _bits(
    given: argparse.Namespace,
    model: Model,
    diffusion: GaussianDiffusion,
    heldout: Dataset,
    labelled: bool,
    device: torch.device,
) -> Record:
    """Mean and standard error over images. With labels it is the bound on log p(x | class)."""
    count = min(given.bits, len(heldout.images))
    chosen = torch.arange(count) * len(heldout.images) // count
    bits = bits_per_dim(
        model.network,
        diffusion,
        heldout.images[chosen].to(device),
        levels=heldout.levels,
        generator=recipe.generator_for(given.seed),
        y=heldout.labels[chosen].to(device) if labelled and heldout.labels is not None else None,
        clip=None if given.no_clip else recipe.CLIP,
        batch_size=given.batch_size,
        progress=not given.quiet,
    )
    return {
        "images": count,
        "levels": heldout.levels,
        "given_classes": labelled,
        "mean": bits.mean().item(),
        "standard_error": (bits.std() / math.sqrt(count)).item(),
    }


# ---- classes ------------------------------------------------------------------------------------


def _labelled(given: argparse.Namespace, model: Model) -> bool:
    """Whether the samples are drawn with a class each."""
    if model.network.config.num_classes is None:
        if given.classes is not None:
            raise Refused("--class none is for a model with classes, and this one knows none.")
        return False
    if given.classes is not None:
        recipe.refuse_unlearned_null(model, "--class none")
    return given.classes is None


def _check_classes(
    given: argparse.Namespace, model: Model, train: Dataset, heldout: Dataset
) -> bool:
    """As `_labelled`; refuses images without classes, or with others than the model's."""
    if not _labelled(given, model):
        return False
    if train.labels is None or heldout.labels is None:
        raise Refused(
            f"samples are drawn in the images' classes, and {train.name} has none: --class none "
            "draws without."
        )
    names, known = recipe.class_names(model), "classes" in model.about
    if len(names) != len(train.classes) or (known and names != train.classes):
        raise Refused(
            f"the model's {len(names)} classes ({_few(names)}) are not the {len(train.classes)} "
            f"of {train.name} ({_few(train.classes)})."
        )
    return True


def _classes_like(train: Dataset, count: int, generator: torch.Generator) -> Tensor:
    """The labels of `count` training images at random, int64 (count,).

    So the subsets are made whose distance is the floor. With the held-out images' own labels
    samples would lie nearer to these than real images do: their classes could not be off by chance.
    """
    assert train.labels is not None
    return train.labels[torch.randperm(len(train.labels), generator=generator)[:count]]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + ", …" * (len(names) > 5)


def _classes(model: Model, asked: Sequence[Tensor]) -> Record:
    """How many of each class the generations hold together, for a model that has classes."""
    names = recipe.class_names(model)
    if not names:
        return {}
    if not asked:
        return {"classes": None}
    counts = class_histogram(torch.cat(list(asked)), len(names)).tolist()
    return {"classes": dict(zip(names, counts, strict=True))}


def _accuracy(
    network: FeatureMap,
    sets: Sequence[Tensor],
    asked: Sequence[Tensor],
    heldout: Dataset,
    chosen: Tensor,
) -> Record:
    """How often the classifier sees the class that was asked for, and a held-out image's own."""
    assert heldout.labels is not None
    pairs = zip(sets, asked, strict=True)
    shares = [_share(network.predict(images), labels) for images, labels in pairs]
    real = _share(network.predict(heldout.images[chosen]), heldout.labels[chosen])
    return asdict(Estimate.of(shares)) | {"real": real}


def _share(found: Tensor, asked: Tensor) -> float:
    return (found == asked).double().mean().item()


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
    if "accuracy" in record:
        right = record["accuracy"]
        lines.append(
            f"asked class       {right['mean']:.3f} [{right['low']:.3f}, {right['high']:.3f}]  "
            f"(the classifier finds it; in real images {right['real']:.3f})"
        )
    if "bits_per_dim" in record:
        bits = record["bits_per_dim"]
        lines.append(
            f"bits/dim          at most {bits['mean']:.3f} ± {bits['standard_error']:.3f} "
            f"({bits['images']} held-out images, {bits['levels']} levels"
            f"{', given their classes' * bits['given_classes']})"
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

"""How the commands sample: the options, what they may not say together, and the walks themselves.

`train`, `sample` and `evaluate` draw by a `Recipe`, so that the same words mean the same samples in
all three, and a record of one can be typed into another.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ddpm_lite.commands import common
from ddpm_lite.commands.common import Refused
from ddpm_lite.guidance import Guided, guided, scale_from_w
from ddpm_lite.process import GaussianDiffusion
from ddpm_lite.sampling import Denoiser, Walk, sample, solve
from ddpm_lite.schedule import SPACINGS
from ddpm_lite.storage import Model, Record

CLIP = (-1.0, 1.0)  # where images live
SAMPLERS = ("ddpm", "ddim", "heun", "dpmpp-2m")
MOST_COLUMNS = 20  # of a picture in which each class has its own

Watcher = Callable[[int, Tensor], None]  # called with a level and a batch's x there


# ---- a recipe -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance by the book's w; see `guided`, which says what each number is."""

    w: float
    interval: tuple[int, int] | None = None
    rescale: float | None = None

    def around(self, denoiser: Denoiser, diffusion: GaussianDiffusion) -> Guided:
        return guided(
            denoiser, self.w, interval=self.interval, rescale=self.rescale, diffusion=diffusion
        )

    def describe(self) -> Record:
        return {
            "w": self.w,
            "scale": scale_from_w(self.w),
            "interval": None if self.interval is None else list(self.interval),
            "rescale": self.rescale,
        }


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to walk from noise to images.

    sampler: one of SAMPLERS. eta: η, 1 for ddpm and 0 for heun and dpmpp-2m; ddim takes any.
    steps, spacing: as `ddpm_lite.sample` takes them. guidance: needs labels; None: no guidance.
    """

    sampler: str
    steps: int
    spacing: str | None
    eta: float
    clip: bool
    batch_size: int
    guidance: Guidance | None = None

    def walk(
        self,
        denoiser: Denoiser,
        diffusion: GaussianDiffusion,
        shape: tuple[int, ...],
        generator: torch.Generator,
        **settings: Any,
    ) -> Walk:
        """The walk of one batch. The settings are those that `sample` and `solve` share.

        Raises:
            ValueError: for what this process does not sample, before any network is called.
        """
        if self.guidance is not None:
            denoiser = self.guidance.around(denoiser, diffusion)
        settings |= {"steps": self.steps, "spacing": self.spacing, "generator": generator}
        settings["clip"] = CLIP if self.clip else None
        if self.eta == 0:  # the ODE: of a learned variance, too, only the prediction is needed
            return solve(denoiser, diffusion, shape, solver=self.sampler, **settings)
        return sample(denoiser, diffusion, shape, eta=self.eta, **settings)

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
        watch: Watcher | None = None,
    ) -> Tensor:
        """shape[0] samples on the CPU, in batches that follow one another in the random numbers.

        watch: called for each batch at each level of its walk, the first and the last included.
        """
        parts = []
        for start in range(0, shape[0], self.batch_size):
            count = min(self.batch_size, shape[0] - start)
            labels = None if y is None else y[start : start + count]
            size = (count, *shape[1:])
            walk = self.walk(
                denoiser, diffusion, size, generator, y=labels, device=device, progress=progress
            )
            if watch is not None:
                watch(walk.levels[0], walk.start)
                for state in walk:
                    watch(state.t, state.x)
            parts.append(walk.result().cpu())
        return torch.cat(parts)

    def rehearse(self, diffusion: GaussianDiffusion) -> Walk:
        """A walk of the same levels and calls that has no network in it.

        Raises:
            ValueError: for what this process does not sample.
        """
        return replace(self, guidance=None).walk(
            lambda x, t: x, diffusion, (1, 1), torch.Generator()
        )

    def describe(self, diffusion: GaussianDiffusion) -> Record:
        return {
            "sampler": self.sampler,
            "steps": self.steps,
            "of": diffusion.T,
            "spacing": self.spacing,
            "calls": self.rehearse(diffusion).calls,
            "eta": self.eta,
            "variance": diffusion.variance if self.eta > 0 else None,
            "prediction": diffusion.prediction,
            "clip": list(CLIP) if self.clip else None,
            "guidance": None if self.guidance is None else self.guidance.describe(),
            "batch_size": self.batch_size,
        }

    def calls_in_words(self, diffusion: GaussianDiffusion) -> str:
        calls = self.rehearse(diffusion).calls
        words = f"{calls:,} call{'s' * (calls != 1)} of the network each"
        if self.guidance is None or self.guidance.w == 0:
            return words
        where = " in the interval" if self.guidance.interval else ""
        return f"{words}, with the class and{where} without"


def whole_chain(diffusion: GaussianDiffusion) -> Recipe:
    """DDPM's Algorithm 2, as it stands."""
    return Recipe(
        sampler="ddpm", steps=diffusion.T, spacing=None, eta=1.0, clip=True, batch_size=256
    )


# ---- options ------------------------------------------------------------------------------------


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how to sample")
    group.add_argument(
        "--sampler",
        choices=SAMPLERS,
        help="ddpm draws fresh noise at each step (chapter 7; the default). ddim draws none, and "
        "is the better choice where S is small (chapter 9). heun and dpmpp-2m solve ddim's "
        "equation to second order (section 9.12), with two calls of the network a step and with "
        "one",
    )
    group.add_argument(
        "--steps",
        type=common.whole_number(1),
        metavar="S",
        help="of the walk, each a call of the network (two with heun, but for the last); if not "
        "given, the whole chain, T. Fewer are faster and coarser, and need --spacing",
    )
    group.add_argument(
        "--spacing",
        choices=SPACINGS,
        help="which S of the T steps to visit: evenly, with the last (trailing) or the first "
        "(leading) or both (linspace); denser near the data (quadratic); evenly in log "
        "signal-to-noise (log-snr). trailing is the usual one; heun and dpmpp-2m are of second "
        "order where the grid is dense near the data, as with log-snr",
    )
    group.add_argument(
        "--eta",
        type=common.number(0, 1),
        metavar="ETA",
        help="how much of DDPM's noise each step adds, for --sampler ddim: 0 is DDIM (its "
        "default), 1 is DDPM, and between them lies a family (section 9.2). Without --sampler, "
        "1 means ddpm and all below ddim",
    )
    group.add_argument(
        "--variance",
        choices=("posterior", "beta"),
        help="of ddpm's steps: the posterior's, β̃_t, or β_t, the larger; DDPM found them alike at "
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


def add_guidance_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Returns the group, to which each command adds its --class."""
    group = parser.add_argument_group("classes and guidance (chapter 8), for a model with classes")
    group.add_argument(
        "--guidance",
        type=common.number(-1),
        metavar="W",
        help="classifier-free guidance with the book's w: (1 + w) times the prediction with the "
        "class minus w times that without. 0 is no guidance (the default), -1 forgets the class. "
        "What other software calls the guidance scale is 1 + w. A call is then twice the work",
    )
    group.add_argument(
        "--guidance-interval",
        nargs=2,
        type=common.whole_number(1),
        metavar=("LOW", "HIGH"),
        help="guide at the steps t from LOW to HIGH only, both included, out of 1..T",
    )
    group.add_argument(
        "--guidance-rescale",
        type=common.number(0, 1),
        metavar="PHI",
        help="against over-saturation: give the guided prediction the spread of the unguided one, "
        "to the share PHI",
    )
    return group


def recipe_from(
    given: argparse.Namespace, model: Model, diffusion: GaussianDiffusion, *, labelled: bool
) -> Recipe:
    """What the options say, with everything refused that they do not say together.

    labelled: whether the samples will have labels.

    Raises:
        Refused, ValueError: one sentence; no network is called.
    """
    steps = diffusion.T if given.steps is None else given.steps
    if steps > diffusion.T:
        raise Refused(f"--steps must be at most T = {diffusion.T}, got {steps}.")
    if steps < diffusion.T and given.spacing is None:
        raise Refused(
            f"{steps} of T = {diffusion.T} steps need --spacing ({', '.join(SPACINGS)}): which "
            "steps are visited changes the samples."
        )
    sampler, eta = _sampler_from(given)
    recipe = Recipe(
        sampler=sampler,
        steps=steps,
        spacing=given.spacing,
        eta=eta,
        clip=not given.no_clip,
        batch_size=given.batch_size,
        guidance=_guidance_from(given, model, labelled),
    )
    _check_interval(recipe, diffusion)
    return recipe


def _sampler_from(given: argparse.Namespace) -> tuple[str, float]:
    """The sampler and its η."""
    sampler, eta = given.sampler, given.eta
    if sampler is None:
        eta = 1.0 if eta is None else eta
        sampler = "ddpm" if eta == 1 else "ddim"
    usual = 1.0 if sampler == "ddpm" else 0.0
    eta = usual if eta is None else eta
    if sampler != "ddim" and eta != usual:
        raise Refused(
            f"--sampler {sampler} is η = {usual:g}, and --eta {eta:g} contradicts it: only ddim "
            "takes any."
        )
    if eta == 0 and given.variance == "beta":
        raise Refused("--variance beta is of steps with noise, for eta = 1 only: these have none.")
    return sampler, eta


def _guidance_from(given: argparse.Namespace, model: Model, labelled: bool) -> Guidance | None:
    interval, rescale = given.guidance_interval, given.guidance_rescale
    if given.guidance is None:
        for option, value in (("interval", interval), ("rescale", rescale)):
            if value is not None:
                raise Refused(f"--guidance-{option} says how to guide, and needs --guidance.")
        return None
    if model.network.config.num_classes is None:
        raise Refused(
            "--guidance needs classes, and this model knows none: `train --class-conditional` "
            "makes one that does."
        )
    if not labelled:
        raise Refused("--guidance leads towards a class, and --class none asks for none.")
    if given.guidance != 0:
        refuse_unlearned_null(model, "--guidance")
    return Guidance(given.guidance, None if interval is None else tuple(interval), rescale)


def _check_interval(recipe: Recipe, diffusion: GaussianDiffusion) -> None:
    """What the process refuses, and an interval without any of the walk's steps in it."""
    visited = recipe.rehearse(diffusion).levels[:-1]
    if recipe.guidance is None or recipe.guidance.interval is None:
        return
    low, high = recipe.guidance.interval
    if not low <= high <= diffusion.T:
        raise Refused(
            f"--guidance-interval must be two steps LOW <= HIGH of 1..{diffusion.T}, got "
            f"{low} {high}."
        )
    if not any(low <= t <= high for t in visited):
        raise Refused(
            f"--guidance-interval {low} {high} holds none of the {len(visited)} steps that are "
            "visited."
        )


def refuse_unlearned_null(model: Model, option: str) -> None:
    """Raises Refused if the model says that it has never been trained without labels."""
    settings = model.about.get("training", {}).get("settings", {})
    if settings.get("label_dropout") == 0:
        raise Refused(
            f"{option} needs predictions without a class, and this model was trained with "
            "--label-dropout 0: it never learned to make them."
        )


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


# ---- what is drawn ------------------------------------------------------------------------------


def image_shape(model: Model, count: int) -> tuple[int, ...]:
    config = model.network.config
    return (count, config.in_channels, config.image_size, config.image_size)


def class_names(model: Model) -> tuple[str, ...]:
    """The classes' names in the order of their labels, or their numbers; () without classes."""
    count = model.network.config.num_classes or 0
    names = tuple(map(str, model.about.get("classes", ())))
    return names if len(names) == count else tuple(map(str, range(count)))


def in_turn(classes: Sequence[int], count: int) -> Tensor | None:
    """`count` labels, int64: each of these classes in turn; None where there are none."""
    return torch.tensor(classes)[torch.arange(count) % len(classes)] if classes else None


def every_class(model: Model) -> range:
    return range(model.network.config.num_classes or 0)


def columns_for(classes: Sequence[int], count: int) -> int | None:
    """Of a picture of `count` images of these classes in turn: each class keeps to its columns.

    The multiple of their number that comes nearest to a square; None, a square, for one class or
    none, and for more than fit side by side.
    """
    if not 1 < len(classes) <= MOST_COLUMNS:
        return None
    return len(classes) * max(1, round(math.sqrt(count) / len(classes)))


def generator_for(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)

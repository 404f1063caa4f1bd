"""What the digits network that ships with the book can do, measured by the honest protocol.

Chapter 7 plots these numbers and re-measures one of them. `make measure` runs this if the network,
or the code that samples and measures, has changed: about half an hour on one core.
"""

import torch

from ddpm_lite.data import DIGITS_LEVELS, digits
from ddpm_lite.measurements import measure
from ddpm_lite.metrics import classifier, evaluate, frechet_distance, quantise
from ddpm_lite.objective import simple_loss, variational_bound
from ddpm_lite.process import GaussianDiffusion
from ddpm_lite.sampling import generate
from ddpm_lite.storage import shipped

SEED = 0
GENERATIONS = 5
FEWER_STEPS = (10, 25, 50, 100, 250)
EVERY = 5  # a bound takes T calls of the network, so it is taken of every fifth image
SOURCES = (
    *(f"ddpm_lite/{name}.py" for name in ("schedule", "process", "objective", "unet", "sampling")),
    "ddpm_lite/metrics.py",
    "ddpm_lite/weights/digits/model.safetensors",
    "ddpm_lite/weights/digit-classifier/classifier.safetensors",
    "measurements/digits.py",
)

MODEL = shipped("digits")
SCHEDULE = MODEL.diffusion.schedule
TRAIN, HELDOUT = digits("train")[0], digits("heldout")[0]


def draw(variance: str, steps: int, seed: int, clip: tuple[float, float] | None = (-1, 1)):
    """As many images as are held out, by ancestral sampling on `steps` of the chain's steps."""
    diffusion = GaussianDiffusion(SCHEDULE, variance=variance)
    return generate(
        MODEL.network,
        diffusion,
        HELDOUT.shape,
        steps=steps,
        spacing="trailing",
        eta=1.0,
        clip=clip,
        generator=torch.Generator().manual_seed(seed),
    )


def full_chain(variance: str) -> dict:
    """The report on five independent generations by all T steps."""
    sets = [draw(variance, SCHEDULE.T, SEED + k) for k in range(GENERATIONS)]
    report = evaluate(
        sets,
        TRAIN,
        HELDOUT,
        levels=DIGITS_LEVELS,
        generator=torch.Generator().manual_seed(SEED),
    )
    print(variance, report.summary(), flush=True)
    return report.to_dict()


def fewer_steps(variance: str) -> list[float]:
    """The Fréchet distance of one generation, for each number of steps."""
    features = classifier().features
    real = features(HELDOUT)
    return [
        frechet_distance(features(quantise(draw(variance, steps, SEED), DIGITS_LEVELS)), real)
        for steps in FEWER_STEPS
    ]


def bits(images: torch.Tensor, variance: str) -> dict[str, float]:
    """The bound's three parts on these images, in bits per pixel."""
    bound = variational_bound(
        MODEL.network,
        GaussianDiffusion(SCHEDULE, variance=variance),
        images,
        levels=DIGITS_LEVELS,
        generator=torch.Generator().manual_seed(SEED),
    )
    per_pixel = images[0].numel() * torch.log(torch.tensor(2.0)).item()
    parts = {"prior": bound.prior, "steps": bound.steps.sum(1), "decoder": bound.decoder}
    return {name: part.mean().item() / per_pixel for name, part in parts.items()}


@torch.no_grad()
def losses(images: torch.Tensor) -> list[float]:
    """The mean of L_simple over each tenth of 1..T, ten draws of (t, ε) to an image and tenth."""
    g = torch.Generator().manual_seed(SEED)
    tenth, found = SCHEDULE.T // 10, []
    for part in range(10):
        total = 0.0
        for _ in range(10):
            t = torch.randint(part * tenth + 1, (part + 1) * tenth + 1, (len(images),), generator=g)
            noise = torch.randn(images.shape, generator=g)
            total += simple_loss(MODEL.network, MODEL.diffusion, images, t, noise).mean().item()
        found.append(total / 10)
    return found


def work() -> dict:
    MODEL.network.eval()
    return {
        "images": len(HELDOUT),
        "full_chain": {"posterior": full_chain("posterior")},
        "steps": list(FEWER_STEPS),
        "distance_by_steps": {v: fewer_steps(v) for v in ("posterior", "beta")},
        "bits": {
            split: {v: bits(images, v) for v in ("posterior", "beta")}
            for split, images in (
                ("train", TRAIN[: len(HELDOUT) : EVERY]),
                ("heldout", HELDOUT[::EVERY]),
            )
        },
        "loss_by_tenth": {"train": losses(TRAIN[: len(HELDOUT)]), "heldout": losses(HELDOUT)},
    }


if __name__ == "__main__":
    measure("digits", work, seed=SEED, sources=SOURCES)

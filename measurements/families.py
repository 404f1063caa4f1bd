"""Seven families of models on the digits, trained for a number of steps, and judged alike.

Chapter 1 shows these numbers beside those of models without a network, which it measures again.
`make measure` runs this if a family, or the code that measures, has changed: six minutes
on two cores.

Bits per pixel are exact for laws on the 17 levels. A model with a density is trained on levels with
uniform noise added, as wide as the distance of two levels, and the mean of its log density there,
plus that of the cell's volume, bounds the log probability of the level from below (Theis et al.,
arXiv:1511.01844, section 3.1).
"""

import math
import time

import torch

from ddpm_lite.data import DIGITS_LEVELS, digits, toy_law
from ddpm_lite.families import (
    GAN,
    VAE,
    VQVAE,
    Autoregressive,
    Diffusion,
    Flow,
    FlowMatching,
    modes_covered,
)
from ddpm_lite.families.flow import dequantise
from ddpm_lite.measurements import measure
from ddpm_lite.metrics import evaluate, sliced_wasserstein
from ddpm_lite.objective import variational_bound

SEED = 0
GENERATIONS = 5
BATCH = 128
D = 64
CELL = 2 / (DIGITS_LEVELS - 1)  # the distance of two grey levels
PRIOR_COUNT = 0.5  # of every level at every pixel, for the model with independent pixels
SMEAR = 0.4  # the best width on held-out images: chapter 1 looks for it
EVERY = 5  # the part of the training images that chooses the number of steps
IWAE_DRAWS = 256
RING_SEEDS, RING_STEPS = 5, 1500
SOURCES = (
    *(
        f"ddpm_lite/families/{name}.py"
        for name in ("common", "gan", "vae", "vq_vae", "vq_prior", "flow", "autoregressive")
    ),
    "ddpm_lite/families/diffusion.py",
    "ddpm_lite/families/flow_matching.py",
    *(f"ddpm_lite/{name}.py" for name in ("schedule", "process", "objective", "sampling")),
    "ddpm_lite/data.py",
    "ddpm_lite/metrics.py",
    "ddpm_lite/weights/digit-classifier/classifier.safetensors",
    "measurements/families.py",
)

TRAIN, HELDOUT = (digits(split)[0] for split in ("train", "heldout"))
KNOWN, UNSEEN = TRAIN.flatten(1), HELDOUT.flatten(1)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def families() -> dict[str, tuple]:
    """How to build each family, the numbers of steps to choose from, and what it is trained on."""
    edge = 1 + CELL / 2  # a bin around each level
    bins = {"bins": DIGITS_LEVELS, "low": -edge, "high": edge}
    words = {"positions": 8, "codes": 32, "code_size": 4}
    some, many = (300, 1000, 3000), (1000, 3000, 9000)
    return {
        "Autoregressive": (
            lambda g: Autoregressive(D, width=256, **bins, generator=g),
            (60, 120, 240),
            "levels",
        ),
        "Flow": (lambda g: Flow(D, width=128, generator=g), (120, 240, 480, 960), "noisy"),
        "VAE": (lambda g: VAE(D, width=256, latent=16, generator=g), many, "noisy"),
        "VQ-VAE": (lambda g: VQVAE(D, width=256, **words, generator=g), some, "noisy"),
        "GAN": (
            lambda g: GAN(D, width=256, latent=16, penalty=1.0, generator=g),
            (6000,),
            "levels",
        ),
        "Diffusion": (
            lambda g: Diffusion(D, width=256, T=200, generator=g),
            (*many, 27_000),
            "levels",
        ),
        "Flow matching": (lambda g: FlowMatching(D, width=256, generator=g), many, "noisy"),
    }


def in_bits(log_prob: torch.Tensor) -> float:
    """Nats for images as bits per pixel."""
    return -log_prob.double().mean().item() / (D * math.log(2))


def bits(model, x: torch.Tensor) -> float | None:
    """Bits per held-out pixel, or a bound from above; None where there is neither."""
    g = seeded(SEED)
    noisy = dequantise(x, DIGITS_LEVELS, g)
    volume = D * math.log(CELL)
    if isinstance(model, GAN):
        return None
    if isinstance(model, Autoregressive):
        return in_bits(model.log_mass(model.bin_of(x)))
    if isinstance(model, Diffusion):
        bound = variational_bound(
            model.denoise, model.diffusion, x, levels=DIGITS_LEVELS, generator=g
        )
        return in_bits(-bound.total)
    if isinstance(model, VAE):
        return in_bits(model.iwae(noisy, IWAE_DRAWS, g) + volume)
    if isinstance(model, VQVAE):
        return in_bits(model.elbo(noisy, g) + volume)
    return in_bits(model.log_prob(noisy) + volume)


def judged(sets: list[torch.Tensor]) -> dict:
    """What the honest protocol finds in these generations."""
    report = evaluate(
        [images.reshape(HELDOUT.shape) for images in sets],
        TRAIN,
        HELDOUT,
        levels=DIGITS_LEVELS,
        generator=seeded(SEED),
    )
    found = report.to_dict()
    kept = ("distance", "floor", "ratio", "precision", "recall", "share_nearer", "share_copied")
    return {**{key: found[key] for key in kept}, "verdict": report.verdict}


def trained(build, steps: int, kind: str, known: torch.Tensor):
    """A model of this family after so many steps on these images."""
    data = known if kind == "levels" else dequantise(known.repeat(20, 1), DIGITS_LEVELS, seeded(8))
    return build(seeded(1)).fit(data, steps=steps, batch_size=BATCH, generator=seeded(9))


def chosen_steps(build, candidates: tuple[int, ...], kind: str) -> tuple[int, list[float]]:
    """Training too long is memorising, so every fifth training image says when to stop.

    The number of steps with the fewest bits on these images, trained on the others.
    """
    if len(candidates) == 1:
        return candidates[0], []
    asked = torch.arange(len(KNOWN)) % EVERY == EVERY - 1
    found = [bits(trained(build, n, kind, KNOWN[~asked]), KNOWN[asked]) for n in candidates]
    return candidates[found.index(min(found))], found


def family(build, candidates: tuple[int, ...], kind: str) -> dict:
    """Choose the number of steps, train on all training images, sample, measure."""
    steps, validation = chosen_steps(build, candidates, kind)
    start = time.monotonic()
    model = trained(build, steps, kind, KNOWN)
    middle = time.monotonic()
    sets = [model.sample(len(UNSEEN), seeded(10 + k)) for k in range(GENERATIONS)]
    end = time.monotonic()
    found = {
        "likelihood": model.likelihood,
        "parameters": model.parameters,
        "steps": steps,
        "candidates": list(candidates),
        "validation_bits": validation,
        "training_seconds": round(middle - start, 1),
        "sampling_seconds": round((end - middle) / GENERATIONS, 3),
        "bits": {"train": bits(model, KNOWN[::4]), "heldout": bits(model, UNSEEN)},
        **judged(sets),
        "examples": (sets[0][:10].clamp(-1, 1) * 8).round().int().tolist(),
    }
    print(model.name, steps, validation, found["bits"], found["ratio"]["mean"], flush=True)
    return found


# ---- two models without a network ----------------------------------------------------------------


def independent_pixels() -> dict:
    """Every pixel by itself, with half a count added to each level."""
    levels = ((KNOWN + 1) / CELL).round().long()
    counts = torch.nn.functional.one_hot(levels, DIGITS_LEVELS).sum(0) + PRIOR_COUNT
    shares = counts.double() / counts.sum(1, keepdim=True)
    unseen = ((UNSEEN + 1) / CELL).round().long()
    log_prob = shares[torch.arange(D), unseen].log().sum(1)
    sets = [
        torch.multinomial(shares, len(UNSEEN), replacement=True, generator=seeded(10 + k)).T * CELL
        - 1
        for k in range(GENERATIONS)
    ]
    return {"bits": {"heldout": in_bits(log_prob)}, **judged(sets)}


def smeared_list() -> dict:
    """A training image, chosen at random, with Gaussian noise on every pixel."""
    sets = []
    for k in range(GENERATIONS):
        g = seeded(10 + k)
        chosen = KNOWN[torch.randint(len(KNOWN), (len(UNSEEN),), generator=g)]
        sets.append(chosen + SMEAR * torch.randn(chosen.shape, generator=g))
    return judged(sets)


def training_list() -> dict:
    """A training image, chosen at random, as it is."""
    return judged(
        [
            KNOWN[torch.randint(len(KNOWN), (len(UNSEEN),), generator=seeded(10 + k))]
            for k in range(GENERATIONS)
        ]
    )


# ---- does the training always end well? ----------------------------------------------------------


def on_the_ring(build) -> dict:
    """Trainings from several seeds on chapter 1's ring: modes covered, distance to fresh points."""
    ring = toy_law("ring-of-gaussians")
    points, fresh = ring.sample(10_000, seeded(0)).float(), ring.sample(4000, seeded(1))
    modes, distances = [], []
    for k in range(RING_SEEDS):
        model = build(seeded(100 + k))
        model.fit(points, steps=RING_STEPS, batch_size=256, generator=seeded(200 + k))
        made = model.sample(2000, seeded(300 + k)).double()
        modes.append(modes_covered(made, ring))
        distances.append(sliced_wasserstein(made, fresh, 100, seeded(SEED)))
    print(model.name, modes, distances, flush=True)
    return {"modes": modes, "distances": distances}


def repeated() -> dict:
    """The game with and without its penalty, and a regression beside them."""
    return {
        "GAN": on_the_ring(lambda g: GAN(2, generator=g)),
        "GAN, no penalty": on_the_ring(lambda g: GAN(2, penalty=0.0, generator=g)),
        "Diffusion": on_the_ring(lambda g: Diffusion(2, generator=g)),
    }


def work() -> dict:
    return {
        "images": len(HELDOUT),
        "families": {name: family(*recipe) for name, recipe in families().items()},
        "ring": repeated(),
        "independent pixels": independent_pixels(),
        "smeared list": smeared_list(),
        "training images": training_list(),
    }


if __name__ == "__main__":
    measure("families", work, seed=SEED, sources=SOURCES)

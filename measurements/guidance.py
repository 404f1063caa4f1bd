"""What guidance does to the digits of the shipped conditional network: fidelity against variety.

Chapter 8 plots these numbers and re-measures one of them. `make measure` runs this if the network,
or the code that samples and measures, has changed: about ten minutes on one core.
"""

from dataclasses import asdict

import torch
from torch import Tensor

from ddpm_lite.data import DIGITS_LEVELS, digits
from ddpm_lite.guidance import guided
from ddpm_lite.measurements import measure
from ddpm_lite.metrics import Estimate, classifier, evaluate, quantise
from ddpm_lite.process import GaussianDiffusion
from ddpm_lite.sampling import generate
from ddpm_lite.storage import shipped

SEED = 0
GENERATIONS = 5
STEPS = 25
STRENGTHS = (-1.0, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
INTERVALS = ((1, 333), (334, 666), (667, 1000))
INTERVAL_W = 4.0  # the strength at which the intervals are compared
SHARES = (0.7, 1.0)  # of rescaling, at the largest strength
NOISY_W = 2.0  # the strength at which DDPM's noise, η = 1, is tried too
CLIP = (-1.0, 1.0)
SOURCES = (
    *(f"ddpm_lite/{name}.py" for name in ("schedule", "process", "guidance", "unet", "sampling")),
    "ddpm_lite/metrics.py",
    "ddpm_lite/weights/digits-conditional/model.safetensors",
    "ddpm_lite/weights/digit-classifier/classifier.safetensors",
    "measurements/guidance.py",
)

MODEL = shipped("digits-conditional")
DIFFUSION = GaussianDiffusion(MODEL.diffusion.schedule)
TRAIN = digits("train")[0]
HELDOUT, LABELS = digits("heldout")
JUDGE = classifier()
WHITE = 1 - 1 / (DIGITS_LEVELS - 1)  # pixels above this are stored as the last level


def draw(seed: int, w: float, eta: float = 0.0, **settings) -> Tensor:
    """As many digits as are held out, with their labels, stored as the data are."""
    images = generate(
        guided(MODEL.network, w, **settings),
        DIFFUSION,
        HELDOUT.shape,
        steps=STEPS,
        spacing="trailing",
        eta=eta,
        y=LABELS,
        clip=CLIP,
        generator=torch.Generator().manual_seed(seed),
    )
    return quantise(images, DIGITS_LEVELS)


def accuracy(images: Tensor) -> float:
    """How often the classifier sees the class that was asked for."""
    return (JUDGE.predict(images) == LABELS).double().mean().item()


def spread(images: Tensor) -> float:
    """The variance of the features within a class, summed over features, mean over classes."""
    features = JUDGE.features(images)
    within = [features[k == LABELS].var(0).sum() for k in range(10)]
    return torch.stack(within).mean().item()


def white(images: Tensor) -> float:
    """The share of pixels at the brightest level."""
    return (images > WHITE).double().mean().item()


def measured_set(**settings) -> dict:
    """All the numbers of one setting, from independent generations."""
    sets = [draw(SEED + k, **settings) for k in range(GENERATIONS)]
    report = evaluate(
        sets,
        TRAIN,
        HELDOUT,
        levels=DIGITS_LEVELS,
        generator=torch.Generator().manual_seed(SEED),
    ).to_dict()
    kept = ("distance", "floor", "precision", "recall", "real_precision", "real_recall")
    kept += ("share_nearer", "share_copied", "heldout_copied", "verdict")
    found = {name: report[name] for name in kept}
    for name, number in (("accuracy", accuracy), ("spread", spread), ("white", white)):
        found[name] = asdict(Estimate.of([number(images) for images in sets]))
    line = ", ".join(f"{n} {found[n]['mean']:.3f}" for n in ("accuracy", "distance", "recall"))
    print(settings, line, found["verdict"], flush=True)
    return {"settings": {k: v for k, v in settings.items() if k != "diffusion"}, **found}


def work() -> dict:
    MODEL.network.eval()
    strongest = {"w": STRENGTHS[-1], "diffusion": DIFFUSION}
    return {
        "images": len(HELDOUT),
        "steps": STEPS,
        "real": {
            "accuracy": accuracy(HELDOUT),
            "spread": spread(HELDOUT),
            "white": white(HELDOUT),
        },
        "by_w": [measured_set(w=w) for w in STRENGTHS],
        "by_interval": [measured_set(w=INTERVAL_W, interval=pair) for pair in INTERVALS],
        "rescaled": [measured_set(rescale=share, **strongest) for share in SHARES],
        "eta_1": measured_set(w=NOISY_W, eta=1.0),
    }


if __name__ == "__main__":
    measure("guidance", work, seed=SEED, sources=SOURCES)

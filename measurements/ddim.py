"""How good the shipped network's digits are after few calls of the network, by sampler and grid.

Chapter 9 plots these numbers and re-measures one of them. `make measure` runs this if the network,
or the code that samples and measures, has changed: about ten minutes on one free core.
"""

import torch

from ddpm_lite.data import DIGITS_LEVELS, digits
from ddpm_lite.measurements import measure
from ddpm_lite.metrics import classifier, frechet_distance, quantise
from ddpm_lite.process import GaussianDiffusion
from ddpm_lite.sampling import sample, solve
from ddpm_lite.storage import shipped

SEED = 0
FRESH_SEEDS = (1, 2, 3, 4)  # not the one that chose the grid
GRIDS = ("trailing", "quadratic", "log-snr")
STEPS = (10, 20, 50)
MORE_STEPS = 100  # on the first grid only
SAMPLERS = {  # η, and the variance of the step
    "eta 0": (0.0, "posterior"),
    "eta 0.5": (0.5, "posterior"),
    "eta 1": (1.0, "posterior"),
    "sigma hat": (1.0, "beta"),
}
SOLVER_STEPS = {"dpmpp-2m": (6, 8, 12, 20, 30), "heun": (4, 6, 10, 15)}
DDIM_CALLS, SOLVER_CALLS = 20, 12  # what the comparison with the full chain is about
CLIP = (-1.0, 1.0)
SOURCES = (
    *(f"ddpm_lite/{name}.py" for name in ("schedule", "process", "unet", "sampling", "metrics")),
    "ddpm_lite/weights/digits/model.safetensors",
    "ddpm_lite/weights/digit-classifier/classifier.safetensors",
    "measurements/ddim.py",
)

MODEL = shipped("digits")
SCHEDULE = MODEL.diffusion.schedule
HELDOUT = digits("heldout")[0]


def walk(sampler: str, steps: int, grid: str | None, seed: int):
    """A walk of as many images as are held out."""
    settings = {"steps": steps, "spacing": grid, "clip": CLIP}
    g = torch.Generator().manual_seed(seed)
    if sampler in SAMPLERS:
        eta, variance = SAMPLERS[sampler]
        process = GaussianDiffusion(SCHEDULE, variance=variance)
        return sample(MODEL.network, process, HELDOUT.shape, eta=eta, generator=g, **settings)
    process = GaussianDiffusion(SCHEDULE)
    return solve(MODEL.network, process, HELDOUT.shape, solver=sampler, generator=g, **settings)


def distance(sampler: str, steps: int, grid: str | None, seed: int = SEED) -> dict:
    """Fréchet distance to the held-out images, and the calls of the network that it took."""
    made = walk(sampler, steps, grid, seed)
    features = classifier().features
    found = frechet_distance(features(quantise(made.result(), DIGITS_LEVELS)), features(HELDOUT))
    print(
        f"{sampler}, {steps} steps, {grid}, seed {seed}: {made.calls} calls, {found:.3f}",
        flush=True,
    )
    return {"steps": steps, "calls": made.calls, "distance": found}


def curves() -> dict:
    """The distance by number of steps, for each sampler on each grid."""
    found: dict = {}
    counts = {**{sampler: STEPS for sampler in SAMPLERS}, **SOLVER_STEPS}
    for sampler, steps in counts.items():
        found[sampler] = {g: [distance(sampler, n, g) for n in steps] for g in GRIDS}
    for sampler in SAMPLERS:
        found[sampler][GRIDS[0]].append(distance(sampler, MORE_STEPS, GRIDS[0]))
    return found


def again(found: dict, sampler: str, calls: int) -> dict:
    """The best grid for this number of calls, and the distances of fresh draws on it."""
    at = {g: p for g, points in found[sampler].items() for p in points if p["calls"] == calls}
    grid = min(at, key=lambda g: at[g]["distance"])
    fresh = [distance(sampler, at[grid]["steps"], grid, k)["distance"] for k in FRESH_SEEDS]
    return {"sampler": sampler, "calls": calls, "grid": grid, "distances": fresh}


def work() -> dict:
    MODEL.network.eval()
    found = curves()
    return {
        "images": len(HELDOUT),
        "curves": found,
        "ddim": again(found, "eta 0", DDIM_CALLS),
        "second_order": again(found, "dpmpp-2m", SOLVER_CALLS),
        "full_chain": {
            sampler: distance(sampler, SCHEDULE.T, None)["distance"]
            for sampler in ("eta 1", "sigma hat", "eta 0")
        },
    }


if __name__ == "__main__":
    measure("ddim", work, seed=SEED, sources=SOURCES)

"""What sampling costs beside the network, and beside diffusers.

    python benchmarks/sampling.py                 the shipped digits network, batch 64, two threads
    python benchmarks/sampling.py --device cuda

Overhead: a step of each sampler is timed with a network that answers at once with a stored output,
and the network is timed by itself. What the sampler takes, over what both take, is the share of a
step that is not the network.

Comparison: DDIM, η = 0, the same steps of the same network from the same noise, as diffusers does
it: its scheduler in a loop around this very network, and its pipeline around its own network with
these weights. The two alternate, each pair gives a ratio, and the result is the median of the
ratios, with the quartiles beside it. That the samples agree is checked first.

The result goes to benchmarks/results/sampling.json, with the machine named. Needs the extra
`oracle`.
"""

import argparse
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import nn
from unet_step import machine

from ddpm_lite import generate, shipped
from ddpm_lite.interchange import to_diffusers
from ddpm_lite.sampling import SOLVERS, sample, solve
from ddpm_lite.storage import to_json, write_atomically

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


class Stored(nn.Module):
    """A network that is all there, but answers with what it was given beforehand."""

    def __init__(self, network, output):
        super().__init__()
        self.network, self.output = network, output

    def forward(self, x, t, y=None):
        return self.output


def seconds(action, device):
    """{clock: seconds} of one call."""
    start = {name: clock() for name, clock in CLOCKS.items()}
    action()
    if device == "cuda":
        torch.cuda.synchronize()
    return {name: clock() - start[name] for name, clock in CLOCKS.items()}


# ---- everything but the network -----------------------------------------------------------------


def walks(network, diffusion, shape):
    """{name: a function that makes the walk of `count` steps}."""
    common = {"spacing": "trailing", "device": next(network.parameters()).device}

    def ours(eta, count):
        g = torch.Generator().manual_seed(0)
        return sample(network, diffusion, shape, steps=count, eta=eta, generator=g, **common)

    def ode(solver, count):
        g = torch.Generator().manual_seed(0)
        return solve(network, diffusion, shape, steps=count, solver=solver, generator=g, **common)

    found = {f"sample, eta = {eta:g}": (lambda n, eta=eta: ours(eta, n)) for eta in (1.0, 0.0)}
    return found | {f"solve, {name}": (lambda n, name=name: ode(name, n)) for name in SOLVERS}


@torch.no_grad()
def overhead(model, arguments):
    """Per step and in milliseconds: the network's calls, the rest, and the rest's share."""
    config, network = model.network.config, model.network
    shape = (arguments.batch, config.in_channels, config.image_size, config.image_size)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(arguments.device)
    t = torch.full((arguments.batch,), 500, device=arguments.device)
    stored = Stored(network, network(x, t))
    made, result = walks(stored, model.diffusion, shape), {}
    count = 50
    for walk in made.values():
        walk(count).result()
    taken = {name: [] for name in ("network", *made)}
    for _ in range(arguments.rounds):
        for _ in range(3):
            taken["network"].append(seconds(lambda: network(x, t), arguments.device))
        for name, walk in made.items():
            taken[name].append(seconds(walk(count).result, arguments.device))
    calls = {name: walk(count).calls / count for name, walk in made.items()}
    for clock in CLOCKS:
        middle = {n: statistics.median(one[clock] for one in c) for n, c in taken.items()}
        result[clock] = {"network call, ms": round(1e3 * middle["network"], 3)}
        for name in made:
            rest, work = middle[name] / count, calls[name] * middle["network"]
            result[clock][name] = {
                "rest of a step, ms": round(1e3 * rest, 3),
                "share": round(rest / (rest + work), 4),
            }
    return result


# ---- beside diffusers ---------------------------------------------------------------------------


def scheduler_of(diffusers, diffusion):
    return diffusers.DDIMScheduler(
        diffusion.T,
        trained_betas=diffusion.schedule.beta[1:].numpy(),
        clip_sample=False,
        timestep_spacing="trailing",
    )


def their_loop(network, scheduler, shape, steps, device):
    """Their scheduler around our network: images, as they leave it."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in scheduler.timesteps:
            step = torch.full((shape[0],), int(t) + 1, device=device)  # they count from 0
            x = scheduler.step(network(x, step), t, x).prev_sample
    return x


def their_pipeline(diffusers, model, scheduler, arguments):
    diffusers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        to_diffusers(model.network, model.diffusion, folder)
        theirs = diffusers.UNet2DModel.from_pretrained(f"{folder}/unet", low_cpu_mem_usage=False)
    pipeline = diffusers.DDIMPipeline(theirs.to(arguments.device).eval(), scheduler)
    pipeline.set_progress_bar_config(disable=True)

    def images():
        g = torch.Generator().manual_seed(0)
        found = pipeline(
            batch_size=arguments.batch,
            generator=g,
            num_inference_steps=arguments.steps,
            output_type="np",
        ).images
        return 2 * torch.from_numpy(found).permute(0, 3, 1, 2) - 1

    return images


def comparison(model, arguments):
    import diffusers

    config = model.network.config
    shape = (arguments.batch, config.in_channels, config.image_size, config.image_size)
    scheduler = scheduler_of(diffusers, model.diffusion)

    def ours():
        return generate(
            model.network,
            model.diffusion,
            shape,
            steps=arguments.steps,
            spacing="trailing",
            eta=0.0,
            generator=torch.Generator().manual_seed(0),
        )

    others = {
        "their scheduler around our network": lambda: their_loop(
            model.network, scheduler, shape, arguments.steps, arguments.device
        ),
        "their pipeline": their_pipeline(diffusers, model, scheduler, arguments),
    }
    return {name: compare(ours, theirs, arguments) for name, theirs in others.items()}


def compare(ours, theirs, arguments):
    """Medians over pairs of runs; ratio = ours / theirs."""
    difference = (ours().cpu().clamp(-1, 1) - theirs().cpu().clamp(-1, 1)).abs().max().item()
    if not difference < 1e-3:
        raise SystemExit(f"the samples differ by {difference:.1e}.")
    pairs = []
    for i in range(arguments.rounds):
        order = (ours, theirs) if i % 2 == 0 else (theirs, ours)  # neither always runs first
        taken = {run: seconds(run, arguments.device) for run in order}
        pairs.append((taken[ours], taken[theirs]))
    result = {"largest_difference": difference}
    for clock in CLOCKS:
        ratios = [mine[clock] / other[clock] for mine, other in pairs]
        low, middle, high = (round(q, 3) for q in statistics.quantiles(ratios, n=4))
        columns = [[one[clock] for one in column] for column in zip(*pairs, strict=True)]
        result[clock] = {
            "ratio": middle,
            "ratio_quartiles": [low, high],
            "seconds": [round(statistics.median(column), 4) for column in columns],
        }
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="digits", help="a model that ships with the book")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20, help="steps of DDIM; must divide T")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2, help="threads of the processor")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "sampling.json"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = shipped(arguments.model)
    model.network.to(arguments.device).eval()
    if model.diffusion.T % arguments.steps:
        # diffusers' scheduler steps to t − T//S, which leaves its own list where S ∤ T
        parser.error(f"--steps must divide T = {model.diffusion.T}, got {arguments.steps}")
    start = time.perf_counter()
    result = {
        "what": "a step of sampling without its network; DDIM's time, ddpm_lite / diffusers",
        "command": " ".join(["python", "benchmarks/sampling.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(arguments),
        "model": arguments.model,
        "batch": arguments.batch,
        "steps": arguments.steps,
        "rounds": arguments.rounds,
        "overhead": overhead(model, arguments),
        "beside_diffusers": comparison(model, arguments),
    }
    result["wall_seconds"] = round(time.perf_counter() - start, 1)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.output, to_json(result))
    for name, row in result["overhead"]["processor"].items():
        if isinstance(row, dict):
            print(f"{name}: {100 * row['share']:.1f} % of a step's processor time is the sampler's")
    for name, row in result["beside_diffusers"].items():
        print(f"{name}: {row['wall']['ratio']} of its time, {row['processor']['ratio']} of its "
              "processor time")  # fmt: skip
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()

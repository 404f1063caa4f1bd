"""One training step of the U-Net beside diffusers' `UNet2DModel` of the same architecture.

    python benchmarks/unet_step.py                      two threads, float32 and bfloat16 autocast
    python benchmarks/unet_step.py --device cuda --preset ddpm-cifar10 --batch 128

Both networks hold the same weights, which is checked by their outputs. A step is forward, mean
squared error, backward and AdamW, the same for both. The two alternate within one run, and each
pair gives a ratio, so that whatever else the machine does meets both alike; the result is the
median of the ratios with the quartiles beside it. Memory is measured in a process for each, as
the highest resident size during three steps less the size before them (on a GPU: as the highest
amount allocated).

The result goes to benchmarks/results/unet_step.json, with the machine named. Needs the extra
`oracle`.
"""

import argparse
import gc
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

from ddpm_lite import GaussianDiffusion, NoiseSchedule
from ddpm_lite.interchange import to_diffusers
from ddpm_lite.storage import to_json, write_atomically
from ddpm_lite.unet import PRESETS, UNet, count_parameters

NETWORKS = ("ddpm_lite", "diffusers")
PRECISIONS = {"float32": None, "bfloat16 autocast": torch.bfloat16}


def build(arguments):
    """(ours, theirs): two networks with equal weights, as functions of (x, t)."""
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    config = PRESETS[arguments.preset]
    network = UNet(config, torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        to_diffusers(network, GaussianDiffusion(NoiseSchedule.linear(1000)), folder)
        theirs = diffusers.UNet2DModel.from_pretrained(f"{folder}/unet", low_cpu_mem_usage=False)
    return network.to(arguments.device), theirs.train().to(arguments.device)


def caller(name, network):
    return network if name == "ddpm_lite" else lambda x, t: network(x, t - 1).sample


def data(arguments):
    config, g = PRESETS[arguments.preset], torch.Generator().manual_seed(1)
    shape = (arguments.batch, config.in_channels, config.image_size, config.image_size)
    x, noise = torch.randn(2, *shape, generator=g)
    t = torch.randint(1, 1001, (arguments.batch,), generator=g)
    return tuple(v.to(arguments.device) for v in (x, noise, t))


class Step:
    """One training step; the optimiser is PyTorch's AdamW with the same settings for both."""

    def __init__(self, name, network, arguments):
        self.call, self.device = caller(name, network), arguments.device
        self.optimiser = torch.optim.AdamW(network.parameters(), lr=2e-4)
        self.x, self.noise, self.t = data(arguments)

    def __call__(self, dtype):
        self.optimiser.zero_grad()
        with torch.autocast(self.device, dtype or torch.bfloat16, enabled=dtype is not None):
            output = self.call(self.x, self.t)
        ((output.float() - self.noise) ** 2).mean().backward()
        self.optimiser.step()
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, dtype):
        """(seconds on the clock, seconds of processor time in all threads)."""
        start = time.perf_counter(), time.process_time()
        self(dtype)
        return time.perf_counter() - start[0], time.process_time() - start[1]


def compare(arguments):
    """Seconds per step of both, alternating, for each precision."""
    networks = build(arguments)
    agreement = check_equal(networks, arguments)
    steps = [Step(n, m, arguments) for n, m in zip(NETWORKS, networks, strict=True)]
    result = {"parameters": count_parameters(networks[0]), "largest_difference": agreement}
    for precision, dtype in PRECISIONS.items():
        for step in steps:
            step(dtype), step(dtype)
        pairs = []
        for i in range(arguments.rounds):
            order = (0, 1) if i % 2 == 0 else (1, 0)  # neither always runs first
            taken = {k: steps[k].seconds(dtype) for k in order}
            pairs.append((taken[0], taken[1]))
            print(f"{precision}: {taken[0][0]:.3f} s beside {taken[1][0]:.3f} s", flush=True)
        result[precision] = summary(pairs, arguments.batch)
    return result


def summary(pairs, batch):
    """Medians over the pairs; where a machine is shared, processor time is the fairer one."""
    result = {}
    for k, clock in enumerate(("wall", "processor")):
        columns = [[one[k] for one in column] for column in zip(*pairs, strict=True)]
        ratios = [ours / theirs for ours, theirs in zip(*columns, strict=True)]
        low, middle, high = (round(q, 3) for q in statistics.quantiles(ratios, n=4))
        medians = [statistics.median(column) for column in columns]
        result[clock] = {
            "ratio": middle,
            "ratio_quartiles": [low, high],
            "seconds": {n: round(s, 4) for n, s in zip(NETWORKS, medians, strict=True)},
            "fastest": {n: round(min(c), 4) for n, c in zip(NETWORKS, columns, strict=True)},
        }
    seconds = result["wall"]["seconds"]
    result["images_per_second"] = {name: round(batch / s, 1) for name, s in seconds.items()}
    return result


@torch.no_grad()
def check_equal(networks, arguments):
    """The two compute one function, or there is nothing to compare."""
    x, _, t = data(arguments)
    outputs = []
    for name, network in zip(NETWORKS, networks, strict=True):
        network.eval()
        # not the untrained network's zero, which would agree with anything
        last = network.conv_out
        last.weight.copy_(torch.linspace(-0.1, 0.1, last.weight.numel()).view_as(last.weight))
        # on a GPU, float32 convolutions round to TF32's 10 bits unless told not to
        with torch.backends.cudnn.flags(allow_tf32=False):
            outputs.append(caller(name, network)(x, t))
        network.train()
    difference = float((outputs[0] - outputs[1]).abs().max() / outputs[1].std())
    if not difference < 1e-3:
        raise SystemExit(f"the two networks differ by {difference:.1e} of their spread.")
    return difference


# ---- memory ----------------------------------------------------------------------------------


def status(field):
    """A size from /proc/self/status, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"/proc/self/status has no {field}; memory is measured on Linux only.")


def measure_memory(arguments):
    """MiB that three steps add, in this process, which trains one network in one precision only."""
    name, precision = arguments.memory
    networks = build(arguments)
    step = Step(name, networks[NETWORKS.index(name)], arguments)
    del networks
    gc.collect()
    if arguments.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    for _ in range(3):
        step(PRECISIONS[precision])
    if arguments.device == "cuda":
        print(torch.cuda.max_memory_allocated() / 2**20)
    else:
        print(status("VmHWM") - before)


def memory(arguments):
    """Each network and precision in a process of its own, one after the other."""
    found = {precision: {} for precision in PRECISIONS}
    for precision in PRECISIONS:
        for name in NETWORKS:
            command = [sys.executable, __file__, *sys.argv[1:], "--memory", name, precision]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr)
            found[precision][name] = round(float(done.stdout.splitlines()[-1]), 1)
    return found


def machine(arguments):
    import diffusers

    name, flags = platform.processor() or platform.machine(), ""
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        fields = {line.split(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
        name, flags = fields.get("model name", name), fields.get("flags", "")
    return {
        "processor": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bfloat16_instructions": sorted(f for f in flags.split() if f.endswith("bf16")),
        "gpu": torch.cuda.get_device_name() if arguments.device == "cuda" else None,
        "load_average_before": [round(load, 1) for load in LOAD],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }


LOAD = os.getloadavg() if hasattr(os, "getloadavg") else (float("nan"),)


def command(arguments):
    """How to repeat this, wherever the result was written."""
    options = ("preset", "batch", "rounds", "threads", "device")
    told = (f"--{name} {getattr(arguments, name)}" for name in options)
    return " ".join(["python benchmarks/unet_step.py", *told])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--preset", choices=PRESETS, default="cifar10-small")
    parser.add_argument("--batch", type=int, default=32, help="images in a step")
    parser.add_argument("--rounds", type=int, default=15, help="pairs of steps for each precision")
    parser.add_argument("--threads", type=int, default=2, help="threads of the processor")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "unet_step.json"
    )
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        measure_memory(arguments)
        return
    start = time.perf_counter()
    result = {
        "what": "seconds of one training step, and its memory; ratio = ddpm_lite / diffusers",
        "command": command(arguments),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(arguments),
        "preset": arguments.preset,
        "batch": arguments.batch,
        "rounds": arguments.rounds,
        **compare(arguments),
        "peak_memory_mib": memory(arguments),
    }
    result["wall_seconds"] = round(time.perf_counter() - start, 1)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.output, to_json(result))
    for precision in PRECISIONS:
        wall, processor = (result[precision][k]["ratio"] for k in ("wall", "processor"))
        print(f"{precision}: {wall} of diffusers' time, {processor} of its processor time")
    print(f"peak memory in MiB: {result['peak_memory_mib']}")
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()

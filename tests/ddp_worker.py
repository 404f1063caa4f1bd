"""One of the two processes of test_training.py's `test_two_processes_are_one`."""

import sys
from pathlib import Path

from small import small_network
from test_training import DIFFUSION, IMAGES, config

from ddpm_lite.hardware import process_group
from ddpm_lite.storage import with_prefix, write_tensors
from ddpm_lite.training import Trainer


def main(folder):
    settings = config(log_every=1, clip_norm=None)
    with process_group("cpu") as rank:
        # Different weights to begin with: the processes must agree on those of the first.
        network = small_network(seed=rank, initialisation="torch")
        trainer = Trainer(network, DIFFUSION, IMAGES, settings, folder=folder / "run", device="cpu")
        trainer.run(1)
        gradients = {name: p.grad.clone() for name, p in network.named_parameters()}
        trainer.run(4)
        tensors = with_prefix("gradient", gradients)
        tensors |= with_prefix("network", network.state_dict())
        tensors |= with_prefix("ema", trainer.ema.state_dict())
        record = {"processes": trainer.processes, "history": trainer.history}
        write_tensors(folder / f"rank{rank}.safetensors", tensors, record)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

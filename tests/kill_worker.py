"""Runs that are ended by `kill -9` at a chosen moment; see test_training.py's `killed`.

For each moment a child begins a run, stops dead when it gets there, and is killed from outside.
"""

import builtins
import os
import signal
import sys
import time
from pathlib import Path

from small import small_network
from test_training import DIFFUSION, IMAGES, config

from ddpm_lite import storage
from ddpm_lite.runs import RunFolder
from ddpm_lite.training import Trainer


def at(moment, trainer, stop):
    """Have the run call stop() when it gets to that moment."""

    def when(place, name, condition, *, after=False):
        original = getattr(place, name)

        def instead(*arguments, **keywords):
            if not after and condition(*arguments):
                stop()
            result = original(*arguments, **keywords)
            if after and condition(*arguments):
                stop()
            return result

        setattr(place, name, instead)

    def is_checkpoint(source, target):
        return target.name == "step-00000012.safetensors"

    if moment == "in the network":
        when(trainer, "_denoise", lambda *a: trainer.step == 8, after=True)
    elif moment == "after the optimiser":
        when(trainer._average, "update", lambda decay: trainer.step == 9)
    elif moment == "in a record":

        def half_a_line(folder, record):
            with open(folder.path / "metrics.jsonl", "a") as file:
                file.write('{"step": 8, "lo')
            stop()

        when(
            trainer,
            "_record",
            lambda: trainer.step == 8 and setattr(RunFolder, "append", half_a_line),
        )
    elif moment == "half a checkpoint":
        original = builtins.open

        def half(path, mode="r", *arguments, **keywords):
            file = original(path, mode, *arguments, **keywords)
            if mode == "wb" and "step-00000012" in str(path):
                file.write(b"x" * 5000)
                file.flush()
                stop()
            return file

        storage.open = half
    elif moment == "before the sync":
        when(os, "fsync", lambda descriptor: trainer.step == 12)
    elif moment == "before the rename":
        when(os, "replace", is_checkpoint)
    elif moment == "after the rename":
        when(os, "replace", is_checkpoint, after=True)
    elif moment == "between the model's files":
        when(os, "replace", lambda source, target: target.name == "model.json")
    else:
        raise ValueError(f"no moment {moment!r}")


def begin(folder, moment):
    """In the child: does not return."""

    def stop():
        (folder.parent / f"{moment} reached").touch()
        time.sleep(600)

    settings = config(log_every=4)
    network = small_network(dropout=0.3)
    trainer = Trainer(network, DIFFUSION, IMAGES, settings, folder=folder, device="cpu")
    at(moment, trainer, stop)
    trainer.run()
    os._exit(1)


def main(folder, moments):
    for moment in moments:
        child = os.fork()
        if child == 0:
            begin(folder / moment, moment)
        while not (folder / f"{moment} reached").exists():
            assert os.waitpid(child, os.WNOHANG) == (0, 0), f"{moment} was not reached"
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        print(f"{moment}: signal {os.WTERMSIG(status)}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

"""The commands as typed, and networks that train in a second: for all tests of the commands."""

import numpy as np
import torch
from PIL import Image

from ddpm_lite import __main__
from ddpm_lite.storage import load_model

T = 12
TINY = [
    *("--preset", "digits", "--base-channels", "16", "--channel-multipliers", "1,1"),
    *("--batch-size", "16", "--warmup-steps", "0", "--T", str(T), "--schedule", "cosine"),
    *("--precision", "float32", "--device", "cpu", "--dropout", "0", "--quiet"),
]


def run(*words):
    return __main__.main([str(word) for word in words])


def train_tiny(out, *words, steps=4, data="digits"):
    return run("train", "--data", data, "--out", out, "--steps", steps, *TINY, *words)


def refused(capsys, *words, code=2):
    """The sentence of a refusal: one line, on stderr alone."""
    assert run(*words) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1, said.err
    assert said.err.startswith(f"python -m ddpm_lite {words[0]}: ")
    return said.err.partition(": ")[2].strip()


def weights(folder):
    return load_model(folder).network.state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def picture(path):
    return np.asarray(Image.open(path))


def draw(model, out, *words):
    return run("sample", "--model", model, "--out", out, "--quiet", "--device", "cpu", *words)


def folder_of_images(folder, count, size=8, seed=0):
    """Grey squares of random brightness with a little noise."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for i in range(count):
        noise = rng.integers(-20, 20, (size, size))
        Image.fromarray((rng.integers(30, 220) + noise).astype(np.uint8)).save(
            folder / f"{i:04}.png"
        )

"""The commands as typed: what they write, what they print, how they refuse, their exit codes."""

import argparse
import errno
import importlib
import io
import json
import math
import os
import re
import shlex
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_commands import (
    TINY,
    T,
    draw,
    folder_of_images,
    picture,
    refused,
    run,
    same,
    train_tiny,
    weights,
)

from ddpm_lite import __main__, storage
from ddpm_lite.commands import common, evaluate, recipe, train
from ddpm_lite.data import digits, load
from ddpm_lite.interchange import from_diffusers
from ddpm_lite.process import GaussianDiffusion
from ddpm_lite.sampling import generate
from ddpm_lite.schedule import NoiseSchedule
from ddpm_lite.storage import load_model, read_tensors, shipped
from ddpm_lite.training import Trainer
from ddpm_lite.unet import UNet, count_parameters

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a few steps on the digits."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    assert train_tiny(out, "--log-every", 2, "--samples", 6) == 0
    return out


# ---- train ----


def test_training_leaves_a_model_a_record_and_a_picture(trained):
    names = {path.name for path in trained.iterdir()}
    assert names == {
        *("config.json", "checkpoints", "metrics.jsonl", "model.json", "model.safetensors"),
        *("samples.png", "samples.json"),
    }
    model = load_model(trained)
    assert model.diffusion.T == T and model.about["levels"] == 17
    assert model.about["data"] == "digits" and model.about["preset"] == "digits"
    assert model.about["training"]["steps"] == 4
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [2, 4]
    record = json.loads((trained / "samples.json").read_text())
    assert record["sampling"]["n"] == 6 and record["sampling"]["steps"] == T
    assert record["model"]["sha256"] == common.sha256_of(trained / "model.safetensors")
    assert picture(trained / "samples.png").ndim == 2


def test_the_model_is_the_averaged_one_and_the_picture_is_drawn_from_it(trained):
    model = load_model(trained)
    images = generate(
        model.network,
        model.diffusion,
        (6, 1, 8, 8),
        steps=T,
        eta=1.0,
        generator=torch.Generator().manual_seed(0),
        clip=(-1, 1),
    )
    assert np.array_equal(
        picture(trained / "samples.png"),
        np.asarray(Image.open(io.BytesIO(common.grid_png(images)))),
    )


def test_the_same_seed_is_the_same_model(trained, tmp_path):
    assert train_tiny(tmp_path / "again", "--samples", 0) == 0
    assert same(weights(trained), weights(tmp_path / "again"))
    assert not (tmp_path / "again" / "samples.png").exists()
    assert train_tiny(tmp_path / "other", "--samples", 0, "--seed", 1) == 0
    assert not same(weights(trained), weights(tmp_path / "other"))


def test_a_run_that_goes_on_is_the_run_that_never_stopped(trained, tmp_path):
    assert train_tiny(tmp_path / "long", "--dropout", 0.1, "--samples", 0, steps=7) == 0
    assert train_tiny(tmp_path / "short", "--dropout", 0.1, "--samples", 0, steps=4) == 0
    resume = ("train", "--resume", "--out", tmp_path / "short", "--quiet", "--samples", 2)
    assert run(*resume, "--steps", 7, "--device", "cpu") == 0
    assert same(weights(tmp_path / "long"), weights(tmp_path / "short"))
    assert (tmp_path / "short" / "samples.png").is_file()
    assert run(*resume, "--device", "cpu") == 0  # nothing left to do: the picture anew
    assert same(weights(tmp_path / "long"), weights(tmp_path / "short"))


def test_ctrl_c_keeps_a_checkpoint_and_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    real = Trainer._timed_step

    def interrupted(trainer):
        real(trainer)
        if trainer.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "_timed_step", interrupted)
    out = tmp_path / "run"
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert train_tiny(out, "--samples", 0, steps=6) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    said = capsys.readouterr().err
    assert f"stopped after step 3; `python -m ddpm_lite train --resume --out {out}` goes on" in said
    assert not (out / "model.safetensors").exists()
    monkeypatch.undo()
    # on the CPU, where the same bits are promised
    assert run("train", "--resume", "--out", out, "--device", "cpu", "--quiet", "--samples", 0) == 0
    assert train_tiny(tmp_path / "straight", "--samples", 0, steps=6) == 0
    assert same(weights(out), weights(tmp_path / "straight"))


def test_a_loss_that_is_no_number_is_one_sentence_and_exit_code_1(tmp_path, capsys):
    wild = ("--learning-rate", "1e30", "--clip-norm", "1e30")
    assert train_tiny(tmp_path / "run", *wild, steps=9) == 1
    said = capsys.readouterr().err
    assert "not a finite number at step" in said and said.count("\n") == 1
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_what_is_trained_is_reported(tmp_path, capsys):
    words = [word for word in TINY if word != "--quiet"]
    out = tmp_path / "run"
    options = ("--data", "digits", "--out", out, "--steps", 2, "--samples", 1)
    assert run("train", *options, *words) == 0
    said = capsys.readouterr()
    assert "digits (train): 1,442 grey images, 8×8, 17 levels" in said.out
    assert "precision  float32: asked for" in said.out
    assert f"{out / 'model.safetensors'}" in said.out and f"{out / 'samples.png'}" in said.out
    assert "images/s" in said.err


def test_a_learned_variance_gets_its_channels_levels_and_loss(tmp_path):
    assert train_tiny(tmp_path / "run", "--variance", "learned", "--samples", 1, steps=2) == 0
    model = load_model(tmp_path / "run")
    assert model.diffusion.variance == "learned" and model.network.config.out_channels == 2
    settings = model.about["training"]["settings"]
    assert settings["hybrid_weight"] == 0.001 and settings["levels"] == 17


def test_training_on_a_folder_of_images(tmp_path):
    folder_of_images(tmp_path / "images", 20, size=24)
    options = ("--size", 16, "--attention-resolutions", "8", "--samples", 1)
    assert train_tiny(tmp_path / "run", *options, steps=2, data=tmp_path / "images") == 0
    model = load_model(tmp_path / "run")
    assert model.network.config.image_size == 16 and model.about["levels"] == 256
    assert model.about["data_options"] == {"size": 16, "channels": None}
    # the images may have been moved, and --size need not be said again
    (tmp_path / "images").rename(tmp_path / "moved")
    resume = ("train", "--resume", "--out", tmp_path / "run", "--steps", 3, "--quiet")
    assert run(*resume, "--samples", 0) == 2
    assert run(*resume, "--samples", 0, "--data", tmp_path / "moved") == 0
    assert load_model(tmp_path / "run").about["training"]["steps"] == 3


def given(*words):
    return train._parser("x").parse_args(["--out", "o", *map(str, words)])


@pytest.mark.parametrize(
    ("preset", "shape"),
    [("digits", (1, 8, 8)), ("mnist", (1, 28, 28)), ("cifar10-small", (3, 32, 32))],
)
def test_the_preset_is_the_one_made_for_such_images(preset, shape):
    dataset = argparse.Namespace(images=torch.zeros(2, *shape))
    assert train._preset_for(dataset) == preset


def test_where_no_preset_fits_one_must_be_named():
    dataset = argparse.Namespace(images=torch.zeros(2, 3, 20, 20))
    with pytest.raises(common.Refused, match="no preset is made for 20×20 images with 3 channels"):
        train._preset_for(dataset)


def test_a_preset_takes_the_size_and_channels_of_the_data():
    dataset = argparse.Namespace(images=torch.zeros(2, 1, 64, 64))
    diffusion = GaussianDiffusion(NoiseSchedule.linear(1000))
    options = given("--dropout", 0.2, "--attention-resolutions", "none", "--block", "convnext")
    config = train._network_config(options, "ddpm-cifar10", dataset, diffusion)
    assert (config.image_size, config.in_channels, config.out_channels) == (64, 1, 1)
    assert (config.dropout, config.attention_resolutions, config.block) == (0.2, (), "convnext")
    assert config.base_channels == 128


def test_the_papers_settings_are_those_of_its_network():
    """DDPM, appendix B."""
    dataset = argparse.Namespace(images=torch.zeros(2, 3, 32, 32), levels=256)
    diffusion = train._diffusion(given())
    assert diffusion.schedule == NoiseSchedule.linear(1000)
    assert (diffusion.prediction, diffusion.variance) == ("eps", "posterior")
    config = train._training_config(given(), "ddpm-cifar10", dataset, diffusion)
    assert (config.steps, config.batch_size, config.learning_rate) == (800_000, 128, 2e-4)
    assert (config.warmup_steps, config.ema_decay, config.clip_norm) == (5000, 0.9999, 1.0)
    assert config.horizontal_flip and config.weight_decay == 0 and config.betas == (0.9, 0.999)


@pytest.mark.parametrize(
    ("name", "words"), [("digits", ()), ("digits-conditional", ("--class-conditional",))]
)
def test_training_on_the_digits_is_what_made_the_models_of_the_book(name, words):
    made = shipped(name)
    dataset = load("digits", "train")
    diffusion = train._diffusion(given(*words))
    assert made.diffusion.schedule == diffusion.schedule
    assert made.network.config == train._network_config(given(*words), "digits", dataset, diffusion)
    config = train._training_config(given(*words), "digits", dataset, diffusion).to_dict()
    then = made.about["training"]["settings"]
    then |= {"steps": made.about["training"]["steps"]}
    apart = {name for name, value in config.items() if then[name] != value}
    assert apart <= {"precision", "checkpoint_every"}  # the precision: to be the same everywhere


def test_every_option_of_training_reaches_the_configuration():
    words = {
        **{"--steps": 5, "--batch-size": 3, "--lr": 0.5, "--warmup-steps": 7, "--seed": 9},
        **{"--weight-decay": 0.25, "--clip-norm": 2, "--ema-decay": 0.5, "--log-every": 4},
        **{"--checkpoint-every": 6, "--step-sampling": "stratified", "--precision": "bf16"},
    }
    flags = ("--horizontal-flip", "--channels-last", "--compile")
    options = given(*(part for pair in words.items() for part in pair), *flags)
    dataset = argparse.Namespace(images=torch.zeros(2, 1, 8, 8), levels=17)
    diffusion = train._diffusion(given())
    config = train._training_config(options, "digits", dataset, diffusion)
    found = config.to_dict()
    assert found["learning_rate"] == 0.5
    for option, value in words.items():
        if option != "--lr":
            assert found[option.removeprefix("--").replace("-", "_")] == value
    assert config.horizontal_flip and config.channels_last and config.compile


def test_the_weights_and_the_noise_do_not_share_their_random_numbers(tmp_path):
    assert train_tiny(tmp_path / "run", "--samples", 0, steps=1) == 0
    trained = load_model(tmp_path / "run").network
    shared = torch.Generator().manual_seed(0)
    own = torch.Generator().manual_seed(train.NETWORK_SEED)
    start = {name: type(trained)(trained.config, g).conv_in.weight for name, g in
             (("shared", shared), ("own", own))}  # fmt: skip
    apart = {name: (trained.conv_in.weight - w).abs().max() for name, w in start.items()}
    assert apart["own"] < 0.01 < apart["shared"]  # one step of Adam moves a weight by 0.001


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "the following arguments are required: --out"),
        (["--out", "{}/run"], "--data is missing: digits, glyphs, or a folder of images."),
        (["--out", "{}/run", "--data", "nowhere"], "there is no folder nowhere"),
        (
            ["--out", "{}/run", "--data", "digits", "--steps", "0"],
            "--steps: must be a whole number",
        ),
        (["--out", "{}/run", "--data", "digits", "--steps", "1e3"], "of at least 1, got '1e3'"),
        (["--out", "{}/run", "--data", "digits", "--lr", "0"], "must be a number above 0, got '0'"),
        (["--out", "{}/run", "--data", "digits", "--lr", "nan"], "above 0, got 'nan'"),
        (["--out", "{}/run", "--data", "digits", "--lr", "inf"], "above 0, got 'inf'"),
        (["--out", "{}/run", "--data", "digits", "--dropout", "1"], "at most 0.9, got '1'"),
        (["--out", "{}/run", "--data", "digits", "--ema-decay", "1"], "at most 0.999999, got '1'"),
        (["--out", "{}/run", "--data", "digits", "--seed", "-1"], "in 0..2147483647, got '-1'"),
        (["--out", "{}/run", "--data", "digits", "--device", "gpu"], "cuda:1, … or mps, got 'gpu'"),
        (["--out", "{}/run", "--data", "digits", "--preset", "big"], "invalid choice: 'big'"),
        (["--out", "{}/run", "--data", "digits", "--sched", "cosine"], "unrecognized arguments"),
        (["--out", "{}/run", "--data", "digits", "--channel-multipliers", "1,,2"], "such as 1,2,2"),
        (["--out", "{}/run", "--data", "digits", "--channel-multipliers", "1,1,1,1,1"], "multiple"),
        (["--out", "{}/run", "--data", "digits", "--attention-resolutions", "5"], "got 5"),
        (["--out", "{}/run", "--data", "digits", "--base-channels", "12"], "norm_groups = 8, got"),
        (["--out", "{}/run", "--data", "digits", "--base-channels", "8"], "must be above 8, got 8"),
        (["--out", "{}/run", "--data", "digits", "--size", "16"], "not digits"),
        (["--out", "{}/run", "--data", "digits", "--T", "20"], "82% of the image's variance"),
        (["--out", "{}/run", "--data", "digits", "--hybrid-weight", "1"], "learned variance only"),
        (["--out", "{}/file", "--data", "digits"], "is a file; the run needs a folder"),
        (["--out", "{}/full", "--data", "digits"], "is not empty: name a new folder"),
        (["--out", "{}/nothing", "--resume"], "there is no run in"),
        (["--out", "{}/foreign", "--resume"], "was not begun by this command"),
        (["--out", "{}/torn", "--resume"], "is not a whole JSON file"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(tmp_path, capsys, words, complaint):
    (tmp_path / "file").write_text("")
    for name, content in (("full", "{}"), ("foreign", "{}"), ("torn", '{"run": ')):
        (tmp_path / name).mkdir()
        (tmp_path / name / ("x.json" if name == "full" else "config.json")).write_text(content)
    before = sorted(tmp_path.rglob("*"))
    assert complaint in refused(capsys, "train", *(word.format(tmp_path) for word in words))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said(tmp_path, capsys):
    words = ("train", "--data", "digits", "--out", tmp_path / "run", "--device", "cuda")
    assert "there is no GPU" in refused(capsys, *words)
    assert not (tmp_path / "run").exists()


def test_steps_must_be_said_where_nothing_is_usual(tmp_path, capsys):
    folder_of_images(tmp_path / "images", 3, size=28)
    words = ("train", "--data", tmp_path / "images", "--out", tmp_path / "run", "--quiet")
    assert "--steps is missing" in refused(capsys, *words)


def test_images_that_are_not_square_need_a_size(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    Image.new("L", (8, 10)).save(tmp_path / "images" / "a.png")
    words = (
        "train",
        "--data",
        tmp_path / "images",
        "--out",
        tmp_path / "run",
        "--preset",
        "digits",
    )
    assert "these are 10×8: say --size" in refused(capsys, *words)


@pytest.mark.parametrize("option", ["--learning-rate", "--T", "--preset", "--compile", "--size"])
def test_a_run_that_goes_on_keeps_its_settings(trained, capsys, option):
    value = {"--preset": ["digits"], "--compile": []}.get(option, ["3"])
    words = ("train", "--resume", "--out", trained, option, *value)
    assert f"{option} cannot be changed" in refused(capsys, *words)


def test_a_run_is_not_begun_in_the_folder_of_another(trained, capsys):
    before = weights(trained)
    words = ("train", "--data", "digits", "--out", trained)
    assert "holds a run already: --resume goes on with it" in refused(capsys, *words)
    assert same(before, weights(trained))


def test_a_run_does_not_go_on_with_other_images(trained, tmp_path, capsys):
    folder_of_images(tmp_path / "images", 20)
    words = ("train", "--resume", "--out", trained, "--data", tmp_path / "images", "--quiet")
    assert "belongs to another run" in refused(capsys, *words)


def test_two_processes_train_what_one_does(trained, tmp_path):
    """torchrun, as typed: one of the two prints and writes, and the model is the same."""
    out = tmp_path / "run"
    words = [word for word in TINY if word != "--quiet"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "ddpm_lite", "train", "--data", "digits", "--out", str(out), "--steps", "4"]
    done = subprocess.run(
        [*command, *words, "--samples", "2"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("digits (train)") == done.stdout.count("2 process(es)") == 1
    assert done.stdout.count("samples.png") == 1
    # the same function, not the same weights: a bias that a normalisation takes away again has a
    # gradient of rounding errors alone, which Adam enlarges
    alone, together = (load_model(folder).network for folder in (trained, out))
    x = torch.randn(50, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for t in (1, T // 2, T):
        with torch.no_grad():
            assert (alone(x, t) - together(x, t)).abs().max() < 1e-5
    start = UNet(alone.config, torch.Generator().manual_seed(train.NETWORK_SEED))
    with torch.no_grad():
        assert (alone(x, 1) - start(x, 1)).abs().max() > 1e-3  # so that the comparison says much
    assert (out / "samples.json").is_file()


# ---- sample ----


def library_samples(model, count, *, seed=0, clip=(-1, 1), variance=None, **settings):
    loaded = load_model(model)
    diffusion = loaded.diffusion
    if variance:
        diffusion = GaussianDiffusion(diffusion.schedule, diffusion.prediction, variance)
    generator = torch.Generator().manual_seed(seed)
    settings = {"steps": T, "eta": 1.0, **settings}
    shape = (count, 1, 8, 8)
    return generate(loaded.network, diffusion, shape, generator=generator, clip=clip, **settings)


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ([], {}),
        (["--seed", "7"], {"seed": 7}),
        (["--eta", "0", "--steps", "5", "--spacing", "trailing"],
         {"eta": 0.0, "steps": 5, "spacing": "trailing"}),
        (["--variance", "beta"], {"variance": "beta"}),
        (["--no-clip"], {"clip": None}),
    ],
)  # fmt: skip
def test_samples_are_those_of_the_library(trained, tmp_path, words, settings):
    raw = tmp_path / "s.safetensors"
    assert draw(trained, tmp_path / "s.png", "--n", 5, "--raw", raw, *words) == 0
    tensors, record = read_tensors(raw)
    expected = library_samples(trained, 5, **settings)
    assert torch.equal(tensors["samples"], expected)
    assert record == json.loads((tmp_path / "s.json").read_text())
    assert np.array_equal(
        picture(tmp_path / "s.png"), np.asarray(Image.open(io.BytesIO(common.grid_png(expected))))
    )


def test_the_record_says_what_was_run(trained, tmp_path, capsys):
    out = tmp_path / "s.png"
    assert draw(trained, out, "--n", 3, "--raw", tmp_path / "s.npz", "--json", "--seed", 4) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "s.json").read_text())
    assert printed["files"] == {"picture": "s.png", "samples": "s.npz"}
    assert printed["sampling"]["seed"] == 4 and printed["sampling"]["eta"] == 1.0
    assert printed["sampling"]["steps"] == printed["sampling"]["of"] == T
    assert printed["sampling"]["clip"] == [-1, 1] and printed["sampling"]["variance"] == "posterior"
    assert printed["model"]["sha256"] == common.sha256_of(trained / "model.safetensors")
    # the command in it, typed again, gives the same samples
    words = shlex.split(printed["command"])
    assert words[:4] == ["python", "-m", "ddpm_lite", "sample"]
    with np.load(tmp_path / "s.npz") as stored:
        first = stored["samples"]
    assert first.shape == (3, 1, 8, 8) and first.dtype == np.float32
    assert run(*words[3:], "--overwrite") == 0
    with np.load(tmp_path / "s.npz") as stored:
        assert np.array_equal(first, stored["samples"])


def test_batches_follow_one_another_in_the_random_numbers(trained, tmp_path):
    raw = tmp_path / "s.safetensors"
    assert draw(trained, tmp_path / "s.png", "--n", 5, "--batch-size", 2, "--raw", raw) == 0
    samples = read_tensors(raw)[0]["samples"]
    assert torch.equal(samples[:2], library_samples(trained, 2))
    assert samples.shape == (5, 1, 8, 8) and len(samples.unique(dim=0)) == 5


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--model", "nowhere", "--out", "{}/s.png"], "there is no folder nowhere"),
        (["--model", "{}", "--out", "{}/s.png"], "there is no model in"),
        (["--model", "M", "--out", "{}/s.jpg"], "--out must end in .png"),
        (["--model", "M", "--out", "{}/no/s.png"], "there is no folder"),
        (["--model", "M", "--out", "{}/old.png"], "is there already: choose another name"),
        (["--model", "M", "--out", "{}/half.png"], "half.json is there already"),
        (["--model", "M", "--out", "{}/s.png", "--raw", "{}/s.txt"], "in .safetensors or .npz"),
        (["--model", "M", "--out", "{}/s.png", "--n", "0"], "of at least 1, got '0'"),
        (["--model", "M", "--out", "{}/s.png", "--eta", "2"], "at most 1, got '2'"),
        (["--model", "M", "--out", "{}/s.png", "--steps", "5"], "of T = 12 steps need --spacing"),
        (["--model", "M", "--out", "{}/s.png", "--steps", "13"], "at most T = 12, got 13"),
        (["--model", "M", "--out", "{}/s.png", "--steps", "1", "--spacing", "log-snr"], "at least"),
        (["--model", "M", "--out", "{}/s.png", "--variance", "beta", "--eta", "0"], "eta = 1 only"),
    ],
)  # fmt: skip
def test_what_cannot_be_sampled_is_one_sentence(trained, tmp_path, capsys, words, complaint):
    for name in ("old.png", "half.json"):
        (tmp_path / name).write_text("")
    words = [str(trained) if word == "M" else word.format(tmp_path) for word in words]
    assert complaint in refused(capsys, "sample", "--quiet", *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half.json", "old.png"]


def test_a_damaged_model_is_one_sentence(trained, tmp_path, capsys):
    whole = (trained / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    words = ("sample", "--model", tmp_path, "--out", tmp_path / "s.png", "--quiet")
    assert "model.safetensors is truncated" in refused(capsys, *words)


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(
    trained, tmp_path, capsys, monkeypatch
):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    words = ("sample", "--model", trained, "--out", tmp_path / "s.png", "--quiet")
    assert "No space left on device" in refused(capsys, *words, code=1)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_not_finished_has_no_model_yet(trained, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes((trained / "config.json").read_bytes())
    words = ("sample", "--model", tmp_path, "--out", tmp_path / "s.png")
    assert "has not come to its end" in refused(capsys, *words)


def test_a_model_of_the_book_goes_by_its_name(trained, tmp_path, monkeypatch, capsys):
    """And a folder that happens to have that name does not shadow it."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "small").symlink_to(trained)
    monkeypatch.setattr(common, "WEIGHTS", tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    assert draw("small", "s.png", "--n", 2) == 0
    capsys.readouterr()
    assert "there is no model in small" in refused(
        capsys, "sample", "--model", "./small", "--out", "t.png"
    )
    message = refused(capsys, "sample", "--model", "large", "--out", "t.png")
    assert "the models that come with the book are small" in message


# ---- the picture ----


def test_a_picture_shows_every_image_pixel_for_pixel():
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (5, 3, 32, 32))
    images = torch.from_numpy(levels).float() / 127.5 - 1
    sheet = np.asarray(Image.open(io.BytesIO(common.grid_png(images, columns=3))))
    factor, gap = 2, 2
    tall = 32 * factor + gap
    assert sheet.shape == (2 * tall + gap, 3 * tall + gap, 3)
    for i in range(5):
        top, left = gap + i // 3 * tall, gap + i % 3 * tall
        tile = sheet[top : top + 64, left : left + 64]
        for row, column in ((0, 0), (1, 1)):
            part = tile[row::factor, column::factor]
            assert np.array_equal(part.transpose(2, 0, 1), levels[i])
    assert (sheet[:gap] == 200).all() and (sheet[tall + gap :, 2 * tall + gap :] == 200).all()


def test_a_picture_clips_and_keeps_the_shape_of_its_images():
    images = torch.tensor([-3.0, -1.0, 1.0, 3.0]).reshape(4, 1, 1, 1).expand(4, 1, 70, 100)
    sheet = np.asarray(Image.open(io.BytesIO(common.grid_png(images))))
    assert sheet.shape == (2 * 72 + 2, 2 * 102 + 2)
    assert set(np.unique(sheet)) == {0, 200, 255}


# ---- evaluate ----


def test_an_evaluation_is_read_by_people_and_programs(trained, tmp_path, capsys):
    out = tmp_path / "e.json"
    words = ("evaluate", "--model", trained, "--n", 30, "--quiet", "--out", out, "--bits", 4)
    assert run(*words) == 0
    said = capsys.readouterr().out
    record = json.loads(out.read_text())
    report = record["report"]
    assert report["size"] == 30 and report["generations"] == 5
    assert f"verdict: {report['verdict']}" in said
    assert f"{report['distance']['mean']:.3f}" in said and f"{report['floor']['mean']:.3f}" in said
    assert record["features"] == "classifier" and len(report["class_shares"]) == 10
    assert record["data"] == {
        **{"name": "digits", "trained_on_these": True, "train": 1442, "held_out": 355},
        "compared": 30,
    }
    assert record["bits_per_dim"]["images"] == 4 and record["bits_per_dim"]["mean"] > 1
    assert f"at most {record['bits_per_dim']['mean']:.3f}" in said
    assert "is there already" in refused(capsys, *words)
    assert run(*words[:-2], "--overwrite", "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["report"] == report and "bits_per_dim" not in again


def test_generations_are_those_of_their_seeds(trained, monkeypatch):
    seen = {}

    def spy(generations, train, heldout, **settings):
        seen.update(settings, generations=generations, train=train, heldout=heldout)
        raise common.Failed("enough.")

    monkeypatch.setattr(evaluate, "evaluate", spy)
    words = ("--n", 26, "--quiet", "--seed", 3, "--device", "cpu")
    assert run("evaluate", "--model", trained, *words) == 1
    for i, images in enumerate(seen["generations"]):
        assert torch.equal(images, library_samples(trained, 26, seed=3 + i))
    heldout = digits("heldout")[0]
    assert torch.equal(seen["heldout"], heldout[[i * 355 // 26 for i in range(26)]])
    assert torch.equal(seen["train"], digits("train")[0]) and seen["levels"] == 17


def test_evaluating_on_images_without_a_classifier(tmp_path, capsys):
    folder_of_images(tmp_path / "images", 280)
    run_folder = tmp_path / "run"
    assert train_tiny(run_folder, "--samples", 0, steps=2, data=tmp_path / "images") == 0
    words = ("evaluate", "--model", run_folder, "--quiet")
    assert run(*words, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["features"] == "principal components"
    assert record["data"]["compared"] == 28 and "class_shares" not in record["report"]
    folder_of_images(tmp_path / "others", 280, seed=1)
    assert run(*words, "--data", tmp_path / "others") == 0
    assert "trained on other images than these" in capsys.readouterr().out


def test_principal_components_are_uncorrelated_with_variance_one():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(16, 16, generator=generator)
    images = (torch.randn(3000, 16, generator=generator) @ mixing + 1).reshape(3000, 1, 4, 4)
    network = evaluate.PrincipalComponents(images, 5)
    found = network.features(images)
    assert found.shape == (3000, 5) and found.mean(0).abs().max() < 1e-10
    identity = torch.eye(5, dtype=torch.float64)
    assert (found.T @ found / 3000 - identity).abs().max() < 1e-10
    # and they are the ones with the most variance
    rows = images.flatten(1).double()
    kept = torch.linalg.eigvalsh(torch.cov(rows.T, correction=0))[-5:]
    step = network.direction / network.direction.norm(dim=0)
    variance = ((rows - rows.mean(0)) @ step).square().mean(0)
    assert torch.allclose(variance, kept)


def test_pixels_that_never_change_are_no_components():
    images = torch.zeros(50, 1, 4, 4)
    images[:, :, 0, :3] = torch.randn(50, 1, 3, generator=torch.Generator().manual_seed(0))
    assert evaluate.PrincipalComponents(images, 5).features(images).shape == (50, 3)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--generations", "4"], "of at least 5, got '4'"),
        (["--n", "10"], "of at least 25, got '10'"),
        (["--n", "356"], "at most the 355 images held out, got 356"),
        (["--out", "e.txt"], "--out must end in .json"),
        (["--data", "nowhere"], "there is no folder nowhere"),
        (["--data", "FEW"], "9 are held out and 81 are for training"),
        (["--data", "MNIST"], "the model makes images (1, 8, 8), and those of"),
        (["--steps", "3"], "need --spacing"),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence(trained, tmp_path, capsys, words, complaint):
    folder_of_images(tmp_path / "FEW", 90)
    (tmp_path / "MNIST").mkdir()
    for part in ("train", "t10k"):
        for what, shape in (("images-idx3", (3, 28, 28)), ("labels-idx1", (3,))):
            header = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
            content = header + bytes(math.prod(shape))
            (tmp_path / "MNIST" / f"{part}-{what}-ubyte").write_bytes(content)
    words = [str(tmp_path / word) if word in ("FEW", "MNIST") else word for word in words]
    assert complaint in refused(capsys, "evaluate", "--model", trained, "--quiet", *words)


# ---- export ----


def test_an_export_is_the_same_network(trained, tmp_path, capsys):
    out = tmp_path / "diffusers"
    assert run("export", "--model", trained, "--to", "diffusers", "--out", out) == 0
    assert "unet/config.json" in capsys.readouterr().out
    network, diffusion = from_diffusers(out)
    ours = load_model(trained).network
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for t in (1, 7, T):
        with torch.no_grad():
            assert (network(x, t) - ours(x, t)).abs().max() < 1e-5
    assert diffusion.T == T
    assert [path.name for path in tmp_path.iterdir()] == ["diffusers"]
    settings = json.loads((out / "scheduler" / "scheduler_config.json").read_text())
    assert settings["clip_sample"] is True and settings["clip_sample_range"] == 1
    # and every command takes it back
    assert draw(out, tmp_path / "s.png", "--n", 1) == 0
    assert run("info", "--model", out) == 0


def test_an_export_does_not_overwrite(trained, tmp_path, capsys):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "x").write_text("")
    (tmp_path / "file").write_text("")
    words = ("export", "--model", trained, "--to", "diffusers", "--out")
    assert "is there already" in refused(capsys, *words, tmp_path / "old")
    assert "is there already" in refused(capsys, *words, tmp_path / "file")
    assert "there is no folder" in refused(capsys, *words, tmp_path / "no" / "where")
    assert "invalid choice" in refused(
        capsys, "export", "--model", trained, "--to", "onnx", "--out", tmp_path / "x"
    )


def test_a_network_that_diffusers_does_not_have_leaves_nothing_behind(tmp_path, capsys):
    assert train_tiny(tmp_path / "run", "--block", "convnext", "--samples", 0, steps=1) == 0
    words = ("export", "--model", tmp_path / "run", "--to", "diffusers", "--out", tmp_path / "d")
    assert "no counterpart of block = 'convnext'" in refused(capsys, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# ---- info ----


def test_info_says_what_is_in_a_model(trained, capsys):
    assert run("info", "--model", trained) == 0
    said = capsys.readouterr().out
    count = count_parameters(load_model(trained).network)
    assert (
        f"{count:,} parameters" in said and common.sha256_of(trained / "model.safetensors") in said
    )
    assert f"T = {T}, cosine schedule" in said and "predicts eps, variance posterior" in said
    assert "digits, 17 levels" in said and "4 steps of 16" in said
    assert "step 4 of 4" in said and "checkpoints at 0, 4" in said
    assert run("info", "--model", trained, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["parameters"] == count and record["diffusion"]["schedule"] == "cosine"
    assert record["run"]["last_record"]["step"] == 4
    assert record["about"]["training"]["settings"]["batch_size"] == 16


def test_info_on_a_run_that_is_under_way(trained, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes((trained / "config.json").read_bytes())
    torn = '{"step": 2, "loss": 0.5, "images_per_second": 100.0}\n{"step": 4, "lo'
    (tmp_path / "metrics.jsonl").write_text(torn)
    assert run("info", "--model", tmp_path) == 0
    assert capsys.readouterr().out.startswith("run  step 2 of 4, loss 0.5000, 100 images/s")
    (tmp_path / "metrics.jsonl").unlink()
    assert run("info", "--model", tmp_path) == 0
    assert "nothing recorded yet" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_info_knows_the_usual_schedules(name):
    from ddpm_lite.commands import info

    for length in (10, 1000):
        assert info._name_of(getattr(NoiseSchedule, name)(length)) == name
    assert info._name_of(NoiseSchedule.linear(1000, beta_T=0.021)) is None
    assert info._name_of(NoiseSchedule.cosine(1000, offset=0.009)) is None


def test_info_on_nothing(tmp_path, capsys):
    assert "there is no folder nowhere" in refused(capsys, "info", "--model", "nowhere")
    assert "there is no model in" in refused(capsys, "info", "--model", tmp_path)


# ---- all of them ----

LIBRARY = [name for name in __main__.COMMANDS if name != "book"]


@pytest.mark.parametrize("name", LIBRARY)
def test_help_explains_every_option(name, capsys):
    with pytest.raises(SystemExit) as end:
        run(name, "--help")
    assert end.value.code == 0
    said = capsys.readouterr().out
    module = importlib.import_module(__main__.COMMANDS[name][0])
    parser = module._parser(f"python -m ddpm_lite {name}")
    for action in parser._actions:
        assert action.help and len(action.help) > 4, action.dest
        assert action.option_strings[0] in said
    assert "%(" not in said


@pytest.mark.parametrize("name", LIBRARY)
def test_the_sections_that_help_points_at_are_there(name, capsys):
    headings = "".join(path.read_text() for path in (ROOT / "chapters").glob("*.py"))
    with pytest.raises(SystemExit):
        run(name, "--help")
    said = " ".join(capsys.readouterr().out.split())
    for section in re.findall(r"section ([0-9A-Z]+\.\d+)", said):
        assert re.search(rf"(?m)^# ## {re.escape(section)} ", headings), section


@pytest.mark.parametrize("name", LIBRARY)
def test_the_examples_in_the_help_are_accepted(name):
    module = importlib.import_module(__main__.COMMANDS[name][0])
    description = re.sub(r"\\\n +", "", module.DESCRIPTION)  # examples that go on in another line
    examples = re.findall(rf"(?m)^  .*-m ddpm_lite {name} (.*)$", description)
    assert examples
    for words in examples:
        module._parser("x").parse_args(shlex.split(words))


def test_the_list_of_commands_says_what_each_does(capsys):
    with pytest.raises(SystemExit) as end:
        run("--help")
    assert end.value.code == 0
    said = capsys.readouterr().out
    for name, (_, what, _) in __main__.COMMANDS.items():
        assert re.search(rf"(?m)^  {name} +{re.escape(what)}$", said)


@pytest.mark.parametrize(("name", "package"), [("train", "ddpm-lite"), ("book", "ddpm-lite[book]")])
def test_a_package_that_is_missing_is_named_with_what_installs_it(
    name, package, capsys, monkeypatch
):
    def missing(module):
        raise ModuleNotFoundError("No module named 'tqdm'", name="tqdm")

    monkeypatch.setattr(__main__.importlib, "import_module", missing)
    assert run(name) == 2
    said = capsys.readouterr().err
    assert said == f"`{name}` needs tqdm, which is not installed: pip install '{package}'\n"


def test_a_mistake_of_ours_is_not_hidden(trained, tmp_path, monkeypatch):
    """Only what the request is to blame for becomes a sentence."""

    def wrong(*_, **__):
        raise ValueError("a mistake in the program")

    monkeypatch.setattr(recipe.Recipe, "draw", wrong)
    with pytest.raises(ValueError, match="a mistake in the program"):
        draw(trained, tmp_path / "s.png", "--n", 1)

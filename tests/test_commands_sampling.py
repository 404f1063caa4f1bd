"""Samplers, classes, guidance and films from the command line: the library's numbers."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from tiny_commands import (
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

from ddpm_lite.commands import common, evaluate, recipe, sample
from ddpm_lite.data import digits
from ddpm_lite.guidance import guided
from ddpm_lite.metrics import classifier, quantise
from ddpm_lite.sampling import generate, solve, trajectory
from ddpm_lite.storage import load_model, read_tensors
from ddpm_lite.unet import UNet

TRAILING = ("--steps", "5", "--spacing", "trailing")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A network without classes."""
    out = tmp_path_factory.mktemp("runs") / "plain"
    assert train_tiny(out, "--samples", 0) == 0
    return out


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    """A run with the digits' classes, wide enough to be told them: where each channel has a group
    to itself, the group's normalisation takes away what an embedding adds to a channel."""
    out = tmp_path_factory.mktemp("runs") / "conditional"
    words = ("--class-conditional", "--label-dropout", 0.2, "--samples", 23, "--base-channels", 16)
    assert train_tiny(out, *words, "--ema-decay", 0, "--lr", 0.01, steps=12) == 0
    return out


def labels_in_turn(count, *classes):
    return torch.tensor([classes[i % len(classes)] for i in range(count)])


def by_the_library(folder, count, *, y, solver=None, guidance=None, **settings):
    model = load_model(folder)
    denoiser = model.network
    if guidance:
        denoiser = guided(denoiser, guidance.pop("w"), **guidance, diffusion=model.diffusion)
    settings = {"steps": T, "generator": torch.Generator().manual_seed(0), "y": y} | settings
    shape = (count, 1, 8, 8)
    if solver:
        walk = solve(denoiser, model.diffusion, shape, solver=solver, clip=(-1, 1), **settings)
        return walk.result()
    return generate(denoiser, model.diffusion, shape, clip=(-1, 1), **{"eta": 1.0} | settings)


def drawn(model, tmp_path, *words, n=6, name="s"):
    """What the command wrote: the samples, their labels (or None) and the record."""
    raw = tmp_path / f"{name}.safetensors"
    assert draw(model, tmp_path / f"{name}.png", "--n", n, "--raw", raw, *words) == 0
    tensors, record = read_tensors(raw)
    assert record == json.loads((tmp_path / f"{name}.json").read_text())
    return tensors["samples"], tensors.get("labels"), record


# ---- samplers ----

SAMPLERS = [
    ([], {}, ("ddpm", 1.0, T)),
    (["--sampler", "ddpm", "--eta", "1"], {}, ("ddpm", 1.0, T)),
    (["--sampler", "ddim"], {"eta": 0.0}, ("ddim", 0.0, T)),
    (["--sampler", "ddim", *TRAILING], {"solver": "ddim", "steps": 5, "spacing": "trailing"},
     ("ddim", 0.0, 5)),
    (["--sampler", "ddim", "--eta", "0.5"], {"eta": 0.5}, ("ddim", 0.5, T)),
    (["--eta", "0.5"], {"eta": 0.5}, ("ddim", 0.5, T)),
    (["--eta", "0", *TRAILING], {"eta": 0.0, "steps": 5, "spacing": "trailing"}, ("ddim", 0.0, 5)),
    (["--sampler", "heun", "--steps", "4", "--spacing", "log-snr"],
     {"solver": "heun", "steps": 4, "spacing": "log-snr"}, ("heun", 0.0, 7)),
    (["--sampler", "heun", "--eta", "0"], {"solver": "heun"}, ("heun", 0.0, 2 * T - 1)),
    (["--sampler", "dpmpp-2m", "--steps", "5", "--spacing", "quadratic"],
     {"solver": "dpmpp-2m", "steps": 5, "spacing": "quadratic"}, ("dpmpp-2m", 0.0, 5)),
]  # fmt: skip


@pytest.mark.parametrize(("words", "settings", "said"), SAMPLERS)
def test_each_sampler_is_the_librarys(plain, tmp_path, words, settings, said):
    samples, labels, record = drawn(plain, tmp_path, *words)
    assert torch.equal(samples, by_the_library(plain, 6, y=None, **settings))
    assert labels is None and "classes" not in record["sampling"]
    way = record["sampling"]
    assert (way["sampler"], way["eta"], way["calls"]) == said
    assert way["variance"] == ("posterior" if way["eta"] > 0 else None)
    assert way["guidance"] is None


def test_the_calls_that_are_said_are_those_that_are_made(plain, tmp_path, capsys, monkeypatch):
    calls = 0
    forward = UNet.forward

    def counting(*arguments):
        nonlocal calls
        calls += 1
        return forward(*arguments)

    monkeypatch.setattr(UNet, "forward", counting)
    words = ("--sampler", "heun", "--steps", 4, "--spacing", "log-snr", "--n", 2)
    assert draw(plain, tmp_path / "s.png", *words) == 0
    assert calls == 7
    assert "(7 calls of the network each)" in capsys.readouterr().out


def test_a_learned_variance_has_no_part_in_a_walk_without_noise(tmp_path):
    out = tmp_path / "run"
    assert train_tiny(out, "--variance", "learned", "--samples", 0, steps=2) == 0
    samples, _, record = drawn(out, tmp_path, "--sampler", "dpmpp-2m")
    assert torch.equal(samples, by_the_library(out, 6, y=None, solver="dpmpp-2m"))
    assert record["sampling"]["variance"] is None


# ---- classes and guidance ----


@pytest.mark.parametrize(
    ("words", "y", "names"),
    [
        ([], labels_in_turn(13, *range(10)), list("0123456789")),
        (["--class", "7"], labels_in_turn(13, 7), ["7"]),
        (["--class", "4,0, 2"], labels_in_turn(13, 4, 0, 2), ["4", "0", "2"]),
        (["--class", "none"], None, []),
    ],
)
def test_classes_are_drawn_in_turn(conditional, tmp_path, words, y, names):
    samples, labels, record = drawn(conditional, tmp_path, *words, n=13)
    assert torch.equal(samples, by_the_library(conditional, 13, y=y))
    assert record["sampling"]["classes"] == names
    assert labels is None if y is None else torch.equal(labels, y)


def test_classes_go_on_in_the_next_batch(conditional, tmp_path):
    samples, labels, _ = drawn(conditional, tmp_path, "--class", "4,0,2", "--batch-size", 4)
    assert torch.equal(labels, labels_in_turn(6, 4, 0, 2))
    generator = torch.Generator().manual_seed(0)
    batches = [
        by_the_library(conditional, len(y), y=y, generator=generator) for y in labels.split(4)
    ]
    assert torch.equal(samples, torch.cat(batches))


def test_classes_keep_to_their_columns(conditional, tmp_path):
    samples, *_ = drawn(conditional, tmp_path, "--class", "4,0,2", n=18)
    assert recipe.columns_for(range(3), 18) == 3
    assert np.array_equal(
        picture(tmp_path / "s.png"), np.asarray(common.grid(common.to_bytes(samples), 3))
    )
    # nearest to a square among the multiples; a square for one class, and for very many
    assert recipe.columns_for(range(2), 64) == 8 and recipe.columns_for(range(10), 64) == 10
    assert recipe.columns_for(range(10), 400) == 20 and recipe.columns_for(range(3), 64) == 9
    assert recipe.columns_for([7], 64) is recipe.columns_for(range(100), 64) is None


def test_a_class_goes_by_its_name_or_else_by_its_number():
    words = ("ant", "bee")
    assert [sample._label_of(name, words) for name in ("bee", "ant", "1", "0")] == [1, 0, 1, 0]
    assert sample._label_of("7", ("5", "7")) == 1
    for asked, names in (("0", ("5", "7")), ("2", words), ("wasp", words)):
        with pytest.raises(common.Refused, match=f"no class '{asked}': its 2 classes are"):
            sample._label_of(asked, names)


GUIDANCE = [
    (["--guidance", "1.5"], {"w": 1.5}, {}),
    (["--guidance", "3", "--guidance-interval", "3", "8", "--guidance-rescale", "0.7"],
     {"w": 3.0, "interval": (3, 8), "rescale": 0.7}, {}),
    (["--guidance", "2", "--sampler", "heun", *TRAILING],
     {"w": 2.0}, {"solver": "heun", "steps": 5, "spacing": "trailing"}),
]  # fmt: skip


@pytest.mark.parametrize(("words", "guidance", "settings"), GUIDANCE)
def test_guidance_is_the_librarys(conditional, tmp_path, capsys, words, guidance, settings):
    samples, labels, record = drawn(conditional, tmp_path, *words)
    where = " in the interval" if "interval" in guidance else ""
    assert f", with the class and{where} without)" in capsys.readouterr().out
    said = {"interval": None, "rescale": None, "scale": guidance["w"] + 1} | guidance
    said["interval"] = said["interval"] and list(said["interval"])
    assert record["sampling"]["guidance"] == said
    expected = by_the_library(conditional, 6, y=labels, guidance=guidance, **settings)
    assert torch.equal(samples, expected)
    assert not torch.equal(samples, by_the_library(conditional, 6, y=labels, **settings))


def test_no_guidance_is_guidance_0_and_no_class_is_guidance_minus_1(conditional, tmp_path, capsys):
    free, zero, negative, none = (
        drawn(conditional, tmp_path, *words, name=name)[0]
        for name, words in (
            ("a", []),
            ("b", ["--guidance", "0"]),
            ("c", ["--guidance", "-1"]),
            ("d", ["--class", "none"]),
        )
    )
    said = capsys.readouterr().out.splitlines()
    assert ["without" in line for line in said] == [False, False, True, False]
    assert torch.equal(free, zero)
    assert (negative - none).abs().max() < 1e-4 < 1e-2 < (free - none).abs().max()


def test_what_was_never_learned_is_not_asked_for(tmp_path, capsys):
    run_folder = tmp_path / "run"
    words = ("--class-conditional", "--label-dropout", 0, "--samples", 0)
    assert train_tiny(run_folder, *words, steps=1) == 0
    model = ("--model", run_folder, "--quiet")
    for asked in (["--guidance", 1], ["--class", "none"]):
        out = tmp_path / "s.png"
        said = refused(capsys, "sample", *model, "--out", out, *asked)
        assert said.startswith(" ".join(map(str, asked)).removesuffix(" 1"))
        assert "trained with --label-dropout 0" in said and not out.exists()
    assert "--label-dropout 0" in refused(capsys, "evaluate", *model, "--class", "none")
    assert draw(run_folder, tmp_path / "s.png", "--n", 2, "--guidance", 0) == 0


# ---- what is refused ----


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--sampler", "ddpm", "--eta", "0"], "ddpm is η = 1, and --eta 0 contradicts it"),
        (["--sampler", "heun", "--eta", "0.5"], "heun is η = 0, and --eta 0.5 contradicts it"),
        (["--sampler", "dpmpp-2m", "--eta", "1"], "only ddim takes any"),
        (["--sampler", "euler"], "invalid choice: 'euler'"),
        (["--sampler", "heun", "--steps", "5"], "need --spacing"),
        (["--sampler", "heun", "--variance", "beta"], "--variance beta is of steps with noise"),
        (["--guidance-interval", "2", "5"], "--guidance-interval says how to guide, and needs"),
        (["--guidance-rescale", "0.5"], "--guidance-rescale says how to guide, and needs"),
        (["--guidance", "-2"], "of at least -1, got '-2'"),
        (["--guidance", "inf"], "of at least -1, got 'inf'"),
        (["--guidance", "1", "--class", "none"], "--class none asks for none"),
        (["--guidance", "1", "--guidance-rescale", "2"], "at most 1, got '2'"),
        (["--guidance", "1", "--guidance-interval", "5", "2"], "LOW <= HIGH of 1..12, got 5 2"),
        (["--guidance", "1", "--guidance-interval", "5", "13"], "LOW <= HIGH of 1..12, got 5 13"),
        (["--guidance", "1", "--guidance-interval", "3", "4", *TRAILING], "none of the 5 steps"),
        (["--class", "10"], "no class '10': its 10 classes are 0, 1, 2"),
        (["--class", "1,,2"], "classes between commas, such as 0,1,2, or none, got '1,,2'"),
        (["--class", "1,none"], "no class 'none'"),
        (["--trajectory", "{}/s.png"], "--trajectory must end in .gif"),
        (["--trajectory", "{}/old.gif"], "is there already"),
        (["--trajectory", "{}/no/s.gif"], "there is no folder"),
        (["--trajectory", "{}/s.gif", "--n", "257"], "at most 256 samples at once, got --n 257"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_one_sentence(conditional, tmp_path, capsys, words, complaint):
    (tmp_path / "old.gif").write_text("")
    words = [word.format(tmp_path) for word in words]
    out = ("--model", conditional, "--out", tmp_path / "s.png", "--quiet")
    assert complaint in refused(capsys, "sample", *out, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["old.gif"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--guidance", "1"], "--guidance needs classes, and this model knows none"),
        (["--guidance", "0"], "--guidance needs classes, and this model knows none"),
        (["--class", "3"], "--class asks for a class, and this model knows none"),
        (["--class", "none"], "this model knows none"),
    ],
)
def test_a_model_without_classes_is_not_asked_for_one(plain, tmp_path, capsys, words, complaint):
    out = ("--model", plain, "--out", tmp_path / "s.png", "--quiet")
    assert complaint in refused(capsys, "sample", *out, *words)
    if words != ["--class", "3"]:
        said = refused(capsys, "evaluate", "--model", plain, "--quiet", *words)
        assert "needs classes" in said or "for a model with classes" in said
    assert list(tmp_path.iterdir()) == []


# ---- the film ----


def frames_of(path):
    with Image.open(path) as film:
        frames = [np.asarray(frame.convert("L")) for frame in ImageSequence.Iterator(film)]
        held = [frame.info["duration"] for frame in ImageSequence.Iterator(film)]
        return frames, held, film.info["loop"]


def test_a_film_shows_the_walk_from_noise_to_the_samples(conditional, tmp_path):
    words = ("--trajectory", tmp_path / "s.gif", "--class", "4,0,2", "--guidance", 1)
    _, labels, record = drawn(conditional, tmp_path, *words)
    frames, held, loop = frames_of(tmp_path / "s.gif")
    assert record["trajectory"]["levels"] == list(range(T, -1, -1))
    assert record["files"] == {
        **{"picture": "s.png", "trajectory": "s.gif", "samples": "s.safetensors"},
    }
    model = load_model(conditional)
    kept = trajectory(
        guided(model.network, 1.0), model.diffusion, (6, 1, 8, 8), range(T + 1), steps=T, eta=1.0,
        generator=torch.Generator().manual_seed(0), y=labels, clip=(-1, 1),
    )  # fmt: skip
    assert len(frames) == T + 1
    for frame, level in zip(frames, range(T, -1, -1), strict=True):
        assert np.array_equal(frame, np.asarray(common.grid(common.to_bytes(kept[level]), 3)))
    assert np.array_equal(frames[-1], picture(tmp_path / "s.png"))
    assert held == [record["trajectory"]["milliseconds"]] * T + [2000]
    assert loop == 0  # for ever
    assert not list(tmp_path.glob(".*.partial"))


def test_a_film_of_several_batches_shows_them_together(plain, tmp_path):
    words = ("--trajectory", tmp_path / "s.gif", "--batch-size", 2, *TRAILING, "--sampler", "heun")
    drawn(plain, tmp_path, *words, n=5)
    frames, *_ = frames_of(tmp_path / "s.gif")
    assert len(frames) == 6 and np.array_equal(frames[-1], picture(tmp_path / "s.png"))


def test_a_long_walk_has_a_short_film():
    film = sample.Film(range(1000, -1, -1))
    assert len(film.levels) == 60 and film.levels[0] == 1000 and film.levels[-1] == 0
    assert np.abs(np.array(film.levels) - np.linspace(1000, 0, 60)).max() <= 0.5
    assert film.milliseconds == 70  # 4 seconds
    short = sample.Film((5, 0))
    assert short.levels == [5, 0] and short.milliseconds == 400
    assert len(sample.Film(range(59, -1, -1)).levels) == 60
    # only what is shown is kept, and as bytes
    film.watch(999, torch.zeros(1, 1, 2, 2))
    film.watch(1000, torch.zeros(1, 1, 2, 2))
    assert sum(len(parts) for parts in film._parts.values()) == 1
    assert film._parts[1000][0].dtype == torch.uint8


def test_a_film_in_colours_is_as_near_as_a_gif_comes():
    ramp = torch.linspace(0, 255, 64).to(torch.uint8)
    images = torch.stack([ramp.reshape(8, 8), ramp.flip(0).reshape(8, 8), ramp.reshape(8, 8).T])
    frames = [images[None], images[None].flip(3)]
    film = Image.open(io.BytesIO(common.grid_gif(frames, 1, milliseconds=50, last=100)))
    assert film.n_frames == 2
    film.seek(1)
    apart = np.asarray(film.convert("RGB")).astype(int) - np.asarray(common.grid(frames[1], 1))
    assert np.abs(apart).max() <= 16


# ---- training with classes ----


def test_a_conditional_run_knows_its_classes_and_pictures_them(conditional):
    model = load_model(conditional)
    assert model.network.config.num_classes == 10
    assert model.about["classes"] == list("0123456789")
    assert model.about["training"]["settings"]["label_dropout"] == 0.2
    y = labels_in_turn(23, *range(10))
    expected = common.grid_png(by_the_library(conditional, 23, y=y), 10)
    assert np.array_equal(
        picture(conditional / "samples.png"), np.asarray(Image.open(io.BytesIO(expected)))
    )


def test_label_dropout_is_usual_for_a_conditional_run(tmp_path):
    out = tmp_path / "run"
    assert train_tiny(out, "--class-conditional", "--samples", 0, steps=1) == 0
    assert load_model(out).about["training"]["settings"]["label_dropout"] == 0.1


def test_a_conditional_run_that_goes_on_is_the_run_that_never_stopped(tmp_path):
    words = ("--class-conditional", "--base-channels", 16, "--label-dropout", 0.4, "--samples", 0)
    assert train_tiny(tmp_path / "long", *words, steps=6) == 0
    assert train_tiny(tmp_path / "short", *words, steps=3) == 0
    resume = ("train", "--resume", "--out", tmp_path / "short", "--quiet", "--samples", 0)
    assert run(*resume, "--steps", 6, "--device", "cpu") == 0
    assert same(weights(tmp_path / "long"), weights(tmp_path / "short"))
    assert load_model(tmp_path / "short").about["classes"] == list("0123456789")
    # the labels that were withheld matter: without dropout it is another run
    assert train_tiny(tmp_path / "other", *words, "--label-dropout", 0, steps=6) == 0
    assert not same(weights(tmp_path / "long"), weights(tmp_path / "other"))


def test_classes_are_asked_of_data_that_has_them(tmp_path, capsys):
    folder_of_images(tmp_path / "images", 20)
    words = ("train", "--data", tmp_path / "images", "--out", tmp_path / "run", "--steps", 1)
    assert "needs classes, and" in refused(capsys, *words, "--class-conditional")
    said = refused(capsys, *words, "--label-dropout", 0.1)
    assert "--label-dropout is for --class-conditional" in said
    assert not (tmp_path / "run").exists()


def test_sub_folders_are_classes_with_names(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for seed, name in enumerate(("ant", "bee")):
        folder_of_images(tmp_path / "images" / name, 20, seed=seed)
    out = tmp_path / "run"
    words = ("--class-conditional", "--samples", 0)
    assert train_tiny(out, *words, steps=1, data=tmp_path / "images") == 0
    _, labels, record = drawn(out, tmp_path, "--class", "bee")
    assert record["sampling"]["classes"] == ["bee"] and set(labels.tolist()) == {1}
    capsys.readouterr()
    assert "no class 'wasp': its 2 classes are ant, bee" in refused(
        capsys, "sample", "--model", out, "--out", tmp_path / "t.png", "--class", "wasp"
    )
    assert run("info", "--model", out) == 0
    said = capsys.readouterr().out
    assert "2 classes" in said and "classes   ant, bee" in said
    assert "10% of the labels withheld" in said


# ---- evaluating with classes ----


def test_generations_have_the_classes_of_training_images_at_random(conditional, monkeypatch):
    seen = {}

    def spy(generations, *_, **__):
        seen["generations"] = generations
        raise common.Failed("enough.")

    monkeypatch.setattr(evaluate, "evaluate", spy)
    words = ("--n", 26, "--quiet", "--seed", 3, "--device", "cpu", "--guidance", 0.5)
    assert run("evaluate", "--model", conditional, *words) == 1
    train_labels = digits("train")[1]
    for i, images in enumerate(seen["generations"]):
        generator = torch.Generator().manual_seed(3 + i)
        y = train_labels[torch.randperm(1442, generator=generator)[:26]]
        guidance = {"w": 0.5}
        expected = by_the_library(conditional, 26, y=y, guidance=guidance, generator=generator)
        assert torch.equal(images, expected)


def test_the_classifier_says_how_often_it_finds_the_class(conditional, tmp_path, capsys):
    """With real digits for samples, it finds what it finds in real digits."""
    words = ("evaluate", "--model", conditional, "--n", 40, "--quiet", "--device", "cpu")
    out = tmp_path / "e.json"
    assert run(*words, *TRAILING, "--out", out, "--bits", 2) == 0
    said = capsys.readouterr().out
    record = json.loads(out.read_text())
    right = record["accuracy"]
    assert f"asked class       {right['mean']:.3f} [" in said
    assert f"in real images {right['real']:.3f}" in said and right["real"] > 0.9
    assert "2 held-out images, 17 levels, given their classes" in said
    assert sum(record["sampling"]["classes"].values()) == 5 * 40
    # by hand, for the first generation
    generator = torch.Generator().manual_seed(0)
    y = digits("train")[1][torch.randperm(1442, generator=generator)[:40]]
    settings = {"steps": 5, "spacing": "trailing", "generator": generator}
    images = quantise(by_the_library(conditional, 40, y=y, **settings), 17)
    found = classifier().predict(images)
    assert right["values"][0] == pytest.approx((found == y).double().mean().item(), abs=1e-12)


def test_without_classes_none_is_looked_for(conditional, tmp_path, capsys):
    words = ("evaluate", "--model", conditional, "--n", 30, "--quiet", "--json", *TRAILING)
    assert run(*words, "--class", "none", "--bits", 2) == 0
    record = json.loads(capsys.readouterr().out)
    assert "accuracy" not in record and record["sampling"]["classes"] is None
    assert record["bits_per_dim"]["given_classes"] is False


def test_classes_must_be_those_of_the_images(conditional, tmp_path, capsys):
    folder_of_images(tmp_path / "images", 280)
    (tmp_path / "classes").mkdir()
    for seed, name in enumerate(("ant", "bee")):
        folder_of_images(tmp_path / "classes" / name, 140, seed=seed)
    words = ("evaluate", "--model", conditional, "--quiet", "--data")
    assert "has none: --class none draws without" in refused(capsys, *words, tmp_path / "images")
    said = refused(capsys, *words, tmp_path / "classes")
    assert "the model's 10 classes (0, 1, 2, 3, 4, …) are not the 2 of" in said
    assert "(ant, bee)" in said

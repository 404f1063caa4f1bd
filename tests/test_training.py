"""The trainer against the algorithm by hand, and against all that can stop it."""

import copy
import dataclasses
import errno
import json
import math
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import small_images, small_network
from torch import nn

from ddpm_lite import GaussianDiffusion, NoiseSchedule, hardware, objective
from ddpm_lite.hardware import choose_device, choose_precision
from ddpm_lite.runs import checkpoints
from ddpm_lite.storage import (
    load_model,
    read_json,
    read_tensors,
    to_json,
    without_prefix,
    write_tensors,
)
from ddpm_lite.training import Average, Batches, Tally, Trainer, TrainingConfig, ema_decay

CPU = torch.device("cpu")
DIFFUSION = GaussianDiffusion(NoiseSchedule.linear(20, 1e-3, 0.3))
IMAGES = small_images()
LABELS = torch.arange(37) % 3
CONFIG = TrainingConfig(
    steps=20,
    batch_size=8,
    learning_rate=1e-2,
    warmup_steps=5,
    seed=3,
    precision="float32",
    log_every=8,
    checkpoint_every=6,
)


def config(**changes):
    return dataclasses.replace(CONFIG, **changes)


def make(folder=None, network=None, **changes):
    network = small_network() if network is None else network
    return Trainer(network, DIFFUSION, IMAGES, config(**changes), folder=folder, device="cpu")


def same(left, right):
    """Bit for bit, names included."""
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def close(left, right, tolerance):
    """Weight by weight, but for one kind: a key's bias shifts all logits of a softmax alike, so its
    gradient is 0 but for rounding, which Adam blows up to steps of full length."""
    for (name, ours), theirs in zip(left.named_parameters(), right.parameters(), strict=True):
        if not name.endswith("key.bias"):
            assert (ours - theirs).abs().max() < tolerance, name


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file())


def without_times(history):
    return [{k: v for k, v in r.items() if k != "images_per_second"} for r in history]


# ---- the configuration ------------------------------------------------------------------------


def test_a_configuration_survives_json():
    changed = config(betas=(0.8, 0.99), clip_norm=None, levels=17, step_sampling="stratified")
    assert TrainingConfig.from_dict(json.loads(to_json(changed.to_dict()))) == changed


def test_unknown_and_missing_settings_are_named():
    settings = CONFIG.to_dict()
    with pytest.raises(ValueError, match=r"'momentum' is no training setting; there are "):
        TrainingConfig.from_dict(settings | {"momentum": 0.9})
    del settings["clip_norm"]
    with pytest.raises(ValueError, match="the training setting 'clip_norm' is missing"):
        TrainingConfig.from_dict(settings)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("steps", 0, "steps must be at least 1, got 0."),
        ("batch_size", 2.0, "batch_size must be an int, got 2.0."),
        ("batch_size", True, "batch_size must be an int, got True."),
        ("learning_rate", 0, "learning_rate must be above 0 and finite, got 0."),
        ("learning_rate", math.inf, "learning_rate must be above 0 and finite, got inf."),
        ("learning_rate", math.nan, "learning_rate must be above 0 and finite, got nan."),
        ("learning_rate", "1e-3", "learning_rate must be a number, got '1e-3'."),
        ("warmup_steps", -1, "warmup_steps must be at least 0, got -1."),
        ("seed", -1, "seed must be at least 0, got -1."),
        ("weight_decay", -0.1, "weight_decay must be at least 0 and finite, got -0.1."),
        ("betas", (0.9,), "betas must be a pair of numbers, got (0.9,)."),
        ("betas", (0.9, 1.0), "each of betas must be at least 0 and below 1, got 1.0."),
        ("clip_norm", 0.0, "clip_norm must be above 0 and finite, got 0.0."),
        ("ema_decay", 1, "ema_decay must be at least 0 and below 1, got 1."),
        ("ema_warmup", 1, "ema_warmup must be True or False, got 1."),
        ("precision", "fp16", "precision must be one of float32, bf16, auto, got 'fp16'."),
        (
            "step_sampling",
            "random",
            "step_sampling must be one of uniform, antithetic, stratified, got 'random'.",
        ),
        ("log_every", 0, "log_every must be at least 1, got 0."),
        ("checkpoint_every", 0, "checkpoint_every must be at least 1, got 0."),
        ("label_dropout", 1.0, "label_dropout must be at least 0 and below 1, got 1.0."),
        ("levels", 1, "levels must be at least 2, got 1."),
        ("hybrid_weight", 0, "hybrid_weight must be above 0 and finite, got 0."),
    ],
)
def test_each_setting_is_checked(name, value, sentence):
    with pytest.raises((TypeError, ValueError)) as caught:
        config(**{name: value})
    assert str(caught.value) == sentence


# ---- batches ----------------------------------------------------------------------------------


def batches(T=20, labels=LABELS, images=None, **changes):
    """Batches of images whose only value is their index."""
    numbers = torch.arange(37.0).reshape(37, 1) if images is None else images
    return Batches(numbers, labels, T, config(**changes), null_class=3)


def test_every_image_comes_once_an_epoch():
    source = batches(batch_size=8)
    seen = torch.cat([source.next(0, 1).x0.flatten() for _ in range(37)])  # eight epochs
    epochs = seen.reshape(8, 37)
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, torch.arange(37.0))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 8


def test_a_batch_may_be_larger_than_the_data():
    x0 = batches(batch_size=100).next(0, 1).x0.flatten()
    counts = x0.bincount() if not x0.is_floating_point() else x0.long().bincount()
    assert counts.sum() == 100 and counts.min() == 2 and counts.max() == 3


@pytest.mark.parametrize("method", ["uniform", "antithetic", "stratified"])
def test_all_steps_from_1_to_T_come_and_no_others(method):
    source = batches(T=7, batch_size=50, step_sampling=method)
    t = torch.cat([source.next(0, 1).t for _ in range(200)])
    counts = t.bincount(minlength=8)
    assert len(counts) == 8 and counts[0] == 0
    expected = 10_000 / 7
    assert ((counts[1:] - expected).abs() < 5 * math.sqrt(expected)).all()


def test_the_noise_is_standard_normal_and_fresh():
    source = batches(batch_size=50, images=torch.zeros(37, 4))
    noise = torch.cat([source.next(0, 1).noise for _ in range(50)])
    n = noise.numel()
    assert abs(noise.mean()) < 5 / math.sqrt(n)
    assert abs(noise.var() - 1) < 5 * math.sqrt(2 / n)
    assert len(noise.unique()) > 0.99 * n


def test_labels_go_with_their_images_and_some_are_dropped():
    source = batches(batch_size=50, label_dropout=0.25)
    drawn = [source.next(0, 1) for _ in range(100)]
    y = torch.cat([batch.y for batch in drawn])
    truth = LABELS[torch.cat([batch.x0 for batch in drawn]).flatten().long()]
    kept = y != 3
    assert torch.equal(y[kept], truth[kept])
    share = (~kept).double().mean()
    assert abs(share - 0.25) < 5 * math.sqrt(0.25 * 0.75 / len(y))


def test_without_dropout_no_label_is_lost():
    source = batches(batch_size=37)
    batch = source.next(0, 1)
    assert torch.equal(batch.y, LABELS[batch.x0.flatten().long()])
    assert batches(labels=None).next(0, 1).y is None


def test_half_of_the_images_are_mirrored_and_the_data_stay():
    images = torch.arange(3.0).expand(37, 1, 2, 3).contiguous()
    source = batches(batch_size=40, images=images, horizontal_flip=True)
    rows = torch.cat([source.next(0, 1).x0 for _ in range(50)])[:, 0, 0]
    mirrored = (rows == torch.tensor([2.0, 1.0, 0.0])).all(1)
    assert (mirrored | (rows == torch.tensor([0.0, 1.0, 2.0])).all(1)).all()
    assert abs(mirrored.double().mean() - 0.5) < 5 * 0.5 / math.sqrt(2000)
    assert torch.equal(images, torch.arange(3.0).expand(37, 1, 2, 3))


@pytest.mark.parametrize("processes", [2, 4])
def test_the_parts_of_the_processes_make_the_whole(processes):
    changes = {"label_dropout": 0.3, "horizontal_flip": True, "images": IMAGES}
    alone = batches(**changes)
    sources = [batches(**changes) for _ in range(processes)]
    for _ in range(10):
        whole = alone.next(0, 1)
        parts = [source.next(rank, processes) for rank, source in enumerate(sources)]
        for name in ("x0", "t", "noise", "y"):
            joined = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(joined, getattr(whole, name)), name


def test_batches_go_on_where_they_were():
    source, other = batches(), batches(seed=9)
    for _ in range(7):
        source.next(0, 1)
    other.load({name: value.clone() for name, value in source.state().items()})
    for _ in range(7):
        left, right = source.next(0, 1), other.next(0, 1)
        assert all(torch.equal(getattr(left, n), getattr(right, n)) for n in ("x0", "t", "noise"))


# ---- the algorithm ----------------------------------------------------------------------------


def by_hand(network, diffusion, images, settings, steps):
    """DDPM's Algorithm 1 with Adam and an average, from the papers: (network, average).

    Only the drawing of batches is the library's.
    """
    ab = diffusion.schedule.alpha_bar.float()
    source = Batches(images, None, diffusion.T, settings, None)
    average = copy.deepcopy(network)
    m = [torch.zeros_like(p) for p in network.parameters()]
    v = [torch.zeros_like(p) for p in network.parameters()]
    b1, b2 = settings.betas
    for n in range(1, steps + 1):
        batch = source.next(0, 1)
        a = ab[batch.t].reshape(-1, 1, 1, 1)
        x_t = a.sqrt() * batch.x0 + (1 - a).sqrt() * batch.noise
        loss = ((network(x_t, batch.t) - batch.noise) ** 2).mean()
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        rate = settings.learning_rate * min(1, n / settings.warmup_steps)
        decay = min(settings.ema_decay, (1 + n) / (10 + n))
        with torch.no_grad():
            for i, (p, g) in enumerate(zip(network.parameters(), gradients, strict=True)):
                g = g * min(1, settings.clip_norm / norm)
                m[i] = b1 * m[i] + (1 - b1) * g
                v[i] = b2 * v[i] + (1 - b2) * g**2
                p *= 1 - rate * settings.weight_decay
                p -= rate * (m[i] / (1 - b1**n)) / ((v[i] / (1 - b2**n)).sqrt() + 1e-8)
            for mean, p in zip(average.parameters(), network.parameters(), strict=True):
                mean.copy_(decay * mean + (1 - decay) * p)
    return network, average


def test_training_is_algorithm_1():
    """Warm-up, clipping (it bites: see below), decoupled weight decay, Adam and the average."""
    settings = config(weight_decay=0.05, betas=(0.8, 0.95), clip_norm=0.5, ema_decay=0.9)
    start = small_network(initialisation="torch")
    trainer = Trainer(copy.deepcopy(start), DIFFUSION, IMAGES, settings, device="cpu")
    trainer.run(9)
    network, average = by_hand(start.train(), DIFFUSION, IMAGES, settings, 9)
    assert trainer.history[0]["gradient_norm"] > 0.5
    close(trainer.network, network, 1e-4)
    close(trainer.ema, average, 1e-4)
    with pytest.raises(AssertionError):  # the comparison can tell a network from its average
        close(network, average, 1e-3)


def replay(settings, network, labels=None, loss=objective.simple_loss, diffusion=DIFFUSION):
    """(loss of each image, t) of the first steps, as long as the weights stay as they are."""
    source = Batches(IMAGES, labels, diffusion.T, settings, network.config.num_classes)
    drawn = [source.next(0, 1) for _ in range(settings.steps)]
    with torch.no_grad():
        losses = [loss(network, diffusion, b.x0, b.t, b.noise, y=b.y) for b in drawn]
    return torch.cat(losses).double(), torch.cat([b.t for b in drawn])


STILL = {"learning_rate": 1e-30, "warmup_steps": 0}


def test_a_record_holds_the_means_since_the_last():
    settings = config(**STILL, steps=24)
    network = small_network()
    trainer = Trainer(network, DIFFUSION, IMAGES, settings, device="cpu")
    trainer.run()
    losses, t = replay(settings, network)
    assert [record["step"] for record in trainer.history] == [8, 16, 24]
    for i, record in enumerate(trainer.history):
        part = slice(64 * i, 64 * (i + 1))
        assert record["loss"] == pytest.approx(losses[part].mean().item(), rel=1e-6)
        for quarter, mean in enumerate(record["loss_by_quartile"]):
            inside = (t[part] > 5 * quarter) & (t[part] <= 5 * (quarter + 1))  # T = 20
            assert mean == pytest.approx(losses[part][inside].mean().item(), rel=1e-6)


@pytest.mark.parametrize("T", [1, 3, 4, 10, 1000])
def test_the_quarters_share_the_steps_fairly(T):
    tally = Tally(T, CPU)
    t = torch.arange(1, T + 1)
    tally.add(t, t.double(), torch.tensor(2.0))
    means = tally.read(1)["loss_by_quartile"]
    parts = [[n for n in range(1, T + 1) if q <= 4 * (n - 1) / T < q + 1] for q in range(4)]
    assert sum(len(part) for part in parts) == T
    assert means == [sum(part) / len(part) if part else None for part in parts]
    assert tally.sums.tolist() == 10 * [0.0]


def test_a_quarter_without_images_has_no_loss():
    trainer = make(batch_size=1, log_every=1, steps=3)
    trainer.run()
    for record in trainer.history:
        assert sum(mean is not None for mean in record["loss_by_quartile"]) == 1
        assert record["loss"] in record["loss_by_quartile"]


def test_the_gradient_norm_is_that_before_clipping():
    settings = {**STILL, "log_every": 1, "steps": 1}
    trainers = [make(clip_norm=limit, **settings) for limit in (1e-6, None)]
    norms = []
    for trainer in trainers:
        trainer.run()
        norms.append(
            torch.cat([p.grad.flatten() for p in trainer.network.parameters()]).norm().item()
        )
    before, unclipped = (trainer.history[0]["gradient_norm"] for trainer in trainers)
    assert before == unclipped == pytest.approx(norms[1], rel=1e-5)
    assert norms[0] == pytest.approx(1e-6, rel=1e-3)


def test_warm_up_rises_in_a_line_and_stays():
    trainer = make(learning_rate=0.8, warmup_steps=4)
    assert [trainer.learning_rate(n) for n in range(1, 7)] == [
        0.2,
        0.4,
        0.6000000000000001,
        0.8,
        0.8,
        0.8,
    ]
    assert make(warmup_steps=0, learning_rate=0.8).learning_rate(1) == 0.8


def test_the_average_warms_up():
    """Without warm-up 0.9999ⁿ of the untrained weights stays; with it next to nothing."""
    warm = config(ema_decay=0.9999)
    assert [ema_decay(n, warm) for n in (1, 10)] == [2 / 11, 11 / 20]
    assert ema_decay(10**6, warm) == 0.9999
    cold = config(ema_decay=0.9999, ema_warmup=False)
    left = {c: math.prod(ema_decay(n, c) for n in range(1, 1001)) for c in (warm, cold)}
    assert left[cold] == pytest.approx(0.9999**1000)
    assert left[warm] < 1e-20


def test_the_average_is_weight_by_weight_and_copies_buffers():
    network = nn.BatchNorm1d(2)
    average = Average(network)
    with torch.no_grad():
        network.weight.fill_(2.0)  # from 1
        network.running_mean.fill_(5.0)
    average.update(0.75)
    assert average.network.weight.tolist() == [1.25, 1.25]
    assert average.network.running_mean.tolist() == [5.0, 5.0]
    assert network.weight.tolist() == [2.0, 2.0]


def test_what_is_trained_and_what_is_sampled_from():
    trainer = make()
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    trainer.run(3)
    assert trainer.step == 3
    assert not trainer.network.training and not trainer.ema.training
    assert not any(parameter.requires_grad for parameter in trainer.ema.parameters())
    changed = [not torch.equal(v, before[n]) for n, v in trainer.network.state_dict().items()]
    assert sum(changed) > 0.9 * len(changed)


def test_training_learns():
    """Images of one grey: the loss falls far below that of a network that says 0."""
    network = small_network(base_channels=8)
    images = torch.full((16, 1, 4, 4), 0.5)
    settings = config(steps=80, batch_size=16, log_every=5)
    trainer = Trainer(network, DIFFUSION, images, settings, device="cpu")
    trainer.run()
    assert trainer.history[0]["loss"] > 0.6
    assert trainer.history[-1]["loss"] < 0.3


def test_any_module_can_be_trained_without_a_folder():
    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x, t, y=None):
            assert y is None and t.shape == x.shape[:1]
            return self.layer(x)

    points = 100 * torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    trainer = Trainer(Line(), DIFFUSION, points, config(), device="cpu")
    trainer.run()
    assert len(trainer.history) == 3
    with pytest.raises(ValueError, match="this run keeps no folder"):
        trainer.save()


def test_labels_reach_the_network():
    settings = config(**STILL, label_dropout=0.5, steps=8)
    network = small_network(num_classes=3, initialisation="torch")
    trainer = Trainer(network, DIFFUSION, IMAGES, settings, labels=LABELS, device="cpu")
    trainer.run()
    losses, _ = replay(settings, network, LABELS)
    assert trainer.history[0]["loss"] == pytest.approx(losses.mean().item(), rel=1e-6)


def test_a_learned_variance_trains_on_the_hybrid_loss():
    diffusion = GaussianDiffusion(DIFFUSION.schedule, variance="learned")
    settings = config(**STILL, steps=8, levels=17, hybrid_weight=0.01)
    network = small_network(out_channels=2, initialisation="torch")
    images = (IMAGES * 8).round() / 8

    trainer = Trainer(network, diffusion, images, settings, device="cpu")
    trainer.run()
    source = Batches(images, None, diffusion.T, settings, None)
    drawn = [source.next(0, 1) for _ in range(8)]
    with torch.no_grad():
        wanted = [
            objective.hybrid_loss(
                network, diffusion, b.x0, b.t, b.noise, levels=17, weight=0.01
            ).mean()
            for b in drawn
        ]
    assert trainer.history[0]["loss"] == pytest.approx(torch.stack(wanted).mean().item(), rel=1e-6)


# ---- randomness -------------------------------------------------------------------------------


def test_a_run_neither_hears_nor_disturbs_the_global_generator():
    ends = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        trainer = make(network=small_network(dropout=0.5))
        trainer.run(3)
        expected = torch.Generator().manual_seed(seed)
        assert torch.equal(torch.rand(3), torch.rand(3, generator=expected))
        trainer.run(6)
        ends.append(trainer.network.state_dict())
    same(*ends)


def test_dropout_is_on_while_training_and_differs_between_steps():
    """With weights that stay, the loss of one batch changes only by its mask."""
    settings = {**STILL, "batch_size": 37, "log_every": 1, "steps": 2}
    plain = make(**settings)
    dropped = make(network=small_network(dropout=0.5, initialisation="torch"), **settings)
    undropped = make(network=small_network(initialisation="torch"), **settings)
    for trainer in (plain, dropped, undropped):
        trainer.run()
    assert dropped.history[0]["loss"] != undropped.history[0]["loss"]


def test_another_seed_is_another_run():
    ends = [make(seed=seed) for seed in (0, 0, 1)]
    for trainer in ends:
        trainer.run(2)
    same(ends[0].network.state_dict(), ends[1].network.state_dict())
    with pytest.raises(AssertionError):
        same(ends[0].network.state_dict(), ends[2].network.state_dict())


# ---- stopping and going on --------------------------------------------------------------------


@pytest.fixture(scope="module")
def straight():
    """The run that nothing stopped."""
    trainer = make()
    trainer.run()
    return trainer


KINDS = {
    "dropout, labels": {"dropout": 0.3, "num_classes": 3},
    "channels_last": {"dropout": 0.3, "num_classes": 3},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_stopped_ends_with_the_same_bits(tmp_path, kind):
    """20 steps without a break, and 12, a new process's view, and 8 more.

    Compared are the whole last checkpoints: weights, average, moments, generators, sums.
    """
    settings = config(
        label_dropout=0.3,
        horizontal_flip=True,
        step_sampling="stratified",
        channels_last=kind == "channels_last",
    )

    def begin(folder):
        network = small_network(**KINDS[kind])
        return Trainer(
            network, DIFFUSION, IMAGES, settings, labels=LABELS, folder=folder, device="cpu"
        )

    straight = begin(tmp_path / "straight")
    straight.run()
    begin(tmp_path / "stopped").run(12)
    torch.manual_seed(99)
    resumed = Trainer.resume(tmp_path / "stopped", IMAGES, labels=LABELS, device="cpu")
    assert resumed.step == 12
    resumed.run()
    same(resumed.network.state_dict(), straight.network.state_dict())
    same(resumed.ema.state_dict(), straight.ema.state_dict())
    ends = [checkpoints(tmp_path / name)[-1] for name in ("straight", "stopped")]
    assert [path.name for path in ends] == 2 * ["step-00000020.safetensors"]
    (left, left_record), (right, right_record) = (read_tensors(path) for path in ends)
    same(left, right)
    assert without_times(left_record["history"]) == without_times(right_record["history"])
    assert [record["step"] for record in straight.history] == [8, 16, 20]
    assert without_times(straight.history) == without_times(resumed.history)
    same(*(load_model(tmp_path / n).network.state_dict() for n in ("straight", "stopped")))


def test_what_a_run_leaves_in_its_folder(tmp_path):
    trainer = Trainer(
        small_network(),
        DIFFUSION,
        IMAGES,
        CONFIG,
        folder=tmp_path / "run",
        device="cpu",
        about={"data": "noise", "levels": 17},
    )
    trainer.run()
    assert trainer.folder == tmp_path / "run"
    assert files(tmp_path / "run") == [
        "checkpoints/step-00000018.safetensors",
        "checkpoints/step-00000020.safetensors",
        "config.json",
        "metrics.jsonl",
        "model.json",
        "model.safetensors",
    ]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == trainer.history
    kept = read_json(tmp_path / "run" / "config.json")
    assert kept["run"]["training"] == CONFIG.to_dict()
    assert kept["chosen"]["precision"] == "float32" and kept["chosen"]["device"] == "cpu"
    model = load_model(tmp_path / "run")
    same(model.network.state_dict(), trainer.ema.state_dict())
    assert model.about["data"] == "noise" and model.about["levels"] == 17
    assert model.about["image_size"] == 4 and model.about["channels"] == 1
    assert model.about["training"]["steps"] == 20
    assert model.about["training"]["images_seen"] == 160


def test_records_from_beyond_the_checkpoint_are_dropped(tmp_path):
    trainer = make(tmp_path, log_every=1, checkpoint_every=4)
    trainer.run(4)
    line = (tmp_path / "metrics.jsonl").read_text().splitlines()[-1]
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(line.replace('"step": 4', '"step": 5') + '\n{"step": 6, "lo')
    resumed = Trainer.resume(tmp_path, IMAGES, device="cpu")
    assert [record["step"] for record in resumed.history] == [1, 2, 3, 4]
    resumed.run(6)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_can_be_made_longer(tmp_path):
    make(tmp_path / "one").run()
    longer = Trainer.resume(tmp_path / "one", IMAGES, device="cpu")
    longer.run()  # nothing left to do
    assert longer.step == 20
    longer.run(24)
    straight = make()
    straight.run(24)
    same(longer.network.state_dict(), straight.network.state_dict())
    with pytest.raises(ValueError, match=r"the run has made 24 steps already, asked for 23\."):
        longer.run(23)


def test_ctrl_c_finishes_the_step_and_saves_it(tmp_path):
    trainer = make(tmp_path, network=small_network(dropout=0.3))
    forward = trainer._forward

    def interrupted(x, t, y=None):
        if trainer.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return forward(x, t, y)

    trainer._forward = interrupted
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert signal.getsignal(signal.SIGINT) is before
    assert trainer.step == 3
    resumed = Trainer.resume(tmp_path, IMAGES, device="cpu")
    assert resumed.step == 3
    resumed.run()
    straight = make(network=small_network(dropout=0.3))
    straight.run()
    same(resumed.network.state_dict(), straight.network.state_dict())


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    trainer = make(tmp_path)

    def interrupted(x, t, y=None):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not reached")

    trainer._forward = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert trainer.step == 0


MOMENTS = (
    "in the network",
    "after the optimiser",
    "in a record",
    "half a checkpoint",
    "before the sync",
    "before the rename",
    "after the rename",
    "between the model's files",
)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """For each moment the folder of a run that was ended by SIGKILL right then."""
    folder = tmp_path_factory.mktemp("killed")
    threads = str(torch.get_num_threads())
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "kill_worker.py"), str(folder), *MOMENTS],
        env={**os.environ, "OMP_NUM_THREADS": threads},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{moment}: signal 9" for moment in MOMENTS]
    return folder


@pytest.fixture(scope="module")
def unbroken():
    trainer = make(network=small_network(dropout=0.3), log_every=4)
    trainer.run()
    return trainer


@pytest.mark.parametrize("moment", MOMENTS)
def test_after_kill_9_the_last_checkpoint_goes_on(killed, unbroken, moment):
    folder = killed / moment
    left = files(folder)
    for path in checkpoints(folder):
        read_tensors(path)
    half = [name for name in left if name.endswith(".partial")]
    assert bool(half) == (moment not in MOMENTS[:3] and moment != "after the rename")
    resumed = Trainer.resume(folder, IMAGES, device="cpu")
    assert not [name for name in files(folder) if name.endswith(".partial")]
    expected = {"after the rename": 12, "between the model's files": 20}.get(moment, 6)
    assert resumed.step == expected
    resumed.run()
    same(resumed.network.state_dict(), unbroken.network.state_dict())
    same(resumed.ema.state_dict(), unbroken.ema.state_dict())
    assert without_times(resumed.history) == without_times(unbroken.history)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == resumed.history
    same(load_model(folder).network.state_dict(), unbroken.ema.state_dict())
    assert len(checkpoints(folder)) == 2


# ---- disks and folders that refuse ------------------------------------------------------------


class FileSizeLimit:
    """No file of this process may grow beyond so many bytes: a full disk, as the kernel does it."""

    def __init__(self, size):
        self.size = size

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *error):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def test_a_full_disk_loses_nothing(tmp_path, straight):
    trainer = make(tmp_path)
    trainer.run(6)
    kept = {path: path.read_bytes() for path in checkpoints(tmp_path)}
    with FileSizeLimit(20_000), pytest.raises(OSError) as caught:
        trainer.run()
    path = tmp_path / "checkpoints" / "step-00000012.safetensors"
    sentence = f"could not write {path}: File too large; the file there is as it was."
    assert str(caught.value) == sentence
    assert {path: path.read_bytes() for path in checkpoints(tmp_path)} == kept
    assert not [name for name in files(tmp_path) if name.endswith(".partial")]
    trainer.run()  # there is room again
    same(trainer.network.state_dict(), straight.network.state_dict())
    assert without_times(trainer.history) == without_times(straight.history)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == trainer.history


def test_a_disk_too_full_for_a_record_says_so(tmp_path):
    trainer = make(tmp_path, log_every=1)
    trainer.run(2)
    room = (tmp_path / "metrics.jsonl").stat().st_size + 10
    trainer._train_step()
    with (
        FileSizeLimit(room),
        pytest.raises(OSError, match=r"could not write .*/metrics\.jsonl: File too large; "),
    ):
        trainer._record()
    Trainer.resume(tmp_path, IMAGES, device="cpu").run(4)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(OSError, match=r"could not make the folder .*run/checkpoints: "):
        make(tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"


def test_a_read_only_file_system(tmp_path, monkeypatch):
    trainer = make(tmp_path)
    trainer.run(6)
    before = files(tmp_path)

    def refuse(*arguments, **keywords):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr("ddpm_lite.storage.open", refuse, raising=False)
        with pytest.raises(OSError, match=r"could not write .*: Read-only file system; "):
            trainer.save()
    assert files(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="could not make the folder"):
        make(tmp_path / "run")


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    make(tmp_path).run(6)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    with pytest.raises(FileExistsError, match="holds a run already: go on with it by Trainer"):
        make(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


# ---- checkpoints that are not what they should be ----------------------------------------------


@pytest.fixture
def run(tmp_path):
    make(tmp_path).run(12)
    return tmp_path


def refused(folder, sentence, images=IMAGES, error=ValueError, **keywords):
    before = {name: (folder / name).read_bytes() for name in files(folder)}
    with pytest.raises(error) as caught:
        Trainer.resume(folder, images, device="cpu", **keywords)
    assert sentence in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {name: (folder / name).read_bytes() for name in files(folder)} == before


def test_no_run_in_the_folder(tmp_path):
    refused(tmp_path, "there is no run in", error=FileNotFoundError)


@pytest.mark.parametrize("share", [0, 0.3, 0.999])
def test_a_truncated_checkpoint_is_named_and_the_one_before_serves(run, share, straight):
    last = checkpoints(run)[-1]
    last.write_bytes(last.read_bytes()[: int(share * last.stat().st_size)])
    refused(run, "step-00000012.safetensors is truncated or not a safetensors file")
    refused(run, "Delete it to resume from step-00000006.safetensors.")
    last.unlink()
    resumed = Trainer.resume(run, IMAGES, device="cpu")
    resumed.run()
    same(resumed.network.state_dict(), straight.network.state_dict())


def test_a_foreign_checkpoint(run):
    write_tensors(checkpoints(run)[-1], {"a": torch.ones(1)}, {"format": "a cake recipe"})
    refused(run, "is not a checkpoint: its record says 'a cake recipe'.")


def test_other_data(run):
    refused(run, "written with shape = [37, 1, 4, 4], but the data given here says [36", IMAGES[1:])
    refused(run, "belongs to another run: it was written with sha256 = ", IMAGES.flip(0))
    refused(run, "written with labels_sha256 = None", labels=LABELS)


def test_the_same_data_in_another_form_is_the_same(run):
    other = IMAGES.double().to(memory_format=torch.channels_last)
    assert Trainer.resume(run, other, device="cpu").step == 12


@pytest.mark.parametrize(
    ("part", "key", "value", "sentence"),
    [
        ("training", "batch_size", 4, "training.batch_size = 8, but "),
        ("network", "base_channels", 8, "network.base_channels = 4, but "),
        ("diffusion", "prediction", "v", "diffusion.prediction = 'eps', but "),
        ("data", "sha256", "0", "data.sha256 = "),
    ],
)
def test_a_checkpoint_of_another_run(run, part, key, value, sentence):
    kept = read_json(run / "config.json")
    kept["run"][part][key] = value
    (run / "config.json").write_bytes(to_json(kept))
    refused(run, "step-00000012.safetensors belongs to another run: it was written with")
    refused(run, sentence)
    refused(run, f"config.json says {value!r}.")


@pytest.mark.parametrize(
    "name",
    [
        "network.conv_in.weight",
        "ema.conv_in.weight",
        "optimiser.conv_in.weight.exp_avg",
        "optimiser.conv_in.weight.step",
        "batches.generator",
        "batches.order",
        "tally",
        "schedule.timesteps",
        "dropout.0.cpu",
    ],
)
def test_a_checkpoint_that_lacks_a_part(run, name):
    path = checkpoints(run)[-1]
    tensors, record = read_tensors(path)
    del tensors[name]
    write_tensors(path, tensors, record)
    refused(run, f"lacks {'' if name.startswith('schedule') else 'the tensor '}{name!r}")


# ---- numbers that are not numbers --------------------------------------------------------------


def poisoned(trainer, step):
    """The network gives NaN at that step."""
    forward = trainer._forward
    trainer._forward = lambda x, t, y=None: (
        forward(x, t, y) * (math.nan if trainer.step + 1 == step else 1.0)
    )
    return trainer


def test_nan_stops_the_run_at_its_step_and_nothing_of_it_is_saved(tmp_path):
    trainer = poisoned(make(tmp_path), step=9)
    with pytest.raises(FloatingPointError) as caught:
        trainer.run()
    last = tmp_path / "checkpoints" / "step-00000006.safetensors"
    assert "the loss or its gradient is not a finite number at step 9: " in str(caught.value)
    assert str(caught.value).endswith(f"; {last} is the last good state.")
    assert checkpoints(tmp_path)[-1] == last
    assert not (tmp_path / "model.safetensors").exists()
    for act in (trainer.save, trainer.run):
        with pytest.raises(FloatingPointError, match="at step 9"):
            act()
    assert all(p.isfinite().all() for p in trainer.network.parameters())
    resumed = Trainer.resume(tmp_path, IMAGES, device="cpu")
    resumed.run()
    assert resumed.step == 20


def test_a_gradient_may_be_infinite_where_the_loss_is_not():
    trainer = make()
    trainer.network.conv_in.bias.register_hook(lambda g: g * math.inf)
    with pytest.raises(FloatingPointError, match="at step 1"):
        trainer.run()


def test_where_looking_costs_time_the_first_bad_step_is_kept(tmp_path):
    """On a GPU the note is read at the next record; it still names the step."""
    trainer = poisoned(make(tmp_path, log_every=5), step=3)
    trainer._looks_at_every_step = False
    with pytest.raises(FloatingPointError, match="at step 3"):
        trainer.run()
    assert trainer.step == 5
    assert checkpoints(tmp_path)[-1].name == "step-00000000.safetensors"


# ---- arguments ---------------------------------------------------------------------------------


def test_images_are_checked():
    def trainer(images, **keywords):
        return Trainer(small_network(), DIFFUSION, images, CONFIG, device="cpu", **keywords)

    with pytest.raises(TypeError, match=r"must be a floating-point tensor .*, got torch.uint8"):
        trainer((IMAGES * 100).to(torch.uint8))
    with pytest.raises(ValueError, match=r"must lie in \[-1, 1\], got values from -25"):
        trainer(IMAGES * 255)
    with pytest.raises(ValueError, match=r"takes images \(1, 4, 4\), got images \(1, 2, 8\)"):
        trainer(IMAGES.reshape(37, 1, 2, 8))
    with pytest.raises(ValueError, match="at least one image, got none"):
        trainer(IMAGES[:0])
    broken = IMAGES.clone()
    broken[3, 0, 1, 1] = math.nan
    with pytest.raises(ValueError, match="must be finite"):
        trainer(broken)


def test_labels_are_checked():
    def trainer(labels, classes=3, **changes):
        network = small_network(num_classes=classes)
        settings = config(**changes)
        return Trainer(network, DIFFUSION, IMAGES, settings, labels=labels, device="cpu")

    with pytest.raises(ValueError, match=r"label_dropout = 0\.1 needs labels"):
        trainer(None, label_dropout=0.1)
    with pytest.raises(ValueError, match="the network knows no classes"):
        trainer(LABELS, classes=None)
    with pytest.raises(ValueError, match=r"int64 of shape \(37,\), got torch.int32 of shape"):
        trainer(LABELS.int())
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2, got 3: 3 is the null class"):
        trainer(LABELS + 1)


def test_the_loss_and_the_network_must_fit():
    learned = GaussianDiffusion(DIFFUSION.schedule, variance="learned")

    def trainer(diffusion, channels, **changes):
        network = small_network(out_channels=channels)
        return Trainer(network, diffusion, IMAGES, config(**changes), device="cpu")

    with pytest.raises(ValueError, match="'posterior' needs a network with 1 output channels, got"):
        trainer(DIFFUSION, 2)
    with pytest.raises(ValueError, match="'learned' needs a network with 2 output channels, got 1"):
        trainer(learned, 1)
    for missing in ({"levels": 17}, {"hybrid_weight": 0.001}):
        with pytest.raises(ValueError, match=r"needs hybrid_weight .* and levels"):
            trainer(learned, 2, **missing)
    with pytest.raises(ValueError, match=r"hybrid_weight = 0\.001 is for a learned variance only"):
        trainer(DIFFUSION, 1, hybrid_weight=0.001)
    trainer(learned, 2, hybrid_weight=0.001, levels=None)  # continuous data, said so


def test_a_folder_needs_a_network_that_can_be_built_again(tmp_path):
    with pytest.raises(TypeError, match=r"needs a UNet, whose configuration .* got Linear"):
        Trainer(nn.Linear(2, 2), DIFFUSION, torch.zeros(3, 2), CONFIG, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---- the machine -------------------------------------------------------------------------------


def test_precision_is_chosen_where_the_hardware_has_it_and_the_reason_given(monkeypatch):
    for has_bf16 in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has_bf16: has)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert choose_precision("float32", CPU) == ("float32", "asked for")
        chosen, why = choose_precision("auto", CPU)
        assert chosen == ("bf16" if has_bf16 else "float32")
        assert why.startswith("chosen, since this processor ")
    with pytest.raises(ValueError, match="precision 'bf16' is not to be had: this processor"):
        choose_precision("bf16", CPU)


def test_the_choice_is_reported_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "_native_bf16", lambda device: (False, "it is a pocket watch"))
    trainer = make(tmp_path, precision="auto")
    assert "precision  float32: chosen, since it is a pocket watch" in trainer.report()
    chosen = read_json(tmp_path / "config.json")["chosen"]
    assert chosen["precision"] == "float32" and "pocket watch" in chosen["why"]
    assert "without labels" in trainer.report() and "0 of 20" in trainer.report()


def test_bf16_stays_inside_the_network(monkeypatch):
    monkeypatch.setattr(hardware, "_native_bf16", lambda device: (True, "it is assumed"))
    seen = []
    trainers = {p: make(precision=p, **STILL, steps=8) for p in ("bf16", "float32")}
    trainers["bf16"].network.conv_out.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    for trainer in trainers.values():
        trainer.run()
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in trainers["bf16"].network.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in trainers["bf16"].network.parameters()} == {torch.float32}
    low, high = (trainers[p].history[0]["loss"] for p in ("bf16", "float32"))
    assert low != high and low == pytest.approx(high, rel=0.02)


def test_compile_is_asked_of_torch_and_leaves_the_names(tmp_path, monkeypatch):
    asked = []

    class Compiled(nn.Module):
        def __init__(self, module):
            super().__init__()
            asked.append(module)
            self._orig_mod = module

        def forward(self, *arguments):
            return self._orig_mod(*arguments)

    monkeypatch.setattr(torch, "compile", Compiled)
    trainer = make(tmp_path, compile=True)
    trainer.run(2)
    assert asked == [trainer.network]
    assert not [name for name in read_tensors(checkpoints(tmp_path)[-1])[0] if "_orig" in name]
    assert "compile" in trainer.report()


def test_channels_last_gives_the_same_numbers():
    trainers = [make(channels_last=flag) for flag in (True, False)]
    for trainer in trainers:
        trainer.run(4)
    assert trainers[0].network.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    for left, right in zip(*(t.network.parameters() for t in trainers), strict=True):
        assert torch.allclose(left, right, atol=1e-3)


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(None) == CPU
    with pytest.raises(ValueError, match="device 'cuda' was asked for, but there is no GPU"):
        choose_device("cuda")


def test_the_bar_shows_images_a_second_and_the_loss(capsys):
    trainer = make()
    trainer.run(progress=True)
    shown = capsys.readouterr()
    assert "images/s" in shown.err and "loss=" in shown.err and "160/160" in shown.err
    assert shown.out == ""
    make().run(2)
    assert capsys.readouterr().err == ""


# ---- several processes -------------------------------------------------------------------------


def test_a_lone_trainer_under_torchrun_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="torchrun started 2 processes, but this one has not"):
        make()


def test_two_processes_are_one(tmp_path):
    """torchrun with gloo: the gradients, and after four steps the weights, are those of one
    process with the same global batch; and one process goes on with the run of two."""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    worker = str(Path(__file__).parent / "ddp_worker.py")
    done = subprocess.run(
        [*launch, worker, str(tmp_path)],
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    alone = make(network=small_network(initialisation="torch"), log_every=1, clip_norm=None)
    alone.run(1)
    wanted = {name: p.grad.clone() for name, p in alone.network.named_parameters()}
    scale = max(gradient.abs().max().item() for gradient in wanted.values())
    assert scale > 0.1
    alone.run(4)
    for rank in (0, 1):
        found, record = read_tensors(tmp_path / f"rank{rank}.safetensors")
        for name, gradient in wanted.items():
            assert torch.allclose(found[f"gradient.{name}"], gradient, rtol=0, atol=1e-6), name
        network = small_network()
        for kind, wanted_network in (("network", alone.network), ("ema", alone.ema)):
            network.load_state_dict(without_prefix(kind, found))
            close(network, wanted_network, 1e-6)
        assert record["processes"] == 2
        for ours, theirs in zip(record["history"], alone.history, strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
            for mine, other in zip(
                ours["loss_by_quartile"], theirs["loss_by_quartile"], strict=True
            ):
                assert mine == (None if other is None else pytest.approx(other, rel=1e-5))
    run = tmp_path / "run"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4
    state, _ = read_tensors(checkpoints(run)[-1])
    assert not torch.equal(state["dropout.0.cpu"], state["dropout.1.cpu"])
    resumed = Trainer.resume(run, IMAGES, device="cpu")
    resumed.run(6)
    alone.run(6)
    close(resumed.network, alone.network, 1e-5)

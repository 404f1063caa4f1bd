"""Training: Algorithm 1 with everything that a run of hours needs around it.

The loop itself is `Trainer._train_step`, a dozen lines. The rest makes it dependable: a run that
is stopped at any moment, by Ctrl-C, by a full disk or by `kill -9`, goes on from its last
checkpoint and, on the same CPU, ends with the same bits as one that was never stopped.

All that a run draws comes from two places, both stored in its checkpoints. One CPU generator,
seeded by the configuration, draws the order of the images, t, the noise and which labels to drop:
the same numbers on every device and for every number of processes. Dropout draws from PyTorch's
global generators, which a run borrows and gives back as it found them.

    trainer = Trainer(network, diffusion, images, config, folder="runs/digits")
    trainer.run(progress=True)                                  # … killed …
    Trainer.resume("runs/digits", images).run(progress=True)    # goes on

A run's folder holds what `runs` describes, config.json, metrics.jsonl and the checkpoints, and at
the end the averaged weights as a model for `storage.load_model`.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from ddpm_lite.guidance import drop_labels
from ddpm_lite.hardware import (
    PRECISIONS,
    choose_device,
    choose_precision,
    interrupts_held_back,
    place_among_processes,
)
from ddpm_lite.objective import STEP_SAMPLING, hybrid_loss, sample_steps, simple_loss
from ddpm_lite.process import GaussianDiffusion
from ddpm_lite.runs import (
    RunFolder,
    checkpoints,
    describe_data,
    read_checkpoint,
    refuse_difference,
    sha256,
)
from ddpm_lite.storage import (
    Record,
    build_diffusion,
    build_network,
    check_tensors,
    describe_diffusion,
    save_model,
    schedule_tensors,
    to_json,
    with_prefix,
    without_prefix,
)
from ddpm_lite.unet import UNet

QUARTERS = 4  # the loss is recorded for each quarter of 1..T


# ---- configuration ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train. What has no default depends on the data, so you are asked for it.

    steps: optimiser steps of the whole run. DDPM made 800,000 on CIFAR-10; 8×8 digits look
        like digits after 1,000.
    batch_size: images per step, over all processes together. DDPM: 128.
    learning_rate: of AdamW, after warm-up. DDPM: 2e-4 (2e-5 for 256×256 images). Small networks
        on small images stand 1e-3.
    warmup_steps: the rate rises linearly over so many steps, because Adam's first steps rest on
        one or two gradients and would be as long as any. DDPM: 5,000; for a run of 1,000
        steps, 100. 0 is no warm-up.
    seed: of everything that the run draws.
    weight_decay: AdamW's, decoupled from the gradient. DDPM: 0, which makes AdamW Adam.
    betas: decay of Adam's running mean of the gradient and of its square. DDPM: (0.9, 0.999).
    clip_norm: a gradient with a longer norm, over all weights together, is shortened to this one.
        It protects from the rare batch that would undo a day's work. DDPM: 1. None: no clipping.
    ema_decay: the averaged weights, which are those to sample with, keep this share of
        themselves at each step. 0.9999, DDPM's, averages over some 10,000 steps.
    ema_warmup: use min(ema_decay, (1+n)/(10+n)) at step n. Without it 0.9999ⁿ of the *untrained*
        weights remains in the average: 37 % after 10,000 steps.
    precision: of the network's matrix products. "bf16" (8 bits of precision, the range of
        float32, so no loss scaling), "float32", or "auto": bf16 where the hardware computes with
        it natively. What was chosen, and why, is in `Trainer.report` and in config.json.
        Everything outside the network, the loss too, is float32 either way.
    channels_last: keep images as (B, H, W, C) in memory, which a GPU's bf16 convolutions prefer.
    compile: let torch.compile fuse the network's small operations: a minute or two at the start,
        a gain on a GPU, none worth having on a CPU.
    step_sampling: how t is drawn, a method of `objective.sample_steps`. DDPM: "uniform". The
        others have the same expectation and less variance.
    log_every: steps between two records.
    checkpoint_every: steps between two checkpoints; that much work is at stake.
    label_dropout: share of labels replaced by the null class, so that one network learns with
        and without labels. Only with labels; for classifier-free guidance 0.1 to 0.2 is usual.
    horizontal_flip: mirror half of the images. DDPM does on CIFAR-10; digits must not.
    levels: grey levels of the data (17 for the digits, 256 for 8-bit images, None for continuous
        data): needed by the hybrid loss, that is, for a learned variance, and only there.
    hybrid_weight: weight of the bound in the hybrid loss. Improved DDPM: 0.001.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    seed: int
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = 1.0
    ema_decay: float = 0.9999
    ema_warmup: bool = True
    precision: str = "auto"
    channels_last: bool = False
    compile: bool = False
    step_sampling: str = "uniform"
    log_every: int = 100
    checkpoint_every: int = 1000
    label_dropout: float = 0.0
    horizontal_flip: bool = False
    levels: int | str | None = "unstated"
    hybrid_weight: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "checkpoint_every"):
            _check_int(name, getattr(self, name), 1)
        for name in ("warmup_steps", "seed"):
            _check_int(name, getattr(self, name), 0)
        _check_number("learning_rate", self.learning_rate, above=0)
        _check_number("weight_decay", self.weight_decay, low=0)
        if not isinstance(self.betas, tuple) or len(self.betas) != 2:
            raise ValueError(f"betas must be a pair of numbers, got {self.betas!r}.")
        for beta in self.betas:
            _check_number("each of betas", beta, low=0, below=1)
        if self.clip_norm is not None:
            _check_number("clip_norm", self.clip_norm, above=0)
        _check_number("ema_decay", self.ema_decay, low=0, below=1)
        _check_number("label_dropout", self.label_dropout, low=0, below=1)
        for name in ("ema_warmup", "channels_last", "compile", "horizontal_flip"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}.")
        _check_choice("precision", self.precision, PRECISIONS)
        _check_choice("step_sampling", self.step_sampling, STEP_SAMPLING)
        if self.levels is not None and self.levels != "unstated":
            _check_int("levels", self.levels, 2)
        if self.hybrid_weight is not None:
            _check_number("hybrid_weight", self.hybrid_weight, above=0)

    def to_dict(self) -> Record:
        """Every setting, in a form that JSON has."""
        return asdict(self) | {"betas": list(self.betas)}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> TrainingConfig:
        """The inverse of `to_dict`.

        Raises:
            ValueError: if a key is missing or unknown, or a value is refused.
        """
        names = {field.name for field in fields(cls)}
        for key in sorted(settings.keys() - names):
            raise ValueError(f"{key!r} is no training setting; there are {', '.join(names)}.")
        for key in sorted(names - settings.keys()):
            raise ValueError(f"the training setting {key!r} is missing.")
        return cls(**{**settings, "betas": tuple(settings["betas"])})


# ---- batches ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """One process's part of a step: x0 and noise (B, …), t int64 (B,), y int64 (B,) or None."""

    x0: Tensor
    t: Tensor
    noise: Tensor
    y: Tensor | None

    def to(self, device: torch.device) -> Batch:
        """The same batch there; on its way to a GPU it does not wait for work in progress."""
        if device.type == "cpu":
            return self
        pinned = device.type == "cuda"
        parts = (self.x0, self.t, self.noise, self.y)
        moved = (
            None
            if part is None
            else (part.pin_memory() if pinned else part).to(device, non_blocking=pinned)
            for part in parts
        )
        return Batch(*moved)  # type: ignore[arg-type]


class Batches:
    """An endless row of batches: every image once per epoch, in an order drawn for each epoch.

    What an epoch leaves over begins the next batch, so that no image is passed over. Each
    process draws for the whole batch and takes its part: the numbers do not depend on how many
    processes there are.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None,
        T: int,
        config: TrainingConfig,
        null_class: int | None,
    ) -> None:
        self.images, self.labels = images, labels
        self.T, self.config, self.null_class = T, config, null_class
        self.generator = torch.Generator().manual_seed(config.seed)
        self.order = torch.empty(0, dtype=torch.int64)  # of what is left of this epoch

    def next(self, rank: int, processes: int) -> Batch:
        """Draw a step's images, t, noise, mirrorings and dropped labels; in this order."""
        total = self.config.batch_size
        index = self._take(total)
        t = sample_steps(total, self.T, self.generator, self.config.step_sampling)
        noise = torch.randn((total, *self.images.shape[1:]), generator=self.generator)
        part = slice(rank * total // processes, (rank + 1) * total // processes)
        x0 = self.images[index[part]]
        if self.config.horizontal_flip:
            mirrored = torch.rand(total, generator=self.generator)[part] < 0.5
            x0[mirrored] = x0[mirrored].flip(-1)
        if self.labels is None:
            return Batch(x0, t[part], noise[part], None)
        y = self.labels[index]
        if self.null_class is not None and self.config.label_dropout > 0:
            y = drop_labels(y, self.config.label_dropout, self.null_class, self.generator)
        return Batch(x0, t[part], noise[part], y[part])

    def _take(self, count: int) -> Tensor:
        while len(self.order) < count:
            epoch = torch.randperm(len(self.images), generator=self.generator)
            self.order = torch.cat([self.order, epoch])
        index, self.order = self.order[:count], self.order[count:]
        return index

    def state(self) -> dict[str, Tensor]:
        return {"generator": self.generator.get_state(), "order": self.order}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.generator.set_state(state["generator"])
        self.order = state["order"]


# ---- averages -----------------------------------------------------------------------------------


def ema_decay(n: int, config: TrainingConfig) -> float:
    """The share of themselves that the averaged weights keep after optimiser step n = 1, 2, …

    Book: (7.17).
    """
    if config.ema_warmup:
        return min(config.ema_decay, (1 + n) / (10 + n))
    return config.ema_decay


class Average:
    """The exponential moving average of a network's weights, as a network of its own.

    Book: (7.14), (7.15).

    network: the averaged one, in evaluation mode, without gradients.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network: Any = copy.deepcopy(network).eval().requires_grad_(False)
        # Listed once: to walk through the modules at every step would cost a small network 2 %.
        self._means: list[Tensor] = list(self.network.parameters())
        self._weights: list[Tensor] = list(network.parameters())
        self._buffers = list(zip(self.network.buffers(), network.buffers(), strict=True))

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """mean ← decay·mean + (1 − decay)·weight, one by one; buffers are copied."""
        torch._foreach_lerp_(self._means, self._weights, 1 - decay)
        for mean, buffer in self._buffers:
            mean.copy_(buffer)


class Tally:
    """Sums since the last record: the loss and the number of images in each quarter of 1..T, the
    gradient norm and the number of steps. Kept on the device, so that adding waits for nothing."""

    def __init__(self, T: int, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.T = T
        self.sums = torch.zeros(2 * QUARTERS + 2, dtype=dtype, device=device)
        self._quarters = torch.arange(QUARTERS, device=device)
        self._one = torch.ones(1, dtype=dtype, device=device)

    def add(self, t: Tensor, loss: Tensor, norm: Tensor) -> None:
        quarter = (t - 1) * QUARTERS // self.T
        belongs = (quarter == self._quarters[:, None]).to(self.sums.dtype)
        # A matrix product, not a scatter: on a GPU its order of summation is fixed.
        parts = [belongs @ loss.to(self.sums.dtype), belongs.sum(1)]
        self.sums += torch.cat([*parts, norm.reshape(1).to(self.sums.dtype), self._one])

    def read(self, processes: int) -> Record:
        """The means over all processes, and zero again."""
        if processes > 1:
            dist.all_reduce(self.sums)
        sums = self.sums.tolist()
        loss, count = sums[:QUARTERS], sums[QUARTERS : 2 * QUARTERS]
        self.sums.zero_()
        return {
            "loss": sum(loss) / sum(count),
            "loss_by_quartile": [a / n if n else None for a, n in zip(loss, count, strict=True)],
            "gradient_norm": sums[-2] / sums[-1],
        }


# ---- the trainer --------------------------------------------------------------------------------


class Trainer:
    """One training run: the network, its average, the optimiser, and where it stands.

    network: as it is being trained; in evaluation mode between runs.
    ema: the exponential moving average of its weights, in evaluation mode: sample with this one.
    step: optimiser steps made. history: the records so far, one dict for every `log_every` steps:
        step, loss and loss_by_quartile (means since the last record; None for a quarter of 1..T
        that no t fell into), learning_rate, gradient_norm (mean, before clipping),
        images_per_second.

    Args:
        network: called as network(x_t, t, y); trained in place, on the device. With a folder it
            must be a UNet, whose configuration can be stored.
        images: (N, C, H, W) in [−1, 1], or points (N, D); kept on the CPU as float32.
        labels: int64 (N,) in 0..num_classes − 1, for a network with classes.
        folder: where to keep the run; None keeps nothing.
        device: "cpu", "cuda", …; None takes a GPU if there is one.
        about: what the model file is to say beside the training, such as {"data": "digits"}.

    Raises:
        FileExistsError: if the folder holds a run already.
        OSError: if it cannot be written.
        TypeError, ValueError: if an argument does not fit.
    """

    def __init__(
        self,
        network: nn.Module,
        diffusion: GaussianDiffusion,
        images: Tensor,
        config: TrainingConfig,
        *,
        labels: Tensor | None = None,
        folder: str | Path | None = None,
        device: str | torch.device | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.rank, self.processes = place_among_processes()
        self.device = choose_device(device)
        self.precision, self.why_precision = choose_precision(config.precision, self.device)
        self.config, self.diffusion, self.about = config, diffusion, dict(about or {})
        images = _check_images(images, network)
        labels = _check_labels(labels, len(images), network, config)
        _check_loss(network, diffusion, config)
        _check_split(config, self.processes)

        layout = torch.channels_last if config.channels_last else torch.preserve_format
        self.network = network.to(self.device).to(memory_format=layout).eval()  # type: ignore[call-overload]
        self._forward = self._wrap(self.network)
        self._weights = list(self.network.parameters())
        self._average = Average(self.network)
        self.ema = self._average.network
        self.optimiser = self._make_optimiser()
        self.batches = Batches(images, labels, diffusion.T, config, _num_classes(network))
        self.tally = Tally(diffusion.T, self.device)
        self.step = 0
        self.history: list[Record] = []
        self._clock = (0.0, 0)  # seconds and images since the last record, in this process
        self._dropout = _fresh_dropout_state(config.seed, self.rank, self.device)
        self._running = False
        self._looks_at_every_step = self.device.type == "cpu"  # see `_watch`
        self._broken_at = torch.zeros((), dtype=torch.int64, device=self.device)
        self._kept: RunFolder | None = None
        if folder is not None:
            self._open_folder(Path(folder), new=True)

    def _wrap(self, network: nn.Module) -> nn.Module:
        """What is called in training; `network` itself stays as it is, with its own names."""
        forward: nn.Module = network
        if self.processes > 1:
            where = [self.device.index] if self.device.type == "cuda" else None
            forward = DistributedDataParallel(forward, device_ids=where)
        return torch.compile(forward) if self.config.compile else forward  # type: ignore[return-value]

    def _make_optimiser(self) -> torch.optim.AdamW:
        return torch.optim.AdamW(
            self._weights,
            lr=self.config.learning_rate,
            betas=self.config.betas,
            weight_decay=self.config.weight_decay,
            fused=self.device.type in ("cpu", "cuda"),  # one pass over the weights instead of ten
        )

    @property
    def folder(self) -> Path | None:
        """Where the run is kept, if it is."""
        return None if self._kept is None else self._kept.path

    # ---- the loop -------------------------------------------------------------------------

    def run(self, steps: int | None = None, progress: bool = False) -> None:
        """Train until `steps` optimiser steps have been made in all (default: config.steps).

        With a folder, a checkpoint is written at the start, every `checkpoint_every` steps and at
        the end, and at the end the model too. Ctrl-C lets the current step finish and writes a
        checkpoint before it stops; a second Ctrl-C stops at once.

        progress: show a bar with images per second, time left and the last loss.

        Raises:
            ValueError: if the run is already further.
            FloatingPointError: if the loss or a gradient is NaN or infinite: the sentence names
                the step, and the last checkpoint from before it stays.
            OSError: if a file cannot be written; the run can go on when that is mended.
        """
        target = self.config.steps if steps is None else steps
        _check_int("steps", target, 1)
        if target < self.step:
            raise ValueError(f"the run has made {self.step} steps already, asked for {target}.")
        self._refuse_broken()
        if self._kept is not None and self.rank == 0:
            self._kept.write_metrics(self.history)
        if self.step == 0:
            self._save_if_kept()
        with (
            self._progress_bar(target, progress) as bar,
            self._own_dropout(),
            interrupts_held_back(self.processes == 1) as interrupted,
        ):
            while self.step < target and not interrupted:
                self._timed_step()
                bar.update(self.config.batch_size)
                if self.step % self.config.log_every == 0 or self.step == self.config.steps:
                    self._record()
                    bar.set_postfix(step=self.step, loss=self.history[-1]["loss"])
                if self.step % self.config.checkpoint_every == 0 and self.step < target:
                    self._save_if_kept()
        self._save_if_kept()
        if interrupted:
            raise KeyboardInterrupt
        if self._kept is not None and self.rank == 0:
            save_model(self._kept.path, self.ema, self.diffusion, self._describe_model())

    def _train_step(self) -> None:
        """Algorithm 1 of DDPM, one turn: draw x_0, t and ε, and step down the loss's gradient.

        Paper: DDPM Algorithm 1.
        """
        batch = self.batches.next(self.rank, self.processes).to(self.device)
        loss = self._loss(batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss.mean().backward()
        limit = math.inf if self.config.clip_norm is None else self.config.clip_norm
        norm = clip_grad_norm_(self._weights, limit)
        self._watch(loss.detach(), norm)
        self.tally.add(batch.t, loss.detach(), norm)
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate(self.step + 1)
        self.optimiser.step()
        self.step += 1
        self._average.update(ema_decay(self.step, self.config))

    def _loss(self, batch: Batch) -> Tensor:
        """The loss of each image, (B,): simple, or hybrid where the variance is learned."""
        x0, t, noise, y = batch.x0, batch.t, batch.noise, batch.y
        if self.diffusion.variance != "learned":
            return simple_loss(self._denoise, self.diffusion, x0, t, noise, y)
        levels, weight = self.config.levels, self.config.hybrid_weight
        assert not isinstance(levels, str) and weight is not None  # `_check_loss` saw to it
        return hybrid_loss(
            self._denoise, self.diffusion, x0, t, noise, levels=levels, weight=weight, y=y
        )

    def _denoise(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """The network's output in float32; lower precision begins and ends in here."""
        if self.config.channels_last and x_t.ndim == 4:
            x_t = x_t.contiguous(memory_format=torch.channels_last)
        lower = self.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16) if lower else nullcontext():
            output: Tensor = self._forward(x_t, t, y)
        return output.float()

    def learning_rate(self, n: int) -> float:
        """That of optimiser step n = 1, 2, …: a line from 0 up to `warmup_steps`, then level."""
        if n >= self.config.warmup_steps:
            return self.config.learning_rate
        return self.config.learning_rate * n / self.config.warmup_steps

    def _watch(self, loss: Tensor, norm: Tensor) -> None:
        """Note the first step whose loss or gradient is not finite.

        On a CPU the note is read at once, before the weights are touched. On a GPU that would
        make every step wait, so it is read with each record and before anything is saved.
        """
        broken = ~(loss.isfinite().all() & norm.isfinite()) & (self._broken_at == 0)
        self._broken_at = torch.where(broken, self.step + 1, self._broken_at)
        if self._looks_at_every_step:
            self._refuse_broken()

    def _refuse_broken(self) -> None:
        step = int(self._broken_at)
        if step:
            kept = [] if self._kept is None else checkpoints(self._kept.path)
            end = f"; {kept[-1]} is the last good state" if kept else ""
            raise FloatingPointError(
                f"the loss or its gradient is not a finite number at step {step}: a smaller "
                f"learning rate, a longer warm-up or data in [-1, 1] may be what is missing{end}."
            )

    # ---- records --------------------------------------------------------------------------

    def _timed_step(self) -> None:
        start = time.perf_counter()
        self._train_step()
        seconds, images = self._clock
        passed = time.perf_counter() - start
        self._clock = (seconds + passed, images + self.config.batch_size)

    def _record(self) -> None:
        start = time.perf_counter()
        self._refuse_broken()
        means = self.tally.read(self.processes)  # on a GPU this waits for the steps to be done
        seconds, images = self._clock
        seconds = max(seconds + time.perf_counter() - start, 1e-9)
        self._clock = (0.0, 0)
        self.history.append(
            {
                "step": self.step,
                "loss": means["loss"],
                "loss_by_quartile": means["loss_by_quartile"],
                "learning_rate": self.learning_rate(self.step),
                "gradient_norm": means["gradient_norm"],
                "images_per_second": images / seconds,
            }
        )
        if self._kept is not None and self.rank == 0:
            self._kept.append(self.history[-1])

    def _progress_bar(self, target: int, shown: bool) -> Any:
        size = self.config.batch_size
        return tqdm(
            total=target * size,
            initial=self.step * size,
            unit=" images",
            unit_scale=True,
            disable=not shown or self.rank != 0,
        )

    def report(self) -> str:
        """Where and how this run computes, and what was chosen for it; to be read by a person."""
        count = sum(parameter.numel() for parameter in self.network.parameters())
        shape = "×".join(str(n) for n in self.batches.images.shape[1:])
        each = self.config.batch_size // self.processes
        where = f"{self.device}"
        if self.device.type == "cpu":
            where += f", {torch.get_num_threads()} threads"
        options = [name for name in ("channels_last", "compile") if getattr(self.config, name)]
        return "\n".join(
            [
                f"device     {where}, {self.processes} process(es)",
                f"precision  {self.precision}: {self.why_precision}",
                f"network    {type(self.network).__name__}, {count:,} parameters"
                + "".join(f", {option}" for option in options),
                f"data       {len(self.batches.images):,} of {shape}, "
                f"{'with' if self.batches.labels is not None else 'without'} labels",
                f"step       {self.step:,} of {self.config.steps:,}, {each} images a process",
            ]
        )

    # ---- the folder -----------------------------------------------------------------------

    def _open_folder(self, folder: Path, new: bool) -> None:
        if not isinstance(self.network, UNet):
            raise TypeError(
                "a run that is kept in a folder needs a UNet, whose configuration can be stored, "
                f"got {type(self.network).__name__}."
            )
        self._kept = RunFolder(folder, self._identify())
        if self.rank == 0:
            chosen = {
                "device": str(self.device),
                "processes": self.processes,
                "precision": self.precision,
                "why": self.why_precision,
                "torch": torch.__version__,
            }
            self._kept.open(chosen, new=new)

    def _identify(self) -> Record:
        """What makes this run this run: it can only be resumed as the same."""
        schedule = schedule_tensors(self.diffusion)
        assert isinstance(self.network, UNet)
        identity = {
            "training": self.config.to_dict(),
            "network": self.network.config.to_dict(),
            "diffusion": describe_diffusion(self.diffusion)
            | {"schedule_sha256": sha256(*schedule.values())},
            "data": describe_data(self.batches.images, self.batches.labels),
            "about": self.about,
        }
        return json.loads(to_json(identity))  # tuples become lists, as they are read back

    def _describe_model(self) -> Record:
        """What the model file says of itself."""
        training = {
            "steps": self.step,
            "images_seen": self.step * self.config.batch_size,
            "last_record": self.history[-1] if self.history else None,
            "precision": self.precision,
            "device": str(self.device),
            "processes": self.processes,
            "torch": torch.__version__,
            "settings": self.config.to_dict(),
            "data": describe_data(self.batches.images, self.batches.labels),
        }
        shape = self.batches.images.shape
        return {**self.about, "image_size": shape[-1], "channels": shape[1], "training": training}

    # ---- checkpoints ----------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint of this moment, and drop all but the last two.

        With several processes all of them must call it; one writes.

        Raises:
            ValueError: if the run keeps no folder.
            FloatingPointError: if NaN has been met.
            OSError: if it cannot be written; earlier checkpoints are then all still there.
        """
        if self._kept is None:
            raise ValueError("this run keeps no folder: give Trainer a folder to save into.")
        self._refuse_broken()
        dropout = self._gather_dropout_states()
        if self.rank == 0:
            self._kept.save(self.step, self._state() | dropout, self.history)

    def _save_if_kept(self) -> None:
        if self._kept is not None:
            self.save()

    def _state(self) -> dict[str, Tensor]:
        """Every tensor that the run's future depends on, except dropout's generators."""
        state = with_prefix("network", self.network.state_dict())
        state |= with_prefix("ema", self.ema.state_dict())
        for name, parameter in self.network.named_parameters():
            moments = self.optimiser.state.get(parameter, {})
            state |= with_prefix(f"optimiser.{name}", moments)
        state |= with_prefix("batches", self.batches.state())
        return state | schedule_tensors(self.diffusion) | {"tally": self.tally.sums}

    @classmethod
    def resume(
        cls,
        folder: str | Path,
        images: Tensor,
        *,
        labels: Tensor | None = None,
        device: str | torch.device | None = None,
    ) -> Trainer:
        """The run of this folder as it was at its last checkpoint, ready to `run` on.

        On the CPU that it was begun on, the weights it ends with are bit for bit those of a run
        without a break. Records from after the checkpoint are dropped: they will come again. On
        another device, or in more processes, the batches are the same, but dropout draws afresh.

        images, labels: those that the run was begun with, which is checked.

        Raises:
            OSError: if the folder holds no run, or a file cannot be read or written.
            ValueError: if the checkpoint is truncated, foreign, or of another configuration or
                other data. Nothing is changed then.
        """
        folder = Path(folder)
        path, tensors, record = read_checkpoint(folder)
        run = record["run"]
        refuse_difference(
            path, run["data"], describe_data(_as_float32(images), labels), "the data given here"
        )
        trainer = cls(
            build_network(run, path),
            build_diffusion(run, tensors, path),
            images,
            TrainingConfig.from_dict(run["training"]),
            labels=labels,
            device=device,
            about=run["about"],
        )
        trainer._restore(path, tensors, record)
        trainer._open_folder(folder, new=False)
        if trainer._kept is not None and trainer.rank == 0:
            trainer._kept.write_metrics(trainer.history)
        return trainer

    def _restore(self, path: Path, tensors: dict[str, Tensor], record: Record) -> None:
        """Take over a checkpoint's state, after every tensor in it was checked."""
        dropout = without_prefix("dropout", tensors)
        found = {name: t for name, t in tensors.items() if not name.startswith("dropout.")}
        wanted = self._state()
        wanted["batches.order"] = found.get("batches.order", self.batches.order)  # of any length
        if record["step"] > 0:
            wanted |= self._moments_of_adam()
        check_tensors(found, wanted, path)
        if "0.cpu" not in dropout:
            raise ValueError(f"{path} lacks the tensor 'dropout.0.cpu'.")
        self.network.load_state_dict(without_prefix("network", found))
        self.ema.load_state_dict(without_prefix("ema", found))
        if record["step"] > 0:
            self._load_optimiser(without_prefix("optimiser", found))
        self.batches.load(without_prefix("batches", found))
        self.tally.sums.copy_(found["tally"])
        self.step, self.history = record["step"], record["history"]
        mine = without_prefix(str(self.rank), dropout)
        if mine.keys() == self._dropout.keys():  # other devices or more processes: begin afresh
            self._dropout = mine

    def _moments_of_adam(self) -> dict[str, Tensor]:
        """The names and shapes of the optimiser's state, after its first step."""
        count = torch.zeros((), dtype=torch.float32)
        return {
            f"optimiser.{name}.{key}": count if key == "step" else parameter
            for name, parameter in self.network.named_parameters()
            for key in ("step", "exp_avg", "exp_avg_sq")
        }

    def _load_optimiser(self, state: Mapping[str, Tensor]) -> None:
        """Put the moments into place, in the memory layout of their weights."""
        for name, parameter in self.network.named_parameters():
            moments = without_prefix(name, state)
            count = moments.pop("step").to(self.device)
            self.optimiser.state[parameter] = {"step": count} | {
                key: torch.empty_like(parameter, requires_grad=False).copy_(value)
                for key, value in moments.items()
            }

    # ---- dropout's randomness -------------------------------------------------------------

    @contextmanager
    def _own_dropout(self) -> Iterator[None]:
        """Training mode, with PyTorch's global generators lent to this run."""
        on_gpu = self.device.type == "cuda"
        with torch.random.fork_rng([self.device.index] if on_gpu else []):
            torch.set_rng_state(self._dropout["cpu"])
            if on_gpu:
                torch.cuda.set_rng_state(self._dropout["cuda"], self.device)
            self._running = True
            self.network.train()
            try:
                yield
            finally:
                self.network.eval()
                self._dropout = self._dropout_state()
                self._running = False

    def _dropout_state(self) -> dict[str, Tensor]:
        if not self._running:
            return self._dropout
        state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def _gather_dropout_states(self) -> dict[str, Tensor]:
        """Those of all processes, as dropout.RANK.KIND."""
        found: dict[str, Tensor] = {}
        for kind, mine in self._dropout_state().items():
            states = [mine]
            if self.processes > 1:
                sent = mine.to(self.device)
                received = [torch.empty_like(sent) for _ in range(self.processes)]
                dist.all_gather(received, sent)
                states = [state.cpu() for state in received]
            found |= {f"dropout.{rank}.{kind}": state for rank, state in enumerate(states)}
        return found


def _fresh_dropout_state(seed: int, rank: int, device: torch.device) -> dict[str, Tensor]:
    """Another seed than that of the batches, and another in each process: the processes hold
    different images and must not share their masks."""
    state = {"cpu": torch.Generator().manual_seed(seed + 1 + rank).get_state()}
    if device.type == "cuda":
        state["cuda"] = torch.Generator(device).manual_seed(seed + 1 + rank).get_state()
    return state


# ---- checks at the boundary ---------------------------------------------------------------------


def _check_int(name: str, value: Any, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}.")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}.")


def _check_number(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> None:
    """low ≤ value, above < value < below, and finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}.")
    if not (value >= low and above < value < below):
        bounds = [f"at least {low:g}"] if low > -math.inf else []
        bounds += [f"above {above:g}"] if above > -math.inf else []
        bounds += [f"below {below:g}"] if below < math.inf else ["finite"]
        raise ValueError(f"{name} must be {' and '.join(bounds)}, got {value!r}.")


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")


def _num_classes(network: nn.Module) -> int | None:
    return getattr(getattr(network, "config", None), "num_classes", None)


def _as_float32(images: Tensor) -> Tensor:
    if not images.is_floating_point() or images.ndim < 2:
        raise TypeError(
            f"images must be a floating-point tensor (N, …), got {images.dtype} of shape "
            f"{tuple(images.shape)}."
        )
    return images.detach().to("cpu", torch.float32)


def _check_images(images: Tensor, network: nn.Module) -> Tensor:
    images = _as_float32(images)
    if len(images) == 0:
        raise ValueError("images must hold at least one image, got none.")
    if not bool(images.isfinite().all()):
        raise ValueError("images must be finite, but there is a NaN or an infinity among them.")
    if isinstance(network, UNet):
        config = network.config
        wanted = (config.in_channels, config.image_size, config.image_size)
        if tuple(images.shape[1:]) != wanted:
            raise ValueError(
                f"the network takes images {wanted}, got images {tuple(images.shape[1:])}."
            )
        low, high = images.min().item(), images.max().item()
        if low < -1 or high > 1:
            raise ValueError(f"images must lie in [-1, 1], got values from {low:g} to {high:g}.")
    return images


def _check_labels(
    labels: Tensor | None, count: int, network: nn.Module, config: TrainingConfig
) -> Tensor | None:
    classes = _num_classes(network)
    if labels is None:
        if config.label_dropout > 0:
            raise ValueError(f"label_dropout = {config.label_dropout} needs labels, got none.")
        return None
    if classes is None:
        raise ValueError("labels were given, but the network knows no classes (num_classes).")
    if labels.dtype != torch.int64 or tuple(labels.shape) != (count,):
        raise ValueError(
            f"labels must be int64 of shape ({count},), got {labels.dtype} of shape "
            f"{tuple(labels.shape)}."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"labels must lie in 0..{classes - 1}, got {low if low < 0 else high}: "
            f"{classes} is the null class."
        )
    return labels.detach().cpu()


def _check_loss(network: nn.Module, diffusion: GaussianDiffusion, config: TrainingConfig) -> None:
    """A learned variance needs twice the channels and the settings of the hybrid loss."""
    learned = diffusion.variance == "learned"
    if isinstance(network, UNet):
        wanted = network.config.in_channels * (2 if learned else 1)
        if network.config.out_channels != wanted:
            raise ValueError(
                f"variance {diffusion.variance!r} needs a network with {wanted} output channels, "
                f"got {network.config.out_channels}."
            )
    if learned and (config.levels == "unstated" or config.hybrid_weight is None):
        raise ValueError(
            "a learned variance is trained by the hybrid loss, which needs hybrid_weight "
            "(Improved DDPM: 0.001) and levels, the number of grey levels (17 for the digits; "
            "None for continuous data)."
        )
    if not learned and config.hybrid_weight is not None:
        raise ValueError(
            f"hybrid_weight = {config.hybrid_weight} is for a learned variance only, and this "
            f"diffusion's variance is {diffusion.variance!r}."
        )


def _check_split(config: TrainingConfig, processes: int) -> None:
    if config.batch_size % processes:
        raise ValueError(
            f"batch_size must be a multiple of the {processes} processes, got {config.batch_size}."
        )

"""Where a run computes: device, precision, several processes, and what interrupts it.

Nothing here knows about diffusion. Each choice comes with its reason in words, so that a run can
report what was chosen for it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

PRECISIONS = ("float32", "bf16", "auto")


# ---- device and precision ------------------------------------------------------------------------


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device asked for; if none was, a GPU where PyTorch sees one, else the CPU.

    "cuda" becomes this process's own GPU, with its number.

    Raises:
        ValueError: if a GPU is asked for and there is none.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = torch.device(device)
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device {str(chosen)!r} was asked for, but there is no GPU to use.")
        if str(chosen) == "cuda":
            chosen = torch.device("cuda", torch.cuda.current_device())
    return chosen


def choose_precision(wanted: str, device: torch.device) -> tuple[str, str]:
    """("bf16" or "float32", why), for a `precision` of the configuration.

    Raises:
        ValueError: if "bf16" is wanted where it would only be emulated.
    """
    native, why = _native_bf16(device)
    if wanted == "bf16" and not native:
        raise ValueError(f"precision 'bf16' is not to be had: {why}. Use 'float32' or 'auto'.")
    if wanted == "auto":
        return ("bf16" if native else "float32"), f"chosen, since {why}"
    return wanted, "asked for"


def _native_bf16(device: torch.device) -> tuple[bool, str]:
    """Does this device multiply bf16 numbers in hardware? And the reason, as half a sentence."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return True, f"{name} computes with bf16 natively"
        return False, f"{name} does not compute with bf16 natively"
    if device.type == "cpu":
        for feature, probe in (
            ("AVX512-BF16", "_is_avx512_bf16_supported"),
            ("AMX", "_is_amx_tile_supported"),
        ):
            if getattr(torch.cpu, probe, lambda: False)():
                return True, f"this processor has {feature}"
        return False, "this processor is not known to compute with bf16 natively"
    return False, f"bf16 on {device.type} has not been tried"


# ---- several processes --------------------------------------------------------------------------


@contextmanager
def process_group(device: str | None = None) -> Iterator[int]:
    """Join the processes that torchrun started, and leave them at the end; gives this one's rank.

    In a process of its own it does nothing and the rank is 0. GPUs talk through NCCL, each
    process to its own; processors through gloo.

        with process_group() as rank:
            Trainer(…).run(progress=True)      # only rank 0 shows a bar and writes files

    device: "cpu" for processors even where there are GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0
        return
    on_gpu = torch.cuda.is_available() and device != "cpu"
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def place_among_processes() -> tuple[int, int]:
    """(rank, number of processes)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    announced = int(os.environ.get("WORLD_SIZE", "1"))
    if announced > 1:
        raise ValueError(
            f"torchrun started {announced} processes, but this one has not joined the others: "
            "build the Trainer inside `with process_group():`."
        )
    return 0, 1


# ---- interruption -------------------------------------------------------------------------------


@contextmanager
def interrupts_held_back(wanted: bool) -> Iterator[list[int]]:
    """Ctrl-C fills this list instead of tearing a step apart; a second one interrupts at once.

    Only the main thread may ask for that, and only where no other process waits for this one.
    """
    noted: list[int] = []
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def note(number: int, frame: Any) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)

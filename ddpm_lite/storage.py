"""Files that are whole or not there, and the format of a trained model.

A file is written beside its place under another name, forced to the disk and only then renamed:
whoever is killed on the way, or runs out of disk, leaves the old file as it was. Weights are
safetensors with a JSON record in the file's own header, so that numbers and their description
cannot come apart; nothing here can run code when it is read, as a pickle can.

A model is a folder:

    model.safetensors   the weights, the schedule's log ᾱ in float64, and the record in the header
    model.json          the same record, for people and for other programs
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ddpm_lite.process import GaussianDiffusion
from ddpm_lite.schedule import NoiseSchedule
from ddpm_lite.unet import UNet, UNetConfig

MODEL_FORMAT = "ddpm-lite model 1"
WEIGHTS = Path(__file__).parent / "weights"

Record = dict[str, Any]


# ---- whole files --------------------------------------------------------------------------------


def write_atomically(path: str | Path, content: bytes) -> None:
    """Put content at path so that every reader, at any moment, finds all of it or what was there.

    A temporary file in the same folder is written and forced to the disk (fsync) before it takes
    the name (rename, atomic within a file system); then the folder is forced to the disk, since
    the name is stored there. A process that is killed leaves at most a file `.NAME.PID.partial`.

    Raises:
        OSError: if the disk is full, the folder read-only, and so on; path is then unchanged.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        _remove(partial)
        reason = error.strerror or error
        raise type(error)(
            f"could not write {path}: {reason}; the file there is as it was."
        ) from error
    except BaseException:  # interrupted by the reader: leave nothing behind
        _remove(partial)
        raise


def clear_partial_files(folder: str | Path) -> None:
    """Remove what writers that were killed left in this folder."""
    for partial in Path(folder).glob(".*.partial"):
        partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder, and orders the rename itself
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    # A folder that refused the file refuses this too; the first error is the one to tell.
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


# ---- JSON and tensors ---------------------------------------------------------------------------


def to_json(record: Mapping[str, Any]) -> bytes:
    """Readable, exact (a float is written so that it reads back equal) and in the given order.

    Raises:
        ValueError: if the record holds NaN, an infinity, or something that JSON has no form for.
    """
    try:
        text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the record cannot be written as JSON: {error}.") from error
    return (text + "\n").encode()


def read_json(path: str | Path) -> Record:
    """A JSON file that holds an object.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not JSON, or not an object.
    """
    try:
        record = json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not a whole JSON file: {error}.") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(record).__name__}.")
    return record


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], record: Record) -> None:
    """One safetensors file, written atomically, with the record as JSON in its header.

    Equal input gives equal bytes. Dtypes and values are kept exactly; the memory layout
    (channels_last) is not part of the format.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # One key only: the order of several would differ from run to run.
    write_atomically(path, save(plain, {"record": to_json(record).decode()}))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], Record]:
    """The tensors, on the CPU, and the record of a file that `write_tensors` wrote.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is truncated, not safetensors, or has no record of ours in its header.
    """
    with open(path, "rb"):  # a missing file or folder gets Python's own error, with its name
        pass
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Cloned, so that nothing points into the file any more when it is replaced.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file ({error}).") from error
    if "record" not in metadata:
        raise ValueError(
            f"{path} was not written by ddpm_lite: its header holds no record of what it is."
        )
    return tensors, json.loads(metadata["record"])


def check_tensors(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    """Refuse a file whose tensors are not those wanted, naming the first that differs.

    Raises:
        ValueError: if a name is missing or unknown, or a shape or dtype is another.
    """
    for name, tensor in wanted.items():
        if name not in found:
            raise ValueError(f"{path} lacks the tensor {name!r}.")
        here, there = tuple(found[name].shape), tuple(tensor.shape)
        if here != there:
            raise ValueError(f"{path}: {name!r} must have shape {there}, got {here}.")
        if found[name].dtype != tensor.dtype:
            raise ValueError(
                f"{path}: {name!r} must have dtype {tensor.dtype}, got {found[name].dtype}."
            )
    unknown = sorted(found.keys() - wanted.keys())
    if unknown:
        raise ValueError(f"{path} holds a tensor {unknown[0]!r} that has no place here.")


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those tensors whose name starts with the prefix, under the rest of their name."""
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


# ---- the parts of a model -----------------------------------------------------------------------


def describe_diffusion(diffusion: GaussianDiffusion) -> Record:
    """What a record says of a process; the schedule itself is in the tensors."""
    return {
        "T": diffusion.T,
        "prediction": diffusion.prediction,
        "variance": diffusion.variance,
    }


def schedule_tensors(diffusion: GaussianDiffusion) -> dict[str, Tensor]:
    """log ᾱ_0..log ᾱ_T (float64) and the original step numbers (int64): the whole schedule."""
    schedule = diffusion.schedule
    return {
        "schedule.log_alpha_bar": schedule.log_alpha_bar,
        "schedule.timesteps": schedule.timesteps,
    }


def build_network(record: Record, path: Path) -> UNet:
    """The network that a record describes, with weights still to be filled in.

    Raises:
        ValueError: if the record lacks it, or the configuration is refused.
    """
    try:
        config = UNetConfig.from_dict(record["network"])
        return UNet(config, torch.Generator())
    except KeyError as error:
        raise ValueError(f"{path}: its record lacks {error}.") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: the network it describes is refused: {error}") from error


def build_diffusion(record: Record, tensors: Mapping[str, Tensor], path: Path) -> GaussianDiffusion:
    """The process that a record and the schedule's tensors describe.

    Raises:
        ValueError: if either lacks a part, or a value is refused.
    """
    try:
        schedule = NoiseSchedule(tensors["schedule.log_alpha_bar"], tensors["schedule.timesteps"])
        described = record["diffusion"]
        return GaussianDiffusion(schedule, described["prediction"], described["variance"])
    except KeyError as error:
        raise ValueError(f"{path} lacks {error}.") from error
    except ValueError as error:
        raise ValueError(f"{path}: the diffusion it describes is refused: {error}") from error


# ---- models -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A trained network with the process it was trained for.

    network: in evaluation mode. about: what the record says of data and training.
    """

    network: UNet
    diffusion: GaussianDiffusion
    about: Record


def save_model(
    folder: str | Path, network: nn.Module, diffusion: GaussianDiffusion, about: Mapping[str, Any]
) -> None:
    """Write model.safetensors and model.json into the folder, which is made if need be.

    about: anything that JSON can hold; by custom `data` (its name), `levels` (of a pixel; 17 for
    the digits), `image_size` and `training` (a summary).

    Raises:
        OSError: if a file cannot be written; an older model in the folder is then unchanged.
        TypeError: if the network has no configuration that it could be built from again.
        ValueError: if a weight is not finite, or `about` has no form in JSON.
    """
    folder = Path(folder)
    _refuse_foreign_network(network)
    _refuse_broken_weights(network)
    record: Record = {
        "format": MODEL_FORMAT,
        "network": network.config.to_dict(),  # type: ignore[union-attr,operator]
        "diffusion": describe_diffusion(diffusion),
        "about": dict(about),
    }
    text = to_json(record)
    make_folder(folder)
    tensors = with_prefix("network", network.state_dict()) | schedule_tensors(diffusion)
    write_tensors(folder / "model.safetensors", tensors, record)
    write_atomically(folder / "model.json", text)


def load_model(folder: str | Path, device: str | torch.device = "cpu") -> Model:
    """Read a model back: every weight bit for bit, the schedule too.

    The record in the header of model.safetensors is what counts. model.json may be missing, but
    if it is there it must say the same: two descriptions that differ are refused, not chosen from.

    Raises:
        OSError: if the folder or the file is not there or cannot be read.
        ValueError: if the file is truncated, foreign, or its tensors do not fit its record.
    """
    path = Path(folder) / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"there is no model in {folder}: it holds no model.safetensors.")
    tensors, record = read_tensors(path)
    if record.get("format") != MODEL_FORMAT:
        raise ValueError(
            f"{path} is not a model but {record.get('format')!r}; wanted {MODEL_FORMAT!r}."
        )
    _refuse_contradiction(Path(folder) / "model.json", record, path)
    network = build_network(record, path)
    diffusion = build_diffusion(record, tensors, path)
    wanted = with_prefix("network", network.state_dict()) | schedule_tensors(diffusion)
    check_tensors(tensors, wanted, path)
    network.load_state_dict(without_prefix("network", tensors))
    return Model(network.to(device).eval(), diffusion, record.get("about", {}))


def shipped(name: str) -> Model:
    """A model that comes with the book, trained on its 8×8 digits.

    "digits" knows no labels. "digits-conditional" was trained with them, a tenth withheld, so that
    `guided` can steer it. How each was made is in its `about`.

    Raises:
        ValueError: if no model of that name ships with the book.
    """
    names = sorted(folder.parent.name for folder in WEIGHTS.glob("*/model.safetensors"))
    if name not in names:
        raise ValueError(
            f"the models that come with the book are {', '.join(names) or 'none'}; "
            f"{name!r} is not one."
        )
    return load_model(WEIGHTS / name)


def make_folder(folder: Path) -> None:
    """Make the folder and those above it.

    Raises:
        OSError: if that cannot be done, or a file has the name.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(f"could not make the folder {folder}: {error.strerror}.") from error


def _refuse_foreign_network(network: nn.Module) -> None:
    if not isinstance(network, UNet):
        raise TypeError(
            f"a model file needs a UNet, whose configuration can be stored, got "
            f"{type(network).__name__}."
        )


def _refuse_broken_weights(network: nn.Module) -> None:
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"the weight {name!r} holds NaN or infinity; nothing was written.")


def _refuse_contradiction(path: Path, record: Record, weights: Path) -> None:
    if path.is_file() and read_json(path) != record:
        raise ValueError(
            f"{path} says something else than the record inside {weights.name}: one of them was "
            f"edited or replaced. Delete {path.name} to go by the record beside the weights."
        )

"""Networks from and to diffusers' `UNet2DModel`: a folder with config.json and safetensors.

Two implementations of one network differ in names, and in settings that leave every shape as it
was: the width of an attention head, the side on which a convolution is padded, the ε of the
normalisation, the order and the spacing of the clock's hands. A file that disagrees in one of
those loads without a complaint and computes something else. So every setting of config.json is
translated, or must have the one value that has a counterpart here; anything else, and anything
that is missing, is refused by its name.

Their step t0 is ours minus 1. A network of ours that was trained on t itself (`t_offset=0`) is
exported with its clock put back by one step: the first linear layer absorbs the turn of the hands.

Only safetensors are read: a pickle (.bin, .ckpt, .pt) can run code while it is being read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ddpm_lite.process import GaussianDiffusion
from ddpm_lite.schedule import NoiseSchedule
from ddpm_lite.storage import make_folder, read_json, to_json, write_atomically
from ddpm_lite.unet import UNet, UNetConfig, timestep_embedding

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"

Settings = dict[str, Any]

# Ours → theirs, tried in this order; what no line matches is called the same in both.
_NAMES = (
    (r"^time_embedding\.linear(\d)", r"time_embedding.linear_\1"),
    (r"^time_embedding\.classes", r"class_embedding"),
    (r"^(down|up)\.(\d+)\.blocks\.(\d+)", r"\1_blocks.\2.resnets.\3"),
    (r"^(down|up)\.(\d+)\.attentions\.(\d+)", r"\1_blocks.\2.attentions.\3"),
    (r"^(down|up)\.(\d+)\.resample", r"\1_blocks.\2.\1samplers.0"),
    (r"^middle1", r"mid_block.resnets.0"),
    (r"^middle_attention", r"mid_block.attentions.0"),
    (r"^middle2", r"mid_block.resnets.1"),
    (r"^norm_out", r"conv_norm_out"),
    (r"(resnets\.\d+)\.time\.", r"\1.time_emb_proj."),
    (r"(resnets\.\d+)\.shortcut\.", r"\1.conv_shortcut."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.query\.", r"\1.to_q."),
    (r"(attentions\.\d+)\.key\.", r"\1.to_k."),
    (r"(attentions\.\d+)\.value\.", r"\1.to_v."),
    (r"(attentions\.\d+)\.project\.", r"\1.to_out.0."),
)
# Old files → new ones.
_LEGACY_NAMES = (
    (r"(attentions\.\d+)\.query\.", r"\1.to_q."),
    (r"(attentions\.\d+)\.key\.", r"\1.to_k."),
    (r"(attentions\.\d+)\.value\.", r"\1.to_v."),
    (r"(attentions\.\d+)\.proj_attn\.", r"\1.to_out.0."),
)

# Settings of theirs for which only these values have a counterpart here.
_FIXED: dict[str, tuple[object, ...]] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "act_fn": ("silu", "swish"),
    "add_attention": (True,),
    "class_embed_type": (None,),
}
# Settings that a file may leave out, being younger than some files, and what that means.
_OPTIONAL: Settings = {
    **{name: allowed[0] for name, allowed in _FIXED.items()},
    "time_embedding_dim": None,
    "dropout": 0.0,
    "attn_norm_num_groups": None,
    "resnet_time_scale_shift": "default",
    "num_class_embeds": None,
    "num_train_timesteps": None,  # used by a kind of clock that is refused
}
# Settings that every file must state: nothing in the weights would show a wrong guess. A file that
# was written before attention_head_dim existed means one head, where today's default gives many.
_REQUIRED = (
    "sample_size",
    "in_channels",
    "out_channels",
    "block_out_channels",
    "layers_per_block",
    "down_block_types",
    "up_block_types",
    "norm_num_groups",
    "norm_eps",
    "attention_head_dim",
    "downsample_padding",
    "flip_sin_to_cos",
    "freq_shift",
)
_PADDINGS = {"asymmetric": 0, "symmetric": 1}
_CLOCKS = {"sin-cos": (False, 1), "cos-sin": (True, 0)}  # (flip_sin_to_cos, freq_shift)
_TIME_CONDITIONINGS = {"add": "default", "scale-shift": "scale_shift"}
_VARIANCES = {"posterior": "fixed_small", "beta": "fixed_large", "learned": "learned_range"}
_PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


# ---- in and out ------------------------------------------------------------------------------


def from_diffusers(folder: str | Path) -> tuple[UNet, GaussianDiffusion | None]:
    """Read a network that diffusers wrote, and its process where the folder has a scheduler.

    folder holds config.json and the weights, or a subfolder `unet` that does, as a saved pipeline
    has it. The scheduler's settings are looked for beside them. Attention may carry its names of
    today or those of old files. The network comes back in evaluation mode, on the CPU, in
    float32; called with the book's t it equals theirs called with t0 = t − 1.

    Of the scheduler, what defines the process is read; how to sample (clipping, the spacing of
    the steps) is for the caller of `sample` to say: most published pipelines clip to (−1, 1).

    Raises:
        OSError: if a file is not there or cannot be read.
        ValueError: if a file is damaged, or a setting or tensor is missing, unknown or without a
            counterpart here; the sentence names the first.
    """
    folder = Path(folder)
    at = folder / "unet" if (folder / "unet").is_dir() else folder
    path = at / "config.json"
    settings = read_json(path)
    tensors, metadata = _read_weights(at)
    config = _config_from(settings, metadata, path)
    network = UNet(config, torch.Generator())
    _check_names(tensors, network, at / WEIGHTS_NAME)
    network.load_state_dict(
        {name: tensors[_their_name(name)].float() for name in network.state_dict()}
    )
    network.eval()
    for place in (folder / "scheduler", folder):
        scheduler = place / "scheduler_config.json"
        if scheduler.is_file():
            return network, _diffusion_from(read_json(scheduler), config, scheduler)
    return network, None


def to_diffusers(
    network: UNet,
    diffusion: GaussianDiffusion,
    folder: str | Path,
    *,
    clip: tuple[float, float] | None = None,
) -> None:
    """Write a folder that diffusers' own `DDPMPipeline.from_pretrained` loads and samples from.

    clip: where the pipeline is to clip x̂_0, as in `sample`; it must be symmetric. The pipeline
    takes T steps if it is told so: `pipeline(num_inference_steps=T)`.

    A network with classes is written with its null class as the last one. `UNet2DModel` takes
    such a network with `class_labels`; `DDPMPipeline` itself hands no labels on.

    Raises:
        TypeError: if the network is not a `UNet`.
        ValueError: if the network, the process or clip is something that diffusers cannot express.
        OSError: if a file cannot be written.
    """
    if not isinstance(network, UNet):
        raise TypeError(f"only a UNet can be exported, got {type(network).__name__}.")
    folder = Path(folder)
    settings = _settings_of(network.config)
    scheduler = _scheduler_of(diffusion, network.config, clip)
    weights = _their_weights(network)
    make_folder(folder / "unet")
    make_folder(folder / "scheduler")
    metadata = {"format": "pt"}
    if network.config.num_classes is not None:
        metadata = {"format": "pt", "null_class": str(network.config.num_classes)}
    write_atomically(folder / "unet" / WEIGHTS_NAME, save(weights, metadata))
    write_atomically(folder / "unet" / "config.json", to_json(settings))
    write_atomically(folder / "scheduler" / "scheduler_config.json", to_json(scheduler))
    index = {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    write_atomically(folder / "model_index.json", to_json(index))


# ---- weights ---------------------------------------------------------------------------------


def _their_name(name: str) -> str:
    for ours, theirs in _NAMES:
        name = re.sub(ours, theirs, name)
    return name


def _their_weights(network: UNet) -> dict[str, Tensor]:
    weights = {
        _their_name(name): tensor.detach().cpu().contiguous()
        for name, tensor in network.state_dict().items()
    }
    if network.config.t_offset == 0:
        first = "time_embedding.linear_1.weight"
        weights[first] = _one_step_back(weights[first], network.config)
    return weights


def _one_step_back(weight: Tensor, config: UNetConfig) -> Tensor:
    """The weight W' with W'·e(t − 1) = W·e(t) for all t, e being the sinusoidal embedding.

    One step turns hand i by ω_i: sin ω(t0+1) = sin ωt0·cos ω + cos ωt0·sin ω, and likewise the
    cosine. e(1) holds every sin ω_i and cos ω_i.
    """
    at_one = timestep_embedding(torch.tensor([1]), config.base_channels, config.time_embedding)[0]
    first, second = at_one.chunk(2)
    left, right = weight.double().chunk(2, dim=1)
    if config.time_embedding == "sin-cos":
        sin, cos = first, second
        turned = [left * cos - right * sin, left * sin + right * cos]
    else:
        cos, sin = first, second
        turned = [left * cos + right * sin, right * cos - left * sin]
    return torch.cat(turned, dim=1).to(weight.dtype)


def _read_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors under today's names, and the file's metadata."""
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        _explain_missing_weights(folder)
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            for old in file.keys():  # noqa: SIM118
                name = old
                for legacy, today in _LEGACY_NAMES:
                    name = re.sub(legacy, today, name)
                if name in tensors:
                    raise ValueError(f"{path} holds {name!r} twice: once under its old name.")
                tensors[name] = file.get_tensor(old)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file ({error}).") from error
    return tensors, metadata


def _explain_missing_weights(folder: Path) -> None:
    pickles = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".ckpt", ".pt"))
    if pickles:
        raise ValueError(
            f"{folder} holds its weights as a pickle only ({pickles[0]}), and a pickle can run any "
            "code while it is being read. Where you trust it, diffusers converts it: "
            "UNet2DModel.from_pretrained(folder).save_pretrained(folder)."
        )
    others = sorted(p.name for p in folder.glob("*.safetensors*"))
    there = f"; there is {', '.join(others)}" if others else ""
    raise FileNotFoundError(f"{folder} holds no {WEIGHTS_NAME}{there}.")


def _check_names(tensors: Mapping[str, Tensor], network: UNet, path: Path) -> None:
    """Every tensor of the network, in its shape, in numbers with a point; and no other."""
    wanted = {_their_name(name): tensor for name, tensor in network.state_dict().items()}
    for name, tensor in wanted.items():
        if name not in tensors:
            raise ValueError(f"{path} lacks the tensor {name!r}.")
        found = tensors[name]
        if found.shape != tensor.shape:
            raise ValueError(
                f"{path}: {name!r} must have shape {tuple(tensor.shape)}, got {tuple(found.shape)}."
            )
        if not found.is_floating_point():
            raise ValueError(
                f"{path}: {name!r} must hold floating-point numbers, got {found.dtype}."
            )
    for name in tensors:
        if name not in wanted:
            raise ValueError(f"{path} holds a tensor {name!r} that has no place in this network.")


# ---- the network's settings ------------------------------------------------------------------


def _settings_of(config: UNetConfig) -> Settings:
    """config.json for a network of ours; every setting is written, so that no default matters."""
    _refuse_inexpressible(config)
    attention = [level in config.attention_levels for level in range(config.levels)]
    heads_width = None if config.attention_heads == 1 else _head_width(config)
    flip, shift = _CLOCKS[config.time_embedding]
    return {
        "_class_name": "UNet2DModel",
        **_OPTIONAL,
        "sample_size": config.image_size,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": list(config.channels),
        "layers_per_block": config.blocks_per_level,
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attention],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)],
        "attention_head_dim": heads_width,
        "dropout": config.dropout,
        "norm_num_groups": config.norm_groups,
        "attn_norm_num_groups": config.norm_groups,
        "norm_eps": config.norm_eps,
        "resnet_time_scale_shift": _TIME_CONDITIONINGS[config.time_conditioning],
        "downsample_padding": _PADDINGS[config.downsample_padding],
        "flip_sin_to_cos": flip,
        "freq_shift": shift,
        "num_class_embeds": None if config.num_classes is None else config.num_classes + 1,
    }


def _refuse_inexpressible(config: UNetConfig) -> None:
    for name, only in (("block", "wide-residual"), ("width_factor", 1)):
        if getattr(config, name) != only:
            raise ValueError(
                f"diffusers' UNet2DModel has no counterpart of {name} = "
                f"{getattr(config, name)!r}, only of {only!r}."
            )
    if config.channel_multipliers[0] != 1:
        raise ValueError(
            "diffusers' UNet2DModel has no counterpart of channel_multipliers that do not begin "
            f"with 1, got {config.channel_multipliers}."
        )


def _head_width(config: UNetConfig) -> int:
    """They fix the width of a head, we their number: that agrees where all widths are equal."""
    widths = {config.channels[i] for i in config.attention_levels} | {config.channels[-1]}
    if len(widths) > 1:
        raise ValueError(
            f"diffusers' UNet2DModel has no counterpart of {config.attention_heads} "
            f"attention_heads at levels of different widths, here {sorted(widths)}."
        )
    return widths.pop() // config.attention_heads


def _config_from(settings: Settings, metadata: Mapping[str, str], path: Path) -> UNetConfig:
    """Our description of the network that their settings describe."""
    s = _checked(settings, path)
    size, widths = _image_size(s, path), _widths(s, path)
    levels = _attention_levels(s, path)
    fields = {
        "image_size": size,
        "in_channels": s["in_channels"],
        "out_channels": s["out_channels"],
        "base_channels": widths[0],
        "channel_multipliers": tuple(width // widths[0] for width in widths),
        "blocks_per_level": s["layers_per_block"],
        "attention_resolutions": tuple(size // 2**level for level in levels),
        "attention_heads": _heads(s, {widths[i] for i in levels} | {widths[-1]}, path),
        "dropout": s["dropout"],
        "block": "wide-residual",
        "width_factor": 1,
        "time_conditioning": _named(_TIME_CONDITIONINGS, "resnet_time_scale_shift", s, path),
        "num_classes": _classes(s, metadata, path),
        "norm_groups": s["norm_num_groups"],
        "norm_eps": s["norm_eps"],
        "downsample_padding": _named(_PADDINGS, "downsample_padding", s, path),
        "time_embedding": _clock(s, path),
        "t_offset": -1,
        "initialisation": "torch",
    }
    try:
        config = UNetConfig.from_dict(fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} describes a network that is refused here: {error}") from error
    _check_middle(s, path)
    if s["time_embedding_dim"] not in (None, config.time_channels):
        _refuse(path, "time_embedding_dim", s["time_embedding_dim"], [None, config.time_channels])
    return config


def _checked(settings: Settings, path: Path) -> Settings:
    """All settings, known, present, and fixed where they must be; those left out filled in."""
    kind = settings.get("_class_name")
    if kind != "UNet2DModel":
        _refuse(path, "_class_name", kind, ["UNet2DModel"])
    for name in settings:
        if name not in _REQUIRED and name not in _OPTIONAL and not name.startswith("_"):
            raise ValueError(f"{path} has a setting {name!r} that is unknown here.")
    for name in _REQUIRED:
        if name not in settings:
            raise ValueError(f"{path} lacks the setting {name!r}.")
    full = {**_OPTIONAL, **settings}
    for name, allowed in _FIXED.items():
        if full[name] not in allowed:
            _refuse(path, name, full[name], allowed)
    return full


def _refuse(path: Path, name: str, value: object, allowed: Iterable[object]) -> NoReturn:
    listed = " or ".join(map(repr, allowed))
    raise ValueError(f"{path}: {name} = {value!r} has no counterpart here; it must be {listed}.")


def _named(table: Mapping[str, object], name: str, s: Settings, path: Path) -> str:
    """Our word for their value of a setting."""
    for ours, theirs in table.items():
        if s[name] == theirs and type(s[name]) is type(theirs):
            return ours
    _refuse(path, name, s[name], table.values())


def _image_size(s: Settings, path: Path) -> int:
    size = s["sample_size"]
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or sides[0] != sides[1] or not isinstance(sides[0], int):
        raise ValueError(f"{path}: sample_size must be one number of pixels, got {size!r}.")
    return sides[0]


def _widths(s: Settings, path: Path) -> list[int]:
    widths = s["block_out_channels"]
    whole = isinstance(widths, list) and all(isinstance(w, int) and w > 0 for w in widths)
    if not whole or not widths or any(width % widths[0] for width in widths):
        raise ValueError(
            f"{path}: block_out_channels must be multiples of the first, got {widths!r}."
        )
    return widths


def _attention_levels(s: Settings, path: Path) -> list[int]:
    """The levels with attention, which must be the same on the way down and up."""
    down, up = s["down_block_types"], s["up_block_types"]
    for name, kinds in (("down_block_types", down), ("up_block_types", up)):
        plain = name.split("_")[0].capitalize() + "Block2D"
        for kind in kinds:
            if kind not in (plain, f"Attn{plain}"):
                _refuse(path, f"an entry of {name}", kind, [plain, f"Attn{plain}"])
        if len(kinds) != len(s["block_out_channels"]):
            raise ValueError(
                f"{path}: {name} must have one entry for each of block_out_channels, got {kinds}."
            )
    levels = [i for i, kind in enumerate(down) if kind.startswith("Attn")]
    if levels != [i for i, kind in enumerate(reversed(up)) if kind.startswith("Attn")]:
        raise ValueError(
            f"{path}: up_block_types must mirror down_block_types, got {down} and {up}."
        )
    return levels


def _heads(s: Settings, widths: set[int], path: Path) -> int:
    """How many heads there are, at all levels with attention: null says one."""
    width = s["attention_head_dim"]
    if width is None:
        return 1
    counts = {w // width for w in widths if isinstance(width, int) and width > 0 and w % width == 0}
    if len(counts) != 1 or any(w % width for w in widths):
        raise ValueError(
            f"{path}: attention_head_dim = {width!r} must give one whole number of heads at the "
            f"widths with attention, {sorted(widths)}."
        )
    return counts.pop()


def _clock(s: Settings, path: Path) -> str:
    for ours, (flip, shift) in _CLOCKS.items():
        if s["flip_sin_to_cos"] is flip and s["freq_shift"] == shift:
            return ours
    raise ValueError(
        f"{path}: flip_sin_to_cos = {s['flip_sin_to_cos']!r} with freq_shift = "
        f"{s['freq_shift']!r} has no counterpart here; they must be false with 1, or true with 0."
    )


def _check_middle(s: Settings, path: Path) -> None:
    """With scale-shift, null leaves the middle's attention without a normalisation."""
    groups = s["norm_num_groups"]
    allowed = [groups] if s["resnet_time_scale_shift"] == "scale_shift" else [None, groups]
    if s["attn_norm_num_groups"] not in allowed:
        _refuse(path, "attn_norm_num_groups", s["attn_norm_num_groups"], allowed)


def _classes(s: Settings, metadata: Mapping[str, str], path: Path) -> int | None:
    count = s["num_class_embeds"]
    if count is None:
        return None
    if metadata.get("null_class") != str(count - 1):
        raise ValueError(
            f"{path}: num_class_embeds = {count} gives no class the meaning 'no class', which "
            "networks here must have; only those that were exported from here say which one it is."
        )
    return count - 1


# ---- the process -----------------------------------------------------------------------------

_SCHEDULERS = ("DDPMScheduler", "DDIMScheduler")
_SCHEDULE = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end")
# How to sample is not a property of the process; and these change nothing else.
_ONLY_SAMPLING = (
    "clip_sample",
    "clip_sample_range",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "set_alpha_to_one",
    "steps_offset",
    "tensor_format",
    "timestep_spacing",
    "timestep_values",
)


def _scheduler_of(
    diffusion: GaussianDiffusion, config: UNetConfig, clip: tuple[float, float] | None
) -> Settings:
    """scheduler_config.json for a process of ours."""
    if not torch.equal(diffusion.schedule.timesteps, torch.arange(diffusion.T + 1)):
        raise ValueError(
            "a respaced chain cannot be exported: diffusers' DDPMScheduler numbers its steps from "
            "0 without gaps. Export the whole chain, and choose the steps when sampling."
        )
    _check_channels(config, diffusion.variance)
    if clip is not None and not clip[1] == -clip[0] > 0:
        raise ValueError(f"clip must be symmetric, (-r, r), for diffusers, got {clip!r}.")
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": diffusion.T,
        **_betas_of(diffusion.schedule),
        "prediction_type": _PREDICTIONS[diffusion.prediction],
        "variance_type": _VARIANCES[diffusion.variance],
        "clip_sample": clip is not None,
        "clip_sample_range": 1.0 if clip is None else float(clip[1]),
        "thresholding": False,
        "rescale_betas_zero_snr": False,
        # For fewer than T steps. "leading", their default, does not start at T; "trailing" does not
        # end at 1, and then their last step adds noise to the finished image.
        "timestep_spacing": "linspace",
        "steps_offset": 0,
    }


def _betas_of(schedule: NoiseSchedule) -> Settings:
    """By their name where the schedule is linear, to ten digits; else the list of all β."""
    beta = schedule.beta[1:]
    if not bool((beta < 1).all()):
        raise ValueError("a schedule with alpha_bar_T = 0 cannot be exported: its beta_T is 1.")
    first, last = (float(f"{beta[i].item():.10g}") for i in (0, -1))
    linear = NoiseSchedule.linear(schedule.T, first, last)
    named = torch.allclose(linear.beta, schedule.beta, rtol=1e-9, atol=0)
    return {
        "beta_schedule": "linear",
        "beta_start": first,
        "beta_end": last,
        "trained_betas": None if named else beta.tolist(),
    }


def _check_channels(config: UNetConfig, variance: str) -> None:
    wanted = config.in_channels * (2 if variance == "learned" else 1)
    if config.out_channels != wanted:
        raise ValueError(
            f"variance {variance!r} needs a network with {wanted} out_channels, got "
            f"{config.out_channels}."
        )


def _diffusion_from(settings: Settings, config: UNetConfig, path: Path) -> GaussianDiffusion:
    """The process that their scheduler's settings describe."""
    kind = settings.get("_class_name")
    if kind not in _SCHEDULERS:
        _refuse(path, "_class_name", kind, _SCHEDULERS)
    ddpm = kind == "DDPMScheduler"  # the other one takes its variance from η
    for name in _SCHEDULE + (("variance_type",) if ddpm else ()):
        if name not in settings:
            raise ValueError(f"{path} lacks the setting {name!r}.")
    optional: Settings = {
        "trained_betas": None,
        "prediction_type": "epsilon",  # files older than the setting mean this
        "thresholding": False,
        "rescale_betas_zero_snr": False,
    }
    known = (*_SCHEDULE, *_ONLY_SAMPLING, *optional, "variance_type")
    for name in settings:
        if name not in known and not name.startswith("_"):
            raise ValueError(f"{path} has a setting {name!r} that is unknown here.")
    s = {**optional, **settings}
    for name in ("thresholding", "rescale_betas_zero_snr"):
        if s[name] is not False:
            _refuse(path, name, s[name], [False])
    variance = _named(_VARIANCES, "variance_type", s, path) if ddpm else "posterior"
    prediction = _named(_PREDICTIONS, "prediction_type", s, path)
    _check_channels(config, variance)
    return GaussianDiffusion(_schedule_from(s, path), prediction, variance)


def _schedule_from(s: Settings, path: Path) -> NoiseSchedule:
    T, kind, first, last = (s[name] for name in _SCHEDULE)
    betas = s["trained_betas"]
    if betas is not None and len(betas) != T:
        raise ValueError(f"{path}: trained_betas must hold {T} numbers, got {len(betas)}.")
    try:
        if betas is not None:
            return NoiseSchedule.from_betas(betas)
        if kind == "linear":
            return NoiseSchedule.linear(T, first, last)
        if kind == "squaredcos_cap_v2":
            return NoiseSchedule.cosine(T)
        if kind == "scaled_linear":
            roots = torch.linspace(first**0.5, last**0.5, T, dtype=torch.float64)
            return NoiseSchedule.from_betas(roots**2)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} describes a schedule that is refused here: {error}") from error
    _refuse(path, "beta_schedule", kind, ["linear", "squaredcos_cap_v2", "scaled_linear"])

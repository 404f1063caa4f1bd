"""The U-Net: a network that looks at a noisy image at several resolutions at once.

Read `UNet.forward` first: down, and push; the middle; up, and pop. Everything else in this file is
a part of it: two kinds of residual block, attention, the clock that tells the network how noisy
its input is, and the way from one resolution to the next.

A U-Net is a denoiser in the sense of the book: called with (x_t, t) or (x_t, t, y), where t counts
1..T as on paper. It does not know what its output means (ε, x_0 or v): `GaussianDiffusion` does.

Networks are described by a `UNetConfig`, in which nothing has a default, because nearly
everything in it changes the function that is computed while the shapes of the weights stay the
same. `PRESETS` holds configurations by name; `dataclasses.replace` varies one.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

BLOCKS = ("wide-residual", "convnext")
TIME_CONDITIONINGS = ("add", "scale-shift")
DOWNSAMPLE_PADDINGS = ("asymmetric", "symmetric")
TIME_EMBEDDINGS = ("sin-cos", "cos-sin")
INITIALISATIONS = ("ddpm", "torch")

# The last layer of every residual branch, and of the network: "ddpm" starts them almost at zero.
NEAR_ZERO = ("conv2", "project", "conv_out")


# ---- the description -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Everything that a U-Net is built from; every field must be given.

    image_size: pixels along a side; images are square, (B, in_channels, image_size, image_size).
    in_channels, out_channels: out is in, or twice that where the network learns a variance too.
    base_channels: the width C at full resolution.
    channel_multipliers: one for each level; level i works at image_size / 2^i, C·multiplier wide.
    blocks_per_level: residual blocks in each level on the way down; one more on the way up.
    attention_resolutions: the resolutions, in pixels, at which each block is followed by
        attention. The middle has attention always.
    attention_heads: how many heads, everywhere; must divide the channels there.
    dropout: probability of dropping an activation inside each block while training.
    block: "wide-residual" or "convnext".
    width_factor: the inner width of a block over its outer width: 1 is DDPM's block, more is a
        wide residual block; 4 is usual for ConvNeXt.
    time_conditioning: "add" shifts the channels by the time embedding; "scale-shift" scales and
        shifts them after the second normalisation.
    num_classes: None, or K for classes 0..K−1 and the null class K.
    norm_groups, norm_eps: of every GroupNorm. The ε lies inside the root, as PyTorch's does.
    downsample_padding: where the zeros of a stride-2 convolution go: "asymmetric" (right and
        bottom, one each: DDPM's) or "symmetric" (one on every side).
    time_embedding: "sin-cos" (DDPM's) or "cos-sin" (OpenAI's), see `timestep_embedding`.
    t_offset: what is added to the book's t before the network sees it: 0, or −1 for networks
        trained by code that counts steps from 0.
    initialisation: "ddpm" or "torch", see `initialise`.
    """

    image_size: int
    in_channels: int
    out_channels: int
    base_channels: int
    channel_multipliers: tuple[int, ...]
    blocks_per_level: int
    attention_resolutions: tuple[int, ...]
    attention_heads: int
    dropout: float
    block: str
    width_factor: float
    time_conditioning: str
    num_classes: int | None
    norm_groups: int
    norm_eps: float
    downsample_padding: str
    time_embedding: str
    t_offset: int
    initialisation: str

    def __post_init__(self) -> None:
        for name in ("channel_multipliers", "attention_resolutions"):
            value = getattr(self, name)
            if not isinstance(value, tuple):
                raise TypeError(f"{name} must be a tuple of ints, got {value!r}.")
            for number in value:
                _check_count(f"every entry of {name}", number)
        for name in _COUNTS:
            _check_count(name, getattr(self, name))
        if self.num_classes is not None:
            _check_count("num_classes, unless it is None,", self.num_classes)
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                listed = ", ".join(map(repr, allowed))
                raise ValueError(f"{name} must be one of {listed}, got {getattr(self, name)!r}.")
        for name in ("norm_eps", "width_factor"):
            if not 0 < _number(name, getattr(self, name)) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}.")
        if not 0 <= _number("dropout", self.dropout) < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout!r}.")
        self._check_fit()

    def _check_fit(self) -> None:
        """What the fields demand of one another."""
        if not self.channel_multipliers:
            raise ValueError("channel_multipliers must hold one number for each level, got none.")
        halvings = self.levels - 1
        if self.image_size % 2**halvings:
            raise ValueError(
                f"{self.levels} levels halve the image {halvings} times, so image_size must be a "
                f"multiple of {2**halvings}, got {self.image_size}."
            )
        if self.base_channels % self.norm_groups or self.base_channels < 4:
            raise ValueError(
                f"base_channels must be at least 4 and a multiple of norm_groups = "
                f"{self.norm_groups}, got {self.base_channels}."
            )
        if self.base_channels % 2:
            raise ValueError(
                f"base_channels must be even, for as many sines as cosines, got "
                f"{self.base_channels}."
            )
        for resolution in self.attention_resolutions:
            if resolution not in self.resolutions:
                raise ValueError(
                    f"attention_resolutions must be among the levels' {self.resolutions}, got "
                    f"{resolution}."
                )
        for channels in {self.channels[i] for i in self.attention_levels} | {self.channels[-1]}:
            if channels % self.attention_heads:
                raise ValueError(
                    f"attention_heads must divide the {channels} channels, got "
                    f"{self.attention_heads}."
                )
        for channels in {self.base_channels, *self.channels}:
            inner_width(channels, self.width_factor, self.norm_groups)

    @property
    def levels(self) -> int:
        """How many resolutions there are."""
        return len(self.channel_multipliers)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """The side of the image in each level, in pixels, the full one first."""
        return tuple(self.image_size // 2**i for i in range(self.levels))

    @property
    def channels(self) -> tuple[int, ...]:
        """The width of each level."""
        return tuple(self.base_channels * m for m in self.channel_multipliers)

    @property
    def attention_levels(self) -> tuple[int, ...]:
        """The levels whose blocks are followed by attention."""
        return tuple(
            i for i, side in enumerate(self.resolutions) if side in self.attention_resolutions
        )

    @property
    def time_channels(self) -> int:
        """The width of the time embedding, four times that of the network."""
        return 4 * self.base_channels

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, in a form that JSON keeps: tuples become lists."""
        fields = dataclasses.asdict(self)
        return {name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> UNetConfig:
        """The inverse of `to_dict`.

        Raises:
            ValueError: if a field is unknown or missing, naming it, or has no meaning.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                raise ValueError(f"a U-Net's configuration has no field {name!r}.")
        for name in known:
            if name not in fields:
                raise ValueError(f"the U-Net's configuration lacks the field {name!r}.")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in fields.items()
        }
        return cls(**values)


_COUNTS = (
    "image_size",
    "in_channels",
    "out_channels",
    "base_channels",
    "blocks_per_level",
    "attention_heads",
    "norm_groups",
)
_CHOICES: dict[str, tuple[object, ...]] = {
    "block": BLOCKS,
    "time_conditioning": TIME_CONDITIONINGS,
    "downsample_padding": DOWNSAMPLE_PADDINGS,
    "time_embedding": TIME_EMBEDDINGS,
    "t_offset": (0, -1),
    "initialisation": INITIALISATIONS,
}


# ---- the clock -------------------------------------------------------------------------------


def timestep_embedding(t: Tensor, dim: int, kind: str) -> Tensor:
    """A clock with dim/2 hands: (sin ω_i t)_i and (cos ω_i t)_i, ω_i = 10000^(−i/n).

    "sin-cos": the sines first, n = dim/2 − 1, so that the slowest hand has ω = 1/10000 (DDPM's).
    "cos-sin": the cosines first, n = dim/2 (OpenAI's).

    Book: (6.23).
    Paper: DDPM section 4.

    Args:
        t: (B,), int64, or any dtype that float64 holds.
        dim: even, at least 4.
    Returns:
        float64 (B, dim); the angles reach T, where float32 would be off by 5e-5.
    Raises:
        ValueError: if dim is odd or less than 4, or the kind is unknown.
    """
    if dim % 2 or dim < 4:
        raise ValueError(f"dim must be even and at least 4, got {dim}.")
    if kind not in TIME_EMBEDDINGS:
        raise ValueError(f"kind must be one of {', '.join(TIME_EMBEDDINGS)}, got {kind!r}.")
    half = dim // 2
    hand = torch.arange(half, dtype=torch.float64, device=t.device)
    last = half - 1 if kind == "sin-cos" else half
    angle = t[:, None] * torch.exp(-math.log(10000) / last * hand)
    sin, cos = angle.sin(), angle.cos()
    return torch.cat([sin, cos] if kind == "sin-cos" else [cos, sin], dim=1)


class TimeEmbedding(nn.Module):
    """What every block is told: the step and, where there are classes, the class.

    The sinusoid goes through a small MLP; a learned vector for the class is added. The SiLU at
    the end belongs to the blocks, each of which begins with it: here it is done once for all.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.dim, self.kind, self.offset = (
            config.base_channels,
            config.time_embedding,
            config.t_offset,
        )
        self.linear1 = nn.Linear(config.base_channels, config.time_channels)
        self.linear2 = nn.Linear(config.time_channels, config.time_channels)
        self.classes = (
            None
            if config.num_classes is None
            else nn.Embedding(config.num_classes + 1, config.time_channels)
        )

    def forward(self, t: Tensor, y: Tensor | None) -> Tensor:
        """t: int64 (B,), the book's 1..T. y: int64 (B,), or None without classes."""
        clock = timestep_embedding(t + self.offset, self.dim, self.kind)
        embedding = self.linear2(F.silu(self.linear1(clock.to(self.linear1.weight.dtype))))
        if self.classes is not None:
            embedding = embedding + self.classes(y)
        return F.silu(embedding)


# ---- blocks ----------------------------------------------------------------------------------


class WideResidualBlock(nn.Module):
    """x + f(x, time): GroupNorm, SiLU, 3×3; time; GroupNorm, SiLU, dropout, 3×3.

    Between the two convolutions the block is width_factor times as wide as its output. With 1 it
    is DDPM's block. Where the numbers of channels differ, the shortcut is a 1×1 convolution.

    Book: (6.28), (6.29).

    Dropout draws from PyTorch's global generator of the device: it is the one source of
    randomness in this library that is not an argument.

    Source: He et al. (2016) for the order norm, activation, convolution; Zagoruyko and Komodakis
        (2016) for the width and the dropout between; Ho et al. (2020) for the time.
    """

    def __init__(
        self, in_channels: int, out_channels: int, resolution: int, config: UNetConfig
    ) -> None:
        """resolution is not needed here; the blocks of `BLOCKS` are built alike."""
        super().__init__()
        groups, eps = config.norm_groups, config.norm_eps
        inner = inner_width(out_channels, config.width_factor, groups)
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, inner, 3, padding=1)
        self.time = _time_projection(inner, config)
        self.norm2 = nn.GroupNorm(groups, inner, eps)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(inner, out_channels, 3, padding=1)
        self.shortcut = _shortcut(in_channels, out_channels)
        self.scale_shift = config.time_conditioning == "scale-shift"

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x: (B, in, H, W). time: (B, time_channels), from `TimeEmbedding`. To (B, out, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = _normalise_with_time(h, self.time(time), self.norm2, self.scale_shift)
        h = self.conv2(self.dropout(F.silu(h)))
        h += self.shortcut(x)
        return h


class ConvNeXtBlock(nn.Module):
    """x + f(x, time): depthwise k×k; time; GroupNorm; 1×1 to width_factor times as wide, GELU, 1×1.

    The depthwise convolution looks far, one channel at a time; the 1×1 convolutions mix channels.
    k is 7, or 2r − 1 on maps of r×r with r < 4: a wider kernel's outer taps would see nothing
    but the padding. The original normalises over the channels of each pixel; GroupNorm, as in the
    other block, lets the two be compared with nothing else changed.

    Book: (6.31).

    Source: Liu et al. (2022); the time is added where the depthwise convolution ends.
    """

    def __init__(
        self, in_channels: int, out_channels: int, resolution: int, config: UNetConfig
    ) -> None:
        super().__init__()
        inner = inner_width(out_channels, config.width_factor, config.norm_groups)
        kernel = min(7, 2 * resolution - 1)
        self.depthwise = nn.Conv2d(
            in_channels, in_channels, kernel, padding=kernel // 2, groups=in_channels
        )
        self.time = _time_projection(in_channels, config)
        self.norm = nn.GroupNorm(config.norm_groups, in_channels, config.norm_eps)
        self.expand = nn.Conv2d(in_channels, inner, 1)
        self.dropout = nn.Dropout(config.dropout)
        self.project = nn.Conv2d(inner, out_channels, 1)
        self.shortcut = _shortcut(in_channels, out_channels)
        self.scale_shift = config.time_conditioning == "scale-shift"

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x: (B, in, H, W). time: (B, time_channels), from `TimeEmbedding`. To (B, out, H, W)."""
        h = self.depthwise(x)
        h = _normalise_with_time(h, self.time(time), self.norm, self.scale_shift)
        h = self.project(self.dropout(F.gelu(self.expand(h))))
        h += self.shortcut(x)
        return h


class SelfAttention(nn.Module):
    """x + f(x): every pixel looks at every pixel, weighted by softmax(q·k/√(channels per head)).

    The cost grows with the fourth power of the image's side, so it is used where the image is
    small.

    Book: (6.32), (6.35).
    Paper: DDPM appendix B.

    Source: Vaswani et al. (2017).
    """

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.heads = config.attention_heads
        self.norm = nn.GroupNorm(config.norm_groups, channels, config.norm_eps)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.project = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W), to the same shape."""
        # (B, HW, C); copied once into that order instead of once for each of the three products
        pixels = self.norm(x).flatten(2).transpose(1, 2).contiguous()
        q, k, v = (self._split(m(pixels)) for m in (self.query, self.key, self.value))
        seen = F.scaled_dot_product_attention(q, k, v)  # (B, heads, HW, C/heads)
        h = self.project(seen.transpose(1, 2).flatten(2))
        return x + h.transpose(1, 2).reshape(x.shape)

    def _split(self, pixels: Tensor) -> Tensor:
        """(B, HW, C) to (B, heads, HW, C/heads)."""
        return pixels.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Downsample(nn.Module):
    """Half the resolution: a 3×3 convolution with stride 2.

    Book: (6.11).
    """

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        # (left, right, top, bottom). Asymmetric: what TensorFlow calls "SAME" on an even size
        self.padding = (0, 1, 0, 1) if config.downsample_padding == "asymmetric" else (1, 1, 1, 1)
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H/2, W/2)."""
        return self.conv(F.pad(x, self.padding))


class Upsample(nn.Module):
    """Twice the resolution: every pixel four times, then a 3×3 convolution.

    After the first step a window of 3×3 pixels holds only 2×2 different ones, so the two steps
    are one transposed convolution, whose kernel of 4×4 is the 3×3 one smeared by a 2×2 box. That
    takes 16 products for each pixel that comes in instead of 36, and no image in between.
    """

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 2H, 2W)."""
        kernel = self.conv.weight.flip(2, 3).transpose(0, 1)  # a transposed one is turned round
        smeared = F.avg_pool2d(kernel, 2, stride=1, padding=1, divisor_override=1)  # sums of 2×2
        return F.conv_transpose2d(x, smeared, self.conv.bias, stride=2, padding=1)


def inner_width(channels: int, width_factor: float, groups: int) -> int:
    """The channels inside a block whose output has `channels`.

    Raises:
        ValueError: if that is not a whole number, or GroupNorm cannot divide it.
    """
    inner = round(channels * width_factor)
    if abs(inner - channels * width_factor) > 1e-9 or inner % groups:
        raise ValueError(
            f"width_factor times {channels} channels must be a multiple of norm_groups = {groups}, "
            f"got {width_factor!r} times {channels} = {channels * width_factor:g}."
        )
    return inner


def _time_projection(channels: int, config: UNetConfig) -> nn.Linear:
    """From the time embedding to a shift, or to a scale and a shift, for each channel."""
    twice = 2 if config.time_conditioning == "scale-shift" else 1
    return nn.Linear(config.time_channels, twice * channels)


def _normalise_with_time(h: Tensor, time: Tensor, norm: nn.Module, scale_shift: bool) -> Tensor:
    """norm(h + time), or norm(h)·(1 + scale) + shift; time: (B, C) or (B, 2C), one per channel.

    Book: (6.26), (6.27).
    """
    time = time[:, :, None, None]
    if not scale_shift:
        return norm(h + time)
    scale, shift = time.chunk(2, dim=1)
    return norm(h) * (1 + scale) + shift


def _shortcut(in_channels: int, out_channels: int) -> nn.Module:
    if in_channels == out_channels:
        return nn.Identity()
    return nn.Conv2d(in_channels, out_channels, 1)


# ---- the network -----------------------------------------------------------------------------


class Level(nn.Module):
    """One resolution, on the way down or up: its blocks, and the way to the next level."""

    def __init__(
        self, channels: list[tuple[int, int]], level: int, resample: nn.Module, config: UNetConfig
    ) -> None:
        """channels: (in, out) of each block. resample: Identity where there is no next level."""
        super().__init__()
        side = config.resolutions[level]
        attends = level in config.attention_levels
        self.blocks = nn.ModuleList(_block(i, o, side, config) for i, o in channels)
        self.attentions = nn.ModuleList(
            SelfAttention(o, config) if attends else nn.Identity() for _, o in channels
        )
        self.resample = resample

    def steps(self) -> list[tuple[nn.Module, nn.Module]]:
        """(block, attention) pairs in their order; attention is an Identity where there is none."""
        return list(zip(self.blocks, self.attentions, strict=True))


class UNet(nn.Module):
    """A denoiser for images: (x_t, t) or (x_t, t, y) to an image of out_channels.

    Book: (6.12), (6.13).
    Paper: DDPM section 4 and appendix B.
    Source: Ronneberger et al. (2015) for the shape; Ho et al. (2020) for what fills it.
    """

    def __init__(self, config: UNetConfig, generator: torch.Generator) -> None:
        """Build the network on the generator's device, with weights drawn from it."""
        super().__init__()
        self.config = config
        with torch.device("meta"):  # no memory and, above all, no draws from the global generator
            self._build()
        self.to_empty(device=generator.device)
        initialise(self, config.initialisation, generator)

    def _build(self) -> None:
        config, widths, last = self.config, self.config.channels, self.config.levels - 1
        self.time_embedding = TimeEmbedding(config)
        width = config.base_channels
        self.conv_in = nn.Conv2d(config.in_channels, width, 3, padding=1)

        pushed, down = [width], []  # the widths of what `forward` pushes
        for i in range(config.levels):
            pairs = [(width, widths[i])] + [(widths[i], widths[i])] * (config.blocks_per_level - 1)
            width = widths[i]
            pushed += [width] * config.blocks_per_level
            if i < last:
                pushed.append(width)
            down.append(Level(pairs, i, Downsample(width, config) if i < last else _no(), config))
        self.down = _modules(down)

        self.middle1 = _block(width, width, config.resolutions[-1], config)
        self.middle_attention = SelfAttention(width, config)
        self.middle2 = _block(width, width, config.resolutions[-1], config)

        up = []
        for i in reversed(range(config.levels)):
            pairs = []
            for _ in range(config.blocks_per_level + 1):
                pairs.append((width + pushed.pop(), widths[i]))
                width = widths[i]
            up.append(Level(pairs, i, Upsample(width, config) if i > 0 else _no(), config))
        self.up = _modules(up)

        self.norm_out = nn.GroupNorm(config.norm_groups, width, config.norm_eps)
        self.conv_out = nn.Conv2d(width, config.out_channels, 3, padding=1)

    def forward(self, x: Tensor, t: int | Tensor, y: Tensor | None = None) -> Tensor:
        """The denoiser's output at (x_t, t) or (x_t, t, y).

        Args:
            x: (B, in_channels, image_size, image_size).
            t: the book's step, an int or int64 (B,), at least 1.
            y: int64 (B,) in 0..num_classes; num_classes, the null class, says "no class given",
                and so does None for all.
        Returns:
            (B, out_channels, image_size, image_size).
        Raises:
            ValueError: if a shape, a step or a class is not as above.
        """
        time = self.time_embedding(*self._check(x, t, y))

        h = self.conv_in(x)
        skips = [h]
        for level in self.down:
            for block, attention in level.steps():
                h = attention(block(h, time))
                skips.append(h)
            if level is not self.down[-1]:
                h = level.resample(h)
                skips.append(h)

        h = self.middle2(self.middle_attention(self.middle1(h, time)), time)

        for level in self.up:
            for block, attention in level.steps():
                h = torch.cat([h, skips.pop()], dim=1)
                h = attention(block(h, time))
            h = level.resample(h)

        return self.conv_out(F.silu(self.norm_out(h)))

    def _check(self, x: Tensor, t: int | Tensor, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """t and y as int64 tensors, after checking them and the shape of x."""
        config = self.config
        channels, side = config.in_channels, config.image_size
        if x.ndim != 4 or tuple(x.shape[1:]) != (channels, side, side):
            raise ValueError(
                f"x must have shape (B, {channels}, {side}, {side}), got {tuple(x.shape)}."
            )
        t = _check_index("t", t, x, 1, None)
        if config.num_classes is None:
            if y is not None:
                raise ValueError("this network knows no classes; leave y out.")
            return t, None
        y = torch.full_like(t, config.num_classes) if y is None else y
        return t, _check_index("y", y, x, 0, config.num_classes)


def _block(in_channels: int, out_channels: int, side: int, config: UNetConfig) -> nn.Module:
    kind = WideResidualBlock if config.block == "wide-residual" else ConvNeXtBlock
    return kind(in_channels, out_channels, side, config)


def _modules(levels: list[Level]) -> list[Level]:
    """A ModuleList of them, called what it is for a type checker: a sequence of levels."""
    return cast("list[Level]", nn.ModuleList(levels))


def _no() -> nn.Module:
    """No next level: nothing to do on the way there."""
    return nn.Identity()


def count_parameters(module: nn.Module) -> int:
    """How many numbers the module learns.

    Book: (6.7), (6.37).
    """
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def count_flops(network: nn.Module, *inputs: Any) -> int:
    """Floating-point operations of network(*inputs), forward only, as PyTorch counts them.

    Two for each multiplication with its addition, in convolutions and matrix products; the rest
    (normalisation, activation, softmax, additions) is not counted. Attention is computed with its
    products written out meanwhile, because PyTorch does not count in its fused form on the CPU.

    Book: (6.8), (6.35).
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(*inputs)
    return counter.get_total_flops()


# ---- the first weights -----------------------------------------------------------------------


@torch.no_grad()
def initialise(module: nn.Module, initialisation: str, generator: torch.Generator) -> None:
    """Draw every weight of the module, in place, from the generator.

    "ddpm": uniform with variance 2/(fan_in + fan_out), biases 0; and the last layer of each
        residual branch and of the network (`NEAR_ZERO`) with 1e-10 of that variance, so that at
        first every block hands on its input and the network answers about 0.
    "torch": what PyTorch's layers do by themselves: weights and biases uniform with variance
        1/(3·fan_in), the last layers like all others.

    Normalisations begin as the identity, classes as N(0, I), in both.

    Source: `models/unet.py` and `nn.py` of the original code of DDPM.
    Raises:
        ValueError: if the kind is unknown, or a layer is of a kind that has no rule here.
    """
    if initialisation not in INITIALISATIONS:
        allowed = ", ".join(map(repr, INITIALISATIONS))
        raise ValueError(f"initialisation must be one of {allowed}, got {initialisation!r}.")
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            gain = 1e-5 if name.rpartition(".")[2] in NEAR_ZERO else 1.0
            _initialise_weights(layer, initialisation, gain, generator)
        elif isinstance(layer, nn.GroupNorm):
            layer.reset_parameters()
        elif isinstance(layer, nn.Embedding):
            layer.weight.normal_(generator=generator)
        elif next(layer.parameters(recurse=False), None) is not None:
            raise ValueError(f"there is no rule for the first weights of {type(layer).__name__}.")


def _initialise_weights(
    layer: nn.Conv2d | nn.Linear, initialisation: str, gain: float, generator: torch.Generator
) -> None:
    """One convolution or linear layer. A depthwise convolution counts its own channel only."""
    fan_in = layer.weight[0].numel()
    fan_out = layer.weight.numel() // layer.weight.shape[1]
    if isinstance(layer, nn.Conv2d):
        fan_out //= layer.groups
    assert layer.bias is not None
    if initialisation == "ddpm":
        bound = gain * math.sqrt(6 / (fan_in + fan_out))  # a variance of 2/(fan_in + fan_out)
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.zero_()
    else:
        bound = 1 / math.sqrt(fan_in)
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)


# ---- checks ----------------------------------------------------------------------------------


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}.")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}.")


def _number(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}.")
    return value


def _check_index(name: str, value: int | Tensor, x: Tensor, low: int, high: int | None) -> Tensor:
    """An int or an int64 tensor (B,), as an int64 tensor (B,) beside x.

    A range is checked where that costs nothing: not on a GPU, which would have to be waited for,
    and not inside `torch.compile`, where the look would cut the compiled graph in two.
    """
    if isinstance(value, bool) or not isinstance(value, int | Tensor):
        raise TypeError(f"{name} must be an int or an int64 tensor, got {value!r}.")
    if isinstance(value, int):
        value = torch.full((len(x),), value)
    if value.dtype != torch.int64 or tuple(value.shape) != (len(x),):
        raise ValueError(
            f"{name} must be an int or an int64 tensor of shape ({len(x)},), got {value.dtype} of "
            f"shape {tuple(value.shape)}."
        )
    if value.device.type == "cpu" and not torch.compiler.is_compiling():
        outside = value < low if high is None else (value < low) | (value > high)
        if outside.any():
            wanted = f"at least {low}" if high is None else f"in {low}..{high}"
            raise ValueError(f"{name} must be {wanted}, got {int(value[outside][0])}.")
    return value.to(x.device)


# ---- configurations by name ------------------------------------------------------------------

_DDPM_CIFAR10 = UNetConfig(
    image_size=32,
    in_channels=3,
    out_channels=3,
    base_channels=128,
    channel_multipliers=(1, 2, 2, 2),
    blocks_per_level=2,
    attention_resolutions=(16,),
    attention_heads=1,
    dropout=0.1,
    block="wide-residual",
    width_factor=1,
    time_conditioning="add",
    num_classes=None,
    norm_groups=32,
    norm_eps=1e-6,
    downsample_padding="asymmetric",
    time_embedding="sin-cos",
    t_offset=-1,
    initialisation="ddpm",
)

# 8×8 digits: levels of 8×8, 4×4 and 2×2 pixels, small enough to train in a minute or two on a CPU.
_DIGITS = dataclasses.replace(
    _DDPM_CIFAR10,
    image_size=8,
    in_channels=1,
    out_channels=1,
    base_channels=32,
    channel_multipliers=(1, 1, 1),
    blocks_per_level=1,
    attention_resolutions=(4,),
    dropout=0.0,
    norm_groups=8,
    t_offset=0,
)

# 28×28 in grey: levels of 28×28, 14×14 and 7×7 pixels.
_MNIST = dataclasses.replace(
    _DIGITS, image_size=28, channel_multipliers=(1, 2, 2), attention_resolutions=(7,)
)

# 32×32 in grey: levels of 32×32, 16×16 and 8×8 pixels, wide enough to keep a GPU busy for minutes.
_GLYPHS = dataclasses.replace(_MNIST, image_size=32, base_channels=64, attention_resolutions=(8,))

# 32×32 in colour, for trying things: a twentieth of the original network.
_CIFAR10_SMALL = dataclasses.replace(
    _DIGITS,
    image_size=32,
    in_channels=3,
    out_channels=3,
    channel_multipliers=(1, 2, 2, 2),
    attention_resolutions=(16,),
)

PRESETS: dict[str, UNetConfig] = {
    "digits": _DIGITS,
    "mnist": _MNIST,
    "glyphs": _GLYPHS,
    "cifar10-small": _CIFAR10_SMALL,
    "ddpm-cifar10": _DDPM_CIFAR10,
}

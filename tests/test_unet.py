"""The U-Net: every part against its formula, the whole against its promises."""

import copy
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ddpm_lite.unet import (
    PRESETS,
    ConvNeXtBlock,
    Downsample,
    SelfAttention,
    TimeEmbedding,
    UNet,
    UNetConfig,
    Upsample,
    WideResidualBlock,
    count_flops,
    count_parameters,
    initialise,
    timestep_embedding,
)

DIGITS = PRESETS["digits"]
SMALL = dataclasses.replace(DIGITS, base_channels=8, norm_groups=4, initialisation="torch")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=1, dtype=torch.float64):
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def config(**changes):
    return dataclasses.replace(SMALL, **changes)


def network(seed=0, **changes):
    """A small U-Net in float64 whose weights are all far from zero."""
    return UNet(config(**changes), seeded(seed)).double().eval()


def part(kind, *arguments, seed=0):
    """One part of a U-Net, with PyTorch's usual weights, in float64."""
    module = kind(*arguments).double()
    initialise(module, "torch", seeded(seed))
    for layer in module.modules():
        if isinstance(layer, nn.GroupNorm):  # not the identity, so that a lost weight shows
            layer.weight.data.uniform_(0.5, 1.5, generator=seeded(seed))
            layer.bias.data.uniform_(-0.5, 0.5, generator=seeded(seed + 1))
    return module.eval()


def close(left, right, atol=1e-12):
    left, right = (v.detach() if isinstance(v, torch.Tensor) else v for v in (left, right))
    np.testing.assert_allclose(left, right, rtol=0, atol=atol)


# ---- the description -------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_a_description_survives_json(name):
    stored = json.loads(json.dumps(PRESETS[name].to_dict()))
    assert UNetConfig.from_dict(stored) == PRESETS[name]


def test_every_field_must_be_given():
    for field in dataclasses.fields(UNetConfig):
        fields = DIGITS.to_dict()
        del fields[field.name]
        with pytest.raises(ValueError, match=f"lacks the field '{field.name}'"):
            UNetConfig.from_dict(fields)
        with pytest.raises(TypeError, match=field.name):
            UNetConfig(**fields)


def test_an_unknown_field_is_named():
    with pytest.raises(ValueError, match="no field 'kernel_size'"):
        UNetConfig.from_dict({**DIGITS.to_dict(), "kernel_size": 3})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"image_size": 10}, ValueError, "image_size must be a multiple of 4, got 10"),
        ({"image_size": 0}, ValueError, "image_size must be at least 1, got 0"),
        ({"in_channels": 1.0}, TypeError, "in_channels must be an int, got 1.0"),
        ({"blocks_per_level": True}, TypeError, "blocks_per_level must be an int, got True"),
        ({"base_channels": 12}, ValueError, "multiple of norm_groups = 8, got 12"),
        ({"base_channels": 33, "norm_groups": 1}, ValueError, "must be even"),
        ({"base_channels": 2, "norm_groups": 1}, ValueError, "at least 4"),
        ({"channel_multipliers": ()}, ValueError, "one number for each level, got none"),
        ({"channel_multipliers": [1, 1, 1]}, TypeError, "must be a tuple of ints"),
        ({"channel_multipliers": (1, 0)}, ValueError, "entry of channel_multipliers"),
        ({"attention_resolutions": (3,)}, ValueError, r"among the levels' \(8, 4, 2\), got 3"),
        ({"attention_heads": 5}, ValueError, "attention_heads must divide the 32 channels, got 5"),
        ({"dropout": 1.0}, ValueError, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"dropout": float("nan")}, ValueError, r"dropout must lie in \[0, 1\), got nan"),
        ({"dropout": "0.1"}, TypeError, "dropout must be a number, got '0.1'"),
        ({"norm_eps": 0}, ValueError, "norm_eps must be positive, got 0"),
        ({"norm_eps": float("inf")}, ValueError, "norm_eps must be positive, got inf"),
        ({"width_factor": -1}, ValueError, "width_factor must be positive, got -1"),
        ({"width_factor": 1.1}, ValueError, "got 1.1 times 32 = 35.2"),
        ({"width_factor": 0.125}, ValueError, "multiple of norm_groups = 8, got 0.125"),
        ({"num_classes": 0}, ValueError, "num_classes, unless it is None, must be at least 1"),
        ({"block": "resnet"}, ValueError, "block must be one of 'wide-residual', 'convnext'"),
        ({"time_conditioning": "film"}, ValueError, "time_conditioning must be one of"),
        ({"downsample_padding": "same"}, ValueError, "downsample_padding must be one of"),
        ({"time_embedding": "learned"}, ValueError, "time_embedding must be one of"),
        ({"t_offset": 1}, ValueError, "t_offset must be one of 0, -1, got 1"),
        ({"initialisation": "zero"}, ValueError, "initialisation must be one of 'ddpm', 'torch'"),
    ],
)
def test_a_description_without_meaning_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        dataclasses.replace(DIGITS, **changes)


def test_heads_are_checked_in_the_middle_too():
    with pytest.raises(ValueError, match="must divide the 24 channels, got 16"):
        config(channel_multipliers=(2, 3), attention_resolutions=(8,), attention_heads=16)


# ---- the original network --------------------------------------------------------------------


def test_the_original_network_has_its_published_size():
    original = UNet(PRESETS["ddpm-cifar10"], seeded())
    assert count_parameters(original) == 35_746_307
    assert len(original.state_dict()) == 328
    # the zeroed last layers: the untrained network answers about 0
    with torch.no_grad():
        assert original.eval()(normal(1, 3, 32, 32).float(), 1000).abs().max() < 1e-3


def test_the_original_network_spends_its_parameters_as_published():
    """Counted again from the paper's description, without the code."""

    def conv(i, o, k=3):
        return k * k * i * o + o

    def block(i, o):
        shortcut = conv(i, o, 1) if i != o else 0
        return 2 * i + conv(i, o) + conv(512, o, 1) + 2 * o + conv(o, o) + shortcut

    def attention(c):
        return 2 * c + 4 * conv(c, c, 1)

    time = conv(128, 512, 1) + conv(512, 512, 1)
    down = conv(3, 128) + 2 * block(128, 128) + conv(128, 128)
    down += block(128, 256) + block(256, 256) + 2 * attention(256) + conv(256, 256)
    down += 2 * block(256, 256) + conv(256, 256) + 2 * block(256, 256)
    middle = 2 * block(256, 256) + attention(256)
    up = 3 * block(512, 256) + conv(256, 256) + 3 * block(512, 256) + conv(256, 256)
    up += 2 * block(512, 256) + block(384, 256) + 3 * attention(256) + conv(256, 256)
    up += block(384, 128) + 2 * block(256, 128)
    assert time + down + middle + up + 2 * 128 + conv(128, 3) == 35_746_307


@pytest.mark.parametrize(
    ("name", "most"),
    [("digits", 450_000), ("cifar10-small", 1_600_000), ("glyphs", 4_500_000)],
)
def test_the_small_presets_are_small(name, most):
    assert 0.8 * most < count_parameters(UNet(PRESETS[name], seeded())) <= most


# ---- the clock -------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "last"), [("sin-cos", 7), ("cos-sin", 8)])
def test_the_hands_of_the_clock(kind, last):
    t = torch.tensor([0, 1, 17, 1000])
    embedding = timestep_embedding(t, 16, kind)
    assert embedding.dtype == torch.float64
    for row, step in zip(embedding, t.tolist(), strict=True):
        for i in range(8):
            angle = step * 10000 ** (-i / last)
            sin, cos = (row[i], row[8 + i]) if kind == "sin-cos" else (row[8 + i], row[i])
            close(sin, math.sin(angle))
            close(cos, math.cos(angle))


def test_ddpms_slowest_hand_turns_once_in_62832_steps():
    hand = timestep_embedding(torch.tensor([1]), 128, "sin-cos")[0]
    close(hand[0], math.sin(1.0))
    close(hand[63], math.sin(1e-4))


def test_no_two_steps_look_alike():
    embedding = timestep_embedding(torch.arange(1001), 32, "sin-cos")
    distance = torch.cdist(embedding, embedding) + 10 * torch.eye(1001)
    assert distance.min() > 0.1


@pytest.mark.parametrize("dim", [3, 2, 0, 33])
def test_a_clock_needs_pairs_of_hands(dim):
    with pytest.raises(ValueError, match=f"dim must be even and at least 4, got {dim}"):
        timestep_embedding(torch.tensor([1]), dim, "sin-cos")


def test_an_unknown_clock_is_refused():
    with pytest.raises(ValueError, match="kind must be one of sin-cos, cos-sin, got 'sin'"):
        timestep_embedding(torch.tensor([1]), 8, "sin")


def test_the_time_embedding_is_what_it_says():
    m = part(TimeEmbedding, config(num_classes=3))
    t, y = torch.tensor([1, 9]), torch.tensor([0, 3])

    def silu(v):
        return v / (1 + torch.exp(-v))

    h = timestep_embedding(t, 8, "sin-cos") @ m.linear1.weight.T + m.linear1.bias
    h = silu(h) @ m.linear2.weight.T + m.linear2.bias + m.classes.weight[y]
    close(m(t, y), silu(h))


def test_t_offset_sets_the_clock_back():
    ours, theirs = network(), network(t_offset=-1)
    theirs.load_state_dict(ours.state_dict())
    x = normal(2, 1, 8, 8)
    with torch.no_grad():
        close(theirs(x, torch.tensor([2, 11])), ours(x, torch.tensor([1, 10])))
        assert (theirs(x, 10) - ours(x, 10)).abs().max() > 1e-4
        theirs(x, 1)  # the sinusoid of 0 is a time like any other


# ---- blocks ----------------------------------------------------------------------------------


def group_norm(x, norm):
    """By the definition: each group of channels of each image to mean 0 and variance 1."""
    groups = x.reshape(len(x), norm.num_groups, -1)
    centred = groups - groups.mean(2, keepdim=True)
    scaled = centred / ((centred**2).mean(2, keepdim=True) + norm.eps).sqrt()
    return scaled.reshape(x.shape) * norm.weight[:, None, None] + norm.bias[:, None, None]


def conv(x, layer):
    """A convolution with stride 1 as a sum over the taps."""
    k = layer.kernel_size[0]
    padded = F.pad(x, [k // 2] * 4)
    h, w = x.shape[2:]
    taps = [
        torch.einsum("oi,bihw->bohw", layer.weight[:, :, a, b], padded[:, :, a : a + h, b : b + w])
        for a in range(k)
        for b in range(k)
    ]
    return sum(taps) + layer.bias[:, None, None]


def silu(x):
    return x * torch.sigmoid(x)


@pytest.mark.parametrize("time_conditioning", ["add", "scale-shift"])
@pytest.mark.parametrize(("inside", "outside", "factor"), [(8, 8, 1), (8, 16, 2), (16, 8, 0.5)])
def test_the_wide_residual_block(inside, outside, factor, time_conditioning):
    c = config(width_factor=factor, time_conditioning=time_conditioning, norm_eps=0.1)
    m = part(WideResidualBlock, inside, outside, 8, c)
    assert m.conv1.out_channels == factor * outside
    x, time = normal(3, inside, 8, 8), normal(3, 32)
    told = (time @ m.time.weight.T + m.time.bias)[:, :, None, None]
    h = conv(silu(group_norm(x, m.norm1)), m.conv1)
    if time_conditioning == "add":
        h = group_norm(h + told, m.norm2)
    else:
        scale, shift = told[:, : h.shape[1]], told[:, h.shape[1] :]
        h = group_norm(h, m.norm2) * (1 + scale) + shift
    shortcut = x if inside == outside else conv(x, m.shortcut)
    close(m(x, time), shortcut + conv(silu(h), m.conv2))


@pytest.mark.parametrize("time_conditioning", ["add", "scale-shift"])
@pytest.mark.parametrize(("inside", "outside"), [(8, 8), (8, 16), (16, 8)])
def test_the_convnext_block(inside, outside, time_conditioning):
    c = config(block="convnext", width_factor=4, time_conditioning=time_conditioning)
    m = part(ConvNeXtBlock, inside, outside, 8, c)
    x, time = normal(3, inside, 8, 8), normal(3, 32)
    told = (time @ m.time.weight.T + m.time.bias)[:, :, None, None]
    padded = F.pad(x, [3] * 4)
    h = sum(
        m.depthwise.weight[:, 0, a, b][:, None, None] * padded[:, :, a : a + 8, b : b + 8]
        for a in range(7)
        for b in range(7)
    ) + m.depthwise.bias[:, None, None]  # fmt: skip
    if time_conditioning == "add":
        h = group_norm(h + told, m.norm)
    else:
        h = group_norm(h, m.norm) * (1 + told[:, :inside]) + told[:, inside:]
    h = conv(h, m.expand)
    assert h.shape[1] == 4 * outside
    h = 0.5 * h * (1 + torch.erf(h / math.sqrt(2)))
    shortcut = x if inside == outside else conv(x, m.shortcut)
    close(m(x, time), shortcut + conv(h, m.project))


@pytest.mark.parametrize(("side", "kernel"), [(1, 1), (2, 3), (3, 5), (4, 7), (8, 7)])
def test_a_convnext_kernel_has_no_tap_that_sees_padding_only(side, kernel):
    m = part(ConvNeXtBlock, 8, 8, side, config(block="convnext"))
    assert m.depthwise.kernel_size == (kernel, kernel)
    x = normal(1, 8, side, side).requires_grad_()
    (seen,) = torch.autograd.grad(m.depthwise(x).sum(), m.depthwise.weight)
    assert (seen != 0).all()
    wider = F.pad(m.depthwise.weight, [(7 - kernel) // 2] * 4)
    close(m.depthwise(x), F.conv2d(x, wider, m.depthwise.bias, padding=3, groups=8))


@pytest.mark.parametrize("block", ["wide-residual", "convnext"])
def test_a_new_block_hands_on_its_input(block):
    """The residual connection is in every block, and its branch begins at (almost) zero."""
    fresh = UNet(config(block=block, initialisation="ddpm"), seeded()).middle1
    x = normal(2, 8, 2, 2, dtype=torch.float32)
    close(fresh(x, normal(2, 32, dtype=torch.float32)), x, atol=1e-3)


@pytest.mark.parametrize("kind", [WideResidualBlock, ConvNeXtBlock])
def test_dropout_is_for_training_only(kind):
    m = part(kind, 8, 8, 8, config(dropout=0.5))
    x, time = normal(2, 8, 8, 8), normal(2, 32)
    close(m(x, time), m(x, time))
    m.train()
    torch.manual_seed(0)
    one, other = m(x, time), m(x, time)
    assert (one - other).abs().max() > 0.01
    torch.manual_seed(0)
    close(m(x, time), one)
    # half of what enters the last convolution is gone, and the rest is twice as large
    last = m.conv2 if kind is WideResidualBlock else m.project
    entered = []
    last.register_forward_pre_hook(lambda _, h: entered.append(h[0]))
    m(x, time)
    m.eval()
    m(x, time)
    kept = entered[0] != 0
    assert 0.4 < kept.double().mean() < 0.6
    close(entered[0][kept], 2 * entered[1][kept])


# ---- attention -------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_is_a_weighted_mean_over_all_pixels(heads):
    m = part(SelfAttention, 8, config(attention_heads=heads))
    x = normal(2, 8, 3, 3)
    normed = group_norm(x, m.norm)
    expected = torch.empty(2, 9, 8, dtype=torch.float64)
    for b in range(2):
        pixels = normed[b].reshape(8, 9).T
        q, k, v = (pixels @ p.weight.T + p.bias for p in (m.query, m.key, m.value))
        for head in range(heads):
            of = slice(head * 8 // heads, (head + 1) * 8 // heads)
            weights = torch.exp(q[:, of] @ k[:, of].T / math.sqrt(8 / heads))
            expected[b, :, of] = weights @ v[:, of] / weights.sum(1, keepdim=True)
    h = expected @ m.project.weight.T + m.project.bias
    close(m(x), x + h.transpose(1, 2).reshape(2, 8, 3, 3))


def test_attention_does_not_know_where_a_pixel_is():
    m = part(SelfAttention, 8, config())
    x, order = normal(1, 8, 4, 4), torch.randperm(16, generator=seeded())
    shuffled = x.flatten(2)[:, :, order].reshape(x.shape)
    close(m(shuffled), m(x).flatten(2)[:, :, order].reshape(x.shape))


# ---- from one resolution to the next ---------------------------------------------------------


@pytest.mark.parametrize(("padding", "first"), [("asymmetric", 0), ("symmetric", -1)])
def test_downsample_pads_where_it_says(padding, first):
    m = part(Downsample, 4, config(downsample_padding=padding))
    x = normal(2, 4, 6, 6)
    expected = torch.zeros(2, 4, 3, 3, dtype=torch.float64) + m.conv.bias[:, None, None]
    for i in range(3):
        for j in range(3):
            for a in range(3):
                for b in range(3):
                    row, column = 2 * i + a + first, 2 * j + b + first
                    if 0 <= row < 6 and 0 <= column < 6:
                        seen = x[:, :, row, column] @ m.conv.weight[:, :, a, b].T
                        expected[:, :, i, j] += seen
    close(m(x), expected)


def test_upsample_is_four_of_each_pixel_and_a_convolution():
    """The one transposed convolution against the two steps it stands for, gradients included."""
    m = part(Upsample, 4, config())
    x = normal(2, 4, 5, 5).requires_grad_()
    plain = m.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    close(m(x), plain)
    weight = normal(*plain.shape, seed=2)
    inputs = [x, m.conv.weight, m.conv.bias]
    ours = torch.autograd.grad((m(x) * weight).sum(), inputs)
    theirs = torch.autograd.grad((plain * weight).sum(), inputs)
    for left, right in zip(ours, theirs, strict=True):
        close(left, right, atol=1e-11)


# ---- the whole -------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    levels=st.integers(1, 3),
    widen=st.integers(1, 2),
    blocks=st.integers(1, 2),
    channels=st.sampled_from([(1, 1), (3, 3), (1, 2)]),
    block=st.sampled_from([("wide-residual", 1), ("wide-residual", 2), ("convnext", 4)]),
    conditioning=st.sampled_from(["add", "scale-shift"]),
    classes=st.sampled_from([None, 3]),
    attention=st.sets(st.integers(0, 2)),
)
def test_every_description_gives_a_network(
    levels, widen, blocks, channels, block, conditioning, classes, attention
):
    c = config(
        image_size=4,
        in_channels=channels[0],
        out_channels=channels[1],
        channel_multipliers=tuple(widen**i for i in range(levels)),
        blocks_per_level=blocks,
        attention_resolutions=tuple(4 // 2**i for i in attention if i < levels),
        block=block[0],
        width_factor=block[1],
        time_conditioning=conditioning,
        num_classes=classes,
    )
    u = UNet(c, seeded())
    out = u(normal(2, c.in_channels, 4, 4).float(), torch.tensor([1, 1000]))
    assert out.shape == (2, c.out_channels, 4, 4)
    assert out.isfinite().all()
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in u.parameters())


def test_every_parameter_matters():
    u = network(num_classes=2)
    (u(normal(3, 1, 8, 8), torch.tensor([1, 5, 9]), torch.tensor([0, 1, 2])) ** 2).sum().backward()
    silent = [name for name, p in u.named_parameters() if not p.grad.abs().max() > 0]
    # A key's bias moves all scores of a query alike, and softmax does not see that.
    assert {name.split(".")[-2] for name in silent} <= {"key"}


def test_data_flows_down_through_the_middle_and_up():
    u = network(channel_multipliers=(1, 2, 3), blocks_per_level=2)
    seen = []

    def note(name):
        return lambda _, inputs, out: seen.append((name, inputs[0].shape[1], *out.shape[1:3]))

    for module in u.modules():
        if isinstance(module, WideResidualBlock | Downsample | Upsample):
            module.register_forward_hook(note(type(module).__name__[:4]))
    u(normal(1, 1, 8, 8), 1)
    down = [("Wide", 8, 8, 8)] * 2 + [("Down", 8, 8, 4), ("Wide", 8, 16, 4), ("Wide", 16, 16, 4)]
    down += [("Down", 16, 16, 2), ("Wide", 16, 24, 2), ("Wide", 24, 24, 2)]
    middle = [("Wide", 24, 24, 2)] * 2
    up = [("Wide", 24 + 24, 24, 2)] * 2 + [("Wide", 24 + 16, 24, 2), ("Upsa", 24, 24, 4)]
    up += [("Wide", 24 + 16, 16, 4), ("Wide", 16 + 16, 16, 4), ("Wide", 16 + 8, 16, 4)]
    up += [("Upsa", 16, 16, 8), ("Wide", 16 + 8, 8, 8), ("Wide", 8 + 8, 8, 8), ("Wide", 16, 8, 8)]
    assert seen == down + middle + up


def test_skips_are_popped_in_reverse():
    """What the last block up receives beside its h is what conv_in gave: the first one pushed."""
    u = network()
    first, last = [], []
    u.conv_in.register_forward_hook(lambda _, i, out: first.append(out))
    u.up[-1].blocks[-1].register_forward_pre_hook(lambda _, inputs: last.append(inputs[0]))
    u(normal(1, 1, 8, 8), 1)
    close(last[0][:, 8:], first[0])


def test_images_of_a_batch_do_not_see_each_other():
    u = network().train()
    x, t = normal(4, 1, 8, 8), torch.tensor([1, 7, 500, 1000])
    together = u(x, t)
    for i in range(4):
        close(u(x[i : i + 1], int(t[i])), together[i : i + 1])


def test_every_normalisation_is_the_one_described():
    u = network(block="wide-residual", norm_groups=2, norm_eps=0.03)
    v = network(block="convnext", norm_groups=2, norm_eps=0.03)
    norms = [m for net in (u, v) for m in net.modules() if isinstance(m, nn.GroupNorm)]
    assert {(m.num_groups, m.eps) for m in norms} == {(2, 0.03)}


def test_the_end_is_normalised_and_activated():
    u, seen = network(), []
    u.norm_out.register_forward_hook(lambda _, inputs, out: seen.append(inputs[0]))
    out = u(normal(1, 1, 8, 8), 1)
    close(out, conv(silu(group_norm(seen[0], u.norm_out)), u.conv_out))


def test_attention_is_where_it_was_asked_for():
    u = network(attention_resolutions=(8, 2), blocks_per_level=1)
    where = [n for n, m in u.named_modules() if isinstance(m, SelfAttention)]
    down = ["down.0.attentions.0", "down.2.attentions.0"]
    up = ["up.0.attentions.0", "up.0.attentions.1", "up.2.attentions.0", "up.2.attentions.1"]
    assert where == [*down, "middle_attention", *up]


# ---- classes ---------------------------------------------------------------------------------


def test_no_class_is_the_null_class():
    u = network(num_classes=3)
    x = normal(4, 1, 8, 8)
    with torch.no_grad():
        outputs = [u(x, 5, torch.full((4,), y)) for y in range(4)]
        close(u(x, 5), outputs[3])
        close(u(x, 5, torch.tensor([2, 0, 3, 1]))[0], outputs[2][0])
    for i in range(3):
        assert (outputs[i] - outputs[i + 1]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.tensor([0, 4]), r"y must be in 0\.\.3, got 4"),
        (torch.tensor([-1, 0]), r"y must be in 0\.\.3, got -1"),
        (torch.tensor([0.0, 1.0]), "float32 of shape"),
        (torch.tensor([[0, 1]]), r"shape \(2,\), got torch.int64 of shape \(1, 2\)"),
    ],
)
def test_a_class_that_is_not_there_is_refused(y, message):
    with pytest.raises(ValueError, match=message):
        network(num_classes=3)(normal(2, 1, 8, 8), 1, y)


def test_a_class_for_a_network_without_classes_is_refused():
    with pytest.raises(ValueError, match="knows no classes"):
        network()(normal(1, 1, 8, 8), 1, torch.tensor([0]))


@pytest.mark.parametrize(
    ("shape", "t", "error", "message"),
    [
        ((1, 8, 8), 1, ValueError, r"x must have shape \(B, 1, 8, 8\), got \(1, 8, 8\)"),
        ((2, 3, 8, 8), 1, ValueError, r"got \(2, 3, 8, 8\)"),
        ((2, 1, 16, 16), 1, ValueError, r"got \(2, 1, 16, 16\)"),
        ((2, 1, 8, 8), 0, ValueError, "t must be at least 1, got 0"),
        ((2, 1, 8, 8), torch.tensor([3, 0]), ValueError, "t must be at least 1, got 0"),
        ((2, 1, 8, 8), torch.tensor([1]), ValueError, r"shape \(2,\), got torch.int64 of shape"),
        ((2, 1, 8, 8), torch.tensor([0.5, 1]), ValueError, "got torch.float32"),
        ((2, 1, 8, 8), 0.5, TypeError, "t must be an int or an int64 tensor, got 0.5"),
        ((2, 1, 8, 8), True, TypeError, "got True"),
    ],
)
def test_input_that_is_no_input_is_refused(shape, t, error, message):
    with pytest.raises(error, match=message):
        network()(normal(*shape), t)


# ---- the first weights -----------------------------------------------------------------------


def test_the_same_seed_gives_the_same_network_and_no_other_randomness_is_touched():
    before = torch.get_rng_state()
    one, two, three = (UNet(DIGITS, seeded(s)).state_dict() for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not any(torch.equal(v, three[n]) for n, v in one.items() if v.ndim > 1)


def test_ddpms_first_weights():
    u = UNet(config(base_channels=16, initialisation="ddpm", num_classes=2), seeded())
    last = ("conv2", "project", "conv_out")
    seen = 0
    for name, m in u.named_modules():
        if isinstance(m, nn.Conv2d | nn.Linear):
            taps = m.weight[0, 0].numel()
            fans = taps * (m.weight.shape[0] + m.weight.shape[1])
            gain = 1e-10 if name.split(".")[-1] in last else 1
            variance, n = gain * 2 / fans, m.weight.numel()
            # a uniform variable's square has relative standard deviation √(4/5)
            assert abs((m.weight**2).mean() / variance - 1) < 5 * math.sqrt(0.8 / n)
            assert m.weight.abs().max() <= math.sqrt(3 * variance) * (1 + 1e-6)
            assert (m.bias == 0).all()
            seen += gain < 1
        elif isinstance(m, nn.GroupNorm):
            assert (m.weight == 1).all() and (m.bias == 0).all()
    blocks = sum(isinstance(m, WideResidualBlock | SelfAttention) for m in u.modules())
    assert seen == blocks + 1


def test_a_depthwise_convolution_counts_one_channel():
    m = ConvNeXtBlock(256, 256, 8, config(block="convnext", norm_groups=4))
    initialise(m, "ddpm", seeded())
    assert abs((m.depthwise.weight**2).mean() * 49 - 1) < 5 * math.sqrt(0.8 / (49 * 256))


def test_torchs_first_weights():
    """The same bounds as PyTorch's own layers, which draw from the global generator."""
    u = UNet(config(base_channels=32), seeded())
    biases = []
    for m in u.modules():
        if isinstance(m, nn.Conv2d | nn.Linear):
            own = copy.deepcopy(m)
            own.reset_parameters()
            bound = 1 / math.sqrt(m.weight[0].numel())
            biases.append(m.bias / bound)
            for ours, theirs in ((m.weight, own.weight), (m.bias, own.bias)):
                assert ours.abs().max() <= bound and theirs.abs().max() <= bound
                if ours.numel() > 1000:
                    assert min(ours.abs().max(), theirs.abs().max()) > 0.99 * bound
    together = torch.cat(biases)
    assert abs(3 * (together**2).mean() - 1) < 5 * math.sqrt(0.8 / len(together))


def test_a_layer_without_a_rule_is_refused():
    with pytest.raises(ValueError, match="no rule for the first weights of LayerNorm"):
        initialise(nn.Sequential(nn.LayerNorm(4)), "torch", seeded())
    with pytest.raises(ValueError, match="initialisation must be one of"):
        initialise(nn.Linear(1, 1), "kaiming", seeded())


# ---- counting --------------------------------------------------------------------------------


def test_flops_by_hand():
    """Two for each product with its sum: every tap of every kernel at every place it is put."""
    u = UNet(config(channel_multipliers=(1, 2), attention_resolutions=(4,)), seeded())
    count = 0

    def add(m, inputs, out):
        nonlocal count
        if isinstance(m, nn.Conv2d):
            count += 2 * m.weight.numel() * out.shape[2] * out.shape[3]
        elif isinstance(m, nn.Linear):
            count += 2 * m.weight.numel() * inputs[0].numel() // inputs[0].shape[-1]
        elif isinstance(m, SelfAttention):
            _, channels, height, width = out.shape
            count += 2 * 2 * channels * (height * width) ** 2
        elif isinstance(m, Upsample):  # its 4×4 kernel is put at every pixel that comes in
            _, channels, height, width = inputs[0].shape
            count += 2 * 16 * channels * channels * height * width

    for m in u.modules():
        m.register_forward_hook(add)
    x = normal(1, 1, 8, 8).float()
    u(x, 1)
    by_hand = count
    assert count_flops(u, x, 1) == by_hand
    # The clock counts for each image too: nothing is computed once for a whole batch.
    assert count_flops(u, x.repeat(3, 1, 1, 1), 1) == 3 * by_hand


def test_pytorchs_counter_works_on_the_network():
    u, x = UNet(DIGITS, seeded()), torch.zeros(2, 1, 8, 8)
    with FlopCounterMode(display=False) as counter:
        u(x, 1)
    # its own count misses no more than the products of attention, which it cannot see on a CPU
    assert 0.95 * count_flops(u, x, 1) < counter.get_total_flops() <= count_flops(u, x, 1)


def test_parameters_that_do_not_learn_are_not_counted():
    layer = nn.Linear(3, 2)
    assert count_parameters(layer) == 8
    layer.bias.requires_grad_(False)
    assert count_parameters(layer) == 6


# ---- where and in which numbers it runs ------------------------------------------------------


def test_nothing_is_read_back_from_an_accelerator():
    """On the meta device no value exists, so a check that looked at one would raise."""
    u = network(num_classes=3).to("meta")
    x = torch.zeros(4, 1, 8, 8, dtype=torch.float64, device="meta")
    t = torch.full((4,), 7, device="meta")
    for step, y in ((t, t), (t, None), (7, None)):
        assert u(x, step, y).device.type == "meta"


@pytest.mark.parametrize("changes", [{}, {"time_conditioning": "scale-shift"}, {"num_classes": 2}])
def test_bfloat16_autocast_stays_near_float32(changes):
    u = network(**changes).float()
    x, t = normal(4, 1, 8, 8, dtype=torch.float32), torch.tensor([1, 10, 100, 1000])
    with torch.no_grad():
        exact = u(x, t)
        with torch.autocast("cpu", torch.bfloat16):
            rough = u(x, t)
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_network_computes_in_the_numbers_of_its_weights(dtype):
    u = network().to(dtype)
    assert u(normal(2, 1, 8, 8).to(dtype), torch.tensor([1, 2])).dtype == dtype


def test_memory_layout_changes_nothing():
    u, x = network(), normal(2, 1, 8, 8)
    expected = u(x, 3)
    close(u.to(memory_format=torch.channels_last)(x, 3), expected)


@pytest.mark.parametrize("block", ["wide-residual", "convnext"])
def test_the_network_is_one_graph(block):
    """Captured without a break, so that `torch.compile` can work on the whole of it."""
    u = network(block=block, num_classes=2)
    compiled = torch.compile(u, fullgraph=True, backend="eager")
    x, t, y = normal(2, 1, 8, 8), torch.tensor([1, 9]), torch.tensor([0, 2])
    with torch.no_grad():
        close(compiled(x, t, y), u(x, t, y))


def test_a_copy_is_a_network_of_its_own():
    u = network()
    other, x = copy.deepcopy(u), normal(1, 1, 8, 8)
    close(other(x, 1), u(x, 1))
    other.conv_out.weight.data.zero_()
    assert (other(x, 1) - u(x, 1)).abs().max() > 0.01


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_gives_the_numbers_of_the_cpu():
    u, x = network(num_classes=2), normal(2, 1, 8, 8)
    t, y = torch.tensor([1, 1000]), torch.tensor([0, 2])
    here = u(x, t, y)
    there = copy.deepcopy(u).cuda()
    close(there(x.cuda(), t.cuda(), y.cuda()).cpu(), here, atol=1e-10)
    close(there(x.cuda(), t, y).cpu(), here, atol=1e-10)

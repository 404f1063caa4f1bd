"""The exercises of chapter 6, the U-Net."""

from __future__ import annotations

import numpy as np
import torch

from ddpm_lite.exercises.exercise import Exercise

# ---- 6.2 the window of one output ----------------------------------------------------------------


def window(i, kernels, strides, paddings):
    """Walk back through the layers, the last one first."""
    first = last = i
    for kernel, stride, padding in reversed(list(zip(kernels, strides, paddings, strict=True))):
        first = first * stride - padding
        last = last * stride - padding + kernel - 1
    return first, last


def _stacks(rng):
    """Stacks of 3 to 5 layers that are not the same backwards, padded, with large strides."""
    calls = []
    for _ in range(6):
        depth = int(rng.integers(3, 6))
        kernels = [int(k) for k in rng.integers(2, 6, depth)]
        strides = [3, *(int(s) for s in rng.integers(1, 4, depth - 2)), 1]
        paddings = [int(p) for p in rng.integers(1, 3, depth)]
        calls.append((int(rng.integers(2, 6)), kernels, strides, paddings))
    return calls


def _first_layer_first(i, kernels, strides, paddings):
    return window(i, kernels[::-1], strides[::-1], paddings[::-1])


def _without_padding(i, kernels, strides, paddings):
    return window(i, kernels, strides, [0] * len(paddings))


def _one_too_wide(i, kernels, strides, paddings):
    return window(i, [kernel + 1 for kernel in kernels], strides, paddings)


def _without_stride(i, kernels, strides, paddings):
    return window(i, kernels, [1] * len(strides), paddings)


# ---- 6.3 the stack -------------------------------------------------------------------------------


def up_channels(base, multipliers, blocks):
    """Push as the way down does, then pop."""
    widths = [base * multiplier for multiplier in multipliers]
    stack = [base]
    for level, width in enumerate(widths):
        stack += [width] * blocks
        if level < len(widths) - 1:
            stack.append(width)
    found, width = [], widths[-1]
    for out in reversed(widths):
        for _ in range(blocks + 1):
            found.append(width + stack.pop())
            width = out
    return found


def _networks(rng):
    """Widths that differ from level to level."""
    calls = []
    for _ in range(5):
        multipliers = [int(m) for m in np.cumsum(rng.integers(1, 3, int(rng.integers(2, 5))))]
        calls.append((int(rng.integers(8, 33)), multipliers, int(rng.integers(1, 4))))
    return calls


def _walk(base, multipliers, blocks, take, join, follow=True):
    """`up_channels` with parts exchanged: which skip is taken, and what is made of it."""
    widths = [base * multiplier for multiplier in multipliers]
    stack = [base]
    for level, width in enumerate(widths):
        stack += [width] * blocks + [width] * (level < len(widths) - 1)
    found, width = [], widths[-1]
    for out in reversed(widths):
        width = width if follow else out
        for _ in range(blocks + 1):
            found.append(join(width, take(stack)))
            width = out
    return found


def _first_in_first_out(base, multipliers, blocks):
    return _walk(base, multipliers, blocks, lambda stack: stack.pop(0), lambda h, skip: h + skip)


def _added(base, multipliers, blocks):
    return _walk(base, multipliers, blocks, list.pop, lambda h, skip: h)


def _skip_only(base, multipliers, blocks):
    return _walk(base, multipliers, blocks, list.pop, lambda h, skip: skip)


def _own_width(base, multipliers, blocks):
    return _walk(base, multipliers, blocks, list.pop, lambda h, skip: h + skip, follow=False)


def _blocks_only(base, multipliers, blocks):
    widths = [base * multiplier for multiplier in multipliers]
    found, width = [], widths[-1]
    for out in reversed(widths):
        for _ in range(blocks):
            found.append(width + out)
            width = out
    return found


# ---- 6.4 GroupNorm -------------------------------------------------------------------------------


def group_norm(x, groups, eps):
    """(6.18), without scale and shift."""
    grouped = x.reshape(x.shape[0], groups, -1)
    mean = grouped.mean(2, keepdim=True)
    variance = ((grouped - mean) ** 2).mean(2, keepdim=True)
    return ((grouped - mean) / (variance + eps).sqrt()).reshape(x.shape)


def _features(rng):
    calls = []
    for _ in range(4):
        groups, each = int(rng.integers(2, 4)), int(rng.integers(2, 4))
        shape = (3, groups * each, 2, 2)
        level = rng.normal(size=(3, groups * each, 1, 1))
        calls.append((rng.normal(size=shape) + 2 * level, groups, float(rng.uniform(0.1, 0.4))))
    return calls


def _over_the_batch(x, groups, eps):
    return (
        group_norm(x.transpose(0, 1).reshape(1, x.shape[1], -1, 1), groups, eps)
        .reshape(x.transpose(0, 1).shape)
        .transpose(0, 1)
    )


def _each_channel_alone(x, groups, eps):
    return group_norm(x, x.shape[1], eps)


def _interleaved(x, groups, eps):
    apart = x.unflatten(1, (-1, groups)).transpose(1, 2)
    return (
        group_norm(apart.flatten(1, 2), groups, eps)
        .reshape(apart.shape)
        .transpose(1, 2)
        .reshape(x.shape)
    )


def _unbiased(x, groups, eps):
    grouped = x.reshape(x.shape[0], groups, -1)
    centred = grouped - grouped.mean(2, keepdim=True)
    return (centred / (grouped.var(2, keepdim=True) + eps).sqrt()).reshape(x.shape)


def _eps_outside(x, groups, eps):
    grouped = x.reshape(x.shape[0], groups, -1)
    centred = grouped - grouped.mean(2, keepdim=True)
    return (centred / (centred.square().mean(2, keepdim=True).sqrt() + eps)).reshape(x.shape)


# ---- 6.5 my_ddpm.timestep_embedding --------------------------------------------------------------


def timestep_embedding(t, dim):
    """(6.23): the sines of all hands, then their cosines."""
    half = dim // 2
    hand = torch.arange(half, dtype=torch.float64)
    angle = t[:, None] * 10000 ** (-hand / (half - 1))
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def _moments_of_the_chain(rng):
    return [(np.sort(rng.integers(1, 400, 5)), int(2 * rng.integers(3, 9))) for _ in range(5)]


def _slowest_hand_left_out(t, dim):
    half = dim // 2
    angle = t[:, None] * 10000 ** (-torch.arange(half, dtype=torch.float64) / half)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def _interleaved_hands(t, dim):
    return timestep_embedding(t, dim).unflatten(1, (2, -1)).transpose(1, 2).flatten(1)


def _cosines_first(t, dim):
    return timestep_embedding(t, dim).roll(dim // 2, 1)


def _turns(t, dim):
    return timestep_embedding(2 * torch.pi * t, dim)


def _counted_from_zero(t, dim):
    return timestep_embedding(t - 1, dim)


# ---- 6.7 the parameters of a ConvNeXt block ------------------------------------------------------


def convnext_parameters(C, C_out, kernel, width_factor, time_channels):
    """Depthwise, time, norm, expand, project, and a shortcut where the widths differ."""
    inner = width_factor * C_out
    depthwise = kernel**2 * C + C
    time = time_channels * C + C
    norm = 2 * C
    expand = C * inner + inner
    project = inner * C_out + C_out
    shortcut = C * C_out + C_out if C_out != C else 0
    return depthwise + time + norm + expand + project + shortcut


def _blocks(rng):
    calls = []
    for same in (True, False, False, True, False):
        C = int(rng.integers(4, 12))
        C_out = C if same else C + int(rng.integers(2, 7))
        calls.append((C, C_out, int(rng.choice([3, 5, 7])), int(rng.integers(2, 5)), 4 * C + 3))
    return calls


def _full_convolution(C, C_out, kernel, width_factor, time_channels):
    right = convnext_parameters(C, C_out, kernel, width_factor, time_channels)
    return right + kernel**2 * C * (C - 1)


def _no_biases(C, C_out, kernel, width_factor, time_channels):
    right = convnext_parameters(C, C_out, kernel, width_factor, time_channels)
    return right - (2 * C + width_factor * C_out + C_out + (C_out if C_out != C else 0))


def _no_norm(C, C_out, kernel, width_factor, time_channels):
    return convnext_parameters(C, C_out, kernel, width_factor, time_channels) - 2 * C


def _no_shortcut(C, C_out, kernel, width_factor, time_channels):
    right = convnext_parameters(C, C_out, kernel, width_factor, time_channels)
    return right - (C * C_out + C_out if C_out != C else 0)


def _inner_of_the_input(C, C_out, kernel, width_factor, time_channels):
    right = convnext_parameters(C, C_out, kernel, width_factor, time_channels)
    return right + width_factor * (C - C_out) * (C + 1 + C_out)


# ---- 6.8 attention -------------------------------------------------------------------------------


def attention(q, k, v):
    """(6.32): each row of weights sums to one."""
    scores = q @ k.T / q.shape[1] ** 0.5
    weights = (scores - scores.amax(1, keepdim=True)).exp()
    return weights / weights.sum(1, keepdim=True) @ v


def _queries(rng):
    calls = []
    for _ in range(5):
        n, m, d = int(rng.integers(2, 5)), int(rng.integers(5, 8)), int(rng.integers(4, 9))
        calls.append((1.5 * rng.normal(size=(n, d)), *1.5 * rng.normal(size=(2, m, d))))
    return calls


def _over_the_queries(q, k, v):
    return (q @ k.T / q.shape[1] ** 0.5).softmax(0) @ v


def _not_scaled(q, k, v):
    return (q @ k.T).softmax(1) @ v


def _no_root(q, k, v):
    return (q @ k.T / q.shape[1]).softmax(1) @ v


def _keys_for_values(q, k, v):
    return attention(q, k, k)


def _no_softmax(q, k, v):
    return q @ k.T / q.shape[1] ** 0.5 @ v


EXERCISES = [
    Exercise(
        id="6.1",
        title="Predict the number",
        kind="number",
        points=1,
        minutes=5,
        difficulty=1,
        equation="6.9",
        reference=21,
        wrong={
            "stride-ignored": (
                15,
                "That is 1 + 7·2, as if all seven layers had stride 1. After the stride of 2, "
                "neighbours lie two input pixels apart, see (6.9).",
            ),
            "all-doubled": (
                29,
                "You counted every layer at the distance of 2. The layers before the stride, and "
                "the strided one itself, still look at neighbours one pixel apart, see (6.9).",
            ),
            "own-stride": (
                23,
                "You let the strided layer look twice as far itself. Its stride counts for the "
                "layers after it: the factor in (6.9) is j of the layer before.",
            ),
            "one-left-out": (
                20,
                "That is the sum in (6.9) without the 1 in front: the pixel that is looked at.",
            ),
        },
        hints=(
            "Each 3×3 layer adds twice the distance of its input's neighbours, see (6.9).",
            "That distance is 1 for the first three layers and for the strided one, and 2 for "
            "the last three.",
            "1 + 3·2·1 + 2·1 + 3·2·2.",
        ),
    ),
    Exercise(
        id="6.2",
        title="How far back",
        kind="code",
        points=2,
        minutes=10,
        difficulty=2,
        equation="6.9",
        inputs=_stacks,
        reference=window,
        wrong={
            "first-layer-first": (
                _first_layer_first,
                "You walked through the layers from the input on. Output i belongs to the last "
                "layer: begin there, and go back.",
            ),
            "without-padding": (
                _without_padding,
                "You left out the padding: with p zeros in front, output 0 begins at input −p.",
            ),
            "one-too-wide": (
                _one_too_wide,
                "Your window is too wide: a kernel of k covers k positions, so the last one lies "
                "k − 1 after the first.",
            ),
            "without-stride": (
                _without_stride,
                "You left out the strides: output i of a layer starts at input u·i − p.",
            ),
        },
        hints=(
            "One layer first: its output i is computed from its inputs u·i − p up to "
            "u·i − p + k − 1, where u is its stride.",
            "Now first and last are outputs of the layer before. Go back through it in the same "
            "way: each end for itself.",
            "For each layer, the last one first: first = u·first − p, last = u·last − p + k − 1.",
        ),
    ),
    Exercise(
        id="6.3",
        title="Follow the stack",
        kind="code",
        points=3,
        minutes=15,
        difficulty=3,
        equation="6.13",
        inputs=_networks,
        reference=up_channels,
        wrong={
            "first-in-first-out": (
                _first_in_first_out,
                "You took the oldest map first. It is a stack: what was pushed last, at the "
                "coarsest level, is popped first.",
            ),
            "added": (
                _added,
                "These are the widths of h alone, as if the skip were added. It is concatenated: "
                "the numbers of channels add up, see (6.13).",
            ),
            "skip-only": (
                _skip_only,
                "These are the widths of what is popped. Each block also gets h, from the block "
                "below or before, see (6.13).",
            ),
            "own-width": (
                _own_width,
                "Your h has the width of the level that it enters. The first block of a level "
                "still gets h in the width of the level below.",
            ),
            "blocks-only": (
                _blocks_only,
                "You have as many blocks on the way up as on the way down. conv_in and every "
                "downsampling push a map too, so each level has one block more going up.",
            ),
        },
        hints=(
            "First write the list of all widths that are pushed: that of conv_in, then for each "
            "level its blocks and, except after the last level, the downsampling.",
            "Then go up: for each level, the deepest first, blocks + 1 times: pop a width, add "
            "the width of h, note the sum.",
            "h has the deepest level's width at first. After every block it has the width of the "
            "level in which the block is.",
        ),
    ),
    Exercise(
        id="6.4",
        title="GroupNorm by hand",
        kind="code",
        points=2,
        minutes=10,
        difficulty=2,
        equation="6.18",
        inputs=_features,
        reference=group_norm,
        wrong={
            "over-the-batch": (
                _over_the_batch,
                "You averaged over the batch as well. Then one image's output depends on the "
                "others; GroupNorm takes each image by itself, see (6.18).",
            ),
            "each-channel-alone": (
                _each_channel_alone,
                "You normalised every channel by itself. The mean and the variance are over all "
                "channels of a group, see (6.18).",
            ),
            "interleaved": (
                _interleaved,
                "Your groups are made of every n-th channel. A group holds neighbouring channels.",
            ),
            "unbiased": (
                _unbiased,
                "You divided the sum of squares by n − 1, which is what var() does if not told "
                "otherwise. GroupNorm divides by n.",
            ),
            "eps-outside": (
                _eps_outside,
                "You added ε to the standard deviation. It belongs under the root, to the "
                "variance, see (6.18).",
            ),
        },
        hints=(
            "Reshape so that all numbers of one image and one group lie along one axis.",
            "x.reshape(B, groups, -1) does that, because the channels of a group are neighbours.",
            "Mean and mean square deviation over the last axis with keepdim=True, divide by "
            "√(variance + ε), reshape back.",
        ),
    ),
    Exercise(
        id="6.5",
        title="Your own clock",
        kind="code",
        points=2,
        minutes=10,
        difficulty=2,
        equation="6.23",
        inputs=_moments_of_the_chain,
        reference=timestep_embedding,
        tolerance=1e-3,
        wrong={
            "divided-by-half": (
                _slowest_hand_left_out,
                "You divided i by dim/2. Here the hands run from ω = 1 to exactly 1/10000, so "
                "the divisor is dim/2 − 1, see (6.23). (The other is OpenAI's convention.)",
            ),
            "interleaved": (
                _interleaved_hands,
                "Your sines and cosines alternate, as in the paper on the Transformer. DDPM's "
                "code has all sines first, then all cosines.",
            ),
            "cosines-first": (
                _cosines_first,
                "Your cosines come first. That is OpenAI's order; here the sines do.",
            ),
            "full-turns": (
                _turns,
                "You multiplied the angle by 2π. ω is the angle per step in radians, see (6.23).",
            ),
            "counted-from-zero": (
                _counted_from_zero,
                "You shifted t by one. Use the t that is given.",
            ),
        },
        hints=(
            "Make the vector of the dim/2 frequencies first.",
            "With i = 0, 1, …, half − 1 the frequencies are 10000^(−i/(half − 1)).",
            "angle = t[:, None] * frequencies; then torch.cat([angle.sin(), angle.cos()], dim=1).",
        ),
    ),
    Exercise(
        id="6.6",
        title="Explain",
        kind="explain",
        points=3,
        minutes=15,
        difficulty=3,
        equation="6.19",
        reference=(
            "With as many groups as channels, every group is one channel. The time enters a "
            "block by adding one number to each channel, the same at all pixels, and the next "
            "operation is the GroupNorm. A constant that is added to a whole group is removed by "
            "the normalisation: it shifts the mean by itself and leaves the deviations as they "
            "are. So the block computes exactly the same for every t, and so does the network, "
            "whose output then depends on t nowhere; the gradient with respect to the time "
            "embedding is exactly zero, so training cannot repair it. With two or more channels "
            "to a group the added numbers differ within the group; their mean is still lost, but "
            "the differences between the channels remain. Nothing crashes, because all shapes "
            "fit, and the loss still falls, because the noise level can be read off a noisy "
            "image quite well. To find it: compare the outputs at two values of t for the same "
            "image, or look for parameters whose gradient is zero. Cures: fewer groups, or the "
            "scale-shift conditioning, which acts after the normalisation."
        ),
        rubric=(
            "Says that each channel is then a group of its own, and that the time is a constant "
            "over the pixels of a channel.",
            "Says that the normalisation subtracts the mean of the group and so removes the "
            "constant exactly; quotes or re-derives (6.19).",
            "Concludes that the output does not depend on t at all (or that the gradient of the "
            "time embedding is zero).",
            "Explains why nothing is noticed: shapes fit, and the loss falls, since the image "
            "itself shows how noisy it is.",
            "Names a test (two values of t, or zero gradients) or a cure (fewer groups, "
            "scale-shift after the norm).",
        ),
        hints=(
            "What is the last thing that happens to h before the second GroupNorm?",
            "Use (6.19) for a group that is one channel: what is b?",
            "And then: what does the network still know about the noise level, and from where?",
        ),
    ),
    Exercise(
        id="6.7",
        title="Count a block",
        kind="formula",
        points=2,
        minutes=15,
        difficulty=2,
        equation="6.31",
        inputs=_blocks,
        reference=convnext_parameters,
        tolerance=1e-5,
        wrong={
            "full-convolution": (
                _full_convolution,
                "You counted the first convolution as a full one, k²·C·C weights. Depthwise "
                "means one kernel for each channel: k²·C.",
            ),
            "no-biases": (
                _no_biases,
                "You left out the biases: every convolution and every linear layer has one for "
                "each output channel, see (6.7).",
            ),
            "no-norm": (
                _no_norm,
                "You left out the GroupNorm: a scale and a shift for each of its C channels.",
            ),
            "no-shortcut": (
                _no_shortcut,
                "You left out the shortcut, a 1×1 convolution where C and C_out differ.",
            ),
            "inner-of-the-input": (
                _inner_of_the_input,
                "Your inner width is width_factor·C. It is width_factor times the width of the "
                "output, C_out.",
            ),
        },
        hints=(
            "Six parts: depthwise convolution, time, GroupNorm, expand, project, shortcut.",
            "A layer from a to b channels with a k×k kernel has k²·a·b + b parameters; the "
            "depthwise one k²·C + C; the norm 2·C.",
            "The inner width is width_factor·C_out. expand goes from C to it, project from it to "
            "C_out, time from time_channels to C, the shortcut from C to C_out if they differ.",
        ),
    ),
    Exercise(
        id="6.8",
        title="Attention by hand",
        kind="code",
        points=2,
        minutes=10,
        difficulty=2,
        equation="6.32",
        inputs=_queries,
        reference=attention,
        wrong={
            "over-the-queries": (
                _over_the_queries,
                "Your weights sum to one over the queries. For each query the weights of all "
                "keys must sum to one, see (6.32).",
            ),
            "not-scaled": (
                _not_scaled,
                "You left out the factor 1/√d on the scores, see (6.32).",
            ),
            "no-root": (
                _no_root,
                "You divided the scores by d instead of √d: the variance of q·k is d, its "
                "standard deviation √d, see (6.33).",
            ),
            "keys-for-values": (
                _keys_for_values,
                "You averaged the keys. The keys only set the weights; what is averaged are the "
                "values.",
            ),
            "no-softmax": (
                _no_softmax,
                "You left out the softmax: the weights must be positive and sum to one.",
            ),
        },
        hints=(
            "Three steps: scores, weights, weighted average of the values.",
            "The scores are q @ k.T / √d, one row for each query.",
            "(q @ k.T / q.shape[1] ** 0.5).softmax(dim=1) @ v.",
        ),
    ),
]

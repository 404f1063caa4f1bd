"""Classifier-free guidance, as a wrapper around any conditional denoiser.

    for state in sample(guided(network, w=1.5), diffusion, shape, y=labels, …):
        ...

A network that was trained with some labels dropped is two denoisers in one: asked with a label y
it estimates E[target | x_t, y], asked with the null class E[target | x_t]. Guidance goes from the
second through the first and on, by the book's w:

    ε_guided = ε(x_t) + (1 + w)·(ε(x_t, y) − ε(x_t)) = (1 + w)·ε(x_t, y) − w·ε(x_t).

w = −1 is the unconditional denoiser, w = 0 the conditional one, w > 0 is guidance. Much software
writes the *scale* 1 + w instead, and calls it guidance scale, or w too: `scale_from_w` and
`w_from_scale` convert. Of all the numbers passed here none is a scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_lite.process import GaussianDiffusion, Prediction


def scale_from_w(w: float) -> float:
    """The guidance scale 1 + w, as diffusers and others count: 1 there is no guidance.

    Book: (8.11).
    """
    return 1.0 + _check_finite("w", w)


def w_from_scale(scale: float) -> float:
    """The w of a guidance scale: scale − 1.

    Book: (8.11).
    """
    return _check_finite("scale", scale) - 1.0


def drop_labels(y: Tensor, share: float, num_classes: int, generator: torch.Generator) -> Tensor:
    """Replace each label, with probability `share`, by the null class `num_classes`.

    So one network learns to denoise with and without a label, which is all that guidance needs.
    One uniform number is drawn for each label, on the generator's device, whatever the share.

    Book: (8.12), (8.13).
    Source: Ho and Salimans, arXiv 2207.12598.

    Args:
        y: int64 (B,) in 0..num_classes. It is not changed; the result is new.
    Raises:
        ValueError: if share is outside [0, 1], num_classes is below 1, or y is not as above.
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise ValueError(f"the share of labels to drop must lie in [0, 1], got {share!r}.")
    _check_classes(num_classes)
    if y.dtype != torch.int64 or y.ndim != 1:
        raise ValueError(f"y must be int64 of shape (B,), got {y.dtype} of shape {tuple(y.shape)}.")
    if y.device.type == "cpu" and ((y < 0) | (y > num_classes)).any():
        wrong = y[(y < 0) | (y > num_classes)][0].item()
        raise ValueError(
            f"y must name a class in 0..{num_classes - 1}, or {num_classes} for none, got {wrong}."
        )
    dropped = torch.rand(len(y), generator=generator, device=generator.device) < share
    return torch.where(dropped.to(y.device), num_classes, y)


def guided(
    denoiser: Callable[..., Tensor],
    w: float,
    *,
    interval: tuple[int, int] | None = None,
    rescale: float | None = None,
    diffusion: GaussianDiffusion | None = None,
    num_classes: int | None = None,
) -> Guided:
    """A denoiser (x_t, t, y) → (1 + w)·output(x_t, t, y) − w·output(x_t, t, null).

    It goes wherever a denoiser goes. The rule is the same for ε, x_0, v and the score: they differ
    by affine maps that depend on x_t and t alone, and the two weights sum to 1. In terms of
    densities, for exact denoisers:

        ε_guided = −√(1−ᾱ_t)·∇ log[p_t(x)·p_t(y | x)^(1+w)].

    A sampler that is given this score does not draw from p_0(x)·p_0(y | x)^(1+w): the tilted laws
    of x_t are not that law with noise added, but for w = 0 and w = −1.

    Where the denoiser learns a variance too (twice the channels), the second half is handed on as
    the conditional denoiser gave it: only predictions are extrapolated.

    Book: (8.8).
    Paper: CFG Eq. 6.

    Book: (8.9), (8.10), (8.15), (8.18), (8.25), (8.26).

    Args:
        denoiser: called once for each step, with both halves in one batch of 2B, conditional
            first; with B where there is nothing to extrapolate (w = 0, or outside the interval).
        w: any finite number; 0 is no guidance (scale 1).
        interval: (low, high), original step numbers, both included: guidance acts at these steps
            only, the conditional denoiser alone elsewhere. None: at all steps.
            Source: Kynkäänniemi et al., arXiv 2404.07724.
        rescale: φ in [0, 1], against over-saturation: the guided v is brought to the standard
            deviation that the conditional v has over the coordinates of each sample, to the share
            φ. None: not at all. Needs `diffusion`, to read v off any prediction.
            Source: Lin et al., arXiv 2305.08891 section 3.4, whose networks predict v.
        diffusion: the process that the denoiser was made for, with its original schedule.
        num_classes: the index of the null class; if None, the denoiser's own
            (`denoiser.num_classes` or `denoiser.config.num_classes`).
    Raises:
        ValueError, TypeError: if an argument is not as above, or the denoiser knows no classes.
    """
    w = _check_finite("w", w)
    if rescale is not None:
        if isinstance(rescale, bool) or not isinstance(rescale, int | float):
            raise TypeError(f"rescale must be a number or None, got {rescale!r}.")
        if not 0 <= rescale <= 1:
            raise ValueError(f"rescale must lie in [0, 1], got {rescale!r}.")
        _check_original(diffusion)
    null = _null_class(denoiser) if num_classes is None else _check_classes(num_classes)
    return Guided(denoiser, w, null, _check_interval(interval), rescale, diffusion)


class Guided(nn.Module):
    """What `guided` returns: a denoiser that needs labels.

    A module, so that a network inside it is found: its parameters, its device, its mode.
    """

    def __init__(
        self,
        denoiser: Callable[..., Tensor],
        w: float,
        num_classes: int,
        interval: tuple[int, int] | None,
        rescale: float | None,
        diffusion: GaussianDiffusion | None,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.w = w
        self.num_classes = num_classes
        self.interval = interval
        self.rescale = rescale
        self.diffusion = diffusion

    def forward(self, x_t: Tensor, t: int | Tensor, y: Tensor | None = None) -> Tensor:
        """The guided output at (x_t, t, y), shaped like the denoiser's own.

        Book: (8.8).

        x_t: (B, …). t: an int or int64 (B,). y: int64 (B,); a null class there stays unguided.

        Raises:
            ValueError: if y is missing or of another shape, or the denoiser gives neither as many
                channels as x_t has nor twice as many.
        """
        y = self._check_labels(y, x_t)
        weight = self._weight(t)
        if isinstance(weight, float) and weight == 0:
            return self.denoiser(x_t, t, y)
        steps = t if isinstance(t, int) or t.ndim == 0 else torch.cat([t, t])
        labels = torch.cat([y, torch.full_like(y, self.num_classes)])
        both = self.denoiser(torch.cat([x_t, x_t]), steps, labels)
        with_label, without = both.to(torch.promote_types(both.dtype, torch.float32)).chunk(2)
        predicted = self._predicted_channels(with_label, x_t)
        if isinstance(weight, Tensor):
            weight = weight.to(with_label.dtype).reshape(-1, *[1] * (x_t.ndim - 1))
        conditional, unconditional = with_label[:, :predicted], without[:, :predicted]
        output = unconditional + (1 + weight) * (conditional - unconditional)
        if self.rescale is not None:
            output = self._rescaled(output, conditional, x_t, t)
        return torch.cat([output, with_label[:, predicted:]], dim=1)

    def _weight(self, t: int | Tensor) -> float | Tensor:
        """w at the step: a number if it is the same for all rows, else (B,)."""
        if self.interval is None:
            return self.w
        low, high = self.interval
        if isinstance(t, int):
            return self.w if low <= t <= high else 0.0
        inside = (t >= low) & (t <= high)
        # reads t back from a GPU, which costs less than the half batch that it saves
        if not bool(inside.any()):
            return 0.0
        return self.w if bool(inside.all()) else self.w * inside

    def _rescaled(
        self, output: Tensor, conditional: Tensor, x_t: Tensor, t: int | Tensor
    ) -> Tensor:
        """Bring the guided v to the conditional v's spread, and write it as it was predicted."""
        assert self.rescale is not None and self.diffusion is not None
        kept = GaussianDiffusion(self.diffusion.schedule, self.diffusion.prediction)
        if isinstance(t, Tensor) and t.ndim == 0:
            t = int(t)
        pushed, plain = (kept.predict(each, x_t, t) for each in (output, conditional))
        spread = _spread(pushed.v)
        ratio = torch.where(spread > 0, _spread(plain.v) / spread, 1.0)
        v = (1 + self.rescale * (ratio - 1)) * pushed.v
        return _as_predicted(v, x_t, pushed, kept.prediction)

    def _check_labels(self, y: Tensor | None, x_t: Tensor) -> Tensor:
        if y is None:
            raise ValueError("guidance needs labels y, int64 (B,): without them it has no aim.")
        if y.dtype != torch.int64 or tuple(y.shape) != tuple(x_t.shape[:1]):
            raise ValueError(
                f"y must be int64 of shape {tuple(x_t.shape[:1])}, one label for each sample, got "
                f"{y.dtype} of shape {tuple(y.shape)}."
            )
        return y

    @staticmethod
    def _predicted_channels(output: Tensor, x_t: Tensor) -> int:
        """C, for an output of C channels or of 2C, the second half being a variance."""
        channels = x_t.shape[1]
        allowed = [(len(x_t), n * channels, *x_t.shape[2:]) for n in (1, 2)]
        if tuple(output.shape) not in allowed:
            raise ValueError(
                f"the denoiser's output must have the shape {allowed[0]} of x_t, or {allowed[1]} "
                f"with a learned variance, got {tuple(output.shape)}."
            )
        return channels


def _spread(v: Tensor) -> Tensor:
    """The standard deviation over each sample's coordinates, (B, 1, …, 1)."""
    return v.flatten(1).std(1, correction=0).reshape(-1, *[1] * (v.ndim - 1))


def _as_predicted(v: Tensor, x_t: Tensor, read: Prediction, prediction: str) -> Tensor:
    """v as what the denoiser predicts; √ᾱ_t and √(1−ᾱ_t) are those of `read`."""
    if prediction == "v":
        return v
    if prediction == "x0":
        return read.signal * x_t - read.noise * v
    return read.noise * x_t + read.signal * v


# ---- checks at the boundary ---------------------------------------------------------------------


def _check_finite(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}.")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}.")
    return float(value)


def _check_original(diffusion: GaussianDiffusion | None) -> None:
    if diffusion is None:
        raise ValueError(
            "rescale needs the diffusion too: it acts on v, whatever the denoiser predicts."
        )
    if int(diffusion.schedule.timesteps[-1]) != diffusion.T:
        raise ValueError(
            "rescale needs the diffusion with its original schedule, not a respaced one: "
            "denoisers are called with the original step numbers."
        )


def _check_classes(num_classes: Any) -> int:
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"num_classes must be an int of at least 1, got {num_classes!r}.")
    return num_classes


def _null_class(denoiser: Any) -> int:
    found = getattr(denoiser, "num_classes", None)
    if found is None:
        config = getattr(denoiser, "config", None)
        if config is not None and getattr(config, "num_classes", None) is None:
            raise ValueError(
                "this network knows no classes: guidance needs one that was trained with labels, "
                "some of them dropped."
            )
        found = getattr(config, "num_classes", None)
    if found is None:
        raise ValueError(
            "guidance must know the null class: give num_classes, its index, since this denoiser "
            "does not say it."
        )
    return _check_classes(found)


def _check_interval(interval: tuple[int, int] | None) -> tuple[int, int] | None:
    if interval is None:
        return None
    pair = tuple(interval)
    whole = all(isinstance(step, int) and not isinstance(step, bool) for step in pair)
    if len(pair) != 2 or not whole or not 1 <= pair[0] <= pair[1]:
        raise ValueError(
            f"interval must be two step numbers (low, high) with 1 <= low <= high, got "
            f"{interval!r}."
        )
    return pair[0], pair[1]

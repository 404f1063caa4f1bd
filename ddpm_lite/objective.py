"""What training minimises, and what it stands for: L_simple and the variational bound.

The bound on −log p_θ(x_0) is, in nats and term by term,

    L_T = KL(q(x_T | x_0) ∥ N(0, I))                              `prior_term`
    L_{t−1} = KL(q(x_{t−1} | x_t, x_0) ∥ p_θ(x_{t−1} | x_t))      `bound_term`, t ≥ 2
    L_0 = −log p_θ(x_0 | x_1)                                     `bound_term`, t = 1

with x_t = √ᾱ_t·x_0 + √(1−ᾱ_t)·ε for one ε. `simple_loss` keeps the squared error inside L_{t−1}
and drops the weight in front, which `dropped_weights` holds.

Steps t are those of the diffusion's own chain, 1..T. On a respaced chain the denoiser is called
with the numbers that those steps have in the original chain, `schedule.timesteps[t]`. The bound of
a respaced chain is that of the model which samples along it: another model with another bound, not
an estimate of the long chain's.

`levels` says what kind of data x_0 is, and has no default anywhere: an int K for data on the K
values −1 + 2k/(K−1), which have probabilities; None for continuous data, which have densities.

The denoiser sees x_t in the dtype of x_0 (at least float32). Everything after it is computed in
float64 and cast last: the terms divide small differences by small variances.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_lite.process import Gaussian, GaussianDiffusion, Step

STEP_SAMPLING = ("uniform", "antithetic", "stratified")

Denoiser = Callable[..., Tensor]
Clip = tuple[float, float] | None


# ---- what training minimises --------------------------------------------------------------------


def simple_loss(
    denoiser: Denoiser,
    diffusion: GaussianDiffusion,
    x0: Tensor,
    t: Step,
    noise: Tensor,
    y: Tensor | None = None,
) -> Tensor:
    """The mean over coordinates of (target − output)² at x_t = √ᾱ_t·x_0 + √(1−ᾱ_t)·ε: (B,).

    The target is what the denoiser predicts: ε, x_0, or v = √ᾱ_t·ε − √(1−ᾱ_t)·x_0. Of a denoiser
    with a learned variance only the prediction is compared; its variance gets no gradient here.

    Book: (5.21).
    Paper: DDPM Eq. 14 (there summed over coordinates).

    Args:
        x0: (B, …). noise: ε, same shape. t: 1..T, an int or int64 (B,). y: int64 (B,) or None.

    Raises:
        ValueError: if a step is out of range or a shape does not fit.
    """
    x_t = _noised(diffusion, x0, t, noise)
    output = _ask(denoiser, diffusion, x_t, t, y)
    return _mean_squared_error(output, diffusion, x0, x_t, t, noise)


def hybrid_loss(
    denoiser: Denoiser,
    diffusion: GaussianDiffusion,
    x0: Tensor,
    t: Step,
    noise: Tensor,
    *,
    levels: int | None,
    weight: float,
    y: Tensor | None = None,
) -> Tensor:
    """L_simple + weight·T·L_{t−1}, the second in bits per dimension, for a learned variance: (B,).

    In L_{t−1} the prediction is held fixed, so this term trains the variance and nothing else, and
    L_simple alone trains the mean. The factor T is there because a mean over random t estimates
    the bound's sum divided by T. Improved DDPM's λ = 0.001 is ``weight=0.001``.

    Book: (5.34).
    Paper: Improved DDPM section 3.1.
    Raises:
        ValueError: if the variance is not learned, the weight is negative, or as `bound_term`.
    """
    if diffusion.variance != "learned":
        raise ValueError(
            "hybrid_loss trains a learned variance; this diffusion has "
            f"variance={diffusion.variance!r}, for which simple_loss is all there is."
        )
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight must be a number of at least 0, got {weight!r}.")
    _check_levels(levels)
    x_t = _noised(diffusion, x0, t, noise)
    output = _ask(denoiser, diffusion, x_t, t, y)
    simple = _mean_squared_error(output, diffusion, x0, x_t, t, noise)
    prediction, raw_variance = output.chunk(2, dim=1)
    frozen = torch.cat([prediction.detach(), raw_variance], dim=1)
    nats = _term(frozen, diffusion, x0, x_t, t, levels, clip=None)
    return simple + weight * diffusion.T * _bits_per_dim(nats, x0).to(simple.dtype)


def sample_steps(n: int, T: int, generator: torch.Generator, method: str) -> Tensor:
    """n random steps in 1..T, each of them uniform; int64 (n,) on the generator's device.

        uniform      independent
        antithetic   in pairs t, T+1−t: row i and row i + ⌈n/2⌉ (the last pair is cut if n is odd)
        stratified   one from each of n equal parts of 1..T, in random order

    All three estimate Σ_t without bias, because each step alone is uniform. They differ in how
    steps of one batch hang together, and so in the variance of the batch's mean.

    The stratified draw is exact also where n does not divide T: it cuts the n·T numbers
    0..n·T−1 into n parts of T, draws one number from each, and p//n + 1 is the step.

    Source: a batch that covers the steps evenly is the "low-discrepancy sampler" of Kingma et al.,
        arXiv 2107.00630, appendix I, where one random number shifts all the parts together.
    Book: (5.35).
    Raises:
        ValueError: if n or T is not at least 1, or the method is none of these.
    """
    for name, value in (("the number of steps", n), ("T", T)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an int of at least 1, got {value!r}.")
    if method not in STEP_SAMPLING:
        raise ValueError(f"method must be one of {', '.join(STEP_SAMPLING)}, got {method!r}.")
    device = generator.device
    drawn = n if method != "antithetic" else (n + 1) // 2
    step = torch.randint(T, (drawn,), generator=generator, device=device)
    if method == "uniform":
        return step + 1
    if method == "antithetic":
        return torch.cat([step + 1, T - step])[:n]
    part = torch.randperm(n, generator=generator, device=device)
    return (part * T + step) // n + 1


# ---- the variational bound ----------------------------------------------------------------------


@dataclass(frozen=True)
class Bound:
    """The bound on −log p_θ(x_0) by its terms, in nats; float64 whatever the dtype of x_0.

    prior: L_T, (B,). steps: (B, T−1), column i is L_{t−1} for t = i + 2. decoder: L_0, (B,).
    """

    prior: Tensor
    steps: Tensor
    decoder: Tensor

    @property
    def total(self) -> Tensor:
        """L_T + Σ_{t≥2} L_{t−1} + L_0, (B,).

        Book: (5.12), (5.13).
        Paper: DDPM Eq. 5.
        """
        return self.prior + self.steps.sum(1) + self.decoder


def prior_term(diffusion: GaussianDiffusion, x0: Tensor) -> Tensor:
    """L_T = KL(q(x_T | x_0) ∥ N(0, I)) in nats, summed over coordinates: (B,).

    What is left of x_0 after T steps. It has no parameters.

    Book: (5.14).
    Paper: DDPM Eq. 5, its first term.
    """
    return _prior(diffusion, x0).to(_result_dtype(x0))


def bound_term(
    denoiser: Denoiser,
    diffusion: GaussianDiffusion,
    x0: Tensor,
    t: Step,
    noise: Tensor,
    *,
    levels: int | None,
    y: Tensor | None = None,
    clip: Clip = None,
) -> Tensor:
    """One term of the bound for each row, at the x_t that ε gives, in nats: (B,).

    For t ≥ 2, L_{t−1} = KL(q(x_{t−1} | x_t, x_0) ∥ p_θ(x_{t−1} | x_t)). For t = 1,
    L_0 = −log p_θ(x_0 | x_1), the decoder. p_θ is `diffusion.reverse`, except that the decoder
    cannot have the variance β̃_1 = 0: with variance `posterior` it has the smallest positive β̃ of
    the chain (β_1 if T = 1). With `beta` it has β_1; with `learned`, what `reverse` says at s = 0.

    Book: (5.15), (5.16), (5.18).
    Paper: DDPM Eqs. 5, 8 and 12.

    Args:
        x0: (B, …). noise: ε, same shape. t: 1..T, an int or int64 (B,). y: int64 (B,) or None.
        clip: the interval to which x̂_0 is clamped. It changes the model, so it may be in its bound.

    Raises:
        ValueError: if a step is out of range, a shape does not fit, or x0 is not on its levels.
    """
    _check_levels(levels)
    nats = _asked_term(denoiser, diffusion, x0, t, noise, levels, y, clip)
    return nats.to(_result_dtype(x0))


@torch.no_grad()
def variational_bound(
    denoiser: Denoiser,
    diffusion: GaussianDiffusion,
    x0: Tensor,
    *,
    levels: int | None,
    generator: torch.Generator,
    y: Tensor | None = None,
    clip: Clip = None,
    batch_size: int = 512,
    progress: bool = False,
) -> Bound:
    """Every term of the bound for every row of x0, with one draw of ε per row and step.

    An unbiased estimate of the bound, from B·T evaluations of the denoiser. Give a network in
    evaluation mode: dropout would loosen the bound. The noise is drawn step by step, for all rows
    at once, so the numbers do not depend on `batch_size`, the most rows in one call.

    Book: (5.5), (5.13).
    Paper: DDPM Eq. 5.
    Raises:
        ValueError: if a shape does not fit, x0 is not on its levels, or batch_size < 1.
    """
    _check_levels(levels)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be an int of at least 1, got {batch_size!r}.")
    B, T = len(x0), diffusion.T
    if B == 0:
        raise ValueError(f"x0 must hold at least one row, got shape {tuple(x0.shape)}.")
    steps_at_once = max(1, batch_size // B)
    values = []  # for t = 1, …, T, row by row
    with tqdm(total=B * T, disable=not progress, desc="bound", unit="call") as bar:
        for step in torch.arange(1, T + 1).split(steps_at_once):
            noise = torch.cat([_noise_like(x0, generator) for _ in step])
            t = step.repeat_interleave(B).to(x0.device)
            row = torch.arange(B).repeat(len(step)).to(x0.device)
            for part in torch.arange(len(t)).split(batch_size):
                few, label = row[part], None if y is None else y[row[part]]
                values.append(
                    _asked_term(
                        denoiser, diffusion, x0[few], t[part], noise[part], levels, label, clip
                    )
                )
                bar.update(len(part))
    terms = torch.cat(values).reshape(T, B)
    return Bound(prior=_prior(diffusion, x0), steps=terms[1:].T, decoder=terms[0])


def bits_per_dim(
    denoiser: Denoiser,
    diffusion: GaussianDiffusion,
    x0: Tensor,
    *,
    levels: int,
    generator: torch.Generator,
    y: Tensor | None = None,
    clip: Clip = None,
    batch_size: int = 512,
    progress: bool = False,
) -> Tensor:
    """The bound's total divided by D·log 2, float64 (B,): what it costs to store one coordinate.

    Only discrete data have such a number, so `levels` must be an int. A model that knows nothing
    needs log2(levels) bits. The other arguments are those of `variational_bound`.

    Book: (5.33).
    Raises:
        ValueError: if levels is None, or as `variational_bound`.
    """
    if levels is None:
        raise ValueError(
            "bits per dimension needs data with levels, got levels=None: continuous data have a "
            "density, whose logarithm depends on the unit of length; use variational_bound."
        )
    bound = variational_bound(
        denoiser,
        diffusion,
        x0,
        levels=levels,
        generator=generator,
        y=y,
        clip=clip,
        batch_size=batch_size,
        progress=progress,
    )
    return _bits_per_dim(bound.total, x0)


# ---- the decoder --------------------------------------------------------------------------------


def decoder_log_prob(x0: Tensor, law: Gaussian, levels: int | None) -> Tensor:
    """log p(x_0 | x_1) in nats, summed over coordinates: (B,).

    With K levels, level k sits at −1 + 2k/(K−1) and has the probability that `law` gives to the bin
    of half-width 1/(K−1) around it; the bins of levels 0 and K−1 are open outwards, so that the K
    probabilities sum to 1. With levels None it is the log density of `law`.

    Book: (5.31).
    Paper: DDPM Eq. 13.
    Raises:
        ValueError: if x0 has another shape than the law's mean or is not on its levels.
    """
    _check_levels(levels)
    if x0.shape != law.mean.shape:
        raise ValueError(
            f"x0 must have the shape of the law's mean, {tuple(law.mean.shape)}, got "
            f"{tuple(x0.shape)}."
        )
    exact = Gaussian(law.mean.double(), law.variance.double())
    if levels is None:
        return exact.log_prob(x0.double()).to(_result_dtype(law.mean))
    log_mass = _log_mass(exact, _level_of(x0, levels), levels)
    return log_mass.reshape(len(x0), -1).sum(1).to(_result_dtype(law.mean))


def decoder_log_masses(law: Gaussian, levels: int) -> Tensor:
    """The log probability of each of the K levels at each coordinate of `law`: (B, …, K).

    Book: (5.31), (5.32).
    Paper: DDPM Eq. 13.
    Raises:
        ValueError: if levels is not an int of at least 2.
    """
    if levels is None:
        raise ValueError("continuous data, levels=None, have no masses.")
    _check_levels(levels)
    level = torch.arange(levels, dtype=torch.float64, device=law.mean.device)
    variance = law.variance.double()
    variance = variance if variance.ndim == 0 else variance[..., None]
    exact = Gaussian(law.mean.double()[..., None], variance)
    return _log_mass(exact, level, levels).to(_result_dtype(law.mean))


def _log_mass(law: Gaussian, level: Tensor, levels: int) -> Tensor:
    """log(Φ(b) − Φ(a)) for the bin (a, b) of each level, standardised by `law`; float64.

    A difference of two Φ near 1 has no digits, so a bin right of the mean is mirrored to the left.
    There log(Φ(b) − Φ(a)) = log Φ(b) + log(1 − Φ(a)/Φ(b)), both from log Φ, which keeps its digits
    however far out the bin lies.
    """
    half = 1 / (levels - 1)
    centre = 2 * half * level - 1
    deviation = law.variance.sqrt()
    low, high = (centre - half - law.mean) / deviation, (centre + half - law.mean) / deviation
    first, last = level == 0, level == levels - 1
    # Of an open bin, the finite end becomes the right one, and Φ(left) is 0. Filled in after the
    # logarithms, so that no gradient passes through an infinity.
    mirror = torch.where(first | last, last, low + high > 0)
    left, right = torch.where(mirror, -high, low), torch.where(mirror, -low, high)
    log_right = torch.special.log_ndtr(right)
    log_ratio = torch.special.log_ndtr(left) - log_right
    log_ratio = log_ratio.masked_fill(first | last, -math.inf)
    return log_right + (-torch.expm1(log_ratio)).log()


def _level_of(x0: Tensor, levels: int) -> Tensor:
    """k for x_0 = −1 + 2k/(K−1), float64, shaped like x0. Values on a GPU are not read back."""
    position = (x0.detach().double() + 1) * ((levels - 1) / 2)
    level = position.round()
    if x0.device.type == "cpu":
        # a hundredth of the distance between levels: far above rounding, far below the distance
        sits = ((position - level).abs() < 0.01) & (level >= 0) & (level <= levels - 1)
        if not sits.all():
            raise ValueError(
                f"with {levels} levels x0 must sit on -1 + 2k/{levels - 1}, k = 0..{levels - 1}, "
                f"but one value is {x0[~sits][0].item()}; continuous data take levels=None."
            )
    return level


# ---- the weights ---------------------------------------------------------------------------------


def dropped_weights(diffusion: GaussianDiffusion) -> Tensor:
    """What L_simple leaves out: ω_t in L_{t−1} = ω_t·‖target − output‖² + const; float64 (T+1,).

    For ε-prediction ω_t = β_t²/(2σ_t²·α_t·(1−ᾱ_t)), where σ_t² is β̃_t or β_t by
    `diffusion.variance`. From ‖x_0 − x̂_0‖² = ‖ε − ε̂‖²·(1−ᾱ_t)/ᾱ_t = (1−ᾱ_t)·‖v − v̂‖² follow the
    weights of the other predictions. The squared norm is D times `simple_loss`. The constant is 0
    for `posterior`, and the KL of two variances, independent of the denoiser, for `beta`.

    At t = 1 the same formula, with the decoder's variance for σ_1², is the weight in L_0 for
    continuous data; with levels, L_0 is no function of the squared error alone. Entry 0 is nan.

    Book: (5.18), (5.19), (5.20).
    Paper: DDPM Eq. 12.
    Raises:
        ValueError: for a learned variance, which has no weight before the denoiser is asked.
    """
    if diffusion.variance == "learned":
        raise ValueError(
            "a learned variance differs from point to point, so L_{t-1} has no weight that "
            "depends on t alone; dropped_weights needs variance 'posterior' or 'beta'."
        )
    schedule = diffusion.schedule
    noise, beta = schedule.one_minus_alpha_bar, schedule.beta
    if diffusion.variance == "beta":
        variance = beta
    else:
        variance = schedule.posterior_variance
        variance[1] = diffusion._smallest_variance(variance)
    before = torch.cat([torch.ones(1, dtype=torch.float64), schedule.alpha_bar[:-1]])
    weight = before * (beta / noise) ** 2 / (2 * variance)  # of ‖x_0 − x̂_0‖²
    weight[0] = math.nan
    if diffusion.prediction == "eps":
        return weight * noise / schedule.alpha_bar
    return weight * noise if diffusion.prediction == "v" else weight


# ---- beneath -------------------------------------------------------------------------------------


def _noised(diffusion: GaussianDiffusion, x0: Tensor, t: Step, noise: Tensor) -> Tensor:
    """x_t, after a look at t: q_sample alone would let t = 0 pass, where no denoiser is asked."""
    diffusion._check_step(t, x0, low=1)
    return diffusion.q_sample(x0, t, noise)


def _ask(
    denoiser: Denoiser, diffusion: GaussianDiffusion, x_t: Tensor, t: Step, y: Tensor | None
) -> Tensor:
    """The denoiser's output at x_t, called with step numbers (B,) of the original chain."""
    schedule = diffusion.schedule
    step = torch.full((len(x_t),), t, device=x_t.device) if isinstance(t, int) else t
    if schedule.timesteps[-1] != schedule.T:  # a respaced chain
        step = schedule.timesteps.to(step.device)[step]
    return denoiser(x_t, step) if y is None else denoiser(x_t, step, y)


def _mean_squared_error(
    output: Tensor, diffusion: GaussianDiffusion, x0: Tensor, x_t: Tensor, t: Step, noise: Tensor
) -> Tensor:
    guess = diffusion.predict(output, x_t, t)
    truth = replace(guess, x0=x0, eps=noise)
    error = getattr(truth, diffusion.prediction) - getattr(guess, diffusion.prediction)
    return error.square().reshape(len(error), -1).mean(1)


def _prior(diffusion: GaussianDiffusion, x0: Tensor) -> Tensor:
    last = diffusion.marginal(x0.double(), diffusion.T)
    return last.kl(Gaussian(torch.zeros_like(last.mean), torch.ones_like(last.variance)))


def _asked_term(
    denoiser: Denoiser,
    diffusion: GaussianDiffusion,
    x0: Tensor,
    t: Step,
    noise: Tensor,
    levels: int | None,
    y: Tensor | None,
    clip: Clip,
) -> Tensor:
    x_t = _noised(diffusion, x0, t, noise)
    output = _ask(denoiser, diffusion, x_t, t, y)
    return _term(output, diffusion, x0, x_t, t, levels, clip)


def _term(
    output: Tensor,
    diffusion: GaussianDiffusion,
    x0: Tensor,
    x_t: Tensor,
    t: Step,
    levels: int | None,
    clip: Clip,
) -> Tensor:
    """L_{t−1} or L_0 from the denoiser's output, float64 (B,)."""
    output, x0, x_t = output.double(), x0.double(), x_t.double()

    def divergence(t: Step) -> Tensor:
        truth = diffusion.posterior(x_t, x0, t)
        return truth.kl(diffusion.reverse(output, x_t, t, clip=clip))

    def decoder() -> Tensor:
        law = diffusion.reverse(output, x_t, 1, clip=clip)
        if diffusion.variance == "posterior":
            law = Gaussian(law.mean, diffusion._smallest_variance(x_t))
        return -decoder_log_prob(x0, law, levels)

    if isinstance(t, int):
        return decoder() if t == 1 else divergence(t)
    if diffusion.T == 1:
        return decoder()
    if t.device.type == "cpu" and not (t == 1).any():
        return divergence(t)
    # Both for every row, and then a choice: which rows have t = 1 is not read back from a GPU.
    return torch.where(t == 1, decoder(), divergence(t.clamp(min=2)))


def _bits_per_dim(nats: Tensor, x0: Tensor) -> Tensor:
    return nats / (x0[0].numel() * math.log(2))


def _noise_like(x0: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(
        x0.shape, generator=generator, dtype=_result_dtype(x0), device=generator.device
    )
    return noise.to(x0.device)


def _result_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _check_levels(levels: int | None) -> None:
    if levels is None:
        return
    if isinstance(levels, bool) or not isinstance(levels, int) or levels < 2:
        raise ValueError(
            f"levels must be an int of at least 2, or None for continuous data, got {levels!r}."
        )

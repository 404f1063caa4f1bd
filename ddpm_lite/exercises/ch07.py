"""The exercises of chapter 7."""

from __future__ import annotations

import numpy as np
import torch

from ddpm_lite.exercises.exercise import Exercise
from ddpm_lite.exercises.mistakes import known
from ddpm_lite.exercises.standins import Stepwise


def _strong_chain(rng, T):
    """ᾱ_0..ᾱ_T of a short chain with large steps, on which a slip shows."""
    return np.concatenate([[1.0], np.cumprod(1 - rng.uniform(0.05, 0.6, T))])


# ---- 7.1 -----------------------------------------------------------------------------------------


def reverse_step(x_t, t, eps, z, alpha_bar):
    """The mean, and √β̃_t times the fresh noise; β̃_1 = 0."""
    alpha = alpha_bar[t] / alpha_bar[t - 1]
    mean = (x_t - (1 - alpha) / (1 - alpha_bar[t]) ** 0.5 * eps) / alpha**0.5
    variance = (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * (1 - alpha)
    return mean + variance**0.5 * z


def _with_beta(x_t, t, eps, z, alpha_bar):
    beta = 1 - alpha_bar[t] / alpha_bar[t - 1]
    return reverse_step(x_t, t, eps, 0 * z, alpha_bar) + beta**0.5 * z


def _variance_as_deviation(x_t, t, eps, z, alpha_bar):
    beta = 1 - alpha_bar[t] / alpha_bar[t - 1]
    variance = (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * beta
    return reverse_step(x_t, t, eps, 0 * z, alpha_bar) + variance * z


def _all_the_noise(x_t, t, eps, z, alpha_bar):
    alpha = alpha_bar[t] / alpha_bar[t - 1]
    fresh = reverse_step(0 * x_t, t, 0 * eps, z, alpha_bar)
    return (x_t - (1 - alpha_bar[t]) ** 0.5 * eps) / alpha**0.5 + fresh


def _all_the_shrinking(x_t, t, eps, z, alpha_bar):
    alpha = alpha_bar[t] / alpha_bar[t - 1]
    fresh = reverse_step(0 * x_t, t, 0 * eps, z, alpha_bar)
    share = (1 - alpha) / (1 - alpha_bar[t]) ** 0.5
    return (x_t - share * eps) / alpha_bar[t] ** 0.5 + fresh


def _no_root_below(x_t, t, eps, z, alpha_bar):
    alpha = alpha_bar[t] / alpha_bar[t - 1]
    fresh = reverse_step(0 * x_t, t, 0 * eps, z, alpha_bar)
    return (x_t - (1 - alpha) / (1 - alpha_bar[t]) * eps) / alpha**0.5 + fresh


def _every_step(rng):
    T = int(rng.integers(4, 10))
    alpha_bar = _strong_chain(rng, T)
    return [(rng.normal(size=4), t, *rng.normal(size=(2, 4)), alpha_bar) for t in range(1, T + 1)]


# ---- 7.3 -----------------------------------------------------------------------------------------


def quartile_losses(t, loss, T):
    """The rows of each quarter, averaged."""
    quarter = (t - 1) * 4 // T
    return torch.stack([loss[quarter == q].mean() for q in range(4)])


def _counted_from_zero(t, loss, T):
    quarter = (t * 4 // T).clamp(max=3)
    return torch.stack([loss[quarter == q].mean() for q in range(4)])


def _summed(t, loss, T):
    quarter = (t - 1) * 4 // T
    return torch.stack([loss[quarter == q].sum() for q in range(4)])


def _over_the_batch(t, loss, T):
    return _summed(t, loss, T) / len(loss)


def _quarters_of_the_batch(t, loss, T):
    return torch.stack([part.mean() for part in loss.tensor_split(4)])


def _quarters_of_the_rows_in_order(t, loss, T):
    return _quarters_of_the_batch(t, loss[t.argsort(stable=True)], T)


def _batches(rng):
    """Every step at least once, small steps more often than large ones; the loss falls with t."""
    calls = []
    for T in (8, 12, 20):
        t = np.concatenate([np.arange(1, T + 1), rng.integers(1, T // 2 + 1, 2 * T)])
        t = rng.permutation(t)
        calls.append((t, rng.uniform(0.5, 1.5, len(t)) * 3 / t, T))
    return calls


# ---- 7.4 -----------------------------------------------------------------------------------------


def ema_shares(n, decay):
    """Every step shrinks the shares so far and gives the newest weights the rest."""
    shares = torch.zeros(n + 1, dtype=torch.float64)
    shares[0] = 1.0
    for k in range(1, n + 1):
        d = min(decay, (1 + k) / (10 + k))
        shares = shares * d
        shares[k] = 1 - d
    return shares


def _shares(decays):
    """The shares for any decays d_1..d_n."""
    shares = [1.0]
    for d in decays:
        shares = [d * share for share in shares] + [1 - d]
    return torch.tensor(shares, dtype=torch.float64)


def _without_warm_up(n, decay):
    return _shares([decay] * n)


def _warm_up_alone(n, decay):
    return _shares([(1 + k) / (10 + k) for k in range(1, n + 1)])


def _one_step_behind(n, decay):
    return _shares([min(decay, k / (9 + k)) for k in range(1, n + 1)])


def _newest_first(n, decay):
    return ema_shares(n, decay).flip(0)


def _begun_at_zero(n, decay):
    shares = ema_shares(n, decay)
    shares[0] = 0.0
    return shares


def _lengths_and_decays(rng):
    """Short averages, in which the start still counts; and d on both sides of the warm-up."""
    lengths = [1, 2, int(rng.integers(3, 5)), *map(int, rng.integers(5, 10, 4))]
    low, high = rng.uniform(0.3, 0.4, 4), rng.uniform(0.8, 0.95, 3)
    return list(zip(lengths, map(float, [*high[:2], *low[:2], *low[2:], high[2]]), strict=True))


# ---- 7.5 -----------------------------------------------------------------------------------------


def clipped_mean(x_t, t, eps, alpha_bar):
    """The posterior mean at the clipped guess."""
    alpha = alpha_bar[t] / alpha_bar[t - 1]
    x0 = (x_t - (1 - alpha_bar[t]) ** 0.5 * eps) / alpha_bar[t] ** 0.5
    x0 = x0.clamp(-1, 1)
    weight_x0 = alpha_bar[t - 1] ** 0.5 * (1 - alpha) / (1 - alpha_bar[t])
    weight_xt = alpha**0.5 * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])
    return weight_x0 * x0 + weight_xt * x_t


def _from_eps(x_t, t, eps, alpha_bar):
    return reverse_step(x_t, t, eps, torch.zeros_like(x_t), alpha_bar)


def _stale(x_t, t, eps, alpha_bar):
    """The clipped guess together with the old noise, in the form of (4.18) with the noise."""
    x0 = (x_t - (1 - alpha_bar[t]) ** 0.5 * eps) / alpha_bar[t] ** 0.5
    before = alpha_bar[t - 1]
    variance = (1 - before) / (1 - alpha_bar[t]) * (1 - alpha_bar[t] / before)
    return before**0.5 * x0.clamp(-1, 1) + (1 - before - variance) ** 0.5 * eps


def _result_clipped(x_t, t, eps, alpha_bar):
    return _from_eps(x_t, t, eps, alpha_bar).clamp(-1, 1)


def _noise_clipped(x_t, t, eps, alpha_bar):
    return _from_eps(x_t, t, eps.clamp(-1, 1), alpha_bar)


def _far_guesses(rng):
    """Points and noises for which the guess leaves [−1, 1] in both directions, and stays inside."""
    T = int(rng.integers(4, 10))
    alpha_bar = _strong_chain(rng, T)
    guess = np.array([2.5, -1.8, 0.4, -0.6, 1.6])
    calls = []
    for t in range(1, T + 1):
        eps, x0 = rng.normal(size=5) + 1.2, guess * rng.uniform(0.9, 1.1, 5)
        calls.append(
            (alpha_bar[t] ** 0.5 * x0 + (1 - alpha_bar[t]) ** 0.5 * eps, t, eps, alpha_bar)
        )
    return calls


# ---- 7.6 -----------------------------------------------------------------------------------------


def generate(denoiser, x_T, noises, alpha_bar):
    """All steps from T to 1; the last one adds no noise, because its variance is 0."""
    x = x_T
    for t in range(len(alpha_bar) - 1, 0, -1):
        eps = denoiser(x, torch.full((len(x),), t))
        alpha = alpha_bar[t] / alpha_bar[t - 1]
        mean = (x - (1 - alpha) / (1 - alpha_bar[t]) ** 0.5 * eps) / alpha**0.5
        variance = (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * (1 - alpha)
        x = mean + variance**0.5 * noises[t]
    return x


def _walk(denoiser, x, noises, alpha_bar, *, last=1, late=0, shift=0):
    """The walk with slips: where it stops, which t the network and the noise are asked for."""
    for t in range(len(alpha_bar) - 1, last - 1, -1):
        eps = denoiser(x, torch.full((len(x),), t - late))
        x = reverse_step(x, t, eps, noises[t - shift], alpha_bar)
    return x


def _stopped_early(denoiser, x_T, noises, alpha_bar):
    return _walk(denoiser, x_T, noises, alpha_bar, last=2)


def _network_told_too_little(denoiser, x_T, noises, alpha_bar):
    return _walk(denoiser, x_T, noises, alpha_bar, late=1)


def _noise_of_the_next_step(denoiser, x_T, noises, alpha_bar):
    return _walk(denoiser, x_T, noises, alpha_bar, shift=1)


def _without_noise(denoiser, x_T, noises, alpha_bar):
    return _walk(denoiser, x_T, 0 * noises, alpha_bar)


def _asked_once(denoiser, x_T, noises, alpha_bar):
    eps = denoiser(x_T, torch.full((len(x_T),), len(alpha_bar) - 1))
    return _walk(lambda x, t: eps, x_T, noises, alpha_bar)


def _chains(rng):
    calls = []
    for _ in range(3):
        T = int(rng.integers(4, 8))
        slopes, shifts = rng.uniform(0.3, 0.9, T + 1), rng.uniform(-0.8, 0.8, T + 1)
        network = Stepwise(tuple(slopes.tolist()), tuple(shifts.tolist()))
        noises = rng.normal(size=(T + 1, 5, 3))
        calls.append((network, rng.normal(size=(5, 3)), noises, _strong_chain(rng, T)))
    return calls


EXERCISES = [
    Exercise(
        id="7.1",
        title="Your own step",
        kind="code",
        points=3,
        minutes=15,
        difficulty=2,
        equation="7.2",
        inputs=_every_step,
        reference=reverse_step,
        wrong={
            **known("beta-for-beta-tilde", _with_beta, see="4.10"),
            "variance-as-deviation": (
                _variance_as_deviation,
                "z is multiplied by the standard deviation, the root of β̃_t; you multiplied by "
                "the variance.",
            ),
            "all-the-noise": (
                _all_the_noise,
                "You took away all the noise in x_t. The step takes the share (1 − α_t)/√(1 − ᾱ_t) "
                "of ε, see (7.2).",
            ),
            "all-the-shrinking": (
                _all_the_shrinking,
                "Dividing by √ᾱ_t undoes the shrinking of all steps; this one undoes its own, "
                "√α_t, see (7.2).",
            ),
            "no-root-below": (
                _no_root_below,
                "The factor of ε is (1 − α_t)/√(1 − ᾱ_t); you left out the root below.",
            ),
        },
        hints=(
            "You need two numbers of the table: alpha_bar[t] and alpha_bar[t − 1].",
            "α_t is their ratio, and β̃_t = (1 − ᾱ_{t−1})/(1 − ᾱ_t)·(1 − α_t), which is 0 at t = 1.",
            "(x_t − (1 − α)/√(1 − alpha_bar[t])·eps)/√α + √β̃·z.",
        ),
    ),
    Exercise(
        id="7.2",
        title="Predict the number",
        kind="number",
        points=1,
        minutes=5,
        difficulty=1,
        equation="7.8",
        reference=1e-3,
        tolerance=1e-2,
        wrong={
            "wrong-way": (-1e-3, "Right in size. The weight moves against its gradient."),
            "plain-gradient-step": (
                2e-6,
                "That is r times the gradient, a plain gradient step. Adam divides by the "
                "gradient's size, see (7.8).",
            ),
            "nothing-corrected": (
                1e-3 * 0.1 / 0.001**0.5,
                "Both averages begin at zero and are corrected by 1 − b^n; you left that out, "
                "see (7.7).",
            ),
            "denominator-corrected": (
                1e-4,
                "The average of the gradient is corrected too: at n = 1 it is divided by 0.1.",
            ),
            "numerator-corrected": (
                1e-3 / 0.001**0.5,
                "The average of the square is corrected too: at n = 1 it is divided by 0.001.",
            ),
        },
        hints=(
            "Put n = 1 into (7.7).",
            "Both corrections together leave the gradient over its own absolute value.",
            "Minus r times the sign of the gradient, which is negative.",
        ),
    ),
    Exercise(
        id="7.3",
        title="Loss by quarters",
        kind="code",
        points=2,
        minutes=10,
        difficulty=2,
        equation="7.11",
        inputs=_batches,
        reference=quartile_losses,
        wrong={
            "counted-from-zero": (
                _counted_from_zero,
                "Your quarters begin one step early: t runs from 1, so its quarter is "
                "⌊4(t − 1)/T⌋.",
            ),
            **known("sum-for-mean", _summed, "You summed; the mean over the rows is asked for."),
            "over-the-batch": (
                _over_the_batch,
                "You divided by the number of all rows. Each quarter has its own number of rows.",
            ),
            "quarters-of-the-batch": (
                _quarters_of_the_batch,
                "Those are the quarters of the batch in the order of its rows. A row's quarter "
                "follows from its t.",
            ),
            "equal-counts": (
                _quarters_of_the_rows_in_order,
                "You sorted by t and made four groups of equally many rows. The quarters are "
                "those of 1..T, however many rows fall in each.",
            ),
        },
        hints=(
            "First the quarter of each row, a number 0..3; then four means.",
            "The quarter is (t − 1) * 4 // T, in whole numbers.",
            "loss[quarter == q].mean() for q = 0, 1, 2, 3, put together by torch.stack.",
        ),
    ),
    Exercise(
        id="7.4",
        title="Who is in the average?",
        kind="code",
        points=3,
        minutes=15,
        difficulty=3,
        equation="7.15",
        inputs=_lengths_and_decays,
        reference=ema_shares,
        wrong={
            "without-warm-up": (
                _without_warm_up,
                "You used d at every step. At the beginning (1 + k)/(10 + k) is the smaller of "
                "the two.",
            ),
            "warm-up-alone": (
                _warm_up_alone,
                "You used (1 + k)/(10 + k) at every step. Once it exceeds d, d is used.",
            ),
            "one-step-behind": (
                _one_step_behind,
                "Your warm-up is one step behind: step k = 1 uses 2/11.",
            ),
            "newest-first": (_newest_first, "Right, but reversed: θ_0 comes first."),
            "begun-at-zero": (
                _begun_at_zero,
                "The average begins at θ_0, not at zero: θ_0 keeps the product of all d_k, and "
                "the shares sum to one.",
            ),
        },
        hints=(
            "Follow one step of (7.14): what happens to the shares of all earlier weights, and "
            "what is the share of the newest?",
            "Begin with the share 1 for θ_0. Step k multiplies all shares by d_k and gives θ_k "
            "the share 1 − d_k.",
            "A loop over k = 1..n with d = min(decay, (1 + k)/(10 + k)). Check: the shares sum "
            "to 1.",
        ),
    ),
    Exercise(
        id="7.5",
        title="Clip, and mean it",
        kind="code",
        points=3,
        minutes=15,
        difficulty=2,
        equation="7.19",
        inputs=_far_guesses,
        reference=clipped_mean,
        wrong={
            "not-clipped": (
                _from_eps,
                "That is the mean without clipping: (7.2) uses the old ε, which knows nothing of "
                "the clipped guess.",
            ),
            **known("stale-eps", _stale, see="4.48"),
            "result-clipped": (
                _result_clipped,
                "You clipped the mean. It is the guess of x_0 that must lie in [−1, 1]; x_{t−1} "
                "holds noise and may leave it.",
            ),
            "noise-clipped": (
                _noise_clipped,
                "You clipped ε. The noise may be as large as it likes; the guess of x_0 may not.",
            ),
        },
        hints=(
            "Three steps: the guess of x_0, clip it, the posterior mean with it.",
            "The guess is (4.21), and the posterior mean (4.12) takes x_0 and x_t.",
            "weight of x_0: √ᾱ_{t−1}·(1 − α_t)/(1 − ᾱ_t); weight of x_t: √α_t·(1 − ᾱ_{t−1})/(1 − "
            "ᾱ_t).",
        ),
    ),
    Exercise(
        id="7.6",
        title="Your own sampler",
        kind="code",
        points=3,
        minutes=20,
        difficulty=3,
        equation="7.5",
        inputs=_chains,
        reference=generate,
        wrong={
            "stopped-early": (
                _stopped_early,
                "You stopped at x_1. The last step goes from t = 1 to t = 0.",
            ),
            "network-told-too-little": (
                _network_told_too_little,
                "The network is asked about x_t, so it is told t; you told it t − 1.",
            ),
            "noise-of-the-next-step": (
                _noise_of_the_next_step,
                "Step t uses noises[t]; you used noises[t − 1].",
            ),
            "without-noise": (
                _without_noise,
                "You left out the fresh noise: each step adds √β̃_t·noises[t].",
            ),
            "asked-once": (
                _asked_once,
                "You asked the network once, at x_T. Every step asks again, about its own x_t.",
            ),
        },
        hints=(
            "T is len(alpha_bar) − 1, and the loop is range(T, 0, -1).",
            "In the loop: ask the network about (x, t), with torch.full((len(x),), t) for t; then "
            "one reverse step with noises[t].",
            "x = reverse_step(x, t, eps, noises[t], alpha_bar), and after the loop return x.",
        ),
    ),
    Exercise(
        id="7.7",
        title="Explain",
        kind="explain",
        points=3,
        minutes=15,
        difficulty=2,
        equation="7.12",
        reference=(
            "Run B may have memorised. The minimum of the training loss over all functions is not "
            "a model of digits but the lookup table (7.12), whose training loss is far below "
            "anything that a predictor of unseen digits can reach, and whose samples are training "
            "images; a network with many parameters and many steps moves towards it. Three "
            "measurements show it: the loss on held-out images at each t, which for a memorising "
            "network is far above that on training images; the distances of samples to their "
            "nearest training image, compared with those of held-out images, and the share that "
            "is near to one training image only; and the Fréchet distance to images held out, "
            "beside its floor. The first argument fails because the loss is measured on the "
            "training images. The bound on the likelihood of *new* digits needs images that the "
            "network has not seen, and there B may be much worse; besides, the simple loss drops "
            "the weights of the bound, so a third of the loss is not three times as good. The "
            "second argument fails because the distance is measured to the training images: a "
            "copy of the training set has distance zero to it. Against held-out images real "
            "digits themselves are not at zero but at the floor, and a distance to the training "
            "images below that of real images speaks for copying."
        ),
        rubric=(
            "Names memorising, and says that the minimiser of the training loss is the memoriser "
            "(7.12).",
            "Held-out loss compared with the training loss, at several t.",
            "Nearest training images, compared with those of held-out images.",
            "Distance to held-out images with its floor, in the place of the training images.",
            "Says that a likelihood bound on training images says nothing about new ones, or that "
            "the simple loss is not the bound.",
        ),
        hints=(
            "What is the smallest training loss that any function can have, and which one has it?",
            "Which of the numbers quoted were measured on images that the run has seen?",
            "Look at the right half of the figure in section 7.6, and at section 7.9.",
        ),
    ),
    Exercise(
        id="7.8",
        title="Predict the number",
        kind="number",
        points=1,
        minutes=5,
        difficulty=1,
        equation="7.23",
        reference=3 * 100_000 * 256 / 4000,
        tolerance=1e-2,
        wrong={
            "forward-only": (
                100_000 * 256 / 4000,
                "You counted the forward passes of the training only; the backward pass costs two "
                "more.",
            ),
            "backward-as-one": (
                2 * 100_000 * 256 / 4000,
                "The backward pass computes two products for each one of the forward pass: three "
                "in all.",
            ),
            "another-chain": (
                3 * 100_000 * 256 / 1000,
                "That is for T = 1000; this chain has 4,000 steps.",
            ),
            "steps-of-one-image": (
                3 * 100_000 / 4000,
                "Every training step handles a whole batch, of 256 images.",
            ),
            "one-call-an-image": (
                3 * 100_000 * 256,
                "An image costs one call for each of the T steps: divide by T.",
            ),
        },
        hints=(
            "Count both in forward passes on one image.",
            "Training: three for each image of each batch. One sample: T of them.",
            "3 · 100,000 · 256 / 4,000.",
        ),
    ),
]

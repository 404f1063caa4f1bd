"""Parity with another implementation: diffusers' schedulers (a dependency of the tests only).

Their step t0 is ours minus 1: they count 0..T−1 and have no clean step. Where they keep float32
tables, the comparison is at float32 precision.
"""

import numpy as np
import pytest
import torch

from ddpm_lite import GaussianDiffusion, NoiseSchedule

diffusers = pytest.importorskip("diffusers", reason="parity needs the extra 'oracle'")

T = 1000
X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
EPS = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def close(left, right, rtol=2e-5, atol=2e-6):
    np.testing.assert_allclose(left, right, rtol=rtol, atol=atol)


def scheduler(kind, **settings):
    defaults = {"num_train_timesteps": T, "beta_start": 1e-4, "beta_end": 0.02}
    return kind(**{**defaults, "clip_sample": False, **settings})


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("linear", NoiseSchedule.linear(T)), ("squaredcos_cap_v2", NoiseSchedule.cosine(T))],
)
def test_alpha_bar(theirs, ours):
    table = scheduler(diffusers.DDPMScheduler, beta_schedule=theirs).alphas_cumprod
    close(ours.alpha_bar[1:], table.double(), rtol=2e-4, atol=0)


@pytest.mark.parametrize("t", [1, 2, 500, 1000])
def test_adding_noise(t):
    theirs = scheduler(diffusers.DDPMScheduler).add_noise(X, EPS, torch.full((4,), t - 1))
    close(GaussianDiffusion(NoiseSchedule.linear(T)).q_sample(X, t, EPS), theirs, atol=1e-5)


@pytest.mark.parametrize("clip", [None, (-1.0, 1.0)])
@pytest.mark.parametrize(
    ("ours", "theirs"), [("posterior", "fixed_small"), ("beta", "fixed_large")]
)
@pytest.mark.parametrize("t", [2, 10, 500, 999])
def test_ddpm_step(t, ours, theirs, clip):
    """Their step draws the noise itself: the same seed at the same shape gives the same draw."""
    them = scheduler(
        diffusers.DDPMScheduler, variance_type=theirs, clip_sample=clip is not None
    ).step(EPS, t - 1, X, generator=torch.Generator().manual_seed(2))
    d = GaussianDiffusion(NoiseSchedule.linear(T), "eps", ours)
    step = d.reverse(EPS, X, t, clip=clip)
    close(d.predict(EPS, X, t, clip).x0, them.pred_original_sample, rtol=1e-4, atol=1e-4)
    close(step.sample(torch.Generator().manual_seed(2)), them.prev_sample, rtol=3e-4, atol=3e-4)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_prediction_kinds(prediction):
    name = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}[prediction]
    them = scheduler(diffusers.DDPMScheduler, prediction_type=name).step(EPS, 399, X)
    us = GaussianDiffusion(NoiseSchedule.linear(T), prediction).predict(EPS, X, 400)
    close(us.x0, them.pred_original_sample, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("clip", [None, (-1.0, 1.0)])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_step(eta, clip):
    """One strided step 980 → 960. With clipping, ε must be re-derived; they do so on request."""
    them = scheduler(diffusers.DDIMScheduler, clip_sample=clip is not None, set_alpha_to_one=True)
    them.set_timesteps(50)
    out = them.step(
        EPS,
        979,
        X,
        eta=eta,
        use_clipped_model_output=True,
        generator=torch.Generator().manual_seed(3),
    )
    d = GaussianDiffusion(NoiseSchedule.linear(T))
    step = d.reverse(EPS, X, 980, 960, eta=eta, clip=clip)
    ours = step.sample(torch.Generator().manual_seed(3))
    close(ours, out.prev_sample, rtol=2e-3, atol=2e-3 if clip is None else 1e-4)


@pytest.mark.parametrize("S", [10, 50, 100])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_spacings(S, spacing):
    """Their step t0 stands at level t0 + 1, and `leading` starts from their step 0, our step 1."""
    them = scheduler(diffusers.DDIMScheduler, timestep_spacing=spacing)
    them.set_timesteps(S)
    ours = NoiseSchedule.linear(T).steps(S, spacing)
    assert (ours.flip(0) - 1).tolist() == them.timesteps.tolist()

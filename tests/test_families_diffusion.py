"""Diffusion on points: the library's process and bound around a small network."""

import math

import pytest
import torch

from ddpm_lite import solve, variational_bound
from ddpm_lite.data import toy, toy_law
from ddpm_lite.families.diffusion import Diffusion, PointNetwork
from ddpm_lite.oracle import GaussianData


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_chain_is_ddpms_at_any_length():
    for T in (25, 100, 1000):
        schedule = Diffusion(2, T=T, generator=seeded()).diffusion.schedule
        assert schedule.beta[1].item() == pytest.approx(0.1 / T, rel=1e-9)
        assert schedule.beta[T].item() == pytest.approx(20 / T, rel=1e-9)
        # Σ β = 10.05, and log(1 − β) ≤ −β
        assert schedule.alpha_bar[T] <= math.exp(-10.04)


def test_the_loss_is_the_squared_error_of_the_noise():
    # a network that answers 0 has E‖ε − 0‖²/D = 1: 40,000 numbers, 5 standard errors of √(2/n)
    model = Diffusion(2, width=8, generator=seeded())
    for weight in model.weights():
        weight.data.zero_()
    loss = model.loss(toy("mixture", 20_000, seeded(1)), seeded(2)).item()
    assert loss == pytest.approx(1, abs=5 * math.sqrt(2 / 40_000))


def test_the_bound_is_the_librarys_and_lies_below_the_exact_likelihood():
    # with the oracle in the network's place, E[elbo] ≤ E[log p]; the data are Gaussian
    law = GaussianData([0.3, -0.2], [[0.5, 0.2], [0.2, 0.3]])
    model = Diffusion(2, generator=seeded()).double()
    model.denoise = law.denoiser(model.diffusion.schedule)
    x = law.sample(400, seeded(1))
    gap = law.log_prob(x) - model.elbo(x, seeded(2))
    error = gap.std().item() / 20
    assert -3 * error < gap.mean().item() < 0.3
    bound = variational_bound(model.denoise, model.diffusion, x, levels=None, generator=seeded(2))
    assert torch.equal(model.elbo(x, seeded(2)), -bound.total)


def test_samples_of_a_perfect_network_have_the_datas_moments():
    # N(0.5, 0.2·I) by the whole chain: β_t at T = 100 widens it by less than a tenth
    law = GaussianData([0.5, 0.5], [[0.2, 0.0], [0.0, 0.2]])
    model = Diffusion(2, generator=seeded()).double()
    model.denoise = law.denoiser(model.diffusion.schedule)
    drawn = model.sample(4000, seeded(3))
    assert drawn.shape == (4000, 2) and drawn.dtype == torch.float64
    assert drawn.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=5 * math.sqrt(0.2 / 4000))
    assert drawn.var(0).tolist() == pytest.approx([0.2, 0.2], rel=0.15)


def test_the_librarys_solvers_walk_it_too():
    model = Diffusion(2, width=8, generator=seeded())
    walk = solve(
        model.denoise,
        model.diffusion,
        (5, 2),
        solver="dpmpp-2m",
        steps=10,
        spacing="trailing",
        generator=seeded(1),
    )
    assert walk.calls == 10 and walk.result().shape == (5, 2)


def test_the_network_tells_time_and_place_apart():
    network = PointNetwork(2, 16, seeded()).double()
    x = torch.randn(6, 2, generator=seeded(1), dtype=torch.float64)
    clock = torch.full((6,), 0.5, dtype=torch.float64)
    answer = network(x, clock)
    assert answer.shape == (6, 2)
    # rows do not mix, and each input matters
    assert torch.allclose(network(x[2:3], clock[2:3]), answer[2:3], atol=1e-12)
    assert (network(x, clock + 0.01) - answer).abs().min() > 1e-7
    assert (network(x + 0.01, clock) - answer).abs().min() > 1e-7


def test_training_brings_samples_to_the_data():
    law = toy_law("mixture")
    model = Diffusion(2, generator=seeded())
    model.fit(toy("mixture", 2000, seeded(1)), steps=250, batch_size=128, generator=seeded(2))
    x = law.sample(200, seeded(7))
    gap = (law.log_prob(x) - model.elbo(x.float(), seeded(8))).mean().item()
    assert 0 < gap < 1
    drawn = model.sample(500, seeded(3))
    assert drawn.mean(0).tolist() == pytest.approx(law.mean.tolist(), abs=0.2)


def test_one_seed_gives_one_model():
    first, second = (
        Diffusion(2, width=8, T=25, generator=seeded()).fit(
            toy("mixture", 100, seeded(1)), steps=3, batch_size=8, generator=seeded(2)
        )
        for _ in range(2)
    )
    assert torch.equal(first.sample(4, seeded(3)), second.sample(4, seeded(3)))


def test_digits_go_through_the_same_interface():
    x = 2 * torch.rand(40, 64, generator=seeded(1)) - 1
    model = Diffusion(64, width=32, T=30, generator=seeded())
    model.fit(x, steps=2, batch_size=16, generator=seeded(2))
    assert model.sample(3, seeded(3)).shape == (3, 64)
    assert model.elbo(x[:2], seeded(4)).shape == (2,)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="T must be above 20, got 20"):
        Diffusion(2, T=20, generator=seeded())
    with pytest.raises(ValueError, match="the number of samples must be an int of at least 1"):
        Diffusion(2, width=8, generator=seeded()).sample(0, seeded())
    with pytest.raises(ValueError, match=r"shape \(N, 2\), got \(3, 3\)"):
        Diffusion(2, width=8, generator=seeded()).elbo(torch.zeros(3, 3), seeded())

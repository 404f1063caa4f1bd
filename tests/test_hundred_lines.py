"""chapters/ddpm_in_100_lines.py: a hundred lines, standing alone, and equal to the library."""

import ast
import copy
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddpm_lite import GaussianDiffusion, NoiseSchedule
from ddpm_lite.data import digits
from ddpm_lite.objective import simple_loss
from ddpm_lite.sampling import sample

PATH = Path(__file__).resolve().parents[1] / "chapters" / "ddpm_in_100_lines.py"
SOURCE = PATH.read_text(encoding="utf-8")
DIFFUSION = GaussianDiffusion(NoiseSchedule.linear(T=1000))
EVERY_T = torch.tensor([1, 2, 3, 10, 100, 500, 999, 1000])


@pytest.fixture(scope="module")
def hundred():
    """The file as a module; importing it must not train."""
    spec = importlib.util.spec_from_file_location("ddpm_in_100_lines", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(5)


@pytest.fixture
def network(hundred):
    """In float64, so that equal means equal to twelve digits; its last layer is not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return hundred.Network(width=8).double()


def batch(generator):
    shape = (len(EVERY_T), 1, 8, 8)
    return torch.randn((3, *shape), generator=generator, dtype=torch.float64)


def test_it_has_a_hundred_lines_that_fit_on_the_page():
    lines = SOURCE.splitlines()
    assert len(lines) <= 100
    assert max(map(len, lines)) <= 100


def test_it_needs_nothing_of_the_library():
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).partition(".")[0]
        for node in ast.walk(ast.parse(SOURCE))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported == {"copy", "torch", "sklearn"}


def test_its_tables_are_those_of_the_schedule(hundred):
    schedule = DIFFUSION.schedule
    torch.testing.assert_close(hundred.alpha_bar, schedule.alpha_bar, rtol=1e-10, atol=0)
    variance = schedule.posterior_variance[1:]
    torch.testing.assert_close(hundred.sigma[1:] ** 2, variance, rtol=1e-8, atol=0)
    assert hundred.sigma[1] == 0


def test_q_sample(hundred, generator):
    x0, noise, _ = batch(generator)
    wanted = DIFFUSION.q_sample(x0, EVERY_T, noise)
    torch.testing.assert_close(hundred.q_sample(x0, EVERY_T, noise), wanted, rtol=0, atol=1e-12)


def test_the_loss(hundred, network, generator):
    x0, noise, _ = batch(generator)
    wanted = simple_loss(network, DIFFUSION, x0, EVERY_T, noise)
    torch.testing.assert_close(
        hundred.loss(network, x0, EVERY_T, noise), wanted, rtol=1e-10, atol=0
    )


def test_the_reverse_step(hundred, generator):
    x, eps, z = batch(generator)
    law = DIFFUSION.reverse(eps, x, EVERY_T)
    wanted = law.mean + law.variance.sqrt() * z
    torch.testing.assert_close(hundred.reverse_step(eps, x, EVERY_T, z), wanted, rtol=0, atol=1e-10)


def test_the_whole_chain(hundred, network, generator):
    """A thousand steps from one x_T with one row of noises: the same digits."""
    x_T = torch.randn(2, 1, 8, 8, generator=generator, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(6)
        mine = hundred.sample(network, x_T)
    fresh = torch.Generator().manual_seed(6)
    settings = {"steps": 1000, "eta": 1.0, "generator": fresh, "x_T": x_T}
    for state in sample(network, DIFFUSION, x_T.shape, **settings):
        theirs = state.x
    assert mine.std() > 0.1
    torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8)


def test_training(hundred, network):
    """Three steps, written with the library's loss and average: the same weights."""
    images = digits("train")[0].double()
    expected, average = copy.deepcopy(network), copy.deepcopy(network)
    optimiser = torch.optim.Adam(expected.parameters(), hundred.RATE)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        mine = hundred.train(network, images, steps=3)
        torch.manual_seed(7)
        for decay in (2 / 11, 3 / 12, 4 / 13):
            x0 = images[torch.randint(len(images), (64,))]
            t, noise = torch.randint(1, 1001, (64,)), torch.randn_like(x0)
            optimiser.zero_grad()
            simple_loss(expected, DIFFUSION, x0, t, noise).mean().backward()
            optimiser.step()
            for mean, now in zip(average.parameters(), expected.parameters(), strict=True):
                mean.data = decay * mean.data + (1 - decay) * now.data
    for trained, wanted in ((network, expected), (mine, average)):
        for a, b in zip(trained.parameters(), wanted.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    pairs = zip(mine.parameters(), network.parameters(), strict=True)
    assert max((a - b).abs().max() for a, b in pairs) > 0


def test_it_runs_and_prints_eight_digits_side_by_side(tmp_path):
    small = SOURCE.replace("= 1000, 2500, 64, 1e-3", "= 20, 2, 4, 1e-3")
    assert small != SOURCE
    (tmp_path / "small.py").write_text(small, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "small.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 8 and {len(line) for line in lines} == {8 * 16 + 7 * 2}

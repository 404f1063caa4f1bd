"""Which exercises the library answers, proven by letting it; instructors are told on their page."""

import re
from pathlib import Path

import pytest
import torch

from ddpm_lite import GaussianDiffusion, NoiseSchedule, guided, simple_loss
from ddpm_lite.book.manifest import load
from ddpm_lite.exercises import all_exercises, find
from ddpm_lite.exercises.engine import judge
from ddpm_lite.metrics import gaussian_frechet_distance
from ddpm_lite.oracle import GaussianData
from ddpm_lite.sampling import slerp
from ddpm_lite.unet import timestep_embedding

PAGE = Path(__file__).resolve().parent.parent / "chapters" / "INSTRUCTORS.md"


def chain(alpha_bar, **options):
    return GaussianDiffusion(NoiseSchedule.from_alpha_bar(alpha_bar), **options)


def both(law):
    return law.mean, law.variance


def drawn(law, noise):
    return law.mean + law.variance.sqrt() * noise


def levels(alpha_bar_t, alpha_bar_s):
    """A chain with these two levels, and their steps (t, s)."""
    between = [float(alpha_bar_s)] if alpha_bar_s < 1 else []
    alpha_bar = [1.0, *between, float(alpha_bar_t)]
    return alpha_bar, len(alpha_bar) - 1, len(alpha_bar) - 2


def compose(alphas):
    kept = NoiseSchedule.from_betas(1 - alphas).alpha_bar[-1]
    return kept.sqrt(), 1 - kept


def moments(mean_0, var_0, alpha_bar_t):
    law = GaussianData([mean_0], [[var_0]]).marginal(
        NoiseSchedule.from_alpha_bar([1.0, alpha_bar_t]), 1
    )
    return law.mean[0], law.covariance[0, 0]


def mean_from_eps(x_t, eps, alpha_bar_t, alpha_bar_s):
    alpha_bar, t, s = levels(alpha_bar_t, alpha_bar_s)
    return chain(alpha_bar).reverse(eps, x_t, t, s).mean


def best_variance(alpha_bar_t, alpha_bar_s, V):
    alpha_bar, t, s = levels(alpha_bar_t, alpha_bar_s)
    schedule, x_t = NoiseSchedule.from_alpha_bar(alpha_bar), torch.zeros(1, 1).double()
    return GaussianData([0.0], [[V]]).reverse(schedule, x_t, t, s).covariance[0, 0, 0]


def from_v(x_t, v, alpha_bar_t):
    found = chain([1.0, float(alpha_bar_t)], prediction="v").predict(v, x_t, 1)
    return found.x0, found.eps


def walk(denoiser, x, steps, eta, noises, alpha_bar):
    diffusion = chain(alpha_bar)
    for t, s in zip(steps, [*steps[1:], 0], strict=True):
        eps = denoiser(x, torch.full((len(x),), t))
        x = drawn(diffusion.reverse(eps, x, t, s, eta=eta), noises[t])
    return x


BY_LIBRARY = {
    "T.6": lambda m_a, V_a, m_b, V_b: gaussian_frechet_distance(
        m_a, torch.diag(V_a), m_b, torch.diag(V_b)
    ),
    "2.1": lambda x, beta, z: GaussianDiffusion(NoiseSchedule.from_betas([beta])).q_sample(x, 1, z),
    "2.4": lambda betas: NoiseSchedule.from_betas(betas).alpha_bar,
    "2.6": lambda x, t, noise, a: drawn(chain(a).transition(x, t, t - 1), noise),
    "3.2": compose,
    "3.3": lambda x0, t, noise, a: chain(a).q_sample(x0, t, noise),
    "3.5": lambda x_s, t, s, a: both(chain(a).transition(x_s, t, s)),
    "3.8": moments,
    "4.2": lambda x_t, x0, t, s, a: both(chain(a).posterior(x_t, x0, t, s)),
    "4.3": mean_from_eps,
    "4.5": best_variance,
    "4.7": from_v,
    "4.8": lambda x_t, t, eps, a: chain(a).predict(eps, x_t, t).x0,
    "5.8": lambda denoiser, x0, t, z, a: simple_loss(denoiser, chain(a), x0, t, z).mean(),
    "6.5": lambda t, dim: timestep_embedding(t, dim, "sin-cos"),
    "7.1": lambda x_t, t, eps, z, a: drawn(chain(a).reverse(eps, x_t, t), z),
    "7.5": lambda x_t, t, eps, a: chain(a).reverse(eps, x_t, t, clip=(-1, 1)).mean,
    "7.6": lambda denoiser, x_T, noises, a: walk(
        denoiser, x_T, list(range(len(a) - 1, 0, -1)), 1.0, noises, a
    ),
    "8.4": lambda denoiser, x, t, y, w, null: guided(denoiser, w, num_classes=null)(x, t, y),
    "9.3": lambda x_t, t, s, eps, z, eta, a: drawn(chain(a).reverse(eps, x_t, t, s, eta=eta), z),
    "9.4": lambda T, S: NoiseSchedule.linear(T).steps(S, "trailing").flip(0),
    "9.6": lambda a, b, share: slerp(a[None], b[None], share)[0],
    "9.7": walk,
}


@pytest.mark.parametrize("id", BY_LIBRARY)
def test_the_library_answers_these(id):
    assert judge(find(id), BY_LIBRARY[id], seed=2).status == "right"


@pytest.mark.parametrize("chapter", [c.number for c in load().chapters if c.exercises])
def test_every_chapter_has_two_exercises_that_it_does_not_answer(chapter):
    own = [e.id for e in all_exercises() if e.chapter == chapter and e.id not in BY_LIBRARY]
    assert len(own) >= 2


def test_the_instructors_page_lists_them():
    text = PAGE.read_text(encoding="utf-8")
    (line,) = re.findall(r"(?m)^\*\*Answered by the library:\*\* (.*)\.$", text)
    assert line.split(", ") == list(BY_LIBRARY)

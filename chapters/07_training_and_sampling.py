# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 7 Training and sampling

# %% tags=["hide-input"]
import dataclasses
import importlib.util
import math
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from ddpm_lite import GaussianDiffusion, NoiseSchedule
from ddpm_lite.claims import claim, fact
from ddpm_lite.data import DIGITS_LEVELS, digits, load
from ddpm_lite.exercises import check, hint, progress, solution  # noqa: F401
from ddpm_lite.measurements import measured
from ddpm_lite.metrics import (
    classifier,
    evaluate,
    frechet_distance,
    gaussian_frechet_distance,
    memorisation,
    nearest,
    quantise,
)
from ddpm_lite.objective import (
    bound_term,
    prior_term,
    sample_steps,
    simple_loss,
    variational_bound,
)
from ddpm_lite.oracle import FiniteData, GaussianData, GaussianMixture
from ddpm_lite.plotting import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    VERMILLION,
    figure,
    show,
    show_images,
    use_book_style,
)
from ddpm_lite.sampling import generate, sample
from ddpm_lite.storage import shipped
from ddpm_lite.training import Trainer, TrainingConfig
from ddpm_lite.unet import PRESETS, UNet, count_flops, count_parameters, timestep_embedding

use_book_style()
schedule = NoiseSchedule.linear(T=1000)                # DDPM's own, as in chapters 2 to 4
T, alpha, alpha_bar = schedule.T, schedule.alpha, schedule.alpha_bar
diffusion = GaussianDiffusion(schedule)


def seeded(seed):
    """A fresh generator: whatever is drawn here says from which seed."""
    return torch.Generator().manual_seed(seed)


# %% tags=["hide-input"]
finished = shipped("digits")                           # trained beforehand; it comes with the book
levels = (1000, 800, 600, 400, 300, 200, 100, 0)
walk = sample(finished.network, finished.diffusion, (3, 1, 8, 8), steps=50, spacing="trailing",
              eta=1.0, clip=(-1, 1), generator=seeded(43))
seen, guesses = {1000: walk.start}, {}
for state in walk:
    seen[state.t] = state.x
    guesses[state.t + 20] = state.x0                   # the guess was made one step above
guesses[0] = seen[0]
rows = [row for i in range(3)
        for row in (torch.stack([seen[t][i] for t in levels]),
                    torch.stack([guesses[t][i] for t in levels]))]
show_images(torch.stack(rows), """Three walks from noise to a digit. In each pair the upper row has
the noisy image at t = 1000, 800, 600, 400, 300, 200, 100 and 0, pure noise at first and a clean
digit at last; the lower row shows the network's guess of the clean image at the same moments: white
and black patches that mean nothing at t = 1000, a grey blur at 800 and 600, a blurred digit at 400,
a clear one from 300 on. In the last column both rows show the finished sample.""",
            row_labels=["$x_t$", r"$\hat x_0$"] * 3,
            column_titles=[f"$t={t}$" for t in levels])


# %% [markdown]
# *When is it decided which digit it will be?* Three runs of this chapter's algorithm 2, over 50 of the thousand steps and with clipped guesses, from pure noise on the left to a digit on the right. In the upper rows the image as the sampler holds it,
# in the lower ones the network's guess of what lies behind; at $t=0$ there is nothing left to guess, and both rows show the sample. At $t=800$ the guess is near the mean of all digits. Somewhere around $t=400$ it becomes one digit, and the rest is detail. (At $t=1000$ the guess means nothing: a small error in $\hat\varepsilon$ is amplified 157 times on the way to $\hat x_0$, (4.47), and then clipped to white and black patches.)
#
# **You will**
# - write training and sampling as two algorithms of a few lines each, and derive the line of the second one;
# - train a U-Net on digits, here, in two to five minutes, and say how far its loss is from the best possible one;
# - choose the variance of a reverse step, the clipping and the number of steps, and measure what each choice does;
# - judge the samples by a protocol that cannot flatter, and tell a model that generates from one that memorises;
# - find out why a loss is stuck.
#
# **You need** [the reverse step](04_posterior.ipynb#4.13-A-reverse-step,-and-a-first-walk) of chapter 4, the loss of [chapter 5](05_epsilon_loss.ipynb), the network of
# [chapter 6](06_unet.ipynb), and from the toolbox [how we will measure](A_toolbox.ipynb#T.12-How-we-will-measure).
#
# **Time** about 90 minutes to read, 100 for the exercises, five to ten minutes to run, two to five of which are the training.

# %% [markdown]
# ## 7.1 Two algorithms
#
# Chapter 5 says what to minimise and chapter 6 builds what minimises it. Chapter 4 says how to go back with a denoiser. So nothing is missing any more, and yet no network that we have watched learning has drawn a picture. This chapter puts the parts together,
# and then asks the question that the parts could not ask: *is the result any good?*
#
# In the DDPM paper the whole method is two boxes. The first trains, the second samples. In our words:
#
# | Algorithm 1: training | Algorithm 2: sampling |
# |---|---|
# | **repeat** | draw $x_T\sim\mathcal N(0,I)$ |
# | $\quad$ draw $x_0$ from the training set | **for** $t=T,\dots,1$ |
# | $\quad$ draw $t$ uniformly from $1,\dots,T$ | $\quad$ draw $z\sim\mathcal N(0,I)$; but $z=0$ if $t=1$ |
# | $\quad$ draw $\varepsilon\sim\mathcal N(0,I)$ | $\quad$ $x_{t-1}$ from $x_t$ and $z$ by (7.2) |
# | $\quad$ make $x_t$; one gradient step on (7.1) | **return** $x_0$ |
#
# The loss in the left box, averaged over a batch of $B$ images, is
#
# $$
# \frac1B\sum_{i=1}^{B}\frac1D\,\Big\lVert \varepsilon^{(i)}-\hat\varepsilon_\theta\big(\sqrt{\bar\alpha_{t_i}}\,x_0^{(i)}+\sqrt{1-\bar\alpha_{t_i}}\,\varepsilon^{(i)},\;t_i\big)\Big\rVert^2 ,
# \tag{7.1}
# $$
#
# and the line in the right box is
#
# $$
# x_{t-1} \;=\; \frac{1}{\sqrt{\alpha_t}}\Big(x_t-\frac{1-\alpha_t}{\sqrt{1-\bar\alpha_t}}\;\hat\varepsilon_\theta(x_t,t)\Big)+\sigma_t\,z .
# \tag{7.2}
# $$
#
# Every image has a $t$ of its own, and the network never sees two neighbouring $x_t$ of one chain: that is what the jump (3.14) buys. In code both boxes have the length that they have on paper.

# %%
def at(table, t, x):
    """table[t] for each row of x, in x's type, with axes that broadcast over the rest."""
    return table[t].to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def algorithm_1(network, images, optimiser, steps, g):
    """Train on batches of 64, and return the losses."""
    losses = []
    for _ in range(steps):
        x_0 = images[torch.randint(len(images), (64,), generator=g)]
        t = torch.randint(1, T + 1, (64,), generator=g)
        eps = torch.randn(x_0.shape, generator=g)
        x_t = at(alpha_bar.sqrt(), t, x_0) * x_0 + at((1 - alpha_bar).sqrt(), t, x_0) * eps
        loss = ((eps - network(x_t, t)) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def algorithm_2(network, x, sigma, g):
    """Walk from x = x_T down to x_0."""
    for t in range(T, 0, -1):
        eps = network(x, torch.full((len(x),), t))
        z = torch.randn(x.shape, generator=g, dtype=x.dtype) if t > 1 else 0.0
        x = (x - (1 - alpha[t]) / (1 - alpha_bar[t]).sqrt() * eps) / alpha[t].sqrt() + sigma[t] * z
    return x


# %% [markdown]
# Before any training, both are held against the library, with the two-humped data of chapter 4 and their exact noise predictor in the place of the network. The loss must be the mean of `simple_loss`, and its step the gradient step (the "network" is the exact predictor plus one weight, which starts at 0); and a thousand steps of algorithm 2 must end where the library's sampler ends, if both start at the same $x_T$ and draw the same $z$.

# %%
mixture = GaussianMixture([0.35, 0.65], [[-0.9], [0.7]], [[[0.10**2]], [[0.25**2]]])
oracle = mixture.denoiser(schedule)                    # ε*(x_t, t) = E[ε | x_t], exactly

points = mixture.sample(256, seeded(0))
shift = torch.zeros(1, dtype=torch.float64, requires_grad=True)
losses = algorithm_1(lambda x, t: oracle(x, t) + shift, points,
                     torch.optim.SGD([shift], lr=0.1), 1, seeded(1))
g = seeded(1)                                          # the same draws once more
x_0 = points[torch.randint(256, (64,), generator=g)]
t = torch.randint(1, T + 1, (64,), generator=g)
eps = torch.randn(64, 1, generator=g).double()
by_hand = simple_loss(oracle, diffusion, x_0, t, eps).mean()
claim("7.1", losses, [by_hand])
x_t = diffusion.q_sample(x_0, t, eps)                  # ∂(7.1)/∂shift = −2·mean(ε − ε̂), times 0.1
claim("7.1", shift.detach(), 0.2 * (eps - oracle(x_t, t)).mean(0), note="and its gradient step")

x_T = torch.randn(20, 1, generator=seeded(3), dtype=torch.float64)
ends = algorithm_2(oracle, x_T, schedule.posterior_variance.sqrt(), seeded(4))
theirs = generate(oracle, diffusion, (20, 1), steps=T, eta=1.0, x_T=x_T, generator=seeded(4))
claim("7.2", ends, theirs, tol=1e-8, note="a thousand steps, against the library's sampler")
fact("loss of the exact predictor on these 64 draws", by_hand, digits=2)
fact("of 20 walks, ended left of 0", int((ends < 0).sum()))
fact("sqrt((1-ᾱ)/ᾱ) at t = 1000", ((1 - alpha_bar[T]) / alpha_bar[T]).sqrt(), digits=3)


# %% [markdown]
# ## 7.2 The line of algorithm 2
#
# Where does (7.2) come from? From the reverse step (4.49), which holds for any two steps $s<t$, with $s=t-1$. By the definitions of $\bar\alpha_t$ as a product, (2.15), and of the step's noise, (4.17),
#
# $$
# \bar\alpha_{t\mid t-1} = \frac{\bar\alpha_t}{\bar\alpha_{t-1}} = \alpha_t ,
# \qquad
# \beta_{t\mid t-1} = 1-\alpha_t = \beta_t .
# \tag{7.3}
# $$
#
# Put these into the middle form of (4.49) and the mean of the step stands there; a draw from $\mathcal N(\mu_\theta,\sigma_t^2I)$ is the mean plus $\sigma_t z$, (T.29). That is all. What is *not* in the line deserves as much attention:
#
# - $\sigma_t$ is open. DDPM tries $\sigma_t^2=\beta_t$ and $\sigma_t^2=\tilde\beta_t$; section 7.8 measures both.
# - The factor of $\hat\varepsilon$ is not $\sqrt{1-\bar\alpha_t}$: a step takes only its share of the noise away.
# - The division is by $\sqrt{\alpha_t}$ and not by $\sqrt{\bar\alpha_t}$: a step undoes its own shrinking only.
#
# **The last step** is special. At $t=1$ we have $\bar\alpha_1=\alpha_1$, so $1-\bar\alpha_1=1-\alpha_1$, and the mean becomes
#
# $$
# \frac{1}{\sqrt{\alpha_1}}\Big(x_1-\frac{1-\alpha_1}{\sqrt{1-\alpha_1}}\,\hat\varepsilon\Big)
# \;=\; \frac{x_1-\sqrt{1-\bar\alpha_1}\;\hat\varepsilon}{\sqrt{\bar\alpha_1}}
# \;=\; \hat x_0 ,
# \tag{7.4}
# $$
#
# by (4.21): the last step *is* the guess of $x_0$. What one added to it would be noise on a finished picture, which nobody takes away again. Hence $z=0$ there.
#
# **Why "ancestral"?** The model is a chain of laws, one for each variable given the one before it in the order of drawing:
#
# $$
# p_\theta(x_{0:T}) \;=\; p(x_T)\,\prod_{t=1}^{T} p_\theta(x_{t-1}\mid x_t) ,
# \qquad p(x_T)=\mathcal N(0,I) .
# \tag{7.5}
# $$
#
# To draw from such a product, draw the ancestor $x_T$, then its child $x_{T-1}$ given the ancestor, then the grandchild, and so on: **ancestral sampling**. The last of the family, taken alone, has the law $p_\theta(x_0)$, since forgetting the others is what marginalising means. (One exception: the last factor of (7.5) is a law too, and algorithm 2 returns its mean. With $\sigma_1^2=\tilde\beta_1=0$ that is the same; with $\beta_1$ it leaves out a noise of standard deviation 0.01.)
#
# > **Pitfall: "the condition is noise".** You may find ancestral sampling under the heading *conditional generation*, with the explanation that the noise is the condition. It is not. Nobody tells the network what to draw; algorithm 2 is **unconditional**. The noise is $x_T$, a draw from the first factor of (7.5), and the
# > $z$'s are the freedom of the others. Conditional generation, where a class says what to draw, is chapter 8.
#
# The cell checks the line against the library at every kind of step. For (7.5) it takes three strong steps and Gaussian data, where the exact predictor is linear: then the whole family is one Gaussian vector, whose covariance we can write down from the *maps* that draw it, and its density must be the product.

# %%
def line(x_t, eps, t):
    """The mean of (7.2), as it stands there."""
    return (x_t - (1 - alpha[t]) / (1 - alpha_bar[t]).sqrt() * eps) / alpha[t].sqrt()


x, e = torch.randn(2, 5, 4, generator=seeded(5), dtype=torch.float64)
for t in (1000, 400, 2, 1):
    law = diffusion.transition(x, t, t - 1)
    claim("7.3", [alpha[t], schedule.beta[t]], [1 - law.variance, law.variance])
    claim("7.2", line(x, e, t), diffusion.reverse(e, x, t).mean, tol=1e-9, note=f"t = {t}")
claim("7.4", line(x, e, 1), diffusion.predict(e, x, 1).x0, tol=1e-9, note="the last step")

V, strong = 0.6, GaussianDiffusion(NoiseSchedule.from_betas([0.2, 0.3, 0.5]), variance="beta")
guess = GaussianData([0.0], [[V]]).denoiser(strong.schedule)
maps = [torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)]
path = [torch.tensor([[0.8]], dtype=torch.float64)]
log_product = -0.5 * (0.8**2 + math.log(2 * math.pi))                   # log p(x_3) at 0.8
for t, child in ((3, 0.3), (2, -0.1), (1, 0.4)):
    parent, one = path[-1], torch.ones(1, 1, dtype=torch.float64)
    slope = strong.reverse(guess(one, t), one, t).mean[0, 0]            # the mean is linear in x_t
    law = strong.reverse(guess(parent, t), parent, t)
    maps.append(slope * maps[-1] + law.variance.sqrt() * torch.eye(4)[4 - t].double())
    path.append(torch.tensor([[child]], dtype=torch.float64))
    log_product = log_product + law.log_prob(path[-1])[0]               # log p(x_{t-1} | x_t)
maps = torch.stack(maps)                                                # x_3, …, x_0 from 4 draws
joint = torch.distributions.MultivariateNormal(torch.zeros(4).double(), maps @ maps.T)
claim("7.5", log_product, joint.log_prob(torch.cat(path)[:, 0]))
fact("log density of that family of four", log_product)

# %% [markdown]
# **Exercise 7.1** (3 points, 15 minutes, ●●○) — *Your own step.* In `my_ddpm.py`, write `reverse_step(x_t, t, eps, z, alpha_bar)` that returns $x_{t-1}$ of (7.2) with $\sigma_t^2=\tilde\beta_t$, for an int $1\le t\le T$ and the given $\hat\varepsilon$ = `eps` and `z`. At $t=1$ it must not use `z`.

# %%
check("7.1", "my_ddpm.reverse_step")

# %% [markdown]
# > **Pitfall: noise on the finished picture.** The line `z = torch.randn(…) if t > 0 else 0` looks right, and inside `for t in range(T, 0, -1)` it is always true: the loop never gets to 0. Published teaching code contains it. With $\sigma_t^2=\tilde\beta_t$ it does no harm, because $\tilde\beta_1=0$.
# > With $\sigma_t^2=\beta_t$ the samples have the variance
# >
# > $$
# > \operatorname{Var}[x_0+\sigma_1z] \;=\; \operatorname{Var}[x_0]+\sigma_1^2 ,
# > \tag{7.6}
# > $$
# >
# > since $z$ is independent of the rest. How bad is that? On the chain of a thousand steps $\sigma_1=\sqrt{\beta_1}=0.01$, a twelfth of the distance between two grey levels of our digits: nobody will ever see it. On a chain of 50 steps the last one comes from $t=20$, and the same line adds noise of standard deviation 0.6 grey levels to every pixel. The slip is
# > found by reading, or by a test; not by looking at samples of the full chain.
#
# We follow the law of the walk on a grid, as in chapter 4, with the exact predictor and 50 steps, and look at the narrow hump of the data.

# %%
axis = torch.linspace(-5.0, 5.0, 801, dtype=torch.float64)[:, None]


def ends_of_walk(count):
    """Where the last step sends each point of the axis, and the density of the points there."""
    process = GaussianDiffusion(schedule, variance="beta")
    steps = [*schedule.steps(count, "trailing").tolist()[::-1], 0]
    density = torch.exp(-(axis[:, 0] ** 2) / 2) / (2 * math.pi) ** 0.5  # the law of x_T
    for t, s in pairwise(steps):
        law = process.reverse(oracle(axis, t), axis, t, s)
        if s > 0:
            kernel = torch.exp(-((axis - law.mean.T) ** 2) / (2 * law.variance))
            kernel = kernel / (2 * math.pi * law.variance) ** 0.5
            density = torch.trapezoid(kernel * density, axis[:, 0])     # (4.51)
    return law.mean[:, 0], density / torch.trapezoid(density, axis[:, 0]), law.variance


end, density, sigma2 = ends_of_walk(50)
left = density * (end < -0.3)                                           # the narrow hump
left = left / torch.trapezoid(left, axis[:, 0])
middle = torch.trapezoid(end * left, axis[:, 0])
hump = torch.trapezoid((end - middle) ** 2 * left, axis[:, 0])
nodes, mass = (torch.tensor(v) for v in np.polynomial.hermite_e.hermegauss(8))
noisy = (end[:, None] + sigma2.sqrt() * nodes - middle) ** 2 @ (mass / mass.sum())
claim("7.6", torch.trapezoid(noisy * left, axis[:, 0]), hump + sigma2, note="by quadrature over z")
fact("narrow hump, standard deviation in the data", 0.10)
fact("    of 50-step samples, finished without noise", hump.sqrt(), digits=2)
fact("    with noise on the finished sample", (hump + sigma2).sqrt(), digits=2)
fact("that noise in grey levels of the digits: 1000 steps, 50 steps",
     [schedule.beta[1].sqrt() * 8, sigma2.sqrt() * 8], digits=2)

# %% [markdown]
# ## 7.3 What we train, and on what
#
# The data are the book's digits: 1,442 images of $8\times8$ pixels to train on, 355 held out, 17 grey levels, scaled to $[-1,1]$. The network is chapter 6's U-Net in the size `digits`, small enough for a laptop and no toy in its parts: residual blocks, three resolutions, attention, a clock.
#
# One word chooses how much work is done. `"laptop"` gives the numbers that this text speaks of, on any machine; with a GPU, or patience, change the word in the next cell to `"long"` and run the notebook again. Everything below then uses the better network, and the claims should still hold; if (7.13) on held-out images does not, the network has begun to memorise.

# %%
EFFORT = "laptop"                                      # or "long"

plan = {"laptop": {"steps": 2000, "batch_size": 64, "device": "cpu"},
        "long": {"steps": 30_000, "batch_size": 256, "device": None}}[EFFORT]   # None: a GPU if any
images, labels = digits("train")
heldout, heldout_labels = digits("heldout")
network = UNet(PRESETS["digits"], seeded(0))
fact("images to train on", len(images))
fact("held out", len(heldout))
fact("smallest and largest value, and their number of levels",
     [images.min(), images.max(), len(images.unique())])
fact("standard deviation per pixel", images.std(), digits=2)
fact("parameters of the network", count_parameters(network))
fact("images drawn in the whole training, in epochs",
     plan["steps"] * plan["batch_size"] / len(images), digits=2)

# %% [markdown]
# ## 7.4 What a gradient step is
#
# "Take a gradient step", says algorithm 1. Which one? DDPM uses Adam, and so do we. Adam keeps two running averages for every weight, of its gradient $g_n$ at step $n=1,2,\dots$ and of the square of it, and divides one by the root of the other ($r$ is the learning rate, $b_1=0.9$, $b_2=0.999$, $m_0=u_0=0$):
#
# $$
# \begin{gathered}
# m_n=b_1m_{n-1}+(1-b_1)\,g_n ,\qquad u_n=b_2u_{n-1}+(1-b_2)\,g_n^2 ,\\
# \theta_n=\theta_{n-1}-r\;\frac{m_n/(1-b_1^n)}{\sqrt{u_n/(1-b_2^n)}+10^{-8}} .
# \end{gathered}
# \tag{7.7}
# $$
#
# The denominators $1-b^n$ undo the start at zero: the shares of $g_1,\dots,g_n$ in such an average sum to $1-b^n$ and not to one, as (7.15) will show. At the first step that leaves $m_1/(1-b_1)=g_1$ and $u_1/(1-b_2)=g_1^2$, so
#
# $$
# \theta_1-\theta_0 \;=\; -\,r\;\frac{g_1}{|g_1|+10^{-8}} \;\approx\; -\,r\,\operatorname{sign}(g_1) .
# \tag{7.8}
# $$
#
# Every weight whose gradient is well above $10^{-8}$ moves by the full learning rate, however small the gradient is otherwise, in a direction that rests on one batch. That is why training starts with a **warm-up**: the rate grows from 0 to $r$ over the first steps, here 100, while the averages settle. At every step $m_n$ and $\sqrt{u_n}$ scale alike, so a loss multiplied by a constant trains the same as long as no gradient is clipped and the $10^{-8}$ does not count, and a mistake such as `loss.backward(loss)`, which
# multiplies every gradient by the loss, can live in a published notebook unnoticed: Adam divides most of it out again.
#
# The third precaution is **clipping the gradient**. If the norm of the gradient over all weights exceeds a limit $c$ (DDPM: 1), the gradient is shortened to it:
#
# $$
# g \;\leftarrow\; g\cdot\min\big(1,\;c/\lVert g\rVert\big) .
# \tag{7.9}
# $$

# %%
weight = torch.tensor([0.5, -2.0, 1.0], dtype=torch.float64, requires_grad=True)
adam = torch.optim.Adam([weight], lr=1e-3)
theta, m, u = weight.detach().clone(), torch.zeros(3).double(), torch.zeros(3).double()
gradients = torch.tensor([[3.0, -1e-3, 1e-5], [1.0, 2e-3, -3e-5], [-2.0, 5e-3, 1e-5]]).double()
for n, gradient in enumerate(gradients, start=1):      # (7.7) by hand, beside PyTorch's
    m, u = 0.9 * m + 0.1 * gradient, 0.999 * u + 0.001 * gradient**2
    theta = theta - 1e-3 * (m / (1 - 0.9**n)) / ((u / (1 - 0.999**n)).sqrt() + 1e-8)
    weight.grad = gradient.clone()
    adam.step()
    claim("7.7", theta, weight, note=f"step {n}")
    if n == 1:
        moved = theta - torch.tensor([0.5, -2.0, 1.0]).double()
        claim("7.8", moved, -1e-3 * gradient / (gradient.abs() + 1e-8))
        fact("first gradients", gradient)
        fact("first moves", moved)

long_gradient = torch.linspace(-5e3, 9e3, 50, dtype=torch.float64)
holder = torch.nn.Parameter(torch.zeros(50, dtype=torch.float64))
for gradient, note in ((long_gradient, "too long"), (long_gradient / 1e6, "short: as it is")):
    holder.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_([holder], 1.0)      # PyTorch adds 1e-6 to the norm
    claim("7.9", gradient * min(1.0, 1 / gradient.norm()), holder.grad, tol=1e-8, note=note)

# %% [markdown]
# **Exercise 7.2** (1 point, 5 minutes, ●○○) — *Predict the number.* A weight has the value $0.3$ and at the first step the gradient $-0.002$. By how much does Adam change it, with $r=10^{-3}$? Give the change, with its sign, to two digits.

# %%
answer = None

check("7.2", answer)

# %% [markdown]
# ## 7.5 A few minutes of training
#
# `Trainer` is algorithm 1 with what a run of hours needs around it: warm-up, clipping, averaged weights (section 7.7), a record of the loss, checkpoints from which a run that was stopped goes on to the same bits. In its steps it does what `algorithm_1` does. In what is drawn, two choices differ from the paper, and both only reduce noise: the images come in the order of a
# shuffled deck, each once per epoch, and the $t$'s of a batch are *stratified*, one from each of 64 equal parts of $1..T$, so that every batch sees the whole range. Each $t$ alone is still uniform, so the expected loss is the same.
#
# The next cell takes two to five minutes on one core. What it prints depends on the machine.

# %% tags=["nbval-ignore-output"]
config = TrainingConfig(steps=plan["steps"], batch_size=plan["batch_size"], learning_rate=2e-3,
                        warmup_steps=100, seed=0, step_sampling="stratified",
                        precision="float32", log_every=plan["steps"] // 40)
trainer = Trainer(network, diffusion, images, config, device=plan["device"])
began = time.perf_counter()
trainer.run()
seconds_of_training = time.perf_counter() - began
print(trainer.report())
print(f"{seconds_of_training:.0f} s, {trainer.history[-1]['images_per_second']:.0f} images/s")
trainer.network.cpu(), trainer.ema.cpu()
raw, ema = trainer.network, trainer.ema

# %% [markdown]
# ## 7.6 The loss against its floor
#
# The loss has come down to something. Is that something good? A number like 0.08 says nothing by itself; chapter 5 has shown why. Write $f$ for any predictor and $\varepsilon^*=\mathbb E[\varepsilon\mid x_t]$ for the best one. Then
#
# $$
# \tfrac1D\,\mathbb E\lVert\varepsilon-f(x_t)\rVert^2 \;=\; \xi_t+\tfrac1D\,\mathbb E\lVert\varepsilon^*(x_t)-f(x_t)\rVert^2 ,
# \qquad
# \xi_t=\tfrac1D\,\mathbb E\lVert\varepsilon-\varepsilon^*(x_t)\rVert^2 .
# \tag{7.10}
# $$
#
# (Write $\varepsilon-f=(\varepsilon-\varepsilon^*)+(\varepsilon^*-f)$ and square. The second bracket is a function of $x_t$, the first has mean zero given $x_t$, so the cross term vanishes.) The **floor** $\xi_t$ is the share of the noise that nobody can predict, (4.30). It depends on the law of the data, and for real digits nobody knows that law. But two laws on either side of it we do know.
#
# **From above: a Gaussian.** Give the Gaussian law with the digits' mean and covariance its own best predictor. In the direction of the $i$-th eigenvector of the covariance it meets data of variance $\lambda_i$, for which (4.33) is an equality. Averaged over the directions,
#
# $$
# \xi_t^{\text{Gauss}} \;=\; \frac1D\sum_{i=1}^{D}\frac{\bar\alpha_t\lambda_i}{\bar\alpha_t\lambda_i+1-\bar\alpha_t} .
# \tag{7.11}
# $$
#
# This predictor is linear in $x_t$ (with an offset, which *linear* includes here), and its loss on *any* data with this mean and covariance is (7.11), because a squared error of a linear function asks for no more than means and covariances. So it is the loss of the best *linear* network. (Every linear predictor has the same loss on these data as on the Gaussian's, and there none beats this one. And it lies above the digits' floor, because the best predictor of all is at least as good.) A U-Net that does not beat it has learned nothing about digits but which pixels go together.
#
# **From below: the training set itself.** The law that puts $1/N$ on each training image $x^{(k)}$ is the one that algorithm 1 in fact draws from. Its best predictor is known too. By Bayes' rule the image $k$ has, after seeing $x_t$, a probability proportional to $q(x_t\mid x^{(k)})$, so
#
# $$
# \hat x_0(x_t)=\sum_{k=1}^{N}\rho_k\,x^{(k)} ,
# \qquad
# \rho=\operatorname{softmax}_k\Big(\!-\frac{\lVert x_t-\sqrt{\bar\alpha_t}\,x^{(k)}\rVert^2}{2\,(1-\bar\alpha_t)}\Big) ,
# \qquad
# \varepsilon^*=\frac{x_t-\sqrt{\bar\alpha_t}\;\hat x_0}{\sqrt{1-\bar\alpha_t}} .
# \tag{7.12}
# $$
#
# No network can have a smaller training loss than this formula, on average. But look at what it is: a lookup table. It compares $x_t$ with every training image and answers with their mean, weighted by nearness; at small $t$ that is the nearest one. Sampled with algorithm 2 it returns training images. *The global minimum of the training loss is a photocopier.* We call it the **memoriser**, and want to stay well away from it: what we are after is the floor of the
# law that the 1,442 images were drawn from. The memoriser's training loss lies below that floor. (The smallest loss is a minimum of functions linear in the law, so concave in it; averaged over training sets it is at most that of the law itself.) So a training loss may lie below the floor, where the expected loss on held-out images cannot: a gap between the two is the sign of memorising, and the held-out one is to be trusted.

# %%
spread = torch.linspace(-8.0, 8.0, 20001, dtype=torch.float64)[:, None]   # a grid for x_t, D = 1
t = 200
mass = mixture.marginal(schedule, t).log_prob(spread).exp()
best = mixture.eps(schedule, spread, t)[:, 0]
other = torch.tanh(spread[:, 0])                       # any other predictor
back = mixture.reverse(schedule, spread, t, 0)         # q(x_0 | x_t): its variance gives ε's
rest = alpha_bar[t] / (1 - alpha_bar[t]) * back.covariance[:, 0, 0]
floor_t = torch.trapezoid(mass * rest, spread[:, 0])
second = 1 - 2 * torch.trapezoid(mass * best * other, spread[:, 0]) \
    + torch.trapezoid(mass * other**2, spread[:, 0])   # E ε² − 2 E[ε f] + E f², E[ε f] = E[ε* f]
claim("7.10", second, floor_t + torch.trapezoid(mass * (best - other) ** 2, spread[:, 0]), tol=1e-8)

train_rows, heldout_rows = images.flatten(1).double(), heldout.flatten(1).double()
covariance = torch.cov(train_rows.T)
spectrum = torch.linalg.eigvalsh(covariance).clamp(min=0)
gaussian = GaussianData(train_rows.mean(0), covariance + 1e-6 * torch.eye(64).double())
memoriser = FiniteData(train_rows)


def gauss_floor(t):
    """(7.11)."""
    return (alpha_bar[t] * spectrum / (alpha_bar[t] * spectrum + 1 - alpha_bar[t])).mean()


for t in (20, 200):
    many = gaussian.sample(20_000, seeded(6))
    noise = torch.randn(many.shape, generator=seeded(7), dtype=torch.float64)
    error = (noise - gaussian.eps(schedule, diffusion.q_sample(many, t, noise), t)) ** 2
    error = error.mean(1)
    claim("7.11", gauss_floor(t), error.mean(), standard_error=error.std() / 20_000**0.5)

t = 150
noise = torch.randn(40, 64, generator=seeded(8), dtype=torch.float64)
x_t = diffusion.q_sample(heldout_rows[:40], t, noise)
gap = torch.cdist(x_t, alpha_bar[t].sqrt() * train_rows)
rho = (-(gap**2) / (2 * (1 - alpha_bar[t]))).softmax(1)
typed = (x_t - alpha_bar[t].sqrt() * rho @ train_rows) / (1 - alpha_bar[t]).sqrt()
claim("7.12", typed, memoriser.eps(schedule, x_t, t), tol=1e-8)
fact("training images among which the memoriser's answer is shared, t = 150, average",
     (1 / (rho**2).sum(1)).mean(), digits=2)

# %% [markdown]
# Now measure, at eleven steps, on training images and on held-out ones: the two references, and the network.

# %%
moments = (5, 10, 20, 40, 70, 100, 150, 200, 300, 400, 500)


def losses_of(denoiser, data, dtype=torch.float64):
    """The loss at each of the moments, on the same noise for every denoiser."""
    found = []
    for t in moments:
        noise = torch.randn(data.shape, generator=seeded(100 + t))
        loss = simple_loss(denoiser, diffusion, data.to(dtype), t, noise.to(dtype))
        found.append(loss.double().mean())
    return torch.stack(found)


some = images[torch.randperm(len(images), generator=seeded(9))[:355]]
predictors = {"memoriser": memoriser.denoiser(schedule), "Gaussian": gaussian.denoiser(schedule)}
losses_at = {(name, where): losses_of(f, data) for name, f in predictors.items()
            for where, data in (("train", some), ("heldout", heldout))}
with torch.no_grad():
    for where, data in (("train", some), ("heldout", heldout)):
        losses_at["network", where] = losses_of(ema, data, torch.float32)
fact("memoriser, training images, t = 100, 200",
     [losses_at["memoriser", "train"][moments.index(t)] for t in (100, 200)], digits=2)
fact("memoriser, held-out images, t = 10, 100, 200",
     [losses_at["memoriser", "heldout"][moments.index(t)] for t in (10, 100, 200)], digits=2)
fact("Gaussian, held-out images, t = 10, 100, 200",
     [losses_at["Gaussian", "heldout"][moments.index(t)] for t in (10, 100, 200)], digits=2)
fact("formula (7.11) there", [gauss_floor(t) for t in (10, 100, 200)], digits=2)

fig, (left, right) = figure(1, 2, sharey=True, row_height=3.0)
for ax, where, title in ((left, "train", "training images"), (right, "heldout", "held-out images")):
    for name, colour in (("memoriser", VERMILLION), ("Gaussian", GREY), ("network", BLUE)):
        ax.loglog(moments, losses_at[name, where].clamp(min=1e-5), "o-", ms=4, color=colour,
                  label=name)
    ax.set(xlabel="$t$", title=title, ylim=(1e-3, 200))
left.set_ylabel("loss per coordinate")
right.legend(loc="upper right")
show(fig, """Loss per coordinate against t, both axes logarithmic. On training images the
memoriser's curve lies below 0.001 up to t = 70, far below the other two, and then rises to 0.08
at t = 300, where it meets them; the network runs below the Gaussian up to there. On held-out
images the memoriser starts above 100 at t = 5 and comes down to the others only near t = 200,
while network and Gaussian look as they did on training images.""")

# %% [markdown]
# *Has it learned digits, or these digits?* On the left, on images that it was trained on, the network is below the Gaussian, and up to $t=150$ far above the memoriser. On the right, on images that it has never seen, its curve has hardly moved, while the memoriser's has gone up by *orders of magnitude*: at small $t$ it insists on a training image, and $x_t$ is
# close to none. Two lessons. A training loss that comes down is good news only as long as the loss on held-out images comes down with it. And a low loss on held-out images at every $t$ is what no lookup table can have.
#
# In the order of the curves, with $\ell_t$ the loss at step $t$ as in (3.33), and both sides measured on the same noise:
#
# $$
# \begin{aligned}
# \text{training images:}&\quad \ell_t^{\,\text{memoriser}}\le \ell_t^{\,\text{network}}\le \ell_t^{\,\text{Gauss}} ,\\
# \text{held out:}&\quad \ell_t^{\,\text{network}}\le \min\big(\ell_t^{\,\text{memoriser}},\,\ell_t^{\,\text{Gauss}}\big) .
# \end{aligned}
# \tag{7.13}
# $$
#
# This is no theorem. It is what a network that generalises looks like on data like these, in the middle range of $t$ where the loss is won or lost.

# %%
where = [moments.index(t) for t in (20, 40, 70, 100, 150, 200)]
claim("7.13", losses_at["memoriser", "train"][where], losses_at["network", "train"][where],
      relation="<=", note="training images")
claim("7.13", losses_at["network", "train"][where], losses_at["Gaussian", "train"][where],
      relation="<=", note="training images")
reference = torch.minimum(losses_at["memoriser", "heldout"], losses_at["Gaussian", "heldout"])
claim("7.13", losses_at["network", "heldout"][where], reference[where], relation="<=",
      note="images held out")

# %% [markdown]
# **Loss per quarter of $1..T$.** While a run is going, one number is too little in another way. The loss at $t=900$ by (7.11) is less than a thousandth of that at $t=20$, so the average over $t$ is ruled by the small steps, and a network that has not understood large $t$ at all hardly shows. Good training code records the loss of each quarter of $1..T$ separately: the quarter of step $t$ is
# $\lfloor 4(t-1)/T\rfloor$, from 0 to 3. For reference, (7.11) averaged over each quarter is what the best linear network would show.

# %%
every = torch.stack([gauss_floor(t) for t in range(1, T + 1)])
fact("best linear network, average over all t", every.mean(), digits=3)
fact("    over each quarter", every.reshape(4, -1).mean(1), digits=2)
last = torch.tensor([record["loss_by_quartile"] for record in trainer.history[-10:]]).mean(0)
claim("7.11", last[:2], every.reshape(4, -1).mean(1)[:2], relation="<=",
      note="the network in the last quarter of the training, t up to 250 and to 500")

fig, ax = figure(row_height=3.0)
steps = [record["step"] for record in trainer.history]
ranges = ("t ≤ 250", "250 < t ≤ 500", "500 < t ≤ 750", "750 < t")
for quarter, colour in enumerate((BLUE, GREEN, ORANGE, VERMILLION)):
    curve = [record["loss_by_quartile"][quarter] for record in trainer.history]
    ax.semilogy(steps, curve, color=colour, label=ranges[quarter])
    ax.axhline(every.reshape(4, -1).mean(1)[quarter], color=colour, lw=1, ls=":")
ax.set(xlabel="training step $n$", ylabel="loss per coordinate")
ax.legend(ncols=2)
show(fig, """Training loss against the step, logarithmic, one curve for each quarter of 1..T. The
first records, means over 50 steps, lie between 0.5 and 0.8, and all four fall steeply up to step
two hundred. The first quarter ends near
0.26, the second near 0.07, the third near 0.009, the last near 0.001. Dotted lines mark the best
linear network in each quarter: the first curve ends well below its line, the second a little below,
the third a little above, and the last five times above.""")


# %% [markdown]
# *Which quarter is worth the work?* The first: there the network has left the best linear one far behind, and the average over $t$ shows little else. In the last two it is still *above* it. With so little signal left in $x_t$ the truth is nearly linear, $\hat\varepsilon\approx x_t$, and a network of four hundred thousand weights has to learn this simple map to three digits, which takes it longer than you would think. No quarter can be read off the average:
# watch all four.
#
# **Exercise 7.3** (2 points, 10 minutes, ●●○) — *Loss by quarters.* Write `quartile_losses(t, loss, T)` that returns a tensor of four numbers, the mean of `loss` over the rows whose step is in each quarter of $1..T$. `t` is an int64 tensor `(B,)` of steps $1..T$, `loss` a tensor `(B,)`; every quarter has at least one row.

# %%
def quartile_losses(t, loss, T):
    """The mean loss in each quarter of 1..T, a tensor (4,)."""
    raise NotImplementedError("your turn")


check("7.3", quartile_losses)


# %% [markdown]
# ## 7.7 Averaged weights
#
# A gradient step follows one batch, so the weights tremble around where they would like to be, and they tremble more, the larger the learning rate. DDPM's remedy, and nearly everybody's since, is to sample not with the weights $\theta_n$ but with a running average of them, an **exponential moving average** (EMA):
#
# $$
# \bar\theta_n \;=\; d\;\bar\theta_{n-1}+(1-d)\;\theta_n ,
# \qquad \bar\theta_0=\theta_0 .
# \tag{7.14}
# $$
#
# Unroll it: put the line for $\bar\theta_{n-1}$ into that for $\bar\theta_n$, and so on down to $\bar\theta_0$,
#
# $$
# \bar\theta_n \;=\; d^{\,n}\,\theta_0+(1-d)\sum_{k=1}^{n}d^{\,n-k}\,\theta_k .
# \tag{7.15}
# $$
#
# The shares sum to one, since $(1-d)\sum_{j=0}^{n-1}d^{\,j}=1-d^{\,n}$. How much trembling is left? If the $\theta_k$ scattered independently around one point with variance $V$, the average would have the variance $V(1-d)^2\sum_j d^{2j}$, and the geometric sum gives
#
# $$
# \operatorname{Var}[\bar\theta_n] \;\to\; V\,\frac{(1-d)^2}{1-d^2} \;=\; V\,\frac{1-d}{1+d} .
# \tag{7.16}
# $$
#
# With $d=0.99$ that is one part in two hundred. (Real steps follow one another and are not independent; the gain is smaller, and it is had for free.)
#
# > **Pitfall: the average that remembers the start.** Look at the first term of (7.15): $d^{\,n}$ of the *untrained* weights stay in the average. DDPM's $d=0.9999$ was chosen for 800,000 steps. After 10,000 steps 37 per cent of $\bar\theta$ are still the random initial weights, and after the 2,000 of this chapter 82 per cent; samples are noise, and the loss of the raw network looks
# > fine. Well-known code bases average like this from the first step.
#
# The cure is a **warm-up** of the average: at step $n$ use $d_n=\min\big(d,\,\tfrac{1+n}{10+n}\big)$. As long as the second is the smaller, the share of the initial weights is a product in which nearly everything cancels,
#
# $$
# \prod_{k=1}^{n}\frac{1+k}{10+k} \;=\; \frac{(n+1)!\;10!}{(n+10)!}
# \;=\;\frac{10!}{(n+2)(n+3)\cdots(n+10)} \;\le\; \frac{10!}{n^{9}} ,
# \tag{7.17}
# $$
#
# and the average reaches back over the last tenth of the run, roughly, however long it is (since $1-d_n=9/(10+n)$, a new step enters with a share of about $9/n$).

# %%
def average(values, decay):
    """(7.14): the running average of values[1:], begun at values[0]; decay(n) is d_n."""
    mean = values[0]
    for n, value in enumerate(values[1:], start=1):
        mean = decay(n) * mean + (1 - decay(n)) * value
    return mean


d, n = 0.9, 25
walk = torch.randn(n + 1, generator=seeded(10), dtype=torch.float64).cumsum(0)
typed = d**n * walk[0] + sum((1 - d) * d ** (n - k) * walk[k] for k in range(1, n + 1))
claim("7.15", typed, average(walk, lambda n: d))

g = seeded(12)
many = [torch.randn(600_000, generator=g) for _ in range(70)]
settled = average(many, lambda n: d).double()          # 600,000 averages at once
claim("7.16", (1 - d) / (1 + d), settled.var(), standard_error=settled.var() * (2 / 6e5) ** 0.5)



class Pair(nn.Module):
    """Two weights in float64, enough for the Trainer to train and to average."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor([0.5, -0.5], dtype=torch.float64))

    def forward(self, x, t, y=None):
        return (self.factor * x.double()).to(x.dtype)


pair = Pair()
little = Trainer(pair, diffusion, mixture.sample(50, seeded(13)).float().expand(-1, 2),
                 TrainingConfig(steps=6, batch_size=8, learning_rate=0.1, warmup_steps=0, seed=0,
                                precision="float32", log_every=6), device="cpu")
weights = [pair.factor.detach().clone()]
for step in range(1, 7):
    little.run(step)
    weights.append(pair.factor.detach().clone())
warm = [min(0.9999, (1 + k) / (10 + k)) for k in range(1, 7)]
claim("7.14", average(torch.stack(weights), lambda n: warm[n - 1]), little.ema.factor,
      note="six steps of the Trainer")
product = math.factorial(7) * math.factorial(10) / math.factorial(16)
claim("7.17", product, average([1.0] + 6 * [0.0], lambda n: warm[n - 1]),
      note="what is left of the first weights")
fact("share of the initial weights without warm-up, d = 0.9999, n = 2000, 10000",
     [0.9999**2000, 0.9999**10_000], digits=2)
fact("with warm-up, n = 2000",
     math.exp(math.lgamma(2002) + math.lgamma(11) - math.lgamma(2011)), digits=2)

# %% [markdown]
# Does it matter here? The same training run, judged with the raw weights of its last step and with their average, on the held-out images and the same noise. By the loss the average is ahead, by little. Section 7.8 asks again, by the samples.

# %%
with torch.no_grad():
    losses_at["raw", "heldout"] = losses_of(raw, heldout, torch.float32)
claim("7.10", losses_at["network", "heldout"].mean(), losses_at["raw", "heldout"].mean(),
      relation="<=", note="averaged weights against raw ones: nearer to the floor")


# %% [markdown]
# **Exercise 7.4** (3 points, 15 minutes, ●●●) — *Who is in the average?* Write `ema_shares(n, decay)` that returns a tensor of the $n+1$ shares with which $\theta_0,\dots,\theta_n$ stand in $\bar\theta_n$, if step $k$ uses $d_k=\min\big(d,\tfrac{1+k}{10+k}\big)$; `decay` is $d$.

# %%
def ema_shares(n, decay):
    """The shares of theta_0 … theta_n in the average after n steps, with warm-up."""
    raise NotImplementedError("your turn")


check("7.4", ema_shares)


# %% [markdown]
# ## 7.8 Three choices when sampling
#
# Training is over; now algorithm 2, with the averaged weights. Three things are still open: the variance $\sigma_t^2$, whether $\hat x_0$ is clipped, and how many of the steps we take. (Skipping steps needs nothing new: (4.49) holds for any pair $s<t$. Chapter 9 makes an art of it.)
#
# **The variance, where everything is exact.** Chapter 4 has found that the best variance depends on the data: $\tilde\beta$ if $x_t$ tells $x_0$, $\beta$ if the data are $\mathcal N(0,I)$. What do digits want? Take again the Gaussian law with their covariance. In the eigendirection with variance $\lambda_i$ the variance of the walk obeys (4.36) with $V=\lambda_i$; no sample is drawn. At the end the walk has variances $R_i$ where the data have $\lambda_i$, in the same
# directions, and the squared Fréchet distance (T.44) of two centred Gaussians (mean zero) with common eigenvectors is
#
# $$
# F \;=\; \sum_{i=1}^{D}\big(\sqrt{R_i}-\sqrt{\lambda_i}\big)^2 .
# \tag{7.18}
# $$
#
# (In the common eigenvectors all matrices of (T.44) are diagonal, its root has the entries $\sqrt{R_i\lambda_i}$, and the sum of $R_i+\lambda_i-2\sqrt{R_i\lambda_i}$ is a sum of squares.) We compute it for walks of 5 to 1000 steps.

# %%
def variance_of_walk(count, choice):
    """R_i after a walk of `count` steps with perfect predictors: (4.36) in every direction."""
    steps = [*schedule.steps(count, "trailing").tolist()[::-1], 0]
    R = torch.ones(64, dtype=torch.float64)
    for t, s in pairwise(steps):
        ratio = alpha_bar[t] / alpha_bar[s]
        beta, share = 1 - ratio, (1 - alpha_bar[s]) / (1 - alpha_bar[t])
        c_0 = alpha_bar[s].sqrt() * beta / (1 - alpha_bar[t])
        shrink = alpha_bar[t].sqrt() * spectrum / (alpha_bar[t] * spectrum + 1 - alpha_bar[t])
        noise = {"beta": beta, "posterior": share * beta}[choice] if s > 0 else 0.0
        R = (c_0 * shrink + ratio.sqrt() * share) ** 2 * R + noise
    return R


counts = (5, 10, 20, 50, 100, 200, 500, 1000)
apart = {choice: torch.stack([((variance_of_walk(n, choice).sqrt() - spectrum.sqrt()) ** 2).sum()
                              for n in counts]) for choice in ("posterior", "beta")}
basis = torch.linalg.eigh(covariance).eigenvectors
theirs = gaussian_frechet_distance(
    torch.zeros(64).numpy(), (basis * variance_of_walk(20, "posterior") @ basis.T).numpy(),
    torch.zeros(64).numpy(), (basis * spectrum @ basis.T).numpy())
claim("7.18", apart["posterior"][2], theirs, tol=1e-8, note="20 steps, against the metric")
for choice in ("posterior", "beta"):
    fact(f"F after 5, 10, 20, 100, 1000 steps, {choice}", apart[choice][[0, 1, 2, 4, 7]], digits=2)
assert (apart["posterior"] > 2.5 * apart["beta"]).all()
assert (apart["posterior"][1:] > 10 * apart["beta"][1:]).all()
fact("for scale, the variance of the data, summed over pixels", spectrum.sum(), digits=3)

# %% [markdown]
# For this law $\beta$ is the better choice at every length, nearly threefold with five steps and more than tenfold from ten on. At a thousand steps that hardly matters: both are off by less than $10^{-3}$ where the data's variance is 19. At twenty steps it does.
#
# That was the Gaussian law, of which only the covariance is like digits. Real digits are not so vague: given a moderately noisy digit it is fairly clear what the clean one looks like. That speaks for $\tilde\beta$. And the network is not perfect; what $\beta$ adds in noise the network has to take away again in later steps, and a network can do that only
# so well. So let us measure. The distance is the Fréchet distance in the features of the book's classifier, to the 355 held-out digits; 355 samples each; the *floor* is what 355 real training digits get (section 7.10 does this more carefully).

# %%
judge = classifier()
real = judge.features(heldout)


def draw(denoiser, seed, *, steps=100, variance="posterior", clip=(-1, 1), n=355):
    """n samples by an ancestral walk over `steps` of the thousand steps, at the digits' levels."""
    process = GaussianDiffusion(schedule, variance=variance)
    spacing = None if steps == T else "trailing"
    x = generate(denoiser, process, (n, 1, 8, 8), steps=steps, spacing=spacing, eta=1.0, clip=clip,
                 generator=seeded(seed))
    return quantise(x, DIGITS_LEVELS)


def away(samples):
    """Fréchet distance to the held-out digits, in the classifier's features."""
    return frechet_distance(judge.features(samples), real)


order = torch.randperm(len(images), generator=seeded(13))
floor = sum(away(images[part]) for part in order.split(355)[:4]) / 4
began = time.perf_counter()
found = {"100 steps, posterior": draw(ema, 1)}
seconds_of_sampling = time.perf_counter() - began
found |= {
    "25 steps, posterior": draw(ema, 1, steps=25),
    "25 steps, beta": draw(ema, 1, steps=25, variance="beta"),
    "25 steps, posterior, not clipped": draw(ema, 1, steps=25, clip=None),
    "25 steps, posterior, raw weights": draw(raw, 1, steps=25),
    "10 steps, posterior": draw(ema, 1, steps=10),
    "10 steps, beta": draw(ema, 1, steps=10, variance="beta"),
}
ratios = {name: away(samples) / floor for name, samples in found.items()}

fig, ax = figure(row_height=2.8)
names = list(ratios)[::-1]
ax.barh(names, [ratios[name] for name in names],
        color=[GREY if "raw" in name else BLUE for name in names])
for place, name in enumerate(names):
    ax.text(ratios[name] + 0.05, place, f"{ratios[name]:.2f}", va="center", fontsize=10)
ax.axvline(1, color=VERMILLION, lw=1, ls="--")
ax.set(xlabel="Fréchet distance over the floor (one generation each)",
       xlim=(0, 1.1 * max(ratios.values())))
show(fig, """Bars: the Fréchet distance to held-out digits, over the floor, for seven ways to
sample. With averaged weights and 25 or 100 steps the bars lie between 1 and 3; at 25 steps the
posterior variance is shorter than beta, and clipping makes no difference. With 10 steps the
bars are several times as long as with 25, and so is that of the raw weights.""")

# %%
show_images(torch.stack([found[name][:12] for name in found if "raw" not in name]),
            """Six rows of twelve samples, from the same starting noise. With 100 steps and with 25,
the posterior variance and beta mostly give digits, with beta among grey specks; without clipping
they are nearly the same as with it. With 10 steps, whichever the variance, the strokes are softer
and several samples are blots that are no digit.""",
            row_labels=["100, post.", "25, post.", "25, beta", "no clip", "10, post.", "10, beta"])
paired = [(away(draw(ema, k, steps=25)), away(draw(ema, k, steps=25, variance="beta")))
          for k in range(1, 6)]                        # the same x_T in each pair
assert sum(a - b for a, b in paired) < 0
assert ratios["25 steps, posterior"] < ratios["25 steps, posterior, raw weights"]
assert ratios["25 steps, posterior"] < min(ratios["10 steps, posterior"], ratios["10 steps, beta"])

# %% [markdown]
# *Which choice shows?* The eye finds little, apart from the blots in the last two rows and the grey specks of the row "25, beta", on a background that should be black. The numbers beside the bars are one generation each, and two generations with the same settings may differ by a factor of two (section 7.10). The long bars are safe; $\beta$ against $\tilde\beta$ is decided by five pairs of generations, each pair from the same $x_T$: on average $\tilde\beta$ is nearer. *Ten steps are too few*: the distance is a multiple of that of 25 or 100. And *the weights*: the grey bar. The raw weights end several times as far from real digits as their own average, although the loss of
# the two hardly differs. Section 7.7 was not about a detail.
#
# For the variance and the longer walks we need a better network and more patience. The weights that ship with the book come from the same network after 8,000 steps, and `make measure` has measured them on one machine; what it found is stored, and plotted here. To be sure that the stored curve is about these weights and this code, the cell measures its cheapest point again.

# %%
stored = measured("digits")
shipped_floor = stored["full_chain"]["posterior"]["floor"]["mean"]
curves = {name: torch.tensor(values) / shipped_floor
          for name, values in stored["distance_by_steps"].items()}
again = generate(finished.network, diffusion, heldout.shape, steps=10, spacing="trailing", eta=1.0,
                 clip=(-1, 1), generator=seeded(0))
again = away(quantise(again, DIGITS_LEVELS)) / shipped_floor
assert abs(again / curves["posterior"][0] - 1) < 0.1   # the cheapest point, measured once more
fact("stored: distance over the floor after 10, 25, 50, 100, 250 steps, posterior",
     curves["posterior"], digits=2)
fact("    beta", curves["beta"], digits=2)
whole = stored["full_chain"]["posterior"]["ratio"]
fact("    all 1000 steps, posterior, five generations", whole["mean"], digits=2)
fact("    their interval", [whole["low"], whole["high"]], digits=2)

fig, ax = figure(row_height=2.8)
for name, colour in (("posterior", PURPLE), ("beta", VERMILLION)):
    ax.semilogx(stored["steps"], curves[name], "o-", ms=4, color=colour,
                label=r"$\tilde\beta$" if name == "posterior" else r"$\beta$")
ax.errorbar([1000], [whole["mean"]], [[whole["mean"] - whole["low"]],
                                      [whole["high"] - whole["mean"]]], fmt="s", ms=5, capsize=4,
            color=PURPLE, label=r"$\tilde\beta$, five generations")
ax.axhline(1, color=GREY, lw=1, ls="--")
ax.set(xlabel="number of steps", ylabel="distance over the floor", ylim=(0, 2.5),
       xticks=[10, 25, 50, 100, 250, 1000], xticklabels=[10, 25, 50, 100, 250, 1000])
ax.minorticks_off()
ax.legend(loc="lower left", ncols=3, fontsize=9)
show(fig, """Distance over the floor against the number of steps, for the shipped weights. Both
variances start at 2 with ten steps and zigzag between 1.2 and 1.8 from 25 steps on; beta is a
little above the posterior variance up to 50 steps and not from 100 on. At 1000 steps, five
generations: 1.25, with an interval from 0.8 to 1.7.""")

# %% [markdown]
# *How many steps, and which variance?* Two curves from the same starting noise, so their difference is less noisy than either.
#
# - **$\beta$ or $\tilde\beta$?** Up to fifty steps $\tilde\beta$ is ahead, *although* for the Gaussian law it was the other way round. Both are right; they are about different data. A digit is less vague than a Gaussian with a digit's covariance: more of its noise can be read off, $\xi_t$ is smaller, and (4.32) moves towards $\tilde\beta$. And whatever noise a step adds, an imperfect network has to remove. From a hundred steps on the two cannot be told apart: each step is so small
#   that the variances nearly agree, (4.26). On CIFAR-10 the DDIM paper (Table 1) finds $\beta$ ahead with 1000 steps, FID 3.17 against 4.73, and hopelessly behind with ten, 367 against 41.
# - **How many?** From 25 steps on the curves zigzag: what one sees is the luck of one generation. The interval on the right, from five of them, is as high as all the differences between 25 and 1000 steps. On digits a hundred steps are plenty, and this chapter goes on with a hundred.
#
# **Clipping.** Images live in $[-1,1]$; a guess $\hat x_0$ outside is wrong for certain, so it is cut back, *and $\hat\varepsilon$ is derived anew from it*, (4.48). In terms of (7.2) the step with clipping is
#
# $$
# x_{t-1} \;=\; \frac{\sqrt{\bar\alpha_{t-1}}\,\beta_t}{1-\bar\alpha_t}\,\operatorname{clip}(\hat x_0)
# +\frac{\sqrt{\alpha_t}\,(1-\bar\alpha_{t-1})}{1-\bar\alpha_t}\,x_t+\sigma_tz ,
# \qquad \hat x_0=\frac{x_t-\sqrt{1-\bar\alpha_t}\,\hat\varepsilon}{\sqrt{\bar\alpha_t}} ,
# \tag{7.19}
# $$
#
# the posterior mean (4.12) with the clipped guess in the place of $x_0$. The next cell counts how often it does anything. With $\hat\varepsilon$ kept from before, (7.2) is the step *without* clipping: nothing has been clipped at all.

# %%
t = 900
noise = torch.randn(heldout.shape, generator=seeded(14))
x_t = diffusion.q_sample(heldout, t, noise).double()
with torch.no_grad():
    eps = ema(x_t.float(), torch.full((355,), t)).double()
free, clipped = diffusion.predict(eps, x_t, t), diffusion.predict(eps, x_t, t, clip=(-1, 1))
before, beta = alpha_bar[t - 1], schedule.beta[t]
typed = (before.sqrt() * beta * free.x0.clamp(-1, 1) + alpha[t].sqrt() * (1 - before) * x_t)
claim("7.19", typed / (1 - alpha_bar[t]), diffusion.reverse(eps, x_t, t, clip=(-1, 1)).mean)
assert (clipped.x0 - free.x0).abs().max() > 0.05       # it does something, on any machine
for t, noisy_digits in ((900, x_t), (200, diffusion.q_sample(heldout, 200, noise).double())):
    with torch.no_grad():                              # the weights of the book
        eps = finished.network(noisy_digits.float(), torch.full((355,), t)).double()
    out = (diffusion.predict(eps, noisy_digits, t).x0.abs() > 1.05).double().mean()
    moved = diffusion.reverse(eps, noisy_digits, t, clip=(-1, 1)).mean - line(noisy_digits, eps, t)
    fact(f"t = {t}: share of guesses outside by more than 0.05", out, digits=1)
    fact("    largest change of the mean by clipping", moved.abs().max(), digits=1)


# %% [markdown]
# At $t=900$ the share is large and at $t=200$ it is not, and in neither place does the step notice much: by (7.19) the guess enters with a small weight, since one step of a thousand is a small one. On short chains the weight is larger.
#
# **Exercise 7.5** (3 points, 15 minutes, ●●○) — *Clip, and mean it.* Write `clipped_mean(x_t, t, eps, alpha_bar)` that returns the mean of the step to $x_{t-1}$ with the guess $\hat x_0$ clipped to $[-1,1]$, for an int $1\le t\le T$.

# %%
def clipped_mean(x_t, t, eps, alpha_bar):
    """The mean of (7.19)."""
    raise NotImplementedError("your turn")


check("7.5", clipped_mean)

# %% [markdown]
# **Exercise 7.6** (3 points, 20 minutes, ●●●) — *Your own sampler.* In `my_ddpm.py`, write `generate(denoiser, x_T, noises, alpha_bar)` that walks from `x_T` down to $x_0$ and returns it. `denoiser(x, t)` is called with an int64 tensor of the shape `(B,)` for `t`, as a network is, and returns $\hat\varepsilon$; `alpha_bar` has $T+1$ entries, from $\bar\alpha_0=1$ on; `noises` holds the $z$ of every step, `noises[t]` for step $t$ (its entry 0 is not used); $\sigma_t^2=\tilde\beta_t$. Use your `reverse_step`, or write its line again.

# %%
check("7.6", "my_ddpm.generate")

# %% [markdown]
# ## 7.9 New digits, or old ones?
#
# Section 7.6 has said what to fear: the memoriser, whose samples are training images. For a sample one looks up the nearest training image, in plain pixel distance. The figure shows samples above their nearest training images; below them, the same for the memoriser, which goes through the same sampler.

# %%
samples = [found["100 steps, posterior"], *(draw(ema, seed) for seed in range(2, 6))]
copies = draw(predictors["memoriser"], 1, n=60)
shown = []
for group in (samples[0][:8], copies[:8]):
    shown.append(torch.stack([group, images[nearest(group, images).indices]]))
show_images(torch.cat(shown), """Four rows of eight digits. First row, samples of the network;
second row, the nearest training image of each, similar in shape but different in detail. Third row,
samples of the memoriser; fourth row, their nearest training images, which are the same images.""",
            row_labels=["network", "nearest", "memoriser", "nearest"])

# %% [markdown]
# How near is too near? A sample of the true law would be as near to the training set as an image that was *held out*. So count the pairs of a sample and a held-out image in which the sample is the nearer one:
#
# $$
# P(\text{nearer}) \;=\; \frac{1}{nM}\sum_{i=1}^{n}\sum_{j=1}^{M}\Big(\mathbf 1[a_i<b_j]+\tfrac12\,\mathbf 1[a_i=b_j]\Big) ,
# \tag{7.20}
# $$
#
# where $a_i$ are the distances of the $n$ samples to their nearest training images and $b_j$ those of the $M$ held-out images. It estimates (T.48). One half is what new images have. And count the samples that are less than half as far from their nearest training image as from the second nearest: close to *one* image, and not only to where images are.

# %%
mine, known = nearest(samples[0], images).distances, nearest(heldout, images).distances
pairs = (mine[:, None] < known).double() + 0.5 * (mine[:, None] == known)
report_of_network = memorisation(samples[0], images, heldout)
report_of_copies = memorisation(copies, images, heldout)
claim("7.20", pairs.mean(), report_of_network.share_nearer)
fact("memoriser: share nearer than held-out images", report_of_copies.share_nearer, digits=2)
fact("    near one training image only", report_of_copies.share_copied, digits=2)
fact("held-out images, for comparison", report_of_copies.heldout_copied, digits=2)
assert report_of_network.share_copied < 0.05
assert report_of_network.share_nearer < 0.9

# %% [markdown]
# ## 7.10 How good are they, honestly?
#
# A single Fréchet distance is easy to flatter. Compare with the training set instead of images held out, and a memoriser is perfect. Use more samples on one side than on the other, and the bias helps. Report the best of three runs. Leave out the interval. The [toolbox](A_toolbox.ipynb#T.12-How-we-will-measure) fixes a protocol before any number is seen, and we keep to it:
#
# - samples against **held-out** images, as many of them as there are of those, 355;
# - five **independent generations**, whose scatter gives the interval;
# - beside it the **floor**: what real images, subsets of the training set, get in the same comparison. With 355 images even real ones are not at distance zero;
# - beside that, precision, recall, and the two shares of section 7.9: a distance at the floor proves nothing by itself, because copies of the training set stand there too.

# %% tags=["nbval-ignore-output"]
report = evaluate(samples, images, heldout, levels=DIGITS_LEVELS, generator=seeded(15))
print(report.summary())

# %%
print(report.generations, "generations of", report.size, "samples each")
print("at most three times the floor:", report.ratio.mean <= 3)
assert report.ratio.mean <= 3                          # with room: five generations leave ± 0.5
assert report.share_copied.mean < 0.05                 # and nothing was copied
book = stored["full_chain"]["posterior"]
fact("weights of the book, all steps: distance over the floor", book["ratio"]["mean"], digits=3)
fact("    precision, and that of real images",
     [book["precision"]["mean"], book["real_precision"]["mean"]], digits=2)
fact("    recall, and that of real images",
     [book["recall"]["mean"], book["real_recall"]["mean"]], digits=2)
fact("    share nearer than held-out images", book["share_nearer"]["mean"], digits=2)
print("    verdict:", book["verdict"])

# %% [markdown]
# A few minutes of training end somewhere between once and three times the floor; in the lines above, which come from one machine, at 1.4 times. The interval reaches from below one to two, so five generations cannot even exclude that the model stands *at* the floor, and a verdict from the distance alone has to say so. The other numbers see more. *Precision*, the share of samples that lie where real digits lie, is
# clearly below that of real images: about 15 of 100 samples lie outside, where of real digits 6 do. *Recall* is almost that of real images: no kind of digit is missing. And the samples are, if anything, *farther* from the training images than held-out digits are: the opposite of copying. The way on is clear, more steps of the same. The weights that ship with the book have had four times as many, and come nearer by the same protocol;
# their samples are still not nearer to the training images than new digits are. (`python -m ddpm_lite evaluate --model digits` repeats this.)
#
# The width of the intervals is worth a look too. A single generation may be half as far again from real digits as the next one, or only half as far. Whoever reports the best of five reports luck.
#
# ## 7.11 In bits
#
# Samples tell what the model draws. The likelihood bound of chapter 5 tells what it *gives probability to*, and it can be asked about every held-out image. It is a sum: the prior term $L_T$, known without the network, and one term $L_{t-1}$ for each step $t=1,\dots,T$ (for $t=1$ it is the decoder $L_0$ for data with levels, (5.31)). For 355 images the exact sum asks for 355,000 calls of the network. But a sum over $t$ is the number of its terms times their average, (3.33), and an average may be
# estimated from a few $t$ for each image. The first terms are large and differ most, so we take the first $K=40$ one by one and estimate the rest, with stratified $t$ as in training. The bound on $-\log p_\theta(x_0)$ is
#
# $$
# L_T+\sum_{t=1}^{T}L_{t-1}
# \;=\; L_T+\sum_{t=1}^{K}L_{t-1}+(T-K)\;\mathbb E_{t\sim\mathrm{U}\{K+1,\dots,T\}}\big[L_{t-1}\big] .
# \tag{7.21}
# $$
#
# Divided by $D\log 2$ this is **bits per dimension**, as in (5.33): the length, per pixel, of a lossless code that one could
# build from the model. Two codes to compare with: one that knows nothing needs $\log_2 17$ bits for 17 grey levels; one that knows, for each pixel by itself, how often each level occurs in the training set, needs on held-out images
#
# $$
# -\frac1{nD}\sum_{i=1}^{n}\sum_{j=1}^{D}\log_2 \hat p_j\big(x^{(i)}_j\big) ,
# \qquad \hat p_j(k)=\frac{N_j(k)+\tfrac1{10}}{N+\tfrac{17}{10}} ,
# \tag{7.22}
# $$
#
# where the $x^{(i)}$ are the $n$ held-out images at their levels, and $N_j(k)$ is the number of training images whose pixel $j$ has level $k$ (the tenth is there so that no level is impossible; chapter 1 added a half, and came to the same three digits).

# %%
level = ((images + 1) * 8).round().long().flatten(1)
unseen = ((heldout + 1) * 8).round().long().flatten(1)
share = torch.stack([(torch.bincount(column, minlength=17) + 0.1) / (len(images) + 1.7)
                     for column in level.T]).double()
pixel_bits = -share[torch.arange(64), unseen].log2().mean()
counted = [[(level[:, j] == k).sum() for k in range(17)] for j in (20, 36)]
claim("7.22", (torch.tensor(counted) + 0.1) / (1442 + 1.7), share[[20, 36]])
fact("bits per pixel, knowing nothing", math.log2(17))
fact("bits per pixel, each pixel by itself", pixel_bits)
fact("prior term, bits per pixel",
     prior_term(diffusion, heldout.double()).mean() / (64 * math.log(2)), digits=2)


def bits(denoiser, data, seed, dtype=torch.float32, K=40, draws=6):
    """The right side of (7.21) for each image, in bits per dimension: up to K, and beyond."""
    g, rest = seeded(seed), 0.0
    first = prior_term(diffusion, data.double())
    with torch.no_grad():
        for t in range(1, K + 1):
            noise = torch.randn(data.shape, generator=g)
            first = first + bound_term(denoiser, diffusion, data.to(dtype), t, noise.to(dtype),
                                       levels=DIGITS_LEVELS, clip=(-1, 1))
        for _ in range(draws):
            t = K + sample_steps(len(data), T - K, g, "stratified")
            noise = torch.randn(data.shape, generator=g)
            rest = rest + bound_term(denoiser, diffusion, data.to(dtype), t, noise.to(dtype),
                                     levels=DIGITS_LEVELS, clip=(-1, 1)).double()
    both_parts = torch.stack([first, (T - K) * rest / draws])
    return both_parts / (64 * math.log(2))


short = GaussianDiffusion(NoiseSchedule.from_betas([0.1, 0.2, 0.3, 0.4]), variance="beta")
law = GaussianData([0.2], [[0.3]])                     # a chain short enough for the whole sum
points, model, g = law.sample(200, seeded(17)), law.denoiser(short.schedule), seeded(18)
terms = torch.stack([bound_term(model, short, points, t,
                                torch.randn(points.shape, generator=g, dtype=torch.float64),
                                levels=None) for t in (1, 2, 3, 4)])
typed = prior_term(short, points) + terms[0] + 3 * terms[1:].mean(0)
claim("7.21", typed, variational_bound(model, short, points, levels=None,
                                       generator=seeded(18)).total, note="K = 1, T = 4")
coded = {"Gaussian": bits(predictors["Gaussian"], heldout, 21, torch.float64, draws=2),
         "memoriser": bits(predictors["memoriser"], heldout, 21, torch.float64, draws=2),
         "memoriser, training images": bits(predictors["memoriser"], some, 21, torch.float64,
                                            draws=2)}
fact("bits per pixel, held out, Gaussian", coded["Gaussian"].sum(0).mean(), digits=2)
fact("    memoriser", coded["memoriser"].sum(0).mean(), digits=2)
fact("to say which of the training images it is, per pixel: log2(1442)/64",
     math.log2(1442) / 64, digits=2)
fact("    memoriser, training images", coded["memoriser, training images"].sum(0).mean(), digits=2)
assert coded["memoriser, training images"].sum(0).mean() < 0.3

# %% tags=["nbval-ignore-output"]
coded["network"] = bits(ema, heldout, 21)
total = coded["network"].sum(0)
print(f"network, on held-out images: at most {total.mean():.2f} bits per pixel, "
      f"standard error {total.std() / 355**0.5:.2f};\n"
      f"of these {coded['network'][0].mean():.2f} in the first 40 of 1000 steps")

# %%
assert total.mean() < math.log2(17)
assert coded["network"][0].mean() > 0.5 * total.mean()
parts = stored["bits"]["heldout"]["posterior"]
fact("weights of the book, all terms: bits per pixel, held out", sum(parts.values()), digits=3)
fact("    of these in the steps t = 2 to T", parts["steps"], digits=3)
fact("    on training images", sum(stored["bits"]["train"]["posterior"].values()), digits=3)
small = [bits(finished.network, heldout, 24, K=K, draws=1)[0].mean() for K in (10, 40)]
fact("    share of the first 10 and of the first 40 steps, measured here",
     [part / sum(parts.values()) for part in small], digits=2, uncertainty=1e-3)


# %% [markdown]
# The memoriser needs, for an image of the training set, little more than it takes to say which one it is; for a new digit more than a thousand bits *per pixel*. It gives new digits practically no probability, and this is the sharpest way to say what it has not learned. The best linear network needs as much as a code that knows nothing.
#
# And ours? About three bits (the weights of the book: see the last lines above), and that is *worse* than the code that looks at each pixel by itself. Can a model that draws digits lose against a histogram? It can, and there is no contradiction. Nearly half of these bits are spent in the first ten of the thousand steps, nearly three quarters in the first forty, on differences that no eye sees: the histogram knows that the pixels at the left edge are nearly always black and charges next to nothing for them; the network has to say so to a fraction of a grey level,
# at every one of these steps. Just there $L_{\text{simple}}$ has dropped the largest weights (chapter 5), so nobody has asked it to. Likelihood and looks are two questions. DDPM reports the same about its own models: samples among the best of their day, likelihoods that are not, and most of the code spent on details that cannot be seen.
#
# ## 7.12 "My loss is stuck"
#
# Sooner or later it happens to everybody. Most of these mistakes do not crash. What helps is to know the numbers that a healthy run shows:
#
# - **at the very first step the loss is 1.** The last layer starts at (almost) zero, so the output is 0 and the loss is $\tfrac1D\mathbb E\lVert\varepsilon\rVert^2=1$. Another number: the target, or its scale, is not what you think.
# - **after a few hundred steps a U-Net is below the best linear network**, (7.11) averaged over $t$: for the digits 0.119. Above it for long: something is broken.
# - **on held-out images it cannot be below the floor** of the data. On training images the memoriser reaches 0.02: near that number a network memorises, or sees what it should not.
#
# Five mistakes and a healthy run, on a small network that learns in a second. It is no U-Net: two layers on 64 pixels and the clock of chapter 6.

# %%
class Small(nn.Module):
    """(x_t, t) -> output, for flattened digits."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock                             # how t is handed over
        self.layers = nn.Sequential(nn.Linear(64 + 32, 256), nn.SiLU(), nn.Linear(256, 256),
                                    nn.SiLU(), nn.Linear(256, 64))
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, x, t):
        return self.layers(torch.cat([x, self.clock(t)], dim=1))


clocks = {"hands": lambda t: timestep_embedding(t, 32, "sin-cos").float(),
          "raw number": lambda t: t[:, None].float().expand(-1, 32),
          "none": lambda t: torch.zeros(len(t), 32)}


def quick_run(clock="hands", data=None, target="eps", steps=300):
    """The losses of a small network, step by step."""
    g, data = seeded(22), images.flatten(1) if data is None else data
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = Small(clocks[clock])
    adam, losses = torch.optim.Adam(small.parameters(), lr=2e-3), []
    for _ in range(steps):
        x_0 = data[torch.randint(len(data), (128,), generator=g)]
        t = sample_steps(128, T, g, "stratified")
        eps = torch.randn(x_0.shape, generator=g)
        x_t = diffusion.q_sample(x_0, t, eps)
        wanted = {"eps": eps, "another": torch.randn(x_0.shape, generator=g),
                  "scaled": at((1 - alpha_bar).sqrt(), t, x_0) * eps}[target]
        loss = ((wanted - small(x_t, t)) ** 2).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    return torch.tensor(losses)


runs = {
    "as it should be": quick_run(),
    "t as a raw number": quick_run(clock="raw number"),
    "t not handed over": quick_run(clock="none"),
    "images in [0, 1]": quick_run(data=(images.flatten(1) + 1) / 2),
    "target times the noise level": quick_run(target="scaled"),
    "another noise as the target": quick_run(target="another"),
}

final = {name: losses[-100:].mean() for name, losses in runs.items()}

fig, ax = figure(row_height=3.4)
colours = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, GREY)
for (name, losses), colour in zip(runs.items(), colours, strict=True):
    smooth = losses.unfold(0, 10, 10).mean(1)
    ax.semilogy(range(5, 300, 10), smooth, color=colour, label=f"{name}: {final[name]:.2f}")
ax.axhline(every.mean(), color=GREY, lw=1, ls=":", label="best linear network: 0.12")
ax.set(xlabel="training step $n$", ylabel="loss", ylim=(0.03, 1.5))
fig.legend(loc="outside right center", fontsize=9, title="mean of the last 100", title_fontsize=9)
show(fig, """Loss against the step for six runs, on a logarithmic axis. All begin near 1, except the
one with a scaled target, at 0.7. Two end at 1: t as a raw number, which
leaves the picture at the second step and comes back, and another noise as the target, which never
leaves it.
The right run falls to about 0.18, the run without a clock runs just above it, the run with images
in 0 to 1 and the run with a scaled target end below it. A dotted line at 0.12 marks the best linear
network.""")

# %% [markdown]
# *Which of these would you notice?* From the top. *Another noise as the target*: the network is asked for a noise that has nothing to do with $x_t$. By (7.10) with $\varepsilon^*=0$ nothing below 1 is possible, and it stays at 1. A library with many users had this for a time, as an option that permuted the noise inside `q_sample` and not in the target. *The raw number*: inputs of the size of 1000 drown the 64 pixels of size 1;
# stuck at 1 as well, after a jump to some two hundred. *No clock at all*: looks like a slow but healthy run! Neither the curve nor the reference gives it away here: the right run of this small network is above 0.12 too. One line does: its outputs for one $x_t$ and two different $t$ are equal. *Images in $[0,1]$* and *a scaled target* show losses that are **lower** than those of the right run, and that is no merit: data in $[0,1]$ have a quarter of the variance, so the noise is easier to tell from them, (7.11) with $\lambda_i/4$; and a scaled target is smaller where there is little noise. The sampler pays. Samples in $[0,1]$ look grey, and clipping to $[-1,1]$ cuts nothing of them; and a scaled output, taken for $\hat\varepsilon$,
# removes too little noise at small $t$. (The small network itself has not reached the best linear one yet; a U-Net is past it by this time.) A loss is comparable only with the loss of the same task.

# %%
assert abs(final["another noise as the target"] - 1) < 0.05
assert final["t as a raw number"] > 0.8
assert final["as it should be"] < final["t not handed over"]
assert max(final["images in [0, 1]"], final["target times the noise level"]) \
    < final["as it should be"]
for name in ("as it should be", "another noise as the target", "t as a raw number"):
    first = runs[name][0]
    print(f"{name}: the first loss lies between 0.9 and 1.1:", bool(0.9 < first < 1.1))

# %% [markdown]
# > **Pitfall: the step that is never trained.** `torch.randint(1, T, …)` leaves out $t=T$, the step at which sampling *starts* ([section 5.14](05_epsilon_loss.ipynb#5.14-One-random-t-per-image,-and-which-one)). No loss shows it, since one $t$ in a thousand is missing. The same slip at the lower end, `randint(0, T)` in code that counts from 1, trains on clean images at $t=0$, where the noise cannot be seen at all
# > and the loss is 1 for these rows. The check takes one line: draw many $t$ and look at the smallest and the largest.

# %%
g = seeded(23)
right, wrong = torch.randint(1, T + 1, (100_000,), generator=g), torch.randint(1, T, (100_000,),
                                                                               generator=g)
drawn = torch.cat([sample_steps(64, T, g, "stratified") for _ in range(500)])
fact("smallest and largest t: right", [right.min(), right.max()])
fact("    with the slip", [wrong.min(), wrong.max()])
fact("    the library's stratified draw", [drawn.min(), drawn.max()])

# %% [markdown]
# | symptom | likely cause | how to make sure |
# |---|---|---|
# | first loss is not 1 | target or its scale; output not zero at the start | print `eps.std()`, and the output of the fresh network |
# | stuck at 1 | target unrelated to $x_t$; $t$ far too large a number; learning rate 0, or weights not in the optimiser | train on one single image: the loss must go to 0 |
# | stuck a little above what it should reach | the network does not use $t$; no path for small scales | compare the outputs for two $t$ at one $x_t$ |
# | falls, then NaN | learning rate; no warm-up, no clipping; half precision in the loss | lower the rate tenfold for a minute |
# | low loss, grey or faded samples | images in $[0,1]$; ᾱ_T not near 0, sampled from $\mathcal N(0,I)$ all the same | minimum, maximum and mean of the data; $\sqrt{\bar\alpha_T}$ |
# | low loss, noisy samples | another $t$ or schedule in the sampler than in training; noise at the last step; $\beta$ on a short chain | a walk with an exact predictor, as in 7.1: it must come out right |
# | raw weights sample well, the average does not | average without warm-up | (7.15): $d^{\,n}$ |
# | training loss falls, held-out loss rises | memorising | the two curves of 7.6; nearest training images |
# | all is well, but the numbers jump between runs | one generation, too few samples | five generations, and the interval |
#
# **Exercise 7.7** (3 points, 15 minutes, ●●○) — *Explain.* Two runs on the same 1,442 digits. Run A ends at a training loss of 0.085, run B, with ten times the parameters and fifty times the steps, at 0.025. A colleague wants to ship B: "the loss *is* the bound, up to weights, so B is three times as good, and its Fréchet distance to the training images is almost zero." In six to ten sentences: what may have happened,
# which three measurements would show it, and what is wrong with each of the two arguments? (A person marks this one.)

# %%
answer_7_7 = ""

check("7.7", answer_7_7)


# %% [markdown]
# ## 7.13 What it costs
#
# Sampling is the expensive half. Count in calls of the network. A training step costs a forward and a backward pass; the backward pass computes two products for every one of the forward pass (one for the gradient of the input and one for that of the weights), so a training step on one image costs about three forward passes. An image drawn by algorithm 2 costs $T$ of them. So a training of $n$ steps with batches of $B$ costs as much as drawing
#
# $$
# A \;=\; \frac{3\,n\,B}{T}
# \tag{7.23}
# $$
#
# images by the full chain.

# %%
class Training(nn.Module):
    """A forward and a backward pass, as one thing that can be counted."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, t):
        with torch.enable_grad():
            self.network(x, t).square().mean().backward()


fresh, one = UNet(PRESETS["digits"], seeded(0)), (images[:1], 500)
forward, both = count_flops(fresh, *one), count_flops(Training(fresh), *one)
original = count_flops(UNet(PRESETS["ddpm-cifar10"], seeded(0)), torch.zeros(1, 3, 32, 32), 500)
fact("operations of one call on one digit, millions", forward / 1e6)
fact("forward and backward pass over forward pass", both / forward)
fact("a call of the paper's network on a 32×32 image, over ours", original / forward, digits=2)
fact("images that the training above is worth",
     3 * plan["steps"] * plan["batch_size"] // T)
fact("images that the paper's training is worth (800,000 steps of 128)", 3 * 800_000 * 128 // 1000)
fact("share of it that the 50,000 samples for one FID cost", 50_000 / (3 * 800_000 * 128 / 1000),
     digits=2)

# %% tags=["nbval-ignore-output"]
per_call = seconds_of_sampling / (355 * 100)
print(f"355 digits in 100 steps took {seconds_of_sampling:.0f} s, the training took "
      f"{seconds_of_training:.0f} s;\n355 digits by the full chain would take "
      f"{355 * T * per_call:.0f} s, and 50,000 {50_000 * T * per_call / 3600:.1f} hours")

# %% [markdown]
# Our training is worth 384 images. A GAN of the same size would have drawn each with a single call. The reasons lie in the method. The chain is long because its steps must be small for a Gaussian to be the right family, (4.39) and (4.40). And every step computes at the full size of the image: DDPM works *in pixel space*, from beginning to end. For a $32\times32$ image and the paper's network a call is some
# 760 times as expensive as ours.
#
# Can the chain be shortened without a new training? This chapter has already done it, with a hundred steps. On CIFAR-10 the DDPM sampler suffers more: chapter 9 derives another sampler for the *same* network, which needs twenty to fifty steps where this one needs a thousand.
#
# **Exercise 7.8** (1 point, 5 minutes, ●○○) — *Predict the number.* A network is trained for 100,000 steps with batches of 256, on a chain of 4,000 steps. How many images could one have drawn by the full chain for the same computing time?

# %%
answer = None

check("7.8", answer)

# %% [markdown]
# ## 7.14 The same in 100 lines
#
# Beside this notebook lies `ddpm_in_100_lines.py`: schedule, network, training with averaged weights, sampling, with nothing but PyTorch and the digits of scikit-learn. It is the file to take apart and to build on. Run it with `python ddpm_in_100_lines.py`; after some two minutes it prints eight new digits as text. Here we hold its functions against the library: with the same weights and the same noise, the
# same $x_t$, the same loss, the same step. (The project's tests go on to the whole chain and to the weights after three training steps.)

# %%
folder = Path(__file__).parent if "__file__" in globals() else Path.cwd()
spec = importlib.util.spec_from_file_location("hundred", folder / "ddpm_in_100_lines.py")
hundred = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hundred)

tiny = hundred.Network(width=8).double()
x_0 = heldout[:6].double()
t = torch.tensor([1, 2, 50, 400, 999, 1000])
noise, z = torch.randn(2, 6, 1, 8, 8, generator=seeded(25), dtype=torch.float64)
x_t = diffusion.q_sample(x_0, t, noise)
with torch.no_grad():
    eps = tiny(x_t, t)
    claim("7.1", hundred.loss(tiny, x_0, t, noise), simple_loss(tiny, diffusion, x_0, t, noise))
law = diffusion.reverse(eps, x_t, t)
claim("7.2", hundred.reverse_step(eps, x_t, t, z), law.mean + law.variance.sqrt() * z, tol=1e-9)
fact("lines in the file", len((folder / "ddpm_in_100_lines.py").read_text("utf-8").splitlines()))


# %% [markdown]
# ## 7.15 Your own images
#
# Everything above took the digits from a function. Your own images come from a folder. `load` reads PNG and JPEG files, makes sub-folders into classes, holds out every tenth image, and says in a sentence which file is broken. Small images first: $16\times16$ or $32\times32$, a few thousand of them; with fewer than a thousand expect to be memorised, and look at section 7.9 for it.
#
# The cell makes such a folder, of sixty drawings of rings and bars, loads it, and starts a training on it. In your own notebook only the folder's name changes. The size of the network follows the size of the image: `image_size` must be divisible by 2 once for every level after the first.

# %%
def drawing(i):
    """A ring or a bar of random place and size, 16×16, as grey levels 0..255."""
    g = seeded(1000 + i)
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    row, column, radius = 5 + 6 * torch.rand(3, generator=g)
    if i % 2:
        shape = ((x - column) ** 2 + (y - row) ** 2).sqrt() - radius / 2
        return (255 * torch.exp(-(shape**2))).round().to(torch.uint8)
    return (255 * torch.exp(-((x - column) ** 2) / 3) * (y < row + 4)).round().to(torch.uint8)


with tempfile.TemporaryDirectory() as place:
    for i in range(60):
        kind = Path(place) / ("rings" if i % 2 else "bars")
        kind.mkdir(exist_ok=True)
        Image.fromarray(drawing(i).numpy()).save(kind / f"{i:02d}.png")
    mine, unseen_ones = load(place, "train"), load(place, "heldout")
print(f"{len(mine.images)} to train on, {len(unseen_ones.images)} held out, shape",
      tuple(mine.images.shape[1:]), "classes", mine.classes, "levels", mine.levels)
own = dataclasses.replace(PRESETS["digits"], image_size=16)
own_trainer = Trainer(UNet(own, seeded(0)), diffusion, mine.images,
                      TrainingConfig(steps=3, batch_size=16, learning_rate=1e-3, warmup_steps=100,
                                     seed=0, precision="float32", log_every=1), device="cpu")
own_trainer.run()
print("first loss between 0.8 and 1.2:", 0.8 < own_trainer.history[0]["loss"] < 1.2)

# %% [markdown]
# The first loss is near 1, as it must be; from here on it is a matter of steps. A long run belongs on the command line, where a run that was stopped can go on:
#
# ```
# python -m ddpm_lite train --data my-images --out runs/mine --steps 20000
# python -m ddpm_lite train --resume --out runs/mine
# python -m ddpm_lite sample --model runs/mine --n 64 --out mine.png
# ```
#
# `python -m ddpm_lite train --help` says what each option does and what is usual. A checklist before a long run:
#
# 1. Look at the images *as the network gets them*, `show_images(mine.images[:10], …)`: right side up, not inverted, in $[-1,1]$.
# 2. Train on **one batch** for a minute: the loss must go far below the best linear network's. If it does not, nothing else will help.
# 3. Mind the size. Cost grows with the number of pixels; attention with its square. And neighbouring pixels of a large image repeat each other, so that the same noise per pixel hides less of it: a schedule made for $32\times32$ leaves a $256\times256$ image recognisable for longer.
# 4. Flip horizontally if, and only if, mirrored images are plausible. Digits are not.
# 5. Write down before the run how you will judge the samples. The classifier of section 7.10 knows digits only; for photographs use a well-kept library of FID with Inception features ([toolbox](A_toolbox.ipynb#T.12-How-we-will-measure)), and for anything else the distances on features of your own.

# %% [markdown]
# ## 7.16 What we have
#
# | equation | what it says | in `ddpm_lite` | elsewhere |
# |---|---|---|---|
# | (7.1) | the loss of a batch; algorithm 1 | `simple_loss`, `Trainer` | DDPM Eq. 14, Algorithm 1 |
# | (7.2), (7.3), (7.4) | the ancestral step; its last one is the guess | `GaussianDiffusion.reverse`, `sample` | DDPM Algorithm 2 |
# | (7.5) | the model is a chain, drawn from its ancestor on | `sample` | DDPM Eq. 1 |
# | (7.6) | noise on a finished sample | | |
# | (7.7), (7.8), (7.9) | Adam, and its first step; a clipped gradient | `Trainer` | Kingma and Ba 2014 |
# | (7.10) to (7.13) | the loss, and its references above and below | `oracle`: `GaussianData`, `FiniteData` | |
# | (7.14) to (7.17) | averaged weights, and what stays of the first ones | `Trainer.ema` | |
# | (7.18) | distance of Gaussians with common directions | `gaussian_frechet_distance` | |
# | (7.19) | the step with a clipped guess | `reverse(…, clip=(-1, 1))` | |
# | (7.20) | nearer than held-out images? | `memorisation` | |
# | (7.21) | the bound, from a few steps; (5.13) is the whole one | `bound_term`, `bits_per_dim` | DDPM Eq. 5 |
# | (7.22) | a code that looks at each pixel by itself | | |
# | (7.23) | training, counted in samples | | |
#
# What we do not have: a say in *which* digit is drawn (chapter 8), and samples in fewer calls (chapter 9).

# %%
progress("7")

# %% [markdown]
# ## 7.17 History and further reading
#
# - Jonathan Ho, Ajay Jain and Pieter Abbeel, *Denoising diffusion probabilistic models* ([2006.11239](https://arxiv.org/abs/2006.11239), 2020): both algorithms.
# - Jiaming Song, Chenlin Meng and Stefano Ermon, *Denoising diffusion implicit models* ([2010.02502](https://arxiv.org/abs/2010.02502), 2020): Table 1 compares variances and numbers of steps; chapter 9 takes the paper up.
# - Alex Nichol and Prafulla Dhariwal, *Improved denoising diffusion probabilistic models* ([2102.09672](https://arxiv.org/abs/2102.09672), 2021): competitive likelihoods, from a learned variance and another loss.
# - Diederik Kingma and Jimmy Ba, *Adam: a method for stochastic optimization* ([1412.6980](https://arxiv.org/abs/1412.6980), 2014).
# - Martin Heusel and others, *GANs trained by a two time-scale update rule converge to a local Nash equilibrium* ([1706.08500](https://arxiv.org/abs/1706.08500), 2017): the Fréchet distance in a network's features.
# - Nicholas Carlini and others, *Extracting training data from diffusion models* ([2301.13188](https://arxiv.org/abs/2301.13188), 2023): large models, too, return some of their training images.
# - Zahra Kadkhodaie and others, *Generalization in diffusion models arises from geometry-adaptive harmonic representations* ([2310.02557](https://arxiv.org/abs/2310.02557), 2023): with few images a denoiser memorises, with many two of them, trained on disjoint halves, become the same function.

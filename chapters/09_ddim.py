# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 9 DDIM

# %% tags=["hide-input"]
import math
from itertools import pairwise

import sympy
import torch

from ddpm_lite import GaussianDiffusion, NoiseSchedule
from ddpm_lite.claims import claim, fact
from ddpm_lite.data import DIGITS_LEVELS, digits
from ddpm_lite.exercises import check, hint, progress, solution  # noqa: F401
from ddpm_lite.measurements import measured
from ddpm_lite.metrics import classifier, frechet_distance, gaussian_frechet_distance, quantise
from ddpm_lite.objective import simple_loss
from ddpm_lite.oracle import GaussianData, GaussianMixture
from ddpm_lite.plotting import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    VERMILLION,
    figure,
    show,
    show_images,
    use_book_style,
)
from ddpm_lite.sampling import ddim_invert, sample, slerp, solve
from ddpm_lite.storage import shipped

use_book_style()
schedule = NoiseSchedule.linear(T=1000)                # DDPM's own, as in chapters 2 to 7
T, alpha_bar = schedule.T, schedule.alpha_bar          # ᾱ_0..ᾱ_T, float64
diffusion = GaussianDiffusion(schedule)
mixture = GaussianMixture([0.35, 0.65], [[-0.9], [0.7]], [[[0.10**2]], [[0.25**2]]])
oracle = mixture.denoiser(schedule)                    # the perfect noise predictor
DOUBLE = torch.float64


def seeded(seed):
    """A fresh generator: whatever is drawn here says from which seed."""
    return torch.Generator().manual_seed(seed)


def draws(*shape, seed):
    """Standard normal numbers in double precision."""
    return torch.randn(shape, generator=seeded(seed), dtype=DOUBLE)


# %% tags=["hide-input"]
start = torch.linspace(-2.0, 2.0, 13, dtype=DOUBLE)[:, None]
paths = {}
for eta in (1.0, 0.0):
    walk = sample(oracle, diffusion, start.shape, steps=500, spacing="trailing", eta=eta,
                  x_T=start, generator=seeded(0))
    paths[eta] = torch.stack([start, *(state.x for state in walk)])[:, :, 0]

fig, axes = figure(1, 3, sharey=True, width_ratios=[4, 4, 1.3])
for ax, eta, name in zip(axes, (1.0, 0.0), (r"$\eta=1$: DDPM", r"$\eta=0$: DDIM"), strict=False):
    ax.plot(torch.linspace(1000, 0, 501), paths[eta], lw=0.9, color=BLUE, alpha=0.75)
    ax.set(xlim=(1000, 0), xlabel="$t$", title=name)
axes[0].set_ylabel("$x_t$")
line = torch.linspace(-2.4, 2.4, 481, dtype=DOUBLE)[:, None]
axes[2].plot(mixture.log_prob(line).exp(), line[:, 0], color=ORANGE)
axes[2].set(xlabel="density", title="data")
show(fig, """Thirteen paths from the same thirteen starting points at t = 1000 down to t = 0,
twice. With eta = 1 the paths are jagged and cross; with eta = 0 they are smooth, never cross
and part in the middle, some towards -0.9 and some towards 0.7. On the right the density of the
data with its two humps.""")

# %% [markdown]
# *Which of these is the right way back?* Both start from the same thirteen numbers and ask the same denoiser. On the left each step draws fresh noise, and where a path ends is decided on the way. On the right nothing is drawn; the start decides. This chapter proves that the
# *same trained network* may be used for both, and that what it was trained on cannot tell them apart. The smooth paths have a practical virtue: a curve that is nearly straight can be followed in few steps.
#
# **You will**
# - say why a network trained for one chain may be sampled with another, and prove it;
# - write the update term by term, for any sub-sequence of the steps and any noise between none and DDPM's;
# - show that the forward process behind it is not a Markov chain, and recognise the popular grids that are off;
# - run the sampler backwards, and interpolate between two images;
# - say of which equation DDIM is a solver, and why a second-order solver needs fewer calls of the network.
#
# **You need** from chapter 4 [the posterior for any two steps](04_posterior.ipynb#4.5-Any-two-steps) and [the reverse step](04_posterior.ipynb#4.13-A-reverse-step,-and-a-first-walk);
# [the sampler of chapter 7](07_training_and_sampling.ipynb#7.2-The-line-of-algorithm-2); from the toolbox [affine maps](A_toolbox.ipynb#T.2-Affine-maps), [sums](A_toolbox.ipynb#T.3-Sums-of-independent-Gaussians), [conditionals](A_toolbox.ipynb#T.5-Conditionals)
# and [Euler's and Heun's methods](A_toolbox.ipynb#T.10-ODEs-and-the-order-of-Euler's-method).
#
# **Time** about 90 minutes to read, another 90 for the exercises, one minute to run.

# %% [markdown]
# ## 9.1 What the loss does not see
#
# A thousand calls of a network for one batch of images: that is what chapter 7 paid. The steps cannot be made longer at will, for the walk back imitates a Markov chain of small steps. Or does it have to? Look again at what the network was trained on. The loss at step $t$ is (5.21),
#
# $$
# \ell_t \;=\; \mathbb E\;\tfrac1D\,\big\lVert\varepsilon-\hat\varepsilon(x_t,t)\big\rVert^2 ,
# \qquad \varepsilon=\frac{x_t-\sqrt{\bar\alpha_t}\,x_0}{\sqrt{1-\bar\alpha_t}} ,
# \tag{9.1}
# $$
#
# where the expression for $\varepsilon$ is (3.14), solved. So $\ell_t$ is the mean of a function of the **pair** $(x_0,x_t)$, and nothing else enters. How $x_t$ hangs together with $x_{t-1}$, or with any other step, plays no part. **Any joint law of $(x_0,x_1,\dots,x_T)$ with the same pairs $(x_0,x_t)$ has the same losses**, and hence the same best network. The Markov chain is one such joint law. There are others.
#
# The simplest other one is this: draw *one* noise $\varepsilon$ for the whole path, and put $x_t=\sqrt{\bar\alpha_t}\,x_0+\sqrt{1-\bar\alpha_t}\,\varepsilon$ for every $t$. In [chapter 3](03_one_step_marginal.ipynb#3.9-The-pair,-not-only-the-points) that was a warning, (3.29): a path made so has the wrong pairs $(x_s,x_t)$. True. And the loss does not mind.
#
# We can show it without drawing anything. Let $D=1$, let the data be $x_0\sim\mathcal N(0,V)$, and let the predictor be linear, $\hat\varepsilon=K\,x_t$. Then everything is a covariance matrix. With $C_{tt}$, $C_{t0}$, $C_{00}$ for the covariances of $x_t$ and $x_0$, multiply out $\varepsilon-Kx_t$, which by (9.1) is $(1-K\sqrt{1-\bar\alpha_t})\,x_t-\sqrt{\bar\alpha_t}\,x_0$ over $\sqrt{1-\bar\alpha_t}$:
#
# $$
# \ell_t \;=\; \frac{1}{1-\bar\alpha_t}\Big[\big(1-K\sqrt{1-\bar\alpha_t}\big)^2\,C_{tt}
# -2\,\big(1-K\sqrt{1-\bar\alpha_t}\big)\sqrt{\bar\alpha_t}\;C_{t0}+\bar\alpha_t\,C_{00}\Big] .
# \tag{9.2}
# $$
#
# The cell builds the covariance of the whole path twice on a chain of six strong steps. Each $x_t$ is a row of weights on independent sources, the data and the noises, so that the covariance is a product of matrices. The pairs $(x_0,x_t)$ agree, the neighbours $(x_{t-1},x_t)$ do not, and the loss is the same number, whatever $K$.

# %%
short = NoiseSchedule.from_betas([0.05, 0.15, 0.25, 0.35, 0.45, 0.55])
bars, V = short.alpha_bar, 0.6                         # ᾱ_0..ᾱ_6, and the variance of the data
strong = GaussianDiffusion(short)


def covariance(rows):
    """Of (x_0, …, x_T), whose rows hold weights on x_0/√V and on independent noises."""
    rows = torch.stack(rows)
    return rows @ rows.T


unit = torch.eye(8, dtype=DOUBLE)
markov = [V**0.5 * unit[0]]
for t in range(1, 7):                                  # x_t = √α_t·x_{t−1} + √β_t·ε_t, (2.2)
    markov.append(short.alpha[t].sqrt() * markov[-1] + short.beta[t].sqrt() * unit[t])
shared = [bars[t].sqrt() * V**0.5 * unit[0] + (1 - bars[t]).sqrt() * unit[1] for t in range(7)]
markov, shared = covariance(markov), covariance(shared)


def loss_of(C, t, K):
    """(9.2): the loss of the predictor K·x_t, read off a covariance matrix of the path."""
    rest = 1 - K * (1 - bars[t]).sqrt()
    terms = rest**2 * C[t, t] - 2 * rest * bars[t].sqrt() * C[t, 0] + bars[t] * C[0, 0]
    return terms / (1 - bars[t])


for t in (1, 3, 6):
    pair = torch.stack([shared[t, t], shared[t, 0]])
    assert (pair - torch.stack([markov[t, t], markov[t, 0]])).abs().max() < 1e-12
    best = GaussianData([0.0], [[V]]).eps(short, torch.ones(1, 1, dtype=DOUBLE), t)[0, 0]
    floor = bars[t] * V / (bars[t] * V + 1 - bars[t])  # the best loss for Gaussian data, (7.11)
    claim("9.2", torch.stack([loss_of(C, t, best) for C in (markov, shared)]), floor,
          tol=1e-12, note=f"the best K at t = {t}, Markov path and shared noise")
x0, eps = V**0.5 * draws(400_000, 1, seed=1), draws(400_000, 1, seed=2)
found = simple_loss(lambda x, t: 0.4 * x, strong, x0, 4, eps)
claim("9.1", loss_of(shared, 4, 0.4), found.mean(), standard_error=found.std() / 400_000**0.5,
      note="K = 0.4 at t = 4, against the library's loss")
assert (markov - shared)[0].abs().max() < 1e-12        # all (x_0, x_t) blocks agree
fact("covariance of (x_3, x_4): Markov, shared noise", [markov[3, 4], shared[3, 4]])


# %% [markdown]
# **What this does not say.** It speaks of each $\ell_t$. Two caveats. *Weights:* a bound on the likelihood of another joint law weights the $\ell_t$ differently (section 9.6 computes how), and $L_{\text{simple}}$ weights them all alike. *Shared parameters:* if every $t$ had a network of its own, weights would not matter, for each $\ell_t$ would be
# minimised alone. Our network serves all $t$ with one set of weights $\theta$, and then the weights decide between compromises. So the exact statement is: the *best possible* predictor $\varepsilon^*(x_t,t)=\mathbb E[\varepsilon\mid x_t]$ is the same for all joint laws with these pairs. A trained network is as good for one as for the other in so far as it comes near to $\varepsilon^*$.

# %% [markdown]
# ## 9.2 A family of joint laws
#
# Now choose joint laws that are easy to walk *backwards*. Do not start from a forward step. Start at the far end, and define how to come down, *with $x_0$ known*: first
#
# $$
# q_\sigma(x_T\mid x_0)\;=\;\mathcal N\big(x_T;\;\sqrt{\bar\alpha_T}\,x_0,\;(1-\bar\alpha_T)\,I\big) ,
# \tag{9.3}
# $$
#
# then, for $t=T,\dots,2$ and $s=t-1$, with a number $\sigma_t$ for each step,
#
# $$
# \begin{gathered}
# q_\sigma(x_s\mid x_t,x_0)\;=\;\mathcal N\Big(x_s;\;\;\sqrt{\bar\alpha_s}\;x_0
# +\sqrt{1-\bar\alpha_s-\sigma_t^2}\;\cdot\frac{x_t-\sqrt{\bar\alpha_t}\,x_0}{\sqrt{1-\bar\alpha_t}} ,\;\;\sigma_t^2\,I\Big) ,\\
# 0\le\sigma_t^2\le1-\bar\alpha_s .
# \end{gathered}
# \tag{9.4}
# $$
#
# The joint law is the product,
#
# $$
# q_\sigma(x_{1:T}\mid x_0)\;=\;q_\sigma(x_T\mid x_0)\;\prod_{t=2}^{T}q_\sigma(x_{t-1}\mid x_t,x_0) .
# \tag{9.5}
# $$
#
# Read the mean of (9.4). The fraction is the noise $\varepsilon$ in $x_t$, by (9.1). So $x_s$ is made as in (3.14), $\sqrt{\bar\alpha_s}\,x_0$ plus noise of total variance $1-\bar\alpha_s$; but the noise has two parts. The part $\sigma_t^2$ is fresh. The rest is the *old* noise, the direction in which $x_t$ lies from $\sqrt{\bar\alpha_t}\,x_0$. That is the whole idea. How much is fresh is ours to choose.
#
# > **Pitfall: what is given, and where.** Three slips that are often copied. (1) "DDIM needs only that $q(x_{t-1}\mid x_t)$ is known." It is *not* known, chapter 4; what is used is $q_\sigma(x_{t-1}\mid x_t,x_0)$, and that is not found but *chosen*, so that the pairs $(x_0,x_t)$ come out right. (2) The definition starts at $t=T$ with (9.3), not at $t=0$; and $\sigma$ is no single number but a list
# > $\sigma_2,\dots,\sigma_T\ge0$. (3) **The DDIM paper's $\alpha_t$ is our $\bar\alpha_t$.** Its formulas with DDPM's $\alpha_t$ put in give nonsense quietly.
#
# How large the third slip is: the weight of $x_0$ in (9.4), and what it becomes with one step's $\alpha_s$ in the place of $\bar\alpha_s$.

# %%
def member(x_t, x0, t, s, sigma, bars):
    """(9.4) as it stands there: mean and variance."""
    noise = (x_t - bars[t].sqrt() * x0) / (1 - bars[t]).sqrt()
    return bars[s].sqrt() * x0 + (1 - bars[s] - sigma**2).clamp(min=0).sqrt() * noise, sigma**2


x_t, x0 = draws(2, 5, 3, seed=3)
for t, s, eta in ((800, 799, 1.0), (800, 600, 0.0), (400, 100, 0.5), (2, 1, 0.3)):
    law = diffusion.posterior(x_t, x0, t, s, eta=eta)
    mean, variance = member(x_t, x0, t, s, law.variance.sqrt(), alpha_bar)
    claim("9.4", mean, law.mean, tol=1e-9, note=f"t = {t}, s = {s}, η = {eta}")
fact("weight of x_0 at s = 599, with ᾱ and with α", [alpha_bar[599].sqrt(),
                                                   schedule.alpha[599].sqrt()])


# %% [markdown]
# **Exercise 9.1** (2 points, 10 minutes, ●○○) — *A member of the family.* Write `family_step(x_t, x0, t, s, sigma, alpha_bar)` that returns the pair of mean and variance of $q_\sigma(x_s\mid x_t,x_0)$ in (9.4), for any $0\le s<t\le T$ and one number `sigma` with $\sigma^2\le1-\bar\alpha_s$; `alpha_bar` is the tensor $\bar\alpha_0,\dots,\bar\alpha_T$.

# %%
def family_step(x_t, x0, t, s, sigma, alpha_bar):
    """Mean and variance of q_σ(x_s | x_t, x_0)."""
    raise NotImplementedError("your turn")


check("9.1", family_step)


# %% [markdown]
# ## 9.3 Every member has the right marginals
#
# **Theorem.** For every choice of $\sigma_2,\dots,\sigma_T$ with $0\le\sigma_t^2\le1-\bar\alpha_{t-1}$, and every $t=1,\dots,T$,
#
# $$
# q_\sigma(x_t\mid x_0)\;=\;\mathcal N\big(x_t;\;\sqrt{\bar\alpha_t}\,x_0,\;(1-\bar\alpha_t)\,I\big) .
# \tag{9.6}
# $$
#
# **Proof**, by induction from $T$ down. *Start:* at $t=T$ the claim is the definition (9.3). *Step:* suppose (9.6) for some $t\ge2$, and let $s=t-1$. Hold $x_0$ fixed throughout. By (9.4) a draw is
#
# $$
# x_s \;=\; \sqrt{\bar\alpha_s}\,x_0 \;+\; c_t^\sigma\,\big(x_t-\sqrt{\bar\alpha_t}\,x_0\big)\;+\;\sigma_t\,z ,
# \qquad c_t^\sigma=\frac{\sqrt{1-\bar\alpha_s-\sigma_t^2}}{\sqrt{1-\bar\alpha_t}} ,
# \tag{9.7}
# $$
#
# with $z\sim\mathcal N(0,I)$ drawn afresh, so independent of $x_t$. Then, one line for each rule:
#
# $$
# \begin{aligned}
# x_t-\sqrt{\bar\alpha_t}\,x_0 &\;\sim\;\mathcal N\big(0,\;(1-\bar\alpha_t)\,I\big)
# && \text{assumption (9.6); a shift, (T.8)} \\
# c_t^\sigma\,\big(x_t-\sqrt{\bar\alpha_t}\,x_0\big) &\;\sim\;\mathcal N\big(0,\;(1-\bar\alpha_s-\sigma_t^2)\,I\big)
# && \text{variance: the factor squared, (T.8)} \\
# c_t^\sigma\,\big(x_t-\sqrt{\bar\alpha_t}\,x_0\big)+\sigma_t\,z &\;\sim\;\mathcal N\big(0,\;(1-\bar\alpha_s)\,I\big)
# && \text{independent: variances add, (T.9)} \\
# x_s &\;\sim\;\mathcal N\big(\sqrt{\bar\alpha_s}\,x_0,\;(1-\bar\alpha_s)\,I\big)
# && \text{a shift, (T.8)}
# \end{aligned}
# \tag{9.8}
# $$
#
# The last line is (9.6) at $s$. $\blacksquare$
#
# Note what was *not* used: that $t$ and $s$ are neighbours, or that $\sigma_t$ has a particular value. And note the one place where it would break: had the variance in (9.7) been $\sigma_t^2$ without the old noise being cut to $1-\bar\alpha_s-\sigma_t^2$, the third line would not close. We check with random $\sigma$'s on the whole path, as matrices again.

# %%
def joint(sigmas):
    """Covariance of (x_0, …, x_T) under q_σ, built from T down by (9.7); data N(0, V)."""
    last = len(sigmas) - 1
    unit = torch.eye(last + 2, dtype=DOUBLE)
    x0 = V**0.5 * unit[0]
    rows = {0: x0, last: bars[last].sqrt() * x0 + (1 - bars[last]).sqrt() * unit[last]}
    for t in range(last, 1, -1):
        c = (1 - bars[t - 1] - sigmas[t] ** 2).clamp(min=0).sqrt() / (1 - bars[t]).sqrt()
        noise = sigmas[t] * unit[t - 1]
        rows[t - 1] = bars[t - 1].sqrt() * x0 + c * (rows[t] - bars[t].sqrt() * x0) + noise
    return covariance([rows[t] for t in range(last + 1)])


def log_normal(gap, variance):
    """Log density of N(0, variance) at gap, (T.3)."""
    return -0.5 * (gap**2 / variance + torch.log(2 * math.pi * variance))


end, origin = torch.tensor([[0.4]], dtype=DOUBLE), torch.tensor([[0.9]], dtype=DOUBLE)
claim("9.3", log_normal(0.4 - bars[6].sqrt() * 0.9, 1 - bars[6]),
      strong.marginal(origin, 6).log_prob(end)[0], relation="definition")
for trial in range(3):
    share = torch.rand(7, generator=seeded(trial), dtype=DOUBLE)
    sigmas = share * torch.cat([torch.zeros(1, dtype=DOUBLE), (1 - bars[:-1]).sqrt()])
    C = joint(sigmas)
    claim("9.6", torch.cat([C.diagonal(), C[0]]), torch.cat([markov.diagonal(), markov[0]]),
          tol=1e-12, note="random σ: every Var[x_t] and Cov(x_0, x_t)")
    c = (1 - bars[3] - sigmas[4] ** 2).sqrt() / (1 - bars[4]).sqrt()
    claim("9.7", bars[3].sqrt() * bars[4].sqrt() * V + c * (1 - bars[4]), C[3, 4],
          note="the neighbours (x_3, x_4) do depend on σ")
    path = 0.7 * draws(7, seed=trial)                  # some x_0, …, x_6
    apart = path - bars.sqrt() * path[0]
    given = C[1:, 1:] - torch.outer(C[1:, 0], C[0, 1:]) / C[0, 0]               # (T.19)
    law = torch.distributions.MultivariateNormal(torch.zeros(6, dtype=DOUBLE), given)
    log_q = log_normal(apart[6], 1 - bars[6])                                  # (9.3)
    for t in range(6, 1, -1):
        mean, variance = member(path[t], path[0], t, t - 1, sigmas[t], bars)
        log_q = log_q + log_normal(path[t - 1] - mean, variance)
    claim("9.5", log_q, law.log_prob(apart[1:]), note="the product is the density of the path")
    claim("9.8", c**2 * (1 - bars[4]) + sigmas[4] ** 2, C[3, 3] - C[3, 0] ** 2 / C[0, 0],
          note="Var[x_3 | x_0] of the matrix, by (T.19)")

# %% [markdown]
# ## 9.4 From DDIM to DDPM
#
# One knob is enough for most purposes. Let $\beta_{t\mid s}=1-\bar\alpha_t/\bar\alpha_s$ as in (4.17), and
#
# $$
# \sigma_t^2(\eta)\;=\;\eta^2\,\tilde\beta_{t\mid s}\;=\;\eta^2\;\frac{1-\bar\alpha_s}{1-\bar\alpha_t}\;\Big(1-\frac{\bar\alpha_t}{\bar\alpha_s}\Big) ,
# \qquad 0\le\eta\le1 .
# \tag{9.9}
# $$
#
# **$\eta=0$ is DDIM**: no fresh noise at all. The noise in $x_T$ is carried down unchanged, so this is the path of section 9.1 with one $\varepsilon$ for all steps. **$\eta=1$ is DDPM**, in the version with $\tilde\beta$: (9.4) becomes the posterior (4.18) of the Markov chain. The variance is $\tilde\beta_{t\mid s}$ already. For the mean, the weight of $x_t$ has to be looked at. The identity (4.9), for two steps, is
# $1-\bar\alpha_t=\beta_{t\mid s}+\bar\alpha_{t\mid s}(1-\bar\alpha_s)$ with $\bar\alpha_{t\mid s}=\bar\alpha_t/\bar\alpha_s$, so
#
# $$
# \begin{gathered}
# 1-\bar\alpha_s-\tilde\beta_{t\mid s}
# =\frac{(1-\bar\alpha_s)\,(1-\bar\alpha_t-\beta_{t\mid s})}{1-\bar\alpha_t}
# =\frac{\bar\alpha_{t\mid s}\,(1-\bar\alpha_s)^2}{1-\bar\alpha_t} ,\\
# c_t^{\sigma(1)}=\frac{\sqrt{\bar\alpha_{t\mid s}}\,(1-\bar\alpha_s)}{1-\bar\alpha_t}=c_t .
# \end{gathered}
# \tag{9.10}
# $$
#
# That is the weight $c_t$ of (4.18). (The expression on the left is not negative, so that every $\eta$ from 0 to 1 gives a member: (9.4) allows its $\sigma_t$.) The weight of $x_0$ is $\sqrt{\bar\alpha_s}-c_t\sqrt{\bar\alpha_t}$ in both, because both means give $\sqrt{\bar\alpha_s}\,x_0$ when $x_t=\sqrt{\bar\alpha_t}\,x_0$. So they agree.
#
# **$\hat\sigma$ is no member.** DDPM's other variance, $\hat\sigma_t^2=\beta_{t\mid s}$ *with the mean of $\eta=1$*, breaks the balance of (9.8): the old noise was cut for $\tilde\beta$, and more than that is added. From the marginal at $t$ one such step leads to the variance
#
# $$
# \operatorname{Var}[x_s\mid x_0]\;=\;1-\bar\alpha_s+\big(\beta_{t\mid s}-\tilde\beta_{t\mid s}\big) ,
# \qquad
# \beta_{t\mid s}-\tilde\beta_{t\mid s}=\frac{\bar\alpha_s\,\beta_{t\mid s}^2}{1-\bar\alpha_t} .
# \tag{9.11}
# $$
#
# (For the second equation: $\beta_{t\mid s}\big(1-\frac{1-\bar\alpha_s}{1-\bar\alpha_t}\big)=\beta_{t\mid s}\,\frac{\bar\alpha_s-\bar\alpha_t}{1-\bar\alpha_t}$, and $\bar\alpha_s-\bar\alpha_t=\bar\alpha_s\beta_{t\mid s}$.) The excess is *quadratic* in $\beta_{t\mid s}$. From $t=500$, a short step of a chain of a thousand makes an excess that is negligible, a long step of a chain of ten does not: the cell prints 0.001 % and 9 % of the variance. Close to the data, where $1-\bar\alpha_s$ itself is tiny, the share is large even for a short step (65 % from 2 to 1), though the excess is below $10^{-4}$.

# %%
a_s, a_t = sympy.symbols("abar_s abar_t", positive=True)
ratio, tilde = a_t / a_s, (1 - a_s) / (1 - a_t) * (1 - a_t / a_s)
claim("9.10", 1 - a_s - tilde, ratio * (1 - a_s) ** 2 / (1 - a_t))
claim("9.11", (1 - ratio) - tilde, a_s * (1 - ratio) ** 2 / (1 - a_t))

tildes = torch.cat([torch.zeros(2, dtype=DOUBLE), short.posterior_variance[2:]])
claim("9.9", joint(tildes.sqrt()), markov, tol=1e-12, note="η = 1: the whole Markov joint")
claim("9.9", joint(0 * tildes), shared, tol=1e-12, note="η = 0: the joint with one shared noise")
wide = GaussianDiffusion(schedule, variance="beta")
one = torch.ones(1, 1, dtype=DOUBLE)
for t, s, name in ((500, 499, "1000 steps, 500 → 499"), (500, 400, "10 steps, 500 → 400"),
                   (2, 1, "1000 steps, 2 → 1")):
    excess = alpha_bar[s] * (1 - alpha_bar[t] / alpha_bar[s]) ** 2 / (1 - alpha_bar[t])
    c_t = diffusion.posterior(one, 0 * one, t, s).mean[0, 0]
    law = wide.reverse(0 * one, one, t, s)
    reached = c_t**2 * (1 - alpha_bar[t]) + law.variance
    claim("9.11", 1 - alpha_bar[s] + excess, reached, note=name)
    fact(f"{name}: variance too large by, and as a share", [excess, excess / (1 - alpha_bar[s])],
         digits=2)

# %% [markdown]
# *What do the members share, and in what do they differ?* The whole covariance of $(x_0,\dots,x_6)$ for $\eta=1$ and for $\eta=0$, and their difference. The edges, that is the row and the column of $x_0$, and the diagonal are equal. They are all that the loss sees.

# %% tags=["hide-input"]
fig, axes = figure(1, 3, row_height=2.5)
for ax, C, name in zip(axes, (markov, shared, shared - markov),
                       (r"$\eta=1$, Markov", r"$\eta=0$", "difference"), strict=True):
    picture = ax.imshow(C, cmap="cividis", vmin=0, vmax=1 if name != "difference" else 0.6)
    ax.set(title=name, xticks=range(7), yticks=range(7), xlabel="step")
    ax.grid(visible=False)
    fig.colorbar(picture, ax=ax, shrink=0.75)
axes[0].set_ylabel("step")
show(fig, """Three heat maps of seven by seven numbers. The first two are covariances for eta =
1 and eta = 0; away from the diagonal and the edges the second is brighter. Their difference:
exactly zero in the first row, in the first column and on the diagonal, positive elsewhere.""")
difference = shared - markov
assert difference[0].abs().max() < 1e-12 and difference.diagonal().abs().max() < 1e-12
assert (difference[1:, 1:] + torch.eye(6, dtype=DOUBLE)).min() > 0.01               # elsewhere
fact("largest difference off the edges", difference.max(), digits=2)

# %% [markdown]
# **Exercise 9.2** (1 point, 5 minutes, ●○○) — *Predict the number.* $\bar\alpha_s=0.75$, $\bar\alpha_t=0.19$, and a step from $t$ to $s$ adds fresh noise of standard deviation $\sigma=0.3$. With what factor does the old noise $\varepsilon$ enter $x_s$?

# %%
old_noise = None  # your number


check("9.2", old_noise)

# %% [markdown]
# ## 9.5 The forward process is not Markov
#
# The family was built backwards. Which forward process does it belong to? Bayes' rule answers, with $x_0$ given throughout:
#
# $$
# q_\sigma(x_t\mid x_s,x_0)\;=\;\frac{q_\sigma(x_s\mid x_t,x_0)\;q_\sigma(x_t\mid x_0)}{q_\sigma(x_s\mid x_0)} .
# \tag{9.12}
# $$
#
# In the Markov chain the left side does not depend on $x_0$, (4.4). Here it does, but for one member. Take $\eta=0$: then (9.4) has no noise, and given $x_0$ each of $x_s$ and $x_t$ determines the other. Who knows $x_s$ alone cannot say what $x_t$ is; who knows $x_0$ as well can. How much does $x_0$ still say about $x_t$ once $x_s$ is known? For Gaussian data on a line,
# this is the conditional covariance, by (T.19), with the covariances that (9.6) and (9.7) give, $C_{t0}=\sqrt{\bar\alpha_t}V$, $C_{s0}=\sqrt{\bar\alpha_s}V$, $C_{ss}=\bar\alpha_sV+1-\bar\alpha_s$, and $C_{ts}=\sqrt{\bar\alpha_s\bar\alpha_t}\,V+c_t^\sigma(1-\bar\alpha_t)$:
#
# $$
# \operatorname{Cov}(x_t,x_0\mid x_s)\;=\;C_{t0}-\frac{C_{ts}\,C_{s0}}{C_{ss}}
# \;=\;\frac{V}{C_{ss}}\,\Big[\sqrt{\bar\alpha_t}\,(1-\bar\alpha_s)-\sqrt{\bar\alpha_s}\;c_t^\sigma\,(1-\bar\alpha_t)\Big] .
# \tag{9.13}
# $$
#
# (Over the denominator $C_{ss}$, the terms $\sqrt{\bar\alpha_t}\,\bar\alpha_sV^2$ cancel.) The bracket vanishes only if $c_t^\sigma=\sqrt{\bar\alpha_{t\mid s}}\,(1-\bar\alpha_s)/(1-\bar\alpha_t)$, which by (9.10) is $\eta=1$. (The cell prints the covariance as a correlation: it is $-1$ at $\eta=0$.)
#
# And for other data? The left side of (9.12) does not know their law. Given $x_0$, the pair $(x_s,x_t)$ is jointly Gaussian with covariance $c_t^\sigma(1-\bar\alpha_t)I$, by (9.7); so by (T.19) its mean is
#
# $$
# \mathbb E_\sigma[x_t\mid x_s,x_0]\;=\;\frac{c_t^\sigma(1-\bar\alpha_t)}{1-\bar\alpha_s}\;x_s+\frac{1}{1-\bar\alpha_s}\Big[\sqrt{\bar\alpha_t}\,(1-\bar\alpha_s)-\sqrt{\bar\alpha_s}\;c_t^\sigma\,(1-\bar\alpha_t)\Big]\,x_0 ,
# $$
#
# with the same bracket, and its variance holds no $x_0$. So **among all members, the only Markov chain is DDPM**, whatever the data (unless they are a single point, which needs no telling). That is why the DDIM paper speaks of *non-Markovian* forward processes. We shall never run one. The forward process has done its work when the pairs $(x_0,x_t)$ are right.

# %%
s, t = 3, 4
for eta in (1.0, 0.7, 0.0):
    C = joint(eta * tildes.sqrt())
    partial = C[t, 0] - C[t, s] * C[s, 0] / C[s, s]
    sigma2 = eta**2 * tildes[t]
    c = (1 - bars[s] - sigma2).sqrt() / (1 - bars[t]).sqrt()
    bracket = bars[t].sqrt() * (1 - bars[s]) - bars[s].sqrt() * c * (1 - bars[t])
    if eta == 1:
        assert partial.abs() < 1e-12 and bracket.abs() < 1e-12
        continue
    claim("9.13", V / C[s, s] * bracket, partial, tol=1e-9, note=f"η = {eta}")
    given = torch.linalg.solve(C[[s, 0]][:, [s, 0]], C[[s, 0], t])       # weights of x_s and of x_0
    claim("9.12", [c * (1 - bars[t]) / (1 - bars[s]), bracket / (1 - bars[s])], given, tol=1e-9,
          note="its mean, x_t on x_s and x_0")
    variances = [C[i, i] - C[i, s] ** 2 / C[s, s] for i in (t, 0)]
    fact(f"η = {eta}: correlation of x_4 and x_0, given x_3",
         partial / (variances[0] * variances[1]).sqrt(), digits=2)
places = torch.linspace(-6, 6, 4001, dtype=DOUBLE)
start, arrive = torch.full((4001, 1), 0.8, dtype=DOUBLE), torch.full((4001, 1), 0.3, dtype=DOUBLE)
back = strong.posterior(places[:, None], start, t, s, eta=0.7).log_prob(arrive)
product = (back + strong.marginal(start, t).log_prob(places[:, None])).exp()
claim("9.12", torch.trapezoid(product, places),
      strong.marginal(start[:1], s).log_prob(arrive[:1]).exp()[0],
      note="summed over x_t: the denominator is the numerator's integral")

# %% [markdown]
# ## 9.6 The update, term by term
#
# When sampling, $x_0$ is not known, and chapter 4 has shown what to do: ask the network, and use its guess. From $\hat\varepsilon=\hat\varepsilon(x_t,t)$ comes $\hat x_0=(x_t-\sqrt{1-\bar\alpha_t}\,\hat\varepsilon)/\sqrt{\bar\alpha_t}$, (4.21). Put $\hat x_0$ where (9.4) has $x_0$. The fraction there becomes $\hat\varepsilon$ itself, and a draw is
#
# $$
# x_s\;=\;\underbrace{\sqrt{\bar\alpha_s}\;\hat x_0}_{\text{predicted }x_0,\ \text{at level }s}
# \;+\;\underbrace{\sqrt{1-\bar\alpha_s-\sigma_t^2}\;\;\hat\varepsilon}_{\text{direction to }x_t}
# \;+\;\underbrace{\;\sigma_t\,z\;}_{\text{fresh noise}} ,
# \qquad \sigma_t=\eta\,\sqrt{\tilde\beta_{t\mid s}} .
# \tag{9.14}
# $$
#
# Every sampler of this chapter is this line with some $\eta$ and some list of steps. For $\eta=1$ and $s=t-1$ it is algorithm 2 of chapter 7 with $\sigma_t^2=\tilde\beta_t$, in other words.
#
# **The last step.** At $s=0$, $\bar\alpha_0=1$, so $\tilde\beta_{t\mid0}=0$ and $\sigma=0$, and the factor of $\hat\varepsilon$ is zero too: $x_0=\hat x_0$, from whatever $t$ the last step starts. Code that has no $\bar\alpha_0$ at hand and takes $\bar\alpha_1$ instead (an option in a widely used library) never takes that step, and leaves the noise of $x_1$ in the picture.
#
# **What does the step cost in bits?** With the bound of chapter 5 for the joint law $q_\sigma$, the term of a step is the divergence of (9.4) with $x_0$ from (9.4) with $\hat x_0$. The variances are equal, so (T.25) gives the squared difference of the means over $2\sigma_t^2$. With $\hat x_0-x_0=\sqrt{1-\bar\alpha_t}\,(\varepsilon-\hat\varepsilon)/\sqrt{\bar\alpha_t}$ the difference of the means is a factor times $\varepsilon-\hat\varepsilon$:
#
# $$
# L_{t-1}^{\sigma}\;=\;\omega_t^\sigma\;\mathbb E\lVert\varepsilon-\hat\varepsilon\rVert^2 ,
# \qquad
# \omega_t^\sigma=\frac{1}{2\sigma_t^2}\Big(\sqrt{\tfrac{\bar\alpha_s}{\bar\alpha_t}}\,\sqrt{1-\bar\alpha_t}-\sqrt{1-\bar\alpha_s-\sigma_t^2}\Big)^2 .
# \tag{9.15}
# $$
#
# (This is for $s\ge1$; the last step is the decoder's, as in chapter 5.) So the bound of every member *with noise in each step* is, but for its first and last term, a weighted sum of the same $\ell_t$: training for one is training for all, up to weights. (The DDIM paper states it as a theorem, with weights that it need not compute.) And the weights grow beyond all bounds as $\sigma_t\to0$: for $\eta=0$ there is no such bound, since a point has no density. The bound explains why the loss fits the whole family; it is no argument that $\eta=0$ samples well. That has to be measured.

# %%
x_t, e, z = draws(3, 5, 3, seed=4)
for t, s, eta in ((1000, 950, 0.0), (500, 400, 0.5), (500, 499, 1.0), (20, 0, 1.0)):
    x0_hat = (x_t - (1 - alpha_bar[t]).sqrt() * e) / alpha_bar[t].sqrt()
    sigma2 = eta**2 * (1 - alpha_bar[s]) / (1 - alpha_bar[t]) * (1 - alpha_bar[t] / alpha_bar[s])
    update = (alpha_bar[s].sqrt() * x0_hat + (1 - alpha_bar[s] - sigma2).clamp(min=0).sqrt() * e
              + sigma2.sqrt() * z)
    law = diffusion.reverse(e, x_t, t, s, eta=eta)
    claim("9.14", update, law.mean + law.variance.sqrt() * z, tol=1e-9,
          note=f"{t} → {s}, η = {eta}")

t, s, eta = 500, 400, 0.6
x0, eps = draws(2, 4, 3, seed=5)
x_t = alpha_bar[t].sqrt() * x0 + (1 - alpha_bar[t]).sqrt() * eps
guess = diffusion.reverse(e[:4], x_t, t, s, eta=eta)
sigma2 = guess.variance
slack = ((alpha_bar[s] / alpha_bar[t]).sqrt() * (1 - alpha_bar[t]).sqrt()
         - (1 - alpha_bar[s] - sigma2).sqrt())
claim("9.15", slack**2 / (2 * sigma2) * ((eps - e[:4]) ** 2).sum(1),
      diffusion.posterior(x_t, x0, t, s, eta=eta).kl(guess))

# %% [markdown]
# > **Pitfall: clip, then re-derive.** If $\hat x_0$ is clipped to $[-1,1]$, the old $\hat\varepsilon$ no longer belongs to it, (4.48). In (9.14) both appear, so keeping the old one mixes two predictions. With the new one, $\eta=1$ is DDPM to the last digit, clipped or not; with the old one it is not. The cell shows by how much when the guess has nothing to do with $x_t$, so that nearly everything is clipped. A widely used library has the inconsistent combination as its default.

# %%
t, s = 600, 580
x_t, e = draws(2, 200, 8, seed=6)
clipped = diffusion.predict(e, x_t, t, clip=(-1, 1))
root = (1 - alpha_bar[s] - diffusion.posterior(x_t, x_t, t, s).variance).sqrt()
ddpm = diffusion.posterior(x_t, clipped.x0, t, s).mean           # (4.18) with the clipped x̂_0
assert (alpha_bar[s].sqrt() * clipped.x0 + root * clipped.eps - ddpm).abs().max() < 1e-12
stale = alpha_bar[s].sqrt() * clipped.x0 + root * e
fact("largest error of the mean with the old ε", (stale - ddpm).abs().max(), digits=2)
fact("standard deviation of the step",
     diffusion.posterior(x_t, x_t, t, s).variance.sqrt(), digits=2)

# %% [markdown]
# **Exercise 9.3** (3 points, 15 minutes, ●●○) — *Your own update.* In `my_ddpm.py`, write `ddim_step(x_t, t, s, eps, z, eta, alpha_bar)` that returns $x_s$ of (9.14), for any ints $0\le s<t\le T$, the guess `eps` of the noise in `x_t`, the fresh noise `z` and one number $0\le\eta\le1$.

# %%
check("9.3", "my_ddpm.ddim_step")

# %% [markdown]
# ## 9.7 Fewer steps: which ones?
#
# The proof in 9.3 used nowhere that $s=t-1$. So choose steps $\tau_1<\tau_2<\dots<\tau_S$ out of $1,\dots,T$, put $\tau_0=0$, and run (9.14) along
#
# $$
# \tau_S\;\to\;\tau_{S-1}\;\to\;\dots\;\to\;\tau_1\;\to\;0 ,
# \qquad (t,s)=(\tau_i,\tau_{i-1}) ,\quad i=S,\dots,1 .
# \tag{9.16}
# $$
#
# The pairs $(x_0,x_{\tau_i})$ are right for the same reason as before, and the network is asked only at steps on which it was trained. It is told the *original* number $\tau_i$, never its place $i$ in the list. In other words, the walk is that of a shorter chain with $\bar\alpha'_i=\bar\alpha_{\tau_i}$, whose steps have $\beta'_i=1-\bar\alpha_{\tau_i}/\bar\alpha_{\tau_{i-1}}$. (The $\beta_{\tau_i}$ of the long chain have no business here.) The network was trained once, on all $T$ steps; $S$ is chosen when sampling, and so is $\eta$.
#
# Which steps? Five rules are in use, in our count $1,\dots,T$ and with $i=0,\dots,S-1$:
#
# | rule | steps | |
# |---|---|---|
# | trailing | $\operatorname{round}(T-i\,T/S)$ | starts at $T$ |
# | leading | $1+i\,\lfloor T/S\rfloor$ | contains 1, **never visits $T$** if $S<T$ |
# | linspace | $\operatorname{round}\big(1+i\,\frac{T-1}{S-1}\big)$ | both ends |
# | quadratic | $\operatorname{round}\big(1+(T-1)\,(\frac{i}{S-1})^2\big)$ | both ends, dense near the data |
# | log-SNR | uniform in $\log\mathrm{SNR}$ | both ends, denser still near the data |
#
# The first two in formulas, since you will write one:
#
# $$
# \text{trailing:}\;\;\tau_{S-i}=\operatorname{round}\Big(T-i\,\frac TS\Big) ,
# \qquad
# \text{leading:}\;\;\tau_{1+i}=1+i\,\Big\lfloor\frac TS\Big\rfloor ,
# \qquad i=0,\dots,S-1 .
# \tag{9.17}
# $$
#
# > **Pitfall: grids that are off.** *Leading* starts at $x_t$ with $t<T$, but feeds it pure noise: at $S=10$ the start is $t=901$. With $S$ that does not divide $T$ it loses the whole tail. *Stride for neighbour*: a widely used library takes $s=t-\lfloor T/S\rfloor$ whatever the list says, so that the state does not arrive where the network is asked next; right for leading grids, and for trailing ones if $S$ divides $T$; wrong otherwise.
# > *Quadratic with $\sqrt{0.8\,T}$*: the grid of DDIM's own code for CIFAR-10 spaces the roots from 0 to $\sqrt{0.8\,T}$, so that it starts at $0.8\,T$, and with 50 steps it lists the lowest one twice. The paper's numbers for CIFAR-10 need that grid. (Its numbering is from 0.)
#
# The cell counts. (What a wrong neighbour costs, the end of the next section computes.)

# %%
for S in (10, 30, 300):
    grids = {rule: schedule.steps(S, rule).flip(0).tolist()
             for rule in ("leading", "trailing", "linspace")}
    fact(f"S = {S}: first step of leading", grids["leading"][0])
    wrong = {rule: sum(t - T // S != s for t, s in pairwise(grids[rule])) for rule in grids}
    fact(f"    wrong neighbours of {S - 1} by t - T // S: leading, trailing, linspace",
         [wrong[rule] for rule in grids])
claim("9.17", torch.tensor([T - i * T / 8 for i in range(8)]).round(),
      schedule.steps(8, "trailing").flip(0).double(), note="trailing, S = 8")
chain = schedule.respace(10, "trailing")               # the shorter chain, with its own β
x_t, x0 = draws(2, 5, 3, seed=10)
claim("9.16", member(x_t, x0, 700, 600, 0.1, alpha_bar)[0],
      member(x_t, x0, 7, 6, 0.1, chain.alpha_bar)[0], note="step 7 of ten is 700 → 600")
claim("9.16", 1 - alpha_bar[700] / alpha_bar[600], chain.beta[7], note="β of the shorter chain")
quad = (torch.linspace(0, math.sqrt(0.8 * T), 50, dtype=DOUBLE) ** 2).long()
fact("share √ᾱ of the data's mean that the start should contain: T, leading S = 10, 0.8 T",
     [alpha_bar[t].sqrt() for t in (T, 901, 800)], digits=2)
fact("distinct steps of 50 in that quadratic grid", int(quad.unique().numel()))

fig, ax = figure(row_height=2.2)
for row, rule in enumerate(("trailing", "leading", "linspace", "quadratic", "log-snr")):
    steps = schedule.steps(12, rule)
    ax.plot(steps, torch.full((12,), row), "|", ms=14, mew=2, color=BLUE)
ax.set(xlabel="$t$", yticks=range(5), ylim=(4.6, -0.6), xlim=(-15, 1015))
ax.set_yticklabels(["trailing", "leading", "linspace", "quadratic", "log-SNR"])
show(fig, """Five rows of twelve strokes on an axis from 0 to 1000. Trailing, leading and
linspace are evenly spaced; leading ends before 1000. Quadratic is denser on the left: half
of its steps lie below 250. So do half of log-SNR's, of which four lie below 50, where quadratic
has three.""")

# %% [markdown]
# **Exercise 9.4** (2 points, 10 minutes, ●○○) — *Your own grid.* In `my_ddpm.py`, write `trailing_steps(T, S)` that returns the $S$ trailing steps of (9.17) as an int64 tensor, in the order in which the sampler visits them: from $T$ down.

# %%
check("9.4", "my_ddpm.trailing_steps")


# %% [markdown]
# ## 9.8 How far from the data, exactly
#
# With $\hat x_0$ in the place of $x_0$ the theorem of 9.3 no longer applies word for word: it speaks of walks that know $x_0$. What a sampler really produces can be computed in closed form for Gaussian data with the perfect predictor. Take $x_0\sim\mathcal N(0,V)$ on a line. The perfect predictor is linear, $\hat\varepsilon=\sqrt{1-\bar\alpha_t}\;x_t/V_t$ with $V_t=\bar\alpha_tV+1-\bar\alpha_t$: it is minus $\sqrt{1-\bar\alpha_t}$ times
# the score $-x_t/V_t$, (4.44). And $\hat x_0=\sqrt{\bar\alpha_t}\,V\,x_t/V_t$. Put both into (9.14): a step multiplies by a number and adds noise. So the sampler's law stays Gaussian, and its variance $R$ obeys
#
# $$
# R_s\;=\;g^2R_t+\sigma_t^2 ,
# \qquad
# g=\frac{\sqrt{\bar\alpha_s\bar\alpha_t}\;V+\sqrt{1-\bar\alpha_s-\sigma_t^2}\,\sqrt{1-\bar\alpha_t}}{V_t} ,
# \qquad R_{\tau_S}=1 .
# \tag{9.18}
# $$
#
# For DDPM's $\hat\sigma$ the factor $g$ is that of $\eta=1$, and $\beta_{t\mid s}$ is added in the place of $\sigma_t^2$, except in the last step, which adds nothing. The distance to the data is (T.44) on a line,
#
# $$
# W_2\;=\;\big|\sqrt{R_0}-\sqrt V\,\big| .
# \tag{9.19}
# $$
#
# No draw, no network, no metric that might lie. We print and plot it for data of standard deviation $\tfrac12$.

# %%
def end_variance(steps, eta, V, hat=False, bars=alpha_bar):
    """R_0 of (9.18) after a walk along the decreasing steps, then to 0."""
    R = torch.ones((), dtype=DOUBLE)
    for t, s in pairwise([*steps, 0]):
        beta = 1 - bars[t] / bars[s]
        sigma2 = eta**2 * (1 - bars[s]) / (1 - bars[t]) * beta
        old = (1 - bars[s] - sigma2).clamp(min=0)
        g = (bars[s] * bars[t]).sqrt() * V + (old * (1 - bars[t])).sqrt()
        R = (g / (bars[t] * V + 1 - bars[t])) ** 2 * R + (beta if hat and s > 0 else sigma2)
    return R


def walk_variance(steps, eta, V, variance="posterior"):
    """The same from the library: how the two points 0 and 1 move, and the noise of each step."""
    process, gauss = GaussianDiffusion(schedule, variance=variance), GaussianData([0.0], [[V]])
    R = torch.ones((), dtype=DOUBLE)
    for t, s in pairwise([*steps, 0]):
        law = process.reverse(gauss.denoiser(schedule)(one, t), one, t, s, eta=eta)
        R = law.mean[0, 0] ** 2 * R + (law.variance if s > 0 else 0)
    return R


twenty = schedule.steps(20, "quadratic").flip(0).tolist()
for eta, variance in ((0.0, "posterior"), (0.5, "posterior"), (1.0, "posterior"), (1.0, "beta")):
    R = end_variance(twenty, eta, 0.25, hat=variance == "beta")
    claim("9.18", R, walk_variance(twenty, eta, 0.25, variance), tol=1e-9,
          note=f"20 steps, η = {eta}, {variance}")
    exact = gaussian_frechet_distance([0.0], [[R.item()]], [0.0], [[0.25]])
    claim("9.19", (R.sqrt() - 0.5) ** 2, exact, tol=1e-8)

counts = (5, 10, 20, 50, 100, 200)
members = {r"$\eta=0$": (0.0, False), r"$\eta=0.5$": (0.5, False), r"$\eta=1$": (1.0, False),
           r"$\hat\sigma$": (1.0, True)}
colours = dict(zip(members, (BLUE, GREEN, ORANGE, VERMILLION), strict=True))
fig, axes = figure(1, 2, sharey=True)
away = {}
for ax, V_data in zip(axes, (0.25, 1.0), strict=True):
    for name, (eta, hat) in members.items():
        away[V_data, name] = torch.stack([
            (end_variance(schedule.steps(n, "quadratic").flip(0).tolist(), eta, V_data, hat).sqrt()
             - V_data**0.5).abs() for n in counts])
        ax.loglog(counts, away[V_data, name], "o-", ms=4, color=colours[name], label=name)
    ax.set(xlabel="number of steps $S$", title=f"$V={V_data:g}$")
axes[0].set_ylabel("$W_2$ to the data")
axes[0].legend(fontsize=9)
show(fig, """Two panels, Wasserstein distance against the number of steps on logarithmic axes.
Left, V = 0.25: the curves for eta = 0, 0.5 and 1 fall with slope about -1, eta = 0 lowest;
sigma hat falls too, from ten steps on a little below eta = 0. Right, V = 1: the same three, and
sigma hat far below them, constant at 5e-5.""")
claim("9.18", (counts, away[0.25, r"$\eta=0$"]), -1.0, relation="order", note="η = 0, V = 0.25")
for V_data in (0.25, 1.0):
    for name, label in zip(members, ("η = 0", "η = 0.5", "η = 1", "σ̂"), strict=True):
        fact(f"V = {V_data:g}, {label}: W_2 with 10 and 100 steps",
             away[V_data, name][[1, 4]], digits=2)

fact("V = 0.06, log-SNR grid, 10 steps: η = 0, 0.5, 1 and σ̂",
     [(end_variance(schedule.steps(10, "log-snr").flip(0).tolist(), eta, 0.06, hat).sqrt()
       - 0.06**0.5).abs() for eta, hat in members.values()], digits=2)


# %% [markdown]
# *Which $\eta$ is best, and how fast does the error fall?* Within the family, the less fresh noise the better, by a factor of 1.6 to 2.1 from $\eta=1$ to $\eta=0$ in the printed pairs; and the error falls like $1/S$. Note how $\hat\sigma$ behaves: for data of variance 1 it is *exact* at any number of steps, on a grid that goes down to $t=1$ (what is left, $5\cdot10^{-5}$, is that the last step, from $t=1$, returns the mean). No contradiction to (9.11): there $x_0$ was
# known. Here it is guessed, the guess lacks variance, (4.29), and $\hat\sigma$ happens to put back just what is missing if $V=1$, (4.34). With $V=\tfrac14$ on this grid it still profits, from ten steps on. With narrow data and a grid that is denser near them, the last printed line, it is the worst of all.
#
# **What the wrong neighbours cost.** The same recursion with $s=t-\lfloor T/S\rfloor$ where the list says otherwise: the state then stands at one level while the next step believes it at another.

# %%
def strided(steps, V, stride):
    """R_0 when each step aims at t − stride, and the next begins as if it stood on the list."""
    R = torch.ones((), dtype=DOUBLE)
    for t in steps:
        s = max(t - stride, 0)
        g = (alpha_bar[s] * alpha_bar[t]).sqrt() * V
        g = g + ((1 - alpha_bar[s]) * (1 - alpha_bar[t])).sqrt()
        R = (g / (alpha_bar[t] * V + 1 - alpha_bar[t])) ** 2 * R
    return R


for rule, S in (("linspace", 50), ("trailing", 30), ("quadratic", 20)):
    steps = schedule.steps(S, rule).flip(0).tolist()
    found = [R.sqrt() - 0.5 for R in (end_variance(steps, 0.0, 0.25),
                                      strided(steps, 0.25, T // S))]
    fact(f"{rule}, S = {S}: √R_0 - √V with the list's neighbours, with the stride", found,
         digits=2)

# %% [markdown]
# With the quadratic grid the slip makes the distance three times as large: above, the list's steps are longer than the stride, and at the end all steps from below $t=50$ aim at 0. With the two even grids the law comes out *nearer* to the data, because two errors cancel in part: with few steps the sampler's variance comes out too small, and there the slip makes it larger. That is the lesson: a histogram, or a Fréchet distance, does not find such a bug. A look at the list of pairs $(t,s)$ does, at once.

# %% [markdown]
# ## 9.9 Steps against quality, measured
#
# Now a trained network, whose $\hat\varepsilon$ is not perfect, and data that are no Gaussian: the digits network that ships with the book. As many digits as are held out (355) are generated, and the Fréchet distance of [the toolbox](A_toolbox.ipynb#T.12-How-we-will-measure) to the held-out ones is taken, with $\hat x_0$ clipped to $[-1,1]$. We count **calls of the network**, which is what time is spent on. The table of all samplers on three grids takes minutes, so it was measured beforehand
# (`measurements/ddim.py`; `make measure` repeats it); one point is measured again here.

# %%
record = measured("ddim")
curves, full = record["curves"], record["full_chain"]
network = shipped("digits").network.eval()
heldout = digits("heldout")[0]
features = classifier().features
real = features(heldout)


def draw(seed, variance="posterior", **settings):
    """As many digits from the shipped network as are held out."""
    process = GaussianDiffusion(schedule, variance=variance)
    return sample(network, process, heldout.shape, clip=(-1, 1), generator=seeded(seed),
                  **settings).result()


def judge(images):
    """Fréchet distance to the held-out digits."""
    return frechet_distance(features(quantise(images, DIGITS_LEVELS)), real)


ten = judge(draw(0, steps=10, spacing="trailing", eta=0.0))
stored = curves["eta 0"]["trailing"][0]
assert record["images"] == len(heldout) == 355
assert stored["calls"] == 10 and abs(ten - stored["distance"]) < 0.02, (ten, stored)
print("DDIM, 10 calls: measured again, and within 0.02 of the record")


def best(sampler, calls):
    """The grid with the smallest distance for this number of calls, and that distance."""
    found = {grid: p["distance"] for grid, points in curves[sampler].items()
             for p in points if p["calls"] == calls}
    return min(found.items(), key=lambda pair: pair[1])


labels = {"eta 0": "η = 0", "eta 0.5": "η = 0.5", "eta 1": "η = 1", "sigma hat": "σ̂"}
print(f"{'':>10} " + "".join(f"{n:>18}" for n in (10, 20, 50)))
for sampler, label in labels.items():
    row = [best(sampler, n) for n in (10, 20, 50)]
    print(f"{label:>10} " + "".join(f"{d:>7.2f} {grid:<10}" for grid, d in row))
row = [best("dpmpp-2m", n) for n in (8, 12, 20)]
print("DPM-Solver++(2M), 8, 12, 20 calls:", ", ".join(f"{d:.2f} {g}" for g, d in row))
row = [best("heun", n) for n in (7, 11, 19)]
print("Heun, 7, 11, 19 calls:", ", ".join(f"{d:.2f} {g}" for g, d in row))
for sampler in ("eta 1", "sigma hat"):
    print(f"{labels[sampler]}, 10 calls on each grid: "
          + ", ".join(f"{d[0]['distance']:.2f} {grid}" for grid, d in curves[sampler].items()))
print("1000 calls:", ", ".join(f"{labels[k]} {d:.2f}" for k, d in full.items()))

# %% tags=["hide-input"]
paper = {  # DDIM paper, Table 1, CIFAR-10
    "eta 0": (13.36, 6.84, 4.67, 4.16, 4.04), "eta 0.5": (16.66, 8.35, 5.25, 4.46, 4.29),
    "eta 1": (41.07, 18.36, 8.01, 5.78, 4.73), "sigma hat": (367.43, 133.37, 32.72, 9.99, 3.17)}
ink = {"eta 0": BLUE, "eta 0.5": GREEN, "eta 1": ORANGE, "sigma hat": VERMILLION}
fig, (left, right) = figure(1, 2, row_height=3.2)
for sampler, colour in ink.items():
    points = [(n, best(sampler, n)[1]) for n in (10, 20, 50, 100)]
    if sampler in full:
        points.append((1000, full[sampler]))
    left.loglog(*zip(*points, strict=True), "o-", ms=4, color=colour, label=labels[sampler])
    right.loglog((10, 20, 50, 100, 1000), paper[sampler], "o-", ms=4, color=colour)
points = [(n, best("dpmpp-2m", n)[1]) for n in (6, 8, 12, 20, 30)]
left.loglog(*zip(*points, strict=True), "s--", ms=4, color=PURPLE, label="2M")
left.set(xlabel="calls of the network", ylabel="Fréchet distance", title="our digits",
         ylim=(0.1, 1))
right.set(xlabel="calls of the network", title="CIFAR-10, the DDIM paper")
left.legend(fontsize=8, ncols=2)
show(fig, """Left, our digits: Fréchet distance against calls of the network, both logarithmic.
All points lie between 0.18 and 0.5: eta = 0 and 2M nearly flat near 0.4, the noisy samplers
lower and up and down from 20 calls on. Right, the DDIM paper's Table 1 for
CIFAR-10: all curves fall; at ten calls eta = 0 has 13 and sigma hat 367; at a thousand calls
sigma hat is lowest, at 3.17.""")

# %% [markdown]
# *How few calls are enough?* Left, our own network, each sampler on the best of three grids (trailing, quadratic, log-SNR; with 100 calls trailing only, and 1000 calls are the full chain). Right, what the DDIM paper reports for CIFAR-10, its Table 1:
#
# | FID on CIFAR-10 | $S=10$ | 20 | 50 | 100 | 1000 |
# |---|---|---|---|---|---|
# | $\eta=0$ | 13.36 | 6.84 | 4.67 | 4.16 | 4.04 |
# | $\eta=0.5$ | 16.66 | 8.35 | 5.25 | 4.46 | 4.29 |
# | $\eta=1$ | 41.07 | 18.36 | 8.01 | 5.78 | 4.73 |
# | $\hat\sigma$ | 367.43 | 133.37 | 32.72 | 9.99 | 3.17 |
#
# Read off three things.
#
# **Few calls are enough.** From twenty calls on no curve falls by more than draws differ. DDIM after 20 calls is where it is after 1000; 2M is there after 8 to 12. What DDIM reaches with a thousand calls can be had for a fiftieth. (Small differences mean nothing: with 355 images one draw differs from the next by about 0.1, as the fresh draws printed below do. And the best of three grids is a little flattered by having been chosen.)
#
# **But $\eta=0$ is not the best here.** With the same network the full chain of $\eta=1$ reaches a mean of 0.27 over five draws (chapter 7; its interval goes from 0.17 to 0.36, and other real digits have 0.21), and DDIM stays near 0.4 *at any number of calls*. We had set out to be within 1.25 times the full chain with 20 calls of DDIM and 12 of 2M. Against the full chain of $\eta=0$, which solves the same equation, they are; against that of $\eta=1$ they miss, at 1.5 and 1.4, as printed below.
# $\eta=0.5$ is at 0.22 after 20 calls, in the one draw that was made. In the paper, too, the lowest number of all belongs to a thousand noisy steps, 3.17 for $\hat\sigma$ against 4.04 (though $\eta=1$ has 4.73). A plausible reason, which we do not prove: a network errs, and a deterministic walk carries each error to the end, while fresh noise, followed by denoising, partly washes it out.
#
# **$\hat\sigma$ fails on some grids.** On our three it is behind $\eta=1$ by no more than one draw differs from the next: with ten calls they are at 0.45 and 0.42 on the trailing grid, and both poor, near 1 or above, on the other two, as printed. The paper reports 367 at $S=10$. (9.11) says when to expect it: where a long step *ends at a low level* $s$, at which the little variance $1-\bar\alpha_s$ that belongs there is swamped by the excess. Leading and linspace grids contain such a step, to $s=1$. There the variance comes out a thousand times too large, and the network, told $t=1$, believes the rest to be picture. The last noisy step of a trailing grid ends at $s=100$: too large by a factor of 3, and the final step takes most of that away. The cell tries both, and $\eta=1$ beside them: on the leading grid $\hat\sigma$ is more than twice as far away. (With clipping and small pictures the damage stays far below the paper's.)

# %%
chain7 = measured("digits")["full_chain"]["posterior"]                # chapter 7: five draws, η = 1
five = chain7["distance"]
fact("full chain of η = 1, five draws: mean, interval", [five[k] for k in ("mean", "low", "high")],
     digits=2)
fact("other real digits: mean", chain7["floor"]["mean"], digits=2)
for name, entry in (("DDIM", record["ddim"]), ("2M", record["second_order"])):
    values = torch.tensor(entry["distances"], dtype=DOUBLE)
    print(f"{name}, {entry['calls']} calls on {entry['grid']}, four fresh draws: "
          + ", ".join(f"{v:.2f}" for v in values))
    fact("    their mean over the full chain: of η = 1, of η = 0",
         [values.mean() / five["mean"], values.mean() / full["eta 0"]], digits=2)

hat = {grid: judge(draw(0, steps=10, spacing=grid, eta=1.0, variance="beta"))
       for grid in ("trailing", "leading")}
plain = judge(draw(0, steps=10, spacing="leading", eta=1.0))
assert hat["leading"] > 2 * plain
low = {"trailing": 100, "leading": 1}                  # where the last noisy step ends
for grid, s in low.items():
    t = s + 100
    excess = alpha_bar[s] * (1 - alpha_bar[t] / alpha_bar[s]) ** 2 / (1 - alpha_bar[t])
    fact(f"{grid}: variance too large by the factor, at s = {s}",
         1 + excess / (1 - alpha_bar[s]), digits=2)
fact("σ̂ with 10 calls: Fréchet distance, trailing and leading",
     list(hat.values()), digits=2, uncertainty=5e-4)
fact("η = 1 with 10 calls, leading", plain, digits=2, uncertainty=5e-4)

# %% [markdown]
# **Exercise 9.5** (3 points, 15 minutes, ●●○) — *Explain.* A colleague says: "With $\eta=0$ no noise is added, so the forward process of DDIM adds no noise either, and the network, which has been trained on noisy images, is used on data that it has never seen. It works by luck." Where is the mistake, what does the network see when sampling with $\eta=0$, and what is true in the worry? (Eight sentences are enough.)

# %%
explanation = ""  # your words


check("9.5", explanation)

# %% [markdown]
# ## 9.10 Nothing is drawn: inversion and interpolation
#
# With $\eta=0$ the picture is a function of $x_T$. Three things follow.
#
# **The same $x_T$ gives the same picture, for any number of steps**, up to the error of the walk. The first two rows of the figure below show ten and a hundred calls.
#
# **The walk can be turned round.** Divide (9.14) with $\sigma_t=0$ by $\sqrt{\bar\alpha_s}$, put in (4.21), and write $u_t=x_t/\sqrt{\bar\alpha_t}$ and $r_t=\sqrt{1-\bar\alpha_t}/\sqrt{\bar\alpha_t}$, the noise-to-signal ratio, so that $\hat x_0=u_t-r_t\hat\varepsilon$:
#
# $$
# u_s\;=\;u_t+(r_s-r_t)\;\hat\varepsilon(x_t,t) .
# \tag{9.20}
# $$
#
# (The right side is $\hat x_0+r_s\hat\varepsilon$.) If $\hat\varepsilon$ changes little along the step, the value at the lower end serves as well, and the same line goes up, from $x_s$ to $x_t$:
#
# $$
# u_t\;=\;u_s+(r_t-r_s)\;\hat\varepsilon(x_s,s) .
# \tag{9.21}
# $$
#
# From a picture $x_0$ to its noise $x_T$, and back by (9.20): a round trip. It is not exact, since up and down ask the network at different points; the error of a step is of the size of its length squared, and so the whole is off by about one over the number of steps. At $s=0$, where no network can be asked, the library asks it at $t=1$ with $x_0$ itself.

# %%
x_t, e = draws(2, 5, 3, seed=7)
t, s = 600, 450
ratio = ((1 - alpha_bar) / alpha_bar).sqrt()           # r_0..r_T
stepped = diffusion.reverse(e, x_t, t, s, eta=0.0).mean
claim("9.20", x_t / alpha_bar[t].sqrt() + (ratio[s] - ratio[t]) * e, stepped / alpha_bar[s].sqrt())


def leaning(x, t):
    """A guess that depends on the point and on the step, to see where it is asked."""
    return torch.tanh(x) + 0.001 * t


low, up = ddim_invert(lambda x, t: leaning(x, float(t[0])), diffusion, x_t, steps=[t, s])
claim("9.21", low.x / alpha_bar[s].sqrt() + (ratio[t] - ratio[s]) * leaning(low.x, s),
      up.x / alpha_bar[t].sqrt(), note="the library, going up")

some = mixture.quantile(torch.linspace(0.05, 0.95, 12, dtype=DOUBLE))[:, None]
for n in (25, 100, 400):
    grid = {"steps": n, "spacing": "quadratic"}
    noise = ddim_invert(oracle, diffusion, some, **grid).result()
    back = solve(oracle, diffusion, some.shape, solver="ddim", x_T=noise, **grid).result()
    fact(f"round trip of points on a line, {n} steps: largest error", (back - some).abs().max(),
         digits=2)

# %% [markdown]
# **Between two noises lie pictures.** Take two starts $x_T$ and $x_T'$ and walk down from points between them. Which points, a share $\zeta$ of the way? The straight line is the wrong path. For independent draws of $\mathcal N(0,I)$,
#
# $$
# \operatorname{Var}\big[(1-\zeta)\,x_T+\zeta\,x_T'\big]\;=\;\big((1-\zeta)^2+\zeta^2\big)\,I ,
# \tag{9.22}
# $$
#
# by (T.12): half way it is $\tfrac12I$. In $D$ dimensions almost all draws have a length near $\sqrt D$; the midpoint has length $\sqrt{D/2}$, which no network has met at $t=T$. So go along the arc. With $\vartheta$ the angle between the two,
#
# $$
# x_T(\zeta)\;=\;\frac{\sin\big((1-\zeta)\,\vartheta\big)}{\sin\vartheta}\;x_T+\frac{\sin(\zeta\,\vartheta)}{\sin\vartheta}\;x_T' .
# \tag{9.23}
# $$
#
# For two vectors of one length all points of (9.23) have that length, and the angle grows evenly with $\zeta$. Two draws in many dimensions are nearly orthogonal, $\vartheta\approx\pi/2$, and then the squares of the two weights sum to one: the variance stays 1.

# %%
a, b = draws(2, 20_000, 64, seed=8)
for share in (0.25, 0.5):
    line = (1 - share) * a + share * b
    spread = line.square().mean()
    claim("9.22", (1 - share) ** 2 + share**2, spread,
          standard_error=line.square().std() / line.numel() ** 0.5, note=f"ζ = {share}")
unit_a, unit_b = (w[:50] / w[:50].norm(dim=1, keepdim=True) for w in (a, b))
angle = (unit_a * unit_b).sum(1, keepdim=True).acos()
arc = (0.7 * angle).sin() / angle.sin() * unit_a + (0.3 * angle).sin() / angle.sin() * unit_b
claim("9.23", arc, slerp(unit_a, unit_b, 0.3), note="ζ = 0.3")
claim("9.23", arc.norm(dim=1), torch.ones(50, dtype=DOUBLE), note="the length stays")
fact("angle between two draws in 64 dimensions, in degrees: mean and standard deviation",
     [angle.mean() * 180 / math.pi, angle.std() * 180 / math.pi], digits=2)

# %% tags=["hide-input"]
pair = torch.randn(2, 1, 8, 8, generator=seeded(21))
shares = torch.linspace(0, 1, 9)


def down(x_T, calls):
    """DDIM on the trailing grid, clipped."""
    return solve(network, diffusion, x_T.shape, solver="ddim", steps=calls, spacing="trailing",
                 x_T=x_T, clip=(-1, 1)).result()


eight = torch.randn(9, 1, 8, 8, generator=seeded(22))
few, many = down(eight, 10), down(eight, 100)
ends = pair[:1].expand(9, 1, 8, 8), pair[1:].expand(9, 1, 8, 8)
weight = shares[:, None, None, None]
arcs = down(slerp(*ends, shares), 50)
lines = down((1 - weight) * ends[0] + weight * ends[1], 50)
originals = heldout[:9]
noise = ddim_invert(network, diffusion, originals, steps=100, spacing="quadratic").result()
again = solve(network, diffusion, noise.shape, solver="ddim", steps=100, spacing="quadratic",
              x_T=noise).result()
show_images(torch.stack([few, many, originals, again, arcs, lines]), """Six rows of nine digits.
Rows one and two, ten and a hundred calls from the same noise: the same digits, the second row
crisper. Rows three and four, held-out digits and what a round trip makes of them, hardly
different. Row five, along the arc, one digit turns into another; row six, along the straight
line, with the same ends, another picture in the middle.""",
            row_labels=["10 calls", "100 calls", "held out", "round trip", "arc", "line"])
fact("same noise, 10 and 100 calls: correlation of the pictures",
     torch.corrcoef(torch.stack([few.flatten(), many.flatten()]))[0, 1], digits=2, uncertainty=1e-4)
error = (again - originals).square().mean().sqrt()
assert error < 0.2, error
fact("round trip of held-out digits, 100 calls each way: root mean square error", error, digits=2,
     uncertainty=1e-4)
fact("middle of the arc and of the line, length over the ends' mean length",
     [(slerp(*ends, 0.5)[0].norm() / pair.flatten(1).norm(dim=1).mean()),
      (0.5 * (pair[0] + pair[1])).norm() / pair.flatten(1).norm(dim=1).mean()], digits=2)

# %% [markdown]
# *Does the noise know the picture?* Rows one and two: yes, and ten calls are enough to see which digit it will be. Rows three and four: pictures that the network has never seen go up to noise and come back. The last two rows walk between two noises, along the arc and along the line. A single row does not show what is wrong with the line. The distance of many midpoints does:

# %%
one_end, other_end = torch.randn(2, len(heldout), 1, 8, 8, generator=seeded(23))
middles = {"arc": slerp(one_end, other_end, 0.5), "line": 0.5 * (one_end + other_end)}
middles = {path: judge(down(x_T, 10)) for path, x_T in middles.items()}
fact("Fréchet distance of 355 pictures from midpoints: arc, line", list(middles.values()),
     digits=2, uncertainty=1e-3)
assert middles["line"] > 2 * middles["arc"]


# %% [markdown]
# **Exercise 9.6** (2 points, 12 minutes, ●●○) — *Along the arc.* Write `arc(a, b, share)` that returns the point (9.23) between two vectors of shape `(D,)`, for one number $0\le\zeta\le1$ = `share`. The vectors need not be of one length; the angle is that between their directions.

# %%
def arc(a, b, share):
    """The point on the arc from a (share 0) to b (share 1)."""
    raise NotImplementedError("your turn")


check("9.6", arc)

# %% [markdown]
# ## 9.11 The equation behind it
#
# (9.20) is a step of Euler's method, (T.36), and now we see for which equation. Let the steps become dense, and take $r$, the noise-to-signal ratio, as the clock. With $\hat\varepsilon$ as a function of $u=x/\sqrt{\bar\alpha}$ and $r$,
#
# $$
# \frac{du}{dr}\;=\;\hat\varepsilon(u,r) .
# \tag{9.24}
# $$
#
# **Does this equation carry the right laws?** Let $p_r$ be the density of $u_t=x_0+r_t\,\varepsilon$, which is (3.14) divided by $\sqrt{\bar\alpha_t}$. Three steps. *First*, how $p_r$ changes. It is $p_{\text{data}}$ convolved with $\mathcal N(0,r^2I)$. The Gaussian density $g(u)=\mathcal N(u;\,0,\,r^2I)$ satisfies $\partial g/\partial r=r\,\Delta g$, with $\Delta$ the sum of second derivatives over the coordinates (differentiate; on a line both sides are $g\cdot(u^2/r^3-1/r)$), and a
# convolution passes this on:
#
# $$
# \frac{\partial p_r}{\partial r}\;=\;r\,\Delta p_r .
# \tag{9.25}
# $$
#
# *Second*, the perfect predictor: by (4.44), and since $\nabla_x=\nabla_u/\sqrt{\bar\alpha_t}$,
#
# $$
# \varepsilon^*(u,r)\;=\;-\sqrt{1-\bar\alpha_t}\;\nabla_x\log q(x_t)\;=\;-\,r\,\nabla_u\log p_r(u) .
# \tag{9.26}
# $$
#
# *Third*: if points move with the velocity $f$, their density changes by what flows in minus what flows out, $\partial p/\partial r=-\nabla\!\cdot(p\,f)$, the continuity equation. With $f=\varepsilon^*$,
#
# $$
# -\nabla\!\cdot\!\big(p_r\,\varepsilon^*\big)\;=\;r\,\nabla\!\cdot\!\big(p_r\,\nabla\log p_r\big)\;=\;r\,\nabla\!\cdot\nabla p_r\;=\;r\,\Delta p_r .
# \tag{9.27}
# $$
#
# That is (9.25). Start and velocity determine the density at all other times, if the velocity is smooth, as it is for $r>0$. So points that start with the law $p_{r_T}$ and follow (9.24) with the perfect predictor have the law $p_r$ at every $r$. (We start from $\mathcal N(0,I)$ and not from the law of $x_T$; how little that is, (2.26) has said.) **So with a perfect network the whole error of DDIM is that of Euler's method.** Song and others found this equation, in another form, as the *probability flow ODE*.
#
# On a line there is more. Paths of an ODE cannot cross (two that meet have the same future and the same past). So they keep their order, and the point at the 30 % quantile of $p_{r_T}$ ends at the 30 % quantile of the data: **the map is the quantile map**, which our mixture knows exactly. For Gaussian data it is multiplication by $\sqrt{V_s/V_t}$:
#
# $$
# x_s\;=\;F_s^{-1}\big(F_t(x_t)\big) ,\qquad\text{and}\qquad x_s=\sqrt{V_s/V_t}\;x_t\quad\text{for }\mathcal N(0,V) .
# \tag{9.28}
# $$

# %%
fine = NoiseSchedule.linear(2**16, 0.1 / 2**16, 20 / 2**16)      # the same curve, 65 times as fine
fine_bars = fine.alpha_bar
weights, means, widths = mixture.weights, mixture.means[:, 0], mixture.covariances[:, 0, 0]


def p(u, r):
    """The density of u_t on a line: each hump's variance grows by r²."""
    spread = widths + r**2
    bells = torch.exp(-((u[:, None] - means) ** 2) / (2 * spread)) / (2 * math.pi * spread).sqrt()
    return bells @ weights


u = torch.linspace(-1.6, 1.6, 9, dtype=DOUBLE).requires_grad_()
r = torch.full((9,), 0.4, dtype=DOUBLE).requires_grad_()
density = p(u, r[:, None])
slope_u, slope_r = torch.autograd.grad(density.sum(), (u, r), create_graph=True)
second = torch.autograd.grad(slope_u.sum(), u, create_graph=True)[0]
claim("9.25", (r * second).detach(), slope_r.detach())
t = int((ratio - 0.4).abs().argmin())
r_t, x_t = ratio[t], (u.detach() * alpha_bar[t].sqrt())[:, None]
place, clock = u.detach().clone().requires_grad_(), r_t.expand(9).clone().requires_grad_()
log_slope = torch.autograd.grad(p(place, r_t).log().sum(), place)[0]
claim("9.26", -r_t * log_slope, mixture.eps(schedule, x_t, t)[:, 0], tol=1e-9)
asked = mixture.eps(schedule, (place * alpha_bar[t].sqrt())[:, None], t)[:, 0]
inflow = -torch.autograd.grad((p(place, r_t) * asked).sum(), place)[0]
change = torch.autograd.grad(p(place, clock[:, None]).sum(), clock)[0]
claim("9.27", inflow, change, tol=1e-9, note="the oracle's ε*, by autograd")


def exact_map(x, t, s, law=mixture, chain=fine):
    """(9.28): where the ODE carries x from level t to level s."""
    return law.marginal(chain, s).quantile(law.marginal(chain, t).cdf(x))


high, low = 58982, 6554                                # 0.9 T and 0.1 T of the fine chain
gauss = GaussianData([0.0], [[0.25]])
V_of = [fine_bars[t] * 0.25 + 1 - fine_bars[t] for t in (high, low)]
x = torch.linspace(-2, 2, 7, dtype=DOUBLE)
claim("9.28", (V_of[1] / V_of[0]).sqrt() * x, exact_map(x, high, low, gauss), note="Gaussian data")


# %% [markdown]
# ## 9.12 Second order: fewer calls
#
# Whoever knows that a sampler is Euler's method also knows that there are better ones. [Heun's method](A_toolbox.ipynb#T.10-ODEs-and-the-order-of-Euler's-method) makes the step (9.20) as a trial, asks the network at its end, and repeats the step with the mean of the two answers:
#
# $$
# u_s\;=\;u_t+\frac{r_s-r_t}2\,\Big[\hat\varepsilon(x_t,t)+\hat\varepsilon(\tilde x_s,s)\Big] ,
# \qquad \tilde x_s\ \text{from (9.20)} .
# \tag{9.29}
# $$
#
# Two calls a step, and an error like $1/S^2$. **DPM-Solver++(2M)** gets its second order from memory instead, one call a step. It writes the ODE for $\hat x_0$ with the clock $\lambda_t=\log(\sqrt{\bar\alpha_t}/\sqrt{1-\bar\alpha_t})$, half the log-SNR, and continues $\hat x_0$ along the straight line through this step's and the last step's value, to the middle of the step. DDIM's step (9.14) with $\sigma=0$ is then made with
#
# $$
# \hat x_0^{\,\text{2M}}\;=\;\hat x_0(x_t,t)+\frac{\lambda_s-\lambda_t}{2\,(\lambda_t-\lambda_{t'})}\,\Big[\hat x_0(x_t,t)-\hat x_0(x_{t'},t')\Big] ,
# \tag{9.30}
# $$
#
# where $t'>t$ is the level at which the step before began, and with $\hat\varepsilon=(x_t-\sqrt{\bar\alpha_t}\,\hat x_0^{\,\text{2M}})/\sqrt{1-\bar\alpha_t}$. Neither can be second order in the very last step: at $s=0$ no network can be asked, and there $\lambda=\infty$. The last step is (9.20). So is the first step of 2M, which has no memory yet.
#
# We measure the orders where both ends are inside, from $0.9\,T$ down to $0.1\,T$ of a chain with $T=2^{16}$ (so that rounding steps to integers does no harm), against the exact map (9.28).

# %%
def eps_of(x, t, bars):
    """ε*(x, t) of the mixture on a line: (9.26), with the derivative written out."""
    spread, gap = bars[t] * widths + 1 - bars[t], x[:, None] - bars[t].sqrt() * means
    share = (weights.log() - 0.5 * gap**2 / spread - 0.5 * spread.log()).softmax(1)
    return (1 - bars[t]).sqrt() * (share * gap / spread).sum(1)


def euler(x, t, s, eps, bars):
    """(9.20), from x_t to x_s."""
    r_t, r_s = (((1 - bars[k]) / bars[k]).sqrt() for k in (t, s))
    return bars[s].sqrt() * (x / bars[t].sqrt() + (r_s - r_t) * eps)


def follow(solver, steps, x, bars):
    """Walk x along the decreasing steps; a step to 0 is Euler's."""
    levels = 0.5 * (bars / (1 - bars)).log()                                   # λ_t
    before = None
    for t, s in pairwise(steps):
        eps = eps_of(x, t, bars)
        end = euler(x, t, s, eps, bars)
        if solver == "Heun" and s > 0:
            end = euler(x, t, s, (eps + eps_of(end, s, bars)) / 2, bars)       # (9.29)
        if solver == "2M" and s > 0:
            x0 = (x - (1 - bars[t]).sqrt() * eps) / bars[t].sqrt()
            if before is not None:
                share = (levels[s] - levels[t]) / (2 * (levels[t] - levels[before[0]]))
                both = x0 + share * (x0 - before[1])                           # (9.30)
                end = euler(x, t, s, (x - bars[t].sqrt() * both) / (1 - bars[t]).sqrt(), bars)
            before = t, x0
        x = end
    return x


def between(n, high, low):
    """n + 1 steps from high to low, even in the square root of t."""
    return (torch.linspace(high**0.5, low**0.5, n + 1, dtype=DOUBLE) ** 2).round().long().tolist()


starts = torch.linspace(-2, 2, 7, dtype=DOUBLE)
sizes = (64, 128, 256, 512, 1024)
truth = exact_map(starts, high, low)
errors = {solver: torch.stack([(follow(solver, between(n, high, low), starts, fine_bars) - truth)
                               .abs().max() for n in sizes]) for solver in ("Euler", "Heun", "2M")}
claim("9.24", (sizes, errors["Euler"]), -1.0, relation="order", note="Euler, that is DDIM")
claim("9.29", (sizes, errors["Heun"]), -2.0, relation="order", note="Heun")
claim("9.30", (sizes, errors["2M"]), -2.0, relation="order", note="DPM-Solver++(2M)")
ends, cost = {}, {}
for ours, theirs in (("Euler", "ddim"), ("Heun", "heun"), ("2M", "dpmpp-2m")):
    walk = solve(mixture.denoiser(short), strong, (7, 1), solver=theirs, steps=6,
                 x_T=starts[:, None])
    ends[ours], cost[ours] = walk.result()[:, 0], walk.calls
six = range(6, -1, -1)                                 # six strong steps, down to 0
claim("9.20", follow("Euler", six, starts, bars), ends["Euler"], note="against the library")
claim("9.29", follow("Heun", six, starts, bars), ends["Heun"], note="against the library")
claim("9.30", follow("2M", six, starts, bars), ends["2M"], note="against the library")
fact("calls for six steps: Euler, Heun, 2M", list(cost.values()))
for solver in errors:
    fact(f"{solver}: largest error with 64 and 1024 steps", errors[solver][[0, 4]], digits=2)

# %%
to_zero = exact_map(starts, high, 0)
down = {name: torch.stack([(follow("Heun", torch.linspace(high**power, 0, n + 1, dtype=DOUBLE)
                                   .pow(1 / power).round().long().tolist(), starts, fine_bars)
                            - to_zero).abs().max() for n in sizes[:4]])
        for name, power in (("t", 1.0), ("√t", 0.5))}
for name, found in down.items():
    fact(f"Heun down to 0, even in {name}: largest error with 64 and 512 steps", found[[0, 3]],
         digits=2)
    fact("    order, measured over 64 to 512 steps", (found[0] / found[3]).log() / math.log(8),
         digits=2)

calls = {"Euler": 1, "Heun": 2, "2M": 1}
fig, ax = figure(row_height=3.0)
for (solver, found), colour in zip(errors.items(), (BLUE, ORANGE, PURPLE), strict=True):
    cost = [calls[solver] * n for n in sizes]
    ax.loglog(cost, found, "o-", ms=4, color=colour,
              label={"Euler": "DDIM (Euler)", "2M": "DPM-Solver++(2M)"}.get(solver, solver))
ax.set(xlabel="calls of the denoiser", ylabel="largest error at $0.1\\,T$")
ax.legend()
show(fig, """Largest error against calls of the denoiser, both logarithmic. DDIM falls with
slope -1. Heun and DPM-Solver++(2M) fall with slope -2, far below it; 2M needs about a third of
Heun's calls.""")

# %% [markdown]
# *How many calls for a given error?* A line with slope $-2$ wins over one with slope $-1$ at any cost but the smallest. At few calls, where pictures are made, the constants decide, and there 2M profits from its one call a step. Two reservations. The slopes hold between two levels inside. **Down to $t=0$** the last step is Euler's, and its error is that of one step from the lowest $t$ on the grid. With steps even in $t$ that spoils the order: 1.2 in the printed fit. With steps that shrink towards the data, even in $\sqrt t$, the last one is so short that the order stays.
# And the errors are those of solving the ODE. A network has an error of its own, which no solver removes: for our digits, section 9.9, the curve of 2M is flat from 8 calls on.

# %% [markdown]
# ## 9.13 Your sampler, complete
#
# **Exercise 9.7** (4 points, 25 minutes, ●●●) — *Your own DDIM.* In `my_ddpm.py`, write `ddim_sample(denoiser, x_T, steps, eta, noises, alpha_bar)` that walks from `x_T` of shape `(B, D)` to $x_0$ by (9.16) and (9.14), and returns it. `steps` is a list of ints, $\tau_S,\dots,\tau_1$, decreasing; the step that starts at $t$ uses `noises[t]` for $z$. `denoiser(x, t)` is called with an int64 tensor of shape `(B,)` of original step numbers, and guesses the noise in `x`. Use your `ddim_step`, or write its lines again.

# %%
check("9.7", "my_ddpm.ddim_sample")

# %% [markdown]
# With this function `my_ddpm.py` is complete: the chain, the jump, the posterior, the loss, the clock, DDPM and DDIM. Everything that a sampler needs is (4.21) and, from this chapter, (9.9), (9.14), (9.16) and (9.17).

# %% [markdown]
# ## 9.14 What we have
#
# | equation | what it says | in `ddpm_lite` | elsewhere |
# |---|---|---|---|
# | (9.1), (9.2) | the loss sees the pairs $(x_0,x_t)$ only | `simple_loss` | DDIM |
# | (9.3) to (9.5) | the family $q_\sigma$ | `GaussianDiffusion.posterior` | DDIM Eq. 7 |
# | (9.6), (9.8) | every member has the marginals of the chain | | DDIM, in its appendix |
# | (9.9), (9.10) | $\eta$; DDPM is $\eta=1$ | `posterior(…, eta)` | DDIM Eq. 16 |
# | (9.11) | $\hat\sigma$ is no member | `variance="beta"` | |
# | (9.13) | the only Markov member is DDPM | | |
# | (9.14) | the update | `GaussianDiffusion.reverse`, `sample` | DDIM Eq. 12 |
# | (9.15) | the bound of every member is a weighted sum of the $\ell_t$ | | DDIM, a theorem |
# | (9.16), (9.17) | any sub-sequence; grids | `NoiseSchedule.steps` | DDIM |
# | (9.18), (9.19) | the exact distance on Gaussian data | | |
# | (9.20), (9.21) | the step in $u$ and $r$; inversion | `ddim_invert` | DDIM Eq. 13, and the same upwards |
# | (9.23) | interpolation along the arc | `slerp` | |
# | (9.24), (9.27) | the ODE, and that it carries the marginals | `solve` | DDIM Eq. 14; Song et al. 2020 |
# | (9.29), (9.30) | second order | `solve(…, solver="heun")`, `"dpmpp-2m"` | Karras et al.; Lu et al. |

# %%
progress("9")

# %% [markdown]
# ## 9.15 History and further reading
#
# - Jiaming Song, Chenlin Meng and Stefano Ermon, *Denoising diffusion implicit models* ([2010.02502](https://arxiv.org/abs/2010.02502), 2020): the source of sections 9.1 to 9.7, 9.9 and 9.10, with the experiments of Table 1. Its $\alpha_t$ is our $\bar\alpha_t$.
# - Yang Song and others, *Score-based generative modeling through stochastic differential equations* ([2011.13456](https://arxiv.org/abs/2011.13456), 2020): the probability flow ODE, and the stochastic equations of which DDPM is a solver.
# - Tero Karras, Miika Aittala, Timo Aila and Samuli Laine, *Elucidating the design space of diffusion-based generative models* ([2206.00364](https://arxiv.org/abs/2206.00364), 2022): the noise level as the clock, Heun's method, and which grid to use.
# - Cheng Lu, Yuhao Zhou, Fan Bao, Jianfei Chen, Chongxuan Li and Jun Zhu, *DPM-Solver++* ([2211.01095](https://arxiv.org/abs/2211.01095), 2022): solvers in $\hat x_0$ and the log-SNR, among them 2M.
# - Jonathan Ho, Ajay Jain and Pieter Abbeel ([2006.11239](https://arxiv.org/abs/2006.11239), 2020) is what it all started from: their network, unchanged, is what DDIM samples from.

# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4 The posterior

# %% tags=["hide-input"]
import math
from itertools import pairwise

import sympy
import torch

from ddpm_lite import GaussianDiffusion, NoiseSchedule
from ddpm_lite.claims import claim, fact
from ddpm_lite.data import digits
from ddpm_lite.exercises import check, hint, progress, solution  # noqa: F401
from ddpm_lite.oracle import FiniteData, GaussianData, GaussianMixture
from ddpm_lite.plotting import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    VERMILLION,
    figure,
    plot_density,
    plot_samples,
    show,
    time_colours,
    use_book_style,
)

use_book_style()
torch.set_default_dtype(torch.float64)        # claims compare ten digits: every tensor is float64


def normal(x, mean, variance):
    """The Gaussian density N(x; mean, variance), written out: (T.1)."""
    variance = torch.as_tensor(variance)
    return torch.exp(-((x - mean) ** 2) / (2 * variance)) / (2 * math.pi * variance).sqrt()


# %% tags=["hide-input"]
schedule = NoiseSchedule.linear(T=1000)       # DDPM's own: β from 1e-4 to 0.02
alpha_bar = schedule.alpha_bar
diffusion = GaussianDiffusion(schedule)
mixture = GaussianMixture([0.35, 0.65], [[-0.9], [0.7]], [[[0.10**2]], [[0.25**2]]])

t, x_t, x_0 = 400, torch.tensor([[-0.3]]), torch.tensor([[0.9]])
levels = (390, 320, 200, 60)                  # four earlier steps s
grid = torch.linspace(-2.4, 2.4, 961)[:, None]

fig, (left, right) = figure(1, 2, sharey=True)
for s, colour in zip(levels, time_colours(4)[::-1], strict=True):
    told = diffusion.posterior(x_t, x_0, t, s)
    left.plot(grid, normal(grid, told.mean, told.variance), color=colour, label=f"$s={s}$")
    plot_density(right, mixture.reverse(schedule, x_t, t, s)[0], (-2.4, 2.4), color=colour)
for ax in (left, right):
    ax.axvline(x_t.item(), color=GREY, lw=1, ls="--")
    ax.text(x_t.item() - 0.07, 2.15, "$x_t$", ha="right")
left.axvline(x_0.item(), color=GREY, lw=1, ls=":")
left.text(x_0.item() + 0.07, 2.15, "$x_0$")
left.set_ylim(0, 2.4)
left.set(xlabel="$x_s$", ylabel="density", title=r"told $x_0$:  $q(x_s\mid x_t, x_0)$")
right.set(xlabel="$x_s$", title=r"not told:  $q(x_s\mid x_t)$")
left.legend(loc="upper left", fontsize=9)
show(fig, """Left: one bell for each of s = 390, 320, 200 and 60. As s falls, the bell travels
from x_t at -0.3 to x_0 at 0.9. Right: for s = 390 and 320 one bell, at 200 a skewed one with a
shoulder, and at s = 60 two separate humps near -0.9 and 0.7.""")

# %% [markdown]
# *Where was $x_s$, if we now see $x_t$?* The data are one-dimensional, with two humps. On the left somebody also told us $x_0$, and the
# answer is a bell, however long the step back from $t=400$ to $s$ is. On the right nobody did. For a short step the answer is still nearly
# a bell. For a long one it falls apart into two.
#
# **You will**
# - derive $q(x_{t-1}\mid x_t,x_0)$ on a blank page, by completing the square and again by conditioning, and say in which line the Markov property enters;
# - write its mean and variance for any two steps $s<t$, from $x_0$ or from the noise;
# - choose the variance of a reverse step, and say for which data $\tilde\beta_t$, $\beta_t$ or neither is right;
# - measure how far $q(x_{t-1}\mid x_t)$ is from a Gaussian;
# - move between $\varepsilon$, $x_0$, $v$ and the score, and say which of these moves is dangerous where.
#
# **You need** from chapter 3 [the one-step marginal](03_one_step_marginal.ipynb#3.5-The-induction), [jumps from any $s$ to any $t$](03_one_step_marginal.ipynb#3.8-From-any-s-to-any-t)
# and [the covariance of a pair](03_one_step_marginal.ipynb#3.9-The-pair,-not-only-the-points); from the toolbox [T.1](A_toolbox.ipynb#T.1-The-Gaussian-density),
# [conditionals](A_toolbox.ipynb#T.5-Conditionals) and [the KL divergence](A_toolbox.ipynb#T.6-KL-between-Gaussians).
#
# **Time** about 90 minutes to read, 100 for the exercises, half a minute to run.

# %% [markdown]
# ## 4.1 We can destroy; can we go back?
#
# Chapter 3 takes $x_0$ to any $x_t$ in one line. To *generate* we must go the other way: start from noise and undo one step at a time.
# To undo a step is to answer: given $x_t$, where was $x_{t-1}$? In general there is no single answer, only a distribution over answers,
# $q(x_{t-1}\mid x_t)$. Here $x_0$ is a data point with $D$ coordinates, drawn from $p_{\text{data}}$, and $q(x_t)$ is the law of $x_t$ over data
# *and* noise, (3.30). Bayes' rule turns the step around:
#
# $$
# q(x_{t-1}\mid x_t) \;=\; \frac{q(x_t\mid x_{t-1})\;q(x_{t-1})}{q(x_t)} .
# \tag{4.1}
# $$
#
# The first factor is the forward step, a Gaussian that we chose ourselves. The other two are laws of noisy data, and both contain
# $p_{\text{data}}$: exactly the thing that we do not have. So (4.1) is true, and so far useless.
#
# Ask for less: suppose that we know $x_0$ as well. Who knows $x_0$ need not generate it, and yet the question is worth asking,
# for two reasons. In *training* we do know $x_0$, so whatever we find can serve as a target (chapter 5). And the law of total probability says
# that the hard answer is an average of the easy ones:
#
# $$
# q(x_{t-1}\mid x_t) \;=\; \int q(x_{t-1}\mid x_t,x_0)\;q(x_0\mid x_t)\,dx_0 .
# \tag{4.2}
# $$
#
# Everything that we do not know sits in the second factor: what does $x_t$ tell about $x_0$? The first factor, we shall see, is one Gaussian,
# with a mean and a variance that fit on a line. In the picture above it stands on the left; on the right is the average.
#
# On our two-humped data everything can be computed, because a mixture of Gaussians stays one when it is noised. The object `mixture` is an
# *oracle*: it knows $q(x_t)$, the law of $x_0$ given $x_t$, and $q(x_s\mid x_t)$ for any $s<t$, in closed form. It is the truth against which this
# chapter measures. Both equations hold for a longer step too, with $s$ in the place of $t-1$, and the cell checks them so.

# %%
s = 320
forward = diffusion.transition(grid, t, s).log_prob(x_t.expand_as(grid))       # log q(x_t | x_s)
before = mixture.marginal(schedule, s).log_prob(grid)                          # log q(x_s)
now = mixture.marginal(schedule, t).log_prob(x_t)                              # log q(x_t)
true_reverse = mixture.reverse(schedule, x_t, t, s)[0].log_prob(grid).exp()    # q(x_s | x_t)
claim("4.1", (forward + before - now).exp(), true_reverse)

origin = torch.linspace(-3.0, 3.0, 1501)[:, None]                              # places for x_0
belief = mixture.reverse(schedule, x_t, t, 0)[0].log_prob(origin).exp()        # q(x_0 | x_t)
told = diffusion.posterior(x_t.expand_as(origin), origin, t, s)              # one bell for each x_0
bells = normal(grid, told.mean.T, told.variance)                             # rows x_s, columns x_0
claim("4.2", torch.trapezoid(bells * belief, origin[:, 0]), true_reverse)
fact("probability that x_0 came from the left hump, before and after seeing x_t",
     [mixture.weights[0], mixture.responsibilities(schedule, x_t, t)[0, 0]], digits=2)


# %% [markdown]
# **Exercise 4.1** (3 points, 15 minutes, ●●○) — *Turn a step around.* In one dimension Bayes' rule can be done by brute force. `places` is an equidistant grid for $x_s$, `before` holds
# the density $q(x_s)$ at these places, `ratio` is $\bar\alpha_t/\bar\alpha_s$. Write `reverse_on_grid(x_t, places, before, ratio)` that returns the density $q(x_s\mid x_t)$ at the places, for one number $x_t$.
# You are *not* given $q(x_t)$: find a way around. (The forward step is (3.23).)

# %%
def reverse_on_grid(x_t, places, before, ratio):
    """The density q(x_s | x_t) at the places, by (4.1)."""
    raise NotImplementedError("your turn")


check("4.1", reverse_on_grid)

# %% [markdown]
# ## 4.2 Bayes once more, and the Markov property
#
# From here to the end of section 4.8, $x_0$ is given. The joint law of the pair $(x_{t-1},x_t)$ can be taken apart in two orders
# (the product rule):
#
# $$
# q(x_t\mid x_{t-1},x_0)\;q(x_{t-1}\mid x_0)
# \;=\; q(x_{t-1},x_t\mid x_0)
# \;=\; q(x_{t-1}\mid x_t,x_0)\;q(x_t\mid x_0) .
# \tag{4.3}
# $$
#
# Of the four factors, $q(x_{t-1}\mid x_0)$ and $q(x_t\mid x_0)$ are one-step marginals, (3.10), and $q(x_{t-1}\mid x_t,x_0)$ is what we want. The last one, $q(x_t\mid x_{t-1},x_0)$, is
# where an assumption enters. The chain makes $x_t=\sqrt{\alpha_t}\,x_{t-1}+\sqrt{\beta_t}\,\varepsilon_t$ with a noise $\varepsilon_t$ that is independent of everything before it. Once
# $x_{t-1}$ is known, $x_0$ has nothing left to say about $x_t$. That is the **Markov property**:
#
# $$
# q(x_t\mid x_{t-1},x_0) \;=\; q(x_t\mid x_{t-1}) .
# \tag{4.4}
# $$
#
# Put it into (4.3) and divide by $q(x_t\mid x_0)$:
#
# $$
# q(x_{t-1}\mid x_t,x_0) \;=\; \frac{q(x_t\mid x_{t-1})\;q(x_{t-1}\mid x_0)}{q(x_t\mid x_0)} .
# \tag{4.5}
# $$
#
# Three Gaussians that we know, and nothing that we do not. We check it as densities, before any algebra: the right side is three calls of the library; summed over $x_{t-1}$ the
# numerator must give the denominator; and the left side is a fourth call, which the next section takes apart. The schedule is short and strong, so that a slip would show.

# %%
strong = GaussianDiffusion(NoiseSchedule.from_betas([0.10, 0.25, 0.40, 0.55]))
i, start, end = 3, 1.2, -0.4                                       # t, x_0 and x_t in this cell
line = torch.linspace(-9.0, 9.0, 3601)[:, None]                    # places for x_{t-1}
x0_rows, xt_rows = torch.full_like(line, start), torch.full_like(line, end)

step = strong.transition(line, i, i - 1).log_prob(xt_rows)         # log q(x_t | x_{t-1})
reached = strong.marginal(x0_rows, i - 1).log_prob(line)           # log q(x_{t-1} | x_0)
arrived = strong.marginal(x0_rows, i).log_prob(xt_rows)[0]         # log q(x_t | x_0)
posterior = strong.posterior(xt_rows, x0_rows, i)                  # q(x_{t-1} | x_t, x_0)

claim("4.3", torch.trapezoid((step + reached).exp(), line[:, 0]), arrived.exp(),
      note="summed over x_{t-1}")
claim("4.5", (step + reached - arrived).exp(), posterior.log_prob(line).exp())
fact("integral of the posterior", torch.trapezoid(posterior.log_prob(line).exp(), line[:, 0]))


# %% [markdown]
# And the Markov property itself? It says that $x_0$ cannot improve the prediction of $x_t$ once $x_{t-1}$ is known. Given $x_0$, what varies in $x_{t-1}$ is the noise that the first steps have added. So in a
# simulation, what step $t$ adds must be uncorrelated with what was added before. The second half of the cell commits the sin of [chapter 3](03_one_step_marginal.ipynb#3.7-One-noise-for-the-whole-chain): one noise for
# both steps.

# %%
def two_steps(noise_1, noise_2, x0, alpha_1=0.9, alpha_2=0.75):
    """What the first step adds to its shrunken input, and what the second one adds to its own."""
    x1 = alpha_1**0.5 * x0 + (1 - alpha_1) ** 0.5 * noise_1
    x2 = alpha_2**0.5 * x1 + (1 - alpha_2) ** 0.5 * noise_2
    return x1 - alpha_1**0.5 * x0, x2 - alpha_2**0.5 * x1


g, many = torch.Generator().manual_seed(0), 1_000_000
x0 = mixture.sample(many, g)[:, 0]
noise_1, noise_2 = torch.randn(2, many, generator=g)
first, second = two_steps(noise_1, noise_2, x0)
size = ((1 - 0.9) * (1 - 0.75)) ** 0.5                             # product of the two deviations
claim("4.4", (first * second).mean(), 0.0, scale=size, standard_error=size / many**0.5,
      note="no correlation")
first, second = two_steps(noise_1, noise_1, x0)
fact("correlation with one shared noise",
     torch.corrcoef(torch.stack([first, second]))[0, 1], digits=2)

# %% [markdown]
# With a shared noise the correlation is 1. Then $x_{t-1}$ and $x_0$ together fix $x_t$ completely, (4.4) fails, and with it every line that follows. (Zero correlation alone would not prove independence.
# The noises are independent by construction, and the simulation guards against having built something else.)

# %% [markdown]
# ## 4.3 Completing the square
#
# All covariances in (4.5) are multiples of the identity, so each coordinate goes its own way and one coordinate is enough. Write $x$ for the unknown $x_{t-1}$. Up to a factor without $x$,
# (4.5) is $\exp\big(-\tfrac12 Q(x)\big)$ with one square for each Gaussian:
#
# $$
# Q(x) \;=\; \frac{\big(x_t-\sqrt{\alpha_t}\,x\big)^2}{\beta_t}
#       \;+\; \frac{\big(x-\sqrt{\bar\alpha_{t-1}}\,x_0\big)^2}{1-\bar\alpha_{t-1}}
#       \;-\; \frac{\big(x_t-\sqrt{\bar\alpha_t}\,x_0\big)^2}{1-\bar\alpha_t} .
# \tag{4.6}
# $$
#
# (We need $1-\bar\alpha_{t-1}>0$, that is $t\ge2$. Section 4.5 looks at $t=1$.)
#
# **Collect powers of $x$.** Multiply out the first two squares (the third does not contain $x$), sort, and call the result $A\,x^2-2B\,x+C$:
#
# $$
# \begin{aligned}
# A &= \frac{\alpha_t}{\beta_t}+\frac{1}{1-\bar\alpha_{t-1}} , \qquad\qquad
# B = \frac{\sqrt{\alpha_t}}{\beta_t}\,x_t+\frac{\sqrt{\bar\alpha_{t-1}}}{1-\bar\alpha_{t-1}}\,x_0 , \\
# C &= \frac{x_t^2}{\beta_t}+\frac{\bar\alpha_{t-1}\,x_0^2}{1-\bar\alpha_{t-1}}
#      -\frac{\big(x_t-\sqrt{\bar\alpha_t}\,x_0\big)^2}{1-\bar\alpha_t} .
# \end{aligned}
# \tag{4.7}
# $$
#
# **Complete the square.** Add and subtract $B^2/A$, which is allowed because $A>0$:
#
# $$
# A\,x^2-2B\,x+C \;=\; A\Big(x-\frac BA\Big)^2 + \Big(C-\frac{B^2}{A}\Big) .
# \tag{4.8}
# $$
#
# Read as a density, this is a Gaussian with mean $B/A$ and variance $1/A$: it is (T.4) of [the toolbox](A_toolbox.ipynb#T.1-The-Gaussian-density). What remains is to simplify $1/A$ and $B/A$, and to see what becomes of the constant. Let SymPy follow. It gets $\alpha_t$ as `a` and $\bar\alpha_{t-1}$ as `ab`, and is told
# nothing of our steps.

# %%
a, ab = sympy.symbols("a ab", positive=True)                 # alpha_t and alpha_bar_{t-1}
x, xt, z0 = sympy.symbols("x x_t x_0", real=True)            # x_{t-1}, x_t and x_0
b, abt = 1 - a, a * ab                                       # beta_t and alpha_bar_t

Q = ((xt - sympy.sqrt(a) * x) ** 2 / b + (x - sympy.sqrt(ab) * z0) ** 2 / (1 - ab)
     - (xt - sympy.sqrt(abt) * z0) ** 2 / (1 - abt))
A = a / b + 1 / (1 - ab)
B = sympy.sqrt(a) / b * xt + sympy.sqrt(ab) / (1 - ab) * z0
C = xt**2 / b + ab * z0**2 / (1 - ab) - (xt - sympy.sqrt(abt) * z0) ** 2 / (1 - abt)
claim("4.7", A * x**2 - 2 * B * x + C, Q)
claim("4.8", A * (x - B / A) ** 2 + (C - B**2 / A), Q)

# %% [markdown]
# **The identity.** Bring $A$ over one denominator, $\beta_t(1-\bar\alpha_{t-1})$. The numerator is
#
# $$
# \alpha_t\,(1-\bar\alpha_{t-1})+\beta_t
# \;=\; \alpha_t-\bar\alpha_t+(1-\alpha_t)
# \;=\; 1-\bar\alpha_t ,
# \tag{4.9}
# $$
#
# where we used $\alpha_t\bar\alpha_{t-1}=\bar\alpha_t$ and $\beta_t=1-\alpha_t$. This is the cancellation (3.13) again: the noise already there, shrunk by the step, plus the noise that the step adds, is the noise
# afterwards. It will be used five times in this chapter.
#
# **The variance.** So $A=(1-\bar\alpha_t)\big/\big(\beta_t\,(1-\bar\alpha_{t-1})\big)$. The variance $1/A$ has a name, $\tilde\beta_t$:
#
# $$
# \tilde\beta_t \;=\; \frac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t}\;\beta_t .
# \tag{4.10}
# $$
#
# It contains neither $x_t$ nor $x_0$. However surprising the pair that we are given, we are equally sure about what lies between.
#
# **The mean.** $B/A=\tilde\beta_t\,B$. Multiply the two terms of $B$ by $\tilde\beta_t$. In the first $\beta_t$ cancels, in the second $1-\bar\alpha_{t-1}$:
#
# $$
# \begin{aligned}
# \tilde\beta_t\cdot\frac{\sqrt{\alpha_t}}{\beta_t}
#   &= \frac{(1-\bar\alpha_{t-1})\,\beta_t}{1-\bar\alpha_t}\cdot\frac{\sqrt{\alpha_t}}{\beta_t}
#    = \frac{\sqrt{\alpha_t}\,(1-\bar\alpha_{t-1})}{1-\bar\alpha_t} , \\
# \tilde\beta_t\cdot\frac{\sqrt{\bar\alpha_{t-1}}}{1-\bar\alpha_{t-1}}
#   &= \frac{(1-\bar\alpha_{t-1})\,\beta_t}{1-\bar\alpha_t}\cdot\frac{\sqrt{\bar\alpha_{t-1}}}{1-\bar\alpha_{t-1}}
#    = \frac{\sqrt{\bar\alpha_{t-1}}\,\beta_t}{1-\bar\alpha_t} .
# \end{aligned}
# \tag{4.11}
# $$
#
# The mean is called $\tilde\mu_t$:
#
# $$
# \tilde\mu_t(x_t,x_0) \;=\; \frac{\sqrt{\bar\alpha_{t-1}}\,\beta_t}{1-\bar\alpha_t}\;x_0
# \;+\; \frac{\sqrt{\alpha_t}\,(1-\bar\alpha_{t-1})}{1-\bar\alpha_t}\;x_t ,
# \tag{4.12}
# $$
#
# and the posterior is
#
# $$
# q(x_{t-1}\mid x_t,x_0) \;=\; \mathcal N\!\big(x_{t-1};\;\tilde\mu_t(x_t,x_0),\;\tilde\beta_t I\big) .
# \tag{4.13}
# $$

# %%
beta_tilde = (1 - ab) / (1 - abt) * b
mu_tilde = sympy.sqrt(ab) * b / (1 - abt) * z0 + sympy.sqrt(a) * (1 - ab) / (1 - abt) * xt
claim("4.9", a * (1 - ab) + b, 1 - abt)
claim("4.10", beta_tilde, 1 / A)
claim("4.11", beta_tilde * sympy.sqrt(a) / b, sympy.sqrt(a) * (1 - ab) / (1 - abt))
claim("4.11", beta_tilde * sympy.sqrt(ab) / (1 - ab), sympy.sqrt(ab) * b / (1 - abt))
claim("4.12", mu_tilde, B / A)

# %% [markdown]
# **The constant.** Nothing may be left over, since both sides of (4.5) are densities in $x$. Indeed $C-B^2/A=0$ (the cell lets SymPy find that), and the normalising factors of the three Gaussians combine, by
# (4.10), into the one that a Gaussian of variance $\tilde\beta_t$ needs:
#
# $$
# \frac{\sqrt{2\pi\,(1-\bar\alpha_t)}}{\sqrt{2\pi\,\beta_t}\,\sqrt{2\pi\,(1-\bar\alpha_{t-1})}}
# \;=\; \frac{1}{\sqrt{2\pi\,\tilde\beta_t}} .
# \tag{4.14}
# $$

# %%
claim("4.6", Q, (x - mu_tilde) ** 2 / beta_tilde, note="one square is left, no constant")
claim("4.14", (1 - abt) / (b * (1 - ab)), 1 / beta_tilde, note="both sides squared")
print("C − B²/A simplifies to", sympy.simplify(C - B**2 / A))

# %% [markdown]
# So far symbols. Now numbers, against the library: (4.10) and (4.12), typed from the page, at every $t$ of the short schedule and of DDPM's own. (The library takes another road, from $\log\bar\alpha_t$ and without
# differences of nearly equal numbers, so this is not the same code twice.)

# %%
for name, process in (("4 strong steps", strong), ("1000 steps", diffusion)):
    now, before = process.schedule.alpha_bar[1:], process.schedule.alpha_bar[:-1]
    beta, every_t = process.schedule.beta[1:], torch.arange(1, process.T + 1)
    x0, late = torch.randn(2, process.T, 1, generator=g)           # a pair (x_0, x_t) for every t
    typed = (1 - before) / (1 - now) * beta
    claim("4.10", typed, process.schedule.posterior_variance[1:], note=name)
    typed = (before.sqrt() * beta / (1 - now) * x0[:, 0]
             + (1 - beta).sqrt() * (1 - before) / (1 - now) * late[:, 0])
    claim("4.12", typed, process.posterior(late, x0, every_t).mean[:, 0], note=name)

mean, variance = posterior.mean[0, 0], posterior.variance
claim("4.13", normal(line[:, 0], mean, variance), (step + reached - arrived).exp(),
      note="against (4.5)")
fact("x_0, mean of the posterior, x_t", [start, mean, end])
fact("variance of this step: forward, and backward with both ends known",
     [strong.schedule.beta[i], variance])

# %% [markdown]
# Forward the step has variance 0.4; backward, with both ends known, less is uncertain.

# %% [markdown]
# ## 4.4 The second way: condition a joint Gaussian
#
# A result that took a page of algebra deserves a second road. Given $x_0$, the pair $(x_{t-1},x_t)$ is jointly Gaussian, because both are affine in the independent noises. Its means are
# $\sqrt{\bar\alpha_{t-1}}\,x_0$ and $\sqrt{\bar\alpha_t}\,x_0$, its variances $1-\bar\alpha_{t-1}$ and $1-\bar\alpha_t$, and its covariance is $\sqrt{\alpha_t}\,(1-\bar\alpha_{t-1})$ by (3.27). For a jointly Gaussian pair the conditional mean is the mean,
# plus covariance over variance times the surprise; the conditional variance is what this correction leaves ([toolbox, (T.19)](A_toolbox.ipynb#T.5-Conditionals)):
#
# $$
# \begin{aligned}
# \mathbb E[x_{t-1}\mid x_t,x_0] &= \sqrt{\bar\alpha_{t-1}}\,x_0
#   + \frac{\sqrt{\alpha_t}\,(1-\bar\alpha_{t-1})}{1-\bar\alpha_t}\,\big(x_t-\sqrt{\bar\alpha_t}\,x_0\big) , \\
# \operatorname{Var}[x_{t-1}\mid x_t,x_0] &= (1-\bar\alpha_{t-1})
#   - \frac{\alpha_t\,(1-\bar\alpha_{t-1})^2}{1-\bar\alpha_t} .
# \end{aligned}
# \tag{4.15}
# $$
#
# The weight of $x_t$ is that of (4.12) at once. For the weight of $x_0$ use $\sqrt{\alpha_t}\,\sqrt{\bar\alpha_t}=\alpha_t\sqrt{\bar\alpha_{t-1}}$, and then the identity (4.9) in the numerator:
#
# $$
# \sqrt{\bar\alpha_{t-1}}\,\Big(1-\frac{\alpha_t(1-\bar\alpha_{t-1})}{1-\bar\alpha_t}\Big)
# = \sqrt{\bar\alpha_{t-1}}\;\frac{(1-\bar\alpha_t)-\alpha_t(1-\bar\alpha_{t-1})}{1-\bar\alpha_t}
# = \frac{\sqrt{\bar\alpha_{t-1}}\;\beta_t}{1-\bar\alpha_t} .
# \tag{4.16}
# $$
#
# The variance has the same bracket: it is $1-\bar\alpha_{t-1}$ times $\beta_t/(1-\bar\alpha_t)$, which is $\tilde\beta_t$. This second form is also the easier one to *remember*: go where $x_0$ alone
# would put $x_{t-1}$, then correct by a share of the surprise in $x_t$.

# %%
early, late_bar, beta_i = (strong.schedule.alpha_bar[i - 1], strong.schedule.alpha_bar[i],
                           strong.schedule.beta[i])
gain = (1 - beta_i).sqrt() * (1 - early) / (1 - late_bar)
surprise = end - late_bar.sqrt() * start
claim("4.15", early.sqrt() * start + gain * surprise, posterior.mean[0, 0])
claim("4.15", (1 - early) - gain**2 * (1 - late_bar), posterior.variance)
claim("4.16", sympy.sqrt(ab) * (1 - a * (1 - ab) / (1 - abt)),
      sympy.expand(mu_tilde).coeff(z0))
fact("surprise in x_t, and the share of it that moves x_{t-1}", [surprise, gain])


# %% [markdown]
# ## 4.5 Any two steps
#
# Nothing above used that $t-1$ and $t$ are neighbours. It used the Markov property (4.4) and three more things: $q(x_t\mid x_{t-1})$ is a Gaussian of that form, $\alpha_t\bar\alpha_{t-1}=\bar\alpha_t$, and $\beta_t=1-\alpha_t$. A jump from any $s\ge1$ to any later $t$ has the same form, (3.23),
# with $\bar\alpha_{t\mid s}$ in the place of $\alpha_t$; and it is made of $x_s$ and of noises after $s$, which are independent of $x_0$, so (4.4) holds for it too. Name its noise variance:
#
# $$
# \bar\alpha_{t\mid s} = \frac{\bar\alpha_t}{\bar\alpha_s} ,
# \qquad
# \beta_{t\mid s} = 1-\bar\alpha_{t\mid s}
# \qquad (0\le s<t\le T) .
# \tag{4.17}
# $$
#
# So every line carries over; the case $s=0$ follows below. For any $0\le s<t$
#
# $$
# \begin{gathered}
# q(x_s\mid x_t,x_0) = \mathcal N\!\big(x_s;\;c_0\,x_0+c_t\,x_t,\;\tilde\beta_{t\mid s}\,I\big) ,\\
# c_0=\frac{\sqrt{\bar\alpha_s}\,\beta_{t\mid s}}{1-\bar\alpha_t} ,\qquad
# c_t=\frac{\sqrt{\bar\alpha_{t\mid s}}\,(1-\bar\alpha_s)}{1-\bar\alpha_t} ,\qquad
# \tilde\beta_{t\mid s} = \frac{1-\bar\alpha_s}{1-\bar\alpha_t}\,\beta_{t\mid s} .
# \end{gathered}
# \tag{4.18}
# $$
#
# This is the form to keep; the weights $c_0$ and $c_t$ depend on both steps. In code it is one method, `posterior(x_t, x0, t, s)`, and with `s` left out it is $t-1$. We check the formula, and the statement that makes it a posterior at all: it takes the
# joint law apart in the other order,
#
# $$
# q(x_s\mid x_t,x_0)\;q(x_t\mid x_0) \;=\; q(x_t\mid x_s)\;q(x_s\mid x_0) .
# \tag{4.19}
# $$

# %%
def coefficients(t, s):
    """c_0, c_t and the variance of (4.18), as they stand on the page."""
    ratio = alpha_bar[t] / alpha_bar[s]
    c_0 = alpha_bar[s].sqrt() * (1 - ratio) / (1 - alpha_bar[t])
    c_t = ratio.sqrt() * (1 - alpha_bar[s]) / (1 - alpha_bar[t])
    return c_0, c_t, (1 - alpha_bar[s]) / (1 - alpha_bar[t]) * (1 - ratio)


pairs = [(1000, 500), (400, 320), (50, 49), (2, 1)]
clean, earlier, later = torch.randn(3, 5, 4, generator=g)          # x_0, x_s, x_t: 5 points, D = 4
for t, s in pairs:
    c_0, c_t, variance = coefficients(t, s)
    back, jump = diffusion.posterior(later, clean, t, s), diffusion.transition(earlier, t, s)
    claim("4.17", 1 - alpha_bar[t] / alpha_bar[s], jump.variance, relation="definition")
    claim("4.18", c_0 * clean + c_t * later, back.mean, note=f"mean, t = {t}, s = {s}")
    claim("4.18", variance, back.variance, note="and variance")
    claim("4.19", back.log_prob(earlier) + diffusion.marginal(clean, t).log_prob(later),
          jump.log_prob(later) + diffusion.marginal(clean, s).log_prob(earlier), note="logarithms")

# %% [markdown]
# **The last step.** For $s=0$ we have $\bar\alpha_0=1$ and $\beta_{t\mid0}=1-\bar\alpha_t$. The weight of $x_0$ is 1, the weight of $x_t$ is 0, and the variance is 0:
#
# $$
# q(x_0\mid x_t,x_0) \;=\; \text{a point at } x_0 .
# \tag{4.20}
# $$
#
# We were told $x_0$, so this needs no square (the one in (4.6) would divide by zero). The formula says it *exactly*, and so does the library's. A point has no density: `log_prob` refuses, and `sample` returns the mean.

# %%
last = diffusion.posterior(later, clean, t=50, s=0)
claim("4.20", last.mean, clean, tol=1e-15)
print("variance:", last.variance.item())
try:
    last.log_prob(clean)
except ValueError as reason:
    print("log_prob:", reason)

# %% [markdown]
# > **Pitfall: the wrong $\beta$ on a strided chain.** To sample in 50 steps instead of 1000, one walks $t=1000, 980, \dots, 20$. The step from 500 to 480 undoes twenty steps' worth of noise, $\beta_{t\mid s}=1-\bar\alpha_t/\bar\alpha_s$. It is tempting to go on
# > indexing the old table, `betas[t]`, in formulas that now skip twenty steps. A widely used library did so for the upper end of its learned variance, until [pull request 3006](https://github.com/huggingface/diffusers/pull/3006) mended it. The symptom of `betas[t]` everywhere: no crash and no strange number, but too little
# > of everything, of $x_0$ in the mean and of noise.

# %%
t, s = 500, 480
c_0, c_t, variance = coefficients(t, s)
beta = diffusion.transition(earlier, t, s).variance
fact("betas[t], and the variance that the twenty steps add", [schedule.beta[t], beta])
fact("posterior variance: with betas[t], right", [variance * schedule.beta[t] / beta, variance])
fact("weight of x_0: with betas[t], right", [c_0 * schedule.beta[t] / beta, c_0])

# %% [markdown]
# **Exercise 4.2** (3 points, 20 minutes, ●●○) — *Your own posterior.* In your file `my_ddpm.py`, write `posterior(x_t, x0, t, s, alpha_bar)` that returns the pair (mean, variance) of (4.18), for ints $0\le s<t$. `alpha_bar` is the tensor
# $\bar\alpha_0,\dots,\bar\alpha_T$ that your `alpha_bars` makes. The variance is one number. It must work at $s=0$ and at any stride.

# %%
check("4.2", "my_ddpm.posterior")

# %% [markdown]
# ## 4.6 The mean, in terms of the noise
#
# A network will not be told $x_0$. Chapter 5 trains it to guess the noise instead, so we want the mean as a function of $x_t$ and the noise. From here on only one noise occurs, the noise $\bar\varepsilon_t$ of (3.14), all that separates $x_t$ from
# $\sqrt{\bar\alpha_t}\,x_0$. We drop its bar and its index and write $x_t=\sqrt{\bar\alpha_t}\,x_0+\sqrt{1-\bar\alpha_t}\,\varepsilon$. Solve for $x_0$:
#
# $$
# x_0 \;=\; \frac{x_t-\sqrt{1-\bar\alpha_t}\;\varepsilon}{\sqrt{\bar\alpha_t}} .
# \tag{4.21}
# $$
#
# Put this into the mean $c_0x_0+c_tx_t$ and collect $x_t$ and $\varepsilon$. Since $\sqrt{\bar\alpha_s}/\sqrt{\bar\alpha_t}=1/\sqrt{\bar\alpha_{t\mid s}}$, this factor can be pulled out of every term (out of $c_t$ by writing
# $\sqrt{\bar\alpha_{t\mid s}}=\bar\alpha_{t\mid s}/\sqrt{\bar\alpha_{t\mid s}}$):
#
# $$
# \begin{aligned}
# \text{of } x_t:\qquad
# \frac{c_0}{\sqrt{\bar\alpha_t}}+c_t
# &= \frac{\sqrt{\bar\alpha_s}\,\beta_{t\mid s}}{(1-\bar\alpha_t)\sqrt{\bar\alpha_t}}
# +\frac{\sqrt{\bar\alpha_{t\mid s}}\,(1-\bar\alpha_s)}{1-\bar\alpha_t} \\
# &= \frac{1}{\sqrt{\bar\alpha_{t\mid s}}}\cdot
#    \frac{\beta_{t\mid s}+\bar\alpha_{t\mid s}(1-\bar\alpha_s)}{1-\bar\alpha_t}
#  = \frac{1}{\sqrt{\bar\alpha_{t\mid s}}} ,\\
# \text{of } \varepsilon:\qquad
# -\frac{c_0\sqrt{1-\bar\alpha_t}}{\sqrt{\bar\alpha_t}}
# &= -\frac{\sqrt{\bar\alpha_s}\,\beta_{t\mid s}}{1-\bar\alpha_t}\cdot
#  \frac{\sqrt{1-\bar\alpha_t}}{\sqrt{\bar\alpha_t}}
#  = -\frac{1}{\sqrt{\bar\alpha_{t\mid s}}}\cdot\frac{\beta_{t\mid s}}{\sqrt{1-\bar\alpha_t}} .
# \end{aligned}
# \tag{4.22}
# $$
#
# The last step of the first line is the identity (4.9), for the pair $(t,s)$. The long weight of $x_t$ has collapsed, and
#
# $$
# c_0\,x_0+c_t\,x_t \;=\; \frac{1}{\sqrt{\bar\alpha_{t\mid s}}}
# \Big(x_t-\frac{\beta_{t\mid s}}{\sqrt{1-\bar\alpha_t}}\;\varepsilon\Big) .
# \tag{4.23}
# $$
#
# For $s=t-1$ this is the line that every DDPM sampler contains. Read it: take away a part of the noise, and undo the shrinking. The part is *not* all the noise in $x_t$, which would be $\sqrt{1-\bar\alpha_t}\,\varepsilon$. It is the share
# $\beta_{t\mid s}/(1-\bar\alpha_t)$ of it: the share of the noise *variance* that this step has brought.

# %%
t = 400
eps = (later - alpha_bar[t].sqrt() * clean) / (1 - alpha_bar[t]).sqrt()    # made x_t of x_0
claim("4.21", (later - (1 - alpha_bar[t]).sqrt() * eps) / alpha_bar[t].sqrt(),
      diffusion.predict(eps, later, t).x0)
c_0, c_t = (sympy.expand(mu_tilde).coeff(symbol) for symbol in (z0, xt))
claim("4.22", c_0 / sympy.sqrt(abt) + c_t, 1 / sympy.sqrt(a))
claim("4.22", c_0 * sympy.sqrt(1 - abt) / sympy.sqrt(abt),
      b / sympy.sqrt(a * (1 - abt)), note="the second line, both signs changed")
for s in (399, 320, 0):
    ratio = alpha_bar[t] / alpha_bar[s]
    typed = (later - (1 - ratio) / (1 - alpha_bar[t]).sqrt() * eps) / ratio.sqrt()
    claim("4.23", typed, diffusion.posterior(later, clean, t, s).mean, note=f"s = {s}")
share = schedule.beta / schedule.one_minus_alpha_bar
fact("share of the noise that one step takes away, t = 1, 2, 10, 400",
     [share[t] for t in (1, 2, 10, 400)])


# %% [markdown]
# At $t=1$ all the noise goes, in one step; at $t=400$ one per cent of it.
#
# **Exercise 4.3** (2 points, 10 minutes, ●●○) — *The sampler's line.* Write `mean_from_eps(x_t, eps, alpha_bar_t, alpha_bar_s)` that returns the mean (4.23), for two levels with $0<\bar\alpha_t<\bar\alpha_s\le1$. Use the four arguments only.

# %%
def mean_from_eps(x_t, eps, alpha_bar_t, alpha_bar_s):
    """The mean of q(x_s | x_t, x_0), where eps is the noise that made x_t out of x_0."""
    raise NotImplementedError("your turn")


check("4.3", mean_from_eps)


# %% [markdown]
# ## 4.7 What the two weights mean
#
# The mean is $c_0\,x_0+c_t\,x_t$. It is often called an interpolation between $x_0$ and $x_t$. An interpolation has weights that sum to one. Do these?

# %%
def weights(t, s):
    """c_0 and c_t as the library has them: its mean at (x_0, x_t) = (1, 0) and at (0, 1)."""
    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    return torch.cat([diffusion.posterior(zero, one, t, s).mean[0],
                      diffusion.posterior(one, zero, t, s).mean[0]])


single = torch.stack([weights(t, t - 1) for t in range(1, 1001)])
hundred = torch.stack([weights(t, t - 100) for t in range(100, 1001, 100)])
fact("sum of the two weights, single steps: largest and smallest",
     [single.sum(1).max(), single.sum(1).min()])
fact("sum on a chain of ten steps, from 200, 600, 1000", [hundred[k].sum() for k in (1, 5, 9)])
fact("weight of x_0 in a single step, t = 1, 2, 10, 100",
     [single[t - 1, 0] for t in (1, 2, 10, 100)])

fig, (left, right) = figure(1, 2, sharey=True)
for ax, time, pair, marker in ((left, range(1, 1001), single, ""),
                               (right, range(100, 1001, 100), hundred, "o")):
    ax.plot(time, pair[:, 0], color=BLUE, marker=marker, ms=4, label="$c_0$, of $x_0$")
    ax.plot(time, pair[:, 1], color=VERMILLION, marker=marker, ms=4, label="$c_t$, of $x_t$")
    ax.plot(time, pair.sum(1), color=GREY, ls="--", marker=marker, ms=4, label="their sum")
left.set(xscale="log", xlabel="$t$", ylabel="weight", title="steps of 1")
right.set(xlabel="$t$", title="steps of 100")
left.legend(loc="center right")
show(fig, """Left, single steps, t on a logarithmic axis: the weight of x_0 falls from 1 at t = 1
to nearly 0 by t = 100, the weight of x_t does the opposite, and their sum stays within one per
cent of 1. Right, ten steps of 100: the weights cross between t = 300 and 400, and their sum falls
from 1 to 0.4.""")

# %% [markdown]
# *Do the weights sum to one?* Very nearly for single steps, and not at all for long ones. The reason is that $x_t$ and $x_0$ do not live on the same scale: $x_t$ has been shrunk by $\sqrt{\bar\alpha_{t\mid s}}$ since $s$, and $x_0$ has not yet been
# shrunk by $\sqrt{\bar\alpha_s}$. Bring both to step $s$, and a true interpolation appears. With $\rho=\bar\alpha_{t\mid s}(1-\bar\alpha_s)/(1-\bar\alpha_t)$,
#
# $$
# c_0\,x_0+c_t\,x_t \;=\; (1-\rho)\;\sqrt{\bar\alpha_s}\,x_0 \;+\; \rho\;\frac{x_t}{\sqrt{\bar\alpha_{t\mid s}}} ,
# \qquad
# 1-\rho=\frac{\beta_{t\mid s}}{1-\bar\alpha_t} .
# \tag{4.24}
# $$
#
# (The second half is the identity (4.9), divided by $1-\bar\alpha_t$; then compare with $c_0$ and $c_t$.) And the weights have a meaning. We hold two measurements of $x_s$. The past sends $\sqrt{\bar\alpha_s}\,x_0$, which is off
# by the noise of the steps up to $s$, variance $1-\bar\alpha_s$. The future sends $x_t/\sqrt{\bar\alpha_{t\mid s}}$, which is off by the noise of the steps from $s$ to $t$, stretched: variance $\beta_{t\mid s}/\bar\alpha_{t\mid s}$. Each is trusted in proportion to
# its precision, one over its variance, as the [toolbox](A_toolbox.ipynb#T.5-Conditionals) demands in (T.16):
#
# $$
# \frac{\rho}{1-\rho} \;=\; \frac{\bar\alpha_{t\mid s}/\beta_{t\mid s}}{1/(1-\bar\alpha_s)} .
# \tag{4.25}
# $$
#
# So in a single step late in the chain the mean is almost all $x_t$: the neighbour is a precise witness, and $x_0$ a remote one. At $t=1$ it is all $x_0$, which is then an exact one.

# %%
for t, s in pairs:
    ratio = alpha_bar[t] / alpha_bar[s]
    rho = ratio * (1 - alpha_bar[s]) / (1 - alpha_bar[t])
    claim("4.24", (1 - rho) * alpha_bar[s].sqrt() * clean + rho * later / ratio.sqrt(),
          diffusion.posterior(later, clean, t, s).mean, note=f"t = {t}, s = {s}")
    claim("4.24", 1 - rho, (1 - ratio) / (1 - alpha_bar[t]))
    future, past = diffusion.transition(earlier, t, s), diffusion.marginal(clean, s)
    claim("4.25", rho / (1 - rho), ratio / future.variance * past.variance)

# %% [markdown]
# > **Pitfall: "the mean interpolates between $x_0$ and $x_t$".** Code that is built on the phrase computes one weight and takes one minus it for the other. With single steps at $T=1000$ that is wrong by at most one per cent, and nobody notices. On a chain of ten
# > steps it is another algorithm: it puts $(1-c_0-c_t)\,x_t$ too much into $x_s$, and the right panel shows how much that is: at $t=1000$, $0.6\,x_t$.

# %% [markdown]
# ## 4.8 Two variances, and the logarithm of zero
#
# The forward step has variance $\beta_t$, the posterior $\tilde\beta_t$. Their ratio is a ratio of two noise levels:
#
# $$
# \frac{\tilde\beta_t}{\beta_t} \;=\; \frac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t} \;<\; 1 .
# \tag{4.26}
# $$

# %%
ratio = schedule.posterior_variance[1:] / schedule.beta[1:]                    # t = 1 … T
noise_level = schedule.one_minus_alpha_bar
claim("4.26", noise_level[:-1] / noise_level[1:], ratio)
claim("4.26", ratio, 1.0, relation="<=")
short = schedule.respace(10, spacing="trailing")                               # ten steps of 100
short_ratio = short.posterior_variance[1:] / short.beta[1:]
fact("posterior variance over β, single steps, t = 2, 10, 100",
     [ratio[t - 1] for t in (2, 10, 100)], digits=3)
fact("on the chain of ten, t = 200, 600, 1000", [short_ratio[k] for k in (1, 5, 9)], digits=3)

fig, ax = figure()
ax.plot(range(1, 1001), ratio, color=BLUE, label="steps of 1")
ax.plot(short.timesteps[1:], short_ratio, "o-", ms=4, color=VERMILLION, label="steps of 100")
ax.set(xscale="log", xlabel="$t$", ylim=(-0.03, 1.05),
       ylabel=r"$\tilde\beta_{t\mid s}\,/\,\beta_{t\mid s}$")
ax.legend(loc="lower right")
show(fig, """The posterior variance over beta against t on a logarithmic axis. For single steps it
is 0 at t = 1, 0.45 at 2, 0.85 at 10 and almost 1 from 100 on. For steps of 100 it is 0 at t =
100, 0.3 at 200, and 0.95 at 600.""")

# %% [markdown]
# *Does it matter which of the two a sampler uses?* For single steps only at the very beginning of the chain, near the data; for long steps through half of it.
#
# **Exercise 4.4** (1 point, 5 minutes, ●○○) — *Predict the number.* In a chain all steps have the same $\beta=0.1$. What is $\tilde\beta_3/\beta_3$? Guess first: nearer to $0$, to $\tfrac23$, or to $1$? Then give three digits.

# %%
answer = None

check("4.4", answer)

# %% [markdown]
# At $t=1$ the ratio is exactly zero: given $x_0$, nothing is left to be unsure of. $\tilde\beta_1=0$ is a correct number, of which code likes to take the logarithm.
#
# > **Pitfall: $\log\tilde\beta_1=-\infty$.** Several code bases keep a table of $\log\tilde\beta_t$, and clamp the variance at $10^{-20}$ first. Sampling never notices, since the last step draws no noise. Two other users of the table do. The variational bound (chapter 5)
# > ends in a decoder, a Gaussian around the predicted $x_0$; with the clamped variance it charges the sum below for *one* pixel that is off by *one* of our digits' 17 grey levels. And a network that learns its variance by interpolating between $\log\tilde\beta_t$ and $\log\beta_t$ is given a
# > range with a bottom at $-46$. The cure, also in the official DDPM code for CIFAR-10, is to put $\tilde\beta_2$ in the place of $\tilde\beta_1$ wherever a logarithm or a density is wanted.

# %%
print("log of the true value:", schedule.posterior_variance[1].log().item())
fact("log of the clamped value", math.log(1e-20))
grey_level = 2 / 16                                                # 17 levels from −1 to 1
for name, variance in (("clamped", 1e-20), ("of t = 2", schedule.posterior_variance[2].item())):
    nats = grey_level**2 / (2 * variance) + 0.5 * math.log(2 * math.pi * variance)
    fact(f"−log density of the pixel, variance {name}", nats)


# %% [markdown]
# ## 4.9 The best variance depends on the data
#
# Now drop $x_0$. The reverse step of DDPM is a Gaussian $p_\theta(x_s\mid x_t)=\mathcal N\big(x_s;\,\mu_\theta,\,\sigma^2I\big)$, where $\mu_\theta$ is computed from $x_t$ by a network with parameters $\theta$, and where one number $\sigma^2$ serves all coordinates and all $x_t$. Which number?
# You may read that $\tilde\beta$ is "the exact one". It is exact for a question in which $x_0$ is given. Here it is not.
#
# Take the best case for the mean: let $\mu_\theta$ be the exact $m(x_t)=\mathbb E[x_s\mid x_t]$. Which $\sigma^2$ brings the Gaussian closest to the truth, in the sense of maximum likelihood, that is, with the smallest KL divergence from $q(x_s\mid x_t)$, averaged over $x_t$?
# By (T.21) the divergence is $\mathbb E\log q-\mathbb E\log p_\theta$; the first part does not contain $\sigma^2$, and the second is (T.3):
#
# $$
# \mathbb E_{x_t}\,\mathrm{KL}\big(q(x_s\mid x_t)\,\big\Vert\,\mathcal N(m(x_t),\sigma^2 I)\big)
# = \text{const}+\frac D2\log(2\pi\sigma^2)+\frac{1}{2\sigma^2}\,\mathbb E\lVert x_s-m(x_t)\rVert^2 .
# \tag{4.27}
# $$
#
# The derivative with respect to $\sigma^2$, $\;\tfrac{D}{2\sigma^2}-\tfrac{1}{2\sigma^4}\mathbb E\lVert x_s-m\rVert^2$, is negative before its one zero and positive after it. So the best variance is the mean squared miss per coordinate. The miss has mean zero given $x_t$, so this is also the average variance:
#
# $$
# \sigma_*^2 \;=\; \tfrac1D\,\mathbb E\lVert x_s-m(x_t)\rVert^2
# \;=\; \tfrac1D\,\mathbb E\operatorname{tr}\operatorname{Cov}[x_s\mid x_t] .
# \tag{4.28}
# $$

# %%
def gaussian(V):
    """One-dimensional data with the law N(0, V)."""
    return GaussianData([0.0], [[V]])


def over_x_t(data, process, t, places, width=9.0):
    """Places x_t, and their probabilities: a sum with them is an expectation over x_t."""
    law = data.marginal(process, t)
    x_t = law.mean + law.covariance.sqrt() * torch.linspace(-width, width, places)[:, None]
    density = law.log_prob(x_t).exp()
    return x_t, (density / density.sum())[:, None]


def average_variance(data, t, s, process=schedule, places=1001):
    """E Var[x_s | x_t], from the oracle, for one-dimensional data."""
    x_t, probability = over_x_t(data, process, t, places)
    return (probability * data.reverse(process, x_t, t, s).covariance[:, 0]).sum()


def expected_kl(data, process, t, s, variances, places=161, points=801):
    """E KL( q(x_s | x_t) || N(m(x_t), variance) ) for each variance; None: that of each x_t."""
    x_t, probability = over_x_t(data, process, t, places, width=5.0)
    law = data.reverse(process, x_t, t, s)
    mean, own = law.mean, law.covariance[:, 0]                                 # (places, 1)
    x_s = mean + own.sqrt() * torch.linspace(-11.0, 11.0, points)              # (places, points)
    repeated = x_t.expand_as(x_s).reshape(-1, 1)
    log_q = data.reverse(process, repeated, t, s).log_prob(x_s.reshape(-1, 1)).view_as(x_s)
    found = []
    for variance in variances:
        V = own if variance is None else variance
        log_p = -((x_s - mean) ** 2 / V + torch.log(2 * math.pi * V)) / 2          # (T.3)
        kl = torch.trapezoid(log_q.exp() * (log_q - log_p), x_s)
        found.append((probability[:, 0] * kl).sum())
    return torch.stack(found)


t, s = 100, 50
miss = average_variance(mixture, t, s)
sigma2 = miss * torch.tensor([0.5, 0.95, 1.0, 1.05, 2.0])
kl = expected_kl(mixture, schedule, t, s, sigma2)                              # by quadrature
formula = 0.5 * torch.log(2 * math.pi * sigma2) + miss / (2 * sigma2)
claim("4.27", formula - formula[2], kl - kl[2], tol=1e-8, note="without its constant")
claim("4.28", kl[2].expand(4), kl[[0, 1, 3, 4]], relation="<=", note="any other is worse")

# %% [markdown]
# **Split it.** Go from $m(x_t)$ to $x_s$ in two hops, by way of $\mathbb E[x_s\mid x_t,x_0]$. The second hop has mean zero whatever $x_0$ is, so the cross term vanishes and the covariances add (the law of total variance). That cuts $\operatorname{Cov}[x_s\mid x_t]$ in two: the covariance that is left when $x_0$ is told too, which is $\tilde\beta_{t\mid s}I$ for every $x_0$; and the covariance, over $x_0$ given $x_t$, of the mean that we would then predict. That mean is
# $c_0x_0+c_tx_t$, where only $x_0$ varies, so its covariance is $c_0^2\operatorname{Cov}[x_0\mid x_t]$. Together
#
# $$
# \sigma_*^2 \;=\; \tilde\beta_{t\mid s} \;+\; c_0^2\;\tfrac1D\,\mathbb E\operatorname{tr}\operatorname{Cov}[x_0\mid x_t] .
# \tag{4.29}
# $$
#
# The second term is not negative. So $\tilde\beta_{t\mid s}$ is always a *lower bound* of the best variance, reached only if $x_t$ determines $x_0$.

# %%
ratio = alpha_bar[t] / alpha_bar[s]
beta = 1 - ratio
c_0, _, tilde = coefficients(t, s)
cases = {"V = 1e-6": gaussian(1e-6), "mixture": mixture, "V = 1": gaussian(1.0),
         "V = 4": gaussian(4.0), "V = 1e6": gaussian(1e6)}
best, xi = {}, {}
fact("lower bound over β, on the step from 100 to 50", tilde / beta)
for name, data in cases.items():
    best[name] = average_variance(data, t, s)                                  # (4.28)
    spread = average_variance(data, t, 0)                                      # E Var[x_0 | x_t]
    xi[name] = spread * alpha_bar[t] / (1 - alpha_bar[t])                      # needed below
    claim("4.29", tilde + c_0**2 * spread, best[name], note=name)
    fact("    best variance over β", best[name] / beta)

# %% [markdown]
# A point (nearly), the mixture, standard normal data, variance 4, and a huge variance. The first needs $\tilde\beta$, the third exactly $\beta$, the fourth six per cent *more* than $\beta$. Can that be, and where does it end?
#
# **How large can it get?** Express the second term by the noise. At fixed $x_t$, (4.21) makes $x_0$ a constant minus $\sqrt{(1-\bar\alpha_t)/\bar\alpha_t}\;\varepsilon$; so the covariances of $x_0$ and of $\varepsilon$ given $x_t$ differ by the factor $(1-\bar\alpha_t)/\bar\alpha_t$. Call
#
# $$
# \xi_t \;=\; \tfrac1D\,\mathbb E\operatorname{tr}\operatorname{Cov}[\varepsilon\mid x_t]
# \;=\; \tfrac1D\,\mathbb E\big\lVert\varepsilon-\mathbb E[\varepsilon\mid x_t]\big\rVert^2 ,
# \qquad 0\le\xi_t\le1 ,
# \tag{4.30}
# $$
#
# the *unpredictable share* of the noise. It is the squared error per coordinate of the best noise predictor there is (chapter 5 will call it the smallest possible loss). It is at most 1, because $\operatorname{Cov}[\varepsilon\mid x_t]$ is on average at most $\operatorname{Cov}[\varepsilon]=I$. The second term of (4.29) becomes
# $\xi_t\,c_0^2\,(1-\bar\alpha_t)/\bar\alpha_t=\xi_t\,\beta_{t\mid s}^2\big/\big(\bar\alpha_{t\mid s}(1-\bar\alpha_t)\big)$. For $\xi_t=1$ the sum is
#
# $$
# \tilde\beta_{t\mid s}+\frac{\beta_{t\mid s}^2}{\bar\alpha_{t\mid s}(1-\bar\alpha_t)}
# =\frac{\beta_{t\mid s}}{\bar\alpha_{t\mid s}}\cdot
#  \frac{\bar\alpha_{t\mid s}(1-\bar\alpha_s)+\beta_{t\mid s}}{1-\bar\alpha_t}
# =\frac{\beta_{t\mid s}}{\bar\alpha_{t\mid s}} ,
# \tag{4.31}
# $$
#
# by the identity (4.9) once more. So (4.29) is an interpolation, and a true one this time:
#
# $$
# \sigma_*^2 \;=\; (1-\xi_t)\;\tilde\beta_{t\mid s}\;+\;\xi_t\;\frac{\beta_{t\mid s}}{\bar\alpha_{t\mid s}} .
# \tag{4.32}
# $$
#
# Noise that can be read off $x_t$ pulls the best variance down to $\tilde\beta$; noise that cannot pushes it up. Note the upper end: it is $\beta/\bar\alpha_{t\mid s}$, and not $\beta$.

# %%
x_t_places, probability = over_x_t(mixture, schedule, t, 1001)
explained = (probability * mixture.eps(schedule, x_t_places, t) ** 2).sum()
claim("4.30", xi["mixture"], 1 - explained, note="1 minus what the best predictor explains")
claim("4.31", beta**2 / (ratio * (1 - alpha_bar[t])) + tilde, beta / ratio)
for name in cases:
    claim("4.32", (1 - xi[name]) * tilde + xi[name] * beta / ratio, best[name], note=name)
fact("unpredictable share of the noise at t = 100, in the same order", list(xi.values()), digits=2)
fact("upper end over β", 1 / ratio)

# %% [markdown]
# **Where $\beta$ stands.** Let the data have variance $V$ per coordinate on average, $V=\operatorname{tr}\operatorname{Cov}[x_0]/D$. The best predictor of the noise is at least as good as the best *linear* one, $K\,(x_t-\mathbb E\,x_t)$ with one number $K$. Its squared error per coordinate is
# $K^2(\bar\alpha_tV+1-\bar\alpha_t)-2K\sqrt{1-\bar\alpha_t}+1$ (by (3.32), and because $x_t$ and $\varepsilon$ have covariance $\sqrt{1-\bar\alpha_t}\,I$). This parabola in $K$ has its minimum at $K=\sqrt{1-\bar\alpha_t}\big/(\bar\alpha_tV+1-\bar\alpha_t)$, so
#
# $$
# \xi_t \;\le\; 1-\frac{1-\bar\alpha_t}{\bar\alpha_tV+1-\bar\alpha_t}
# \;=\; \frac{\bar\alpha_tV}{\bar\alpha_tV+1-\bar\alpha_t} .
# \tag{4.33}
# $$
#
# For Gaussian data with covariance $VI$ the best predictor *is* linear, (T.18), and (4.33) is an equality. Of all data with the same $V$, this Gaussian needs the largest variance. Now let $V\le1$. Then $\xi_t\le\bar\alpha_t$, and (4.32) is at most
#
# $$
# \tilde\beta_{t\mid s}+\bar\alpha_t\cdot\frac{\beta_{t\mid s}^2}{\bar\alpha_{t\mid s}(1-\bar\alpha_t)}
# =\beta_{t\mid s}\cdot\frac{(1-\bar\alpha_s)+\bar\alpha_s\,\beta_{t\mid s}}{1-\bar\alpha_t}
# =\beta_{t\mid s} ,
# \tag{4.34}
# $$
#
# because the numerator is $1-\bar\alpha_s(1-\beta_{t\mid s})=1-\bar\alpha_t$. Summed up:
#
# $$
# \tilde\beta_{t\mid s}\;\le\;\sigma_*^2\;\le\;\beta_{t\mid s}\quad\text{if } V\le1 ,
# \qquad\qquad
# \tilde\beta_{t\mid s}\;\le\;\sigma_*^2\;\le\;\frac{\beta_{t\mid s}}{\bar\alpha_{t\mid s}}\quad\text{always.}
# \tag{4.35}
# $$
#
# Data in $[-1,1]$, such as our images, have $V\le1$, and there $\tilde\beta$ and $\beta$ enclose the truth. Data with a larger variance can need more than $\beta$; the supremum, for $V\to\infty$, is $\beta/\bar\alpha_{t\mid s}$.

# %%
for name, V in (("V = 1e-6", 1e-6), ("V = 1", 1.0), ("V = 4", 4.0)):
    claim("4.33", alpha_bar[t] * V / (alpha_bar[t] * V + 1 - alpha_bar[t]), xi[name],
          note=f"equality for Gaussian data, {name}")
V = mixture.covariance[0, 0]
claim("4.33", xi["mixture"], alpha_bar[t] * V / (alpha_bar[t] * V + 1 - alpha_bar[t]),
      relation="<=", note="the mixture")
claim("4.34", tilde + alpha_bar[t] * beta**2 / (ratio * (1 - alpha_bar[t])), best["V = 1"],
      note="the best variance for V = 1")
inside = torch.stack([best["mixture"], best["V = 1e-6"]])
claim("4.35", tilde.expand(2), inside, relation="<=")
claim("4.35", inside, beta.expand(2), relation="<=", note="V ≤ 1")
claim("4.35", torch.stack([beta, best["V = 4"]]), torch.stack([best["V = 4"], beta / ratio]),
      relation="<=", note="V = 4: above β, below the supremum")

# %% [markdown]
# And real data? We take the law that gives each training digit the same probability; its noise predictor is known exactly, but the expectation over $x_t$ now runs in 64 dimensions and must be estimated, here from 2,000 draws.

# %%
images, _ = digits("train")
empirical = FiniteData(images.flatten(1).double())
noise = torch.randn(2000, 64, generator=g)
for t in (100, 200, 400):
    noisy = diffusion.q_sample(empirical.sample(2000, g), t, noise)
    error = ((noise - empirical.eps(schedule, noisy, t)) ** 2).mean(1)         # one for each draw
    running = error.sort(descending=True).values.cumsum(0)
    print(f"digits, t = {t}:", end=" ")
    fact("unpredictable share of the noise, and its standard error",
         [error.mean(), error.std() / 2000**0.5], digits=2)
    fact("    draws that make up half of the sum", int((running < running[-1] / 2).sum()) + 1)
spectrum = torch.linalg.eigvalsh(empirical.covariance)
fact("number of digits", len(images))
fact("their variance per coordinate", spectrum.mean())
fact("share for the Gaussian with their covariance, t = 100, 200, 400",
     [(alpha_bar[t] * spectrum / (alpha_bar[t] * spectrum + 1 - alpha_bar[t])).mean()
      for t in (100, 200, 400)], digits=2)


# %% [markdown]
# For this law the best variance lies about five per cent of the way up from $\tilde\beta$, or less. At $t=100$ read off only that it is far less: a handful of the 2,000 draws, those that fell between two similar digits, make up half of the sum, and the standard
# error, which rests on the same few, is itself rough. And do not conclude that "$\tilde\beta$ is right for images". A law on 1,442 points is easy to guess: with moderate noise only a few of them come into question, and then the noise can be read off. A law of *all* digits, which we do not have, is
# spread out and should leave more unpredictable. At most how much? Repeat the argument for (4.33) with a matrix in the place of $K$: of all laws with a given covariance, the Gaussian has the largest share, and in each eigendirection of the covariance it is (4.33) with the eigenvalue for $V$. The last line averages that over
# the 64 directions. We expect the truth about digits between the two.
#
# **Exercise 4.5** (3 points, 15 minutes, ●●●) — *The best variance for Gaussian data.* The data are $\mathcal N(0,VI)$. Write `best_variance(alpha_bar_t, alpha_bar_s, V)` that returns $\sigma_*^2$ for the step from $t$ to $s$, with $0<\bar\alpha_t<\bar\alpha_s\le1$.
# All you need stands in (4.32) and (4.33).

# %%
def best_variance(alpha_bar_t, alpha_bar_s, V):
    """The variance of the best isotropic Gaussian reverse step, for data N(0, V I)."""
    raise NotImplementedError("your turn")


check("4.5", best_variance)


# %% [markdown]
# **What a wrong variance does.** With data $\mathcal N(0,V)$ in one dimension, a whole sampling run can be followed without drawing a number. The exact mean is linear in $x_t$, so the law of $x_t$ stays Gaussian along the walk and only its variance has to be carried. Call it $R_t$. A factor comes out squared, and independent
# variances add (T.12):
#
# $$
# R_s \;=\; \Big(c_0\,\frac{\sqrt{\bar\alpha_t}\,V}{\bar\alpha_tV+1-\bar\alpha_t}+c_t\Big)^{2}\,R_t \;+\; \sigma^2 .
# \tag{4.36}
# $$
#
# (The fraction is $\mathbb E[x_0\mid x_t]/x_t$, from (T.18).) With the best variance at every step, $R$ must follow the true variance $\bar\alpha_sV+1-\bar\alpha_s$ all the way: that is the law of total variance. We start from the true law of $x_T$, walk 50 steps, end with the mean instead of a draw as DDPM does, and compare three honest
# choices with two mistakes.

# %%
def walk_variance(V, choose, count=50):
    """R after every step of a walk with `count` steps; choose(t, s) gives sigma²."""
    steps = [*schedule.steps(count, "trailing").tolist()[::-1], 0]
    R = [alpha_bar[1000] * V + 1 - alpha_bar[1000]]
    for t, s in pairwise(steps):
        c_0, c_t = weights(t, s)
        slope = c_0 * alpha_bar[t].sqrt() * V / (alpha_bar[t] * V + 1 - alpha_bar[t]) + c_t
        R.append(slope**2 * R[-1] + (choose(t, s) if s > 0 else 0.0))
    return torch.stack(R), steps


V = 0.5
rules = {
    "best": lambda t, s: average_variance(gaussian(V), t, s),
    "forward β": lambda t, s: 1 - alpha_bar[t] / alpha_bar[s],
    "posterior": lambda t, s: coefficients(t, s)[2],
    "posterior with betas[t]":
        lambda t, s: schedule.beta[t] * (1 - alpha_bar[s]) / (1 - alpha_bar[t]),
    "posterior as deviation": lambda t, s: coefficients(t, s)[2] ** 2,
}
R, visited = walk_variance(V, rules["best"])
truth = alpha_bar[visited] * V + 1 - alpha_bar[visited]
claim("4.36", R[:-1], truth[:-1], note="with the best variance, all the way")
fact("standard deviation of the data", V**0.5)
for name, choose in rules.items():
    R, _ = walk_variance(V, choose)
    fact(f"    of the samples, {name}", R[-1].sqrt())

# %% [markdown]
# The best variance comes out a little low, only because the last step takes the mean and omits its own variance. $\beta$ ends one per cent too wide and $\tilde\beta$ nine per cent too narrow, on either side, as (4.35) says. The two mistakes lose three quarters of the spread.
#
# > **Pitfall: a variance used as a standard deviation.** `mean + variance * z` where `mean + variance.sqrt() * z` is meant. Variances of single steps are small, their squares are tiny, and the walk is nearly deterministic. The symptom is the last line above: samples too close to the mean, which in a picture can pass for cleanness.

# %% [markdown]
# ## 4.10 The true step back is not Gaussian
#
# We let $p_\theta(x_s\mid x_t)$ be Gaussian. Was that allowed? One reads: "the forward process is Gaussian, therefore the reverse process is Gaussian." The second half does not follow. (4.2) says what $q(x_s\mid x_t)$ is: an average of Gaussians, one for every $x_0$ that could have led to $x_t$. For our mixture it
# is a mixture of two Gaussians again, and the first figure showed its two humps. There is one exception. If the *data* are Gaussian, $x_0\sim\mathcal N(0,VI)$, then $(x_s,x_t)$ is jointly Gaussian, with variances $V_s=\bar\alpha_sV+1-\bar\alpha_s$ and $V_t$ alike and, by (3.26), covariance $\sqrt{\bar\alpha_{t\mid s}}\,V_s$; and (T.19) gives
#
# $$
# q(x_s\mid x_t) = \mathcal N\!\Big(x_s;\;\frac{\sqrt{\bar\alpha_{t\mid s}}\;V_s}{V_t}\,x_t,\;\;
# \frac{\beta_{t\mid s}\,V_s}{V_t}\,I\Big)\qquad\text{for Gaussian data.}
# \tag{4.37}
# $$
#
# (The variance is $V_s-\bar\alpha_{t\mid s}V_s^2/V_t=V_s\,(V_t-\bar\alpha_{t\mid s}V_s)/V_t$, and $V_t-\bar\alpha_{t\mid s}V_s=\beta_{t\mid s}$.)

# %%
V, (t, s) = 0.5, (400, 60)
V_t, V_s = (alpha_bar[i] * V + 1 - alpha_bar[i] for i in (t, s))
ratio = alpha_bar[t] / alpha_bar[s]
claim("4.37", normal(grid, ratio.sqrt() * V_s / V_t * x_t, (1 - ratio) * V_s / V_t)[:, 0],
      gaussian(V).reverse(schedule, x_t, t, s)[0].log_prob(grid).exp())

# %% [markdown]
# For other data, how far from Gaussian is it? Take the logarithm of (4.1), for one coordinate:
#
# $$
# \log q(x_s\mid x_t) \;=\; -\frac{\big(x_t-\sqrt{\bar\alpha_{t\mid s}}\,x_s\big)^2}{2\beta_{t\mid s}}
# \;+\;\log q(x_s)\;+\;\text{const} .
# \tag{4.38}
# $$
#
# This settles first that the exception is the only one. If the left side is quadratic in $x_s$, so is $\log q(x_s)$, and $x_s$ is Gaussian; but $x_s$ is $\sqrt{\bar\alpha_s}\,x_0$ plus independent Gaussian noise, so $x_0$ is Gaussian too (divide the characteristic functions).
#
# If $\beta_{t\mid s}$ is small, the first term confines $x_s$ to a few $\sqrt{\beta_{t\mid s}}$ around a centre. So write $x_s=\text{centre}+\sqrt{\beta_{t\mid s}}\,u$, with $u$ of size one, and expand $\log q(x_s)$ in powers of $u$. The powers 0, 1 and 2 leave a Gaussian a Gaussian. The first term that does not is
# $\tfrac16\,\beta_{t\mid s}^{3/2}\,(\log q)'''\,u^3$. Now a KL divergence is of *second* order in a small change $h$ of the log density. For if $q=g\,e^h$ with a Gaussian density $g$, then $\int g\,e^h=1$ gives $\mathbb E_{g}[h]\approx-\tfrac12\mathbb E_{g}[h^2]$, and
# $\mathrm{KL}(q\Vert g)=\mathbb E_{g}[e^hh]\approx\mathbb E_{g}[h]+\mathbb E_{g}[h^2]\approx\tfrac12\mathbb E_{g}[h^2]$. With $h$ of size $\beta^{3/2}$ the divergence is of size $\beta^3$. And of all Gaussians the one with $q$'s own mean and variance has the smallest divergence from $q$ (the argument of (4.27), with the mean free too). So, against the Gaussian that has the right mean *and the right variance at every $x_t$*,
#
# $$
# \mathbb E_{x_t}\,\mathrm{KL}\big(q(x_s\mid x_t)\,\big\Vert\,\mathcal N(m(x_t),\operatorname{Var}[x_s\mid x_t])\big)
# \;=\; O\big(\beta_{t\mid s}^{3}\big) .
# \tag{4.39}
# $$
#
# *One* variance for all $x_t$ makes a larger error, already in the quadratic term. To first order the precision at $x_t$ is $\bar\alpha_{t\mid s}/\beta_{t\mid s}-(\log q)''$. Its second part changes with $x_t$, and compared to the first it is of size $\beta_{t\mid s}$. A relative error $r$ in a variance adds a divergence of about $r^2/4$
# (expand (T.24) at $V_1/V_2=1+r$; that it is added is because the log-ratio of two Gaussians with one mean is quadratic, so its average under $q$ depends on $q$'s variance only). Hence
#
# $$
# \mathbb E_{x_t}\,\mathrm{KL}\big(q(x_s\mid x_t)\,\big\Vert\,\mathcal N(m(x_t),\sigma_*^2)\big)
# \;=\; O\big(\beta_{t\mid s}^{2}\big) .
# \tag{4.40}
# $$
#
# Both vanish with $\beta$. *That* is why Gaussian steps are good enough on a long chain, and only there. Cut a fixed amount of noising into $T$ steps: each $\beta$ is proportional to $1/T$, so the first error sums to $T\cdot T^{-3}=T^{-2}$ and the second to $T\cdot T^{-2}=T^{-1}$. It is the single variance, not the shape, for which a long chain
# pays most. We measure both orders with exact densities, on a chain fine enough for really small steps.

# %%
log_typed = (-((x_t - ratio.sqrt() * grid) ** 2)[:, 0] / (2 * (1 - ratio))
             + mixture.marginal(schedule, s).log_prob(grid))
log_true = mixture.reverse(schedule, x_t, t, s)[0].log_prob(grid)
claim("4.38", log_typed - log_typed[480], log_true - log_true[480], note="up to its constant")

fine = NoiseSchedule.linear(T=10_000, beta_1=1e-5, beta_T=2e-3)                # ten times finer
small, errors = [], []
for s in (3996, 3992, 3984, 3968, 3936):
    small.append(1 - fine.alpha_bar[4000] / fine.alpha_bar[s])
    choices = (None, average_variance(mixture, 4000, s, fine))
    errors.append(expected_kl(mixture, fine, 4000, s, choices))
small, errors = torch.stack(small), torch.stack(errors)
claim("4.39", (small, errors[:, 0]), 3.0, relation="order")
claim("4.40", (small, errors[:, 1]), 2.0, relation="order")

# %% [markdown]
# So much for small steps. What happens with large ones?

# %%
sizes, found, humps = [], [], []
for s in (399, 396, 390, 375, 350, 320, 280, 240, 200, 150, 100, 60, 20):
    t = 400
    sizes.append(1 - alpha_bar[t] / alpha_bar[s])
    choices = (None, average_variance(mixture, t, s), sizes[-1], coefficients(t, s)[2])
    found.append(expected_kl(mixture, schedule, t, s, choices))
    density = mixture.reverse(schedule, x_t, t, s)[0].log_prob(grid)
    humps.append(int(((density[1:-1] > density[:-2]) & (density[1:-1] > density[2:])).sum()))
sizes, found = torch.stack(sizes), torch.stack(found)
assert (found.diff(dim=1) > 0).all()          # at every size in the order: own, best, β, β̃
fact("β of the steps 400 → 390, 320, 200, 60", [sizes[k] for k in (2, 5, 8, 11)], digits=2)
fact("E KL, right mean and variance at every x_t", [found[k, 0] for k in (2, 5, 8, 11)], digits=2)
fact("E KL, one variance, the best", [found[k, 1] for k in (2, 5, 8, 11)], digits=2)
fact("humps of q(x_s | x_t) at the first figure's x_t", [humps[k] for k in (2, 5, 8, 11)])

fig, ax = figure()
labels = ("right variance at every $x_t$", r"one variance, $\sigma_*^2$", r"$\beta$",
          r"$\tilde\beta$")
for k, (label, colour) in enumerate(zip(labels, (BLUE, GREEN, VERMILLION, PURPLE), strict=True)):
    ax.loglog(sizes, found[:, k], "o-", ms=4, color=colour, label=label)
for k, order in ((0, 3), (1, 2)):
    ax.loglog(sizes[:6], found[0, k] * (sizes[:6] / sizes[0]) ** order, color=GREY, lw=1, ls="--")
    ax.text(0.02, found[0, k] * (0.011 / sizes[0]) ** order, f"slope {order}",
            color=GREY, fontsize=10)
ax.set(xlabel=r"$\beta_{t\mid s}$", ylabel="E KL, nats", ylim=(3e-11, 1e3))
ax.legend(loc="upper left")
show(fig, """Expected KL divergence of the true step back from four Gaussians with the right mean,
against the size of the step, on logarithmic axes. With the right variance at every point it falls
with slope 3; with one variance for all points, whichever, with slope 2. The best single variance
is lowest of these three, then beta, then the posterior variance.""")

# %% [markdown]
# *How good is a Gaussian step?* From 400 to 390, excellent: what is lost by the shape is next to nothing, and a single variance costs twenty times as much. From 400 to 60 no choice of variance helps, because no Gaussian has two humps. In between, from 400 to 320, the right variance at every $x_t$ still more than halves the divergence. The lines of $\beta$ and $\tilde\beta$ have slope 2 as well, because both
# differ from $\sigma_*^2$ by a share of size $\beta$, (4.32). On these data $\tilde\beta$ is the worst of the three at every size of step.
#
# **Exercise 4.6** (3 points, 15 minutes, ●●○) — *Explain.* A colleague writes: "Each forward step is Gaussian, and Bayes' rule turns Gaussians into Gaussians, so $q(x_{t-1}\mid x_t)$ is Gaussian. DDPM's Gaussian $p_\theta$ is therefore exact, and the number of steps matters only for training." In six to ten sentences:
# what of this holds, at which point does the argument fail, what would have to be true of the data to save it, and what has the number of steps to do with it? (A person marks this one.)

# %%
answer_4_6 = ""

check("4.6", answer_4_6)

# %% [markdown]
# ## 4.11 The score: what a noisy point knows about its origin
#
# All that we do not know is in $q(x_0\mid x_t)$, and of that a reverse step needs one thing, the mean $\mathbb E[x_0\mid x_t]$: the mean of (4.18) is linear in $x_0$. This mean has a remarkable form. It can be read off the density $q(x_t)$ alone, without looking at clean data. The
# quantity that does it is the **score**, $\nabla\log q(x_t)$: the gradient of the log density, a vector that points to where $x_t$ would be more likely.
#
# Write out the definition, insert $q(x_t)=\int q(x_t\mid x_0)\,p_{\text{data}}(x_0)\,dx_0$, and differentiate under the integral sign:
#
# $$
# \nabla\log q(x_t) \;=\; \frac{\nabla q(x_t)}{q(x_t)}
# \;=\; \frac{1}{q(x_t)}\int \nabla_{x_t}\,q(x_t\mid x_0)\;p_{\text{data}}(x_0)\,dx_0 .
# \tag{4.41}
# $$
#
# *May derivative and integral change places?* Yes, for any data and any $t\ge1$. The theorem asks for a bound on the derivative that is integrable against $p_{\text{data}}$ and does not depend on $x_t$. The gradient of a Gaussian density of variance $1-\bar\alpha_t>0$ is bounded by one constant, wherever its centre
# is; and a constant is integrable against a probability. (At $t=0$ there is no noise, and no such bound.)
#
# The gradient of the Gaussian itself is, by the chain rule applied to (T.3),
#
# $$
# \nabla_{x_t}\,q(x_t\mid x_0) \;=\; \frac{\sqrt{\bar\alpha_t}\,x_0-x_t}{1-\bar\alpha_t}\;q(x_t\mid x_0) .
# \tag{4.42}
# $$
#
# Put it in. What now stands beside the fraction is $q(x_t\mid x_0)\,p_{\text{data}}(x_0)/q(x_t)$, and that is $q(x_0\mid x_t)$ by Bayes' rule. So the integral is an expectation given $x_t$, in which $x_t$ itself is a constant:
#
# $$
# \nabla\log q(x_t) \;=\; \mathbb E\Big[\frac{\sqrt{\bar\alpha_t}\,x_0-x_t}{1-\bar\alpha_t}\,\Big|\,x_t\Big]
# \;=\; \frac{\sqrt{\bar\alpha_t}\;\mathbb E[x_0\mid x_t]-x_t}{1-\bar\alpha_t} .
# \tag{4.43}
# $$
#
# This is **Tweedie's formula**. And since $\sqrt{\bar\alpha_t}\,x_0-x_t=-\sqrt{1-\bar\alpha_t}\;\varepsilon$,
#
# $$
# \nabla\log q(x_t) \;=\; -\,\frac{\mathbb E[\varepsilon\mid x_t]}{\sqrt{1-\bar\alpha_t}} .
# \tag{4.44}
# $$
#
# To know the noise on average, to know the clean data on average, and to know the score is one and the same. The minus sign deserves a look: on average the noise has carried $x_t$ away from where data are dense, and the score points back. Note also what is *not* said. The score gives the mean of
# $q(x_0\mid x_t)$, not a draw from it, and between two humps the mean may lie where no data are at all.

# %%
plane = GaussianMixture(                              # two dimensions, full covariances
    [0.2, 0.5, 0.3], [[-1.0, 0.5], [0.8, 0.4], [0.0, -0.9]],
    [[[0.05, 0.02], [0.02, 0.04]], [[0.02, 0.0], [0.0, 0.09]], [[0.06, -0.03], [-0.03, 0.03]]])
for t in (1, 50, 400, 1000):
    points = diffusion.q_sample(plane.sample(6, g), t, torch.randn(6, 2, generator=g))
    points.requires_grad_()
    log_density = plane.marginal(schedule, t).log_prob(points)
    (score,) = torch.autograd.grad(log_density.sum(), points)      # from the density alone
    points = points.detach()
    guess = plane.posterior_mean(schedule, points, t)              # from the components alone
    claim("4.43", (alpha_bar[t].sqrt() * guess - points) / (1 - alpha_bar[t]), score,
          tol=1e-8, note=f"two dimensions, t = {t}")
    claim("4.44", -plane.eps(schedule, points, t) / (1 - alpha_bar[t]).sqrt(), score, tol=1e-8)

t, centres, places = 400, alpha_bar[400].sqrt() * origin[:, 0], origin[:, 0]
kernel = torch.func.vmap(torch.func.grad(lambda x, c: normal(x, c, 1 - alpha_bar[400])), (None, 0))
slopes = (centres - x_t[0]) / (1 - alpha_bar[t]) * normal(x_t[0], centres, 1 - alpha_bar[t])
claim("4.42", slopes, kernel(x_t[0, 0], centres), note="against autograd")
p_data, law_t = mixture.log_prob(origin).exp(), mixture.marginal(schedule, t)
claim("4.41", torch.trapezoid(slopes * p_data, places) / law_t.log_prob(x_t).exp()[0],
      law_t.score(x_t)[0, 0], note="the integral, against the oracle's score")
fact("E[x_0 | x_t] at the first figure's x_t, and the data's density there and at the right hump",
     [mixture.posterior_mean(schedule, x_t, t)[0, 0],
      mixture.log_prob(mixture.posterior_mean(schedule, x_t, t)).exp()[0],
      mixture.log_prob([[0.7]]).exp()[0]], digits=2)

fig, (left, right) = figure(1, 2)
for t, colour in zip((20, 100, 400), time_colours(4), strict=False):
    noisy = mixture.marginal(schedule, t)
    left.plot(grid, noisy.score(grid) * (1 - alpha_bar[t]).sqrt(), color=colour, label=f"$t={t}$")
    right.plot(grid, mixture.posterior_mean(schedule, grid, t), color=colour)
left.axhline(0, color=GREY, lw=1)
left.set(xlabel="$x_t$", ylabel=r"score times $\sqrt{1-\bar\alpha_t}$", xlim=(-2, 2), ylim=(-5, 5))
left.legend(loc="upper right")
for mean in (-0.9, 0.7):
    right.axhline(mean, color=GREY, lw=1, ls=":")
right.set(xlabel="$x_t$", ylabel=r"$\mathrm{E}[x_0\mid x_t]$", xlim=(-2, 2), ylim=(-1.4, 1.4))
show(fig, """Left, the score times the noise level, which is minus the expected noise, at t = 20,
100 and 400. At t = 20 and 100 it falls through zero at each hump and climbs between them; at t =
400 it falls almost straight. Right, the best guess of x_0: at t = 20 nearly the diagonal with a
small step, at t = 100 a steep step between plateaus near -0.9 and 0.7, at t = 400 a gentle
slope.""")

# %% [markdown]
# *What is the best guess of the clean point?* With very little noise ($t=20$) it trusts $x_t$, but for a correction. With more ($t=100$) it snaps to the nearer hump. With much it hedges, and a hedge between $-0.9$ and $0.7$ is a place where no data are. This is why $\mathbb E[x_0\mid x_t]$ at large $t$ looks blurred for images, and why we do not jump to it but take a step.

# %% [markdown]
# ## 4.12 One object, four names
#
# Some networks predict $\varepsilon$, some $x_0$, some a third quantity, and papers speak of the score. Given $x_t$ and $t$, each determines the others by an [affine map](A_toolbox.ipynb#T.2-Affine-maps); so there is one prediction, with four names. The third quantity is the **velocity** $v$. To see where it comes from, read
# $x_t=\sqrt{\bar\alpha_t}\,x_0+\sqrt{1-\bar\alpha_t}\,\varepsilon$ as geometry. The squares of the two coefficients sum to one, so they are cosine and sine of an angle $\varphi_t$, which grows from 0 at the data to almost a right angle at the noise. Turn the pair $(x_0,\varepsilon)$ by this angle. The first coordinate of the turned
# pair is $x_t$. The second is $v$:
#
# $$
# \begin{pmatrix}x_t\\ v\end{pmatrix}
# = \begin{pmatrix}\cos\varphi_t&\sin\varphi_t\\-\sin\varphi_t&\cos\varphi_t\end{pmatrix}
#   \begin{pmatrix}x_0\\ \varepsilon\end{pmatrix} ,
# \qquad \cos\varphi_t=\sqrt{\bar\alpha_t} ,\quad \sin\varphi_t=\sqrt{1-\bar\alpha_t} .
# \tag{4.45}
# $$
#
# The second row is the definition, $v=\sqrt{\bar\alpha_t}\;\varepsilon-\sqrt{1-\bar\alpha_t}\;x_0$. (It is the derivative of $x_t$ with respect to the angle, at fixed $x_0$ and $\varepsilon$; hence the name.) The inverse of a rotation is its transpose, so there is nothing to solve:
#
# $$
# x_0=\sqrt{\bar\alpha_t}\;x_t-\sqrt{1-\bar\alpha_t}\;v ,
# \qquad
# \varepsilon=\sqrt{1-\bar\alpha_t}\;x_t+\sqrt{\bar\alpha_t}\;v .
# \tag{4.46}
# $$
#
# All conversions in one table: take the row of what you have and the column of what you want. $\cos$ and $\sin$ stand for $\cos\varphi_t$ and $\sin\varphi_t$, and $\nabla$ for the score. The first two rows solve the first line of (4.45) for the unknown and put it into the second, the third is (4.46), and the score comes in by (4.44).
#
# | from \ to | $x_0$ | $\varepsilon$ | $v$ | score $\nabla$ |
# |---|---|---|---|---|
# | $\varepsilon$ | $(x_t-\sin\,\varepsilon)/\cos$ | | $(\varepsilon-\sin\,x_t)/\cos$ | $-\varepsilon/\sin$ |
# | $x_0$ | | $(x_t-\cos\,x_0)/\sin$ | $(\cos\,x_t-x_0)/\sin$ | $(\cos\,x_0-x_t)/\sin^2$ |
# | $v$ | $\cos\,x_t-\sin\,v$ | $\sin\,x_t+\cos\,v$ | | $-x_t-(\cos/\sin)\,v$ |
# | score $\nabla$ | $(x_t+\sin^2\,\nabla)/\cos$ | $-\sin\,\nabla$ | $-(\sin/\cos)\,(x_t+\nabla)$ | |
#
# Being affine, the conversions hold for averages given $x_t$ as well. If a network gives $\hat\varepsilon=\mathbb E[\varepsilon\mid x_t]$, then the $\hat x_0$ that belongs to it is $\mathbb E[x_0\mid x_t]$. (A hat marks a prediction, of a network or an oracle.) The library converts in one place, `predict`, and everything else asks there.

# %%
t = 400
cos, sin = alpha_bar[t].sqrt(), (1 - alpha_bar[t]).sqrt()
eps = torch.randn(5, 4, generator=g)
noisy, v = cos * clean + sin * eps, cos * eps - sin * clean
angle = torch.atan2(sin, cos).requires_grad_()
_, by_angle = torch.func.jvp(lambda phi: torch.cos(phi) * clean + torch.sin(phi) * eps,
                             (angle.detach(),), (torch.tensor(1.0),))
claim("4.45", v, by_angle, note="v is the derivative of x_t with respect to the angle")
p = {}
for prediction, output in (("eps", eps), ("x0", clean), ("v", v)):
    p[prediction] = GaussianDiffusion(schedule, prediction=prediction).predict(output, noisy, t)
    claim("4.45", -sin * clean + cos * eps, p[prediction].v, note=f"v, from {prediction}")
    claim("4.46", cos * noisy - sin * v, p[prediction].x0, note=f"x_0, from {prediction}")
    claim("4.46", sin * noisy + cos * v, p[prediction].eps, note=f"ε, from {prediction}")

score = p["eps"].score
table = {"v from ε": ((eps - sin * noisy) / cos, v), "v from x_0": ((cos * noisy - clean) / sin, v),
         "score from x_0": ((cos * clean - noisy) / sin**2, score),
         "score from v": (-noisy - cos / sin * v, p["v"].score),
         "x_0 from score": ((noisy + sin**2 * score) / cos, clean),
         "ε from score": (-sin * score, eps), "v from score": (-sin / cos * (noisy + score), v)}
for name, (typed, known) in table.items():
    claim("4.45", typed, known, note=f"table: {name}")
fact("the angle in degrees, t = 1, 100, 400, 1000",
     [math.degrees(math.acos(alpha_bar[t].sqrt())) for t in (1, 100, 400, 1000)])

# %% [markdown]
# **Equal on paper, not in practice.** A network is off by some error, and an affine map passes errors on, multiplied by its factor. Read off the table, with $\Delta$ before a quantity for its error:
#
# $$
# \begin{aligned}
# |\Delta x_0|&=\frac{\sqrt{1-\bar\alpha_t}}{\sqrt{\bar\alpha_t}}\;|\Delta\varepsilon| ,
# \qquad&
# |\Delta\varepsilon|&=\frac{\sqrt{\bar\alpha_t}}{\sqrt{1-\bar\alpha_t}}\;|\Delta x_0| ,\\
# |\Delta x_0|&=\sqrt{1-\bar\alpha_t}\;|\Delta v| ,
# \qquad&
# |\Delta\varepsilon|&=\sqrt{\bar\alpha_t}\;|\Delta v| .
# \end{aligned}
# \tag{4.47}
# $$
#
# Predicting $\varepsilon$ is harmless near the data and ruinous near pure noise: there "all of it is noise" is almost right, and the small error left is all that we learn of $x_0$. Predicting $x_0$ has the opposite fault. Only $v$ amplifies nothing, anywhere.

# %%
cosine = NoiseSchedule.cosine(T=1000)
at = torch.zeros(1, 1)
for name, chain in (("linear", schedule), ("cosine", cosine)):
    noise_of, signal_of = chain.one_minus_alpha_bar.sqrt(), chain.alpha_bar.sqrt()
    as_eps, as_x0, as_v = (GaussianDiffusion(chain, prediction=k) for k in ("eps", "x0", "v"))
    claim("4.47", noise_of[1000] / signal_of[1000], as_eps.predict(at + 1, at, 1000).x0.abs()[0, 0],
          note=f"{name}, ε to x_0 at t = T")
    claim("4.47", signal_of[1] / noise_of[1], as_x0.predict(at + 1, at, 1).eps.abs()[0, 0],
          note="x_0 to ε at t = 1")
    claim("4.47", noise_of[700], as_v.predict(at + 1, at, 700).x0.abs()[0, 0], note="v to x_0")
    claim("4.47", signal_of[700], as_v.predict(at + 1, at, 700).eps.abs()[0, 0], note="v to ε")
    fact(f"{name}: an error of 0.01 in ε at t = T, as an error in x_0",
         0.01 * noise_of[1000] / signal_of[1000])
    fact(f"{name}: an error of 0.01 in x_0 at t = 1, as an error in ε",
         0.01 * signal_of[1] / noise_of[1])
fact("cosine, one over the root of ᾱ_T", 1 / cosine.alpha_bar[1000].sqrt(), digits=5)

fig, ax = figure()
time = range(1, 1001)
for name, chain, style in (("linear", schedule, "-"), ("cosine", cosine, "--")):
    root_snr = chain.snr[1:].sqrt()
    for factor, colour, arrow in ((1 / root_snr, BLUE, r"\varepsilon\to x_0"),
                                  (root_snr, VERMILLION, r"x_0\to\varepsilon"),
                                  ((1 - chain.alpha_bar[1:]).sqrt(), GREEN, r"v\to x_0")):
        ax.semilogy(time, factor, style, color=colour, label=f"${arrow}$, {name}")
ax.set(xlabel="$t$", ylabel="error amplified by", ylim=(3e-3, 5e4))
ax.legend(ncols=2, fontsize=9, loc="upper center")
show(fig, """Amplification of an error against t, logarithmic. From epsilon to x_0 it rises from
0.01 at t = 1 to 157 at t = 1000 on the linear schedule, and shoots up to 20,000 in the cosine
schedule's last steps. From x_0 to epsilon it falls from about 100 to below 0.01. From v to x_0 it
stays below 1 everywhere.""")

# %% [markdown]
# *Which prediction is safe where?* The two curves that start or end high are the dangerous ones. On the cosine schedule, $\varepsilon$-prediction is hopeless at $t=T$: a network's error of one per cent makes $\hat x_0$ miss by hundreds.
#
# **Clipping.** Images live in $[-1,1]$, so an $\hat x_0$ outside can be cut back. After that, the old $\hat\varepsilon$ no longer belongs to the new $\hat x_0$: together they do not make $x_t$. So $\hat\varepsilon$ has to be **re-derived**,
#
# $$
# \hat\varepsilon_{\text{new}} \;=\; \frac{x_t-\sqrt{\bar\alpha_t}\;\operatorname{clip}(\hat x_0)}{\sqrt{1-\bar\alpha_t}} ,
# \tag{4.48}
# $$
#
# which `predict(…, clip=(-1, 1))` does. Code that clips $\hat x_0$ for one purpose and keeps the raw $\hat\varepsilon$ in (4.23) computes another mean. How different it can be:

# %%
t, s = 400, 320
raw = eps + 0.6                                                    # a poor prediction of the noise
clipped = diffusion.predict(raw, noisy, t, clip=(-1, 1))
claim("4.48", (noisy - cos * clipped.x0) / sin, clipped.eps)
claim("4.45", cos * clipped.x0 + sin * clipped.eps, noisy, note="clipped, and consistent")
ratio = alpha_bar[t] / alpha_bar[s]
stale = (noisy - (1 - ratio) / sin * raw) / ratio.sqrt()
right = diffusion.reverse(raw, noisy, t, s, clip=(-1, 1)).mean
fact("largest |x_0| predicted, before and after clipping",
     [diffusion.predict(raw, noisy, t).x0.abs().max(), clipped.x0.abs().max()])
fact("largest difference between the means with raw and with re-derived ε",
     (stale - right).abs().max())
fact("standard deviation of the step, for comparison", coefficients(t, s)[2].sqrt())


# %% [markdown]
# **Exercise 4.7** (2 points, 10 minutes, ●●○) — *Turn back.* A network predicts $v$. Write `from_v(x_t, v, alpha_bar_t)` that returns the pair $(x_0,\varepsilon)$.

# %%
def from_v(x_t, v, alpha_bar_t):
    """The pair (x_0, eps) that belongs to x_t and the velocity v."""
    raise NotImplementedError("your turn")


check("4.7", from_v)

# %% [markdown]
# **Exercise 4.8** (2 points, 10 minutes, ●○○) — *Your own conversion.* In `my_ddpm.py`, write `x0_from_eps(x_t, t, eps, alpha_bar)` that returns $x_0$ by (4.21), for an int $1\le t\le T$; `alpha_bar` is the tensor $\bar\alpha_0,\dots,\bar\alpha_T$.

# %%
check("4.8", "my_ddpm.x0_from_eps")

# %% [markdown]
# ## 4.13 A reverse step, and a first walk
#
# Everything is in place. A reverse step takes the posterior, and puts a prediction where $x_0$ was:
#
# $$
# \begin{aligned}
# p_\theta(x_s\mid x_t) &= \mathcal N\!\big(x_s;\;\mu_\theta(x_t,t),\;\sigma^2 I\big) , \\
# \mu_\theta \;=\; c_0\,\hat x_0+c_t\,x_t
# &= \frac{1}{\sqrt{\bar\alpha_{t\mid s}}}\Big(x_t-\frac{\beta_{t\mid s}}{\sqrt{1-\bar\alpha_t}}\,\hat\varepsilon\Big)
# = \big(c_0\sqrt{\bar\alpha_t}+c_t\big)\,x_t-c_0\sqrt{1-\bar\alpha_t}\;\hat v .
# \end{aligned}
# \tag{4.49}
# $$
#
# The three forms of the mean are (4.18), (4.23), and the first with $\hat x_0$ from (4.46); it depends on the network which one is at hand. The variance $\sigma^2$ is a choice: $\tilde\beta_{t\mid s}$, $\beta_{t\mid s}$, something between, or learned. If the prediction is the best one, $\hat x_0=\mathbb E[x_0\mid x_t]$, then the mean is
# exactly right, at any stride. For the posterior mean is linear in $x_0$, and averaging it over $x_0$ given $x_t$ is the tower property of expectations:
#
# $$
# c_0\,\mathbb E[x_0\mid x_t]+c_t\,x_t \;=\; \mathbb E\big[\,\mathbb E[x_s\mid x_t,x_0]\,\big|\,x_t\big] \;=\; \mathbb E[x_s\mid x_t] .
# \tag{4.50}
# $$
#
# So with a perfect denoiser a step has two errors left, its variance and its shape. Let us watch them at work. The oracle plays the perfect network: `mixture.denoiser(schedule)` is called as a network would be, with noisy points and their step numbers. Start from $\mathcal N(0,1)$, take all 1000 steps with the variance $\tilde\beta_t$, and data are *generated*: chapter 1
# showed that it can be done, and now every line of it is proved.

# %%
t, s, here = 400, 320, torch.linspace(-2.0, 2.0, 9)[:, None]
c_0, c_t, _ = coefficients(t, s)
claim("4.50", c_0 * mixture.posterior_mean(schedule, here, t) + c_t * here,
      mixture.reverse(schedule, here, t, s).mean, note="against the true conditional")
typed = (c_0 * cos + c_t) * here - c_0 * sin * mixture.v(schedule, here, t)
for prediction in ("eps", "x0", "v"):
    process = GaussianDiffusion(schedule, prediction=prediction)
    output = mixture.denoiser(schedule, prediction=prediction)(here, t)
    claim("4.49", typed, process.reverse(output, here, t, s).mean,
          note=f"network predicts {prediction}")


def generate(process, denoiser, steps, n, generator):
    """Walk n points from noise at steps[0] down to steps[-1] = 0."""
    x = torch.randn(n, 1, generator=generator)
    for t, s in pairwise(steps):
        step = process.reverse(denoiser(x, t), x, t, s)
        x = step.mean if s == 0 else step.sample(generator)        # no noise on the finished data
    return x


denoiser = mixture.denoiser(schedule)
thousand = range(1000, -1, -1)
samples = generate(diffusion, denoiser, thousand, 10_000, torch.Generator().manual_seed(2))
fact("share of samples in the left hump, and the truth",
     [(samples < -0.3).double().mean(), mixture.cdf(-0.3)], digits=2)
fact("standard deviation of samples, and the truth",
     [samples.std(), mixture.covariance[0, 0].sqrt()], digits=2)

# %% [markdown]
# Samples hide small errors in sampling noise: ten thousand draws give two digits. In one dimension we can do better and carry the *law* of the walk, by the rule of total probability. Where $x_t$ has the density $p_\theta(x_t)$, the next point has
#
# $$
# p_\theta(x_s) \;=\; \int p_\theta(x_s\mid x_t)\;p_\theta(x_t)\,dx_t ,
# \tag{4.51}
# $$
#
# on a grid a matrix times a vector. The last step takes the mean, an increasing function of $x_t$ (the cell asserts it), so it carries the distribution function along ([toolbox, T.9](A_toolbox.ipynb#T.9-Change-of-variables)). As the distance from the data take the area between the two distribution functions, $W_1$ of [section 1.4](01_a_model_is_a_distribution.ipynb#1.4-From-finitely-many-draws): it is the least average distance
# by which mass would have to be moved to turn one law into the other. No sample is drawn. We do this for fewer and fewer steps, and for three variances.

# %%
axis = torch.linspace(-5.0, 5.0, 601)[:, None]


def law_of_walk(count, choice):
    """The generated data y(x) for each last point x on the axis, and the density of x."""
    steps = [*schedule.steps(count, "trailing").tolist()[::-1], 0]
    process = GaussianDiffusion(schedule, variance="beta" if choice == "beta" else "posterior")
    density = normal(axis[:, 0], 0.0, 1.0)                                     # the law of x_T
    for t, s in pairwise(steps):
        step = process.reverse(denoiser(axis, t), axis, t, s)
        if s > 0:
            variance = step.variance
            if choice == "best":
                variance = average_variance(mixture, t, s, places=401)
            density = torch.trapezoid(normal(axis, step.mean.T, variance) * density, axis[:, 0])
    return step.mean[:, 0], density


def distance(y, density, law=mixture):
    """W1 between a law of the axis, carried to the points y, and the given one."""
    assert (y.diff() > 0).all()
    below = torch.cat([torch.zeros(1), torch.cumulative_trapezoid(density, axis[:, 0])])
    return torch.trapezoid((below - law.cdf(y)).abs(), y)


def deviation(y, density):
    """Standard deviation of the same law."""
    first, second = (torch.trapezoid(y**k * density, axis[:, 0]) for k in (1, 2))
    return (second - first**2).sqrt()


y, density = law_of_walk(10, "posterior")
ten = [*schedule.steps(10, "trailing").tolist()[::-1], 0]
drawn = generate(diffusion, denoiser, ten, many, torch.Generator().manual_seed(3)) ** 2
claim("4.51", torch.trapezoid(y**2 * density, axis[:, 0]), drawn.mean(),
      standard_error=drawn.std() / many**0.5, note="second moment, against a million walks")

counts = (10, 20, 40, 80, 160)
laws = {choice: {n: law_of_walk(n, choice) for n in counts}
        for choice in ("posterior", "beta", "best")}
away = {choice: torch.stack([distance(*walk) for walk in found.values()])
        for choice, found in laws.items()}
for choice, found in away.items():
    fact(f"W1 after 10, 20, 40, 80, 160 steps, {choice}", found, digits=2)
fact("factor from 80 to 160 steps, best variance", away["best"][3] / away["best"][4], digits=2)
for n in (10, 20):
    one_left = mixture.marginal(schedule, int(schedule.steps(n, "trailing")[0]))   # true law there
    fact(f"{n} steps, W1 with the last one still to take: beta, best",
         [distance(axis[:, 0], laws[k][n][1], one_left) for k in ("beta", "best")], digits=2)
    fact("    standard deviation there: beta, best, truth",
         [*(deviation(axis[:, 0], laws[k][n][1]) for k in ("beta", "best")),
          one_left.covariance[0, 0].sqrt()], digits=2)
    fact("    and at the end: beta, best, data",
         [*(deviation(*laws[k][n]) for k in ("beta", "best")),
          mixture.covariance[0, 0].sqrt()], digits=2)

fig, (left, right) = figure(1, 2)
plot_samples(left, samples, (-1.7, 1.7), bins=70, label="1000 steps, drawn")
plot_density(left, mixture, (-1.7, 1.7), color=BLUE, label="data")
slope = torch.gradient(y, spacing=(axis[:, 0],))[0]
left.plot(y, density / slope, color=ORANGE, label=r"10 steps, $\tilde\beta$")               # (T.32)
left.set(xlabel="$x_0$", ylabel="density", xlim=(-1.7, 1.7), ylim=(0, 2.9))
left.legend(fontsize=9, loc="upper right")
fact("highest density: ten steps, data",
     [(density / slope).max(), mixture.log_prob(grid).exp().max()], digits=2)
names = {"posterior": r"$\tilde\beta$", "beta": r"$\beta$", "best": r"$\sigma_*^2$"}
for (choice, found), colour in zip(away.items(), (PURPLE, VERMILLION, GREEN), strict=True):
    right.loglog(counts, found, "o-", ms=4, color=colour, label=names[choice])
right.loglog(counts, 0.6 / torch.tensor(counts), "--", color=GREY, lw=1, label="slope −1")
right.set(xlabel="number of steps", ylabel="$W_1$ to the data")
right.legend()
show(fig, """Left, the data's two humps; a histogram of samples from 1000 steps covers them. The
density after ten steps has a spike at the left hump, twice as high as the data's, a right hump
that is too narrow, and too much in between. Right, W1 against the number of steps, on logarithmic
axes: all three variances fall; the posterior variance is worst throughout, the
best variance follows a line of slope -1, beta is slightly better at 10 and 20 steps.""")

# %% [markdown]
# *Does it generate data?* With a thousand steps, yes: the histogram lies on the true density. With ten steps, roughly. The last of these ten goes from $t=100$ to the mean $\mathbb E[x_0\mid x_{100}]$, which squeezes each hump; and the long Gaussian steps before it have left mass between the humps.
# On the right, with the best variance, the distance falls like one over the number of steps: half the error for twice the work. The reason is that of (4.40): at a given $x_t$ the one variance is off by a share of size $\beta$, so by an amount of size $\beta^2$. With $S$ steps $\beta$ is of size $1/S$, and $S$ amounts of size $1/S^2$ add up to $1/S$.
#
# Two warnings. *Best in each step is not best at the end.* With ten and twenty steps $\beta$ ends nearer to the data than $\sigma_*^2$, although by (4.28) each of its steps, taken from the true law of $x_t$, is the worse one. The last lines that the cell printed show how. With one step still to take, the walk with $\sigma_*^2$ is ahead, a little too narrow; that with $\beta$ is too wide.
# The last step takes the mean, which narrows the law. Both walks end too narrow, that with $\beta$ less so. Two errors of opposite sign cancel in part, and with more steps, where the last one narrows less, $\beta$ loses its advantage. *And this is a perfect denoiser.* A trained one adds errors of its own, which chapter 7 measures.

# %% [markdown]
# ## 4.14 What we have
#
# | equation | what it says | in `ddpm_lite` | elsewhere |
# |---|---|---|---|
# | (4.5) | the posterior from three known Gaussians, by the Markov property | | DDPM, section 2 |
# | (4.10) | its variance $\tilde\beta_t$ | `NoiseSchedule.posterior_variance` | DDPM Eq. 7 |
# | (4.12), (4.13) | its mean; it is a Gaussian | `GaussianDiffusion.posterior` | DDPM Eqs. 6, 7 |
# | (4.18) | the same for any $s<t$ | `posterior(x_t, x0, t, s)` | |
# | (4.21) | $x_0$ from $x_t$ and $\varepsilon$ | `GaussianDiffusion.predict` | DDPM Eq. 9 (its argument) |
# | (4.23) | the mean from $\varepsilon$ | `GaussianDiffusion.reverse` | DDPM Eq. 11 |
# | (4.29), (4.32), (4.35) | the best variance, and its bounds | `oracle`: `reverse`, `eps` | Analytic-DPM |
# | (4.37), (4.39), (4.40) | when the step back is Gaussian, and how nearly | `oracle`: `reverse` | |
# | (4.43), (4.44) | score, $\mathbb E[x_0\mid x_t]$ and $\mathbb E[\varepsilon\mid x_t]$ are one | `Prediction.score`; `oracle`: `score` | Tweedie's formula |
# | (4.45), (4.46) | velocity, and back | `Prediction.v`, `GaussianDiffusion.predict` | Salimans and Ho 2022 |
# | (4.49) | the reverse step | `GaussianDiffusion.reverse` | DDPM Eqs. 1, 11 |
#
# What we do not have is a denoiser that is no oracle. Chapter 5 derives the loss that makes a network into one.

# %%
progress("4")

# %% [markdown]
# ## 4.15 History and further reading
#
# - Jascha Sohl-Dickstein and others, *Deep unsupervised learning using nonequilibrium thermodynamics* ([1503.03585](https://arxiv.org/abs/1503.03585), 2015): the idea of a chain that destroys data in small steps, so that each step can be undone by one of the same form.
# - Jonathan Ho, Ajay Jain and Pieter Abbeel, *Denoising diffusion probabilistic models* ([2006.11239](https://arxiv.org/abs/2006.11239), 2020): the posterior in Eqs. 6 and 7, the mean from $\varepsilon$ in Eq. 11. The paper tries $\sigma^2=\beta_t$ and $\sigma^2=\tilde\beta_t$, and names the data for which each is optimal: $\mathcal N(0,I)$ and a single point.
#   It calls them the extremes for data of unit variance per coordinate; section 4.9 has shown what happens without this condition.
# - Alex Nichol and Prafulla Dhariwal, *Improved denoising diffusion probabilistic models* ([2102.09672](https://arxiv.org/abs/2102.09672), 2021): a network learns the variance, between $\tilde\beta_t$ and $\beta_t$ on a logarithmic scale.
# - Fan Bao, Chongxuan Li, Jun Zhu and Bo Zhang, *Analytic-DPM* ([2201.06503](https://arxiv.org/abs/2201.06503), 2022): the optimal variance as an expectation of the score, with bounds, estimated from a trained network; our (4.32) says the same with the noise predictor's error.
# - Herbert Robbins reported Tweedie's formula in 1956; Bradley Efron, *Tweedie's formula and selection bias* (2011), tells the story and what statisticians use it for.
# - Pascal Vincent, *A connection between score matching and denoising autoencoders* (Neural Computation 23(7), 2011): whoever trains a denoiser learns a score.
# - Tim Salimans and Jonathan Ho, *Progressive distillation for fast sampling of diffusion models* ([2202.00512](https://arxiv.org/abs/2202.00512), 2022): the velocity $v$.

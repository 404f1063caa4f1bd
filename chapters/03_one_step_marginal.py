# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3 The one-step marginal

# %% tags=["hide-input"]
import math
from time import perf_counter

import numpy as np
import scipy.stats
import sympy
import torch

from ddpm_lite import GaussianDiffusion, NoiseSchedule
from ddpm_lite.claims import claim, fact
from ddpm_lite.data import digits
from ddpm_lite.exercises import check, hint, progress, solution  # noqa: F401
from ddpm_lite.oracle import FiniteData, GaussianMixture
from ddpm_lite.plotting import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    VERMILLION,
    figure,
    plot_density,
    plot_samples,
    show,
    show_images,
    time_colours,
    use_book_style,
)

use_book_style()
torch.set_default_dtype(torch.float64)             # every number in this chapter is float64


def normal(x, m, V):
    """The one-dimensional Gaussian density with mean m and variance V: (T.1)."""
    return torch.exp(-((x - m) ** 2) / (2 * V)) / (2 * math.pi * V) ** 0.5


def draw(shape, generator):
    """Independent standard normal numbers."""
    return torch.randn(shape, generator=generator)


# %% tags=["hide-input"]
alpha = torch.cat([torch.ones(1), 1 - torch.linspace(1e-4, 0.02, 1000)])    # DDPM's chain, T = 1000
alpha_bar = alpha.cumprod(0)

g = torch.Generator().manual_seed(0)
x = torch.full((20_000,), 2.0)                     # 20,000 walkers, all at x_0 = 2
paths, walked = [x[:30]], {}
for t in range(1, 1001):
    x = alpha[t].sqrt() * x + (1 - alpha[t]).sqrt() * draw(x.shape, g)      # one step of chapter 2
    paths.append(x[:30])
    if t in (50, 200, 700):
        walked[t] = x

mean, deviation = 2 * alpha_bar.sqrt(), (1 - alpha_bar).sqrt()            # what this chapter proves
fig, (left, right) = figure(1, 2)
left.plot(torch.stack(paths), color=GREY, lw=0.3)
left.plot(mean, color=BLUE)
left.plot(mean + 2 * deviation, color=BLUE, ls="--")
left.plot(mean - 2 * deviation, color=BLUE, ls="--")
left.set(xlabel="$t$", ylabel="$x_t$", title="30 walks, and a formula")
line = torch.linspace(-4, 4, 401)
for (t, x), colour in zip(walked.items(), (VERMILLION, GREEN, BLUE), strict=True):
    plot_samples(right, x, (-4, 4), bins=80, color=colour)
    right.plot(line, normal(line, mean[t], deviation[t] ** 2), color=colour, label=f"$t={t}$")
    assert abs(x.mean() - mean[t]) < 5 * deviation[t] / 20_000**0.5         # as the picture says
    assert abs(x.var() / deviation[t] ** 2 - 1) < 5 * (2 / 20_000) ** 0.5
right.set(xlabel="$x_t$", ylabel="density", title="walked (filled), formula (lines)")
right.legend()
show(fig, """Left: thirty ragged paths start at 2 and spread out around zero. A curve for the
mean and two dashed curves at plus and minus two standard deviations, computed by formula,
enclose almost all of them. Right: histograms of 20,000 walked values at t = 50, 200 and 700;
each fills the bell curve that the formula draws.""")

# %% [markdown]
# *Do walkers who took up to 700 steps end up where one line of arithmetic says?* They do, not only on average (left, the
# solid line; the dashed ones are two standard deviations away) but as a whole distribution: the histograms fill the bells. This
# chapter proves it.
#
# **You will**
# - derive the law of $x_t$ given $x_0$ from the chain, every line, with a noise of its own for every step;
# - prove it again by writing down the weight that each single noise has in $x_t$;
# - jump between *any* two times in one call, and say when two such jumps make a path and when they do not;
# - predict mean and covariance of $x_t$ for any data, and check them on real digits;
# - recognise half a dozen slips by the number that they get wrong.
#
# **You need** the chain of [chapter 2, section 2.1](02_forward_process.ipynb#2.1-One-step), and
# [sums of independent Gaussians](A_toolbox.ipynb#T.3-Sums-of-independent-Gaussians) from the toolbox; the letters are
# those of the [notation page](N_notation.ipynb).
#
# **Time**: 60 minutes to read, 74 for eight exercises, under a minute to run.

# %% [markdown]
# ## 3.1 Seven hundred steps, or one?
#
# Chapter 2 left us with a chain, and with a complaint. From a clean image $x_0$ the chain makes $x_1, x_2, \dots, x_T$, one
# after the other. We repeat its step (2.2), together with what it assumes about the noises:
#
# $$
# x_t = \sqrt{\alpha_t}\;x_{t-1} + \sqrt{1-\alpha_t}\;\varepsilon_t ,
# \qquad \varepsilon_1,\dots,\varepsilon_T \sim \mathcal N(0, I)\ \text{independent of one another and of } x_0 .
# \tag{3.1}
# $$
#
# Here $\alpha_t = 1-\beta_t$, with $0<\beta_t<1$, is the share of the variance that step $t$ lets through. $x_t$ and $\varepsilon_t$ have the shape of
# $x_0$: one number per pixel. Nothing in (3.1) mixes pixels, so we may think of one number at a time.
#
# A network is to be trained at *every* noise level. Its loss is an average over $t = 1,\dots,T$, far too many terms to
# evaluate for each image. So each image of a batch gets one random $t$, and the network sees that one $x_t$. (Section 3.12
# shows that this is fair.) Suppose the draw is $t = 700$. Equation (3.1) tells us to draw 700 noise images, and to throw away
# the 699 images on the way.
#
# What does that cost? Count random numbers, which every machine counts alike. A walk to $t$ draws $t$ numbers per pixel. With $t$
# uniform on $1,\dots,T$ and $D$ pixels,
#
# $$
# \mathbb E[\text{numbers drawn by walking}] = D\cdot\frac1T\sum_{t=1}^{T} t = \frac{T+1}{2}\,D ,
# \qquad\text{against } D \text{ for a single step.}
# \tag{3.2}
# $$
#
# The cell holds a meter to the walk. Its chain will stay with us: six steps, so strong that every mistake shows.

# %%
betas = [0.08, 0.15, 0.22, 0.30, 0.45, 0.60]                     # β_1 … β_6
a = torch.tensor([1.0] + [1 - beta for beta in betas])           # α_0 … α_6, by hand
short = NoiseSchedule.from_betas(betas)                          # the same, for the library
chain = GaussianDiffusion(short)


def walk(x0, alpha, noises):
    """x_t from x_0 by (3.1), one noise per step: noises[0] is ε_1. There are t of them."""
    x = x0
    for k, noise in enumerate(noises, start=1):
        x = alpha[k].sqrt() * x + (1 - alpha[k]).sqrt() * noise
    return x


def fresh(t, shape, generator):
    """ε_1 … ε_t, drawn one at a time, when they are needed."""
    for _ in range(t):
        yield draw(shape, generator)


x_start, noise = torch.tensor([[1.5]]), draw((1, 1), g)          # one pixel, one step
first = chain.transition(x_start, 1, 0)
claim("3.1", walk(x_start, a, [noise]), first.mean + first.variance.sqrt() * noise, tol=1e-12)

drawn = 0


def metered(noises):
    """The same noises, with a meter that counts the numbers in them."""
    global drawn
    for noise in noises:
        drawn += noise.numel()
        yield noise


for t in range(1, 7):                                            # each t once: the average over t
    walk(torch.zeros(1, 64), a, metered(fresh(t, (1, 64), g)))
claim("3.2", drawn / 6, (6 + 1) / 2 * 64)

images, _ = digits("train")
fact("digits to train on", len(images))
fact("random numbers for one pass over them: one step each", images.numel())
fact("the same, walking DDPM's chain, on average", images.numel() * 1001 // 2)

# %% [markdown]
# Multiplications go the same way, two per pixel and step. The walk costs $O(t)$; a shortcut, if there is one, costs $O(1)$. At
# $T = 1000$ that is a factor of 500, and the network has not done anything yet. The next cell times both ways at $t=700$. It
# is the only cell of this chapter whose output differs from machine to machine.

# %% tags=["nbval-ignore-output"]
batch = torch.zeros(128, 64)
start = perf_counter()
walk(batch, alpha, fresh(700, batch.shape, g))
middle = perf_counter()
walk(batch, alpha, fresh(1, batch.shape, g))
end = perf_counter()
print(f"700 steps: {1e3 * (middle - start):.1f} ms, one step: {1e3 * (end - middle):.2f} ms")

# %% [markdown]
# ## 3.2 Adding two independent noises
#
# The chapter rests on one fact about Gaussians. Let $\varepsilon$ and $\varepsilon'$ be *independent* standard Gaussians and $a, b$
# two numbers. Then
#
# $$
# a\,\varepsilon + b\,\varepsilon' \;\sim\; \mathcal N\big(0,\;(a^2+b^2)\,I\big) .
# \tag{3.3}
# $$
#
# This says two things. *Variances add*: that holds for any two independent variables. And *the sum is again Gaussian*: that is
# special. The proof is in the [toolbox, T.3](A_toolbox.ipynb#T.3-Sums-of-independent-Gaussians); (3.3) is its (T.12) with
# means $0$ and variances $1$. Here we only look at what it says. For the sum to equal $z$, the first part may be any $y$, and the
# second must then supply $z-y$. Independence lets us multiply the two densities, and every $y$ counts:
#
# $$
# p_{\text{sum}}(z) = \int \mathcal N(y;\,0,\,a^2)\;\mathcal N(z-y;\,0,\,b^2)\;dy .
# \tag{3.4}
# $$
#
# This is the *convolution* of the two densities. A computer can do the integral without knowing anything about Gaussians, as
# a sum over a fine grid. For smooth densities that vanish at the ends of the grid, such a sum is exact to many digits. We check
# (3.3) also by drawing; how large a standard error to expect is in [T.11](A_toolbox.ipynb#T.11-Monte-Carlo-and-its-standard-error).

# %%
width = 0.01
grid = torch.arange(-800, 801) * width                           # from −8 to 8


def convolve(p, q):
    """The density of a sum of independent variables, from theirs on the grid: (3.4)."""
    return torch.from_numpy(np.convolve(p.numpy(), q.numpy(), mode="same")) * width


A, B = 0.9, 0.5                                                  # the a and b of (3.3)
by_integral = convolve(normal(grid, 0.0, A**2), normal(grid, 0.0, B**2))
claim("3.4", by_integral, normal(grid, 0.0, A**2 + B**2), note="the law that (3.3) names")

many = 2_000_000
total = A * draw(many, g) + B * draw(many, g)
claim("3.3", A**2 + B**2, total.var(), standard_error=(A**2 + B**2) * (2 / many) ** 0.5)
fact("root of the added variances", math.hypot(A, B))
fact("added standard deviations", A + B)

# %%
box_A = (grid.abs() <= A).double() / (2 * A)                     # the same game with flat noise
box_B = (grid.abs() <= B).double() / (2 * B)
fig, axes = figure(1, 2)
for ax, one, other, name in (
    (axes[0], normal(grid, 0.0, A**2), normal(grid, 0.0, B**2), "Gaussian + Gaussian"),
    (axes[1], box_A, box_B, "uniform + uniform"),
):
    ax.plot(grid, one, color=BLUE, label="one")
    ax.plot(grid, other, color=VERMILLION, label="the other")
    ax.plot(grid, convolve(one, other), color=GREEN, label="their sum, (3.4)")
    ax.set(xlim=(-3.2, 3.2), xlabel="value", ylabel="density", title=name)
few = grid[::20]
dots = axes[0].plot(few, normal(few, 0.0, A**2 + B**2), ".", color=BLACK, label="(3.3)")
axes[0].legend(handles=dots, loc="upper left")
axes[1].legend(fontsize=8, handlelength=1, loc="upper right")
show(fig, """Left: two Gaussian densities and the density of their sum, a wider Gaussian; dots
computed from the formula lie on it. Right: two uniform densities, boxes of different width; the
density of their sum is a trapezium, no longer a box.""")

# %% [markdown]
# *Does a sum keep the shape of its parts?* For Gaussians yes: the dots of (3.3) lie on the curve of (3.4). For uniform noise no: a box
# plus a box is a trapezium, a third box bends it again, and after 700 steps nobody wants to write the law down. Gaussian
# noise is not chosen because it is realistic. It is chosen because sums of it stay simple.
#
# Mind the word *independent*. With one and the same noise, $a\,\varepsilon + b\,\varepsilon = (a+b)\,\varepsilon$ has the standard deviation
# $a+b$ and not $\sqrt{a^2+b^2}$. The two numbers printed above are not close, and we shall meet the difference again.

# %% [markdown]
# ## 3.3 Two steps make one
#
# Take the last two steps on the way to $x_t$, for some $t \ge 2$. They are (3.1) at $t-1$ and at $t$, with *two* noises,
# $\varepsilon_{t-1}$ and $\varepsilon_t$. Put the first into the second, and multiply out:
#
# $$
# \begin{aligned}
# x_t &= \sqrt{\alpha_t}\;x_{t-1} + \sqrt{1-\alpha_t}\;\varepsilon_t\\
#     &= \sqrt{\alpha_t}\,\Big(\sqrt{\alpha_{t-1}}\;x_{t-2} + \sqrt{1-\alpha_{t-1}}\;\varepsilon_{t-1}\Big) + \sqrt{1-\alpha_t}\;\varepsilon_t\\
#     &= \sqrt{\alpha_t\,\alpha_{t-1}}\;x_{t-2}
#        + \underbrace{\sqrt{\alpha_t(1-\alpha_{t-1})}\;\varepsilon_{t-1}}_{\text{older noise, shrunk}}
#        + \underbrace{\sqrt{1-\alpha_t}\;\varepsilon_t}_{\text{newest noise}} .
# \end{aligned}
# \tag{3.5}
# $$
#
# So far this is algebra, true draw by draw. Now probability. The noises enter through a weighted sum, with weights
# $a = \sqrt{\alpha_t(1-\alpha_{t-1})}$ and $b = \sqrt{1-\alpha_t}$. They are independent by (3.1), so (3.3) applies: the
# sum is Gaussian with mean $0$ and variance
#
# $$
# a^2 + b^2 = \alpha_t(1-\alpha_{t-1}) + (1-\alpha_t)
#  = \alpha_t - \alpha_t\alpha_{t-1} + 1 - \alpha_t
#  = 1-\alpha_t\alpha_{t-1} .
# \tag{3.6}
# $$
#
# The lone $\alpha_t$ came in twice, with opposite signs, and is gone. In words: the second step lets only the share $\alpha_t$ of the
# older noise's variance through, and what it adds, $1-\alpha_t$, is just enough to make the total one minus a product. Hold
# $x_{t-2}$ fixed. It is made of $x_0$ and earlier noises, and (3.1) makes the two noises independent of all those. So holding it
# does not disturb them, and
#
# $$
# x_t \mid x_{t-2} \;\sim\; \mathcal N\big(\sqrt{\alpha_t\alpha_{t-1}}\;x_{t-2},\;(1-\alpha_t\alpha_{t-1})\,I\big) .
# \tag{3.7}
# $$
#
# Two steps are one step of the same kind, with $\alpha_t\alpha_{t-1}$ in the place of $\alpha_t$. We check (3.5) draw by draw, (3.6) by
# computer algebra, and (3.7) by an integral over every value that $x_{t-1}$ may take on the way. The other side of the last
# claim is the library's `transition(x_s, t, s)`, which knows nothing of this derivation: it works from a table of logarithms.

# %%
t = 4                                                            # x_start is some fixed x_{t−2}
older, newest = draw((1, 1), g), draw((1, 1), g)                 # two steps, two noises
halfway = a[t - 1].sqrt() * x_start + (1 - a[t - 1]).sqrt() * older
walked = a[t].sqrt() * halfway + (1 - a[t]).sqrt() * newest
weight_older, weight_newest = (a[t] * (1 - a[t - 1])).sqrt(), (1 - a[t]).sqrt()
shrunk = (a[t] * a[t - 1]).sqrt() * x_start
claim("3.5", shrunk + weight_older * older + weight_newest * newest, walked, tol=1e-12)

now, before = sympy.symbols("alpha_t alpha_{t-1}", positive=True)
claim("3.6", now * (1 - before) + (1 - now), 1 - now * before)

two_steps = chain.transition(x_start, t, t - 2)
claim("3.6", weight_older**2 + weight_newest**2, two_steps.variance, tol=1e-12)
column = grid[:, None]                                           # x_{t−1} runs over the rows …
arrive = normal(column, a[t - 1].sqrt() * x_start, 1 - a[t - 1])
leave = normal(grid, a[t].sqrt() * column, 1 - a[t])             # … and x_t over the columns
claim("3.7", (arrive * leave).sum(0) * width, two_steps.log_prob(column).exp(),
      note="integrated over x_{t−1}")
fact("share of x_2's variance that is left in x_4", a[t] * a[t - 1])

# %% [markdown]
# > **Pitfall: one letter for two noises.** Some lecture notes write both steps with the same $\varepsilon$. Read literally, (3.5)
# > then says $x_t = \sqrt{\alpha_t\alpha_{t-1}}\,x_{t-2} + (a+b)\,\varepsilon$, and *standard deviations* add. Usually the next line adds
# > variances all the same, and a right result follows from a wrong line. Code has no such luck: a noise that is
# > drawn once, above the loop, *is* shared. The mean stays right, and the pictures still look like noise. Only the size of the
# > noise gives it away.

# %%
right_deviation = two_steps.variance.sqrt().item()
fact("standard deviation after two steps, two noises", right_deviation)
fact("standard deviation after two steps, one shared noise", weight_older + weight_newest)
fact("too noisy by the factor", (weight_older + weight_newest) / right_deviation)

# %% [markdown]
# **Exercise 3.1** (1 point, 3 minutes, ●○○) — *Predict the number.* A chain has $\alpha_{t-1} = 0.8$ and $\alpha_t = 0.5$, and both
# noises are fresh. What is the variance of $x_t$ given $x_{t-2}$? Work it out on paper and set `answer` to the number.

# %%
answer = None

check("3.1", answer)

# %% [markdown]
# ## 3.4 Three steps, and the pattern
#
# For a third step nothing new has to be multiplied out. Start at $x_{t-3}$. By (3.7), the two steps to $x_{t-1}$ are *one* step with
# the share $\alpha_{t-1}\alpha_{t-2}$. Let the step from $x_{t-1}$ to $x_t$ be the second step, and use (3.7) again:
#
# $$
# x_t \mid x_{t-3} \;\sim\; \mathcal N\big(\sqrt{\alpha_t\,\alpha_{t-1}\,\alpha_{t-2}}\;x_{t-3},\;(1-\alpha_t\,\alpha_{t-1}\,\alpha_{t-2})\,I\big) .
# \tag{3.8}
# $$
#
# May we use (3.7) like that? It needed two *independent* noises. The combined noise of the first two steps is made of $\varepsilon_{t-2}$
# and $\varepsilon_{t-1}$; the third step's $\varepsilon_t$ is independent of both. So yes.
#
# The pattern is visible: only the product counts. It deserves a name. With $k$ for a step between $1$ and $t$,
#
# $$
# \bar\alpha_t = \prod_{k=1}^{t}\alpha_k ,\qquad \bar\alpha_0 = 1 .
# \tag{3.9}
# $$
#
# The product ends at $t$, the step we want, and its factors are $\alpha_k$, each step's own. $\bar\alpha_0 = 1$ is the empty product:
# nothing has happened yet.

# %%
three_steps = chain.transition(x_start, 3, 0)
noise_variance = 0.0
for k in (1, 2, 3):                                              # each step shrinks it, then adds
    noise_variance = a[k] * noise_variance + (1 - a[k])
claim("3.8", (a[3] * a[2] * a[1]).sqrt() * x_start, three_steps.mean, tol=1e-12)
claim("3.8", noise_variance, three_steps.variance, tol=1e-12)

a_bar = torch.tensor([math.prod(a[1 : t + 1].tolist()) for t in range(7)])
claim("3.9", a_bar, short.alpha_bar, relation="definition", tol=1e-12)
fact("ᾱ_0 … ᾱ_6 of the short chain", a_bar)


# %% [markdown]
# **Exercise 3.2** (2 points, 8 minutes, ●○○) — *Any number of steps.* `alphas` is a tensor with the shares of two or more steps,
# in the order in which they are taken. Write `compose(alphas)` that returns the pair (factor on the starting point, variance of the
# noise) of all these steps together.

# %%
def compose(alphas):
    """The factor and the noise variance of several steps taken as one."""
    raise NotImplementedError("your turn")


check("3.2", compose)

# %% [markdown]
# ## 3.5 The induction
#
# "And so on" is not a proof. Here is what we want to show for one $t$; call it $P(t)$. For every fixed $x_0$,
#
# $$
# P(t):\qquad q(x_t \mid x_0) = \mathcal N\big(x_t;\;\sqrt{\bar\alpha_t}\;x_0,\;(1-\bar\alpha_t)\,I\big) .
# \tag{3.10}
# $$
#
# We show $P(1)$, and then, for $t = 2,\dots,T$, that $P(t-1)$ implies $P(t)$. Together these give $P(t)$ for every $t$.
#
# **Base case.** For $t=1$ equation (3.1) reads $x_1 = \sqrt{\alpha_1}\,x_0 + \sqrt{1-\alpha_1}\,\varepsilon_1$, and $\bar\alpha_1 = \alpha_1$ by
# (3.9). With $x_0$ fixed, that is $P(1)$.

# %%
law_1 = chain.marginal(x_start, 1)                               # now x_start is some x_0
claim("3.10", normal(grid, a[1].sqrt() * x_start, 1 - a[1]).flatten(), law_1.log_prob(column).exp(),
      note="P(1)")

# %% [markdown]
# **Step.** Let $t \ge 2$ and suppose that $P(t-1)$ holds. Give the noise in $x_{t-1}$ a name, by *defining*
#
# $$
# \bar\varepsilon_{t-1} = \frac{x_{t-1} - \sqrt{\bar\alpha_{t-1}}\;x_0}{\sqrt{1-\bar\alpha_{t-1}}} ,
# \qquad\text{so that}\qquad
# x_{t-1} = \sqrt{\bar\alpha_{t-1}}\;x_0 + \sqrt{1-\bar\alpha_{t-1}}\;\bar\varepsilon_{t-1} .
# \tag{3.11}
# $$
#
# The second half is the first, solved for $x_{t-1}$: it is true draw by draw, not only in distribution. (We may divide, because
# $\bar\alpha_{t-1} \le \alpha_1 < 1$.) What $P(t-1)$ adds is the *law* of $\bar\varepsilon_{t-1}$. Take a Gaussian, subtract its mean and divide
# by its standard deviation, and a standard Gaussian is left ([T.2](A_toolbox.ipynb#T.2-Affine-maps)). So
# $\bar\varepsilon_{t-1} \sim \mathcal N(0, I)$. Now put (3.11) into (3.1):
#
# $$
# \begin{aligned}
# x_t &= \sqrt{\alpha_t}\;x_{t-1} + \sqrt{1-\alpha_t}\;\varepsilon_t\\
#     &= \sqrt{\alpha_t\,\bar\alpha_{t-1}}\;x_0
#        + \sqrt{\alpha_t(1-\bar\alpha_{t-1})}\;\bar\varepsilon_{t-1} + \sqrt{1-\alpha_t}\;\varepsilon_t .
# \end{aligned}
# \tag{3.12}
# $$
#
# *Here independence is needed*, and here is where it comes from. Unroll (3.1) down to $x_0$: $x_{t-1}$ is computed from $x_0$
# and $\varepsilon_1,\dots,\varepsilon_{t-1}$ and from nothing else. So is $\bar\varepsilon_{t-1}$, by (3.11). And (3.1) demands that $\varepsilon_t$ be
# independent of all of these. So $\bar\varepsilon_{t-1}$ and $\varepsilon_t$ are two independent standard Gaussians, (3.3) applies, and their sum
# in (3.12) is Gaussian with mean $0$ and variance
#
# $$
# \alpha_t(1-\bar\alpha_{t-1}) + (1-\alpha_t) = 1-\alpha_t\,\bar\alpha_{t-1} = 1-\bar\alpha_t .
# \tag{3.13}
# $$
#
# The first equality is (3.6) with $\bar\alpha_{t-1}$ for $\alpha_{t-1}$; the second is $\alpha_t\,\bar\alpha_{t-1} = \bar\alpha_t$, from (3.9), and the same
# product turns the factor on $x_0$ into $\sqrt{\bar\alpha_t}$. A fixed vector plus a Gaussian of mean $0$ is a Gaussian around that
# vector. This is $P(t)$. $\;\blacksquare$
#
# The machine can do this induction too. The loop below carries a *density* from step to step, by an integral, and compares it at
# every $t$ with the bell that $P(t)$ names. Then it looks at the step itself, on two million walks.

# %%
g = torch.Generator().manual_seed(5)
law = normal(grid, a[1].sqrt() * x_start, 1 - a[1]).flatten()
for t in range(2, 7):
    step = normal(grid, a[t].sqrt() * column, 1 - a[t])          # rows: x_{t−1}, columns: x_t
    law = (law[:, None] * step).sum(0) * width
    claim("3.10", law, chain.marginal(x_start, t).log_prob(column).exp(), note=f"P({t})")

t = 5
x0 = torch.full((many, 1), 1.5)
before = walk(x0, a, fresh(t - 1, x0.shape, g))
newest = draw(x0.shape, g)
after = a[t].sqrt() * before + (1 - a[t]).sqrt() * newest
combined = (before - a_bar[t - 1].sqrt() * x0) / (1 - a_bar[t - 1]).sqrt()
claim("3.11", combined.var(), 1.0, standard_error=(2 / many) ** 0.5, note="variance one")
claim("3.12", (a[t] * a_bar[t - 1]).sqrt() * x0 + (a[t] * (1 - a_bar[t - 1])).sqrt() * combined
      + (1 - a[t]).sqrt() * newest, after, tol=1e-12, note="walk by walk")
claim("3.12", (combined * newest).mean().abs(), 5 / many**0.5, relation="<=",
      note="the two noises: no correlation within 5 standard errors")
claim("3.13", a[1:] * (1 - a_bar[:-1]) + (1 - a[1:]),
      chain.marginal(torch.ones(6, 1), torch.arange(1, 7)).variance.flatten(), tol=1e-12)

# %% [markdown]
# With a noise instead of a law, the result is the equation that the rest of the book lives on:
#
# $$
# x_t = \sqrt{\bar\alpha_t}\;x_0 + \sqrt{1-\bar\alpha_t}\;\bar\varepsilon_t ,
# \qquad \bar\varepsilon_t \sim \mathcal N(0, I)\ \text{independent of } x_0 .
# \tag{3.14}
# $$
#
# Two remarks on how to read it. *Independent of $x_0$*: the proof held $x_0$ fixed and found the law $\mathcal N(0, I)$, whichever $x_0$ it was.
# A law that does not change with $x_0$ is what independence means. *What kind of equality*: if $\bar\varepsilon_t$ is the variable
# defined by (3.11) at time $t$, the two sides are equal draw by draw. If we draw a *fresh* $\bar\varepsilon_t$ instead, as training does, the right
# side is another random variable with the same law. That is all that training needs, and nothing is lost by saying it
# precisely: a sample is drawn *from* $q(x_t\mid x_0)$.
#
# In the library, (3.10) is `marginal(x0, t)` and (3.14) is `q_sample(x0, t, noise)`.

# %%
noise = draw(x0.shape, g)                                        # one fresh noise, not five
jumped = chain.q_sample(x0, t, noise)
claim("3.14", a_bar[t].sqrt() * x0 + (1 - a_bar[t]).sqrt() * noise, jumped, tol=1e-12)
variance = (1 - a_bar[t]).item()
claim("3.14", a_bar[t].sqrt() * 1.5, after.mean(), standard_error=(variance / many) ** 0.5,
      note="mean of the walks")
claim("3.14", variance, after.var(), standard_error=variance * (2 / many) ** 0.5,
      note="variance of the walks")

# %% [markdown]
# **Exercise 3.3** (3 points, 15 minutes, ●●○) — *Your own q_sample.* The next piece of the sampler that you build through the
# book. Open `my_ddpm.py` beside this notebook and fill in `q_sample(x0, t, noise, alpha_bar)`. It returns $x_t$ by (3.14). `t` is an int from
# $0$ to $T$, `noise` has the shape of `x0`, and `alpha_bar` is a tensor with $\bar\alpha_0,\dots,\bar\alpha_T$, like the one
# that your `alpha_bars` of exercise 2.4 makes.

# %%
check("3.3", "my_ddpm.q_sample")


# %% [markdown]
# ## 3.6 The weight of every noise
#
# The induction carries one combined noise along and forgets what it is made of. We can also keep every $\varepsilon_k$ apart. Noise
# $\varepsilon_k$ enters at step $k$ with the factor $\sqrt{1-\alpha_k}$. Each later step $j = k+1,\dots,t$ multiplies everything it finds by
# $\sqrt{\alpha_j}$. The same happens to $x_0$, from the first step on. So, draw by draw,
#
# $$
# x_t = \sqrt{\bar\alpha_t}\;x_0 + \sum_{k=1}^{t} c_{t,k}\;\varepsilon_k ,
# \tag{3.15}
# $$
#
# $$
# c_{t,k} = \sqrt{(1-\alpha_k)\prod_{j=k+1}^{t}\alpha_j}
#         = \sqrt{(1-\alpha_k)\,\frac{\bar\alpha_t}{\bar\alpha_k}} .
# \tag{3.16}
# $$
#
# For $k=t$ the product is empty, hence $1$. The second form holds because $\bar\alpha_t$ is $\bar\alpha_k$ times the factors
# $\alpha_{k+1},\dots,\alpha_t$. To check (3.16) without using it, ask automatic differentiation: walk DDPM's thousand steps, keep the noises, and take
# the derivative of $x_{1000}$ with respect to each of them.

# %%
def weights(t, alpha):
    """c_{t,1} … c_{t,t}: the product in (3.16) grows by one factor for each k further back."""
    result, later = [], torch.tensor(1.0)
    for k in range(t, 0, -1):
        result.append(((1 - alpha[k]) * later).sqrt())
        later = later * alpha[k]
    return torch.stack(result[::-1])


g = torch.Generator().manual_seed(6)
noises = draw((1000, 1, 1), g).requires_grad_()
x_end = walk(x_start, alpha, noises)
(derivative,) = torch.autograd.grad(x_end.sum(), noises)
c = weights(1000, alpha)
claim("3.16", c, derivative.flatten(), note="autograd through 1000 steps")
noises = noises.detach()
claim("3.15", alpha_bar[1000].sqrt() * x_start + (c[:, None, None] * noises).sum(0), x_end.detach())

# %% [markdown]
# Here is the *second proof* of the marginal, without induction on the law. The sum in (3.15) is a weighted sum of $t$ independent standard
# Gaussians. By (3.3), used $t-1$ times, it is Gaussian with mean $0$, and its variance is the sum of the squared weights. What is
# that sum? From $\bar\alpha_k = \alpha_k\,\bar\alpha_{k-1}$ we get $\alpha_k/\bar\alpha_k = 1/\bar\alpha_{k-1}$, and so
#
# $$
# c_{t,k}^2 = \bar\alpha_t\,\frac{1-\alpha_k}{\bar\alpha_k} = \bar\alpha_t\Big(\frac1{\bar\alpha_k} - \frac1{\bar\alpha_{k-1}}\Big) ,
# \qquad
# \sum_{k=1}^{t} c_{t,k}^2 = \bar\alpha_t\Big(\frac1{\bar\alpha_t} - \frac1{\bar\alpha_0}\Big) = 1-\bar\alpha_t .
# \tag{3.17}
# $$
#
# In the sum, each $1/\bar\alpha_k$ with $0<k<t$ appears twice: with plus from the term $k$, with minus from the term $k+1$. Only
# the two ends are left (the sum *telescopes*), and $\bar\alpha_0 = 1$. $\;\blacksquare$
#
# There is a way to see this at a glance. Divide (3.15) by $\sqrt{\bar\alpha_t}$. The $k$-th noise then has the variance
# $1/\bar\alpha_k - 1/\bar\alpha_{k-1}$, *which does not depend on $t$*. In units of the signal that is left, no noise is ever shrunk:
# $x_t/\sqrt{\bar\alpha_t}$ is $x_0$ plus an ordinary random walk. Its variance has grown to $1/\bar\alpha_t - 1 = (1-\bar\alpha_t)/\bar\alpha_t$ by time $t$,
# which is one over the *signal-to-noise ratio*
#
# $$
# \mathrm{SNR}_t = \frac{\bar\alpha_t}{1-\bar\alpha_t}
# \tag{3.18}
# $$
#
# of chapter 2: the variance that signal of variance one has in $x_t$, over the variance of the noise in $x_t$.

# %%
sums = torch.stack([(weights(t, a) ** 2).sum() for t in range(1, 7)])
claim("3.17", sums, short.one_minus_alpha_bar[1:], tol=1e-12)

p1, p2, p3, p4 = sympy.symbols("alpha_1:5", positive=True)       # four steps, by algebra
squares = [(1 - p1) * p2 * p3 * p4, (1 - p2) * p3 * p4, (1 - p3) * p4, 1 - p4]
claim("3.17", sum(squares), 1 - p1 * p2 * p3 * p4)

growth = torch.cumsum(1 / a_bar[1:] - 1 / a_bar[:-1], 0)         # the random walk's variance
claim("3.18", 1 / growth, short.snr[1:], relation="definition", tol=1e-12)

# %% [markdown]
# *Whose noise is in $x_t$?* If the data have variance one, $\bar\alpha_t$ and the squared weights are the shares of the variance of $x_t$.

# %%
fig, (left, right) = figure(1, 2)
bottom = a_bar.clone()
left.bar(range(7), bottom, color="white", edgecolor=BLACK, lw=0.8, label="$x_0$")
for k, colour in zip(range(1, 7), time_colours(6), strict=True):
    share = torch.tensor([0.0] * k + [weights(t, a)[k - 1].item() ** 2 for t in range(k, 7)])
    left.bar(range(7), share, bottom=bottom, color=colour, label=rf"$\varepsilon_{k}$")
    bottom = bottom + share
assert torch.allclose(bottom, torch.ones(7))                     # every bar ends at one
left.set(xlabel="$t$", ylabel="share of $x_t$'s variance", ylim=(0, 1.01), title="the short chain")
left.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
for t, colour in zip((200, 500, 700, 1000), time_colours(4), strict=True):
    share = weights(t, alpha) ** 2 / (1 - alpha_bar[t])
    right.plot(range(1, t + 1), share, color=colour, label=f"$t={t}$")
right.set(xlabel="step $k$", ylabel="share in $x_t$'s noise", ylim=(0, 0.026), title="DDPM's chain")
right.legend(fontsize=9, ncols=2, loc="upper left")
show(fig, """Left: stacked bars for t = 0 to 6, all of height one. The share of x_0 falls; each
new noise enters with a large share and is shrunk at every later step. Right: for t = 200, 500,
700 and 1000, the share of each step's noise. The later t is, the more the recent steps
dominate.""")

last_hundred = (weights(700, alpha)[600:] ** 2).sum() / (1 - alpha_bar[700])
fact("share of the noise in x_700 that its last 100 steps brought", last_hundred)

# %% [markdown]
# Old noise is forgotten just as the image is: the same factors shrink both.
#
# Now we can say what the $\bar\varepsilon_t$ of (3.14) is made of. Compare with (3.15), and divide:
#
# $$
# \bar\varepsilon_t = \frac{1}{\sqrt{1-\bar\alpha_t}}\sum_{k=1}^{t} c_{t,k}\;\varepsilon_k .
# \tag{3.19}
# $$
#
# To build $\bar\varepsilon_t$ from the noises of a walk is to *couple* the walk and the shortcut: they then agree exactly, and not only in law. And since
# the $\varepsilon_k$ are independent with variance one, $\varepsilon_k$ has a covariance with its own term in (3.19) only. So
#
# $$
# \operatorname{corr}(\bar\varepsilon_t,\,\varepsilon_k) = \frac{c_{t,k}}{\sqrt{1-\bar\alpha_t}} ,
# \qquad\text{in particular}\qquad
# \operatorname{corr}(\bar\varepsilon_t,\,\varepsilon_t) = \sqrt{\frac{\beta_t}{1-\bar\alpha_t}} .
# \tag{3.20}
# $$

# %%
linear = NoiseSchedule.linear(1000)                              # DDPM's chain, for the library
diffusion = GaussianDiffusion(linear)
clean = images.double().flatten(1)                               # the digits, 64 numbers each

t = 700
noises = draw((t, 4, 64), g)                                     # one walk for each of four digits
combined = torch.einsum("k,kij->ij", weights(t, alpha), noises) / (1 - alpha_bar[t]).sqrt()
claim("3.19", diffusion.q_sample(clean[:4], t, combined), walk(clean[:4], alpha, noises), tol=1e-12,
      note="jump = walk, pixel by pixel")

noises = draw((4, many), g)                                      # two million walks of four steps
residual = walk(x_start[0], a, noises) - a_bar[4].sqrt() * x_start[0]
combined = residual / (1 - a_bar[4]).sqrt()                      # (3.11), at t = 4
rho = weights(4, a) / (1 - a_bar[4]).sqrt()
claim("3.20", rho, (combined * noises).mean(1), standard_error=((1 + rho**2) / many).sqrt())
fact("correlation of ε_700 with the combined noise in x_700",
     ((1 - alpha[700]) / (1 - alpha_bar[700])).sqrt())


# %% [markdown]
# > **Pitfall: which noise does the network predict?** "The noise that was added in this step", one often reads. But the
# > noise that goes with $x_t$ in (3.14) is $\bar\varepsilon_t$, the noise of the *whole way* from $x_0$. At $t=700$ it has little to do with
# > $\varepsilon_t$, as the last number says. From here on we follow custom: where no confusion can arise the bar is dropped, and
# > $\varepsilon$ is the noise in $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\;\varepsilon$.
#
# **Exercise 3.4** (2 points, 10 minutes, ●●○) — *One weight.* `alpha` is a tensor with `alpha[j]` $= \alpha_j$ and `alpha[0]` $= 1$. Write
# `noise_weight(t, k, alpha)` that returns $c_{t,k}$, the weight of $\varepsilon_k$ in $x_t$, for $1 \le k \le t$.

# %%
def noise_weight(t, k, alpha):
    """c_{t,k}, the weight of step k's noise in x_t."""
    raise NotImplementedError("your turn")


check("3.4", noise_weight)


# %% [markdown]
# ## 3.7 One noise for the whole chain
#
# We left a slip open. What if the noises are shared, not over two steps but over all? With $\varepsilon_1 = \dots = \varepsilon_t = \varepsilon$ the
# algebra of (3.15) stays true, and only the law of the sum changes. All weights now multiply one and the same noise:
#
# $$
# x_t = \sqrt{\bar\alpha_t}\;x_0 + \kappa_t\;\varepsilon ,
# \qquad \kappa_t = \sum_{k=1}^{t} c_{t,k} .
# \tag{3.21}
# $$
#
# The mean, $\sqrt{\bar\alpha_t}\,x_0$, is right. The standard deviation is $\kappa_t$, the sum of the weights, where it should be the
# root of the sum of their squares. How far apart can these be? Square $\kappa_t$: besides the $c_{t,k}^2$ there are products of
# different weights, all positive, so $\kappa_t^2 \ge \sum_k c_{t,k}^2 = 1-\bar\alpha_t$. In the other direction, the Cauchy–Schwarz
# inequality for the vectors $(c_{t,1},\dots,c_{t,t})$ and $(1,\dots,1)$ gives $\kappa_t^2 \le t\,\sum_k c_{t,k}^2$. Together,
#
# $$
# 1 \;\le\; \frac{\kappa_t}{\sqrt{1-\bar\alpha_t}} \;\le\; \sqrt t ,
# \tag{3.22}
# $$
#
# with equality on the right when all weights are equal. Early in a chain they nearly are, and the error grows like $\sqrt t$.
# Later the old weights fade, and the error stops growing. For a constant $\beta$ the weights are $\sqrt\beta\,(1-\beta)^{(t-k)/2}$, a geometric
# series whose sum tends to $\sqrt\beta\,/\,(1-\sqrt{1-\beta})$: about $2/\sqrt\beta$ for small $\beta$, since then $\sqrt{1-\beta}\approx 1-\beta/2$.

# %%
def shared_deviation(alpha):
    """κ_1 … κ_T: at each step, all earlier weights shrink and one more is added."""
    kappa = [torch.tensor(0.0)]
    for k in range(1, len(alpha)):
        kappa.append(alpha[k].sqrt() * kappa[-1] + (1 - alpha[k]).sqrt())
    return torch.stack(kappa[1:])


kappa = shared_deviation(alpha)
one_noise = draw((1, 1), g)
for t in (10, 1000):
    claim("3.21", alpha_bar[t].sqrt() * x_start + weights(t, alpha).sum() * one_noise,
          walk(x_start, alpha, [one_noise] * t), note=f"t = {t}")
claim("3.21", weights(700, alpha).sum(), kappa[699], note="κ, step by step")

times = torch.arange(1.0, 1001.0)
factor = kappa / linear.one_minus_alpha_bar[1:].sqrt()
claim("3.22", torch.ones(1000), factor, relation="<=")
claim("3.22", factor, times.sqrt(), relation="<=")
fact("too noisy by the factor, at t = 10, 100, 700, 1000", factor[[9, 99, 699, 999]])
fact("at its worst", factor.max())
fact("which is at t", factor.argmax() + 1)
fact("limit of κ for a constant β = 0.02", 0.02**0.5 / (1 - 0.98**0.5))

cosine = NoiseSchedule.cosine(1000)
fig, ax = figure()
ax.loglog(times, factor, color=BLUE, label="linear schedule")
ax.loglog(times, shared_deviation(cosine.alpha) / cosine.one_minus_alpha_bar[1:].sqrt(),
          color=VERMILLION, label="cosine schedule")
ax.loglog(times, times.sqrt(), color=GREY, ls="--", label=r"$\sqrt{t}$, the bound of (3.22)")
ax.set(xlabel="$t$", ylabel=r"$\kappa_t\,/\,\sqrt{1-\bar\alpha_t}$", title="too noisy by …")
ax.legend()
show(fig, """The factor by which a shared noise is too large, against t on logarithmic axes. Both
curves follow the square root of t at first and bend away below it later. The linear schedule's
ends near 15; the cosine schedule's falls steeply to almost 1 at the last steps.""")

# %% [markdown]
# *How much too noisy is $x_t$ if one noise serves all steps?* Up to 18 times, on DDPM's chain. With the cosine schedule it is a
# little more; then the factor falls back, because the last steps replace nearly all of $x_t$ by the newest noise alone. The symptom is not a wrong mean
# but a wrong *size*: near $t = T$ the standard deviation of $x_t$ must be about one, so print it.

# %% [markdown]
# ## 3.8 From any s to any t
#
# Nothing in the proof cared that the start was called $0$. Take $s < t$, hold $x_s$ fixed, and start the clock there. The noises
# $\varepsilon_{s+1},\dots,\varepsilon_t$ are independent of one another, and of $x_s$, which is made of $x_0$ and earlier noises. So the
# induction of 3.5 runs word for word, with the product $\alpha_{s+1}\cdots\alpha_t$ in the place of $\bar\alpha_t$. That product is a ratio of two
# entries of one table; we write $\bar\alpha_{t\mid s}$ for it:
#
# $$
# q(x_t\mid x_s) = \mathcal N\big(x_t;\;\sqrt{\bar\alpha_{t\mid s}}\;x_s,\;(1-\bar\alpha_{t\mid s})\,I\big) ,
# \qquad \bar\alpha_{t\mid s} = \prod_{k=s+1}^{t}\alpha_k = \frac{\bar\alpha_t}{\bar\alpha_s} ,\quad 0\le s<t\le T .
# \tag{3.23}
# $$
#
# Both extremes are in it: $s = t-1$ is a single step of (3.1), and $s = 0$ is the marginal (3.10). It is what
# `transition(x_s, t, s)` returns, and it is the reason why the library keeps one table, $\bar\alpha$, and derives the rest.

# %%
pairs = [(t, s) for t in range(1, 7) for s in range(t)]
kept = {(t, s): math.prod(a[s + 1 : t + 1].tolist()) for t, s in pairs}        # ᾱ_{t|s}, by hand
laws = {(t, s): chain.transition(x_start, t, s) for t, s in pairs}             # the library's
claim("3.23", [kept[p] ** 0.5 * 1.5 for p in pairs], [laws[p].mean.item() for p in pairs],
      tol=1e-12, note="means, every pair s < t")
claim("3.23", [1 - kept[p] for p in pairs], [laws[p].variance.item() for p in pairs],
      tol=1e-12, note="variances")

# %% [markdown]
# If jumps can be taken as one, jumping $s\to t$ and then $t\to u$ must equal jumping $s \to u$. As densities, for $s<t<u$:
#
# $$
# q(x_u\mid x_s) = \int q(x_u\mid x_t)\;q(x_t\mid x_s)\;dx_t .
# \tag{3.24}
# $$
#
# This is the *Chapman–Kolmogorov equation*. It holds for every Markov chain. The joint density of $x_t$ and $x_u$ given $x_s$ is
# $q(x_t\mid x_s)\,q(x_u\mid x_t,x_s)$, by the product rule; the Markov property
# ([section 2.2](02_forward_process.ipynb#2.2-A-chain-of-steps)) lets us drop $x_s$ from the second factor; and integrating
# $x_t$ out leaves the law of $x_u$. For our Gaussians it comes down to two identities between numbers,
#
# $$
# \bar\alpha_{u\mid s} = \bar\alpha_{u\mid t}\;\bar\alpha_{t\mid s} ,
# \qquad
# 1-\bar\alpha_{u\mid s} = \bar\alpha_{u\mid t}\,(1-\bar\alpha_{t\mid s}) + (1-\bar\alpha_{u\mid t}) .
# \tag{3.25}
# $$
#
# The first is $\frac{\bar\alpha_u}{\bar\alpha_s} = \frac{\bar\alpha_u}{\bar\alpha_t}\cdot\frac{\bar\alpha_t}{\bar\alpha_s}$. The second follows: multiply out, and $\bar\alpha_{u\mid t}$ cancels
# as $\alpha_t$ did in (3.6). Older noise shrunk, plus new noise.

# %%
triples = [(u, t, s) for u in range(2, 7) for t in range(1, u) for s in range(t)]
claim("3.25", [(kept[u, t] * kept[t, s]) ** 0.5 * 1.5 for u, t, s in triples],
      [laws[u, s].mean.item() for u, t, s in triples], tol=1e-12, note="the product, by the means")
claim("3.25", [kept[u, t] * (1 - kept[t, s]) + (1 - kept[u, t]) for u, t, s in triples],
      [laws[u, s].variance.item() for u, t, s in triples], tol=1e-12, note="every triple s < t < u")

u, t, s = 6, 3, 1
arrive = normal(column, kept[t, s] ** 0.5 * x_start, 1 - kept[t, s])
leave = normal(grid, kept[u, t] ** 0.5 * column, 1 - kept[u, t])
claim("3.24", (arrive * leave).sum(0) * width, laws[u, s].log_prob(column).exp(), note="1 → 3 → 6")
fact("variance of the noise in the jump 1 → 6", 1 - kept[6, 1])
fact("1 − ᾱ_6 less 1 − ᾱ_1: not the same", (1 - a_bar[6]) - (1 - a_bar[1]))


# %% [markdown]
# > **Pitfall: the difference of the variances.** The noise in $x_t$ has variance $1-\bar\alpha_t$ and that in $x_s$ has $1-\bar\alpha_s$. So the jump adds the difference?
# > No: on the way the older noise is shrunk, and the jump must bring more. The last two numbers show how much
# > more. They agree only for $s=0$, so a test that always starts at the data cannot find this slip.
#
# **Exercise 3.5** (2 points, 8 minutes, ●●○) — *Jump.* Write `jump(x_s, t, s, alpha_bar)` that returns the pair (mean, variance) of
# $q(x_t\mid x_s)$. `alpha_bar` holds $\bar\alpha_0,\dots,\bar\alpha_T$; the variance is one number.

# %%
def jump(x_s, t, s, alpha_bar):
    """Mean and variance of q(x_t | x_s), 0 <= s < t <= T."""
    raise NotImplementedError("your turn")


check("3.5", jump)

# %% [markdown]
# ## 3.9 The pair, not only the points
#
# The marginal gives the law of $x_s$ and the law of $x_t$. How do the two go together? On the chain, (3.23) answers. Given $x_0$,
#
# $$
# x_t = \sqrt{\bar\alpha_{t\mid s}}\;x_s + \sqrt{1-\bar\alpha_{t\mid s}}\;\varepsilon' ,
# \qquad \varepsilon' \sim \mathcal N(0, I)\ \text{independent of } x_s .
# \tag{3.26}
# $$
#
# Take the covariance of both sides with $x_s$. The term with $\varepsilon'$ contributes nothing, being independent of $x_s$. The first term
# contributes $\sqrt{\bar\alpha_{t\mid s}}$ times the covariance of $x_s$ with itself, which is $(1-\bar\alpha_s)I$ by (3.10). Therefore
#
# $$
# \operatorname{Cov}(x_s, x_t\mid x_0) = \sqrt{\frac{\bar\alpha_t}{\bar\alpha_s}}\;(1-\bar\alpha_s)\,I .
# \tag{3.27}
# $$
#
# Divide by the two standard deviations to get the correlation between a pixel of $x_s$ and the same pixel of $x_t$. With
# (3.18) it takes a pretty form:
#
# $$
# \operatorname{corr}(x_s, x_t\mid x_0)
# = \sqrt{\frac{\bar\alpha_t}{\bar\alpha_s}}\,\frac{1-\bar\alpha_s}{\sqrt{(1-\bar\alpha_s)(1-\bar\alpha_t)}}
# = \sqrt{\frac{\bar\alpha_t\,(1-\bar\alpha_s)}{(1-\bar\alpha_t)\,\bar\alpha_s}}
# = \sqrt{\frac{\mathrm{SNR}_t}{\mathrm{SNR}_s}} ,\qquad 1 \le s<t .
# \tag{3.28}
# $$
#
# Neighbours have nearly the same ratio, so they are nearly the same image. Now compare two calls of the shortcut (3.14), one for $s$
# and one for $t$. Each image has the right law. The pair does not:
#
# $$
# \operatorname{Cov}(x_s, x_t\mid x_0) =
# \begin{cases}
# 0 & \text{if each call draws its own } \bar\varepsilon ,\\[2pt]
# \sqrt{(1-\bar\alpha_s)(1-\bar\alpha_t)}\;I & \text{if both calls use the same } \bar\varepsilon .
# \end{cases}
# \tag{3.29}
# $$
#
# The first line is independence; the second is the covariance of $\sqrt{1-\bar\alpha_s}\;\bar\varepsilon$ with $\sqrt{1-\bar\alpha_t}\;\bar\varepsilon$. The correlations are $0$ and $1$,
# and (3.28) lies strictly between them. **Two shortcuts do not make a path.**

# %%
g = torch.Generator().manual_seed(9)
s, t, many = 2, 4, 4_000_000
x0 = torch.full((many,), 1.5)
x_s = walk(x0, a, fresh(s, x0.shape, g))                         # walk to s and keep x_s …
noises = draw((t - s, many), g)
x_t = walk(x_s, torch.cat([torch.ones(1), a[s + 1 :]]), noises)  # … and walk on to t
later = (weights(t, a)[s:, None] * noises).sum(0)                # what steps s+1 … t brought
claim("3.26", kept[t, s] ** 0.5 * x_s + later, x_t, tol=1e-12)


def covariance(x, y):
    """Of two long vectors, with its standard error for Gaussians (toolbox, section T.11)."""
    value = ((x - x.mean()) * (y - y.mean())).mean()
    return value, ((x.var() * y.var() + value**2) / len(x)).sqrt()


on_chain = kept[t, s] ** 0.5 * (1 - a_bar[s])
measured, error = covariance(x_s, x_t)
claim("3.27", on_chain, measured, standard_error=error)
rho = (short.snr[t] / short.snr[s]).sqrt()
deviations = ((1 - a_bar[s]) * (1 - a_bar[t])).sqrt()
claim("3.28", on_chain / deviations, rho, tol=1e-12)

noise = draw(many, g)
jumped = chain.q_sample(x0, s, noise)
again, same = chain.q_sample(x0, t, draw(many, g)), chain.q_sample(x0, t, noise)
measured, error = covariance(jumped, again)
claim("3.29", measured, 0.0, standard_error=error, scale=on_chain, note="fresh noises")
measured, error = covariance(jumped, same)
claim("3.29", deviations, measured, standard_error=error, note="the same noise")

fact("correlation of x_2 and x_4 on the short chain", rho)
fact("correlation of x_s and x_700 on DDPM's chain, for s = 699, 650, 600, 350",
     [(linear.snr[700] / linear.snr[s]).sqrt() for s in (699, 650, 600, 350)])

# %% [markdown]
# *Three processes, one band.* Below are three ways to make a "trajectory" of one pixel with $x_0 = 1$. At every single $t$ all three
# have the same law, whose mean ± two standard deviations are the grey band.

# %%
noises, ones, every_t = draw((1000, 3), g), torch.ones(1000, 3), torch.arange(1, 1001)
x, paths = ones[0], []
for t in range(1, 1001):
    x = alpha[t].sqrt() * x + (1 - alpha[t]).sqrt() * noises[t - 1]
    paths.append(x)
three = {
    "the chain": torch.stack(paths),
    "a fresh noise at each $t$": diffusion.q_sample(ones, every_t, draw((1000, 3), g)),
    "one noise for all $t$": diffusion.q_sample(
        torch.ones(1000, 9), every_t, draw((1, 9), g).expand(1000, 9)
    ),
}
mean, deviation = alpha_bar[1:].sqrt(), (1 - alpha_bar[1:]).sqrt()
fig, axes = figure(1, 3, sharey=True)
for ax, (name, paths) in zip(axes, three.items(), strict=True):
    ax.fill_between(every_t, mean - 2 * deviation, mean + 2 * deviation, color="0.9")
    for i, colour in enumerate((BLUE, VERMILLION, GREEN)):
        ax.plot(every_t[::5], paths[::5, i::3], color=colour, lw=0.8)
    ax.set(xlabel="$t$", title=name)
axes[0].set(ylabel="$x_t$", ylim=(-4, 4))
show(fig, """Three panels with the same grey band. The chain gives three ragged paths that wander
through it. Fresh noise at each t gives curves that jump across the whole band from one t to the
next. One noise for all t gives smooth curves, nine of them here.""")

t, s = 700, 699


def jump_variance(covariance):
    """Var(x_t − x_s | x_0) for a given covariance of the two."""
    return (1 - alpha_bar[t]) + (1 - alpha_bar[s]) - 2 * covariance


on_chain = alpha[t].sqrt() * (1 - alpha_bar[s])
fact("variance of x_700 − x_699 given x_0, on the chain", jump_variance(on_chain))
fact("the same with fresh noises", jump_variance(0.0))
fact("slope of the best prediction of x_699 from x_700, on the chain",
     on_chain / (1 - alpha_bar[t]))


# %% [markdown]
# > **Pitfall: pairs from two shortcuts.** Suppose you want to learn a reverse step by regression, from pairs $(x_{t-1}, x_t)$, and you make
# > each pair by two calls of `q_sample`. Every image you look at is right, every histogram is right, and the *pair* is wrong. For one image $x_0$ the
# > best prediction of $x_{t-1}$ from $x_t$ is a line whose slope is covariance over variance, $\operatorname{Cov}(x_{t-1}, x_t\mid x_0)/(1-\bar\alpha_t)$,
# > as in (T.18). On the chain that is the last number printed; for your pairs it is zero. Your network learns to use $x_t$ for guessing the image, and to ignore the noise that it holds.
#
# The right way costs no more: one shortcut to $s$, then one jump (3.26) from $s$ to $t$ with a second noise. The pictures also
# raise a question for chapter 9. A loss that looks at one $t$ at a time cannot tell the three panels apart. Why, then, insist on the first? DDIM starts there,
# and it will walk back along curves like those of the third.
#
# **Exercise 3.6** (3 points, 12 minutes, ●●○) — *A true pair.* Write `pair(x0, t, s, noise_1, noise_2, alpha_bar)`, $1 \le s < t \le T$, that returns
# $(x_s, x_t)$ with the joint law that the chain gives them, from two independent standard noises and without walking. Use `noise_1` for $x_s$ and `noise_2` for what comes
# after it, each with the plus sign of (3.14) and (3.26).

# %%
def pair(x0, t, s, noise_1, noise_2, alpha_bar):
    """(x_s, x_t) with the joint law of the chain, from two noises."""
    raise NotImplementedError("your turn")


check("3.6", pair)

# %% [markdown]
# **Exercise 3.7** (2 points, 10 minutes, ●●○) — *Right and wrong independence.* Ada trains a noise predictor: for each image, in each epoch, she
# draws a fresh $t$ and a fresh $\varepsilon$ and calls `q_sample`. Ben makes a film of one digit dissolving: for each frame $t = 1, 2, \dots$ he draws a fresh
# $\varepsilon$ and calls `q_sample`. One of them is right and one is not. Explain in five sentences or fewer who is right, and why the same call can be right
# here and wrong there. Name the equation that separates the two cases.

# %%
answer_3_7 = ""

check("3.7", answer_3_7)

# %% [markdown]
# ## 3.10 When the start is data
#
# So far $x_0$ was one fixed image. Now draw it from the law of the data, $p_{\text{data}}$. Averaging (3.10) gives the law of a noisy image:
#
# $$
# q(x_t) = \int p_{\text{data}}(x_0)\;\mathcal N\big(x_t;\;\sqrt{\bar\alpha_t}\;x_0,\;(1-\bar\alpha_t)\,I\big)\;dx_0 .
# \tag{3.30}
# $$
#
# Read (3.14) as a recipe, and the integral becomes a picture: *shrink* the data towards the origin by $\sqrt{\bar\alpha_t}$, then *blur*, that is, convolve
# with a Gaussian of variance $1-\bar\alpha_t$ as in (3.4). This law is **not** Gaussian unless the data are. Each image sits under a bell of its own, and a
# sum of bells can have many humps. For a mixture of Gaussians it is known exactly, because each component is shrunk and blurred by
# itself, by (3.3). The library's `oracle.py` holds laws of this kind, for which the whole truth is known.

# %%
data = GaussianMixture([0.35, 0.65], [[-1.4], [0.9]], [[[0.02]], [[0.05]]])
fig, ax = figure()
for t, colour in zip((0, 50, 150, 300, 600), time_colours(5), strict=True):
    plot_density(ax, data.marginal(linear, t), (-3.2, 3.2), color=colour, label=f"$t={t}$")
ax.set(xlabel="$x_t$", ylabel="$q(x_t)$", title="two humps, shrunk and blurred")
ax.legend()
show(fig, """Densities of a law with two humps at t = 0, 50, 150, 300 and 600. The two narrow
peaks move towards zero, widen, merge into one lopsided hump, and end as a bell that is almost
the standard one.""")

t = 150
p_data = 0.35 * normal(grid, -1.4, 0.02) + 0.65 * normal(grid, 0.9, 0.05)
bells = normal(grid, alpha_bar[t].sqrt() * column, 1 - alpha_bar[t])           # rows are x_0
exact = data.marginal(linear, t).log_prob(column).exp()
claim("3.30", (p_data[:, None] * bells).sum(0) * width, exact, note="integrated over x_0")

# %% [markdown]
# Mean and covariance need no integral: they follow from (3.14) for *any* data. First the mean. Expectation is linear, and
# $\mathbb E\,\bar\varepsilon_t = 0$, so
#
# $$
# \mathbb E\,x_t = \sqrt{\bar\alpha_t}\;\mathbb E\,x_0 .
# \tag{3.31}
# $$
#
# For the covariance, subtract (3.31) from (3.14). With $d = x_0 - \mathbb E\,x_0$ this leaves
# $x_t - \mathbb E\,x_t = \sqrt{\bar\alpha_t}\;d + \sqrt{1-\bar\alpha_t}\;\bar\varepsilon_t$. Multiply out the product of this vector with itself:
#
# $$
# \begin{aligned}
# \operatorname{Cov}(x_t) &= \mathbb E\big[(x_t-\mathbb E\,x_t)(x_t-\mathbb E\,x_t)^\top\big]\\
# &= \bar\alpha_t\,\mathbb E[d\,d^\top]
#  + \sqrt{\bar\alpha_t(1-\bar\alpha_t)}\;\big(\mathbb E[d\,\bar\varepsilon_t^\top] + \mathbb E[\bar\varepsilon_t\,d^\top]\big)
#  + (1-\bar\alpha_t)\,\mathbb E[\bar\varepsilon_t\,\bar\varepsilon_t^\top]\\
# &= \bar\alpha_t\operatorname{Cov}(x_0) + (1-\bar\alpha_t)\,I .
# \end{aligned}
# \tag{3.32}
# $$
#
# The middle terms vanish: $\bar\varepsilon_t$ is independent of $x_0$, so $\mathbb E[d\,\bar\varepsilon_t^\top] = \mathbb E[d]\;\mathbb E[\bar\varepsilon_t]^\top = 0$. The last expectation is the
# covariance of a standard Gaussian. (This is the *law of total variance*: $\bar\alpha_t\operatorname{Cov}(x_0)$ is the covariance of the mean that $x_t$ has given $x_0$,
# and $(1-\bar\alpha_t)I$ is the covariance that it has given $x_0$.)
#
# So in every direction the variance is a weighted mean of the data's variance and of one. Here it is on real digits. `FiniteData` is the exact
# law of "pick one of the 1,442 images at random".

# %%
oracle = FiniteData(clean)
mean_0, centred = clean.mean(0), clean - clean.mean(0)
covariance_0 = centred.T @ centred / len(clean)                  # the law's own: divide by N
for t in (100, 700):
    noisy = oracle.marginal(linear, t)
    claim("3.31", alpha_bar[t].sqrt() * mean_0, noisy.mean, note=f"64 pixels, t = {t}")
    claim("3.32", alpha_bar[t] * covariance_0 + (1 - alpha_bar[t]) * torch.eye(64),
          noisy.covariance, note=f"64 × 64, t = {t}")

per_pixel = covariance_0.diagonal().mean()
steepest = torch.linalg.eigvalsh(covariance_0)[-1]               # the most variable direction
for name, V in (("a pixel, on average", per_pixel), ("the most variable direction", steepest)):
    fact(f"variance of {name}, at t = 0, 100, 300, 700",
         [alpha_bar[t] * V + 1 - alpha_bar[t] for t in (0, 100, 300, 700)], uncertainty=1e-9)


# %% [markdown]
# A single pixel varies less than one, and gains variance on the way. The most variable *direction*, a whole pattern of pixels that move
# together, has more than one and loses. All of them end at one. (Chapter 2 gave 0.57 for the digits: it pooled all pixels,
# so that differences between pixels counted as well.) Chapter 4 will need these numbers, because the best
# variance for a reverse step depends on them.
#
# **Exercise 3.8** (2 points, 8 minutes, ●○○) — *Moments of a noisy pixel.* A pixel of the data has mean `mean_0` and variance `var_0`. Write
# `moments(mean_0, var_0, alpha_bar_t)` that returns the pair (mean, variance) of the same pixel of $x_t$.

# %%
def moments(mean_0, var_0, alpha_bar_t):
    """Mean and variance of a pixel of x_t, over data and noise."""
    raise NotImplementedError("your turn")


check("3.8", moments)

# %% [markdown]
# ## 3.11 Digits, walked and jumped
#
# Now the real thing, both ways. All training digits walk 700 steps, with a fresh noise at each. And one digit jumps six times in a
# single call: `q_sample` takes a different $t$ for each image if it is given a tensor of them.

# %%
g = torch.Generator().manual_seed(11)
stops = [0, 50, 150, 300, 500, 700]
x, walked = clean, {0: clean}
for t in range(1, 701):
    x = alpha[t].sqrt() * x + (1 - alpha[t]).sqrt() * draw(x.shape, g)
    if t in stops:
        walked[t] = x

jumped = diffusion.q_sample(clean[:1].expand(6, 64), torch.tensor(stops), draw((6, 64), g))
rows = torch.stack([torch.stack([walked[t][0] for t in stops]), jumped])
show_images(rows.reshape(2, 6, 1, 8, 8), """Two rows of six pictures of the digit zero, at t = 0,
50, 150, 300, 500 and 700. The upper row was walked step by step, the lower one jumped. Both
dissolve in the same way, with different specks of noise.""",
            row_labels=["walked", "jumped"], column_titles=[f"$t={t}$" for t in stops], size=0.9)

# %% [markdown]
# *Could you tell which row was walked?* The specks differ, the character does not. Eyes are weak judges, so compare numbers.
# First the moments of single pixels. The digits are fixed here and only the noise is random. So, by (3.14), the residual
# $x_t - \sqrt{\bar\alpha_t}\,x_0$ of a pixel, averaged over the $N$ images, is $0$ with a standard error of $\sqrt{(1-\bar\alpha_t)/N}$, and its square
# averages to $1-\bar\alpha_t$ with a standard error of $(1-\bar\alpha_t)\sqrt{2/N}$.
#
# How much room is fair? Two numbers for each of 64 pixels, at three $t$, walked and jumped: 768 numbers, each with its chance to be
# far off. We allow six standard errors. The cell prints how likely it is that at least one of the 768 goes beyond five or beyond six: at most the sum of their
# chances. (A sum of $N$ squared standard Gaussians has the *chi-square* law, which SciPy knows.) The mean square of *all* pixels is a
# single number with 64 times as many terms, so it is held to five of its own, much smaller standard errors.

# %%
N = len(clean)


def jump_to(t):
    """All digits at level t, by the shortcut, with fresh noise."""
    return diffusion.q_sample(clean, t, draw(clean.shape, g))


def chance(room):
    """That one of 384 means or of 384 mean squares is off by more, if (3.14) holds: at most."""
    squares, law = N * (1 + room * (2 / N) ** 0.5), scipy.stats.chi2(N)
    return 384 * (2 * scipy.stats.norm.sf(room) + law.sf(squares) + law.cdf(2 * N - squares))


fact("chance that one of 768 is off by more than 5, 6 standard errors", [chance(5), chance(6)],
     digits=2)
for t in (50, 300, 700):
    for how, x_t in (("walked", walked[t]), ("jumped", jump_to(t))):
        residual = (x_t - alpha_bar[t].sqrt() * clean) / (1 - alpha_bar[t]).sqrt()
        off = torch.cat([residual.mean(0) * N**0.5, ((residual**2).mean(0) - 1) * (N / 2) ** 0.5])
        claim("3.14", off.abs(), 6.0, relation="<=", note=f"means and squares, {how}, t = {t}")
        off = ((residual**2).mean() - 1) * (64 * N / 2) ** 0.5
        claim("3.14", off.abs(), 5.0, relation="<=", note=f"all pixels together, {how}, t = {t}")

# %% [markdown]
# Single pixels say nothing about how pixels hang together. A sharper test looks at *projections*. Take 32 random directions, project
# both sets of noisy digits on each of them, and compare the two sets of numbers by the largest distance between their cumulative histograms (the
# Kolmogorov–Smirnov distance). The largest of the 32 distances is our number. What should it be if the two sets have the same law? No
# table is needed: jump twice, and compute it; do that 100 times. This is the *null distribution*. If walks and jumps have
# the same law, the number for a walk against a jump is one more draw from it, and may stand anywhere in the ranking. We call it a
# discovery only if it is more than twice the null's median. The cell asserts that not one of the 100 comes that far.

# %%
directions = torch.nn.functional.normalize(draw((64, 32), g), dim=0)


def sliced_distance(one, other):
    """The largest Kolmogorov–Smirnov distance over all directions, times N: an integer."""
    values = torch.cat([one, other]) @ directions
    sign = torch.cat([torch.ones(N, dtype=torch.int64), -torch.ones(N, dtype=torch.int64)])
    return sign[values.argsort(0)].cumsum(0).abs().max()         # +1 for one set, −1 for the other


for t in (50, 700, 300):
    null = torch.stack([sliced_distance(jump_to(t), jump_to(t)) for _ in range(100)])
    discovery = 2 * null.median()
    assert null.max() < discovery
    claim("3.14", sliced_distance(walked[t], jump_to(t)), discovery, relation="<=",
          note=f"projections, walked against jumped, t = {t}")

signal, noise = alpha_bar[t].sqrt() * clean, draw(clean.shape, g)          # t = 300 still
for name, x_t in {
    "one noise shared by all steps": signal + kappa[t - 1] * noise,
    "α_t for ᾱ_t": alpha[t].sqrt() * clean + (1 - alpha[t]).sqrt() * noise,
    "t off by one": jump_to(t - 1),
}.items():
    found = sliced_distance(x_t, jump_to(t)) > discovery
    print(f"{name}, t = 300: {'found' if found else 'not found'}")

# %% [markdown]
# The walks are no discovery, at three different $t$. The first two slips are found at once. The last one is *not* found. The
# laws of $x_{299}$ and $x_{300}$ are so close that this test cannot part them with 1,442 images.
# A check of the coefficient finds it in one line, as section 3.13 shows. So test formulas as formulas, and use statistics for the rest.

# %% [markdown]
# ## 3.12 A sum over t from one random t
#
# We promised to show that one random $t$ per image is fair. Let $\hat\varepsilon(x_t, t)$ be any guess of the noise, by a network or by anything else, and
# $\ell_t$ its mean squared error per pixel at step $t$. What we want is the average of $\ell_t$ over all steps. If $t$ is drawn uniformly from $1,\dots,T$, each step has
# the probability $1/T$, and by the definition of an expectation
#
# $$
# \mathbb E_t\big[\ell_t\big] = \sum_{t=1}^{T}\frac1T\,\ell_t ,
# \qquad
# \ell_t = \mathbb E_{x_0,\varepsilon}\;\frac1D\,\big\lVert\,\varepsilon - \hat\varepsilon\big(\sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\;\varepsilon,\;t\big)\big\rVert^2 .
# \tag{3.33}
# $$
#
# So draw an image, a $t$ and an $\varepsilon$, all independently, and evaluate *one* squared error: its expectation is the whole average. That is
# what *unbiased* means. It needs $x_t$ for a $t$ chosen at random, and here is the shortcut's purpose. (Chapter 5 derives this loss, and says
# which weights its terms should have.)
#
# To see it work we need a guess whose $\ell_t$ can be computed. Take the laziest: $\hat\varepsilon(x_t,t) = x_t$, "it is all noise". Its error is
# $\varepsilon - x_t = (1-\sqrt{1-\bar\alpha_t})\,\varepsilon - \sqrt{\bar\alpha_t}\,x_0$. Square and average. The mixed term vanishes, because $\varepsilon$ is independent
# of $x_0$ and has mean $0$; the squares of $\varepsilon$ average to $1$ per pixel; and so
#
# $$
# \ell_t = \big(1-\sqrt{1-\bar\alpha_t}\,\big)^2 + \bar\alpha_t\,m_2 ,
# \qquad m_2 = \mathbb E\,\tfrac1D\lVert x_0\rVert^2 .
# \tag{3.34}
# $$

# %%
g = torch.Generator().manual_seed(12)
lazy = (1 - (1 - alpha_bar[1:]).sqrt()) ** 2 + alpha_bar[1:] * (clean**2).mean()       # ℓ_1 … ℓ_T


def squared_errors(t):
    """The lazy guess's error on 50,000 noisy digits; t is one step, or one for each image."""
    x0 = clean[torch.randint(0, N, (50_000,), generator=g)]
    noise = draw(x0.shape, g)
    return ((noise - diffusion.q_sample(x0, t, noise)) ** 2).mean(1)


at_150 = torch.cat([squared_errors(150) for _ in range(4)])
claim("3.34", lazy[149], at_150.mean(), standard_error=at_150.std() / len(at_150) ** 0.5)
at_random = torch.cat([
    squared_errors(torch.randint(1, 1001, (50_000,), generator=g))         # 1 … T, with both ends
    for _ in range(20)
])
claim("3.33", lazy.mean(), at_random.mean(), standard_error=at_random.std() / len(at_random) ** 0.5)

over_t = lazy.std(correction=0)
fact("the lazy guess's loss, averaged over all t", lazy.mean())
fact("standard deviation of ℓ_t over t", over_t)
fact("the same, averaged over 128 independent t", over_t / 128**0.5)

# %% [markdown]
# The last two numbers say why each image gets *its own* $t$. The loss depends strongly on $t$. With one $t$ for a whole batch of 128, the batch's loss would
# jump about with the full standard deviation of $\ell_t$, larger than its mean. With independent $t$'s that part shrinks by $\sqrt{128}$. A walk could not
# help: all its images belong to one $x_0$, and its neighbours are nearly the same, by (3.28).

# %% [markdown]
# ## 3.13 Slips, and how large they are
#
# Six mistakes that real code and real notes make with this one formula. Each is shown by the variance of the noise that it produces, on the
# short chain at $t=4$ and on DDPM's chain at $t=700$. The first line is right.

# %%
variance = {
    "right, 1 − ᾱ_t": lambda bar, beta, t: 1 - bar[t],
    "product up to T": lambda bar, beta, t: 1 - bar[-1],
    "t one too small": lambda bar, beta, t: 1 - bar[t - 1],
    "root on the variance": lambda bar, beta, t: (1 - bar[t]).sqrt(),
    "no root on the noise": lambda bar, beta, t: (1 - bar[t]) ** 2,
    "α_t for ᾱ_t": lambda bar, beta, t: beta[t],
    "β's added up": lambda bar, beta, t: beta[: t + 1].sum(),
}
for name, formula in variance.items():
    fact(name, [formula(a_bar, 1 - a, 4), formula(alpha_bar, 1 - alpha, 700)], digits=4)
fact("variance of the noise in x_1, over that in x_2", (1 - alpha_bar[1]) / (1 - alpha_bar[2]))
fact("the same for x_299 and x_300", (1 - alpha_bar[299]) / (1 - alpha_bar[300]))

# %% [markdown]
# On the long chain four of the six slips move the number by less than two per cent, because there $\bar\alpha_t$ is nearly zero. On the short chain each
# of them shows. That is why our tests and exercises run on short, strong chains. In the order of the table:
#
# - **The product up to $T$.** With $\bar\alpha_T$ in the place of $\bar\alpha_t$ every $x_t$ is as noisy as $x_T$, and the network never sees a half-noisy image.
# - **$t$ off by one.** The paper counts steps from $1$ and code counts arrays from $0$. In many libraries `alphas_cumprod[0]` is $\bar\alpha_1$, so that
#   the paper's $t$ is the code's $t-1$. Our tables start with $\bar\alpha_0 = 1$: index and $t$ agree. The slip is invisible in the middle of
#   the chain, as the last number says, and large at its beginning: with $t$ one too small, $x_1$ has no noise at all and $x_2$ less than half.
# - **Root on the variance.** $\mathcal N(\cdot,\ \sqrt{1-\bar\alpha_t}\,I)$ is written in teaching material where $(1-\bar\alpha_t)\,I$ is meant. The
#   second argument of $\mathcal N$ is a variance.
# - **No root on the noise.** The same slip the other way round: in code, the noise is multiplied by $1-\bar\alpha_t$. A factor on $\varepsilon$ is a standard deviation.
# - **$\alpha_t$ for $\bar\alpha_t$.** One letter, one bar. In DDIM's paper the letter $\alpha_t$ *is* DDPM's $\bar\alpha_t$: look up which one a formula means.
# - **The $\beta$'s added up.** $\sum_k \beta_k$ counts every noise at full strength, although later steps shrink it. That is the sum (2.7) of the
#   chain without shrinking, and it runs past one, which no $1-\bar\alpha_t$ can.
#
# A seventh slip is not in a formula but in its evaluation. For neighbours $s$ and $t$ on a fine chain, $\bar\alpha_t/\bar\alpha_s$ is very close to one, and
# $1-\bar\alpha_t/\bar\alpha_s$ is a difference of nearly equal numbers. Their leading digits cancel, and what had been rounded off becomes visible.
# The remedy is a table of $\log\bar\alpha_t = \sum_{k\le t}\log\alpha_k$, together with
#
# $$
# 1-\frac{\bar\alpha_t}{\bar\alpha_s} = -\operatorname{expm1}\big(\log\bar\alpha_t - \log\bar\alpha_s\big) ,
# \qquad \operatorname{expm1}(y) = e^y - 1 .
# \tag{3.35}
# $$
#
# `expm1` computes $e^y-1$ without the subtraction, and `log1p(-β)` gives $\log\alpha$ with the same care. For neighbours the true value is known: it is the $\beta_t$
# that we put in.

# %%
chosen = np.linspace(1e-4, 0.02, 1000)                           # β_1 … β_T: these are exact
logarithms = np.concatenate([[0.0], np.cumsum(np.log1p(-chosen))])
claim("3.35", -np.expm1(np.diff(logarithms)), chosen, tol=1e-12, scale=chosen,
      note="neighbours, relative to each β")
library = diffusion.transition(ones[:900], torch.arange(101, 1001), torch.arange(1, 901))
claim("3.35", -np.expm1(logarithms[101:] - logarithms[1:-100]), library.variance.flatten(),
      tol=1e-12, note="100 steps apart")


def by_product(dtype):
    """1 − ᾱ_t/ᾱ_{t−1} from a running product, each result rounded to one of NumPy's formats."""
    table = [dtype(1)]
    for beta in chosen:
        table.append(dtype(table[-1] * dtype(1 - beta)))
    return 1 - (np.array(table[1:]) / np.array(table[:-1])).astype(float)


ways = {
    "float16 product": by_product(np.float16),
    "float32 product": by_product(np.float32),
    "float32 logarithm": -np.expm1(np.diff(logarithms.astype(np.float32)).astype(float)),
    "float64 product": by_product(np.float64),
    "float64 logarithm": -np.expm1(np.diff(logarithms)),
}
error = {name: np.abs(value / chosen - 1) for name, value in ways.items()}
fig, ax = figure()
for name in ways:
    ax.semilogy(range(1, 1001), np.maximum(error[name], 1e-17), ".", ms=2, label=name)
ax.set(xlabel="$t$", ylabel="relative error", ylim=(3e-18, 1e6),
       title=r"how wrong is $1-\bar\alpha_t/\bar\alpha_{t-1}$?")
ax.legend(markerscale=4, fontsize=9, ncols=3)
show(fig, """Relative errors of the step variance for t = 1 to 1000 on a logarithmic axis. A
float16 product is wrong by 100 per cent at first and by a few per cent later. A float32 product
starts near one in ten thousand and improves; a float32 logarithm starts near one in ten million
and gets worse until the two meet. In float64, product and logarithm show the same pattern, about
a billion times smaller.""")

fact("largest error at t = 1 … 10, float32 product", error["float32 product"][:10].max(), digits=2)
assert error["float32 logarithm"][:10].max() < 1e-6
assert 1e-5 < error["float32 logarithm"].max() < error["float32 product"].max() < 1e-3
assert error["float64 logarithm"].max() < 1e-13 < error["float64 product"].max() < 1e-12
fact("log ᾱ_T", logarithms[-1])
for dtype in (torch.float16, torch.bfloat16):
    lost = (torch.from_numpy(1 - chosen).to(dtype) == 1).sum()
    fact(f"steps whose 1 − β rounds to 1 in {dtype}", lost)

# %% [markdown]
# *When does the logarithm pay?* At the beginning, where $\beta_t$ is smallest and a rounded product loses most. Near the end
# $\lvert\log\bar\alpha_t\rvert$ is about ten, its own rounding shows, and the product is a little better. In float64 both are good enough for
# anything in this book. In float32 neither is exact to five digits everywhere.
#
# > **Pitfall: a product in half precision.** The last two numbers count the steps whose factor $1-\beta_t$ rounds to exactly one. They
# > are the first of the chain, where $\beta_t$ is smallest. A running product in that format stands still there, and those steps get no noise at all. A good table can be
# > spoilt as well, if it is cast before it is subtracted from one: [section 2.5](02_forward_process.ipynb#2.5-How-much-is-left) counts that. One cure serves both:
# > compute coefficients in float64, and cast the finished coefficients last.

# %% [markdown]
# ## 3.14 What we have
#
# | equation | what it says | in `ddpm_lite` | elsewhere |
# |---|---|---|---|
# | (3.1) | the chain, one noise per step | `GaussianDiffusion.transition(x, t, t - 1)` | DDPM Eq. 2 |
# | (3.3), (3.7) | two noises make one, two steps make one | `GaussianDiffusion.transition(x, t, t - 2)` | |
# | (3.10) | the marginal, as a law | `GaussianDiffusion.marginal(x0, t)` | DDPM Eq. 4 |
# | (3.14) | the marginal, with a noise | `GaussianDiffusion.q_sample(x0, t, noise)` | DDPM, above Eq. 9; DDIM Eq. 4 |
# | (3.16), (3.17) | the weight of each noise; the squares sum to $1-\bar\alpha_t$ | `NoiseSchedule.one_minus_alpha_bar` | |
# | (3.19) | the one noise that makes jump and walk equal | | |
# | (3.21), (3.22) | what a shared noise does | | |
# | (3.23) | from any $s$ to any $t$ | `GaussianDiffusion.transition(x_s, t, s)` | DDIM Eq. 3 (for $s=t-1$) |
# | (3.25) | jumps compose | `NoiseSchedule.alpha_bar` | |
# | (3.27), (3.28) | how $x_s$ and $x_t$ go together | `NoiseSchedule.snr` | |
# | (3.30)–(3.32) | the law of $x_t$ for data, its mean and covariance | `FiniteData.marginal(schedule, t)` | |
# | (3.33) | one random $t$ is fair | | DDPM Eq. 14, Algorithm 1 |
# | (3.35) | without cancellation | `NoiseSchedule.log_alpha_bar` | |
#
# The chain has given up its inside: any $x_t$ costs one noise, any pair two. What we cannot do yet is go back. Given $x_t$, where was $x_{t-1}$?
# Chapter 4 asks that, first with $x_0$ known.

# %%
progress("3")

# %% [markdown]
# ## 3.15 History and further reading
#
# - J. Sohl-Dickstein, E. Weiss, N. Maheswaranathan, S. Ganguli, *Deep Unsupervised Learning using Nonequilibrium
#   Thermodynamics*, 2015, [arXiv 1503.03585](https://arxiv.org/abs/1503.03585). Where training a reversed noising chain began. The authors'
#   published code already draws a random $t$ and corrupts images in one step, with the cumulative product of $1-\beta$.
# - J. Ho, A. Jain, P. Abbeel, *Denoising Diffusion Probabilistic Models*, 2020, [arXiv 2006.11239](https://arxiv.org/abs/2006.11239).
#   States the marginal as its Eq. 4, in one sentence and without proof, and builds its training on it. $\alpha_t$ and $\bar\alpha_t$ are its symbols.
# - J. Song, C. Meng, S. Ermon, *Denoising Diffusion Implicit Models*, 2020, [arXiv 2010.02502](https://arxiv.org/abs/2010.02502). Writes
#   $\alpha_t$ for our $\bar\alpha_t$, and starts from what the three panels of section 3.9 show: the loss depends on the marginals only.
# - A. Nichol, P. Dhariwal, *Improved Denoising Diffusion Probabilistic Models*, 2021, [arXiv 2102.09672](https://arxiv.org/abs/2102.09672).
#   Its Eq. 8 is the marginal, with a product that starts at $0$: harmless if $\alpha_0 = 1$, off by one otherwise.
# - D. Kingma, T. Salimans, B. Poole, J. Ho, *Variational Diffusion Models*, 2021, [arXiv 2107.00630](https://arxiv.org/abs/2107.00630). Starts from the
#   marginals and derives the transition between any two times from them: our (3.23), read the other way round.

# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2 The forward process

# %% tags=["hide-input"]
import math

import numpy as np
import sympy
import torch

from ddpm_lite import Gaussian, GaussianDiffusion, NoiseSchedule
from ddpm_lite.claims import claim, fact
from ddpm_lite.data import digits
from ddpm_lite.exercises import check, hint, progress, solution  # noqa: F401 (two for you to call)
from ddpm_lite.oracle import FiniteData, GaussianData, GaussianMixture
from ddpm_lite.plotting import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    VERMILLION,
    figure,
    plot_density,
    plot_samples,
    show,
    use_book_style,
)

use_book_style()


def normals(shape, generator):
    """Independent standard normal numbers, in float64."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


# %% tags=["hide-input"]
linear = NoiseSchedule.linear(1000)                  # the schedule of the DDPM paper
chain = GaussianDiffusion(linear)
humps = GaussianMixture([0.5, 0.5], [[-0.95], [0.95]], [[[0.0975]], [[0.0975]]])

g = torch.Generator().manual_seed(0)
shown = (0, 50, 100, 200, 300, 400, 600, 1000)
x = digits("train")[0][[3, 8]].double()
picture = {0: x}
for t in range(1, 1001):                             # a thousand small steps, one after the other
    x = chain.transition(x, t, t - 1).sample(g)
    if t in shown:
        picture[t] = x

fig, axes = figure(3, len(shown), row_height=1.05)
for column, t in zip(axes.T, shown, strict=True):
    for ax, image in zip(column[:2], picture[t], strict=True):
        ax.imshow(image[0].numpy(), cmap="gray", vmin=-1, vmax=1)
        ax.axis("off")
    column[0].set_title(f"$t={t}$", loc="center", fontsize=10)
    plot_density(column[2], GaussianData([0.0], [[1.0]]), (-3, 3), color=GREY, ls="--", lw=1)
    plot_density(column[2], humps.marginal(linear, t), (-3, 3), color=BLUE)
    column[2].set(ylim=(0, 0.7), yticks=[], xticks=[-2, 0, 2])
    column[2].set_xlabel("$x_t$", fontsize=9)
show(fig, "Two handwritten digits, a three and an eight, at eight moments of the chain: clear at "
          "t = 0, grainy at 100, hard to read at 300, noise to the eye from 400 on. Below, the "
          "exact density of a law with two humps at the same moments: the humps widen, merge near "
          "t = 300, and from t = 400 on the curve lies on a dashed standard bell curve.")

# %% [markdown]
# *What does a thousand steps of a known kind of damage do?* It wipes out two digits, and it does the same to a
# distribution. The blue curve in the last row is exact at every $t$: two humps become the one bell from which a
# random number generator draws (dashed). This chapter builds that damage, so that every step is a formula and the
# end is known in advance.
#
# **You will**
# - write one noising step as a density and as a line of code, and say why both are needed;
# - show why the step shrinks before it adds, and recognise three slips by the variance they produce;
# - estimate a gradient through a sample in two ways, and compute how noisy each of them is;
# - compare the linear and the cosine schedule by their signal-to-noise ratio;
# - decide whether a chain is long enough, and measure in nats what it leaves behind.
#
# **You need** three sections of the toolbox, on [affine maps](A_toolbox.ipynb#T.2-Affine-maps),
# [sums of independent Gaussians](A_toolbox.ipynb#T.3-Sums-of-independent-Gaussians) and the
# [KL divergence](A_toolbox.ipynb#T.6-KL-between-Gaussians); the letters are those of the
# [notation page](N_notation.ipynb).
#
# **Time**: 80 minutes to read, 70 for seven exercises, under a minute to run.
#
# **The question.** A generative model turns random numbers, which are easy to get, into data, which are not. To learn
# that map in one leap is hard, if only because nobody can say which random numbers should become which picture. So turn
# the problem round. *Destroying* a picture is easy, and if we destroy it in many small steps of a kind that we choose
# ourselves, we know all there is to know about each step. What is left to learn is how to undo one small step. Hence
# the first question is not how to generate but how to destroy well. We ask three things of the damage: every
# step is a distribution that we can write down; every step can be made small; and the end does not depend on the
# picture that we started from.

# %% [markdown]
# ## 2.1 One step
#
# Let $x_{t-1}$ be a picture, flattened to $D$ numbers, or for now just one number. One step of the chain makes
# it a little smaller and adds a little noise. How much is said by a single number per step, $\beta_t$, the *variance of
# the noise* that step $t$ adds. What is left over from one we call
#
# $$
# \alpha_t = 1-\beta_t ,\qquad 0<\beta_t<1 ,\qquad t = 1,\dots,T ,
# \tag{2.1}
# $$
#
# where $T$ is the number of steps and $t=0$ stands for clean data. The step is
#
# $$
# x_t = \sqrt{\alpha_t}\;x_{t-1} + \sqrt{1-\alpha_t}\;\varepsilon_t ,
# \qquad \varepsilon_t \sim \mathcal N(0, I) ,
# \tag{2.2}
# $$
#
# with $\varepsilon_1,\dots,\varepsilon_T$ independent of one another and of $x_0$. The roots are there because (2.2)
# multiplies *values*, while $\alpha_t$ and $1-\alpha_t$ are shares of *variance*, and a factor $a$ on a value multiplies its
# variance by $a^2$. That the two shares add up to one is a choice, and section 2.3 is about it.
#
# (2.2) is a recipe. It also says what the law of the result is. Hold $x_{t-1}$ fixed: then $\sqrt{\alpha_t}\,x_{t-1}$ is a
# fixed vector and $\varepsilon_t$ is the only thing that is random, so $x_t$ is an affine map of a standard Gaussian. By (T.8) its
# mean is $\sqrt{\alpha_t}\,x_{t-1}$ and its covariance is $(1-\alpha_t)I$. As a density,
#
# $$
# q(x_t\mid x_{t-1}) = \mathcal N\big(x_t;\ \sqrt{\alpha_t}\,x_{t-1},\ (1-\alpha_t)\,I\big) .
# \tag{2.3}
# $$
#
# The first place holds the point at which the density is evaluated, then come mean and covariance. The letter $q$ will
# stand for every law of the forward process. No $q$ holds a parameter that is learned.
#
# Both forms are needed: (2.2) to draw, (2.3) to compute. Here they are, on a schedule that is short and strong so that
# a mistake would show. The library's `transition(x_s, t, s)` returns the Gaussian (2.3).

# %%
betas = torch.tensor([0.10, 0.25, 0.40, 0.55], dtype=torch.float64)
short = NoiseSchedule.from_betas(betas)
short_chain = GaussianDiffusion(short)
claim("2.1", 1 - betas, short.alpha[1:], relation="definition")

x_2 = torch.tensor([[0.9, -0.4, 0.1]], dtype=torch.float64)         # one point with D = 3
alpha_3 = 1 - 0.40
law = short_chain.transition(x_2, 3, 2)                             # q(x_3 | x_2), by the library

noise = normals((1, 3), g)
x_3 = alpha_3**0.5 * x_2 + (1 - alpha_3) ** 0.5 * noise             # (2.2), by hand
claim("2.2", x_3, law.mean + law.variance.sqrt() * noise)

squares = ((x_3 - alpha_3**0.5 * x_2) ** 2).sum()
log_q = -squares / (2 * (1 - alpha_3)) - 3 / 2 * math.log(2 * math.pi * (1 - alpha_3))      # (T.3)
claim("2.3", log_q, law.log_prob(x_3).item())

# %% [markdown]
# That (2.2) draws from (2.3) is a statement about many draws. *Do a million of them, all made from one $x_2$, have the density (2.3)?*

# %%
n = 1_000_000
draws = alpha_3**0.5 * 0.9 + (1 - alpha_3) ** 0.5 * normals(n, g)
claim("2.3", draws.mean(), alpha_3**0.5 * 0.9, standard_error=((1 - alpha_3) / n) ** 0.5)
claim("2.3", draws.var(), 1 - alpha_3, standard_error=(1 - alpha_3) * (2 / n) ** 0.5)

fig, ax = figure(width="half")
plot_samples(ax, draws, (-2, 3.5), bins=80, label="a million steps (2.2)")
one_step_law = GaussianData([alpha_3**0.5 * 0.9], [[1 - alpha_3]])
plot_density(ax, one_step_law, (-2, 3.5), label="density (2.3)")
ax.axvline(0.9, ymax=0.7, color=BLACK, lw=1, ls=":", label="$x_2$")
ax.set(xlabel="$x_3$", ylabel="density", ylim=(0, 0.95))
ax.legend(fontsize=8, loc="upper right")
show(fig, "A histogram of a million values of x_3 drawn by the recipe fills the bell curve of the "
          "density. The bell is centred a little to the left of the dotted line at x_2 = 0.9, "
          "because the step shrinks.")

# %% [markdown]
# > **Pitfall: a sample is not a distribution.** Notes and blog posts write $x_t = \mathcal N(\sqrt{\alpha_t}\,x_{t-1}, (1-\alpha_t)I)$. The left
# > side is a vector; the right side is a law. One is *drawn from* the other, and the sign for that is $\sim$, not $=$.
# > This is more than grammar. Two things equal to a third are equal to each other, but two draws from one law are not;
# > and a density is not a probability, so that nothing keeps it below one. The cell shows both.

# %%
two_draws = [law.sample(g)[0, 0].item() for _ in range(2)]
fact("two draws of the same x_3, first coordinate", two_draws, digits=2)
fact("density of one DDPM step (β = 1e-4) at its own mean", (2 * math.pi * 1e-4) ** -0.5, digits=3)


# %% [markdown]
# **Exercise 2.1** (1 point, 5 minutes, ●○○) — *One step.* Write `one_step(x, beta, noise)` that returns $x_t$ for
# $x_{t-1}$ = `x`, $\beta_t$ = `beta` (a Python number) and $\varepsilon_t$ = `noise`; `x` and `noise` are tensors of one shape.
# (Stuck? `hint("2.1")` gives one hint at a time, `solution("2.1")` the answer; so for every exercise.)

# %%
def one_step(x, beta, noise):
    raise NotImplementedError("your turn")

check("2.1", one_step)


# %% [markdown]
# ## 2.2 A chain of steps
#
# Put $T$ such steps in a row. What is the law of the whole path $x_1,\dots,x_T$, for a given start $x_0$? For any random
# variables the joint density is a product of conditional ones, each variable given all before it. (This is the product
# rule of probability, used $T-1$ times.) Now look at (2.2) again: the step to $x_t$ uses $x_{t-1}$ and a noise $\varepsilon_t$ that is
# independent of everything earlier. Once $x_{t-1}$ is known, $x_0,\dots,x_{t-2}$ have nothing to add. This is the *Markov
# property*, and it shortens every factor:
#
# $$
# q(x_{1:T}\mid x_0) \;=\; \prod_{t=1}^{T} q(x_t\mid x_0, x_1,\dots,x_{t-1})
# \;=\; \prod_{t=1}^{T} q(x_t\mid x_{t-1}) ,
# \tag{2.4}
# $$
#
# where $x_{1:T}$ is short for $(x_1,\dots,x_T)$. So the forward process is fixed by (2.3) and the list of the $\beta_t$.
#
# Is the product really the density of the path? There is a second way to that density, which knows no product. In one
# dimension, the $T$ equations (2.2) are *linear* in the path: $Bx = r + C\varepsilon$, where $B$ has ones on the diagonal and
# $-\sqrt{\alpha_t}$ below it, $C$ holds the $\sqrt{1-\alpha_t}$ on its diagonal, and $r = (\sqrt{\alpha_1}\,x_0, 0, \dots, 0)$. Hence $x = B^{-1}r + B^{-1}C\varepsilon$, an affine map
# of $\varepsilon \sim \mathcal N(0, I)$, and by (T.8) the whole path is one Gaussian vector with mean $B^{-1}r$ and covariance $AA^\top$, $A = B^{-1}C$.

# %%
def log_normal(x, mean, variance):
    """The logarithm of the one-dimensional Gaussian density (T.1)."""
    return -((x - mean) ** 2) / (2 * variance) - 0.5 * math.log(2 * math.pi * variance)


alpha = short.alpha
B = torch.eye(4, dtype=torch.float64) - torch.diag(alpha[2:].sqrt(), -1)
A = torch.linalg.solve(B, torch.diag((1 - alpha[1:]).sqrt()))
r = torch.zeros(4, dtype=torch.float64)
r[0] = alpha[1].sqrt() * 0.7                                         # the path starts at x_0 = 0.7
joint = torch.distributions.MultivariateNormal(torch.linalg.solve(B, r), A @ A.T)

paths = torch.cat([torch.full((5, 1), 0.7, dtype=torch.float64), normals((5, 4), g)], dim=1)
product = sum(log_normal(paths[:, t], alpha[t].sqrt() * paths[:, t - 1], 1 - alpha[t].item())
              for t in range(1, 5))
claim("2.4", product, joint.log_prob(paths[:, 1:]), note="five paths, in logarithms")
covariance = A @ A.T
fact("correlation of x_1 and x_4, given x_0",
     covariance[0, 3] / (covariance[0, 0] * covariance[3, 3]).sqrt(), digits=2)

# %% [markdown]
# > **What could go wrong.** "Markov" does not mean that $x_4$ and $x_1$ are independent. They are correlated, as the last line says. It
# > means that they are independent *once $x_2$ or $x_3$ is known*.
#
# Now to real data. The loop below is (2.2), a thousand times, on 400 of scikit-learn's digits at once. Each is a
# picture of $8\times8$ pixels with values in $[-1,1]$. We keep a few moments for later.

# %%
images, labels = digits("train")
clean = images.double().flatten(1)                                   # (1442, 64), pixels in [-1, 1]
alpha = linear.alpha

g = torch.Generator().manual_seed(1)
x, moments, drawn = clean[:400], {}, 0
for t in range(1, linear.T + 1):
    x = alpha[t].sqrt() * x + (1 - alpha[t]).sqrt() * normals(x.shape, g)       # (2.2)
    drawn += x[0].numel()
    if t % 100 == 0:
        moments[t] = x

fact("pixel variance at t = 0, 200, 400, 1000",
     [clean[:400].var()] + [moments[t].var() for t in (200, 400, 1000)], digits=2)
fact("random numbers drawn for each digit", drawn)

# %% [markdown]
# The variance of the pixels starts at 0.57 and ends near one, the variance of the noise. Where that
# comes from is the next question. And note the last line: to see one digit at $t=1000$ we drew 64 random numbers a
# thousand times. Keep that in mind as a complaint; chapter 3 answers it.

# %% [markdown]
# ## 2.3 Why shrink?
#
# Why not just add noise? Follow one coordinate, and keep only two numbers of its law: the mean $m_t = \mathbb E\,x_t$
# and the variance $V_t = \operatorname{Var} x_t$. These average over *everything* that is random, the data $x_0$ and the noises,
# and nothing is assumed about the law of $x_0$ except that $m_0$ and $V_0$ exist. Expectation is linear and $\mathbb E\,\varepsilon_t = 0$. Variances of
# independent variables add, $x_{t-1}$ and $\varepsilon_t$ are independent, and a factor $a$ multiplies a variance by $a^2$. So (2.2) gives
#
# $$
# m_t = \sqrt{\alpha_t}\;m_{t-1} ,\qquad
# V_t = \alpha_t\,V_{t-1} + (1-\alpha_t) .
# \tag{2.5}
# $$
#
# The second is an average of $V_{t-1}$ and $1$ with weights $\alpha_t$ and $1-\alpha_t$. Subtract one from both sides to see what an average does:
#
# $$
# V_t - 1 \;=\; \alpha_t V_{t-1} - \alpha_t \;=\; \alpha_t\,(V_{t-1}-1) .
# \tag{2.6}
# $$
#
# Whatever the variance is, each step brings it nearer to $1$, by the factor $\alpha_t$. If it is $1$ already, it stays. Likewise
# each step brings the mean nearer to $0$. So the chain pulls every law towards mean $0$ and variance $1$, and a variance of $1$ is kept: hence the name
# *variance preserving*. It also means that the network of later chapters sees inputs of about the same size at every $t$.
#
# We check (2.5) twice: against the exact law of $x_t$ for Gaussian data, and by walking two million points
# that start from a law as un-Gaussian as can be, on $0$ (a quarter of the points) and $2$ (the rest).

# %%
alpha = short.alpha
m, V = [2.0], [3.0]
for t in range(1, 5):
    m.append(alpha[t].item() ** 0.5 * m[-1])                          # (2.5)
    V.append(alpha[t].item() * V[-1] + 1 - alpha[t].item())
exact_laws = [GaussianData([2.0], [[3.0]]).marginal(short, t) for t in range(5)]
exact_variance = torch.stack([law.covariance[0, 0] for law in exact_laws])
claim("2.5", m, torch.cat([law.mean for law in exact_laws]), note="means")
claim("2.5", V, exact_variance, note="variances")
claim("2.6", exact_variance[1:] - 1, alpha[1:] * (torch.tensor(V, dtype=torch.float64)[:-1] - 1))

n = 2_000_000
start = 2.0 * (torch.arange(n) % 4 > 0)                              # a quarter on 0, the rest on 2
x, mean, variance = start.double(), 1.5, 0.75
for t in (1, 2, 3):
    x = alpha[t].sqrt() * x + (1 - alpha[t]).sqrt() * normals(n, g)
    mean, variance = alpha[t].item() ** 0.5 * mean, alpha[t].item() * variance + 1 - alpha[t].item()
spread = ((x - x.mean()) ** 4).mean() - x.var() ** 2                 # Var of a squared deviation
claim("2.5", x.mean(), mean, standard_error=(variance / n) ** 0.5, note="mean, two-point data")
claim("2.5", x.var(), variance, standard_error=(spread / n) ** 0.5, note="variance, two-point data")

# %% [markdown]
# Now leave the shrink out: $x_t = x_{t-1} + \sqrt{\beta_t}\,\varepsilon_t$. Nothing is taken away, and the variances pile up:
#
# $$
# V_t = V_{t-1} + \beta_t = V_0 + \sum_{k=1}^{t}\beta_k .
# \tag{2.7}
# $$
#
# Such a chain is called *variance exploding*. It is a legitimate design, and exercise 2.7 will ask you to judge it, but it has no
# resting point: where it ends depends on the sum of the $\beta$ and on the data's own mean and variance.
#
# Between the two lie the slips. Any step of the form $x \leftarrow a\,x + b\,\varepsilon$ turns a variance $V$ into $a^2V + b^2$. If it is
# repeated, and $a^2<1$, the variance settles where it no longer changes: each repetition multiplies the distance from there by $a^2$, as in (2.6). Solve $V_\infty = a^2V_\infty + b^2$:
#
# $$
# V_\infty = \frac{b^2}{1-a^2} .
# \tag{2.8}
# $$
#
# The right step has $a^2=\alpha$, $b^2=1-\alpha$ and $V_\infty = 1$. Forget a root and something else happens.
#
# > **Pitfall: variance where a standard deviation belongs.** The root is easily dropped, on the signal or on the noise.
# > - *On the signal*, $x_t = \alpha_t x_{t-1} + \sqrt{1-\alpha_t}\,\varepsilon_t$: then $V_\infty = (1-\alpha)/(1-\alpha^2) = 1/(1+\alpha)$, about one half.
# > - *On the noise*, $x_t = \sqrt{\alpha_t}\,x_{t-1} + (1-\alpha_t)\,\varepsilon_t$: then $V_\infty = (1-\alpha)^2/(1-\alpha) = \beta$, next to nothing.
# >
# > Nothing crashes and the pictures still turn to grain. The symptom is the variance of $x_T$: it should be 1, and it is 0.5 or 0.02. Print
# > it once whenever you write a forward process.

# %%
slips = {                                                            # name: (a², b²) for a given β
    "right, (2.2)": lambda b: (1 - b, b),
    "no shrink": lambda b: (1.0, b),
    "root dropped on the signal": lambda b: ((1 - b) ** 2, b),
    "root dropped on the noise": lambda b: (1 - b, b**2),
}
betas = linear.beta[1:].tolist()
curves = {}
for name, slip in slips.items():
    V = [clean.var().item()]
    for beta in betas:
        a2, b2 = slip(beta)
        V.append(a2 * V[-1] + b2)
    curves[name] = V
    fact(f"variance of x_1000, {name}", V[-1], digits=3)
fact("sum of DDPM's 1000 β", sum(betas), digits=4)

# (2.7): the sum against a walk without the shrink, on the two-point data
x = start.double()
for beta in (0.10, 0.25, 0.40):
    x = x + beta**0.5 * normals(n, g)
spread = ((x - x.mean()) ** 4).mean() - x.var() ** 2
claim("2.7", 0.75 + 0.10 + 0.25 + 0.40, x.var(), standard_error=(spread / n) ** 0.5)

# (2.8): the formula against ten thousand repetitions of the step
for a2, b2 in ((0.98, 0.02), (0.98**2, 0.02), (0.98, 0.02**2)):
    V = 5.0
    for _ in range(10_000):
        V = a2 * V + b2
    claim("2.8", b2 / (1 - a2), V, note=f"a² = {a2:.4g}, b² = {b2:.4g}")

# %%
fig, ax = figure(row_height=2.8)
for (name, V), colour in zip(curves.items(), (BLUE, GREY, VERMILLION, ORANGE), strict=True):
    ax.plot(V, color=colour, label=name)
ax.axhline(1, color=BLACK, lw=0.8, ls=":")
ax.set(xlabel="$t$", ylabel="$V_t$", yscale="log", ylim=(0.0015, 30))
ax.legend(loc="lower left", ncols=2)
show(fig, "The pixel variance against t, on a logarithmic axis, for four steps. The right step "
          "rises from 0.57 to 1 and stays. Without the shrink the variance climbs to about 10. "
          "With the root dropped on the signal it settles at one half; with the root dropped on "
          "the noise it falls to 0.02.")

# %% [markdown]
# *Which of these chains ends where sampling will start?* Only the first.
#
# **Exercise 2.2** (1 point, 8 minutes, ●●○) — *Where does it settle?* Someone writes $x_t = \sqrt{1-\beta}\;x_{t-1} + \beta\,\varepsilon_t$ with the
# same $\beta = 0.04$ at every step, and runs it for a very long time. To which *standard deviation* does $x_t$ settle? Predict before you compute, and
# give the number to three digits.

# %%
answer = None

check("2.2", answer)

# %% [markdown]
# ## 2.4 A gradient through a sample
#
# (2.2) keeps the randomness, $\varepsilon_t$, apart from everything else. This is *reparameterisation*, and it buys more than
# a line of code. Suppose that a quantity $x$ is drawn from $\mathcal N(m, V)$ with $V>0$, that $h(x)$ is some loss, and that we want to change $m$
# so that the average loss falls. We need
# $\frac{\partial}{\partial m}\,\mathbb E_{x\sim\mathcal N(m,V)}\,h(x)$, and the trouble is that $m$ sits in the law over which we average. A call
# that returns "a draw from $\mathcal N(m,V)$" hands us a number, and a number has no derivative. There are two ways out.
#
# **Differentiate the sample.** Write $x = m + \sqrt V\,\varepsilon$ with $\varepsilon\sim\mathcal N(0,1)$, as in (T.29). Now the average is over $\varepsilon$, whose law
# knows nothing of $m$. The derivative may move inside (toolbox, [T.8](A_toolbox.ipynb#T.8-Reparameterisation), says when: for instance if $h$ is
# differentiable and $h'$ grows no faster than a polynomial), and the chain rule with $\partial x/\partial m = 1$ gives
#
# $$
# \frac{\partial}{\partial m}\,\mathbb E\,h(x)
# = \frac{\partial}{\partial m}\,\mathbb E_{\varepsilon}\,h(m+\sqrt V\,\varepsilon)
# = \mathbb E_{\varepsilon}\big[\,h'(m+\sqrt V\,\varepsilon)\,\big] .
# \tag{2.9}
# $$
#
# For each draw compute $G_{\text{path}} = h'(x)$; its average is the gradient. This is the *pathwise* estimator: it is what automatic
# differentiation does when it meets (2.2).
#
# **Differentiate the density.** Write the average as an integral. Only the density depends on $m$, and it does so smoothly, so that the derivative may move inside for every $h$, smooth or not, that
# grows no faster than a polynomial: the tails of the bell outrun it. Use $\partial p = p\;\partial\log p$, and $\frac{\partial}{\partial m}\log\mathcal N(x;m,V) = (x-m)/V$ from (T.1):
#
# $$
# \begin{aligned}
# \frac{\partial}{\partial m}\!\int\! h(x)\,\mathcal N(x;m,V)\,dx
# &= \int\! h(x)\,\mathcal N(x;m,V)\,\frac{x-m}{V}\,dx \\
# &= \mathbb E\Big[h(x)\,\frac{x-m}{V}\Big]
# = \mathbb E_{\varepsilon}\Big[h(m+\sqrt V\,\varepsilon)\,\frac{\varepsilon}{\sqrt V}\Big] .
# \end{aligned}
# \tag{2.10}
# $$
#
# The last step is $x - m = \sqrt V\,\varepsilon$. For each draw compute $G_{\text{score}} = h(x)\,\varepsilon/\sqrt V$. This is the *score-function* estimator,
# also known as REINFORCE. (The name comes from statistics, where the score is the derivative of $\log p$ with respect to a *parameter*. In the
# rest of this book it is the derivative with respect to $x$.)
#
# Both estimators are *unbiased*: each has the gradient as its mean, and we have just proved it for both. That the two averages are
# equal is also visible directly. For any $g$ as tame as we asked of $h$, *Stein's identity* (toolbox,
# [T.1](A_toolbox.ipynb#T.1-The-Gaussian-density)), which is integration by parts with the density $\varphi$ of $\mathcal N(0,1)$ and $\varphi'(\varepsilon) = -\varepsilon\,\varphi(\varepsilon)$ (the boundary
# terms are zero, because $\varphi$ falls faster than $g$ grows), says
#
# $$
# \mathbb E\big[\varepsilon\,g(\varepsilon)\big]
# = -\!\int\! g(\varepsilon)\,\varphi'(\varepsilon)\,d\varepsilon
# = \int\! g'(\varepsilon)\,\varphi(\varepsilon)\,d\varepsilon
# = \mathbb E\big[g'(\varepsilon)\big] ,
# \tag{2.11}
# $$
#
# and $g(\varepsilon) = h(m+\sqrt V\,\varepsilon)/\sqrt V$ turns (2.10) into (2.9). We check all three with SymPy, for a polynomial $h$ of degree three with
# coefficients left open, or on a fine grid for a $g$ that is no polynomial; and (2.9) also with autograd.

# %%
m, e = sympy.symbols("m varepsilon", real=True)
V = sympy.symbols("V", positive=True)
bell = sympy.exp(-(e**2) / 2) / sympy.sqrt(2 * sympy.pi)


def expect(expression):
    """The exact mean of a polynomial in ε, by symbolic integration against the bell curve."""
    return sympy.integrate(sympy.expand(expression) * bell, (e, -sympy.oo, sympy.oo))


c = sympy.symbols("c1:4")
x = m + sympy.sqrt(V) * e
h = c[0] * x + c[1] * x**2 + c[2] * x**3
gradient = sympy.diff(expect(h), m)                                  # average, then differentiate
slope = c[0] + 2 * c[1] * x + 3 * c[2] * x**2                        # h′ at x
claim("2.9", expect(slope), gradient)
claim("2.10", expect(h * e / sympy.sqrt(V)), gradient)

grid = torch.linspace(-10, 10, 40_001, dtype=torch.float64, requires_grad=True)
values = torch.tanh(2 * grid) + grid**3                              # some g
(slopes,) = torch.autograd.grad(values.sum(), grid)                  # g′ at every grid point
grid, values = grid.detach(), values.detach()
density = torch.exp(-(grid**2) / 2) / (2 * math.pi) ** 0.5
claim("2.11", torch.trapezoid(grid * values * density, grid),
      torch.trapezoid(slopes * density, grid))

mean = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
sample = mean + 0.25**0.5 * normals(1000, g)                         # a draw that autograd follows
sample.pow(2).mean().backward()
claim("2.9", (2 * sample.detach()).mean(), mean.grad, note="autograd, h(x) = x²")
blocked = torch.distributions.Normal(mean, 0.5).sample((1000,))      # a draw that stops it
print("a gradient can pass through m + √V ε:", sample.requires_grad)
print("a gradient can pass through .sample():", blocked.requires_grad)

# %% [markdown]
# **Equal means, unequal noise.** Take $h(x) = x^2$, where everything can be computed. The gradient is
# $\frac{\partial}{\partial m}(m^2+V) = 2m$. The pathwise estimator is $2x$, with variance $4V$. For the other we need
# $\mathbb E\,G_{\text{score}}^2 = \mathbb E\big[(m+\sqrt V\,\varepsilon)^4\varepsilon^2\big]/V$. Expand the fourth power; odd powers of $\varepsilon$ average to zero, and
# (2.11) with $g(\varepsilon) = \varepsilon,\ \varepsilon^3,\ \varepsilon^5$ gives $\mathbb E\,\varepsilon^2 = 1$, $\mathbb E\,\varepsilon^4 = 3\,\mathbb E\,\varepsilon^2 = 3$, $\mathbb E\,\varepsilon^6 = 5\,\mathbb E\,\varepsilon^4 = 15$:
#
# $$
# \mathbb E\,G_{\text{score}}^2 = \frac{m^4\,\mathbb E\varepsilon^2 + 6m^2V\,\mathbb E\varepsilon^4 + V^2\,\mathbb E\varepsilon^6}{V}
# = \frac{m^4}{V} + 18\,m^2 + 15\,V .
# $$
#
# Subtract the squared mean, $4m^2$:
#
# $$
# \operatorname{Var} G_{\text{path}} = 4V ,\qquad
# \operatorname{Var} G_{\text{score}} = \frac{m^4}{V} + 14\,m^2 + 15\,V .
# \tag{2.12}
# $$
#
# As $V$ gets small the first vanishes and the second explodes: the score-function estimator finds the slope of $h$ only by comparing values
# of $h$ at different $x$, and for small $V$ these hardly differ.

# %%
path, score = 2 * x, x**2 * e / sympy.sqrt(V)
claim("2.12", 4 * V, expect(path**2) - expect(path) ** 2, note="pathwise")
claim("2.12", m**4 / V + 14 * m**2 + 15 * V, expect(score**2) - expect(score) ** 2,
      note="score function")

n, m_value, V_value = 4_000_000, 1.0, 0.25
noise = normals(n, g)
x_value = m_value + V_value**0.5 * noise
path_draws, score_draws = 2 * x_value, x_value**2 * noise / V_value**0.5
score_variance = m_value**4 / V_value + 14 * m_value**2 + 15 * V_value
claim("2.9", path_draws.mean(), 2 * m_value,
      standard_error=(4 * V_value / n) ** 0.5, note="unbiased")
claim("2.10", score_draws.mean(), 2 * m_value,
      standard_error=(score_variance / n) ** 0.5, note="unbiased")
claim("2.12", path_draws.var(), 4 * V_value,
      standard_error=4 * V_value * (2 / n) ** 0.5, note="pathwise, measured")
fact("variance ratio at m = 1, V = 1/4, exact", score_variance / (4 * V_value), digits=4)
fact("and measured", score_draws.var() / path_draws.var(), digits=2)

# %% [markdown]
# **It gets worse with the dimension.** Pictures have many coordinates. Let $x\in\mathbb R^D$, $x = \sqrt V\,\varepsilon$ (mean zero, to save letters), $h(x) = \lVert x\rVert^2$, and ask for the
# derivative with respect to the *first* coordinate of the mean. (In this section there is no chain: $x_1$ and $\varepsilon_1$ are first coordinates, not step 1.) Pathwise: $\partial h/\partial x_1 = 2\sqrt V\,\varepsilon_1$, with variance $4V$ as before. The other
# coordinates do not enter. In the score-function estimator they do: $G_{\text{score}} = h(x)\,\varepsilon_1/\sqrt V = \sqrt V\,\lVert\varepsilon\rVert^2\varepsilon_1$. Its mean is zero by
# symmetry. For its variance split $\lVert\varepsilon\rVert^2 = \varepsilon_1^2 + R$, where $R$ is the sum of the other $D-1$ squares and independent of $\varepsilon_1$. Each square has
# mean $1$ and variance $3-1=2$, so $\mathbb E\,R = D-1$ and $\mathbb E\,R^2 = (D-1)^2 + 2(D-1) = D^2-1$. Therefore
#
# $$
# \frac{\operatorname{Var} G_{\text{score}}}{V} = \mathbb E\big[(\varepsilon_1^2+R)^2\varepsilon_1^2\big]
# = \underbrace{15}_{\mathbb E\varepsilon_1^6} + \underbrace{2\cdot 3\,(D-1)}_{2\,\mathbb E\varepsilon_1^4\,\mathbb E R} + \underbrace{D^2-1}_{\mathbb E\varepsilon_1^2\,\mathbb E R^2}
# = (D+2)(D+4) .
# \tag{2.13}
# $$
#
# It would be unfair to stop here. Since $\mathbb E\,\varepsilon_1=0$, any constant $c$, a *baseline*, may be subtracted from $h$ without changing the mean of the
# estimator, and a good one helps a lot. With $\mathbb E[\lVert\varepsilon\rVert^2\varepsilon_1^2] = 3 + (D-1) = D+2$ the variance becomes a parabola in $c$:
#
# $$
# \begin{aligned}
# \operatorname{Var}\Big[\big(h(x)-c\big)\frac{\varepsilon_1}{\sqrt V}\Big]
# &= V(D+2)(D+4) - 2c\,(D+2) + \frac{c^2}{V} \\
# &= 2V(D+2) + \frac{\big(c-V(D+2)\big)^2}{V} \;\ge\; 2V(D+2) ,
# \end{aligned}
# \tag{2.14}
# $$
#
# with equality at $c = V(D+2)$. (The second form completes the square; multiply it out to get the first.) The best baseline turns growth with $D^2$ into growth with $D$. The pathwise estimator does not grow at all. Its advantage over the other two is a
# factor $(D+2)(D+4)/4$, or $(D+2)/2$: that many draws do the work of one.

# %%
nodes, weights = np.polynomial.hermite_e.hermegauss(4)               # exact up to degree 7
weights = weights / weights.sum()


def cube_mean(function, D):
    """E function(ε) over D standard normal coordinates, by Gauss–Hermite quadrature."""
    grid = np.stack(np.meshgrid(*[nodes] * D, indexing="ij"), axis=-1).reshape(-1, D)
    weight = np.stack(np.meshgrid(*[weights] * D, indexing="ij"), axis=-1).reshape(-1, D).prod(1)
    return (weight * function(grid)).sum()


V_value = 0.3
dimensions = np.arange(1, 7)
exact = [cube_mean(lambda e: V_value * ((e**2).sum(1) * e[:, 0]) ** 2, D) for D in dimensions]
claim("2.13", V_value * (dimensions + 2) * (dimensions + 4), exact, note="D = 1 … 6")


def with_baseline(c, D=5):
    return cube_mean(lambda e: ((V_value * (e**2).sum(1) - c) * e[:, 0]) ** 2 / V_value, D)


baselines = np.linspace(0, 4, 9)
parabola = V_value * 7 * 9 - 2 * baselines * 7 + baselines**2 / V_value           # D = 5
claim("2.14", parabola, [with_baseline(c) for c in baselines], note="the parabola, D = 5")
claim("2.14", 2 * V_value * 7, [with_baseline(c) for c in baselines], relation="<=",
      note="its bottom")
claim("2.14", 2 * V_value * 7, with_baseline(V_value * 7), note="reached at c = V(D+2)")

for name, D in (("a digit, D = 64", 64), ("a colour picture of 32 × 32 pixels, D = 3072", 3072)):
    fact(f"draws that do the work of one, {name}", [(D + 2) * (D + 4) / 4, (D + 2) / 2], digits=4)

# %%
sizes, measured = (1, 4, 16, 64, 256), {"path": [], "score": [], "baseline": []}
for D in sizes:
    e_draws = normals((40_000, D), g)                                # V = 1
    h_draws = e_draws.square().sum(1)
    measured["path"].append((2 * e_draws[:, 0]).var())
    measured["score"].append((h_draws * e_draws[:, 0]).var())
    measured["baseline"].append(((h_draws - (D + 2)) * e_draws[:, 0]).var())
fact("measured with 40,000 draws at D = 64: score over pathwise",
     measured["score"][3] / measured["path"][3], digits=2)

fig, (left, right) = figure(1, 2, row_height=2.9)
plot_samples(left, score_draws, (-3, 13), bins=96, label="score function", color=ORANGE)
plot_samples(left, path_draws, (-3, 13), bins=96, label="pathwise", color=BLUE)
left.axvline(2, color=BLACK, lw=1, ls=":")
left.set(xlabel="one estimate of the gradient", ylabel="density", yticks=[],
         title="$D=1$: same mean")
left.legend()
D = np.array(sizes)
curves = (((D + 2) * (D + 4), "score", "score function", ORANGE),
          (2 * (D + 2), "baseline", "with best baseline", GREEN),
          (4 + 0 * D, "path", "pathwise", BLUE))
for exact, key, name, colour in curves:
    right.plot(D, exact, color=colour, label=name)
    right.plot(D, measured[key], "o", color=colour)
    assert np.allclose(measured[key], exact, rtol=0.25)                # what the picture says
right.set(xlabel="$D$", ylabel="variance", xscale="log", yscale="log", title="dots: measured")
right.legend()
show(fig, "Left: histograms of single estimates of one gradient. Pathwise estimates form a bell "
          "around the true value 2; of the score-function estimates most lie near or below 0, and "
          "a long tail to the right brings their mean to 2. Right: variance against dimension on "
          "logarithmic axes. Pathwise is flat at 4; the score function rises with the square of D, "
          "and with the best baseline it rises in proportion to D. Measured dots lie on the lines.")

# %% [markdown]
# *How many draws is a derivative worth?* At $D=64$, 1122 without a baseline and 33 with the best one.
#
# **When the other one wins.** (2.9) needs $h'$ to exist and to be tame. If $x$ is discrete, or $h$ is a black box or has jumps, (2.10) is
# what remains. And $h'$ can be wilder than $h$: for $h(x) = \sin(10x)$ with $m=0$, $V=1$, the derivative swings between $-10$ and $10$
# while $h$ stays between $-1$ and $1$. Then it is the pathwise estimator that is noisy.

# %%
wild = {"pathwise": 10 * torch.cos(10 * grid), "score function": torch.sin(10 * grid) * grid}
for name, estimate in wild.items():
    mean = torch.trapezoid(estimate * density, grid)
    fact(f"variance for h(x) = sin 10x, {name}",
         torch.trapezoid(estimate**2 * density, grid) - mean**2, digits=3)


# %% [markdown]
# **Where this book needs it.** Not in DDPM's training loss, although one often reads so. There the noise is drawn *before* the network sees
# anything, no parameter stands in front of the draw, and no gradient has to pass it. What DDPM takes from (2.2) is the separate $\varepsilon$: it
# becomes the target that the network learns to predict. A gradient must pass through a sample as soon as something learned stands before
# the draw: the encoder of a variational autoencoder, a noise schedule that is trained, or the earlier steps when
# one differentiates a whole chain of samples.
#
# **Exercise 2.3** (2 points, 12 minutes, ●●○) — *A straight line.* Let $h(x) = a\,x$ in one dimension, with $x\sim\mathcal N(m,V)$. Write `linear_variances(a, m, V)` that returns the
# pair $(\operatorname{Var} G_{\text{path}}, \operatorname{Var} G_{\text{score}})$ of the two estimators of $\frac{\partial}{\partial m}\mathbb E\,h(x)$, for one draw and without a baseline, as formulas. (2.9), (2.10) and (2.11) are all you need.

# %%
def linear_variances(a, m, V):
    raise NotImplementedError("your turn")

check("2.3", linear_variances)

# %% [markdown]
# ## 2.5 How much is left
#
# (2.5) and (2.6) go one step at a time. Multiply up what the steps let through. For $t = 0,\dots,T$ let
#
# $$
# \bar\alpha_t = \prod_{k=1}^{t}\alpha_k ,\qquad \bar\alpha_0 = 1 ,
# \tag{2.15}
# $$
#
# where $\bar\alpha_0$ is the empty product: nothing has happened yet. Then
#
# $$
# m_t = \sqrt{\bar\alpha_t}\;m_0 ,\qquad
# V_t - 1 = \bar\alpha_t\,(V_0-1) ,\qquad\text{that is}\qquad V_t = \bar\alpha_t\,V_0 + (1-\bar\alpha_t) .
# \tag{2.16}
# $$
#
# The proof is by induction. At $t=0$ both hold, as $\bar\alpha_0=1$. If they hold at $t-1$, then $m_t = \sqrt{\alpha_t}\,m_{t-1} = \sqrt{\alpha_t\,\bar\alpha_{t-1}}\;m_0 = \sqrt{\bar\alpha_t}\,m_0$ by (2.5), and
# $V_t-1 = \alpha_t(V_{t-1}-1) = \alpha_t\,\bar\alpha_{t-1}(V_0-1) = \bar\alpha_t(V_0-1)$ by (2.6). So $\bar\alpha_t$ is *the share of the data's variance that is still there at step $t$*, and
# $1-\bar\alpha_t$ is the variance of noise that has been put in its place. A table of $\bar\alpha$ is all that a program needs to keep; the library's `NoiseSchedule` is such a table.
#
# (2.16) speaks of mean and variance only, for any data. What the *law* of $x_t$ is, given $x_0$, is the theorem of chapter 3.

# %%
alpha_bar = [1.0]
for beta in (0.10, 0.25, 0.40, 0.55):
    alpha_bar.append(alpha_bar[-1] * (1 - beta))                      # (2.15)
claim("2.15", alpha_bar, short.alpha_bar, relation="definition")
share = torch.tensor(alpha_bar, dtype=torch.float64)
claim("2.16", share.sqrt() * 2.0, [law.mean.item() for law in exact_laws], note="means")
claim("2.16", share * 3.0 + 1 - share, exact_variance, note="variances")
fact("ᾱ_0 … ᾱ_4 of the short chain", alpha_bar, digits=3)
fact("ᾱ of DDPM's chain at t = 100, 500, 1000", linear.alpha_bar[[100, 500, 1000]], digits=2)

# %% [markdown]
# > **Pitfall: the wrong factor.** Notes write $\bar\alpha_t = \prod_{k=1}^{t}\alpha_t$. The factor is $\alpha_k$, each step's own; as written the formula says $\alpha_t^{\,t}$.
# > Since $\beta$ grows along the chain, $\alpha_t$ is the smallest factor so far and the result is far too small.

# %%
fact("ᾱ_500 and α_500 to the power 500",
     [linear.alpha_bar[500], linear.alpha[500] ** 500], digits=2)

# %% [markdown]
# **One number for the damage.** The part of $x_t$ that still comes from the data has variance $\bar\alpha_tV_0$; the noise has $1-\bar\alpha_t$. For
# data of variance one their ratio is the *signal-to-noise ratio*,
#
# $$
# \mathrm{SNR}_t = \frac{\bar\alpha_t}{1-\bar\alpha_t} ,\qquad
# \log\mathrm{SNR}_t = \log\bar\alpha_t - \log(1-\bar\alpha_t) ,
# \tag{2.17}
# $$
#
# infinite at $t=0$ and falling from then on. It does not care in which units $x_t$ is written: divide $x_t$ by anything you like, and signal and noise shrink alike. On
# the logarithmic scale (natural logarithms throughout) zero means equal parts, and $\bar\alpha$ and $1-\bar\alpha$ play symmetric roles.

# %%
log_snr = linear.alpha_bar[1:].log() - (1 - linear.alpha_bar[1:]).log()
claim("2.17", log_snr, linear.snr[1:].log(), relation="definition")
fact("log SNR of DDPM's chain at t = 1, 250, 500, 1000", log_snr[[0, 249, 499, 999]], digits=3)

# %% [markdown]
# > **Pitfall: one minus almost one.** Early in the chain $\bar\alpha_t$ is very near $1$, and $1-\bar\alpha_t$ is what matters. Half precision cannot tell: in the format bfloat16
# > the numbers just below one are $2^{-8} = 0.0039$ apart, so that everything above $1-2^{-9}$ rounds to one. Code that casts the *table* of $\bar\alpha$ to the images'
# > format and *then* subtracts it from one gets a noise of exactly zero, and trains the network to find noise that is not there. A widely used
# > library does so when it is handed half-precision images, although [one of its pull requests](https://github.com/huggingface/diffusers/pull/3005) describes the danger. The cure: compute the coefficients in float64 and cast last.

# %%
truth = linear.one_minus_alpha_bar.sqrt()
for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
    cast_first = (1 - linear.alpha_bar.to(dtype)).double().sqrt()[1:]
    off = (cast_first / truth[1:] - 1).abs() > 0.1
    fact(f"{name}: steps t ≥ 1 with exactly zero noise", int((cast_first == 0).sum()))
    fact(f"{name}: steps whose noise is off by more than 10 %", int(off.sum()))
cast_first = 1 - linear.alpha_bar.to(torch.bfloat16)
fact("bfloat16: the last step with zero noise", int((cast_first == 0).nonzero().max()))

# %% [markdown]
# > **Pitfall: images left in [0, 1].** SNR is the ratio of signal to noise *for data of variance one*. If pixels that should be in $[-1,1]$ stay in $[0,1]$, then every deviation
# > from the mean is halved, $V_0$ is divided by four, and so is the true ratio $\bar\alpha_tV_0/(1-\bar\alpha_t)$, at every $t$: you train with another schedule than
# > the one you named, $\log 4 = 1.39$ lower. The mean moves too, and a sampler that clips to $[-1,1]$ now allows values that no image has. The cell
# > compares the two by (2.16), pixel values taken over all digits.

# %%
for name, pixels in (("[-1, 1]", clean), ("[0, 1]", (clean + 1) / 2)):
    m_0, V_0 = pixels.mean(), pixels.var()
    share = linear.alpha_bar
    means, variances = share.sqrt() * m_0, share * V_0 + 1 - share   # (2.16)
    fact(f"pixels in {name}: mean at t = 0, 200, 400", means[[0, 200, 400]], digits=2)
    fact(f"pixels in {name}: variance at t = 0, 200, 400", variances[[0, 200, 400]], digits=2)
    fact(f"pixels in {name}: first t at which noise outweighs signal",
         int((share * V_0 < 1 - share).nonzero().min()))

# %% [markdown]
# **Exercise 2.4** (2 points, 10 minutes, ●○○) — *Your own table.* In the file `my_ddpm.py` beside this notebook, write `alpha_bars(betas)`. It takes the tensor
# $\beta_1,\dots,\beta_T$ and returns the tensor $\bar\alpha_0,\bar\alpha_1,\dots,\bar\alpha_T$ of (2.15), one entry longer. This file is yours: it grows with
# the chapters until it is a complete sampler.

# %%
check("2.4", "my_ddpm.alpha_bars")

# %% [markdown]
# ## 2.6 Two schedules
#
# A *schedule* is the choice of the $\beta_t$. The DDPM paper takes $T=1000$ and a straight line,
#
# $$
# \beta_t = \beta_1 + \frac{t-1}{T-1}\,(\beta_T-\beta_1) ,\qquad \beta_1 = 10^{-4},\quad \beta_T = 0.02 .
# \tag{2.18}
# $$
#
# The Improved DDPM paper starts from the other end. It chooses the curve of $\bar\alpha$, a piece of a squared cosine, and lets the $\beta$ follow:
#
# $$
# \bar\alpha_t = \frac{f(t)}{f(0)} ,\qquad f(t) = \cos^2\!\Big(\frac{t/T+\delta}{1+\delta}\cdot\frac\pi2\Big) ,\qquad \delta = 0.008 .
# \tag{2.19}
# $$
#
# The argument holds $t/T$, which runs from $0$ to $1$, and $f(0)$ is not quite $1$ because of the *offset* $\delta$, so it has to be divided out. (The paper writes $s$ for the
# offset; in this book $s$ always means an earlier step.) From any table of $\bar\alpha$ one gets the steps back, since $\bar\alpha_t = \alpha_t\,\bar\alpha_{t-1}$:
#
# $$
# \begin{gathered}
# \beta_t = 1-\alpha_t = 1 - \frac{\bar\alpha_t}{\bar\alpha_{t-1}} ,\\
# \text{for the cosine cut off at } \beta_{\max}:\quad
# \beta_t = \min\Big(1-\frac{f(t)}{f(t-1)},\ \beta_{\max}\Big) ,\quad \beta_{\max} = 0.999 .
# \end{gathered}
# \tag{2.20}
# $$
#
# Why cut? At $t=T$ the angle is $\pi/2$, so $f(T)=0$: without the cut, $\beta_T=1$, the last step wipes out everything, and $\log\mathrm{SNR}_T=-\infty$. Which steps does the
# cut touch? Write $\psi = \frac{\pi}{2(1+\delta)T}$. With $t=T-k$ the angle is $\frac\pi2-k\psi$, hence $f(T-k) = \cos^2(\frac\pi2-k\psi) = \sin^2(k\psi)$, and
#
# $$
# \beta_{T-k} = 1-\frac{\sin^2(k\psi)}{\sin^2\big((k+1)\psi\big)}
# \;\longrightarrow\; 1-\Big(\frac{k}{k+1}\Big)^{\!2}\qquad (T\to\infty) ,
# \tag{2.21}
# $$
#
# because $\sin(k\psi)\approx k\psi$ for small $\psi$. The last values are $1,\ 3/4,\ 5/9,\dots$ *for every long chain*. So the cut touches $\beta_T$ and nothing else. It makes $\bar\alpha_T$ a thousandth of
# $\bar\alpha_{T-1}$ instead of zero. A program that cuts $\beta$ has to re-derive $\bar\alpha$ from the cut $\beta$; else its tables contradict each other at $t=T$.

# %%
T = 1000
t = torch.arange(1, T + 1, dtype=torch.float64)
claim("2.18", 1e-4 + (t - 1) / (T - 1) * (0.02 - 1e-4), linear.beta[1:])

cosine = NoiseSchedule.cosine(T)
steps = torch.arange(T + 1, dtype=torch.float64)
f = torch.cos((steps / T + 0.008) / 1.008 * math.pi / 2) ** 2
claim("2.19", (f / f[0])[:-1], cosine.alpha_bar[:-1], note="all t but the last, which is cut")
claim("2.20", torch.clamp(1 - f[1:] / f[:-1], max=0.999), cosine.beta[1:])
claim("2.20", 1 - cosine.alpha_bar[1:] / cosine.alpha_bar[:-1], cosine.beta[1:])

k = torch.arange(1, T, dtype=torch.float64)
psi = math.pi / (2 * 1.008 * T)
claim("2.21", 1 - torch.sin(k * psi) ** 2 / torch.sin((k + 1) * psi) ** 2, cosine.beta[1:T].flip(0))
lengths = np.array([50, 100, 200, 400, 800])
gap = [abs(NoiseSchedule.cosine(int(T)).beta[-2].item() - 3 / 4) for T in lengths]
claim("2.21", (1 / lengths, gap), 2, relation="order", note="β before the last tends to 3/4")

fact("steps that the cut touches, T = 50, 1000, 4000",
     [int((NoiseSchedule.cosine(T).beta > 0.9989).sum()) for T in (50, 1000, 4000)])
fact("the last three β of the cosine schedule, T = 1000", cosine.beta[-3:], digits=3)
fact("ᾱ_T, linear and cosine", [linear.alpha_bar[-1], cosine.alpha_bar[-1]], digits=2)
fact("1/√ᾱ_T, linear and cosine",
     [linear.alpha_bar[-1] ** -0.5, cosine.alpha_bar[-1] ** -0.5], digits=3)

# %% [markdown]
# The last line matters later. To get back from $x_T$ to an estimate of the clean picture, chapter 4 divides by $\sqrt{\bar\alpha_T}$. Under the cosine schedule an error in the
# predicted noise is then blown up twenty-thousandfold.
#
# And the offset? Without it the first steps would be tiny. The authors chose $\delta$ such that $\sqrt{\beta_1}$, the standard deviation of the first noise, is a little smaller than the width
# $1/127.5$ of one grey level of an 8-bit image scaled to $[-1,1]$.

# %%
no_offset = 1 - math.cos(math.pi / 2 / 1000) ** 2
fact("√β_1 of the cosine without offset, with it, and one grey level",
     [no_offset**0.5, cosine.beta[1] ** 0.5, 1 / 127.5], digits=3)
for name, schedule in (("linear", linear), ("cosine", cosine)):
    share, log_snr = schedule.alpha_bar[1:], schedule.snr[1:].log()
    fact(f"{name}: first t with SNR below 1", int((log_snr < 0).nonzero().min()) + 1)
    fact(f"{name}: steps of 1000 with ᾱ below 1 %", int((share < 0.01).sum()))
    fact(f"{name}: steps of 1000 with |log SNR| below 4", int((log_snr.abs() < 4).sum()))

fig, (left, right) = figure(1, 2)
for name, schedule, colour in (("linear", linear, BLUE), ("cosine", cosine, VERMILLION)):
    left.plot(schedule.alpha_bar, color=colour, label=name)
    right.plot(torch.arange(1, 1001), schedule.snr[1:].log(), color=colour, label=name)
right.axhline(0, color=BLACK, lw=0.8, ls=":")
left.set(xlabel="$t$", ylabel=r"$\bar\alpha_t$")
right.set(xlabel="$t$", ylabel=r"$\log\,\mathrm{SNR}_t$")
left.legend()
show(fig, "Left: ᾱ against t. The linear schedule drops early, to one half at 260, and is near "
          "zero for the last third of the chain; the cosine schedule falls almost in a straight "
          "line, with one half near 500. Right: log SNR. Both start near 10. Linear sinks steadily "
          "to minus 10; cosine stays higher, is nearly straight from 4 to minus 4, and plunges "
          "below minus 19 at the very last step.")


# %% [markdown]
# *Where does each schedule spend its steps?* Whether a shape is *better* is an empirical question; what it *does* can be read off. The linear schedule has used up half of the signal at $t=260$ and
# spends a third of its steps below $\bar\alpha = 1\,\%$, where hardly anything is left to destroy. The cosine schedule gives the middle range,
# $|\log\mathrm{SNR}|<4$, 835 of its steps, against 591.
#
# What was *measured*, in 2021: Nichol and Dhariwal (arXiv 2102.09672) report that on images of $32^2$ and $64^2$ pixels the end of the linear schedule contributes little to sample quality, and that up to a fifth of the
# reverse steps could be skipped there without much harm. With 4000 steps (the linear $\beta$ divided by four) and the same loss, they give for linear → cosine: on ImageNet $64^2$ 3.77 → 3.68 bits/dim (a code length per value) and FID 31.3 → 27.0; on CIFAR-10
# 3.37 → 3.26 bits/dim, but FID 2.90 → 3.05, with different dropout. (FID is a distance between sets of images. For both numbers smaller is better.) So the cosine schedule gave better likelihoods on both data sets and better samples on one of them.
# The right schedule also depends on the size of the images (Chen, arXiv 2301.10972): neighbouring pixels say nearly the same, so the larger the picture, the more noise it takes to hide it. Section 2.8 shows this effect on digits.
#
# **Exercise 2.5** (2 points, 10 minutes, ●○○) — *The cosine.* Write `cosine_alpha_bar(t, T, offset)` that returns $\bar\alpha_t$ of (2.19), not cut, for an int
# $0\le t\le T$ and any offset $\delta$ = `offset` > 0. Use `math`.

# %%
def cosine_alpha_bar(t, T, offset):
    raise NotImplementedError("your turn")

check("2.5", cosine_alpha_bar)

# %% [markdown]
# **Exercise 2.6** (2 points, 10 minutes, ●●○) — *Your own step.* In `my_ddpm.py`, write `forward_step(x, t, noise, alpha_bar)` that returns $x_t$ of (2.2) for $x_{t-1}$ = `x` and $\varepsilon_t$ = `noise`. This time
# the schedule comes as the table `alpha_bar` that your `alpha_bars` makes; `t` is an int with $1\le t\le T$.

# %%
check("2.6", "my_ddpm.forward_step")

# %% [markdown]
# ## 2.7 How long is long enough?
#
# Sampling will start from $\mathcal N(0, I)$, so the chain had better end there. Two questions: how small is $\bar\alpha_T$, and how far does that leave the law of $x_T$ from $\mathcal N(0,I)$?
#
# **How small.** For $0<\beta<1$ we have $\log(1-\beta) < -\beta$ (the logarithm lies below its tangent at one). Take the logarithm of (2.15), use this in every term, and undo the logarithm:
#
# $$
# \bar\alpha_T \;\le\; \exp\Big(-\sum_{t=1}^{T}\beta_t\Big) ,
# \tag{2.22}
# $$
#
# and for small $\beta$ the two are nearly equal. It is the *sum* of the $\beta$ that decides. For the straight line (2.18) the sum is about $T\cdot 0.01$: ten for $T=1000$, but one half for $T=50$.
#
# > **Pitfall: a shorter chain with the same β.** To save time one sets $T=50$ or $T=100$ and leaves $\beta_1$ and $\beta_T$ as they are. Small teaching codes ship like this, one of them with $T=50$. Then most of the picture survives to
# > $x_T$, and sampling starts from $\mathcal N(0,I)$ as if it did not. The usual repair is to scale the line (2.18) by $1000/T$, which keeps the sum. It has a limit: at $T=20$
# > the last $\beta$ is $1000/20\cdot 0.02 = 1$, and below that it is larger than one, where (2.2) asks for the root of a negative number. There one code base returns NaN and another stops; our library refuses already at $T=20$. The cosine schedule works for every $T$.

# %%
candidates = {
    "linear, T = 1000": linear,
    "cosine, T = 1000": cosine,
    "linear, T = 100, β as for 1000": NoiseSchedule.linear(100),
    "linear, T = 50, β as for 1000": NoiseSchedule.linear(50),
    "linear, T = 50, β scaled by 20": NoiseSchedule.linear(50, 20 * 1e-4, 20 * 0.02),
    "cosine, T = 50": NoiseSchedule.cosine(50),
}
for name, schedule in candidates.items():
    fact(f"ᾱ_T of {name}", schedule.alpha_bar[-1], digits=3)
claim("2.22", [schedule.alpha_bar[-1] for schedule in candidates.values()],
      [torch.exp(-schedule.beta.sum()) for schedule in candidates.values()], relation="<=")
fact("the bound (2.22) for linear, T = 1000", torch.exp(-linear.beta.sum()), digits=3)
fact("last β of the scaled line at T = 50, 20, 10",
     [1000 / T * 0.02 for T in (50, 20, 10)], digits=2)
try:
    NoiseSchedule.linear(20, 1000 / 20 * 1e-4, 1000 / 20 * 0.02)
except ValueError as error:
    print("T = 20:", error)

# %% [markdown]
# **How far, exactly.** Let one coordinate of the data be $\mathcal N(m_0, V_0)$. Each step is an affine map plus an independent Gaussian, so $x_t$ stays Gaussian ((T.6), (T.9)), with the mean and variance of (2.16). The divergence between two Gaussians
# is (T.24), with $D=1$:
#
# $$
# \mathrm{KL}\big(q(x_t)\,\Vert\,\mathcal N(0,1)\big) = \tfrac12\big(V_t + m_t^2 - 1 - \log V_t\big) .
# \tag{2.23}
# $$
#
# What does this look like for small $\bar\alpha$? Put $u = V_t-1 = \bar\alpha_t(V_0-1)$ from (2.16), and use $\log(1+u) = u-\frac12u^2+O(u^3)$:
#
# $$
# \mathrm{KL}\big(q(x_t)\,\Vert\,\mathcal N(0,1)\big)
# = \tfrac12\,\bar\alpha_t\,m_0^2 \;+\; \tfrac14\,\bar\alpha_t^2\,(V_0-1)^2 \;+\; O(\bar\alpha_t^3) .
# \tag{2.24}
# $$
#
# The mean leaks at *first* order in $\bar\alpha$, the variance only at second. What survives longest is what all pixels have in common.

# %%
case = NoiseSchedule.linear(50)
law = GaussianData([0.8], [[0.3]])
line = torch.linspace(-12, 12, 4001, dtype=torch.float64)
standard = GaussianData([0.0], [[1.0]])


def kl_to_standard(law):
    """KL(law ‖ N(0, 1)) by quadrature on a fine grid."""
    log_p, log_n = law.log_prob(line[:, None]), standard.log_prob(line[:, None])
    return torch.trapezoid(log_p.exp() * (log_p - log_n), line)


def by_formula(share):
    m, V = share**0.5 * 0.8, 1 + share * (0.3 - 1)
    return 0.5 * (V + m**2 - 1 - math.log(V))


moments_of_chain = (10, 25, 50)
claim("2.23", [by_formula(case.alpha_bar[t].item()) for t in moments_of_chain],
      [kl_to_standard(law.marginal(case, t)) for t in moments_of_chain])
shares = np.array([0.2, 0.1, 0.05, 0.025, 0.0125])
rest = [abs(by_formula(a) - (a * 0.8**2 / 2 + a**2 * (0.3 - 1) ** 2 / 4)) for a in shares]
claim("2.24", (shares, rest), 3, relation="order", note="what (2.24) leaves out")

# %% [markdown]
# **How far, for any data.** Real data are not Gaussian, but every single picture is, in a degenerate way: it is a Gaussian of variance zero. Start the chain at a fixed $x_0$. By the same argument $q(x_T\mid x_0)$ is
# Gaussian, and (2.16) with $V_0=0$ gives, in each coordinate, the mean $\sqrt{\bar\alpha_T}\,x_0$ and the variance $1-\bar\alpha_T$. (Chapter 3 takes this apart slowly.) So the divergence of $q(x_T\mid x_0)$
# is known for each picture, and it is natural to average it over the data. How does the average relate to what we want, the divergence of $q(x_T)$, in which the picture has been averaged out *before*? Split the logarithm,
#
# $$
# \log\frac{q(x_T\mid x_0)}{\mathcal N(x_T;0,I)} = \log\frac{q(x_T\mid x_0)}{q(x_T)} + \log\frac{q(x_T)}{\mathcal N(x_T;0,I)} ,
# $$
#
# and take the expectation over $x_0$ and $x_T$. The left side becomes the average we have. The last term depends on $x_T$ alone and becomes the divergence we want. The one between is, by definition, the *mutual information*
# of $x_0$ and $x_T$, written $\mathrm{MI}(x_0;x_T)$, an average of divergences and so never negative (T.22):
#
# $$
# \mathbb E_{x_0}\,\mathrm{KL}\big(q(x_T\mid x_0)\,\Vert\,\mathcal N(0,I)\big)
# = \underbrace{\mathbb E_{x_0}\,\mathrm{KL}\big(q(x_T\mid x_0)\,\Vert\,q(x_T)\big)}_{\mathrm{MI}(x_0;\,x_T)\;\ge\;0}
# + \mathrm{KL}\big(q(x_T)\,\Vert\,\mathcal N(0,I)\big) .
# \tag{2.25}
# $$
#
# So the average bounds both: what $x_T$ still tells about the picture, and how wrong it is to start from $\mathcal N(0,I)$. It is known as the *prior term*, and chapter 5 meets it again as the first term of the training bound. Per coordinate, (T.24) with mean $\sqrt{\bar\alpha_T}\,x_0$ and variance $1-\bar\alpha_T$ says
#
# $$
# \mathbb E_{x_0}\,\mathrm{KL}\big(q(x_T\mid x_0)\,\Vert\,\mathcal N(0,1)\big)
# = \tfrac12\Big(\bar\alpha_T\,\mathbb E\,x_0^2 - \bar\alpha_T - \log(1-\bar\alpha_T)\Big)
# \;\approx\; \tfrac12\,\bar\alpha_T\,\mathbb E\,x_0^2 .
# \tag{2.26}
# $$
#
# We check (2.25) on the two humps of the first picture, at the end of the chain that was cut short: the left side by (2.26), the two terms on the right by quadrature. Then (2.26) on real digits, against the library. It is usual to divide by
# the number of coordinates and by $\log 2$: *bits per dimension*.

# %%
share = case.alpha_bar[-1].item()
start = torch.linspace(-3.5, 3.5, 701, dtype=torch.float64)          # x_0
end = torch.linspace(-7, 7, 1401, dtype=torch.float64)               # x_T
log_given = log_normal(end, share**0.5 * start[:, None], 1 - share)  # log q(x_T | x_0)
log_end = humps.marginal(case, 50).log_prob(end[:, None])            # log q(x_T)
inner = torch.trapezoid(log_given.exp() * (log_given - log_end), end)        # KL for each x_0
information = torch.trapezoid(humps.log_prob(start[:, None]).exp() * inner, start)
divergence = kl_to_standard(humps.marginal(case, 50))
left = 0.5 * (share * 1.0 - share - math.log(1 - share))       # (2.26), E x_0² = 0.95² + 0.0975 = 1
claim("2.25", left, information + divergence)
fact("humps after 50 short steps: average, information, divergence (nats)",
     [left, information, divergence], digits=3)


def prior_term(schedule, pixels):
    """(2.26) for pictures of any size, in nats per coordinate."""
    share = schedule.alpha_bar[-1].item()
    return 0.5 * (share * pixels.square().mean().item() - share - math.log1p(-share))


for schedule in (linear, NoiseSchedule.linear(50)):
    end_law = GaussianDiffusion(schedule).marginal(clean, schedule.T)
    one = torch.tensor(1.0, dtype=torch.float64)
    claim("2.26", prior_term(schedule, clean), end_law.kl(Gaussian(0 * clean, one)).mean() / 64,
          tol=1e-9, note=f"digits, T = {schedule.T}")
for name, schedule in candidates.items():
    fact(f"prior term in bits/dim, {name}", prior_term(schedule, clean) / math.log(2), digits=2)

# %% [markdown]
# The DDPM paper reports about $10^{-5}$ bits per dimension for its prior term. The digits give the same order under the same schedule, and more than ten thousand times that when the chain is cut to $T=50$.
#
# **Which of the two terms hurts?** Of the 0.462 nats of the humps nearly all is information. That by itself is no harm to *sampling*, which starts from a random $x_T$ and only needs it to have the right law: what counts there is the last term of (2.25). For the humps it is small
# already at $\bar\alpha_T=0.6$, because their mean is $0$ and their variance $1$. Data are not so kind, and $D$ coordinates add up. For the digits we can at least bound the last term from below. Let $\gamma$ be the Gaussian with the mean and the covariance
# of $q(x_T)$. Then $\log\frac{\gamma}{\mathcal N(0,I)}$ is a quadratic function of $x_T$, so that its average is the same under $q$ and under $\gamma$, and
# $\mathrm{KL}(q\Vert\mathcal N) = \mathrm{KL}(q\Vert\gamma) + \mathrm{KL}(\gamma\Vert\mathcal N) \ge \mathrm{KL}(\gamma\Vert\mathcal N)$. Now turn the axes into the directions of the covariance's eigenvectors. Turned noise is noise (toolbox, [T.2](A_toolbox.ipynb#T.2-Affine-maps)), so each new coordinate runs through a chain (2.2) of its own, and (2.16) gives its mean and variance. In these axes
# $\gamma$ and $\mathcal N(0,I)$ both have independent coordinates; (2.23) applies to each, and the divergences add.

# %%
directions = torch.linalg.eigh(clean.T.cov(correction=0))
means = directions.eigenvectors.T @ clean.mean(0)                    # of x_0, in these directions
for name, schedule in candidates.items():
    if name.startswith("linear") and "scaled" not in name:
        share = schedule.alpha_bar[-1]
        V = 1 + share * (directions.eigenvalues - 1)                 # (2.16)
        fact(f"KL(γ ‖ N(0, I)), nats per digit, {name}",
             0.5 * (V + share * means**2 - 1 - V.log()).sum(), digits=3)

# %% [markdown]
# Nearly sixteen nats per picture, at $T=50$, are a lot. They say that an $x_T$ of the short chain is, in the geometric mean, at least $e^{15.6}$ times as likely under its own law as under the law from which sampling would start: some six million times.
#
# > **Pitfall: small per dimension is not small.** Bits *per dimension* hide what all dimensions have in common. Take a plain white picture, $x_0=1$ in all $D$ coordinates. Average $x_T$ over the coordinates: the signal part
# > $\sqrt{\bar\alpha_T}$ stays, the noise part has standard deviation $\sqrt{(1-\bar\alpha_T)/D}$. The brightness of the original stands out by $\sqrt{D\,\mathrm{SNR}_T}$ standard deviations. The cell gives
# > this number for DDPM's chain on CIFAR-10's $3\times32^2$ values, and for the schedule common in latent diffusion, with $\sqrt{\beta}$ on a straight line from $\sqrt{0.00085}$ to $\sqrt{0.012}$, on its $4\times64^2$ latent values (all of them one, instead of white pixels). In the
# > first case the brightness is lost in the noise. In the second the network can read it off, learns to, and believes it when sampling starts from $\mathcal N(0,I)$, whose average is always near $0$. The model then makes pictures of middling brightness; Lin and others (arXiv 2305.08891) found and mended this.

# %%
roots = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
latent = NoiseSchedule.from_betas(roots**2)
sizes = {"DDPM on CIFAR-10": (linear, 3 * 32**2), "latent diffusion": (latent, 4 * 64**2)}
for name, (schedule, D) in sizes.items():
    fact(f"{name}: √ᾱ_T", schedule.alpha_bar[-1] ** 0.5, digits=2)
    fact(f"{name}: bits/dim of a white picture",
         prior_term(schedule, torch.ones(1)) / math.log(2), digits=2)
    fact(f"{name}: its brightness in standard deviations", (D * schedule.snr[-1]) ** 0.5, digits=2)

# %% [markdown]
# **Exercise 2.7** (3 points, 15 minutes, ●●●) — *Without the shrink.* A colleague drops the factor $\sqrt{\alpha_t}$ from (2.2) and keeps DDPM's $\beta_t$ and $T=1000$: "the noise swamps the picture either way, and sampling can start from $\mathcal N(0,I)$ as before."
# Explain in five to ten sentences what is wrong with that, with numbers, and how to make the idea work. For full marks say how the repaired chain relates to (2.2).

# %%
answer_2_7 = ""

check("2.7", answer_2_7)

# %% [markdown]
# ## 2.8 What is gone
#
# $\bar\alpha$ counts variance. But the humps of the first picture were chosen with mean $0$ and variance $1$, so that by (2.16) mean and variance stay the same for all $t$, and still *something* is lost. Let us watch the whole law. Suppose the data are a mixture:
# with probability $p_j$ a point comes from component $j$, which is $\mathcal N(m^{(j)}, V^{(j)})$. Given the component, everything is Gaussian and (2.16) applies. The step (2.2) does not look at $j$, so the $p_j$ stay as they are. By the law of total probability
#
# $$
# q(x_t) = \sum_j p_j\;\mathcal N\big(x_t;\ \sqrt{\bar\alpha_t}\,m^{(j)},\ \bar\alpha_t V^{(j)} + 1-\bar\alpha_t\big) .
# \tag{2.27}
# $$
#
# The humps move together and widen until they are one. To check this we push the density itself through the chain, without a formula for the result: $q(x_t) = \int q(x_t\mid x_{t-1})\,q(x_{t-1})\,dx_{t-1}$, four times in a row, on a grid.

# %%
axis = torch.linspace(-7, 7, 1201, dtype=torch.float64)
pushed = humps.log_prob(axis[:, None]).exp()
for t in range(1, 5):
    step_mean, step_variance = short.alpha[t].sqrt() * axis, 1 - short.alpha[t].item()
    kernel = log_normal(axis[:, None], step_mean, step_variance).exp()      # q(x_t | x_{t-1})
    pushed = torch.trapezoid(kernel * pushed, axis)
share = short.alpha_bar[4].item()
mixture = sum(0.5 * log_normal(axis, share**0.5 * centre, share * 0.0975 + 1 - share).exp()
              for centre in (-0.95, 0.95))
claim("2.27", mixture, pushed, tol=1e-9, note="against four integrals")
claim("2.27", mixture, humps.marginal(short, 4).log_prob(axis[:, None]).exp(),
      note="against the library")

# %% [markdown]
# With the exact density we can ask how different $x_t$ still is from pure noise. One measure is the KL divergence of section 2.7. Another has a direct meaning, the *total variation*
#
# $$
# \mathrm{TV}_t = \tfrac12\int\big|\,q(x_t) - \mathcal N(x_t;0,1)\,\big|\,dx_t = \int\max\big(q(x_t)-\mathcal N(x_t;0,1),\,0\big)\,dx_t .
# \tag{2.28}
# $$
#
# (Both densities integrate to one, so what $q$ has too much in some places it has too little in others; each half is the same.) It is the largest difference between the probabilities that the two laws give to any one event.
#
# And is the *data point* still recognisable? Give somebody $x_t$ and ask from which component it came. With $q(x_t\mid j)$ for the law of $x_t$ given the component, the best answer is the one with the largest $p_j\,q(x_t\mid j)$, and the probability of being right is
#
# $$
# A_t = \int \max_j\; p_j\,q(x_t\mid j)\;dx_t ,
# \tag{2.29}
# $$
#
# because at each $x_t$ one can be right about one component only, so one picks the likeliest. For two humps at $\pm m$ with equal weights and the same variance $V$ the best answer is the sign of $x_t$. Given the right-hand hump, $x_t$ is Gaussian with mean $\sqrt{\bar\alpha_t}\,m$ and the variance in (2.27), and
# the answer is right when $x_t>0$. With $\Phi$ for the distribution function of $\mathcal N(0,1)$,
#
# $$
# A_t = \Phi\!\left(\frac{\sqrt{\bar\alpha_t}\;m}{\sqrt{\bar\alpha_tV + 1-\bar\alpha_t}}\right) .
# \tag{2.30}
# $$

# %%
nodes, weights = np.polynomial.legendre.leggauss(400)                # for x > 0: no kink inside
half_line = torch.tensor(6 * (nodes + 1))
half_weight = torch.tensor(6 * weights)


def best_accuracy(law, schedule, t):
    """(2.29) for a law that is symmetric about 0, from the oracle's responsibilities p(j | x_t)."""
    x = half_line[:, None]
    density = law.marginal(schedule, t).log_prob(x).exp()
    best = law.responsibilities(schedule, x, t).max(dim=1).values    # p_j q(x|j) = p(j|x) q(x)
    return (2 * half_weight * density * best).sum().item()


def phi_of(share):
    z = share**0.5 * 0.95 / (share * 0.0975 + 1 - share) ** 0.5
    return 0.5 * (1 + math.erf(z / 2**0.5))


times = (1, 100, 300, 600, 1000)
accuracy = [best_accuracy(humps, linear, t) for t in times]
claim("2.30", [phi_of(linear.alpha_bar[t].item()) for t in times], accuracy)

n = 2_000_000                                                        # (2.29): walk, then guess
signs = 2.0 * (torch.arange(n) % 2) - 1
x = 0.95 * signs + 0.0975**0.5 * normals(n, g)
for t in (1, 2, 3):
    x = short.alpha[t].sqrt() * x + (1 - short.alpha[t]).sqrt() * normals(n, g)
right_guess = (torch.sign(x) == signs).double()
claim("2.29", best_accuracy(humps, short, 3), right_guess.mean(),
      standard_error=right_guess.std() / n**0.5, note="two million walks and guesses, short chain")
fact("best accuracy on the humps at t = 1, 100, 300, 600, 1000", accuracy, digits=3)


def excess(schedule, t):
    """q(x_t) − N(x_t; 0, 1) for the humps, on the grid `line`."""
    laws = humps.marginal(schedule, t), standard
    one, other = (law.log_prob(line[:, None]).exp() for law in laws)
    return one - other


def variation(schedule, t):
    """(2.28), the first form."""
    return 0.5 * torch.trapezoid(excess(schedule, t).abs(), line)


claim("2.28", variation(linear, 100),
      torch.trapezoid(excess(linear, 100).clamp(min=0), line), note="both forms")
fact("total variation from N(0, 1) at t = 0, 100, 300, 600",
     [variation(linear, t) for t in (0, 100, 300, 600)], digits=2)

# %% [markdown]
# **Two things fade at two speeds.** Compare the last two lines. At $t=600$ the *law* of $x_t$ is noise for all purposes: no event has a probability that differs by more than 0.00007. Yet the *data point* is not forgotten: a guess is right 56 times in 100. These are the two terms of (2.25) again. The law loses its shape quickly;
# what a single $x_t$ knows about its own $x_0$ goes slowly, and it is this that a denoising network lives on.
#
# **Now the digits.** The best possible guess can be computed for them too. Let the data be the 1,442 training digits, all equally likely. Then $q(x_t)$ is a mixture with one component around each picture, and the oracle `FiniteData` knows
# the exact probability that a noisy $x_t$ came from each of them. Add these up by label and answer with the likeliest digit. On average over the noise no classifier can do better on these data: by (2.29) the likeliest answer is the best one, and this one knows every picture by heart. We give it
# the 400 digits that we walked down the chain in section 2.2.
#
# And then we *enlarge* the digits, every pixel to a block of $4\times4$ equal ones, and noise the large pictures under the same schedule. They show nothing new. For them we walk a chain of ten large steps with the same $\bar\alpha$ at $t=100,200,\dots,1000$: by
# section 2.7 the law of $x_t$ given $x_0$ depends on $\bar\alpha_t$ only.

# %%
one_hot = torch.nn.functional.one_hot(labels, 10).double()


def right_guesses(data, schedule, x_t, t):
    """How many of the first 400 labels the best guess from the noisy picture gets right."""
    by_label = data.responsibilities(schedule, x_t, t) @ one_hot
    return int((by_label.argmax(dim=1) == labels[:400]).sum())


data = FiniteData(clean)
small = [right_guesses(data, linear, x_t, t) for t, x_t in moments.items()]
fact("right guesses of 400, 8 × 8 pixels, t = 100, 200, …, 1000", small)

big = images.double().repeat_interleave(4, dim=2).repeat_interleave(4, dim=3).flatten(1)
strides = NoiseSchedule.from_alpha_bar(linear.alpha_bar[::100])      # ten steps, not a thousand
data, large, x = FiniteData(big), [], big[:400]
for t in range(1, 11):
    x = strides.alpha[t].sqrt() * x + (1 - strides.alpha[t]).sqrt() * normals(x.shape, g)
    large.append(right_guesses(data, strides, x, t))
fact("right guesses of 400, 32 × 32 pixels, t = 100, 200, …, 1000", large)

# %%
fig, (left, right) = figure(1, 2, row_height=3.4)
ts = list(range(0, 1001, 25))
for name, schedule, colour in (("linear", linear, BLUE), ("cosine", cosine, VERMILLION)):
    left.plot(ts, [variation(schedule, t) for t in ts], color=colour, label=f"TV, {name}")
    left.plot(ts, [kl_to_standard(humps.marginal(schedule, t)) for t in ts], color=colour, ls="--",
              label=f"KL, {name}")
    right.plot(ts, [phi_of(schedule.alpha_bar[t].item()) for t in ts], color=colour,
               label=f"humps, {name}")
for counts, style, name in ((small, "o-", "digits, linear"), (large, "s--", "the same, enlarged")):
    right.plot(range(0, 1001, 100), [1] + [count / 400 for count in counts], style, color=GREEN,
               label=name)
for chance in (0.5, 0.1):
    right.axhline(chance, color=GREY, lw=0.8, ls=":")
left.set(xlabel="$t$", ylabel=r"distance from $\mathcal{N}(0,1)$", title="law of the humps")
right.set(xlabel="$t$", ylabel="best accuracy $A_t$", ylim=(0, 1.03), title="which one was it?")
for ax in (left, right):
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2, fontsize=9)
show(fig, "Left: distance between the law of x_t and the standard bell, for the two humps. Total "
          "variation and KL divergence fall to nearly zero, by about t = 400 for the linear "
          "schedule and 700 for the cosine. Right: the best possible accuracy. For the humps it "
          "falls from one to one half, later under the cosine schedule. For the digits it falls "
          "from one at t = 100 to one in ten, which is guessing, at about 800. For the enlarged "
          "digits it stays at one until 400 and comes down to guessing only at the end.")

# %% [markdown]
# *When is the picture gone?* There is no one answer. The eye gave up on the digits of the first picture near $t=300$, and there the best classifier begins to fail too. But the enlarged digits, under the very same schedule, are read without fail at $t=400$. Sixteen noisy copies of a pixel can be averaged, which divides the noise
# variance by sixteen: it is as if the SNR were sixteen times as high, $\log 16 \approx 2.8$ more on the logarithmic scale. This is why larger pictures ask for noisier schedules.
#
# **What it cost.** One digit at $t=1000$ took 64,000 random numbers, of which we looked at 64. Training wants a fresh $x_t$ at a random $t$ for every picture of every batch. The ten large steps just taken hint at the way out: from $x_0$ to $x_t$ in *one* step. Chapter 3 proves that it is allowed.

# %% [markdown]
# ## 2.9 What we have
#
# | equation | what it says | in `ddpm_lite` | elsewhere |
# |---|---|---|---|
# | (2.1), (2.2), (2.3) | one step, as a recipe and as a density | `GaussianDiffusion.transition`, `Gaussian.sample` | DDPM Eq. 2 |
# | (2.4) | the path is a product of steps | – | DDPM Eq. 2 |
# | (2.5), (2.6) | mean and variance, step by step; variance goes to 1 | – | – |
# | (2.7), (2.8) | without the shrink; where a wrong step settles | – | – |
# | (2.9) – (2.14) | two gradients through a sample, and their variances | – | – |
# | (2.15), (2.16) | $\bar\alpha_t$, the share that is left | `NoiseSchedule.alpha_bar`, `.one_minus_alpha_bar` | DDPM, before Eq. 4 |
# | (2.17) | signal-to-noise ratio | `NoiseSchedule.snr` | – |
# | (2.18) | linear schedule | `NoiseSchedule.linear` | DDPM, section 4 |
# | (2.19), (2.20), (2.21) | cosine schedule, $\beta$ from $\bar\alpha$, the cut | `NoiseSchedule.cosine`, `.beta` | Improved DDPM Eq. 17 |
# | (2.22) | the sum of the $\beta$ decides | – | – |
# | (2.23), (2.24) | what is left at the end, Gaussian data | `Gaussian.kl` | – |
# | (2.25), (2.26) | what is left at the end, any data | `GaussianDiffusion.marginal`, `Gaussian.kl` | DDPM Eq. 5, the term $L_T$ |
# | (2.27) | the law of $x_t$ for a mixture | `GaussianMixture.marginal` | – |
# | (2.28), (2.29), (2.30) | total variation; the best guess | `GaussianMixture.responsibilities` | – |

# %%
progress("2")

# %% [markdown]
# ## 2.10 History and further reading
#
# The forward chain as a way to build a generative model is due to Sohl-Dickstein, Weiss, Maheswaranathan and Ganguli (2015, arXiv 1503.03585). Ho, Jain and Abbeel gave it the form used here, with the linear schedule (DDPM, 2020, arXiv 2006.11239); Nichol and Dhariwal the cosine (Improved DDPM, 2021, arXiv
# 2102.09672). The names variance preserving and variance exploding come from Song and others, who pass to continuous time (2020, arXiv 2011.13456). Kingma, Salimans, Poole and Ho describe a schedule by its SNR, and show that in continuous time the variational bound depends on the schedule only through the SNR at its two ends (Variational
# Diffusion Models, 2021, arXiv 2107.00630). On leftover signal at $T$: Lin, Liu, Li and Yang (2023, arXiv 2305.08891); on schedules for large images: Chen (2023, arXiv 2301.10972). The score-function estimator is Williams' REINFORCE (*Machine Learning* 8, 229–256, 1992). Reparameterisation came into deep generative models with Kingma and Welling (2013, arXiv
# 1312.6114) and Rezende, Mohamed and Wierstra (2014, arXiv 1401.4082). Mohamed, Rosca, Figurnov and Mnih survey gradient estimators and when each of them wins (2019, arXiv 1906.10652).

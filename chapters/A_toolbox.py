# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Toolbox
#
# Eleven short sections, one for each lemma that the chapters lean on, and a twelfth on how samples
# are measured. Read them in order, or one at a time when a link brings you here. Each says what is
# true, proves it without skipping a line, and then runs it. A number in brackets, (T.4), is an
# equation; without them, T.4, it is a section.

# %% tags=["hide-input"]
import math

import numpy as np
import scipy.stats
import sympy
import torch
from scipy.integrate import solve_ivp
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from ddpm_lite import Gaussian, NoiseSchedule
from ddpm_lite.claims import ClaimError, claim, fact
from ddpm_lite.data import digits
from ddpm_lite.exercises import check, hint, progress, solution  # noqa: F401 (two for you to call)
from ddpm_lite.metrics import (
    Estimate,
    classifier,
    evaluate,
    frechet_distance,
    gaussian_frechet_distance,
    memorisation,
    mmd,
    precision_recall,
    sliced_wasserstein,
    wasserstein,
)
from ddpm_lite.oracle import GaussianData, GaussianMixture
from ddpm_lite.plotting import BLUE, GREEN, GREY, VERMILLION, figure, show, use_book_style

use_book_style()
torch.set_default_dtype(torch.float64)      # every number in this chapter is float64
g = torch.Generator().manual_seed(0)
grid = torch.linspace(-14, 14, 5601)        # beyond it, every density used here is nothing


def integrate(values):
    """The integral over the line of a function given on the grid, by the trapezoid rule."""
    return torch.trapezoid(values, grid, dim=-1)


def normal(x, m, V):
    """The one-dimensional Gaussian density with mean m and variance V: equation (T.1) below."""
    return torch.exp(-((x - m) ** 2) / (2 * V)) / (2 * math.pi * V) ** 0.5


# %% tags=["hide-input"]
one, other = normal(grid, -1.0, 0.5), normal(grid, 1.5, 1.0)
few = grid[::50]

# brute force, without a formula of this page: these are the dots
added = integrate(one * normal(few[:, None] - grid, 1.5, 1.0))
multiplied = one * other / integrate(one * other)
joint = MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.8], [0.8, 1.0]]))
cut = joint.log_prob(torch.stack([grid, torch.full_like(grid, 1.2)], dim=-1)).exp()
cut = cut / integrate(cut)

panels = (
    ("draws added", (one, other), (0.5, 1.5), added),
    ("densities multiplied", (one, other), (-1 / 6, 1 / 3), multiplied[::50]),
    ("partner seen", (normal(grid, 0.0, 1.0),), (0.96, 0.36), cut[::50]),
)
fig, axes = figure(1, 3, sharey=True)
for ax, (title, before, (m, V), dots) in zip(axes, panels, strict=True):
    for curve, colour, label in zip(before, (BLUE, GREEN), ("before", None), strict=False):
        ax.plot(grid, curve, color=colour, label=label)
    ax.plot(grid, normal(grid, m, V), color=VERMILLION, label="by formula")
    ax.plot(few, dots, ".", color="black", markersize=4, label="by brute force")
    ax.set(xlim=(-4, 5), ylim=(0, 1.05), xlabel="$x$", title=title)
    assert torch.allclose(dots, normal(few, m, V), atol=1e-12)       # the dots lie on the curve
axes[0].set_ylabel("density")
axes[0].legend(loc="upper right")
show(fig, """Three panels of bell curves; dots from brute-force integration lie on each result.
Adding two draws gives a wider bell, multiplying two densities a narrower one between them, and
a coordinate whose correlated partner was seen to be 1.2 moves towards it and narrows.""")

# %% [markdown]
# *Which operations turn Gaussians into Gaussians?* Adding, multiplying, conditioning, and every
# affine map: the four things that a diffusion does to them. The curves are this page's formulas;
# the dots are brute force.
#
# **You will** be able to
#
# - add, scale, multiply and condition Gaussians on paper, and say which assumption each step uses;
# - read the mean and the variance of a Gaussian off its exponent, without integrating;
# - compute the Kullback–Leibler divergence of two Gaussians, and say why it is never negative;
# - push a density through a map, move a gradient inside an expectation, and say when you may;
# - measure the order of an ODE solver and the standard error of a simulation;
# - say how far samples are from data, with an interval, and tell a good model from one that copies.
#
# **You need** calculus, Bayes' rule and basic PyTorch; the letters are those of the
# [notation page](N_notation.ipynb). **Time**: 80 minutes to read, 49 for the six exercises, less
# than a minute to run.
#
# **The question.** Every chapter says things like "the sum of two independent Gaussians is
# Gaussian" or "complete the square". Each is short, each is proved somewhere, and each is a place
# where a factor of two can hide. What exactly do these sentences say, under which conditions, and
# how would you notice that you had used one wrongly?

# %% [markdown]
# ## T.1 The Gaussian density
#
# A Gaussian is fixed by two numbers, its mean $m$ and its **variance** $V > 0$. Its density is
#
# $$
# \mathcal N(x;\,m,\,V) = \frac{1}{\sqrt{2\pi V}}\,\exp\!\Big(-\frac{(x-m)^2}{2V}\Big) .
# \tag{T.1}
# $$
#
# We write $x \sim \mathcal N(m, V)$ for "$x$ is drawn from it". Three things have to be true of
# (T.1). With $z = (x-m)/\sqrt V$ it is enough to see them for $\varphi(z) = \mathcal N(z;\,0,\,1)$.
#
# *It integrates to one.* Let $I = \int e^{-z^2/2}\,dz$. Square it, read the product as an integral
# over the plane, and use polar coordinates, where $dy\,dz = r\,dr\,d\theta$:
#
# $$
# I^2 = \iint e^{-(y^2+z^2)/2}\,dy\,dz = \int_0^{2\pi}\!\!\int_0^\infty e^{-r^2/2}\,r\,dr\,d\theta
#     = 2\pi\,\Big[-e^{-r^2/2}\Big]_0^\infty = 2\pi .
# $$
#
# So $I = \sqrt{2\pi}$, and $dx = \sqrt V\,dz$ supplies the $\sqrt V$.
#
# *Its mean is $m$*, because it is symmetric about $m$ and the integral for the mean converges.
#
# *Its variance is $V$.* Since $\varphi'(z) = -z\,\varphi(z)$, integration by parts gives, for every
# smooth $f$ for which $f$ and $f'$ grow no faster than a polynomial (then the integrals converge,
# and $\varphi f$ vanishes at both ends),
# $\;\mathbb E[z f(z)] = \int z\varphi f\,dz = -\int\varphi' f\,dz = \int\varphi f'\,dz = \mathbb E[f'(z)]$.
# This is **Stein's identity**; we shall meet it again in T.2 and T.8. With $f(z) = z$ it says
# $\mathbb E\,z^2 = 1$, hence $\operatorname{Var} x = V$. With $f(z) = z^3$ it says
# $\mathbb E\,z^4 = 3\,\mathbb E\,z^2 = 3$.
#
# For $D$ coordinates the mean is a vector, and $V$ is a covariance matrix, symmetric and positive
# definite:
#
# $$
# \mathcal N(x;\,m,\,V) = \frac{1}{\sqrt{(2\pi)^D\det V}}\,
# \exp\!\Big(-\tfrac12\,(x-m)^\top V^{-1}(x-m)\Big) .
# \tag{T.2}
# $$
#
# Section T.9 derives it from $D$ independent standard Gaussians. Nearly everywhere in this book the
# coordinates are independent and share one variance. Then densities multiply, so logarithms add,
# and $D$ copies of (T.1) give, with a *number* $V$,
#
# $$
# \log\mathcal N(x;\,m,\,V I) = -\frac{\lVert x-m\rVert^2}{2V} - \frac D2\log(2\pi V) .
# \tag{T.3}
# $$
#
# This is (T.2) with the matrix $V I$, whose determinant is $V^D$.

# %%
m = torch.tensor([-2.0, 0.5, 1.0])
V = torch.tensor([0.04, 1.0, 2.5])
mass = integrate(normal(grid, m[:, None], V[:, None]))
claim("T.1", mass, torch.ones(3), note="it integrates to one")
claim("T.1", integrate(grid**4 * normal(grid, 0.0, 1.0)), 3.0, note="E z⁴, by Stein's identity")

points = torch.randn(6, 3, generator=g)
covariance = torch.tensor([[2.0, 0.3, -0.5], [0.3, 1.0, 0.2], [-0.5, 0.2, 0.7]])
away = points - m
squared = torch.einsum("ni,ij,nj->n", away, torch.linalg.inv(covariance), away)
density = torch.exp(-squared / 2) / ((2 * math.pi) ** 3 * torch.linalg.det(covariance)).sqrt()
claim("T.2", density, MultivariateNormal(m, covariance).log_prob(points).exp())

log_density = -(away**2).sum(dim=1) / (2 * 0.3) - 3 / 2 * math.log(2 * math.pi * 0.3)
claim("T.3", log_density, Gaussian(m.expand(6, 3), torch.tensor(0.3)).log_prob(points))

fact("density of N(0, 0.01) at its mean", normal(torch.tensor(0.0), 0.0, 0.01), digits=3)
within = [scipy.stats.norm.cdf(k) - scipy.stats.norm.cdf(-k) for k in (1, 2, 3)]
fact("probability within 1, 2, 3 standard deviations", within, digits=4)

# %% [markdown]
# The first fact is a warning: a density is something to integrate, not a probability, and it may be
# larger than one. For images this means that a log-density can have either sign.
#
# > **Pitfall: variance or standard deviation?** `torch.distributions.Normal`, `torch.normal` and
# > NumPy take the standard deviation $\sqrt V$. `MultivariateNormal`, our `Gaussian` and every
# > formula of this book take the variance. Pass one for the other and nothing fails: the numbers
# > are wrong, and where $V = 1$ they are even right.

# %%
x = torch.tensor(0.1)
fact("log-density at 0.1, variance 0.04", normal(x, 0.0, 0.04).log(), digits=3)
fact("with 0.04 passed to Normal", Normal(0.0, 0.04).log_prob(x), digits=3)

# %% [markdown]
# **Where the mass is.** For $\varepsilon \sim \mathcal N(0, I)$ in $D$ dimensions,
# $\lVert\varepsilon\rVert^2$ is a sum of $D$ independent squares, each of mean $\mathbb E\,z^2 = 1$
# and variance $\mathbb E\,z^4 - 1 = 2$. So its mean is $D$ and its variance $2D$. Relative to $D$
# the spread is $\sqrt{2/D}$, which vanishes as $D$ grows: a high-dimensional Gaussian is a shell,
# although its density is highest at the centre. *How thin is the shell for an image?*

# %%
dimensions = (1, 8, 64, 3072)               # 64: this book's digits; 3072 = 3·32·32: CIFAR-10
radius = torch.linspace(1e-3, 2.6, 2000)    # in units of √D
lengths = [scipy.stats.chi(D) for D in dimensions]                   # the law of a length, by SciPy
fact("mean length for D = 1, 8, 64, 3072", [law.mean() for law in lengths], digits=3)
fact("its standard deviation", [law.std() for law in lengths], digits=2)

fig, ax = figure()
for D, law in zip(dimensions, lengths, strict=True):
    ax.plot(radius, law.pdf(radius * D**0.5) * D**0.5, label=f"$D = {D}$")
ax.set(xlabel=r"$\Vert\varepsilon\Vert/\sqrt{D}$", ylabel="density", ylim=(0, 8))
ax.legend()
show(fig, """Densities of the length of a standard Gaussian vector divided by the root of its
dimension. In one dimension it is broad and highest at 0; for 8, 64 and 3072 it piles up ever more
narrowly around 1, the last peak reaching beyond the picture.""")

# %% [markdown]
# All images of pure noise have practically the same length, 55.4 for a small colour image, give or
# take 0.7. The all-zero image, the most probable *point*, looks like none of them. Chapter 9 comes
# back to this when it interpolates between noises.
#
# **The exponent decides.** Suppose that a calculation leaves a density known only up to a constant
# factor, with a quadratic exponent. Complete the square:
# $-\tfrac12ax^2+bx = -\tfrac12a\,\big(x-\tfrac ba\big)^2+\tfrac{b^2}{2a}$. The last term does not
# contain $x$, so it joins the constant, and the constant is known already: it is whatever makes the
# integral one. Hence
#
# $$
# p(x)\propto\exp\!\big(-\tfrac12 a x^2 + b x\big),\quad a>0
# \qquad\Longrightarrow\qquad p(x)=\mathcal N\!\Big(x;\,\frac ba,\,\frac1a\Big) .
# \tag{T.4}
# $$
#
# Read it so: *minus twice the coefficient of $x^2$ is the precision $1/V$, and the coefficient of
# $x$ is precision times mean.* Nothing else in the exponent matters. The posterior of chapter 4 is
# found by this alone.
#
# In $D$ dimensions let $A$ be symmetric and positive definite. Multiplying out shows
# $-\tfrac12x^\top Ax+b^\top x = -\tfrac12(x-A^{-1}b)^\top A\,(x-A^{-1}b)+\tfrac12b^\top A^{-1}b$
# (the two cross terms are equal because $A$ is symmetric), so
#
# $$
# p(x)\propto\exp\!\big(-\tfrac12 x^\top A x + b^\top x\big)
# \qquad\Longrightarrow\qquad p(x)=\mathcal N\!\big(x;\,A^{-1}b,\,A^{-1}\big) .
# \tag{T.5}
# $$

# %%
a, b, x = sympy.symbols("a b x", positive=True)
completed = -a * (x - b / a) ** 2 / 2 + b**2 / (2 * a)
claim("T.4", -a * x**2 / 2 + b * x, completed, note="the square, completed")

unnormalised = torch.exp(-0.5 * 3.0 * grid**2 - 2.0 * grid)          # a = 3, b = -2
claim("T.4", unnormalised / integrate(unnormalised), normal(grid, -2 / 3, 1 / 3))

A, b = torch.linalg.inv(covariance), torch.tensor([0.4, -1.0, 0.3])
exponent = -0.5 * torch.einsum("ni,ij,nj->n", points, A, points) + points @ b
library = MultivariateNormal(torch.linalg.solve(A, b), torch.linalg.inv(A)).log_prob(points)
claim("T.5", exponent - exponent[0], library - library[0], note="equal up to a constant")


# %% [markdown]
# **Exercise T.1** (1 point, 5 minutes, ●○○) — *Read the exponent.* Write `from_exponent(a, b)` that
# returns the pair (mean, variance) of the density proportional to $\exp(-a x^2 + b x)$, $a>0$. Mind
# that there is no one half here. (Stuck? `hint("T.1")` gives one hint at a time, `solution("T.1")`
# the answer, for every exercise of the book.)

# %%
def from_exponent(a, b):
    """(mean, variance) of the density proportional to exp(-a·x² + b·x)."""
    raise NotImplementedError("your turn")

check("T.1", from_exponent)

# %% [markdown]
# ## T.2 Affine maps
#
# A diffusion step scales and shifts. On one Gaussian number this does what one would hope:
#
# $$
# x\sim\mathcal N(m,V)\qquad\Longrightarrow\qquad ax+b\sim\mathcal N(am+b,\;a^2V) .
# \tag{T.6}
# $$
#
# *Proof.* Let $a>0$ and $y = ax+b$. Then $P(y\le c) = P\big(x\le\tfrac{c-b}a\big)$, and
# differentiating with respect to $c$ gives the density
# $\tfrac1a\,\mathcal N\big(\tfrac{c-b}a;\,m,\,V\big)$. Its exponent is
# $-\big(\tfrac{c-b}a-m\big)^2/2V = -(c-b-am)^2/2a^2V$ and its factor is
# $1/(a\sqrt{2\pi V}) = 1/\sqrt{2\pi a^2V}$: this is $\mathcal N(c;\,am+b,\,a^2V)$. For $a<0$ the
# inequality turns round and $\tfrac1a$ becomes $\tfrac1{|a|}$; the rest stays. For $a=0$ the result
# is the constant $b$, which we count as a Gaussian of variance $0$. $\blacksquare$
#
# The variance is multiplied by $a^2$, the standard deviation by $|a|$. That holds for every law;
# what is special is that the *shape* stays Gaussian.
#
# In $D$ dimensions we want the same for matrices that need not be square or invertible, so that a
# proof with densities will not do. Call $x$ *Gaussian*, $x\sim\mathcal N(m,V)$, if it has the law
# of $m+Cz$, where the coordinates of $z$ are independent standard Gaussians and $C$ is some matrix
# with $CC^\top=V$. The tool is the **characteristic function**
# $\mathbb E\,e^{\mathrm i\,k^\top x}$, a function of the vector $k$. We borrow one theorem
# (Lévy's): *two laws with the same characteristic function are the same law.*
#
# For one standard Gaussian let $\chi(k)=\mathbb E\,e^{\mathrm ikz}$. Differentiate inside the
# expectation, which is allowed because $\mathbb E|z|$ is finite, then use Stein's identity with
# $f(z)=e^{\mathrm ikz}$:
# $\;\chi'(k)=\mathrm i\,\mathbb E\big[z\,e^{\mathrm ikz}\big]=\mathrm i\cdot\mathrm ik\,\mathbb E\,e^{\mathrm ikz}=-k\,\chi(k)$.
# So $\chi(k)\,e^{k^2/2}$ has derivative zero, and since $\chi(0)=1$ we have $\chi(k)=e^{-k^2/2}$.
# For $x=m+Cz$ put $l=C^\top k$, so that $k^\top x=k^\top m+\sum_j l_jz_j$. The expectation of a
# product of independent factors is the product of their expectations, and
# $\sum_jl_j^2=k^\top CC^\top k=k^\top Vk$. Therefore
#
# $$
# \mathbb E\,e^{\mathrm i\,k^\top x} = e^{\mathrm i\,k^\top m}\,\prod_j e^{-l_j^2/2} = \exp\!\big(\mathrm i\,k^\top m - \tfrac12\,k^\top V k\big) .
# \tag{T.7}
# $$
#
# Only $m$ and $V$ are left: every $C$ with $CC^\top=V$ gives the same law, which justifies the
# notation. Now let $y=Ax+b$. Then
# $\mathbb E\,e^{\mathrm i\,k^\top y}=e^{\mathrm i\,k^\top b}\;\mathbb E\,e^{\mathrm i\,(A^\top k)^\top x}=\exp\!\big(\mathrm i\,k^\top(Am+b)-\tfrac12\,k^\top AVA^\top k\big)$,
# which has the form (T.7) again:
#
# $$
# x\sim\mathcal N(m,V)\qquad\Longrightarrow\qquad Ax+b\sim\mathcal N(Am+b,\;AVA^\top) .
# \tag{T.8}
# $$
#
# Three corollaries that we shall use:
#
# - *Parts.* Let $A$ pick some coordinates: their law is Gaussian, with the matching part of $m$ and
#   block of $V$.
# - *Rotations.* If $A$ is square with $AA^\top=I$ and $\varepsilon\sim\mathcal N(0,I)$, then
#   $A\varepsilon\sim\mathcal N(0,I)$: noise has no preferred direction.
# - *Jointly Gaussian and uncorrelated means independent.* If the block of $V$ between two parts of
#   $x$ is zero, then $k^\top Vk$ splits into a sum and (T.7) into a product, one factor for each
#   part; so the pair has the law of independent parts. (Without "jointly Gaussian" this is false:
#   see the end of T.3.)
#
# The first cell checks (T.6) and (T.7), the latter by quadrature in two dimensions.

# %%
y = torch.linspace(-6, 6, 13)
m, V, a, b = 0.5, 0.8, -1.7, 0.4
carried = normal((y - b) / a, m, V) / abs(a)
claim("T.6", carried, Normal(a * m + b, abs(a) * V**0.5).log_prob(y).exp())

# Gauss–Hermite quadrature: E f(z) = Σ weight·f(node) for z ~ N(0, 1)
node, weight = map(torch.tensor, np.polynomial.hermite_e.hermegauss(60))
weight = weight / weight.sum()

m, C = torch.tensor([0.3, -0.6]), torch.tensor([[0.9, 0.0], [0.5, 0.7]])
k = torch.tensor([1.1, -0.4])
pair = torch.stack(torch.meshgrid(node, node, indexing="ij"), dim=-1)   # a grid of (z_1, z_2)
phase = (m + pair @ C.T) @ k                                            # k·x on that grid
both = weight[:, None] * weight
size = torch.exp(-0.5 * k @ (C @ C.T) @ k)
claim("T.7", (both * phase.cos()).sum(), torch.cos(k @ m) * size, note="real part")
claim("T.7", (both * phase.sin()).sum(), torch.sin(k @ m) * size, note="imaginary part")

# %% [markdown]
# And a matrix that is not square, with a million draws:

# %%
n = 1_000_000
A = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.8, -1.0]])
draws = torch.randn(n, 3, generator=g) @ torch.linalg.cholesky(covariance).T
law = A @ covariance @ A.T
error = ((law.diag()[:, None] * law.diag() + law**2) / n).sqrt()     # of a covariance: section T.11
claim("T.8", torch.cov((draws @ A.T).T), law, standard_error=error, note="a million draws")
fact("standard deviations of the two coordinates", law.diag().sqrt(), digits=3)

# %% [markdown]
# Used for: one step of the chain (chapter 2), every conversion between $\varepsilon$, $x_0$ and $v$
# (chapter 4), and drawing a sample anywhere.

# %% [markdown]
# ## T.3 Sums of independent Gaussians
#
# This is the lemma on which the whole forward process rests.
#
# $$
# x\sim\mathcal N(m_1,V_1),\quad y\sim\mathcal N(m_2,V_2)\quad\text{independent}
# \quad\Longrightarrow\quad x+y\sim\mathcal N(m_1+m_2,\;V_1+V_2) .
# \tag{T.9}
# $$
#
# Means add for all laws, and so do variances of independent variables: the cross term
# $2\,\mathbb E[(x-m_1)(y-m_2)]$ of the square is a product of two zeros. The news is that the sum
# is *again Gaussian*.
#
# *Proof by convolution.* By (T.6) we may subtract the means and take $m_1=m_2=0$. Let $z=x+y$.
# Given $x=u$, the sum equals $z$ when $y=z-u$; and by *independence* the law of $y$ is the same
# whatever $u$ was. So
#
# $$
# p(z)=\int\mathcal N(u;\,0,V_1)\;\mathcal N(z-u;\,0,V_2)\;du .
# \tag{T.10}
# $$
#
# The exponent is $-\tfrac12$ times $\frac{u^2}{V_1}+\frac{(z-u)^2}{V_2}$. Sort it by powers of $u$,
# with $W=\frac{V_1V_2}{V_1+V_2}$, so that $\frac1{V_1}+\frac1{V_2}=\frac1W$:
#
# $$
# \begin{aligned}
# \frac{u^2}{V_1}+\frac{(z-u)^2}{V_2}
# &=\frac{u^2}{W}-\frac{2uz}{V_2}+\frac{z^2}{V_2}\\
# &=\frac1W\Big(u-\frac{Wz}{V_2}\Big)^2+\Big(\frac1{V_2}-\frac{W}{V_2^2}\Big)z^2
# =\frac1W\Big(u-\frac{Wz}{V_2}\Big)^2+\frac{z^2}{V_1+V_2} .
# \end{aligned}
# \tag{T.11}
# $$
#
# The first equality multiplies out. The second completes the square in $u$: half of the coefficient
# of $u$ goes inside, and what its square adds,
# $\frac1W\cdot\frac{W^2z^2}{V_2^2}=\frac{Wz^2}{V_2^2}$, is taken off again. The third uses
# $\frac1{V_2}-\frac W{V_2^2}=\frac1{V_2}\Big(1-\frac{V_1}{V_1+V_2}\Big)=\frac1{V_1+V_2}$.
#
# Now $u$ stands in one square only. Its integral is that of an unnormalised Gaussian of variance
# $W$, which is $\sqrt{2\pi W}$ by (T.1), whatever $z$ is. What remains is
# $\frac{\sqrt{2\pi W}}{2\pi\sqrt{V_1V_2}}\;e^{-z^2/2(V_1+V_2)}$. Since
# $\frac W{V_1V_2}=\frac1{V_1+V_2}$, the factor in front is $1/\sqrt{2\pi(V_1+V_2)}$, and this is
# the density of $\mathcal N(0,V_1+V_2)$. $\blacksquare$
#
# *Proof in one line, for any dimension.* Independence makes the characteristic function of the sum
# a product, and by (T.7) the exponents add:
# $e^{\mathrm i\,k^\top m_1-\frac12k^\top V_1k}\cdot e^{\mathrm i\,k^\top m_2-\frac12k^\top V_2k}=e^{\mathrm i\,k^\top(m_1+m_2)-\frac12k^\top(V_1+V_2)k}$.
# $\blacksquare$

# %%
z = grid[::100]
V1, V2 = 0.5, 1.3
convolved = integrate(normal(grid, 0.0, V1) * normal(z[:, None] - grid, 0.0, V2))
claim("T.10", convolved, normal(z, 0.0, V1 + V2))

u, total, V_1, V_2 = sympy.symbols("u z V_1 V_2", positive=True)
W = V_1 * V_2 / (V_1 + V_2)
sorted_by_u = (u - W * total / V_2) ** 2 / W + total**2 / (V_1 + V_2)
claim("T.11", u**2 / V_1 + (total - u) ** 2 / V_2, sorted_by_u)

# %% [markdown]
# Scale first by (T.6), then add. This is the form in which the chapters use the lemma, and by
# induction it extends to any number of terms:
#
# $$
# x,\,y\ \text{as in (T.9)}\qquad\Longrightarrow\qquad ax+by\sim\mathcal N\big(am_1+bm_2,\;a^2V_1+b^2V_2\big) .
# \tag{T.12}
# $$
#
# Two million draws agree, in mean, in variance and in the probability of an interval, which depends
# on the shape:

# %%
n = 2_000_000
x = -1.0 + V1**0.5 * torch.randn(n, generator=g)
y = 3.0 + V2**0.5 * torch.randn(n, generator=g)
V = V1 + V2
claim("T.9", (x + y).mean(), -1.0 + 3.0, standard_error=(V / n) ** 0.5, note="mean")
claim("T.9", (x + y).var(), V, standard_error=V * (2 / n) ** 0.5, note="variance")
V = 0.6**2 * V1 + (-0.8) ** 2 * V2
claim("T.12", (0.6 * x - 0.8 * y).var(), V, standard_error=V * (2 / n) ** 0.5)

inside = math.erf(0.5 / (2 * (V1 + V2)) ** 0.5)                      # P(|x + y - 2| < 0.5) by (T.9)
share = ((x + y - 2).abs() < 0.5).double().mean()
error = (inside * (1 - inside) / n) ** 0.5
claim("T.9", share, inside, standard_error=error, note="an interval: the shape")
fact("probability of that interval", inside, digits=3)

# %% [markdown]
# > **Pitfall: independence is needed.** In general
# > $\operatorname{Var}(x+y)=V_1+V_2+2\operatorname{Cov}(x,y)$. Here are three ways in which (T.9)
# > fails, each for $x\sim\mathcal N(0,1)$ and a $y$ that is *also* exactly $\mathcal N(0,1)$:
# >
# > - $y=x$, the same noise used twice. The sum is $2x$, of variance $4$ and not $2$: *standard
# >   deviations* add. Chapter 3 meets this slip again.
# > - $y=-x$. The sum is $0$.
# > - $y=bx$ with a fair coin $b=\pm1$. Now $\operatorname{Cov}(x,y)=\mathbb E[b]\,\mathbb E[x^2]=0$
# >   and the variance *is* $2$, yet the sum is no Gaussian: half of the time it is exactly $0$.
# >   Uncorrelated is not independent.
#
# *What do such sums look like?* The line is what (T.9) says of independent draws.

# %%
x = torch.randn(n, generator=g)
coin = 2.0 * torch.randint(0, 2, (n,), generator=g) - 1
sums = {
    "independent": x + torch.randn(n, generator=g),
    "the same twice": x + x,
    "a random sign": x + coin * x,
}
variances = [float(draws.var()) for draws in sums.values()]
fourth = [float((draws**4).mean() / draws.var() ** 2) for draws in sums.values()]
fact("variances of the three sums", variances, digits=2, uncertainty=0.02)
fact("E (x+y)⁴ / Var², which is 3 for a Gaussian", fourth, digits=2, uncertainty=0.03)
fact("share of exact zeros", (sums["a random sign"] == 0).double().mean(), 2, uncertainty=0.003)

fig, axes = figure(1, 3, sharey=True)
for ax, (title, values) in zip(axes, sums.items(), strict=True):
    ax.hist(values, bins=81, range=(-6, 6), density=True, color=GREY, alpha=0.6)
    ax.plot(grid, normal(grid, 0.0, 2.0), color=VERMILLION)
    ax.set(xlim=(-6, 6), ylim=(0, 0.35), xlabel="$x + y$", title=title)
axes[0].set_ylabel("density")
show(fig, """Histograms of three sums of two standard Gaussians, with the density of variance 2.
The sum of independent draws follows it; the sum of a draw with itself is wider; with a random sign
there is a tall spike at 0 between two low slopes.""")


# %% [markdown]
# **Exercise T.2** (1 point, 8 minutes, ●○○) — *A weighted sum.* Write
# `weighted_sum(weights, means, variances)`, with three vectors of the same length $n$, that returns
# the pair (mean, variance) of $\sum_i c_i x_i$ for independent $x_i\sim\mathcal N(m_i,V_i)$. The
# weights $c_i$ may have either sign.

# %%
def weighted_sum(weights, means, variances):
    """(mean, variance) of the sum of weights[i]·x_i, with independent Gaussian x_i."""
    raise NotImplementedError("your turn")

check("T.2", weighted_sum)

# %% [markdown]
# Used for: two steps that make one, and from there everything else (chapter 3); the evidence in
# (T.17).

# %% [markdown]
# ## T.4 Products of Gaussian densities (completing the square)
#
# Two instruments measure one number $x$, each with a Gaussian error. What do both together say?
# Their densities, *as functions of the same $x$*, are multiplied. The product is again a Gaussian
# density, up to a factor; and the factor is itself a Gaussian density:
#
# $$
# \mathcal N(x;\,m_1,V_1)\;\mathcal N(x;\,m_2,V_2) = \mathcal N(m_1;\,m_2,\,V_1+V_2)\;\mathcal N(x;\,m,V) ,
# \tag{T.13}
# $$
#
# $$
# \frac1V=\frac1{V_1}+\frac1{V_2} ,\qquad\qquad \frac mV=\frac{m_1}{V_1}+\frac{m_2}{V_2} .
# \tag{T.14}
# $$
#
# *Precisions add*, and the mean is the average of the two means, weighted by precision. So the
# product is narrower than either factor, even if the two disagree. (A sum is wider than either. Do
# not mix them up: T.3 adds random variables, T.4 multiplies densities.)
#
# *Proof.* The exponent is $-\frac12$ times the left side of
#
# $$
# \frac{(x-m_1)^2}{V_1}+\frac{(x-m_2)^2}{V_2}=\frac{(x-m)^2}{V}+\frac{(m_1-m_2)^2}{V_1+V_2} ,
# \tag{T.15}
# $$
#
# so (T.15) is what we prove. Multiply out its left side and sort by powers of $x$; (T.14) was made
# to name the coefficients:
#
# $$
# \begin{aligned}
# \Big(\frac1{V_1}+\frac1{V_2}\Big)x^2-2\Big(\frac{m_1}{V_1}+\frac{m_2}{V_2}\Big)x+\frac{m_1^2}{V_1}+\frac{m_2^2}{V_2}
# &=\frac{x^2-2mx}{V}+\frac{m_1^2}{V_1}+\frac{m_2^2}{V_2}\\
# &=\frac{(x-m)^2}V\;\underbrace{-\,\frac{m^2}V+\frac{m_1^2}{V_1}+\frac{m_2^2}{V_2}}_{\text{rest}} .
# \end{aligned}
# $$
#
# For the rest, (T.14) solved for $V$ and $m$ says $V=\frac{V_1V_2}{V_1+V_2}$ and
# $m=\frac{V_2m_1+V_1m_2}{V_1+V_2}$, hence $\frac{m^2}V=\frac{(V_2m_1+V_1m_2)^2}{V_1V_2(V_1+V_2)}$.
# Over this denominator the numerator of the rest is
#
# $$
# (V_1+V_2)(V_2m_1^2+V_1m_2^2)-(V_2m_1+V_1m_2)^2
# = V_1V_2m_1^2+V_1V_2m_2^2-2V_1V_2m_1m_2 = V_1V_2(m_1-m_2)^2 ,
# $$
#
# because $V_2^2m_1^2$ and $V_1^2m_2^2$ occur in both terms and cancel. Dividing by
# $V_1V_2(V_1+V_2)$, the rest is $\frac{(m_1-m_2)^2}{V_1+V_2}$, and (T.15) is proved. For the
# factors in front, $V_1V_2=(V_1+V_2)V$ gives
# $\frac1{2\pi\sqrt{V_1V_2}}=\frac1{\sqrt{2\pi(V_1+V_2)}}\cdot\frac1{\sqrt{2\pi V}}$, one for each
# Gaussian on the right of (T.13). $\blacksquare$
#
# With covariance matrices, (T.5) reads the same off the exponent: $V^{-1}=V_1^{-1}+V_2^{-1}$ and
# $V^{-1}m=V_1^{-1}m_1+V_2^{-1}m_2$.

# %%
x, m1, m2 = sympy.symbols("x m_1 m_2", real=True)
V = 1 / (1 / V_1 + 1 / V_2)
m = V * (m1 / V_1 + m2 / V_2)
one_square = (x - m) ** 2 / V + (m1 - m2) ** 2 / (V_1 + V_2)
claim("T.15", (x - m1) ** 2 / V_1 + (x - m2) ** 2 / V_2, one_square)

m1, V1, m2, V2 = -1.0, 0.5, 1.5, 1.0
product = normal(grid, m1, V1) * normal(grid, m2, V2)
area = integrate(product)
mean = integrate(grid * product) / area
variance = integrate((grid - mean) ** 2 * product) / area
claim("T.13", normal(torch.tensor(m1), m2, V1 + V2), area, note="the factor in front")
claim("T.14", 1 / V1 + 1 / V2, 1 / variance, note="precisions add")
claim("T.14", m1 / V1 + m2 / V2, mean / variance, note="precision times mean")
fact("mean and variance of the product", [mean, variance], digits=3)
fact("its integral before normalising", area, digits=2)


# %% [markdown]
# > **Pitfall: the product of two densities is not a density**, and it is not the density of a
# > product. It has to be divided by its integral, which was 0.041 here. And that integral is
# > information, for it says how well the two agree: in (T.17) it becomes the likelihood of the
# > data.
#
# **Exercise T.3** (2 points, 10 minutes, ●●○) — *Several thermometers.* Write
# `combine(means, variances)`, with two vectors of the same length $n\ge2$, that returns the pair
# (mean, variance) of the normalised product of the $n$ densities $\mathcal N(x;\,m_i,V_i)$.

# %%
def combine(means, variances):
    """(mean, variance) of the normalised product of the densities N(x; means[i], variances[i])."""
    raise NotImplementedError("your turn")

check("T.3", combine)

# %% [markdown]
# Used for: the next section, and through it the posterior (chapter 4).

# %% [markdown]
# ## T.5 Conditionals
#
# Before we look, an unknown $x$ has the law $\mathcal N(m,P)$. We see $y=ax+\sqrt R\,\varepsilon$,
# a scaled and noisy copy of it, with $\varepsilon\sim\mathcal N(0,1)$ independent of $x$. What do
# we now believe about $x$? Bayes' rule says $p(x\mid y)\propto p(x)\,p(y\mid x)$, read as a
# function of $x$. The exponent is $-\tfrac12\Big[\frac{(x-m)^2}P+\frac{(y-ax)^2}R\Big]$; sorted by
# powers of $x$ it is
#
# $$
# -\tfrac12\Big(\frac1P+\frac{a^2}R\Big)x^2+\Big(\frac mP+\frac{ay}R\Big)x+\big(\text{terms without }x\big) .
# $$
#
# By (T.4) the first bracket is the precision, and the second is precision times mean:
#
# $$
# p(x\mid y)=\mathcal N\!\Big(x;\;V\Big(\frac mP+\frac{ay}R\Big),\;V\Big) ,\qquad
# \frac1V=\frac1P+\frac{a^2}R .
# \tag{T.16}
# $$
#
# In words it is (T.14): two instruments for one $x$. The first is what we believed, $m$ with variance
# $P$. The second is what we saw, scaled back: since $(y-ax)^2/R=(x-y/a)^2\big/(R/a^2)$ for
# $a\ne0$, it reads $y/a$ with variance $R/a^2$. Each is weighted by its precision.
#
# The observation by itself is a weighted sum of the independent $x$ and $\varepsilon$, so (T.12)
# gives its law, the *evidence*:
#
# $$
# p(y)=\mathcal N(y;\;am,\;a^2P+R) .
# \tag{T.17}
# $$
#
# A second form of (T.16) corrects the old mean by what was surprising about $y$. Multiplying out,
# $V=\frac{PR}{a^2P+R}$; put $K=\frac{aP}{a^2P+R}$. Then
# $V=P\cdot\frac{(a^2P+R)-a^2P}{a^2P+R}=(1-Ka)P$, and the mean is
# $\frac{Rm+aPy}{a^2P+R}=m-\frac{a^2P}{a^2P+R}\,m+\frac{aP}{a^2P+R}\,y$, that is,
#
# $$
# \mathbb E[x\mid y]=m+K\,(y-am) ,\qquad \operatorname{Var}[x\mid y]=(1-Ka)\,P ,\qquad K=\frac{aP}{a^2P+R} .
# \tag{T.18}
# $$
#
# The slope $K$ is covariance over variance: $\operatorname{Cov}(x,y)=aP$, because $\varepsilon$ is
# independent of $x$, and $\operatorname{Var}y=a^2P+R$. And the variance does not depend on $y$: *how
# much* you will learn is known before you look. Gaussians are special in this, and it is why the
# posterior of chapter 4 has a variance that can be tabulated.

# %%
m, P, a, R, y = 0.5, 2.0, 0.8, 0.3, torch.tensor(1.7)
bayes = normal(grid, m, P) * normal(y, a * grid, R)                  # prior × likelihood, on a grid
evidence = integrate(bayes)
mean = integrate(grid * bayes) / evidence
variance = integrate((grid - mean) ** 2 * bayes) / evidence

V = 1 / (1 / P + a**2 / R)
claim("T.16", normal(grid, V * (m / P + a * y / R), V), bayes / evidence)
claim("T.17", normal(y, a * m, a**2 * P + R), evidence)
K = a * P / (a**2 * P + R)
claim("T.18", m + K * (y - a * m), mean, note="mean")
claim("T.18", (1 - K * a) * P, variance, note="variance")
fact("mean before and after y = 1.7 was seen", [m, mean], digits=3)
fact("variance before and after", [P, variance], digits=3)

# %% [markdown]
# **In $D$ dimensions** let $x$ and $y$ be jointly Gaussian with means $m_x,m_y$ and covariance
# blocks $V_{xx}$, $V_{xy}$, $V_{yx}=V_{xy}^\top$, $V_{yy}$, where $V_{yy}$ is invertible. Look for
# the part of $x$ that $y$ says nothing about: $u=x-V_{xy}V_{yy}^{-1}y$. It is uncorrelated with
# $y$, for $\operatorname{Cov}(u,y)=V_{xy}-V_{xy}V_{yy}^{-1}V_{yy}=0$. The pair $(u,y)$ is a linear
# map of $(x,y)$, so by (T.8) it is jointly Gaussian, and $u$ is *independent* of $y$ (third
# corollary in T.2). Its covariance is
# $\operatorname{Cov}(u,u)=\operatorname{Cov}(u,x)=V_{xx}-V_{xy}V_{yy}^{-1}V_{yx}$, where the first
# step dropped $\operatorname{Cov}(u,y)=0$. Given $y$, then, $x=u+V_{xy}V_{yy}^{-1}y$ is $u$, whose
# law has not changed, plus a known vector:
#
# $$
# x\mid y\;\sim\;\mathcal N\big(m_x+V_{xy}V_{yy}^{-1}(y-m_y),\;\;V_{xx}-V_{xy}V_{yy}^{-1}V_{yx}\big) .
# \tag{T.19}
# $$
#
# That covariance is the *Schur complement* of $V_{yy}$. For a noisy linear observation
# $y=Ax+\text{noise}$, with $x\sim\mathcal N(m,P)$ and independent noise $\mathcal N(0,R)$, the
# blocks are $V_{xy}=PA^\top$ and $V_{yy}=APA^\top+R$, so
#
# $$
# x\mid y\;\sim\;\mathcal N\big(m+K(y-Am),\;P-KAP\big) ,\qquad K=PA^\top(APA^\top+R)^{-1} .
# \tag{T.20}
# $$
#
# With $A=\sqrt{\bar\alpha_t}\,I$ and $R=(1-\bar\alpha_t)I$ this says what can be known of a clean
# $x_0$ from a noisy $x_t$ when the data are Gaussian. The library's `GaussianData` computes it, and
# we compare.

# %%
full = torch.tensor([[1.5, 0.4, 0.7], [0.4, 1.0, -0.3], [0.7, -0.3, 2.0]])
Vxx, Vxy, Vyy = full[:2, :2], full[:2, 2:], full[2:, 2:]             # x: two coordinates, y: one
mx, my, y = torch.tensor([0.2, -0.1]), torch.tensor([0.6]), torch.tensor([1.4])
x = torch.randn(5, 2, generator=g)

mean = mx + Vxy @ torch.linalg.solve(Vyy, y - my)
schur = Vxx - Vxy @ torch.linalg.solve(Vyy, Vxy.T)
joint = MultivariateNormal(torch.cat([mx, my]), full)
log_joint = joint.log_prob(torch.cat([x, y.expand(5, 1)], dim=1))
log_ratio = log_joint - MultivariateNormal(my, Vyy).log_prob(y)
claim("T.19", MultivariateNormal(mean, schur).log_prob(x), log_ratio, note="joint over marginal")

schedule = NoiseSchedule.from_betas([0.10, 0.25, 0.40, 0.55])
alpha_bar = 0.90 * 0.75 * 0.60                                       # after three steps, by hand
x_t = torch.randn(4, 2, generator=g)
A, R = alpha_bar**0.5 * torch.eye(2), (1 - alpha_bar) * torch.eye(2)
K = Vxx @ A.T @ torch.linalg.inv(A @ Vxx @ A.T + R)
library = GaussianData(mx, Vxx).posterior_mean(schedule, x_t, 3)
claim("T.20", mx + (x_t - mx @ A.T) @ K.T, library, note="the library's oracle")
precision = torch.linalg.inv(Vxx) + A.T @ torch.linalg.inv(R) @ A
claim("T.20", Vxx - K @ A @ Vxx, torch.linalg.inv(precision), note="as in (T.16)")

# %% [markdown]
# *What does seeing $y$ do to a correlated $x$?* Left: the joint density and the line of conditional
# means. Right: two cuts through it, normalised.

# %%
joint = MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.8], [0.8, 1.0]]))
side = torch.linspace(-3.2, 3.2, 161)
plane = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1)
fig, (left, right) = figure(1, 2)
left.contour(side, side, joint.log_prob(plane).exp(), levels=6)
left.plot(0.8 * side, side, color="black", label=r"$\mathbb{E}[x \mid y]$")
for y, colour in ((-1.0, BLUE), (1.5, VERMILLION)):
    density = joint.log_prob(torch.stack([grid, torch.full_like(grid, y)], dim=-1)).exp()
    density = density / integrate(density)
    assert torch.allclose(density, normal(grid, 0.8 * y, 1 - 0.8**2))       # (T.19)
    left.axhline(y, color=colour, linestyle="--")
    right.plot(grid, density, color=colour, label=f"given $y = {y}$")
right.plot(grid, normal(grid, 0.0, 1.0), color=GREY, linestyle=":", label="before")
left.set(xlabel="$x$", ylabel="$y$")
right.set(xlim=(-3.2, 3.2), ylim=(0, 1.1), xlabel="$x$", ylabel="density")
left.legend(loc="upper left")
right.legend(loc="upper left")
show(fig, """Left, elliptical contours of two Gaussians with correlation 0.8, the straight line of
conditional means, and two horizontal cuts. Right, the cuts, normalised: two equally narrow bells
at -0.8 and 1.2, both narrower than the bell before y was seen.""")

# %% [markdown]
# Used for: the posterior $q(x_{t-1}\mid x_t,x_0)$, where the prior is one marginal and the
# likelihood one step (chapter 4); the exact denoiser of Gaussian data, against which trained ones
# are measured.

# %% [markdown]
# ## T.6 KL between Gaussians
#
# How different are two laws $p$ and $q$? Suppose that $x$ is drawn from $p$. Each draw speaks for
# $p$ and against $q$ with the logarithm of the ratio of the two densities. The **Kullback–Leibler
# divergence** is what it says on average:
#
# $$
# \mathrm{KL}(p\,\Vert\,q)=\mathbb E_{x\sim p}\big[\log p(x)-\log q(x)\big] .
# \tag{T.21}
# $$
#
# With the natural logarithm it is measured in *nats*; divided by $\log 2$, in *bits*. It is
# infinite if $p$ puts probability where $q$ has none. And it is never negative:
#
# $$
# \mathrm{KL}(p\,\Vert\,q)\;\ge\;0 ,\qquad\text{with equality only if } p=q .
# \tag{T.22}
# $$
#
# *Proof.* The logarithm lies below its tangent at $1$: $\log y\le y-1$, with equality only at
# $y=1$. So
# $-\mathrm{KL}(p\,\Vert\,q)=\mathbb E_p\big[\log\tfrac qp\big]\le\mathbb E_p\big[\tfrac qp-1\big]=\int_{p>0}q\,dx-1\le0$.
# Equality in the first step needs $q=p$ wherever $p>0$, and then nothing of $q$ is left elsewhere.
# $\blacksquare$
#
# T.7 will show this to be Jensen's inequality for the logarithm.

# %%
m1, V1, m2, V2 = 0.3, 0.6, -0.5, 1.4
p, q = normal(grid, m1, V1), normal(grid, m2, V2)
one = Gaussian(torch.tensor([[m1]]), torch.tensor(V1))
two = Gaussian(torch.tensor([[m2]]), torch.tensor(V2))
claim("T.21", integrate(p * (p.log() - q.log())), one.kl(two), note="the integral, and the library")


def two_humps():
    """A density on the grid with two humps of random place, width and weight."""
    weight, V = torch.rand((), generator=g), 0.5 + torch.rand(2, generator=g)
    m = 2 * torch.randn(2, generator=g)
    return weight * normal(grid, m[0], V[0]) + (1 - weight) * normal(grid, m[1], V[1])


pairs = [(two_humps(), two_humps()) for _ in range(50)]
divergences = torch.stack([integrate(p * (p / q).log()) for p, q in pairs])
claim("T.22", torch.zeros(50), divergences, relation="<=", note="fifty pairs, none Gaussian")
fact("smallest and largest of the fifty, in nats", [divergences.min(), divergences.max()], 2)

# %% [markdown]
# **Closed form.** For $p=\mathcal N(m_1,V_1)$ and $q=\mathcal N(m_2,V_2)$ in $D$ dimensions we need
# the average of a quadratic form. Write $x-c=(x-m_1)+(m_1-c)$: the cross term averages to zero, and
# $u^\top Bu=\operatorname{tr}(B\,uu^\top)$. So for symmetric $B$ and $x\sim p$ we have
# $\;\mathbb E\,(x-c)^\top B\,(x-c)=\operatorname{tr}(BV_1)+(m_1-c)^\top B\,(m_1-c)$.
#
# Now take logarithms of (T.2). The difference $\log p-\log q$ consists of
# $\tfrac12\log\frac{\det V_2}{\det V_1}$; minus half of $(x-m_1)^\top V_1^{-1}(x-m_1)$, whose
# average is $\operatorname{tr}I=D$; and plus half of $(x-m_2)^\top V_2^{-1}(x-m_2)$, whose average
# is $\operatorname{tr}(V_2^{-1}V_1)+(m_1-m_2)^\top V_2^{-1}(m_1-m_2)$. Together,
#
# $$
# \begin{aligned}
# \mathrm{KL}\big(\mathcal N(m_1,V_1)\,\Vert\,\mathcal N(m_2,V_2)\big)=\tfrac12\Big[&\operatorname{tr}(V_2^{-1}V_1)-D+\log\frac{\det V_2}{\det V_1}\\
# &+(m_1-m_2)^\top V_2^{-1}(m_1-m_2)\Big] .
# \end{aligned}
# \tag{T.23}
# $$
#
# If the covariances are $V_1I$ and $V_2I$ with numbers $V_1,V_2$, the trace is $D\,V_1/V_2$ and the
# determinants are $V_1^D$ and $V_2^D$:
#
# $$
# \mathrm{KL}\big(\mathcal N(m_1,V_1I)\,\Vert\,\mathcal N(m_2,V_2I)\big)
# =\frac D2\Big(\frac{V_1}{V_2}-1-\log\frac{V_1}{V_2}\Big)+\frac{\lVert m_1-m_2\rVert^2}{2V_2} .
# \tag{T.24}
# $$
#
# A price for the wrong variance, and a price for the wrong mean, measured in units of the *second*
# variance. If only the means differ, the first price is zero:
#
# $$
# V_1=V_2=V:\qquad \mathrm{KL}=\frac{\lVert m_1-m_2\rVert^2}{2V} .
# \tag{T.25}
# $$
#
# This line is why a diffusion model is trained with a squared error (chapter 5): its bound is a sum
# of KL divergences between Gaussians of known variance.

# %%
m1, m2 = points[0], torch.tensor([0.5, -1.0, 0.2])
V1, V2 = covariance, torch.diag(torch.tensor([1.0, 0.4, 2.0])) + 0.2
inverse, shift = torch.linalg.inv(V2), m1 - m2
trace, log_ratio = torch.trace(inverse @ V1), torch.logdet(V2) - torch.logdet(V1)
by_hand = 0.5 * (trace - 3 + log_ratio + shift @ inverse @ shift)
claim("T.23", by_hand, kl_divergence(MultivariateNormal(m1, V1), MultivariateNormal(m2, V2)))

V1, V2 = torch.tensor(0.6), torch.tensor(1.4)
distance = ((points - m2) ** 2).sum(dim=1)                           # six pairs of means, D = 3
centre = m2.expand(6, 3)
by_hand = 3 / 2 * (V1 / V2 - 1 - math.log(V1 / V2)) + distance / (2 * V2)
claim("T.24", by_hand, Gaussian(points, V1).kl(Gaussian(centre, V2)))
claim("T.25", distance / (2 * V1), Gaussian(points, V1).kl(Gaussian(centre, V1)))


def divergence(V1, V2):
    """KL(N(0, V1) ‖ N(0, V2)) in one dimension, in nats."""
    return 0.5 * (V1 / V2 - 1 - math.log(V1 / V2))


bit = math.log(2)                                                    # one bit in nats
fact("KL(N(0,1) ‖ N(0,4)) in nats, in bits", [divergence(1, 4), divergence(1, 4) / bit], 3)
fact("KL(N(0,4) ‖ N(0,1)) in nats, in bits", [divergence(4, 1), divergence(4, 1) / bit], 3)
fact("nats per coordinate if q's variance is 10 % too large", divergence(1, 1.1), digits=2)

# %% [markdown]
# > **Pitfall: the order matters, and the sum.** The two orders differ by more than a factor of two
# > above. Too narrow a $q$ is dear, because it calls all but impossible what $p$ produces. And over
# > independent coordinates KL divergences are *summed*: code that averages over pixels instead is
# > off by a factor of $D$, which is 3,072 for a small colour image.
#
# *What does a wrong variance cost, and on which side is it dearer?*

# %%
V = torch.logspace(-1.2, 1.2, 200)
fig, ax = figure()
unit, other = r"\mathcal{N}(0, 1)", r"\mathcal{N}(0, V)"
ax.plot(V, 0.5 * (1 / V - 1 + V.log()), label=rf"KL$({unit}\,\Vert\,{other})$")
ax.plot(V, 0.5 * (V - 1 - V.log()), label=rf"KL$({other}\,\Vert\,{unit})$")
ax.set(xscale="log", xlabel="$V$", ylabel="nats per coordinate", ylim=(-0.1, 4))
ax.legend()
show(fig, """Two curves of the divergence against the variance V on a logarithmic axis, both zero
and flat at V = 1. The one with V in the second place rises steeply for small V, the other for
large V.""")

# %% [markdown]
# **Exercise T.4** (1 point, 6 minutes, ●○○) — *Bits.* Two Gaussians with covariance $0.04\,I$ in
# $D=64$ dimensions have means that differ by $0.1$ in every coordinate. Predict their KL divergence
# **in bits**: set `answer` to a number with three digits.

# %%
answer = None

check("T.4", answer)

# %% [markdown]
# ## T.7 Jensen's inequality
#
# A function $g$ is *convex* if its graph lies below each of its chords:
# $g\big((1-\lambda)c+\lambda x\big)\le(1-\lambda)\,g(c)+\lambda\,g(x)$ for $0\le\lambda\le1$. (A second
# derivative that is nowhere negative is enough.) For such a function it matters whether one
# averages before or after applying it:
#
# $$
# g\ \text{convex}\qquad\Longrightarrow\qquad g(\mathbb E\,x)\;\le\;\mathbb E\,g(x) .
# \tag{T.26}
# $$
#
# *Proof, for a differentiable $g$.* Rewrite the chord condition as
# $\frac{g(c+\lambda(x-c))-g(c)}{\lambda}\le g(x)-g(c)$ and let $\lambda\to0$: the left side becomes
# $g'(c)(x-c)$. So $g(x)\ge g(c)+g'(c)(x-c)$ for all $x$: a convex function lies *above its
# tangents*. Choose the tangent at $c=\mathbb E\,x$ and take expectations. The last term has
# expectation $g'(c)\,(\mathbb E\,x-c)=0$, and (T.26) is left. $\blacksquare$
#
# If $g$ is strictly convex it meets the tangent only at $c$, so equality holds only if $x$ is
# constant. *How does the gap look?* Take $g=\exp$ and $x\sim\mathcal N(0,1)$.

# %%
average = integrate(grid.exp() * normal(grid, 0.0, 1.0))
fact("g(E x) and E g(x)", [math.exp(0.0), average], digits=3)

x = torch.linspace(-2.5, 2.2, 200)
fig, ax = figure()
ax.plot(x, x.exp(), label="$g(x) = e^x$")
ax.plot(x, 1 + x, label=r"tangent at $\mathbb{E}\,x = 0$")
ax.fill_between(x, 0, 2 * normal(x, 0.0, 1.0), alpha=0.2, label="density of $x$, doubled")
ax.plot(0, 1, "o", color="black")
ax.plot(0, average, "s", color="black")
ax.annotate(r"$g(\mathbb{E}\,x)$", (0, 1), xytext=(0.2, 0.75))
ax.annotate(r"$\mathbb{E}\,g(x)$", (0, average), xytext=(-0.75, 1.75))
ax.set(xlabel="$x$", ylim=(0, 5))
ax.legend()
show(fig, """The exponential function above its tangent at zero. A dot marks the function at the
mean, 1; a square above it marks the mean of the function, 1.65.""")

# %% [markdown]
# The case we need is $g=-\log$, which is convex since $g''(y)=1/y^2>0$. Turning the sign,
#
# $$
# \log\,\mathbb E\,y\;\ge\;\mathbb E\log y\qquad\text{for } y>0 .
# \tag{T.27}
# $$
#
# With $y=q(x)/p(x)$ and $x\sim p$ this is (T.22) again: $-\mathrm{KL}(p\,\Vert\,q)=\mathbb E\log y\le\log\mathbb E\,y=\log\int_{p>0}q\,dx\le0$.

# %%
m = torch.linspace(-1, 1, 5)
claim("T.26", m.exp(), integrate(grid.exp() * normal(grid, m[:, None], 0.7)), relation="<=")

V = torch.tensor([0.2, 0.5, 1.0])                                    # y = e^x with x ~ N(0.3, V)
p = normal(grid, 0.3, V[:, None])
claim("T.27", integrate(grid * p), integrate(grid.exp() * p).log(), relation="<=")
fact("log E y - E log y for V = 0.2, 0.5, 1", integrate(grid.exp() * p).log() - 0.3, digits=3)

# %% [markdown]
# **What it is for.** A model with a hidden variable $z$ gives $p(x)=\int p(x,z)\,dz$, an integral
# that one usually cannot do. Write it as $\mathbb E_{z\sim q}\big[p(x,z)/q(z)\big]$ with any
# density $q$. Then (T.27) bounds $\log p(x)$ from below by
# $\mathbb E_{z\sim q}\big[\log p(x,z)-\log q(z)\big]$, the *evidence lower bound*. How much is
# lost? Split $p(x,z)=p(x)\,p(z\mid x)$ inside the logarithm. The first factor does not depend on
# $z$, and the second leaves minus (T.21):
#
# $$
# \log p(x)=\underbrace{\mathbb E_{z\sim q}\big[\log p(x,z)-\log q(z)\big]}_{\text{evidence lower bound}}+\;\mathrm{KL}\big(q\,\Vert\,p(z\mid x)\big) .
# \tag{T.28}
# $$
#
# The gap is a KL divergence, closed exactly when $q$ is the true posterior. Chapter 5 is this
# equation with $z=x_{1:T}$. Here it is with $z\sim\mathcal N(0,1)$ and
# $x\mid z\sim\mathcal N(az,R)$, where T.5 knows every term.

# %%
a, R, x = 1.4, 0.5, torch.tensor(0.9)                               # z ~ N(0, 1), x | z ~ N(a·z, R)
c, W = torch.tensor([[0.1]]), torch.tensor(0.45)                    # q = N(c, W), not the posterior
q = normal(grid, c.item(), W)
bound = integrate(q * (normal(grid, 0.0, 1.0).log() + normal(x, a * grid, R).log() - q.log()))
V = torch.tensor(1 / (1 + a**2 / R))                                 # the posterior, by (T.16)
gap = Gaussian(c, W).kl(Gaussian((V * a * x / R).view(1, 1), V))
log_evidence = normal(x, 0.0, a**2 + R).log()                        # by (T.17)
claim("T.28", bound + gap, log_evidence)
fact("log p(x), and the bound", [log_evidence, bound], digits=3)

# %% [markdown]
# > **Pitfall: the log of an average is not the average of logs.** Average the likelihoods of a test
# > set, then take the logarithm: by (T.27) the result looks better than the average log-likelihood,
# > which is what one should report. And an estimate of $p(x)$ from a few draws of $z$ may be right
# > on average, but its logarithm is too *low* on average.

# %% [markdown]
# ## T.8 Reparameterisation
#
# Drawing from $\mathcal N(m,V)$ looks like something that a gradient cannot pass. By (T.6) it can
# be written as a deterministic map of the parameters and of noise that does not depend on them:
#
# $$
# x=m+\sqrt V\,\varepsilon ,\qquad\varepsilon\sim\mathcal N(0,1) .
# \tag{T.29}
# $$
#
# Then $\mathbb E_{x\sim\mathcal N(m,V)}f(x)=\mathbb E_\varepsilon\,f(m+\sqrt V\,\varepsilon)$ is an
# average over a *fixed* law, and the chain rule gives
#
# $$
# \frac{\partial}{\partial m}\,\mathbb E\,f(x)=\mathbb E\big[f'(x)\big] ,\qquad
# \frac{\partial}{\partial\sqrt V}\,\mathbb E\,f(x)=\mathbb E\big[f'(x)\,\varepsilon\big] ,
# \tag{T.30}
# $$
#
# *provided that the derivative may move inside the expectation.* It may if $f$ is differentiable
# and, for all parameters near the ones in question, the derivative of $f(m+\sqrt V\,\varepsilon)$
# with respect to the parameter stays below some function of $\varepsilon$ that has a finite
# expectation. For then the difference quotient
# $\frac1h\big[f(m+h+\sqrt V\varepsilon)-f(m+\sqrt V\varepsilon)\big]$ equals $f'$ at a point
# between (mean value theorem), so it stays below that function for every small $h$, and dominated
# convergence lets the limit $h\to0$ and the expectation change places. Finitely many kinks do no
# harm if $f$ is continuous; a jump does.
#
# **The other way**, for an $f$ without a derivative: differentiate the density instead of the
# sample. From (T.1),
# $\frac{\partial}{\partial m}\mathcal N(x;\,m,V)=\mathcal N(x;\,m,V)\,\frac{x-m}V$, so
#
# $$
# \frac{\partial}{\partial m}\,\mathbb E\,f(x)=\mathbb E\Big[f(x)\,\frac{x-m}V\Big] .
# \tag{T.31}
# $$
#
# Here the derivative may move inside for every $f$ that grows no faster than a polynomial, smooth or
# not: it falls on the bell, and for all $m$ near the one in question the bell's derivative stays
# below a polynomial times one somewhat wider bell. This is the *score-function* form. Where $f'$ is
# tame it agrees with (T.30): with $x-m=\sqrt V\,\varepsilon$ it is
# $\tfrac1{\sqrt V}\,\mathbb E\big[\varepsilon f(m+\sqrt V\,\varepsilon)\big]$, and by Stein's
# identity that is $\tfrac1{\sqrt V}\,\mathbb E\big[\sqrt V\,f'(x)\big]$. Both estimate the same
# gradient from draws. The second is usually noisier, because it multiplies the whole value of $f$,
# not its change, by noise: add a constant to $f$ and (T.30) does not notice, while the spread of
# (T.31) grows. Chapter 2 measures this.
#
# A case that can be solved is $f=\cos$. The real part of (T.7) with $k=1$ says
# $\mathbb E\cos x=e^{-V/2}\cos m$, so the two gradients are $-e^{-V/2}\sin m$ and
# $-\sqrt V\,e^{-V/2}\cos m$. We take $m=0.7$, $V=0.5$.

# %%
noise, same_noise = (torch.Generator().manual_seed(7) for _ in range(2))
m, V = torch.tensor([0.7, -1.2]), torch.tensor(0.5)
by_hand = m + V**0.5 * torch.randn(2, generator=noise)
claim("T.29", by_hand, Gaussian(m, V).sample(same_noise), note="the library's draw, same noise")

m = torch.tensor(0.7, requires_grad=True)
deviation = torch.tensor(0.5**0.5, requires_grad=True)
(weight * torch.cos(m + deviation * node)).sum().backward()          # E over ε, by Gauss–Hermite
by_m = -math.exp(-0.25) * math.sin(0.7)
by_deviation = -(0.5**0.5) * math.exp(-0.25) * math.cos(0.7)
claim("T.30", by_m, m.grad, note="autograd, for the mean")
claim("T.30", by_deviation, deviation.grad, note="autograd, for the standard deviation")

x = 0.7 + 0.5**0.5 * node
claim("T.31", (weight * torch.cos(x) * (x - 0.7) / 0.5).sum(), by_m)


def spread(estimate):
    """Standard deviation of one draw's estimate, from its values at the nodes."""
    mean = (weight * estimate).sum()
    return ((weight * (estimate - mean) ** 2).sum()).sqrt()


factor = (x - 0.7) / 0.5
two_ways = [spread(-x.sin()), spread(x.cos() * factor)]
fact("standard deviation of one draw's estimate, by (T.30), by (T.31)", two_ways, digits=3)
fact("by (T.31) for cos x + 10: the same gradient", spread((x.cos() + 10) * factor), digits=3)

# %% [markdown]
# > **Pitfall: a jump.** Let $f(x)=1$ for $x>0$ and $0$ otherwise. Then $\mathbb E\,f$ is the
# > probability $P(x>0)=P(x-m>-m)$, and raising $m$ lets in what lies at the jump: the derivative is
# > the density there, $\mathcal N(0;\,m,V)$. But $f'=0$ wherever it exists, and the gradient that
# > (T.30) and autograd report is *zero*, without a warning. The condition failed: next to the jump
# > the difference quotient is $1/h$, below no fixed function. (T.31) needs no $f'$ and is right.

# %%
n = 4_000_000
m = torch.tensor(0.7, requires_grad=True)
x = m + 0.5**0.5 * torch.randn(n, generator=g)
jump = (1 + torch.sign(x)) / 2
jump.mean().backward()
truth = normal(torch.tensor(0.0), 0.7, 0.5)
fact("derivative of P(x > 0) with respect to m", truth, digits=3)
fact("what autograd says", m.grad, uncertainty=0.0)
one_draw = (jump * (x - m) / 0.5).detach()
claim("T.31", one_draw.mean(), truth, standard_error=one_draw.std() / n**0.5)

# %% [markdown]
# Used for: every training step of this book, and the forward chain itself (chapter 2).

# %% [markdown]
# ## T.9 Change of variables
#
# Let $y=g(x)$ with a smooth and strictly monotone $g$. What is the density of $y$? Probability is
# carried along, not created: what lay in a short interval of length $dx$ lands in one of length
# $|g'(x)|\,dx$. If $g$ rises, $P(y\le c)=P(x\le g^{-1}(c))$, and differentiating with respect to
# $c$ gives $p_x(g^{-1}(c))\cdot(g^{-1})'(c)$. If it falls, $P(y\le c)=P(x\ge g^{-1}(c))$ gives the
# same with a minus sign, which makes the negative derivative positive. Together, and with
# $(g^{-1})'=1/g'$,
#
# $$
# p_y(y)=p_x(x)\,\Big|\frac{dx}{dy}\Big|=\frac{p_x(x)}{|g'(x)|} ,\qquad x=g^{-1}(y) .
# \tag{T.32}
# $$
#
# In $D$ dimensions a small cube at $x$ becomes a small parallelepiped. Its edges are the columns of
# the Jacobian matrix $J=\partial g/\partial x$ times the edge of the cube, so its volume is
# $|\det J|$ times the cube's, and the probability in it is unchanged. For a smooth invertible $g$
# this is the substitution rule for multiple integrals:
#
# $$
# p_y(y)=\frac{p_x(x)}{|\det J(x)|} ,\qquad\log p_y(y)=\log p_x(x)-\log|\det J(x)| .
# \tag{T.33}
# $$
#
# In a chain of maps the Jacobians multiply, so the log-determinants *add*: that is how a
# normalising flow computes its likelihood (chapter 1).
#
# **A promise kept.** Take $x=m+Cz$ with $z\sim\mathcal N(0,I)$ and an invertible $C$. Then $J=C$,
# and $\log p(x)=-\tfrac12z^\top z-\tfrac D2\log2\pi-\log|\det C|$. With $V=CC^\top$ we have
# $\det V=(\det C)^2$ and $z^\top z=(x-m)^\top(C^{-1})^\top C^{-1}(x-m)=(x-m)^\top V^{-1}(x-m)$:
# this is (T.2).
#
# As a test, take a map that is far from linear: Box and Muller's, which turns two uniform numbers,
# of density $1$ on the unit square, into two independent Gaussians.

# %%
y = torch.tensor([0.2, 0.7, 1.5, 4.0])                               # y = e^x with x ~ N(0.3, 0.8)
library = scipy.stats.lognorm(s=0.8**0.5, scale=math.exp(0.3)).pdf(y)
claim("T.32", normal(y.log(), 0.3, 0.8) / y, library, note="the log-normal law")


def box_muller(u):
    """Two uniform numbers to two independent standard Gaussians."""
    length, angle = torch.sqrt(-2 * torch.log(u[0])), 2 * math.pi * u[1]
    return torch.stack([length * torch.cos(angle), length * torch.sin(angle)])


u = torch.rand(7, 2, generator=g)
z = torch.vmap(box_muller)(u)
volume = torch.linalg.det(torch.vmap(torch.func.jacrev(box_muller))(u)).abs()      # by autograd
claim("T.33", 1 / volume, MultivariateNormal(torch.zeros(2), torch.eye(2)).log_prob(z).exp())

# %% [markdown]
# **The quantile map.** Let $F(c)=P(x\le c)$ be continuous and strictly increasing, with density
# $p=F'$, and let $u$ be uniform on $(0,1)$. Then $P(F^{-1}(u)\le c)=P(u\le F(c))=F(c)$. So
#
# $$
# x=F^{-1}(u)\ \text{ has the density }\,p ,\qquad\text{and}\qquad\frac{d}{du}F^{-1}(u)=\frac1{p\big(F^{-1}(u)\big)} ,
# \tag{T.34}
# $$
#
# the second by the rule for the derivative of an inverse, which is (T.32) once more. One uniform
# number becomes a draw from any law on the line; conversely $F(x)$ is uniform.

# %%
u = torch.tensor([0.03, 0.2, 0.5, 0.9], requires_grad=True)
x = Normal(0.0, 1.0).icdf(u)                                         # F⁻¹, with autograd
(slope,) = torch.autograd.grad(x.sum(), u)
claim("T.34", 1 / normal(x, 0.0, 1.0), slope)

n = 1_000_000
data = GaussianMixture([0.35, 0.65], [[-1.5], [1.0]], [[[0.1]], [[0.3]]])
x = data.quantile(torch.rand(n, generator=g))
second = 0.35 * ((-1.5) ** 2 + 0.1) + 0.65 * (1.0**2 + 0.3)          # E x², by hand
error = (x**2).std() / n**0.5
claim("T.34", (x**2).mean(), second, standard_error=error, note="a mixture, from uniform numbers")
fact("P(x < -0.5), in the draws and exactly", [(x < -0.5).double().mean(), data.cdf([-0.5])[0]], 2)

# %% [markdown]
# Chain the two directions, $z\mapsto F^{-1}(\Phi(z))$ with $\Phi$ the distribution function of
# $\mathcal N(0,1)$: *noise is turned into data by a deterministic, rising map.* In one dimension no
# other rising map does so (it has to send each quantile to the same quantile), and chapter 9 finds
# it again by solving an ODE. *How can a monotone map make two humps out of one?* Where it is steep
# it stretches, and the density falls; where it is flat, probability piles up.

# %%
z = torch.linspace(-3.2, 3.2, 1601)
x = data.quantile(Normal(0.0, 1.0).cdf(z))
slope = (x[2:] - x[:-2]) / (z[2:] - z[:-2])                          # of the map, by differences
pushed, exact = normal(z[1:-1], 0.0, 1.0) / slope, data.log_prob(x[:, None]).exp()
assert torch.allclose(pushed, exact[1:-1], atol=1e-3)
fig, (left, middle, right) = figure(1, 3)
left.plot(z, normal(z, 0.0, 1.0))
middle.plot(z, x)
right.plot(x, exact, label="exact")
right.plot(x[1:-1:50], pushed[::50], ".", color="black", label="by (T.32)")
left.set(xlabel="$z$", ylabel="density", title="noise")
middle.set(xlabel="$z$", ylabel="$x$", title=r"the map $F^{-1}(\Phi(z))$")
right.set(xlabel="$x$", ylim=(0, 0.75), title="data")
right.legend(loc="upper left")
show(fig, """Left, a standard Gaussian. Middle, a rising map that is flat, then steep, then flat.
Right, a density of two humps; dots computed by the change of variables lie on it.""")


# %% [markdown]
# ## T.10 ODEs and the order of Euler's method
#
# Chapter 9 turns sampling into an ordinary differential equation. Its clock runs over $r\in[0,1]$
# here, to keep $t$ for step numbers:
#
# $$
# \frac{dx}{dr}=f(x,r) ,\qquad x(0)\ \text{given} .
# \tag{T.35}
# $$
#
# Let $f$ be smooth, and *Lipschitz* in $x$ with constant $\ell$: $|f(x,r)-f(y,r)|\le\ell\,|x-y|$.
# Then there is exactly one solution (Picard and Lindelöf). **Euler's method** follows the tangent
# for a short time $h=1/N$, $N$ times, with $r_n=nh$:
#
# $$
# x_{n+1}=x_n+h\,f(x_n,r_n) .
# \tag{T.36}
# $$
#
# **One step.** Suppose that it starts *on* the solution. Taylor's formula with remainder says
# $x(r+h)=x(r)+h\,x'(r)+\tfrac12h^2x''(r^*)$ for some $r^*$ between, and $x'=f$. If $|x''|\le B$
# along the solution, the step misses by at most
#
# $$
# \big|\,x(r+h)-x(r)-h\,f(x(r),r)\,\big|\;\le\;\tfrac12\,B\,h^2 .
# \tag{T.37}
# $$
#
# **All steps.** Later steps start beside the solution. Let $d_n=|x(r_n)-x_n|$ and subtract (T.36)
# from the exact step: $d_{n+1}$ is at most $d_n$, plus
# $h\,|f(x(r_n),r_n)-f(x_n,r_n)|\le h\ell\,d_n$, plus the miss (T.37). So
# $d_{n+1}\le(1+h\ell)\,d_n+c$ with $c=\tfrac12Bh^2$ and $d_0=0$. Unrolled,
# $d_n\le c\,\big(1+(1+h\ell)+\dots+(1+h\ell)^{n-1}\big)$, which is a geometric sum; and
# $1+h\ell\le e^{h\ell}$. So
#
# $$
# d_{n+1}\le(1+h\ell)\,d_n+c ,\;\;d_0=0
# \qquad\Longrightarrow\qquad d_n\;\le\;c\;\frac{(1+h\ell)^n-1}{h\ell}\;\le\;c\;\frac{e^{nh\ell}-1}{h\ell} ,
# \tag{T.38}
# $$
#
# Gronwall's inequality in its discrete form. Put in $c=\tfrac12Bh^2$ and $n=N$, with $Nh=1$. One
# power of $h$ is lost, because there are $1/h$ steps:
#
# $$
# |x(1)-x_N|\;\le\;\frac{B}{2\ell}\,\big(e^{\ell}-1\big)\,h .
# \tag{T.39}
# $$
#
# Half the step, half the error: Euler is of *order one*. (For vectors, read $|\cdot|$ as a norm and
# take Taylor's remainder as an integral; the rest is the same.)
#
# **Heun's method** looks ahead before it decides. It takes Euler's step as a guess, and then uses
# the average of the slopes at both ends:
#
# $$
# \tilde x=x_n+h\,f(x_n,r_n) ,\qquad x_{n+1}=x_n+\tfrac h2\big[f(x_n,r_n)+f(\tilde x,r_{n+1})\big] .
# \tag{T.40}
# $$
#
# *Why its order is two.* On the solution, $x''=\partial_rf+f\,\partial_xf$ by the chain rule.
# Expand the second slope: $f(x+hf,\,r+h)=f+h\,(\partial_rf+f\,\partial_xf)+O(h^2)=f+h\,x''+O(h^2)$.
# The step therefore adds $\tfrac h2\,[\,2f+h\,x''+O(h^2)]=h\,x'+\tfrac12h^2x''+O(h^3)$, which is
# Taylor's formula up to $O(h^3)$. The averaged slope is Lipschitz too: a change of $x_n$ by
# $d$ changes $\tilde x$ by at most $(1+h\ell)\,d$, hence the average by at most
# $\ell\,(1+\tfrac12h\ell)\,d$. So (T.38) applies with that constant and $c=O(h^3)$, and gives
# $O(h^2)$. The price is two evaluations of $f$ a step, and for us one evaluation is one call of the
# network.
#
# We measure both on $f(x,r)=x\cos2r$ with $x(0)=1$, whose solution is $x(r)=\exp(\tfrac12\sin2r)$.
# Here $\ell=1$, since $|\cos|\le1$. And $|x''|=|x|\,|\cos^22r-2\sin2r|\le2e^{1/2}$: for
# $0\le r\le1$ the sine lies between $0$ and $1$, so that what is inside the bars lies between $-2$
# and $1$.

# %%
def slope(x, r):
    """The f of (T.35)."""
    return x * math.cos(2 * r)


def exact(r):
    """The solution that starts at x(0) = 1."""
    return math.exp(math.sin(2 * r) / 2)


def euler_step(x, r, h):
    """(T.36)."""
    return x + h * slope(x, r)


def heun_step(x, r, h):
    """(T.40)."""
    guess = x + h * slope(x, r)
    return x + h / 2 * (slope(x, r) + slope(guess, r + h))


def final_error(step, N):
    """|x(1) - x_N| after N steps."""
    x = 1.0
    for n in range(N):
        x = step(x, n / N, 1 / N)
    return abs(x - exact(1.0))


rule = solve_ivp(lambda r, x: x * np.cos(2 * r), (0, 1), [1.0], rtol=1e-12, atol=1e-12)
claim("T.35", exact(1.0), rule.y[0, -1], note="SciPy's solver agrees with the solution")

counts = np.array([16, 32, 64, 128, 256])
h, B, ell = 1 / counts, 2 * math.exp(1 / 2), 1.0
euler_error = np.array([final_error(euler_step, N) for N in counts])
heun_error = np.array([final_error(heun_step, N) for N in counts])
one_step = np.array([abs(exact(0.4 + k) - euler_step(exact(0.4), 0.4, k)) for k in h])
bound = B / (2 * ell) * (math.exp(ell) - 1) * h

claim("T.36", (h, euler_error), 1.0, relation="order", note="Euler")
claim("T.37", one_step, B * h**2 / 2, relation="<=")
claim("T.37", (h, one_step), 2.0, relation="order", note="one step")
claim("T.39", euler_error, bound, relation="<=")
claim("T.40", (h, heun_error), 2.0, relation="order", note="Heun")
fact("Euler's error with 16, 64, 256 steps", euler_error[::2], digits=2)
fact("Heun's error with 16, 64, 256 steps", heun_error[::2], digits=2)
fact("64 evaluations of f: Euler's error over Heun's", euler_error[2] / heun_error[1], digits=2)

# %%
d, growth = 0.0, 1 + 0.02 * 3.0                                      # h = 0.02, ell = 3
for _ in range(50):
    d = growth * d + 1e-3                                            # (T.38) at its worst: equality
claim("T.38", d, 1e-3 * (growth**50 - 1) / (0.02 * 3.0), note="the geometric sum")
claim("T.38", d, 1e-3 * (math.exp(50 * 0.02 * 3.0) - 1) / (0.02 * 3.0), relation="<=")

# %% [markdown]
# *How fast do the errors fall, at the same cost?* In logarithmic axes a power of $h$ is a straight
# line, and its slope is the order.

# %%
fig, ax = figure()
ax.loglog(counts, euler_error, "o-", label="Euler")
ax.loglog(2 * counts, heun_error, "s-", label="Heun")
ax.loglog(counts, bound, ":", color=GREY, label="bound (T.39)")
ax.set_xticks([16, 64, 256], ["16", "64", "256"])
ax.minorticks_off()
ax.set(xlabel="evaluations of $f$", ylabel=r"$|x(1) - x_N|$")
ax.legend(loc="lower left")
show(fig, """Error against the number of evaluations, in logarithmic axes. Euler's points fall with
slope -1 below the dotted bound, Heun's with slope -2 and far below.""")


# %% [markdown]
# **Stiffness.** The bound (T.39) grows like $e^\ell$: for a large $\ell$ it says nothing until $h$
# is tiny, and sometimes that is the truth. The solution of $x'=-\lambda x$ with $\lambda>0$ dies
# away. Euler multiplies by $1-h\lambda$ at each step,
#
# $$
# x_n=(1-h\lambda)^n\,x_0 ,\qquad\text{which dies away only if}\quad h\lambda<2 .
# \tag{T.41}
# $$
#
# > **Pitfall: a step too long for a steep slope.** Beyond $h\lambda=2$ the numbers change sign at
# > each step and explode, although the solution is as tame as can be. A diffusion's ODE is steep in
# > this way near the data, where narrow laws have steep scores; this is one reason why sampling
# > steps are spaced unevenly (chapter 9).

# %%
def decay(N, rate=50.0):
    """Euler's x_N for x' = -rate·x, x(0) = 1."""
    x = 1.0
    for _ in range(N):
        x = x + 1 / N * (-rate * x)
    return x


claim("T.41", (1 - 50 / 20) ** 20, decay(20))
fact("the solution at r = 1", math.exp(-50.0), digits=2)
fact("Euler with 20 steps, and with 30", [decay(20), decay(30)], digits=2)


# %% [markdown]
# **Exercise T.5** (2 points, 12 minutes, ●●○) — *One step of Heun.* Write `heun(x, r, h)` that
# takes one step of (T.40), of length `h`, from `x` at time `r`, for the slope $f(x,r)=-2x+\sin5r$.
# The slope depends on time, and that is where most mistakes are made.

# %%
def heun(x, r, h):
    """One step of Heun's method, of length h, from x at time r, for the slope -2x + sin(5r)."""
    raise NotImplementedError("your turn")

check("T.5", heun)

# %% [markdown]
# ## T.11 Monte Carlo and its standard error
#
# Many claims of this book rest on a simulation. A simulation is off by chance, and how far off can
# be computed. Let $x_1,\dots,x_n$ be independent draws from a law of mean $m$ and variance $V$.
# Variances of independent variables add, so their average has variance
# $\tfrac1{n^2}\cdot nV=\tfrac Vn$. Its standard deviation is called the **standard error** of the
# estimate:
#
# $$
# \operatorname{se}\Big(\tfrac1n\sum_i x_i\Big)=\sqrt{\frac Vn} .
# \tag{T.42}
# $$
#
# Nothing here is Gaussian, and the dimension does not occur. For the *variance* estimate
# $\hat V=\frac1{n-1}\sum_i(x_i-\bar x)^2$, with $\bar x$ the average, let the draws be Gaussian,
# and take $m=0$, $V=1$ first. Let $Q$ be an orthogonal matrix whose first row is
# $(1,\dots,1)/\sqrt n$. The vector $y=Q\,(x_1,\dots,x_n)^\top$ is again $\mathcal N(0,I)$ (second
# corollary in T.2), its first coordinate is $\sqrt n\,\bar x$, and rotations keep lengths. So
# $\sum_i(x_i-\bar x)^2=\sum_ix_i^2-n\bar x^2=\sum_jy_j^2-y_1^2=\sum_{j\ge2}y_j^2$, a sum of $n-1$
# independent squares, each of mean $1$ and variance $2$ (T.1 has both). So $\hat V$ is right on
# average and its variance is $\frac{2(n-1)}{(n-1)^2}$; scaled back to any $V$,
#
# $$
# \operatorname{se}(\hat V)=V\sqrt{\frac2{n-1}}\;\approx\;V\sqrt{\frac2n} .
# \tag{T.43}
# $$
#
# For other laws and large $n$, replace the $2$ by $\mathbb E(x-m)^4/V^2-1$. For the standard
# deviation, halve the *relative* error, as for any square root. For a covariance, two jointly
# Gaussian coordinates $x,y$ of mean zero have $\mathbb E[x^2y^2]=V_{xx}V_{yy}+2V_{xy}^2$ (write $y$
# as a multiple of $x$ plus an independent rest), so one product $xy$ has the variance
# $V_{xx}V_{yy}+V_{xy}^2$, as T.2 used. To check (T.42) and (T.43), repeat a small simulation two
# million times and look at the spread of its results.

# %%
n, repeats = 8, 500_000                                              # four times: two million
means, variances = [], []
for _ in range(4):
    draws = 1.5**0.5 * torch.randn(repeats, n, generator=g)
    means.append(draws.mean(dim=1))
    variances.append(draws.var(dim=1))


def spread_and_error(values):
    """The standard deviation of many numbers, and the standard error of that."""
    spread = values.std()
    kurtosis = ((values - values.mean()) ** 4).mean() / spread**4
    return spread, spread / 2 * ((kurtosis - 1) / len(values)) ** 0.5


spread, error = spread_and_error(torch.cat(means))
claim("T.42", (1.5 / n) ** 0.5, spread, standard_error=error)
spread, error = spread_and_error(torch.cat(variances))
claim("T.43", 1.5 * (2 / (n - 1)) ** 0.5, spread, standard_error=error)
fact("draws after which a variance is known to 0.1 %", round(2 / 0.001**2))
fact("chance of missing by five standard errors", 2 * scipy.stats.norm.sf(5), digits=2)

# %% [markdown]
# **How this book claims.** `claim("T.12", left, right)` says that equation (T.12) holds for these
# numbers. One side is written out from the symbols; the other comes from somewhere else: the
# library, quadrature, autograd, SymPy, a simulation. A deterministic claim allows a difference of
# $10^{-10}$ of the right side's size, unless it says otherwise. A Monte-Carlo claim allows five
# standard errors. An average of many draws is nearly Gaussian (the central limit theorem), so
# chance alone exceeds that about once in two million; and since every draw is seeded, what passed
# once goes on passing.
#
# After passing, every claim is tried again with its left side changed by one per cent, *and has to
# fail*. Hence the millions of draws. `fact` prints a number to so few digits that every machine
# prints the same. This is what a wrong claim, a claim too weak to mean anything, and a number on
# the edge of rounding look like:

# %%
try:                                 # Var(0.6 x + 0.8 y) with standard deviations added by mistake
    claim("T.12", (0.6 + 0.8) ** 2, 0.6**2 + 0.8**2)
except ClaimError as error:
    print("wrong:", error)
try:
    claim("T.42", torch.full((3,), 0.5), torch.tensor([0.5, 0.501, 0.499]), standard_error=0.005)
except ClaimError as error:
    print("weak: ", error)
try:
    fact("a number on the edge", 0.12345, digits=4)    # 0.1234 here may well be 0.1235 elsewhere
except ValueError as error:
    print("fact: ", error)


# %% [markdown]
# ## T.12 How we will measure
#
# A generator hands us pictures. Are they good? A glance says little: copies of the training images
# look perfect. So ask three questions, each with numbers of its own. *Are the samples distributed
# like the data?* If not, *are they unlike any data, or is part of the data missing?* And: *are they
# new?* This section prepares the answers, and the rules by which this book gives them. Chapter 1
# has used them in advance; from chapter 7 on they are what every model is held to.
#
# **The distance between two Gaussians.** Pair the draws $x$ of one law with the draws $y$ of
# another, in any way that keeps both laws; the least average of $\lVert x-y\rVert^2$ over all
# pairings is their squared *Wasserstein distance* $W_2^2$. For Gaussians it is called the **Fréchet
# distance**; custom, and this book, give the name to the square itself. With symmetric square roots,
#
# $$
# d^2\big(\mathcal N(m_a,V_a),\mathcal N(m_b,V_b)\big)=\lVert m_a-m_b\rVert^2
# +\operatorname{tr}\Big(V_a+V_b-2\,\big(V_a^{1/2}V_bV_a^{1/2}\big)^{1/2}\Big) .
# \tag{T.44}
# $$
#
# *Proof.* Multiply out: $\mathbb E\lVert x-y\rVert^2=\lVert m_a-m_b\rVert^2+\operatorname{tr}V_a
# +\operatorname{tr}V_b-2\operatorname{tr}K$, where $K=\operatorname{Cov}(x,y)$ is all that the
# pairing decides. How large can $\operatorname{tr}K$ be? Let $V_a,V_b$ be invertible and write
# $K=V_a^{1/2}GV_b^{1/2}$. What is left of $y$ when $x$ is known has the covariance
# $V_b-K^\top V_a^{-1}K=V_b^{1/2}(I-G^\top G)V_b^{1/2}$, as in (T.19), and no variance is negative.
# So $\lVert Gu\rVert\le\lVert u\rVert$ for every $u$. Now
# $\operatorname{tr}K=\operatorname{tr}(GM)$ with $M=V_b^{1/2}V_a^{1/2}$, because a trace allows its
# factors to be moved round. Let $M=A\Lambda B^\top$ be its singular value decomposition: $A,B$
# orthogonal, $\Lambda$ diagonal with $\lambda_i\ge0$. Then
# $\operatorname{tr}(GM)=\sum_i\lambda_i\,(B^\top GA)_{ii}\le\sum_i\lambda_i$: rotations do not
# stretch either, so no entry of $B^\top GA$ exceeds $1$. The choice $G=BA^\top$ reaches the bound,
# and a Gaussian pair with this $K$ exists. Last,
# $\sum_i\lambda_i=\operatorname{tr}(M^\top M)^{1/2}$, and $M^\top M=V_a^{1/2}V_bV_a^{1/2}$.
# $\blacksquare$
#
# Nothing in the bound was Gaussian: for *any* two laws with these means and covariances, $W_2^2$ is
# at least (T.44). So a large value proves a difference. A value of zero proves only that two means
# and two covariances agree.

# %%
def symmetric_root(V):
    values, vectors = torch.linalg.eigh(V)
    return (vectors * values.sqrt()) @ vectors.T


m_a, m_b = torch.tensor([0.5, -1.0, 0.0]), torch.tensor([0.0, 0.3, 1.0])
V_a, V_b = covariance, torch.tensor([[0.5, -0.2, 0.1], [-0.2, 1.5, 0.4], [0.1, 0.4, 0.3]])
root_a, root_b = symmetric_root(V_a), symmetric_root(V_b)
cross = symmetric_root(root_a @ V_b @ root_a)
by_hand = ((m_a - m_b) ** 2).sum() + torch.trace(V_a + V_b - 2 * cross)
library = gaussian_frechet_distance(m_a.numpy(), V_a.numpy(), m_b.numpy(), V_b.numpy())
claim("T.44", by_hand, library, note="three dimensions; V_a and V_b do not commute")

A, _, Bt = torch.linalg.svd(root_b @ root_a)                         # the pairing that reaches it
K = root_a @ (Bt.T @ A.T) @ root_b
claim("T.44", ((m_a - m_b) ** 2).sum() + torch.trace(V_a + V_b - 2 * K), library, note="reached")
others = [root_a @ torch.linalg.qr(torch.randn(3, 3, generator=g))[0] @ root_b for _ in range(50)]
others = torch.stack([((m_a - m_b) ** 2).sum() + torch.trace(V_a + V_b - 2 * K) for K in others])
claim("T.44", library, others, relation="<=", note="50 other pairings are no better")

level = (torch.arange(200_000) + 0.5) / 200_000                      # on a line: equal quantiles
gap = (0.3 + 0.8 * torch.special.ndtri(level)) - (-0.2 + 0.5 * torch.special.ndtri(level))
fact("on a line, by quantiles", (gap**2).mean(), digits=3)
fact("on a line, (T.44)", (0.3 + 0.2) ** 2 + (0.8 - 0.5) ** 2, digits=3)

# %% [markdown]
# On a line the roots are numbers, and (T.44) is $(m_a-m_b)^2+(\sqrt{V_a}-\sqrt{V_b})^2$. So it is
# for independent coordinates, summed over them.
#
# For pictures, distances between pixels mean little: move a digit by one pixel and it is far from
# where it was. So pictures are first turned into a few *features*, the inner values of a network
# that was trained to classify them, and Gaussians are fitted to those. The book's classifier has
# $F=24$ features, and never saw the 355 digits that are held out.
#
# **It is never zero.** Means and covariances are estimated, and estimates differ. On a line, let
# $n$ draws from $\mathcal N(m,V)$ be compared with $n'$ others *of the same law*. By (T.42) the
# means differ by a number of variance $\tfrac Vn+\tfrac V{n'}$. By (T.43) the variance is known to
# the relative error $\sqrt{2/n}$, hence its root to half of that, so the roots differ by a number
# of variance about $\tfrac V{2n}+\tfrac V{2n'}$. Together,
#
# $$
# \mathbb E\,d^2\;\approx\;\tfrac32\,V\,\Big(\frac1n+\frac1{n'}\Big) .
# \tag{T.45}
# $$
#
# This **bias** falls like $1/n$, and it grows with the number of features, where every entry of a
# covariance matrix brings its own error.

# %%
n, distances = 128, []
for _ in range(8):
    draws = 1.5**0.5 * torch.randn(2, 125_000, n, generator=g)
    (mean_a, mean_b), (std_a, std_b) = draws.mean(dim=-1), draws.std(dim=-1)
    distances.append((mean_a - mean_b) ** 2 + (std_a - std_b) ** 2)
distances = torch.cat(distances)
error = distances.std() / len(distances) ** 0.5
claim("T.45", 3 / 2 * 1.5 * (1 / n + 1 / n), distances.mean(), standard_error=error)
del draws


def same_law(F, n, repeats=60):
    """The average distance of two samples of one law, N(0, I) in F dimensions."""
    draws = torch.randn(repeats, 2, n, F, generator=g)
    return np.mean([frechet_distance(a, b) for a, b in draws])


sizes = np.array([50, 100, 200, 400, 800])
claim("T.45", (sizes, [same_law(8, n) for n in sizes]), -1.0, relation="order", note="8 features")
fact("one law, 355 draws each: F = 1, 8, 24", [same_law(F, 355) for F in (1, 8, 24)], digits=2)

# %% [markdown]
# > **Pitfall: distances at different $n$.** A thousand samples look better than a hundred from the
# > same model, and a model looks better beside a large data set than beside a small one. Two
# > Fréchet distances may be compared only if both $n$ and $n'$ are equal in both. That still leaves
# > the bias in. What it amounts to on *this* data, real images tell: their distance, at the same
# > sizes, is the **floor** on which a perfect model would stand.
#
# > **Pitfall: a bootstrap interval.** To see how uncertain a distance is, it is tempting to resample
# > the $n$ images with replacement, many times, and to take the middle 95 % of what comes out. But
# > resampling adds to the error of the sample the same error once more, and for a *distance* an
# > error has only one direction.

# %%
train, _ = digits("train")
heldout, _ = digits("heldout")
network = classifier()
real = network.features(heldout)
some = network.features(train[torch.randperm(len(train), generator=g)[:355]])


def resampled(rows):
    return rows[torch.randint(len(rows), (len(rows),), generator=g)]


bootstrap = [frechet_distance(resampled(some), resampled(real)) for _ in range(400)]
low, high = np.quantile(bootstrap, [0.025, 0.975])
estimate = frechet_distance(some, real)
fact("355 real digits against 355 others", estimate, digits=2)
fact("their naive 95 % bootstrap interval", [low, high], digits=2)
assert low > estimate                               # the interval excludes the number it belongs to

# %% [markdown]
# **An honest interval** repeats what is random: generate again. From $R$ independent generations
# come $R$ distances with average $\bar d$ and estimated variance $\hat V$. The interval
#
# $$
# \bar d\;\pm\;b\,\sqrt{\hat V/R}
# \tag{T.46}
# $$
#
# covers their mean in 95 % of all cases, if $b$ is the 97.5 % point of Student's law with $R-1$
# degrees of freedom. This is (T.42) with an estimated variance; Student found the law of the
# quotient, and we borrow it. It is exact for Gaussian numbers, and close for distances that average
# over hundreds of images. With $R=5$, $b$ is $2.78$: five generations are few, and the interval
# says so.

# %%
R, repeats = 5, 400_000
numbers = 0.7 + torch.randn(repeats, R, generator=g)
b = scipy.stats.t.ppf(0.975, R - 1)
inside = (numbers.mean(dim=1) - 0.7).abs() <= b * numbers.std(dim=1) / R**0.5
claim("T.46", 0.95, inside.double().mean(), standard_error=(0.95 * 0.05 / repeats) ** 0.5)
five = [0.31, 0.22, 0.27, 0.35, 0.25]
half = b * np.std(five, ddof=1) / R**0.5
claim("T.46", [np.mean(five) - half, np.mean(five) + half],
      [Estimate.of(five).low, Estimate.of(five).high])
fact("b for R = 5, 20", scipy.stats.t.ppf(0.975, [4, 19]), digits=3)


# %% [markdown]
# **Fidelity and coverage.** One number cannot say *how* samples fail. Let a set of points cover the
# balls around its points, each as large as that point's distance to its $k$-th nearest neighbour in
# the set, and call $B(X)$ what the set $X$ covers. For real features $X$ and generated features
# $Y$, equally many,
#
# $$
# \text{precision}=\frac{\#\{y\in Y:\;y\in B(X)\}}{\#Y} ,\qquad
# \text{recall}=\frac{\#\{x\in X:\;x\in B(Y)\}}{\#X} .
# \tag{T.47}
# $$
#
# Samples that look like nothing real cost precision; data that are never generated cost recall. We
# take $k=3$. Real images do not reach $1$ either, so again they are the yardstick.

# %%
def covered(points, cloud, k=3):
    """The share of points in the balls of a cloud."""
    count = 0
    for point in points:
        for centre in cloud:
            radius = (cloud - centre).norm(dim=1).sort().values[k]   # [0] is the point itself
            if (point - centre).norm() <= radius:
                count += 1
                break
    return count / len(points)


X = torch.randn(40, 2, generator=g)
Y = torch.tensor([0.4, 1.5]) * torch.randn(40, 2, generator=g)       # too thin, and too tall
precision, recall = precision_recall(X, Y, 3)
claim("T.47", [covered(Y, X), covered(X, Y)], [precision, recall], relation="definition")
fact("precision and recall", [precision, recall], digits=3)


# %% [markdown]
# **Copies.** Let $\rho(x)$ be the distance from an image to the training image nearest to it. For
# images that the model has not copied it is distributed as it is for held-out images, if the model
# is good. So compare a generated $x$ with a held-out $x'$, both drawn at random:
#
# $$
# \text{share nearer}=P\big(\rho(x)<\rho(x')\big)+\tfrac12\,P\big(\rho(x)=\rho(x')\big) .
# \tag{T.48}
# $$
#
# One half is what new images have, and one what copies have. (Statisticians know it as the
# Mann–Whitney statistic, divided by its largest value.) A model that draws only typical images
# comes out above one half without copying any, for there are many training images around a typical
# one. A copy is near *one* of them. So we also count **near-copies**, images less than half as far
# from the nearest training image as from the second nearest.

# %%
def to_nearest(images):
    """ρ: the distance to the nearest training image, and its ratio to that of the second."""
    between = torch.cdist(images.flatten(1).double(), train.flatten(1).double())
    first, second = between.sort(dim=1).values[:, :2].T
    return first, first / second


noisy_copies = train[:300] + 0.1 * torch.randn(300, 1, 8, 8, generator=g)
rho, ratio = to_nearest(noisy_copies)
rho_new, ratio_new = to_nearest(heldout)
found = memorisation(noisy_copies, train, heldout)
U = scipy.stats.mannwhitneyu(rho_new, rho).statistic                 # pairs with rho_new above
claim("T.48", U / (300 * 355), found.share_nearer)
fact("share nearer, noisy copies", found.share_nearer, digits=3)
fact("near-copies, share", (ratio < 0.5).double().mean(), digits=3)
fact("smallest ratio among held-out digits", ratio_new.min(), digits=2)
assert found.heldout_copied == 0 == (ratio_new < 0.5).sum()

# %% [markdown]
# **For points**, on a line or in the plane, no features are needed. Two sets of $n$ numbers are
# paired best in order: if $x_1\le x_2$ and $y_1\le y_2$, then crossing the pairs costs
# $(x_1-y_2)^2+(x_2-y_1)^2-(x_1-y_1)^2-(x_2-y_2)^2=2(x_2-x_1)(y_2-y_1)\ge0$ more. With
# $x_{(1)}\le x_{(2)}\le\dots$ for the sorted numbers,
#
# $$
# W_2^2=\frac1n\sum_{i=1}^n\big(x_{(i)}-y_{(i)}\big)^2 .
# \tag{T.49}
# $$
#
# In the plane, look along many directions $u$, uniform on the circle (or the sphere), and average;
# this is the **sliced Wasserstein distance**:
#
# $$
# \mathrm{SW}_2^2=\mathbb E_u\;W_2^2\big(\{u^\top x_i\},\{u^\top y_i\}\big) .
# \tag{T.50}
# $$
#
# It sees more than two moments. A shift by a vector $c$ costs $\mathbb E(u^\top c)^2$ exactly, and
# that is $\lVert c\rVert^2/D$: the $D$ coordinates of $u$ are alike, and their squares add to one.
#
# The **maximum mean discrepancy** compares points by a kernel $k(x,y)=e^{-\lVert x-y\rVert^2/2h^2}$
# that is large for near pairs. With $x,x'$ and $y,y'$ independent draws of the two laws,
#
# $$
# \mathrm{MMD}^2=\mathbb E\,k(x,x')+\mathbb E\,k(y,y')-2\,\mathbb E\,k(x,y) .
# \tag{T.51}
# $$
#
# If the laws are equal, the three expectations are too, and it is zero. Averages over all pairs of
# *different* points estimate it without bias, at any $n$; so an estimate may be negative. For two
# Gaussians it is known: per coordinate $k$ is $\sqrt{2\pi h^2}$ times $\mathcal N(x-y;\,0,\,h^2)$,
# and if $x-y\sim\mathcal N(c,A)$, integrating one density against the other gives the density of
# their sum, (T.9), so that
# $\mathbb E\,k=\sqrt{2\pi h^2}\,\mathcal N(c;\,0,\,h^2+A)$.

# %%
a, b = torch.randn(9, generator=g), 0.5 + 2 * torch.randn(9, generator=g)
claim("T.49", ((a.sort().values - b.sort().values) ** 2).mean() ** 0.5, wasserstein(a, b, order=2))

points, c = torch.randn(4, 2, generator=g), torch.tensor([0.9, -0.4])
count = 1_000_000                                                    # directions in the plane
found = sliced_wasserstein(points, points + c, count, g) ** 2
error = (c @ c) * (1 / 8 / count) ** 0.5                            # cos² of an angle: variance 1/8
claim("T.50", (c @ c) / 2, found, standard_error=error)

h, A, B, shift = 0.8, 1.0, 0.5, 1.2                                  # N(0, A) and N(shift, B)
bump = (2 * math.pi * h**2) ** 0.5
exact = bump * (normal(torch.tensor(0.0), 0.0, h**2 + 2 * A)
                + normal(torch.tensor(0.0), 0.0, h**2 + 2 * B)
                - 2 * normal(torch.tensor(shift), 0.0, h**2 + A + B))
kernel = torch.exp(-((few[:, None] - few) ** 2) / (2 * h**2))        # quadrature, step 0.25
p, q = normal(few, 0.0, A) * 0.25, normal(few, shift, B) * 0.25
claim("T.51", p @ kernel @ p + q @ kernel @ q - 2 * p @ kernel @ q, exact, note="by quadrature")
estimates = [mmd(A**0.5 * torch.randn(20, 1, generator=g),
                 shift + B**0.5 * torch.randn(20, 1, generator=g), [h]) for _ in range(2000)]
fact("MMD² of two Gaussians", exact, digits=3)
error = np.std(estimates) / 2000**0.5
assert abs(np.mean(estimates) - exact) < 5 * error                   # unbiased, from 20 points each

# %% [markdown]
# **The protocol** by which this book measures pictures (`evaluate` in `metrics.py`):
#
# 1. Generated images are compared with images *held out* from training, and with as many as there
#    are. Pixels are rounded to the levels of the data first.
# 2. The floor is real: the training set, cut at random into disjoint subsets of that size, each
#    compared with the held-out images. We report the *ratio* to it.
# 3. Intervals come from at least five independent generations, and from many cuts, by (T.46).
# 4. Precision, recall and the classes of the samples are reported beside what real images have.
# 5. So are (T.48) and the share of near-copies. A model memorises if its near-copies are more than
#    chance allows, if its share nearer is above ¾, or if its distance is *below* the floor: real
#    images are not that near. Otherwise it is *at the floor* or *above* it; or *undecided*, if the
#    intervals overlap only because five generations were too few.
#
# *Would you catch a cheat?* Let half of our training images be the training set, and let four
# models enter. The first copies training images. The second draws real images that nobody has
# trained on. The third smudges such images a little. The fourth knows only the digits 0 to 4.

# %%
order = torch.randperm(len(train), generator=g)
known, unseen = train[order[:721]], train[order[721:]]
smudged = 0.75 * unseen + 0.25 * torch.nn.functional.avg_pool2d(unseen, 3, 1, padding=1)
low_digits = unseen[network.predict(unseen) <= 4]


def generate_from(images):
    """Five generations, each 355 of these images."""
    return [images[torch.randperm(len(images), generator=g)[:355]] for _ in range(5)]


models = {"copies": known, "unseen": unseen, "smudged": smudged, "0 to 4 only": low_digits}
reports = {}
for name, images in models.items():
    reports[name] = evaluate(generate_from(images), known, heldout, levels=17, generator=g,
                             partitions=10)
    print(f"{name}: {reports[name].verdict}")
    fact("  ratio to the floor", reports[name].ratio.mean, digits=2)
    fact("  precision, recall", [reports[name].precision.mean, reports[name].recall.mean], digits=2)
    fact("  share nearer", reports[name].share_nearer.mean, digits=2)
    fact("  classes 5 to 9", sum(reports[name].class_shares[5:]), digits=2)
assert [report.verdict for report in reports.values()] == [
    "memorises", "at the floor", "above the floor", "above the floor"]

# %%
fig, (left, right) = figure(1, 2, sharey=True)
for row, report in enumerate(reports.values()):
    for ax, found in ((left, report.ratio), (right, report.share_nearer)):
        ax.plot([found.low, found.high], [row, row], color=BLUE)
        ax.plot(found.mean, row, "o", color=BLUE)
left.axvline(1, color=GREY, linestyle=":")
right.axvline(0.5, color=GREY, linestyle=":")
left.set_yticks(range(4), list(reports))
left.set_xscale("log")
left.set_xticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
left.minorticks_off()
left.invert_yaxis()
left.set(xlabel="distance / floor", ylim=(3.5, -0.5))
right.set(xlabel="share nearer", xlim=(0, 1.05))
show(fig, """Four models, with 95 % intervals. Distance over floor: the copies and the unseen images
have intervals around 1, the smudged ones and those of five classes lie well above. Share nearer to
a training image: 1 for the copies, about one half for the three others.""")

# %% [markdown]
# The copier passes by distance, precision and recall, and fails by the one number made for it. The
# other two bad models are betrayed by their distance. Both keep their precision, for each of their
# images passes for a real one, and both lose recall: one lacks digits, as its classes show, the
# other variety, for smudged images are more alike. No single number would have told the four apart.
#
# Two limits. Everything is measured against one held-out set: the intervals are about the model,
# not about other held-out sets. And the floor is strict. Disjoint subsets of one training set are a
# little more alike than fresh images would be, so that a perfect sampler ends a little above $1$.

# %%
fact("copies: the interval of the ratio", [reports["copies"].ratio.low,
                                           reports["copies"].ratio.high], digits=2)
print(reports["unseen"].summary())


# %% [markdown]
# **FID**, the number in the papers, is (T.44) too. Its features are the 2048 of an *Inception*
# network trained on ImageNet, its images 50,000 generated ones against, by custom, the *training*
# set. Our numbers have other features, other sizes and another reference. **They cannot be compared
# with any FID**, only with each other. Nor are two FIDs easily compared: how images are resized and
# rounded moves the number, and so does the reference. DDPM's 3.17 on CIFAR-10 is against the
# training set; against the test set it is 5.24 (Ho et al., section 4). When you have your own
# colour images, and a connection or a copy of the Inception weights, use a library that is kept in
# step with the original:
#
# ```python
# from torch_fidelity import calculate_metrics     # pip install torch-fidelity
# calculate_metrics(input1="generated/", input2="real/", fid=True)
#
# from cleanfid import fid                         # pip install clean-fid
# fid.compute_fid("generated/", "real/")
# ```
#
# Both take folders of pictures and fetch the weights at first use. Give both models that you compare
# the same number of images, held-out ones as the reference, and repeat the generation.

# %% [markdown]
# **Exercise T.6** (1 point, 8 minutes, ●●○) — *The distance, coordinate by coordinate.* Write
# `frechet(m_a, V_a, m_b, V_b)` that returns $d^2$ of (T.44) for two Gaussians with independent
# coordinates. The arguments are vectors: the means, and the *variances*, of the coordinates.

# %%
def frechet(m_a, V_a, m_b, V_b):
    """The squared Fréchet distance of N(m_a, diag V_a) and N(m_b, diag V_b)."""
    raise NotImplementedError("your turn")

check("T.6", frechet)

# %% [markdown]
# ## T.13 What we have
#
# | equation | what it says | in `ddpm_lite` |
# |---|---|---|
# | (T.1)–(T.3) | the density and its logarithm | `Gaussian.log_prob` |
# | (T.4), (T.5) | read mean and variance off the exponent | – |
# | (T.6)–(T.8) | affine maps: $a^2V$, $AVA^\top$ | `Gaussian.sample` |
# | (T.9)–(T.12) | sums of independent Gaussians: variances add | `GaussianDiffusion.transition`, `.marginal` |
# | (T.13)–(T.15) | products of densities: precisions add | – |
# | (T.16)–(T.18) | Bayes' rule with Gaussians | `GaussianDiffusion.posterior` |
# | (T.19), (T.20) | the same in $D$ dimensions | `GaussianData.posterior_mean` |
# | (T.21)–(T.25) | KL divergence; equal variances leave a squared error | `Gaussian.kl` |
# | (T.26)–(T.28) | Jensen; the evidence lower bound and its gap | – (chapter 5) |
# | (T.29)–(T.31) | reparameterisation; gradients of expectations | `GaussianDiffusion.q_sample` |
# | (T.32)–(T.34) | change of variables; the quantile map | `GaussianMixture.quantile` |
# | (T.35)–(T.41) | Euler and Heun, their orders, and where they fail | – (chapter 9) |
# | (T.42), (T.43) | standard errors | `claim(…, standard_error=…)` |
# | (T.44), (T.45) | the Fréchet distance, and its bias | `frechet_distance` |
# | (T.46) | an interval from independent repetitions | `Estimate.of`, `evaluate` |
# | (T.47) | precision and recall | `precision_recall` |
# | (T.48) | nearer to the training images than new images are | `memorisation` |
# | (T.49)–(T.51) | Wasserstein on a line, sliced; maximum mean discrepancy | `wasserstein`, `sliced_wasserstein`, `mmd` |

# %%
progress("T")

# %% [markdown]
# ## T.14 History and further reading
#
# The lemmas are classical, and older than this field.
# Reparameterisation came into deep generative models with the variational autoencoder (Kingma and
# Welling, arXiv 1312.6114; Rezende, Mohamed and Wierstra, arXiv 1401.4082). DDPM (Ho, Jain and
# Abbeel, arXiv 2006.11239) is built from T.3, T.5 and T.6. On Heun's method in diffusion sampling,
# see Karras and others (arXiv 2206.00364).
#
# (T.44) is by Dowson and Landau (1982). The FID was introduced by Heusel and others (arXiv
# 1706.08500); on its bias see Chong and Forsyth (arXiv 1911.07023), on resizing Parmar, Zhang and
# Zhu (CVPR 2022), who wrote clean-fid. Precision and recall in the form (T.47) are by Kynkäänniemi
# and others (arXiv 1904.06991), the maximum mean discrepancy by Gretton and others (JMLR
# 2012), the sliced distance by Rabin, Peyré, Delon and Bernot (2011).

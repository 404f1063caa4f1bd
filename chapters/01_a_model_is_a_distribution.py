# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1 A model is a distribution

# %% tags=["hide-input"]
import math
import time
from itertools import pairwise

import numpy as np
import torch
from scipy.optimize import minimize

from ddpm_lite.claims import claim, fact
from ddpm_lite.data import DIGITS_LEVELS, digits, toy_law
from ddpm_lite.exercises import check, hint, progress, solution  # noqa: F401
from ddpm_lite.families import (
    GAN,
    VAE,
    VQVAE,
    Autoregressive,
    Diffusion,
    Flow,
    FlowMatching,
    mode_shares,
    modes_covered,
)
from ddpm_lite.families.flow_matching import carry, exact_velocity
from ddpm_lite.families.gan import discriminator_loss
from ddpm_lite.measurements import measured
from ddpm_lite.metrics import (
    Estimate,
    classifier,
    frechet_distance,
    nearest,
    quantise,
    sliced_wasserstein,
    wasserstein,
)
from ddpm_lite.objective import simple_loss
from ddpm_lite.oracle import GaussianMixture
from ddpm_lite.plotting import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    VERMILLION,
    figure,
    show,
    show_images,
    use_book_style,
)
from ddpm_lite.sampling import sample, trajectory
from ddpm_lite.storage import shipped

use_book_style()
DOUBLE = torch.float64


def seeded(seed):
    """A fresh generator: whatever is drawn here says from which seed."""
    return torch.Generator().manual_seed(seed)


# %% tags=["hide-input"]
train, heldout = digits("train")[0], digits("heldout")[0]
finished = shipped("digits")                           # trained beforehand; it comes with the book
walk = sample(finished.network, finished.diffusion, (6, 1, 8, 8), steps=20, spacing="trailing",
              eta=0.0, clip=(-1, 1), generator=seeded(3))
seen = [walk.start, *(state.x for state in walk)]      # after 0, 1, …, 20 calls of the network
calls = (0, 8, 12, 14, 16, 17, 18, 20)
alike = train[nearest(seen[-1], train).indices]
show_images(torch.stack([torch.stack([*(seen[n][i] for n in calls), alike[i]])
                         for i in range(6)]),
            """Six rows of small grey images. Each begins with random grey levels; strokes begin to
show after some fourteen calls of the network, and after twenty there is a handwritten digit. The
last column shows, for each, the training image that is most like it: a similar digit, written
otherwise.""", column_titles=[*(f"{n} calls" for n in calls), "nearest"])
assert nearest(seen[-1], train).distances.min() > 0.5  # none is a training image

# %% [markdown]
# *Where do these digits come from?* Each row starts on the left with 64 random numbers. A trained network is called twenty times, and on the right there is a handwritten digit that nobody wrote: the last column shows the training image most like it, and it is another one. This book builds the machine that does this, and proves each of its lines. This first chapter looks at the whole from above.
# What is it that has been learned when such a thing works? Which other ways are there, and what does each cost?
#
# **You will**
# - say what it means that a model *is* a distribution, what training looks for, and what it cannot find;
# - compute which member of a family lies nearest to the data in four senses of "near", and say what each sense prefers;
# - tell a model that has learned from one that has memorised, and say why the training score cannot;
# - say of each of seven families of models what it maximises and what one sample costs;
# - read a table in which all seven have been trained on the same data and measured by the same rules.
#
# **You need** calculus, probability up to Bayes' rule, and a little PyTorch. Nothing of the other chapters; where one of them has the details, there is a link. Letters are explained on the [notation page](N_notation.ipynb).
#
# **Time** about 75 minutes to read, another 70 for the exercises, a minute or two to run.

# %% [markdown]
# ## 1.1 Data are draws, a model is a law
#
# Take the 1,442 images of handwritten digits that come with this book, 8×8 pixels of 17 grey levels, written as the numbers $-1,-\tfrac78,\dots,1$. We treat them as **independent draws from one law**, $x^{(1)},\dots,x^{(N)}\sim p_{\text{data}}$, the law of all digits that might have been collected in the same way. Nobody can write $p_{\text{data}}$ down. All we have of it are the draws.
#
# A **model** is a set of laws, one for each value of some parameters: $p_\theta$ with $\theta\in\Theta$. *Training* chooses $\theta$. *Sampling* draws a new $x\sim p_\theta$. So a model is judged as a law: not by whether one picture is pretty, but by whether it produces pictures as often as $p_{\text{data}}$ does.
#
# How well does a law explain draws that it has not made? It gives the $N$ independent draws together the probability $\prod_n p_\theta(x^{(n)})$. A product of a thousand small numbers is awkward, so take the logarithm and divide by $N$, which changes no comparison:
#
# $$
# \frac1N\log\prod_{n=1}^N p_\theta\big(x^{(n)}\big)\;=\;\frac1N\sum_{n=1}^N\log p_\theta\big(x^{(n)}\big) .
# \tag{1.1}
# $$
#
# This is the **average log-likelihood**, and choosing $\theta$ so that it is largest is training by **maximum likelihood**.
#
# Here is about the smallest model of images. Let every pixel be drawn by itself, pixel $d$ having level $k$ with probability $a_{d,k}$. Independent events multiply, so an image with the levels $x_1,\dots,x_D$, where $D=64$, has the probability
#
# $$
# p_a(x)\;=\;\prod_{d=1}^{D}a_{d,x_d} ,\qquad a_{d,k}\ge0,\quad\sum_k a_{d,k}=1 .
# \tag{1.2}
# $$
#
# Its parameters $\theta$ are the $64\times17$ numbers $a_{d,k}$. We report log-likelihoods of images in **bits per pixel**, that is with the sign turned, to base 2, and divided by the number of pixels:
#
# $$
# \text{bits per pixel}\;=\;-\frac1{D\log2}\;\frac1N\sum_n\log p\big(x^{(n)}\big) .
# \tag{1.3}
# $$
#
# Less is better. It is the length, for each pixel, of the shortest code for the images that a clever compressor could make from the model; a model that knows nothing and takes all levels for equally likely needs $\log_2 17$ bits.
#
# Which $a$ is best? Sort (1.1) by pixel and level: the term $\log a_{d,k}$ occurs once for every training image whose pixel $d$ has level $k$. Let $\hat a_{d,k}$ be the share of these images. Then the average log-likelihood is $\sum_d\sum_k\hat a_{d,k}\log a_{d,k}$, and section 1.2 shows that for given shares $\hat a$ the best choice is $a=\hat a$. **Training is counting**, and what it reaches is
#
# $$
# \max_a\;\frac1N\sum_n\log p_a\big(x^{(n)}\big)\;=\;\sum_{d=1}^D\sum_k\hat a_{d,k}\log\hat a_{d,k}\;=\;-\sum_{d=1}^DH(\hat a_d) ,
# \tag{1.4}
# $$
#
# where $H(a)=-\sum_ka_k\log a_k$ is the **entropy**, with $0\log0=0$.

# %%
N, D = len(train), 64


def levels_of(images):
    """The grey levels 0..16 of images in [−1, 1], int64 (N, 64)."""
    return ((images.flatten(1).double() + 1) * 8).round().long()


def bits_per_pixel(log_prob):
    """(1.3), from the log-probabilities of images, in nats."""
    return -log_prob.mean() / (D * math.log(2))


seen_levels, new_levels = levels_of(train), levels_of(heldout)
pixels = torch.arange(D)
counts = torch.nn.functional.one_hot(seen_levels, DIGITS_LEVELS).sum(0)                # (64, 17)
shares = counts.double() / N                                                           # â
looked_up = shares[pixels, seen_levels].log().sum(1)   # log p(x) of each training image, (1.2)
entropies = -torch.special.xlogy(shares, shares).sum(1)
claim("1.4", bits_per_pixel(looked_up), entropies.sum() / (D * math.log(2)))
tilted = (shares + 1e-3) / (shares + 1e-3).sum(1, keepdim=True)
claim("1.4", tilted[pixels, seen_levels].log().sum(1).mean(), looked_up.mean(), relation="<=",
      note="another a is worse")

fact("bits per pixel that know nothing", math.log2(17), digits=3)
fact("bits per pixel by counting, on the images counted", bits_per_pixel(looked_up), digits=3)
impossible = (shares[pixels, new_levels] == 0).any(1)
fact("of the 355 held-out images, impossible by counting", int(impossible.sum()))
half = (counts.double() + 0.5) / (N + 0.5 * DIGITS_LEVELS)    # each level seen half a time more
independent = bits_per_pixel(half[pixels, new_levels].log().sum(1))
fact("bits per held-out pixel, with half a count added", independent, digits=3)
each = torch.distributions.Categorical(half).log_prob(new_levels[:5]).sum(1)
claim("1.2", half[pixels, new_levels[:5]].prod(1).log(), each, note="five held-out images")
claim("1.1", half[pixels, new_levels[:5]].prod().log() / 5, each.mean())

# %% [markdown]
# Held-out images are those that took no part in the training. Six of them are impossible to this model: some pixel has a level that it never had among the training images. Their log-likelihood is minus infinity, and so is the average over all. A maximum likelihood model believes that what it has not seen does not exist. This is the first sight of the problem of section 1.4. Here half a count, added to each level, repairs it.
#
# And the samples? *What has this model learned, and what not?*

# %% tags=["hide-input"]
levels = torch.multinomial(shares, 10, replacement=True, generator=seeded(0)).T        # (10, 64)
made = (levels.double() / 8 - 1).reshape(10, 1, 8, 8)
show_images(torch.stack([train[:10], made]), """Two rows of ten images. Above, training images of
the digits 0 to 9. Below, samples of the model with independent pixels: bright specks in the middle
and black edges, like digits torn to pieces; none can be read.""",
            row_labels=["data", "model"])


# %% [markdown]
# It knows where ink tends to be, and nothing of strokes, since a stroke is a relation *between* pixels. The right marginals are not the right law. All that follows is about the relations.
#
# **Exercise 1.1** (2 points, 10 minutes, ●○○) — *Bits by counting.* Write `bits_by_counting(counts)` that returns the training score (1.4) of the model with independent pixels in bits per pixel, (1.3). `counts` is an int64 tensor of shape `(D, K)`: how many training images have level $k$ at pixel $d$; every row has the same sum. Some counts are zero.

# %%
def bits_by_counting(counts):
    """(1.4) in bits per pixel, from the counts (D, K)."""
    raise NotImplementedError("your turn")


check("1.1", bits_by_counting)

# %% [markdown]
# ## 1.2 Nearest, by likelihood
#
# No $\theta$ makes independent pixels into $p_{\text{data}}$. In general the true law lies outside of the family, and training looks for the member that is *nearest* to it. So we need a measure of how far one law is from another. Write $p$ for the true law. When $x$ is drawn from $p$, the logarithm $\log p(x)-\log p_\theta(x)$ says how much more strongly the true law expected it. Its average is the **Kullback–Leibler divergence**
#
# $$
# \mathrm{KL}(p\,\Vert\,p_\theta)\;=\;\mathbb E_{x\sim p}\big[\log p(x)-\log p_\theta(x)\big]\;\ge\;0 ,\qquad\text{zero only if }p_\theta=p .
# \tag{1.5}
# $$
#
# *Why it is not negative:* the logarithm lies below its tangent at 1, $\log y\le y-1$ with equality only at $y=1$. With $y=p_\theta/p$, $\;-\mathrm{KL}=\mathbb E_p\log\frac{p_\theta}p\le\mathbb E_p\big[\frac{p_\theta}p-1\big]=\int_{p>0}p_\theta\,dx-1\le0$. ([The toolbox](A_toolbox.ipynb#T.6-KL-between-Gaussians) has more on it. For laws on a finite set, integrals are sums.)
#
# Split the expectation. With the entropy $H(p)=-\mathbb E_p\log p(x)$, for densities an integral in the place of the sum,
#
# $$
# \mathbb E_{x\sim p}\log p_\theta(x)\;=\;-H(p)-\mathrm{KL}(p\,\Vert\,p_\theta) .
# \tag{1.6}
# $$
#
# $H(p)$ does not depend on $\theta$. So **maximising the expected log-likelihood is the same as minimising $\mathrm{KL}(p\,\Vert\,p_\theta)$**. And the left side can be estimated without knowing $p$: it is the mean of $\log p_\theta$ over draws, (1.1). That is why likelihood rules the field. (With the shares $\hat a_d$ in the place of $p$ and $a_d$ in that of $p_\theta$, (1.5) and (1.6) also prove (1.4), pixel by pixel.)
#
# Now an example in which everything can be computed. Let the true law be a mixture of two humps on a line, and the family all Gaussians, $p_\theta=\mathcal N(m,V)$ with $\theta=(m,V)$ and density $e^{-(x-m)^2/2V}/\sqrt{2\pi V}$. The expected log-likelihood is
#
# $$
# \mathbb E_p\log p_\theta(x)\;=\;-\tfrac12\log(2\pi V)-\frac{\operatorname{Var}x+(\mathbb E\,x-m)^2}{2V} ,
# \tag{1.7}
# $$
#
# because $\mathbb E(x-m)^2=\operatorname{Var}x+(\mathbb E\,x-m)^2$. Whatever $V$ is, the best $m$ is $\mathbb E\,x$. Then the derivative with respect to $V$ is $-\frac1{2V}+\frac{\operatorname{Var}x}{2V^2}$, which is positive below $V=\operatorname{Var}x$ and negative above. So the nearest Gaussian has the moments of the data, and (1.6) says how near it is:
#
# $$
# m=\mathbb E_p\,x,\quad V=\operatorname{Var}_p\,x ,
# \qquad\qquad\min_\theta\mathrm{KL}(p\,\Vert\,p_\theta)=\tfrac12\log(2\pi e\,V)-H(p) .
# \tag{1.8}
# $$
#
# In the cell the divergence is an integral over a fine grid, and a general-purpose optimiser looks for the least one. It knows nothing of (1.8).

# %%
law = GaussianMixture([0.4, 0.6], [[-2.0], [1.5]], [[[0.4**2]], [[0.8**2]]])
x = torch.linspace(-14, 14, 14001, dtype=DOUBLE)
log_p = law.log_prob(x[:, None])
p = log_p.exp()


def integrate(values):
    """The integral over the line of a function given on the grid."""
    return torch.trapezoid(values, x)


def log_gauss(theta):
    """log N(x; m, V) on the grid; theta = (m, log √V)."""
    m, log_deviation = theta
    return -0.5 * ((x - m) / log_deviation.exp())**2 - log_deviation - 0.5 * math.log(2 * math.pi)


def kl(theta):
    """KL(p ‖ p_θ), (1.5)."""
    return integrate(p * (log_p - log_gauss(theta)))


def closest(divergence, m, deviation):
    """The θ near a start at which the divergence is least: BFGS, then steps of Newton's method."""
    def with_slope(values):
        theta = torch.tensor(values, requires_grad=True)
        value = divergence(theta)
        return value.item(), torch.autograd.grad(value, theta)[0].numpy()

    found = minimize(with_slope, np.array([m, math.log(deviation)]), jac=True, method="BFGS").x
    theta = torch.tensor(found)
    for _ in range(4):
        slope = torch.autograd.functional.jacobian(divergence, theta)
        theta = theta - torch.linalg.solve(torch.autograd.functional.hessian(divergence, theta),
                                           slope)
    return theta


here, there = torch.tensor([0.3, 0.2], dtype=DOUBLE), torch.tensor([-0.5, 0.6], dtype=DOUBLE)
laws = [torch.distributions.Normal(one[0], one[1].exp()) for one in (here, there)]
claim("1.5", integrate(log_gauss(here).exp() * (log_gauss(here) - log_gauss(there))),
      torch.distributions.kl_divergence(*laws), note="two Gaussians, against PyTorch's formula")

best = {"KL": closest(kl, 0.0, 1.0)}
m, deviation = best["KL"][0], best["KL"][1].exp()
mean = integrate(x * p)
variance = integrate((x - mean)**2 * p)
entropy = -integrate(p * log_p)                        # of the two-humped law, in nats
claim("1.7", -0.5 * math.log(2 * math.pi * 3.0) - (variance + (mean - 0.5)**2) / (2 * 3.0),
      -entropy - kl(torch.tensor([0.5, 0.5 * math.log(3.0)], dtype=DOUBLE)),
      note="m = 0.5 and V = 3; the right side by (1.6)")
claim("1.8", torch.stack([law.mean[0], law.covariance[0, 0]]), torch.stack([m, deviation**2]),
      tol=1e-8, note="what the optimiser finds")
claim("1.8", 0.5 * (2 * math.pi * math.e * variance).log() - entropy, kl(best["KL"]))
fact("mean and standard deviation of the nearest Gaussian", [m, deviation], digits=3)
fact("its divergence, and the entropy of the data, in nats", [kl(best["KL"]), entropy], digits=3)


# %% [markdown]
# **Exercise 1.2** (2 points, 10 minutes, ●○○) — *The nearest Gaussian.* Write `nearest_gaussian(weights, means, variances)` that returns the pair $(m,V)$ of the Gaussian for which $\mathrm{KL}(p\,\Vert\,p_\theta)$ is least, where $p$ is a mixture of humps on a line: hump $k$ is drawn with probability `weights[k]`, and has mean `means[k]` and variance `variances[k]`. All three are tensors of shape `(K,)`.

# %%
def nearest_gaussian(weights, means, variances):
    """Mean and variance of the Gaussian nearest to a mixture in the sense of (1.5)."""
    raise NotImplementedError("your turn")


check("1.2", nearest_gaussian)


# %% [markdown]
# ## 1.3 Nearest, in three other senses
#
# A Gaussian with the right mean and the right variance puts most of its mass where the data have little: between the humps. Is that *near*? It depends on what one fears. (1.5) fears data that the model calls improbable. There are other fears.
#
# **The other way round.** $\mathrm{KL}(p_\theta\,\Vert\,p)=\mathbb E_{x\sim p_\theta}[\log p_\theta(x)-\log p(x)]$ punishes samples that the data do not support, and does not mind what is left out. To find its minimum, write $x=m+\sqrt V\,z$ with $z\sim\mathcal N(0,1)$. The mean of $\log p_\theta(x)$ is (1.7) with $p_\theta$ for $p$, which is $-\tfrac12\log(2\pi V)-\tfrac12$, so
#
# $$
# \mathrm{KL}(p_\theta\,\Vert\,p)\;=\;-\tfrac12\log(2\pi e\,V)-\mathbb E_{z\sim\mathcal N(0,1)}\log p\big(m+\sqrt V\,z\big) .
# \tag{1.9}
# $$
#
# Set the derivatives with respect to $m$ and to $\sqrt V$ to zero: $\mathbb E_z(\log p)'(x)=0$ and $\mathbb E_z\big[z\,(\log p)'(x)\big]=-1/\sqrt V$. Stein's identity $\mathbb E[z f(z)]=\mathbb E f'(z)$, which is integration by parts
# ([T.1](A_toolbox.ipynb#T.1-The-Gaussian-density)), turns the second into a statement about curvature: with $f(z)=(\log p)'(m+\sqrt V\,z)$, whose derivative is $f'(z)=\sqrt V\,(\log p)''$. At the optimum
#
# $$
# \mathbb E_{x\sim p_\theta}\big[(\log p)'(x)\big]=0 ,\qquad\frac1V=-\,\mathbb E_{x\sim p_\theta}\big[(\log p)''(x)\big] .
# \tag{1.10}
# $$
#
# The model asks for the slope and the bend of $\log p$ *where it is itself*. Where one Gaussian hump $\lambda_kp_k$ is nearly all of $p$, $\log p$ is nearly a parabola, and $p_k$ itself nearly satisfies both conditions. So humps that lie apart each have an optimum of their own, and the cell finds both. If $p=\sum_k\lambda_kp_k$, then $p\ge\lambda_kp_k$ everywhere, and a model that sits exactly on hump $k$ has
#
# $$
# \mathrm{KL}(p_k\,\Vert\,p)\;=\;\mathbb E_{p_k}\log\frac{p_k}{p}\;\le\;-\log\lambda_k .
# \tag{1.11}
# $$
#
# For humps far apart this is an equality, as $p=\lambda_kp_k$ on hump $k$. To leave out 40 % of the data costs half a nat. A sample where $p$ is nearly zero costs without limit.
#
# **A classifier.** Toss a coin for data or model, draw $x$ from the one or the other, and let a classifier say with which probability $c(x)$ it is data. Score it by the expected log-probability of the truth (twice that, to be rid of a factor). The best score that any classifier can reach measures how different the laws are:
#
# $$
# \max_c\;\Big\{\mathbb E_{x\sim p}\log c(x)+\mathbb E_{x\sim p_\theta}\log\big(1-c(x)\big)\Big\}\;=\;2\,\mathrm{JS}(p,p_\theta)-2\log2 ,
# \tag{1.12}
# $$
#
# $$
# \mathrm{JS}(p,p_\theta)\;=\;\tfrac12\,\mathrm{KL}(p\,\Vert\,r)+\tfrac12\,\mathrm{KL}(p_\theta\,\Vert\,r) ,\qquad r=\tfrac12(p+p_\theta) ,
# \tag{1.13}
# $$
#
# the **Jensen–Shannon divergence**. *Proof.* The integrand of (1.12) at a point $x$ is $p\log c+p_\theta\log(1-c)$. Its derivative $p/c-p_\theta/(1-c)$ falls in $c$ and is zero at
#
# $$
# c^*(x)\;=\;\frac{p(x)}{p(x)+p_\theta(x)} ,
# \tag{1.14}
# $$
#
# which is Bayes' rule with equal priors. Put in $c^*=p/2r$ and $1-c^*=p_\theta/2r$: the expectations become $\mathrm{KL}(p\,\Vert\,r)-\log2$ and $\mathrm{KL}(p_\theta\,\Vert\,r)-\log2$. $\blacksquare$ Since $r$ is a mixture with the weights $\tfrac12$, (1.11) says that $\mathrm{JS}\le\log2$. It cannot grow beyond that, however far apart the laws lie; there it also stops saying in which direction to move.
#
# **Carrying mass.** Think of two heaps of sand. To turn one into the other costs, for every grain, the square of the distance it is carried. The least total is the squared **Wasserstein distance** $W_2^2$. On a line the best plan keeps the order: what lies at the quantile $u$ of one law goes to the quantile $u$ of the other ([T.12](A_toolbox.ipynb#T.12-How-we-will-measure)). With $u=\Phi(z)$, $\Phi$ the distribution function of $\mathcal N(0,1)$ and $F$ that of $p$, the data's quantile is $Q(z)=F^{-1}(\Phi(z))$ and the model's is $m+\sqrt V\,z$. So
#
# $$
# W_2^2\;=\;\mathbb E_{z\sim\mathcal N(0,1)}\big(Q(z)-m-\sqrt V\,z\big)^2 ,
# \qquad\text{least for}\quad m=\mathbb E_p\,x,\quad\sqrt V=\mathbb E\big[z\,Q(z)\big] .
# \tag{1.15}
# $$
#
# That is the regression of $Q$ on $z$: the best constant is $\mathbb E\,Q=\mathbb E_p\,x$, the best slope is the covariance of $z$ and $Q$ over $\operatorname{Var}z=1$. By the Cauchy–Schwarz inequality the slope is at most the standard deviation of $Q(z)$, which is the data's: the nearest Gaussian in this sense is *narrower* than that of (1.8).

# %%
def reverse_kl(theta):
    """KL(p_θ ‖ p)."""
    log_q = log_gauss(theta)
    return integrate(log_q.exp() * (log_q - log_p))


def jensen_shannon(theta):
    """(1.13)."""
    log_q = log_gauss(theta)
    log_r = torch.logaddexp(log_p, log_q) - math.log(2)
    return 0.5 * integrate(p * (log_p - log_r)) + 0.5 * integrate(log_q.exp() * (log_q - log_r))


z = torch.linspace(-8, 8, 16001, dtype=DOUBLE)
phi = torch.exp(-z**2 / 2) / (2 * math.pi)**0.5
Q = law.quantile(0.5 * torch.erfc(-z / 2**0.5))        # F⁻¹(Φ(z))


def squared_w2(theta):
    """(1.15)."""
    return torch.trapezoid(phi * (Q - theta[0] - theta[1].exp() * z)**2, z)


left = closest(reverse_kl, -2.0, 0.4)                  # the optimum on the left hump
best["reverse KL"] = closest(reverse_kl, 1.5, 0.8)
best["JS"] = closest(jensen_shannon, 0.0, 1.0)
best["W₂"] = closest(squared_w2, 0.0, 1.0)

at = best["reverse KL"]
moved = law.log_prob((at[0] + at[1].exp() * z)[:, None])
claim("1.9", -0.5 * (1 + math.log(2 * math.pi)) - at[1] - torch.trapezoid(phi * moved, z),
      reverse_kl(at))
weight = log_gauss(at).exp()                           # p_θ at the optimum, on the grid
slope = law.score(x[:, None])[:, 0]                    # (log p)'
bend = torch.autograd.functional.jacobian(lambda y: law.score(y[:, None]).sum(), x)
claim("1.10", integrate(weight * slope), 0.0, scale=1.0, tol=1e-8)
claim("1.10", -integrate(weight * bend), (-2 * at[1]).exp(), tol=1e-8)
humps = torch.tensor([[-2.0, math.log(0.4)], [1.5, math.log(0.8)]], dtype=DOUBLE)
claim("1.11", torch.stack([reverse_kl(hump) for hump in humps]), -law.weights.log(), relation="<=")

at = best["JS"]
log_q = log_gauss(at)
c = torch.sigmoid(log_p - log_q)                       # (1.14)
score = integrate(p * c.log()) + integrate(log_q.exp() * torch.sigmoid(log_q - log_p).log())
claim("1.12", score, 2 * jensen_shannon(at) - 2 * math.log(2), note="at c*")
other = c.clamp(0.05, 0.95)
claim("1.12", integrate(p * other.log() + log_q.exp() * (1 - other).log()), score, relation="<=",
      note="another c scores less")
claim("1.14", (p / (p + log_q.exp()))[6000:8000:250], c[6000:8000:250], tol=1e-8)
far = torch.tensor([12.0, 0.0], dtype=DOUBLE)
claim("1.13", jensen_shannon(far), math.log(2), relation="<=", note="a Gaussian at 12")

F = law.cdf(x).clamp(1e-15, 1 - 1e-15)
by_parts = integrate(torch.exp(-torch.special.ndtri(F)**2 / 2) / (2 * math.pi)**0.5)     # E Q'(z)
claim("1.15", torch.stack([law.mean[0], by_parts]), torch.stack([best["W₂"][0],
      best["W₂"][1].exp()]), tol=1e-8, note="E[z Q] by Stein's identity, against the optimiser")
for name, theta in best.items():
    fact(f"{name}: m, √V", [theta[0], theta[1].exp()], digits=3)

# %%
senses = {"KL": kl, "reverse KL": reverse_kl, "JS": jensen_shannon, "W₂": squared_w2}
table = torch.stack([torch.stack([sense(theta) for sense in senses.values()])
                     for theta in best.values()])      # a row for each optimum
assert (table.diagonal() < table + 1e-12).all()        # each is best in its own sense
for name, row in zip(best, table, strict=True):
    fact(f"best in {name}: KL, reverse KL, JS, W₂²", row, digits=3)
fact("reverse KL on the left hump, and -log 0.4", [reverse_kl(left), -math.log(0.4)], digits=3)

fig, ax = figure(row_height=3.0)
ax.fill_between(x, p, color=GREY, alpha=0.35, label="data")
for (name, theta), colour in zip(best.items(), (BLUE, VERMILLION, GREEN, ORANGE), strict=True):
    ax.plot(x, log_gauss(theta).exp(), color=colour, label=name.replace("W₂", "$W_2$"),
            ls={"JS": "--", "W₂": ":"}.get(name, "-"))
ax.set(xlim=(-6, 7), xlabel="$x$", ylabel="density")
ax.legend()
show(fig, """A grey density with a tall narrow hump at -2 and a broader one at 1.5, and four
Gaussian curves. Three of them, for KL, JS and W2, are broad and flat and cover both humps, their
tops between the two. The fourth, for reverse KL, is narrow and lies on the right hump only.""")

# %% [markdown]
# *Which Gaussian is nearest to two humps?* All four are, each in its own sense: the diagonal of the table is the smallest number of its column. Three cover both humps and fill the valley between them; the reverse divergence takes the heavier hump, fits it closely, and leaves out the other. None of this is a mistake of training. **If the family cannot hold the data, the sense of "near" decides what is given up**: a likelihood model gives up purity, and draws what is not there; one trained the other way round gives up variety.
#
# The senses also differ in what they *need*:
#
# | sense | punishes | needs of $p_{\text{data}}$ | who makes it small |
# |---|---|---|---|
# | $\mathrm{KL}(p\,\Vert\,p_\theta)$ | data that the model calls improbable | draws | autoregressive models and flows; VAE and diffusion, through a bound |
# | $\mathrm{KL}(p_\theta\,\Vert\,p)$ | samples where there are no data | its density | nobody who has draws only |
# | $\mathrm{JS}(p,p_\theta)$ | whatever a classifier can tell apart | draws, for the classifier | the GAN, if its classifier were always the best |
# | $W_2$, or its relative $W_1$ | mass that lies in the wrong place | draws, and the best pairing | some GANs ([1701.07875](https://arxiv.org/abs/1701.07875)) |
#
# The third column is the reason that maximum likelihood is where most of this chapter leads: it asks least.
#
# **Exercise 1.3** (1 point, 5 minutes, ●○○) — *Predict the number.* The data are two humps of the same Gaussian shape, a thousand standard deviations apart; 80 % of the data are in the left one. A single Gaussian is fitted by making $\mathrm{KL}(p_\theta\,\Vert\,p)$ as small as possible. How small does it become, in nats? Three digits.

# %%
least = None  # your number


check("1.3", least)


# %% [markdown]
# **Exercise 1.4** (1 point, 8 minutes, ●○○) — *The best classifier.* Suppose that not half of the points that the classifier is shown are data, but a share `share` of them. Write `best_classifier(p, p_theta, share)` that returns the probability that a point is data, where `p` and `p_theta` are tensors of shape `(B,)` that hold both densities at $B$ points.

# %%
def best_classifier(p, p_theta, share):
    """The probability that each point is data."""
    raise NotImplementedError("your turn")


check("1.4", best_classifier)

# %% [markdown]
# ## 1.4 From finitely many draws
#
# Of $p_{\text{data}}$ there are $N$ draws and no more. So what (1.1) sees is not $p$ but the **empirical law** $\hat p_N$, which puts $1/N$ on each of them. How far is it from $p$? On a line, let $\hat F$ be the share of the draws below $x$. $N\hat F$ counts successes in $N$ trials, so its variance is $N F(1-F)$, and for large $N$ it is close to Gaussian, by the central limit theorem. For $y\sim\mathcal N(0,V)$, $\;\mathbb E|y|=2\int_0^\infty y\,e^{-y^2/2V}dy\,/\sqrt{2\pi V}=\sqrt{2V/\pi}$. If carrying costs mass times *distance*, not its square, the cheapest plan costs $W_1=\int|\hat F-F|\,dx$, since $|\hat F-F|$ is the mass that must cross the place $x$. Its mean is therefore about
#
# $$
# \mathbb E\,W_1(\hat p_N,p)\;\approx\;\frac1{\sqrt N}\int\sqrt{\frac{2F(x)\big(1-F(x)\big)}{\pi}}\;dx .
# \tag{1.16}
# $$
#
# It falls slowly: for one digit more, a hundred times as many draws. And a line is the easy case: in many dimensions new draws come near to old ones far more slowly (section 1.5).
#
# **A small family forgives.** Fit $\mathcal N(m,V)$ to $n$ draws that *do* come from a Gaussian. By (1.8), applied to $\hat p_n$, maximum likelihood takes their mean $\hat m$ and their mean square deviation $\hat V$ from it. On these draws the average of $(x-\hat m)^2/\hat V$ is then 1, so that the average log-likelihood is $-\tfrac12\log(2\pi\hat V)-\tfrac12$. On new draws it is (1.7), $-\tfrac12\log(2\pi\hat V)-\frac{V+(m-\hat m)^2}{2\hat V}$. The $n$ differences from the true $m$, taken as one point of $n$ dimensions, have the law $\mathcal N(0,V I)$, which looks alike from all sides. Turn the axes so that one points along $(1,\dots,1)$: the coordinate there is $\sqrt n\,(\hat m-m)$, and $n\hat V$ is the sum of the squares of the $n-1$ others. So $\hat m$ and $\hat V$ are independent, $\mathbb E(\hat m-m)^2=V/n$, and $n\hat V/V$ has the law $\chi^2_{n-1}$, that of the sum of $n-1$ squared draws from $\mathcal N(0,1)$. The density of $\chi^2_k$ is proportional to $y^{k/2-1}e^{-y/2}$, and by parts
# $\int y^{k/2-1}e^{-y/2}dy=(k-2)\int y^{k/2-2}e^{-y/2}dy$ for $k>2$, hence $\mathbb E\,1/\chi^2_k=1/(k-2)$ and $\mathbb E\,V/\hat V=n/(n-3)$. The training score is too good, on average by
#
# $$
# \mathbb E\big[\text{train}-\text{new}\big]\;=\;\frac12\Big(1+\frac1n\Big)\frac n{n-3}-\frac12\;=\;\frac2{n-3} .
# \tag{1.17}
# $$
#
# Two parameters, fitted to a hundred draws: two hundredths of a nat. (For large samples it is the number of parameters over $n$ in any smooth family that holds the truth, the correction in Akaike's information criterion.)

# %%
edge = 1 / (2 * 20_000)
exact = law.quantile(torch.linspace(edge, 1 - edge, 20_000, dtype=DOUBLE))   # stands for p
sizes, repeats, g = (50, 200, 800, 3200), 60, seeded(0)
gaps = [np.mean([wasserstein(law.sample(n, g)[:, 0], exact, order=1) for _ in range(repeats)])
        for n in sizes]
F = law.cdf(x)
constant = integrate((2 * F * (1 - F) / math.pi).clamp(min=0).sqrt())
claim("1.16", (sizes, gaps), -0.5, relation="order", note="measured with the library's W₁")
assert all(abs(gap * n**0.5 / constant - 1) < 0.15 for gap, n in zip(gaps, sizes, strict=True))
fact("W₁ from p to 1442 draws of it, on average", constant / 1442**0.5, digits=2)

n, repeats = 12, 2_000_000
drawn = torch.randn(repeats, n, generator=seeded(1), dtype=DOUBLE)
V_hat = drawn.var(1, correction=0)
too_good = (1 + drawn.mean(1)**2) / (2 * V_hat) - 0.5
claim("1.17", 2 / (n - 3), too_good.mean(), standard_error=too_good.std() / repeats**0.5)
fact("nats that the training score flatters, n = 12 and 100", [2 / 9, 2 / 97], digits=2)
del drawn, V_hat

# %% [markdown]
# **A large family remembers.** Now let the family be as large as it can be: *all* laws on images of 17 grey levels. Which one maximises (1.1)? By (1.6) with $\hat p_N$ in the place of $p$, the average log-likelihood is $-H(\hat p_N)-\mathrm{KL}(\hat p_N\,\Vert\,p_\theta)$, so the best is $p_\theta=\hat p_N$ itself. If no two training images are alike, then
#
# $$
# \max_{\text{all laws}}\;\frac1N\sum_n\log p\big(x^{(n)}\big)\;=\;-H(\hat p_N)\;=\;-\log N .
# \tag{1.18}
# $$
#
# **The perfect score belongs to the list of the training images.** Its samples are flawless. It has learned nothing, and to every new image it gives probability zero. It answers another question perfectly: what were the training data?
#
# Between the list and the truth there is a path. Smear each training image a little: choose one at random, add Gaussian noise of standard deviation $h$ to every pixel, and round to the nearest level. The probability that pixel value $u$ becomes level $x_d$ is that of an interval around $x_d$, which ends half way to the neighbouring levels (and nowhere beyond the last ones); call it $g_h(x_d\mid u)$. The law is
#
# $$
# p_h(x)\;=\;\frac1N\sum_{n=1}^N\prod_{d=1}^Dg_h\big(x_d\mid x^{(n)}_d\big) .
# \tag{1.19}
# $$
#
# It has one parameter, $h$. What do the training images say about it, and what do the held-out ones?

# %%
assert len(seen_levels.unique(dim=0)) == N             # no two training images are alike
values = torch.arange(DIGITS_LEVELS, dtype=DOUBLE) / 8 - 1
bounds = torch.cat([torch.tensor([-math.inf]), values[:-1] + 1 / 16, torch.tensor([math.inf])])


def log_smear(h):
    """log g_h(level | u) for u at each level, (17, 17): (1.19)."""
    below, above = (bounds[:-1] - values[:, None]) / h, (bounds[1:] - values[:, None]) / h
    flip = below > 0                                   # differences in the lower tail keep digits
    low, high = torch.where(flip, -above, below), torch.where(flip, -below, above)
    mass = 0.5 * (torch.erfc(-high / 2**0.5) - torch.erfc(-low / 2**0.5))
    return mass.clamp(min=1e-300).log()


def smeared_log_prob(levels, h):
    """log p_h(x) for images given by their levels, (1.19)."""
    given = log_smear(h)[seen_levels].flatten(1)       # (N, 64·17): for every pixel and level
    wanted = torch.nn.functional.one_hot(levels, DIGITS_LEVELS).double().flatten(1)
    return torch.logsumexp(wanted @ given.T, dim=1) - math.log(N)


claim("1.19", log_smear(0.2).exp().sum(1), torch.ones(DIGITS_LEVELS, dtype=DOUBLE),
      note="each g_h is a law on the 17 levels")
claim("1.18", bits_per_pixel(smeared_log_prob(seen_levels, 0.005)),
      math.log2(N) / D, note="h so small that p_h is the list")
widths = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
on_train = [bits_per_pixel(smeared_log_prob(seen_levels[::4], h)) for h in widths]
on_new = [bits_per_pixel(smeared_log_prob(new_levels, h)) for h in widths]
fact("bits per pixel of the perfect score", math.log2(N) / D, digits=3)
fact("bits per training pixel, h = 0.05 … 1, of every fourth image", on_train, digits=3)
fact("bits per held-out pixel", on_new, digits=3)
smeared = min(on_new)
assert on_new.index(smeared) == 4 and on_train == sorted(on_train)

fig, ax = figure(row_height=2.8)
ax.plot(widths, on_train, "o-", color=BLUE, label="training images")
ax.plot(widths, on_new, "s-", color=VERMILLION, label="held-out images")
ax.axhline(independent, color=GREY, ls=":", lw=1.2, label="independent pixels, held out")
ax.set(xscale="log", ylim=(0, 6), xlabel="$h$", ylabel="bits per pixel")
ax.set_xticks(widths, [f"{h:g}" for h in widths])
ax.minorticks_off()
ax.legend()
show(fig, """Bits per pixel against the width h of the smear. On training images the curve rises
all the way, from 0.4 at h = 0.05 to 2.5 at h = 1. On held-out images it falls steeply from
beyond the picture to a minimum of 2.27 at h = 0.4, then rises slowly and nearly meets the other.
A dotted line marks the independent pixels of section 1.1, at 2.43 bits on held-out images.""")

# %% [markdown]
# *How much should the list be smeared?* Ask the training images, and they say: not at all. Ask images that the model has not seen, and they say $h=0.4$. Only the second curve knows about $p_{\text{data}}$, for held-out images are fresh draws from it, so that their average estimates the left side of (1.6). **A training score measures the distance to the list; a held-out score measures the distance to the law.** The difference is small in a small family, (1.17), and without limit in a large one, (1.18). Neural networks are large families.
#
# For a model without a likelihood, the matching test is on its samples: are they nearer to the training images than held-out images are? [The toolbox](A_toolbox.ipynb#T.12-How-we-will-measure) makes it a number, and the table of section 1.15 reports it.
#
# > **Pitfall: judging by the look.** The list of the training images draws sharp, varied, perfect pictures. So whoever judges a model by its samples alone will prefer the one that has learned nothing. And likelihood alone will not do either: section 1.15 shows models with good samples and poor likelihood, and the reverse. Theis, van den Oord and Bethge ([1511.01844](https://arxiv.org/abs/1511.01844)) found that for images the two say little about each other.
#
# **Exercise 1.5** (3 points, 15 minutes, ●●○) — *Explain.* A colleague has trained a model on the 1,442 digits. It reports 0.164 bits per pixel on the training images, far less than any other model that it was compared with. Its samples cannot be told from real digits. "Best likelihood, best samples," says the colleague, "what more do you want?" Explain what this model must be, whether the number is possible, why neither observation shows that it has learned $p_{\text{data}}$, and what should be measured instead. Write for a fellow student, in ten sentences or so.

# %%
explanation = ""  # your words


check("1.5", explanation)

# %% [markdown]
# ## 1.5 Why high dimension is hard
#
# If draws are all we have, why not count them? On a line that works: cut it into $K$ bins. In $D$ dimensions there are $K^D$ cells. Our digits, the smallest images anyone would want, have $17^{64}$ cells and 1,442 draws. Nearly every cell is empty, and a new digit all but certainly falls into an empty one.
#
# Nor is there help from neighbours. Let $N$ points be spread evenly over the unit cube. A ball of radius $r$ has the volume $b_Dr^D$, where $b_D$ is that of the unit ball, and holds $N\,b_Dr^D$ of them on average. Set this to 1 for the distance at which one may expect the nearest:
#
# $$
# r\;=\;(N\,b_D)^{-1/D} .
# \tag{1.20}
# $$
#
# To halve it takes $2^D$ times as many points. In one dimension twice as many. In 64 dimensions, $2^{64}$ times.

# %%
g, sizes = seeded(2), (64, 256, 1024, 4096)
in_cube = {}
for dimension in (1, 2, 4, 64):
    asked = torch.rand(500, dimension, generator=g, dtype=DOUBLE)
    in_cube[dimension] = [nearest(asked, torch.rand(n, dimension, generator=g, dtype=DOUBLE))
                          .distances.mean().item() for n in sizes]
for dimension in (1, 2, 4):
    claim("1.20", (sizes, in_cube[dimension]), -1 / dimension, relation="order",
          note=f"nearest of N points in the cube, D = {dimension}")
fewer = (45, 90, 180, 360, 721, 1442)
order = torch.randperm(N, generator=seeded(3))
among_digits = [nearest(heldout, train[order[:n]]).distances.mean().item() for n in fewer]
power = np.polyfit(np.log(fewer), np.log(among_digits), 1)[0]
fact("cells of 8×8 images with 17 levels, as a power of ten", 64 * math.log10(17), digits=3)
fact("nearest of 64 and of 4096 points in the cube of 64 dimensions",
     [in_cube[64][0], in_cube[64][-1]], digits=2)
fact("from a held-out digit to the nearest of 45 and of 1442", [among_digits[0], among_digits[-1]],
     digits=2)
fact("the dimension in which (1.20) would fall as fast", -1 / power, digits=2)

fig, ax = figure(row_height=2.8)
for (dimension, distances), colour in zip(in_cube.items(), (BLUE, GREEN, ORANGE, GREY),
                                          strict=True):
    ax.loglog(sizes, np.array(distances) / distances[0], "o-", ms=4, color=colour,
              label=f"cube, $D = {dimension}$")
ax.loglog(fewer, np.array(among_digits) / among_digits[0], "s--", ms=4, color=VERMILLION,
          label="digits, $D = 64$")
ax.set(xlabel="number of points $N$", ylabel="distance to the nearest\n(that of the first = 1)")
ax.legend(fontsize=9)
show(fig, """Distance to the nearest of N points against N, both logarithmic, each curve divided by
its first value. In the cube it falls steeply in one dimension, half as steeply in two, gently in
four, and hardly at all in 64. For the digits, which have 64 pixels, it falls about half as
steeply as in four dimensions.""")

# %% [markdown]
# *How much nearer do new points come to old ones as the data grow?* In the cube of 64 dimensions: hardly. The digits do better. They have 64 pixels, and come nearer as if they had about seven. **Data do not fill their space**: strokes and their bends are a few numbers, not sixty-four. Whatever learns from a thousand images must use such structure. Who does not put it in by hand needs a family of laws flexible enough to find it. Neural networks make such families.

# %% [markdown]
# ## 1.6 One obstacle, seven answers
#
# A network turns numbers into numbers. How does it become a *law*? A law has two properties, $p_\theta\ge0$ and $\int p_\theta\,dx=1$. The first is easy, take $e^{f_\theta(x)}$. The second is the obstacle:
#
# $$
# p_\theta(x)\;=\;\frac{e^{f_\theta(x)}}{Z_\theta} ,\qquad Z_\theta\;=\;\sum_{x'}e^{f_\theta(x')} ,
# \tag{1.21}
# $$
#
# where for our digits the sum has $17^{64}$ terms, at every step of the training. And with $p_\theta(x)$ in hand one would still have no direct way to *draw* from it. Seven families of models are seven ways around $Z_\theta$:
#
# - **Autoregressive**: make many small laws, each with a sum of its own that is short ([B.5](B_families.ipynb#B.5-Autoregressive:-a-product,-a-mask,-and-the-price-of-bins)).
# - **Flow**: transform a law that is normalised already, and keep count of the volume ([B.4](B_families.ipynb#B.4-Flow:-volumes,-and-a-curve-with-an-inverse)).
# - **VAE**: leave an integral undone, and bound it ([B.2](B_families.ipynb#B.2-VAE:-what-the-bound-loses)).
# - **VQ-VAE**: translate images into short words, and model the words ([B.3](B_families.ipynb#B.3-VQ-VAE:-rounding,-and-what-is-learned-through-it)).
# - **GAN**: give up $p_\theta(x)$ altogether; draw, and be judged by the draws ([B.1](B_families.ipynb#B.1-GAN:-what-the-game-is-worth)).
# - **Diffusion**: undo noise in many small steps, each of which is nearly Gaussian ([B.6](B_families.ipynb#B.6-Diffusion:-a-VAE-with-a-long-hidden-path)).
# - **Flow matching**: let a velocity field carry noise to data ([B.7](B_families.ipynb#B.7-Flow-matching:-why-the-average-velocity-is-enough)).
#
# Each gets one equation, one cell and one picture here; [appendix B](B_families.ipynb) takes them apart, and this book is about the sixth. They all meet the same task: 10,000 points of a **ring of eight Gaussians** in the plane, of which the density is known, and the entropy: as the eight hardly overlap, it is $\log8$ plus that of one of them. All are small networks, of 9,000 to 36,000 weights, trained within seconds: 400 to 1,200 steps, on batches of 256 points. Afterwards each draws five sets of 2,000 points.

# %%
f = torch.randn(17, 17, generator=seeded(0), dtype=DOUBLE).flatten()       # images of two pixels
claim("1.21", f.exp() / f.exp().sum(), f.softmax(0), relation="definition",
      note="Z has 289 terms for two pixels")

ring = toy_law("ring-of-gaussians")
points, fresh = ring.sample(10_000, seeded(0)).float(), ring.sample(4000, seeded(1))
cell = torch.linspace(-2.4, 2.4, 481, dtype=DOUBLE)
plane = torch.cartesian_prod(cell, cell)               # a grid over the ring, step 0.01
density = ring.log_prob(plane).exp()
ring_entropy = -(density * density.log()).sum() * 0.01**2
bell = 0.5 * 2 * (1 + math.log(2 * math.pi * 0.12**2)) # entropy of one Gaussian in the plane
assert abs(density.sum() * 0.01**2 - 1) < 1e-4
fact("entropy of the ring, in nats", ring_entropy, digits=3)
fact("log 8 plus the entropy of one Gaussian", math.log(8) + bell, digits=3)


def trained(model, steps):
    """Fit a family to the points of the ring, and note what it took."""
    began = time.perf_counter()
    model.fit(points, steps=steps, batch_size=256, generator=seeded(3))
    model.seconds = time.perf_counter() - began
    model.made = [model.sample(2000, seeded(10 + k)).double() for k in range(5)]
    return model


def two_panels(model, title):
    """A panel for the inside of a model, whose title is given, and one with 2,000 samples."""
    fig, (inside, outside) = figure(1, 2, row_height=3.2)
    outside.scatter(*model.made[0].T, s=2, color=BLUE, lw=0)
    outside.set(title="samples")
    inside.set(title=title)
    for ax in (inside, outside):
        ax.set(xlim=(-2.1, 2.1), ylim=(-2.1, 2.1), xlabel="$x_1$", aspect="equal")
    inside.set_ylabel("$x_2$")
    return fig, inside


# %% [markdown]
# ## 1.7 Autoregressive: one coordinate after the other
#
# Every law is a product of conditional laws, $p(x_1,x_2)=p(x_1)\,p(x_2\mid x_1)$, and so on for more coordinates. Each factor is a law on *one* coordinate; cut that into $K$ bins, and it is normalised by a sum of $K$ terms:
#
# $$
# p_\theta(x)\;=\;\prod_{d=1}^Dp_\theta(x_d\mid x_1,\dots,x_{d-1}) ,
# \qquad p_\theta(x_d=k\mid\dots)=\frac{e^{f_{d,k}}}{\sum_{k'}e^{f_{d,k'}}} .
# \tag{1.22}
# $$
#
# One network gives the numbers $f_{d,k}$ for all $d$ at once, and is masked so that those for $d$ do not see the coordinates from $d$ on. The likelihood is exact and is what is maximised, in one call. (Within a bin, all places count as equally likely.) To draw, $x_2$ must wait for $x_1$: $D$ calls, one after the other. Language models are of this family, with words for coordinates ("next token").

# %%
causal = trained(Autoregressive(2, bins=60, low=-2.4, high=2.4, generator=seeded(20)), 600)
causal.double()
cells = torch.cartesian_prod(torch.arange(60), torch.arange(60))
log_mass = causal.log_mass(cells)
claim("1.22", log_mass.exp().sum(), 1.0, note="all 3,600 cells")
blind = torch.stack([cells[:, 0], 0 * cells[:, 1]], dim=1)                  # x_2 hidden
first, second = causal.network(blind).detach().log_softmax(-1).unbind(1)
by_factors = first.gather(1, cells[:, :1]) + second.gather(1, cells[:, 1:])
claim("1.22", by_factors[:, 0], log_mass, note="neither factor has seen x₂")
fig, ax = two_panels(causal, "probability of each cell")
ax.imshow(log_mass.exp().reshape(60, 60).T, origin="lower", extent=(-2.4, 2.4, -2.4, 2.4))
show(fig, """Left, a plane cut into small square cells; those on eight spots around a ring are
bright. Right, samples: eight round clouds on a ring, with a few stray points.""")


# %% [markdown]
# **Exercise 1.6** (2 points, 12 minutes, ●●○) — *A tiny autoregressive model.* A model of sequences looks one token back: `first[a]` is the probability that a sequence begins with token `a`, and `then[a, b]` the probability that `b` follows on `a`. Write `sequence_log_prob(tokens, first, then)` that returns the log-probabilities, in nats, of $B$ sequences of $D$ tokens: `tokens` is an int64 tensor `(B, D)`, `first` has shape `(K,)`, `then` has shape `(K, K)`, and the result `(B,)`.

# %%
def sequence_log_prob(tokens, first, then):
    """log p of each row of tokens, by (1.22)."""
    raise NotImplementedError("your turn")


check("1.6", sequence_log_prob)

# %% [markdown]
# ## 1.8 Flow: an invertible map
#
# Start with $z\sim\mathcal N(0,I)$, which is normalised, and let an invertible network carry it to $x$. Written with its inverse $z=f_\theta(x)$: a small cell around $x$, of volume $dx$, comes from one around $z$ of volume $|\det\partial f_\theta/\partial x|\,dx$, and no probability is lost on the way. So
#
# $$
# \log p_\theta(x)\;=\;\log\mathcal N\big(f_\theta(x);\,0,\,I\big)+\log\Big|\det\frac{\partial f_\theta}{\partial x}\Big| .
# \tag{1.23}
# $$
#
# ([T.9](A_toolbox.ipynb#T.9-Change-of-variables) has the proof.) Again the likelihood is exact, and is what is maximised; and sampling is one pass. The price is paid in the network: it must be invertible, with a determinant that is cheap. A *coupling* keeps half of the coordinates as they are and moves the others by a map that the first half chooses, so that its Jacobian is triangular.

# %%
flow = trained(Flow(2, generator=seeded(21)), 400)
flow.double()
near = fresh[:20].clone()
z_of, _ = flow.to_noise(near)
jacobian = torch.autograd.functional.jacobian(lambda u: flow.to_noise(u)[0].sum(0), near)
volume = torch.linalg.det(jacobian.transpose(0, 1)).abs().log()             # by autograd
claim("1.23", (-0.5 * (z_of**2).sum(1) - math.log(2 * math.pi) + volume).detach(),
      flow.log_prob(near), tol=1e-9)
fig, ax = two_panels(flow, "circles and rays of noise, carried over")
turn = torch.linspace(0, 2 * math.pi, 400, dtype=DOUBLE)
for radius in (0.5, 1.0, 1.5, 2.0, 2.5):
    ring_of_noise = radius * torch.stack([turn.cos(), turn.sin()], dim=1)
    ax.plot(*flow.to_data(ring_of_noise).detach().T, color=BLUE, lw=0.8)
for angle in range(0, 360, 30):
    along = torch.linspace(0, 2.5, 200, dtype=DOUBLE)[:, None]
    way = torch.tensor([[math.cos(math.radians(angle)), math.sin(math.radians(angle))]])
    ax.plot(*flow.to_data(along * way.double()).detach().T, color=ORANGE, lw=0.8)
show(fig, """Left, circles and rays around the origin of the noise, after the map: the circles have
become closed curves that run along the ring, the rays are bent and crowded. Right, samples: eight
clouds, with stray points on threads between them.""")


# %% [markdown]
# The map is continuous and invertible, so it cannot tear the one blob of noise into eight: between the clouds there are always threads. They may be thin.
#
# **Exercise 1.7** (2 points, 12 minutes, ●●○) — *The smallest flow.* Let $x=Az+b$ with $z\sim\mathcal N(0,I)$ and an invertible matrix $A$ of shape `(D, D)`. Write `affine_log_prob(x, A, b)` that returns $\log p(x)$ in nats for $B$ points, the rows of `x` with shape `(B, D)`, by (1.23). `b` has shape `(D,)`.

# %%
def affine_log_prob(x, A, b):
    """log p of each row of x, for x = A z + b."""
    raise NotImplementedError("your turn")


check("1.7", affine_log_prob)

# %% [markdown]
# ## 1.9 VAE: an integral, bounded
#
# Draw a hidden $z\sim\mathcal N(0,I)$, and then $x\sim\mathcal N(m_\theta(z),\varsigma^2I)$ around the point $m_\theta(z)$ to which a network, the *decoder*, maps it. That is a law, an infinite mixture of Gaussians; but $p_\theta(x)=\int p(z)\,p_\theta(x\mid z)\,dz$ is an integral over all $z$. A second network, the *encoder*, guesses from which $z$ a given $x$ came. Its answer is a Gaussian, $q(z\mid x)$. (Only here; from chapter 2 on, $q$ is the law of the noising.) That gives a lower bound:
#
# $$
# \log p_\theta(x)\;\ge\;\mathbb E_{z\sim q(z\mid x)}\log p_\theta(x\mid z)-\mathrm{KL}\big(q(z\mid x)\,\Vert\,p(z)\big) .
# \tag{1.24}
# $$
#
# *Proof.* The right side is $\mathbb E_q\big[\log p(z)\,p_\theta(x\mid z)-\log q(z\mid x)\big]$, and by Bayes' rule $p(z)\,p_\theta(x\mid z)=p_\theta(x)\,p_\theta(z\mid x)$. So it is $\log p_\theta(x)-\mathrm{KL}\big(q(z\mid x)\,\Vert\,p_\theta(z\mid x)\big)$, and (1.5) says that this divergence is not negative. $\blacksquare$ ([T.7](A_toolbox.ipynb#T.7-Jensen's-inequality) derives it with Jensen's inequality, too.)
#
# The **variational autoencoder** maximises the right side, the *evidence lower bound*, for encoder, decoder and $\varsigma$ together. What is lost is the divergence of the guess $q(z\mid x)$ from the true law of $z$ given $x$. With many guesses in the place of one, less is lost ([B.2](B_families.ipynb#B.2-VAE:-what-the-bound-loses)); the cell uses 256 to judge the model, not to train it. Sampling is one pass, of the decoder.

# %%
vae = trained(VAE(2, generator=seeded(22)), 1200)
few = fresh[:1000].float()
bound = torch.stack([vae.elbo(few, seeded(k)).mean() for k in range(20)]).mean().double()
closer = vae.iwae(few, 256, seeded(0)).mean().double()                      # a tighter bound
claim("1.24", torch.stack([bound, closer]), ring.log_prob(fresh[:1000]).mean(), relation="<=",
      note="both lie below −H, the best that any law can reach")
claim("1.24", bound, closer, relation="<=", note="256 guesses at z bound closer than one")
fig, ax = two_panels(vae, "the decoder's points $m(z)$")
grid = torch.cartesian_prod(torch.linspace(-2.5, 2.5, 61), torch.linspace(-2.5, 2.5, 61))
ax.scatter(*vae.decoder(grid).detach().T, s=1.5, lw=0, c=grid.norm(dim=1), cmap="cividis")
show(fig, """Left, where the decoder sends a square grid of hidden points: nearly all crowd along
a closed curve through the eight centres, a few lie scattered inside of it. The colour is the
distance of z from the origin. Right, samples: eight broad clouds on a ring, with many points
between them.""")

# %% [markdown]
# ## 1.10 VQ-VAE: a few words
#
# Let the hidden thing be not a Gaussian but a short word: $P$ letters $c_1,\dots,c_P$ from an alphabet of $K$. The encoder's answer is rounded to the nearest of $K$ learned vectors, the *codebook*, and the decoder restores $x$ from the letters. After that, an autoregressive model learns which words the data spell:
#
# $$
# p_\theta(x)\;=\;\sum_cp_\theta(c)\;\mathcal N\big(x;\,m_\theta(c),\,\varsigma^2I\big) ,
# \qquad p_\theta(c)=\prod_{i=1}^Pp_\theta(c_i\mid c_1,\dots,c_{i-1}) .
# \tag{1.25}
# $$
#
# Training is in two parts, and neither maximises (1.25): first the squared error of the restored $x$, with two terms that keep encoder and codebook together (rounding has no derivative, so the gradient is passed over it as if it were not there); then the likelihood of the words. Sampling takes $P$ calls for the word and one for the decoder. So an autoregressive model can make images in fewer calls than there are pixels: in section 1.15, eight letters stand for 64 pixels.

# %%
worded = trained(VQVAE(2, generator=seeded(23)), 700)
worded.double()
words = worded.prior.every_word()
chances = worded.prior.log_prob(words).exp().detach()
claim("1.25", chances.sum(), 1.0, note="all 256 words")
centres, some = worded.decode(words).detach(), fresh[:50]
square = torch.cdist(some, centres)**2
bells = torch.exp(-square / (2 * worded.variance)) / (2 * math.pi * worded.variance)
claim("1.25", (bells @ chances).log(), worded.log_prob(some), tol=1e-9)
fig, ax = two_panels(worded, "words, as large as probable")
ax.scatter(*centres.T, s=3000 * chances, color=ORANGE, alpha=0.6, lw=0)
show(fig, """Left, orange disks on the eight spots of a ring, one to three on each; the other words
are so improbable that their disks are mere points. Right, samples: eight clouds, made of smaller
round ones.""")

# %% [markdown]
# ## 1.11 GAN: a game
#
# Draw $z\sim\mathcal N(0,I)$ and let a network, the *generator*, turn it into $x=G(z)$. Nothing is required of $G$, and nobody knows the density of $x$. But draws are enough for (1.12): train a classifier $c$, here called the *discriminator*, to tell them from data, and $G$ to make that hard,
#
# $$
# \min_G\;\max_c\;\Big\{\mathbb E_{x\sim p_{\text{data}}}\log c(x)+\mathbb E_{z}\log\big(1-c(G(z))\big)\Big\} .
# \tag{1.26}
# $$
#
# If the classifier were always the best one, (1.12) says what $G$ would minimise: the Jensen–Shannon divergence. In a **generative adversarial network** both learn at once, by turns. So there is no number that goes down during training, and no guarantee that the game settles. Sampling is one pass.
#
# Two changes are usual, and are made here. Where the classifier is sure, (1.26) is nearly flat for $G$; so $G$ climbs $\mathbb E_z\log c(G(z))$ instead, which is steep there ([B.1](B_families.ipynb#B.1-GAN:-what-the-game-is-worth)). And the classifier pays for steep slopes at the data, for which section 1.16 has the reason.

# %%
gan = trained(GAN(2, generator=seeded(24)), 1200)
target = torch.tensor([0.1, math.log(1.84)], dtype=DOUBLE)                  # the Gaussian of (1.8)
real = law.sample(2_000_000, seeded(4))
fake = 0.1 + 1.84 * torch.randn(2_000_000, 1, generator=seeded(5), dtype=DOUBLE)


def logit(x):
    """log p(x) − log p_θ(x), for the data of section 1.2 and that Gaussian."""
    return law.log_prob(x) + 0.5 * ((x[:, 0] - 0.1) / 1.84)**2 + math.log(1.84 * (2 * math.pi)**0.5)


at_real, at_fake = logit(real), logit(fake)
spread = torch.nn.functional.softplus(-at_real).var() + torch.nn.functional.softplus(at_fake).var()
claim("1.26", discriminator_loss(at_real, at_fake), 2 * math.log(2) - 2 * jensen_shannon(target),
      standard_error=(spread / 2_000_000)**0.5, note="the library's game, at the best c: (1.12)")
fig, ax = two_panels(gan, "the classifier's $c(x)$")
line = torch.linspace(-2.1, 2.1, 127)
judged = torch.sigmoid(gan.discriminator(torch.cartesian_prod(line, line)).detach())
heat = ax.imshow(judged.reshape(127, 127).T, origin="lower", extent=(-2.1, 2.1, -2.1, 2.1),
                 vmin=0, vmax=1)
fig.colorbar(heat, ax=ax, shrink=0.7)
show(fig, """Left, the classifier's probability that a point is data, over the plane: near one
half, a little less in the middle. Right, samples: all eight places are reached, but not with
round clouds; many points lie in small dense spots, many others in a band that runs along the
ring.""")

# %% [markdown]
# ## 1.12 Diffusion: many small steps
#
# Add a little Gaussian noise to $x_0$, again and again, until after $T$ steps nothing but noise is left. How this is done is the subject of chapters 2 and 3; the result is that the point after $t$ steps is $x_t=\sqrt{\bar\alpha_t}\,x_0+\sqrt{1-\bar\alpha_t}\,\varepsilon$, with $\varepsilon\sim\mathcal N(0,I)$ and numbers $\bar\alpha_t$ that fall from 1 to nearly 0. A network learns to guess the noise:
#
# $$
# \begin{gathered}
# \min_\theta\;\mathbb E\,\big\Vert\varepsilon-\hat\varepsilon_\theta\big(\sqrt{\bar\alpha_t}\,x_0+\sqrt{1-\bar\alpha_t}\,\varepsilon,\;t\big)\big\Vert^2 ,\\
# x_0\sim p_{\text{data}},\;\varepsilon\sim\mathcal N(0,I),\;t\text{ uniform on }1,\dots,T .
# \end{gathered}
# \tag{1.27}
# $$
#
# A regression, with one number that goes down. Who can guess the noise can take a little of it away. From $x_T\sim\mathcal N(0,I)$, $T$ such steps lead back to data; after each but the last a little fresh noise is added, and chapter 4 says why. [Chapter 4](04_posterior.ipynb) makes a law of each step, and [chapter 5](05_epsilon_loss.ipynb) shows that minus (1.27), with other weights on the $t$ and up to a constant, is a lower bound on the log-likelihood, like (1.24) with a hidden path in the place of $z$.
#
# The best guess of a random quantity, in squared error, is its conditional mean, here $\mathbb E[\varepsilon\mid x_t]$: for every $x_t$ the error splits as below (1.7), and the mean makes the second part zero. For the ring it is known, so the cell can say how much there was to learn, and that no network can do better.

# %%
chain = trained(Diffusion(2, generator=seeded(25)), 1200)
process, T = chain.diffusion, chain.diffusion.T
perfect = ring.denoiser(process.schedule)
t = torch.randint(1, T + 1, (4000,), generator=seeded(6))
noise = torch.randn(4000, 2, generator=seeded(7), dtype=DOUBLE)
with torch.no_grad():
    losses = torch.stack([simple_loss(guess, process, fresh, t, noise).mean() for guess in
                          (perfect, lambda x, t: chain.denoise(x.float(), t).double())])
claim("1.27", losses[0], losses[1], relation="<=", note="E[ε | x_t], and the trained network")
fact("loss of the perfect guess, per coordinate", losses[0], digits=2)
levels = list(range(T, -1, -5))
path = trajectory(chain.denoise, process, (12, 2), levels, steps=T, eta=1.0, generator=seeded(8))
path = torch.stack([path[level] for level in levels])
fig, ax = two_panels(chain, "twelve ways from noise to data")
ax.plot(*path.permute(2, 0, 1), color=GREY, lw=0.7)
ax.scatter(*path[-1].T, s=8, color=VERMILLION, lw=0, zorder=3)
show(fig, """Left, twelve jagged random walks from all over the plane, each ending in a dot at
one of eight spots. Right, samples: eight round clouds, with stray points between and inside of
them.""")

# %% [markdown]
# ## 1.13 Flow matching: a field of velocities
#
# Join a draw of noise $\varepsilon$ and a data point $x_0$ by a straight line, and walk it in the time $\rho$ from 0 to 1: $x_\rho=(1-\rho)\,\varepsilon+\rho\,x_0$, with the velocity $x_0-\varepsilon$. Many lines cross at one place. A network learns their average velocity there, $u_\theta$, by regression once more. (The letter $v$ is kept for the velocity on another path, in chapter 4.)
#
# $$
# \min_\theta\;\mathbb E\,\big\Vert u_\theta(x_\rho,\rho)-(x_0-\varepsilon)\big\Vert^2 ,
# \qquad\text{and then}\quad\frac{dx}{d\rho}=u_\theta(x,\rho)\ \text{from }\rho=0\text{ to }1 .
# \tag{1.28}
# $$
#
# Points that start as noise and follow the average velocity have the law of $x_\rho$ at every $\rho$, and end as data ([B.7](B_families.ipynb#B.7-Flow-matching:-why-the-average-velocity-is-enough) proves it). Here they are followed in 40 steps of Heun's method ([T.10](A_toolbox.ipynb#T.10-ODEs-and-the-order-of-Euler's-method)), which calls the network twice for each. It is a flow, so that (1.23) gives a likelihood, though at the price of solving the equation with a determinant on the way; but it was trained without it. And it is diffusion in other words: $x_\rho$ is a signal plus Gaussian noise, like $x_t$, and a guess of the noise *is* a velocity: put $x_0=(x_\rho-(1-\rho)\,\varepsilon)/\rho$ into $x_0-\varepsilon$, and average; what comes out is $u=(x_\rho-\hat\varepsilon)/\rho$. The cell checks that with the score, the slope of $\log p$, from which chapter 4 will obtain $\hat\varepsilon$.

# %%
matched = trained(FlowMatching(2, generator=seeded(26)), 1200)
rho, place = 0.6, fresh[:50]
blurred = GaussianMixture(ring.weights, rho * ring.means,                   # the law of x_ρ
                          rho**2 * ring.covariances + (1 - rho)**2 * torch.eye(2, dtype=DOUBLE))
guess = -(1 - rho) * blurred.score(place)                                   # E[ε | x_ρ]
claim("1.28", (place - guess) / rho, exact_velocity(ring)(place, rho), tol=1e-9,
      note="the mean velocity, from the score")
start = torch.randn(40, 2, generator=seeded(8))
stops = [i / 40 for i in range(41)]
path = [start]
with torch.no_grad():
    for now, then in pairwise(stops):
        path.append(carry(matched.velocity, path[-1], now, then, steps=1, solver="heun"))
path = torch.stack(path)
fig, ax = two_panels(matched, "forty ways from noise to data")
ax.plot(*path.permute(2, 0, 1), color=GREY, lw=0.6)
ax.scatter(*path[-1].T, s=8, color=VERMILLION, lw=0, zorder=3)
show(fig, """Left, forty smooth curves from all over the plane, many with a sharp bend near their
end, each ending in a dot at one of eight spots. Right, samples: eight clouds, with a few points
between them.""")

# %% [markdown]
# ## 1.14 The table
#
# Now the same questions to all seven. *Likelihood:* by (1.5) the mean of $\log p(x)-\log p_\theta(x)$ over fresh draws from the ring estimates $\mathrm{KL}(p\,\Vert\,p_\theta)$; with a lower bound in the place of $\log p_\theta$ it is an upper bound on it. *Samples:* the sliced Wasserstein distance to 4,000 fresh points, the root of the average of (1.15) over many directions ([T.12](A_toolbox.ipynb#T.12-How-we-will-measure)), with a 95 % interval from five sets of 2,000; the floor is what fresh draws from the ring itself reach. *Modes:* how many of the eight Gaussians get at least
# a quarter of the samples that they should; and how many samples lie more than three standard deviations from all of them, where 1.1 % are due.

# %%
models = (causal, flow, vae, worded, gan, chain, matched)


def log_likelihood(model):
    """log p_θ of the fresh points, or a lower bound on it; None for the GAN."""
    if model is gan:
        return None
    if model is vae:
        return model.iwae(fresh, 256, seeded(0)).double()
    if model is chain:
        return model.elbo(fresh, seeded(0)).double()
    return model.log_prob(fresh).double()


def distances(sets):
    """The sliced Wasserstein distance of each set to the fresh points, with its interval."""
    return Estimate.of([sliced_wasserstein(one, fresh, 100, seeded(9)) for one in sets])


floor = distances([ring.sample(2000, seeded(30 + k)) for k in range(5)])
likelihoods = {model.name: log_likelihood(model) for model in models}
apart = {model.name: distances(model.made) for model in models}
modes = {model.name: min(modes_covered(one, ring) for one in model.made) for model in models}
stray = {model.name: 1 - mode_shares(torch.cat(model.made), ring).sum() for model in models}
due = math.exp(-4.5)                                   # P(χ²_2 > 9)
exact_ring = ring.log_prob(fresh)
averages = torch.stack([one.mean() for one in likelihoods.values() if one is not None])
claim("1.6", averages, exact_ring.mean(), relation="<=", note="six models, and the ring itself")
fact("due at none of the eight", due, digits=2)
assert min(modes.values()) >= 7 and floor.low > 0
assert all(estimate.mean < 8 * floor.mean for estimate in apart.values())
print("every model reaches at least seven of the eight modes")
fact("weights, in the order of this chapter", [model.parameters for model in models])
fact("calls for a sample of diffusion, of flow matching", [T, 2 * matched.steps])

# %% tags=["nbval-ignore-output"]
aims = {
    "Autoregressive": ("log-likelihood, exactly", "KL = "),
    "Flow": ("log-likelihood, exactly", "KL = "),
    "VAE": ("a lower bound on it", "KL ≤ "),
    "VQ-VAE": ("restoring; then words", "KL = "),
    "GAN": ("no one number: a game", ""),
    "Diffusion": ("minus a squared error", "KL ≤ "),
    "Flow matching": ("minus a squared error", "KL ≈ "),
}
print(f"{'':15}{'maximises':24}{'KL in nats':18}{'sliced W₂':22}{'modes':6}{'stray':>6}"
      f"{'weights':>8}{'training':>9}  one sample")
for model in models:
    name, likelihood, distance = model.name, likelihoods[model.name], apart[model.name]
    aim, sign = aims[name]
    divergence = "–"
    if likelihood is not None:
        gap = exact_ring - likelihood
        divergence = f"{sign}{gap.mean():.2f} ± {gap.std() / len(gap)**0.5:.2f}"
    print(f"{name:15}{aim:24}{divergence:18}{distance!s:22}{modes[name]:<6}{stray[name]:6.1%}"
          f"{model.parameters:8,}{model.seconds:7.1f} s  {model.passes}")
print(f"{'the ring':39}{'KL = 0':18}{floor!s:22}{8:<6}{due:6.1%}")

# %% [markdown]
# *Read it by columns.* The first and the last in words:
#
# | family | training maximises | $\log p_\theta(x)$ | one sample costs | here | digits (1.15) |
# |---|---|---|---|---|---|
# | autoregressive | the log-likelihood, (1.22) | exact | a call for each coordinate, $D$ | 2 | 64 |
# | flow | the log-likelihood, (1.23) | exact | one pass | 1 | 1 |
# | VAE | a lower bound on it, (1.24) | bounded | one pass | 1 | 1 |
# | VQ-VAE | minus the squared error of the restored $x$; then the log-likelihood of the words | (1.25), if the words can be counted; else bounded | a call for each letter, one to decode: $P+1$ | 3 | 9 |
# | GAN | no one number: the classifier climbs (1.26), the generator $\mathbb E_z\log c(G(z))$ | none | one pass | 1 | 1 |
# | diffusion | minus a squared error, (1.27); reweighted, a lower bound | bounded | a call for each step back, $T$ | 100 | 200 |
# | flow matching | minus a squared error, (1.28) | by (1.23) along the way, up to the solver's error | two calls for each step of Heun's method | 80 | 80 |
#
# **KL.** Nobody is below zero, as (1.5) demands. In the lines above, which come from one machine, the models with an exact likelihood, or nearly so, have come to about a tenth of a nat of the ring. For the VAE and for diffusion a bound is printed: a part of their number is the model, another the bound's own looseness. Of the GAN nothing can be said.
#
# **Samples.** The autoregressive model and the VAE lie above the floor; the intervals of the other five overlap with its own, so that the distance does not tell these apart. Look at the pictures again: the GAN's samples are *not* eight round clouds. A distance that averages over directions cannot see it, and the column *stray* does: more than ten times too many of them lie at none of the eight Gaussians. The diffusion has many strays too, around its clouds, and the VAE has most, for its decoder is continuous and has one $\varsigma$ for all places. No single number would do.
#
# **What a sample costs.** From one call to a hundred. That is the price of the two regressions, and chapter 9 is about lowering it.

# %% [markdown]
# ## 1.15 The same on digits
#
# On the ring the truth is known. On digits it is not, but they are closer to what one wants. So the seven were also trained on the 1,442 digits, with networks that know nothing of images (all pixels enter one layer, neighbours or not), and judged by the protocol of [T.12](A_toolbox.ipynb#T.12-How-we-will-measure): each draws five sets of 355 images, and their Fréchet distance to the 355 held-out digits is divided by what real training images reach, the *floor*. *Precision* is the share of samples that lie among real digits, *recall* the share of
# real digits that lie among samples; real images have 0.94 and 0.93. *Nearer* says how often a sample is nearer to a training image than a held-out image is: one half for new images, one for copies; less than a half means that samples tend to lie farther from the training images than new digits do. This takes several minutes, so it is stored (`measurements/families.py`, renewed by `make measure`).
#
# Two things had to be decided. *How long to train?* Section 1.4 bites at once, as the first lines below show: the autoregressive model, asked about images that it has not seen, is best after 120 steps, and worse after 240. So every fifth training image was set aside to choose the number of steps by its bits, and the model was then trained again on all. Three or four numbers of steps were tried for each. All but one have passed their best, and were worse after more. Only the diffusion chose the largest of its four, 27,000; but three times as many steps had brought it no more than 0.02 bits, so that its row is nearly what it can reach. (The GAN has no bits to choose by, and plays 6,000 rounds.) *And what are the bits of a density?* A density can be as large as it likes at a point. So flow, VAE, VQ-VAE and flow matching are trained on pixels with uniform noise, as wide as the distance
# of two levels, $\tfrac18$. A level has the probability of its cell, and by Jensen's inequality ([T.7](A_toolbox.ipynb#T.7-Jensen's-inequality)) $\log\int_{\text{cell}}p\,dx$ is at least the mean of $\log p$ over the cell plus $D\log\tfrac18$, the logarithm of its volume: again a bound. (Diffusion needs no such noise: its last step gives every level a probability, [chapter 5](05_epsilon_loss.ipynb#5.12-Data-with-levels).)

# %%
stored = measured("families")
board = {**stored["families"], **{name: stored[name] for name in
                                  ("independent pixels", "smeared list", "training images")}}
unet = measured("digits")                              # the network of the first picture
board["diffusion, U-Net"] = {**unet["full_chain"]["posterior"], "bits": {
    "heldout": sum(unet["bits"]["heldout"]["posterior"].values())}}
board["smeared list"]["bits"] = {"heldout": smeared.item()}
for name in ("Autoregressive", "Diffusion"):
    long = stored["families"][name]
    fact(f"{name}: after so many steps", long["candidates"])
    fact("    bits per pixel, on training images set aside", long["validation_bits"], digits=3)
real = unet["full_chain"]["posterior"]
rows = list(stored["families"].values())
fact("steps chosen, in the order of the table", [row["steps"] for row in rows])
fact("the most that were tried", [max(row["candidates"]) for row in rows])
fact("images seen in training, in batches of 128: diffusion; and the U-Net, of 64",
     [128 * rows[5]["steps"], finished.about["training"]["images_seen"]])
fact("precision and recall of real images",
     [real["real_precision"]["mean"], real["real_recall"]["mean"]], digits=2)
exactly = ("Autoregressive", "independent pixels", "smeared list")
print(f"{'':20}{'bits/pixel':>12}{'distance/floor':>16}{'precision':>11}{'recall':>8}{'nearer':>8}")
for name, row in board.items():
    found = row.get("bits", {}).get("heldout")
    sign = "= " if name in exactly else "≤ "
    found = "–" if found is None else f"{sign}{found:.2f}"
    numbers = [row[key]["mean"] for key in ("ratio", "precision", "recall", "share_nearer")]
    print(f"{name:20}{found:>12}{numbers[0]:16.2f}{numbers[1]:11.2f}{numbers[2]:8.2f}"
          f"{numbers[3]:8.2f}")

# %% [markdown]
# The stored numbers of the two models without a network are measured again here: the bits of one, and one set of samples from the other.

# %%
claim("1.3", independent, board["independent pixels"]["bits"]["heldout"])
g = seeded(99)
again = train[torch.randint(N, (len(heldout),), generator=g)]
again = again + 0.4 * torch.randn(again.shape, generator=g)
features = classifier().features
distance = frechet_distance(features(quantise(again, DIGITS_LEVELS)), features(heldout))
before = board["smeared list"]["distance"]
room = 2.78 * np.std(before["values"], ddof=1) * (1 + 1 / 5)**0.5          # Student's law, one more
assert abs(distance - before["mean"]) < max(room, 0.1 * before["mean"])
print("smeared list: a fresh set lies in the stored interval")

names = list(board)
fig, (left, right) = figure(1, 2, row_height=3.8, sharey=True)
for row, name in enumerate(names):
    ratio, found = board[name]["ratio"], board[name].get("bits", {}).get("heldout")
    colour = BLUE if name in stored["families"] else GREY
    left.plot([ratio["low"], ratio["high"]], [row, row], color=colour)
    left.plot(ratio["mean"], row, "o", color=colour)
    if found is not None:
        right.plot(found, row, "o" if name in exactly else "<", color=colour)
left.axvline(1, color=VERMILLION, ls=":", lw=1.2)
left.set(xscale="log", xlabel="distance / floor", ylim=(len(names) - 0.5, -0.5))
left.set_yticks(range(len(names)), names)
right.axvline(math.log2(17), color=VERMILLION, ls=":", lw=1.2)
right.set(xlabel="bits per held-out pixel")
show(fig, """Two panels with a row for each model. Left, distance over floor, logarithmic, with
intervals: training images and the U-Net near 1, the GAN at 2.7, then the flow, the smeared list,
VQ-VAE, VAE and diffusion between 4 and 9; independent pixels, flow matching and the
autoregressive model near 30. Right, bits per held-out pixel: the flow at 2.1, the autoregressive
model and the smeared list at 2.3, independent pixels at 2.4, the others between 2.9 and 3.9.
Triangles are bounds. A dotted line marks the floor on the left, and knowing nothing, 4.09 bits,
on the right.""")

# %% tags=["hide-input"]
drawn = [train[:10]] + [torch.tensor(row["examples"]).reshape(10, 1, 8, 8) / 8
                        for row in stored["families"].values()]
show_images(torch.stack(drawn), """Eight rows of ten images, the first of real digits. Of the
seven models, GAN, flow, VAE, VQ-VAE and diffusion draw images that can partly be read as digits,
with grain; those of the autoregressive model and of flow matching are little more than noise.""",
            row_labels=["data", *stored["families"]])


# %% [markdown]
# *Who draws like the data, and who gives them probability?* The two panels put the models in two different orders.
#
# - The flow has the best bits, 2.06. The smeared list and the autoregressive model follow, 2.27 and 2.28, the list with its $h$ chosen on these very images. But the samples of the autoregressive model are worse, in distance and precision, than pixels drawn one by one.
# - The U-Net of the first picture draws best of all that have not copied, at 1.25 times the floor, and its bits, 2.93, are worse than those of pixels drawn one by one.
# - The GAN has the best samples of the seven trained here, in distance and precision, and no bits at all.
# - The list of the training images beats everybody in distance, precision and recall. What gives it away is *nearer*: 1.
#
# There is no contradiction. Bits ask how improbable each held-out image is, grain and all. A little too much spread costs a fraction of a bit in every pixel, and with 64 pixels at once no sample is clean. A distance between features asks what samples look like, and does not mind that some images get no probability. Whoever wants to compress pictures should read the right panel, whoever wants to see pictures the left one, and *nearer* first.
#
# This compares seven *trainings*, not seven ideas. The networks were given no notion of an image, and the rule for the number of steps looks at bits only: it stopped flow matching after 3,000 steps, and what else it could have drawn is not known. What a better network does for the same family, the last row of the table shows against the sixth.
#
# ## 1.16 Does it always end well?
#
# Six of the seven are trained by a number that goes down. The GAN is a game, and there is a case so small that one can see what may go wrong. Let all data lie at the point 0 and all samples at the point $a$, the generator's only parameter. Let the classifier's log-odds be $kx$, with one parameter $k$, so that $c(x)=1/(1+e^{-kx})$. The value of the game (1.26) is $-\log2-\log(1+e^{ka})$. The classifier climbs it and the generator goes down, both along their derivatives: with $c=c(a)$,
#
# $$
# \dot a=k\,c ,\quad\dot k=-a\,c
# \qquad\Longrightarrow\qquad\frac d{d\zeta}\big(a^2+k^2\big)=2a\dot a+2k\dot k=0 ,
# \tag{1.29}
# $$
#
# where $\zeta$ is the time of the training. **The players circle for ever**: as $c>0$, they never rest. And they never come nearer to the solution $a=k=0$. A penalty on the classifier's slope at the data, $\tfrac\gamma2k^2$, adds $-\gamma k$ to $\dot k$ and $-2\gamma k^2$ to the right side: the circle becomes a spiral. The example and the penalty are those of Mescheder, Geiger and Nowozin ([1801.04406](https://arxiv.org/abs/1801.04406)); our GAN uses it.

# %%
def play(penalty, rounds=6000, pace=0.005):
    """Both players along their derivatives (classical Runge–Kutta), from a = 1, k = 0."""
    def slope(state):
        a, k = state
        chance = 1 / (1 + math.exp(-k * a))
        return np.array([k * chance, -a * chance - penalty * k])

    states = [np.array([1.0, 0.0])]
    for _ in range(rounds):
        here = states[-1]
        one = slope(here)
        two = slope(here + pace / 2 * one)
        three = slope(here + pace / 2 * two)
        four = slope(here + pace * three)
        states.append(here + pace / 6 * (one + 2 * two + 2 * three + four))
    return np.array(states)


plain, damped = play(0.0), play(0.2)
claim("1.29", (plain[::500]**2).sum(1), 1.0, note="a² + k² along the game")
fact("distance from the solution at the end: plain, with the penalty",
     [np.hypot(*plain[-1]), np.hypot(*damped[-1])], digits=2)
for name, row in stored["ring"].items():
    fact(f"{name}: modes covered by five trainings", row["modes"])
    fact("    their sliced Wasserstein distances", row["distances"], digits=2)

fig, ax = figure(width="half", row_height=3.2)
ax.plot(*plain.T, color=VERMILLION, lw=1.2, label="plain")
ax.plot(*damped.T, color=BLUE, lw=1.2, label="with penalty")
ax.plot(0, 0, "o", color="black", ms=4)
ax.set(xlabel="$a$", ylabel="$k$", aspect="equal", xlim=(-1.3, 1.3), ylim=(-1.3, 1.9))
ax.legend(loc="upper left", fontsize=9)
show(fig, """Two curves in the plane of a and k, both from the point (1, 0). The plain game draws a
circle around the origin; with the penalty the curve winds inwards to the origin.""")

# %% [markdown]
# *Does the game settle?* The plain one does not. But how much of this is felt in practice? The printed lines are from `measurements/families.py`: on the ring, the GAN was trained from five seeds with its penalty, from five without, and the diffusion from five. All fifteen trainings reach all eight modes, at much the same distance. So **on this task the game is as dependable as the regression**, with penalty or without, and we cannot confirm its bad name. It is earned elsewhere, with larger networks on larger data. What stays is the difference in kind: a loss that goes down tells you that something is wrong, a game does not.

# %% [markdown]
# ## 1.17 Why diffusion, and what it costs
#
# No table above says that one family is best, and this book would not believe it. What speaks for diffusion, as far as we have seen:
#
# - **It asks nothing of the network.** No mask, no inverse, no opponent: any map from a picture and a number to a picture will do, so one can take the best network for pictures that there is. On the digits that is the difference between the two diffusion rows. Same family, same loss, another network; and the U-Net has seen fewer images in its training, not more (though it spends more computing on each).
# - **Training is a regression.** One number goes down, and five trainings of five end alike.
# - **Nothing is left out.** A likelihood, even a bound on one, forbids it: (1.5) is infinite where data are and the model is not.
# - **It can be steered** while it samples, which is chapter 8.
#
# And what it costs:
#
# - **Calls.** A chain: 100 on the ring, 200 on the digits, 1,000 in the DDPM paper ([2006.11239](https://arxiv.org/abs/2006.11239)), each on the whole picture. [Chapter 9](09_ddim.ipynb) gets by with ten or twenty; the first picture of this chapter took twenty.
# - **Likelihood.** A bound only, and on the digits a poor one: in bits the U-Net loses even to pixels drawn one by one, although of all that have not copied it draws best. Chapters 5 and 7 say where the bits go.
# - **Size.** The noise lives where the data live. For large pictures, diffusion is therefore often run on the code of a VAE ([2112.10752](https://arxiv.org/abs/2112.10752)).
#
# Other things are often said of the seven. What we can say to them:
#
# | it is said | here |
# |---|---|
# | GANs are hardly used any more, since their training is unstable | a plain game may circle for ever, (1.29); on the ring none of ten trainings failed. How much they are used is custom, not mathematics: diffusion passed them on the usual scores for ImageNet in 2021 ([2105.05233](https://arxiv.org/abs/2105.05233)), while one pass for a sample remains theirs |
# | flows are too expensive | a step of ours takes longer than that of any other, and several times as long as most, and an invertible network can use fewer kinds of layers. But of the networks trained here, the flow has the best bits on digits. Flow matching trains a flow without the expense |
# | VAEs are used inside of other models | custom; the VQ-VAE is built for it, and section 1.10 shows how |
# | autoregressive models are stable, simple, and one with language models | the loss is exact and one number. The price is $D$ passes: 64 for our digits, and for a million pixels a million, unless words replace pixels |
# | diffusion is the mainstream | so it was for pictures when this was written, in the middle of the 2020s. Learn what does not date: what each maximises, and what a sample costs |

# %% [markdown]
# ## 1.18 What we have
#
# | equation | what it says | in `ddpm_lite` | elsewhere |
# |---|---|---|---|
# | (1.1), (1.3) | average log-likelihood, in nats and in bits per pixel | `bits_per_dim` for diffusion | |
# | (1.2), (1.4) | pixels by themselves: training is counting | | (7.22) |
# | (1.5), (1.6) | maximum likelihood is least $\mathrm{KL}(p\,\Vert\,p_\theta)$ | `Gaussian.kl` | (T.21), (T.22) |
# | (1.7), (1.8) | the nearest Gaussian has the data's moments | | |
# | (1.9) to (1.11) | the other way round: one hump, at a cost of $-\log\lambda_k$ | | |
# | (1.12) to (1.14) | the best classifier, and the Jensen–Shannon divergence | `families.gan` | GAN paper |
# | (1.15), (1.16) | Wasserstein: the fit is narrower; finite samples | `wasserstein`, `sliced_wasserstein` | (T.49), (T.50) |
# | (1.17) to (1.19) | training scores flatter; the perfect one is the list | `memorisation` | (T.48) |
# | (1.20), (1.21) | neighbours are far; the sum over all images | `nearest` | |
# | (1.22) | autoregressive | `families.Autoregressive` | |
# | (1.23) | flow | `families.Flow` | (T.33) |
# | (1.24) | VAE | `families.VAE` | (T.28) |
# | (1.25) | VQ-VAE | `families.VQVAE` | |
# | (1.26) | GAN | `families.GAN` | GAN Eq. 1 |
# | (1.27) | diffusion | `families.Diffusion`, `simple_loss` | (5.21); DDPM Eq. 14 |
# | (1.28) | flow matching | `families.FlowMatching` | |
# | (1.29) | a plain game circles | `families.gan.r1_penalty` | |

# %%
progress("1")

# %% [markdown]
# ## 1.19 History and further reading
#
# - Lucas Theis, Aäron van den Oord and Matthias Bethge, *A note on the evaluation of generative models* ([1511.01844](https://arxiv.org/abs/1511.01844), 2015): which divergence prefers what, and why samples, likelihood and their estimates say different things. Sections 1.3, 1.4 and 1.15 are in its spirit.
# - Ian Goodfellow and others, *Generative adversarial networks* ([1406.2661](https://arxiv.org/abs/1406.2661), 2014): the game, and (1.12) to (1.14). The example of section 1.16 and its penalty are from Lars Mescheder, Andreas Geiger and Sebastian Nowozin ([1801.04406](https://arxiv.org/abs/1801.04406), 2018). Martin Arjovsky, Soumith Chintala and Léon Bottou put the Wasserstein distance in the place of (1.13) ([1701.07875](https://arxiv.org/abs/1701.07875), 2017).
# - Diederik Kingma and Max Welling, *Auto-encoding variational Bayes* ([1312.6114](https://arxiv.org/abs/1312.6114), 2013); the tighter bound with many guesses is by Yuri Burda, Roger Grosse and Ruslan Salakhutdinov ([1509.00519](https://arxiv.org/abs/1509.00519), 2015).
# - Aäron van den Oord, Oriol Vinyals and Koray Kavukcuoglu, *Neural discrete representation learning* ([1711.00937](https://arxiv.org/abs/1711.00937), 2017): the VQ-VAE.
# - Mathieu Germain, Karol Gregor, Iain Murray and Hugo Larochelle, *MADE* ([1502.03509](https://arxiv.org/abs/1502.03509), 2015): the masks of section 1.7.
# - Laurent Dinh, Jascha Sohl-Dickstein and Samy Bengio, *Density estimation using Real NVP* ([1605.08803](https://arxiv.org/abs/1605.08803), 2016): couplings; Conor Durkan and others, *Neural spline flows* ([1906.04032](https://arxiv.org/abs/1906.04032), 2019): the curves that ours uses.
# - Jonathan Ho, Ajay Jain and Pieter Abbeel, *Denoising diffusion probabilistic models* ([2006.11239](https://arxiv.org/abs/2006.11239), 2020), where this book begins. The idea is of Jascha Sohl-Dickstein and others ([1503.03585](https://arxiv.org/abs/1503.03585), 2015).
# - Yaron Lipman and others, *Flow matching for generative modeling* ([2210.02747](https://arxiv.org/abs/2210.02747), 2022); Xingchao Liu, Chengyue Gong and Qiang Liu, *Flow straight and fast* ([2209.03003](https://arxiv.org/abs/2209.03003), 2022).

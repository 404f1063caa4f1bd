# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 10 How good is it, and what next

# %% tags=["hide-input"]
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import scipy.stats
import torch
from torch import nn

from ddpm_lite import GaussianDiffusion, NoiseSchedule, UNet
from ddpm_lite.claims import claim, fact
from ddpm_lite.data import DIGITS_LEVELS, digits
from ddpm_lite.exercises import check, hint, progress, solution  # noqa: F401
from ddpm_lite.families import flow_matching as fm
from ddpm_lite.families.vae import VAE
from ddpm_lite.measurements import measured
from ddpm_lite.metrics import (
    Estimate,
    classifier,
    frechet_distance,
    gaussian_frechet_distance,
    memorisation,
    precision_recall,
    quantise,
)
from ddpm_lite.objective import hybrid_loss, sample_steps, simple_loss
from ddpm_lite.oracle import GaussianData, GaussianMixture
from ddpm_lite.plotting import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    VERMILLION,
    figure,
    plot_density,
    show,
    show_images,
    use_book_style,
)
from ddpm_lite.sampling import generate, solve
from ddpm_lite.storage import shipped
from ddpm_lite.unet import PRESETS, count_parameters, initialise, timestep_embedding

use_book_style()
schedule = NoiseSchedule.linear(T=1000)                # DDPM's own, as in chapters 2 to 9
T, alpha_bar = schedule.T, schedule.alpha_bar          # ᾱ_0..ᾱ_T, float64
diffusion = GaussianDiffusion(schedule)
network = shipped("digits").network.eval()
train, labels = digits("train")
heldout = digits("heldout")[0]
features = classifier().features
real = features(heldout)
DOUBLE = torch.float64


def seeded(seed):
    """A fresh generator: whatever is drawn here says from which seed."""
    return torch.Generator().manual_seed(seed)


def draws(*shape, seed):
    """Standard normal numbers in double precision."""
    return torch.randn(shape, generator=seeded(seed), dtype=DOUBLE)


def judge(images):
    """Fréchet distance of generated digits to the held-out ones, in the classifier's features."""
    return frechet_distance(features(quantise(images, DIGITS_LEVELS)), real)


# %% tags=["hide-input"]
count = len(heldout)                                   # 355 images in each set, as in chapter 7
ours = generate(network, diffusion, heldout.shape, steps=10, spacing="trailing", eta=0.0,
                clip=(-1, 1), generator=seeded(0))
copies = train[torch.randperm(len(train), generator=seeded(1))[:count]]
flat = train.flatten(1).double()
matched = GaussianData(flat.mean(0), torch.cov(flat.T) + 1e-6 * torch.eye(64))
normal = matched.sample(count, seeded(2)).float().view(heldout.shape)
noise = 2 * torch.rand(heldout.shape, generator=seeded(3)) - 1
few = torch.rand(count, generator=seeded(41)) < 0.01   # one in a hundred is left as it was
diluted = torch.where(few[:, None, None, None], ours, noise)
entries = {"diluted": diluted, "copies": copies, "Gaussian": normal, "network": ours}
show_images(torch.stack([images[:8].clamp(-1, 1) for images in entries.values()]),
            """Four rows of eight small pictures. Diluted: only noise. Copies: clean digits.
Gaussian: blurred shapes, in some of which a digit can be guessed. Network: digits.""",
            row_labels=list(entries))
fact("diluted: bits per pixel that it costs more than the network, at most",
     math.log2(100) / 64, digits=2)
fact("Fréchet distance, features: diluted, copies, Gaussian",
     [judge(entries[name]) for name in ("diluted", "copies", "Gaussian")], digits=2)
fact("    network, ten calls", judge(ours), digits=2, uncertainty=5e-4)
fact("Fréchet distance to held-out digits in raw pixels: Gaussian, copies",
     [frechet_distance(x.flatten(1), heldout.flatten(1)) for x in (normal, copies)], digits=2)

# %% [markdown]
# *Which of the four is the best model?* That depends on the number that one looks at. In bits per pixel, the first row is as good as the last, to about a tenth of a bit. By the Fréchet distance the second row wins, and it has only copied. In raw pixels, the third row is nearly as close to new digits as real digits are. Each number answers one question, and each can be perfect while the samples, or the model, are worthless. This chapter builds the cases where that happens, exactly, so that you know what to
# ask when somebody shows you a number. The second half opens the doors that lead on from here.
#
# **You will**
# - construct a model with excellent likelihood and terrible samples, and the other way round;
# - compute the bias of a Fréchet distance, and say when it decides which of two models wins;
# - say what precision, recall and a test for copies cannot see;
# - read a table of results with ten questions in hand;
# - recognise in the newer methods (velocities, weights, stochastic differential equations, flow matching, latents, transformers) what you know already.
#
# **You need** [how we measure](A_toolbox.ipynb#T.12-How-we-will-measure) from the toolbox; [the bound in bits](05_epsilon_loss.ipynb#5.12-Data-with-levels) and [the measurements of chapter 7](07_training_and_sampling.ipynb#7.10-How-good-are-they,-honestly?); [one object, four names](04_posterior.ipynb#4.12-One-object,-four-names) from chapter 4; [DDIM and its equation](09_ddim.ipynb#9.11-The-equation-behind-it) from chapter 9.
#
# **Time** about 90 minutes to read, 90 for the exercises, a minute and a half to run.

# %% [markdown]
# ## 10.1 Good bits, bad pictures, and the reverse
#
# A likelihood asks: what probability does the model give to *new real data*? Looks ask: what do *its own* draws look like? The two expectations are over different laws, and nothing ties them together. Two constructions show how far apart they can be. Both are in Theis, van den Oord and Bethge ([1511.01844](https://arxiv.org/abs/1511.01844)).
#
# **Diluted.** Take any model $p$, and a law $\nu$ of noise. With probability $a$ draw from $p$, else from $\nu$. Then the density is a mixture, $p_{\text{dil}}=a\,p+(1-a)\,\nu\ge a\,p$, because densities are not negative. The logarithm is monotone, so for every $x$
#
# $$
# -\log p_{\text{dil}}(x)\;=\;-\log\big(a\,p(x)+(1-a)\,\nu(x)\big)\;\le\;-\log p(x)+\log\frac1a .
# \tag{10.1}
# $$
#
# With $a=\tfrac1{100}$ the model gives noise in 99 of 100 draws and loses at most $\log100=4.6$ nats, *for the whole picture*. Divided by the number of dimensions it is next to nothing, and the larger the pictures, the less. The cell does it where everything is exact. The "data" are ten Gaussians in the 64 dimensions of our digits, one for each class, with the class's own mean and covariance, and $p$ is *equal* to them: a perfect model, then diluted.

# %%
groups = [flat[labels == k] for k in range(10)]
means = torch.stack([g.mean(0) for g in groups])
spreads = torch.stack([torch.cov(g.T) + 0.01 * torch.eye(64) for g in groups])
perfect = GaussianMixture([0.1] * 10, means, spreads)
wide = GaussianData(torch.zeros(64), torch.eye(64))                  # the law ν of noise
poor = GaussianMixture([0.001] * 10 + [0.99], torch.cat([means, torch.zeros(1, 64)]),
                       torch.cat([spreads, torch.eye(64)[None]]))

new = perfect.sample(4000, seeded(5))                                # new data
log_p, log_noise = perfect.log_prob(new), wide.log_prob(new)
both = torch.stack([math.log(0.01) + log_p, math.log(0.99) + log_noise])
typed = torch.logsumexp(both, 0)
claim("10.1", -typed, -poor.log_prob(new), note="a = 1/100, in 64 dimensions")
narrow, broad, line = (GaussianData([0.0], [[0.1]]), GaussianData([0.0], [[1.0]]),
                       torch.linspace(-2, 2, 9, dtype=DOUBLE)[:, None])
mixed = GaussianMixture([0.01, 0.99], [[0.0], [0.0]], [[[0.1]], [[1.0]]])
claim("10.1", -mixed.log_prob(line), -narrow.log_prob(line) + math.log(100), relation="<=",
      note="on a line, where the noise does help")
fact("nats that it costs more, on average", (log_p - poor.log_prob(new)).mean(), digits=4)
lowest = log_p.min()                                   # no new data lie lower than this
fact("share of its draws that lie lower still",
     (perfect.log_prob(poor.sample(4000, seeded(6))) < lowest).double().mean(), digits=2)
fact("cost in bits per dimension: digits, CIFAR-10, 256×256 in colour",
     [math.log2(100) / dim for dim in (64, 32 * 32 * 3, 256 * 256 * 3)], digits=2)


# %% [markdown]
# Papers report bits per dimension to two decimals. On CIFAR-10 this model and the perfect one would stand in one table with the same number.
#
# **Memorised.** Now the reverse: a model that draws one of the $N$ training images $x^{(k)}$, in $D$ dimensions, at random and adds noise of a tiny width $b$,
# $p_{\text{mem}}(x)=\frac1N\sum_k\mathcal N(x;\,x^{(k)},\,b^2I)$. Its samples are real images, to the eye. An average is at most the largest of its terms, and the largest Gaussian is that of the nearest image, so by (T.3)
#
# $$
# -\log p_{\text{mem}}(x)\;\ge\;\frac{1}{2b^2}\,\min_k\lVert x-x^{(k)}\rVert^2+\frac D2\log(2\pi b^2) .
# \tag{10.2}
# $$
#
# For a *new* image the minimum is positive, and as $b\to0$ the first term beats the logarithm: the cost grows beyond all bounds, like $1/b^2$. For a training image the sum is at least its own term, so the cost is at most $\log N+\frac D2\log(2\pi b^2)$, which goes to $-\infty$ as $b$ does to 0.

# %%
def memoriser_nll(x, centres, b):
    """−log p_mem in nats, for each row of x."""
    square = torch.cdist(x, centres, compute_mode="donot_use_mm_for_euclid_dist").square()
    D, N = x.shape[1], len(centres)
    tops = torch.logsumexp(-square / (2 * b**2), 1)
    return math.log(N) + D / 2 * math.log(2 * math.pi * b**2) - tops


b, unseen, some = 0.2, heldout.flatten(1).double(), flat[:200]
tiny = (b**2 * torch.eye(64, dtype=DOUBLE)).expand(200, 64, 64)
exact = -GaussianMixture([1 / 200] * 200, some, tiny).log_prob(unseen[:50])
nearest = torch.cdist(unseen[:50], some).min(1).values
claim("10.2", nearest**2 / (2 * b**2) + 32 * math.log(2 * math.pi * b**2), exact, relation="<=",
      note="50 held-out digits, 200 copied ones")
assert torch.allclose(memoriser_nll(unseen[:50], some, b), exact, rtol=1e-10)
for b in (0.2, 0.05, 0.01):
    fact(f"b = {b}: nats per pixel for training digits, for new ones",
         [memoriser_nll(x, flat, b).mean() / 64 for x in (flat[:count], unseen)])

# %% [markdown]
# So there is a model with nearly perfect bits whose pictures are noise, and one with perfect pictures and bits beyond any bound. *Between* these extremes the two disagree too, inside a single paper: of the models for CIFAR-10 in Improved DDPM ([2102.09672](https://arxiv.org/abs/2102.09672)), the one trained on the bound alone has the best likelihood, 2.94 bits per dimension, and an FID of 11.47; the one with the best FID, 2.90, has 3.37 bits. [Chapter 7](07_training_and_sampling.ipynb#7.11-In-bits) has shown where the bits go: most are spent on details that no eye sees.
#
# **A likelihood has a unit.** If $x$ has the density $p$ on $D$ dimensions, then $cx$ has, by the change of variables (T.33), the density $p(x)/c^D$ at $cx$. So
#
# $$
# -\tfrac1D\log_2 p_{cx}(cx)\;=\;-\tfrac1D\log_2 p_x(x)+\log_2 c .
# \tag{10.3}
# $$
#
# From $[-1,1]$ to $[0,255]$ it is seven bits per dimension. Numbers for *densities* can be compared only in the same unit; numbers for *levels*, (5.31), only with the same levels. Ask also whether the number is the likelihood or a bound on it, and whether an ODE or one draw of noise gave it.

# %%
wider = GaussianData(127.5 * matched.mean, 127.5**2 * matched.covariance)
claim("10.3", -matched.log_prob(flat[:9]) / (64 * math.log(2)) + math.log2(127.5),
      -wider.log_prob(127.5 * flat[:9]) / (64 * math.log(2)), tol=1e-9)
fact("bits per dimension between the units of [-1, 1] and of [0, 255]", math.log2(127.5))


# %% [markdown]
# **Exercise 10.1** (2 points, 10 minutes, ●○○) — *What dilution costs.* Write `diluted_cost(log_p, log_noise, a)` that returns $-\log p_{\text{dil}}$ of (10.1) in nats for vectors `log_p` of $\log p(x)$ and `log_noise` of $\log\nu(x)$. It must work where the densities themselves are too small for a float, such as $e^{-800}$.

# %%
def diluted_cost(log_p, log_noise, a):
    """−log(a·p + (1 − a)·ν), from the logarithms of p and ν."""
    raise NotImplementedError("your turn")


check("10.1", diluted_cost)

# %% [markdown]
# **Exercise 10.2** (1 point, 4 minutes, ●○○) — *Predict the number.* A model draws one good picture in a thousand, else noise. Its pictures have $32\times32$ pixels in three colours. How many bits per dimension is its likelihood worse, at most, than that of the model which draws good pictures only? (Three significant digits.)

# %%
bits_lost = None  # your number


check("10.2", bits_lost)


# %% [markdown]
# ## 10.2 The bias of a Fréchet distance, exactly
#
# The [toolbox](A_toolbox.ipynb#T.12-How-we-will-measure) has found that the distance of two samples of *one* law is never zero, and estimated by how much, (T.45). Now exactly, and in $F$ features.
#
# **On a line** there is a closed form for every $n$. The averages of $n$ and $n'$ draws from $\mathcal N(m,V)$ differ by a number of variance $\frac Vn+\frac V{n'}$. For the estimated variance $\hat V$: $(n-1)\,\hat V/V$ is distributed as the sum of the squares of $n-1$ independent standard normal numbers (shown before (T.43)), and the mean of the root of such a sum is $\sqrt2\,\Gamma(\frac n2)/\Gamma(\frac{n-1}2)$. (The root is the length $r$ of a standard normal vector in $n-1$ dimensions. In polar coordinates its density is proportional to $r^{n-2}e^{-r^2/2}$; with $\int_0^\infty r^ke^{-r^2/2}dr=2^{(k-1)/2}\,\Gamma(\frac{k+1}2)$ the mean is the ratio of the integrals with $k=n-1$ and $k=n-2$.) So $\mathbb E\,\hat V=V$ and $\mathbb E\sqrt{\hat V}=g_n\sqrt V$ with the $g_n$ below, and multiplying out $\big(\sqrt{\hat V_a}-\sqrt{\hat V_b}\,\big)^2$ with independent factors gives
#
# $$
# \mathbb E\,d^2\;=\;V\Big(\frac1n+\frac1{n'}\Big)+2V\,\big(1-g_ng_{n'}\big) ,
# \qquad g_n=\sqrt{\frac2{n-1}}\;\frac{\Gamma(n/2)}{\Gamma((n-1)/2)} .
# \tag{10.4}
# $$
#
# For large $n$ it is (T.45), with an error of the order $1/n^2$.
#
# **In $F$ dimensions**, let $V$ have the eigenvalues $\lambda_1,\dots,\lambda_F$; the distance does not change under a rotation, so let $V$ be diagonal. How does (T.44) react to a small error $\Delta$ of a covariance? Write $V^{1/2}(V+\Delta)V^{1/2}=(V+X+Y)^2$ with $X$ of first and $Y$ of second order in $\Delta$. First order: $VX+XV=V^{1/2}\Delta V^{1/2}$, in coordinates
# $X_{ij}=\sqrt{\lambda_i\lambda_j}\,\Delta_{ij}/(\lambda_i+\lambda_j)$, so that $\operatorname{tr}X=\frac12\operatorname{tr}\Delta$. Second order: $VY+YV=-X^2$, so $\operatorname{tr}Y=-\sum_i(X^2)_{ii}/2\lambda_i$. In $\operatorname{tr}(2V+\Delta)-2\operatorname{tr}(V+X+Y)$ all of first order cancels, and $-2\operatorname{tr}Y=\sum_{ij}X_{ij}^2/\lambda_i=\sum_{ij}\lambda_j\Delta_{ij}^2/(\lambda_i+\lambda_j)^2$ is left. Exchange $i$ and $j$ and take the mean of both forms:
#
# $$
# d^2\big(\mathcal N(0,V),\,\mathcal N(0,V+\Delta)\big)\;=\;\sum_{i,j}\frac{\Delta_{ij}^2}{2\,(\lambda_i+\lambda_j)}+O(\Delta^3) .
# \tag{10.5}
# $$
#
# With two estimated covariances, $\Delta$ is the difference of their errors, to the same order. Let $z_i$ be the coordinate along the $i$-th eigenvector, minus its mean. The entry $ij$ of an estimated covariance averages the products $z_iz_j$, so its variance is about $\frac1n\operatorname{Var}[z_iz_j]$. With the means' part, $\sum_i\lambda_i(\frac1n+\frac1{n'})$,
#
# $$
# \mathbb E\,d^2\;\approx\;\Big(\frac1n+\frac1{n'}\Big)\bigg[\sum_i\lambda_i+\sum_{i,j}\frac{\operatorname{Var}[z_iz_j]}{2\,(\lambda_i+\lambda_j)}\bigg]
# \;=\;\Big(\frac1n+\frac1{n'}\Big)\,\frac{F\,(F+5)}4\quad\text{for }\mathcal N(m,I) .
# \tag{10.6}
# $$
#
# For Gaussian data $\operatorname{Var}[z_iz_j]=\lambda_i\lambda_j\,(1+\delta_{ij})$, where $\delta_{ij}$ is 1 if $i=j$, else 0: for $i\ne j$ the factors are independent, and for $i=j$ it is (T.43). The bias grows with the *square* of the number of features. (The formula needs $n$ well above $F$; for $F=1$ it is (T.45).)

# %%
def g_of(n):
    """The mean of an estimated standard deviation, over the true one."""
    return math.sqrt(2 / (n - 1)) * math.exp(math.lgamma(n / 2) - math.lgamma((n - 1) / 2))


def line_bias(V, n, m):
    """(10.4) for n and m draws."""
    return V * (1 / n + 1 / m) + 2 * V * (1 - g_of(n) * g_of(m))


def bias(eigenvalues, products, n, m):
    """(10.6) for n and m draws; `products` holds the variances of z_i·z_j."""
    L = torch.as_tensor(eigenvalues, dtype=DOUBLE)
    return (1 / n + 1 / m) * (L.sum() + (products / (2 * (L[:, None] + L))).sum())


def gaussian_bias(eigenvalues, n, m):
    """The same for Gaussian data."""
    L = torch.as_tensor(eigenvalues, dtype=DOUBLE)
    return bias(L, L[:, None] * L * (1 + torch.eye(len(L), dtype=DOUBLE)), n, m)


ten, twenty = 1.5**0.5 * draws(800_000, 10, seed=7), 1.5**0.5 * draws(800_000, 20, seed=8)
found = (ten.mean(1) - twenty.mean(1)) ** 2 + (ten.std(1) - twenty.std(1)) ** 2
claim("10.4", line_bias(1.5, 10, 20), found.mean(), standard_error=found.std() / 800_000**0.5,
      note="ten and twenty draws")
sizes = (16, 32, 64, 128, 256)
claim("10.4", (sizes, [abs(line_bias(1, n, n) - 3 / n) for n in sizes]), -2.0, relation="order",
      note="what (T.45) leaves out")

rng = np.random.default_rng(9)


def factors(eigenvalues, n, repeats):
    """Triangular A with A Aᵀ distributed as the covariance of n Gaussian draws (Bartlett)."""
    F = len(eigenvalues)
    A = np.tril(rng.standard_normal((repeats, F, F)), -1)
    A[:, range(F), range(F)] = np.sqrt(rng.chisquare(n - 1 - np.arange(F), (repeats, F)))
    return torch.from_numpy(np.sqrt(eigenvalues)[:, None] * A) / (n - 1) ** 0.5


def distances(true, estimated, shift=None):
    """(T.44) of pairs of laws from factors of their covariances, and the means' difference."""
    overlap = torch.linalg.svdvals(true.mT @ estimated).sum(1)       # tr (V_a V_b)^½
    square = (true**2).sum((1, 2)) + (estimated**2).sum((1, 2)) - 2 * overlap
    return square if shift is None else square + (shift**2).sum(1)


eigenvalues, n, repeats = np.array([3, 2, 1.5, 1, 0.7, 0.4, 0.2, 0.1]), 20_000, 30_000
V = torch.diag(torch.tensor(eigenvalues))
tilt = draws(8, 8, seed=10) * 0.05
tilt = tilt + tilt.T
L = torch.tensor(eigenvalues)
for h in (1e-3, 1e-4):
    form = (h**2 * tilt**2 / (2 * (L[:, None] + L))).sum()
    assert abs(gaussian_frechet_distance(L * 0, V, L * 0, V + h * tilt) / form - 1) < h
steps = torch.tensor([0.04, 0.02, 0.01, 0.005], dtype=DOUBLE)
left = [abs(gaussian_frechet_distance(L * 0, V, L * 0, V + h * tilt)
            - (h**2 * tilt**2 / (2 * (L[:, None] + L))).sum()) for h in steps]
claim("10.5", (steps, left), 3.0, relation="order", note="what is left is of third order")
apart = (2 / n) ** 0.5 * torch.from_numpy(rng.standard_normal((repeats, 8)) * eigenvalues**0.5)
found = distances(factors(eigenvalues, n, repeats), factors(eigenvalues, n, repeats), apart)
claim("10.6", gaussian_bias(eigenvalues, n, n), found.mean(),
      standard_error=found.std() / repeats**0.5, note="eight features of different spread")
fact("whitened features, 355 draws each: F = 1, 8, 24",
     [gaussian_bias([1] * F, 355, 355) for F in (1, 8, 24)], digits=2)

everything = torch.cat([features(train), real])        # all 1,797 digits
spectrum, axes = torch.linalg.eigh(torch.cov(everything.T))
z = (everything - everything.mean(0)) @ axes
own = bias(spectrum, (z[:, :, None] * z[:, None]).var(0), 355, 355)
g, found, whole = seeded(10), [], []
for _ in range(100):
    order = torch.randperm(len(everything), generator=g)
    one, other = everything[order[:355]], everything[order[355:710]]
    found.append(frechet_distance(one, other))
    whole.append(frechet_distance(one, everything))
real_floor = measured("digits")["full_chain"]["posterior"]["floor"]["mean"]
fact("our features: (10.6), and two random sets of 355 digits", [own, np.mean(found)], digits=2)
fact("355 digits against all 1,797: at random, and the held-out ones",
     [np.mean(whole), frechet_distance(real, everything)], digits=2)
fact("half of (10.6), and the floor of chapter 7", [own / 2, real_floor], digits=2)


# %% [markdown]
# So (10.6) predicts what two random sets of *real* digits score, in features that are not Gaussian at all. The whole of that distance is counting error. The floor of chapter 7 is only about half of it, and that has a reason too: the held-out images were not drawn at random but taken by a rule, every fifth of each class in the order of the data set. They represent the whole better than a random choice does, as their distance to all 1,797 digits shows: 0.041, not 0.16. (Random gives 0.16 and not 0.20, since 355 of 1,797 have $\frac1n-\frac1N$ for $\frac1n$, with $N=1797$.) So hardly more than one of the two terms $\frac1n$ is left.
#
# **The bias depends on the model.** It is tempting to say: both models are scored with the same $n$, so the bias is the same for both. Look at (10.6): it contains the eigenvalues of the model. Let the reference be $\mathcal N(0,I)$, known exactly, and a model draw from $\mathcal N(0,c^2I)$. The derivation of (10.5), with $I$ on one side and $c^2I+\Delta$ on the other, leaves $\frac1{4c^3}\sum_{ij}\Delta_{ij}^2$ on average (the first order has mean zero), where $\Delta_{ij}$ has variance $c^4(1+\delta_{ij})/n$:
#
# $$
# \mathbb E\,d^2\;\approx\;\underbrace{F\,(1-c)^2}_{\text{true distance}}\;+\;\underbrace{\frac{c^2F}n}_{\text{mean}}\;+\;\underbrace{\frac{c\,F\,(F+1)}{4n}}_{\text{covariance}} ,
# \qquad\text{least at}\quad 1-c\;\approx\;\frac1n\Big(1+\frac{F+1}8\Big) .
# \tag{10.7}
# $$
#
# (For the first order: the root of $c^2I+\Delta$ has the trace $Fc+\frac1{2c}\operatorname{tr}\Delta-\frac1{8c^3}\sum_{ij}\Delta_{ij}^2$; for the last expression set the derivative with respect to $c$ to zero, at $c\approx1$ in the small terms.) **The perfect model, $c=1$, does not have the best score.** A model that draws too little variety has, because its estimates scatter less. At large $n$ the effect is small; but for Gaussians that differ by one factor it always points the same way, towards samples that are too much alike.

# %%
def narrow_score(c, F, n):
    """(10.7)."""
    return F * (1 - c) ** 2 + c**2 * F / n + c * F * (F + 1) / (4 * n)


def scores(c, F, n, repeats):
    """Distances of `repeats` samples of N(0, c²I), n points each, to N(0, I) itself."""
    exact = torch.eye(F, dtype=DOUBLE).expand(repeats, F, F)
    shift = c / n**0.5 * torch.from_numpy(rng.standard_normal((repeats, F)))
    return distances(exact, factors(np.full(F, c**2), n, repeats), shift)


found = scores(0.9, 8, 5000, 20_000)
claim("10.7", narrow_score(0.9, 8, 5000), found.mean(), standard_error=found.std() / 20_000**0.5)
best = 1 - (1 + 25 / 8) / 100
few = [scores(c, 24, 100, 2000) for c in (1.0, best)]
assert few[0].mean() - few[1].mean() > 5 * (few[0].var() / 2000 + few[1].var() / 2000) ** 0.5
fact("F = 24, n = 100: c of the best score", best, digits=2)
fact("    its true distance", 24 * (1 - best) ** 2, digits=2)
print("    it beats the perfect model, on average over 2000 samples each")

# %% [markdown]
# **Extrapolate.** To leading order the bias falls like $1/n$. So measure at several $n$, and continue the straight line to $1/n=0$ (Chong and Forsyth, [1911.07023](https://arxiv.org/abs/1911.07023)):
#
# $$
# \mathbb E\,d^2_n\;\approx\;d^2_\infty+\frac An .
# \tag{10.8}
# $$
#
# It removes most of the bias, the part that depends on the model included. It does not remove the *scatter*, and a line fitted at too small $n$ leaves a remainder of the order $1/n^2$. We test it on two Gaussians whose distance is known, $\mathcal N(0,I)$ and $\mathcal N(m,c^2I)$, with $n$ draws of each. There $A$ is known as well, from what led to (10.7): the means give $F\,(1+c^2)$, the covariance of the second $\frac14c\,F\,(F+1)$, and that of the first as much (divide both laws by $c$, and multiply the distance by $c^2$).

# %%
F, c, sizes = 24, 1.05, np.array([250, 500, 1000, 2000])
truth = F * (c - 1) ** 2 + 0.1                         # deviations 1 and c, means √0.1 apart
A = F * (1 + c**2) + c * F * (F + 1) / 2
towards = torch.zeros(F, dtype=DOUBLE)
towards[0] = 0.1**0.5


def between_two(n, repeats=400):
    """Mean distance of n draws of each of the two laws, and its standard error."""
    spread = (1 + c**2) ** 0.5 / n**0.5
    shift = towards + spread * torch.from_numpy(rng.standard_normal((repeats, F)))
    both = [factors(np.full(F, width**2), n, repeats) for width in (1.0, c)]
    found = distances(*both, shift)
    return found.mean().item(), found.std().item() / repeats**0.5


means, errors = zip(*[between_two(n) for n in sizes], strict=True)
slope, limit = np.polyfit(1 / sizes, means, 1, w=1 / np.array(errors))
average, error = between_two(5000, repeats=4000)
claim("10.8", truth + A / 5000, average, standard_error=error, note="n = 5000, with A from theory")
assert abs(limit - truth) < 0.015 < means[-1] - truth
fact("true distance", truth, digits=2)
fact("measured with 250 and with 2000 draws", [means[0], means[-1]], digits=2)
print("extrapolated: within 0.015 of the truth")

fig, ax = figure(row_height=2.6)
ax.errorbar(1000 / sizes, means, yerr=errors, fmt="o", color=BLUE, label="measured")
ax.plot([0, 4], [limit, limit + 4 * slope / 1000], color=GREY, lw=1)
ax.plot(0, truth, "*", ms=12, color=ORANGE, label="true distance", clip_on=False)
ax.set(xlabel="$1000/n$", ylabel="mean $d^2$", xlim=(0, 4.2), ylim=(0, None))
ax.legend()
show(fig, """Mean squared distance against a thousand over n. Four measured points, at 0.5, 1, 2
and 4, lie close to a straight line that rises to about 1.6. Continued to zero, the line meets
the star that marks the true distance, 0.16.""")


# %% [markdown]
# *What would infinitely many samples say?* At $n=250$ the number is mostly bias; the line knows better.
#
# **Exercise 10.3** (3 points, 15 minutes, ●●○) — *The floor, predicted.* Write `floor(eigenvalues, n, m)` that returns the bias (10.6) for two samples of one *Gaussian* law, with $n$ and $m$ draws, so that $\operatorname{Var}[z_iz_j]=\lambda_i\lambda_j\,(1+\delta_{ij})$; `eigenvalues` is the vector $\lambda_1,\dots,\lambda_F$ of its covariance.

# %%
def floor(eigenvalues, n, m):
    """The expected squared Fréchet distance of two samples of one Gaussian law."""
    raise NotImplementedError("your turn")


check("10.3", floor)

# %% [markdown]
# ## 10.3 What it cannot see
#
# **Anything beyond two moments.** (T.44) reads means and covariances. A law $p$ and the Gaussian $p_{\mathcal N}$ with the *same* mean and covariance have distance zero, whatever $p$ looks like. How different can they be? The logarithm of a Gaussian density is a quadratic function of $x$, and the mean of a quadratic function depends on mean and covariance only. So $\mathbb E_p\log p_{\mathcal N}=\mathbb E_{p_{\mathcal N}}\log p_{\mathcal N}$, and
#
# $$
# \mathrm{KL}(p\,\Vert\,p_{\mathcal N})\;=\;\mathbb E_p\log p-\mathbb E_p\log p_{\mathcal N}\;=\;H(p_{\mathcal N})-H(p) .
# \tag{10.9}
# $$
#
# The divergence is a difference of entropies, and the entropy of $p$ may be as low as one likes.

# %%
humps = GaussianMixture([0.35, 0.65], [[-0.9], [0.7]], [[[0.10**2]], [[0.25**2]]])
twin = GaussianData(humps.mean, humps.covariance)
x = torch.linspace(-6, 6, 24_001, dtype=DOUBLE)
log_p, log_twin = humps.log_prob(x[:, None]), twin.log_prob(x[:, None])
divergence = torch.trapezoid(log_p.exp() * (log_p - log_twin), x)
entropy = -torch.trapezoid(log_p.exp() * log_p, x)
claim("10.9", twin.entropy() - entropy, divergence, tol=1e-9, note="by quadrature")
mean = torch.trapezoid(log_p.exp() * x, x)
spread = torch.trapezoid(log_p.exp() * (x - mean) ** 2, x)
zero = gaussian_frechet_distance(mean[None].numpy(), spread[None, None].numpy(),
                                 twin.mean.numpy(), twin.covariance.numpy())
assert zero < 1e-9
print("Fréchet distance of the two laws: 0, to nine digits")
fact("KL divergence in nats", divergence, digits=3)
quantiles = (torch.arange(100_000, dtype=DOUBLE) + 0.5) / 100_000
fact("W_2 between them", (humps.quantile(quantiles) - twin.quantile(quantiles)).square().mean()
     .sqrt(), digits=2)
void = (x > -0.55) & (x < -0.1)                        # the gap between the humps
fact("probability between -0.55 and -0.1: data, Gaussian",
     [torch.trapezoid(law.exp()[void], x[void]) for law in (log_p, log_twin)], digits=2)

fig, ax = figure(row_height=2.3)
plot_density(ax, humps, (-2.6, 2.6), color=ORANGE, label="data")
plot_density(ax, twin, (-2.6, 2.6), color=BLUE, label="same mean, same variance")
ax.set(xlabel="$x_0$", ylabel="density")
ax.legend()
show(fig, """Two densities. The data have a narrow hump at -0.9 and a broader one at 0.7. The
Gaussian of the same mean and variance is one broad bell, high where the data have a gap.""")


# %% [markdown]
# *Are these two laws alike?* To the Fréchet distance, yes. The third row of the chapter's first picture is this twin for the digits: in raw pixels at the distance of real digits, to the eye no digits but blurs of them. In the classifier's features it is caught, because a nonlinear feature makes two moments out of many. So the features decide what is seen. Whatever the features do not tell apart, the distance built on them cannot tell apart either.
#
# **Bugs.** In a widely read teaching implementation of DDPM the attention's softmax ran over the wrong axis. The reader who found it trained with the bug and without, and saw no difference in FID, ±0.05 (issue 146 of that repository, labmlai/annotated_deep_learning_paper_implementations). Chapter 9 met [another](09_ddim.ipynb#9.8-How-far-from-the-data,-exactly): wrong neighbours in a grid brought the samples' law *nearer* to the data on two of its three grids. Here is one that you can plant yourself. Tell the network a step that is off by one, $t+1$ where it should be $t$, and generate from the same noise.

# %%
def late(x, t):
    """The shipped network, told the wrong step."""
    return network(x, (t + 1).clamp(max=T))


slipped = generate(late, diffusion, heldout.shape, steps=10, spacing="trailing", eta=0.0,
                   clip=(-1, 1), generator=seeded(0))
fact("Fréchet distance, right and off by one", [judge(ours), judge(slipped)], digits=2,
     uncertainty=2e-4)
five = measured("digits")["full_chain"]["posterior"]["distance"]["values"]
fact("spread of five runs of one network, standard deviation", np.std(five, ddof=1), digits=2)
x_t = draws(4, 1, 8, 8, seed=11).float()
with torch.no_grad():
    right, off = (net(x_t, torch.full((4,), 300)) for net in (network, late))
assert not torch.equal(right, off)
print("the first numbers put out are already different:", not torch.allclose(right, off))

# %% [markdown]
# The two distances differ by much less than two runs of one network do: with 355 images, this score does not find the bug. A comparison of two numbers, with a tolerance near the rounding error, finds it at once. **Metrics judge models. Tests find bugs.** That is why this book has so many claims.
#
# ## 10.4 How sure is a number?
#
# A distance is random twice over: another set of samples gives another number, and another training run gives another network. The first is cheap to measure, by generating again, (T.46). For our digits network five runs of the full chain gave the numbers printed below. Two questions about such lists.
#
# **What does "best of $R$" report?** For $R$ independent draws from $\mathcal N(m,V)$, the smallest is above $x$ if all are. With $\varphi$ and $\Phi$ for the standard normal density and its integral, the largest of $R$ draws from $\mathcal N(0,1)$ has the density $R\,\varphi\,\Phi^{R-1}$, and the smallest is its mirror image:
#
# $$
# \mathbb E\min\;=\;m-e_R\sqrt V ,\qquad e_R=R\int z\,\varphi(z)\,\Phi(z)^{R-1}\,dz ,\qquad e_3=\frac3{2\sqrt\pi} .
# \tag{10.10}
# $$
#
# The best of three is better than the mean by $0.85$ deviations, without any merit.
#
# **When are two models different?** If both have the variance $V$ and $R$ runs each, the difference of their means has deviation $\sqrt{2V/R}$. To tell a difference of ten per cent from none, twice that should be below ten per cent of the number.

# %%
z = torch.linspace(-9, 9, 20_001, dtype=DOUBLE)
bell = torch.exp(-(z**2) / 2) / (2 * math.pi) ** 0.5


def gain(R):
    """e_R of (10.10), by quadrature."""
    return torch.trapezoid(R * z * bell * torch.special.ndtr(z) ** (R - 1), z)


claim("10.10", 3 / (2 * math.pi**0.5), gain(3), tol=1e-8)
least = draws(400_000, 5, seed=12).min(1).values
claim("10.10", gain(5), -least.mean(), standard_error=least.std() / 400_000**0.5, note="R = 5")
print("five runs:", ", ".join(f"{v:.2f}" for v in five))
middle, deviation = np.mean(five), np.std(five, ddof=1)
interval = Estimate.of(five)
fact("mean, and its interval", [middle, interval.low, interval.high], digits=2)
fact("what the best of three would report, on average", middle - gain(3) * deviation, digits=2)
fact("what the best of five did report", min(five), digits=2)
fact("runs of each model to tell ten per cent",
     math.ceil(2 * (2 * deviation / (0.1 * middle)) ** 2))


# %% [markdown]
# With 355 images a run scatters by more than a quarter of its value; so many runs would be needed for ten per cent. With 50,000 images a run scatters far less. But a second *training* scatters too, and a list with one training per row does not show by how much.
#
# ## 10.5 Precision and recall, counted exactly
#
# (T.47) asks whether a point lies in *any* ball around the points of the other set. How often should it, if both sets come from one law? Let $y$ be a new point and $x_1,\dots,x_n$ real ones, all independent draws of one law with a density. Ball $i$ reaches to the $k$-th nearest of the other $n-1$ real points. So $y$ lies in it exactly if $y$ is among the $k$ nearest to $x_i$ of *$n$* points, the $n-1$ others and $y$. These $n$ points are alike; each has the same chance to be among the $k$ nearest, $\frac kn$. Summed over the $n$ balls,
#
# $$
# \mathbb E\,\#\{i:\;y\in\text{ball}_i\}\;=\;n\cdot\frac kn\;=\;k ,
# \tag{10.11}
# $$
#
# for *every* law with a density, every dimension and every $n$. The number of balls over $k$ is called **density** (Naeem and others, [2002.09797](https://arxiv.org/abs/2002.09797)); its mean is 1 for a perfect model. Precision has no such constant: it is the chance that the number is not zero, and that depends on how the balls overlap, so on dimension and $n$.
#
# The same argument gives their **coverage**: is there *any* generated point in the ball of a real point $x_i$? Among the $2n-1$ other points, $n-1$ real and $n$ generated, the $k$ nearest would all have to be real for it to stay empty:
#
# $$
# \mathbb E\,\text{coverage}\;=\;1-\frac{(n-1)(n-2)\cdots(n-k)}{(2n-1)(2n-2)\cdots(2n-k)}\;\approx\;1-2^{-k} .
# \tag{10.12}
# $$

# %%
def balls(cloud, k):
    """The distance of each point to its k-th nearest in the cloud."""
    return torch.cdist(cloud, cloud).sort(-1).values[..., k]          # [..., 0] is itself


def counts(real, new, k):
    """How many balls of real points hold each new point; how many new points each ball holds."""
    inside = (torch.cdist(new, real) <= balls(real, k)[..., None, :]).double()
    return inside.sum(-1), inside.sum(-2)


n, k, D, repeats = 30, 3, 5, 40_000
both = draws(2, repeats, n, D, seed=13).sinh()         # some law with heavy tails
per_point, per_ball = counts(both[0], both[1], k)
held, hit = per_point.mean(1), (per_ball > 0).double().mean(1)
claim("10.11", k, held.mean(), standard_error=held.std() / repeats**0.5,
      note="30 points in 5 dimensions")
exact = 1 - math.prod((n - j) / (2 * n - j) for j in range(1, k + 1))
claim("10.12", exact, hit.mean(), standard_error=hit.std() / repeats**0.5)
for D in (2, 24):
    found = [[precision_recall(draws(n, D, seed=13), draws(n, D, seed=14), k).precision
              for k in (1, 3, 10)] for n in (100, 800)]
    for n, row in zip((100, 800), found, strict=True):
        fact(f"precision of a perfect model, {D} dimensions, {n} points: k = 1, 3, 10", row,
             digits=2)

# %% [markdown]
# So a precision of 0.75 may be perfect. It says nothing without $k$, $n$, the features, and the value that *real* images reach.
#
# > **Pitfall: one stray point.** The ball of a point far away from the others reaches back to them, and covers everything on the way. One outlier among the *real* points, and junk passes as precise. One outlier among the *generated*, and nearly every real point counts as covered: noise gets nearly full recall. The diluted model of section 10.1 does. Density, an average over balls, is moved less by one of them.

# %%
cluster = draws(300, 2, seed=15)
stray = torch.cat([cluster, torch.tensor([[12.0, 0.0]], dtype=DOUBLE)])
junk = torch.tensor([6.0, 0.0], dtype=DOUBLE) + draws(301, 2, seed=16)      # where no data are
for name, points in (("without", cluster), ("with", stray)):
    fact(f"{name} one stray real point: precision of junk", precision_recall(points, junk, 3)
         .precision, digits=2)
    fact("    its density", counts(points, junk, 3)[0].mean() / 3, digits=2)
real_part, spoilt = perfect.sample(400, seeded(17)), poor.sample(400, seeded(18))
found = precision_recall(real_part, spoilt, 3)
honest = precision_recall(real_part, perfect.sample(400, seeded(19)), 3)
fact("perfect model of the digits' oracle: precision, recall", [*honest], digits=2)
fact("the same, diluted to one in a hundred: precision", found.precision, digits=1)
fact("    recall", found.recall, digits=2)


# %% [markdown]
# **Exercise 10.4** (3 points, 15 minutes, ●●○) — *Density.* Write `density(real, new, k)` that returns one number, the mean over the rows of `new` of the number of balls of `real` that hold it, divided by $k$. `real` is $(n,D)$, `new` is $(m,D)$. The ball of a real point reaches to its $k$-th nearest *other* real point, and its edge belongs to it.

# %%
def density(real, new, k):
    """The mean number of real points' balls around a new point, over k."""
    raise NotImplementedError("your turn")


check("10.4", density)

# %% [markdown]
# ## 10.6 Would you catch a copier?
#
# A model that copies training images and disturbs them by noise of width $b$: which numbers notice, and up to which $b$? We let it play against all of them: the distance and its floor, precision and recall (and those of real images), and the two tests for copies of the toolbox, (T.48) and the share of near-copies.

# %%
widths = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6)
board = {}
for b in widths:
    jittered = quantise(copies + b * torch.randn(copies.shape, generator=seeded(20)),
                        DIGITS_LEVELS)
    f, found = features(jittered), memorisation(jittered, train, heldout)
    board[b] = (frechet_distance(f, real), *precision_recall(real, f, 3), found.share_nearer,
                found.share_copied)
for b, row in board.items():
    fact(f"b = {b}: distance, precision, recall, share nearer, near-copies", row, digits=2)
honest = measured("digits")["full_chain"]["posterior"]
fact("real images: distance, precision, recall", [honest[name]["mean"] for name in (
    "floor", "real_precision", "real_recall")], digits=2)

fig, axes = figure(1, 2, row_height=2.7)
names = ("distance", "precision", "recall", "share nearer", "near-copies")
table = dict(zip(names, zip(*board.values(), strict=True), strict=True))
axes[0].plot(widths, table["distance"], "o-", ms=4, color=BLUE)
axes[0].axhline(honest["floor"]["mean"], color=GREY, ls="--")
axes[0].set(xlabel="width $b$ of the disturbance", ylabel="Fréchet distance", ylim=(0, None))
for name, colour in zip(names[1:], (GREEN, ORANGE, GREY, VERMILLION), strict=True):
    axes[1].plot(widths, table[name], "o-", ms=4, color=colour, label=name)
axes[1].set(xlabel="width $b$ of the disturbance", ylim=(-0.03, 1.03))
axes[1].legend(fontsize=8, loc="lower left")
show(fig, """Scores of copies disturbed by noise of growing width. Left, the distance starts at
the dashed floor of real images and rises. Right, precision and recall start near 0.9;
precision falls, recall hardly. The share nearer and the near-copies start at one and fall to zero,
near-copies first.""")

# %% [markdown]
# *From which disturbance on is a copier safe?* Without disturbance it stands at the floor, with the precision and recall of real images: three scores out of five call it perfect. Only the two tests made for copies see it, and they see it while the disturbance is small. (A model without copies has a share nearer of 0.5. At $b=0.6$ it is far below: so disturbed, the copies lie farther from the training images than new images do.) By the time both go blind, the pictures are visibly noisy and the distance has left the floor. So far, so good: together the numbers leave the copier no room. But it has two better disguises.
#
# **Another distance.** Nearness in pixels means little when a picture is moved. Copies shifted by one pixel are not near to anything. **A small share.** A model that copies one picture in a thousand, and invents the others, is rarely seen. If none of $n$ samples is a copy, what share $q$ of copies cannot be excluded? The chance to see none is $(1-q)^n$. It falls below 2.5 % (half of the 5 % that a 95 % interval leaves out) where
#
# $$
# (1-q)^n\;=\;0.025 ,\qquad q\;=\;1-0.025^{1/n}\;\approx\;\frac{3.7}{n} .
# \tag{10.13}
# $$

# %%
claim("10.13", 1 - 0.025 ** (1 / count), float(scipy.stats.beta.ppf(0.975, 1, count)),
      note="the exact limit for 0 of n (Clopper and Pearson)")
fact("share of copies that 355 samples without any cannot exclude", 1 - 0.025 ** (1 / count),
     digits=2)
fact("chance that 355 samples show no copy: one in 300 copied, one in 1000",
     [(1 - q) ** count for q in (1 / 300, 1 / 1000)], digits=2)
shifted = torch.nn.functional.pad(copies, (1, 0, 0, 0), value=-1)[..., :-1]
found = memorisation(shifted, train, heldout)
fact("copies moved by a pixel: share nearer, near-copies",
     [found.share_nearer, found.share_copied], digits=1)
hidden = torch.arange(count) % 33 == 0                 # eleven copies among our own samples
partly = torch.where(hidden[:, None, None, None], copies, quantise(ours, DIGITS_LEVELS))
for name, images in (("no copies", quantise(ours, DIGITS_LEVELS)), ("3 % of copies", partly)):
    found = memorisation(images, train, heldout)
    fact(f"{name}: near-copies", found.share_copied, digits=2)
    fact("    share nearer", found.share_nearer, digits=1, uncertainty=1e-2)

# %% [markdown]
# The first disguise works completely: a test for copies is as good as its distance. The second is seen here, because three in a hundred of 355 is about eleven. At one in three hundred, 355 samples show no copy in three cases of ten; at one in a thousand, in seven of ten. Large models have been caught by generating and filtering very many samples, which gave back over a thousand training images (Carlini and others, [2301.13188](https://arxiv.org/abs/2301.13188)). And a study of seventeen scores found none that separates copying from other failures (Stein and others, [2306.04675](https://arxiv.org/abs/2306.04675)).
#
# ## 10.7 Ten questions for a table
#
# | | ask | because | shown in |
# |---|---|---|---|
# | 1 | Compared with which real images: trained on, or held out? | against the training set copies win | [10.6](#10.6-Would-you-catch-a-copier?) |
# | 2 | How many samples, on both sides, in *every* row? | the bias falls like $1/n$ and grows like $F^2$ | [10.2](#10.2-The-bias-of-a-Fréchet-distance,-exactly) |
# | 3 | Which features, which resizing and rounding? Same code for all rows? | what the features do not tell apart is not seen | [10.3](#10.3-What-it-cannot-see) |
# | 4 | What do real images score? | most of a small distance is counting error | [10.2](#10.2-The-bias-of-a-Fréchet-distance,-exactly) |
# | 5 | How many runs, of sampling and of training? Mean, or best? | the best of three is 0.85 deviations better than it is | [10.4](#10.4-How-sure-is-a-number?) |
# | 6 | Precision and recall: which $k$ and $n$, and what do real images reach? | a perfect model has no fixed precision; one stray point spoils it | [10.5](#10.5-Precision-and-recall,-counted-exactly) |
# | 7 | Likelihood: of densities or levels, in which unit, exact or a bound? | seven bits lie between two units | [10.1](#10.1-Good-bits,-bad-pictures,-and-the-reverse) |
# | 8 | Do likelihood and samples both appear? | either can be perfect alone | [10.1](#10.1-Good-bits,-bad-pictures,-and-the-reverse) |
# | 9 | Were copies looked for, in which distance, how many samples? | precision, recall and distance like copies | [10.6](#10.6-Would-you-catch-a-copier?) |
# | 10 | Equal cost: parameters, training, network calls? And on which numbers were steps, guidance and checkpoint chosen? | the best of several grids is flattered by having been chosen | [9.9](09_ddim.ipynb#9.9-Steps-against-quality,-measured) |
#
# **Exercise 10.5** (3 points, 20 minutes, ●●○) — *A table to distrust.* A paper shows this:
#
# | model | FID ↓ | bits/dim ↓ | precision ↑ | calls |
# |---|---|---|---|---|
# | baseline (our run) | 5.31 | 3.75 | 0.68 | 1000 |
# | **ours** | **4.98** | **3.70** | **0.71** | 50 |
#
# Its text says: "FID of ours: 50,000 samples against the training set, best of three; of the baseline: 10,000 samples against the test set. Bits per dimension: the variational bound for the baseline, the ODE's likelihood for ours. Precision with $k=3$ for the baseline and $k=5$ for ours. No copies were found: the nearest training images in pixel distance look different." Name every comparison that the table does not support, say for each in which direction the difference pushes the number, and say what you would run instead.

# %%
verdict = ""  # your words


check("10.5", verdict)

# %% [markdown]
# ## 10.8 Door: learned variances
#
# From here on each section opens a door, with one cell that runs. What lies behind is the reader's to explore; the frame is known.
#
# Chapter 4 found the best variance of a reverse step, $\sigma_*^2$, between $\tilde\beta_{t\mid s}$ and $\beta_{t\mid s}$ (for data of variance at most one), and that on short steps the two bounds nearly agree, except close to the data. On ten long steps they do not. Improved DDPM lets the network choose a share $f$ between the two logarithms, and trains it by a little of the bound, (5.34). Where the mean is exact, the bound's term is least at $\sigma_*^2$, which is the share
#
# $$
# f_*\;=\;\frac{\log\sigma_*^2-\log\tilde\beta_{t\mid s}}{\log\beta_{t\mid s}-\log\tilde\beta_{t\mid s}} ,
# \qquad
# L_{t-1}(\sigma^2)-L_{t-1}(\sigma_*^2)\;=\;\frac D2\bigg[\frac{\sigma_*^2}{\sigma^2}-1-\log\frac{\sigma_*^2}{\sigma^2}\bigg] .
# \tag{10.14}
# $$
#
# (For the second: $x_s$ misses the exact mean by $D\sigma_*^2$ in the mean square, so that the cost in nats is $\frac D2[\log2\pi\sigma^2+\sigma_*^2/\sigma^2]$ plus what does not depend on $\sigma$.) The cell finds the best share by going down the gradient of the library's bound, with nothing learned but one number per step; then adds up what the two fixed choices lose in the nine steps that have a choice (at $t=1$, $\tilde\beta$ is 0).

# %%
ten_steps = schedule.respace(10, "trailing")
learned = GaussianDiffusion(ten_steps, variance="learned")
points = humps.sample(20_000, seeded(21))
x = torch.linspace(-7, 7, 4001, dtype=DOUBLE)[:, None]
lost, shares = {"posterior": 0.0, "beta": 0.0}, []
for t in range(2, 11):
    weight = humps.marginal(ten_steps, t).log_prob(x).exp()
    within = humps.reverse(ten_steps, x, t, t - 1).covariance[:, 0, 0]
    best = torch.trapezoid(weight * within, x[:, 0])                 # (4.28)
    low, high = ten_steps.posterior_variance[t], ten_steps.beta[t]
    share = (best.log() - low.log()) / (high.log() - low.log())
    raw = torch.stack([torch.zeros(1, dtype=DOUBLE), 2 * share[None] - 1], 1)
    claim("10.14", best, learned.reverse(raw, x[:1], t).variance[0, 0], note=f"t = {t}")
    shares.append(share)
    for name, variance in (("posterior", low), ("beta", high)):
        lost[name] += 0.5 * (best / variance - 1 - (best / variance).log())
fact("best share f between the logarithms, t = 2, 4, 6, 8, 10", shares[::2], digits=2)
fact("nats lost in nine steps, t = 2 to 10: with β̃, with β", list(lost.values()), digits=2)

exact_noise = humps.denoiser(schedule)                               # told the original step
raw = torch.zeros(11, dtype=DOUBLE, requires_grad=True)              # one number for each step


def guess(x_t, t):
    """The exact noise, and the learned number of the step (t is the original step number)."""
    return torch.cat([exact_noise(x_t, t), raw[t // 100, None]], 1)


optimiser = torch.optim.Adam([raw], lr=0.05)
g = seeded(22)
for _ in range(150):
    t = sample_steps(900, 9, g, "stratified") + 1
    x0 = points[torch.randint(len(points), (900,), generator=g)]
    eps = torch.randn(900, 1, generator=g, dtype=DOUBLE)
    loss = hybrid_loss(guess, learned, x0, t, eps, levels=None, weight=1.0).mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
apart = (0.5 * (raw[2:].detach() + 1) - torch.stack(shares)).abs().max()
print("the hybrid loss found the same shares, within 0.1:", bool(apart < 0.1))


# %% [markdown]
# The choice of a network is finer still: a variance for each coordinate *and each* $x_t$. What it gains in likelihood is in Improved DDPM's tables.
#
# ## 10.9 Door: velocity, and weights
#
# $\varepsilon$, $x_0$ and $v$ are one prediction under three names, and errors convert by (4.47). Squared and averaged, with $\ell_t^{\varepsilon}$, $\ell_t^{x_0}$, $\ell_t^{v}$ for the three losses at one step,
#
# $$
# \ell_t^{v}\;=\;\frac{\ell_t^{\varepsilon}}{\bar\alpha_t}\;=\;\frac{\ell_t^{x_0}}{1-\bar\alpha_t} ,
# \qquad
# \ell_t^{x_0}\;=\;\frac{\ell_t^{\varepsilon}}{\mathrm{SNR}_t} .
# \tag{10.15}
# $$
#
# So *which quantity the network puts out* and *how steps are weighted* are two choices that papers often change together. Salimans and Ho ([2202.00512](https://arxiv.org/abs/2202.00512)) introduced $v$, with which a step from $\bar\alpha_t\approx0$ is harmless, (4.47). **Min-SNR** (Hang and others, [2303.09556](https://arxiv.org/abs/2303.09556)) weights the loss of $x_0$ by $\min(\mathrm{SNR}_t,\gamma)$. With the weight $\mathrm{SNR}_t$ it would be the simple loss, by (10.15); near the data that weight is cut at $\gamma$. So it goes even further from the bound than the simple loss does. The same weighting for the other two outputs follows from (10.15), with $1-\bar\alpha_t=1/(\mathrm{SNR}_t+1)$:
#
# $$
# \min(\mathrm{SNR}_t,\gamma)\;\ell_t^{x_0}\;=\;\frac{\min(\mathrm{SNR}_t,\gamma)}{\mathrm{SNR}_t}\;\ell_t^{\varepsilon}\;=\;\frac{\min(\mathrm{SNR}_t,\gamma)}{\mathrm{SNR}_t+1}\;\ell_t^{v} .
# \tag{10.16}
# $$

# %%
@torch.no_grad()
def asked_for(kind):
    """The shipped network, its answer converted to eps, x0 or v."""
    def denoise(x_t, t):
        eps = network(x_t.float(), t).double()
        return getattr(diffusion.predict(eps, x_t, t), kind)
    return denoise


t = torch.tensor([1, 20, 100, 300, 600, 900, 1000]).repeat_interleave(20)
x0, eps = heldout[:140].double(), draws(140, 1, 8, 8, seed=23)
found = {kind: simple_loss(asked_for(kind), GaussianDiffusion(schedule, prediction=kind),
                           x0, t, eps) for kind in ("eps", "x0", "v")}
bars, snr, gamma = alpha_bar[t], schedule.snr[t], 5.0
claim("10.15", found["eps"] / bars, found["v"], tol=1e-8, note="the library's loss for v")
claim("10.15", found["x0"] / (1 - bars), found["v"], tol=1e-8)
cut = snr.clamp(max=gamma)
claim("10.16", cut / snr * found["eps"], cut * found["x0"], tol=1e-8)
claim("10.16", cut / (snr + 1) * found["v"], cut * found["x0"], tol=1e-8)
low = schedule.snr[[1, 100, 300, 1000]]
fact("weight of the v-loss at t = 1, 100, 300, 1000", low.clamp(max=5) / (low + 1), digits=2)
slip = (low + 1).clamp(max=5) / (low + 1)
fact("    with the slip below", slip, digits=2)


# %% [markdown]
# > **Pitfall: one too many.** A widely used library had $\min(\mathrm{SNR}_t+1,\gamma)/(\mathrm{SNR}_t+1)$ for the $v$-loss in its training scripts (diffusers issue 5654, mended in pull request 6307). Near the data the two are alike. Near the noise one goes to 0 and the other to 1: the last lines print by how much. Training runs either way, pictures come either way. An identity like (10.16) tells them apart in a line.
#
# **Exercise 10.6** (2 points, 10 minutes, ●●○) — *Three weights.* Write `min_snr(alpha_bar_t, gamma)` that returns the three weights of min-SNR as a triple, for the losses of $x_0$, $\varepsilon$ and $v$, in this order. `alpha_bar_t` is a vector.

# %%
def min_snr(alpha_bar_t, gamma):
    """The weights of the losses of x0, eps and v."""
    raise NotImplementedError("your turn")


check("10.6", min_snr)


# %% [markdown]
# ## 10.10 Door: the cosine schedule at few steps
#
# [Chapter 2](02_forward_process.ipynb#2.6-Two-schedules) said what the cosine schedule does to the signal-to-noise ratio. What does that buy when only ten steps are taken? For Gaussian data and the perfect predictor (9.18) answers exactly: run it with either schedule's $\bar\alpha$. Everything else is equal: data, sampler ($\eta=0$), rule (trailing), number of steps.

# %%
def end_deviation(chain, S, V):
    """√R_0 of (9.18) with η = 0, after S trailing steps from N(0, 1)."""
    bars, R = chain.alpha_bar, torch.ones((), dtype=DOUBLE)
    steps = [*chain.steps(S, "trailing").flip(0).tolist(), 0]
    for t, s in pairwise(steps):
        factor = (bars[s] * bars[t]).sqrt() * V + ((1 - bars[s]) * (1 - bars[t])).sqrt()
        R = (factor / (bars[t] * V + 1 - bars[t])) ** 2 * R
    return R.sqrt()


cosine = NoiseSchedule.cosine(T=1000)
chains = {"linear": schedule, "cosine": cosine}
for name, chain in chains.items():
    law = GaussianData([0.0], [[0.25]])
    walked = solve(law.denoiser(chain), GaussianDiffusion(chain), (1, 1), solver="ddim", steps=10,
                   spacing="trailing", x_T=torch.ones(1, 1, dtype=DOUBLE)).result()
    assert abs(walked[0, 0] - end_deviation(chain, 10, 0.25)) < 1e-9       # the library's walk
    snr = chain.snr[chain.steps(10, "trailing")]
    fact(f"{name}: of ten trailing steps, with SNR between 1/100 and 100",
         int(((snr > 0.01) & (snr < 100)).sum()))
    for V in (0.25, 0.04):
        fact(f"    W_2 for data of deviation {V**0.5:g}: 5, 10, 20, 50 steps",
             [abs(end_deviation(chain, S, V) - V**0.5) for S in (5, 10, 20, 50)], digits=2)


# %% [markdown]
# The cosine schedule spends more of its steps where data and noise are of comparable size, and its walk comes out nearer to the data at every number of steps printed. But compare fairly. A schedule and a *grid* on a schedule are the same kind of choice when sampling: only the sequence of $\bar\alpha$ visited counts, (9.16). A grid that is even in something else, on the linear schedule, can visit the same levels. What the schedule alone decides is how often *training* sees each level.
#
# ## 10.11 Door: the continuous view
#
# Let the chain become infinitely fine. With $\kappa=t/T$ and $\beta_t=\beta(\kappa)/T$, one step (2.2) is
# $x_t-x_{t-1}=(\sqrt{1-\beta/T}-1)\,x_{t-1}+\sqrt{\beta/T}\;\varepsilon_t$. The first factor is $-\frac{\beta}{2T}$ up to $1/T^2$. Independent noises of variance $\beta\,d\kappa$ in each stretch $d\kappa$: that is what the increments of a *Brownian motion* $B$ are, times $\sqrt\beta$. In the limit,
#
# $$
# dx\;=\;-\tfrac12\,\beta(\kappa)\,x\,d\kappa+\sqrt{\beta(\kappa)}\;dB ,
# \qquad
# T\big(\sqrt{1-\beta/T}-1\big)\;\to\;-\tfrac12\beta .
# \tag{10.17}
# $$
#
# Song and others ([2011.13456](https://arxiv.org/abs/2011.13456)) call it the variance-preserving stochastic differential equation; its $\bar\alpha$ is the limit of the product:
#
# $$
# \bar\alpha(\kappa)\;=\;\exp\Big(-\int_0^\kappa\beta(\kappa')\,d\kappa'\Big) ,
# \qquad \bar\alpha_{\kappa T}=\bar\alpha(\kappa)+O(1/T) .
# \tag{10.18}
# $$
#
# **The ODE is the one we know.** Chapter 9's (9.24) says $du/dr=\hat\varepsilon$ for $u=x/\sqrt{\bar\alpha}$, $r^2=1/\bar\alpha-1$. Differentiate by $\kappa$: $(\log\bar\alpha)'=-\beta$, and $2rr'=\beta/\bar\alpha$. The product rule for $x=\sqrt{\bar\alpha}\,u$ gives $x'=-\frac12\beta x+\sqrt{\bar\alpha}\,r'\,\hat\varepsilon=-\frac12\beta x+\frac\beta{2\sqrt{1-\bar\alpha}}\,\hat\varepsilon$, and with (4.44), for $q_\kappa$ the law of $x$ at the time $\kappa$,
#
# $$
# \frac{dx}{d\kappa}\;=\;-\tfrac12\,\beta(\kappa)\,\big[x+\nabla\log q_\kappa(x)\big] ,
# \tag{10.19}
# $$
#
# the *probability flow ODE* of that paper. And there is an SDE that runs backward through the same laws $q_\kappa$, with a noise term $\sqrt\beta\,dB$ of its own; it is in Song and others, and not derived here. One step of length $1/T$ of it has the mean
#
# $$
# x+\frac{\beta}{2T}\,x+\frac\beta T\,\nabla\log q_\kappa(x)\;=\;\frac{1}{\sqrt{\alpha_t}}\Big(x-\frac{\beta_t}{\sqrt{1-\bar\alpha_t}}\,\varepsilon^*(x,t)\Big)+O(1/T^2) .
# \tag{10.20}
# $$
#
# On the right stands algorithm 2 of chapter 7. DDPM is a solver of the backward SDE, DDIM one of the ODE; the forward process, the score and the network are shared.

# %%
def beta(kappa):
    """β(κ), for which T = 1000 gives almost DDPM's own schedule."""
    return 0.1 + 19.9 * kappa


def bar(kappa):
    """(10.18)."""
    return torch.exp(-(0.1 * kappa + 9.95 * kappa**2))


lengths = (250, 500, 1000, 2000, 4000)
built = [NoiseSchedule.from_betas(beta(torch.arange(1, n + 1, dtype=DOUBLE) / n) / n)
         for n in lengths]
middle = torch.tensor(0.5, dtype=DOUBLE)
claim("10.17", (lengths, [abs(n * ((1 - beta(0.5) / n) ** 0.5 - 1) + beta(0.5) / 2)
                          for n in lengths]), -1.0, relation="order")
claim("10.18", (lengths, [abs(a.alpha_bar[a.T // 2] - bar(middle)) for a in built]), -1.0,
      relation="order", note="the chain's ᾱ, half way")
x = torch.linspace(-2, 2, 9, dtype=DOUBLE)[:, None]
errors = []
for a in built:
    t = a.T // 2
    score, step = humps.marginal(a, t).score(x), beta(0.5) / a.T
    mean = GaussianDiffusion(a).reverse(humps.eps(a, x, t), x, t).mean
    errors.append((x + step / 2 * x + step * score - mean).abs().max())
claim("10.20", (lengths, errors), -2.0, relation="order", note="the library's step, per step")


def below(x, kappa):
    """P(x_κ ≤ x) for the humps: mixtures of Φ."""
    centre = bar(kappa).sqrt() * humps.means[:, 0]
    width = (bar(kappa) * humps.covariances[:, 0, 0] + 1 - bar(kappa)).sqrt()
    return (humps.weights * torch.special.ndtr((x[:, None] - centre) / width)).sum(1)


place, clock = x[:, 0].clone().requires_grad_(), torch.full((9, 1), 0.5, dtype=DOUBLE)
clock.requires_grad_()
by_place, by_time = torch.autograd.grad(below(place, clock).sum(), (place, clock))
moves = -by_time[:, 0] / by_place                      # how the quantile through x moves
level = NoiseSchedule.from_alpha_bar([1.0, bar(middle)])
claim("10.19", -beta(0.5) / 2 * (x + humps.marginal(level, 1).score(x))[:, 0], moves, tol=1e-8,
      note="against the exact quantile map (9.28)")

# %% [markdown]
# What the continuous view adds: any solver for SDEs and ODEs can be used, and an ODE has an exact likelihood by the change of variables. What it does not add is another model.
#
# ## 10.12 Door: flow matching
#
# Flow matching, which chapter 1 has met, joins noise and data by straight lines, and learns the velocity. Its clock $\rho$ runs the other way, from noise at $\rho=0$ to data at $\rho=1$:
#
# $$
# x_\rho\;=\;(1-\rho)\,\varepsilon+\rho\,x_0\;=\;\sqrt{\rho^2+(1-\rho)^2}\;\,x_t ,
# \qquad
# \rho=\frac{\sqrt{\bar\alpha_t}}{\sqrt{\bar\alpha_t}+\sqrt{1-\bar\alpha_t}} .
# \tag{10.21}
# $$
#
# The second equation is the whole relation. Both $x_\rho$ and $x_t$ are signal plus noise, and two such sums with one signal-to-noise ratio differ by a factor only. Choose $t$ so that $\sqrt{\bar\alpha_t}/\sqrt{1-\bar\alpha_t}=\rho/(1-\rho)$; that is the $\rho$ on the right. The squares of $\sqrt{\bar\alpha_t}$ and $\sqrt{1-\bar\alpha_t}$ sum to one, those of $\rho$ and $1-\rho$ to $\rho^2+(1-\rho)^2$: hence the factor.
#
# A line has the velocity $x_0-\varepsilon$. What a network can learn of it is the mean, given the point, and *that mean a noise predictor already knows*:
#
# $$
# u(x_\rho,\rho)\;=\;\mathbb E[x_0-\varepsilon\mid x_\rho]\;=\;\hat x_0-\hat\varepsilon\;=\;\frac{\hat x_0-x_\rho}{1-\rho} .
# \tag{10.22}
# $$
#
# (The last form puts $\hat\varepsilon=(x_\rho-\rho\,\hat x_0)/(1-\rho)$ in.) So one network serves both: scale the input, ask, subtract. And the samplers? Euler's method for $dx/d\rho=u$ takes $x_\rho=(1-\rho)\,\hat\varepsilon+\rho\,\hat x_0$ to
#
# $$
# x_{\rho'}\;=\;x_\rho+(\rho'-\rho)\,u\;=\;(1-\rho')\,\hat\varepsilon+\rho'\,\hat x_0 ,
# \tag{10.23}
# $$
#
# which, scaled back by (10.21), is $\sqrt{\bar\alpha_s}\,\hat x_0+\sqrt{1-\bar\alpha_s}\,\hat\varepsilon$: the step (9.14) of DDIM. **Euler's method on the straight path is DDIM**, to the last digit, on the grid with the same signal-to-noise ratios.

# %%
t, s = 600, 450
x0, eps = draws(2, 6, 3, seed=24)
rho, later = (alpha_bar[k].sqrt() / (alpha_bar[k].sqrt() + (1 - alpha_bar[k]).sqrt())
              for k in (t, s))
size, later_size = ((r**2 + (1 - r) ** 2).sqrt() for r in (rho, later))
claim("10.21", (1 - rho) * eps + rho * x0, size * diffusion.q_sample(x0, t, eps))
claim("10.21", torch.stack([rho, later]), fm.rho_from_alpha_bar(alpha_bar[[t, s]]))

point = torch.linspace(-1.5, 1.5, 7, dtype=DOUBLE)
data = torch.linspace(-3, 3, 12_001, dtype=DOUBLE)
weight = humps.log_prob(data[:, None]) - (point[:, None] - rho * data) ** 2 / (2 * (1 - rho) ** 2)
weight = weight.softmax(1)                             # q(x_0 | x_ρ) on a fine grid
line_velocity = (data - (point[:, None] - rho * data) / (1 - rho))         # x_0 − ε on each line
guess_eps = humps.eps(schedule, (point / size)[:, None], t)
guess_x0 = diffusion.predict(guess_eps, (point / size)[:, None], t).x0
claim("10.22", (guess_x0 - guess_eps)[:, 0], (weight * line_velocity).sum(1), tol=1e-8,
      note="ε-oracle, against a sum over all lines through the point")
u = fm.velocity_from_x0(guess_x0, point[:, None], rho)
claim("10.22", guess_x0 - guess_eps, u, note="the last form, from the library")
step = diffusion.reverse(guess_eps, (point / size)[:, None], t, s, eta=0.0).mean
claim("10.23", point[:, None] + (later - rho) * u, later_size * step, note="Euler is DDIM")

# the digits network, walked as a flow: ten steps of Euler in ρ
x_T = torch.randn(8, 1, 8, 8, generator=seeded(25), dtype=DOUBLE)
grid = [*schedule.steps(10, "trailing").flip(0).tolist(), 0]
rhos = fm.rho_from_alpha_bar(alpha_bar[grid])
x = (rhos[0] ** 2 + (1 - rhos[0]) ** 2).sqrt() * x_T
for t, now, then in zip(grid, rhos, rhos[1:], strict=False):
    inside = x / (now**2 + (1 - now) ** 2).sqrt()
    with torch.no_grad():
        eps = network(inside.float(), torch.full((8,), t)).double()
    x = x + (then - now) * (x - eps) / now             # (10.22), from ε̂: u = (x_ρ − ε̂)/ρ
ddim = solve(network, diffusion, x_T.shape, solver="ddim", steps=10, spacing="trailing",
             x_T=x_T.float()).result()
print("flow and DDIM give the same digits, to 0.001:", bool((x - ddim).abs().max() < 1e-3))

# %% tags=["hide-input"]
starts = torch.linspace(-2.2, 2.2, 15, dtype=DOUBLE)[:, None]
walk = solve(humps.denoiser(schedule), diffusion, starts.shape, solver="ddim", steps=250,
             spacing="quadratic", x_T=starts)
levels, states = [T], [starts[:, 0]]
for state in walk:
    levels.append(state.t)
    states.append(state.x[:, 0])
path = torch.stack(states)
ticks = fm.rho_from_alpha_bar(alpha_bar[levels])
fig, axes = figure(1, 2, sharey=True, row_height=2.8)
axes[0].plot(levels, path, color=BLUE, lw=0.9)
axes[0].set(xlim=(1000, 0), xlabel="$t$", ylabel="state", title="$x_t$")
axes[1].plot(ticks, (ticks**2 + (1 - ticks) ** 2).sqrt()[:, None] * path, color=ORANGE, lw=0.9)
axes[1].set(xlim=(0, 1), xlabel=r"$\rho$", title=r"$x_\rho$")
show(fig, """The same fifteen paths twice. Left against t from 1000 to 0: they stay nearly level
for long and bend sharply near the end, towards the two humps. Right against ρ from 0 to 1: they
contract at once and run to the humps in gentle curves.""")
passed = (T - torch.tensor(levels, dtype=DOUBLE)) / T
bend = (path[:, 0] - torch.lerp(path[0, 0], path[-1, 0], passed)).abs()
scaled = (ticks**2 + (1 - ticks) ** 2).sqrt() * path[:, 0]
straight = (scaled - torch.lerp(scaled[0], scaled[-1], ticks)).abs()
fact("largest distance of the lowest path from its chord: in t, in ρ",
     [bend.max(), straight.max()], digits=2)


# %% [markdown]
# *What does flow matching change?* The clothes: left, the paths of chapter 9's ODE; right, the same paths in the other clock and scale. They look straighter there. Euler's method does not care, as (10.23) shows: with the same levels visited, the samples are the same. What differs in practice is the default grid, even in $\rho$, and the weighting of the loss: from $u=(x_\rho-\hat\varepsilon)/\rho$ the squared velocity error is the squared noise error over $\rho^2$, averaged over uniform $\rho$. These are choices, and they can be made for either.
#
# **Exercise 10.7** (3 points, 15 minutes, ●●○) — *One network, two names.* Write `as_flow(x_t, eps, alpha_bar_t)` that returns the triple of $\rho$, $x_\rho$ and the velocity $u(x_\rho,\rho)$ that belong to the state `x_t`, the guess `eps` of its noise, and `alpha_bar_t`, a Python float between 0 and 1.

# %%
def as_flow(x_t, eps, alpha_bar_t):
    """The clock ρ, the state x_ρ and the velocity u."""
    raise NotImplementedError("your turn")


check("10.7", as_flow)


# %% [markdown]
# ## 10.13 Door: latent diffusion
#
# Most pixels of a large picture say little that their neighbours have not said. **Latent diffusion** (Rombach and others, [2112.10752](https://arxiv.org/abs/2112.10752)) first learns a short code for the pieces of a picture, then runs a diffusion on the *codes*, and decodes at the end. We have both parts: the VAE of chapter 1 and the U-Net of chapter 6. Cut a digit into four patches of $4\times4$ pixels; a VAE turns each patch into five numbers; the codes form a "picture" of $2\times2$ with five channels, 20 numbers instead of 64.
#
# What can a code of $m$ numbers keep of a patch of $n$ pixels? For a *linear* code the answer is exact. Subtract the mean patch first. With the eigenvalues $\lambda_1\ge\dots\ge\lambda_n$ of the patches' covariance, the best reconstruction keeps the first $m$ eigenvectors (principal components), and misses
#
# $$
# \tfrac1n\,\mathbb E\lVert x-\hat x\rVert^2\;=\;\tfrac1n\,(\lambda_{m+1}+\dots+\lambda_n) ,
# \tag{10.24}
# $$
#
# for the mean square along an eigenvector is its eigenvalue, and what is dropped is what is missed. No other $m$ directions keep more: a linear code gives back points of a space of $m$ dimensions, at best the projection onto it, and that keeps $\sum_i\lambda_ip_i$, with $p_i$ the squared length of the projected $i$-th eigenvector; each $p_i$ is at most 1 and their sum, the trace of the projection, is $m$, so it is at most $\lambda_1+\dots+\lambda_m$. That is a yardstick for the VAE. And note the new rule of the game: *a diffusion on the codes can at best give each picture back as the decoder would*. The floor moves up, to what real images score after encoding and decoding.

# %%
def patches(images, side):
    """(N, 1, 8, 8) to its patches of side × side pixels, row by row: (N, places, side²)."""
    n = 8 // side
    return images.reshape(-1, n, side, n, side).transpose(2, 3).reshape(-1, n * n, side**2)


def together(pieces, side):
    """The inverse of `patches`."""
    n = 8 // side
    return pieces.reshape(-1, n, n, side, side).transpose(2, 3).reshape(-1, 1, 8, 8)


assert torch.equal(together(patches(train, 4), 4), train)
pieces = patches(train, 4).reshape(-1, 16).double()
centred = pieces - pieces.mean(0)
values, vectors = torch.linalg.eigh(centred.T @ centred / len(pieces))
kept = vectors[:, 11:]                                 # the five largest come last
missed = (centred - centred @ kept @ kept.T).square().mean()
claim("10.24", values[:11].sum() / 16, missed, note="principal components of our patches")
fact("mean squared error per pixel, best linear code", missed, digits=2)
unseen_pieces = patches(heldout, 4).double() - pieces.mean(0)
linear = together(unseen_pieces @ kept @ kept.T + pieces.mean(0), 4)
fact("held-out digits, encoded and decoded by it: Fréchet distance", judge(linear), digits=2)

vae = VAE(16, width=64, latent=5, generator=seeded(26))
vae.fit(pieces.float(), steps=600, batch_size=256, generator=seeded(27))


@torch.no_grad()
def encode(images):
    """Mean codes, (N, 5, 2, 2)."""
    mean = vae.encode(patches(images, 4).reshape(-1, 16))[0]
    return mean.reshape(-1, 2, 2, 5).permute(0, 3, 1, 2)


@torch.no_grad()
def decode(codes):
    """Pictures of codes, (N, 1, 8, 8)."""
    return together(vae.decoder(codes.permute(0, 2, 3, 1).reshape(-1, 5)), 4)


codes = encode(train)
scale = codes.std((0, 2, 3), keepdim=True)             # each channel to deviation 1, like x_0
back = decode(encode(heldout))
assert (back - heldout).square().mean() < missed       # not linear, and better
assert judge(back) < 0.6 * judge(linear)
print("the VAE's codes are better: error and distance are well below")


def fit(net, process, data, steps, seed, rate=2e-3):
    """A fixed number of steps down the simple loss; the mean of the last fifty losses."""
    g, found = seeded(seed), []
    optimiser = torch.optim.AdamW(net.parameters(), lr=rate, fused=True)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = torch.randint(len(data), (64,), generator=g)
        t = sample_steps(64, T, g, "stratified")
        noise = torch.randn(64, *data.shape[1:], generator=g)
        loss = simple_loss(net, process, data[rows], t, noise).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        slower.step()
        found.append(loss.item())
    return sum(found[-50:]) / 50


small = UNet(replace(PRESETS["digits"], image_size=2, in_channels=5, out_channels=5,
                     channel_multipliers=(1, 1), attention_resolutions=(2,), norm_groups=4),
             seeded(28))
by_velocity = GaussianDiffusion(schedule, prediction="v")
fact("parameters: U-Net on codes, U-Net on pixels",
     [count_parameters(small), count_parameters(network)])
last = fit(small, by_velocity, codes / scale, 300, 29, rate=4e-3)
drawn = decode(scale * generate(small.eval(), by_velocity, (count, 5, 2, 2), steps=20, eta=0.0,
                                spacing="trailing", generator=seeded(30)))
apart = decode(scale * torch.randn(count, 5, 2, 2, generator=seeded(37)))
assert judge(drawn) < 0.3 * judge(apart)
print("codes drawn by diffusion: at most 0.3 times the distance of independent codes")
show_images(torch.cat([heldout[:10], back[:10], drawn[:10], apart[:10]]), """Four rows of ten
digits. Held-out digits; the same after encoding and decoding, hardly different; new ones, drawn as
codes and decoded, of which some can be read; and four independent patches each, which make no
digit.""", row_labels=["held out", "decoded", "drawn", "independent"])


# %% [markdown]
# *What does each part do?* The VAE knows patches: the second row is hardly different from the first, and its codes are far better than the linear ones. It does not know which patches go together: the last row draws the four codes of a digit independently. The relation between the codes is what the diffusion adds, third row. (It was trained for seconds and is far from the floor yet. It predicts $v$: with $\varepsilon$ and so short a training, the small errors at high noise are multiplied by (4.47), and the walk in twenty steps runs away; try it.)
#
# ## 10.14 Door: transformers
#
# The U-Net is one way to fill the box "$x_t$, $t$ in, $\hat\varepsilon$ out". **Diffusion transformers** (Peebles and Xie, [2212.09748](https://arxiv.org/abs/2212.09748)) take another: cut the picture into patches, call each a token, and let blocks of [attention](06_unet.ipynb#6.8-Attention,-where-it-is-cheap) and a two-layer network work on the tokens, at one resolution all the way. The time enters as a scale and a shift of every normalised token. No convolution knows that neighbours are near. Attention treats tokens as a *set*: without further help, for every permutation $\Pi$ of the tokens,
#
# $$
# \hat\varepsilon(\Pi x_t,t)\;=\;\Pi\,\hat\varepsilon(x_t,t) ,
# \tag{10.25}
# $$
#
# because attention does so, (6.34), and everything else acts on each token alone. So the network must be *told* where each token sits: a learned vector is added for each place. The whole thing:

# %%
class Block(nn.Module):
    """Attention, then two layers for each token; both scaled and shifted by the time."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.time = nn.Linear(width, 4 * width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.two = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(),
                                 nn.Linear(4 * width, width))

    def forward(self, h, clock):
        shift_a, scale_a, shift_b, scale_b = self.time(clock)[:, None].chunk(4, dim=2)
        q, k, v = self.qkv(self.norm(h) * (1 + scale_a) + shift_a) \
            .unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        h = h + self.out(mixed.transpose(1, 2).flatten(2))
        return h + self.two(self.norm(h) * (1 + scale_b) + shift_b)


class Transformer(nn.Module):
    """ε̂ from sixteen tokens, one for each 2×2 patch of a digit."""

    def __init__(self, generator, width=64, heads=4, blocks=2):
        super().__init__()
        self.width = width
        self.enter, self.leave = nn.Linear(4, width), nn.Linear(width, 4)
        self.clock = nn.Sequential(nn.Linear(width, width), nn.SiLU())
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        initialise(self, "torch", generator)
        self.place = nn.Parameter(0.1 * torch.randn(16, width, generator=generator))

    def forward(self, x, t, y=None):
        clock = self.clock(timestep_embedding(t, self.width, "sin-cos").to(x.dtype))
        h = self.enter(patches(x, 2)) + self.place
        for block in self.blocks:
            h = block(h, clock)
        return together(self.leave(h), 2)


tokens = Transformer(seeded(31)).double()
order = torch.randperm(16, generator=seeded(32))
x, t = draws(3, 1, 8, 8, seed=33), torch.tensor([1, 400, 1000])
moved = together(patches(x, 2)[:, order], 2)
with torch.no_grad():
    told = (patches(tokens(moved, t), 2) - patches(tokens(x, t), 2)[:, order]).abs().max()
    tokens.place.zero_()                               # nobody is told where he sits
    claim("10.25", patches(tokens(moved, t), 2), patches(tokens(x, t), 2)[:, order])
assert told > 0.01
tokens = Transformer(seeded(31))
fact("parameters: transformer, the U-Net of the digits",
     [count_parameters(tokens), count_parameters(network)])
start = fit(Transformer(seeded(31)), diffusion, train, 50, 34, rate=0.0)
last = fit(tokens, diffusion, train, 300, 34)
with torch.no_grad():
    t, noise = torch.arange(1, 1001, 2), torch.randn(500, 1, 8, 8, generator=seeded(35))
    rows = torch.randint(len(heldout), (500,), generator=seeded(36))
    own, unet = (simple_loss(net, diffusion, heldout[rows], t, noise).mean()
                 for net in (tokens.eval(), network))
print("loss at the start above 0.9, after 300 steps below 0.3:", start > 0.9, last < 0.3)
print("on held-out digits the U-Net of the book is ahead:", bool(unet < own))

# %% [markdown]
# About a third of the U-Net's parameters, three hundred steps, and the loss comes down from above 0.9 to below 0.3; the U-Net, which was trained far longer, is ahead, and the cell claims no more than that. The paper's case is another one: with much data and much computation, quality followed computation closely, and the convolution's knowledge of neighbourhood was not missed. A price is known: each token looks at each, so twice the side of the picture means sixteen times the work of comparing them, the second term of (6.35), and four times the rest. That is why transformers and latents came together.
#
# ## 10.15 Where the doors lead
#
# Everything behind these doors keeps three things that you have derived and built: a path from data to noise whose marginals are known, (3.14); a network that predicts the mean of something, given a point on the path, (5.24); and a walk back that uses the prediction, (9.14). New papers change the path, the network, the weighting of the losses, the walk, or the condition. Ask first *which of the five*, then put it into the letters of this book, then test it where the truth is known, and read its table with the ten questions.
#
# ## 10.16 What we have
#
# | equation | what it says | in `ddpm_lite` | elsewhere |
# |---|---|---|---|
# | (10.1) | dilution costs $\log\frac1a$ nats and ruins the samples | | Theis et al. |
# | (10.2) | memorising ruins the likelihood of new data | | Theis et al. |
# | (10.3) | a density's bits have a unit | | |
# | (10.4) to (10.6) | the bias of the Fréchet distance | `frechet_distance` | |
# | (10.7) | too little variety scores better than perfect | | Chong and Forsyth (that the bias depends on the model) |
# | (10.8) | extrapolation to infinitely many samples | | Chong and Forsyth |
# | (10.9) | what two moments leave open | `GaussianData.entropy` | |
# | (10.10) | the merit of "best of $R$" | `Estimate.of` | |
# | (10.11), (10.12) | density and coverage of a perfect model | `precision_recall` | Naeem et al. |
# | (10.13) | the share of copies that cannot be excluded | `memorisation` | Clopper and Pearson |
# | (10.14) | the best learned variance | `hybrid_loss`, `variance="learned"` | Improved DDPM |
# | (10.15), (10.16) | one loss under three names; min-SNR | `simple_loss`, `prediction=` | Hang et al. |
# | (10.17) to (10.20) | the SDE, its $\bar\alpha$, its ODE, and DDPM as a solver | `NoiseSchedule.from_betas`, `solve` | Song et al. 2020 |
# | (10.21) to (10.23) | flow matching; Euler is DDIM | `families/flow_matching.py` | Lipman et al.; Liu et al. |
# | (10.24) | what a linear code can keep | `VAE` | |
# | (10.25) | tokens are a set | | |

# %%
progress("10")

# %% [markdown]
# ## 10.17 History and further reading
#
# **Judging.**
# - Lucas Theis, Aäron van den Oord and Matthias Bethge, *A note on the evaluation of generative models* ([1511.01844](https://arxiv.org/abs/1511.01844), 2015): likelihood, samples and a third criterion of its day are largely independent; the source of 10.1.
# - Martin Heusel and others ([1706.08500](https://arxiv.org/abs/1706.08500), 2017): the FID. Min Jin Chong and David Forsyth ([1911.07023](https://arxiv.org/abs/1911.07023), 2019): its bias depends on the model; extrapolation.
# - Tuomas Kynkäänniemi and others ([1904.06991](https://arxiv.org/abs/1904.06991), 2019): precision and recall as in (T.47). Muhammad Ferjad Naeem and others ([2002.09797](https://arxiv.org/abs/2002.09797), 2020): their faults, density and coverage.
# - George Stein and others ([2306.04675](https://arxiv.org/abs/2306.04675), 2023): seventeen scores against the judgement of people; the features matter most, and no score detects copying properly. Nicholas Carlini and others ([2301.13188](https://arxiv.org/abs/2301.13188), 2023): training images taken out of diffusion models.
#
# **Going on.**
# - Alex Nichol and Prafulla Dhariwal, *Improved DDPM* ([2102.09672](https://arxiv.org/abs/2102.09672), 2021): learned variances, the hybrid loss, the cosine schedule.
# - Tim Salimans and Jonathan Ho ([2202.00512](https://arxiv.org/abs/2202.00512), 2022): $v$, and distillation to few steps. Tiankai Hang and others ([2303.09556](https://arxiv.org/abs/2303.09556), 2023): min-SNR.
# - Yang Song and others ([2011.13456](https://arxiv.org/abs/2011.13456), 2020): the stochastic differential equations and the probability flow ODE.
# - Yaron Lipman and others, *Flow matching for generative modeling* ([2210.02747](https://arxiv.org/abs/2210.02747), 2022); Xingchao Liu, Chengyue Gong and Qiang Liu ([2209.03003](https://arxiv.org/abs/2209.03003), 2022), on rectified flow.
# - Robin Rombach and others ([2112.10752](https://arxiv.org/abs/2112.10752), 2021): latent diffusion. William Peebles and Saining Xie ([2212.09748](https://arxiv.org/abs/2212.09748), 2022): diffusion transformers.

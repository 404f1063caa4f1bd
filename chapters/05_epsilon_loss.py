# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5 The ε-loss

# %% tags=["hide-input"]
import math
from itertools import pairwise

import sympy
import torch
from torch import nn

from ddpm_lite import GaussianDiffusion, NoiseSchedule
from ddpm_lite.claims import claim, fact
from ddpm_lite.data import DIGITS_LEVELS, digits, toy_law
from ddpm_lite.exercises import check, hint, progress, solution  # noqa: F401
from ddpm_lite.objective import (
    bits_per_dim,
    bound_term,
    decoder_log_masses,
    decoder_log_prob,
    dropped_weights,
    hybrid_loss,
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
    plot_density_2d,
    plot_points,
    show,
    use_book_style,
)
from ddpm_lite.process import Gaussian

use_book_style()
torch.set_default_dtype(torch.float64)        # claims compare ten digits: every tensor is float64
bit = math.log(2)                             # one bit, in nats


def log_normal(x, mean, variance):
    """The logarithm of N(x; mean, variance) in one dimension, written out: (T.3)."""
    variance = torch.as_tensor(variance)
    return -((x - mean) ** 2 / variance + torch.log(2 * math.pi * variance)) / 2


# %% tags=["hide-input"]
schedule = NoiseSchedule.linear(T=1000)       # DDPM's own: β from 1e-4 to 0.02
alpha_bar, alpha, beta = schedule.alpha_bar, schedule.alpha, schedule.beta
beta_tilde = schedule.posterior_variance
diffusion = GaussianDiffusion(schedule, variance="beta")
mixture = GaussianMixture([0.35, 0.65], [[-0.9], [0.7]], [[[0.10**2]], [[0.25**2]]])


def places_of(law, count=801, width=9.0):
    """Points of a one-dimensional law, and their probabilities: a sum over them is E."""
    x = law.mean + law.covariance.sqrt() * torch.linspace(-width, width, count)[:, None]
    density = law.log_prob(x).exp()
    return x, density / density.sum()


def best_loss(data, chain, t):
    """E(ε − E[ε|x_t])² for data on a line: 1 minus what the best guess explains, (4.30)."""
    x_t, probability = places_of(data.marginal(chain, t))
    return 1 - (probability * data.eps(chain, x_t, t)[:, 0] ** 2).sum()


steps = torch.arange(1, 1001)
best = torch.stack([best_loss(mixture, schedule, t) for t in range(1, 1001)])
ratio = beta_tilde[2:] / beta[2:]
worth = (ratio - 1 - ratio.log()) / 2 + dropped_weights(diffusion)[2:] * best[1:]
running = worth.cumsum(0) / worth.sum()
half = int((running < 0.5).sum()) + 2                              # worth starts at t = 2
fact("half of the bits are paid at steps up to t", half)
fact("bits in all steps t ≥ 2 together", worth.sum() / bit, digits=3)
fact("bits of the step t = 2, 17, 400", worth[[0, 15, 398]] / bit, digits=2)
fact("error of the best guess, t = 1, 17, 80, 160, 400, 700",
     best[[0, 16, 79, 159, 399, 699]], digits=3)

fig, (left, right) = figure(1, 2)
left.fill_between(steps, 0, best, color=GREY, alpha=0.3, lw=0, label="cannot be guessed")
left.plot(steps, best, color=BLUE, label="best guess there is")
left.plot(steps, torch.ones(1000), color=VERMILLION, ls="--", label="guess 0")
left.set(xscale="log", xlabel="$t$", ylabel=r"E$(\varepsilon-\hat\varepsilon)^2$", ylim=(0, 1.2))
left.legend(loc="lower left", fontsize=9)
right.loglog(steps[1:], worth / bit, color=GREEN)
right.axvline(half, color=GREY, lw=1, ls=":")
right.text(half * 0.8, 1e-6, f"half of the bits\nup to $t={half}$", fontsize=9, ha="right")
right.set(xlabel="$t$", ylabel="bits for the step", xlim=(1, 1100))
show(fig, """Left, the squared error of a guess of the noise against t on a logarithmic axis. The
best guess has an error of almost 1 at t = 1, falls to 0.4 near t = 80, rises to 0.5 near 160, and
is almost 0 from 700 on; the guess 0 has an error of 1 everywhere. Right, what each step
costs in bits, from t = 2 on, on logarithmic axes: 0.6 at t = 2, a hundredth near 80, a thousandth
near 400, and far less at the end. Half of the sum lies at t up to 17.""")

# %% [markdown]
# *How well can the noise be guessed, and where does it matter?* The data are the two-humped mixture of chapter 4. On the left, the squared error of the best possible guess of $\varepsilon$ from $x_t$. It is
# not zero: the grey part cannot be guessed by anybody. (It even rises once, where $x_t$ ceases to tell from which hump it came.) On the right, what each step $t\ge2$ costs, in bits (the last one, into the data, is a case of its own: section 5.11). Half of the sum is paid up to $t=17$ of a thousand, where
# not even a sixth of the noise can be guessed. The left picture is what a network is trained on. The right one is where that training comes from. This chapter derives both.
#
# **You will**
# - derive the bound on the likelihood twice, by Jensen's inequality and as a KL divergence, and say what its gap is made of;
# - telescope it into $L_T$, $L_{t-1}$ and $L_0$ on a blank page, and write each term in closed form;
# - go from the mean to the noise, and say which weights the simple loss drops and what that does;
# - tell the part of a loss that no network can remove from the part that training can;
# - compute bits per dimension with a decoder whose probabilities sum to one, and train a first network.
#
# **You need** from chapters 2 and 3 [the law of a path](02_forward_process.ipynb#2.2-A-chain-of-steps), [the marginal](03_one_step_marginal.ipynb#3.5-The-induction) and
# [one random t](03_one_step_marginal.ipynb#3.12-A-sum-over-t-from-one-random-t); from chapter 4 [the posterior](04_posterior.ipynb#4.5-Any-two-steps), [its mean from the noise](04_posterior.ipynb#4.6-The-mean,-in-terms-of-the-noise) and
# [the best variance](04_posterior.ipynb#4.9-The-best-variance-depends-on-the-data); from the toolbox [the KL divergence](A_toolbox.ipynb#T.6-KL-between-Gaussians) and [Jensen's inequality](A_toolbox.ipynb#T.7-Jensen's-inequality).
#
# **Time** about 100 minutes to read, 105 for the exercises, less than a minute to run.

# %% [markdown]
# ## 5.1 What should the network be told?
#
# Chapter 4 ends with a walk that turns noise into data, if somebody supplies $\hat\varepsilon$. An oracle did. A network must learn it, so it needs a number to make small. "Guess the noise, and pay the squared error" is an obvious idea, but why
# should it make the *samples* right, why the square, and why the same price at every $t$? A principle is wanted from which the loss follows.
#
# The principle is **maximum likelihood**, which [section 1.2](01_a_model_is_a_distribution.ipynb#1.2-Nearest,-by-likelihood) looked at from above; here it is once more, in the letters of this chapter. We have draws $x_0\sim p_{\text{data}}$, all independent, and a family of laws $p_\theta$, one for each setting $\theta$ of the network's weights. Choose the $\theta$ under which the draws were most probable. The probability of all draws is a product, its logarithm a sum; divided by their number it is, for many
# draws, the expectation $\mathbb E\log p_\theta(x_0)$. To see what its maximum means, subtract and add $\log p_{\text{data}}$:
#
# $$
# -\,\mathbb E_{x_0\sim p_{\text{data}}}\log p_\theta(x_0)
# \;=\; \underbrace{-\,\mathbb E\log p_{\text{data}}(x_0)}_{H(p_{\text{data}})}
# \;+\; \underbrace{\mathbb E\log\frac{p_{\text{data}}(x_0)}{p_\theta(x_0)}}_{\mathrm{KL}(p_{\text{data}}\Vert p_\theta)} .
# \tag{5.1}
# $$
#
# The first part, the **entropy** $H$, is a property of the data. The second is not negative, and zero only if the two laws are the same, (T.22). So to maximise the likelihood is to bring $p_\theta$ near to $p_{\text{data}}$, in the sense of this divergence; and *there is a floor*. No model
# of whatever size has a smaller average $-\log p_\theta$ than $H$. This chapter's two-humped data have an entropy that we can compute, so we know the floor. Divided by $\log 2$ a price in nats becomes one in bits.

# %%
line = torch.linspace(-2.2, 3.2, 5401)                             # all there is of the mixture
log_data = mixture.log_prob(line[:, None])
entropy = -torch.trapezoid(log_data.exp() * log_data, line)
rival = GaussianData(mixture.mean, mixture.covariance)             # one bell, same two moments
divergence = torch.trapezoid(log_data.exp() * (log_data - rival.log_prob(line[:, None])), line)
claim("5.1", entropy + divergence, rival.entropy(),
      note="right: −E log p is its own entropy, if mean and variance agree")
fact("entropy of the data, in nats and in bits", [entropy, entropy / bit])
fact("price of calling them Gaussian, in bits", divergence / bit)

# %% [markdown]
# (A density can be above 1, so the entropy of continuous data can be of either sign. It changes with the unit of length; the divergence does not. Section 5.12 turns to data with levels, where probabilities are probabilities.)
#
# ## 5.2 Why the likelihood is out of reach
#
# What *is* $p_\theta(x_0)$ for a diffusion model? It is the law of what the walk of chapter 4 produces, with one difference. The walk draws $x_T$ from $p(x_T)=\mathcal N(x_T;\,0,I)$, and then one state after the other from $p_\theta(x_{t-1}\mid x_t)$, (4.49). Here the last step, too, draws from $p_\theta(x_0\mid x_1)$ instead of taking the mean, so that every factor below is a density. By the product rule the law of the whole path is
#
# $$
# p_\theta(x_{0:T}) \;=\; p(x_T)\,\prod_{t=1}^{T}p_\theta(x_{t-1}\mid x_t) ,
# \tag{5.2}
# $$
#
# and the law of its end is what remains when the rest of the path is integrated out:
#
# $$
# p_\theta(x_0) \;=\; \int p_\theta(x_{0:T})\;dx_{1:T} .
# \tag{5.3}
# $$
#
# That integral runs over $T\cdot D$ numbers, 64,000 of them for our smallest digits. A grid is hopeless: ten places for each number make $10^{64000}$ cells. For one coordinate and $T=2$ it is a sum over a plane, and this chapter keeps such a **tiny chain** to have a truth to compare with. The oracle
# plays the network. Two steps are much too few for good samples, and that is welcome here: an approximation should be visible.

# %%
tiny = GaussianDiffusion(NoiseSchedule.from_betas([0.3, 0.6]), variance="beta")
guess = mixture.denoiser(tiny.schedule)
axis = torch.linspace(-7.0, 7.0, 281)[:, None]                     # places for x_1, and for x_2
second, first = (tiny.reverse(guess(axis, t), axis, t) for t in (2, 1))    # p(x_1|x_2), p(x_0|x_1)
log_top = log_normal(axis, 0.0, 1.0)                               # log p(x_2), (281, 1)
log_middle = log_normal(axis.T, second.mean, second.variance)      # rows x_2, columns x_1
starts = torch.tensor([-1.2, -0.9, 0.0, 0.7, 1.3])                 # five places x_0 to look at


def over_paths(values):
    """The integral over x_2 and x_1 of a function given on (…, x_2, x_1)."""
    return torch.trapezoid(torch.trapezoid(values, axis[:, 0]), axis[:, 0])


def log_model(x0):
    """log p_θ(x_{0:2}) on the plane of paths, one plane for each x_0: (x_0, x_2, x_1)."""
    bottom = log_normal(x0[:, None], first.mean[:, 0], first.variance)     # rows x_0, columns x_1
    return log_top + log_middle + bottom[:, None, :]


likelihood = over_paths(log_model(starts).exp())                   # (5.3), exactly
everywhere = torch.linspace(-6.0, 6.0, 241)
model_law = over_paths(log_model(everywhere).exp())
claim("5.2", torch.trapezoid(model_law, everywhere), 1.0, note="a law of paths: sums to one")
g, many = torch.Generator().manual_seed(0), 400_000
x = torch.randn(many, 1, generator=g)
for t in (2, 1):
    x = tiny.reverse(guess(x, t), x, t).sample(g)
claim("5.3", torch.trapezoid(model_law * everywhere**2, everywhere), (x**2).mean(),
      standard_error=(x**2).std() / many**0.5, note="second moment, against walks")
fact("density of the model at five places", likelihood)
fact("density of the data there", mixture.log_prob(starts[:, None]).exp(), digits=2)

# %% [markdown]
# *Could one estimate the integral by walking?* (5.3) says that $p_\theta(x_0)$ is the average of $p_\theta(x_0\mid x_1)$ over walks that have come down to $x_1$. So walk often, and average. The estimate is unbiased, and useless. Almost no walk comes near the $x_0$ in question, and the few that do carry the whole
# sum. How many walks would be needed? The average of $n$ draws of $h=p_\theta(x_0\mid x_1)$ has the relative variance $\frac1n\big(\mathbb E[h^2]/(\mathbb E\,h)^2-1\big)$. So even for a relative error of one it takes about as many walks as the *relative second moment* $\mathbb E[h^2]/(\mathbb E\,h)^2$ says. For independent coordinates $h$ is a product, and so is this number. We compute it for one coordinate,
# on DDPM's chain, with a perfect model, and take its 64th power.

# %%
fine = torch.linspace(-3.0, 3.0, 60_001)[:, None]                  # places for x_1
law_1 = mixture.marginal(schedule, 1).log_prob(fine).exp()
last = diffusion.reverse(mixture.eps(schedule, fine, 1), fine, 1)
h = log_normal(0.7, last.mean[:, 0], last.variance).exp()          # p(x_0 = 0.7 | x_1)
moments = [torch.trapezoid(law_1 * h**k, fine[:, 0]) for k in (1, 2)]
walks = moments[1] / moments[0] ** 2
fact("walks needed for one coordinate", walks)
fact("for 64 independent coordinates, its power of ten", 64 * torch.log10(walks), digits=2)


# %% [markdown]
# More than there are atoms in the observable universe (about $10^{80}$), for a picture of 64 pixels. The cure is to look where it matters. We know paths that do end at $x_0$: those of the *forward* process, started there. Multiply and divide by their law, a density that is nowhere zero:
#
# $$
# p_\theta(x_0) \;=\; \int q(x_{1:T}\mid x_0)\,\frac{p_\theta(x_{0:T})}{q(x_{1:T}\mid x_0)}\,dx_{1:T}
# \;=\; \mathbb E_{x_{1:T}\sim q(\cdot\mid x_0)}\Big[\frac{p_\theta(x_{0:T})}{q(x_{1:T}\mid x_0)}\Big] .
# \tag{5.4}
# $$
#
# Each forward path now votes with the ratio: how probable is it under the model, walked backwards, against how probable it was to be noised this way.

# %%
def log_ratio(x0, path):
    """log p_θ(x_{0:T}) − log q(x_{1:T} | x_0) for a path [x_1, …, x_T] of the tiny chain."""
    total, before = log_normal(path[-1], 0.0, 1.0), x0
    for t, after in enumerate(path, start=1):
        step = tiny.reverse(guess(after, t), after, t)
        total = total + log_normal(before, step.mean, step.variance)
        total = total - tiny.transition(before, t, t - 1).log_prob(after)[:, None]
        before = after
    return total


def forward_path(process, x0, generator):
    """x_1, …, x_T, step by step."""
    path = []
    for t in range(1, process.T + 1):
        path.append(process.transition(path[-1] if path else x0, t, t - 1).sample(generator))
    return path


for x_0, exact in zip(starts[[0, 3]], likelihood[[0, 3]], strict=True):
    x0 = x_0.expand(1_000_000, 1)
    votes = log_ratio(x0, forward_path(tiny, x0, g)).exp()
    claim("5.4", votes.mean(), exact, standard_error=votes.std() / len(votes) ** 0.5,
          note=f"x_0 = {x_0.item():.1f}")
    fact("    relative second moment of the votes", (votes**2).mean() / votes.mean() ** 2, digits=2)


# %% [markdown]
# With two steps and one coordinate this works well. With a thousand steps, 64 coordinates and a network that is still poor, the ratios would again differ by many powers of ten, and training starts with a poor one. (With a perfect one they hardly differ; section 5.5 ends with the reason.) But now we stand in the right place, and one inequality turns the average of ratios into something that does not explode.
#
# ## 5.3 The bound, by Jensen
#
# Take the logarithm of (5.4), and use that the logarithm of an average is at least the average of the logarithms, (T.27). With the sign turned, because we want a price:
#
# $$
# -\log p_\theta(x_0) \;\le\; \mathbb E_{q(x_{1:T}\mid x_0)}\Big[\log\frac{q(x_{1:T}\mid x_0)}{p_\theta(x_{0:T})}\Big]
# \;=:\; L(x_0) .
# \tag{5.5}
# $$
#
# $L$ is the **variational bound**, a price in nats; with the other sign it is called the *evidence lower bound*. It is an average of logarithms, and $\log p_\theta(x_{0:T})$ is a *sum* over steps by (5.2). So one forward path gives an unbiased estimate with moderate variance, and any single term of the sum can be
# estimated on its own. That is all that training needs. What we do not know yet is how much has been given away.

# %%
def log_forward(x0):
    """log q(x_{1:2} | x_0) on the plane of paths: (x_0, x_2, x_1)."""
    one = log_normal(axis[:, 0], (0.7**0.5) * x0[:, None], 0.3)            # rows x_0, columns x_1
    two = log_normal(axis, (0.4**0.5) * axis.T, 0.6)                       # rows x_2, columns x_1
    return one[:, None, :] + two


log_q, log_p = log_forward(starts), log_model(starts)
bound = over_paths(log_q.exp() * (log_q - log_p))                          # (5.5), exactly
claim("5.5", -likelihood.log(), bound, relation="<=")
fact("−log p at the five places, in bits", -likelihood.log() / bit)
fact("the bound L there", bound / bit)

# %% [markdown]
# > **Pitfall: which side is it on?** $L$ lies *above* $-\log p_\theta$, so a smaller $L$ is better and a reported "negative log-likelihood $\le 3.75$ bits per dimension" (DDPM's, section 5.8) is a bound in the safe direction: the true number can only be smaller. An estimate of $\log p_\theta(x_0)$ by (5.4) with few paths errs on the same side on average, by Jensen again, but a single
# > estimate may fall on either.

# %%
truth = -likelihood[3].log() / bit                                 # at x_0 = 0.7, as the votes are
claim("5.5", -votes.log().mean() / bit, bound[3] / bit,
      standard_error=votes.log().std() / bit / len(votes) ** 0.5, note="one path: the mean is L")
for n in (1, 8, 64):
    prices = -votes.view(-1, n).mean(1).log() / bit
    fact(f"n = {n} paths, −log of their average minus the truth: mean in bits, share below zero",
         [(prices - truth).mean(), (prices < truth).double().mean()], digits=2)

# %% [markdown]
# ## 5.4 The bound, as a divergence
#
# Jensen says *that* something is lost. To see *what*, split the model's joint law the other way, $p_\theta(x_{0:T})=p_\theta(x_0)\,p_\theta(x_{1:T}\mid x_0)$. The second factor is the model's own opinion of how $x_0$ came about. Put it into (5.5); $p_\theta(x_0)$ does not depend on the path and leaves the expectation:
#
# $$
# L(x_0) \;=\; \mathbb E_{q}\Big[\log\frac{q(x_{1:T}\mid x_0)}{p_\theta(x_0)\;p_\theta(x_{1:T}\mid x_0)}\Big]
# \;=\; -\log p_\theta(x_0)\;+\;\mathrm{KL}\big(q(x_{1:T}\mid x_0)\,\big\Vert\,p_\theta(x_{1:T}\mid x_0)\big) .
# \tag{5.6}
# $$
#
# This is (T.28) with the whole path as hidden variable. The divergence is not negative, which proves (5.5) again; and it is zero if the model's walks that end in $x_0$ look like forward paths that began there. In a variational autoencoder $q$ is a network too, and is trained to close this gap. Here $q$ is fixed. The
# gap closes from the other side only: the walk must learn to be the reverse of the noising.
#
# We check (5.6) with the likelihood and the divergence computed on the plane of paths, against the library's bound. The library knows nothing of planes: it adds up closed forms, `prior_term` and `bound_term`, which the next three sections derive. What is left to average there is a single noise.

# %%
z = torch.linspace(-9.0, 9.0, 361)                                 # places for one noise …
p_z = log_normal(z, 0.0, 1.0).exp() * (z[1] - z[0])                # … and their probabilities


def expected_terms(process, denoiser, x0):
    """E over the noise of each term of the bound: L_0, L_1, …, L_{T-1}, L_T; rows are the x_0."""
    rows, noise = x0.repeat_interleave(len(z))[:, None], z.repeat(len(x0))[:, None]
    terms = [bound_term(denoiser, process, rows, t, noise, levels=None).view(len(x0), -1) @ p_z
             for t in range(1, process.T + 1)]
    return torch.stack([*terms, prior_term(process, x0[:, None])], dim=1)


opinion = log_p - likelihood.log()[:, None, None]                  # log p_θ(x_{1:2} | x_0)
gap = over_paths(log_q.exp() * (log_q - opinion))
claim("5.6", over_paths(opinion.exp()), torch.ones(5), note="the opinion is a law")
claim("5.6", -likelihood.log() + gap, expected_terms(tiny, guess, starts).sum(1),
      note="planes of paths, against closed forms")
fact("the gap at the five places, in bits", gap / bit)

price, ceiling = -model_law.log() / bit, expected_terms(tiny, guess, everywhere).sum(1) / bit
inside = everywhere.abs() <= 1.5
fact("smallest and largest gap between −1.5 and 1.5",
     [(ceiling - price)[inside].min(), (ceiling - price)[inside].max()])

fig, ax = figure()
ax.fill_between(everywhere, price, ceiling, color=ORANGE, alpha=0.5, lw=0, label="the gap")
ax.plot(everywhere, ceiling, color=VERMILLION, label="$L(x_0)$")
ax.plot(everywhere, price, color=BLUE, label=r"$-\log\,p_\theta(x_0)$")
ax.plot(line, -log_data / bit, color=GREY, ls="--", lw=1.5,
        label=r"$-\log\,p_{\mathrm{data}}(x_0)$")
ax.set(xlim=(-2, 2), ylim=(-1, 5), xlabel="$x_0$", ylabel="bits")
ax.legend(fontsize=9, loc="lower left")
show(fig, """Prices in bits against x_0 for the tiny chain. Minus log p of the model is a shallow
bowl, and the bound lies a tenth of a bit above it, a little more at the sides. Minus log p of the
data is below both near the two humps, by more than one bit, and far above between and beside
them.""")


# %% [markdown]
# *Where is the bound loose, and where is the model wrong?* Two different things. The orange strip is what Jensen's inequality gives away: about a tenth of a bit (0.07 to 0.23 between $-1.5$ and $1.5$). The distance from the blue curve to the dashed one is what the model itself gets wrong. Its walk of two steps has smeared the two humps into one, and it charges too much on them and too little beside them. No tighter bound would cure that.

# %% [markdown]
# **On average over the data.** The same trick with the *true* joint law, $q(x_{0:T})=p_{\text{data}}(x_0)\,q(x_{1:T}\mid x_0)$. Average (5.5) over the data, and add and subtract $\log p_{\text{data}}(x_0)$:
#
# $$
# \mathbb E_{x_0}\,L(x_0) \;=\; H(p_{\text{data}}) \;+\; \mathrm{KL}\big(q(x_{0:T})\,\big\Vert\,p_\theta(x_{0:T})\big) .
# \tag{5.7}
# $$
#
# So the bound, too, has the entropy for its floor, and what it costs beyond that is the distance between two laws of *paths*: data that are noised, and noise that is walked to data. It can be taken apart step by step. Walk along the path from the noisy end. For the model (5.2) is already in that order. For the truth,
#
# $$
# q(x_{0:T}) \;=\; q(x_T)\,\prod_{t=1}^{T}q(x_{t-1}\mid x_t) ,
# $$
#
# because the forward chain run backwards is a Markov chain as well: among the factors of $q(x_{t-1},x_t,\dots,x_T)=q(x_{t-1})\,q(x_t\mid x_{t-1})\,q(x_{t+1:T}\mid x_t)$ only the first two contain $x_{t-1}$, so given $x_t$ the later states say nothing more about it. The logarithm of a quotient of two products is a sum of logarithms, and the
# expectation of each summand, taken first given $x_t$, is a divergence:
#
# $$
# \mathbb E\,L - H \;=\; \mathrm{KL}\big(q(x_T)\,\big\Vert\,p(x_T)\big)
# \;+\;\sum_{t=1}^{T}\;\mathbb E_{x_t}\,\mathrm{KL}\big(q(x_{t-1}\mid x_t)\,\big\Vert\,p_\theta(x_{t-1}\mid x_t)\big) .
# \tag{5.8}
# $$
#
# Every bit above the entropy is paid somewhere: at the top, because $x_T$ is not quite noise, or at one of the steps, because the model's step back is not the true one. The summands are old acquaintances. With the exact mean and the best variance $\sigma_*^2$ they are what [chapter 4 measured](04_posterior.ipynb#4.10-The-true-step-back-is-not-Gaussian): each is of size $\beta^2$, (4.40). In a chain of $T$ steps that destroys as much, $\beta$ is of size $1/T$, so $T$ of them sum to something like $1/T$. And (5.8)
# says what a network can do about the rest: make each step back as nearly true as a Gaussian can be.

# %%
def expected_kl(data, process, denoiser, t):
    """E KL( q(x_{t-1} | x_t) || p_θ(x_{t-1} | x_t) ), by the oracle and by (4.49), on a grid."""
    x_t, probability = places_of(data.marginal(process.schedule, t), count=301)
    x_s = torch.linspace(-6.0, 6.0, 1601)
    rows, columns = x_t.repeat_interleave(len(x_s), dim=0), x_s.repeat(len(x_t))[:, None]
    log_true = data.reverse(process.schedule, rows, t, t - 1).log_prob(columns).view(len(x_t), -1)
    step = process.reverse(denoiser(x_t, t), x_t, t)
    log_step = log_normal(x_s, step.mean, step.variance)
    return probability @ torch.trapezoid(log_true.exp() * (log_true - log_step), x_s)


x0_places, x0_probability = places_of(mixture, 401)
average = x0_probability @ expected_terms(tiny, guess, x0_places[:, 0])    # E of L_0, L_1, L_2
some = torch.linspace(-2.0, 2.9, 148)                                      # x_0, for the brute sum
log_q, log_p = log_forward(some), log_model(some)
log_q0 = mixture.log_prob(some[:, None])[:, None, None]
joint = torch.trapezoid(over_paths((log_q0 + log_q).exp() * (log_q0 + log_q - log_p)), some)
claim("5.7", entropy + joint, average.sum(), tol=1e-8,
      note="joint law summed over (x_0, x_1, x_2)")

x_2, p_2 = places_of(mixture.marginal(tiny.schedule, 2))
top = p_2 @ (mixture.marginal(tiny.schedule, 2).log_prob(x_2) - log_normal(x_2, 0.0, 1.0)[:, 0])
paid = [expected_kl(mixture, tiny, guess, t) for t in (1, 2)]
claim("5.8", top + sum(paid), joint, tol=1e-8,
      note="the oracle's steps back, against the joint law")
fact("paid at the top, at t = 2 and at t = 1, in bits", [top / bit, paid[1] / bit, paid[0] / bit])
fact("entropy, and the average bound", [entropy / bit, average.sum() / bit])

# %% [markdown]
# Our tiny chain pays almost all of its 1.1 bits at the last step, where a Gaussian of variance 0.3 has to stand for two narrow humps.
#
# ## 5.5 Telescoping
#
# (5.5) is an average over whole paths. To train we want a sum of terms that each look at one step, and we want the randomness that can be integrated by hand to be integrated by hand. Both come out of one rearrangement. Here is every line of it.
#
# **Line 1.** Insert both products, (2.4) for the forward path and (5.2) for the model, into (5.5). The logarithm of a product is a sum of logarithms:
#
# $$
# L(x_0) \;=\; \mathbb E_q\Big[-\log p(x_T)\;-\;\sum_{t=1}^{T}\log\frac{p_\theta(x_{t-1}\mid x_t)}{q(x_t\mid x_{t-1})}\Big] .
# \tag{5.9}
# $$
#
# Numerator and denominator do not match: the model goes from $t$ to $t-1$, the forward step from $t-1$ to $t$. They are laws of different variables, so the quotient is not a divergence.
#
# **Line 2.** Turn the forward step around. Its law does not change if we also condition on $x_0$, by the Markov property (4.4). Then Bayes' rule given $x_0$, (4.5), solved for the forward step, says for $t\ge2$
#
# $$
# q(x_t\mid x_{t-1}) \;=\; q(x_t\mid x_{t-1},x_0) \;=\; q(x_{t-1}\mid x_t,x_0)\;\frac{q(x_t\mid x_0)}{q(x_{t-1}\mid x_0)} .
# \tag{5.10}
# $$
#
# Why only $t\ge2$? For $t=1$ the fraction would hold $q(x_0\mid x_0)$, a point, which has no density. The step $t=1$ is left as it is.
#
# *And why condition on $x_0$ at all?* Without it, Bayes' rule would give $q(x_{t-1}\mid x_t)$ and the laws $q(x_t)$ of noised data, (4.1), which we do not know. Given $x_0$, all three are Gaussians that we do know: the detour of chapter 4 pays here.
#
# **Line 3.** Put (5.10) into the terms $t\ge2$ of (5.9). Each splits into a quotient that matches and a quotient of two marginals. The second kind *telescopes*: what is a numerator in one term is a denominator in the next, and only the ends are left,
#
# $$
# \sum_{t=2}^{T}\log\frac{q(x_{t-1}\mid x_0)}{q(x_t\mid x_0)}
# \;=\; \log q(x_1\mid x_0)\;-\;\log q(x_T\mid x_0) .
# \tag{5.11}
# $$
#
# **Line 4.** Collect. The term $t=1$ of (5.9) was $-\log p_\theta(x_0\mid x_1)+\log q(x_1\mid x_0)$. In (5.9) the sum (5.11) carries a minus sign, so its $\log q(x_1\mid x_0)$ cancels that of the term $t=1$, and $+\log q(x_T\mid x_0)$ joins $-\log p(x_T)$:
#
# $$
# L(x_0) \;=\; \mathbb E_q\Big[\log\frac{q(x_T\mid x_0)}{p(x_T)}
# \;+\;\sum_{t=2}^{T}\log\frac{q(x_{t-1}\mid x_t,x_0)}{p_\theta(x_{t-1}\mid x_t)}
# \;-\;\log p_\theta(x_0\mid x_1)\Big] .
# \tag{5.12}
# $$
#
# So far nothing was averaged: (5.9) and (5.12) agree on every single path.
#
# **Line 5.** Average. The expectation of a sum is the sum of the expectations. In the term $t$ only $x_{t-1}$ and $x_t$ occur. Average first over $x_{t-1}$ with $x_t$ (and $x_0$) held fixed, then over $x_t$; that is the tower property. Given $x_t$ and $x_0$, $x_{t-1}$ has the law $q(x_{t-1}\mid x_t,x_0)$, the very numerator. So the inner average is a KL divergence
# by its definition (T.21), and so is the first term:
#
# $$
# \begin{aligned}
# L(x_0) \;&=\; L_T+\sum_{t=2}^{T}L_{t-1}+L_0 ,\\
# L_T \;&=\; \mathrm{KL}\big(q(x_T\mid x_0)\,\big\Vert\,p(x_T)\big) ,\\
# L_{t-1} \;&=\; \mathbb E_{q(x_t\mid x_0)}\,\mathrm{KL}\big(q(x_{t-1}\mid x_t,x_0)\,\big\Vert\,p_\theta(x_{t-1}\mid x_t)\big) ,\qquad 2\le t\le T ,\\
# L_0 \;&=\; -\,\mathbb E_{q(x_1\mid x_0)}\log p_\theta(x_0\mid x_1) .
# \end{aligned}
# \tag{5.13}
# $$
#
# The index is that of the state which the step arrives at: $L_{t-1}$ is the price of the step from $t$ to $t-1$, and $L_0$ of the last one, into the data. Three parts: the *prior* term, the *steps*, the *decoder*. (The $\ell_t$ of (3.33), the mean squared error of the noise, is something else. Section 5.8 brings the two together.)
#
# The cell takes a chain of four strong steps. Lines 1 and 4 must agree path by path, line 3 is checked on the same paths, and line 2 as densities.

# %%
strong = GaussianDiffusion(NoiseSchedule.from_betas([0.10, 0.25, 0.40, 0.55]), variance="beta")
oracle = mixture.denoiser(strong.schedule)
x0 = mixture.sample(400_000, g)
path = [x0, *forward_path(strong, x0, g)]                          # x_0, x_1, …, x_4

forward = {t: strong.transition(path[t - 1], t, t - 1).log_prob(path[t]) for t in (1, 2, 3, 4)}
laws = {t: strong.reverse(oracle(path[t], t), path[t], t) for t in (1, 2, 3, 4)}
model = {t: laws[t].log_prob(path[t - 1]) for t in laws}           # log p_θ(x_{t-1} | x_t)
given = {t: strong.marginal(x0, t).log_prob(path[t]) for t in forward}     # log q(x_t | x_0)
posterior = {t: strong.posterior(path[t], x0, t) for t in (2, 3, 4)}
back = {t: posterior[t].log_prob(path[t - 1]) for t in posterior}  # log q(x_{t-1} | x_t, x_0)
top = log_normal(path[4], 0.0, 1.0)[:, 0]

line_1 = -top - sum(model[t] - forward[t] for t in forward)
line_4 = given[4] - top + sum(back[t] - model[t] for t in back) - model[1]
for t in back:
    claim("5.10", forward[t], back[t] + given[t] - given[t - 1], note=f"logarithms, t = {t}")
claim("5.11", sum(back[t] - forward[t] for t in back), given[1] - given[4])
claim("5.12", line_4, line_1, note="path by path")

terms = x0_probability @ expected_terms(strong, oracle, x0_places[:, 0])   # the library, exactly
claim("5.9", line_1.mean(), terms.sum(), standard_error=line_1.std() / len(x0) ** 0.5,
      note="mean of line 1 over the paths, against the library")
divergences = {t: posterior[t].kl(laws[t]) for t in posterior}
line_5 = prior_term(strong, x0) + sum(divergences.values()) - model[1]
claim("5.13", line_5.mean(), terms.sum(), standard_error=line_5.std() / len(x0) ** 0.5,
      note="mean of line 5")
for t in (2, 3, 4):
    claim("5.13", divergences[t].mean(), terms[t - 1],
          standard_error=divergences[t].std() / len(x0) ** 0.5, note=f"L_{t - 1}")
fact("L_0, L_1, L_2, L_3, L_4 in bits, averaged over the data", terms / bit)


# %% [markdown]
# *What has the rearrangement bought?* Each term of line 5 needs only a pair $(x_0,x_t)$, which `q_sample` makes in one jump: a path is never walked in training. And each term is *quieter*. Line 5 replaces the term of line 4 by its mean over $x_{t-1}$, given $x_t$ and $x_0$, and a conditional mean never varies more than what it averages: that is the law of total variance, and in this use it is named after
# Rao and Blackwell. How much quieter? We take one step at a time, on DDPM's chain.

# %%
def spread_of_term(t, count=50_000):
    """Standard deviation of term t as lines 1, 4 and 5 have it, over x_0 and the noises."""
    x0 = mixture.sample(count, g)
    early = diffusion.marginal(x0, t - 1).sample(g)                # x_{t-1} …
    step = diffusion.transition(early, t, t - 1)
    late = step.sample(g)                                          # … and x_t
    law = diffusion.reverse(mixture.eps(schedule, late, t), late, t)
    true = diffusion.posterior(late, x0, t)
    one = step.log_prob(late) - law.log_prob(early)
    four = true.log_prob(early) - law.log_prob(early)
    return torch.stack([one.std(), four.std(), true.kl(law).std()]) / bit


for t in (10, 100, 500):
    fact(f"standard deviation of the term t = {t} in bits: line 1, line 4, line 5",
         spread_of_term(t), digits=2)
print("whole paths of the strong chain: line 1 is",
      "quieter" if line_1.std() < line_5.std() else "noisier", "than line 5")

# %% [markdown]
# From line 4 to line 5 the deviation falls by a factor of four at $t=10$, of seven at $t=100$ and of a hundred at $t=500$. Line 1 is equally noisy everywhere: at $t=10$ no worse than line 5, at $t=500$ five hundred times worse. A training step sees *one* term of each image's bound, so this is what counts for it: an average over line 5 is as accurate as one over many times as many images with line 4. Do not read more into it than that. For the sum over a *whole path* the law of total variance says nothing,
# because the terms are averaged over different variables; and the last line shows that the sum as it stands can be the quieter one. With a perfect model it has no noise at all: if $p_\theta(x_{0:T})=q(x_{0:T})$, then $\log q(x_{1:T}\mid x_0)-\log p_\theta(x_{0:T})=-\log p_{\text{data}}(x_0)$ on every path. The terms then err in turn, and their errors cancel.

# %% [markdown]
# > **Pitfall: the signs and the ends.** In the telescoping most slips happen at the two ends: the term $t=1$ kept inside the sum (where it asks for the logarithm of $\tilde\beta_1=0$), the marginal $q(x_1\mid x_0)$ left standing, or $q(x_T\mid x_0)$ lost, which turns $L_T$ from a divergence into a cross-entropy. A check is cheap: with data
# > $\mathcal N(0,I)$, the exact denoiser and $\sigma_t^2=\beta_t$ the sum must equal the entropy, to the last digit (section 5.11).

# %%
fact("on the paths above, off by in bits: q(x_1 | x_0) left standing, q(x_T | x_0) lost",
     [given[1].mean() / bit, -given[4].mean() / bit], digits=2)
print("log β̃_1:", strong.schedule.posterior_variance[1].log().item())

# %% [markdown]
# ## 5.6 Every term in closed form
#
# **The prior term.** $q(x_T\mid x_0)=\mathcal N(\sqrt{\bar\alpha_T}\,x_0,\,(1-\bar\alpha_T)I)$ by (3.10), and $p(x_T)=\mathcal N(0,I)$. Put them into (T.24), with $V_1=1-\bar\alpha_T$ and $V_2=1$:
#
# $$
# L_T \;=\; \tfrac D2\big(-\bar\alpha_T-\log(1-\bar\alpha_T)\big)+\tfrac12\,\bar\alpha_T\,\lVert x_0\rVert^2 .
# \tag{5.14}
# $$
#
# It contains no $\theta$: nothing to train. It says whether the chain is long enough. With DDPM's schedule it is next to nothing. Run through the same range of $\beta$'s in $T=50$ steps, as code that one meets does, and it is not: more than half of the signal is still there, and sampling that starts from $\mathcal N(0,I)$ starts in the wrong place.

# %%
images, _ = digits("train")
flat = images.flatten(1).double()                                  # 1,442 digits, D = 64
typed = (64 / 2 * (-alpha_bar[-1] - torch.log(1 - alpha_bar[-1]))
         + alpha_bar[-1] / 2 * (flat**2).sum(1))
claim("5.14", typed, prior_term(diffusion, flat))
cut = GaussianDiffusion(NoiseSchedule.linear(T=50))                # β from 1e-4 to 0.02 again
fact("prior term of the digits, bits per dimension: T = 1000",
     prior_term(diffusion, flat).mean() / (64 * bit))
fact("    T = 50 with the same β's, and what is left of the signal, ᾱ_50",
     [prior_term(cut, flat).mean() / (64 * bit), cut.schedule.alpha_bar[-1]])


# %% [markdown]
# **Exercise 5.1** (2 points, 10 minutes, ●○○) — *The price at the top.* Write `prior_bits(x0, alpha_bar_T)` that returns the prior term of one image in bits per dimension. `x0` is a tensor of $D$ numbers, `alpha_bar_T` is a number. The answer is one number.

# %%
def prior_bits(x0, alpha_bar_T):
    """KL(q(x_T | x_0) || N(0, I)) in bits per dimension."""
    raise NotImplementedError("your turn")


check("5.1", prior_bits)

# %% [markdown]
# **The steps.** Both laws in $L_{t-1}$ are Gaussian with covariances that are multiples of $I$. The first has mean $\tilde\mu_t(x_t,x_0)$ and variance $\tilde\beta_t$, (4.13); the second mean $\mu_\theta(x_t,t)$ and a variance $\sigma_t^2$ of our choice, (4.49). Again (T.24):
#
# $$
# L_{t-1} \;=\; \underbrace{\tfrac D2\Big(\frac{\tilde\beta_t}{\sigma_t^2}-1-\log\frac{\tilde\beta_t}{\sigma_t^2}\Big)}_{\text{price of the variance}}
# \;+\;\frac{1}{2\sigma_t^2}\;\mathbb E\,\big\lVert\tilde\mu_t(x_t,x_0)-\mu_\theta(x_t,t)\big\rVert^2 .
# \tag{5.15}
# $$
#
# **There is the square.** It was not chosen; it is what the logarithm of a Gaussian leaves. The first part depends on the schedule and on $\sigma_t^2$ alone. For $\sigma_t^2=\tilde\beta_t$ it is zero, for $\sigma_t^2=\beta_t$ a number that matters only at the first few steps, where the two differ, (4.26). Beware of the conclusion that $\tilde\beta_t$ is then the better choice. The second part is divided by
# $\sigma_t^2$, and it does not vanish even for the best network. [Section 4.9](04_posterior.ipynb#4.9-The-best-variance-depends-on-the-data) found the best compromise. Section 5.11 will count in bits.

# %%
x0, x_t = torch.randn(2, 6, 5, generator=g)                        # six pairs, D = 5
output = torch.randn(6, 5, generator=g)                            # any guess of the noise
for process in (strong, GaussianDiffusion(strong.schedule)):
    for t in (2, 3, 4):
        chain = process.schedule
        sigma2 = chain.beta[t] if process.variance == "beta" else chain.posterior_variance[t]
        ratio = chain.posterior_variance[t] / sigma2
        mu = process.posterior(x_t, x0, t).mean
        mu_model = process.reverse(output, x_t, t).mean
        typed = (5 / 2 * (ratio - 1 - ratio.log())
                 + ((mu - mu_model) ** 2).sum(1) / (2 * sigma2))
        level = chain.alpha_bar[t]
        noise = (x_t - level.sqrt() * x0) / (1 - level).sqrt()
        claim("5.15", typed, bound_term(lambda x, t: output, process, x0, t, noise, levels=None),
              note=f"variance {process.variance}, t = {t}")
ratio = beta_tilde[2:] / beta[2:]
price = (ratio - 1 - ratio.log()) / 2 / bit                        # bits per dimension, t ≥ 2
fact("price of the variance β, bits per dimension, t = 2, 10, 100", price[[0, 8, 98]], digits=2)
fact("    over all steps", price.sum(), digits=2)

# %% [markdown]
# **The decoder.** For continuous data $L_0$ is minus the log density of $\mathcal N(\mu_\theta(x_1,1),\,\sigma_1^2I)$ at $x_0$. At $t=1$ the mean $\mu_\theta$ is the predicted $\hat x_0$ itself, since there $c_0=1$ and $c_1=0$, (4.20). With (T.3)
#
# $$
# L_0 \;=\; \tfrac D2\log(2\pi\sigma_1^2)+\frac{1}{2\sigma_1^2}\,\mathbb E\,\lVert x_0-\hat x_0(x_1,1)\rVert^2 .
# \tag{5.16}
# $$
#
# Which $\sigma_1^2$? The sampler's last step has no noise, so the sampler does not say. $\tilde\beta_1=0$ is impossible: a single miss would cost infinitely many nats ([the pitfall in section 4.8](04_posterior.ipynb#4.8-Two-variances,-and-the-logarithm-of-zero)). With $\sigma_t^2=\beta_t$ take $\beta_1$. With $\sigma_t^2=\tilde\beta_t$ take the next one, $\tilde\beta_2$, as the official code does. The library
# takes the smallest positive $\tilde\beta$ of the chain, which is $\tilde\beta_2$ whenever the $\beta$'s do not decrease.

# %%
for process, sigma2 in ((strong, strong.schedule.beta[1]),
                        (GaussianDiffusion(strong.schedule),
                         strong.schedule.posterior_variance[2])):
    noise = (x_t - strong.schedule.alpha_bar[1].sqrt() * x0) / (
        1 - strong.schedule.alpha_bar[1]).sqrt()
    miss = ((x0 - process.predict(output, x_t, 1).x0) ** 2).sum(1)
    typed = 5 / 2 * torch.log(2 * math.pi * sigma2) + miss / (2 * sigma2)
    claim("5.16", typed, bound_term(lambda x, t: output, process, x0, 1, noise, levels=None),
          note=f"variance {process.variance}")


# %% [markdown]
# **Exercise 5.2** (3 points, 15 minutes, ●●○) — *The price of one step.* The model predicts $\hat x_0$ and uses the variance $\sigma_t^2=\beta_t$. Write `step_price(x_t, x0, x0_hat, t, alpha_bar)` that returns $\mathrm{KL}(q(x_{t-1}\mid x_t,x_0)\,\Vert\,p_\theta(x_{t-1}\mid x_t))$ in nats, one number, for an int $2\le t\le T$.
# The first three are tensors of $D$ numbers, `alpha_bar` is the tensor $\bar\alpha_0,\dots,\bar\alpha_T$.

# %%
def step_price(x_t, x0, x0_hat, t, alpha_bar):
    """The divergence in L_{t-1} at one x_t, in nats, for the variance beta_t."""
    raise NotImplementedError("your turn")


check("5.2", step_price)

# %% [markdown]
# ## 5.7 From the mean to the noise
#
# Both means in (5.15) are computed from the same $x_t$. Write both in terms of a noise, by (4.23) with $s=t-1$: the true one with the $\varepsilon$ that made this $x_t$, the model's with the predicted $\hat\varepsilon$. The parts with $x_t$ are equal and cancel:
#
# $$
# \tilde\mu_t-\mu_\theta
# \;=\; \frac{1}{\sqrt{\alpha_t}}\Big(x_t-\frac{\beta_t\,\varepsilon}{\sqrt{1-\bar\alpha_t}}\Big)
# -\frac{1}{\sqrt{\alpha_t}}\Big(x_t-\frac{\beta_t\,\hat\varepsilon}{\sqrt{1-\bar\alpha_t}}\Big)
# \;=\; \frac{\beta_t}{\sqrt{\alpha_t\,(1-\bar\alpha_t)}}\;\big(\hat\varepsilon-\varepsilon\big) .
# \tag{5.17}
# $$
#
# Square, and divide by $2\sigma_t^2$. With $x_t=\sqrt{\bar\alpha_t}\,x_0+\sqrt{1-\bar\alpha_t}\,\varepsilon$ the step's price is
#
# $$
# L_{t-1} \;=\; C_t \;+\; \omega_t\;\mathbb E_{\varepsilon}\,\big\lVert\varepsilon-\hat\varepsilon(x_t,t)\big\rVert^2 ,
# \qquad
# \omega_t \;=\; \frac{\beta_t^2}{2\,\sigma_t^2\,\alpha_t\,(1-\bar\alpha_t)} ,
# \tag{5.18}
# $$
#
# with $C_t$ for the price of the variance. This is the point where the noise comes in. Nobody *had* to predict it. $\mu_\theta$ could be the network's output, or $\hat x_0$ could. Predicting $\varepsilon$ is a parameterisation, and by [the table of section 4.12](04_posterior.ipynb#4.12-One-object,-four-names) the others differ from it by an affine map. What they change is the weight in front of the square.
#
# **At $t=1$ the same formula holds.** By (4.21) $x_0-\hat x_0=\sqrt{(1-\bar\alpha_1)/\bar\alpha_1}\,(\hat\varepsilon-\varepsilon)$, and $\bar\alpha_1=\alpha_1$, $1-\bar\alpha_1=\beta_1$. So the square in (5.16) is
#
# $$
# \frac{1}{2\sigma_1^2}\,\lVert x_0-\hat x_0\rVert^2
# \;=\; \frac{\beta_1}{2\,\sigma_1^2\,\alpha_1}\,\lVert\varepsilon-\hat\varepsilon\rVert^2
# \;=\; \omega_1\,\lVert\varepsilon-\hat\varepsilon\rVert^2 ,
# \tag{5.19}
# $$
#
# which is $\omega_t$ at $t=1$, because $\beta_1^2/(1-\bar\alpha_1)=\beta_1$. With $C_1=\tfrac D2\log(2\pi\sigma_1^2)$ the whole bound of continuous data is $L_T+\sum_{t=1}^T\big(C_t+\omega_t\,\mathbb E\lVert\varepsilon-\hat\varepsilon\rVert^2\big)$.

# %%
a, ab, sig = sympy.symbols("a ab sigma", positive=True)            # α_t, ᾱ_{t-1}, σ_t
xt, e, e_hat = sympy.symbols("x_t epsilon epsilon_hat", real=True)
abt, b = a * ab, 1 - a                                             # ᾱ_t, β_t


def mean_from_x0(z0):
    """The posterior's mean (4.12), from x_0 and x_t."""
    return (sympy.sqrt(ab) * b * z0 + sympy.sqrt(a) * (1 - ab) * xt) / (1 - abt)


z0, z0_hat = ((xt - sympy.sqrt(1 - abt) * n) / sympy.sqrt(abt) for n in (e, e_hat))    # (4.21)
omega = b**2 / (2 * sig**2 * a * (1 - abt))
difference = mean_from_x0(z0) - mean_from_x0(z0_hat)
claim("5.17", b / sympy.sqrt(a * (1 - abt)) * (e_hat - e), difference)
claim("5.18", omega * (e - e_hat) ** 2, difference**2 / (2 * sig**2))
claim("5.19", (1 - a) / (2 * sig**2 * a), omega.subs(ab, 1), note="ω at t = 1")

for variance in ("beta", "posterior"):
    process = GaussianDiffusion(schedule, variance=variance)
    sigma2 = beta if variance == "beta" else torch.cat([beta_tilde[2:3], beta_tilde[2:3],
                                                        beta_tilde[2:]])
    typed = beta**2 / (2 * sigma2 * alpha * (1 - alpha_bar))
    claim("5.18", typed[1:], dropped_weights(process)[1:], note=f"variance {variance}, all t")
    noise, t = torch.randn(6, 5, generator=g), 40
    prices = [bound_term(lambda x, t, k=k: k * output, process, x0, t, noise, levels=None)
              for k in (1.0, 0.0)]
    squares = [((noise - k * output) ** 2).sum(1) for k in (1.0, 0.0)]
    claim("5.18", typed[t] * (squares[0] - squares[1]), prices[0] - prices[1],
          note="two guesses of the noise: C_t drops out")

# %% [markdown]
# **The weight as a change of SNR.** For $\sigma_t^2=\tilde\beta_t$ and $t\ge2$ the price of the variance is zero, $C_t=0$, and the weight has a shape worth knowing. Insert (4.10); one $\beta_t$ and $1-\bar\alpha_t$ cancel. Then compare with the SNRs $\bar\alpha/(1-\bar\alpha)$ of the two ends of the step:
#
# $$
# \begin{aligned}
# \omega_t \;&=\; \frac{\beta_t}{2\,\alpha_t\,(1-\bar\alpha_{t-1})}
# \;=\; \frac12\Big(\frac{\mathrm{SNR}_{t-1}}{\mathrm{SNR}_t}-1\Big) ,\\
# L_{t-1}\;&=\;\tfrac12\big(\mathrm{SNR}_{t-1}-\mathrm{SNR}_t\big)\;\mathbb E\lVert x_0-\hat x_0\rVert^2 ,
# \qquad t\ge2 .
# \end{aligned}
# \tag{5.20}
# $$
#
# (First half: $\mathrm{SNR}_{t-1}/\mathrm{SNR}_t=(1-\bar\alpha_t)/\big(\alpha_t(1-\bar\alpha_{t-1})\big)$, and by the identity (4.9) the numerator is $\alpha_t(1-\bar\alpha_{t-1})+\beta_t$. Second half: $\lVert\varepsilon-\hat\varepsilon\rVert^2=\mathrm{SNR}_t\,\lVert x_0-\hat x_0\rVert^2$, by (4.47).) A step costs what it brings in SNR, times the error in $x_0$. So on a fine chain the bound is an integral over the SNR, and
# the names of the steps in between do not matter: the observation at the heart of *Variational diffusion models* (2021).

# %%
snr_before, snr = ab / (1 - ab), abt / (1 - abt)
tilde = (1 - ab) / (1 - abt) * b
claim("5.20", (snr_before / snr - 1) / 2, omega.subs(sig, sympy.sqrt(tilde)))
claim("5.20", (snr_before - snr) / 2 * (z0 - z0_hat) ** 2,
      difference**2 / (2 * tilde), note="the second half")
as_x0 = GaussianDiffusion(schedule, prediction="x0")
claim("5.20", (schedule.snr[1:-1] - schedule.snr[2:]) / 2, dropped_weights(as_x0)[2:],
      note="the library's weights for x_0-prediction")
fact("SNR at t = 1, 10, 100, 1000", schedule.snr[[1, 10, 100, 1000]])


# %% [markdown]
# **Exercise 5.3** (2 points, 10 minutes, ●●○) — *The weight of a stride.* A chain that takes only some of the steps goes from $t$ to $s<t$ at once, with variance $\tilde\beta_{t\mid s}$, (4.18). Write `stride_weight(alpha_bar_t, alpha_bar_s)` that returns the weight of $\lVert\varepsilon-\hat\varepsilon\rVert^2$ in its price, for $0<\bar\alpha_t<\bar\alpha_s<1$.

# %%
def stride_weight(alpha_bar_t, alpha_bar_s):
    """The weight of the squared error of the noise in the price of the step from t to s."""
    raise NotImplementedError("your turn")


check("5.3", stride_weight)


# %% [markdown]
# ## 5.8 The simple loss, and what it drops
#
# Write $\ell_t$ for the mean squared error of the guess at step $t$, per coordinate,
#
# $$
# \ell_t \;=\; \mathbb E_{x_0,\varepsilon}\;\tfrac1D\,\big\lVert\varepsilon-\hat\varepsilon\big(\sqrt{\bar\alpha_t}\,x_0+\sqrt{1-\bar\alpha_t}\,\varepsilon,\;t\big)\big\rVert^2 ,
# \qquad\qquad
# L_{\text{simple}} \;=\; \frac1T\sum_{t=1}^{T}\ell_t .
# \tag{5.21}
# $$
#
# $L_{\text{simple}}$ is what DDPM trains on: the average of all $\ell_t$, estimated as in (3.33) from one random $t$ for each image. (The paper writes the squared norm, without $1/D$.) The bound of continuous data, by (5.13), (5.18) and (5.19), is
#
# $$
# \mathbb E\,L \;=\; \text{const}\;+\;D\sum_{t=1}^{T}\omega_t\;\ell_t ,
# \tag{5.22}
# $$
#
# where the constant, $\mathbb E\,L_T+\sum_tC_t$, does not depend on the network. (For data with levels $L_0$ is the price of a probability, (5.31). It is a squared error only as far as the mass of a bin is its density times its width.) **$L_{\text{simple}}$ is not the bound.** It is the bound with every $\omega_t$ replaced by one and the same number. One often reads that "maximising the likelihood turns out to be predicting the noise". That is true of (5.22); the step from there to (5.21) is a decision. How much does it change?

# %%
def noise_pairs(data, chain, t):
    """All pairs (x_0, ε) on a grid, as x_t, ε and the pair's probability."""
    x0, p0 = places_of(data, count=601)
    rows, noise = x0.repeat_interleave(len(z), dim=0), z.repeat(len(x0))[:, None]
    x_t = chain.alpha_bar[t].sqrt() * rows + (1 - chain.alpha_bar[t]).sqrt() * noise
    return x_t, noise[:, 0], p0.repeat_interleave(len(z)) * p_z.repeat(len(x0))


def wiggle(x, t):
    """Some poor guess of the noise."""
    return 0.8 * torch.sin(1.5 * x)


losses = {}
for t in (1, 2, 3, 4):
    x_t, noise, probability = noise_pairs(mixture, strong.schedule, t)
    losses[t] = probability @ (noise - wiggle(x_t, t)[:, 0]) ** 2
    rows, noises = x0_places.repeat_interleave(len(z), dim=0), z.repeat(len(x0_places))[:, None]
    by_library = simple_loss(wiggle, strong, rows, t, noises)
    weights = x0_probability.repeat_interleave(len(z)) * p_z.repeat(len(x0_places))
    claim("5.21", losses[t], weights @ by_library, note=f"t = {t}")
ells = torch.stack(list(losses.values()))
chain = strong.schedule
omega = chain.beta**2 / (2 * chain.beta * chain.alpha * (1 - chain.alpha_bar))
ratio = chain.posterior_variance[2:] / chain.beta[2:]
constant = ((ratio - 1 - ratio.log()).sum() / 2 + torch.log(2 * math.pi * chain.beta[1]) / 2
            + x0_probability @ prior_term(strong, x0_places))
claim("5.22", constant + omega[1:] @ ells,
      (x0_probability @ expected_terms(strong, wiggle, x0_places[:, 0])).sum())

weight = {name: dropped_weights(GaussianDiffusion(schedule, variance=name))[1:]
          for name in ("posterior", "beta")}
for name, values in weight.items():
    fact(f"weight ω_t, variance {name}, t = 1, 2, 10, 100, 1000", values[[0, 1, 9, 99, 999]],
         digits=2)
share = {name: values.cumsum(0) / values.sum() for name, values in weight.items()}
fact("    the first, over the average: posterior, beta",
     [values[0] / values.mean() for values in weight.values()], digits=2)
fact("share of all weight in t ≤ 100: posterior, beta, simple",
     [share["posterior"][99], share["beta"][99], 100 / 1000], digits=2)

fig, (left, right) = figure(1, 2)
for (name, values), colour in zip(weight.items(), (PURPLE, VERMILLION), strict=True):
    label = {"posterior": r"$L$ with $\tilde\beta_t$", "beta": r"$L$ with $\beta_t$"}[name]
    left.loglog(steps, values / values.mean(), color=colour, label=label)
    right.semilogx(steps, share[name], color=colour)
left.axhline(1, color=BLUE, ls="--", label=r"$L_{\mathrm{simple}}$")
right.semilogx(steps, steps / 1000, color=BLUE, ls="--")
left.set(xlabel="$t$", ylabel=r"$\omega_t$ over its average")
left.legend(fontsize=9)
right.set(xlabel="$t$", ylabel="weight up to $t$")
show(fig, """Left, the weights divided by their average, on logarithmic axes: that of the bound
falls from above 50 at t = 1 to about half at t = 300 and rises a little to the end, that of the
simple loss is 1 throughout. Right, the share of the weight in steps up to t: the bound has put
half of its weight by t of a few hundred, the simple loss follows t over 1000.""")

# %% [markdown]
# *Which steps does each loss care about?* The bound weighs the first step fifty to eighty times as much as an average one, and the first hundred of a thousand steps carry about forty per cent of all weight. (The kink of the $\tilde\beta_t$ curve at $t=2$: there is no $\tilde\beta_1$ to divide by, so the first step borrows $\tilde\beta_2$.) $L_{\text{simple}}$ moves the attention to larger $t$, where $x_t$ is noisy and the coarse structure of the picture is decided.
#
# **Does it matter?** Not for a network that can do everything. Each $\ell_t$ belongs to its own $t$, and whoever makes every $\ell_t$ as small as possible minimises both sums at once, whatever the positive weights. It matters when one network serves all $t$ and cannot serve all of them well: then the weights say where it fails. The smallest example has one parameter. Let the guess be $\hat\varepsilon=K\,x_t$, with the *same* $K$ at all $t$. In $\ell_t(K)=\mathbb E(\varepsilon-Kx_t)^2$ multiply out; $\mathbb E[\varepsilon x_t]=\sqrt{1-\bar\alpha_t}$ as
# in (4.33), so under weights $\gamma_t$ the sum is a parabola in $K$ with its minimum at
#
# $$
# K \;=\; \frac{\sum_t\gamma_t\,\sqrt{1-\bar\alpha_t}}{\sum_t\gamma_t\,\mathbb E[x_t^2]} .
# \tag{5.23}
# $$

# %%
second_moment = alpha_bar[1:] * (mixture.covariance + mixture.mean**2).item() + 1 - alpha_bar[1:]
reach = (1 - alpha_bar[1:]).sqrt()                                 # E[ε x_t]


def ell(K):
    """ℓ_t of the guess K x_t, for all t."""
    return 1 - 2 * K * reach + K**2 * second_moment


choices = {"simple": torch.ones(1000), "bound": weight["beta"]}
K = {name: (gamma * reach).sum() / (gamma * second_moment).sum()
     for name, gamma in choices.items()}
for name, gamma in choices.items():
    k = K[name].clone().requires_grad_()
    (slope,) = torch.autograd.grad((gamma * ell(k)).sum() / gamma.sum(), k)
    claim("5.23", slope, 0.0, scale=1.0, note=f"{name}: autograd finds no slope at this K")
    fact(f"best K by the {name} loss", K[name])
    fact("    L_simple, and the bound's price over all steps in bits",
         [ell(K[name]).mean(), weight["beta"] @ ell(K[name]) / bit])
    fact("    ℓ_t at t = 5, 100, 900", ell(K[name])[[4, 99, 899]])

# %% [markdown]
# Each choice is the best by its own measure and worse by the other one. That is the whole story of a famous table, in small. On CIFAR-10, DDPM trained on the bound reaches 3.70 bits per dimension and an FID of 13.51 (the Fréchet distance of [T.12](A_toolbox.ipynb#T.12-How-we-will-measure) in the features of the papers; smaller is better); trained on $L_{\text{simple}}$, 3.75 bits and 3.17. The simple loss costs a twentieth of a bit, and buys by far the better
# pictures: where the bound wants its weight, the errors are invisible.
#
# > **Pitfall: a sum where a mean is meant.** $\lVert\cdot\rVert^2$ is a sum over coordinates, $\ell_t$ a mean. DDPM's official code averages over pixels, DDIM's sums. The minimiser is the same, the gradient is $D$ times as large, and so a clipping threshold of 1.0 on the gradient's norm, or a plain SGD learning rate, means something else.
# > A loss "of 90" and one "of 0.03" can be the same network on 3,072 coordinates ($32\times32$ pixels of three colours).

# %%
target, miss = torch.randn(2, 8, 3072, generator=g)                # eight images of CIFAR's size
guessed = (target + 0.17 * miss).requires_grad_()
square = (target - guessed) ** 2
for name, loss in (("mean", square.mean()), ("sum", square.sum(1).mean())):
    (slope,) = torch.autograd.grad(loss, guessed, retain_graph=True)
    fact(f"{name} over coordinates: the loss, and the norm of its gradient",
         [loss, slope.norm()], digits=2)


# %% [markdown]
# ## 5.9 The best possible loss
#
# A classifier's loss can come down to nearly zero. Can $\ell_t$? No. The guess sees $x_t$ and not $\varepsilon$, and one $x_t$ can come about by many different noises. Let $\varepsilon^*(x_t)=\mathbb E[\varepsilon\mid x_t]$ be the average of them. Go from $\varepsilon$ to the guess by way of $\varepsilon^*$ and multiply out the square:
#
# $$
# \lVert\varepsilon-\hat\varepsilon\rVert^2
# =\lVert\varepsilon-\varepsilon^*\rVert^2
# +2\,(\varepsilon-\varepsilon^*)^\top(\varepsilon^*-\hat\varepsilon)
# +\lVert\varepsilon^*-\hat\varepsilon\rVert^2 .
# $$
#
# Average the middle term, first given $x_t$. Then $\varepsilon^*-\hat\varepsilon$ is a constant, a function of $x_t$, and $\mathbb E[\varepsilon-\varepsilon^*\mid x_t]=0$ by the definition of $\varepsilon^*$. So the middle term vanishes, and per coordinate
#
# $$
# \ell_t \;=\; \underbrace{\tfrac1D\,\mathbb E\,\lVert\varepsilon-\varepsilon^*(x_t)\rVert^2}_{\xi_t\,,\ \text{the floor}}
# \;+\;\underbrace{\tfrac1D\,\mathbb E\,\lVert\varepsilon^*(x_t)-\hat\varepsilon(x_t,t)\rVert^2}_{\text{the network's own error}} .
# \tag{5.24}
# $$
#
# The first part does not contain $\hat\varepsilon$. It is the unpredictable share $\xi_t$ of [section 4.9](04_posterior.ipynb#4.9-The-best-variance-depends-on-the-data), (4.30), and no network of any size gets below it. The second is zero for $\hat\varepsilon=\varepsilon^*$ and positive for anything else: **the minimiser of a squared error is the conditional mean.** Nowhere did we use that $\varepsilon$ is Gaussian. The same lines say that a network trained on $x_0$ tends to
# $\mathbb E[x_0\mid x_t]$ and one trained on $v$ to $\mathbb E[v\mid x_t]$. And this is why training with random noises works at all: no $x_t$ is ever seen twice, no single target is right, and yet their average is learned.

# %%
def loss_and_floor(data, chain, t, denoiser):
    """E(ε − ε̂)², E(ε − ε*)² and E(ε* − ε̂)², all over the pairs (x_0, ε)."""
    x_t, noise, probability = noise_pairs(data, chain, t)
    perfect, guess = data.eps(chain, x_t, t)[:, 0], denoiser(x_t, t)[:, 0]
    return [probability @ square for square in ((noise - guess) ** 2, (noise - perfect) ** 2,
                                                (perfect - guess) ** 2)]


for t in (1, 3):
    loss, floor, own = loss_and_floor(mixture, strong.schedule, t, wiggle)
    claim("5.24", floor + own, loss, note=f"t = {t}, the sum")
    claim("5.24", floor, best_loss(mixture, strong.schedule, t), note="and the floor, as (4.30)")
    fact("    loss of the poor guess, floor, its own error", [loss, floor, own])

fact("floor of L_simple: the average of ξ_t over t", best.mean())
fact("    and over the quarters of 1..T", best.view(4, 250).mean(1), digits=2)


# %% [markdown]
# So a flat loss curve is no sign of failure. Trained perfectly on this mixture at all $t$, a network ends at $L_{\text{simple}}=0.182$, and would stay there for ever. How far a loss is from its floor cannot be read off the loss. It needs an oracle, or a comparison with another network. And the floor depends so much on $t$ that the average is a poor summary: report the loss by quarters of $t$, at least.
#
# > **Pitfall: a test that nothing can fail.** There are tests of a score-matching loss that `return zeros` passes. Such a test is easily written by accident. At $t=1$ the best guess on our data has a loss of 0.995, and the guess 0 has one of exactly 1: telling a perfect network from none by its loss would take hundreds of thousands of draws. Test a denoiser where the floor is far below 1, and against $\varepsilon^*$ rather than against
# > $\varepsilon$, if there is an oracle.

# %%
def zeros(x, t):
    """No network at all."""
    return torch.zeros_like(x)


for t in (1, 400):
    loss, floor, own = loss_and_floor(mixture, schedule, t, zeros)
    fact(f"guess 0 at t = {t}: loss, floor, own error", [loss, floor, own], digits=3)

# %% [markdown]
# **Exercise 5.4** (1 point, 5 minutes, ●○○) — *Predict the number.* The data are Gaussian, $x_0\sim\mathcal N(0,4I)$, and at some step $\bar\alpha_t=0.36$. What is the smallest $\ell_t$ that any network can reach there? Guess first: near $0$, near $0.36$, near $0.7$? Then give three digits. (For Gaussian data the best predictor is linear, and (4.33) has its error.)

# %%
answer = None

check("5.4", answer)

# %% [markdown]
# ## 5.10 Denoising score matching is the same loss
#
# There is another road to this loss, older than DDPM. Suppose that we want the **score** of the noised data, $\nabla\log q(x_t)$, and train a function $\hat s(x_t)$ to match it. The loss that says so is
# $\mathbb E\lVert\hat s(x_t)-\nabla\log q(x_t)\rVert^2$, *explicit* score matching. It cannot be computed, because $q(x_t)$ is unknown. Now match the score of the law *given* $x_0$ instead. That one is known. From (4.42), divided by $q(x_t\mid x_0)$,
#
# $$
# \nabla_{x_t}\log q(x_t\mid x_0) \;=\; \frac{\sqrt{\bar\alpha_t}\,x_0-x_t}{1-\bar\alpha_t} \;=\; -\frac{\varepsilon}{\sqrt{1-\bar\alpha_t}} .
# \tag{5.25}
# $$
#
# *Denoising* score matching is $\mathbb E\lVert\hat s(x_t)-\nabla\log q(x_t\mid x_0)\rVert^2$. Let a network's $\hat\varepsilon$ and $\hat s$ belong together as in (4.44), $\hat s=-\hat\varepsilon/\sqrt{1-\bar\alpha_t}$. Then the two differences are the same vector up to a factor, for every single $x_0$ and $\varepsilon$:
#
# $$
# \lVert\varepsilon-\hat\varepsilon\rVert^2 \;=\; (1-\bar\alpha_t)\;\big\lVert\hat s(x_t)-\nabla\log q(x_t\mid x_0)\big\rVert^2 .
# \tag{5.26}
# $$
#
# So the $\varepsilon$-loss *is* denoising score matching, with weight $1-\bar\alpha_t$. And why may one match the wrong score? Multiply (5.24) by $D/(1-\bar\alpha_t)$. On its left stands the denoising loss. Its last term becomes the explicit loss, since $\nabla\log q(x_t)=-\varepsilon^*/\sqrt{1-\bar\alpha_t}$ by (4.44):
#
# $$
# \mathbb E\big\lVert\hat s-\nabla\log q(x_t\mid x_0)\big\rVert^2
# \;=\;\mathbb E\big\lVert\hat s-\nabla\log q(x_t)\big\rVert^2
# \;+\;\frac{D\,\xi_t}{1-\bar\alpha_t} .
# \tag{5.27}
# $$
#
# The two differ by a number in which $\hat s$ does not occur, so they have the same gradients and the same minimiser. This is Vincent's theorem of 2011; the constant is our floor. It also says why score matching without care for $t$ is a bad idea: for small $t$ the constant explodes, and with it the noise of the gradients. The factor $1-\bar\alpha_t$ in (5.26) is the cure, and DDPM's parameterisation has it built in.

# %%
for t in (5, 100, 400):
    x_t, noise, probability = noise_pairs(mixture, schedule, t)
    level = 1 - alpha_bar[t]
    x0 = (x_t[:, 0] - level.sqrt() * noise) / alpha_bar[t].sqrt()
    some = slice(10_000, 200_000, 19_001)                          # ten of the pairs
    there = x_t[some, 0].clone().requires_grad_()
    (slope,) = torch.autograd.grad(
        log_normal(there, alpha_bar[t].sqrt() * x0[some], level).sum(), there)
    claim("5.25", -noise[some] / level.sqrt(), slope, tol=1e-8, note=f"against autograd, t = {t}")
    guess = wiggle(x_t, t)[:, 0]
    score_hat, given_x0 = -guess / level.sqrt(), (alpha_bar[t].sqrt() * x0 - x_t[:, 0]) / level
    claim("5.26", level * (score_hat - given_x0)[some] ** 2, (noise - guess)[some] ** 2, tol=1e-8)
    true = mixture.marginal(schedule, t).score(x_t)[:, 0]
    denoising, explicit = (probability @ (score_hat - score) ** 2
                           for score in (given_x0, true))
    claim("5.27", explicit + best[t - 1] / level, denoising, tol=1e-8, note="their difference")
    fact("    denoising loss, explicit loss", [denoising, explicit])

# %% [markdown]
# ## 5.11 What each term is worth, in bits
#
# Now to the question what the terms amount to, on data whose entropy is known. By (5.8) we know what to expect: the entropy, and on top of it what the model's steps back fall short of the true ones.
#
# **A case without a gap.** Let $x_0\sim\mathcal N(0,I)$, and let the denoiser be exact. Every $x_t$ has the law $\mathcal N(0,I)$, so the first term of (5.8) is zero. (The prior term $L_T$, which knows $x_0$, is not; the other terms come out lower by as much.) The true step back is Gaussian with variance $\beta_{t}$, by (4.37) with $V=1$. A model with the exact mean and $\sigma_t^2=\beta_t$ therefore takes *exactly* the true steps, down to the last one, all divergences in (5.8) are zero, and for every chain, short or long,
#
# $$
# \mathbb E\,L \;=\; H \;=\; \tfrac D2\log(2\pi e) .
# \tag{5.28}
# $$
#
# (The entropy: $-\mathbb E\log p(x_0)$ is the average of $\tfrac12\log(2\pi)+\tfrac12x_0^2$, and $\mathbb E\,x_0^2=1$.) This is the best test that an implementation of the bound can have, because every slip in any term breaks it: a wrong index, a $\tilde\beta$ for a $\beta$, a missing decoder, a factor of one half. The right side knows nothing of diffusion. To average without simulation we use that here every term is a quadratic
# polynomial in $x_0$ and $\varepsilon$. For two independent standard normal numbers such a polynomial has the same mean as over the four points $(\pm1,\pm1)$: constants, first and second moments agree.

# %%
corners_x0, corners_noise = torch.tensor([[1.0, 1.0, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0]])


def gaussian_bound(V, process):
    """E L for one-dimensional data N(0, V) and the exact denoiser: the mean over four corners."""
    data = GaussianData([0.0], [[V]])
    x0, noise = V**0.5 * corners_x0[:, None], corners_noise[:, None]
    terms = [bound_term(data.denoiser(process.schedule), process, x0, t, noise, levels=None).mean()
             for t in range(1, process.T + 1)]
    return torch.stack([*terms, prior_term(process, x0).mean()])


for process, name in ((strong, "4 strong steps"), (diffusion, "1000 steps")):
    claim("5.28", math.log(2 * math.pi * math.e) / 2, gaussian_bound(1.0, process).sum(),
          note=name)
    claim("5.28", GaussianData([0.0], [[1.0]]).entropy(), gaussian_bound(1.0, process).sum())
terms = gaussian_bound(1.0, diffusion) / bit
fact("1000 steps, in bits: decoder, steps, prior, sum",
     [terms[0], terms[1:-1].sum(), terms[-1], terms.sum()])

# %% [markdown]
# Look at the decoder: $-4.6$ bits. It is a *density* of a very narrow Gaussian, and says in effect "I know $x_0$ to a hundredth". The steps pay for this knowledge, one after the other, and only the sum means something.
#
# **The exact gap.** For $x_0\sim\mathcal N(0,V)$ the true step back is Gaussian too, with variance $\beta_tV_{t-1}/V_t$, where $V_t=\bar\alpha_tV+1-\bar\alpha_t$, (4.37). The mean of the model is right, its variance $\sigma_t^2$ may be not, so only the first half of (T.24) is left in each divergence. With
# $r_t$ for the true variance over the model's,
#
# $$
# \mathbb E\,L-H \;=\; \tfrac12\big(V_T-1-\log V_T\big)+\sum_{t=1}^{T}\tfrac12\big(r_t-1-\log r_t\big) ,
# \qquad r_t=\frac{\beta_tV_{t-1}}{\sigma_t^2\,V_t} .
# \tag{5.29}
# $$
#
# For $\sigma_t^2=\beta_t$ it is $r_t=V_{t-1}/V_t$. Where $V_t$ changes little from step to step, $r_t$ is near 1 and the step costs next to nothing: $\tfrac12(r-1-\log r)\approx\tfrac14(r-1)^2$.

# %%
for V in (0.01, 0.25, 4.0):
    for process in (strong, diffusion):
        level = process.schedule.alpha_bar
        V_t = level * V + 1 - level
        r = V_t[:-1] / V_t[1:]
        typed = (V_t[-1] - 1 - V_t[-1].log()) / 2 + (r - 1 - r.log()).sum() / 2
        claim("5.29", typed + GaussianData([0.0], [[V]]).entropy(),
              gaussian_bound(V, process).sum(), note=f"V = {V}, T = {process.T}")
    fact(f"gap in bits, V = {V}: T = 4, T = 1000",
         [(gaussian_bound(V, p).sum() - GaussianData([0.0], [[V]]).entropy()) / bit
          for p in (strong, diffusion)], digits=2)


# %% [markdown]
# **Exercise 5.5** (4 points, 25 minutes, ●●●) — *The gap of the other variance.* Same data, $\mathcal N(0,V)$ in one dimension, and the exact denoiser, but now $\sigma_t^2=\tilde\beta_t$ for $t\ge2$, and the decoder has the variance $\tilde\beta_2$ (whatever the chain). Write `gap(V, alpha_bar)` that returns $\mathbb E\,L-H$ in nats. `alpha_bar` is the tensor $\bar\alpha_0,\dots,\bar\alpha_T$ of a chain of at least two steps.

# %%
def gap(V, alpha_bar):
    """E L - H in nats for data N(0, V), exact denoiser and variance beta_tilde."""
    raise NotImplementedError("your turn")


check("5.5", gap)


# %% [markdown]
# **Data with two humps.** Here the true steps back are not Gaussian, and a gap is left whatever the variance. With the exact denoiser every term is known, because $\ell_t=\xi_t$: (5.22) with the floor in the place of the loss. For one coordinate we can even choose the best variance for each step, $\sigma_*^2$ of (4.32). What a wrong one costs follows from (4.27). The average divergence in (5.8), as a function of $\sigma^2$, is a constant plus $\tfrac D2\log\sigma^2+\tfrac D2\sigma_*^2/\sigma^2$; subtract
# its value at $\sigma^2=\sigma_*^2$:
#
# $$
# \mathbb E\,L_{t-1}\big|_{\sigma^2}-\mathbb E\,L_{t-1}\big|_{\sigma_*^2} \;=\; \tfrac D2\,(r-1-\log r) ,\qquad r=\frac{\sigma_*^2}{\sigma^2} .
# \tag{5.30}
# $$
#
# ($\mathbb E\,L_{t-1}$, averaged over the data, and the divergence in (5.8) differ by the entropies of $q$, which do not contain $\sigma^2$.) The formula holds at $t=1$ too, where $\sigma_*^2=\xi_1\,\beta_1/\alpha_1$.

# %%
def priced(chain, xi, choice):
    """The terms L_0, …, L_{T-1} in bits for the perfect denoiser of the mixture."""
    b, a, tilde = chain.beta[1:], chain.alpha[1:], chain.posterior_variance[1:]
    sigma2 = {"posterior": torch.cat([tilde[1:2], tilde[1:]]), "beta": b,
              "best": (1 - xi) * tilde + xi * b / a}[choice]           # (4.32)
    omega = b**2 / (2 * sigma2 * a * (1 - chain.alpha_bar[1:]))
    C = (tilde / sigma2 - 1 - (tilde / sigma2).log()) / 2
    C[0] = torch.log(2 * math.pi * sigma2[0]) / 2
    return (C + omega * xi) / bit, sigma2


table = {choice: priced(schedule, best, choice) for choice in ("posterior", "beta", "best")}
top_price = (alpha_bar[-1] * (mixture.mean**2 + mixture.covariance).item() - alpha_bar[-1]
             - torch.log(1 - alpha_bar[-1])) / 2 / bit
print(f"entropy of the data: {(entropy / bit).item():.3f} bits")
for choice, (terms, sigma2) in table.items():
    fact(f"{choice}: decoder, steps, prior, sum",
         [terms[0], terms[1:].sum(), top_price, terms.sum() + top_price])
    fact("    above the entropy", terms.sum() + top_price - entropy / bit, digits=2,
         uncertainty=1e-7)
    if choice != "best":
        r = table["best"][1] / sigma2
        claim("5.30", (r - 1 - r.log()) / 2 / bit, terms - table["best"][0], tol=1e-8, scale=1.0,
              note=f"{choice}, all t")
        half = (r - 1 - r.log()).cumsum(0)
        fact("    half of what the wrong variance costs is paid at t up to",
             int((half < half[-1] / 2).sum()) + 1)

lengths = (25, 50, 100, 200, 400)
gaps = {choice: [] for choice in table}
for T in lengths:
    chain = NoiseSchedule.linear(T, beta_1=0.1 / T, beta_T=20 / T)     # the same noise in T steps
    xi = torch.stack([best_loss(mixture, chain, t) for t in range(1, T + 1)])
    last = chain.alpha_bar[-1]
    prior = (last * (mixture.mean**2 + mixture.covariance).item() - last - torch.log(1 - last)) / 2
    for choice in gaps:
        gaps[choice].append(priced(chain, xi, choice)[0].sum() + (prior - entropy) / bit)
for choice in gaps:
    gaps[choice].append(table[choice][0].sum() + top_price - entropy / bit)
    fact(f"gap in bits for T = 25, 50, 100, 200, 400, 1000, {choice}", gaps[choice], digits=2)

fig, (left, right) = figure(1, 2)
names = {"posterior": (r"$\tilde\beta_t$", PURPLE, ":"), "beta": (r"$\beta_t$", VERMILLION, "--"),
         "best": (r"$\sigma_*^2$", GREEN, "-")}
for choice, (label, colour, style) in names.items():
    if choice != "best":
        left.loglog(steps, table[choice][0] - table["best"][0], color=colour, ls=style)
    right.loglog((*lengths, 1000), gaps[choice], "o", ls=style, ms=4, color=colour, label=label)
left.set(xlabel="$t$", ylabel="bits lost at step $t$", ylim=(1e-7, 1))
right.legend(loc="lower left", fontsize=9)
right.set(xlabel="length of the chain $T$", ylabel="bits above entropy")
show(fig, """Left, what each step loses by a wrong variance, in bits against t, on logarithmic axes.
With the posterior variance it is more than a tenth at the first steps and falls steeply; with beta
it is about a ten-thousandth at most. Right, bits above the entropy against the length of the
chain: with beta and with the best variance they fall like one over T to about a hundredth; with
the posterior variance they fall slowly, from 2.7 to 0.8.""")

# %% [markdown]
# *What does a perfect network still cost?* On the left, (5.30) step by step; on the right, the whole gap. With $\sigma_*^2$ the gap falls like $1/T$, as chapter 4 predicted from (4.40), and at $T=1000$ it is less than a hundredth of a bit. With $\beta_t$ it is twice that. With $\tilde\beta_t$ more than three quarters of a bit are lost, half of it at the first two steps, where $\beta_t$ and $\tilde\beta_t$ differ by a factor of two, and longer chains help only slowly. To the *samples* these first steps hardly matter: their noise has a deviation of a hundredth, a tenth of that of the narrow hump, and whether it is a little too small nobody can see. Bits and pictures look at different ends of the chain.
#
# Do not conclude that $\tilde\beta_t$ is the wrong choice for bits either. These data are smooth at the scale of the first steps: there the noise cannot be guessed, $\xi_t\approx1$. The digits of the next section have levels, at that scale they are points, $\xi_t\approx0$, and the verdict is the opposite.
#
# ## 5.12 Data with levels
#
# A pixel of our digits is one of 17 grey levels. A density is the wrong thing to ask of such data, because it can be made as large as one likes: put a narrow enough bell on each level. The likelihood of data with levels is a *probability*. So let the decoder have one: spread it as before, $\mathcal N(\hat x_0,\sigma_1^2)$ for each pixel, and give each level the mass that falls nearer to it than to any other. With $K$ levels at
# $-1+2j/(K-1)$, $j=0,\dots,K-1$, the bins have half-width $1/(K-1)$. The first is open to the left and the last to the right:
#
# $$
# \begin{gathered}
# p_\theta(x_0=\text{level }j\mid x_1) \;=\; \Phi\Big(\frac{b_j-\hat x_0}{\sigma_1}\Big)-\Phi\Big(\frac{a_j-\hat x_0}{\sigma_1}\Big) ,\\
# a_j,\,b_j=-1+\frac{2j\mp1}{K-1} ,\quad a_0=-\infty ,\ b_{K-1}=\infty ,
# \end{gathered}
# \tag{5.31}
# $$
#
# and for an image the product over pixels. Each $b_j$ is the next $a_{j+1}$, so the sum over $j$ telescopes to $\Phi(\infty)-\Phi(-\infty)$:
#
# $$
# \sum_{j=0}^{K-1}p_\theta(x_0=\text{level }j\mid x_1) \;=\; 1 ,
# \tag{5.32}
# $$
#
# wherever $\hat x_0$ lies, even far outside. That makes the whole bound one on a probability, and its unit is easy: **bits per dimension**, $L/(D\log2)$. Sending pixels without any model costs $\log_217=4.09$ bits each.
#
# How to compute a difference of two $\Phi$'s that are both nearly one, or both nearly zero? Not by subtraction. The library takes logarithms of $\Phi$, which exist with full precision in the tail, and reflects a bin that lies to the right of the mean to its left.

# %%
levels = -1 + 2 * torch.arange(DIGITS_LEVELS) / (DIGITS_LEVELS - 1)
centre = torch.tensor([[-1.03], [-0.9], [0.07], [1.5]])            # four predictions x̂_0
decoder = Gaussian(centre, torch.tensor(0.09**2))
edges = torch.cat([torch.tensor([-math.inf]), (levels[1:] + levels[:-1]) / 2,
                   torch.tensor([math.inf])])
below = (1 + torch.erf((edges - centre) / (0.09 * 2**0.5))) / 2
masses = decoder_log_masses(decoder, DIGITS_LEVELS).exp()[:, 0]
claim("5.31", below.diff(dim=1), masses, tol=1e-8, note="against differences of erf")
for place in (0.0, -40.0, 1e4):
    far = Gaussian(torch.full((1, 1), place), torch.tensor(schedule.beta[1].item()))
    claim("5.32", decoder_log_masses(far, DIGITS_LEVELS).exp().sum(), 1.0,
          note=f"x̂_0 = {place:g}, σ = 0.01")
far = Gaussian(torch.tensor([[0.5]]), torch.tensor(schedule.beta[1].item()))
fact("log mass of level 0 if x̂_0 = 0.5 and σ = 0.01, exactly",
     decoder_log_prob(torch.tensor([[-1.0]]), far, DIGITS_LEVELS), digits=4)

u = torch.linspace(-5, 5, 10_001)
approximate = (1 + torch.tanh((2 / math.pi) ** 0.5 * (u + 0.044715 * u**3))) / 2
fact("largest error of the tanh that is used for Φ",
     (approximate - torch.special.ndtr(u)).abs().max(), digits=2)

# %% [markdown]
# > **Pitfall: three ways to a wrong number of bits.** (1) *The density instead of the mass.* `levels=None` on data with levels gives "bits per dimension" that are negative, the better the narrower the decoder. (2) *A floor under the mass.* Code that clamps the mass at $10^{-12}$ before the logarithm charges at most 28 nats for a pixel, however wrong. The exact number in the cell above is ten thousand; with the clamp the result is no bound any
# > more. (3) *A chain with fewer steps.* A bound computed on 50 of 1000 steps bounds another model, the one that samples in 50 steps. (Two things that look suspicious and are not: the official code's $\tanh$ for $\Phi$, whose error is printed above, is harmless, though not needed; and clipping $\hat x_0$ inside the bound is legal, because it defines another model, whose bound it then is.)

# %%
pixel = Gaussian(torch.zeros(1, 1), torch.tensor(0.01**2))         # a perfect guess of one pixel
exact = decoder_log_prob(torch.zeros(1, 1), pixel, DIGITS_LEVELS)
fact("bits for a pixel that is known: density, σ = 0.01",
     -decoder_log_prob(torch.zeros(1, 1), pixel, None) / bit)
print("    mass: less than 1e-9 bits" if 0 <= -exact / bit < 1e-9 else "    mass: something")


# %% [markdown]
# **Exercise 5.6** (3 points, 15 minutes, ●●○) — *Masses that sum to one.* Write `level_masses(mean, std, K)` that returns the tensor of the $K$ probabilities (5.31) of one pixel, for a number `mean` ($\hat x_0$), a standard deviation `std` and an int `K`. (`torch.special.ndtr` is $\Phi$. Here plain differences are good enough.)

# %%
def level_masses(mean, std, K):
    """The probabilities of the K levels of one pixel, a tensor with sum 1."""
    raise NotImplementedError("your turn")


check("5.6", level_masses)

# %% [markdown]
# **Real digits, known entropy.** Which law of digits has an entropy that we know? The law "pick one of the 1,442 training images at random" (no two of them are equal). Its entropy is $\log_2 1442=10.5$ bits for a whole image, or 0.164 bits per dimension. Its perfect denoiser is known as well: `FiniteData`. By (5.7), for a law of probabilities,
#
# $$
# \frac{\mathbb E\,L}{D\log2} \;\ge\; \frac{H}{D\log2} \;=\; \frac{\log_2 1442}{64} \qquad\text{on average over the training set.}
# \tag{5.33}
# $$
#
# A pocket version comes first, four grey levels of one pixel, each with probability $\tfrac14$: two bits, and every expectation is a sum. Then the digits. How near does the bound come, with the perfect denoiser of the training set? And what does *the same model* charge for digits that it has not seen?

# %%
four = torch.tensor([-0.875, -0.75, 0.5, 0.875])                   # four of the 17 levels
known = FiniteData(four[:, None]).denoiser(schedule)
small = GaussianDiffusion(schedule, variance="posterior")
rows, noises = four.repeat_interleave(len(z))[:, None], z.repeat(4)[:, None]
total = prior_term(small, four[:, None]).mean()
for t in range(1, 1001):
    term = bound_term(known, small, rows, t, noises, levels=DIGITS_LEVELS)
    total = total + (term.view(4, -1) @ p_z).mean()
claim("5.33", math.log(4), total, relation="<=", note="one pixel, four levels")
fact("one pixel, four levels: entropy and bound, in bits", [math.log2(4), total / bit], digits=4)

held_out, _ = digits("heldout")
some = torch.cat([flat[::121], held_out.flatten(1).double()[::30]])   # 12 of each
memory = FiniteData(flat).denoiser(schedule)
found = variational_bound(memory, small, some, levels=DIGITS_LEVELS,
                          generator=torch.Generator().manual_seed(5))
bits = found.total / (64 * bit)                                    # as `bits_per_dim` has it
digits_entropy = math.log2(len(flat)) / 64
fact("training images, and how many are distinct", [len(flat), len(flat.unique(dim=0))])
fact("bits per dimension of training digits: without a model, entropy, the bound",
     [math.log2(17), digits_entropy, bits[:12].mean()], digits=3)
fact("    standard error of the last", bits[:12].std() / 12**0.5, digits=1)
early = found.steps[:12].mean(0) / (64 * bit)                      # t = 2 … 1000
fact("    of it paid at t ≤ 100, 101…250, 251…500, 501…1000",
     [early[:99].sum(), early[99:249].sum(), early[249:499].sum(), early[499:].sum()], digits=2)
fact("held-out digits, the same model", bits[12:].mean(), digits=2)
fact("    of it paid at t ≤ 10",
     (found.steps[12:, :9].sum(1) + found.decoder[12:]).mean() / (64 * bit), digits=2)
wider = bits_per_dim(memory, diffusion, some[:12], levels=DIGITS_LEVELS,
                     generator=torch.Generator().manual_seed(5))
fact("training digits again, with the variance β", wider.mean(), digits=2)

fig, ax = figure()
for rows, colour, label in ((slice(None, 12), BLUE, "training digits"),
                            (slice(12, None), VERMILLION, "held-out digits")):
    paid = torch.cat([found.decoder[rows].mean()[None], found.steps[rows].mean(0)])
    spent = found.prior[rows].mean() + paid.flip(0).cumsum(0).flip(0)
    ax.loglog(steps, spent / (64 * bit), color=colour, label=label)
ax.axhline(digits_entropy, color=GREY, ls=":", lw=1.5)
ax.axhline(math.log2(17), color=GREY, ls="--", lw=1.5)
ax.text(1000, 0.115, "entropy", ha="right", va="top", fontsize=9)
ax.text(1000, 4.8, "no model", ha="right", va="bottom", fontsize=9)
ax.set(xlabel="$t$", ylabel="bits per dimension", ylim=(1e-4, 1e4),
       title="paid from $T$ down to $t$")
ax.legend(fontsize=9, loc="lower left")
show(fig, """Bits per dimension paid from the top of the chain down to t, both axes logarithmic.
Coming from t = 1000 two curves rise together until about t = 300. That of the training digits then
stays at their entropy. That of the held-out digits goes on rising, crosses four bits, the price
without a model, near t = 30, and reaches more than a thousand at t = 1.""")

# %% [markdown]
# *Where along the chain are the bits paid?* Read the picture from right to left. *The training digits* cost 0.165 bits per dimension, hardly more than the entropy: ten bits are enough to say *which* image it is, and after that everything is known. Nearly all of it is paid at $t>100$, at noise levels where several images come into question. Down to there nothing is left to guess, and the early steps cost nothing. *The held-out digits* cost more than a thousand bits per dimension, where sending the pixels without any model costs four. The perfect denoiser of the training set is sure, wrongly, that
# $x_1$ is one of its own images. This is memorising, in the most sensitive of all measures, and no picture is needed to see it. A network that is trained on $L_{\text{simple}}$ and stopped in time lies between the two, and chapter 7 measures where.
#
# And the variance: on these data $\tilde\beta_t$ is nearly optimal and $\beta_t$ costs half a bit per dimension, the price of the variance from section 5.6. On the smooth mixture it was the other way round. The best variance depends on the data.
#
# For comparison, what a real network does: on CIFAR-10 DDPM splits its bound into a *rate* of 1.78 bits per dimension, $L_T$ and the steps, and a *distortion* of 1.97, the decoder. More than half of the bits describe the last, invisible trace of noise in each pixel.
#
# **Exercise 5.7** (3 points, 15 minutes, ●●○) — *Explain.* A colleague trains the same network twice. Trained on the bound it reaches 3.70 bits per dimension and poor pictures; trained on $L_{\text{simple}}$ it reaches 3.75 bits and good ones. "One of these numbers must be wrong", she says. "Both losses are the ELBO, both have the same minimiser, so the better likelihood must have the better samples." In six to ten sentences: what is right in this, where
# does it go wrong, and where along the chain does each loss spend its attention? (A person marks this one.)

# %%
answer_5_7 = ""

check("5.7", answer_5_7)

# %% [markdown]
# ## 5.13 A learned variance needs a second loss
#
# If the best variance depends on the data, let the network predict it: $\log\sigma_t^2$ between $\log\tilde\beta_t$ and $\log\beta_t$, one number per coordinate, `variance="learned"`. (The laws stay products over the coordinates, so (5.15) becomes a sum over them, each with its own $\sigma_t^2$.) But $L_{\text{simple}}$ does not contain $\sigma_t^2$, so it cannot train it. *Improved DDPM* adds a little of the bound, with the mean held fixed in it; the sum is the *hybrid loss*:
#
# $$
# L_{\text{hybrid}} \;=\; L_{\text{simple}} \;+\; \lambda\,\sum_{t=1}^{T}\frac{L_{t-1}\big|_{\operatorname{sg}[\mu_\theta]}}{D\log 2}
# \;=\; \mathbb E_t\Big[\,\ell_t+\lambda\,T\,\frac{L_{t-1}\big|_{\operatorname{sg}[\mu_\theta]}}{D\log2}\Big] ,
# \qquad \lambda=0.001 .
# \tag{5.34}
# $$
#
# $\operatorname{sg}$, for *stop gradient*, says that its argument counts as a constant; in code it is `detach`. The bar says that $\operatorname{sg}[\mu_\theta]$ stands in the term where $\mu_\theta$ stood. So $L_{\text{simple}}$ alone trains the mean, and the bound alone trains the variance. The second form is how it is computed, with a random $t$: a sum over $T$ steps is $T$ times an average, so **the term must be multiplied by $T$**.

# %%
learned = GaussianDiffusion(schedule, variance="learned")
x0, noise = torch.randn(2, 8, 3, generator=g)
t = torch.tensor([1, 2, 10, 50, 100, 300, 700, 1000])
raw = torch.randn(8, 6, generator=g)                             # prediction first, variance second


def gradient_of(loss):
    """The gradient of a loss, summed over the batch, with respect to the network's output."""
    output = raw.clone().requires_grad_()
    return torch.autograd.grad(loss(lambda x, t: output).sum(), output)[0]


hybrid = gradient_of(lambda f: hybrid_loss(f, learned, x0, t, noise, levels=None, weight=0.002))
simple = gradient_of(lambda f: simple_loss(f, learned, x0, t, noise))
claim("5.34", hybrid[:, :3], 2 / 3 * (raw[:, :3] - noise), note="the mean: L_simple's gradient")
# With λ = 0.001 and T = 1000 the factor would be 1, which a loss that forgot both has too.
bound_only = gradient_of(lambda f: bound_term(f, learned, x0, t, noise, levels=None))
claim("5.34", hybrid[:, 3:], 0.002 * 1000 * bound_only[:, 3:] / (3 * bit),
      note="the variance: the bound's, times λT")
print("gradient of L_simple for the variance:", simple[:, 3:].abs().max().item())
fact("gradient for the variance with and without the factor T: ratio",
     (hybrid[:, 3:] / (0.002 * bound_only[:, 3:] / (3 * bit))).mean())

# %% [markdown]
# > **Pitfall: $\lambda$ without $T$.** The paper's $\lambda=0.001$ goes with the whole sum. The official code multiplies the term of a random $t$ by $T/1000$. Code that one meets multiplies by 0.001 only: at $T=1000$ the gradient for the variance is a thousand times too small. Nothing fails. Adam, which rescales every weight's gradient, even hides the slip from weights that serve the variance alone; in weights shared with the mean, the variance is no longer heard. The other half of the same slip is to forget the `detach`: then the bound's noisy gradients reach the mean as well.
#
# ## 5.14 One random t per image, and which one
#
# A training step draws for each image of the batch one $t$, and one $\varepsilon$; (3.33) showed that this is unbiased. It is noisy, and for images, whose squared error is a mean over many coordinates, most of that noise comes from $t$. That part can be cut without any cost. Each $t$ must be uniform on $1..T$; but nothing says that those of a batch must be independent. `sample_steps` knows three ways: *uniform*, independent; *antithetic*, in pairs $t,\,T+1-t$; *stratified*, one from each of $n$ equal parts of $1..T$, in random order, so that each $t_i$ by itself is uniform again. In all three
#
# $$
# \mathbb E\Big[\frac1n\sum_{i=1}^{n}\ell_{t_i}\Big] \;=\; \frac1T\sum_{t=1}^{T}\ell_t ,
# \tag{5.35}
# $$
#
# since the expectation of a sum needs only the law of each $t_i$ by itself.

# %%
batches = 4000
found = {}
for method in ("uniform", "antithetic", "stratified"):
    drawn = torch.stack([sample_steps(128, 1000, g, method) for _ in range(batches)])
    means = best[drawn - 1].mean(1)                                # the perfect network's loss
    found[method] = means.std()
    claim("5.35", means.mean(), best.mean(), standard_error=found[method] / batches**0.5,
          note=method)
fact("deviation of a batch's loss, 128 images: uniform, antithetic, stratified",
     list(found.values()), digits=2)

# %% [markdown]
# Stratified steps remove nearly all of the noise that comes from $t$. (The noise that comes from $x_0$ and $\varepsilon$ remains.) Antithetic pairs help where the loss is monotone in $t$, which it nearly is here, and they would do harm to a loss that is symmetric about the middle of the chain.
#
# > **Pitfall: the step that is never trained.** `torch.randint(low, high)` does not include `high`. Code that one meets draws the steps by `randint(0, 999)` from the indices $0..999$: the largest one never comes. It is the very step at which sampling starts. The mirror image of it, `randint(1, T)`, is the same slip in the paper's counting. Right is `randint(1, T + 1)`, or `sample_steps`.
# >
# > **Pitfall: one $t$ for the whole batch.** `t = randint(1, T + 1, (1,))` is unbiased too. Its batch loss has the deviation of a single draw: as far as $t$ is concerned, the batch has one image.

# %%
wrong = torch.randint(1, 1000, (1_000_000,), generator=g)
right = torch.randint(1, 1001, (1_000_000,), generator=g)
fact("largest step in a million draws: randint(1, T), randint(1, T + 1)",
     [int(wrong.max()), int(right.max())])
fact("deviation of a batch's loss with one t for the batch", best.std(correction=0), digits=2)

# %% [markdown]
# ## 5.15 A network, at last
#
# All is ready: draw $x_0$, $t$ and $\varepsilon$, make $x_t$ by (3.14), ask the network, take the squared error, step down its gradient. This is DDPM's Algorithm 1, and Exercise 5.8 is its one line that is not bookkeeping. We train on points in the plane, drawn from a mixture of three Gaussians, so that the oracle can say afterwards how far the network is from perfect.
#
# **Exercise 5.8** (2 points, 10 minutes, ●●○) — *Your own loss.* In `my_ddpm.py`, write `simple_loss(denoiser, x0, t, noise, alpha_bar)` that returns one number, the mean over the batch and over the coordinates of the squared error of the guessed noise. `x0` and `noise` have shape $(B,D)$, `t` is an int64 tensor $(B,)$ with a step for each row, and the network is called as `denoiser(x_t, t)`.

# %%
check("5.8", "my_ddpm.simple_loss")


# %% [markdown]
# The network: two coordinates, and $t$ through eight cosines of different speeds, so that neighbouring steps look alike and distant ones do not (chapter 6 says more about such clocks). Three layers of 64. The chain has 200 steps, with $\beta$'s five times as large as DDPM's, which destroys as much.

# %%
class Guess(nn.Module):
    """A small network that guesses ε from x_t (B, 2) and t (B,)."""

    def __init__(self, T, generator, width=64):
        super().__init__()
        self.T = T
        sizes = (2 + 8, width, width, width, 2)
        self.layers = nn.ModuleList(nn.Linear(m, n) for m, n in pairwise(sizes))
        for layer in self.layers:
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, x, t, y=None):
        clock = torch.cos(math.pi * t[:, None] / self.T * torch.arange(1, 9))
        h = torch.cat([x, clock.to(x.dtype)], dim=1)
        for layer in self.layers[:-1]:
            h = nn.functional.silu(layer(h))
        return self.layers[-1](h)


plane = toy_law("mixture")
chain = NoiseSchedule.linear(T=200, beta_1=5e-4, beta_T=0.1)
process = GaussianDiffusion(chain, variance="beta")
g = torch.Generator().manual_seed(1)
network = Guess(chain.T, g)
optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 3000)
history = []
for _ in range(3000):                                              # a fixed number of steps
    x0 = plane.sample(256, g)
    t = sample_steps(256, chain.T, g, "stratified")
    noise = torch.randn(256, 2, generator=g)
    loss = simple_loss(network, process, x0, t, noise).mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    slower.step()
    history.append(loss.item())
network.requires_grad_(False)
fact("parameters of the network", sum(p.numel() for p in network.parameters()))
print("the loss came down from above 0.6 to below 0.3:",
      history[0] > 0.6 and sum(history[-300:]) / 300 < 0.3)

# %% [markdown]
# > **Pitfall: `loss.backward(loss)`.** The argument of `backward` is the gradient that arrives from above, 1 by default. Handing it the loss itself, as code that one meets does, multiplies every gradient by the loss. With $\ell$ for the loss of one batch,
# >
# > $$
# > \ell\,\nabla_\theta\,\ell \;=\; \nabla_\theta\,\tfrac12\ell^2 .
# > \tag{5.36}
# > $$
# >
# > On one batch this is the right direction at the wrong length. Adam rescales its steps and hides it. The symptom is subtle: as the loss falls, so does the weight of new gradients against Adam's memory of old ones; and an average over batches is no longer the gradient of the average loss.

# %%
weights_now = network.layers[0].weight.clone().requires_grad_()


def loss_of(weight):
    """The batch's loss, as a function of the first layer's weights."""
    values = {"layers.0.weight": weight}

    def ask(x, t):
        return torch.func.functional_call(network, values, (x, t))

    return simple_loss(ask, process, x0, t, noise).mean()


loss = loss_of(weights_now)
loss.backward(loss)
slipped = weights_now.grad
(half_square,) = torch.autograd.grad(loss_of(weights_now) ** 2 / 2, weights_now)
claim("5.36", slipped, half_square, note="what the slip minimises")

# %% [markdown]
# **How good is it?** The floor at each $t$ is $\xi_t$, by a sum over a grid in the plane. What the network adds to it is measured directly, as the distance from the oracle's $\varepsilon^*$ in (5.24). Subtracting the floor from a noisy loss would drown it. And from (5.22) and (5.24) the errors have a price in bits: if $L^*$ is the bound with the perfect denoiser $\varepsilon^*$ and the same variances, the network's is larger by
#
# $$
# \mathbb E\,L\;-\;\mathbb E\,L^* \;=\; D\sum_{t=1}^{T}\omega_t\,(\ell_t-\xi_t) .
# \tag{5.37}
# $$

# %%
poor, perfect = (expected_terms(strong, denoiser, x0_places[:, 0]) for denoiser in (wiggle, oracle))
own = torch.stack([loss_and_floor(mixture, strong.schedule, t, wiggle)[2] for t in (1, 2, 3, 4)])
claim("5.37", dropped_weights(strong)[1:] @ own, (x0_probability @ (poor - perfect)).sum(),
      note="the poor guess of section 5.8, exactly")

mesh = torch.cartesian_prod(torch.linspace(-5, 5, 161), torch.linspace(-5, 5, 161))


def plane_floor(t):
    """ξ_t of the plane's mixture, by a sum over the mesh."""
    density = plane.marginal(chain, t).log_prob(mesh).exp()
    explained = (density[:, None] * plane.eps(chain, mesh, t) ** 2).sum() / density.sum()
    return 1 - explained / 2


def own_error(t, count=4000):
    """(1/D) E‖ε* − ε̂‖² of the network, from `count` draws."""
    x_t = process.q_sample(plane.sample(count, g), t, torch.randn(count, 2, generator=g))
    return ((plane.eps(chain, x_t, t) - network(x_t, torch.full((count,), t))) ** 2).mean()


every = range(1, chain.T + 1)
xi = torch.stack([plane_floor(t) for t in every])
own = torch.stack([own_error(t) for t in every])
fact("floor of L_simple in the plane", xi.mean())
fact("    and by quarters of 1..T", xi.view(4, 50).mean(1), digits=2)

log_plane = plane.log_prob(mesh)
plane_entropy = -(log_plane.exp() * log_plane).sum() / log_plane.exp().sum() / bit
omega = dropped_weights(process)[1:]
ratio = chain.posterior_variance[2:] / chain.beta[2:]
moment = torch.trace(plane.covariance) + (plane.mean**2).sum()
rest = chain.alpha_bar[-1]                                         # ᾱ_T
constant = ((ratio - 1 - ratio.log()).sum() + torch.log(2 * math.pi * chain.beta[1])
            - rest - torch.log(1 - rest) + rest * moment / 2)
ideal = (constant + 2 * omega @ xi) / bit                          # the bound at the floor, in bits
fact("entropy of the points in bits, and the bound of a perfect network",
     [plane_entropy, ideal])
claim("5.37", plane_entropy, ideal, relation="<=", note="entropy ≤ perfect network")
claim("5.24", own.mean(), 0.05 * (1 - xi).mean(), relation="<=",
      note="the network leaves less than 5 % of what can be guessed")

# %% tags=["nbval-ignore-output"]
for name, values in (("network", xi + own), ("floor", xi)):
    quarters = ", ".join(f"{x:.4f}" for x in values.view(4, 50).mean(1))
    print(f"the loss by quarters of t, {name}: {quarters}")
cost = 2 * omega * own / bit
print("steps at which the guess 0 does better:", [t for t in every if (xi + own)[t - 1] > 1])
print(f"price of the network's errors: {cost.sum():.2f} bits, {cost[:20].sum():.2f} at t <= 20")

# %% [markdown]
# The last cell's numbers depend on the machine, so they are not compared from run to run. On ours the network's loss exceeds the floor by about a hundredth in the first quarter and by less than a thousandth in the others. In bits most of the price (0.17 of 0.20 bits on ours) is paid at the first twenty steps, where the weights are large and the loss is nearly all floor. Whoever watches only $L_{\text{simple}}$ will call this network finished.
#
# **Samples.** The walk is that of chapter 4, with the network in the place of the oracle: take the mean (4.23), and add noise of variance $\sigma_t^2$, except at the end:
#
# $$
# x_{t-1} \;=\; \frac{1}{\sqrt{\alpha_t}}\Big(x_t-\frac{\beta_t}{\sqrt{1-\bar\alpha_t}}\;\hat\varepsilon(x_t,t)\Big)+\sigma_t\,z ,
# \qquad z\sim\mathcal N(0,I)\ \text{ if } t>1 ,\quad z=0\ \text{ if } t=1 .
# \tag{5.38}
# $$
#
# This is DDPM's Algorithm 2. Chapter 7 looks into it; here it is in ten lines.

# %%
x = torch.randn(4000, 2, generator=g)
x_T = x
for t in range(chain.T, 0, -1):
    eps = network(x, torch.full((len(x),), t))
    mean = (x - chain.beta[t] / (1 - chain.alpha_bar[t]).sqrt() * eps) / chain.alpha[t].sqrt()
    if t == chain.T:
        first_mean = mean
    x = mean
    if t > 1:                                                      # no noise on the finished point
        x = x + chain.beta[t].sqrt() * torch.randn(x.shape, generator=g)

claim("5.38", first_mean,
      process.reverse(network(x_T, torch.full((4000,), chain.T)), x_T, chain.T).mean,
      note="one step's mean, against the library")
nearest = plane.responsibilities(chain, x, 1).argmax(1)
shares = torch.bincount(nearest, minlength=3) / len(x)
off = (x.T.cov() - plane.covariance).abs().max()
print("shares of the three components within 0.05:",
      bool((shares - plane.weights).abs().max() < 0.05))
print("covariance within 0.15:", bool(off < 0.15))
fact("weights of the three components", plane.weights, digits=2)

fig, (left, right) = figure(1, 2)
t = torch.arange(1, chain.T + 1)
left.fill_between(t, 0, xi, color=GREY, alpha=0.3, lw=0, label="cannot be guessed")
left.plot(t, xi + own, color=VERMILLION, label="the network")
left.plot(t, xi, color=BLUE, ls="--", label="floor")
left.axhline(1, color=GREY, lw=1, ls=":", label="guess 0")
left.set(xscale="log", xlabel="$t$", ylabel=r"$\ell_t$", ylim=(0, 1.15))
left.legend(fontsize=9, loc="lower left")
plot_density_2d(right, plane, (-2.8, 2.6, -2.6, 2.4), colour=ORANGE)
plot_points(right, x[:1500], s=3, color="black", alpha=0.5)
right.set(xlabel="first coordinate", ylabel="second coordinate",
          xlim=(-2.8, 2.6), ylim=(-2.6, 2.4))
show(fig, """Left, the network's loss against t on a logarithmic axis: it lies on the floor, which
falls from near 1 at t = 1 to near 0 at t = 200, but for a strip at small t, where it begins a
little above 1, the dotted line of the guess 0. Right, fifteen hundred generated points lie on the
three components of the true density, one round, one narrow and slanted, one broad.""")

# %% [markdown]
# *Has it learned?* On the left, the network's loss against the floor: the grey part is what nobody can guess, and between it and the network there is a strip that one can see only at small $t$. At the first two steps it lies above the dotted line, the loss of the guess 0: there is next to nothing to be learned there, and it has learned something else. On the right, points that nobody drew from the data: noise, walked back by a network that was asked for nothing but a squared error. A few stand between the components, where data are rare: 200 steps and a small network leave their mark.
#
# ## 5.16 What we have
#
# | equation | what it says | in `ddpm_lite` | elsewhere |
# |---|---|---|---|
# | (5.1) | likelihood and divergence; the entropy is the floor | `oracle`: `log_prob` | |
# | (5.5), (5.6) | the bound, and its gap | `variational_bound` | DDPM Eq. 3 |
# | (5.7), (5.8) | what the gap is made of, on average over the data | | |
# | (5.12), (5.13) | the bound, telescoped | `Bound` | DDPM Eq. 5 |
# | (5.14) | the prior term | `prior_term` | DDPM Eq. 5 |
# | (5.15), (5.18) | the steps, from the means and from the noise | `bound_term` | DDPM Eqs. 8, 12 |
# | (5.16), (5.19) | the last step for continuous data, as a squared error of the noise | `bound_term` at `t=1` | |
# | (5.18), (5.20) | the weights | `dropped_weights` | DDPM Eq. 12; Variational diffusion models |
# | (5.21) | the simple loss | `simple_loss` | DDPM Eq. 14 |
# | (5.22) | the bound as a weighted sum of the same errors | `dropped_weights` | |
# | (5.24) | loss = floor + the network's own error | `oracle`: `eps` | |
# | (5.26), (5.27) | denoising score matching is the same loss | `Prediction.score` | Vincent 2011 |
# | (5.28), (5.29) | data whose bound is known exactly | | |
# | (5.30) | what a wrong variance costs | | |
# | (5.31), (5.32) | the decoder for data with levels | `decoder_log_prob`, `decoder_log_masses` | DDPM Eq. 13 |
# | (5.33) | bits per dimension | `bits_per_dim` | |
# | (5.34) | the hybrid loss | `hybrid_loss` | Improved DDPM, section 3.1 |
# | (5.35) | which $t$ | `sample_steps` | |
# | (5.36) | what `loss.backward(loss)` minimises | | |
# | (5.37) | what a network's own error costs in bits | `dropped_weights` | |
# | (5.38) | the walk | `reverse` | DDPM Algorithm 2 |
#
# The loss is derived, its floor is known, and three layers of 64 are enough for points in the plane. An image has neighbours, edges and scales, about which a network of this kind knows nothing. Chapter 6 builds one that does.

# %%
progress("5")

# %% [markdown]
# ## 5.17 History and further reading
#
# - Jascha Sohl-Dickstein and others, *Deep unsupervised learning using nonequilibrium thermodynamics* ([1503.03585](https://arxiv.org/abs/1503.03585), 2015): the bound of a noising chain, and its terms as divergences between Gaussians.
# - Diederik Kingma and Max Welling, *Auto-encoding variational Bayes* ([1312.6114](https://arxiv.org/abs/1312.6114), 2013): the evidence lower bound with a learned $q$, trained by reparameterisation. A diffusion model is such a model with a fixed $q$.
# - Pascal Vincent, *A connection between score matching and denoising autoencoders* (Neural Computation 23(7), 2011): our (5.27).
# - Jonathan Ho, Ajay Jain and Pieter Abbeel, *Denoising diffusion probabilistic models* ([2006.11239](https://arxiv.org/abs/2006.11239), 2020): the noise parameterisation, the simple loss, the decoder with levels, rate and distortion; the numbers quoted in sections 5.8 and 5.12 are its Tables 1 and 2 and section 4.3.
# - Alex Nichol and Prafulla Dhariwal, *Improved denoising diffusion probabilistic models* ([2102.09672](https://arxiv.org/abs/2102.09672), 2021): a learned variance, the hybrid loss, and the observation that the first few steps dominate the bound.
# - Diederik Kingma, Tim Salimans, Ben Poole and Jonathan Ho, *Variational diffusion models* ([2107.00630](https://arxiv.org/abs/2107.00630), 2021): the bound as an integral over the signal-to-noise ratio, our (5.20) in the limit of short steps.
# - Tiankai Hang and others, *Efficient diffusion training via Min-SNR weighting strategy* ([2303.09556](https://arxiv.org/abs/2303.09556), 2023): weights $\min(\mathrm{SNR}_t,c)/\mathrm{SNR}_t$ in front of the noise's error, with a constant $c$. They turn away from the bound even further than the simple loss does, and are derived as a compromise between the tasks that the steps are.

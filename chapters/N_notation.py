# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Notation
#
# One symbol has one meaning through the whole book, and one name in the code. This page is the law
# for both. Where a paper or another library writes things differently, one table translates; and a
# map at the end says from what each result of the book follows, and by which assumption.
#
# **You will** be able to look up what a letter means, to read DDPM, DDIM and diffusers side by side,
# and to see which assumption an equation rests on. **You need** nothing; the map is for coming back
# to. **Time**: 10 minutes to read, without the map, and a few seconds to run.

# %%
import math

import torch

from ddpm_lite import GaussianDiffusion, NoiseSchedule
from ddpm_lite.claims import claim, fact
from ddpm_lite.plotting import BLUE, GREY, VERMILLION, figure, show, use_book_style

use_book_style()

betas = torch.tensor([0.10, 0.25, 0.40, 0.55], dtype=torch.float64)     # β_1 … β_4
a = NoiseSchedule.from_betas(betas)         # on this page a is always a schedule …
d = GaussianDiffusion(a)                    # … and d a diffusion that runs on it

# %%
fig, ax = figure(row_height=2.2)
for t in range(5):
    ax.text(t, 0, f"$x_{t}$", ha="center", va="center", bbox={"boxstyle": "circle", "fc": "white"})
    ax.text(t, 0.55, f"$t = {t}$", ha="center", color=BLUE)
    ax.text(t, -0.75, f"$t_0 = {t - 1}$" if t else "no index", ha="center", color=VERMILLION)
    if t:
        ax.annotate("", (t - 0.2, 0), (t - 0.8, 0), arrowprops={"arrowstyle": "->", "color": GREY})
        ax.text(t - 0.5, 0.15, rf"$\beta_{t}$", ha="center", color=GREY)
ax.text(-0.55, 0.55, "book", ha="right", color=BLUE)
ax.text(-0.55, -0.75, "diffusers", ha="right", color=VERMILLION)
ax.set(xlim=(-1.3, 4.5), ylim=(-1, 0.9))
ax.axis("off")
show(fig, """Five states in a row, x_0 to x_4, joined by arrows that carry β_1 to β_4. Above them
the book's t, from 0 to 4; below them the index of diffusers, which has none for x_0 and then runs
from 0 to 3.""")

# %% [markdown]
# *Which number belongs to which state?* A chain of four steps has five states. The book's $t$
# counts how many steps of noise a state has seen. Code that keeps no entry for the clean data
# starts at $0$ with one step of noise: its index is $t_0 = t-1$.
#
# ## Time
#
# | Letter | Meaning |
# |---|---|
# | $t$ | step number, $0 \le t \le T$; of two steps the *later* one. $t = 0$ is clean data |
# | $s$ | the *earlier* of two steps, $0 \le s < t$; in a single step $s = t-1$. The pair is always given in the order $(t, s)$, in code too. Where a third step is needed, $s<t<u$ |
# | $k$ | running index of a sum or product over steps |
# | $T$ | length of the chain on which a network is trained |
# | $S$ | number of steps taken when sampling, $S \le T$ |
# | $\tau_1 < \dots < \tau_S$ | the steps that are kept when $S < T$; $\tau_0 = 0$ |
#
# `transition`, `marginal` and `q_sample` accept step $0$. A denoiser, `predict`, `posterior` and
# `reverse` need $t \ge 1$: from clean data there is nothing to remove. In code $t$ is an `int` for
# a whole batch or an int64 tensor `(B,)`.
#
# ## The schedule
#
# $$
# \alpha_t = 1-\beta_t ,\qquad \bar\alpha_t = \prod_{k=1}^{t}\alpha_k ,\qquad \bar\alpha_0 = 1 ,\qquad \mathrm{SNR}_t = \frac{\bar\alpha_t}{1-\bar\alpha_t} .
# \tag{N.1}
# $$
#
# | Letter | Meaning | In code |
# |---|---|---|
# | $\beta_t$ | variance of the noise that step $t$ adds, $t \ge 1$ | `a.beta`, with `a.beta[0] == 0` |
# | $\alpha_t$ | share of the variance that step $t$ keeps | `a.alpha`, with `a.alpha[0] == 1` |
# | $\bar\alpha_t$ | share of the data's variance that is left in $x_t$ | `a.alpha_bar`, with `a.alpha_bar[0] == 1` |
# | $\mathrm{SNR}_t$ | signal-to-noise ratio, a ratio of variances | `a.snr`, with `a.snr[0] == inf` |
# | $\delta$ | offset of the cosine schedule, $0.008$; away from that schedule a small error, such as $\delta x_0$, an error of $x_0$ | `NoiseSchedule.cosine(T, offset=…)` |
#
# The tables have $T+1$ float64 entries each, and entry $t$ belongs to step $t$.

# %%
alpha_bar = [1, 0.9, 0.9 * 0.75, 0.9 * 0.75 * 0.6, 0.9 * 0.75 * 0.6 * 0.45]        # by hand
claim("N.1", alpha_bar, a.alpha_bar, relation="definition")
assert a.T == 4 and a.alpha_bar.shape == (5,)       # T + 1 entries: there is an entry for t = 0
assert a.alpha_bar[0] == 1 and a.alpha[0] == 1 and a.beta[0] == 0 and a.snr[0] == math.inf
fact("beta, t = 0 … 4", a.beta, digits=2)
fact("alpha_bar, t = 0 … 4", a.alpha_bar, digits=3)
fact("snr, t = 1 … 4", a.snr[1:], digits=3)

# %% [markdown]
# A step need not be a single one. With two indices, *from $s$ to $t$*:
#
# $$
# \bar\alpha_{t\mid s} = \frac{\bar\alpha_t}{\bar\alpha_s} ,\qquad \beta_{t\mid s} = 1-\bar\alpha_{t\mid s} ,\qquad \tilde\beta_{t\mid s} = \frac{1-\bar\alpha_s}{1-\bar\alpha_t}\,\beta_{t\mid s} .
# \tag{N.2}
# $$
#
# For $s=t-1$ these are $\alpha_t$, $\beta_t$ and $\tilde\beta_t$. The last is
# `a.posterior_variance`, and its entries $0$ and $1$ are both zero: when $x_0$ is given, nothing is
# uncertain about $x_0$.

# %%
t, s = 4, 1
ratio = 0.75 * 0.6 * 0.45                           # ᾱ_4/ᾱ_1: the α's after step 1, up to step 4
x_s = torch.ones(1, 1, dtype=torch.float64)
jump = d.transition(x_s, t, s)
claim("N.2", [ratio**0.5, 1 - ratio], [jump.mean.item(), jump.variance.item()])
back = d.posterior(x_s, x_s, t, s)                  # its variance does not depend on x_t and x_0
claim("N.2", (1 - 0.9) / (1 - 0.9 * ratio) * (1 - ratio), back.variance.item(), note="beta tilde")
assert a.posterior_variance[0] == 0 and a.posterior_variance[1] == 0
fact("beta tilde of single steps, t = 0 … 4", a.posterior_variance, digits=3)
fact("beta of the jump from 1 to 4, and its beta tilde", [1 - ratio, back.variance.item()], 2)

# %% [markdown]
# ## Variables and predictions
#
# $$
# x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\varepsilon ,\qquad
# v = \sqrt{\bar\alpha_t}\,\varepsilon - \sqrt{1-\bar\alpha_t}\,x_0 ,\qquad
# \text{score} = -\frac{\varepsilon}{\sqrt{1-\bar\alpha_t}} .
# \tag{N.3}
# $$
#
# | Letter | Meaning | In code |
# |---|---|---|
# | $x_0$ | clean data: an image `(B, C, H, W)` in $[-1, 1]$, or a point `(B, D)` | `x0` |
# | $x_t$ | the same after $t$ steps of noise; $x_s$ after $s$ | `x_t`, `x_s` |
# | $\varepsilon$ | standard Gaussian noise, $\varepsilon \sim \mathcal N(0, I)$. Beside an $x_t$ it is the noise of the whole way from $x_0$, as in (N.3) | `eps`, `noise` |
# | $\varepsilon_t$, $\bar\varepsilon_t$ | the noise of step $t$ alone, (2.2); and, where it has to be told apart, that of the whole way, (3.14) | |
# | $x_{1:T}$ | the path $(x_1,\dots,x_T)$ | |
# | $z$ | fresh noise drawn while sampling; elsewhere a local letter | `z` |
# | $v$ | velocity, and nothing else | `v` |
# | $y$ | condition (a class); the null class has the number `num_classes` | `y` |
# | $D$ | number of coordinates of $x_0$ | |
# | $x^{(1)},\dots,x^{(N)}$ | the $N$ images, or points, of a training set | |
#
# The last part of (N.3) takes the $\varepsilon$ that made one $x_t$ and gives the score of
# $q(x_t\mid x_0)$. Put $\mathbb E[\varepsilon \mid x_t]$, which is what a good network predicts, in
# its place, and the result is the score of the law of $x_t$, $\nabla\log q(x_t)$ (chapter 4).
#
# An index below $x$ or $\varepsilon$ is a step where there is a chain. Where there is none, it numbers
# coordinates or draws: in the toolbox, in chapter 1 and appendix B, in sections 2.4 and 10.5, and in
# (7.22).
#
# **Marks.** A *hat* is a prediction, of a network or an oracle: $\hat\varepsilon$, $\hat x_0$,
# $\hat v$, $\hat s$ (of the score); with $\theta$ where the weights matter, $\hat\varepsilon_\theta(x_t, t)$. A *bar* is
# accumulated over steps: $\bar\alpha_t$, and $\bar\varepsilon$ for several noises merged into one.
# A *tilde* is conditioned on $x_0$: $\tilde\mu_t$, $\tilde\beta_t$. A *star* is the exact minimiser
# that no network can beat: $\varepsilon^*$, $v^*$, and $\sigma_*^2$ for the best variance. (Some local uses are
# akin. A hat is also on an estimate, such as $\hat V$ or chapter 1's $\hat p_N$, and on an approximation, such as
# chapter 8's classifier $\hat q$; and $\hat\sigma$ is the DDIM paper's name for the deviation $\sqrt{\beta_{t\mid s}}$, in chapter 9. A bar is
# also on an average of draws, $\bar x$. A tilde is also on what is only tried, as in Heun's method, (T.40) and (9.29), and on chapter 8's $\tilde y$ and $\tilde\pi_t$, in the table below.)

# %%
g = torch.Generator().manual_seed(0)
x0, eps = torch.randn(2, 3, 1, 8, 8, generator=g, dtype=torch.float64)   # three images each
signal, noise = 0.405**0.5, (1 - 0.405) ** 0.5      # at t = 3
x_t = signal * x0 + noise * eps
claim("N.3", x_t, d.q_sample(x0, 3, eps))
found = d.predict(eps, x_t, 3)                      # a perfect network would put out ε …
claim("N.3", x0, found.x0, note="… from which x_0 follows")
claim("N.3", signal * eps - noise * x0, found.v, note="and v")
claim("N.3", -eps / noise, found.score, note="and the score")

# %% [markdown]
# ## Laws
#
# | Letter | Meaning | In code |
# |---|---|---|
# | $\mathcal N(x;\,m,\,V)$ | Gaussian density at $x$, of mean $m$ and **variance** (or covariance) $V$; the law itself is $\mathcal N(m, V)$ | `Gaussian(mean, variance)` |
# | $x \sim p$ | $x$ is drawn from $p$. A draw is never *equal* to a law | `.sample(generator)` |
# | $q$ | anything of the forward process, fixed: $q(x_t\mid x_s)$, $q(x_t\mid x_0)$, $q(x_s\mid x_t,x_0)$ | `d.transition`, `d.marginal`, `d.posterior` |
# | $p_\theta$, $\mu_\theta$ | anything of the model, learned: $p_\theta(x_s\mid x_t)$ and its mean; $\theta$ are the network's weights | `d.reverse` |
# | $p_{\text{data}}$ | the law of the data, $q(x_0)$ | `oracle.py`, where it is known |
# | $\tilde\mu_t$, $\tilde\beta_t$ | mean and variance of $q(x_{t-1}\mid x_t,x_0)$ | `d.posterior(…).mean`, `.variance` |
# | $\sigma_t$ | standard deviation of a reverse step, and nothing else; $\sigma$ where only one step is in sight | |
# | $\eta$ | $\sigma_t = \eta\,\sqrt{\tilde\beta_{t\mid s}}$: $0$ for DDIM, $1$ for DDPM | `eta` |
# | $w$ | strength of guidance, and nothing else; $0$ is none, $-1$ is no label | `w` |
# | $\mathrm{KL}(p\,\Vert\,q)$, $\mathbb E$, $\operatorname{Var}$, $\log$ | divergence in nats, expectation, variance, natural logarithm | `.kl(other)` |
# | $\mathrm{JS}(p,q)$, $W_1$, $W_2$ | Jensen–Shannon divergence, and Wasserstein distances (chapter 1, [T.12](A_toolbox.ipynb#T.12-How-we-will-measure)) | `wasserstein` |
# | $\varphi$, $\Phi$ | density and distribution function of $\mathcal N(0,1)$. With a step for an index, $\varphi_t$ is an angle, (4.45) | |
# | $P(\dots)$, $I$, $\nabla$ | probability of an event, identity matrix, gradient with respect to the point ($x_t$, as a rule) | |
#
# **Letters that a chapter keeps for several sections.** Each is defined where the last column says.
#
# | Letter | Meaning | Defined |
# |---|---|---|
# | $m_t$, $V_t$ | mean and variance of one coordinate of $x_t$, data and noise both random; for $V_0$, the data's, chapters 4 to 10 write $V$ | above (2.5) |
# | $c_{t,k}$ | weight of $\varepsilon_k$ in $x_t$ | (3.16) |
# | $\kappa_t$ | their sum, the size of the noise if one draw serves all steps | (3.21) |
# | $\ell_t$ | mean squared error of a noise predictor at step $t$, per coordinate | (3.33), (5.21) |
# | $c_0$, $c_t$ | weights of $x_0$ and $x_t$ in the mean of $q(x_s\mid x_t,x_0)$; both depend on $t$ and $s$ | (4.18) |
# | $m(x_t)$ | the exact mean $\mathbb E[x_s\mid x_t]$ of a step back | above (4.27) |
# | $\sigma_*^2$ | the best single variance of a reverse step | (4.28) |
# | $\xi_t$ | the unpredictable share of the noise, between $0$ and $1$ | (4.30) |
# | $\varphi_t$ | angle whose cosine is $\sqrt{\bar\alpha_t}$ and whose sine is $\sqrt{1-\bar\alpha_t}$ | (4.45) |
# | $H$ | entropy of a law, in nats; in chapters 6 and on, next to a width $W$, the height of an image | (1.4), (5.1) |
# | $L(x_0)$, $L$ | the bound on $-\log p_\theta(x_0)$ | (5.5) |
# | $L_T$, $L_{t-1}$, $L_0$ | its terms: the prior, the step from $t$ to $t-1$, the decoder. The index is the state that the step arrives at | (5.13) |
# | $\omega_t$, $C_t$ | weight of the squared noise error in $L_{t-1}$, and what the variance costs | (5.18) |
# | $L_{\text{simple}}$ | average of $\ell_t$ over $t$ | (5.21) |
# | $L_{\text{hybrid}}$ | the same, with a little of the bound for a learned variance | (5.34) |
# | $\bar\theta_n$ | weights averaged over the first $n$ gradient steps | (7.14) |
# | $q_\sigma$ | a law of the path with the marginals of the chain and reverse deviations $\sigma_2,\dots,\sigma_T$ of our choice | (9.3), (9.4) |
# | $c_t^\sigma$ | weight of the surprise in $x_t$ in its step back; $c_t$ is that of DDPM | (9.7) |
# | $\hat\varepsilon_w$, $\pi_t$ | the guided guess, and the tilted law of $x_t$ of which it is the score | (8.8), (8.15) |
# | $\tilde\pi_t$ | the tilted data with noise added, which it is *not* the score of | (8.17) |
# | $\varnothing$, $\tilde y$ | the null class, and the label after the coin that may drop it | (8.12) |
# | $g$ | in chapter 8 the guidance scale of other software, $1+w$ | (8.11) |
# | $u_t$, $r_t$ | $x_t/\sqrt{\bar\alpha_t}$ and its noise-to-signal ratio $\sqrt{1-\bar\alpha_t}/\sqrt{\bar\alpha_t}$, the clock of the ODE | (9.20) |
# | $\rho$, $x_\rho$, $u(x,\rho)$ | flow matching's clock, from $0$ (noise) to $1$ (data), against $t$; the point $\rho x_0+(1-\rho)\varepsilon$; the mean velocity $\mathbb E[x_0-\varepsilon\mid x_\rho]$ there | (1.28), (10.21) to (10.23), (B.31) |
# | $\varsigma$ | deviation of the decoder of a VAE or VQ-VAE, as $\sigma$ is a reverse step's | (1.24), (B.9) |
# | $\kappa$, $\kappa_t$ | in chapter 10 the continuous time $t/T$; in appendix B the factor between $x_t$ and flow matching's point | section 10.11, (B.37) |
#
# All other letters ($a, b, c, f, g, h, m, n, u, A, B, K, R, V, \gamma, \lambda, \rho, \psi, \dots$) are local, and so are those of
# the table outside of the sections that it names: they
# are introduced where they are used, and belong to that section. (So do the parts of a network in chapter 6, where $k$ is the size of
# a kernel, $C$ a number of channels and $C_*$ an inner one, $\delta$ an offset, $y$ the output of a layer and $\omega_i$ the speed of a
# clock's hand.) The toolbox has no chain, so there
# $k$ is local as well.
#
# **Words with one meaning.** *Transition*: $q(x_t\mid x_s)$. *Marginal*: $q(x_t\mid x_0)$, given
# one clean $x_0$; averaged over the data it is *the law of $x_t$*, $q(x_t)$. *Posterior*:
# $q(x_s\mid x_t,x_0)$, which knows $x_0$. *Reverse step*: $p_\theta(x_s\mid x_t)$, which does not;
# its true counterpart is $q(x_s\mid x_t)$. *Score*: $\nabla\log q(x_t)$. *Denoiser*: any callable
# `(x_t, t, y=None)`, network or not, that returns the prediction that was agreed on (`eps`, `x0` or
# `v`). *Schedule*: the sequence $\bar\alpha_0,\dots,\bar\alpha_T$, from which all else follows.
#
# **Difficulty of exercises.** ●○○ a line or two, by one formula. ●●○ two ideas, or one with a trap.
# ●●● a derivation or a program of your own; take half an hour.
#
# ## Paper, book, diffusers
#
# | | Book | In the papers | In diffusers |
# |---|---|---|---|
# | step of $x_t$ | $t = 1..T$ | $t = 1..T$ (DDPM, DDIM); DDPM's own code counts from 0 | `timestep` $t_0 = t-1$ |
# | $\bar\alpha_t$ | `a.alpha_bar[t]` | $\bar\alpha_t$ in DDPM, **$\alpha_t$ in DDIM** | `alphas_cumprod[t0]` |
# | clean data | $\bar\alpha_0 = 1$ | $\alpha_0 = 1$ in DDIM | a special case: `final_alpha_cumprod`, `one` |
# | $x_t$ from $x_0$, $\varepsilon$ | `d.q_sample(x0, t, noise)` | the argument of $\epsilon_\theta$ in DDPM, Eq. 14 | `add_noise(x0, noise, t0)` |
# | network predicts | `prediction="eps"`, `"x0"`, `"v"` | $\epsilon_\theta$; $f_\theta$ for $\hat x_0$ in DDIM | `"epsilon"`, `"sample"`, `"v_prediction"` |
# | one reverse step | `d.reverse(output, x_t, t, s, eta)`, a law from which to draw | DDPM, Algorithm 2; DDIM, Eq. 12 | `step(output, t0, x_t)`, and `eta` for DDIM |
# | variance of a reverse step | `"posterior"`, `"beta"`, `"learned"` | $\tilde\beta_t$, $\beta_t$, learned between them | `"fixed_small"`, `"fixed_large"`, `"learned_range"` |
# | a network | `network(x_t, t)`, a tensor | $\epsilon_\theta(x_t,t)$ | `network(x_t, t0).sample` |
# | the simple loss | `simple_loss`, a *mean* over coordinates | a squared norm, so a *sum*: DDPM, Eq. 14 | a mean, in its training script |
# | a whole walk | `sample`, or `generate` for its end | DDPM, Algorithm 2 | `DDPMPipeline`, `DDIMPipeline` |
# | fresh noise | `eta`, which has no default | $\sigma(\eta)$, DDIM Eq. 16 | `eta=0.0` of `DDIMScheduler.step` |
# | kept steps | $\tau_1 < \dots < \tau_S$, `steps` | $\tau$, $S$ in DDIM | `set_timesteps(S)`, decreasing |
# | which steps are kept | `spacing`, a rule or a list | $\tau$ | `timestep_spacing`, `steps_offset` |
# | the step to clean data | to $\bar\alpha_0=1$ | to $\alpha_0=1$ | `set_alpha_to_one=True` |
# | clipping | `clip=(-1, 1)`, and $\hat\varepsilon$ derived again | not in the papers' equations | `clip_sample`; derived again only with `use_clipped_model_output=True` |
# | inversion | `ddim_invert` | DDIM Eq. 13, upwards | `DDIMInverseScheduler` |
# | offset of the cosine schedule | $\delta$, `offset` | $s$ in Improved DDPM | inside `"squaredcos_cap_v2"` |
# | guidance | $w$ | $w$ | `guidance_scale` $= 1+w$ |
# | no guidance | $w=0$ | $w=0$ | `guidance_scale` of $1$ or less switches it off |
# | no label | the null class, `num_classes` | $\varnothing$ | an empty prompt, in its pipelines for text |
# | labels dropped in training | `label_dropout` | $p_{\text{uncond}}$ | left to the training script |
# | rescaling | `guided(…, rescale=ζ)` | $\phi$, Lin et al., section 3.4 | `guidance_rescale`, applied to what the network predicts |
#
# Papers: DDPM, arXiv 2006.11239; Improved DDPM, 2102.09672; DDIM, 2010.02502; classifier-free
# guidance, 2207.12598. The row that costs most is the first. With their table in the middle,
#
# $$
# \bar\alpha_t = \mathtt{alphas\_cumprod}[t-1] ,\qquad t = 1..T .
# \tag{N.4}
# $$
#
# Here their table is made by hand, so that this page runs without diffusers; the comparison with
# the library itself is a test.

# %%
alphas_cumprod = torch.cumprod(1 - betas, dim=0)    # T entries, and none for the clean data
claim("N.4", alphas_cumprod, a.alpha_bar[1:])
t = 2
fact("alpha_bar of step 2, right: entry t - 1 of their table", alphas_cumprod[t - 1], digits=3)
fact("and wrong: entry t", alphas_cumprod[t], digits=3)

# %% [markdown]
# > **Pitfall: an index off by one.** Feed a book's $t$ to a table that starts at step 1 and every
# > state is taken for one that is one step noisier. At $T = 1000$ neighbouring entries are nearly
# > equal, pictures still appear, and nothing fails, except at $t=T$, where the table ends.
#
# For guidance the two conventions are the same line written twice, with $\hat\varepsilon_c$ for the
# conditional and $\hat\varepsilon_\varnothing$ for the unconditional prediction:
#
# $$
# (1+w)\,\hat\varepsilon_c - w\,\hat\varepsilon_\varnothing \;=\; \hat\varepsilon_\varnothing + (1+w)\,(\hat\varepsilon_c-\hat\varepsilon_\varnothing) .
# \tag{N.5}
# $$

# %%
w, guidance_scale = 1.5, 2.5
with_y, without = torch.tensor([[0.3, -1.2], [0.1, -0.7]], dtype=torch.float64)
theirs = without + guidance_scale * (with_y - without)
claim("N.5", (1 + w) * with_y - w * without, theirs)
fact("guided prediction for w = 1.5", theirs, digits=3)

# %% [markdown]
# ## Where the conventions are tested
#
# | Convention | Test |
# |---|---|
# | index 0 is clean data; all else follows from $\bar\alpha$ | `tests/test_schedule.py` |
# | steps $(t, s)$ compose; one posterior family for every $\eta$; all forms of a prediction agree | `tests/test_process.py` |
# | their $t_0$ is our $t-1$; same steps, same samples | `tests/test_diffusers_parity.py` |
# | numbered equations of the papers | `tests/papers.py`, used by the tests above |
# | exact laws, scores and posteriors | `tests/test_oracle.py` |
# | the bound equals the entropy where it must; decoder masses sum to one | `tests/test_objective.py` |
# | their network, our network: same weights, same output | `tests/test_interchange.py` |
#
# ## Derivation map
#
# Which equation comes from which, and what has to be assumed on the way? The spine is
# (2.2) → (3.5) → (3.7) → (3.10), (3.14) → (4.5) → (4.10), (4.12) → (4.18) → (4.23) → (4.49) → (5.13) → (5.18) → (5.21) → (7.1), (7.2), and with (9.6) → (9.14) → (9.24); from (3.14) a branch goes to (4.43), (4.44) and from there to (5.26).
# In the table **bold** is an assumption on the noises, the data or the model: take it away and the arrow breaks. The rest is calculation.
#
# | From | by | follows | where |
# |---|---|---|---|
# | (1.5), the divergence | its expectation split; $H(p)$ does not depend on $\theta$; and (1.1) for the expectation, **draws independent, of one law** | (1.6), nearest in KL is most likely | [1.2](01_a_model_is_a_distribution.ipynb#1.2-Nearest,-by-likelihood) |
# | (1.6), with the law of the list for $p$ | an entropy of $N$ equal masses; **nothing restricts the model** | (1.18), memorising scores best | [1.4](01_a_model_is_a_distribution.ipynb#1.4-From-finitely-many-draws) |
# | (2.2), one step | **Gaussian noise, independent of $x_{t-1}$**; an affine map, (T.8) | (2.3), the step as a density | [2.1](02_forward_process.ipynb#2.1-One-step) |
# | (2.3) | the product rule; **Markov: $\varepsilon_t$ independent of all before it** | (2.4), the law of the path | [2.2](02_forward_process.ipynb#2.2-A-chain-of-steps) |
# | (2.2) | **$\varepsilon_t$ independent of $x_{t-1}$**, so that variances add; data of any law | (2.5), (2.16), mean and variance | [2.3](02_forward_process.ipynb#2.3-Why-shrink?), [2.5](02_forward_process.ipynb#2.5-How-much-is-left) |
# | (2.2) at $t-1$ and at $t$ | one put into the other, with two noises | (3.5) | [3.3](03_one_step_marginal.ipynb#3.3-Two-steps-make-one) |
# | (3.5) | **the two noises are independent**, so that (3.3) applies, proved as (T.9) to (T.12) | (3.6), (3.7), two steps make one | [3.3](03_one_step_marginal.ipynb#3.3-Two-steps-make-one) |
# | (3.7), as the pattern | induction over $t$, (3.12), (3.13); **$\varepsilon_t$ independent of $x_0$ and all earlier noises** | (3.10), (3.14), the marginal | [3.5](03_one_step_marginal.ipynb#3.5-The-induction) |
# | (2.2), unrolled to $x_0$ | **all noises independent**; a sum that telescopes | (3.15) to (3.17), and (3.10) again | [3.6](03_one_step_marginal.ipynb#3.6-The-weight-of-every-noise) |
# | (3.10) | the same induction, started at $s$; **later noises independent of $x_s$** | (3.23), any jump | [3.8](03_one_step_marginal.ipynb#3.8-From-any-s-to-any-t) |
# | (3.23), (3.10) | **the noise of the jump is independent of $x_s$, given $x_0$** | (3.27), the pair | [3.9](03_one_step_marginal.ipynb#3.9-The-pair,-not-only-the-points) |
# | (3.10), (3.14) | an average over $p_{\text{data}}$; **$\bar\varepsilon_t$ independent of $x_0$** | (3.30) to (3.32), the law of $x_t$ | [3.10](03_one_step_marginal.ipynb#3.10-When-the-start-is-data) |
# | (4.3), the product rule in two orders | **Markov, (4.4)** | (4.5), three known Gaussians | [4.2](04_posterior.ipynb#4.2-Bayes-once-more,-and-the-Markov-property) |
# | (4.5) with (2.3), (3.10) | the square completed, (T.4); the identity (4.9); $t\ge2$ | (4.10), (4.12), (4.13), the posterior | [4.3](04_posterior.ipynb#4.3-Completing-the-square) |
# | (3.10), (3.27) | **jointly Gaussian given $x_0$**, conditioned by (T.19) | (4.15), the same again | [4.4](04_posterior.ipynb#4.4-The-second-way:-condition-a-joint-Gaussian) |
# | (4.13) | (3.23) in the place of (2.3): nothing used that the steps are neighbours | (4.18), any two steps | [4.5](04_posterior.ipynb#4.5-Any-two-steps) |
# | (4.18) | $x_0$ from $x_t$ and the noise: (3.14) solved is (4.21); the identity (4.9) | (4.23), the mean from the noise | [4.6](04_posterior.ipynb#4.6-The-mean,-in-terms-of-the-noise) |
# | (4.2), (4.18) | the law of total variance; **exact mean, one variance for all $x_t$** | (4.29), (4.32), the best variance | [4.9](04_posterior.ipynb#4.9-The-best-variance-depends-on-the-data) |
# | (4.32) | the best linear predictor, (4.33); **data of variance at most one** for the bound $\beta_{t\mid s}$ | (4.35), its bounds | [4.9](04_posterior.ipynb#4.9-The-best-variance-depends-on-the-data) |
# | (3.26), (T.19) | **Gaussian data** | (4.37), the step back is Gaussian | [4.10](04_posterior.ipynb#4.10-The-true-step-back-is-not-Gaussian) |
# | (4.1), in logarithms | **small $\beta_{t\mid s}$, smooth $\log q(x_s)$** | (4.39), (4.40), it is nearly so | [4.10](04_posterior.ipynb#4.10-The-true-step-back-is-not-Gaussian) |
# | (3.30) | a derivative under the integral, allowed for $t\ge1$; Bayes' rule | (4.43), and with (3.14) also (4.44): the score | [4.11](04_posterior.ipynb#4.11-The-score:-what-a-noisy-point-knows-about-its-origin) |
# | (3.14) | a rotation, because the squares of the two factors sum to one | (4.45), (4.46), velocity | [4.12](04_posterior.ipynb#4.12-One-object,-four-names) |
# | (4.18), (4.23) | **a prediction in the place of $x_0$, a Gaussian with a variance of our choice** | (4.49), the reverse step | [4.13](04_posterior.ipynb#4.13-A-reverse-step,-and-a-first-walk) |
# | (4.18), (4.49) | **a perfect prediction**; the tower property | (4.50), its mean is exact | [4.13](04_posterior.ipynb#4.13-A-reverse-step,-and-a-first-walk) |
# | (4.49), a law for each step | the product rule; an integral over all paths | (5.2), (5.3), the model's likelihood | [5.2](05_epsilon_loss.ipynb#5.2-Why-the-likelihood-is-out-of-reach) |
# | (5.3) | multiply and divide by $q(x_{1:T}\mid x_0)$; Jensen, (T.27) | (5.4), (5.5), the bound | [5.3](05_epsilon_loss.ipynb#5.3-The-bound,-by-Jensen) |
# | (5.5) | the model's joint law split the other way, (T.28) | (5.6) to (5.8), what the gap is | [5.4](05_epsilon_loss.ipynb#5.4-The-bound,-as-a-divergence) |
# | (5.5) with (2.4), (5.2) | **Markov, (4.4)**, through (4.5); a sum that telescopes; the tower property | (5.12), (5.13), three kinds of terms | [5.5](05_epsilon_loss.ipynb#5.5-Telescoping) |
# | (5.13) with (4.13), (4.49) | the divergence of two Gaussians, (T.24); **one variance for all coordinates** | (5.14) to (5.16), every term | [5.6](05_epsilon_loss.ipynb#5.6-Every-term-in-closed-form) |
# | (5.15) with (4.23) | both means written with a noise; $x_t$ cancels | (5.17) to (5.19), the weight $\omega_t$ | [5.7](05_epsilon_loss.ipynb#5.7-From-the-mean-to-the-noise) |
# | (5.22) | **all weights replaced by one: a decision, not a consequence** | (5.21), the simple loss | [5.8](05_epsilon_loss.ipynb#5.8-The-simple-loss,-and-what-it-drops) |
# | (5.21) | the tower property; $\hat\varepsilon$ sees $x_t$ only | (5.24), a floor and the network's own error | [5.9](05_epsilon_loss.ipynb#5.9-The-best-possible-loss) |
# | (5.24), (4.44) | division by $1-\bar\alpha_t$ | (5.26), (5.27), score matching | [5.10](05_epsilon_loss.ipynb#5.10-Denoising-score-matching-is-the-same-loss) |
# | (5.21), (3.33) | one random $t$ and one $\varepsilon$ for each image: unbiased | (7.1), algorithm 1 | [7.1](07_training_and_sampling.ipynb#7.1-Two-algorithms) |
# | (4.49) at $s=t-1$, (4.23) | **a trained network in the place of the perfect prediction** | (7.2), algorithm 2 | [7.2](07_training_and_sampling.ipynb#7.2-The-line-of-algorithm-2) |
# | (4.44), given $y$ | Bayes' rule; a gradient sees no constants | (8.3), (8.4), guidance by a classifier | [8.2](08_guidance.ipynb#8.2-Bayes'-rule,-on-scores) |
# | (8.4), taken $1+w$ times | **both denoisers exact**; a sum of gradients is that of a product | (8.8), (8.9), without a classifier | [8.4](08_guidance.ipynb#8.4-Guidance-without-a-classifier) |
# | (5.24), given $y$ | **labels dropped independently of all else**; the tower property | (8.12), (8.13), one network is both | [8.6](08_guidance.ipynb#8.6-One-network,-two-denoisers) |
# | (4.18), (9.14) | **Gaussian data, an exact guided guess, short steps** | (8.21), (8.22), what guided samplers draw | [8.10](08_guidance.ipynb#8.10-The-same-in-closed-form) |
# | (5.21), which sees pairs $(x_0,x_t)$ only | **any joint law with the same marginals may be used** | (9.1), (9.2) | [9.1](09_ddim.ipynb#9.1-What-the-loss-does-not-see) |
# | (9.3) to (9.5), steps back chosen Gaussian | induction from $T$ down; independent noises, (T.8), (T.9) | (9.6), (9.8): the same marginals for every $\sigma$ | [9.3](09_ddim.ipynb#9.3-Every-member-has-the-right-marginals) |
# | (9.4) | $\sigma_t^2=\tilde\beta_t$; the identity (4.9) | (9.9), (9.10): DDPM is a member | [9.4](09_ddim.ipynb#9.4-From-DDIM-to-DDPM) |
# | (9.4), (9.6) | **a prediction in the place of $x_0$**; nothing used that $s=t-1$ | (9.14), the update, on any sub-sequence | [9.6](09_ddim.ipynb#9.6-The-update,-term-by-term) |
# | (9.14) with $\sigma_t=0$ | division by $\sqrt{\bar\alpha_s}$; steps that become dense | (9.20), (9.24), the ODE | [9.11](09_ddim.ipynb#9.11-The-equation-behind-it) |
# | (9.24), (4.44) | the heat equation, and the continuity equation | (9.25) to (9.27): it carries the laws of $x_t$ | [9.11](09_ddim.ipynb#9.11-The-equation-behind-it) |
# | (9.24), (4.44) | a noise level at every moment | (10.19), the ODE of the score | [10.11](10_how_good.ipynb#10.11-Door:-the-continuous-view) |
# | (4.47) | two predictions of one network, two weights | (10.15), (10.16), losses by weight | [10.9](10_how_good.ipynb#10.9-Door:-velocity,-and-weights) |
# | (3.14), (9.14) | the same signal-to-noise ratio on another path, and a factor for the size | (10.21) to (10.23), flow matching | [10.12](10_how_good.ipynb#10.12-Door:-flow-matching) |
#
# The other six families have their derivations in appendix B, each on its own:
#
# | From | by | follows | where |
# |---|---|---|---|
# | (B.1), the game | the integrand made largest point by point; **nothing restricts the discriminator** | (B.2), (B.3), the Jensen–Shannon divergence | [B.1](B_families.ipynb#B.1-GAN:-what-the-game-is-worth) |
# | (B.9), an integral over $z$ | Jensen, (T.27); or the product rule in the other order | (B.10), (B.11), the bound and what it loses | [B.2](B_families.ipynb#B.2-VAE:-what-the-bound-loses) |
# | (B.9), (B.11) | the same for a word that the encoder is sure of | (B.20), (B.21), the bound of a VQ-VAE | [B.3](B_families.ipynb#B.3-VQ-VAE:-rounding,-and-what-is-learned-through-it) |
# | (T.33), change of variables | **each map invertible**; determinants multiply, a triangular one is a product | (B.22), (B.23), the likelihood of a flow | [B.4](B_families.ipynb#B.4-Flow:-volumes,-and-a-curve-with-an-inverse) |
# | the product rule | **masks: no path from a coordinate to itself or an earlier one** | (B.27), (B.28), an exact likelihood | [B.5](B_families.ipynb#B.5-Autoregressive:-a-product,-a-mask,-and-the-price-of-bins) |
# | (B.31), straight lines | the tower property, twice | (B.33), the regression; (B.34), (B.35), it carries the laws | [B.7](B_families.ipynb#B.7-Flow-matching:-why-the-average-velocity-is-enough) |
# | (B.32), (9.14) | the same signal-to-noise ratio, and a factor for the size | (B.37), (B.38): Euler's step is DDIM's | [B.7](B_families.ipynb#B.7-Flow-matching:-why-the-average-velocity-is-enough) |
#
# Down to (4.23) nothing is approximate, and the data need no more than a mean and a variance, where
# these are named. Two properties of the noises carry everything: *Gaussian*, and *independent of what
# came before*. The model's own assumptions enter with (4.49); chapter 4 measures what they cost.

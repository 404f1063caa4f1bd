# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The seven families in detail

# %% tags=["hide-input"]
import math
from itertools import pairwise, product

import sympy
import torch
from torch.distributions import MultivariateNormal
from torch.nn.functional import logsigmoid

from ddpm_lite import GaussianDiffusion, NoiseSchedule
from ddpm_lite.claims import claim, fact
from ddpm_lite.data import digits
from ddpm_lite.families import VAE, VQVAE, Autoregressive, Flow, FlowMatching
from ddpm_lite.families import flow_matching as fm
from ddpm_lite.families.flow import spline, spline_inverse
from ddpm_lite.families.gan import discriminator_loss, generator_loss, r1_penalty
from ddpm_lite.families.vae import kl_to_standard, log_normal
from ddpm_lite.oracle import GaussianMixture
from ddpm_lite.plotting import (
    BLUE,
    GREY,
    ORANGE,
    PURPLE,
    VERMILLION,
    figure,
    plot_density,
    show,
    use_book_style,
)
from ddpm_lite.sampling import sample

use_book_style()
DOUBLE = torch.float64
data = GaussianMixture([0.4, 0.6], [[-1.2], [0.9]], [[[0.16]], [[0.25]]])   # a law on a line
weights, means, widths = data.weights, data.means[:, 0], data.covariances[:, 0, 0]
line = torch.linspace(-9, 9, 3601, dtype=DOUBLE)                            # a grid, step 0.005


def seeded(seed):
    """A fresh generator: whatever is drawn here says from which seed."""
    return torch.Generator().manual_seed(seed)


def draws(*shape, seed):
    """Standard normal numbers in double precision."""
    return torch.randn(shape, generator=seeded(seed), dtype=DOUBLE)


def eye(n):
    """The identity matrix, in double precision."""
    return torch.eye(n, dtype=DOUBLE)


def integrate(values):
    """Over the grid, by the trapezoidal rule: nearly exact for smooth functions that die out."""
    return torch.trapezoid(values, line, dim=-1)


# %% tags=["hide-input"]
def density_at(x, rho):
    """Of ρ·x_0 + (1−ρ)·ε for those data: each hump shrinks and takes on noise."""
    spread = rho**2 * widths + (1 - rho) ** 2
    bells = torch.exp(-((x[..., None] - rho * means) ** 2) / (2 * spread))
    return (weights * bells / (2 * math.pi * spread).sqrt()).sum(-1)


velocity = fm.exact_velocity(data)
rhos = torch.linspace(0, 1, 161, dtype=DOUBLE)
start, target = draws(40, 1, seed=4), data.sample(40, seeded(5))
ways = [start]
for now, then in pairwise(rhos.tolist()):
    ways.append(fm.carry(velocity, ways[-1], now, then, steps=1, solver="heun"))
ways = torch.stack(ways)[:, :, 0]
height = torch.linspace(-3, 3, 241, dtype=DOUBLE)
shade = torch.stack([density_at(height, rho) for rho in rhos], dim=1)

fig, axes = figure(1, 2, row_height=3.0, sharey=True)
straight = start[:, 0] + rhos[:, None] * (target - start)[:, 0]
for ax, paths, title in zip(axes, (straight, ways),
                            ("forty lines from noise to data", "the average velocity, followed"),
                            strict=True):
    ax.imshow(shade.numpy(), origin="lower", extent=(0, 1, -3, 3), aspect="auto", cmap="Greys",
              vmax=0.8)
    ax.plot(rhos, paths, color=BLUE, lw=0.7)
    ax.set(xlabel=r"$\rho$", title=title, xlim=(0, 1), ylim=(-3, 3))
axes[0].set_ylabel(r"$x_\rho$")
show(fig, """Two panels over the time ρ from 0 to 1, each with the same grey density behind: one
broad hump on the left that splits into two on the right. In the first panel forty straight lines
cross each other everywhere; in the second forty curves, from the same starts, never cross and part
in the middle towards the two humps.""")

# %% [markdown]
# *Where do two points go that meet?* On the left, straight lines join draws of noise to draws of data; at a crossing, two points at one place have two velocities. On the right every point takes the *average* velocity of all lines through its place. No curve is straight now and none cross, yet at every $\rho$ the points have the same density, which is shown in grey. Chapter 1 states one equation for each of seven families of models. This appendix derives them, step by step; the picture belongs to the last, in section B.7.
#
# **You will**
# - find the best discriminator of a GAN, what its generator then minimises, and why that can fail to settle;
# - derive the VAE's bound in two ways, say what is lost, and solve the linear case completely;
# - say what a straight-through gradient ignores, and what the codebook learns from instead;
# - invert a coupling and a spline, and read off their determinant;
# - prove that regression on the velocities of straight lines gives a field that carries noise to data, and that DDIM walks the same field.
#
# **You need** from the toolbox [KL between Gaussians](A_toolbox.ipynb#T.6-KL-between-Gaussians), [Jensen's inequality](A_toolbox.ipynb#T.7-Jensen's-inequality), [reparameterisation](A_toolbox.ipynb#T.8-Reparameterisation), [change of variables](A_toolbox.ipynb#T.9-Change-of-variables) and [Euler's method](A_toolbox.ipynb#T.10-ODEs-and-the-order-of-Euler's-method); sections B.6 and B.7 also use chapters 4, 5 and 9.
#
# **Time** about an hour to read, half a minute to run. There are no exercises. The seven sections do not need each other, except that B.3 ends with an argument of B.2.
#
# Throughout, $p_{\text{data}}$ is the law of the data and $p_\theta$ the model's. In the sections on VAE and VQ-VAE, $q$ is what the encoder says and not, as elsewhere, a law of the noising. Nearly all checks are exact: networks with random weights obey the equations as well as trained ones.

# %% [markdown]
# ## B.1 GAN: what the game is worth
#
# A generator turns $z\sim\mathcal N(0,I)$ into $x=G(z)$; the law of $x$ is $p_\theta$, and nobody writes it down. A discriminator gives every point a **logit** $h(x)$, and with $\operatorname{sig}(h)=1/(1+e^{-h})$ it says that $x$ is data with probability $\operatorname{sig}(h(x))$. The value of the game is
#
# $$
# J(h,\theta)\;=\;\mathbb E_{x\sim p_{\text{data}}}\log\operatorname{sig}\big(h(x)\big)+\mathbb E_{x\sim p_\theta}\log\big(1-\operatorname{sig}(h(x))\big) .
# \tag{B.1}
# $$
#
# The discriminator wants it large, the generator small.
#
# **The best discriminator.** Write (B.1) as one integral, $\int\big[p_{\text{data}}\log\operatorname{sig}(h)+p_\theta\log\operatorname{sig}(-h)\big]dx$, since $1-\operatorname{sig}(h)=\operatorname{sig}(-h)$. At each $x$ the integrand depends on $h$ at this $x$ only. So if nothing restricts $h$, the integral is largest when the integrand is, *point by point*. With $\frac{d}{dh}\log\operatorname{sig}(h)=\operatorname{sig}(-h)$ (chain rule), the derivative of
# the integrand is $p_{\text{data}}\operatorname{sig}(-h)-p_\theta\operatorname{sig}(h)=p_{\text{data}}-(p_{\text{data}}+p_\theta)\operatorname{sig}(h)$. It falls in $h$, so its only zero is a maximum: $\operatorname{sig}(h^*)=p_{\text{data}}/(p_{\text{data}}+p_\theta)$, which in logits is
#
# $$
# h^*(x)\;=\;\log p_{\text{data}}(x)-\log p_\theta(x) .
# \tag{B.2}
# $$
#
# **What it reaches.** Put it in. With the average law $r=\tfrac12(p_{\text{data}}+p_\theta)$ we have $\operatorname{sig}(h^*)=p_{\text{data}}/(2r)$ and $\operatorname{sig}(-h^*)=p_\theta/(2r)$. Each logarithm of a quotient by $2r$ is one by $r$ minus $\log2$, and the expectations of the former are divergences, (T.21):
#
# $$
# \max_hJ(h,\theta)\;=\;2\,\mathrm{JS}(p_{\text{data}},p_\theta)-\log4 ,
# \qquad\mathrm{JS}=\tfrac12\mathrm{KL}(p_{\text{data}}\,\Vert\,r)+\tfrac12\mathrm{KL}(p_\theta\,\Vert\,r) .
# \tag{B.3}
# $$
#
# Since $\mathrm{KL}\ge0$, (T.22), the least possible value is $-\log4$, and it is reached only at $p_\theta=p_{\text{data}}$. The cell takes laws on five places, so that a batch with the right counts *is* the law; it finds the best logits by Newton's method on the library's loss, which knows nothing of (B.2).

# %%
here, there = torch.tensor([1, 4, 2, 2, 1]), torch.tensor([3, 1, 2, 1, 3])   # ten, at five places
p, p_model = here.double() / 10, there.double() / 10


def value(h):
    """The library's game on a batch of ten data and ten samples: minus its loss."""
    return -discriminator_loss(h.repeat_interleave(here), h.repeat_interleave(there))


h = draws(5, seed=0)
sig = 1 / (1 + torch.exp(-h))
claim("B.1", (p * sig.log() + p_model * (1 - sig).log()).sum(), value(h))
best = torch.zeros(5, dtype=DOUBLE, requires_grad=True)
for _ in range(20):
    (slope,) = torch.autograd.grad(value(best), best, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), best)            # places do not mix
    best = (best - slope / bend).detach().requires_grad_()
claim("B.2", p.log() - p_model.log(), best, note="Newton's method on the library's loss")
r = (p + p_model) / 2
js = 0.5 * (p * (p / r).log()).sum() + 0.5 * (p_model * (p_model / r).log()).sum()
claim("B.3", 2 * js - math.log(4), value(best))
fact("JS of the two laws, and the value of the game", [js, value(best)], digits=3)

# %% [markdown]
# If the laws do not overlap, $r$ is half of one or half of the other, both divergences are $\log2$, and the value is $0$: the discriminator is always right. $\mathrm{JS}$ cannot grow beyond $\log2$, however far apart the laws lie.
#
# **What the generator feels.** It takes a step along the gradient of $J$ in $\theta$ *with $h$ held fixed*. Is this the gradient of (B.3), in which $h^*$ moves along with $\theta$? Yes, if $h$ is the best one. By the chain rule, the derivative of $J(h^*_\theta,\theta)$ is $\partial_\theta J$ plus the derivative of $J$ in $h$ times the motion of $h^*$; and the derivative in $h$ is zero, for $h^*$ is a maximum. (The *envelope theorem*.) So with $x=G_\theta(z)$
#
# $$
# \nabla_\theta\,2\,\mathrm{JS}(p_{\text{data}},p_\theta)\;=\;\mathbb E_z\big[-\operatorname{sig}\big(h^*(x)\big)\;\nabla_\theta x\;\nabla_xh^*(x)\big] .
# \tag{B.4}
# $$
#
# Look at the factor in front. Where samples are bad, the discriminator is sure, $h^*\to-\infty$, and $\operatorname{sig}(h^*)\to0$: the worst samples learn least. This is not a fault of the optimiser; $\mathrm{JS}$ *is* flat there. The usual remedy, the **non-saturating** loss, lets the generator minimise $-\mathbb E\log\operatorname{sig}(h)$ in the place of $\mathbb E\log(1-\operatorname{sig}(h))$. The slopes of the two in the logit are
#
# $$
# \frac{d}{dh}\log\big(1-\operatorname{sig}(h)\big)=-\operatorname{sig}(h) ,
# \qquad\frac{d}{dh}\big[-\log\operatorname{sig}(h)\big]=-\operatorname{sig}(-h) .
# \tag{B.5}
# $$
#
# Both have the same sign, so both push $h$ up; but the second is near $-1$ where the first is near $0$. What does this generator minimise, then? Since $\operatorname{sig}(h)/\operatorname{sig}(-h)=e^h$, the two losses differ by the logit itself: $-\log\operatorname{sig}(h)=-h-\log(1-\operatorname{sig}(h))$. The last term gives minus (B.4). For the first, with $h^*$ from (B.2), note that
# $\mathrm{KL}(p_\theta\,\Vert\,p_{\text{data}})=\mathbb E_z[-h^*_\theta(G_\theta(z))]$, whose derivative has two parts: one through $G$, with $h^*$ fixed, which is the part we look for; and one through $h^*_\theta$ at fixed $x$, which is $\mathbb E_{p_\theta}\nabla_\theta\log p_\theta=\nabla_\theta\int p_\theta\,dx=0$. Therefore
#
# $$
# \mathbb E_z\big[-\operatorname{sig}\big(-h^*(x)\big)\;\nabla_\theta x\;\nabla_xh^*(x)\big]\;=\;\nabla_\theta\Big[\mathrm{KL}(p_\theta\,\Vert\,p_{\text{data}})-2\,\mathrm{JS}(p_{\text{data}},p_\theta)\Big] .
# \tag{B.6}
# $$
#
# The reverse divergence, which fears samples where no data are and does not mind modes that are left out. It may be one reason why GANs drop modes (Arjovsky and Bottou, 2017). The cell takes our two humps for data and $x=\theta+0.6\,z$ for the generator, so that $\nabla_\theta x=1$.

# %%
p = data.log_prob(line[:, None]).exp()
score = data.score(line[:, None])[:, 0]                                     # (log p_data)'
log_p = data.log_prob(line[:, None])


def law_of(theta):
    """log p_θ on the grid, for x = θ + 0.6·z."""
    return -((line - theta) ** 2) / (2 * 0.36) - 0.5 * math.log(2 * math.pi * 0.36)


def divergences(theta):
    """KL(p_θ ‖ p_data) and JS, by quadrature."""
    log_q = law_of(theta)
    log_r = torch.logaddexp(log_p, log_q) - math.log(2)
    js = 0.5 * integrate(p * (log_p - log_r)) + 0.5 * integrate(log_q.exp() * (log_q - log_r))
    return integrate(log_q.exp() * (log_q - log_p)), js


def felt(theta, slope):
    """E_z[slope(h*(x))·∇h*(x)]: the generator's gradient with h* held fixed."""
    log_q = law_of(theta)
    return integrate(log_q.exp() * slope(log_p - log_q) * (score + (line - theta) / 0.36))


theta = torch.tensor(-0.4, dtype=DOUBLE, requires_grad=True)
kl, js = divergences(theta)
(of_kl,) = torch.autograd.grad(kl, theta, retain_graph=True)
(of_js,) = torch.autograd.grad(js, theta)
place = theta.item()
claim("B.4", felt(place, lambda h: -torch.sigmoid(h)), 2 * of_js, tol=1e-9)
claim("B.6", felt(place, lambda h: -torch.sigmoid(-h)), of_kl - 2 * of_js, tol=1e-9)
h = torch.linspace(-8, 8, 9, dtype=DOUBLE, requires_grad=True)
(saturating,) = torch.autograd.grad((1 - torch.sigmoid(h)).log().sum(), h)
(other,) = torch.autograd.grad(9 * generator_loss(h), h)                    # that loss is a mean
claim("B.5", torch.stack([-1 / (1 + (-h).exp()), -1 / (1 + h.exp())]),
      torch.stack([saturating, other]), note="by autograd")
pulls = torch.stack([torch.stack([felt(at, lambda h: -torch.sigmoid(h)),
                                  felt(at, lambda h: -torch.sigmoid(-h))]) for at in (-2.0, -4.0)])
fact("pull on the generator at θ = -2: saturating, non-saturating", pulls[0], digits=2)
fact("    and at θ = -4", pulls[1], digits=2)

# %% tags=["hide-input"]
fig, (left, right) = figure(1, 2, row_height=2.8)
plot_density(left, data, (-4, 3), color=BLUE, label=r"$p_{\mathrm{data}}$")
left.plot(line, law_of(-2.0).exp(), color=ORANGE, label=r"$p_\theta$")
left.plot(line, torch.sigmoid(log_p - law_of(-2.0)), color=GREY, ls="--",
          label=r"$\mathrm{sig}(h^*)$")
left.set(xlim=(-4, 3), xlabel="$x$")
left.legend(loc="upper right", fontsize=9)
places = torch.linspace(-5, -2, 61, dtype=DOUBLE).tolist()
for slope, colour, name in ((lambda h: -torch.sigmoid(h), VERMILLION, "saturating"),
                            (lambda h: -torch.sigmoid(-h), PURPLE, "non-saturating")):
    right.semilogy(places, [abs(felt(at, slope)) for at in places], color=colour, label=name)
right.set(xlabel=r"$\theta$", title="size of the generator's gradient", ylim=(1e-4, 100))
right.legend()
show(fig, """Left, the two humps of the data, a Gaussian model to their left, and the best
discriminator, which rises from 0 to 1 where the data begin. Right, the size of the generator's
gradient over θ from -5 to -2, logarithmic: the saturating one falls by orders of magnitude as the
model moves away from the data, the non-saturating one grows.""")


# %% [markdown]
# *What does a sure discriminator teach?* As the model moves away from the data, the gradient of the game dies out, and that of the non-saturating loss grows, like the distance: far out it is that of $\mathrm{KL}(p_\theta\,\Vert\,p_{\text{data}})$.
#
# **Why the game can circle, and what R₁ does.** All this supposed a discriminator that is the best one at every moment. In practice both players move at once. The smallest example (Mescheder and others) has one datum at $0$, a generator that puts its one sample at $\theta$, and a linear discriminator $h(x)=\psi x$. The value is $J=\log\operatorname{sig}(0)+\log\operatorname{sig}(-\psi\theta)$. Let the discriminator climb $J$ minus a penalty $\gamma\cdot\tfrac12\,\mathbb E_{p_{\text{data}}}\Vert\nabla_xh\Vert^2=\tfrac12\gamma\psi^2$, named
# $R_1$, let the generator descend $J$, and let the steps be so small that one may write a differential equation. With $\frac{d}{dh}\log\operatorname{sig}(-h)=-\operatorname{sig}(h)$:
#
# $$
# \dot\psi\;=\;-\operatorname{sig}(\psi\theta)\,\theta-\gamma\,\psi ,
# \qquad\dot\theta\;=\;\operatorname{sig}(\psi\theta)\,\psi ,
# \tag{B.7}
# $$
#
# where the dot is the derivative with respect to training time. Without the penalty, $\frac{d}{d\text{time}}\tfrac12(\psi^2+\theta^2)=\psi\dot\psi+\theta\dot\theta=0$: the two circle around the solution $\psi=\theta=0$ for ever, and steps of finite size, which are along the tangent, lead outwards. With the penalty the same sum is $-\gamma\psi^2\le0$. Near the solution $\operatorname{sig}\approx\tfrac12$, and (B.7) is linear with the matrix $\begin{pmatrix}-\gamma&-\frac12\\\frac12&0\end{pmatrix}$. Its trace is $-\gamma$ and its determinant $\tfrac14$, so its
# eigenvalues are
#
# $$
# \lambda_\pm\;=\;\tfrac12\Big(-\gamma\pm\sqrt{\gamma^2-1}\Big) ,
# \tag{B.8}
# $$
#
# with a negative real part for every $\gamma>0$: the game settles. For $\gamma<1$ it spirals in, with real part $-\gamma/2$. (The non-saturating loss has the same linear part, because $\operatorname{sig}(-0)=\operatorname{sig}(0)$.) At the solution the penalty does no harm: if $p_\theta=p_{\text{data}}$, the best logit is $h^*=0$, and that is flat.

# %%
def motion(psi, theta, gamma):
    """(B.7), from the library's losses and autograd."""
    h = lambda x: psi * x                              # noqa: E731
    datum = torch.zeros(1, 1, dtype=DOUBLE)
    loss = discriminator_loss(h(datum), h(theta)) + gamma * r1_penalty(h, datum)
    value = logsigmoid(-h(theta))                      # what the generator makes small
    (up,) = torch.autograd.grad(loss, psi, create_graph=True)
    (down,) = torch.autograd.grad(value, theta, create_graph=True)
    return torch.stack([-up, -down])


def flat(pair, gamma):
    """motion, as a function of one vector (ψ, θ)."""
    return motion(pair[0], pair[1], gamma)


psi, theta, gamma = 0.7, -1.3, 0.3
s = 1 / (1 + math.exp(-psi * theta))
found = flat(torch.tensor([psi, theta], dtype=DOUBLE, requires_grad=True), gamma)
claim("B.7", [-s * theta - gamma * psi, s * psi], found)
for gamma in (1.25, 0.3):
    matrix = torch.autograd.functional.jacobian(lambda pair, g=gamma: flat(pair, g),
                                                torch.zeros(2, dtype=DOUBLE))
    root = sympy.sqrt(sympy.Float(gamma, 20)**2 - 1)
    lambdas = [complex((-gamma + sign * root) / 2) for sign in (-1, 1)]
    found = sorted(torch.linalg.eigvals(matrix).tolist(), key=lambda one: (one.real, one.imag))
    claim("B.8", [[one.real, one.imag] for one in lambdas],
          [[one.real, one.imag] for one in found], note=f"γ = {gamma}")
for gamma in (0.0, 0.3):
    pair = torch.tensor([1.0, 1.0], dtype=DOUBLE)
    for _ in range(400):
        pair = pair + 0.1 * flat(pair.clone().requires_grad_(), gamma).detach()
    fact(f"γ = {gamma}: distance from the solution after 400 steps (1.41 before)", pair.norm(), 2)

# %% [markdown]
# > **Pitfall: a penalty that nobody feels.** $R_1$ is made of a gradient, $\nabla_xh$, and is itself to be differentiated, with respect to the discriminator's weights. `torch.autograd.grad` without `create_graph=True` returns that gradient as mere numbers. The penalty then has the right value in every log, and no effect.

# %%
psi = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
datum = torch.zeros(1, 1, dtype=DOUBLE, requires_grad=True)
(slope,) = torch.autograd.grad((psi * datum).sum(), datum)                  # no create_graph
fact("the penalty's value at ψ = 0.7", slope.square().sum() / 2)
print(f"does it depend on ψ? for autograd: {slope.requires_grad}")
(felt_by_psi,) = torch.autograd.grad(r1_penalty(lambda x: psi * x, datum.detach()), psi)
fact("its derivative, which the library keeps", felt_by_psi, digits=2)


# %% [markdown]
# ## B.2 VAE: what the bound loses
#
# Draw $z\sim\mathcal N(0,I)$ with $L$ coordinates, then $x$ around the point $m(z)$ to which a decoder maps it:
#
# $$
# p_\theta(x)\;=\;\int p(z)\,p_\theta(x\mid z)\,dz ,\qquad p_\theta(x\mid z)=\mathcal N\big(x;\,m(z),\,\varsigma^2I\big) .
# \tag{B.9}
# $$
#
# In the cell $z$ is one number, so that the integral can be done; and the decoder is once linear, where (T.8) and (T.9) give $p_\theta$ in closed form, and once bent. An encoder answers to every $x$ with a Gaussian $q(z\mid x)=\mathcal N\big(\mu(x),\,\operatorname{diag}\rho(x)^2\big)$; the letter $\rho$ is a deviation in this section and a time in B.7.
#
# **The bound, by Jensen.** Multiply and divide under the integral by $q$, read it as a mean over $q$, and use that the logarithm of a mean is at least the mean of the logarithms, (T.27):
#
# $$
# \log p_\theta(x)\;=\;\log\mathbb E_{z\sim q(z\mid x)}\frac{p(z)\,p_\theta(x\mid z)}{q(z\mid x)}
# \;\ge\;\mathbb E_{z\sim q(z\mid x)}\log\frac{p(z)\,p_\theta(x\mid z)}{q(z\mid x)}\;=:\;\mathrm{ELBO}(x) .
# \tag{B.10}
# $$
#
# **The bound, as a divergence.** Jensen says that something is lost, not what. Write the numerator the other way round, $p(z)\,p_\theta(x\mid z)=p_\theta(x)\,p_\theta(z\mid x)$, the product rule. The first factor does not depend on $z$ and leaves the mean; the rest is minus a divergence:
#
# $$
# \log p_\theta(x)-\mathrm{ELBO}(x)\;=\;\mathrm{KL}\big(q(z\mid x)\,\Vert\,p_\theta(z\mid x)\big) .
# \tag{B.11}
# $$
#
# So to raise the ELBO in the encoder's weights is to move $q$ towards the true law of $z$ given $x$; to raise it in the decoder's weights is to raise the likelihood, or to make that law easier to match. The optimiser does not care which.
#
# **The form in which it is trained.** Split (B.10) after $p(z)/q(z\mid x)$. The mean of the logarithm of that part is minus the divergence from the prior, for which (T.24) has the closed form:
#
# $$
# \mathrm{ELBO}(x)\;=\;\mathbb E_{z\sim q(z\mid x)}\log p_\theta(x\mid z)-\tfrac12\sum_{i=1}^{L}\big(\mu_i^2+\rho_i^2-1-\log\rho_i^2\big) .
# \tag{B.12}
# $$

# %%
def bent():
    """A VAE with random weights, large enough that nothing about it is Gaussian."""
    vae = VAE(2, width=8, latent=1, variance=0.2, generator=seeded(3)).double()
    with torch.no_grad():
        vae.encoder[0].weight.mul_(4)
        vae.decoder[0].weight.mul_(4)
        vae.decoder[-1].weight.mul_(3)
        vae.encoder[-1].bias.copy_(torch.tensor([0.8, -1.2]))
    return vae


vae = bent()
x = torch.tensor([[0.2, -0.3], [0.9, 0.1], [-0.5, 0.7]], dtype=DOUBLE)
z = line[:, None, None]                                # the grid, as values of z
linear = VAE(2, latent=1, hidden=0, variance=0.3, generator=seeded(1)).double()
with torch.no_grad():
    weight, bias = linear.decoder[0].weight, linear.decoder[0].bias
    closed = MultivariateNormal(bias, weight @ weight.T + linear.variance * eye(2))
    claim("B.9", integrate(linear.log_joint(x, z).exp().T).log(), closed.log_prob(x), tol=1e-9,
          note="a linear decoder: the Gaussian of (T.8), (T.9)")

    log_joint = vae.log_joint(x, z)                    # (grid, 3)
    log_p = integrate(log_joint.exp().T).log()         # (B.9), bent
    mu, log_rho2 = vae.encode(x)
    log_q = log_normal(z, mu, log_rho2)
    q = log_q.exp()
    elbo = integrate((q * (log_joint - log_q)).T)
    gap = integrate((q * (log_q - (log_joint - log_p))).T)
    claim("B.10", elbo, log_p, relation="<=")
    claim("B.11", log_p - elbo, gap, note="three points, by quadrature")
    fit = log_normal(x, vae.decoder(z), vae.log_variance[0])
    closed = 0.5 * (mu**2 + log_rho2.exp() - 1 - log_rho2).sum(1)
    claim("B.12", integrate((q * fit).T) - closed, elbo)
    found = vae.elbo(x.repeat(200_000, 1), seeded(0)).reshape(200_000, 3)
    claim("B.12", elbo, found.mean(0), standard_error=found.std(0) / 200_000**0.5,
          note="the library's estimate, from one draw of z")
fact("log p(x) of the three points", log_p, digits=3)
fact("what the bound loses there", gap, digits=2)

# %% [markdown]
# **The gradient.** The mean in (B.12) is over a law that depends on the encoder's weights. Reparameterise, (T.29): $z=\mu+\rho\,\varepsilon$ with $\varepsilon\sim\mathcal N(0,I)$, a mean over a fixed law. By (T.30), and by differentiating the closed term, for each coordinate
#
# $$
# \begin{aligned}
# \frac{\partial\,\mathrm{ELBO}}{\partial\mu}\;&=\;\mathbb E_\varepsilon\,f'(\mu+\rho\,\varepsilon)-\mu ,
# \qquad f(z)=\log p_\theta(x\mid z) ,\\
# \frac{\partial\,\mathrm{ELBO}}{\partial\rho}\;&=\;\mathbb E_\varepsilon\big[\varepsilon\,f'(\mu+\rho\,\varepsilon)\big]-\rho+\frac1\rho .
# \end{aligned}
# \tag{B.13}
# $$
#
# The prior pulls $\mu$ to $0$ and $\rho$ to $1$. If the decoder ignores $z$, $f'=0$, then that is all there is: $q$ becomes the prior, tells nothing, and the decoder has no reason to listen. This is *posterior collapse*, and the linear case below says exactly when it happens.

# %%
mu_of, rho_of = (value.detach().clone().requires_grad_() for value in (mu, (log_rho2 / 2).exp()))
log_q = log_normal(z, mu_of, 2 * rho_of.log())         # the density moves, z stays: no z = μ + ρε
through = integrate((log_q.exp() * fit).T) - kl_to_standard(mu_of, 2 * rho_of.log())
to_mu, to_rho = torch.autograd.grad(through.sum(), (mu_of, rho_of))
with torch.no_grad():
    rho = (log_rho2 / 2).exp()
    at = mu + rho * z                                  # here the grid holds values of ε
at.requires_grad_()
(f_slope,) = torch.autograd.grad(
    log_normal(x, vae.decoder(at), vae.log_variance[0]).sum(), at)
bell = torch.exp(-line**2 / 2) / (2 * math.pi) ** 0.5
by_mu = integrate(bell * f_slope[..., 0].T) - mu[:, 0]
by_rho = integrate(bell * line * f_slope[..., 0].T) - rho[:, 0] + 1 / rho[:, 0]
claim("B.13", by_mu, to_mu[:, 0], tol=1e-9, note="for μ, against the gradient of the density")
claim("B.13", by_rho, to_rho[:, 0], tol=1e-9, note="and for ρ")

# %% [markdown]
# **More guesses, a tighter bound.** Let $z_1,\dots,z_k$ be independent draws from $q(z\mid x)$ and $g_i=p(z_i)\,p_\theta(x\mid z_i)/q(z_i\mid x)$, a positive number with mean $p_\theta(x)$. The bound of the **importance-weighted autoencoder** is
#
# $$
# \mathcal L_k(x)\;=\;\mathbb E\log\frac1k\sum_{i=1}^kg_i ,
# \qquad\mathrm{ELBO}=\mathcal L_1\;\le\;\mathcal L_2\;\le\;\dots\;\le\;\log p_\theta(x) .
# \tag{B.14}
# $$
#
# *Proof.* The last inequality is Jensen's, for the average of the $g_i$ has the mean $p_\theta(x)$. For the others take $k+1$ draws and leave one out. Each $g_i$ is missing in one of the $k+1$ averages so made, so *the average of these averages is the average of all*: $\frac1{k+1}\sum_j\frac1k\sum_{i\ne j}g_i=\frac1{k+1}\sum_ig_i$. Take the logarithm, and use Jensen for the finite average over $j$:
# $\log\frac1{k+1}\sum_ig_i\ge\frac1{k+1}\sum_j\log\big(\frac1k\sum_{i\ne j}g_i\big)$. Now take expectations. On the left stands $\mathcal L_{k+1}$; on the right each of the $k+1$ terms has the expectation $\mathcal L_k$, for it is made of $k$ independent draws. $\blacksquare$ And if $g$ is bounded, the law of large numbers gives $\mathcal L_k\to\log p_\theta(x)$. No better encoder is needed, only more work; but a poor encoder can make that work
# very long.

# %%
nodes = torch.linspace(-6.5, 6.5, 79, dtype=DOUBLE)    # values of ε, for three of them at once
mass = torch.exp(-nodes**2 / 2)
mass = mass / mass.sum()
with torch.no_grad():
    guess = mu + rho * nodes[:, None, None]
    log_g = vae.log_joint(x, guess) - log_normal(guess, mu, log_rho2)       # (79, 3)
    two = torch.logaddexp(log_g[:, None], log_g[None])
    three = torch.logaddexp(two[:, :, None], log_g[None, None])
    L1 = torch.einsum("i,ib->b", mass, log_g)
    L2 = torch.einsum("i,j,ijb->b", mass, mass, two) - math.log(2)
    L3 = torch.einsum("i,j,k,ijkb->b", mass, mass, mass, three) - math.log(3)
    claim("B.14", L1, elbo, note="k = 1")
    claim("B.14", torch.stack([L1, L2, L3]), torch.stack([L2, L3, log_p]), relation="<=")
    found = vae.iwae(x.repeat(100_000, 1), 2, seeded(0)).reshape(100_000, 3)
    claim("B.14", L2, found.mean(0), standard_error=found.std(0) / 100_000**0.5,
          note="the library, k = 2")
fact("the first point: k = 1, 2, 3, and log p", [L1[0], L2[0], L3[0], log_p[0]], digits=3)

# %% tags=["hide-input"]
sizes = [1, 2, 4, 8, 16, 32, 64, 128]
with torch.no_grad():
    runs = [vae.iwae(x[:1].repeat(4000, 1), k, seeded(k)) for k in sizes]
fig, ax = figure(row_height=2.8)
low, high = (torch.stack([run.quantile(share) for run in runs]) for share in (0.1, 0.9))
ax.fill_between(sizes, low, high, color=BLUE, alpha=0.2, lw=0, label="one estimate, 10 % to 90 %")
ax.plot(sizes, [run.mean() for run in runs], "o-", color=BLUE, label=r"$\mathcal{L}_k$, its mean")
ax.axhline(log_p[0], color=VERMILLION, label=r"$\log p_\theta(x)$")
ax.set(xscale="log", xlabel="$k$, number of guesses at $z$", ylabel="nats")
ax.legend(loc="lower right")
show(fig, """The mean of the importance-weighted estimate over k from 1 to 128, on a logarithmic
axis: it rises towards the line of log p. A band around it shows the spread of one estimate, wide
and mostly below the line at k = 1, narrow at k = 128.""")

# %% [markdown]
# *What do more guesses buy?* The mean rises and the spread shrinks, together: by (T.27) the bound is low because the estimate of $p_\theta(x)$ varies.
#
# **The linear VAE is principal component analysis.** Let $m(z)=Az+b$. Then $x$ is Gaussian, and by (T.19) so is $z$ given $x$:
#
# $$
# \begin{aligned}
# p_\theta(x)&=\mathcal N\big(x;\,b,\,AA^\top+\varsigma^2I\big) ,\\
# p_\theta(z\mid x)&=\mathcal N\big(z;\,M^{-1}A^\top(x-b),\,\varsigma^2M^{-1}\big) ,\qquad M=A^\top A+\varsigma^2I .
# \end{aligned}
# \tag{B.15}
# $$
#
# (The second from (B.9), as a square to complete in $z$: the exponent is $-\tfrac12z^\top z-\tfrac1{2\varsigma^2}\Vert x-b-Az\Vert^2$, whose quadratic part is $-\tfrac1{2\varsigma^2}z^\top Mz$ and whose linear part is $\tfrac1{\varsigma^2}z^\top A^\top(x-b)$; [T.4](A_toolbox.ipynb#T.4-Products-of-Gaussian-densities-(completing-the-square)) completes it.) The posterior is Gaussian with a mean that is linear in $x$ and a covariance that does not depend on $x$. So a linear encoder with constant variances can *be* the posterior, *if $M$ is diagonal*.
#
# **The best parameters.** Let the data have mean $\bar x$ and covariance $\Sigma$ with eigenvalues $\lambda_1\ge\dots\ge\lambda_D>0$. The average log-likelihood of a Gaussian with $b=\bar x$ (its best value, for any covariance $C$) is $-\tfrac12\big[D\log2\pi+\log\det C+\operatorname{tr}(C^{-1}\Sigma)\big]$. What can $C=AA^\top+\varsigma^2I$ be? Its eigenvalues $c_1\ge\dots\ge c_D$ satisfy $c_i\ge\varsigma^2$ for $i\le L$ and $c_i=\varsigma^2$ for the rest, since $AA^\top$ has rank at most $L$; otherwise they, and the eigenvectors, are free.
# *Eigenvectors:* in the basis of $C$'s eigenvectors $h_i$ the trace is $\sum_i h_i^\top\Sigma h_i/c_i$, and the numbers $h_i^\top\Sigma h_i=\sum_j(h_i^\top u_j)^2\lambda_j$ are averages of the $\lambda_j$ whose weights sum to 1 over $i$ as well; such a sum is least where the largest $\lambda$ meets the largest $c$ (von Neumann's trace inequality). So $\operatorname{tr}(C^{-1}\Sigma)\ge\sum_i\lambda_i/c_i$, with equality if $C$ has the eigenvectors of $\Sigma$ in the same order. *Eigenvalues:* $\log c+\lambda/c$ falls in $c$ up to $c=\lambda$ and rises afterwards, so $c_i=\max(\lambda_i,\varsigma^2)$ for $i\le L$. *Noise:* the sum of $\log\varsigma^2+\lambda_i/\varsigma^2$ over $i>L$ is least where $\varsigma^2$ is the mean of those $\lambda_i$, which is at most $\lambda_L$; and the terms $i\le L$ do not
# depend on $\varsigma^2$ as long as $\varsigma^2\le\lambda_L$, and only grow beyond. So with $U_L$ for the first $L$ eigenvectors and $\Lambda_L$ for their eigenvalues
#
# $$
# \begin{gathered}
# \varsigma^2=\frac1{D-L}\sum_{i>L}\lambda_i ,\qquad A=U_L\big(\Lambda_L-\varsigma^2I\big)^{1/2} ,\\
# \max\;\mathbb E\log p_\theta=-\tfrac12\Big[\sum_{i\le L}\log\lambda_i+(D-L)\log\varsigma^2+D+D\log2\pi\Big] .
# \end{gathered}
# \tag{B.16}
# $$
#
# These are the principal components, with the discarded variance shared out as noise: *probabilistic* PCA. Here $M=\Lambda_L$ is diagonal, so the encoder can be exact, the gap (B.11) is zero, and no VAE of this shape has a higher ELBO. Its encoder maps $x$ to $\mu_i=\frac{\sqrt{\lambda_i-\varsigma^2}}{\lambda_i}\,u_i^\top(x-\bar x)$ with $\rho_i^2=\varsigma^2/\lambda_i$.
#
# The maximum says when a coordinate of $z$ **collapses**: if $\varsigma^2$ is held at a value above $\lambda_i$, the best $c_i$ is $\varsigma^2$, the $i$th column of $A$ is zero, and $\rho_i=1$, $\mu_i=0$. A decoder with too much noise cannot see that direction. And the likelihood does not change if $A$ is replaced by $AR$ with a rotation $R$; the ELBO does, because $M$ is then no longer diagonal. The diagonal encoder is what picks the axes.

# %%
cloud = draws(500, 4, seed=6) @ torch.tensor([[1.3, 0.4, 0.0, 0.2], [0.0, 0.9, 0.3, 0.0],
                                              [0.1, 0.0, 0.5, 0.1], [0.0, 0.2, 0.0, 0.4]]).double()
D, L, centre = 4, 2, cloud.mean(0)
lam, U = torch.linalg.eigh((cloud - centre).T @ (cloud - centre) / len(cloud))
lam, U = lam.flip(0), U.flip(1)                        # from the largest on
noise = lam[L:].mean()
A = U[:, :L] * (lam[:L] - noise).sqrt()
pca = VAE(D, latent=L, hidden=0, generator=seeded(0)).double()
with torch.no_grad():
    pca.decoder[0].weight.copy_(A)
    pca.decoder[0].bias.copy_(centre)
    pca.log_variance[0].copy_(noise.log())
    to_mean = A.T / lam[:L, None]                      # M⁻¹Aᵀ
    pca.encoder[0].weight.copy_(torch.cat([to_mean, torch.zeros(L, D)]))
    pca.encoder[0].bias.copy_(torch.cat([-to_mean @ centre, (noise / lam[:L]).log()]))
    single = pca.iwae(cloud, 1, seeded(1))             # one draw; exact, as q is the posterior
    law = MultivariateNormal(centre, A @ A.T + noise * eye(D))
    claim("B.15", law.log_prob(cloud), single, tol=1e-8, note="each point, with any single draw")
top = -0.5 * (lam[:L].log().sum() + (D - L) * noise.log() + D + D * math.log(2 * math.pi))
claim("B.16", top, single.mean(), tol=1e-9)


def likelihood(A, log_noise):
    """The average log-likelihood, for a gradient."""
    C = A @ A.T + log_noise.exp() * eye(D)
    return MultivariateNormal(centre, C).log_prob(cloud).mean()


slopes = torch.autograd.functional.jacobian(likelihood, (A, noise.log()))
assert max(slope.abs().max() for slope in slopes) < 1e-9                    # the top is flat
other = 0.1 * draws(200, D, L, seed=7)
claim("B.16", torch.stack([likelihood(A + change, noise.log()) for change in other]), top,
      relation="<=", note="200 other matrices A")
turned = A @ torch.tensor([[1.0, -1.0], [1.0, 1.0]]).double() / 2**0.5      # by 45 degrees
M = turned.T @ turned + noise * eye(L)
fact("eigenvalues of the data's covariance", lam, digits=3)
fact("best log-likelihood, in nats", top, digits=3)
fact("what the ELBO loses if A is turned by 45 degrees",
     0.5 * (M.diagonal().log().sum() - torch.logdet(M)), digits=2)

# %% [markdown]
# (The last number: among diagonal $q$ the one nearest to a Gaussian of precision $P=M/\varsigma^2$ and the same mean has $\rho_i^2=1/P_{ii}$, by setting the derivative of (T.24) to zero; what is left is $\tfrac12\big(\sum_i\log P_{ii}-\log\det P\big)$.)
#
# Does Adam find the top? A short training of the library's VAE, from random weights:

# %%
trained = VAE(D, latent=L, hidden=0, generator=seeded(8))
trained.fit(cloud.float(), steps=500, batch_size=250, learning_rate=0.03, generator=seeded(9))
with torch.no_grad():
    trained.double()
    b, weight = trained.decoder[0].bias, trained.decoder[0].weight
    reached = MultivariateNormal(b, weight @ weight.T + trained.variance * eye(D))
    reached = reached.log_prob(cloud).mean()
claim("B.16", reached, top, relation="<=", note="500 steps of Adam")
assert top - reached < 0.05
print("the trained linear VAE is within a twentieth of a nat of the best one")

# %% [markdown]
# > **Pitfall: the decoder's variance left out.** With a squared error $\Vert x-m\Vert^2$ in the place of $-\log p_\theta(x\mid z)$ one has fixed $\varsigma^2=\tfrac12$ without saying so (with its mean over coordinates even $\varsigma^2=D/2$), and every direction in which the data vary by less collapses, however many coordinates $z$ has. How many of the 64 directions of the book's digits would a linear VAE keep? The library learns $\varsigma^2$.

# %%
images = digits("train")[0].flatten(1).double()
spectrum = torch.linalg.eigvalsh((images - images.mean(0)).T @ (images - images.mean(0)))
spectrum = spectrum / len(images)
fact("directions that survive a squared error", int((spectrum > 0.5).sum()))
fact("    and its mean over the 64 pixels", int((spectrum > 32).sum()))
fact("share of the variance in the directions that survive the sum",
     spectrum[spectrum > 0.5].sum() / spectrum.sum(), digits=2)

# %% [markdown]
# ## B.3 VQ-VAE: rounding, and what is learned through it
#
# The encoder turns $x$ into $P$ vectors $E_1,\dots,E_P$, each of which is rounded to the nearest of $K$ codebook vectors $e_1,\dots,e_K$. Multiply out $\Vert E_i-e_k\Vert^2$; the term $\Vert E_i\Vert^2$ is the same for all $k$:
#
# $$
# c_i(x)\;=\;\arg\min_k\Vert E_i-e_k\Vert^2\;=\;\arg\max_k\Big(E_i^\top e_k-\tfrac12\Vert e_k\Vert^2\Big) .
# \tag{B.17}
# $$
#
# The scores on the right are linear in $E_i$. So the set of vectors with one letter is cut out by planes, a *Voronoi cell*; within it the letter does not change, and the decoder's output $m$, which sees the letters only, does not either. The true derivative of the loss with respect to $E$ is therefore **zero almost everywhere**, and does not exist at the boundaries. The **straight-through** trick feeds the decoder $E+\operatorname{sg}[e-E]$, where $\operatorname{sg}$ is the identity with
# derivative zero: the value is $e$, the derivative with respect to $E$ is that of the identity. With $n$ for the number of coordinates of all $E$ in the batch, the gradient of the library's loss at $E$, the third term of (B.19) included, is
#
# $$
# \frac{\partial\,\text{loss}}{\partial E}\;:=\;\frac{\partial}{\partial e}\,\overline{\big(x-m(e)\big)^2}\;\Big|_{e=\text{chosen}}\;+\;\frac{2\beta}{n}\,(E-e) ,
# \tag{B.18}
# $$
#
# with a bar for the mean over batch and coordinates. *What it ignores.* It is the slope *at the codebook vector*, not at $E$; it says how the error would change if the decoder's input could be moved freely, which it cannot. It is blind to where the boundaries are. And since $E+\operatorname{sg}[e-E]$ has derivative zero with respect to $e$, it leaves **no gradient for the codebook**. For that there is a second term, and a third that keeps the encoder near:
#
# $$
# \text{loss}\;=\;\overline{(x-m)^2}+\overline{(\operatorname{sg}[E]-e)^2}+\beta\,\overline{(E-\operatorname{sg}[e])^2} ,
# \qquad\frac{\partial\,\text{loss}}{\partial e_k}\;=\;\frac2n\sum_{c_i(x)=k}\big(e_k-E_i(x)\big) .
# \tag{B.19}
# $$
#
# The sum runs over all places in the batch that chose $k$. It is zero where $e_k$ is *the mean of the vectors that chose it*: gradient steps on the second term are a slow form of Lloyd's algorithm, k-means, in the encoder's output. A letter that nobody chooses gets no gradient, and stays dead. The third term, the **commitment**, is needed because (B.18) without it does not know the size of $E$: the decoder sees $e$ only, so $E$ may run away from the codebook faster than the codebook follows.

# %%
vq = VQVAE(2, width=16, positions=2, codes=5, code_size=2, generator=seeded(12)).double()
with torch.no_grad():
    vq.encoder[-1].weight.mul_(12)                     # so that several letters are in use
    vq.variance = 0.1
x = draws(40, 2, seed=13)
book, words = vq.codebook[0].detach(), vq.words(x)
E = vq.encode(x).detach()
scores = E @ book.T - 0.5 * (book**2).sum(1)
claim("B.17", book[scores.argmax(-1)], book[words], note="the letters, by their linear scores")
fact("letters in use, of 5", len(words.unique()))

vq.loss(x, seeded(0)).backward()
n = E.numel()
chosen = book[words].clone().requires_grad_()
error = (x - vq.decoder(chosen.flatten(1))).square().mean()
(slope,) = torch.autograd.grad(error, chosen)
at_E = slope + 2 * vq.commitment / n * (E - book[words])
claim("B.18", at_E.sum(0).flatten(), vq.encoder[-1].bias.grad,
      note="summed over the batch: the gradient of the encoder's last bias")
pulls = torch.zeros_like(book).index_add_(0, words.flatten(), (book[words] - E).flatten(0, 1))
claim("B.19", 2 / n * pulls, vq.codebook[0].grad)
counts = torch.bincount(words.flatten(), minlength=5)
means_of = torch.zeros_like(book).index_add_(0, words.flatten(), E.flatten(0, 1))
with torch.no_grad():                                  # put every letter in use at its mean …
    used = counts > 0
    vq.codebook[0][used] = means_of[used] / counts[used, None]
moved = torch.autograd.grad((E - vq.codebook[0][words]).square().mean(), vq.codebook[0])[0]
assert moved.abs().max() < 1e-15                       # … and for these words it is at rest

# %% tags=["hide-input"]
with torch.no_grad():
    way = torch.linspace(-2.5, 2.5, 1001, dtype=DOUBLE)
    path = torch.stack([way, 0.05 + 0 * way], dim=1)   # E_1 is led along a line, E_2 stays
    letters = ((path[:, None] - book) ** 2).sum(-1).argmin(1)
word = torch.stack([letters, words[0, 1].expand(1001)], dim=1)
inputs = book[word].clone().requires_grad_()
errors = (x[0] - vq.decoder(inputs.flatten(1))).square().mean(1)
(handed,) = torch.autograd.grad(errors.sum(), inputs)
errors = errors.detach()
fig, (left, right) = figure(1, 2, row_height=3.0)
grid = torch.cartesian_prod(*[torch.linspace(-2.5, 2.5, 300, dtype=DOUBLE)] * 2)
cells = ((grid[:, None] - book) ** 2).sum(-1).argmin(1).reshape(300, 300).T
left.imshow(cells.numpy(), origin="lower", extent=(-2.5, 2.5, -2.5, 2.5), cmap="Greys",
            vmin=-1, vmax=9)
left.plot(*path.T, color=BLUE, lw=1.5)
left.scatter(*book.T, color=VERMILLION, s=30, zorder=3)
left.set(xlabel="first coordinate of $E_1$", ylabel="second", title="cells of five letters")
right.plot(way, errors, ".", ms=2, color=BLUE, label="true error")
for spot in range(60, 1001, 80):
    near = (way - way[spot]).abs() < 0.12
    along = errors[spot] + handed[spot, 0, 0] * (way[near] - way[spot])
    right.plot(way[near], along, color=ORANGE, lw=1.5,
               label="slope handed to the encoder" if spot == 60 else None)
right.set(xlabel="first coordinate of $E_1$", title="squared error along the blue line")
right.legend(fontsize=9, loc="lower right")
show(fig, """Left, a square cut by straight lines into the cells of five codebook vectors, which are
dots, and a horizontal line through the cells. Right, the squared error along that line: a
staircase, flat within each cell, with jumps at the boundaries; short sloped segments on each stair
are the slopes that the encoder is handed.""")

# %% [markdown]
# *What does straight-through see?* The true error is a staircase: its derivative is zero on every stair. The slope that is handed on is the decoder's at the codebook vector. It is the same wherever $E_1$ stands in the cell, and where it points is at best a hint of where the next stair lies lower.
#
# **The law.** Once words $c=(c_1,\dots,c_P)$ have a law $p_\theta(c)$, which section B.5 is about, $x$ has the density of a finite mixture,
#
# $$
# p_\theta(x)\;=\;\sum_{c\in\{1,\dots,K\}^P}p_\theta(c)\;\mathcal N\big(x;\,m(c),\,\varsigma^2I\big) ,
# \tag{B.20}
# $$
#
# which can be counted out as long as $K^P$ is small; the library does it up to 65,536 words. Beyond, all terms but one are dropped, the one with the word $c(x)$ that the encoder assigns. A sum of positive terms is at least any one of them, so this is a lower bound. It is the ELBO of section B.2, for an encoder that is *sure*: with $q(c\mid x)=1$ at $c(x)$ the identity (B.11) reads
#
# $$
# \log p_\theta(x)-\log\big[p_\theta(c(x))\,p_\theta(x\mid c(x))\big]\;=\;-\log p_\theta\big(c(x)\mid x\big) .
# \tag{B.21}
# $$
#
# What is lost is how unsure the model itself is of the word. For clear images and small $\varsigma$ that is nothing; with random weights, as here, it is a lot.

# %%
everything = list(product(range(5), repeat=2))
with torch.no_grad():
    word_mass = vq.prior.log_prob(torch.tensor(everything))
    log_terms = torch.stack([
        word_mass[i] - ((x - vq.decode(torch.tensor([word]))) ** 2).sum(1) / (2 * vq.variance)
        - math.log(2 * math.pi * vq.variance) for i, word in enumerate(everything)], dim=1)
mixed = log_terms.exp().sum(1).log()
claim("B.20", mixed, vq.log_prob(x), note="25 words, one by one")
words = vq.words(x)                                    # the codebook has moved since
own = log_terms.gather(1, (5 * words[:, 0] + words[:, 1])[:, None])[:, 0]
posterior = (own - mixed).exp()                        # of the word, by Bayes' rule
claim("B.21", -posterior.log(), vq.log_prob(x) - vq.elbo(x, seeded(0)), tol=1e-9)
fact("mean loss of the bound, in nats", -posterior.log().mean(), digits=2)

# %% [markdown]
# ## B.4 Flow: volumes, and a curve with an inverse
#
# Let $f$ be smooth and invertible and let $x=f^{-1}(z)$ with $z\sim\mathcal N(0,I)$. The change of variables (T.33), with $f^{-1}$ for $g$ and the determinant of an inverse for the inverse of a determinant, gives the density. If $f$ is a chain $f_n\circ\dots\circ f_1$, its Jacobian is the product of theirs (chain rule), and the determinant of a product is the product of the determinants:
#
# $$
# \log p_\theta(x)\;=\;\log\mathcal N\big(f(x);\,0,\,I\big)+\sum_{i=1}^n\log\big|\det J_i\big| ,
# \qquad J_i=\frac{\partial f_i}{\partial x}\ \text{ at what }f_{i-1}\text{ put out} .
# \tag{B.22}
# $$
#
# A determinant of $D\times D$ numbers costs $D^3$ operations and a Jacobian $D$ gradients. A **coupling** has neither cost. Split the coordinates into $a$ and $b$. Leave $x_a$, and move each coordinate $j$ in $b$ along an increasing curve $S$ whose shape is any function of $x_a$: $z_j=S(x_j;\,\text{shape}_j(x_a))$. With the coordinates in the order $(a,b)$ the Jacobian is block-triangular, because $z_a$ does not depend on $x_b$, and its lower right block is diagonal, because $z_j$ depends on no other
# coordinate of $b$. The determinant of a triangular matrix is the product of its diagonal:
#
# $$
# \frac{\partial(z_a,z_b)}{\partial(x_a,x_b)}=\begin{pmatrix}I&0\\ *&\operatorname{diag}\,S'(x_j)\end{pmatrix} ,
# \qquad\log|\det J|=\sum_{j\in b}\log S'\big(x_j;\,\text{shape}_j(x_a)\big) .
# \tag{B.23}
# $$
#
# The star is where the network is, and no determinant looks at it. To invert: $x_a=z_a$, so the shape is known, and $x_j=S^{-1}(z_j)$. The network is never inverted. (A second coupling must move the coordinates $a$, or they would never change.)

# %%
flow = Flow(4, width=16, layers=3, pieces=6, generator=seeded(14)).double()
x = draws(10, 4, seed=15)
jacobians = torch.stack([torch.autograd.functional.jacobian(
    lambda one: flow.to_noise(one[None])[0][0], row) for row in x])
with torch.no_grad():
    z, _ = flow.to_noise(x)
normal_part = -0.5 * (z**2).sum(1) - 2 * math.log(2 * math.pi)
claim("B.22", normal_part + torch.linalg.det(jacobians).abs().log(), flow.log_prob(x), tol=1e-9,
      note="three couplings; 4 × 4 determinants by autograd")

coupling, order = flow.couplings[0], [1, 3, 0, 2]      # a: the odd coordinates; b: the even ones
blocks = torch.stack([torch.autograd.functional.jacobian(
    lambda one: coupling(one[None])[0][0], row) for row in x])[:, order][:, :, order]
assert torch.equal(blocks[:, :2], eye(4)[:2].expand(10, 2, 4))              # I and 0, exactly
assert not blocks[:, 2, 3].any() and not blocks[:, 3, 2].any()                 # diagonal
assert blocks[:, 2:, :2].abs().min() > 1e-6                                    # the star
claim("B.23", (blocks[:, 2, 2] * blocks[:, 3, 3]).log(), coupling(x)[1].detach(), tol=1e-9)
with torch.no_grad():
    assert (flow.to_data(z) - x).abs().max() < 1e-12
fact("largest entry of the star, which the determinant ignores", blocks[:, 2:, :2].abs().max(), 2)

# %% [markdown]
# **The curve.** $S$ has to rise, to have an inverse that costs no iteration, and to have a slope in closed form. The library's is made of pieces, each a quotient of two quadratics. Between the knots $(x_k,y_k)$ and $(x_{k+1},y_{k+1})$ let $\xi=(x-x_k)/(x_{k+1}-x_k)$ run from 0 to 1, let $h=y_{k+1}-y_k$, let $\bar m=h/(x_{k+1}-x_k)$ be the mean slope, and let $\delta_k,\delta_{k+1}>0$ be the slopes wanted at the ends:
#
# $$
# S(x)\;=\;y_k+h\,\frac{\bar m\,\xi^2+\delta_k\,\xi(1-\xi)}{N} ,
# \qquad N=\bar m+(\delta_{k+1}+\delta_k-2\bar m)\,\xi(1-\xi) .
# \tag{B.24}
# $$
#
# At $\xi=0$ this is $y_k$, at $\xi=1$ it is $y_k+h$. By the quotient rule, with $d\xi/dx=\bar m/h$,
#
# $$
# S'(x)\;=\;\frac{\bar m^2\,\big[\delta_{k+1}\,\xi^2+2\bar m\,\xi(1-\xi)+\delta_k\,(1-\xi)^2\big]}{N^2} ,
# \tag{B.25}
# $$
#
# which SymPy confirms below. At $\xi=0$ and $\xi=1$ this is $\delta_k$ and $\delta_{k+1}$, so neighbouring pieces fit together with their slopes. All terms in the bracket are positive. And $N>0$: since $\xi(1-\xi)\le\tfrac14$ and the $\delta$'s are positive, $N\ge\bar m\,(1-2\cdot\tfrac14)$. So $S$ rises, whatever the network says.
#
# **The inverse.** Given $y$ in the piece, let $\Delta=y-y_k$. Multiply $S(x)=y$ by $N$ and collect powers of $\xi$. What has to be zero is $Q(\xi)=N\cdot(S-y)=a\xi^2+b\xi+c$, and
#
# $$
# \xi=\frac{2c}{-b-\sqrt{b^2-4ac}} ,\quad
# \begin{aligned}a&=h(\bar m-\delta_k)+\Delta\,(\delta_{k+1}+\delta_k-2\bar m) ,\\ b&=h\,\delta_k-\Delta\,(\delta_{k+1}+\delta_k-2\bar m) ,\qquad c=-\bar m\,\Delta .\end{aligned}
# \tag{B.26}
# $$
#
# *Why this root?* At the right $\xi$ we have $S=y$, so by the product rule $Q'=N\,S'\cdot(x_{k+1}-x_k)>0$. The two roots of a quadratic have $Q'=2a\xi+b=\pm\sqrt{b^2-4ac}$. Ours is the one with the plus sign, $\xi=(-b+\sqrt{\cdot})/(2a)$; multiply numerator and denominator by $-b-\sqrt{\cdot}$ to get (B.26).

# %%
xi, h, m, d0, d1 = sympy.symbols("xi h m delta_0 delta_1", positive=True)
N = m + (d1 + d0 - 2 * m) * xi * (1 - xi)
S = h * (m * xi**2 + d0 * xi * (1 - xi)) / N
bracket = d1 * xi**2 + 2 * m * xi * (1 - xi) + d0 * (1 - xi) ** 2
claim("B.25", m**2 * bracket / N**2, sympy.diff(S, xi) * m / h, note="SymPy's derivative")

xs = torch.tensor([-5.0, -1.0, 0.5, 5.0], dtype=DOUBLE)                     # four knots
ys = torch.tensor([-5.0, -2.0, 2.5, 5.0], dtype=DOUBLE)
slopes = torch.tensor([1.0, 0.3, 4.0, 1.0], dtype=DOUBLE)
x = torch.linspace(-0.95, 0.45, 8, dtype=DOUBLE).requires_grad_()           # in the middle piece
y, log_slope = spline(x, *(part.repeat(8, 1) for part in (xs, ys, slopes)))
share, mean = ((x + 1) / 1.5).detach(), 4.5 / 1.5
cross = share * (1 - share)
below = mean + (4.0 + 0.3 - 2 * mean) * cross
claim("B.24", -2.0 + 4.5 * (mean * share**2 + 0.3 * cross) / below, y, note="the library's curve")
(slope,) = torch.autograd.grad(y.sum(), x)
claim("B.25", mean**2 * (4.0 * share**2 + 2 * mean * cross + 0.3 * (1 - share) ** 2) / below**2,
      slope, note="its slope, by autograd")
assert (log_slope.exp() - slope).abs().max() < 1e-12


def root(delta, mean, h, d0, d1):
    """ξ by (B.26), and as a quadratic equation is solved at school."""
    bend = delta * (d1 + d0 - 2 * mean)
    a, b, c = h * (mean - d0) + bend, h * d0 - bend, -mean * delta
    disc = (b**2 - 4 * a * c).sqrt()
    return 2 * c / (-b - disc), (-b + disc) / (2 * a)


claim("B.26", root(y.detach() + 2.0, mean, 4.5, 0.3, 4.0)[0], share, note="back to where we began")
back = spline_inverse(y.detach(), *(part.repeat(8, 1) for part in (xs, ys, slopes)))
assert (back - x.detach()).abs().max() < 1e-12

# %% [markdown]
# > **Pitfall: the formula from school.** $\xi=(-b+\sqrt{b^2-4ac})/(2a)$ is the same number on paper. But where a piece is nearly straight, $\delta_k\approx\delta_{k+1}\approx\bar m$, it divides a difference of two nearly equal numbers by nearly zero; and on a straight one it is $0/0$.

# %%
stable, school = root(torch.tensor(0.25, dtype=DOUBLE), 1.0, 1.0, 1.0, 1.0)  # a straight piece
fact("a quarter of the way along a straight piece", stable)
print(f"by the formula from school: {school.item()}")
nearly = [root(torch.tensor(0.25, dtype=DOUBLE), 1.0, 1.0, 1.0, 1.0 + tiny)
          for tiny in (1e-11, 1e-12, 1e-13)]
assert all(abs(one - 0.25) < 1e-11 for one, _ in nearly)
assert max(abs(other - 0.25) for _, other in nearly) > 1e-6

# %% [markdown]
# ## B.5 Autoregressive: a product, a mask, and the price of bins
#
# **The product.** $p(x_1,\dots,x_D)=p(x_1)\,p(x_2\mid x_1)\cdots$ is the product rule, $D-1$ times, and assumes nothing:
#
# $$
# p(x)\;=\;\prod_{d=1}^Dp(x_d\mid x_1,\dots,x_{d-1}) ,
# \qquad p(x_d\mid x_{<d})=\frac{\sum_{x_{>d}}p(x)}{\sum_{x_{\ge d}}p(x)} .
# \tag{B.27}
# $$
#
# The converse is what makes a model: *any* $D$ conditional laws, multiplied, are a law. Sum over $x_D$ first: its factor sums to 1, and nothing else contains $x_D$. Then $x_{D-1}$, and so on down.
#
# **The mask.** One network is to give all $D$ factors in one call, factor $d$ from the coordinates before $d$ alone. Give each hidden unit a number $\nu$ from $1$ to $D-1$: the last coordinate that it may depend on. A unit in the first layer sees the coordinates $i\le\nu$; a unit in a later layer sees units with numbers $\le\nu$; output $d$ sees units with numbers $<d$. Write each layer's permissions as a matrix of zeros and ones, $M_1,M_2,M_3$. The product counts the paths from input $i$ to output $d$. Along
# a path $i\le\nu_1\le\nu_2<d$, so
#
# $$
# (M_3M_2M_1)_{di}\;=\;\#\big\{(\nu_1,\nu_2):\ i\le\nu_1\le\nu_2<d\big\}\;=\;0\quad\text{unless }i<d ,
# \tag{B.28}
# $$
#
# where units are counted. No path, no dependence, whatever the weights and the activations are.

# %%
K, D = 4, 3
ar = Autoregressive(D, bins=K, low=-1.0, high=1.0, width=12, generator=seeded(16)).double()
with torch.no_grad():
    for weight in ar.weights():
        weight.mul_(2)
    cells = torch.tensor(list(product(range(K), repeat=D)))
    table = ar.log_mass(cells).exp().reshape(K, K, K)  # the whole law, 64 numbers
    factors = ar.network(cells).softmax(-1)            # (64, D, K)
claim("B.27", table.sum(), 1.0, note="any three conditional laws make a law")
before = [table.sum((0, 1, 2)), table.sum((1, 2)), table.sum(2), table]     # sums over what follows
for d in range(D):
    own = (before[d + 1] / before[d][..., None]).reshape(*[K] * (d + 1), *[1] * (2 - d))
    ours = factors[:, d].gather(1, cells[:, d:d + 1]).reshape(K, K, K)
    claim("B.27", own.expand(K, K, K), ours, note=f"factor {d + 1}: from the table, and asked for")
first, second, third = (mask.double() for mask in ar.network.masks)
first, third = first[:, ::16], third[::K]              # one of each coordinate's waves, and bins
number = torch.arange(12) % (D - 1) + 1
paths = torch.tensor([[sum(int(i <= one <= two < d) for one in number for two in number)
                       for i in (1, 2, 3)] for d in (1, 2, 3)])
claim("B.28", paths, third @ second @ first, note="counted one by one")
fact("paths to output 3 from inputs 1, 2, 3", paths[2])
jacobian = torch.autograd.functional.jacobian(lambda one: ar.network.logits(one[None])[0],
                                              draws(48, seed=17)).reshape(D, K, D, 16)
assert not jacobian[0].any() and not jacobian[1][:, 1:].any() and not jacobian[2][:, 2:].any()
assert jacobian[1][:, 0].any() and jacobian[2][:, :2].any()

# %% [markdown]
# > **Pitfall: a mask that is off by one.** If output $d$ may see units with numbers $\le d$, it sees $x_d$ itself. The training loss then falls towards zero, magnificently, and samples are nonsense: while sampling, $x_d$ is not there yet. A likelihood that looks too good should be summed over all cells; the cell above shows what it must give.

# %% [markdown]
# **From masses to a density.** A coordinate is cut into bins of width $h$; the model gives the *mass* $P$ of each of the cells, which have the volume $h^D$. The density that is constant on cells and has these masses is
#
# $$
# p_\theta(x)\;=\;\frac{P(\text{cell of }x)}{h^D} ,
# \qquad\frac{-\log_2P}{D}\;=\;\frac{-\log p_\theta(x)/D-\log h}{\log2} .
# \tag{B.29}
# $$
#
# The second is what one pays in bits per coordinate for the *bin*, and the way to compare with models of densities: nats of a density mean nothing until a width is named. Halve the unit of length, and $\log p$ falls by $D\log2$.
#
# **What the bins cost.** No staircase is better than the one with the true masses $P_j=\int_{\text{bin }j}p\,dx$. Its divergence from the truth is $\mathrm{KL}(p\,\Vert\,\text{staircase})=-\sum_jP_j\log(P_j/h)-H(p)$, with $H(p)$ the entropy of the density. For a smooth $p$ on a line, $P_j/h=p+\tfrac1{24}h^2p''+\dots$ at the middle of the bin (Taylor, integrated over the bin), and within the bin the density deviates from its mean by $p'\,(x-\text{middle})$. By $\mathrm{KL}\approx\tfrac12\int(\text{deviation})^2/p$, and
# since $(x-\text{middle})^2$ has the mean $h^2/12$ over a bin,
#
# $$
# \mathrm{KL}(p\,\Vert\,\text{staircase})\;=\;\frac{h^2}{24}\int\frac{p'(x)^2}{p(x)}\,dx+O(h^4) .
# \tag{B.30}
# $$
#
# Second order in $h$; for $\mathcal N(0,V)$ the integral is $1/V$. Where the data are grey values on levels there is nothing to lose: they *are* the bins.

# %%
x = 2 * torch.rand(30, D, generator=seeded(18), dtype=DOUBLE) - 1
at = ((x + 1) / 0.5).long()
mass = table[at[:, 0], at[:, 1], at[:, 2]]
claim("B.29", (mass / 0.5**D).log(), ar.log_prob(x), note="from the table of masses")
claim("B.29", -mass.log2() / D, (-ar.log_prob(x) / D - math.log(0.5)) / math.log(2), note="bits")
spreads, costs = (1.0, 0.5, 0.25, 0.125), []
for h in spreads:
    edges = torch.arange(-10, 10 + h / 2, h, dtype=DOUBLE)
    masses = torch.special.ndtr(edges).diff()
    costs.append((-torch.special.xlogy(masses, masses / h)).sum()
                 - 0.5 * math.log(2 * math.pi * math.e))
claim("B.30", (spreads, torch.stack(costs)), 2.0, relation="order", note="bins of N(0, 1)")
fact("cost in nats for h = 1, 1/2, 1/4, 1/8", torch.stack(costs), digits=3)
fact("    over h²/24", [24 * cost / h**2 for cost, h in zip(costs, spreads, strict=True)], 2)

# %% [markdown]
# ## B.6 Diffusion: a VAE with a long hidden path
#
# Chapters 2 to 7 are about this family, so here is only how it hangs together with the others. Take for the hidden $z$ of section B.2 a whole path $x_1,\dots,x_T$, and for the encoder a fixed one, the noising (2.4): it has nothing to learn, and [chapter 3](03_one_step_marginal.ipynb#3.5-The-induction) draws from it in one step, (3.14), which is (T.29) again. Then (B.10) is the bound (5.5), and (B.11) is (5.6): what is lost is the divergence between the noising and the model's own opinion of how $x_0$ came about
# ([5.4](05_epsilon_loss.ipynb#5.4-The-bound,-as-a-divergence)). Because both laws are chains, the bound falls apart into one divergence for each step, (5.13), of two Gaussians with known covariance, and each is a squared error of a mean, (5.15), or of a noise, (5.18). So what was a game in B.1 and an encoder to be trained in B.2 is a regression here. The decoder, for its part, is the product of $T$ conditional laws, as in B.5, over levels of noise instead of coordinates: that is why drawing takes many calls ([chapter 7](07_training_and_sampling.ipynb#7.1-Two-algorithms)). Chapter 1's
# `Diffusion` is nothing but the library's chain, loss and sampler with an MLP for the network. In [section 9.11](09_ddim.ipynb#9.11-The-equation-behind-it) the noise on the way down is left out and the steps become dense: the chain becomes an ODE, an invertible map as in B.4, and that is where the last family begins.

# %% [markdown]
# ## B.7 Flow matching: why the average velocity is enough
#
# Join a draw of noise $\varepsilon\sim\mathcal N(0,I)$ to an independent draw of data $x_0$ by a line, walked in the time $\rho$ from 0 (noise) to 1 (data), **against** the chain's $t$:
#
# $$
# x_\rho\;=\;\rho\,x_0+(1-\rho)\,\varepsilon ,
# \qquad\frac{dx_\rho}{d\rho}\;=\;x_0-\varepsilon\;=\;\frac{x_0-x_\rho}{1-\rho} .
# \tag{B.31}
# $$
#
# The last form puts $\varepsilon=(x_\rho-\rho x_0)/(1-\rho)$ in; it says: what is left of the way, over what is left of the time. It needs to know $x_0$, which a sampler does not. What it can know is the place and the time. So average over all $x_0$ that may have led here, with the weights of Bayes' rule, $p(x_0\mid x_\rho)\propto p_{\text{data}}(x_0)\,\mathcal N\big(x_\rho;\,\rho x_0,(1-\rho)^2I\big)$:
#
# $$
# u(x,\rho)\;=\;\mathbb E\big[x_0-\varepsilon\mid x_\rho=x\big]\;=\;\int\frac{x_0-x}{1-\rho}\;p(x_0\mid x_\rho=x)\,dx_0 .
# \tag{B.32}
# $$
#
# **A regression finds it.** Let $\hat u$ be any field, and split $\hat u-(x_0-\varepsilon)$ into $(\hat u-u)+\big(u-(x_0-\varepsilon)\big)$ and square. The cross term is zero: given $x_\rho$, its first factor is fixed and its second has the mean zero, by (B.32) (tower property). So, at each $\rho$,
#
# $$
# \mathbb E\,\big\Vert\hat u(x_\rho,\rho)-(x_0-\varepsilon)\big\Vert^2\;=\;\mathbb E\,\big\Vert\hat u(x_\rho,\rho)-u(x_\rho,\rho)\big\Vert^2+\underbrace{\mathbb E\,\big\Vert u(x_\rho,\rho)-(x_0-\varepsilon)\big\Vert^2}_{\text{depends on no weights}} .
# \tag{B.33}
# $$
#
# The left side can be computed from draws. The first term on the right is what one wants to be small, and both have the same gradient. It is the argument of [section 5.9](05_epsilon_loss.ipynb#5.9-The-best-possible-loss), floor included: the loss does not go to zero, and a network that has reached $u$ shows the floor.

# %%
x0, eps = data.sample(50, seeded(20)), draws(50, 1, seed=21)
for rho in (0.0, 0.3, 0.8):
    claim("B.31", x0 - eps, fm.velocity_from_x0(x0, fm.between(eps, x0, rho), rho), tol=1e-9,
          note=f"ρ = {rho}")
x = torch.linspace(-2, 2, 9, dtype=DOUBLE)
p_data = data.log_prob(line[:, None]).exp()
for rho in (0.2, 0.6, 0.9):
    likely = p_data * torch.exp(-((x[:, None] - rho * line) ** 2) / (2 * (1 - rho) ** 2))
    mean = integrate(likely * (line - x[:, None]) / (1 - rho)) / integrate(likely)
    claim("B.32", mean, velocity(x[:, None], rho)[:, 0], tol=1e-9, note=f"ρ = {rho}, quadrature")


def field(x):
    """Some û, not the right one."""
    return 0.4 - 0.7 * torch.tanh(x)


rho = 0.6
coarse = torch.linspace(-7, 7, 701, dtype=DOUBLE)      # for x_0 and for ε
both = data.log_prob(coarse[:, None]).exp()[:, None] * torch.exp(-coarse**2 / 2)
both = both / both.sum()
gap = coarse[:, None] - coarse                         # x_0 − ε
meet = rho * coarse[:, None] + (1 - rho) * coarse      # x_ρ
p_rho, u = density_at(line, rho), velocity(line[:, None], rho)[:, 0]
floor = (both * gap**2).sum() - integrate(p_rho * u**2)                     # E(x_0−ε)² − E u²
claim("B.33", integrate(p_rho * (field(line) - u) ** 2) + floor,
      (both * (field(meet) - gap) ** 2).sum(), tol=1e-9, note="ρ = 0.6, a wrong field")
fact("at ρ = 0.6: the floor, and what the wrong field adds", [floor, integrate(
    p_rho * (field(line) - u) ** 2)], digits=3)

# %% [markdown]
# **It carries the right laws.** That is not obvious: nobody travels with the average velocity. Let $p_\rho$ be the density of $x_\rho$, and test it with any smooth function $g$ that is zero far out. Then, one line for each rule,
#
# $$
# \begin{aligned}
# \frac{d}{d\rho}\,\mathbb E\,g(x_\rho)
# &=\mathbb E\big[\nabla g(x_\rho)^\top(x_0-\varepsilon)\big] && \text{the chain rule, inside the mean} \\
# &=\mathbb E\big[\nabla g(x_\rho)^\top u(x_\rho,\rho)\big] && \text{the tower property, (B.32)} \\
# &=\int\nabla g^\top u\,p_\rho\,dx\;=\;-\int g\;\nabla\!\cdot(p_\rho u)\,dx && \text{by parts; the ends vanish.}
# \end{aligned}
# \tag{B.34}
# $$
#
# The left side is $\int g\,\partial_\rho p_\rho\,dx$. Two functions that give the same integral against every $g$ are the same:
#
# $$
# \frac{\partial p_\rho}{\partial\rho}\;=\;-\nabla\!\cdot\big(p_\rho\,u\big) ,
# \tag{B.35}
# $$
#
# the **continuity equation**, with $u$ for the velocity. But it is also the law of motion for the density of points that *do* travel with $u$: for those, put $dx/d\rho=u$ into the first line and skip the second. Start and velocity determine all later densities if $u$ is smooth, as it is for $\rho<1$ (and here up to the end, for the data have a density that is smooth). So points that start as $\mathcal N(0,I)$ and follow $u$ have the law of $x_\rho$ at each $\rho$, and end as data. Nothing was used
# of the line but its velocity: any other way to join $\varepsilon$ to $x_0$ would do, and so would pairs that are not independent.
#
# **The likelihood.** Along a path, $\log p_\rho(x(\rho))$ changes for two reasons, and by the chain rule and (B.35), with $\nabla\!\cdot(pu)=p\,\nabla\!\cdot u+u^\top\nabla p$,
#
# $$
# \frac{d}{d\rho}\log p_\rho=\frac{\partial_\rho p_\rho}{p_\rho}+u^\top\frac{\nabla p_\rho}{p_\rho}=-\nabla\!\cdot u ,
# \qquad\log p_1(x)=\log\mathcal N(z;\,0,I)-\int_0^1\nabla\!\cdot u\;d\rho ,
# \tag{B.36}
# $$
#
# with $z$ where the path through $x$ began. It is (B.22) for infinitely many layers, each of which moves points by $u\,d\rho$ and has $\log|\det(I+\partial u\,d\rho)|=\nabla\!\cdot u\,d\rho$: a trace in the place of a determinant. The cell solves for $z$ and for the integral with Heun's method, of order two.

# %%
rho_now = torch.tensor(0.6, dtype=DOUBLE, requires_grad=True)
spread = rho_now**2 * widths + (1 - rho_now) ** 2
average = (weights * torch.cos(rho_now * means) * torch.exp(-spread / 2)).sum()   # E cos x_ρ, (T.7)
(change,) = torch.autograd.grad(average, rho_now)
claim("B.34", integrate(p_rho * -line.sin() * u), change, note="g = cos, ρ = 0.6")

clock = torch.full((9,), 0.6, dtype=DOUBLE, requires_grad=True)
(growth,) = torch.autograd.grad(density_at(x, clock[:, None]).sum(), clock)
place = x.clone().requires_grad_()
(tilt,) = torch.autograd.grad(density_at(place, 0.6).sum(), place)
carried, spreading = fm.divergence(velocity, x[:, None], 0.6)
claim("B.35", -(density_at(x, 0.6) * spreading + carried[:, 0] * tilt), growth, tol=1e-9,
      note="the library's field and its divergence")

sizes = (20, 40, 80, 160)
exact = data.log_prob(x[:, None])
errors = [(fm.log_prob_along(velocity, x[:, None], steps=n, solver="heun") - exact).abs().max()
          for n in sizes]
claim("B.36", (sizes, torch.stack(errors)), -2.0, relation="order", note="Heun, nine points")
fact("log-likelihood: largest error with 20 and 160 steps", torch.stack(errors)[[0, 3]], digits=2)

# %% [markdown]
# > **Pitfall: straight lines, one step.** The lines of (B.31) are straight, and one is tempted to walk them in one step. But the *paths* of $u$ are not, as the first picture shows. At $\rho=0$ the noise says nothing about the datum, so $u(x,0)=\mathbb E\,x_0-x$, and Euler's one step sends every point to the same place, the mean of the data, between the humps.

# %%
starts = draws(5, 1, seed=22)
once = fm.carry(velocity, starts, 0.0, 1.0, steps=1, solver="euler")
fact("five points after one step", once[:, 0], digits=3)
centre = data.mean[0]
fact("the mean of the data, and the density there", [centre, density_at(centre, 1.0)], digits=2)

# %% [markdown]
# **It is DDIM.** $x_\rho$ is signal plus noise, like $x_t=\sqrt{\bar\alpha_t}\,x_0+\sqrt{1-\bar\alpha_t}\,\varepsilon$, but its two factors sum to 1 instead of their squares. Choose $\rho_t$ so that the *ratio* of the factors agrees; what is left is a common factor $\kappa_t$:
#
# $$
# \rho_t=\frac{\sqrt{\bar\alpha_t}}{\sqrt{\bar\alpha_t}+\sqrt{1-\bar\alpha_t}} ,
# \qquad x_{\rho_t}=\kappa_t\,x_t ,\qquad\kappa_t=\frac1{\sqrt{\bar\alpha_t}+\sqrt{1-\bar\alpha_t}}=\sqrt{\rho_t^2+(1-\rho_t)^2} .
# \tag{B.37}
# $$
#
# (In this section $\kappa_t$ is this factor, not the sum of weights in (3.21).) Here $\kappa_t\sqrt{\bar\alpha_t}=\rho_t$ and $\kappa_t\sqrt{1-\bar\alpha_t}=1-\rho_t$; square and add for the last form. Conditioning on $x_t$ or on a multiple of it is the same. So with $\hat x_0=\mathbb E[x_0\mid x_t]$ and $\hat\varepsilon=\mathbb E[\varepsilon\mid x_t]$ one has $u=\hat x_0-\hat\varepsilon$; and averaging (B.31) given $x_\rho$, $x_\rho=\rho\,\hat x_0+(1-\rho)\,\hat\varepsilon$. A step of Euler's method from $\rho_t$ to $\rho_s$, $s<t$, is then
#
# $$
# x_{\rho_t}+(\rho_s-\rho_t)\,u\;=\;\rho_s\,\hat x_0+(1-\rho_s)\,\hat\varepsilon\;=\;\kappa_s\Big(\sqrt{\bar\alpha_s}\;\hat x_0+\sqrt{1-\bar\alpha_s}\;\hat\varepsilon\Big) ,
# \tag{B.38}
# $$
#
# and in the parentheses stands DDIM's step, (9.14) with $\sigma_t=0$. *Not approximately, and not only for small steps.* With a network in the place of the conditional means the same holds, if the three predictions are converted by these lines. The two families differ in which $t$, or $\rho$, are drawn in training and how errors there are weighted, and in which grid is natural for sampling; not in what is learned. (With Heun's method they differ: a mean of two slopes in $\rho$ is not one in the variables of (9.29).)

# %%
schedule = NoiseSchedule.from_betas([0.05, 0.15, 0.25, 0.35, 0.45, 0.55])    # short and strong
signal, noise = schedule.alpha_bar.sqrt(), (1 - schedule.alpha_bar).sqrt()
levels = fm.rho_from_alpha_bar(schedule.alpha_bar)
kappa = 1 / (signal + noise)
claim("B.37", kappa * signal, levels, note="the library's ρ, t = 0 … 6")
claim("B.37", kappa, fm.size(levels), note="and its size")
model = FlowMatching(2, width=16, generator=seeded(23)).double()             # random weights
x_T = draws(7, 2, seed=24)
with torch.no_grad():
    walk = sample(fm.denoiser_of(model.velocity, schedule), GaussianDiffusion(schedule), (7, 2),
                  steps=6, spacing="trailing", eta=0.0, x_T=x_T, generator=seeded(0))
    by_ddim = {state.t: state.x for state in walk}
    x_rho = kappa[6] * x_T
    for t in range(6, 0, -1):                          # Euler's method for dx/dρ = u
        x_rho = x_rho + (levels[t - 1] - levels[t]) * model.velocity(x_rho, levels[t].item())
        if t in (6, 3, 1):
            claim("B.38", x_rho, kappa[t - 1] * by_ddim[t - 1], tol=1e-9,
                  note=f"the library's DDIM after the step from t = {t}")
fact("ρ of the six steps, from t = 6 on", levels.flip(0)[:6], digits=3)

# %% [markdown]
# The walk of (B.38) starts at $\rho_T>0$, where the chain ends, and not at $\rho=0$; with a schedule that ends at $\bar\alpha_T\approx0$ the difference is small ([section 2.7](02_forward_process.ipynb#2.7-How-long-is-long-enough?)).
#
# ## B.8 What we have
#
# | equation | what it says | in `ddpm_lite.families` | elsewhere |
# |---|---|---|---|
# | (B.1) to (B.3) | the best discriminator, and what the game is worth | `gan.discriminator_loss` | GAN, Proposition 1 and Theorem 1 |
# | (B.4) to (B.6) | what the generator descends, saturating or not | `gan.generator_loss` | GAN, section 3 |
# | (B.7), (B.8) | the game circles; $R_1$ damps it | `gan.r1_penalty` | Mescheder et al. |
# | (B.9) to (B.12) | the bound, twice, and its closed term | `VAE.elbo`, `vae.kl_to_standard` | (T.28); VAE, appendix B |
# | (B.13) | the gradient through a draw | | (T.30) |
# | (B.14) | more draws, a tighter bound | `VAE.iwae` | IWAE, Theorem 1 |
# | (B.15), (B.16) | the linear VAE is probabilistic PCA | `VAE(…, hidden=0)` | Tipping and Bishop |
# | (B.17) to (B.19) | rounding, and the gradients through and around it | `VQVAE.loss`, `straight_through` | VQ-VAE paper |
# | (B.20), (B.21) | a mixture over words, and one term of it | `VQVAE.log_prob`, `VQVAE.elbo` | |
# | (B.22), (B.23) | determinants multiply; a coupling's is a product | `Flow.log_prob`, `flow.Coupling` | (T.33) |
# | (B.24) to (B.26) | a rising curve with an inverse | `flow.spline`, `spline_inverse` | Durkan et al., section 3.1 |
# | (B.27), (B.28) | one coordinate after the other, by masks | `autoregressive.MaskedNetwork` | MADE |
# | (B.29), (B.30) | masses, densities, bits, and what bins cost | `Autoregressive.log_prob` | |
# | (B.31) to (B.33) | the average velocity, and the regression that finds it | `FlowMatching.loss`, `exact_velocity` | Lipman et al.; Liu et al. |
# | (B.34) to (B.36) | it carries the laws; its likelihood | `log_prob_along` | (9.27); Chen et al., Theorem 1 |
# | (B.37), (B.38) | Euler's step in $\rho$ is DDIM's step | `denoiser_of` | (9.14), (9.20) |
#
# ## B.9 History and further reading
#
# - Ian Goodfellow and others, *Generative adversarial nets* ([1406.2661](https://arxiv.org/abs/1406.2661), 2014): (B.1) to (B.3), and the non-saturating loss. Martin Arjovsky and Léon Bottou, *Towards principled methods for training generative adversarial networks* ([1701.04862](https://arxiv.org/abs/1701.04862), 2017): (B.6). Lars Mescheder, Andreas Geiger and Sebastian Nowozin ([1801.04406](https://arxiv.org/abs/1801.04406), 2018): the example with one datum, and $R_1$.
# - Diederik Kingma and Max Welling ([1312.6114](https://arxiv.org/abs/1312.6114), 2013) and, independently, Danilo Rezende, Shakir Mohamed and Daan Wierstra ([1401.4082](https://arxiv.org/abs/1401.4082), 2014): the VAE. Yuri Burda, Roger Grosse and Ruslan Salakhutdinov ([1509.00519](https://arxiv.org/abs/1509.00519), 2015): (B.14). Michael Tipping and Christopher Bishop, *Probabilistic principal component analysis* (Journal of the Royal Statistical Society B 61, 1999, [doi](https://doi.org/10.1111/1467-9868.00196)): (B.15) and (B.16).
# - Aäron van den Oord, Oriol Vinyals and Koray Kavukcuoglu ([1711.00937](https://arxiv.org/abs/1711.00937), 2017): the VQ-VAE.
# - Laurent Dinh, Jascha Sohl-Dickstein and Samy Bengio ([1605.08803](https://arxiv.org/abs/1605.08803), 2016): couplings. Conor Durkan, Artur Bekasov, Iain Murray and George Papamakarios ([1906.04032](https://arxiv.org/abs/1906.04032), 2019): rational quadratic curves in them.
# - Mathieu Germain, Karol Gregor, Iain Murray and Hugo Larochelle ([1502.03509](https://arxiv.org/abs/1502.03509), 2015): the masks.
# - Ricky Chen, Yulia Rubanova, Jesse Bettencourt and David Duvenaud ([1806.07366](https://arxiv.org/abs/1806.07366), 2018): (B.36). Yaron Lipman and others ([2210.02747](https://arxiv.org/abs/2210.02747), 2022) and Xingchao Liu, Chengyue Gong and Qiang Liu ([2209.03003](https://arxiv.org/abs/2209.03003), 2022): regression on the velocities of straight lines.

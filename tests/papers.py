"""The papers' equations, transcribed as printed, for the tests to compare with.

Imports nothing from ddpm_lite. Everything is plain float arithmetic on lists indexed as on
paper: ``betas[t]`` is β_t for t = 1..T and ``betas[0]`` is unused. DDPM is Ho et al. (2020),
arXiv 2006.11239; DDIM is Song et al. (2020), arXiv 2010.02502, whose α_t is DDPM's ᾱ_t.
"""

from math import erf, inf, prod, sqrt


def ddpm_alpha(betas, t):
    """DDPM, below Eq. 3: α_t := 1 − β_t."""
    return 1 - betas[t]


def ddpm_alpha_bar(betas, t):
    """DDPM, below Eq. 3: ᾱ_t := ∏_{s=1}^t α_s (the empty product, 1, at t = 0)."""
    return prod(ddpm_alpha(betas, s) for s in range(1, t + 1))


def ddpm_eq_4(betas, x0, t):
    """q(x_t | x_0): mean and variance."""
    return sqrt(ddpm_alpha_bar(betas, t)) * x0, 1 - ddpm_alpha_bar(betas, t)


def ddpm_eq_6_7(betas, x_t, x0, t):
    """q(x_{t−1} | x_t, x_0): μ̃_t and β̃_t."""
    alpha, bar = ddpm_alpha(betas, t), ddpm_alpha_bar(betas, t)
    before = ddpm_alpha_bar(betas, t - 1)
    mean = sqrt(before) * betas[t] / (1 - bar) * x0 + sqrt(alpha) * (1 - before) / (1 - bar) * x_t
    variance = (1 - before) / (1 - bar) * betas[t]
    return mean, variance


def ddpm_eq_11(betas, x_t, eps, t):
    """μ_θ(x_t, t) from the predicted noise."""
    bar = ddpm_alpha_bar(betas, t)
    return 1 / sqrt(ddpm_alpha(betas, t)) * (x_t - betas[t] / sqrt(1 - bar) * eps)


def ddpm_eq_12(betas, variance, t):
    """The factor in front of ‖ε − ε_θ‖², with σ_t² = variance."""
    return betas[t] ** 2 / (2 * variance * ddpm_alpha(betas, t) * (1 - ddpm_alpha_bar(betas, t)))


def ddpm_eq_13(x, mean, variance):
    """One factor of p_θ(x_0 | x_1): the Gaussian integrated from δ₋(x) to δ₊(x), 256 levels."""
    above = inf if x == 1 else x + 1 / 255
    below = -inf if x == -1 else x - 1 / 255
    return (erf((above - mean) / sqrt(2 * variance)) - erf((below - mean) / sqrt(2 * variance))) / 2


def ddim_eq_7(bar_s, bar_t, sigma, x_t, x0):
    """q_σ(x_{t−1} | x_t, x_0), with (t−1, t) read as any (s, t)."""
    mean = sqrt(bar_s) * x0 + sqrt(1 - bar_s - sigma**2) * (x_t - sqrt(bar_t) * x0) / sqrt(
        1 - bar_t
    )
    return mean, sigma**2


def ddim_eq_12(bar_s, bar_t, sigma, x_t, eps):
    """The update: predicted x_0 and direction to x_t; the noise σ·ε_t is the variance."""
    x0 = (x_t - sqrt(1 - bar_t) * eps) / sqrt(bar_t)
    return sqrt(bar_s) * x0 + sqrt(1 - bar_s - sigma**2) * eps, sigma**2


def ddim_eq_16(bar_s, bar_t, eta):
    """σ_{τ_i}(η)."""
    return eta * sqrt((1 - bar_s) / (1 - bar_t)) * sqrt(1 - bar_t / bar_s)

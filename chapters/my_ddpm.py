"""Your own diffusion library, which grows from chapter to chapter.

Replace each `raise NotImplementedError` by your code when the exercise that it names asks for it.
The chapters load this file afresh at every check, so saving it is enough. Nothing else in the book
depends on it.

Everywhere: t is an int that counts 0..T as on paper, and alpha_bar is a tensor of T + 1 numbers,
alpha_bar[t] = ᾱ_t, with alpha_bar[0] = 1 for clean data. x, x0 and noise are tensors of one shape.
"""

import torch  # noqa: F401 (you will need it)

# ---- Chapter 2: the forward process ----------------------------------------------------------------


def alpha_bars(betas):
    """Exercise 2.4: from the tensor β_1..β_T, the tensor ᾱ_0..ᾱ_T, which has one entry more."""
    raise NotImplementedError("your turn")


def forward_step(x, t, noise, alpha_bar):
    """Exercise 2.6: x_t from x = x_{t−1} and the given noise, for 1 ≤ t ≤ T."""
    raise NotImplementedError("your turn")


# ---- Chapter 3: the one-step marginal --------------------------------------------------------------


def q_sample(x0, t, noise, alpha_bar):
    """Exercise 3.3: x_t in one jump from x_0 and the given noise, for 0 ≤ t ≤ T."""
    raise NotImplementedError("your turn")


# ---- Chapter 4: the posterior ----------------------------------------------------------------------


def x0_from_eps(x_t, t, eps, alpha_bar):
    """Exercise 4.8: the clean data that x_t came from, if eps is the noise in it, for 1 ≤ t ≤ T."""
    raise NotImplementedError("your turn")


def posterior(x_t, x0, t, s, alpha_bar):
    """Exercise 4.2: the pair (mean, variance) of q(x_s | x_t, x_0), for 0 ≤ s < t ≤ T."""
    raise NotImplementedError("your turn")


# ---- Chapter 5: the ε-loss -------------------------------------------------------------------------


def simple_loss(denoiser, x0, t, noise, alpha_bar):
    """Exercise 5.8: the mean squared error of the guessed noise, one number, for x0 (B, D).

    Here t is an int64 tensor (B,), a step for each row; the network is called as denoiser(x_t, t).
    """
    raise NotImplementedError("your turn")


# ---- Chapter 6: the U-Net --------------------------------------------------------------------------


def timestep_embedding(t, dim):
    """Exercise 6.5: the clock (6.23) of the tensor t of B step numbers, (B, dim); dim is even."""
    raise NotImplementedError("your turn")


# ---- Chapter 7: training and sampling --------------------------------------------------------------


def reverse_step(x_t, t, eps, z, alpha_bar):
    """Exercise 7.1: x_{t−1}, from the guess eps of the noise in x_t and the fresh noise z."""
    raise NotImplementedError("your turn")


def generate(denoiser, x_T, noises, alpha_bar):
    """Exercise 7.6: x_0, from x_T of shape (B, D) by T reverse steps; step t uses noises[t].

    The network is called as denoiser(x, t) with an int64 tensor t (B,), and guesses the noise in x.
    """
    raise NotImplementedError("your turn")


# ---- Chapter 8: guidance ---------------------------------------------------------------------------


def guided_eps(denoiser, x, t, y, w, null):
    """Exercise 8.4: the guided guess of the noise, strength w; null is the number of "no label".

    Here t and y are int64 tensors (B,); the network is called as denoiser(x, t, y).
    """
    raise NotImplementedError("your turn")


# ---- Chapter 9: DDIM -------------------------------------------------------------------------------


def ddim_step(x_t, t, s, eps, z, eta, alpha_bar):
    """Exercise 9.3: x_s, from the guess eps of the noise in x_t and the fresh noise z, s < t."""
    raise NotImplementedError("your turn")


def trailing_steps(T, S):
    """Exercise 9.4: S steps out of 1..T, evenly spaced, from T down, as an int64 tensor."""
    raise NotImplementedError("your turn")


def ddim_sample(denoiser, x_T, steps, eta, noises, alpha_bar):
    """Exercise 9.7: x_0, from x_T (B, D) along the decreasing list steps; step t uses noises[t].

    The network is called as denoiser(x, t) with an int64 tensor t (B,) of original step numbers.
    """
    raise NotImplementedError("your turn")

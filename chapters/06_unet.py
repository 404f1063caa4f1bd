# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 6 The U-Net

# %% tags=["hide-input"]
import math
import time as stopwatch
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from ddpm_lite import NoiseSchedule
from ddpm_lite.claims import claim, fact
from ddpm_lite.data import digits
from ddpm_lite.exercises import check, hint, progress, solution  # noqa: F401
from ddpm_lite.oracle import GaussianData
from ddpm_lite.plotting import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    VERMILLION,
    figure,
    show,
    use_book_style,
)
from ddpm_lite.unet import (
    PRESETS,
    ConvNeXtBlock,
    Downsample,
    SelfAttention,
    UNet,
    Upsample,
    WideResidualBlock,
    count_flops,
    count_parameters,
    timestep_embedding,
)

use_book_style()
torch.set_default_dtype(torch.float64)        # claims compare ten digits: every tensor is float64
_ = torch.manual_seed(0)                      # single layers draw their weights from this generator

# %% tags=["hide-input"]
schedule = NoiseSchedule.linear(T=1000)       # DDPM's own: β from 1e-4 to 0.02
alpha_bar = schedule.alpha_bar
images = digits("train")[0].double()          # (1442, 1, 8, 8)
pixels = images.flatten(1)                    # (1442, 64): D = 64 coordinates
m, Sigma = pixels.mean(0), torch.cov(pixels.T, correction=0)
identity = torch.eye(64)


def wiener(t):
    """W_t of (6.1): the matrix of the best linear denoiser of the digits."""
    a = alpha_bar[t]
    return a.sqrt() * torch.linalg.solve(a * Sigma + (1 - a) * identity, Sigma).T


steps, pixel = (5, 50, 150, 300, 600), (3, 4)            # the pixel whose weights are shown
g = torch.Generator().manual_seed(1)
clean, noise = pixels[30], torch.randn(64, generator=g)
fig, axes = figure(3, 5, row_height=1.35)
for column, t in zip(axes.T, steps, strict=True):
    noisy = alpha_bar[t].sqrt() * clean + (1 - alpha_bar[t]).sqrt() * noise
    weights = wiener(t)[8 * pixel[0] + pixel[1]].reshape(8, 8)
    restored = m + wiener(t) @ (noisy - alpha_bar[t].sqrt() * m)
    column[0].imshow(noisy.reshape(8, 8), cmap="gray", vmin=-1, vmax=1)
    largest = weights.abs().max()
    column[1].imshow(weights, cmap="PuOr_r", vmin=-largest, vmax=largest)
    column[2].imshow(restored.reshape(8, 8), cmap="gray", vmin=-1, vmax=1)
    column[0].set_title(f"$t={t}$", loc="center")
    for ax in column:
        ax.set(xticks=[], yticks=[])
        ax.plot(pixel[1], pixel[0], "s", mfc="none", mec=GREEN, mew=1.5, ms=10)
for ax, name in zip(axes[:, 0], ("$x_t$", "weights", r"$\hat x_0$"), strict=True):
    ax.set_ylabel(name, rotation=0, ha="right", va="center")
show(fig, """Three rows of five 8 by 8 pictures, for t = 5, 50, 150, 300 and 600; one pixel near
the middle is framed. Top: a digit under more and more noise. Middle: the weights with which the
best linear denoiser computes that pixel. At t = 5 one single pixel has weight, at 50 its
neighbours too, at 150 a patch, at 300 and 600 large parts of the image. Bottom: the denoised digit,
sharp at t = 5 and 50, blurred from 150 on, at 600 much nearer to the mean of all digits than to
this one.""")

# %% [markdown]
# *Where does a denoiser look, to find out one pixel?* The middle row answers for the best *linear* denoiser of handwritten digits, which we can compute exactly. Under little noise it looks at the
# pixel itself. Under much noise it looks at large parts of the image. One network has to do both, and everything between.
#
# **You will**
# - say at which noise level a denoiser needs which part of the image, and why one network therefore works at several scales;
# - build every block of DDPM's network, and check each of them by hand against PyTorch: convolution, GroupNorm, time embedding, attention, residual block;
# - follow the shapes through the U-Net, with its stack of skip connections;
# - count parameters, operations and the receptive field on paper, and arrive at the 35.7 million of the original network;
# - say what each part is for, and measure what is lost without it.
#
# **You need** from the toolbox [conditionals](A_toolbox.ipynb#T.5-Conditionals); from chapter 3 [the one-step marginal](03_one_step_marginal.ipynb#3.5-The-induction); from [chapter 5](05_epsilon_loss.ipynb) what the network is trained for: to guess the noise in $x_t$. PyTorch's
# `nn.Module`.
#
# **Time** about 80 minutes to read, 90 for the exercises, a minute to run.

# %% [markdown]
# ## 6.1 What a denoiser looks at
#
# Chapter 5 left us with a loss, and with no network for images. A denoiser takes an image $x_t$ and a number $t$, and returns an image: its guess of the noise, or, what is the same by (4.21), of $x_0$. On two-dimensional points a small multi-layer perceptron did.
# What should it be on images?
#
# Before we build anything, let us find out what the task demands. Allow only affine guesses, $\hat x_0=Ax_t+b$. Their mean squared error, multiplied out, is an expectation of products of at most two coordinates of $x_0$ (the noise is independent of
# $x_0$, with known moments). So it depends on the data through their mean $m$ and their covariance $\Sigma$ only, and Gaussian data with the same $m$ and $\Sigma$ would give every affine guess the same error.
# But for Gaussian data the best guess of all is the conditional mean ([section 5.9](05_epsilon_loss.ipynb#5.9-The-best-possible-loss)), and (T.20) says that it *is* affine. Put $A=\sqrt{\bar\alpha_t}\,I$ and $R=(1-\bar\alpha_t)\,I$ there:
#
# $$
# \hat x_0 \;=\; m+W_t\big(x_t-\sqrt{\bar\alpha_t}\,m\big) ,
# \qquad
# W_t \;=\; \sqrt{\bar\alpha_t}\;\Sigma\,\big(\bar\alpha_t\,\Sigma+(1-\bar\alpha_t)\,I\big)^{-1} .
# \tag{6.1}
# $$
#
# This is the **Wiener filter**: the best affine denoiser of *any* data with these moments. Row $i$ of $W_t$ says with which weights the pixels of $x_t$ enter the guess of pixel $i$: one row, as an image, is what the middle row above shows. The error that remains is
# the trace of the conditional covariance in (T.20), divided by the number of pixels:
#
# $$
# e_t \;=\; \frac1D\,\mathbb E\,\lVert x_0-\hat x_0\rVert^2 \;=\; \frac1D\,\operatorname{tr}\!\big(\Sigma-\sqrt{\bar\alpha_t}\;W_t\,\Sigma\big) .
# \tag{6.2}
# $$
#
# We check (6.1) against the oracle for Gaussian data, and (6.2) on the true digits, which are not Gaussian at all: noise them, apply the filter, average.

# %%
varies = Sigma.diag() > 0                                    # three pixels are black in all images
gaussian = GaussianData(m[varies], Sigma[varies][:, varies])


def mse_linear(t):
    """e_t of (6.2)."""
    return (Sigma - alpha_bar[t].sqrt() * wiener(t) @ Sigma).trace() / 64


draws = torch.randint(len(pixels), (200_000,), generator=g)
for t in (20, 200):
    x0, eps = pixels[draws], torch.randn(len(draws), 64, generator=g)
    x_t = alpha_bar[t].sqrt() * x0 + (1 - alpha_bar[t]).sqrt() * eps
    guess = m + (x_t - alpha_bar[t].sqrt() * m) @ wiener(t).T
    claim("6.1", guess[:1000, varies],
          gaussian.posterior_mean(schedule, x_t[:1000, varies], t), note=f"t = {t}")
    error = (guess - x0).square().mean(1)
    claim("6.2", mse_linear(t), error.mean(), standard_error=error.std() / len(draws) ** 0.5,
          note=f"t = {t}, on true digits")
fact("mean squared error of the linear denoiser, t = 5, 50, 150, 300, 600",
     [mse_linear(t) for t in steps])
fact("variance of a pixel, for comparison", Sigma.trace() / 64)

# %% [markdown]
# Now suppose that the denoiser may look only at a window of $k\times k$ pixels around the one that it computes. The same argument, with only the pixels $N_i$ of the window observed, gives the best it can do:
#
# $$
# e_t^{(k)} \;=\; \frac1D\sum_{i}\Big(\Sigma_{ii}-\bar\alpha_t\;\Sigma_{iN_i}\,\big(\bar\alpha_t\,\Sigma_{N_iN_i}+(1-\bar\alpha_t)\,I\big)^{-1}\,\Sigma_{N_ii}\Big) .
# \tag{6.3}
# $$
#
# How much worse is that than the whole image? The left panel divides the two. The right one shows how far the filter reaches: the root mean squared distance of the pixels that it uses, weighted by the squares of their weights. (Squares, because some weights are negative. In (6.5) below none are, and the weights themselves serve.)

# %%
row, column = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
places = torch.stack([row.flatten(), column.flatten()], dim=1)             # of the 64 pixels
apart = places[:, None] - places[None]                                     # (64, 64, 2)


def mse_window(t, k):
    """e_t^(k) of (6.3): only pixels at most (k-1)/2 rows and columns away are seen."""
    a, total = alpha_bar[t], 0.0
    for i in range(64):
        seen = (apart[i].abs().amax(1) <= k // 2).nonzero()[:, 0]
        inside = a * Sigma[seen][:, seen] + (1 - a) * torch.eye(len(seen))
        total += Sigma[i, i] - a * Sigma[i, seen] @ torch.linalg.solve(inside, Sigma[seen, i])
    return total / 64


times = [5, 10, 20, 35, 50, 75, 100, 150, 200, 250, 300, 400, 500, 600, 800, 1000]
whole = torch.stack([mse_linear(t) for t in times])
windows = {k: torch.stack([mse_window(t, k) for t in times]) for k in (1, 3, 5)}
claim("6.3", torch.stack([mse_window(t, 15) for t in (20, 300)]),
      torch.stack([mse_linear(t) for t in (20, 300)]), note="a window that holds the image")
claim("6.3", windows[3], windows[1], relation="<=", note="a wider window is never worse")

squared = (apart**2).sum(2)
reach = torch.stack([((wiener(t) ** 2 * squared).sum() / (wiener(t) ** 2).sum()).sqrt()
                     for t in times])
fact("largest excess error, in per cent, for windows 1, 3, 5",
     [100 * (windows[k] / whole - 1).max() for k in (1, 3, 5)], digits=2)
fact("reach of the filter, in pixels, t = 5, 50, 150, 300, 600",
     [reach[times.index(t)] for t in steps], digits=2)
assert (reach.diff() > 0).all()

fig, (left, right) = figure(1, 2)
for (k, found), colour in zip(windows.items(), (VERMILLION, BLUE, GREEN), strict=True):
    left.plot(times, found / whole, "o-", ms=3, color=colour, label=f"{k} × {k} window")
left.axhline(1, color=GREY, lw=1, ls="--")
left.set(xscale="log", xlabel="$t$", ylabel="error over that with\nthe whole image")
left.legend()
right.plot(times, reach, "o-", ms=3, color=PURPLE)
right.set(xscale="log", xlabel="$t$", ylabel="reach in pixels", ylim=(0, None))
show(fig, """Left: the error of a denoiser that sees a window, over that of one that sees the whole
image, against t. All ratios are near 1 at t = 5 and at t = 1000, and largest near t = 200: about
1.4 for the single pixel, 1.13 for 3 by 3, 1.08 for 5 by 5. Right: the reach of the filter grows
steadily from 0.2 pixels at t = 5 to 2.5 pixels at t = 1000.""")

# %% [markdown]
# *What must a denoiser see?* More and more of the image, as $t$ grows. On the left the ratios return to 1 at the far end, not because a narrow window is good there, but because nothing helps any more: almost all of $x_0$ is gone.
#
# Eight pixels leave little room for scales. On a longer line the law shows. Take data $x_0=(g_1,\dots,g_D)$ that are a random walk: $g_1$ and every difference $g_{i+1}-g_i$ are independent and Gaussian, with mean 0 and variance $V$. With $\Delta$ the matrix that takes $x_0$ to $(g_1,\,g_2-g_1,\,g_3-g_2,\dots)$, their density is proportional to
# $\exp(-\lVert\Delta x_0\rVert^2/2V)$. Given $x_t$, the density of $x_0$ is, by Bayes' rule, proportional to $\exp\big(-\lVert\Delta x_0\rVert^2/2V-\lVert x_t-\sqrt{\bar\alpha_t}\,x_0\rVert^2/2(1-\bar\alpha_t)\big)$. This is a Gaussian, so its mean is where the exponent is largest. Set the gradient to zero,
# $\frac1V\Delta^\top\Delta\,\hat x_0=\frac{\sqrt{\bar\alpha_t}}{1-\bar\alpha_t}(x_t-\sqrt{\bar\alpha_t}\,\hat x_0)$, and sort:
#
# $$
# \big(I+b_t^2\,\Delta^\top\Delta\big)\,\sqrt{\bar\alpha_t}\;\hat x_0 \;=\; x_t ,
# \qquad
# b_t^2 \;=\; \frac{1-\bar\alpha_t}{\bar\alpha_t\,V} \;=\; \frac{1}{V\,\mathrm{SNR}_t} .
# \tag{6.4}
# $$
#
# So the denoiser is a smoother with a length $b_t$. Away from the ends $\Delta^\top\Delta$ takes $\kappa_j$ to $2\kappa_j-\kappa_{j-1}-\kappa_{j+1}$. So the weights $\kappa_j$ with which the pixels $j$ of $x_t$ enter pixel $i$ of $\sqrt{\bar\alpha_t}\,\hat x_0$ solve $\kappa_j-b_t^2\,(\kappa_{j+1}-2\kappa_j+\kappa_{j-1})=1$ for $j=i$, and $=0$ otherwise. Sum this over all $j$: the second differences cancel, and
# $\sum_j\kappa_j=1$. Multiply it by $(j-i)^2$ and sum again. On the right, nothing. On the left, shift the summation index so that the second difference falls on $(j-i)^2$, where it is the number 2:
#
# $$
# \sum_j (j-i)^2\,\kappa_j \;=\; b_t^2\sum_j \kappa_j\,\big((j-i+1)^2-2(j-i)^2+(j-i-1)^2\big) \;=\; 2\,b_t^2 \;=\; \frac{2}{V\,\mathrm{SNR}_t} .
# \tag{6.5}
# $$
#
# The weights are positive (put $\kappa_j\propto\rho^{|j-i|}$ into the equation: a $\rho$ between 0 and 1 solves it) and sum to one, so this is their variance: **the reach of the best denoiser grows like $1/\sqrt{\mathrm{SNR}}$.** Photographs are not random walks, but statistically they are not far from them: their power falls with the spatial frequency $f$ roughly like $1/f^2$ (section 6.13), as that of a random walk does (its differences have equal power at every $f$, and taking differences multiplies the power of a slow wave by about $(2\pi f)^2$).

# %%
V, length = 0.04, 1001
Delta = torch.eye(length) - torch.diag(torch.ones(length - 1), -1)
walk = GaussianData(torch.zeros(length), V * torch.linalg.inv(Delta.T @ Delta))
x_t = torch.randn(1, length, generator=g)
for t in (50, 200, 400):
    b_squared = (1 - alpha_bar[t]) / (alpha_bar[t] * V)
    smoother = torch.eye(length) + b_squared * Delta.T @ Delta
    claim("6.4", torch.linalg.solve(smoother, x_t[0]) / alpha_bar[t].sqrt(),
          walk.posterior_mean(schedule, x_t, t)[0], note=f"t = {t}")
    kernel = torch.linalg.inv(smoother)[length // 2]                # weights of the middle pixel
    j = torch.arange(length) - length // 2
    claim("6.5", 2 / (V * schedule.snr[t]), (j**2 * kernel).sum(), note=f"t = {t}")
    fact("    reach in pixels", (2 * b_squared).sqrt())
fact("SNR at t = 1 and t = 1000", [schedule.snr[1], schedule.snr[1000]])
fact("so the reach grows by the factor", (schedule.snr[1] / schedule.snr[1000]).sqrt(), digits=2)

# %% [markdown]
# Over the chain the reach grows by four orders of magnitude. No single width of filter serves all $t$, and a filter as wide as the image, at full resolution, would be a waste: where the noise is strong only smooth shapes survive, and smooth shapes can be held on a coarse grid. That is
# the plan of this chapter's network: *look at the image at several resolutions at once*.

# %% [markdown]
# ## 6.2 A convolution: what it costs, how far it sees
#
# A linear filter never gets below (6.2), and digits are not Gaussian: more can be had. So we want a chain of filters with nonlinearities between them. And we use the one thing that we know about images: a stroke is a stroke wherever it lies. So each output pixel is computed from its neighbourhood with the *same* weights, which is what a convolution does.
# A layer with $C$ input and $C'$ output channels and a $k\times k$ kernel computes
# $y_{c',i}=b_{c'}+\sum_{c,\delta}\kappa_{c',c,\delta}\;x_{c,\,ui+\delta-p}$, where $\delta$ runs over the kernel, $u$ is the stride, and $p$ rows and columns of zeros are added before the first row and column. Three sizes follow.
#
# **Output size.** With $p'$ more rows of zeros after the last row, the kernel has $H+p+p'-k$ places to move on to, in strides of $u$, from its first:
#
# $$
# H' \;=\; \Big\lfloor\frac{H+p+p'-k}{u}\Big\rfloor+1 .
# \tag{6.6}
# $$
#
# **Parameters.** A kernel for every pair of channels, and a bias:
#
# $$
# P_{\text{conv}} \;=\; k^2\,C\,C'+C' .
# \tag{6.7}
# $$
#
# **Operations.** Each of the $C'H'W'$ outputs takes $k^2C$ multiplications and as many additions. It is the custom to count both, as two floating-point operations (FLOP), and to leave out the bias:
#
# $$
# \text{FLOP}_{\text{conv}} \;=\; 2\,k^2\,C\,C'\,H'\,W' .
# \tag{6.8}
# $$
#
# PyTorch carries a counter that watches the operations as they run (`count_flops` turns it on and off). It sees the operations that really run, and takes the cost of each from a formula of its own.

# %%
for C, C_out, k, u, p, H, W in [(3, 16, 3, 1, 1, 32, 32), (16, 32, 3, 2, 1, 32, 24),
                                (32, 8, 1, 1, 0, 9, 9), (4, 4, 7, 3, 2, 30, 41)]:
    layer = nn.Conv2d(C, C_out, k, stride=u, padding=p)
    x = torch.randn(1, C, H, W, generator=g)
    H_out, W_out = (H + 2 * p - k) // u + 1, (W + 2 * p - k) // u + 1
    claim("6.6", torch.tensor([H_out, W_out]), torch.tensor(layer(x).shape[2:]),
          note=f"k = {k}, u = {u}, p = {p}")
    claim("6.7", k**2 * C * C_out + C_out, sum(w.numel() for w in layer.parameters()))
    claim("6.8", 2 * k**2 * C * C_out * H_out * W_out, count_flops(layer, x))


# %% [markdown]
# **Receptive field.** Which pixels of the input can change one output pixel? Let $j$ be how many input pixels apart two neighbouring outputs of a layer lie: the product of the strides so far. A $k\times k$ layer reaches over $k$ neighbours, $k-1$ gaps of that size. So after the layers $1,\dots,n$ the receptive field is
#
# $$
# r \;=\; 1+\sum_{i=1}^{n}(k_i-1)\,j_{i-1} ,
# \qquad j_i=u_1u_2\cdots u_i ,\quad j_0=1
# \tag{6.9}
# $$
#
# pixels wide. Autograd knows better than any formula: the receptive field is where the gradient of one output is not zero. (All weights are set to one, so that nothing cancels.)

# %%
def seen_by_autograd(layers, size=129):
    """Width of the region of the input that changes the middle output."""
    x = torch.zeros(1, 1, size, size, requires_grad=True)
    y = x
    for layer in layers:
        y = layer(y)
    y[0, 0, y.shape[2] // 2, y.shape[3] // 2].backward()
    return int((x.grad[0, 0].abs().sum(0) > 0).sum())


def ones(kernel, stride=1):
    """A convolution with all weights one."""
    layer = nn.Conv2d(1, 1, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.ones_(layer.weight)
    return layer


def receptive_width(layers):
    """(6.9), for a list of convolutions."""
    width, jump = 1, 1
    for layer in layers:
        width += (layer.kernel_size[0] - 1) * jump
        jump *= layer.stride[0]
    return width


flat = [ones(3) for _ in range(8)]
deep = [ones(3), ones(3), ones(3, stride=2), ones(3), ones(3), ones(3, stride=2), ones(3), ones(3)]
mixed = [ones(5), ones(3, stride=3), ones(7, stride=2), ones(1), ones(3)]
for name, layers in (("eight at one resolution", flat), ("eight on three levels", deep),
                     ("a mixture", mixed)):
    claim("6.9", receptive_width(layers), seen_by_autograd(layers), note=name)
    fact("    pixels wide", receptive_width(layers))

# %% [markdown]
# **Exercise 6.1** (1 point, 5 minutes, ●○○) — *Predict the number.* A network has three $3\times3$ convolutions with stride 1, then one with stride 2, then three more with stride 1 (all $3\times3$). How many pixels wide is its receptive field? Guess first: nearer to 15 or to 29?

# %%
pixels_wide = None

check("6.1", pixels_wide)


# %% [markdown]
# **Exercise 6.2** (2 points, 10 minutes, ●●○) — *How far back.* The other direction is needed as often: *which* input pixels does output pixel $i$ see? Write `window(i, kernels, strides, paddings)` that returns the first and the last input position (in one dimension, counted from 0; a position in the padding counts, so the first may be negative). The three lists hold
# $k$, $u$ and $p$ of each layer, the layer nearest to the input first. Start from the end: which outputs of the layer before does output $i$ of the last layer see?

# %%
def window(i, kernels, strides, paddings):
    """First and last input position that output i of a stack of convolutions sees."""
    raise NotImplementedError("your turn")


check("6.2", window)

# %% [markdown]
# At one resolution each layer widens the view by 2 pixels. To see the far side of a $32\times32$ image, 31 pixels away, takes 31 layers, and each of them costs the full price (6.8). Now insert a stride of 2: from there on every layer sees *twice* as far, at *a quarter* of the price. With $M$ levels of $n$ convolutions each and a stride-2 convolution between
# levels, (6.9) is a geometric sum ($\sum_{l=0}^{M-1}2^l=2^M-1$), and so is the cost. In units of one convolution at full resolution, with the same number of channels everywhere,
#
# $$
# r \;=\; 1+2n\,(2^M-1)+2\,(2^{M-1}-1) ,
# \qquad
# \text{cost} \;=\; n\sum_{l=0}^{M-1}4^{-l}+\sum_{l=1}^{M-1}4^{-l} \;<\; \frac43\,n+\frac13 .
# \tag{6.10}
# $$
#
# However many levels we add, the cost stays below $\frac43n+\frac13$, while the view doubles with each. Since the coarse levels are so cheap, one can afford more channels there. Doubling them multiplies (6.8) by four: then each level costs as much as the first.

# %%
n = 2
for M in (1, 2, 3, 4):
    layers = [ones(3) for _ in range(n)]
    for _ in range(M - 1):
        layers += [ones(3, stride=2), *(ones(3) for _ in range(n))]
    claim("6.10", 1 + 2 * n * (2**M - 1) + 2 * (2 ** (M - 1) - 1), seen_by_autograd(layers),
          note=f"levels: {M}; what is seen")
    one = count_flops(ones(3), torch.zeros(1, 1, 64, 64))
    cost = count_flops(nn.Sequential(*layers), torch.zeros(1, 1, 64, 64)) / one
    claim("6.10", n * sum(4.0**-k for k in range(M)) + sum(4.0**-k for k in range(1, M)), cost,
          note="what is paid")
    fact(f"    pixels seen by {n} layers a level, and cost", [receptive_width(layers), cost])
fact("layers that would be needed at one resolution", (receptive_width(layers) - 1) // 2)

# %% [markdown]
# > **Pitfall: "same" padding is not the same everywhere.** A $3\times3$ convolution with stride 2 on an even size must pad one row and one column to halve the size exactly, (6.6). On which side? PyTorch's `padding=1` pads both sides, but then the pad at the end is never used, so in effect the *start* is padded. TensorFlow's `"SAME"`, with which DDPM
# > was written, pads the *end*. The two see windows that lie one pixel apart:
# >
# > $$
# > y^{\text{end}}_i = b+\sum_{\delta=0}^{2}\kappa_\delta\,x_{2i+\delta} ,
# > \qquad
# > y^{\text{start}}_i = b+\sum_{\delta=0}^{2}\kappa_\delta\,x_{2i+\delta-1} .
# > \tag{6.11}
# > $$
# >
# > Trained from scratch, both work. Weights trained with one and run with the other load without a complaint and compute something else: every feature map is shifted by one pixel at each downsampling.

# %%
layer = nn.Conv2d(1, 1, 3, stride=2, padding=0)
kappa, b = layer.weight[0, 0], layer.bias
x = torch.randn(1, 1, 16, 16, generator=g)
at_end = layer(F.pad(x, (0, 1, 0, 1)))                       # left, right, top, bottom
at_start = F.conv2d(x, layer.weight, b, stride=2, padding=1)
i = 3
claim("6.11", b + (kappa * x[0, 0, 2 * i : 2 * i + 3, 2 * i : 2 * i + 3]).sum(), at_end[0, 0, i, i])
claim("6.11", b + (kappa * x[0, 0, 2 * i - 1 : 2 * i + 2, 2 * i - 1 : 2 * i + 2]).sum(),
      at_start[0, 0, i, i])
claim("6.6", (16 + 0 + 1 - 3) // 2 + 1, at_end.shape[2], note="p = 0, p' = 1")
claim("6.11", layer(F.pad(x, (0, 1, 0, 1)))[..., 1:-1, 1:-1],
      F.conv2d(x.roll((-1, -1), (2, 3)), layer.weight, b, stride=2, padding=1)[..., 1:-1, 1:-1],
      note="one is the other of a shifted image")
fact("largest difference between the two, over their standard deviation",
     (at_end - at_start).abs().max() / at_end.std(), digits=2)

# %% [markdown]
# ## 6.3 Down, across, up
#
# The output must be an image again, as sharp as the input. So the network first goes *down*, halving the resolution level by level (the **encoder**), and then comes back *up* (the **decoder**). To go up, each pixel is repeated four times, and a convolution smooths the steps. Drawn with the resolution as depth, the path has the shape of a U. (Repeating makes $2\times2$ equal pixels, so a $3\times3$ window holds only $2\times2$ different ones: the library does both steps in one, with 16 products for each incoming pixel instead of 36. The cell below checks that it is the same map.)
#
# Here is the network of this book for the $8\times8$ digits: three levels of 32 channels, one residual block a level on the way down, two on the way up. We send one image through it and note every shape. What a residual block and attention are, comes later; for now they are boxes that keep height and width.

# %%
PARTS = (WideResidualBlock, SelfAttention, Downsample, Upsample)


def trace(network, x, t):
    """(name, shape before, shape after) of every part, in the order in which the data flow."""
    found, hooks = [], []

    def note(name):
        return lambda _, before, after: found.append((name, before[0].shape[1:], after.shape[1:]))

    for name, part in network.named_modules():
        if isinstance(part, PARTS) or name in ("conv_in", "conv_out"):
            hooks.append(part.register_forward_hook(note(name)))
    with torch.no_grad():
        network(x, t)
    for hook in hooks:
        hook.remove()
    return found


config = PRESETS["digits"]
network = UNet(config, torch.Generator().manual_seed(0))
up, x = Upsample(32, config), torch.randn(1, 32, 4, 4, generator=g)
slow = F.conv2d(F.interpolate(x, scale_factor=2.0), up.conv.weight, up.conv.bias, padding=1)
assert torch.allclose(up(x), slow)
fact("operations of an upsampling, over those in two steps",
     count_flops(up, x) / count_flops(up.conv, slow))

flow = trace(network, images[:1], 500)
attends = {name.replace("attentions", "blocks") for name, *_ in flow if "attentions" in name}
stack, crossings = [], []                                    # what is pushed, and (push, pop) pairs
for place, (name, before, after) in enumerate(flow):
    if name.startswith("up") and "blocks" in name:
        crossings.append((stack.pop(), place))
    if name == "conv_in" or (name.startswith("down") and name not in attends):
        stack.append(place)
    shapes = ("×".join(map(str, shape)) for shape in (before, after))
    print(f"{name:21} {next(shapes):>8} → {next(shapes):8} on the stack: {len(stack)}")

# %% [markdown]
# Read the last column. Every map that is made on the way down is *pushed* on a stack: that of `conv_in`, that of each block (after its attention, where there is one), and that of each `Downsample`, `resample` in the list. On the way up each block first *pops* the latest and **concatenates** it to what comes from below. That is why the blocks of `up` have more channels coming in than going out. At the end the stack is empty. These
# are the **skip connections** of the U-Net. In the library the way down, across and up is
#
# ```python
# time = self.time_embedding(t, y)                         # the clock, section 6.6; y is None here
#
# h = self.conv_in(x)
# skips = [h]
# for level in self.down:
#     for block, attention in level.steps():
#         h = attention(block(h, time))
#         skips.append(h)                                  # push
#     if level is not self.down[-1]:
#         h = level.resample(h)
#         skips.append(h)
#
# h = self.middle2(self.middle_attention(self.middle1(h, time)), time)
#
# for level in self.up:
#     for block, attention in level.steps():
#         h = torch.cat([h, skips.pop()], dim=1)           # pop
#         h = attention(block(h, time))
#     h = level.resample(h)                                # nothing to do at the last level
#
# return self.conv_out(F.silu(self.norm_out(h)))
# ```

# %% tags=["hide-input"]
fig, ax = figure(row_height=3.4)
colour = {"down": BLUE, "midd": PURPLE, "up.0": ORANGE, "up.1": ORANGE, "up.2": ORANGE}
for place, (name, _, after) in enumerate(flow):
    side = after[1]
    ax.bar(place, side, width=0.8, bottom=-side / 2, color=colour.get(name[:4], GREY))
    ax.text(place, side / 2 + 0.15, f"{after[0]}", ha="center", fontsize=8)
    ax.text(place, -6.3, name.replace("attentions.", "att. ").replace("blocks.", "block "),
            rotation=60, ha="right", va="top", rotation_mode="anchor", fontsize=8)
for start, end in crossings:
    y = -flow[start][2][1] / 2
    ax.annotate("", (end, y), (start, y), arrowprops={"arrowstyle": "->", "color": GREY, "lw": 1,
                "connectionstyle": "arc3,rad=0.12"})
ax.set(xticks=[], yticks=[], xlim=(-2.2, len(flow)), ylim=(-10.4, 5.2))
for side, height in ((8, 3.2), (4, 1.2), (2, 0.2)):
    ax.text(-0.7, height, f"{side} × {side}", ha="right", fontsize=9)
for side in ("left", "bottom"):
    ax.spines[side].set_visible(False)
show(fig, """The parts of the network from left to right, each a bar as high as its map: 8 pixels,
then 4, then 2 on the way down, 2 in the middle, then 2, 4 and 8 on the way up. Above each bar the
number of channels, 32, and 1 at the end. Curved arrows join each map on the way down with the
block on the way up that takes it: the last one pushed goes to the first one up.""")

# %% [markdown]
# *Which map goes where?* The coarsest ones only to the coarsest level, the finest only to the finest. The last pushed is the first popped, so resolutions always match.
#
# **Why concatenate?** A convolution over concatenated maps is a sum of two convolutions (the bias counted once), because (6.7) has a kernel of its own for every input channel:
#
# $$
# \operatorname{conv}_{[\kappa,\kappa']}\big([h;\,h']\big) \;=\; \operatorname{conv}_{\kappa}(h)+\operatorname{conv}_{\kappa'}(h') .
# \tag{6.12}
# $$
#
# Adding the maps, $h+h'$, would be the special case $\kappa=\kappa'$. Concatenation lets the network choose, for each channel, what to believe: the sharp but local map from the left, or the wise but coarse one from below. The price is in the channels:
#
# $$
# C_{\text{in}} \;=\; C_h+C_{h'} .
# \tag{6.13}
# $$

# %%
h, skipped = torch.randn(2, 2, 32, 8, 8, generator=g)
both = nn.Conv2d(64, 16, 3, padding=1)
halves = [F.conv2d(part, weight, padding=1)
          for part, weight in zip((h, skipped), both.weight.split(32, dim=1), strict=True)]
claim("6.12", halves[0] + halves[1] + both.bias[:, None, None],
      both(torch.cat([h, skipped], dim=1)))
for start, end in crossings[:2]:
    h_before = flow[end - 1][2][0]
    claim("6.13", h_before + flow[start][2][0], flow[end][1][0], note=f"into {flow[end][0]}")


# %% [markdown]
# **Exercise 6.3** (3 points, 15 minutes, ●●●) — *Follow the stack.* Write `up_channels(base, multipliers, blocks)` that returns the list of $C_{\text{in}}$ of all blocks on the way up, in the order in which the data meet them. The network is a U-Net with skip connections: `conv_in` makes `base` channels; level $l$ is `base * multipliers[l]` wide and has `blocks` blocks on the way down,
# and between two levels there is a downsampling, which keeps the width of the level that it leaves; the middle keeps the deepest level's width; on the way up each level has `blocks + 1` blocks, and the upsampling between two levels keeps the width of the level that it leaves. For `(32, [1, 1, 1], 1)` the answer is `[64, 64, 64, 64, 64, 64]`.

# %%
def up_channels(base, multipliers, blocks):
    """The number of channels that enter each block on the way up."""
    raise NotImplementedError("your turn")


check("6.3", up_channels)

# %% [markdown]
# **Why skip at all?** How much must pass through a denoiser? Once more the linear one can tell. Let $u=x_t-\sqrt{\bar\alpha_t}\,m$, with covariance $\Sigma_t=\bar\alpha_t\Sigma+(1-\bar\alpha_t)I$. The best affine guess of the noise is $\hat\varepsilon=\sqrt{1-\bar\alpha_t}\,\Sigma_t^{-1}u$, by (T.19), since $\operatorname{Cov}(\varepsilon,x_t)=\sqrt{1-\bar\alpha_t}\,I$.
# Now force it through a **bottleneck** of $\nu$ numbers: allow only matrices $A$ of rank $\nu$. Write $\zeta$ for what is guessed, $\varepsilon$ or $x_0$ (less its mean), and $B$ for the best matrix without the restriction. The error of the best guess is uncorrelated with $u$ (section T.5), so the cross term vanishes:
# $\mathbb E\lVert\zeta-Au\rVert^2=\mathbb E\lVert\zeta-Bu\rVert^2+\lVert(B-A)\Sigma_t^{1/2}\rVert_F^2$. ($\Sigma_t^{1/2}$ is the symmetric root, and $\lVert M\rVert_F^2$, the sum of the squares of all entries, is $\operatorname{tr}MM^\top$.) By the theorem of Eckart and Young, the second term is least if $A\Sigma_t^{1/2}$ keeps the $\nu$ largest singular values of $B\Sigma_t^{1/2}$; it is then the sum of the squares of the others. Put $A=0$: the first term is $\mathbb E\lVert\zeta\rVert^2$ less the sum of all squares. All matrices here have the eigenvectors of $\Sigma$, so with its eigenvalues $\lambda_i$ we can
# read the singular values off, and the error of a coordinate is
#
# $$
# \begin{aligned}
# \text{for }\varepsilon:&\quad 1-\frac1D\sum_{\text{largest }\nu}g_i , &
# g_i&=\frac{1-\bar\alpha_t}{\bar\alpha_t\lambda_i+1-\bar\alpha_t} ,\\
# \text{for }x_0:&\quad \frac1D\Big(\sum_i\lambda_i-\sum_{\text{largest }\nu}g'_i\Big) , &
# g'_i&=\frac{\bar\alpha_t\lambda_i^2}{\bar\alpha_t\lambda_i+1-\bar\alpha_t} .
# \end{aligned}
# \tag{6.14}
# $$

# %%
eigenvalues = torch.linalg.eigvalsh(Sigma)


def through_bottleneck(t, target):
    """Errors of (6.14) for ν = 0, 1, …, 64."""
    a = alpha_bar[t]
    kept = ((1 - a) if target == "eps" else a * eigenvalues**2) / (a * eigenvalues + 1 - a)
    kept = torch.cat([torch.zeros(1), kept.sort(descending=True).values.cumsum(0)])
    return (1 - kept / 64) if target == "eps" else (eigenvalues.sum() - kept) / 64


def by_matrices(t, target, nu):
    """The same error for one ν: best matrix, cut by a numerical SVD, put into E|ζ - Au|²/64."""
    a = alpha_bar[t]
    Sigma_t = a * Sigma + (1 - a) * identity
    cross = (1 - a).sqrt() * identity if target == "eps" else a.sqrt() * Sigma     # Cov(ζ, x_t)
    values, vectors = torch.linalg.eigh(Sigma_t)
    root = vectors @ values.sqrt().diag() @ vectors.T
    U, S, Vh = torch.linalg.svd(cross @ torch.linalg.inv(root))
    A = U[:, :nu] @ S[:nu].diag() @ Vh[:nu] @ torch.linalg.inv(root)
    own = identity if target == "eps" else Sigma
    return (own - 2 * A @ cross.T + A @ Sigma_t @ A.T).trace() / 64


for target in ("eps", "x0"):
    cases = [(t, nu) for t in (20, 400) for nu in (8, 40)]
    claim("6.14", torch.stack([through_bottleneck(t, target)[nu] for t, nu in cases]),
          torch.stack([by_matrices(t, target, nu) for t, nu in cases]), note=target)
assert torch.allclose(through_bottleneck(200, "x0")[-1], mse_linear(200))
for t in (50, 400):
    lost = {target: through_bottleneck(t, target) for target in ("eps", "x0")}
    need = [int((found - found[-1] < 0.05 * (found[0] - found[-1])).nonzero()[0])
            for found in lost.values()]
    fact(f"numbers needed for 95 % of what can be explained, t = {t}: of ε, of x_0", need)
fact("error of x_0 through 40 numbers over the best, t = 5",
     through_bottleneck(5, "x0")[40] / through_bottleneck(5, "x0")[-1], digits=2)

fig, (left, right) = figure(1, 2)
tones = (BLUE, GREEN, PURPLE, ORANGE, VERMILLION)
for t, tone in zip((20, 100, 200, 400, 800), tones, strict=True):
    left.plot(through_bottleneck(t, "eps"), color=tone, label=f"$t={t}$")
    right.plot(through_bottleneck(t, "x0") / (eigenvalues.sum() / 64), color=tone)
for ax, what in ((left, r"error of $\hat\varepsilon$"), (right, r"error of $\hat x_0$ / variance")):
    ax.set(xlabel=r"numbers $\nu$ that may pass", ylabel=what, ylim=(0, 1.02))
left.legend(fontsize=9)
show(fig, """Error of the best linear denoiser that passes ν of 64 numbers. Left, for the noise:
all curves begin on one straight line from 1 at ν = 0 towards 0 at ν = 64. At t = 800 they
stay on it to the end, at 400 almost; at t = 200 and 100 they bend away, to 0.2 and 0.4; at t = 20
already after thirteen numbers, to 0.73. Right, for x_0: at t = 800 a flat line near 1; at t = 400
the curve is flat, at 0.77, after about ten numbers; at t = 20 it goes on falling to about forty,
nearly to 0.""")


# %% [markdown]
# *How narrow may the network be?* To guess $x_0$ out of strong noise a few numbers suffice: there is not much to know. Out of weak noise it takes more, and no share of the variance will do: without a bottleneck the error goes to 0 with the noise, while a direction that does not pass costs nearly its whole $\lambda_i$. For the noise it is the other way round. Where it is strong, every number counts, and each that does not pass costs $1/64$: noise cannot be summarised. Where it is weak, only that part of it can be recognised that lies
# in directions in which digits hardly vary. So whichever of the two is guessed, no narrow bottleneck serves at every $t$. ((4.21) turns one guess into the other, but needs $x_t$ for it, and $x_t$ would have to come around the bottleneck: that is a skip connection.) The coarse levels of a U-Net are such a bottleneck, if not in numbers then
# in position. The middle of the CIFAR-10 network holds $256\times4\times4=4096$ numbers, more than the image's 3072. But a cell there stands for $8\times8$ pixels, and would have to spell out the noise of each of them in its channels. With skip connections it need not: the fine detail crosses at full resolution, and the coarse levels are free for the question where the strokes are. Section 6.10 measures what happens without.

# %% [markdown]
# ## 6.4 Another kind of shortcut: the residual connection
#
# The word *skip* is used for two things. The skip connections above cross from the encoder to the decoder, and concatenate. Inside each block there is another shortcut: the block adds its input to its output. If $f$ is what the layers of the block compute,
#
# $$
# y \;=\; x+f(x) ,
# \qquad
# \frac{\partial y}{\partial x} \;=\; I+\frac{\partial f}{\partial x} .
# \tag{6.15}
# $$
#
# This is a **residual connection**: the layers learn the *difference* from the identity. Its point is the $I$. Through $n$ blocks gradients are multiplied by $n$ Jacobians. Without the $I$ they are products of matrices that may all be small; with it, one term of the product is always the identity: unless the other terms cancel it, the gradient arrives. Where a block changes the number of channels, $x$ goes through
# a $1\times1$ convolution first. (The nonlinearity in the cell, $\operatorname{SiLU}(x)=x/(1+e^{-x})$, a smooth relative of $\max(x,0)$, is the one that DDPM's network has everywhere.)

# %%
def stack_of(depth, residual):
    """Gradient of a random output with respect to the input, through `depth` layers."""
    torch.manual_seed(3)
    x = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(4), requires_grad=True)
    h = x
    for _ in range(depth):
        layer = nn.Conv2d(16, 16, 3, padding=1)
        h = h + F.silu(layer(h)) if residual else F.silu(layer(h))
    (h * torch.randn(h.shape, generator=torch.Generator().manual_seed(5))).sum().backward()
    return x.grad.norm() / 32                                # of 1024 numbers: 1 for the identity


inner, x = nn.Conv2d(3, 3, 3, padding=1), torch.randn(1, 3, 4, 4, generator=g)
jacobian = torch.autograd.functional.jacobian
f_jacobian = jacobian(lambda x: F.silu(inner(x)), x).reshape(48, 48)
claim("6.15", torch.eye(48) + f_jacobian,
      jacobian(lambda x: x + F.silu(inner(x)), x).reshape(48, 48))
for depth in (2, 10, 30):
    fact(f"size of the gradient through {depth} layers: plain, residual",
         [stack_of(depth, False), stack_of(depth, True)], digits=2)

# %% [markdown]
# Thirty plain layers, as PyTorch initialises them, let nothing through. With residual connections it arrives. It even grows (to 12 through thirty layers), one more reason to start with a small $f$, as follows.
#
# DDPM goes one step further: the last convolution of each block starts with weights near zero (their variance is multiplied by $10^{-10}$). So at first, for $x$ with entries of size about 1, $f\approx0$, and every block that keeps the number of channels is the identity; so is attention. And since the last convolution of the network starts so as well, the first guess of the noise is nothing:
#
# $$
# \lVert \text{block}(x)-x\rVert \;\le\; 10^{-4}\,\lVert x\rVert , \qquad
# \hat\varepsilon_\theta\approx0 \quad\text{at the start} ,
# \tag{6.16}
# $$
#
# $$
# \mathbb E\,\tfrac1D\lVert\varepsilon-\hat\varepsilon_\theta\rVert^2 \;\approx\; \mathbb E\,\tfrac1D\lVert\varepsilon\rVert^2 \;=\; 1 .
# \tag{6.17}
# $$
#
# (The bound $10^{-4}$ is generous. It cannot hold for every $x$: behind a GroupNorm $f$ does not shrink with $x$.) That is a check worth keeping: *the first loss of an $\varepsilon$-network with this start is 1.* (The cell below averages 16,384 squares, and such a mean spreads by $\sqrt{2/16384}=0.011$. It prints the mean square of the drawn noise as well.) If yours is 0.3 or 2, the noise is not what you think it is.

# %%
x = torch.randn(2, 32, 8, 8, generator=g)
time = network.time_embedding(torch.tensor([3, 700]), None)
block, attention_part = network.down[0].blocks[0], network.down[1].attentions[0]
for name, y in (("residual block", block(x, time)), ("attention", attention_part(x))):
    claim("6.16", (y - x).norm(), 1e-4 * x.norm(), relation="<=", note=name)

many = torch.randn(1_000_000, generator=g)
claim("6.17", (many**2).mean(), 1.0, standard_error=2**0.5 / 1000, note="the noise alone")
x0 = images[torch.randint(len(images), (256,), generator=g)]
t = torch.randint(1, 1001, (len(x0),), generator=g)
eps = torch.randn(x0.shape, generator=g)
scale = alpha_bar[t][:, None, None, None]
with torch.no_grad():
    guess = network(scale.sqrt() * x0 + (1 - scale).sqrt() * eps, t)
claim("6.16", guess.norm(), 1e-4 * eps.norm(), relation="<=", note="the first guess")
fact("first loss on 256 images, and the mean square of their noise",
     [(guess - eps).square().mean(), eps.square().mean()])

# %% [markdown]
# > **Pitfall: two things called skip.** "The U-Net has residual connections between encoder and decoder": no. The *residual* connections are inside the blocks, add, and are as many as there are blocks. The *skip* connections cross the U, concatenate, and are as many as the stack had entries. DDPM has both, and they serve different ends: gradients here, detail there.

# %%
fact("blocks with a residual connection, attention included",
     sum(isinstance(part, (WideResidualBlock, SelfAttention)) for part in network.modules()))
fact("skip connections across the U", len(crossings))

# %% [markdown]
# ## 6.5 GroupNorm
#
# A deep network works best if the numbers in each layer keep a size of about 1. **GroupNorm** sees to it. It takes the $C$ channels of one image in $G$ groups of neighbours, and gives each group mean 0 and variance 1, over its $C/G$ channels *and* all pixels. Then every channel gets a scale and a shift of its own, which are learned. For the values $h_{c,p}$ of channels $c$ of a group $\mathcal G$ at pixels $p$, $n$ of them:
#
# $$
# \operatorname{GN}(h)_{c,p} \;=\; \gamma_c\,\frac{h_{c,p}-\mu}{\sqrt{V+\epsilon}}+\delta_c ,
# \qquad
# \mu=\frac1n\sum_{c\in\mathcal G,\,p}h_{c,p} ,\quad
# V=\frac1n\sum_{c\in\mathcal G,\,p}(h_{c,p}-\mu)^2 .
# \tag{6.18}
# $$
#
# ($\gamma$ and $\delta$ start at 1 and 0.) The small number $\epsilon$ keeps the root from zero. Check one group by hand:

# %%
norm = nn.GroupNorm(4, 12, eps=1e-6)                                   # 4 groups of 3 channels
nn.init.normal_(norm.weight, generator=g)
nn.init.normal_(norm.bias, generator=g)
h = 3 + 2 * torch.randn(5, 12, 6, 6, generator=g)
group = h[2, 6:9]                                                      # the third group of image 2
by_hand = (group - group.mean()) / ((group - group.mean()).square().mean() + 1e-6).sqrt()
gamma, delta = norm.weight[6:9, None, None], norm.bias[6:9, None, None]
claim("6.18", gamma * by_hand + delta, norm(h)[2, 6:9])

# %% [markdown]
# What does it *not* let through? If all of a group is stretched by $a>0$ and shifted by $b$, the deviations from the mean are stretched by $a$, and $b$ is gone:
#
# $$
# \operatorname{GN}_{\epsilon}(a\,h+b) \;=\; \operatorname{GN}_{\epsilon/a^2}(h) .
# \tag{6.19}
# $$
#
# (Divide numerator and root by $a$.) The size of $h$ matters only against $\epsilon$. Which $\epsilon$, then? With $\epsilon_2$ the output, before $\gamma$ and $\delta$ are applied, is that with $\epsilon_1$ times
#
# $$
# \sqrt{\frac{V+\epsilon_1}{V+\epsilon_2}} ,
# \tag{6.20}
# $$
#
# which is 1 as long as the variance $V$ is far above both.

# %%
for a, b in ((0.01, 5.0), (30.0, -2.0)):
    claim("6.19", F.group_norm(a * h + b, 4, eps=1e-6), F.group_norm(h, 4, eps=1e-6 / a**2),
          note=f"a = {a}")
for V in (1.0, 1e-3, 1e-5, 1e-8):
    flat = h - h.unflatten(1, (4, 3)).mean((2, 3, 4)).repeat_interleave(3, 1)[:, :, None, None]
    flat = flat / flat.unflatten(1, (4, 3)).square().mean((2, 3, 4)).sqrt().repeat_interleave(
        3, 1)[:, :, None, None] * V**0.5                               # every group: variance V
    ratio = F.group_norm(flat, 4, eps=1e-6) / F.group_norm(flat, 4, eps=1e-5)
    claim("6.20", ((V + 1e-5) / (V + 1e-6)) ** 0.5, ratio.mean(), note=f"V = {V:g}")
    fact("    factor between eps = 1e-5 and eps = 1e-6", ratio.mean(), digits=4)

# %% [markdown]
# > **Pitfall: the wrong $\epsilon$.** TensorFlow's group norm, with which DDPM was trained, has $\epsilon=10^{-6}$; PyTorch's default is $10^{-5}$. Weights load either way. For lively feature maps it makes no difference. Where a group is nearly constant, the factor grows to $\sqrt{10}$. So a port with the default looks right on most images and is off on flat ones.
#
# **Why not BatchNorm?** The older way to normalise takes mean and variance of a channel over all images of the batch,
#
# $$
# \begin{gathered}
# \operatorname{BN}(h)_{i,c,p} \;=\; \gamma_c\,\frac{h_{i,c,p}-\mu_c}{\sqrt{V_c+\epsilon}}+\delta_c ,\\
# \mu_c,\,V_c:\ \text{mean and variance over all images } i \text{ and pixels } p .
# \end{gathered}
# \tag{6.21}
# $$
#
# In a batch of training, each image $i$ has its own step $t_i$. So the statistics mix nearly clean images with pure noise, and the guess for one image depends on how noisy its neighbours in the batch happen to be. GroupNorm knows one image only; with respect to any other its derivative is zero:
#
# $$
# \frac{\partial\operatorname{GN}(h)_{i}}{\partial h_{i'}} \;=\; 0 \qquad (i'\ne i) .
# \tag{6.22}
# $$

# %%
batch_norm = nn.BatchNorm2d(12, eps=1e-5).train()
mean, variance = h.mean((0, 2, 3)), h.var((0, 2, 3), correction=0)
claim("6.21", (h - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt(), batch_norm(h))
small = h[:3, :, :2, :2].clone()


def leak(norm):
    """Derivatives of image 0's output with respect to image 1, (48, 48)."""
    return jacobian(norm, small)[0, :, :, :, 1].reshape(48, 48)


claim("6.22", leak(norm), 0.0, scale=1.0)
fact("the same for BatchNorm: largest derivative", leak(batch_norm).abs().max(), digits=2)

# %% [markdown]
# At sampling time there is a second trouble. All images of a batch then have the *same* $t$, so batch statistics would be others than in training; and the usual cure, averages collected during training (`eval` mode), are averages over all $t$, used at every $t$. Either way the network that samples is not the one that was trained. Here is one BatchNorm, trained as it would be on
# noised digits, the mean of whose pixels is $\sqrt{\bar\alpha_t}$ times the mean of all pixels of the clean ones:

# %%
first = nn.BatchNorm2d(1, momentum=0.02).train()
for _ in range(400):
    x0 = images[torch.randint(len(images), (64,), generator=g)]
    a = alpha_bar[torch.randint(1, 1001, (64,), generator=g)][:, None, None, None]
    first(a.sqrt() * x0 + (1 - a).sqrt() * torch.randn(x0.shape, generator=g))
fact("mean that it subtracts in eval mode", first.running_mean, digits=2)
fact("mean of x_t: averaged over t, at t = 1, at t = 1000",
     [m.mean() * alpha_bar[1:].sqrt().mean(), m.mean() * alpha_bar[1].sqrt(),
      m.mean() * alpha_bar[1000].sqrt()], digits=2)


# %% [markdown]
# **Exercise 6.4** (2 points, 10 minutes, ●●○) — *GroupNorm by hand.* Write `group_norm(x, groups, eps)` for `x` of shape $(B,C,H,W)$: (6.18) for all groups at once, with $\gamma=1$ and $\delta=0$.

# %%
def group_norm(x, groups, eps):
    """Each group of neighbouring channels of each image, with mean 0 and variance 1."""
    raise NotImplementedError("your turn")


check("6.4", group_norm)

# %% [markdown]
# ## 6.6 A clock with many hands
#
# The same network serves all $t$, so it must be told which. Why not feed it the number $t/T$? Between two neighbours it changes by a thousandth, and layers that are to react differently to $t=1$ and $t=2$ would need huge weights. A clock solves the same problem with hands of different speeds: the second hand tells neighbours apart, the hour hand says where in the day we are.
# DDPM takes its clock from the Transformer. With $\tfrac12\dim=n$ hands,
#
# $$
# \psi(t) \;=\; \big(\sin\omega_0t,\,\dots,\,\sin\omega_{n-1}t,\;\cos\omega_0t,\,\dots,\,\cos\omega_{n-1}t\big) ,
# \qquad
# \omega_i \;=\; 10000^{-i/(n-1)} .
# \tag{6.23}
# $$
#
# The fastest hand turns by one radian a step and comes round after $2\pi$ steps, the slowest after $2\pi\cdot10^4$: on a chain of a thousand steps it never comes round, so no two $t$ look alike. Two properties make this more than a trick. By $\cos(a-b)=\cos a\cos b+\sin a\sin b$, how similar two moments look depends on their distance only:
#
# $$
# \psi(t)\cdot\psi(t') \;=\; \sum_{i=0}^{n-1}\cos\big(\omega_i\,(t-t')\big) .
# \tag{6.24}
# $$
#
# And to move on by $\delta$ steps is, for each hand, a rotation by a fixed angle, whatever the time is. So "$\delta$ steps later" (or earlier: $-\delta$) is a linear map, which a layer can learn:
#
# $$
# \begin{pmatrix}\sin\omega_i(t+\delta)\\ \cos\omega_i(t+\delta)\end{pmatrix}
# =\begin{pmatrix}\cos\omega_i\delta&\sin\omega_i\delta\\ -\sin\omega_i\delta&\cos\omega_i\delta\end{pmatrix}
# \begin{pmatrix}\sin\omega_it\\ \cos\omega_it\end{pmatrix} .
# \tag{6.25}
# $$

# %%
dim, every_t = 32, torch.arange(1, 1001)
clock = timestep_embedding(every_t, dim, "sin-cos")                    # (1000, 32)
hands = dim // 2
omega = [10000 ** (-i / (hands - 1)) for i in range(hands)]
claim("6.23", [f(w_i * 345) for f in (math.sin, math.cos) for w_i in omega], clock[344],
      note="the clock at t = 345")
omega = torch.tensor(omega)
claim("6.24", (omega * (every_t[:, None, None] - every_t[:50, None])).cos().sum(2),
      clock @ clock[:50].T)
delta = 7
turn = torch.cat([torch.cat([(omega * delta).cos().diag(), (omega * delta).sin().diag()], 1),
                  torch.cat([-(omega * delta).sin().diag(), (omega * delta).cos().diag()], 1)])
claim("6.25", clock[:-delta] @ turn.T, clock[delta:], note="one matrix moves every t by 7")
apart_by = (clock[100] - clock[[101, 110, 200, 900]]).norm(dim=1)
fact("distance between the clock at t = 101 and at t = 102, 111, 201, 901", apart_by)

fig, (left, right) = figure(1, 2, width_ratios=(1.15, 1))
left.imshow(clock.T, aspect="auto", cmap="PuOr", extent=(1, 1000, dim, 0), interpolation="nearest")
left.set(xlabel="$t$", ylabel="component", title="sines above, cosines below")
for t, tone in ((100, BLUE), (500, GREEN), (900, VERMILLION)):
    right.plot(every_t, clock @ clock[t - 1] / hands, color=tone, lw=1.2, label=f"$t={t}$")
right.set(xlabel="$t'$", ylabel=r"$\psi(t)\cdot\psi(t')\,/\,n$", ylim=(-0.15, 1.35))
right.legend(fontsize=9, ncols=3, loc="upper center", handlelength=1, columnspacing=1)
show(fig, """Left: the 32 components of the clock for t = 1 to 1000 as a striped picture. The
topmost sines and cosines are striped so finely that they look like grain; further down the stripes
widen, and the lowest components of each half hardly change at all. Right: the similarity of
the clock at t = 100, 500 and 900 with every other time: three curves of the same shape, each with
a sharp peak of height 1 at its own t, and irregular lower values elsewhere, falling with the
distance.""")

# %% [markdown]
# *What does the clock tell?* On the left, that fast hands separate neighbours and slow hands separate early from late. On the right, that every $t$ has a sharp peak of its own, and of the same shape.
#
# > **Pitfall: two clocks.** DDPM's code puts the sines first and divides $i$ by $n-1$. OpenAI's code, and much that grew from it, puts the cosines first and divides by $n$. A second trap: DDPM's code counts $t$ from 0 to $T-1$, so where the book says $t$ its network sees $t-1$. Any of these can be trained with; none can be exchanged afterwards: shapes fit, outputs are wrong. In the library they are
# > settings, `time_embedding` and `t_offset`, that are stored with the weights.

# %%
moment = torch.tensor([500])
ours, theirs = (timestep_embedding(moment, 128, kind) for kind in ("sin-cos", "cos-sin"))
fact("length of the clock's vector", ours.norm())
fact("how far OpenAI's is from it: as it is, and with its halves exchanged",
     [(theirs - ours).norm(), (theirs.roll(64, 1) - ours).norm()])
fact("how far the clock of t - 1 is from that of t",
     (timestep_embedding(moment - 1, 128, "sin-cos") - ours).norm())

# %% [markdown]
# Now the network must use it. Two linear layers with a SiLU between and one after turn $\psi(t)$ into a vector $z_t$, the same for all blocks. Each block has a linear layer of its own, $A$ (with a bias), that makes of it one number for each channel, the same at all pixels. DDPM *adds* it between its two convolutions, before the second normalisation:
#
# $$
# h \;\leftarrow\; \operatorname{GN}\big(h+Az_t\big) .
# \tag{6.26}
# $$
#
# Improved DDPM lets it *scale and shift* after the normalisation; its $A$ makes two numbers for each channel:
#
# $$
# h \;\leftarrow\; (1+A_1z_t)\odot\operatorname{GN}(h)+A_2z_t .
# \tag{6.27}
# $$

# %%
h = torch.randn(4, 32, 8, 8, generator=g)                    # four images
time = network.time_embedding(torch.tensor([1, 10, 100, 1000]), None)      # z_t, (4, 128)
first_linear, second_linear = network.time_embedding.linear1, network.time_embedding.linear2
psi = timestep_embedding(torch.tensor([1, 10, 100, 1000]), 32, "sin-cos")
assert torch.allclose(time, F.silu(second_linear(F.silu(first_linear(psi)))))


def inside(conditioning):
    """A block, and what enters its dropout (caught by a hook)."""
    setting = replace(config, time_conditioning=conditioning, initialisation="torch")
    block, caught = UNet(setting, torch.Generator().manual_seed(5)).down[0].blocks[0], []
    block.dropout.register_forward_hook(lambda _, before, after: caught.append(before[0]))
    block(h, time)
    return block, caught[0]


block, caught = inside("add")
added = block.conv1(F.silu(block.norm1(h))) + block.time(time)[:, :, None, None]
claim("6.26", F.silu(block.norm2(added)), caught)
block, caught = inside("scale-shift")
grow, shift = block.time(time)[:, :, None, None].split(32, dim=1)          # A_1 z and A_2 z
claim("6.27", F.silu((1 + grow) * block.norm2(block.conv1(F.silu(block.norm1(h)))) + shift), caught)

# %% [markdown]
# **Exercise 6.5** (2 points, 10 minutes, ●●○) — *Your own clock.* In `my_ddpm.py`, write `timestep_embedding(t, dim)` that returns (6.23) for a tensor `t` of $B$ step numbers, as a tensor of shape $(B,\dim)$; `dim` is even and at least 6.

# %%
check("6.5", "my_ddpm.timestep_embedding")

# %% [markdown]
# **Exercise 6.6** (3 points, 15 minutes, ●●●) — *Explain.* A colleague builds the digits' network with additive conditioning, (6.26), and `norm_groups=32`, so that each of the 32 channels inside a block is a group by itself. It trains without an error and the loss falls. Then they notice that the output for an image is, up to rounding, the same at every $t$. In five to ten sentences: why is it so, and which equation says it? Why did the loss fall all the same? (What else tells the network how noisy $x_t$ is?) How could one have found out at once,
# and what are two cures?

# %%
your_explanation = ""

check("6.6", your_explanation)

# %% [markdown]
# ## 6.7 Two kinds of block
#
# **The wide-residual block.** All its parts are known by now. In the order of a *pre-activation* block (normalise, activate, convolve), with an inner width $C_*$ and a dropout between the convolutions:
#
# $$
# y \;=\; \operatorname{short}(x)+\operatorname{conv}_2\Big(\operatorname{drop}\big(\operatorname{SiLU}\big(\operatorname{GN}_2\big(\operatorname{conv}_1(\operatorname{SiLU}(\operatorname{GN}_1(x)))+Az_t\big)\big)\big)\Big) .
# \tag{6.28}
# $$
#
# Both convolutions are $3\times3$; $\operatorname{short}$ is the identity, or a $1\times1$ convolution if the widths $C$ and $C'$ differ. With $C_z$ for the length of $z_t$, (6.7) gives its parameters, part by part (the bracket $[\dots]$ is 1 if what it says is true, else 0):
#
# $$
# P_{\text{block}} \;=\; \underbrace{2C}_{\operatorname{GN}_1}+\underbrace{9CC_*+C_*}_{\operatorname{conv}_1}+\underbrace{C_zC_*+C_*}_{A}+\underbrace{2C_*}_{\operatorname{GN}_2}
# +\underbrace{9C_*C'+C'}_{\operatorname{conv}_2}+[C\ne C']\,\underbrace{(CC'+C')}_{\operatorname{short}} .
# \tag{6.29}
# $$
#
# $C_*$ is `width_factor` times $C'$; DDPM's block has the factor 1.

# %%
setting = replace(config, initialisation="torch", width_factor=2)
block = WideResidualBlock(32, 48, 8, setting)                # from 32 channels to 48, 96 inside
y = block.norm1(h)
y = block.conv1(y * torch.sigmoid(y)) + block.time(time)[:, :, None, None]
y = block.norm2(y)
y = F.conv2d(y * torch.sigmoid(y), block.conv2.weight, block.conv2.bias, padding=1)
claim("6.28", block.shortcut(h) + y, block(h, time), note="the digits' network drops nothing")


def block_parameters(C, C_out, C_inner, C_z):
    """(6.29)."""
    return (2 * C + 9 * C * C_inner + C_inner + C_z * C_inner + C_inner + 2 * C_inner
            + 9 * C_inner * C_out + C_out + (C * C_out + C_out) * (C_out != C))


for C, C_out, factor in ((32, 32, 1), (32, 48, 2), (64, 32, 3)):
    part = WideResidualBlock(C, C_out, 8, replace(config, width_factor=factor))
    claim("6.29", block_parameters(C, C_out, factor * C_out, 128), count_parameters(part),
          note=f"{C} → {factor * C_out} → {C_out}")

# %% [markdown]
# **Wide instead of deep.** The main cost is $9CC_*+9C_*C'$. Double all widths and take a quarter of the blocks: weights and operations stay the same, and the chain of layers that must wait for each other is four times shorter. Wide ResNets showed that for classification such a trade even gains accuracy, and it suits parallel hardware. They are *wider, and shallower in depth*; DDPM's network is of this
# kind, with two blocks a level. (One reads that they are "shallower in width", which is the one thing they are not.)

# %%
thin = nn.Sequential(*(nn.Conv2d(32, 32, 3, padding=1, bias=False) for _ in range(32)))
wide = nn.Sequential(*(nn.Conv2d(64, 64, 3, padding=1, bias=False) for _ in range(8)))
fact("weights of 32 thin layers, and of 8 layers twice as wide",
     [count_parameters(thin), count_parameters(wide)])
fact("operations on a map of 16 × 16",
     [count_flops(thin, torch.zeros(1, 32, 16, 16)), count_flops(wide, torch.zeros(1, 64, 16, 16))])

# %% [markdown]
# **Dropout** sets each number to zero with probability $p_{\text{d}}$ and divides the others by $1-p_{\text{d}}$, so that nothing changes on average. With $x$ kept with probability $1-p_{\text{d}}$ and stretched, the second moment is $(1-p_{\text{d}})\,x^2/(1-p_{\text{d}})^2$, hence
#
# $$
# \mathbb E[\operatorname{drop}(x)] \;=\; x ,
# \qquad
# \operatorname{Var}[\operatorname{drop}(x)] \;=\; \frac{p_{\text{d}}}{1-p_{\text{d}}}\,x^2 .
# \tag{6.30}
# $$
#
# > **Pitfall: sampling in training mode.** A network that is not told `eval()` goes on dropping. Then each step of the sampler gets extra noise that no schedule knows of, and two runs from the same seed of a generator differ, because dropout draws from PyTorch's global one.

# %%
torch.manual_seed(1)
dropped = F.dropout(torch.full((1_000_000,), 2.0), p=0.3)
claim("6.30", 2.0, dropped.mean(), standard_error=dropped.std() / 1000, note="mean")
squares = (dropped - 2.0).square()
claim("6.30", 0.3 / 0.7 * 2.0**2, squares.mean(), standard_error=squares.std() / 1000,
      note="variance")
forgetful = UNet(replace(config, dropout=0.2, initialisation="torch"), g)
for mode in (forgetful.train, forgetful.eval):
    mode()
    with torch.no_grad():
        first_call, second_call = forgetful(x0, 500), forgetful(x0, 500)
    print(f"{mode.__name__}: two calls agree: {torch.equal(first_call, second_call)}")
    if mode == forgetful.train:
        ratio = (first_call - second_call).std() / first_call.std()
        assert ratio / 2**0.5 > 1 / 3      # two masks differ by √2 of one's deviation: over a third

# %% [markdown]
# **The ConvNeXt block** came later, from the attempt to give convolutional networks what had made Transformers strong. It separates two jobs that a $3\times3$ convolution does at once. A *depthwise* convolution looks around, with one $7\times7$ kernel for each channel and no mixing of channels. Then $1\times1$ convolutions mix channels at each pixel: expand to $C_*$, usually $4C'$; a smooth activation, GELU; project back. One normalisation, one activation:
#
# $$
# y \;=\; \operatorname{short}(x)+\operatorname{project}\Big(\operatorname{drop}\big(\operatorname{GELU}\big(\operatorname{expand}\big(\operatorname{GN}(\operatorname{depthwise}(x)+Az_t)\big)\big)\big)\Big) .
# \tag{6.31}
# $$
#
# (The original normalises over the channels of each pixel. The library takes GroupNorm, so that the comparison below changes one thing at a time; and on maps with fewer than 4 pixels a side its kernel shrinks, because the outer taps would see only padding.) In the library the two blocks have one interface, and `block="convnext"` swaps one for the other.

# %%
block = ConvNeXtBlock(32, 48, 8, replace(config, width_factor=4, initialisation="torch"))
y = F.conv2d(h, block.depthwise.weight, block.depthwise.bias, padding=3, groups=32)
y = block.norm(y + block.time(time)[:, :, None, None])
y = torch.einsum("oc,bchw->bohw", block.expand.weight[:, :, 0, 0], y)      # a 1×1 convolution
y = y + block.expand.bias[:, None, None]
y = y * 0.5 * (1 + torch.erf(y / 2**0.5))                    # GELU: y times Φ(y)
claim("6.31", block.shortcut(h) + block.project(y), block(h, time))
fact("pixels that one output of the two blocks sees",
     [receptive_width([ones(3), ones(3)]), receptive_width([ones(7)])])


# %% [markdown]
# **Exercise 6.7** (2 points, 15 minutes, ●●○) — *Count a block.* Write `convnext_parameters(C, C_out, kernel, width_factor, time_channels)` that returns the number of parameters of (6.31), as (6.29) does for the other block. Every convolution and every linear layer has a bias, the GroupNorm a scale and a shift for each channel; the inner width is $C_*=$ `width_factor * C_out`; $A$ takes `time_channels` numbers to $C$; there is a
# shortcut convolution if the widths differ.

# %%
def convnext_parameters(C, C_out, kernel, width_factor, time_channels):
    """The number of parameters of a ConvNeXt block."""
    raise NotImplementedError("your turn")


check("6.7", convnext_parameters)

# %% [markdown]
# ## 6.8 Attention, where it is cheap
#
# A convolution looks at fixed places. **Attention** looks wherever the content suggests: every pixel asks a question, every pixel holds up an answer's label, and each takes an average of all answers, weighted by how well label and question match. Take the $N=HW$ pixels of a map as rows. Three linear layers make of each row a *query* $Q_i$, a *key* $K_j$ and a *value* $V_j$, vectors of length $d$. Then
#
# $$
# \operatorname{att}(Q,K,V)_i \;=\; \sum_{j=1}^{N}p_{ij}\,V_j ,
# \qquad
# p_{ij} \;=\; \frac{\exp\big(Q_i\cdot K_j/\sqrt d\big)}{\sum_{j'}\exp\big(Q_i\cdot K_{j'}/\sqrt d\big)} .
# \tag{6.32}
# $$
#
# For each $i$ the weights $p_{ij}$ are positive and sum to one over $j$. Around it, as in every block: a GroupNorm first, a linear layer last, and a residual connection.
#
# **Why $\sqrt d$?** If the entries of query and key are independent with mean 0 and variance 1, each product $Q_{ic}K_{jc}$ has mean 0 and variance 1 too, and the sum of $d$ of them has
#
# $$
# \operatorname{Var}\big[Q_i\cdot K_j\big] \;=\; d .
# \tag{6.33}
# $$
#
# Undivided, the scores would grow with $\sqrt d$, and the exponential would make one weight 1 and all others 0: no gradient, no average.

# %%
Q, K, values = torch.randn(3, 1, 1, 6, 16, generator=g)      # N = 6 pixels, d = 16
i = 2
scores = torch.stack([Q[0, 0, i] @ K[0, 0, j] / 16**0.5 for j in range(6)])
weights = scores.exp() / scores.exp().sum()
claim("6.32", sum(weights[j] * values[0, 0, j] for j in range(6)),
      F.scaled_dot_product_attention(Q, K, values)[0, 0, i])
part = UNet(replace(config, initialisation="torch"), g).middle_attention
rows = part.norm(h).flatten(2).transpose(1, 2)               # (4, 64, 32): images, pixels, channels
p = (part.query(rows) @ part.key(rows).transpose(1, 2) / 32**0.5).softmax(dim=2)
averaged = part.project(p @ part.value(rows)).transpose(1, 2).reshape(h.shape)
claim("6.32", h + averaged, part(h), note="the library's block, with its norm and its residual")

d = 16
dots = (torch.randn(1_000_000, d, generator=g) * torch.randn(1_000_000, d, generator=g)).sum(1)
squares = dots.square()
claim("6.33", d, squares.mean(), standard_error=squares.std() / 1000)
d = 256                                                      # 300 queries with 64 keys each
scores = (torch.randn(300, 1, d, generator=g) * torch.randn(300, 64, d, generator=g)).sum(2)
fact("mean of the largest of 64 weights: divided by √d, undivided",
     [(scores / d**0.5).softmax(1).amax(1).mean(), scores.softmax(1).amax(1).mean()], digits=2)

# %% [markdown]
# **It does not know where.** Shuffle the pixels by a permutation $\Pi$, and the outputs are shuffled in the same way, nothing else: (6.32) contains $i$ and $j$ only as names.
#
# $$
# \operatorname{att}(\Pi Q,\Pi K,\Pi V) \;=\; \Pi\operatorname{att}(Q,K,V) .
# \tag{6.34}
# $$
#
# What is where, the convolutions around it must have written into the channels. (They can, because zero padding makes the border special.)
#
# **What it costs.** Four linear layers on $N$ rows, $C$ to $C$, take $4\cdot2NC^2$ operations. The scores, $N^2$ products of length $C$ (all heads together), take $2N^2C$, and the weighted sums as much again:
#
# $$
# \text{FLOP}_{\text{att}} \;=\; 8\,NC^2+4\,N^2C .
# \tag{6.35}
# $$
#
# A $3\times3$ convolution takes $18NC^2$ on the same map. The two are equal where $4N^2C=10NC^2$, that is, at
#
# $$
# N \;=\; \tfrac52\,C .
# \tag{6.36}
# $$
#
# Below that attention is cheaper than *one* convolution. Above it grows with the fourth power of the side of the image, and so does its memory, $N^2$ weights a head.

# %%
shuffle = torch.randperm(6, generator=g)
claim("6.34", F.scaled_dot_product_attention(Q, K, values)[:, :, shuffle],
      F.scaled_dot_product_attention(Q[:, :, shuffle], K[:, :, shuffle], values[:, :, shuffle]))


C = 256
attention_part = SelfAttention(C, replace(config, initialisation="torch"))
layer = nn.Conv2d(C, C, 3, padding=1, bias=False)
sides = (4, 8, 16, 32)
counted = []
for side in sides:
    N, x = side**2, torch.zeros(1, C, side, side)
    counted.append((count_flops(attention_part, x), count_flops(layer, x)))
    claim("6.35", 8 * N * C**2 + 4 * N**2 * C, counted[-1][0], note=f"{side} × {side}")
N = 5 * C // 2
claim("6.36", 8 * N * C**2 + 4 * N**2 * C, count_flops(layer, torch.zeros(1, C, 1, N)),
      note="N = 640")
fact("side of the map at which they are equal, C = 128 and 256",
     [(2.5 * c) ** 0.5 for c in (128, 256)])
fact("cost over that of one 3 × 3 convolution, sides 4, 8, 16, 32", [a / b for a, b in counted])
fact("the same, side 32 and C = 128", (8 * 128 + 4 * 1024) / (18 * 128))


# %% tags=["nbval-ignore-output"]
def milliseconds(function, x, repeats=5):
    """The fastest of some calls."""
    best = float("inf")
    with torch.no_grad():
        for _ in range(repeats):
            start = stopwatch.perf_counter()
            function(x)
            best = min(best, stopwatch.perf_counter() - start)
    return 1000 * best


attention_part, layer = attention_part.float(), layer.float()
print("milliseconds on this machine, float32, C = 256")
for side in (4, 8, 16, 32, 64):
    x = torch.randn(1, C, side, side, dtype=torch.float32)
    print(f"{side:4} × {side:<4} attention {milliseconds(attention_part, x):8.2f}"
          f"   one convolution {milliseconds(layer, x):8.2f}")
thin, wide = thin.float(), wide.float()
print(f"32 thin layers {milliseconds(thin, torch.zeros(1, 32, 8, 8, dtype=torch.float32)):.2f}, "
      f"8 wide ones {milliseconds(wide, torch.zeros(1, 64, 8, 8, dtype=torch.float32)):.2f}")

# %% [markdown]
# So attention belongs to the coarse levels. DDPM's network for $32\times32$ images has it at $16\times16$, where by count it costs two thirds of a convolution, and in the middle, at $4\times4$, where it costs less than half of one. At $32\times32$, where the network has 128 channels, it would cost as much as 2.2 convolutions. Times depend on the machine (the cell above is yours), and small maps never reach its full speed.
#
# > **Pitfall: four silent ways to get attention wrong.** *Heads.* With several heads the channels are split, and each part has its own weights $p_{ij}$, with its own $\sqrt d$. The number of heads changes no shape, so weights of a one-head network load into a many-head one, and a default decides which you have. *The softmax over the wrong axis*: weights that sum to one over the queries. In a widely read implementation
# > ([issue 146](https://github.com/labmlai/annotated_deep_learning_paper_implementations/issues/146)) this was found by reading the code; whoever found it then trained both, and saw no difference in FID. Metrics do not find such bugs. *The norm that is built and never called*, found in the same file: its parameters sit in the checkpoint, and nothing uses them. *No residual*: see (6.15). The cell shows the first three, and the
# > cheapest test against the third: after one backward pass every parameter must have a gradient.

# %%
one_head = UNet(replace(config, initialisation="torch"), torch.Generator().manual_seed(6))
eight_heads = UNet(replace(config, initialisation="torch", attention_heads=8), g)
eight_heads.load_state_dict(one_head.state_dict())           # loads without a complaint
with torch.no_grad():
    fact("rms difference between 1 and 8 heads, over the output's deviation",
         (eight_heads(x0, 500) - one_head(x0, 500)).std() / one_head(x0, 500).std(), digits=2)

scores = Q[0, 0] @ K[0, 0].T / 4
fact("sums of the weights of the first three queries, softmax over the queries",
     scores.softmax(0).sum(1)[:3])


class ForgottenNorm(nn.Module):
    """Attention whose norm is built and never called."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.qkv = nn.Linear(channels, 3 * channels)

    def forward(self, x):
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).chunk(3, dim=2)
        return x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)


def without_gradient(module, *inputs):
    """The names of the parameters that a backward pass does not reach."""
    module.zero_grad()
    module(*inputs).square().mean().backward()
    return [name for name, parameter in module.named_parameters() if parameter.grad is None]


print("not reached:", without_gradient(ForgottenNorm(32), h))
print("not reached in the book's network:", without_gradient(network, x0[:2], 500))


# %% [markdown]
# **Exercise 6.8** (2 points, 10 minutes, ●●○) — *Attention by hand.* Write `attention(q, k, v)` for one head: `q` of shape $(N,d)$, `k` and `v` of shape $(N',d)$. Return (6.32) as a tensor of shape $(N,d)$, without PyTorch's ready-made attention.

# %%
def attention(q, k, v):
    """For each query the average of the values, weighted by its match with the keys."""
    raise NotImplementedError("your turn")


check("6.8", attention)


# %% [markdown]
# ## 6.9 The original, counted
#
# All parts are on the table; the network of the DDPM paper for CIFAR-10 is a matter of numbers. Base width 128, four levels $32\to4$ with 128, 256, 256, 256 channels, two blocks a level (three on the way up), attention at $16\times16$ and in the middle, GroupNorm with 32 groups, dropout 0.1. The paper says that it has 35.7 million parameters. Do we come to the same? Everything is in the trace: each part's
# channels in and out. Summing (6.29) over the blocks, $2C+4(C^2+C)$ over the attentions, (6.7) over the single convolutions, and adding the two layers that make $z_t$ (with $C_z=4C_0$ and $C_0$ the base width) and the last norm, behind a level that is $C_0$ channels wide,
#
# $$
# P \;=\; \sum_{\text{parts}}P_{\text{part}}+\underbrace{(C_0C_z+C_z)+(C_z^2+C_z)}_{z_t}+\underbrace{2C_0}_{\text{last norm}} .
# \tag{6.37}
# $$
#
# The operations go the same way, with (6.8) and (6.35).

# %%
def part_parameters(name, before, after, C_z):
    """(6.29) for a block, (6.7) for a convolution, and attention's norm and four layers."""
    C, C_out = before[0], after[0]
    if "attention" in name:
        return 2 * C + 4 * (C**2 + C)
    if "resample" in name or "conv" in name:
        return 9 * C * C_out + C_out
    return block_parameters(C, C_out, C_out, C_z)


def part_flops(name, before, after, C_z):
    """(6.8) for each convolution, (6.35) for attention; a linear layer is one on one pixel."""
    C, C_out, N = before[0], after[0], after[1] * after[2]
    if "attention" in name:
        return 8 * N * C**2 + 4 * N**2 * C
    if "resample" in name or "conv" in name:
        return (8 if name.startswith("up") else 18) * C * C_out * N
    return 18 * (C + C_out) * C_out * N + 2 * C_z * C_out + 2 * C * C_out * N * (C_out != C)


original = UNet(PRESETS["ddpm-cifar10"], torch.Generator().manual_seed(0)).float().eval()
picture = torch.zeros(1, 3, 32, 32, dtype=torch.float32)
flow_original = trace(original, picture, 500)
for name, net, parts, x in (("digits", network, flow, images[:1]),
                            ("ddpm-cifar10", original, flow_original, picture)):
    C_0, C_z = net.config.base_channels, net.config.time_channels
    clock_and_norm = (C_0 * C_z + C_z) + (C_z**2 + C_z) + 2 * C_0
    claim("6.37", sum(part_parameters(*part, C_z) for part in parts) + clock_and_norm,
          count_parameters(net), note=name)
    by_hand = sum(part_flops(*part, C_z) for part in parts) + 2 * (C_0 * C_z + C_z**2)
    claim("6.8", by_hand, count_flops(net, x, 500), note="operations of the whole network")
    fact("    parameters", count_parameters(net))
    fact("    billion operations for one image", by_hand / 1e9)

below, widths, entering = 0, [], []                          # (6.13) again, where widths differ
for name, before, after in flow_original:
    if name.startswith("up") and "blocks" in name:
        entering.append((below + widths.pop(), before[0]))
    elif name == "conv_in" or (name.startswith("down") and "attention" not in name):
        widths.append(after[0])
    below = after[0]
entering = torch.tensor(entering)
claim("6.13", entering[:, 0], entering[:, 1], note="the twelve blocks of the original's way up")

# %% [markdown]
# 35,746,307: the paper's 35.7 million; and formula and network agree to the last parameter. (That the layers also compute the same as the original's is another matter. The library's tests compare it with an independent implementation, number by number.)
#
# Where are they?

# %%
levels = {32: [0, 0], 16: [0, 0], 8: [0, 0], 4: [0, 0]}
for part in flow_original:
    side = min(part[1][1], part[2][1])
    levels[side][0] += part_parameters(*part, 512) / 1e6
    levels[side][1] += part_flops(*part, 512) / 1e9
for row, what in enumerate(("million parameters", "billion operations")):
    fact(f"{what} at 32, 16, 8, 4", [found[row] for found in levels.values()])
heads = sum(part_flops(*part, 512) for part in flow_original if "attention" in part[0])
fact("share of the operations that is attention, in per cent",
     100 * heads / sum(part_flops(*part, 512) for part in flow_original))

fig, (left, right) = figure(1, 2, sharey=True, row_height=2.2)
names = [f"{side} × {side}" for side in levels]
left.barh(names, [found[0] for found in levels.values()], color=BLUE)
right.barh(names, [found[1] for found in levels.values()], color=VERMILLION)
left.invert_yaxis()
left.set(xlabel="million parameters", ylabel="resolution")
right.set(xlabel="billion operations per image")
show(fig, """Two bar charts for the CIFAR-10 network by resolution. Parameters: 2.5 million at 32 by
32, about 10 million at each of 16 by 16 and 8 by 8, 13 million at 4 by 4. Operations: 4.5
billion at 32 by 32, 5.5 at 16 by 16, 1.2 at 8 by 8, 0.4 at 4 by 4.""")

# %% [markdown]
# *Where does a U-Net keep its knowledge, and where does it work?* Most parameters are at low resolution, where channels are many; most operations at high resolution, where pixels are many. That is (6.7) against (6.8), and the bargain of section 6.2.
#
# How far does it see? On the way down alone, by (6.9):

# %%
path, jumps = 1, 1
for name, *_ in flow_original:
    if name.startswith(("conv_in", "down")) and "attention" not in name:
        path += 2 * jumps * (2 if "blocks" in name else 1)   # a block has two convolutions
        jumps = jumps * 2 if "resample" in name else jumps
fact("receptive field at the end of the way down, in pixels", path)

# %% [markdown]
# Four times the side of the image. (GroupNorm and attention would be enough for that: through a mean over all pixels every pixel sees every other, if only dimly.)

# %% [markdown]
# ## 6.10 What each part is worth
#
# Arguments are good, measurements are better. We train four small networks (16 channels instead of 32) on the digits, each for 120 steps of 48 images with the loss of chapter 5, from the same seed, and compare their losses on held-out digits, all with the same noise:
#
# - the network as it is;
# - **without skips**: what is popped is replaced by zeros;
# - **without a clock**: $z_t$ is replaced by zeros, so that all $t$ look alike;
# - with **ConvNeXt** blocks, whose width is chosen so that the number of parameters agrees within two per cent.
#
# Chapter 7 explains the training loop. As a yardstick there is the linear denoiser (6.1), with the moments of the training digits.

# %%
small = replace(config, base_channels=16)
convnext = replace(small, block="convnext", width_factor=7)
for name, setting in (("wide-residual", small), ("ConvNeXt", convnext)):
    net = UNet(setting, torch.Generator().manual_seed(0))
    fact(f"{name}: parameters, million operations for one image",
         [count_parameters(net), count_flops(net, images[:1], 500) / 1e6])


def without_skips(net):
    """Each block on the way up finds zeros where the popped map was."""
    def cut(_, inputs):
        h, time = inputs
        return torch.cat([h[:, :16], torch.zeros_like(h[:, 16:])], dim=1), time

    for level in net.up:
        for block in level.blocks:
            block.register_forward_pre_hook(cut)


def without_clock(net):
    """Every block is told the same, whatever t is."""
    net.time_embedding.register_forward_hook(lambda _, inputs, output: torch.zeros_like(output))


def draw(x0, generator):
    """A batch to train or to test on: noised images, their t, and the noise; float32."""
    t = torch.randint(1, 1001, (len(x0),), generator=generator)
    eps = torch.randn(x0.shape, generator=generator)
    a = alpha_bar[t][:, None, None, None]
    return (a.sqrt() * x0 + (1 - a).sqrt() * eps).float(), t, eps.float()


def train(setting, change=None, steps=120):
    """A network after so many steps of AdamW on the simple loss."""
    generator = torch.Generator().manual_seed(0)
    net = UNet(setting, generator).float()
    if change is not None:
        change(net)
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.0)
    for step in range(steps):
        chosen = torch.randint(len(images), (48,), generator=generator)
        x_t, t, eps = draw(images[chosen], generator)
        optimiser.param_groups[0]["lr"] = 3e-3 * min(1.0, (step + 1) / 20)       # warm-up
        optimiser.zero_grad()
        (net(x_t, t) - eps).square().mean().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
    return net.eval()


trained, seconds = {}, {}
for name, setting, change in (("the network", small, None),
                              ("without skips", small, without_skips)):
    start = stopwatch.perf_counter()
    trained[name] = train(setting, change)
    seconds[name] = stopwatch.perf_counter() - start

# %%
for name, setting, change in (("without a clock", small, without_clock),
                              ("ConvNeXt blocks", convnext, None)):
    start = stopwatch.perf_counter()
    trained[name] = train(setting, change)
    seconds[name] = stopwatch.perf_counter() - start

# %% tags=["nbval-ignore-output"]
heldout = digits("heldout")[0].double().repeat(4, 1, 1, 1)                       # 4 · 355 images
x_t, t, eps = draw(heldout, torch.Generator().manual_seed(9))
a = alpha_bar[t][:, None]
centred = x_t.double().flatten(1) - a.sqrt() * m
linear = torch.stack([(1 - a_i).sqrt() * torch.linalg.solve(a_i * Sigma + (1 - a_i) * identity, x_i)
                      for a_i, x_i in zip(a, centred, strict=True)])
losses = {"linear denoiser": (linear - eps.flatten(1)).square().mean(1)}
for name, net in trained.items():
    with torch.no_grad():
        losses[name] = (net(x_t, t) - eps).square().mean((1, 2, 3)).double()
early = t <= 100
print(f"{'held-out loss':17}   all t       ±    t ≤ 100   t > 100   seconds")
for name, loss in losses.items():
    error = loss.std() / len(loss) ** 0.5
    print(f"{name:17} {loss.mean():7.3f} {error:7.3f}   {loss[early].mean():7.3f}   "
          f"{loss[~early].mean():7.3f}   {seconds.get(name, 0):7.1f}")
mean = {name: float(loss.mean()) for name, loss in losses.items()}
assert mean["without skips"] > 2 * mean["the network"]
assert mean["without a clock"] < 1.5 * mean["the network"]
assert mean["the network"] < 0.2 and mean["ConvNeXt blocks"] < 0.2
assert 0.7 < mean["ConvNeXt blocks"] / mean["the network"] < 1.4


# %% [markdown]
# What may be read out of such a short race, with one seed, is what differs by factors.
#
# - **Without skips the loss is more than twice as high** (the cell asserts it). (6.14) does not forbid better: the middle holds $16\times2\times2=64$ numbers, one for each pixel. But each of its four cells has to spell out the noise of sixteen pixels in its channels, and the way up has to put each back in its place. That takes long to learn; with skips it need not be learned.
# - **Without the clock it came out only a little higher here**; with one seed that is a hint, no more. The network can read the noise level off the image: sixty-four noisy pixels say a lot about a single number. So a network that ignores $t$, as in exercise 6.6, trains without a sign of distress.
# - **ConvNeXt and wide-residual blocks come out near each other**, at equal parameters. To say more would take several seeds and long training, and other data may decide otherwise. On a CPU depthwise convolutions may run far below the machine's speed: with as many parameters and as many operations the ConvNeXt network took, where this was written, up to twice as long in some runs and no longer in others, on a machine with other work to do (the last column is a single run). Time it alone before you believe either. Operations are not seconds.
# - **The linear denoiser is a strong opponent.** After 120 steps the networks are still on their way to where it stands. It needs $m$ and $\Sigma$, nothing else, and it will never get better. They will, in chapter 7.

# %% [markdown]
# ## 6.11 Where the trained network looks
#
# We began with the question where a denoiser looks. Now we can ask the network. Its guess of $x_0$ is $(x_t-\sqrt{1-\bar\alpha_t}\,\hat\varepsilon_\theta)/\sqrt{\bar\alpha_t}$, (4.21), and how it reacts to each pixel of $x_t$ is a derivative, which autograd gives: here its average over sixty-four held-out digits, above, and the Wiener filter's weights, below.

# %% tags=["nbval-ignore-output"]
def looks_at(net, t, count=64):
    """Derivative of the guess of the framed pixel with respect to x_t, averaged: (8, 8)."""
    a = alpha_bar[t]
    x0 = digits("heldout")[0][:count].double()
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2))
    x = (a.sqrt() * x0 + (1 - a).sqrt() * eps).float().requires_grad_()
    guess = (x - (1 - a).sqrt().float() * net(x, t)) / a.sqrt().float()
    (derivative,) = torch.autograd.grad(guess[:, 0, pixel[0], pixel[1]].sum(), x)
    return derivative.mean((0, 1)).double()


fig, axes = figure(2, 5, row_height=1.45)
likeness = []
others = torch.arange(64) != 8 * pixel[0] + pixel[1]          # all but the framed pixel
for column, t in zip(axes.T, steps, strict=True):
    maps = looks_at(trained["the network"], t), wiener(t)[8 * pixel[0] + pixel[1]].reshape(8, 8)
    likeness.append(torch.corrcoef(torch.stack([one.flatten()[others] for one in maps]))[0, 1])
    for ax, weights in zip(column, maps, strict=True):
        largest = weights.abs().max()
        ax.imshow(weights, cmap="PuOr_r", vmin=-largest, vmax=largest)
        ax.plot(pixel[1], pixel[0], "s", mfc="none", mec=GREEN, mew=1.5, ms=10)
        ax.set(xticks=[], yticks=[])
    column[0].set_title(f"$t={t}$", loc="center")
for ax, name in zip(axes[:, 0], ("network", "linear"), strict=True):
    ax.set_ylabel(name, rotation=0, ha="right", va="center")
print("correlation of the two, without the framed pixel:",
      " ".join(f"{one:.2f}" for one in likeness))
show(fig, """Two rows of five maps, for t = 5, 50, 150, 300 and 600, around the same framed pixel.
Above, the small trained network: at small t it looks at the pixel itself and its neighbours, at
larger t at more and more of the image. Below, the linear filter: the same progress, smoother.""")
assert likeness[1] > 0.5 and likeness[2] > 0.5

# %%
fact("√ᾱ_t at t = 600", alpha_bar[600].sqrt(), digits=2)

# %% [markdown]
# *Did it find out by itself?* Nobody told the network about covariances. That it looks at the pixel itself proves nothing: by (4.21) a network that answers 0 does that at every $t$. What it learned in 120 steps are the other sixty-three weights, and how they spread as the noise grows. (At $t=600$ its map is ragged: to get $x_0$ its output is divided by $\sqrt{\bar\alpha_t}=0.16$, and so is its error. It has more to learn.)

# %% [markdown]
# ## 6.12 What we have
#
# | equation | what it says | in `ddpm_lite` | elsewhere |
# |---|---|---|---|
# | (6.1), (6.2) | the best linear denoiser, and its error | | Wiener filter |
# | (6.3) | its error if it sees a window only | | |
# | (6.4), (6.5) | for a random walk it is a smoother; its reach grows like $1/\sqrt{\mathrm{SNR}}$ | | |
# | (6.6) to (6.9) | a convolution's output size, parameters, operations, receptive field | `count_parameters`, `count_flops` | |
# | (6.10) | depth in levels: view doubles, cost stays bounded | `UNetConfig.channel_multipliers` | U-Net |
# | (6.11) | two paddings | `Downsample`, `UNetConfig.downsample_padding` | TensorFlow's `SAME` |
# | (6.12), (6.13) | skip connections concatenate | `UNet.forward` | U-Net |
# | (6.14) | what passes through a bottleneck: no narrow one serves at every $t$ | | Eckart and Young |
# | (6.15), (6.16) | residual connections, blocks that start as the identity | `initialise` | ResNet; DDPM's code |
# | (6.17) | the first loss is 1 | | |
# | (6.18) | GroupNorm | `torch.nn.GroupNorm` | |
# | (6.19), (6.20) | it forgets scale and shift, up to $\epsilon$ | `UNetConfig.norm_eps` | |
# | (6.21), (6.22) | BatchNorm mixes the images of a batch, GroupNorm does not | | |
# | (6.23)–(6.25) | the clock | `timestep_embedding` | DDPM, section 4 |
# | (6.26), (6.27) | how time enters a block | `UNetConfig.time_conditioning` | DDPM; Improved DDPM |
# | (6.28), (6.29) | the wide-residual block | `WideResidualBlock` | DDPM, appendix B |
# | (6.30) | dropout keeps the mean and adds variance | `UNetConfig.dropout` | |
# | (6.31) | the ConvNeXt block | `ConvNeXtBlock` | ConvNeXt |
# | (6.32), (6.33) | attention, and why it divides by $\sqrt d$ | `SelfAttention` | Transformer |
# | (6.34) | it does not know where | | |
# | (6.35), (6.36) | its cost, and where that equals a convolution's | `count_flops` | |
# | (6.37) | 35,746,307 | `PRESETS["ddpm-cifar10"]` | DDPM, appendix B |
#
# We have a loss (chapter 5) and a network. Chapter 7 puts them together: it trains, and samples.

# %%
progress("6")

# %% [markdown]
# ## 6.13 History and further reading
#
# - Olaf Ronneberger, Philipp Fischer and Thomas Brox, *U-Net: convolutional networks for biomedical image segmentation* ([1505.04597](https://arxiv.org/abs/1505.04597), 2015): the contracting and the expanding path, and the maps handed across.
# - Kaiming He, Xiangyu Zhang, Shaoqing Ren and Jian Sun, *Deep residual learning for image recognition* ([1512.03385](https://arxiv.org/abs/1512.03385), 2015), and *Identity mappings in deep residual networks* ([1603.05027](https://arxiv.org/abs/1603.05027), 2016): residual connections, and the order normalise, activate, convolve.
# - Sergey Zagoruyko and Nikos Komodakis, *Wide residual networks* ([1605.07146](https://arxiv.org/abs/1605.07146), 2016): less depth, more width, and the dropout between the convolutions.
# - Tim Salimans, Andrej Karpathy, Xi Chen and Diederik Kingma, *PixelCNN++* ([1701.05517](https://arxiv.org/abs/1701.05517), 2017): the backbone that DDPM names as its model, a U-Net of wide residual blocks.
# - Yuxin Wu and Kaiming He, *Group normalization* ([1803.08494](https://arxiv.org/abs/1803.08494), 2018); Sergey Ioffe and Christian Szegedy, *Batch normalization* ([1502.03167](https://arxiv.org/abs/1502.03167), 2015).
# - Ashish Vaswani and others, *Attention is all you need* ([1706.03762](https://arxiv.org/abs/1706.03762), 2017): attention, and the sinusoids with their property (6.25).
# - Jonathan Ho, Ajay Jain and Pieter Abbeel, *Denoising diffusion probabilistic models* ([2006.11239](https://arxiv.org/abs/2006.11239), 2020): appendix B describes the network in one paragraph; what it leaves open is in the code.
# - Alex Nichol and Prafulla Dhariwal, *Improved denoising diffusion probabilistic models* ([2102.09672](https://arxiv.org/abs/2102.09672), 2021): scale and shift by the clock, (6.27).
# - Zhuang Liu and others, *A ConvNet for the 2020s* ([2201.03545](https://arxiv.org/abs/2201.03545), 2022): ConvNeXt.
# - Wenjie Luo, Yujia Li, Raquel Urtasun and Richard Zemel, *Understanding the effective receptive field in deep convolutional neural networks* ([1701.04128](https://arxiv.org/abs/1701.04128), 2016): most of a receptive field is looked at only faintly.
# - David Field, *Relations between the statistics of natural images and the response properties of cortical cells* (Journal of the Optical Society of America A, 1987), and Daniel Ruderman and William Bialek, *Statistics of natural images: scaling in the woods* (1993): the spectra of photographs.
# - Carl Eckart and Gale Young, *The approximation of one matrix by another of lower rank* (Psychometrika 1, 1936): the theorem behind (6.14).

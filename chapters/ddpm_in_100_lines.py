"""DDPM in 100 lines: learn from handwritten digits, then write new ones. Chapter 7 explains it.

`python ddpm_in_100_lines.py` trains for some two minutes and prints eight new digits.
Steps are numbered t = 0..T as on paper, t = 0 being clean data.
"""

import copy

import torch
from sklearn.datasets import load_digits
from torch import nn

T, STEPS, BATCH, RATE = 1000, 2500, 64, 1e-3
# The schedule: β_1..β_T, and a β_0 = 0 in front, so that table[t] belongs to step t
beta = torch.cat([torch.zeros(1), torch.linspace(1e-4, 0.02, T, dtype=torch.float64)])
alpha_bar = torch.cumprod(1 - beta, 0)
sigma = ((1 - alpha_bar / (1 - beta)) / (1 - alpha_bar) * beta).sqrt()  # √β̃_t


def at(table, t, x):  # table[t], one number for each image of the batch x
    return table.to(x)[t].view(-1, 1, 1, 1)


def q_sample(x0, t, noise):
    """x_t = √ᾱ_t·x_0 + √(1−ᾱ_t)·ε."""
    return at(alpha_bar.sqrt(), t, x0) * x0 + at((1 - alpha_bar).sqrt(), t, x0) * noise


def loss(network, x0, t, noise):
    """(ε − ε̂(x_t, t))², averaged over the pixels of each image."""
    return (noise - network(q_sample(x0, t, noise), t)).square().flatten(1).mean(1)


def reverse_step(eps, x, t, z):
    """x_{t−1} = (x_t − β_t/√(1−ᾱ_t)·ε̂)/√α_t + σ_t·z; σ_1 = 0."""
    mean = (x - at(beta / (1 - alpha_bar).sqrt(), t, x) * eps) / at((1 - beta).sqrt(), t, x)
    return mean + at(sigma, t, x) * z


class Block(nn.Module):
    """Normalise, SiLU, convolve, twice; the time joins in between, and the input at the end."""

    def __init__(self, ins, outs, clock):
        super().__init__()
        self.one = nn.Sequential(nn.GroupNorm(8, ins), nn.SiLU(), nn.Conv2d(ins, outs, 3, 1, 1))
        self.two = nn.Sequential(nn.GroupNorm(8, outs), nn.SiLU(), nn.Conv2d(outs, outs, 3, 1, 1))
        self.clock, self.skip = nn.Linear(clock, outs), nn.Conv2d(ins, outs, 1)

    def forward(self, x, clock):
        return self.skip(x) + self.two(self.one(x) + self.clock(clock)[:, :, None, None])


class Network(nn.Module):
    """ε̂(x_t, t): a U-Net with two resolutions, 8×8 and 4×4."""

    def __init__(self, width=32, size=128):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(64, size), nn.SiLU(), nn.Linear(size, size), nn.SiLU())
        self.first, self.last = nn.Conv2d(1, width, 3, 1, 1), nn.Conv2d(width, 1, 3, 1, 1)
        self.down, self.up = nn.Conv2d(width, 64, 2, 2), nn.ConvTranspose2d(64, width, 2, 2)
        self.fine, self.merge = Block(width, width, size), Block(2 * width, width, size)
        self.coarse = nn.ModuleList(Block(64, 64, size) for _ in range(3))

    def forward(self, x, t):
        angle = t[:, None] * (10_000.0 ** (-torch.arange(32) / 31)).to(x)
        clock = self.mlp(torch.cat([angle.sin(), angle.cos()], 1))
        fine = self.fine(self.first(x), clock)
        coarse = self.down(fine)
        for block in self.coarse:
            coarse = block(coarse, clock)
        return self.last(self.merge(torch.cat([self.up(coarse), fine], 1), clock))


def train(network, images, steps=STEPS):
    """Algorithm 1; returns a running average of the weights."""
    average, adam = copy.deepcopy(network), torch.optim.Adam(network.parameters(), RATE)
    for n in range(1, steps + 1):
        x0 = images[torch.randint(len(images), (BATCH,))]
        t, noise = torch.randint(1, T + 1, (BATCH,)), torch.randn_like(x0)
        adam.zero_grad()
        loss(network, x0, t, noise).mean().backward()
        adam.step()
        for mean, now in zip(average.parameters(), network.parameters(), strict=True):
            mean.data.lerp_(now.data, 1 - min(0.999, (1 + n) / (10 + n)))
    return average


@torch.no_grad()
def sample(network, x):
    """Algorithm 2: from x_T, pure noise, down to x_0."""
    for t in torch.arange(T, 0, -1)[:, None].expand(-1, len(x)):
        x = reverse_step(network(x, t), x, t, torch.randn_like(x))
    return x


if __name__ == "__main__":
    digits = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
    new = sample(train(Network(), digits), torch.randn(8, 1, 8, 8))
    for row in ((new[:, 0].clamp(-1, 1) + 1) * 4.49).long().transpose(0, 1):
        print("  ".join("".join(2 * " .:-=+*#@"[pixel] for pixel in digit) for digit in row))

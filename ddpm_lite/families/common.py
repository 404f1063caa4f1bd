"""What seven families of generative models share: one interface, one network, one training loop.

A family is a set of laws p_θ on points with D coordinates. To build one is to choose the set and
a first θ; `fit` looks for a good θ in it; `sample` draws from p_θ. Images are flattened by the
caller: x is (N, D), float, here and in every family.

Everything random comes from a `torch.Generator`, and everything lives on that generator's device.
Training takes a fixed number of steps, never a number of seconds: so one seed gives one model.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from ddpm_lite.oracle import GaussianMixture
from ddpm_lite.unet import initialise

Loss = Callable[[Tensor, torch.Generator], Tensor]  # of a batch (B, D); a scalar

NEAR = 3.0  # standard deviations from a mode's centre that still count as being at the mode
DUE = 0.25  # the part of its due share from which on a mode counts as covered


class Family(ABC):
    """A set of laws p_θ, with a way to choose θ from data and a way to draw from p_θ.

    name: "GAN", "VAE", …
    passes: what one sample costs in network calls: "one pass", "D passes", "a chain of S calls".
    likelihood: "exact" if there is `log_prob`, "bound" if there is `elbo`, or "none".
    default_learning_rate: what `fit` uses when it is given None.

    A subclass keeps its networks (`nn.Module`) as attributes of its own, sets them up in
    ``__init__(dimension, *, …, generator)`` with weights drawn from the generator, and defines
    `sample` and `loss`; or `fit` itself, if there is not one loss that goes down.
    """

    name: ClassVar[str]
    passes: ClassVar[str]
    likelihood: ClassVar[str]
    default_learning_rate: ClassVar[float]
    dimension: int

    def fit(
        self,
        data: Tensor,
        *,
        steps: int,
        batch_size: int,
        learning_rate: float | None = None,
        generator: torch.Generator,
    ) -> Self:
        """Take `steps` steps down the family's loss, in place, and return the model.

        Args:
            data: float (N, D).
            learning_rate: of Adam, falling to zero along a half cosine; None is the family's own,
                `default_learning_rate`.
            generator: draws the batches, and whatever noise the loss needs.

        Raises:
            ValueError: if data is empty, of another dimension or not finite, or a number is out of
                range.
        """
        minimise(
            self.loss,
            self.weights(),
            check_data(data, self.dimension).to(self.dtype),
            steps=steps,
            batch_size=batch_size,
            learning_rate=self._rate(learning_rate),
            generator=generator,
        )
        return self

    def loss(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """What `fit` makes small: the mean over a batch (B, D), a scalar."""
        raise NotImplementedError(f"{self.name} is not trained by one loss that goes down.")

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n points from p_θ, (n, D), in the dtype of the weights."""

    def log_prob(self, x: Tensor) -> Tensor:
        """log p_θ(x) in nats, (B,)."""
        raise NotImplementedError(f"{self.name} has no log p(x) that can be computed.")

    def elbo(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """An unbiased estimate of a lower bound on log p_θ(x) in nats, (B,)."""
        raise NotImplementedError(f"{self.name} has no bound on log p(x).")

    @property
    def parameters(self) -> int:
        """How many numbers are trained, in all the family's networks together."""
        return sum(weight.numel() for weight in self.weights() if weight.requires_grad)

    def weights(self) -> list[nn.Parameter]:
        """The parameters of all networks among the attributes, in the order of their setting."""
        return [weight for part in self._networks() for weight in part.parameters()]

    @property
    def dtype(self) -> torch.dtype:
        """float32, or float64 after `double`."""
        return self.weights()[0].dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are: where the generator was that drew them."""
        return self.weights()[0].device

    def double(self) -> Self:
        """Turn all weights to float64, in place: for checks to many digits."""
        for part in self._networks():
            part.double()
        return self

    def _networks(self) -> Iterator[nn.Module]:
        return (part for part in vars(self).values() if isinstance(part, nn.Module))

    def _points(self, x: Tensor) -> Tensor:
        """x, checked, with the dtype and device of the weights."""
        return check_data(x, self.dimension, "x").to(self.device, self.dtype)

    def _rate(self, learning_rate: float | None) -> float:
        return self.default_learning_rate if learning_rate is None else learning_rate


def mlp(
    sizes: Sequence[int],
    generator: torch.Generator,
    activation: Callable[[], nn.Module] = nn.SiLU,
) -> nn.Sequential:
    """Linear layers of the given sizes, (…, sizes[0]) to (…, sizes[-1]), a nonlinearity between.

    Weights and biases are uniform with variance 1/(3·fan_in), PyTorch's own rule, but drawn from
    the generator and on its device: the global generator is not touched.

    Raises:
        ValueError: if there are fewer than two sizes, or one is not a positive int.
    """
    if len(sizes) < 2:
        raise ValueError(f"a network needs at least an input and an output size, got {sizes!r}.")
    for size in sizes:
        check_count("a layer's size", size)
    with torch.device("meta"):  # no draws from the global generator
        layers = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), activation())]
        network = nn.Sequential(*layers[:-1])
    network.to_empty(device=generator.device)
    initialise(network, "torch", generator)
    return network


def minibatches(
    data: Tensor, steps: int, batch_size: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """`steps` batches of rows of data, (batch_size, D), each row drawn anew and with replacement.

    So a batch is what theory calls one: independent draws from the empirical distribution.
    """
    check_count("steps", steps)
    check_count("batch_size", batch_size)
    for _ in range(steps):
        rows = torch.randint(len(data), (batch_size,), generator=generator, device=generator.device)
        yield data[rows]


def minimise(
    loss: Loss,
    weights: Iterable[nn.Parameter],
    data: Tensor,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
) -> None:
    """Adam on loss(batch, generator), its learning rate falling to zero along a half cosine.

    Source: Adam is arXiv:1412.6980; its β_1, β_2 are PyTorch's, 0.9 and 0.999.
    Raises:
        ValueError: if steps, batch_size or learning_rate is not positive, or the loss becomes
            NaN or infinite.
    """
    check_rate(learning_rate)
    optimiser = torch.optim.Adam(list(weights), lr=learning_rate, fused=True)
    batches = minibatches(data.to(generator.device), steps, batch_size, generator)
    for step, batch in enumerate(batches):
        for group in optimiser.param_groups:
            group["lr"] = decayed(learning_rate, step, steps)
        value = loss(batch, generator)
        if not value.isfinite():
            raise ValueError(f"the loss became {value.item()} at training step {step}.")
        optimiser.zero_grad()
        value.backward()
        optimiser.step()


def decayed(learning_rate: float, step: int, steps: int) -> float:
    """The learning rate at 0 ≤ step < steps, on a half cosine from its full value to zero."""
    return learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))


def normal(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Draws from N(0, 1), on the generator's device; in float64, so that dtypes agree."""
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)
    return drawn.to(dtype)


# ---- how many modes -----------------------------------------------------------------------------


def mode_shares(samples: Tensor, mixture: GaussianMixture) -> Tensor:
    """The share of the samples at each mode of the mixture, float64 (K,); what is missing to 1
    lies at none.

    A sample is at mode k if component k is the nearest to it, and within 3 standard deviations:
    √((x − m_k)ᵀ C_k⁻¹ (x − m_k)) ≤ 3. Meant for components that lie apart.

    Raises:
        ValueError: if the samples are not a finite (N, D) with N ≥ 1.
    """
    samples = check_data(samples, mixture.dimension, "samples").to("cpu", torch.float64)
    away = samples[:, None] - mixture.means
    whitened = torch.linalg.solve(mixture.covariances, away[..., None])[..., 0]
    distance, nearest = (away * whitened).sum(-1).sqrt().min(dim=1)
    counts = torch.bincount(nearest[distance <= NEAR], minlength=len(mixture.weights))
    return counts.double() / len(samples)


def modes_covered(samples: Tensor, mixture: GaussianMixture) -> int:
    """How many modes of the mixture the samples (N, D) reach.

    A mode is covered if the samples' share at it (`mode_shares`) is at least a quarter of its due,
    w_k·P(χ²_D ≤ 9): of the share that samples of the mixture itself have there.

    Raises:
        ValueError: as `mode_shares`, and for so few samples that a covered mode's due is less than
            one sample.
    """
    shares = mode_shares(samples, mixture)
    within = torch.special.gammainc(
        torch.tensor(mixture.dimension / 2, dtype=torch.float64),
        torch.tensor(NEAR**2 / 2, dtype=torch.float64),
    )
    needed = DUE * mixture.weights * within
    if (needed * len(samples) < 1).any():
        raise ValueError(
            f"{len(samples)} samples are too few to tell whether a mode of weight "
            f"{mixture.weights.min().item():.3g} is covered: at least "
            f"{math.ceil(1 / needed.min().item())} are needed."
        )
    return int((shares >= needed).sum())


# ---- checks -------------------------------------------------------------------------------------


def check_data(data: Tensor, dimension: int, name: str = "data") -> Tensor:
    """data, if it is a tensor of finite floats (N, D) with N ≥ 1 and this D.

    Raises:
        TypeError: if it is no tensor of floats.
        ValueError: on another shape, no rows, a NaN or an infinity.
    """
    if not isinstance(data, Tensor) or not data.is_floating_point():
        what = str(data.dtype) if isinstance(data, Tensor) else type(data).__name__
        raise TypeError(f"{name} must be a tensor of floats, got {what}.")
    if data.ndim != 2 or data.shape[1] != dimension:
        raise ValueError(f"{name} must have shape (N, {dimension}), got {tuple(data.shape)}.")
    if len(data) == 0:
        raise ValueError(f"{name} must have at least one row, got none.")
    if not data.isfinite().all():
        row = int((~data.isfinite()).any(dim=1).nonzero()[0])
        found = data[row][~data[row].isfinite()][0].item()
        raise ValueError(f"{name} must be finite, got {found} in row {row}.")
    return data


def check_count(name: str, value: int) -> int:
    """value, if it is an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an int of at least 1, got {value!r}.")
    return value


def check_rate(learning_rate: float) -> float:
    """learning_rate, if it is a positive, finite number."""
    known = isinstance(learning_rate, int | float) and not isinstance(learning_rate, bool)
    if not known or not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate must be a positive number, got {learning_rate!r}.")
    return learning_rate

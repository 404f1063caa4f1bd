"""VQ-VAE: where its gradients go, and an exact likelihood of words and of points."""

import itertools
import math

import pytest
import torch
from torch import nn

from ddpm_lite.families.vq_prior import Prior
from ddpm_lite.families.vq_vae import VQVAE, perplexity, straight_through
from ddpm_lite.oracle import GaussianMixture

DRAWS = 20_000


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def points(n=40, seed=9):
    return torch.randn(n, 2, dtype=torch.float64, generator=seeded(seed))


@pytest.fixture
def model():
    """Untrained, with a decoder that tells the words apart and a prior that prefers some."""
    vqvae = VQVAE(2, width=8, positions=2, codes=4, code_size=3, generator=seeded(3)).double()
    with torch.no_grad():
        vqvae.encoder[-1].weight.mul_(6)
        vqvae.decoder[0].weight.mul_(4)
        vqvae.decoder[-1].weight.mul_(4)
        vqvae.prior.network[-1].weight.mul_(6)
    vqvae.variance = 0.3
    return vqvae


def words_of(positions, codes):
    return torch.tensor(list(itertools.product(range(codes), repeat=positions)))


# ---- quantisation -------------------------------------------------------------------------------


def test_straight_through_is_the_choice_forward_and_the_identity_backward():
    encoded = torch.randn(5, 2, 3, dtype=torch.float64, generator=seeded()).requires_grad_()
    chosen = torch.randn(5, 2, 3, dtype=torch.float64, generator=seeded(1)).requires_grad_()
    out = straight_through(encoded, chosen)
    assert torch.allclose(out, chosen, rtol=0, atol=1e-15)
    arriving = torch.randn(5, 2, 3, dtype=torch.float64, generator=seeded(2))
    to_encoded, to_chosen = torch.autograd.grad(out, (encoded, chosen), arriving, allow_unused=True)
    assert torch.equal(to_encoded, arriving)
    assert to_chosen is None


def test_a_letter_is_the_nearest_codebook_vector(model):
    with torch.no_grad():
        encoded = model.encode(points())
    assert encoded.shape == (40, 2, 3)
    words = model.words(points())
    for word, vectors in zip(words, encoded, strict=True):
        for letter, vector in zip(word, vectors, strict=True):
            distances = [(vector - e).norm().item() for e in model.codebook[0]]
            assert letter == distances.index(min(distances))
    assert len(words.unique()) > 1


def test_each_part_of_the_loss_moves_what_it_is_meant_to_move(model):
    """dL/dE is the decoder's gradient at the chosen vectors plus 2β(E − e)/n; dL/de is
    2(e − E)/n, summed over the places where the vector is chosen; and nothing else."""
    x, encoder = points(), model.encoder
    with torch.no_grad():
        start = encoder(x)
    outputs = nn.Parameter(start)  # as if the encoder's outputs were its weights
    model.encoder = _Constant(outputs)
    slopes = torch.autograd.grad(model.loss(x, seeded()), [outputs, *model.codebook])
    model.encoder = encoder

    encoded, words = start.unflatten(1, (2, 3)), model.words(x)
    chosen = model.codebook[0][words].detach().requires_grad_()
    error = (x - model.decoder(chosen.flatten(1))).square().mean()
    (arriving,) = torch.autograd.grad(error, chosen)
    n = encoded.numel()
    apart = encoded - chosen.detach()
    expected = arriving + 2 * model.commitment * apart / n
    assert (slopes[0] - expected.flatten(1)).abs().max() < 1e-14
    for k, slope in enumerate(slopes[1]):
        assert (slope + 2 * apart[words == k].sum(0) / n).abs().max() < 1e-14


class _Constant(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, x):
        return self.outputs


def test_the_loss_is_the_sum_of_three_squared_errors(model):
    x = points()
    with torch.no_grad():
        words, encoded = model.words(x), model.encode(x)
        distance = (encoded - model.codebook[0][words]).square().mean()
        expected = (x - model.decode(words)).square().mean() + 1.25 * distance
    assert model.loss(x, seeded()).item() == pytest.approx(expected.item(), abs=1e-13)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([[0, 0], [0, 0]], 1),
        ([[0, 1], [1, 0]], 2),
        ([[0, 1], [2, 3]], 4),
        ([[0, 0], [0, 1]], 4 / 3**0.75),  # exp(¾ log(4/3) + ¼ log 4)
    ],
)
def test_perplexity_counts_the_letters_in_use(words, expected):
    assert perplexity(torch.tensor(words), 5) == pytest.approx(expected, abs=1e-12)


def test_there_is_no_perplexity_of_nothing():
    with pytest.raises(ValueError, match="words is empty"):
        perplexity(torch.zeros(0, 2, dtype=torch.int64), 5)


# ---- the prior ----------------------------------------------------------------------------------


@pytest.fixture
def prior():
    prior = Prior(3, 4, 8, seeded(5)).double()
    with torch.no_grad():
        prior.network[-1].weight.mul_(8)
    return prior


def test_the_chances_of_all_words_sum_to_one(prior):
    words = words_of(3, 4)
    assert torch.equal(prior.every_word(), words)
    with torch.no_grad():
        chances = prior.log_prob(words).exp()
    assert chances.sum().item() == pytest.approx(1, abs=1e-12)
    assert chances.max() > 3 / 64  # it is not the uniform law


def test_a_letter_depends_on_those_before_it_only(prior):
    words = words_of(3, 4)
    with torch.no_grad():
        logits = prior(words).reshape(4, 4, 4, 3, 4)  # by letter 0, 1, 2; position; next letter
    assert torch.equal(logits[..., 0, :], logits[:1, :1, :1, 0].expand(4, 4, 4, 4))
    assert torch.equal(logits[..., 1, :], logits[:, :1, :1, 1].expand(4, 4, 4, 4))
    assert torch.equal(logits[..., 2, :], logits[:, :, :1, 2].expand(4, 4, 4, 4))
    assert not torch.equal(logits[0, 0, 0, 1], logits[1, 0, 0, 1])
    assert not torch.equal(logits[0, 0, 0, 2], logits[0, 1, 0, 2])
    assert not torch.equal(logits[0, 0, 0, 2], logits[1, 0, 0, 2])


def test_words_are_drawn_with_their_chances(prior):
    drawn = prior.sample(DRAWS, seeded(1))
    place = drawn @ torch.tensor([16, 4, 1])
    share = torch.bincount(place, minlength=64).double() / DRAWS
    with torch.no_grad():
        chance = prior.log_prob(words_of(3, 4)).exp()
    error = (chance * (1 - chance) / DRAWS).sqrt()
    assert ((share - chance).abs() < 5 * error + 1 / DRAWS).all()


# ---- the law of a point -------------------------------------------------------------------------


def as_mixture(model):
    """The same law as the oracle writes it."""
    words = words_of(2, 4)
    with torch.no_grad():
        weights, means = model.prior.log_prob(words).exp(), model.decode(words)
    ball = model.variance * torch.eye(2, dtype=torch.float64)
    return GaussianMixture(weights, means, ball.expand(16, 2, 2))


def test_the_likelihood_is_that_of_a_mixture_of_all_words(model):
    assert (model.log_prob(points()) - as_mixture(model).log_prob(points())).abs().max() < 1e-10


def test_the_density_integrates_to_one(model):
    side = torch.linspace(-9, 9, 61, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    total = model.log_prob(grid).exp().sum().item() * (18 / 60) ** 2
    assert total == pytest.approx(1, abs=1e-8)


def test_the_bound_is_one_term_of_the_sum(model):
    x = points()
    bound, log_p = model.elbo(x, seeded()), model.log_prob(x)
    assert (bound < log_p).all()
    law, words = as_mixture(model), model.words(x)
    for i, word in enumerate(words):
        k = int(word @ torch.tensor([4, 1]))
        square = (x[i] - law.means[k]).square().sum() / model.variance
        term = law.weights[k].log() - square / 2 - math.log(2 * math.pi * model.variance)
        assert bound[i].item() == pytest.approx(term.item(), abs=1e-10)


def test_samples_have_the_mean_and_covariance_of_the_mixture(model):
    law, x = as_mixture(model), model.sample(DRAWS, seeded(2))
    away = x - law.mean
    error = away.std(0) / math.sqrt(DRAWS)
    assert (away.mean(0).abs() < 5 * error).all()
    products = away[:, :, None] * away[:, None]
    error = products.std(0) / math.sqrt(DRAWS)
    assert ((products.mean(0) - law.covariance).abs() < 5 * error).all()


def test_without_its_noise_a_sample_is_a_decoded_word(model):
    means = as_mixture(model).means
    clean = model.sample_mean(50, seeded(2))
    assert (clean[:, None] - means).norm(dim=-1).amin(1).max() < 1e-12
    assert torch.equal(clean, model.sample_mean(50, seeded(2)))


def test_too_many_words_to_count_are_refused():
    model = VQVAE(2, width=4, positions=5, codes=10, generator=seeded())
    with pytest.raises(ValueError, match="10 letters at 5 positions make 100,000: use elbo"):
        model.log_prob(torch.zeros(1, 2))
    assert model.elbo(torch.zeros(1, 2), seeded()).shape == (1,)


# ---- training -----------------------------------------------------------------------------------


def test_training_sets_every_part():
    centres = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    data = centres.repeat(60, 1) + 0.1 * torch.randn(240, 2, generator=seeded())
    model = VQVAE(2, width=16, codes=4, generator=seeded(1))
    model.fit(data, steps=120, batch_size=60, learning_rate=0.01, generator=seeded(2))
    words = model.words(data)
    with torch.no_grad():
        error = (data - model.decode(words)).square().mean().item()
        cost = -model.prior.log_prob(words).mean().item()
    assert model.variance == pytest.approx(error, rel=1e-6)
    assert error < 0.1 * data.var().item()
    share = torch.unique(words, dim=0, return_counts=True)[1].double() / len(words)
    entropy = torch.special.entr(share).sum().item()
    assert entropy <= cost + 1e-6  # Gibbs: no prior spells the data in fewer nats
    assert cost < entropy + 0.3


def test_one_seed_one_model():
    data = points().float()
    twins = [
        VQVAE(2, width=8, codes=4, generator=seeded(1)).fit(
            data, steps=3, batch_size=16, generator=seeded(2)
        )
        for _ in range(2)
    ]
    samples = [model.sample(20, seeded(3)) for model in twins]
    assert torch.equal(*samples) and samples[0].dtype == torch.float32


def test_it_runs_on_images():
    data = torch.rand(30, 64, generator=seeded()) * 2 - 1
    model = VQVAE(64, width=16, positions=8, codes=16, code_size=4, generator=seeded(1))
    model.fit(data, steps=2, batch_size=8, generator=seeded(2))
    assert model.sample(3, seeded(3)).shape == (3, 64)
    assert model.elbo(data, seeded()).isfinite().all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"commitment": -0.1}, "commitment must be at least 0, got -0.1"),
        ({"positions": 0}, "positions must be an int of at least 1, got 0"),
        ({"codes": 0}, "codes must be an int of at least 1, got 0"),
        ({"code_size": True}, "code_size must be an int of at least 1, got True"),
    ],
)
def test_bad_settings_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        VQVAE(2, **changed, generator=seeded())

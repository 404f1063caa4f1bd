"""VAE: every bound against log p by quadrature, and the linear one against its closed form."""

import math

import numpy as np
import pytest
import torch

from ddpm_lite.families import vae as module
from ddpm_lite.families.vae import VAE, kl_to_standard, log_normal

GRID = torch.linspace(-9, 9, 1201, dtype=torch.float64)[:, None, None]  # of z, one coordinate
STEP = 18 / 1200
X = torch.tensor([[0.2, -0.3], [0.9, 0.1], [-0.5, 0.7]], dtype=torch.float64)
DRAWS = 20_000


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def model():
    """One latent coordinate, untrained, with a decoder that bends: nothing is Gaussian here."""
    vae = VAE(2, width=8, latent=1, variance=0.2, generator=seeded(3)).double()
    with torch.no_grad():
        for network in (vae.encoder, vae.decoder):
            network[0].weight.mul_(4)
            network[-1].weight.mul_(3)
        vae.encoder[-1].bias.copy_(torch.tensor([0.8, -1.2]))  # a divergence that can be seen
    return vae


@torch.no_grad()
def exact(vae, x=X):
    """log p(x), the ELBO and KL(q ‖ posterior) by the trapezoidal rule over z, (B,) each."""
    joint = vae.log_joint(x, GRID)  # (G, B)
    log_p = joint.logsumexp(0) + math.log(STEP)
    log_q = log_normal(GRID, *vae.encode(x))
    q = log_q.exp() * STEP
    assert (q.sum(0) - 1).abs().max() < 1e-10
    elbo = (q * (joint - log_q)).sum(0)
    gap = (q * (log_q - (joint - log_p))).sum(0)
    return log_p, elbo, gap


def mean_and_error(values):
    return values.mean(0), values.std(0) / math.sqrt(len(values))


# ---- closed forms -------------------------------------------------------------------------------


def test_the_divergence_from_the_prior_is_its_integral():
    mean, log_variance = torch.tensor([0.7]).double(), torch.tensor([-1.1]).double()
    z = GRID[:, 0]
    log_q, log_p = log_normal(z, mean, log_variance), log_normal(z, 0 * z, 0 * z)
    integral = ((log_q - log_p) * log_q.exp()).sum() * STEP
    closed = kl_to_standard(mean, log_variance)
    assert closed.item() == pytest.approx(integral.item(), abs=1e-12)
    two = kl_to_standard(torch.stack([mean, mean], -1), torch.stack([log_variance] * 2, -1))
    assert two.item() == pytest.approx(2 * closed.item(), abs=1e-12)
    assert kl_to_standard(torch.zeros(4, 2), torch.zeros(4, 2)).tolist() == [0] * 4


def test_the_normal_density_is_the_one_of_another_library():
    x, mean = torch.randn(2, 5, 3, dtype=torch.float64, generator=seeded())
    log_variance = torch.randn(3, dtype=torch.float64, generator=seeded(1))
    law = torch.distributions.Normal(mean, (log_variance / 2).exp())
    ours = log_normal(x, mean, log_variance)
    assert torch.allclose(ours, law.log_prob(x).sum(1), rtol=0, atol=1e-12)


# ---- the bounds ---------------------------------------------------------------------------------


def test_the_bound_misses_log_p_by_the_divergence_of_the_posterior(model):
    log_p, elbo, gap = exact(model)
    assert (log_p - gap - elbo).abs().max() < 1e-10
    assert gap.min() > 0.01  # else nothing is tested


def test_the_two_forms_of_the_bound_agree(model):
    """E_q log p(x | z) − KL(q ‖ prior), with the divergence in closed form, as the loss has it."""
    _, elbo, _ = exact(model)
    with torch.no_grad():
        mean, log_variance = model.encode(X)
        fit = log_normal(X, model.decoder(GRID), model.log_variance[0])
        first = (log_normal(GRID, mean, log_variance).exp() * fit).sum(0) * STEP
    divergence = kl_to_standard(mean, log_variance)
    assert (first - divergence - elbo).abs().max() < 1e-10
    assert divergence.min() > 0.2


def test_the_estimate_of_the_bound_is_unbiased(model):
    _, elbo, _ = exact(model)
    drawn = model.elbo(X.repeat(DRAWS, 1), seeded(1)).reshape(DRAWS, -1)
    mean, error = mean_and_error(drawn)
    assert ((mean - elbo).abs() < 5 * error).all()
    assert (error < 0.02 * elbo.abs()).all()


def test_the_loss_is_minus_the_bound(model):
    assert model.loss(X, seeded(5)).item() == pytest.approx(
        -model.elbo(X, seeded(5)).mean().item(), abs=1e-12
    )


@torch.no_grad()
def exact_of_two(vae):
    """E log ½(w_1 + w_2) over two independent draws from q, by quadrature in the plane."""
    log_q = log_normal(GRID, *vae.encode(X))
    weight, q = vae.log_joint(X, GRID) - log_q, log_q.exp() * STEP
    pairs = torch.logaddexp(weight[:, None], weight[None]) - math.log(2)
    return torch.einsum("ib,jb,ijb->b", q, q, pairs)


def test_more_draws_tighten_the_bound_and_never_pass_log_p(model):
    log_p, elbo, _ = exact(model)
    two = exact_of_two(model)
    assert (elbo + 0.001 < two).all() and (two + 0.001 < log_p).all()
    for k, bound in ((1, elbo), (2, two)):
        drawn = model.iwae(X.repeat(DRAWS, 1), k, seeded(k)).reshape(DRAWS, -1)
        mean, error = mean_and_error(drawn)
        assert ((mean - bound).abs() < 5 * error).all(), k
    many = model.iwae(X, DRAWS, seeded(7))
    assert (many - log_p).abs().max() < 0.05


# ---- sampling -----------------------------------------------------------------------------------


def test_samples_have_the_mean_and_covariance_of_the_marginal(model):
    with torch.no_grad():
        prior = log_normal(GRID, torch.zeros(1), torch.zeros(1)).exp() * STEP  # (G, 1)
        decoded = model.decoder(GRID)[:, 0]
        mean = (prior * decoded).sum(0)
        away = decoded - mean
        covariance = (prior * away).T @ away + model.variance * torch.eye(2)
    x = model.sample(DRAWS, seeded(4))
    assert x.shape == (DRAWS, 2)
    found, error = mean_and_error(x)
    assert ((found - mean).abs() < 5 * error).all()
    products = (x - mean)[:, :, None] * (x - mean)[:, None]
    found, error = mean_and_error(products)
    assert ((found - covariance).abs() < 5 * error).all()


def test_the_mean_of_a_sample_is_the_sample_without_its_noise(model):
    clean, noisy = model.sample_mean(DRAWS, seeded(4)), model.sample(DRAWS, seeded(4))
    variance, error = mean_and_error((noisy - clean).square())
    assert ((variance - model.variance).abs() < 5 * error).all()


# ---- the linear VAE is probabilistic PCA --------------------------------------------------------

DATA = torch.randn(300, 4, dtype=torch.float64, generator=seeded(8)) @ torch.tensor(
    [[1.5, 0.3, 0, 0], [0, 1.0, 0.4, 0], [0, 0, 0.4, 0.1], [0.2, 0, 0, 0.3]], dtype=torch.float64
) + torch.tensor([1.0, 0.0, -2.0, 0.5], dtype=torch.float64)


def principal(latent):
    """Mean, loadings W = U (Λ − ς²)^½ and ς² of the likeliest model: ς² is the mean of the
    eigenvalues that are left out."""
    mean = DATA.mean(0)
    values, vectors = torch.linalg.eigh((DATA - mean).T @ (DATA - mean) / len(DATA))
    variance = values[:-latent].mean()
    return mean, vectors[:, -latent:] * (values[-latent:] - variance).sqrt(), variance


def likelihood(mean, loadings, variance):
    covariance = loadings @ loadings.T + variance * torch.eye(4, dtype=torch.float64)
    return torch.distributions.MultivariateNormal(mean, covariance).log_prob(DATA)


@pytest.fixture
def linear():
    """The closed form, written into a linear VAE; its posteriors have a diagonal covariance."""
    mean, loadings, variance = principal(2)
    vae = VAE(4, latent=2, hidden=0, variance=variance.item(), generator=seeded()).double()
    squares = (loadings**2).sum(0) + variance  # WᵀW + ς² I, which is diagonal
    with torch.no_grad():
        vae.decoder[0].weight.copy_(loadings)
        vae.decoder[0].bias.copy_(mean)
        pull = loadings.T / squares[:, None]
        vae.encoder[0].weight.copy_(torch.cat([pull, torch.zeros(2, 4)]))
        vae.encoder[0].bias.copy_(torch.cat([-pull @ mean, (variance / squares).log()]))
        vae.log_variance[0].copy_(variance.log())  # in float32 it was rounded
    return vae


def test_with_the_exact_posterior_every_draw_gives_log_p(linear):
    log_p = likelihood(*principal(2))
    for k in (1, 3):
        assert (linear.iwae(DATA, k, seeded(k)) - log_p).abs().max() < 1e-10


def test_there_the_gradient_of_the_bound_vanishes(linear, monkeypatch):
    """The bound is quadratic in the noise, so four points with its two moments average exactly."""
    points = math.sqrt(2) * torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]).double()
    bounds = []
    for point in points:
        monkeypatch.setattr(module, "normal", lambda shape, *_, at=point: at.expand(shape))
        bounds.append(-linear.loss(DATA, seeded()))
    bound = torch.stack(bounds).mean()
    assert bound.item() == pytest.approx(likelihood(*principal(2)).mean().item(), abs=1e-10)
    for slope in torch.autograd.grad(bound, linear.weights()):
        assert slope.abs().max() < 1e-10


def test_training_finds_it():
    vae = VAE(4, latent=2, hidden=0, variance=0.5, generator=seeded(1)).double()
    vae.fit(DATA, steps=500, batch_size=300, learning_rate=0.05, generator=seeded(2))
    found, error = mean_and_error(vae.elbo(DATA.repeat(20, 1), seeded(3)))
    best = likelihood(*principal(2)).mean().item()
    assert best - 0.1 < found.item() < best + 5 * error.item()
    assert vae.variance == pytest.approx(principal(2)[2].item(), rel=0.15)


# ---- as a family --------------------------------------------------------------------------------


def test_one_seed_one_model():
    data = DATA.float()
    twins = [
        VAE(4, width=8, generator=seeded(1)).fit(data, steps=5, batch_size=32, generator=seeded(2))
        for _ in range(2)
    ]
    samples = [vae.sample(20, seeded(3)) for vae in twins]
    assert torch.equal(*samples) and samples[0].dtype == torch.float32
    assert twins[0].parameters == (4 * 8 + 8 + 72 + 8 * 4 + 4) + (2 * 8 + 8 + 72 + 8 * 4 + 4) + 1


def test_bounds_take_points_and_nothing_else(model):
    with pytest.raises(ValueError, match=r"x must have shape \(N, 2\), got \(3, 4\)"):
        model.elbo(torch.zeros(3, 4), seeded())
    with pytest.raises(ValueError, match="x must be finite, got nan in row 0"):
        model.iwae(torch.full((1, 2), np.nan), 2, seeded())
    with pytest.raises(ValueError, match="k must be an int of at least 1, got 0"):
        model.iwae(X, 0, seeded())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden": -1}, "hidden must be an int of at least 0, got -1"),
        ({"variance": 0.0}, "variance must be a positive number, got 0.0"),
        ({"latent": 0}, "latent must be an int of at least 1, got 0"),
        ({"width": 1.5}, "width must be an int of at least 1, got 1.5"),
    ],
)
def test_bad_settings_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        VAE(2, **changed, generator=seeded())

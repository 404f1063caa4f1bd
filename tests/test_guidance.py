"""guidance.py: the exact tilt by autograd, what it is not, and how the denoiser is called."""

import math

import pytest
import torch
from torch import nn

from ddpm_lite import GaussianDiffusion, NoiseSchedule, UNet, UNetConfig, generate, sample
from ddpm_lite.guidance import drop_labels, guided, scale_from_w, w_from_scale
from ddpm_lite.metrics import classifier
from ddpm_lite.oracle import GaussianData, GaussianMixture
from ddpm_lite.sampling import solve
from ddpm_lite.storage import shipped

SCHEDULE = NoiseSchedule.linear(24, 1e-3, 0.4)
T = SCHEDULE.T
DIFFUSION = GaussianDiffusion(SCHEDULE)
WEIGHTS = [0.2, 0.5, 0.3]
MEANS = [[-1.0, 0.5], [1.0, 0.0], [0.3, -1.2]]
COVARIANCES = [[[0.3, 0.1], [0.1, 0.2]], [[0.1, -0.05], [-0.05, 0.4]], [[0.5, 0.0], [0.0, 0.1]]]
MIXTURE = GaussianMixture(WEIGHTS, MEANS, COVARIANCES)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def points(n=12, seed=0):
    """(x, y): places to look at, and a class for each, none of them the null class."""
    x = 2 * torch.randn(n, 2, generator=seeded(seed), dtype=torch.float64)
    return x, torch.arange(n) % 3


def log_class(x, t, y):
    """log p_t(y | x) by Bayes, each component noised on its own."""
    joint = [
        math.log(w) + GaussianData(m, c).marginal(SCHEDULE, t).log_prob(x)
        for w, m, c in zip(WEIGHTS, MEANS, COVARIANCES, strict=True)
    ]
    joint = torch.stack(joint, dim=1)
    return joint.gather(1, y[:, None])[:, 0] - joint.logsumexp(1)


class Recorder:
    """A denoiser that keeps what it was asked: output x·(1 + y), with K classes and null K."""

    def __init__(self, num_classes=3):
        self.num_classes = num_classes
        self.asked = []

    def __call__(self, x, t, y=None):
        self.asked.append((x, t, y))
        return x * (1 + y).reshape(-1, *[1] * (x.ndim - 1))


# ---- the mathematics ----------------------------------------------------------------------------


@pytest.mark.parametrize("w", [-1.0, -0.3, 0.0, 0.5, 4.0])
def test_guided_eps_is_the_score_of_the_tilted_marginal(w):
    """ε = −√(1−ᾱ_t)·∇ log[p_t(x)·p_t(y | x)^(1+w)], for every t, by autograd."""
    denoiser = guided(MIXTURE.denoiser(SCHEDULE), w)
    for t in range(1, T + 1):
        x, y = points(seed=t)
        x.requires_grad_()
        tilted = MIXTURE.marginal(SCHEDULE, t).log_prob(x) + (1 + w) * log_class(x, t, y)
        (score,) = torch.autograd.grad(tilted.sum(), x)
        wanted = -SCHEDULE.one_minus_alpha_bar[t].sqrt() * score
        got = denoiser(x.detach(), torch.full((len(x),), t), y)
        assert torch.allclose(got, wanted, rtol=0, atol=1e-10), t


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_whatever_is_predicted_the_guided_answer_is_one(prediction):
    x, y = points()
    t = torch.arange(1, 13)
    answers = []
    for kind in ("eps", prediction):
        output = guided(MIXTURE.denoiser(SCHEDULE, kind), 2.5)(x, t, y)
        answers.append(GaussianDiffusion(SCHEDULE, kind).predict(output, x, t))
    assert torch.allclose(answers[0].x0, answers[1].x0, atol=1e-11)
    assert torch.allclose(answers[0].eps, answers[1].eps, atol=1e-11)


def noised_tilt_score(x, t, scale, data, schedule):
    """The score of the noised law p(x_0)·p(y = 1 | x_0)^scale, on a line, by quadrature."""
    grid = torch.linspace(-8, 8, 40001, dtype=torch.float64)
    log_p = data.log_prob(grid[:, None])
    share = data.responsibilities(schedule, grid[:, None], 0)[:, 1]
    signal, noise = schedule.alpha_bar[t].sqrt(), schedule.one_minus_alpha_bar[t]
    pull = (signal * grid - x) / noise
    return ((log_p + scale * share.log() - 0.5 * noise * pull**2).softmax(1) * pull).sum(1)


def test_it_is_not_the_noised_tilt_except_at_no_noise():
    """Noising and tilting do not commute: p_t(y | x) is not p(y | x_0) averaged under the tilt."""
    data = GaussianMixture([0.4, 0.6], [[-1.0], [1.0]], [[[0.3]], [[0.5]]])
    schedule = NoiseSchedule.from_alpha_bar([1, 1 - 1e-5, 1 - 1e-4, 1 - 1e-3, 1 - 1e-2, 0.9, 0.5])
    x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)[:, None]
    y = torch.ones(7, dtype=torch.int64)
    gaps = {}
    for w in (0.0, 2.0):
        denoiser = guided(data.denoiser(schedule), w)
        for t in range(1, 7):
            score = -denoiser(x, t, y)[:, 0] / schedule.one_minus_alpha_bar[t].sqrt()
            other = noised_tilt_score(x, t, 1 + w, data, schedule)
            gaps[w, t] = (score - other).abs().max().item()
    assert max(gaps[0.0, t] for t in range(1, 7)) < 1e-8  # without guidance they are one law
    assert gaps[2.0, 5] > 0.3 and gaps[2.0, 6] > 0.3
    assert gaps[2.0, 1] < 1e-3
    for t in (2, 3, 4):  # it vanishes with 1 − ᾱ_t, in proportion
        assert gaps[2.0, t] / gaps[2.0, t - 1] == pytest.approx(10, rel=0.3)


def test_the_two_ways_of_counting():
    """u + scale·(c − u) is what others write; here scale = 1 + w."""
    x, y = points()
    t = torch.full((12,), 9)
    exact = MIXTURE.denoiser(SCHEDULE)
    c, u = exact(x, t, y), exact(x, t)
    w = 1.7
    scale = scale_from_w(w)
    assert scale == 2.7
    assert w_from_scale(scale) == pytest.approx(w, abs=1e-15)
    assert scale_from_w(0.0) == 1.0 and w_from_scale(0.0) == -1.0
    got = guided(exact, w)(x, t, y)
    assert torch.allclose(got, u + scale * (c - u), atol=1e-13)
    assert torch.allclose(got, (1 + w) * c - w * u, atol=1e-13)
    assert torch.equal(guided(exact, 0)(x, t, y), c)
    assert torch.allclose(guided(exact, -1)(x, t, y), u, atol=1e-15)


def test_guidance_pushes_away_from_the_other_class():
    data = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [[[0.5]], [[0.5]]])
    settings = {"steps": T, "eta": 0.0, "dtype": torch.float64}
    means = []
    for w in (-1.0, 0.0, 1.0, 3.0):
        denoiser = guided(data.denoiser(SCHEDULE), w)
        y = torch.ones(200, dtype=torch.int64)
        x = generate(denoiser, DIFFUSION, (200, 1), generator=seeded(1), y=y, **settings)
        means.append(x.mean().item())
    assert means == sorted(means)
    assert means[2] > means[1] + 0.1 and means[3] > means[2] + 0.1


def test_the_null_class_stays_unguided():
    x, y = points()
    exact = MIXTURE.denoiser(SCHEDULE)
    y[::2] = 3
    got = guided(exact, 3.0)(x, 5, y)
    assert torch.allclose(got[::2], exact(x, 5)[::2], atol=1e-15)
    assert (got[1::2] - exact(x, 5, y)[1::2]).abs().max() > 0.1


# ---- one call -----------------------------------------------------------------------------------


@pytest.mark.parametrize("walk", ["sample", "ddim", "heun", "dpmpp-2m"])
def test_one_batched_call_a_step(walk):
    recorder = Recorder()
    y = torch.tensor([2, 0, 1, 1])
    settings = {"steps": 6, "spacing": "trailing", "generator": seeded(), "y": y}
    if walk == "sample":
        states = sample(guided(recorder, 0.5), DIFFUSION, (4, 1, 2, 2), eta=1.0, **settings)
    else:
        states = solve(guided(recorder, 0.5), DIFFUSION, (4, 1, 2, 2), solver=walk, **settings)
    states.result()
    assert len(recorder.asked) == states.calls == (11 if walk == "heun" else 6)
    for x, t, labels in recorder.asked:
        assert x.shape == (8, 1, 2, 2) and torch.equal(x[:4], x[4:])
        assert t.shape == (8,) and torch.equal(t[:4], t[4:])
        assert labels.tolist() == [2, 0, 1, 1, 3, 3, 3, 3]


def test_half_the_batch_where_nothing_is_extrapolated():
    x, y = points()
    for denoiser, t in (
        (guided(recorder := Recorder(), 0.0), 7),
        (guided(recorder, 2.0, interval=(3, 6)), 7),
        (guided(recorder, 2.0, interval=(3, 6)), torch.full((12,), 2)),
    ):
        assert torch.equal(denoiser(x, t, y), x * (1 + y[:, None]))
    assert [len(asked[0]) for asked in recorder.asked] == [12, 12, 12]


@pytest.mark.parametrize("as_tensor", [int, torch.tensor])
def test_the_interval_includes_its_ends(as_tensor):
    x, y = points()
    denoiser = guided(Recorder(), 2.0, interval=(3, 6))
    everywhere = guided(Recorder(), 2.0)
    for t in range(1, 9):
        aimed = torch.equal(denoiser(x, as_tensor(t), y), everywhere(x, t, y))
        assert aimed == (3 <= t <= 6), t


def test_the_interval_counts_row_by_row():
    x, y = points()
    t = torch.arange(1, 13)
    exact = MIXTURE.denoiser(SCHEDULE)
    got = guided(exact, 2.0, interval=(4, 7))(x, t, y)
    wanted = torch.where(
        ((t >= 4) & (t <= 7))[:, None], guided(exact, 2.0)(x, t, y), exact(x, t, y)
    )
    assert torch.allclose(got, wanted, atol=1e-15)


def test_the_interval_counts_original_steps():
    """In a respaced chain of 4 steps, those with the original numbers 12 and 18 are guided."""
    recorder = Recorder()
    denoiser = guided(recorder, 1.0, interval=(7, 18))
    short = GaussianDiffusion(SCHEDULE.respace(4, "trailing"))
    y = torch.zeros(5, dtype=torch.int64)
    sample(denoiser, short, (5, 2), steps=4, eta=0.0, generator=seeded(), y=y).result()
    asked = [(int(t[0]), len(x)) for x, t, _ in recorder.asked]
    assert asked == [(24, 5), (18, 10), (12, 10), (6, 5)]


# ---- learned variances, dtypes, modules ---------------------------------------------------------


def test_only_predictions_are_extrapolated():
    """The variance channels are those of the conditional denoiser, bit for bit."""

    def both(x, t, y=None):
        eps = MIXTURE.denoiser(SCHEDULE)(x, t, y)
        return torch.cat([eps, 0.1 * eps + y[:, None]], dim=1)

    x, y = points()
    got = guided(both, 2.0, num_classes=3)(x, 7, y)
    assert torch.equal(got[:, :2], guided(MIXTURE.denoiser(SCHEDULE), 2.0)(x, 7, y))
    assert torch.equal(got[:, 2:], both(x, 7, y)[:, 2:])
    learned = GaussianDiffusion(SCHEDULE, "eps", "learned")
    settings = {"steps": T, "eta": 1.0, "generator": seeded(), "y": y}
    x = generate(guided(both, 2.0, num_classes=3), learned, (12, 2), **settings)
    assert x.isfinite().all()


def test_half_precision_outputs_are_combined_in_single():
    def lower(x, t, y):
        return Recorder()(x, t, y).bfloat16()

    x, y = points()
    got = guided(lower, 2.0, num_classes=3)(x.float(), 7, y)
    c, u = (lower(x.float(), 7, k).float() for k in (y, torch.full_like(y, 3)))
    assert got.dtype == torch.float32
    assert torch.equal(got, u + 3.0 * (c - u))


def tiny_network(num_classes):
    config = UNetConfig(
        image_size=8,
        in_channels=1,
        out_channels=1,
        base_channels=8,
        channel_multipliers=(1,),
        blocks_per_level=1,
        attention_resolutions=(),
        attention_heads=1,
        dropout=0.5,
        block="wide-residual",
        width_factor=1,
        time_conditioning="add",
        num_classes=num_classes,
        norm_groups=4,
        norm_eps=1e-6,
        downsample_padding="asymmetric",
        time_embedding="sin-cos",
        t_offset=0,
        initialisation="torch",
    )
    return UNet(config, seeded())


def test_a_network_inside_is_found():
    """Its null class, its parameters, and its mode: no dropout while sampling, and back again."""
    network = tiny_network(num_classes=4).train()
    denoiser = guided(network, 1.0)
    assert denoiser.num_classes == 4
    assert {id(p) for p in denoiser.parameters()} == {id(p) for p in network.parameters()}
    settings = {"steps": T, "eta": 0.0, "y": torch.tensor([0, 3])}
    first, second = (
        generate(denoiser, DIFFUSION, (2, 1, 8, 8), generator=seeded(), **settings)
        for _ in range(2)
    )
    assert torch.equal(first, second)
    assert network.training and network.middle1.training
    network.eval()
    x = torch.randn(2, 1, 8, 8, generator=seeded(1))
    t, y = torch.tensor([3, 9]), torch.tensor([0, 3])
    with torch.no_grad():
        wanted = 2 * network(x, t, y) - network(x, t)
        assert torch.allclose(denoiser(x, t, y), wanted, atol=1e-5)
    with pytest.raises(ValueError, match="this network knows no classes: guidance needs one"):
        guided(tiny_network(num_classes=None), 1.0)


def test_gradients_pass_through():
    x, y = points()
    x.requires_grad_()
    guided(Recorder(), 1.0)(x, 3, y).sum().backward()
    assert torch.allclose(x.grad, (2 * (1 + y) - 4.0)[:, None].expand(12, 2).double())


# ---- rescaling ----------------------------------------------------------------------------------


def spread_of_v(output, x, t):
    return DIFFUSION.predict(output, x, t).v.flatten(1).std(1, correction=0)


def test_rescaling_gives_v_the_conditional_spread():
    means = torch.linspace(-1, 1, 6)  # not equal, since a shift of all moves no spread
    data = GaussianMixture(
        [0.5, 0.5], torch.stack([-means, means]), (0.1 * torch.eye(6)).repeat(2, 1, 1)
    )
    exact = data.denoiser(SCHEDULE)
    x = torch.randn(9, 6, generator=seeded(), dtype=torch.float64)
    t, y = torch.arange(4, 22, 2), torch.ones(9, dtype=torch.int64)
    plain = spread_of_v(exact(x, t, y), x, t)
    pushed = spread_of_v(guided(exact, 4.0)(x, t, y), x, t)
    assert (pushed / plain - 1).abs().max() > 0.05
    for share in (0.0, 0.7, 1.0):
        got = guided(exact, 4.0, rescale=share, diffusion=DIFFUSION)(x, t, y)
        wanted = (1 - share) * pushed + share * plain
        assert torch.allclose(spread_of_v(got, x, t), wanted, rtol=1e-9)
    one = torch.tensor(8)  # a step for all, as an int or as a tensor without a shape
    denoiser = guided(exact, 4.0, rescale=0.5, diffusion=DIFFUSION)
    assert torch.equal(denoiser(x, one, y), denoiser(x, 8, y))


def test_rescaling_does_not_depend_on_what_is_predicted():
    x, y = points()
    answers = []
    for kind in ("eps", "x0", "v"):
        d = GaussianDiffusion(SCHEDULE, kind)
        output = guided(MIXTURE.denoiser(SCHEDULE, kind), 3.0, rescale=0.6, diffusion=d)(x, 9, y)
        answers.append(d.predict(output, x, 9).x0)
    assert torch.allclose(answers[0], answers[1], atol=1e-11)
    assert torch.allclose(answers[0], answers[2], atol=1e-11)


def test_rescaling_leaves_a_variance_alone_and_a_single_number_too():
    def both(x, t, y=None):
        eps = MIXTURE.denoiser(SCHEDULE)(x, t, y)
        return torch.cat([eps, eps + 1], dim=1)

    x, y = points()
    d = GaussianDiffusion(SCHEDULE, "eps", "learned")
    got = guided(both, 2.0, num_classes=3, rescale=1.0, diffusion=d)(x, 7, y)
    exact = guided(MIXTURE.denoiser(SCHEDULE), 2.0, rescale=1.0, diffusion=DIFFUSION)
    assert torch.equal(got[:, :2], exact(x, 7, y))
    assert torch.equal(got[:, 2:], both(x, 7, y)[:, 2:])
    line = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [[[0.5]], [[0.5]]]).denoiser(SCHEDULE)
    x, y = x[:, :1], y % 2  # one coordinate has no spread
    alone = guided(line, 2.0, rescale=1.0, diffusion=DIFFUSION)(x, 7, y)
    assert torch.allclose(alone, guided(line, 2.0)(x, 7, y), atol=1e-12)


# ---- dropping labels ----------------------------------------------------------------------------


def test_labels_are_dropped_by_their_share():
    n, share = 20_000, 0.15
    y = torch.arange(n) % 10
    kept = y.clone()
    got = drop_labels(y, share, 10, seeded())
    assert torch.equal(y, kept)
    dropped = got == 10
    assert torch.equal(got[~dropped], y[~dropped])
    error = math.sqrt(share * (1 - share) / n)
    assert abs(dropped.double().mean().item() - share) < 5 * error
    for k in range(10):  # no class is spared
        assert abs(dropped[y == k].double().mean().item() - share) < 5 * error * math.sqrt(10)
    assert torch.equal(got, drop_labels(y, share, 10, seeded()))
    assert not torch.equal(got, drop_labels(y, share, 10, seeded(1)))


def test_no_share_and_the_whole_share():
    y = torch.tensor([0, 4, 2, 5])
    assert torch.equal(drop_labels(y, 0.0, 5, seeded()), y)
    assert drop_labels(y, 1, 5, seeded()).tolist() == [5, 5, 5, 5]
    g, other = seeded(3), seeded(3)
    drop_labels(y, 0.0, 5, g)
    torch.rand(4, generator=other)
    assert torch.equal(g.get_state(), other.get_state())


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"w": math.nan}, "w must be a finite number, got nan"),
        ({"w": math.inf}, "w must be a finite number, got inf"),
        ({"interval": (0, 5)}, "1 <= low <= high, got .0, 5."),
        ({"interval": (6, 5)}, "1 <= low <= high, got .6, 5."),
        ({"interval": (1.0, 5)}, "two step numbers"),
        ({"interval": (1, 2, 3)}, "two step numbers"),
        ({"rescale": 1.5, "diffusion": DIFFUSION}, r"rescale must lie in \[0, 1\], got 1.5"),
        ({"rescale": 0.5}, "rescale needs the diffusion too"),
        (
            {"rescale": 0.5, "diffusion": GaussianDiffusion(SCHEDULE.respace(4, "leading"))},
            "with its original schedule, not a respaced one",
        ),
        ({"num_classes": 0}, "num_classes must be an int of at least 1, got 0"),
        ({"num_classes": True}, "num_classes must be an int of at least 1, got True"),
        ({"denoiser": lambda x, t, y: x}, "must know the null class: give num_classes"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    settings = {"denoiser": Recorder(), "w": 1.0, **settings}
    with pytest.raises(ValueError, match=message):
        guided(settings.pop("denoiser"), settings.pop("w"), **settings)


def test_wrong_types_are_refused():
    with pytest.raises(TypeError, match="w must be a number, got '2'"):
        guided(Recorder(), "2")
    with pytest.raises(TypeError, match="w must be a number, got True"):
        guided(Recorder(), True)
    with pytest.raises(TypeError, match=r"rescale must be a number or None, got '0\.7'"):
        guided(Recorder(), 1.0, rescale="0.7", diffusion=DIFFUSION)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "guidance needs labels y"),
        (torch.zeros(12), r"int64 of shape \(12,\), one label for each sample, got torch.float32"),
        (torch.zeros(3, dtype=torch.int64), r"got torch.int64 of shape \(3,\)"),
    ],
)
def test_bad_labels_are_refused(y, message):
    x, _ = points()
    for w in (0.0, 1.0):
        with pytest.raises(ValueError, match=message):
            guided(Recorder(), w)(x, 3, y)


def test_an_output_of_another_shape_is_refused():
    x, y = points()
    for output in (lambda x, t, y: x[:, :1], lambda x, t, y: x.repeat(1, 3)):
        with pytest.raises(ValueError, match=r"must have the shape \(12, 2\) of x_t, or \(12, 4\)"):
            guided(output, 1.0, num_classes=3)(x, 3, y)


@pytest.mark.parametrize(
    ("y", "share", "classes", "message"),
    [
        ([0, 1], -0.1, 3, r"share of labels to drop must lie in \[0, 1\], got -0.1"),
        ([0, 1], math.nan, 3, r"must lie in \[0, 1\], got nan"),
        ([0, 1], True, 3, r"must lie in \[0, 1\], got True"),
        ([0, 1], 0.1, 0, "num_classes must be an int of at least 1, got 0"),
        ([0, 4], 0.1, 3, "a class in 0..2, or 3 for none, got 4"),
        ([0, -1], 0.1, 3, "a class in 0..2, or 3 for none, got -1"),
        ([[0, 1]], 0.1, 3, r"y must be int64 of shape \(B,\), got torch.int64 of shape \(1, 2\)"),
        ([0.0, 1.0], 0.1, 3, "y must be int64"),
    ],
)
def test_bad_labels_to_drop_are_refused(y, share, classes, message):
    with pytest.raises(ValueError, match=message):
        drop_labels(torch.tensor(y), share, classes, seeded())


def test_scales_must_be_numbers():
    with pytest.raises(ValueError, match="scale must be a finite number, got inf"):
        w_from_scale(math.inf)
    with pytest.raises(TypeError, match="w must be a number, got None"):
        scale_from_w(None)


def test_guided_is_a_module():
    assert isinstance(guided(Recorder(), 1.0), nn.Module)


# ---- the network that ships with the book --------------------------------------------------------


def test_the_shipped_network_draws_the_digits_that_are_asked_for():
    model = shipped("digits-conditional")
    y = torch.arange(100) % 10

    def share_right(w):
        drawn = generate(
            guided(model.network, w),
            model.diffusion,
            (100, 1, 8, 8),
            steps=20,
            spacing="trailing",
            eta=0.0,
            y=y,
            clip=(-1, 1),
            generator=seeded(1),
        )
        return (classifier().predict(drawn) == y).double().mean().item()

    assert share_right(-1.0) < 0.3  # without its label, a digit is right by chance
    assert share_right(0.0) > 0.9
    assert share_right(1.0) > 0.95

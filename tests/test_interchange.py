"""Networks from and to diffusers: the same numbers in both, or a refusal that names the reason.

Their step t0 is ours minus 1. diffusers is a dependency of the tests only.
"""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ddpm_lite import GaussianDiffusion, NoiseSchedule
from ddpm_lite.interchange import from_diffusers, to_diffusers
from ddpm_lite.sampling import generate
from ddpm_lite.unet import PRESETS, UNet, count_parameters

diffusers = pytest.importorskip("diffusers", reason="parity needs the extra 'oracle'")
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()

WEIGHTS = "diffusion_pytorch_model.safetensors"
SMALL = dataclasses.replace(
    PRESETS["digits"], base_channels=16, norm_groups=4, initialisation="torch"
)
LINEAR = GaussianDiffusion(NoiseSchedule.linear(1000))

# The configuration file of google/ddpm-cifar10-32, and that of its scheduler.
PUBLISHED = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "num_train_timesteps": 1000,
    "clip_sample": True,
    "variance_type": "fixed_large",
    "trained_betas": None,
}
# The same network, small: 8×8 in grey, three levels.
MINIATURE = {
    **PUBLISHED,
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [16, 32, 32],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


def build(settings, seed=0):
    """A network of theirs with random weights, none of them left at a trivial first value."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        names = {name: v for name, v in settings.items() if not name.startswith("_")}
        theirs = diffusers.UNet2DModel(**names)
        for name, p in theirs.named_parameters():
            if "norm" in name:
                p.data += 0.2 * torch.randn_like(p)
    return theirs.eval()


def write(folder, settings, seed=0, scheduler=None):
    """A folder as an old release has it: the weights of theirs, and the files of settings."""
    theirs = build(settings, seed)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(theirs.state_dict(), folder / WEIGHTS, {"format": "pt"})
    rewrite(folder, settings)
    if scheduler is not None:
        (folder / "scheduler_config.json").write_text(json.dumps(scheduler))
    return theirs


def rewrite(folder, settings):
    (folder / "config.json").write_text(json.dumps(settings))


def rewrite_weights(folder, change):
    """Save the folder's tensors again after `change(tensors)`."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def images(config, count=2):
    shape = (count, config.in_channels, config.image_size, config.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def difference(ours, theirs, labels=None, steps=(0, 500, 999)):
    """The largest difference of the two outputs at their steps t0, ours t0 + 1."""
    x = images(ours.config, 2 if labels is None else len(labels))
    return max(
        float((ours(x, t0 + 1, labels) - theirs(x, t0, class_labels=labels).sample).abs().max())
        for t0 in steps
    )


# ---- the published network -------------------------------------------------------------------


def test_the_published_network_in_and_out(tmp_path):
    theirs = write(tmp_path / "in", PUBLISHED, scheduler=SCHEDULER)
    ours, diffusion = from_diffusers(tmp_path / "in")
    preset = PRESETS["ddpm-cifar10"]
    assert ours.config == dataclasses.replace(preset, dropout=0.0, initialisation="torch")
    assert count_parameters(ours) == 35_746_307
    assert not ours.training
    assert difference(ours, theirs) < 1e-5

    assert diffusion.schedule == NoiseSchedule.linear(1000)
    assert (diffusion.prediction, diffusion.variance) == ("eps", "beta")

    to_diffusers(ours, diffusion, tmp_path / "out", clip=(-1, 1))
    there, back = load_file(tmp_path / "in" / WEIGHTS), load_file(tmp_path / "out/unet" / WEIGHTS)
    assert len(back) == 328
    assert there.keys() == back.keys()
    assert all(torch.equal(there[name], back[name]) for name in there)
    again = diffusers.UNet2DModel.from_pretrained(tmp_path / "out/unet", low_cpu_mem_usage=False)
    assert difference(ours, again.eval(), steps=(500,)) < 1e-5
    for name, value in theirs.config.items():
        if name[0] != "_" and name != "attn_norm_num_groups":  # null there, 32 here: the same
            assert again.config[name] == value, name


# ---- many small ones, from here ----------------------------------------------------------------

VARIANTS = {
    "counting from 1": {},
    "counting from 0": {"t_offset": -1},
    "OpenAI's clock": {"time_embedding": "cos-sin"},
    "OpenAI's clock from 0": {"time_embedding": "cos-sin", "t_offset": -1},
    "scale and shift": {"time_conditioning": "scale-shift"},
    "four heads": {"attention_heads": 4},
    "symmetric padding": {"downsample_padding": "symmetric"},
    "another eps": {"norm_eps": 1e-2},
    "attention at both ends": {"attention_resolutions": (8, 2)},
    "no attention but the middle's": {"attention_resolutions": ()},
    "widening": {"channel_multipliers": (1, 2, 3), "blocks_per_level": 2},
    "one level": {"channel_multipliers": (1,), "attention_resolutions": (8,)},
    "more out than in": {"in_channels": 3, "out_channels": 6},
    "classes": {"num_classes": 10},
    "OpenAI's ways together": {
        "time_embedding": "cos-sin",
        "time_conditioning": "scale-shift",
        "attention_heads": 2,
        "downsample_padding": "symmetric",
        "norm_eps": 1e-5,
        "dropout": 0.3,
    },
}


def variant(**changes):
    network = UNet(dataclasses.replace(SMALL, **changes), torch.Generator().manual_seed(3))
    for name, p in network.named_parameters():
        if "norm" in name:
            p.data += 0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(4))
    learned = network.config.out_channels != network.config.in_channels
    return network.eval(), process_for(learned)


def process_for(learned):
    return GaussianDiffusion(LINEAR.schedule, variance="learned" if learned else "posterior")


@pytest.mark.parametrize("name", VARIANTS)
def test_a_network_goes_there_and_comes_back(tmp_path, name):
    ours, diffusion = variant(**VARIANTS[name])
    to_diffusers(ours, diffusion, tmp_path)
    theirs = diffusers.UNet2DModel.from_pretrained(tmp_path / "unet", low_cpu_mem_usage=False)
    labels = None if ours.config.num_classes is None else torch.tensor([0, 9, 10])
    assert difference(ours, theirs.eval(), labels) < 1e-5

    back, process = from_diffusers(tmp_path)
    assert difference(back, theirs, labels) < 1e-5
    assert back.config == dataclasses.replace(ours.config, t_offset=-1)
    assert process.schedule == diffusion.schedule
    assert process.variance == diffusion.variance


def test_the_hands_are_put_back_to_the_last_digit(tmp_path):
    """In float64 nothing hides: the turned weights are the same function, for every t."""
    ours = UNet(SMALL, torch.Generator().manual_seed(0)).double()
    to_diffusers(ours, LINEAR, tmp_path)
    weight = load_file(tmp_path / "unet" / WEIGHTS)["time_embedding.linear_1.weight"]
    t0 = torch.arange(1000, dtype=torch.float64)
    angle = t0[:, None] * 10000 ** (-torch.arange(8, dtype=torch.float64) / 7)
    theirs = torch.cat([angle.sin(), angle.cos()], dim=1) @ weight.T
    angle = (t0 + 1)[:, None] * 10000 ** (-torch.arange(8, dtype=torch.float64) / 7)
    wanted = torch.cat([angle.sin(), angle.cos()], dim=1) @ ours.time_embedding.linear1.weight.T
    np.testing.assert_allclose(theirs, wanted.detach(), rtol=0, atol=1e-12)


def test_the_file_is_plain_safetensors(tmp_path):
    to_diffusers(variant()[0], LINEAR, tmp_path)
    with safe_open(tmp_path / "unet" / WEIGHTS, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_null_class_is_remembered(tmp_path):
    ours, diffusion = variant(num_classes=10)
    to_diffusers(ours, diffusion, tmp_path)
    assert json.loads((tmp_path / "unet/config.json").read_text())["num_class_embeds"] == 11
    back, _ = from_diffusers(tmp_path)
    x = images(back.config)
    with torch.no_grad():
        assert torch.equal(back(x, 7), back(x, 7, torch.tensor([10, 10])))


# ---- the pipeline ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        (NoiseSchedule.linear(20, 0.01, 0.3), 20),
        (NoiseSchedule.cosine(30), 30),
        (NoiseSchedule.linear(1000), 12),
    ],
)
@pytest.mark.parametrize("variance", ["posterior", "beta", "learned"])
def test_the_pipeline_draws_what_we_draw(tmp_path, variance, schedule, steps):
    """From the same seed, step for step the same noise: the same images."""
    ours, _ = variant(out_channels=2 if variance == "learned" else 1)
    diffusion = GaussianDiffusion(schedule, "eps", variance)
    to_diffusers(ours, diffusion, tmp_path, clip=(-1, 1))
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        batch_size=2,
        generator=torch.Generator().manual_seed(1),
        num_inference_steps=steps,
        output_type="np",
    ).images
    drawn = generate(
        ours,
        diffusion,
        (2, 1, 8, 8),
        steps=steps,
        spacing=None if steps == diffusion.T else "linspace",
        eta=1.0,
        clip=(-1, 1),
        generator=torch.Generator().manual_seed(1),
    )
    expected = (drawn / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    np.testing.assert_allclose(theirs, expected, rtol=0, atol=2e-5)
    assert drawn.std() > 0.3


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("clip", [None, (-2, 2)])
def test_what_the_scheduler_is_told(tmp_path, prediction, clip):
    diffusion = GaussianDiffusion(NoiseSchedule.linear(50), prediction)
    to_diffusers(variant()[0], diffusion, tmp_path, clip=clip)
    theirs = diffusers.DDPMScheduler.from_pretrained(tmp_path / "scheduler")
    x, output = torch.randn(2, 4, 1, 8, 8, generator=torch.Generator().manual_seed(2)) * 2
    for t in (1, 2, 50):
        step = theirs.step(output, t - 1, x, generator=torch.Generator().manual_seed(0))
        predicted = diffusion.predict(output, x, t, clip)
        np.testing.assert_allclose(predicted.x0, step.pred_original_sample, rtol=1e-4, atol=1e-4)
    assert from_diffusers(tmp_path)[1].prediction == prediction


# ---- old files ---------------------------------------------------------------------------------


def test_old_names_of_attention_are_understood(tmp_path):
    theirs = write(tmp_path, MINIATURE)

    def age(tensors):
        for name in list(tensors):
            old = name
            for today, then in (
                ("to_q", "query"),
                ("to_k", "key"),
                ("to_v", "value"),
                ("to_out.0", "proj_attn"),
            ):
                old = old.replace(today, then)
            tensors[old] = tensors.pop(name)

    rewrite_weights(tmp_path, age)
    assert any("proj_attn" in name for name in load_file(tmp_path / WEIGHTS))
    ours, diffusion = from_diffusers(tmp_path)
    assert difference(ours, theirs) < 1e-5
    assert diffusion is None

    def both(tensors):
        tensors["mid_block.attentions.0.to_q.bias"] = torch.zeros(32)

    rewrite_weights(tmp_path, both)
    with pytest.raises(ValueError, match=r"'mid_block.attentions.0.to_q.bias' twice"):
        from_diffusers(tmp_path)


def test_a_saved_pipeline_is_read_where_it_lies(tmp_path):
    theirs = build(MINIATURE)
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=100)
    diffusers.DDPMPipeline(theirs, scheduler).save_pretrained(tmp_path)
    ours, diffusion = from_diffusers(tmp_path)
    assert difference(ours, theirs) < 1e-5
    # the pipeline turned the scheduler into its own kind
    assert diffusion.schedule == NoiseSchedule.linear(100)


def test_half_precision_becomes_float32(tmp_path):
    theirs = write(tmp_path, MINIATURE)

    def halve(tensors):
        for name in tensors:
            tensors[name] = tensors[name].half()

    rewrite_weights(tmp_path, halve)
    ours, _ = from_diffusers(tmp_path)
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert 0 < difference(ours, theirs) < 1e-2


# ---- settings that no shape shows --------------------------------------------------------------


@pytest.mark.parametrize(
    "tampered",
    [
        {"attention_head_dim": 8},
        {"attention_head_dim": 32},
        {"downsample_padding": 1},
        {"norm_eps": 0.1},
        {"flip_sin_to_cos": True, "freq_shift": 0},
        {"act_fn": "swish"},
        {"attn_norm_num_groups": 4},
        {"dropout": 0.5},
        {"time_embedding_dim": 64},
        {"sample_size": [8, 8]},
    ],
)
def test_a_setting_that_no_shape_shows_is_followed(tmp_path, tampered):
    """The same weights under another setting: the other function, in both libraries."""
    settings = {**MINIATURE, **tampered}
    theirs = write(tmp_path, settings)
    ours, _ = from_diffusers(tmp_path)
    assert difference(ours, theirs) < 1e-5
    if set(tampered) <= {"attention_head_dim", "downsample_padding", "norm_eps", "freq_shift"}:
        rewrite(tmp_path, MINIATURE)
        changed = from_diffusers(tmp_path)[0].config != ours.config
        assert changed == (tampered != {"attention_head_dim": 32})


@pytest.mark.parametrize(
    ("tampered", "message"),
    [
        ({"freq_shift": 0}, "flip_sin_to_cos = False with freq_shift = 0 has no counterpart"),
        ({"flip_sin_to_cos": True}, "flip_sin_to_cos = True with freq_shift = 1"),
        ({"flip_sin_to_cos": None}, "flip_sin_to_cos = None"),
        ({"attention_head_dim": 5}, r"attention_head_dim = 5 must give one whole number of heads"),
        ({"attention_head_dim": 0}, "attention_head_dim = 0"),
        (
            {"attention_head_dim": 8, "block_out_channels": [16, 16, 32]},
            r"attention_head_dim = 8 must give .*, \[16, 32\]",
        ),
        ({"downsample_padding": 2}, "downsample_padding = 2 has no counterpart here; it must be 0"),
        ({"downsample_padding": False}, "downsample_padding = False"),
        ({"norm_eps": 0}, "refused here: norm_eps must be positive, got 0"),
        ({"act_fn": "gelu"}, "act_fn = 'gelu' has no counterpart here; it must be 'silu' or"),
        ({"center_input_sample": True}, "center_input_sample = True"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type = 'fourier'"),
        ({"time_embedding_dim": 32}, "time_embedding_dim = 32"),
        ({"mid_block_scale_factor": 1.4}, "mid_block_scale_factor = 1.4"),
        ({"mid_block_type": None}, "mid_block_type = None"),
        ({"downsample_type": "resnet"}, "downsample_type = 'resnet'"),
        ({"upsample_type": "resnet"}, "upsample_type = 'resnet'"),
        ({"add_attention": False}, "add_attention = False"),
        ({"class_embed_type": "timestep"}, "class_embed_type = 'timestep'"),
        ({"attn_norm_num_groups": 2}, "attn_norm_num_groups = 2 .* must be None or 4"),
        (
            {"resnet_time_scale_shift": "scale_shift"},
            "attn_norm_num_groups = None has no counterpart here; it must be 4",
        ),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift = 'spatial'"),
        ({"num_class_embeds": 10}, "num_class_embeds = 10 gives no class the meaning 'no class'"),
        ({"sample_size": [8, 16]}, r"sample_size must be one number of pixels, got \[8, 16\]"),
        ({"sample_size": None}, "sample_size must be one number of pixels, got None"),
        ({"block_out_channels": [16, 24, 32]}, "block_out_channels must be multiples of the first"),
        ({"block_out_channels": []}, "block_out_channels must be multiples"),
        (
            {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"]},
            "an entry of down_block_types = 'CrossAttnDownBlock2D'",
        ),
        ({"up_block_types": ["UpBlock2D"] * 3}, "up_block_types must mirror down_block_types"),
        ({"up_block_types": ["UpBlock2D"] * 2}, "one entry for each of block_out_channels"),
        ({"layers_per_block": "2"}, "refused here: blocks_per_level must be an int, got '2'"),
        ({"norm_num_groups": 3}, "refused here: base_channels must be .* norm_groups = 3"),
        ({"_class_name": "UNet2DConditionModel"}, "_class_name = 'UNet2DConditionModel'"),
        ({"skip_connections": "none"}, "has a setting 'skip_connections' that is unknown here"),
    ],
)
def test_a_setting_without_a_counterpart_is_refused_by_name(tmp_path, tampered, message):
    write(tmp_path, MINIATURE)
    rewrite(tmp_path, {**MINIATURE, **tampered})
    with pytest.raises(ValueError, match=message):
        from_diffusers(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "attention_head_dim",
        "downsample_padding",
        "norm_eps",
        "flip_sin_to_cos",
        "freq_shift",
        "sample_size",
        "block_out_channels",
        "norm_num_groups",
    ],
)
def test_a_setting_that_is_missing_is_not_guessed(tmp_path, name):
    write(tmp_path, MINIATURE)
    rewrite(tmp_path, {k: v for k, v in MINIATURE.items() if k != name})
    with pytest.raises(ValueError, match=f"lacks the setting '{name}'"):
        from_diffusers(tmp_path)


def test_what_young_settings_mean_in_old_files_is_what_they_mean_there(tmp_path):
    """Every setting of theirs is known here; those that may be left out have their defaults."""
    defaults = diffusers.UNet2DModel.__init__.__wrapped__.__defaults__
    code = diffusers.UNet2DModel.__init__.__wrapped__.__code__
    names = code.co_varnames[1 : code.co_argcount]
    write(tmp_path, MINIATURE)
    rewrite(tmp_path, {**dict(zip(names, defaults, strict=True)), **MINIATURE})
    assert from_diffusers(tmp_path)[0].config.time_conditioning == "add"


# ---- files that are not whole ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("conv_in.weight"), "lacks the tensor 'conv_in.weight'"),
        (
            lambda w: w.pop("up_blocks.1.attentions.0.to_v.bias"),
            r"lacks the tensor 'up_blocks.1.attentions.0.to_v.bias'",
        ),
        (
            lambda w: w.update({"conv_in.weight": torch.zeros(16, 3, 3, 3)}),
            r"'conv_in.weight' must have shape \(16, 1, 3, 3\), got \(16, 3, 3, 3\)",
        ),
        (
            lambda w: w.update({"conv_out.bias": torch.zeros(1, dtype=torch.int32)}),
            "'conv_out.bias' must hold floating-point numbers, got torch.int32",
        ),
        (
            lambda w: w.update({"conv_extra.bias": torch.zeros(1)}),
            "a tensor 'conv_extra.bias' that has no place in this network",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, change, message):
    write(tmp_path, MINIATURE)
    rewrite_weights(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        from_diffusers(tmp_path)


def test_a_truncated_file_is_named(tmp_path):
    write(tmp_path, MINIATURE)
    whole = (tmp_path / WEIGHTS).read_bytes()
    for kept in (0, 7, 1000, len(whole) - 1):
        (tmp_path / WEIGHTS).write_bytes(whole[:kept])
        with pytest.raises(ValueError, match="is truncated or not a safetensors file"):
            from_diffusers(tmp_path)


def test_a_pickle_is_not_read(tmp_path):
    write(tmp_path, MINIATURE)
    (tmp_path / WEIGHTS).unlink()
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ValueError, match=r"\.bin\), and a pickle can run any code"):
        from_diffusers(tmp_path)


def test_missing_files_are_named(tmp_path):
    write(tmp_path, MINIATURE)
    (tmp_path / WEIGHTS).rename(tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(FileNotFoundError, match=r"there is diffusion_pytorch_model.fp16"):
        from_diffusers(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not a whole JSON file"):
        from_diffusers(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        from_diffusers(tmp_path)


# ---- the scheduler's settings ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "schedule"),
    [
        ({}, NoiseSchedule.linear(1000)),
        ({"beta_start": 0.001, "num_train_timesteps": 10}, NoiseSchedule.linear(10, 0.001)),
        ({"beta_schedule": "squaredcos_cap_v2"}, NoiseSchedule.cosine(1000)),
        (
            {"trained_betas": [0.1, 0.3], "num_train_timesteps": 2},
            NoiseSchedule.from_betas([0.1, 0.3]),
        ),
        (
            {"beta_schedule": "scaled_linear"},
            NoiseSchedule.from_betas(np.linspace(1e-4**0.5, 0.02**0.5, 1000) ** 2),
        ),
    ],
)
def test_their_schedules(tmp_path, settings, schedule):
    settings = {**SCHEDULER, **settings}
    write(tmp_path, MINIATURE, scheduler=settings)
    _, diffusion = from_diffusers(tmp_path)
    np.testing.assert_allclose(diffusion.schedule.beta, schedule.beta, rtol=1e-12)
    theirs = diffusers.DDPMScheduler(**{k: v for k, v in settings.items() if k[0] != "_"})
    np.testing.assert_allclose(
        diffusion.schedule.alpha_bar[1:], theirs.alphas_cumprod, rtol=2e-4, atol=1e-9
    )


@pytest.mark.parametrize(
    "schedule",
    [
        NoiseSchedule.linear(1000),
        NoiseSchedule.linear(1),
        NoiseSchedule.cosine(100),
        NoiseSchedule.from_betas([0.5, 0.1, 0.3]),
    ],
)
def test_a_schedule_goes_there_and_comes_back(tmp_path, schedule):
    to_diffusers(variant()[0], GaussianDiffusion(schedule), tmp_path)
    _, back = from_diffusers(tmp_path)
    np.testing.assert_allclose(back.schedule.beta, schedule.beta, rtol=1e-12)
    theirs = diffusers.DDPMScheduler.from_pretrained(tmp_path / "scheduler")
    np.testing.assert_allclose(theirs.betas, schedule.beta[1:], rtol=1e-6)


def test_a_linear_schedule_is_called_so(tmp_path):
    to_diffusers(variant()[0], LINEAR, tmp_path)
    told = json.loads((tmp_path / "scheduler/scheduler_config.json").read_text())
    assert (told["beta_schedule"], told["beta_start"], told["beta_end"]) == ("linear", 1e-4, 0.02)
    assert told["trained_betas"] is None


def test_the_other_scheduler_has_no_variance_of_its_own(tmp_path):
    settings = {k: v for k, v in SCHEDULER.items() if k != "variance_type"}
    write(tmp_path, MINIATURE, scheduler={**settings, "_class_name": "DDIMScheduler"})
    assert from_diffusers(tmp_path)[1].variance == "posterior"


@pytest.mark.parametrize(
    ("tampered", "message"),
    [
        ({"variance_type": "fixed_large_log"}, "variance_type = 'fixed_large_log'"),
        ({"variance_type": "learned"}, "variance_type = 'learned' has no counterpart"),
        ({"variance_type": "learned_range"}, "'learned' needs a network with 2 out_channels"),
        ({"prediction_type": "flow"}, "prediction_type = 'flow'"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule = 'sigmoid'"),
        ({"beta_end": 2.0}, "a schedule that is refused here"),
        ({"num_train_timesteps": 0}, "a schedule that is refused here"),
        ({"trained_betas": [0.1]}, "trained_betas must hold 1000 numbers, got 1"),
        ({"thresholding": True}, "thresholding = True"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr = True"),
        ({"_class_name": "PNDMScheduler"}, "_class_name = 'PNDMScheduler'"),
        ({"solver_order": 2}, "a setting 'solver_order' that is unknown here"),
    ],
)
def test_a_scheduler_without_a_counterpart_is_refused_by_name(tmp_path, tampered, message):
    write(tmp_path, MINIATURE, scheduler={**SCHEDULER, **tampered})
    with pytest.raises(ValueError, match=message):
        from_diffusers(tmp_path)


@pytest.mark.parametrize(
    "name", ["num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "variance_type"]
)
def test_a_scheduler_that_is_not_whole_is_refused(tmp_path, name):
    settings = {k: v for k, v in SCHEDULER.items() if k != name}
    write(tmp_path, MINIATURE, scheduler=settings)
    with pytest.raises(ValueError, match=f"lacks the setting '{name}'"):
        from_diffusers(tmp_path)


# ---- what cannot be exported -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": "convnext", "width_factor": 4}, "no counterpart of block = 'convnext'"),
        ({"width_factor": 2}, "no counterpart of width_factor = 2, only of 1"),
        ({"channel_multipliers": (2, 2, 2)}, r"do not begin with 1, got \(2, 2, 2\)"),
        (
            {"channel_multipliers": (1, 1, 2), "attention_heads": 2},
            r"2 attention_heads at levels of different widths, here \[16, 32\]",
        ),
    ],
)
def test_a_network_that_they_cannot_express_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        to_diffusers(variant(**changes)[0], LINEAR, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("diffusion", "clip", "message"),
    [
        (LINEAR, (-1, 2), r"clip must be symmetric, \(-r, r\), for diffusers, got \(-1, 2\)"),
        (LINEAR, (0, 0), "clip must be symmetric"),
        (GaussianDiffusion(LINEAR.schedule, variance="learned"), None, "2 out_channels, got 1"),
        (
            GaussianDiffusion(LINEAR.schedule.respace(10, "linspace")),
            None,
            "a respaced chain cannot be exported",
        ),
        (
            GaussianDiffusion(NoiseSchedule.from_alpha_bar([1, 0.5, 0]), "v"),
            None,
            "alpha_bar_T = 0 cannot be exported",
        ),
    ],
)
def test_a_process_that_they_cannot_express_is_refused(tmp_path, diffusion, clip, message):
    with pytest.raises(ValueError, match=message):
        to_diffusers(variant()[0], diffusion, tmp_path / "out", clip=clip)
    assert not (tmp_path / "out").exists()


def test_only_a_unet_can_be_exported(tmp_path):
    with pytest.raises(TypeError, match="only a UNet can be exported, got Linear"):
        to_diffusers(torch.nn.Linear(1, 1), LINEAR, tmp_path)

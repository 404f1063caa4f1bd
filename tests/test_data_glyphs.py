"""The glyphs: the right characters, drawn as stated, whole, and the same again from a seed."""

import itertools
import math

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from ddpm_lite import data
from ddpm_lite.commands import common, train
from ddpm_lite.data import GLYPH_RANGES, GLYPH_STYLES, GLYPHS, digits, glyphs, load
from ddpm_lite.unet import PRESETS, UNetConfig

PAIRS = len(GLYPHS) * len(GLYPH_STYLES)
NEUTRAL = {"height": 20, "width": 1, "slant": 0, "turn": 0, "stroke": 0, "right": 0, "up": 0}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(characters, styles, **how):
    """Coverage in [0, 1], float64 (N, 32, 32), of each character in each style, drawn one way."""
    pairs = list(itertools.product(characters, styles))
    labels = torch.tensor([GLYPHS.index(character) for character, _ in pairs])
    numbers = torch.tensor([GLYPH_STYLES.index(style) for _, style in pairs])
    row = torch.tensor([{**NEUTRAL, **how}[name] for name in GLYPH_RANGES], dtype=torch.float64)
    images = data._draw_glyphs(labels, numbers, row.expand(len(pairs), -1))
    return (images[:, 0].double() + 1) / 2


def rms(images):
    """Root mean square difference of any two images, (N, N)."""
    rows = images.flatten(1)
    return torch.cdist(rows, rows) / math.sqrt(rows.shape[1])


@pytest.fixture(scope="module")
def loaded():
    return {split: load("glyphs", split) for split in ("train", "heldout")}


# ---- what is drawn ------------------------------------------------------------------------------


def by_pillow(character, style):
    """The same glyph, 20 pixels high as an H, by another renderer: eight times as large, shrunk."""
    file = f"{matplotlib.get_data_path()}/fonts/ttf/{style}.ttf"
    unit = ImageFont.truetype(file, 1000, layout_engine=ImageFont.Layout.BASIC)
    _, top, _, bottom = unit.getmask("H").getbbox()
    size = round(8 * 20 * 1000 / (bottom - top))
    mask = ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC).getmask(character)
    left, top, right, bottom = mask.getbbox()
    pixels = np.array(mask, dtype=np.uint8).reshape(mask.size[::-1])[top:bottom, left:right]
    frame = Image.new("L", (256, 256))
    frame.paste(Image.fromarray(pixels), ((256 - right + left) // 2, (256 - bottom + top) // 2))
    return np.asarray(frame, dtype=np.float64).reshape(32, 8, 32, 8).mean((1, 3)) / 255


@pytest.mark.parametrize("style", GLYPH_STYLES)
def test_each_label_is_its_character_in_the_named_font(style):
    ours = drawn(GLYPHS, [style])
    # the widest are shrunk to the margins here, and not there
    fits = [c for c, image in zip(GLYPHS, ours, strict=True) if (image.sum(0) > 0).sum() < 29]
    assert len(fits) >= 34
    theirs = torch.from_numpy(np.stack([by_pillow(character, style) for character in fits]))
    difference = torch.cdist(theirs.flatten(1), ours.flatten(1)) / 32  # root mean square
    assert [GLYPHS[i] for i in difference.argmin(1)] == fits
    assert difference.min(1).values.max() < 0.05


def test_no_two_styles_draw_the_same_and_no_two_characters_of_a_style_do():
    images = drawn(GLYPHS, GLYPH_STYLES).reshape(len(GLYPHS), len(GLYPH_STYLES), -1)
    apart = torch.stack([rms(of_character) for of_character in images]).mean(0)
    assert apart[~torch.eye(len(apart), dtype=torch.bool)].min() > 0.1
    for of_style in images.transpose(0, 1):
        apart = rms(of_style)
        # closest are an I and a 1 in one of the styles
        assert apart[~torch.eye(len(apart), dtype=torch.bool)].min() > 0.02


def stem(**how):
    """A bar of a by b: the letter I of DejaVu Sans; and the sides that it has at `NEUTRAL`."""
    image = drawn("I", ["DejaVuSans"], **how)[0]
    outline = data._outline("I", "DejaVuSans")
    sides = np.ptp(outline.hull, axis=1) / outline.cap_height * NEUTRAL["height"]
    return image, *sides


def covered(left, right):
    """The share of each of 32 pixels in a row between two places, counted from the left edge."""
    pixels = np.arange(32)
    return np.clip(right - pixels, 0, 1) - np.clip(left - pixels, 0, 1)


def test_a_pixel_holds_the_share_of_it_that_is_covered():
    image, a, b = stem()
    assert math.isclose(b, 20) and 2 < a < 3
    expected = np.outer(covered(6, 26), covered(16 - a / 2, 16 + a / 2))
    # levels are 1/255 apart, and edges are drawn at multiples of 1/256
    np.testing.assert_allclose(image, expected, rtol=0, atol=1.5 / 255)


@pytest.mark.parametrize("stroke", [0.25, 0.5, 1.0])
def test_half_of_the_pen_falls_outside_on_every_side(stroke):
    image, a, b = stem(stroke=stroke)
    half = stroke / 2

    def across(side):
        low, high = 16 - side / 2, 16 + side / 2
        pen = covered(low - half, low + half) + covered(high - half, high + half)
        return 1 - (1 - pen) * (1 - covered(low, high))

    # through the middle of the bar, across and along
    np.testing.assert_allclose(image[16], across(a), rtol=0, atol=2.5 / 255)
    np.testing.assert_allclose(image[:, 16], across(b), rtol=0, atol=2.5 / 255)
    assert (image[16] > 0).sum() >= 4 and image[5, 16] > 0 and image[26, 16] > 0


@pytest.mark.parametrize("height", [17, 23])
@pytest.mark.parametrize("width", [0.85, 1.1])
@pytest.mark.parametrize(("slant", "turn"), [(0, 0), (0.1, 0), (-0.1, 6), (0, -6)])
def test_ink_grows_with_the_area_whatever_slant_and_turn(height, width, slant, turn):
    image, a, b = stem(height=height, width=width, slant=slant, turn=turn)
    scale = height / NEUTRAL["height"]
    assert abs(image.sum() / (a * b * scale**2 * width) - 1) < 0.01


def test_slant_leans_right_and_turn_goes_anticlockwise():
    images = {
        0: stem()[0],
        1: stem(slant=0.1)[0],
        -1: stem(turn=math.degrees(math.atan(0.1)))[0],
    }
    for right, image in images.items():  # pixels to the right for ten rows up
        np.testing.assert_allclose(image[10], image[20].roll(right), rtol=0, atol=2 / 255)


def test_shifts_move_by_pixels_right_and_up():
    middle = drawn("S8K", GLYPH_STYLES)
    assert torch.equal(drawn("S8K", GLYPH_STYLES, right=2), middle.roll(2, dims=2))
    assert torch.equal(drawn("S8K", GLYPH_STYLES, up=1), middle.roll(-1, dims=1))


def test_what_does_not_fit_is_shrunk_to_the_margins_and_stays_in_the_middle():
    wide = {"height": 23, "width": 1.1}
    image = drawn("W", ["DejaVuSans-Bold"], **wide)[0]
    columns = (image.sum(0) > 0).nonzero()[:, 0]
    assert (columns[0], columns[-1]) == (1, 30)
    pushed = drawn("W", ["DejaVuSans-Bold"], **wide, right=3)[0]
    assert torch.equal(pushed, image)


@pytest.mark.parametrize("turn", [-6, 0, 6])
def test_the_widest_pen_stays_within_the_margins(turn):
    most = {"height": 23, "width": 1.1, "stroke": 1, "turn": turn}
    for right, up in ((-3, -3), (3, 3)):
        images = drawn("AMNVWZ4", GLYPH_STYLES, **most, right=right, up=up)
        assert images[:, [0, -1]].max() == images[:, :, [0, -1]].max() == 0


# ---- the sequence -------------------------------------------------------------------------------


def test_a_seed_is_a_sequence_and_n_says_how_far_it_goes():
    first, again, other = (glyphs(n, seeded(s)) for n, s in ((40, 5), (100, 5), (40, 6)))
    assert all(torch.equal(a, b[:40]) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first[1:], other[1:], strict=True))
    assert not (first[0] == other[0]).flatten(1).all(1).any()


def test_only_the_generator_is_drawn_from_seven_numbers_an_image():
    before, generator = torch.get_rng_state(), seeded(3)
    glyphs(5, generator)
    assert torch.equal(torch.get_rng_state(), before)
    rest = torch.rand(36, generator=seeded(3), dtype=torch.float64)[35]
    assert torch.rand((), generator=generator, dtype=torch.float64) == rest


def test_characters_and_styles_take_turns():
    plan_labels, plan_styles, how = data._glyph_plan(2 * PAIRS, seeded())
    assert plan_labels[:3].tolist() == [0, 1, 2] and plan_styles[:37].tolist() == 36 * [0] + [1]
    pairs = (plan_labels + len(GLYPHS) * plan_styles)[100 : 100 + PAIRS]
    assert pairs.sort().values.tolist() == list(range(PAIRS))
    for numbers, (low, high) in zip(how.T, GLYPH_RANGES.values(), strict=True):
        assert low <= numbers.min() and numbers.max() < high
        # the mean of n uniform numbers, within five standard errors
        error = (high - low) / math.sqrt(12 * len(numbers))
        assert abs(numbers.mean() - (low + high) / 2) < 5 * error


def test_the_readers_matplotlib_settings_change_nothing():
    expected = glyphs(40, seeded())[0]
    data._outline.cache_clear()
    theirs = {"path.snap": True, "path.simplify": True, "text.hinting": "force_autohint"}
    with matplotlib.rc_context({**theirs, "font.family": "serif", "agg.path.chunksize": 100}):
        assert torch.equal(glyphs(40, seeded())[0], expected)


@pytest.mark.parametrize("n", [0, -1, True, 2.0, "9", None])
def test_a_number_that_is_none_is_refused(n):
    with pytest.raises(ValueError, match="number of glyphs must be an int of at least 1, got"):
        glyphs(n, seeded())


def test_a_matplotlib_without_its_fonts_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    data._outline.cache_clear()
    with pytest.raises(common.Refused) as refused, common.refusing():
        load("glyphs", "train")
    words = str(refused.value)
    assert "DejaVuSans.ttf is not there" in words and words.endswith(".") and "\n" not in words


# ---- the data set -------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "rounds"), [("train", 27), ("heldout", 3)])
def test_the_data_set_is_as_stated(loaded, split, rounds):
    dataset = loaded[split]
    images, labels = dataset.images, dataset.labels
    assert images.shape == (rounds * PAIRS, 1, 32, 32) and images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert labels.bincount().tolist() == len(GLYPHS) * [rounds * len(GLYPH_STYLES)]
    assert (dataset.name, dataset.kind, dataset.levels) == ("glyphs", "glyphs", 256)
    assert dataset.classes == GLYPHS == tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    level = (images + 1) * 127.5
    whole = level.round()
    assert (level - whole).abs().max() < 1e-4
    assert (whole.to(torch.int64).flatten().bincount() > 0).tolist() == 256 * [True]


def test_it_says_what_it_is(loaded):
    words = "glyphs (train): 20,412 grey images, 32×32, 256 levels, 36 classes"
    assert str(loaded["train"]) == words


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_glyph_is_there_and_whole(loaded, split):
    images = loaded[split].images[:, 0]
    border = torch.ones(32, 32, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert (images[:, border] == -1).all()
    ink = ((images + 1) / 2).sum((1, 2))
    assert ink.min() > 15 and images.amax((1, 2)).min() > 0.5


def test_every_tenth_of_each_character_in_each_style_is_held_out(loaded):
    labels, styles, how = data._glyph_plan(30 * PAIRS, seeded(0))
    held_out = torch.arange(30 * PAIRS) // PAIRS % 10 == 9  # the tenth time that a pair comes round
    for split, chosen in (("train", ~held_out), ("heldout", held_out)):
        rows = chosen.nonzero()[::37, 0]
        expected = data._draw_glyphs(labels[rows], styles[rows], how[rows])
        assert torch.equal(loaded[split].images[::37], expected)
        assert torch.equal(loaded[split].labels, labels[chosen])


def test_all_are_the_first_of_seed_0(monkeypatch):
    monkeypatch.setattr(data, "_GLYPH_ROUNDS", 1)
    images, labels, _ = glyphs(PAIRS, seeded(0))
    everything = load("glyphs", "all")
    assert torch.equal(everything.images, images) and torch.equal(everything.labels, labels)


def test_no_held_out_image_is_in_the_training_set(loaded):
    rows = {split: {image.numpy().tobytes() for image in loaded[split].images} for split in loaded}
    assert len(rows["train"]) == 27 * PAIRS and len(rows["heldout"]) == 3 * PAIRS
    assert not rows["train"] & rows["heldout"]


def nearest(images, others):
    """The distance of each image to the nearest of the others."""
    return torch.cdist(images.flatten(1), others.flatten(1)).min(1).values


def test_held_out_glyphs_are_no_nearer_to_training_ones_than_held_out_digits(loaded):
    """So that a copy stands out: it is at distance 0, where honest images are not.

    Distances are compared with that of any two images, to be free of the size of the images.
    """

    def share(train_images, heldout_images):
        typical = torch.pdist(heldout_images.flatten(1)).median()
        return nearest(heldout_images, train_images).median() / typical

    chosen = torch.randperm(3 * PAIRS, generator=seeded())[:200]
    of_glyphs = share(loaded["train"].images, loaded["heldout"].images[chosen])
    assert of_glyphs > share(digits("train")[0], digits("heldout")[0]) > 0.3


def test_held_out_glyphs_are_as_far_from_training_ones_as_those_from_each_other(loaded):
    """Both splits follow one law: left out, training images are found again no nearer."""
    order = torch.randperm(27 * PAIRS, generator=seeded())
    train_images = loaded["train"].images[order]
    chosen = torch.randperm(3 * PAIRS, generator=seeded())[:300]
    honest = nearest(loaded["heldout"].images[chosen], train_images[300:])
    left_out = nearest(train_images[:300], train_images[300:])
    error = math.sqrt((honest.var() + left_out.var()) / 300)
    assert abs(honest.mean() - left_out.mean()) < 4 * error


def test_the_labels_can_be_learned(loaded):
    """By the nearest of the 36 mean images, which one guess in 36 would get right by chance."""
    images, labels = (x for x in (loaded["train"].images.flatten(1), loaded["train"].labels))
    means = torch.stack([images[labels == label].mean(0) for label in range(len(GLYPHS))])
    guess = torch.cdist(loaded["heldout"].images.flatten(1), means).argmin(1)
    assert (guess == loaded["heldout"].labels).float().mean() > 0.4


# ---- in use -------------------------------------------------------------------------------------


def test_a_folder_called_glyphs_is_named_by_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "_GLYPH_ROUNDS", 1)
    (tmp_path / "glyphs").mkdir()
    Image.new("RGB", (5, 5)).save(tmp_path / "glyphs" / "0.png")
    assert load("glyphs", "all").images.shape[1:] == (1, 32, 32)
    assert load("./glyphs", "all").images.shape == (1, 3, 5, 5)


@pytest.mark.parametrize("options", [{"size": 16}, {"channels": 3}])
def test_options_for_folders_are_refused(options):
    with pytest.raises(ValueError, match="not glyphs"):
        load("glyphs", "train", **options)


def test_training_needs_no_more_than_the_name(loaded):
    given = train._parser("x").parse_args(["--out", "o", "--class-conditional"])
    dataset, diffusion = loaded["train"], train._diffusion(given)
    preset = train._preset_for(dataset)
    assert preset == "glyphs"
    network = train._network_config(given, preset, dataset, diffusion)
    assert network == UNetConfig.from_dict(
        PRESETS["glyphs"].to_dict() | {"num_classes": 36, "dropout": 0.1}
    )
    settings = train._training_config(given, preset, dataset, diffusion)
    assert (settings.steps, settings.batch_size, settings.horizontal_flip) == (6000, 256, False)

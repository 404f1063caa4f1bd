"""The book's figures: what is drawn, and that every figure carries its description.

Pictures are judged by the numbers that their artists hold, and once by their pixels. What a
notebook stores is looked at in a notebook that a real kernel has run.
"""

import base64
import math
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import matplotlib.colors
import nbformat
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from ddpm_lite import plotting
from ddpm_lite.oracle import GaussianData, GaussianMixture
from ddpm_lite.plotting import (
    CYCLE,
    figure,
    image_grid,
    plot_density,
    plot_density_2d,
    plot_points,
    plot_samples,
    show,
    show_images,
    time_colours,
    use_book_style,
)

LAW = GaussianMixture([0.3, 0.7], [[-1.0], [2.0]], [[[0.2]], [[1.0]]])
ALT = "Two humps; the right one is wider."
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def default_style():
    with matplotlib.rc_context():
        yield


def luminance(colour):
    """Relative luminance of a colour, 0 black to 1 white (WCAG 2)."""
    channels = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


# ---- style --------------------------------------------------------------------------------------


def test_style_sets_the_colours_and_survives_being_set_twice():
    use_book_style()
    use_book_style()
    fig, ax = figure()
    lines = [ax.plot([0, 1])[0].get_color() for _ in CYCLE]
    assert lines == list(CYCLE)
    assert not ax.spines["top"].get_visible()
    assert fig.get_facecolor() == (1, 1, 1, 1)


def test_the_first_four_line_colours_differ_from_white_and_from_each_other():
    assert len(set(CYCLE)) == len(CYCLE)
    for colour in CYCLE[:4]:
        assert 1.05 / (luminance(colour) + 0.05) > 3  # the contrast that WCAG 2 asks of graphics


def test_colours_of_time_grow_lighter():
    light = [luminance(c) for c in time_colours(9)]
    assert (np.diff(light) > 0).all()
    assert len(time_colours(1)) == 1
    with pytest.raises(ValueError, match="at least 1, got 0"):
        time_colours(0)


# ---- figures ------------------------------------------------------------------------------------


def test_figure_gives_one_axes_or_an_array():
    fig, ax = figure()
    assert isinstance(fig, Figure) and fig.get_figwidth() == 7.2
    ax.plot([0, 1])
    assert figure(1, 3)[1].shape == (3,)
    assert figure(2, 1)[1].shape == (2,)
    tall, axes = figure(2, 3, width="half", row_height=1.5, sharex=True)
    assert axes.shape == (2, 3)
    assert tall.get_size_inches().tolist() == [3.6, 3.0]
    assert axes[0, 0].get_shared_x_axes().joined(axes[0, 0], axes[1, 2])
    with pytest.raises(ValueError, match="full, half, got 'wide'"):
        figure(width="wide")


def test_no_figure_ever_reaches_pyplot():
    """Else a notebook would show each one twice, and a desktop would open windows."""
    code = (
        "import sys, torch\n"
        "from ddpm_lite.plotting import figure, show, show_images, use_book_style\n"
        "use_book_style()\n"
        "fig, ax = figure()\n"
        "ax.plot([0, 1])\n"
        f"show(fig, {ALT!r})\n"
        f"show_images(torch.zeros(3, 1, 8, 8), {ALT!r})\n"
        "sys.exit('matplotlib.pyplot' in sys.modules or 'IPython' in sys.modules)\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_the_same_figure_is_the_same_bytes():
    def draw():
        fig, ax = figure()
        plot_density(ax, LAW, (-4, 6))
        return plotting._png(fig)

    first = draw()
    assert first == draw() and first.startswith(b"\x89PNG") and b"Software" not in first


@pytest.mark.parametrize(
    ("alt", "message"),
    [
        ("", "say what the figure shows"),
        ("a figure", "got 'a figure'"),
        ("   \n  a    figure    \n   ", "say what the figure shows"),
        (r"The density of $x_t$ for several steps.", "not LaTeX"),
        (r"The density at \bar\alpha of one half.", "not LaTeX"),
    ],
)
def test_alternative_text_that_says_nothing_or_cannot_be_read_aloud_is_refused(alt, message):
    fig, _ = figure()
    with pytest.raises(ValueError, match=message):
        show(fig, alt)


def test_show_draws_in_a_script_too_so_that_a_broken_label_is_found():
    fig, ax = figure()
    ax.set_xlabel(r"$\nosuchcommand$")
    with pytest.raises(ValueError, match="nosuchcommand"):
        show(fig, ALT)


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """A notebook with two figures, as a kernel has run it."""
    cells = [
        "import torch\n"
        "from ddpm_lite.plotting import figure, show, show_images, use_book_style\n"
        "use_book_style()",
        "fig, ax = figure()\nax.plot([0, 1])\nshow(fig, \"Rising:\\n  from 0 to ᾱ_t < 1 & 'on'.\")",
        f"show_images(torch.zeros(4, 1, 8, 8), {ALT!r})",
    ]
    book = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    folder = tmp_path_factory.mktemp("notebook")
    client = NotebookClient(
        book, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=os.environ | {"PYTHONPATH": str(ROOT)})
    nbformat.validate(book)
    return book


def test_a_notebook_stores_the_picture_with_its_alternative_text(notebook):
    assert notebook.cells[0].outputs == []
    picture, words = notebook.cells[1].outputs
    alt = "Rising: from 0 to ᾱ_t < 1 & 'on'."
    assert picture.output_type == "display_data"
    assert picture.metadata["image/png"] == {"alt": alt, "width": 691}
    assert picture.data["text/plain"] == f"Figure: {alt}"
    png = base64.b64decode(picture.data["image/png"])
    assert int.from_bytes(png[16:20], "big") == pytest.approx(2 * 691, abs=1)
    assert set(words.data) == {"text/html", "text/plain"} and words.data["text/plain"] == ""
    assert words.data["text/html"] == (
        "<details><summary>Figure in words</summary>"
        "Rising: from 0 to ᾱ_t &lt; 1 &amp; &#x27;on&#x27;.</details>"
    )


def test_a_figure_is_displayed_once(notebook):
    for cell in notebook.cells[1:]:
        pictures = [o for o in cell.outputs if "image/png" in o.get("data", {})]
        assert len(pictures) == 1 and len(cell.outputs) == 2


# ---- images -------------------------------------------------------------------------------------


def shown(fig):
    """The pixel arrays of a grid, None for an empty place."""
    return [np.asarray(ax.images[0].get_array()) if ax.images else None for ax in fig.axes]


def test_images_are_drawn_in_order_from_black_to_white():
    images = torch.linspace(-1, 1, 7 * 64).reshape(7, 1, 8, 8)
    fig = image_grid(images, columns=3)
    drawn = shown(fig)
    assert len(drawn) == 9 and drawn[7] is None and drawn[8] is None
    for pixels, image in zip(drawn, images, strict=False):
        np.testing.assert_allclose(pixels, (image[0] + 1) / 2, atol=1e-7)
    assert {ax.images[0].get_clim() for ax in fig.axes[:7]} == {(0, 1)}
    # the first pixel of the first image is -1 and must come out black, the last white
    assert fig.axes[0].images[0].to_rgba(0.0)[:3] == (0, 0, 0)
    assert fig.axes[0].images[0].to_rgba(1.0)[:3] == (1, 1, 1)


def test_images_outside_the_range_are_clipped():
    drawn = shown(image_grid(torch.tensor([-3.0, 2.0]).reshape(2, 1, 1, 1)))
    assert [float(d[0, 0]) for d in drawn] == [0.0, 1.0]


def test_a_grid_of_rows_and_columns_keeps_its_places_and_takes_colour():
    images = torch.rand(2, 4, 3, 5, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    fig = image_grid(images, row_labels=["a", "b"], column_titles=["1", "2", "3", "4"])
    drawn = shown(fig)
    expected = ((images + 1) / 2).permute(0, 1, 3, 4, 2).reshape(8, 5, 6, 3)
    np.testing.assert_allclose(np.stack(drawn), expected, atol=1e-6)
    assert [ax.get_title() for ax in fig.axes] == ["1", "2", "3", "4", "", "", "", ""]
    assert [fig.axes[i].get_ylabel() for i in (0, 1, 4)] == ["a", "", "b"]


def test_a_grid_is_never_wider_than_a_page_and_ten_to_a_row():
    assert len(image_grid(torch.zeros(23, 1, 2, 2)).axes) == 30
    wide = image_grid(torch.zeros(1, 15, 1, 2, 2), row_labels=["x"])
    assert wide.get_figwidth() <= 7.2 + 1e-9
    assert len(image_grid(torch.zeros(4, 1, 2, 2)).axes) == 4


def test_pixels_reach_the_picture():
    """A white image beside a black one: seen in the rendered picture."""
    images = torch.stack([torch.ones(1, 8, 8), -torch.ones(1, 8, 8)])
    fig = image_grid(images)
    fig.set_dpi(50)
    canvas = matplotlib.backends.backend_agg.FigureCanvasAgg(fig)
    canvas.draw()
    grey = np.asarray(canvas.buffer_rgba())[..., 0]
    left, right = np.array_split(grey[3:-3, 3:-3], 2, axis=1)
    assert left.mean() > 250
    assert right.mean() < 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(8, 8),), r"\(N, C, H, W\).*got \(8, 8\)"),
        ((torch.zeros(3, 2, 8, 8),), "C = 1 or 3.*got"),
        ((torch.zeros(0, 1, 8, 8),), "none of it empty"),
        ((torch.zeros(3, 1, 8, 8), 0), "at least 1, got 0"),
        ((torch.zeros(2, 3, 1, 8, 8), 2), "stand in 3 columns, not 2"),
        ((torch.zeros(2, 3, 1, 8, 8), None, ["a"]), "row_labels must hold 2 texts, got 1"),
        ((torch.zeros(4, 1, 8, 8), 2, None, ["a"]), "column_titles must hold 2 texts, got 1"),
    ],
)
def test_image_grid_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        image_grid(*arguments)


def test_show_images_needs_alternative_text_too():
    with pytest.raises(ValueError, match="say what the figure shows"):
        show_images(torch.zeros(2, 1, 8, 8), "digits")


# ---- densities and samples ----------------------------------------------------------------------


def test_a_density_is_drawn_from_the_law_with_its_foot_at_zero():
    _, ax = figure()
    plot_density(ax, LAW, (-4, 6), points=50, label="$p$", color="red")
    (curve,) = ax.lines
    x, y = curve.get_data()
    assert (x[0], x[-1], len(x)) == (-4, 6, 50)
    expected = sum(
        w * np.exp(-((x - m) ** 2) / (2 * c)) / math.sqrt(2 * math.pi * c)
        for w, m, c in [(0.3, -1.0, 0.2), (0.7, 2.0, 1.0)]
    )
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    assert curve.get_label() == "$p$" and curve.get_color() == "red"
    assert ax.get_ylim()[0] == 0
    top = ax.get_ylim()[1]
    plot_density(ax, GaussianMixture([1.0], [[0.0]], [[[0.01]]]), (-1, 1))
    assert ax.get_ylim()[0] == 0 and ax.get_ylim()[1] > 3.9 > top


def test_a_density_in_the_plane_has_its_contours_where_the_law_has_them():
    """For a Gaussian, the level (k/8)² of the peak is the ellipse of radius √(−2 log (k/8)²)."""
    _, ax = figure()
    law = GaussianData([-1.2, 0.6], [[0.25, 0.0], [0.0, 0.04]])
    plot_density_2d(ax, law, (-4, 2, -1, 2), points=301)
    (contours,) = ax.collections
    shares = contours.levels / contours.levels[-1]
    np.testing.assert_allclose(shares, (np.arange(1, 9) / 8) ** 2)
    inner = contours.get_paths()[-1].vertices  # between shares 49/64 and 1
    x_radius, y_radius = np.ptp(inner, axis=0) / 2
    radius = math.sqrt(-2 * math.log(49 / 64))
    assert x_radius == pytest.approx(0.5 * radius, rel=0.02)
    assert y_radius == pytest.approx(0.2 * radius, rel=0.02)
    centre = (inner.max(0) + inner.min(0)) / 2
    np.testing.assert_allclose(centre, [-1.2, 0.6], atol=0.01)  # x first, then y
    light = [luminance(c) for c in contours.get_facecolor()]
    assert (np.diff(light) < 0).all()
    assert ax.get_aspect() == 1


def test_a_histogram_is_a_density_even_where_it_is_cut_off():
    _, ax = figure()
    samples = torch.cat([torch.full((750,), 0.5), torch.full((250,), 99.0)])
    plot_samples(ax, samples, (0, 2), bins=4, label="s")
    (bars,) = ax.patches
    heights, edges, _ = bars.get_data()
    np.testing.assert_allclose(heights, [0, 1.5, 0, 0])
    np.testing.assert_allclose(edges, [0, 0.5, 1, 1.5, 2])
    assert (heights * np.diff(edges)).sum() == pytest.approx(0.75)
    assert bars.get_label() == "s"
    plot_samples(ax, samples[:1], (0.5, 1.5), bins=10)
    assert ax.get_ylim()[0] == 0 and ax.get_ylim()[1] > 10  # the top follows


def test_points_are_drawn_where_they_are():
    _, ax = figure()
    points = torch.tensor([[0.0, 1.0], [2.0, -1.0]], requires_grad=True)
    dots = plot_points(ax, points, color="red", s=9)
    np.testing.assert_allclose(dots.get_offsets(), [[0, 1], [2, -1]])
    assert matplotlib.colors.to_rgb(dots.get_facecolor()[0][:3]) == (1, 0, 0)
    assert ax.get_aspect() == 1
    with pytest.raises(ValueError, match=r"\(N, 2\), got \(4,\)"):
        plot_points(ax, torch.zeros(4))

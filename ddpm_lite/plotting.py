"""The book's figures: one look, images and densities, and a description with every figure.

    use_book_style()                                   # once, in a chapter's first cell
    fig, ax = figure()
    plot_density(ax, law, (-4, 4), label="$p_0$")
    show(fig, "What a reader who cannot see the picture needs to know.")

`figure` makes figures that pyplot knows nothing about. So no backend is chosen and no window
opens, a script draws off screen, nothing is shown twice, and nothing has to be closed.

`show` is the last line of a cell. In a notebook it displays the picture; the alternative text goes
where each kind of reader looks: into the output's ``image/png`` metadata (nbconvert's classic and
basic HTML make it the image's ``alt``), into its ``text/plain`` (terminals; and nbval compares it),
and into a line "Figure in words" that opens below the picture, because JupyterLab 4.6 gives an
output image no ``alt``. In a script `show` draws the picture, drops it, and prints nothing.
"""

from __future__ import annotations

import html
import io
import sys
from collections.abc import Sequence
from typing import Any, Protocol

import matplotlib
import numpy as np
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

# Okabe and Ito's colours, which stay apart for readers with any of the common colour deficiencies
BLACK = "#000000"
ORANGE = "#E69F00"
SKY_BLUE = "#56B4E9"
GREEN = "#009E73"
YELLOW = "#F0E442"
BLUE = "#0072B2"
VERMILLION = "#D55E00"
PURPLE = "#CC79A7"
GREY = "#7A7A7A"  # ours, for what stands in the background

# yellow and sky blue are pale on white: they come last
CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY_BLUE, BLACK, YELLOW)

WIDTH = {"full": 7.2, "half": 3.6}  # inches
_PIXELS_PER_INCH = 96  # as displayed
_SHARPNESS = 2  # stored pixels for each displayed one, for dense screens

_STYLE: Any = {
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.labelsize": 12,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=CYCLE),
    "axes.titlelocation": "left",
    "lines.linewidth": 2.0,
    "image.cmap": "cividis",
    "image.interpolation": "nearest",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "mathtext.fontset": "cm",
}


class Law(Protocol):
    """Anything with a log density at points (B, D): a law of oracle.py, for one."""

    def log_prob(self, x: Tensor) -> Tensor: ...


def use_book_style() -> None:
    """Give every figure made from now on the book's fonts, colours and frames."""
    matplotlib.rcParams.update(_STYLE)


def time_colours(count: int) -> list[tuple[float, float, float, float]]:
    """Colours for `count` moments of the chain, from data (dark) to noise (light).

    They grow lighter evenly, so the order survives in grey and for every kind of colour vision.
    """
    if count < 1:
        raise ValueError(f"the number of colours must be at least 1, got {count}.")
    # the last tenth of the map is too pale for a line on white
    return [matplotlib.colormaps["cividis"](x) for x in np.linspace(0, 0.9, count)]


# ---- figures ------------------------------------------------------------------------------------


def figure(
    rows: int = 1,
    columns: int = 1,
    width: str = "full",
    row_height: float = 2.6,
    **subplots: Any,
) -> tuple[Figure, Any]:
    """An empty figure and its axes.

    Args:
        rows, columns: the grid of panels.
        width: "full" or "half" of a page.
        row_height: inches for each row of panels.
        subplots: passed to Matplotlib's ``Figure.subplots`` (sharex, sharey, width_ratios, …).

    Returns:
        The figure, and one Axes, or an array of them if there are more: (columns,) or (rows,)
        for a single row or column, else (rows, columns).
    """
    if width not in WIDTH:
        raise ValueError(f"width must be one of {', '.join(WIDTH)}, got {width!r}.")
    fig = Figure(figsize=(WIDTH[width], rows * row_height), layout="constrained")
    return fig, fig.subplots(rows, columns, **subplots)


def show(fig: Figure, alt: str) -> None:
    """Display a finished figure, with `alt` for readers who do not see it.

    Args:
        alt: what the figure shows, in plain words: it is read aloud, so ᾱ and not LaTeX.

    Raises:
        ValueError: if `alt` says too little, or holds LaTeX.
    """
    words = " ".join(alt.split())
    if len(words) < 20:
        raise ValueError(f"alternative text must say what the figure shows, got {alt!r}.")
    if "$" in words or "\\" in words:
        raise ValueError(f"alternative text is read aloud: write words or ᾱ, not LaTeX: {alt!r}.")
    png = _png(fig)  # in a script too: a mistake in a label shows only when it is drawn
    if not _in_notebook():
        return
    from IPython.display import display

    shown_width = round(fig.get_figwidth() * _PIXELS_PER_INCH)
    display(
        {"image/png": png, "text/plain": f"Figure: {words}"},
        metadata={"image/png": {"alt": words, "width": shown_width}},
        raw=True,
    )
    folded = f"<details><summary>Figure in words</summary>{html.escape(words)}</details>"
    display({"text/html": folded, "text/plain": ""}, raw=True)


def _png(fig: Figure) -> bytes:
    buffer = io.BytesIO()
    # without the library's version in the file, the same figure is the same bytes
    fig.savefig(
        buffer, format="png", dpi=_PIXELS_PER_INCH * _SHARPNESS, metadata={"Software": None}
    )
    return buffer.getvalue()


def _in_notebook() -> bool:
    """Whether a Jupyter kernel runs this code; IPython is not imported to find out."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


# ---- images -------------------------------------------------------------------------------------


def image_grid(
    images: Tensor,
    columns: int | None = None,
    row_labels: Sequence[str] | None = None,
    column_titles: Sequence[str] | None = None,
    size: float = 0.62,
) -> Figure:
    """Images in [−1, 1] side by side; what lies outside is clipped to black or white.

    Args:
        images: (N, C, H, W), set in rows of `columns` (default: at most 10), or
            (rows, columns, C, H, W). C is 1 (grey) or 3 (colour).
        row_labels, column_titles: one text for each row or column.
        size: inches for one image; made smaller if a row would be wider than a page.

    Raises:
        ValueError: if the shape is none of these, or a list of texts has the wrong length.
    """
    grid = _as_grid(images, columns)
    rows, across = grid.shape[:2]
    for name, texts, count in (
        ("row_labels", row_labels, rows),
        ("column_titles", column_titles, across),
    ):
        if texts is not None and len(texts) != count:
            raise ValueError(f"{name} must hold {count} texts, got {len(texts)}.")
    margin = 1.3 if row_labels is not None else 0.1
    size = min(size, (WIDTH["full"] - margin) / across)
    height = rows * size + (0.35 if column_titles is not None else 0.1)
    tight = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    fig = Figure(figsize=(margin + across * size, height), layout=tight)
    axes = fig.subplots(rows, across, squeeze=False)
    for (i, j), ax in np.ndenumerate(axes):
        _draw_image(ax, grid[i, j])
        if i == 0 and column_titles is not None:
            ax.set_title(column_titles[j], loc="center", fontsize=10)
        if j == 0 and row_labels is not None:
            ax.set_ylabel(row_labels[i], rotation=0, ha="right", va="center", fontsize=10)
    return fig


def show_images(images: Tensor, alt: str, **grid: Any) -> None:
    """Display `image_grid(images, **grid)`, with `alt` as alternative text."""
    show(image_grid(images, **grid), alt)


def _as_grid(images: Tensor, columns: int | None) -> Tensor:
    """(rows, columns, C, H, W) on the CPU; a last row that is not full is padded with NaN."""
    images = torch.as_tensor(images).detach().to("cpu", torch.float32)
    if images.ndim not in (4, 5) or images.numel() == 0 or images.shape[-3] not in (1, 3):
        raise ValueError(
            "images must have shape (N, C, H, W) or (rows, columns, C, H, W) with C = 1 or 3, "
            f"none of it empty, got {tuple(images.shape)}."
        )
    if images.ndim == 5:
        if columns not in (None, images.shape[1]):
            raise ValueError(f"images already stand in {images.shape[1]} columns, not {columns}.")
        return images
    count = len(images)
    columns = min(count, 10) if columns is None else columns
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}.")
    missing = -count % columns
    blank = images.new_full((missing, *images.shape[1:]), torch.nan)
    return torch.cat([images, blank]).reshape(-1, columns, *images.shape[1:])


def _draw_image(ax: Axes, image: Tensor) -> None:
    ax.set(xticks=[], yticks=[])
    for side in ax.spines.values():
        side.set_visible(False)
    if image.isnan().all():
        return
    pixels = ((image + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy()
    ax.imshow(pixels[..., 0] if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1)


# ---- densities and samples ----------------------------------------------------------------------


def plot_density(
    ax: Axes, law: Law, interval: tuple[float, float], points: int = 400, **line: Any
) -> None:
    """Draw a density on the line, from its `log_prob` at `points` places in `interval`.

    line: passed to ``Axes.plot`` (label, color, linestyle, …). The vertical axis starts at 0.
    """
    x = torch.linspace(*interval, points, dtype=torch.float64)
    (curve,) = ax.plot(x.numpy(), law.log_prob(x[:, None]).exp().numpy(), **line)
    # not set_ylim, which would also stop the axis from following what is drawn later
    ax.update_datalim([(interval[0], 0.0)])
    curve.sticky_edges.y.append(0.0)
    ax.autoscale_view()


def plot_density_2d(
    ax: Axes,
    law: Law,
    extent: tuple[float, float, float, float],
    points: int = 150,
    colour: str = BLUE,
) -> None:
    """Draw a density in the plane as filled contours, from white (least) to `colour` (most).

    extent: left, right, bottom, top. The levels are (k/8)² of the highest density, k = 1..8: close
    together where it is low, so that a broad component shows beside a narrow one.
    """
    left, right, bottom, top = extent
    x = torch.linspace(left, right, points, dtype=torch.float64)
    y = torch.linspace(bottom, top, points, dtype=torch.float64)
    place = torch.cartesian_prod(x, y)
    density = law.log_prob(place).exp().reshape(points, points).T
    levels = float(density.max()) * (np.arange(1, 9) / 8) ** 2
    white_to_colour = LinearSegmentedColormap.from_list("density", ["white", colour])
    shades = white_to_colour(np.linspace(0.15, 1, len(levels) - 1))
    ax.contourf(x.numpy(), y.numpy(), density.numpy(), levels=levels, colors=shades)
    ax.set_aspect("equal")


def plot_samples(
    ax: Axes, samples: Tensor, interval: tuple[float, float], bins: int = 60, **bars: Any
) -> None:
    """Draw numbers as a histogram that is a density: area 1 over *all* samples.

    Those outside `interval` are not drawn, but count, so the bars can be laid over a density.
    """
    values = torch.as_tensor(samples).detach().to("cpu", torch.float64).flatten().numpy()
    counts, edges = np.histogram(values, bins=bins, range=interval)
    heights = counts / (len(values) * (edges[1] - edges[0]))
    style: dict[str, Any] = {"fill": True, "color": GREY, "alpha": 0.35}
    ax.stairs(heights, edges, **style | bars)


def plot_points(ax: Axes, points: Tensor, **dots: Any) -> PathCollection:
    """Draw points (N, 2) as small dots, with one scale on both axes."""
    points = torch.as_tensor(points).detach().cpu()
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"points must have shape (N, 2), got {tuple(points.shape)}.")
    ax.set_aspect("equal")
    style: dict[str, Any] = {"s": 6, "linewidths": 0, "alpha": 0.6, "color": BLUE}
    return ax.scatter(*points.numpy().T, **style | dots)

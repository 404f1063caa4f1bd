"""Data: digits, printed glyphs and point sets that come with the book, and images from your disk.

Nothing is downloaded. The digits are those that scikit-learn bundles; the glyphs, from the fonts
that matplotlib ships, and the point sets are drawn from a generator that the caller seeds; and
`load` reads what lies on disk: a folder of PNG and JPEG files, MNIST's idx files, CIFAR-10's
binary batches.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from ddpm_lite.oracle import GaussianMixture

if TYPE_CHECKING:
    from matplotlib.bezier import BezierSegment
    from matplotlib.path import Path as Curves
    from PIL.Image import Image

DIGITS_LEVELS = 17  # a pixel is one of 0, 1, …, 16
SPLITS = ("train", "heldout", "all")


def digits(split: str = "train") -> tuple[Tensor, Tensor]:
    """1,797 handwritten digits, 8×8 pixels, 17 grey levels.

    Level 0..16 becomes level/8 − 1 in [−1, 1], exactly: neighbouring levels differ by 1/8.

    The split is a rule, not a random draw, so that it cannot change with a library's version: of
    each class, in the order of the data set, every fifth image is held out. That leaves 1,442
    images to train on and 355 held out, with the classes in the same proportions. Thirteen people
    wrote the digits, and the split does not keep them apart: it measures generalisation to new
    images, not to new hands.

    Args:
        split: "train", "heldout" or "all", each in the order of the data set.

    Returns:
        images float32 (N, 1, 8, 8) and labels int64 (N,).

    Source: the bundled copy in ``sklearn.datasets.load_digits``.
    Raises:
        ValueError: if split is none of these.
    """
    _check_split(split)
    from sklearn.datasets import load_digits  # here, because importing it takes a second

    bunch = load_digits()
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    images = (torch.from_numpy(bunch.images) / 8 - 1).to(torch.float32)[:, None]
    if split == "all":
        return images, labels
    held_out = _every_nth_of_each_class(labels, 5)
    chosen = held_out if split == "heldout" else ~held_out
    return images[chosen], labels[chosen]


def _every_nth_of_each_class(labels: Tensor, n: int) -> Tensor:
    """True at the n-th, 2n-th, … member of each class, bool (N,)."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        chosen[(labels == label).nonzero()[n - 1 :: n, 0]] = True
    return chosen


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")


# ---- glyphs -------------------------------------------------------------------------------------

GLYPHS = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ")  # the classes, in the order of their labels
# fmt: off
GLYPH_STYLES = (  # in the order of their numbers: the names of matplotlib's font files
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta",
    "cmr10", "cmb10", "cmti10", "cmss10", "cmtt10",
)
# fmt: on
GLYPH_SIZE = 32  # pixels along a side
GLYPH_RANGES = {  # each glyph draws one number from each, uniformly
    "height": (17.0, 23.0),  # of the style's letter H, in pixels
    "width": (0.85, 1.1),  # over what the font's designer gave it
    "slant": (-0.1, 0.1),  # pixels to the right for each pixel up
    "turn": (-6.0, 6.0),  # degrees, anticlockwise
    "stroke": (0.0, 1.0),  # pixels, of a pen that goes once along the outline: half fall outside
    "right": (-3.0, 3.0),  # pixels from the centre of the frame, as far as there is room
    "up": (-3.0, 3.0),
}
GLYPH_MARGIN = 1  # pixels on every side that are never touched
_GLYPH_ROUNDS = 30  # how often `load` has each character in each style


def glyphs(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """n printed characters, 32×32 pixels, 256 grey levels, white on black: as many as you want.

    The 36 classes are `GLYPHS`, 0 to 9 and A to Z; the 21 styles are `GLYPH_STYLES`. Image i shows
    character i mod 36 in style ⌊i/36⌋ mod 21, so that any 756 images in a row have each pair once.
    Size, width, slant, turn, stroke and place of each are drawn uniformly from `GLYPH_RANGES`; what
    would not fit between the margins is shrunk until it does. A pixel's level is the share of it
    that is covered, where the filling and the pen count as if they overlapped by chance:
    1 − (1 − filling)(1 − pen).

    The first images do not depend on n. A seed gives the same images again on the same
    installation; another version of matplotlib may change some grey levels.

    Args:
        n: at least 1; 20,000 take about seven seconds on one core.
        generator: seven uniform numbers are drawn from it for each image.

    Returns:
        images float32 (n, 1, 32, 32) in [−1, 1], labels int64 (n,) and styles int64 (n,).

    Source: the outlines are those of the fonts DejaVu, STIX and Computer Modern, as matplotlib
        ships them, and filled by its renderer, Agg.
    Raises:
        ValueError: if n < 1.
        FileNotFoundError: if this installation of matplotlib came without one of the fonts; before
            3.11 there was no cmti10.
    """
    _check_count("glyphs", n)
    labels, styles, how = _glyph_plan(n, generator)
    return _draw_glyphs(labels, styles, how), labels, styles


def _glyph_plan(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """What to draw, and how: labels (n,), styles (n,), and a row of `GLYPH_RANGES` each, (n, 7)."""
    order = torch.arange(n)
    low, high = torch.tensor(list(GLYPH_RANGES.values()), dtype=torch.float64).T
    how = low + (high - low) * _uniform(n * len(low), generator).reshape(n, len(low))
    return order % len(GLYPHS), order // len(GLYPHS) % len(GLYPH_STYLES), how


def _glyph_set(split: str) -> tuple[Tensor, Tensor]:
    """The glyphs of `load`, which explains the split: images and labels."""
    count = _GLYPH_ROUNDS * len(GLYPHS) * len(GLYPH_STYLES)
    labels, styles, how = _glyph_plan(count, torch.Generator().manual_seed(0))
    chosen = torch.ones(count, dtype=torch.bool)
    if split != "all":
        held_out = _every_nth_of_each_class(labels + len(GLYPHS) * styles, 10)
        chosen = held_out if split == "heldout" else ~held_out
    return _draw_glyphs(labels[chosen], styles[chosen], how[chosen]), labels[chosen]


def _draw_glyphs(labels: Tensor, styles: Tensor, how: Tensor) -> Tensor:
    """Draw each character in its style: float32 (N, 1, 32, 32). how: see `_glyph_plan`."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.transforms import Affine2D

    renderer = RendererAgg(GLYPH_SIZE, GLYPH_SIZE, 72)  # at 72 dots per inch a point is a pixel
    pen = renderer.new_gc()
    pen.set_foreground("white")
    pen.set_joinstyle("round")  # so that no corner reaches further out than half the pen
    pen.set_snap(False)  # or upright and level edges would jump to whole pixels
    outlines = [
        _outline(GLYPHS[label], GLYPH_STYLES[style])
        for label, style in zip(labels.tolist(), styles.tolist(), strict=True)
    ]
    levels = np.empty((len(outlines), 1, GLYPH_SIZE, GLYPH_SIZE), np.uint8)
    placed = zip(outlines, *_placed(outlines, how.numpy()), strict=True)
    for image, (outline, matrix, stroke) in zip(levels, placed, strict=True):
        pen.set_linewidth(stroke)
        renderer.clear()
        renderer.draw_path(pen, outline.path, Affine2D(matrix), (1.0, 1.0, 1.0, 1.0))
        image[0] = np.asarray(renderer.buffer_rgba())[:, :, 3]  # how far each pixel is covered
    return _from_bytes(levels)


def _placed(outlines: list[_Outline], how: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The affine maps, (N, 3, 3), from the fonts' units to pixels; and the pens' widths, (N,)."""
    height, width, slant, turn, stroke, right, up = how.T
    scale = height / [outline.cap_height for outline in outlines]
    cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    # turn · (width, slant; 0, 1), written out
    linear = scale * np.array([[cos * width, cos * slant - sin], [sin * width, sin * slant + cos]])
    linear = linear.transpose(2, 0, 1)
    corners = np.empty((len(how), 2, 2))  # (lowest, highest) of each
    for i, outline in enumerate(outlines):
        points = linear[i] @ outline.hull
        corners[i] = points.min(1), points.max(1)
    extent = corners[:, 1] - corners[:, 0]
    room = GLYPH_SIZE - 2 * GLYPH_MARGIN - stroke
    shrunk = np.minimum(1, room / extent.max(1))[:, None]
    free = np.maximum(0, room[:, None] - shrunk * extent) / 2
    maps = np.zeros((len(how), 3, 3))
    maps[:, :2, :2] = shrunk[:, None] * linear
    maps[:, :2, 2] = GLYPH_SIZE / 2 - shrunk * corners.mean(1)
    maps[:, :2, 2] += np.clip(np.stack([right, up], axis=1), -free, free)
    maps[:, 2, 2] = 1
    # coarser than rounding errors, so that the last bits of a processor's cosine change no image
    return np.round(maps * 2**20) / 2**20, stroke


@dataclass(frozen=True)
class _Outline:
    """One character in one style.

    path: closed curves, to be filled.
    hull: (2, P), the corners of its convex hull: what of it can be outermost once it is slanted.
    cap_height: of the style's letter H, in the same unit.
    """

    path: Curves
    hull: np.ndarray
    cap_height: float


@cache
def _outline(character: str, style: str) -> _Outline:
    import matplotlib
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath
    from scipy.spatial import ConvexHull

    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{style}.ttf"
    if not file.is_file():
        raise FileNotFoundError(
            f"glyphs are drawn from the fonts that matplotlib ships, and {file} is not there: "
            "install matplotlib 3.11 or newer with pip or conda."
        )
    path = TextPath((0, 0), character, size=1, prop=FontProperties(fname=file))
    along = np.linspace(0, 1, 33)  # finer than a two-hundredth of a pixel, once drawn
    # pairs, whatever the type that matplotlib declares
    curves = cast("Iterator[tuple[BezierSegment, int]]", path.iter_bezier())
    points = np.concatenate([curve(along) for curve, _ in curves])
    hull = points[ConvexHull(points).vertices].T
    cap_height = np.ptp(hull[1]) if character == "H" else _outline("H", style).cap_height
    return _Outline(path, hull, float(cap_height))


# ---- images from disk ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Dataset:
    """Images, and what training on them and measuring against them need to know.

    name: "digits", "glyphs", or the folder as it was given.
    kind: "digits", "glyphs", "images", "idx" or "cifar-10": what was read.
    images: float32 (N, C, H, W) in [−1, 1].
    labels: int64 (N,), or None where the data has none.
    classes: the classes' names, in the order of their labels; empty without labels.
    levels: K, the number of values that a pixel can have: −1 + 2k/(K−1) for k = 0, …, K−1.
    passed_over: files in a folder of images that are neither PNG nor JPEG by their names.
    """

    name: str
    kind: str
    split: str
    images: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]
    levels: int
    passed_over: tuple[str, ...] = ()

    def __str__(self) -> str:
        count, channels, height, width = self.images.shape
        colour = {1: "grey", 3: "RGB"}[channels]
        words = f"{self.name} ({self.split}): {count:,} {colour} images, {height}×{width}, "
        words += f"{self.levels} levels"
        if self.classes:
            words += f", {len(self.classes)} classes"
        if self.passed_over:
            words += f"; {len(self.passed_over)} other files passed over"
            words += f" ({', '.join(self.passed_over[:3])}{', …' * (len(self.passed_over) > 3)})"
        return words


def load(
    spec: str | Path, split: str, *, size: int | None = None, channels: int | None = None
) -> Dataset:
    """The images that `spec` names, scaled to [−1, 1].

    "digits" and "glyphs" are the book's own (a folder of that name is "./digits"). Glyphs are the
    first 22,680 of the seed 0: each of the 36 characters in each of the 21 styles 30 times. Of
    each character in each style every tenth is held out, which leaves 20,412 to train on and 2,268
    held out. Both are draws of one law, as tests for memorising need, and both have all outlines:
    the split measures generalisation to new sizes, slants, strokes and places, not to new
    characters or styles (for that, choose by the labels and styles of `glyphs`).

    Any other spec is a folder:

    - **PNG and JPEG files**, 8-bit grey or RGB. If there are sub-folders, each is a class, with all
      that is in it and below. Held out is every tenth image of each class in the order of the
      file names: a rule, not a draw, so neither a seed nor a library's version changes it. Near
      duplicates that follow one another (frames of a film) fall on both sides of such a split.
      A JPEG's orientation tag is obeyed.
    - **MNIST's files**, and those of all data sets in its format (Fashion-MNIST, KMNIST):
      train-images-idx3-ubyte and three more, as they are or .gz. Held out are the t10k files.
    - **CIFAR-10's binary version**: data_batch_1.bin to data_batch_5.bin; held out is
      test_batch.bin. Pickles (the Python version) are refused: unpickling runs whatever
      program is in the file.

    Args:
        spec: "digits", "glyphs" or a folder.
        split: "train", "heldout" or "all".
        size: for PNG and JPEG only: cut each image's central square out and shrink it to
            size×size. Without it, all images must have one size already.
        channels: for PNG and JPEG only: 1 converts all to grey, 3 to RGB. Without it, all must
            be grey or all RGB already.

    Source: the formats are described at https://www.cs.toronto.edu/~kriz/cifar.html (binary
        version) and, for idx, at http://yann.lecun.com/exdb/mnist/.
    Raises:
        ValueError: if split, size or channels is out of range, nothing is found, or a file is
            corrupt, truncated, or of another size or kind than the others; the file is named.
        OSError: if a file cannot be read, or matplotlib came without its fonts.
    """
    _check_split(split)
    kind = str(spec) if spec in ("digits", "glyphs") else _kind_of(Path(spec))
    if kind == "images":
        return _load_folder(Path(spec), split, size, channels)
    if size is not None or channels is not None:
        raise ValueError(f"size and channels are for folders of PNG and JPEG files, not {kind}.")
    if kind == "digits":
        classes = tuple("0123456789")
        return Dataset("digits", kind, split, *digits(split), classes, DIGITS_LEVELS)
    if kind == "glyphs":
        return Dataset("glyphs", kind, split, *_glyph_set(split), GLYPHS, 256)
    read = {"idx": _idx_part, "cifar-10": _cifar_part}[kind]
    parts = [read(Path(spec), part) for part in ("train", "heldout") if split in (part, "all")]
    shapes = {pixels.shape[1:] for pixels, _ in parts}
    if len(shapes) > 1:
        raise ValueError(f"the training and test images of {spec} differ in size.")
    labels = torch.from_numpy(np.concatenate([labels for _, labels in parts])).to(torch.int64)
    pixels = np.concatenate([pixels for pixels, _ in parts])
    names = _CIFAR_CLASSES if kind == "cifar-10" else tuple(map(str, range(int(labels.max()) + 1)))
    return Dataset(str(spec), kind, split, _from_bytes(pixels), labels, names, 256)


def _from_bytes(pixels: np.ndarray) -> Tensor:
    """Level k of 0..255 becomes 2k/255 − 1: float32, −1 and 1 exactly."""
    return torch.from_numpy(pixels).to(torch.float32).div_(127.5).sub_(1)


def _kind_of(folder: Path) -> str:
    """What a folder holds, by the names of its files."""
    if folder.is_file():
        raise ValueError(f"{folder} is a file: name the folder it is in (unpacked, if packed).")
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; the data is digits, glyphs or a folder.")
    names = {path.name for path in folder.iterdir()}
    found = []
    if any(_idx_name(part, what) & names for part in _IDX_PARTS for what in _IDX_MAGIC):
        found.append("idx")
    if names & {*_CIFAR_FILES["train"], *_CIFAR_FILES["heldout"]}:
        found.append("cifar-10")
    if not found and names & {"data_batch_1", "test_batch", "batches.meta"}:
        raise ValueError(
            f"{folder} holds CIFAR-10 as Python pickles, and reading a pickle can run any program "
            "that its author put in: use the binary version (data_batch_1.bin, …)."
        )
    if any(_is_image(path) for path in folder.rglob("*")):
        found.append("images")
    if len(found) != 1:
        what = (
            f"files of more than one kind ({', '.join(found)})"
            if found
            else ("neither PNG or JPEG files, nor MNIST's idx files, nor CIFAR-10's .bin files")
        )
        raise ValueError(f"{folder} holds {what}.")
    return found[0]


# ---- a folder of PNG and JPEG files ----

_SUFFIXES = (".png", ".jpg", ".jpeg")
_SPLIT_NAMES = {"train", "training", "test", "testing", "val", "valid", "validation"}
_TRANSPOSED = (5, 6, 7, 8)  # the EXIF orientations that exchange width and height
_ORIENTATION = 0x0112


def _is_image(path: Path) -> bool:
    hidden = path.name.startswith(".")
    return not hidden and path.suffix.lower() in _SUFFIXES and path.is_file()


def _load_folder(folder: Path, split: str, size: int | None, channels: int | None) -> Dataset:
    _check_image_options(size, channels)
    files, classes = _list_images(folder)
    label_of = {name: label for label, name in enumerate(classes)}
    labels = torch.tensor(
        [label_of[path.relative_to(folder).parts[0]] if classes else 0 for path in files]
    )
    # every file's header is looked at, also of those that are not in this split: an image that
    # does not fit is better met before training than after it
    formats = {path: _header(path, size, channels) for path in files}
    _check_alike(formats, size)
    chosen = torch.ones(len(files), dtype=torch.bool)
    if split != "all":
        held_out = _every_nth_of_each_class(labels, 10)
        chosen = held_out if split == "heldout" else ~held_out
    if not chosen.any():
        raise ValueError(
            f"nothing of {folder} is held out: of each class it is every tenth image, and no class "
            "has ten."
        )
    pixels = [
        _pixels(path, size, formats[path])
        for path, wanted in zip(files, chosen.tolist(), strict=True)
        if wanted
    ]
    others = tuple(
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".") and not _is_image(path)
    )
    kept = labels[chosen] if classes else None
    images = _from_bytes(np.stack(pixels))
    return Dataset(str(folder), "images", split, images, kept, classes, 256, others)


def _check_image_options(size: int | None, channels: int | None) -> None:
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(f"size must be an int of at least 1, got {size!r}.")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {channels!r}.")


def _list_images(folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    """The images in the order of their names, and the names of the classes, if there are any."""
    files = sorted(path for path in folder.rglob("*") if _is_image(path))
    places = {path: path.relative_to(folder).parts for path in files}
    loose = [path for path in files if len(places[path]) == 1]
    classes = sorted({parts[0] for parts in places.values() if len(parts) > 1})
    if loose and classes:
        raise ValueError(
            f"{folder} holds images both by themselves ({loose[0].name}) and in sub-folders "
            f"({classes[0]}): sub-folders are classes, and an image outside has none."
        )
    if classes and {name.lower() for name in classes} <= _SPLIT_NAMES:
        raise ValueError(
            f"the sub-folders of {folder} ({', '.join(classes)}) look like a split, and would be "
            "taken for classes: name one of them as the data."
        )
    return files, tuple(classes)


@dataclass(frozen=True)
class _Format:
    width: int
    height: int
    mode: str  # "L" or "RGB": what the image is, or is to be converted to


def _header(path: Path, size: int | None, channels: int | None) -> _Format:
    """Size and mode of an image, without decoding it."""
    with _opened(path) as image:
        width, height = image.size
        mode = image.mode
        transparent = "a" in mode.lower() or "transparency" in image.info
        # asking a PNG for its EXIF data would decode it
        if image.format == "JPEG" and image.getexif().get(_ORIENTATION) in _TRANSPOSED:
            width, height = height, width
    if transparent:
        raise ValueError(f"{path} has transparent pixels: lay it on a background first.")
    convertible = mode in ("1", "P", "CMYK")
    if mode not in ("L", "RGB") and not (convertible and channels is not None):
        hint = ": give channels (--channels 1 or 3) to convert it" if convertible else ""
        raise ValueError(f"{path} is neither 8-bit grey nor RGB, but {mode!r}{hint}.")
    if size is not None and min(width, height) < size:
        raise ValueError(
            f"{path} is {height}×{width} and does not fill {size}×{size}: enlarged images teach a "
            "network to blur."
        )
    return _Format(width, height, mode if channels is None else {1: "L", 3: "RGB"}[channels])


def _check_alike(formats: dict[Path, _Format], size: int | None) -> None:
    """Refuse two sizes or two kinds, naming the first file and the first that differs from it."""
    (first, reference), *rest = formats.items()
    for path, other in rest:
        if other.mode != reference.mode:
            words = {"L": "grey", "RGB": "RGB"}
            raise ValueError(
                f"{first} is {words[reference.mode]} and {path} is {words[other.mode]}: give "
                "channels (--channels 1 or 3) to convert them."
            )
        if size is None and (other.width, other.height) != (reference.width, reference.height):
            raise ValueError(
                f"{first} is {reference.height}×{reference.width} and {path} is "
                f"{other.height}×{other.width}: give a size (--size) to cut and shrink them to."
            )


def _pixels(path: Path, size: int | None, expected: _Format) -> np.ndarray:
    """One image, uint8 (C, H, W)."""
    from PIL import Image, ImageOps

    with _opened(path) as image:
        image.load()
        upright = ImageOps.exif_transpose(image).convert(expected.mode)
    if size is not None:
        side = min(upright.size)
        left, top = ((length - side) // 2 for length in upright.size)
        # crop first: resize(box=…) would average over pixels outside of the box as well
        square = upright.crop((left, top, left + side, top + side))
        upright = square.resize((size, size), Image.Resampling.BICUBIC)
    elif upright.size != (expected.width, expected.height):
        raise ValueError(f"{path} is turned by its orientation tag: give a size (--size).")
    array = np.asarray(upright)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


@contextmanager
def _opened(path: Path) -> Iterator[Image]:
    """The image, while inside; what Pillow finds wrong with it is said in a sentence."""
    from PIL import Image, UnidentifiedImageError

    broken = (OSError, SyntaxError, ValueError, EOFError, struct.error)
    with path.open("rb") as file:  # outside the try: a file that may not be read is not corrupt
        try:
            yield Image.open(file, formats=("PNG", "JPEG"))
        except UnidentifiedImageError:
            raise ValueError(f"{path} is neither a PNG nor a JPEG file, or is corrupt.") from None
        except (*broken, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} is corrupt or truncated: {error}.") from None


# ---- MNIST's files ----

_IDX_PARTS = {"train": "train", "heldout": "t10k"}
_IDX_MAGIC = {"images-idx3": 0x0803, "labels-idx1": 0x0801}  # unsigned bytes, 3 or 1 dimensions


def _idx_name(part: str, what: str) -> set[str]:
    """The names that the file goes by: as published, and as some tools unpack it."""
    stem = f"{_IDX_PARTS[part]}-{what}-ubyte"
    plain = {stem, stem.replace("-idx", ".idx")}
    return plain | {f"{name}.gz" for name in plain}


def _idx_part(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 1, H, W) and labels uint8 (N,) of one part."""
    images, labels = (_idx_file(folder, part, what) for what in _IDX_MAGIC)
    if len(images) != len(labels):
        raise ValueError(
            f"{folder} has {len(images)} {part} images, but {len(labels)} labels for them."
        )
    return images[:, None], labels


def _idx_file(folder: Path, part: str, what: str) -> np.ndarray:
    names = sorted(_idx_name(part, what))
    # an unpacked file before a packed one, if both are there
    there = sorted(filter(Path.is_file, (folder / name for name in names)), key=_is_packed)
    if not there:
        raise ValueError(f"{folder} lacks {_IDX_PARTS[part]}-{what}-ubyte, as it is or as .gz.")
    path, magic = there[0], _IDX_MAGIC[what]
    data = _unpacked(path)
    dimensions = magic & 0xFF
    start = 4 * (1 + dimensions)
    if len(data) >= 4 and data[:4] != magic.to_bytes(4, "big"):
        raise ValueError(
            f"{path} is not an idx file of {what.partition('-')[0]}: it starts with "
            f"0x{data[:4].hex()}, not with 0x{magic:08x}."
        )
    if len(data) < start:
        raise ValueError(f"{path} is truncated: it ends within its header.")
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    if math.prod(shape) == 0:
        raise ValueError(f"{path} is empty: its header says {'×'.join(map(str, shape))}.")
    promised = start + math.prod(shape)
    if len(data) != promised:
        wrong = "is truncated" if len(data) < promised else "is corrupt"
        raise ValueError(
            f"{path} {wrong}: its header promises {promised:,} bytes, and it has {len(data):,}."
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _is_packed(path: Path) -> bool:
    return path.suffix == ".gz"


def _unpacked(path: Path) -> bytes:
    packed = path.read_bytes()
    if not _is_packed(path):
        return packed
    try:
        return gzip.decompress(packed)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is corrupt or truncated: {error}.") from None


# ---- CIFAR-10's binary version ----

_CIFAR_FILES = {
    "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    "heldout": ("test_batch.bin",),
}
# fmt: off
_CIFAR_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)
# fmt: on
_CIFAR_IMAGES = 10_000  # in each file
_CIFAR_SHAPE = (3, 32, 32)


def _cifar_part(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 3, 32, 32) and labels uint8 (N,) of one part."""
    records = np.concatenate([_cifar_file(folder / name) for name in _CIFAR_FILES[part]])
    return records[:, 1:].reshape(-1, *_CIFAR_SHAPE), records[:, 0]


def _cifar_file(path: Path) -> np.ndarray:
    """Records of a label and 3,072 values (red, green, blue; each row by row), uint8 (N, 3073)."""
    if not path.is_file():
        raise ValueError(f"{path.parent} lacks {path.name}.")
    data = np.frombuffer(path.read_bytes(), np.uint8)
    record = 1 + math.prod(_CIFAR_SHAPE)
    promised = _CIFAR_IMAGES * record
    if len(data) != promised:
        wrong = "is truncated" if len(data) < promised else "is corrupt"
        raise ValueError(
            f"{path} {wrong}: {_CIFAR_IMAGES:,} images take {promised:,} bytes, and it has "
            f"{len(data):,}."
        )
    records = data.reshape(-1, record)
    highest = int(records[:, 0].max())
    if highest >= len(_CIFAR_CLASSES):
        raise ValueError(f"{path} is corrupt: it has the label {highest}, and labels are 0..9.")
    return records


# ---- point sets in the plane --------------------------------------------------------------------


def toy(
    name: str, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Tensor:
    """n points in the plane, (n, 2), centred near 0 with coordinates of size about 1.

    Drawn in float64 and then cast, so one seed gives the same points in every dtype.

    Args:
        name: "mixture" and "ring-of-gaussians" (whose exact law is `toy_law(name)`),
            "two-moons", "spiral", "swiss-roll", "checkerboard".

    Raises:
        ValueError: if the name is none of these, or n < 1.
    """
    if name not in TOYS:
        raise ValueError(f"the toy must be one of {', '.join(TOYS)}, got {name!r}.")
    _check_count("points", n)
    if name in _LAWS:
        return toy_law(name).sample(n, generator).to(dtype)
    return _DRAWS[name](n, generator).to(dtype)


def toy_law(name: str) -> GaussianMixture:
    """The exact law of the toys that are mixtures of Gaussians.

    Raises:
        ValueError: if the toy has no such law.
    """
    if name not in _LAWS:
        raise ValueError(f"the toys with an exact law are {', '.join(_LAWS)}; {name!r} is not one.")
    return _LAWS[name]()


def _mixture() -> GaussianMixture:
    """Three unequal components, one round, one narrow and slanted, one broad: nothing symmetric."""
    return GaussianMixture(
        weights=[0.5, 0.3, 0.2],
        means=[[-1.2, -0.6], [1.0, 0.9], [0.9, -1.3]],
        covariances=[
            [[0.10, 0.00], [0.00, 0.10]],
            [[0.20, 0.15], [0.15, 0.14]],
            [[0.25, -0.05], [-0.05, 0.08]],
        ],
    )


def _ring_of_gaussians() -> GaussianMixture:
    """Eight equal round components of standard deviation 0.12 on a circle of radius 1.4."""
    angle = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
    centres = 1.4 * torch.stack([angle.cos(), angle.sin()], dim=1)
    round_ = 0.12**2 * torch.eye(2, dtype=torch.float64)
    return GaussianMixture([1 / 8] * 8, centres, round_.expand(8, 2, 2))


def _two_moons(n: int, generator: torch.Generator) -> Tensor:
    """Two interleaved half circles with a little noise."""
    angle = math.pi * _uniform(n, generator)
    upper = _coin(n, generator)
    x = torch.where(upper, angle.cos(), 1 - angle.cos()) - 0.5
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin()) - 0.25
    return 1.3 * torch.stack([x, y], dim=1) + 0.08 * _normal(n, generator)


def _spiral(n: int, generator: torch.Generator) -> Tensor:
    """Two arms that wind outwards, each the other turned by half a circle."""
    turn = _uniform(n, generator).sqrt()  # the root spreads points evenly along the arm
    sign = torch.where(_coin(n, generator), 1.0, -1.0).to(torch.float64)
    return sign[:, None] * _wound(turn, turns=1.25) + 0.05 * _normal(n, generator)


def _swiss_roll(n: int, generator: torch.Generator) -> Tensor:
    """One arm that winds outwards and starts away from the centre."""
    turn = (0.1 + 0.9 * _uniform(n, generator)).sqrt()
    return _wound(turn, turns=2.0) + 0.05 * _normal(n, generator)


def _checkerboard(n: int, generator: torch.Generator) -> Tensor:
    """Uniform on the eight dark squares of a 4×4 board with side 4: density 1/8 there, else 0."""
    column = torch.randint(4, (n,), generator=generator, device=generator.device).cpu()
    row = 2 * torch.randint(2, (n,), generator=generator, device=generator.device).cpu()
    corner = torch.stack([column, row + column % 2], dim=1)
    return corner + torch.stack([_uniform(n, generator), _uniform(n, generator)], dim=1) - 2


_LAWS: dict[str, Callable[[], GaussianMixture]] = {
    "mixture": _mixture,
    "ring-of-gaussians": _ring_of_gaussians,
}
_DRAWS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "two-moons": _two_moons,
    "spiral": _spiral,
    "swiss-roll": _swiss_roll,
    "checkerboard": _checkerboard,
}
TOYS = (*_LAWS, *_DRAWS)


def _wound(turn: Tensor, turns: float) -> Tensor:
    """The point at radius 2·turn and angle 2π·turns·turn of a spiral with equal gaps."""
    angle = 2 * math.pi * turns * turn
    return 2 * turn[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)


def _check_count(what: str, n: int) -> None:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"the number of {what} must be an int of at least 1, got {n!r}.")


def _uniform(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator, dtype=torch.float64, device=generator.device).cpu()


def _coin(n: int, generator: torch.Generator) -> Tensor:
    return _uniform(n, generator) < 0.5


def _normal(n: int, generator: torch.Generator) -> Tensor:
    shape = (n, 2)
    return torch.randn(
        shape, generator=generator, dtype=torch.float64, device=generator.device
    ).cpu()

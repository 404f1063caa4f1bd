"""Images read from disk: right when the files are right, and named when they are not."""

import gzip
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_lite import data
from ddpm_lite.data import digits, load


def random_pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def level(images):
    """Back from [−1, 1] to 0..255, which must be whole numbers to float32's precision."""
    exact = (images.double() + 1) * 127.5
    assert (exact - exact.round()).abs().max() < 1e-4
    return exact.round().to(torch.uint8).numpy()


def complaint(spec, split="train", **options):
    """What `load` says in refusing: one sentence on one line."""
    with pytest.raises(ValueError) as refused:
        load(spec, split, **options)
    words = str(refused.value)
    assert words.endswith(".") and "\n" not in words
    return words


# ---- digits ----


@pytest.mark.parametrize("split", ["train", "heldout", "all"])
def test_digits_are_the_books_own(split):
    loaded = load("digits", split)
    images, labels = digits(split)
    assert torch.equal(loaded.images, images) and torch.equal(loaded.labels, labels)
    assert (loaded.name, loaded.kind, loaded.levels) == ("digits", "digits", 17)
    assert loaded.classes == tuple("0123456789")


def test_digits_are_the_books_own_beside_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder_of_images(tmp_path / "digits")
    assert load("digits", "train").levels == 17
    assert load("./digits", "train").levels == 256


def test_a_data_set_says_what_it_is():
    assert str(load("digits", "train")) == (
        "digits (train): 1,442 grey images, 8×8, 17 levels, 10 classes"
    )


# ---- a folder of images ----


def folder_of_images(folder, count=3, size=(6, 5), mode="L", suffix=".png", seed=0):
    """`count` images of height×width = size; returns their pixels in the order of the names."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = (count, *size) if mode == "L" else (count, *size, 3)
    pixels = random_pixels(*shape, seed=seed)
    for i, image in enumerate(pixels):
        Image.fromarray(image, mode=None).save(folder / f"{i:03d}{suffix}")
    return pixels


def test_grey_images_arrive_pixel_for_pixel(tmp_path):
    pixels = folder_of_images(tmp_path, count=4)
    loaded = load(tmp_path, "train")
    assert loaded.images.dtype == torch.float32 and loaded.images.shape == (4, 1, 6, 5)
    assert np.array_equal(level(loaded.images)[:, 0], pixels)
    assert loaded.labels is None and loaded.classes == () and loaded.levels == 256
    assert loaded.kind == "images" and loaded.name == str(tmp_path)


def test_colours_arrive_as_red_green_blue(tmp_path):
    pixels = folder_of_images(tmp_path, mode="RGB")
    images = load(str(tmp_path), "train").images
    assert np.array_equal(level(images), pixels.transpose(0, 3, 1, 2))


def test_black_and_white_are_minus_one_and_one_exactly(tmp_path):
    Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).save(tmp_path / "a.png")
    assert load(tmp_path, "train").images.flatten().tolist() == [-1, 1]


def test_a_level_is_where_the_decoder_expects_it(tmp_path):
    """Level k of K = 256 lies at −1 + 2k/(K − 1), to one rounding."""
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(tmp_path / "a.png")
    loaded = load(tmp_path, "train")
    k = torch.arange(256, dtype=torch.float64)
    expected = -1 + 2 * k / (loaded.levels - 1)
    assert (loaded.images.flatten().double() - expected).abs().max() < 2e-7


def test_jpegs_are_read_and_suffixes_may_be_capitals(tmp_path):
    smooth = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    for name in ("a.jpg", "b.JPEG", "c.PNG"):
        kind = "PNG" if name.endswith("PNG") else "JPEG"
        Image.fromarray(smooth).save(tmp_path / name, format=kind, quality=95)
    images = load(tmp_path, "train").images
    assert len(images) == 3
    assert np.abs(level(images).astype(int) - smooth).max() < 8


def test_images_stand_in_the_order_of_their_names(tmp_path):
    for name, value in (("b", 20), ("a", 10), ("c", 30)):
        Image.new("L", (2, 2), value).save(tmp_path / f"{name}.png")
    assert level(load(tmp_path, "all").images)[:, 0, 0, 0].tolist() == [10, 20, 30]


def test_sub_folders_are_classes_with_all_that_is_below(tmp_path):
    folder_of_images(tmp_path / "dog" / "small", count=2)
    folder_of_images(tmp_path / "cat", count=3)
    (tmp_path / "empty").mkdir()
    loaded = load(tmp_path, "train")
    assert loaded.classes == ("cat", "dog")
    assert loaded.labels.tolist() == [0, 0, 0, 1, 1] and loaded.labels.dtype == torch.int64


def test_every_tenth_of_each_class_is_held_out(tmp_path):
    values = {}
    for name, count in (("a", 23), ("b", 9), ("c", 10)):
        folder_of_images(tmp_path / name, count=count, seed=ord(name))
        values[name] = level(load(tmp_path / name, "all").images)
    heldout, train, whole = (load(tmp_path, split) for split in ("heldout", "train", "all"))
    expected = [values["a"][9], values["a"][19], values["c"][9]]
    assert np.array_equal(level(heldout.images), np.stack(expected))
    assert heldout.labels.tolist() == [0, 0, 2]
    assert heldout.classes == train.classes == ("a", "b", "c")
    assert len(train.images) == 39 and train.labels.bincount().tolist() == [21, 9, 9]
    rows = {split: {i.tobytes() for i in level(part.images)}
            for split, part in (("held", heldout), ("train", train), ("all", whole))}  # fmt: skip
    assert not rows["held"] & rows["train"]
    assert rows["held"] | rows["train"] == rows["all"]


def test_too_few_images_to_hold_any_out_is_said(tmp_path):
    folder_of_images(tmp_path, count=9)
    assert "nothing of" in complaint(tmp_path, "heldout")
    assert len(load(tmp_path, "train").images) == 9


def test_other_files_are_passed_over_and_listed(tmp_path):
    folder_of_images(tmp_path)
    for name in ("notes.txt", "film.gif", "d.webp", "x.bmp"):
        (tmp_path / name).write_bytes(b"anything")
    for name in (".DS_Store", "._000.png"):
        (tmp_path / name).write_bytes(b"anything")
    loaded = load(tmp_path, "train")
    assert loaded.passed_over == ("d.webp", "film.gif", "notes.txt", "x.bmp")
    assert str(loaded).endswith("; 4 other files passed over (d.webp, film.gif, notes.txt, …)")
    assert len(loaded.images) == 3


def test_size_takes_the_central_square_and_averages(tmp_path):
    """Blocks of one colour in a wide picture: only the middle counts, and shrinks to its blocks."""
    blocks = np.array([[10, 200], [90, 40]], dtype=np.uint8)
    middle = np.kron(blocks, np.ones((40, 40), np.uint8))
    wide = np.full((80, 140), 255, np.uint8)
    wide[:, 30:110] = middle
    Image.fromarray(wide).save(tmp_path / "a.png")
    Image.fromarray(wide.T.copy()).save(tmp_path / "b.png")
    images = level(load(tmp_path, "train", size=8).images).astype(int)[:, 0]
    assert images.shape == (2, 8, 8)
    for got, block in ((images[0], blocks), (images[1], blocks.T)):
        for row in (1, 6):  # away from the edges between blocks
            for column in (1, 6):
                assert abs(got[row, column] - int(block[row // 4, column // 4])) <= 2


def test_size_leaves_an_image_of_that_size_alone(tmp_path):
    pixels = folder_of_images(tmp_path, size=(8, 8))
    assert np.array_equal(level(load(tmp_path, "train", size=8).images)[:, 0], pixels)


def test_an_image_smaller_than_the_size_is_named(tmp_path):
    folder_of_images(tmp_path, size=(7, 9))
    words = complaint(tmp_path, size=8)
    assert "000.png is 7×9 and does not fill 8×8" in words


def test_channels_converts(tmp_path):
    folder_of_images(tmp_path, count=1, size=(6, 5))
    Image.new("RGB", (5, 6), (255, 0, 0)).save(tmp_path / "z.png")
    Image.new("P", (5, 6), 0).save(tmp_path / "y.png")
    assert load(tmp_path, "train", channels=3).images.shape == (3, 3, 6, 5)
    grey = level(load(tmp_path, "train", channels=1).images)
    assert grey.shape == (3, 1, 6, 5)
    assert set(grey[2].flatten().tolist()) == {76}  # 0.299·255: ITU-R 601's luma of pure red


def test_a_camera_held_upright_gives_an_upright_image(tmp_path):
    picture = np.zeros((16, 8), np.uint8)
    picture[:8] = 255  # bright above
    turned = Image.fromarray(np.rot90(picture).copy())  # stored on its side …
    exif = Image.Exif()
    exif[0x0112] = 6  # … to be turned by a quarter clockwise when shown
    turned.save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = level(load(tmp_path, "train").images)[0, 0].astype(int)
    assert image.shape == (16, 8)
    assert image[:6].min() > 200 and image[10:].max() < 50


def test_mixed_sizes_are_named(tmp_path):
    folder_of_images(tmp_path, size=(6, 5))
    Image.new("L", (5, 7)).save(tmp_path / "odd.png")
    words = complaint(tmp_path)
    assert "000.png is 6×5 and" in words and "odd.png is 7×5" in words and "--size" in words


def test_grey_among_colours_is_named(tmp_path):
    folder_of_images(tmp_path, mode="RGB")
    Image.new("L", (5, 6)).save(tmp_path / "odd.png")
    words = complaint(tmp_path)
    assert "000.png is RGB and" in words and "odd.png is grey" in words


def test_an_image_that_does_not_fit_is_met_in_either_split(tmp_path):
    """The tenth image is held out, and its size matters to training all the same."""
    folder_of_images(tmp_path, count=9)
    Image.new("L", (50, 50)).save(tmp_path / "z.png")
    assert "z.png is 50×50" in complaint(tmp_path, "train")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Image.new("RGBA", (5, 6)), "has transparent pixels"),
        (lambda: Image.new("LA", (5, 6)), "has transparent pixels"),
        (lambda: Image.new("I;16", (5, 6)), "neither 8-bit grey nor RGB, but 'I;16'."),
        (lambda: Image.new("P", (5, 6)), "neither 8-bit grey nor RGB, but 'P': give channels"),
        (lambda: Image.new("1", (5, 6)), "neither 8-bit grey nor RGB, but '1': give channels"),
    ],
)
def test_an_image_of_another_kind_is_named(tmp_path, make, says):
    folder_of_images(tmp_path)
    make().save(tmp_path / "odd.png")
    words = complaint(tmp_path)
    assert "odd.png" in words and says in words
    if "transparent" in says or "16" in says:
        assert "odd.png" in complaint(tmp_path, channels=1)


def test_one_transparent_colour_is_transparent_too(tmp_path):
    Image.new("RGB", (5, 6)).save(tmp_path / "odd.png", transparency=(0, 0, 0))
    assert "has transparent pixels" in complaint(tmp_path)


def encoded(kind):
    buffer = io.BytesIO()
    Image.fromarray(random_pixels(40, 40)).save(buffer, format=kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["png", "jpeg"])
@pytest.mark.parametrize("share", [0, 0.002, 0.02, 0.3, 0.6, 0.95])
def test_a_truncated_image_is_named(tmp_path, kind, share):
    whole = encoded(kind)
    path = tmp_path / f"a.{kind}"
    path.write_bytes(whole)
    load(tmp_path, "train")
    path.write_bytes(whole[: int(share * len(whole))])
    words = complaint(tmp_path)
    assert str(path) in words and "corrupt" in words


def test_a_damaged_png_is_named(tmp_path):
    """Its checksums see a flipped bit anywhere in the pixels."""
    whole = bytearray(encoded("png"))
    whole[len(whole) // 2] ^= 1
    (tmp_path / "a.png").write_bytes(whole)
    words = complaint(tmp_path)
    assert "a.png" in words and "corrupt" in words


@pytest.mark.parametrize("content", [b"", b"not an image", b"<svg/>", b"GIF89a" + bytes(50)])
def test_a_file_that_is_no_image_is_named(tmp_path, content):
    folder_of_images(tmp_path)
    (tmp_path / "b.jpg").write_bytes(content)
    assert "b.jpg is neither a PNG nor a JPEG file, or is corrupt" in complaint(tmp_path)


def test_another_format_under_a_name_of_these_is_named(tmp_path):
    Image.new("L", (5, 6)).save(tmp_path / "a.png", format="GIF")
    assert "a.png is neither a PNG nor a JPEG file" in complaint(tmp_path)


def test_a_picture_that_would_fill_the_memory_is_named(tmp_path):
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    bomb += struct.pack(">I", zlib.crc32(chunk)) + bytes(100)
    (tmp_path / "a.png").write_bytes(bomb)
    words = complaint(tmp_path)
    assert "a.png" in words


def test_images_inside_and_outside_of_classes_are_refused(tmp_path):
    folder_of_images(tmp_path)
    folder_of_images(tmp_path / "cats")
    words = complaint(tmp_path)
    assert "by themselves (000.png)" in words and "(cats)" in words


def test_a_split_is_not_taken_for_classes(tmp_path):
    folder_of_images(tmp_path / "train")
    folder_of_images(tmp_path / "Test")
    assert "(Test, train) look like a split" in complaint(tmp_path)


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_a_size_that_is_none_is_refused(tmp_path, size):
    folder_of_images(tmp_path)
    assert f"got {size!r}" in complaint(tmp_path, size=size)


def test_two_channels_are_refused(tmp_path):
    folder_of_images(tmp_path)
    assert "channels must be 1 (grey) or 3 (RGB), got 2" in complaint(tmp_path, channels=2)


# ---- MNIST's files ----


def idx(array):
    """`array` of unsigned bytes as the bytes of an idx file."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


PARTS = {"train": ("train", 12), "heldout": ("t10k", 5)}


@pytest.fixture
def mnist(tmp_path):
    """A tiny folder in MNIST's format, and what is in it."""
    content = {}
    for seed, (part, (stem, count)) in enumerate(PARTS.items()):
        images = random_pixels(count, 4, 3, seed=seed)
        labels = random_pixels(count, seed=seed) % 10
        labels[0] = 9
        (tmp_path / f"{stem}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / f"{stem}-labels-idx1-ubyte").write_bytes(idx(labels))
        content[part] = images, labels
    return tmp_path, content


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_idx_files_arrive_byte_for_byte(mnist, part):
    folder, content = mnist
    loaded = load(folder, part)
    images, labels = content[part]
    assert loaded.images.dtype == torch.float32 and loaded.images.shape == (len(images), 1, 4, 3)
    assert np.array_equal(level(loaded.images)[:, 0], images)
    assert loaded.labels.tolist() == labels.tolist() and loaded.labels.dtype == torch.int64
    assert (loaded.kind, loaded.levels) == ("idx", 256)
    assert loaded.classes == tuple("0123456789")


def test_all_is_training_and_test_files_one_after_the_other(mnist):
    folder, content = mnist
    loaded = load(folder, "all")
    both = np.concatenate([images for images, _ in content.values()])
    assert np.array_equal(level(loaded.images)[:, 0], both)


def test_packed_and_renamed_idx_files_are_the_same(mnist):
    folder, _ = mnist
    before = load(folder, "train")
    for path in list(folder.iterdir()):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert torch.equal(load(folder, "train").images, before.images)
    for path in list(folder.iterdir()):
        name = path.name.replace("-idx", ".idx").removesuffix(".gz")
        path.with_name(name).write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert torch.equal(load(folder, "train").images, before.images)


def test_an_unpacked_idx_file_comes_before_a_packed_one(mnist):
    folder, _ = mnist
    before = load(folder, "train")
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"not gzip")
    assert torch.equal(load(folder, "train").images, before.images)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("what", ["images-idx3", "labels-idx1"])
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data[:3], "truncated: it ends within its header"),
        (lambda data: data[:7], "truncated: it ends within its header"),
        (lambda data: b"", "truncated: it ends within its header"),
        (lambda data: data[:-1], "is truncated: its header promises"),
        (lambda data: data + b"\0", "is corrupt: its header promises"),
        (lambda data: data[:3] + b"\x02" + data[4:], "starts with 0x00000802, not with 0x000"),
        (lambda data: b"\x7fELF" + data[4:], "it starts with 0x7f454c46"),
        (lambda data: data[:4] + b"\xff" + data[5:], "is truncated: its header promises"),
        (lambda data: data[:4] + bytes(4) + data[8:], "is empty: its header says 0"),
    ],
)  # fmt: skip
def test_a_damaged_idx_file_is_named(mnist, packed, what, damage, says):
    folder, _ = mnist
    path = folder / f"train-{what}-ubyte"
    data = damage(path.read_bytes())
    path.unlink()
    name = path.name + (".gz" if packed else "")
    (folder / name).write_bytes(gzip.compress(data) if packed else data)
    words = complaint(folder)
    assert f"{name} " in words and says in words


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-9], lambda d: d[:12], lambda d: b"", lambda d: d[4:]]
)
def test_a_damaged_gzip_file_is_named(mnist, damage):  # fmt: skip
    folder, _ = mnist
    path = folder / "train-images-idx3-ubyte"
    whole = gzip.compress(path.read_bytes())
    path.unlink()
    (folder / f"{path.name}.gz").write_bytes(damage(whole))
    words = complaint(folder)
    assert f"{path.name}.gz is" in words and "truncated" in words


def test_a_bit_that_flips_in_a_gzip_file_is_noticed(mnist):
    folder, _ = mnist
    path = folder / "train-images-idx3-ubyte"
    whole = bytearray(gzip.compress(path.read_bytes()))
    path.unlink()
    whole[len(whole) // 2] ^= 4
    (folder / f"{path.name}.gz").write_bytes(whole)
    assert f"{path.name}.gz is corrupt" in complaint(folder)


def test_images_and_labels_must_be_as_many(mnist):
    folder, _ = mnist
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(11, np.uint8)))
    assert "has 12 train images, but 11 labels" in complaint(folder)


@pytest.mark.parametrize("what", ["images-idx3", "labels-idx1"])
@pytest.mark.parametrize("part", ["train", "heldout"])
def test_a_missing_idx_file_is_named(mnist, part, what):
    folder, _ = mnist
    name = f"{PARTS[part][0]}-{what}-ubyte"
    (folder / name).unlink()
    assert f"lacks {name}, as it is or as .gz" in complaint(folder, part)


def test_test_images_of_another_size_are_refused(mnist):
    folder, _ = mnist
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx(random_pixels(5, 3, 4)))
    assert "differ in size" in complaint(folder, "all")


# ---- CIFAR-10's binary version ----

IMAGES = 4  # in a file of the tests


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Five tiny batches and a test batch, and the records in them."""
    monkeypatch.setattr(data, "_CIFAR_IMAGES", IMAGES)
    content = {}
    for i, name in enumerate([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]):
        records = random_pixels(IMAGES, 3073, seed=i)
        records[:, 0] %= 10
        (tmp_path / name).write_bytes(records.tobytes())
        content[name] = records
    (tmp_path / "batches.meta.txt").write_text("airplane\n")
    (tmp_path / "readme.html").write_text("<html>")
    return tmp_path, content


def test_cifar_arrives_byte_for_byte(cifar):
    folder, content = cifar
    train, heldout, whole = (load(folder, split) for split in ("train", "heldout", "all"))
    records = np.concatenate([content[f"data_batch_{i}.bin"] for i in range(1, 6)])
    assert train.images.shape == (20, 3, 32, 32) and train.images.dtype == torch.float32
    assert train.labels.tolist() == records[:, 0].tolist()
    pixels = level(train.images)
    # the pixel in row r and column c of channel k is byte 1 + 1024k + 32r + c of its record
    for image, k, r, c in ((0, 0, 0, 1), (7, 1, 31, 2), (19, 2, 5, 30)):
        assert pixels[image, k, r, c] == records[image, 1 + 1024 * k + 32 * r + c]
    assert np.array_equal(pixels.reshape(20, -1), records[:, 1:])
    assert np.array_equal(level(heldout.images).reshape(4, -1), content["test_batch.bin"][:, 1:])
    assert torch.equal(whole.images, torch.cat([train.images, heldout.images]))
    assert (train.kind, train.levels, train.classes[6]) == ("cifar-10", 256, "frog")
    assert len(train.classes) == 10


def test_a_real_batch_has_ten_thousand_images():
    """https://www.cs.toronto.edu/~kriz/cifar.html: each file is 30,730,000 bytes long."""
    assert data._CIFAR_IMAGES * 3073 == 30_730_000


@pytest.mark.parametrize("name", ["data_batch_3.bin", "test_batch.bin"])
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda d: d[:-1], "is truncated: 4 images take 12,292 bytes, and it has 12,291"),
        (lambda d: d[:-3073], "is truncated: 4 images"),
        (lambda d: b"", "is truncated: 4 images"),
        (lambda d: d + b"\0", "is corrupt: 4 images"),
        (lambda d: d[:3073] + b"\x0a" + d[3074:], "is corrupt: it has the label 10"),
    ],
)
def test_a_damaged_batch_is_named(cifar, name, damage, says):
    folder, _ = cifar
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))
    words = complaint(folder, "all")
    assert f"{name} {says}" in words


@pytest.mark.parametrize("name", ["data_batch_1.bin", "data_batch_4.bin", "test_batch.bin"])
def test_a_missing_batch_is_named(cifar, name):
    folder, _ = cifar
    (folder / name).unlink()
    assert f"lacks {name}." in complaint(folder, "all")


def test_the_pickled_version_is_refused_with_the_reason(tmp_path):
    (tmp_path / "data_batch_1").write_bytes(b"\x80\x02}q\x01.")
    (tmp_path / "batches.meta").write_bytes(b"\x80\x02}q\x01.")
    words = complaint(tmp_path)
    assert "can run any program" in words and "data_batch_1.bin" in words


# ---- what is none of these ----


def test_a_folder_that_is_not_there(tmp_path):
    assert "there is no folder" in complaint(tmp_path / "nowhere")


@pytest.mark.parametrize("spec", ["Digits", "mnist", ""])
def test_a_name_that_is_none(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    complaint(spec)


def test_a_file_in_the_place_of_a_folder(tmp_path):
    packed = tmp_path / "cifar-10-binary.tar.gz"
    packed.write_bytes(b"")
    assert "is a file: name the folder it is in (unpacked, if packed)" in complaint(packed)


def test_a_folder_with_nothing_in_it(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    assert "neither PNG or JPEG files, nor MNIST's idx files, nor CIFAR-10's" in complaint(tmp_path)


def test_a_folder_with_two_kinds_of_data(mnist):
    folder, _ = mnist
    folder_of_images(folder / "more")
    assert "more than one kind (idx, images)" in complaint(folder)


@pytest.mark.parametrize("options", [{"size": 8}, {"channels": 1}])
def test_size_and_channels_are_for_png_and_jpeg(mnist, options):
    assert "not digits" in complaint("digits", **options)
    assert "not idx" in complaint(mnist[0], **options)


@pytest.mark.parametrize("split", ["test", "Train", None])
def test_an_unknown_split_is_refused(tmp_path, split):
    assert f"train, heldout, all, got {split!r}" in complaint("digits", split)


def test_a_file_that_may_not_be_read_is_not_called_corrupt(tmp_path, monkeypatch):
    folder_of_images(tmp_path)
    real = type(tmp_path).open

    def refuse(path, *rest, **options):
        if path.name == "001.png":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *rest, **options)

    monkeypatch.setattr(type(tmp_path), "open", refuse)
    with pytest.raises(PermissionError, match=r"001\.png"):
        load(tmp_path, "train")

"""Folders of image files: every kind of file, many sizes, splits, what is left out, and what stays in its file."""

import contextlib
import os
import socket
import struct
import threading
import time
import warnings
import weakref
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from bn_vuln import config, data
from bn_vuln.data import fingerprint, image_files, image_folder
from bn_vuln.data.images import LazyImages, decoded_ahead, lazy_images
from bn_vuln.errors import UsageError
from bn_vuln.runtime import threads

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (12, 17, 3), np.uint8)
GRAY = RNG.integers(0, 256, (12, 17), np.uint8)
COLOUR, GREY = Image.fromarray(RGB), Image.fromarray(GRAY)
GRAY_16 = GRAY.astype(np.uint16) * 257
PALETTE, GRAY_PALETTE = COLOUR.quantize(16), GREY.quantize(16)
COLOURS, GRAYS = np.asarray(PALETTE.convert("RGB")), np.asarray(GRAY_PALETTE.convert("L"))


def png_16(pixels, colour_type):
    """A PNG file of 16 bits a channel, which Pillow writes for gray images alone."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def oriented(number):
    exif = Image.Exif()
    exif[274] = number
    return exif


def save(image, **options):
    """A function that writes an image with Pillow to a path."""
    return lambda path: image.save(path, **options)


def write(content):
    return lambda path: path.write_bytes(content)


def read(path, *, exif=True):
    """Pixels [h, w] or [h, w, 3], which the header announces."""
    with image_files.quiet():
        header = image_files.read_header(path, exif=exif)
        image = image_files.decode(path, header.channels, exif=exif)
    assert (image.height, image.width, len(image.getbands())) == header
    return np.asarray(image)


EXACT = {  # file -> (what writes it, its pixels)
    "rgb.png": (save(COLOUR), RGB),
    "gray.png": (save(GREY), GRAY),
    "rgb.bmp": (save(COLOUR), RGB),
    "gray.bmp": (save(GREY), GRAY),
    "rgb.webp": (save(COLOUR, lossless=True), RGB),
    "rgb.tif": (save(COLOUR), RGB),
    "lzw.tif": (save(COLOUR, compression="tiff_lzw"), RGB),
    "rgb.ppm": (save(COLOUR), RGB),
    "palette.bmp": (save(PALETTE), COLOURS),
    "palette.png": (save(PALETTE), COLOURS),
    "palette.gif": (save(PALETTE), COLOURS),
    "palette.tif": (save(PALETTE), COLOURS),
    "gray-palette.bmp": (save(GRAY_PALETTE), GRAYS),
    "gray-palette.png": (save(GRAY_PALETTE), GRAYS),
    "gray-palette.gif": (save(GRAY_PALETTE), GRAYS),
    "transparent.png": (save(PALETTE, transparency=3), COLOURS),
    "transparencies.png": (save(PALETTE, transparency=bytes(range(16))), COLOURS),
    "transparent.gif": (save(PALETTE, transparency=3), COLOURS),
    "transparent-colour.png": (save(COLOUR, transparency=(1, 2, 3)), RGB),
    "rgba.png": (save(Image.fromarray(np.dstack([RGB, GRAY]))), RGB),
    "rgba.tif": (save(Image.fromarray(np.dstack([RGB, GRAY]))), RGB),
    "rgba.bmp": (save(Image.fromarray(np.dstack([RGB, GRAY]))), RGB),
    "rgba.webp": (save(Image.fromarray(np.dstack([RGB, GRAY])), lossless=True, exact=True), RGB),
    "la.png": (save(Image.merge("LA", [GREY, GREY.rotate(180)])), GRAY),
    "la.tif": (save(Image.merge("LA", [GREY, GREY.rotate(180)])), GRAY),
    "pa.tif": (save(PALETTE.convert("PA")), COLOURS),
    "one-bit.png": (save(Image.fromarray(GRAY > 99)), (GRAY > 99) * np.uint8(255)),
    "one-bit.bmp": (save(Image.fromarray(GRAY > 99)), (GRAY > 99) * np.uint8(255)),
    "fax.tif": (save(Image.fromarray(GRAY > 99), compression="group4"), (GRAY > 99) * np.uint8(255)),
    "gray-16.png": (save(Image.fromarray(GRAY_16)), GRAY),
    "gray-16.tif": (save(Image.fromarray(GRAY_16)), GRAY),
    "gray-16-big-endian.tif": (save(Image.fromarray(GRAY_16.astype(">u2"))), GRAY),
    "white-is-zero-16.tif": (save(Image.fromarray(GRAY_16), tiffinfo={262: 0}), 255 - GRAY),
    "gray-16.pgm": (write(b"P5 17 12 65535\n" + GRAY_16.astype(">u2").tobytes()), GRAY),
    "rgb-16.png": (write(png_16(RGB.astype(np.uint16) * 257, 2)), RGB),
    "la-16.png": (write(png_16(np.dstack([GRAY_16, GRAY_16[::-1]]), 4)), GRAY),
    "rgba-16.png": (write(png_16(np.dstack([RGB.astype(np.uint16) * 257, GRAY_16]), 6)), RGB),
    "cmyk.tif": (save(COLOUR.convert("CMYK")), RGB),
    "ycbcr.tif": (save(COLOUR.convert("YCbCr")), np.asarray(COLOUR.convert("YCbCr").convert("RGB"))),
    "animated.webp": (save(COLOUR, lossless=True, save_all=True, append_images=[COLOUR.rotate(180)]), RGB),
    "animated.png": (save(COLOUR, save_all=True, append_images=[COLOUR.rotate(180)]), RGB),
    "animated.gif": (save(GREY, save_all=True, append_images=[GREY.rotate(180)]), GRAY),
    "turned.tif": (save(COLOUR, tiffinfo={274: 6}), np.rot90(RGB, -1)),
}


@pytest.mark.parametrize("name", EXACT)
def test_pixels_of_exact_formats(name, tmp_path):
    make, expected = EXACT[name]
    make(tmp_path / name)
    np.testing.assert_array_equal(read(tmp_path / name), expected)


def test_jpegs_are_those_of_pillow_and_cmyk_is_not_inverted(tmp_path):
    smooth = np.add.outer(np.arange(12) * 9, np.arange(17) * 7)[..., None] + np.array([0, 20, 40])
    image = Image.fromarray(smooth.astype(np.uint8))
    for mode, channels in (("RGB", 3), ("L", 1), ("CMYK", 3)):
        image.convert(mode).save(tmp_path / "a.jpg", quality=95)
        found = read(tmp_path / "a.jpg")
        original = np.asarray(image if channels == 3 else image.convert("L"))
        assert found.shape == original.shape
        assert abs(found.astype(int) - original).max() <= 8
        if mode != "CMYK":
            np.testing.assert_array_equal(found, np.asarray(Image.open(tmp_path / "a.jpg")))


@pytest.mark.parametrize("extension", ["png", "webp", "jpg"])
def test_images_are_turned_as_exif_says(tmp_path, extension):
    for number in range(10):
        path = tmp_path / f"{number}.{extension}"
        COLOUR.save(path, exif=oriented(number), **({"lossless": True} if extension == "webp" else {}))
        np.testing.assert_array_equal(read(path), np.asarray(ImageOps.exif_transpose(Image.open(path))))
        np.testing.assert_array_equal(read(path, exif=False), np.asarray(Image.open(path)))
    assert read(tmp_path / f"6.{extension}").shape == (17, 12, 3)
    COLOUR.save(tmp_path / "damaged.jpg", exif=b"Exif\0\0no EXIF at all")
    assert read(tmp_path / "damaged.jpg").shape == RGB.shape


def pipe(path):
    os.mkfifo(path)


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def truncated(form):
    def make(path):
        big = Image.fromarray(RNG.integers(0, 256, (60, 60, 3), np.uint8))
        big.save(path, form)
        path.write_bytes(path.read_bytes()[:-2000])

    return make


def bomb(path):
    size = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


BAD = {  # file -> (what makes it, words of the error)
    "text.png": (write(b"some text"), "no PNG, JPEG, BMP, GIF, WebP, TIFF or PPM image"),
    "Thumbs.db": (write(b"\xd0\xcf\x11\xe0" + bytes(600)), "no PNG, JPEG"),
    "desktop.ini": (write(b"[.ShellClassInfo]"), "no PNG, JPEG"),
    "drawing.svg": (write(b"<svg/>"), "no PNG, JPEG"),
    "script.eps": (write(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "no PNG, JPEG"),
    "icon.ico": (save(COLOUR), "no PNG, JPEG"),
    "phone.heic": (write(b"\0\0\0\x18ftypheic" + bytes(99)), "HEIC is not read; convert it"),
    "empty.png": (write(b""), "an empty file"),
    "damaged.png": (lambda path: path.write_bytes(png_16(GRAY_16, 0)[:99] + bytes(50)), "is damaged"),
    "truncated.png": (truncated("png"), "is damaged (image file is truncated"),
    "truncated.jpg": (truncated("jpeg"), "is damaged (image file is truncated"),
    "truncated.bmp": (truncated("bmp"), "is damaged (image file is truncated"),
    "truncated.gif": (truncated("gif"), "is damaged (image file is truncated"),
    "truncated.webp": (truncated("webp"), "damaged"),
    "truncated.tif": (truncated("tiff"), "damaged"),
    "bomb.png": (bomb, "more than 178,956,970 pixels"),
    "whole-32.tif": (save(Image.fromarray(GRAY.astype(np.int32) * 70000)), "whole numbers of 32 bits"),
    "signed-16.tif": (
        save(Image.fromarray(GRAY.astype(np.int32)), tiffinfo={339: 2, 258: 16}),
        "32 bits or with a sign",
    ),
    "float.tif": (save(Image.fromarray(GRAY.astype(np.float32))), "floating-point"),
    "lab.tif": (save(COLOUR.convert("LAB")), "mode LAB"),
    "pipe.png": (pipe, "received a pipe"),
    "socket.png": (unix_socket, "received a socket"),
    "device.png": (lambda path: path.symlink_to("/dev/zero"), "received a device"),
    "broken.png": (lambda path: path.symlink_to(path.parent / "nothing"), "a broken link"),
    "loop.png": (lambda path: path.symlink_to(path), "symbolic links"),
    "folder.png": (lambda path: path.mkdir(), "received a folder"),
}


@pytest.fixture
def bad_file(request, tmp_path, monkeypatch):
    """A folder of two classes with one bad file: (name of the data, path of the file)."""
    monkeypatch.chdir(tmp_path)  # the path of a socket may not be long
    name = folder(tmp_path / "d", {"ant/0.png": RGB, "bee/0.png": RGB, "bee/1.png": RGB})
    path = tmp_path / "d/bee" / request.param
    BAD[request.param][0](path)
    return name, path


@pytest.mark.parametrize("bad_file", BAD, indirect=True)
def test_bad_files_are_named_in_one_line_or_left_out(bad_file):
    name, path = bad_file
    words = BAD[path.name][1]

    def images(name):
        images = data.load(name, "all").images
        return data.as_lazy(images).at((12, 17), "stretch")[:]

    with warnings.catch_warnings(action="error"), pytest.raises(UsageError) as error:
        images(name)
    assert str(error.value).startswith(f"{path}: ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert "--skip-bad" in str(error.value)
    skipping = data.with_options(name, skip_bad=True)
    dataset = data.load(skipping, "all")
    np.testing.assert_array_equal(dataset.images, [RGB] * 3)
    assert dataset.labels.tolist() == [0, 1, 1]
    (message,) = data.left_out(skipping).values()
    assert words in message
    assert "left out 1 file" in dataset.info.notes[0]
    assert path.name in dataset.info.notes[0]
    # They are the data that there would be without the file.
    path.rmdir() if path.name == "folder.png" else path.unlink()
    assert data.canonical_name(skipping).removeprefix("folder:") == data.canonical_name(name).removeprefix("folder:")


def test_errors_are_one_line_whatever_the_name_of_the_file_is(tmp_path):
    path = tmp_path / os.fsdecode(b"a\nb\xff.png")
    path.write_bytes(b"no image")
    with pytest.raises(UsageError) as error:
        image_files.read_header(path)
    assert "a\\nb\\udcff.png: no PNG" in str(error.value)
    assert str(error.value).isprintable()


# ---------------------------------------------------------------- folders


def folder(root, files):
    """folder:ROOT with images (arrays) at these places."""
    for place, pixels in files.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        if pixels is not None:
            Image.fromarray(pixels).save(root / place)
    return f"folder:{root}"


def pixels_of(height, width, seed, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8).squeeze()


SIZES = [(20, 30), (30, 20), (16, 16), (40, 10), (9, 50)]
MIXED = {f"{'ab'[i % 2]}/{i}.png": pixels_of(*size, seed=i) for i, size in enumerate(SIZES)}
ORDER = [0, 2, 4, 1, 3]  # the files of a, then of b


def by_pillow(pixels, size, how):
    image = Image.fromarray(pixels)
    if how == "stretch":
        return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))
    if how == "pad":
        return np.asarray(ImageOps.pad(image, size[::-1], Image.Resampling.BILINEAR))
    scale = max(size[0] / image.height, size[1] / image.width)
    height, width = int(image.height * scale + 1e-9), int(image.width * scale + 1e-9)
    whole = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    top, left = round((height - size[0]) / 2), round((width - size[1]) / 2)
    return whole[top : top + size[0], left : left + size[1]]


@pytest.mark.parametrize("how", ["stretch", "crop", "pad"])
def test_images_of_many_sizes_are_decoded_and_resized_when_asked_for(tmp_path, how, monkeypatch):
    decoded, decode = [], image_files.decode
    monkeypatch.setattr(image_files, "decode", lambda path, *a, **k: decoded.append(path.name) or decode(path, *a, **k))
    dataset = data.load(folder(tmp_path, MIXED), "all")
    assert dataset.info.shape == (0, 0, 3)
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1]
    lazy = data.as_lazy(dataset.images)
    images = lazy.at((16, 12), how)
    assert not decoded
    assert images.shape == (5, 16, 12, 3)
    expected = np.stack([by_pillow(MIXED[f"{'ab'[i % 2]}/{i}.png"], (16, 12), how) for i in ORDER])
    np.testing.assert_array_equal(images[[4, 1]], expected[[4, 1]])
    assert sorted(decoded) == ["2.png", "3.png"]
    np.testing.assert_array_equal(images[1:3], expected[1:3])
    np.testing.assert_array_equal(images[np.array([True, False, False, False, True])], expected[[0, 4]])
    np.testing.assert_array_equal(images[-1], expected[-1])
    np.testing.assert_array_equal(np.asarray(images), expected)
    assert images[[]].shape == (0, 16, 12, 3)
    np.testing.assert_array_equal(images.take(np.array([3, 0]))[:], expected[[3, 0]])


def test_subsets_stay_in_their_files(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "decode", lambda *_, **__: pytest.fail("decoded"))
    dataset = data.load(folder(tmp_path, MIXED), "all", limit=3)
    taken = dataset.take(np.array([2, 0]))
    paths = data.as_lazy(taken.images).paths
    assert [path.parent.name for path in paths] == ["ab"[label] for label in taken.labels]
    assert isinstance(data.as_lazy(data.load(f"folder:{tmp_path}", "train", validation=1).images), LazyImages)


def test_images_of_many_sizes_need_a_size(tmp_path):
    name = folder(tmp_path, MIXED)
    images = data.load(name, "all").images
    with pytest.raises(UsageError, match=r"one size: .*a/0.png has 20x30 and .*a/2.png has 16x16; .*--resize stretch"):
        images[:]
    with pytest.raises(UsageError, match=r"images of 20x30: .*a/2.png has 16x16; .*--resize"):
        data.as_lazy(images).at((20, 30), "none")
    with pytest.raises(UsageError, match=r"one size: .* has "):
        data.load_training_data(config.Data(name=name, validation=1), "train")
    for how in ("crop", "pad", "stretch", "none"):  # those of the size are not touched
        one = data.as_lazy(images).take(slice(0, 1)).at((20, 30), how)
        np.testing.assert_array_equal(one[0], MIXED["a/0.png"])


def test_squares_of_one_size_are_an_array_or_lazy_and_train_alike(tmp_path, monkeypatch):
    name = folder(tmp_path, {f"{'ab'[i % 2]}/{i}.png": pixels_of(8, 8, seed=i) for i in range(12)})
    options = config.Data(name=name, validation=3)
    array = data.load_training_data(options, "train")
    info = data.dataset_info(name)
    assert info.shape == (8, 8, 3)
    monkeypatch.setattr(image_folder, "IN_MEMORY", 12 * 8 * 8 * 3 - 1)
    image_folder._load.cache_clear()
    assert data.as_lazy(data.load(name, "train", validation=3).images) is not None
    lazy = data.load_training_data(options, "train")
    assert isinstance(lazy.images, np.ndarray)
    np.testing.assert_array_equal(lazy.images, array.images)
    assert data.dataset_info(name) == info
    assert data.dataset_info(name).plain() == info.plain()


def test_data_that_can_only_be_evaluated_are_not_trained_on(tmp_path):
    wide = folder(tmp_path / "wide", {f"{'ab'[i % 2]}/{i}.png": pixels_of(8, 9, seed=i) for i in range(12)})
    with pytest.raises(UsageError, match="training takes square images, received 8x9"):
        data.load_training_data(config.Data(name=wide, validation=3), "train")
    sizes = {"train/a/0.png": 8, "train/a/1.png": 8, "train/b/0.png": 8, "test/a/0.png": 9}
    other = folder(tmp_path / "other", {place: pixels_of(size, size, seed=1) for place, size in sizes.items()})
    with pytest.raises(UsageError, match="training takes images of one size, its splits have several"):
        data.load_training_data(config.Data(name=other, validation=1), "train")
    places = [f"train/{class_}/{i}.png" for class_ in "ab" for i in range(3)] + ["test/c/0.png"]
    absent = folder(tmp_path / "absent", dict.fromkeys(places, RGB[:12, :12]))
    with pytest.raises(UsageError, match="training labels of every class 0 to 2, none is 2"):
        data.load_training_data(config.Data(name=absent, validation=1), "train")
    assert data.load(absent, "test").labels.tolist() == [2]


def test_mean_and_std_of_lazy_images_are_computed_when_read(tmp_path, monkeypatch):
    files = {f"train/{place}": pixels for place, pixels in MIXED.items()} | {"test/a/0.png": RGB}
    info = data.dataset_info(folder(tmp_path, files))
    pixels = np.concatenate([image.reshape(-1, 3) for image in MIXED.values()]) / 255
    assert len(info.mean) == len(info.std) == 3
    np.testing.assert_allclose(info.mean, pixels.mean(0), atol=5e-5)
    np.testing.assert_allclose(list(info.std), pixels.std(0), atol=5e-5)
    assert info.plain()["mean"] == list(info.mean)
    (tmp_path / "test/a/1.png").write_bytes((tmp_path / "test/a/0.png").read_bytes())
    monkeypatch.setattr(image_files, "decode", lambda *_, **__: pytest.fail("decoded"))
    assert len(data.dataset_info(f"folder:{tmp_path}").std) == 3


def test_gray_stays_gray_unless_one_is_in_colour(tmp_path):
    gray = {f"{'ab'[i % 2]}/{i}.png": GRAY for i in range(4)}
    name = folder(tmp_path, gray)
    np.testing.assert_array_equal(data.load(name, "all").images, [GRAY[..., None]] * 4)
    assert data.dataset_info(name).notes == ()
    folder(tmp_path, {"b/4.png": RGB})
    np.testing.assert_array_equal(data.load(name, "all").images, [*[np.dstack([GRAY] * 3)] * 4, RGB])
    assert "1 of 5 images are colour" in data.dataset_info(name).notes[0]
    assert str(tmp_path / "b/4.png") in data.dataset_info(name).notes[0]


@pytest.mark.parametrize(
    "names", [("train", "val"), ("Train", "valid", "test"), ("validation",), ("test",), ("val", "test")]
)
def test_splits_in_any_combination(tmp_path, names):
    classes = {name: ["ab", "abc", "bc"][i] for i, name in enumerate(names)}
    files = {f"{name}/{c}/{i}.png": pixels_of(6, 6, seed=i) for name in names for c in classes[name] for i in range(3)}
    name = folder(tmp_path, files)
    present = [split for split in ("train", "validation", "test") if any(split.startswith(n.lower()) for n in names)]
    assert list(data.splits(name)) == present
    assert data.dataset_info(name).classes == tuple(sorted({*"".join(classes.values())}))
    for split in present:
        (own,) = (n for n in names if split.startswith(n.lower()))
        labels = [data.dataset_info(name).classes.index(c) for c in classes[own] for _ in range(3)]
        kept = data.load(name, split, validation=0).labels.tolist()
        assert kept == labels
    assert len(data.load(name, "all")) == len(files)


def test_folders_that_are_odd(tmp_path):
    files = {"train/a/0.png": RGB, "train/b/0.png": RGB, "val/a/0.png": RGB, "valid/a/0.png": RGB}
    with pytest.raises(UsageError, match="expected one folder for validation, received val and valid"):
        data.dataset_info(folder(tmp_path / "twice", files))
    with pytest.raises(
        UsageError, match="the class __MACOSX has no images"
    ):  # it would shift the numbers of all classes
        data.dataset_info(folder(tmp_path / "zip", {"a/0.png": RGB, "b/0.png": RGB, "__MACOSX/._0.png": None}))
    with pytest.raises(UsageError, match="test: no images"):
        data.dataset_info(folder(tmp_path / "none", {"train/a/0.png": RGB, "train/b/0.png": RGB, "test/a/0.png": None}))
    # An empty folder of a class that another split has keeps the numbers of the classes.
    files = {"train/a/0.png": RGB, "train/b/0.png": RGB, "test/a/0.png": None, "test/b/0.png": RGB}
    assert data.load(folder(tmp_path / "empty", files), "test").labels.tolist() == [1]
    flat = folder(tmp_path / "flat", {"train/a/0.png": RGB, "train/b/0.png": RGB, "test/0.png": RGB})
    assert data.splits(flat) == ("train",)
    assert data.dataset_info(flat).notes == ("test/ holds no folders of classes and is not read",)
    hidden = folder(tmp_path / "hidden", {"a/0.png": RGB, "b/0.png": RGB, ".c/0.png": RGB})
    assert data.dataset_info(hidden).notes == ("hidden folders are not read: .c",)
    names = folder(tmp_path / "names", {f"{split}/{c}/0.png": RGB for split in ("training", "testing") for c in "ab"})
    assert data.splits(names) == ("train", "test")


@pytest.mark.parametrize("inner", ["data", "data/images"])
@pytest.mark.parametrize("split", ["", "test/"])
def test_the_folder_that_was_meant_is_named(tmp_path, inner, split):
    name = folder(tmp_path / "d", {f"{inner}/{split}{c}/0.png": RGB for c in "ab"})
    with pytest.raises(UsageError, match=rf"did you mean {name}/{inner}\?"):
        data.dataset_info(name)
    assert len(data.dataset_info(f"{name}/{inner}").classes) == 2
    with pytest.raises(UsageError, match="received 1, a; expected PATH/CLASS"):
        data.dataset_info(folder(tmp_path / "one", {"a/0.png": RGB}))


def test_what_was_left_out_is_named_where_nothing_is_left(tmp_path):
    name = folder(tmp_path, {"a/0.png": RGB, "b/0.png": RGB})
    for path in ("a/0.png", "b/0.png"):
        (tmp_path / path).write_text("none")
    with pytest.raises(UsageError, match=r"no images in the folders of classes; left out 2 files: a/0\.png: no PNG"):
        data.dataset_info(data.with_options(name, skip_bad=True))


# ---------------------------------------------------------------- options and identity


def test_options_stand_in_the_name_and_in_the_identity(tmp_path):
    name = folder(tmp_path, {"a/0.png": RGB, "b/1.png": RGB})
    COLOUR.save(tmp_path / "a/2.png", exif=oriented(6))
    flat = data.with_options(name, exif=False)
    assert data.with_options(flat, skip_bad=True) == f"folder+no-exif+skip-bad:{tmp_path}"
    assert data.with_options(name) == name
    assert data.with_options("mnist") == "mnist"
    with pytest.raises(UsageError, match="mnist: --no-exif and --skip-bad are for a folder"):
        data.with_options("mnist", exif=False)
    assert data.load(name, "all").info.shape == (0, 0, 3)
    np.testing.assert_array_equal(data.load(flat, "all").images, [RGB] * 3)
    assert data.canonical_name(name) == data.canonical_name(data.with_options(name, skip_bad=True))
    other = data.canonical_name(flat)
    assert other.startswith("folder:")
    assert other != data.canonical_name(name)
    found = data.with_digest(config.Data(name=flat))
    assert (found.name, found.canonical) == (flat, other)
    assert data.load(found.name, "all").info.name == other


def test_the_digest_of_files_is_what_it_was(tmp_path):
    """A sha256 of names, sizes and contents in the order of the names: ids of results hold it."""
    import hashlib

    contents = {"a/0.png": b"1" * 5, "b/00.png": b"2" * (fingerprint.LARGEST_READ_AHEAD + 1), "b/0.png": b""}
    for place, content in contents.items():
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(content)
    text = b"".join(f"{place}\0{len(content)}\0".encode() + content for place, content in sorted(contents.items()))
    found = fingerprint.digest((place, tmp_path / place) for place in contents)
    assert found == hashlib.sha256(text).hexdigest()[:12]


def test_few_decoded_images_are_alive_at_a_time(tmp_path, monkeypatch):
    """Of 500 files, read in chunks as an evaluation does, and whole, as the mean of training images is."""
    for i in range(500):
        path = tmp_path / "ab"[i % 2] / f"{i:03}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8 + i % 5, 9), (i % 256, 0, 0)).save(path)
    alive, counts, decode = weakref.WeakValueDictionary(), [], image_files.decode

    def counted(path, channels, *, exif):
        image = decode(path, channels, exif=exif)
        alive[id(image)] = image
        counts.append(len(alive))
        return image

    monkeypatch.setattr(image_files, "decode", counted)
    dataset = data.load(f"folder:{tmp_path}", "all")
    images = data.as_lazy(dataset.images).at((16, 16), "crop")
    sums = [int(images[i : i + 50][..., 0, 0, 0].astype(int).sum()) for i in range(0, 500, 50)]
    assert sum(sums) == sum(i % 256 for i in range(500))
    assert dataset.info.mean[0] > 0
    assert len(counts) == 500 + 400  # for the sums, and for the mean of the four fifths that are for training
    assert max(counts) <= 3 * threads.MOST_THREADS


def test_the_next_part_is_decoded_while_one_is_in_use(tmp_path, monkeypatch):
    for i in range(100):
        Image.new("RGB", (8 + i % 5, 9), (i, 0, 0)).save(tmp_path / f"{i:03}.png")
    lazy, _ = lazy_images(sorted(tmp_path.iterdir()))
    images, decoded, decode = lazy.at((4, 4), "stretch"), set(), image_files.decode
    monkeypatch.setattr(image_files, "decode", lambda path, *a, **k: decoded.add(path) or decode(path, *a, **k))
    parts = [slice(i, i + 25) for i in range(0, 100, 25)]
    images.paths[80].write_bytes(b"no image")
    with contextlib.closing(decoded_ahead(images, parts)) as reader:
        next(reader)  # of which nothing is asked for
        for start in (25, 50):
            assert next(reader)()[:, 0, 0, 0].tolist() == list(range(start, start + 25))
            while len(decoded) < start + 25:
                time.sleep(0.001)
            assert decoded == set(images.paths[25 : start + 50])
        with pytest.raises(UsageError, match=r"080\.png: no PNG"):
            next(reader)()


def test_what_is_not_begun_is_left_out_when_reading_ends(tmp_path, monkeypatch):
    for i in range(100):
        Image.new("RGB", (8 + i % 5, 9)).save(tmp_path / f"{i:03}.png")
    lazy, _ = lazy_images(sorted(tmp_path.iterdir()))
    decoded, goes_on, decode = [], threading.Event(), image_files.decode

    def held(path, *args, **kwargs):
        decoded.append(path)
        assert len(decoded) <= 50 or goes_on.wait(20)
        return decode(path, *args, **kwargs)

    monkeypatch.setattr(image_files, "decode", held)
    reader = decoded_ahead(lazy.at((4, 4), "stretch"), [slice(0, 50), slice(50, 100)])
    next(reader)()
    threading.Timer(0.05, goes_on.set).start()
    reader.close()
    assert len(decoded) <= 50 + threads.MOST_THREADS

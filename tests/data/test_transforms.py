"""Sizes: stretch, crop and pad against TensorFlow and Pillow."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from bn_vuln.data.transforms import pixel_array, placement, resize_pixels
from bn_vuln.errors import UsageError
from bn_vuln.runtime import backend

# (height, width) of images -> (height, width) of the result
SIZES = [((28, 28), (84, 84)), ((40, 30), (7, 12)), ((31, 64), (64, 31)), ((5, 9), (5, 4)), ((1, 1), (3, 2)),
         ((90, 60), (1, 1)), ((23, 23), (22, 22)), ((7, 11), (7, 22))]  # fmt: skip


def random_images(rows: int, columns: int, channels: int = 3, n: int = 2) -> np.ndarray:
    return np.random.default_rng(rows * columns).integers(0, 256, (n, rows, columns, channels), np.uint8)


def by_pillow(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """One image [h, w, c], each channel as 32-bit floats, which Pillow does not round."""
    planes = [
        Image.fromarray(image[..., c].astype(np.float32) / 255).resize(size[::-1], Image.Resampling.BILINEAR)
        for c in range(image.shape[2])
    ]
    return np.stack([np.asarray(plane) for plane in planes], -1)


@pytest.mark.parametrize(("native", "size"), SIZES)
def test_stretch_is_that_of_tensorflow_and_pillow(native, size):
    images = random_images(*native)
    found = resize_pixels(images, size, "stretch")
    assert found.dtype == np.float32
    tensorflow = backend.tensorflow().image.resize(images / np.float32(255), size, method="bilinear", antialias=True)
    np.testing.assert_allclose(found, tensorflow, atol=1e-5)
    np.testing.assert_allclose(found, [by_pillow(image, size) for image in images], atol=1e-5)
    np.testing.assert_array_equal(found, pixel_array(images, size))


@pytest.mark.parametrize("size", [(8, 8), (8, 11), (30, 20)])
@pytest.mark.parametrize("native", [(20, 13), (13, 20), (16, 16)])
def test_crop_keeps_the_aspect_ratio_and_takes_the_centre(native, size):
    image = random_images(*native, n=1)
    (rows, columns), (height, width) = native, size
    if rows * width < columns * height:
        whole = by_pillow(image[0], (height, int(columns * height / rows)))
    else:
        whole = by_pillow(image[0], (int(rows * width / columns), width))
    assert whole.shape[:2] >= size
    assert height == whole.shape[0] or width == whole.shape[1]
    top, left = (round((whole.shape[axis] - size[axis]) / 2) for axis in (0, 1))
    expected = whole[top : top + height, left : left + width]
    np.testing.assert_allclose(resize_pixels(image, size, "crop")[0], expected, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (8, 11), (30, 20), (7, 40)])
@pytest.mark.parametrize("native", [(20, 13), (13, 20), (16, 16), (100, 9)])
def test_pad_is_that_of_pillow(native, size):
    image = random_images(*native, n=1)
    planes = [Image.fromarray(image[0, ..., c].astype(np.float32) / 255) for c in range(3)]
    expected = [ImageOps.pad(plane, size[::-1], Image.Resampling.BILINEAR) for plane in planes]
    found = resize_pixels(image, size, "pad")[0]
    np.testing.assert_allclose(found, np.stack([np.asarray(plane) for plane in expected], -1), atol=1e-5)


def test_none_takes_images_of_the_size_only():
    images = random_images(6, 5)
    np.testing.assert_array_equal(resize_pixels(images, (6, 5), "none"), images / np.float32(255))
    with pytest.raises(UsageError, match=r"expected images of 5x6, received 6x5; .*--resize"):
        resize_pixels(images, (5, 6), "none")


def test_images_as_large_as_the_size_are_not_touched():
    pixels = random_images(6, 5) / np.float32(255)
    for how in ("none", "stretch", "crop", "pad"):
        np.testing.assert_array_equal(resize_pixels(pixels, (6, 5), how), pixels)
        assert placement((6, 5), (6, 5), how) == ((6, 5), (0, 0))


def test_pixels_stay_in_the_box():
    """Sums of many rounded weights: white stays at 1, and is not above."""
    for native, size in [((97, 89), (10, 13)), ((224, 300), (37, 21))]:
        white = np.full((1, *native, 3), 255, np.uint8)
        for how in ("stretch", "crop"):
            found = resize_pixels(white, size, how)
            assert found.max() <= 1
            np.testing.assert_allclose(found, 1, atol=1e-6)


def test_pieces_are_those_of_the_whole():
    images = random_images(90, 130, n=1000)  # 855 at a time
    found = resize_pixels(images, (9, 7), "crop")
    np.testing.assert_allclose(found[853:858], resize_pixels(images[853:858], (9, 7), "crop"), atol=1e-6)

"""Conversion of stored images to the pixels in [0, 1] that models take, at the size that the model takes."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bn_vuln.data.describe import format_shape
from bn_vuln.errors import UsageError
from bn_vuln.runtime import backend, ops
from bn_vuln.typing import DatasetImages, Images, Tensor

Resize = Literal["none", "stretch", "crop", "pad", "imagenet"]
IMAGENET = 256 / 224  # of the shorter side to what is cropped of it
Size = int | tuple[int, int]  # height and width, or (height, width)


def to_pixels(images: Tensor, size: Size, how: Resize = "stretch") -> Tensor:
    """Convert stored images to pixels of a size, with operations of the backend.

    Args:
        images: uint8 [n, h, w, channels], which is divided by 255, or float, which is taken as pixels.
        size: (height, width), or one number for both.
        how: as `resize_pixels` takes it.

    Returns:
        float32 [n, height, width, channels] in [0, 1].

    Raises:
        UsageError: The images have another size, and `how` is `none`.
    """
    pixels: Tensor = ops.cast(images, "float32")
    if backend.dtype_of(images) == "uint8":
        pixels = pixels / 255.0
    (height, width), (_, rows, columns, channels) = _pair(size), pixels.shape
    if (rows, columns) == (height, width) and how != "imagenet":
        return pixels
    (resized_rows, resized_columns), (top, left) = placement((rows, columns), (height, width), how)
    # Two products with the interpolation weights: the same as TensorFlow's own resizing to 3e-6, and faster, above all
    # in a step compiled with XLA, where enlarging would otherwise take most of a linear model's time.
    down = _placed(bilinear_weights(rows, resized_rows), height, top)
    across = _placed(bilinear_weights(columns, resized_columns), width, left)
    x = ops.reshape(ops.transpose(pixels, (0, 3, 1, 2)), (-1, columns))
    x = ops.reshape(ops.einsum("nc,wc->nw", x, across), (-1, rows, width))
    x = ops.reshape(ops.transpose(x, (0, 2, 1)), (-1, rows))
    x = ops.reshape(ops.einsum("nr,hr->nh", x, down), (-1, channels, width, height))
    resized: Tensor = ops.transpose(x, (0, 3, 2, 1))
    if resized_rows < rows or resized_columns < columns:  # a sum of many rounded weights may be above 1
        resized = ops.clip(resized, 0.0, 1.0)
    return resized


def placement(native: tuple[int, int], size: tuple[int, int], how: Resize) -> tuple[tuple[int, int], tuple[int, int]]:
    """The size that an image is resized to before it is cropped or padded, and where the result begins in it.

    Sizes and places are rounded as torchvision (`Resize`, `CenterCrop`) and Pillow (`ImageOps.pad`) do.

    Args:
        native: (height, width) of the image.
        size: (height, width) of the result.
        how: as `resize_pixels` takes it.

    Returns:
        (height, width), and (top, left) of the result, which are negative where it is padded.

    Raises:
        UsageError: The sizes differ, and `how` is `none`.
    """
    if how == "none" and native != size:
        raise UsageError(
            f"expected images of {format_shape(size)}, received {format_shape(native)}; choose how they are brought to "
            "it: --resize stretch, crop, pad or imagenet"
        )
    if how in ("none", "stretch"):
        return size, (0, 0)
    (rows, columns), (height, width) = native, size
    wider = columns * height > rows * width  # than the result
    if how == "imagenet":
        larger = round(height * IMAGENET), round(width * IMAGENET)
        resized, _ = placement(native, larger, "crop")
        return resized, (round((resized[0] - height) / 2), round((resized[1] - width) / 2))
    if how == "crop":
        resized = (height, columns * height // rows) if wider else (rows * width // columns, width)
        return resized, (round((resized[0] - height) / 2), round((resized[1] - width) / 2))
    resized = (round(rows / columns * width), width) if wider else (height, round(columns / rows * height))
    resized = max(resized[0], 1), max(resized[1], 1)
    return resized, (-round((height - resized[0]) / 2), -round((width - resized[1]) / 2))


def bilinear_weights(native: int, width: int) -> NDArray[np.float32]:
    """Weights of bilinear interpolation along one axis, with half-pixel centres, antialiased where it is reduced.

    Args:
        native: Size of the axis.
        width: Size to resize to.

    Returns:
        float32 [width, native]; each row sums to 1.
    """
    if width < native:  # a triangle as wide as the reduction, as in Pillow and TensorFlow's resizing with antialias
        scale = native / width
        distances = np.abs((np.arange(native) + 0.5) / scale - (np.arange(width)[:, None] + 0.5))
        triangles = np.maximum(1 - distances, 0)
        return (triangles / triangles.sum(1, keepdims=True)).astype(np.float32)
    centres = np.clip((np.arange(width) + 0.5) * native / width - 0.5, 0, native - 1)
    lower = np.floor(centres).astype(int)
    upper, share = np.minimum(lower + 1, native - 1), centres - lower
    weights = np.zeros((width, native))
    np.add.at(weights, (np.arange(width), lower), 1 - share)
    np.add.at(weights, (np.arange(width), upper), share)
    return weights.astype(np.float32)


def resize_pixels(images: DatasetImages, size: Size, how: Resize) -> Images:
    """Convert stored images to an array of pixels of a size, in pieces, so that memory beyond the result stays small.

    Args:
        images: uint8 or float [n, h, w, channels].
        size: (height, width), or one number for both.
        how: `stretch` brings both sides to the size. `crop` brings the shorter side to it, keeps the aspect ratio and
            crops the centre. `pad` brings the longer side to it, keeps the aspect ratio and puts zeros around. All are
            bilinear, with half-pixel centres, antialiased where they reduce. `imagenet` is `crop` with the shorter side
            at 8/7 of the size, 256 of 224 pixels. `none` takes images of this size only.

    Returns:
        float32 [n, height, width, channels] in [0, 1].

    Raises:
        UsageError: The images have another size, and `how` is `none`.
    """
    pixels = np.empty((len(images), *_pair(size), images.shape[3]), np.float32)
    piece = max(1, min(1000, 30_000_000 // np.prod(images.shape[1:], dtype=int)))
    for i in range(0, len(images), piece):
        pixels[i : i + piece] = to_pixels(backend.place(images[i : i + piece]), size, how)
    return pixels


def pixel_array(images: DatasetImages, size: Size) -> Images:
    """Convert stored images to an array of pixels, stretched to a size: see `resize_pixels`."""
    return resize_pixels(images, size, "stretch")


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _placed(weights: NDArray[np.float32], size: int, start: int) -> NDArray[np.float32]:
    """The rows of the weights from `start` on, `size` of them, zeros where there are none."""
    placed = np.zeros((size, weights.shape[1]), np.float32)
    rows = weights[max(start, 0) : max(start, 0) + size]
    placed[max(-start, 0) : max(-start, 0) + len(rows)] = rows
    return placed


def check_width(width: int, native: int, name: str) -> None:
    """Refuse to reduce images, which would lose detail.

    Args:
        width: Width that is asked for.
        native: Width of the images.
        name: The data set, for the error message.

    Raises:
        UsageError: `width` is below the native one.
    """
    if width < native:
        raise UsageError(f"data.width: {name} can be enlarged, not reduced: expected >= {native}, received {width}")

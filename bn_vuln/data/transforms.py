"""Conversion of stored images to the pixels in [0, 1] that models take, resized to the model's width."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bn_vuln.errors import UsageError
from bn_vuln.runtime import backend
from bn_vuln.typing import DatasetImages, Images, Tensor


def to_pixels(images: Tensor, width: int) -> Tensor:
    """Convert stored images to pixels, with TensorFlow ops.

    Args:
        images: uint8 [n, height, width, channels], which is divided by 255, or float32, which is taken as pixels.
        width: Height and width to resize to: bilinear, half-pixel centres, no antialiasing (enlarging needs none).

    Returns:
        float32 [n, width, width, channels] in [0, 1].
    """
    tf = backend.tensorflow()
    pixels: Tensor = tf.cast(images, tf.float32) / 255.0 if images.dtype == tf.uint8 else images
    _, rows, columns, channels = pixels.shape
    if rows == columns == width:
        return pixels
    # Two products with the interpolation weights: the same as tf.image.resize to 3e-6, and faster, above all in a step
    # compiled with XLA, where enlarging would otherwise take most of a linear model's time.
    down, across = bilinear_weights(rows, width), bilinear_weights(columns, width)
    x = tf.reshape(tf.transpose(pixels, (0, 3, 1, 2)), (-1, columns))
    x = tf.reshape(tf.matmul(x, across, transpose_b=True), (-1, rows, width))
    x = tf.reshape(tf.transpose(x, (0, 2, 1)), (-1, rows))
    x = tf.reshape(tf.matmul(x, down, transpose_b=True), (-1, channels, width, width))
    resized: Tensor = tf.transpose(x, (0, 3, 2, 1))
    return resized


def bilinear_weights(native: int, width: int) -> NDArray[np.float32]:
    """Weights of bilinear interpolation along one axis, with half-pixel centres.

    Args:
        native: Size of the axis.
        width: Size to resize to.

    Returns:
        float32 [width, native]; each row sums to 1.
    """
    centres = np.clip((np.arange(width) + 0.5) * native / width - 0.5, 0, native - 1)
    lower = np.floor(centres).astype(int)
    upper, share = np.minimum(lower + 1, native - 1), centres - lower
    weights = np.zeros((width, native))
    np.add.at(weights, (np.arange(width), lower), 1 - share)
    np.add.at(weights, (np.arange(width), upper), share)
    return weights.astype(np.float32)


def pixel_array(images: DatasetImages, width: int) -> Images:
    """Convert stored images to an array of pixels, in pieces, so that memory beyond the result stays small.

    Args:
        images: uint8 or float32 [n, height, width, channels].
        width: Height and width to resize to.

    Returns:
        float32 [n, width, width, channels], as `to_pixels` computes it.
    """
    tf = backend.tensorflow()
    pixels = np.empty((len(images), width, width, images.shape[3]), np.float32)
    for i in range(0, len(images), 1000):
        pixels[i : i + 1000] = to_pixels(tf.constant(images[i : i + 1000]), width).numpy()
    return pixels


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

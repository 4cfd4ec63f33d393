"""uint8 images -> the pixels in [0, 1] that models take, resized to the model's width."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln.errors import UsageError
from bn_vuln.runtime import backend


def to_pixels(images: Any, width: int) -> Any:
    """uint8 or float32 images [n, h, w, channels] as float32 in [0, 1] of `width` x `width` (TensorFlow ops).

    uint8 is divided by 255; floats are taken as pixels already. Resizing is bilinear with half-pixel centres
    and no antialiasing (none is needed to enlarge).
    """
    tf = backend.tensorflow()
    pixels = tf.cast(images, tf.float32) / 255.0 if images.dtype == tf.uint8 else images
    _, rows, columns, channels = pixels.shape
    if rows == columns == width:
        return pixels
    # Two products with the interpolation weights: the same as tf.image.resize to 3e-6, and faster, above all in a step
    # compiled with XLA, where enlarging would otherwise take most of a linear model's time.
    down, across = bilinear(rows, width), bilinear(columns, width)
    x = tf.reshape(tf.transpose(pixels, (0, 3, 1, 2)), (-1, columns))
    x = tf.reshape(tf.matmul(x, across, transpose_b=True), (-1, rows, width))
    x = tf.reshape(tf.transpose(x, (0, 2, 1)), (-1, rows))
    x = tf.reshape(tf.matmul(x, down, transpose_b=True), (-1, channels, width, width))
    return tf.transpose(x, (0, 3, 2, 1))


def bilinear(native: int, width: int) -> NDArray[np.float32]:
    """The weights [width, native] of bilinear interpolation along one axis, with half-pixel centres."""
    centres = np.clip((np.arange(width) + 0.5) * native / width - 0.5, 0, native - 1)
    lower = np.floor(centres).astype(int)
    upper, share = np.minimum(lower + 1, native - 1), centres - lower
    weights = np.zeros((width, native))
    np.add.at(weights, (np.arange(width), lower), 1 - share)
    np.add.at(weights, (np.arange(width), upper), share)
    return weights.astype(np.float32)


def pixel_array(images: NDArray[np.uint8] | NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """The same as an array, in pieces so that memory beyond the result stays small."""
    tf = backend.tensorflow()
    pixels = np.empty((len(images), width, width, images.shape[3]), np.float32)
    for i in range(0, len(images), 1000):
        pixels[i : i + 1000] = to_pixels(tf.constant(images[i : i + 1000]), width).numpy()
    return pixels


def check_width(width: int, native: int, name: str) -> None:
    """Raise `UsageError` for a width below the native one, which would lose detail."""
    if width < native:
        raise UsageError(f"data.width: {name} can be enlarged, not reduced: expected >= {native}, received {width}")

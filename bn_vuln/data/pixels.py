"""uint8 images -> the pixels in [0, 1] that models take, resized to the model's width."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln import backend
from bn_vuln.errors import UsageError


def to_pixels(images: Any, width: int) -> Any:
    """uint8 or float32 images [n, h, w, channels] as float32 in [0, 1] of `width` x `width` (TensorFlow ops).

    uint8 is divided by 255; floats are taken as pixels already. Resizing is bilinear with half-pixel centres
    and no antialiasing (none is needed to enlarge).
    """
    tf = backend.tensorflow()
    pixels = tf.cast(images, tf.float32) / 255.0 if images.dtype == tf.uint8 else images
    if pixels.shape[1] == width and pixels.shape[2] == width:
        return pixels
    return tf.image.resize(pixels, (width, width), method="bilinear")


def pixel_array(images: NDArray[np.uint8] | NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """The same as an array, in pieces so that memory beyond the result stays small."""
    tf = backend.tensorflow()
    pieces = [to_pixels(tf.constant(images[i : i + 1000]), width).numpy() for i in range(0, len(images), 1000)]
    return np.concatenate(pieces)


def check_width(width: int, native: int, name: str) -> None:
    """Raise `UsageError` for a width below the native one, which would lose detail."""
    if width < native:
        raise UsageError(f"data.width: {name} can be enlarged, not reduced: expected >= {native}, received {width}")

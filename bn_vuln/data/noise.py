"""Additive white Gaussian noise (AWGN), the same for an example whatever the batch or subset it is in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln.config import AWGN
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.units import bounds, channel_scale


def add_noise(images: NDArray[Any], index: NDArray[np.int64], noise: AWGN, info: DatasetInfo) -> NDArray[np.float32]:
    """Noisy pixels, float32 [n, height, width, channels], of `images` (uint8, or floats as they are) at their
    native width.

    The noise of an example depends only on (noise.seed, its `index`). std is in pixel or standardized units
    (there std * the channel's std); the clip, in pixels, comes last.
    """
    pixels = images.astype(np.float32)  # a copy
    if images.dtype == np.uint8:
        pixels /= np.float32(255)
    scale = np.float32(noise.std) * channel_scale(noise.unit, info)
    for i, key in enumerate(index):
        generator = np.random.Generator(np.random.Philox(key=[noise.seed, int(key)]))
        pixels[i] += scale * generator.standard_normal(pixels.shape[1:], dtype=np.float32)
    low, high = bounds(noise.clip, info)
    return np.asarray(np.clip(pixels, low, high), np.float32)

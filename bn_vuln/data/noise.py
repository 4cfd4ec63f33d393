"""Additive white Gaussian noise (AWGN), the same for an example whatever the batch or subset it is in."""

from __future__ import annotations

import numpy as np

from bn_vuln.config import AWGN
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.units import bounds, channel_scale
from bn_vuln.typing import DatasetImages, Images, Index


def add_noise(images: DatasetImages, index: Index, noise: AWGN, info: DatasetInfo) -> Images:
    """Add white Gaussian noise to images at their native width.

    Args:
        images: uint8 [n, height, width, channels], or floats, which are taken as they are.
        index: int64 [n], place of each example in its published split: the noise of an example depends only on it and
            on noise.seed.
        noise: std in pixel or standardized units (there std * the channel's std), and the clip, which comes last.
        info: The data set.

    Returns:
        float32 [n, height, width, channels], in pixels.
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

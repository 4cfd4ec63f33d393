"""Units: standardized quantities, (x - mean) / std per channel, expressed in the pixels that models take."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bn_vuln.config import Box, StandardizedBox, Unit
from bn_vuln.data.info import DatasetInfo


def channel_scale(unit: Unit, info: DatasetInfo) -> NDArray[np.float32]:
    """Pixels per unit of each channel.

    Args:
        unit: `pixel` or `standardized`.
        info: The data set.

    Returns:
        float32 [channels]: 1 for `pixel`, the std for `standardized`.
    """
    return np.asarray(info.std if unit == "standardized" else [1.0] * len(info.std), np.float32)


def bounds(box: Box, info: DatasetInfo) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Bounds of a box in pixels.

    Args:
        box: (low, high) in pixels, the same in standardized units, or `none`.
        info: The data set.

    Returns:
        (low, high), float32 [channels] each; infinite for `none`.
    """
    channels = len(info.mean)
    if box == "none":
        return np.full(channels, -np.inf, np.float32), np.full(channels, np.inf, np.float32)
    if isinstance(box, StandardizedBox):
        mean, std = np.asarray(info.mean), np.asarray(info.std)
        low, high = (mean + std * bound for bound in box.standardized)
    else:
        low, high = (np.full(channels, bound) for bound in box)
    return low.astype(np.float32), high.astype(np.float32)

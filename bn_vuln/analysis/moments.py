"""Distances of the means and variances of batches from those that a batch norm layer has tracked."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from bn_vuln.typing import Floats


def mean_shift(means: ArrayLike, tracked_mean: ArrayLike, tracked_variance: ArrayLike, c: float) -> float:
    """Return the distance of the means of batches from the tracked ones, in standard deviations of the layer.

    Args:
        means: Means of batches, [batches, channels].
        tracked_mean: Tracked means, [channels].
        tracked_variance: Tracked variances, [channels].
        c: Constant of the layer, which divides by sqrt(tracked_variance + c).

    Returns:
        Root mean square over the channels, mean over the batches.
    """
    mean, variance = (np.asarray(array, np.float64) for array in (tracked_mean, tracked_variance))
    return rms_over_channels((np.asarray(means, np.float64) - mean) / np.sqrt(variance + c))


def log_std_ratio(variances: ArrayLike, tracked_variance: ArrayLike, c: float) -> float:
    """Return the distance of the standard deviations of batches from the tracked ones.

    Args:
        variances: Variances of batches, [batches, channels].
        tracked_variance: Tracked variances, [channels].
        c: Constant of the layer.

    Returns:
        ln sqrt((variance + c) / (tracked_variance + c)), root mean square over the channels, mean over the batches.
    """
    ratios = (np.asarray(variances, np.float64) + c) / (np.asarray(tracked_variance, np.float64) + c)
    return rms_over_channels(0.5 * np.log(ratios))


def rms_over_channels(differences: Floats) -> float:
    """Return the root mean square over the channels, averaged over the batches; differences [batches, channels]."""
    return float(np.sqrt((differences**2).mean(axis=1)).mean())

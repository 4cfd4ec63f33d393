"""How far the means and variances of batches are from those that a batch norm layer has tracked."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def shift(means: ArrayLike, tracked_mean: ArrayLike, tracked_variance: ArrayLike, c: float) -> float:
    """The distance of the `means` of batches [batches, channels] from the tracked ones [channels], in units of the
    standard deviation that the layer divides by, sqrt(tracked_variance + c): root mean square over the channels, mean
    over the batches."""
    mean, variance = (np.asarray(array, np.float64) for array in (tracked_mean, tracked_variance))
    return _over_batches((np.asarray(means, np.float64) - mean) / np.sqrt(variance + c))


def log_scale(variances: ArrayLike, tracked_variance: ArrayLike, c: float) -> float:
    """The distance of the standard deviations of batches, from their `variances` [batches, channels], to the tracked
    one: the logarithm of their ratio, ln sqrt((variance + c) / (tracked_variance + c)), root mean square over the
    channels, mean over the batches."""
    ratios = (np.asarray(variances, np.float64) + c) / (np.asarray(tracked_variance, np.float64) + c)
    return _over_batches(0.5 * np.log(ratios))


def _over_batches(differences: Array) -> float:
    return float(np.sqrt((differences**2).mean(axis=1)).mean())

"""Sensitivity of a model along the principal components of the images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bn_vuln.analysis.tilt import chunks
from bn_vuln.typing import Floats


def principal_components(images: NDArray[np.generic]) -> tuple[Floats, Floats]:
    """Return the principal components of images, computed in chunks.

    Args:
        images: [n, ...]; uint8 is divided by 255.

    Returns:
        Variances [d], in descending order, of the population (divided by n), in squared pixel units; and orthonormal
        directions [d, d], in columns, of arbitrary sign. float64.

    Raises:
        ValueError: There are no images.
    """
    if not len(images):
        raise ValueError("no images")
    mean = np.sum([values.sum(axis=0) for _, values in chunks(images)], axis=0) / len(images)
    covariance = np.zeros((len(mean), len(mean)))
    for _, values in chunks(images):
        centered = values - mean  # first, since E[x^2] - E[x]^2 would cancel where the variance is small
        covariance += centered.T @ centered
    variance, directions = np.linalg.eigh(covariance / len(images))
    # Rounding leaves constant directions with variances of about -1e-17.
    return np.maximum(variance[::-1], 0), directions[:, ::-1]


def energy(gradients: NDArray[np.generic], directions: Floats) -> Floats:
    """Return the share of |gradient|^2 that lies along each direction, averaged over examples.

    Args:
        gradients: [n, d]; examples whose gradient is zero are left out.
        directions: Orthonormal columns, [d, d].

    Returns:
        Shares, float64 [d], which sum to 1.

    Raises:
        ValueError: All gradients are zero.
    """
    total, n = np.zeros(directions.shape[1]), 0
    for _, rows in chunks(gradients):
        squares = np.square(rows).sum(axis=1)
        used = squares != 0  # NaN stays and shows
        total += (np.square(rows[used] @ directions) / squares[used, None]).sum(axis=0)
        n += int(used.sum())
    if not n:
        raise ValueError("all gradients are zero")
    return total / n


def gain(jacobians: NDArray[np.generic], directions: Floats) -> Floats:
    """Return the root-mean-square change of the logits for a unit step along each direction, to first order.

    Args:
        jacobians: [n, k, d] for k logits and d inputs.
        directions: Unit vectors v in columns, [d, d].

    Returns:
        sqrt(mean over n of |J v|^2), float64 [d], in logits per unit of the inputs.

    Raises:
        ValueError: There are no examples.
    """
    if not len(jacobians):
        raise ValueError("no jacobians")
    total = np.zeros(directions.shape[1])
    for _, rows in chunks(jacobians.reshape(-1, jacobians.shape[-1])):
        total += np.square(rows @ directions).sum(axis=0)
    return np.asarray(np.sqrt(total / len(jacobians)))


def low_variance_share(energy: Floats, variance: Floats, share: float = 0.01) -> float:
    """Return the fraction of energy in the trailing components that together hold at most `share` of the variance.

    Args:
        energy: Energy of each component, [d].
        variance: Variance of each component, [d], in descending order.
        share: Share of the variance, in [0, 1].

    Raises:
        ValueError: The order, the shapes or the share are others.
    """
    if energy.shape != variance.shape or variance.ndim != 1 or not variance.size:
        raise ValueError(f"expected two arrays [d], received shapes {energy.shape} and {variance.shape}")
    if (np.diff(variance) > 0).any():
        raise ValueError("the variances are not in descending order")
    if not 0 <= share <= 1:
        raise ValueError(f"expected a share from 0 to 1, received {share}")
    cumulative = np.cumsum(variance[::-1])
    trailing = int(np.searchsorted(cumulative, share * cumulative[-1], side="right"))
    return float(energy[len(energy) - trailing :].sum() / energy.sum())

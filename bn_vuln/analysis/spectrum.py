"""Along which principal components of the images a model is sensitive."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln.analysis.tilt import chunks

Array = NDArray[np.float64]


def principal_components(images: NDArray[Any]) -> tuple[Array, Array]:
    """Variances [d], descending, and orthonormal directions [d, d], in columns, of `images` [n, ...]; float64.

    The population variance (divided by n), in squared pixel units where images are uint8 (divided by 255). The sign
    of a direction is arbitrary. Raises `ValueError` for no images.
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


def energy(gradients: NDArray[Any], directions: Array) -> Array:
    """The mean over examples of the share of |gradient|^2 that lies along each direction, float64 [d].

    `gradients` [n, d]; `directions` [d, d], orthonormal columns: the shares sum to 1. Examples whose gradient is zero
    are left out. Raises `ValueError` if there are no others.
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


def gain(jacobians: NDArray[Any], directions: Array) -> Array:
    """The root-mean-square change of the logits for a unit step along each direction v, to first order; float64 [d].

    sqrt(mean over n of |J v|^2) for the Jacobians J of `jacobians` [n, k, d] (k logits, d inputs); `directions`
    [d, d], in columns. Logits per unit of the inputs. Raises `ValueError` for no examples.
    """
    if not len(jacobians):
        raise ValueError("no jacobians")
    total = np.zeros(directions.shape[1])
    for _, rows in chunks(jacobians.reshape(-1, jacobians.shape[-1])):
        total += np.square(rows @ directions).sum(axis=0)
    return np.asarray(np.sqrt(total / len(jacobians)))


def low_variance_share(energy: Array, variance: Array, share: float = 0.01) -> float:
    """The fraction of `energy` [d] in the trailing components that together hold at most `share` of the variance.

    `variance` [d], descending. Raises `ValueError` for another order, shapes that differ, and a share outside [0, 1].
    """
    if energy.shape != variance.shape or variance.ndim != 1 or not variance.size:
        raise ValueError(f"expected two arrays [d], received shapes {energy.shape} and {variance.shape}")
    if (np.diff(variance) > 0).any():
        raise ValueError("the variances are not in descending order")
    if not 0 <= share <= 1:
        raise ValueError(f"expected a share from 0 to 1, received {share}")
    tail = np.cumsum(variance[::-1])
    trailing = int(np.searchsorted(tail, share * tail[-1], side="right"))
    return float(energy[len(energy) - trailing :].sum() / energy.sum())

"""Tilt of a linear decision boundary against that of the nearest-centroid classifier."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bn_vuln.typing import Floats

CHUNK = 2**20  # numbers in a float64 chunk: 8 MiB


def angle(u: ArrayLike, v: ArrayLike) -> Floats:
    """Return angles in degrees, [0, 180], between vectors along the last axis.

    Accurate at all angles, where arccos of the cosine loses half of the digits near 0 and 180. Source: Kahan, "How
    futile are mindless assessments of roundoff", 2006: 2 atan2(|u - v|, |u + v|) of unit vectors.

    Args:
        u: Vectors, [..., d].
        v: Vectors, [..., d]; leading axes broadcast.

    Returns:
        float64 [...]; NaN where a vector is zero or not finite.
    """
    first, second = unit_vectors(u), unit_vectors(v)
    apart, together = np.linalg.norm(first - second, axis=-1), np.linalg.norm(first + second, axis=-1)
    return np.asarray(np.degrees(2 * np.arctan2(apart, together)))


def unit_vectors(vectors: ArrayLike) -> Floats:
    """Return vectors [..., d] divided by their lengths, float64; NaN where one is zero or not finite."""
    array = np.asarray(vectors, np.float64)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of a zero vector
        array = array / np.abs(array).max(axis=-1, keepdims=True)  # squares neither overflow nor vanish
        return np.asarray(array / np.linalg.norm(array, axis=-1, keepdims=True))


def chunks(examples: NDArray[np.generic]) -> Iterator[tuple[slice, Floats]]:
    """Yield slices of the first axis of examples [n, ...] with their rows, float64 [m, d]; uint8 is divided by 255."""
    flat = examples.reshape(len(examples), math.prod(examples.shape[1:]))
    rows = max(1, CHUNK // max(1, flat.shape[1]))
    for start in range(0, len(flat), rows):
        part = slice(start, start + rows)
        values = flat[part].astype(np.float64)
        if flat.dtype == np.uint8:
            values /= 255
        yield part, values


def centroids(images: NDArray[np.generic], labels: NDArray[np.generic], classes: int) -> Floats:
    """Return the mean image of each class.

    Args:
        images: [n, ...]; uint8 is divided by 255.
        labels: Class numbers, [n].
        classes: Number of classes.

    Returns:
        float64 [classes, d], in pixel units.

    Raises:
        ValueError: A class has no examples, or labels are not [n] or name no class.
    """
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{len(images)} images with labels of shape {labels.shape}")
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels from {labels.min()} to {labels.max()} for {classes} classes")
    counts = np.bincount(labels, minlength=classes)
    if not counts.all():
        raise ValueError(f"classes without examples: {np.flatnonzero(counts == 0).tolist()}")
    sums = np.zeros((classes, math.prod(images.shape[1:])))
    for part, values in chunks(images):
        sums += (labels[part] == np.arange(classes)[:, None]).astype(np.float64) @ values
    return np.asarray(sums / counts[:, None])


def effective_weights(weights: ArrayLike, variance: ArrayLike, c: float, gamma: ArrayLike | None = None) -> Floats:
    """Return the input-space weights of a linear model behind BN of its input.

    BN maps x to gamma (x - mean) / sqrt(variance + c) + beta, so w acts on x as w gamma / sqrt(variance + c).

    Args:
        weights: [d] or [d, k].
        variance: Variance of each input, [d].
        c: Constant of BN.
        gamma: Scale of each input, [d]; None: 1.

    Returns:
        float64, of the shape of `weights`.

    Raises:
        ValueError: variance + c is not positive, or shapes do not fit.
    """
    w, scale = np.asarray(weights, np.float64), np.asarray(variance, np.float64) + c
    if not (scale > 0).all():
        raise ValueError("variance + c is not positive")
    gammas = np.ones_like(scale) if gamma is None else np.asarray(gamma, np.float64)
    if not w.shape[:1] == scale.shape == gammas.shape:
        raise ValueError(f"shapes do not fit: weights {w.shape}, variance {scale.shape}, gamma {gammas.shape}")
    return np.asarray((w.T * (gammas / np.sqrt(scale))).T)


def effective_bias(
    weights: ArrayLike,
    bias: ArrayLike,
    mean: ArrayLike,
    variance: ArrayLike,
    c: float,
    *,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
) -> Floats:
    """Return the bias that goes with `effective_weights`: bias + beta . w - mean . effective weights.

    Args:
        weights: [d] or [d, k].
        bias: A number, or [k].
        mean: Mean of each input, [d].
        variance: Variance of each input, [d].
        c: Constant of BN.
        gamma: Scale of each input, [d]; None: 1.
        beta: Offset of each input, [d]; None: 0.

    Returns:
        float64, 0-d or [k].

    Raises:
        ValueError: As `effective_weights` does.
    """
    w = np.asarray(weights, np.float64)
    effective = effective_weights(w, variance, c, gamma)
    shift = 0.0 if beta is None else np.asarray(beta, np.float64) @ w
    return np.asarray(np.asarray(bias, np.float64) + shift - np.asarray(mean, np.float64) @ effective)

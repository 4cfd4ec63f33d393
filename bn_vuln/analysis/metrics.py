"""What logits say of labels, in NumPy: the numbers that are recorded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def predicted(logits: NDArray[np.float32], labels: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Whether the label is what the classifier says, bool [n], of logits [n, classes]: logits that are not finite are
    no class."""
    right: NDArray[np.bool_] = (logits.argmax(axis=1) == labels) & np.isfinite(logits).all(axis=1)
    return right


def cross_entropy(logits: NDArray[np.float32], labels: NDArray[np.int32]) -> float | None:
    """The mean cross-entropy in nats, in float64; None where it is not finite."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
    mean = float(losses.mean())
    return mean if np.isfinite(mean) else None


def top5(logits: NDArray[np.float32], labels: NDArray[np.int32]) -> float | None:
    """The share of labels among the five largest logits; None below six classes, where it says nothing."""
    if logits.shape[1] < 6:
        return None
    top = np.argpartition(-logits, 5, axis=1)[:, :5]
    return float(np.mean((top == labels[:, None]).any(axis=1)))

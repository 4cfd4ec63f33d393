"""Accuracies and losses of logits, in NumPy: the numbers that are recorded."""

from __future__ import annotations

import numpy as np

from bn_vuln.typing import Labels, Logits, Mask


def is_correct(logits: Logits, labels: Labels) -> Mask:
    """Return the outcome of each example, bool [n]; logits [n, classes] that are not finite name no class."""
    correct: Mask = (logits.argmax(axis=1) == labels) & np.isfinite(logits).all(axis=1)
    return correct


def cross_entropy(logits: Logits, labels: Labels) -> float | None:
    """Return the mean cross-entropy in nats, computed in float64; None where it is not finite."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
    mean = float(losses.mean())
    return mean if np.isfinite(mean) else None


def top5(logits: Logits, labels: Labels) -> float | None:
    """Return the share of labels among the five largest logits; None below six classes, where it is nearly always 1."""
    if logits.shape[1] < 6:
        return None
    top = np.argpartition(-logits, 5, axis=1)[:, :5]
    return float(np.mean((top == labels[:, None]).any(axis=1)))

"""Accuracies and losses of logits, in NumPy: the numbers that are recorded."""

from __future__ import annotations

import numpy as np

from bn_vuln.typing import Labels, Logits, Mask

EXAMPLES_PER_CLASS = 5  # from which on it can be told whether labels are in another order


def is_correct(logits: Logits, labels: Labels) -> Mask:
    """Return the outcome of each example, bool [n]; logits [n, classes] that are not finite name no class."""
    correct: Mask = (logits.argmax(axis=1) == labels) & np.isfinite(logits).all(axis=1)
    return correct


def accuracy_in_best_order(logits: Logits, labels: Labels) -> float | None:
    """Return the accuracy with the outputs in the order that fits the labels best; None where there are too few labels.

    Args:
        logits: [n, classes].
        labels: classes [n]; there are enough where they are 5 of each class that occurs, on average.
    """
    from scipy.optimize import linear_sum_assignment

    n, classes = logits.shape
    if n < EXAMPLES_PER_CLASS * len(np.unique(labels)):
        return None
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (logits.argmax(axis=1), labels), 1)
    return float(counts[linear_sum_assignment(-counts)].sum() / n)


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
    return float(np.mean(in_top(logits, labels, 5)))


def in_top(logits: Logits, labels: Labels, top: int) -> Mask:
    """Return whether each label is among so many of the largest logits, bool [n]; logits not finite name no class.

    Args:
        logits: [n, classes], more classes than `top`.
        labels: classes [n].
        top: number of logits.
    """
    largest = np.argpartition(-logits, top, axis=1)[:, :top]
    found: Mask = (largest == labels[:, None]).any(axis=1) & np.isfinite(logits).all(axis=1)
    return found

"""Minimum-norm attacks: how far away the nearest image is that a classifier gets wrong.

Like every attack they are not believed: what they return is projected into the box and predicted again by the
classifier itself, and the distance is that of the image which is kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln import attacks
from bn_vuln.attacks import Predict, carlini_wagner, cleverhans
from bn_vuln.config import MinimumNorm
from bn_vuln.data import units
from bn_vuln.data.info import DatasetInfo
from bn_vuln.runtime.distribution import Distribution

EXAMPLES, BYTES = 8, 26_000  # kept to be drawn: so many, or as many as fit


def threat_model(options: MinimumNorm, info: DatasetInfo) -> attacks.ThreatModel:
    """The box, and the scale of distances, as a ball without an end."""
    low, high = units.bounds(options.box, info)
    return attacks.ThreatModel(options.ord, np.inf, units.channel_scale(options.unit, info), low, high)


def bind(
    predict: Predict, options: MinimumNorm, space: attacks.ThreatModel, distribution: Distribution
) -> Callable[..., NDArray[np.float32]]:
    """The attack of a config as a function of arrays: images x [n, height, width, channels], labels or targets y [n],
    and `batch_size`, `xla` and `advanced` as in `carlini_wagner.attack` -> the points found, as x."""
    loop = cleverhans.carlini_wagner if options.backend == "cleverhans" else carlini_wagner.attack
    run = functools.partial(
        loop,
        predict,
        scale=space.scale,
        low=space.low,
        high=space.high,
        confidence=options.confidence,
        steps=options.steps,
        step_size=options.step_size,
        binary_search_steps=options.binary_search_steps,
        initial_const=options.initial_const,
        targeted=options.target != "none",
    )
    if distribution.replicas == 1 or options.backend == "cleverhans":
        return lambda x, y, **how: np.asarray(run(x, y, **how)[0])
    return functools.partial(_shared, distribution.compile_sharded(lambda x, y: run(x, y)[0]))


def _shared(
    run: Callable[..., NDArray[np.float32]],
    x: NDArray[np.float32],
    y: NDArray[np.int32],
    *,
    batch_size: int,
    on_progress: Callable[[int], None],
    **_: Any,
) -> NDArray[np.float32]:
    """Batch by batch, each of them shared among the replicas."""
    pieces = []
    for i in range(0, len(x), batch_size):
        pieces.append(run(x[i : i + batch_size], y[i : i + batch_size]))
        on_progress(min(len(x), i + batch_size))
    return np.concatenate(pieces)


def between(images: NDArray[np.float32], clean: NDArray[np.float32], space: attacks.ThreatModel) -> NDArray[np.float64]:
    """L2 distances [n] in units of the scale."""
    offset = (images.astype(np.float64) - clean) / space.scale
    return np.sqrt((offset**2).sum(axis=tuple(range(1, offset.ndim))))


def summary(distance: NDArray[np.float64]) -> dict[str, float]:
    """The record's fields, of distances [n] that are 0 where the clean image fools the classifier (or, of a targeted
    attack, is taken for the target) and infinite where nothing does: over those in between; none where there are none.
    """
    found = distance[(distance > 0) & np.isfinite(distance)]
    return {"mean_distance": float(found.mean()), "median_distance": float(np.median(found))} if len(found) else {}


def arrays(
    distance: NDArray[np.float64],
    images: NDArray[np.float32],
    clean: NDArray[np.float32],
    labels: NDArray[np.int32],
    logits: NDArray[np.float32],
) -> dict[str, NDArray[Any]]:
    """What lies beside the record: `distance` float32 [n]; and of the first k examples, to be drawn, `clean` and
    `adversarial` float16 [k, height, width, channels] in pixels, `labels` and the classes that the latter are
    `taken_for`, int32 [k]."""
    k = max(1, min(EXAMPLES, BYTES // (2 * 2 * clean[0].size)))
    return {
        "distance": distance.astype(np.float32),
        "clean": clean[:k].astype(np.float16),
        "adversarial": images[:k].astype(np.float16),
        "labels": labels[:k],
        "taken_for": logits[:k].argmax(axis=1).astype(np.int32),
    }

"""Minimum-norm attacks: the distance of each image to the nearest adversarial example that was found.

What an attack returns is projected into the box and predicted again by the classifier itself, and the distance is that
of the image which is kept (`AttackRunner`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol

import numpy as np

from bn_vuln import attacks
from bn_vuln.attacks import carlini_wagner, cleverhans
from bn_vuln.config import MinimumNorm
from bn_vuln.data import units
from bn_vuln.data.info import DatasetInfo
from bn_vuln.runtime.batch_size import map_batches
from bn_vuln.runtime.distribution import Distribution
from bn_vuln.typing import Arrays, Floats, Images, Labels, Logits, Predict

EXAMPLES, BYTES = 8, 26_000  # of the images that are kept for figures: this many, or as many as fit


class BoundAttack(Protocol):
    """A minimum-norm attack as a function of arrays."""

    def __call__(
        self, x: Images, y: Labels, *, batch_size: int, xla: bool, on_progress: Callable[[int], None]
    ) -> Images:
        """Attack images [n, height, width, channels] with labels or targets [n]."""


def threat_model(options: MinimumNorm, info: DatasetInfo) -> attacks.ThreatModel:
    """Return the box and the scale of distances as a threat model whose eps is infinite.

    Args:
        options: `ord`, `unit` and `box` of the attack.
        info: the data set, whose std is the scale of standardized units.

    Returns:
        The threat model, in pixels.
    """
    low, high = units.bounds(options.box, info)
    return attacks.ThreatModel(options.ord, np.inf, units.channel_scale(options.unit, info), low, high)


def bind(
    predict: Predict, options: MinimumNorm, threat_model: attacks.ThreatModel, distribution: Distribution
) -> BoundAttack:
    """Return the attack of a config as a function of arrays.

    Args:
        predict: pixels [n, height, width, channels] -> logits [n, classes], differentiable.
        options: the attack.
        threat_model: box and scale, see `threat_model`.
        distribution: the devices; the batches are shared among the replicas.

    Returns:
        The attack; its `batch_size`, `xla` and `on_progress` are those of `carlini_wagner.attack`.
    """
    loop = cleverhans.carlini_wagner if options.backend == "cleverhans" else carlini_wagner.attack
    run = functools.partial(
        loop,
        predict,
        scale=threat_model.scale,
        low=threat_model.low,
        high=threat_model.high,
        confidence=options.confidence,
        steps=options.steps,
        step_size=options.step_size,
        binary_search_steps=options.binary_search_steps,
        initial_const=options.initial_const,
        targeted=options.target != "none",
    )

    def on_one_device(
        x: Images, y: Labels, *, batch_size: int, xla: bool, on_progress: Callable[[int], None]
    ) -> Images:
        return np.asarray(run(x, y, batch_size=batch_size, xla=xla, on_progress=on_progress)[0])

    if distribution.replicas == 1 or options.backend == "cleverhans":
        return on_one_device
    sharded = distribution.compile_sharded(lambda x, y: run(x, y)[0])

    def on_replicas(x: Images, y: Labels, *, batch_size: int, xla: bool, on_progress: Callable[[int], None]) -> Images:
        return map_batches(sharded, x, y, batch_size=batch_size, on_batch=on_progress)[0]

    return on_replicas


def distances(images: Images, clean: Images, threat_model: attacks.ThreatModel) -> Floats:
    """Return the L2 distances of images to the clean ones.

    Args:
        images: pixels [n, height, width, channels].
        clean: pixels, likewise.
        threat_model: its scale is the unit of the distances.

    Returns:
        float64 [n].
    """
    offset = (images.astype(np.float64) - clean) / threat_model.scale
    return np.sqrt((offset**2).sum(axis=tuple(range(1, offset.ndim))))


def summary(distance: Floats) -> dict[str, float]:
    """Return the distance fields of a record.

    Args:
        distance: float64 [n], 0 where the clean image is adversarial already, infinite where nothing was found.

    Returns:
        `mean_distance` and `median_distance` over the examples in between; empty where there are none.
    """
    found = distance[(distance > 0) & np.isfinite(distance)]
    return {"mean_distance": float(found.mean()), "median_distance": float(np.median(found))} if len(found) else {}


def arrays(distance: Floats, images: Images, clean: Images, labels: Labels, logits: Logits) -> Arrays:
    """Return the arrays that lie beside a record.

    Args:
        distance: float64 [n].
        images: the kept images, pixels [n, height, width, channels].
        clean: the clean images, likewise.
        labels: true classes [n].
        logits: logits of the kept images [n, classes].

    Returns:
        `distance` float32 [n]; and of the first k examples, for figures, `clean` and `adversarial` float16 [k, height,
        width, channels] in pixels, `labels` and the predicted classes `taken_for`, int32 [k].
    """
    k = max(1, min(EXAMPLES, BYTES // (2 * 2 * clean[0].size)))
    return {
        "distance": distance.astype(np.float32),
        "clean": clean[:k].astype(np.float16),
        "adversarial": images[:k].astype(np.float16),
        "labels": labels[:k],
        "taken_for": logits[:k].argmax(axis=1).astype(np.int32),
    }

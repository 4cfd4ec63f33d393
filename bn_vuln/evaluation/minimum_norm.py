"""Minimum-norm attacks: the distance of each image to the nearest adversarial example that was found.

What an attack returns is projected into the box and predicted again by the classifier itself, and the distance is that
of the image which is kept (`AttackRunner`).
"""

from __future__ import annotations

import numpy as np

from bn_vuln import attacks
from bn_vuln.config import MinimumNorm
from bn_vuln.data import units
from bn_vuln.data.info import DatasetInfo
from bn_vuln.typing import Arrays, Floats, Images, Labels, Logits

EXAMPLES, BYTES = 8, 26_000  # of the images that are kept for figures: this many, or as many as fit


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

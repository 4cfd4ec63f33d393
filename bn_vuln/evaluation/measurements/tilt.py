"""The tilting angle of the decision boundary against that of the nearest-centroid classifier.

Tanay and Griffin (2016), "A boundary tilting perspective on the phenomenon of adversarial examples".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bn_vuln import config, data
from bn_vuln.analysis import tilt
from bn_vuln.evaluation.classifier import Classifier
from bn_vuln.evaluation.measurements.base import MeasuredModel, MeasurementResult
from bn_vuln.runtime import backend
from bn_vuln.typing import Arrays, Labels

N_PLANE_POINTS = 300  # of a plane that are kept for figures


def measure(model: MeasuredModel) -> MeasurementResult:
    """Measure the mean angle between the margin gradients and the differences of the class centroids.

    Args:
        model: the classifier and its examples.

    Returns:
        The mean angle in degrees, its quartiles, and as arrays `angles` float32 [n]. In a plane also what figures
        show: `points` [m, 2] with `labels`, the `weights` [2] and `bias` of class 0's margin, and `mean` and `scale`
        [2] of BN of the input, if there is one.

    Raises:
        BnvulnError: where no example has a finite gradient.
    """
    classifier, labels = model.classifier, model.examples.labels
    gradients, rivals = model.margin_gradients
    options = config.Data(name=classifier.dataset, validation=classifier.validation, classes=classifier.classes)
    centroids = data.class_centroids(options, classifier.size)
    angles = tilt.angle(gradients, centroids[labels] - centroids[rivals])
    usable = np.isfinite(angles)
    arrays: Arrays = {"angles": angles.astype(np.float32)}
    if gradients.shape[1] == 2:
        arrays |= _plane(classifier, model.pixels.reshape(-1, 2), labels, gradients)
    quartiles = np.percentile(angles[usable], [25, 50, 75])
    details = dict(zip(("quartile_1", "median", "quartile_3"), map(float, quartiles), strict=True))
    return MeasurementResult(float(angles[usable].mean()), "deg", int(usable.sum()), details, arrays)


def _plane(
    classifier: Classifier, points: NDArray[np.float32], labels: Labels, gradients: NDArray[np.float32]
) -> Arrays:
    """Return the arrays of a linear classifier of the plane, for figures."""
    origin = np.asarray(classifier.predict(backend.tensorflow().zeros((1, 1, 1, 2))))[0]
    sign = 1.0 if labels[0] == 0 else -1.0
    arrays: Arrays = {
        "points": points[:N_PLANE_POINTS],
        "labels": labels[:N_PLANE_POINTS],
        "weights": (sign * gradients[0]).astype(np.float64),
        "bias": np.asarray(origin[0] - origin[1], np.float64),
    }
    for layer in backend.leaf_layers(classifier.model):
        if type(layer).__name__ == "BatchNormalization":
            variance = np.asarray(layer.moving_variance, np.float64)
            arrays |= {"mean": np.asarray(layer.moving_mean), "scale": np.sqrt(variance + layer.epsilon)}
    return arrays

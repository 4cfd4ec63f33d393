"""The tilting angle of the decision boundary against that of the nearest-centroid classifier.

Tanay and Griffin (2016), "A boundary tilting perspective on the phenomenon of adversarial examples".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bn_vuln import config, data
from bn_vuln.analysis import tilt
from bn_vuln.data.transforms import pixel_array
from bn_vuln.errors import BnvulnError
from bn_vuln.evaluation.classifier import Classifier
from bn_vuln.evaluation.eval_set import training_examples
from bn_vuln.evaluation.measurements.base import MeasuredModel, MeasurementResult
from bn_vuln.runtime import backend, ops
from bn_vuln.typing import Arrays, Floats, Labels

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
        BnvulnError: where no example has a finite gradient, or training images of both of its classes.
    """
    classifier, labels = model.classifier, model.examples.labels
    gradients, rivals = model.margin_gradients
    centroids = _centroids(classifier)
    angles = tilt.angle(gradients, centroids[labels] - centroids[rivals])
    usable = np.isfinite(angles)
    if not usable.any():
        raise BnvulnError("no example has training images of its class and of the strongest other class: no centroids")
    arrays: Arrays = {"angles": angles.astype(np.float32)}
    if gradients.shape[1] == 2:
        arrays |= _plane(classifier, model.pixels.reshape(-1, 2), labels, gradients)
    quartiles = np.percentile(angles[usable], [25, 50, 75])
    details = dict(zip(("quartile_1", "median", "quartile_3"), map(float, quartiles), strict=True))
    return MeasurementResult(float(angles[usable].mean()), "deg", int(usable.sum()), details, arrays)


def _centroids(classifier: Classifier) -> Floats:
    """The mean training image of each class, float64 [classes, d]; of an external model NaN where a class has none."""
    if not classifier.external:
        options = config.Data(name=classifier.dataset, validation=classifier.validation, classes=classifier.classes)
        return data.class_centroids(options, classifier.size)
    examples, _ = training_examples(classifier)
    present, labels = np.unique(examples.labels, return_inverse=True)
    images = examples.images[:]
    means = tilt.centroids(images, labels, len(present)).reshape(-1, *images.shape[1:])
    pixels = pixel_array(means.astype(np.float32), classifier.size).reshape(len(present), -1)  # resizing is linear
    centroids = np.full((len(classifier.info.classes), pixels.shape[1]), np.nan)
    centroids[present] = pixels
    return centroids


def _plane(
    classifier: Classifier, points: NDArray[np.float32], labels: Labels, gradients: NDArray[np.float32]
) -> Arrays:
    """Return the arrays of a linear classifier of the plane, for figures."""
    origin = np.asarray(classifier.predict(ops.zeros((1, 1, 1, 2))))[0]
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

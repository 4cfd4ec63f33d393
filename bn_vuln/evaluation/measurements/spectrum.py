"""Gain and energy of a classifier along the principal components of its training images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bn_vuln.analysis import spectrum
from bn_vuln.config import Spectrum
from bn_vuln.data.describe import format_shape
from bn_vuln.data.transforms import pixel_array
from bn_vuln.evaluation.classifier import Classifier
from bn_vuln.evaluation.eval_set import training_examples
from bn_vuln.evaluation.measurements.base import BATCH_SIZE, MeasuredModel, MeasurementResult
from bn_vuln.runtime import backend, ops
from bn_vuln.runtime.batch_size import map_batches
from bn_vuln.runtime.memory import check_memory
from bn_vuln.typing import Images, Tensor


def measure(model: MeasuredModel, options: Spectrum) -> MeasurementResult:
    """Measure the share of the margin gradients' energy in the components of low variance.

    Args:
        model: the classifier and its examples.
        options: the share of the variance that counts as low.

    Returns:
        The share of the energy, with the number of components and the largest gain; as arrays, for each component,
        `variance`, `gain` and `energy`, float64 [d].

    Raises:
        UsageError: where the images are too large.
        BnvulnError: where no example has a finite gradient.
    """
    size, channels = model.classifier.size, model.classifier.channels
    check_memory(
        3 * 8.0 * (size[0] * size[1] * channels) ** 2,
        f"spectrum: the covariances of the pixels of images of {format_shape((*size, channels))}",
        "this measurement is for smaller images; leave it out of the suite",
    )
    images = training_examples(model.classifier)[0].images[:]
    variance, directions = spectrum.principal_components(
        images if images.shape[1:3] == size else pixel_array(images, size)
    )
    gradients, _ = model.margin_gradients
    energy = spectrum.energy(gradients, directions)
    gain = spectrum.gain(jacobians(model.classifier, model.pixels), directions)
    value = spectrum.low_variance_share(energy, variance, options.low_variance)
    details = {"components": float(len(variance)), "largest_gain": float(gain.max())}
    n = int(gradients.any(axis=1).sum())
    return MeasurementResult(value, "%", n, details, {"variance": variance, "gain": gain, "energy": energy})


def jacobians(classifier: Classifier, x: Images) -> NDArray[np.float32]:
    """Return the derivatives of the logits with respect to the pixels.

    Args:
        classifier: the classifier.
        x: pixels [n, height, width, channels].

    Returns:
        float32 [n, classes, d], centred over the classes, since only differences of logits classify.
    """

    def centred(x: Tensor) -> Tensor:
        logits = classifier.predict(x)
        difference: Tensor = logits - ops.mean(logits, axis=1, keepdims=True)
        return difference

    compiled = backend.compile(lambda x: backend.jacobian(centred, x))
    (derivatives,) = map_batches(compiled, x, batch_size=BATCH_SIZE)
    return derivatives.reshape(*derivatives.shape[:2], -1)

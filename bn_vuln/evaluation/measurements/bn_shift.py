"""The distance of the statistics of batches from those that BN has tracked (the paper's Appendix I)."""

from __future__ import annotations

import numpy as np

from bn_vuln.analysis import moments
from bn_vuln.config import BatchStatistics
from bn_vuln.data import noise
from bn_vuln.data.transforms import pixel_array
from bn_vuln.errors import BnvulnError
from bn_vuln.evaluation.measurements.base import MeasuredModel, MeasurementResult
from bn_vuln.models import bn_statistics
from bn_vuln.typing import Images

NOT_FINITE = "the inputs of its batch norm layers are not finite numbers: no distance of statistics can be measured"


def measure(model: MeasuredModel, options: BatchStatistics) -> MeasurementResult:
    """Measure the shift of batch means, in tracked standard deviations, averaged over BN layers and batches.

    Args:
        model: the classifier and its examples.
        options: the batch size, and the noise that is added, if any.

    Returns:
        The mean shift, with the mean `scale` (a log ratio) and the numbers of layers and batches; as arrays `shift` and
        `scale` float32 [layers], in the order that the layers are reached. Without BN no value, and arrays without
        elements.

    Raises:
        BnvulnError: where the inputs of a BN layer are not finite.
    """
    found = _moments(model, options) if bn_statistics.has_batch_normalization(model.classifier.model) else []
    shifts, scales = [], []
    for layer in found:
        mean, variance = layer.tracked_mean, layer.tracked_variance
        shifts.append(moments.mean_shift(layer.means, mean, variance, getattr(layer.layer, "epsilon", 0.0)))
        scales.append(moments.log_std_ratio(layer.variances, variance, getattr(layer.layer, "epsilon", 0.0)))
    if not np.isfinite([*shifts, *scales]).all():
        raise BnvulnError(NOT_FINITE)
    arrays = {"shift": np.asarray(shifts, np.float32), "scale": np.asarray(scales, np.float32)}
    if not found:
        return MeasurementResult(None, options.unit, 0, {}, arrays)
    batches = len(found[0].means)
    n = min(len(model.examples), batches * options.batch_size)
    details = {"scale": float(np.mean(scales)), "layers": float(len(found)), "batches": float(batches)}
    return MeasurementResult(float(np.mean(shifts)), options.unit, n, details, arrays)


def _moments(model: MeasuredModel, options: BatchStatistics) -> list[bn_statistics.InputMoments]:
    """The moments of whole batches, or of all examples where they are fewer than a batch."""
    classifier, examples, size = model.classifier, model.in_random_order, options.batch_size

    def batch(begin: int) -> Images:
        images = examples.images[begin : begin + size]
        if options.perturbation is not None:
            index = examples.index[begin : begin + size]
            return pixel_array(noise.add_noise(images, index, options.perturbation, classifier.info), classifier.size)
        return pixel_array(images, classifier.size)

    begins = range(0, max(1, len(examples) // size) * size, size)
    return bn_statistics.input_moments(classifier.model, classifier.predict, map(batch, begins))

"""Why a classifier is fragile: its tilting angle, what it amplifies of its input, and how soon noise fools it
(config/measurement.py).

All gradients are with respect to pixels, in inference mode.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln import config, data, records
from bn_vuln.analysis import moments, spectrum, tilt
from bn_vuln.config import BatchStatistics, Evaluation, Fooling, Measurement, Spectrum, digest, perturbation_identity
from bn_vuln.data import noise
from bn_vuln.data.transforms import pixel_array
from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.evaluation.classifier import Classifier
from bn_vuln.evaluation.eval_set import load, trained_on, with_statistics
from bn_vuln.evaluation.measurements import fooling
from bn_vuln.models import bn_statistics
from bn_vuln.runtime import backend
from bn_vuln.runtime.progress import Progress, Quiet

BATCH_SIZE = 250
POINTS = 300  # of a plane that are kept to be drawn
DRAWN_BYTES = 26_000  # of images
NO_GRADIENT = "no example has a finite gradient of the logits with respect to its pixels: no boundary can be measured"
OF_THE_BATCH = (
    "bn_statistics: batch: tilt, spectrum and fooling images are of single examples, whose logits depend on the others "
    "of their batch here; tracked or reestimated statistics are possible"
)
NO_BATCH_NORM = "not applicable: the model has no batch norm"
NOT_FINITE = "the inputs of its batch norm layers are not finite numbers: no distance of statistics can be measured"

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Measured:
    """A value over `n` examples, or None where the classifier has none; further numbers, and arrays (see `_tilt`,
    `_spectrum`, `_fooling` and `_batch_statistics`)."""

    value: float | None
    unit: str
    n: int
    details: dict[str, float]
    arrays: Arrays


def measure(
    classifier: Classifier,
    measurements: Mapping[str, Measurement],
    evaluation: Evaluation | None = None,
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[str, records.MeasurementRecord]]:
    """Measure a classifier, (name, record) by (name, record); with `folder` each is written into that run folder.

    Raises `UsageError` with BN's statistics of the batch for all but their distance, `BnvulnError` for a classifier
    without gradients, or whose activations are not finite.
    """
    evaluation, progress = evaluation or Evaluation(), progress or Quiet()
    if not measurements:
        return
    check(classifier, measurements, evaluation)
    examples, asked = load(classifier, evaluation), evaluation
    evaluation = evaluation.model_copy(update={"dataset": examples.info.name})
    classifier = with_statistics(classifier, evaluation)
    subject = _Subject(classifier, examples, asked)
    for name, options in measurements.items():
        begun = time.monotonic()
        found = _measured(subject, options)
        record = _record(classifier, evaluation, examples.info.name, options, found, time.monotonic() - begun)
        if folder is not None:
            records.write_measurement(folder, record, found.arrays)
        progress.message(f"{name}: {_said(found)}")
        yield name, record


def check(classifier: Classifier, measurements: Mapping[str, Measurement], evaluation: Evaluation) -> None:
    """Raises `UsageError` where one of the measurements is not possible with the BN statistics asked for: before
    anything that takes time is measured."""
    of_the_batch = evaluation.bn_statistics == "batch" and bn_statistics.has_batch_normalization(classifier.model)
    if of_the_batch and not all(isinstance(options, BatchStatistics) for options in measurements.values()):
        raise UsageError(OF_THE_BATCH)


def _said(found: Measured) -> str:
    if found.value is None:
        return NO_BATCH_NORM
    return f"{100 * found.value if found.unit == '%' else found.value:.4g} {found.unit}"


@dataclass(frozen=True)
class _Subject:
    """A classifier on its examples; what its measurements share is computed once."""

    classifier: Classifier
    examples: data.Dataset
    evaluation: Evaluation

    @functools.cached_property
    def in_random_order(self) -> data.Dataset:
        """The examples in the fixed random order that they have with a limit: a published order, of which batches are
        taken, may go class by class."""
        limited = self.evaluation.model_copy(update={"limit": len(self.examples)})
        return self.examples if self.evaluation == limited else load(self.classifier, limited)

    @functools.cached_property
    def pixels(self) -> NDArray[np.float32]:
        return pixel_array(self.examples.images, self.classifier.width)

    @functools.cached_property
    def margins(self) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """As `margin_gradients`. Raises `BnvulnError` where no example has a gradient that is finite."""
        gradients, rivals = margin_gradients(self.classifier, self.pixels, self.examples.labels)
        if not (gradients.any(axis=1) & np.isfinite(gradients).all(axis=1)).any():
            raise BnvulnError(NO_GRADIENT)
        return gradients, rivals


def _measured(subject: _Subject, options: Measurement) -> Measured:
    if isinstance(options, BatchStatistics):
        return _batch_statistics(subject, options)
    if isinstance(options, Fooling):
        return _fooling(subject, options)
    return _spectrum(subject, options) if isinstance(options, Spectrum) else _tilt(subject)


def _record(
    classifier: Classifier, evaluation: Evaluation, dataset: str, options: Measurement, found: Measured, seconds: float
) -> records.MeasurementRecord:
    fields = perturbation_identity(evaluation, dataset, options)
    return records.MeasurementRecord(
        cell_id=classifier.id,
        measurement_id=digest(fields),
        cell=classifier.identity,
        measurement=fields,
        value=found.value,
        unit=found.unit,
        n=found.n,
        details=found.details,
        versions=backend.versions(),
        device=backend.device_name(),
        seconds=round(seconds, 3),
    )


# ---------------------------------------------------------------- tilt


def _tilt(subject: _Subject) -> Measured:
    """Arrays: `angles` float32 [n] in degrees. In a plane also what is to be drawn: `points` [m, 2] with `labels`, the
    `weights` [2] and `bias` of class 0's margin, and `mean` and `scale` [2] of BN of the input, if it has one."""
    classifier, labels = subject.classifier, subject.examples.labels
    gradients, rivals = subject.margins
    means = data.class_centroids(
        config.Data(name=classifier.dataset, validation=classifier.validation, classes=classifier.classes),
        classifier.width,
    )
    angles = tilt.angle(gradients, means[labels] - means[rivals])
    usable = np.isfinite(angles)
    arrays: Arrays = {"angles": angles.astype(np.float32)}
    if gradients.shape[1] == 2:
        arrays |= _boundary(classifier, subject.pixels.reshape(-1, 2), labels, gradients)
    quartiles = np.percentile(angles[usable], [25, 50, 75])
    details = dict(zip(("quartile_1", "median", "quartile_3"), map(float, quartiles), strict=True))
    return Measured(float(angles[usable].mean()), "deg", int(usable.sum()), details, arrays)


def margin_gradients(
    classifier: Classifier, x: NDArray[np.float32], labels: NDArray[np.int32]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """(gradients [n, d] of the margins z_y - z_k at pixels x [n, h, w, c], the strongest other classes k int32 [n])."""
    tf = backend.tensorflow()

    def gradient(x: Any, y: Any) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            logits = classifier.predict(x)
            own = tf.one_hot(y, logits.shape[1], dtype=logits.dtype)
            rivals = tf.argmax(tf.where(own > 0, logits.dtype.min, logits), axis=1, output_type=tf.int32)
            other = tf.one_hot(rivals, logits.shape[1], dtype=logits.dtype)
            margin = tf.reduce_sum(logits * (own - other))
        return tape.gradient(margin, x), rivals

    compiled = backend.compile(gradient)
    pieces = [
        compiled(tf.constant(x[i : i + BATCH_SIZE]), tf.constant(labels[i : i + BATCH_SIZE]))
        for i in range(0, len(x), BATCH_SIZE)
    ]
    gradients, rivals = (np.concatenate([np.asarray(part) for part in parts]) for parts in zip(*pieces, strict=True))
    return gradients.reshape(len(x), -1), rivals


def _boundary(
    classifier: Classifier, points: NDArray[np.float32], labels: NDArray[np.int32], gradients: NDArray[np.float32]
) -> Arrays:
    """What is drawn of a linear classifier of the plane."""
    origin = np.asarray(classifier.predict(np.zeros((1, 1, 1, 2), np.float32)))[0]
    sign = 1.0 if labels[0] == 0 else -1.0
    arrays: Arrays = {
        "points": points[:POINTS],
        "labels": labels[:POINTS],
        "weights": (sign * gradients[0]).astype(np.float64),
        "bias": np.asarray(origin[0] - origin[1], np.float64),
    }
    for layer in backend.leaf_layers(classifier.model):
        if type(layer).__name__ == "BatchNormalization":
            variance = np.asarray(layer.moving_variance, np.float64)
            arrays |= {"mean": np.asarray(layer.moving_mean), "scale": np.sqrt(variance + layer.epsilon)}
    return arrays


# ---------------------------------------------------------------- spectrum


def _spectrum(subject: _Subject, options: Spectrum) -> Measured:
    """Arrays, for each principal component of the training images: `variance`, `gain`, `energy`, float64 [d]."""
    training, _ = trained_on(subject.classifier)
    variance, directions = spectrum.principal_components(_resized(training.images, subject.classifier.width))
    gradients, _ = subject.margins
    energy = spectrum.energy(gradients, directions)
    gain = spectrum.gain(jacobians(subject.classifier, subject.pixels), directions)
    value = spectrum.low_variance_share(energy, variance, options.low_variance)
    details = {"components": float(len(variance)), "largest_gain": float(gain.max())}
    usable = int(gradients.any(axis=1).sum())
    return Measured(value, "%", usable, details, {"variance": variance, "gain": gain, "energy": energy})


def _resized(images: NDArray[Any], width: int) -> NDArray[Any]:
    return images if images.shape[1] == width else pixel_array(images, width)


def jacobians(classifier: Classifier, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Derivatives of the logits, centred over the classes since only their differences classify, [n, classes, d]."""
    tf = backend.tensorflow()

    def jacobian(x: Any) -> Any:
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            logits = classifier.predict(x)
            centred = logits - tf.reduce_mean(logits, axis=1, keepdims=True)
            columns = tf.unstack(tf.reduce_sum(centred, axis=0))
        return tf.stack([tape.gradient(column, x) for column in columns], axis=1)

    compiled = backend.compile(jacobian)
    pieces = [np.asarray(compiled(tf.constant(x[i : i + BATCH_SIZE]))) for i in range(0, len(x), BATCH_SIZE)]
    found = np.concatenate(pieces)
    return found.reshape(*found.shape[:2], -1)


# ---------------------------------------------------------------- fooling images


def _fooling(subject: _Subject, options: Fooling) -> Measured:
    """Arrays: `steps` int32 [n], `reached` bool [n] and `confidence` float32 [n] of all images, of which image i is led
    to class i mod the number of classes; and as `images`, to be drawn, the first for each class, float16 [classes,
    height, width, channels], as many as fit."""
    classifier = subject.classifier
    noise, targets = fooling.starts(options, classifier.width, classifier.info)
    found = fooling.ascend(classifier.predict, noise, targets, options, classifier.info)
    offset = (found.images - noise).reshape(len(noise), -1)
    details = {
        "reached": float(found.reached.mean()),
        "confidence": float(found.after.mean()),
        "distance": float(np.linalg.norm(offset, axis=1).mean()),
    }
    images = found.images[: len(classifier.info.classes)].astype(np.float16)
    arrays: Arrays = {
        "steps": found.steps,
        "reached": found.reached,
        "confidence": found.confidence,
        "images": images[: max(1, DRAWN_BYTES // images[0].nbytes)],
    }
    return Measured(float(found.steps.mean()), "steps", len(noise), details, arrays)


# ---------------------------------------------------------------- statistics of batches


def _batch_statistics(subject: _Subject, options: BatchStatistics) -> Measured:
    """Arrays: `shift` and `scale` float32 [layers], in the order that the layers are reached. Without BN no value, and
    arrays without elements."""
    classifier = subject.classifier
    found = _moments(subject, options) if bn_statistics.has_batch_normalization(classifier.model) else []
    shifts, scales = [], []
    for seen in found:
        mean, variance = (np.asarray(v) for v in (seen.layer.moving_mean, seen.layer.moving_variance))
        shifts.append(moments.shift(seen.means, mean, variance, seen.layer.epsilon))
        scales.append(moments.log_scale(seen.variances, variance, seen.layer.epsilon))
    if not np.isfinite([*shifts, *scales]).all():
        raise BnvulnError(NOT_FINITE)
    arrays = {"shift": np.asarray(shifts, np.float32), "scale": np.asarray(scales, np.float32)}
    if not found:
        return Measured(None, options.unit, 0, {}, arrays)
    batches = len(found[0].means)
    n = min(len(subject.examples), batches * options.batch_size)
    details = {"scale": float(np.mean(scales)), "layers": float(len(found)), "batches": float(batches)}
    return Measured(float(np.mean(shifts)), options.unit, n, details, arrays)


def _moments(subject: _Subject, options: BatchStatistics) -> list[bn_statistics.InputMoments]:
    """Those of whole batches, or of all examples where they are fewer than a batch."""
    classifier, examples, size = subject.classifier, subject.in_random_order, options.batch_size

    def piece(begin: int) -> NDArray[np.float32]:
        images = examples.images[begin : begin + size]
        if options.perturbation is not None:
            index = examples.index[begin : begin + size]
            images = noise.add_noise(images, index, options.perturbation, classifier.info)
        return pixel_array(images, classifier.width)

    begins = range(0, max(1, len(examples) // size) * size, size)
    return bn_statistics.input_moments(classifier.model, classifier.predict, map(piece, begins))

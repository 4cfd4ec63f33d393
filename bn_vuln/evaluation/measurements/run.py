"""The loop over the measurements of a classifier, and their records."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from bn_vuln import records
from bn_vuln.config import BatchStatistics, Evaluation, Fooling, Measurement, Spectrum
from bn_vuln.errors import UsageError
from bn_vuln.evaluation import recording
from bn_vuln.evaluation.classifier import Classifier
from bn_vuln.evaluation.eval_set import load, with_statistics
from bn_vuln.evaluation.measurements import bn_shift, fooling, spectrum, tilt
from bn_vuln.evaluation.measurements.base import MeasuredModel
from bn_vuln.models import bn_statistics
from bn_vuln.runtime.progress import Progress, Quiet

BATCH_STATISTICS_UNSUPPORTED = (
    "bn_statistics: batch: tilt, spectrum and fooling need per-example logits; use tracked or reestimated BN statistics"
)
MOST_NUMBERS = 10_000  # of an image, for its principal components: minutes, and several matrices of 0.8 GB
NO_BATCH_NORM = "not applicable: the model has no batch norm"


def measure(
    classifier: Classifier,
    measurements: Mapping[str, Measurement],
    evaluation: Evaluation | None = None,
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[str, records.MeasurementRecord]]:
    """Measure a classifier, one number after another.

    Args:
        classifier: the classifier.
        measurements: by name.
        evaluation: data set, split, limit and BN statistics; None: all test examples of its own data set.
        folder: run folder that each record is written into as soon as it is there.
        progress: where messages go.

    Yields:
        (name, record).

    Raises:
        UsageError: see `check`, and `eval_set.load`.
        BnvulnError: for a classifier without gradients, or whose activations are not finite.
    """
    evaluation, progress = evaluation or Evaluation(), progress or Quiet()
    if not measurements:
        return
    check(classifier, measurements, evaluation)
    examples = load(classifier, evaluation)
    model = MeasuredModel(with_statistics(classifier, evaluation), examples, evaluation)
    for name, options in measurements.items():
        begun = time.monotonic()
        if isinstance(options, BatchStatistics):
            result = bn_shift.measure(model, options)
        elif isinstance(options, Fooling):
            result = fooling.measure(model, options)
        else:
            result = spectrum.measure(model, options) if isinstance(options, Spectrum) else tilt.measure(model)
        record = recording.measurement(
            classifier,
            recording.identity(evaluation, examples.info.name, options),
            time.monotonic() - begun,
            value=result.value,
            unit=result.unit,
            n=result.n,
            details=result.details,
        )
        if folder is not None:
            records.write_measurement(folder, record, result.arrays)
        summary = NO_BATCH_NORM
        if result.value is not None:
            summary = f"{100 * result.value if result.unit == '%' else result.value:.4g} {result.unit}"
        progress.message(f"{name}: {summary}")
        yield name, record


def check(classifier: Classifier, measurements: Mapping[str, Measurement], evaluation: Evaluation) -> None:
    """Refuse measurements that are not possible with the BN statistics of the evaluation, or images as large.

    Args:
        classifier: the classifier.
        measurements: by name.
        evaluation: its `bn_statistics` matter.

    Raises:
        UsageError: with the statistics of the batch, for all measurements but their own distance; for the spectrum of
            images of more than `MOST_NUMBERS`.
    """
    of_the_batch = evaluation.bn_statistics == "batch" and bn_statistics.has_batch_normalization(classifier.model)
    if of_the_batch and not all(isinstance(options, BatchStatistics) for options in measurements.values()):
        raise UsageError(BATCH_STATISTICS_UNSUPPORTED)
    height, width = classifier.size
    numbers = height * width * classifier.channels
    if numbers > MOST_NUMBERS and any(isinstance(options, Spectrum) for options in measurements.values()):
        raise UsageError(
            f"spectrum: it takes the principal components of images of up to {MOST_NUMBERS:,} numbers, those of this "
            f"model have {numbers:,} ({height}x{width}x{classifier.channels}); leave it out, in a suite of your own "
            "with measurements: {tilt: {kind: tilt}}"
        )

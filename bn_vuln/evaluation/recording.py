"""Records of what was measured of a classifier, and their ids: the one place that makes them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from bn_vuln import records
from bn_vuln.analysis import metrics
from bn_vuln.config import Evaluation, digest, perturbation_identity
from bn_vuln.evaluation.classifier import Classifier
from bn_vuln.runtime import backend
from bn_vuln.typing import Labels, Logits, Plain


def identity(evaluation: Evaluation, dataset: str, options: BaseModel) -> Plain:
    """Return what identifies a perturbation or a measurement.

    Args:
        evaluation: split, limit and BN statistics.
        dataset: name that identifies the data that are measured on.
        options: config of the perturbation or the measurement.

    Returns:
        Its fields; `digest` of them is the id.
    """
    return perturbation_identity(evaluation.model_copy(update={"dataset": dataset}), dataset, options)


def accuracy(
    classifier: Classifier, identity: Plain, logits: Logits, labels: Labels, seconds: float, **fields: object
) -> records.Record:
    """Make the record of an accuracy.

    Args:
        classifier: the classifier.
        identity: what identifies the perturbation, see `identity`.
        logits: float32 [n, classes], of the perturbed images.
        labels: int32 [n], the true classes.
        seconds: wall time.
        fields: further fields of the record.

    Returns:
        The record.
    """
    correct = metrics.is_correct(logits, labels)
    found = {
        "perturbation_id": digest(identity),
        "perturbation": identity,
        "n": len(labels),
        "correct": int(correct.sum()),
        "accuracy": float(correct.mean()),
        "top5": metrics.top5(logits, labels),
        "loss": metrics.cross_entropy(logits, labels),
        "held_off": classifier.held_off,
    }
    return records.Record.model_validate({**found, **_shared(classifier, seconds), **fields})


def measurement(classifier: Classifier, identity: Plain, seconds: float, **fields: object) -> records.MeasurementRecord:
    """Make the record of a measurement.

    Args:
        classifier: the classifier.
        identity: what identifies the measurement, see `identity`.
        seconds: wall time.
        fields: value, unit, n, details.

    Returns:
        The record.
    """
    found = {"measurement_id": digest(identity), "measurement": identity, "held_off": classifier.held_off}
    return records.MeasurementRecord.model_validate({**found, **_shared(classifier, seconds), **fields})


def _shared(classifier: Classifier, seconds: float) -> dict[str, Any]:
    """The fields that all records of a classifier have."""
    return {
        "cell_id": classifier.id,
        "cell": classifier.identity,
        "versions": backend.versions(),
        "device": backend.device_name(),
        "seconds": round(seconds, 3),
    }

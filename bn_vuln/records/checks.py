"""Checks of what is read: numbers that fit together, and ids that are those of what they name.

Each function raises `ValueError`, which says what was expected and what was received.
"""

from __future__ import annotations

import csv
import io
import math

from pydantic import BaseModel

from bn_vuln.config import digest
from bn_vuln.records import digests
from bn_vuln.records.schema import ExternalRecord, MeasurementRecord, Record, TrainingRecord
from bn_vuln.typing import Mask, Plain

TOLERANCE = 1e-9  # of a fraction that is stored beside its two counts
UPPER_BOUNDS = {"%": 1.0, "deg": 180.0}  # of measurements, by unit; percent are stored as fractions
DATASET_FIELDS = ("name", "shape", "classes", "mean", "std", "sizes")  # of `data.DatasetInfo`
HISTORY_FRACTIONS = ("train_accuracy", "validation_accuracy")


def check_numbers(record: BaseModel) -> None:
    """Check the numbers of a record: ranges, and fractions beside their counts."""
    if isinstance(record, Record):
        _check_record(record)
    elif isinstance(record, MeasurementRecord):
        _check_measurement(record)
    elif isinstance(record, TrainingRecord):
        _check_training(record)


def check_ids(record: BaseModel) -> None:
    """Check that every id in a record is the hash of what it names."""
    if isinstance(record, Record):
        check_id("cell_id", record.cell_id, record.cell, "cell")
        check_id("perturbation_id", record.perturbation_id, record.perturbation, "perturbation")
    elif isinstance(record, MeasurementRecord):
        check_id("cell_id", record.cell_id, record.cell, "cell")
        check_id("measurement_id", record.measurement_id, record.measurement, "measurement")
    elif isinstance(record, ExternalRecord):
        check_id("cell_id", record.cell_id, record.identity, "identity")


def check_id(name: str, received: str, hashed: object, of: str) -> None:
    """Check that an id is the hash of what it names."""
    try:
        expected = digest(hashed)
    except RecursionError:
        raise ValueError(f"{of}: nested too deeply") from None
    if received != expected:
        raise ValueError(f"{name}: expected {expected}, the hash of its {of}, received {received}")


def check_outcomes(correct: Mask, record: Record) -> None:
    """Check the per-example outcomes of a record against its counts."""
    if len(correct) != record.n or int(correct.sum()) != record.correct:
        raise ValueError(
            f"{int(correct.sum())} of {len(correct)} examples are correct, but {record.correct} of {record.n} in the "
            "record"
        )


def check_history(text: str, training: TrainingRecord | None = None) -> None:
    """Check the epochs of a training: numbered from 1, numbers alone; as many, and as good, as its record says."""
    header, *rows = list(csv.reader(io.StringIO(text), strict=True)) or [[]]
    if header[:1] != ["number"] or len(set(header)) < len(header):
        raise ValueError(f"expected a header that begins with number, received {','.join(header)[:80]!r}")
    for i, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise ValueError(f"epoch {i}: {len(row)} columns, not {len(header)}")
        try:
            values = dict(zip(header, map(float, row), strict=True))
        except ValueError:
            raise ValueError(f"epoch {i}: not all columns are numbers") from None
        if values["number"] != i:
            raise ValueError(f"expected epoch {i}, received {row[0]}")
        for name in HISTORY_FRACTIONS:
            _check_fraction(f"epoch {i}: {name}", values.get(name))
        for name in ("loss", *HISTORY_FRACTIONS) if training is not None and training.best_epoch == i else ():
            if name in values and values[name] != getattr(training, name):
                raise ValueError(f"epoch {i}: {name} {values[name]!r}, but {getattr(training, name)!r} in its record")
    if training is not None and len(rows) != training.epochs:
        raise ValueError(f"{len(rows)} epochs, but {training.epochs} in the record of the training")
    if training is not None and training.history_sha256 not in (None, digests.of_text(text)):
        raise ValueError("their sha256 is another one than in the record of the training")


# ---------------------------------------------------------------- by kind


def _check_record(record: Record) -> None:
    _check_counts("n", 1, record.n)
    _check_counts("correct", 0, record.correct, record.n)
    _check_share("accuracy", record.accuracy, record.correct, record.n)
    _check_fraction("top5", record.top5)
    _check_fraction("target_rate", record.target_rate)
    for name in ("loss", "seconds", "n_evaluations", "mean_distance", "median_distance"):
        _check_at_least_zero(name, getattr(record, name))
    left = record.n
    for name, robust in record.robust_after.items():
        _check_counts(f"robust_after {name}", 0, robust, left)
        left = robust
    _check_counts("source_correct", 0, record.source_correct or 0, record.n)
    _check_counts("eligible", 0, record.eligible or 0, record.n)
    _check_counts("transferred", 0, record.transferred or 0, min(record.eligible or 0, record.n - record.correct))
    for flag in record.flags:
        _check_finite(f"value of the flag of check {flag.check}", flag.value)
    _check_kind(record.perturbation)


def _check_measurement(record: MeasurementRecord) -> None:
    _check_counts("n", 0, record.n)
    if (record.value is None) != (record.n == 0):
        raise ValueError(f"value: {record.value} over {record.n} examples")
    _check_at_least_zero("value", record.value)
    if record.value is not None and record.value > UPPER_BOUNDS.get(record.unit, math.inf) + TOLERANCE:
        raise ValueError(f"value: expected at most {UPPER_BOUNDS[record.unit]:g}, received {record.value}")
    for name, value in record.details.items():
        _check_finite(f"details.{name}", value)
    _check_at_least_zero("seconds", record.seconds)
    _check_kind(record.measurement)


def _check_training(record: TrainingRecord) -> None:
    if record.state not in ("trained", "failed"):
        raise ValueError(f"state: expected trained or failed, received {record.state!r}")
    _check_counts("epochs", 0, record.epochs)
    if record.best_epoch is not None:
        _check_counts("best_epoch", 1, record.best_epoch, record.epochs)
    for name in ("loss", "images_per_second", "seconds", "parameters"):
        _check_at_least_zero(name, getattr(record, name))
    for name in HISTORY_FRACTIONS:
        _check_fraction(name, getattr(record, name))
    if record.dataset_info is not None:
        missing = [name for name in DATASET_FIELDS if name not in record.dataset_info]
        if missing:
            raise ValueError(f"dataset_info: {', '.join(missing)} missing")


# ---------------------------------------------------------------- numbers


def _check_counts(name: str, least: int, received: int, most: int | None = None) -> None:
    if received < least or (most is not None and received > most):
        bounds = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"{name}: expected {bounds}, received {received}")


def _check_share(name: str, received: float, count: int, n: int) -> None:
    if not abs(received - count / n) <= TOLERANCE:
        raise ValueError(f"{name}: expected {count} / {n} = {count / n:.6g}, received {received}")


def _check_fraction(name: str, received: float | None) -> None:
    if received is not None and not 0 <= received <= 1:
        raise ValueError(f"{name}: expected 0 to 1, received {received}")


def _check_at_least_zero(name: str, received: float | None) -> None:
    if received is not None and not 0 <= received < math.inf:
        raise ValueError(f"{name}: expected a finite number, at least 0, received {received}")


def _check_finite(name: str, received: float) -> None:
    if not math.isfinite(received):
        raise ValueError(f"{name}: expected a finite number, received {received}")


def _check_kind(measured: Plain) -> None:
    if not isinstance(measured.get("kind"), str):
        raise ValueError("kind: missing in what was measured")

"""Made-up records of a small experiment, written as a run would write them. No TensorFlow."""

from __future__ import annotations

import copy
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln import records
from bn_vuln.config import (
    METRICS,
    Cell,
    EvaluationPlan,
    Experiment,
    digest,
    identity_of,
    perturbation_identity,
    to_yaml,
    validate,
    with_eps_grid,
)
from bn_vuln.config.grid import cell_plans, expand
from bn_vuln.experiments.runner import experiment_path
from bn_vuln.records import Flag, MeasurementRecord, Record, TrainingRecord
from bn_vuln.runtime.files import atomic_write

DEVICE = "CPU made up"
MACHINE: dict[str, Any] = {"versions": {"tensorflow": "2.99", "bnvuln": "0.0"}, "device": DEVICE}
HARMS: dict[str, Any] = {"kind": "value", "value": -0.4, "sem": 0.01}  # by 40 points
SMALL: dict[str, Any] = {
    "name": "small",
    "title": "A small experiment",
    "claim": "Batch norm harms.",
    "source": "made up",
    "base": {"train": {"epochs": 1}},
    "grid": {"data.width": [28], "normalization": ["none", "batch"]},
    "seeds": [0, 1, 2, 3],
    "perturbations": {"clean": {"kind": "clean"}, "bim": {"kind": "attack", "attack": "bim", "eps": 0.1}},
    "table": {"rows": ["data.width"], "columns": {"clean": "clean", "bim": "BIM"}},
    "claims": [{**HARMS, "where": {"data.width": 28}, "perturbations": ["bim"], "source": "text"}],
}
# By arm and perturbation, the accuracy of each seed: batch norm costs nothing clean and about 40 points under BIM.
HARM: dict[tuple[str, str], Sequence[float]] = {
    ("none", "clean"): (0.970, 0.972, 0.968, 0.970),
    ("batch", "clean"): (0.971, 0.973, 0.969, 0.971),
    ("none", "bim"): (0.660, 0.650, 0.670, 0.660),
    ("batch", "bim"): (0.260, 0.255, 0.265, 0.258),
}

Accuracy = Callable[[Cell, str], float | None]
Arrays = Callable[[Cell, str], Mapping[str, NDArray[Any]]]


def small(**changes: Any) -> Experiment:
    """The small experiment with some of its fields replaced."""
    return validate(Experiment, {**copy.deepcopy(SMALL), **Experiment.with_present_names(changes)}, "small.yaml")


def by_arm(values: Mapping[tuple[str, str], Sequence[float | None]]) -> Accuracy:
    """Accuracies by arm and perturbation, of which the seed picks one; None where there is none."""

    def accuracy(cell: Cell, name: str) -> float | None:
        own = values.get((cell.normalization.name, name), ())
        return own[cell.seed] if cell.seed < len(own) else None

    return accuracy


def never(cell: Cell) -> bool:
    """No cell."""
    return False


def nothing(cell: Cell, name: str) -> None:
    """No number."""


def no_arrays(cell: Cell, name: str) -> dict[str, NDArray[Any]]:
    """No array."""
    return {}


def wobble(cell: Cell, size: float = 5e-4) -> float:
    """A spread over the seeds, another one for each cell: a fixed number from -size to size."""
    return size * (int(digest(identity_of(cell)), 16) % 201 - 100) / 100


def fill(
    root: Path,
    experiment: Experiment,
    accuracy: Accuracy,
    *,
    n: int | Callable[[str], int] = 1000,
    failed: Callable[[Cell], bool] = never,
    missing: Callable[[Cell], bool] = never,
    flags: Callable[[Cell, str], Sequence[Flag]] = lambda cell, name: (),
    also: Accuracy = nothing,
    arrays: Arrays = no_arrays,
) -> Path:
    """Write a results folder: `failed` cells did not train, `missing` ones were not run; `root`.

    Columns NAME@EVALUATION are asked for as such; `n` examples, or so many of each column.
    `also` are the numbers of columns that are no accuracies: other metrics of a perturbation (NAME.METRIC),
    measurements, and details of these (NAME.DETAIL). Measurements and minimum-norm attacks have the `arrays` beside
    them.
    """
    atomic_write(experiment_path(root, experiment), to_yaml(experiment))
    cells = expand(experiment)
    for cell, plans in zip(cells, cell_plans(experiment, cells), strict=True):
        if missing(cell):
            continue
        folder = root / digest(identity_of(cell))
        atomic_write(folder / "training.json", records.to_json(training(folder.name, failed=failed(cell))))
        for plan in () if failed(cell) else plans:
            _write_plan(folder, cell, plan, accuracy, n, flags, also, arrays)
    return root


def _write_plan(
    folder: Path,
    cell: Cell,
    plan: EvaluationPlan,
    accuracy: Accuracy,
    n: int | Callable[[str], int],
    flags: Callable[[Cell, str], Sequence[Flag]],
    also: Accuracy,
    arrays: Arrays,
) -> None:
    """The records of one cell at one evaluation."""
    for name, perturbation in with_eps_grid(plan.perturbations).items():
        column = plan.column(name)
        value, examples = accuracy(cell, column), n(column) if callable(n) else n
        if value is not None:
            having = {key: m.field for key, m in METRICS.items() if key != "accuracy" and m.unit(perturbation)}
            metrics = {field: also(cell, plan.column(f"{name}.{key}")) for key, field in having.items()}
            beside = arrays(cell, column) if perturbation.kind == "minimal" else {}
            write_at(folder, plan, cell, name, value, examples, flags(cell, column), arrays=beside, **metrics)
    for name, measurement in plan.measurements.items():
        column = plan.column(name)
        value, examples = also(cell, column), n(column) if callable(n) else n
        if value is not None:
            known = {d: also(cell, plan.column(f"{name}.{d}")) for d in measurement.details}
            details = {detail: number for detail, number in known.items() if number is not None}
            write_measurement(folder, plan, cell, name, value, examples, arrays(cell, column), details)


def write(folder: Path, experiment: Experiment, cell: Cell, name: str, *rest: Any, **options: Any) -> Path:
    """Write one record of a cell at the experiment's own evaluation, as `write_at` does."""
    return write_at(folder, experiment.plans[0], cell, name, *rest, **options)


def write_at(
    folder: Path,
    plan: EvaluationPlan,
    cell: Cell,
    name: str,
    accuracy: float,
    n: int,
    flags: Sequence[Flag] = (),
    *,
    arrays: Mapping[str, NDArray[Any]] = MappingProxyType({}),
    **metrics: float | None,
) -> Path:
    """Write one record of a cell, the first of its n outcomes correct; `metrics` are further fields of it."""
    perturbation = with_eps_grid(plan.perturbations)[name]
    fields = perturbation_identity(plan.evaluation, cell.data.canonical, perturbation)
    correct, rate = min(n, round(accuracy * n)), metrics.pop("transfer_rate", None)
    if metrics.get("top5") is not None:
        metrics["top5"] = min(1.0, metrics["top5"])
    record = Record(
        cell_id=folder.name,
        perturbation_id=digest(fields),
        cell=identity_of(cell),
        perturbation=fields,
        n=n,
        correct=correct,
        accuracy=correct / n,
        corruption_source="made" if perturbation.kind == "corruption" else None,
        eligible=None if rate is None else n - correct,
        transferred=None if rate is None else round(rate * (n - correct)),
        flags=tuple(flags),
        seconds=1.0,
        **metrics,
        **MACHINE,
    )
    return records.write_record(folder, record, np.arange(n) < correct, arrays)


def write_measurement(
    folder: Path,
    plan: EvaluationPlan,
    cell: Cell,
    name: str,
    value: float,
    n: int,
    arrays: Mapping[str, NDArray[Any]] = MappingProxyType({}),
    details: Mapping[str, float] = MappingProxyType({}),
) -> Path:
    """Write one measurement of a cell, in the unit of its column."""
    measurement = plan.measurements[name]
    fields = perturbation_identity(plan.evaluation, cell.data.canonical, measurement)
    record = MeasurementRecord(
        cell_id=folder.name,
        measurement_id=digest(fields),
        cell=identity_of(cell),
        measurement=fields,
        value=value,
        unit=measurement.unit,
        n=n,
        details=dict(details),
        seconds=1.0,
        **MACHINE,
    )
    return records.write_measurement(folder, record, dict(arrays))


def write_model(path: Path, weights: str) -> None:
    """Write what looks like a `.keras` file from outside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", weights)


def training(cell_id: str, *, failed: bool = False, seconds: float = 10.0) -> TrainingRecord:
    """How a training ended."""
    return TrainingRecord(
        cell_id=cell_id,
        state="failed" if failed else "trained",
        reason="the loss is not finite" if failed else None,
        best_epoch=None if failed else 1,
        epochs=1,
        loss=None if failed else 0.1,
        train_accuracy=None if failed else 0.99,
        validation_accuracy=None if failed else 0.97,
        parameters=100,
        images_per_second=1000.0,
        seconds=seconds,
        **MACHINE,
    )

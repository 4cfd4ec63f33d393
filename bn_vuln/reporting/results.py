"""The parts of an experiment's table: runs, values of an arm in a column, blocks of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bn_vuln import records
from bn_vuln.analysis.statistics import Estimate, estimate
from bn_vuln.config import DISTANCE_SUFFIX, EVALUATION_SEPARATOR, LOSS_SUFFIX, Cell
from bn_vuln.records import Store


@dataclass(frozen=True)
class Run:
    """One cell with what a store holds of it.

    Records are named by their perturbation, measurements by their own name, and both by NAME@EVALUATION where they
    belong to an extra evaluation. Their arrays and outcomes are read from the store when they are asked for.
    """

    cell: Cell
    arm: str
    store: Store
    cell_id: str
    training: records.TrainingRecord | None
    found: dict[str, records.Record]
    measured: dict[str, records.MeasurementRecord]

    @property
    def failed(self) -> bool:
        return self.training is not None and self.training.state == "failed"

    def value(self, column: str) -> float | None:
        """Its number in a column that is not derived: an accuracy, a loss, a distance, a measurement or a detail of
        one; None where there is none."""
        if column in self.measured:
            return self.measured[column].value
        if column in self.found:
            return self.found[column].accuracy
        record, measurement, name = (
            self.record(column),
            self.measurement(column),
            column.partition(EVALUATION_SEPARATOR)[0],
        )
        if record is not None:
            return record.loss if name.endswith(LOSS_SUFFIX) else record.mean_distance
        return measurement.details.get(name.rpartition(".")[2]) if measurement else None

    def record(self, column: str) -> records.Record | None:
        """The record that a column's number is from; None for a measurement."""
        name, at, where = column.partition(EVALUATION_SEPARATOR)
        return self.found.get(column) or self.found.get(
            name.removesuffix(LOSS_SUFFIX).removesuffix(DISTANCE_SUFFIX) + at + where
        )

    def measurement(self, column: str) -> records.MeasurementRecord | None:
        """The measurement that a column's number is from, or that it is a detail of; None for a perturbation."""
        name, at, where = column.partition(EVALUATION_SEPARATOR)
        return self.measured.get(column) or self.measured.get(name.rpartition(".")[0] + at + where)

    def has_no(self, column: str) -> bool:
        """Whether it was measured that the model has no such number, as without BN the distance of its statistics."""
        measurement = self.measurement(column)
        return measurement is not None and measurement.value is None

    def examples(self, column: str) -> int | None:
        """How many examples its number in a column that is not derived is from."""
        record = self.record(column) or self.measurement(column)
        return record.n if record else None


@dataclass(frozen=True)
class Value:
    """The numbers of one arm in one column, by seed, with the flags of their records. `failed` and `missing` count
    seeds that did not train, or have no record yet: they are never averaged in. Where a model has no such number, as
    without BN the distance of its statistics, none counts. `n_examples`: None where a derived column is computed from
    columns of different numbers of them."""

    by_seed: dict[int, float]
    failed: int
    missing: int
    flags: tuple[records.Flag, ...]
    n_examples: int | None

    @property
    def estimate(self) -> Estimate | None:
        return estimate(list(self.by_seed.values())) if self.by_seed else None


@dataclass(frozen=True)
class Difference:
    """treatment - reference: paired by seed, and unpaired (SEMs in quadrature); None without records."""

    paired: Estimate | None
    unpaired: Estimate | None


@dataclass(frozen=True)
class Block:
    """The rows of the table that share `where` (values of the layout's row keys): arm -> column -> value."""

    where: dict[str, Any]
    arms: dict[str, dict[str, Value]]
    differences: dict[str, Difference]
    runs: tuple[Run, ...]
    selected: bool = False


def has(block: Block, where: dict[str, Any]) -> bool:
    """Whether a block has these values of its row keys."""
    return all(block.where.get(key) == value for key, value in where.items())


def mean_over_arms(block: Block, name: str) -> float | None:
    """The mean of the arms' numbers in a column; None unless every arm has one and no seed of it failed."""
    values = [arm[name] for arm in block.arms.values()]
    estimates = [value.estimate for value in values]
    if any(e is None for e in estimates) or any(value.failed for value in values):
        return None
    return sum(e.mean for e in estimates if e) / len(estimates)

"""The parts of an experiment's table: runs, values of an arm in a column, blocks of rows."""

from __future__ import annotations

from dataclasses import dataclass

from bn_vuln.analysis.statistics import Estimate, estimate
from bn_vuln.config import METRICS, VALUE, Cell, Column
from bn_vuln.config.grid import is_in
from bn_vuln.records import Flag, MeasurementRecord, Record, Store, TrainingRecord
from bn_vuln.typing import Plain


@dataclass(frozen=True)
class Run:
    """One cell with what a store holds of it.

    Records and measurements are by name, as `Column.source`, and evaluation, as `Column.at`. Their arrays and outcomes
    are read from the store when they are asked for.
    """

    cell: Cell
    arm: str
    store: Store
    cell_id: str
    training: TrainingRecord | None
    records: dict[tuple[str, str], Record]
    measurements: dict[tuple[str, str], MeasurementRecord]

    @property
    def failed(self) -> bool:
        """True if the training did not learn."""
        return self.training is not None and self.training.state == "failed"

    def value(self, column: Column) -> float | None:
        """Return its number in a column that is not derived; None where there is none."""
        if record := self.record(column):
            number: float | None = getattr(record, METRICS[column.metric].field)
            return number
        measured = self.measurement(column)
        return {**measured.details, VALUE: measured.value}.get(column.metric) if measured else None

    def record(self, column: Column) -> Record | None:
        """Return the record that a column's number is from; None for a measurement."""
        return self.records.get((column.source, column.at))

    def measurement(self, column: Column) -> MeasurementRecord | None:
        """Return the measurement that a column is, or is a detail of; None for a perturbation."""
        return self.measurements.get((column.source, column.at))

    def is_not_applicable(self, column: Column) -> bool:
        """Return True if there is no such number, as the shift of BN statistics without BN, or an eps grid's loss."""
        return self.value(column) is None and (self.measurement(column) or self.record(column)) is not None

    def examples(self, column: Column) -> int | None:
        """Return the number of examples behind its number in a column that is not derived."""
        record = self.record(column) or self.measurement(column)
        return record.n if record else None


@dataclass(frozen=True)
class Value:
    """The numbers of one arm in one column, by seed, with the flags of their records.

    `failed` and `missing` count seeds that did not train, or have no record yet: they are never averaged in. A seed
    whose model has no such number is in neither. `n_examples` is None where a derived column is computed from columns
    of different numbers of examples.
    """

    by_seed: dict[int, float]
    failed: int
    missing: int
    flags: tuple[Flag, ...]
    n_examples: int | None

    @property
    def estimate(self) -> Estimate | None:
        """Mean, SEM and n over the seeds; None without a seed."""
        return estimate(list(self.by_seed.values())) if self.by_seed else None


@dataclass(frozen=True)
class Difference:
    """treatment - reference: paired by seed, and unpaired (SEMs in quadrature); None without records.

    `flags` are of check 15: the arms that an accuracy is compared of are not equally accurate on clean images.
    """

    paired: Estimate | None
    unpaired: Estimate | None
    flags: tuple[Flag, ...] = ()


@dataclass(frozen=True)
class Block:
    """The rows of the table that share `where` (values of the layout's row keys): arm -> column -> value."""

    where: Plain
    arms: dict[str, dict[str, Value]]
    differences: dict[str, Difference]
    runs: tuple[Run, ...]
    selected: bool = False


def has(block: Block, where: Plain) -> bool:
    """Return True if a block has these values of its row keys, of a list one."""
    return is_in(block.where, where)


def mean_over_arms(block: Block, name: str) -> float | None:
    """Return the mean of the arms' numbers in a column; None unless every arm has one and no seed of it failed."""
    values = [arm[name] for arm in block.arms.values()]
    estimates = [value.estimate for value in values]
    if any(e is None for e in estimates) or any(value.failed for value in values):
        return None
    return sum(e.mean for e in estimates if e) / len(estimates)

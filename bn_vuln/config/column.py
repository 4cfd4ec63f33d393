"""Columns of an experiment's table: where the numbers of each come from, its name and its unit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field, model_validator

from bn_vuln.config.measurement import ColumnUnit, Measurement
from bn_vuln.config.perturbation import Attack, Clean, MinimumNorm, Perturbation, Transfer, with_eps_grid
from bn_vuln.config.types import Frozen, reject_if

SEPARATOR = "@"  # between the name of a column and that of an extra evaluation
ACCURACY, VALUE = "accuracy", "value"  # the metrics of perturbations and of all else that a name does not tell


@dataclass(frozen=True)
class Metric:
    """A number of the record under a perturbation.

    Attributes:
        field: Its field in `records.Record`, or property.
        meaning: What it is, for legends. {under} becomes `on clean images` or `under PGD, ...`, {perturbation} the
            description of the perturbation alone.
        unit: Gives its unit under a perturbation; None for those that do not have it.
    """

    field: str
    meaning: str
    unit: Callable[[Perturbation], ColumnUnit | None]


def _unit_of_distances(options: Perturbation) -> ColumnUnit | None:
    if isinstance(options, MinimumNorm) or (isinstance(options, Attack) and options.min_eps_tolerance):
        return "pixels" if options.unit == "pixel" else "standardized"
    return None


# The column NAME is the accuracy under the perturbation NAME, the column NAME.METRIC another metric of it.
METRICS: dict[str, Metric] = {
    ACCURACY: Metric("accuracy", "accuracy {under}", lambda options: "%"),
    "top5": Metric("top5", "top-5 accuracy {under}", lambda options: "%"),
    "loss": Metric("loss", "mean cross-entropy {under}", lambda options: "nats"),
    "distance": Metric(
        "mean_distance",
        "mean distance from an image to the adversarial one found by {perturbation}",
        _unit_of_distances,
    ),
    "transfer_rate": Metric(
        "transfer_rate",
        "share of examples that are adversarial here, of those that are for the source and that both models classify "
        "correctly when clean: {perturbation}",
        lambda options: "%" if isinstance(options, Transfer) else None,
    ),
    "target_rate": Metric(
        "target_rate",
        "share of examples classified as the target {under}",
        lambda options: "%" if getattr(options, "target", "none") != "none" else None,
    ),
}


class DerivedColumn(Frozen):
    """A column computed from others, cell by cell, in their unit; empty where one of them is."""

    difference: tuple[str, ...] = Field((), description="Two columns, first - second.")
    mean: tuple[str, ...] = Field((), description="Two columns or more.")

    @model_validator(mode="after")
    def _is_one_of_both(self) -> DerivedColumn:
        columns = self.source_columns
        reject_if(
            (bool(self.difference) == bool(self.mean), "expected a difference or a mean"),
            (self.difference and len(columns) != 2, "a difference is that of two columns, received {n}"),
            (self.mean and len(columns) < 2, "a mean is that of at least two columns, received {n}"),
            (len({*columns}) < len(columns), "expected each column once, received {columns}"),
            n=len(columns),
            columns=", ".join(columns),
        )
        return self

    @property
    def source_columns(self) -> tuple[str, ...]:
        """The columns that it is computed from."""
        return self.difference or self.mean

    def compute(self, values: Sequence[float]) -> float:
        """Return the value of this column, given those of its source columns in their order."""
        return values[0] - values[1] if self.difference else sum(values) / len(values)


@dataclass(frozen=True)
class Column:
    """A column of an experiment's table. `str(column)` is its name: SOURCE or SOURCE.METRIC, and @AT where it has one.

    Attributes:
        source: The name of a perturbation (with its eps for a point of an eps grid: `strong 8/255`), of a measurement
            or of a derived column.
        metric: Of a perturbation one of METRICS; of a measurement `value` or one of its details; `value` of a derived
            column.
        at: The name of the extra evaluation; "" for the experiment's own.
        unit: The unit of its numbers; % and points are stored as fractions.
        perturbation: The options of the perturbation, with its whole eps grid; None for anything else.
        measurement: The options of the measurement; None for anything else.
        computed_from: The columns that a derived one is computed from.
    """

    source: str
    metric: str
    at: str
    unit: ColumnUnit
    perturbation: Perturbation | None = None
    measurement: Measurement | None = None
    computed_from: tuple[Column, ...] = ()

    def __str__(self) -> str:
        return column_name(self.source if self.is_plain else f"{self.source}.{self.metric}", self.at)

    @property
    def is_plain(self) -> bool:
        """True where the name does not tell the metric."""
        return self.metric in (ACCURACY, VALUE)

    @property
    def parts(self) -> tuple[Column, ...]:
        """The columns that a derived one is computed from; of any other only itself."""
        return self.computed_from or (self,)

    @property
    def is_accuracy(self) -> bool:
        """True for an accuracy under a perturbation, at any evaluation, or a mean of such."""
        return self.unit == "%" and all(part.metric == ACCURACY for part in self.parts)

    @property
    def is_clean(self) -> bool:
        """True for the accuracy on clean images, at any evaluation."""
        return isinstance(self.perturbation, Clean) and self.is_accuracy


def column_name(name: str, at: str) -> str:
    """Return the name of a column at an extra evaluation, NAME@AT; NAME where `at` is ""."""
    return f"{name}{SEPARATOR}{at}" if at else name


def measured_columns(
    perturbations: Mapping[str, Perturbation], measurements: Mapping[str, Measurement], at: str = ""
) -> Iterator[Column]:
    """Give all columns of perturbations and measurements, by name, at one evaluation."""
    for name, perturbation in perturbations.items():
        for source in with_eps_grid({name: perturbation}):
            for metric, kind in METRICS.items():
                if unit := kind.unit(perturbation):
                    yield Column(source, metric, at, unit, perturbation=perturbation)
    for name, measurement in measurements.items():
        for detail, unit in {VALUE: measurement.unit, **measurement.details}.items():
            yield Column(name, detail, at, unit, measurement=measurement)

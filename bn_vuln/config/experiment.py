"""Experiments: cells, their evaluation, the layout of the table, claims; and suites of perturbations."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from bn_vuln.config.claim import Claim, SignClaim
from bn_vuln.config.column import SEPARATOR, VALUE, Column, DerivedColumn, column_name, measured_columns
from bn_vuln.config.identity import digest, perturbation_identity
from bn_vuln.config.measurement import ColumnUnit, Measurement
from bn_vuln.config.perturbation import Evaluation, Perturbation, Transfer, with_eps_grid
from bn_vuln.config.types import Expand, Frozen, Index, NonNegative, config_error, nearest, reject_if
from bn_vuln.typing import Plain

Scale = Literal["smoke", "quick", "cpu", "full"]
SCALES: tuple[Scale, ...] = ("smoke", "quick", "cpu", "full")


class _Titled(Frozen):
    title: str = Field(description="Its heading.")
    claim: str = Field("", description="What it is for, in a sentence.")
    command: str = Field("", description="The command line that runs it.")
    cost: str = Field("", description="Run time, with its machine.")


class Suite(_Titled):
    """A set of perturbations and measurements, by name, for `bnvuln evaluate`."""

    evaluation: Evaluation = Field(Evaluation(), description="The images on which all of it is measured.")
    perturbations: dict[str, Perturbation] = Field(min_length=1, description="Perturbations, by name.")
    measurements: dict[str, Measurement] = Field({}, description="Measurements, by name.")


class ExtraEvaluation(Evaluation):
    """A further evaluation of an experiment, with the names of the perturbations and measurements made there too."""

    perturbations: tuple[str, ...] = Field(min_length=1, description="Names of those that are made here too.")
    measurements: tuple[str, ...] = Field((), description="Names of those that are made here too.")

    @property
    def evaluation(self) -> Evaluation:
        """The evaluation alone, as records are identified by it."""
        return Evaluation(**{name: getattr(self, name) for name in Evaluation.model_fields})


@dataclass(frozen=True)
class EvaluationPlan:
    """Perturbations and measurements, by name, and the evaluation at which they are made.

    `name` is "" for the experiment's own `evaluation`.
    """

    evaluation: Evaluation
    perturbations: Mapping[str, Perturbation]
    measurements: Mapping[str, Measurement] = field(default_factory=dict)
    name: str = ""

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources of its transfers."""
        return tuple(dict.fromkeys(one.source for one in self.perturbations.values() if isinstance(one, Transfer)))

    def column(self, name: str) -> str:
        """Return the name of the column NAME at this evaluation: NAME, or NAME@EVALUATION."""
        return column_name(name, self.name)

    def ids(self, dataset: str) -> dict[str, str]:
        """Return the ids of all perturbations and measurements, by name, of models that are trained on a data set."""
        every = {**with_eps_grid(self.perturbations), **self.measurements}
        return {name: digest(perturbation_identity(self.evaluation, dataset, own)) for name, own in every.items()}


class SelectionRule(Frozen):
    """The rule by which a row is chosen; the name of its column is its short form."""

    by: str = Field(description="The column whose mean over the arms is the highest in the chosen row.")
    per: tuple[str, ...] = Field((), description="Row keys; a row is chosen for each of their values.")
    of: str | None = Field(
        None,
        description="Choose among the rows alone in which this column is at most `within` below that of the row "
        "`where`.",
    )
    within: NonNegative = Field(0.0, description="Tolerance as a fraction (0.01 = 1 point).")
    where: Plain = Field({}, description="Values of row keys.")


Figure = Literal[
    "differences", "candidates", "curves", "boundaries", "spectra", "heatmaps", "matrix", "examples", "eps_curves"
]  # fmt: skip


class Table(Frozen):
    """The layout of the table and its figures.

    There is a block of rows for each value of the `rows` keys. Differences are `treatment` - `reference`.
    """

    stored_names: ClassVar[dict[str, str]] = {"select_by": "choice"}
    stored_values: ClassVar[dict[str, dict[str, str]]] = {"figures": {"eps_curves": "ladders"}}

    rows: tuple[str, ...] = Field((), description="Keys of the cells; each combination of their values is a row.")
    arm: str = Field("normalization.name", description="The key whose values are the arms.")
    arms: dict[str, Plain] = Field(
        {}, description="Instead of that, arms by name, with the values that their cells have."
    )
    reference: str = Field("none", description="The arm that is subtracted.")
    treatment: str = Field("batch", description="The arm that it is subtracted from.")
    columns: dict[str, str] = Field(
        min_length=1,
        description="Heading of each column, by its name: a perturbation, measurement, `PERTURBATION.loss`, "
        "`PERTURBATION.distance` or `MEASUREMENT.DETAIL`, any of these with `@EVALUATION`, or a derived column.",
    )
    select_by: Annotated[SelectionRule, BeforeValidator(Expand("by"))] | None = Field(
        None, description="Mark the row that this rule chooses."
    )
    figures: tuple[Figure, ...] = Field((), description="Kinds of figures. Empty: the one that suits the layout.")
    x: str | None = Field(None, description="The row key along which curves are drawn.")
    y: str | None = Field(None, description="The second row key of heat maps.")


class Experiment(Frozen):
    """An experiment: base + grid + seeds -> cells; perturbations and measurements -> records; layout and claims."""

    stored_names: ClassVar[dict[str, str]] = {"claims": "paper"}

    name: str = Field(description="Its name, and that of its report.")
    title: str = Field(description="Its heading.")
    claim: str = Field(description="What it is about, in a sentence.")
    command: str = Field("", description="The command line that runs it. A file that extends this one has its own.")
    cost: dict[Scale, str] = Field({}, description="Run time, as text, by scale, on two cores unless it says so.")
    source: str = Field(description="Where the claim is from.")
    notes: tuple[str, ...] = Field((), description="What readers of its numbers should know.")
    base: Plain = Field({}, description="Fields of every cell.")
    grid: dict[str, tuple[Any, ...]] = Field(
        min_length=1,
        description="Values by dotted key of a cell; every combination is trained, for each seed. Keys that are joined "
        "by commas take lists of values and move together.",
    )
    seeds: tuple[Index, ...] = Field(min_length=1, description="Every cell is trained once for each.")
    evaluation: Evaluation = Field(
        Evaluation(), description="The images on which all perturbations and measurements are made."
    )
    perturbations: dict[str, Perturbation] = Field(min_length=1, description="Perturbations, by name.")
    measurements: dict[str, Measurement] = Field({}, description="Measurements, by name.")
    evaluations: dict[str, ExtraEvaluation] = Field(
        {}, description="Extra evaluations, by name, of some of the perturbations and measurements."
    )
    derived: dict[str, DerivedColumn] = Field({}, description="Columns that are computed from others, by name.")
    scales: dict[Scale, Plain] = Field({}, description="Overrides by scale, of dotted keys.")
    scale: Scale = Field("full", description="The scale that it was resolved at; a file does not set it.")
    overrides: tuple[str, ...] = Field(
        (), description="The assignments (--set) that it was resolved with; a file does not set them."
    )
    table: Table = Field(description="The layout of the table and its figures.")
    claims: tuple[Claim, ...] = Field((), description="What is claimed, and what it is judged by.")
    remarks: dict[str, str] = Field({}, description="Remarks of several claims, by name.")

    @property
    def plans(self) -> tuple[EvaluationPlan, ...]:
        """The plans of `evaluation` and of each of the extra `evaluations`, in this order."""
        extra_plans = [
            EvaluationPlan(
                extra.evaluation,
                {key: self.perturbations[key] for key in extra.perturbations},
                {key: self.measurements[key] for key in extra.measurements},
                name,
            )
            for name, extra in self.evaluations.items()
        ]
        return EvaluationPlan(self.evaluation, self.perturbations, self.measurements), *extra_plans

    def remark(self, claim: Claim) -> str:
        """Return the text of a claim's remark."""
        return self.remarks.get(claim.remark, claim.remark)

    @cached_property
    def columns(self) -> dict[str, Column]:
        """Every column that the table can have, by its name."""
        measured = self._measured_columns()
        derived: dict[str, Column] = {}
        for name, options in self.derived.items():
            parts = tuple(measured[part] for part in options.source_columns)
            unit: ColumnUnit = "points" if options.difference and parts[0].unit == "%" else parts[0].unit
            derived[name] = Column(name, VALUE, "", unit, computed_from=parts)
        return measured | derived

    @property
    def as_published(self) -> bool:
        """True at full scale without overrides: only then are verdicts more than previews."""
        return self.scale == "full" and not self.overrides

    def _measured_columns(self) -> dict[str, Column]:
        """Return all columns that are not derived, by name; a perturbation's own name goes before that of a metric."""
        every = [c for plan in self.plans for c in measured_columns(plan.perturbations, plan.measurements, plan.name)]
        return {str(column): column for column in sorted(every, key=lambda column: column.is_plain)}

    @field_validator("name")
    @classmethod
    def _is_part_of_file_names(cls, name: str) -> str:
        message = "expected letters, digits, _, - and ., received {name}"
        reject_if((not re.fullmatch(r"[\w.-]{1,100}", name), message), name=repr(name[:100]))
        return name

    @model_validator(mode="after")
    def _names_agree(self) -> Experiment:
        for key, values in self.grid.items():
            reject_if((not values, "grid.{key}: no values"), key=key)
        repeated = len({*self.seeds}) < len(self.seeds)
        reject_if((repeated, "seeds: expected each once, received {seeds}"), seeds=str(list(self.seeds)))
        _reject_unknown(
            "measurements", with_eps_grid(self.perturbations).keys() & self.measurements.keys(), "new names", ()
        )
        self._check_evaluations()
        self._check_derived()
        table, rule = self.table, self.table.select_by
        _reject_unknown_columns("table.columns", table.columns, self.columns)
        _reject_unknown(
            "claims", [p for claim in self.claims for p in claim.perturbations], "table.columns", table.columns
        )
        for claim in (one for one in self.claims if isinstance(one, SignClaim) and len(one.arms) == 1):
            wrong = [name for name in claim.perturbations if self.columns[name].unit != "points"]
            message = "claims: a sign is that of a difference: expected two arms, or one and derived differences"
            reject_if((wrong, message + ", received {wrong}"), wrong=", ".join(wrong))
        selecting = filter(None, [rule.by, rule.of]) if rule else ()
        _reject_unknown("table.select_by", selecting, "table.columns", table.columns)
        _reject_unknown("table and claims", self._row_keys(), "table.rows", table.rows)
        names = [claim.remark for claim in self.claims if re.fullmatch(r"[\w-]+", claim.remark)]  # no text is a word
        _reject_unknown("claims", names, "remarks", self.remarks)
        if table.arms:
            arms = [compared.arm for claim in self.claims for compared in claim.arms]
            _reject_unknown("claims", arms, "table.arms", table.arms)
            compared = [table.reference, table.treatment]
            if any(name in table.arms for name in compared):  # a table may do without differences
                _reject_unknown("table", compared, "table.arms", table.arms)
        return self

    def _check_evaluations(self) -> None:
        """Check the names of evaluations. Names without @ ensure that every column has one meaning."""
        for kind, names in (("perturbations", self.perturbations), ("measurements", self.measurements)):
            _reject_separator(kind, names)
            for key, extra in self.evaluations.items():
                _reject_unknown(f"evaluations.{key}.{kind}", getattr(extra, kind), kind, names)
        message = "evaluations: expected a name of letters, digits, _ and -, received {key}"
        for key in self.evaluations:
            reject_if((not re.fullmatch(r"[\w-]+", key), message), key=repr(key))

    def _check_derived(self) -> None:
        measured = self._measured_columns()
        _reject_separator("derived", self.derived)
        _reject_unknown("derived", [name for name in self.derived if name in measured], "new names", ())
        for name, derived in self.derived.items():
            where, columns = f"derived.{name}", derived.source_columns
            message = "{where}: {column} is derived itself; name what it is computed from"
            for column in columns:
                reject_if((column in self.derived, message), where=where, column=repr(column))
            _reject_unknown_columns(where, columns, measured)
            units = [measured[column].unit for column in columns]
            received = ", ".join(f"{column} ({unit})" for column, unit in zip(columns, units, strict=True))
            message = "{where}: expected columns of one unit, received {received}"
            reject_if((len({*units}) > 1, message), where=where, received=received)

    def _row_keys(self) -> list[str]:
        """Return the row keys that the figures, the selection rule and the claims name."""
        table, rule = self.table, self.table.select_by
        keys = [key for key in (table.x, table.y) if key]
        keys += [*rule.per, *rule.where] if rule else []
        return [*keys, *(key for claim in self.claims for key in claim.row_keys)]


class ExperimentPart(Frozen):
    """A part of an experiment's cells."""

    experiment: str = Field(description="Its name, or the path of its YAML file.")
    scale: Scale = Field("full", description="Amount of work; full is the paper's. Below it, verdicts are previews.")
    where: Plain = Field({}, description="Values that a cell has, by dotted key: one, or a list of which it has one.")
    seeds: tuple[Index, ...] = Field((), description="The seeds. Empty: all.")

    @property
    def selection(self) -> Plain:
        """The values that a cell has, its seed among them."""
        return {**self.where, **({"seed": list(self.seeds)} if self.seeds else {})}

    @property
    def text(self) -> str:
        """The part in a line: `table2 at scale full, arch.name vgg8, seed 0, 1`."""
        values = {key: value if isinstance(value, list | tuple) else [value] for key, value in self.selection.items()}
        chosen = [f"{key} {', '.join(map(str, own))}" for key, own in values.items()]
        return ", ".join([f"{self.experiment} at scale {self.scale}", *chosen])


class Plan(_Titled):
    """Parts of experiments, for `bnvuln reproduce --plan`, which runs them in this order."""

    parts: tuple[ExperimentPart, ...] = Field(min_length=1, description="The parts, in the order in which they run.")


def _reject_separator(where: str, names: Iterable[str]) -> None:
    """Raise for a name with @, which would look like a column of an extra evaluation."""
    for name in names:
        message = "{where}: expected a name without @, received {name}"
        reject_if((SEPARATOR in name, message), where=where, name=repr(name))


def _reject_unknown(where: str, names: Iterable[str], among: str, known: Iterable[str]) -> None:
    """Raise for the first of `names` that is not among the known ones."""
    for name in names:
        if name not in known:
            message = "{where}: {name} is not among {among}{hint}"
            raise config_error(message, where=where, name=repr(name), among=among, hint=nearest(name, known))


def _reject_unknown_columns(where: str, names: Iterable[str], columns: Mapping[str, Column]) -> None:
    """Raise for the first of `names` that is no column."""
    for name in names:
        if name not in columns:
            message = "{where}: no column {name}; there are: {known}{hint}"
            known = ", ".join(sorted(columns, key=lambda one: not columns[one].is_plain))
            raise config_error(message, where=where, name=repr(name), known=known, hint=nearest(name, columns))

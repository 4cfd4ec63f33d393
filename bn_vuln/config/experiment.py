"""An experiment: cells, what is measured of them, layout of the table, the paper's values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from bn_vuln.config.measurement import ColumnUnit, Measurement
from bn_vuln.config.perturbation import Attack, Evaluation, MinimumNorm, Perturbation, with_eps_grid
from bn_vuln.config.types import Count, Float, Frozen, Index, NonNegative, nearest

Scale = Literal["smoke", "quick", "cpu", "full"]
SCALES: tuple[Scale, ...] = ("smoke", "quick", "cpu", "full")
LOSS_SUFFIX = ".loss"  # a column NAME.loss is the mean cross-entropy under the perturbation NAME
DISTANCE_SUFFIX = ".distance"  # and NAME.distance the mean distance of a minimum-norm attack
EVALUATION_SEPARATOR = "@"  # a column NAME@EVALUATION is the column NAME, measured at that one of the `evaluations`


class Suite(Frozen):
    """A named set of perturbations, and of measurements, for `bnvuln evaluate`."""

    title: str
    evaluation: Evaluation = Evaluation()
    perturbations: dict[str, Perturbation] = Field(min_length=1)
    measurements: dict[str, Measurement] = Field(default={})


class ExtraEvaluation(Evaluation):
    """A further evaluation of an experiment, and which of its perturbations and measurements are made there as well."""

    perturbations: tuple[str, ...] = Field(min_length=1)
    measurements: tuple[str, ...] = ()

    @property
    def evaluation(self) -> Evaluation:
        """The evaluation alone, as records are identified by it."""
        return Evaluation(**{name: getattr(self, name) for name in Evaluation.model_fields})


@dataclass(frozen=True)
class EvaluationPlan:
    """Perturbations and measurements, by name, and the evaluation where they are made. `name` is "" for the
    experiment's own `evaluation`."""

    evaluation: Evaluation
    perturbations: Mapping[str, Perturbation]
    measurements: Mapping[str, Measurement] = field(default_factory=dict)
    name: str = ""

    def column(self, name: str) -> str:
        """What the column NAME is called here: NAME, or NAME@EVALUATION."""
        return f"{name}{EVALUATION_SEPARATOR}{self.name}" if self.name else name


class DerivedColumn(Frozen):
    """A column computed from others, cell by cell: the `difference` of two, first - second, or the `mean` of several.
    It has their unit, and a number where all of them have one."""

    difference: tuple[str, ...] = ()
    mean: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _make_sense(self) -> DerivedColumn:
        parts = self.source_columns
        for wrong, message in (
            (bool(self.difference) == bool(self.mean), "expected a difference or a mean"),
            (bool(self.difference) and len(parts) != 2, "a difference is that of two columns, received {n}"),
            (bool(self.mean) and len(parts) < 2, "a mean is that of at least two columns, received {n}"),
            (len(set(parts)) < len(parts), "expected each column once, received {parts}"),
        ):
            if wrong:
                fields = {"n": len(parts), "parts": ", ".join(parts)}
                raise PydanticCustomError("derived", message, fields)
        return self

    @property
    def source_columns(self) -> tuple[str, ...]:
        """The columns that it is computed from."""
        return self.difference or self.mean

    def compute(self, values: Sequence[float]) -> float:
        """Return the value of this column, given those of its source columns in their order."""
        return values[0] - values[1] if self.difference else sum(values) / len(values)


def units_of(plan: EvaluationPlan) -> dict[str, ColumnUnit]:
    """What a column of one evaluation can be; names of perturbations and measurements come before what is made of
    them."""
    every = with_eps_grid(plan.perturbations)
    found: dict[str, ColumnUnit] = {name + LOSS_SUFFIX: "nats" for name in every}
    for name, options in every.items():
        if isinstance(options, MinimumNorm) or (isinstance(options, Attack) and options.min_eps_tolerance is not None):
            found[name + DISTANCE_SUFFIX] = "pixels" if options.unit == "pixel" else "standardized"
    for name, measurement in plan.measurements.items():
        found |= {f"{name}.{detail}": unit for detail, unit in measurement.details.items()}
    found |= {name: measurement.unit for name, measurement in plan.measurements.items()}
    return {**found, **dict.fromkeys(every, "%")}


class Baseline(Frozen):
    """The cells of an arm in the table row `where`."""

    where: dict[str, Any] = Field(default={})
    arm: str


class Claim(Frozen):
    """A claim about our `perturbations` (columns of the table), beside the paper's figure where it has one.

    It is about one `arm` in the table row `where`, about its difference from (or `how: ratio`, its ratio to) the
    cells `against`, paired by seed, about the `slope` of its logarithm against that of the row key `along` raised to
    `power`, or, without an arm, about the difference treatment - reference.

    `value`: the published figure, in the column's unit but fractions for accuracies. With a `tolerance` the claim is
    that ours equals it so far. Instead of a value, `sign` claims that a difference is above (1) or below (-1) zero.
    `approximate`: rounded or derived, never judged. `exact`: nothing random enters, so one value is enough.
    `text` says what the claim is about, `remark` what explains a difference between ours and the paper's.
    """

    where: dict[str, Any] = Field(default={})
    perturbations: tuple[str, ...] = Field(min_length=1)
    arm: str | None = None
    against: Baseline | None = None
    how: Literal["difference", "ratio", "slope"] = "difference"
    along: str | None = None
    power: Count = 1
    value: Float | None = None
    sem: NonNegative | None = None
    tolerance: NonNegative | None = None
    sign: Literal[-1, 1] | None = None
    approximate: bool = False
    exact: bool = False
    text: str = ""
    source: str
    remark: str = ""

    @model_validator(mode="after")
    def _make_sense(self) -> Claim:
        for wrong, message in (
            ((self.value is None) == (self.sign is None), "expected a value or a sign"),
            (self.against is not None and self.arm is None, "against needs an arm to compare"),
            (self.how == "ratio" and self.against is None, "a ratio needs an arm and what it is against"),
            ((self.how == "slope") != (self.along is not None), "how: slope and along (a row key) belong together"),
            (self.how == "slope" and (self.arm is None or self.against is not None), "a slope is that of one arm"),
            (self.sign is not None and self.tolerance is not None, "a sign has no tolerance"),
            (
                self.sign is not None and (self.how != "difference" or not self.is_contrast),
                "a sign is that of a difference: it needs against",
            ),
            (
                self.how == "ratio" and self.tolerance is None and not self.approximate,
                "a ratio is judged by equality: it needs a tolerance",
            ),
        ):
            if wrong:
                raise PydanticCustomError("claim", message)
        return self

    @property
    def is_contrast(self) -> bool:
        """Whether it is about a signed difference or ratio, rather than one arm's value."""
        return self.arm is None or self.against is not None


class SelectionRule(Frozen):
    """The row that is chosen: the highest mean of the arms in the column `by`, for each value of the row keys `per`.
    `within`: only rows whose column `of` is at most `points` (a fraction) below that of the row `where`."""

    by: str
    per: tuple[str, ...] = ()
    of: str | None = None
    within: NonNegative = 0.0
    where: dict[str, Any] = Field(default={})


Figure = Literal["differences", "candidates", "curves", "boundaries", "spectra", "heatmaps", "examples", "eps_curves"]


class Table(Frozen):
    """Layout: one block of rows for each value of the `rows` keys; one column for each perturbation, measurement,
    `PERTURBATION.loss`, `PERTURBATION.distance` or `MEASUREMENT.DETAIL`, any of these with `@EVALUATION`, or derived
    column, headed by its entry in `columns`. The arms are the values of the `arm` key, or those named in `arms` with
    the values that their cells have; differences are `treatment - reference`.

    `select_by` or `choice` marks the best row. `figures` are drawn; empty: what suits the layout. `x` is the row key
    along which curves are drawn, `y` the second one of heat maps.
    """

    omitted_from_id_at_default: ClassVar[tuple[str, ...]] = ("arms", "choice", "figures", "x", "y")
    stored_values: ClassVar[dict[str, dict[str, str]]] = {"figures": {"eps_curves": "ladders"}}

    rows: tuple[str, ...] = ()
    arm: str = "normalization.name"
    arms: dict[str, dict[str, Any]] = Field(default={})
    reference: str = "none"
    treatment: str = "batch"
    columns: dict[str, str] = Field(min_length=1)
    select_by: str | None = None
    choice: SelectionRule | None = None
    figures: tuple[Figure, ...] = ()
    x: str | None = None
    y: str | None = None

    @property
    def selection_rule(self) -> SelectionRule | None:
        """How a row is chosen, if one is."""
        return self.choice or (SelectionRule(by=self.select_by) if self.select_by else None)


class Experiment(Frozen):
    """An experiment: base + grid + seeds -> cells; perturbations and measurements -> records; layout and claims.

    All perturbations and measurements are made at `evaluation`, some of them at `evaluations` too, by name; `derived`
    columns are computed from others.

    `scale` and `overrides` say how it was resolved (`load_experiment`); a file does not set them.
    """

    name: str
    title: str
    claim: str
    source: str
    cost: dict[Scale, str] = Field(default={})
    notes: tuple[str, ...] = ()
    base: dict[str, Any] = Field(default={})
    grid: dict[str, tuple[Any, ...]] = Field(min_length=1)
    seeds: tuple[Index, ...] = Field(min_length=1)
    evaluation: Evaluation = Evaluation()
    perturbations: dict[str, Perturbation] = Field(min_length=1)
    measurements: dict[str, Measurement] = Field(default={})
    evaluations: dict[str, ExtraEvaluation] = Field(default={})
    derived: dict[str, DerivedColumn] = Field(default={})
    scales: dict[Scale, dict[str, Any]] = Field(default={})
    scale: Scale = "full"
    overrides: tuple[str, ...] = ()
    table: Table
    paper: tuple[Claim, ...] = ()

    @property
    def all_perturbations(self) -> dict[str, Perturbation]:
        """The perturbations, and every smaller of those that have an eps grid."""
        return with_eps_grid(self.perturbations)

    @property
    def plans(self) -> tuple[EvaluationPlan, ...]:
        """Where something is measured, and what: at `evaluation`, then at each of the `evaluations`."""
        here = EvaluationPlan(self.evaluation, self.perturbations, self.measurements)
        return here, *(self._plan(name, where) for name, where in self.evaluations.items())

    def _plan(self, name: str, where: ExtraEvaluation) -> EvaluationPlan:
        perturbations = {key: self.perturbations[key] for key in where.perturbations}
        return EvaluationPlan(
            where.evaluation, perturbations, {key: self.measurements[key] for key in where.measurements}, name
        )

    def source_columns(self, column: str) -> tuple[str, ...]:
        """The columns that a derived one is computed from; any other column itself."""
        return self.derived[column].source_columns if column in self.derived else (column,)

    @model_validator(mode="after")
    def _names_agree(self) -> Experiment:
        for key, values in self.grid.items():
            if not values:
                raise PydanticCustomError("grid", "grid.{key}: no values", {"key": key})
        if len(set(self.seeds)) < len(self.seeds):
            seeds = str(list(self.seeds))
            raise PydanticCustomError("seeds", "seeds: expected each once, received {seeds}", {"seeds": seeds})
        _refuse_unknown("measurements", self.all_perturbations.keys() & self.measurements.keys(), "new names", ())
        self._check_evaluations()
        self._check_derived()
        table, known = self.table, {*self._quantities(), *self.derived}
        _refuse_unknown("table.columns", table.columns, "perturbations", known)
        used = [name for value in self.paper for name in value.perturbations]
        _refuse_unknown("paper", used, "table.columns", table.columns)
        chosen = table.selection_rule
        _refuse_unknown(
            "table.select_by", filter(None, [chosen.by, chosen.of]) if chosen else (), "table.columns", table.columns
        )
        _refuse_unknown("table and paper", self._row_keys(), "table.rows", table.rows)
        if table.arms:
            named = {value.arm for value in self.paper} | {v.against.arm for v in self.paper if v.against}
            _refuse_unknown("paper", sorted(filter(None, named)), "table.arms", table.arms)
            compared = [table.reference, table.treatment]
            if any(name in table.arms for name in compared):  # a table may do without differences
                _refuse_unknown("table", compared, "table.arms", table.arms)
        return self

    def _check_evaluations(self) -> None:
        """Every column has one meaning: names without @ make sure of it."""
        for field_, names in (("perturbations", self.perturbations), ("measurements", self.measurements)):
            _refuse_at(field_, names)
            for key, where in self.evaluations.items():
                _refuse_unknown(f"evaluations.{key}.{field_}", getattr(where, field_), field_, names)
        for key in self.evaluations:
            if not re.fullmatch(r"[\w-]+", key):
                message = "evaluations: expected a name of letters, digits, _ and -, received {key}"
                raise PydanticCustomError("evaluations", message, {"key": repr(key)})

    def _check_derived(self) -> None:
        known = self._quantities()
        _refuse_at("derived", self.derived)
        _refuse_unknown("derived", [name for name in self.derived if name in known], "new names", ())
        for name, derived in self.derived.items():
            where = f"derived.{name}"
            for part in derived.source_columns:
                if part in self.derived:
                    message = "{where}: {part} is derived itself; name what it is computed from"
                    raise PydanticCustomError("derived", message, {"where": where, "part": repr(part)})
            _refuse_unknown(where, derived.source_columns, "columns", known)
            units = {known[part] for part in derived.source_columns}
            if len(units) > 1:
                parts = ", ".join(f"{part} ({known[part]})" for part in derived.source_columns)
                message = "{where}: expected columns of one unit, received {parts}"
                raise PydanticCustomError("derived", message, {"where": where, "parts": parts})

    def _row_keys(self) -> list[str]:
        """The keys of the table's rows that its figures, its choice and the claims name."""
        table, chosen = self.table, self.table.selection_rule
        keys = [key for key in (table.x, table.y) if key]
        keys += [*chosen.per, *chosen.where] if chosen else []
        for claim in self.paper:
            keys += [
                *claim.where,
                *(claim.against.where if claim.against else ()),
                *([claim.along] if claim.along else []),
            ]
        return keys

    def _quantities(self) -> dict[str, ColumnUnit]:
        """What a column can be that is not derived, with its unit."""
        return {plan.column(name): unit for plan in self.plans for name, unit in units_of(plan).items()}

    def unit(self, column: str) -> ColumnUnit:
        """The unit of a column: % of examples (kept as fractions), points between such, degrees, nats (losses), steps,
        std and log ratio (distances of BN's statistics), or that of distances of images."""
        unit = self._quantities().get(self.source_columns(column)[0], "%")
        return "points" if unit == "%" and column in self.derived and self.derived[column].difference else unit

    def is_accuracy(self, column: str) -> bool:
        """Whether a column is the accuracy under a perturbation, wherever measured, or a mean of such."""
        every = self.all_perturbations
        return self.unit(column) != "points" and all(
            part.partition(EVALUATION_SEPARATOR)[0] in every for part in self.source_columns(column)
        )

    @property
    def as_published(self) -> bool:
        """Whether this is the config as shipped, at full scale: only then are verdicts more than previews."""
        return self.scale == "full" and not self.overrides


def _refuse_at(where: str, names: Iterable[str]) -> None:
    """Raise for a name that would look like a column measured elsewhere."""
    for name in names:
        if EVALUATION_SEPARATOR in name:
            message = "{where}: expected a name without @, received {name}"
            raise PydanticCustomError("perturbation", message, {"where": where, "name": repr(name)})


def _refuse_unknown(where: str, names: Iterable[str], among: str, known: Iterable[str]) -> None:
    """Raise for the first of `names` that is not among the known ones."""
    for name in names:
        if name not in known:
            fields = {"where": where, "name": repr(name), "among": among, "hint": nearest(name, known)}
            message = "{where}: {name} is not among {among}{hint}"
            raise PydanticCustomError("perturbation", message, fields)

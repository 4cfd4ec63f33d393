"""An experiment: cells, perturbations, layout of the table, the paper's values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from bn_vuln.config.perturbation import Evaluation, Perturbation
from bn_vuln.config.values import Float, Frozen, Index, NonNegative, nearest

Scale = Literal["smoke", "quick", "cpu", "full"]
SCALES: tuple[Scale, ...] = ("smoke", "quick", "cpu", "full")


class PaperValue(Frozen):
    """A figure of the paper: a fraction, for the table row `where`, of one of our `perturbations`, for one arm,
    or for the difference treatment - reference (no `arm`). `approximate`: rounded or derived, never judged."""

    where: dict[str, Any] = Field(default={})
    perturbations: tuple[str, ...] = Field(min_length=1)
    arm: str | None = None
    value: Float
    sem: NonNegative | None = None
    approximate: bool = False
    source: str


class Table(Frozen):
    """Layout: one block of rows for each value of the `rows` keys; the `arms` are values of the `arm` key;
    one column for each perturbation, headed by its entry in `columns`; differences are `treatment - reference`."""

    rows: tuple[str, ...] = ()
    arm: str = "normalization.name"
    reference: str = "none"
    treatment: str = "batch"
    columns: dict[str, str] = Field(min_length=1)
    select_by: str | None = None


class Experiment(Frozen):
    """An experiment: base + grid + seeds -> cells; perturbations -> records; layout and the paper's values.

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
    scales: dict[Scale, dict[str, Any]] = Field(default={})
    scale: Scale = "full"
    overrides: tuple[str, ...] = ()
    table: Table
    paper: tuple[PaperValue, ...] = ()

    @model_validator(mode="after")
    def _names_agree(self) -> Experiment:
        for key, values in self.grid.items():
            if not values:
                raise PydanticCustomError("grid", "grid.{key}: no values", {"key": key})
        if len(set(self.seeds)) < len(self.seeds):
            seeds = str(list(self.seeds))
            raise PydanticCustomError("seeds", "seeds: expected each once, received {seeds}", {"seeds": seeds})
        _refuse_unknown("table.columns", self.table.columns, "perturbations", self.perturbations)
        used = [name for value in self.paper for name in value.perturbations]
        _refuse_unknown("paper", used, "table.columns", self.table.columns)
        chosen = [self.table.select_by] if self.table.select_by else []
        _refuse_unknown("table.select_by", chosen, "table.columns", self.table.columns)
        return self

    @property
    def as_published(self) -> bool:
        """Whether this is the config as shipped, at full scale: only then are verdicts more than previews."""
        return self.scale == "full" and not self.overrides


def _refuse_unknown(where: str, names: Iterable[str], among: str, known: Iterable[str]) -> None:
    """Raise for the first of `names` that is not among the known ones."""
    for name in names:
        if name not in known:
            fields = {"where": where, "name": repr(name), "among": among, "hint": nearest(name, known)}
            message = "{where}: {name} is not among {among}{hint}"
            raise PydanticCustomError("perturbation", message, fields)

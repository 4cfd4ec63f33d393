"""What an experiment measures where, and the columns that its table can have of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from bn_vuln.config.measurement import ColumnUnit, Measurement
from bn_vuln.config.minimal import Minimal
from bn_vuln.config.perturbation import Attack, Evaluation, Perturbation, with_eps_grid
from bn_vuln.config.types import Frozen

LOSS = ".loss"  # a column NAME.loss is the mean cross-entropy under the perturbation NAME
DISTANCE = ".distance"  # and NAME.distance the mean distance of a minimum-norm attack
AT = "@"  # a column NAME@EVALUATION is the column NAME, measured elsewhere than at the experiment's `evaluation`


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
        return f"{name}{AT}{self.name}" if self.name else name


class Derived(Frozen):
    """A column computed from others, cell by cell: the `difference` of two, first - second, or the `mean` of several.
    It has their unit, and a number where all of them have one."""

    difference: tuple[str, ...] = ()
    mean: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _make_sense(self) -> Derived:
        parts = self.parts
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
    def parts(self) -> tuple[str, ...]:
        """The columns that it is computed from."""
        return self.difference or self.mean

    def of(self, values: Sequence[float]) -> float:
        """Its number from those of its parts."""
        return values[0] - values[1] if self.difference else sum(values) / len(values)


def units_of(plan: EvaluationPlan) -> dict[str, ColumnUnit]:
    """What a column of one evaluation can be; names of perturbations and measurements come before what is made of
    them."""
    every = with_eps_grid(plan.perturbations)
    found: dict[str, ColumnUnit] = {name + LOSS: "nats" for name in every}
    for name, options in every.items():
        if isinstance(options, Minimal) or (isinstance(options, Attack) and options.min_eps_tolerance is not None):
            found[name + DISTANCE] = "pixels" if options.unit == "pixel" else "standardized"
    for name, measurement in plan.measurements.items():
        found |= {f"{name}.{detail}": unit for detail, unit in measurement.details.items()}
    found |= {name: measurement.unit for name, measurement in plan.measurements.items()}
    return {**found, **dict.fromkeys(every, "%")}

"""Claims of an experiment: one class for each kind, with its own fields alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from bn_vuln.config.types import Count, Expand, Float, Frozen, NonNegative, reject_if
from bn_vuln.typing import Plain


class ComparedArm(Frozen):
    """An arm that a claim is about; its name is its short form."""

    arm: str = Field(description="Name of the arm.")
    where: Plain = Field({}, description="Values of row keys in which its row differs from that of the claim.")


class _Claim(Frozen):
    """What every claim has."""

    arm_counts: ClassVar[tuple[int, ...]] = (0, 1, 2)
    in_unit: ClassVar[bool] = True  # its number has the unit of its columns

    kind: str
    where: Plain = Field({}, description="The table rows, as values of row keys: one, or a list. Empty: every row.")
    perturbations: tuple[str, ...] = Field(min_length=1, description="Columns of the table that it is about.")
    arms: tuple[Annotated[ComparedArm, BeforeValidator(Expand("arm"))], ...] = Field(
        (),
        validate_default=True,
        description="One: the number of this arm. Two: the first compared with the second, paired by seed. Empty: the "
        "difference treatment - reference.",
    )
    text: str = Field("", description="Text of the claim. Empty: one that says what is compared.")
    source: str = Field(description="Its place in the paper.")
    remark: str = Field(
        "", description="Explanation of a difference between ours and the paper's: a text, or a name in `remarks`."
    )

    @field_validator("arms")
    @classmethod
    def _are_as_many_as_it_needs(cls, arms: tuple[ComparedArm, ...]) -> tuple[ComparedArm, ...]:
        counts = " or ".join(map(str, cls.arm_counts))
        reject_if(
            (len(arms) not in cls.arm_counts, "expected {counts}, received {n}"),
            (arms and arms[0].where, "the row of the first one is the claim's own where"),
            counts=f"{counts} arm{'s' if counts != '1' else ''}",
            n=len(arms),
        )
        return arms

    @property
    def is_contrast(self) -> bool:
        """True where two arms are compared, False for the number of one."""
        return len(self.arms) != 1

    @property
    def row_keys(self) -> list[str]:
        """The row keys that it names."""
        return [*self.where, *(key for arm in self.arms for key in arm.where)]


class _NumberClaim(_Claim):
    """A claim that states a number."""

    value: Float = Field(description="The published figure, in the column's unit, but a fraction for accuracies.")
    sem: NonNegative | None = Field(None, description="Its standard error of the mean.")


class ValueClaim(_NumberClaim):
    """A signed difference of a stated size, judged by both."""

    kind: Literal["value"] = "value"
    arm_counts = (0, 2)


class SignClaim(_Claim):
    """A difference above or below zero, of any size: of two arms, or of two columns of one (a derived difference)."""

    kind: Literal["sign"] = "sign"
    value: ClassVar[None] = None
    sem: ClassVar[None] = None

    sign: Literal[-1, 1] = Field(description="1: above zero. -1: below.")


class _ToleranceClaim(_NumberClaim):
    """A claim that a number equals the stated one."""

    tolerance: NonNegative = Field(description="It holds within this much.")


class EqualsClaim(_ToleranceClaim):
    """A number or a difference that equals a value."""

    kind: Literal["equals"] = "equals"
    exact: bool = Field(False, description="Nothing random enters, so one seed is enough.")


class SlopeClaim(_ToleranceClaim):
    """The power with which an arm's number grows: the slope of its logarithm against that of a row key."""

    kind: Literal["slope"] = "slope"
    arm_counts = (1,)
    in_unit = False

    along: str = Field(description="The row key.")
    power: Count = Field(1, description="Power that the row key is raised to.")

    @property
    def row_keys(self) -> list[str]:
        """The row keys that it names."""
        return [*super().row_keys, self.along]


class RatioClaim(_ToleranceClaim):
    """The first arm's number divided by the second's."""

    kind: Literal["ratio"] = "ratio"
    arm_counts = (2,)
    in_unit = False


class ContextClaim(_NumberClaim):
    """A figure that is shown and never judged."""

    kind: Literal["context"] = "context"
    approximate: bool = Field(True, description="Rounded, read off a plot or derived: it is shown as `about`.")


# The fields of a claim as it was until 0.1, without a kind.
OLDER_FIELDS = (
    "where", "perturbations", "arm", "against", "how", "along", "power", "value", "sem", "tolerance", "sign",
    "approximate", "exact", "text", "source", "remark",
)  # fmt: skip


def with_kind(data: Any) -> Any:
    """Return a claim as it was until 0.1, with its kind and its arms."""
    if not isinstance(data, Mapping) or "kind" in data:
        return data
    fields = {key: value for key, value in data.items() if value is not None and value is not False}
    how, is_one_arm = fields.pop("how", "difference"), "arm" in fields and "against" not in fields
    if "arm" in fields:
        fields["arms"] = [fields.pop(key) for key in ("arm", "against") if key in fields]
    if fields.get("power") == 1:
        del fields["power"]
    if how != "difference":
        return {"kind": how, **fields}
    if "sign" in fields:
        return {"kind": "sign", **fields}
    if "approximate" in fields or (is_one_arm and "tolerance" not in fields):
        return {"kind": "context", "approximate": False, **fields}
    return {"kind": "equals" if "tolerance" in fields else "value", **fields}


Claim = Annotated[
    ValueClaim | SignClaim | EqualsClaim | SlopeClaim | RatioClaim | ContextClaim,
    Field(discriminator="kind"),
    BeforeValidator(with_kind),
]

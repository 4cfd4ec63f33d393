"""Adversarial training."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from bn_vuln.config.perturbation import Box, Norm, Unit
from bn_vuln.config.types import OR_NULL, Count, Frozen, NonNegative


class Adversarial(Frozen):
    """Adversarial training: each step is made on adversarial examples of its batch.

    They are points of the eps ball, cut to the box, at which the cross-entropy of the true label is maximized. The
    defaults are those of Madry et al. (2018): PGD, which starts at a random point of the eps ball. FGSM (Goodfellow et
    al. 2015) is one step without a random start.
    """

    ord: Norm = Field("inf", description="Norm of the perturbation.")
    eps: NonNegative = Field(description="Radius of the eps ball of adversarial training, in `unit`.")
    unit: Unit = Field("pixel", description="Unit of `eps` and `step_size`.")
    box: Box = Field((0.0, 1.0), description="Range of pixels of adversarial images, or none.")
    steps: Count = Field(10, description="Gradient steps.")
    step_size: Annotated[NonNegative, OR_NULL] = Field(
        default=None,
        validate_default=True,
        description="Step size, in `unit`. Default: 2.5 eps / steps, or eps for one step.",
    )
    random_start: bool = Field(True, description="Start at a random point of the eps ball.")

    @field_validator("step_size", mode="before")
    @classmethod
    def _default_step_size(cls, value: object, info: ValidationInfo) -> object:
        """Fill in the default; 0 where eps or steps is wrong, which is reported for itself."""
        if value is not None:
            return value
        eps, steps = info.data.get("eps", 0.0), info.data.get("steps", 1)
        return eps if steps == 1 else 2.5 * eps / steps

"""Adversarial training: what a training replaces its images by."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from bn_vuln.config.box import Box, Unit
from bn_vuln.config.types import Count, Frozen, NonNegative


class Adversarial(Frozen):
    """The search for the images of each step: points of the ball ||(x' - x) / scale||_ord <= eps, scale = 1 (pixel) or
    the std (standardized), cut to the box, at which the cross-entropy of the true label is high.

    The defaults are Madry et al.'s (2018): PGD, which starts at a random point of the ball. FGSM (Goodfellow et al.
    2015) is one step without a random start. `step_size` null: 2.5 eps / steps, or eps if there is one step.
    """

    ord: Literal["inf", "2"] = "inf"
    eps: NonNegative
    unit: Unit = "pixel"
    box: Box = (0.0, 1.0)
    steps: Count = 10
    step_size: NonNegative = Field(default=None, validate_default=True)
    random_start: bool = True

    @field_validator("ord", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        """YAML reads 2 as a number."""
        return str(value)

    @field_validator("step_size", mode="before")
    @classmethod
    def _fill_in(cls, value: Any, info: ValidationInfo) -> Any:
        """The default; 0 where it cannot be computed since eps or steps is wrong, which is reported for itself."""
        if value is not None:
            return value
        eps, steps = info.data.get("eps", 0.0), info.data.get("steps", 1)
        return eps if steps == 1 else 2.5 * eps / steps

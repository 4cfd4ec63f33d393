"""Attacks that look for the nearest adversarial image: their result is a distance rather than an accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from bn_vuln.config.box import Box, Unit
from bn_vuln.config.types import Count, Frozen, NonNegative, Positive


class Minimal(Frozen):
    """A minimum-norm attack: it has no eps, and minimizes ||(x' - x) / scale||_2, scale = 1 (pixel) or the std
    (standardized). The accuracy under it is the share of images that nothing was found for; under one with a `target`,
    of those that are still taken for what they are.

    `carlini_wagner` (2017): `steps` of Adam with learning rate `step_size` for each of `binary_search_steps` constants
    c, the first one `initial_const`; defaults are those of its authors' code, with a tenth of its steps. With a box the
    step size is that of arctanh of the place in the box, without one that of (standardized) pixels. `confidence`: by
    how much the logit of another class, or of the target, must be ahead. `target` as in `Attack`.
    """

    kind: Literal["minimal"] = "minimal"
    attack: Literal["carlini_wagner"] = "carlini_wagner"
    ord: Literal["2"] = "2"
    unit: Unit = "pixel"
    box: Box = (0.0, 1.0)
    steps: Count = 1000
    step_size: Positive = 0.01
    binary_search_steps: Count = 9
    initial_const: Positive = 1e-3
    confidence: NonNegative = 0.0
    target: Literal["none", "next", "least_likely"] = "none"
    backend: Literal["own", "cleverhans"] = "own"

    @model_validator(mode="before")
    @classmethod
    def _ord_as_text(cls, data: Any) -> Any:
        """YAML reads 2 as a number."""
        return {**data, "ord": str(data.get("ord", "2"))} if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _make_sense(self) -> Minimal:
        hans = self.backend == "cleverhans"
        for wrong, message in (
            (hans and self.box == "none", "CleverHans needs a box: use backend own"),
            (hans and self.confidence > 0, "CleverHans judges success without the confidence: use backend own"),
        ):  # fmt: skip
            if wrong:
                raise PydanticCustomError("attack", message)
        return self

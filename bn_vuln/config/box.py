"""Ranges of pixels, and the units that perturbations are measured in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from bn_vuln.config.types import Frozen, Interval, parse_number


class StandardizedBox(Frozen):
    """A box given in standardized units, (x - mean) / std per channel."""

    standardized: Interval


def _parse_box(value: Any) -> Any:
    """One clear message for the whole union, instead of pydantic's one for each member."""
    if value is None or value == "none" or isinstance(value, StandardizedBox):
        return "none" if value is None else value
    standardized = isinstance(value, Mapping) and set(value) == {"standardized"}
    pair = value["standardized"] if standardized else value
    try:
        low, high = (float(parse_number(bound)) for bound in pair)
        if not -math.inf < low < high < math.inf:
            raise ValueError
    except (TypeError, ValueError):
        expected = "expected none, [low, high] or {standardized: [low, high]} with low < high"
        raise PydanticCustomError("box", expected) from None
    return StandardizedBox(standardized=(low, high)) if standardized else (low, high)


Box = Annotated[Literal["none"] | Interval | StandardizedBox, BeforeValidator(_parse_box)]
Unit = Literal["pixel", "standardized"]

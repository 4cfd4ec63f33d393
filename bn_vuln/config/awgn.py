"""Noise that images are evaluated under, and statistics measured with."""

from __future__ import annotations

from typing import Literal

from bn_vuln.config.box import Box, Unit
from bn_vuln.config.types import Frozen, Index, NonNegative


class AWGN(Frozen):
    """Additive white Gaussian noise of standard deviation `std`, added at the data's native width (before any
    resizing); `clip` cuts the noisy image to a range, in pixel units unless it says standardized."""

    kind: Literal["awgn"] = "awgn"
    std: NonNegative
    unit: Unit = "pixel"
    clip: Box = (0.0, 1.0)
    seed: Index = 0

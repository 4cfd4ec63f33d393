"""Augmentation: how a training varies its images."""

from __future__ import annotations

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from bn_vuln.config.types import Frozen, Index


class Augment(Frozen):
    """Every image of every epoch gets its own random crop and flip, in its native size, before it is resized. Crop:
    `pad` black pixels are added on each side, and of all places for the native size in it each is as likely. `flip`:
    left and right are exchanged with probability 1/2.

    The defaults are those in common use on CIFAR-10 (He et al. 2016, section 4.2).
    """

    pad: Index = 4
    flip: bool = True

    @model_validator(mode="after")
    def _changes_something(self) -> Augment:
        if not self.pad and not self.flip:
            raise PydanticCustomError("train", "pad 0 without flip changes no image: expected a pad >= 1 or a flip")
        return self

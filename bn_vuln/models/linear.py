"""The linear classifier of the paper's Tables 1 and 13, with an optional normalization of its input."""

from __future__ import annotations

from typing import Any

from bn_vuln.config import LinearArch
from bn_vuln.facts import Facts
from bn_vuln.models.layers import Initializer, dense, pixels_in
from bn_vuln.models.normalization import Factory


def build(arch: LinearArch, facts: Facts, width: int, normalize: Factory, initializer: Initializer) -> Any:
    """Pixels -> standardize -> flatten -> [normalization] -> Dense -> logits [n, classes]."""
    import keras

    inputs, x = pixels_in(facts, width)
    x = keras.layers.Flatten(name="flatten")(x)
    x = normalize(x, "normalization")
    return keras.Model(inputs, dense(x, len(facts.classes), initializer, "logits"), name="linear")

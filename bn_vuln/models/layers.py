"""Layers that every family shares: standardization of the input, and Dense with a stated initialization."""

from __future__ import annotations

import math
from typing import Any

from bn_vuln import backend
from bn_vuln.facts import Facts


def pixels_in(facts: Facts, width: int, *, multiple: int = 1) -> tuple[Any, Any]:
    """The input (pixels in [0, 1], float32 [width, width, channels]) and its standardization, (x - mean) / std,
    behind a black border that makes the width a multiple of `multiple`.

    Keras layers do it, so a saved model opens without bnvuln.
    """
    import keras

    inputs = keras.Input((width, width, facts.shape[2]), name="pixels")
    standardize = keras.layers.Normalization(
        axis=-1, mean=list(facts.mean), variance=[std**2 for std in facts.std], name="standardize"
    )
    return inputs, standardize(_bordered(inputs, -width % multiple))


def _bordered(pixels: Any, pixels_more: int) -> Any:
    """Black on every side of square images, as evenly as it goes, `pixels_more` in width and height."""
    import keras

    if not pixels_more:
        return pixels
    sides = (pixels_more // 2, pixels_more - pixels_more // 2)
    return keras.layers.ZeroPadding2D((sides, sides), name="border")(pixels)


class Initializer:
    """Kernel and bias initializers, each with its own seed from (seed, position of the layer), so that a
    normalization between two layers does not change the kernels of either.

    `torch`: uniform of variance 1 / (3 fan_in) for kernel and bias (PyTorch's default for Linear and Conv).
    `he`: normal of variance 2 / fan_in (He et al. 2015, not truncated), zero bias. `zeros`: both zero.
    """

    def __init__(self, scheme: str, seed: int) -> None:
        self.scheme, self.seed, self.position = scheme, seed, 0

    def next(self, fan_in: int) -> dict[str, Any]:
        """`kernel_initializer` and `bias_initializer` for the next layer, as Keras arguments."""
        import keras

        kernel_seed, bias_seed = (backend.derived_seed(self.seed, self.position, part) for part in (0, 1))
        self.position += 1
        if self.scheme == "zeros":
            return {"kernel_initializer": "zeros", "bias_initializer": "zeros"}
        if self.scheme == "he":
            kernel = keras.initializers.VarianceScaling(2.0, "fan_in", "untruncated_normal", seed=kernel_seed)
            return {"kernel_initializer": kernel, "bias_initializer": "zeros"}
        bound = 1 / math.sqrt(fan_in)
        return {
            "kernel_initializer": keras.initializers.RandomUniform(-bound, bound, seed=kernel_seed),
            "bias_initializer": keras.initializers.RandomUniform(-bound, bound, seed=bias_seed),
        }


def dense(x: Any, units: int, initializer: Initializer, name: str, *, bias: bool = True) -> Any:
    """A Dense layer without activation on a Keras tensor [n, features]."""
    import keras

    return keras.layers.Dense(units, use_bias=bias, name=name, **initializer.next(x.shape[-1]))(x)


def conv(x: Any, filters: int, initializer: Initializer, name: str, *, bias: bool = True) -> Any:
    """A 3x3 convolution of stride 1 without activation, zero-padded, on a Keras tensor [n, h, w, c]."""
    import keras

    layer = keras.layers.Conv2D(
        filters, 3, padding="same", use_bias=bias, name=name, **initializer.next(9 * x.shape[-1])
    )
    return layer(x)

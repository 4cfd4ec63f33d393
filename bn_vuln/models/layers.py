"""Layers that every family shares: standardization of the input; Dense and convolutions with a stated
initialization."""

from __future__ import annotations

import math
from typing import Any

from bn_vuln.data.info import DatasetInfo
from bn_vuln.models.normalization import NormalizationFactory
from bn_vuln.runtime import backend


def standardized_input(info: DatasetInfo, width: int, *, multiple: int = 1) -> tuple[Any, Any]:
    """The input (pixels in [0, 1], float32 [width, width, channels]) and its standardization, (x - mean) / std,
    behind a black border that makes the width a multiple of `multiple`.

    Keras layers do it, so a saved model opens without bnvuln.
    """
    import keras

    inputs = keras.Input((width, width, info.shape[2]), name="pixels")
    standardize = keras.layers.Normalization(
        axis=-1, mean=list(info.mean), variance=[std**2 for std in info.std], name="standardize"
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
    A `gain` multiplies the initial kernel; with 0 the bias begins at zero as well.
    """

    def __init__(self, scheme: str, seed: int) -> None:
        self.scheme, self.seed, self.position = scheme, seed, 0

    def next(self, fan_in: int, gain: float = 1.0) -> dict[str, Any]:
        """`kernel_initializer` and `bias_initializer` for the next layer, as Keras arguments."""
        import keras

        kernel_seed, bias_seed = (backend.derived_seed(self.seed, self.position, part) for part in (0, 1))
        self.position += 1
        if self.scheme == "zeros":
            return {"kernel_initializer": "zeros", "bias_initializer": "zeros"}
        kernel: Any = "zeros"
        if self.scheme == "he":
            if gain:
                scale = 2.0 * gain**2
                kernel = keras.initializers.VarianceScaling(scale, "fan_in", "untruncated_normal", seed=kernel_seed)
            return {"kernel_initializer": kernel, "bias_initializer": "zeros"}
        bound = 1 / math.sqrt(fan_in)
        if gain:
            kernel = keras.initializers.RandomUniform(-gain * bound, gain * bound, seed=kernel_seed)
        bias: Any = keras.initializers.RandomUniform(-bound, bound, seed=bias_seed) if gain else "zeros"
        return {"kernel_initializer": kernel, "bias_initializer": bias}


def dense(x: Any, units: int, initializer: Initializer, name: str, *, bias: bool = True, gain: float = 1.0) -> Any:
    """A Dense layer without activation on a Keras tensor [n, features]."""
    import keras

    return keras.layers.Dense(units, use_bias=bias, name=name, **initializer.next(x.shape[-1], gain))(x)


def conv(
    x: Any,
    filters: int,
    initializer: Initializer,
    name: str,
    normalize: NormalizationFactory,
    *,
    size: int = 3,
    stride: int = 1,
    gain: float = 1.0,
) -> Any:
    """A convolution of `size` x `size` without activation on a Keras tensor [n, h, w, c], with a bias unless the
    normalization drops it, zero-padded by (size - 1) / 2 on every side.

    Keras' `same` pads a strided convolution at the end alone, one pixel beside the pixels that a strided shortcut
    takes; here, as in PyTorch and Caffe, the filters are centred on them.
    """
    import keras

    if stride > 1 and size > 1:
        x = keras.layers.ZeroPadding2D(size // 2, name=f"{name}_padding")(x)
    layer = normalize.convolution()(
        filters,
        size,
        strides=stride,
        padding="same" if stride == 1 else "valid",
        use_bias=normalize.use_bias,
        name=name,
        **initializer.next(size * size * x.shape[-1], gain),
    )
    return layer(x)

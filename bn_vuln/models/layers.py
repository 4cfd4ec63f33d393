"""Layers that every family shares: the standardized input, and Dense and convolutions with a stated initialization."""

from __future__ import annotations

import math
from typing import TypedDict

import numpy as np

from bn_vuln.data.info import DatasetInfo
from bn_vuln.models.normalization import NormalizationFactory
from bn_vuln.runtime import backend
from bn_vuln.typing import KerasModel, Tensor


class Initializers(TypedDict):
    """Keras arguments of a layer: names of initializers, or initializers."""

    kernel_initializer: object
    bias_initializer: object


def standardized_input(info: DatasetInfo, width: int, *, multiple: int = 1) -> tuple[Tensor, Tensor]:
    """Make the input of a model and its standardization, (x - mean) / std.

    Keras layers do it, so a saved model opens without bnvuln.

    Args:
        info: the data set; its channels, mean and std are used.
        width: height and width of the images in pixels.
        multiple: add a black border, as evenly as it goes, that makes the width a multiple of this.

    Returns:
        (pixels in [0, 1], float32 [n, width, width, channels]; the same, standardized), Keras tensors.
    """
    import keras

    inputs = keras.Input((width, width, info.shape[2]), name="pixels")
    standardize = keras.layers.Normalization(
        axis=-1, mean=list(info.mean), variance=[std**2 for std in info.std], name="standardize"
    )
    x, missing = inputs, -width % multiple
    if missing:
        sides = (missing // 2, missing - missing // 2)
        x = keras.layers.ZeroPadding2D((sides, sides), name="border")(x)
    return inputs, standardize(x)


class Initializer:
    """Kernel and bias initializers, each with its own seed from (seed, number of the layer).

    So a normalization between two layers does not change the initial kernels of either.

    Args:
        scheme: `torch`: uniform of variance 1 / (3 fan_in) for kernel and bias (PyTorch's default for Linear and Conv).
            `he`: normal of variance 2 / fan_in (He et al. 2015, not truncated), zero bias. `zeros`: both zero.
        seed: the seed of the cell.
    """

    def __init__(self, scheme: str, seed: int) -> None:
        self.scheme, self.seed, self.position = scheme, seed, 0

    def next(self, fan_in: int, gain: float = 1.0) -> Initializers:
        """Return the initializers of the next layer, as Keras arguments.

        Args:
            fan_in: inputs of one output of the layer.
            gain: factor of the initial kernel; with 0 the bias begins at zero as well.
        """
        import keras

        kernel_seed, bias_seed = (backend.derived_seed(self.seed, self.position, part) for part in (0, 1))
        self.position += 1
        if self.scheme == "zeros":
            return {"kernel_initializer": "zeros", "bias_initializer": "zeros"}
        kernel: object = "zeros"
        if self.scheme == "he":
            if gain:
                scale = 2.0 * gain**2
                kernel = keras.initializers.VarianceScaling(scale, "fan_in", "untruncated_normal", seed=kernel_seed)
            return {"kernel_initializer": kernel, "bias_initializer": "zeros"}
        bound = 1 / math.sqrt(fan_in)
        if gain:
            kernel = keras.initializers.RandomUniform(-gain * bound, gain * bound, seed=kernel_seed)
        bias: object = keras.initializers.RandomUniform(-bound, bound, seed=bias_seed) if gain else "zeros"
        return {"kernel_initializer": kernel, "bias_initializer": bias}


def draw_by_numpy(model: KerasModel) -> None:
    """Draw the random initial values of a new model again, by NumPy, from the seeds of their initializers."""
    for layer in backend.leaf_layers(model):
        for name in ("kernel", "bias", "gamma"):
            variable, initializer = getattr(layer, name, None), getattr(layer, f"{name}_initializer", None)
            if variable is None or "seed" not in (options := initializer.get_config()):  # type: ignore[union-attr]
                continue
            generator, shape = np.random.Generator(np.random.Philox(options["seed"])), tuple(variable.shape)
            if "minval" in options:
                values = generator.uniform(options["minval"], options["maxval"], shape)
            else:  # VarianceScaling by the number of inputs, see `Initializer`
                values = generator.normal(0.0, math.sqrt(options["scale"] / math.prod(shape[:-1])), shape)
            variable.assign(values.astype(np.float32))


def dense(
    x: Tensor, units: int, initializer: Initializer, name: str, *, bias: bool = True, gain: float = 1.0
) -> Tensor:
    """Apply a Dense layer without activation.

    Args:
        x: Keras tensor [n, features].
        units: number of outputs.
        initializer: of kernel and bias.
        name: of the layer.
        bias: add a bias.
        gain: factor of the initial kernel.

    Returns:
        Keras tensor [n, units].
    """
    import keras

    return keras.layers.Dense(units, use_bias=bias, name=name, **initializer.next(x.shape[-1], gain))(x)


def conv(
    x: Tensor,
    filters: int,
    initializer: Initializer,
    name: str,
    normalize: NormalizationFactory,
    *,
    size: int = 3,
    stride: int = 1,
    gain: float = 1.0,
) -> Tensor:
    """Apply a convolution without activation, zero-padded by (size - 1) / 2 on every side.

    Keras' `same` pads a strided convolution at the end alone, one pixel beside the pixels that a strided shortcut
    takes. Here, as in PyTorch and Caffe, the filters are centred on them.

    Args:
        x: Keras tensor [n, height, width, channels].
        filters: number of output channels.
        initializer: of kernel and bias.
        name: of the layer.
        normalize: the factory, which says which class of convolution it is, and if it has a bias.
        size: height and width of the filters.
        stride: of the convolution.
        gain: factor of the initial kernel.

    Returns:
        Keras tensor [n, ceil(height / stride), ceil(width / stride), filters].
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

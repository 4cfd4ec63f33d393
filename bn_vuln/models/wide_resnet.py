"""Wide ResNets: Zagoruyko and Komodakis 2016."""

from __future__ import annotations

from typing import Any

from bn_vuln.config import WideResNetArch
from bn_vuln.data.info import DatasetInfo
from bn_vuln.models.layers import Initializer, conv, dense, standardized_input
from bn_vuln.models.normalization import NormalizationFactory

FIRST, FILTERS = 16, (16, 32, 64)  # of the first convolution; of the stages, times the widening


def build(
    arch: WideResNetArch, info: DatasetInfo, width: int, normalize: NormalizationFactory, initializer: Initializer
) -> Any:
    """Pixels -> standardize -> convolution -> three stages of blocks -> [normalization] -> ReLU -> global average
    pooling -> Dense -> logits. The second and third stage begin with a stride of 2."""
    import keras

    blocks = (arch.depth - 4) // 6
    gains = normalize.gains(len(FILTERS) * blocks)
    inputs, x = standardized_input(info, width)
    x = conv(x, FIRST, initializer, "conv", normalize)
    for stage, filters in enumerate(FILTERS, 1):
        for number in range(1, blocks + 1):
            stride = 2 if stage > 1 and number == 1 else 1
            x = _block(x, arch.widening * filters, stride, f"{stage}_{number}", normalize, initializer, gains)
    x = normalize.activate(normalize(x, "normalization"), "relu")
    x = keras.layers.GlobalAveragePooling2D(name="average")(x)
    x = normalize.apply_scalar_bias(x, "shift")
    logits = dense(x, len(info.classes), initializer, "logits", gain=gains[2])
    return keras.Model(inputs, logits, name=f"wrn_{arch.depth}_{arch.widening}")


def _block(
    x: Any,
    filters: int,
    stride: int,
    name: str,
    normalize: NormalizationFactory,
    initializer: Initializer,
    gains: tuple[float, ...],
) -> Any:
    """Shortcut + branch, the branch twice normalization, ReLU and convolution. Where the shape changes the shortcut is
    a 1x1 convolution of what the first convolution takes."""
    import keras

    y = normalize.activate(normalize(x, f"normalization_{name}_1"), f"relu_{name}_1")
    taken = normalize.apply_scalar_bias(y, f"shift_{name}_1")
    y = conv(taken, filters, initializer, f"conv_{name}_1", normalize, stride=stride, gain=gains[0])
    y = normalize.activate(normalize(y, f"normalization_{name}_2"), f"relu_{name}_2")
    y = normalize.apply_scalar_bias(y, f"shift_{name}_2")
    y = conv(y, filters, initializer, f"conv_{name}_2", normalize, gain=gains[1])
    y = normalize.apply_scalar_multiplier(y, f"multiplier_{name}")
    if x.shape[-1] != filters or stride > 1:
        x = conv(taken, filters, initializer, f"shortcut_{name}", normalize, size=1, stride=stride)
    return keras.layers.Add(name=f"add_{name}")([x, y])

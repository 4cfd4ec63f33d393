"""Wide ResNets: Zagoruyko and Komodakis 2016."""

from __future__ import annotations

from bn_vuln.config import WideResNetArch
from bn_vuln.data.info import DatasetInfo
from bn_vuln.models.layers import Initializer, conv, dense, standardized_input
from bn_vuln.models.normalization import InitGains, NormalizationFactory
from bn_vuln.typing import KerasModel, Tensor

FIRST, FILTERS = 16, (16, 32, 64)  # of the first convolution; of the stages, times the widening


def build(
    arch: WideResNetArch, info: DatasetInfo, width: int, normalize: NormalizationFactory, initializer: Initializer
) -> KerasModel:
    """Build a wide ResNet (Zagoruyko and Komodakis 2016).

    Pixels -> standardize -> convolution -> three stages of blocks -> [normalization] -> ReLU -> global average pooling
    -> Dense -> logits. The second and third stage begin with a stride of 2. Arguments and result as of all builders,
    see `bn_vuln.models`.
    """
    import keras

    blocks = (arch.depth - 4) // 6
    gains = normalize.init_gains(len(FILTERS) * blocks)
    inputs, x = standardized_input(info, width)
    x = conv(x, FIRST, initializer, "conv", normalize)
    for stage, filters in enumerate(FILTERS, 1):
        for number in range(1, blocks + 1):
            stride = 2 if stage > 1 and number == 1 else 1
            x = _block(x, arch.widening * filters, stride, f"{stage}_{number}", normalize, initializer, gains)
    x = normalize.activate(normalize(x, "normalization"), "relu")
    x = keras.layers.GlobalAveragePooling2D(name="average")(x)
    x = normalize.apply_scalar_bias(x, "shift")
    logits = dense(x, len(info.classes), initializer, "logits", gain=gains.classifier)
    return keras.Model(inputs, logits, name=f"wrn_{arch.depth}_{arch.widening}")


def _block(
    x: Tensor,
    filters: int,
    stride: int,
    name: str,
    normalize: NormalizationFactory,
    initializer: Initializer,
    gains: InitGains,
) -> Tensor:
    """Shortcut + branch, the branch twice normalization, ReLU and convolution.

    Where the shape changes the shortcut is a 1x1 convolution of the input of the first convolution.
    """
    import keras

    y = normalize.activate(normalize(x, f"normalization_{name}_1"), f"relu_{name}_1")
    branch_input = normalize.apply_scalar_bias(y, f"shift_{name}_1")
    y = conv(branch_input, filters, initializer, f"conv_{name}_1", normalize, stride=stride, gain=gains.first)
    y = normalize.activate(normalize(y, f"normalization_{name}_2"), f"relu_{name}_2")
    y = normalize.apply_scalar_bias(y, f"shift_{name}_2")
    y = conv(y, filters, initializer, f"conv_{name}_2", normalize, gain=gains.last)
    y = normalize.apply_scalar_multiplier(y, f"multiplier_{name}")
    if x.shape[-1] != filters or stride > 1:
        x = conv(branch_input, filters, initializer, f"shortcut_{name}", normalize, size=1, stride=stride)
    return keras.layers.Add(name=f"add_{name}")([x, y])

"""ResNets for small images: He et al. 2016, section 4.2."""

from __future__ import annotations

from bn_vuln.config import ResNetArch
from bn_vuln.data.info import DatasetInfo
from bn_vuln.models.layers import Initializer, conv, dense, standardized_input
from bn_vuln.models.normalization import InitGains, NormalizationFactory
from bn_vuln.typing import KerasModel, Tensor

BLOCKS = {"resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9, "resnet110": 18}  # of each stage
FILTERS = (16, 32, 64)


def build(
    arch: ResNetArch, info: DatasetInfo, width: int, normalize: NormalizationFactory, initializer: Initializer
) -> KerasModel:
    """Build a ResNet for small images (He et al. 2016, section 4.2).

    Pixels -> standardize -> convolution -> [normalization] -> ReLU -> three stages of blocks -> global average pooling
    -> Dense -> logits. The second and third stage begin with a stride of 2. Arguments and result as of all builders,
    see `bn_vuln.models`.
    """
    import keras

    blocks = BLOCKS[arch.name]
    gains = normalize.init_gains(len(FILTERS) * blocks)
    inputs, x = standardized_input(info, width)
    x = conv(x, FILTERS[0], initializer, "conv", normalize)
    x = normalize.activate(normalize(x, "normalization"), "relu")
    for stage, filters in enumerate(FILTERS, 1):
        for number in range(1, blocks + 1):
            stride = 2 if stage > 1 and number == 1 else 1
            x = _block(x, filters, stride, f"{stage}_{number}", normalize, initializer, gains)
    x = keras.layers.GlobalAveragePooling2D(name="average")(x)
    x = normalize.apply_scalar_bias(x, "shift")
    return keras.Model(
        inputs, dense(x, len(info.classes), initializer, "logits", gain=gains.classifier), name=arch.name
    )


def _block(
    x: Tensor,
    filters: int,
    stride: int,
    name: str,
    normalize: NormalizationFactory,
    initializer: Initializer,
    gains: InitGains,
) -> Tensor:
    """ReLU(shortcut + branch), the branch two convolutions, each normalized, with ReLU in between."""
    import keras

    branch_input = normalize.apply_scalar_bias(x, f"shift_{name}_1")
    y = conv(branch_input, filters, initializer, f"conv_{name}_1", normalize, stride=stride, gain=gains.first)
    y = normalize.activate(normalize(y, f"normalization_{name}_1"), f"relu_{name}_1")
    y = normalize.apply_scalar_bias(y, f"shift_{name}_2")
    y = conv(y, filters, initializer, f"conv_{name}_2", normalize, gain=gains.last)
    y = normalize(normalize.apply_scalar_multiplier(y, f"multiplier_{name}"), f"normalization_{name}_2")
    shortcut = x if stride == 1 else _downsample(branch_input, name)
    return normalize.activate(keras.layers.Add(name=f"add_{name}")([shortcut, y]), f"relu_{name}_2")


def _downsample(x: Tensor, name: str) -> Tensor:
    """The shortcut without parameters (option A): every other pixel, and as many channels again of zeros."""
    import keras

    x = keras.layers.AveragePooling2D(1, strides=2, name=f"every_other_{name}")(x)
    zeros = keras.layers.Rescaling(0.0, name=f"zeros_{name}")(x)
    return keras.layers.Concatenate(name=f"shortcut_{name}")([x, zeros])

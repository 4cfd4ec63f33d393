"""DenseNet-121 for large images: Huang et al. 2017."""

from __future__ import annotations

from bn_vuln.config import DenseNetArch
from bn_vuln.data.info import DatasetInfo
from bn_vuln.models.imagenet_layers import check_width, conv, max_pool
from bn_vuln.models.layers import Initializer, dense, standardized_input
from bn_vuln.models.normalization import NormalizationFactory
from bn_vuln.typing import KerasModel, Tensor

LAYERS = {"densenet121": (6, 12, 24, 16)}  # of each block
GROWTH = 32  # channels that a layer adds
BOTTLENECK = 4  # channels of its 1x1 convolution, in GROWTH


def build(
    arch: DenseNetArch, info: DatasetInfo, width: int, normalize: NormalizationFactory, initializer: Initializer
) -> KerasModel:
    """Build pixels -> standardize -> 7x7 convolution -> [normalization] -> ReLU -> max-pooling -> four blocks -> Dense.

    A transition of [normalization], ReLU, 1x1 convolution to half of the channels and average pooling stands between
    blocks; the last block is normalized, with ReLU and a global average pooling. Arguments and result as of all
    builders, see `bn_vuln.models`.
    """
    import keras

    check_width(arch.name, width)
    inputs, x = standardized_input(info, width)
    x = conv(x, 2 * GROWTH, 7, "features.conv0", initializer, normalize, stride=2)
    x = normalize.activate(normalize(x, "features.norm0"), "features.relu0")
    x = max_pool(x, "features.pool0", 3, 2, padding=1)
    for number, layers in enumerate(LAYERS[arch.name], 1):
        for layer in range(1, layers + 1):
            x = _layer(x, f"features.denseblock{number}.denselayer{layer}", normalize, initializer)
        if number < len(LAYERS[arch.name]):
            name = f"features.transition{number}"
            x = normalize.activate(normalize(x, f"{name}.norm"), f"{name}.relu")
            x = conv(x, x.shape[-1] // 2, 1, f"{name}.conv", initializer, normalize)
            x = keras.layers.AveragePooling2D(2, name=f"{name}.pool")(x)
    x = normalize.activate(normalize(x, "features.norm5"), "relu")
    x = keras.layers.GlobalAveragePooling2D(name="avgpool")(x)
    return keras.Model(inputs, dense(x, len(info.classes), initializer, "classifier"), name=arch.name)


def _layer(x: Tensor, name: str, normalize: NormalizationFactory, initializer: Initializer) -> Tensor:
    """Add GROWTH channels to x: [normalization], ReLU and convolution, of 1x1 and of 3x3."""
    import keras

    y = x
    for i, (filters, size) in enumerate(((BOTTLENECK * GROWTH, 1), (GROWTH, 3)), 1):
        y = normalize.activate(normalize(y, f"{name}.norm{i}"), f"{name}.relu{i}")
        y = conv(y, filters, size, f"{name}.conv{i}", initializer, normalize)
    return keras.layers.Concatenate(name=f"{name}.concatenate")([x, y])

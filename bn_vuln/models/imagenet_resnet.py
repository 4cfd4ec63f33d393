"""ResNets and BagNets for large images: blocks of two or three convolutions with a shortcut."""

from __future__ import annotations

from dataclasses import replace

from bn_vuln.config import BagNetArch, ImageNetResNetArch
from bn_vuln.data.info import DatasetInfo
from bn_vuln.models.imagenet_layers import check_width, conv, max_pool
from bn_vuln.models.layers import Initializer, dense, standardized_input
from bn_vuln.models.normalization import NormalizationFactory
from bn_vuln.typing import KerasModel, Tensor

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}  # of each stage
FILTERS = (64, 128, 256, 512)
EXPANSION = 4  # of the filters at the end of a block of three convolutions
# Stages of BagNets whose first block has a 3x3 convolution; all others have 1x1 in its place.
PATCHES = {"bagnet9": 2, "bagnet17": 3, "bagnet33": 4}


def build(
    arch: ImageNetResNetArch, info: DatasetInfo, width: int, normalize: NormalizationFactory, initializer: Initializer
) -> KerasModel:
    """Build pixels -> standardize -> 7x7 convolution -> [normalization] -> ReLU -> max-pooling -> four stages -> Dense.

    Stages 2 to 4 begin with a stride of 2, that of a 3x3 convolution and of the 1x1 convolution of the shortcut. Dense
    follows a global average pooling. Arguments and result as of all builders, see `bn_vuln.models`.
    """
    check_width(arch.name, width)
    inputs, x = standardized_input(info, width)
    x = conv(x, FILTERS[0], 7, "conv1", initializer, normalize, stride=2)
    x = normalize.activate(normalize(x, "bn1"), "relu")
    x = max_pool(x, "maxpool", 3, 2, padding=1)
    bottleneck = arch.name != "resnet18"
    for stage, blocks in enumerate(BLOCKS[arch.name], 1):
        for block in range(blocks):
            stride = 2 if stage > 1 and block == 0 else 1
            name = f"layer{stage}.{block}"
            filters = FILTERS[stage - 1]
            if bottleneck:
                x = _block(x, [(filters, 1), (filters, 3), (EXPANSION * filters, 1)], 1, stride, name, normalize,
                           initializer)  # fmt: skip
            else:
                x = _block(x, [(filters, 3), (filters, 3)], 0, stride, name, normalize, initializer)
    return _with_classifier(arch.name, inputs, x, info, initializer)


def build_bagnet(
    arch: BagNetArch, info: DatasetInfo, width: int, normalize: NormalizationFactory, initializer: Initializer
) -> KerasModel:
    """Build a BagNet (Brendel and Bethge 2019): a ResNet-50 of which most 3x3 convolutions are 1x1, without padding.

    A logit is the mean of those of all patches. Arguments and result as of all builders, see `bn_vuln.models`.
    """
    check_width(arch.name, width, at_least=64)
    inputs, x = standardized_input(info, width)
    x = conv(x, FILTERS[0], 1, "conv1", initializer, replace(normalize, use_bias=False))
    x = conv(x, FILTERS[0], 3, "conv2", initializer, normalize, padding=0)
    x = normalize.activate(normalize(x, "bn1"), "relu")
    for stage, blocks in enumerate(BLOCKS["resnet50"], 1):
        for block in range(blocks):
            size = 3 if block == 0 and stage <= PATCHES[arch.name] else 1
            stride = 2 if stage < len(FILTERS) and block == 0 else 1
            filters = FILTERS[stage - 1]
            convolutions = [(filters, 1), (filters, size), (EXPANSION * filters, 1)]
            x = _block(x, convolutions, 1, stride, f"layer{stage}.{block}", normalize, initializer, padding=0)
    return _with_classifier(arch.name, inputs, x, info, initializer)


def _block(
    x: Tensor,
    convolutions: list[tuple[int, int]],
    strided: int,
    stride: int,
    name: str,
    normalize: NormalizationFactory,
    initializer: Initializer,
    padding: int | None = None,
) -> Tensor:
    """ReLU(shortcut + branch): convolutions of (filters, size), each normalized, with ReLU in between.

    The shortcut has a 1x1 convolution where channels or stride change. Without padding the branch is smaller; then the
    shortcut is cut at its end.
    """
    import keras

    y = x
    for i, (filters, size) in enumerate(convolutions):
        own_stride = stride if i == strided else 1
        y = conv(y, filters, size, f"{name}.conv{i + 1}", initializer, normalize, stride=own_stride, padding=padding)
        y = normalize(y, f"{name}.bn{i + 1}")
        if i < len(convolutions) - 1:
            y = normalize.activate(y, f"{name}.relu{i + 1}")
    if stride > 1 or x.shape[-1] != y.shape[-1]:
        x = conv(x, y.shape[-1], 1, f"{name}.downsample.0", initializer, normalize, stride=stride)
        x = normalize(x, f"{name}.downsample.1")
    missing = x.shape[1] - y.shape[1]
    if missing:
        x = keras.layers.Cropping2D(((0, missing), (0, missing)), name=f"{name}.crop")(x)
    return normalize.activate(keras.layers.Add(name=f"{name}.add")([x, y]), f"{name}.relu")


def _with_classifier(name: str, inputs: Tensor, x: Tensor, info: DatasetInfo, initializer: Initializer) -> KerasModel:
    import keras

    x = keras.layers.GlobalAveragePooling2D(name="avgpool")(x)
    return keras.Model(inputs, dense(x, len(info.classes), initializer, "fc"), name=name)

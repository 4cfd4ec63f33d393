"""VGG and AlexNet for images of 224 pixels: features, then three Dense layers."""

from __future__ import annotations

from dataclasses import replace

from bn_vuln.config import AlexNetArch, ImageNetVGGArch
from bn_vuln.data.info import DatasetInfo
from bn_vuln.models.imagenet_layers import check_width, conv, max_pool
from bn_vuln.models.layers import Initializer, dense, standardized_input
from bn_vuln.models.normalization import NormalizationFactory
from bn_vuln.models.vgg import STAGES
from bn_vuln.typing import KerasModel, Tensor

WIDTH = 224
UNITS = 4096
# (filters, size, stride, padding, pooled) of AlexNet's convolutions, by their torchvision number.
ALEXNET = {
    0: (64, 11, 4, 2, True),
    3: (192, 5, 1, 2, True),
    6: (384, 3, 1, 1, False),
    8: (256, 3, 1, 1, False),
    10: (256, 3, 1, 1, True),
}


def build(
    arch: ImageNetVGGArch, info: DatasetInfo, width: int, normalize: NormalizationFactory, initializer: Initializer
) -> KerasModel:
    """Build pixels -> standardize -> stages -> Dense, ReLU, dropout (twice) -> Dense -> logits.

    A stage is (3x3 convolution with bias -> [normalization] -> ReLU) for each of its filters, then a max-pooling.
    Arguments and result as of all builders, see `bn_vuln.models`.
    """
    check_width(arch.name, width, exactly=WIDTH)
    normalize = replace(normalize, use_bias=True)  # as published, also before batch norm
    inputs, x = standardized_input(info, width)
    number = 0  # of torchvision, which counts convolutions, normalizations, activations and poolings
    for filters_of_stage in STAGES[arch.name.removeprefix("imagenet_")]:
        for filters in filters_of_stage:
            x = conv(x, filters, 3, f"features.{number}", initializer, normalize)
            normalized = normalize(x, f"features.{number + 1}")
            number += 1 if normalized is x else 2
            x = normalize.activate(normalized, f"features.{number}")
            number += 1
        x = max_pool(x, f"features.{number}", 2, 2)
        number += 1
    return _with_classifier(arch.name, inputs, x, (0, 3, 6), info, initializer)


def build_alexnet(
    arch: AlexNetArch, info: DatasetInfo, width: int, normalize: NormalizationFactory, initializer: Initializer
) -> KerasModel:
    """Build AlexNet: five convolutions -> dropout, Dense, ReLU (twice) -> Dense -> logits.

    Arguments and result as of all builders, see `bn_vuln.models`. A normalization, which the published net does not
    have, stands behind each convolution.
    """
    check_width(arch.name, width, exactly=WIDTH)
    normalize = replace(normalize, use_bias=True)  # as published, also before batch norm
    inputs, x = standardized_input(info, width)
    for number, (filters, size, stride, padding, pooled) in ALEXNET.items():
        name = f"features.{number}"
        x = conv(x, filters, size, name, initializer, normalize, stride=stride, padding=padding)
        x = normalize.activate(normalize(x, f"{name}.normalization"), f"features.{number + 1}")
        x = max_pool(x, f"features.{number + 2}", 3, 2) if pooled else x
    return _with_classifier(arch.name, inputs, x, (1, 4, 6), info, initializer)


def _with_classifier(
    name: str, inputs: Tensor, x: Tensor, numbers: tuple[int, int, int], info: DatasetInfo, initializer: Initializer
) -> KerasModel:
    """Add three Dense layers with torchvision's numbers, and a dropout between ReLU and Dense."""
    import keras

    x = keras.layers.Flatten(name="flatten")(x)
    first, second, last = numbers
    for number in (first, second):
        if first:  # AlexNet drops the features, too
            x = keras.layers.Dropout(0.5, name=f"classifier.{number - 1}")(x)
        x = keras.layers.ReLU(name=f"classifier.{number + 1}")(dense(x, UNITS, initializer, f"classifier.{number}"))
        if not first:
            x = keras.layers.Dropout(0.5, name=f"classifier.{number + 2}")(x)
    return keras.Model(inputs, dense(x, len(info.classes), initializer, f"classifier.{last}"), name=name)

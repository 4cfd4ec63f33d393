"""VGG for small images: Simonyan and Zisserman 2015 with one Dense behind a global average pooling."""

from __future__ import annotations

from bn_vuln.config import VGGArch
from bn_vuln.data.info import DatasetInfo
from bn_vuln.models.layers import Initializer, conv, dense, standardized_input
from bn_vuln.models.normalization import NormalizationFactory
from bn_vuln.typing import KerasModel

# Filters of each stage; a 2x2 max-pooling ends a stage. 11 to 19 are the published A, B, D and E.
STAGES: dict[str, tuple[tuple[int, ...], ...]] = {
    "vgg8": ((64,), (128,), (256,), (512,), (512,)),
    "vgg11": ((64,), (128,), (256,) * 2, (512,) * 2, (512,) * 2),
    "vgg13": ((64,) * 2, (128,) * 2, (256,) * 2, (512,) * 2, (512,) * 2),
    "vgg16": ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3),
    "vgg19": ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4),
}


def build(
    arch: VGGArch, info: DatasetInfo, width: int, normalize: NormalizationFactory, initializer: Initializer
) -> KerasModel:
    """Build pixels -> black border to a multiple of 32 -> standardize -> stages -> average -> Dense -> logits.

    Arguments and result as of all builders, see `bn_vuln.models`. A stage is (3x3 convolution -> [normalization] ->
    ReLU) for each of its filters, then a max-pooling. The average is a global pooling.
    """
    import keras

    inputs, x = standardized_input(info, width, multiple=2 ** len(STAGES[arch.name]))
    for i, stage in enumerate(STAGES[arch.name], 1):
        for j, filters in enumerate(stage, 1):
            x = conv(x, filters, initializer, f"conv_{i}_{j}", normalize)
            x = normalize(x, f"normalization_{i}_{j}")
            x = normalize.activate(x, f"relu_{i}_{j}")
        x = keras.layers.MaxPooling2D(2, name=f"pool_{i}")(x)
    x = keras.layers.GlobalAveragePooling2D(name="average")(x)
    return keras.Model(inputs, dense(x, len(info.classes), initializer, "logits"), name=arch.name)

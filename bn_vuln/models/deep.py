"""Deep ReLU nets of constant width, as in the paper's Figure 2."""

from __future__ import annotations

from bn_vuln.config import DeepArch
from bn_vuln.data.info import DatasetInfo
from bn_vuln.models.layers import Initializer, dense, standardized_input
from bn_vuln.models.normalization import NormalizationFactory
from bn_vuln.typing import KerasModel


def build(
    arch: DeepArch, info: DatasetInfo, width: int, normalize: NormalizationFactory, initializer: Initializer
) -> KerasModel:
    """Build pixels -> standardize -> flatten -> (Dense -> [normalization] -> ReLU) x depth -> Dense -> logits.

    Arguments and result as of all builders, see `bn_vuln.models`.
    """
    import keras

    inputs, x = standardized_input(info, width)
    x = keras.layers.Flatten(name="flatten")(x)
    for i in range(arch.depth):
        x = dense(x, arch.units, initializer, f"dense_{i}", bias=normalize.use_bias)
        x = normalize(x, f"normalization_{i}")
        x = keras.layers.ReLU(name=f"relu_{i}")(x)
    return keras.Model(inputs, dense(x, len(info.classes), initializer, "logits"), name="deep")

"""The ReLU multilayer perceptron of the paper's Tables 6 and 7."""

from __future__ import annotations

from bn_vuln.config import MLPArch
from bn_vuln.data.info import DatasetInfo
from bn_vuln.models.layers import Initializer, dense, standardized_input
from bn_vuln.models.normalization import NormalizationFactory
from bn_vuln.typing import KerasModel


def build(
    arch: MLPArch, info: DatasetInfo, width: int, normalize: NormalizationFactory, initializer: Initializer
) -> KerasModel:
    """Build pixels -> standardize -> flatten -> (Dense -> [normalization] -> ReLU) x layers -> Dense -> logits.

    Arguments and result as of all builders, see `bn_vuln.models`. Hidden units default to half the input dimension,
    twice (paper, Table 6).
    """
    import keras

    inputs, x = standardized_input(info, width)
    x = keras.layers.Flatten(name="flatten")(x)
    for i, units in enumerate(arch.hidden or (x.shape[-1] // 2,) * 2):
        normalized = i in arch.normalized
        x = dense(x, units, initializer, f"dense_{i}", bias=not normalized or normalize.use_bias)
        if normalized:
            x = normalize(x, f"normalization_{i}")
        x = keras.layers.ReLU(name=f"relu_{i}")(x)
    return keras.Model(inputs, dense(x, len(info.classes), initializer, "logits"), name="mlp")

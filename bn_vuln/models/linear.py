"""The linear classifier of the paper's Tables 1 and 13, and the nearest-centroid classifier, its yardstick.

The linear one may normalize its input. The boundary of the other is what its boundary is compared with.
"""

from __future__ import annotations

from bn_vuln.config import LinearArch, NearestCentroidArch
from bn_vuln.data.info import DatasetInfo
from bn_vuln.errors import UsageError
from bn_vuln.models.layers import Initializer, dense, standardized_input
from bn_vuln.models.normalization import NormalizationFactory
from bn_vuln.typing import Floats, KerasModel


def build(
    arch: LinearArch, info: DatasetInfo, width: int, normalize: NormalizationFactory, initializer: Initializer
) -> KerasModel:
    """Build pixels -> standardize -> flatten -> [normalization] -> Dense -> logits.

    Arguments and result as of all builders, see `bn_vuln.models`.

    Raises:
        UsageError: for `one_logit` on a data set that does not have two classes.
    """
    import keras

    inputs, x = standardized_input(info, width)
    x = keras.layers.Flatten(name="flatten")(x)
    x = normalize(x, "normalization")
    if not arch.one_logit:
        return keras.Model(inputs, dense(x, len(info.classes), initializer, "logits"), name="linear")
    if len(info.classes) != 2:
        raise UsageError(f"arch.one_logit: expected two classes, {info.label} has {len(info.classes)}")
    z = dense(x, 1, initializer, "logit")
    zero = keras.layers.Rescaling(0.0, name="zero")(z)
    return keras.Model(inputs, keras.layers.Concatenate(name="logits")([zero, z]), name="linear")


def build_nearest_centroid(
    arch: NearestCentroidArch, info: DatasetInfo, width: int, normalize: NormalizationFactory, initializer: Initializer
) -> KerasModel:
    """Build pixels -> flatten -> Dense -> logits; `set_centroids` gives it its weights.

    Arguments and result as of all builders, see `bn_vuln.models`.
    """
    import keras

    inputs = keras.Input((width, width, info.shape[2]), name="pixels")
    x = keras.layers.Flatten(name="flatten")(inputs)
    return keras.Model(inputs, dense(x, len(info.classes), initializer, "logits"), name="nearest_centroid")


def set_centroids(model: KerasModel, centroids: Floats) -> None:
    """Set the weights of a nearest-centroid classifier.

    The logits are m_k x - |m_k|^2 / 2. The largest is that of the nearest centroid, since
    |x - m_k|^2 = |x|^2 - 2 (m_k x - |m_k|^2 / 2).

    Args:
        model: from `build_nearest_centroid`; it is changed.
        centroids: m, float64 [classes, features], in pixels.
    """
    model.get_layer("logits").set_weights([centroids.T, -0.5 * (centroids**2).sum(1)])

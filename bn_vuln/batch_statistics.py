"""BN evaluated with other statistics than those tracked in training.

`batch`: those of the batch under evaluation itself, as BN trains. `reestimated`: the mean over the batches of one pass
through the training examples, in the batch size of the training (PyTorch's BN with momentum=None).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln import backend
from bn_vuln.data.pixels import to_pixels


def has_batch_normalization(model: Any) -> bool:
    """Whether a Keras model has a BN layer."""
    return bool(_layers(model))


def frozen(model: Any) -> Any:
    """A copy that keeps its tracked statistics when it is called with training=True, as BN with the statistics of the
    batch is; other layers that differ in training must not be in it."""
    return _copy(model, momentum=1.0)


def reestimated(model: Any, images: NDArray[Any], batch_size: int) -> Any:
    """A copy whose tracked statistics are the mean over the whole batches of `images` [n, h, w, c], in their order."""
    tf = backend.tensorflow()
    # With momentum 0 the tracked statistics are those of the last batch.
    last, result = _copy(model, momentum=0.0), _copy(model)
    width = model.input_shape[1]
    tracked = _tracked(last)
    steps = max(1, len(images) // batch_size)

    def add(x: Any, sums: list[Any]) -> list[Any]:
        last(to_pixels(x, width), training=True)
        return [total + tf.cast(v, tf.float64) for total, v in zip(sums, tracked, strict=True)]

    compiled = backend.compile(add)
    sums = [np.zeros(v.shape, np.float64) for v in tracked]
    for step in range(steps):
        sums = compiled(images[step * batch_size : (step + 1) * batch_size], sums)
    for variable, total in zip(_tracked(result), sums, strict=True):
        variable.assign(np.asarray(total) / steps)
    return result


def _tracked(model: Any) -> list[Any]:
    """The variables of the tracked statistics."""
    return [v for layer in _layers(model) for v in (layer.moving_mean, layer.moving_variance)]


def _layers(model: Any) -> list[Any]:
    return [layer for layer in backend.leaf_layers(model) if type(layer).__name__ == "BatchNormalization"]


def _copy(model: Any, momentum: float | None = None) -> Any:
    """A copy of a Keras model with the same weights, and another momentum of its BN layers if one is given."""
    import keras

    def clone(layer: Any) -> Any:
        config = layer.get_config()
        if momentum is not None and type(layer).__name__ == "BatchNormalization":
            config["momentum"] = momentum
        return type(layer).from_config(config)

    copy = keras.models.clone_model(model, clone_function=clone)
    copy.set_weights(model.get_weights())
    return copy

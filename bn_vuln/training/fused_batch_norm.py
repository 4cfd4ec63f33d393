"""Batch norm in training as one operation, where that is faster than Keras' several: on images on a CPU.

The same function, gradients and moving statistics as Keras' layer (`ours_keras_batch_norm` of tools/bench_train.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from bn_vuln.runtime import backend


@contextlib.contextmanager
def batch_norm(model: Any) -> Iterator[None]:
    """Inside, the BN layers of a Keras model that can be are called as one operation, if `backend.fuses_batch_norm`; in
    training only, so what is traced inside must be."""
    import keras

    layers = [one for one in backend.leaf_layers(model) if type(one) is keras.layers.BatchNormalization]
    chosen = [one for one in layers if _can_be(one)] if backend.fuses_batch_norm() else []
    for layer in chosen:
        layer.call = _fused(layer)
    try:
        yield
    finally:
        for layer in chosen:
            del layer.call  # the class' own is behind it


def _can_be(layer: Any) -> bool:
    """Of images with the channels last, in float32, normalized by the statistics of one device."""
    specification = layer.input_spec
    images = specification is not None and specification.ndim == 4
    return images and layer.axis in (-1, 3) and not layer.synchronized and layer.compute_dtype == "float32"


def _fused(layer: Any) -> Callable[..., Any]:
    """What stands in for a layer's `call`."""
    tf = backend.tensorflow()

    def call(inputs: Any, training: Any = None, mask: Any = None) -> Any:
        channels = inputs.shape[-1]
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=layer.gamma.value if layer.scale else tf.ones(channels),
            offset=layer.beta.value if layer.center else tf.zeros(channels),
            mean=tf.zeros(0),
            variance=tf.zeros(0),
            epsilon=layer.epsilon,
            is_training=True,
        )
        n = tf.cast(tf.size(inputs) // channels, tf.float32)
        variance *= (n - 1) / n  # it gives the unbiased one, Keras tracks the biased
        for moving, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
            moving.assign(moving * layer.momentum + value * (1.0 - layer.momentum))
        return outputs

    return call

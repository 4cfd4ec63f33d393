"""Batch norm in training as one operation, where that is faster than Keras' several: on images on a CPU.

The same function, gradients and moving statistics as Keras' layer (`ours_keras_batch_norm` of tools/bench_train.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from bn_vuln.runtime import backend
from bn_vuln.typing import BatchNormLayer, KerasModel, Tensor


@contextlib.contextmanager
def use_fused_op(model: KerasModel) -> Iterator[None]:
    """Call the BN layers of a model as one operation inside, where they can be and the execution policy says so.

    It is for training only, so what is traced inside must be training.
    """
    import keras

    def is_fusable(layer: BatchNormLayer) -> bool:  # on images with the channels last, in float32, on one device
        specification = layer.input_spec
        images = specification is not None and specification.ndim == 4
        return images and layer.axis in (-1, 3) and not layer.synchronized and layer.compute_dtype == "float32"

    layers = [layer for layer in backend.leaf_layers(model) if type(layer) is keras.layers.BatchNormalization]
    fuse = backend.execution_policy(model).fused_batch_norm
    chosen = [layer for layer in layers if fuse and is_fusable(layer)]
    for layer in chosen:
        layer.call = _fused_call(layer)
    try:
        yield
    finally:
        for layer in chosen:
            del layer.call  # the class' own is behind it


def _fused_call(layer: BatchNormLayer) -> Callable[..., Tensor]:
    """The replacement of a layer's `call`."""
    tf, own = backend.tensorflow(), layer.call

    def call(inputs: Tensor, training: object = None, mask: object = None) -> Tensor:
        if not training or not layer.trainable or mask is not None:  # in models of others
            return own(inputs, training=training, mask=mask)
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
        result: Tensor = outputs
        return result

    return call

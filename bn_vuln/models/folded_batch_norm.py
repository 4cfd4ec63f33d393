"""Batch norm folded into the convolution before it, while a model is traced: the same function, less to compute.

BN behind a convolution is a convolution by s times the kernel, and one shift; s = gamma / sqrt(variance + c). So a BN
layer that is handed the very tensor that a convolution returned convolves what the convolution was given. The result
of the convolution itself is in the graph for whatever else takes it; where nothing does, it is not computed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from bn_vuln.runtime import backend, ops
from bn_vuln.typing import BatchNormLayer, KerasModel, Tensor

Convolution: TypeAlias = Any  # Keras' Conv2D or DepthwiseConv2D; other ranks are not images
Calls: TypeAlias = dict[int, tuple[Convolution, Tensor, Tensor]]  # the layer, inputs and outputs by id of the outputs


@contextlib.contextmanager
def folded_batch_norm(model: KerasModel) -> Iterator[set[BatchNormLayer]]:
    """Fold the BN layers of a model into the convolutions before them, in what is traced inside for inference.

    The model, its variables and what it computes stay the same. Eager calls are not folded.

    Args:
        model: any Keras model.

    Yields:
        The BN layers that were folded; empty until a call is traced.
    """
    import keras

    def is_foldable(layer: Convolution) -> bool:  # exact types: a subclass may compute anything
        image = type(layer) in (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
        return image and layer.activation is keras.activations.linear and layer.data_format == "channels_last"

    calls: Calls = {}
    folded: set[BatchNormLayer] = set()
    chosen = []
    try:
        for layer in backend.leaf_layers(model):
            if "call" in vars(layer) or layer.compute_dtype != "float32":
                continue  # a layer in two models is met twice
            if type(layer) is keras.layers.BatchNormalization:
                layer.call = _folding_call(layer, calls, folded)
            elif is_foldable(layer):
                layer.call = _recorded_call(layer, calls)
            else:
                continue
            chosen.append(layer)
        yield folded
    finally:
        for layer in chosen:
            del layer.call  # the class' own is behind it


def _recorded_call(convolution: Convolution, calls: Calls) -> Callable[[Tensor], Tensor]:
    own: Callable[[Tensor], Tensor] = convolution.call

    def call(inputs: Tensor) -> Tensor:
        outputs = own(inputs)
        # Where a functional model takes it elsewhere too, folding would only compute it twice.
        if backend.is_tracing() and len({id(node.operation) for node in convolution._outbound_nodes}) <= 1:
            calls[id(outputs)] = (convolution, inputs, outputs)  # held here, outputs keep their id
        return outputs

    return call


def _folding_call(layer: BatchNormLayer, calls: Calls, folded: set[BatchNormLayer]) -> Callable[..., Tensor]:
    own = layer.call

    def call(inputs: Tensor, training: object = None, mask: object = None) -> Tensor:
        if id(inputs) not in calls or training or mask is not None or layer.axis not in (-1, 3):
            return own(inputs, training=training, mask=mask)
        folded.add(layer)
        convolution, before, _ = calls[id(inputs)]
        return _convolve(convolution, before, layer)

    return call


def _convolve(convolution: Convolution, inputs: Tensor, layer: BatchNormLayer) -> Tensor:
    """BN of a convolution of inputs."""
    scale = ops.rsqrt(layer.moving_variance + layer.epsilon) * (layer.gamma if layer.scale else 1.0)
    mean = layer.moving_mean - (convolution.bias if convolution.use_bias else 0.0)
    shift = (layer.beta if layer.center else 0.0) - mean * scale
    if hasattr(convolution, "convolution_op"):
        return ops.add(convolution.convolution_op(inputs, convolution.kernel * scale), shift)
    kernel = convolution.kernel * ops.reshape(scale, convolution.kernel.shape[-2:])  # [..., channels, multiplier]
    options = {name: getattr(convolution, name) for name in ("strides", "padding", "dilation_rate", "data_format")}
    return ops.add(ops.depthwise_conv(inputs, kernel, **options), shift)

"""Layers that Keras does not have, each class made when it is first asked for, since Keras is imported late.

They are registered with Keras, so that a saved model opens wherever `register` was called before;
`classifier.load_keras` does so.
"""

from __future__ import annotations

import functools
from typing import Any

WEIGHTS_EPSILON = 1e-5  # of weight standardization, under the root


def register() -> None:
    """Let Keras know all of them."""
    for layer in (bias, multiplier, standardized_conv, filter_response, threshold):
        layer()


def _registered(layer: Any) -> Any:
    import keras

    return keras.saving.register_keras_serializable(package="bn_vuln")(layer)


@functools.cache
def bias() -> Any:
    """The class of x + b, b one learned number for the whole tensor (Fixup)."""
    import keras

    class Bias(keras.layers.Layer):  # type: ignore[misc]
        def build(self, shape: Any) -> None:
            self.bias = self.add_weight(shape=(1,), initializer="zeros", name="bias")

        def call(self, x: Any) -> Any:
            return x + self.bias

    return _registered(Bias)


@functools.cache
def multiplier() -> Any:
    """The class of s x, s one learned number for the whole tensor (Fixup)."""
    import keras

    class Multiplier(keras.layers.Layer):  # type: ignore[misc]
        def build(self, shape: Any) -> None:
            self.multiplier = self.add_weight(shape=(1,), initializer="ones", name="multiplier")

        def call(self, x: Any) -> Any:
            return x * self.multiplier

    return _registered(Multiplier)


@functools.cache
def standardized_conv() -> Any:
    """The class of convolutions by (w - mean) / sqrt(variance + 1e-5) of each filter's weights."""
    import keras

    class StandardizedConv2D(keras.layers.Conv2D):  # type: ignore[misc]
        def convolution_op(self, inputs: Any, kernel: Any) -> Any:
            centred = kernel - keras.ops.mean(kernel, axis=(0, 1, 2), keepdims=True)
            variance = keras.ops.mean(keras.ops.square(centred), axis=(0, 1, 2), keepdims=True)
            return super().convolution_op(inputs, centred * keras.ops.rsqrt(variance + WEIGHTS_EPSILON))

    return _registered(StandardizedConv2D)


@functools.cache
def filter_response() -> Any:
    """The class of gamma x / sqrt(mean of x^2 over the positions + c) + beta, on [n, h, w, channels]."""
    import keras

    class FilterResponse(keras.layers.Layer):  # type: ignore[misc]
        def __init__(self, c: float, **options: Any) -> None:
            super().__init__(**options)
            self.c = c

        def build(self, shape: Any) -> None:
            self.gamma = self.add_weight(shape=(shape[-1],), initializer="ones", name="gamma")
            self.beta = self.add_weight(shape=(shape[-1],), initializer="zeros", name="beta")

        def call(self, x: Any) -> Any:
            response = keras.ops.mean(keras.ops.square(x), axis=(1, 2), keepdims=True)
            return self.gamma * (x * keras.ops.rsqrt(response + self.c)) + self.beta

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "c": self.c}

    return _registered(FilterResponse)


@functools.cache
def threshold() -> Any:
    """The class of max(x, tau), tau learned for each channel."""
    import keras

    class Threshold(keras.layers.Layer):  # type: ignore[misc]
        def build(self, shape: Any) -> None:
            self.tau = self.add_weight(shape=(shape[-1],), initializer="zeros", name="tau")

        def call(self, x: Any) -> Any:
            return keras.ops.maximum(x, self.tau)

    return _registered(Threshold)

"""Layers that Keras does not have. Each class is made when it is first asked for, since Keras is imported late.

They are registered with Keras, so that a saved model opens wherever `register` was called before, as
`classifier.load_keras` does. Their registered names stand in saved models and must not change.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

from bn_vuln.typing import KerasLayer, Plain, Tensor

LayerClass: TypeAlias = Callable[..., KerasLayer]

WEIGHTS_EPSILON = 1e-5  # of weight standardization, under the root


def register() -> None:
    """Register all custom layers with Keras."""
    for layer in (
        scalar_bias_class,
        scalar_multiplier_class,
        standardized_conv_class,
        filter_response_class,
        threshold_class,
    ):
        layer()


def _registered(layer: type) -> LayerClass:
    import keras

    return keras.saving.register_keras_serializable(package="bn_vuln")(layer)


@functools.cache
def scalar_bias_class() -> LayerClass:
    """Return the Keras layer class that adds one learned scalar: x + b (Fixup)."""
    import keras

    class Bias(keras.layers.Layer):  # type: ignore[misc]
        def build(self, shape: tuple[int, ...]) -> None:
            self.bias = self.add_weight(shape=(1,), initializer="zeros", name="bias")

        def call(self, x: Tensor) -> Tensor:
            return x + self.bias

    return _registered(Bias)


@functools.cache
def scalar_multiplier_class() -> LayerClass:
    """Return the Keras layer class that multiplies by one learned scalar: s x (Fixup)."""
    import keras

    class Multiplier(keras.layers.Layer):  # type: ignore[misc]
        def build(self, shape: tuple[int, ...]) -> None:
            self.multiplier = self.add_weight(shape=(1,), initializer="ones", name="multiplier")

        def call(self, x: Tensor) -> Tensor:
            return x * self.multiplier

    return _registered(Multiplier)


@functools.cache
def standardized_conv_class() -> LayerClass:
    """Return the Keras layer class of convolutions by (w - mean) / sqrt(variance + 1e-5) of each filter's weights."""
    import keras

    class StandardizedConv2D(keras.layers.Conv2D):  # type: ignore[misc]
        def convolution_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
            centred = kernel - keras.ops.mean(kernel, axis=(0, 1, 2), keepdims=True)
            variance = keras.ops.mean(keras.ops.square(centred), axis=(0, 1, 2), keepdims=True)
            return super().convolution_op(inputs, centred * keras.ops.rsqrt(variance + WEIGHTS_EPSILON))

    return _registered(StandardizedConv2D)


@functools.cache
def filter_response_class() -> LayerClass:
    """Return the Keras layer class of gamma x / sqrt(mean of x^2 over height and width + c) + beta."""
    import keras

    class FilterResponse(keras.layers.Layer):  # type: ignore[misc]
        def __init__(self, c: float, **options: Any) -> None:
            super().__init__(**options)
            self.c = c

        def build(self, shape: tuple[int, ...]) -> None:
            self.gamma = self.add_weight(shape=(shape[-1],), initializer="ones", name="gamma")
            self.beta = self.add_weight(shape=(shape[-1],), initializer="zeros", name="beta")

        def call(self, x: Tensor) -> Tensor:
            response = keras.ops.mean(keras.ops.square(x), axis=(1, 2), keepdims=True)
            return self.gamma * (x * keras.ops.rsqrt(response + self.c)) + self.beta

        def get_config(self) -> Plain:
            return {**super().get_config(), "c": self.c}

    return _registered(FilterResponse)


@functools.cache
def threshold_class() -> LayerClass:
    """Return the Keras layer class of max(x, tau), tau learned for each channel."""
    import keras

    class Threshold(keras.layers.Layer):  # type: ignore[misc]
        def build(self, shape: tuple[int, ...]) -> None:
            self.tau = self.add_weight(shape=(shape[-1],), initializer="zeros", name="tau")

        def call(self, x: Tensor) -> Tensor:
            return keras.ops.maximum(x, self.tau)

    return _registered(Threshold)

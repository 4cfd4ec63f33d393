"""Layers that Keras does not have. They are registered with it, so that a saved model opens wherever `classes` was
called before; `classifier.load_keras` does so."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

WEIGHTS_EPSILON = 1e-5  # of weight standardization, under the root


@functools.cache
def classes() -> SimpleNamespace:
    """The layers' classes: `Bias`, `Multiplier`, `StandardizedConv2D`, `FilterResponse`, `Threshold`."""
    import keras

    ops = keras.ops
    register = keras.saving.register_keras_serializable(package="bn_vuln")

    @register
    class Bias(keras.layers.Layer):  # type: ignore[misc]
        """x + b, b one learned number for the whole tensor (Fixup)."""

        def build(self, shape: Any) -> None:
            self.bias = self.add_weight(shape=(1,), initializer="zeros", name="bias")

        def call(self, x: Any) -> Any:
            return x + self.bias

    @register
    class Multiplier(keras.layers.Layer):  # type: ignore[misc]
        """s x, s one learned number for the whole tensor (Fixup)."""

        def build(self, shape: Any) -> None:
            self.multiplier = self.add_weight(shape=(1,), initializer="ones", name="multiplier")

        def call(self, x: Any) -> Any:
            return x * self.multiplier

    @register
    class StandardizedConv2D(keras.layers.Conv2D):  # type: ignore[misc]
        """A convolution by (w - mean) / sqrt(variance + 1e-5) of each filter's weights."""

        def convolution_op(self, inputs: Any, kernel: Any) -> Any:
            centred = kernel - ops.mean(kernel, axis=(0, 1, 2), keepdims=True)
            variance = ops.mean(ops.square(centred), axis=(0, 1, 2), keepdims=True)
            return super().convolution_op(inputs, centred * ops.rsqrt(variance + WEIGHTS_EPSILON))

    @register
    class FilterResponse(keras.layers.Layer):  # type: ignore[misc]
        """gamma x / sqrt(mean of x^2 over the positions + c) + beta, on [n, h, w, channels]."""

        def __init__(self, c: float, **options: Any) -> None:
            super().__init__(**options)
            self.c = c

        def build(self, shape: Any) -> None:
            self.gamma = self.add_weight(shape=(shape[-1],), initializer="ones", name="gamma")
            self.beta = self.add_weight(shape=(shape[-1],), initializer="zeros", name="beta")

        def call(self, x: Any) -> Any:
            response = ops.mean(ops.square(x), axis=(1, 2), keepdims=True)
            return self.gamma * (x * ops.rsqrt(response + self.c)) + self.beta

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "c": self.c}

    @register
    class Threshold(keras.layers.Layer):  # type: ignore[misc]
        """max(x, tau), tau learned for each channel."""

        def build(self, shape: Any) -> None:
            self.tau = self.add_weight(shape=(shape[-1],), initializer="zeros", name="tau")

        def call(self, x: Any) -> Any:
            return ops.maximum(x, self.tau)

    return SimpleNamespace(
        Bias=Bias,
        Multiplier=Multiplier,
        StandardizedConv2D=StandardizedConv2D,
        FilterResponse=FilterResponse,
        Threshold=Threshold,
    )

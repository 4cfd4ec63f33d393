"""Normalization is an argument: a builder takes a factory and calls it where a normalization goes.

Everything else of the two arms of a pair is the same, initial kernels included. To add one: a config class in
`config/cell.py`, a function here, an entry in `FACTORIES`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bn_vuln import backend, config


@dataclass(frozen=True)
class Factory:
    """`layer(name)` makes the Keras layer, None for no normalization. `keeps_bias`: whether the Dense or
    convolution before it keeps its bias (behind BN a bias would be subtracted again; beta takes its place)."""

    layer: Callable[[str], Any | None]
    keeps_bias: bool

    def __call__(self, x: Any, name: str) -> Any:
        """Apply the normalization to a Keras tensor."""
        layer = self.layer(name)
        return x if layer is None else layer(x)


def none(_: config.NoNormalization, seed: int) -> Factory:
    """No layer: the tensor passes unchanged."""
    return Factory(layer=lambda name: None, keeps_bias=True)


def batch(options: config.BatchNormalization, seed: int) -> Factory:
    """BN; every option is written out, since Keras' defaults (c = 1e-3, momentum = .99) move the results."""
    import keras

    numbers = itertools.count()

    def gamma() -> Any:
        if options.gamma == "ones":
            return "ones"
        return keras.initializers.RandomUniform(
            0.0, 1.0, seed=backend.derived_seed(seed, GAMMA_STREAM, next(numbers), 1)
        )

    def layer(name: str) -> Any:
        return keras.layers.BatchNormalization(
            axis=-1,
            epsilon=options.c,
            momentum=options.momentum,
            center=options.affine,
            scale=options.affine,
            gamma_initializer=gamma(),
            beta_initializer="zeros",
            moving_mean_initializer="zeros",
            moving_variance_initializer="ones",
            synchronized=options.synchronized,
            name=name,
        )

    return Factory(layer=layer, keeps_bias=not options.affine)


GAMMA_STREAM = 2  # with the 1 behind it, it keeps gamma's random stream apart from the kernels' and the order's
FACTORIES: dict[str, Callable[[Any, int], Factory]] = {"none": none, "batch": batch}


def factory(options: config.Normalization, seed: int = 0) -> Factory:
    """The factory for a normalization's config; `seed` is that of its random initial values, if it has any."""
    return FACTORIES[options.name](options, seed)

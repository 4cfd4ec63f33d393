"""Normalization is an argument: a builder takes a factory and calls it where a normalization goes.

Everything else of the two arms of a pair is the same, initial kernels included; Fixup, which is an initialization, is
the one exception. To add one: a config class in `config/normalization.py`, a function here, an entry in `FACTORIES`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bn_vuln import config
from bn_vuln.errors import UsageError
from bn_vuln.models import custom_layers
from bn_vuln.runtime import backend

Maker = Callable[[str], Any]  # name -> Keras layer


def _nothing(_: str) -> None:
    """No layer."""


def _relu(name: str) -> Any:
    import keras

    return keras.layers.ReLU(name=name)


def _convolution() -> Any:
    import keras

    return keras.layers.Conv2D


@dataclass(frozen=True)
class NormalizationFactory:
    """What a normalization puts into a net, by Keras layers (None: nothing).

    `layer` is the normalization itself. `keeps_bias`: whether the Dense or convolution before it keeps its bias
    (behind BN a bias would be subtracted again; beta takes its place). `activation` stands where ReLU is;
    `convolution()` is the class of the convolutions. `shift` goes before the convolutions and the classifier of
    residual nets, `multiplier` behind the last convolution of a branch; `fixup`: whether branches begin at zero.
    """

    layer: Callable[[str], Any | None]
    use_bias: bool
    activation: Maker = _relu
    convolution: Callable[[], Any] = _convolution
    scalar_bias: Callable[[str], Any | None] = _nothing
    scalar_multiplier: Callable[[str], Any | None] = _nothing
    fixup: bool = False

    def __call__(self, x: Any, name: str) -> Any:
        """Apply the normalization to a Keras tensor. Raises `UsageError` for groups that do not divide its channels."""
        layer = self.layer(name)
        groups = getattr(layer, "groups", 1)
        if groups > 0 and x.shape[-1] % groups:
            raise UsageError(f"normalization.groups: {groups} do not divide the {x.shape[-1]} channels of {name}")
        return _apply(layer, x)

    def activate(self, x: Any, name: str) -> Any:
        """The activation of a Keras tensor."""
        return self.activation(name)(x)

    def apply_scalar_bias(self, x: Any, name: str) -> Any:
        """What a convolution of a residual net takes."""
        return _apply(self.scalar_bias(name), x)

    def apply_scalar_multiplier(self, x: Any, name: str) -> Any:
        """What a branch of a residual net gives."""
        return _apply(self.scalar_multiplier(name), x)

    def gains(self, branches: int) -> tuple[float, float, float]:
        """What the initial kernels are multiplied by, in a net of so many residual branches of two convolutions: those
        of the first convolution of a branch, of the second, and of the classifier (Zhang et al. 2019, section 3)."""
        return (branches**-0.5, 0.0, 0.0) if self.fixup else (1.0, 1.0, 1.0)


def _apply(layer: Any | None, x: Any) -> Any:
    return x if layer is None else layer(x)


def none(_: config.NoNormalization, seed: int) -> NormalizationFactory:
    """No layer: the tensor passes unchanged."""
    return NormalizationFactory(layer=_nothing, use_bias=True)


def batch(options: config.BatchNormalization, seed: int) -> NormalizationFactory:
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

    return NormalizationFactory(layer=layer, use_bias=not options.affine)


def group(
    options: config.GroupNormalization | config.WeightStandardizedGroupNormalization, seed: int
) -> NormalizationFactory:
    """Group normalization, with standardized weights where the options say so."""
    standardized = isinstance(options, config.WeightStandardizedGroupNormalization)
    convolution = custom_layers.standardized_conv if standardized else _convolution
    return NormalizationFactory(layer=_groups(options.groups, options.c), use_bias=False, convolution=convolution)


def layer(options: config.LayerNormalization, seed: int) -> NormalizationFactory:
    """One group of all channels."""
    return NormalizationFactory(layer=_groups(1, options.c), use_bias=False)


def instance(options: config.InstanceNormalization, seed: int) -> NormalizationFactory:
    """As many groups as there are channels. Where nothing but ReLU and pooling follows (`wrn`, `vgg`), every channel's
    mean and spread are taken out of what they pool, which differs little from image to image."""
    return NormalizationFactory(layer=_groups(-1, options.c), use_bias=False)


def _groups(groups: int, c: float) -> Maker:
    """`groups` as Keras takes them: -1 for one to a channel."""
    import keras

    return lambda name: keras.layers.GroupNormalization(groups=groups, axis=-1, epsilon=c, name=name)


def frn(options: config.FilterResponseNormalization, seed: int) -> NormalizationFactory:
    """Filter response normalization and its thresholds."""
    return NormalizationFactory(
        layer=lambda name: custom_layers.filter_response()(options.c, name=name),
        use_bias=False,
        activation=lambda name: custom_layers.threshold()(name=name),
    )


def fixup(_: config.Fixup, seed: int) -> NormalizationFactory:
    """Scalar biases in place of a normalization and before convolutions, scalar multipliers at the end of branches."""

    def bias(name: str) -> Any:
        return custom_layers.bias()(name=name)

    return NormalizationFactory(
        layer=bias,
        use_bias=False,
        scalar_bias=bias,
        scalar_multiplier=lambda name: custom_layers.multiplier()(name=name),
        fixup=True,
    )


GAMMA_STREAM = 2  # with the 1 behind it, it keeps gamma's random stream apart from the kernels' and the order's
FACTORIES: dict[str, Callable[[Any, int], NormalizationFactory]] = {
    "none": none,
    "batch": batch,
    "group": group,
    "layer": layer,
    "instance": instance,
    "ws_group": group,
    "frn": frn,
    "fixup": fixup,
}


def make_factory(options: config.Normalization, seed: int = 0) -> NormalizationFactory:
    """The factory for a normalization's config; `seed` is that of its random initial values, if it has any."""
    return FACTORIES[options.name](options, seed)

"""Normalization is an argument: a builder takes a factory and calls it where a normalization goes.

Everything else of the two arms of a pair is the same, initial kernels included. Fixup, which is an initialization, is
the one exception. To add one: a config class in `config/normalization.py`, a function here, an entry in `FACTORIES`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from bn_vuln import config
from bn_vuln.errors import UsageError
from bn_vuln.models import custom_layers
from bn_vuln.models.custom_layers import LayerClass
from bn_vuln.runtime import backend, random_streams
from bn_vuln.typing import KerasLayer, Tensor

LayerFactory: TypeAlias = Callable[[str], KerasLayer]  # name -> layer
OptionalLayerFactory: TypeAlias = Callable[[str], KerasLayer | None]


class InitGains(NamedTuple):
    """Factors of the initial kernels of a residual net."""

    first: float  # the first convolution of a branch
    last: float  # the last convolution of a branch
    classifier: float


def _no_layer(_: str) -> None:
    return None


def _relu(name: str) -> KerasLayer:
    import keras

    return keras.layers.ReLU(name=name)


def _conv2d() -> LayerClass:
    import keras

    return keras.layers.Conv2D


@dataclass(frozen=True)
class NormalizationFactory:
    """The layers that a normalization puts into a net.

    Attributes:
        layer: the normalization itself, or None.
        use_bias: the Dense or convolution before it has a bias. (Behind BN a bias would be subtracted again; beta takes
            its place.)
        activation: the layer that stands where ReLU is.
        convolution: returns the class of the convolutions.
        scalar_bias: goes before the convolutions and the classifier of residual nets (Fixup), or None.
        scalar_multiplier: goes behind the last convolution of a branch (Fixup), or None.
        fixup_init: branches begin at zero.
    """

    layer: OptionalLayerFactory
    use_bias: bool
    activation: LayerFactory = _relu
    convolution: Callable[[], LayerClass] = _conv2d
    scalar_bias: OptionalLayerFactory = _no_layer
    scalar_multiplier: OptionalLayerFactory = _no_layer
    fixup_init: bool = False

    def __call__(self, x: Tensor, name: str) -> Tensor:
        """Apply the normalization.

        Args:
            x: Keras tensor [..., channels].
            name: of the layer.

        Returns:
            Keras tensor like x; x itself where there is no layer.

        Raises:
            UsageError: for groups that do not divide the channels.
        """
        layer = self.layer(name)
        groups = getattr(layer, "groups", 1)
        if groups > 0 and x.shape[-1] % groups:
            raise UsageError(f"normalization.groups: {groups} do not divide the {x.shape[-1]} channels of {name}")
        return _apply(layer, x)

    def activate(self, x: Tensor, name: str) -> Tensor:
        """Apply the activation to a Keras tensor."""
        return self.activation(name)(x)

    def apply_scalar_bias(self, x: Tensor, name: str) -> Tensor:
        """Apply Fixup's scalar bias, where there is one, to the input of a convolution or of the classifier."""
        return _apply(self.scalar_bias(name), x)

    def apply_scalar_multiplier(self, x: Tensor, name: str) -> Tensor:
        """Apply Fixup's scalar multiplier, where there is one, to the output of a residual branch."""
        return _apply(self.scalar_multiplier(name), x)

    def init_gains(self, branches: int) -> InitGains:
        """Return the factors of the initial kernels (Fixup: Zhang et al. 2019, section 3).

        Args:
            branches: number of residual branches of the net, of two convolutions each.
        """
        return InitGains(branches**-0.5, 0.0, 0.0) if self.fixup_init else InitGains(1.0, 1.0, 1.0)


def _apply(layer: KerasLayer | None, x: Tensor) -> Tensor:
    return x if layer is None else layer(x)


def none(_: config.NoNormalization, seed: int) -> NormalizationFactory:
    """Return the factory of no normalization: the tensor passes unchanged."""
    return NormalizationFactory(layer=_no_layer, use_bias=True)


def batch(options: config.BatchNormalization, seed: int) -> NormalizationFactory:
    """Return the factory of BN.

    Every option is written out, since Keras' defaults (c = 1e-3, momentum = .99) move the results.

    Args:
        options: config.
        seed: of the initial gamma, where it is random.
    """
    import keras

    numbers = itertools.count()

    def gamma() -> object:
        if options.gamma == "ones":
            return "ones"
        return keras.initializers.RandomUniform(
            0.0, 1.0, seed=backend.derived_seed(seed, random_streams.GAMMA, next(numbers), 1)
        )

    def layer(name: str) -> KerasLayer:
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
    """Return the factory of group normalization, with standardized weights where the options say so."""
    standardized = isinstance(options, config.WeightStandardizedGroupNormalization)
    convolution = custom_layers.standardized_conv_class if standardized else _conv2d
    return NormalizationFactory(layer=_groups(options.groups, options.c), use_bias=False, convolution=convolution)


def layer(options: config.LayerNormalization, seed: int) -> NormalizationFactory:
    """Return the factory of layer normalization: one group of all channels."""
    return NormalizationFactory(layer=_groups(1, options.c), use_bias=False)


def instance(options: config.InstanceNormalization, seed: int) -> NormalizationFactory:
    """Return the factory of instance normalization: as many groups as there are channels.

    Where nothing but ReLU and pooling follows (`wrn`, `vgg`), every channel's mean and spread are removed from what is
    pooled, which then differs little from image to image.
    """
    return NormalizationFactory(layer=_groups(-1, options.c), use_bias=False)


def _groups(groups: int, c: float) -> LayerFactory:
    """Group normalization; `groups` as Keras takes them: -1 for one to a channel."""
    import keras

    return lambda name: keras.layers.GroupNormalization(groups=groups, axis=-1, epsilon=c, name=name)


def frn(options: config.FilterResponseNormalization, seed: int) -> NormalizationFactory:
    """Return the factory of filter response normalization and its thresholds (Singh and Krishnan 2020)."""
    return NormalizationFactory(
        layer=lambda name: custom_layers.filter_response_class()(options.c, name=name),
        use_bias=False,
        activation=lambda name: custom_layers.threshold_class()(name=name),
    )


def fixup(_: config.Fixup, seed: int) -> NormalizationFactory:
    """Return the factory of Fixup (Zhang et al. 2019).

    Scalar biases stand in place of a normalization and before convolutions, scalar multipliers at the end of branches.
    """

    def bias(name: str) -> KerasLayer:
        return custom_layers.scalar_bias_class()(name=name)

    return NormalizationFactory(
        layer=bias,
        use_bias=False,
        scalar_bias=bias,
        scalar_multiplier=lambda name: custom_layers.scalar_multiplier_class()(name=name),
        fixup_init=True,
    )


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
    """Return the factory of a normalization's config.

    Args:
        options: config.
        seed: of its random initial values, if it has any.
    """
    return FACTORIES[options.name](options, seed)

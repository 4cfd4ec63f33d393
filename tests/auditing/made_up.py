"""Made-up classifiers with known answers: small, made without training, the same on every backend.

Images are 16 x 16: the smooth pattern of one of ten classes, other smooth patterns, and a faint noise, in 8 bits. Nets
are three convolutions (random smooth kernels; normalization; ReLU) and a dense layer by ridge regression. BN has the
exact statistics of the images that a net is fitted on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bn_vuln.runtime import backend, ops

keras = backend.tensorflow().keras

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Layer = Any

SIZE, CLASSES = 16, 10
WIDTHS = (8, 16, 32)
DEVIATION = 10.0  # of what convolutions return, so that c = 1e-5 is nothing beside the variance
HIGH_GAINS, TIMES = 3, 100.0  # channels of the second BN, and their gain in gains of the others
LAG = 0.95  # of the way from their start, 0 and 1, to the true statistics is still to go
LEVELS = 8  # of pixels, in `masked_gradients`


class MadeUp(NamedTuple):
    """A model with images that are measured, and those that it was fitted on; pixels in [0, 1]."""

    model: keras.Model
    images: Floats
    labels: Integers
    train_images: Floats
    train_labels: Integers


Maker = Callable[[], MadeUp]


def images(n: int, seed: int) -> tuple[Floats, Integers]:
    """Return images float32 [n, 16, 16, 1] and their labels."""
    waves = np.cos(np.pi * np.outer(np.arange(4), (np.arange(SIZE) + 0.5) / SIZE))
    basis = np.einsum("ih,jw->ijhw", waves, waves).reshape(-1, SIZE, SIZE)[1:]
    basis /= basis.std(axis=(1, 2), keepdims=True)
    patterns = np.random.default_rng(0).normal(size=(CLASSES, len(basis)))
    patterns /= np.linalg.norm(patterns, axis=1, keepdims=True)
    rng = np.random.default_rng([1, seed])
    labels = np.arange(n) % CLASSES
    weights = 0.12 * patterns[labels] + 0.08 * rng.normal(size=(n, len(basis))) / np.sqrt(len(basis))
    pixels = 0.5 + np.tensordot(weights, basis, axes=1) + 0.004 * rng.normal(size=(n, SIZE, SIZE))
    return (np.round(255 * pixels.clip(0, 1)) / 255).astype(np.float32)[..., None], labels


TRAIN, TEST = images(1000, seed=0), images(240, seed=1)


def made_up(model: keras.Model) -> MadeUp:
    """Return a model with its images."""
    return MadeUp(model, *TEST, *TRAIN)


# ---------------------------------------------------------------- nets


def batch_norm(number: int) -> Layer:
    """Return the BN layer behind a convolution."""
    return keras.layers.BatchNormalization(name=f"bn{number}", epsilon=1e-5)


def group_norm(number: int) -> Layer:
    """Return a group norm layer of four groups."""
    return keras.layers.GroupNormalization(4, name=f"gn{number}", epsilon=1e-5)


def convolution(number: int, c_in: int, c_out: int) -> Layer:
    """Return a convolution; the second has a stride of 2.

    The random kernel takes means of neighbours, so that nothing quick passes. The first has a bias, by which grey
    becomes 0.
    """
    layer = keras.layers.Conv2D(c_out, 3, strides=1 + (number == 2), use_bias=number == 1, name=f"conv{number}")
    layer.build((None, None, None, c_in))
    blur = np.outer([1, 2, 1], [1, 2, 1]) / 16
    layer.kernel.assign(blur[..., None, None] * np.random.default_rng([2, number]).normal(size=(c_in, c_out)))
    if number == 1:
        layer.bias.assign(-0.5 * np.sum(layer.kernel, axis=(0, 1, 2)))
    return layer


def layered(normalization: Callable[[int], Layer] | None, widths: Sequence[int] = WIDTHS) -> keras.Model:
    """Return a net to be fitted.

    Args:
        normalization: of the number of a convolution, 1 to 3, to what is behind it; None: nothing is.
        widths: channels of the convolutions.
    """
    x = inputs = keras.Input((SIZE, SIZE, 1))
    for number, (c_in, c_out) in enumerate(zip((1, *widths), widths, strict=False), 1):
        x = convolution(number, c_in, c_out)(x)
        x = x if normalization is None else normalization(number)(x)
        x = keras.layers.ReLU(name=f"relu{number}")(x)
    return with_logits(inputs, x)


def with_logits(inputs: Any, x: Any) -> keras.Model:
    """Return a net that ends with a dense layer."""
    x = keras.layers.Flatten(name="features")(x)
    return keras.Model(inputs, keras.layers.Dense(CLASSES, use_bias=False, name="logits")(x))


def fitted(model: keras.Model) -> keras.Model:
    """Return a net after the scales of its convolutions, its statistics and its dense layer are fitted."""
    for number in (1, 2, 3):
        scale_channels(model, number)
    track(model)
    fit_logits(model)
    return model


def outputs(model: keras.Model, layer: str) -> Floats:
    """Return what a layer of a net returns for the images that it is fitted on, with their statistics."""
    return np.asarray(keras.Model(model.input, model.get_layer(layer).output)(TRAIN[0], training=True), np.float32)


def scale_channels(model: keras.Model, number: int, deviations: NDArray[Any] | float = DEVIATION) -> None:
    """Give what a convolution returns these standard deviations."""
    layer = model.get_layer(f"conv{number}")
    scale = deviations / outputs(model, layer.name).std(axis=(0, 1, 2))
    layer.set_weights([weights * scale for weights in layer.get_weights()])


def bn_layers(model: keras.Model) -> list[Layer]:
    """Return the BN layers of a model, wherever inside."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]


def track(model: keras.Model) -> None:
    """Give all BN layers the statistics that they have in training."""
    for layer in bn_layers(model):
        layer.momentum = 0.0
    model(TRAIN[0], training=True)
    for layer in bn_layers(model):
        layer.momentum = 0.99


def fit_logits(model: keras.Model) -> None:
    """Fit the dense layer by ridge regression, to 9 for the class and -1 for the others."""
    features = outputs(model, "features").astype(np.float64)
    targets = 10.0 * np.eye(CLASSES)[TRAIN[1]] - 1.0
    normal = features.T @ features + 100.0 * np.eye(features.shape[1])
    model.get_layer("logits").set_weights([np.linalg.solve(normal, features.T @ targets)])


# ---------------------------------------------------------------- known answers


@functools.cache
def nothing_helps() -> MadeUp:
    """A net with BN where nothing is to be gained.

    The statistics are exact. All channels of a layer have one variance, so that another c with the gain of the median
    channel kept is the identity. Without it all gains fall alike, and as there are no shifts, all logits do.
    """
    return made_up(fitted(layered(batch_norm)))


@functools.cache
def three_high_gains() -> MadeUp:
    """A net in which three channels of the second BN have a hundred times the gain of the others.

    They are differences between neighbouring pixels in both directions, which clean images hardly have, and to clean
    images they do next to nothing; a faint quick pattern fills them. With another c in that layer they fall silent.
    Three channels of the first BN have thirty-fold gain, but nothing to hide, as their convolutions return a thirtieth:
    another c in that layer takes from clean accuracy, and so does another c in all layers.
    """
    c_in, c_out = WIDTHS[0] + 1, WIDTHS[1] + HIGH_GAINS
    model = layered(batch_norm, (c_in, c_out, WIDTHS[2]))
    first, second, third = (model.get_layer(f"conv{number}") for number in (1, 2, 3))
    _assign_last(first, 1, np.outer([0, 1, 0], [0, 1, 0])[..., None, None])
    model.get_layer("bn1").beta.assign([0.0] * WIDTHS[0] + [4.0])  # ReLU lets pixels pass as they are
    scale_channels(model, 1, np.append(np.full(3, DEVIATION / 30), np.full(c_in - 3, DEVIATION)))

    pairs = (([1, -2, 1], [1, -2, 1]), ([1, -2, 1], [1, 0, -1]), ([1, 0, -1], [1, -2, 1]))
    differences = np.zeros((3, 3, c_in, HIGH_GAINS))
    differences[:, :, -1] = np.stack([np.outer(*pair) for pair in pairs], axis=-1)
    _assign_last(second, HIGH_GAINS, differences)
    scale_channels(model, 2, np.append(np.full(WIDTHS[1], DEVIATION), np.full(HIGH_GAINS, DEVIATION / TIMES)))

    others = (np.arange(c_out) < WIDTHS[1])[:, None]
    heard = 4.0 * np.array(third.kernel)
    third.kernel.assign(others * np.array(third.kernel))
    scale_channels(model, 3)
    fit_logits(model)  # to what the others say
    third.kernel.assign(np.where(others, np.array(third.kernel), heard))
    track(model)
    return made_up(model)


def _assign_last(convolution: Layer, n: int, kernels: NDArray[Any]) -> None:
    """Give the last n channels of a convolution these kernels [3, 3, in, n]."""
    before = convolution.get_weights()
    convolution.set_weights([np.concatenate([before[0][..., :-n], kernels], axis=-1), *before[1:]])
    if convolution.use_bias:
        convolution.bias.assign(-0.5 * np.sum(convolution.kernel, axis=(0, 1, 2)))


@functools.cache
def stale_statistics() -> MadeUp:
    """A net whose tracked statistics lag, as with momentum .999 after 51 steps; in training it is `nothing_helps`."""
    model = copied(nothing_helps().model)
    for layer in bn_layers(model):
        layer.moving_mean.assign((1 - LAG) * layer.moving_mean)
        layer.moving_variance.assign(LAG + (1 - LAG) * layer.moving_variance)
    return made_up(model)


def copied(model: keras.Model) -> keras.Model:
    """Return the same model with variables of its own."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


@functools.cache
def no_normalization() -> MadeUp:
    """A net without normalization layers."""
    return made_up(fitted(layered(None)))


@functools.cache
def folded_batch_norm() -> MadeUp:
    """`three_high_gains` as it is exported: each BN is part of the convolution before it, and no BN is left."""
    found = three_high_gains().model
    widths = [found.get_layer(f"bn{number}").gamma.shape[0] for number in (1, 2, 3)]
    x = inputs = keras.Input((SIZE, SIZE, 1))
    for number, width in enumerate(widths, 1):
        convolution, bn = found.get_layer(f"conv{number}"), found.get_layer(f"bn{number}")
        gain = np.array(bn.gamma) / np.sqrt(np.array(bn.moving_variance) + bn.epsilon)
        kernel, *bias = convolution.get_weights()
        folded = keras.layers.Conv2D(width, 3, strides=convolution.strides, activation="relu", name=f"conv{number}")
        x = folded(x)
        folded.set_weights([kernel * gain, np.array(bn.beta) + gain * (sum(bias) - np.array(bn.moving_mean))])
    logits = keras.layers.Dense(CLASSES, use_bias=False, name="logits")
    model = keras.Model(inputs, logits(keras.layers.Flatten()(x)))
    logits.set_weights(found.get_layer("logits").get_weights())
    return made_up(model)


@functools.cache
def group_normalization() -> MadeUp:
    """A net with group norm, which has no statistics that could be estimated."""
    return made_up(fitted(layered(group_norm)))


@functools.cache
def mixed() -> MadeUp:
    """A net with BN, layer norm and group norm."""
    kinds = (batch_norm, lambda number: keras.layers.LayerNormalization(name=f"ln{number}"), group_norm)
    return made_up(fitted(layered(lambda number: kinds[number - 1](number))))


@keras.utils.register_keras_serializable("made_up")
class Quantized(keras.layers.Layer):
    """Pixels of few levels: the gradient by them is 0 everywhere."""

    def call(self, x: Any) -> Any:
        """Return the share of the borders between levels that a pixel is above."""
        borders = (np.arange(1, LEVELS) / LEVELS).astype(np.float32)
        return ops.mean(ops.cast(ops.expand_dims(x, -1) > borders, "float32"), axis=-1)


def _behind(before: Sequence[Layer], after: Sequence[Layer] = ()) -> MadeUp:
    """`nothing_helps` behind these layers, and these behind it."""
    x = inputs = keras.Input((SIZE, SIZE, 1))
    for layer in (*before, nothing_helps().model, *after):
        x = layer(x)
    return made_up(keras.Model(inputs, x))


@functools.cache
def masked_gradients() -> MadeUp:
    """A net that rounds its pixels to eight levels, so that no gradient says which way to go."""
    return _behind([Quantized()])


@functools.cache
def softmax_0_255() -> MadeUp:
    """A net of pixels from 0 to 255 that ends in softmax, in a model in a model."""
    return _behind([keras.layers.Rescaling(1 / 255)], [keras.layers.Softmax()])


class Subclassed(keras.Model):
    """A net whose layers are called in Python, so that Keras has no graph of it."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        """Take the layers in their order."""
        super().__init__()
        self.chain = list(layers)

    def call(self, x: Any, training: bool = False) -> Any:
        """Return the logits."""
        for layer in self.chain:
            x = layer(x, training=training) if isinstance(layer, keras.layers.BatchNormalization) else layer(x)
        return x


@functools.cache
def subclassed() -> MadeUp:
    """`nothing_helps` as a subclassed model."""
    model = Subclassed(copied(nothing_helps().model).layers[1:])
    model(TEST[0][:1])
    return made_up(model)


@keras.utils.register_keras_serializable("made_up")
class Block(keras.layers.Layer):
    """The second convolution and its BN, in a layer of an own class."""

    def __init__(self, **options: Any) -> None:
        """Make the layers."""
        super().__init__(**options)
        self.convolution, self.bn = convolution(2, *WIDTHS[:2]), batch_norm(2)

    def call(self, x: Any, training: bool = False) -> Any:
        """Return what ReLU does."""
        return ops.relu(self.bn(self.convolution(x), training=training))


@functools.cache
def shared_and_nested() -> MadeUp:
    """A net whose first BN is in a model in the model, whose second in a layer, and whose third is called twice.

    What the third is given has other means and variances in its two calls; it tracks the means of both.
    """
    x = stem = keras.Input((SIZE, SIZE, 1))
    for layer in (convolution(1, 1, WIDTHS[0]), batch_norm(1), keras.layers.ReLU()):
        x = layer(x)
    inputs = keras.Input((SIZE, SIZE, 1))
    h = Block(name="block")(keras.Model(stem, x, name="stem")(inputs))
    shared, branches = batch_norm(3), [convolution(3, *WIDTHS[1:]), keras.layers.Conv2D(WIDTHS[2], 3, name="other")]
    x = keras.layers.Add()([keras.layers.ReLU()(shared(branch(h))) for branch in branches])
    model = with_logits(inputs, x)
    rng = np.random.default_rng(3)
    branches[1].set_weights([rng.normal(size=branches[1].kernel.shape), rng.normal(size=WIDTHS[2])])
    track(model)
    both = [outputs(model, branch.name) for branch in branches]
    shared.moving_mean.assign(np.mean([h.mean(axis=(0, 1, 2)) for h in both], axis=0))
    shared.moving_variance.assign(np.mean([h.var(axis=(0, 1, 2)) for h in both], axis=0))
    fit_logits(model)
    return made_up(model)


@functools.cache
def frozen() -> MadeUp:
    """`nothing_helps` with BN layers that are not trained."""
    model = copied(nothing_helps().model)
    for layer in bn_layers(model):
        layer.trainable = False
    return made_up(model)


@functools.cache
def channels_first() -> MadeUp:
    """A net of images [channels, height, width] and BN along the first axis; convolutions get channels last."""

    def bn(number: int) -> Layer:
        return keras.Sequential(
            [
                keras.layers.Permute((3, 1, 2)),
                keras.layers.BatchNormalization(1, name=f"bn{number}", epsilon=1e-5),
                keras.layers.Permute((2, 3, 1)),
            ],
            name=f"normalize{number}",
        )

    x = inputs = keras.Input((1, SIZE, SIZE))
    net = fitted(layered(bn))
    return made_up(keras.Model(inputs, net(keras.layers.Permute((2, 3, 1))(x))))


@functools.cache
def dead_channels() -> MadeUp:
    """`nothing_helps` with one BN more, all of whose channels are dead: it is given zeros, beside the second."""

    def bn(number: int) -> Layer:
        if number != 2:
            return batch_norm(number)
        return lambda x: keras.layers.Add()(
            [
                batch_norm(2)(x),
                keras.layers.BatchNormalization(name="dead", epsilon=1e-5)(keras.layers.Rescaling(0.0)(x)),
            ]
        )

    return made_up(fitted(layered(bn)))

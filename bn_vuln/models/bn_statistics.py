"""BN evaluated with other statistics than those tracked in training, and the moments of the inputs of BN layers.

`batch`: the statistics of the batch under evaluation itself, as BN trains. `reestimated`: the mean over the batches of
one pass through the training examples, in the batch size of the training (PyTorch's BN with momentum=None, but for
unbiased variances there).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bn_vuln.data.transforms import Size, to_pixels
from bn_vuln.errors import UsageError
from bn_vuln.runtime import backend
from bn_vuln.typing import AnyArray, BatchNormLayer, DatasetImages, KerasLayer, KerasModel, Predict, Tensor, Variable


@dataclass(frozen=True)
class InputMoments:
    """The moments of the inputs of a BN layer, over batches.

    Attributes:
        layer: the BN layer.
        means: float32 [batches, channels].
        variances: float32 [batches, channels].
    """

    layer: BatchNormLayer
    means: NDArray[np.float32]
    variances: NDArray[np.float32]


def input_moments(model: KerasModel, predict: Predict, batches: Iterable[AnyArray]) -> list[InputMoments]:
    """Measure the moments of the inputs of each BN layer.

    Args:
        model: a Keras model.
        predict: calls the model with a batch of pixels.
        batches: pixels [n, height, width, channels].

    Returns:
        One for each BN layer, in the order in which they are called.
    """
    tf = backend.tensorflow()
    called: list[BatchNormLayer] = []  # layers, while a graph is made

    def moments_of(x: Tensor) -> list[tuple[Tensor, Tensor]]:
        with _recorded_inputs(model) as calls:
            predict(x)
        called[:] = [layer for layer, _ in calls]
        return [
            tf.nn.moments(tf.cast(h, tf.float32), [i for i in range(len(h.shape)) if i != layer.axis % len(h.shape)])
            for layer, h in calls
        ]

    compiled = backend.compile(moments_of)
    results = [compiled(tf.constant(batch)) for batch in batches]
    arrays = [[np.stack([np.asarray(v) for v in values]) for values in zip(*layers, strict=True)]
              for layers in zip(*results, strict=True)]  # fmt: skip
    return [InputMoments(layer, *both) for layer, both in zip(called, arrays, strict=True)]


@contextlib.contextmanager
def _recorded_inputs(model: KerasModel) -> Iterator[list[tuple[BatchNormLayer, Tensor]]]:
    """(BN layer, its inputs) for each call inside of the context.

    It works wherever in the model the layer is: layers that are called in models within models have no inputs that
    could be named from outside.
    """
    calls: list[tuple[BatchNormLayer, Tensor]] = []

    def recording(layer: BatchNormLayer) -> Callable[..., Tensor]:
        call = layer.call

        def record(inputs: Tensor, *args: object, **kwargs: object) -> Tensor:
            calls.append((layer, inputs))
            return call(inputs, *args, **kwargs)

        return record

    layers = _bn_layers(model)
    for layer in layers:
        layer.call = recording(layer)
    try:
        yield calls
    finally:
        for layer in layers:
            del layer.call  # the class' own is behind it


def has_batch_normalization(model: KerasModel) -> bool:
    """Return if a Keras model has a BN layer."""
    return bool(_bn_layers(model))


def use_batch_statistics(model: KerasModel) -> KerasModel:
    """Copy a model so that, called with training=True, it normalizes by the statistics of the batch.

    The batch is that over all replicas. The copy keeps its tracked statistics; its dropout and noise are off.

    Args:
        model: a Keras model; it is not changed.

    Raises:
        UsageError: for a model that cannot be copied layer by layer, or that has random layers.
    """
    several = backend.tensorflow().distribute.get_strategy().num_replicas_in_sync > 1
    # On one device the sums of a synchronized layer would only lose digits: its variance is E[x^2] - E[x]^2.
    return _copy(model, momentum=1.0, synchronized=several)


def reestimate_statistics(
    model: KerasModel,
    images: DatasetImages,
    batch_size: int,
    *,
    width: Size,
    call: Callable[[KerasModel, Tensor], Tensor],
) -> KerasModel:
    """Copy a model with tracked statistics that are the mean over batches of images.

    Args:
        model: a Keras model; it is not changed.
        images: of the data set, [n, height, width, channels]. Their whole batches are used, in their order.
        batch_size: examples a batch.
        width: height and width of the model's pixels.
        call: (model, pixels) -> outputs, in training mode.

    Raises:
        UsageError: for a model that cannot be copied layer by layer, or that has random layers.
    """
    tf = backend.tensorflow()
    # With momentum 0 the tracked statistics are those of the last batch.
    last, result = _copy(model, momentum=0.0), _copy(model)
    tracked = _tracked(last)
    steps = max(1, len(images) // batch_size)

    def add(x: Tensor, sums: list[Tensor]) -> list[Tensor]:
        call(last, to_pixels(x, width))
        return [total + tf.cast(v, tf.float64) for total, v in zip(sums, tracked, strict=True)]

    compiled = backend.compile(add)
    sums = [np.zeros(v.shape, np.float64) for v in tracked]
    for step in range(steps):
        sums = compiled(images[step * batch_size : (step + 1) * batch_size], sums)
    for variable, total in zip(_tracked(result), sums, strict=True):
        variable.assign(np.asarray(total) / steps)
    return result


def _tracked(model: KerasModel) -> list[Variable]:
    """The variables of the tracked statistics."""
    return [v for layer in _bn_layers(model) for v in (layer.moving_mean, layer.moving_variance)]


def _bn_layers(model: KerasModel) -> list[BatchNormLayer]:
    return [layer for layer in backend.leaf_layers(model) if type(layer).__name__ == "BatchNormalization"]


def _copy(model: KerasModel, **changes: object) -> KerasModel:
    """A copy with the same weights, these changes of its BN layers, and no dropout or noise.

    BN layers are made trainable: others keep to their tracked statistics.
    """
    import keras

    def clone(layer: KerasLayer) -> KerasLayer:
        config, kind = layer.get_config(), type(layer).__name__
        if kind == "BatchNormalization":
            config |= {"trainable": True, **changes}
        if "Dropout" in kind or "Noise" in kind:
            config |= dict.fromkeys({"rate", "stddev"} & config.keys(), 0.0)
        if kind.startswith("Random"):
            raise UsageError(
                f"bn_statistics: {layer.name} is random in training; only `tracked` statistics are possible"
            )
        return type(layer).from_config(config)

    try:
        copy = keras.models.clone_model(model, clone_function=clone, recursive=True)
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"bn_statistics: the model cannot be copied layer by layer ({reason})") from None
    copy.set_weights(model.get_weights())
    for layer in backend.leaf_layers(copy):
        if type(layer).__name__ == "Normalization":
            layer.finalize_state()  # it computes with numbers of its own, not with its weights
    return copy

"""BN evaluated with other statistics than those tracked in training.

`batch`: those of the batch under evaluation itself, as BN trains. `reestimated`: the mean over the batches of one pass
through the training examples, in the batch size of the training (PyTorch's BN with momentum=None, but for unbiased
variances there).

And what BN layers are given: the moments of their inputs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln.data.transforms import to_pixels
from bn_vuln.errors import UsageError
from bn_vuln.runtime import backend


@dataclass(frozen=True)
class InputMoments:
    """What a BN layer was given: the `means` and `variances` of batches, float32 [batches, channels]."""

    layer: Any
    means: NDArray[np.float32]
    variances: NDArray[np.float32]


def input_moments(model: Any, predict: Callable[[Any], Any], pieces: Iterable[NDArray[Any]]) -> list[InputMoments]:
    """The moments of the inputs of each BN layer of `model` in the order that they are reached, when `predict` calls it
    with each of the arrays `pieces` [n, ...]."""
    tf = backend.tensorflow()
    reached: list[Any] = []  # layers, while a graph is made

    def of_inputs(x: Any) -> list[tuple[Any, Any]]:
        with _inputs(model) as seen:
            predict(x)
        reached[:] = [layer for layer, _ in seen]
        return [_moments(tf.cast(h, tf.float32), layer.axis) for layer, h in seen]

    compiled = backend.compile(of_inputs)
    found = [compiled(tf.constant(piece)) for piece in pieces]
    arrays = [[np.stack([np.asarray(v) for v in values]) for values in zip(*batches, strict=True)]
              for batches in zip(*found, strict=True)]  # fmt: skip
    return [InputMoments(layer, *both) for layer, both in zip(reached, arrays, strict=True)]


def _moments(h: Any, axis: int) -> tuple[Any, Any]:
    """Mean and variance [channels] of `h`, in which the channels are `axis`."""
    others = [i for i in range(len(h.shape)) if i != axis % len(h.shape)]
    return backend.tensorflow().nn.moments(h, others)


@contextlib.contextmanager
def _inputs(model: Any) -> Iterator[list[tuple[Any, Any]]]:
    """(BN layer, its inputs) for each call inside, wherever in the model the layer is: layers that are called in models
    within models have no inputs that could be named from outside."""
    seen: list[tuple[Any, Any]] = []

    def listening(layer: Any) -> Callable[..., Any]:
        call = layer.call

        def heard(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append((layer, inputs))
            return call(inputs, *args, **kwargs)

        return heard

    layers = _layers(model)
    for layer in layers:
        layer.call = listening(layer)
    try:
        yield seen
    finally:
        for layer in layers:
            del layer.call  # the class' own is behind it


def has_batch_normalization(model: Any) -> bool:
    """Whether a Keras model has a BN layer."""
    return bool(_layers(model))


def use_batch_statistics(model: Any) -> Any:
    """A copy that keeps its tracked statistics when it is called with training=True, as BN with the statistics of the
    batch (over all replicas) is; its dropout and noise are off. Raises as `reestimated`."""
    several = backend.tensorflow().distribute.get_strategy().num_replicas_in_sync > 1
    # On one device the sums of a synchronized layer would only lose digits: its variance is E[x^2] - E[x]^2.
    return _copy(model, momentum=1.0, synchronized=several)


def reestimate_statistics(
    model: Any, images: NDArray[Any], batch_size: int, *, width: int, call: Callable[[Any, Any], Any]
) -> Any:
    """A copy whose tracked statistics are the mean over the whole batches of `images` [n, h, w, c], in their order.
    `call(model, pixels)` calls it in training mode, with pixels of `width`.

    Raises `UsageError` for a model that cannot be copied layer by layer, or that has random layers.
    """
    tf = backend.tensorflow()
    # With momentum 0 the tracked statistics are those of the last batch.
    last, result = _copy(model, momentum=0.0), _copy(model)
    tracked = _tracked(last)
    steps = max(1, len(images) // batch_size)

    def add(x: Any, sums: list[Any]) -> list[Any]:
        call(last, to_pixels(x, width))
        return [total + tf.cast(v, tf.float64) for total, v in zip(sums, tracked, strict=True)]

    compiled = backend.compile(add)
    sums = [np.zeros(v.shape, np.float64) for v in tracked]
    for step in range(steps):
        sums = compiled(images[step * batch_size : (step + 1) * batch_size], sums)
    for variable, total in zip(_tracked(result), sums, strict=True):
        variable.assign(np.asarray(total) / steps)
    return result


def _tracked(model: Any) -> list[Any]:
    """The variables of the tracked statistics."""
    return [v for layer in _layers(model) for v in (layer.moving_mean, layer.moving_variance)]


def _layers(model: Any) -> list[Any]:
    return [layer for layer in backend.leaf_layers(model) if type(layer).__name__ == "BatchNormalization"]


def _copy(model: Any, **changes: Any) -> Any:
    """A copy of a Keras model with the same weights, these changes of its BN layers, and no dropout or noise. BN layers
    are made trainable: others keep to their tracked statistics."""
    import keras

    def clone(layer: Any) -> Any:
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

"""Layers that are listened to while a model computes, and what is made of many images."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from bn_vuln.models.bn_statistics import functions_inlined, replaced_calls
from bn_vuln.models.normalization_layers import NormalizationLayer
from bn_vuln.runtime import backend, ops
from bn_vuln.runtime.batch_size import map_batches
from bn_vuln.typing import AnyArray, KerasModel, Tensor

Taps: TypeAlias = list[tuple[Tensor, Tensor]]  # (inputs, outputs) of the first call of each layer, in their order


@contextlib.contextmanager
def tapped(
    model: KerasModel, layers: Sequence[NormalizationLayer], added: Sequence[Tensor] | None = None
) -> Iterator[Callable[[], Taps]]:
    """Inside, the first call of each layer is kept, and gets its inputs with what is added to them.

    Args:
        model: the Keras model.
        layers: those that are listened to.
        added: to the inputs of each layer, of their shape.

    Yields:
        A function that returns what was kept, to be called when the model was.
    """
    numbers = {id(layer.layer): i for i, layer in enumerate(layers)}
    kept: dict[int, tuple[Tensor, Tensor]] = {}

    def keeping(layer: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        i = numbers[id(layer)]

        def run(h: Tensor, *args: object, **kwargs: object) -> Any:
            if i in kept:
                return call(h, *args, **kwargs)
            given = h if added is None else h + ops.cast(added[i], h.dtype)
            outputs = call(given, *args, **kwargs)
            kept[i] = given, outputs
            return outputs

        return run

    with functions_inlined(model), replaced_calls([layer.layer for layer in layers], keeping):
        yield lambda: [kept[i] for i in range(len(layers))]


def in_equal_batches(function: Callable[..., Any], *arrays: AnyArray, size: int) -> tuple[AnyArray, ...]:
    """Map batches of one size, so that there is one graph: some examples come twice.

    Args:
        function: arrays [b, ...] -> arrays [b, ...].
        arrays: each [n, ...].
        size: of a batch, at most.
    """
    n = len(arrays[0])
    batches = -(-n // size)
    size = -(-n // batches)
    rows = np.arange(batches * size) % n
    results = map_batches(backend.compile(function), *(array[rows] for array in arrays), batch_size=size)
    return tuple(result[:n] for result in results)


def median(values: AnyArray) -> float | None:
    """Return the median of those that are numbers; None where it is not finite."""
    numbers = values[~np.isnan(values)]
    return finite(np.median(numbers)) if len(numbers) else None


def finite(value: Any) -> float | None:
    """Return a number; None where it is not finite."""
    return float(value) if np.isfinite(value) else None

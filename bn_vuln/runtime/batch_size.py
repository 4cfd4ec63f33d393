"""The number of examples that are computed at a time: as many as memory holds, and fewer where that was too many."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from bn_vuln.errors import BnvulnError
from bn_vuln.runtime import backend
from bn_vuln.runtime.memory import machine_memory
from bn_vuln.typing import AnyArray, KerasModel

Result = TypeVar("Result")
MAX_BATCH_SIZE = 500
MEMORY_SHARE = 1 / 12  # of the machine's memory, for the activations of a batch, each counted once


def estimate_batch_size(model: KerasModel, input_shape: Sequence[int], memory: float = math.inf) -> int:
    """Estimate the batch size at which an input gradient fits into memory.

    On a GPU nothing is estimated: it reports by itself when its memory is exhausted, see `run_in_smaller_batches`.

    Args:
        model: a Keras model.
        input_shape: shape of one example.
        memory: in bytes, for the activations of the batch; a twelfth of the machine's where that is less. TensorFlow
            holds about half of them at a time, compilers and other uses up to three copies.

    Returns:
        A number of examples from 1 to `MAX_BATCH_SIZE`.
    """
    if backend.gpu_names():
        return MAX_BATCH_SIZE
    available = min(memory, MEMORY_SHARE * machine_memory())
    numbers = float(np.prod(input_shape))
    for layer in backend.leaf_layers(model):
        shape = getattr(getattr(layer, "output", None), "shape", None)  # some layers have no output of their own
        if shape is not None:
            numbers += float(np.prod([side or 1 for side in shape[1:]]))
    return int(min(MAX_BATCH_SIZE, max(1, available // (4 * numbers))))


def map_batches(
    function: Callable[..., object],
    *arrays: AnyArray,
    batch_size: int,
    on_batch: Callable[[int], None] | None = None,
) -> tuple[AnyArray, ...]:
    """Call a function on batches of arrays, and join what it returns.

    Args:
        function: arrays [b, ...] -> an array or a tensor [b, ...], or several.
        arrays: each [n, ...].
        batch_size: examples at a time.
        on_batch: called with the number of examples that are done.

    Returns:
        Each of what it returns, [n, ...].
    """
    results, n = [], len(arrays[0])
    for i in range(0, n, batch_size):
        found = function(*(array[i : i + batch_size] for array in arrays))
        results.append(tuple(map(np.asarray, found if isinstance(found, tuple | list) else (found,))))
        if on_batch is not None:
            on_batch(min(n, i + batch_size))
    return tuple(np.concatenate(parts) for parts in zip(*results, strict=True))


def run_in_smaller_batches(
    run: Callable[[int], Result], batch_size: int, on_message: Callable[[str], None], least: int = 1
) -> tuple[Result, int]:
    """Call a function of the batch size, with half of it each time that memory is exhausted.

    Args:
        run: batch size -> result.
        batch_size: the first batch size.
        on_message: called with a line for the user when the batch size is halved.
        least: the batch size that is not halved.

    Returns:
        (the result, the batch size that fitted).

    Raises:
        BnvulnError: where not even the least batch size fits.
    """
    exhausted = backend.memory_error()
    while True:
        try:
            return run(batch_size), batch_size
        except exhausted as error:
            if batch_size <= least:
                count = (
                    "a single example" if batch_size == 1 else f"{batch_size} examples, take fewer with --batch-size"
                )
                raise BnvulnError(f"memory does not hold {count}: {error}") from None
        batch_size //= 2
        on_message(f"memory is exhausted: going on with {batch_size} examples at a time")

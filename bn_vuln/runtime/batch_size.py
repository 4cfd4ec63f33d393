"""How many examples at a time: as many as memory holds, and fewer where that was too many."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from bn_vuln.errors import BnvulnError
from bn_vuln.runtime import backend

Result = TypeVar("Result")
LARGEST = 500
COPIES = 3  # of every activation: forward, backward, and what compilers keep of both
SHARE = 0.25  # of the machine's memory


def estimate_batch_size(model: Any, input_shape: Sequence[int], memory: float | None = None) -> int:
    """The batch size, at most `LARGEST`, at which a gradient of this Keras model with respect to its inputs, of one
    example's shape, takes a quarter of `memory` in bytes at most (default: the machine's). An estimate; and none on
    a GPU, which says by itself when its memory is exhausted: see `halving`."""
    if memory is None and backend.tensorflow().config.list_physical_devices("GPU"):
        return LARGEST
    available = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) if memory is None else memory
    numbers = np.prod(input_shape) + sum(map(_outputs, backend.leaf_layers(model)))
    return int(min(LARGEST, max(1, SHARE * available // (4 * COPIES * numbers))))


def _outputs(layer: Any) -> float:
    """Numbers in a layer's output for one example; 0 where it has none of its own."""
    shape = getattr(getattr(layer, "output", None), "shape", None)
    return 0.0 if shape is None else float(np.prod([side or 1 for side in shape[1:]]))


def run_in_smaller_batches(
    run: Callable[[int], Result], batch_size: int, told: Callable[[str], None]
) -> tuple[Result, int]:
    """(`run(batch_size)`, the batch size that fitted): half as many examples each time that memory is exhausted, which
    `told` is told. Raises `BnvulnError` where not even one example fits."""
    exhausted = backend.tensorflow().errors.ResourceExhaustedError
    while True:
        try:
            return run(batch_size), batch_size
        except exhausted as error:
            if batch_size == 1:
                raise BnvulnError(f"memory does not hold a single example: {error}") from None
        batch_size //= 2
        told(f"memory is exhausted: going on with {batch_size} examples at a time")

"""Random numbers of examples: functions of a seed and of the example's own numbers, and of nothing else.

Stateless generators take one key for a whole tensor, so the numbers of an example would depend on its place in the
batch. Here each example has a key of its own, hashed by the finalizer of MurmurHash3 (Appleby 2011), and
its random numbers are hashed counters. All ops are elementwise: fast on every device, and compiled by XLA as they are.

Published starting points follow from these bits; they must not change.
"""

from __future__ import annotations

import math

import numpy as np

from bn_vuln.runtime import backend, ops
from bn_vuln.typing import Tensor

GOLDEN = 0x9E3779B9  # 2^32 / golden ratio


def uniform(count: int, seed: int, *keys: Tensor) -> Tensor:
    """Draw independent uniform numbers in (0, 1).

    Args:
        count: numbers for each example.
        seed: the seed of the attack.
        keys: at least one int32 [n], such as the restart and the index of each example.

    Returns:
        float32 [n, count].
    """
    first, second = _key(seed, keys), _key(seed + 1, keys)
    counter = _uint32(GOLDEN) * ops.cast(ops.arange(count, dtype="int32"), "uint32")
    bits = _hash(_hash(counter[None, :] ^ first[:, None]) + second[:, None])
    top = ops.cast(ops.right_shift(bits, _uint32(9)), "float32")  # 23 bits and a half are exact in float32
    return (top + 0.5) * 2.0**-23


def normal(count: int, seed: int, *keys: Tensor) -> Tensor:
    """Draw independent standard normal numbers (Box and Muller 1958).

    Args:
        count: numbers for each example.
        seed: the seed of the attack.
        keys: as in `uniform`.

    Returns:
        float32 [n, count].
    """
    pairs = (count + 1) // 2
    numbers = uniform(2 * pairs, seed, *keys)
    radius, angle = ops.sqrt(-2.0 * ops.log(numbers[:, :pairs])), 2.0 * math.pi * numbers[:, pairs:]
    return ops.concatenate([radius * ops.cos(angle), radius * ops.sin(angle)], axis=1)[:, :count]


def _key(seed: int, keys: tuple[Tensor, ...]) -> Tensor:
    """One uint32 [n] for the seed and all keys."""
    state = _hash(_uint32((seed * GOLDEN + 1) % 2**32))
    for key in keys:
        state = _hash(state ^ (_uint32(GOLDEN) * (ops.cast(key, "uint32") + _uint32(1))))
    return state


def _hash(bits: Tensor) -> Tensor:
    """MurmurHash3's finalizer: a bijection of 32-bit words in which each bit depends on all."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ ops.right_shift(bits, _uint32(shift))) * _uint32(factor)
    return bits ^ ops.right_shift(bits, _uint32(16))


def _uint32(value: int) -> Tensor:
    return backend.place(np.uint32(value))

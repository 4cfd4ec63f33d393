"""Random numbers of examples: functions of a seed and of the example's own numbers, and of nothing else.

TensorFlow's stateless generators take one key for a whole tensor, so what an example gets would depend on its place in
the batch. Here each example has a key of its own, hashed by the finalizer of MurmurHash3 (Appleby 2011), and its
draws are hashed counters. Only elementwise ops: fast on every device, and compiled by XLA as they are.
"""

from __future__ import annotations

import math
from typing import Any

from bn_vuln.runtime import backend

GOLDEN = 0x9E3779B9  # 2^32 / golden ratio


def uniform(count: int, seed: int, *numbers: Any) -> Any:
    """float32 [n, count], independent and uniform in (0, 1); `numbers` are int32 [n] tensors, at least one."""
    tf = backend.tensorflow()
    first, second = _key(seed, numbers), _key(seed + 1, numbers)
    counter = _word(GOLDEN) * tf.cast(tf.range(count), tf.uint32)
    bits = _mixed(_mixed(counter[None, :] ^ first[:, None]) + second[:, None])
    top = tf.cast(tf.bitwise.right_shift(bits, _word(9)), tf.float32)  # 23 bits and a half are exact in float32
    return (top + 0.5) * 2.0**-23


def normal(count: int, seed: int, *numbers: Any) -> Any:
    """float32 [n, count], independent and standard normal (Box and Muller 1958)."""
    tf = backend.tensorflow()
    pairs = (count + 1) // 2
    drawn = uniform(2 * pairs, seed, *numbers)
    radius, angle = tf.sqrt(-2.0 * tf.math.log(drawn[:, :pairs])), 2.0 * math.pi * drawn[:, pairs:]
    return tf.concat([radius * tf.cos(angle), radius * tf.sin(angle)], axis=1)[:, :count]


def _key(seed: int, numbers: tuple[Any, ...]) -> Any:
    """uint32 [n]."""
    tf = backend.tensorflow()
    key = _mixed(_word((seed * GOLDEN + 1) % 2**32))
    for number in numbers:
        key = _mixed(key ^ (_word(GOLDEN) * (tf.cast(number, tf.uint32) + _word(1))))
    return key


def _mixed(bits: Any) -> Any:
    """A bijection of 32-bit words, each bit of which depends on all."""
    tf = backend.tensorflow()
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ tf.bitwise.right_shift(bits, _word(shift))) * _word(factor)
    return bits ^ tf.bitwise.right_shift(bits, _word(16))


def _word(value: int) -> Any:
    tf = backend.tensorflow()
    return tf.constant(value, tf.uint32)

"""Which devices compute: one, or copies of the model on several (tf.distribute.MirroredStrategy).

A batch is always the global one, cut into equal shares; gradients and synchronized batch statistics are summed over
the replicas, so what is computed does not depend on how many there are.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bn_vuln.errors import UsageError
from bn_vuln.runtime import backend

Strategy = Literal["auto", "none", "mirrored"]


@dataclass(frozen=True)
class Distribution:
    """`strategy` is a tf.distribute.Strategy, or None for one device."""

    strategy: Any = None

    @property
    def replicas(self) -> int:
        """The number of copies of the model."""
        return 1 if self.strategy is None else int(self.strategy.num_replicas_in_sync)

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Models and optimizers made inside have their variables on every replica."""
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    def replicate(self, array: NDArray[Any]) -> Any:
        """A constant array, [...], that each replica reads from its own device."""
        tf = backend.tensorflow()
        if self.strategy is None:
            return tf.constant(array)
        with self.scope():
            return tf.Variable(array, trainable=False)

    def compile_sharded(self, function: Callable[..., Any], signature: Any = None) -> Callable[..., NDArray[Any]]:
        """`function` of tensors [n, ...] -> tensor [n, ...], compiled, as a function of arrays; each replica computes
        an equal share of the examples. `signature` as in `backend.compile`."""
        if self.strategy is None:
            compiled = backend.compile(function, signature=signature)
            return lambda *arrays: np.asarray(compiled(*arrays))
        compiled = backend.compile(lambda *args: self.strategy.run(function, args=args))
        return lambda *arrays: self._run_shares(compiled, arrays)

    def compile(self, function: Callable[..., Any], *, xla: bool = False) -> Callable[..., Any]:
        """`function` of tensors [n, ...] (and structures of them), compiled, as a function of placed values: what it
        returns stays on the devices. `xla` on one device only."""
        if self.strategy is None:
            return backend.compile(function, xla=xla)
        return backend.compile(lambda *args: self.strategy.run(function, args=args))

    def shard(self, array: NDArray[Any]) -> Any:
        """An array on the devices: an equal share of its first axis on each replica, which must divide it."""
        return backend.tensorflow().constant(array) if self.strategy is None else self._shares(np.asarray(array))

    def gather(self, values: Any) -> NDArray[Any]:
        """The array of placed values, shares in the order of the replicas."""
        if self.strategy is None:
            return np.asarray(values)
        return np.concatenate([np.asarray(v) for v in self.strategy.experimental_local_results(values)])

    def _run_shares(self, compiled: Callable[..., Any], arrays: tuple[NDArray[Any], ...]) -> NDArray[Any]:
        n = len(arrays[0])
        return self.gather(compiled(*(self._shares(np.asarray(array)) for array in arrays)))[:n]

    def _shares(self, array: NDArray[Any]) -> Any:
        """Equal shares of the examples, one on each replica; the last example fills the last share up."""
        tf = backend.tensorflow()
        missing = -len(array) % self.replicas
        pieces = np.split(np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]), self.replicas)
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(pieces[context.replica_id_in_sync_group])
        )


ONE_DEVICE = Distribution()


def choose(name: Strategy = "auto") -> Distribution:
    """The distribution of a name: `none` is one device, `mirrored` every GPU (or, without one, every logical CPU),
    `auto` is mirrored where there are several GPUs. Raises `UsageError` for another name."""
    if name not in ("auto", "none", "mirrored"):
        raise UsageError(f"strategy: expected auto, none or mirrored, received {name!r}")
    if name == "none":
        return ONE_DEVICE
    tf = backend.tensorflow()
    gpus = tf.config.list_logical_devices("GPU")
    if name == "auto" and len(gpus) < 2:
        return ONE_DEVICE
    return _mirrored()


@functools.cache
def _mirrored() -> Distribution:
    """One strategy for the whole process: the collective ops of a second one would take the first one's keys."""
    tf = backend.tensorflow()
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return Distribution(tf.distribute.MirroredStrategy([device.name for device in devices]))

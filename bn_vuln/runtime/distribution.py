"""Devices: one, or copies of the model on several (tf.distribute.MirroredStrategy).

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

from bn_vuln.errors import UsageError
from bn_vuln.runtime import backend
from bn_vuln.runtime.backend import Signature
from bn_vuln.typing import AnyArray, Tensor

Strategy = Literal["auto", "none", "mirrored"]


@dataclass(frozen=True)
class Distribution:
    """The devices that compute.

    Attributes:
        strategy: a tf.distribute.Strategy, or None for one device.
    """

    strategy: Any = None

    @property
    def replicas(self) -> int:
        """Number of copies of the model."""
        return 1 if self.strategy is None else int(self.strategy.num_replicas_in_sync)

    def scope(self) -> contextlib.AbstractContextManager[object]:
        """Return the context in which models and optimizers get their variables on every replica."""
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    def replicate(self, array: AnyArray) -> Tensor:
        """Put a constant array [...] on every device, from which its replica reads it."""
        if self.strategy is None:
            return backend.place(array)
        with self.scope():
            return backend.tensorflow().Variable(array, trainable=False)

    def compile_sharded(
        self, function: Callable[..., object], signature: Signature | None = None
    ) -> Callable[..., AnyArray]:
        """Compile a function of tensors as one of arrays, of which each replica computes an equal share.

        Args:
            function: tensors [n, ...] -> tensor [n, ...].
            signature: as in `backend.compile`.

        Returns:
            arrays [n, ...] -> array [n, ...].
        """
        if self.strategy is None:
            compiled = backend.compile(function, signature=signature)
            return lambda *arrays: np.asarray(compiled(*arrays))
        compiled = backend.compile(lambda *args: self.strategy.run(function, args=args))

        def run(*arrays: AnyArray) -> AnyArray:
            shares = (self._shares(np.asarray(array)) for array in arrays)
            return self.gather(compiled(*shares))[: len(arrays[0])]

        return run

    def compile(self, function: Callable[..., Any], *, xla: bool = False) -> Callable[..., Any]:
        """Compile a function of sharded values, whose results stay on the devices.

        Args:
            function: of tensors [n, ...], and structures of them.
            xla: compile with XLA, on one device only.

        Returns:
            The same function of values from `shard`.
        """
        if self.strategy is None:
            return backend.compile(function, xla=xla)
        return backend.compile(lambda *args: self.strategy.run(function, args=args))

    def shard(self, array: AnyArray) -> Tensor:
        """Put an array on the devices, an equal share of its first axis on each; replicas must divide its length."""
        return backend.place(array) if self.strategy is None else self._shares(np.asarray(array))

    def gather(self, values: Tensor) -> AnyArray:
        """Return the array of sharded values, shares in the order of the replicas."""
        if self.strategy is None:
            return np.asarray(values)
        return np.concatenate([np.asarray(v) for v in self.strategy.experimental_local_results(values)])

    def _shares(self, array: AnyArray) -> Tensor:
        """Equal shares of the examples, one on each replica; copies of the last example fill the last share."""
        tf = backend.tensorflow()
        missing = -len(array) % self.replicas
        pieces = np.split(np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]), self.replicas)
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(pieces[context.replica_id_in_sync_group])
        )


ONE_DEVICE = Distribution()


def choose(name: Strategy = "auto") -> Distribution:
    """Return the distribution of a name.

    Args:
        name: `none` is one device, `mirrored` every GPU (or, without one, every logical CPU), `auto` is mirrored where
            there are several GPUs.

    Raises:
        UsageError: for another name; on JAX, for `mirrored`.
    """
    if name not in ("auto", "none", "mirrored"):
        raise UsageError(f"strategy: expected auto, none or mirrored, received {name!r}")
    if name == "none" or (name == "auto" and backend.name() == "jax"):
        return ONE_DEVICE
    tf = backend.tensorflow()
    gpus = tf.config.list_logical_devices("GPU")
    if name == "auto" and len(gpus) < 2:
        return ONE_DEVICE
    return _mirrored()


def replicas_in_scope() -> int:
    """Return the number of copies of the model in the scope of the distribution that is open; 1 outside of any."""
    if backend.name() == "jax":
        return 1
    return int(backend.tensorflow().distribute.get_strategy().num_replicas_in_sync)


@functools.cache
def _mirrored() -> Distribution:
    """One strategy for the whole process: the collective ops of a second one would take the first one's keys."""
    tf = backend.tensorflow()
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return Distribution(tf.distribute.MirroredStrategy([device.name for device in devices]))

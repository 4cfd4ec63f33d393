"""Devices: one, or copies of the model on several (tf.distribute), of one host or of several.

A batch is always the global one, cut into equal shares; gradients and synchronized batch statistics are summed over
the replicas, so what is computed does not depend on how many there are.

Several hosts run the same program in lockstep: each computes its shares and gets the results of all, and takes the same
decisions. What they could decide differently, for their files, clocks and memories, the chief decides (`from_chief`).
Only the chief writes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeVar, cast, get_args

import numpy as np

from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.runtime import backend, hosts
from bn_vuln.runtime.backend import Signature
from bn_vuln.runtime.progress import Progress, Quiet
from bn_vuln.typing import AnyArray, Tensor

Strategy = Literal["auto", "none", "mirrored", "multiworker"]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
DIGEST_BYTES = 16


@dataclass(frozen=True)
class Distribution:
    """The devices that compute.

    Attributes:
        strategy: a tf.distribute.Strategy, or None for one device.
        cluster: the hosts, where there are several.
    """

    strategy: Any = None
    cluster: hosts.Cluster | None = None

    @property
    def replicas(self) -> int:
        """Number of copies of the model, on all hosts."""
        return 1 if self.strategy is None else int(self.strategy.num_replicas_in_sync)

    @property
    def hosts(self) -> int:
        """Number of hosts."""
        return 1 if self.cluster is None else len(self.cluster.addresses)

    @property
    def is_chief(self) -> bool:
        """True on the host that decides and writes, which the only one is, too."""
        return self.cluster is None or self.cluster.own == self.cluster.chief

    def shown(self, progress: Progress | None) -> Progress:
        """Return the progress that is shown: the chief's."""
        return progress if progress is not None and self.is_chief else Quiet()

    def scope(self) -> contextlib.AbstractContextManager[object]:
        """Return the context in which models and optimizers get their variables on every replica."""
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    def replicate(self, array: AnyArray) -> Tensor:
        """Put a constant array [...] on every device; with a strategy it is an argument of what `run` runs."""
        if self.strategy is None:
            return backend.place(array)
        tf, devices = backend.tensorflow(), self.strategy.extended.worker_devices

        def copy(replica: int) -> Tensor:
            with tf.device(devices[replica]):
                return tf.identity(array)

        return self._values(copy)

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
        """Return the array of sharded values, shares in the order of the replicas, on every host."""
        if self.strategy is None:
            return np.asarray(values)
        shares = [np.asarray(v) for v in self.strategy.experimental_local_results(values)]
        if self.cluster is None:
            return np.concatenate(shares)
        rows = self._exchange([share.tobytes() for share in shares])
        return np.concatenate([np.frombuffer(row, shares[0].dtype).reshape(shares[0].shape) for row in rows])

    def from_chief(self, decide: Callable[[], Result]) -> Result:
        """Return on every host what a function returns on the chief, which alone calls it.

        Args:
            decide: returns what JSON holds.
        """
        if self.cluster is None:
            return decide()
        content = self.broadcast(json.dumps(decide()).encode() if self.is_chief else None)
        return cast("Result", json.loads(content or b"null"))

    def broadcast(self, content: bytes | None) -> bytes | None:
        """Return on every host the bytes that the chief has; None where it has none."""
        if self.cluster is None:
            return content
        length = int(self._from_first(np.array([-1 if content is None else len(content)]))[0])
        if length < 0:
            return None
        return self._from_first(_as_numbers((content or b"")[:length], length)).tobytes()[:length]

    def agree(self, **facts: object) -> None:
        """Check that the hosts are to do the same.

        Args:
            facts: what is equal on all hosts, by name: an array, a list of arrays, or what `repr` tells apart.

        Raises:
            UsageError: Something differs; the message names it, and the hosts.
        """
        if self.cluster is None:
            return
        own = b"".join(map(_digest, facts.values()))
        rows = self._exchange([own] * self._local)[:: self._local]
        for label, row in zip(map(self.cluster.label, self.cluster.addresses), rows, strict=True):
            pairs = zip(facts, range(0, len(own), DIGEST_BYTES), strict=True)
            other = [name for name, i in pairs if row[i : i + DIGEST_BYTES] != rows[0][i : i + DIGEST_BYTES]]
            if other:
                raise UsageError(
                    f"{label} has another {' and another '.join(name.replace('_', ' ') for name in other)} than the "
                    "chief: all hosts need the same command and the same files"
                )

    @property
    def _local(self) -> int:
        """Number of copies of the model on this host."""
        return len(self.strategy.extended.worker_devices)

    def _shares(self, array: AnyArray) -> Tensor:
        """Equal shares of the examples, one on each replica; copies of the last example fill the last share."""
        missing = -len(array) % self.replicas
        pieces = np.split(np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]), self.replicas)
        first = self._first
        return self._values(lambda replica: backend.place(pieces[first + replica]))

    @property
    def _first(self) -> int:
        """The number of this host's first replica among all."""
        return 0 if self.cluster is None else self._local * [*self.cluster.addresses].index(self.cluster.own)

    def _values(self, value: Callable[[int], Tensor]) -> Tensor:
        """A value on each replica of this host, which are counted from 0."""
        first = self._first
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: value(int(context.replica_id_in_sync_group) - first)
        )

    def _exchange(self, contents: Sequence[bytes]) -> list[bytes]:
        """The bytes of all replicas, in their order, of those of this host's; all are equally long."""
        first = self._first
        rows = [np.append(np.int32(first + i), _as_numbers(own, len(own)))[None] for i, own in enumerate(contents)]
        gathered = np.asarray(self.strategy.gather(self._values(lambda i: backend.place(rows[i])), axis=0))
        in_order = gathered[np.argsort(gathered[:, 0])]  # TensorFlow promises none
        return [row[1:].tobytes()[: len(contents[0])] for row in in_order]

    def _from_first(self, numbers: AnyArray) -> AnyArray:
        """The integers of the first replica of all, on every host, by a sum with zeros of the others."""
        own = [numbers if self.is_chief and replica == 0 else np.zeros_like(numbers) for replica in range(self._local)]
        values = self._values(lambda replica: backend.place(own[replica]))
        return np.asarray(self.strategy.reduce(backend.tensorflow().distribute.ReduceOp.SUM, values, axis=None))


def _digest(fact: object) -> bytes:
    total = hashlib.sha256()
    for part in fact if isinstance(fact, list) else [fact]:
        if isinstance(fact, list | np.ndarray):
            total.update(np.ascontiguousarray(part).data)
        else:
            total.update(repr(part).encode())
    return total.digest()[:DIGEST_BYTES]


def _as_numbers(content: bytes, length: int) -> AnyArray:
    """Bytes as the integers that collective operations take, as many as `length` bytes fill."""
    return np.frombuffer(content.ljust(length + -length % 4, b"\0"), np.int32)


ONE_DEVICE = Distribution()


def choose(name: Strategy = "auto", progress: Progress | None = None) -> Distribution:
    """Return the distribution of a name.

    Args:
        name: `none` is one device, `mirrored` every GPU (or, without one, every logical CPU), `auto` is mirrored where
            there are several GPUs, `multiworker` every GPU (or the CPU) of each host in TF_CONFIG.
        progress: where it is said which hosts are waited for.

    Raises:
        UsageError: for another name; on JAX, for `mirrored` and `multiworker`; see `hosts`.
        BnvulnError: where a host does not appear.
    """
    names = get_args(Strategy)
    if name not in names:
        raise UsageError(f"strategy: expected {', '.join(names[:-1])} or {names[-1]}, received {name!r}")
    if name == "multiworker":
        return _several_hosts(progress or Quiet())
    if name == "none" or (name == "auto" and backend.name() == "jax"):
        return ONE_DEVICE
    tf = backend.tensorflow()
    gpus = tf.config.list_logical_devices("GPU")
    if name == "auto" and len(gpus) < 2:
        return ONE_DEVICE
    return _mirrored()


def join(name: Strategy, progress: Progress | None = None) -> Distribution:
    """Return the distribution of `multiworker`, whose hosts meet before all other work, and one device for others."""
    return choose(name, progress) if name == "multiworker" else ONE_DEVICE


def refuse_hosts(name: Strategy, command: str) -> None:
    """Raise `UsageError` for `multiworker` in a command that divides cells, or computes on one host."""
    if name == "multiworker":
        raise UsageError(
            f"{command}: --strategy multiworker is for train, attack and evaluate, one model at a time; "
            "use --strategy mirrored or none, and on several hosts `bnvuln reproduce` with --shard or --engine ray"
        )


def in_lockstep(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let an error that ends a function on one host end it on the others, too, which say why.

    Raises:
        BnvulnError: Another host is gone.
    """

    @functools.wraps(function)
    def run(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
        try:
            return function(*args, **options)
        except BaseException as error:
            joined = _joined[0] if _joined else ONE_DEVICE
            if joined.cluster is None or isinstance(error, LostHostError):
                raise
            if found := _lost(error, joined.cluster):
                raise found from None
            with contextlib.suppress(Exception):
                backend.report_to_hosts(f"{_REPORTED}{(str(error) or type(error).__name__).splitlines()[0]}")
            raise

    return run


class LostHostError(BnvulnError):
    """Another host is gone, or has ended with an error."""


_ABORTED, _REPORTED = "Collective ops is aborted by:", "bnvuln: "  # in messages of TensorFlow


def _lost(error: BaseException | None, cluster: hosts.Cluster) -> LostHostError | None:
    """The error where TensorFlow said that the hosts no longer compute together, whatever was made of it since."""
    while error is not None and not (isinstance(error, backend.tensorflow().errors.OpError) and _ABORTED in str(error)):
        error = error.__context__
    if error is None:
        return None
    reason = str(error).partition(_ABORTED)[2]
    name = cluster.named_in(reason)
    label = "another host" if name is None else cluster.label(name)
    if _REPORTED in reason:
        return LostHostError(f"{label} has ended: {reason.partition(_REPORTED)[2].splitlines()[0]}")
    return LostHostError(
        f"{label} is gone, so all end; the same command on all hosts goes on (a training after its last checkpoint)"
    )


def is_chief() -> bool:
    """Return False on a host of several that writes no files."""
    return not _joined or _joined[0].is_chief


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


_joined: list[Distribution] = []  # the hosts that this process has met, once


def _several_hosts(progress: Progress) -> Distribution:
    if not _joined:
        if backend.name() == "jax":
            raise UsageError("strategy: multiworker needs TensorFlow; leave KERAS_BACKEND=jax out")
        cluster = hosts.read_cluster()
        meet = functools.partial(hosts.meet, cluster, backend.versions(), progress.message)
        _joined.append(Distribution(backend.start_multiworker(meet), cluster))
    return _joined[0]

"""The active set: examples take turns in the slots of a batch, each with its own step counter.

An example leaves its slot when its attack has succeeded, and that is confirmed, or when its job is over. A waiting one
takes the slot. So the batch stays full, and the cost is the sum of the steps that are really needed. State stays on the
devices between steps; the host reads one boolean a slot.

Results do not depend on who shares the batch, but for rounding: random numbers depend on the example's own index, and
nothing else mixes slots. (A success that is not confirmed, which is rounding too, is continued from the point that its
slot has reached by the time that the host looks.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from bn_vuln.attacks.base import IterativeAttack, State
from bn_vuln.attacks.eps_search import EpsSearch
from bn_vuln.runtime import backend
from bn_vuln.runtime.distribution import ONE_DEVICE, Distribution
from bn_vuln.typing import AnyArray, Arrays, Floats, Index, Labels, Mask, Tensor

BATCH_SIZE = 500
MIN_SLOTS = 16  # of a replica; a smaller batch would save nothing
IDLE_SHARE = 1 / 16  # of the slots may stand idle before it is worth reading them out

# (points [m, ...], examples int64 [m], eps float64 [m]) -> bool [m]: success of these points, inside these eps balls,
# on the classifier that is evaluated
Confirm: TypeAlias = Callable[[AnyArray, Index, Floats], Mask]


@dataclass(frozen=True)
class SearchResult:
    """The result for each of n examples.

    Attributes:
        points: [n, ...], in pixels: the adversarial point at the smallest eps, or else the point of the highest loss.
        is_adversarial: bool [n].
        eps: float64 [n], the smallest eps with a success; infinite where there is none.
        loss: float64 [n], loss at `points`.
        n_evaluations: int64 [n], number of points at which the classifier was evaluated.
    """

    points: AnyArray
    is_adversarial: Mask
    eps: Floats
    loss: Floats
    n_evaluations: Index


class CompiledAttack:
    """An attack compiled once, for runs on any examples and with any eps.

    Args:
        attack: an iterative attack, see `attacks.base`.
        xla: compile the steps with XLA (on one device).
        steps_per_call: steps between host checks for finished examples; more save calls, fewer save steps. None: with
            XLA, whose steps are short, two to eight, the more the longer a job may be; else one.
        distribution: the devices.
    """

    def __init__(
        self,
        attack: IterativeAttack,
        *,
        xla: bool = False,
        steps_per_call: int | None = None,
        distribution: Distribution = ONE_DEVICE,
    ) -> None:
        self.attack, self.xla, self.distribution = attack, xla, distribution
        if steps_per_call is None:
            steps_per_call = max(2, min(8, attack.steps // 20)) if xla else 1

        def select(state: State, slots: Tensor) -> State:
            return {name: backend.tensorflow().gather(value, slots) for name, value in state.items()}

        self.advance = distribution.compile(_advance(attack, steps_per_call), xla=xla)
        self.refill = distribution.compile(_refill(attack), xla=xla)
        self.start, self.select = distribution.compile(_start(attack)), distribution.compile(select)


def run(
    attack: IterativeAttack | CompiledAttack,
    x: AnyArray,
    y: Labels,
    search: EpsSearch,
    *,
    targets: Labels | None = None,
    index: Labels | None = None,
    confirm: Confirm | None = None,
    batch_size: int = BATCH_SIZE,
    xla: bool = False,
    steps_per_call: int | None = None,
    distribution: Distribution = ONE_DEVICE,
    on_progress: Callable[[int], None] | None = None,
) -> SearchResult:
    """Run an attack on every example, at each eps that a search asks for.

    Args:
        attack: the attack. Where it is compiled already, `xla`, `steps_per_call` and `distribution` are its own.
        x: clean images, float [n, height, width, channels], in pixels, inside the box.
        y: int32 [n], true labels.
        search: the jobs of an example, see `attacks.eps_search`.
        targets: int32 [n, attempts], the class that each attempt aims at.
        index: int32 [n], the number of each example in its data set (default: its place in x).
        confirm: the test of success on the classifier that is evaluated, where the attack has a copy of it. The attack
            on an example goes on after a point that is not confirmed.
        batch_size: slots, over all replicas.
        xla: see `CompiledAttack`.
        steps_per_call: see `CompiledAttack`.
        distribution: see `CompiledAttack`.
        on_progress: called now and then with the number of examples, of those that had a job, that are done.

    Returns:
        The best point of each example.
    """
    if not isinstance(attack, CompiledAttack):
        attack = CompiledAttack(attack, xla=xla, steps_per_call=steps_per_call, distribution=distribution)
    queue = _Queue(x, np.asarray(y, np.int32), targets, index, search, confirm)
    if not queue.waiting:
        return queue.result
    slots = _Slots(attack, queue, batch_size)
    while slots.busy:
        slots.advance()
        if slots.worth_reading():
            slots.read_out()
            slots.fill()
            slots.shrink()
            if on_progress is not None:
                on_progress(queue.n_done)
    return queue.result


class _Queue:
    """The examples on the host: those that wait, the job of each one, and the results."""

    def __init__(
        self,
        x: AnyArray,
        y: Labels,
        targets: Labels | None,
        index: Labels | None,
        search: EpsSearch,
        confirm: Confirm | None,
    ) -> None:
        n = len(x)
        self.x, self.y, self.search, self.confirm = x, y, search, confirm
        self.targets = y[:, None] if targets is None else np.asarray(targets, np.int32)
        self.index = np.arange(n, dtype=np.int32) if index is None else np.asarray(index, np.int32)
        self.result = SearchResult(
            x.copy(), np.zeros(n, bool), np.full(n, np.inf), np.full(n, -np.inf), np.zeros(n, np.int64)
        )
        first = search.first(n)
        self.attempt, self.eps = first.attempt.copy(), first.eps.copy()
        self.waiting: deque[int] = deque(np.flatnonzero(first.pending).tolist())
        self.n_done = 0

    def jobs(self, example_of: Index) -> Arrays:
        """The jobs of the examples in the slots; empty slots (-1) get a copy of example 0's."""
        examples = np.maximum(example_of, 0)
        attempt = self.attempt[examples]
        return {
            "x": self.x[examples],
            "y": self.y[examples],
            "target": self.targets[examples, np.minimum(attempt, self.targets.shape[1] - 1)],
            "index": self.index[examples],
            "attempt": attempt,
            "eps": self.eps[examples].astype(self.x.dtype),
        }

    def confirmed(self, points: AnyArray, examples: Index, is_adversarial: Mask) -> Mask:
        """`is_adversarial`, less the points that fail on the classifier that is evaluated."""
        if self.confirm is None or not is_adversarial.any():
            return is_adversarial
        confirmed = is_adversarial.copy()
        which = examples[is_adversarial]
        confirmed[is_adversarial] = self.confirm(points[is_adversarial], which, self.eps[which])
        return confirmed

    def record(self, examples: Index, finished: Arrays, is_adversarial: Mask) -> None:
        """Keep the results of finished jobs, and queue the examples that have another one."""
        result, eps = self.result, self.eps[examples]
        smaller_eps = is_adversarial & (eps < result.eps[examples])
        higher_loss = ~is_adversarial & ~result.is_adversarial[examples] & (finished["loss"] > result.loss[examples])
        for better in (smaller_eps, higher_loss):
            result.points[examples[better]] = finished["kept"][better]
            result.loss[examples[better]] = finished["loss"][better]
        result.eps[examples[smaller_eps]] = eps[smaller_eps]
        result.is_adversarial[examples[is_adversarial]] = True
        result.n_evaluations[examples] += finished["i"]
        jobs = self.search.next(examples, is_adversarial, self.attempt[examples], eps)
        self.attempt[examples], self.eps[examples] = jobs.attempt, jobs.eps
        self.waiting.extend(examples[jobs.pending].tolist())
        self.n_done += int(np.sum(~jobs.pending))


class _Slots:
    """The slots on the devices; `example_of` int64 [slots] on the host, -1 for an empty slot.

    With replicas each has an equal share of the slots, in order.
    """

    def __init__(self, compiled: CompiledAttack, queue: _Queue, batch_size: int) -> None:
        self.compiled, self.queue, self.distribution = compiled, queue, compiled.distribution
        self._factor = 4 if compiled.xla else 2  # XLA compiles every size of batch anew
        replicas = self.distribution.replicas
        share = -(-max(1, min(batch_size, len(queue.waiting))) // replicas)
        self.example_of = np.full(share * replicas, -1, np.int64)
        self._assign()
        self._jobs = self._sharded_jobs()
        self._state: State = compiled.start(self._jobs)
        self._done: Mask = self.example_of < 0
        self._resume: Mask = np.zeros(len(self.example_of), bool)  # done, but not confirmed: to go on

    @property
    def busy(self) -> bool:
        """Return True if a slot is occupied."""
        return bool((self.example_of >= 0).any())

    def advance(self) -> None:
        """One step of every slot that holds an example."""
        held = self.example_of >= 0
        shard = self.distribution.shard
        self._state = self.compiled.advance(self._state, self._jobs, shard(held), shard(self._resume))
        self._resume = np.zeros(len(held), bool)
        self._done = self.distribution.gather(self._state["done"]) | ~held

    def worth_reading(self) -> bool:
        """Return True if enough slots are idle to justify a read-out.

        While examples wait, a small share of the slots is enough; without any, most of them must be idle.
        """
        size, idle = len(self.example_of), int(self._done.sum())
        if idle == size:
            return True
        if self.queue.waiting:
            return idle >= max(1, IDLE_SHARE * size)
        smaller = size // self._factor
        return size - idle <= smaller and smaller >= MIN_SLOTS * self.distribution.replicas

    def read_out(self) -> None:
        """Read the points of slots that are done, and free the slots of those whose job is over."""
        slots = np.flatnonzero(self._done & (self.example_of >= 0))
        names = ("kept", "loss", "is_adversarial", "i")
        finished = {name: self.distribution.gather(self._state[name])[slots] for name in names}
        examples = self.example_of[slots]
        is_adversarial = self.queue.confirmed(finished["kept"], examples, finished["is_adversarial"])
        resumed = finished["is_adversarial"] & ~is_adversarial & (finished["i"] <= self.compiled.attack.steps)
        self._resume[slots[resumed]], self._done[slots[resumed]] = True, False
        over = ~resumed
        self.queue.record(examples[over], {name: value[over] for name, value in finished.items()}, is_adversarial[over])
        self.example_of[slots[over]] = -1

    def fill(self) -> None:
        """Give free slots to examples that wait."""
        new = self._assign()
        if not new.any():
            return
        self._done[new] = False
        self._jobs = self._sharded_jobs()
        self._state = self.compiled.refill(self._state, self._jobs, self.distribution.shard(new))

    def shrink(self) -> None:
        """Go on in half as many slots (or a quarter, ...) where no example waits and no more are needed."""
        replicas = self.distribution.replicas
        held = (self.example_of >= 0).reshape(replicas, -1)
        size = new = held.shape[1]
        while new // self._factor >= MIN_SLOTS and held.sum(axis=1).max() <= new // self._factor:
            new //= self._factor
        if self.queue.waiting or new == size or not held.any():
            return
        kept = np.argsort(~held, axis=1, kind="stable")[:, :new].astype(np.int32)
        which = self.distribution.shard(kept.ravel())
        self._state, self._jobs = self.compiled.select(self._state, which), self.compiled.select(self._jobs, which)
        chosen = (kept + size * np.arange(replicas)[:, None]).ravel()
        self.example_of, self._done, self._resume = self.example_of[chosen], self._done[chosen], self._resume[chosen]

    def _assign(self) -> Mask:
        """Put waiting examples into free slots; return which slots those are."""
        free, waiting = np.flatnonzero(self.example_of < 0), self.queue.waiting
        examples = [waiting.popleft() for _ in range(min(len(free), len(waiting)))]
        new = np.zeros(len(self.example_of), bool)
        new[free[: len(examples)]] = True
        self.example_of[new] = examples
        return new

    def _sharded_jobs(self) -> State:
        return {name: self.distribution.shard(value) for name, value in self.queue.jobs(self.example_of).items()}


def _start(attack: IterativeAttack) -> Callable[[State], State]:
    """Jobs -> the state of slots at the starting point of each."""
    tf = backend.tensorflow()

    def start(jobs: State) -> State:
        state, zeros = attack.start(jobs), tf.zeros_like(jobs["y"])
        lowest = tf.fill(tf.shape(jobs["eps"]), tf.constant(-np.inf, jobs["x"].dtype))
        no = tf.cast(zeros, tf.bool)
        return {**state, "kept": state["point"], "loss": lowest, "is_adversarial": no, "done": no, "i": zeros}

    return start


def _refill(attack: IterativeAttack) -> Callable[[State, State, Tensor], State]:
    """(state, jobs, new bool [slots]) -> state, with the new slots at the starting point of their job."""
    start = _start(attack)

    def refill(state: State, jobs: State, new: Tensor) -> State:
        fresh = start(jobs)
        return {name: _where(new, fresh[name], state[name]) for name in state}

    return refill


def _advance(attack: IterativeAttack, steps: int) -> Callable[[State, State, Tensor, Tensor], State]:
    """(state, jobs, held bool [slots], resume bool [slots]) -> state, `steps` steps on.

    A slot that is done and is not to be resumed keeps its result.
    """
    tf = backend.tensorflow()

    def advance(state: State, jobs: State, held: Tensor) -> State:
        result = attack.advance({**jobs, **state})
        active = held & tf.logical_not(state["done"])
        better = active & (result.is_adversarial | (result.loss > state["loss"]))
        i = state["i"] + tf.cast(active, tf.int32)
        return {
            **result.state,
            "kept": _where(better, state["point"], state["kept"]),
            "loss": tf.where(better, result.loss, state["loss"]),
            "is_adversarial": state["is_adversarial"] | (active & result.is_adversarial),
            "done": state["done"] | (active & (result.is_adversarial | (i > attack.steps))),
            "i": i,
        }

    def advance_all(state: State, jobs: State, held: Tensor, resume: Tensor) -> State:
        lowest = tf.fill(tf.shape(resume), tf.constant(-np.inf, state["loss"].dtype))
        reset = {name: state[name] & tf.logical_not(resume) for name in ("done", "is_adversarial")}
        state = {**state, **reset, "loss": tf.where(resume, lowest, state["loss"])}
        if steps == 1:
            return advance(state, jobs, held)
        loop = tf.while_loop(  # unrolled it would take as many times as long to compile
            lambda i, _: i < steps,
            lambda i, now: (i + 1, advance(now, jobs, held)),
            (0, state),
            maximum_iterations=steps,
        )
        return dict(loop[1])

    return advance_all


def _where(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Per slot, `new` or `old` [slots, ...]."""
    tf = backend.tensorflow()
    return tf.where(tf.reshape(mask, [-1] + [1] * (len(old.shape) - 1)), new, old)

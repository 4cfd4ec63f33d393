"""The active set: examples take turns in the slots of a batch, each with its own step counter.

An example leaves its slot when it is fooled, and that is verified, or when its job is over; a waiting one takes the
slot. So the batch stays full, and the cost is the sum of the steps that are really needed. State stays on the devices
between steps; the host reads one boolean a slot.

What is found does not depend on who shares the batch, but for rounding: random draws depend on the example's own
number, and nothing else mixes slots. (A point that fools but is not verified, which is rounding too, is searched on
from where its slot has come by the time that the host looks.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln.attacks.base import IterativeAttack
from bn_vuln.attacks.eps_search import EpsSearch
from bn_vuln.runtime import backend
from bn_vuln.runtime.distribution import ONE_DEVICE, Distribution

BATCH_SIZE = 500
SMALLEST = 16  # slots of a replica; a smaller batch would save nothing
IDLE = 1 / 16  # share of the slots that may stand idle before it is worth reading them out

# (points [m, ...], which examples int64 [m], eps float64 [m]) -> bool [m]: these points, in balls of these radii, fool
# the classifier that counts
Confirm = Callable[[NDArray[Any], NDArray[np.int64], NDArray[np.float64]], NDArray[np.bool_]]
Slots = dict[str, Any]


@dataclass(frozen=True)
class SearchResult:
    """Of n examples: `points` [n, ...], each the one that fooled the classifier at the smallest eps, or else the one
    of the highest loss; `fooled` bool; `eps` float64, infinite where nothing fooled it; `loss` float64, of the
    point; `n_evaluations` int64, the number of points at which the classifier was evaluated."""

    points: NDArray[Any]
    is_adversarial: NDArray[np.bool_]
    eps: NDArray[np.float64]
    loss: NDArray[np.float64]
    n_evaluations: NDArray[np.int64]


class CompiledAttack:
    """A search compiled once, for runs on any examples and with any eps.

    Args:
        search: the attack, see `attacks.search`.
        xla: compile the steps with XLA (on one device).
        steps_per_call: steps between two looks at who is done; more save calls, fewer save steps. None: with XLA, whose
            steps are short, two to eight, the more the longer a job may be; else one.
        distribution: the devices.
    """

    def __init__(
        self,
        search: IterativeAttack,
        *,
        xla: bool = False,
        steps_per_call: int | None = None,
        distribution: Distribution = ONE_DEVICE,
    ) -> None:
        self.search, self.xla, self.distribution = search, xla, distribution
        if steps_per_call is None:
            steps_per_call = max(2, min(8, search.steps // 20)) if xla else 1
        self.advance = distribution.compile(_advance(search, steps_per_call), xla=xla)
        self.enter = distribution.compile(_enter(search), xla=xla)
        self.open, self.take = distribution.compile(_open(search)), distribution.compile(_take)


def run(
    search: IterativeAttack | CompiledAttack,
    x: NDArray[Any],
    y: NDArray[np.int32],
    plan: EpsSearch,
    *,
    targets: NDArray[np.int32] | None = None,
    index: NDArray[np.int32] | None = None,
    confirm: Confirm | None = None,
    batch_size: int = BATCH_SIZE,
    xla: bool = False,
    steps_per_call: int | None = None,
    distribution: Distribution = ONE_DEVICE,
    on_progress: Callable[[int], None] | None = None,
) -> SearchResult:
    """Put every example through its plan.

    Args:
        search: the attack; where it is compiled already, xla, steps_per_call and distribution are its own.
        x: clean images [n, height, width, channels], float, in the ball's box. y: int32 [n], true labels.
        plan: the jobs of an example, see `attacks.plans`.
        targets: int32 [n, variants], the class that each variant aims at.
        index: int32 [n], the examples' own numbers (default: their places).
        verify: whether points fool the classifier that counts, where the search's is a copy of it. The search of an
            example goes on from a point that does not.
        batch_size: slots, over all replicas. xla, steps_per_call, distribution: see `Compiled`.
        advanced: told now and then how many of the examples that had a job are through.
    """
    if not isinstance(search, CompiledAttack):
        search = CompiledAttack(search, xla=xla, steps_per_call=steps_per_call, distribution=distribution)
    queue = _Queue(x, np.asarray(y, np.int32), targets, index, plan, confirm)
    if not queue.waiting:
        return queue.found
    slots = _SlotSet(search, queue, batch_size)
    while slots.busy:
        slots.advance()
        if slots.worth_reading():
            slots.read_out()
            slots.fill()
            slots.shrink()
            if on_progress is not None:
                on_progress(queue.through)
    return queue.found


class _Queue:
    """The examples on the host: who waits, what each one's job is, and what was found."""

    def __init__(
        self,
        x: NDArray[Any],
        y: NDArray[np.int32],
        targets: NDArray[np.int32] | None,
        index: NDArray[np.int32] | None,
        plan: EpsSearch,
        confirm: Confirm | None,
    ) -> None:
        n = len(x)
        self.x, self.y, self.plan, self.confirm = x, y, plan, confirm
        self.targets = y[:, None] if targets is None else np.asarray(targets, np.int32)
        self.index = np.arange(n, dtype=np.int32) if index is None else np.asarray(index, np.int32)
        self.found = SearchResult(
            x.copy(), np.zeros(n, bool), np.full(n, np.inf), np.full(n, -np.inf), np.zeros(n, np.int64)
        )
        first = plan.first(n)
        self.variant, self.eps = first.variant.copy(), first.eps.copy()
        self.waiting: deque[int] = deque(np.flatnonzero(first.again).tolist())
        self.through = 0

    def draw(self, count: int) -> list[int]:
        """The next examples, at most `count`."""
        return [self.waiting.popleft() for _ in range(min(count, len(self.waiting)))]

    def jobs(self, holder: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """The jobs of the examples that hold the slots; slots without one (-1) get a copy of example 0's."""
        who = np.maximum(holder, 0)
        variant = self.variant[who]
        return {
            "x": self.x[who],
            "y": self.y[who],
            "target": self.targets[who, np.minimum(variant, self.targets.shape[1] - 1)],
            "index": self.index[who],
            "variant": variant,
            "eps": self.eps[who].astype(self.x.dtype),
        }

    def verified(
        self, points: NDArray[Any], examples: NDArray[np.int64], is_adversarial: NDArray[np.bool_]
    ) -> NDArray[Any]:
        """`fooled`, less those whose point does not fool the classifier that counts."""
        if self.confirm is None or not is_adversarial.any():
            return is_adversarial
        sure = is_adversarial.copy()
        sure[is_adversarial] = self.confirm(
            points[is_adversarial], examples[is_adversarial], self.eps[examples[is_adversarial]]
        )
        return sure

    def note(
        self, examples: NDArray[np.int64], taken: dict[str, NDArray[Any]], is_adversarial: NDArray[np.bool_]
    ) -> None:
        """Keep what the jobs of these examples found, and let those wait that have another one."""
        found, eps = self.found, self.eps[examples]
        nearer = is_adversarial & (eps < found.eps[examples])
        higher = ~is_adversarial & ~found.is_adversarial[examples] & (taken["loss"] > found.loss[examples])
        for kept in (nearer, higher):
            found.points[examples[kept]] = taken["kept"][kept]
            found.loss[examples[kept]] = taken["loss"][kept]
        found.eps[examples[nearer]] = eps[nearer]
        found.is_adversarial[examples[is_adversarial]] = True
        found.n_evaluations[examples] += taken["i"]
        jobs = self.plan.next(examples, is_adversarial, self.variant[examples], eps)
        self.variant[examples], self.eps[examples] = jobs.variant, jobs.eps
        self.waiting.extend(examples[jobs.again].tolist())
        self.through += int(np.sum(~jobs.again))


class _SlotSet:
    """The slots on the devices, and on the host who holds them: `holder` int64 [slots], -1 for nobody. With replicas
    each has an equal share of the slots, in order."""

    def __init__(self, search: CompiledAttack, queue: _Queue, batch_size: int) -> None:
        self.compiled, self.queue, self.distribution = search, queue, search.distribution
        self._factor = 4 if search.xla else 2  # XLA compiles every size of batch anew
        replicas = self.distribution.replicas
        share = -(-max(1, min(batch_size, len(queue.waiting))) // replicas)
        self.holder = np.full(share * replicas, -1, np.int64)
        self._claim()
        self._jobs = self._placed(queue.jobs(self.holder))
        self._slots: Slots = self.compiled.open(self._jobs)
        self._done = self.holder < 0
        self._again = np.zeros(len(self.holder), bool)  # done, but not verified: to go on

    @property
    def busy(self) -> bool:
        """Whether anybody holds a slot."""
        return bool((self.holder >= 0).any())

    def advance(self) -> None:
        """One step of every slot that is held."""
        held = self.holder >= 0
        place, fetch = self.distribution.shard, self.distribution.gather
        self._slots = self.compiled.advance(self._slots, self._jobs, place(held), place(self._again))
        self._again = np.zeros(len(held), bool)
        self._done = fetch(self._slots["done"]) | ~held

    def worth_reading(self) -> bool:
        """Whether enough slots stand idle: some of them where others wait, most of them where nobody does."""
        size, idle = len(self.holder), int(self._done.sum())
        if idle == size:
            return True
        if self.queue.waiting:
            return idle >= max(1, IDLE * size)
        wanted = size // self._factor
        return size - idle <= wanted and wanted >= SMALLEST * self.distribution.replicas

    def read_out(self) -> None:
        """Take the points of slots that are done, and free the slots of those whose job is over."""
        slots = np.flatnonzero(self._done & (self.holder >= 0))
        taken = {
            key: self.distribution.gather(self._slots[key])[slots] for key in ("kept", "loss", "is_adversarial", "i")
        }
        examples = self.holder[slots]
        is_adversarial = self.queue.verified(taken["kept"], examples, taken["is_adversarial"])
        goes_on = taken["is_adversarial"] & ~is_adversarial & (taken["i"] <= self.compiled.search.steps)
        self._again[slots[goes_on]], self._done[slots[goes_on]] = True, False
        over = ~goes_on
        self.queue.note(examples[over], {key: value[over] for key, value in taken.items()}, is_adversarial[over])
        self.holder[slots[over]] = -1

    def fill(self) -> None:
        """Give free slots to those who wait."""
        new = self._claim()
        if not new.any():
            return
        self._done[new] = False
        self._jobs = self._placed(self.queue.jobs(self.holder))
        self._slots = self.compiled.enter(self._slots, self._jobs, self.distribution.shard(new))

    def shrink(self) -> None:
        """Go on in half as many slots (or a quarter, ...) where nobody waits and no more are needed."""
        replicas = self.distribution.replicas
        held = (self.holder >= 0).reshape(replicas, -1)
        size = new = held.shape[1]
        while new // self._factor >= SMALLEST and held.sum(axis=1).max() <= new // self._factor:
            new //= self._factor
        if self.queue.waiting or new == size or not held.any():
            return
        kept = np.argsort(~held, axis=1, kind="stable")[:, :new].astype(np.int32)
        which = self.distribution.shard(kept.ravel())
        self._slots, self._jobs = self.compiled.take(self._slots, which), self.compiled.take(self._jobs, which)
        chosen = (kept + size * np.arange(replicas)[:, None]).ravel()
        self.holder, self._done, self._again = self.holder[chosen], self._done[chosen], self._again[chosen]

    def _claim(self) -> NDArray[np.bool_]:
        """Let waiting examples hold the free slots; which slots those are."""
        free = np.flatnonzero(self.holder < 0)
        examples = self.queue.draw(len(free))
        new = np.zeros(len(self.holder), bool)
        new[free[: len(examples)]] = True
        self.holder[new] = examples
        return new

    def _placed(self, jobs: dict[str, NDArray[Any]]) -> Slots:
        return {key: self.distribution.shard(value) for key, value in jobs.items()}


def _open(search: IterativeAttack) -> Callable[[Slots], Slots]:
    """Jobs -> the state of slots at the first point of each."""
    tf = backend.tensorflow()

    def opened(jobs: Slots) -> Slots:
        state, nothing = search.start(jobs), tf.zeros_like(jobs["y"])
        lowest = tf.fill(tf.shape(jobs["eps"]), tf.constant(-np.inf, jobs["x"].dtype))
        no = tf.cast(nothing, tf.bool)
        return {**state, "kept": state["point"], "loss": lowest, "is_adversarial": no, "done": no, "i": nothing}

    return opened


def _enter(search: IterativeAttack) -> Callable[[Slots, Slots, Any], Slots]:
    """(state, jobs, new bool [slots]) -> state, the new slots at the first point of their job."""
    opened = _open(search)

    def enter(state: Slots, jobs: Slots, new: Any) -> Slots:
        fresh = opened(jobs)
        return {key: _where(new, fresh[key], state[key]) for key in state}

    return enter


def _take(slots: Slots, which: Any) -> Slots:
    """Some of the slots."""
    return {key: backend.tensorflow().gather(value, which) for key, value in slots.items()}


def _advance(search: IterativeAttack, steps: int) -> Callable[[Slots, Slots, Any, Any], Slots]:
    """(state, jobs, held bool [slots], again bool [slots]) -> state, `steps` steps on. A slot that is done and is not
    to go on `again` keeps what it found."""
    tf = backend.tensorflow()

    def advance(state: Slots, jobs: Slots, held: Any) -> Slots:
        seen = search.advance({**jobs, **state})
        going = held & tf.logical_not(state["done"])
        kept = going & (seen.is_adversarial | (seen.loss > state["loss"]))
        i = state["i"] + tf.cast(going, tf.int32)
        return {
            **seen.state,
            "kept": _where(kept, state["point"], state["kept"]),
            "loss": tf.where(kept, seen.loss, state["loss"]),
            "is_adversarial": state["is_adversarial"] | (going & seen.is_adversarial),
            "done": state["done"] | (going & (seen.is_adversarial | (i > search.steps))),
            "i": i,
        }

    def several(state: Slots, jobs: Slots, held: Any, again: Any) -> Slots:
        lowest = tf.fill(tf.shape(again), tf.constant(-np.inf, state["loss"].dtype))
        known = {key: state[key] & tf.logical_not(again) for key in ("done", "is_adversarial")}
        state = {**state, **known, "loss": tf.where(again, lowest, state["loss"])}
        if steps == 1:
            return advance(state, jobs, held)
        done = tf.while_loop(  # unrolled it would take as many times as long to compile
            lambda i, _: i < steps,
            lambda i, now: (i + 1, advance(now, jobs, held)),
            (0, state),
            maximum_iterations=steps,
        )
        return dict(done[1])

    return several


def _where(mask: Any, new: Any, old: Any) -> Any:
    """Per slot, `new` or `old` [slots, ...]."""
    tf = backend.tensorflow()
    return tf.where(tf.reshape(mask, [-1] + [1] * (len(old.shape) - 1)), new, old)

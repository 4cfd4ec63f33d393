"""The active set, the one loop of all attacks: examples take turns in the slots of a batch, each with its own counter.

An example leaves its slot when its job is over, and a waiting one takes the slot. So the batch stays full, and the cost
is the sum of the steps that are really needed. State stays on the devices between steps; the host reads one boolean a
slot. What is kept of a job is `Keep`; with `last` and `best_loss` all slots end together, so that a batch holds the
same examples from the first step to the last, as batch norm with the statistics of the batch needs it.

Results do not depend on who shares the batch, but for rounding: random numbers depend on the example's own index, and
nothing else mixes slots.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias

import numpy as np

from bn_vuln.attacks.base import IterativeAttack, State, select
from bn_vuln.attacks.threat_model import per_example
from bn_vuln.runtime import backend, ops
from bn_vuln.runtime.backend import ExecutionPolicy
from bn_vuln.runtime.distribution import ONE_DEVICE, Distribution
from bn_vuln.typing import AnyArray, Arrays, Floats, Index, Labels, Mask, Tensor

BATCH_SIZE = 500
MIN_SLOTS = 16  # of a replica; a smaller batch would save nothing
IDLE_SHARE = 1 / 16  # of the slots may stand idle before it is worth reading them out
MAX_STEPS_PER_CALL = 50

# What counts of a job: its first adversarial point, at which it ends; of all points an adversarial one if there is any,
# and among those the one of the highest loss; the point after the last step.
Keep: TypeAlias = Literal["first_success", "best_loss", "last"]


@dataclass(frozen=True)
class Jobs:
    """The next job of each of m examples.

    Attributes:
        pending: bool [m], False where no job is left.
        attempt: int32 [m], number of a restart or of a target.
        eps: float64 [m], in units of the threat model's scale.
    """

    pending: Mask
    attempt: Labels
    eps: Floats


class EpsSearch(Protocol):
    """A rule, on the host in NumPy, that gives each example its first job, and after each the next one or none."""

    def first(self, n: int) -> Jobs:
        """Return the first jobs of examples 0 to n - 1."""

    def next(self, example: Index, is_adversarial: Mask, attempt: Labels, eps: Floats) -> Jobs:
        """Return the next jobs of m examples.

        Args:
            example: int64 [m].
            is_adversarial: bool [m], success of the job that is over.
            attempt: int32 [m], number of the attempt.
            eps: float64 [m], its eps.
        """


@dataclass(frozen=True)
class EveryAttempt:
    """Make all attempts at one eps, whether they succeed or not.

    Attributes:
        eps: the eps.
        n_attempts: number of attempts.
    """

    eps: float
    n_attempts: int = 1

    def first(self, n: int) -> Jobs:
        """Return the first attempt."""
        return Jobs(np.ones(n, bool), np.zeros(n, np.int32), np.full(n, self.eps))

    def next(self, example: Index, is_adversarial: Mask, attempt: Labels, eps: Floats) -> Jobs:
        """Return the next attempt, until all are made."""
        return Jobs(attempt + 1 < self.n_attempts, attempt + 1, eps)


@dataclass(frozen=True)
class EpsGrid:
    """Try every eps of a grid (often a single one), from the largest down, until the attack fails.

    After a success the next smaller eps follows, after a failure the next attempt at the same eps. So an example
    resists all attempts at one eps only, which is what costs most. An example that resists at some eps is taken to
    resist at every smaller one.

    Attributes:
        eps: the grid, ascending.
        n_attempts: number of attempts at each eps.
        upper_eps: float64 [n]; for each example only eps smaller than this are tried.
    """

    eps: Sequence[float]
    n_attempts: int = 1
    upper_eps: Floats | None = None

    def __post_init__(self) -> None:
        if not len(self.eps) or (np.diff(self.eps) <= 0).any():
            raise ValueError(f"an eps grid: expected ascending eps, received {list(self.eps)}")

    def first(self, n: int) -> Jobs:
        """Return the largest eps, below `upper_eps`."""
        return self._next_smaller(np.full(n, np.inf) if self.upper_eps is None else self.upper_eps[:n])

    def next(self, example: Index, is_adversarial: Mask, attempt: Labels, eps: Floats) -> Jobs:
        """Return the next smaller eps after a success, else the next attempt at this one."""
        smaller = self._next_smaller(eps)
        pending = np.where(is_adversarial, smaller.pending, attempt + 1 < self.n_attempts)
        attempts = np.where(is_adversarial, 0, attempt + 1).astype(np.int32)
        return Jobs(pending, attempts, np.where(is_adversarial, smaller.eps, eps))

    def _next_smaller(self, eps: Floats) -> Jobs:
        """The first attempt at the largest eps of the grid below these."""
        grid = np.asarray(self.eps, float)
        smaller = np.concatenate([[0.0], grid])[np.searchsorted(grid, eps)]
        return Jobs(smaller > 0, np.zeros(len(eps), np.int32), smaller)


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

    def merged(self, later: SearchResult) -> SearchResult:
        """Return for each example the success at the smaller eps, or else the first point that was kept."""
        better = (later.eps < self.eps) | (np.isneginf(self.loss) & ~self.is_adversarial)
        return replace(
            self,
            points=np.where(per_example(better), later.points, self.points),
            is_adversarial=self.is_adversarial | later.is_adversarial,
            eps=np.minimum(self.eps, later.eps),
            loss=np.where(better, later.loss, self.loss),
            n_evaluations=self.n_evaluations + later.n_evaluations,
        )


class CompiledAttack:
    """An attack compiled once, for runs on any examples and with any eps.

    Args:
        attack: an iterative attack, see `attacks.base`.
        keep: what counts of a job.
        scored: with `last`, evaluate the last point too, to compare several attempts.
        policy: how to execute the classifier.
        distribution: the devices.
    """

    def __init__(
        self,
        attack: IterativeAttack,
        *,
        keep: Keep = "first_success",
        scored: bool = True,
        policy: ExecutionPolicy = backend.ONE_STEP_A_CALL,
        distribution: Distribution = ONE_DEVICE,
    ) -> None:
        self.attack, self.keep, self.xla, self.distribution = attack, keep, policy.xla, distribution
        n_points = attack.steps + (keep != "last" or scored)
        count = _steps_per_call(n_points, keep, policy)

        def gather(state: State, slots: Tensor) -> State:
            return {name: ops.take(value, slots, axis=0) for name, value in state.items()}

        self.advance = distribution.compile(_advance(attack, keep, n_points, count), xla=policy.xla)
        # Without XLA, which would round random starts otherwise.
        self.start, self.refill = distribution.compile(_start(attack)), distribution.compile(_refill(attack))
        self.select = distribution.compile(gather)


def _steps_per_call(n_points: int, keep: Keep, policy: ExecutionPolicy) -> int:
    """More steps save calls; where examples end early, fewer save steps."""
    if policy.steps_per_call == 1:
        return 1
    if keep == "first_success":
        return max(2, min(policy.steps_per_call, n_points // 20))
    return math.ceil(n_points / math.ceil(n_points / MAX_STEPS_PER_CALL))


def run(
    attack: IterativeAttack | CompiledAttack,
    x: AnyArray,
    y: Labels,
    search: EpsSearch,
    *,
    targets: Labels | None = None,
    index: Labels | None = None,
    batch_size: int = BATCH_SIZE,
    on_progress: Callable[[int], None] | None = None,
) -> SearchResult:
    """Run an attack on every example, at each eps that a search asks for.

    Args:
        attack: the attack; where it is not compiled, its first success counts.
        x: clean images, float [n, height, width, channels], in pixels, inside the box.
        y: int32 [n], true labels.
        search: the jobs of an example, see `EpsSearch`.
        targets: int32 [n, attempts], the class that each attempt aims at.
        index: int32 [n], the number of each example in its data set (default: its place in x).
        batch_size: slots, over all replicas.
        on_progress: called now and then with the number of examples, of those that had a job, that are done.

    Returns:
        The best point of each example.
    """
    compiled = attack if isinstance(attack, CompiledAttack) else CompiledAttack(attack)
    queue = _Queue(x, np.asarray(y, np.int32), targets, index, search)
    if not queue.waiting:
        return queue.result
    slots = _Slots(compiled, queue, batch_size)
    while slots.busy:
        slots.advance()
        if slots.worth_reading():
            slots.read_out()
            slots.fill()
            slots.shrink()
            if on_progress is not None:
                on_progress(queue.n_done)
    return queue.result


def last_iterate(attack: IterativeAttack, x: Tensor, y: Tensor, *, eps: float, index: Tensor) -> Tensor:
    """Return the points after all steps, for use inside of a training step, which has no host to fill slots.

    Args:
        attack: an iterative attack.
        x: clean images, float [n, height, width, channels], in pixels.
        y: int32 [n], true labels.
        eps: radius of the eps ball.
        index: int32 [n], numbers that the random starts depend on.

    Returns:
        Adversarial images like x.
    """
    radius = ops.full_like(x[:, 0, 0, 0], eps)
    job = {"x": x, "y": y, "target": y, "index": index, "attempt": ops.zeros_like(index), "eps": radius}
    first = {**attack.start(job), "i": ops.zeros_like(index)}

    def body(i: Tensor, state: State) -> tuple[Tensor, State]:
        return i + 1, {**attack.advance({**job, **state}).state, "i": state["i"] + 1}

    state: State = ops.while_loop(lambda i, _: i < attack.steps, body, (0, first), maximum_iterations=attack.steps)[1]
    return state["point"]


class _Queue:
    """The examples on the host: those that wait, the job of each one, and the results."""

    def __init__(self, x: AnyArray, y: Labels, targets: Labels | None, index: Labels | None, search: EpsSearch) -> None:
        n = len(x)
        self.x, self.y, self.search = x, y, search
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

    def record(self, examples: Index, finished: Arrays) -> None:
        """Keep the results of finished jobs, and queue the examples that have another one."""
        result, eps, is_adversarial = self.result, self.eps[examples], finished["is_adversarial"]
        smaller_eps = is_adversarial & (eps < result.eps[examples])
        same_kind = is_adversarial == result.is_adversarial[examples]
        same_kind &= ~is_adversarial | (eps == result.eps[examples])
        better = smaller_eps | (same_kind & (finished["loss"] > result.loss[examples]))
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
        replicas, n = self.distribution.replicas, len(queue.waiting)
        batches = math.ceil(n / max(1, batch_size))
        share = math.ceil(n / batches / replicas)  # all batches of one size, the last one full too
        self.example_of = np.full(share * replicas, -1, np.int64)
        self._assign()
        self._jobs = self._sharded_jobs()
        self._state: State = compiled.start(self._jobs)
        self._done: Mask = self.example_of < 0

    @property
    def busy(self) -> bool:
        """Return True if a slot is occupied."""
        return bool((self.example_of >= 0).any())

    def advance(self) -> None:
        """One step of every slot that holds an example, or several."""
        held = self.example_of >= 0
        self._state = self.compiled.advance(self._state, self._jobs, self.distribution.shard(held))
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
        """Read the points of slots whose job is over, and free them."""
        slots = np.flatnonzero(self._done & (self.example_of >= 0))
        names = ("kept", "loss", "is_adversarial", "i")
        finished = {name: self.distribution.gather(self._state[name])[slots] for name in names}
        self.queue.record(self.example_of[slots], finished)
        self.example_of[slots] = -1

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
        self.example_of, self._done = self.example_of[chosen], self._done[chosen]

    def _assign(self) -> Mask:
        """Put waiting examples into free slots; return which slots those are."""
        free, waiting = np.flatnonzero(self.example_of < 0), self.queue.waiting
        examples = [waiting.popleft() for _ in range(min(len(free), len(waiting)))]
        new = np.zeros(len(self.example_of), bool)
        new[free[: len(examples)]] = True
        self.example_of[new] = examples
        return new

    def _sharded_jobs(self) -> State:
        return {name: self.distribution.shard(array) for name, array in self.queue.jobs(self.example_of).items()}


# ---------------------------------------------------------------- what is compiled


def _start(attack: IterativeAttack) -> Callable[[State], State]:
    """Jobs -> state at the starting points."""

    def start(jobs: State) -> State:
        state, zeros = attack.start(jobs), ops.zeros_like(jobs["y"])
        no, lowest = ops.cast(zeros, "bool"), ops.full_like(jobs["eps"], -np.inf)
        return {**state, "kept": state["point"], "loss": lowest, "is_adversarial": no, "done": no, "i": zeros}

    return start


def _refill(attack: IterativeAttack) -> Callable[[State, State, Tensor], State]:
    """(state, jobs, new bool [slots]) -> state, with the new slots at the starting point of their job."""
    start = _start(attack)

    def refill(state: State, jobs: State, new: Tensor) -> State:
        fresh = start(jobs)
        return {name: select(new, fresh[name], state[name]) for name in state}

    return refill


def _advance(attack: IterativeAttack, keep: Keep, n_points: int, count: int) -> Callable[[State, State, Tensor], State]:
    """(state, jobs, held bool [slots]) -> state, `count` steps on; a slot that is done keeps its result."""
    # All slots end together then, with the last step of a call: there is no step after it that must not count.
    together = keep == "last" and n_points % count == 0

    def advance(state: State, jobs: State, held: Tensor) -> State:
        result = attack.advance({**jobs, **state})
        active = held & ops.logical_not(state["done"])
        i = state["i"] + ops.cast(active, "int32")
        over = i >= n_points if result.done is None else (i >= n_points) | result.done
        point, adversarial, loss = state["point"], result.is_adversarial, result.loss
        before, lowest = state["is_adversarial"], state["loss"]
        if keep == "last":
            if n_points == attack.steps:  # the point after the last step is not evaluated
                point, adversarial, loss = result.state["point"], before, ops.zeros_like(loss)
            better = over
        else:
            better = (adversarial & ops.logical_not(before)) | (ops.equal(adversarial, before) & (loss > lowest))
        better &= active
        return {
            **result.state,
            "kept": point if together else select(better, point, state["kept"]),
            "loss": ops.where(better, loss, lowest),
            "is_adversarial": ops.where(better, adversarial, before),
            "done": state["done"] | (active & (over | adversarial if keep == "first_success" else over)),
            "i": i,
        }

    def advance_all(state: State, jobs: State, held: Tensor) -> State:
        if count == 1:
            return advance(state, jobs, held)

        def going(i: Tensor, now: State) -> Tensor:
            return (i < count) & ops.any(held & ops.logical_not(now["done"]))

        def step(i: Tensor, now: State) -> tuple[Tensor, State]:
            return i + 1, advance(now, jobs, held)

        # A loop of the graph: unrolled it would take as many times as long to compile.
        return dict(ops.while_loop(going, step, (0, dict(state)), maximum_iterations=count)[1])

    return advance_all

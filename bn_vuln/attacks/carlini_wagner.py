"""The L2 attack of Carlini and Wagner (2017): the nearest image that is misclassified, or classified as a target.

It minimizes ||(x' - x) / scale||_2^2 + c max(z_y - max_{k != y} z_k + confidence, 0) by Adam, and searches for the
smallest c with which it succeeds. Every example has a c, a step counter and an end of its own: one whose loss no longer
falls goes on with its next c at once, and one that is done leaves the batch, which is filled up again.

Where it departs from what was published, distances become shorter or the search does:
- A constant counts as too large if the search succeeds with it after it has settled, in its last tenth or when it
  stops. As published, the first step that goes too far is enough, and c then sinks to where the search fails.
- Whether the loss still falls is judged by the lowest one of every tenth of the steps, from the second one on.
- An example is done when a constant that succeeds no longer brings its point nearer.
- Success asks for a margin above rounding, so that the classifier itself is fooled too where `predict` is a copy of it.
- Logits or gradients that are not finite have no effect, and the distance alone leads back towards x.
- In the end the point is moved towards x as far as it still succeeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bn_vuln.attacks.base import State
from bn_vuln.attacks.losses import ROUNDING, input_gradient, is_adversarial, logit_margin, replace_nonfinite
from bn_vuln.attacks.threat_model import Channels, as_tensor_like, per_example
from bn_vuln.runtime import backend
from bn_vuln.typing import AnyArray, Index, Labels, Mask, Predict, Tensor

BATCH_SIZE = 500
CHUNK = 50  # steps between host checks for finished examples
MIN_SLOTS = 16  # a smaller batch is hardly faster
BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's
SHRINK = 0.9999  # of tanh's range, where pixels at the border of the box begin (published: .999999, for more steps)
ABORT_WINDOWS = 10  # the loss is checked after each tenth of the steps of a c,
ABORT_LOSS_RATIO = 0.999  # and the c is given up if the loss fell by less than 0.1% since the last check
MIN_DISTANCE_RATIO = 0.999  # an example is done if with a c that succeeds the distance falls by less than 0.1%
UNBOUNDED = 1e9  # above it there is no upper bound of c yet: c grows tenfold
HALVINGS = 10  # of the way back to x


def attack(
    predict: Predict,
    x: Tensor | AnyArray,
    y: Tensor | Labels,
    *,
    scale: Channels | float = 1.0,
    low: Channels | float = -np.inf,
    high: Channels | float = np.inf,
    confidence: float = 0.0,
    steps: int = 1000,
    step_size: float = 0.01,
    binary_search_steps: int = 9,
    initial_const: float = 1e-3,
    targeted: bool = False,
    abort_early: bool = True,
    batch_size: int = BATCH_SIZE,
    xla: bool = False,
    on_progress: Callable[[int], None] = lambda done: None,
) -> tuple[Tensor, Tensor]:
    """Search for the nearest adversarial image in L2.

    Args:
        predict: pixels [n, height, width, channels] -> logits [n, classes], differentiable.
        x: clean images, float [n, height, width, channels], in pixels.
        y: int [n], the true labels, or the targets of a targeted attack.
        scale: a number or [channels]: 1 for distances in pixels, the std for standardized units.
        low: lower bound of the box in pixels, a number or [channels]; -inf for none. With a box the variable is w with
            x' = (low + high) / 2 + (high - low) / 2 tanh(w), without one it is (x' - x) / scale.
        high: upper bound of the box, likewise; inf for none.
        confidence: the margin in nats by which the logit of the other class (or the target) must be ahead.
        steps: steps of Adam for each constant, at most.
        step_size: learning rate of Adam, in units of the variable.
        binary_search_steps: number of constants.
        initial_const: the first constant.
        targeted: y are targets.
        abort_early: give a constant up when the loss no longer falls, and an example when constants no longer help.
        batch_size: examples at a time.
        xla: compile the steps with XLA.
        on_progress: called now and then with the number of examples that are done.

    Returns:
        (adversarial images of the shape and dtype of x, success bool [n]). Images that are adversarial already, by
        whatever margin or with logits that are not finite, are returned as they are, with success; those without
        success are returned as they are.

    Raises:
        ValueError: for a box that is open at one side.
    """
    tf = backend.tensorflow()
    variable = _Variable(scale, low, high)
    goal = _Goal(predict, confidence, targeted)
    search = _Search(variable, goal, steps, step_size, binary_search_steps, initial_const, abort_early)
    if tf.inside_function():  # a graph has no host that could leave examples out
        state = search.start(tf.convert_to_tensor(x), tf.convert_to_tensor(y))
        return search.result(search.run(state, steps * binary_search_steps))
    points, success = _BatchedSearch(search, np.asarray(x), np.asarray(y), batch_size, xla).run(on_progress)
    return tf.constant(points), tf.constant(success)


class _BatchedSearch:
    """Examples take turns in the slots of a batch: after each chunk of steps the host reads which are done.

    All images are on the host, those in a slot on the device. `example_of` int64 [slots] is -1 for an empty slot.
    """

    def __init__(self, search: _Search, x: AnyArray, y: Labels, batch_size: int, xla: bool) -> None:
        tf = backend.tensorflow()
        self.search, self.x, self.y, self.n = search, x, y, len(x)
        self.points, self.success = x.copy(), np.zeros(self.n, bool)
        images = [tf.TensorSpec((None, *array.shape[1:]), array.dtype) for array in (x, y)]
        self._compiled_start = backend.compile(search.start, signature=images)
        self.example_of: Index = np.arange(min(batch_size, self.n))
        self.waiting: Index = np.arange(len(self.example_of), self.n)
        self.state = self._start(self.example_of)
        spec = {name: tf.TensorSpec((None, *part.shape[1:]), part.dtype) for name, part in self.state.items()}
        self._chunk = backend.compile(lambda state: search.run(state, CHUNK), signature=[spec], xla=xla)
        self._result = backend.compile(search.result, signature=[spec])

    def run(self, on_progress: Callable[[int], None]) -> tuple[AnyArray, Mask]:
        """(points, success), as `attack`."""
        while len(self.example_of):
            done = np.asarray(self.state["tried"]) >= self.search.binary_search_steps
            if self._worth_changing(done):
                self._read_out(np.flatnonzero(done & (self.example_of >= 0)))
                self._refill(done)
                on_progress(self.n - len(self.waiting) - int(np.sum(self.example_of >= 0)))
            if len(self.example_of):
                self.state = self._chunk(self.state)
        return self.points, self.success

    def _start(self, examples: Index) -> State:
        tf = backend.tensorflow()
        return self._compiled_start(tf.constant(self.x[examples]), tf.constant(self.y[examples]))

    def _worth_changing(self, done: Mask) -> bool:
        """Enough slots stand idle to be filled, or so many that half of the batch will do."""
        idle, size = int(done.sum()), len(done)
        if len(self.waiting):
            return idle >= max(1, size // 16)
        return idle == size or _halved_size(size, size - idle) < size

    def _read_out(self, slots: Index) -> None:
        """Keep the results of the examples in these slots."""
        tf = backend.tensorflow()
        points, success = self._result({name: tf.gather(part, slots) for name, part in self.state.items()})
        examples = self.example_of[slots]
        self.points[examples], self.success[examples] = np.asarray(points), np.asarray(success)

    def _refill(self, done: Mask) -> None:
        """Slots for those that go on, then for those that waited, then idle ones where the batch is not full."""
        tf = backend.tensorflow()
        stay, idle = np.flatnonzero(~done), np.flatnonzero(done)
        new, self.waiting = self.waiting[: len(idle)], self.waiting[len(idle) :]
        needed = len(stay) + len(new)
        padding = idle[: _halved_size(len(done), needed) - needed] if needed else idle[:0]
        slots = np.concatenate([stay, len(done) + np.arange(len(new)), padding])
        pool = self.state
        if len(new):
            fresh = self._start(new)
            pool = {name: tf.concat([part, fresh[name]], axis=0) for name, part in pool.items()}
        self.state = {name: tf.gather(part, slots) for name, part in pool.items()}
        self.example_of = np.concatenate([self.example_of[stay], new, np.full(len(padding), -1)])


def _halved_size(size: int, needed: int) -> int:
    """A number of slots, halved as long as what is needed fits: few sizes, for XLA compiles each."""
    while size > MIN_SLOTS and size // 2 >= needed:
        size //= 2
    return size


@dataclass(frozen=True)
class _Variable:
    """The change of variables: x' = x + scale w, or with a box x' = middle + half tanh(w)."""

    scale: Channels | float
    low: Channels | float
    high: Channels | float

    def __post_init__(self) -> None:
        if len({bool(part) for bound in (self.low, self.high) for part in np.isfinite(bound).ravel()}) > 1:
            raise ValueError(
                f"low {self.low}, high {self.high}: expected a box that is finite at all sides, or at none"
            )

    @property
    def bounded(self) -> bool:
        return bool(np.isfinite(self.low).all() and np.isfinite(self.high).all())

    def origin(self, x: Tensor) -> Tensor:
        """The variable at x, or just inside of the box, where tanh has a slope."""
        tf = backend.tensorflow()
        if not self.bounded:
            return tf.zeros_like(x)
        middle, half = self._box(x)
        return tf.atanh(SHRINK * tf.clip_by_value((x - middle) / half, -1.0, 1.0))

    def point(self, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """(the point at w, its derivative with respect to w)."""
        tf = backend.tensorflow()
        if not self.bounded:
            scale = as_tensor_like(self.scale, x)
            return x + scale * w, scale
        middle, half = self._box(x)
        squashed = tf.tanh(w)
        return self.clip(middle + half * squashed), half * (1.0 - squashed**2)

    def clip(self, point: Tensor) -> Tensor:
        """The point in the box: rounding may have brought it out."""
        if not self.bounded:
            return point
        low, high = as_tensor_like(self.low, point), as_tensor_like(self.high, point)
        return backend.tensorflow().clip_by_value(point, low, high)

    def distance(self, x: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
        """(squared L2 distance [n] in units of scale, its gradient with respect to the point)."""
        tf = backend.tensorflow()
        scale = as_tensor_like(self.scale, x)
        offset = (point - x) / scale
        return tf.reduce_sum(offset**2, axis=list(range(1, len(x.shape)))), 2.0 * offset / scale

    def _box(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """(middle, half width)."""
        low, high = (np.asarray(bound, np.float64) for bound in (self.low, self.high))
        return as_tensor_like((low + high) / 2, like), as_tensor_like((high - low) / 2, like)


@dataclass(frozen=True)
class _Goal:
    """The condition that makes a point adversarial."""

    predict: Predict
    confidence: float
    targeted: bool

    def shortfall(self, logits: Tensor, y: Tensor) -> Tensor:
        """The margin that the logits lack, [n]; 0 where their point succeeds."""
        tf = backend.tensorflow()
        margin = logit_margin(logits, y)
        above = ROUNDING * tf.stop_gradient(tf.reduce_max(tf.abs(logits), axis=1))
        wanted = tf.maximum(tf.cast(self.confidence, logits.dtype), above)
        return tf.nn.relu(wanted + (margin if self.targeted else -margin))


@dataclass(frozen=True)
class _Search:
    """The search of every slot.

    The state has `w`, Adam's `m` and `v`, the `step` with this constant `c`, how many were `tried`, the interval
    (`lower`, `upper`) of c; `succeeded` with this one in this window of steps, the `lowest` loss of this window and of
    the one `before`; the `best` point, its squared `distance`, and that when a constant last succeeded (`nearest`).
    """

    variable: _Variable
    goal: _Goal
    steps: int
    step_size: float
    binary_search_steps: int
    initial_const: float
    abort_early: bool

    def start(self, x: Tensor, y: Tensor) -> State:
        """The state before the first step; an example that is adversarial already is done."""
        tf = backend.tensorflow()
        adversarial = is_adversarial(self.goal.predict(x), y, self.goal.targeted)
        origin, n, zeros = self.variable.origin(x), tf.shape(x)[0], tf.zeros_like(x)

        def each(value: float) -> Tensor:
            return tf.fill([n], tf.constant(value, x.dtype))

        return {
            "x": x, "y": y, "origin": origin, "w": origin, "m": zeros, "v": zeros,
            "step": tf.zeros([n], tf.int32), "tried": tf.where(adversarial, self.binary_search_steps, 0),
            "c": each(self.initial_const), "lower": each(0.0), "upper": each(10 * UNBOUNDED),
            "succeeded": tf.zeros([n], tf.bool), "best": x,
            "distance": tf.where(adversarial, each(0.0), each(np.inf)),
            "nearest": each(np.inf), "lowest": each(np.inf), "before": each(np.inf),
        }  # fmt: skip

    def run(self, state: State, count: int) -> State:
        """So many steps, or until all are done."""
        tf = backend.tensorflow()

        def running(i: Tensor, state: State) -> Tensor:
            return (i < count) & tf.reduce_any(state["tried"] < self.binary_search_steps)

        loop = tf.while_loop(running, lambda i, state: (i + 1, self._advance(state)), (0, dict(state)))
        return loop[1]

    def result(self, state: State) -> tuple[Tensor, Tensor]:
        """(points, success): the best points, moved towards x as far as they still succeed."""
        tf = backend.tensorflow()
        x, y, offset = state["x"], state["y"], state["best"] - state["x"]

        def bisect(i: Tensor, near: Tensor, far: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            middle = (near + far) / 2
            logits = self.goal.predict(self.variable.clip(x + per_example(middle) * offset))
            succeeds = tf.equal(self.goal.shortfall(logits, y), 0.0)
            return i + 1, tf.where(succeeds, near, middle), tf.where(succeeds, middle, far)

        initial = 0, tf.zeros_like(state["distance"]), tf.ones_like(state["distance"])
        _, _, far = tf.while_loop(lambda i, *_: i < HALVINGS, bisect, initial)
        moved = (state["distance"] > 0) & tf.math.is_finite(state["distance"])
        nearer = self.variable.clip(x + per_example(far) * offset)
        points = tf.where(per_example(far < 1.0), nearer, state["best"])
        return tf.where(per_example(moved), points, x), tf.math.is_finite(state["distance"])

    def _advance(self, state: State) -> State:
        """One step of Adam in every slot."""
        tf = backend.tensorflow()
        x, y, c, active = state["x"], state["y"], state["c"], state["tried"] < self.binary_search_steps
        point, derivative = self.variable.point(x, state["w"])
        _, penalty, gradient = input_gradient(
            self.goal.predict, point, lambda logits: c * self.goal.shortfall(logits, y)
        )
        succeeds = tf.equal(penalty, 0.0)
        distance, distance_gradient = self.variable.distance(x, point)
        gradient = (replace_nonfinite(gradient) + distance_gradient) * derivative
        better = succeeds & (distance < state["distance"]) & active
        stepped = {
            **state,
            **self._adam(state, gradient),
            "succeeded": state["succeeded"] | succeeds,
            "best": tf.where(per_example(better), point, state["best"]),
            "distance": tf.where(better, distance, state["distance"]),
            "lowest": tf.minimum(state["lowest"], replace_nonfinite(distance + penalty, np.inf)),
        }
        return self._next_constant(*self._check_progress(stepped, active))

    def _adam(self, state: State, gradient: Tensor) -> State:
        tf = backend.tensorflow()
        step = state["step"] + 1
        m = BETAS[0] * state["m"] + (1 - BETAS[0]) * gradient
        v = BETAS[1] * state["v"] + (1 - BETAS[1]) * gradient**2
        t = tf.cast(step, gradient.dtype)
        rate = self.step_size * tf.sqrt(1 - tf.cast(BETAS[1], t.dtype) ** t) / (1 - tf.cast(BETAS[0], t.dtype) ** t)
        return {"w": state["w"] - per_example(rate) * m / (tf.sqrt(v) + EPSILON), "m": m, "v": v, "step": step}

    def _check_progress(self, state: State, active: Tensor) -> tuple[State, Tensor]:
        """(state, bool [n], whose constant is given up).

        The lowest loss of the first window is forgotten: it may be from before a first step that went too far.
        """
        tf = backend.tensorflow()
        window, step = max(1, self.steps // ABORT_WINDOWS), state["step"]
        look, infinite = tf.equal(step % window, 0), tf.fill(tf.shape(step), tf.cast(np.inf, state["lowest"].dtype))
        over = step >= self.steps
        if self.abort_early:
            over |= look & (state["lowest"] > ABORT_LOSS_RATIO * state["before"])
        judged = tf.where(step > window, state["lowest"], infinite)
        opened = {
            "before": tf.where(look, judged, state["before"]),
            "lowest": tf.where(look, infinite, state["lowest"]),
            "succeeded": state["succeeded"] & (over | ~look),
        }
        return {**state, **opened}, over & active

    def _next_constant(self, state: State, over: Tensor) -> State:
        """After each constant: bisect c (x10 until one succeeds), restart from the origin."""
        tf = backend.tensorflow()
        c, succeeded = state["c"], state["succeeded"]
        upper = tf.where(succeeded, tf.minimum(state["upper"], c), state["upper"])
        lower = tf.where(succeeded, state["lower"], tf.maximum(state["lower"], c))
        infinite = tf.fill(tf.shape(c), tf.cast(np.inf, c.dtype))
        tried = state["tried"] + 1
        if self.abort_early:
            useless = succeeded & (state["distance"] > MIN_DISTANCE_RATIO**2 * state["nearest"])
            tried = tf.where(useless, self.binary_search_steps, tried)
        fresh = {
            "c": tf.where(upper < UNBOUNDED, (lower + upper) / 2, 10 * c), "lower": lower, "upper": upper,
            "tried": tried, "nearest": tf.where(succeeded, state["distance"], state["nearest"]),
            "lowest": infinite, "before": infinite, "succeeded": tf.zeros_like(succeeded),
            "step": tf.zeros_like(state["step"]),
            "w": state["origin"], "m": tf.zeros_like(state["m"]), "v": tf.zeros_like(state["v"]),
        }  # fmt: skip

        def reset(name: str, part: Tensor) -> Tensor:
            return tf.where(per_example(over) if len(part.shape) > 1 else over, part, state[name])

        return {**state, **{name: reset(name, part) for name, part in fresh.items()}}

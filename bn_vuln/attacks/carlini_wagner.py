"""The L2 attack of Carlini and Wagner (2017): the nearest image that is classified wrongly, or as a target.

It minimizes ||(x' - x) / scale||_2^2 + c max(z_y - max_{k != y} z_k + confidence, 0) by Adam, and searches for the
smallest c with which it succeeds. Every example has a c, a step counter and an end of its own: one whose loss no longer
falls goes on with its next c at once, and one that is through leaves the batch, which is filled up again.

Where it departs from what was published, distances become shorter or the search does:
- A constant counts as too large if the search succeeds with it after it has settled, in its last tenth or when it
  stops; as published, the first step that goes too far is enough, and c then sinks to where the search finds nothing.
- Whether the loss still falls is judged by the lowest one of every tenth of the steps, from the second one on.
- An example is through when a constant that succeeds no longer brings its point nearer.
- Success asks for a margin above rounding, so that the classifier itself is fooled too where `predict` is a copy of it.
- Where logits or gradients are not finite they pull nowhere, and the distance alone leads back towards x.
- In the end the point is drawn towards x as far as it still succeeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln.attacks.losses import ROUNDING, Predict, input_gradient, is_adversarial, logit_margin, replace_nonfinite
from bn_vuln.attacks.threat_model import Channels, constant, per_example
from bn_vuln.runtime import backend

State = Mapping[str, Any]

BATCH_SIZE = 500
CHUNK = 50  # steps between two looks at who is through
SMALLEST = 16  # slots; a smaller batch is hardly faster
BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's
SHRINK = 0.9999  # of tanh's range, where pixels at the border of the box begin (published: .999999, for more steps)
WINDOWS, PROGRESS = 10, 0.999  # a c is given up if in a tenth of its steps the loss does not fall by a thousandth
GAIN = 0.999  # an example is through if with a c that succeeds the distance does not fall by a thousandth
UNBOUNDED = 1e9  # above it there is no upper bound of c yet: c grows tenfold
HALVINGS = 10  # of the way back to x


def attack(
    predict: Predict,
    x: Any,
    y: Any,
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
) -> tuple[Any, Any]:
    """The nearest points that fool a classifier.

    Args:
        predict: float pixels [n, height, width, channels] -> logits [n, classes], differentiable.
        x: the images, float. y: int labels [n]: the true ones, or the targets of a targeted attack.
        scale: per channel (or one number), in pixels: 1 for distances in pixels, the std for standardized units.
        low, high: the box, per channel (or numbers), in pixels; all infinite for none. With a box the variable is w
            with x' = (low + high) / 2 + (high - low) / 2 tanh(w), without one it is (x' - x) / scale.
        confidence: what the logit of the other class (or the target) must be ahead by, at points that are found.
        steps: of Adam, for each constant, at most; `step_size`: its learning rate, in units of the variable.
        binary_search_steps: how many constants are tried, the first one `initial_const`.
        abort_early: give a constant up where the loss no longer falls, and an example where constants no longer help.
        batch_size: examples that are searched for at the same time. xla: compile the steps with XLA.
        advanced: told from time to time how many examples are through.

    Returns:
        (x_adv of the shape and dtype of x, found bool [n]). Images that are fooled already, by whatever margin or with
        logits that are not finite, are returned as they are, found; those for which nothing was found are returned as
        they are, not found.

    Raises `ValueError` for a box that is open at one side.
    """
    tf = backend.tensorflow()
    space = _Space(scale, low, high)
    goal = _Goal(predict, confidence, targeted)
    search = _Search(space, goal, steps, step_size, binary_search_steps, initial_const, abort_early)
    if tf.inside_function():  # a graph has no host that could leave examples out
        x, y = tf.convert_to_tensor(x), tf.convert_to_tensor(y)
        return search.result(search.run(search.start(x, y), steps * binary_search_steps))
    points, found = _Batches(search, np.asarray(x), np.asarray(y), batch_size, xla).run(on_progress)
    return tf.constant(points), tf.constant(found)


class _Batches:
    """Examples take turns in the slots of a batch: after each chunk of steps the host reads who is through. All images
    are on the host, those that hold a slot on the device.

    `holder` int64 [slots]: whose slot it is, -1 for nobody's.
    """

    def __init__(self, search: _Search, x: NDArray[Any], y: NDArray[Any], batch_size: int, xla: bool) -> None:
        tf = backend.tensorflow()
        self.search, self.x, self.y, self.n = search, x, y, len(x)
        self.points, self.found = x.copy(), np.zeros(self.n, bool)
        images = [tf.TensorSpec((None, *array.shape[1:]), array.dtype) for array in (x, y)]
        self._start = backend.compile(search.start, signature=images)
        self.holder = np.arange(min(batch_size, self.n))
        self.waiting = np.arange(len(self.holder), self.n)
        self.state = self._enter(self.holder)
        spec = {name: tf.TensorSpec((None, *part.shape[1:]), part.dtype) for name, part in self.state.items()}
        self._chunk = backend.compile(lambda state: search.run(state, CHUNK), signature=[spec], xla=xla)
        self._result = backend.compile(search.result, signature=[spec])

    def run(self, on_progress: Callable[[int], None]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """(points, found), as `attack`."""
        while len(self.holder):
            through = self._through()
            if self._worth_changing(through):
                self._take_out(np.flatnonzero(through & (self.holder >= 0)))
                self._change(through)
                on_progress(self.n - len(self.waiting) - int(np.sum(self.holder >= 0)))
            if len(self.holder):
                self.state = self._chunk(self.state)
        return self.points, self.found

    def _enter(self, examples: NDArray[np.int64]) -> State:
        tf = backend.tensorflow()
        return self._start(tf.constant(self.x[examples]), tf.constant(self.y[examples]))

    def _through(self) -> NDArray[np.bool_]:
        return np.asarray(self.state["tried"]) >= self.search.binary_search_steps

    def _worth_changing(self, through: NDArray[np.bool_]) -> bool:
        """Whether enough slots stand idle to be filled, or so many that half of the batch will do."""
        idle, size = int(through.sum()), len(through)
        if len(self.waiting):
            return idle >= max(1, size // 16)
        return idle == size or _fitting(size, size - idle) < size

    def _take_out(self, slots: NDArray[np.int64]) -> None:
        """Keep what was found for the examples in these slots."""
        tf = backend.tensorflow()
        points, found = self._result({name: tf.gather(part, slots) for name, part in self.state.items()})
        self.points[self.holder[slots]], self.found[self.holder[slots]] = np.asarray(points), np.asarray(found)

    def _change(self, through: NDArray[np.bool_]) -> None:
        """Those that go on, then those that waited, then idle slots where the batch is not full."""
        tf = backend.tensorflow()
        stay, idle = np.flatnonzero(~through), np.flatnonzero(through)
        new, self.waiting = self.waiting[: len(idle)], self.waiting[len(idle) :]
        needed = len(stay) + len(new)
        padding = idle[: _fitting(len(through), needed) - needed] if needed else idle[:0]
        slots = np.concatenate([stay, len(through) + np.arange(len(new)), padding])
        pool = self.state
        if len(new):
            entering = self._enter(new)
            pool = {name: tf.concat([part, entering[name]], axis=0) for name, part in pool.items()}
        self.state = {name: tf.gather(part, slots) for name, part in pool.items()}
        self.holder = np.concatenate([self.holder[stay], new, np.full(len(padding), -1)])


def _fitting(size: int, needed: int) -> int:
    """The size of a batch of so many slots, halved as long as what is needed fits: few sizes, for XLA compiles each."""
    while size > SMALLEST and size // 2 >= needed:
        size //= 2
    return size


@dataclass(frozen=True)
class _Space:
    """Where points are searched for: x' = x + scale w, or with a box x' = middle + half tanh(w)."""

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

    def origin(self, x: Any) -> Any:
        """The variable at x, or just inside of the box, where tanh has a slope."""
        tf = backend.tensorflow()
        if not self.bounded:
            return tf.zeros_like(x)
        middle, half = self._box(x)
        return tf.atanh(SHRINK * tf.clip_by_value((x - middle) / half, -1.0, 1.0))

    def point(self, x: Any, w: Any) -> tuple[Any, Any]:
        """(the point at w, its derivative with respect to w)."""
        tf = backend.tensorflow()
        if not self.bounded:
            scale = constant(self.scale, x)
            return x + scale * w, scale
        middle, half = self._box(x)
        squashed = tf.tanh(w)
        return self.inside(middle + half * squashed), half * (1.0 - squashed**2)

    def inside(self, point: Any) -> Any:
        """The point in the box: rounding may have brought it out."""
        if not self.bounded:
            return point
        low, high = constant(self.low, point), constant(self.high, point)
        return backend.tensorflow().clip_by_value(point, low, high)

    def distance(self, x: Any, point: Any) -> tuple[Any, Any]:
        """(squared L2 distance [n] in units of scale, its gradient with respect to the point)."""
        tf = backend.tensorflow()
        scale = constant(self.scale, x)
        offset = (point - x) / scale
        return tf.reduce_sum(offset**2, axis=list(range(1, len(x.shape)))), 2.0 * offset / scale

    def _box(self, like: Any) -> tuple[Any, Any]:
        low, high = (np.asarray(bound, np.float64) for bound in (self.low, self.high))
        return constant((low + high) / 2, like), constant((high - low) / 2, like)


@dataclass(frozen=True)
class _Goal:
    """What makes a point adversarial."""

    predict: Predict
    confidence: float
    targeted: bool

    def is_adversarial(self, x: Any, y: Any) -> Any:
        """bool [n]: the class is wrong, or the target."""
        return is_adversarial(self.predict(x), y, self.targeted)

    def missing(self, logits: Any, y: Any) -> Any:
        """What the logits lack of the margin that is asked for, [n]; 0 where their point succeeds."""
        tf = backend.tensorflow()
        ahead = logit_margin(logits, y)
        above = ROUNDING * tf.stop_gradient(tf.reduce_max(tf.abs(logits), axis=1))
        wanted = tf.maximum(tf.cast(self.confidence, logits.dtype), above)
        return tf.nn.relu(wanted + (ahead if self.targeted else -ahead))


@dataclass(frozen=True)
class _Search:
    """The search of every slot.

    `w`, Adam's `m` and `v`, the `step` with this constant `c`, how many were `tried`, the interval (`lower`, `upper`)
    of c; whether this one `hit` in this window of steps, the `lowest` loss of it and of the one `before`; the `best`
    point, its squared `distance`, and what that was when a constant last hit (`nearest`).
    """

    space: _Space
    goal: _Goal
    steps: int
    step_size: float
    binary_search_steps: int
    initial_const: float
    abort_early: bool

    def start(self, x: Any, y: Any) -> State:
        """The state before the first step; an example that is fooled already is through."""
        tf = backend.tensorflow()
        is_adversarial, origin = self.goal.is_adversarial(x, y), self.space.origin(x)
        n, zeros = tf.shape(x)[0], tf.zeros_like(x)

        def each(value: float) -> Any:
            return tf.fill([n], tf.constant(value, x.dtype))

        return {
            "x": x, "y": y, "origin": origin, "w": origin, "m": zeros, "v": zeros,
            "step": tf.zeros([n], tf.int32), "tried": tf.where(is_adversarial, self.binary_search_steps, 0),
            "c": each(self.initial_const), "lower": each(0.0), "upper": each(10 * UNBOUNDED),
            "hit": tf.zeros([n], tf.bool), "best": x, "distance": tf.where(is_adversarial, each(0.0), each(np.inf)),
            "nearest": each(np.inf), "lowest": each(np.inf), "before": each(np.inf),
        }  # fmt: skip

    def run(self, state: State, count: int) -> State:
        """So many steps, or until all are through."""
        tf = backend.tensorflow()

        def going(i: Any, state: State) -> Any:
            return (i < count) & tf.reduce_any(state["tried"] < self.binary_search_steps)

        loop = tf.while_loop(going, lambda i, state: (i + 1, self._advance(state)), (0, dict(state)))
        return loop[1]

    def result(self, state: State) -> tuple[Any, Any]:
        """(points, found): the best ones, drawn towards x as far as they still succeed."""
        tf = backend.tensorflow()
        x, y, way = state["x"], state["y"], state["best"] - state["x"]

        def halve(i: Any, near: Any, far: Any) -> tuple[Any, Any, Any]:
            middle = (near + far) / 2
            logits = self.goal.predict(self.space.inside(x + per_example(middle) * way))
            succeeds = tf.equal(self.goal.missing(logits, y), 0.0)
            return i + 1, tf.where(succeeds, near, middle), tf.where(succeeds, middle, far)

        begun = 0, tf.zeros_like(state["distance"]), tf.ones_like(state["distance"])
        _, _, far = tf.while_loop(lambda i, *_: i < HALVINGS, halve, begun)
        moved = (state["distance"] > 0) & tf.math.is_finite(state["distance"])
        drawn = tf.where(per_example(far < 1.0), self.space.inside(x + per_example(far) * way), state["best"])
        return tf.where(per_example(moved), drawn, x), tf.math.is_finite(state["distance"])

    def _advance(self, state: State) -> State:
        """One step of Adam in every slot."""
        tf = backend.tensorflow()
        x, y, c, active = state["x"], state["y"], state["c"], state["tried"] < self.binary_search_steps
        point, derivative = self.space.point(x, state["w"])
        _, weighted, pull = input_gradient(self.goal.predict, point, lambda logits: c * self.goal.missing(logits, y))
        hit = tf.equal(weighted, 0.0)
        distance, back = self.space.distance(x, point)
        slope = (replace_nonfinite(pull) + back) * derivative
        better = hit & (distance < state["distance"]) & active
        stepped = {
            **state,
            **self._adam(state, slope),
            "hit": state["hit"] | hit,
            "best": tf.where(per_example(better), point, state["best"]),
            "distance": tf.where(better, distance, state["distance"]),
            "lowest": tf.minimum(state["lowest"], replace_nonfinite(distance + weighted, np.inf)),
        }
        return self._next_constant(*self._stalled(stepped, active))

    def _adam(self, state: State, slope: Any) -> dict[str, Any]:
        tf = backend.tensorflow()
        step = state["step"] + 1
        m = BETAS[0] * state["m"] + (1 - BETAS[0]) * slope
        v = BETAS[1] * state["v"] + (1 - BETAS[1]) * slope**2
        t = tf.cast(step, slope.dtype)
        rate = self.step_size * tf.sqrt(1 - tf.cast(BETAS[1], t.dtype) ** t) / (1 - tf.cast(BETAS[0], t.dtype) ** t)
        return {"w": state["w"] - per_example(rate) * m / (tf.sqrt(v) + EPSILON), "m": m, "v": v, "step": step}

    def _stalled(self, state: State, active: Any) -> tuple[State, Any]:
        """(state, bool [n] who is through with this constant). The lowest loss of the first window is forgotten: it may
        be from before a first step that went too far."""
        tf = backend.tensorflow()
        window, step = max(1, self.steps // WINDOWS), state["step"]
        look, infinite = tf.equal(step % window, 0), tf.fill(tf.shape(step), tf.cast(np.inf, state["lowest"].dtype))
        over = step >= self.steps
        if self.abort_early:
            over |= look & (state["lowest"] > PROGRESS * state["before"])
        judged = tf.where(step > window, state["lowest"], infinite)
        opened = {
            "before": tf.where(look, judged, state["before"]),
            "lowest": tf.where(look, infinite, state["lowest"]),
            "hit": state["hit"] & (over | ~look),
        }
        return {**state, **opened}, over & active

    def _next_constant(self, state: State, over: Any) -> State:
        """Where it is over: bisection of c (tenfold as long as nothing hit), and back to the origin."""
        tf = backend.tensorflow()
        c, hit = state["c"], state["hit"]
        upper = tf.where(hit, tf.minimum(state["upper"], c), state["upper"])
        lower = tf.where(hit, state["lower"], tf.maximum(state["lower"], c))
        infinite = tf.fill(tf.shape(c), tf.cast(np.inf, c.dtype))
        tried = state["tried"] + 1
        if self.abort_early:
            useless = hit & (state["distance"] > GAIN**2 * state["nearest"])
            tried = tf.where(useless, self.binary_search_steps, tried)
        fresh = {
            "c": tf.where(upper < UNBOUNDED, (lower + upper) / 2, 10 * c), "lower": lower, "upper": upper,
            "tried": tried, "nearest": tf.where(hit, state["distance"], state["nearest"]),
            "lowest": infinite, "before": infinite, "hit": tf.zeros_like(hit), "step": tf.zeros_like(state["step"]),
            "w": state["origin"], "m": tf.zeros_like(state["m"]), "v": tf.zeros_like(state["v"]),
        }  # fmt: skip
        chosen = {name: tf.where(_like(over, part), part, state[name]) for name, part in fresh.items()}
        return {**state, **chosen}


def _like(mask: Any, part: Any) -> Any:
    return per_example(mask) if len(part.shape) > 1 else mask

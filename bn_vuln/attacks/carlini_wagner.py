"""The L2 attack of Carlini and Wagner (2017): the nearest image that is misclassified, or classified as a target.

It minimizes ||(x' - x) / scale||_2^2 + c max(z_y - max_{k != y} z_k + confidence, 0) by Adam, and searches for the
smallest c with which it succeeds. Every example has a c, a step counter and an end of its own: one whose loss no longer
falls goes on with its next c at once, and one that is done leaves the batch, which is filled up again.

Where it departs from what was published, distances become shorter or the search does:
- A constant counts as too large if the search succeeds with it after it has settled, in its last tenth or when it
  stops. As published, the first step that goes too far is enough, and c then sinks to where the search fails.
- Whether the loss still falls is judged by the lowest one of every tenth of the steps, from the second one on.
- An example is done when a constant that succeeds no longer brings its point nearer.
- Success asks for a margin above rounding.
- Logits or gradients that are not finite have no effect, and the distance alone leads back towards x.
- In the end the point is moved towards x as far as it still succeeds (`move_towards`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bn_vuln.attacks.base import State, StepResult, select
from bn_vuln.attacks.losses import ROUNDING, input_gradient, largest, logit_margin, replace_nonfinite
from bn_vuln.attacks.threat_model import ThreatModel, as_tensor_like, per_example
from bn_vuln.runtime import ops
from bn_vuln.typing import Images, Mask, Predict, Tensor

BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's
SHRINK = 0.9999  # of tanh's range, where pixels at the border of the box begin (published: .999999, for more steps)
ABORT_WINDOWS = 10  # the loss is checked after each tenth of the steps of a c,
ABORT_LOSS_RATIO = 0.999  # and the c is given up if the loss fell by less than 0.1% since the last check
MIN_DISTANCE_RATIO = 0.999  # an example is done if with a c that succeeds the distance falls by less than 0.1%
UNBOUNDED = 1e9  # above it there is no upper bound of c yet: c grows tenfold
HALVINGS = 10  # of the way back to x


@dataclass(frozen=True)
class CarliniWagner:
    """The attack for the active set, which keeps the `best_loss`: that of a success is minus its squared distance.

    Other points have no loss, so that examples without a success keep their clean image. Eps has no effect.

    Its state has `w` (the variable), Adam's `m` and `v`, the `step` with this constant `c`, how many were `tried`, the
    interval (`lower`, `upper`) of c; `succeeded` with this one in this window of steps, the `lowest` loss of this
    window and of the one `before`; the squared `distance` of the nearest success, and that when a constant last
    succeeded (`nearest`).

    Attributes:
        predict: pixels [n, height, width, channels] -> logits [n, classes], differentiable.
        threat_model: scale and box. With a box the variable is w with x' = (low + high) / 2 + (high - low) / 2 tanh(w),
            without one it is (x' - x) / scale.
        steps_per_constant: steps of Adam for each constant, at most.
        step_size: learning rate of Adam, in units of the variable.
        binary_search_steps: number of constants.
        initial_const: the first constant.
        confidence: the margin in nats by which the logit of the other class (or the target) must be ahead.
        targeted: look for the job's target.
        abort_early: give a constant up when the loss no longer falls, and an example when constants no longer help.
    """

    predict: Predict
    threat_model: ThreatModel
    steps_per_constant: int = 1000
    step_size: float = 0.01
    binary_search_steps: int = 9
    initial_const: float = 1e-3
    confidence: float = 0.0
    targeted: bool = False
    abort_early: bool = True

    def __post_init__(self) -> None:
        bounds = (self.threat_model.low, self.threat_model.high)
        if len({bool(part) for bound in bounds for part in np.isfinite(bound).ravel()}) > 1:
            raise ValueError(f"low {bounds[0]}, high {bounds[1]}: expected a box that is finite at all sides, or none")

    @property
    def steps(self) -> int:
        """Steps of all constants together, at most."""
        return self.steps_per_constant * self.binary_search_steps

    def start(self, job: State) -> State:
        """Start at x, or just inside of the box, with the first constant."""
        x, eps = job["x"], job["eps"]
        w, zeros, infinite = self._origin(x), ops.zeros_like(x), ops.full_like(eps, np.inf)
        none = ops.zeros_like(job["index"])
        return {
            "point": self._point(x, w)[0], "w": w, "m": zeros, "v": zeros, "step": none, "tried": none,
            "c": ops.full_like(eps, self.initial_const), "lower": ops.zeros_like(eps),
            "upper": ops.full_like(eps, 10 * UNBOUNDED), "succeeded": ops.cast(none, "bool"),
            "distance": infinite, "nearest": infinite, "lowest": infinite, "before": infinite,
        }  # fmt: skip

    def advance(self, state: State) -> StepResult:
        """Take one step of Adam; after the last one with a constant, choose the next."""
        x, point, label = state["x"], state["point"], state["target" if self.targeted else "y"]
        derivative = self._point(x, state["w"])[1]
        _, penalty, gradient = input_gradient(
            self.predict, point, lambda logits: state["c"] * self._shortfall(logits, label)
        )
        succeeds = ops.equal(penalty, 0.0)
        scale = as_tensor_like(self.threat_model.scale, x)
        offset = (point - x) / scale
        distance = ops.sum(offset**2, axis=(1, 2, 3))
        gradient = (replace_nonfinite(gradient) + 2.0 * offset / scale) * derivative
        stepped = {
            **state,
            **self._adam(state, gradient),
            "succeeded": state["succeeded"] | succeeds,
            "distance": ops.where(succeeds, ops.minimum(distance, state["distance"]), state["distance"]),
            "lowest": ops.minimum(state["lowest"], replace_nonfinite(distance + penalty, np.inf)),
        }
        following = self._next_constant(*self._check_progress(stepped))
        following = {**following, "point": self._point(x, following["w"])[0]}
        loss = ops.where(succeeds, -distance, -np.inf)
        return StepResult(following, succeeds, loss, following["tried"] >= self.binary_search_steps)

    def succeeds(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return whether logits [n, classes] are those of a success, bool [n]; y are labels, or targets."""
        return ops.equal(self._shortfall(logits, y), 0.0)

    def _shortfall(self, logits: Tensor, y: Tensor) -> Tensor:
        """The margin that the logits lack, [n]; 0 where their point succeeds."""
        margin = logit_margin(logits, y)
        wanted = ops.maximum(ops.stop_gradient(ROUNDING * largest(logits)), self.confidence)
        lacking: Tensor = ops.relu(wanted + (margin if self.targeted else -margin))
        return lacking

    @property
    def _bounded(self) -> bool:
        return bool(np.isfinite(self.threat_model.low).all())

    def _origin(self, x: Tensor) -> Tensor:
        """The variable at x, or just inside of the box, where tanh has a slope."""
        if not self._bounded:
            return ops.zeros_like(x)
        middle, half = self._box(x)
        origin: Tensor = ops.arctanh(SHRINK * ops.clip((x - middle) / half, -1.0, 1.0))
        return origin

    def _point(self, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """(the point at w, its derivative with respect to w)."""
        if not self._bounded:
            scale = as_tensor_like(self.threat_model.scale, x)
            return x + scale * w, scale
        middle, half = self._box(x)
        low, high = (as_tensor_like(bound, x) for bound in (self.threat_model.low, self.threat_model.high))
        squashed = ops.tanh(w)  # rounding may bring the point out of the box
        return ops.clip(middle + half * squashed, low, high), half * (1.0 - squashed**2)

    def _box(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """(middle, half width)."""
        low, high = (np.asarray(bound, np.float64) for bound in (self.threat_model.low, self.threat_model.high))
        return as_tensor_like((low + high) / 2, like), as_tensor_like((high - low) / 2, like)

    def _adam(self, state: State, gradient: Tensor) -> State:
        step = state["step"] + 1
        m = BETAS[0] * state["m"] + (1 - BETAS[0]) * gradient
        v = BETAS[1] * state["v"] + (1 - BETAS[1]) * gradient**2
        first, second = (1 - as_tensor_like(beta, gradient) ** ops.cast(step, gradient.dtype) for beta in BETAS)
        rate = self.step_size * ops.sqrt(second) / first
        return {"w": state["w"] - per_example(rate) * m / (ops.sqrt(v) + EPSILON), "m": m, "v": v, "step": step}

    def _check_progress(self, state: State) -> tuple[State, Tensor]:
        """(state, bool [n], whose constant is given up).

        The lowest loss of the first window is forgotten: it may be from before a first step that went too far.
        """
        window, step = max(1, self.steps_per_constant // ABORT_WINDOWS), state["step"]
        look, over = ops.equal(step % window, 0), step >= self.steps_per_constant
        if self.abort_early:
            over |= look & (state["lowest"] > ABORT_LOSS_RATIO * state["before"])
        judged = ops.where(step > window, state["lowest"], np.inf)
        opened = {
            "before": ops.where(look, judged, state["before"]),
            "lowest": ops.where(look, np.inf, state["lowest"]),
            "succeeded": state["succeeded"] & (over | ops.logical_not(look)),
        }
        return {**state, **opened}, over

    def _next_constant(self, state: State, over: Tensor) -> State:
        """After each constant: bisect c (x10 until one succeeds), restart from the origin."""
        c, succeeded = state["c"], state["succeeded"]
        upper = ops.where(succeeded, ops.minimum(state["upper"], c), state["upper"])
        lower = ops.where(succeeded, state["lower"], ops.maximum(state["lower"], c))
        infinite, tried = ops.full_like(c, np.inf), state["tried"] + 1
        if self.abort_early:
            useless = succeeded & (state["distance"] > MIN_DISTANCE_RATIO**2 * state["nearest"])
            tried = ops.where(useless, self.binary_search_steps, tried)
        fresh = {
            "c": ops.where(upper < UNBOUNDED, (lower + upper) / 2, 10 * c), "lower": lower, "upper": upper,
            "tried": tried, "nearest": ops.where(succeeded, state["distance"], state["nearest"]),
            "lowest": infinite, "before": infinite, "succeeded": ops.zeros_like(succeeded),
            "step": ops.zeros_like(state["step"]), "w": self._origin(state["x"]),
            "m": ops.zeros_like(state["m"]), "v": ops.zeros_like(state["v"]),
        }  # fmt: skip
        chosen = {name: select(over, part, state[name]) for name, part in fresh.items()}
        return {**chosen, "distance": state["distance"]}


def move_towards(x: Images, points: Images, succeeds: Callable[[Images], Mask]) -> Images:
    """Return points moved towards x as far as they still succeed, by bisection.

    Args:
        x: clean images [n, height, width, channels], in pixels and in the box, which do not succeed.
        points: points that do, of the same shape.
        succeeds: the test of points, images [n, ...] -> bool [n].

    Returns:
        Points between both, of the same shape.
    """
    near, far, offset = np.zeros(len(x), x.dtype), np.ones(len(x), x.dtype), points - x
    for _ in range(HALVINGS):
        middle = (near + far) / 2
        done = succeeds(x + per_example(middle) * offset)
        near, far = np.where(done, near, middle), np.where(done, middle, far)
    return np.where(per_example(far < 1.0), x + per_example(far) * offset, points)

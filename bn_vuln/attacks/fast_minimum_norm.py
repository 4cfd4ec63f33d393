"""FMN, the fast minimum-norm attack (Pintor et al. 2021, algorithm 1), as a search of the active set.

Every example has a radius of its own: it shrinks while the example is fooled, grows while it is not, and is at first
what a linear classifier would need. The point takes a step up the difference of logits, and is projected into the ball
of that radius around x. Step sizes decay by half a cosine.

Two things are ours:

- Until an example is fooled its radius grows from step to step beyond what a linear classifier needs. With just that,
  the logits of a linear one are equal, so that nothing is fooled; and in a corner of the box, which does not let the
  point go as far as its radius, that estimate would stay the same for ever.
- What fools has a margin above rounding, so that the classifier itself is fooled too where `predict` is a copy of it,
  and what is nearer is so by more than rounding: points that are equally near are common, for a radius often is that of
  the nearest one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bn_vuln.attacks.base import Slots, StepResult
from bn_vuln.attacks.losses import ROUNDING, Predict, input_gradient, is_adversarial, logit_margin
from bn_vuln.attacks.threat_model import ThreatModel, per_example
from bn_vuln.runtime import backend

ALPHA_DECAY, GAMMA_FINAL = 0.01, 0.001  # the last step is a hundredth of the first; what gamma decays to


@dataclass(frozen=True)
class FMN:
    """`steps` steps from x. It is not random: variants are all the same.

    With a budget, the job's eps, it is over at the first point within it that fools; points outside of it, where FMN
    may come from, are never kept. With `minimal` it makes all of its steps, and the last point of each example is the
    nearest one that fooled it, which is then reported if it lies within eps: any radius that is large enough, but
    finite, for the engine takes an infinite one for none.

    Args:
        predict: float pixels [n, height, width, channels] -> logits [n, classes], differentiable.
        ball: norm, scale and box; the radius is the job's.
        alpha_init: length of the first step, the L2 norm in units of the ball's scale (for inf too, as published).
        gamma_init: share by which the radius changes, at first.
        minimal: search for the smallest norm, as published, rather than for a point within eps. Tests hold the other
            to it.
    """

    predict: Predict
    threat_model: ThreatModel
    steps: int = 100
    alpha_init: float = 1.0
    gamma_init: float = 0.05
    minimal: bool = False

    def start(self, job: Slots) -> dict[str, Any]:
        """At x, in a ball without an end. `nearest` is the smallest norm of a point that fooled."""
        tf = backend.tensorflow()
        x = job["x"]
        infinite = tf.fill(tf.shape(job["eps"]), tf.constant(np.inf, x.dtype))
        state = {"point": x, "radius": infinite, "nearest": infinite}
        return {**state, "best": x} if self.minimal else state

    def advance(self, slots: Slots) -> StepResult:
        """One gradient."""
        tf = backend.tensorflow()
        x, point = slots["x"], slots["point"]
        logits, ahead, slope = input_gradient(self.predict, point, lambda logits: logit_margin(logits, slots["y"]))
        norm = self.threat_model.norm(point - x)
        hit = ahead > ROUNDING * tf.reduce_max(tf.abs(logits), axis=1)
        nearer = hit & (norm < (1.0 - ROUNDING) * slots["nearest"])
        nearest = tf.where(nearer, norm, slots["nearest"])
        alpha, gamma = self._step_sizes(slots["i"], x)
        distance = tf.math.divide_no_nan(tf.abs(ahead), self.threat_model.dual_norm(slope))
        beyond = (1.0 + self.gamma_init) ** tf.cast(slots["i"] + 1, x.dtype)
        shrunk = tf.minimum(slots["radius"] * (1.0 - gamma), nearest)
        grown = tf.where(tf.math.is_finite(nearest), slots["radius"] * (1.0 + gamma), (norm + distance) * beyond)
        radius = tf.minimum(tf.where(hit, shrunk, grown), self.threat_model.max_distance(x))
        # The step has length alpha in L2 whatever the norm of the ball.
        moved = replace(self.threat_model, ord="2").step(point, slope, per_example(alpha))
        state = {"point": self.threat_model.with_eps(radius).project(moved, x), "radius": radius, "nearest": nearest}
        if self.minimal:
            state = self._ending(slots, state, nearer)
        return self._seen(slots, state, is_adversarial(logits, slots["y"]), norm, ahead)

    def _ending(self, slots: Slots, state: dict[str, Any], nearer: Any) -> dict[str, Any]:
        """The state with the `best` point, to which the last move leads."""
        tf = backend.tensorflow()
        best = tf.where(per_example(nearer), slots["point"], slots["best"])
        last = (slots["i"] >= self.steps - 1) & tf.math.is_finite(state["nearest"])
        return {**state, "best": best, "point": tf.where(per_example(last), best, state["point"])}

    def _seen(self, slots: Slots, state: dict[str, Any], hit: Any, norm: Any, ahead: Any) -> StepResult:
        """Only within eps are points kept. The loss is the difference of logits, with `minimal` minus the norm of
        points that fool."""
        tf = backend.tensorflow()
        within = norm <= slots["eps"]
        over = hit & within
        if self.minimal:
            ahead = tf.where(hit, -norm, ahead)
            over &= slots["i"] >= self.steps
        return StepResult(state, over, tf.where(within, ahead, tf.constant(-np.inf, ahead.dtype)))

    def _step_sizes(self, i: Any, like: Any) -> tuple[Any, Any]:
        """(alpha, gamma) [n]: both decay by half a cosine."""
        tf = backend.tensorflow()
        share = (1.0 + tf.cos(math.pi * tf.cast(i, like.dtype) / max(1, self.steps))) / 2.0
        alpha_final = ALPHA_DECAY * self.alpha_init
        alpha = alpha_final + (self.alpha_init - alpha_final) * share
        return alpha, GAMMA_FINAL + (self.gamma_init - GAMMA_FINAL) * share

"""FMN, the fast minimum-norm attack (Pintor et al. 2021, algorithm 1), for the active set.

Every example has a radius of its own: it shrinks while the point is adversarial, grows while it is not, and is at first
what a linear classifier would need. The point takes a step up the logit margin, and is projected onto the ball of that
radius around x. Step sizes decay by half a cosine.

Two things are not in the paper:

- Until an example has an adversarial point its radius grows from step to step beyond what a linear classifier needs.
  With just that, the logits of a linear one are equal, so that no point is adversarial. And in a corner of the box,
  which does not let the point go as far as its radius, that estimate would stay the same for ever.
- An adversarial point has a margin above rounding, so that the classifier itself is fooled too where `predict` is a
  copy of it, and a nearer one is nearer by more than rounding: points that are equally near are common, for a radius
  often is that of the nearest one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from bn_vuln.attacks.base import State, StepResult
from bn_vuln.attacks.losses import ROUNDING, input_gradient, is_adversarial, logit_margin
from bn_vuln.attacks.threat_model import ThreatModel, per_example
from bn_vuln.runtime import ops
from bn_vuln.typing import Predict, Tensor

ALPHA_DECAY, GAMMA_FINAL = 0.01, 0.001  # the last step is a hundredth of the first; the last gamma


@dataclass(frozen=True)
class FMN:
    """FMN for the active set. It is not random: attempts are all the same.

    With a budget, the job's eps, it is over at the first adversarial point within eps. Points outside of it, where FMN
    may come from, are never kept.

    With `minimum_norm` it takes all of its steps, and the last point of each example is its nearest adversarial one,
    which is then reported if it lies within eps. Eps may be any radius that is large enough, but must be finite: the
    active set takes an infinite one for no success.

    Attributes:
        predict: pixels [n, height, width, channels] -> logits [n, classes], differentiable.
        threat_model: norm, scale and box; eps is the job's.
        steps: gradient steps.
        alpha_init: length of the first step, the L2 norm in units of the scale (for inf too, as published).
        gamma_init: share by which the radius changes, at first.
        minimum_norm: search for the smallest norm, as published, rather than for a point within eps. Tests hold the
            other to it.
    """

    predict: Predict
    threat_model: ThreatModel
    steps: int = 100
    alpha_init: float = 1.0
    gamma_init: float = 0.05
    minimum_norm: bool = False

    def start(self, job: State) -> State:
        """Start at x, with an infinite radius; `nearest` is the smallest norm of an adversarial point."""
        x = job["x"]
        infinite = ops.full_like(job["eps"], np.inf)
        state = {"point": x, "radius": infinite, "nearest": infinite}
        return {**state, "best": x} if self.minimum_norm else state

    def advance(self, state: State) -> StepResult:
        """Evaluate one gradient, adapt the radius, step, and project."""
        x, point = state["x"], state["point"]
        logits, margin, gradient = input_gradient(self.predict, point, lambda logits: logit_margin(logits, state["y"]))
        norm = self.threat_model.norm(point - x)
        succeeds = is_adversarial(logits, state["y"])
        nearer = succeeds & (norm < (1.0 - ROUNDING) * state["nearest"])
        nearest = ops.where(nearer, norm, state["nearest"])
        alpha, gamma = self._step_sizes(state["i"], x)
        distance = ops.divide_no_nan(ops.abs(margin), self.threat_model.dual_norm(gradient))
        beyond = (1.0 + self.gamma_init) ** ops.cast(state["i"] + 1, x.dtype)
        shrunk = ops.minimum(state["radius"] * (1.0 - gamma), nearest)
        grown = ops.where(ops.isfinite(nearest), state["radius"] * (1.0 + gamma), (norm + distance) * beyond)
        radius = ops.minimum(ops.where(succeeds, shrunk, grown), self.threat_model.max_distance(x))
        # The step has length alpha in L2 whatever the norm of the ball.
        moved = replace(self.threat_model, ord="2").step(point, gradient, per_example(alpha))
        moved = self.threat_model.with_eps(radius).project(moved, x)
        next_state = {"point": moved, "radius": radius, "nearest": nearest}
        if self.minimum_norm:
            best = ops.where(per_example(nearer), point, state["best"])
            last = (state["i"] >= self.steps - 1) & ops.isfinite(nearest)
            next_state |= {"best": best, "point": ops.where(per_example(last), best, moved)}
        return self._result(state, next_state, succeeds, norm, margin)

    def _result(self, state: State, next_state: State, adversarial: Tensor, norm: Tensor, margin: Tensor) -> StepResult:
        """Points count within eps only; the loss is the margin, with `minimum_norm` minus the norm of a success."""
        within = norm <= state["eps"]
        done = adversarial & within
        if self.minimum_norm:
            margin = ops.where(adversarial, -norm, margin)
            done &= state["i"] >= self.steps
        return StepResult(next_state, done, ops.where(within, margin, -np.inf))

    def _step_sizes(self, i: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, gamma) [n]: both decay by half a cosine."""
        share = (1.0 + ops.cos(math.pi * ops.cast(i, like.dtype) / max(1, self.steps))) / 2.0
        alpha_final = ALPHA_DECAY * self.alpha_init
        alpha = alpha_final + (self.alpha_init - alpha_final) * share
        return alpha, GAMMA_FINAL + (self.gamma_init - GAMMA_FINAL) * share

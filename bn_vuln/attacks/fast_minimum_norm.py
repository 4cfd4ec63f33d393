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

    Its budget is the job's eps: points outside of it, where FMN may come from, neither succeed nor are kept.

    Attributes:
        predict: pixels [n, height, width, channels] -> logits [n, classes], differentiable.
        threat_model: norm, scale and box; eps is the job's.
        steps: gradient steps.
        alpha_init: length of the first step, the L2 norm in units of the scale (for inf too, as published).
        gamma_init: share by which the radius changes, at first.
    """

    predict: Predict
    threat_model: ThreatModel
    steps: int = 100
    alpha_init: float = 1.0
    gamma_init: float = 0.05

    def start(self, job: State) -> State:
        """Start at x, with an infinite radius; `nearest` is the smallest norm of an adversarial point."""
        infinite = ops.full_like(job["eps"], np.inf)
        return {"point": job["x"], "radius": infinite, "nearest": infinite}

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
        within = norm <= state["eps"]
        next_state = {"point": moved, "radius": radius, "nearest": nearest}
        return StepResult(next_state, succeeds & within, ops.where(within, margin, -np.inf))

    def _step_sizes(self, i: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, gamma) [n]: both decay by half a cosine."""
        share = (1.0 + ops.cos(math.pi * ops.cast(i, like.dtype) / max(1, self.steps))) / 2.0
        alpha_final = ALPHA_DECAY * self.alpha_init
        alpha = alpha_final + (self.alpha_init - alpha_final) * share
        return alpha, GAMMA_FINAL + (self.gamma_init - GAMMA_FINAL) * share

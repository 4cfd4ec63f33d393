"""Gradient attacks: FGSM, BIM and PGD are one search with different settings.

Goodfellow et al. 2015 (FGSM: one step of eps), Kurakin et al. 2017 (BIM: from the image), Madry et al. 2018 (PGD: from
a random point of the eps ball).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bn_vuln.attacks.base import State, StepResult
from bn_vuln.attacks.losses import input_gradient, is_adversarial, log_odds, logit_margin
from bn_vuln.attacks.threat_model import ThreatModel, per_example
from bn_vuln.typing import Predict, Tensor


@dataclass(frozen=True)
class PGD:
    """PGD for the active set: it maximizes the cross-entropy of y, or minimizes that of the target.

    Only the direction of its gradient is used, which is computed without saturation (see `losses.log_odds`).

    Attributes:
        predict: pixels [n, height, width, channels] -> logits [n, classes], differentiable.
        threat_model: norm, scale, box, and the largest eps; the eps of a job may be smaller.
        steps: gradient steps, each followed by a projection.
        step_size: length of a step at the largest eps, in units of the scale; in proportion at smaller ones.
        random_start: start at a random point of the ball rather than at x; attempts are restarts.
        targeted: minimize the cross-entropy of the job's target.
        seed: seed of the random starts.
        top: push y out of this many of the largest logits; above 1 the margin is maximized in place of the
            cross-entropy, which goes on to grow with the largest logit alone.
    """

    predict: Predict
    threat_model: ThreatModel
    steps: int
    step_size: float
    random_start: bool = True
    targeted: bool = False
    seed: int = 0
    top: int = 1

    def start(self, job: State) -> State:
        """Start at x, or at a random point of the ball."""
        if not self.random_start:
            return {"point": job["x"]}
        threat_model = self.threat_model.with_eps(job["eps"])
        return {"point": threat_model.random_point(job["x"], job["index"], self.seed, job["attempt"])}

    def advance(self, state: State) -> StepResult:
        """Take one gradient step, and project."""
        point, label = state["point"], state["target" if self.targeted else "y"]

        def loss_of(logits: Tensor) -> Tensor:
            loss = log_odds(logits, label) if self.top == 1 else logit_margin(logits, label, self.top)
            return -loss if self.targeted else loss

        logits, loss, gradient = input_gradient(self.predict, point, loss_of)
        share = state["eps"] / (float(np.asarray(self.threat_model.eps)) or 1.0)  # 1 at the largest eps, exactly
        threat_model, step_size = self.threat_model.with_eps(state["eps"]), per_example(self.step_size * share)
        moved = threat_model.project(threat_model.step(point, gradient, step_size), state["x"])
        return StepResult({"point": moved}, is_adversarial(logits, label, self.targeted, self.top), loss)

"""What an iterative attack is to the engine: a start and an advance, for many examples at once, each at its own step.

A search holds its state in slots, tensors whose first axis is the slot. What the engine gives to each slot is a job:

    x         float [n, height, width, channels], the clean image
    y         int32 [n], its true label
    target    int32 [n], the class that this job aims at (y for attacks that aim at none)
    index     int32 [n], the example's own number, for random draws that do not depend on the batch
    variant   int32 [n], which attempt at this example it is: a restart, or the place of its target among several
    eps       float [n], the radius of its ball
    i         int32 [n], how many points of this job have been looked at; it stands still while a slot is idle

All of it is elementwise or in the classifier, so that slots never mix, and XLA can compile it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from bn_vuln.attacks.losses import Predict, input_gradient, is_adversarial, log_odds
from bn_vuln.attacks.threat_model import ThreatModel, per_example

Slots = Mapping[str, Any]


@dataclass(frozen=True)
class StepResult:
    """What an advance saw at its points before it moved on: `fooled` bool [n], and `loss` [n], the higher the nearer
    to being fooled, by which points that do not fool are compared; `state` of the search at the next points."""

    state: dict[str, Any]
    is_adversarial: Any
    loss: Any


class IterativeAttack(Protocol):
    """An iterative attack."""

    @property
    def steps(self) -> int:
        """Moves of a job, of which at most steps + 1 points are looked at."""

    def start(self, job: Slots) -> dict[str, Any]:
        """The state at the first point of a job, which is its entry `point`, in the ball and the box. It is called
        for all slots whenever some are filled, so it must not evaluate the classifier."""

    def advance(self, slots: Slots) -> StepResult:
        """Look at `point` of every slot, and move. A slot may be advanced more often than it needs."""


@dataclass(frozen=True)
class PGD:
    """PGD as a search: steps of `step_size` * eps along the gradient, each projected (see `gradient.attack`, whose
    `keep="best_loss"` it equals). Variants are restarts."""

    predict: Predict
    threat_model: ThreatModel
    steps: int
    step_size: float
    random_start: bool = True
    targeted: bool = False
    seed: int = 0

    def start(self, job: Slots) -> dict[str, Any]:
        """At x, or at a random point of the ball."""
        if not self.random_start:
            return {"point": job["x"]}
        threat_model = self.threat_model.with_eps(job["eps"])
        return {"point": threat_model.random_point(job["x"], job["index"], self.seed, job["variant"])}

    def advance(self, slots: Slots) -> StepResult:
        """One gradient."""
        point, eps = slots["point"], slots["eps"]
        label, sign = slots["target" if self.targeted else "y"], -1.0 if self.targeted else 1.0
        logits, loss, slope = input_gradient(self.predict, point, lambda logits: sign * log_odds(logits, label))
        threat_model = self.threat_model.with_eps(eps)
        moved = threat_model.project(threat_model.step(point, slope, per_example(self.step_size * eps)), slots["x"])
        return StepResult({"point": moved}, is_adversarial(logits, label, self.targeted), loss)

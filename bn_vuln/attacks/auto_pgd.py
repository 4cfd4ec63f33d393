"""APGD, PGD without a step size to choose (Croce and Hein 2020, algorithm 1), for the active set.

It starts with steps of 2 eps and momentum. At checkpoints, ever shorter windows apart, an example's step is halved, and
it goes back to its best point so far, if its loss rose in too few steps of the window, or if its best loss is that of
the last checkpoint and its step was not halved there.

Where the paper and the authors' code (github.com/fra31/auto-attack, AutoAttack's own) differ, it does as the code:
checkpoints are counted as there (`checkpoint_windows`), a step is halved where the loss rose in rho of the steps or in
fewer (paper: in fewer), and at the first checkpoint only for that. It departs from both in three places:

- "ce" maximizes `losses.log_odds` in place of the cross-entropy. That grows with it, and its gradient has the same
  direction, so that rises, best points and steps are the same. But in float32 it has neither ties nor a wrong slope
  where the cross-entropy rounds to 0.
- The first step counts as a rise if the loss is above that at the start, as in the paper; the code compares with 0.
- A random start is uniform in the ball, as PGD's (`ThreatModel.random_point`). AutoAttack's is on its surface, a random
  direction divided by its largest entry (inf) or by its length (2): in as many dimensions as an image has there is
  hardly a difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bn_vuln.attacks.base import State, StepResult, select
from bn_vuln.attacks.losses import dlr, input_gradient, is_adversarial, log_odds, targeted_dlr
from bn_vuln.attacks.threat_model import ThreatModel, per_example
from bn_vuln.runtime import backend, ops
from bn_vuln.typing import AnyArray, Labels, Predict, Tensor

MOMENTUM = 0.75  # the share of the new step; the rest is the last one's
FIRST_WINDOW, MIN_WINDOW, WINDOW_DECREMENT = 0.22, 0.06, 0.03  # of all steps

# (logits [n, classes], y int32 [n], target int32 [n]) -> the loss that is maximized, [n]
LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "ce": lambda logits, y, target: log_odds(logits, y),
    "dlr": lambda logits, y, target: dlr(logits, y),
    "targeted_ce": lambda logits, y, target: -log_odds(logits, target),
    "targeted_dlr": targeted_dlr,
}


@dataclass(frozen=True)
class APGD:
    """APGD for the active set.

    Targeted losses aim at the job's target, yet whatever is not predicted as the true label is adversarial, as in
    AutoAttack. Attempts are restarts, or targets, each from a start of its own.

    Attributes:
        predict: pixels [n, height, width, channels] -> logits [n, classes], differentiable.
        threat_model: norm, scale and box; eps is the job's.
        steps: gradient steps.
        loss: a name of LOSSES.
        rho: a step is halved if the loss rose in this share of a window's steps, or in fewer.
        random_start: start at a random point of the ball, by (seed, attempt, index), rather than at x.
        seed: seed of the random starts.
    """

    predict: Predict
    threat_model: ThreatModel
    steps: int = 100
    loss: str = "ce"
    rho: float = 0.75
    random_start: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss: expected one of {', '.join(LOSSES)}, received {self.loss!r}")

    def start(self, job: State) -> State:
        """Start without a best point: the first advance sets it, and moves without momentum.

        `previous` is the point before this one, `move` the number of this one: the active set's `i` stands still while
        a slot is idle, and a checkpoint must not be passed twice. `rises` are counted since the last checkpoint, where
        the best loss was `checked`, and the step was `halved` or not.
        """
        x, index = job["x"], job["index"]
        point = x
        if self.random_start:
            point = self.threat_model.with_eps(job["eps"]).random_point(x, index, self.seed, job["attempt"])
        zeros, lowest = ops.zeros_like(index), ops.full_like(job["eps"], -np.inf)
        return {
            "point": point, "previous": point, "best": point, "best_gradient": ops.zeros_like(x), "best_loss": lowest,
            "last_loss": -lowest, "step_size": 2.0 * job["eps"], "move": zeros, "rises": zeros,
            "checked": lowest, "halved": ops.ones_like(index, "bool"),
        }  # fmt: skip

    def advance(self, state: State) -> StepResult:
        """Evaluate one gradient, halve the step at a checkpoint if it is due, and move."""
        point, y, loss_of = state["point"], state["y"], LOSSES[self.loss]
        logits, loss, gradient = input_gradient(self.predict, point, lambda logits: loss_of(logits, y, state["target"]))
        better = loss > state["best_loss"]
        best = select(better, point, state["best"])
        best_gradient = select(better, gradient, state["best_gradient"])
        best_loss = ops.where(better, loss, state["best_loss"])
        halve, counters = self._check(state, loss, best_loss)
        step_size = ops.where(halve, state["step_size"] / 2, state["step_size"])
        point, gradient = select(halve, best, point), select(halve, best_gradient, gradient)
        moved = self._move(state, point, gradient, step_size)
        next_state = {
            "point": moved, "previous": point, "best": best, "best_gradient": best_gradient, "best_loss": best_loss,
            "last_loss": loss, "step_size": step_size, "move": state["move"] + 1, **counters,
        }  # fmt: skip
        return StepResult(next_state, is_adversarial(logits, y), loss)

    def _check(self, state: State, loss: Tensor, best_loss: Tensor) -> tuple[Tensor, State]:
        """(bool [n], whose step is to be halved; the counters after this point)."""
        window = np.append(checkpoint_windows(self.steps), 0)  # no checkpoint after the last step
        move = ops.minimum(state["move"], self.steps + 1)
        at_checkpoint = ops.take(backend.place(window > 0), move, axis=0)
        allowed = ops.take(backend.place(np.floor(self.rho * window).astype(np.int32)), move, axis=0)
        rises = state["rises"] + ops.cast(loss > state["last_loss"], "int32")
        stuck = ops.logical_not(state["halved"]) & (best_loss <= state["checked"])
        halve = at_checkpoint & ((rises <= allowed) | stuck)
        return halve, {
            "rises": ops.where(at_checkpoint, ops.zeros_like(rises), rises),
            "checked": ops.where(at_checkpoint, best_loss, state["checked"]),
            "halved": ops.where(at_checkpoint, halve, state["halved"]),
        }

    def _move(self, state: State, point: Tensor, gradient: Tensor, step_size: Tensor) -> Tensor:
        """The next point: a projected step, mixed with the last move, and projected again."""
        threat_model, x = self.threat_model.with_eps(state["eps"]), state["x"]
        stepped = threat_model.project(threat_model.step(point, gradient, per_example(step_size)), x)
        one = ops.ones_like(step_size)
        share = per_example(ops.where(ops.equal(state["move"], 0), one, MOMENTUM * one))
        return threat_model.project(point + share * (stepped - point) + (1.0 - share) * (point - state["previous"]), x)


def checkpoint_windows(steps: int) -> Labels:
    """Return the checkpoints of APGD (Croce and Hein 2020, section 3.1, counted as in the authors' code).

    Args:
        steps: number of gradient steps.

    Returns:
        int32 [steps + 1]: at each checkpoint the number of steps since the one before, 0 at all other points. Point k
        is the one after k steps.
    """
    window, shortest, decrement = (max(int(share * steps), 1) for share in (FIRST_WINDOW, MIN_WINDOW, WINDOW_DECREMENT))
    windows, k = np.zeros(steps + 1, np.int32), window
    while k <= steps:
        windows[k] = window
        window = max(window - decrement, shortest)
        k += window
    return windows


def target_classes(logits: AnyArray, y: Labels, count: int = 9) -> Labels:
    """Return the classes to aim at: those of the highest logits but y, in descending order.

    Args:
        logits: [n, classes], of the clean images.
        y: int32 [n], true labels.
        count: number of classes; AutoAttack takes 9.

    Returns:
        int32 [n, min(count, classes - 1)].
    """
    order = np.argsort(-logits, axis=1, kind="stable")
    others = order[order != np.asarray(y)[:, None]].astype(np.int32)
    return others.reshape(len(order), -1)[:, :count]

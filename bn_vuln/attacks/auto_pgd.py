"""APGD, PGD without a step size to choose (Croce and Hein 2020, algorithm 1), as a search of the active set.

It starts with steps of 2 eps and momentum. At checkpoints, ever shorter windows apart, an example's step is halved, and
it goes back to its best point so far, where its loss rose in too few steps of the window, or where its best loss is
that of the last checkpoint and its step was not halved there.

Where the paper and the authors' code (github.com/fra31/auto-attack, AutoAttack's own) differ, it does as the code:
checkpoints are counted as there (`windows`), a step is halved where the loss rose in rho of the steps or in fewer
(paper: in fewer), and at the first checkpoint only for that. Three things are ours:

- "ce" climbs `loss.log_odds`, in place of the cross-entropy: that grows with it, and its gradient has the same
  direction, so that rises, best points and steps are the same, but in float32 it has neither ties nor a wrong slope
  where the cross-entropy rounds to 0.
- Whether the first step rose is seen by the loss at the start, as in the paper; the code compares with 0.
- A random start is uniform in the ball, as PGD's (`Ball.random_point`). Theirs is on its surface, the draw divided by
  its largest entry (inf) or by its length (2): in as many dimensions as an image has there is hardly a difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln.attacks.base import Slots, StepResult
from bn_vuln.attacks.losses import Predict, dlr, input_gradient, is_adversarial, log_odds, targeted_dlr
from bn_vuln.attacks.threat_model import ThreatModel, per_example
from bn_vuln.runtime import backend

MOMENTUM = 0.75  # the share of the new move; the rest is the last one's
FIRST, SHORTEST, SHORTER = 0.22, 0.06, 0.03  # of all steps: the first window, the shortest, and what each is cut by

# (logits [n, classes], y int32 [n], target int32 [n]) -> what is climbed, [n]
LOSSES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "ce": lambda logits, y, target: log_odds(logits, y),
    "dlr": lambda logits, y, target: dlr(logits, y),
    "targeted_ce": lambda logits, y, target: -log_odds(logits, target),
    "targeted_dlr": targeted_dlr,
}


@dataclass(frozen=True)
class APGD:
    """`steps` steps up a loss of LOSSES. Those that are targeted aim at the job's target, yet an example is fooled by
    whatever is not its true label, as in AutoAttack. Variants are restarts, or targets, each from a start of its own.

    Args:
        predict: float pixels [n, height, width, channels] -> logits [n, classes], differentiable.
        ball: norm, scale and box; the radius is the job's.
        rho: halve where the loss rose in this share of a window's steps, or in fewer.
        random_start: at a random point of the ball, by (seed, variant, index), rather than at x.
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

    def start(self, job: Slots) -> dict[str, Any]:
        """Nothing is known yet: the first advance sets the best point, and moves without momentum.

        `previous` is the point before this one, `move` the number of this one: the engine's `i` stands still while a
        slot is idle, and a checkpoint must not be passed twice. `rises` are counted since the last checkpoint, where
        the best loss was `checked`, and the step was `halved` or not.
        """
        tf = backend.tensorflow()
        x, index = job["x"], job["index"]
        point = x
        if self.random_start:
            point = self.threat_model.with_eps(job["eps"]).random_point(x, index, self.seed, job["variant"])
        none, lowest = tf.zeros_like(index), tf.fill(tf.shape(job["eps"]), tf.constant(-np.inf, x.dtype))
        return {
            "point": point, "previous": point, "best": point, "best_gradient": tf.zeros_like(x), "best_loss": lowest,
            "last_loss": -lowest, "step_size": 2.0 * job["eps"], "move": none, "rises": none,
            "checked": lowest, "halved": tf.ones_like(index, tf.bool),
        }  # fmt: skip

    def advance(self, slots: Slots) -> StepResult:
        """One gradient."""
        tf = backend.tensorflow()
        point, y = slots["point"], slots["y"]
        climbed = LOSSES[self.loss]
        logits, loss, slope = input_gradient(self.predict, point, lambda logits: climbed(logits, y, slots["target"]))
        better = loss > slots["best_loss"]
        best = _where(better, point, slots["best"])
        best_gradient = _where(better, slope, slots["best_gradient"])
        best_loss = tf.where(better, loss, slots["best_loss"])
        halve, counters = self._check(slots, loss, best_loss)
        step_size = tf.where(halve, slots["step_size"] / 2, slots["step_size"])
        point, slope = _where(halve, best, point), _where(halve, best_gradient, slope)
        moved = self._moved(slots, point, slope, step_size)
        state = {
            "point": moved, "previous": point, "best": best, "best_gradient": best_gradient, "best_loss": best_loss,
            "last_loss": loss, "step_size": step_size, "move": slots["move"] + 1, **counters,
        }  # fmt: skip
        return StepResult(state, is_adversarial(logits, y), loss)

    def _check(self, slots: Slots, loss: Any, best_loss: Any) -> tuple[Any, dict[str, Any]]:
        """(whose step is to be halved, bool [n]; what is counted, after this point)."""
        tf = backend.tensorflow()
        window = np.append(windows(self.steps), 0)  # no checkpoint after the last step
        move = tf.minimum(slots["move"], self.steps + 1)
        at_checkpoint = tf.gather(tf.constant(window > 0), move)
        allowed = tf.gather(tf.constant(np.floor(self.rho * window).astype(np.int32)), move)
        rises = slots["rises"] + tf.cast(loss > slots["last_loss"], tf.int32)
        stuck = tf.logical_not(slots["halved"]) & (best_loss <= slots["checked"])
        halve = at_checkpoint & ((rises <= allowed) | stuck)
        return halve, {
            "rises": tf.where(at_checkpoint, tf.zeros_like(rises), rises),
            "checked": tf.where(at_checkpoint, best_loss, slots["checked"]),
            "halved": tf.where(at_checkpoint, halve, slots["halved"]),
        }

    def _moved(self, slots: Slots, point: Any, gradient: Any, step_size: Any) -> Any:
        """The next point: a projected step, mixed with the last move, and projected again."""
        tf = backend.tensorflow()
        threat_model, x = self.threat_model.with_eps(slots["eps"]), slots["x"]
        stepped = threat_model.project(threat_model.step(point, gradient, per_example(step_size)), x)
        one = tf.ones_like(step_size)
        share = per_example(tf.where(tf.equal(slots["move"], 0), one, MOMENTUM * one))
        return threat_model.project(point + share * (stepped - point) + (1.0 - share) * (point - slots["previous"]), x)


def windows(steps: int) -> NDArray[np.int32]:
    """The checkpoints, int32 [steps + 1]: at each the number of steps since the one before, 0 at all other points.
    Point k is the one after k steps."""
    first, shortest, shorter = (max(int(share * steps), 1) for share in (FIRST, SHORTEST, SHORTER))
    found, window = np.zeros(steps + 1, np.int32), first
    k = first
    while k <= steps:
        found[k] = window
        window = max(window - shorter, shortest)
        k += window
    return found


def targets(logits: NDArray[Any], y: NDArray[np.int32], count: int = 9) -> NDArray[np.int32]:
    """The classes to aim at, int32 [n, min(count, classes - 1)]: those of the highest logits [n, classes] but y, in
    descending order (AutoAttack takes 9, for clean images)."""
    order = np.argsort(-logits, axis=1, kind="stable")
    others: NDArray[np.int32] = order[order != np.asarray(y)[:, None]].astype(np.int32)
    return others.reshape(len(order), -1)[:, :count]


def _where(mask: Any, new: Any, old: Any) -> Any:
    """Per example, `new` or `old` [n, height, width, channels]."""
    return backend.tensorflow().where(per_example(mask), new, old)

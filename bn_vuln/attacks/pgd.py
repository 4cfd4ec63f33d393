"""Gradient attacks: FGSM, BIM and PGD are one loop with different settings.

Goodfellow et al. 2015 (FGSM), Kurakin et al. 2017 (BIM), Madry et al. 2018 (PGD).

`attack` runs the loop for a whole batch. It is a pure function of TensorFlow ops: `backend.compile` turns it into one
graph. `PGD` is the same attack for the active set, which stops each example at its first success.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

from bn_vuln.attacks.base import State, StepResult
from bn_vuln.attacks.losses import input_gradient, is_adversarial, log_odds, replace_nonfinite
from bn_vuln.attacks.threat_model import ThreatModel, per_example
from bn_vuln.runtime import backend
from bn_vuln.typing import Predict, Tensor

Keep = Literal["last", "best_loss"]


def attack(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    *,
    threat_model: ThreatModel,
    steps: int,
    step_size: float,
    random_start: bool = False,
    restarts: int = 1,
    targeted: bool = False,
    keep: Keep = "last",
    seed: int = 0,
    index: Tensor | None = None,
    xla: bool = False,
) -> Tensor:
    """Maximize the cross-entropy of y in the eps ball around x, or minimize it if `targeted`.

    Only the direction of its gradient is used, which is computed without saturation (see `losses.log_odds`).

    Args:
        predict: pixels [n, height, width, channels] -> logits [n, classes], differentiable.
        x: clean images, float [n, height, width, channels], in pixels, inside the box (where there is one).
        y: int [n], the true labels, or the targets of a targeted attack.
        threat_model: norm, eps, scale and box.
        steps: number of gradient steps, each followed by a projection.
        step_size: length of a step, in units of the threat model's scale.
        random_start: start at a uniformly random point of the ball rather than at x.
        restarts: number of random starts, of which the best point of each example is kept.
        targeted: y are targets.
        keep: `last` keeps the last iterate of each start. `best_loss` keeps, of all iterates, an adversarial one if
            there is any, and among those the one of the highest loss.
        seed: seed of the random starts.
        index: int32 [n], the number of each example in its data set (default: its place in x). The random start of an
            example depends on seed, restart and index only.
        xla: compile the loop with XLA. Random starts are drawn outside of it, where they would be others.

    Returns:
        Adversarial images, of the shape and dtype of x.
    """
    tf = backend.tensorflow()
    if index is None:
        index = tf.range(tf.shape(x)[0])

    def loop(x: Tensor, y: Tensor, start: Tensor) -> tuple[Tensor, Tensor | None]:
        return _maximize(
            predict, x, y, start,
            threat_model=threat_model, steps=steps, step_size=step_size, targeted=targeted, keep=keep,
        )  # fmt: skip

    maximize = backend.compile(loop, xla=True) if xla else loop
    if restarts == 1:
        return maximize(x, y, threat_model.random_point(x, index, seed, 0) if random_start else x)[0]
    best, best_score = x, tf.fill([tf.shape(x)[0]], tf.cast(-float("inf"), x.dtype))
    for restart in range(restarts):
        point, score = maximize(x, y, threat_model.random_point(x, index, seed, restart))
        if score is None:
            score = _evaluate(predict, point, y, targeted)
        best, best_score = _better(point, score, best, best_score)
    return best


def _maximize(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    start: Tensor,
    *,
    threat_model: ThreatModel,
    steps: int,
    step_size: float,
    targeted: bool,
    keep: Keep,
) -> tuple[Tensor, Tensor | None]:
    """The loop: (point, its score); the score is None for the last iterate, whose logits are not known."""
    tf = backend.tensorflow()

    def evaluate(point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return input_gradient(predict, point, lambda logits: _loss(logits, y, targeted))

    def step(point: Tensor, gradient: Tensor) -> Tensor:
        return threat_model.project(threat_model.step(point, gradient, step_size), x)

    def last_step(i: Tensor, point: Tensor) -> tuple[Tensor, ...]:
        return i + 1, step(point, evaluate(point)[2])

    def best_step(i: Tensor, point: Tensor, best: Tensor, best_score: Tensor) -> tuple[Tensor, ...]:
        logits, loss, gradient = evaluate(point)
        best, best_score = _better(point, _score(loss, is_adversarial(logits, y, targeted)), best, best_score)
        return i + 1, step(point, gradient), best, best_score

    if keep == "last":
        loop = tf.while_loop(lambda i, *_: i < steps, last_step, (0, start), maximum_iterations=steps)
        return loop[1], None
    lowest = tf.fill([tf.shape(x)[0]], tf.cast(-float("inf"), x.dtype))
    _, point, best, best_score = tf.while_loop(
        lambda i, *_: i < steps, best_step, (0, start, start, lowest), maximum_iterations=steps
    )
    return _better(point, _evaluate(predict, point, y, targeted), best, best_score)


def _loss(logits: Tensor, y: Tensor, targeted: bool) -> Tensor:
    """The loss that is maximized, [n]: it grows with the cross-entropy of y, or falls with that of a target."""
    loss = log_odds(logits, y)
    return -loss if targeted else loss


def _evaluate(predict: Predict, point: Tensor, y: Tensor, targeted: bool) -> Tensor:
    """Scores [n] of points."""
    logits = predict(point)
    return _score(_loss(logits, y, targeted), is_adversarial(logits, y, targeted))


def _score(loss: Tensor, adversarial: Tensor) -> Tensor:
    """Scores [n] that points are compared by: adversarial points first, then the loss."""
    tf = backend.tensorflow()
    # The arctangent maps every loss into (-pi/2, pi/2), so that no loss outweighs being adversarial.
    return replace_nonfinite(tf.atan(loss)) + 4.0 * tf.cast(adversarial, loss.dtype)


def _better(point: Tensor, score: Tensor, best: Tensor, best_score: Tensor) -> tuple[Tensor, Tensor]:
    """Per example, the point of the higher score, and that score."""
    tf = backend.tensorflow()
    better = score > best_score
    return tf.where(per_example(better), point, best), tf.where(better, score, best_score)


def fgsm(predict: Predict, x: Tensor, y: Tensor, *, threat_model: ThreatModel, **options: Any) -> Tensor:
    """Run the fast gradient sign method (ord 2: fast gradient method): one step of size eps.

    Arguments and result as in `attack`.
    """
    return attack(predict, x, y, threat_model=threat_model, **{"steps": 1, "step_size": threat_model.eps, **options})


bim = functools.partial(attack, random_start=False)
pgd = functools.partial(attack, random_start=True)


@dataclass(frozen=True)
class PGD:
    """PGD for the active set; with a single job for each example it equals `attack` with `keep="best_loss"`.

    Attributes:
        predict: pixels [n, height, width, channels] -> logits [n, classes], differentiable.
        threat_model: norm, scale and box; eps is the job's.
        steps: gradient steps.
        step_size: length of a step, as a share of eps.
        random_start: start at a random point of the ball rather than at x; attempts are restarts.
        targeted: maximize the job's target rather than minimize y.
        seed: seed of the random starts.
    """

    predict: Predict
    threat_model: ThreatModel
    steps: int
    step_size: float
    random_start: bool = True
    targeted: bool = False
    seed: int = 0

    def start(self, job: State) -> State:
        """Start at x, or at a random point of the ball."""
        if not self.random_start:
            return {"point": job["x"]}
        threat_model = self.threat_model.with_eps(job["eps"])
        return {"point": threat_model.random_point(job["x"], job["index"], self.seed, job["attempt"])}

    def advance(self, state: State) -> StepResult:
        """Take one gradient step, and project."""
        point, eps = state["point"], state["eps"]
        label = state["target" if self.targeted else "y"]
        logits, loss, gradient = input_gradient(self.predict, point, lambda logits: _loss(logits, label, self.targeted))
        threat_model = self.threat_model.with_eps(eps)
        moved = threat_model.project(threat_model.step(point, gradient, per_example(self.step_size * eps)), state["x"])
        return StepResult({"point": moved}, is_adversarial(logits, label, self.targeted), loss)

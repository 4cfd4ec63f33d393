"""Gradient attacks: one loop; `fgsm`, `bim` and `pgd` are partial applications of it.

Goodfellow et al. 2015 (FGSM), Kurakin et al. 2017 (BIM), Madry et al. 2018 (PGD). Pure functions of
(predict, x, y, ...), made of TensorFlow ops only: `backend.compile` turns a whole attack into one graph.
"""

from __future__ import annotations

import functools
from typing import Any

from bn_vuln.attacks.losses import Predict, input_gradient, is_adversarial, log_odds, replace_nonfinite
from bn_vuln.attacks.threat_model import ThreatModel, per_example
from bn_vuln.runtime import backend


def attack(
    predict: Predict,
    x: Any,
    y: Any,
    *,
    threat_model: ThreatModel,
    steps: int,
    step_size: float,
    random_start: bool = False,
    restarts: int = 1,
    targeted: bool = False,
    keep: str = "last",
    seed: int = 0,
    index: Any = None,
    xla: bool = False,
) -> Any:
    """Points of the ball around `x` at which the cross-entropy of `y` is high (or low, if `targeted`). Only the
    direction of its gradient is used, which is computed without saturation (see `loss.log_odds`).

    Args:
        predict: float pixels [n, height, width, channels] -> logits [n, classes], differentiable.
        x: the images, float, within the ball's box (where it has one).
        y: int labels [n]: the true ones, or the targets of a targeted attack.
        ball: norm, eps, scale and box.
        steps: gradient steps of `step_size` (in units of the ball's scale), each projected.
        random_start: start uniformly in the ball rather than at x; `restarts` such starts, the best point kept
            per example.
        keep: `last` keeps the last point of each start; `best` the point of the path that is fooled if any
            is, and among those the one of the highest loss.
        seed, index: the random start of an example depends on seed, restart and its `index` (default: its place).
        xla: compile the loop with XLA. Random starts are drawn outside of it, where they would be others.

    Returns:
        x_adv, of the shape and dtype of x.
    """
    tf = backend.tensorflow()
    if index is None:
        index = tf.range(tf.shape(x)[0])

    def loop(x: Any, y: Any, start: Any) -> tuple[Any, Any]:
        options: dict[str, Any] = {
            "threat_model": threat_model,
            "steps": steps,
            "step_size": step_size,
            "targeted": targeted,
            "keep": keep,
        }
        return _ascend(predict, x, y, start, **options)

    ascend = backend.compile(loop, xla=True) if xla else loop
    if restarts == 1:
        return ascend(x, y, threat_model.random_point(x, index, seed, 0) if random_start else x)[0]
    best, best_score = x, tf.fill([tf.shape(x)[0]], tf.cast(-float("inf"), x.dtype))
    for restart in range(restarts):
        point, score = ascend(x, y, threat_model.random_point(x, index, seed, restart))
        if score is None:
            score = _score_at(predict, point, y, targeted)
        best, best_score = _better(point, score, best, best_score)
    return best


def _ascend(
    predict: Predict,
    x: Any,
    y: Any,
    start: Any,
    *,
    threat_model: ThreatModel,
    steps: int,
    step_size: float,
    targeted: bool,
    keep: str,
) -> tuple[Any, Any]:
    """The loop: (point, its score); the score is None for the last iterate, whose logits are not known."""
    tf = backend.tensorflow()

    def climbed(point: Any) -> tuple[Any, Any, Any]:
        return input_gradient(predict, point, lambda logits: _loss(logits, y, targeted))

    def last_step(i: Any, point: Any) -> tuple[Any, Any]:
        return i + 1, threat_model.project(threat_model.step(point, climbed(point)[2], step_size), x)

    def best_step(i: Any, point: Any, best: Any, best_score: Any) -> tuple[Any, ...]:
        logits, loss, slope = climbed(point)
        best, best_score = _better(point, _score(loss, is_adversarial(logits, y, targeted)), best, best_score)
        return i + 1, threat_model.project(threat_model.step(point, slope, step_size), x), best, best_score

    if keep == "last":
        loop = tf.while_loop(lambda i, *_: i < steps, last_step, (0, start), maximum_iterations=steps)
        return loop[1], None
    lowest = tf.fill([tf.shape(x)[0]], tf.cast(-float("inf"), x.dtype))
    _, point, best, best_score = tf.while_loop(
        lambda i, *_: i < steps, best_step, (0, start, start, lowest), maximum_iterations=steps
    )
    return _better(point, _score_at(predict, point, y, targeted), best, best_score)


def _loss(logits: Any, y: Any, targeted: bool) -> Any:
    """What is climbed, [n]: it grows with the cross-entropy, or falls with that of a target."""
    loss = log_odds(logits, y)
    return -loss if targeted else loss


def _score_at(predict: Predict, point: Any, y: Any, targeted: bool) -> Any:
    logits = predict(point)
    return _score(_loss(logits, y, targeted), is_adversarial(logits, y, targeted))


def _score(loss: Any, hit: Any) -> Any:
    """What points are compared by, [n]: fooled before not fooled, then the loss."""
    tf = backend.tensorflow()
    # The arctangent maps every loss into (-pi/2, pi/2), so that no loss outweighs being fooled.
    return replace_nonfinite(tf.atan(loss)) + 4.0 * tf.cast(hit, loss.dtype)


def _better(point: Any, score: Any, best: Any, best_score: Any) -> tuple[Any, Any]:
    """Per example, the point of the higher score, and that score."""
    tf = backend.tensorflow()
    better = score > best_score
    return tf.where(per_example(better), point, best), tf.where(better, score, best_score)


def fgsm(predict: Predict, x: Any, y: Any, *, threat_model: ThreatModel, **options: Any) -> Any:
    """The fast gradient sign method (ord 2: fast gradient method): one step of size eps. See `attack`."""
    return attack(predict, x, y, threat_model=threat_model, **{"steps": 1, "step_size": threat_model.eps, **options})


bim = functools.partial(attack, random_start=False)
pgd = functools.partial(attack, random_start=True)

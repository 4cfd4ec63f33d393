"""Losses that attacks maximize, the test for success, and the input gradient."""

from __future__ import annotations

from collections.abc import Callable

from bn_vuln.runtime import backend, ops
from bn_vuln.typing import Predict, Tensor

ROUNDING = 1e-5  # of the largest logit: a smaller margin may vanish in another order of summation


def input_gradient(predict: Predict, point: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Evaluate a loss of the logits and its gradient by the pixels.

    Args:
        predict: pixels [n, height, width, channels] -> logits [n, classes], differentiable.
        point: pixels [n, height, width, channels].
        loss: logits [n, classes] -> [n].

    Returns:
        (logits [n, classes], loss [n], gradient of the shape of `point`). Where a gradient is not connected or NaN it
        is 0: the other pixels may suffice, and one NaN would hold an example for ever.
    """

    def evaluate(point: Tensor) -> tuple[Tensor, Tensor]:
        logits = predict(point)
        return loss(logits), logits

    values, gradient, logits = backend.value_and_gradient(evaluate, point)
    return logits, values, ops.where(ops.isnan(gradient), 0.0, gradient)


def replace_nonfinite(values: Tensor, replacement: float = 0.0) -> Tensor:
    """Replace values that are NaN or infinite."""
    replaced: Tensor = ops.where(ops.isfinite(values), values, replacement)
    return replaced


def is_adversarial(logits: Tensor, y: Tensor, targeted: bool = False, top: int = 1) -> Tensor:
    """Test whether a search has succeeded: by a margin above rounding, so that the success is one when predicted again.

    Args:
        logits: [n, classes]. Logits that are not finite are no class.
        y: int [n], the true labels, or the targets of a targeted attack.
        targeted: success is the prediction y, rather than any other.
        top: success is that y is not among this many of the largest logits.

    Returns:
        bool [n].
    """
    margin, rounding, finite = logit_margin(logits, y, top), ROUNDING * largest(logits), ops.isfinite(logits)
    if targeted:
        return ops.all(finite, axis=1) & (margin < -rounding)
    return ops.logical_not(ops.all(finite, axis=1)) | (margin > rounding)


def largest(logits: Tensor) -> Tensor:
    """Return the largest absolute value of each row, [n]."""
    found: Tensor = ops.max(ops.abs(logits), axis=1)
    return found


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """Return the log-odds of all other classes against y, log sum_{k != y} exp(z_k) - z_y.

    The cross-entropy of y is log(1 + exp(m)) of these log-odds m, so m grows with it and its gradient has the same
    direction. The cross-entropy's own gradient, sum_k p_k grad(z_k) - grad(z_y), loses grad(z_y) in float32 as soon as
    1 - p_y rounds to 0, at a margin of 17 nats. Attacks then follow a wrong slope, or none, and robustness is
    overstated (Carlini and Wagner 2017 broke defensive distillation that way). m has no such limit.

    Args:
        logits: z, [n, classes].
        y: int [n].

    Returns:
        [n], in nats, of the dtype of the logits.
    """
    own, others = _split(logits, y)
    return ops.logsumexp(others, axis=1) - own


def logit_margin(logits: Tensor, y: Tensor, top: int = 1) -> Tensor:
    """Return the margin max_{k != y} z_k - z_y (Carlini and Wagner 2017), or that of the `top` largest z_k - z_y.

    Args:
        logits: z, [n, classes].
        y: int [n].
        top: 1 for the largest of the other logits, 5 for the fifth largest; fewer than the classes.

    Returns:
        [n], in nats, of the dtype of the logits. Positive where y is not among the `top` largest logits.
    """
    own, others = _split(logits, y)
    return (ops.max(others, axis=1) if top == 1 else ops.top_k(others, top)[0][:, -1]) - own


def _split(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(the logit of class y [n], all logits [n, classes] with -inf in its place)."""
    is_y = ops.equal(ops.arange(logits.shape[1], dtype="int32"), ops.expand_dims(ops.cast(y, "int32"), 1))
    return ops.sum(ops.where(is_y, logits, 0.0), axis=1), ops.where(is_y, -float("inf"), logits)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Return the difference of logits ratio (Croce and Hein 2020, section 4).

    (max_{k != y} z_k - z_y) / (z_1st - z_3rd), with z_1st >= z_2nd >= ... sorted. It does not change where logits are
    shifted or multiplied, and lies between -1 and 0 where y is predicted. With 2 classes there is no third logit: then
    it is the `logit_margin` alone.

    Args:
        logits: z, [n, classes].
        y: int [n].

    Returns:
        [n], without unit, of the dtype of the logits.
    """
    if logits.shape[1] < 3:
        return logit_margin(logits, y)
    highest = ops.top_k(logits, 3)[0]
    return logit_margin(logits, y) / _nonzero(highest[:, 0] - highest[:, 2])


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Return the targeted difference of logits ratio (Croce and Hein 2020, section 4).

    (z_target - z_y) / (z_1st - (z_3rd + z_4th) / 2). It grows as the target overtakes y. With 2 or 3 classes there is
    no fourth logit: then it is z_target - z_y alone.

    Args:
        logits: z, [n, classes].
        y: int [n], the true labels.
        target: int [n].

    Returns:
        [n], without unit, of the dtype of the logits.
    """
    difference = _split(logits, target)[0] - _split(logits, y)[0]
    if logits.shape[1] < 4:
        return difference
    highest = ops.top_k(logits, 4)[0]
    return difference / _nonzero(highest[:, 0] - (highest[:, 2] + highest[:, 3]) / 2)


def _nonzero(denominator: Tensor) -> Tensor:
    """A denominator of at least the published 1e-12, where it has no slope: the loss then has that of its numerator."""
    bounded: Tensor = ops.maximum(denominator, 1e-12)
    return bounded

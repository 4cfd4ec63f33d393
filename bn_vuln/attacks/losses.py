"""The losses that attacks climb, and the gradients by which they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bn_vuln.runtime import backend

Predict = Callable[[Any], Any]  # float pixels [n, height, width, channels] -> logits [n, classes], differentiable
ROUNDING = 1e-5  # of the largest logit: a smaller margin may be gone in another order of summation


def input_gradient(predict: Predict, point: Any, loss: Callable[[Any], Any]) -> tuple[Any, Any, Any]:
    """(logits [n, classes] at `point`, their `loss` [n], its gradient by the point). Where a gradient is not connected
    or not a number it is 0: the other pixels may suffice, and one NaN would hold an example for ever."""
    tf = backend.tensorflow()
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(point)
        logits = predict(point)
        values = loss(logits)
    slope = tape.gradient(values, point, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return logits, values, tf.where(tf.math.is_nan(slope), tf.zeros_like(slope), slope)


def replace_nonfinite(values: Any, otherwise: float = 0.0) -> Any:
    """The values, and something else where they are NaN or infinite."""
    tf = backend.tensorflow()
    return tf.where(tf.math.is_finite(values), values, tf.cast(otherwise, values.dtype))


def is_adversarial(logits: Any, y: Any, targeted: bool = False) -> Any:
    """bool [n]: the prediction is another class than y, or it is y, where y is a target. Logits that are not finite are
    no class."""
    tf = backend.tensorflow()
    right = tf.equal(tf.argmax(logits, axis=1, output_type=y.dtype), y)
    hit = right & tf.reduce_all(tf.math.is_finite(logits), axis=1)
    return hit if targeted else tf.logical_not(hit)


def log_odds(logits: Any, y: Any) -> Any:
    """m = log sum_{k != y} exp(z_k) - z_y, the log-odds of all other classes against y, of the dtype of the logits
    [n, classes]; labels y int [n].

    The cross-entropy of y is log(1 + exp(m)), so m grows with it and its gradient has the same direction. The
    cross-entropy's own gradient, sum_k p_k grad(z_k) - grad(z_y), loses grad(z_y) in float32 as soon as 1 - p_y rounds
    to 0, at a margin of 17 nats: attacks then climb the wrong slope, or none, and robustness is overstated (Carlini
    and Wagner 2017 broke defensive distillation that way). m has no such limit.
    """
    tf = backend.tensorflow()
    return tf.reduce_logsumexp(_others(logits, y), axis=1) - tf.gather(logits, y, axis=1, batch_dims=1)


def logit_margin(logits: Any, y: Any) -> Any:
    """max_{k != y} z_k - z_y, of the dtype of the logits [n, classes]; labels y int [n]. Positive where y is not
    predicted (Carlini and Wagner 2017)."""
    tf = backend.tensorflow()
    return tf.reduce_max(_others(logits, y), axis=1) - tf.gather(logits, y, axis=1, batch_dims=1)


def _others(logits: Any, y: Any) -> Any:
    """The logits of all classes but y, whose is -inf."""
    tf = backend.tensorflow()
    own = tf.one_hot(y, logits.shape[1], on_value=True, off_value=False, dtype=tf.bool)
    return tf.where(own, tf.cast(-float("inf"), logits.dtype), logits)


def dlr(logits: Any, y: Any) -> Any:
    """The difference of logits ratio, (max_{k != y} z_k - z_y) / (z_1st - z_3rd), of the dtype of the logits
    [n, classes], z_1st >= z_2nd >= ... sorted (Croce and Hein 2020, section 4).

    It stays the same where logits are shifted or multiplied: from -1 to 0 where y is predicted. With 2 classes there is
    no third logit: then it is the `logit_margin` alone.
    """
    if logits.shape[1] < 3:
        return logit_margin(logits, y)
    highest = backend.tensorflow().math.top_k(logits, 3).values
    return logit_margin(logits, y) / _spread(highest[:, 0] - highest[:, 2])


def targeted_dlr(logits: Any, y: Any, target: Any) -> Any:
    """(z_target - z_y) / (z_1st - (z_3rd + z_4th) / 2), as `dlr` (Croce and Hein 2020, section 4): it grows as the
    target, int [n], overtakes y. With 2 or 3 classes there is no fourth logit: then it is z_target - z_y alone."""
    tf = backend.tensorflow()
    ahead = tf.gather(logits, target, axis=1, batch_dims=1) - tf.gather(logits, y, axis=1, batch_dims=1)
    if logits.shape[1] < 4:
        return ahead
    highest = tf.math.top_k(logits, 4).values
    return ahead / _spread(highest[:, 0] - (highest[:, 2] + highest[:, 3]) / 2)


def _spread(values: Any) -> Any:
    """A denominator [n] that is not 0. Where the highest logits are equal it is the published 1e-12, without a slope:
    then the loss has that of its numerator."""
    tf = backend.tensorflow()
    return tf.maximum(values, tf.constant(1e-12, values.dtype))

"""Losses that attacks maximize, the test for success, and the input gradient."""

from __future__ import annotations

from collections.abc import Callable

from bn_vuln.runtime import backend
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
    tf = backend.tensorflow()
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(point)
        logits = predict(point)
        values = loss(logits)
    gradient = tape.gradient(values, point, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    gradient = tf.ensure_shape(gradient, point.shape)  # unknown behind a Python function
    return logits, values, tf.where(tf.math.is_nan(gradient), tf.zeros_like(gradient), gradient)


def replace_nonfinite(values: Tensor, replacement: float = 0.0) -> Tensor:
    """Replace values that are NaN or infinite."""
    tf = backend.tensorflow()
    return tf.where(tf.math.is_finite(values), values, tf.cast(replacement, values.dtype))


def is_adversarial(logits: Tensor, y: Tensor, targeted: bool = False) -> Tensor:
    """Test whether an attack has succeeded.

    Args:
        logits: [n, classes]. Logits that are not finite are no class.
        y: int [n], the true labels, or the targets of a targeted attack.
        targeted: success is the prediction y, rather than any other.

    Returns:
        bool [n].
    """
    tf = backend.tensorflow()
    predicted = tf.equal(tf.argmax(logits, axis=1, output_type=y.dtype), y)
    predicted &= tf.reduce_all(tf.math.is_finite(logits), axis=1)
    return predicted if targeted else tf.logical_not(predicted)


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
    tf = backend.tensorflow()
    return tf.reduce_logsumexp(_other_logits(logits, y), axis=1) - tf.gather(logits, y, axis=1, batch_dims=1)


def logit_margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return the margin max_{k != y} z_k - z_y (Carlini and Wagner 2017).

    Args:
        logits: z, [n, classes].
        y: int [n].

    Returns:
        [n], in nats, of the dtype of the logits. Positive where y is not predicted.
    """
    tf = backend.tensorflow()
    return tf.reduce_max(_other_logits(logits, y), axis=1) - tf.gather(logits, y, axis=1, batch_dims=1)


def _other_logits(logits: Tensor, y: Tensor) -> Tensor:
    """Logits with -inf for class y."""
    tf = backend.tensorflow()
    is_y = tf.one_hot(y, logits.shape[1], on_value=True, off_value=False, dtype=tf.bool)
    return tf.where(is_y, tf.cast(-float("inf"), logits.dtype), logits)


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
    highest = backend.tensorflow().math.top_k(logits, 3).values
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
    tf = backend.tensorflow()
    difference = tf.gather(logits, target, axis=1, batch_dims=1) - tf.gather(logits, y, axis=1, batch_dims=1)
    if logits.shape[1] < 4:
        return difference
    highest = tf.math.top_k(logits, 4).values
    return difference / _nonzero(highest[:, 0] - (highest[:, 2] + highest[:, 3]) / 2)


def _nonzero(denominator: Tensor) -> Tensor:
    """A denominator of at least the published 1e-12, where it has no slope: the loss then has that of its numerator."""
    tf = backend.tensorflow()
    return tf.maximum(denominator, tf.constant(1e-12, denominator.dtype))

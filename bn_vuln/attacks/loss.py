"""The losses that attacks climb."""

from __future__ import annotations

from typing import Any

from bn_vuln import backend


def margin(logits: Any, y: Any) -> Any:
    """m = log sum_{k != y} exp(z_k) - z_y, of the dtype of the logits [n, classes]; labels y int [n].

    The cross-entropy of y is log(1 + exp(m)), so m grows with it and its gradient has the same direction. The
    cross-entropy's own gradient, sum_k p_k grad(z_k) - grad(z_y), loses grad(z_y) in float32 as soon as 1 - p_y rounds
    to 0, at a margin of 17 nats: attacks then climb the wrong slope, or none, and robustness is overstated (Carlini
    and Wagner 2017 broke defensive distillation that way). m has no such limit.
    """
    tf = backend.tensorflow()
    own = tf.one_hot(y, logits.shape[1], on_value=True, off_value=False, dtype=tf.bool)
    others = tf.where(own, tf.cast(-float("inf"), logits.dtype), logits)
    return tf.reduce_logsumexp(others, axis=1) - tf.gather(logits, y, axis=1, batch_dims=1)


def difference(logits: Any, y: Any) -> Any:
    """max_{k != y} z_k - z_y, of the dtype of the logits [n, classes]; labels y int [n]. Positive where y is not
    predicted (Carlini and Wagner 2017)."""
    tf = backend.tensorflow()
    own = tf.one_hot(y, logits.shape[1], on_value=True, off_value=False, dtype=tf.bool)
    others = tf.where(own, tf.cast(-float("inf"), logits.dtype), logits)
    return tf.reduce_max(others, axis=1) - tf.gather(logits, y, axis=1, batch_dims=1)


def dlr(logits: Any, y: Any) -> Any:
    """The difference of logits ratio, (max_{k != y} z_k - z_y) / (z_1st - z_3rd), of the dtype of the logits
    [n, classes], z_1st >= z_2nd >= ... sorted (Croce and Hein 2020, section 4).

    It stays the same where logits are shifted or multiplied: from -1 to 0 where y is predicted. With 2 classes there is
    no third logit: then it is the `difference` alone.
    """
    if logits.shape[1] < 3:
        return difference(logits, y)
    highest = backend.tensorflow().math.top_k(logits, 3).values
    return difference(logits, y) / _spread(highest[:, 0] - highest[:, 2])


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

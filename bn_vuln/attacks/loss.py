"""The loss that attacks climb."""

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

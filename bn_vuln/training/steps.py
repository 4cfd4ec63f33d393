"""The compiled steps: augmented images and adversarial examples where they are trained on, gradients of the
cross-entropy, weight decay, one update.

On one device many steps are one compiled call; over replicas each step is one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bn_vuln.config import Augment, Cell
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.transforms import to_pixels
from bn_vuln.runtime import backend
from bn_vuln.runtime.distribution import Distribution
from bn_vuln.training import adversarial, augmentation, fused_batch_norm, native_width
from bn_vuln.training.optimizers import decay_terms, rate_factors

# (examples int32 [steps, batch], augmented [steps, batch, 4] as `_batch` takes them, learning rates float32 [steps],
# first step, step after the last, totals so far) -> totals (sum of the losses float64, number of correct predictions
# int32), the same however many calls they take
Totals = tuple[Any, Any]
Steps = Callable[[Any, Any, Any, Any, Totals], Totals]


def no_totals() -> Totals:
    """The totals before the first step."""
    return np.float64(0), np.int32(0)


def make(
    cell: Cell, model: Any, optimizer: Any, info: DatasetInfo, images: Any, labels: Any, distribution: Distribution
) -> Steps:
    """Steps over `images` (uint8 [n, h, w, c]) and `labels` (int32 [n]), which lie on every device."""
    step = _step(cell, model, optimizer, info, images, labels, distribution.replicas)
    if distribution.strategy is None:
        return backend.compile(_looped(step, optimizer), xla=backend.prefers_xla(model))
    return _replicated(step, optimizer, distribution)


def _step(
    cell: Cell, model: Any, optimizer: Any, info: DatasetInfo, images: Any, labels: Any, replicas: int
) -> Callable[[Any], tuple[Any, Any]]:
    """One update by the examples of `index` (this replica's share): (its part of the loss, correct predictions)."""
    tf = backend.tensorflow()
    variables, width = model.trainable_variables, model.input_shape[1]
    decay = [k / replicas for k in decay_terms(cell, model)]  # the optimizer sums gradients over the replicas
    factors, norms = rate_factors(cell, model), native_width.squared_norms(model)
    cross_entropy, options = _cross_entropy(cell.train.label_smoothing), cell.train.adversarial
    search = adversarial.search(cell, options, model, optimizer, info, replicas) if options else None
    augment = cell.train.augment

    def squared_norm(variable: Any) -> Any:
        known = norms.get(id(variable))
        return known() if known else tf.reduce_sum(variable**2)

    def step(index: Any) -> tuple[Any, Any]:
        x, y = _batch(index, images, labels, augment)
        x = to_pixels(x, width)
        x = x if search is None else search(x, y)
        with tf.GradientTape() as tape:
            with fused_batch_norm.batch_norm(model):
                logits = model(x, training=True)
            loss = tf.reduce_mean(cross_entropy(y, logits))
            loss = loss / replicas if replicas > 1 else loss
        gradients = tape.gradient(loss, variables)
        gradients = [g + k * v if k else g for g, k, v in zip(gradients, decay, variables, strict=True)]
        penalty = sum((0.5 * k * squared_norm(v) for k, v in zip(decay, variables, strict=True) if k), 0.0)
        gradients = [g if factor == 1 else factor * g for g, factor in zip(gradients, factors, strict=True)]
        optimizer.apply(gradients, variables)
        hits = tf.equal(tf.argmax(logits, axis=1, output_type=tf.int32), y)
        return loss + penalty, tf.reduce_sum(tf.cast(hits, tf.int32))

    return step


def _batch(index: Any, images: Any, labels: Any, augment: Augment | None) -> tuple[Any, Any]:
    """The images, cropped and flipped where they are augmented, and labels of `index`: examples int32 [n], or with
    augmentation int32 [n, 4], each an example and what is drawn for it."""
    tf = backend.tensorflow()
    if augment is None:
        return tf.gather(images, index), tf.gather(labels, index)
    examples, drawn = index[:, 0], index[:, 1:]
    return augmentation.crop(tf.gather(images, examples), drawn, augment.pad), tf.gather(labels, examples)


def _cross_entropy(smoothing: float) -> Callable[[Any, Any], Any]:
    """A function (labels [n], logits [n, classes]) -> cross-entropies [n]; smoothed targets as Szegedy et al. 2016."""
    tf = backend.tensorflow()

    def smoothed(y: Any, logits: Any) -> Any:
        classes = logits.shape[1]
        targets = tf.one_hot(y, classes, on_value=1 - smoothing + smoothing / classes, off_value=smoothing / classes)
        return tf.nn.softmax_cross_entropy_with_logits(labels=targets, logits=logits)

    def plain(y: Any, logits: Any) -> Any:
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)

    return smoothed if smoothing else plain


def _looped(step: Callable[[Any], tuple[Any, Any]], optimizer: Any) -> Steps:
    """Steps `begin` to `end` as one loop of the graph."""
    tf = backend.tensorflow()

    def steps(order: Any, rates: Any, begin: Any, end: Any, totals: Totals) -> Any:
        def body(i: Any, loss: Any, correct: Any) -> tuple[Any, ...]:
            optimizer.learning_rate.assign(rates[i])
            step_loss, step_correct = step(order[i])
            return i + 1, loss + tf.cast(step_loss, tf.float64), correct + step_correct

        return tf.while_loop(lambda i, *_: i < end, body, (begin, *totals))[1:]

    return steps


def _replicated(step: Callable[[Any], tuple[Any, Any]], optimizer: Any, distribution: Distribution) -> Steps:
    """The same, each step run on every replica with its share of the examples."""
    tf = backend.tensorflow()
    strategy, replicas = distribution.strategy, distribution.replicas

    def share(index: Any) -> tuple[Any, Any]:
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        return step(tf.reshape(index, (replicas, -1, *index.shape[1:]))[replica])

    def everywhere(index: Any, rate: Any) -> tuple[Any, ...]:
        optimizer.learning_rate.assign(rate)
        results = strategy.run(share, args=(index,))
        return tuple(strategy.reduce(tf.distribute.ReduceOp.SUM, result, axis=None) for result in results)

    compiled = backend.compile(everywhere)

    def steps(order: Any, rates: Any, begin: Any, end: Any, totals: Totals) -> Totals:
        for i in range(int(begin), int(end)):
            step_totals = compiled(order[i], rates[i])
            totals = totals[0] + np.float64(step_totals[0]), totals[1] + np.int32(step_totals[1])
        return totals

    return steps

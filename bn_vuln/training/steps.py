"""The compiled training steps: augmentation, adversarial examples, gradients, weight decay, update.

On one device many steps are one compiled call; over replicas each step is one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bn_vuln.config import Cell
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.transforms import to_pixels
from bn_vuln.runtime import backend
from bn_vuln.runtime.distribution import Distribution
from bn_vuln.training import adversarial, augmentation, fused_batch_norm
from bn_vuln.training.optimizers import decay_terms, rate_factors
from bn_vuln.typing import KerasModel, Optimizer, Tensor

Number: TypeAlias = Tensor | np.number
Totals: TypeAlias = tuple[Number, Number]  # (sum of the losses float64, number of correct predictions int32)
# (examples int32 [steps, batch], or [steps, batch, 4], each with its random crop, learning rates float32 [steps],
# first step, step after the last, totals so far) -> totals, the same however many calls they take
Steps: TypeAlias = Callable[[NDArray[np.int32], NDArray[np.float32], np.int32, np.int32, Totals], Totals]
# (examples, all images, all labels) -> (its part of the loss, correct predictions)
Step: TypeAlias = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def no_totals() -> Totals:
    """Return the totals before the first step."""
    return np.float64(0), np.int32(0)


def make(
    cell: Cell,
    model: KerasModel,
    optimizer: Optimizer,
    info: DatasetInfo,
    images: Tensor,
    labels: Tensor,
    distribution: Distribution,
    *,
    xla: bool = True,
) -> Steps:
    """Return steps over `images` (uint8 [n, h, w, c]) and `labels` (int32 [n]), which lie on every device.

    XLA is used where the execution policy says so and `xla` does not forbid it.
    """
    step = _step(cell, model, optimizer, info, distribution.replicas)
    if distribution.strategy is None:
        looped = _looped(step, optimizer, images, labels)
        return backend.compile(looped, xla=xla and backend.execution_policy(model).xla)
    return _replicated(step, optimizer, images, labels, distribution)


def _step(cell: Cell, model: KerasModel, optimizer: Optimizer, info: DatasetInfo, replicas: int) -> Step:
    """One update by the examples of `index`, this replica's: int32 [n], or with augmentation [n, 4]."""
    tf = backend.tensorflow()
    variables, (_, height, width, _) = model.trainable_variables, model.input_shape
    decay = [k / replicas for k in decay_terms(cell, model)]  # the optimizer sums gradients over the replicas
    factors = rate_factors(cell, model)
    squared_norm = getattr(model, "squared_norm", lambda variable: tf.reduce_sum(variable**2))  # see `native_width`
    cross_entropy, options = _cross_entropy(cell.train.label_smoothing), cell.train.adversarial
    attack = adversarial.inner_attack(cell, options, model, optimizer, info, replicas) if options else None
    augment = cell.train.augment

    def step(index: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        examples = index if augment is None else index[:, 0]
        x, y = tf.gather(images, examples), tf.gather(labels, examples)
        x = x if augment is None else augmentation.crop(x, index[:, 1:], augment.pad)
        x = to_pixels(x, (height, width))
        x = x if attack is None else attack(x, y)
        with tf.GradientTape() as tape:
            with fused_batch_norm.use_fused_op(model):
                logits = model(x, training=True)
            loss = tf.reduce_mean(cross_entropy(y, logits))
            loss = loss / replicas if replicas > 1 else loss
        gradients = tape.gradient(loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        gradients = [g + k * v if k else g for g, k, v in zip(gradients, decay, variables, strict=True)]
        penalty = sum((0.5 * k * squared_norm(v) for k, v in zip(decay, variables, strict=True) if k), 0.0)
        gradients = [g if factor == 1 else factor * g for g, factor in zip(gradients, factors, strict=True)]
        optimizer.apply(gradients, variables)
        correct = tf.equal(tf.argmax(logits, axis=1, output_type=tf.int32), y)
        return loss + penalty, tf.reduce_sum(tf.cast(correct, tf.int32))

    return step


def _cross_entropy(smoothing: float) -> Callable[[Tensor, Tensor], object]:
    """(labels [n], logits [n, classes]) -> cross-entropies [n]; targets are smoothed as in Szegedy et al. 2016."""
    tf = backend.tensorflow()

    def smoothed(y: Tensor, logits: Tensor) -> object:
        classes = logits.shape[1]
        targets = tf.one_hot(y, classes, on_value=1 - smoothing + smoothing / classes, off_value=smoothing / classes)
        return tf.nn.softmax_cross_entropy_with_logits(labels=targets, logits=logits)

    def plain(y: Tensor, logits: Tensor) -> object:
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)

    return smoothed if smoothing else plain


def _looped(step: Step, optimizer: Optimizer, images: Tensor, labels: Tensor) -> Callable[..., Totals]:
    """Steps `begin` to `end` as one loop of the graph."""
    tf = backend.tensorflow()

    def steps(order: Tensor, rates: Tensor, begin: Tensor, end: Tensor, totals: Totals) -> Totals:
        def body(i: Tensor, loss: Tensor, correct: Tensor) -> tuple[Tensor, ...]:
            optimizer.learning_rate.assign(rates[i])
            step_loss, step_correct = step(order[i], images, labels)
            return i + 1, loss + tf.cast(step_loss, tf.float64), correct + step_correct

        _, loss, correct = tf.while_loop(lambda i, *_: i < end, body, (begin, *totals))
        return loss, correct

    return steps


def _replicated(step: Step, optimizer: Optimizer, images: Tensor, labels: Tensor, distribution: Distribution) -> Steps:
    """Steps that each run on every replica, with its share of the examples."""
    tf = backend.tensorflow()
    strategy, replicas = distribution.strategy, distribution.replicas

    def share(index: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        return step(tf.reshape(index, (replicas, -1, *index.shape[1:]))[replica], images, labels)

    def everywhere(index: Tensor, rate: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        optimizer.learning_rate.assign(rate)
        results = strategy.run(share, args=(index, images, labels))
        return tuple(strategy.reduce(tf.distribute.ReduceOp.SUM, result, axis=None) for result in results)

    compiled = backend.compile(everywhere)

    def steps(
        order: NDArray[np.int32], rates: NDArray[np.float32], begin: np.int32, end: np.int32, totals: Totals
    ) -> Totals:
        for i in range(int(begin), int(end)):
            step_totals = compiled(order[i], rates[i], images, labels)
            totals = totals[0] + np.float64(step_totals[0]), totals[1] + np.int32(step_totals[1])
        return totals

    return steps

"""The training steps of `steps` on JAX: many in one loop of the program, or each by itself.

The latter is for convolutions on a CPU, which XLA runs very slowly inside of a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bn_vuln.config import Cell
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.transforms import to_pixels
from bn_vuln.runtime import backend, jax_backend
from bn_vuln.training import adversarial, augmentation
from bn_vuln.training.optimizers import decay_terms, rate_factors
from bn_vuln.training.steps import Steps, Totals
from bn_vuln.typing import KerasModel, Optimizer, Tensor

# Values of the trainable variables, of the model's other variables, and of the optimizer's.
State: TypeAlias = tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]
# (state, images, labels, examples of the step as in `steps.Steps`, rate) -> (state, loss, correct predictions)
Step: TypeAlias = Callable[[State, Tensor, Tensor, Tensor, Tensor], tuple[State, Tensor, Tensor]]


def make(
    cell: Cell, model: KerasModel, optimizer: Optimizer, info: DatasetInfo, images: Tensor, labels: Tensor
) -> Steps:
    """Return steps over `images` (uint8 [n, h, w, c]) and `labels` (int32 [n]), which lie on the device."""
    jax = jax_backend.jax()
    step = _step(cell, model, optimizer, info)
    groups = model.trainable_variables, model.non_trainable_variables, optimizer.variables
    looped = backend.execution_policy(model).steps_per_call > 1
    run = jax.jit(_loop(step)) if looped else _one_by_one(jax.jit(step))

    def steps(
        order: NDArray[np.int32], rates: NDArray[np.float32], begin: np.int32, end: np.int32, totals: Totals
    ) -> Totals:
        trainable, others, optimizing = ([variable.value for variable in group] for group in groups)
        state: State = trainable, others, optimizing
        state, losses, correct = run(state, images, labels, order, rates, begin, end)
        for group, values in zip(groups, state, strict=True):
            jax_backend.assign(group, values)
        # One after another in float64, however many calls there are.
        total = np.add.accumulate([totals[0], *np.asarray(losses, np.float64)[: end - begin]])[-1]
        return total, totals[1] + np.int32(correct)

    return steps


def _loop(step: Step) -> Callable[..., tuple[State, Tensor, Tensor]]:
    """Steps `begin` to `end` as one loop of the program."""
    jax = jax_backend.jax()

    def run(
        state: State, images: Tensor, labels: Tensor, order: Tensor, rates: Tensor, begin: Tensor, end: Tensor
    ) -> tuple[State, Tensor, Tensor]:
        def body(i: Tensor, carry: tuple[State, Any, Tensor]) -> tuple[State, Tensor, Tensor]:
            state, losses, correct = carry
            state, loss, correct_now = step(state, images, labels, order[i], rates[i])
            return state, losses.at[i - begin].set(loss), correct + correct_now

        start = state, jax.numpy.zeros(rates.shape), jax.numpy.int32(0)
        result: tuple[State, Tensor, Tensor] = jax.lax.fori_loop(begin, end, body, start)
        return result

    return run


def _one_by_one(step: Step) -> Callable[..., tuple[State, Any, Any]]:
    """Steps `begin` to `end`, each a call."""

    def run(
        state: State, images: Tensor, labels: Tensor, order: Any, rates: Any, begin: np.int32, end: np.int32
    ) -> tuple[State, Any, Any]:
        losses, correct = [], 0
        for i in range(begin, end):
            state, loss, correct_now = step(state, images, labels, order[i], rates[i])
            losses.append(np.asarray(loss))
            correct += int(np.asarray(correct_now))
        return state, losses, correct

    return run


def _step(cell: Cell, model: KerasModel, optimizer: Optimizer, info: DatasetInfo) -> Step:
    """One update by the examples of `index`: int32 [n], or with augmentation [n, 4]."""
    jax = jax_backend.jax()
    jnp = jax.numpy
    decay, factors, (_, height, width, _) = decay_terms(cell, model), rate_factors(cell, model), model.input_shape
    rate_at = next(i for i, variable in enumerate(optimizer.variables) if variable is optimizer.learning_rate)
    augment, options, smoothing = cell.train.augment, cell.train.adversarial, cell.train.label_smoothing
    attack = adversarial.inner_attack(cell, options, model, optimizer, info, 1) if options else None
    squared_norm = getattr(model, "squared_norm", lambda variable: jnp.sum(variable.value**2))  # see `native_width`
    variables = [*model.trainable_variables, *model.non_trainable_variables, *optimizer.variables]

    def step(state: State, images: Tensor, labels: Tensor, index: Tensor, rate: Tensor) -> tuple[State, Tensor, Tensor]:
        trainable, others, optimizing = state
        examples = index if augment is None else index[:, 0]
        x, y = images[examples], labels[examples]
        x = x if augment is None else augmentation.crop(x, index[:, 1:], augment.pad)
        x = to_pixels(x, (height, width))
        if attack is not None:
            with jax_backend.variables_as(zip(variables, [*trainable, *others, *optimizing], strict=True)):
                x = attack(x, y)

        def loss_of(trainable: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, Sequence[Tensor]]]:
            logits, updated = model.stateless_call(trainable, others, x, training=True)
            return jnp.mean(_cross_entropy(jax, y, logits, smoothing)), (logits, updated)

        (loss, (logits, others)), gradients = jax.value_and_grad(loss_of, has_aux=True)(trainable)
        gradients = [g + k * v if k else g for g, k, v in zip(gradients, decay, trainable, strict=True)]
        with jax_backend.variables_as(zip(model.trainable_variables, trainable, strict=True)):
            norms = zip(decay, model.trainable_variables, strict=True)
            penalty = sum((0.5 * k * squared_norm(variable) for k, variable in norms if k), 0.0)
        gradients = [g if factor == 1 else factor * g for g, factor in zip(gradients, factors, strict=True)]
        optimizing = [rate if i == rate_at else value for i, value in enumerate(optimizing)]
        trainable, optimizing = optimizer.stateless_apply(optimizing, gradients, trainable)
        correct = jnp.sum(jnp.argmax(logits, axis=1) == y, dtype=jnp.int32)
        return (trainable, others, optimizing), loss + penalty, correct

    return step


def _cross_entropy(jax: Any, y: Tensor, logits: Tensor, smoothing: float) -> Tensor:
    """(labels [n], logits [n, classes]) -> cross-entropies [n]; targets are smoothed as in Szegedy et al. 2016."""
    logarithms = jax.nn.log_softmax(logits)
    loss: Tensor = -jax.numpy.take_along_axis(logarithms, y[:, None], axis=1)[:, 0]
    return (1 - smoothing) * loss - smoothing * jax.numpy.mean(logarithms, axis=1) if smoothing else loss

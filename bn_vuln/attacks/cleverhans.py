"""Attacks through CleverHans 4, an independent implementation (`--backend cleverhans`).

`attack` is its projected gradient descent, `carlini_wagner` its minimum-norm attack.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from bn_vuln.analysis import metrics
from bn_vuln.attacks.threat_model import Channels, ThreatModel
from bn_vuln.runtime import backend
from bn_vuln.typing import Images, Labels, Mask, Predict, Tensor

MEMORY = 2**26  # floats: what it keeps about constants takes a batch squared times the pixels
ADAM = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-7}  # Keras' defaults


def attack(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    *,
    threat_model: ThreatModel,
    steps: int,
    step_size: float,
    random_start: bool = False,
    targeted: bool = False,
    **_: Any,
) -> Tensor:
    """Run CleverHans' projected gradient descent.

    CleverHans knows one eps for all channels, so it works on x / scale. Its random start is TensorFlow's global
    generator. It has neither restarts, nor a best iterate, nor steps larger than eps (configs refuse them). Differences
    that remain: L2 gradients of a norm below 1e-6 are not scaled to unit length, and with ord 2 and a box it clips to
    the box between step and projection too.

    Args:
        predict: as in `pgd.attack`, like all arguments.
        x: clean images, float [n, height, width, channels], in pixels.
        y: int [n], the true labels, or the targets of a targeted attack.
        threat_model: norm, eps, scale and box.
        steps: number of gradient steps.
        step_size: length of a step, in units of the scale.
        random_start: start at a random point.
        targeted: y are targets.

    Returns:
        Adversarial images, of the shape and dtype of x.
    """
    from cleverhans.tf2.attacks.projected_gradient_descent import projected_gradient_descent

    tf = backend.tensorflow()
    scale = tf.cast(threat_model.scale, x.dtype)
    unbounded = np.isinf(threat_model.low).all() and np.isinf(threat_model.high).all()
    point = projected_gradient_descent(
        lambda z: predict(z * scale),
        x / scale,
        # Its L2 clip divides a Python float by a tensor: both must have the images' dtype.
        eps=threat_model.eps,
        eps_iter=step_size,
        nb_iter=steps,
        norm=np.inf if threat_model.ord == "inf" else 2,
        clip_min=None if unbounded else tf.cast(threat_model.low, x.dtype) / scale,
        clip_max=None if unbounded else tf.cast(threat_model.high, x.dtype) / scale,
        y=y,
        targeted=targeted,
        rand_init=1.0 if random_start else None,
        sanity_checks=False,
    )
    return point * scale


def carlini_wagner(
    predict: Predict,
    x: Images,
    y: Labels,
    *,
    scale: Channels | float,
    low: Channels | float,
    high: Channels | float,
    steps: int,
    step_size: float,
    binary_search_steps: int,
    initial_const: float,
    targeted: bool = False,
    batch_size: int = 500,
    on_progress: Callable[[int], None] = lambda done: None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Run CleverHans' Carlini-Wagner attack, repaired where it does not run.

    As it is shipped it does not run with Keras 3 (it calls a list of the optimizer's variables), adds the constants of
    all examples and pixels up to one that is n d times as large, and takes labels for targets. Here it gets an Adam, a
    constant for each example, and labels only for targets. It knows one box and scale for all channels, so it works on
    x / scale with the channels of a pixel as pixels. It needs a box, and ignores the confidence when it judges success
    (configs refuse both). Left as it is: it gives a constant up for all examples at once, and once one was a success
    for an example its bisection takes every later one for a success too, and halves it.

    Args:
        predict: as in `carlini_wagner.attack`, like all arguments.
        x: clean images, float32 [n, height, width, channels], in pixels.
        y: int [n], the true labels, or the targets of a targeted attack.
        scale: pixels to a unit of distance.
        low: lower bound of the box, finite.
        high: upper bound of the box, finite.
        steps: steps of Adam for each constant.
        step_size: learning rate of Adam.
        binary_search_steps: number of constants.
        initial_const: the first constant.
        targeted: y are targets.
        batch_size: examples at a time, or fewer.
        on_progress: called with the number of examples that are done.

    Returns:
        (adversarial images of the shape of x, is_adversarial bool [n]), as `carlini_wagner.attack`.
    """
    tf = backend.tensorflow()
    shape = tuple(x.shape[1:])
    scale, low, high = (np.broadcast_to(np.asarray(part, np.float32), shape) for part in (scale, low, high))
    column = (int(np.prod(shape)), 1, 1)

    search = _repaired_class()(
        lambda z: predict(tf.reshape(z, (-1, *shape)) * scale),
        y=None,
        clip_min=(low / scale).reshape(column),
        clip_max=(high / scale).reshape(column),
        max_iterations=steps,
        learning_rate=step_size,
        binary_search_steps=binary_search_steps,
        initial_const=initial_const,
    )
    search.targeted, search.optimizer = targeted, _Adam(step_size)
    clean, labels = np.asarray(x), np.asarray(y)
    start = np.clip(clean / scale, low / scale, high / scale).reshape(-1, *column)
    size = min(batch_size, math.isqrt(MEMORY // column[0]))
    batches = []
    for i in range(0, len(clean), size):
        search.y = labels[i : i + size] if targeted else None
        batches.append(np.asarray(search._attack(start[i : i + size])))
        on_progress(min(len(clean), i + size))
    points = np.clip(np.concatenate(batches).reshape(clean.shape) * scale, low, high)

    def is_adversarial(images: Images) -> Mask:
        parts = [slice(i, i + size) for i in range(0, len(images), size)]
        logits = np.concatenate([np.asarray(predict(tf.constant(images[part]))) for part in parts])
        return metrics.is_correct(logits, labels) == targeted

    before, after = is_adversarial(clean), is_adversarial(points)
    kept = np.where((after & ~before)[:, None, None, None], points, clean)
    return tf.constant(kept), tf.constant(after | before)


def _repaired_class() -> Any:
    """CleverHans' class with one constant for each example."""
    from cleverhans.tf2.attacks.carlini_wagner_l2 import CarliniWagnerL2

    tf = backend.tensorflow()

    class Repaired(CarliniWagnerL2):  # type: ignore[misc]
        def gradient(self, x: Tensor, y: Tensor, modifier: Tensor, const: Tensor) -> Any:
            """Call CleverHans' method with the constant of each example.

            `const` has all pixels in front, and the examples last as soon as they differ.
            """
            own = tf.broadcast_to(tf.reshape(const[0], (-1, const.shape[-1]))[0], (x.shape[0],))
            return super().gradient(x, y, modifier, own)

    return Repaired


class _Adam:
    """The optimizer as CleverHans uses it: `variables` is called, and what it returns is set to zero.

    It is the fused op of TensorFlow, as Keras 2 had it. Keras 3's is slower, and keeps the learning rate among its
    variables.
    """

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate = learning_rate
        self._slots: list[Any] = []

    def variables(self) -> list[Any]:
        """Return the number of steps, the first and the second moments."""
        return self._slots

    def apply_gradients(self, pairs: Any) -> None:
        """Take one step."""
        tf = backend.tensorflow()
        ((gradient, variable),) = pairs
        if not self._slots or self._slots[1].shape != variable.shape:
            self._slots = [tf.Variable(0.0), *(tf.Variable(tf.zeros_like(variable)) for _ in range(2))]
        step, m, v = self._slots
        step.assign_add(1.0)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle, m=m.handle, v=v.handle, beta1_power=ADAM["beta1"] ** step,
            beta2_power=ADAM["beta2"] ** step, lr=self.learning_rate, grad=gradient, **ADAM,
        )  # fmt: skip

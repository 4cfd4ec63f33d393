"""The same minimum-norm attack through CleverHans 4, as an independent implementation (`--backend cleverhans`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln.analysis import metrics
from bn_vuln.attacks.losses import Predict
from bn_vuln.attacks.threat_model import Channels
from bn_vuln.runtime import backend

MEMORY = 2**26  # floats: what it keeps about constants takes a batch squared times the pixels
KERAS = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-7}  # Adam's defaults


def attack(
    predict: Predict,
    x: Any,
    y: Any,
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
) -> tuple[Any, Any]:
    """CleverHans' Carlini-Wagner, arguments and results as in `attacks.carlini_wagner.attack`.

    As it is shipped it does not run with Keras 3 (it calls a list of the optimizer's variables), adds the constants of
    all examples and pixels up to one that is n d times as large, and takes labels for targets; it is given an Adam, its
    own constant for each example, and labels only for targets. It knows one box and scale for all channels, so it works
    on x / scale with the channels of a pixel as pixels. It needs a box, and ignores the confidence when it judges
    success (configs refuse both). Left as it is: it gives a constant up for all examples at once, and once one was a
    success for an example its bisection takes every later one for a success too, and halves it.
    """
    tf = backend.tensorflow()
    shape = tuple(x.shape[1:])
    scale, low, high = (np.broadcast_to(np.asarray(part, np.float32), shape) for part in (scale, low, high))
    column = (int(np.prod(shape)), 1, 1)

    def scaled(z: Any) -> Any:
        return predict(tf.reshape(z, (-1, *shape)) * scale)

    search = _repaired()(
        scaled,
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
    pieces = []
    for i in range(0, len(clean), size):
        search.y = labels[i : i + size] if targeted else None
        pieces.append(np.asarray(search._attack(start[i : i + size])))
        on_progress(min(len(clean), i + size))
    points = np.clip(np.concatenate(pieces).reshape(clean.shape) * scale, low, high)
    before, after = (_hit(predict, z, labels, size) == targeted for z in (clean, points))
    kept = np.where((after & ~before)[:, None, None, None], points, clean)
    return tf.constant(kept), tf.constant(after | before)


def _hit(predict: Predict, x: NDArray[np.float32], labels: NDArray[np.int32], size: int) -> NDArray[np.bool_]:
    """Whether the class is the label, `size` examples at a time."""
    pieces = [slice(i, i + size) for i in range(0, len(x), size)]
    return np.concatenate([metrics.predicted(np.asarray(predict(x[piece])), labels[piece]) for piece in pieces])


def _repaired() -> Any:
    """CleverHans' class with one constant for each example."""
    from cleverhans.tf2.attacks.carlini_wagner_l2 import CarliniWagnerL2

    tf = backend.tensorflow()

    class Repaired(CarliniWagnerL2):  # type: ignore[misc]
        def gradient(self, x: Any, y: Any, modifier: Any, const: Any) -> Any:
            """`const` has all pixels in front, and the examples last as soon as they differ."""
            own = tf.broadcast_to(tf.reshape(const[0], (-1, const.shape[-1]))[0], (x.shape[0],))
            return super().gradient(x, y, modifier, own)

    return Repaired


class _Adam:
    """The optimizer as CleverHans uses it: `variables` to call, which it sets to zero. The fused op of TensorFlow, as
    Keras 2 had it; Keras 3's is slower, and keeps the learning rate among its variables."""

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate = learning_rate
        self._slots: list[Any] = []

    def variables(self) -> list[Any]:
        """Steps taken, first and second moments."""
        return self._slots

    def apply_gradients(self, pairs: Any) -> None:
        """One step."""
        tf = backend.tensorflow()
        ((gradient, variable),) = pairs
        if not self._slots or self._slots[1].shape != variable.shape:
            self._slots = [tf.Variable(0.0), *(tf.Variable(tf.zeros_like(variable)) for _ in range(2))]
        step, m, v = self._slots
        step.assign_add(1.0)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle, m=m.handle, v=v.handle, beta1_power=KERAS["beta1"] ** step,
            beta2_power=KERAS["beta2"] ** step, lr=self.learning_rate, grad=gradient, **KERAS,
        )  # fmt: skip

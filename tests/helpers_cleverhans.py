"""CleverHans' Carlini-Wagner attack, repaired where it does not run: an independent implementation to compare with."""

import math

import numpy as np

from bn_vuln.analysis import metrics
from bn_vuln.runtime import backend

MEMORY = 2**26  # floats: what it keeps about constants takes a batch squared times the pixels
ADAM = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-7}  # Keras' defaults


def carlini_wagner(
    predict,
    x,
    y,
    *,
    scale,
    low,
    high,
    steps,
    step_size,
    binary_search_steps,
    initial_const,
    targeted=False,
    batch_size=500,
    on_progress=lambda done: None,
    **_,
):
    """Run it; returns (adversarial images of the shape of x, is_adversarial bool [n]).

    As it is shipped it does not run with Keras 3 (it calls a list of the optimizer's variables), adds the constants of
    all examples and pixels up to one that is n d times as large, and takes labels for targets. Here it gets an Adam, a
    constant for each example, and labels only for targets. It knows one box and scale for all channels, so it works on
    x / scale with the channels of a pixel as pixels. It needs a box, and ignores the confidence when it judges success.
    Left as it is: it gives a constant up for all examples at once, and once one was a success for an example its
    bisection takes every later one for a success too, and halves it.
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

    def is_adversarial(images):
        parts = [slice(i, i + size) for i in range(0, len(images), size)]
        logits = np.concatenate([np.asarray(predict(tf.constant(images[part]))) for part in parts])
        return metrics.is_correct(logits, labels) == targeted

    before, after = is_adversarial(clean), is_adversarial(points)
    kept = np.where((after & ~before)[:, None, None, None], points, clean)
    return tf.constant(kept), tf.constant(after | before)


def _repaired_class():
    """CleverHans' class with one constant for each example."""
    from cleverhans.tf2.attacks.carlini_wagner_l2 import CarliniWagnerL2

    tf = backend.tensorflow()

    class Repaired(CarliniWagnerL2):
        def gradient(self, x, y, modifier, const):
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

    def __init__(self, learning_rate):
        self.learning_rate = learning_rate
        self._slots = []

    def variables(self):
        """Return the number of steps, the first and the second moments."""
        return self._slots

    def apply_gradients(self, pairs):
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

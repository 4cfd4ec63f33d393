"""Fooling images (Nguyen et al. 2015): noise led by gradient ascent to where a network is confident of a class.

The gradient is divided by its L2 norm, and not its sign taken, so that a step goes the same way in pixels whatever the
size of the logits, and no further in directions that hardly matter. How many steps it takes is then a matter of how
steep the log-odds are, and of where the noise lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln import attacks
from bn_vuln.attacks.losses import input_gradient, log_odds, replace_nonfinite
from bn_vuln.attacks.threat_model import per_example
from bn_vuln.config import Fooling
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.units import bounds
from bn_vuln.runtime import backend
from bn_vuln.typing import Predict

BATCH_SIZE = 500


@dataclass(frozen=True)
class Fooled:
    """`images` float32 [n, height, width, channels], the first that `reached` (bool [n]) the confidence, or the last
    ones; `steps` int32 [n] until then; the `confidence` float32 [n] of the images, and that `after` a fixed number of
    steps."""

    images: NDArray[np.float32]
    steps: NDArray[np.int32]
    reached: NDArray[np.bool_]
    confidence: NDArray[np.float32]
    after: NDArray[np.float32]


def starts(options: Fooling, width: int, info: DatasetInfo) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """(noise float32 [n, width, width, channels] in pixels, the classes it is led to, int32 [n]). The first images are
    one for each class, all from the same noise, as the next ones are from another; it depends on the seed alone."""
    classes, shape = len(info.classes), (width, width, info.shape[2])
    low, high = bounds(options.box, info)
    drawn = [
        np.random.Generator(np.random.Philox(key=[options.seed, i])).standard_normal(shape, dtype=np.float32)
        for i in range(options.per_class)
    ]
    noise = np.clip(np.float32(options.mean) + np.float32(options.std) * np.stack(drawn), low, high)
    return np.repeat(noise, classes, axis=0), np.tile(np.arange(classes, dtype=np.int32), options.per_class)


def ascend(
    predict: Predict, x: NDArray[np.float32], y: NDArray[np.int32], options: Fooling, info: DatasetInfo
) -> Fooled:
    """Lead images x to the classes y. Where there is no finite gradient they stay; where logits are not finite the
    confidence is 0.

    `predict`: float pixels [n, height, width, channels] -> logits [n, classes], differentiable.
    """
    tf = backend.tensorflow()
    low, high = bounds(options.box, info)
    climb = backend.compile(lambda x, y: _climb(predict, x, y, options, low, high))
    pieces = [climb(*(tf.constant(a[i : i + BATCH_SIZE]) for a in (x, y))) for i in range(0, len(x), BATCH_SIZE)]
    parts = (np.concatenate([np.asarray(part) for part in same]) for same in zip(*pieces, strict=True))
    return Fooled(*parts)


def _climb(predict: Predict, x: Any, y: Any, options: Fooling, low: Any, high: Any) -> tuple[Any, ...]:
    """The fields of `Fooled`. All points go on until all have arrived; what an image was when it did is kept."""
    tf = backend.tensorflow()
    threat_model = attacks.ThreatModel("2", np.inf)

    def going(i: Any, point: Any, images: Any, steps: Any, reached: Any, *_: Any) -> Any:
        return (i <= options.steps) & ((i <= options.after) | ~tf.reduce_all(reached))

    def step(i: Any, point: Any, images: Any, steps: Any, reached: Any, last: Any, after: Any) -> tuple[Any, ...]:
        _, odds, slope = input_gradient(
            predict, point, lambda logits: -log_odds(logits, y)
        )  # log(p / (1 - p)) of the class
        p = replace_nonfinite(tf.sigmoid(odds))
        moved = tf.clip_by_value(threat_model.step(point, slope, options.step_size), low, high)
        return (
            i + 1,
            moved,
            tf.where(per_example(reached), images, point),
            tf.where(reached, steps, i),
            reached | (p >= options.confidence),
            tf.where(reached, last, p),
            tf.where(tf.equal(i, options.after), p, after),
        )

    n, zeros = tf.shape(x)[0], tf.zeros_like(x[:, 0, 0, 0])
    begun = (0, x, x, tf.zeros([n], tf.int32), tf.zeros([n], tf.bool), zeros, zeros)
    return tuple(tf.while_loop(going, step, begun)[2:])

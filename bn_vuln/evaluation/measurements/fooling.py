"""Fooling images: noise that gradient ascent changes until a network is confident of a class.

Nguyen et al. (2015), "Deep neural networks are easily fooled". The gradient is divided by its L2 norm, and not its sign
taken, so that a step goes the same way in pixels whatever the size of the logits, and no further in directions that
hardly matter. How many steps it takes is then a matter of how steep the log-odds are, and of where the noise lies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bn_vuln import attacks
from bn_vuln.attacks.losses import input_gradient, log_odds, replace_nonfinite
from bn_vuln.attacks.threat_model import per_example
from bn_vuln.config import Fooling
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.units import bounds
from bn_vuln.evaluation.measurements.base import FIGURE_BYTES, MeasuredModel, MeasurementResult
from bn_vuln.runtime import backend, ops
from bn_vuln.runtime.batch_size import map_batches
from bn_vuln.typing import Arrays, Images, Labels, Mask, Predict, Tensor

BATCH_SIZE = 500


def measure(model: MeasuredModel, options: Fooling) -> MeasurementResult:
    """Measure the mean number of steps until noise is a fooling image.

    Args:
        model: the classifier; its examples are not used.
        options: noise, steps and confidence.

    Returns:
        The mean number of steps; the share of images that `reached` the confidence, the mean `confidence` after a fixed
        number of steps and the mean L2 `distance` from the noise. As arrays `steps` int32 [n], `reached` bool [n] and
        `confidence` float32 [n] of all images, where image i is led to class i mod the number of classes; and for
        figures `images`, the first one of each class, float16 [k, height, width, channels], as many as fit.
    """
    classifier = model.classifier
    noise, targets = starting_points(options, classifier.size, classifier.info)
    found = ascend(classifier.predict, noise, targets, options, classifier.info)
    offset = (found.images - noise).reshape(len(noise), -1)
    details = {
        "reached": float(found.reached.mean()),
        "confidence": float(found.confidence_after.mean()),
        "distance": float(np.linalg.norm(offset, axis=1).mean()),
    }
    images = found.images[: len(classifier.info.classes)].astype(np.float16)
    arrays: Arrays = {
        "steps": found.steps,
        "reached": found.reached,
        "confidence": found.confidence,
        "images": images[: max(1, FIGURE_BYTES // images[0].nbytes)],
    }
    return MeasurementResult(float(found.steps.mean()), "steps", len(noise), details, arrays)


@dataclass(frozen=True)
class FoolingImages:
    """The images of a gradient ascent.

    Attributes:
        images: pixels [n, height, width, channels], the first iterate that reached the confidence, or the last one.
        steps: int32 [n], the steps until then.
        reached: bool [n], True where the confidence was reached.
        confidence: float32 [n], softmax probability of the class, of these images.
        confidence_after: float32 [n], that after a fixed number of steps.
    """

    images: Images
    steps: Labels
    reached: Mask
    confidence: NDArray[np.float32]
    confidence_after: NDArray[np.float32]


def starting_points(options: Fooling, size: tuple[int, int], info: DatasetInfo) -> tuple[Images, Labels]:
    """Return the noise that the ascent starts at.

    Args:
        options: mean, std and box of the noise, in pixels; images for each class; seed.
        size: height and width of the images.
        info: the data set, for its classes and channels.

    Returns:
        (noise float32 [n, height, width, channels] in pixels, the classes that it is led to int32 [n]). The first
        images are one for each class, all from the same noise, the next ones from another; it depends on the seed
        alone.
    """
    classes, shape = len(info.classes), (*size, info.shape[2])
    low, high = bounds(options.box, info)
    normal = [
        np.random.Generator(np.random.Philox(key=[options.seed, i])).standard_normal(shape, dtype=np.float32)
        for i in range(options.per_class)
    ]
    noise = np.clip(np.float32(options.mean) + np.float32(options.std) * np.stack(normal), low, high)
    return np.repeat(noise, classes, axis=0), np.tile(np.arange(classes, dtype=np.int32), options.per_class)


def ascend(predict: Predict, x: Images, y: Labels, options: Fooling, info: DatasetInfo) -> FoolingImages:
    """Lead images to classes by gradient ascent on the log-odds of the class.

    Args:
        predict: pixels [n, height, width, channels] -> logits [n, classes], differentiable.
        x: the images, pixels [n, height, width, channels].
        y: the classes, int32 [n].
        options: steps, step size, confidence and box.
        info: the data set, for the box.

    Returns:
        The images. Where there is no finite gradient they stay; where logits are not finite the confidence is 0.
    """
    low, high = bounds(options.box, info)
    run = backend.compile(lambda x, y: _ascend(predict, x, y, options, low, high))
    return FoolingImages(*map_batches(run, x, y, batch_size=BATCH_SIZE))


def _ascend(predict: Predict, x: Tensor, y: Tensor, options: Fooling, low: object, high: object) -> tuple[Tensor, ...]:
    """The fields of `FoolingImages`; all points go on until the last arrives, and what an image was then is kept."""
    direction = attacks.ThreatModel("2", np.inf)

    def unfinished(i: Tensor, point: Tensor, images: Tensor, steps: Tensor, reached: Tensor, *_: Tensor) -> Tensor:
        going: Tensor = (i <= options.steps) & ((i <= options.after) | ~ops.all(reached))
        return going

    def step(
        i: Tensor, point: Tensor, images: Tensor, steps: Tensor, reached: Tensor, last: Tensor, after: Tensor
    ) -> tuple[Tensor, ...]:
        _, odds, slope = input_gradient(
            predict, point, lambda logits: -log_odds(logits, y)
        )  # log(p / (1 - p)) of the class
        p = replace_nonfinite(ops.sigmoid(odds))
        moved = ops.clip(direction.step(point, slope, options.step_size), low, high)
        return (
            i + 1,
            moved,
            ops.where(per_example(reached), images, point),
            ops.where(reached, steps, i),
            reached | (p >= options.confidence),
            ops.where(reached, last, p),
            ops.where(ops.equal(i, options.after), p, after),
        )

    zeros = ops.zeros_like(x[:, 0, 0, 0])
    start = (0, x, x, ops.zeros_like(zeros, "int32"), ops.zeros_like(zeros, "bool"), zeros, zeros)
    return tuple(ops.while_loop(unfinished, step, start)[2:])

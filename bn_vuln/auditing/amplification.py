"""Amplification: how many times more an adversarial perturbation moves a layer than a random one of its length.

The formulas are in docs/method/audit.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bn_vuln.attacks import example_rng
from bn_vuln.auditing.taps import in_equal_batches, median, tapped
from bn_vuln.evaluation.classifier import Classifier
from bn_vuln.models.normalization_layers import NormalizationLayer
from bn_vuln.runtime import ops
from bn_vuln.typing import AnyArray, Images, Labels, Tensor

N_RANDOM = 8  # random perturbations of each image
STREAM = 2**30  # added to the seed: attacks start from other random numbers than these
ROUNDS = 5  # of scaling a random perturbation and cutting it to the box
MAX_CHANGED = 100  # images of which amplification is measured, at most


@dataclass(frozen=True)
class Attacked:
    """Images, and what an attack made of them.

    Attributes:
        x: clean pixels [n, height, width, channels].
        labels: their classes, [n].
        adversarial: adversarial pixels, of the shape of x.
        index: the number of each image in its data set, which its random perturbations follow from; any int [n].
        ord: norm of the attack.
        box: lowest and highest pixel.
    """

    x: Images
    labels: Labels
    adversarial: Images
    index: NDArray[np.integer[Any]]
    ord: Literal["inf", "2"]
    box: tuple[float, float] = (0.0, 1.0)


def amplifications(
    classifier: Classifier, layers: Sequence[NormalizationLayer], attacked: Attacked, batch_size: int, seed: int
) -> list[tuple[float | None, float | None]]:
    """Return the amplification of the inputs and of the outputs of each layer, and last that of the logits, twice.

    Args:
        classifier: in inference.
        layers: those that are listened to.
        attacked: the first 100 that the attack moved are used.
        batch_size: images that are computed at once, at most, with their perturbations.
        seed: of the random perturbations.
    """
    changed = np.flatnonzero((attacked.adversarial != attacked.x).any(axis=(1, 2, 3)))[:MAX_CHANGED]
    if not len(changed):
        return [(None, None)] * (len(layers) + 1)
    copies = 2 + N_RANDOM

    def movements(x: Tensor, adversarial: Tensor, index: Tensor) -> list[Tensor]:
        """How far each perturbation moves each tensor, by its own length; the adversarial one is the first."""
        random = random_changes(x, adversarial, index, attacked.ord, attacked.box, seed)
        changes = ops.concatenate([(adversarial - x)[None], random], axis=0)
        lengths = ops.sqrt(ops.sum(changes**2, axis=(2, 3, 4)))
        points = ops.concatenate([x[None], x + changes], axis=0)
        with tapped(classifier.model, layers) as taps:
            logits = classifier.predict(ops.reshape(points, (-1, *x.shape[1:])))

        def distances(h: Tensor) -> Tensor:
            h = ops.reshape(ops.cast(h, "float32"), (copies, ops.shape(x)[0], -1))
            return ops.transpose(ops.sqrt(ops.sum((h[1:] - h[:1]) ** 2, axis=2)) / lengths)

        return [distances(h) for pair in [*taps(), (logits, logits)] for h in pair]

    arrays = attacked.x[changed], attacked.adversarial[changed], attacked.index[changed].astype(np.int32)
    found = in_equal_batches(movements, *arrays, size=max(1, batch_size // copies))
    values = [_amplification(distances) for distances in found]
    return list(zip(values[::2], values[1::2], strict=True))


def random_changes(
    x: Tensor, adversarial: Tensor, index: Tensor, ord: str, box: tuple[float, float], seed: int
) -> Tensor:
    """Draw random perturbations of the same threat model and length as an adversarial one.

    They are corners of the ball for "inf", of random signs, and random directions for "2". Scaling to the length and
    cutting to the box take turns; the last is the cut, so some may stay shorter.

    Args:
        x: clean pixels [n, height, width, channels].
        adversarial: adversarial pixels, of the same shape.
        index: int32 [n], the number of each image.
        ord: norm of the threat model.
        box: lowest and highest pixel.
        seed: of the draw.

    Returns:
        Perturbations [N_RANDOM, n, height, width, channels]. Each depends on (seed, its number, index) and its image
        alone.
    """
    dimension = int(np.prod(x.shape[1:]))
    number = ops.arange(N_RANDOM, dtype="int32")[:, None] + ops.zeros_like(index)
    keys = ops.reshape(number, (-1,)), ops.reshape(ops.zeros_like(number) + index, (-1,))
    if ord == "inf":
        change = ops.where(example_rng.uniform(dimension, seed + STREAM, *keys) < 0.5, -1.0, 1.0)
    else:
        change = example_rng.normal(dimension, seed + STREAM, *keys)
    change = ops.reshape(change, (N_RANDOM, -1, *x.shape[1:]))

    def length(change: Tensor) -> Tensor:
        return ops.sqrt(ops.sum(change**2, axis=(-3, -2, -1), keepdims=True))

    for _ in range(ROUNDS):
        change = change * ops.divide_no_nan(length(adversarial - x), length(change))
        change = ops.clip(x + change, *box) - x
    return change


def _amplification(distances: AnyArray) -> float | None:
    """Of distances [n, 1 + N_RANDOM], the adversarial one first: its ratio to the mean of the others, median over n."""
    with np.errstate(all="ignore"):  # 0 / 0 where nothing moves
        return median(distances[:, 0].astype(np.float64) / distances[:, 1:].astype(np.float64).mean(axis=1))

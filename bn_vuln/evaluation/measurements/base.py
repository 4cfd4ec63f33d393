"""Shared parts of measurements: their result, and a classifier with its examples and margin gradients.

All gradients are with respect to pixels, in inference mode.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bn_vuln import data
from bn_vuln.config import Evaluation
from bn_vuln.data.transforms import pixel_array
from bn_vuln.errors import BnvulnError
from bn_vuln.evaluation.classifier import Classifier
from bn_vuln.evaluation.eval_set import check_memory_of_images, load
from bn_vuln.runtime import backend, ops
from bn_vuln.runtime.batch_size import map_batches
from bn_vuln.typing import Arrays, Images, Labels, Tensor

BATCH_SIZE = 250
FIGURE_BYTES = 26_000  # of images that are kept for figures
NO_GRADIENT = "no example has a finite gradient of the logits with respect to its pixels: no boundary can be measured"


@dataclass(frozen=True)
class MeasurementResult:
    """One number measured of a classifier.

    Attributes:
        value: the number, or None where the classifier has none.
        unit: its unit; `%` for fractions.
        n: the examples behind it.
        details: further numbers.
        arrays: the arrays that lie beside the record.
    """

    value: float | None
    unit: str
    n: int
    details: dict[str, float]
    arrays: Arrays


@dataclass(frozen=True)
class MeasuredModel:
    """A classifier on its examples; what its measurements share is computed once.

    Attributes:
        classifier: with the BN statistics of the evaluation.
        examples: the examples, as they are stored.
        evaluation: where it is measured, as it was asked for.
    """

    classifier: Classifier
    examples: data.Dataset
    evaluation: Evaluation

    @functools.cached_property
    def in_random_order(self) -> data.Dataset:
        """The examples in a fixed random order, that of a limit: a published order may go class by class."""
        limited = self.evaluation.model_copy(update={"limit": len(self.examples)})
        return self.examples if self.evaluation == limited else load(self.classifier, limited)

    @functools.cached_property
    def pixels(self) -> Images:
        """Clean images, float32 [n, height, width, channels], at the size of the classifier's input.

        Raises `UsageError` where memory does not hold them and their gradients.
        """
        check_memory_of_images(self.examples, self.classifier, copies=2)
        return pixel_array(self.examples.images[:], self.classifier.size)

    @functools.cached_property
    def margin_gradients(self) -> tuple[NDArray[np.float32], Labels]:
        """The `margin_gradients` of all examples. Raises `BnvulnError` where none is finite and not zero."""
        gradients, rivals = margin_gradients(self.classifier, self.pixels, self.examples.labels)
        if not (gradients.any(axis=1) & np.isfinite(gradients).all(axis=1)).any():
            raise BnvulnError(NO_GRADIENT)
        return gradients, rivals


def margin_gradients(classifier: Classifier, x: Images, labels: Labels) -> tuple[NDArray[np.float32], Labels]:
    """Return the input gradients of the logit margins z_y - z_k, k the strongest other class.

    Args:
        classifier: the classifier.
        x: pixels [n, height, width, channels].
        labels: the classes y, int32 [n].

    Returns:
        (gradients float32 [n, d], the other classes k int32 [n]).
    """

    def margin(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = classifier.predict(x)
        own = ops.one_hot(y, logits.shape[1], dtype=logits.dtype)
        rivals = ops.argmax(ops.where(own > 0, float(np.finfo(np.float32).min), logits), axis=1)
        other = ops.one_hot(rivals, logits.shape[1], dtype=logits.dtype)
        return ops.sum(logits * (own - other), axis=1), rivals

    def gradient(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return backend.value_and_gradient(lambda x: margin(x, y), x)[1:]

    gradients, rivals = map_batches(backend.compile(gradient), x, labels, batch_size=BATCH_SIZE)
    return gradients.reshape(len(x), -1), rivals

"""Halves of audited images, one that chooses and one that reports, and the images that a change is fitted on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bn_vuln import data
from bn_vuln.auditing.options import FEWEST
from bn_vuln.config import Evaluation
from bn_vuln.data.published import WHOLE
from bn_vuln.errors import UsageError
from bn_vuln.evaluation import eval_set
from bn_vuln.evaluation.classifier import Classifier
from bn_vuln.typing import Index, Labels

MOST_FOR_STATISTICS, LEAST_FOR_STATISTICS = 2000, 200  # images
PIXELS_FOR_STATISTICS = MOST_FOR_STATISTICS * 32 * 32  # larger images give a channel more values each
BYTES_FOR_STATISTICS = 2**29  # of their float32 pixels at the model's input


@dataclass(frozen=True)
class Halves:
    """Positions of images, ascending, int64; no image is in both.

    Attributes:
        choosing: by which something is chosen.
        reporting: of which it is reported what was chosen.
    """

    choosing: Index
    reporting: Index


def halves_of(dataset: data.Dataset) -> Halves:
    """Split the measured images.

    Raises:
        UsageError: There are too few.
    """
    if len(dataset) < FEWEST:
        raise UsageError(f"{dataset.info.label}: {len(dataset)} images are measured, {FEWEST} are needed")
    return halves(dataset.labels)


def halves(labels: Labels, seed: int = 0) -> Halves:
    """Split images into two halves with as many of each class, to one, in both.

    Args:
        labels: int32 [n].
        seed: of the split; the same labels and seed give the same halves.
    """
    shuffled = data.permutation(len(labels), seed)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    return Halves(np.sort(by_class[::2]), np.sort(by_class[1::2]))


def fitting_images(
    classifier: Classifier,
    evaluation: Evaluation,
    dataset: data.Dataset,
    halves: Halves,
    *,
    all_images: bool = False,
) -> tuple[data.Dataset, str]:
    """Load the images that a change may be fitted on: none of them is in the reporting half.

    They are those of the training split where another one is measured; else the choosing half, and the images of the
    measured split that were not measured.

    Args:
        classifier: the classifier.
        evaluation: data set and split that are measured.
        dataset: the images that are measured.
        halves: of these images.
        all_images: take them all, in their order, as training needs them. Statistics are estimated of 2,000 in a fixed
            random order, of images larger than 32 x 32 fewer, down to 200, and of as many as memory holds the pixels.

    Returns:
        (images, where they are from, in words).
    """
    split = "train" if _has_own_train_split(classifier, evaluation) else evaluation.split
    everything = eval_set.load(classifier, evaluation.model_copy(update={"split": split, "limit": None}))
    if split != evaluation.split:
        examples, where = everything, f"the train split of {everything.info.label}"
    else:
        examples = everything.take(np.flatnonzero(~np.isin(everything.index, dataset.index[halves.reporting])))
        others = len(examples) - len(halves.choosing)
        where = "the choosing half" + (" and the images that were not measured" if others else "")
    if not all_images:
        pixels = int(np.prod(classifier.size))
        most = max(LEAST_FOR_STATISTICS, min(MOST_FOR_STATISTICS, PIXELS_FOR_STATISTICS // pixels))
        most = min(len(examples), most, max(1, BYTES_FOR_STATISTICS // (4 * classifier.channels * pixels)))
        examples = data.subset(examples, most, everything.info.label)
    return examples, f"{len(examples):,} images: {where}"


def _has_own_train_split(classifier: Classifier, evaluation: Evaluation) -> bool:
    """True where there is a training split that has no image of the measured one."""
    published = data.splits(evaluation.dataset or classifier.dataset)
    return evaluation.split in ("test", "validation") and ("train" in published or WHOLE in published)

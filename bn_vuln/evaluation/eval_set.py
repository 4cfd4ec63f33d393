"""What is measured, and on what: the classifier with the BN statistics that are asked for, and its examples."""

from __future__ import annotations

import dataclasses
from typing import Any

from bn_vuln import data
from bn_vuln.config import Evaluation
from bn_vuln.data.transforms import check_width
from bn_vuln.errors import UsageError
from bn_vuln.evaluation.classifier import Classifier
from bn_vuln.models import bn_statistics

STATISTICS = 500  # examples whose statistics BN has with bn_statistics: batch; another number, another classifier


def with_statistics(classifier: Classifier, evaluation: Evaluation) -> Classifier:
    """The classifier with the BN statistics that the evaluation asks for; one without BN as it is."""
    kind = evaluation.bn_statistics
    if kind == "tracked" or not bn_statistics.has_batch_normalization(classifier.model):
        return classifier
    if kind == "batch":
        return dataclasses.replace(
            classifier, model=bn_statistics.use_batch_statistics(classifier.model), training=True
        )
    examples, batch_size = trained_on(classifier)
    if data.is_user_data(classifier.dataset):  # published sets are mixed, user data may go class by class
        examples = data.subset(examples, len(examples), classifier.dataset)

    def call(model: Any, pixels: Any) -> Any:
        return dataclasses.replace(classifier, model=model, training=True).predict(pixels)

    model = bn_statistics.reestimate_statistics(
        classifier.model, examples.images, batch_size, width=classifier.width, call=call
    )
    return dataclasses.replace(classifier, model=model)


def trained_on(classifier: Classifier, dataset: str | None = None) -> tuple[data.Dataset, int]:
    """The training examples of a classifier and the batch size it was trained with; for a foreign one all of its data
    set's, and 100. `dataset` says where its data are now."""
    cell = classifier.identity
    limited = {key: cell["data"][key] for key in ("limit", "balanced") if key in cell.get("data", {})}
    examples = data.load(
        dataset or classifier.dataset,
        "train",
        validation=classifier.validation,
        classes=classifier.classes,
        subset_seed=classifier.subset_seed,
        **limited,
    )
    return examples, cell.get("train", {}).get("batch_size", 100)


def load(classifier: Classifier, evaluation: Evaluation) -> data.Dataset:
    """What is measured on, checked against what the classifier takes. Of its training split only the examples that it
    was trained on. For BN with the statistics of the batch in a fixed random order even without a limit, since a
    published order may go class by class, and of a larger set whole batches alone: a smaller one would be measured on
    another classifier."""
    name, ours = evaluation.dataset or classifier.dataset, classifier.info

    def read(limit: int | None) -> data.Dataset:
        if _on_trained(classifier, evaluation):
            return data.subset(trained_on(classifier, name)[0], limit, f"{name}: limit: what was trained on")
        return data.load(
            name,
            evaluation.split,
            validation=classifier.validation,
            limit=limit,
            classes=classifier.classes,
            subset_seed=classifier.subset_seed if evaluation.split != "test" else None,
        )

    try:
        dataset = read(evaluation.limit)
        if evaluation.bn_statistics == "batch":
            whole = _in_batches(len(dataset), evaluation.limit)
            dataset = dataset if whole == evaluation.limit else read(whole)
    except UsageError as error:
        moved = evaluation.dataset is None and ":" in ours.name  # user data, by their digest
        raise UsageError(f"{error}" + ("; if the data were moved, name them with --data" if moved else "")) from None
    info = dataset.info
    if evaluation.dataset is None and info.name != ours.name:
        raise UsageError(f"{name} has changed since this was trained on it; name the data to measure on with --data")
    if info.classes != ours.classes:
        raise UsageError(f"{name}: its classes are not those of {classifier.dataset}")
    if info.shape[2] != ours.shape[2]:
        raise UsageError(f"{name}: expected images of {ours.shape[2]} channels, received {info.shape[2]}")
    check_width(classifier.width, info.shape[1], name)
    return dataset


def _on_trained(classifier: Classifier, evaluation: Evaluation) -> bool:
    """Whether the examples are those that the classifier was trained on: the training split of its own data, be they
    named or not."""
    own = evaluation.dataset is None or data.dataset_info(evaluation.dataset).name == classifier.info.name
    return own and evaluation.split == "train"


def _in_batches(n: int, limit: int | None) -> int:
    """How many of n examples make whole batches. Raises `UsageError` where a limit asks for others."""
    whole = n - n % STATISTICS if n > STATISTICS else n
    if limit not in (None, whole):
        raise UsageError(
            f"limit: bn_statistics: batch takes BN's statistics from batches of {STATISTICS}; "
            f"expected a multiple of {STATISTICS}, or fewer, received {limit}"
        )
    return whole


def within(evaluation: Evaluation, classifier: Classifier) -> Evaluation:
    """The same without a limit that the data set is too small for, as a suite's may be."""
    info = data.dataset_info(evaluation.dataset) if evaluation.dataset else classifier.info
    size = {**info.sizes, "validation": classifier.validation}.get(evaluation.split, 0)
    if _on_trained(classifier, evaluation):
        size = len(trained_on(classifier, evaluation.dataset)[0])
    large = evaluation.limit is not None and 0 < size < evaluation.limit
    return evaluation.model_copy(update={"limit": None}) if large else evaluation

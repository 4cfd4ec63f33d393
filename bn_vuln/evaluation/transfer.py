"""Transfer: adversarial examples of one model, the source, given to another, the target.

The source is attacked once; what counts are the images that are kept (`result.Result.images`). A target's accuracy on
them is what the paper's Appendix E.2 has. The transfer rate is the share of examples that are adversarial for the
target, of those that both models classify correctly when clean and that are adversarial for the source; so it depends
neither on clean accuracy nor on how often the attack succeeds on the source. An example is adversarial for a model that
misclassifies it, whatever the target of a targeted attack.

An attack that stops at the first success leaves its examples at the source's boundary, where they transfer less, so
here the iterative attacks keep the last iterate unless another one is named.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from bn_vuln import records
from bn_vuln.analysis import metrics
from bn_vuln.analysis.statistics import Proportion
from bn_vuln.config import Attack, Evaluation
from bn_vuln.errors import UsageError
from bn_vuln.evaluation import attack_diagnostics, recording, sanity_checks
from bn_vuln.evaluation.classifier import Classifier
from bn_vuln.evaluation.evaluator import Evaluator
from bn_vuln.evaluation.result import Result
from bn_vuln.records.comparability import unequal_clean_accuracy
from bn_vuln.records.names import short_names
from bn_vuln.runtime.distribution import ONE_DEVICE, Distribution
from bn_vuln.runtime.progress import Progress, Quiet
from bn_vuln.typing import Images, Mask, Plain

Ids = tuple[str, str]  # of a source and a target


@dataclass(frozen=True)
class Model:
    """A model of a transfer.

    Attributes:
        classifier: the classifier.
        folder: run folder that its records go to.
        label: the name or path that its user knows it by.
    """

    classifier: Classifier
    folder: Path
    label: str

    @property
    def id(self) -> str:
        """The classifier's id."""
        return self.classifier.id


@dataclass(frozen=True)
class PairCorrect:
    """Correct, bool [n], of source and target: on clean images, and on the source's adversarial examples."""

    source_clean: Mask
    source: Mask
    target_clean: Mask
    target: Mask

    @property
    def eligible(self) -> Mask:
        """The examples that could transfer: correct on both models when clean, and adversarial for the source."""
        return self.source_clean & self.target_clean & ~self.source

    @property
    def is_adversarial(self) -> Mask:
        """The examples that are correct on the target when clean, and adversarial for it."""
        return self.target_clean & ~self.target


@dataclass(frozen=True)
class TransferPair:
    """A source and a target.

    Attributes:
        record: their record.
        correct: correct of each example.
    """

    record: records.TransferRecord
    correct: PairCorrect

    @property
    def clean(self) -> Proportion:
        """The target's clean accuracy."""
        return Proportion(self.record.clean_correct, self.record.n)

    @property
    def accuracy(self) -> Proportion:
        """The target's accuracy on the source's adversarial examples."""
        return Proportion(self.record.correct, self.record.n)

    @property
    def rate(self) -> Proportion:
        """The transfer rate."""
        return Proportion(self.record.transferred, self.record.eligible)

    @property
    def success(self) -> Proportion:
        """The success rate on the target, of all examples that are correct on it when clean."""
        return Proportion(self.record.fooled, self.record.clean_correct)


@dataclass(frozen=True)
class TransferResult:
    """Every pair of a source and a target.

    Attributes:
        names: short names of the models, by id.
        sources: ids, in the order of the rows.
        targets: ids, in the order of the columns.
        pairs: by the ids of source and target.
        data: the data set as its user knows it.
    """

    names: dict[str, str]
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    pairs: dict[Ids, TransferPair]
    data: str

    @property
    def perturbation(self) -> Plain:
        """The attack on the sources, and where: the same for all pairs."""
        return self.pairs[self.sources[0], self.targets[0]].record.perturbation

    @property
    def n(self) -> int:
        """The number of examples, the same for all pairs."""
        return self.pairs[self.sources[0], self.targets[0]].record.n

    def flags(self) -> dict[Ids, records.Flag]:
        """Check 6: pairs whose transfer beats the target's own white-box attack, where that is among the pairs."""
        white = {target: self.pairs[target, target].correct for target in self.targets if target in self.sources}
        found = {
            (source, target): sanity_checks.transfer_beats_white_box(
                pair.correct.target_clean, white[target].target, pair.correct.target
            )
            for (source, target), pair in self.pairs.items()
            if target in white and source != target
        }
        return {ids: flag for ids, flag in found.items() if flag is not None}

    def unequal(self) -> dict[Ids, records.Flag]:
        """Check 15: targets whose clean accuracy is not that of the source."""
        first = self.sources[0]
        clean = {target: self.pairs[first, target].clean.rate or 0.0 for target in self.targets}
        found = {
            (source, target): unequal_clean_accuracy(
                clean[source], clean[target], (self.names[source], self.names[target])
            )
            for number, source in enumerate(self.sources)
            for target in self.targets
            if source in clean and target != source and target not in self.sources[:number]
        }
        return {ids: flag for ids, flag in found.items() if flag is not None}


def run(
    sources: Sequence[Model],
    targets: Sequence[Model],
    attack: Attack,
    evaluation: Evaluation | None = None,
    *,
    batch_size: int | None = None,
    checks: attack_diagnostics.Checks = "basic",
    distribution: Distribution = ONE_DEVICE,
    progress: Progress | None = None,
) -> TransferResult:
    """Attack each source, and measure every target on its adversarial examples.

    A pair's record is written into the target's folder as soon as it is there. One that is there already is read, and a
    source with all its records is not attacked.

    Args:
        sources: the models that are attacked; one that is named twice counts once.
        targets: the models that are measured, likewise.
        attack: the attack, at one eps.
        evaluation: data set, split and limit; None: all test examples.
        batch_size: see `Evaluator`.
        checks: see `Evaluator`.
        distribution: see `Evaluator`.
        progress: where messages and the number of examples that are done go.

    Returns:
        The pairs.

    Raises:
        UsageError: where the models do not fit together (see `check_fit`), and for an attack at several eps.
    """
    progress = progress or Quiet()
    models = {model.id: model for model in (*sources, *targets)}
    names = short_names(
        {key: model.classifier.identity for key, model in models.items()},
        {key: model.label for key, model in models.items()},
    )
    evaluation = evaluation or Evaluation()
    if attack.eps_grid or attack.min_eps_tolerance is not None:
        raise UsageError("transfer is of the points found at one eps: leave eps_grid and min_eps_tolerance out")
    check_fit(list(models.values()), evaluation)
    evaluators = {
        key: Evaluator(model.classifier, evaluation, batch_size=batch_size, checks=checks, distribution=distribution)
        for key, model in models.items()
    }
    evaluated = {key: _EvaluatedModel(model, evaluators[key]) for key, model in models.items()}
    _share_clean_images(list(evaluated.values()), evaluation)
    rows, columns = (tuple(dict.fromkeys(model.id for model in group)) for group in (sources, targets))
    pairs: dict[Ids, TransferPair] = {}
    for source in rows:
        for target, pair in _measure_source(
            evaluated[source], [evaluated[column] for column in columns], attack, progress
        ):
            pairs[source, target] = pair
            summary = f"accuracy {pair.record.accuracy:.4f}"
            if pair.record.transfer_rate is not None:
                summary += f", transfer rate {pair.record.transfer_rate:.4f} of {pair.record.eligible}"
            progress.message(f"{names[source]} -> {names[target]}: {summary}")
    in_order = {(source, target): pairs[source, target] for source in rows for target in columns}
    return TransferResult(names, rows, columns, in_order, evaluated[rows[0]].eval_set.dataset.info.label)


def default_fields(name: str) -> dict[str, str]:
    """Return the fields of an attack that have another default in a transfer.

    Args:
        name: the attack.

    Returns:
        Values by field.
    """
    return {"keep": "last"} if name in ("bim", "pgd") else {}


# ---------------------------------------------------------------- models that fit together


def check_fit(models: Sequence[Model], evaluation: Evaluation) -> None:
    """Check that all models take the same images.

    Args:
        models: the models.
        evaluation: where they are evaluated.

    Raises:
        UsageError: unless they have one data set, its classes and channels, and one size of the input (resizing an
            adversarial example would make another perturbation of it).
    """

    def requirements(model: Model) -> dict[str, tuple[object, ...]]:
        info = model.classifier.info
        return {
            "data set": (evaluation.dataset or info.name,),
            "classes": info.classes,
            "channels": (info.shape[2],),
            "size of the input": model.classifier.size,
        }

    first, *others = models
    for other in others:
        received = requirements(other)
        for name, expected in requirements(first).items():
            if received[name] != expected:
                values = [", ".join(map(str, value)) for value in (received[name], expected)]
                if name == "data set":  # as their user knows them, not by their digest
                    values = [model.classifier.dataset for model in (other, first)]
                raise _unfit(other, first, f"{name} {' against '.join(values)}")


def _unfit(other: Model, first: Model, difference: str) -> UsageError:
    return UsageError(
        f"{other.label} does not take the images of {first.label}: {difference}; expected models of one data set (a "
        "external model's is named with --data), with the same examples, classes, channels and size of the input"
    )


# ---------------------------------------------------------------- measuring


class _EvaluatedModel:
    """A model with its evaluator, and what its pairs share."""

    def __init__(self, model: Model, evaluator: Evaluator) -> None:
        self.model, self.evaluator, self.eval_set = model, evaluator, evaluator.eval_set

    @functools.cached_property
    def clean(self) -> Mask:
        """Correct, bool [n], on the clean images."""
        return self.correct(self.eval_set.pixels)[0]

    def correct(self, images: Images) -> tuple[Mask, tuple[records.Flag, ...]]:
        """(correct bool [n] on images [n, width, width, channels], the flags of the outputs)."""
        logits = self.eval_set.logits(images)
        flag = sanity_checks.finite(logits)
        return metrics.is_correct(logits, self.eval_set.labels), () if flag is None else (flag,)


def _share_clean_images(models: Sequence[_EvaluatedModel], evaluation: Evaluation) -> None:
    """Keep the clean images in memory once. Raises `UsageError` where models have other examples than the first."""
    first, *others = models
    names = ("index", "labels")  # with the name of the data, which says what they hold, these make the images
    for other in others:
        expected, received = first.eval_set.dataset, other.eval_set.dataset
        # The validation examples that left the training set, or a subset by the seed, may be others.
        same_data = expected.info.name == received.info.name and expected.images.shape == received.images.shape
        if not (same_data and all(np.array_equal(getattr(expected, f), getattr(received, f)) for f in names)):
            raise _unfit(other.model, first.model, f"other examples of the {evaluation.split} split")
    pixels = first.eval_set.pixels
    for other in others:
        other.eval_set.pixels = pixels


def _measure_source(
    source: _EvaluatedModel, targets: Sequence[_EvaluatedModel], attack: Attack, progress: Progress
) -> Iterator[tuple[str, TransferPair]]:
    """Yield (id of the target, pair) of every target: first those that have a record, then the others."""
    missing = []
    for target in targets:
        recorded = _recorded(source, target, attack)
        if recorded is None:
            missing.append(target)
        else:
            yield target.model.id, recorded
    if missing:
        result = source.evaluator.run(attack, progress=progress)
        for target in missing:
            yield target.model.id, _measure(source, target, result)


def _recorded(source: _EvaluatedModel, target: _EvaluatedModel, attack: Attack) -> TransferPair | None:
    """The pair that was recorded; None where its record or its outcomes are not there, or damaged."""
    evaluation, name = source.evaluator.evaluation, source.eval_set.dataset.info.name
    identity = recording.identity(evaluation, name, attack)
    transfer_id = recording.transfer_id(source.model.classifier, target.model.classifier, identity)
    path = records.transfer_path(target.model.folder, transfer_id)
    if not (path.exists() and path.with_suffix(".npz").exists()):
        return None
    with contextlib.suppress(records.DamagedError):
        record, correct = records.read_transfer(path)
        if correct.keys() == {field.name for field in fields(PairCorrect)}:
            return TransferPair(record, PairCorrect(**correct))
    return None


def _measure(source: _EvaluatedModel, target: _EvaluatedModel, result: Result) -> TransferPair:
    """Measure a target on the source's adversarial examples, and write the record into the target's folder."""
    begun = time.monotonic()
    target_correct, flags = result.correct, result.record.flags
    if source is not target:
        target_correct, broken = target.correct(result.images)
        flags = (*target.evaluator.model_flags, *broken)
    correct = PairCorrect(source.clean, result.correct, target.clean, target_correct)
    seconds = result.record.seconds + time.monotonic() - begun
    record = _record(source, target, result.record, correct, flags, seconds)
    records.write_transfer(target.model.folder, record, asdict(correct))
    return TransferPair(record, correct)


def _record(
    source: _EvaluatedModel,
    target: _EvaluatedModel,
    attacked: records.Record,
    pair: PairCorrect,
    target_flags: tuple[records.Flag, ...],
    seconds: float,
) -> records.TransferRecord:
    counts = {
        "clean_correct": int(pair.target_clean.sum()),
        "correct": int(pair.target.sum()),
        "fooled": int(pair.is_adversarial.sum()),
        "eligible": int(pair.eligible.sum()),
        "transferred": int((pair.eligible & pair.is_adversarial).sum()),
    }
    models = source.model.classifier, target.model.classifier
    return recording.transfer(*models, attacked, seconds, counts, target_flags=target_flags)

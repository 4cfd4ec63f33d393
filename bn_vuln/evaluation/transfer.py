"""Black-box transfer: adversarial examples that were found on one model, the source, given to another, the target.

The source is attacked once; what counts is the array that is kept (`evaluate.Result.images`). A target's accuracy on it
is what the paper's Appendix E.2 has. The transfer rate is the share of examples that fool the target among those that
both models classify correctly when clean and that fool the source, so that it depends neither on clean accuracy nor on
how often the attack succeeds on the source. An example fools a model that classifies it as another class than its own,
whatever the target of a targeted attack.

An attack that stops at the first point that fools the source leaves its examples at the source's boundary, where they
transfer less, so here the iterative attacks go on to their last point unless another iterate is named.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln import records
from bn_vuln.analysis import metrics
from bn_vuln.analysis.statistics import Proportion
from bn_vuln.config import Attack, Evaluation, digest, perturbation_identity
from bn_vuln.errors import UsageError
from bn_vuln.evaluation import sanity_checks
from bn_vuln.evaluation.classifier import Classifier
from bn_vuln.evaluation.evaluator import Evaluator, Result
from bn_vuln.runtime.progress import Progress, Quiet

Ids = tuple[str, str]  # of a source and a target


@dataclass(frozen=True)
class Model:
    """A classifier, the run folder that its records go to, and the name or path that its user knows it by."""

    classifier: Classifier
    folder: Path
    label: str

    @property
    def id(self) -> str:
        return self.classifier.id


@dataclass(frozen=True)
class Outcomes:
    """Whether source and target classify each example correctly, bool [n]: clean, and as the source's adversarial
    example."""

    source_clean: NDArray[np.bool_]
    source: NDArray[np.bool_]
    target_clean: NDArray[np.bool_]
    target: NDArray[np.bool_]

    @property
    def eligible(self) -> NDArray[np.bool_]:
        """Those that could transfer: both models are right when clean, and the source is fooled."""
        return self.source_clean & self.target_clean & ~self.source

    @property
    def fooled(self) -> NDArray[np.bool_]:
        """Those that fool the target."""
        return self.target_clean & ~self.target


@dataclass(frozen=True)
class Pair:
    """A source and a target: the record and the outcomes behind it. Each number is a share of so many examples."""

    record: records.TransferRecord
    outcomes: Outcomes

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
    def fooled(self) -> Proportion:
        """The share that fools the target among what it classifies correctly when clean, whatever the source does."""
        return Proportion(self.record.fooled, self.record.clean_correct)


@dataclass(frozen=True)
class Transfers:
    """Every pair of `sources` and `targets` (ids), in this order; `names` are short ones of the models, by id."""

    names: dict[str, str]
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    pairs: dict[Ids, Pair]

    @property
    def perturbation(self) -> dict[str, Any]:
        """The attack on the sources, and where: the same for all pairs."""
        return self.pairs[self.sources[0], self.targets[0]].record.perturbation

    @property
    def n(self) -> int:
        """The number of examples, the same for all pairs."""
        return self.pairs[self.sources[0], self.targets[0]].record.n

    def flags(self) -> dict[Ids, records.Flag]:
        """Check 6: the pairs whose transfer beats the target's own white-box attack, where that is among the pairs."""
        white = {target: self.pairs[target, target].outcomes for target in self.targets if target in self.sources}
        found = {
            (source, target): sanity_checks.transfer_beats_white_box(
                pair.outcomes.target_clean, white[target].target, pair.outcomes.target
            )
            for (source, target), pair in self.pairs.items()
            if target in white and source != target
        }
        return {ids: flag for ids, flag in found.items() if flag is not None}


def run(
    sources: Sequence[Model],
    targets: Sequence[Model],
    attack: Attack,
    evaluation: Evaluation | None = None,
    *,
    progress: Progress | None = None,
    **how: Any,
) -> Transfers:
    """Attack each source, and measure every target on what was found; a model that is named twice counts once.

    A pair's record is written into the target's folder as soon as it is there. One that is there already is read, and a
    source with all its records is not attacked. `how` is what `Evaluator` takes.

    Raises `UsageError` where the models do not fit together (see `check_fit`), and for an attack at several eps.
    """
    progress = progress or Quiet()
    models = {model.id: model for model in (*sources, *targets)}
    names = short_names(list(models.values()))
    evaluation = evaluation or Evaluation()
    if attack.eps_grid or attack.min_eps_tolerance is not None:
        raise UsageError("transfer is of the points found at one eps: leave eps_grid and min_eps_tolerance out")
    check_fit(list(models.values()), evaluation)
    subjects = _subjects(models, evaluation, **how)
    rows, columns = (tuple(dict.fromkeys(model.id for model in some)) for some in (sources, targets))
    pairs: dict[Ids, Pair] = {}
    for source in rows:
        for target, pair in _of_source(subjects[source], [subjects[column] for column in columns], attack, progress):
            pairs[source, target] = pair
            progress.message(f"{names[source]} -> {names[target]}: {_said(pair)}")
    in_order = {(source, target): pairs[source, target] for source in rows for target in columns}
    return Transfers(names, rows, columns, in_order)


def _said(pair: Pair) -> str:
    accuracy = f"accuracy {pair.record.accuracy:.4f}"
    if pair.record.transfer_rate is None:
        return accuracy
    return f"{accuracy}, transfer rate {pair.record.transfer_rate:.4f} of {pair.record.eligible}"


def defaults(name: str) -> dict[str, Any]:
    """The fields of an attack of this name that stand here where they are not given."""
    return {"keep": "last"} if name in ("bim", "pgd") else {}


# ---------------------------------------------------------------- models that fit together


def check_fit(models: Sequence[Model], evaluation: Evaluation) -> None:
    """Raise `UsageError` unless all models take the same images: one data set, its classes and channels, and one width
    of the input (resizing an adversarial example would make another perturbation of it)."""
    first, *others = models
    for other in others:
        for what, ours, theirs in (
            ("data set", _dataset(first, evaluation), _dataset(other, evaluation)),
            ("classes", first.classifier.info.classes, other.classifier.info.classes),
            ("channels", first.classifier.info.shape[2], other.classifier.info.shape[2]),
            ("width of the input", first.classifier.width, other.classifier.width),
        ):
            if ours != theirs:
                raise _unfit(other, first, f"{what} {_text(theirs)} against {_text(ours)}")


def _dataset(model: Model, evaluation: Evaluation) -> str:
    """The data that a model is evaluated on."""
    return evaluation.dataset or model.classifier.info.name


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _unfit(other: Model, first: Model, difference: str) -> UsageError:
    return UsageError(
        f"{other.label} does not take the images of {first.label}: {difference}; expected models of one data set (a "
        "foreign model's is named with --data), with the same examples, classes, channels and width of the input"
    )


def short_names(models: Sequence[Model]) -> dict[str, str]:
    """What models are called in tables and figures, by id: `mlp batch seed 0`, with whatever else of their cells
    differs among them (`mlp batch c=0.1 seed 0`, `mlp none adversarial seed 0`); foreign ones as their files are. Each
    name is another one."""
    cells = {model.id: _flat(model.classifier.identity) for model in models}
    cells = {key: cell for key, cell in cells.items() if "arch.name" in cell}
    names = {
        model.id: _short_name(cells, model.id) if model.id in cells else Path(model.label).stem for model in models
    }
    count = Counter(names.values())
    return {key: f"{name} {key[:6]}" if count[name] > 1 else name for key, name in names.items()}


def _short_name(cells: Mapping[str, dict[str, Any]], key: str) -> str:
    cell, always = cells[key], ("arch.name", "normalization.name", "seed")
    words = [cell["arch.name"], cell["normalization.name"]]
    for field, value in cell.items():
        words += _told(field, value, list(cells.values())) if field not in always else []
    return " ".join([*dict.fromkeys(words), f"seed {cell['seed']}"])


def _told(field: str, value: Any, cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a field adds to a name: nothing where the cells are alike in it; its value; the name of its block where
    others lack that (`adversarial`), and of a field of it the value if those that have it differ."""
    block, _, name = field.rpartition(".")
    having = [cell for cell in cells if field in cell]
    alike = len({str(cell[field]) for cell in having}) == 1
    if alike and (len(having) == len(cells) or block in ("arch", "normalization")):  # these are named anyway
        return []
    said = f"{name}={str(value).replace(' ', '')}"
    if block and not all(any(other.startswith(f"{block}.") for other in cell) for cell in cells):
        return [block.rpartition(".")[2], *([] if alike else [said])]
    return [said]


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields as one dict with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        inner = _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
        flat.update(inner)
    return flat


# ---------------------------------------------------------------- measuring


class _Subject:
    """A model with its evaluator, and what its pairs share."""

    def __init__(self, model: Model, evaluator: Evaluator) -> None:
        self.model, self.evaluator = model, evaluator

    @functools.cached_property
    def clean(self) -> NDArray[np.bool_]:
        """Which clean examples it classifies correctly, bool [n]."""
        return self.correct(self.evaluator.pixels)[0]

    def correct(self, images: NDArray[np.float32]) -> tuple[NDArray[np.bool_], tuple[records.Flag, ...]]:
        """Which of these images (float32 pixels [n, width, width, channels], in the order of the examples) it
        classifies correctly, bool [n], and the flags of its outputs."""
        logits = self.evaluator.logits(images)
        right, broken = metrics.predicted(logits, self.evaluator.dataset.labels), sanity_checks.finite(logits)
        return right, () if broken is None else (broken,)


def _subjects(models: Mapping[str, Model], evaluation: Evaluation, **how: Any) -> dict[str, _Subject]:
    """The models with their evaluators, which share the clean images. Raises `UsageError` where these differ."""
    subjects = {key: _Subject(model, Evaluator(model.classifier, evaluation, **how)) for key, model in models.items()}
    first, *others = subjects.values()
    for other in others:
        ours, theirs = first.evaluator.dataset, other.evaluator.dataset
        # The validation examples that left the training set, or a draw by the seed, may be others.
        if not all(np.array_equal(getattr(ours, f), getattr(theirs, f)) for f in ("index", "labels", "images")):
            raise _unfit(other.model, first.model, f"other examples of the {evaluation.split} split")
    pixels = first.evaluator.pixels
    for other in others:
        other.evaluator.pixels = pixels  # in memory once, however many models there are
    return subjects


def _of_source(
    source: _Subject, targets: Sequence[_Subject], attack: Attack, progress: Progress
) -> Iterator[tuple[str, Pair]]:
    """(id of the target, pair) of every target: first those that have a record, then the others."""
    missing = []
    for target in targets:
        kept = _kept(source, target, attack)
        if kept is None:
            missing.append(target)
        else:
            yield target.model.id, kept
    if missing:
        result = source.evaluator.run(attack, progress=progress)
        for target in missing:
            yield target.model.id, _measure(source, target, result)


def _identity(source: _Subject, target: _Subject, perturbation: Mapping[str, Any]) -> str:
    """The id of a pair under an attack."""
    return digest({"source": source.model.id, "target": target.model.id, "perturbation": perturbation})


def _kept(source: _Subject, target: _Subject, attack: Attack) -> Pair | None:
    """The pair that was recorded; None where its record or its outcomes are not there."""
    evaluation, name = source.evaluator.evaluation, source.evaluator.dataset.info.name
    fields = perturbation_identity(evaluation.model_copy(update={"dataset": name}), name, attack)
    path = records.transfer_path(target.model.folder, _identity(source, target, fields))
    if not (path.exists() and path.with_suffix(".npz").exists()):
        return None
    record, outcomes = records.read_transfer(path)
    return Pair(record, Outcomes(**outcomes))


def _measure(source: _Subject, target: _Subject, result: Result) -> Pair:
    """A target on what was found on the source, written into the target's folder."""
    begun = time.monotonic()
    right, flags = result.correct, result.record.flags
    if source is not target:
        right, broken = target.correct(result.images)
        flags = (*target.evaluator.model_flags, *broken)
    outcomes = Outcomes(source.clean, result.correct, target.clean, right)
    seconds = result.record.seconds + time.monotonic() - begun
    record = _record(source, target, result.record, outcomes, flags, seconds)
    records.write_transfer(target.model.folder, record, asdict(outcomes))
    return Pair(record, outcomes)


def _record(
    source: _Subject,
    target: _Subject,
    attacked: records.Record,
    outcomes: Outcomes,
    target_flags: tuple[records.Flag, ...],
    seconds: float,
) -> records.TransferRecord:
    n, eligible = attacked.n, int(outcomes.eligible.sum())
    clean_correct, correct = int(outcomes.target_clean.sum()), int(outcomes.target.sum())
    transferred = int((outcomes.eligible & outcomes.fooled).sum())
    return records.TransferRecord(
        transfer_id=_identity(source, target, attacked.perturbation),
        source_id=source.model.id,
        target_id=target.model.id,
        source=source.model.classifier.identity,
        target=target.model.classifier.identity,
        perturbation=attacked.perturbation,
        n=n,
        clean_correct=clean_correct,
        clean_accuracy=clean_correct / n,
        correct=correct,
        accuracy=correct / n,
        fooled=int(outcomes.fooled.sum()),
        eligible=eligible,
        transferred=transferred,
        transfer_rate=transferred / eligible if eligible else None,
        flags=attacked.flags,
        target_flags=target_flags,
        versions=attacked.versions,
        device=attacked.device,
        seconds=round(seconds, 3),
        replicas=attacked.replicas,
        bn_folded=attacked.bn_folded,
        bn_kept=attacked.bn_kept,
    )

"""Evaluation: clean, noise and attacks on one classifier, each measured on the array that is kept.

Success is never taken from an attack: what it returns is projected again, checked against ball and box, and
predicted again. The checks' flags go into the record.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln import attacks, records
from bn_vuln.analysis import metrics
from bn_vuln.attacks import active_set, ensemble
from bn_vuln.config import (
    AWGN,
    Attack,
    Clean,
    Corruption,
    Evaluation,
    MinimumNorm,
    Perturbation,
    describe_perturbation,
    digest,
    format_eps,
    perturbation_identity,
)
from bn_vuln.config.perturbation import PARAMETER_FREE
from bn_vuln.data import corruptions, noise
from bn_vuln.data.transforms import pixel_array
from bn_vuln.errors import UsageError
from bn_vuln.evaluation import attack_diagnostics, eval_set, minimum_norm, sanity_checks
from bn_vuln.evaluation.classifier import Classifier
from bn_vuln.models import bn_folding
from bn_vuln.runtime import backend
from bn_vuln.runtime import batch_size as batching
from bn_vuln.runtime.distribution import ONE_DEVICE, Distribution
from bn_vuln.runtime.progress import Progress, Quiet, progress_task

XLA_PAYS = 300_000  # gradients of examples above which XLA saves more time than it takes to compile


@dataclass(frozen=True)
class Result:
    """A record with its per-example correct (bool [n], True: correct), the images they were measured on
    (float32 pixels [n, width, width, channels]) and the true labels (int32 [n]).

    `smallest` float64 [n], of attacks that count any keep: the smallest eps that fooled an example, 0 where it was
    misclassified before, infinite where none did; of minimum-norm attacks the distance. `arrays` lie beside the
    record."""

    record: records.Record
    correct: NDArray[np.bool_]
    images: NDArray[np.float32]
    labels: NDArray[np.int32]
    smallest: NDArray[np.float64] | None = None
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Perturbed:
    """Images that are measured, what the checks found on the way, and fields of the record."""

    images: NDArray[np.float32]
    flags: tuple[records.Flag | None, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
    smallest: NDArray[np.float64] | None = None
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


class Evaluator:
    """Evaluates one classifier on one split of one data set; what perturbations share is computed once."""

    def __init__(
        self,
        classifier: Classifier,
        evaluation: Evaluation,
        *,
        batch_size: int | None = None,
        fold: bool = True,
        level: attack_diagnostics.Level = "basic",
        distribution: Distribution = ONE_DEVICE,
    ) -> None:
        """`batch_size`: examples at a time, over all replicas; where it is not given, as many as memory holds. `fold`:
        attacks climb the gradients of a copy with BN folded away, which is the same function and faster; what they
        find is measured on the classifier itself. `level`: how much is done to doubt an attack, see `scrutiny`.
        `classifier` opened in the distribution's scope.

        Raises `UsageError` for an unknown data set, a limit above the split's size, other classes than the
        classifier's, or, where BN takes its statistics from the batch, a batch size, a limit that does not make whole
        batches, or a number of replicas that does not divide them."""
        self.evaluation, self.distribution, self.level = evaluation, distribution, level
        self.dataset = eval_set.load(classifier, evaluation)
        backend.tensorflow()
        with distribution.scope():
            self.classifier = eval_set.with_statistics(classifier, evaluation)
        if self.classifier.training:
            self._check_batches(batch_size)
        self.fold = fold and not self.classifier.training
        self.batch_size = batch_size or self._fitting()
        self._predict = distribution.compile_sharded(self.classifier.predict, signature=[self._images_spec()])
        self._compiled: dict[tuple[Any, ...], Any] = {}  # what searches and loops were compiled to

    def _check_batches(self, batch_size: int | None) -> None:
        """Raise `UsageError` where BN's statistics would be of other examples than a batch's."""
        size, replicas = eval_set.STATISTICS, self.distribution.replicas
        if batch_size is not None:
            raise UsageError(f"batch size: BN takes its statistics from batches of {size} here, and none else")
        size = min(size, len(self.dataset))
        if size % replicas:
            raise UsageError(
                f"strategy: BN takes its statistics from batches of {size} here, which {replicas} replicas do not "
                "divide; use --strategy none"
            )

    def _fitting(self) -> int:
        """The batch size where none is given."""
        if self.classifier.training:
            return eval_set.STATISTICS
        return self.distribution.replicas * batching.estimate_batch_size(
            self.classifier.model, self._images_spec().shape[1:]
        )

    @functools.cached_property
    def folded(self) -> bn_folding.FoldingResult:
        """The model that attacks climb, and what became of its BN layers."""
        with self.distribution.scope():
            return bn_folding.fold(self.classifier.model)

    @functools.cached_property
    def pixels(self) -> NDArray[np.float32]:
        """The clean images as the model takes them."""
        return pixel_array(self.dataset.images, self.classifier.width)

    @functools.cached_property
    def clean_logits(self) -> NDArray[np.float32]:
        """Logits [n, classes] of the clean images."""
        return self.logits(self.pixels)

    @functools.cached_property
    def model_flags(self) -> tuple[records.Flag, ...]:
        """Checks 4, 9 and 10: what may be wrong with the model rather than with one perturbation."""
        sample, labels = self.pixels[: sanity_checks.SAMPLE], self.dataset.labels[: sanity_checks.SAMPLE]
        moving = self.classifier.training  # then an example's logits depend on its batch, as was asked for
        found = (
            sanity_checks.logits_not_probabilities(self.logits(sample)),
            None
            if moving
            else sanity_checks.inference_mode(self._predict, self.classifier.model, sample[: self.batch_size]),
            sanity_checks.gradients(self.classifier.predict, sample, labels, self.batch_size),
        )
        return tuple(flag for flag in found if flag is not None)

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits [n, classes] of float32 pixels, batch by batch."""
        pieces = range(0, len(images), self.batch_size)
        return np.concatenate([self._predict(images[i : i + self.batch_size]) for i in pieces])

    def run(self, perturbation: Perturbation, *, progress: Progress | None = None) -> Result:
        """Measure one perturbation; with a smaller batch size from now on where memory is exhausted."""
        progress = progress or Quiet()

        def run(batch_size: int) -> Result:
            self.batch_size = batch_size
            return self._run(perturbation, progress)

        if self.classifier.training:  # with another batch size it would be another classifier
            return run(self.batch_size)
        return batching.run_in_smaller_batches(run, self.batch_size, progress.message)[0]

    def _run(self, perturbation: Perturbation, progress: Progress) -> Result:
        if isinstance(perturbation, MinimumNorm):
            return self._nearest(perturbation, progress)
        begun = time.monotonic()
        if isinstance(perturbation, Attack):
            found = self._attack(perturbation, progress)
        elif isinstance(perturbation, Corruption):
            found = self._corrupted(perturbation)
        else:
            found = _Perturbed(self._images(perturbation))
        logits = self.clean_logits if found.images is self.pixels else self.logits(found.images)
        flags = tuple(f for f in (*self.model_flags, *found.flags, sanity_checks.finite(logits)) if f)
        record, correct = self._record(perturbation, logits, flags, found.fields, time.monotonic() - begun)
        if isinstance(perturbation, Attack) and (perturbation.eps_grid or perturbation.min_eps_tolerance):
            record = record.model_copy(update={"loss": None})  # the points are those of smaller eps
        result = Result(record, correct, found.images, self.dataset.labels, found.smallest, found.arrays)
        return self._doubted(perturbation, result) if isinstance(perturbation, Attack) else result

    def _doubted(self, options: Attack, result: Result) -> Result:
        """With the flags of further attacks on a sample."""
        doubts = attack_diagnostics.flags(self, options, result, self.level)
        flags = (*result.record.flags, *doubts)
        return dataclasses.replace(result, record=result.record.model_copy(update={"flags": flags}))

    def some(self, positions: NDArray[np.int64]) -> Evaluator:
        """The same on some of the examples, without doubts."""
        other = copy.copy(self)
        other.dataset, other.pixels, other.level = self.dataset.take(positions), self.pixels[positions], "none"
        other.clean_logits = self.clean_logits[positions]
        return other

    def at_smaller_eps(self, options: Attack, top: Result) -> Iterator[tuple[Attack, Result]]:
        """The smaller eps of an attack with an eps grid, from what it found: (the attack at that eps, its result). The
        image of what withstood is the clean one, so no loss is recorded."""
        if top.smallest is None:
            return
        for smaller in options.at_smaller_eps:
            fell = top.smallest <= smaller.eps
            images = np.where(fell[:, None, None, None], top.images, self.pixels)
            record, correct = self._record(smaller, self.logits(images), top.record.flags, {}, top.record.seconds)
            record = record.model_copy(update={"loss": None})
            yield smaller, Result(record, correct, images, top.labels, np.where(fell, top.smallest, np.inf))

    def _images(self, perturbation: Clean | AWGN) -> NDArray[np.float32]:
        if isinstance(perturbation, Clean):
            return self.pixels
        noisy = noise.add_noise(self.dataset.images, self.dataset.index, perturbation, self.classifier.info)
        return pixel_array(noisy, self.classifier.width)

    def _corrupted(self, options: Corruption) -> _Perturbed:
        """Corrupted at the native width; the record says where the images are from."""
        images, source = corruptions.corrupted_images(self.dataset, self.evaluation.split, options)
        return _Perturbed(pixel_array(images, self.classifier.width), fields={"corruption_source": source})

    def _attack(self, options: Attack, progress: Progress) -> _Perturbed:
        """Attacked, then projected again and checked."""
        if options.keep == "first_success" and not self.classifier.training:
            return self._search(options, progress)
        self._refuse_searches(options)
        threat_model = attacks.from_config(options, self.classifier.info)
        run = self._compiled_attack(options, progress)
        labels = self._attack_labels(options)
        points, n = np.empty_like(self.pixels), len(self.pixels)
        with progress_task(progress, describe_perturbation(options), n, "examples"):
            for i in range(0, n, self.batch_size):
                piece = slice(i, i + self.batch_size)
                points[piece] = run(self.pixels[piece], labels[piece], self.dataset.index[piece].astype(np.int32))
                progress.advance(min(n, i + self.batch_size))
        kept, left = self._kept(points, threat_model)
        return _Perturbed(
            kept,
            (left, sanity_checks.box_excludes_clean(self.pixels, threat_model), sanity_checks.reaches_border(options)),
        )

    def _search(self, options: Attack, progress: Progress) -> _Perturbed:
        """The same with the active set: whatever fools the classifier on the way counts, and ends the search."""
        if max(options.eps_grid, default=0.0) > options.eps:
            raise UsageError(
                f"eps_grid: {max(options.eps_grid):.4g} is above eps = {options.eps:.4g}; attack at the largest"
            )
        threat_model = attacks.from_config(options, self.classifier.info)
        labels = self._attack_labels(options)
        attacked, clean = self._attacked(options, progress), self.clean_logits
        cascaded = ensemble.run(
            self._stages(ensemble.stages(attacked.predict, options, threat_model, labels, clean), options, attacked),
            options,
            self.pixels,
            self.dataset.labels,
            clean=~self._fools(clean, labels, options),
            index=self.dataset.index.astype(np.int32),
            confirm=self._confirmation(options, threat_model, labels),
            batch_size=self.batch_size,
            on_stage=functools.partial(_on_stage, progress),
        )
        found = cascaded.result
        eps = np.minimum(found.eps, options.eps)
        kept, left = self._kept(found.points, threat_model.with_eps(eps))
        flags = left, sanity_checks.box_excludes_clean(self.pixels, threat_model), sanity_checks.reaches_border(options)
        fields = {"robust_after": cascaded.robust_after, "n_evaluations": float(found.n_evaluations.mean())}
        if options.min_eps_tolerance is None:
            return _Perturbed(kept, flags, fields, found.eps)
        arrays = {"distance": found.eps.astype(np.float32)}
        return _Perturbed(kept, flags, {**fields, **minimum_norm.summary(found.eps)}, found.eps, arrays)

    def _stages(
        self, stages: Iterator[ensemble.Stage], options: Attack, attacked: Classifier
    ) -> Iterator[ensemble.Stage]:
        """The stages with their searches compiled: once for attacks that differ in eps, eps_grid and targets alone."""
        for stage in stages:
            search = stage.attack
            assert not isinstance(search, active_set.CompiledAttack)
            xla = self._xla_pays(stage.variants * search.steps, attacked)
            own = [item for item in vars(search).items() if item[0] not in ("predict", "threat_model")]
            key = (type(search), *own, options.ord, options.unit, options.box, xla)
            if key not in self._compiled:
                self._compiled[key] = active_set.CompiledAttack(search, xla=xla, distribution=self.distribution)
            yield dataclasses.replace(stage, attack=self._compiled[key])

    def _nearest(self, options: MinimumNorm, progress: Progress) -> Result:
        """A minimum-norm attack: the distances are those of what fools the classifier itself, in the box."""
        self._refuse_searches(options)
        begun, labels = time.monotonic(), self._attack_labels(options)
        space = minimum_norm.threat_model(options, self.classifier.info)
        attacked = self._attacked(options, progress)
        xla = self._xla_pays(options.steps * options.binary_search_steps, attacked)
        bound = minimum_norm.bind(attacked.predict, options, space, self.distribution)
        with progress_task(progress, describe_perturbation(options), len(self.pixels), "examples"):
            points = bound(self.pixels, labels, batch_size=self.batch_size, xla=xla, on_progress=progress.advance)
        images = self._kept(points, space)[0]
        logits = self.logits(images)
        before, after = (self._fools(z, labels, options) for z in (self.clean_logits, logits))
        length = minimum_norm.between(images, self.pixels, space)
        left = sanity_checks.outside(sanity_checks.beyond(points, self.pixels, space.with_eps(length)))
        found = (
            *self.model_flags,
            left,
            sanity_checks.box_excludes_clean(self.pixels, space),
            sanity_checks.finite(logits),
        )
        if options.target == "none":
            standing, chance = float(np.mean(~after)), 1 / len(self.dataset.info.classes)
            found = (*found, sanity_checks.budget_does_not_bite((), (), standing, chance))
        distance = np.where(before, 0.0, np.where(after, length, np.inf))
        flags, fields = tuple(flag for flag in found if flag), minimum_norm.summary(distance)
        record, correct = self._record(options, logits, flags, fields, time.monotonic() - begun)
        arrays = minimum_norm.arrays(distance, images, self.pixels, self.dataset.labels, logits)
        return Result(record, correct, images, self.dataset.labels, distance, arrays)

    def _refuse_searches(self, options: Attack | MinimumNorm) -> None:
        """Examples whose logits depend on their batch cannot change places in it."""
        moved = (
            isinstance(options, MinimumNorm)
            or options.attack in PARAMETER_FREE
            or options.eps_grid
            or options.min_eps_tolerance
        )
        if self.classifier.training and moved:
            raise UsageError(
                f"{options.attack}: with bn_statistics: batch an example's prediction depends on the batch it is in, "
                "which searches change; use fgsm, bim or pgd at one eps"
            )

    def _kept(
        self, points: NDArray[np.float32], threat_model: attacks.ThreatModel
    ) -> tuple[NDArray[np.float32], records.Flag | None]:
        """(the points projected again, the flag of those that lay outside), piece by piece, since that is done in
        float64."""
        kept, excesses = np.empty_like(self.pixels), []
        for i in range(0, len(kept), self.batch_size):
            piece = slice(i, i + self.batch_size)
            x, own = self.pixels[piece], threat_model.subset(piece)
            excesses.append(sanity_checks.beyond(points[piece], x, own))
            kept[piece] = _projected(points[piece], x, own)
        return kept, sanity_checks.outside(np.concatenate(excesses))

    def _confirmation(
        self, options: Attack, threat_model: attacks.ThreatModel, labels: NDArray[np.int32]
    ) -> active_set.Confirm:
        """Whether points, once projected again, do what the attack is after to the classifier itself."""

        def confirm(points: NDArray[Any], who: NDArray[np.int64], eps: NDArray[np.float64]) -> NDArray[np.bool_]:
            images = _projected(points, self.pixels[who], threat_model.with_eps(eps))
            return self._fools(self.logits(images), labels[who], options)

        return confirm

    def _fools(
        self, logits: NDArray[np.float32], labels: NDArray[np.int32], options: Attack | MinimumNorm
    ) -> NDArray[np.bool_]:
        """bool [n]: another class than the label or, of a targeted attack, the target."""
        hit = metrics.predicted(logits, labels)
        return hit if options.target != "none" else ~hit

    def _xla_pays(self, steps: int, attacked: Classifier) -> bool:
        many = len(self.pixels) * steps >= XLA_PAYS
        return many and self.distribution.replicas == 1 and backend.attack_prefers_xla(attacked.model)

    def _compiled_attack(self, options: Attack, progress: Progress) -> Callable[..., NDArray[np.float32]]:
        """The attack as a function of arrays (x, y, index)."""
        attacked = self._attacked(options, progress)
        xla = self._xla_pays(options.steps, attacked)
        key = ("loop", options.model_dump_json(), xla)
        if key not in self._compiled:
            bound = attacks.bind(attacked.predict, options, self.classifier.info, xla=xla)
            self._compiled[key] = self.distribution.compile_sharded(bound, signature=self._attack_signature())
        return self._compiled[key]

    def _attacked(self, options: Attack | MinimumNorm, progress: Progress | None = None) -> Classifier:
        """The classifier that an attack climbs; CleverHans gets the original, as its users would give it."""
        if not self.fold or options.backend != "own":
            return self.classifier
        if progress is not None and self.folded.kept:
            progress.message("batch norm that cannot be folded away stays: " + "; ".join(self.folded.kept))
        return dataclasses.replace(self.classifier, model=self.folded.model)

    def _attack_labels(self, options: Attack | MinimumNorm) -> NDArray[np.int32]:
        """The labels an attack is given: the true ones, or its targets."""
        if options.target == "next":
            return np.asarray((self.dataset.labels + 1) % len(self.dataset.info.classes), np.int32)
        if options.target == "least_likely":
            return np.asarray(self.clean_logits.argmin(axis=1), np.int32)
        return self.dataset.labels

    def _images_spec(self) -> Any:
        tf = backend.tensorflow()
        width, channels = self.classifier.width, self.dataset.info.shape[2]
        return tf.TensorSpec((None, width, width, channels), tf.float32)

    def _attack_signature(self) -> list[Any]:
        tf = backend.tensorflow()
        return [self._images_spec(), tf.TensorSpec((None,), tf.int32), tf.TensorSpec((None,), tf.int32)]

    def _record(
        self,
        perturbation: Perturbation,
        logits: NDArray[np.float32],
        flags: tuple[records.Flag, ...],
        fields: Mapping[str, Any],
        seconds: float,
    ) -> tuple[records.Record, NDArray[np.bool_]]:
        labels, n = self.dataset.labels, len(self.dataset)
        correct = metrics.predicted(logits, labels)
        evaluation = self.evaluation.model_copy(update={"dataset": self.dataset.info.name})
        identity = perturbation_identity(evaluation, self.dataset.info.name, perturbation)
        record = records.Record(
            cell_id=self.classifier.id,
            perturbation_id=digest(identity),
            cell=self.classifier.identity,
            perturbation=identity,
            n=n,
            correct=int(correct.sum()),
            accuracy=float(correct.mean()),
            top5=metrics.top5(logits, labels),
            target_rate=self._target_rate(perturbation, logits),
            loss=metrics.cross_entropy(logits, labels),
            flags=flags,
            versions=backend.versions(),
            device=backend.device_name(),
            replicas=self.distribution.replicas,
            seconds=round(seconds, 3),
            **self._bn_layers(perturbation),
            **fields,
        )
        return record, correct

    def _bn_layers(self, perturbation: Perturbation) -> dict[str, int]:
        """How many BN layers the attacked copy had folded away, and how many not; or of how many examples their
        statistics are."""
        if self.classifier.training:
            return {"bn_batch_size": min(self.batch_size, len(self.dataset))}
        if not isinstance(perturbation, Attack | MinimumNorm) or self._attacked(perturbation) is self.classifier:
            return {}
        return {"bn_folded": self.folded.folded, "bn_kept": len(self.folded.kept)}

    def _target_rate(self, perturbation: Perturbation, logits: NDArray[np.float32]) -> float | None:
        if not isinstance(perturbation, Attack | MinimumNorm) or perturbation.target == "none":
            return None
        return float(np.mean(self._fools(logits, self._attack_labels(perturbation), perturbation)))


def _projected(points: NDArray[Any], x: NDArray[np.float32], threat_model: attacks.ThreatModel) -> NDArray[np.float32]:
    """What cannot be shown to lie in the ball must not count: projected again, NaN as the clean image."""
    return threat_model.project_array(np.where(np.isfinite(points), points, x), x)


@contextlib.contextmanager
def _on_stage(progress: Progress, name: str, left: int) -> Iterator[Callable[[int], None]]:
    """Tells a user which attack of a cascade is at work, and how many of its examples are through."""
    with progress_task(progress, name, left, "examples"):
        yield progress.advance


def measure(
    classifier: Classifier,
    perturbations: Mapping[str, Perturbation],
    evaluation: Evaluation | None = None,
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
    **how: Any,
) -> Iterator[tuple[str, Result]]:
    """Measure perturbations on one classifier, (name, result) by (name, result); `how` is what `Evaluator` takes.

    With `folder`, each record is written into that run folder as soon as it is there. An attack with an eps grid has a
    result for each of its eps: the smaller ones, named with their eps, come first.
    """
    progress = progress or Quiet()
    if not perturbations:
        return
    evaluator = Evaluator(classifier, evaluation or Evaluation(), **how)
    for name, perturbation in perturbations.items():
        result = evaluator.run(perturbation, progress=progress)
        at_smaller_eps = evaluator.at_smaller_eps(perturbation, result) if isinstance(perturbation, Attack) else ()
        each = [(f"{name} {format_eps(smaller.eps)}", smaller, found) for smaller, found in at_smaller_eps]
        for title, of, found in [*each, (name, perturbation, result)]:
            if folder is not None:
                records.write_record(folder, found.record, found.correct, found.arrays)
            progress.message(f"{title}: accuracy {found.record.accuracy:.4f} ({describe_perturbation(of)})")
            yield title, found

"""Evaluation: accuracies of one classifier, each measured on the images that are kept.

Attacks run in `attack_runner`; here their images are measured, the checks' flags go into the record, and the attack
itself is verified by further attacks.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from bn_vuln import data, records
from bn_vuln.analysis import metrics
from bn_vuln.attacks.threat_model import from_config, per_example
from bn_vuln.config import (
    AWGN,
    Attack,
    Clean,
    Corruption,
    Evaluation,
    MinimumNorm,
    Perturbation,
    Transfer,
    describe_perturbation,
    digest,
    format_eps,
)
from bn_vuln.evaluation import attack_diagnostics, minimum_norm, recording, sanity_checks
from bn_vuln.evaluation import perturbed as perturbed_images
from bn_vuln.evaluation.attack_runner import AttackRunner
from bn_vuln.evaluation.classifier import Classifier
from bn_vuln.evaluation.eval_set import EvalSet, check_same_examples, check_same_input, share_trained_on
from bn_vuln.evaluation.kept_parts import KeptParts
from bn_vuln.evaluation.perturbed import PerturbedImages
from bn_vuln.evaluation.result import Result
from bn_vuln.models.bn_statistics import has_batch_normalization
from bn_vuln.runtime import batch_size as batching
from bn_vuln.runtime.distribution import ONE_DEVICE, Distribution
from bn_vuln.runtime.progress import Progress, Quiet
from bn_vuln.typing import Arrays, Images, Index, Logits, Mask


class Evaluator:
    """Measures perturbations of one classifier on one eval set; what they share is computed once.

    Attributes:
        evaluation: data set, split, limit and BN statistics, as they were asked for.
        eval_set: the classifier and its examples.
        attack_runner: runs the attacks.
        checks: the attack diagnostics, `none`, `basic` or `full`.
        sources: evaluators of the models that transfers are from, by id.
    """

    def __init__(
        self,
        classifier: Classifier,
        evaluation: Evaluation,
        *,
        batch_size: int | None = None,
        checks: attack_diagnostics.Checks = "basic",
        distribution: Distribution = ONE_DEVICE,
        folder: Path | None = None,
    ) -> None:
        """Load the examples.

        Args:
            classifier: opened in the scope of the distribution.
            evaluation: data set, split, limit and BN statistics.
            batch_size: examples at a time, over all replicas; None: as many as memory holds.
            checks: the attack diagnostics, see `attack_diagnostics`.
            distribution: the devices.
            folder: run folder that keeps finished parts of many images until their record is there; None: none does.

        Raises:
            UsageError: see `EvalSet`.
        """
        self.evaluation, self.checks, self.folder = evaluation, checks, folder
        self.eval_set = EvalSet(classifier, evaluation, batch_size=batch_size, distribution=distribution)
        self.attack_runner = AttackRunner(self.eval_set)
        self.sources: dict[str, Evaluator] = {}
        self._attacked: tuple[Attack, Result] | None = None

    @functools.cached_property
    def model_flags(self) -> tuple[records.Flag, ...]:
        """Flags of the model rather than of one perturbation: checks 4, 9, 10, 19, 20, 23, 25, 26 and 27."""
        eval_set, n = self.eval_set, self.eval_set.sample_size
        classifier, sample = eval_set.classifier, eval_set.at_input(eval_set.dataset.images[:n])
        flags = [sanity_checks.logits_not_probabilities(eval_set.logits(sample))]
        if not classifier.training:  # in training mode an example's logits depend on its batch, as was asked for
            first = sample[: eval_set.batch_size]
            flags.append(sanity_checks.inference_mode(eval_set.predict_batch, classifier.model, first))
        cause = None if classifier.trial is None else classifier.trial.gradient_cause
        labels, batch_size = eval_set.labels[:n], eval_set.batch_size
        flags.append(sanity_checks.gradients(classifier.predict, sample, labels, batch_size, cause=cause))
        scale = "0-1" if classifier.input_scale is None else classifier.input_scale.name
        flags += sanity_checks.of_clean_images(
            eval_set.dataset.images,
            eval_set.labels,
            eval_set.clean_logits,
            doubts=eval_set.dataset.info.flags,
            input_scale=scale if classifier.external else None,
            has_tracked_bn=self.evaluation.bn_statistics == "tracked" and has_batch_normalization(classifier.model),
        )
        if classifier.scale_doubt is not None:
            flags.append(sanity_checks.doubtful_input_scale(classifier.scale_doubt))
        if (seen := share_trained_on(classifier, self.evaluation, eval_set.dataset.info)) > 0:
            flags.append(sanity_checks.trained_on(seen))
        return tuple(flag for flag in flags if flag is not None)

    def run(self, perturbation: Perturbation, *, progress: Progress | None = None, keep_images: bool = True) -> Result:
        """Measure one perturbation; with a smaller batch size from now on where memory is exhausted.

        Args:
            perturbation: clean images, noise, a corruption or an attack.
            progress: where messages and the number of examples that are done go.
            keep_images: keep the images of an eval set that is measured in parts.

        Returns:
            The record, with the examples behind it; of an attack with an eps grid, those at the largest eps.

        Raises:
            UsageError: see `AttackRunner.run`.
            BnvulnError: where memory does not hold a single example.
        """
        return self.run_eps_grid(perturbation, progress=progress, keep_images=keep_images)[-1][1]

    def run_eps_grid(
        self, perturbation: Perturbation, *, progress: Progress | None = None, keep_images: bool = True
    ) -> list[tuple[Perturbation, Result]]:
        """Measure one perturbation, as `run` does, and an attack at each smaller eps of its grid.

        Args:
            perturbation: as in `run`.
            progress: as in `run`.
            keep_images: as in `run`.

        Returns:
            (the attack at an eps, its result), by ascending eps. At the smaller ones the image of a robust example is
            the clean one, so no loss is recorded.
        """
        progress = progress or Quiet()

        def run(batch_size: int) -> list[tuple[Perturbation, Result]]:
            self.eval_set.batch_size = batch_size
            return self._measure(perturbation, progress, keep_images)

        if self.eval_set.classifier.training:  # with another batch size it would be another classifier
            return run(self.eval_set.batch_size)
        size = self.eval_set.batch_size
        least = 1 if self.eval_set.distribution.hosts == 1 else size  # the memory of one host decides for none
        return batching.run_in_smaller_batches(run, size, progress.message, least)[0]

    def add_source(self, source: Evaluator) -> None:
        """Add a model that transfers may be from. Raises `UsageError` unless it has the same examples."""
        check_same_examples(self.eval_set, source.eval_set)
        self.eval_set.pixels = source.eval_set.pixels  # in memory once
        self.sources[source.eval_set.classifier.id] = source

    def attacked(self, attack: Attack, progress: Progress) -> Result:
        """Return what an attack finds, as `run`; the last result is kept, for all that it is transferred to.

        In a run folder it is kept for other processes, too, until `forget_parts`.
        """
        if self._attacked is None or self._attacked[0] != attack:
            asked = recording.identity(self.evaluation, self.eval_set.dataset.info.name, attack)
            asked["source"] = self.eval_set.classifier.id
            kept = KeptParts(self.folder, asked, self.eval_set.distribution)
            arrays = kept.get(0, functools.partial(self._attacked_arrays, attack, progress))
            record = records.Record.model_validate_json(str(arrays["record"]))
            result = Result(record, arrays["correct"], arrays["images"], self.eval_set.labels)
            self._attacked = attack, result
        return self._attacked[1]

    def _attacked_arrays(self, attack: Attack, progress: Progress) -> Arrays:
        found = self.run(attack, progress=progress)
        record = np.array(found.record.model_dump_json())
        return {"record": record, "correct": found.correct, "images": found.images}

    def forget(self) -> None:
        """Forget the last result."""
        self._attacked = None

    def measure(
        self,
        perturbations: Mapping[str, Perturbation],
        folder: Path | None,
        *,
        keep_images: bool = False,
        progress: Progress,
    ) -> Iterator[tuple[str, Result]]:
        """Measure perturbations one after another, and write their records; see the function `measure`."""
        for name, perturbation in perturbations.items():
            for options, found in self.run_eps_grid(perturbation, progress=progress, keep_images=keep_images):
                title = name
                if isinstance(perturbation, Attack) and isinstance(options, Attack) and options.eps < perturbation.eps:
                    title = f"{name} {format_eps(options.eps)}"
                if folder is not None:
                    records.write_record(folder, found.record, found.correct, found.arrays)
                    self._kept_parts(perturbation).remove()
                progress.message(f"{title}: accuracy {found.record.accuracy:.4f} ({describe_perturbation(options)})")
                yield title, found
        self._kept_parts(None).remove()

    def subset(self, positions: Index) -> Evaluator:
        """Return the same on the examples at these positions, without attack diagnostics."""
        other = copy.copy(self)
        other.eval_set, other.checks = self.eval_set.subset(positions), "none"
        other.attack_runner = self.attack_runner.on(other.eval_set)
        return other

    def _measure(
        self, perturbation: Perturbation, progress: Progress, keep_images: bool
    ) -> list[tuple[Perturbation, Result]]:
        begun = time.monotonic()
        kept_clean = self._kept_parts(None)
        self.eval_set.predict_clean(progress, kept_clean)
        smaller = perturbation.at_smaller_eps if isinstance(perturbation, Attack) else ()
        wanted: list[Perturbation] = [*smaller, perturbation]
        sample: Index = np.empty(0, np.int64)  # examples whose images diagnostics need, where they are not kept anyway
        if isinstance(perturbation, Attack) and self.checks != "none":
            sample = attack_diagnostics.sample_positions(self.eval_set, self.checks)
        kept = KeptParts(None, {}) if keep_images else self._kept_parts(perturbation)
        whole = not self.eval_set.in_parts
        measured = []
        with contextlib.closing(self.eval_set.parts()) as parts:
            for number, (positions, part) in enumerate(parts):
                every = whole or keep_images
                own = np.arange(len(positions)) if every else np.flatnonzero(np.isin(positions, sample))
                images_of = (own if every else own[:0], own)
                compute = functools.partial(self._measure_part, part, positions, perturbation, images_of, progress)
                measured.append(kept.get(number, compute))
        if kept.found:
            progress.message(f"{kept.found} of {len(measured)} parts were finished before")
        joined = perturbed_images.merged([perturbed_images.from_arrays(arrays) for arrays in measured])
        seconds = time.monotonic() - begun + kept.seconds + kept_clean.seconds
        results = []
        for i, options in enumerate(wanted):
            images, logits = (_joined([arrays[f"{name} {i}"] for arrays in measured]) for name in ("images", "logits"))
            results.append(self._result(options, joined, images, logits, seconds))
        if not (whole or keep_images):
            results = [dataclasses.replace(result, positions=sample[: len(result.images)]) for result in results]
        if isinstance(perturbation, Attack):
            diagnosed = attack_diagnostics.flags(self, perturbation, results[-1], self.checks)
            results = [result.with_flags(diagnosed) for result in results]
        return list(zip(wanted, results, strict=True))

    def _measure_part(
        self,
        open_part: Callable[[], EvalSet],
        positions: Index,
        perturbation: Perturbation,
        images_of: tuple[Index, Index],
        progress: Progress,
    ) -> Arrays:
        """Measure a part of the eval set, the examples at `positions`.

        Returns:
            What is known of its images, as `perturbed.to_arrays`, and `logits I` and `images I`, at each smaller eps,
            then at the largest; images of the examples `images_of` (at smaller eps, at the largest).
        """
        part = open_part()
        found = self._perturb(part, positions, perturbation, progress)
        arrays = perturbed_images.to_arrays(found)
        smaller = perturbation.at_smaller_eps if isinstance(perturbation, Attack) else ()
        for i, options in enumerate(smaller):
            moved = self._images_at_eps(part, options, found)
            arrays |= {f"logits {i}": part.logits(moved), f"images {i}": _at(moved, images_of[0])}
        moved = found.images if found.images is not None else part.pixels
        logits = part.logits(moved) if found.logits is None else found.logits
        return arrays | {f"logits {len(smaller)}": logits, f"images {len(smaller)}": _at(moved, images_of[1])}

    def _kept_parts(self, perturbation: Perturbation | None) -> KeptParts:
        """The parts of a perturbation, or of the clean predictions, that are kept until its record is written."""
        if not self.eval_set.in_parts:
            return KeptParts(None, {})
        asked = recording.identity(self.evaluation, self.eval_set.dataset.info.name, perturbation or Clean())
        more = {
            "classifier": self.eval_set.classifier.id,
            "batch_size": self.eval_set.batch_size,
            "checks": self.checks,
        }
        identity = {**asked, **more, "predictions": perturbation is None}
        return KeptParts(self.folder, identity, self.eval_set.distribution)

    def _images_at_eps(self, part: EvalSet, options: Attack, found: PerturbedImages) -> Images:
        """The images at a smaller eps: the clean one where an example is robust there."""
        assert found.min_eps is not None
        assert found.images is not None
        return np.where(per_example(found.min_eps <= options.eps), found.images, part.pixels)

    def _perturb(self, part: EvalSet, positions: Index, options: Perturbation, progress: Progress) -> PerturbedImages:
        """Perturb all images of a part of the eval set, which has the examples at these positions."""
        if isinstance(options, Transfer):
            attacked = self.sources[options.source].attacked(options.attack, progress)
            return PerturbedImages(attacked.images[positions])
        if isinstance(options, Attack | MinimumNorm):
            return self.attack_runner.on(part).run(options, progress)
        if isinstance(options, Corruption):
            return perturbed_images.corrupted(part, self.evaluation.split, options)
        return perturbed_images.with_noise(part, options) if isinstance(options, AWGN) else perturbed_images.clean(part)

    def _result(
        self,
        options: Perturbation,
        found: PerturbedImages,
        images: Images,
        logits: Logits,
        seconds: float,
    ) -> Result:
        """The result of a perturbation from the images and logits of all examples."""
        labels, classifier = self.eval_set.labels, self.eval_set.classifier
        correct = metrics.is_correct(logits, labels)
        fields = {**self._attack_fields(options, found, logits), **self._bn_fields()}
        if isinstance(options, Transfer):
            fields |= self._transfer_fields(options, correct)
        flags = (
            *self.model_flags,
            *found.flags,
            *self._attack_flags(options, found, correct),
            sanity_checks.finite(logits),
        )
        min_eps = found.min_eps
        if isinstance(options, Attack) and (options.eps_grid or options.min_eps_tolerance):
            fields["loss"] = None  # the images are those of smaller eps
            min_eps = None if min_eps is None else np.where(min_eps <= options.eps, min_eps, np.inf)
        self.eval_set.distribution.agree(corruption_source=found.source)
        if found.source is not None:
            fields["corruption_source"] = found.source
        record = recording.accuracy(
            classifier,
            recording.identity(self.evaluation, self.eval_set.dataset.info.name, options),
            logits,
            labels,
            seconds,
            flags=tuple(flag for flag in flags if flag),
            replicas=self.eval_set.distribution.replicas,
            hosts=self.eval_set.distribution.hosts,
            **fields,
        )
        return Result(record, correct, images, labels, min_eps, found.arrays)

    def _attack_fields(self, options: Perturbation, found: PerturbedImages, logits: Logits) -> dict[str, object]:
        """The fields that attacks have in their record."""
        fields: dict[str, object] = {}
        if not isinstance(options, Attack | MinimumNorm):
            return fields
        if options.target != "none":
            targets = self.attack_runner.attack_labels(options)
            fields["target_rate"] = float(np.mean(self.attack_runner.is_adversarial(logits, targets, options)))
        largest = isinstance(options, Attack) and options.eps > max(options.eps_grid, default=0.0)
        if largest and found.n_evaluations is not None:
            fields |= {"robust_after": dict(found.robust_after), "n_evaluations": float(found.n_evaluations.mean())}
        if found.min_eps is not None and "distance" in found.arrays:
            fields |= minimum_norm.summary(found.min_eps)
        return fields

    def _transfer_fields(self, options: Transfer, correct: Mask) -> dict[str, object]:
        """The fields that transfers have in their record."""
        source = self.sources[options.source]
        attacked = source.attacked(options.attack, Quiet())
        both = source.eval_set.clean_correct & self.eval_set.clean_correct
        eligible = both & ~attacked.correct
        return {
            "source_correct": attacked.record.correct,
            "eligible": int(eligible.sum()),
            "transferred": int((eligible & ~correct).sum()),
        }

    def _attack_flags(
        self, options: Perturbation, found: PerturbedImages, correct: Mask
    ) -> Iterator[records.Flag | None]:
        """The checks of eps and box, and of what an attack returned."""
        nothing = None
        if isinstance(options, Transfer):
            flags = self.sources[options.source].attacked(options.attack, Quiet()).record.flags
            yield from (flag.model_copy(update={"name": f"source: {flag.name}", "message": f"source: {flag.message}"})
                        for flag in flags if flag not in self.model_flags)  # fmt: skip
        if isinstance(options, Attack):
            threat_model = from_config(options, self.eval_set.classifier.info)
            shape = (*self.eval_set.classifier.size, self.eval_set.classifier.channels)
            nothing = sanity_checks.eps_says_nothing(options, threat_model, shape)
        if isinstance(options, Attack | MinimumNorm | AWGN):
            yield nothing or sanity_checks.units_of_255(options)
        if found.violation is not None:
            yield sanity_checks.flag_violations(found.violation)
        if found.outside_box is not None:
            yield sanity_checks.box_excludes_clean(found.outside_box)
        if isinstance(options, MinimumNorm) and options.target == "none":
            chance = 1 / len(self.eval_set.dataset.info.classes)
            yield sanity_checks.above_chance_without_eps_limit(float(correct.mean()), chance, minimum_norm=True)

    def _bn_fields(self) -> dict[str, int]:
        """The number of examples behind the batch statistics."""
        if not self.eval_set.classifier.training:
            return {}
        return {"bn_batch_size": min(self.eval_set.batch_size, len(self.eval_set.dataset))}


def _at(images: Images, positions: Index) -> Images:
    """The images at these positions, without a copy where they are all."""
    return images if len(positions) == len(images) else images[positions]


def _joined(parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The parts as one array, without a copy where there is one."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def recorded(
    classifier: Classifier, perturbations: Mapping[str, Perturbation], evaluation: Evaluation, folder: Path | None
) -> dict[str, records.Record]:
    """Return what of some perturbations is recorded.

    Args:
        classifier: the classifier.
        perturbations: by name, each at one eps.
        evaluation: as in `measure`.
        folder: run folder; None: there is none.

    Returns:
        Records by name. A damaged one counts as missing, as do one without its outcomes and one of another classifier.
    """
    found: dict[str, records.Record] = {}
    if folder is None:
        return found
    name = classifier.info.name if evaluation.dataset is None else data.dataset_info(evaluation.dataset).name
    folder = folder.resolve()
    store = records.FolderStore(folder.parent)
    for title, options in perturbations.items():
        record = store.record(folder.name, digest(recording.identity(evaluation, name, options)))
        complete = store.correct(folder.name, record.perturbation_id) is not None if record is not None else False
        if record is not None and complete and record.cell_id == classifier.id:
            found[title] = record
    return found


def measure(
    classifier: Classifier,
    perturbations: Mapping[str, Perturbation],
    evaluation: Evaluation | None = None,
    *,
    folder: Path | None = None,
    batch_size: int | None = None,
    checks: attack_diagnostics.Checks = "basic",
    distribution: Distribution = ONE_DEVICE,
    sources: Mapping[str, Classifier] = MappingProxyType({}),
    keep_images: bool = False,
    progress: Progress | None = None,
) -> Iterator[tuple[str, Result]]:
    """Measure perturbations on one classifier, one after another.

    Args:
        classifier: opened in the scope of the distribution.
        perturbations: by name.
        evaluation: data set, split, limit and BN statistics; None: all test examples of its own data set.
        folder: run folder that each record is written into as soon as it is there.
        batch_size: see `Evaluator`.
        checks: see `Evaluator`.
        distribution: see `Evaluator`.
        sources: the models that transfers are from, by id, opened as the classifier is.
        keep_images: see `Evaluator.run`.
        progress: where messages and the number of examples that are done go.

    Yields:
        (name, result). An attack with an eps grid has a result for each eps: the smaller ones, named with their eps,
        come first.

    Raises:
        UsageError: see `Evaluator`.
    """
    progress = progress or Quiet()
    if not perturbations:
        return
    evaluation = evaluation or Evaluation()
    for source in sources.values():
        check_same_input(classifier, source, evaluation)
    opened = functools.partial(
        Evaluator,
        evaluation=evaluation,
        batch_size=batch_size,
        checks=checks,
        distribution=distribution,
    )
    evaluator = opened(classifier, folder=folder)
    for own, source in sources.items():
        kept_in = source.path if source.path is not None and source.path.is_dir() and not source.external else None
        evaluator.add_source(evaluator if own == classifier.id else opened(source, folder=kept_in))
    yield from evaluator.measure(perturbations, folder, keep_images=keep_images, progress=progress)

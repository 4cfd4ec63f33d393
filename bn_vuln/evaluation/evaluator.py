"""Evaluation: accuracies of one classifier, each measured on the images that are kept.

Attacks run in `attack_runner`; here their images are measured, the checks' flags go into the record, and the attack
itself is verified by further attacks.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from bn_vuln import records
from bn_vuln.analysis import metrics
from bn_vuln.config import (
    AWGN,
    Attack,
    Corruption,
    Evaluation,
    MinimumNorm,
    Perturbation,
    describe_perturbation,
    digest,
    format_eps,
    perturbation_identity,
)
from bn_vuln.data import corruptions, noise
from bn_vuln.data.transforms import pixel_array
from bn_vuln.evaluation import attack_diagnostics, sanity_checks
from bn_vuln.evaluation.attack_runner import AttackRunner, PerturbedImages
from bn_vuln.evaluation.classifier import Classifier
from bn_vuln.evaluation.eval_set import EvalSet
from bn_vuln.evaluation.result import Result
from bn_vuln.runtime import backend
from bn_vuln.runtime import batch_size as batching
from bn_vuln.runtime.distribution import ONE_DEVICE, Distribution
from bn_vuln.runtime.progress import Progress, Quiet
from bn_vuln.typing import Index, Logits, Mask


class Evaluator:
    """Measures perturbations of one classifier on one eval set; what they share is computed once.

    Attributes:
        evaluation: data set, split, limit and BN statistics, as they were asked for.
        eval_set: the classifier and its examples.
        attack_runner: runs the attacks.
        checks: the attack diagnostics, `none`, `basic` or `full`.
    """

    def __init__(
        self,
        classifier: Classifier,
        evaluation: Evaluation,
        *,
        batch_size: int | None = None,
        fold: bool = True,
        checks: attack_diagnostics.Checks = "basic",
        distribution: Distribution = ONE_DEVICE,
    ) -> None:
        """Load the examples.

        Args:
            classifier: opened in the scope of the distribution.
            evaluation: data set, split, limit and BN statistics.
            batch_size: examples at a time, over all replicas; None: as many as memory holds.
            fold: see `AttackRunner`.
            checks: the attack diagnostics, see `attack_diagnostics`.
            distribution: the devices.

        Raises:
            UsageError: see `EvalSet`.
        """
        self.evaluation, self.checks = evaluation, checks
        self.eval_set = EvalSet(classifier, evaluation, batch_size=batch_size, distribution=distribution)
        self.attack_runner = AttackRunner(self.eval_set, fold=fold)

    @functools.cached_property
    def model_flags(self) -> tuple[records.Flag, ...]:
        """Flags of the model rather than of one perturbation: checks 4, 9 and 10."""
        eval_set, n = self.eval_set, sanity_checks.SAMPLE
        classifier, sample = eval_set.classifier, eval_set.pixels[:n]
        flags = [sanity_checks.logits_not_probabilities(eval_set.logits(sample))]
        if not classifier.training:  # in training mode an example's logits depend on its batch, as was asked for
            first = sample[: eval_set.batch_size]
            flags.append(sanity_checks.inference_mode(eval_set.predict_batch, classifier.model, first))
        flags.append(sanity_checks.gradients(classifier.predict, sample, eval_set.labels[:n], eval_set.batch_size))
        return tuple(flag for flag in flags if flag is not None)

    def run(self, perturbation: Perturbation, *, progress: Progress | None = None) -> Result:
        """Measure one perturbation; with a smaller batch size from now on where memory is exhausted.

        Args:
            perturbation: clean images, noise, a corruption or an attack.
            progress: where messages and the number of examples that are done go.

        Returns:
            The record, with the examples behind it.

        Raises:
            UsageError: see `AttackRunner.run`.
            BnvulnError: where memory does not hold a single example.
        """
        progress = progress or Quiet()

        def run(batch_size: int) -> Result:
            self.eval_set.batch_size = batch_size
            return self._measure(perturbation, progress)

        if self.eval_set.classifier.training:  # with another batch size it would be another classifier
            return run(self.eval_set.batch_size)
        return batching.run_in_smaller_batches(run, self.eval_set.batch_size, progress.message)[0]

    def subset(self, positions: Index) -> Evaluator:
        """Return the same on the examples at these positions, without attack diagnostics."""
        other = copy.copy(self)
        other.eval_set, other.checks = self.eval_set.subset(positions), "none"
        other.attack_runner = self.attack_runner.on(other.eval_set)
        return other

    def at_smaller_eps(self, options: Attack, result: Result) -> Iterator[tuple[Attack, Result]]:
        """Yield the results at the smaller eps of an eps grid, from what the attack found.

        Args:
            options: the attack with its eps grid.
            result: its result, at the largest eps.

        Yields:
            (the attack at that eps, its result). The image of a robust example is the clean one, so no loss is
            recorded.
        """
        if result.min_eps is None:
            return
        for smaller in options.at_smaller_eps:
            adversarial = result.min_eps <= smaller.eps
            images = np.where(adversarial[:, None, None, None], result.images, self.eval_set.pixels)
            logits = self.eval_set.logits(images)
            record, correct = self._record(smaller, logits, result.record.flags, {}, result.record.seconds)
            record = record.model_copy(update={"loss": None})
            min_eps = np.where(adversarial, result.min_eps, np.inf)
            yield smaller, Result(record, correct, images, result.labels, min_eps)

    def _measure(self, perturbation: Perturbation, progress: Progress) -> Result:
        begun = time.monotonic()
        found = self._perturb(perturbation, progress)
        logits = self.eval_set.logits(found.images) if found.logits is None else found.logits
        flags = tuple(f for f in (*self.model_flags, *found.flags, sanity_checks.finite(logits)) if f)
        record, correct = self._record(perturbation, logits, flags, found.fields, time.monotonic() - begun)
        if isinstance(perturbation, Attack) and (perturbation.eps_grid or perturbation.min_eps_tolerance):
            record = record.model_copy(update={"loss": None})  # the images are those of smaller eps
        result = Result(record, correct, found.images, self.eval_set.labels, found.min_eps, found.arrays)
        if not isinstance(perturbation, Attack):
            return result
        flags = (*flags, *attack_diagnostics.flags(self, perturbation, result, self.checks))
        return dataclasses.replace(result, record=result.record.model_copy(update={"flags": flags}))

    def _perturb(self, perturbation: Perturbation, progress: Progress) -> PerturbedImages:
        """Perturb all images of the eval set."""
        dataset, classifier = self.eval_set.dataset, self.eval_set.classifier
        if isinstance(perturbation, Attack | MinimumNorm):
            return self.attack_runner.run(perturbation, progress)
        if isinstance(perturbation, Corruption):  # at the native width; the record says where the images are from
            images, source = corruptions.corrupted_images(dataset, self.evaluation.split, perturbation)
            return PerturbedImages(pixel_array(images, classifier.width), fields={"corruption_source": source})
        if isinstance(perturbation, AWGN):
            noisy = noise.add_noise(dataset.images, dataset.index, perturbation, classifier.info)
            return PerturbedImages(pixel_array(noisy, classifier.width))
        return PerturbedImages(self.eval_set.pixels, logits=self.eval_set.clean_logits)

    def _record(
        self,
        perturbation: Perturbation,
        logits: Logits,
        flags: tuple[records.Flag, ...],
        fields: Mapping[str, object],
        seconds: float,
    ) -> tuple[records.Record, Mask]:
        """(the record of these logits, correct bool [n])."""
        classifier, info = self.eval_set.classifier, self.eval_set.dataset.info
        labels, n = self.eval_set.labels, len(self.eval_set.dataset)
        correct = metrics.is_correct(logits, labels)
        target_rate = None
        if isinstance(perturbation, Attack | MinimumNorm) and perturbation.target != "none":
            targets = self.attack_runner.attack_labels(perturbation)
            target_rate = float(np.mean(self.attack_runner.is_adversarial(logits, targets, perturbation)))
        evaluation = self.evaluation.model_copy(update={"dataset": info.name})
        identity = perturbation_identity(evaluation, info.name, perturbation)
        record = records.Record.model_validate(
            {
                "cell_id": classifier.id,
                "perturbation_id": digest(identity),
                "cell": classifier.identity,
                "perturbation": identity,
                "n": n,
                "correct": int(correct.sum()),
                "accuracy": float(correct.mean()),
                "top5": metrics.top5(logits, labels),
                "target_rate": target_rate,
                "loss": metrics.cross_entropy(logits, labels),
                "flags": flags,
                "versions": backend.versions(),
                "device": backend.device_name(),
                "replicas": self.eval_set.distribution.replicas,
                "seconds": round(seconds, 3),
                **self._bn_fields(perturbation),
                **fields,
            }
        )
        return record, correct

    def _bn_fields(self, perturbation: Perturbation) -> dict[str, int]:
        """BN layers that the attacked copy had folded away or kept; or the examples behind the batch statistics."""
        if self.eval_set.classifier.training:
            return {"bn_batch_size": min(self.eval_set.batch_size, len(self.eval_set.dataset))}
        if not isinstance(perturbation, Attack | MinimumNorm):
            return {}
        runner = self.attack_runner
        if runner.attacked_classifier(perturbation) is self.eval_set.classifier:
            return {}
        return {"bn_folded": runner.folded.folded, "bn_kept": len(runner.folded.kept)}


def measure(
    classifier: Classifier,
    perturbations: Mapping[str, Perturbation],
    evaluation: Evaluation | None = None,
    *,
    folder: Path | None = None,
    batch_size: int | None = None,
    fold: bool = True,
    checks: attack_diagnostics.Checks = "basic",
    distribution: Distribution = ONE_DEVICE,
    progress: Progress | None = None,
) -> Iterator[tuple[str, Result]]:
    """Measure perturbations on one classifier, one after another.

    Args:
        classifier: opened in the scope of the distribution.
        perturbations: by name.
        evaluation: data set, split, limit and BN statistics; None: all test examples of its own data set.
        folder: run folder that each record is written into as soon as it is there.
        batch_size: see `Evaluator`.
        fold: see `Evaluator`.
        checks: see `Evaluator`.
        distribution: see `Evaluator`.
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
    evaluator = Evaluator(
        classifier,
        evaluation or Evaluation(),
        batch_size=batch_size,
        fold=fold,
        checks=checks,
        distribution=distribution,
    )
    for name, perturbation in perturbations.items():
        result = evaluator.run(perturbation, progress=progress)
        results: list[tuple[str, Perturbation, Result]] = [(name, perturbation, result)]
        if isinstance(perturbation, Attack):
            smaller = evaluator.at_smaller_eps(perturbation, result)
            results[:0] = [(f"{name} {format_eps(options.eps)}", options, found) for options, found in smaller]
        for title, options, found in results:
            if folder is not None:
                records.write_record(folder, found.record, found.correct, found.arrays)
            progress.message(f"{title}: accuracy {found.record.accuracy:.4f} ({describe_perturbation(options)})")
            yield title, found

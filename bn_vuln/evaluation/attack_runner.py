"""Attacks on an eval set: which loop runs, on which copy of the model, and the final projection of its points.

Success is never taken from an attack: its points are projected again, checked against the threat model, and predicted
by the classifier itself.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from bn_vuln import attacks
from bn_vuln.analysis import metrics
from bn_vuln.attacks import active_set, ensemble
from bn_vuln.attacks.losses import input_gradient
from bn_vuln.config import Attack, MinimumNorm, describe_perturbation
from bn_vuln.config.perturbation import PARAMETER_FREE
from bn_vuln.errors import UsageError
from bn_vuln.evaluation import minimum_norm, sanity_checks
from bn_vuln.evaluation.classifier import Classifier
from bn_vuln.evaluation.eval_set import EvalSet
from bn_vuln.evaluation.perturbed import PerturbedImages
from bn_vuln.models import bn_folding
from bn_vuln.runtime import backend
from bn_vuln.runtime.progress import Progress, progress_task
from bn_vuln.typing import Floats, Images, Index, Labels, Logits, Mask

MIN_GRADIENTS_FOR_XLA = 300_000  # gradients of examples above which XLA saves more time than it takes to compile
FLOAT64_NUMBERS = 2**24  # numbers of images at once in the final check, which takes some copies in float64


class AttackRunner:
    """Runs attacks on an eval set; what was compiled is used again."""

    def __init__(self, eval_set: EvalSet, *, fold: bool = True) -> None:
        """Bind to an eval set.

        Args:
            eval_set: the classifier and its examples.
            fold: let attacks use the gradients of a copy with BN folded away, which is the same function and faster;
                what they find is measured on the classifier itself.
        """
        self.eval_set, self.fold = eval_set, fold and not eval_set.classifier.training
        self._compiled_loops: dict[object, Callable[..., Images]] = {}
        self._compiled_searches: dict[object, active_set.CompiledAttack] = {}
        self._known_to_xla: dict[int, bool] = {}  # by the id of the attacked model

    def on(self, eval_set: EvalSet) -> AttackRunner:
        """Return a runner on another eval set of the same classifier."""
        other = copy.copy(self)
        other.eval_set = eval_set
        return other

    @functools.cached_property
    def folded(self) -> bn_folding.FoldingResult:
        """The copy of the model that attacks differentiate, and what became of its BN layers."""
        with self.eval_set.distribution.scope():
            return bn_folding.fold(self.eval_set.classifier.model)

    def run(self, options: Attack | MinimumNorm, progress: Progress) -> PerturbedImages:
        """Attack every example of the eval set.

        Args:
            options: the attack.
            progress: where it is reported how many examples are done.

        Returns:
            The images that are kept, each inside the threat model, with the flags of the checks.

        Raises:
            UsageError: for an eps grid above eps, and, where BN has the statistics of the batch, for attacks that
                move examples between batches.
        """
        if isinstance(options, MinimumNorm):
            return self._minimum_norm(options, progress)
        if options.keep == "first_success" and not self.eval_set.classifier.training:
            return self._search(options, progress)
        return self._fixed_steps(options, progress)

    def is_adversarial(self, logits: Logits, labels: Labels, options: Attack | MinimumNorm) -> Mask:
        """Return which logits are those of adversarial examples.

        Args:
            logits: float32 [n, classes].
            labels: what the attack was given, int32 [n]: true classes, or targets.
            options: the attack.

        Returns:
            bool [n]: another class than the label is predicted or, of a targeted attack, the target.
        """
        correct = metrics.is_correct(logits, labels)
        return ~correct if options.target == "none" else correct

    def attack_labels(self, options: Attack | MinimumNorm) -> Labels:
        """Return the labels that an attack is given, int32 [n]: the true classes, or its targets."""
        if options.target == "next":
            return np.asarray((self.eval_set.labels + 1) % len(self.eval_set.dataset.info.classes), np.int32)
        if options.target == "least_likely":
            return np.asarray(self.eval_set.clean_logits.argmin(axis=1), np.int32)
        return self.eval_set.labels

    def attacked_classifier(self, options: Attack | MinimumNorm, progress: Progress | None = None) -> Classifier:
        """Return the classifier whose gradients an attack uses; CleverHans gets the original, as its users do."""
        classifier = self.eval_set.classifier
        if not self.fold or options.backend != "own":
            return classifier
        if progress is not None and self.folded.kept:
            progress.message(
                "BN layers not folded (attack differentiates them directly): " + "; ".join(self.folded.kept)
            )
        return dataclasses.replace(classifier, model=self.folded.model)

    # ---------------------------------------------------------------- the three kinds of attacks

    def _fixed_steps(self, options: Attack, progress: Progress) -> PerturbedImages:
        """Take all steps on every example, batch by batch, and keep one iterate of each."""
        self._refuse_searches(options)
        threat_model = attacks.from_config(options, self.eval_set.classifier.info)
        run, labels = self._compiled_loop(options, progress), self.attack_labels(options)
        x, index = self.eval_set.pixels, self.eval_set.index
        with progress_task(progress, describe_perturbation(options), len(x), "examples"):
            points = self.eval_set.map_batches(run, x, labels, index, on_batch=progress.advance)
        images, violation, outside = self._projected(points, threat_model)
        return PerturbedImages(
            images, flags=(sanity_checks.reaches_border(options),), violation=violation, outside_box=outside
        )

    def _search(self, options: Attack, progress: Progress) -> PerturbedImages:
        """Search with the active set, for the first success of each example, at one eps or several."""
        if max(options.eps_grid, default=0.0) > options.eps:
            raise UsageError(
                f"eps_grid: {max(options.eps_grid):.4g} is above eps = {options.eps:.4g}; attack at the largest"
            )
        eval_set = self.eval_set
        threat_model = attacks.from_config(options, eval_set.classifier.info)
        labels, clean_logits = self.attack_labels(options), eval_set.clean_logits
        attacked = self.attacked_classifier(options, progress)

        def confirm(points: Images, positions: Index, eps: Floats) -> Mask:  # on the classifier itself
            images = _project(points, eval_set.pixels[positions], threat_model.with_eps(eps))
            return self.is_adversarial(eval_set.logits(images), labels[positions], options)

        @contextlib.contextmanager
        def report_stage(name: str, remaining: int) -> Iterator[Callable[[int], None]]:
            with progress_task(progress, name, remaining, "examples"):
                yield progress.advance

        stages = ensemble.stages(attacked.predict, options, threat_model, labels, clean_logits)
        total = ensemble.run(
            self._compiled_stages(stages, options, attacked),
            options,
            eval_set.pixels,
            eval_set.labels,
            clean=~self.is_adversarial(clean_logits, labels, options),
            index=eval_set.index,
            confirm=confirm,
            batch_size=eval_set.batch_size,
            on_stage=report_stage,
        )
        found = total.result
        images, violation, outside = self._projected(
            found.points, threat_model.with_eps(np.minimum(found.eps, options.eps))
        )
        distance = {} if options.min_eps_tolerance is None else {"distance": found.eps.astype(np.float32)}
        return PerturbedImages(
            images,
            flags=(sanity_checks.reaches_border(options),),
            min_eps=found.eps,
            n_evaluations=found.n_evaluations,
            robust_after=total.robust_after,
            violation=violation,
            outside_box=outside,
            arrays=distance,
        )

    def _minimum_norm(self, options: MinimumNorm, progress: Progress) -> PerturbedImages:
        """Look for the nearest adversarial example of each image, in the box."""
        self._refuse_searches(options)
        eval_set, labels = self.eval_set, self.attack_labels(options)
        threat_model = minimum_norm.threat_model(options, eval_set.classifier.info)
        attacked = self.attacked_classifier(options, progress)
        xla = self._uses_xla(options.steps * options.binary_search_steps, attacked)
        run = minimum_norm.bind(attacked.predict, options, threat_model, eval_set.distribution)
        x = eval_set.pixels
        with progress_task(progress, describe_perturbation(options), len(x), "examples"):
            points = run(x, labels, batch_size=eval_set.batch_size, xla=xla, on_progress=progress.advance)
        images, _, outside = self._projected(points, threat_model)
        logits = eval_set.logits(images)
        length = minimum_norm.distances(images, x, threat_model)
        violation = sanity_checks.threat_model_violation(points, x, threat_model.with_eps(length))
        adversarial = self.is_adversarial(logits, labels, options)
        already = self.is_adversarial(eval_set.clean_logits, labels, options)
        distance = np.where(already, 0.0, np.where(adversarial, length, np.inf))
        arrays = minimum_norm.arrays(distance, images, x, eval_set.labels, logits)
        return PerturbedImages(
            images, logits, min_eps=distance, violation=violation, outside_box=outside, arrays=arrays
        )

    # ---------------------------------------------------------------- final projection and checks

    def _projected(self, points: Images, threat_model: attacks.ThreatModel) -> tuple[Images, Floats, Mask]:
        """(the points projected again, how far each lay outside, clean images outside the box), by batches."""
        images, violations, outside = np.empty_like(points), [], []
        size = min(self.eval_set.batch_size, max(1, FLOAT64_NUMBERS // points[0].size))
        for i in range(0, len(points), size):
            batch = slice(i, i + size)
            x, own = self.eval_set.pixels[batch], threat_model.subset(batch)
            violations.append(sanity_checks.threat_model_violation(points[batch], x, own))
            outside.append(sanity_checks.outside_box(x, own))
            images[batch] = _project(points[batch], x, own)
        return images, np.concatenate(violations), np.concatenate(outside)

    def _refuse_searches(self, options: Attack | MinimumNorm) -> None:
        """Raise `UsageError` where examples whose logits depend on their batch would change places in it."""
        moved = (
            isinstance(options, MinimumNorm)
            or options.attack in PARAMETER_FREE
            or options.eps_grid
            or options.min_eps_tolerance
        )
        if self.eval_set.classifier.training and moved:
            raise UsageError(
                f"{options.attack}: with bn_statistics: batch an example's prediction depends on the batch it is in, "
                "which searches change; use fgsm, bim or pgd at one eps"
            )
        if self.eval_set.classifier.training and self.eval_set.distribution.replicas > 1:  # no sums inside of loops
            raise UsageError(
                f"{options.attack}: with bn_statistics: batch the gradient goes through sums over all replicas, which "
                "attacks cannot take; use --strategy none"
            )

    # ---------------------------------------------------------------- compilation

    def _uses_xla(self, steps: int, attacked: Classifier) -> bool:
        many = len(self.eval_set.dataset) * steps >= MIN_GRADIENTS_FOR_XLA
        preferred = many and self.eval_set.distribution.replicas == 1 and backend.execution_policy(attacked.model).xla
        return preferred and (not attacked.external or self._xla_knows(attacked))

    def _xla_knows(self, attacked: Classifier) -> bool:
        """If XLA compiles the gradient of an external model, which may hold any operation."""
        if id(attacked.model) not in self._known_to_xla:
            point = backend.tensorflow().constant(self.eval_set.at_input(self.eval_set.dataset.images[:2]))
            self._known_to_xla[id(attacked.model)] = backend.xla_compiles(
                lambda x: input_gradient(attacked.predict, x, lambda logits: logits[:, 0]), point
            )
        return self._known_to_xla[id(attacked.model)]

    def _compiled_loop(self, options: Attack, progress: Progress) -> Callable[..., Images]:
        """The attack as a function of arrays (x, y, index)."""
        attacked = self.attacked_classifier(options, progress)
        xla = self._uses_xla(options.steps, attacked)
        key = (options.model_dump_json(), xla)
        if key not in self._compiled_loops:
            bound = attacks.bind(attacked.predict, options, self.eval_set.classifier.info, xla=xla)
            sharded = self.eval_set.distribution.compile_sharded(bound, signature=self.eval_set.signature)
            self._compiled_loops[key] = sharded
        return self._compiled_loops[key]

    def _compiled_stages(
        self, stages: Iterator[ensemble.Stage], options: Attack, attacked: Classifier
    ) -> Iterator[ensemble.Stage]:
        """The stages with their searches compiled: once for attacks that differ in eps, eps_grid and targets alone."""
        for stage in stages:
            search = stage.attack
            assert not isinstance(search, active_set.CompiledAttack)
            xla = self._uses_xla(stage.n_attempts * search.steps, attacked)
            own = [item for item in vars(search).items() if item[0] not in ("predict", "threat_model")]
            key = (type(search), *own, options.ord, options.unit, options.box, xla)
            if key not in self._compiled_searches:
                distribution = self.eval_set.distribution
                self._compiled_searches[key] = active_set.CompiledAttack(search, xla=xla, distribution=distribution)
            yield dataclasses.replace(stage, attack=self._compiled_searches[key])


def _project(points: NDArray[np.float32], x: Images, threat_model: attacks.ThreatModel) -> Images:
    """Project again in float64, so that every counted image satisfies the threat model; NaN becomes the clean image."""
    return threat_model.project_array(np.where(np.isfinite(points), points, x), x)

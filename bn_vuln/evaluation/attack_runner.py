"""Attacks on an eval set: which search runs, and the final projection of its points.

Success is never taken from an attack: its points are projected again, checked against the threat model, and predicted
by the classifier.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from bn_vuln import attacks
from bn_vuln.analysis import metrics
from bn_vuln.attacks import active_set, cleverhans, ensemble
from bn_vuln.attacks.active_set import EpsGrid, EpsSearch, EveryAttempt, SearchResult
from bn_vuln.attacks.bisection import Bisection
from bn_vuln.attacks.carlini_wagner import CarliniWagner, move_towards
from bn_vuln.attacks.losses import input_gradient
from bn_vuln.config import Attack, MinimumNorm, describe_perturbation
from bn_vuln.config.perturbation import PARAMETER_FREE
from bn_vuln.errors import UsageError
from bn_vuln.evaluation import minimum_norm, sanity_checks
from bn_vuln.evaluation.eval_set import EvalSet
from bn_vuln.evaluation.perturbed import PerturbedImages
from bn_vuln.models.folded_batch_norm import folded_batch_norm
from bn_vuln.runtime import backend
from bn_vuln.runtime.backend import ExecutionPolicy
from bn_vuln.runtime.progress import Progress, progress_task
from bn_vuln.typing import Floats, Images, Labels, Logits, Mask, Tensor

FLOAT64_NUMBERS = 2**24  # numbers of images at once in the final check, which takes some copies in float64


class AttackRunner:
    """Runs attacks on an eval set; what was compiled is used again."""

    def __init__(self, eval_set: EvalSet) -> None:
        self.eval_set = eval_set
        self._compiled: dict[object, active_set.CompiledAttack] = {}
        self._known_to_xla: bool | None = None

    def on(self, eval_set: EvalSet) -> AttackRunner:
        """Return a runner on another eval set of the same classifier."""
        other = copy.copy(self)
        other.eval_set = eval_set
        return other

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
        self._refuse_searches(options)
        if isinstance(options, MinimumNorm):
            return self._minimum_norm(options, progress)
        if options.keep == "first_success" and not self.eval_set.classifier.training:
            return self._search(options, progress)
        return self._all_steps(options, progress)

    def is_adversarial(self, logits: Logits, labels: Labels, options: Attack | MinimumNorm) -> Mask:
        """Return which logits are those of adversarial examples.

        Args:
            logits: float32 [n, classes].
            labels: what the attack was given, int32 [n]: true classes, or targets.
            options: the attack.

        Returns:
            bool [n]: another class than the label is predicted or, of a targeted attack, the target; of an attack on
            the `top` largest logits, the label is none of them.
        """
        if isinstance(options, Attack) and options.top > 1:
            return ~metrics.in_top(logits, labels, options.top)
        correct = metrics.is_correct(logits, labels)
        return ~correct if options.target == "none" else correct

    def attack_labels(self, options: Attack | MinimumNorm) -> Labels:
        """Return the labels that an attack is given, int32 [n]: the true classes, or its targets."""
        if options.target == "next":
            return np.asarray((self.eval_set.labels + 1) % len(self.eval_set.dataset.info.classes), np.int32)
        if options.target == "least_likely":
            return np.asarray(self.eval_set.clean_logits.argmin(axis=1), np.int32)
        return self.eval_set.labels

    # ---------------------------------------------------------------- the kinds of attacks

    def _all_steps(self, options: Attack, progress: Progress) -> PerturbedImages:
        """Take all steps on every example, and keep one iterate of each."""
        eval_set, threat_model = self.eval_set, attacks.from_config(options, self.eval_set.classifier.info)
        with progress_task(progress, describe_perturbation(options), len(eval_set), "examples"):
            if options.backend == "cleverhans":
                points = self._cleverhans(options, threat_model, progress.advance)
            else:
                (stage,) = self._stages(options, threat_model)
                keep: active_set.Keep = "last" if options.keep == "last" else "best_loss"
                points = self._run(stage, options, EveryAttempt(options.eps, options.restarts), progress, keep).points
        images, violation, outside = self._projected(points, threat_model)
        return PerturbedImages(
            images, flags=(sanity_checks.reaches_border(options),), violation=violation, outside_box=outside
        )

    def _search(self, options: Attack, progress: Progress) -> PerturbedImages:
        """Search for the first success of each example, at one eps or several."""
        if max(options.eps_grid, default=0.0) > options.eps:
            raise UsageError(
                f"eps_grid: {max(options.eps_grid):.4g} is above eps = {options.eps:.4g}; attack at the largest"
            )
        eval_set, labels = self.eval_set, self.attack_labels(options)
        threat_model = attacks.from_config(options, eval_set.classifier.info)
        n, adversarial = len(eval_set), self.is_adversarial(eval_set.clean_logits, labels, options)
        found = SearchResult(  # the clean images
            eval_set.pixels, adversarial, np.where(adversarial, 0.0, np.inf), np.full(n, -np.inf), np.zeros(n, np.int64)
        )
        robust_after = {}
        for stage in self._stages(options, threat_model):
            search = _eps_search(options, stage.n_attempts, found.eps)
            with progress_task(progress, stage.name, int(search.first(n).pending.sum()), "examples"):
                found = found.merged(self._run(stage, options, search, progress))
            robust_after[stage.name] = int(np.sum(~found.is_adversarial))
        images, violation, outside = self._projected(
            found.points, threat_model.with_eps(np.minimum(found.eps, options.eps))
        )
        logits = eval_set.logits(images)
        # What counts is the class: by less than rounding, which ends no search, an image may still be misclassified.
        min_eps = np.where(self.is_adversarial(logits, labels, options), np.minimum(found.eps, options.eps), np.inf)
        distance = {} if options.min_eps_tolerance is None else {"distance": min_eps.astype(np.float32)}
        return PerturbedImages(
            images,
            logits,
            flags=(sanity_checks.reaches_border(options),),
            min_eps=min_eps,
            n_evaluations=found.n_evaluations,
            robust_after=robust_after,
            violation=violation,
            outside_box=outside,
            arrays=distance,
        )

    def _minimum_norm(self, options: MinimumNorm, progress: Progress) -> PerturbedImages:
        """Look for the nearest adversarial example of each image, in the box."""
        eval_set, labels, targeted = self.eval_set, self.attack_labels(options), options.target != "none"
        threat_model = minimum_norm.threat_model(options, eval_set.classifier.info)
        already = self.is_adversarial(eval_set.clean_logits, labels, options)
        names = ("step_size", "binary_search_steps", "initial_const", "confidence")
        settings = {name: getattr(options, name) for name in names}
        attack = CarliniWagner(self._predict, threat_model, options.steps, targeted=targeted, **settings)
        stage = ensemble.Stage(options.attack, attack, targets=labels[:, None] if targeted else None)
        search = EpsGrid([1.0], upper_eps=np.where(already, 0.0, np.inf))  # eps has no effect, one job for each
        x = eval_set.pixels
        with progress_task(progress, describe_perturbation(options), int(np.sum(~already)), "examples"):
            found = self._run(stage, options, search, progress, "best_loss")
        points, moved = found.points, np.flatnonzero(found.is_adversarial)

        def succeeds(images: Images) -> Mask:
            return np.asarray(attack.succeeds(backend.place(eval_set.logits(images)), backend.place(labels[moved])))

        if len(moved):
            inside = np.clip(x[moved], threat_model.low, threat_model.high)
            points[moved] = move_towards(inside, points[moved], succeeds)
        images, _, outside = self._projected(points, threat_model)
        logits = eval_set.logits(images)
        length = minimum_norm.distances(images, x, threat_model)
        violation = sanity_checks.threat_model_violation(points, x, threat_model.with_eps(length))
        adversarial = self.is_adversarial(logits, labels, options)
        distance = np.where(already, 0.0, np.where(adversarial, length, np.inf))
        arrays = minimum_norm.arrays(distance, images, x, eval_set.labels, logits)
        return PerturbedImages(
            images, logits, min_eps=distance, violation=violation, outside_box=outside, arrays=arrays
        )

    def _cleverhans(
        self, options: Attack, threat_model: attacks.ThreatModel, on_batch: Callable[[int], None]
    ) -> Images:
        """The points of CleverHans' attack on the classifier, as its users run it."""
        eval_set, distribution = self.eval_set, self.eval_set.distribution

        def attack(x: Tensor, y: Tensor) -> Tensor:
            return cleverhans.attack(
                eval_set.classifier.predict,
                x,
                y,
                threat_model=threat_model,
                steps=options.steps,
                step_size=options.step_size or 0.0,
                random_start=options.random_start,
                targeted=options.target != "none",
            )

        run = distribution.compile_sharded(attack, signature=eval_set.signature[:2])
        return eval_set.map_batches(run, eval_set.pixels, self.attack_labels(options), on_batch=on_batch)

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
        """Raise `UsageError` where examples whose logits depend on their batch would change places in it.

        Also for an attack on the largest logits where there are no others.
        """
        classes = len(self.eval_set.classifier.info.classes)
        if isinstance(options, Attack) and options.top > 1 and classes <= options.top:
            raise UsageError(f"top: expected fewer than the {classes} classes, received {options.top}")
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

    # ---------------------------------------------------------------- execution

    def _predict(self, pixels: Tensor) -> Tensor:
        """The logits of the classifier, whose BN is part of the convolutions before it while attacks are traced."""
        classifier = self.eval_set.classifier
        if classifier.training:
            return classifier.predict(pixels)
        with folded_batch_norm(classifier.model):
            return classifier.predict(pixels)

    def _stages(self, options: Attack, threat_model: attacks.ThreatModel) -> Iterator[ensemble.Stage]:
        labels, logits = self.attack_labels(options), self.eval_set.clean_logits
        return ensemble.stages(self._predict, options, threat_model, labels, logits)

    def _run(
        self,
        stage: ensemble.Stage,
        options: Attack | MinimumNorm,
        search: EpsSearch,
        progress: Progress,
        keep: active_set.Keep = "first_success",
    ) -> SearchResult:
        """Run an attack on all examples; those that differ in eps, eps_grid and targets alone are compiled once."""
        eval_set, attack, scored = self.eval_set, stage.attack, stage.n_attempts > 1
        policy = self._policy(stage.n_attempts * attack.steps)
        settings = [item for item in vars(attack).items() if item[0] not in ("predict", "threat_model", "step_size")]
        relative = getattr(attack, "step_size", 0.0) / (getattr(options, "eps", 0.0) or 1.0)
        key = (type(attack), *settings, relative, options.ord, options.unit, options.box, keep, scored, policy)
        if key not in self._compiled:
            self._compiled[key] = active_set.CompiledAttack(
                attack, keep=keep, scored=scored, policy=policy, distribution=eval_set.distribution
            )
        return active_set.run(
            self._compiled[key],
            eval_set.pixels,
            eval_set.labels,
            search,
            targets=stage.targets,
            index=eval_set.index,
            batch_size=eval_set.batch_size,
            on_progress=progress.advance,
        )

    def _policy(self, steps: int) -> ExecutionPolicy:
        """How to execute an attack of so many steps on each example."""
        eval_set, model = self.eval_set, self.eval_set.classifier.model
        gradients, devices = len(eval_set) * steps, eval_set.distribution.replicas
        policy = backend.execution_policy(model, gradients=gradients, devices=devices)
        if policy.xla and eval_set.classifier.external and not self._xla_knows():
            return dataclasses.replace(policy, xla=False)
        return policy

    def _xla_knows(self) -> bool:
        """If XLA compiles the gradient of an external model, which may hold any operation."""
        if self._known_to_xla is None:
            predict = self.eval_set.classifier.predict
            point = backend.place(self.eval_set.at_input(self.eval_set.dataset.images[:2]))
            self._known_to_xla = backend.xla_compiles(
                lambda x: input_gradient(predict, x, lambda logits: logits[:, 0]), point
            )
        return self._known_to_xla


def _eps_search(options: Attack, n_attempts: int, upper_eps: Floats) -> EpsSearch:
    """The search over eps: a bisection, or the eps grid from the largest down, for each example below `upper_eps`."""
    if options.min_eps_tolerance is not None:
        return Bisection(options.eps, options.min_eps_tolerance, n_attempts, upper_eps)
    return EpsGrid(sorted((*options.eps_grid, options.eps)), n_attempts, upper_eps)


def _project(points: NDArray[np.float32], x: Images, threat_model: attacks.ThreatModel) -> Images:
    """Project again in float64, so that every counted image satisfies the threat model; NaN becomes the clean image."""
    return threat_model.project_array(np.where(np.isfinite(points), points, x), x)

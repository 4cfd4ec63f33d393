"""Attacks that keep the first success, and `strong`, their ensemble: each stage attacks what resisted all before.

The ensemble is AutoAttack's standard set, in its order and with its settings (Croce and Hein 2020: APGD on the
cross-entropy, targeted APGD on the DLR loss, FAB-T, Square). Only FAB-T is replaced, by FMN (Pintor et al. 2021),
another minimum-norm attack. So it is not called AutoAttack.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from bn_vuln.attacks import active_set, auto_pgd
from bn_vuln.attacks.active_set import SearchResult
from bn_vuln.attacks.base import IterativeAttack
from bn_vuln.attacks.eps_search import Bisection, EpsGrid, EpsSearch
from bn_vuln.attacks.fast_minimum_norm import FMN
from bn_vuln.attacks.pgd import PGD
from bn_vuln.attacks.square import Square
from bn_vuln.attacks.threat_model import ThreatModel, per_example
from bn_vuln.config import Attack
from bn_vuln.typing import Floats, Images, Labels, Logits, Mask, Predict

# (name of a stage, number of its examples) -> a context around the stage, whose value is its `on_progress`
OnStage: TypeAlias = Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], None] | None]]
STRONG = ("apgd-ce", "apgd-t", "fmn", "square")


@dataclass(frozen=True)
class Stage:
    """One attack of the ensemble.

    Attributes:
        name: "apgd-ce", "pgd", ...
        attack: the attack, compiled or not.
        n_attempts: number of restarts, or of restarts times targets.
        targets: int32 [n, attempts], the class that each attempt aims at, if any.
    """

    name: str
    attack: IterativeAttack | active_set.CompiledAttack
    n_attempts: int = 1
    targets: Labels | None = None


@dataclass(frozen=True)
class EnsembleResult:
    """The `result` of all stages together, and how many examples resist every eps after each stage."""

    result: SearchResult
    robust_after: dict[str, int]


def run(
    stages: Iterator[Stage],
    options: Attack,
    x: Images,
    y: Labels,
    *,
    clean: Mask,
    index: Labels | None = None,
    batch_size: int = active_set.BATCH_SIZE,
    on_stage: OnStage = lambda name, n: contextlib.nullcontext(),
) -> EnsembleResult:
    """Run the stages, one after another, each over the eps of the options (see `eps_search`).

    Args:
        stages: the attacks, see `stages`.
        options: config of the attack.
        x: clean images, float32 [n, height, width, channels], in pixels.
        y: int32 [n], true labels.
        clean: bool [n], False where the clean image is adversarial already: its eps is 0.
        index: as in `active_set.run`.
        batch_size: as in `active_set.run`.
        on_stage: called with the name and the number of examples of each stage; the stage runs in the context that it
            returns.

    Returns:
        For each example the success at the smallest eps, or else the point of the first stage.
    """
    n = len(x)
    total = SearchResult(x.copy(), ~clean, np.where(clean, np.inf, 0.0), np.full(n, -np.inf), np.zeros(n, np.int64))
    robust_after: dict[str, int] = {}
    for number, stage in enumerate(stages):
        search = eps_search(options, stage.n_attempts, total.eps)
        with on_stage(stage.name, int(search.first(n).pending.sum())) as on_progress:
            result = active_set.run(
                stage.attack,
                x,
                y,
                search,
                targets=stage.targets,
                index=index,
                batch_size=batch_size,
                on_progress=on_progress,
            )
        total = _merged(total, result, first=number == 0)
        robust_after[stage.name] = int(np.sum(~total.is_adversarial))
    return EnsembleResult(total, robust_after)


def eps_search(options: Attack, n_attempts: int, upper_eps: Floats) -> EpsSearch:
    """Return the search over eps of an attack's config: a bisection, or the eps grid from the largest down.

    Args:
        options: its `eps`, `eps_grid` and `min_eps_tolerance` are used.
        n_attempts: number of attempts at each eps.
        upper_eps: float64 [n]; an example is attacked at smaller eps only.
    """
    if options.min_eps_tolerance is not None:
        return Bisection(options.eps, options.min_eps_tolerance, n_attempts, upper_eps)
    return EpsGrid(sorted((*options.eps_grid, options.eps)), n_attempts, upper_eps)


def stages(predict: Predict, options: Attack, threat_model: ThreatModel, y: Labels, logits: Logits) -> Iterator[Stage]:
    """Yield the stages of an attack's config: the attack itself, or the attacks of `strong`.

    Args:
        predict: pixels [n, height, width, channels] -> logits [n, classes], differentiable.
        options: config of the attack.
        threat_model: norm, scale and box.
        y: int32 [n], the labels, or the targets of a targeted attack.
        logits: float32 [n, classes], of the clean images.
    """
    if options.attack != "strong":
        yield _stage(options.attack, predict, options, threat_model, y, logits)
        return
    for name in STRONG:
        steps = options.queries if name == "square" else options.steps
        yield _stage(name, predict, options.model_copy(update={"steps": steps}), threat_model, y, logits)


def _stage(name: str, predict: Predict, options: Attack, threat_model: ThreatModel, y: Labels, logits: Logits) -> Stage:
    steps, seed, restarts = options.steps, options.seed, options.restarts
    if name in ("fgsm", "bim", "pgd"):
        targeted = options.target != "none"
        attack = PGD(predict, threat_model, steps, options.step_size or 0.0, options.random_start, targeted, seed)
        return Stage(name, attack, restarts, y[:, None] if targeted else None)
    if name == "fmn":
        return Stage(name, FMN(predict, threat_model, steps))
    if name == "square":
        return Stage(name, Square(predict, threat_model, steps, seed=seed), restarts)
    if name == "apgd-t":
        targets = auto_pgd.target_classes(logits, y, options.targets)
        apgd = auto_pgd.APGD(predict, threat_model, steps, "targeted_dlr", seed=seed)
        return Stage(name, apgd, restarts * targets.shape[1], np.tile(targets, restarts))
    return Stage(name, auto_pgd.APGD(predict, threat_model, steps, name.removeprefix("apgd-"), seed=seed), restarts)


def _merged(total: SearchResult, result: SearchResult, *, first: bool) -> SearchResult:
    """For each example the success at the smaller eps, or else the first stage's point."""
    better = (result.eps < total.eps) | (first & ~total.is_adversarial)
    return replace(
        total,
        points=np.where(per_example(better), result.points, total.points),
        is_adversarial=total.is_adversarial | result.is_adversarial,
        eps=np.minimum(total.eps, result.eps),
        loss=np.where(better, result.loss, total.loss),
        n_evaluations=total.n_evaluations + result.n_evaluations,
    )

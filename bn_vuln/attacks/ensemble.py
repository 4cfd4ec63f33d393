"""Attacks that count any iterate, and `strong`, their cascade: each on what the ones before have left standing.

The cascade is AutoAttack's standard set (Croce and Hein 2020: APGD on the cross-entropy, targeted APGD on the DLR loss,
FAB-T, Square), in its order and with its settings, but for FAB-T, whose place FMN takes (Pintor et al. 2021), another
minimum-norm attack. So it is not called AutoAttack.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln.attacks import active_set, auto_pgd
from bn_vuln.attacks.active_set import Confirm, SearchResult
from bn_vuln.attacks.base import PGD, IterativeAttack
from bn_vuln.attacks.eps_search import Bisection, EpsGrid, EpsSearch
from bn_vuln.attacks.fast_minimum_norm import FMN
from bn_vuln.attacks.losses import Predict
from bn_vuln.attacks.square import Square
from bn_vuln.attacks.threat_model import ThreatModel, per_example
from bn_vuln.config import Attack
from bn_vuln.runtime.distribution import ONE_DEVICE, Distribution

# (name of a stage, examples it has) -> a context in which it runs, whose value is told how many are through
UnderWay = Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], None] | None]]
STRONG = ("apgd-ce", "apgd-t", "fmn", "square")


@dataclass(frozen=True)
class Stage:
    """One attack of a cascade: its name, its search, how many variants (restarts, or restarts of every target) it
    has, and the targets of these, int32 [n, variants], if any."""

    name: str
    attack: IterativeAttack | active_set.CompiledAttack
    variants: int = 1
    targets: NDArray[np.int32] | None = None


@dataclass(frozen=True)
class EnsembleResult:
    """`found` by all stages together; `robust_after`: after each stage, how many examples no eps has fooled yet."""

    result: SearchResult
    robust_after: dict[str, int]


def run(
    stages: Iterator[Stage],
    options: Attack,
    x: NDArray[np.float32],
    y: NDArray[np.int32],
    *,
    clean: NDArray[np.bool_],
    index: NDArray[np.int32] | None = None,
    confirm: Confirm | None = None,
    batch_size: int = active_set.BATCH_SIZE,
    xla: bool = False,
    distribution: Distribution = ONE_DEVICE,
    on_stage: UnderWay = lambda name, left: contextlib.nullcontext(),
) -> EnsembleResult:
    """The stages, one after another, through the plan of the options (see `plan`). `clean` bool [n]: which clean images
    are classified as they should be; the others are fooled at eps 0. The rest as `engine.run` takes it; `under_way`
    wraps each stage, of a name and so many examples."""
    n = len(x)
    eps = np.where(clean, np.inf, 0.0)
    total = SearchResult(x.copy(), ~clean, eps, np.full(n, -np.inf), np.zeros(n, np.int64))
    robust_after: dict[str, int] = {}
    for number, stage in enumerate(stages):
        way = plan(options, stage.variants, total.eps)
        with on_stage(stage.name, int(way.first(n).again.sum())) as on_progress:
            found = active_set.run(
                stage.attack,
                x,
                y,
                way,
                targets=stage.targets,
                index=index,
                confirm=confirm,
                batch_size=batch_size,
                xla=xla,
                distribution=distribution,
                on_progress=on_progress,
            )
        total = _merged(total, found, first=number == 0)
        robust_after[stage.name] = int(np.sum(~total.is_adversarial))
    return EnsembleResult(total, robust_after)


def plan(options: Attack, variants: int, below: NDArray[np.float64]) -> EpsSearch:
    """What each example goes through, tried at no eps but those smaller than its `below`: the eps_grid, downwards, so
    that an attack is withstood once rather than at every smaller; or a bisection."""
    if options.min_eps_tolerance is not None:
        return Bisection(options.eps, options.min_eps_tolerance, variants, below)
    return EpsGrid(sorted((*options.eps_grid, options.eps)), variants, below)


def stages(
    predict: Predict, options: Attack, threat_model: ThreatModel, y: NDArray[np.int32], logits: NDArray[np.float32]
) -> Iterator[Stage]:
    """The stages of an attack's config: the attack itself, or those of `strong`. `logits` of the clean images, float32
    [n, classes]; `y` int32 [n], the labels, or the targets of a targeted attack."""
    if options.attack != "strong":
        yield _stage(options.attack, predict, options, threat_model, y, logits)
        return
    for name in STRONG:
        steps = options.queries if name == "square" else options.steps
        yield _stage(name, predict, options.model_copy(update={"steps": steps}), threat_model, y, logits)


def _stage(
    name: str,
    predict: Predict,
    options: Attack,
    threat_model: ThreatModel,
    y: NDArray[np.int32],
    logits: NDArray[np.float32],
) -> Stage:
    common: dict[str, Any] = {"predict": predict, "threat_model": threat_model, "steps": options.steps}
    if name in ("fgsm", "bim", "pgd"):
        size = 0.0 if not options.eps or options.step_size is None else options.step_size / options.eps
        targeted = options.target != "none"
        search: IterativeAttack = PGD(
            **common, step_size=size, random_start=options.random_start, targeted=targeted, seed=options.seed
        )
        return Stage(name, search, options.restarts, y[:, None] if targeted else None)
    if name == "fmn":
        return Stage(name, FMN(**common))
    if name == "square":
        return Stage(name, Square(**common, seed=options.seed), options.restarts)
    if name == "apgd-t":
        targets = auto_pgd.targets(logits, y, options.targets)
        search = auto_pgd.APGD(**common, loss="targeted_dlr", seed=options.seed)
        return Stage(name, search, options.restarts * targets.shape[1], np.tile(targets, options.restarts))
    return Stage(name, auto_pgd.APGD(**common, loss=name.removeprefix("apgd-"), seed=options.seed), options.restarts)


def _merged(total: SearchResult, found: SearchResult, *, first: bool) -> SearchResult:
    """Of each example what fooled it at the smaller eps, or else the first stage's point."""
    better = found.eps < total.eps
    taken = better | (first & ~total.is_adversarial)
    return replace(
        total,
        points=np.where(per_example(taken), found.points, total.points),
        is_adversarial=total.is_adversarial | found.is_adversarial,
        eps=np.minimum(total.eps, found.eps),
        loss=np.where(taken, found.loss, total.loss),
        n_evaluations=total.n_evaluations + found.n_evaluations,
    )

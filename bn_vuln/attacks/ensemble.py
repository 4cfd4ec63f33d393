"""Attacks that keep the first success, and `strong`, their ensemble: each stage attacks what resisted all before.

The ensemble is AutoAttack's standard set, in its order and with its settings (Croce and Hein 2020: APGD on the
cross-entropy, targeted APGD on the DLR loss, FAB-T, Square). Only FAB-T is replaced, by FMN (Pintor et al. 2021),
another minimum-norm attack. So it is not called AutoAttack.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bn_vuln.attacks import auto_pgd
from bn_vuln.attacks.base import IterativeAttack
from bn_vuln.attacks.fast_minimum_norm import FMN
from bn_vuln.attacks.pgd import PGD
from bn_vuln.attacks.square import Square
from bn_vuln.attacks.threat_model import ThreatModel
from bn_vuln.config import Attack
from bn_vuln.typing import Labels, Logits, Predict

STRONG = ("apgd-ce", "apgd-t", "fmn", "square")


@dataclass(frozen=True)
class Stage:
    """One attack of the ensemble.

    Attributes:
        name: "apgd-ce", "pgd", ...
        attack: the attack.
        n_attempts: number of restarts, or of restarts times targets.
        targets: int32 [n, attempts], the class that each attempt aims at, if any.
    """

    name: str
    attack: IterativeAttack
    n_attempts: int = 1
    targets: Labels | None = None


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
        size = options.step_size or 0.0
        attack = PGD(predict, threat_model, steps, size, options.random_start, targeted, seed, options.top)
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

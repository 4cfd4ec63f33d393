"""Attacks: pure functions of (predict, x, y, threat model, settings), independent of data sets and architectures."""

from __future__ import annotations

import functools
from collections.abc import Callable

from bn_vuln.attacks import cleverhans, pgd
from bn_vuln.attacks.threat_model import ThreatModel, from_config
from bn_vuln.config import Attack
from bn_vuln.data.info import DatasetInfo
from bn_vuln.typing import Predict, Tensor

__all__ = ["Predict", "ThreatModel", "bind", "from_config"]


def bind(
    predict: Predict, options: Attack, info: DatasetInfo, *, xla: bool = False
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return the attack of a config (`fgsm`, `bim` or `pgd`) as a function of tensors, ready to be compiled.

    Args:
        predict: pixels [n, height, width, channels] -> logits [n, classes], differentiable.
        options: config of the attack.
        info: the data set, whose std is the scale of standardized units.
        xla: compile the loop with XLA.

    Returns:
        (x [n, height, width, channels] in pixels, y int32 [n], index int32 [n]) -> adversarial images like x. y are the
        true labels, or the targets of a targeted attack.
    """
    loop = cleverhans.attack if options.backend == "cleverhans" else pgd.attack
    run = functools.partial(
        loop,
        predict,
        threat_model=from_config(options, info),
        steps=options.steps,
        step_size=options.step_size or 0.0,
        random_start=options.random_start,
        restarts=options.restarts,
        targeted=options.target != "none",
        keep="last" if options.keep == "last" else "best_loss",
        seed=options.seed,
        xla=xla,
    )
    return lambda x, y, index: run(x, y, index=index)

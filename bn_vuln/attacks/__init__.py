"""Attacks that can be trusted: pure functions of (predict, x, y, ...), blind to data sets and architectures."""

from __future__ import annotations

import functools
from typing import Any

from bn_vuln.attacks import cleverhans, pgd
from bn_vuln.attacks.losses import Predict
from bn_vuln.attacks.threat_model import ThreatModel, from_config
from bn_vuln.config import Attack
from bn_vuln.data.info import DatasetInfo

__all__ = ["Predict", "ThreatModel", "bind", "from_config"]


def bind(predict: Predict, options: Attack, info: DatasetInfo, *, xla: bool = False) -> Any:
    """The attack of a config as a function (x, y, index) -> x_adv of tensors, ready to be compiled; `xla` compiles
    its inner loop with XLA."""
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
        keep="last" if options.keep == "last" else "best",
        seed=options.seed,
        xla=xla,
    )
    return lambda x, y, index: run(x, y, index=index)

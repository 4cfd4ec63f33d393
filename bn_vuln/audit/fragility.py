"""How fragile a model is: the accuracy along eps, under noise and corruptions, with the statistics of the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bn_vuln.audit import what_if
from bn_vuln.audit.audited import Audited, Chosen, accuracy
from bn_vuln.audit.findings import Requirement
from bn_vuln.audit.options import CORRUPTIONS, CURVE, NOISE, Condition, corruption, half_eps, noise, round_eps
from bn_vuln.audit.pieces import packed, unpacked
from bn_vuln.config import Attack, Clean, Perturbation, describe_perturbation, format_eps
from bn_vuln.errors import UsageError
from bn_vuln.typing import Floats, Index, Plain

FEW_POINTS = 5  # of the curve, where time is short
ROBUST_SHARE = 0.4  # of the images, guessed before anything is measured: half of those that are classified correctly


def measure(one: Audited) -> None:
    """Measure clean images, the accuracy along eps, and noise."""
    subject, options = one.subject, one.options
    one.outcomes["clean"], one.about["clean"] = subject.clean, "no perturbation"
    shape = (*subject.classifier.size, subject.classifier.channels)
    full, points = options.eps_grid(shape, len(CURVE)), len(CURVE)
    one.costs = subject.costs(options, full[0] / 4)
    if expected_seconds(one, points) > one.left:
        points = FEW_POINTS
        one.skipped.append(f"{len(full) - len(options.eps_grid(shape, points))} of {len(full)} points of the curve")
    one.grid = options.eps_grid(shape, points)
    one.tell(f"{len(subject.layers)} normalization layers; the accuracy along eps at {len(one.grid)} points")

    def curve() -> Plain:
        (result,) = subject.measure([options.curve(one.grid)], subject.everything)
        assert result.min_eps is not None
        return {"min_eps": [None if math.isinf(e) else float(e) for e in result.min_eps]}

    found = one.pieces.get(f"curve {one.grid}", curve)["min_eps"]
    one.min_eps = np.array([np.inf if e is None else e for e in found], np.float64)
    for std in NOISE:
        one.measure_all(f"noise {std:g}", noise(std))


def corruptions(one: Audited, reserve: float) -> None:
    """Measure the noises of CIFAR-10-C, where there is time beside `reserve` seconds."""
    if one.left < reserve + len(CORRUPTIONS) * len(one.subject.everything) * one.costs.forward:
        one.skipped.append("the corruptions")
        return
    one.tell("corruptions")
    for name in CORRUPTIONS:
        perturbation = corruption(name)
        one.measure_all(f"{name} {perturbation.severity}", perturbation)


def by_batch(one: Audited, chosen: Chosen) -> None:
    """Measure with BN normalizing by the batch, in one fixed batch: a diagnosis, which no advice rests on."""
    if not any(layer.is_batch for layer in one.subject.layers):
        return
    fields = {"attack": "pgd", "ord": one.options.ord, "eps": chosen.eps, "steps": 20, "keep": "last"}
    perturbations: dict[str, Perturbation] = {
        "clean": Clean(),
        "noise": noise(chosen.noise_std),
        "PGD": Attack.model_validate(fields),
    }

    def compute() -> Plain:
        one.tell("statistics of the batch")
        try:
            evaluator = one.subject.by_batch()
            return {name: packed(evaluator.run(p).correct) for name, p in perturbations.items()}
        except UsageError as error:  # a BN layer of a class of its own
            return {"refused": str(error)}

    found = one.pieces.get(f"statistics of the batch {chosen}", compute)
    if "refused" not in found:
        one.by_batch = tuple(
            accuracy(name, unpacked(found[name]), describe_perturbation(p)) for name, p in perturbations.items()
        )


def requirement(one: Audited, condition: Condition) -> Requirement:
    """Return whether the model as it is meets a condition, on all images."""
    if condition.quantity == "half-eps":
        found = half(one)
        measured = float(one.grid[-1]) if found is None else found
    elif condition.at is None:
        measured = float(one.outcomes["clean"].mean())
    elif condition.quantity == "noise":
        measured = float(one.measure_all(f"noise {condition.at:g}", noise(condition.at)).mean())
    else:
        strong = one.options.strong(condition.at, one.subject.classes)
        measured = float(one.measure_all(f"strong at eps {format_eps(condition.at)}", strong).mean())
    return Requirement(text=condition.text, value=measured, met=condition.met_by(measured))


# ---------------------------------------------------------------- what is chosen by the curve and the noise


def accuracy_along_eps(one: Audited, positions: Index, grid: Sequence[float] | None = None) -> Floats:
    """Return the accuracy that is left at each eps, by default of the model's grid, of some images."""
    return np.array([np.mean(one.min_eps[positions] > eps) for eps in (one.grid if grid is None else grid)])


def half(one: Audited) -> float | None:
    """Return the eps at which half of the clean accuracy is left, of all images."""
    along = accuracy_along_eps(one, one.subject.everything)
    return half_eps(np.asarray(one.grid), along, float(one.subject.clean.mean()))


def choose(models: Sequence[Audited]) -> Chosen:
    """Return eps and noise at which about half of the clean accuracy of the choosing half is left.

    Of a pair it is the mean accuracy of both.
    """
    grid = sorted(set.intersection(*(set(one.grid) for one in models)))
    halves = [one.subject.halves.choosing for one in models]
    clean = float(np.mean([one.subject.clean[half].mean() for one, half in zip(models, halves, strict=True)]))
    along = [accuracy_along_eps(one, half, grid) for one, half in zip(models, halves, strict=True)]
    found = half_eps(np.asarray(grid), np.mean(along, axis=0), clean)

    def off(std: float) -> float:
        left = [one.outcomes[f"noise {std:g}"][half].mean() for one, half in zip(models, halves, strict=True)]
        return abs(float(np.mean(left)) - clean / 2)

    return Chosen(
        round_eps(grid[-1] if found is None else found, models[0].options.ord), min(NOISE, key=lambda s: (off(s), s))
    )


# ---------------------------------------------------------------- time


def confirmation_seconds(one: Audited) -> float:
    """Return an estimate of one confirmation, of a model that withstands as much as most."""
    gradient, n = one.costs.gradient, len(one.subject.halves.reporting)
    return n * (ROBUST_SHARE * (250 * gradient + 500 * one.costs.forward) + 15 * gradient)


def expected_seconds(one: Audited, points: int) -> float:
    """Return an estimate of all but single layers and corruptions, with so many points of the curve."""
    subject, gradient = one.subject, one.costs.gradient
    n, choosing = len(subject.everything), len(subject.halves.choosing)
    changes = len(what_if.all_layers(True, True)) if subject.layers else 0
    each = len(subject.estimator.images) * one.costs.forward + choosing * 13 * gradient
    along_eps, others = n * (21 + 4 * points) * gradient, (100 * 20 + n * 25) * gradient
    return along_eps + changes * each + others + 4 * confirmation_seconds(one) + 6 * one.costs.compile

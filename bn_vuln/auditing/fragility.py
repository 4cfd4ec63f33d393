"""How fragile a model is: the accuracy along eps, under noise and corruptions, with the statistics of the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bn_vuln.auditing import what_if
from bn_vuln.auditing.audited import Audited, Chosen, Repaired, accuracy
from bn_vuln.auditing.findings import Requirement
from bn_vuln.auditing.options import (
    CORRUPTIONS,
    CURVE,
    NOISE,
    Condition,
    corruption,
    described,
    eps_text,
    half_eps,
    noise,
    round_eps,
)
from bn_vuln.auditing.pieces import packed, unpacked
from bn_vuln.config import Attack, Clean, Perturbation
from bn_vuln.errors import UsageError
from bn_vuln.typing import Floats, Index, Plain

CUSTOMARY = 8 / 255  # of inf
STALE = 0.1  # of accuracy that statistics estimated again give back: they were stale


def measure(one: Audited) -> None:
    """Measure clean images, the accuracy along eps, and noise."""
    subject = one.subject
    one.outcomes["clean"], one.about["clean"] = subject.clean, "no perturbation"
    layers = f"{len(subject.layers)} normalization layer{'' if len(subject.layers) == 1 else 's'}"
    one.tell(f"{layers}; the accuracy along eps at {len(one.grid)} points")

    def curve() -> Plain:
        return {"min_eps": _plain(_min_eps(one, subject.everything))}

    one.min_eps = _from_plain(one.pieces.get(f"curve {one.grid}", curve)["min_eps"])
    for std in NOISE:
        one.measure_all(f"noise {std:g}", noise(std))
    if not one.refused and any(layer.is_batch for layer in subject.layers):
        _repair(one)


def _repair(one: Audited) -> None:
    """Measure a model whose statistics are stale with those estimated again, on the choosing half."""
    subject, choosing = one.subject, one.subject.halves.choosing
    perturbations = {f"noise {std:g}": noise(std) for std in NOISE}

    def compute() -> Plain:
        with subject.changed(subject.states(what_if.STATISTICS)):
            (clean,) = subject.measure([Clean()], choosing)
            if clean.correct.mean() < subject.clean[choosing].mean() + STALE:
                return {}
            one.tell("its statistics are stale: eps is chosen with those estimated again")
            noisy = zip(perturbations, subject.measure(list(perturbations.values()), choosing), strict=True)
            outcomes = {"clean": packed(clean.correct), **{name: packed(result.correct) for name, result in noisy}}
            return {"outcomes": outcomes, "min_eps": _plain(_min_eps(one, choosing))}

    found = one.pieces.get(f"repaired {one.grid}", compute)
    if found:
        outcomes = {name: unpacked(text) for name, text in found["outcomes"].items()}
        one.repaired = Repaired(_from_plain(found["min_eps"]), outcomes)


def _min_eps(one: Audited, positions: Index) -> Floats:
    (result,) = one.subject.measure([one.options.curve(one.grid)], positions)
    assert result.min_eps is not None
    return result.min_eps


def _plain(min_eps: Floats) -> list[float | None]:
    return [None if math.isinf(eps) else float(eps) for eps in min_eps]


def _from_plain(values: Sequence[float | None]) -> Floats:
    return np.array([np.inf if value is None else value for value in values], np.float64)


def corruptions(one: Audited, reserve: float) -> None:
    """Measure the noises of CIFAR-10-C, where there is time beside `reserve` seconds."""
    if one.left < reserve + len(CORRUPTIONS) * len(one.subject.everything) * one.costs.forward:
        one.skip("the corruptions")
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
        one.by_batch = tuple(accuracy(name, unpacked(found[name]), described(p)) for name, p in perturbations.items())


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
        name = f"strong {eps_text(condition.at, one.options.ord, digits=6)}"
        one.tell(f"{name}, which is required")
        strong = one.options.strong(condition.at, one.subject.classes)
        measured = float(one.measure_all(name, strong).mean())
    return Requirement(text=condition.text, value=measured, met=condition.met_by(measured))


# ---------------------------------------------------------------- what is chosen by the curve and the noise


def accuracy_along_eps(min_eps: Floats, grid: Sequence[float]) -> Floats:
    """Return the accuracy that is left at each eps, of the smallest eps at which images are misclassified."""
    return np.array([np.mean(min_eps > eps) for eps in grid])


def half(one: Audited) -> float | None:
    """Return the eps at which half of the clean accuracy is left, of all images."""
    along = accuracy_along_eps(one.min_eps, one.grid)
    return half_eps(np.asarray(one.grid), along, float(one.subject.clean.mean()))


def choose(models: Sequence[Audited]) -> Chosen:
    """Return eps and noise at which about half of the clean accuracy of the choosing half is left.

    Of a pair it is the mean accuracy of both, of a model with stale statistics that with statistics estimated again.
    """
    grid = sorted(set.intersection(*(set(one.grid) for one in models)))
    curves, outcomes = [], []
    for one in models:
        choosing = one.subject.halves.choosing
        if one.repaired is not None:
            curves.append(accuracy_along_eps(one.repaired.min_eps, grid))
            outcomes.append(one.repaired.outcomes)
        else:
            curves.append(accuracy_along_eps(one.min_eps[choosing], grid))
            outcomes.append({name: correct[choosing] for name, correct in one.outcomes.items()})
    clean = float(np.mean([one["clean"].mean() for one in outcomes]))
    found = half_eps(np.asarray(grid), np.mean(curves, axis=0), clean)

    def off(std: float) -> float:
        return abs(float(np.mean([one[f"noise {std:g}"].mean() for one in outcomes])) - clean / 2)

    about = "half of the clean accuracy of the choosing half is left there"
    about += ", on the mean of both models" if len(models) > 1 else ""
    about += ", with statistics estimated again" if any(one.repaired is not None for one in models) else ""
    if found is None:  # whatever holds the model up, or the attack, is tried at an eps that is in use
        found, about = (
            grid[np.searchsorted(grid, CUSTOMARY * grid[-1] / CURVE[-1])],
            "more than half is left at any eps",
        )
    return Chosen(round_eps(found, models[0].options.ord), min(NOISE, key=lambda std: (off(std), std)), about)

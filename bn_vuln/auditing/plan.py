"""How long an audit takes, and how many points of the curve there is time for.

What is left out to keep the time is left out in the order single layers, corruptions, points of the curve. Corruptions
are measured where there is time for all that is never left out, single layers in what is left then.
"""

from __future__ import annotations

from collections.abc import Sequence

from bn_vuln.auditing import what_if
from bn_vuln.auditing.audited import Audited
from bn_vuln.auditing.options import CURVE
from bn_vuln.auditing.subject import Costs
from bn_vuln.runtime.progress import duration

FEW_POINTS = 5  # of the curve, where time is short
ROBUST_SHARE = 0.4  # of the images, guessed before anything is measured: half of those that are classified correctly


def plan(models: Sequence[Audited]) -> None:
    """Measure how long things take, and choose the eps of the curves: the same points for all models."""
    first, clock = models[0], models[0].clock
    for one in models:
        one.costs = _costs(one)

    def seconds(points: int) -> float:
        return sum(expected_seconds(one, points) for one in models)

    def points() -> dict[str, int]:
        return {"points": len(CURVE) if seconds(len(CURVE)) <= clock.left else FEW_POINTS}

    ids = [one.subject.classifier.id for one in models]
    # Kept, so that an audit that is resumed has the same points.
    found = first.pieces.get(f"plan of {first.options.time} s for {ids}", points)["points"]
    for one in models:
        one.grid = one.options.eps_grid(one.subject.shape, found)
    if found < len(CURVE):
        first.skipped.append(f"{len(CURVE) - len(first.grid)} of {len(CURVE)} points of the curve")
    _say_if_too_long(first, seconds(found), clock.left)


def reserve(one: Audited, seconds: float) -> float:
    """Return the seconds that changes of all layers and the finalists need; it is said where there are fewer.

    Args:
        one: a model that was confirmed as it is.
        seconds: that one confirmation takes.
    """
    needed = all_layers_seconds(one) + what_if.FINALISTS * seconds if one.subject.layers else 0.0
    _say_if_too_long(one, needed, one.left)
    return needed


def _say_if_too_long(one: Audited, seconds: float, left: float) -> None:
    if seconds > left:
        one.progress.message(f"what is never left out takes about {duration(seconds)}: the time cannot be kept")


def _costs(one: Audited) -> Costs:
    return Costs(**one.pieces.get("costs", lambda: dict(vars(one.subject.costs(one.options)))))


def expected_seconds(one: Audited, points: int) -> float:
    """Return an estimate of all but single layers and corruptions, with so many points of the curve."""
    n, gradient = len(one.subject.everything), one.costs.gradient
    along_eps, others = n * (21 + 4 * points) * gradient, (100 * 20 + n * 25) * gradient
    finalists = what_if.FINALISTS if one.subject.layers else 0
    confirmed = (1 + finalists) * confirmation_seconds(one)
    return along_eps + all_layers_seconds(one) + others + confirmed + 6 * one.costs.compile


def confirmation_seconds(one: Audited) -> float:
    """Return an estimate of one confirmation, of a model that withstands as much as most."""
    n, gradient = len(one.subject.halves.reporting), one.costs.gradient
    strong = one.options.strong(1.0, one.subject.classes)
    robust = strong.steps * (2 + strong.targets) * gradient + strong.queries * one.costs.forward
    return n * (ROBUST_SHARE * robust + 15 * gradient)


def all_layers_seconds(one: Audited) -> float:
    """Return an estimate of all changes of all layers together."""
    if not one.subject.layers:
        return 0.0
    choosing, images = len(one.subject.halves.choosing), len(one.subject.estimator.images)
    each = images * one.costs.forward + choosing * 13 * one.costs.gradient
    return len(what_if.all_layers(reestimate=True, has_gamma=True)) * each

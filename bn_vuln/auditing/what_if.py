"""What if c were another, without training: which changes are tried, how finalists are chosen, what confirms them.

Choices are made on the choosing half alone, by a quick attack; what is said of the finalists is measured on the
reporting half, by `strong`. So no image that chose a change praises it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bn_vuln.analysis.statistics import LEVEL, paired_interval
from bn_vuln.auditing.findings import Candidate, Difference, Finalist, Interval
from bn_vuln.auditing.options import MOST_SINGLE_LAYERS, RELATIVE_C
from bn_vuln.config import Mend
from bn_vuln.models.normalization_layers import NormalizationLayer, live
from bn_vuln.typing import Mask

OUTCOMES = ("clean", "noise", "attacked")
FINALISTS = 3  # at most
TESTS = 2  # of a finalist that an advice may rest on: strong and noise
STATISTICS = Mend(reestimate=True)


def all_layers(reestimate: bool, has_gamma: bool) -> list[Mend]:
    """Return the changes of all layers together, the statistics alone first.

    Args:
        reestimate: statistics can be estimated again.
        has_gamma: a layer has a gamma, so that gains can be kept.
    """
    alone = [STATISTICS] if reestimate else []
    keeps = (True, False) if has_gamma else (False,)
    return alone + [Mend(relative_c=r, keep_gain=keep, reestimate=reestimate) for keep in keeps for r in RELATIVE_C]


def single_layers(layers: Sequence[NormalizationLayer], best: Mend, most: int = MOST_SINGLE_LAYERS) -> list[Mend]:
    """Return the change of one layer at a time, at the r that is best for all, widest spread of gains first."""
    if len(layers) < 2:
        return []
    widest = sorted(layers, key=gain_spread, reverse=True)[:most]
    return [best.model_copy(update={"layers": (layer.name,)}) for layer in widest]


def gain_spread(layer: NormalizationLayer) -> float:
    """Return the largest gain of a live channel by the median one; of other kinds than BN, of what they divide by."""
    gain = layer.state.gain
    if gain is None:
        gain = 1 / np.sqrt(layer.variance + layer.state.c + np.finfo(np.float64).tiny)
    else:
        gain = gain[live(layer.variance)]
    return float(gain.max() / np.median(gain)) if len(gain) and np.median(gain) > 0 else 1.0


def title(mend: Mend) -> str:
    """Return a change in words: `c + 0.1 m in all layers, gains kept, statistics estimated again`."""
    parts = []
    if mend.changes_c:
        where = "all layers" if not mend.layers else ", ".join(mend.layers)
        parts = [f"c + {mend.relative_c:g} m in {where}" if mend.c is None else f"c = {mend.c:g} in {where}"]
        parts += ["median gain kept"] if mend.keep_gain else ["gamma as it is"]
    parts += ["statistics estimated again"] if mend.reestimate else []
    text = ", ".join(parts) or "as it is"
    return text[0].upper() + text[1:] if text.startswith("statistics") else text


# ---------------------------------------------------------------- choosing


def score(candidate: Candidate, before: Candidate) -> float:
    """Return what a change is chosen by: the points it gains under the attack and under noise."""
    return candidate.attacked - before.attacked + candidate.noise - before.noise


def affordable(candidate: Candidate, before: Candidate, max_clean_cost: float) -> bool:
    """Return if a change costs no more of the clean accuracy than was allowed, in points."""
    return candidate.clean >= before.clean - max_clean_cost / 100 - 1e-9


def best_for_all(candidates: Sequence[Candidate], before: Candidate, max_clean_cost: float) -> Candidate | None:
    """Return the best change of c in all layers; None where each costs too much."""
    found = [c for c in candidates if c.mend.changes_c and not c.mend.layers and affordable(c, before, max_clean_cost)]
    return max(found, key=lambda c: (score(c, before), -c.mend.relative_c), default=None)


def finalists(candidates: Sequence[Candidate], before: Candidate, max_clean_cost: float) -> list[Candidate]:
    """Return the changes to be confirmed: statistics alone, the best of all layers, and the best of one layer.

    Where no single layer gains anything, the second best of all layers takes its place.
    """
    alone = [c for c in candidates if c.mend == STATISTICS]
    best = best_for_all(candidates, before, max_clean_cost)
    singles = [c for c in candidates if c.mend.layers and affordable(c, before, max_clean_cost)]
    single = max(singles, key=lambda c: score(c, before), default=None)
    if single is not None and score(single, before) <= 0:
        single = None
    second = single or best_for_all([c for c in candidates if c is not best], before, max_clean_cost)
    return alone + [c for c in (best, second) if c is not None]


# ---------------------------------------------------------------- confirming


def level(n_finalists: int, control: bool) -> float:
    """Return the level of each interval, so that all together are wrong in 5% of audits at the most (Bonferroni).

    Args:
        n_finalists: how many there are; an advice may rest on two numbers of each.
        control: statistics alone are among them, an advice on which may also rest on the clean accuracy.
    """
    return 1 - 0.05 / max(1, TESTS * n_finalists + control)


def difference(name: str, before: Mask, after: Mask, level: float) -> Difference:
    """Return the paired difference of accuracies over the same images."""
    value, low, high = paired_interval(before, after, level)
    return Difference(
        name=name,
        before=float(before.mean()),
        after=float(after.mean()),
        difference=Interval(value=value, low=low, high=high),
        n=len(before),
    )


def smallest_gain(n: int, level: float) -> float:
    """Return the smallest gain that n images can confirm, where no image is lost; where some are, it is larger."""
    before, wins = np.zeros(n, bool), 1
    while wins < n and paired_interval(before, np.arange(n) < wins, level)[1] <= 0:
        wins += 1
    return wins / n


def finalist(
    candidate: Candidate,
    before: Mapping[str, Mask],
    after: Mapping[str, Mask],
    control: Mapping[str, Mask] | None,
    level: float,
    max_clean_cost: float,
) -> Finalist:
    """Return a confirmed change.

    Args:
        candidate: the change.
        before: outcomes of the model as it is, by `clean`, `noise` and `strong`, bool [n].
        after: those of the changed model.
        control: those with statistics alone; None where it is they that are judged, or there are none.
        level: of the intervals.
        max_clean_cost: points of clean accuracy that it may cost.
    """
    found = {name: difference(name, before[name], after[name], level) for name in before}
    beyond = {} if control is None else {n: difference(n, control[n], after[n], level) for n in before}
    wins = [name for name in ("strong", "noise") if found[name].difference.low > 0]
    if control is None and found["clean"].difference.low > 0:
        wins.append("clean")
    elif control is not None and difference("clean", before["clean"], control["clean"], level).difference.low > 0:
        # Statistics were stale, and what they win or lose would hide what c brings.
        wins += [name for name in ("strong", "noise") if beyond[name].difference.low > 0]
    loses = any(found[name].difference.high < 0 for name in ("strong", "noise"))
    plain = (difference(name, before[name], after[name], LEVEL) for name in before)
    cheap = found["clean"].difference.value >= -max_clean_cost / 100 - 1e-9
    return Finalist(
        title=candidate.title,
        mend=candidate.mend,
        clean=found["clean"],
        noise=found["noise"],
        strong=found["strong"],
        gains=bool(wins) and cheap and not loses,
        losses=tuple(one for one in plain if one.difference.high < 0),
        beyond_statistics=beyond.get("strong"),
        noise_beyond_statistics=beyond.get("noise"),
    )

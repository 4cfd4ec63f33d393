"""Means, standard errors, differences between arms, and the verdict against a published figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds with its standard error (SEM, sample standard deviation / sqrt(n)); None for n = 1."""

    mean: float
    sem: float | None
    n: int

    def interval(self) -> tuple[float, float] | None:
        """The 95% Student t-interval of the mean; None for n < 2."""
        if self.sem is None:
            return None
        half = float(stdtrit(self.n - 1, 0.5 + LEVEL / 2)) * self.sem
        return self.mean - half, self.mean + half


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, SEM and n of at least one value. Raises `ValueError` for none."""
    if not len(values):
        raise ValueError("no values to average")
    array = np.asarray(values, np.float64)
    sem = float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else None
    return Estimate(float(array.mean()), sem, len(array))


def paired(treatment: dict[int, float], reference: dict[int, float]) -> Estimate | None:
    """treatment - reference over the seeds both have (values by seed); None without a common seed."""
    common = sorted(treatment.keys() & reference.keys())
    return estimate([treatment[s] - reference[s] for s in common]) if common else None


def unpaired(treatment: Estimate, reference: Estimate) -> Estimate:
    """treatment - reference with sqrt(SEM1^2 + SEM2^2), as in the authors' README; n is the smaller one."""
    known = treatment.sem is not None and reference.sem is not None
    sem = math.hypot(treatment.sem or 0.0, reference.sem or 0.0) if known else None
    return Estimate(treatment.mean - reference.mean, sem, min(treatment.n, reference.n))


def verdict(ours: Estimate | None, value: float, sem: float | None) -> str:
    """Our signed difference against the paper's `value` +- `sem`.

    `holds`: the 95% t-interval excludes 0 with the paper's sign, and |d - D| <= 2 sqrt(s^2 + e^2) or
    |d| >= |D| / 2. `holds in sign`: excludes 0, same sign. `fails`: excludes 0, opposite sign. `undecided`:
    includes 0, or n < 3. `not run`: no estimate.
    """
    if ours is None:
        return "not run"
    interval = ours.interval()
    if ours.n < 3 or interval is None or ours.sem is None or interval[0] <= 0 <= interval[1]:
        return "undecided"
    if math.copysign(1, ours.mean) != math.copysign(1, value):
        return "fails"
    near = abs(ours.mean - value) <= 2 * math.hypot(sem or 0.0, ours.sem)
    return "holds" if near or abs(ours.mean) >= abs(value) / 2 else "holds in sign"

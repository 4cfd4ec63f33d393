"""Means, standard errors, differences between arms, intervals and slopes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from bn_vuln.typing import Mask

LEVEL = 0.95
UNEQUAL_CLEAN_ACCURACY = 0.02  # of two models that are compared: from here on they are flagged


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds with its standard error (SEM, sample standard deviation / sqrt(n)); None for n = 1."""

    mean: float
    sem: float | None
    n: int

    def interval(self) -> tuple[float, float] | None:
        """Return the 95% Student t-interval of the mean; None for n < 2."""
        if self.sem is None:
            return None
        from scipy.special import stdtrit  # a quarter of a second that help need not pay

        half = float(stdtrit(self.n - 1, 0.5 + LEVEL / 2)) * self.sem
        return self.mean - half, self.mean + half


@dataclass(frozen=True)
class Proportion:
    """A share of examples: `count` of `n`."""

    count: int
    n: int

    @property
    def rate(self) -> float | None:
        """Return the share; None for n = 0."""
        return self.count / self.n if self.n else None

    def interval(self) -> tuple[float, float] | None:
        """Return the 95% Wilson score interval over examples, which holds at shares of 0 and 1 too; None for n = 0."""
        if not self.n:
            return None
        from scipy.stats import binomtest  # a tenth of a second that reports need not pay

        interval = binomtest(self.count, self.n).proportion_ci(LEVEL, method="wilson")
        return float(interval.low), float(interval.high)


def estimate(values: Sequence[float]) -> Estimate:
    """Return mean, SEM and n of at least one value; `ValueError` for none."""
    if not len(values):
        raise ValueError("no values to average")
    array = np.asarray(values, np.float64)
    sem = float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else None
    return Estimate(float(array.mean()), sem, len(array))


def paired(treatment: dict[int, float], reference: dict[int, float]) -> Estimate | None:
    """Return treatment - reference over the seeds that both have (values by seed); None without a common seed."""
    common = sorted(treatment.keys() & reference.keys())
    return estimate([treatment[s] - reference[s] for s in common]) if common else None


def unpaired(treatment: Estimate, reference: Estimate) -> Estimate:
    """Return treatment - reference with sqrt(SEM1^2 + SEM2^2), as in the authors' README; n is the smaller one."""
    known = treatment.sem is not None and reference.sem is not None
    sem = math.hypot(treatment.sem or 0.0, reference.sem or 0.0) if known else None
    return Estimate(treatment.mean - reference.mean, sem, min(treatment.n, reference.n))


def ratio(treatment: dict[int, float], reference: dict[int, float]) -> Estimate | None:
    """Return treatment / reference: the mean of the ratios over the seeds that both have (values by seed).

    None without a common seed, or where the reference of one is 0.
    """
    common = sorted(treatment.keys() & reference.keys())
    if not common or any(reference[s] == 0 for s in common):
        return None
    return estimate([treatment[s] / reference[s] for s in common])


def bootstrap_interval(
    correct: Mask,
    reference: Mask | None = None,
    *,
    level: float = LEVEL,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of an accuracy over examples (not seeds), or of a paired difference.

    The same distribution as `scipy.stats.bootstrap(..., method="percentile")` in a fraction of its time: a mean
    needs no more of a resample than how often -1, 0 and +1 are in it, and those counts are multinomial.

    Args:
        correct: Outcome of each example, bool [n].
        reference: Outcomes of another classifier on the same examples, bool [n]: the interval is of the mean of
            correct - reference, paired by example.
        level: Coverage of the interval.
        resamples: Number of resamples.
        seed: Seed of the resamples.

    Returns:
        Lower and upper end; (mean, mean) where all differences are equal.

    Raises:
        ValueError: There are no outcomes, or dtype or shapes are others.
    """
    arrays = [np.asarray(a) for a in (correct, reference) if a is not None]
    if any(a.dtype != np.bool_ or a.ndim != 1 or a.shape != arrays[0].shape for a in arrays) or not arrays[0].size:
        raise ValueError(f"expected outcomes bool [n], received {[(str(a.dtype), a.shape) for a in arrays]}")
    first, *second = (a.astype(np.int64) for a in arrays)
    values, counts = np.unique(first - sum(second), return_counts=True)
    n = len(first)
    samples = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples)
    low, high = np.quantile(samples @ values / n, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_interval(before: Mask, after: Mask, level: float = LEVEL) -> tuple[float, float, float]:
    """Return a paired difference of two accuracies over the same examples, with its interval.

    The adjusted Wald interval of Bonett and Price (2012), which holds at small n and where few examples change. Of
    f12 examples that are correct after alone and f21 before alone, with p12 = (f12 + 1) / (n + 2) and p21 likewise, it
    is p12 - p21 +- z sqrt((p12 + p21 - (p12 - p21)^2) / (n + 2)).

    Args:
        before: outcomes, bool [n].
        after: outcomes of the same examples, bool [n].
        level: Coverage of the interval.

    Returns:
        (difference after - before, which is (f12 - f21) / n, lower end, upper end).

    Raises:
        ValueError: There are no outcomes, or dtype or shapes are others.
    """
    first, second = np.asarray(before), np.asarray(after)
    if any(a.dtype != np.bool_ or a.ndim != 1 or a.shape != first.shape for a in (first, second)) or not first.size:
        raise ValueError(f"expected outcomes bool [n], received {[(str(a.dtype), a.shape) for a in (first, second)]}")
    n, gained, lost = len(first), int(np.sum(second & ~first)), int(np.sum(first & ~second))
    p12, p21 = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    from scipy.special import ndtri

    half = float(ndtri(0.5 + level / 2)) * math.sqrt((p12 + p21 - (p12 - p21) ** 2) / (n + 2))
    return (gained - lost) / n, max(-1.0, p12 - p21 - half), min(1.0, p12 - p21 + half)


def log_log_slope(x: ArrayLike, y: ArrayLike) -> float:
    """Return the least-squares slope of log y on log x, two arrays [n]: the power of x with which y grows.

    Raises:
        ValueError: Shapes differ, values are not positive and finite, or there are fewer than two distinct x.
    """
    first, second = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"expected two arrays [n], received shapes {first.shape} and {second.shape}")
    if not all((np.isfinite(a) & (a > 0)).all() for a in (first, second)):
        raise ValueError("logarithms need positive, finite values")
    if len(np.unique(first)) < 2:
        raise ValueError("a slope needs two distinct x")
    # As scipy.stats.linregress, whose import takes longer than a report.
    variance, covariance, _, _ = np.cov(np.log(first), np.log(second), bias=True).flat
    return float(covariance / variance)

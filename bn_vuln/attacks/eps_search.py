"""Searches of the active set over eps and restarts, in NumPy, apart from the devices.

A search gives every example its first job, and after each job, depending on its success, the next one or none. A job is
one run of an attack, (variant, eps); see `attacks.base`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from bn_vuln.typing import Floats, Index, Labels, Mask


@dataclass(frozen=True)
class Jobs:
    """The next job of each of m examples.

    Attributes:
        pending: bool [m], False where no job is left.
        variant: int32 [m], a restart, or the number of a target.
        eps: float64 [m], in units of the threat model's scale.
    """

    pending: Mask
    variant: Labels
    eps: Floats


class EpsSearch(Protocol):
    """A rule that gives each example its jobs."""

    def first(self, n: int) -> Jobs:
        """Return the first jobs of examples 0 to n - 1."""

    def next(self, example: Index, is_adversarial: Mask, variant: Labels, eps: Floats) -> Jobs:
        """Return the next jobs of m examples.

        Args:
            example: int64 [m].
            is_adversarial: bool [m], success of the job that is over.
            variant: int32 [m], its variant.
            eps: float64 [m], its eps.
        """


@dataclass(frozen=True)
class EpsGrid:
    """Try every eps of a grid (often a single one), from the largest down, until the attack fails.

    After a success the next smaller eps follows, after a failure the next variant at the same eps. So an example
    resists all variants at one eps only, which is what costs most. An example that resists at some eps is taken to
    resist at every smaller one.

    Attributes:
        eps: the grid, ascending.
        count: number of variants at each eps.
        below: float64 [n]; for each example only eps smaller than this are tried.
    """

    eps: Sequence[float]
    count: int = 1
    below: Floats | None = None

    def __post_init__(self) -> None:
        if not len(self.eps) or (np.diff(self.eps) <= 0).any():
            raise ValueError(f"an eps grid: expected ascending eps, received {list(self.eps)}")

    def first(self, n: int) -> Jobs:
        """Return the largest eps, below `below`."""
        return self._next_smaller(np.full(n, np.inf) if self.below is None else self.below[:n])

    def next(self, example: Index, is_adversarial: Mask, variant: Labels, eps: Floats) -> Jobs:
        """Return the next smaller eps after a success, else the next variant at this one."""
        smaller = self._next_smaller(eps)
        pending = np.where(is_adversarial, smaller.pending, variant + 1 < self.count)
        variants = np.where(is_adversarial, 0, variant + 1).astype(np.int32)
        return Jobs(pending, variants, np.where(is_adversarial, smaller.eps, eps))

    def _next_smaller(self, eps: Floats) -> Jobs:
        """The first variant at the largest eps of the grid below these."""
        grid = np.asarray(self.eps, float)
        smaller = np.concatenate([[0.0], grid])[np.searchsorted(grid, eps)]
        return Jobs(smaller > 0, np.zeros(len(eps), np.int32), smaller)


@dataclass(frozen=True)
class Bisection:
    """Bisect the smallest eps at which the attack succeeds, for each example by itself.

    The first eps is `high`, then the middle of what is left, until that is `tolerance` or less. An attack that succeeds
    at some eps is taken to succeed at every larger one.

    Attributes:
        high: the largest eps. What resists there is left alone.
        tolerance: width of the last interval, in units of eps.
        count: number of variants at each eps.
        below: float64 [n]; an example with a success at this eps already begins at a `tolerance` less.
    """

    high: float
    tolerance: float
    count: int = 1
    below: Floats | None = None
    _low: dict[int, float] = field(default_factory=dict)
    _high: dict[int, float] = field(default_factory=dict)

    def first(self, n: int) -> Jobs:
        """Return the largest eps, below `below`."""
        self._low.clear()
        self._high.clear()
        eps = np.full(n, self.high)
        if self.below is not None:
            eps = np.minimum(eps, self.below[:n] - self.tolerance)
        return Jobs(eps > 0, np.zeros(n, np.int32), np.maximum(eps, 0.0))

    def next(self, example: Index, is_adversarial: Mask, variant: Labels, eps: Floats) -> Jobs:
        """Return the middle of each interval that is left, or the next variant."""
        rows = zip(example.tolist(), is_adversarial.tolist(), variant.tolist(), eps.tolist(), strict=True)
        jobs = [self._next_job(*row) for row in rows]
        pending, variants, radii = zip(*jobs, strict=True) if jobs else ((), (), ())
        return Jobs(np.array(pending, bool), np.array(variants, np.int32), np.array(radii, float))

    def _next_job(self, example: int, is_adversarial: bool, variant: int, eps: float) -> tuple[bool, int, float]:
        if not is_adversarial and variant + 1 < self.count:
            return True, variant + 1, eps
        if not is_adversarial and example not in self._high:  # the first eps
            return False, 0, eps
        (self._high if is_adversarial else self._low)[example] = eps
        low, high = self._low.get(example, 0.0), self._high[example]
        return high - low > self.tolerance, 0, (low + high) / 2

"""Search over eps and restarts, on the host in NumPy.

A search gives every example its first job, and after each job, depending on its success, the next one or none. A job is
one run of an attack, (attempt, eps); see `attacks.base`.
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
        attempt: int32 [m], number of a restart or of a target.
        eps: float64 [m], in units of the threat model's scale.
    """

    pending: Mask
    attempt: Labels
    eps: Floats


class EpsSearch(Protocol):
    """A rule that gives each example its jobs."""

    def first(self, n: int) -> Jobs:
        """Return the first jobs of examples 0 to n - 1."""

    def next(self, example: Index, is_adversarial: Mask, attempt: Labels, eps: Floats) -> Jobs:
        """Return the next jobs of m examples.

        Args:
            example: int64 [m].
            is_adversarial: bool [m], success of the job that is over.
            attempt: int32 [m], number of the attempt.
            eps: float64 [m], its eps.
        """


@dataclass(frozen=True)
class EveryAttempt:
    """Make all attempts at one eps, whether they succeed or not.

    Attributes:
        eps: the eps.
        n_attempts: number of attempts.
    """

    eps: float
    n_attempts: int = 1

    def first(self, n: int) -> Jobs:
        """Return the first attempt."""
        return Jobs(np.ones(n, bool), np.zeros(n, np.int32), np.full(n, self.eps))

    def next(self, example: Index, is_adversarial: Mask, attempt: Labels, eps: Floats) -> Jobs:
        """Return the next attempt, until all are made."""
        return Jobs(attempt + 1 < self.n_attempts, attempt + 1, eps)


@dataclass(frozen=True)
class EpsGrid:
    """Try every eps of a grid (often a single one), from the largest down, until the attack fails.

    After a success the next smaller eps follows, after a failure the next attempt at the same eps. So an example
    resists all attempts at one eps only, which is what costs most. An example that resists at some eps is taken to
    resist at every smaller one.

    Attributes:
        eps: the grid, ascending.
        n_attempts: number of attempts at each eps.
        upper_eps: float64 [n]; for each example only eps smaller than this are tried.
    """

    eps: Sequence[float]
    n_attempts: int = 1
    upper_eps: Floats | None = None

    def __post_init__(self) -> None:
        if not len(self.eps) or (np.diff(self.eps) <= 0).any():
            raise ValueError(f"an eps grid: expected ascending eps, received {list(self.eps)}")

    def first(self, n: int) -> Jobs:
        """Return the largest eps, below `upper_eps`."""
        return self._next_smaller(np.full(n, np.inf) if self.upper_eps is None else self.upper_eps[:n])

    def next(self, example: Index, is_adversarial: Mask, attempt: Labels, eps: Floats) -> Jobs:
        """Return the next smaller eps after a success, else the next attempt at this one."""
        smaller = self._next_smaller(eps)
        pending = np.where(is_adversarial, smaller.pending, attempt + 1 < self.n_attempts)
        attempts = np.where(is_adversarial, 0, attempt + 1).astype(np.int32)
        return Jobs(pending, attempts, np.where(is_adversarial, smaller.eps, eps))

    def _next_smaller(self, eps: Floats) -> Jobs:
        """The first attempt at the largest eps of the grid below these."""
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
        n_attempts: number of attempts at each eps.
        upper_eps: float64 [n]; an example with a success at this eps already begins at a `tolerance` less.
    """

    high: float
    tolerance: float
    n_attempts: int = 1
    upper_eps: Floats | None = None
    _low: dict[int, float] = field(default_factory=dict)
    _high: dict[int, float] = field(default_factory=dict)

    def first(self, n: int) -> Jobs:
        """Return the largest eps, below `upper_eps`."""
        self._low.clear()
        self._high.clear()
        eps = np.full(n, self.high)
        if self.upper_eps is not None:
            eps = np.minimum(eps, self.upper_eps[:n] - self.tolerance)
        return Jobs(eps > 0, np.zeros(n, np.int32), np.maximum(eps, 0.0))

    def next(self, example: Index, is_adversarial: Mask, attempt: Labels, eps: Floats) -> Jobs:
        """Return the middle of each interval that is left, or the next attempt."""
        rows = zip(example.tolist(), is_adversarial.tolist(), attempt.tolist(), eps.tolist(), strict=True)
        jobs = [self._next_job(*row) for row in rows]
        pending, attempts, radii = zip(*jobs, strict=True) if jobs else ((), (), ())
        return Jobs(np.array(pending, bool), np.array(attempts, np.int32), np.array(radii, float))

    def _next_job(self, example: int, is_adversarial: bool, attempt: int, eps: float) -> tuple[bool, int, float]:
        if not is_adversarial and attempt + 1 < self.n_attempts:
            return True, attempt + 1, eps
        if not is_adversarial and example not in self._high:  # the first eps
            return False, 0, eps
        (self._high if is_adversarial else self._low)[example] = eps
        low, high = self._low.get(example, 0.0), self._high[example]
        return high - low > self.tolerance, 0, (low + high) / 2

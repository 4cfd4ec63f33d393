"""A search for the smallest eps of each example, on the host in NumPy."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bn_vuln.attacks.active_set import Jobs
from bn_vuln.typing import Floats, Index, Labels, Mask


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

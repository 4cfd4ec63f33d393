"""What an example has to go through: restarts, an eps grid of eps, a bisection; NumPy, apart from the devices.

A plan gives every example its first job, and after each job, by whether it fooled the classifier, the next one or
none. Jobs are (variant, eps): see `attacks.search`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Flags: TypeAlias = NDArray[np.bool_]
Integers: TypeAlias = NDArray[np.int32]
Numbers: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Jobs:
    """The next job of each of m examples: `again` bool [m], False where there is none, `variant` int32 [m], `eps`
    float64 [m]."""

    again: Flags
    variant: Integers
    eps: Numbers


class EpsSearch(Protocol):
    """See the module."""

    def first(self, n: int) -> Jobs:
        """The first jobs of examples 0 to n - 1."""

    def next(self, example: NDArray[np.int64], is_adversarial: Flags, variant: Integers, eps: Numbers) -> Jobs:
        """After a job of each of these examples."""


@dataclass(frozen=True)
class EpsGrid:
    """Every eps of a grid (often a single one) from the largest down, `count` variants at each: the next smaller one
    after each that an example was fooled at, until it withstands all variants. So it withstands one eps rather than
    every one below its own, which is what costs; that takes for granted that what withstands at some eps does so at
    every smaller one. `below` float64 [n]: of each example only eps smaller than this are tried."""

    eps: Sequence[float]
    count: int = 1
    below: Numbers | None = None

    def __post_init__(self) -> None:
        if not len(self.eps) or (np.diff(self.eps) <= 0).any():
            raise ValueError(f"an eps grid: expected ascending eps, received {list(self.eps)}")

    def first(self, n: int) -> Jobs:
        """The largest eps."""
        return self._under(np.full(n, np.inf) if self.below is None else self.below[:n])

    def next(self, example: NDArray[np.int64], is_adversarial: Flags, variant: Integers, eps: Numbers) -> Jobs:
        """The next smaller eps where it was fooled, else the next variant at this one."""
        down = self._under(eps)
        again = np.where(is_adversarial, down.again, variant + 1 < self.count)
        return Jobs(
            again, np.where(is_adversarial, 0, variant + 1).astype(np.int32), np.where(is_adversarial, down.eps, eps)
        )

    def _under(self, eps: Numbers) -> Jobs:
        """The first variant at the largest smaller below these eps."""
        at_smaller_eps = np.asarray(self.eps, float)
        smaller = np.concatenate([[0.0], at_smaller_eps])[np.searchsorted(at_smaller_eps, eps)]
        return Jobs(smaller > 0, np.zeros(len(eps), np.int32), smaller)


@dataclass(frozen=True)
class Bisection:
    """The smallest eps at which an attack fools the classifier, for each example by itself: first at `high`, then in
    the middle of what is left, until that is `tolerance` or less. It takes for granted that what fools at some eps
    does so at every larger one; `count` variants at each. `below` float64 [n]: what is fooled at that eps already is
    tried at a `tolerance` less first."""

    high: float
    tolerance: float
    count: int = 1
    below: Numbers | None = None
    _low: dict[int, float] = field(default_factory=dict)
    _high: dict[int, float] = field(default_factory=dict)

    def first(self, n: int) -> Jobs:
        """The largest eps; what withstands it is left there."""
        self._low.clear()
        self._high.clear()
        eps = np.full(n, self.high)
        if self.below is not None:
            eps = np.minimum(eps, self.below[:n] - self.tolerance)
        return Jobs(eps > 0, np.zeros(n, np.int32), np.maximum(eps, 0.0))

    def next(self, example: NDArray[np.int64], is_adversarial: Flags, variant: Integers, eps: Numbers) -> Jobs:
        """The middle of what is left."""
        jobs = [self._after(*of) for of in zip(example, is_adversarial, variant, eps, strict=True)]
        again, variants, radii = zip(*jobs, strict=True) if jobs else ((), (), ())
        return Jobs(np.array(again, bool), np.array(variants, np.int32), np.array(radii, float))

    def _after(self, example: int, is_adversarial: bool, variant: int, eps: float) -> tuple[bool, int, float]:
        if not is_adversarial and variant + 1 < self.count:
            return True, variant + 1, eps
        if not is_adversarial and example not in self._high:  # the first eps
            return False, 0, eps
        (self._high if is_adversarial else self._low)[example] = eps
        low, high = self._low.get(example, 0.0), self._high[example]
        return high - low > self.tolerance, 0, (low + high) / 2

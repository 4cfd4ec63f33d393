"""The interface of iterative attacks: one state for many examples at once, each at a step of its own.

A state is a dict of tensors whose first axis is the slot of the batch (see `active_set`). Each slot works on a job:

    x         float [n, height, width, channels], the clean image, in pixels
    y         int32 [n], its true label
    target    int32 [n], the class that this job aims at (y for untargeted attacks)
    index     int32 [n], the number of the example in its data set, for random numbers that do not depend on the batch
    attempt   int32 [n], number of the attempt at this example: a restart, or its target
    eps       float [n], the radius of its eps ball
    i         int32 [n], how many points of this job were evaluated; it stands still while a slot is idle

All ops are elementwise or in the classifier, so that slots never mix, and XLA can compile them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from bn_vuln.runtime import ops
from bn_vuln.typing import Tensor

State: TypeAlias = Mapping[str, Tensor]  # tensors [slots, ...] by name


@dataclass(frozen=True)
class StepResult:
    """The evaluation of the current points, and the state at the next ones.

    Attributes:
        state: state at the next points.
        is_adversarial: bool [n], success at the current points.
        loss: [n], the loss at the current points. Points that are both adversarial, or both not, are compared by it.
        done: bool [n], jobs that are over before all steps are taken; None where there are none.
    """

    state: State
    is_adversarial: Tensor
    loss: Tensor
    done: Tensor | None = None


class IterativeAttack(Protocol):
    """An attack of many steps, for the active set."""

    @property
    def steps(self) -> int:
        """The number of steps; at most steps + 1 points are evaluated."""

    def start(self, job: State) -> State:
        """Return the state at the starting point of each job.

        Its entry `point` lies in the eps ball and the box. It is called for all slots whenever some are filled, so it
        must not evaluate the classifier.
        """

    def advance(self, state: State) -> StepResult:
        """Evaluate the `point` of every slot, and take one step.

        Args:
            state: the attack's state and the jobs' entries, merged. A slot may be advanced more often than it needs.
        """


def select(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Return `new` where the mask bool [n] is true, else `old`, both [n, ...]."""
    chosen: Tensor = ops.where(ops.reshape(mask, (-1,) + (1,) * (len(old.shape) - 1)), new, old)
    return chosen

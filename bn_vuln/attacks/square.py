"""The Square attack (Andriushchenko et al. 2020, algorithms 1 to 3), which needs no gradient, for the active set.

The best point so far is changed inside one random square (inf), or the perturbation of two squares is concentrated in
one of them (2). The change is kept if it raises the logit margin. Squares shrink by a fixed schedule. Settings are
those of AutoAttack's standard set: 5000 queries, p = 0.8 at first, the logit margin as the loss.

Where the paper and the code of its authors (github.com/max-andr/square-attack) or AutoAttack's differ, it does as the
paper:

- A square may lie at every place of the image. In both codes none touches the last row and column.
- inf: a square gets the colours that are drawn, even those that it has. The authors' code draws again.
- 2: the unused budget goes to each channel by what the squares hold of that channel. In AutoAttack's code every channel
  gets what they hold of all channels, and the image is then rescaled.

Two things are left open there. Squares of images for which the published sizes are too large are as large as the image
(2: the largest odd size). And where a bump and the old content of its square cancel but for rounding, which happens
where it meets its own negative, the bump alone is taken: the direction of their sum would be noise.

Every example draws squares of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bn_vuln.attacks import example_rng
from bn_vuln.attacks.base import State, StepResult, select
from bn_vuln.attacks.losses import is_adversarial, logit_margin
from bn_vuln.attacks.threat_model import ThreatModel, as_tensor_like, per_example
from bn_vuln.runtime import backend, ops
from bn_vuln.typing import Floats, Labels, Predict, Tensor

P_HALVING_QUERIES = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000: p is halved after each
GRID = 5  # the bumps at the start are a fifth of the image high
MIN_SUM_NORM = 1e-3  # a shorter sum of two unit vectors is taken to be rounding
MIN_UNUSED_BUDGET = 1e-6  # share of eps^2; less is taken to be rounding (its root would be a thousandth of eps)


@dataclass(frozen=True)
class Square:
    """The Square attack for the active set: `steps` squares, after a start of stripes (inf) or of a grid of bumps (2).

    Attributes:
        predict: pixels [n, height, width, channels] -> logits [n, classes].
        threat_model: norm, scale and box; eps is the job's.
        steps: number of squares.
        p_init: the share of the image that the first squares cover.
        seed: random numbers depend on (seed, attempt, index, i) only. Attempts are restarts.
    """

    predict: Predict
    threat_model: ThreatModel
    steps: int = 5000
    p_init: float = 0.8
    seed: int = 0

    def start(self, job: State) -> State:
        """Start at stripes, or at bumps, without a best point."""
        x, eps, threat_model = job["x"], per_example(job["eps"]), self.threat_model.with_eps(job["eps"])
        if threat_model.ord == "inf":
            point = threat_model.step(x, self._stripes(job), eps)
        else:
            point = x + as_tensor_like(threat_model.scale, x) * eps * self._grid_of_bumps(job)
        point = threat_model.project(point, x)
        lowest = ops.full_like(job["eps"], -np.inf)
        return {"point": point, "best": point, "best_loss": lowest}

    def advance(self, state: State) -> StepResult:
        """Evaluate the candidate by one forward pass, and make the next one of the best point."""
        logits = self.predict(state["point"])
        loss = logit_margin(logits, state["y"])
        better = loss > state["best_loss"]
        best = select(better, state["point"], state["best"])
        candidate = (
            self._candidate_inf(best, state) if self.threat_model.ord == "inf" else self._candidate_2(best, state)
        )
        next_state = {
            "point": self.threat_model.with_eps(state["eps"]).project(candidate, state["x"]),
            "best": best,
            "best_loss": ops.where(better, loss, state["best_loss"]),
        }
        return StepResult(next_state, is_adversarial(logits, state["y"]), loss)

    def sides(self, height: int, width: int) -> Labels:
        """Return the sides of the squares in pixels, int32 [10]: at first, and each time that p was halved."""
        p = self.p_init / 2.0 ** np.arange(len(P_HALVING_QUERIES) + 1)
        wanted, largest = np.round(np.sqrt(p * height * width)).astype(np.int32), min(height, width)
        if self.threat_model.ord == "2":
            wanted, largest = np.maximum(wanted, 3) // 2 * 2 + 1, (largest - 1) // 2 * 2 + 1
        sides: Labels = np.clip(wanted, 1, largest)
        return sides

    def n_halvings(self, i: Tensor) -> Tensor:
        """Return how often p was halved before the i-th query, int32 [n]."""
        # i * 10,000 // steps > after, in whole numbers
        first = [-(-(after + 1) * self.steps // 10_000) for after in P_HALVING_QUERIES]
        return ops.sum(ops.cast(i[:, None] >= backend.place(np.asarray(first, np.int32)), "int32"), axis=1)

    def _stripes(self, job: State) -> Tensor:
        """Signs [n, 1, width, channels]."""
        _, width, channels = job["x"].shape[1:]
        random = example_rng.uniform(width * channels, self.seed, job["attempt"], job["index"])
        return ops.reshape(_signs(random, job["x"]), (-1, 1, width, channels))

    def _grid_of_bumps(self, job: State) -> Tensor:
        """Perturbations [n, height, width, channels] of norm 1: bumps side by side, of random signs and directions."""
        height, width, channels = job["x"].shape[1:]
        side = max(1, min(height, width) // GRID)
        rows, columns = height // side, width // side
        random = example_rng.uniform(rows * columns * (channels + 1), self.seed, job["attempt"], job["index"])
        random = ops.reshape(random, (-1, rows, 1, columns, 1, channels + 1))
        shape = bump(side)
        upright, transposed = (as_tensor_like(form[:, None, :, None], job["x"]) for form in (shape, shape.T))
        bumps = ops.where(random[..., :1] > 0.5, transposed, upright) * _signs(random[..., 1:], job["x"])
        bumps = ops.reshape(bumps, (-1, rows * side, columns * side, channels))
        bumps = bumps / float(np.sqrt(rows * columns * channels))
        left_over = (height % side, width % side)
        return ops.pad(bumps, [(0, 0), *((size // 2, size - size // 2) for size in left_over), (0, 0)])

    def _candidate_inf(self, best: Tensor, state: State) -> Tensor:
        """inf: a corner of the ball inside a square, one sign a channel: where +-2 eps and the projection lead."""
        height, width, channels = best.shape[1:]
        random = self._random(2 + channels, state)
        side = ops.take(backend.place(self.sides(height, width)), self.n_halvings(state["i"]), axis=0)
        square = _Window(random[:, :2], side, height, width)
        signs = _signs(random[:, None, None, 2:], best)
        return ops.where(square.mask, self.threat_model.step(state["x"], signs, per_example(state["eps"])), best)

    def _candidate_2(self, best: Tensor, state: State) -> Tensor:
        """2: the norm in both squares and the unused budget go to the first, half old content and half a bump."""
        height, width, channels = best.shape[1:]
        scale, eps = as_tensor_like(self.threat_model.scale, best), per_example(state["eps"])
        random, level = self._random(5 + channels, state), self.n_halvings(state["i"])
        sides = self.sides(height, width)
        side = ops.take(backend.place(sides), level, axis=0)
        square = _Window(random[:, :2], side, height, width)
        other = _Window(random[:, 2:4], side, height, width)
        delta = (best - state["x"]) / scale
        unused = eps**2 - ops.sum(delta**2, axis=(1, 2, 3), keepdims=True)
        unused = ops.where(unused > MIN_UNUSED_BUDGET * eps**2, unused, ops.zeros_like(unused)) / channels
        held = _channel_norm(ops.where(square.mask | other.mask, delta, 0.0)) ** 2
        old = ops.where(square.mask, delta, 0.0)
        bumps = _signs(random[:, None, None, 5:], best) * square.bump(sides, level, random[:, 4] > 0.5, best)
        both = bumps + ops.divide_no_nan(old, _channel_norm(old))
        both = ops.where(
            _channel_norm(both) > MIN_SUM_NORM, both / ops.maximum(_channel_norm(both), MIN_SUM_NORM), bumps
        )
        rest = ops.where(other.mask, ops.zeros_like(delta), delta)
        return state["x"] + scale * ops.where(square.mask, both * ops.sqrt(unused + held), rest)

    def _random(self, count: int, state: State) -> Tensor:
        """The random numbers of the candidate after point i."""
        return example_rng.uniform(count, self.seed, state["attempt"], state["index"], state["i"])


class _Window:
    """A square in each image of a batch, of `side` int32 [n] pixels, at a random place: `random` float32 [n, 2]."""

    def __init__(self, random: Tensor, side: Tensor, height: int, width: int) -> None:
        self.side = per_example(side)
        top, left = _place(random[:, 0], height - side), _place(random[:, 1], width - side)
        self.row = ops.arange(height, dtype="int32")[None, :, None, None] - per_example(
            top
        )  # counted from its upper left corner
        self.column = ops.arange(width, dtype="int32")[None, None, :, None] - per_example(left)

    @property
    def mask(self) -> Tensor:
        """Mask of the square, bool [n, height, width, 1]."""
        row, column = self.row, self.column
        return (row >= 0) & (row < self.side) & (column >= 0) & (column < self.side)

    def bump(self, sides: Labels, level: Tensor, transposed: Tensor, like: Tensor) -> Tensor:
        """`bump` in the square, 0 elsewhere, [n, height, width, 1]; `transposed` bool [n]."""
        # Bumps of all sizes in one table, whose last entry is 0.
        table = np.concatenate([*(bump(int(side)).ravel() for side in sides), [0.0]])
        first = np.concatenate([[0], np.cumsum(sides[:-1] ** 2)]).astype(np.int32)
        transposed = per_example(transposed)
        row, column = ops.where(transposed, self.column, self.row), ops.where(transposed, self.row, self.column)
        entry = per_example(ops.take(backend.place(first), level, axis=0)) + row * self.side + column
        entry = ops.where(self.mask, entry, len(table) - 1)
        return ops.take(as_tensor_like(table, like), entry, axis=0)


def bump(side: int) -> Floats:
    """Return a bump: two pyramids one upon the other, of opposite signs (eta of the paper, equation 2).

    Args:
        side: height and width in pixels.

    Returns:
        float64 [side, side], of L2 norm 1.
    """
    upper = side // 2
    both: Floats = np.concatenate([_pyramid(upper, side), -_pyramid(side - upper, side)])
    return both / float(np.linalg.norm(both))


def _pyramid(height: int, width: int) -> Floats:
    """[height, width], of norm 1: squares around the centre, the k-th of them of 1 / k^2, laid upon each other."""
    steps = 1.0 / np.arange(1, max(height, width) // 2 + 2) ** 2
    level = np.cumsum(steps[::-1])[::-1]  # at a distance of d from the centre all lie but the d innermost
    row, column = abs(np.arange(height) - height // 2), abs(np.arange(width) - width // 2)
    heights: Floats = level[np.maximum(row[:, None], column)]
    return heights / max(float(np.linalg.norm(heights)), np.finfo(float).tiny)  # there may be no pixel


def _place(random: Tensor, last: Tensor) -> Tensor:
    """int32 [n], uniform in 0, ..., `last`; the largest random number is rounded to 1, hence the minimum."""
    return ops.minimum(ops.cast(random * ops.cast(last + 1, random.dtype), "int32"), last)


def _signs(random: Tensor, like: Tensor) -> Tensor:
    """+1 or -1, of the dtype of `like`, for uniform random numbers."""
    return ops.cast(ops.where(random > 0.5, 1.0, -1.0), like.dtype)


def _channel_norm(delta: Tensor) -> Tensor:
    """L2 norm of each channel, [n, 1, 1, channels]."""
    return ops.sqrt(ops.sum(delta**2, axis=(1, 2), keepdims=True))

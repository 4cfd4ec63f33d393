"""The Square attack (Andriushchenko et al. 2020, algorithms 1 to 3), which needs no gradient, as a search of the active
set.

The best point so far is changed within one square (inf), or what two squares hold is drawn together in one of them (2);
the change is kept where it brings the point nearer to being fooled. Squares shrink by a fixed schedule. Settings are
those of AutoAttack's standard set: 5000 queries, p = 0.8 at first, the difference of logits as the loss.

Where the paper and the code of its authors (github.com/max-andr/square-attack) or AutoAttack's differ, it does as the
paper:

- A square may lie at every place of the image. In both codes none touches the last row and column.
- inf: a square gets what colours are drawn, even those that it has. The authors' code draws again.
- 2: what is free goes to each channel by what the squares hold of that channel. In AutoAttack's code every channel
  gets what they hold of all channels, and the image is then rescaled.

Two things are left open there. Squares of images for which the published sizes are too large are as large as the image
(2: the largest odd size). And where a bump and the old content of its square cancel but for rounding, which happens
where it meets its own negative, the bump alone is taken: the direction of their sum would be noise.

Every example draws squares of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln.attacks import example_rng
from bn_vuln.attacks.base import Slots, StepResult
from bn_vuln.attacks.losses import Predict, is_adversarial, logit_margin
from bn_vuln.attacks.threat_model import ThreatModel, constant, per_example
from bn_vuln.runtime import backend

HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries of 10,000, after each of which p is halved
GRID = 5  # the bumps at the start are a fifth of the image high
CANCELLED = 1e-3  # a sum of two vectors of length 1 that is shorter than this is rounding
ROUNDING = 1e-6  # so is what is free, below this share of eps^2: its root would be a thousandth of eps


@dataclass(frozen=True)
class Square:
    """`steps` squares, after a start of stripes (inf) or of a grid of bumps (2). Variants are restarts.

    Args:
        predict: float pixels [n, height, width, channels] -> logits [n, classes].
        ball: norm, scale and box; the radius is the job's.
        p_init: the share of the image that the first squares cover.
        seed: what is drawn depends on (seed, variant, index, i) only.
    """

    predict: Predict
    threat_model: ThreatModel
    steps: int = 5000
    p_init: float = 0.8
    seed: int = 0

    def start(self, job: Slots) -> dict[str, Any]:
        """Stripes, or bumps; nothing is known of them yet."""
        tf = backend.tensorflow()
        x, threat_model = job["x"], self.threat_model.with_eps(job["eps"])
        if threat_model.ord == "inf":
            point = threat_model.step(x, self._stripes(job), threat_model.eps)
        else:
            point = x + constant(threat_model.scale, x) * threat_model.eps * self._grid_of_bumps(job)
        point = threat_model.project(point, x)
        lowest = tf.fill(tf.shape(job["eps"]), tf.constant(-np.inf, x.dtype))
        return {"point": point, "best": point, "best_loss": lowest}

    def advance(self, slots: Slots) -> StepResult:
        """One forward pass, of the candidate that was made of the best point."""
        tf = backend.tensorflow()
        logits = self.predict(slots["point"])
        loss = logit_margin(logits, slots["y"])
        better = loss > slots["best_loss"]
        best = tf.where(per_example(better), slots["point"], slots["best"])
        candidate = self._squared(best, slots) if self.threat_model.ord == "inf" else self._drawn_together(best, slots)
        state = {
            "point": self.threat_model.with_eps(slots["eps"]).project(candidate, slots["x"]),
            "best": best,
            "best_loss": tf.where(better, loss, slots["best_loss"]),
        }
        return StepResult(state, is_adversarial(logits, slots["y"]), loss)

    def sides(self, height: int, width: int) -> NDArray[np.int32]:
        """The sizes of squares in pixels, int32 [10]: at first, and each time that p was halved."""
        p = self.p_init / 2.0 ** np.arange(len(HALVED_AFTER) + 1)
        wanted, largest = np.round(np.sqrt(p * height * width)).astype(np.int32), min(height, width)
        if self.threat_model.ord == "2":
            wanted, largest = np.maximum(wanted, 3) // 2 * 2 + 1, (largest - 1) // 2 * 2 + 1
        sides: NDArray[np.int32] = np.clip(wanted, 1, largest)
        return sides

    def level(self, i: Any) -> Any:
        """How often p was halved before the i-th query, int32 [n]."""
        tf = backend.tensorflow()
        # i * 10,000 // steps > after, in whole numbers
        first = [-(-(after + 1) * self.steps // 10_000) for after in HALVED_AFTER]
        return tf.reduce_sum(tf.cast(i[:, None] >= tf.constant(first, i.dtype), tf.int32), axis=1)

    def _stripes(self, job: Slots) -> Any:
        """Signs [n, 1, width, channels]."""
        tf = backend.tensorflow()
        _, width, channels = job["x"].shape[1:]
        drawn = example_rng.uniform(width * channels, self.seed, job["variant"], job["index"])
        return tf.reshape(_signs(drawn, job["x"]), (-1, 1, width, channels))

    def _grid_of_bumps(self, job: Slots) -> Any:
        """Perturbations [n, height, width, channels] of norm 1: bumps side by side, each of random signs, upright or
        not."""
        tf = backend.tensorflow()
        height, width, channels = job["x"].shape[1:]
        side = max(1, min(height, width) // GRID)
        rows, columns = height // side, width // side
        drawn = example_rng.uniform(rows * columns * (channels + 1), self.seed, job["variant"], job["index"])
        drawn = tf.reshape(drawn, (-1, rows, 1, columns, 1, channels + 1))
        shape = bump(side)
        upright, across = (tf.constant(form[:, None, :, None], job["x"].dtype) for form in (shape, shape.T))
        bumps = tf.where(drawn[..., :1] > 0.5, across, upright) * _signs(drawn[..., 1:], job["x"])
        bumps = tf.reshape(bumps, (-1, rows * side, columns * side, channels))
        bumps = bumps / float(np.sqrt(rows * columns * channels))
        left_over = (height % side, width % side)
        return tf.pad(bumps, [(0, 0), *((size // 2, size - size // 2) for size in left_over), (0, 0)])

    def _squared(self, best: Any, slots: Slots) -> Any:
        """inf: a corner of the ball in a square, one sign a channel, which is where +-2 eps and the projection lead."""
        tf = backend.tensorflow()
        height, width, channels = best.shape[1:]
        drawn = self._drawn(2 + channels, slots)
        side = tf.gather(tf.constant(self.sides(height, width)), self.level(slots["i"]))
        square = _Window(drawn[:, :2], side, height, width)
        signs = _signs(drawn[:, None, None, 2:], best)
        return tf.where(square.mask, self.threat_model.step(slots["x"], signs, per_example(slots["eps"])), best)

    def _drawn_together(self, best: Any, slots: Slots) -> Any:
        """2: what both squares hold of the norm goes to the first, with what is free, as its old content and a bump in
        equal parts."""
        tf = backend.tensorflow()
        height, width, channels = best.shape[1:]
        scale, eps = constant(self.threat_model.scale, best), per_example(slots["eps"])
        drawn, level, sides = self._drawn(5 + channels, slots), self.level(slots["i"]), self.sides(height, width)
        side = tf.gather(tf.constant(sides), level)
        square = _Window(drawn[:, :2], side, height, width)
        other = _Window(drawn[:, 2:4], side, height, width)
        delta = (best - slots["x"]) / scale
        free = eps**2 - tf.reduce_sum(delta**2, axis=(1, 2, 3), keepdims=True)
        free = tf.where(free > ROUNDING * eps**2, free, tf.zeros_like(free)) / channels
        held = _norm(tf.where(square.mask | other.mask, delta, 0.0)) ** 2
        old = tf.where(square.mask, delta, 0.0)
        bumps = _signs(drawn[:, None, None, 5:], best) * square.bump(sides, level, drawn[:, 4] > 0.5, best)
        both = bumps + tf.math.divide_no_nan(old, _norm(old))
        both = tf.where(_norm(both) > CANCELLED, both / tf.maximum(_norm(both), CANCELLED), bumps)
        rest = tf.where(other.mask, tf.zeros_like(delta), delta)
        return slots["x"] + scale * tf.where(square.mask, both * tf.sqrt(free + held), rest)

    def _drawn(self, count: int, slots: Slots) -> Any:
        """The random numbers of the candidate after point i."""
        return example_rng.uniform(count, self.seed, slots["variant"], slots["index"], slots["i"])


class _Window:
    """A square in each image of a batch, of `side` int32 [n] pixels, at the place that `drawn` float32 [n, 2] gives."""

    def __init__(self, drawn: Any, side: Any, height: int, width: int) -> None:
        tf = backend.tensorflow()
        self.side = per_example(side)
        top, left = _place(drawn[:, 0], height - side), _place(drawn[:, 1], width - side)
        self.row = tf.range(height)[None, :, None, None] - per_example(top)  # counted from its upper left corner
        self.column = tf.range(width)[None, None, :, None] - per_example(left)

    @property
    def mask(self) -> Any:
        """bool [n, height, width, 1]."""
        row, column = self.row, self.column
        return (row >= 0) & (row < self.side) & (column >= 0) & (column < self.side)

    def bump(self, sides: NDArray[np.int32], level: Any, across: Any, like: Any) -> Any:
        """`bump` in the square, 0 elsewhere, [n, height, width, 1]; `across` bool [n]: turned over the diagonal."""
        tf = backend.tensorflow()
        # Bumps of all sizes in one table, whose last entry is 0.
        table = np.concatenate([*(bump(int(side)).ravel() for side in sides), [0.0]])
        first = np.concatenate([[0], np.cumsum(sides[:-1] ** 2)]).astype(np.int32)
        across = per_example(across)
        row, column = tf.where(across, self.column, self.row), tf.where(across, self.row, self.column)
        entry = per_example(tf.gather(tf.constant(first), level)) + row * self.side + column
        entry = tf.where(self.mask, entry, len(table) - 1)
        return tf.gather(tf.constant(table.astype(like.dtype.as_numpy_dtype)), entry)


def bump(side: int) -> NDArray[np.float64]:
    """[side, side], of norm 1: two pyramids one upon the other, of opposite signs (eta of the paper, equation 2)."""
    upper = side // 2
    both: NDArray[np.float64] = np.concatenate([_pyramid(upper, side), -_pyramid(side - upper, side)])
    return both / float(np.linalg.norm(both))


def _pyramid(height: int, width: int) -> NDArray[np.float64]:
    """[height, width], of norm 1: squares around the centre, the k-th of them of 1 / k^2, laid upon each other."""
    steps = 1.0 / np.arange(1, max(height, width) // 2 + 2) ** 2
    level = np.cumsum(steps[::-1])[::-1]  # at a distance of d from the centre all lie but the d innermost
    row, column = abs(np.arange(height) - height // 2), abs(np.arange(width) - width // 2)
    heights: NDArray[np.float64] = level[np.maximum(row[:, None], column)]
    return heights / max(float(np.linalg.norm(heights)), np.finfo(float).tiny)  # there may be no pixel


def _place(drawn: Any, last: Any) -> Any:
    """int32 [n], uniform in 0, ..., `last`; the largest draw is rounded to 1, hence the minimum."""
    tf = backend.tensorflow()
    return tf.minimum(tf.cast(drawn * tf.cast(last + 1, drawn.dtype), tf.int32), last)


def _signs(drawn: Any, like: Any) -> Any:
    """+1 or -1, of the dtype of `like`, for uniform draws."""
    tf = backend.tensorflow()
    return tf.cast(tf.where(drawn > 0.5, 1.0, -1.0), like.dtype)


def _norm(delta: Any) -> Any:
    """Of each channel, [n, 1, 1, channels]."""
    tf = backend.tensorflow()
    return tf.sqrt(tf.reduce_sum(delta**2, axis=(1, 2), keepdims=True))

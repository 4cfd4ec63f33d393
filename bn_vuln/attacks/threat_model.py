"""The threat model: the eps ball ||(x' - x) / scale||_ord <= eps, cut to the box low <= x' <= high, in pixels.

`scale` is 1 for eps in pixel units, and the std of each channel for standardized units. Steps and projections work in
units of `scale`. The box is applied last.

`step`, `project` and `random_point` are made of keras.ops on tensors [n, height, width, channels] of any float
dtype, for use inside a compiled attack. `violation` and `project_array` do the same in NumPy and float64, independently
of the attack, to check and correct what an attack returns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from bn_vuln.attacks import example_rng
from bn_vuln.config import Attack
from bn_vuln.data import units
from bn_vuln.data.info import DatasetInfo
from bn_vuln.runtime import backend, ops
from bn_vuln.typing import Floats, Images, Index, Mask, Tensor

Channels: TypeAlias = NDArray[np.float32]  # [channels], one number for each
Eps: TypeAlias = float | Tensor | Floats
Value = TypeVar("Value")

RADIUS_STREAM = 2**31  # added to the seed of directions: the random stream of radii


@dataclass(frozen=True)
class ThreatModel:
    """A norm, a radius, and a box.

    Attributes:
        ord: the norm, "inf" or "2".
        eps: the radius of the ball, in units of `scale`: a number, or one for each example (see `with_eps`).
        scale: pixels to a unit of eps, a number or float32 [channels].
        low: lower bound of the box in pixels, a number or float32 [channels]; -inf for none.
        high: upper bound of the box, likewise.
    """

    ord: str
    eps: Eps
    scale: Channels | float = 1.0
    low: Channels | float = -np.inf
    high: Channels | float = np.inf

    def with_eps(self, eps: Eps) -> ThreatModel:
        """Return the same threat model with another radius.

        Args:
            eps: a number, or one for each example: a tensor [n] inside of a compiled attack, an array [n] for
                `violation` and `project_array`.
        """
        return replace(self, eps=per_example(eps))

    def subset(self, which: Mask | Index | slice) -> ThreatModel:
        """Return the threat model of some of the examples, where each has an eps of its own."""
        return replace(self, eps=self.eps[which]) if isinstance(self.eps, np.ndarray) else self

    def step(self, x: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        """Take one step of steepest ascent, without projection.

        Args:
            x: points [n, height, width, channels], in pixels.
            gradient: of the loss that is maximized by the pixels, of the shape of x.
            step_size: length of the step in units of the scale, a number or [n, 1, 1, 1].

        Returns:
            x + step_size * scale * sign(g) for "inf", x + step_size * scale * (scale g) / ||scale g||_2 for "2". Where
            the gradient is 0 the point stays.
        """
        scale = as_tensor_like(self.scale, x)
        if self.ord == "inf":
            return x + step_size * scale * ops.sign(gradient)
        # Divide by the largest entry first: squares of small gradients would underflow. Infinite ones are large.
        limit = float(np.finfo(backend.dtype_of(gradient)).max)
        gradient = ops.clip(gradient, -limit, limit)
        scaled = scale * ops.divide_no_nan(gradient, _reduce(ops.max, ops.abs(gradient)))
        norm = ops.sqrt(_reduce(ops.sum, scaled**2))
        return x + step_size * scale * ops.divide_no_nan(scaled, norm)

    def project(self, point: Tensor, x: Tensor) -> Tensor:
        """Project points into the eps ball around x, then into the box: the projection inside the search.

        For the final check that decides if a point counts, see `project_array`.

        Args:
            point: points [n, height, width, channels], in pixels.
            x: the clean images, the centres of the balls, of the same shape.

        Returns:
            Points of the same shape. For "2" the box may bring a point nearer to x, never farther away, if x lies in
            the box.
        """
        scale, radius = as_tensor_like(self.scale, point), cast("float | Tensor", self.eps)
        if self.ord == "inf":
            point = ops.clip(point, x - radius * scale, x + radius * scale)
        else:
            delta = (point - x) / scale
            norm = ops.sqrt(_reduce(ops.sum, delta**2))
            eps = (radius if ops.is_tensor(radius) else as_tensor_like(radius, norm)) * ops.ones_like(norm)
            point = x + scale * delta * ops.where(norm > eps, ops.divide_no_nan(eps, norm), 1.0)
        if np.isinf(self.low).all() and np.isinf(self.high).all():
            return point
        return ops.clip(point, as_tensor_like(self.low, point), as_tensor_like(self.high, point))

    def random_point(self, x: Tensor, index: Tensor, seed: int, restart: int | Tensor) -> Tensor:
        """Draw a uniformly random point of the eps ball around each image, then project it into the box.

        Args:
            x: clean images [n, height, width, channels], in pixels.
            index: int32 [n], the number of each example in its data set.
            seed: the seed of the attack.
            restart: the number of the restart, or int32 [n].

        Returns:
            Points of the shape of x. Each depends on (seed, number, index) only, not on the rest of the batch.
        """
        dimension = int(np.prod(x.shape[1:]))
        number: Tensor = ops.zeros_like(index) + ops.cast(restart, "int32")
        if self.ord == "inf":
            delta = 2.0 * ops.cast(example_rng.uniform(dimension, seed, number, index), x.dtype) - 1.0
        else:
            values = ops.cast(example_rng.normal(dimension, seed, number, index), x.dtype)
            radius = ops.cast(example_rng.uniform(1, seed + RADIUS_STREAM, number, index), x.dtype)
            delta = values / ops.sqrt(ops.sum(values**2, axis=1, keepdims=True)) * radius ** (1 / dimension)
        delta = ops.reshape(delta, ops.shape(x)) * self.eps * as_tensor_like(self.scale, x)
        return self.project(x + delta, x)

    def norm(self, delta: Tensor) -> Tensor:
        """Return the norms [n] of perturbations [n, height, width, channels] in pixels, in units of the scale."""
        delta = ops.abs(delta) / as_tensor_like(self.scale, delta)
        if self.ord == "inf":
            return ops.max(delta, axis=(1, 2, 3))
        return ops.sqrt(ops.sum(delta**2, axis=(1, 2, 3)))

    def dual_norm(self, gradient: Tensor) -> Tensor:
        """Return the dual norms [n] of gradients by pixels: the largest rise of the loss per unit of eps."""
        slope = ops.abs(gradient) * as_tensor_like(self.scale, gradient)
        if self.ord == "inf":
            return ops.sum(slope, axis=(1, 2, 3))
        # Divide by the largest entry first: squares of small gradients would underflow.
        largest = ops.max(slope, axis=(1, 2, 3), keepdims=True)
        length = ops.sqrt(ops.sum(ops.divide_no_nan(slope, largest) ** 2, axis=(1, 2, 3)))
        return ops.reshape(largest, ops.shape(length)) * length

    def max_distance(self, x: Tensor) -> Tensor:
        """Return the distance [n] from each image to the farthest corner of the box, in units of the scale."""
        low, high = as_tensor_like(self.low, x), as_tensor_like(self.high, x)
        return self.norm(ops.maximum(x - low, high - x))

    def violation(self, point: Images, x: Images) -> Floats:
        """Return by how much each point violates the threat model.

        Args:
            point: points [n, height, width, channels], in pixels.
            x: the clean images, of the same shape.

        Returns:
            float64 [n]: the larger one of norm - eps (units of scale) and the distance to the box (pixels); at most 0
            for points inside of both.
        """
        delta = (point.astype(np.float64) - x) / self.scale
        axes = tuple(range(1, delta.ndim))
        norm = np.abs(delta).max(axes) if self.ord == "inf" else np.sqrt((delta**2).sum(axes))
        box = np.maximum(self.low - point.astype(np.float64), point - self.high).max(axes)
        return np.maximum(norm - np.reshape(np.asarray(self.eps), -1), box)

    def project_array(self, point: Images, x: Images) -> Images:
        """Project as `project` does, in NumPy and float64: the final check, after which points count.

        `project` is for the search. This one does not depend on the attack or its dtype.

        Args:
            point: points [n, height, width, channels], in pixels.
            x: the clean images, of the same shape.

        Returns:
            float32, of the same shape.
        """
        delta, eps = (point.astype(np.float64) - x) / self.scale, np.asarray(self.eps)
        if self.ord == "inf":
            delta = np.clip(delta, -eps, eps)
        else:
            norm = np.sqrt((delta**2).sum(tuple(range(1, delta.ndim)), keepdims=True))
            delta *= np.minimum(1.0, eps / np.maximum(norm, np.finfo(np.float64).tiny))
        return np.clip(x + delta * self.scale, self.low, self.high).astype(np.float32)


def from_config(attack: Attack, info: DatasetInfo) -> ThreatModel:
    """Return the threat model of an attack's config.

    Args:
        attack: its `ord`, `eps`, `unit` and `box` are used.
        info: the data set, whose std is the scale of standardized units.
    """
    low, high = units.bounds(attack.box, info)
    return ThreatModel(attack.ord, attack.eps, units.channel_scale(attack.unit, info), low, high)


def per_example(value: Value) -> Value:
    """Reshape an array or tensor [n] to [n, 1, 1, 1], to be combined with images; a number stays as it is."""
    if isinstance(value, np.ndarray):
        return cast("Value", value.reshape(-1, 1, 1, 1))
    vector = ops.is_tensor(value) and len(cast("Tensor", value).shape) == 1
    return cast("Value", ops.reshape(value, (-1, 1, 1, 1))) if vector else value


def as_tensor_like(value: Eps | Channels, like: Tensor) -> Tensor:
    """Return a tensor of the dtype of `like`, without a detour of Python floats over float32."""
    return backend.place(np.asarray(value, backend.dtype_of(like)))


def _reduce(reduction: Callable[..., Tensor], x: Tensor) -> Tensor:
    """Reduce over all axes but the first, keeping them."""
    return reduction(x, axis=list(range(1, len(x.shape))), keepdims=True)

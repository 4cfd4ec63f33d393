"""The ball of a threat model: ||(x' - x) / scale||_ord <= eps and low <= x' <= high, in pixels.

`scale` is 1 per channel for eps in pixel units, the channel's std for standardized units. Steps and
projections work in units of `scale`; the box is applied last. TensorFlow ops on tensors [n, height, width,
channels] of any float dtype, for use inside a compiled attack; `excess` and `project_array` do the same in
NumPy, apart from the attack, to check and mend what an attack returns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln.attacks import example_rng
from bn_vuln.config import Attack
from bn_vuln.data import units
from bn_vuln.data.info import DatasetInfo
from bn_vuln.runtime import backend

Channels = NDArray[np.float32]
RADIUS = 2**31  # added to the seed of directions: the stream of radii


@dataclass(frozen=True)
class ThreatModel:
    """`ord` "inf" or "2"; `eps` in units of `scale`; `scale`, `low`, `high` per channel (or scalars), in pixels.

    With `with_eps` it has a radius for each example: a tensor [n] inside of a compiled search, an array [n] for
    `excess` and `project_array`.
    """

    ord: str
    eps: Any
    scale: Channels | float = 1.0
    low: Channels | float = -np.inf
    high: Channels | float = np.inf

    def with_eps(self, eps: Any) -> ThreatModel:
        """The same ball with another radius, or one for each example [n]."""
        return replace(self, eps=per_example(eps))

    def subset(self, which: NDArray[Any] | slice) -> ThreatModel:
        """The balls of some of the examples, by a mask, their places or a slice."""
        return replace(self, eps=self.eps[which]) if isinstance(self.eps, np.ndarray) else self

    def step(self, x: Any, gradient: Any, step_size: Any) -> Any:
        """One ascent step: step_size * scale * sign(g) for inf, step_size * scale * (scale g) / ||scale g|| for 2."""
        tf = backend.tensorflow()
        scale = constant(self.scale, x)
        if self.ord == "inf":
            return x + step_size * scale * tf.sign(gradient)
        # Divide by the largest entry first: squares of small gradients would underflow. Infinite ones are large.
        gradient = tf.clip_by_value(gradient, gradient.dtype.min, gradient.dtype.max)
        scaled = scale * tf.math.divide_no_nan(gradient, _reduce(tf.reduce_max, tf.abs(gradient)))
        norm = tf.sqrt(_reduce(tf.reduce_sum, scaled**2))
        return x + step_size * scale * tf.math.divide_no_nan(scaled, norm)

    def project(self, point: Any, centre: Any) -> Any:
        """The point moved into the ball around `centre`, then into the box."""
        tf = backend.tensorflow()
        scale = constant(self.scale, point)
        if self.ord == "inf":
            point = tf.clip_by_value(point, centre - self.eps * scale, centre + self.eps * scale)
        else:
            delta = (point - centre) / scale
            norm = tf.sqrt(_reduce(tf.reduce_sum, delta**2))
            eps = self.eps if tf.is_tensor(self.eps) else constant(self.eps, norm)
            shrink = tf.math.divide_no_nan(tf.broadcast_to(eps, tf.shape(norm)), norm)
            point = centre + scale * delta * tf.where(norm > eps, shrink, tf.ones_like(norm))
        if np.isinf(self.low).all() and np.isinf(self.high).all():
            return point
        return tf.clip_by_value(point, constant(self.low, point), constant(self.high, point))

    def random_point(self, x: Any, index: Any, seed: int, restart: Any) -> Any:
        """A uniformly random point of the ball around each x, then into the box.

        It depends on (seed, `restart`, a number or int32 [n], the example's `index`, int32 [n]) only, so not on the
        batch.
        """
        tf = backend.tensorflow()
        dimension = int(np.prod(x.shape[1:]))
        restart = tf.broadcast_to(tf.cast(restart, index.dtype), tf.shape(index))
        if self.ord == "inf":
            delta = 2.0 * tf.cast(example_rng.uniform(dimension, seed, restart, index), x.dtype) - 1.0
        else:
            values = tf.cast(example_rng.normal(dimension, seed, restart, index), x.dtype)
            radius = tf.cast(example_rng.uniform(1, seed + RADIUS, restart, index), x.dtype)
            delta = values / tf.norm(values, axis=1, keepdims=True) * radius ** (1 / dimension)
        delta = tf.reshape(delta, tf.shape(x)) * self.eps * constant(self.scale, x)
        return self.project(x + delta, x)

    def norm(self, delta: Any) -> Any:
        """Of perturbations in pixels, [n], in units of the scale."""
        tf = backend.tensorflow()
        delta = tf.abs(delta) / constant(self.scale, delta)
        if self.ord == "inf":
            return tf.reduce_max(delta, axis=(1, 2, 3))
        return tf.sqrt(tf.reduce_sum(delta**2, axis=(1, 2, 3)))

    def dual_norm(self, gradient: Any) -> Any:
        """Of gradients by pixels, [n], per unit of the scale: how fast the loss rises at most."""
        tf = backend.tensorflow()
        slope = tf.abs(gradient) * constant(self.scale, gradient)
        if self.ord == "inf":
            return tf.reduce_sum(slope, axis=(1, 2, 3))
        # Divide by the largest entry first: squares of small gradients would underflow.
        largest = tf.reduce_max(slope, axis=(1, 2, 3), keepdims=True)
        length = tf.sqrt(tf.reduce_sum(tf.math.divide_no_nan(slope, largest) ** 2, axis=(1, 2, 3)))
        return tf.reshape(largest, tf.shape(length)) * length

    def max_distance(self, x: Any) -> Any:
        """The norm [n] of the way to the farthest corner of the box."""
        tf = backend.tensorflow()
        low, high = constant(self.low, x), constant(self.high, x)
        return self.norm(tf.maximum(x - low, high - x))

    def violation(self, point: NDArray[np.float32], centre: NDArray[np.float32]) -> NDArray[np.float64]:
        """How far each point lies outside, float64 [n]: the ball (units of scale) or box (pixels)."""
        delta = (point.astype(np.float64) - centre) / self.scale
        axes = tuple(range(1, delta.ndim))
        norm = np.abs(delta).max(axes) if self.ord == "inf" else np.sqrt((delta**2).sum(axes))
        box = np.maximum(self.low - point.astype(np.float64), point - self.high).max(axes)
        return np.maximum(norm - np.reshape(self.eps, -1), box)

    def project_array(self, point: NDArray[np.float32], centre: NDArray[np.float32]) -> NDArray[np.float32]:
        """`project` for arrays, in NumPy and float64, rounded to float32 at the end."""
        delta = (point.astype(np.float64) - centre) / self.scale
        if self.ord == "inf":
            delta = np.clip(delta, -self.eps, self.eps)
        else:
            norm = np.sqrt((delta**2).sum(tuple(range(1, delta.ndim)), keepdims=True))
            delta *= np.minimum(1.0, self.eps / np.maximum(norm, np.finfo(np.float64).tiny))
        return np.clip(centre + delta * self.scale, self.low, self.high).astype(np.float32)


def from_config(attack: Attack, info: DatasetInfo) -> ThreatModel:
    """The ball of an attack's config on a data set (its std gives the scale of standardized units)."""
    low, high = units.bounds(attack.box, info)
    return ThreatModel(attack.ord, attack.eps, units.channel_scale(attack.unit, info), low, high)


def per_example(value: Any) -> Any:
    """A number as it is; an array or tensor [n] as [n, 1, 1, 1], to be combined with images."""
    if isinstance(value, np.ndarray):
        return value.reshape(-1, 1, 1, 1)
    tf = backend.tensorflow()
    return tf.reshape(value, (-1, 1, 1, 1)) if tf.is_tensor(value) and len(value.shape) == 1 else value


def constant(value: NDArray[Any] | float, like: Any) -> Any:
    """A tensor of the dtype of `like`, without the detour over float32 that tf.cast takes with Python floats."""
    return backend.tensorflow().constant(np.asarray(value, like.dtype.as_numpy_dtype))


def _reduce(reduction: Any, x: Any) -> Any:
    """Reduce over all axes but the first, keeping them."""
    return reduction(x, axis=list(range(1, len(x.shape))), keepdims=True)

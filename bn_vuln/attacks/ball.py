"""The ball of a threat model: ||(x' - x) / scale||_ord <= eps and low <= x' <= high, in pixels.

`scale` is 1 per channel for eps in pixel units, the channel's std for standardized units. Steps and
projections work in units of `scale`; the box is applied last. TensorFlow ops on tensors [n, height, width,
channels] of any float dtype, for use inside a compiled attack; `excess` and `project_array` do the same in
NumPy, apart from the attack, to check and mend what an attack returns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln import backend, units
from bn_vuln.config import Attack
from bn_vuln.facts import Facts

Channels = NDArray[np.float32]


@dataclass(frozen=True)
class Ball:
    """`ord` "inf" or "2"; `eps` in units of `scale`; `scale`, `low`, `high` per channel (or scalars), in pixels."""

    ord: str
    eps: float
    scale: Channels | float = 1.0
    low: Channels | float = -np.inf
    high: Channels | float = np.inf

    def step(self, x: Any, gradient: Any, step_size: float) -> Any:
        """One ascent step: step_size * scale * sign(g) for inf, step_size * scale * (scale g) / ||scale g|| for 2."""
        tf = backend.tensorflow()
        scale = _constant(self.scale, x)
        if self.ord == "inf":
            return x + step_size * scale * tf.sign(gradient)
        # Divide by the largest entry first: squares of small gradients would underflow.
        scaled = scale * gradient
        scaled = tf.math.divide_no_nan(scaled, _reduce(tf.reduce_max, tf.abs(scaled)))
        norm = tf.sqrt(_reduce(tf.reduce_sum, scaled**2))
        return x + step_size * scale * tf.math.divide_no_nan(scaled, norm)

    def project(self, point: Any, centre: Any) -> Any:
        """The point moved into the ball around `centre`, then into the box."""
        tf = backend.tensorflow()
        scale = _constant(self.scale, point)
        if self.ord == "inf":
            point = tf.clip_by_value(point, centre - self.eps * scale, centre + self.eps * scale)
        else:
            delta = (point - centre) / scale
            norm = tf.sqrt(_reduce(tf.reduce_sum, delta**2))
            shrink = tf.math.divide_no_nan(_constant(self.eps, norm), norm)
            point = centre + scale * delta * tf.where(norm > self.eps, shrink, tf.ones_like(norm))
        if np.isinf(self.low).all() and np.isinf(self.high).all():
            return point
        return tf.clip_by_value(point, _constant(self.low, point), _constant(self.high, point))

    def random_point(self, x: Any, index: Any, seed: int, restart: Any) -> Any:
        """A uniformly random point of the ball around each x, then into the box.

        It depends on (seed, restart, the example's `index`, int32 [n]) only, so not on the batch.
        """
        tf = backend.tensorflow()
        dimension = int(np.prod(x.shape[1:]))
        keys = tf.random.experimental.stateless_fold_in(tf.constant([seed, 0]), restart)
        signature = tf.TensorSpec((dimension + 1,), tf.float32)
        draw = tf.random.stateless_uniform if self.ord == "inf" else tf.random.stateless_normal

        def one(i: Any) -> Any:
            key = tf.random.experimental.stateless_fold_in(keys, i)
            radius = tf.random.stateless_uniform((1,), tf.random.experimental.stateless_fold_in(key, 1))
            return tf.concat([radius, draw((dimension,), key)], axis=0)

        drawn = tf.map_fn(one, index, fn_output_signature=signature)
        radius, values = tf.cast(drawn[:, :1], x.dtype), tf.cast(drawn[:, 1:], x.dtype)
        if self.ord == "inf":
            delta = 2.0 * values - 1.0
        else:
            delta = values / tf.norm(values, axis=1, keepdims=True) * radius ** (1 / dimension)
        delta = tf.reshape(delta, tf.shape(x)) * self.eps * _constant(self.scale, x)
        return self.project(x + delta, x)

    def excess(self, point: NDArray[np.float32], centre: NDArray[np.float32]) -> NDArray[np.float64]:
        """How far each point lies outside, float64 [n]: the ball (units of scale) or box (pixels)."""
        delta = (point.astype(np.float64) - centre) / self.scale
        axes = tuple(range(1, delta.ndim))
        norm = np.abs(delta).max(axes) if self.ord == "inf" else np.sqrt((delta**2).sum(axes))
        box = np.maximum(self.low - point.astype(np.float64), point - self.high).max(axes)
        return np.maximum(norm - self.eps, box)  # type: ignore[no-any-return]

    def project_array(self, point: NDArray[np.float32], centre: NDArray[np.float32]) -> NDArray[np.float32]:
        """`project` for arrays, in NumPy and float64, rounded to float32 at the end."""
        delta = (point.astype(np.float64) - centre) / self.scale
        if self.ord == "inf":
            delta = np.clip(delta, -self.eps, self.eps)
        else:
            norm = np.sqrt((delta**2).sum(tuple(range(1, delta.ndim)), keepdims=True))
            delta *= np.minimum(1.0, self.eps / np.maximum(norm, np.finfo(np.float64).tiny))
        return np.clip(centre + delta * self.scale, self.low, self.high).astype(np.float32)


def from_config(attack: Attack, facts: Facts) -> Ball:
    """The ball of an attack's config on a data set (its std gives the scale of standardized units)."""
    low, high = units.bounds(attack.box, facts)
    return Ball(attack.ord, attack.eps, units.channel_scale(attack.unit, facts), low, high)


def _constant(value: Channels | float, like: Any) -> Any:
    """A tensor of the dtype of `like`, without the detour over float32 that tf.cast takes with Python floats."""
    return backend.tensorflow().constant(np.asarray(value, like.dtype.as_numpy_dtype))


def _reduce(reduction: Any, x: Any) -> Any:
    """Reduce over all axes but the first, keeping them."""
    return reduction(x, axis=list(range(1, len(x.shape))), keepdims=True)

"""Small models in float64 with known worst cases, and the distances that attacks are measured by."""

from dataclasses import dataclass

import numpy as np

from bn_vuln import backend

tf = backend.tensorflow()
keras = tf.keras


@dataclass(frozen=True)
class BinaryLinear:
    """Logits (0, w . x + b): the worst case in a ball is known exactly."""

    w: np.ndarray
    b: float

    def predict(self, x):
        w = tf.constant(self.w, x.dtype)
        value = tf.reduce_sum(w * x, axis=[1, 2, 3]) + tf.constant(self.b, x.dtype)
        return tf.stack([tf.zeros_like(value), value], axis=1)

    def sign(self, y):
        """+1 for class 1, -1 for class 0, to multiply images with."""
        return np.where(np.asarray(y) == 1, 1.0, -1.0).reshape(-1, 1, 1, 1)

    def margin(self, x, y):
        """Positive where x is classified as y."""
        return self.sign(y).ravel() * (np.sum(self.w * x, axis=(1, 2, 3)) + self.b)

    def worst_inf(self, x, y, eps, scale=1.0):
        return x - self.sign(y) * eps * scale * np.sign(self.w)

    def worst_2(self, x, y, eps, scale=1.0):
        scaled = scale * self.w
        return x - self.sign(y) * eps * scale * scaled / np.sqrt(np.sum(scaled**2))


def binary_linear(shape=(4, 4, 2), seed=0):
    generator = np.random.default_rng(seed)
    w = generator.normal(size=shape)
    return BinaryLinear(w, -0.5 * float(w.sum()))


def wavy(shape=(4, 4, 2), classes=3, seed=0, frequency=4.0):
    """A predict function whose logits oscillate, so that paths and random starts matter."""
    generator = np.random.default_rng(seed)
    inner = generator.normal(size=(int(np.prod(shape)), 16))
    outer = generator.normal(size=(16, classes))

    def predict(x):
        flat = tf.reshape(x, (-1, inner.shape[0]))
        hidden = tf.sin(frequency * tf.matmul(flat, tf.constant(inner, x.dtype)))
        return tf.matmul(hidden, tf.constant(outer, x.dtype))

    return predict


def images(n=20, shape=(4, 4, 2), seed=1, low=0.0, high=1.0):
    return np.random.default_rng(seed).uniform(low, high, size=(n, *shape))


def norm(delta, order):
    """Norms [n] of perturbations [n, h, w, c]."""
    flat = np.asarray(delta).reshape(len(delta), -1)
    return np.abs(flat).max(axis=1) if order == "inf" else np.sqrt((flat**2).sum(axis=1))


def cross_entropy(logits, y):
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(y)), y]

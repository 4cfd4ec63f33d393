"""Small models in float64 with known worst cases, and the distances that attacks are measured by."""

from dataclasses import dataclass

import numpy as np

from bn_vuln.analysis import metrics
from bn_vuln.attacks import active_set
from bn_vuln.attacks.active_set import EpsGrid, EveryAttempt
from bn_vuln.attacks.carlini_wagner import CarliniWagner, move_towards
from bn_vuln.attacks.pgd import PGD
from bn_vuln.attacks.threat_model import ThreatModel
from bn_vuln.runtime import backend

tf = backend.tensorflow()
keras = tf.keras
SEVERAL_STEPS_A_CALL = backend.ExecutionPolicy(xla=False, steps_per_call=8, fused_batch_norm=False)


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


def wave_classifier(info, stddev, *, normalized=False):
    """An untrained net of sines, with BN behind them or without."""
    from bn_vuln.evaluation.classifier import from_model

    keras.utils.set_random_seed(0)
    inputs = keras.Input((28, 28, 1))
    first = keras.initializers.RandomNormal(stddev=stddev, seed=1)
    hidden = keras.layers.Dense(24, activation=keras.ops.sin, kernel_initializer=first)(keras.layers.Flatten()(inputs))
    if normalized:
        hidden = keras.layers.BatchNormalization()(hidden)
    outputs = keras.layers.Dense(10, kernel_initializer=keras.initializers.RandomNormal(seed=2, stddev=1.0))(hidden)
    return from_model(keras.Model(inputs, outputs), info, {"weights": "wave"})


def half_broken(case, shape=(2, 2, 1)):
    """(predict, image of class 0) of a model with numerical faults.

    The second half of the pixels can make the image adversarial within .5. The gradient of the first half is NaN or
    infinite at the image, or the logits are NaN behind the boundary.
    """
    image = np.concatenate([np.zeros(2), np.full(2, 0.5)]).reshape(1, *shape)

    def predict(x):
        first, second = (tf.reduce_sum(part, axis=[1, 2, 3]) for part in (x[:, :1], x[:, 1:]))
        odd = {
            "nan gradient": lambda: tf.sqrt(tf.reduce_sum(x[:, :1] ** 2, axis=[1, 2, 3])) * 1e-3,
            "infinite gradient": lambda: tf.sqrt(tf.abs(first)) * 1e-6,
            "nan logits": lambda: tf.where(second > 1.2, tf.constant(np.nan, x.dtype), 0.0 * first),
        }[case]()
        other = (second - (1.1 if case != "nan logits" else 9.0)) + odd
        return tf.stack([tf.zeros_like(other), other], axis=1)

    return predict, image


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


def run_pgd(
    predict, x, y, *, threat_model, steps, step_size, random_start=False, restarts=1, targeted=False, keep="last",
    seed=0, index=None, batch_size=500, policy=backend.ONE_STEP_A_CALL, top=1,
):  # fmt: skip
    """Adversarial images by the engine: all steps of every example; y are targets of a targeted attack."""
    attack = PGD(predict, threat_model, steps, step_size, random_start, targeted, seed, top)
    compiled = active_set.CompiledAttack(attack, keep=keep, scored=restarts > 1, policy=policy)
    x, y, search = np.asarray(x), np.asarray(y), EveryAttempt(threat_model.eps, restarts)
    found = active_set.run(compiled, x, y, search, targets=y[:, None], index=index, batch_size=batch_size)
    return found.points


def bim(predict, x, y, **options):
    return run_pgd(predict, x, y, **options)


def pgd(predict, x, y, **options):
    return run_pgd(predict, x, y, **{"random_start": True, **options})


def fgsm(predict, x, y, *, threat_model):
    return run_pgd(predict, x, y, threat_model=threat_model, steps=1, step_size=threat_model.eps)


def plain_pgd(predict, x, y, *, threat_model, steps, step_size, starts):
    """PGD as its paper has it, one NumPy loop a start; of all points an adversarial one, then the highest loss."""
    best, best_rank = x.copy(), [(False, -np.inf)] * len(x)
    for start in starts:
        point = np.asarray(start)
        for i in range(steps + 1):
            z = tf.constant(point)
            with tf.GradientTape() as tape:
                tape.watch(z)
                logits = predict(z)
                loss = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
            wrong = logits.numpy().argmax(axis=1) != y
            for k, rank in enumerate(zip(wrong.tolist(), loss.numpy().tolist(), strict=True)):
                if rank > best_rank[k]:
                    best[k], best_rank[k] = point[k], rank
            if i == steps:
                break
            slope = threat_model.scale * tape.gradient(loss, z).numpy()
            length = np.sqrt((slope**2).sum(axis=(1, 2, 3), keepdims=True))
            direction = np.sign(slope) if threat_model.ord == "inf" else slope / length
            point = threat_model.project_array(point + step_size * threat_model.scale * direction, x).astype(x.dtype)
    return best


def run_carlini_wagner(
    predict, x, y, *, scale=1.0, low=-np.inf, high=np.inf, confidence=0.0, steps=1000, step_size=0.01,
    binary_search_steps=9, initial_const=1e-3, targeted=False, abort_early=True, batch_size=500,
    policy=SEVERAL_STEPS_A_CALL, on_progress=None,
):  # fmt: skip
    """(points, found) of arrays, as evaluations have them before the final projection; y may be targets."""
    search = CarliniWagner(predict, ThreatModel("2", np.inf, scale, low, high), steps, step_size, binary_search_steps,
                           initial_const, confidence, targeted, abort_early)  # fmt: skip

    def logits(images):
        return predict(tf.constant(images))

    already = metrics.is_correct(logits(x).numpy(), y) == targeted
    found = active_set.run(
        active_set.CompiledAttack(search, keep="best_loss", policy=policy),
        x,
        y,
        EpsGrid([1.0], upper_eps=np.where(already, 0.0, np.inf)),
        targets=y[:, None] if targeted else None,
        batch_size=batch_size,
        on_progress=on_progress,
    )
    points, moved = found.points, found.is_adversarial
    if moved.any():
        inside = np.clip(x[moved], low, high).astype(x.dtype)
        nearer = move_towards(
            inside, points[moved], lambda z: search.succeeds(logits(z), tf.constant(y[moved])).numpy()
        )
        points[moved] = np.clip(nearer, low, high)
    return points, found.is_adversarial | already

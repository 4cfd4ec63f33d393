"""FMN comes past the nearest wrong point of linear models, follows algorithm 1, and succeeds within its budget."""

import math
from typing import NamedTuple

import numpy as np
import pytest
from helpers_attacks import binary_linear, images, norm, tf, wavy

from bn_vuln.attacks import active_set
from bn_vuln.attacks.active_set import EpsGrid
from bn_vuln.attacks.bisection import Bisection
from bn_vuln.attacks.fast_minimum_norm import FMN
from bn_vuln.attacks.losses import logit_margin
from bn_vuln.attacks.pgd import PGD
from bn_vuln.attacks.threat_model import ThreatModel
from bn_vuln.runtime import backend
from bn_vuln.runtime.backend import ExecutionPolicy

N = 40
DUAL = {"inf": 1, "2": 2}
SCALE, LOW, HIGH = np.array([0.25, 1.5]), 0.1, 0.9


@pytest.fixture(scope="module")
def x():
    return images(N, low=LOW, high=HIGH)


@pytest.fixture(scope="module")
def predict():
    return wavy()


@pytest.fixture(scope="module")
def y(predict, x):
    """The predictions, but for every tenth example, which is misclassified."""
    labels = predicted(predict, x)
    labels[::10] = (labels[::10] + 1) % 3
    return labels


def predicted(predict, points):
    return predict(tf.constant(points)).numpy().argmax(axis=1).astype(np.int32)


class Nearest(NamedTuple):
    """The nearest adversarial points [n, ...] that a search comes past, x where there is none, and their distances."""

    points: np.ndarray
    distance: np.ndarray


def nearest(predict, threat_model, x, y, steps=100):
    """Take all steps, without an engine and without a budget."""
    search, numbers = FMN(predict, threat_model, steps), tf.range(len(x))
    infinite = tf.fill([len(x)], tf.constant(np.inf, x.dtype))
    job = {"x": tf.constant(x), "y": tf.constant(y), "eps": infinite, "index": numbers, "attempt": 0 * numbers}
    advance = backend.compile(lambda state, i: search.advance({**job, **state, "i": i + 0 * numbers}).state)
    state, points = search.start(job), x.copy()
    for i in range(steps):
        following = advance(state, tf.constant(i))
        nearer = following["nearest"].numpy() < state["nearest"].numpy()
        points[nearer] = state["point"].numpy()[nearer]
        state = following
    return Nearest(points, state["nearest"].numpy())


def distances(threat_model, x, points):
    return norm((points - x) / threat_model.scale, threat_model.ord)


# ---------------------------------------------------------------- linear models


@pytest.mark.parametrize(("ord", "scale"), [("inf", 1.0), ("2", SCALE)], ids=["inf", "2-channels"])
def test_it_finds_the_distance_to_the_boundary_of_a_linear_model(x, ord, scale):
    model, threat_model = binary_linear(), ThreatModel(ord, 1.0, scale)
    y = predicted(model.predict, x)
    found = nearest(model.predict, threat_model, x, y)
    exact = model.margin(x, y) / np.linalg.norm((scale * model.w).ravel(), DUAL[ord])
    np.testing.assert_allclose(found.distance, distances(threat_model, x, found.points))
    assert (predicted(model.predict, found.points) != y).all()
    assert (found.distance >= exact).all()
    assert (found.distance < 1.05 * exact).all()


def test_it_finds_the_distance_within_the_box(x):
    """In inf the nearest wrong point of a linear model moves every pixel by the same, as far as the box allows."""
    model = binary_linear()
    y, threat_model = predicted(model.predict, x), ThreatModel("inf", 1.0, 1.0, LOW, HIGH)
    found = nearest(model.predict, threat_model, x, y)
    low, high = np.zeros(N), np.ones(N)
    for _ in range(50):
        middle = (low + high) / 2
        worst = np.clip(model.worst_inf(x, y, middle.reshape(-1, 1, 1, 1)), LOW, HIGH)
        low, high = np.where([model.margin(worst, y) > 0, model.margin(worst, y) <= 0], middle, [low, high])
    assert (found.distance < 1.05 * high).all()
    assert (found.distance >= low).all()
    assert ((found.points >= LOW) & (found.points <= HIGH)).all()
    assert ((found.points == LOW) | (found.points == HIGH)).any()


# ---------------------------------------------------------------- the published algorithm, one example at a time


class Published:
    """One example: `point` is to be evaluated; `see` its logits, the difference of them, the highest of the others less
    that of the label, and its gradient, and there is another point."""

    def __init__(self, threat_model, x, steps):
        self.threat_model, self.x, self.steps, self.delta, self.eps = threat_model, x, steps, np.zeros_like(x), np.inf
        self.best, self.best_norm, self.i = None, np.inf, 0

    @property
    def point(self):
        return self.x + self.delta * self.threat_model.scale

    def norm(self, values, order):
        return np.linalg.norm(values.ravel(), {"inf": np.inf, "2": 2, "1": 1}[order])

    def see(self, logits, loss, input_gradient):
        input_gradient = input_gradient * self.threat_model.scale
        share = (1 + math.cos(math.pi * self.i / self.steps)) / 2
        alpha, gamma = 0.01 + 0.99 * share, 0.001 + 0.049 * share
        length = self.norm(self.delta, self.threat_model.ord)
        if loss > 1e-5 * np.abs(logits).max():  # published is 0
            if length < (1 - 1e-5) * self.best_norm:  # published: any shorter one
                self.best, self.best_norm = self.point, length
            self.eps = min(self.eps * (1 - gamma), self.best_norm)
        elif self.best is not None:
            self.eps *= 1 + gamma
        else:
            needed = length + abs(loss) / self.norm(input_gradient, {"inf": "1", "2": "2"}[self.threat_model.ord])
            self.eps = needed * 1.05 ** (self.i + 1)  # published without the factor
        self.delta = self.delta + alpha * input_gradient / self.norm(input_gradient, "2")
        if self.threat_model.ord == "inf":
            self.delta = np.clip(self.delta, -self.eps, self.eps)
        else:
            self.delta = self.delta * min(1, self.eps / self.norm(self.delta, "2"))
        self.delta = (np.clip(self.point, LOW, HIGH) - self.x) / self.threat_model.scale
        self.i += 1


@pytest.mark.parametrize("ord", ["inf", "2"])
def test_it_finds_the_point_of_the_published_algorithm(predict, x, y, ord):
    steps, threat_model = 60, ThreatModel(ord, 1.0, SCALE, LOW, HIGH)
    examples = [Published(threat_model, one, steps) for one in x]
    for _ in range(steps):
        with tf.GradientTape() as tape:
            points = tf.constant([one.point for one in examples])
            tape.watch(points)
            logits = predict(points)
            loss = logit_margin(logits, y)
        seen = (logits.numpy(), loss.numpy(), tape.gradient(loss, points).numpy())
        for one, *of in zip(examples, *seen, strict=True):
            one.see(*of)
    found = nearest(predict, threat_model, x, y, steps)
    assert np.isfinite(found.distance).all()
    np.testing.assert_allclose(found.points, [one.best for one in examples], rtol=0, atol=1e-9)
    assert (found.points[::10] == x[::10]).all()  # misclassified as they are


# ---------------------------------------------------------------- with a budget, and with the active set


@pytest.mark.parametrize("ord", ["inf", "2"])
def test_with_a_budget_it_reports_points_within_eps(predict, x, y, ord):
    threat_model = ThreatModel(ord, 1.0, SCALE, LOW, HIGH)
    distance = nearest(predict, threat_model, x, y).distance
    eps = float(np.median(distance))
    found = active_set.run(FMN(predict, threat_model), x, y, EpsGrid([eps]), batch_size=16)
    np.testing.assert_array_equal(found.is_adversarial, distance <= eps)
    assert (predicted(predict, found.points) != y)[found.is_adversarial].all()
    # Points outside of the ball are not kept, even where no other is known.
    assert threat_model.with_eps(np.full(N, eps)).violation(found.points, x).max() < 1e-12
    assert np.isfinite(found.loss).all()
    assert found.n_evaluations[found.is_adversarial].max() < 101
    assert (found.n_evaluations[::10] == 1).all()


def test_it_needs_less_than_pgd_with_a_bisection(predict, x, y):
    threat_model = ThreatModel("2", 1.0, 1.0, LOW, HIGH)
    distance = nearest(predict, threat_model, x, y).distance
    pgd = active_set.run(PGD(predict, threat_model, 40, 0.1, random_start=False), x, y, Bisection(0.1, 1e-3))
    assert pgd.is_adversarial.mean() > 0.8
    assert np.mean(distance <= pgd.eps) > 0.8


def test_a_corner_of_the_box_does_not_stop_it(predict):
    """Here the radius that a linear classifier would need led nowhere."""
    x = images(200)
    y = predicted(predict, x)
    assert np.isfinite(nearest(predict, ThreatModel("2", 1.0, 1.0, 0.0, 1.0), x, y).distance).all()


def test_logits_that_are_all_the_same_have_no_direction(x):
    def constant(points):
        return tf.tile(0.0 * tf.reduce_sum(points, axis=[1, 2, 3])[:, None], [1, 3])

    found = active_set.run(FMN(constant, ThreatModel("2", 1.0)), x, np.zeros(N, np.int32), EpsGrid([1.0]))
    assert not found.is_adversarial.any()
    np.testing.assert_array_equal(found.points, x)


@pytest.mark.slow
@pytest.mark.parametrize("ord", ["inf", "2"])
def test_xla_and_who_shares_the_batch_change_nothing(predict, x, y, ord):
    threat_model, order = ThreatModel(ord, 1.0, SCALE, LOW, HIGH), np.random.default_rng(0).permutation(N)
    search, plan = FMN(predict, threat_model, 50), EpsGrid([0.006 if ord == "inf" else 0.02])
    whole = active_set.run(search, x, y, plan, batch_size=16)
    assert 0.1 < whole.is_adversarial.mean() < 0.9
    mixed = active_set.run(search, x[order], y[order], plan, index=order, batch_size=7)
    xla = active_set.CompiledAttack(search, policy=ExecutionPolicy(xla=True, steps_per_call=1, fused_batch_norm=False))
    compiled = active_set.run(xla, x[order], y[order], plan, batch_size=N)
    for found in (mixed, compiled):
        np.testing.assert_array_equal(found.is_adversarial, whole.is_adversarial[order])
        np.testing.assert_array_equal(found.n_evaluations, whole.n_evaluations[order])
        np.testing.assert_allclose(found.points, whole.points[order], atol=1e-9)


def test_in_float32_success_does_not_depend_on_the_order_of_summation(x):
    """The point is near to the boundary, but not so near that it lies there for one order of summation alone."""
    model = binary_linear()
    single = x.astype(np.float32)
    y = predicted(model.predict, single)
    found = nearest(model.predict, ThreatModel("2", 1.0, 1.0, LOW, HIGH), single, y)
    assert found.points.dtype == np.float32
    assert (model.margin(found.points.astype(np.float64), y) < 0).all()

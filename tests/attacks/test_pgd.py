"""Attacks against exact oracles: closed forms on linear models, constructed paths, and every setting has effect."""

import dataclasses
import itertools

import numpy as np
import pytest
from helpers_attacks import (
    bim,
    binary_linear,
    cross_entropy,
    fgsm,
    half_broken,
    images,
    norm,
    pgd,
    run_pgd,
    tf,
    wave_classifier,
    wavy,
)
from scipy import stats

from bn_vuln import attacks
from bn_vuln.attacks import ThreatModel
from bn_vuln.attacks.pgd import PGD
from bn_vuln.config import Attack, Evaluation
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.mnist import INFO as MNIST
from bn_vuln.evaluation.evaluator import Evaluator
from bn_vuln.runtime import backend

SCALE = np.array([0.25, 1.5])
TWO_CHANNELS = DatasetInfo("two", (4, 4, 2), ("a", "b"), mean=(0.4, 0.6), std=(0.25, 1.5), sizes={})
ATTACKS = {"fgsm": fgsm, "bim": bim, "pgd": pgd}
SPHERE = {"steps": 40, "step_size": 0.6}  # twice eps: the angle to the pole shrinks threefold in each step


@pytest.fixture(scope="module")
def model():
    return binary_linear()


@pytest.fixture(scope="module")
def x():
    return images(24)


@pytest.fixture(scope="module")
def y():
    return np.tile([0, 1], 12).astype(np.int32)


def close(found, expected, tolerance=1e-6):
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=tolerance)


# ---------------------------------------------------------------- closed forms on linear models


@pytest.mark.parametrize(("name", "scale"), [("fgsm", 1.0), ("bim", SCALE), ("pgd", SCALE)], ids=["fgsm", "bim", "pgd"])
def test_inf_attacks_reach_the_closed_form(model, x, y, name, scale):
    threat_model = ThreatModel("inf", 0.1, scale)
    options = {} if name == "fgsm" else {"steps": 20, "step_size": 0.02}
    found = ATTACKS[name](model.predict, tf.constant(x), y, threat_model=threat_model, **options)
    close(found, model.worst_inf(x, y, 0.1, scale))


def test_inf_attacks_reach_the_clipped_closed_form_in_a_box(model, x, y):
    threat_model = ThreatModel("inf", 0.3, SCALE, low=0.0, high=1.0)
    unclipped = model.worst_inf(x, y, 0.3, SCALE)
    assert (unclipped < 0).any()
    assert (unclipped > 1).any()
    found = pgd(model.predict, tf.constant(x), y, threat_model=threat_model, steps=20, step_size=0.05)
    close(found, np.clip(unclipped, 0, 1))


@pytest.mark.parametrize(
    ("name", "options", "scale"),
    [("fgsm", {}, 1.0), ("bim", {"steps": 4, "step_size": 0.1}, SCALE), ("pgd", SPHERE, SCALE)],
    ids=["fgsm", "bim", "pgd"],
)
def test_2_attacks_reach_the_closed_form(model, x, y, name, options, scale):
    threat_model = ThreatModel("2", 0.3, scale, low=-9.0, high=9.0)
    found = ATTACKS[name](model.predict, tf.constant(x), y, threat_model=threat_model, **options)
    close(found, model.worst_2(x, y, 0.3, scale))


@pytest.mark.parametrize(("order", "dual"), [("inf", 1), ("2", 2)])
def test_accuracy_is_the_share_of_margins_above_eps_times_the_dual_norm(model, x, y, order, dual):
    dual_norm = np.linalg.norm((SCALE * model.w).ravel(), dual)
    margins = model.margin(x, y)
    eps = float(np.median(margins[margins > 0]) / dual_norm)
    found = np.asarray(
        pgd(model.predict, tf.constant(x), y, threat_model=ThreatModel(order, eps, SCALE), steps=40, step_size=2 * eps)
    )
    expected = margins > eps * dual_norm
    assert 0 < expected.sum() < (margins > 0).sum()
    np.testing.assert_array_equal(model.predict(tf.constant(found)).numpy().argmax(axis=1) == y, expected)


@pytest.mark.parametrize("order", ["inf", "2"])
def test_one_step_on_a_linear_model_of_many_classes_follows_its_gradient(order):
    generator = np.random.default_rng(3)
    kernel, x, y = generator.normal(size=(32, 5)), images(8), np.arange(8, dtype=np.int32) % 5
    logits = x.reshape(8, -1) @ kernel
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    slope = ((softmax - np.eye(5)[y]) @ kernel.T).reshape(x.shape)
    scaled = SCALE * slope
    direction = np.sign(slope) if order == "inf" else scaled / norm(scaled, "2").reshape(-1, 1, 1, 1)

    def predict(t):
        return tf.matmul(tf.reshape(t, (-1, 32)), tf.constant(kernel))

    close(fgsm(predict, tf.constant(x), y, threat_model=ThreatModel(order, 0.2, SCALE)), x + 0.2 * SCALE * direction)


def from_attack_config(predict, options, x, y):
    threat_model = attacks.from_config(options, TWO_CHANNELS)
    return bim(predict, x, y, threat_model=threat_model, steps=options.steps, step_size=options.step_size)


@pytest.mark.parametrize("order", ["inf", "2"])
def test_config_in_standardized_units_is_the_closed_form_with_the_std_as_scale(model, x, y, order):
    options = Attack(attack="bim", ord=order, eps=0.2, unit="standardized", box="none", steps=5, step_size=0.1)
    found = from_attack_config(model.predict, options, x, y)
    worst = model.worst_inf if order == "inf" else model.worst_2
    close(found, worst(x, y, 0.2, SCALE))


def test_config_with_a_standardized_box_clips_to_it_in_every_channel(model, x, y):
    options = Attack(attack="fgsm", eps=0.3, unit="standardized", box={"standardized": (-1.2, 0.2)})
    low, high = (np.array([0.4, 0.6]) + bound * SCALE for bound in (-1.2, 0.2))
    unclipped = model.worst_inf(x, y, 0.3, SCALE)
    assert (unclipped > high).any(axis=(0, 1, 2)).all()
    assert (unclipped < low).any()
    found = from_attack_config(model.predict, options, x, y)
    close(found, np.clip(unclipped, low, high))


@pytest.mark.parametrize(("dtype", "size"), [("float32", 1e-30), ("float64", 1e-200)])
def test_tiny_gradients_still_make_a_full_step(model, x, y, dtype, size):
    def predict(t):
        return model.predict(t) * tf.constant(size, t.dtype)

    start = tf.constant(x, dtype)
    found = fgsm(predict, start, y, threat_model=ThreatModel("2", 0.3))
    close(norm(found.astype(np.float64) - x, "2"), 0.3)
    close(found, model.worst_2(x, y, 0.3))


@pytest.mark.parametrize("order", ["inf", "2"])
def test_zero_gradients_do_not_move(x, y, order):
    found = bim(lambda t: tf.zeros((len(x), 2), t.dtype) * t[:, :1, 0, 0], tf.constant(x), y,
                threat_model=ThreatModel(order, 0.3), steps=3, step_size=0.1)  # fmt: skip
    np.testing.assert_array_equal(found, x)


def test_targeted_attack_moves_towards_its_target(model, x, y):
    target = (1 - y).astype(np.int32)
    found = bim(
        model.predict,
        tf.constant(x),
        target,
        threat_model=ThreatModel("inf", 0.1),
        steps=5,
        step_size=0.05,
        targeted=True,
    )
    close(found, model.worst_inf(x, y, 0.1))


def test_targeted_attack_on_many_classes_lowers_the_loss_of_its_target(x):
    predict = wavy(classes=5, frequency=0.3)
    clean = predict(tf.constant(x)).numpy()
    target = clean.argmin(axis=1).astype(np.int32)
    found = bim(
        predict, tf.constant(x), target, threat_model=ThreatModel("2", 1.0), steps=10, step_size=0.2, targeted=True
    )
    logits = predict(tf.constant(found)).numpy()
    assert (cross_entropy(logits, target) < cross_entropy(clean, target)).all()
    assert (logits.argmax(axis=1) == target).any()


# ---------------------------------------------------------------- the eps ball


THREAT_MODELS = [
    ThreatModel("inf", 0.2, SCALE, low=0.0, high=1.0),
    ThreatModel("2", 0.7, SCALE, low=np.array([0.1, -0.2]), high=np.array([0.9, 1.1])),
]


@pytest.fixture(scope="module")
def far(x):
    return x + np.random.default_rng(5).normal(scale=0.8, size=x.shape)


@pytest.mark.parametrize("threat_model", THREAT_MODELS, ids=["inf", "2"])
def test_projection_is_idempotent_and_inside(threat_model, x, far):
    centre = np.clip(x, threat_model.low, threat_model.high)
    once = threat_model.project(tf.constant(far), tf.constant(centre)).numpy()
    close(threat_model.project(tf.constant(once), tf.constant(centre)), once, 1e-14)
    assert (norm((once - centre) / threat_model.scale, threat_model.ord) <= threat_model.eps + 1e-14).all()
    assert ((once >= threat_model.low) & (once <= threat_model.high)).all()


@pytest.mark.parametrize("threat_model", THREAT_MODELS, ids=["inf", "2"])
def test_projection_leaves_points_inside_alone(threat_model, x):
    centre = np.clip(x, 0.15, 0.85)
    near = centre + 0.04 * np.random.default_rng(6).uniform(-1, 1, x.shape) * threat_model.scale
    close(threat_model.project(tf.constant(near), tf.constant(centre)), near, 1e-15)


def test_2_projection_shortens_the_perturbation_without_turning_it(x, far):
    delta = (far - x) / SCALE
    far, delta = x + 3 * (far - x), 3 * delta
    expected = x + SCALE * delta * 0.7 / norm(delta, "2").reshape(-1, 1, 1, 1)
    assert (norm(delta, "2") > 0.7).all()
    close(ThreatModel("2", 0.7, SCALE).project(tf.constant(far), tf.constant(x)), expected, 1e-12)


@pytest.mark.parametrize("order", ["inf", "2"])
def test_the_box_comes_after_the_ball(order, x):
    centre = x + 3.0
    threat_model = ThreatModel(order, 0.1, low=0.0, high=1.0)
    np.testing.assert_array_equal(threat_model.project(tf.constant(centre), tf.constant(centre)), np.ones_like(x))


@pytest.mark.parametrize("threat_model", THREAT_MODELS, ids=["inf", "2"])
def test_project_array_agrees_with_project(threat_model, x, far):
    centre, point = x.astype(np.float32), far.astype(np.float32)
    found = threat_model.project_array(point, centre)
    assert found.dtype == np.float32
    close(found, threat_model.project(tf.constant(point), tf.constant(centre)).numpy(), 1e-6)


@pytest.mark.parametrize("threat_model", THREAT_MODELS, ids=["inf", "2"])
def test_violation_is_removed_by_projection(threat_model, x, far):
    centre = np.clip(x, threat_model.low, threat_model.high)
    outside = threat_model.violation(far, centre)
    in_ball = norm((far - centre) / threat_model.scale, threat_model.ord) - threat_model.eps
    out_of_box = np.maximum(far - threat_model.high, threat_model.low - far).max(axis=(1, 2, 3))
    close(outside, np.maximum(in_ball, out_of_box), 1e-12)
    assert (outside > 0).all()
    assert (
        threat_model.violation(threat_model.project(tf.constant(far), tf.constant(centre)).numpy(), centre) <= 1e-12
    ).all()


def test_violation_of_the_box_alone():
    centre = np.full((1, 2, 2, 1), 0.95)
    threat_model = ThreatModel("inf", 0.2, low=0.0, high=1.0)
    close(threat_model.violation(centre + 0.1, centre), [0.05], 1e-12)


# ---------------------------------------------------------------- random starts


@pytest.mark.parametrize("threat_model", THREAT_MODELS, ids=["inf", "2"])
def test_random_points_lie_inside_and_fill_the_ball(threat_model, x):
    centre = np.clip(x, threat_model.low, threat_model.high)
    point = threat_model.random_point(tf.constant(centre), tf.range(len(x)), 0, 0).numpy()
    assert (threat_model.violation(point, centre) <= 1e-12).all()
    assert (norm((point - centre) / threat_model.scale, threat_model.ord) > 0.5 * threat_model.eps).all()


@pytest.mark.parametrize("order", ["inf", "2"])
def test_a_random_point_does_not_depend_on_the_batch(order, x):
    threat_model = ThreatModel(order, 0.3)
    whole = threat_model.random_point(tf.constant(x), tf.range(len(x)), 7, 1).numpy()
    positions = np.array([11, 3, 17])
    alone = threat_model.random_point(tf.constant(x[positions]), tf.constant(positions, tf.int32), 7, 1).numpy()
    np.testing.assert_array_equal(alone, whole[positions])


@pytest.mark.parametrize("order", ["inf", "2"])
def test_random_points_stretch_with_the_scale(order, x):
    plain, scaled = (
        ThreatModel(order, 0.3, s).random_point(tf.constant(x), tf.range(24), 0, 0).numpy() for s in (1.0, SCALE)
    )
    close(scaled - x, SCALE * (plain - x), 1e-12)


@pytest.mark.parametrize("order", ["inf", "2"])
def test_random_points_of_all_seeds_restarts_and_examples_differ(order):
    threat_model, centre = ThreatModel(order, 0.3), tf.zeros((4, 2, 2, 1), tf.float64)
    points = np.concatenate(
        [
            threat_model.random_point(centre, tf.range(4), seed, restart).numpy()
            for seed in (0, 1, 2)
            for restart in (0, 1, 2)
        ]
    ).reshape(36, -1)
    distance = np.abs(points[:, None] - points[None]).max(axis=2) + np.eye(36)
    assert distance.min() > 1e-3


@pytest.fixture(scope="module")
def many():
    """1500 random points [1500, 4] of each unit ball around 0."""
    centre = tf.zeros((1500, 2, 2, 1), tf.float32)

    def draw(order):
        threat_model = ThreatModel(order, 1.0)
        return backend.compile(lambda c, i: threat_model.random_point(c, i, 3, 0))(centre, tf.range(1500)).numpy()

    return {order: draw(order).reshape(1500, 4).astype(np.float64) for order in ("inf", "2")}


def test_coordinates_of_inf_random_points_are_uniform_and_independent(many):
    for column in many["inf"].T:
        assert stats.kstest(column, stats.uniform(-1, 2).cdf).pvalue > 0.01
    assert np.abs(np.corrcoef(many["inf"].T) - np.eye(4)).max() < 0.1


def test_radii_of_2_random_points_are_those_of_a_uniform_ball(many):
    radius = np.linalg.norm(many["2"], axis=1)
    assert stats.kstest(radius**4, "uniform").pvalue > 0.01


def test_directions_of_2_random_points_are_uniform_whatever_the_radius(many):
    radius = np.linalg.norm(many["2"], axis=1)
    direction = many["2"] / radius[:, None]
    assert np.linalg.norm(direction.mean(axis=0)) < 0.1
    np.testing.assert_allclose(np.cov(direction.T), np.eye(4) / 4, atol=0.03)
    assert np.abs(np.corrcoef(radius, direction.T)[0, 1:]).max() < 0.1


# ---------------------------------------------------------------- restarts and the best iterate


def rank(predict, points, y):
    """(success, loss), by which restarts are compared."""
    logits = predict(tf.constant(points)).numpy()
    return logits.argmax(axis=1) != y, cross_entropy(logits, y)


def predicted(predict, x):
    return predict(tf.constant(x)).numpy().argmax(axis=1).astype(np.int32)


def test_restarts_keep_the_worst_of_their_starts(x):
    predict, threat_model = wavy(frequency=1.0), ThreatModel("inf", 0.2)
    y = predicted(predict, x)
    found = pgd(predict, tf.constant(x), y, threat_model=threat_model, steps=1, step_size=0.0, restarts=4, seed=2)
    starts = np.stack([threat_model.random_point(tf.constant(x), tf.range(len(x)), 2, r).numpy() for r in range(4)])
    is_adversarial, loss = (np.stack(part) for part in zip(*(rank(predict, start, y) for start in starts), strict=True))
    assert len(set(map(tuple, is_adversarial.T))) > 2
    choice = np.array([max(range(4), key=lambda r, i=i: (is_adversarial[r, i], loss[r, i])) for i in range(len(x))])
    assert len(set(choice)) == 4
    close(found, starts[choice, np.arange(len(x))], 1e-12)


@pytest.mark.parametrize("keep", ["last", "best_loss"])
def test_more_restarts_are_never_worse_for_any_example(x, keep):
    predict, threat_model = wavy(frequency=2.0), ThreatModel("2", 0.2)
    y = predicted(predict, x)
    options = {"threat_model": threat_model, "steps": 3, "step_size": 0.07, "seed": 4, "keep": keep}
    ranks = [rank(predict, pgd(predict, tf.constant(x), y, restarts=k, **options), y) for k in (1, 2, 5)]
    for (fewer_successes, fewer_loss), (more_successes, more_loss) in itertools.pairwise(ranks):
        assert (more_successes >= fewer_successes).all()
        same = more_successes == fewer_successes
        assert (more_loss[same] >= fewer_loss[same] - 1e-12).all()
    assert ranks[-1][0].sum() > ranks[0][0].sum()


def hole(width):
    """Class 1 everywhere but within `width` of 0.31, in one dimension; the loss rises towards 0.31."""

    def predict(x):
        distance = tf.abs(x[:, 0, 0, 0] - 0.31)
        return tf.stack([tf.zeros_like(distance), distance - width], axis=1)

    return predict


def along_the_line(predict, steps, keep, start=0.0):
    x = np.full((1, 1, 1, 1), start)
    options = {"threat_model": ThreatModel("inf", 1.0), "steps": steps, "step_size": 0.3, "keep": keep}
    return float(bim(predict, x, np.array([1], np.int32), **options)[0, 0, 0, 0])


@pytest.mark.parametrize(
    ("width", "steps", "start", "last"),
    [(0.05, 2, 0.0, 0.6), (0.05, 1, 0.0, 0.3), (0.05, 1, 0.3, 0.6), (-0.1, 2, 0.0, 0.6)],
    ids=["in between", "at the last point", "at the start", "nothing adversarial"],
)
def test_best_loss_keeps_the_best_iterate_at_any_step(width, steps, start, last):
    assert along_the_line(hole(width), steps, "last", start) == pytest.approx(last)
    assert along_the_line(hole(width), steps, "best_loss", start) == pytest.approx(0.3)


def test_best_loss_prefers_an_adversarial_point_to_a_much_higher_loss():
    table = np.zeros((3, 300))  # logits at x = 0, 1, 2; only those at 1 are adversarial
    table[0, 0] = 20.0
    table[1, 1:] = [0.1, *[-100.0] * 298]
    table[2, 0] = 0.1
    loss = cross_entropy(table, np.zeros(3, int))
    assert loss[2] - loss[1] > 4.5

    def predict(x):
        place = x[:, 0, 0, 0]
        uphill = (place - tf.stop_gradient(place))[:, None] * tf.constant([-1.0, *[1.0] * 299], x.dtype)
        return tf.gather(tf.constant(table), tf.cast(tf.round(tf.stop_gradient(place)), tf.int32)) + uphill

    x, y = np.zeros((1, 1, 1, 1)), np.array([0], np.int32)
    ends = {
        i: bim(predict, x, y, threat_model=ThreatModel("inf", 2.0), steps=2, step_size=1.0, keep=i)
        for i in ("last", "best_loss")
    }
    assert {name: float(end[0, 0, 0, 0]) for name, end in ends.items()} == {"last": 2.0, "best_loss": 1.0}


def test_best_loss_of_a_targeted_attack_keeps_the_point_on_target():
    def predict(x):
        distance = tf.abs(x[:, 0, 0, 0] - 0.31)
        return tf.stack([0.05 - distance, tf.zeros_like(distance)], axis=1)

    x, target = np.zeros((1, 1, 1, 1)), np.array([0], np.int32)
    options = {"threat_model": ThreatModel("inf", 1.0), "steps": 2, "step_size": 0.3, "targeted": True}
    assert float(bim(predict, x, target, keep="last", **options)[0, 0, 0, 0]) == pytest.approx(0.6)
    assert float(bim(predict, x, target, keep="best_loss", **options)[0, 0, 0, 0]) == pytest.approx(0.3)


def test_best_loss_with_a_big_step_succeeds_more_often_than_the_last_iterate(x):
    predict = wavy(frequency=2.0)
    y = predicted(predict, x)
    options = {"threat_model": ThreatModel("inf", 0.3), "steps": 10, "step_size": 0.25}
    last, best = (rank(predict, bim(predict, tf.constant(x), y, keep=i, **options), y)[0]
                  for i in ("last", "best_loss"))  # fmt: skip
    assert (best >= last).all()
    assert best.sum() > last.sum()


# ---------------------------------------------------------------- every setting has effect


LOOP = {
    "threat_model": ThreatModel("inf", 0.2, 0.9, low=0.0, high=1.0), "steps": 4, "step_size": 0.15,
    "random_start": True, "restarts": 2, "targeted": False, "keep": "last",
    "seed": 0, "index": np.arange(24, dtype=np.int32),
}  # fmt: skip
LOOP_CHANGES = [
    {"threat_model": ThreatModel("2", 0.2, 0.9, low=0.0, high=1.0)},
    {"threat_model": ThreatModel("inf", 0.21, 0.9, low=0.0, high=1.0)},
    {"threat_model": ThreatModel("inf", 0.2, 1.0, low=0.0, high=1.0)},
    {"threat_model": ThreatModel("inf", 0.2, 0.9, low=0.1, high=1.0)},
    {"threat_model": ThreatModel("inf", 0.2, 0.9, low=0.0, high=0.9)},
    {"steps": 5},
    {"step_size": 0.14},
    {"random_start": False, "restarts": 1},
    {"restarts": 3},
    {"targeted": True},
    {"keep": "best_loss"},
    {"seed": 1},
    {"index": np.arange(24, dtype=np.int32) + 1},
]


def test_the_table_of_loop_settings_is_complete():
    known = {field.name for field in dataclasses.fields(PGD)} - {"predict", "top"}  # see test_top
    assert set(LOOP) == known | {"restarts", "keep", "index"} == {key for change in LOOP_CHANGES for key in change}


@pytest.fixture(scope="module")
def plain_run(x, y):
    return run_pgd(wavy(), tf.constant(x), y, **LOOP)


def test_every_loop_setting_changes_the_points(plain_run, x, y):
    for change in LOOP_CHANGES:
        changed = run_pgd(wavy(), tf.constant(x), y, **{**LOOP, **change})
        assert np.abs(changed - plain_run).max() > 1e-3, change


def test_the_same_settings_give_the_same_points(plain_run, x, y):
    np.testing.assert_array_equal(run_pgd(wavy(), tf.constant(x), y, **LOOP), plain_run)


CONFIG = {
    "attack": "pgd", "ord": "inf", "eps": 0.2, "unit": "pixel", "box": (0.0, 1.0), "steps": 4, "step_size": 0.15,
    "random_start": True, "restarts": 1, "target": "none", "keep": "last", "seed": 0, "backend": "own",
}  # fmt: skip
CONFIG_CHANGES = [
    {"attack": "bim", "random_start": False},
    {"attack": "fgsm", "random_start": False, "steps": 1, "step_size": 0.2},
    {"ord": "2"},
    {"eps": 0.19},
    {"unit": "standardized"},
    {"box": "none"},
    {"box": (0.0, 0.9)},
    {"box": {"standardized": (0.0, 1.0)}},
    {"steps": 5},
    {"step_size": 0.14},
    {"step_size": None},
    {"random_start": False},
    {"restarts": 3},
    {"target": "next"},
    {"target": "least_likely"},
    {"keep": "best_loss"},
    {"seed": 1},
    {"keep": "first_success"},
    {"backend": "cleverhans"},
]


def test_the_table_of_config_fields_is_complete():
    fields = set(Attack.model_fields) - {"kind", "loss"}  # one value each
    fields -= {"top", "targets", "queries", "eps_grid", "min_eps_tolerance"}  # see test_top.py, test_ensemble.py
    assert set(CONFIG) == fields == {key for change in CONFIG_CHANGES for key in change}


@pytest.fixture(scope="module")
def evaluator():
    """20 test images under an untrained net with oscillating units."""
    return Evaluator(wave_classifier(MNIST, 0.5), Evaluation(limit=20))


@pytest.mark.slow
def test_every_config_field_changes_the_images(evaluator):
    plain = evaluator.run(Attack(**CONFIG))
    for change in CONFIG_CHANGES:
        changed = evaluator.run(Attack(**{**CONFIG, **change}))
        assert changed.record.perturbation_id != plain.record.perturbation_id, change
        assert np.abs(changed.images - plain.images).max() > 1e-3, change


def test_targets_are_the_next_class_and_the_lowest_clean_logit(evaluator):
    clean = evaluator.eval_set.logits(evaluator.eval_set.pixels)
    targets = {"next": (evaluator.eval_set.dataset.labels + 1) % 10, "least_likely": clean.argmin(axis=1)}
    for name, target in targets.items():
        result = evaluator.run(Attack(attack="bim", ord="2", eps=1.0, steps=5, step_size=0.2, target=name))
        logits = evaluator.eval_set.logits(result.images)
        assert cross_entropy(logits, target).mean() < cross_entropy(clean, target).mean() - 1
        assert result.record.target_rate == pytest.approx(np.mean(logits.argmax(axis=1) == target))
        assert result.record.target_rate > 0


# ---------------------------------------------------------------- compiled


def differentiable_settings(order, random_start):
    return {
        "threat_model": ThreatModel(order, 0.3, SCALE, 0.0, 1.0),
        "steps": 6,
        "step_size": 0.1,
        "random_start": random_start,
    }


@pytest.mark.parametrize(("dtype", "order", "keep"), [("float32", "inf", "last"), ("float64", "2", "best_loss")])
def test_compiled_equals_eager(x, y, dtype, order, keep):
    predict, options = wavy(frequency=0.5), {**differentiable_settings(order, True), "keep": keep, "restarts": 2}
    compiled = run_pgd(predict, x.astype(dtype), y, **options)
    tf.config.run_functions_eagerly(True)
    try:
        eager = run_pgd(predict, x.astype(dtype), y, **options)
    finally:
        tf.config.run_functions_eagerly(False)
    close(compiled, eager, 1e-5 if dtype == "float32" else 1e-9)


@pytest.mark.parametrize(
    ("xla", "dtype", "order", "keep", "restarts"),
    [
        (True, "float32", "inf", "last", 1),
        (True, "float64", "2", "best_loss", 3),
        (False, "float64", "inf", "last", 3),
        (False, "float64", "inf", "best_loss", 1),
    ],
)
def test_xla_and_calls_of_many_steps_change_nothing_but_roundings(x, y, xla, dtype, order, keep, restarts):
    options = {**differentiable_settings(order, True), "keep": keep, "restarts": restarts}
    policy = backend.ExecutionPolicy(xla=xla, steps_per_call=8, fused_batch_norm=False)
    plain, other = (
        run_pgd(wavy(frequency=0.5), x.astype(dtype), y, **options, **extra) for extra in ({}, {"policy": policy})
    )
    close(other, plain, 1e-5 if dtype == "float32" else 1e-9)


@pytest.mark.parametrize(
    ("case", "keep"), [("nan gradient", "last"), ("infinite gradient", "best_loss"), ("nan logits", "best_loss")]
)
def test_the_loop_survives_values_that_are_not_finite(case, keep):
    predict, x = half_broken(case)
    threat_model = ThreatModel("inf", 0.5, 1.0, 0.0, 1.0)
    point = bim(
        predict, tf.constant(x), np.zeros(1, np.int32), threat_model=threat_model, steps=20, step_size=0.05, keep=keep
    )
    logits = predict(tf.constant(point)).numpy()
    assert logits.argmax() == 1 or np.isnan(logits).any()

"""The loss that attacks maximize: the cross-entropy's gradient without its saturation."""

import functools

import numpy as np
import pytest
from helpers_attacks import bim, binary_linear, cross_entropy, fgsm, images, tf, wavy

from bn_vuln.attacks import ThreatModel, pgd
from bn_vuln.attacks.losses import log_odds

CLASSES = [2, 10]
SIZE = 1e4  # of logits, in float32


def entropy(logits, y):
    """TensorFlow's cross-entropy, in the place of the log-odds."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)


@pytest.fixture
def maximize_entropy(monkeypatch):
    """Attacks maximize the cross-entropy itself."""
    monkeypatch.setattr(pgd, "log_odds", entropy)


def some(classes, n=300, size=3.0, seed=0):
    """(logits float64 [n, classes], labels int32 [n])."""
    generator = np.random.default_rng(seed)
    return size * generator.normal(size=(n, classes)), generator.integers(0, classes, n).astype(np.int32)


def slope(loss, logits, y):
    """d loss / d logits [n, classes]."""
    z = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = loss(z, tf.constant(y))
    return tape.gradient(value, z).numpy()


def cosines(a, b):
    a, b = (np.asarray(array, np.float64).reshape(len(array), -1) for array in (a, b))
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


# ---------------------------------------------------------------- in float64: the cross-entropy


@pytest.mark.parametrize("classes", CLASSES)
def test_log_odds_are_the_log_of_exp_of_the_cross_entropy_minus_one(classes):
    logits, y = some(classes)
    expected = np.log(np.expm1(cross_entropy(logits, y)))
    found = log_odds(tf.constant(logits), tf.constant(y))
    assert found.dtype == tf.float64
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found, np.log(np.expm1(entropy(tf.constant(logits), y))), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("classes", CLASSES)
def test_its_slope_at_the_logits_has_the_direction_of_that_of_the_cross_entropy(classes):
    logits, y = some(classes)
    ours, theirs = (slope(loss, logits, y) for loss in (log_odds, entropy))
    np.testing.assert_allclose(cosines(ours, theirs), 1, rtol=0, atol=1e-6)
    # Longer by 1 / (1 - p_y).
    p = np.exp(-cross_entropy(logits, y))
    np.testing.assert_allclose(ours * (1 - p)[:, None], theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("classes", "order"), [(2, "inf"), (10, "2")])
def test_attacks_in_float64_find_what_the_cross_entropy_finds(classes, order, monkeypatch):
    predict, x = wavy(classes=classes, frequency=0.5), images(30)
    y = np.arange(30, dtype=np.int32) % classes
    attack = functools.partial(bim, predict, x, y, threat_model=ThreatModel(order, 0.2), steps=5, step_size=0.07)
    ours = attack()
    monkeypatch.setattr(pgd, "log_odds", entropy)
    np.testing.assert_allclose(ours, attack(), rtol=0, atol=1e-9)


# ---------------------------------------------------------------- in float32: no saturation


@pytest.mark.parametrize(("classes", "size"), [(2, 1e30), (10, 1.0), (10, 1e4)])
def test_value_and_slope_of_large_logits_are_finite_and_right(classes, size):
    """The slope is the softmax over the other classes, minus 1 at the label."""
    logits, y = some(classes)
    logits = (size * logits).astype(np.float32)
    found = log_odds(tf.constant(logits), tf.constant(y))
    assert found.dtype == tf.float32
    rows, own = np.arange(len(y)), np.eye(classes, dtype=bool)[y]
    others = np.where(own, -np.inf, logits.astype(np.float64))
    top = others.max(axis=1, keepdims=True)
    shares = np.exp(others - top)
    expected = (top[:, 0] + np.log(shares.sum(axis=1))) - logits.astype(np.float64)[rows, y]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * size)
    shares /= shares.sum(axis=1, keepdims=True)
    found = slope(log_odds, logits, y)
    np.testing.assert_array_equal(found[rows, y], -np.ones(len(y)))
    np.testing.assert_allclose(found, shares - own, rtol=0, atol=1e-2 if size == 1e4 else 1e-5)


@pytest.mark.parametrize(("difference", "saturated"), [(10.0, False), (18.0, True), (1e4, True)])
def test_where_the_cross_entropy_loses_the_slope_of_the_label(difference, saturated):
    logits, y = np.array([[difference, 0.0, -1.0]], np.float32), np.array([0], np.int32)
    assert (slope(entropy, logits, y)[0, 0] == 0) == saturated
    assert slope(log_odds, logits, y)[0, 0] == -1


ATTACKS = {
    "fgsm": fgsm,
    "bim": functools.partial(bim, steps=10, step_size=0.02),
}


def large(model):
    """The model in float32 with logits of thousands."""
    return lambda t: model.predict(t) * tf.constant(SIZE, t.dtype)


@pytest.fixture(scope="module")
def pair():
    """A linear model of two classes, and images float32 with labels, of which it classifies some."""
    model, x = binary_linear(), images(40).astype(np.float32)
    y = np.tile([0, 1], 20).astype(np.int32)
    right = model.margin(x, y) > 1e-2
    assert 5 < right.sum() < 35
    return model, x, y, right


@pytest.mark.parametrize("name", ATTACKS)
def test_large_logits_of_two_classes_hide_nothing(pair, name):
    model, x, y, _ = pair
    found = ATTACKS[name](large(model), x, y, threat_model=ThreatModel("inf", 0.1))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, model.worst_inf(x, y, 0.1), rtol=0, atol=1e-6)


def test_robustness_of_large_logits_is_overstated_by_the_cross_entropy_alone(pair, monkeypatch):
    model, x, y, right = pair
    threat_model, exact = ThreatModel("inf", 0.1), model.margin(model.worst_inf(x, y, 0.1), y) > 0
    assert exact.sum() < right.sum()

    def robust():
        found = fgsm(large(model), x, y, threat_model=threat_model)
        return large(model)(found).numpy().argmax(axis=1) == y

    np.testing.assert_array_equal(robust(), exact)
    monkeypatch.setattr(pgd, "log_odds", entropy)
    np.testing.assert_array_equal(robust()[right], np.ones(right.sum(), bool))


EPS = 1e-3


@pytest.fixture(scope="module")
def ten():
    """A linear model of ten classes (kernel [32, 10]), images float32, its labels and the strongest other classes."""
    kernel = np.random.default_rng(4).normal(size=(32, 10))
    x = images(200).astype(np.float32)
    z = x.reshape(len(x), -1) @ kernel
    top = np.sort(z, axis=1)
    # The strongest other class stays the strongest inside the ball.
    clear = (top[:, -1] - top[:, -2] > 0.1) & (top[:, -2] - top[:, -3] > 0.2)
    assert clear.sum() > 50
    return kernel, x[clear], z[clear].argsort(axis=1)[:, -1].astype(np.int32), z[clear].argsort(axis=1)[:, -2]


def predictor(kernel, size):
    def predict(t):
        return tf.matmul(tf.reshape(t, (-1, 32)), tf.constant(size * kernel, t.dtype))

    return predict


def worst(ten):
    """x + eps sign(w_k - w_y), k the strongest other class."""
    kernel, x, y, rival = ten
    return x + EPS * np.sign(kernel[:, rival] - kernel[:, y]).T.reshape(x.shape)


def test_large_logits_of_ten_classes_hide_nothing(ten):
    kernel, x, y, _ = ten
    found = fgsm(predictor(kernel, SIZE), x, y, threat_model=ThreatModel("inf", EPS))
    np.testing.assert_allclose(found, worst(ten), rtol=0, atol=2e-7)


def test_the_cross_entropy_would_not_move_any_of_ten_classes(ten, maximize_entropy):
    kernel, x, y, _ = ten
    found = bim(predictor(kernel, SIZE), x, y, threat_model=ThreatModel("inf", EPS), steps=4, step_size=EPS / 2)
    np.testing.assert_array_equal(found, x)


def test_the_cross_entropy_follows_a_wrong_gradient_before_it_vanishes(ten, monkeypatch):
    """With logits of tens p_y rounds to 1 and p_k does not round to 0: what is left is the slope of the rival alone."""
    kernel, x, y, rival = ten
    z = x.reshape(len(x), -1) @ kernel
    rows = np.arange(len(y))
    gap = z[rows, y] - z[rows, rival]
    chosen = np.flatnonzero((gap > 0.2) & (gap < 0.8))
    size = 100.0  # margins of 20 to 80 nats
    x, y, rival = x[chosen], y[chosen], rival[chosen]
    ours = fgsm(predictor(kernel, size), x, y, threat_model=ThreatModel("inf", EPS))
    np.testing.assert_allclose(ours, worst((kernel, x, y, rival)), rtol=0, atol=2e-7)
    monkeypatch.setattr(pgd, "log_odds", entropy)
    theirs = fgsm(predictor(kernel, size), x, y, threat_model=ThreatModel("inf", EPS))
    alone = x + EPS * np.sign(kernel[:, rival]).T.reshape(x.shape)
    np.testing.assert_allclose(theirs, alone, rtol=0, atol=2e-7)
    assert len(chosen) > 5
    assert np.abs(theirs - ours).max() > EPS


def test_a_target_far_away_is_approached(pair):
    (model, x, _, _), target = pair, 1
    y = np.full(len(x), target, np.int32)
    found = bim(large(model), x, y, threat_model=ThreatModel("inf", 0.1), steps=3, step_size=0.1, targeted=True)
    np.testing.assert_allclose(found, model.worst_inf(x, 1 - y, 0.1), rtol=0, atol=1e-6)

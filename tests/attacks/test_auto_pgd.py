"""APGD as a search equals algorithm 1 for one example at a time; the losses that it climbs have their closed form."""

import importlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_attacks import binary_linear, cross_entropy, images, tf, wavy

from bn_vuln import data
from bn_vuln.attacks import active_set
from bn_vuln.attacks import pgd as pgd_module
from bn_vuln.attacks.active_set import EpsGrid
from bn_vuln.attacks.auto_pgd import APGD, LOSSES, checkpoint_windows, target_classes
from bn_vuln.attacks.bisection import Bisection
from bn_vuln.attacks.losses import dlr, logit_margin, targeted_dlr
from bn_vuln.attacks.pgd import PGD
from bn_vuln.attacks.threat_model import ThreatModel
from bn_vuln.external.loading import load_keras
from bn_vuln.records import open_store
from bn_vuln.runtime.backend import ExecutionPolicy

N, STEPS = 30, 40
SCALE, LOW, HIGH = np.array([0.25, 1.5]), 0.1, 0.9
EPS = {"inf": 0.015, "2": 0.04}
ROOT = Path(__file__).parents[2]
RESULTS, TOOLS = ROOT / "results" / "paper", ROOT / "tools"


def rugged(frequency=8.0, classes=5):
    """A slope with waves on it, so that paths matter, and not every example is fooled at last. Logits are below ten:
    the cross-entropy does not round to 0."""
    waves = wavy(classes=classes, frequency=frequency)
    weights = np.random.default_rng(3).normal(size=(32, classes))

    def predict(x):
        slope = tf.matmul(tf.reshape(x, (-1, len(weights))) - 0.5, tf.constant(weights, x.dtype))
        return slope + 0.1 * waves(x)

    return predict


def labels(predict, x):
    """The predictions, but for every tenth example, which is misclassified."""
    logits = predict(tf.constant(x)).numpy()
    y = logits.argmax(axis=1).astype(np.int32)
    y[::10] = (y[::10] + 1) % logits.shape[1]
    return y


@pytest.fixture(scope="module")
def x():
    return images(N, low=LOW, high=HIGH)


@pytest.fixture(scope="module")
def predict():
    return rugged()


@pytest.fixture(scope="module")
def y(predict, x):
    return labels(predict, x)


# ---------------------------------------------------------------- the published algorithm, one example at a time


def published_dlr(z, y):
    others = np.sort(np.delete(z, y))
    ordered = np.sort(z)
    return -(z[y] - others[-1]) / (ordered[-1] - ordered[-3])


def published_targeted_dlr(z, y, t):
    ordered = np.sort(z)
    return -(z[y] - z[t]) / (ordered[-1] - (ordered[-3] + ordered[-4]) / 2)


def evaluation(predict, loss):
    """(point, y, t) -> (loss, its gradient, whether the point fools) of one example, by the formulas of the paper."""

    @tf.function(reduce_retracing=True)
    def graph(point, y, t):
        z = predict(point[None])[0]
        ordered = tf.sort(z, direction="DESCENDING")
        right = tf.equal(tf.argmax(z, output_type=tf.int32), y)
        if loss == "ce":
            value = tf.nn.sparse_softmax_cross_entropy_with_logits(y, z)
        elif loss == "dlr":
            value = -(z[y] - tf.where(right, ordered[1], ordered[0])) / (ordered[0] - ordered[2])
        else:
            value = -(z[y] - z[t]) / (ordered[0] - (ordered[2] + ordered[3]) / 2)
        return value, tf.gradients(value, point)[0], tf.logical_not(right)

    def evaluate(point, y, t):
        value, gradient, is_fooled = graph(*(tf.constant(array) for array in (point, y, t)))
        return float(value), gradient.numpy(), bool(is_fooled)

    return evaluate


def projected(threat_model, point, x):
    delta = (point - x) / threat_model.scale
    if threat_model.ord == "inf":
        delta = np.clip(delta, -threat_model.eps, threat_model.eps)
    elif (length := np.sqrt((delta**2).sum())) > threat_model.eps:
        delta = delta * threat_model.eps / length
    return np.clip(x + delta * threat_model.scale, threat_model.low, threat_model.high)


def unit(threat_model, gradient):
    scaled = threat_model.scale * gradient
    return np.sign(scaled) if threat_model.ord == "inf" else scaled / np.sqrt((scaled**2).sum())


def algorithm_1(evaluate, threat_model, steps, rho, start, x, y, t):
    """Croce and Hein 2020 as in the authors' code: (first point that fools or else the best, fooled, points looked at,
    how often the step was halved: for oscillation, and because the best point stayed)."""
    value, gradient, is_fooled = evaluate(start, y, t)
    if is_fooled:
        return start, True, 1, (0, 0)
    point = previous = best = start
    best_value, best_gradient, values = value, gradient, [value]
    step, checked, reduced = 2 * threat_model.eps, value, True
    window, shortest, shorter = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    counter, halvings = 0, [0, 0]
    for i in range(steps):
        a = 0.75 if i > 0 else 1.0
        momentum, previous = point - previous, point
        z = projected(threat_model, point + step * threat_model.scale * unit(threat_model, gradient), x)
        point = projected(threat_model, point + a * (z - point) + (1 - a) * momentum, x)
        value, gradient, is_fooled = evaluate(point, y, t)
        values.append(value)
        if is_fooled:
            return point, True, i + 2, tuple(halvings)
        if value > best_value:
            best, best_value, best_gradient = point, value, gradient
        counter += 1
        if counter < window:
            continue
        rises = sum(values[-j] > values[-j - 1] for j in range(1, window + 1))
        oscillates, stuck = rises <= rho * window, not reduced and checked >= best_value
        reduced, checked = oscillates or stuck, best_value
        if reduced:
            halvings[0 if oscillates else 1] += 1
            step, point, gradient = step / 2, best, best_gradient
        counter, window = 0, max(window - shorter, shortest)
    return best, False, steps + 1, tuple(halvings)


@pytest.mark.parametrize(
    ("ord", "loss", "random_start", "rho"),
    [
        ("inf", "ce", False, 0.75),
        ("2", "dlr", False, 0.75),
        ("inf", "targeted_dlr", False, 0.75),
        pytest.param("2", "targeted_dlr", True, 0.4, marks=pytest.mark.slow),
    ],
)
def test_it_equals_algorithm_1(predict, x, y, ord, loss, random_start, rho):
    eps = EPS[ord]
    threat_model = ThreatModel(ord, eps, SCALE, LOW, HIGH)
    aims = target_classes(predict(tf.constant(x)).numpy(), y, 1)
    attack = APGD(predict, threat_model, STEPS, loss, rho, random_start, seed=5)
    found = active_set.run(attack, x, y, EpsGrid([eps]), targets=aims, batch_size=16)
    starts = threat_model.random_point(tf.constant(x), tf.range(N), 5, 0).numpy() if random_start else x
    examples, evaluate = zip(starts, x, y, aims[:, 0], strict=True), evaluation(predict, loss)
    each = [algorithm_1(evaluate, threat_model, STEPS, rho, *example) for example in examples]
    points, is_fooled, n_evaluations, halvings = zip(*each, strict=True)
    np.testing.assert_array_equal(found.is_adversarial, is_fooled)
    np.testing.assert_array_equal(found.n_evaluations, n_evaluations)
    # On a sphere the loss has smooth maxima, whose place is known to the root of the rounding error only.
    np.testing.assert_allclose(found.points, np.stack(points), rtol=0, atol={"inf": 1e-9, "2": 1e-7}[ord])
    assert 0.2 < found.is_adversarial.mean() < 0.9
    oscillated, stuck = np.sum(halvings, axis=0)
    assert oscillated > 0
    assert stuck > 0 or rho > 0.5


def test_attempts_are_restarts_from_points_of_their_own(x):
    predict = rugged(20.0)
    y, attack = labels(predict, x), APGD(predict, ThreatModel("inf", 1.0, SCALE, LOW, HIGH), 5)
    once, often = (active_set.run(attack, x, y, EpsGrid([0.02], count), batch_size=16) for count in (1, 5))
    assert not (once.is_adversarial & ~often.is_adversarial).any()
    assert often.is_adversarial.sum() > once.is_adversarial.sum()


@pytest.mark.slow
def test_xla_and_other_batches_change_nothing(predict, x, y):
    aims = target_classes(predict(tf.constant(x)).numpy(), y, 2)
    attack = APGD(predict, ThreatModel("inf", 1.0, SCALE, LOW, HIGH), 20, "targeted_dlr")
    plain = active_set.run(attack, x, y, EpsGrid([0.02], 2), targets=aims, batch_size=16)
    for xla, steps_per_call, batch_size in ((True, 1, 16), (False, 8, 7)):
        policy = ExecutionPolicy(xla=xla, steps_per_call=steps_per_call, fused_batch_norm=False)
        compiled = active_set.CompiledAttack(attack, policy=policy)
        other = active_set.run(compiled, x, y, EpsGrid([0.02], 2), targets=aims, batch_size=batch_size)
        np.testing.assert_array_equal(other.is_adversarial, plain.is_adversarial)
        np.testing.assert_array_equal(other.n_evaluations, plain.n_evaluations)
        np.testing.assert_allclose(other.points, plain.points, atol=1e-9)


def test_an_idle_slot_passes_no_checkpoint_twice(predict, x, y):
    """The active set's counter stands still there, at any number, and the attack may be resumed."""
    steps = STEPS
    attack, numbers = APGD(predict, ThreatModel("inf", 1.0, SCALE, LOW, HIGH), steps), tf.range(N)
    job = {"x": tf.constant(x), "y": tf.constant(y), "target": tf.constant(y), "index": numbers, "attempt": numbers}
    checkpoints = np.flatnonzero(checkpoint_windows(steps))
    job |= {"eps": tf.fill([N], tf.constant(0.02, tf.float64)), "i": tf.fill([N], int(checkpoints[0]))}
    state = attack.start(job)
    for _ in range(steps + 10):
        state = attack.advance({**job, **state}).state
    halvings = np.log2(2 * 0.02 / state["step_size"].numpy())
    assert 0 < halvings.max() <= len(checkpoints)


# ---------------------------------------------------------------- as near as can be


@pytest.mark.parametrize(("ord", "dual", "factor", "loss"), [("inf", 1, 1.01, "ce"), ("2", 2, 1.05, "dlr")])
def test_bisection_finds_the_distance_of_a_hyperplane(x, ord, dual, factor, loss):
    model = binary_linear()
    y = model.predict(tf.constant(x)).numpy().argmax(axis=1).astype(np.int32)
    scale = SCALE if ord == "inf" else 1.0
    exact = model.margin(x, y) / np.linalg.norm((scale * model.w).ravel(), dual)
    attack = APGD(model.predict, ThreatModel(ord, 1.0, scale), 20, loss)
    found = active_set.run(attack, x, y, Bisection(4 * float(exact.max()), 1e-3 * float(exact.min())), batch_size=16)
    assert found.is_adversarial.all()
    assert (found.eps >= exact * (1 - 1e-9)).all()
    assert (found.eps <= exact * factor).all()


@pytest.mark.slow
def test_it_succeeds_more_often_than_pgd_of_as_many_steps():
    predict, x = rugged(20.0), images(80, low=LOW, high=HIGH)
    y = labels(predict, x)

    def is_adversarial(attack):
        return active_set.run(attack, x, y, EpsGrid([0.02]), batch_size=64).is_adversarial.sum()

    threat_model = ThreatModel("inf", 1.0, SCALE, LOW, HIGH)
    pgd = [is_adversarial(PGD(predict, threat_model, STEPS, step_size)) for step_size in (0.1, 0.25)]
    for loss in ("ce", "dlr"):
        assert is_adversarial(APGD(predict, threat_model, STEPS, loss)) > max(pgd)


def test_large_logits_mask_nothing(predict, x, y, monkeypatch):
    def sharp(points):
        return 1e4 * predict(points)

    x = x.astype(np.float32)
    plan, threat_model = EpsGrid([0.02]), ThreatModel("inf", 1.0, SCALE.astype(np.float32), LOW, HIGH)
    plain, masked = (
        active_set.run(APGD(f, threat_model, STEPS, "dlr"), x, y, plan, batch_size=16) for f in (predict, sharp)
    )
    np.testing.assert_array_equal(masked.is_adversarial, plain.is_adversarial)
    monkeypatch.setattr(pgd_module, "log_odds", lambda z, y: tf.nn.sparse_softmax_cross_entropy_with_logits(y, z))
    pgd = active_set.run(PGD(sharp, threat_model, STEPS, 0.25), x, y, plan, batch_size=16)
    assert pgd.is_adversarial.sum() < 0.7 * masked.is_adversarial.sum()
    log_odds = active_set.run(APGD(sharp, threat_model, STEPS, "ce"), x, y, plan, batch_size=16)
    assert log_odds.is_adversarial.sum() > pgd.is_adversarial.sum()


# ---------------------------------------------------------------- checkpoints and targets


def test_the_checkpoints_of_100_steps_are_the_published_ones():
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    published = [math.ceil(round(100 * share, 9)) for share in shares[1:] if share <= 1]
    assert published == [22, 41, 57, 70, 80, 87, 93, 99]
    assert np.flatnonzero(checkpoint_windows(100)).tolist() == published
    assert checkpoint_windows(100)[published].tolist() == np.diff([0, *published]).tolist()


def test_the_checkpoints_are_those_of_the_published_counter():
    for steps in (1, 2, 5, 10, 33, 50, 100, 1000):
        window, shortest, decrement = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
        counter, expected = 0, np.zeros(steps + 1, int)
        for i in range(steps):
            counter += 1
            if counter == window:
                expected[i + 1] = window
                counter, window = 0, max(window - decrement, shortest)
        np.testing.assert_array_equal(checkpoint_windows(steps), expected)


def test_targets_are_the_highest_other_classes_in_order():
    logits = np.array([[0.0, 3.0, 1.0, 2.0], [5.0, 3.0, 1.0, 2.0], [1.0, 1.0, 1.0, 0.0]])
    y = np.array([1, 3, 1], np.int32)
    found = target_classes(logits, y)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, [[3, 2, 0], [0, 1, 2], [0, 2, 3]])
    np.testing.assert_array_equal(target_classes(logits, y, 2), found[:, :2])


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="targeted_dlr"):
        APGD(lambda x: x, ThreatModel("inf", 0.1), loss="hinge")


# ---------------------------------------------------------------- losses


def some(classes, n=200, seed=0):
    """(logits float64 [n, classes], labels int32 [n], targets int32 [n])."""
    generator = np.random.default_rng(seed)
    y = generator.integers(0, classes, n).astype(np.int32)
    t = (y + generator.integers(1, classes, n).astype(np.int32)) % classes
    return 3 * generator.normal(size=(n, classes)), y, t


def test_the_losses_of_an_example_by_hand():
    z, y = tf.constant([[4.0, 1.0, 3.0, 0.0, -2.0]] * 2), tf.constant([0, 3])
    np.testing.assert_allclose(logit_margin(z, y), [-1, 4])
    np.testing.assert_allclose(dlr(z, y), [-1 / 3, 4 / 3])
    np.testing.assert_allclose(targeted_dlr(z, y, tf.constant([1, 2])), [-3 / 3.5, 3 / 3.5])


@pytest.mark.parametrize("classes", [3, 10])
def test_dlr_equals_the_published_formula_and_is_invariant_to_shift_and_scale(classes):
    z, y, _ = some(classes)
    expected = [published_dlr(*example) for example in zip(z, y, strict=True)]
    np.testing.assert_allclose(dlr(tf.constant(z), tf.constant(y)), expected, rtol=1e-12)
    np.testing.assert_allclose(dlr(tf.constant(1e4 * z + 7), tf.constant(y)), expected, rtol=1e-9)


@pytest.mark.parametrize("classes", [4, 10])
def test_targeted_dlr_equals_the_published_formula_and_is_invariant_to_shift_and_scale(classes):
    z, y, t = some(classes)
    expected = [published_targeted_dlr(*example) for example in zip(z, y, t, strict=True)]
    np.testing.assert_allclose(targeted_dlr(tf.constant(z), tf.constant(y), tf.constant(t)), expected, rtol=1e-12)
    np.testing.assert_allclose(
        targeted_dlr(tf.constant(1e4 * z + 7), tf.constant(y), tf.constant(t)), expected, rtol=1e-9
    )


def test_with_too_few_classes_it_is_the_difference_of_logits():
    z, y, t = (tf.constant(array) for array in some(2))
    np.testing.assert_array_equal(dlr(z, y), logit_margin(z, y))
    np.testing.assert_array_equal(targeted_dlr(z, y, t), logit_margin(z, y))
    z, y, t = some(3)
    each = np.arange(len(z))
    found = targeted_dlr(tf.constant(z), tf.constant(y), tf.constant(t))
    np.testing.assert_array_equal(found, z[each, t] - z[each, y])


def test_equal_logits_leave_the_losses_and_their_slopes_finite():
    z, y, t = tf.constant([[1.0, 1.0, 1.0, 1.0, 0.0]]), tf.constant([4]), tf.constant([1])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(z)
        values = dlr(z, y), targeted_dlr(z, y, t)
    for value in values:
        assert np.isfinite(value).all()
        slope = tape.gradient(value, z).numpy()
        assert np.isfinite(slope).all()
        assert slope[0, 4] < 0


def test_the_cross_entropy_orders_points_as_the_log_odds():
    z, y, t = some(5)
    z, y, t = (tf.constant(array) for array in (z, y, t))
    for name, sign, label in (("ce", 1, y), ("targeted_ce", -1, t)):
        order = np.argsort(sign * cross_entropy(z, label.numpy()))
        np.testing.assert_array_equal(np.argsort(LOSSES[name](z, y, t)), order)


# ---------------------------------------------------------------- another implementation, on the same weights


@dataclass(frozen=True)
class From(APGD):
    """From given points [n, ...] on, by the examples' numbers."""

    points: Any = None

    def start(self, job):
        points = tf.gather(tf.constant(self.points), job["index"])
        return {**super().start(job), "point": points, "previous": points, "best": points}


def their_start(torch, x, right, norm, eps):
    """The first draw of torchattacks' APGD with seed 0, for the images [n, 1, height, width] that are classified
    right, at which alone it starts."""
    torch.random.manual_seed(0)
    if norm == "Linf":
        delta = 2.0 * torch.rand(x[right].shape) - 1.0
        length = delta.abs().amax((1, 2, 3), keepdim=True)
    else:
        delta = torch.randn(x[right].shape)
        length = delta.square().sum((1, 2, 3), keepdim=True).sqrt()
    start = x.clone()
    start[right] = (x[right] + eps * delta / length).clamp(0.0, 1.0)
    return start.numpy().transpose(0, 2, 3, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "norm", "eps", "loss"), [("df28a7b8f872", "Linf", 0.06, "dlr"), ("dd15bd2a8efa", "L2", 0.8, "ce")]
)
def test_torchattacks_succeeds_on_the_same_images_of_a_trained_net(run, norm, eps, loss, monkeypatch):
    reason = "the yardstick is not installed: pip install torch torchattacks"
    torch, torchattacks = (pytest.importorskip(name, reason=reason) for name in ("torch", "torchattacks"))
    model = load_keras(open_store(RESULTS).model(run))
    dataset = data.load("mnist", "test", limit=300)
    x, y = dataset.images.astype(np.float32) / 255, dataset.labels
    monkeypatch.syspath_prepend(TOOLS)
    theirs = importlib.import_module("torch_copy").copy(model)
    channels_first, labels = torch.tensor(x.transpose(0, 3, 1, 2).copy()), torch.tensor(y.astype(np.int64))
    logits = theirs(channels_first).detach()
    np.testing.assert_allclose(logits.numpy(), model(x), atol=1e-4)
    points = torchattacks.APGD(theirs, norm, eps, 50, loss=loss)(channels_first, labels)
    is_robust = (theirs(points).argmax(1) == labels).numpy()
    start = their_start(torch, channels_first, logits.argmax(1) == labels, norm, eps)
    ours = From(model, ThreatModel({"Linf": "inf", "L2": "2"}[norm], eps, low=0.0, high=1.0), 50, loss, points=start)
    found = active_set.run(ours, x, y, EpsGrid([eps]), batch_size=300)
    assert 0.2 < is_robust.mean() < 0.8
    assert np.mean(found.is_adversarial == is_robust) <= 0.005

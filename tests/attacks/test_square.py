"""Square as a search equals algorithms 1 to 3 for one example at a time, and fools what hides its gradients."""

import functools

import numpy as np
import pytest
from helpers_attacks import BinaryLinear, binary_linear, images, tf, wavy

from bn_vuln.attacks import active_set, example_rng, square
from bn_vuln.attacks.active_set import EpsGrid
from bn_vuln.attacks.losses import logit_margin
from bn_vuln.attacks.pgd import PGD
from bn_vuln.attacks.square import Square
from bn_vuln.attacks.threat_model import ThreatModel
from bn_vuln.runtime.backend import ExecutionPolicy

N, SHAPE = 6, (12, 11, 2)
SCALE, LOW, HIGH = np.array([0.25, 1.5]), 0.1, 0.9
EPS = {"inf": 0.05, "2": 0.6}


@pytest.fixture(scope="module")
def x():
    return images(N, SHAPE, low=LOW, high=HIGH)


@pytest.fixture(scope="module")
def predict():
    return wavy(SHAPE, frequency=1.0)


@pytest.fixture(scope="module")
def y(predict, x):
    return predict(tf.constant(x)).numpy().argmax(axis=1).astype(np.int32)


def threat_model(ord):
    return ThreatModel(ord, EPS[ord], SCALE, LOW, HIGH)


def job(x, y, eps, index=None, attempt=0):
    index = np.arange(len(x)) if index is None else index
    numbers = {"y": y, "target": y, "index": index, "attempt": np.full(len(x), attempt)}
    return {"x": tf.constant(x), "eps": tf.fill([len(x)], tf.constant(eps, x.dtype))} | {
        key: tf.constant(value, tf.int32) for key, value in numbers.items()
    }


def states(search, slots, count, xla=False):
    """The states at the points that are looked at, and the losses of these, without an engine."""

    def advance(state, i):
        seen = search.advance({**slots, **state, "i": tf.fill([len(slots["y"])], i)})
        return seen.state, seen.loss

    advance, state = tf.function(advance, jit_compile=xla, autograph=False), search.start(slots)
    for i in range(count):
        following, loss = advance(state, tf.constant(i))
        yield {key: value.numpy() for key, value in state.items()}, loss.numpy()
        state = following


def walk(search, slots, count, xla=False):
    """The points that are looked at, and their losses, [count, n, ...]."""
    points, losses = zip(*((state["point"], loss) for state, loss in states(search, slots, count, xla)), strict=True)
    return np.array(points), np.array(losses)


# ---------------------------------------------------------------- the published algorithm, one example at a time


def published_p(p_init, it, n_iters):
    it = int(it / n_iters * 10000)
    bounds = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000]
    for k, (low, high) in enumerate(zip(bounds, [*bounds[1:], 10**9], strict=True)):
        if low < it <= high:
            return p_init / 2 ** (k + 1)
    return p_init


def published_side(ord, p, height, width):
    s = round(np.sqrt(p * height * width))
    if ord == "inf":
        return max(s, 1)
    s = max(s, 3)
    return s + 1 if s % 2 == 0 else s


def published_rectangles(x, y):
    delta = np.zeros([x, y])
    x_c, y_c = x // 2 + 1, y // 2 + 1
    corner = [x_c - 1, y_c - 1]
    for counter in range(max(x_c, y_c)):
        rows = slice(max(corner[0], 0), min(corner[0] + 2 * counter + 1, x))
        columns = slice(max(corner[1], 0), min(corner[1] + 2 * counter + 1, y))
        delta[rows, columns] += 1.0 / (counter + 1) ** 2
        corner = [corner[0] - 1, corner[1] - 1]
    return delta / np.sqrt(np.sum(delta**2))


def published_eta(s, turned):
    delta = np.zeros([s, s])
    delta[: s // 2] = published_rectangles(s // 2, s)
    delta[s // 2 :] = -published_rectangles(s - s // 2, s)
    delta /= np.sqrt(np.sum(delta**2))
    return delta.T if turned else delta


def signs(drawn):
    return np.where(drawn > 0.5, 1.0, -1.0)


class Published:
    """One example: `point` is to be looked at; `see` its loss, and there is another point. Perturbations in units of
    the scale; `place` takes the place of the reference's uniform integers."""

    def __init__(self, ord, x, eps, steps, attempt, index, p_init=0.8):
        self.ord, self.x, self.eps, self.steps, self.p_init = ord, x, eps, steps, p_init
        _, width, channels = x.shape
        numbers = [tf.constant([attempt]), tf.constant([index])]
        if ord == "inf":
            stripes = signs(example_rng.uniform(width * channels, 0, *numbers).numpy()[0]).reshape(1, width, channels)
            self.point = self.clipped(x + eps * SCALE * stripes)
        else:
            self.point = self.clipped(x + self.bumps(numbers) * SCALE)
        self.best, self.loss, self.i, self.cancelled = None, -np.inf, 0, 0
        every = [tf.repeat(number, steps) for number in numbers]
        count = channels + (2 if ord == "inf" else 5)
        self.drawn = example_rng.uniform(count, 0, *every, tf.range(steps)).numpy()

    def bumps(self, numbers):
        height, width, channels = self.x.shape
        s = height // 5
        cells = (height // s) * (width // s)
        drawn = iter(example_rng.uniform(cells * (channels + 1), 0, *numbers).numpy()[0].reshape(cells, -1))
        delta = np.zeros(self.x.shape)
        vh = (height - s * (height // s)) // 2
        for _ in range(height // s):
            vw = (width - s * (width // s)) // 2
            for _ in range(width // s):
                turned, *colours = next(drawn)
                delta[vh : vh + s, vw : vw + s] += published_eta(s, turned > 0.5)[..., None] * signs(np.array(colours))
                vw += s
            vh += s
        return delta / np.sqrt(np.sum(delta**2)) * self.eps

    def clipped(self, point):
        return np.clip(point, LOW, HIGH)

    def see(self, loss):
        if loss > self.loss:
            self.best, self.loss = self.point, loss
        self.point = self.inf(self.drawn[self.i]) if self.ord == "inf" else self.two(self.drawn[self.i])
        self.i += 1

    def square(self, drawn):
        height, width, _ = self.x.shape
        s = published_side(self.ord, published_p(self.p_init, self.i, self.steps), height, width)
        vh, vw = (int(u * np.float32(size - s + 1)) for u, size in zip(drawn, (height, width), strict=True))
        return slice(vh, vh + s), slice(vw, vw + s), s

    def inf(self, drawn):
        rows, columns, _ = self.square(drawn[:2])
        moves = np.zeros(self.x.shape)
        moves[rows, columns] = 2 * self.eps * signs(drawn[2:]) * SCALE
        low, high = self.x - self.eps * SCALE, self.x + self.eps * SCALE
        return self.clipped(np.minimum(np.maximum(self.best + moves, low), high))

    def two(self, drawn):
        channels = self.x.shape[-1]
        rows, columns, s = self.square(drawn[:2])
        rows_2, columns_2, _ = self.square(drawn[2:4])
        delta = (self.best - self.x) / SCALE
        both = np.zeros(self.x.shape)
        both[rows, columns] = both[rows_2, columns_2] = 1
        norms_windows = np.sqrt(np.sum((delta * both) ** 2, axis=(0, 1)))
        norm_image = np.sqrt(np.sum(delta**2))
        norm_window_1 = np.sqrt(np.sum(delta[rows, columns] ** 2, axis=(0, 1)))
        bumps = np.ones([s, s, channels]) * published_eta(s, drawn[4] > 0.5)[..., None] * signs(drawn[5:])
        new = bumps + delta[rows, columns] / (1e-30 + norm_window_1)
        cancelled = np.sqrt(np.sum(new**2, axis=(0, 1))) < 1e-3  # ours: 0 / 0 in the paper
        self.cancelled += cancelled.sum()
        new = np.where(cancelled, bumps, new)
        free = np.maximum(self.eps**2 - norm_image**2, 0)
        available = (free if free > 1e-6 * self.eps**2 else 0) / channels + norms_windows**2  # ours: it is rounding
        new = new / np.sqrt(np.sum(new**2, axis=(0, 1))) * np.sqrt(available)
        delta[rows_2, columns_2] = 0
        delta[rows, columns] = new
        return self.clipped(self.x + delta / np.sqrt(np.sum(delta**2)) * self.eps * SCALE)


@pytest.mark.parametrize("ord", ["inf", "2"])
def test_it_evaluates_the_points_of_the_published_algorithm(predict, x, y, ord):
    steps, attempt, index = 250, 1, np.array([3, 0, 8, 100, 5, 7])
    found, losses = walk(Square(predict, threat_model(ord), steps), job(x, y, EPS[ord], index, attempt), steps)
    published = [Published(ord, one, EPS[ord], steps, attempt, number) for one, number in zip(x, index, strict=True)]
    n_evaluations = []
    for _ in range(steps):
        n_evaluations.append([one.point for one in published])
        for one, loss in zip(published, logit_margin(predict(tf.constant(n_evaluations[-1])), y).numpy(), strict=True):
            one.see(loss)
    np.testing.assert_allclose(found, n_evaluations, rtol=0, atol={"inf": 1e-15, "2": 1e-9}[ord])
    assert (losses.max(axis=0) > losses[0]).all()
    if ord == "2":
        assert sum(one.cancelled for one in published) > 0


def test_sides_follow_the_published_schedule():
    i = np.arange(5000, dtype=np.int32)
    for ord in ("inf", "2"):
        for height, width in ((32, 32), (28, 28), (64, 60)):
            search = Square(None, ThreatModel(ord, 1.0))
            sides = search.sides(height, width)[search.n_halvings(tf.constant(i)).numpy()]
            wanted = [published_side(ord, published_p(0.8, k, 5000), height, width) for k in i]
            np.testing.assert_array_equal(sides, wanted)


def test_the_schedule_is_rescaled_to_the_number_of_steps():
    for steps in (1, 7, 100, 2000, 30_000):
        i = np.arange(steps, dtype=np.int32)
        n_halvings = Square(None, ThreatModel("inf", 1.0), steps).n_halvings(tf.constant(i)).numpy()
        np.testing.assert_array_equal(0.8 / 2.0**n_halvings, [published_p(0.8, k, steps) for k in i])


def test_bumps_are_those_of_the_paper():
    for side in (2, 3, 5, 6, 29):
        np.testing.assert_allclose(square.bump(side), published_eta(side, False), atol=1e-15)
        assert np.linalg.norm(square.bump(side)) == pytest.approx(1)
    assert square.bump(1) == pytest.approx(-1)


@pytest.mark.parametrize(("ord", "shape"), [("inf", (1, 1, 1)), ("2", (1, 1, 1)), ("2", (2, 5, 3))])
def test_squares_fit_into_small_images(ord, shape):
    x = images(4, shape, low=0.4, high=0.6)
    limit = ThreatModel(ord, 0.1)
    points, _ = walk(Square(wavy(shape), limit, 60), job(x, np.zeros(4, np.int32), 0.1), 60)
    assert np.isfinite(points).all()
    for point in points:
        assert limit.violation(point, x).max() < 1e-12
    assert (abs(points - x).max(axis=0) > 0).all()  # every pixel is reached


# ---------------------------------------------------------------- with the active set


@pytest.mark.parametrize("ord", ["inf", "2"])
def test_it_stays_in_ball_and_box_and_its_best_loss_never_falls(predict, x, y, ord):
    slots, highest = job(x, y, EPS[ord]), []
    for k, (state, _) in enumerate(states(Square(predict, threat_model(ord), 150), slots, 150)):
        assert threat_model(ord).violation(state["point"], x).max() < 1e-12
        highest.append(state["best_loss"])
        if k:
            np.testing.assert_allclose(logit_margin(predict(state["best"]), y).numpy(), highest[-1], atol=1e-9)
    assert (np.diff(highest[1:], axis=0) >= 0).all()
    assert (highest[-1] > highest[1]).all()


def test_in_2_all_of_the_norm_is_used_where_there_is_no_box(predict, x, y):
    points, _ = walk(Square(predict, ThreatModel("2", EPS["2"], SCALE), 30), job(x, y, EPS["2"]), 30)
    np.testing.assert_allclose(np.sqrt((((points - x) / SCALE) ** 2).sum(axis=(2, 3, 4))), EPS["2"], rtol=1e-9)


@pytest.mark.parametrize("ord", ["inf", "2"])
def test_results_do_not_depend_on_who_shares_the_batch(ord):
    x, predict, order = images(40), wavy(), np.random.default_rng(0).permutation(40)
    y = predict(tf.constant(x)).numpy().argmax(axis=1).astype(np.int32)
    eps = {"inf": 0.01, "2": 0.06}[ord]
    search, plan = Square(predict, ThreatModel(ord, eps, SCALE, 0.0, 1.0), 40), EpsGrid([eps], 2)
    whole = active_set.run(search, x, y, plan, batch_size=16)
    mixed = active_set.run(search, x[order], y[order], plan, index=order, batch_size=7)
    assert 0.1 < whole.is_adversarial.mean() < 0.9
    np.testing.assert_array_equal(mixed.is_adversarial, whole.is_adversarial[order])
    np.testing.assert_array_equal(mixed.n_evaluations, whole.n_evaluations[order])
    np.testing.assert_allclose(mixed.points, whole.points[order], atol=1e-9)


@pytest.mark.slow
def test_xla_changes_nothing():
    x, predict = images(40), wavy()
    y = predict(tf.constant(x)).numpy().argmax(axis=1).astype(np.int32)
    search = Square(predict, ThreatModel("2", 0.06, SCALE, 0.0, 1.0), 40)
    xla = active_set.CompiledAttack(search, policy=ExecutionPolicy(xla=True, steps_per_call=1, fused_batch_norm=False))
    plain, compiled = (active_set.run(way, x, y, EpsGrid([0.06]), batch_size=40) for way in (search, xla))
    np.testing.assert_array_equal(compiled.is_adversarial, plain.is_adversarial)
    np.testing.assert_array_equal(compiled.n_evaluations, plain.n_evaluations)
    np.testing.assert_allclose(compiled.points, plain.points, atol=1e-9)


def test_it_finds_the_worst_corner_of_a_linear_model():
    x, model = images(), binary_linear()
    y = model.predict(tf.constant(x)).numpy().argmax(axis=1).astype(np.int32)
    eps = 0.9 * float(model.margin(x, y).min() / np.abs(model.w).sum())  # no success: all steps are taken
    found = active_set.run(Square(model.predict, ThreatModel("inf", eps), 700), x, y, EpsGrid([eps]), batch_size=len(x))
    assert not found.is_adversarial.any()
    worst = abs(found.points - model.worst_inf(x, y, eps)).max(axis=(1, 2, 3)) < 1e-9
    assert worst.mean() >= 0.9


def test_in_2_it_comes_near_to_the_worst_case_of_a_linear_model():
    window = np.hanning(12)[1:-1]
    x, model = images(shape=(10, 10, 1)), BinaryLinear(np.outer(window, window)[..., None], 0.0)
    y = np.ones(len(x), np.int32)
    length = float(np.linalg.norm(model.w))
    eps = 0.9 * float(model.margin(x, y).min()) / length
    found = active_set.run(Square(model.predict, ThreatModel("2", eps), 500), x, y, EpsGrid([eps]), batch_size=len(x))
    lowered = (model.margin(x, y) - model.margin(found.points, y)) / (eps * length)
    assert (lowered > 0.6).all()


@pytest.mark.parametrize(("ord", "eps"), [("inf", 0.1), ("2", 0.4)])
def test_it_succeeds_on_a_model_that_masks_its_gradients(ord, eps):
    x, smooth = images(30, low=LOW, high=HIGH), wavy()

    def quantized(points):
        return smooth(0.0 * points + tf.stop_gradient(tf.round(8.0 * points) / 8.0))

    y = quantized(tf.constant(x)).numpy().argmax(axis=1).astype(np.int32)
    limit, options = ThreatModel(ord, eps, 1.0, 0.0, 1.0), {"batch_size": 16}
    pgd = active_set.run(PGD(quantized, limit, 20, 0.25, random_start=False), x, y, EpsGrid([eps]), **options)
    assert not pgd.is_adversarial.any()
    found = active_set.run(Square(quantized, limit, 300), x, y, EpsGrid([eps]), **options)
    assert found.is_adversarial.mean() > 0.9
    assert (quantized(tf.constant(found.points)).numpy().argmax(axis=1) != y)[found.is_adversarial].all()


def test_the_first_point_is_made_without_the_classifier(x, y):
    for ord in ("inf", "2"):
        Square(functools.partial(pytest.fail, "called"), threat_model(ord)).start(job(x, y, EPS[ord]))

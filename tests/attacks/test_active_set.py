"""The active set equals the plain loop, whatever shares the batch, and does no more than is needed."""

import dataclasses

import numpy as np
import pytest
from helpers_attacks import bim, binary_linear, half_broken, images, pgd, plain_pgd, tf, wavy
from scipy import stats

from bn_vuln.attacks import active_set, example_rng
from bn_vuln.attacks.active_set import EpsGrid
from bn_vuln.attacks.auto_pgd import APGD
from bn_vuln.attacks.bisection import Bisection
from bn_vuln.attacks.fast_minimum_norm import FMN
from bn_vuln.attacks.pgd import PGD
from bn_vuln.attacks.square import Square
from bn_vuln.attacks.threat_model import ThreatModel
from bn_vuln.runtime import backend

N = 60
EPS = 0.006
SCALE = np.array([0.25, 1.5])


@pytest.fixture(scope="module")
def x():
    return images(N)


@pytest.fixture(scope="module")
def predict():
    return wavy()


@pytest.fixture(scope="module")
def y(predict, x):
    """The predictions, but for every tenth example, which is misclassified."""
    labels = predict(tf.constant(x)).numpy().argmax(axis=1).astype(np.int32)
    labels[::10] = (labels[::10] + 1) % 3
    return labels


def pgd_attack(predict, threat_model, steps=10, step_size=0.25, **options):
    """`step_size` is a share of eps."""
    return PGD(predict, threat_model, steps, step_size * threat_model.eps, **options)


def starts(threat_model, x, seed, count):
    index = tf.range(len(x))
    return [threat_model.random_point(tf.constant(x), index, seed, k).numpy() for k in range(count)]


def once(eps, count=1):
    return EpsGrid([eps], count)


def adversarial(predict, points, y, targeted=False):
    predicted = predict(tf.constant(points)).numpy().argmax(axis=1) == y
    return predicted if targeted else ~predicted


# ---------------------------------------------------------------- equal to the plain loop


@pytest.mark.parametrize(
    ("ord", "random_start", "batch_size"), [("inf", False, 7), ("2", True, 16), ("inf", True, 1), ("2", False, 500)]
)
def test_it_equals_the_plain_loop_with_best_loss(predict, x, y, batch_size, ord, random_start):
    eps = {"inf": 0.008, "2": 0.03}[ord]
    threat_model = ThreatModel(ord, eps, SCALE, 0.0, 1.0)
    search = pgd_attack(predict, threat_model, random_start=random_start, seed=3)
    found = active_set.run(search, x, y, once(eps), batch_size=batch_size)
    begun = starts(threat_model, x, 3, 1) if random_start else [x]
    plain = plain_pgd(predict, x, y, threat_model=threat_model, steps=10, step_size=0.25 * eps, starts=begun)
    expected = adversarial(predict, plain, y)
    assert 0.2 < expected.mean() < 0.9
    np.testing.assert_array_equal(found.is_adversarial, expected)
    np.testing.assert_array_equal(adversarial(predict, found.points, y), expected)
    assert threat_model.violation(found.points, x).max() < 1e-12
    # Without a success the point of the highest loss is kept, as in the plain loop.
    np.testing.assert_allclose(found.points[~expected], plain[~expected], atol=1e-6)
    assert (found.eps[expected] == eps).all()
    assert np.isinf(found.eps[~expected]).all()


@pytest.mark.parametrize(("steps_per_call", "xla"), [(3, False), (1, True), (3, True)])
def test_calls_of_several_steps_and_xla_find_the_same(predict, x, y, steps_per_call, xla):
    threat_model = ThreatModel("inf", EPS)
    plain = active_set.run(pgd_attack(predict, threat_model), x, y, once(EPS), batch_size=16)
    policy = backend.ExecutionPolicy(xla=xla, steps_per_call=steps_per_call, fused_batch_norm=False)
    compiled = active_set.CompiledAttack(pgd_attack(predict, threat_model), policy=policy)
    other = active_set.run(compiled, x, y, once(EPS), batch_size=16)
    np.testing.assert_array_equal(other.is_adversarial, plain.is_adversarial)
    np.testing.assert_array_equal(other.n_evaluations, plain.n_evaluations)
    np.testing.assert_allclose(other.points, plain.points, atol=1e-9)


def test_restarts_equal_the_plain_loop(predict, x, y):
    threat_model = ThreatModel("inf", 0.008)
    found = active_set.run(pgd_attack(predict, threat_model), x, y, once(0.008, 4), batch_size=16)
    begun = starts(threat_model, x, 0, 4)
    plain = plain_pgd(predict, x, y, threat_model=threat_model, steps=10, step_size=0.002, starts=begun)
    np.testing.assert_array_equal(found.is_adversarial, adversarial(predict, plain, y))
    single = active_set.run(pgd_attack(predict, threat_model), x, y, once(0.008), batch_size=16)
    assert found.is_adversarial.sum() > single.is_adversarial.sum()


def test_a_targeted_search_aims_at_its_target(predict, x, y):
    targets = ((y + 1) % 3)[:, None]
    threat_model = ThreatModel("inf", 0.01)
    found = active_set.run(
        pgd_attack(predict, threat_model, targeted=True), x, y, once(0.01), targets=targets, batch_size=16
    )
    assert 0.2 < found.is_adversarial.mean() < 1
    np.testing.assert_array_equal(
        found.is_adversarial, adversarial(predict, found.points, targets[:, 0], targeted=True)
    )


def test_each_attempt_has_its_own_target(predict, x, y):
    targets = np.stack([(y + 1) % 3, (y + 2) % 3], axis=1)
    threat_model = ThreatModel("inf", 0.01)
    search = pgd_attack(predict, threat_model, targeted=True, random_start=False)
    both = active_set.run(search, x, y, once(0.01, 2), targets=targets, batch_size=16)
    each = [active_set.run(search, x, y, once(0.01), targets=targets[:, k : k + 1]).is_adversarial for k in range(2)]
    np.testing.assert_array_equal(both.is_adversarial, each[0] | each[1])


# ---------------------------------------------------------------- no more than is needed


def test_it_evaluates_no_point_after_the_first_success(x):
    model = binary_linear()
    y = (model.predict(tf.constant(x)).numpy().argmax(axis=1)).astype(np.int32)
    margins, dual = model.margin(x, y), np.abs(model.w).sum()
    eps, steps = float(np.median(margins) / dual), 8
    search = pgd_attack(model.predict, ThreatModel("inf", eps), steps=steps, step_size=1 / steps, random_start=False)
    found = active_set.run(search, x, y, once(eps), batch_size=16)
    needed = np.floor(margins / (dual * eps / steps)).astype(int) + 2  # points, from x to the first success
    np.testing.assert_array_equal(found.n_evaluations, np.where(needed <= steps + 1, needed, steps + 1))
    np.testing.assert_array_equal(found.is_adversarial, margins < eps * dual)


def test_slots_are_filled_again_and_shrink_at_the_end(x, y, predict):
    sizes, threat_model = [], ThreatModel("inf", EPS)

    def counted(points):
        sizes.append(len(points))
        return predict(points)

    search = pgd_attack(counted, threat_model)
    tf.config.run_functions_eagerly(True)
    try:
        found = active_set.run(search, np.tile(x, (3, 1, 1, 1)), np.tile(y, 3), once(EPS), batch_size=64)
    finally:
        tf.config.run_functions_eagerly(False)
    assert set(sizes) == {60, 30}  # 180 examples make three batches of one size
    assert sum(sizes) < 1.5 * found.n_evaluations.sum() + 60 * 11
    assert sum(sizes) < len(found.is_adversarial) * 11


@pytest.mark.parametrize("keep", ["last", "best_loss"])
def test_a_batch_keeps_its_examples_where_all_steps_are_taken(predict, x, y, keep):
    """As batch statistics need it: batches of consecutive examples, for every step of every restart."""
    seen = []

    def recorded(points):
        seen.append(points.numpy().mean(axis=(1, 2, 3)))
        return predict(points)

    tf.config.run_functions_eagerly(True)
    try:
        pgd(recorded, x, y, threat_model=ThreatModel("inf", 1e-6), steps=3, step_size=1e-7, restarts=2, keep=keep,
            batch_size=20)  # fmt: skip
    finally:
        tf.config.run_functions_eagerly(False)
    means = x.mean(axis=(1, 2, 3))
    assert len(seen) == 3 * 2 * 4
    for k, values in enumerate(seen):
        batch = k // 4 % 3
        np.testing.assert_allclose(values, means[20 * batch : 20 * (batch + 1)], atol=1e-5)


def test_the_last_point_is_not_evaluated_without_restarts(predict, x, y):
    seen = []

    def counted(points):
        seen.append(len(points))
        return predict(points)

    tf.config.run_functions_eagerly(True)
    try:
        bim(counted, x, y, threat_model=ThreatModel("inf", EPS), steps=1, step_size=EPS)
    finally:
        tf.config.run_functions_eagerly(False)
    assert seen == [N]


def test_the_last_iterate_inside_of_a_training_step_is_that_of_the_active_set(predict, x, y):
    threat_model = ThreatModel("2", 0.03, SCALE, 0.0, 1.0)
    attack = pgd_attack(predict, threat_model, steps=4, seed=5)
    inside = backend.compile(
        lambda x, y, index: active_set.last_iterate(attack, x, y, eps=threat_model.eps, index=index)
    )
    found = inside(tf.constant(x), tf.constant(y), tf.range(N)).numpy()
    expected = pgd(predict, x, y, threat_model=threat_model, steps=4, step_size=0.25 * 0.03, seed=5)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_on_progress_gets_the_number_of_examples_that_are_done(predict, x, y):
    reported = []
    active_set.run(
        pgd_attack(predict, ThreatModel("inf", EPS)), x, y, once(EPS), batch_size=16, on_progress=reported.append
    )
    assert reported == sorted(reported)
    assert reported[-1] == N


def test_results_do_not_depend_on_who_shares_the_batch(predict, x, y):
    threat_model, order = ThreatModel("2", 0.02), np.random.default_rng(0).permutation(N)
    whole = active_set.run(pgd_attack(predict, threat_model), x, y, once(0.02), batch_size=16)
    mixed = active_set.run(pgd_attack(predict, threat_model), x[order], y[order], once(0.02), index=order, batch_size=7)
    np.testing.assert_array_equal(mixed.is_adversarial, whole.is_adversarial[order])
    np.testing.assert_allclose(mixed.points, whole.points[order], atol=1e-9)


# ---------------------------------------------------------------- the search over eps


def test_an_eps_grid_is_ascending():
    for grid in ([], [0.1, 0.1], [0.2, 0.1]):
        with pytest.raises(ValueError, match="ascending"):
            EpsGrid(grid)


@pytest.mark.slow
def test_an_eps_grid_ends_at_the_first_eps_that_an_example_resists(predict, x, y):
    count, grid, threat_model = 3, [0.002, 0.005, 0.01], ThreatModel("inf", 1.0)
    found = active_set.run(pgd_attack(predict, threat_model), x, y, EpsGrid(grid, count), batch_size=16)
    alone = [active_set.run(pgd_attack(predict, threat_model), x, y, once(eps, count), batch_size=16) for eps in grid]
    # At this eps and all above it.
    successes = np.logical_and.accumulate([each.is_adversarial for each in alone][::-1])[::-1]
    expected = np.min([np.where(s, eps, np.inf) for s, eps in zip(successes, grid, strict=True)], axis=0)
    np.testing.assert_array_equal(found.eps, expected)
    assert len(set(expected)) == 4
    for eps in grid:
        assert ThreatModel("inf", eps).violation(found.points[found.eps == eps], x[found.eps == eps]).max() < 1e-12


@pytest.mark.slow
def test_an_eps_grid_is_resisted_once(predict, x, y):
    grid, threat_model = np.linspace(0.001, 0.008, 8), ThreatModel("inf", 1.0)
    eps_grid = active_set.run(pgd_attack(predict, threat_model), x, y, EpsGrid(grid), batch_size=16)
    alone = [
        active_set.run(pgd_attack(predict, threat_model), x, y, once(eps), batch_size=16).n_evaluations.sum()
        for eps in grid
    ]
    assert eps_grid.n_evaluations.sum() < 0.5 * sum(alone)


@pytest.mark.parametrize(
    "search",
    [EpsGrid, lambda grid, upper_eps: Bisection(grid[-1], 0.001, upper_eps=upper_eps)],
    ids=["grid", "bisection"],
)
def test_eps_with_a_known_success_are_not_tried_again(predict, x, y, search):
    grid, threat_model, upper_eps = (
        [0.002, 0.005, 0.01],
        ThreatModel("inf", 1.0),
        np.tile([0.0, 0.0005, 0.005, np.inf], N // 4),
    )
    found = active_set.run(pgd_attack(predict, threat_model), x, y, search(grid, upper_eps=upper_eps), batch_size=16)
    assert (found.n_evaluations[upper_eps < 0.001] == 0).all()
    assert (found.eps[found.is_adversarial] < upper_eps[found.is_adversarial]).all()
    assert found.is_adversarial[upper_eps == 0.005].any()


@pytest.mark.parametrize(("ord", "dual"), [("inf", 1), ("2", 2)])
def test_bisection_finds_the_smallest_eps(x, ord, dual):
    model = binary_linear()
    y = model.predict(tf.constant(x)).numpy().argmax(axis=1).astype(np.int32)
    exact = model.margin(x, y) / np.linalg.norm(model.w.ravel(), dual)
    high = float(np.quantile(exact, 0.8))
    step = 1.0 if ord == "inf" else 2.5 / 10
    search = pgd_attack(model.predict, ThreatModel(ord, 1.0), steps=10, step_size=step, random_start=False)
    found = active_set.run(search, x, y, Bisection(high, 1e-3), batch_size=16)
    reached = exact < high
    np.testing.assert_array_equal(found.is_adversarial, reached)
    assert ((found.eps[reached] >= exact[reached]) & (found.eps[reached] <= exact[reached] + 1e-3)).all()
    assert np.isinf(found.eps[~reached]).all()
    upper_eps = np.where(reached, exact + 0.01, np.inf)
    again = active_set.run(search, x, y, Bisection(high, 1e-3, upper_eps=upper_eps), batch_size=16)
    np.testing.assert_allclose(again.eps[reached], exact[reached], atol=1e-3)


# ---------------------------------------------------------------- random numbers


def test_random_numbers_are_uniform_normal_and_independent():
    i = tf.range(200)
    uniform, normal = example_rng.uniform(500, 7, i).numpy(), example_rng.normal(501, 7, i, i).numpy()
    assert stats.kstest(uniform.ravel(), "uniform").pvalue > 0.001
    assert stats.kstest(normal.ravel(), "norm").pvalue > 0.001
    between = np.corrcoef(uniform)[np.triu_indices(200, 1)]
    assert abs(between.std() * np.sqrt(500) - 1) < 0.02
    assert normal.shape == (200, 501)


def hashed(bits):
    """MurmurHash3's finalizer, in NumPy."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> np.uint32(shift))) * np.uint32(factor)
    return bits ^ (bits >> np.uint32(16))


@pytest.mark.parametrize("xla", [False, True])
def test_random_numbers_are_the_published_bits(xla):
    """Published starting points follow from them."""
    golden, seed, restart, index = np.uint32(0x9E3779B9), 3, np.array([0, 4], np.uint32), np.array([7, 9999], np.uint32)

    def key(seed):
        state = hashed(np.full(2, (seed * int(golden) + 1) % 2**32, np.uint32))
        for part in (restart, index):
            state = hashed(state ^ (golden * (part + np.uint32(1))))
        return state[:, None]

    bits = hashed(hashed(golden * np.arange(785, dtype=np.uint32) ^ key(seed)) + key(seed + 1))
    expected = ((bits >> np.uint32(9)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)
    draw = backend.compile(lambda *keys: example_rng.uniform(785, seed, *keys), xla=xla)
    np.testing.assert_array_equal(draw(restart.astype(np.int32), index.astype(np.int32)), expected)


def test_random_numbers_depend_on_the_example_and_the_seed_alone():
    i = tf.constant([5, 9, 5])
    drawn = example_rng.uniform(50, 1, i).numpy()
    np.testing.assert_array_equal(drawn[0], drawn[2])
    assert not np.isclose(drawn[0], drawn[1]).any()
    assert not np.isclose(drawn[0], example_rng.uniform(50, 2, i).numpy()[0]).any()
    assert not np.isclose(drawn[0], example_rng.uniform(50, 1, i, i).numpy()[0]).any()


# ---------------------------------------------------------------- models that are broken in places

THREAT_MODEL = ThreatModel("inf", 0.5, 1.0, 0.0, 1.0)
ATTACKS = {
    "pgd": lambda predict, threat_model: PGD(predict, threat_model, 20, 0.05, random_start=False),
    "apgd": lambda predict, threat_model: APGD(predict, threat_model, 20, random_start=False),
    "fmn": lambda predict, threat_model: FMN(predict, threat_model, 20),
    "square": lambda predict, threat_model: Square(predict, threat_model, 200),
}


@pytest.mark.parametrize(
    ("name", "case", "ord"),
    [("pgd", "nan gradient", "inf"), ("apgd", "infinite gradient", "2"), ("fmn", "nan gradient", "inf")],
)
def test_gradients_that_are_not_finite_do_not_hold_an_example(name, case, ord):
    predict, x = half_broken(case)
    search = ATTACKS[name](predict, dataclasses.replace(THREAT_MODEL, ord=ord))
    assert active_set.run(search, x, np.zeros(1, np.int32), EpsGrid([0.5])).is_adversarial.all()


@pytest.mark.parametrize(("name", "label"), [("pgd", 0), ("pgd", 1), ("square", 0)])
def test_logits_that_are_not_finite_are_no_class(name, label):
    """Whichever class comes first: the argmax of NaN is 0."""
    predict, x = half_broken("nan logits")
    found = active_set.run(
        ATTACKS[name](lambda z: predict(z)[:, :: 1 - 2 * label], THREAT_MODEL),
        x,
        np.full(1, label, np.int32),
        EpsGrid([0.5]),
    )
    assert found.is_adversarial.all()
    assert np.isnan(predict(tf.constant(found.points))).any(axis=1).all()

"""What each normalization layer does to perturbations, on models where it is known."""

from dataclasses import replace

import numpy as np
import pytest
from helpers_attacks import keras

from bn_vuln.auditing import amplification as amplifying
from bn_vuln.auditing import layerwise
from bn_vuln.auditing.amplification import Attacked
from bn_vuln.auditing.layerwise import LayerNumbers, low_variance_channels, statistics_distance
from bn_vuln.data.info import DatasetInfo
from bn_vuln.evaluation.classifier import from_model
from bn_vuln.models import normalization_layers
from bn_vuln.models.normalization_layers import LayerState
from bn_vuln.runtime import backend

L = keras.layers
SIDE, N = 4, 12
INFO = DatasetInfo("made up", (SIDE, SIDE, 1), ("a", "b", "c"), (0.5,), (0.25,), {})


@pytest.fixture(autouse=True)
def _same_kernels_each_time():
    keras.utils.set_random_seed(0)


def attacked(ord="2", size=0.05, low=0.3, high=0.7, n=N):
    """Images with an adversarial change of that length, or largest entry; far from the box by default."""
    generator = np.random.default_rng(0)
    x = generator.uniform(low, high, (n, SIDE, SIDE, 1)).astype(np.float32)
    change = generator.normal(size=x.shape)
    change = np.sign(change) if ord == "inf" else change / np.linalg.norm(change, axis=(1, 2), keepdims=True)
    adversarial = np.clip(x + size * change, 0, 1).astype(np.float32)
    return Attacked(x, generator.integers(0, 3, n).astype(np.int32), adversarial, generator.permutation(1000)[:n], ord)


def set_bn(layer, gamma, mean, variance):
    for variable, value in ((layer.gamma, gamma), (layer.moving_mean, mean), (layer.moving_variance, variance)):
        variable.assign(np.broadcast_to(value, variable.shape))


def linear(variance, gamma=1.0, c=0.01, inside=False):
    """A linear model with BN in it, perhaps in a model of its own, with known numbers."""
    variance = np.asarray(variance, np.float64)
    bn = L.BatchNormalization(epsilon=c, name="bn")
    normalize = bn
    if inside:
        given = keras.Input((len(variance),))
        normalize = keras.Model(given, bn(given), name="inner")
    inputs = keras.Input((SIDE, SIDE, 1))
    first, last = L.Dense(len(variance), name="first"), L.Dense(3, name="last")
    model = keras.Model(inputs, last(normalize(first(L.Flatten()(inputs)))))
    set_bn(bn, gamma, 0.3, variance)
    return model, first.kernel.numpy().astype(float), bn, last.kernel.numpy().astype(float)


def measure(model, images, **options):
    classifier = from_model(model, INFO, {"made": "up"})
    layers = normalization_layers.find(model, classifier.predict, images.x)
    return layers, layerwise.measure(classifier, layers, images, **options)


def random_changes(images, seed=0):
    """[n, N_RANDOM, pixels]"""
    drawn = backend.compile(lambda x, a, i: amplifying.random_changes(x, a, i, images.ord, images.box, seed))(
        images.x, images.adversarial, images.index.astype(np.int32)
    )
    return np.asarray(drawn, np.float64).reshape(8, len(images.x), -1).transpose(1, 0, 2)


def amplification(images, matrix):
    delta = (images.adversarial.astype(float) - images.x).reshape(len(images.x), -1)
    rho = random_changes(images)
    stretched = np.linalg.norm(delta @ matrix, axis=1) / np.linalg.norm(delta, axis=1)
    by_chance = (np.linalg.norm(rho @ matrix, axis=2) / np.linalg.norm(rho, axis=2)).mean(axis=1)
    return np.median(stretched / by_chance)


def margin_shares(images, model, gain, last, low):
    logits = np.asarray(model(images.x))
    shares = []
    for z, y in zip(logits, images.labels, strict=True):
        rival = np.argmax(np.where(np.arange(3) == y, -np.inf, z))
        squares = (gain * (last[:, y] - last[:, rival])) ** 2
        shares.append(squares[low].sum() / squares.sum())
    return np.median(shares)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("ord", ["inf", "2"])
def test_a_linear_model_exactly(ord, inside):
    variance, gamma = np.array([4.0, 1e-3, 2.0, 3.0, 0.02]), np.array([1.0, -2.0, 0.5, 1.0, 3.0])
    model, first, _, last = linear(variance, gamma, inside=inside)
    images = attacked(ord)
    layers, found = measure(model, images)
    gain = gamma / np.sqrt(variance + 0.01)
    given, returned = amplification(images, first), amplification(images, first * gain)
    numbers = found.layers["bn"]
    assert [layer.name for layer in layers] == ["bn"]
    np.testing.assert_allclose(numbers.amplification, returned, rtol=1e-3)
    np.testing.assert_allclose(numbers.through, returned / given, rtol=1e-3)
    np.testing.assert_allclose(found.logits, amplification(images, (first * gain) @ last), rtol=1e-3)
    assert numbers.low_variance_channels == 2  # .021 of 9.021
    expected = margin_shares(images, model, np.abs(gain), last, [1, 4])
    np.testing.assert_allclose(numbers.low_variance_share, expected, rtol=1e-3)
    assert numbers.statistics_distance is None


def test_a_channel_of_hundred_fold_gain_that_an_attack_follows_is_seen():
    inputs = keras.Input((SIDE, SIDE, 1))
    h = L.Dense(8)(L.Flatten()(inputs))
    bns = [L.BatchNormalization(epsilon=1e-6, name=f"bn{i}") for i in range(3)]
    kernels = [np.linalg.qr(np.random.default_rng(seed).normal(size=(8, 8)))[0] for seed in range(3)]
    for bn, kernel in zip(bns, kernels, strict=True):
        dense = L.Dense(8, use_bias=False)
        h = dense(bn(h))
        dense.kernel.assign(kernel)
    model = keras.Model(inputs, L.Dense(3)(h))
    variance = np.where(np.arange(8) == 5, 1e-4, 1.0)
    for bn in bns:
        set_bn(bn, 1.0, 0.0, variance if bn is bns[1] else 1.0)
    images = attacked(size=0.02)
    first = model.layers[2].kernel.numpy().astype(float)
    along = (first @ kernels[0])[:, 5].reshape(SIDE, SIDE, 1)  # what moves the channel most
    images = replace(images, adversarial=(images.x + 0.02 * along / np.linalg.norm(along)).astype(np.float32))
    _, found = measure(model, images)
    numbers = [found.layers[f"bn{i}"] for i in range(3)]
    np.testing.assert_allclose([numbers[0].through, numbers[2].through], 1.0, atol=1e-3)
    assert numbers[1].through > 1.5
    assert numbers[1].low_variance_channels == 1
    assert numbers[1].low_variance_share > 0.9
    assert numbers[0].low_variance_share == pytest.approx(kernels[0][0, 5] ** 2, abs=0.02)


@pytest.mark.parametrize("ord", ["inf", "2"])
@pytest.mark.parametrize(("low", "high"), [(0.3, 0.7), (0.0, 0.1)])
def test_random_changes_are_of_the_threat_model(ord, low, high):
    images = attacked(ord, 0.1, low=low, high=high)
    rho = random_changes(images)
    points = images.x.reshape(N, 1, -1) + rho
    assert points.min() >= 0
    assert points.max() <= 1
    length = np.linalg.norm((images.adversarial - images.x).reshape(N, -1).astype(float), axis=1)[:, None]
    if low > 0:
        np.testing.assert_allclose(np.linalg.norm(rho, axis=2), np.broadcast_to(length, rho.shape[:2]), rtol=1e-4)
        if ord == "inf":
            np.testing.assert_allclose(np.abs(rho), 0.1, rtol=1e-3)
    else:
        np.testing.assert_allclose(np.linalg.norm(rho, axis=2) / length, 1, atol=0.1)
    assert abs(np.corrcoef(rho.reshape(-1, rho.shape[2]))[np.triu_indices(N * 8, 1)].mean()) < 0.1
    assert not np.array_equal(rho, random_changes(images, seed=1))


def test_numbers_do_not_depend_on_batches_nor_on_the_other_images():
    model = linear([1.0, 0.5, 1e-4, 2.0])[0]
    images = attacked("inf")
    found = [measure(model, images, batch_size=size)[1] for size in (1, 30, 500)]
    for other in found[1:]:
        for name in ("amplification", "through", "low_variance_share"):
            assert getattr(other.layers["bn"], name) == pytest.approx(getattr(found[0].layers["bn"], name), rel=1e-3)
    turned = {name: getattr(images, name)[::-1] for name in ("x", "labels", "adversarial", "index")}
    again = measure(model, replace(images, **turned))[1].layers["bn"]
    assert again.amplification == pytest.approx(found[0].layers["bn"].amplification, rel=1e-3)
    other = measure(model, replace(images, index=images.index + 1))[1].layers["bn"]
    assert other.amplification != pytest.approx(again.amplification, rel=1e-3)


def test_images_that_the_attack_left_alone_count_for_gradients_only():
    model = linear([1.0, 0.5, 2.0])[0]
    images = attacked()
    some = replace(images, adversarial=np.where(np.arange(N)[:, None, None, None] < 5, images.adversarial, images.x))
    fewer = {name: getattr(images, name)[:5] for name in ("x", "labels", "adversarial", "index")}
    found, expected = (measure(model, one)[1].layers["bn"] for one in (some, replace(images, **fewer)))
    assert found.amplification == pytest.approx(expected.amplification, rel=1e-4)
    none = measure(model, replace(images, adversarial=images.x))[1]
    assert (none.logits, none.layers["bn"].amplification, none.layers["bn"].through) == (None, None, None)
    assert none.layers["bn"].low_variance_share == pytest.approx(found.low_variance_share, rel=1e-5)


def test_group_norm_has_amplification_only_and_a_shared_layer_its_first_call():
    inputs = keras.Input((SIDE, SIDE, 1))
    shared = L.BatchNormalization(name="shared")
    h = L.GroupNormalization(groups=2, name="group")(L.Conv2D(4, 3)(inputs))
    h = shared(L.Dense(4)(L.ReLU()(shared(h))))
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(h)))
    set_bn(shared, 1.0, 0.0, 1.0)
    layers, found = measure(model, attacked())
    assert [(layer.name, layer.calls) for layer in layers] == [("group", 1), ("shared", 2)]
    group = found.layers["group"]
    assert group == LayerNumbers(group.amplification, group.through)
    assert group.amplification > 0
    assert group.through > 0
    assert found.layers["shared"].through == pytest.approx(1, rel=1e-3)  # the first call only scales


def test_numbers_that_are_not_finite_are_none():
    model, _, bn, _ = linear([1.0, 0.5, 2.0])
    set_bn(bn, 0.0, 0.0, 1.0)
    numbers = measure(model, attacked())[1]
    assert numbers.logits is None  # nothing moves: 0 / 0
    assert numbers.layers["bn"] == LayerNumbers(None, None, None, 1, None)


def test_half_precision():
    images, found = attacked(size=0.5), []
    for policy in ("float32", "mixed_float16"):
        keras.utils.set_random_seed(0)
        keras.config.set_dtype_policy(policy)
        try:
            found.append(measure(linear([1.0, 1e-3, 2.0])[0], images)[1].layers["bn"])
        finally:
            keras.config.set_dtype_policy("float32")
    for name in ("amplification", "through", "low_variance_share"):
        assert getattr(found[1], name) == pytest.approx(getattr(found[0], name), rel=0.02)


@pytest.mark.parametrize(
    ("variance", "expected"),
    [([1, 1, 1], [0]), ([5, 0, 0.04, 0.02, 3], [1, 3, 2]), ([0, 0], [0, 1]), ([99, 1], [1]), ([98, 1.9, 0.1], [2])],
)
def test_low_variance_channels(variance, expected):
    assert low_variance_channels(np.array(variance, float)).tolist() == expected


def test_the_distance_of_statistics_is_that_of_what_the_layer_returns():
    gamma, c = np.array([1.0, -2.0, 0.5]), 0.01
    tracked = LayerState(c, gamma, np.array([0.0, 1.0, 2.0]), np.array([1.0, 4.0, 0.5]))
    actual = replace(tracked, mean=np.array([0.5, 1.0, 1.0]), variance=np.array([2.0, 1.0, 0.5]))
    h = np.random.default_rng(0).normal(size=(200_000, 3))
    h = (h - h.mean(axis=0)) / h.std(axis=0) * np.sqrt(actual.variance) + actual.mean

    def normalized(state):
        return gamma * (h - state.mean) / np.sqrt(state.variance + c)

    error = ((normalized(tracked) - normalized(actual)) ** 2).mean(axis=0).sum()
    expected = np.sqrt(error / normalized(actual).var(axis=0).sum())
    assert statistics_distance(tracked, actual) == pytest.approx(expected, rel=1e-9)
    assert statistics_distance(tracked, tracked) == 0
    plain = replace(tracked, gamma=None), replace(actual, gamma=None)
    ones = replace(tracked, gamma=np.ones(3)), replace(actual, gamma=np.ones(3))
    assert statistics_distance(*plain) == statistics_distance(*ones)
    assert statistics_distance(tracked, replace(actual, variance=np.zeros(3))) is None
    model = linear([1.0, 4.0, 0.5], gamma)[0]
    state = replace(tracked, mean=np.full(3, 0.3))
    found = measure(model, attacked(), actual={"bn": replace(actual, mean=np.array([0.8, 0.3, -0.7]))})[1]
    assert found.layers["bn"].statistics_distance == pytest.approx(
        statistics_distance(state, replace(actual, mean=np.array([0.8, 0.3, -0.7]))), rel=1e-5
    )

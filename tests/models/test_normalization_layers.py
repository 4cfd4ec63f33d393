"""Normalization layers of any model: found, estimated again from the front to the back, and changed."""

import numpy as np
import pytest
from helpers_attacks import keras

from bn_vuln.config import Mend
from bn_vuln.errors import UsageError
from bn_vuln.models import normalization_layers
from bn_vuln.models.custom_layers import filter_response_class
from bn_vuln.models.normalization_layers import (
    Estimator,
    LayerState,
    adjustable,
    applied,
    changed,
    check_names,
    median_variance,
    write,
)
from bn_vuln.runtime import backend

L = keras.layers
C = 0.01
SHAPE = (5, 5, 2)
X = np.random.default_rng(0).uniform(size=(40, *SHAPE)).astype(np.float32)
KINDS = {  # a layer, its kind, channels, values of a channel, numbers that it divides by for each image
    "batch": (lambda: L.BatchNormalization(epsilon=C), "batch", 4, 25, None),
    "batch, no gamma": (lambda: L.BatchNormalization(epsilon=C, scale=False), "batch", 4, 25, None),
    "batch, other axis": (lambda: L.BatchNormalization(epsilon=C, axis=1), "batch", 5, 20, None),
    "group": (lambda: L.GroupNormalization(2, epsilon=C), "group", 4, 25, 2),
    "groups of one": (lambda: L.GroupNormalization(-1, epsilon=C, scale=False), "instance", 4, 25, 4),
    "one group": (lambda: L.GroupNormalization(1, epsilon=C), "layer", 4, 25, 1),
    "layer": (lambda: L.LayerNormalization(epsilon=C), "layer", 4, 25, 25),
    "layer, all axes": (lambda: L.LayerNormalization(axis=[1, 2, 3], epsilon=C), "layer", 4, 25, 1),
    "rms": (lambda: L.RMSNormalization(epsilon=C), "rms", 4, 25, 25),
    "filter response": (lambda: filter_response_class()(c=C), "filter response", 4, 25, 4),
}


def randomized(model, seed=0):
    """Random numbers from .5 to 2 in all vectors, statistics too."""
    generator = np.random.default_rng(seed)
    for variable in model.variables:
        if len(variable.shape) == 1 and variable.dtype == "float32":
            variable.assign(generator.uniform(0.5, 2, variable.shape))
    return model


def with_layer(make):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPE)
    h = make()(L.Conv2D(4, 3, padding="same")(inputs))
    return randomized(keras.Model(inputs, L.Dense(3, dtype="float32")(L.Flatten()(h))))


def predict_of(model):
    return lambda x: model(x, training=False)


def find(model, x=X):
    return normalization_layers.find(model, predict_of(model), x)


def logits(model, x=X):
    return np.asarray(model(x, training=False))


def estimator(model, layers, images=X, **options):
    return Estimator(model, layers, predict_of(model), images, **options)


def two_bn():
    """Dense, BN, ReLU, Dense, BN, Dense."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input(SHAPE)
    h = L.BatchNormalization(epsilon=C, name="first")(L.Dense(6)(L.Flatten()(inputs)))
    h = L.BatchNormalization(epsilon=2 * C, name="second")(L.Dense(5)(L.ReLU()(h)))
    return randomized(keras.Model(inputs, L.Dense(3)(h)))


def by_hand(model, x, r, keep):
    """[(mean, variance, c, gamma)] of `two_bn`, front to back, and the logits, in NumPy."""
    h, found = x.reshape(len(x), -1).astype(float), []
    for layer in model.layers[2:]:
        if isinstance(layer, L.Dense):
            h = h @ layer.kernel.numpy().astype(float) + layer.bias.numpy()
        elif isinstance(layer, L.ReLU):
            h = np.maximum(h, 0)
        else:
            mean, variance, gamma = h.mean(axis=0), h.var(axis=0), layer.gamma.numpy().astype(float)
            m = np.median(variance)
            c = layer.epsilon + r * m
            gamma = gamma * np.sqrt((m + c) / (m + layer.epsilon)) if keep else gamma
            found.append((mean, variance, c, gamma))
            h = gamma * (h - mean) / np.sqrt(variance + c) + layer.beta.numpy()
    return found, h


def close(found, expected, tolerance=1e-4):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


# ---------------------------------------------------------------- found


@pytest.mark.parametrize("name", KINDS)
def test_what_a_layer_is(name):
    make, kind, channels, values, divisors = KINDS[name]
    (layer,) = find(with_layer(make))
    assert (layer.kind, layer.channels, layer.values, layer.calls) == (kind, channels, values, 1)
    assert layer.state.c == pytest.approx(C, rel=1e-6)
    assert (layer.momentum, layer.frozen) == (0.99 if kind == "batch" else None, False)
    if divisors is None:
        assert layer.input_variance is None
        np.testing.assert_array_equal(layer.variance, layer.layer.moving_variance.numpy())
    else:
        assert layer.state.mean is layer.state.variance is layer.state.gain is None
        assert layer.variance.shape == (divisors * len(X),)


@pytest.mark.parametrize("name", [name for name, about in KINDS.items() if about[4]])
def test_other_kinds_divide_by_what_is_said(name):
    """With c far above it the layer divides by the root of c, with c = 0 by its own."""
    make, _, _, _, divisors = KINDS[name]
    (layer,) = find(with_layer(make))
    h = np.random.default_rng(0).normal(2, 1, (1, 5, 5, 4)).astype(np.float32)
    variance = np.asarray(normalization_layers.own_variance(layer.layer, layer.kind, h)).ravel()
    with adjustable([layer]), applied([layer], {layer.name: LayerState(1e6)}):
        far = np.asarray(layer.layer(h), float)
    with adjustable([layer]), applied([layer], {layer.name: LayerState(0.0)}):
        near = np.asarray(layer.layer(h), float)
    beta = getattr(layer.layer, "beta", None)
    shift = 0 if beta is None else np.reshape(beta.numpy(), (-1, *beta.shape) if len(beta.shape) > 1 else (-1,))
    ratio = np.sort(np.unique(((near - shift) / (far - shift) * 1e-3).round(3)))
    np.testing.assert_allclose(
        [ratio[0], ratio[-1]], variance[[variance.argmax(), variance.argmin()]] ** -0.5, rtol=0.02
    )
    assert len(variance) == divisors


def test_layers_are_found_wherever_they_are_in_the_order_of_their_calls():
    class Block(L.Layer):
        def __init__(self):
            super().__init__()
            self.late, self.early = L.LayerNormalization(name="same"), L.BatchNormalization(name="same")
            self.unused = L.BatchNormalization(name="unused")

        def call(self, x):
            return self.late(self.early(x))

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.block, self.dense = Block(), L.Dense(3)
            self.inner = keras.Sequential([keras.Input(SHAPE), L.Conv2D(2, 1), L.BatchNormalization(name="inner")])
            self.inner.layers[-1].trainable = False

        def call(self, x):
            h = self.block(self.inner(x))
            return self.dense(L.Flatten()(self.block.early(h)))

    model = Subclassed()
    model(X)
    layers = find(model)
    assert [(layer.name, layer.kind, layer.calls, layer.frozen) for layer in layers] == [
        ("inner", "batch", 1, True),
        ("same", "batch", 2, False),
        ("same#2", "layer", 1, False),
    ]


def test_a_constant_of_another_name_and_attributes_that_are_none():
    class Own(L.Layer):
        def __init__(self, name_of_c):
            super().__init__()
            self.c = 64  # not the constant
            self.name_of_c = name_of_c
            if name_of_c:
                setattr(self, name_of_c, C)

        def build(self, shape):
            self.moving_mean = self.add_weight(shape=(shape[-1],), initializer="zeros", trainable=False)
            self.moving_variance = self.add_weight(shape=(shape[-1],), initializer="ones", trainable=False)

        def call(self, x, training=False):
            c = getattr(self, self.name_of_c) if self.name_of_c else C
            return (x - self.moving_mean) / keras.ops.sqrt(self.moving_variance + c)

    for name, c in (("eps", C), ("epsilon", C), ("", 0.0)):
        model = with_layer(lambda name=name: Own(name))
        (layer,) = find(model)
        assert (layer.kind, layer.state.c, layer.state.gamma) == ("batch", c, None)
        state = changed(layer.state, 2.0, Mend(relative_c=0.5, keep_gain=False))
        h = layer.layer.moving_variance.numpy() + C + 1.0
        expected = np.asarray(layer.layer(X[..., :1].repeat(4, axis=3)) + 0.0)
        expected = expected * np.sqrt((h - 1.0) / h)
        write([layer], {layer.name: state})  # its config has no constant: it goes into the variance
        close(np.asarray(layer.layer(X[..., :1].repeat(4, axis=3))), expected)


def test_no_normalization_layer():
    inputs = keras.Input(SHAPE)
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(inputs)))
    assert find(model) == []
    assert estimator(model, []).refusal() == "no batch norm"
    assert estimator(model, []).states(Mend(relative_c=1)) == {}


def test_dead_channels_do_not_count_for_the_median():
    assert median_variance(np.array([0.0, 1e-9, 1.0, 2.0, 5.0])) == 2.0
    assert median_variance(np.array([0.0, 1.0, 2.0])) == 1.5
    assert median_variance(np.zeros(3)) == 0.0
    for variance in ([0.0, 1e-9, 1.0, 2.0, 5.0], [3.0, 0.0, 1.0], [0.0, 0.0], [4.0]):
        found = normalization_layers._median_of_live(np.asarray(variance, np.float32))
        assert float(found) == median_variance(np.asarray(variance))


# ---------------------------------------------------------------- estimated


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("r", [0.0, 0.3, 3.0])
def test_statistics_are_estimated_from_the_front_to_the_back(r, keep):
    model = two_bn()
    x = np.random.default_rng(3).uniform(size=(250, *SHAPE)).astype(np.float32)
    layers = find(model, x)
    expected, outputs = by_hand(model, x, r, keep)
    states = estimator(model, layers, x).states(Mend(relative_c=r, keep_gain=keep, reestimate=True))
    for name, (mean, variance, c, gamma) in zip(("first", "second"), expected, strict=True):
        close(states[name].mean, mean)
        close(states[name].variance, variance)
        assert states[name].c == pytest.approx(c, rel=1e-4)
        close(states[name].gamma, gamma)
    with applied(layers, states):
        close(logits(model, x), outputs)


def test_another_c_of_the_first_layer_alone_or_a_given_one():
    model = two_bn()
    x = np.random.default_rng(3).uniform(size=(250, *SHAPE)).astype(np.float32)
    found = estimator(model, find(model, x), x)
    one = found.states(Mend(relative_c=3, layers=("first",), reestimate=True))
    both, none = (found.states(Mend(relative_c=r, reestimate=True)) for r in (3, 0))
    assert [one["first"].c, one["second"].c] == [both["first"].c, 2 * C]
    close(one["second"].mean, both["second"].mean)
    assert np.abs(one["second"].mean - none["second"].mean).max() > 0.01
    given = found.states(Mend(c=0.5, reestimate=True))
    r = (0.5 - C) / median_variance(given["first"].variance)
    close(given["second"].variance, found.states(Mend(relative_c=r, reestimate=True))["second"].variance)
    assert [state.c for state in given.values()] == [0.5, 0.5]


def test_batches_are_pooled():
    model = two_bn()
    x = np.random.default_rng(3).uniform(size=(400, *SHAPE)).astype(np.float32)
    whole, parts = (
        estimator(model, find(model, x), x, batch_size=size).states(Mend(reestimate=True)) for size in (400, 100)
    )
    close(parts["first"].mean, whole["first"].mean, 1e-5)
    close(parts["first"].variance, whole["first"].variance, 1e-5)
    close(parts["second"].variance, whole["second"].variance, 0.1)


def test_what_other_kinds_do_is_in_the_statistics_behind_them():
    def make(c=C):
        keras.utils.set_random_seed(0)
        inputs = keras.Input(SHAPE)
        h = L.GroupNormalization(2, epsilon=c, name="group")(L.Conv2D(4, 3)(inputs))
        return keras.Model(inputs, L.Dense(3)(L.Flatten()(L.BatchNormalization(name="batch")(h))))

    model = make()
    layers = find(model)
    mend = Mend(relative_c=2, keep_gain=False, reestimate=True)
    outside = estimator(model, layers).states(mend)
    changed_before = make(outside["group"].c)
    expected = estimator(changed_before, find(changed_before)).states(Mend(reestimate=True))["batch"]
    with adjustable(layers):
        inside = estimator(model, layers).states(mend)
    for states in (outside, inside):
        close(states["batch"].mean, expected.mean)
        close(states["batch"].variance, expected.variance)
    assert model.get_layer("group").epsilon == C


def test_too_few_values_and_layers_that_are_called_twice_are_refused():
    model = two_bn()
    few = estimator(model, find(model), X)
    assert few.refusal() == "40 images give 40 values a channel in first, 200 are needed"
    with pytest.raises(UsageError, match="statistics cannot be estimated again: 40 images give 40 values"):
        few.states(Mend(reestimate=True))
    assert few.states(Mend(relative_c=1))["first"].c > C  # by the tracked statistics
    assert estimator(model, find(model), np.repeat(X, 5, axis=0)).refusal() is None
    inputs, shared = keras.Input(SHAPE), L.BatchNormalization(name="shared")
    twice = keras.Model(inputs, L.Dense(3)(L.Flatten()(shared(L.ReLU()(shared(inputs))))))
    assert estimator(twice, find(twice)).refusal() == "shared is called 2 times"


def test_names_that_no_layer_has_are_refused():
    model = two_bn()
    check_names(find(model), ["first", "second"])
    with pytest.raises(UsageError, match="no normalization layer 'third'; the model has first, second"):
        estimator(model, find(model)).states(Mend(relative_c=1, layers=("third",)))
    with pytest.raises(UsageError, match="the model has none"):
        check_names([], ["bn"])


# ---------------------------------------------------------------- changed


@pytest.mark.parametrize("gamma", [np.array([1.0, -2.0, 0.5, 3.0, 1.0]), None])
def test_the_median_channel_keeps_its_gain(gamma):
    state = LayerState(C, gamma, np.zeros(5), np.array([1e-4, 1.0, 2.0, 5.0, 9.0]))
    for mend in (Mend(relative_c=0.7), Mend(c=3.0)):
        c = 3.0 if mend.c else C + 1.4
        new = changed(state, 2.0, mend)
        ratio = new.gain / state.gain
        assert ratio[2] == pytest.approx(1, rel=1e-9)
        spread = np.sqrt((state.variance + C) / (state.variance + c))
        np.testing.assert_allclose(ratio, spread / spread[2], rtol=1e-9)
        assert (new.variance + new.c > 0).all()
        plain = changed(state, 2.0, mend.model_copy(update={"keep_gain": False}))
        np.testing.assert_allclose(plain.gain / state.gain, spread, rtol=1e-9)


def test_a_layer_whose_channels_are_all_dead():
    state = LayerState(C, np.ones(2), np.zeros(2), np.zeros(2))
    same = changed(state, 0.0, Mend(relative_c=3))
    assert (same.c, same.gamma.tolist(), same.variance.tolist()) == (C, [1, 1], [0, 0])
    assert changed(LayerState(0.0, np.ones(2), np.zeros(2), np.zeros(2)), 0.0, Mend(c=1.0)).gamma.tolist() == [1, 1]
    model = two_bn()
    model.layers[2].kernel.assign(np.zeros(model.layers[2].kernel.shape))
    states = estimator(model, find(model), np.repeat(X, 5, axis=0)).states(Mend(relative_c=1, reestimate=True))
    assert all(np.isfinite(value).all() for state in states.values() for value in vars(state).values())


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        *((name, "float32") for name in KINDS),
        *((name, "mixed_float16") for name in ("batch", "batch, no gamma", "group", "layer", "rms")),
    ],
)
def test_applied_restored_written_and_saved(name, policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    try:
        model = with_layer(KINDS[name][0])
    finally:
        keras.config.set_dtype_policy("float32")
    layers = find(model)
    tolerance = 1e-5 if policy == "float32" else 5e-3
    mend = Mend(relative_c=1.5, reestimate=layers[0].is_batch)
    with adjustable(layers):
        compiled = backend.compile(predict_of(model))
        before, states = np.asarray(compiled(X)), estimator(model, layers).states(mend)
        close(before, logits(model), tolerance)
        inside = []

        def fail():
            with applied(layers, states):
                inside.append(np.asarray(compiled(X)))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        np.testing.assert_array_equal(np.asarray(compiled(X)), before)
    assert np.abs(inside[0] - before).max() > 0.01 * np.abs(before).max()
    assert normalization_layers.c_of(layers[0].layer) == C
    write(layers, states)
    close(logits(model), inside[0], tolerance)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    close(logits(loaded), inside[0], tolerance)
    (again,) = find(loaded)
    assert again.state.c == pytest.approx(states[again.name].c, rel=1e-6)


def test_layers_without_a_state_stay_as_they_are():
    model = two_bn()
    layers = find(model)
    states = estimator(model, layers).states(Mend(relative_c=1))
    before = logits(model)
    with applied(layers, {}):
        np.testing.assert_array_equal(logits(model), before)
    with applied(layers, {"first": states["first"]}):
        assert np.abs(logits(model) - before).max() > 0.01
        np.testing.assert_array_equal(model.get_layer("second").moving_variance.numpy(), layers[1].variance)
    write(layers, {})
    np.testing.assert_array_equal(logits(model), before)

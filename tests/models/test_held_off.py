"""Layers that act in training only are found by what they do, and stay off where BN normalizes by the batch.

The true values are those of the same model without them, called by Keras with training=True.
"""

import numpy as np
import pytest
from helpers_attacks import keras, tf

from bn_vuln.config import Clean, Evaluation
from bn_vuln.data.mnist import INFO
from bn_vuln.errors import UsageError
from bn_vuln.evaluation.classifier import from_model
from bn_vuln.evaluation.evaluator import Evaluator
from bn_vuln.models import bn_statistics

L = keras.layers
X = np.random.default_rng(0).uniform(size=(20, 12, 12, 3)).astype(np.float32)


def call(model, x):
    return model(x, training=True)


def net(*before, bn=None, after=()):
    """Layers on images, then Flatten, Dense, BN and Dense, always with the same weights."""
    x = inputs = keras.Input((12, 12, 3))
    for layer in before:
        x = layer(x)
    x = L.Dense(8, kernel_initializer=keras.initializers.RandomNormal(seed=1))(L.Flatten()(x))
    x = (bn or L.BatchNormalization())(x)
    for layer in after:
        x = layer(x)
    return keras.Model(inputs, L.Dense(4, kernel_initializer=keras.initializers.RandomNormal(seed=2))(x))


def values(model):
    return [np.array(v) for v in model.variables]


def equal(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


class Coin(L.Layer):
    """Stochastic depth: the whole batch is dropped, or not, in training."""

    def call(self, x, training=None):
        return x * tf.cast(tf.random.uniform(()) > 0.5, x.dtype) if training else x


class Seeded(L.Layer):
    """Always the same in training, but not what it is in inference."""

    def call(self, x, training=False):
        return x * keras.random.normal((20, 1, 1, 1), seed=3) if training else x


class Jitter(L.Layer):
    """Draws from Keras' generator, and hands `training` on to a layer inside."""

    def __init__(self, **options):
        super().__init__(**options)
        self.inner = L.Rescaling(2.0)

    def call(self, x, training=False):
        x = self.inner(x) / 2.0
        return x + keras.random.uniform(keras.ops.shape(x)) if training else x


class Fails(L.Layer):
    def call(self, x, training=False):
        if training:
            raise ValueError("needs labels")
        return x


ON_IMAGES = {
    "pipeline": lambda: L.Pipeline([L.RandomTranslation(0.3, 0.3, name="it"), L.RandomFlip(name="too")]),
    "random translation": lambda: L.RandomTranslation(0.3, 0.3, name="it"),
    "nested": lambda: keras.Sequential([keras.Input((12, 12, 3)), L.RandomRotation(0.3, name="it")]),
    "rand augment": lambda: L.RandAugment((0, 1), name="it"),
    "aug mix": lambda: L.AugMix((0, 1), name="it"),
    "mix up": lambda: L.MixUp(name="it"),
    "cut mix": lambda: L.CutMix(name="it"),
    "erasing": lambda: L.RandomErasing(name="it"),
    "noise": lambda: L.GaussianNoise(0.5, name="it"),
    "gaussian dropout": lambda: L.GaussianDropout(0.5, name="it"),
    "alpha dropout": lambda: L.AlphaDropout(0.5, name="it"),
    "spatial dropout": lambda: L.SpatialDropout2D(0.5, name="it"),
    "in a wrapper": lambda: L.TimeDistributed(L.Dropout(0.5, name="it")),
    "coin": lambda: Coin(name="it"),
    "seeded": lambda: Seeded(name="it"),
    "jitter": lambda: Jitter(name="it"),
    "fails": lambda: Fails(name="it"),
}


@pytest.mark.parametrize("case", ON_IMAGES)
def test_a_layer_on_images_is_held_off_and_named(case):
    plain, model = net(), net(ON_IMAGES[case]())
    if case not in ("fails", "coin"):
        assert not np.allclose(np.array(model(X, training=True)), plain(X, training=True), atol=1e-3)
    before = values(model)
    found = bn_statistics.held_off(model, X)
    assert found[0] == "it"
    assert found[1:] in ((), ("too",))
    view = bn_statistics.use_batch_statistics(model)
    expected = np.array(plain(X, training=True))
    for _ in range(2):
        np.testing.assert_allclose(view(X, training=True), expected, rtol=0, atol=1e-5)
    assert equal(values(model)[-6:], before[-6:])


def sequence(layer):
    x = inputs = keras.Input((12, 12, 3))
    x = L.BatchNormalization()(L.Reshape((12, 36))(x))
    return keras.Model(inputs, L.Dense(4)(L.Flatten()(layer(x))))


class Attention(L.Layer):
    def __init__(self, rate, **options):
        super().__init__(**options)
        self.attention = L.MultiHeadAttention(2, 4, dropout=rate)

    def call(self, x, training=None):
        return self.attention(x, x, training=training)


SEQUENCES = {
    "gru": (lambda rate: L.GRU(5, dropout=rate, name="it"), ("it",)),
    "lstm": (lambda rate: L.LSTM(5, recurrent_dropout=rate, name="it"), ("it",)),
    "rnn": (lambda rate: L.RNN(L.StackedRNNCells([L.GRUCell(5, dropout=rate)]), name="it"), ("it",)),
    "attention": (Attention, ("dropout",)),
}


@pytest.mark.parametrize("case", SEQUENCES)
def test_dropout_inside_of_recurrent_layers_and_attention_is_held_off(case):
    make, names = SEQUENCES[case]
    model, plain = sequence(make(0.5)), sequence(make(0.0))
    plain.set_weights(model.get_weights())
    found = bn_statistics.held_off(model, X)
    assert [name.rstrip("_0123456789") for name in found] == list(names)
    view = bn_statistics.use_batch_statistics(model)
    np.testing.assert_allclose(view(X, training=True), plain(X, training=True), rtol=0, atol=1e-5)
    assert bn_statistics.held_off(plain, X) == ()


def test_layers_that_do_nothing_in_training_are_not_named():
    model = net(
        L.Dropout(0.0), L.ActivityRegularization(0.1), L.Normalization(mean=0.0, variance=1.0), L.Resizing(12, 12)
    )
    assert bn_statistics.held_off(model, X) == ()
    assert bn_statistics.held_off(net(), X) == ()


# ---------------------------------------------------------------- wherever BN is, and whatever class it is of


class Block(L.Layer):
    """BN and dropout inside of a layer of one's own, called without `training`."""

    def __init__(self, **options):
        super().__init__(**options)
        self.normalization, self.dropout = L.BatchNormalization(), L.Dropout(0.5, name="it")

    def call(self, x):
        return self.dropout(self.normalization(x))


class OwnBatchNorm(L.BatchNormalization):
    pass


class Doubled(L.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return 2.0 * super().call(inputs, training=training, mask=mask)


class Written(L.Layer):
    """BN, not derived from Keras' own."""

    def build(self, shape):
        self.momentum = 0.9
        self.moving_mean = self.add_weight(shape=shape[-1:], initializer="zeros", trainable=False)
        self.moving_variance = self.add_weight(shape=shape[-1:], initializer="ones", trainable=False)

    def call(self, x, training=False):
        mean, variance = self.moving_mean, self.moving_variance
        if training:
            mean, variance = tf.nn.moments(x, [0])
            self.moving_mean.assign(self.momentum * self.moving_mean + (1 - self.momentum) * mean)
            self.moving_variance.assign(self.momentum * self.moving_variance + (1 - self.momentum) * variance)
        return (x - mean) / keras.ops.sqrt(variance + 1e-3)


class Traced(L.Layer):
    """Its `call` is a tf.function, which keeps the graph of its first call."""

    def __init__(self, **options):
        super().__init__(**options)
        self.normalization = L.BatchNormalization()

    @tf.function
    def call(self, x, training=False):
        return self.normalization(x, training=training)


class Subclassed(keras.Model):
    """A model without a graph, which augments by itself and whose config is not known."""

    def __init__(self, rate):
        super().__init__(name="subclassed")
        self.inner, self.rate = net(), rate
        self(X)

    def call(self, x, training=False):
        if training:
            x = x + self.rate * keras.random.uniform(keras.ops.shape(x))
        return self.inner(x, training=training)


def frozen():
    layer = L.BatchNormalization()
    layer.trainable = False
    return layer


BN = {
    "Keras'": (L.BatchNormalization, 1.0, ()),
    "synchronized": (lambda: L.BatchNormalization(synchronized=True), 1.0, ()),
    "frozen": (frozen, 1.0, ()),
    "in a layer": (Block, 1.0, ("it",)),
    "derived": (OwnBatchNorm, 1.0, ()),
    "derived, with a call": (Doubled, 2.0, ()),
    "not derived": (Written, 1.0, ()),
    "in a model": (lambda: keras.Sequential([keras.Input((8,)), L.BatchNormalization()]), 1.0, ()),
    "in a tf.function": (Traced, 1.0, ()),
}


def by_hand(model, statistics=None, factor=1.0):
    """Logits of `net` in NumPy, normalized by the batch or by these (mean, variance)."""
    first, last = (layer for layer in model.layers if isinstance(layer, L.Dense))
    h = X.reshape(len(X), -1).astype(np.float64) @ first.kernel.numpy() + first.bias.numpy()
    mean, variance = statistics or (h.mean(axis=0), h.var(axis=0))
    return (factor * (h - mean) / np.sqrt(variance + 1e-3)) @ last.kernel.numpy() + last.bias.numpy()


@pytest.mark.parametrize("case", BN)
def test_bn_normalizes_by_the_batch_wherever_it_is(case):
    make, factor, names = BN[case]
    model = net(bn=make())
    before = values(model)
    tracked = np.array(model(X, training=False))
    np.testing.assert_allclose(tracked, by_hand(model, (0.0, 1.0), factor), rtol=0, atol=1e-5)
    assert bn_statistics.has_batch_normalization(model)
    assert bn_statistics.held_off(model, X) == names
    view = bn_statistics.use_batch_statistics(model)
    np.testing.assert_allclose(view(X, training=True), by_hand(model, factor=factor), rtol=0, atol=1e-4)
    np.testing.assert_array_equal(view(X, training=False), tracked)
    np.testing.assert_array_equal(model(X, training=False), tracked)
    assert equal(values(model), before)


@pytest.mark.parametrize("case", BN)
def test_reestimated_statistics_are_the_mean_over_batches_wherever_bn_is(case):
    make, factor, _ = BN[case]
    model = net(bn=make())
    for variable in model.variables:  # what was tracked does not matter, however wrong it is
        if variable.path.endswith("moving_mean"):
            variable.assign(np.full(8, np.nan))
    first = next(layer for layer in model.layers if isinstance(layer, L.Dense))
    h = X.reshape(len(X), -1).astype(np.float64) @ first.kernel.numpy()
    statistics = np.mean([h[:10].mean(0), h[10:].mean(0)], axis=0), np.mean([h[:10].var(0), h[10:].var(0)], axis=0)
    found = bn_statistics.reestimate_statistics(model, X, 10, width=12, call=call)
    np.testing.assert_allclose(found(X, training=False), by_hand(model, statistics, factor), rtol=0, atol=1e-4)
    (moments,) = bn_statistics.input_moments(found, lambda x: found(x, training=False), [X])
    np.testing.assert_allclose(moments.tracked_mean, statistics[0], atol=1e-5)
    np.testing.assert_allclose(moments.means[0], h.mean(axis=0), atol=1e-5)


def test_a_model_without_a_graph_is_not_copied():
    model = Subclassed(5.0)
    assert bn_statistics.held_off(model, X) == ("subclassed",)
    view = bn_statistics.use_batch_statistics(model)
    np.testing.assert_allclose(view(X, training=True), by_hand(model.inner), rtol=0, atol=1e-4)
    found = bn_statistics.reestimate_statistics(model, X, 20, width=12, call=call)
    np.testing.assert_allclose(found(X, training=False), by_hand(model.inner), rtol=0, atol=1e-4)
    assert not np.allclose(model(X, training=False), by_hand(model.inner), atol=1e-2)


def test_statistics_that_are_tracked_in_a_way_of_their_own_cannot_be_reestimated():
    class Other(Written):
        def call(self, x, training=False):
            mean, variance = tf.nn.moments(x, [0])
            if training:
                self.moving_mean.assign(0.9 * self.moving_mean + 0.1 * mean)
            return (x - mean) / keras.ops.sqrt(variance + 1e-3)

    with pytest.raises(UsageError, match="mine does not track the statistics of batches"):
        bn_statistics.reestimate_statistics(net(bn=Other(name="mine")), X, 10, width=12, call=call)


def test_batch_renormalization_runs_as_it_trains_and_changes_nothing():
    model = net(bn=L.BatchNormalization(renorm=True))
    before = values(model)
    view = bn_statistics.use_batch_statistics(model)
    first, second = (np.array(view(X, training=True)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert equal(values(model), before)
    np.testing.assert_allclose(first, model(X, training=True), rtol=0, atol=1e-5)


# ---------------------------------------------------------------- in an evaluation


@pytest.mark.parametrize("kind", ["tracked", "batch", "reestimated"])
def test_a_record_names_what_was_held_off(kind):
    def build(*before):
        x = inputs = keras.Input((28, 28, 1))
        for layer in before:
            x = layer(x)
        x = L.Dense(8, kernel_initializer=keras.initializers.RandomNormal(seed=1))(L.Flatten()(x))
        x = L.BatchNormalization()(x)
        return keras.Model(inputs, L.Dense(10, kernel_initializer=keras.initializers.RandomNormal(seed=2))(x))

    def evaluated(model):
        subject = from_model(model, INFO, {"data": {"limit": 300}})
        return Evaluator(subject, Evaluation(limit=40, bn_statistics=kind), checks="none")

    with_it, plain = (
        evaluated(model) for model in (build(L.Pipeline([L.RandomTranslation(0.3, 0.3, name="it")])), build())
    )
    np.testing.assert_allclose(with_it.eval_set.clean_logits, plain.eval_set.clean_logits, rtol=0, atol=1e-5)
    assert with_it.run(Clean()).record.held_off == (() if kind == "tracked" else ("it",))
    assert plain.run(Clean()).record.held_off == ()

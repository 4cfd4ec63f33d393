"""The identity of a model: equal where outputs are, another where a setting, the graph, code or a weight is."""

import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from bn_vuln.external.identity import model_identity
from bn_vuln.models import custom_layers
from bn_vuln.runtime import backend

tf = backend.tensorflow()
import keras  # noqa: E402
from keras import layers, ops  # noqa: E402

FACTOR = 0.5


def halved(x):
    return x * FACTOR


class Scale(layers.Layer):
    """Its constructor is all that Keras knows of it."""

    def __init__(self, factor, function=None):
        super().__init__()
        self.factor = factor
        self.function = function

    def call(self, x):
        return x * self.factor


class OtherScale(Scale):
    def call(self, x):
        return x / self.factor


class Compiled(Scale):
    @tf.function
    def call(self, x):
        return x * self.factor


class OtherCompiled(Scale):
    @tf.function
    def call(self, x):
        return x / self.factor


class Subclassed(keras.Model):
    def __init__(self, factor=1.0, units=(4,)):
        super().__init__()
        self.factor = factor
        self.hidden = [layers.Dense(n) for n in units]
        self.norm = layers.BatchNormalization()
        self.out = layers.Dense(3)

    def call(self, x, training=None):
        for layer in self.hidden:
            x = layer(x)
        return self.out(self.norm(layers.Flatten()(x), training=training)) * self.factor


def made(factor):
    class Made(layers.Layer):
        def call(self, x):
            return x * factor

    return Made()


def sequential(*begin, shape=(8, 8, 3), dtype="float32"):
    return keras.Sequential([keras.Input(shape, dtype=dtype), *begin, layers.Flatten(), layers.Dense(3)])


def functional(function):
    image = keras.Input((8, 8, 3))
    return keras.Model(image, layers.Dense(3)(layers.Flatten()(function(image))))


def subtract(swapped):
    def both(image):
        one, two = layers.Conv2D(2, 3)(image), layers.Conv2D(2, 3)(image)
        return layers.Subtract()([two, one] if swapped else [one, two])

    return functional(both)


def heads(names, keyed=False, swapped=False):
    image = keras.Input((8, 8, 3))
    flat = layers.Flatten()(image)
    one, two = (layers.Dense(3, name=None if keyed else name)(flat) for name in names)
    if keyed:
        return keras.Model(image, dict(zip(names, (one, two), strict=True)))
    return keras.Model(image, [two, one] if swapped else [one, two])


def called_twice(times):
    """A dense layer that is applied several times, or as many layers."""
    image = keras.Input((8, 8, 3))
    layer = layers.Dense(3)
    x = layer(image)
    for _ in range(times - 1):
        x = layer(x)
    return keras.Model(image, layers.Flatten()(x))


def nested(epsilon=1e-3, factor=0.5):
    first = keras.Sequential([keras.Input((8, 8, 3)), layers.BatchNormalization(epsilon=epsilon)])
    middle = keras.Input((8, 8, 3))
    second = keras.Model(middle, layers.Conv2D(2, 3)(middle) * factor)
    return functional(lambda image: second(first(image)))


def with_policy(name):
    keras.config.set_dtype_policy(name)
    try:
        return sequential(layers.Conv2D(2, 3))
    finally:
        keras.config.set_dtype_policy("float32")


def frozen(begin):
    model = sequential(begin)
    model.trainable = False
    return model


def multiplied(factor):
    return sequential(layers.Lambda(lambda x: x * factor))


def quantized():
    model = sequential(layers.Dense(4))
    model.quantize("int8")
    return model


def subclassed(**settings):
    model = Subclassed(**settings)
    model(np.zeros((1, 8, 8, 3), np.float32))
    return model


def normalized(mean):
    return sequential(layers.Normalization(mean=mean, variance=[1.0, 2.0, 3.0]))


# Each has an output of its own, in inference or in training.
VARIANTS = {
    "plain": lambda: sequential(layers.Conv2D(2, 3)),
    "without bias": lambda: sequential(layers.Conv2D(2, 3, use_bias=False)),
    "relu": lambda: sequential(layers.Conv2D(2, 3, activation="relu")),
    "tanh": lambda: sequential(layers.Conv2D(2, 3, activation="tanh")),
    "own activation": lambda: sequential(layers.Conv2D(2, 3, activation=halved)),
    "lambda": lambda: sequential(layers.Conv2D(2, 3, activation=lambda x: x * 0.5)),
    "another lambda": lambda: sequential(layers.Conv2D(2, 3, activation=lambda x: x * 0.25)),
    "same": lambda: sequential(layers.Conv2D(2, 3, padding="same")),
    "dilated": lambda: sequential(layers.Conv2D(2, 3, dilation_rate=2)),
    "channels first": lambda: sequential(layers.Conv2D(2, 3, data_format="channels_first")),
    "float64": lambda: with_policy("float64"),
    "mixed_float16": lambda: with_policy("mixed_float16"),
    "mixed_bfloat16": lambda: with_policy("mixed_bfloat16"),
    "another input": lambda: sequential(layers.Conv2D(2, 3), shape=(9, 9, 3)),
    "BN": lambda: sequential(layers.BatchNormalization()),
    "BN epsilon": lambda: sequential(layers.BatchNormalization(epsilon=1.0)),
    "BN momentum": lambda: sequential(layers.BatchNormalization(momentum=0.9)),
    "BN axis": lambda: sequential(layers.BatchNormalization(axis=1)),
    "BN frozen": lambda: frozen(layers.BatchNormalization()),
    "BN in training": lambda: functional(lambda x: layers.BatchNormalization()(x, training=True)),
    "group norm": lambda: sequential(layers.GroupNormalization(3)),
    "another group norm": lambda: sequential(layers.GroupNormalization(1)),
    "layer norm": lambda: sequential(layers.LayerNormalization()),
    "another layer norm": lambda: sequential(layers.LayerNormalization(axis=[1, 2])),
    "rescaling": lambda: sequential(layers.Rescaling(1.0)),
    "half": lambda: sequential(layers.Rescaling(0.5)),
    "offset": lambda: sequential(layers.Rescaling(1.0, offset=-0.5)),
    "of channels": lambda: sequential(layers.Rescaling([1.0, 0.5, 0.25])),
    "uint8": lambda: sequential(layers.Rescaling(1.0), dtype="uint8"),
    "normalization": lambda: normalized([0.1, 0.2, 0.3]),
    "another mean": lambda: normalized([0.1, 0.2, 0.4]),
    "dropout": lambda: sequential(layers.Dropout(0.5)),
    "less dropout": lambda: sequential(layers.Dropout(0.2)),
    "dropout always": lambda: functional(lambda x: layers.Dropout(0.5)(x, training=True)),
    "leaky": lambda: sequential(layers.LeakyReLU(0.1)),
    "more leaky": lambda: sequential(layers.LeakyReLU(0.2)),
    "relu 6": lambda: sequential(layers.ReLU(6.0)),
    "max": lambda: sequential(layers.MaxPooling2D(2)),
    "average": lambda: sequential(layers.AveragePooling2D(2)),
    "max of stride 1": lambda: sequential(layers.MaxPooling2D(2, strides=1)),
    "resizing": lambda: sequential(layers.Resizing(4, 4)),
    "nearest": lambda: sequential(layers.Resizing(4, 4, interpolation="nearest")),
    "pipeline": lambda: sequential(layers.Pipeline([layers.Rescaling(0.5), layers.RandomFlip()])),
    "another pipeline": lambda: sequential(layers.Pipeline([layers.Rescaling(0.25), layers.RandomFlip()])),
    "one way": lambda: sequential(layers.Pipeline([layers.Rescaling(0.5), layers.RandomFlip("horizontal")])),
    "each time": lambda: sequential(layers.TimeDistributed(layers.Dense(2))),
    "relu each time": lambda: sequential(layers.TimeDistributed(layers.Dense(2, activation="relu"))),
    "both ways": lambda: sequential(layers.Reshape((8, 24)), layers.Bidirectional(layers.LSTM(2))),
    "summed": lambda: sequential(layers.Reshape((8, 24)), layers.Bidirectional(layers.LSTM(2), merge_mode="sum")),
    "double": lambda: multiplied(2.0),
    "triple": lambda: multiplied(3.0),
    "named function": lambda: sequential(layers.Lambda(halved)),
    "x / 2": lambda: functional(lambda x: x * 0.5),
    "x / 4": lambda: functional(lambda x: x * 0.25),
    "x / 255": lambda: functional(lambda x: x / 255.0),
    "255 / x": lambda: functional(lambda x: 255.0 / x),
    "minus mean": lambda: functional(lambda x: x - np.array([0.1, 0.2, 0.3], np.float32)),
    "minus another mean": lambda: functional(lambda x: x - np.array([0.1, 0.2, 0.4], np.float32)),
    "BGR": lambda: functional(lambda x: x[..., ::-1]),
    "two channels": lambda: functional(lambda x: x[..., :2]),
    "clip": lambda: functional(lambda x: ops.clip(x, 0, 1)),
    "wider clip": lambda: functional(lambda x: ops.clip(x, 0, 2)),
    "cast": lambda: functional(lambda x: ops.cast(x, "float16")),
    "cast to bytes": lambda: functional(lambda x: ops.cast(x, "uint8")),
    "subtract": lambda: subtract(False),
    "subtract the other": lambda: subtract(True),
    "heads": lambda: heads(("left", "right")),
    "heads swapped": lambda: heads(("left", "right"), swapped=True),
    "heads renamed": lambda: heads(("right", "left")),
    "keyed heads": lambda: heads(("left", "right"), keyed=True),
    "keyed heads renamed": lambda: heads(("right", "left"), keyed=True),
    "twice": lambda: called_twice(2),
    "thrice": lambda: called_twice(3),
    "nested": nested,
    "nested BN": lambda: nested(epsilon=1.0),
    "nested constant": lambda: nested(factor=0.25),
    "own layer": lambda: sequential(Scale(1.0)),
    "own layer's setting": lambda: sequential(Scale(2.0)),
    "own layer's function": lambda: sequential(Scale(1.0, halved)),
    "own layer's code": lambda: sequential(OtherScale(1.0)),
    "own tf.function": lambda: sequential(Compiled(1.0)),
    "own tf.function's code": lambda: sequential(OtherCompiled(1.0)),
    "own layer's object": lambda: sequential(Scale(1.0, range(3))),
    "own layer's other object": lambda: sequential(Scale(1.0, range(4))),
    "own layer of a function": lambda: sequential(made(2.0)),
    "own layer of another function": lambda: sequential(made(3.0)),
    "own model": subclassed,
    "own model's setting": lambda: subclassed(factor=2.0),
    "own model's layers": lambda: subclassed(units=(4, 4)),
    "int8": quantized,
    "FRN": lambda: sequential(custom_layers.filter_response_class()(1e-6)),
    "another FRN": lambda: sequential(custom_layers.filter_response_class()(1e-3)),
    "bins": lambda: sequential(layers.Discretization([0.1, 0.2])),
    "other bins": lambda: sequential(layers.Discretization([0.1, 0.3])),
}


@pytest.fixture(scope="module")
def identities():
    return {name: model_identity(seeded(build)) for name, build in VARIANTS.items()}


def seeded(build):
    keras.utils.set_random_seed(0)
    return build()


# The same graph as another but for the order of its weights.
EXCHANGED = {"subtract the other", "heads renamed", "keyed heads renamed"}


def test_every_setting_has_an_architecture_of_its_own(identities):
    times = Counter(one["architecture"] for name, one in identities.items() if name not in EXCHANGED)
    assert [name for name, one in identities.items() if times[one["architecture"]] > 1] == []
    assert len({str(one) for one in identities.values()}) == len(VARIANTS)


@pytest.mark.slow
def test_a_script_that_runs_again_gives_the_same(identities):
    """Automatic names have counted up in the meantime."""
    assert {name: model_identity(seeded(build)) for name, build in VARIANTS.items()} == identities


@pytest.mark.slow
def test_another_process_gives_the_same(identities):
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; import json, test_identity as t; "
        "print(json.dumps({n: t.model_identity(t.seeded(b)) for n, b in t.VARIANTS.items()}))"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", code, os.path.dirname(__file__)]
    out = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    assert eval(out.splitlines()[-1]) == identities


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "mixed_float16",
        "BN",
        "normalization",
        "pipeline",
        "double",
        "own activation",
        "subtract",
        "keyed heads",
        "nested",
        "x / 2",
        "minus mean",
        "BGR",
        "both ways",
        "int8",
        "uint8",
        "FRN",
    ],
)
def test_saving_and_loading_changes_nothing(name, identities, tmp_path):
    model = seeded(VARIANTS[name])
    in_h5 = (
        () if name in ("nested", "x / 2", "minus mean", "BGR", "keyed heads", "int8") else ("any.h5",)
    )  # no operations
    for file in ("renamed.keras", *in_h5):
        model.save(tmp_path / file)
        objects = {"halved": halved}
        loaded = keras.saving.load_model(tmp_path / file, compile=False, safe_mode=False, custom_objects=objects)
        assert model_identity(loaded) == identities[name], file


@pytest.mark.parametrize("name", ["plain", "own model", "double", "dropout"])
def test_use_changes_nothing(name, identities):
    model = seeded(VARIANTS[name])
    images = np.zeros((2, 8, 8, 3), np.float32)
    model.compile("adam", "mse", metrics=["accuracy"])
    model.fit(images, np.zeros((2, 3)), epochs=0)
    model.predict(images, verbose=0)
    model(images, training=name == "dropout")  # which draws random numbers
    assert model_identity(model) == identities[name]


def same(*models):
    return len({str(model_identity(seeded(build))) for build in models}) == 1


def test_what_changes_no_output_changes_nothing():
    def named(name, seed, regularizer=None):
        drop = layers.Dropout(0.5, seed=seed)
        dense = layers.Dense(3, name=name, kernel_initializer="ones", kernel_regularizer=regularizer)
        return keras.Sequential([keras.Input((4,)), drop, dense], name=name)

    assert same(lambda: named("a", 1), lambda: named("b", 2, "l2"))
    assert same(lambda: frozen(layers.Conv2D(2, 3)), lambda: sequential(layers.Conv2D(2, 3)))
    assert same(lambda: normalized([0.5, 0.25, 1.0]), lambda: normalized(np.array([0.5, 0.25, 1.0], np.float32)))
    assert same(lambda: with_policy("float64"), lambda: sequential(layers.Conv2D(2, 3, dtype="float64"))) is False

    def wired(first):
        """The same graph, its layers made in another order."""
        image, made = keras.Input((8, 8, 3)), {}
        for n in (0, 1) if first else (1, 0):
            made[n] = layers.Conv2D(2, 3 + n, padding="same", kernel_initializer="ones")(image)
        return keras.Model(image, layers.Subtract()([made[0], made[1]]))

    assert same(lambda: wired(True), lambda: wired(False))


def test_weights_count_by_value(identities):
    model = seeded(VARIANTS["BN"])
    for variable in model.weights:  # the moving statistics too
        before = variable.numpy()
        variable.assign(before + 1e-3)
        changed = model_identity(model)
        assert changed["architecture"] == identities["BN"]["architecture"]
        assert changed["weights"] != identities["BN"]["weights"]
        variable.assign(before)
    assert model_identity(model) == identities["BN"]


def test_adapted_statistics_and_vocabularies_count():
    def adapted(factor):
        layer = layers.Normalization()
        layer.adapt(factor * np.arange(12.0).reshape(4, 3))
        return keras.Sequential([keras.Input((3,)), layer])

    def lookup(words):
        return keras.Sequential([keras.Input((1,), dtype="string"), layers.StringLookup(vocabulary=words)])

    assert not same(lambda: adapted(1.0), lambda: adapted(2.0))
    assert not same(lambda: lookup(["a", "b"]), lambda: lookup(["b", "a"]))


def test_values_that_code_refers_to_count(monkeypatch):
    before = model_identity(seeded(VARIANTS["own activation"]))
    monkeypatch.setitem(globals(), "FACTOR", 0.25)
    assert model_identity(seeded(VARIANTS["own activation"])) != before


def test_a_saved_graph_counts_by_its_files(tmp_path):
    model = seeded(VARIANTS["plain"])
    for name in ("one", "two"):
        model.export(tmp_path / name, verbose=False)
        wrapped = keras.Sequential([keras.Input((8, 8, 3)), layers.TFSMLayer(str(tmp_path / name))])
        if name == "one":
            first = model_identity(wrapped)
            (tmp_path / "one").rename(tmp_path / "moved")
            moved = keras.Sequential([keras.Input((8, 8, 3)), layers.TFSMLayer(str(tmp_path / "moved"))])
            assert model_identity(moved) == first
        for variable in model.weights:
            variable.assign_add(tf.ones_like(variable.value))
    assert model_identity(wrapped) != first


def test_the_file_of_custom_objects_counts(tmp_path):
    model = seeded(VARIANTS["plain"])
    (tmp_path / "one.py").write_text("FACTOR = 1\n")
    (tmp_path / "two.py").write_text("FACTOR = 2\n")
    one, two = (model_identity(model, tmp_path / name) for name in ("one.py", "two.py"))
    assert one.keys() == {"architecture", "weights", "custom_objects"}
    assert one != two


def test_a_deep_graph_is_no_deep_recursion():
    x = image = keras.Input((4,))
    for _ in range(400):
        x = x + 1.0
    model_identity(keras.Model(image, x))

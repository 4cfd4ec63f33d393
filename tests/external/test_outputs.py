"""Logits of whatever a model returns; the true ones are those of the same weights without the activation."""

import numpy as np
import pytest

from bn_vuln.errors import UsageError
from bn_vuln.external.outputs import find_output
from bn_vuln.runtime import backend

tf = backend.tensorflow()
import keras  # noqa: E402
from keras import layers  # noqa: E402

RNG = np.random.default_rng(0)
X = tf.constant(RNG.random((12, 4, 4, 1)).astype(np.float32))
KERNEL = RNG.normal(size=(16, 3)).astype(np.float32)
BIAS = RNG.normal(size=3).astype(np.float32)
TRUE = X.numpy().reshape(12, 16) @ KERNEL + BIAS


def dense(columns=3, factor=1.0, **settings):
    layer = layers.Dense(columns, **settings)
    layer.build((None, 16))
    layer.set_weights([factor * KERNEL[:, :columns], factor * BIAS[:columns]])
    return layer


def sequential(*rest):
    return keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), *rest])


def functional(function):
    image = keras.Input((4, 4, 1))
    return keras.Model(image, function(dense()(layers.Flatten()(image))))


class Subclassed(keras.Model):
    """Its call is a function of TensorFlow's own, and its softmax no layer."""

    def __init__(self):
        super().__init__()
        self.dense = dense()

    @tf.function
    def call(self, x):
        return tf.nn.softmax(self.dense(tf.reshape(x, (-1, 16))))


def nested():
    inner = keras.Sequential([keras.Input((16,)), dense(activation="softmax")])
    return sequential(inner, layers.Reshape((1, 3)), layers.Flatten(), layers.Activation("linear", dtype="float32"))


MODELS = {
    "logits": (lambda: sequential(dense()), "logits"),
    "relu logits": (lambda: sequential(dense(), layers.LeakyReLU(1.0)), "logits"),
    "softmax of Dense": (lambda: sequential(dense(activation="softmax")), "softmax"),
    "softmax of Activation": (lambda: sequential(dense(), layers.Activation("softmax")), "softmax"),
    "Softmax": (lambda: sequential(dense(), layers.Softmax()), "softmax"),
    "Softmax over channels": (
        lambda: sequential(dense(), layers.Reshape((3, 1, 1)), layers.Softmax(axis=1)),
        "softmax",
    ),
    "keras.ops": (lambda: functional(keras.ops.softmax), "softmax"),
    "tf.nn in a Lambda": (lambda: functional(layers.Lambda(tf.nn.softmax)), "softmax"),
    "log of softmax": (lambda: functional(lambda h: keras.ops.log(keras.ops.softmax(h))), "log-softmax"),
    "subclassed": (Subclassed, "softmax"),
    "nested": (nested, "softmax"),
    "1 x 1": (lambda: sequential(layers.Reshape((1, 1, 16)), dense(activation="softmax")), "softmax"),
    "sigmoid": (lambda: sequential(dense(activation="sigmoid")), "sigmoid"),
    "sigmoid of keras.ops": (lambda: functional(keras.ops.sigmoid), "sigmoid"),
    "log-softmax": (lambda: sequential(dense(activation="log_softmax")), "log-softmax"),
}


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_before_the_activation(name):
    make, kind = MODELS[name]
    model = make()
    before = np.asarray(model(X))
    output = find_output(model, X, 3)
    assert (output.kind, output.exact, output.columns, output.flag) == (kind, True, 3, None)
    for logits in (output.logits(model, X), tf.function(lambda x: output.logits(model, x))(X)):
        assert logits.dtype == tf.float32
        np.testing.assert_allclose(logits, TRUE, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(model(X)), before)  # the model is as it was


def test_a_softmax_that_saturates_has_exact_logits_and_gradients():
    model = sequential(dense(factor=1000, activation="softmax"))
    assert np.isin(np.asarray(model(X)), (0, 1)).all()
    output = find_output(model, X, 3)
    with tf.GradientTape() as tape:
        tape.watch(X)
        first = output.logits(model, X)[:, 0]
    np.testing.assert_allclose(first, 1000 * TRUE[:, 0], rtol=1e-5)
    np.testing.assert_allclose(
        np.asarray(tape.gradient(first, X)).reshape(12, 16), [1000 * KERNEL[:, 0]] * 12, rtol=1e-5
    )


MOVES = {
    "Reshape": lambda p: keras.ops.reshape(p, (-1, 3, 1)),
    "Reshape of a Cast": lambda p: keras.ops.reshape(keras.ops.cast(p, "float16"), (-1, 3, 1)),
    "Transpose": lambda p: keras.ops.transpose(keras.ops.reshape(p, (-1, 1, 3)), (0, 2, 1)),
    "ExpandDims": lambda p: keras.ops.expand_dims(p, 1),
    "Squeeze": lambda p: keras.ops.squeeze(keras.ops.expand_dims(p, 1), 1),
    "StridedSlice": lambda p: p[:, ::-1][:, ::-1],
}


@pytest.mark.parametrize("name", MOVES)
def test_what_moves_the_outputs_of_a_saturated_softmax_moves_its_logits(name):
    image = keras.Input((4, 4, 1))
    softmax = dense(factor=1000, activation="softmax")
    model = keras.Model(image, MOVES[name](softmax(layers.Flatten()(image))))
    output = find_output(model, X, 3)
    assert (output.kind, output.exact) == ("softmax", True)

    def second(x):
        logits = output.logits(model, x)
        return logits[:, 1], logits

    _, gradient, logits = backend.compile(lambda x: backend.value_and_gradient(second, x))(X)
    np.testing.assert_allclose(logits, 1000 * TRUE, rtol=1e-4)
    np.testing.assert_allclose(np.asarray(gradient).reshape(12, 16), [1000 * KERNEL[:, 1]] * 12, rtol=1e-5)


def test_a_copy_of_the_model_gives_the_logits_of_the_copy():
    model = sequential(dense(activation="softmax"))
    output, copy = find_output(model, X, 3), keras.models.clone_model(model)
    copy.set_weights([2 * w for w in model.get_weights()])
    np.testing.assert_allclose(output.logits(copy, X, training=True), 2 * TRUE, atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
@pytest.mark.parametrize("activation", [None, "softmax", "sigmoid"])
def test_other_policies_give_float32(policy, activation):
    model = sequential(dense(activation=activation, dtype=policy))
    output = find_output(model, X, 3)
    logits = output.logits(model, X)
    assert (output.kind, output.exact, logits.dtype) == (activation or "logits", True, tf.float32)
    tolerance = {"mixed_float16": 1e-2, "mixed_bfloat16": 1e-1, "float64": 1e-5}[policy]
    np.testing.assert_allclose(logits, TRUE, atol=tolerance)


@pytest.mark.parametrize(("activation", "kind"), [(None, "logits"), ("sigmoid", "sigmoid")])
def test_one_column_for_two_classes_is_a_logit_against_zero(activation, kind):
    model = sequential(dense(1, activation=activation))
    output = find_output(model, X, 2)
    assert (output.kind, output.columns, output.exact) == (kind, 1, True)
    np.testing.assert_allclose(output.logits(model, X), np.stack([0 * TRUE[:, 0], TRUE[:, 0]], axis=1), atol=1e-5)
    assert "one column for two classes" in output.text()


def test_outputs_without_an_axis_are_one_column():
    model = functional(lambda h: keras.ops.sigmoid(h)[:, 0])
    np.testing.assert_allclose(find_output(model, X, 2).logits(model, X)[:, 1], TRUE[:, 0], atol=1e-5)


def odd_softmax(h):
    """A softmax that no operation says to be one."""
    return keras.ops.exp(h) / keras.ops.sum(keras.ops.exp(h), axis=1, keepdims=True)


def odd_sigmoid(h):
    return 1 / (1 + keras.ops.exp(-h))


def test_a_softmax_by_its_values_is_inverted_and_said_to_lose_precision():
    model = functional(odd_softmax)
    output = find_output(model, X, 3)
    assert (output.kind, output.exact) == ("softmax", False)
    logits = np.asarray(output.logits(model, X))
    np.testing.assert_allclose(np.exp(logits), np.asarray(model(X)), rtol=1e-5)
    assert "lose precision" in output.text()


def test_unknown_outputs_in_0_1_are_logits_with_a_flag_unless_declared():
    model = functional(odd_sigmoid)
    output = find_output(model, X, 3)
    assert output.kind == "logits"
    assert "--output sigmoid" in output.flag
    np.testing.assert_array_equal(output.logits(model, X), model(X))
    declared = find_output(model, X, 3, declared="sigmoid")
    assert (declared.exact, declared.flag) == (False, None)
    np.testing.assert_allclose(declared.logits(model, X), TRUE, rtol=1e-4, atol=1e-4)
    assert find_output(model, X, 3, declared="logits").flag is None


def test_one_column_in_0_1_is_a_sigmoid():
    model = functional(lambda h: odd_sigmoid(h)[:, :1])
    output = find_output(model, X, 2)
    assert (output.kind, output.exact) == ("sigmoid", False)
    np.testing.assert_allclose(output.logits(model, X)[:, 1], TRUE[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("actual", "declared", "message"),
    [
        (None, "softmax", "outputs lie from"),
        (None, "sigmoid", "outputs lie from"),
        (None, "log-softmax", "outputs lie from"),
        ("softmax", "logits", "its last operation is a softmax"),
        ("softmax", "sigmoid", "its last operation is a softmax"),
        ("softmax", "log-softmax", "its last operation is a softmax"),
        ("sigmoid", "softmax", "its last operation is a sigmoid"),
        ("sigmoid", "logits", "its last operation is a sigmoid"),
        ("log_softmax", "softmax", "its last operation is a log-softmax"),
        (odd_softmax, "logits", "sum to 1"),
        (odd_softmax, "sigmoid", "sum to 1"),
        (odd_sigmoid, "softmax", r"lie in \[0, 1\] and sum to"),
        (odd_sigmoid, "log-softmax", r"lie in \[0, 1\] and sum to"),
    ],
)
def test_a_wrong_declaration_is_refused(actual, declared, message):
    model = functional(actual) if callable(actual) else sequential(dense(activation=actual))
    with pytest.raises(UsageError, match=rf"m.keras: --output {declared}, but .*{message}"):
        find_output(model, X, 3, declared=declared, source="m.keras")


def test_confident_sigmoids_are_no_softmax():
    """These sum to 1 for every image, and to 0 for fainter ones."""
    image = keras.Input((4, 4, 1))
    brightest = layers.GlobalMaxPooling2D()(image)
    model = keras.Model(image, odd_sigmoid(keras.ops.concatenate([1000 * brightest - 300, 0 * brightest - 99], axis=1)))
    np.testing.assert_allclose(np.asarray(model(X)).sum(axis=1), 1)
    assert find_output(model, X, 2).kind == "logits"


def test_log_softmax_declared_as_logits_is_right_and_said():
    output = find_output(sequential(dense(activation="log_softmax")), X, 3, declared="logits")
    assert output.kind == "log-softmax"


def heads(**columns):
    image = keras.Input((4, 4, 1))
    return keras.Model(
        image, {name: layers.Dense(n, name=name)(layers.Flatten()(image)) for name, n in columns.items()}
    )


def test_the_only_head_that_fits_is_taken():
    model = heads(label=3, embedding=7)
    output = find_output(model, X, 3)
    assert (output.head, output.path) == ("label", ("label",))
    assert "the only one of 2 outputs" in output.text()
    np.testing.assert_allclose(output.logits(model, X), model(X)["label"], atol=1e-6)


def test_several_heads_that_fit_are_listed_and_one_is_taken_by_name():
    model = heads(main=3, auxiliary=3)
    with pytest.raises(UsageError, match=r"--head NAME: .*main \(None, 3\) float32"):
        find_output(model, X, 3)
    np.testing.assert_allclose(find_output(model, X, 3, head="main").logits(model, X), model(X)["main"], atol=1e-6)
    with pytest.raises(UsageError, match="--head other: no such output; there are"):
        find_output(model, X, 3, head="other")


def test_heads_in_lists_have_the_names_of_their_layers():
    image = keras.Input((4, 4, 1))
    flat = layers.Flatten()(image)
    model = keras.Model(image, [layers.Dense(3, name="u", activation="softmax")(flat), layers.Dense(3, name="v")(flat)])
    output = find_output(model, X, 3, head="u")
    assert (output.kind, output.head, output.path) == ("softmax", "u", (0,))
    np.testing.assert_allclose(np.asarray(tf.nn.softmax(output.logits(model, X))), model(X)[0], atol=1e-6)


def test_heads_of_one_name_are_chosen_by_their_place():
    image = keras.Input((4, 4, 1))
    scores = dense()(layers.Flatten()(image))
    model = keras.Model(image, [scores, scores])
    with pytest.raises(UsageError, match=r"--head NAME: 0 \(None, 3\) float32; 1 \(None, 3\)"):
        find_output(model, X, 3)
    np.testing.assert_allclose(find_output(model, X, 3, head="1").logits(model, X), TRUE, atol=1e-5)


class WithNumber(Subclassed):
    def call(self, x, training=None):
        return {"probabilities": super().call(x), "version": 2, "names": ("a", "b", "c"), "nothing": None}


def test_what_is_no_tensor_among_the_outputs_is_left_out():
    model = WithNumber()
    output = find_output(model, X, 3)
    assert (output.kind, output.path) == ("softmax", ("probabilities",))
    np.testing.assert_allclose(output.logits(model, X), TRUE, atol=1e-5)


def test_log_probabilities_by_their_values_are_logits():
    model = functional(lambda h: keras.ops.log(keras.ops.softmax(h) + 1e-9))
    output = find_output(model, X, 3)
    assert output.text() == "log-softmax of 3 classes; logits too; by its values, after Log"
    np.testing.assert_allclose(output.logits(model, X), model(X), atol=1e-6)


def test_classes_without_numbers_for_each_are_refused_with_what_was_received():
    with pytest.raises(UsageError, match=r"floating-point numbers for each image, received int(32|64) of shape"):
        find_output(functional(lambda h: keras.ops.argmax(h, axis=-1)), X, 3)


@pytest.mark.parametrize("rest", [[layers.Dense(4)], [layers.Reshape((4, 4, 1)), layers.Conv2D(3, 1)]])
def test_outputs_that_do_not_fit_are_refused(rest):
    with pytest.raises(UsageError, match=r"m.keras: expected outputs of shape \(None, 3\) for 3 classes, received"):
        find_output(sequential(*rest), X, 3, source="m.keras")


@pytest.mark.filterwarnings("ignore:You are using a softmax")
@pytest.mark.parametrize("declared", ["auto", "softmax", "logits"])
def test_a_softmax_of_one_column_is_refused(declared):
    with pytest.raises(UsageError, match="always 1"):
        find_output(sequential(dense(1, activation="softmax")), X, 2, declared=declared)


def test_sigmoids_of_two_columns_are_said():
    output = find_output(sequential(dense(2, activation="sigmoid")), X, 2)
    assert output.kind == "sigmoid"
    assert "the larger one counts" in output.text()


def test_a_call_that_fails_says_so_in_one_line():
    model = keras.Sequential([keras.Input((4, 4, 3)), layers.Conv2D(3, 4)])
    with pytest.raises(UsageError, match=r"m.keras: cannot be called with images of shape \(4, 4, 1\)") as caught:
        find_output(model, X, 3, source="m.keras")
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_it_is_written_as_json():
    import json

    plain = find_output(sequential(dense(activation="softmax")), X, 3).plain()
    assert json.loads(json.dumps(plain)) == plain
    assert (plain["kind"], plain["shape"], plain["dtype"]) == ("softmax", [3], "float32")

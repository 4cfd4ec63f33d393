"""What the trial call finds, on models that are known."""

import json

import numpy as np
import pytest

from bn_vuln.attacks.losses import input_gradient
from bn_vuln.errors import UsageError
from bn_vuln.external.outputs import find_output
from bn_vuln.external.trial import find_input, normalization_layers, try_model
from bn_vuln.runtime import backend

tf = backend.tensorflow()
import keras  # noqa: E402
from keras import layers  # noqa: E402

X = tf.constant(np.random.default_rng(0).random((6, 4, 5, 1)).astype(np.float32))


def trial(*begin, dtype="float32", inputs=X):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input(inputs.shape[1:], dtype=dtype), *begin, layers.Flatten(), layers.Dense(3)])
    found = find_input(model, tuple(inputs.shape[1:]))
    return try_model(model, inputs, found, find_output(model, inputs, 3), custom=("Attention",))


@pytest.mark.parametrize(
    ("shape", "expected", "arranged"),
    [
        ((4, 5, 1), (4, 5, 1, "channels last"), (6, 4, 5, 1)),
        ((None, None, 1), (None, None, 1, "channels last"), (6, 4, 5, 1)),
        ((4, 5), (4, 5, 1, "gray"), (6, 4, 5)),
        ((20,), (4, 5, 1, "flat"), (6, 20)),
        ((1, 4, 5), (4, 5, 1, "channels first"), (6, 1, 4, 5)),
    ],
)
def test_input_and_its_layout(shape, expected, arranged):
    found = find_input(keras.Sequential([keras.Input(shape), layers.Flatten()]), (4, 5, 1))
    assert (found.height, found.width, found.channels, found.layout) == expected
    inputs = np.asarray(found.arrange(X))
    assert inputs.shape == arranged
    np.testing.assert_array_equal(inputs.ravel(), np.asarray(X).ravel())


def test_channels_first_are_moved():
    images = tf.constant(np.arange(2 * 4 * 5 * 3, dtype=np.float32).reshape(2, 4, 5, 3))
    found = find_input(keras.Sequential([keras.Input((3, 4, 5)), layers.Flatten()]), (4, 5, 3))
    np.testing.assert_array_equal(found.arrange(images), np.moveaxis(np.asarray(images), -1, 1))


def test_as_many_channels_as_the_images_have_are_last():
    found = find_input(keras.Sequential([keras.Input((1, 1, 2)), layers.Flatten()]), (1, 1, 2))
    assert (found.height, found.width, found.channels, found.layout) == (1, 1, 2, "channels last")


def test_flat_vectors_of_another_size_are_squares():
    found = find_input(keras.Sequential([keras.Input((64,)), layers.Dense(3)]), (4, 5, 1))
    assert (found.height, found.width, found.channels) == (8, 8, 1)


class Subclassed(keras.Model):
    def __init__(self, **settings):
        super().__init__(**settings)
        self.conv, self.norm, self.dense = layers.Conv2D(3, 3), layers.GroupNormalization(3), layers.Dense(3)

    def call(self, x):
        return self.dense(keras.ops.mean(self.norm(self.conv(x)), axis=(1, 2)))


def test_a_subclassed_model_says_what_it_was_built_for(tmp_path):
    model = Subclassed()
    model(X)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", custom_objects={"Subclassed": Subclassed}, compile=False)
    for one in (model, loaded):
        found = find_input(one, (4, 5, 1))
        assert (found.height, found.width, found.channels) == (4, 5, 1)
        assert normalization_layers(one) == {"GroupNormalization": 1}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([(4, 5, 1), (3,)], "one of 2"),
        ([(4, 5, 4)], r"received an input of shape \(None, 4, 5, 4\)"),
        ([(30,)], r"20 for \(4, 5, 1\)"),
        ([(2, 4, 5, 1)], "expected a model that takes images"),
    ],
)
def test_no_image_is_refused(inputs, message):
    tensors = [keras.Input(shape) for shape in inputs]
    model = keras.Model(
        tensors, layers.Concatenate()([layers.Flatten()(one) for one in tensors]) if len(tensors) > 1 else tensors[0]
    )
    with pytest.raises(UsageError, match=rf"m.keras: .*{message}"):
        find_input(model, (4, 5, 1), "m.keras")


def test_strings_are_refused():
    with pytest.raises(UsageError, match="takes strings"):
        find_input(keras.Sequential([keras.Input((4, 5, 1), dtype="string"), layers.Flatten()]), (4, 5, 1))


def test_an_ordinary_model_is_as_it_was_built():
    found = trial(
        layers.Conv2D(2, 3),
        layers.BatchNormalization(),
        keras.Sequential([layers.LayerNormalization()]),
        layers.Dropout(0.5),
    )
    assert found.normalization == {"BatchNormalization": 1, "LayerNormalization": 1}
    assert found.parameters == (3 * 3 * 2 + 2) + 4 * 2 + 2 * 2 + (2 * 3 * 2 * 3 + 3)
    assert (found.finite, found.deterministic, found.gradient, found.flags) == (1.0, True, True, ())
    assert found.input_range == (float(np.min(X)), float(np.max(X)))
    text = "\n".join(found.lines("0-1: by the accuracy"))
    for part in ("4 x 5 x 1", "0-1: by the accuracy", "logits of 3 classes", "1 LayerNormalization", "Attention"):
        assert part in text
    plain = found.plain()
    assert json.loads(json.dumps(plain)) == plain


class Whitening(layers.Layer):
    """A custom layer that tracks statistics."""

    def build(self, shape):
        self.moving_mean = self.add_weight(shape=(shape[-1],), name="moving_mean", trainable=False)

    def call(self, x):
        return x - self.moving_mean


def test_custom_normalization_is_known_by_its_statistics():
    assert trial(Whitening(), layers.Rescaling(2.0)).normalization == {"Whitening": 1}


@tf.custom_gradient
def without_gradient(x):
    def gradient(_):
        raise NotImplementedError("not written yet")

    return 1 * x, gradient


INTEGERS = "casts to integers: no gradients; save it with a float input, or use square"


@pytest.mark.parametrize(
    ("layer", "cause"),
    [
        (lambda x: tf.cast(tf.cast(255 * x, tf.int32), tf.float32), INTEGERS),
        (lambda x: tf.round(255 * x), "no gradients: round"),
        (tf.stop_gradient, "no gradients: stop_gradient"),
        (lambda x: tf.reshape(tf.numpy_function(lambda a: a, [x], tf.float32), (-1, 4, 5, 1)), "a Python function"),
        (lambda x: tf.cast(x > 0.5, tf.float32), "a comparison"),
        (lambda x: tf.compat.v1.image.resize_area(x, (4, 5)), "ResizeArea inside of the model has none"),
        (without_gradient, "they fail (not written yet)"),
        (lambda x: 0 * x, "no trial image has a usable input gradient"),
    ],
)
def test_missing_gradients_have_their_cause(layer, cause):
    found = trial(layers.Lambda(layer, output_shape=(4, 5, 1)))
    assert found.gradient is False
    assert cause in found.gradient_cause
    assert cause in found.flags[0]


def test_an_inverse_that_saturates_is_the_cause():
    keras.utils.set_random_seed(0)
    image = keras.Input((4, 5, 1))
    logits = 1e4 * layers.Dense(3)(layers.Flatten()(image))
    model = keras.Model(image, keras.ops.clip(keras.ops.softmax(logits), 1e-7, 1 - 1e-7))
    found = try_model(model, X, find_input(model, (4, 5, 1)), find_output(model, X, 3))
    assert "its softmax could not be taken off, and saturates: no gradients for 100% of" in found.gradient_cause


def test_logits_without_a_gradient_are_called_and_attacked_without_an_error():
    found = trial(layers.Lambda(lambda x: tf.compat.v1.image.resize_area(x, (4, 5)), output_shape=(4, 5, 1)))
    assert not found.output.differentiable
    model = keras.Sequential([keras.Input((4, 5, 1)), layers.Resizing(4, 5), layers.Flatten(), layers.Dense(3)])
    _, _, gradient = input_gradient(lambda x: found.output.logits(model, x), X, lambda logits: logits[:, 0])
    np.testing.assert_array_equal(gradient, np.zeros_like(X))
    np.testing.assert_allclose(found.output.logits(model, X), model(X, training=False), atol=1e-6)


def test_an_integer_input_has_no_gradients():
    found = trial(dtype="uint8", inputs=255 * X)
    assert (found.input.dtype, found.gradient_cause) == ("uint8", INTEGERS)


def test_a_way_around_the_cast_has_gradients():
    assert trial(layers.Lambda(lambda x: x + tf.cast(tf.cast(x, tf.int32), tf.float32))).gradient


def test_random_inference_is_flagged():
    found = trial(layers.Lambda(lambda x: x + tf.random.normal(tf.shape(x))))
    assert not found.deterministic
    assert "two calls with the same images disagree" in found.flags[0]


def test_outputs_that_are_not_finite_are_flagged():
    found = trial(layers.Lambda(lambda x: x / tf.where(x < tf.reduce_min(x) + 1e-6, 0.0, 1.0)))
    assert found.finite == 5 / 6
    assert "17% of the trial images" in found.flags[0]

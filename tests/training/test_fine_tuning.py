"""Fine-tuning: exact steps of a linear model of another's making, frozen layers, small batches, refusals."""

from dataclasses import replace

import numpy as np
import pytest
from helpers_attacks import keras
from PIL import Image

from bn_vuln import data
from bn_vuln.config import ExternalModel, FineTuning
from bn_vuln.data import Dataset
from bn_vuln.data.info import DatasetInfo
from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.evaluation.classifier import from_external
from bn_vuln.evaluation.fit_images import fit_images
from bn_vuln.runtime import memory
from bn_vuln.training.fine_tuning import fine_tune

RNG = np.random.default_rng(0)
INFO = DatasetInfo("made", (4, 5, 1), ("a", "b", "c"), mean=(0.5,), std=(0.2,), sizes={})
X = RNG.integers(0, 256, (30, 4, 5, 1), np.uint8)
Y = RNG.integers(0, 3, 30).astype(np.int32)
EXAMPLES = Dataset(X, Y, np.arange(30), INFO)


def softmax_of_bytes():
    """A model of pixels of 0 to 255, images 4 x 5, that returns the softmax of a dense layer."""
    keras.utils.set_random_seed(0)
    last = keras.layers.Dense(3, activation="softmax", name="last")
    return keras.Sequential([keras.Input((4, 5, 1)), keras.layers.Flatten(), last])


def one_step(kernel, bias, x, lr, weight_decay=0.0):
    """(kernel, bias) after a step of SGD by the cross-entropy of all examples x [n, d]."""
    logits = x @ kernel + bias
    p = np.exp(logits - logits.max(1, keepdims=True))
    error = (p / p.sum(1, keepdims=True) - np.eye(3)[Y]) / len(x)
    return kernel - lr * (x.T @ error + weight_decay * kernel), bias - lr * error.sum(0)


def values(layer):
    return [np.array(v, np.float64) for v in layer.weights]


def bytes_classifier(model):
    name = data.register(X, Y)
    return from_external(model, ExternalModel(input_scale="0-255"), name, "all")


def test_a_step_of_a_softmax_model_of_bytes_is_exact():
    model = softmax_of_bytes()
    classifier = bytes_classifier(model)
    kernel, bias = values(model.get_layer("last"))
    epochs = fine_tune(
        model,
        FineTuning(lr=1e-4, batch_size=64, weight_decay=0.5),
        EXAMPLES,
        predict=lambda x, training: replace(classifier, training=training).predict(x),
        size=classifier.size,
    )
    expected = one_step(kernel, bias, X.reshape(30, 20).astype(np.float64), 1e-4, 0.5)
    for found, wanted in zip(values(model.get_layer("last")), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert len(epochs) == 1
    assert np.isnan(epochs[0].validation_accuracy)
    assert np.asarray(model(X[:2].astype(np.float32))).sum(1) == pytest.approx([1, 1])  # the softmax is still there


def test_adversarial_steps_are_on_worst_cases():
    """FGSM on two classes of a linear model: every pixel moves by eps against the class."""
    model = keras.Sequential([keras.Input((4, 5, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    kernel, bias = values(model.layers[-1])
    y = Y % 2
    examples = Dataset(X, y, np.arange(30), replace(INFO, classes=("a", "b")))
    adversarial = {"eps": 0.1, "steps": 1, "random_start": False}
    fine_tune(model, FineTuning(lr=0.1, adversarial=adversarial), examples)
    away = np.sign(kernel[:, 0] - kernel[:, 1]) * np.where(y, 1, -1)[:, None]
    x = np.clip(X.reshape(30, 20) / 255 + 0.1 * away, 0, 1)
    logits = x @ kernel + bias
    error = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - np.eye(2)[y]) / 30
    np.testing.assert_allclose(values(model.layers[-1])[0], kernel - 0.1 * x.T @ error, atol=1e-6)


class InInferenceMode(keras.Model):
    """Calls a part of itself in inference mode, as in transfer learning."""

    def __init__(self, inner, last):
        super().__init__()
        self.inner, self.last = inner, last

    def call(self, x, training=None):
        return self.last(keras.ops.reshape(self.inner(x, training=False), (-1, 36)))


@pytest.mark.parametrize("how", ["frozen", "inference"])
def test_batch_norm_that_is_not_trained_keeps_its_statistics(how):
    conv, norm, last = keras.layers.Conv2D(3, 2), keras.layers.BatchNormalization(), keras.layers.Dense(3)
    inner = keras.Sequential([keras.Input((4, 5, 1)), conv, norm])
    inner.trainable = how != "frozen"
    model = InInferenceMode(inner, last)
    if how == "frozen":
        model = keras.Sequential([inner, keras.layers.Flatten(), last])
    model(X[:1].astype(np.float32))
    before = [values(layer) for layer in (norm, conv, last)]
    fine_tune(model, FineTuning(epochs=2, lr=0.1, batch_size=10), EXAMPLES, size=(4, 5))
    for variable, value in zip((norm.moving_mean, norm.moving_variance), before[0][2:], strict=True):
        np.testing.assert_array_equal(variable, value)
    assert np.array_equal(values(conv)[0], before[1][0]) == (how == "frozen")
    assert not np.array_equal(values(last)[0], before[2][0])


def test_batch_norm_that_is_trained_tracks_its_batches():
    norm = keras.layers.BatchNormalization(momentum=0.75)
    model = keras.Sequential([keras.Input((4, 5, 1)), norm, keras.layers.Flatten(), keras.layers.Dense(3)])
    fine_tune(model, FineTuning(), EXAMPLES)
    np.testing.assert_allclose(norm.moving_mean, [0.25 * X.mean() / 255], rtol=1e-5)


def test_the_rate_falls_along_half_a_cosine_and_images_are_enlarged():
    model = keras.Sequential([keras.Input((8, 10, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
    epochs = fine_tune(model, FineTuning(epochs=2, lr=0.5, batch_size=10), EXAMPLES, EXAMPLES)
    expected = [0.25 * (1 + np.cos(np.pi * passed)) for passed in (2 / 6, 5 / 6)]
    assert [epoch.learning_rate for epoch in epochs] == pytest.approx(expected, rel=1e-6)
    pixels = data.transforms.pixel_array(X, (8, 10))
    accuracy = float(np.mean(np.argmax(np.asarray(model(pixels)), 1) == Y))
    assert epochs[-1].validation_accuracy == pytest.approx(accuracy)


def test_an_operation_that_xla_does_not_have():
    model = keras.Sequential([
        keras.Input((4, 5, 1)), keras.layers.RandomRotation(0.1), keras.layers.Flatten(), keras.layers.Dense(3)
    ])  # fmt: skip
    assert len(fine_tune(model, FineTuning(), EXAMPLES)) == 1


@pytest.mark.parametrize("problem", ["frozen", "no images", "not finite"])
def test_refusals(problem):
    model, examples = softmax_of_bytes(), EXAMPLES
    model.trainable = problem != "frozen"
    examples = EXAMPLES.take(np.arange(0)) if problem == "no images" else EXAMPLES
    if problem == "not finite":
        model.layers[-1].kernel.assign(np.full((20, 3), np.nan))
    error = BnvulnError if problem == "not finite" else UsageError
    with pytest.raises(
        error, match={"frozen": "nothing to train", "no images": "no images"}.get(problem, "is not finite")
    ):
        fine_tune(model, FineTuning(), examples)


def test_photos_in_files(tmp_path):
    """Images of several sizes are decoded at the size of the model's input."""
    for i, (height, width) in enumerate([(8, 10), (12, 12), (9, 14), (8, 10)]):
        folder = tmp_path / f"class{i % 2}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (height, width, 3), np.uint8)).save(folder / f"{i}.png")
    model = keras.Sequential([keras.Input((4, 6, 3)), keras.layers.Flatten(), keras.layers.Dense(2)])
    photos = fit_images(data.load(f"folder:{tmp_path}", "all"), (4, 6), 3, "crop")
    assert data.as_lazy(photos.images) is not None
    kernel = values(model.layers[-1])[0]
    assert len(fine_tune(model, FineTuning(lr=0.1), photos)) == 1
    assert not np.array_equal(values(model.layers[-1])[0], kernel)


def test_images_that_memory_does_not_hold(monkeypatch):
    monkeypatch.setattr(memory, "machine_memory", lambda: 2000.0)
    with pytest.raises(UsageError, match="30 images of 4x5x1 to train on take"):
        fine_tune(softmax_of_bytes(), FineTuning(), EXAMPLES)

"""Models: sizes, one initialization for both arms, its variances, the options of BN, and files for plain Keras."""

import json
import sys
import zipfile

import numpy as np
import pytest
from helpers_attacks import keras, tf

from bn_vuln import models
from bn_vuln.config import Cell, validate
from bn_vuln.data.mnist import FACTS
from bn_vuln.facts import Facts

COLOUR = Facts("colour", (4, 4, 2), ("a", "b"), mean=(0.2, 0.7), std=(0.5, 0.1), sizes={})
BATCH = {"name": "batch"}
PLAIN = {"name": "batch", "affine": False}


def build(arch="mlp", normalization="none", *, facts=FACTS, width=None, **fields):
    cell = {"arch": arch, "normalization": normalization, "data": {"width": width}, **fields}
    return models.build(validate(Cell, cell, "test"), facts)


def mlp(*hidden, normalized=(0,)):
    return {"name": "mlp", "hidden": hidden, "normalized": normalized}


def weights(model):
    return {variable.path: np.array(variable) for variable in model.variables}


def part(model, name):
    """The model up to the output of one of its layers."""
    return keras.Model(model.input, model.get_layer(name).output)


def randomize_bn(layer, seed=0):
    """Random gamma, beta, moving mean and variance; returns them, ones and zeros where the layer has none."""
    generator = np.random.default_rng(seed)
    size = layer.moving_mean.shape[0]
    mean, variance = generator.normal(size=size), generator.uniform(0.01, 2, size=size)
    gamma, beta = generator.normal(size=size), generator.normal(size=size)
    layer.moving_mean.assign(mean)
    layer.moving_variance.assign(variance)
    if layer.center:
        layer.beta.assign(beta)
    if layer.scale:
        layer.gamma.assign(gamma)
    return gamma if layer.scale else 1.0, beta if layer.center else 0.0, mean, variance


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("arch", "normalization", "parameters"),
    [
        ("mlp", "none", 465_706),
        ("mlp", BATCH, 466_882),
        ("mlp", PLAIN, 466_490),
        (mlp(20, 30), "none", 16_640),
        (mlp(20, 30), BATCH, 16_700),
        (mlp(20, 30, normalized=(0, 1)), BATCH, 16_790),
        (mlp(20, 30, normalized=(1,)), BATCH, 16_730),
        (mlp(20, 30, normalized=()), BATCH, 16_640),
        (mlp(16), "none", 12_730),
        ("linear", "none", 7_850),
        ("linear", BATCH, 10_986),
        ("linear", PLAIN, 9_418),
    ],
    ids=str,
)
def test_parameter_counts(arch, normalization, parameters):
    assert build(arch, normalization).count_params() == parameters


def test_parameter_counts_at_width_84_follow_the_formula():
    inputs = 84 * 84
    half = inputs // 2
    expected = inputs * half + half * half + half * 10 + half + 10
    assert build(width=84).count_params() == expected + half
    assert build(normalization=BATCH, width=84).count_params() == expected + 4 * half


@pytest.mark.parametrize("arch", ["linear", mlp(5)], ids=["linear", "mlp"])
@pytest.mark.parametrize(("width", "expected"), [(None, 28), (40, 40)])
def test_models_take_pixels_of_their_width_and_give_a_logit_for_each_class(arch, width, expected):
    model = build(arch, width=width)
    assert model.input_shape == (None, expected, expected, 1)
    logits = model(np.random.default_rng(0).uniform(size=(3, expected, expected, 1)).astype(np.float32)).numpy()
    assert logits.shape == (3, 10)
    assert (logits < 0).any()


def test_models_have_the_shape_of_their_data():
    model = build("linear", facts=COLOUR)
    assert (model.input_shape, model.output_shape) == ((None, 4, 4, 2), (None, 2))


# ---------------------------------------------------------------- initialization


@pytest.mark.parametrize("init", ["torch", "he"])
@pytest.mark.parametrize("arch", ["linear", mlp(30, 20, normalized=(0, 1))], ids=["linear", "mlp"])
@pytest.mark.parametrize("normalization", [BATCH, PLAIN], ids=["affine", "plain"])
def test_both_arms_start_with_the_same_kernels_and_biases(arch, init, normalization):
    plain, normalized = (weights(build(arch, n, init=init, seed=3)) for n in ("none", normalization))
    shared = set(plain) & set(normalized)
    assert {path for path in plain if path.endswith("kernel")} <= shared
    assert "logits/bias" in shared
    for path in shared:
        np.testing.assert_array_equal(plain[path], normalized[path])


def test_another_seed_gives_other_weights_everywhere():
    first, second = (weights(build(mlp(30, 30), seed=seed)) for seed in (0, 1))
    for path in first:
        if path.startswith(("dense", "logits")):
            assert not np.isclose(first[path], second[path]).all()


def test_the_same_seed_gives_the_same_weights():
    first, second = weights(build(mlp(30))), weights(build(mlp(30)))
    for path in first:
        np.testing.assert_array_equal(first[path], second[path])


@pytest.mark.parametrize("init", ["torch", "he"])
def test_layers_of_the_same_shape_start_differently(init):
    model = build(mlp(30, 30, 30), init=init)
    kernels = [model.get_layer(f"dense_{i}").kernel.numpy() for i in (1, 2)]
    assert abs(np.corrcoef(kernels[0].ravel(), kernels[1].ravel())[0, 1]) < 0.1


def test_bias_and_kernel_of_a_layer_start_differently():
    layer = build("linear").get_layer("logits")
    assert not np.isclose(layer.kernel.numpy().ravel()[:10], layer.bias.numpy()).any()


def test_torch_initialization_is_uniform_of_variance_one_third_of_the_inverse_fan_in():
    model = build()
    for name, fan_in in (("dense_0", 784), ("dense_1", 392)):
        layer, bound = model.get_layer(name), 1 / np.sqrt(fan_in)
        for values, tolerance in ((layer.kernel.numpy(), 0.01), (layer.bias.numpy(), 0.2)):
            assert values.var() == pytest.approx(1 / (3 * fan_in), rel=tolerance)
            assert 0.98 * bound < np.abs(values).max() <= bound * (1 + 1e-6)
            assert abs(values.mean()) < 4 * bound / np.sqrt(3 * values.size)


def test_he_initialization_is_normal_of_variance_two_over_fan_in_without_biases():
    model = build(init="he")
    for name, fan_in in (("dense_0", 784), ("dense_1", 392)):
        layer, std = model.get_layer(name), np.sqrt(2 / fan_in)
        kernel = layer.kernel.numpy()
        assert kernel.var() == pytest.approx(std**2, rel=0.01)
        assert np.abs(kernel).max() > 3.5 * std
        assert np.mean(np.abs(kernel) < std) == pytest.approx(0.6827, abs=0.005)
        np.testing.assert_array_equal(layer.bias, np.zeros(392))


# ---------------------------------------------------------------- normalization


def bn_layer(model):
    return next(layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization))


def test_bn_is_absent_without_normalization():
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in build(mlp(5)).layers)


@pytest.mark.parametrize("arch", ["linear", mlp(5)], ids=["linear", "mlp"])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("synchronized", [True, False])
def test_bn_has_the_options_of_the_config(arch, affine, synchronized):
    options = {"name": "batch", "c": 0.02, "momentum": 0.7, "affine": affine, "synchronized": synchronized}
    layer = bn_layer(build(arch, options))
    assert (layer.epsilon, layer.momentum) == (0.02, 0.7)
    assert (layer.center, layer.scale, layer.synchronized) == (affine, affine, synchronized)
    assert len(layer.trainable_variables) == (2 if affine else 0)


def test_bn_defaults_are_those_of_pytorch():
    layer = bn_layer(build(mlp(5), BATCH))
    assert (layer.epsilon, layer.momentum, layer.center, layer.scale) == (1e-5, 0.9, True, True)
    initial = [layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance]
    for variable, value in zip(initial, (1, 0, 0, 1), strict=True):
        np.testing.assert_array_equal(variable, np.full(5, value))


@pytest.mark.parametrize(
    ("normalization", "kept"), [("none", [True, True]), (BATCH, [False, True]), (PLAIN, [True, True])]
)
def test_the_bias_before_bn_is_dropped_only_where_beta_takes_its_place(normalization, kept):
    model = build(mlp(5, 6), normalization)
    assert [model.get_layer(f"dense_{i}").use_bias for i in (0, 1)] == kept
    assert model.get_layer("logits").use_bias


@pytest.mark.parametrize("affine", [True, False])
def test_bn_of_an_mlp_is_its_formula_between_dense_and_relu(affine):
    c = 0.3
    model = build(mlp(12, 7), {"name": "batch", "c": c, "affine": affine})
    gamma, beta, mean, variance = randomize_bn(bn_layer(model))
    x = np.random.default_rng(1).uniform(size=(5, 28, 28, 1)).astype(np.float32)
    h = part(model, "dense_0")(x, training=False).numpy()
    expected = np.maximum(gamma * (h - mean) / np.sqrt(variance + c) + beta, 0)
    assert (expected == 0).any()
    assert (expected > 0).any()
    np.testing.assert_allclose(part(model, "relu_0")(x, training=False), expected, atol=1e-5)


@pytest.mark.parametrize("affine", [True, False])
def test_bn_of_a_linear_model_is_its_formula_on_the_standardized_pixels(affine):
    c = 0.3
    model = build("linear", {"name": "batch", "c": c, "affine": affine})
    gamma, beta, mean, variance = randomize_bn(bn_layer(model))
    x = np.random.default_rng(1).uniform(size=(5, 28, 28, 1)).astype(np.float32)
    h = (x.reshape(5, -1) - 0.1307) / 0.3081
    normalized = gamma * (h - mean) / np.sqrt(variance + c) + beta
    last = model.get_layer("logits")
    np.testing.assert_allclose(
        model(x, training=False), normalized @ last.kernel.numpy() + last.bias.numpy(), atol=1e-4
    )


def test_bn_tracks_the_mean_with_its_momentum():
    model = build(mlp(6), {"name": "batch", "momentum": 0.8})
    x = np.random.default_rng(1).uniform(size=(50, 28, 28, 1)).astype(np.float32)
    batch_mean = part(model, "dense_0")(x).numpy().mean(axis=0)
    model(x, training=True)
    np.testing.assert_allclose(bn_layer(model).moving_mean, 0.2 * batch_mean, atol=1e-6)


def test_a_net_without_normalization_is_its_formula():
    model = build(mlp(6))
    x = np.random.default_rng(1).uniform(size=(5, 28, 28, 1)).astype(np.float32)
    first, last = model.get_layer("dense_0"), model.get_layer("logits")
    hidden = np.maximum((x.reshape(5, -1) - 0.1307) / 0.3081 @ first.kernel.numpy() + first.bias.numpy(), 0)
    np.testing.assert_allclose(model(x), hidden @ last.kernel.numpy() + last.bias.numpy(), atol=1e-4)


# ---------------------------------------------------------------- standardization and files


def test_standardization_maps_the_mean_to_zero_and_one_std_above_it_to_one():
    standardize = part(build("linear", facts=COLOUR), "standardize")
    mean, std = np.array(COLOUR.mean), np.array(COLOUR.std)
    pixels = np.broadcast_to(np.stack([mean, mean + std])[:, None, None], (2, 4, 4, 2)).astype(np.float32)
    np.testing.assert_allclose(standardize(pixels), np.broadcast_to([[[[0]]], [[[1]]]], (2, 4, 4, 2)), atol=1e-5)


@pytest.mark.parametrize("normalization", ["none", BATCH], ids=["none", "batch"])
@pytest.mark.parametrize("arch", ["linear", mlp(6, 5)], ids=["linear", "mlp"])
def test_a_saved_model_opens_where_bnvuln_is_not_installed(tmp_path, monkeypatch, arch, normalization):
    model = build(arch, normalization)
    if normalization != "none":
        randomize_bn(bn_layer(model))
    x = np.random.default_rng(0).uniform(size=(4, 28, 28, 1)).astype(np.float32)
    expected = model(x, training=False).numpy()
    path = tmp_path / "model.keras"
    model.save(path)
    for name in [name for name in sys.modules if name.split(".")[0] == "bn_vuln"]:
        monkeypatch.setitem(sys.modules, name, None)
    np.testing.assert_allclose(keras.models.load_model(path)(x, training=False), expected, rtol=0, atol=1e-6)
    assert custom_objects(path) == []


def custom_objects(path):
    """Whatever in a `.keras` file is not of Keras itself."""

    def walk(node):
        if isinstance(node, dict):
            if str(node.get("module") or "keras").split(".")[0] not in ("keras", "builtins"):
                yield node.get("class_name")
            node = list(node.values())
        for child in node if isinstance(node, list) else []:
            yield from walk(child)

    with zipfile.ZipFile(path) as archive:
        return list(walk(json.loads(archive.read("config.json"))))


def test_a_custom_layer_would_be_found(tmp_path):
    class Mine(keras.layers.Layer):
        def call(self, x):
            return tf.identity(x)

    inputs = keras.Input((2,))
    keras.Model(inputs, Mine()(inputs)).save(tmp_path / "mine.keras")
    assert custom_objects(tmp_path / "mine.keras") == ["Mine"]

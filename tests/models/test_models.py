"""Models: sizes, one initialization for both arms, its variances, the options of BN, and files for plain Keras."""

import json
import sys
import zipfile

import numpy as np
import pytest
from helpers_attacks import keras, tf

from bn_vuln import models
from bn_vuln.config import Cell, validate
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.mnist import INFO

COLOUR = DatasetInfo("colour", (4, 4, 2), ("a", "b"), mean=(0.2, 0.7), std=(0.5, 0.1), sizes={})
PHOTOS = DatasetInfo("photos", (32, 32, 3), tuple("0123456789"), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), sizes={})
BATCH = {"name": "batch"}
PLAIN = {"name": "batch", "affine": False}


def build(arch="mlp", normalization="none", *, info=INFO, width=None, **fields):
    cell = {"arch": arch, "normalization": normalization, "data": {"width": width}, **fields}
    return models.build(validate(Cell, cell, "test"), info)


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


def test_parameter_counts():
    counts = [
        ("mlp", "none", 465_706),
        ("mlp", BATCH, 466_882),
        ("mlp", PLAIN, 466_490),
        (mlp(20, 30, normalized=(0, 1)), BATCH, 16_790),
        (mlp(20, 30, normalized=(1,)), BATCH, 16_730),
        (mlp(20, 30, normalized=()), BATCH, 16_640),
        ("linear", BATCH, 10_986),
        ("linear", PLAIN, 9_418),
    ]
    for arch, normalization, parameters in counts:
        assert build(arch, normalization).count_params() == parameters, (arch, normalization)


def test_parameter_counts_at_width_84_follow_the_formula():
    inputs = 84 * 84
    half = inputs // 2
    expected = inputs * half + half * half + half * 10 + half + 10
    assert build(width=84).count_params() == expected + half
    assert build(normalization=BATCH, width=84).count_params() == expected + 4 * half


# Of the convolutions for three channels, as published for the Keras and torchvision models without their heads.
VGG_CONVOLUTIONS = {"vgg11": 9_220_480, "vgg13": 9_404_992, "vgg16": 14_714_688, "vgg19": 20_024_384}
VGG_FILTERS = {"vgg8": 1472, "vgg11": 2752, "vgg13": 2944, "vgg16": 4224, "vgg19": 5504}  # of all convolutions


def test_parameter_counts_of_vgg_are_the_published_ones():
    for arch, convolutions in VGG_CONVOLUTIONS.items():
        assert build(arch, info=PHOTOS).count_params() == convolutions + 512 * 10 + 10


@pytest.mark.parametrize(
    ("arch", "parameters"),
    [
        ("vgg8", 3_914_762),
        ("vgg11", 9_224_458),
        ({"name": "deep", "depth": 3, "units": 20}, 784 * 20 + 20 + 2 * (20 * 20 + 20) + 210),
    ],
    ids=str,
)
def test_parameter_counts_of_every_normalization(arch, parameters):
    """BN adds gamma, beta, mean and variance and takes the bias; without affine it adds two and leaves the bias."""
    units = VGG_FILTERS.get(arch) if isinstance(arch, str) else 60
    units = units or 10 * 384
    assert build(arch).count_params() == parameters
    assert build(arch, BATCH).count_params() == parameters + 3 * units
    assert build(arch, PLAIN).count_params() == parameters + 2 * units


def test_vgg8_is_as_described():
    layers = [(type(layer).__name__, layer.output.shape[1:]) for layer in build("vgg8", BATCH).layers]
    stages = [
        (kind, (size // (2 if kind == "MaxPooling2D" else 1),) * 2 + (filters,))
        for size, filters in ((32, 64), (16, 128), (8, 256), (4, 512), (2, 512))
        for kind in ("Conv2D", "BatchNormalization", "ReLU", "MaxPooling2D")
    ]
    head = [("GlobalAveragePooling2D", (512,)), ("Dense", (10,))]
    front = [("InputLayer", (28, 28, 1)), ("ZeroPadding2D", (32, 32, 1)), ("Normalization", (32, 32, 1))]
    assert layers == [*front, *stages, *head]


@pytest.mark.parametrize(("width", "border", "last"), [(32, None, 1), (33, (15, 16), 2)])
def test_the_input_of_vgg_gets_a_black_border_to_a_multiple_of_32(width, border, last):
    model = build("vgg8", width=width)
    names = [layer.name for layer in model.layers]
    assert ("border" in names) == (border is not None)
    if border is not None:
        assert model.get_layer("border").padding == (border, border)
        framed = part(model, "standardize")(np.ones((1, width, width, 1), np.float32)).numpy()
        assert framed[0, 0, 0, 0] == pytest.approx(-0.1307 / 0.3081)  # black
    assert model.get_layer("pool_5").output.shape[1:3] == (last, last)


def test_a_vgg_without_normalization_is_its_formula():
    """The first stage and the head, by hand."""
    model = build("vgg8", info=PHOTOS)
    x = np.random.default_rng(0).uniform(size=(2, 32, 32, 3)).astype(np.float32)
    standardized = (x - np.array(PHOTOS.mean)) / np.array(PHOTOS.std)
    kernel, bias = (np.array(v) for v in model.get_layer("conv_1_1").variables)
    padded = np.pad(standardized, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.stack([padded[:, i : i + 32, j : j + 32] for i in range(3) for j in range(3)], axis=3)
    stage = np.maximum(np.einsum("nhwkc,kcf->nhwf", windows, kernel.reshape(9, 3, 64)) + bias, 0)
    pooled = stage.reshape(2, 16, 2, 16, 2, 64).max(axis=(2, 4))
    np.testing.assert_allclose(part(model, "pool_1")(x), pooled, atol=1e-4)
    last = np.array(part(model, "pool_5")(x))
    kernel, bias = (np.array(v) for v in model.get_layer("logits").variables)
    np.testing.assert_allclose(model(x), last.mean(axis=(1, 2)) @ kernel + bias, atol=1e-5)


def test_the_default_initialization_depends_on_the_architecture():
    for arch, init in (("mlp", "torch"), ("linear", "torch"), ("deep", "he"), ("vgg19", "he")):
        assert validate(Cell, {"arch": arch}, "test").init == init
    assert validate(Cell, {"arch": "deep", "init": "torch"}, "test").init == "torch"


def test_he_keeps_the_signal_of_a_deep_net_and_torch_loses_it():
    x = np.random.default_rng(0).uniform(size=(50, 28, 28, 1)).astype(np.float32)
    arch = {"name": "deep", "depth": 20, "units": 200}
    spread = {
        init: float(np.std(part(build(arch, init=init), "dense_19")(x), axis=0).mean()) for init in ("he", "torch")
    }
    assert spread["he"] > 0.05
    assert spread["torch"] < 1e-6


@pytest.mark.parametrize(("arch", "width", "expected"), [(mlp(5), None, 28), ({"name": "deep", "depth": 3}, 40, 40)])
def test_models_take_pixels_of_their_width_and_give_a_logit_for_each_class(arch, width, expected):
    model = build(arch, width=width)
    assert model.input_shape == (None, expected, expected, 1)
    logits = model(np.random.default_rng(0).uniform(size=(3, expected, expected, 1)).astype(np.float32)).numpy()
    assert logits.shape == (3, 10)
    assert (logits < 0).any()


def test_models_have_the_shape_of_their_data():
    model = build("linear", info=COLOUR)
    assert (model.input_shape, model.output_shape) == ((None, 4, 4, 2), (None, 2))


# ---------------------------------------------------------------- initialization


@pytest.mark.parametrize(
    ("arch", "init", "normalization"),
    [
        ("linear", "torch", PLAIN),
        (mlp(30, 20, normalized=(0, 1)), "torch", BATCH),
        ({"name": "deep", "depth": 4}, "he", PLAIN),
        ("vgg8", "he", BATCH),
    ],
    ids=["linear", "mlp", "deep", "vgg8"],
)
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


def test_layers_of_the_same_shape_start_differently():
    model = build(mlp(30, 30, 30), init="he")
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


@pytest.mark.parametrize(("arch", "affine", "synchronized"), [("linear", True, False), (mlp(5), False, True)], ids=str)
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


def test_bn_of_a_linear_model_is_its_formula_on_the_standardized_pixels():
    c, affine = 0.3, True
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
    standardize = part(build("linear", info=COLOUR), "standardize")
    mean, std = np.array(COLOUR.mean), np.array(COLOUR.std)
    pixels = np.broadcast_to(np.stack([mean, mean + std])[:, None, None], (2, 4, 4, 2)).astype(np.float32)
    np.testing.assert_allclose(standardize(pixels), np.broadcast_to([[[[0]]], [[[1]]]], (2, 4, 4, 2)), atol=1e-5)


def test_a_saved_model_opens_where_bnvuln_is_not_installed(tmp_path, monkeypatch):
    model = build(mlp(6, 5), BATCH)
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

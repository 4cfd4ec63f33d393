"""Normalizations beside batch norm: formulas, initial values, learning rates, files."""

import numpy as np
import pytest
from helpers_attacks import keras, tf

from bn_vuln import models
from bn_vuln.config import Cell, validate
from bn_vuln.data import Dataset
from bn_vuln.data.info import DatasetInfo
from bn_vuln.errors import ConfigError, UsageError
from bn_vuln.external import loading
from bn_vuln.models import custom_layers
from bn_vuln.models.folded_batch_norm import folded_batch_norm
from bn_vuln.runtime import backend
from bn_vuln.runtime.progress import Quiet
from bn_vuln.training import TrainingLoop
from bn_vuln.training.optimizers import rate_factors

PHOTOS = DatasetInfo("photos", (32, 32, 3), tuple("0123456789"), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), sizes={})
SMALL = {"name": "wrn", "depth": 10, "widening": 1}
EVERY = ("none", "batch", "group", "layer", "instance", "ws_group", "frn", "fixup")


def cell_of(arch="vgg8", normalization="none", **fields):
    return validate(Cell, {"arch": arch, "normalization": normalization, **fields}, "test")


def build(arch="vgg8", normalization="none", **fields):
    return models.build(cell_of(arch, normalization, **fields), PHOTOS)


def images(n=4, seed=0):
    return np.random.default_rng(seed).uniform(size=(n, 32, 32, 3)).astype(np.float32)


def between(model, before, after):
    """What layer `after` gives, and what it is given, on four images."""
    found = keras.Model(model.input, [model.get_layer(before).output, model.get_layer(after).output])(images())
    return tuple(np.asarray(values, np.float64) for values in found)


def randomize(layer, seed=0):
    generator = np.random.default_rng(seed)
    for variable in layer.trainable_variables:
        variable.assign(generator.normal(size=variable.shape))
    return [np.asarray(variable, np.float64) for variable in layer.trainable_variables]


# ---------------------------------------------------------------- formulas


def test_instance_normalization_before_pooling_leaves_little_of_an_image():
    x = np.random.default_rng(1).uniform(0.1, 1, (32, 1, 1, 3)).astype(np.float32) * images(32)

    def spread(normalization):
        model = build(SMALL, normalization)
        pooled = np.asarray(keras.Model(model.input, model.get_layer("average").output)(x))
        return (pooled.std(axis=0) / pooled.mean(axis=0)).mean()

    assert spread("instance") < spread("group") / 5


@pytest.mark.parametrize(("name", "groups"), [("group", 8), ("layer", 1), ("instance", 64), ("ws_group", 8)])
def test_groups_are_normalized_over_their_channels_and_all_positions(name, groups):
    model = build("vgg8", {"name": name, "c": 0.3})
    gamma, beta = randomize(model.get_layer("normalization_1_1"))
    x, found = between(model, "conv_1_1", "normalization_1_1")
    grouped = x.reshape(4, -1, groups, 64 // groups)
    mean, variance = grouped.mean(axis=(1, 3), keepdims=True), grouped.var(axis=(1, 3), keepdims=True)
    expected = ((grouped - mean) / np.sqrt(variance + 0.3)).reshape(x.shape) * gamma + beta
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(("arch", "name", "groups"), [("mlp", "group", 8), ("linear", "layer", 1)])
def test_groups_of_a_dense_net_are_normalized_over_units(arch, name, groups):
    model = build(arch, {"name": name, "c": 0.3})
    place = next(layer for layer in model.layers if layer.name.startswith("normalization"))
    before = model.layers[model.layers.index(place) - 1].name
    x, found = between(model, before, place.name)
    grouped = x.reshape(4, groups, -1)
    mean, variance = grouped.mean(axis=2, keepdims=True), grouped.var(axis=2, keepdims=True)
    np.testing.assert_allclose(found, ((grouped - mean) / np.sqrt(variance + 0.3)).reshape(x.shape), atol=1e-4)


def test_groups_must_divide_the_channels():
    with pytest.raises(UsageError, match="groups: 7 do not divide the 64 channels of normalization_1_1"):
        build("vgg8", {"name": "group", "groups": 7})


def test_filter_response_divides_by_the_root_mean_square_and_cuts_at_a_learned_threshold():
    model = build("vgg8", {"name": "frn", "c": 0.3})
    gamma, beta = randomize(model.get_layer("normalization_1_1"))
    x, found = between(model, "conv_1_1", "normalization_1_1")
    expected = gamma * x / np.sqrt((x**2).mean(axis=(1, 2), keepdims=True) + 0.3) + beta
    np.testing.assert_allclose(found, expected, atol=1e-4)
    (tau,) = randomize(model.get_layer("relu_1_1"), seed=1)
    assert (tau < 0).any()
    np.testing.assert_allclose(between(model, "conv_1_1", "relu_1_1")[1], np.maximum(expected, tau), atol=1e-4)


def test_standardized_weights_have_mean_0_and_variance_1_in_each_filter():
    model = build("vgg8", "ws_group")
    layer = model.get_layer("conv_2_1")
    layer.kernel.assign(np.random.default_rng(0).normal(0.3, 0.2, size=layer.kernel.shape))
    kernel = np.asarray(layer.kernel, np.float64)
    standardized = (kernel - kernel.mean(axis=(0, 1, 2))) / np.sqrt(kernel.var(axis=(0, 1, 2)) + 1e-5)
    x, found = between(model, "pool_1", "conv_2_1")
    expected = tf.nn.conv2d(x, standardized, 1, "SAME").numpy()
    assert np.abs(expected).max() > 10
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_standardized_weights_ignore_scale_and_offset_of_a_filter():
    model = build("vgg8", "ws_group")
    before, layer = model(images()).numpy(), model.get_layer("conv_1_1")
    layer.kernel.assign(7 * layer.kernel + 2)
    np.testing.assert_allclose(model(images()), before, atol=1e-2)
    layer.kernel.assign(layer.kernel**2)
    assert np.abs(model(images()).numpy() - before).max() > 0.1


@pytest.mark.parametrize("normalization", [n for n in EVERY if n != "batch"])
def test_no_other_normalization_knows_of_the_batch(normalization):
    model = build(SMALL, normalization)
    for layer in model.layers:
        if normalization == "fixup" and layer.trainable_variables:
            randomize(layer)  # its logits begin at zero
    together = model(images(), training=True).numpy()
    np.testing.assert_allclose(model(images()[:1], training=False), together[:1], rtol=2e-3, atol=1e-4)


# ---------------------------------------------------------------- what fits what


def test_some_normalizations_need_positions():
    for arch, name in (("linear", "instance"), ("mlp", "ws_group"), ("deep", "frn")):
        with pytest.raises(ConfigError, match=f"normalization {name} is for convolutional nets .*, not for {arch}"):
            cell_of(arch, name)


def test_fixup_needs_branches():
    arch = "vgg8"
    with pytest.raises(
        ConfigError, match=rf"normalization fixup is for residual nets \(ResNets, wrn\), not for {arch}"
    ):
        cell_of(arch, "fixup")


def test_fixup_needs_sgd():
    with pytest.raises(ConfigError, match="normalization fixup is for sgd, not for adamw"):
        cell_of("resnet20", "fixup", train={"optimizer": "adamw"})


# ---------------------------------------------------------------- initial values


@pytest.mark.parametrize(
    ("arch", "normalization"), [("vgg8", "group"), ("resnet20", "batch"), *((SMALL, n) for n in EVERY[1:-1])], ids=str
)
def test_every_arm_starts_with_the_same_kernels(arch, normalization):
    plain, normalized = (
        {v.path: np.array(v) for v in build(arch, n, seed=3).variables if v.name == "kernel"}
        for n in ("none", normalization)
    )
    assert plain.keys() == normalized.keys()
    for path, kernel in plain.items():
        np.testing.assert_array_equal(normalized[path], kernel)


@pytest.mark.parametrize("init", ["he", "torch"])
def test_fixup_scales_the_first_kernel_of_a_branch_and_zeroes_the_last(init):
    plain, fixed = build("resnet20", "none", init=init, seed=3), build("resnet20", "fixup", init=init, seed=3)
    for layer in plain.layers:
        if not isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            continue
        first = layer.name.startswith("conv_") and layer.name.endswith("_1")
        gain = 9**-0.5 if first else 1.0 if layer.name == "conv" else 0.0
        kernel = np.asarray(fixed.get_layer(layer.name).kernel)
        np.testing.assert_allclose(kernel, gain * np.asarray(layer.kernel), rtol=1e-4, atol=1e-7, err_msg=layer.name)


@pytest.mark.parametrize(("arch", "init"), [("resnet20", "he"), (SMALL, "torch")], ids=str)
def test_branches_of_fixup_begin_at_zero_and_so_do_its_logits(arch, init):
    model = build(arch, "fixup", init=init)
    branches = [layer.output for layer in model.layers if layer.name.startswith("multiplier")]
    assert len(branches) == {"resnet20": 9}.get(str(arch), 3)
    for values in keras.Model(model.input, [*branches, model.output])(images(2)):
        np.testing.assert_array_equal(values, np.zeros(values.shape))


def spread(arch, normalization, name="average"):
    model = build(arch, normalization)
    return float(np.std(keras.Model(model.input, model.get_layer(name).output)(images(16))))


def test_the_spread_of_activations_does_not_grow_with_the_depth_of_a_fixup_net():
    shallow, deep = (spread(arch, "fixup") for arch in ("resnet20", "resnet32"))
    assert deep == pytest.approx(shallow, rel=1e-4)
    assert spread("resnet32", "none") > 3 * spread("resnet20", "none")


def test_scalars_of_fixup_are_where_its_paper_has_them():
    """A bias before each convolution of a branch, activation and Dense; a multiplier for each branch."""
    model = build("resnet20", "fixup")
    scalars = [v for v in model.trainable_variables if v.shape == (1,)]
    multipliers = [v for v in scalars if v.name == "multiplier"]
    assert len(multipliers) == 9
    assert {float(v.numpy()[0]) for v in multipliers} == {1.0}
    assert len(scalars) - len(multipliers) == 9 * 4 + 1 + 1
    assert not any(layer.use_bias for layer in model.layers if isinstance(layer, keras.layers.Conv2D))


# ---------------------------------------------------------------- learning


def training_set(n=8):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (n, 32, 32, 3), np.uint8)
    return Dataset(pixels, generator.integers(0, 10, n).astype(np.int32), np.arange(n), PHOTOS)


def one_step(lr_factor, **train):
    """Changes of the variables in one step on all examples, of a net whose variables are random."""
    normalization = {"name": "fixup", "lr_factor": lr_factor}
    cell = cell_of(SMALL, normalization, train={"batch_size": 8, "epochs": 1, "lr": 1e-3, **train})
    model = models.build(cell, PHOTOS)
    generator = np.random.default_rng(1)
    for variable in model.trainable_variables:
        variable.assign(variable + generator.normal(scale=0.05, size=variable.shape))
    before = [np.array(v, np.float64) for v in model.trainable_variables]
    examples = training_set()
    loop = TrainingLoop(cell, model, examples, examples)
    loop.epoch(0, Quiet())
    return {v.path: np.array(v, np.float64) - old for v, old in zip(model.trainable_variables, before, strict=True)}


def test_all_but_kernels_learn_at_a_tenth_of_the_rate():
    whole, tenth = one_step(1.0, momentum=0.9), one_step(0.1, momentum=0.9)
    for path, change in whole.items():
        factor = 1.0 if path.endswith("kernel") else 0.1
        assert np.abs(change).max() > 0
        np.testing.assert_allclose(tenth[path], factor * change, rtol=2e-2, atol=2e-7, err_msg=path)


def test_no_other_normalization_changes_learning_rates():
    for normalization in EVERY[:-1]:
        cell = cell_of(SMALL, normalization)
        assert set(rate_factors(cell, models.build(cell, PHOTOS))) == {1.0}


@pytest.mark.parametrize("normalization", ["ws_group", "frn", "fixup"])
def test_every_arm_learns(normalization):
    cell = cell_of(SMALL, normalization, train={"batch_size": 8, "epochs": 12, "lr": 0.05})
    examples = training_set()
    loop = TrainingLoop(cell, models.build(cell, PHOTOS), examples, examples)
    losses = [loop.epoch(number, Quiet()).loss for number in range(12)]
    assert losses[-1] < 0.7 * losses[0]


# ---------------------------------------------------------------- files, and copies that attacks use


def test_registered_names_of_custom_layers_stay():
    """They stand in saved models."""
    layers = (
        custom_layers.scalar_bias_class, custom_layers.scalar_multiplier_class, custom_layers.standardized_conv_class,
        custom_layers.filter_response_class, custom_layers.threshold_class,
    )  # fmt: skip
    assert [keras.utils.get_registered_name(layer()) for layer in layers] == (
        [f"bn_vuln>{name}" for name in ("Bias", "Multiplier", "StandardizedConv2D", "FilterResponse", "Threshold")]
    )


@pytest.mark.parametrize("normalization", EVERY)
def test_a_saved_model_opens_and_gives_its_logits(normalization, tmp_path):
    model = build(SMALL, normalization)
    for layer in model.layers:
        if type(layer).__module__.startswith("bn_vuln"):
            randomize(layer)
    model.save(tmp_path / "model.keras")
    expected = model(images(), training=False).numpy()
    custom_layers.scalar_bias_class.cache_clear()
    np.testing.assert_allclose(loading.load_keras(tmp_path / "model.keras")(images()), expected, atol=1e-5)


@pytest.mark.parametrize("arch", ["resnet20", SMALL], ids=str)
def test_batch_norm_of_a_residual_net_is_folded_as_far_as_it_goes(arch):
    model = build(arch, "batch")
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_variance.assign(generator.uniform(0.5, 2, layer.moving_variance.shape))
            layer.moving_mean.assign(generator.normal(size=layer.moving_mean.shape))
    logits = model(images(), training=False).numpy()
    with folded_batch_norm(model) as folded:
        found = backend.compile(lambda x: model(x, training=False))(images()).numpy()
    # In WRN only that of the second convolution of each block follows a convolution whose output goes nowhere else.
    assert len(folded) == (19 if arch == "resnet20" else 3)
    np.testing.assert_allclose(found, logits, atol=1e-4 * np.abs(logits).max())

"""BN folding: the same outputs and gradients on every kind of graph, what stays and why, and an untouched original."""

import inspect

import numpy as np
import pytest
from helpers_attacks import keras, tf

from bn_vuln import models
from bn_vuln.config import Cell, validate
from bn_vuln.data.mnist import INFO
from bn_vuln.models import bn_folding
from bn_vuln.models.bn_folding import fold

L = keras.layers
AFFINE = {"name": "batch"}
PLAIN = {"name": "batch", "affine": False}
LARGE_C = {"name": "batch", "c": 3.0}
NOT_LINEAR = "not a Dense or convolution"


def build(arch, normalization=AFFINE, **fields):
    return models.build(validate(Cell, {"arch": arch, "normalization": normalization, **fields}, "test"), INFO)


def normalizations(model):
    return [layer for layer in model._flatten_layers() if isinstance(layer, L.BatchNormalization)]


def randomize(model, seed=0):
    """Random weights and statistics from a seed: negative gammas, variances from 1e-8 to 2."""
    generator = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        fan_in = np.prod(variable.shape[:-1]) if len(variable.shape) > 1 else 2
        variable.assign(generator.normal(size=variable.shape) * np.sqrt(2 / fan_in))
    for layer in normalizations(model):
        size = layer.moving_mean.shape
        layer.moving_mean.assign(generator.normal(size=size))
        layer.moving_variance.assign(np.exp(generator.uniform(np.log(1e-8), np.log(2), size=size)))
    return model


def sequential(*layers, shape=(6,), dtype="float32"):
    return randomize(keras.Sequential([keras.Input(shape, dtype=dtype), *layers]))


def functional(build_graph, shape=(6,)):
    inputs = keras.Input(shape)
    return randomize(keras.Model(inputs, build_graph(inputs)))


def bn(name="bn", **options):
    return L.BatchNormalization(name=name, **options)


def batch(model, n=5, seed=1):
    generator = np.random.default_rng(seed)
    return [generator.uniform(size=(n, *x.shape[1:])).astype(x.dtype) for x in model.inputs]


def outputs(model, x):
    return [np.array(y, np.float64) for y in keras.tree.flatten(model(x if len(x) > 1 else x[0], training=False))]


def relative(expected, received):
    return np.abs(expected - received).max() / np.abs(expected).max()


def check(model, folded, tolerance=1e-5):
    """Fold, check what must always hold, and return the result."""
    before = [np.array(variable) for variable in model.variables]
    result = fold(model)
    assert (result.folded, len(result.kept)) == (folded, len(normalizations(model)) - folded), result.kept
    assert len(normalizations(result.model)) == len(result.kept)
    assert (result.model is model) == (folded == 0)
    x = batch(model)
    for expected, received in zip(outputs(model, x), outputs(result.model, x), strict=True):
        assert np.abs(expected).max() > 0
        assert relative(expected, received) <= tolerance
    for value, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(value, variable)
    return result


def reasons(model, folded=0):
    return check(model, folded).kept


# ---------------------------------------------------------------- the project's models


def conv_net(affine=True, bias=True):
    """conv - BN - ReLU eight times, in four stages."""
    inputs = keras.Input((16, 16, 3))
    x = inputs
    for i in range(8):
        x = L.Conv2D(8 + i, 3, padding="same", use_bias=bias, kernel_initializer="he_normal")(x)
        x = L.ReLU()(bn(f"bn_{i}", center=affine, scale=affine, epsilon=1e-5)(x))
        x = L.MaxPooling2D(2)(x) if i % 2 else x
    return keras.Model(inputs, L.Dense(10)(L.GlobalAveragePooling2D()(x)))


def make(name, normalization):
    if name == "conv net":
        return conv_net(normalization is not PLAIN, normalization is PLAIN)
    arch = {"name": "mlp", "hidden": [20, 30, 10], "normalized": [0, 1, 2]} if name == "mlp" else name
    return build(arch, normalization, init="he")


@pytest.mark.parametrize(
    ("name", "layers", "normalization"),
    [("linear", 1, LARGE_C), ("mlp", 3, PLAIN), ("vgg8", 5, AFFINE), ("conv net", 8, PLAIN)],
    ids=["linear", "mlp", "vgg8", "conv net"],
)
def test_logits_and_input_gradients_stay(name, layers, normalization):
    model = randomize(make(name, normalization))
    result = check(model, layers)
    x = tf.constant(batch(model)[0])
    gradients = [input_gradient(m, x) for m in (model, result.model)]
    assert relative(*gradients) <= 1e-4


def input_gradient(model, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        margin = model(x, training=False) @ tf.constant([[(-1.0) ** i] for i in range(10)])
    return tape.gradient(margin, x).numpy()


def test_the_folded_weights_are_those_of_the_formula():
    c = 0.3
    model = sequential(L.Dense(4, name="dense"), bn(epsilon=c))
    dense, layer = model.layers
    gamma, beta, mean, variance = (
        np.array(v, np.float64) for v in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)
    )
    scale = gamma / np.sqrt(variance + c)
    folded = check(model, 1).model.get_layer("dense")
    np.testing.assert_allclose(folded.kernel, dense.kernel.numpy() * scale, rtol=1e-6)
    np.testing.assert_allclose(folded.bias, (dense.bias.numpy() - mean) * scale + beta, rtol=1e-5)


def test_ignoring_c_would_be_noticed(monkeypatch):
    model = sequential(L.Dense(4), bn(epsilon=10.0))
    monkeypatch.setattr(
        bn_folding, "_scale_shift", lambda bn: (np.array(bn.gamma) / np.sqrt(bn.moving_variance), np.array(bn.beta))
    )
    (reason,) = reasons(model)
    assert reason.startswith("bn: folding was tried and changes the outputs by ")


# ---------------------------------------------------------------- layers, exact in float64

BEFORE = {
    "Dense": lambda **o: (L.Dense(4, **o), (6,)),
    "Dense on a sequence": lambda **o: (L.Dense(4, **o), (3, 6)),
    "Conv1D": lambda **o: (L.Conv1D(4, 3, padding="causal", **o), (9, 2)),
    "Conv2D": lambda **o: (L.Conv2D(4, 3, padding="same", strides=2, **o), (6, 5, 2)),
    "Conv2D dilated": lambda **o: (L.Conv2D(4, 3, dilation_rate=2, **o), (6, 7, 2)),
    "Conv2D of width 1": lambda **o: (L.Conv2D(4, 1, padding="same", strides=2, **o), (6, 5, 2)),
    "Conv2D in groups": lambda **o: (L.Conv2D(6, 3, groups=2, **o), (6, 5, 4)),
    "Conv2D, channels first": lambda **o: (L.Conv2D(4, 3, data_format="channels_first", **o), (2, 6, 5)),
    "Conv3D": lambda **o: (L.Conv3D(4, 2, **o), (3, 4, 3, 2)),
    "DepthwiseConv1D": lambda **o: (L.DepthwiseConv1D(3, depth_multiplier=2, **o), (6, 3)),
    "DepthwiseConv2D": lambda **o: (L.DepthwiseConv2D(3, depth_multiplier=2, **o), (6, 5, 3)),
    "SeparableConv1D": lambda **o: (L.SeparableConv1D(4, 3, depth_multiplier=2, **o), (6, 3)),
    "SeparableConv2D": lambda **o: (L.SeparableConv2D(4, 3, padding="same", **o), (6, 5, 3)),
    "Conv1DTranspose": lambda **o: (L.Conv1DTranspose(4, 3, strides=2, **o), (5, 3)),
    "Conv2DTranspose": lambda **o: (L.Conv2DTranspose(4, 3, padding="same", strides=2, **o), (4, 5, 3)),
}
BEHIND = ["Dense", "Conv2D", "Conv2D of width 1", "Conv2D in groups", "Conv3D", "DepthwiseConv2D"]


def channel_axis(name):
    return 1 if "first" in name else -1


def precision(name):
    """(dtype, tolerance): float64, except where TensorFlow has channels first on a CPU only in float32, if at all."""
    if "first" not in name:
        return "float64", 1e-11
    try:
        L.Conv2D(1, 1, data_format="channels_first")(np.ones((1, 1, 2, 2), np.float32))
    except tf.errors.OpError:
        pytest.skip("no convolutions with channels first on this device")
    return "float32", 1e-5


@pytest.mark.parametrize(("name", "use_bias"), [(name, i % 2 == 0) for i, name in enumerate(BEFORE)])
def test_bn_folds_into_the_layer_before_it(name, use_bias):
    dtype, tolerance = precision(name)
    layer, shape = BEFORE[name](use_bias=use_bias, dtype=dtype)
    layers = layer, bn(axis=channel_axis(name), dtype=dtype), L.Activation("relu", dtype=dtype)
    folded = check(sequential(*layers, shape=shape, dtype=dtype), 1, tolerance).model
    assert {variable.dtype for variable in folded.variables} == {dtype}


@pytest.mark.parametrize("name", BEHIND)
def test_bn_folds_into_the_layer_behind_it(name):
    dtype, tolerance = precision(name)
    layer, shape = BEFORE[name](activation="tanh", dtype=dtype)
    padded = name == "Conv2D"
    model = sequential(bn(axis=channel_axis(name), dtype=dtype), layer, shape=shape, dtype=dtype)
    result = check(model, 0 if padded else 1, tolerance)
    assert ["pads ('same') with zeros that are not normalized" in reason for reason in result.kept] == [True] * padded


def test_bn_folds_along_a_chain():
    chains = [
        ([L.Dense(4), bn("a"), bn("b"), L.ReLU()], 2),
        ([L.ReLU(), bn("a"), bn("b"), L.Dense(4)], 2),
        ([bn("a"), L.Dense(4), bn("b")], 2),
        ([L.Dense(4), bn("a"), L.ReLU(), bn("b"), L.Dense(3), bn("c")], 3),
        ([L.Dense(4), L.Dropout(0.5), L.Identity(), bn("a")], 1),
        ([bn("a"), L.Identity(), L.Dropout(0.5), L.Dense(4)], 1),
    ]
    for layers, folded in chains:
        check(sequential(*layers), folded)


RENORM = [{"renorm": True}] if "renorm" in inspect.signature(L.BatchNormalization.__init__).parameters else []


def test_options_of_bn():
    for options in ({"center": False}, {"scale": False}, {"axis": 1}, {"synchronized": True}, *RENORM):
        check(sequential(L.Dense(4), bn(**options)), 1)


def test_a_subclass_of_bn_with_the_call_of_bn_is_folded():
    class Subclass(L.BatchNormalization):
        pass

    check(sequential(L.Dense(4), Subclass()), 1)


@pytest.mark.parametrize(("policy", "tolerance"), [("float16", 2e-2), ("mixed_bfloat16", 0.1)])
def test_low_precision_is_kept(policy, tolerance):
    model = sequential(
        L.Dense(8, dtype=policy, use_bias=False), bn(dtype=policy, epsilon=0.1), L.Dense(3, dtype=policy)
    )
    folded = check(model, 1, tolerance).model
    assert [layer.dtype_policy.name for layer in folded.layers] == [policy] * 3
    assert folded.layers[0].bias.dtype == folded.layers[0].kernel.dtype == model.layers[0].kernel.dtype
    assert folded.outputs[0].dtype == model.outputs[0].dtype


# ---------------------------------------------------------------- what stays, and why


def residual(x):
    """Two blocks of a residual net, BN before and behind the addition, and one at its end."""
    x = L.Conv2D(4, 3, padding="same")(x)
    for i in range(2):
        y = L.ReLU()(bn(f"before_{i}")(L.Conv2D(4, 3, padding="same")(x)))
        x = L.Add(name=f"add_{i}")([x, bn(f"last_{i}")(L.Conv2D(4, 3, padding="same")(y))])
        x = L.ReLU()(bn(f"behind_{i}")(x))
    return x


def pre_activation(x):
    """BN - ReLU - convolution twice: the second BN of a block follows a convolution alone, the first an addition."""
    x = L.Conv2D(4, 3, padding="same", name="first")(x)
    for i in range(2):
        y = L.Conv2D(4, 3, padding="same")(L.ReLU()(bn(f"a_{i}")(x)))
        y = L.Conv2D(4, 3, padding="same")(L.ReLU()(bn(f"b_{i}")(y)))
        x = L.Add()([x, y])
    return L.Dense(2)(bn("last")(L.GlobalAveragePooling2D()(x)))


def test_in_a_residual_net_bn_behind_an_addition_stays():
    kept = reasons(functional(residual, (8, 8, 2)), folded=4)
    assert kept == tuple(f"behind_{i}: follows Add, {NOT_LINEAR}; feeds ReLU, {NOT_LINEAR}" for i in range(2))


def test_in_a_pre_activation_net_bn_between_the_convolutions_folds():
    kept = reasons(functional(pre_activation, (8, 8, 2)), folded=3)
    assert kept[0].startswith("a_0: the output of first is used elsewhere too; feeds ReLU")
    assert kept[1].startswith("a_1: follows Add")


def branch_before(x):
    y = L.Dense(4, name="dense")(x)
    return L.Add()([y, L.ReLU()(bn()(y))])


def output_before(x):
    y = L.Dense(4, name="dense")(x)
    return [y, L.ReLU()(bn()(y))]


def branch_between(x):
    y = L.Identity()(L.Dense(4, name="dense")(x))
    return L.Add()([y, L.ReLU()(bn()(y))])


def twice_taken(x):
    y = L.Dense(4, name="dense")(x)
    normalization = bn()
    return L.Add()([normalization(y), normalization(L.Dense(4)(x))])


def shared_before(x):
    dense = L.Dense(6, name="dense")
    return L.ReLU()(bn()(dense(dense(x))))


def shared_behind(x):
    dense = L.Dense(6, name="dense")
    return L.Add()([dense(bn()(L.ReLU()(x))), dense(x)])


def branch_behind(x):
    y = bn()(L.ReLU()(x))
    return L.Add()([L.Dense(3)(y), L.Dense(3)(y)])


def two_tensors_through_one_identity(x):
    a, b = L.Identity()([L.Dense(4)(x), L.Dense(4)(x)])
    return L.Add()([L.ReLU()(bn()(b)), a])


def test_reasons():
    graphs = [
        (branch_before, "the output of dense is used elsewhere too; feeds ReLU"),
        (output_before, "the output of dense is used elsewhere too; feeds ReLU"),
        (branch_between, "the output of dense is used elsewhere too; feeds ReLU"),
        (twice_taken, "is shared (called 2 times)"),
        (shared_before, "dense is shared (called 2 times); feeds ReLU"),
        (shared_behind, f"follows ReLU, {NOT_LINEAR}; dense is shared (called 2 times)"),
        (branch_behind, f"follows ReLU, {NOT_LINEAR}; its output is used more than once or is an output of the model"),
        (two_tensors_through_one_identity, "follows Identity"),
        (lambda x: L.Dense(3)(L.ReLU()(bn()(x))), f"follows InputLayer, {NOT_LINEAR}; feeds ReLU, {NOT_LINEAR}"),
        (lambda x: L.ReLU()(bn()(L.Dense(4, activation="relu", name="dense")(x))), "follows the activation of dense"),
        (lambda x: L.ReLU()(bn()(L.Dropout(0.5)(L.Dense(4)(x), training=True))), "follows Dropout"),
        (lambda x: bn()(L.Dense(4)(x), training=True), "called with training=True, so it normalizes by the batch"),
        (lambda x: L.ReLU()(bn()(x + L.Dense(6)(x))), "follows Add"),
        (lambda x: L.ReLU()(bn()(L.GroupNormalization(2)(L.LayerNormalization()(x)))), "follows GroupNormalization"),
    ]
    for graph, reason in graphs:
        (kept,) = reasons(functional(graph))
        assert kept.startswith(f"bn: {reason}")


def test_reasons_of_axes_layers_and_masks():
    models = [
        ([L.Conv2D(4, 3, name="conv"), bn(axis=1), L.ReLU()], (5, 5, 2), "normalizes axis 1, not the channels of conv"),
        ([L.Dense(4, name="dense"), bn(axis=1), L.ReLU()], (3, 5), "normalizes axis 1, not the channels of dense"),
        ([L.ReLU(), bn(axis=1), L.Dense(4, name="dense")], (3, 5), f"follows ReLU, {NOT_LINEAR}; normalizes axis 1"),
        ([L.ReLU(), bn(), L.SeparableConv2D(2, 3)], (5, 5, 2), f"follows ReLU, {NOT_LINEAR}; feeds SeparableConv2D"),
        ([L.Masking(0.0), L.Dense(4), bn(), L.ReLU()], (3, 5), "called with a mask"),
    ]
    for layers, shape, reason in models:
        (kept,) = reasons(sequential(*layers, shape=shape))
        assert kept.startswith(f"bn: {reason}")


def test_lora_weights_are_left_alone():
    model = sequential(L.Dense(4, name="dense"), bn())
    model.layers[0].enable_lora(2)
    model.layers[0].lora_kernel_b.assign(np.ones((2, 4)))
    assert reasons(model)[0].startswith("bn: dense is quantized or has LoRA weights")


class Stuck(L.BatchNormalization):
    """BN that normalizes by the batch whatever it is told, and learns from it."""

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=True, mask=mask)


def test_bn_stuck_in_training_stays_and_does_not_learn_from_the_self_check():
    model = sequential(L.Dense(4), bn("fine"), L.ReLU(), L.Dense(3), Stuck(name="stuck"))
    before = [np.array(variable) for variable in model.variables]
    result = fold(model)
    assert (result.folded, result.kept) == (1, ("stuck: Stuck has a call of its own",))
    for value, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(value, variable)


def test_bn_behind_a_subclass_of_dense_stays():
    class Doubling(L.Dense):
        def call(self, inputs, training=None):
            return 2 * super().call(inputs)

    assert reasons(sequential(Doubling(4), bn()))[0].startswith(f"bn: follows Doubling, {NOT_LINEAR}")


# ---------------------------------------------------------------- models inside models, and models without a graph


def inner(name="inner", **options):
    inputs = keras.Input((6,))
    x = L.Dense(6)(bn(f"{name}_1", **options)(L.Dense(6)(inputs)))
    return keras.Model(inputs, L.ReLU()(bn(f"{name}_2")(x)), name=name)


def test_models_inside_models_are_folded():
    stack = keras.Sequential([keras.Input((6,)), L.Dense(6), bn("stack_bn"), inner()], name="stack")
    check(sequential(L.Dense(6), bn("outer_bn"), stack, L.Dense(2)), 4)
    check(functional(lambda x: L.Dense(2)(bn("outer_bn")(L.Dense(6)(inner("other")(x))))), 3)


def test_a_shared_model_is_folded_once_for_all_its_calls():
    def graph(x):
        model = inner()
        return L.Add()([model(x), model(model(x))])

    check(functional(graph), 2)


def test_a_layer_shared_with_a_model_inside_stays():
    def graph(x):
        dense = L.Dense(6, name="dense")
        model = keras.Sequential([keras.Input((6,)), dense, bn(), L.ReLU()])
        return L.Add()([model(x), dense(x)])

    assert reasons(functional(graph))[0].startswith("bn: dense is shared (called 2 times)")


def test_a_layer_shared_with_a_model_inside_stays_shared():
    def graph(x):
        dense = L.Dense(6, name="dense")
        model = keras.Sequential([keras.Input((6,)), dense, L.ReLU()])
        return L.Add()([model(x), dense(x), bn()(L.Dense(6)(x))])

    model = functional(graph)
    folded = check(model, 1).model
    assert len(folded.trainable_variables) == len(model.trainable_variables) - 2  # gamma and beta


def test_bn_in_a_model_called_with_training_stays():
    kept = reasons(functional(lambda x: L.Dense(2)(inner()(x, training=True))))
    assert {reason.partition(": ")[2] for reason in kept} == {
        "called with training=True, so it normalizes by the batch"
    }


def test_the_last_bn_of_a_model_inside_keeps_its_place():
    stack = keras.Sequential([keras.Input((6,)), L.ReLU(), bn()], name="stack")
    assert "is an output of the model" in reasons(functional(lambda x: L.Dense(2)(stack(x))))[0]


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense, self.bn = L.Dense(4), bn()

    def call(self, x, training=None):
        return self.bn(self.dense(x), training=training)


class OwnCall(keras.Model):
    """A functional model that does not follow its graph."""

    def __init__(self):
        inputs = keras.Input((6,))
        super().__init__(inputs, bn()(L.Dense(4)(inputs)))

    def call(self, x, training=None, mask=None):
        return 2 * super().call(x, training=training)


def test_models_without_a_graph_stay():
    subclassed, unbuilt = Subclassed(), keras.Sequential([L.Dense(4), bn()])
    subclassed(np.zeros((1, 6), np.float32))
    for model in (subclassed, unbuilt, OwnCall()):
        result = fold(model)
        assert result.model is model
        assert result.kept == ("bn: inside a layer or a model that has no graph (subclassed, or not built)",)


@pytest.mark.skipif(keras.__version__.startswith("3.12"), reason="Keras 3.12 cannot clone it: a reported fallback")
def test_a_functional_subclass_without_a_call_is_folded():
    class Named(keras.Model):
        def __init__(self):
            inputs = keras.Input((6,))
            super().__init__(inputs, bn()(L.Dense(4)(inputs)))

    check(randomize(Named()), 1)


def test_bn_inside_a_layer_stays_beside_one_that_folds():
    model = sequential(L.TimeDistributed(bn("inside")), L.Dense(4), bn("outside"), shape=(3, 5))
    assert reasons(model, folded=1) == (
        "inside: inside a layer or a model that has no graph (subclassed, or not built)",
    )


def test_a_model_without_bn_is_returned():
    model = sequential(L.Dense(4))
    assert fold(model) == bn_folding.FoldingResult(model, 0, ())


# ---------------------------------------------------------------- copies


class Scaled(L.Layer):
    """A layer of a user; with `lost` its config forgets the factor."""

    def __init__(self, factor=1.0, lost=False, **options):
        super().__init__(**options)
        self.factor, self.lost = factor, lost

    def call(self, x):
        return self.factor * x

    def get_config(self):
        return {**super().get_config(), **({} if self.lost else {"factor": self.factor})}


class Uncopied(L.Layer):
    def __init__(self, argument):
        super().__init__()

    def call(self, x):
        return x


def test_layers_of_the_user_are_copied():
    check(sequential(L.Dense(4), bn(), Scaled(3.0)), 1)


def test_a_copy_with_other_outputs_is_discarded():
    (reason,) = reasons(sequential(L.Dense(4), bn(), Scaled(3.0, lost=True)))
    assert reason == "bn: folding was tried and changes the outputs by 6.7e-01 of the largest, more than 1e-04"


def test_a_copy_with_other_shapes_is_discarded():
    class Grouped(L.Layer):
        def __init__(self, size=2, **options):
            super().__init__(**options)
            self.size = size

        def call(self, x):
            return keras.ops.reshape(x, (-1, x.shape[1] // self.size, self.size))

        def get_config(self):
            return L.Layer.get_config(self)

    (reason,) = reasons(sequential(L.Dense(4), bn(), Grouped(4)))
    assert reason == "bn: the copy of the model has other inputs or outputs"


def test_outputs_that_are_not_finite_are_not_trusted():
    model = sequential(L.Dense(4), bn())
    model.layers[0].kernel.assign(np.full((6, 4), np.nan))
    assert "changes the outputs by nan" in fold(model).kept[0]


def test_a_model_that_cannot_be_copied_is_returned():
    (reason,) = reasons(sequential(L.Dense(4), bn(), Uncopied(1)))
    assert reason.startswith("bn: folding was tried and failed: ")


def test_the_copy_shares_nothing_and_keeps_names_shapes_and_other_weights():
    model = randomize(build({"name": "mlp", "hidden": [8, 7], "normalized": [0]}))
    folded = check(model, 1).model
    assert not {id(variable) for variable in model.variables} & {id(variable) for variable in folded.variables}
    assert (folded.name, folded.input_shape, folded.output_shape) == (model.name, (None, 28, 28, 1), (None, 10))
    assert [x.name for x in folded.inputs] == ["pixels"]
    assert folded.output_names == model.output_names
    assert [layer.name for layer in folded.layers] == [layer.name for layer in model.layers]
    for name in ("dense_1", "logits"):
        for old, new in zip(model.get_layer(name).variables, folded.get_layer(name).variables, strict=True):
            np.testing.assert_array_equal(old, new)
    parts = 784 * 8 + 8 + 8 * 7 + 7 + 7 * 10 + 10
    assert folded.count_params() == parts


def test_the_copy_can_be_saved(tmp_path):
    model = randomize(make("conv net", AFFINE))
    folded = fold(model).model
    folded.save(tmp_path / "folded.keras")
    loaded = keras.models.load_model(tmp_path / "folded.keras")
    x = batch(model)
    np.testing.assert_array_equal(outputs(loaded, x)[0], outputs(folded, x)[0])
    assert fold(loaded).folded == 0


def test_a_saved_model_can_be_folded(tmp_path):
    sequential(L.Dense(6), bn(), L.ReLU(), inner(), L.Dense(2)).save(tmp_path / "model.keras")
    check(keras.models.load_model(tmp_path / "model.keras"), 3)


def test_the_copy_compiles_with_xla():
    model = randomize(make("mlp", AFFINE))
    folded = fold(model).model
    run = tf.function(lambda x: folded(x, training=False), jit_compile=True, autograph=False)
    x = batch(model)
    assert relative(outputs(model, x)[0], run(x[0]).numpy()) <= 1e-5


def test_a_compiled_model_can_be_folded():
    model = sequential(L.Dense(4), bn(), L.ReLU(), L.Dense(3))
    model.compile("adam", "mse")
    model.fit(np.ones((8, 6), np.float32), np.ones((8, 3), np.float32), verbose=0)
    check(model, 1)


def test_learned_constants_and_a_bn_that_is_the_output_are_kept():
    standardize = L.Normalization()
    standardize.adapt(np.random.default_rng(0).normal(2, 3, size=(50, 6)).astype(np.float32))
    folded = check(sequential(standardize, L.Dense(4), bn("logits")), 1).model
    assert folded._functional.output_names == ["logits"]


def test_several_inputs_and_outputs_of_any_structure():
    a, b = keras.Input((4,), name="a"), keras.Input((6,), name="b")
    x = L.Concatenate()([L.ReLU()(bn("bn_a")(L.Dense(3)(a))), bn("bn_b")(L.Dense(2)(b))])
    check(randomize(keras.Model([b, a], [x, L.Dense(2)(x)])), 2)
    model = randomize(keras.Model({"a": a, "b": b}, {"x": x, "y": L.Dense(2)(x)}))
    folded = fold(model).model
    example = {"a": np.ones((2, 4), np.float32), "b": np.ones((2, 6), np.float32)}
    for name, expected in model(example, training=False).items():
        assert relative(expected.numpy(), folded(example, training=False)[name].numpy()) <= 1e-5


def test_inputs_of_unknown_size_and_of_whole_numbers():
    inputs = keras.Input((None, None, 3))
    x = L.GlobalAveragePooling2D()(L.ReLU()(bn()(L.Conv2D(4, 3)(inputs))))
    assert fold(randomize(keras.Model(inputs, x))).folded == 1
    words = keras.Input((5,), dtype="int32")
    assert fold(randomize(keras.Model(words, bn()(L.Dense(4)(L.Embedding(2, 3)(words)))))).folded == 1


def test_a_layer_of_several_models_is_judged_in_the_model_given():
    inputs = keras.Input((6,))
    hidden = L.Dense(4, name="dense")(inputs)
    model = randomize(keras.Model(inputs, L.ReLU()(bn()(hidden))))
    probe = keras.Model(inputs, [hidden, model.output])
    check(model, 1)
    assert reasons(probe)[0].startswith("bn: the output of dense is used elsewhere too")


def test_tf32_is_as_it_was():
    experimental = tf.config.experimental
    before = experimental.tensor_float_32_execution_enabled()
    for enabled in (True, False):
        experimental.enable_tensor_float_32_execution(enabled)
        check(sequential(L.Dense(4), bn()), 1)
        assert experimental.tensor_float_32_execution_enabled() == enabled
    experimental.enable_tensor_float_32_execution(before)

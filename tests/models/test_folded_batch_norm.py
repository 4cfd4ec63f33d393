"""BN folded into convolutions while a model is traced: the model's own logits and gradients, with fewer operations."""

import numpy as np
import pytest
from helpers_attacks import keras

from bn_vuln.models import custom_layers
from bn_vuln.models.folded_batch_norm import folded_batch_norm
from bn_vuln.runtime import backend

L = keras.layers
BN = L.BatchNormalization


def randomized(model):
    """Random weights and statistics: gammas of both signs, variances from 0.05 to 3."""
    generator = np.random.default_rng(0)
    for v in model.variables:
        values = np.exp(generator.uniform(-3, 1, v.shape)) if "variance" in v.path else generator.normal(size=v.shape)
        v.assign(values * (0.3 if "kernel" in v.path else 1))
    return model


def sequential(*layers):
    return randomized(keras.Sequential([keras.Input((8, 7, 4)), *layers]))


def functional(graph, shape=(8, 7, 4)):
    inputs = keras.Input(shape)
    return randomized(keras.Model(inputs, graph(inputs)))


def n_convolutions(compiled, x):
    """The number of convolutions that a compiled function executes: those that its results depend on."""
    needed = dict.fromkeys(tensor.op for tensor in compiled.get_concrete_function(x).graph.outputs)
    for operation in (waiting := list(needed)):
        waiting += (new := {tensor.op: None for tensor in operation.inputs if tensor.op not in needed})
        needed |= new
    return sum(operation.type in ("Conv2D", "DepthwiseConv2dNative") for operation in needed)


def agree(received, expected):
    for a, b in zip(received, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def check(model, n_folded, *, extra=0):
    """Compare with the model called plainly; return the layers that were folded."""
    x = backend.place(np.random.default_rng(1).uniform(size=(5, *model.input_shape[1:])).astype(np.float32))

    def loss(x):
        outputs = keras.tree.flatten(model(x, training=False))
        return sum(keras.ops.sum(y * y) for y in outputs), outputs

    def evaluate(x):
        _, gradient, outputs = backend.value_and_gradient(loss, x)
        return *outputs, gradient

    plain, folding = (backend.compile(evaluate) for _ in range(2))
    expected = plain(x)
    with folded_batch_norm(model) as layers:
        agree(evaluate(x), expected)
        assert not layers  # eagerly there is none
        agree(folding(x), expected)
    assert len(layers) == n_folded
    assert not any("call" in vars(layer) for layer in backend.leaf_layers(model))
    assert n_convolutions(folding, x) == n_convolutions(plain, x) + extra
    randomized(model).variables[0].assign(model.variables[0] / 2)  # variables stay variables
    agree(folding(x), plain(x))
    return layers


@pytest.mark.parametrize(
    "convolution",
    [
        lambda: L.Conv2D(6, (3, 2), strides=2, padding="same"),
        lambda: L.Conv2D(6, 3, dilation_rate=2, groups=2, use_bias=False),
        lambda: L.DepthwiseConv2D(3, strides=2, use_bias=False),
        lambda: L.DepthwiseConv2D(3, depth_multiplier=2, padding="same", dilation_rate=2),
    ],
)
@pytest.mark.parametrize("options", [{}, {"scale": False, "epsilon": 0.3}, {"center": False, "axis": 3}], ids=str)
def test_each_kind_of_convolution(convolution, options):
    check(sequential(convolution(), BN(**options), L.ReLU()), 1)


@pytest.mark.parametrize(
    "layers",
    [
        (L.Conv2D(4, 3, activation="relu"), BN()),
        (L.Conv2D(4, 3), L.ZeroPadding2D(), BN()),
        (L.Conv2D(4, 3), BN(axis=1)),
        (L.Conv2D(4, 3), type("Own", (BN,), {})()),
        (L.Conv2D(4, 3, dtype="float64"), BN(dtype="float64")),
        (custom_layers.standardized_conv_class()(4, 3), BN()),
        (L.DepthwiseConv2D(1, data_format="channels_first"), BN()),
    ],
)
def test_what_stands_between_or_computes_otherwise_is_left_alone(layers):
    check(sequential(*layers), 0)


def block(x):
    return L.ReLU()(BN()(L.Conv2D(4, 3, padding="same")(x)))


def test_functional_models_nested_and_from_a_file(tmp_path):
    inner, convolution = functional(block), functional(L.Conv2D(4, 1))
    model = functional(lambda x: inner(BN()(convolution(inner(block(x))))))
    check(model, 3)
    model.save(tmp_path / "model.keras")
    check(keras.models.load_model(tmp_path / "model.keras"), 3)


def test_layers_that_are_called_twice():
    convolution, layer = L.Conv2D(4, 3, padding="same"), BN()
    check(functional(lambda x: layer(convolution(layer(convolution(x))))), 1)
    check(functional(lambda x: layer(x + convolution(x)) + layer(convolution(x))), 0)


def test_outputs_that_are_used_elsewhere_too():
    check(functional(lambda x: (y := L.Conv2D(4, 3)(x)) + BN()(y)), 0)
    check(functional(lambda x: [y := L.Conv2D(4, 3)(x), BN()(y)]), 1, extra=1)  # right, if slower


class Subclassed(keras.Model):
    input_shape = (None, 8, 7, 4)

    def __init__(self):
        super().__init__()
        self.first, self.inner, self.second = L.Conv2D(4, 3), functional(block, (6, 5, 4)), L.Conv2D(4, 1)
        self.one, self.two, self.three = BN(), BN(), BN()

    def call(self, x, training=None):
        x = self.second(self.inner(self.one(self.first(x))))
        return self.two(x * 2) + self.three(x, training=True)


def test_subclassed_models():
    model = Subclassed()
    model(np.zeros((1, 8, 7, 4), np.float32))
    assert check(randomized(model), 2) == {model.one, model.inner.layers[2]}


def test_layers_are_themselves_again_after_an_error_and_once_only():
    model = sequential(L.Conv2D(4, 3), BN())

    with pytest.raises(ValueError, match="incompatible"), folded_batch_norm(model), folded_batch_norm(model):
        model(np.zeros((2, 8, 7, 5), np.float32))
    check(model, 1)

"""Batch norm as one operation: outputs, gradients and moving statistics of Keras' layer."""

import numpy as np
import pytest
from helpers_attacks import keras, tf

from bn_vuln import models
from bn_vuln.config import Cell, validate
from bn_vuln.data import Dataset
from bn_vuln.data.info import DatasetInfo
from bn_vuln.runtime import backend
from bn_vuln.runtime.progress import Quiet
from bn_vuln.training import TrainingLoop, fused_batch_norm

PHOTOS = DatasetInfo("photos", (32, 32, 3), tuple("0123456789"), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), sizes={})


def network(shape=(6, 5, 3), **options):
    """A convolution and BN with random numbers in place of their first values."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape)
    rank = len(shape)
    first = keras.layers.Conv2D(4, 3, padding="same")(inputs) if rank == 3 else keras.layers.Dense(4)(inputs)
    layer = keras.layers.BatchNormalization(**options)
    model = keras.Model(inputs, layer(first))
    generator = np.random.default_rng(1)
    for variable in layer.variables:
        variable.assign(generator.uniform(0.5, 2, variable.shape))
    return model, layer


def passed(model, x, *, with_fused):
    """(outputs, gradients of a nonlinear loss with respect to the images and all variables, operations traced)."""

    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            if with_fused:
                with fused_batch_norm.use_fused_op(model):
                    outputs = model(x, training=True)
            else:
                outputs = model(x, training=True)
            loss = tf.reduce_sum(tf.sin(outputs) * tf.cos(tf.cumsum(outputs, axis=-1)))
        return outputs, tape.gradient(loss, [x, *model.trainable_variables])

    compiled = tf.function(run).get_concrete_function(tf.TensorSpec((None, *x.shape[1:])))
    outputs, gradients = compiled(tf.constant(x))
    kinds = {operation.type for operation in compiled.graph.get_operations()}
    return np.array(outputs), [np.array(g) for g in gradients], kinds


@pytest.mark.parametrize(
    ("options", "n"),
    [
        ({"epsilon": 1e-5, "momentum": 0.9}, 1),
        ({"epsilon": 10.0, "momentum": 0.0}, 7),
        ({"epsilon": 1e-3, "momentum": 0.99, "center": False, "scale": False}, 7),
        ({"axis": 3}, 7),
    ],
    ids=str,
)
def test_outputs_gradients_and_statistics_are_those_of_keras(options, n):
    x = np.random.default_rng(2).normal(1, 2, size=(n, 6, 5, 3)).astype(np.float32)
    found = {}
    for with_fused in (False, True):
        model, layer = network(**options)
        outputs, gradients, kinds = passed(model, x, with_fused=with_fused)
        assert ("FusedBatchNormV3" in kinds) == with_fused
        found[with_fused] = [outputs, *gradients, np.array(layer.moving_mean), np.array(layer.moving_variance)]
    for fused, expected in zip(found[True], found[False], strict=True):
        np.testing.assert_allclose(fused, expected, rtol=1e-4, atol=1e-4)  # behind BN the gradient of a bias is 0


@pytest.mark.parametrize(
    ("shape", "options"), [((5,), {}), ((6, 5, 3), {"axis": 1}), ((6, 5, 3), {"synchronized": True})], ids=str
)
def test_what_one_operation_cannot_do_is_left_to_keras(shape, options):
    model, layer = network(shape, **options)
    with fused_batch_norm.use_fused_op(model):
        assert "call" not in vars(layer)


def test_a_subclass_is_left_alone():
    class Subclass(keras.layers.BatchNormalization):
        pass

    layer = Subclass()
    inputs = keras.Input((6, 5, 3))
    with fused_batch_norm.use_fused_op(keras.Model(inputs, layer(inputs))):
        assert "call" not in vars(layer)


def test_layers_are_themselves_again_even_after_an_error():
    model, layer = network()

    def fail():
        with fused_batch_norm.use_fused_op(model):
            assert "call" in vars(layer)
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert "call" not in vars(layer)
    _, _, kinds = passed(model, np.zeros((2, 6, 5, 3), np.float32), with_fused=False)
    assert "FusedBatchNormV3" not in kinds


def epoch(monkeypatch, *, with_fused):
    policy = backend.ExecutionPolicy(xla=False, steps_per_call=1, fused_batch_norm=with_fused)
    monkeypatch.setattr(backend, "execution_policy", lambda model, **_: policy)
    cell = validate(Cell, {"arch": "resnet20", "normalization": "batch", "train": {"batch_size": 16}}, "test")
    model = models.build(cell, PHOTOS)
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 10, 16).astype(np.int32)
    examples = Dataset(generator.integers(0, 256, (16, 32, 32, 3), np.uint8), labels, np.arange(16), PHOTOS)
    result = TrainingLoop(cell, model, examples, examples).epoch(0, Quiet())
    return result.loss, {v.path: np.array(v) for v in model.variables}


@pytest.mark.slow
def test_a_step_of_training_is_that_with_keras_batch_norm(monkeypatch):
    (loss, fused), (expected_loss, expected) = (epoch(monkeypatch, with_fused=w) for w in (True, False))
    assert loss == pytest.approx(expected_loss, rel=1e-4)
    for path, values in expected.items():
        np.testing.assert_allclose(fused[path], values, rtol=0, atol=1e-2 * np.abs(values).max(), err_msg=path)

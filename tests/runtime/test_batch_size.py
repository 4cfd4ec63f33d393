"""Batch sizes: the estimate, and smaller batches where memory is exhausted."""

import numpy as np
import pytest
from helpers_attacks import keras, tf

from bn_vuln.config import Attack, Evaluation
from bn_vuln.data.mnist import INFO as MNIST
from bn_vuln.errors import BnvulnError
from bn_vuln.evaluation.classifier import from_model
from bn_vuln.evaluation.evaluator import Evaluator
from bn_vuln.runtime import batch_size as batching


def net():
    inputs = keras.Input((28, 28, 1))
    hidden = keras.layers.Conv2D(10, 3, padding="same")(inputs)
    return keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(hidden)))


def test_the_estimate_counts_activations():
    numbers = 784 + 784 + 7840 + 7840 + 10  # the images, the input layer, the two of 10 channels, the logits
    each = 4 * numbers
    for wanted in (1, 7, 400):
        assert batching.estimate_batch_size(net(), (28, 28, 1), wanted * each * 1.001) == wanted
    assert batching.estimate_batch_size(net(), (28, 28, 1), 1.0) == 1
    assert batching.estimate_batch_size(net(), (28, 28, 1), 1e15) == batching.MAX_BATCH_SIZE


def exhausted_above(limit, tried):
    def run(batch_size):
        tried.append(batch_size)
        if batch_size > limit:
            raise tf.errors.ResourceExhaustedError(None, None, "out of memory")
        return "found"

    return run


def test_the_batch_is_halved_until_it_fits():
    tried, messages = [], []
    assert batching.run_in_smaller_batches(exhausted_above(70, tried), 500, messages.append) == ("found", 62)
    assert tried == [500, 250, 125, 62]
    assert messages[-1] == "memory is exhausted: going on with 62 examples at a time"
    with pytest.raises(BnvulnError, match="a single example"):
        batching.run_in_smaller_batches(exhausted_above(0, []), 4, print)


@pytest.mark.parametrize("keep", ["first_success", "last"])
def test_an_evaluation_goes_on_in_smaller_batches(monkeypatch, keep):
    classifier = from_model(net(), MNIST, {"weights": "random"})
    # Of the norm inf, the sign of a slope that is nearly 0 may depend on the batch.
    options = Attack(attack="pgd", ord="2", eps=2, steps=3, keep=keep)
    expected = Evaluator(classifier, Evaluation(limit=30)).run(options)
    evaluator = Evaluator(classifier, Evaluation(limit=30), batch_size=30)
    predict = evaluator.eval_set.predict_batch

    def little_memory(images):
        if len(images) > 10:
            raise tf.errors.ResourceExhaustedError(None, None, "out of memory")
        return predict(images)

    monkeypatch.setattr(evaluator.eval_set, "predict_batch", little_memory)
    found = evaluator.run(options)
    assert evaluator.eval_set.batch_size == 7
    np.testing.assert_array_equal(found.correct, expected.correct)
    np.testing.assert_allclose(found.images, expected.images, atol=1e-4)

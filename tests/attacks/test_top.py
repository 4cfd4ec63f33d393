"""Attacks that push the true class out of the k largest logits: margins by sorting, exact cases of linear models."""

import numpy as np
import pytest
from helpers_attacks import run_pgd, tf

from bn_vuln import config
from bn_vuln.analysis import metrics
from bn_vuln.attacks.losses import is_adversarial, logit_margin
from bn_vuln.attacks.threat_model import ThreatModel
from bn_vuln.errors import ConfigError


@pytest.mark.parametrize("top", [1, 2, 5])
def test_the_margin_is_that_of_the_sorted_other_logits(top):
    generator = np.random.default_rng(top)
    logits, y = generator.normal(size=(200, 9)), generator.integers(0, 9, 200).astype(np.int32)
    others = np.sort(np.delete(logits.ravel(), np.arange(200) * 9 + y).reshape(200, 8), axis=1)[:, ::-1]
    expected = others[:, top - 1] - logits[np.arange(200), y]
    np.testing.assert_allclose(np.asarray(logit_margin(tf.constant(logits), tf.constant(y), top)), expected)
    found = np.asarray(is_adversarial(tf.constant(logits), tf.constant(y), top=top))
    np.testing.assert_array_equal(found, expected > 0)
    np.testing.assert_array_equal(metrics.in_top(logits.astype(np.float32), y, top), expected < 0)


def test_only_the_margin_of_the_top_pushes_the_class_out_of_it():
    # Class 0 is ahead of 1 to 6 by 1. Pixel 0 raises class 1 by a lot; pixel i raises class i a little. The eps ball
    # has length 1 in L2: the attack on the prediction spends it on pixel 0, that on the top 5 on five others.
    w = np.zeros((7, 8))
    w[1, 0] = 10.0
    for i in range(1, 7):
        w[i, i] = 3.0
    bias = np.array([1.0, 0, 0, 0, 0, 0, 0])

    def predict(x):
        return tf.reshape(x, [-1, 8]) @ tf.constant(w.T, x.dtype) + tf.constant(bias, x.dtype)

    x, y = np.zeros((1, 2, 4, 1)), np.array([0], np.int32)
    settings = {"threat_model": ThreatModel("2", 1.2, low=-np.inf, high=np.inf), "steps": 200, "step_size": 0.05}
    more = {"random_start": False, "keep": "best_loss"}
    top1 = np.asarray(predict(tf.constant(run_pgd(predict, tf.constant(x), y, **settings, **more))), np.float32)
    top5 = np.asarray(predict(tf.constant(run_pgd(predict, tf.constant(x), y, **settings, **more, top=5))), np.float32)
    assert not metrics.is_correct(top1, y)[0]
    assert metrics.in_top(top1, y, 5)[0]
    assert not metrics.in_top(top5, y, 5)[0]


@pytest.mark.parametrize(
    "fields",
    [{"attack": "strong"}, {"attack": "apgd-ce"}, {"target": "next"}, {"backend": "cleverhans", "random_start": False}],
)
def test_other_attacks_have_no_top(fields):
    with pytest.raises(ConfigError, match="top is for fgsm, bim and pgd"):
        config.validate(config.Attack, {"eps": 0.1, "top": 5, **fields}, "attack")


def test_an_attack_on_the_prediction_keeps_its_id():
    attack = config.validate(config.Attack, {"eps": 0.1}, "attack")
    other = config.validate(config.Attack, {"eps": 0.1, "top": 5}, "attack")
    ids = [config.digest(config.perturbation_identity(config.Evaluation(), "mnist", one)) for one in (attack, other)]
    assert "top" not in config.perturbation_identity(config.Evaluation(), "mnist", attack)
    assert ids[0] != ids[1]
    assert "out of the top 5" in config.describe_perturbation(other)

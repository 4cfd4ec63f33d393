"""Every check trips on a model or an array that is built to trip it, with the right share, and passes a sound one."""

import numpy as np
import pytest
from helpers_attacks import images, keras, tf

from bn_vuln.attacks import ThreatModel, from_config
from bn_vuln.config import Attack, Clean, Evaluation
from bn_vuln.data.mnist import INFO
from bn_vuln.evaluation import sanity_checks
from bn_vuln.evaluation.classifier import from_model
from bn_vuln.evaluation.evaluator import Evaluator

SHAPE = (3, 3, 1)
SCALED = ThreatModel("2", 0.5, 0.5, low=0.0, high=1.0)


@pytest.fixture(scope="module")
def x():
    return images(40, SHAPE).astype(np.float32)


@pytest.fixture(scope="module")
def y():
    return np.tile([0, 1], 20).astype(np.int32)


def two_logits(value):
    """Logits (0, value) from value(x) [n]."""

    def predict(x):
        found = value(tf.reshape(x, (-1, 9)))
        return tf.stack([tf.zeros_like(found), found], axis=1)

    return predict


linear = two_logits(lambda x: tf.reduce_sum(x, axis=1) - 4.5)


# ---------------------------------------------------------------- 4: gradients and finite logits


def test_sound_gradients_pass(x, y):
    assert sanity_checks.gradients(linear, x, y) is None


def test_saturated_logits_keep_their_gradient(x, y):
    label = tf.constant(np.where(y == 1, 1.0, -1.0), tf.float32)
    steep = tf.constant(np.where(np.arange(40) < 10, 1e6, 1.0), tf.float32)
    assert sanity_checks.gradients(two_logits(lambda x: label * steep * (1 + tf.reduce_sum(x, axis=1))), x, y) is None


def test_gradients_that_are_zero_are_flagged_with_their_share(x, y):
    flat = tf.constant(np.arange(40) < 10)
    flag = sanity_checks.gradients(two_logits(lambda x: tf.where(flat, tf.ones(40), tf.reduce_sum(x, axis=1))), x, y)
    assert flag.check == 4
    assert flag.name == "zero or non-finite gradients"
    assert flag.value == pytest.approx(0.25)
    assert "25.0% of 40 examples" in flag.message


def test_outputs_that_ignore_the_image_are_flagged(x, y):
    constant = tf.constant(np.eye(2)[y], tf.float32)
    assert sanity_checks.gradients(lambda _: constant, x, y).value == 1.0


@pytest.mark.parametrize(("broken", "gradient"), [(lambda t: tf.sqrt(tf.nn.relu(t - 2)), "nan"), (tf.sqrt, "inf")])
def test_a_single_pixel_without_a_finite_gradient_is_flagged(x, y, broken, gradient):
    pixel = 4
    at_zero = x.reshape(-1, 9).copy()
    at_zero[:8, pixel] = 0.0
    unaffected = tf.constant(np.arange(40) >= 8)

    def value(x):
        safe = tf.where(unaffected, tf.ones_like(x[:, pixel]) * 3.0, x[:, pixel])
        return tf.reduce_sum(x, axis=1) + broken(safe)

    predict, start = two_logits(value), tf.constant(at_zero.reshape(x.shape))
    with tf.GradientTape() as tape:
        tape.watch(start)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=predict(start))
    slope = tape.gradient(loss, start).numpy().reshape(40, 9)
    assert {"nan": np.isnan, "inf": np.isinf}[gradient](slope).sum() == 8
    assert sanity_checks.gradients(predict, start.numpy(), y).value == pytest.approx(0.2)


def test_logits_that_are_not_finite_are_flagged_with_their_share():
    logits = np.ones((5, 10), np.float32)
    logits[[1, 4], [0, 9]] = np.nan, -np.inf
    flag = sanity_checks.finite(logits)
    assert (flag.check, flag.name) == (4, "non-finite logits")
    assert flag.value == pytest.approx(0.4)


# ---------------------------------------------------------------- 9: inference mode


def net(*layers):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(8), *layers,
                             keras.layers.Dense(2)])  # fmt: skip


def test_dropout_and_bn_in_inference_mode_pass(x):
    model = net(keras.layers.BatchNormalization(), keras.layers.Dropout(0.5))
    assert sanity_checks.inference_mode(lambda t: model(t, training=False), model, x) is None


def test_dropout_in_training_mode_is_flagged(x):
    model = net(keras.layers.Dropout(0.5))
    assert sanity_checks.inference_mode(lambda t: model(t, training=True), model, x).check == 9


def test_logits_that_are_random_are_flagged_with_their_spread(x):
    model = net()
    flag = sanity_checks.inference_mode(lambda t: model(t, training=False) + tf.random.uniform((2,)), model, x)
    assert flag.check == 9
    assert 0 < flag.value < 1
    assert "five passes over the same batch disagree" in flag.message


def test_bn_that_updates_its_statistics_is_flagged(x):
    model = net(keras.layers.BatchNormalization())
    assert (
        "changed the model's variables"
        in sanity_checks.inference_mode(lambda t: model(t, training=True), model, x).message
    )


# ---------------------------------------------------------------- 10: probabilities


def softmax(n=100):
    return keras.ops.softmax(np.random.default_rng(0).normal(size=(n, 10))).numpy().astype(np.float32)


def test_softmax_outputs_are_flagged():
    flag = sanity_checks.logits_not_probabilities(softmax())
    assert (flag.check, flag.value) == (10, 1.0)


def test_logits_pass():
    assert sanity_checks.logits_not_probabilities(np.log(softmax())) is None
    assert sanity_checks.logits_not_probabilities(np.random.default_rng(1).normal(size=(50, 10))) is None


def test_a_few_rows_that_look_like_probabilities_pass():
    outputs = np.random.default_rng(3).normal(size=(100, 10)) * 5
    outputs[:98] = softmax(98)
    assert sanity_checks.logits_not_probabilities(outputs) is None


# ---------------------------------------------------------------- 11: ball and box


def flag_of(point, x, threat_model):
    return sanity_checks.flag_violations(sanity_checks.threat_model_violation(point, x, threat_model))


def test_points_on_the_border_pass(x):
    far = x + np.random.default_rng(0).normal(size=x.shape).astype(np.float32) * 5
    for threat_model in (ThreatModel("inf", 0.1), ThreatModel("inf", 0.1, 0.3, 0.0, 1.0), SCALED):
        point = threat_model.project_array(far, x)
        assert threat_model.violation(point, x).max() > -1e-3
        assert flag_of(point, x, threat_model) is None
        assert flag_of(threat_model.project(tf.constant(far), tf.constant(x)).numpy(), x, threat_model) is None


def test_points_outside_are_flagged_with_their_share():
    for threat_model, move in (
        (ThreatModel("inf", 0.1), 0.1 * 1.001),
        (ThreatModel("inf", 0.1, 0.3), 0.03 * 1.001),
        (ThreatModel("2", 0.3), 0.1 * 1.001),
        (ThreatModel("2", 0.3, 0.5), 0.05 * 1.001),
        (ThreatModel("inf", 0.6, low=-1.0, high=1.0), 0.55),
    ):
        x = np.full((8, *SHAPE), 0.5, np.float32)
        point = x.copy()
        point[:2] += move
        flag = flag_of(point, x, threat_model)
        assert (flag.check, flag.name) == (11, "outside ball or box")
        assert flag.value == pytest.approx(0.25)


def test_points_that_are_not_finite_are_outside_and_hide_no_others():
    for value in (np.nan, np.inf):
        x = np.full((8, *SHAPE), 0.5, np.float32)
        point = x.copy()
        point[0, 0, 0, 0] = value
        assert flag_of(point, x, ThreatModel("inf", 0.1)).value == pytest.approx(1 / 8)
        point[1] += 0.2
        assert flag_of(point, x, ThreatModel("inf", 0.1)).value == pytest.approx(2 / 8)


def test_the_flag_says_how_far_outside_the_worst_point_lies():
    x = np.full((4, *SHAPE), 0.5, np.float32)
    point = x.copy()
    point[0] += 0.25
    assert "by up to 0.15;" in flag_of(point, x, ThreatModel("inf", 0.1)).message


def test_only_images_that_lie_in_the_box_themselves_are_judged():
    x = np.full((4, *SHAPE), 0.5, np.float32)
    x[0] = 2.0
    threat_model = ThreatModel("inf", 0.1, low=0.0, high=1.0)
    point = threat_model.project_array(x, x)
    assert np.abs(point - x).max() == 1.0
    assert flag_of(point, x, threat_model) is None


def test_a_box_that_excludes_clean_images_is_flagged_with_their_share():
    x = np.zeros((8, *SHAPE), np.float32)
    x[:6] = 0.3
    threat_model = from_config(Attack(eps=0.1, unit="standardized", box={"standardized": (0.0, 2.0)}), INFO)
    flag = sanity_checks.box_excludes_clean(sanity_checks.outside_box(x, threat_model))
    assert (flag.check, flag.name) == (11, "box excludes clean images")
    assert flag.value == pytest.approx(0.25)
    x[0, 1, 1, 0] = 0.99
    assert sanity_checks.box_excludes_clean(sanity_checks.outside_box(x, threat_model)).value == pytest.approx(0.375)


def test_a_box_that_holds_all_images_passes():
    x = np.linspace(0, 1, 8 * 9, dtype=np.float32).reshape(8, *SHAPE)
    for box in ("none", (0.0, 1.0), {"standardized": (-0.5, 3.0)}):
        assert (
            sanity_checks.box_excludes_clean(sanity_checks.outside_box(x, from_config(Attack(eps=0.1, box=box), INFO)))
            is None
        )


# ---------------------------------------------------------------- 18: reach


def bim(**options):
    return Attack(attack="bim", **options)


def test_steps_that_cannot_reach_the_border_are_flagged():
    flag = sanity_checks.reaches_border(bim(eps=0.1, steps=9, step_size=0.01))
    assert flag.check == 18
    assert flag.value == pytest.approx(0.09)


def test_steps_that_reach_the_border_pass():
    for attack in (
        bim(eps=0.1, steps=10, step_size=0.01),
        bim(eps=0.3, steps=3, step_size=0.1),  # but for rounding
        bim(eps=0.1, steps=7),
        Attack(attack="fgsm", eps=0.1),
        Attack(attack="pgd", eps=0.1, steps=1, step_size=0.01),
    ):
        assert sanity_checks.reaches_border(attack) is None


# ---------------------------------------------------------------- all of them in an evaluation


def evaluator(*, scale=1.0, middle=None, softmax=False, **options):
    """An untrained net on 40 images of MNIST; `middle(x)` is applied between its layers."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((28, 28, 1))
    hidden = keras.layers.Dense(12, activation="relu")(keras.layers.Flatten()(inputs))
    hidden = middle(hidden) if middle else hidden
    outputs = keras.layers.Rescaling(scale)(keras.layers.Dense(10)(hidden))
    outputs = keras.layers.Softmax()(outputs) if softmax else outputs
    model = keras.Model(inputs, outputs)
    subject = from_model(model, INFO, {"weights": "x"}, **options)
    return Evaluator(subject, Evaluation(limit=40), batch_size=20, checks="none")


def numbers(evaluator, perturbation=None):
    return sorted(flag.check for flag in evaluator.run(perturbation or Clean()).record.flags)


def test_a_sound_evaluation_has_no_flags():
    sound = evaluator(middle=lambda h: keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(h)))
    for perturbation in (Clean(), Attack(eps=0.1, steps=3), Attack(eps=1.0, ord="2", steps=3, step_size=0.5)):
        assert numbers(sound, perturbation) == []


def test_an_evaluation_flags_a_model_without_gradients():
    assert 4 in numbers(evaluator(middle=keras.ops.sign))


def test_an_evaluation_flags_logits_that_are_not_finite():
    broken = evaluator()
    broken.eval_set.classifier.model.layers[-2].bias.assign([np.nan] + [0.0] * 9)
    record = broken.run(Clean()).record
    assert ("non-finite logits", 1.0) in {(flag.name, flag.value) for flag in record.flags}
    assert record.correct == 0


class Noisy(keras.layers.Layer):
    def call(self, x):
        return x + tf.random.normal(tf.shape(x), stddev=0.1)


class BatchCentred(keras.layers.Layer):
    def call(self, x):
        return x - tf.reduce_mean(x, axis=0)


class Counting(keras.layers.Layer):
    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.calls.assign_add(1.0)
        return x


def test_an_evaluation_flags_nets_that_are_not_in_inference_mode():
    for layer, fragment in (
        (Noisy, "five passes over the same batch disagree"),
        (BatchCentred, "depend on the batch"),
        (Counting, "changed the model's variables"),
    ):
        flags = evaluator(middle=layer()).run(Clean()).record.flags
        assert [flag.check for flag in flags] == [9]
        assert fragment in flags[0].message


def test_an_evaluation_runs_dropout_and_bn_in_inference_mode_even_where_the_net_says_otherwise():
    net = evaluator(middle=lambda h: keras.layers.BatchNormalization()(keras.layers.Dropout(0.5)(h, training=True)))
    assert numbers(net) == []


def test_an_evaluation_flags_softmax_outputs():
    assert numbers(evaluator(softmax=True)) == [10]


def test_an_evaluation_flags_boxes_and_reach():
    sound = evaluator()
    short = bim(eps=0.1, steps=2, step_size=0.01)
    assert numbers(sound, short) == [18]
    box = {"standardized": (0.0, 1.0)}
    assert numbers(sound, bim(eps=0.1, steps=2, box=box)) == [11]
    assert numbers(sound, short.model_copy(update={"box": Attack(eps=1, box=box).box})) == [11, 18]

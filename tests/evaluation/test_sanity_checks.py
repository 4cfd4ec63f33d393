"""Every check trips on a model or an array that is built to trip it, with the right share, and passes a sound one."""

import numpy as np
import pytest
from helpers_attacks import images, keras, tf

from bn_vuln.attacks import ThreatModel, from_config
from bn_vuln.config import AWGN, Attack, Clean, Evaluation, MinimumNorm
from bn_vuln.data.mnist import INFO
from bn_vuln.evaluation import sanity_checks
from bn_vuln.evaluation.classifier import from_model
from bn_vuln.evaluation.evaluator import Evaluator
from bn_vuln.records.comparability import unequal_clean_accuracy

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


@pytest.mark.parametrize("rows", [lambda g: g.uniform(size=(100, 10)), lambda g: 0.01 * g.uniform(size=(100, 10))])
def test_outputs_in_0_to_1_that_are_no_softmax_are_flagged(rows):
    flag = sanity_checks.outputs_in_unit_interval(rows(np.random.default_rng(0)).astype(np.float32))
    assert (flag.check, flag.value) == (10, 1.0)
    assert "--output sigmoid" in flag.message


def test_logits_softmax_and_constants_are_no_such_outputs():
    mostly = np.random.default_rng(0).uniform(size=(100, 10))
    mostly[:2] -= 1.5
    for outputs in (softmax(), np.random.default_rng(0).normal(size=(100, 10)), mostly, np.zeros((100, 10))):
        assert sanity_checks.outputs_in_unit_interval(outputs.astype(np.float32)) is None


# ---------------------------------------------------------------- 19, 20, 23, 25, 15: clean images


def logits_of(predicted, classes=10):
    return np.eye(classes, dtype=np.float32)[np.asarray(predicted)] * 5 - 1


BALANCED = np.arange(200) % 10


def wrong(labels, n_correct):
    """Predictions of which the first n are correct and the others are at random among the wrong ones."""
    shift = np.random.default_rng(0).integers(1, 10, len(labels))
    return np.where(np.arange(len(labels)) < n_correct, labels, (labels + shift) % 10)


@pytest.mark.parametrize(("n_correct", "trips"), [(20, True), (0, True), (30, True), (31, False), (190, False)])
def test_accuracy_near_guessing_is_flagged(n_correct, trips):
    """Of 200, the Wilson interval of 30 correct goes from 10.7% on: 9.99% for 28."""
    p, n, z = n_correct / 200, 200, 1.959964
    low = (p + z * z / (2 * n) - z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))) / (1 + z * z / n)
    flag = sanity_checks.near_guessing(logits_of(wrong(BALANCED, n_correct)), BALANCED)
    assert (flag is not None) == (low <= 0.1)
    if flag:
        assert (flag.check, flag.value) == (19, p)
        assert f"95% interval {low:.1%}" in flag.message
        assert "--input-scale" not in flag.message


def test_guessing_the_commonest_label_is_guessing():
    labels = np.where(np.arange(200) < 170, 0, 1)
    assert sanity_checks.near_guessing(logits_of(np.zeros(200, int), 2), labels).value == 0.85
    assert sanity_checks.near_guessing(logits_of(labels, 2), labels) is None
    assert sanity_checks.near_guessing(logits_of(np.ones(200, int), 2), labels).value == 0.15


def test_the_causes_are_those_that_are_possible_and_the_likeliest_first():
    guessed = logits_of(wrong(BALANCED, 20))
    text = sanity_checks.near_guessing(guessed, BALANCED, input_scale="0-1", has_tracked_bn=True).message
    order = [text.index(word) for word in ("--input-scale", "--class-names", "--bn-statistics", "--split")]
    assert order == sorted(order)
    assert "stale" not in sanity_checks.near_guessing(guessed, BALANCED, input_scale="0-1").message
    assert "(--input-scale 0-255, -1-1, ...)" in text  # others than the one that was taken
    text = sanity_checks.near_guessing(guessed, BALANCED, input_scale="0-255").message
    assert "(--input-scale 0-1, -1-1, ...)" in text


def test_labels_in_another_order_are_found():
    predicted = (BALANCED + 3) % 10
    predicted[:20] = 0
    best = np.mean((predicted - 3) % 10 == BALANCED)
    text = sanity_checks.near_guessing(logits_of(predicted), BALANCED, input_scale="0-1").message
    assert f"{best:.1%} are correct (--class-names FILE" in text
    assert text.index("--class-names") < text.index("--input-scale")


@pytest.mark.parametrize(("moved", "trips"), [(2, True), (3, True), (0, False)])
def test_labels_of_which_some_are_in_another_order_are_flagged(moved, trips):
    """Classes 0 to 1 (or 2) are exchanged: 80% (or 70%) are right, all in the right order."""
    order = np.arange(10)
    order[:moved] = np.roll(order[:moved], 1)
    flag = sanity_checks.labels_in_another_order(logits_of(BALANCED), order[BALANCED])
    assert (flag is not None) == trips
    if flag:
        assert (flag.check, flag.value) == (25, 1.0)
        assert f"{1 - moved / 10:.1%} of the clean images" in flag.message
        assert "--class-names" in flag.message


def test_models_that_are_wrong_at_random_have_their_labels_in_order():
    for n_correct in (100, 150, 190):
        predicted = logits_of(wrong(BALANCED, n_correct))
        assert sanity_checks.labels_in_another_order(predicted, BALANCED) is None
    few = BALANCED[:40]  # 4 a class
    assert sanity_checks.labels_in_another_order(logits_of((few + 1) % 10), few) is None
    # Enough of the classes that occur, of a model of many.
    some = np.arange(40) % 5
    assert sanity_checks.labels_in_another_order(logits_of((some + 7) % 100, 100), some).value == 1


def test_too_few_images_are_a_cause_too():
    labels = np.array([0, 1, 0])
    text = sanity_checks.near_guessing(logits_of([0, 1, 1], 2), labels).message
    assert "3 images are too few to tell" in text


def test_images_that_are_nearly_all_in_one_class_are_flagged():
    predicted = np.where(np.arange(200) < 192, 3, 1)
    flag = sanity_checks.one_class_predicted(logits_of(predicted), BALANCED)
    assert (flag.check, flag.value) == (20, 0.96)
    assert "as class 3" in flag.message
    assert sanity_checks.one_class_predicted(logits_of(np.where(np.arange(200) < 188, 3, 1)), BALANCED) is None
    assert sanity_checks.one_class_predicted(logits_of(predicted), predicted) is None


def test_uint8_images_of_0_and_1_are_flagged():
    bits = np.random.default_rng(0).integers(0, 2, (20, *SHAPE), np.uint8)
    for dark in (bits, 0 * bits):
        assert sanity_checks.dark_images(dark).check == 23
    for other in (bits * 255, bits.astype(np.float32), bits + np.uint8(1), bits[:0]):
        assert sanity_checks.dark_images(other) is None


def test_clean_accuracies_that_differ_are_flagged():
    flag = unequal_clean_accuracy(0.775, 0.915, ("a.keras", "b.keras"))
    assert flag.check == 15
    assert flag.value == pytest.approx(-0.14)
    assert "differ by -14.0 points (a.keras 77.5%, b.keras 91.5%)" in flag.message
    assert unequal_clean_accuracy(0.9, 0.881) is None


def test_flags_of_clean_images_come_together():
    bits = np.random.default_rng(0).integers(0, 2, (200, *SHAPE), np.uint8)
    found = sanity_checks.of_clean_images(bits, BALANCED, np.float32(0.1) * logits_of(np.zeros(200, int)) + 0.2)
    assert [flag.check for flag in found] == [19, 20, 23, 10]
    assert sanity_checks.of_clean_images(255 * bits, BALANCED, logits_of(BALANCED)) == ()
    (doubt,) = sanity_checks.of_clean_images(bits, BALANCED, logits_of(BALANCED), doubts=["x: dark"])
    assert (doubt.check, doubt.message) == (23, "x: dark")


def test_a_known_cause_of_missing_gradients_is_named(x, y):
    constant = tf.constant(np.eye(2)[y], tf.float32)
    cause = "casts to integers: no gradients; save it with a float input, or use square"
    assert f"The cause: {cause}." in sanity_checks.gradients(lambda _: constant, x, y, cause=cause).message


# ---------------------------------------------------------------- 21, 22: eps and box


def flag_of_eps(shape=SHAPE, **fields):
    options = Attack(steps=1, **fields)
    return sanity_checks.eps_says_nothing(options, from_config(options, INFO), shape)


def test_an_eps_that_holds_the_whole_box_is_flagged():
    assert flag_of_eps(eps=8).check == 21
    assert "Was --eps 8/255 meant?" in flag_of_eps(eps=8).message
    for fields in (
        {"eps": 1.0},
        {"eps": 3.0, "ord": "2"},  # the diagonal of 3 x 3 x 1
        {"eps": 0.5, "box": (0.25, 0.75)},
        {"eps": 1.01 / INFO.std[0], "unit": "standardized"},
        {"eps": 4.0, "unit": "standardized", "box": {"standardized": (-2.0, 2.0)}},
        {"eps": 0},
    ):
        assert flag_of_eps(**fields).value == fields["eps"]
    for fields in (
        {"eps": 0.99},
        {"eps": 2.99, "ord": "2"},
        {"eps": 0.49, "box": (0.25, 0.75)},
        {"eps": 0.99 / INFO.std[0], "unit": "standardized"},
        {"eps": 8, "box": "none"},
        {"eps": 8, "box": (0.0, 255.0)},
    ):
        assert flag_of_eps(**fields) is None
    assert flag_of_eps(eps=3.0, ord="2", shape=(28, 28, 1)) is None


def test_eps_box_and_noise_in_units_of_255_are_flagged():
    for options, value in (
        (Attack(eps=8, box="none"), 8),
        (Attack(eps=8 / 255, box=(0.0, 255.0)), 255),
        (Attack(eps=2.0, ord="2", box=(0.0, 255.0)), 255),
        (MinimumNorm(box=(0.0, 255.0)), 255),
        (AWGN(std=8.0), 8),
    ):
        flag = sanity_checks.units_of_255(options)
        assert (flag.check, flag.value) == (22, value)
    for options in (
        Attack(eps=1.0),
        Attack(eps=3.0, ord="2"),
        Attack(eps=8, unit="standardized"),
        Attack(eps=0.1, box=(-1.0, 1.0)),
        Attack(eps=0.1, box={"standardized": (-3.0, 3.0)}),
        MinimumNorm(),
        AWGN(std=1.0),
        AWGN(std=2.0, unit="standardized"),
    ):
        assert sanity_checks.units_of_255(options) is None


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


def evaluator(*, scale=1.0, middle=None, softmax=False):
    """An untrained net on 40 images of MNIST, labelled as it predicts; `middle(x)` is applied between its layers."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((28, 28, 1))
    hidden = keras.layers.Dense(12, activation="relu")(keras.layers.Flatten()(inputs))
    hidden = middle(hidden) if middle else hidden
    outputs = keras.layers.Rescaling(scale)(keras.layers.Dense(10)(hidden))
    outputs = keras.layers.Softmax()(outputs) if softmax else outputs
    model = keras.Model(inputs, outputs)
    found = Evaluator(from_model(model, INFO, {"weights": "x"}), Evaluation(limit=40), batch_size=20, checks="none")
    found.eval_set.labels[:] = found.eval_set.logits(found.eval_set.pixels).argmax(axis=1)
    return found


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
        (flag,) = (flag for flag in evaluator(middle=layer()).run(Clean()).record.flags if flag.check == 9)
        assert fragment in flag.message


def test_an_evaluation_runs_dropout_and_bn_in_inference_mode_even_where_the_net_says_otherwise():
    net = evaluator(middle=lambda h: keras.layers.BatchNormalization()(keras.layers.Dropout(0.5)(h, training=True)))
    assert numbers(net) == []


def test_an_evaluation_flags_softmax_outputs():
    assert numbers(evaluator(softmax=True)) == [10]


def test_an_evaluation_flags_what_the_clean_images_say():
    guessing = evaluator()
    guessing.eval_set.labels[:] = np.arange(40) % 10
    assert 19 in numbers(guessing)
    constant = evaluator()
    constant.eval_set.classifier.model.layers[-2].bias.assign(50 * np.eye(10)[3])
    constant.eval_set.labels[:] = np.arange(40) % 10
    assert {19, 20} <= set(numbers(constant))


def test_an_evaluation_flags_eps_and_box_that_say_nothing():
    sound = evaluator()
    assert numbers(sound, Attack(eps=8, steps=1)) == [21]
    assert numbers(sound, Attack(eps=0, steps=1)) == [21]
    assert 22 in numbers(sound, Attack(eps=8 / 255, steps=1, box=(0.0, 255.0)))
    assert numbers(sound, AWGN(std=8.0)) == [22]
    grid = sound.run_eps_grid(Attack(eps=1.0, eps_grid=[0.1], steps=1))
    assert [[flag.check for flag in result.record.flags] for _, result in grid] == [[], [21]]


def test_an_evaluation_flags_boxes_and_reach():
    sound = evaluator()
    short = bim(eps=0.1, steps=2, step_size=0.01)
    assert numbers(sound, short) == [18]
    box = {"standardized": (0.0, 1.0)}
    assert numbers(sound, bim(eps=0.1, steps=2, box=box)) == [11]
    assert numbers(sound, short.model_copy(update={"box": Attack(eps=1, box=box).box})) == [11, 18]

"""PGD against CleverHans 4, on nets trained on real MNIST, from the same start and in both precisions."""

import importlib

import numpy as np
import pytest
from helpers_attacks import keras, norm, run_pgd, tf

from bn_vuln import attacks, data, models
from bn_vuln.attacks import cleverhans
from bn_vuln.config import Attack, Cell, Evaluation, validate
from bn_vuln.data.mnist import INFO
from bn_vuln.data.transforms import pixel_array
from bn_vuln.evaluation.classifier import from_model
from bn_vuln.evaluation.evaluator import Evaluator
from bn_vuln.runtime import backend
from bn_vuln.training import train

ARMS = ("none", "batch")
ROUNDING = 1e-6

FAST_GRADIENT = "cleverhans.tf2.attacks.fast_gradient_method"


def cell(normalization):
    return validate(
        Cell,
        {
            "data": {"limit": 3000},
            "arch": {"name": "mlp", "hidden": [48, 32], "normalized": [0, 1]},
            "normalization": normalization,
            "train": {"epochs": 2, "batch_size": 50, "lr": 0.05},
        },
        "test",
    )


@pytest.fixture(scope="module")
def float32_models():
    trained = {name: train(cell(name)) for name in ARMS}
    assert all(t.record.validation_accuracy > 0.8 for t in trained.values())
    return {name: t.model for name, t in trained.items()}


@pytest.fixture(scope="module")
def float64_models(float32_models):
    """The same nets with the same weights, rebuilt in float64."""
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        rebuilt = {name: models.build(cell(name), INFO) for name in ARMS}
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])
    for name, model in rebuilt.items():
        model.set_weights(float32_models[name].get_weights())
    return rebuilt


@pytest.fixture(scope="module")
def examples():
    test = data.load("mnist", "test", limit=100)
    return pixel_array(test.images, 28), test.labels


class TensorFlowOfDoubles:
    """TensorFlow, but for the name float32, to which CleverHans' fast gradient method casts its input."""

    float32 = tf.float64

    def __getattr__(self, name):
        return getattr(tf, name)


@pytest.fixture
def cleverhans_in_float64(monkeypatch):
    monkeypatch.setattr(importlib.import_module(FAST_GRADIENT), "tf", TensorFlowOfDoubles())


def predictor(model):
    return backend.compile(lambda x: model(x, training=False))


def threat_model_of(order, eps, unit="pixel", box=(0.0, 1.0)):
    return attacks.from_config(Attack(ord=order, eps=eps, unit=unit, box=box), INFO)


# In L2 with a box, CleverHans also clips to the box between step and projection; see the test of it below.
# The two are the same attack where only one of ball and box can be active, hence the path no longer than eps.
CASES = {
    "fgsm": (threat_model_of("inf", 0.1), 1, 0.1),
    "fgsm-no-box": (threat_model_of("inf", 0.1, box="none"), 1, 0.1),
    "fgm-2": (threat_model_of("2", 2.0), 1, 2.0),
    "bim-inf": (threat_model_of("inf", 0.1), 10, 0.02),
    "bim-inf-no-box": (threat_model_of("inf", 0.1, box="none"), 10, 0.02),
    "bim-inf-standardized": (threat_model_of("inf", 0.3, "standardized", {"standardized": (-0.5, 2.9)}), 10, 0.06),
    "bim-2": (threat_model_of("2", 2.0), 8, 0.25),
    "bim-2-no-box": (threat_model_of("2", 1.5, box="none"), 10, 0.4),
    "bim-2-standardized": (threat_model_of("2", 4.0, "standardized", "none"), 10, 1.0),
}
all_cases = pytest.mark.parametrize(("case", "arm"), [(case, ARMS[i % 2]) for i, case in enumerate(CASES)])


def ours(predict, x, y, case, **options):
    threat_model, steps, step_size = CASES[case]
    return run_pgd(predict, x, y, threat_model=threat_model, steps=steps, step_size=step_size, **options)


def through_the_backend(predict, x, y, case, **options):
    threat_model, steps, step_size = CASES[case]
    return cleverhans.attack(
        predict, x, y, threat_model=threat_model, steps=steps, step_size=step_size, **options
    ).numpy()


def called_directly(predict, x, y, case):
    """CleverHans in units of the ball's scale, which the test states itself: sigma for standardized units."""
    from cleverhans.tf2.attacks.fast_gradient_method import fast_gradient_method
    from cleverhans.tf2.attacks.projected_gradient_descent import projected_gradient_descent

    threat_model, steps, step_size = CASES[case]
    sigma = float(np.float32(0.3081)) if "standardized" in case else 1.0
    clip = {"clip_min": float(threat_model.low[0]) / sigma, "clip_max": float(threat_model.high[0]) / sigma}
    clip = clip if np.isfinite(threat_model.low).all() else {}
    order = np.inf if threat_model.ord == "inf" else 2

    def scaled(z):
        return predict(z * sigma)

    if steps == 1:
        return fast_gradient_method(scaled, x / sigma, step_size, order, y=y, **clip).numpy() * sigma
    return (
        projected_gradient_descent(
            scaled, x / sigma, threat_model.eps, step_size, steps, order, y=y, rand_init=None, **clip
        ).numpy()
        * sigma
    )


def smallest_gradient(predict, x, y, case):
    """The smallest L2 norm of the gradient, in units of the scale, at any example and point of the path."""
    threat_model, steps, step_size = CASES[case]
    smallest, point = np.inf, x
    for _ in range(steps):
        with tf.GradientTape() as tape:
            tape.watch(point)
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=predict(point))
        slope = tape.gradient(loss, point)
        smallest = min(smallest, norm(slope.numpy() * threat_model.scale, "2").min())
        point = threat_model.project(threat_model.step(point, slope, step_size), x)
    return smallest


def doubles(examples):
    return tf.constant(examples[0], tf.float64), examples[1]


@all_cases
@pytest.mark.usefixtures("cleverhans_in_float64")
def test_equal_to_rounding_in_float64(float64_models, examples, arm, case):
    predict, (x, y) = predictor(float64_models[arm]), doubles(examples)
    if CASES[case][0].ord == "2":
        assert smallest_gradient(predict, x, y, case) > 1e-6, "CleverHans would take shorter steps"
    found = ours(predict, x, y, case)
    assert found.dtype == np.float64
    assert np.abs(found - x.numpy()).max() > 0.05
    for other in (through_the_backend, called_directly):
        assert np.abs(other(predict, x, y, case) - found).max() <= ROUNDING


@pytest.mark.slow
def test_equal_in_999_of_1000_pixels_in_float32(float32_models, examples):
    x, y = examples
    for (case, _), arm in zip(CASES.items(), ARMS * 9, strict=False):
        predict = predictor(float32_models[arm])
        found = ours(predict, tf.constant(x), y, case)
        for other in (through_the_backend, called_directly):
            assert np.mean(np.abs(other(predict, tf.constant(x), y, case) - found) <= ROUNDING) >= 0.999, case


@pytest.mark.parametrize("case", ["bim-inf", "bim-2"])
@pytest.mark.usefixtures("cleverhans_in_float64")
def test_targeted_attacks_are_equal(float64_models, examples, case):
    predict, (x, y) = predictor(float64_models["batch"]), doubles(examples)
    target = ((y + 1) % 10).astype(np.int32)
    found = ours(predict, x, target, case, targeted=True)
    assert np.abs(found - ours(predict, x, target, case)).max() > 0.05
    assert np.abs(through_the_backend(predict, x, target, case, targeted=True) - found).max() <= ROUNDING


def test_whole_evaluations_agree_through_the_config(float32_models):
    arm = "batch"
    classifier = from_model(float32_models[arm], INFO, {"weights": arm})
    evaluator = Evaluator(classifier, Evaluation(limit=100))
    plain = {"attack": "bim", "eps": 0.1, "steps": 10, "keep": "last"}
    own, theirs = (evaluator.run(Attack(**plain, backend=name)) for name in ("own", "cleverhans"))
    assert 0 < own.record.accuracy < 1
    np.testing.assert_array_equal(own.correct, theirs.correct)
    assert np.mean(np.abs(own.images - theirs.images) <= ROUNDING) >= 0.999


# ---------------------------------------------------------------- where CleverHans is another attack


@pytest.mark.usefixtures("cleverhans_in_float64")
def test_in_2_cleverhans_also_clips_to_the_box_before_it_projects(float64_models, examples):
    predict, (x, y) = predictor(float64_models["none"]), doubles(examples)
    threat_model, steps, step_size = threat_model_of("2", 1.5), 10, 0.4
    options = {"threat_model": threat_model, "steps": steps, "step_size": step_size}
    theirs = cleverhans.attack(predict, x, y, **options).numpy()
    point = x
    for _ in range(steps):
        with tf.GradientTape() as tape:
            tape.watch(point)
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=predict(point))
        stepped = tf.clip_by_value(threat_model.step(point, tape.gradient(loss, point), step_size), 0.0, 1.0)
        point = threat_model.project(stepped, x)
    assert np.abs(point.numpy() - theirs).max() <= ROUNDING
    assert np.abs(run_pgd(predict, x, y, **options) - theirs).max() > 1e-2


@pytest.mark.usefixtures("cleverhans_in_float64")
def test_in_2_cleverhans_shortens_steps_where_the_gradient_norm_is_below_a_millionth(float64_models, examples):
    x, y = doubles(examples)
    model = float64_models["none"]
    options = {"threat_model": threat_model_of("2", 2.0, box="none"), "steps": 1, "step_size": 2.0}

    def flat(images):
        return model(images, training=False) * 1e-9

    own, theirs = run_pgd(flat, x, y, **options), cleverhans.attack(flat, x, y, **options).numpy()
    np.testing.assert_allclose(norm(own - x, "2"), 2.0, atol=ROUNDING)
    assert norm(theirs - x, "2").max() < 0.5


@pytest.mark.parametrize("order", ["inf", "2"])
def test_random_starts_of_cleverhans_fill_the_ball(float32_models, examples, order):
    x, y = examples
    threat_model = threat_model_of(order, 0.5, "standardized", "none")
    found = cleverhans.attack(predictor(float32_models["none"]), tf.constant(x), y,
                              threat_model=threat_model, steps=1, step_size=0.0, random_start=True).numpy()  # fmt: skip
    distance = norm((found - x) / threat_model.scale, order)
    assert distance.max() <= 0.5 + 1e-5
    assert distance.min() > 0.4

"""Fooling images: steps and confidences of linear models in closed form, and what is recorded of a measurement."""

import math

import numpy as np
import pytest
from helpers_attacks import binary_linear, norm, tf
from helpers_records import by_arm, fill, small

from bn_vuln import records
from bn_vuln.config import Evaluation, Fooling, validate
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.mnist import INFO
from bn_vuln.errors import ConfigError
from bn_vuln.evaluation import classifier
from bn_vuln.evaluation.measurements import fooling
from bn_vuln.evaluation.measurements.run import measure
from bn_vuln.reporting import tables
from bn_vuln.reporting.aggregate import aggregate

TWO = DatasetInfo("two", (4, 4, 2), ("a", "b"), (0.5, 0.5), (0.25, 0.25), {})
FREE = {"box": "none", "steps": 200, "step_size": 0.05, "per_class": 3}
FAST = Fooling(steps=60, per_class=2, after=10)


def log_odds(confidence):
    return math.log(confidence / (1 - confidence))


# ---------------------------------------------------------------- closed form


def test_the_steps_of_a_linear_model():
    """Each step moves the log-odds by step_size ||w||."""
    confidence = 0.999
    model, options = binary_linear(), Fooling(**FREE, confidence=confidence, after=7)
    x, y = fooling.starting_points(options, (4, 4), TWO)
    found = fooling.ascend(model.predict, x, y, options, TWO)
    margins, size = model.margin(x, y), 0.05 * np.linalg.norm(model.w)
    expected = np.maximum(np.ceil((log_odds(confidence) - margins) / size), 0)
    np.testing.assert_array_equal(found.steps, expected)
    assert len(set(expected.tolist())) > 2
    assert found.reached.all()
    np.testing.assert_allclose(found.confidence, 1 / (1 + np.exp(-(margins + expected * size))), rtol=1e-4)
    np.testing.assert_allclose(found.confidence_after, 1 / (1 + np.exp(-(margins + 7 * size))), rtol=1e-3)
    np.testing.assert_allclose(norm(found.images - x, "2"), 0.05 * expected, rtol=1e-4, atol=1e-6)
    assert (found.confidence >= confidence).all()


def test_confident_noise_stays_as_it_is():
    model, options = binary_linear(), Fooling(**FREE, confidence=0.6, after=1)
    x, y = fooling.starting_points(options, (4, 4), TWO)
    found = fooling.ascend(model.predict, x, y, options, TWO)
    confident = model.margin(x, y) > log_odds(0.6)
    assert 0 < confident.sum() < len(x)
    np.testing.assert_array_equal(found.steps == 0, confident)
    np.testing.assert_array_equal(found.images[confident], x[confident])
    margins = model.margin(x, y) + 0.05 * np.linalg.norm(model.w)
    np.testing.assert_allclose(
        found.confidence_after, 1 / (1 + np.exp(-margins)), rtol=1e-4
    )  # it goes on for this alone


@pytest.mark.parametrize(("logit", "confidence"), [(0.0, 0.5), (np.nan, 0.0)])
def test_without_a_gradient_nothing_moves(logit, confidence):
    def constant(images):
        return tf.fill(tf.shape(images[:, 0, 0, :]), tf.constant(logit, images.dtype))

    options = Fooling(**FREE)
    x, y = fooling.starting_points(options, (4, 4), TWO)
    found = fooling.ascend(constant, x, y, options, TWO)
    np.testing.assert_array_equal(found.images, x)
    assert not found.reached.any()
    assert (found.steps == 200).all()
    np.testing.assert_allclose(found.confidence, confidence)
    np.testing.assert_allclose(found.confidence_after, confidence)


def test_where_gradients_are_not_finite_pixels_stay():
    """The root has no derivative at black pixels: of the others there are enough to get to the first class."""
    model, options = binary_linear(), Fooling(**FREE)

    def predict(images):
        return model.predict(tf.sqrt(tf.abs(images)))

    x, y = fooling.starting_points(options, (4, 4), TWO)
    x[:, 0] = 0
    found = fooling.ascend(predict, x, y, options, TWO)
    assert found.reached[y == 0].all()
    assert np.isfinite(found.images).all()
    np.testing.assert_array_equal(found.images[:, 0], x[:, 0])


def test_what_the_box_does_not_allow_is_not_reached():
    model = binary_linear()
    options = Fooling(**{**FREE, "box": (0.45, 0.55)}, confidence=0.9999)
    x, y = fooling.starting_points(options, (4, 4), TWO)
    found = fooling.ascend(model.predict, x, y, options, TWO)
    assert not found.reached.any()
    assert (found.steps == 200).all()
    corner = np.where(np.sign(model.w) * model.sign(y) > 0, 0.55, 0.45)
    assert np.mean(np.abs(found.images - corner) < 1e-6) > 0.95  # some weights hardly matter


def test_many_images_are_led_in_batches(monkeypatch):
    model, options = binary_linear(), Fooling(**FREE)
    x, y = fooling.starting_points(options, (4, 4), TWO)
    whole = fooling.ascend(model.predict, x, y, options, TWO)
    monkeypatch.setattr(fooling, "BATCH_SIZE", 4)
    pieces = fooling.ascend(model.predict, x, y, options, TWO)
    np.testing.assert_array_equal(pieces.steps, whole.steps)
    np.testing.assert_allclose(pieces.images, whole.images, atol=1e-6)


# ---------------------------------------------------------------- noise


def test_noise_is_the_same_for_all_classes():
    x, y = fooling.starting_points(Fooling(per_class=3, mean=0.4, std=0.1, box="none"), (28, 28), INFO)
    assert (x.shape, x.dtype, y.dtype) == ((30, 28, 28, 1), np.float32, np.int32)
    np.testing.assert_array_equal(y, np.tile(np.arange(10), 3))
    for first in (0, 10, 20):
        assert (x[first : first + 10] == x[first]).all()
    assert np.abs(x[0] - x[10]).max() > 0.1
    assert x.mean() == pytest.approx(0.4, abs=0.01)
    assert x.std() == pytest.approx(0.1, abs=0.01)


def test_noise_depends_on_the_seed_and_is_cut_to_the_box():
    x, _ = fooling.starting_points(Fooling(per_class=2), (28, 28), INFO)
    more, _ = fooling.starting_points(Fooling(per_class=5), (28, 28), INFO)
    np.testing.assert_array_equal(x, more[:20])
    assert (x.min(), x.max()) == (0, 1)
    assert not np.array_equal(x, fooling.starting_points(Fooling(per_class=2, seed=1), (28, 28), INFO)[0])


# ---------------------------------------------------------------- measurement


def test_what_never_gets_there_is_recorded_with_what_it_has(runs, tmp_path):
    options = FAST.model_copy(update={"steps": 10, "confidence": 0.999999})
    ((_, record),) = measure(classifier.from_run(runs["none"]), {"x": options}, Evaluation(limit=10), folder=tmp_path)
    arrays = records.read_arrays(records.measurement_path(tmp_path, record.measurement_id))
    assert not arrays["reached"].any()
    assert (record.value, record.details["reached"]) == (10, 0)
    assert ((arrays["confidence"] > 0) & (arrays["confidence"] < 0.999999)).all()
    np.testing.assert_allclose(record.details["confidence"], arrays["confidence"].mean(), rtol=1e-6)  # after 10 steps
    assert 0 < record.details["distance"] <= 10 * 0.1


def test_a_measurement_of_a_run(runs, tmp_path):
    subject, limit = classifier.from_run(runs["batch"]), Evaluation(limit=10)
    ((name, record),) = measure(subject, {"noise": FAST}, limit, folder=tmp_path)
    path = records.measurement_path(tmp_path, record.measurement_id)
    arrays = records.read_arrays(path)
    assert (name, record.unit, record.n) == ("noise", "steps", 20)
    assert record.value == pytest.approx(arrays["steps"].mean())
    assert record.details == {
        "reached": pytest.approx(arrays["reached"].mean()),
        "confidence": pytest.approx(record.details["confidence"]),
        "distance": pytest.approx(record.details["distance"]),
    }
    assert (arrays["steps"][~arrays["reached"]] == 60).all()
    np.testing.assert_array_equal(arrays["confidence"] >= 0.99, arrays["reached"])
    assert arrays["images"].shape == (10, 28, 28, 1)
    assert path.with_suffix(".npz").stat().st_size < 30_000
    # The images have the recorded confidence and distance.
    x, _ = fooling.starting_points(FAST, (28, 28), INFO)
    p = tf.nn.softmax(subject.predict(tf.constant(arrays["images"].astype(np.float32)))).numpy()
    np.testing.assert_allclose(p[np.arange(10), np.arange(10)], arrays["confidence"][:10], atol=0.01)
    assert record.details["distance"] <= 60 * 0.1
    assert norm(arrays["images"].astype(np.float64) - x[:10], "2").max() <= 60 * 0.1 + 0.02
    assert records.read_measurement(path) == record
    assert "steps from noise" in tables.markdown_table(tables.measurements_table({"noise": record}))


CHANGES = [
    {"confidence": 0.7}, {"steps": 30}, {"step_size": 0.2}, {"per_class": 1}, {"mean": 0.3}, {"std": 0.1},
    {"box": "none"}, {"after": 4}, {"seed": 1},
]  # fmt: skip


def only(runs, options):
    ((_, record),) = measure(classifier.from_run(runs["none"]), {"x": options}, Evaluation(limit=10))
    return record


@pytest.mark.slow
def test_every_config_field_changes_the_measurement(runs):
    assert {key for change in CHANGES for key in change} == set(Fooling.model_fields) - {"kind"}
    plain = only(runs, FAST)
    for change in CHANGES:
        changed = only(runs, FAST.model_copy(update=change))
        assert changed.measurement_id != plain.measurement_id
        assert (changed.value, changed.details) != (plain.value, plain.details), change


@pytest.mark.parametrize(
    ("fields", "fragment"),
    [
        ({"confidence": 1}, "confidence: expected less than 1"),
        ({"steps": 10}, "after: expected at most the 10 steps, received 20"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, fragment):
    with pytest.raises(ConfigError) as error:
        validate(Fooling, fields, "measurement")
    assert fragment in str(error.value)


def test_details_are_columns(tmp_path):
    columns = {"noise": "to 99%", "noise.confidence": "after 20", "noise.reached": "reached", "noise.distance": "way"}
    claims = [{"perturbations": ["noise", "noise.confidence"], "sign": 1, "source": "text"}]
    chosen = small(measurements={"noise": "fooling"}, table={"columns": columns}, claims=claims)
    assert [chosen.columns[column].unit for column in columns] == ["steps", "%", "%", "pixels"]

    def number(cell, column):
        worse = 1 + (cell.normalization.name == "batch") + 0.01 * cell.seed
        return {"noise": 20 * worse, "noise.confidence": 0.3 * worse, "noise.distance": 1.5}.get(column)

    found = aggregate(chosen, fill(tmp_path, chosen, by_arm({}), also=number))
    assert [comparison.verdict for comparison in found.comparisons] == ["holds", "holds"]
    (block,) = found.blocks
    assert block.arms["none"]["noise.confidence"].estimate.mean == pytest.approx(0.3 * 1.015)
    assert block.arms["none"]["noise.reached"].missing == 0
    assert block.arms["none"]["noise"].n_examples == 1000
    assert "20.3 ± 0.1" in tables.markdown_table(tables.accuracy_table(found))


def test_a_detail_that_does_not_exist_is_no_column():
    with pytest.raises(ConfigError, match=r"table\.columns: no column 'noise\.speed'"):
        small(measurements={"noise": "fooling"}, table={"columns": {"noise.speed": "x"}}, claims=[])

"""The measurement `batch_statistics`: how far the statistics of batches are from those that BN has tracked."""

import json
import shutil

import numpy as np
import pytest
from helpers_attacks import keras
from helpers_runs import SMALL, MessageLog

from bn_vuln import data, records
from bn_vuln.analysis.moments import log_std_ratio, mean_shift
from bn_vuln.config import BatchStatistics, Evaluation, Experiment, validate
from bn_vuln.data import noise
from bn_vuln.data.transforms import pixel_array
from bn_vuln.errors import BnvulnError, ConfigError
from bn_vuln.evaluation import classifier
from bn_vuln.evaluation.classifier import from_model
from bn_vuln.evaluation.measurements.run import measure
from bn_vuln.experiments import runner
from bn_vuln.reporting import aggregate, tables

L = keras.layers
LIMIT = Evaluation(limit=35)
NOISE = {"std": 0.2, "clip": "none", "seed": 3}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The file of a data set of three classes, 6 x 6 pixels."""
    generator = np.random.default_rng(0)
    made = {}
    for part, n in (("train", 90), ("test", 40)):
        made |= {f"x_{part}": generator.integers(0, 256, (n, 6, 6), np.uint8), f"y_{part}": np.arange(n) % 3}
    path = tmp_path_factory.mktemp("own") / "own.npz"
    np.savez(path, **made)
    return str(path)


def subject(own, *layers):
    """A classifier of these data: these layers, then one Dense."""
    inputs = x = keras.Input((6, 6, 1))
    for layer in layers:
        x = layer(x)
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(x)))
    return from_model(model, data.dataset_info(own), {"weights": "test"}, dataset=own, validation=10)


def tracking(c, channels, seed=0, axis=-1, shape=(None, 6, 6)):
    """A built BN layer that has tracked random statistics."""
    generator = np.random.default_rng(seed)
    layer = L.BatchNormalization(epsilon=c, axis=axis)
    layer.build((None, 6, 6, 1) if axis == 1 else (*shape, channels))
    layer.moving_mean.assign(generator.normal(size=channels))
    layer.moving_variance.assign(generator.uniform(0.1, 2, size=channels))
    return layer


def pixels(own, perturbation=None):
    """The three batches of ten that are measured, [3, 10, 6, 6, 1]."""
    examples = data.load(own, "test", validation=10, limit=35)
    images = examples.images
    if perturbation is not None:
        images = noise.add_noise(images, examples.index, perturbation, examples.info)
    return pixel_array(images[:30], 6).reshape(3, 10, 6, 6, 1).astype(np.float64)


def distances(layer, inputs, axes):
    """(shift, scale) of `inputs` [batches, ...], of which `axes` are not channels."""
    mean, variance = (np.asarray(v, np.float64) for v in (layer.moving_mean, layer.moving_variance))
    return (
        mean_shift(inputs.mean(axes), mean, variance, layer.epsilon),
        log_std_ratio(inputs.var(axes), variance, layer.epsilon),
    )


def only(found):
    ((_, record),) = found
    return record


def measured(found, folder, evaluation=LIMIT, **options):
    """(record, shift [layers], scale [layers])."""
    options = {"batch_size": 10, **options}
    record = only(measure(found, {"x": validate(BatchStatistics, options, "x")}, evaluation, folder=folder))
    arrays = records.read_arrays(records.measurement_path(folder, record.measurement_id))
    assert arrays["shift"].dtype == arrays["scale"].dtype == np.float32
    return record, arrays["shift"], arrays["scale"]


# ---------------------------------------------------------------- one layer


def test_normalized_pixels_against_numpy(own, tmp_path):
    layer = tracking(1.0, 1)
    record, shifts, scales = measured(subject(own, layer), tmp_path)
    expected = distances(layer, pixels(own), (1, 2, 3))
    np.testing.assert_allclose([shifts[0], scales[0]], expected, rtol=1e-4)
    assert record.value == pytest.approx(expected[0], rel=1e-4)
    assert record.details == pytest.approx({"scale": expected[1], "layers": 1, "batches": 3}, rel=1e-4)
    assert (record.unit, record.n) == ("std", 30)  # whole batches alone


def test_a_known_distance_is_found(own, tmp_path):
    """The moments of the only batch were tracked but for half a standard deviation and a factor of e."""
    layer, x = tracking(0.1, 36, shape=(None,)), pixels(own)[0].reshape(10, 36)
    inputs = keras.Input((6, 6, 1))
    model = keras.Model(inputs, L.Dense(3)(layer(L.Flatten()(inputs))))
    variance = (x.var(0) + 0.1) * np.exp(2) - 0.1
    layer.moving_variance.assign(variance)
    layer.moving_mean.assign(x.mean(0) - 0.5 * np.sqrt(variance + 0.1))
    found = from_model(model, data.dataset_info(own), {"weights": "test"}, dataset=own, validation=10)
    record, _, _ = measured(found, tmp_path, Evaluation(limit=10))
    assert (record.value, record.details["scale"]) == pytest.approx((0.5, 1.0), rel=1e-4)


def test_convolutions_are_measured_over_batch_and_space(own, tmp_path):
    convolution, layer = L.Conv2D(4, 3, padding="same"), tracking(0.01, 4)
    found = subject(own, convolution, layer)
    inputs = np.stack([np.asarray(convolution(batch.astype(np.float32))) for batch in pixels(own)])
    _, shifts, scales = measured(found, tmp_path)
    np.testing.assert_allclose([shifts[0], scales[0]], distances(layer, inputs, (1, 2, 3)), rtol=1e-4)


def test_the_channels_are_where_the_layer_has_them(own, tmp_path):
    layer = tracking(0.01, 6, axis=1)
    _, shifts, scales = measured(subject(own, layer), tmp_path)
    np.testing.assert_allclose([shifts[0], scales[0]], distances(layer, pixels(own), (1, 3, 4)), rtol=1e-4)


def test_noise_is_added_to_the_images(own, tmp_path):
    c = 0.1
    layer = tracking(c, 1)
    clean = pixels(own)
    layer.moving_mean.assign([clean.mean()])
    layer.moving_variance.assign([clean.var()])
    record, _, scales = measured(subject(own, layer), tmp_path, perturbation=NOISE)
    options = validate(BatchStatistics, {"perturbation": NOISE}, "x").perturbation
    np.testing.assert_allclose(scales[0], distances(layer, pixels(own, options), (1, 2, 3))[1], rtol=1e-3)
    # 3600 values: the variance of the noise is added, and the mean stays.
    assert scales[0] == pytest.approx(0.5 * np.log1p(0.04 / (clean.var() + c)), abs=0.03)
    assert record.measurement["perturbation"]["std"] == 0.2
    assert record.measurement_id != measured(subject(own, layer), tmp_path)[0].measurement_id


def test_fewer_examples_than_a_batch_are_one(own, tmp_path):
    layer = tracking(0.01, 1)
    record, shifts, _ = measured(subject(own, layer), tmp_path, batch_size=500)
    x = pixel_array(data.load(own, "test", validation=10, limit=35).images, 6)[None].astype(np.float64)
    assert shifts[0] == pytest.approx(distances(layer, x, (1, 2, 3))[0], rel=1e-4)
    assert (record.n, record.details["batches"]) == (35, 1)


def test_batches_are_of_a_random_order_where_no_limit_makes_one(own, tmp_path):
    layer = tracking(0.01, 36, shape=(None,))
    inputs = keras.Input((6, 6, 1))
    model = keras.Model(inputs, L.Dense(3)(layer(L.Flatten()(inputs))))
    found = from_model(model, data.dataset_info(own), {"weights": "test"}, dataset=own, validation=10)
    examples = data.load(own, "test", validation=10, limit=40)
    assert not np.array_equal(examples.index, np.sort(examples.index))
    x = pixel_array(examples.images, 6).reshape(4, 10, 36).astype(np.float64)
    limited, _, _ = measured(found, tmp_path, Evaluation(limit=40))
    record, shifts, _ = measured(found, tmp_path, Evaluation())
    assert shifts[0] == pytest.approx(distances(layer, x, (1,))[0], rel=1e-4)
    assert (record.value, record.n) == (limited.value, 40)


# ---------------------------------------------------------------- several layers


def stacked():
    """Two layers: the first has tracked means that are off, the second what it gets where the first takes that out."""
    first, second = tracking(1e-3, 1), tracking(1e-3, 1, seed=1)
    first.moving_mean.assign([-1.0])
    second.moving_mean.assign([0.0])
    second.moving_variance.assign([1.0])
    return first, second


def test_with_tracked_statistics_a_shift_goes_on_into_the_next_layer(own, tmp_path):
    first, second = stacked()
    record, shifts, _ = measured(subject(own, first, second), tmp_path)
    x = pixels(own)
    after = (x + 1) / np.sqrt(np.asarray(first.moving_variance, np.float64) + 1e-3)
    np.testing.assert_allclose(
        shifts, [distances(first, x, (1, 2, 3))[0], distances(second, after, (1, 2, 3))[0]], rtol=1e-4
    )
    assert record.value == pytest.approx(shifts.mean())


def test_with_statistics_of_the_batch_each_layer_has_its_own_shift_alone(own, tmp_path):
    layers = stacked()
    tracked = measured(subject(own, *layers), tmp_path)[1]
    record, shifts, scales = measured(subject(own, *layers), tmp_path, Evaluation(limit=35, bn_statistics="batch"))
    assert shifts[0] == pytest.approx(tracked[0], rel=1e-5)
    np.testing.assert_allclose([shifts[1], scales[1]], 0, atol=1e-2)  # but for c
    assert record.measurement["bn_statistics"] == "batch"


def test_layers_of_a_model_in_a_model_are_found_and_left_as_they_were(own, tmp_path):
    layer = tracking(0.01, 1)
    inputs = keras.Input((6, 6, 1))
    inner = keras.Model(inputs, layer(inputs))
    found = subject(own, inner)
    before = [variable.numpy() for variable in found.model.variables]
    _, shifts, _ = measured(found, tmp_path)
    assert shifts[0] == pytest.approx(distances(layer, pixels(own), (1, 2, 3))[0], rel=1e-4)
    assert "call" not in vars(layer)
    assert all(np.array_equal(b, v) for b, v in zip(before, found.model.variables, strict=True))
    np.testing.assert_array_equal(measured(found, tmp_path)[1], shifts)


def test_numbers_that_are_not_finite_are_refused(own, tmp_path):
    layer = tracking(0.01, 1)
    layer.moving_mean.assign([np.nan])
    with pytest.raises(BnvulnError, match="not finite"):
        measured(subject(own, layer), tmp_path)


def test_noise_takes_a_trained_net_away_from_what_it_has_tracked(runs, tmp_path):
    found = classifier.from_run(runs["batch"])
    evaluation = Evaluation(limit=500)
    clean = measured(found, tmp_path, evaluation, batch_size=500)[0]
    noisy = measured(found, tmp_path, evaluation, batch_size=500, perturbation={"std": 0.3})[0]
    assert 0 < 1.3 * clean.value < noisy.value
    assert 0 < 1.3 * clean.details["scale"] < noisy.details["scale"]


# ---------------------------------------------------------------- without batch norm


def test_a_model_without_batch_norm_has_no_distance(own, tmp_path):
    log = MessageLog()
    found = subject(own)
    record = only(measure(found, {"x": BatchStatistics()}, LIMIT, folder=tmp_path, progress=log))
    assert (record.value, record.n, record.details) == (None, 0, {})
    path = records.measurement_path(tmp_path, record.measurement_id)
    assert records.read_measurement(path) == record
    assert {name: array.shape for name, array in records.read_arrays(path).items()} == {"shift": (0,), "scale": (0,)}
    assert log.lines == ["x: not applicable: the model has no batch norm"]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(an experiment that measures both arms, its results folder)."""
    fields = {
        "name": "small", "title": "t", "claim": "c", "source": "s",
        "base": {**SMALL, "arch": "linear", "train": {"epochs": 1, "batch_size": 50, "lr": 0.1}}, "seeds": [0],
        "grid": {"normalization": ["none", "batch"]},
        "evaluation": {"limit": 50},
        "perturbations": {"clean": {"kind": "clean"}},
        "measurements": {"away": {"kind": "batch_statistics", "batch_size": 50}},
        "table": {"columns": {"clean": "clean", "away": "shift", "away.scale": "scale"}},
    }  # fmt: skip
    made = validate(Experiment, fields, "small.yaml")
    root = tmp_path_factory.mktemp("results")
    runner.run(made, root)
    return made, root


def test_an_arm_without_it_shows_a_dash_and_is_finished(both):
    made, root = both
    assert all(task.finished(root) for task in runner.tasks(made))
    assert (made.columns["away"].unit, made.columns["away.scale"].unit) == ("std", "log ratio")
    results = aggregate.aggregate(made, root)
    none, batch, difference = tables.accuracy_table(results).rows
    assert none[-2:] == ["-", "-"]
    assert all(float(text) > 0 for text in batch[-2:])
    assert difference[-2:] == ["-", "-"]
    assert none[-3] != "-"


def test_one_that_was_not_measured_yet_is_missing_in_the_table(both, tmp_path):
    made, root = both
    shutil.copytree(root, tmp_path / "root")
    for path in (tmp_path / "root").glob("*/measurements/*.json"):
        path.unlink()
    results = aggregate.aggregate(made, tmp_path / "root")
    assert [row[-1] for row in tables.accuracy_table(results).rows] == ["- (1 not run)", "- (1 not run)", "-"]


@pytest.fixture
def suite(tmp_path):
    """The file of a suite that has this measurement."""
    path = tmp_path / "suite.yaml"
    path.write_text(
        "title: t\nevaluation: {limit: 40}\nperturbations: {clean: {kind: clean}}\n"
        "measurements: {away: {kind: batch_statistics, batch_size: 20}}\n"
    )
    return path


@pytest.mark.parametrize(("norm", "shown"), [(False, "not applicable"), (True, " std ")])
def test_an_external_model_is_measured_as_far_as_it_can_be(bnvuln, suite, tmp_path, norm, shown):
    layers = [L.Flatten(), *([L.BatchNormalization()] if norm else []), L.Dense(10)]
    model = keras.Sequential([keras.Input((28, 28, 1)), *layers])
    model.save(tmp_path / "external.keras")
    command = ["evaluate", tmp_path / "external.keras", "--suite", suite, "--runs", tmp_path / "runs", "-q"]
    command += ["--input-scale", "0-1"]
    code, out, _ = bnvuln(*command)
    assert code == 0
    assert shown in out
    code, out, _ = bnvuln(*command, "--json")
    (found,) = json.loads(out)["measurements"]
    assert (code, found["value"] is None, found["n"]) == (0, not norm, 40 if norm else 0)


# ---------------------------------------------------------------- config


@pytest.mark.parametrize(
    ("fields", "fragment"),
    [
        ({"batch_size": 0}, "batch_size: expected"),
        ({"perturbation": {"kind": "clean", "std": 1}}, "perturbation.kind: expected"),
    ],
)
def test_mistakes_are_explained(fields, fragment):
    with pytest.raises(ConfigError, match=fragment):
        validate(BatchStatistics, fields, "x")

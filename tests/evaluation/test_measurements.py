"""The mechanism: tilting angles and spectra against closed forms, and their records."""

import dataclasses

import numpy as np
import pytest
from helpers_attacks import keras
from helpers_runs import MessageLog

from bn_vuln import api, data, records
from bn_vuln.analysis import spectrum
from bn_vuln.config import Cell, Clean, Evaluation, EvaluationPlan, Spectrum, Tilt, digest, validate
from bn_vuln.data import toy
from bn_vuln.data.transforms import pixel_array
from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.evaluation import classifier
from bn_vuln.evaluation.classifier import from_model
from bn_vuln.evaluation.eval_set import training_examples
from bn_vuln.evaluation.evaluator import Evaluator
from bn_vuln.evaluation.measurements import base
from bn_vuln.evaluation.measurements import run as measurements
from bn_vuln.evaluation.measurements import spectrum as spectrum_measurement
from bn_vuln.evaluation.measurements.run import measure
from bn_vuln.experiments import runner
from bn_vuln.experiments.runner import Task
from bn_vuln.training import train

L = keras.layers
LIMIT, LIMIT_OWN = Evaluation(limit=60), Evaluation(limit=30)
LIMIT_OF_TOY = {"dataset": "toy", "split": "test", "limit": 60, "bn_statistics": "tracked"}
TILT, SPECTRUM = {"tilt": Tilt()}, {"spectrum": Spectrum()}


def of_plane(outputs, inputs):
    """The classifier of the plane with these Keras tensors."""
    return from_model(keras.Model(inputs, outputs), toy.INFO, {"weights": "test"})


def linear(kernel, bias=None, *, info=toy.INFO, dataset=None, identity=None, before=()):
    """A linear classifier of these weights [d, classes], behind the layers `before`."""
    inputs = keras.Input(info.shape)
    x = L.Flatten()(inputs)
    for layer in before:
        x = layer(x)
    dense = L.Dense(np.shape(kernel)[1])
    model = keras.Model(inputs, dense(x))
    dense.set_weights([np.asarray(kernel), np.zeros(np.shape(kernel)[1]) if bias is None else np.asarray(bias)])
    validation = 5000 if dataset is None else 10
    return from_model(model, info, identity or {"weights": "test"}, dataset=dataset, validation=validation)


def only(found):
    """The record of the only measurement."""
    ((_, record),) = found
    return record


def arrays(folder, record):
    return records.read_arrays(records.measurement_path(folder, record.measurement_id))


def difference():
    """The difference of the toy's class means, as published: class 0 minus class 1."""
    examples = data.load_whole_training_set(validate(Cell, {"data": "toy"}, "test").data)
    points = examples.images.reshape(-1, 2).astype(np.float64)
    return points[examples.labels == 0].mean(axis=0) - points[examples.labels == 1].mean(axis=0)


def turned(vector, degrees):
    a = np.radians(degrees)
    return np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) @ vector


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The file of a data set of three classes, 6 x 6 pixels, its pixels correlated."""
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(36, 36)) * np.geomspace(1, 0.01, 36)
    made = {}
    for part, n in (("train", 90), ("test", 40)):
        x = generator.normal(size=(n, 36)) @ mixing.T
        made |= {f"x_{part}": np.clip(128 + 12 * x, 0, 255).astype(np.uint8).reshape(n, 6, 6)}
        made |= {f"y_{part}": np.arange(n) % 3}
    path = tmp_path_factory.mktemp("own") / "own.npz"
    np.savez(path, **made)
    return str(path)


@pytest.fixture(scope="module")
def linear_own(own):
    """(a linear classifier of these data that was trained on 50 of them, its kernel [36, 3])."""
    kernel = np.random.default_rng(1).normal(size=(36, 3))
    info = data.dataset_info(own)
    identity = {"data": {"limit": 50}, "train": {"batch_size": 10}}
    return linear(kernel, info=info, dataset=own, identity=identity), kernel


# ---------------------------------------------------------------- tilt


@pytest.mark.parametrize(
    ("name", "classes", "width"),
    [("toy", None, 1), ("mnist", (7, 3, 1), 40)],
)
def test_the_nearest_centroid_is_not_tilted(tmp_path, name, classes, width):
    fields = {"data": {"name": name, "classes": classes, "width": width}, "arch": "nearest_centroid"}
    train(validate(Cell, fields, "test"), tmp_path)
    record = only(measure(classifier.from_run(tmp_path), TILT, LIMIT, folder=tmp_path))
    found = arrays(tmp_path, record)["angles"]
    assert (record.n, record.unit, found.dtype, found.shape) == (60, "deg", np.float32, (60,))
    np.testing.assert_allclose(found, 0, rtol=0, atol=1e-3)
    assert record.value == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("degrees", [1e-3, 135])
def test_the_tilt_of_known_weights_is_their_angle(tmp_path, degrees):
    w = turned(difference(), degrees)
    subject = linear(np.stack([w, -0.3 * w], axis=1), [0.5, -1.0])
    record = only(measure(subject, TILT, LIMIT, folder=tmp_path))
    found = arrays(tmp_path, record)
    np.testing.assert_allclose(found["angles"], degrees, rtol=0, atol=1e-4)
    assert record.value == pytest.approx(degrees, abs=1e-5)
    assert record.details.keys() == {"quartile_1", "median", "quartile_3"}
    assert list(record.details.values()) == pytest.approx([degrees] * 3, abs=1e-4)
    # For figures: the margin of class 0 at x is w x + b.
    np.testing.assert_allclose(found["weights"], 1.3 * w, rtol=1e-6)
    assert found["bias"] == pytest.approx(1.5)
    test = data.load("toy", "test", limit=60)
    np.testing.assert_array_equal(found["points"], test.images.reshape(-1, 2))
    np.testing.assert_array_equal(found["labels"], test.labels)
    assert found.keys() == {"angles", "points", "labels", "weights", "bias"}


def test_the_tilt_behind_batch_norm_is_that_of_the_effective_weights(tmp_path):
    layer = L.BatchNormalization(epsilon=0.1)
    kernel = np.random.default_rng(0).normal(size=(2, 2))
    subject = linear(kernel, before=[layer])
    layer.set_weights([np.array(v) for v in ([2.0, 0.5], [1.0, -1.0], [0.3, 0.4], [25.0, 0.01])])
    record = only(measure(subject, TILT, LIMIT, folder=tmp_path))
    w = (kernel[:, 0] - kernel[:, 1]) * np.array([2.0, 0.5]) / np.sqrt([25.1, 0.11])
    d = difference()
    expected = np.degrees(np.arccos(w @ d / np.linalg.norm(w) / np.linalg.norm(d)))
    assert record.value == pytest.approx(expected, abs=1e-3)
    found = arrays(tmp_path, record)
    np.testing.assert_allclose(found["weights"], w, rtol=1e-5)
    np.testing.assert_allclose(found["mean"], [0.3, 0.4], rtol=1e-6)
    np.testing.assert_allclose(found["scale"], np.sqrt([25.1, 0.11]), rtol=1e-6)


@pytest.mark.parametrize("activation", ["relu", "sqrt"])
def test_examples_without_a_usable_gradient_are_left_out(tmp_path, activation):
    """Left of the y axis the gradient is zero (relu), or 0 times infinity (the square root of relu)."""
    inputs = keras.Input((1, 1, 2))
    x = keras.ops.relu(L.Flatten()(inputs)[:, :1])
    h = x if activation == "relu" else keras.ops.sqrt(x)
    record = only(measure(of_plane(L.Concatenate()([-h, h]), inputs), TILT, LIMIT, folder=tmp_path))
    test = data.load("toy", "test", limit=60)
    right = test.images[:, 0, 0, 0] > 0
    found = arrays(tmp_path, record)["angles"]
    np.testing.assert_array_equal(np.isfinite(found), right)
    assert record.n == right.sum() < 60
    d = -difference()
    assert record.value == pytest.approx(np.degrees(np.arctan2(abs(d[1]), d[0])), abs=1e-4)


@pytest.mark.parametrize(("options", "number"), [(Tilt(), np.nan), (Spectrum(), 0.0)])
def test_constant_logits_have_no_direction(options, number):
    with pytest.raises(BnvulnError, match="no example has a finite gradient"):
        list(measure(linear(np.full((2, 2), number)), {"x": options}, LIMIT))


@pytest.mark.parametrize("options", [Tilt(), Spectrum()])
def test_logits_without_a_gradient_have_no_direction(options):
    inputs = keras.Input((1, 1, 2))
    whole = of_plane(L.Flatten()(keras.ops.cast(keras.ops.cast(inputs, "int32"), "float32")), inputs)
    with pytest.raises(BnvulnError, match="no example has a finite gradient"):
        list(measure(whole, {"x": options}, LIMIT))


# ---------------------------------------------------------------- gradients


def test_the_gradient_of_the_margin_is_against_the_strongest_other_class(linear_own, monkeypatch):
    subject, kernel = linear_own
    monkeypatch.setattr(base, "BATCH_SIZE", 7)
    test = data.load(subject.dataset, "test", validation=10)
    x = pixel_array(test.images, 6)
    logits = x.reshape(40, -1) @ kernel
    logits[np.arange(40), test.labels] = -np.inf
    found, rivals = base.margin_gradients(subject, x, test.labels)
    np.testing.assert_array_equal(rivals, logits.argmax(axis=1))
    assert len(set(rivals.tolist())) > 1
    np.testing.assert_allclose(found, (kernel[:, test.labels] - kernel[:, rivals]).T, rtol=0, atol=1e-5)


def test_jacobians_of_a_linear_model_are_its_centred_weights(linear_own, monkeypatch):
    subject, kernel = linear_own
    monkeypatch.setattr(spectrum_measurement, "BATCH_SIZE", 7)
    x = np.random.default_rng(0).uniform(size=(15, 6, 6, 1)).astype(np.float32)
    found = spectrum_measurement.jacobians(subject, x)
    expected = (kernel - kernel.mean(axis=1, keepdims=True)).T
    assert found.shape == (15, 3, 36)
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), rtol=0, atol=1e-5)


def test_jacobians_of_a_net_are_centred_and_in_inference_mode(runs):
    subject = classifier.from_run(runs["batch"])
    before = [v.numpy() for v in subject.model.variables]
    x = pixel_array(data.load("mnist", "test", limit=20).images, 28)
    found = spectrum_measurement.jacobians(subject, x)
    np.testing.assert_allclose(found.sum(axis=1), 0, rtol=0, atol=1e-5 * np.abs(found).max())
    alone = spectrum_measurement.jacobians(subject, x[:1])
    np.testing.assert_allclose(found[:1], alone, rtol=0, atol=1e-5 * np.abs(found).max())
    # The differences of two rows are the gradients of margins.
    labels = np.arange(20, dtype=np.int32) % 10
    gradients, rivals = base.margin_gradients(subject, x, labels)
    rows = np.arange(20)
    np.testing.assert_allclose(
        found[rows, labels] - found[rows, rivals], gradients, rtol=0, atol=1e-5 * np.abs(found).max()
    )
    assert all(np.array_equal(b, v) for b, v in zip(before, subject.model.variables, strict=True))


# ---------------------------------------------------------------- spectrum


def test_the_spectrum_of_a_linear_model_is_that_of_its_weights(linear_own, tmp_path):
    (subject, kernel), share = linear_own, 0.3
    record = only(measure(subject, {"x": Spectrum(low_variance=share)}, LIMIT_OWN, folder=tmp_path))
    trained = data.load(subject.dataset, "train", validation=10, limit=50)
    variance, directions = spectrum.principal_components(trained.images)
    test = data.load(subject.dataset, "test", validation=10, limit=30)
    _, rivals = base.margin_gradients(subject, pixel_array(test.images, 6), test.labels)
    w = (kernel[:, test.labels] - kernel[:, rivals]).T
    energy = spectrum.energy(w, directions)
    gain = np.linalg.norm((kernel - kernel.mean(axis=1, keepdims=True)).T @ directions, axis=0)
    found = arrays(tmp_path, record)
    np.testing.assert_allclose(found["variance"], variance, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(found["energy"], energy, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(found["gain"], gain, rtol=1e-5)
    assert found["energy"].sum() == pytest.approx(1)
    trailing = np.cumsum(variance[::-1])[::-1] <= share * variance.sum()
    assert 0 < trailing.sum() < 36
    assert record.value == pytest.approx(energy[trailing].sum(), rel=1e-4)
    assert (record.unit, record.n) == ("%", 30)
    assert record.details == {"components": 36.0, "largest_gain": pytest.approx(gain.max(), rel=1e-5)}


def test_the_spectrum_of_a_wide_model_is_in_its_own_pixels(own, tmp_path):
    info = data.dataset_info(own)
    inputs = keras.Input((9, 9, 1))
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(inputs)))
    subject = from_model(model, info, {"weights": "test"}, dataset=own, validation=10)
    record = only(measure(subject, SPECTRUM, LIMIT_OWN, folder=tmp_path))
    images, _ = training_examples(subject)
    variance, _ = spectrum.principal_components(pixel_array(images.images, 9))
    np.testing.assert_allclose(arrays(tmp_path, record)["variance"], variance, rtol=1e-9, atol=1e-15)
    assert record.details["components"] == 81


# ---------------------------------------------------------------- records


@pytest.fixture
def measured(tmp_path):
    """(the folder of a measured classifier, name -> record)."""
    subject = linear(np.eye(2))
    return tmp_path, dict(measure(subject, {**TILT, **SPECTRUM}, LIMIT, folder=tmp_path))


def test_what_is_written_is_read_back(measured):
    folder, found = measured
    assert list(found) == ["tilt", "spectrum"]
    assert sorted(path.name for path in (folder / "measurements").iterdir()) == (
        sorted(f"{record.measurement_id}.{suffix}" for record in found.values() for suffix in ("json", "npz"))
    )
    for name, record in found.items():
        path = records.measurement_path(folder, record.measurement_id)
        assert records.read_measurement(path) == record
        assert record.measurement["kind"] == name
        assert record.measurement_id == digest(record.measurement)
        assert record.cell == {"weights": "test"}
        assert record.cell_id == digest(record.cell)
        assert record.versions.keys() == {"bnvuln", "python", "tensorflow", "keras", "numpy"}
    assert arrays(folder, found["spectrum"]).keys() == {"variance", "gain", "energy"}


def test_a_measurement_identifies_what_was_measured(measured):
    _, found = measured
    assert found["tilt"].measurement == {**LIMIT_OF_TOY, "kind": "tilt"}
    assert found["spectrum"].measurement == {**LIMIT_OF_TOY, "kind": "spectrum", "low_variance": 0.01}


def test_the_id_depends_on_the_evaluation_and_the_options(measured):
    folder, found = measured
    known = {r.measurement_id for r in found.values()}
    for evaluation, options, same in (
        (Evaluation(limit=61), Tilt(), False),
        (Evaluation(limit=60, split="validation"), Tilt(), False),
        (LIMIT, Spectrum(), True),
        (LIMIT, Spectrum(low_variance=0.02), False),
    ):
        record = only(measure(linear(np.eye(2)), {"another name": options}, evaluation, folder=folder))
        assert (record.measurement_id in known) == same
        assert records.measurement_path(folder, record.measurement_id).exists()


def test_nothing_is_written_without_a_folder_and_nothing_done_without_measurements(tmp_path, monkeypatch):
    log = MessageLog()
    found = only(measure(linear(np.eye(2)), {"name": Tilt()}, LIMIT, progress=log))
    assert log.lines == [f"name: {found.value:.4g} deg"]
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(measurements, "load", None)
    assert list(measure(linear(np.eye(2)), {})) == []


def test_damaged_files_are_named(measured):
    folder, found = measured
    path = records.measurement_path(folder, found["tilt"].measurement_id)
    text, packed = path.read_text(), path.with_suffix(".npz")
    for damaged in (text[:-20], text.replace('"schema_version": 1', '"schema_version": 2')):
        path.write_text(damaged)
        with pytest.raises(BnvulnError, match=f"^{path}: not "):
            records.read_measurement(path)
    packed.write_bytes(packed.read_bytes()[:40])
    with pytest.raises(BnvulnError, match=f"^{packed}: not "):
        records.read_arrays(path)
    packed.unlink()
    with pytest.raises(BnvulnError, match=f"^{packed}: not "):
        records.read_arrays(path)


# ---------------------------------------------------------------- in an experiment


def task(**changes):
    cell = validate(Cell, {"data": "toy", "arch": "nearest_centroid"}, "test")
    fields = {"perturbations": {"clean": Clean()}, "measurements": {**TILT, **SPECTRUM}, **changes}
    return Task(cell, (EvaluationPlan(LIMIT, **fields),))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A results folder in which the task is finished."""
    root = tmp_path_factory.mktemp("results")
    runner.run_task(task(), root)
    return root


def no_work(*_, **__):
    raise AssertionError("done again")


def test_a_task_is_finished_with_its_measurements(finished, tmp_path):
    assert not task().finished(tmp_path)
    (plan,) = task().missing(tmp_path)
    assert (set(plan.perturbations), set(plan.measurements)) == ({"clean"}, {"tilt", "spectrum"})
    assert task().finished(finished)
    assert task().missing(finished) == []
    folder = task().folder(finished)
    written = {path.stem for kind in ("records", "measurements") for path in (folder / kind).glob("*.json")}
    assert written == task().ids()
    assert len(written) == 3


def test_a_lost_measurement_is_made_again_alone(finished, monkeypatch):
    folder = task().folder(finished)
    lost = records.measurement_path(folder, digest({**LIMIT_OF_TOY, "kind": "tilt"}))
    value = records.read_measurement(lost).value
    lost.unlink()
    assert [(list(s.perturbations), list(s.measurements)) for s in task().missing(finished)] == [([], ["tilt"])]
    assert not task().finished(finished)
    monkeypatch.setattr("bn_vuln.training.train", no_work)
    monkeypatch.setattr(spectrum_measurement, "measure", no_work)
    runner.run_task(task(), finished)
    assert records.read_measurement(lost).value == value


def test_clearing_a_run_removes_its_measurements(measured):
    folder, _ = measured
    records.clear_run(folder)
    assert list((folder / "measurements").iterdir()) == []


# ---------------------------------------------------------------- the examples and statistics behind a record


def test_the_statistics_of_the_record_are_those_that_were_measured():
    subject = linear(np.random.default_rng(0).normal(size=(2, 2)), before=[L.BatchNormalization(epsilon=0.1)])
    again = Evaluation(limit=60, bn_statistics="reestimated")
    expected = only(measure(Evaluator(subject, again).eval_set.classifier, TILT, LIMIT)).value
    assert abs(expected - only(measure(subject, TILT, LIMIT)).value) > 1  # the tracked variances are still 1
    found = only(measure(subject, TILT, again))
    assert found.measurement["bn_statistics"] == "reestimated"
    assert found.value == pytest.approx(expected, abs=1e-3)


def test_a_path_is_not_part_of_the_id(linear_own):
    subject, _ = linear_own
    record = only(measure(subject, TILT, Evaluation(dataset=subject.dataset, limit=30)))
    assert record.measurement["dataset"] == data.canonical_name(subject.dataset)


def test_the_spectrum_counts_the_examples_it_is_from():
    inputs = keras.Input((1, 1, 2))
    h = keras.ops.relu(L.Flatten()(inputs)[:, :1])
    record = only(measure(of_plane(L.Concatenate()([-h, h]), inputs), SPECTRUM, LIMIT))
    test = data.load("toy", "test", limit=60)
    assert record.n == (test.images[:, 0, 0, 0] > 0).sum()


# ---------------------------------------------------------------- external models


def test_tilt_of_an_external_model_in_its_own_order_of_classes_and_at_its_size():
    """Gray images of 8 x 4, cropped to 4 x 4 and repeated for three channels; text labels, two of three classes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 8, 4), np.uint8)
    names = np.array(["ant", "cow"])[np.arange(50) % 2]
    images[names == "cow"] //= 2
    kernel = rng.normal(size=(48, 3)).astype(np.float32)
    kernel[:, 1] = 0
    bias = np.array([0, -1e3, 0], np.float32)  # the class without images is never the strongest other one
    model = keras.Sequential([keras.Input((4, 4, 3)), L.Flatten(), L.Dense(3)])
    model.set_weights([kernel, bias])
    classes = ["cow", "bee", "ant"]
    found = api.measure(
        model, images, names, suite={"tilt": {"kind": "tilt"}}, input_scale="0-1", gray_to_rgb=True, class_names=classes
    )
    trained = data.load(data.register(images, names), "train", validation=0)
    pixels = np.repeat(trained.images[:, 2:6].astype(np.float64) / 255, 3, axis=-1).reshape(len(trained), 48)
    towards = pixels[trained.labels == 1].mean(0) - pixels[trained.labels == 0].mean(0)  # from ants to cows
    gradient = kernel[:, 0].astype(np.float64) - kernel[:, 2]
    cosine = gradient @ towards / np.linalg.norm(gradient) / np.linalg.norm(towards)
    assert found["tilt"].value == pytest.approx(np.degrees(np.arccos(cosine)), abs=1e-3)
    assert found["tilt"].n == 50


def test_tilt_needs_training_images_of_both_classes(tmp_path):
    kernel = np.eye(4, 3, dtype=np.float32)
    model = keras.Sequential([keras.Input((2, 2, 1)), L.Flatten(), L.Dense(3)])
    model.set_weights([kernel, np.array([0, 0, 1e3], np.float32)])  # the third class is always the strongest other one
    images = np.random.default_rng(0).integers(0, 256, (20, 2, 2), np.uint8)
    with pytest.raises(BnvulnError, match="no example has training images of its class and of the strongest other"):
        api.measure(model, images, np.arange(20) % 2, suite={"tilt": {"kind": "tilt"}}, input_scale="0-1")


def test_a_spectrum_of_photos_is_refused_before_anything_is_measured():
    subject = dataclasses.replace(linear(np.eye(2)), size=(224, 224), external=True)
    with pytest.raises(UsageError, match=r"up to 10,000 numbers, those of this model have 100,352 \(224x224x2\)"):
        measurements.check(subject, SPECTRUM, Evaluation())
    measurements.check(subject, TILT, Evaluation())

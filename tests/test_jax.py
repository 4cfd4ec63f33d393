"""Keras on JAX, in a process without TensorFlow: the same training, models, attacks and data as on TensorFlow."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import helpers_backends
import helpers_data
import numpy as np
import pytest

from bn_vuln import config, data, models, training
from bn_vuln.auditing.findings import Findings
from bn_vuln.config import Cell
from bn_vuln.data.mnist import INFO as MNIST
from bn_vuln.errors import UsageError
from bn_vuln.external.loading import load_keras
from bn_vuln.runtime import backend

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
import cifar10_arrays

RNG = np.random.default_rng(0)
CIFAR = [(RNG.integers(0, 256, (n, 32, 32, 3), np.uint8), RNG.integers(0, 10, n).astype(np.uint8)) for n in (25, 40)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data folder with a small cifar10, prepared by TFDS."""
    files = {"cifar10": helpers_data.cifar10_files(*CIFAR)}
    with helpers_data.prepared(tmp_path_factory.mktemp("data"), files) as folder:
        yield folder


def computed_on_jax(folder, *what):
    """What a process with JAX computes, see `helpers_backends`."""
    if importlib.util.find_spec("jax") is None:
        pytest.skip("JAX is not installed")
    paths = [str(Path(helpers_backends.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, helpers_backends.__file__, str(folder), *what],
        env={**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": os.pathsep.join(paths)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return dict(np.load(folder / "jax.npz"))


@pytest.fixture(scope="module")
def results(prepared, runs, tmp_path_factory):
    """What TensorFlow computes, what JAX does, and the folder of JAX, with the model that it trained: own.keras."""
    folders = [tmp_path_factory.mktemp(name) for name in ("tensorflow", "jax")]
    for folder in folders:
        shutil.copyfile(runs["batch"] / "model.keras", folder / "other.keras")
    found = computed_on_jax(folders[1])
    return helpers_backends.compute(folders[0]), found, folders[1]


def close(a, b, tolerance):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", helpers_backends.TRAININGS)
def test_twenty_steps_from_the_same_weights_are_the_same(results, name):
    on_tensorflow, on_jax, _ = results
    keys = [key for key in on_tensorflow if key.startswith(f"weights.{name}.")]
    assert len(keys) >= 4
    for key in keys:
        close(on_jax[key], on_tensorflow[key], 1e-4)


def test_a_model_has_the_same_logits_wherever_it_was_saved(results):
    on_tensorflow, on_jax, folder = results
    close(on_jax["logits"], on_tensorflow["logits"], 1e-5)
    own = load_keras(folder / "own.keras")
    close(np.asarray(own(helpers_backends.pixels())), on_jax["own_logits"], 1e-5)


def test_attacks_from_the_same_starts_have_the_same_outcomes(results):
    on_tensorflow, on_jax, _ = results
    assert 0.2 < on_tensorflow["adversarial"].mean() < 0.9
    assert np.mean(on_tensorflow["adversarial"] != on_jax["adversarial"]) <= 0.001


def test_the_protocol_on_jax(results):
    """The derivatives of x -> (sum of w x^3, sum of x^2) at 1, 2, 3, before and after w is assigned."""
    found = results[1]
    np.testing.assert_array_equal(found["gradients"], [[3, 12, 27], [6, 24, 54]])
    np.testing.assert_array_equal(found["jacobian"], [[[3, 12, 27], [2, 4, 6]]])
    np.testing.assert_array_equal(found["gathered"], [[[3], [1]], [[4], [4]]])
    assert found["counted"] == 2  # what a compiled function assigns is assigned
    assert list(found["tracing"]) == [False, True]


def test_prepared_data_are_read_without_tensorflow(results):
    on_tensorflow, on_jax, _ = results
    assert on_jax["images"].shape == (25, 32, 32, 3)
    np.testing.assert_array_equal(on_jax["images"], on_tensorflow["images"])
    np.testing.assert_array_equal(on_jax["labels"], on_tensorflow["labels"])


@pytest.mark.slow
def test_an_audit_without_tensorflow(runs, tmp_path):
    shutil.copyfile(runs["batch"] / "model.keras", tmp_path / "other.keras")
    found = Findings.model_validate_json(str(computed_on_jax(tmp_path, "audit")["audit"]))
    (model,) = found.models
    assert "tensorflow" not in found.versions
    assert [layer.kind for layer in model.layers] == ["batch"] * len(model.layers) != []
    assert all(layer.amplification and layer.statistics_distance is not None for layer in model.layers)
    assert model.strong.n == found.n_reporting == 10
    assert 1 <= len(model.finalists) <= 3
    assert all(one.strong.before == model.strong.accuracy.value for one in model.finalists)
    assert model.advice


def test_records_name_the_backend(results):
    record = json.loads(str(results[1]["record"]))
    assert {"jax", "keras", "numpy"} <= set(record["versions"])
    assert "tensorflow" not in record["versions"]
    assert record["device"].startswith("CPU ")


# ---------------------------------------------------------------- data as arrays, on either backend


def test_arrays_are_the_data_set_that_tfds_prepares(prepared, tmp_path, monkeypatch):
    published = {f"{kind}_{split}": array for split, pair in zip(("train", "test"), CIFAR, strict=True)
                 for kind, array in zip("xy", pair, strict=True)}  # fmt: skip
    cifar10_arrays.write(published, tmp_path)
    expected = {split: data.load("cifar10", split, validation=0) for split in ("train", "test")}
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for split, examples in expected.items():
        found = data.load("cifar10", split, validation=0)
        np.testing.assert_array_equal(found.images, examples.images)
        np.testing.assert_array_equal(found.labels, examples.labels)
        assert found.info == examples.info
    assert data.describe_dataset("cifar10")["state"] == "prepared"


# ---------------------------------------------------------------- initial values by NumPy


def test_initial_kernels_drawn_by_numpy_have_the_variance_of_the_scheme():
    he, torch = (
        models.build(Cell(arch="mlp", init=init, init_generator="numpy", seed=3), MNIST).get_layer("dense_0")
        for init in ("he", "torch")
    )
    kernel = np.asarray(he.kernel)
    assert kernel.std() == pytest.approx(np.sqrt(2 / 784), rel=0.01)
    assert abs(kernel.mean()) < 4 * kernel.std() / np.sqrt(kernel.size)
    kernel, bias = np.asarray(torch.kernel), np.asarray(torch.bias)
    for values in (kernel, bias):
        assert np.abs(values).max() <= 1 / 28
    assert kernel.std() == pytest.approx(np.sqrt(1 / (3 * 784)), rel=0.01)


def test_initial_values_depend_on_the_seed_alone():
    def kernels(**fields):
        cell = config.validate(Cell, {"arch": "mlp", "init_generator": "numpy", **fields}, "cell")
        model = models.build(cell, MNIST)
        return [np.asarray(layer.kernel) for layer in model.layers if hasattr(layer, "kernel")]

    first, again, other = kernels(seed=1), kernels(seed=1, normalization="batch"), kernels(seed=2)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert not any((a == b).all() for a, b in zip(first, other, strict=True))


def test_what_draws_initial_values_is_part_of_the_id_but_at_its_default(monkeypatch):
    cell, numpy = Cell(arch="mlp"), Cell(arch="mlp", init_generator="numpy")
    assert "init_generator" not in config.identity_of(cell)
    assert config.identity_of(numpy) == {**config.identity_of(cell), "init_generator": "numpy"}
    assert training.settled(cell) == cell
    monkeypatch.setattr(backend, "name", lambda: "jax")
    assert training.settled(cell) == numpy
    centroid = Cell(arch="nearest_centroid")  # which draws nothing
    assert training.settled(centroid) == centroid


def test_another_backend_is_refused(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    with pytest.raises(UsageError, match="KERAS_BACKEND: expected tensorflow or jax, received 'torch'"):
        backend.name()

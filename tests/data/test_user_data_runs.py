"""Runs on one's own data: moved, changed, too small for a suite, and measured on other data."""

import json
import shutil

import numpy as np
import pytest

from bn_vuln import records
from bn_vuln.records import read_cell

OPTIONS = ["--arch", "linear", "--epochs", "4", "--batch-size", "20", "--lr", "0.1", "--validation", "30"]


def write(path, seed=0, *, size=12, channels=1):
    """200 + 60 images in two classes, that differ in the brightness of the upper half."""
    generator = np.random.default_rng(seed)
    x, y = generator.integers(0, 100, (260, size, size, channels), np.uint8), np.arange(260) % 2
    x[y == 1, : size // 2] += 100
    np.savez(path, x_train=x[:200], y_train=y[:200], x_test=x[200:], y_test=y[200:])
    return path


@pytest.fixture
def run(bnvuln, tmp_path):
    """(data, run folder) of a linear model trained on one's own data."""
    path = write(tmp_path / "mine.npz")
    code, _, err = bnvuln("train", "--data", path, *OPTIONS, "--out", tmp_path / "run")
    assert code == 0, err
    assert records.read_training(tmp_path / "run").validation_accuracy > 0.9
    return path, tmp_path / "run"


def test_a_run_whose_data_moved_is_measured_where_they_are_now(bnvuln, run, tmp_path):
    path, folder = run
    before = json.loads(bnvuln("attack", folder, "--eps", "0.2", "--json")[1])["records"]
    moved = shutil.move(path, tmp_path / "moved.npz")
    code, _, err = bnvuln("attack", folder, "--eps", "0.2")
    assert code == 2
    assert "no such file" in err
    assert "--data" in err
    after = json.loads(bnvuln("attack", folder, "--eps", "0.2", "--json", "--data", moved)[1])["records"]
    assert [r["perturbation_id"] for r in after] == [r["perturbation_id"] for r in before]
    assert [r["correct"] for r in after] == [r["correct"] for r in before]
    assert all("mine" not in json.dumps(r) and "/" not in json.dumps(r["perturbation"]) for r in after)


def test_the_same_data_elsewhere_are_the_same_run(bnvuln, run, tmp_path):
    path, folder = run
    copy = shutil.copy(path, tmp_path / "copy.npz")
    code, _, err = bnvuln("train", "--data", copy, *OPTIONS, "--out", folder)
    assert code == 0
    assert "is finished already" in err
    assert read_cell(folder).data.name == str(path)


def test_data_that_changed_since_are_refused_unless_named(bnvuln, run):
    path, folder = run
    write(path, seed=1)
    code, _, err = bnvuln("attack", folder)
    assert code == 2
    assert "has changed since this was trained on it" in err
    assert bnvuln("attack", folder, "--data", path)[0] == 0


def test_the_limit_of_a_suite_is_no_demand(bnvuln, run):
    _, folder = run
    code, out, err = bnvuln("evaluate", folder, "--suite", "quick", "--json")
    assert code == 0, err
    found = json.loads(out)["records"]
    assert {r["n"] for r in found} == {60}
    assert {r["perturbation"]["limit"] for r in found} == {None}
    code, _, err = bnvuln("evaluate", folder, "--suite", "quick", "--limit", "1000")
    assert code == 2
    assert "60 examples" in err


@pytest.mark.parametrize(
    ("options", "fragments"),
    [({"channels": 3}, ["1 channels", "received 3"]), ({"size": 20}, ["can be enlarged, not reduced", ">= 20"])],
    ids=["channels", "size"],
)
def test_data_that_the_model_cannot_take_are_refused(bnvuln, run, tmp_path, options, fragments):
    other = write(tmp_path / "other.npz", **options)
    code, _, err = bnvuln("attack", run[1], "--data", other)
    assert code == 2
    for fragment in fragments:
        assert fragment in err

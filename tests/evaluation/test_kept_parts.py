"""Evaluations of many images that are killed go on at the part where they stopped, with the same records."""

from __future__ import annotations

import numpy as np
import pytest

from bn_vuln import config, data, records
from bn_vuln.config import Evaluation
from bn_vuln.evaluation import classifier as classifiers
from bn_vuln.evaluation import eval_set, evaluator
from bn_vuln.evaluation.kept_parts import PARTS, KeptParts
from bn_vuln.runtime import backend

N, SIZE = 10, (12, 12)


@pytest.fixture
def folder_of_images(tmp_path):
    from PIL import Image

    generator = np.random.default_rng(0)
    for i in range(N):
        place = tmp_path / "photos" / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        height, width = 12 + i % 3, 12 + i % 2  # several sizes, so they stay in their files
        Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8)).save(place / f"{i}.png")
    return f"folder:{tmp_path / 'photos'}"


@pytest.fixture
def model(folder_of_images):
    backend.start()
    import keras

    keras.utils.set_random_seed(0)
    inputs = keras.Input((*SIZE, 3))
    hidden = keras.layers.Dense(8, "relu")(keras.layers.Flatten()(inputs))
    net = keras.Model(inputs, keras.layers.Dense(2)(hidden))
    options = config.validate(config.ExternalModel, {"input_scale": "0-1", "output": "logits"}, "model")
    return classifiers.from_external(net, options, folder_of_images, "all")


PERTURBATIONS = {
    "clean": config.Clean(),
    "awgn": config.AWGN(std=0.1),
    "pgd": config.validate(config.Attack, {"eps": "4/255", "steps": 5, "eps_grid": ["1/255", "2/255"]}, "attack"),
    "last": config.validate(config.Attack, {"attack": "bim", "eps": "4/255", "steps": 3, "keep": "last"}, "attack"),
}


def measure(model, name, folder):
    evaluation = Evaluation(dataset=name, split="all")
    return dict(evaluator.measure(model, PERTURBATIONS, evaluation, folder=folder, batch_size=2))


def of(results):
    fields = {}
    for title, result in results.items():
        plain = result.record.model_dump(exclude={"seconds"})
        fields[title] = (plain, result.correct.tolist())
    return fields


@pytest.mark.parametrize("part", [0, 1, 4])
@pytest.mark.parametrize("killed_in", ["clean", "awgn", "pgd", "last"])
def test_a_killed_evaluation_goes_on_at_its_part(monkeypatch, tmp_path, model, folder_of_images, killed_in, part):
    monkeypatch.setattr(eval_set, "LAZY_BYTES", 2 * 4 * 3 * SIZE[0] * SIZE[1])  # two images at once
    whole = of(measure(model, folder_of_images, tmp_path / "whole" / model.id))

    folder = tmp_path / "killed" / model.id
    original, calls = evaluator.Evaluator._measure_part, []

    def killed(self, own, positions, perturbation, *more):
        calls.append(perturbation)
        if perturbation == PERTURBATIONS[killed_in] and calls.count(perturbation) == part + 1:
            raise KeyboardInterrupt
        return original(self, own, positions, perturbation, *more)

    monkeypatch.setattr(evaluator.Evaluator, "_measure_part", killed)
    with pytest.raises(KeyboardInterrupt):
        measure(model, folder_of_images, folder)
    assert len(list((folder / PARTS).glob("*/*.npz"))) == 5 + part  # the clean predictions, and what was finished

    done = []
    monkeypatch.setattr(evaluator.Evaluator, "_measure_part", lambda self, *a: done.append(a[2]) or original(self, *a))
    evaluation = Evaluation(dataset=folder_of_images, split="all")
    names = list(PERTURBATIONS)
    rest = {name: PERTURBATIONS[name] for name in names[names.index(killed_in) :]}
    resumed = dict(evaluator.measure(model, rest, evaluation, folder=folder, batch_size=2))
    assert done.count(PERTURBATIONS[killed_in]) == 5 - part
    assert {title: value for title, value in whole.items() if title in resumed} == of(resumed)
    assert not (folder / PARTS).exists()
    store = records.FolderStore(folder.parent)
    assert len(store.records(model.id)) == len(whole)


def test_a_part_that_is_damaged_is_measured_again(tmp_path):
    kept = KeptParts(tmp_path, {"a": 1})
    kept.get(0, lambda: {"x": np.arange(3)})
    (path,) = tmp_path.glob(f"{PARTS}/*/0.npz")
    path.write_bytes(path.read_bytes()[:40])
    np.testing.assert_array_equal(kept.get(0, lambda: {"x": np.arange(4)})["x"], np.arange(4))
    np.testing.assert_array_equal(kept.get(0, lambda: {"x": np.arange(5)})["x"], np.arange(4))


def test_parts_of_another_measurement_are_left_alone(tmp_path):
    KeptParts(tmp_path, {"batch_size": 2}).get(0, lambda: {"x": np.arange(3)})
    other = KeptParts(tmp_path, {"batch_size": 4})
    np.testing.assert_array_equal(other.get(0, lambda: {"x": np.arange(7)})["x"], np.arange(7))
    other.remove()
    assert len(list(tmp_path.glob(f"{PARTS}/*"))) == 1


def test_images_in_memory_leave_no_parts(tmp_path, model, folder_of_images):
    measure(model, folder_of_images, tmp_path / model.id)
    assert not (tmp_path / model.id / PARTS).exists()
    assert data.is_user_data(folder_of_images)


def test_large_images_in_memory_are_measured_in_parts_too(monkeypatch, tmp_path, model):
    generator = np.random.default_rng(1)
    images = generator.integers(0, 256, (N, *SIZE, 3), np.uint8)
    name = data.register(images, np.arange(N) % 2)
    whole = of(measure(model, name, tmp_path / "whole" / model.id))
    monkeypatch.setattr(eval_set, "LAZY_BYTES", 2 * 4 * 3 * SIZE[0] * SIZE[1])
    monkeypatch.setattr(eval_set, "LARGE_IMAGE", 4 * 3 * SIZE[0] * SIZE[1] - 1)
    parts = []
    original = evaluator.Evaluator._measure_part
    monkeypatch.setattr(evaluator.Evaluator, "_measure_part", lambda self, *a: parts.append(a[2]) or original(self, *a))
    assert of(measure(model, name, tmp_path / "parts" / model.id)) == whole
    assert [parts.count(one) for one in PERTURBATIONS.values()] == [5] * len(PERTURBATIONS)

"""The two halves of audited images, and the images that a change may be fitted on."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from helpers_attacks import keras

from bn_vuln import data
from bn_vuln.auditing import halves as halves_module
from bn_vuln.auditing.halves import fitting_images, halves, halves_of
from bn_vuln.config import Evaluation, ExternalModel
from bn_vuln.errors import UsageError
from bn_vuln.evaluation import eval_set
from bn_vuln.evaluation.classifier import from_external

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("counts", [(10, 10), (7, 5, 3), (1, 1, 1, 1), (0, 9, 2)])
def test_halves_have_as_many_of_each_class_to_one(counts):
    labels = RNG.permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int32)
    found = halves(labels)
    assert sorted([*found.choosing, *found.reporting]) == list(range(len(labels)))
    assert len(found.choosing) - len(found.reporting) in (0, 1)
    one, other = (np.bincount(labels[half], minlength=len(counts)) for half in (found.choosing, found.reporting))
    assert np.abs(one - other).max() <= 1


def test_halves_are_the_same_each_time_and_others_with_another_seed():
    labels = np.zeros(40, np.int32)
    np.testing.assert_array_equal(halves(labels).choosing, halves(labels).choosing)
    assert not np.array_equal(halves(labels).choosing, halves(labels, seed=1).choosing)
    assert not np.array_equal(halves(labels).choosing, np.arange(0, 40, 2))  # not by the order of the images


def test_twenty_images_are_halved_and_no_fewer():
    labels = np.arange(20, dtype=np.int32) % 2
    found = halves_of(data.load(data.register(images(20, 0), labels), "all"))
    assert (len(found.choosing), len(found.reporting)) == (10, 10)
    with pytest.raises(UsageError, match="19 images are measured, 20 are needed"):
        halves_of(data.load(data.register(images(19, 0), labels[:19]), "all"))


def model(shape=(4, 4, 1), classes=2):
    return keras.Sequential([keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(classes)])


def images(n, first):
    """Images uint8 [n, 4, 4, 1] that say by their first pixel which one they are, from `first` on."""
    x = RNG.integers(0, 256, (n, 4, 4, 1), np.uint8)
    x[:, 0, 0, 0] = np.arange(first, first + n)
    return x


def ids(examples):
    return set(np.asarray(examples.images[:])[:, 0, 0, 0].tolist())


@dataclass(frozen=True)
class Audited:
    """What is measured of a model, and its halves."""

    classifier: object
    evaluation: Evaluation
    dataset: data.Dataset

    @property
    def halves(self):
        return halves(self.dataset.labels)

    def fitting(self, **options):
        return fitting_images(self.classifier, self.evaluation, self.dataset, self.halves, **options)


def audited(name, split, limit=None):
    classifier = from_external(model(), ExternalModel(input_scale="0-1"), name, split)
    evaluation = Evaluation(dataset=name, split=split, limit=limit)
    return Audited(classifier, evaluation, eval_set.load(classifier, evaluation))


@pytest.fixture
def npz(tmp_path):
    """40 images to train with the ids 0 to 39, and 20 to test with 100 to 119."""
    labels = (np.arange(40) % 2).astype(np.uint8)
    path = tmp_path / "images.npz"
    np.savez(path, x_train=images(40, 0), y_train=labels, x_test=images(20, 100), y_test=labels[:20])
    return str(path)


def test_training_images_where_there_are_some(npz):
    examples, where = audited(npz, "test", 10).fitting()
    assert ids(examples) == set(range(40))
    assert where.startswith("40 images: the train split of ")


def test_else_the_choosing_half_and_what_was_not_measured():
    one = audited(data.register(images(30, 0), np.arange(30) % 2), "all", 20)
    examples, where = one.fitting()
    measured = np.asarray(one.dataset.images)[:, 0, 0, 0]
    assert ids(examples) == set(range(30)) - set(measured[one.halves.reporting].tolist())
    assert where == "20 images: the choosing half and the images that were not measured"


@pytest.mark.parametrize("split", ["train", "all"])
def test_no_image_of_the_reporting_half_comes_in_by_a_split_that_overlaps(npz, split):
    one = audited(npz, split)
    examples, where = one.fitting()
    assert ids(examples).isdisjoint(np.asarray(one.dataset.images)[one.halves.reporting][:, 0, 0, 0].tolist())
    assert len(examples) == len(one.halves.choosing)
    assert where == f"{len(examples)} images: the choosing half"


def test_a_fifth_of_data_published_whole_leaves_the_rest_to_fit_on():
    one = audited(data.register(images(50, 0), np.arange(50) % 2), "test")
    examples, _ = one.fitting()
    assert (len(one.dataset), len(examples)) == (10, 40)
    assert ids(examples).isdisjoint(ids(one.dataset))


def test_for_statistics_there_are_as_many_as_memory_should_hold(npz, monkeypatch):
    one = audited(npz, "test")
    monkeypatch.setattr(halves_module, "LEAST_FOR_STATISTICS", 4)
    monkeypatch.setattr(halves_module, "MOST_FOR_STATISTICS", 12)
    second, _ = one.fitting()
    monkeypatch.setattr(halves_module, "PIXELS_FOR_STATISTICS", 6 * 16)  # images of 4 x 4
    first, _ = one.fitting()
    assert (len(first), len(second)) == (6, 12)
    assert ids(first) < ids(second)
    monkeypatch.setattr(halves_module, "BYTES_FOR_STATISTICS", 5 * 4 * 16)
    assert len(one.fitting()[0]) == 5
    assert len(one.fitting(all_images=True)[0]) == 40


def test_images_are_brought_to_the_input_of_the_model(npz):
    one = audited(npz, "test")
    smaller = replace(one, classifier=replace(one.classifier, model=model((2, 2, 1)), size=(2, 2), resize="stretch"))
    assert smaller.fitting()[0].images.shape == (40, 2, 2, 1)

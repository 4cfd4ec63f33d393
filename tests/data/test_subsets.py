"""Classes, balanced limits, subset seeds, whole training sets and their class means, and the two Gaussians."""

import json

import numpy as np
import pytest

from bn_vuln import data
from bn_vuln.analysis.closed_form import TOY
from bn_vuln.config import AWGN, Data, identity_of, validate
from bn_vuln.data import mnist, noise, toy
from bn_vuln.data.transforms import pixel_array
from bn_vuln.errors import ConfigError, UsageError

SUBSET_SEEDS = [None, 0, 17]


def same(one, other):
    """Compare two data sets: the same examples in the same order."""
    fields = ("images", "labels", "index")
    return one.info == other.info and all(np.array_equal(getattr(one, f), getattr(other, f)) for f in fields)


@pytest.fixture
def two_class_file(tmp_path):
    """The .npz file of a small data set of two classes, of which class 1 has a third."""
    generator = np.random.default_rng(0)
    sizes = {"train": 60, "test": 15}
    arrays = {f"x_{part}": generator.integers(0, 256, (n, 6, 6, 3), np.uint8) for part, n in sizes.items()}
    arrays |= {f"y_{part}": (np.arange(n) % 3 == 0).astype(np.int64) for part, n in sizes.items()}
    np.savez(tmp_path / "two_classes.npz", **arrays)
    return tmp_path / "two_classes.npz"


# ---------------------------------------------------------------- classes


def test_classes_are_renumbered_in_the_order_they_are_given():
    classes = (9, 0, 4)
    images, labels = mnist.read("test")
    found = data.load("mnist", "test", classes=classes)
    expected = np.flatnonzero(np.isin(labels, classes))
    np.testing.assert_array_equal(found.index, expected)
    np.testing.assert_array_equal(found.images, images[expected])
    np.testing.assert_array_equal(np.array(classes)[found.labels], labels[expected])
    assert found.labels.dtype == np.int32
    assert found.info.classes == tuple(data.dataset_info("mnist").classes[c] for c in classes)
    assert found.info.shape == data.dataset_info("mnist").shape


def test_another_order_is_the_same_examples_with_other_numbers():
    one, other = (data.load("mnist", "validation", classes=classes) for classes in ((3, 7), (7, 3)))
    np.testing.assert_array_equal(one.index, other.index)
    np.testing.assert_array_equal(one.labels, 1 - other.labels)
    assert data.load("mnist", "validation", classes=(3, 7), limit=9).index.tolist() == (
        data.load("mnist", "validation", classes=(7, 3), limit=9).index.tolist()
    )


def test_classes_do_not_move_the_border_between_train_and_validation():
    for split in ("train", "validation"):
        whole, some = data.load("mnist", split), data.load("mnist", split, classes=(3, 7))
        np.testing.assert_array_equal(some.index, whole.index[np.isin(whole.labels, (3, 7))])


def test_a_class_that_does_not_exist_is_named():
    with pytest.raises(UsageError, match=r"data\.classes: mnist has classes 0 to 9, received 10"):
        data.load("mnist", "test", classes=(3, 10))


def test_a_limit_counts_the_examples_of_the_classes():
    with pytest.raises(UsageError, match="limit: the test split has 2038 examples, 2039 were asked for"):
        data.load("mnist", "test", classes=(3, 7), limit=2039)
    assert len(data.load("mnist", "test", classes=(3, 7), limit=2038)) == 2038


def test_options_that_make_no_sense_are_refused():
    for fields, message in (
        ({"classes": [3, 3]}, r"classes: expected each once, received \[3, 3\]"),
        ({"classes": [3]}, "classes"),
        ({"balanced": True}, "balanced needs a limit"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate(Data, fields, "test")


def test_what_changes_the_data_changes_their_identity():
    changes = [{}, {"classes": (3, 7)}, {"classes": (7, 3)}, {"limit": 20}, {"limit": 20, "balanced": True}]
    changes += [{"limit": 20, "subset_seed": "seed"}]
    found = [identity_of(Data(**fields)) for fields in changes]
    assert all(a != b for i, a in enumerate(found) for b in found[:i])
    assert not {"classes", "balanced", "draw", "subset_seed"} & found[0].keys()


# ---------------------------------------------------------------- balanced limits


@pytest.mark.parametrize(("classes", "limit", "subset_seed"), [((7, 3, 1), 30, None), (None, 500, 17)], ids=str)
def test_a_balanced_limit_has_equally_many_of_each_class(classes, limit, subset_seed):
    found = data.load("mnist", "test", classes=classes, limit=limit, balanced=True, subset_seed=subset_seed)
    n = len(found.info.classes)
    assert np.bincount(found.labels, minlength=n).tolist() == [limit // n] * n
    assert len(np.unique(found.index)) == limit


def test_a_balanced_limit_that_does_not_divide_differs_by_one():
    counts = np.bincount(data.load("mnist", "test", limit=25, balanced=True).labels, minlength=10)
    assert counts.sum() == 25
    assert set(counts) == {2, 3}


@pytest.mark.parametrize("balanced", [False, True])
def test_a_smaller_limit_is_the_beginning_of_a_larger_one(balanced):
    for subset_seed in (None, 17):
        options = {"classes": (3, 7), "balanced": balanced, "subset_seed": subset_seed}
        small, large = (data.load("mnist", "train", limit=limit, **options) for limit in (21, 200))
        np.testing.assert_array_equal(large.index[:21], small.index)
        np.testing.assert_array_equal(large.labels[:21], small.labels)


def test_a_balanced_limit_takes_from_everywhere():
    index = data.load("mnist", "test", classes=(3, 7), limit=400, balanced=True).index
    assert 4500 < index.mean() < 5500


def test_a_class_with_too_few_examples_is_named():
    everything = data.load("mnist", "test", limit=8920, balanced=True)  # class 5 has 892
    assert np.bincount(everything.labels).tolist() == [892] * 10
    with pytest.raises(UsageError, match=r"balanced: 8930 examples .* equally many of each class, but class 5 has 892"):
        data.load("mnist", "test", limit=8930, balanced=True)


# ---------------------------------------------------------------- subset seeds


@pytest.mark.parametrize(("name", "balanced"), [("mnist", False), ("mnist", True), ("toy", True)])
def test_the_same_subset_seed_takes_the_same_examples_and_another_others(name, balanced):
    def images(subset_seed):
        found = data.load(name, "train", classes=(1, 0), limit=40, balanced=balanced, subset_seed=subset_seed)
        return found.images.tobytes()

    first = [images(subset_seed) for subset_seed in SUBSET_SEEDS]
    assert [images(subset_seed) for subset_seed in SUBSET_SEEDS] == first
    assert len(set(first)) == len(SUBSET_SEEDS)


@pytest.mark.parametrize("name", ["mnist", "toy"])
def test_validation_examples_are_never_trained_on(name):
    options = {"classes": (1, 0), "subset_seed": 17}
    validation = data.load(name, "validation", **options)
    for limit, balanced in ((None, False), (200, False), (200, True)):
        train = data.load(name, "train", limit=limit, balanced=balanced, **options)
        assert not set(train.index) & set(validation.index)


def test_a_subset_seed_without_a_limit_changes_nothing_of_fixed_data():
    assert same(data.load("mnist", "test", subset_seed=17), data.load("mnist", "test"))


# ---------------------------------------------------------------- what a cell is trained on

CELL = {"classes": (7, 3), "limit": 30, "balanced": True}


@pytest.mark.parametrize("name", ["mnist", "toy"])
def test_fixed_examples_are_the_same_for_every_seed(name):
    options = Data(name=name, classes=(1, 0), limit=30, balanced=True)
    found = [data.load_training_data(options, "train", seed) for seed in (0, 1, 5)]
    assert same(found[0], found[1])
    assert same(found[0], found[2])
    assert same(found[0], data.load(name, "train", classes=(1, 0), limit=30, balanced=True))


def test_examples_of_subset_seed_seed_are_those_of_the_model_s_seed():
    options = Data(**CELL, subset_seed="seed")
    for seed in (0, 5):
        found = data.load_training_data(options, "train", seed)
        assert same(found, data.load("mnist", "train", **CELL, subset_seed=seed))
        assert np.bincount(found.labels).tolist() == [15, 15]
    assert not same(data.load_training_data(options, "train", 0), data.load_training_data(options, "train", 5))
    assert not same(data.load_training_data(options, "train", 0), data.load_training_data(Data(**CELL), "train", 0))


def test_validation_is_the_same_for_every_seed_and_has_no_limit():
    whole = data.load("mnist", "validation", validation=700, classes=(7, 3))
    for seed in (0, 5):
        assert same(
            data.load_training_data(Data(**CELL, validation=700, subset_seed="seed"), "validation", seed), whole
        )


# ---------------------------------------------------------------- all published examples and their means


def test_the_whole_training_set_has_all_published_examples_of_the_classes():
    images, labels = mnist.read("train")
    expected = np.flatnonzero(np.isin(labels, (3, 7)))
    found = data.load_whole_training_set(Data(**CELL, validation=700, subset_seed="seed"))
    order = np.argsort(found.index)
    np.testing.assert_array_equal(found.index[order], expected)
    np.testing.assert_array_equal(found.images[order], images[expected])
    np.testing.assert_array_equal(np.array([7, 3])[found.labels[order]], labels[expected])
    assert found.info.classes == ("7", "3")


def test_class_centroids_are_the_mean_pixels_in_the_order_of_the_classes():
    images, labels = mnist.read("train")
    expected = [images[labels == c].reshape(-1, 784).mean(axis=0) / 255 for c in (7, 3)]
    found = data.class_centroids(Data(**CELL), 28)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("width", [6, 13])
def test_resized_centroids_are_the_means_of_the_resized_images(two_class_file, width):
    options = Data(name=str(two_class_file), validation=7)
    examples = data.load_whole_training_set(options)
    resized = pixel_array(examples.images, width).reshape(len(examples), -1).astype(np.float64)
    expected = [resized[examples.labels == label].mean(axis=0) for label in (0, 1)]
    assert np.bincount(examples.labels).tolist() == [40, 20]
    np.testing.assert_allclose(data.class_centroids(options, width), expected, rtol=0, atol=1e-6)


# ---------------------------------------------------------------- the two Gaussians


def test_the_toy_is_that_of_the_closed_form():
    np.testing.assert_array_equal(toy.MEANS, [TOY.mean_0, TOY.mean_1])
    np.testing.assert_array_equal(toy.COVARIANCE, TOY.covariance)


@pytest.mark.parametrize("subset_seed", [None, 17])
def test_means_and_covariance_are_those_of_the_two_gaussians(subset_seed):
    """Within four standard errors of 3,000 points of each class."""
    images, labels = toy.read("train", subset_seed)
    assert (images.shape, images.dtype, labels.dtype) == ((6000, 1, 1, 2), np.float32, np.int32)
    assert np.bincount(labels).tolist() == [3000, 3000]
    for label, mean in enumerate((TOY.mean_0, TOY.mean_1)):
        points = images[labels == label].reshape(-1, 2).astype(np.float64)
        (a, b), (_, d) = TOY.covariance
        errors = np.sqrt(np.array([[2 * a * a, a * d + b * b], [a * d + b * b, 2 * d * d]]) / 3000)
        assert (np.abs(points.mean(axis=0) - mean) < 4 * np.sqrt([a / 3000, d / 3000])).all()
        assert (np.abs(np.cov(points.T) - TOY.covariance) < 4 * errors).all()


def test_the_test_points_are_the_same_for_every_subset_seed_and_the_training_points_are_not():
    tests = [data.load("toy", "test", subset_seed=subset_seed) for subset_seed in SUBSET_SEEDS]
    assert all(same(tests[0], other) for other in tests)
    assert np.bincount(tests[0].labels).tolist() == [5000, 5000]
    for split in ("train", "validation"):
        found = [data.load("toy", split, subset_seed=seed).images.tobytes() for seed in SUBSET_SEEDS]
        assert len(set(found)) == len(SUBSET_SEEDS)
    assert not np.isin(tests[0].images[..., 0], data.load("toy", "train").images[..., 0]).any()


def test_train_and_validation_split_the_sampled_points():
    images, labels = toy.read("train", 3)
    for split, n in (("train", 1000), ("validation", 5000)):
        found = data.load("toy", split, subset_seed=3)
        assert len(found) == n
        np.testing.assert_array_equal(found.images, images[found.index])
        np.testing.assert_array_equal(found.labels, labels[found.index])


def test_points_are_taken_as_they_are():
    points = data.load("toy", "test", limit=50).images
    np.testing.assert_array_equal(pixel_array(points, 1), points)
    assert points.min() < -1 < 1 < points.max()


def test_info_of_the_toy():
    info = data.dataset_info("toy")
    assert info == toy.INFO == data.prepare("toy")
    assert (info.shape, info.classes) == ((1, 1, 2), ("0", "1"))
    assert (info.mean, info.std) == ((0, 0), (1, 1))  # not standardized
    assert info.sizes == {"train": len(toy.read("train")[1]), "test": len(toy.read("test")[1])}
    assert data.describe_dataset("toy") == {
        "name": "toy", "shape": (1, 1, 2), "classes": ("0", "1"), "sizes": {"train": 6000, "test": 10000},
        "mean": (0.0, 0.0), "std": (1.0, 1.0), "state": "made", "folder": "", "files": [],
        "label": "toy", "splits": ("train", "test"), "notes": (), "flags": (),
    }  # fmt: skip


def test_the_commands_show_the_toy_without_a_folder(bnvuln, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    code, out, err = bnvuln("data", "list")
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert rows["toy"] == ["toy", "1x1x2", "2", "6,000", "10,000", "made"]
    code, out, err = bnvuln("data", "info", "toy")
    assert (code, err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines()[1:])
    assert lines == {
        "images": "1x1x2", "classes": "2: 0 and 1", "train": "6,000", "test": "10,000", "mean": "0.0000, 0.0000",
        "std": "1.0000, 1.0000", "state": "made",
    }  # fmt: skip
    code, out, _ = bnvuln("data", "info", "toy", "--json")
    assert json.loads(out) == json.loads(json.dumps(data.describe_dataset("toy")))


def test_noise_is_added_to_points_as_they_are():
    test = data.load("toy", "test", limit=5)
    found = noise.add_noise(test.images, test.index, AWGN(std=0, clip="none"), test.info)
    np.testing.assert_array_equal(found, test.images)

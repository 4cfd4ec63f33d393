"""MNIST as shipped, splits, subsets, resizing."""

import shutil

import numpy as np
import pytest

from bn_vuln import data
from bn_vuln.data import mnist
from bn_vuln.data.transforms import check_width, pixel_array
from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.runtime import backend


def test_mnist_is_the_real_one():
    test = data.load("mnist", "test")
    assert test.images.shape == (10000, 28, 28, 1)
    assert test.images.dtype == np.uint8
    assert test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert np.bincount(test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_info_is_that_of_the_training_images():
    images, _ = mnist.read("train")
    info = data.dataset_info("mnist")
    assert info.shape == images.shape[1:]
    assert info.sizes == {"train": len(images), "test": 10000}
    assert images.mean() / 255 == pytest.approx(info.mean[0], abs=5e-5)
    assert images.std() / 255 == pytest.approx(info.std[0], abs=5e-5)


def test_validation_and_train_split_the_published_training_set():
    train, validation = data.load("mnist", "train"), data.load("mnist", "validation")
    assert len(validation) == 5000
    assert sorted([*train.index, *validation.index]) == list(range(60000))
    assert validation.index[:4].tolist() == [23, 34, 61, 73]  # fixed: published models depend on it


def test_index_points_into_the_published_split():
    images, labels = mnist.read("train")
    validation = data.load("mnist", "validation", limit=50)
    np.testing.assert_array_equal(validation.images, images[validation.index])
    np.testing.assert_array_equal(validation.labels, labels[validation.index])


def test_smaller_limits_are_subsets_of_larger_ones():
    small, large = data.load("mnist", "test", limit=100), data.load("mnist", "test", limit=300)
    np.testing.assert_array_equal(large.index[:100], small.index)


def test_a_limit_takes_from_everywhere():
    assert 4000 < data.load("mnist", "test", limit=500).index.mean() < 6000


def test_permutation_depends_on_every_seed():
    orders = [data.permutation(100, *seed).tolist() for seed in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1))]
    assert len({tuple(order) for order in orders}) == 5


def test_bad_requests_say_what_was_expected():
    for arguments, fragments in (
        ({"name": "mnits"}, ["'mnits'", "mnist", "did you mean"]),
        ({"name": "mnist", "split": "tset"}, ["train, validation, test, all", "'tset'"]),
        ({"name": "mnist", "limit": 20000}, ["10000", "20000"]),
        ({"name": "mnist", "split": "train", "validation": 60000}, ["1 to 59999", "60000"]),
    ):
        with pytest.raises(UsageError) as error:
            data.load(**arguments)
        assert all(fragment in str(error.value) for fragment in fragments)


def test_a_missing_file_is_named_and_a_corrupt_one_with_both_hashes(tmp_path):
    with pytest.raises(BnvulnError, match=r"train-images-idx3-ubyte\.gz"):
        mnist.read("train", tmp_path)
    folder = shutil.copytree(mnist.FOLDER, tmp_path / "mnist")
    path = folder / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(BnvulnError) as error:
        mnist.read("test", folder)
    assert str(path) in str(error.value)
    assert mnist.SHA256[path.name] in str(error.value)
    assert str(error.value).count("sha256") == 1
    assert len([word for word in str(error.value).replace(",", "").replace(";", "").split() if len(word) == 64]) == 2


def test_pixels_are_the_bytes_over_255():
    images = data.load("mnist", "test", limit=10).images
    np.testing.assert_array_equal(pixel_array(images, 28), images.astype(np.float32) / np.float32(255))


def test_resizing_is_bilinear_with_half_pixel_centres():
    image = np.zeros((1, 2, 2, 1), np.float32)
    image[0, :, 1, 0] = 1
    # Centres of the four output pixels in the input: -.25, .25, .75, 1.25, clamped to the border.
    np.testing.assert_allclose(pixel_array(image, 4)[0, 0, :, 0], [0, 0.25, 0.75, 1], atol=1e-6)


@pytest.mark.parametrize(("shape", "width"), [((3, 28, 28, 1), 84), ((2, 5, 5, 3), 12)])
def test_resizing_is_that_of_tensorflow(shape, width):
    tf = backend.tensorflow()
    images = np.random.default_rng(0).random(shape, np.float32)
    expected = tf.image.resize(images, (width, width), method="bilinear")
    np.testing.assert_allclose(pixel_array(images, width), expected, atol=3e-6)


def test_reducing_is_refused():
    with pytest.raises(UsageError, match="expected >= 28, received 20"):
        check_width(20, 28, "mnist")

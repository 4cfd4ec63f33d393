"""The real Fashion-MNIST and CIFAR-10, where they are prepared."""

import numpy as np
import pytest

from bn_vuln import data
from bn_vuln.data import published, tfds
from bn_vuln.data.tfds import prepared

# The first labels of the test split in TFDS' order, which is a hash of the keys.
FIRST = {"fashion_mnist": [4, 4, 9, 7, 5, 1, 0, 5, 7, 4], "cifar10": [7, 0, 6, 9, 5, 1, 7, 0, 3, 2]}


@pytest.mark.slow
@pytest.mark.parametrize("name", FIRST)
def test_real_images_are_those_of_the_info(name):
    if prepared.find(name) is None:
        pytest.skip(f"{name} is not prepared (bnvuln data prepare {name})")
    train, test, info = tfds.read(name, "train"), data.load(name, "test"), data.dataset_info(name)
    assert {"train": len(train.labels), "test": len(test)} == info.sizes
    assert train.images.shape[1:] == test.images.shape[1:] == info.shape
    classes = len(info.classes)
    assert np.bincount(train.labels).tolist() == [len(train.labels) // classes] * classes
    assert np.bincount(test.labels).tolist() == [len(test) // classes] * classes
    assert test.labels[:10].tolist() == FIRST[name]
    mean, std = published.channel_statistics(train.images)
    assert mean == info.mean
    if name == "fashion_mnist":
        assert std == info.std
    else:  # the constants in use are means of the images' own stds, with n - 1
        pixels = (train.images / np.float32(255)).reshape(50000, 1024, 3)
        assert pixels.std(1, ddof=1).mean(0) == pytest.approx(info.std, abs=1e-4)

"""Noise: its size in both units, the clips, one noise for an example wherever it stands, and noise before resizing."""

import numpy as np
import pytest
from helpers_attacks import keras, tf
from scipy import stats

from bn_vuln.config import AWGN, Evaluation
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.mnist import INFO as MNIST
from bn_vuln.data.noise import add_noise
from bn_vuln.evaluation.classifier import from_model
from bn_vuln.evaluation.evaluator import Evaluator

COLOUR = DatasetInfo("colour", (8, 8, 2), ("a", "b"), mean=(0.4, 0.6), std=(0.25, 0.5), sizes={})


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, size=(60, 28, 28, 1), dtype=np.uint8)


def indices(n, start=0):
    return np.arange(start, start + n)


def noise_alone(images, *, info=MNIST, **options):
    """What is added, unclipped."""
    noisy = add_noise(images, indices(len(images)), AWGN(clip="none", **options), info)
    return noisy.astype(np.float64) - images / 255


def test_noise_is_gaussian_of_the_std_in_pixels(images):
    noise = noise_alone(images, std=0.1).ravel()
    assert noise.std() == pytest.approx(0.1, rel=0.01)
    assert abs(noise.mean()) < 0.002
    assert stats.kstest(noise, stats.norm(scale=0.1).cdf).pvalue > 0.01


def test_noise_in_standardized_units_is_scaled_by_the_std(images):
    np.testing.assert_allclose(
        noise_alone(images, std=0.1, unit="standardized"), 0.3081 * noise_alone(images, std=0.1), atol=1e-6
    )


def test_noise_in_standardized_units_is_scaled_in_every_channel():
    grey = np.full((300, 8, 8, 2), 128, np.uint8)
    noise = noise_alone(grey, info=COLOUR, std=0.4, unit="standardized")
    np.testing.assert_allclose(noise.std(axis=(0, 1, 2)), [0.1, 0.2], rtol=0.02)


def test_noise_of_no_size_leaves_the_pixels(images):
    noisy = add_noise(images, indices(60), AWGN(std=0), MNIST)
    assert noisy.dtype == np.float32
    np.testing.assert_array_equal(noisy, images.astype(np.float32) / np.float32(255))
    add_noise(noisy, indices(60), AWGN(std=0.5), MNIST)  # which copies its input
    np.testing.assert_array_equal(noisy, images.astype(np.float32) / np.float32(255))


@pytest.mark.parametrize(
    ("clip", "low", "high"),
    [
        ((0.2, 0.7), 0.2, 0.7),
        ({"standardized": (-0.2, 1.5)}, 0.1307 - 0.2 * 0.3081, 0.1307 + 1.5 * 0.3081),
    ],
    ids=["pixel", "standardized"],
)
def test_clips_cut_the_noisy_image(images, clip, low, high):
    assert AWGN(std=0.3).clip == (0.0, 1.0)
    free = add_noise(images, indices(60), AWGN(std=0.3, clip="none"), MNIST)
    assert free.min() < low - 0.1
    assert free.max() > high + 0.1
    clipped = add_noise(images, indices(60), AWGN(std=0.3, clip=clip), MNIST)
    np.testing.assert_allclose(clipped, np.clip(free, low, high), atol=1e-6)


def test_standardized_clips_differ_by_channel():
    grey = np.full((20, 8, 8, 2), 128, np.uint8)
    noisy = add_noise(grey, indices(20), AWGN(std=3.0, clip={"standardized": (-1.0, 1.0)}), COLOUR)
    np.testing.assert_allclose(noisy.min(axis=(0, 1, 2)), [0.15, 0.1], atol=1e-6)
    np.testing.assert_allclose(noisy.max(axis=(0, 1, 2)), [0.65, 1.1], atol=1e-6)


def test_an_example_gets_the_same_noise_in_any_subset_and_order(images):
    index = indices(60, start=900)
    whole = add_noise(images, index, AWGN(std=0.2), MNIST)
    chosen = np.random.default_rng(1).permutation(60)[:17]
    np.testing.assert_array_equal(add_noise(images[chosen], index[chosen], AWGN(std=0.2), MNIST), whole[chosen])


def test_noise_follows_the_index_and_not_the_place(images):
    same = np.repeat(images[:1], 3, axis=0)
    first, second, third = add_noise(same, np.array([7, 7, 8]), AWGN(std=0.2), MNIST)
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - third).max() > 0.1


def test_noise_of_all_seeds_and_examples_is_uncorrelated():
    grey = np.full((5, 28, 28, 1), 128, np.uint8)
    noise = np.concatenate([noise_alone(grey, std=0.1, seed=seed).reshape(5, -1) for seed in range(5)])
    correlation = np.corrcoef(noise) - np.eye(25)
    assert np.abs(correlation).max() < 5 / np.sqrt(28 * 28)


@pytest.fixture(scope="module")
def wide():
    """An evaluation on 30 test images of a net that takes 56 x 56."""
    inputs = keras.Input((56, 56, 1))
    outputs = keras.layers.Dense(10)(keras.layers.Flatten()(inputs))
    return Evaluator(from_model(keras.Model(inputs, outputs), MNIST, {"weights": "wide"}), Evaluation(limit=30))


def test_noise_is_added_before_the_image_is_resized(wide):
    awgn, dataset = AWGN(std=0.3), wide.eval_set.dataset
    native = add_noise(dataset.images, dataset.index, awgn, MNIST)
    found = wide.run(awgn).images
    assert found.shape == (30, 56, 56, 1)
    np.testing.assert_allclose(found, tf.image.resize(native, (56, 56), "bilinear"), atol=1e-6)
    # Half-pixel bilinear doubling: each new pixel is 9/16, 3/16, 3/16 and 1/16 of its four nearest old ones.
    corner = native[:, :2, :2, 0] * np.array([[9, 3], [3, 1]]) / 16
    np.testing.assert_allclose(found[:, 1, 1, 0], corner.sum(axis=(1, 2)), atol=1e-6)


def test_noise_of_an_evaluation_is_keyed_by_the_place_in_the_published_split(wide):
    fewer = Evaluator(wide.eval_set.classifier, Evaluation(limit=10))
    np.testing.assert_array_equal(fewer.run(AWGN(std=0.3)).images, wide.run(AWGN(std=0.3)).images[:10])
    assert not np.array_equal(wide.eval_set.dataset.index, np.arange(30))

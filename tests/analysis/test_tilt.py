"""Angles, class means, and the weights of a linear model behind BN."""

from __future__ import annotations

import math
import tracemalloc
import warnings

import numpy as np
import pytest

from bn_vuln.analysis import tilt
from bn_vuln.analysis.tilt import angle, centroids, effective_bias, effective_weights

# ---------------------------------------------------------------- angles


@pytest.mark.parametrize(
    ("u", "v", "expected"),
    [
        ([1, 0], [1, 0], 0),
        ([1, 0], [0, 1], 90),
        ([1, 0], [-1, 1], 135),
        ([2, 0, 0], [1, math.sqrt(3), 0], 60),
        ([3], [-5], 180),
    ],
)
def test_known_angles(u: list[float], v: list[float], expected: float) -> None:
    assert angle(u, v) == pytest.approx(expected, abs=1e-13)
    assert angle(v, u) == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("degrees", [1e-9, 1e-3])
def test_small_and_flat_angles_keep_their_digits(degrees: float) -> None:
    turned = [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]
    assert angle([1, 0], turned) == pytest.approx(degrees, rel=1e-9)
    assert 180 - angle([-1, 0], turned) == pytest.approx(degrees, abs=1e-13)
    # The arccos of the cosine has lost this one altogether.
    assert degrees > 1e-7 or math.acos(turned[0]) == 0


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_length_does_not_matter(scale: float) -> None:
    assert angle(np.array([1.0, 2.0]) * scale, [2.0, -1.0]) == pytest.approx(90)
    assert angle(np.array([1.0, 2.0]) * scale, np.array([2.0, 4.0]) * scale) == pytest.approx(0, abs=1e-13)


def test_vectors_lie_along_the_last_axis_and_broadcast() -> None:
    found = angle(np.eye(3)[:, None], np.array([[1, 0, 0], [1, 1, 0]]))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [[0, 45], [90, 45], [90, 90]], atol=1e-13)
    assert angle([1, 0], [0, 1]).shape == ()


def test_single_precision_is_left_at_once() -> None:
    u = np.array([1, 0], np.float32)
    assert angle(u, np.array([1, 1e-6], np.float32)) == pytest.approx(math.degrees(1e-6), rel=1e-6)


def test_a_zero_vector_has_no_angle_and_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = angle([[0, 0], [1, 0]], [1, 0])
    assert np.isnan(found[0])
    assert found[1] == 0
    assert np.isnan(angle([0.0, 0.0], [0.0, 0.0]))


# ---------------------------------------------------------------- class means


def test_centroids_are_the_class_means_in_pixels() -> None:
    images = np.array([[0, 255], [51, 102], [255, 153]], np.uint8)
    found = centroids(images, np.array([1, 0, 1]), 2)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [[0.2, 0.4], [0.5, 0.8]], rtol=1e-15)


def test_centroids_of_floats_are_not_scaled() -> None:
    images = np.array([[[1.0, 2.0]], [[3.0, 6.0]], [[7.0, 8.0]]], np.float32)
    np.testing.assert_array_equal(centroids(images, np.array([0, 0, 1]), 2), [[2, 4], [7, 8]])


@pytest.mark.parametrize("rows", [7, 100])
def test_chunks_do_not_change_centroids(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (50, 3, 2, 1), np.uint8)
    labels = np.arange(50) % 4
    expected = [images[labels == k].reshape(-1, 6).mean(axis=0) / 255 for k in range(4)]
    monkeypatch.setattr(tilt, "CHUNK", 6 * rows)
    np.testing.assert_allclose(centroids(images, labels, 4), expected, rtol=1e-13)


def test_centroids_make_no_float_copy_of_all_images() -> None:
    images = np.full((20000, 28, 28, 1), 51, np.uint8)  # 16 MB; 125 MB in float64
    labels = np.arange(20000) % 10
    tracemalloc.start()
    found = centroids(images, labels, 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(found, 0.2, rtol=1e-12)
    assert peak < 40e6


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 0, 2], r"without examples: \[1\]"),
        ([0, 1, 3], "labels from 0 to 3 for 3 classes"),
        ([-1, 1, 2], "labels from -1 to 2"),
        ([0, 1], "3 images with labels"),
    ],
)
def test_labels_that_give_no_centroids(labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        centroids(np.zeros((3, 2)), np.array(labels), 3)


def test_no_images_have_no_centroids() -> None:
    with pytest.raises(ValueError, match="without examples"):
        centroids(np.zeros((0, 2)), np.zeros(0, np.int64), 2)


# ---------------------------------------------------------------- behind BN


def test_effective_weights_in_numbers() -> None:
    np.testing.assert_allclose(effective_weights([3, 8], [8, 15], 1), [1, 2], rtol=1e-15)
    np.testing.assert_allclose(effective_weights([3, 8], [8, 15], 1, [2, -1]), [2, -2], rtol=1e-15)
    np.testing.assert_allclose(effective_weights([[3, 6], [8, 4]], [8, 15], 1), [[1, 2], [2, 1]], rtol=1e-15)


@pytest.mark.parametrize(("k", "affine"), [(None, False), (3, True)])
def test_effective_weights_and_bias_are_the_model_behind_bn(k: int | None, affine: bool) -> None:
    generator = np.random.default_rng(0)
    outputs = () if k is None else (k,)
    x, w = generator.normal(2, 3, (20, 5)), generator.normal(size=(5, *outputs))
    bias, c = generator.normal(size=outputs), 0.1
    mean, variance = x.mean(axis=0), x.var(axis=0)
    gamma, beta = generator.normal(size=(2, 5)) if affine else (None, None)
    hidden = (x - mean) / np.sqrt(variance + c)
    if gamma is not None and beta is not None:
        hidden = hidden * gamma + beta
    effective = effective_weights(w, variance, c, gamma)
    shift = effective_bias(w, bias, mean, variance, c, gamma=gamma, beta=beta)
    assert effective.shape == w.shape
    assert shift.shape == outputs
    np.testing.assert_allclose(x @ effective + shift, hidden @ w + bias, rtol=1e-12, atol=1e-13)


def test_a_large_constant_undoes_the_tilt_of_bn() -> None:
    w, variance = np.array([1.0, 1.0]), np.array([1.0, 0.0])
    angles = [float(angle(effective_weights(w, variance, c), w)) for c in (1e-3, 1e-1, 1.0, 1e6)]
    assert angles == sorted(angles, reverse=True)
    assert angles[0] == pytest.approx(math.degrees(math.atan(math.sqrt(1001))) - 45)
    assert angles[-1] == pytest.approx(0, abs=1e-4)


def test_a_constant_input_needs_a_constant_in_bn() -> None:
    with pytest.raises(ValueError, match="not positive"):
        effective_weights([1, 1], [1, 0], 0)


@pytest.mark.parametrize(
    ("weights", "variance", "gamma"),
    [([1, 1], [1], None), ([1, 1], [1, 1], [1])],
)
def test_shapes_must_fit(weights: list[float], variance: list[float], gamma: list[float] | None) -> None:
    with pytest.raises(ValueError, match="shapes do not fit"):
        effective_weights(weights, variance, 1e-3, gamma)

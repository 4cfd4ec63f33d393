"""Principal components, and what linear models do along them, exactly."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import ortho_group

from bn_vuln.analysis import tilt
from bn_vuln.analysis.closed_form import TOY, uniform_margin_weights
from bn_vuln.analysis.spectrum import energy, gain, low_variance_share, principal_components
from bn_vuln.analysis.tilt import effective_weights

Array = NDArray[np.float64]

VARIANCE = np.array([4.0, 1.0, 0.25, 1e-6])
ROTATION = np.asarray(ortho_group(4, seed=0).rvs(), np.float64)  # columns


def cloud() -> Array:
    """Eight examples about a mean far from 0, with exactly VARIANCE along the columns of ROTATION."""
    steps = (np.sqrt(len(VARIANCE) * VARIANCE) * ROTATION).T
    return 100 + np.concatenate([steps, -steps])


# ---------------------------------------------------------------- components


def test_components_of_a_known_cloud() -> None:
    variance, directions = principal_components(cloud())
    np.testing.assert_allclose(variance, VARIANCE, rtol=1e-6)
    np.testing.assert_allclose(variance[:3], VARIANCE[:3], rtol=1e-12)
    np.testing.assert_allclose(np.abs(directions.T @ ROTATION), np.eye(4), atol=1e-8)


@pytest.mark.parametrize("rows", [13, 1000])
def test_components_of_pixels_agree_with_numpy(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tilt, "CHUNK", 6 * rows)
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 2, 1), np.uint8)
    variance, directions = principal_components(images)
    assert variance.dtype == directions.dtype == np.float64
    assert (np.diff(variance) <= 0).all()
    np.testing.assert_allclose(directions.T @ directions, np.eye(6), atol=1e-13)
    covariance = np.cov(images.reshape(40, 6).T / 255, bias=True)
    np.testing.assert_allclose(directions * variance @ directions.T, covariance, atol=1e-15)


def test_constant_pixels_have_no_variance() -> None:
    images = np.full((50, 3), 77, np.uint8)
    images[::2, 1] = 128
    variance, directions = principal_components(images)
    np.testing.assert_allclose(variance, [(51 / 255 / 2) ** 2, 0, 0], atol=1e-16)
    assert (variance >= 0).all()
    np.testing.assert_allclose(np.abs(directions[:, 0]), [0, 1, 0], atol=1e-12)


def test_components_make_no_float_copy_of_all_images() -> None:
    images = np.random.default_rng(0).integers(0, 256, (60000, 100), np.uint8)  # 6 MB; 48 MB in float64
    tracemalloc.start()
    principal_components(images)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6


def test_no_images_have_no_components() -> None:
    with pytest.raises(ValueError, match="no images"):
        principal_components(np.zeros((0, 3)))


# ---------------------------------------------------------------- energy and gain


def test_energy_of_a_linear_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tilt, "CHUNK", 4)
    w = np.array([3.0, -1.0, 2.0, 0.5])
    slopes = np.array([1e-20, -2.0, 1e20])  # a linear model's gradients are w times the slope of the loss
    found = energy(slopes[:, None] * w, ROTATION)
    np.testing.assert_allclose(found, (ROTATION.T @ w) ** 2 / (w @ w), rtol=1e-12)
    assert found.sum() == pytest.approx(1, abs=1e-14)


def test_every_example_counts_the_same_in_energy_and_zeros_do_not() -> None:
    gradients = np.array([[3, 4], [0, 0], [100, 0]], np.float32)
    np.testing.assert_allclose(energy(gradients, np.eye(2)), [(0.36 + 1) / 2, 0.64 / 2], rtol=1e-12)


def test_zero_gradients_have_no_energy() -> None:
    with pytest.raises(ValueError, match="all gradients are zero"):
        energy(np.zeros((3, 4)), ROTATION)


def test_a_gradient_that_is_not_a_number_shows() -> None:
    assert np.isnan(energy(np.array([[1.0, 0], [np.nan, 0]]), np.eye(2))).any()


def test_gain_of_a_linear_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tilt, "CHUNK", 4)
    jacobian = np.random.default_rng(0).normal(size=(3, 4))
    expected = np.linalg.norm(jacobian @ ROTATION, axis=0)
    np.testing.assert_allclose(gain(jacobian[None], ROTATION), expected, rtol=1e-12)
    # The root of the mean square over examples: sqrt((1 + 49) / 2) = 5.
    np.testing.assert_allclose(gain(np.stack([jacobian, -7 * jacobian]), ROTATION), 5 * expected, rtol=1e-12)


def test_no_examples_have_no_gain() -> None:
    with pytest.raises(ValueError, match="no jacobians"):
        gain(np.zeros((0, 3, 4)), ROTATION)


@pytest.mark.parametrize("c", [0, 1.0])
def test_bn_along_the_components_amplifies_low_variance(c: float) -> None:
    """BN of the data in their principal axes: a unit step along component i counts 1 / sqrt(variance_i + c)."""
    axes = cloud() @ ROTATION
    variance, directions = principal_components(axes)
    w = np.diag(effective_weights(np.ones(4), axes.var(axis=0), c))
    expected = 1 / (VARIANCE + c)
    np.testing.assert_allclose(gain(w[None], directions), np.sqrt(expected), rtol=1e-6)
    np.testing.assert_allclose(energy(w.sum(axis=0)[None], directions), expected / expected.sum(), rtol=1e-5)
    share = low_variance_share(energy(w.sum(axis=0)[None], directions), variance, 1e-6)
    assert share == pytest.approx(expected[3] / expected.sum(), rel=1e-5)


# ---------------------------------------------------------------- low variance


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0, 0.1), (0.009, 0.1), (0.01, 0.3), (0.99, 0.6), (1, 1)],
)
def test_energy_where_there_is_little_variance(share: float, expected: float) -> None:
    variance = np.array([96.0, 3.0, 1.0, 0.0])
    assert low_variance_share(np.array([0.4, 0.3, 0.2, 0.1]), variance, share) == pytest.approx(expected, rel=1e-15)


def test_one_percent_is_the_default_and_one_component_may_hold_more() -> None:
    assert low_variance_share(np.array([0.7, 0.3]), np.array([0.99, 0.01])) == pytest.approx(0.3)
    assert low_variance_share(np.array([0.7, 0.3]), np.array([0.9, 0.1])) == 0


@pytest.mark.parametrize(
    ("shares", "variance", "share", "message"),
    [
        ([1.0], [1.0, 0.5], 0.1, "expected two arrays"),
        ([0.5, 0.5], [0.5, 1.0], 0.1, "descending"),
        ([0.5, 0.5], [1.0, 0.5], 1.1, "share from 0 to 1"),
    ],
)
def test_invalid_variances_and_shares_are_refused(
    shares: list[float], variance: list[float], share: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        low_variance_share(np.array(shares), np.array(variance), share)


def test_bn_moves_energy_to_low_variance_on_the_toy() -> None:
    between = np.outer(TOY.centroid_weights, TOY.centroid_weights) / 4
    values, vectors = np.linalg.eigh(TOY.covariance + between)
    variance, directions = values[::-1], vectors[:, ::-1]

    def low(weights: Array) -> float:
        return low_variance_share(energy(weights[None], directions), variance)

    centroid = low(TOY.centroid_weights)
    assert centroid == pytest.approx((0.05 / 25.99) ** 2, rel=1e-3)  # the first component is turned by .05 / (26 - .01)
    start = np.array([1.0, 1.0])  # weights that prefer neither input
    behind = [low(TOY.bn_weights(start, c)) for c in (0, 1e-3, 1e-1, 1, 10)]
    assert behind == sorted(behind, reverse=True)
    assert behind[0] > 0.99
    assert behind[-1] > low(start) > centroid
    # The most uniform margins of normalized data are, in input space, the Bayes solution: 78.7 degrees.
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 10_000)
    x = np.stack([TOY.mean_0, TOY.mean_1])[labels]
    x = x + generator.normal(size=x.shape) @ np.linalg.cholesky(TOY.covariance).T
    learned = uniform_margin_weights(x / np.sqrt(x.var(axis=0)), 1 - 2 * labels)
    assert low(TOY.bn_weights(learned, 0)) == pytest.approx(25 / 26, abs=5e-3)

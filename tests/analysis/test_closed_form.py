"""Two Gaussians and the figure of the paper; uniform margins."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

from bn_vuln.analysis.closed_form import TOY, TwoGaussians, uniform_margin_weights
from bn_vuln.analysis.tilt import angle, centroids, effective_weights

Array = NDArray[np.float64]

# Not symmetric about 0, with both kinds of information in both inputs.
OTHER = TwoGaussians(np.array([1.0, 2.0]), np.array([3.0, -1.0]), np.array([[2.0, 0.3], [0.3, 0.1]]))


def exact_sample(model: TwoGaussians) -> tuple[Array, NDArray[np.int64]]:
    """4 d examples whose moments are those of the population: each class is its mean +- sqrt(d) Cholesky columns."""
    d = len(model.mean_0)
    steps = math.sqrt(d) * np.linalg.cholesky(model.covariance).T
    noise = np.concatenate([steps, -steps])
    return np.concatenate([model.mean_0 + noise, model.mean_1 + noise]), np.repeat([0, 1], 2 * d)


# ---------------------------------------------------------------- the toy


def test_the_bayes_angle_of_figure_1() -> None:
    # covariance^-1 is [[.01, -.05], [-.05, 1]] / .0075, so covariance^-1 [-10, 0] goes as [-1, 5].
    np.testing.assert_allclose(TOY.bayes_weights, np.array([-0.1, 0.5]) / 0.0075, rtol=1e-12)
    assert TOY.bayes_angle == pytest.approx(math.degrees(math.atan(5)), rel=1e-12)
    assert TOY.bayes_angle == pytest.approx(78.690, abs=1e-3)


def test_weights_and_variance_of_figure_1() -> None:
    np.testing.assert_array_equal(TOY.centroid_weights, [-10, 0])
    np.testing.assert_allclose(TOY.variance, [26, 0.01], rtol=1e-15)


def test_bn_tilts_a_given_classifier_of_figure_1() -> None:
    found = TOY.bn_weights([1, 1], 0)
    np.testing.assert_allclose(found, [1 / math.sqrt(26), 10], rtol=1e-14)
    assert angle(found, [1, 0]) == pytest.approx(math.degrees(math.atan(10 * math.sqrt(26))))
    np.testing.assert_allclose(TOY.bn_weights([1, 1], 0.15), [1 / math.sqrt(26.15), 2.5], rtol=1e-14)


def test_nearest_centroid_of_figure_1_stays_where_it_is() -> None:
    # The means differ in the first input alone: BN scales the inputs, and does not turn that difference.
    assert angle(TOY.bn_centroid_weights(0), TOY.centroid_weights) == pytest.approx(0, abs=1e-12)


# ---------------------------------------------------------------- other Gaussians


def test_population_variance_is_that_of_both_classes() -> None:
    model = OTHER
    x, labels = exact_sample(model)
    np.testing.assert_allclose(x.var(axis=0), model.variance, rtol=1e-13)
    np.testing.assert_allclose(x[labels == 0].mean(axis=0), model.mean_0, atol=1e-14)
    np.testing.assert_allclose(np.cov(x[labels == 1].T, bias=True), model.covariance, rtol=1e-13)


@pytest.mark.parametrize("c", [0, 1.0])
def test_nearest_centroid_behind_bn_is_that_of_normalized_data(c: float) -> None:
    x, labels = exact_sample(OTHER)
    normalized = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + c)
    means = centroids(normalized, labels, 2)
    found = effective_weights(means[0] - means[1], x.var(axis=0), c)
    np.testing.assert_allclose(found, OTHER.bn_centroid_weights(c), rtol=1e-13)
    np.testing.assert_allclose(found, np.array([-2, 3]) / (np.array([3, 2.35]) + c), rtol=1e-13)


def test_bn_tilts_nearest_centroid_towards_low_variance() -> None:
    model = TwoGaussians(np.array([1.0, 1.0]), np.array([-1.0, -1.0]), np.diag([9.0, 0.5]))
    np.testing.assert_allclose(model.bn_centroid_weights(0), [2 / 10, 2 / 1.5], rtol=1e-14)
    angles = [float(angle(model.bn_centroid_weights(c), model.centroid_weights)) for c in (0, 0.1, 1, 1e9)]
    assert angles == sorted(angles, reverse=True)
    assert angles[0] == pytest.approx(math.degrees(math.atan(10 / 1.5)) - 45)
    assert angles[-1] == pytest.approx(0, abs=1e-6)


def test_isotropic_noise_leaves_nothing_to_tilt() -> None:
    model = TwoGaussians(np.array([1.0, 2.0, 3.0]), np.zeros(3), 4 * np.eye(3))
    assert model.bayes_angle == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(model.bayes_weights, [0.25, 0.5, 0.75], rtol=1e-15)


def test_equal_means_have_no_angle() -> None:
    assert math.isnan(TwoGaussians(np.ones(2), np.ones(2), np.eye(2)).bayes_angle)


@pytest.mark.parametrize(
    ("mean_0", "mean_1", "covariance", "message"),
    [
        ([0.0, 0], [1.0], np.eye(2), "expected shapes"),
        ([0.0, 0], [1.0, 1], np.eye(3), "expected shapes"),
        ([], [], np.zeros((0, 0)), "expected shapes"),
        ([0.0, 0], [1.0, 1], [[1, 0.5], [0.4, 1]], "symmetric and positive definite"),
        ([0.0, 0], [1.0, 1], [[1, 2], [2, 1]], "symmetric and positive definite"),
        ([0.0, np.nan], [1.0, 1], np.eye(2), "mean_0 is not finite"),
    ],
)
def test_invalid_gaussians_are_refused(mean_0: Array, mean_1: Array, covariance: Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TwoGaussians(mean_0, mean_1, covariance)


def test_two_gaussians_do_not_change() -> None:
    mean = np.zeros(2)
    model = TwoGaussians(mean, np.ones(2), np.eye(2))
    mean[0] = 5
    assert model.mean_0[0] == 0
    with pytest.raises(ValueError, match="read-only"):
        model.mean_0[0] = 5
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.mean_0 = mean  # type: ignore[misc]


# ---------------------------------------------------------------- uniform margins


@pytest.mark.parametrize(("n", "d"), [(3, 8), (5, 5)])
def test_margins_are_one_where_they_can_be(n: int, d: int) -> None:
    generator = np.random.default_rng(n)
    x, y = generator.normal(size=(n, d)), generator.choice([-1, 1], n)
    w = uniform_margin_weights(x, y)
    np.testing.assert_allclose(y * (x @ w), np.ones(n), rtol=1e-10)
    # Of least norm: in the span of the data.
    np.testing.assert_allclose(w, np.linalg.pinv(x) @ x @ w, rtol=1e-10)


def test_uniform_margins_in_numbers() -> None:
    # Max margin would favour the near example; here both have the margin 1.
    np.testing.assert_allclose(uniform_margin_weights([[1, 0, 0], [0, 4, 0]], [1, -1]), [1, -0.25, 0], atol=1e-15)


def test_bn_of_the_output_prefers_uniform_margins() -> None:
    """Minimize the logistic loss of gamma <w, x> / rms <w, x>, as a network with BN of its output has it."""
    gamma = 3.0
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(4, 6)), np.array([1, -1, -1, 1])

    def loss(coefficients: Array) -> float:
        outputs = x @ (x.T @ coefficients)
        margins = gamma * y * outputs / np.sqrt(np.mean(outputs**2))
        return float(np.logaddexp(0, -margins).mean())

    start = np.array([1.0, 0, 0, 0])  # one margin, not uniform
    found = minimize(loss, start, tol=1e-12, options={"gtol": 1e-9})
    assert found.fun == pytest.approx(np.logaddexp(0, -gamma), rel=1e-9)
    assert loss(start) > found.fun + 0.02
    assert angle(x.T @ found.x, uniform_margin_weights(x, y)) == pytest.approx(0, abs=1e-2)


def test_many_examples_give_the_discriminant_of_fisher() -> None:
    model = TwoGaussians(np.array([1.0, 0.5, -2]), np.array([-1.0, -0.5, 2]), np.diag([4, 0.1, 1]) + 0.2)
    x, labels = exact_sample(model)
    w = uniform_margin_weights(x, 1 - 2 * labels)
    half = model.centroid_weights / 2
    solved = np.linalg.solve(model.covariance, half)
    np.testing.assert_allclose(w, solved / (1 + half @ solved), rtol=1e-10)
    assert angle(w, model.bayes_weights) == pytest.approx(0, abs=1e-10)


def test_samples_of_figure_1_end_at_the_bayes_solution() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 200_000)
    means = np.stack([TOY.mean_0, TOY.mean_1])
    x = means[labels] + generator.normal(size=(len(labels), 2)) @ np.linalg.cholesky(TOY.covariance).T
    w = uniform_margin_weights(x, 1 - 2 * labels)
    assert angle(w, TOY.bayes_weights) < 0.2
    assert angle(w, TOY.centroid_weights) == pytest.approx(78.69, abs=0.2)


def test_the_discriminant_does_not_depend_on_normalization() -> None:
    c = 1.0
    x, labels = exact_sample(TOY)
    behind = uniform_margin_weights(x / np.sqrt(x.var(axis=0) + c), 1 - 2 * labels)
    found = effective_weights(behind, x.var(axis=0), c)
    np.testing.assert_allclose(found, uniform_margin_weights(x, 1 - 2 * labels), rtol=1e-10)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([[1, 2]], [1, 1], "expected shapes"),
        (np.zeros((0, 2)), [], "expected shapes"),
        ([[1, 2]], [0], "labels must be"),
    ],
)
def test_invalid_examples_and_labels_are_refused(x: Array, y: Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        uniform_margin_weights(x, y)

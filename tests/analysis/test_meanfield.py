"""The growth of gradients in deep BN networks: the formula against its limit, its derivation and real networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from bn_vuln.analysis.meanfield import depth_limit, gradient_growth

Array = NDArray[np.float64]

LIMIT = math.pi / (math.pi - 1)


def test_the_limit_of_large_batches() -> None:
    assert pytest.approx(1.467, abs=1e-3) == LIMIT
    assert gradient_growth(10**6) == pytest.approx(LIMIT, abs=1e-5)
    assert gradient_growth(10**12) == pytest.approx(LIMIT, abs=1e-9)


def test_one_value_by_hand() -> None:
    # B = 5: rho = -1/4, sqrt(1 - rho^2) = sqrt(15) / 4, s = 1/2 - q.
    q = (math.sqrt(15) / 4 - (math.pi - math.acos(-0.25)) / 4) / (2 * math.pi)
    p = 0.25 + math.asin(-0.25) / (2 * math.pi)
    assert gradient_growth(5) == pytest.approx((2 + p - (0.5 - q)) / (2 * (0.5 - q)), rel=1e-14)
    assert gradient_growth(5) == pytest.approx(2.27371, abs=1e-5)


def test_gradients_explode_less_in_larger_batches() -> None:
    growth = gradient_growth(np.arange(4, 2000))
    assert growth.dtype == np.float64
    assert (np.diff(growth) < 0).all()
    assert (growth > LIMIT).all()


def test_arrays_give_arrays_and_numbers_numbers() -> None:
    sizes = [[4, 5], [8, 1000]]
    np.testing.assert_array_equal(
        gradient_growth(np.array(sizes)), [[gradient_growth(b) for b in row] for row in sizes]
    )
    np.testing.assert_array_equal(gradient_growth([4, 8]), [gradient_growth(4), gradient_growth(8)])
    assert isinstance(gradient_growth(8), float)
    assert isinstance(depth_limit(8), float)
    np.testing.assert_array_equal(depth_limit([4, 8]), [depth_limit(4), depth_limit(8)])


@pytest.mark.parametrize("batch_size", [3, math.nan])
def test_three_examples_are_too_few(batch_size: int) -> None:
    with pytest.raises(ValueError, match="greater than 3"):
        gradient_growth(batch_size)
    with pytest.raises(ValueError, match="greater than 3"):
        depth_limit(np.array([8, batch_size]))


def test_depth_limits() -> None:
    assert depth_limit(10**9) == pytest.approx(41.75, abs=0.01)
    assert depth_limit(5, 1.0) == pytest.approx(1 / math.log(gradient_growth(5)))
    assert depth_limit(5) == pytest.approx(19.48, abs=0.01)
    assert (np.diff(depth_limit(np.arange(4, 200))) > 0).all()


# ---------------------------------------------------------------- Monte Carlo


def back_through_bn(gradients: Array, y: Array, deviation: Array) -> Array:
    """Gradients with respect to the input of BN (c = 0, over the last axis) from those of its output `y`."""
    centered = gradients - gradients.mean(axis=-1, keepdims=True)
    return np.asarray((centered - y * (gradients * y).mean(axis=-1, keepdims=True)) / deviation)


def test_this_backward_pass_is_the_derivative_of_bn() -> None:
    h, g = np.random.default_rng(0).normal(size=(2, 6))
    h, g = h.astype(np.float64), g.astype(np.float64)

    def bn(values: Array) -> Array:
        return np.asarray((values - values.mean()) / values.std())

    steps = 1e-6 * np.eye(6)
    numeric = [g @ (bn(h + step) - bn(h - step)) / 2e-6 for step in steps]
    np.testing.assert_allclose(back_through_bn(g, bn(h), h.std()), numeric, atol=1e-8)


def test_the_backward_map_multiplies_the_projection() -> None:
    """E[J D G D J] = lambda G and E[G relu(y) relu(y)^T G] = s G, sampled: 1% is 7 or more standard errors."""
    batch_size = 6
    generator = np.random.default_rng(0)
    projection = np.eye(batch_size) - 1 / batch_size
    forward, backward = np.zeros((2, batch_size, batch_size))
    rounds, samples = 20, 20_000
    for _ in range(rounds):
        h = generator.normal(size=(samples, batch_size))
        h -= h.mean(axis=1, keepdims=True)
        deviation = h.std(axis=1, keepdims=True)  # of a chi^2: the pre-activations before their factor s
        y = h / deviation  # uniform on the sphere
        active = np.maximum(y, 0) - np.maximum(y, 0).mean(axis=1, keepdims=True)
        forward += active.T @ active / samples / rounds
        # All gradients at once: the rows of G, whose covariance is G, through the mask and BN.
        masked = projection[None] * (y > 0)[:, None]
        columns = back_through_bn(masked, y[:, None], deviation[:, None])
        backward += np.einsum("nki,nkj->ij", columns, columns, optimize=True) / samples / rounds
    s = np.trace(forward) / (batch_size - 1)
    growth = np.trace(backward) / (batch_size - 1) / s
    assert growth == pytest.approx(gradient_growth(batch_size), rel=0.01)
    np.testing.assert_allclose(forward, s * projection, atol=0.01 * s)
    np.testing.assert_allclose(backward, growth * s * projection, atol=0.03 * growth * s)


def measured_growth(batch_size: int, seed: int, width: int = 500, depth: int = 20) -> list[float]:
    """log of the growth of the squared gradient norm per layer, of the middle layers of one random network."""
    generator = np.random.default_rng(seed)
    activation = generator.standard_normal((width, batch_size), dtype=np.float32)
    layers = []
    for _ in range(depth):
        weights = generator.standard_normal((width, width), dtype=np.float32) / np.float32(math.sqrt(width))
        h = weights @ activation
        h -= h.mean(axis=1, keepdims=True)
        deviation = h.std(axis=1, keepdims=True)
        y = h / deviation
        activation = np.maximum(y, 0)
        layers.append((weights, deviation, y))
    gradient = generator.standard_normal((width, batch_size), dtype=np.float32)
    norms = []
    for weights, deviation, y in reversed(layers):
        before = back_through_bn(gradient * (y > 0), y, deviation)
        norms.append(float(np.square(before, dtype=np.float64).sum()))
        gradient = weights.T @ before
    return [float(growth) for growth in np.diff(np.log(norms))[2:-2]]


@pytest.mark.parametrize(("batch_size", "tolerance"), [(8, 0.02), (64, 0.01)])
def test_real_networks_grow_as_the_theory_says(batch_size: int, tolerance: float) -> None:
    """Six networks, 90 layers in all: the standard error is about 0.5% at B = 8, and 0.15% at B = 64."""
    found = [growth for seed in range(6) for growth in measured_growth(batch_size, seed)]
    assert math.exp(np.mean(found)) == pytest.approx(gradient_growth(batch_size), rel=tolerance)
    # It tells each batch size from the limit, and B - 3 from B - 2 in the formula.
    assert gradient_growth(batch_size) / LIMIT - 1 > tolerance
    assert 1 - (batch_size - 3) / (batch_size - 2) > tolerance

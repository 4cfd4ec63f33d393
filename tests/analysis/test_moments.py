"""Distances of means and variances against closed forms."""

import numpy as np
import pytest

from bn_vuln.analysis.moments import log_std_ratio, mean_shift


@pytest.mark.parametrize("c", [0.0, 3.0])
def test_a_shift_is_in_standard_deviations_with_c(c):
    mean, variance = np.array([1.0, -2.0, 0.0]), np.array([4.0, 1.0, 0.25])
    moved = mean + 0.5 * np.sqrt(variance + c)
    assert mean_shift([moved, moved], mean, variance, c) == pytest.approx(0.5)
    assert mean_shift([mean], mean, variance, c) == 0


def test_it_is_the_root_mean_square_over_channels_and_the_mean_over_batches():
    assert mean_shift([[3.0, 4.0], [0.0, 0.0]], [0, 0], [1, 1], 0) == pytest.approx(np.sqrt(12.5) / 2)
    assert mean_shift([[-1.0], [1.0]], [0], [1], 0) == 1  # shifts of either sign do not cancel
    assert log_std_ratio([[np.e**2, np.e**-2]], [1, 1], 0) == pytest.approx(1)
    assert log_std_ratio([[np.e**2], [np.e**-4]], [1], 0) == pytest.approx(1.5)


def test_a_ratio_is_the_logarithm_of_a_ratio_of_standard_deviations():
    c = 0.1
    variance = np.array([4.0, 1.0, 0.25])
    assert log_std_ratio([9 * (variance + c) - c], variance, c) == pytest.approx(np.log(3))
    assert log_std_ratio([variance], variance, c) == 0


def test_a_large_c_hides_every_distance():
    assert mean_shift([[5.0]], [0], [1], 1e8) == pytest.approx(5e-4)
    assert log_std_ratio([[100.0]], [1], 1e8) == pytest.approx(99 / 2e8)


def test_batches_of_normal_values_are_off_by_chance():
    n = 50
    values = np.random.default_rng(0).normal(size=(20, n, 400))
    assert mean_shift(values.mean(1), np.zeros(400), np.ones(400), 0) == pytest.approx(1 / np.sqrt(n), rel=0.02)
    assert log_std_ratio(values.var(1), np.ones(400), 0) == pytest.approx(1 / np.sqrt(2 * n), rel=0.05)

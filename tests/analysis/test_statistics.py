"""Means, standard errors, differences between arms, ratios, slopes and intervals."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray

from bn_vuln.analysis.statistics import (
    Estimate,
    Proportion,
    bootstrap_interval,
    estimate,
    log_log_slope,
    paired,
    paired_interval,
    ratio,
    unpaired,
)


@pytest.mark.parametrize("n", [2, 30])
def test_mean_sem_and_interval_agree_with_scipy(n: int) -> None:
    values = np.random.default_rng(n).normal(0.5, 0.1, n)
    found = estimate(list(values))
    assert found.n == n
    assert found.mean == pytest.approx(values.mean(), rel=1e-12)
    assert found.sem == pytest.approx(scipy.stats.sem(values), rel=1e-12)
    expected = scipy.stats.t.interval(0.95, n - 1, loc=values.mean(), scale=scipy.stats.sem(values))
    assert found.interval() == pytest.approx(expected, rel=1e-9)


def test_proportions_have_wilson_intervals() -> None:
    value, z2 = Proportion(3, 10), scipy.stats.norm.ppf(0.975) ** 2
    centre, half = (0.3 + z2 / 20) / (1 + z2 / 10), math.sqrt(z2 * (0.3 * 0.7 / 10 + z2 / 400)) / (1 + z2 / 10)
    assert value.rate == 0.3
    assert value.interval() == pytest.approx((centre - half, centre + half))
    assert Proportion(0, 10).interval() == pytest.approx((0, z2 / (10 + z2)))
    assert (Proportion(0, 0).rate, Proportion(0, 0).interval()) == (None, None)


def test_the_interval_grows_as_seeds_go() -> None:
    few, many = Estimate(0.0, 0.1, 2).interval(), Estimate(0.0, 0.1, 1000).interval()
    assert few == pytest.approx((-1.2706, 1.2706), abs=1e-3)
    assert many == pytest.approx((-0.1962, 0.1962), abs=1e-3)


def test_one_value_has_no_spread() -> None:
    found = estimate([0.5])
    assert found == Estimate(0.5, None, 1)
    assert found.interval() is None


def test_equal_values_have_no_spread() -> None:
    assert estimate([0.5, 0.5, 0.5]) == Estimate(0.5, 0.0, 3)


def test_nothing_has_no_mean() -> None:
    with pytest.raises(ValueError, match="no values"):
        estimate([])


def test_pairs_are_the_seeds_that_both_have() -> None:
    found = paired({0: 0.3, 1: 0.4, 2: 0.9}, {1: 0.5, 0: 0.6, 3: 0.0})
    assert found is not None
    assert found.n == 2
    assert found.mean == pytest.approx(-0.2)
    assert found.sem == pytest.approx(scipy.stats.sem([-0.3, -0.1]))


def test_without_a_common_seed_there_is_no_pair() -> None:
    assert paired({0: 0.3}, {1: 0.5}) is None
    assert paired({}, {}) is None


def test_pairing_removes_what_the_seeds_share() -> None:
    reference = dict(enumerate([0.2, 0.5, 0.8]))
    treatment = {seed: value - 0.1 for seed, value in reference.items()}
    together = paired(treatment, reference)
    apart = unpaired(estimate([*treatment.values()]), estimate([*reference.values()]))
    assert together is not None
    assert together.mean == pytest.approx(-0.1)
    assert together.sem == pytest.approx(0, abs=1e-15)
    assert apart.sem is not None
    assert apart.sem > 0.1


def test_unpaired_differences_add_their_errors_in_quadrature() -> None:
    found = unpaired(Estimate(0.2, 0.03, 5), Estimate(0.7, 0.04, 4))
    assert found.mean == pytest.approx(-0.5)
    assert found.sem == pytest.approx(0.05)
    assert found.n == 4


def test_unpaired_differences_need_both_errors() -> None:
    assert unpaired(Estimate(0.2, 0.1, 3), Estimate(0.7, None, 1)) == Estimate(0.2 - 0.7, None, 1)


# ---------------------------------------------------------------- ratios and slopes


def test_ratios_are_paired_by_seed() -> None:
    found = ratio({0: 3.0, 1: 8.0, 2: 9.0}, {1: 2.0, 0: 1.5, 3: 0.0})
    assert found is not None
    assert found.n == 2
    assert found.mean == pytest.approx(3)  # of 2 and 4
    assert found.sem == pytest.approx(1)


def test_one_common_seed_gives_a_ratio_without_spread() -> None:
    assert ratio({0: 3.0}, {0: 2.0}) == Estimate(1.5, None, 1)
    assert ratio({0: 0.0}, {0: 2.0}) == Estimate(0.0, None, 1)


@pytest.mark.parametrize(
    ("treatment", "reference"),
    [({0: 1.0}, {1: 1.0}), ({0: 1.0, 1: 1.0}, {0: 1.0, 1: 0.0})],
)
def test_without_a_common_seed_or_with_a_reference_of_zero_there_is_no_ratio(
    treatment: dict[int, float], reference: dict[int, float]
) -> None:
    assert ratio(treatment, reference) is None


@pytest.mark.parametrize("power", [-2.0, 0.5])
def test_the_slope_is_the_power(power: float) -> None:
    x = np.array([28.0, 56.0, 84.0, 112.0])
    assert log_log_slope(x, 7 * x**power) == pytest.approx(power, abs=1e-12)


def test_the_slope_is_of_least_squares() -> None:
    # log2 x = 0, 1, 2 and log2 y = 0, 0, 3: slope 3/2.
    assert log_log_slope([1, 2, 4], [1, 1, 8]) == pytest.approx(1.5)
    assert log_log_slope([1, 1, 2], [1, 4, 4]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1, 0], [1, 1], "positive, finite"),
        ([1, 2], [1, math.nan], "positive, finite"),
        ([2, 2], [1, 3], "two distinct x"),
        ([1, 2], [1, 2, 3], "expected two arrays"),
    ],
)
def test_values_without_a_slope_are_refused(x: list[float], y: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        log_log_slope(x, y)


# ---------------------------------------------------------------- the bootstrap


def outcomes(wrong: int, right: int) -> NDArray[np.bool_]:
    return np.repeat([False, True], [wrong, right])


def test_resampling_examples_is_resampling_their_counts() -> None:
    """All 5^5 equally likely resamples of five paired differences, against the multinomial law of -1, 0, +1."""
    differences = [-1, 0, 0, 1, 1]
    drawn = Counter(tuple(sorted(sample)) for sample in itertools.product(differences, repeat=5))
    law = scipy.stats.multinomial(5, [1 / 5, 2 / 5, 2 / 5])
    for sample, times in drawn.items():
        counts = [sample.count(value) for value in (-1, 0, 1)]
        assert times / 5**5 == pytest.approx(law.pmf(counts), rel=1e-12)
    assert len(drawn) == 21  # as many as there are counts that add up to five


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_the_interval_of_an_accuracy_is_binomial(level: float) -> None:
    low, high = bootstrap_interval(outcomes(30, 70), level=level, resamples=200_000)
    assert (low, high) == pytest.approx(np.array(scipy.stats.binom.interval(level, 100, 0.7)) / 100, abs=1e-12)


def exact_paired_quantiles(counts: list[int], probabilities: list[float]) -> NDArray[np.float64]:
    """Quantiles of the mean of n draws of -1, 0, +1, by n convolutions of their law."""
    n = sum(counts)
    law = np.ones(1)
    for _ in range(n):
        law = np.convolve(law, np.array(counts) / n)
    return np.asarray((np.searchsorted(np.cumsum(law), probabilities) - n) / n)


@pytest.mark.parametrize("counts", [[10, 30, 20], [0, 50, 10]])
def test_the_interval_of_a_paired_difference_is_that_of_its_law(counts: list[int]) -> None:
    losses, ties, wins = counts
    # Half of the ties are both wrong, the others both right.
    treatment = np.concatenate([outcomes(losses, 0), outcomes(ties // 2, ties - ties // 2), outcomes(0, wins)])
    reference = np.concatenate([outcomes(0, losses), outcomes(ties // 2, ties - ties // 2), outcomes(wins, 0)])
    mixed = np.random.default_rng(1).permutation(len(treatment))
    found = bootstrap_interval(treatment[mixed], reference[mixed], level=0.9, resamples=200_000)
    assert found == pytest.approx(exact_paired_quantiles(counts, [0.05, 0.95]), abs=1e-12)


def test_the_interval_is_that_of_scipy() -> None:
    generator = np.random.default_rng(0)
    treatment, reference = generator.random(400) < 0.6, generator.random(400) < 0.7
    found = bootstrap_interval(treatment, reference, resamples=20_000)
    differences = treatment.astype(float) - reference
    expected = scipy.stats.bootstrap(
        (differences,), np.mean, n_resamples=20_000, batch=500, method="percentile", rng=generator
    ).confidence_interval
    assert found == pytest.approx((expected.low, expected.high), abs=1.01 / 400)  # one example


def test_pairs_narrow_the_interval() -> None:
    reference = outcomes(500, 500)
    treatment = np.roll(reference, 10)  # the two differ in 20 examples
    together = bootstrap_interval(treatment, reference)
    alone = bootstrap_interval(treatment)
    assert together[1] - together[0] == pytest.approx(2 * 1.96 * math.sqrt(0.02 / 1000), rel=0.1)
    assert alone[1] - alone[0] == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 1000), rel=0.1)


def test_the_seed_and_nothing_else_makes_the_interval() -> None:
    values = outcomes(3000, 7000)
    first = bootstrap_interval(values, seed=3)
    assert first == bootstrap_interval(values[::-1], seed=3)
    assert len({bootstrap_interval(values, seed=seed) for seed in range(5)}) > 1
    assert all(type(end) is float for end in first)


@pytest.mark.parametrize(
    ("treatment", "reference", "mean"),
    [
        (outcomes(0, 7), None, 1.0),
        (outcomes(3, 4), outcomes(3, 4), 0.0),
        (outcomes(7, 0), outcomes(0, 7), -1.0),
    ],
)
def test_equal_outcomes_have_no_width(
    treatment: NDArray[np.bool_], reference: NDArray[np.bool_] | None, mean: float
) -> None:
    assert bootstrap_interval(treatment, reference) == (mean, mean)


@pytest.mark.parametrize(
    ("treatment", "reference"),
    [
        (outcomes(0, 0), None),
        (np.array([0.5, 1.0]), None),
        (outcomes(1, 1), outcomes(1, 2)),
    ],
)
def test_other_arrays_than_outcomes_are_refused(
    treatment: NDArray[np.bool_], reference: NDArray[np.bool_] | None
) -> None:
    with pytest.raises(ValueError, match="expected outcomes bool"):
        bootstrap_interval(treatment, reference)


# ---------------------------------------------------------------- claims of equality and of a sign


# ---------------------------------------------------------------- paired intervals


def paired_outcomes(both, gained, lost, neither):
    """(before, after), bool [n], with so many of each kind."""
    before = np.repeat([True, False, True, False], [both, gained, lost, neither])
    return before, np.repeat([True, True, False, False], [both, gained, lost, neither])


def test_paired_interval_by_hand():
    """n = 98: p12 = 11/100, p21 = 3/100; half = 1.959964 sqrt((.14 - .0064) / 100)."""
    found = paired_interval(*paired_outcomes(50, 10, 2, 36))
    half = 1.959964 * np.sqrt(0.1336 / 100)
    assert found == pytest.approx((8 / 98, 0.08 - half, 0.08 + half), abs=1e-6)
    narrower = paired_interval(*paired_outcomes(50, 10, 2, 36), level=0.9)
    assert narrower[2] - 0.08 == pytest.approx(1.644854 * np.sqrt(0.1336 / 100), abs=1e-6)


def test_paired_interval_where_nothing_changes_still_has_a_width():
    difference, low, high = paired_interval(*paired_outcomes(10, 0, 0, 8))
    half = 1.959964 * np.sqrt(0.1 / 20)
    assert (difference, low, high) == pytest.approx((0, -half, half), abs=1e-6)


def test_paired_interval_stays_in_its_range():
    assert paired_interval(*paired_outcomes(0, 3, 0, 0))[2] == 1
    assert paired_interval(*paired_outcomes(0, 0, 3, 0))[1] == -1


@pytest.mark.parametrize(("n", "p12", "p21"), [(30, 0.05, 0.05), (100, 0.1, 0.02), (100, 0.3, 0.1), (50, 0.02, 0.0)])
def test_paired_interval_covers(n, p12, p21):
    """95% of intervals hold the true difference, or a few more."""
    rng = np.random.default_rng(0)
    covered = 0
    for gained, lost, others in rng.multinomial(n, [p12, p21, 1 - p12 - p21], 2000):
        _, low, high = paired_interval(*paired_outcomes(0, gained, lost, others))
        covered += low <= p12 - p21 <= high
    assert 0.935 <= covered / 2000 <= (1.0 if n * (p12 + p21) < 4 else 0.98)


@pytest.mark.parametrize("wrong", [([True], [True, False]), ([], []), ([1, 0], [0, 1])])
def test_paired_interval_refuses_what_are_no_paired_outcomes(wrong):
    with pytest.raises(ValueError, match="expected outcomes"):
        paired_interval(*map(np.asarray, wrong))

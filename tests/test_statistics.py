"""Means, standard errors, differences between arms, and the verdict rule."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from bn_vuln.analysis.statistics import Estimate, estimate, paired, unpaired, verdict


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_mean_sem_and_interval_agree_with_scipy(n: int) -> None:
    values = np.random.default_rng(n).normal(0.5, 0.1, n)
    found = estimate(list(values))
    assert found.n == n
    assert found.mean == pytest.approx(values.mean(), rel=1e-12)
    assert found.sem == pytest.approx(scipy.stats.sem(values), rel=1e-12)
    expected = scipy.stats.t.interval(0.95, n - 1, loc=values.mean(), scale=scipy.stats.sem(values))
    assert found.interval() == pytest.approx(expected, rel=1e-9)


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


@pytest.mark.parametrize("values", [[], np.array([])])
def test_nothing_has_no_mean(values: list[float]) -> None:
    with pytest.raises(ValueError, match="no values"):
        estimate(values)


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


@pytest.mark.parametrize("treatment", [Estimate(0.2, None, 1), Estimate(0.2, 0.1, 3)])
def test_unpaired_differences_need_both_errors(treatment: Estimate) -> None:
    assert unpaired(treatment, Estimate(0.7, None, 1)) == Estimate(0.2 - 0.7, None, 1)


# ---------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("ours", "value", "sem", "expected"),
    [
        pytest.param(None, -0.4, 0.01, "not run", id="no records"),
        pytest.param(Estimate(-0.4, None, 1), -0.4, 0.01, "undecided", id="one seed"),
        pytest.param(Estimate(-0.4, 0.0001, 2), -0.4, 0.01, "undecided", id="two seeds"),
        pytest.param(Estimate(-0.4, 0.0001, 3), -0.4, 0.01, "holds", id="three seeds"),
        pytest.param(Estimate(-0.4, 0.2, 5), -0.4, 0.01, "undecided", id="the right mean with a wide interval"),
        pytest.param(Estimate(0.01, 0.02, 5), -0.4, 0.01, "undecided", id="about nothing"),
        pytest.param(Estimate(0.0, 0.0, 5), -0.4, 0.01, "undecided", id="exactly nothing"),
        pytest.param(Estimate(-0.41, 0.005, 5), -0.4, 0.01, "holds", id="near and large"),
        pytest.param(Estimate(-0.30, 0.005, 5), -0.4, 0.01, "holds", id="not near, but three quarters"),
        pytest.param(Estimate(-0.90, 0.005, 5), -0.4, 0.01, "holds", id="larger than the paper's"),
        pytest.param(Estimate(-0.15, 0.005, 5), -0.4, 0.2, "holds", id="small, but near the paper's wide figure"),
        pytest.param(Estimate(-0.15, 0.005, 5), -0.4, 0.01, "holds in sign", id="less than half"),
        pytest.param(Estimate(-0.15, 0.005, 5), -0.4, None, "holds in sign", id="less than half, no SEM given"),
        pytest.param(Estimate(-0.39, 0.005, 5), -0.4, None, "holds", id="near, no SEM given"),
        pytest.param(Estimate(0.15, 0.005, 5), -0.4, 0.01, "fails", id="the other sign"),
        pytest.param(Estimate(0.41, 0.005, 5), -0.4, 0.01, "fails", id="the same size with the other sign"),
        pytest.param(Estimate(0.02, 0.005, 5), -0.01, 0.5, "fails", id="the other sign, inside the paper's error"),
        pytest.param(Estimate(-0.4, 0.0, 3), -0.4, 0.01, "holds", id="no variance"),
        pytest.param(Estimate(0.4, 0.0, 3), -0.4, 0.01, "fails", id="no variance, the other sign"),
        pytest.param(Estimate(-0.1, 0.0, 3), -0.4, 0.01, "holds in sign", id="no variance, less than half"),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_verdicts(ours: Estimate | None, value: float, sem: float | None, expected: str, sign: int) -> None:
    turned = ours and Estimate(sign * ours.mean, ours.sem, ours.n)
    assert verdict(turned, sign * value, sem) == expected


@pytest.mark.parametrize(("factor", "expected"), [(1 - 1e-9, "holds"), (1 + 1e-9, "undecided")])
@pytest.mark.parametrize("n", [3, 5, 50])
def test_the_interval_decides_whether_the_sign_is_known(n: int, factor: float, expected: str) -> None:
    sem = 0.4 / scipy.stats.t.ppf(0.975, n - 1) * factor
    assert verdict(Estimate(-0.4, sem, n), -0.4, 0.01) == expected


def test_an_interval_that_ends_at_nothing_includes_it() -> None:
    sem = 0.1
    half = Estimate(0.0, sem, 5).interval()
    assert half is not None
    assert verdict(Estimate(half[1], sem, 5), half[1], 0.01) == "undecided"


@pytest.mark.parametrize(
    ("mean", "expected"), [(-0.25, "holds"), (math.nextafter(-0.25, 0), "holds in sign"), (-0.2501, "holds")]
)
def test_half_of_the_paper_is_enough(mean: float, expected: str) -> None:
    assert verdict(Estimate(mean, 0.0, 3), -0.5, None) == expected


@pytest.mark.parametrize(
    ("sem", "expected"), [(0.375, "holds"), (math.nextafter(0.375, 0), "holds in sign"), (0.4, "holds")]
)
def test_two_standard_errors_are_near(sem: float, expected: str) -> None:
    assert verdict(Estimate(0.25, 0.0, 3), 1.0, sem) == expected


@pytest.mark.parametrize(("own", "expected"), [(0.9, "holds"), (0.0, "holds in sign"), (0.8, "holds in sign")])
def test_both_errors_count_in_quadrature(own: float, expected: str) -> None:
    # |d - D| = 6 = 2 sqrt(s^2 + e^2) at e = 0.9 with s^2 = 9 - 0.81; |d| is less than half of |D|.
    assert verdict(Estimate(4.0, own, 100), 10.0, math.sqrt(9 - 0.81) + 1e-12) == expected


def test_two_seeds_never_decide() -> None:
    assert verdict(Estimate(-0.4, 1e-9, 2), -0.4, 0.01) == "undecided"
    assert verdict(Estimate(0.4, 1e-9, 2), -0.4, 0.01) == "undecided"

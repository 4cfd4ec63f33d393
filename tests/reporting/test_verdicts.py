"""Verdicts: each rule at its borders, with exact answers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import scipy.stats

from bn_vuln.analysis.statistics import Estimate
from bn_vuln.config import Claim, ContextClaim, EqualsClaim, RatioClaim, SignClaim, SlopeClaim, ValueClaim
from bn_vuln.reporting.verdicts import MEANINGS, PLURALS, judge

ABOUT: dict[str, Any] = {"perturbations": ("bim",), "source": "text"}
ARMS: Any = ("batch", "none")
T5 = float(scipy.stats.t.ppf(0.975, 4))  # half the width of the interval of five seeds, in SEM


def value(number: float, sem: float | None = None) -> Claim:
    return ValueClaim(value=number, sem=sem, **ABOUT)


def equals(number: float, sem: float | None, tolerance: float, *, exact: bool = False) -> Claim:
    return EqualsClaim(value=number, sem=sem, tolerance=tolerance, exact=exact, **ABOUT)


@pytest.mark.parametrize(
    ("ours", "number", "sem", "expected"),
    [
        pytest.param(None, -0.4, 0.01, "not run", id="no records"),
        pytest.param(Estimate(-0.4, None, 1), -0.4, 0.01, "undecided", id="one seed"),
        pytest.param(Estimate(-0.4, 0.0001, 2), -0.4, 0.01, "undecided", id="two seeds"),
        pytest.param(Estimate(-0.4, 0.0001, 3), -0.4, 0.01, "holds", id="three seeds"),
        pytest.param(Estimate(-0.4, 0.2, 5), -0.4, 0.01, "undecided", id="the right mean with a wide interval"),
        pytest.param(Estimate(-0.4, 0.4 / T5 * (1 - 1e-9), 5), -0.4, 0.01, "holds", id="the interval ends before 0"),
        pytest.param(Estimate(-0.4, 0.4 / T5 * (1 + 1e-9), 5), -0.4, 0.01, "undecided", id="it ends behind 0"),
        pytest.param(Estimate(0.0, 0.0, 5), -0.4, 0.01, "undecided", id="exactly nothing"),
        pytest.param(Estimate(-0.41, 0.005, 5), -0.4, 0.01, "holds", id="near and large"),
        pytest.param(Estimate(-0.25, 0.0, 3), -0.5, None, "holds", id="not near, but half"),
        pytest.param(Estimate(math.nextafter(-0.25, 0), 0.0, 3), -0.5, None, "holds in sign", id="less than half"),
        pytest.param(Estimate(-0.15, 0.005, 5), -0.4, 0.2, "holds", id="small, but near the paper's wide figure"),
        pytest.param(Estimate(0.25, 0.0, 3), 1.0, 0.375, "holds", id="at two of their errors"),
        pytest.param(Estimate(0.25, 0.0, 3), 1.0, math.nextafter(0.375, 0), "holds in sign", id="beyond them"),
        # |d - D| = 6 = 2 sqrt(s^2 + e^2) at e = 0.9 with s^2 = 9 - 0.81; |d| is less than half of |D|.
        pytest.param(Estimate(4.0, 0.9, 100), 10.0, math.sqrt(9 - 0.81) + 1e-12, "holds", id="errors in quadrature"),
        pytest.param(Estimate(4.0, 0.8, 100), 10.0, math.sqrt(9 - 0.81) + 1e-12, "holds in sign", id="too small"),
        pytest.param(Estimate(0.15, 0.005, 5), -0.4, 0.01, "fails", id="the other sign"),
        pytest.param(Estimate(0.02, 0.005, 5), -0.01, 0.5, "fails", id="the other sign, inside the paper's error"),
    ],
)
def test_a_signed_difference_is_judged_by_sign_and_size(
    ours: Estimate | None, number: float, sem: float | None, expected: str
) -> None:
    for sign in (1, -1):
        signed = ours and Estimate(sign * ours.mean, ours.sem, ours.n)
        assert judge(value(sign * number, sem), signed) == expected


def test_an_interval_that_ends_at_nothing_includes_it() -> None:
    half = Estimate(0.0, 0.1, 5).interval()
    assert half is not None
    assert judge(value(half[1], 0.01), Estimate(half[1], 0.1, 5)) == "undecided"


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        pytest.param(None, "not run", id="no records"),
        pytest.param(Estimate(0.4, None, 1), "undecided", id="one seed"),
        pytest.param(Estimate(0.4, 1e-9, 2), "undecided", id="two seeds"),
        pytest.param(Estimate(0.4, 1e-9, 3), "holds", id="three seeds"),
        pytest.param(Estimate(30.0, 0.1, 3), "holds", id="any size"),
        pytest.param(Estimate(-0.4, 1e-9, 3), "fails", id="the other sign"),
        pytest.param(Estimate(0.4, 0.4 / T5 * (1 - 1e-9), 5), "holds", id="the interval ends before 0"),
        pytest.param(Estimate(0.4, 0.4 / T5 * (1 + 1e-9), 5), "undecided", id="it ends behind 0"),
        pytest.param(Estimate(0.0, 0.0, 5), "undecided", id="exactly nothing"),
    ],
)
def test_a_sign_is_judged_by_the_interval(ours: Estimate | None, expected: str) -> None:
    for sign in (1, -1):
        signed = ours and Estimate(sign * ours.mean, ours.sem, ours.n)
        assert judge(SignClaim(sign=sign, **ABOUT), signed) == expected


@pytest.mark.parametrize(
    ("ours", "sem", "tolerance", "expected"),
    [
        pytest.param(None, 0.0, 1.0, "not run", id="no records"),
        pytest.param(Estimate(0.5, None, 1), 0.01, 1.0, "undecided", id="one seed"),
        pytest.param(Estimate(0.5, 0.0, 2), None, 1.0, "undecided", id="two seeds that agree"),
        pytest.param(Estimate(0.5, 0.01, 3), 0.01, 0.0, "holds", id="three seeds"),
        pytest.param(Estimate(0.625, 0.0, 3), None, 0.125, "holds", id="at the tolerance"),
        pytest.param(Estimate(math.nextafter(0.625, 1), 0.0, 3), None, 0.125, "fails", id="beyond the tolerance"),
        pytest.param(Estimate(0.75, 0.125, 3), None, 0.0, "holds", id="at two of our errors"),
        pytest.param(Estimate(0.75, 0.12, 3), None, 0.0, "fails", id="beyond two of our errors"),
        pytest.param(Estimate(0.75, 0.12, 3), 0.12, 0.0, "holds", id="both errors in quadrature"),
        pytest.param(Estimate(0.75, 0.08, 3), 0.08, 0.0, "fails", id="not in sum"),
        pytest.param(Estimate(0.75, 0.08, 3), 0.08, 0.25, "holds", id="the larger of the two bounds"),
        pytest.param(Estimate(-0.5, 0.01, 5), 0.01, 0.1, "fails", id="the other sign"),
    ],
)
def test_equality_is_judged_by_the_tolerance(
    ours: Estimate | None, sem: float | None, tolerance: float, expected: str
) -> None:
    fields = {"value": 0.5, "sem": sem, "tolerance": tolerance, **ABOUT}
    slope, ratio = SlopeClaim(along="x", arms=ARMS[:1], **fields), RatioClaim(arms=ARMS, **fields)
    assert [judge(claim, ours) for claim in (equals(0.5, sem, tolerance), slope, ratio)] == [expected] * 3


def test_one_number_is_enough_where_nothing_is_random() -> None:
    for ours, expected in [
        (Estimate(0.41, None, 1), "holds"),
        (Estimate(0.43, None, 1), "fails"),
        (Estimate(0.4, 0.0, 2), "undecided"),  # more than one is judged as ever
        (None, "not run"),
    ]:
        assert judge(equals(0.4, None, 0.02, exact=True), ours) == expected


def test_context_is_not_judged() -> None:
    for ours in (None, Estimate(0.4, 0.001, 3), Estimate(9.0, 0.001, 3)):
        assert judge(ContextClaim(value=0.4, **ABOUT), ours) == "context"


def test_every_verdict_has_a_meaning_by_each_rule() -> None:
    rules = {"sign", "value", "equality"}
    assert set(MEANINGS) == {*PLURALS, "context"}
    assert {v: rules - set(m) for v, m in MEANINGS.items() if "" not in m and rules - set(m)} == {
        "holds in sign": {"sign", "equality"},  # which have no size beside a sign
    }

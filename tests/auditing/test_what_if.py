"""Which changes are tried, how finalists are chosen, and what confirms them."""

import numpy as np
import pytest

from bn_vuln.auditing import what_if
from bn_vuln.auditing.findings import Candidate
from bn_vuln.auditing.options import RELATIVE_C
from bn_vuln.config import Mend
from bn_vuln.models.normalization_layers import LayerState, NormalizationLayer


def candidate(mend, clean, noise, attacked):
    return Candidate(title=what_if.title(mend), mend=mend, clean=clean, noise=noise, attacked=attacked)


BEFORE = candidate(Mend(), 0.9, 0.5, 0.4)
ALL = Mend(relative_c=0.1, reestimate=True)
ONE = Mend(relative_c=0.1, reestimate=True, layers=("bn",))


def layer(name, variance, gamma=None):
    variance = np.asarray(variance, float)
    state = LayerState(1e-5, np.ones(len(variance)) if gamma is None else np.asarray(gamma, float), variance, variance)
    return NormalizationLayer(name, "batch", object(), len(variance), 0.9, False, 1, state)


def test_the_statistics_alone_are_the_control():
    mends = what_if.all_layers(True, True)
    assert mends[0] == what_if.STATISTICS
    assert len(mends) == 1 + 2 * len(RELATIVE_C)
    assert {(m.relative_c, m.keep_gain) for m in mends[1:]} == {(r, k) for r in RELATIVE_C for k in (True, False)}
    assert all(m.reestimate for m in mends)


def test_without_statistics_or_gamma_less_is_tried():
    mends = what_if.all_layers(False, False)
    assert len(mends) == len(RELATIVE_C)
    assert not any(m.reestimate or m.keep_gain for m in mends)


def test_single_layers_are_those_of_the_widest_gains_and_at_most_so_many():
    layers = [layer("narrow", [1, 1, 1, 1]), layer("wide", [1, 1, 1, 1e-4]), layer("dead", [1, 1, 1, 1e-9])]
    assert [m.layers for m in what_if.single_layers(layers, ALL, most=2)] == [("wide",), ("narrow",)]
    assert what_if.gain_spread(layers[2]) == 1  # a dead channel passes nothing on
    assert what_if.single_layers(layers[:1], ALL) == []


def test_a_change_that_costs_too_much_is_no_finalist():
    dear = candidate(ALL, 0.88, 0.9, 0.9)
    assert what_if.finalists([dear], BEFORE, 1.0) == []
    assert what_if.finalists([dear], BEFORE, 2.0) == [dear]


def test_finalists_are_statistics_the_best_of_all_and_the_best_of_one_layer():
    statistics = candidate(what_if.STATISTICS, 0.9, 0.5, 0.4)
    weak, best = candidate(ALL, 0.9, 0.5, 0.5), candidate(Mend(relative_c=1, reestimate=True), 0.9, 0.6, 0.5)
    single = candidate(ONE, 0.9, 0.5, 0.45)
    assert what_if.finalists([statistics, weak, best, single], BEFORE, 1.0) == [statistics, best, single]
    useless = candidate(ONE, 0.9, 0.5, 0.4)
    assert what_if.finalists([statistics, weak, best, useless], BEFORE, 1.0) == [statistics, best, weak]


def test_equal_scores_take_the_smaller_c():
    small, large = candidate(ALL, 0.9, 0.6, 0.5), candidate(Mend(relative_c=3, reestimate=True), 0.9, 0.5, 0.6)
    assert what_if.best_for_all([large, small], BEFORE, 1.0) == small


def test_the_level_is_bonferronis_for_the_numbers_that_an_advice_may_rest_on():
    assert what_if.level(3, True) == pytest.approx(1 - 0.05 / 7)
    assert what_if.level(2, False) == pytest.approx(1 - 0.05 / 4)
    assert what_if.level(0, False) == pytest.approx(0.95)


def outcomes(clean, noise, strong, n=100):
    return {name: np.arange(n) < round(n * share) for name, share in
            {"clean": clean, "noise": noise, "strong": strong}.items()}  # fmt: skip


@pytest.mark.parametrize(
    ("after", "control", "gains"),
    [
        ((0.9, 0.5, 0.7), None, True),  # strong gains
        ((0.9, 0.8, 0.4), None, True),  # noise gains
        ((0.9, 0.5, 0.42), None, False),  # too little to be seen
        ((0.85, 0.5, 0.7), None, False),  # costs 5 points of clean accuracy
        ((0.9, 0.2, 0.7), None, False),  # and loses under noise
        ((1.0, 0.5, 0.4), None, True),  # statistics alone may repair the clean accuracy
        ((1.0, 0.5, 0.4), (0.9, 0.5, 0.4), False),  # which is no merit of c
    ],
)
def test_what_is_a_gain(after, control, gains):
    found = what_if.finalist(
        candidate(ALL, 0.9, 0.5, 0.4),
        outcomes(0.9, 0.5, 0.4),
        outcomes(*after),
        None if control is None else outcomes(*control),
        what_if.level(3, True),
        1.0,
    )
    assert found.gains is gains
    assert found.strong.difference.value == pytest.approx(after[2] - 0.4)


def test_a_loss_is_said_by_its_own_interval():
    found = what_if.finalist(
        candidate(ALL, 0.9, 0.5, 0.4), outcomes(0.9, 0.5, 0.4), outcomes(0.9, 0.44, 0.7), None, 0.999, 1.0
    )
    assert [one.name for one in found.losses] == ["noise"]
    assert found.noise.difference.high > 0  # at the level of many tests it is none
    assert found.gains


def test_what_stale_statistics_lose_under_noise_does_not_hide_what_c_brings():
    before, control, after = outcomes(0.7, 0.6, 0.4), outcomes(0.95, 0.45, 0.45), outcomes(0.95, 0.62, 0.48)
    level = what_if.level(3, True)
    found = what_if.finalist(candidate(ALL, 0.95, 0.6, 0.5), before, after, control, level, 1.0)
    assert found.gains  # beyond statistics under noise, and nothing is lost
    assert found.beyond
    sane = outcomes(0.95, 0.6, 0.4)  # whose statistics are not stale: then c has to win by itself
    assert not what_if.finalist(candidate(ALL, 0.95, 0.6, 0.5), sane, after, control, level, 1.0).gains


def test_a_gain_is_also_measured_against_statistics_alone():
    before, control, after = outcomes(0.9, 0.5, 0.4), outcomes(0.9, 0.5, 0.68), outcomes(0.9, 0.5, 0.7)
    found = what_if.finalist(candidate(ALL, 0.9, 0.5, 0.7), before, after, control, what_if.level(3, True), 1.0)
    assert found.gains
    assert found.beyond_statistics.difference.value == pytest.approx(0.02)
    assert found.beyond_statistics.difference.low < 0

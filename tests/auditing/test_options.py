"""Options of an audit: times, the grid of eps, the eps at which half is left, conditions."""

import numpy as np
import pytest

from bn_vuln.auditing.options import AuditOptions, half_eps, parse_requirement, round_eps
from bn_vuln.config import validate
from bn_vuln.errors import ConfigError, UsageError


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5 h", 5400), (30, 30), ("none", None), (None, None)]
)
def test_times(text, seconds):
    assert validate(AuditOptions, {"time": text}, "audit").time == seconds


@pytest.mark.parametrize("fields", [{"time": "10"}, {"time": "soon"}, {"time": -1}, {"limit": 10}, {"ord": "1"}])
def test_options_that_are_none(fields):
    with pytest.raises(ConfigError):
        validate(AuditOptions, fields, "audit")


def test_the_grid_doubles_and_few_points_are_some_of_it():
    options = AuditOptions()
    grid = options.eps_grid((28, 28, 1), 11)
    assert len(grid) == 11
    np.testing.assert_allclose(np.array(grid) * 255, 2.0 ** np.arange(-4, 7), rtol=0.05)
    assert set(options.eps_grid((28, 28, 1), 5)) < set(grid)
    assert options.eps_grid((28, 28, 1), 5)[-1] == grid[-1]
    two = AuditOptions(ord="2").eps_grid((32, 32, 3), 11)
    assert two[-1] == round_eps(64 / 255 * 0.5 * 3072**0.5, "2")


def test_the_search_and_the_curve_are_one_attack_at_other_eps():
    options = AuditOptions()
    curve = options.curve([0.1, 0.2, 0.4])
    assert curve.eps_grid == (0.1, 0.2)
    assert curve.model_copy(update={"eps_grid": ()}) == options.search(0.4)


def test_strong_of_few_classes_aims_at_those_that_there_are():
    assert AuditOptions().strong(0.1, 2).targets == 1
    assert (AuditOptions().strong(0.1, 10).targets, AuditOptions().strong(0.1, 10).queries) == (3, 500)
    assert (AuditOptions(thorough=True).strong(0.1, 10).steps, AuditOptions(thorough=True).strong(0.1, 10).targets) == (
        100,
        9,
    )


def test_half_eps_is_between_its_neighbours_on_a_logarithmic_axis():
    eps = np.array([1.0, 2.0, 4.0])
    assert half_eps(eps, np.array([0.8, 0.6, 0.2]), 0.8) == pytest.approx(2 * 2**0.5)  # .4 is half way from .6 to .2
    assert half_eps(eps, np.array([0.8, 0.4, 0.2]), 0.8) == pytest.approx(2)
    assert half_eps(eps, np.array([0.3, 0.2, 0.1]), 0.8) == 1
    assert half_eps(eps, np.array([0.8, 0.7, 0.6]), 0.8) is None


@pytest.mark.parametrize(
    ("text", "quantity", "at", "value"),
    [
        ("strong 2/255 >= .4", "strong", 2 / 255, 0.4),
        ("noise 0.1>=80%", "noise", 0.1, 0.8),
        ("clean > 9/10", "clean", None, 0.9),
        ("half-eps >= 1/255", "half-eps", None, 1 / 255),
    ],
)
def test_conditions(text, quantity, at, value):
    found = parse_requirement(text)
    assert (found.quantity, found.at, found.value) == (quantity, at, pytest.approx(value))
    assert found.met_by(1.0)
    assert not found.met_by(0.0)


@pytest.mark.parametrize(
    "text",
    [
        "strong >= .4",
        "clean >= 90",
        "strong 0/255 >= .4",
        "half-eps >= 80%",
        "clean 1 >= .9",
        "pgd 1/255 > .1",
        "noise 1/0 > .1",
        "",
        "strong 1/255",
    ],
)
def test_conditions_that_are_none(text):
    with pytest.raises(UsageError, match="expected such as"):
        parse_requirement(text)

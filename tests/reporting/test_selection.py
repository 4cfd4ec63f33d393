"""The row that is chosen: by the mean of the arms in a column, for each value of row keys, among those that qualify."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers_records import SMALL, fill, small

from bn_vuln.config import Cell, Experiment
from bn_vuln.errors import ConfigError
from bn_vuln.reporting import tables
from bn_vuln.reporting.aggregate import Results, aggregate

DECAYS = (0.0, 0.01, 0.1)
# By width, the BIM and clean accuracies at each weight decay: the largest one costs 1 point at 28, and 4 at 56.
BIM = {28: (0.2, 0.4, 0.6), 56: (0.1, 0.3, 0.7)}
CLEAN: dict[int, tuple[float | None, ...]] = {28: (0.98, 0.975, 0.97), 56: (0.98, 0.98, 0.94)}
WITHIN = {"by": "bim", "per": ["data.width"], "of": "clean", "within": 0.01, "where": {"weight_decay": 0.0}}


def experiment(rule: Any) -> Experiment:
    table = {"rows": ["data.width", "weight_decay"], "columns": {"clean": "clean", "bim": "BIM"}, "select_by": rule}
    grid = {"data.width": [28, 56], "weight_decay": list(DECAYS), "normalization": ["none", "batch"]}
    return small(grid=grid, table=table, seeds=[0, 1], claims=[])


def results(root: Path, rule: Any, clean: dict[int, tuple[float | None, ...]] = CLEAN, **options: Any) -> Results:
    def value(cell: Cell, name: str) -> float | None:
        own = {"bim": BIM, "clean": clean}[name][cell.data.width or 0][DECAYS.index(cell.weight_decay)]
        # The arms differ; what decides is their mean.
        return None if own is None else own + (0.01 if cell.normalization.name == "none" else -0.01)

    return aggregate(experiment(rule), fill(root, experiment(rule), value, **{"n": 10_000, **options}))


def chosen(found: Results) -> list[tuple[int, float]]:
    """The rows (width, weight decay) that are marked."""
    return [(b.where["data.width"], b.where["weight_decay"]) for b in found.blocks if b.selected]


@pytest.mark.parametrize(
    ("rule", "rows"),
    [
        pytest.param(None, [], id="unasked"),
        pytest.param("bim", [(56, 0.1)], id="the best of all"),
        pytest.param({"by": "bim", "per": ["data.width"]}, [(28, 0.1), (56, 0.1)], id="the best of each width"),
        pytest.param({"by": "clean", "per": ["data.width"]}, [(28, 0.0), (56, 0.0)], id="the first of equals"),
        pytest.param(WITHIN, [(28, 0.1), (56, 0.01)], id="the best one is disqualified at 56; the bound is not at 28"),
        pytest.param({**WITHIN, "where": {"weight_decay": 0.3}}, [], id="no such row"),
        pytest.param({**WITHIN, "per": [], "where": {"data.width": 56, "weight_decay": 0.0}}, [(28, 0.1)], id="of all"),
    ],
)
def test_the_rule(tmp_path: Path, rule: Any, rows: list[tuple[int, float]]) -> None:
    assert chosen(results(tmp_path, rule)) == rows


def test_rows_without_a_number_are_not_chosen_nor_compared_with(tmp_path: Path) -> None:
    for number, (rule, clean, rows) in enumerate([
        (WITHIN, {**CLEAN, 56: (None, 0.98, 0.94)}, [(28, 0.1)]),  # the row to compare with
        (WITHIN, {**CLEAN, 28: (0.98, 0.975, None)}, [(28, 0.01), (56, 0.01)]),  # the bounded column
        ("clean", {28: (None,) * 3, 56: (None,) * 3}, []),
    ]):  # fmt: skip
        assert chosen(results(tmp_path / str(number), rule, clean)) == rows


def test_rows_with_a_failed_training_are_not_chosen_nor_compared_with(tmp_path: Path) -> None:
    def failed(cell: Cell) -> bool:
        return (cell.data.width, cell.weight_decay, cell.seed) == (28, 0.0, 1) and cell.normalization.name == "batch"

    assert chosen(results(tmp_path / "within", WITHIN, failed=failed)) == [(56, 0.01)]
    assert chosen(results(tmp_path / "clean", "clean", failed=failed)) == [(56, 0.0)]


@pytest.mark.parametrize("swapped", [False, True])
def test_one_arm_or_the_difference_of_the_arms_never_decides(tmp_path: Path, swapped: bool) -> None:
    clean = {0.0: (0.95, 0.95), 0.01: (0.99, 0.93), 0.1: (1.0, 0.90)}  # the best mean is that of .01

    def value(cell: Cell, name: str) -> float:
        return clean[cell.weight_decay][(cell.normalization.name == "batch") != swapped] if name == "clean" else 0.5

    assert chosen(aggregate(experiment("clean"), fill(tmp_path, experiment("clean"), value))) == [(28, 0.01)]


def test_a_choice_is_marked_in_the_table(tmp_path: Path) -> None:
    rows = tables.accuracy_table(results(tmp_path, WITHIN)).rows
    assert [row[:3] for row in rows if row[2].endswith("(chosen)")] == [
        ["28", "0.1", "none (chosen)"],
        ["28", "0.1", "batch (chosen)"],
        ["56", "0.01", "none (chosen)"],
        ["56", "0.01", "batch (chosen)"],
    ]


def test_the_older_name_of_the_rule_is_read() -> None:
    def table(**fields: Any) -> Experiment:
        return small(table={**SMALL["table"], **fields})

    assert table(choice={"by": "bim"}) == table(choice=None, select_by="bim") == table(select_by={"by": "bim"})
    assert table(choice=None, select_by=None).table.select_by is None
    with pytest.raises(ConfigError, match="table: choice is the older name of select_by: give one of them"):
        table(choice={"by": "bim"}, select_by="bim")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("bmi", r"table\.select_by: 'bmi' is not among table\.columns; did you mean 'bim'"),
        ({"by": "bim", "of": "bmi"}, r"table\.select_by: 'bmi' is not among table\.columns; did you mean 'bim'"),
        ({"by": "bim", "per": ["data.widht"]}, r"'data\.widht' is not among table\.rows"),
        ({"by": "bim", "of": "clean", "where": {"data.widht": 28}}, r"'data\.widht' is not among table\.rows"),
    ],
)
def test_rules_that_name_no_column_or_row_are_refused(rule: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(table={**SMALL["table"], "select_by": rule})

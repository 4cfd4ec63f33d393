"""The settings that the paper does not state are those that the committed results choose, on validation images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bn_vuln.config import Cell
from bn_vuln.config.grid import expand, lookup
from bn_vuln.experiments import catalog
from bn_vuln.reporting.aggregate import aggregate

RESULTS = Path(__file__).parents[2] / "results"
# By table of settings, the experiments that use what it chooses.
USED_BY = {
    "table6_settings": ("table6", "table7"),
    "table1_settings": ("table1",),
    "table13_settings": ("table13", "table7"),
    "table2_short_settings": ("table2_short",),
}


def chosen(name: str) -> list[dict[str, Any]]:
    """The rows that the committed results of a table of settings choose."""
    published = next(RESULTS.glob(f"*/experiments/{name}-full.yaml"), None)
    if published is None:
        pytest.skip(f"the published results have no {name} at full scale")
    results = aggregate(catalog.experiment(name), published.parents[1])
    assert (results.failed, results.missing) == (0, 0)
    return [block.where for block in results.blocks if block.selected]


def used(name: str, *keys: str) -> set[tuple[Any, ...]]:
    """The values of these keys that the trained cells of an experiment have."""
    cells = [cell for cell in expand(catalog.experiment(name)) if cell.arch.name != "nearest_centroid"]
    return {tuple(lookup(cell, key) for key in keys) for cell in cells}


def largest_decays(name: str) -> dict[int, float]:
    """By width, the largest weight decay of an experiment."""
    found: dict[int, float] = {}
    for width, decay in used(name, "data.width", "weight_decay"):
        found[width] = max(decay, found.get(width, 0.0))
    return found


def test_table6_uses_what_its_settings_choose() -> None:
    (row,) = chosen("table6_settings")
    keys = ("train.batch_size", "train.lr", "train.epochs")
    assert set(row) == set(keys)
    for name in ("table6", "table7"):
        assert used(name, *keys) == {tuple(row[key] for key in keys)}


def test_table1_uses_what_its_settings_choose() -> None:
    (row,) = chosen("table1_settings")
    assert used("table1", "train.batch_size") == {(row["train.batch_size"],)}


def test_table2_short_has_the_rate_that_its_settings_choose() -> None:
    (row,) = chosen("table2_short_settings")
    assert used("table2_short", "train.lr") == {(row["train.lr"],)}


def test_table2_short_differs_from_its_settings_in_length_and_seeds() -> None:
    def stripped(name: str) -> set[Cell]:
        cells = expand(catalog.experiment(name))
        return {
            c.model_copy(update={"seed": 0, "train": c.train.model_copy(update={"epochs": 1, "lr": 1})}) for c in cells
        }

    assert stripped("table2_short") == stripped("table2_short_settings")
    assert used("table2_short", "train.lr") < used("table2_short_settings", "train.lr")


def test_table13_uses_what_its_settings_choose() -> None:
    rows = chosen("table13_settings")
    decays = {row["data.width"]: row["weight_decay"] for row in rows}
    assert len(decays) == len(rows)
    plain = {(width, 0.0) for width in decays}
    assert used("table13", "data.width", "weight_decay") == plain | set(decays.items())


def test_table7_has_the_weight_decays_of_table13() -> None:
    of_linear, decays = largest_decays("table13"), largest_decays("table7")
    assert decays == {width: of_linear[width] for width in (28, 56, 84)}


def test_table13_changes_the_learning_rate_with_the_width_as_its_settings_do() -> None:
    keys = ("data.width", "train.lr")
    assert used("table13", *keys) == used("table13_settings", *keys)


def test_settings_are_chosen_on_validation_images_by_other_seeds() -> None:
    for name, users in USED_BY.items():
        settings = catalog.experiment(name)
        assert settings.evaluation.split == "validation"
        for user in users:
            experiment = catalog.experiment(user)
            assert experiment.evaluation.split == "test"
            assert set(settings.seeds) & set(experiment.seeds) == set()


def test_the_rules_that_choose_the_settings() -> None:
    rules = {"table6_settings": "clean", "table1_settings": "clean", "table13_settings": "bim"}
    for name, by in {**rules, "table2_short_settings": "clean@all"}.items():
        rule = catalog.experiment(name).table.select_by
        assert rule is not None
        assert rule.by == by
        assert (rule.of, rule.within) == (("clean", 0.01) if by == "bim" else (None, 0.0))

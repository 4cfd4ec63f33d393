"""Older names of fields and values: files and records that have them give the same objects with the same ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from bn_vuln.config import Attack, Cell, Experiment, Frozen, Suite, digest, identity_of, to_plain, validate
from bn_vuln.errors import ConfigError
from bn_vuln.experiments import catalog

# (class, with older names, with present names)
RENAMED: list[tuple[type[Frozen], dict[str, Any], dict[str, Any]]] = [
    (Attack, {"eps": 0.1, "iterate": "any"}, {"eps": 0.1, "keep": "first_success"}),
    (Attack, {"eps": 0.1, "iterate": "best"}, {"eps": 0.1, "keep": "best_loss"}),
    (Attack, {"eps": 0.1, "iterate": "last"}, {"eps": 0.1, "keep": "last"}),
    (Attack, {"eps": 0.1, "keep": "any"}, {"eps": 0.1, "keep": "first_success"}),
    (Attack, {"eps": 0.1, "ladder": [0.02]}, {"eps": 0.1, "eps_grid": [0.02]}),
    (Attack, {"eps": 0.1, "bisect": 0.01}, {"eps": 0.1, "min_eps_tolerance": 0.01}),
    (
        Cell,
        {"data": {"limit": 100, "draw": "seed"}, "arch": "linear"},
        {"data": {"limit": 100, "subset_seed": "seed"}, "arch": "linear"},
    ),
]
OLDER_EXPERIMENT = """
name: older
title: Title
claim: Claim
source: Source
base: {data: {limit: 100, draw: seed}}
grid: {normalization: [none, batch]}
seeds: [0]
evaluation: {limit: 10}
perturbations:
  clean: {kind: clean}
  pgd: {kind: attack, eps: 8/255, iterate: any, ladder: [2/255, 4/255]}
  apgd: {kind: attack, attack: apgd-ce, eps: 8/255, bisect: 1/255}
table:
  columns: {clean: clean, pgd: PGD}
  figures: [ladders]
"""
PRESENT = {"draw": "subset_seed", "iterate": "keep", "any": "first_success", "ladder:": "eps_grid:",
           "bisect": "min_eps_tolerance", "[ladders]": "[eps_curves]"}  # fmt: skip


def present(text: str) -> str:
    for older, name in PRESENT.items():
        assert older in text
        text = text.replace(older, name)
    return text


@pytest.mark.parametrize(("kind", "older", "now"), RENAMED, ids=str)
def test_older_names_give_the_same_object_and_id(kind: type[Frozen], older: Any, now: Any) -> None:
    first, second = validate(kind, older, "older"), validate(kind, now, "now")
    assert first == second
    assert to_plain(first) == to_plain(second)
    assert digest(identity_of(first)) == digest(identity_of(second))
    # Ids hash the older names, so that they are the ones that were published.
    assert validate(kind, identity_of(first), "a record") == first


def test_ids_hash_the_names_under_which_results_were_published() -> None:
    hashed = identity_of(validate(Attack, {"eps": 0.1, "eps_grid": [0.02]}, "x"))
    assert (hashed["iterate"], hashed["ladder"]) == ("any", [0.02])
    assert {"keep", "eps_grid", "min_eps_tolerance", "bisect"} & set(hashed) == set()


def test_an_experiment_and_a_suite_with_older_names(tmp_path: Path) -> None:
    def load(name: str, text: str) -> tuple[Experiment, Suite]:
        (tmp_path / name).mkdir()
        path, suite = tmp_path / name / "older.yaml", tmp_path / name / "suite.yaml"
        path.write_text(text)
        suite.write_text(yaml.safe_dump({"title": "t", "perturbations": yaml.safe_load(text)["perturbations"]}))
        return catalog.experiment(str(path)), catalog.suite(str(suite))

    (older, older_suite), (now, suite) = load("older", OLDER_EXPERIMENT), load("now", present(OLDER_EXPERIMENT))
    tasks = [ids_of(experiment) for experiment in (older, now)]
    assert tasks[0] == tasks[1]
    assert older.perturbations == now.perturbations
    assert older.table == now.table
    assert older.table.figures == ("eps_curves",)
    assert older_suite == suite


def ids_of(experiment: Experiment) -> list[tuple[str, set[str]]]:
    """The ids of every cell and of its records."""
    from bn_vuln.experiments import runner

    return [(task.folder(Path()).name, task.ids()) for task in runner.tasks(experiment)]


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (Attack, {"eps": 0.1, "iterate": "any", "keep": "last"}, "iterate is the older name of keep: give one of them"),
        (Attack, {"eps": 0.1, "ladder": [0.05], "eps_grid": [0.05]}, "ladder is the older name of eps_grid"),
        (Cell, {"data": {"draw": "seed", "subset_seed": "seed"}}, "data: draw is the older name of subset_seed"),
    ],
)
def test_both_names_of_a_field_are_refused(kind: type[Frozen], data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        validate(kind, data, "file.yaml")
    assert str(caught.value).count("\n") == 0
    assert "received" not in str(caught.value)

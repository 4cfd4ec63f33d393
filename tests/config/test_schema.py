"""The JSON schema of configs accepts what the loader accepts, and refuses what it refuses; the table of fields."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from bn_vuln import config
from bn_vuln.config import Attack, Cell, Experiment, Frozen, Plan, Suite, read_yaml, validate
from bn_vuln.config.fields import FieldRow, configs, field_rows
from bn_vuln.config.grid import expand
from bn_vuln.config.schema import json_schema
from bn_vuln.errors import ConfigError
from bn_vuln.experiments import catalog

ROOT = Path(__file__).parents[2]
SCHEMAS = {kind: Draft202012Validator(json_schema(kind)) for kind in ("experiment", "base", "suite", "plan", "cell")}
KIND_OF = {"base": "base", "suites": "suite", "plans": "plan"}
FILES = sorted([*catalog.folder("").rglob("*.yaml"), *(ROOT / "results").glob("*/experiments/*.yaml"),
                *(ROOT / "examples").glob("*.yaml")])  # fmt: skip

SMALL = """
name: mine
title: t
claim: c
source: s
base:
  data: {name: mnist, limit: 2000}
  train: {epochs: 3, lr: 1/10}
grid: {normalization: [none, batch]}
seeds: [0]
perturbations:
  clean: {kind: clean}
  pgd: {kind: attack, eps: 8/255}
scales:
  smoke: {seeds: [0], train.epochs: 1}
table: {columns: {pgd: PGD}}
"""


def test_schemas_are_schemas() -> None:
    for validator in SCHEMAS.values():
        Draft202012Validator.check_schema(validator.schema)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_file_of_ours_is_valid(path: Path) -> None:
    assert [e.message for e in SCHEMAS[KIND_OF.get(path.parent.name, "experiment")].iter_errors(read_yaml(path))] == []


def loads(data: dict[str, Any]) -> bool:
    """Whether the loader takes an experiment, with its cells."""
    try:
        expand(validate(Experiment, data, "mine.yaml"))
    except ConfigError:
        return False
    return True


def changed(key: str, value: object, text: str = SMALL) -> dict[str, Any]:
    """The small experiment with another value at a path, `base/train/lr`; None takes it out."""
    data = yaml.safe_load(text)
    *parents, last = key.split("/")
    place = data
    for part in parents:
        place = place.setdefault(part, {})
    place[last] = value
    return data


ACCEPTED: list[tuple[str, object]] = [
    ("base/train/lr", "1.0e-5"), ("base/train/lr", "1e-5"), ("base/train/lr", " 8 / 255"), ("base/train/epochs", 3.0),
    ("base/train/epochs", "3"), ("base/standardize", "yes"), ("base/standardize", 0), ("base/arch", "mlp"),
    ("base/data", "cifar10"), ("base/data/draw", "seed"), ("base/train/schedule", "cosine"),
    ("base/train/schedule", {"name": "step", "epochs": [1]}), ("base/train/adversarial", {"eps": "8/255", "ord": 2}),
    ("base/train/adversarial", {"eps": 1, "step_size": None, "box": None}),
    ("base", {"normalization": "l2", "weight_decay": 0.1, "train": {"epochs": 1}}),
    ("grid", {"normalization": ["none", {"name": "l2"}], "weight_decay": [0.1]}), ("grid", {"train.lr": [0.1, "1/3"]}),
    ("grid", {"normalization, train.lr": [["none", 0.1], ["batch", 0.2]]}), ("grid", {"data.draw": ["seed"]}),
    ("grid", {"train.adversarial": [None, {"eps": "8/255"}]}), ("perturbations/pgd/iterate", "any"),
    ("perturbations/pgd/ladder", ["2/255"]), ("perturbations/pgd/ord", 2), ("perturbations/pgd/step_size", None),
    ("perturbations/pgd/box", {"standardized": [-2, "2"]}), ("perturbations/pgd/box", "none"),
    ("measurements/tilt", "tilt"), ("measurements/spectrum", {"kind": "spectrum", "low_variance": "1/100"}),
    ("table/figures", ["ladders"]), ("paper", []), ("command", "bnvuln reproduce mine.yaml"),
    ("scales/smoke/perturbations.pgd.steps", 3), ("scales/smoke/grid.normalization", ["batch"]),
    ("scales/smoke/grid.train.lr, seed", [[0.1, 1]]), ("scales/smoke/evaluation.limit", 5),
    ("scales/smoke/data.draw", "seed"), ("scales/smoke/train", {"epochs": 1}), ("scales/smoke/table.rows", ["seed"]),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), ACCEPTED, ids=str)
def test_what_the_loader_accepts_is_valid(key: str, value: object) -> None:
    data = changed(key, value)
    assert loads(data)
    assert [e.message for e in SCHEMAS["experiment"].iter_errors(data)] == []


REFUSED: list[tuple[str, object]] = [
    ("seed", 3), ("base/train/lrr", 0.1), ("base/train/lr", "fast"), ("base/train/lr", 0), ("base/train/lr", True),
    ("base/train/lr", "-1/3"), ("base/train/epochs", 2.5), ("base/train/epochs", [3]), ("base/arch", "vgg9"),
    ("base/arch", {"name": "vgg9"}), ("base/arch", {"name": "mlp", "depth": 3}), ("base/train/schedule", "step"),
    ("base/data/width", "wide"), ("base/standardize", "maybe"), ("base/train/select", "first"), ("base/base", {}),
    ("grid", {}), ("grid", {"normalization": "batch"}), ("grid", {"normalization": ["bach"]}),
    ("grid", {"train.lrr": [1]}), ("grid", {"normalization, train.lrr": [["none", 1]]}), ("grid", {"train.lr": []}),
    ("grid", {"normalization, train.lr": ["none"]}), ("perturbations", {}), ("perturbations/pgd/kind", "atack"),
    ("perturbations/pgd", {"eps": 1}), ("perturbations/pgd", {"kind": "attack"}), ("perturbations/pgd/std", 1),
    ("perturbations/pgd/steps", 0), ("perturbations/pgd/ord", 3), ("perturbations/pgd/box", [0]),
    ("perturbations/pgd/keep", "all"),
    ("perturbations/pgd", {"kind": "attack", "eps": 1, "keep": "last", "iterate": "any"}),
    ("measurements/tilt", "tlit"), ("table/columns", {}), ("table/colums", {}), ("table/figures", ["bars"]),
    ("cost", {"fast": "1 s"}), ("notes", "one"), ("name", 3), ("seeds", []), ("seeds", 0), ("seeds", [-1]),
    ("scales/tiny", {}), ("claims", 3), ("claims", [{"value": 1}]),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), REFUSED, ids=str)
def test_what_the_loader_refuses_is_not_valid(key: str, value: object) -> None:
    data = changed(key, value)
    assert not loads(data)
    assert not SCHEMAS["experiment"].is_valid(data)


@pytest.mark.parametrize("key", ["train.lrr", "perturbation.pgd.steps", "grid.train.lrr", "evaluation.limits"])
def test_an_override_of_a_scale_that_no_config_has_is_refused_by_both(key: str, tmp_path: Path) -> None:
    data = changed(f"scales/smoke/{key}", [1] if key.startswith("grid") else 1)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError):
        expand(catalog.experiment(str(path), "smoke"))
    assert not SCHEMAS["experiment"].is_valid(data)


@pytest.mark.parametrize("field", ["name", "title", "claim", "source", "grid", "seeds", "perturbations", "table"])
def test_only_a_file_that_extends_another_may_leave_fields_out(field: str) -> None:
    data = yaml.safe_load(SMALL)
    del data[field]
    assert not loads(data)
    assert not SCHEMAS["experiment"].is_valid(data)
    assert SCHEMAS["base"].is_valid(data)
    assert SCHEMAS["experiment"].is_valid({"extends": "other.yaml", **data})


def test_a_file_that_extends_another_is_checked_all_the_same() -> None:
    part = {
        "extends": "other.yaml",
        "perturbations": {"pgd": {"steps": 3}},
        "base": {"train": {"adversarial": {"steps": 2}}},
    }
    assert SCHEMAS["experiment"].is_valid(part)
    for key, value in (("steps", 0), ("stepps", 3), ("kind", "clean"), ("std", 1)):
        wrong = copy.deepcopy(part)
        wrong["perturbations"]["pgd"][key] = value  # type: ignore[index]
        assert not SCHEMAS["experiment"].is_valid(wrong)


@pytest.mark.parametrize(
    ("kind", "model", "data", "wrong"),
    [
        ("suite", Suite, {"title": "t", "perturbations": {"a": {"kind": "awgn", "std": "1/10"}}},
         {"evaluation": {"limit": 0}}),
        ("plan", Plan, {"title": "t", "parts": [{"experiment": "table2", "where": {"seed": 1}}]}, {"parts": []}),
        ("cell", Cell, {"arch": "vgg8", "train": {"augment": {}}}, {"train": {"augment": {"flop": True}}}),
        ("cell", Cell, {"train": {"schedule": {"name": "step", "epochs": ["2"]}}},
         {"train": {"schedule": {"name": "step"}}}),
    ],
)  # fmt: skip
def test_the_other_kinds(kind: str, model: type[Frozen], data: dict[str, Any], wrong: dict[str, Any]) -> None:
    validate(model, data, "x")
    assert [e.message for e in SCHEMAS[kind].iter_errors(data)] == []
    with pytest.raises(ConfigError):
        validate(model, {**data, **wrong}, "x")
    assert not SCHEMAS[kind].is_valid({**data, **wrong})


def test_an_editor_finds_descriptions_defaults_and_values() -> None:
    schema = json_schema("cell")
    smoothing = schema["$defs"]["Train"]["properties"]["label_smoothing"]
    assert smoothing["description"] == Cell.model_fields["train"].annotation.model_fields["label_smoothing"].description
    assert smoothing["default"] == 0
    assert schema["$defs"]["Train"]["properties"]["select"]["enum"] == ["best", "last"]
    older = schema["$defs"]["Data"]["properties"]["draw"]
    assert (older["deprecated"], older["description"]) == (True, "Older name of subset_seed.")


# ---------------------------------------------------------------- fields


def row_of(model: type[Frozen], key: str) -> list[FieldRow]:
    return [row for row in field_rows(model) if row.key == key]


def test_the_fields_of_a_cell_are_the_keys_that_set_takes() -> None:
    rows = list(field_rows(Cell))
    text = Cell.model_fields["train"].annotation.model_fields["label_smoothing"].description
    assert row_of(Cell, "train.label_smoothing") == [
        FieldRow("train.label_smoothing", "number >= 0 and < 1", "0.0", str(text))
    ]
    for row in rows:
        config.reject_unknown_key("x", row.key, Cell)
    assert all(row.description for row in rows)


def test_fields_of_choices_say_which_have_them() -> None:
    groups, depth = row_of(Cell, "normalization.groups"), row_of(Cell, "arch.depth")
    assert [row.description.partition(":")[0] for row in [*groups, *depth]] == ["group, ws_group", "deep", "wrn"]
    assert [row.default for row in depth] == ["10", "28"]
    (normalization,) = row_of(Cell, "normalization")
    assert normalization.type == "none | batch | group | layer | instance | ws_group | frn | fixup | l2"
    assert row_of(Cell, "normalization.name") == []


def test_fields_that_others_decide_are_no_required_ones() -> None:
    defaults = {row.key: row.default for row in field_rows(Attack)}
    assert (defaults["eps"], defaults["steps"], defaults["box"]) == ("required", "from other fields", "[0.0, 1.0]")
    assert row_of(Attack, "keep")[0].type == "first_success | last | best_loss"


def test_every_config_has_a_table_of_fields_with_descriptions() -> None:
    found = configs()
    assert {"cell", "experiment", "suite", "plan", "attack", "awgn", "table", "mlp-arch", "external-model"} <= {*found}
    for name, model in found.items():
        for row in field_rows(model):
            assert row.type, (name, row)

"""The grid: base + grid + seeds -> cells, in order, each once."""

from __future__ import annotations

from typing import Any

import pytest

from bn_vuln.config import BatchNormalization, Cell, Experiment, NoNormalization, to_plain, validate
from bn_vuln.config.grid import expand, lookup, select
from bn_vuln.errors import ConfigError


def experiment(grid: dict[str, Any], base: dict[str, Any] | None = None, seeds: tuple[int, ...] = (0,)) -> Experiment:
    data = {
        "name": "tiny", "title": "t", "claim": "c", "source": "s", "base": base or {}, "grid": grid, "seeds": seeds,
        "perturbations": {"clean": {"kind": "clean"}}, "table": {"columns": {"clean": "clean"}},
    }  # fmt: skip
    return validate(Experiment, data, "tiny.yaml")


def test_the_order_is_seeds_then_the_axes_as_written() -> None:
    cells = expand(experiment({"data.width": [56, 28], "train.lr": [0.1, "1/100"]}, seeds=(3, 1)))
    found = [(c.seed, c.data.width, c.train.lr) for c in cells]
    assert found == [(s, w, lr) for s in (3, 1) for w in (56, 28) for lr in (0.1, 0.01)]


def test_the_base_goes_into_every_cell() -> None:
    base = {"train": {"epochs": 7}, "arch": "linear", "weight_decay": "1/10"}
    cells = expand(experiment({"train.lr": [0.1, 0.2]}, base, seeds=(0, 1)))
    assert {(c.train.epochs, c.arch.name, c.weight_decay) for c in cells} == {(7, "linear", 0.1)}
    assert [c.train.lr for c in cells] == [0.1, 0.2, 0.1, 0.2]


def test_each_cell_occurs_once() -> None:
    cells = expand(experiment({"train.epochs": [3, 3.0, 4], "normalization": ["none", {"name": "none"}]}))
    assert [c.train.epochs for c in cells] == [3, 4]


def test_expanding_leaves_the_base_alone() -> None:
    one = experiment({"train.lr": [0.1, 0.2]}, {"train": {"epochs": 7}})
    expand(one)
    assert one.base == {"train": {"epochs": 7}}


def test_an_axis_of_long_and_short_forms() -> None:
    cells = expand(experiment({"normalization": ["none", {"name": "batch", "c": "1e-3"}]}))
    assert [c.normalization for c in cells] == [NoNormalization(), BatchNormalization(c=1e-3)]


def test_an_axis_inside_a_short_form() -> None:
    cells = expand(experiment({"normalization.c": [0.1, 1]}, {"normalization": "batch"}))
    assert [c.normalization for c in cells] == [BatchNormalization(c=0.1), BatchNormalization(c=1)]


def test_an_axis_inside_an_axis() -> None:
    grid = {"normalization": ["batch", {"name": "batch", "momentum": 0.5}], "normalization.c": [0.1]}
    cells = expand(experiment(grid))
    assert [c.normalization for c in cells] == [
        BatchNormalization(c=0.1),
        BatchNormalization(c=0.1, momentum=0.5),
    ]


def test_an_axis_of_lists() -> None:
    cells = expand(experiment({"arch.hidden": [[10, 10], [20, 5]]}, {"arch": "mlp"}))
    assert [to_plain(c)["arch"]["hidden"] for c in cells] == [[10, 10], [20, 5]]


def test_keys_joined_by_commas_move_together() -> None:
    cells = expand(experiment({" data.width , weight_decay": [[28, 0.1], [56, "1/5"]], "train.lr": [1, 2]}))
    assert [(c.data.width, c.weight_decay, c.train.lr) for c in cells] == [
        (28, 0.1, 1.0), (28, 0.1, 2.0), (56, 0.2, 1.0), (56, 0.2, 2.0),
    ]  # fmt: skip


@pytest.mark.parametrize("value", [[56, 0.1, 3], "ab"])
def test_joined_keys_need_as_many_values(value: Any) -> None:
    one = experiment({"data.width, weight_decay": [[28, 0.1], value]})
    with pytest.raises(ConfigError) as caught:
        expand(one)
    message = str(caught.value)
    fragments = ["tiny", "grid.data.width, weight_decay", "expected lists of 2 values", repr(value)]
    assert [fragment for fragment in fragments if fragment not in message] == [], message


@pytest.mark.parametrize(
    ("grid", "fragments"),
    [
        ({"dat.width": [28]}, ["tiny", "unknown key 'dat'", "did you mean 'data'?"]),
        ({"data.width": [28, 0]}, ["tiny", "data.width: expected", "received 0"]),
        ({"normalization": ["none", "btch"]}, ["tiny", "normalization: expected", "did you mean 'batch'?"]),
        ({"normalization": [{"name": "batch"}, "none"], "normalization.c": [1]}, ["tiny", "normalization", "'c'"]),
    ],
)
def test_wrong_axes_are_explained(grid: dict[str, Any], fragments: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        expand(experiment(grid))
    message = str(caught.value)
    assert [fragment for fragment in fragments if fragment not in message] == [], message


def test_a_wrong_base_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"tiny.*'trian'; did you mean 'train'\?"):
        expand(experiment({"train.lr": [0.1]}, {"trian": {}}))


def test_an_axis_below_a_value_is_explained() -> None:
    with pytest.raises(ConfigError, match="epochs"):
        expand(experiment({"train.epochs.x": [3]}, {"train": {"epochs": 2}}))


def test_lookup() -> None:
    cell = validate(Cell, {"data": {"width": 56}, "normalization": "batch"}, "cell")
    for key, value in (
        ("data.width", 56),
        ("data.limit", None),
        ("normalization.c", 1e-5),
        ("arch.normalized", [0]),
        ("train.schedule", {"name": "constant"}),
    ):
        assert lookup(cell, key) == value
    for key in ("data.widht", "data.width.x", "zzz", ""):
        with pytest.raises(KeyError):
            lookup(cell, key)


# ---------------------------------------------------------------- parts of a grid

PAIRS = experiment(
    {
        "arch": ["linear", {"name": "deep", "depth": 3}],
        "normalization": ["none", {"name": "batch", "c": 1e-3}, {"name": "batch", "c": 1.0}],
        "data.width": [28, 56],
    },
    seeds=(0, 1, 2),
)


@pytest.mark.parametrize(
    ("where", "n"),
    [
        ({}, 36),
        ({"arch.name": "deep"}, 18),
        ({"arch": "deep"}, 18),
        ({"arch.depth": 3}, 18),
        ({"normalization": "batch"}, 24),
        ({"normalization.c": "1e-3"}, 12),  # YAML takes it for text
        ({"normalization.c": [None, "1"]}, 24),
        ({"data.width": 56, "seed": [0, 2]}, 12),
        ({"data.width": (28, 56), "seed": 1, "arch.name": "linear", "normalization.name": "none"}, 2),
    ],
)
def test_a_part_is_the_cells_with_these_values(where: dict[str, Any], n: int) -> None:
    cells = expand(PAIRS)
    chosen = select(PAIRS, cells, where)
    assert len(chosen) == n
    assert chosen == [cell for cell in cells if cell in chosen]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"arch.name": "depe"}, "tiny: no cell has arch.name depe (there are: linear, deep); did you mean 'deep'?"),
        ({"data.width": [28, 84]}, "tiny: no cell has data.width 84 (there are: 28, 56)"),
        ({"data.width": "wide"}, "tiny: no cell has data.width wide (there are: 28, 56)"),
        ({"normalization": "layer"}, "tiny: no cell has normalization layer (there are: none, batch)"),
        ({"seed": [0, 7]}, "tiny: no cell has seed 7 (there are: 0, 1, 2)"),
        ({"seed": []}, "tiny: no cell has all of this together: {'seed': []}"),
        (
            {"data.widht": 28},
            "tiny: no cell has a key 'data.widht' (such as: arch, normalization, data.width, normalization.name, "
            "seed); did you mean 'data.width'?",
        ),
        (
            {"arch.depth": 3, "arch.name": "linear"},
            "tiny: no cell has all of this together: {'arch.depth': 3, 'arch.name': 'linear'}",
        ),
    ],
)
def test_a_part_without_cells_is_refused_with_what_there_is(where: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        select(PAIRS, expand(PAIRS), where)
    assert str(error.value) == message

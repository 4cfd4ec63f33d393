"""base + grid + seeds -> cells."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bn_vuln.config import Cell, Experiment, apply_override, describe, nearest, to_plain, validate
from bn_vuln.errors import ConfigError


def expand(experiment: Experiment) -> list[Cell]:
    """The cells of an experiment: every combination of the grid's values, for every seed, each cell once.

    A grid key is a dotted path into the cell (`data.width`). A key of several paths joined by commas
    (`data.width, weight_decay`) takes lists of values and moves its paths together.
    Raises `ConfigError` naming the experiment and the key.
    """
    cells = dict.fromkeys(_expand(experiment))
    return list(cells)


def _expand(experiment: Experiment) -> Iterator[Cell]:
    axes = [[_assignments(experiment.name, key, value) for value in values] for key, values in experiment.grid.items()]
    for seed in experiment.seeds:
        for combination in itertools.product(*axes):
            data = copy.deepcopy({**experiment.base, "seed": seed})
            for key, value in itertools.chain.from_iterable(combination):
                apply_override(data, key, copy.deepcopy(value))
            yield validate(Cell, data, f"{experiment.name}: a cell of the grid")


def _assignments(name: str, key: str, value: Any) -> list[tuple[str, Any]]:
    paths = [part.strip() for part in key.split(",")]
    if len(paths) == 1:
        return [(paths[0], value)]
    if not isinstance(value, list | tuple) or len(value) != len(paths):
        raise ConfigError(f"{name}: grid.{key}: expected lists of {len(paths)} values, received {value!r}")
    return list(zip(paths, value, strict=True))


def lookup(cell: Cell, key: str) -> Any:
    """The value at a dotted path of a cell, as plain data; `KeyError` where there is none."""
    value: Any = to_plain(cell)
    for part in key.split("."):
        if not isinstance(value, dict):
            raise KeyError(key)
        value = value[part]
    return value


def arm_of(experiment: Experiment, cell: Cell) -> str | None:
    """The arm of the table that a cell is in: the first of the named ones whose values it has, or the value of the
    arm key; None where there is none."""
    table = experiment.table
    if not table.arms:
        return str(_place(experiment, cell, table.arm))
    return next((name for name, values in table.arms.items() if matches(cell, values)), None)


def matches(cell: Cell, values: Mapping[str, Any]) -> bool:
    """Whether a cell has all of these values (by dotted key)."""
    return all(lookup_or_none(cell, key) == value for key, value in values.items())


def lookup_or_none(cell: Cell, key: str) -> Any:
    """The value at a dotted path of a cell, None where the cell has none there, as the arm without normalization has
    no `normalization.c`."""
    try:
        return lookup(cell, key)
    except KeyError:
        return None


def check_layout(experiment: Experiment, cells: Sequence[Cell]) -> None:
    """Raise `ConfigError`, before anything is trained, where the table's layout does not fit the cells: a row or arm
    key that none of them has, several cells of a seed in one row, a cell in no arm, or an arm that no cell is in."""
    table = experiment.table
    for key in table.rows:
        if all(lookup_or_none(cell, key) is None for cell in cells):
            _place(experiment, cells[0], key)
    places: set[str] = set()
    arms: set[str] = set()
    for cell in cells:
        arm = arm_of(experiment, cell)
        if arm is None:
            raise ConfigError(f"{experiment.name}: table.arms: {describe(cell)} is in none of them")
        place = f"{[lookup_or_none(cell, key) for key in table.rows]} {arm} {cell.seed}"
        if place in places:
            raise ConfigError(
                f"{experiment.name}: table.rows: several cells of a seed fall into one row; "
                "add the grid key that tells them apart"
            )
        places.add(place)
        arms.add(arm)
    _refuse_absent_arms(experiment, arms)


def _refuse_absent_arms(experiment: Experiment, arms: set[str]) -> None:
    table = experiment.table
    named = {value.arm for value in experiment.paper if value.arm}
    named |= {value.against.arm for value in experiment.paper if value.against}
    if not {table.reference, table.treatment} & arms and not table.arms:
        named |= {table.reference}
    absent = sorted(named - arms)
    if absent and not experiment.overrides:  # an override may leave an arm out on purpose
        known = f"(known: {', '.join(sorted(arms))}){nearest(absent[0], arms)}"
        raise ConfigError(f"{experiment.name}: no cell is in the arm {absent[0]!r} {known}")


def _place(experiment: Experiment, cell: Cell, key: str) -> Any:
    try:
        return lookup(cell, key)
    except KeyError:
        raise ConfigError(f"{experiment.name}: table: a cell has no key {key!r}") from None

"""The grid of an experiment: base + grid + seeds -> cells, and the place of each cell in the table."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bn_vuln.config import (
    Cell,
    EvaluationPlan,
    Experiment,
    Perturbation,
    Transfer,
    apply_override,
    describe_cell,
    digest,
    identity_of,
    nearest,
    parse_number,
    to_plain,
    validate,
)
from bn_vuln.config.fields import fields_of
from bn_vuln.errors import ConfigError
from bn_vuln.typing import Where

MAX_CELLS = 100_000  # of an experiment


def expand(experiment: Experiment) -> list[Cell]:
    """Return the cells of an experiment: every combination of the grid's values, for every seed, each cell once.

    A grid key is a dotted path into the cell (`data.width`). A key of several paths joined by commas
    (`data.width, weight_decay`) takes lists of values and moves its paths together.

    Raises:
        ConfigError: A key or a value is wrong; the message names the experiment and the key.
    """
    return list(dict.fromkeys(_combinations(experiment)))


def _combinations(experiment: Experiment) -> Iterator[Cell]:
    axes = [[_assignments(experiment.name, key, value) for value in values] for key, values in experiment.grid.items()]
    if (n := math.prod(map(len, axes)) * len(experiment.seeds)) > MAX_CELLS:
        raise ConfigError(f"{experiment.name}: grid and seeds: expected at most {MAX_CELLS:,} cells, received {n:,}")
    for seed in experiment.seeds:
        for combination in itertools.product(*axes):
            data = copy.deepcopy({**experiment.base, "seed": seed})
            for key, value in itertools.chain.from_iterable(combination):
                apply_override(data, key, copy.deepcopy(value))
            yield validate(Cell, data, f"{experiment.name}: a cell of the grid")


def _assignments(name: str, key: str, value: object) -> list[tuple[str, object]]:
    paths = [part.strip() for part in key.split(",")]
    if len(paths) == 1:
        return [(paths[0], value)]
    if not isinstance(value, list | tuple) or len(value) != len(paths):
        raise ConfigError(f"{name}: grid.{key}: expected lists of {len(paths)} values, received {value!r}")
    return list(zip(paths, value, strict=True))


def select(experiment: Experiment, cells: Sequence[Cell], where: Where) -> list[Cell]:
    """Return the cells of an experiment that have these values.

    Args:
        experiment: The experiment, for messages.
        cells: Its cells.
        where: Values by dotted key of a cell (`arch.name`, `seed`): one, or a list of which a cell has one. The name of
            a mapping stands for it: `arch: vgg8`.

    Raises:
        ConfigError: No cell has a key, a value, or all of them together.
    """
    chosen = list(cells)
    for key, value in where.items():
        values = list(value) if isinstance(value, list | tuple) else [value]
        there = _values(experiment, cells, key)
        for absent in (one for one in values if not any(_is(found, one) for found in there)):
            texts = list(dict.fromkeys(str(_short(found)) for found in there))
            hint = nearest(absent, texts) if isinstance(absent, str) else ""
            raise ConfigError(f"{experiment.name}: no cell has {key} {absent} (there are: {', '.join(texts)}){hint}")
        chosen = [cell for cell in chosen if any(_is(lookup_or_none(cell, key), one) for one in values)]
    if not chosen:
        raise ConfigError(f"{experiment.name}: no cell has all of this together: {dict(where)}")
    return chosen


def _values(experiment: Experiment, cells: Sequence[Cell], key: str) -> list[object]:
    """The different values that cells have under a key, in the order of the grid."""
    found: list[object] = []
    exists = False
    for cell in cells:
        try:
            value, exists = lookup(cell, key), True
        except KeyError:
            value = None
        if value not in found:
            found.append(value)
    if not exists:
        table, paths = experiment.table, [path.strip() for axis in experiment.grid for path in axis.split(",")]
        keys = list(dict.fromkeys([*paths, *table.rows, *([] if table.arms else [table.arm]), "seed"]))
        raise ConfigError(
            f"{experiment.name}: no cell has a key {key!r} (such as: {', '.join(keys)}){nearest(key, keys)}"
        )
    return found


def _short(value: object) -> object:
    """The name of a mapping that has one, anything else itself."""
    return value.get("name", value) if isinstance(value, Mapping) else value


def _is(found: object, wanted: object) -> bool:
    """Return whether a cell's value is the wanted one, which may be a mapping's name, or the text of a number."""
    if wanted in (found, _short(found)):
        return True
    try:
        return isinstance(found, int | float) and isinstance(wanted, str) and bool(parse_number(wanted) == found)
    except ValueError:
        return False


def lookup(cell: Cell, key: str) -> Any:
    """Return the value at a dotted path of a cell, as plain data; `KeyError` where there is none."""
    value: Any = to_plain(cell)
    for part in key.split("."):
        if not isinstance(value, dict):
            raise KeyError(key)
        value = value[part]
    return value


def arm_of(experiment: Experiment, cell: Cell) -> str | None:
    """Return the arm of the table that a cell is in, None where it is in none.

    It is the first of the named arms whose values the cell has, or the value of the arm key.
    """
    table = experiment.table
    if not table.arms:
        return str(_lookup_table_key(experiment, cell, table.arm))
    return next((name for name, values in table.arms.items() if matches(cell, values)), None)


def matches(cell: Cell, values: Where) -> bool:
    """Return whether a cell has all of these values, by dotted key."""
    return all(lookup_or_none(cell, key) == value for key, value in values.items())


def lookup_or_none(cell: Cell, key: str) -> Any:
    """Return the value at a dotted path of a cell, None where there is none.

    So the arm without normalization has None as its `normalization.c`.
    """
    try:
        return lookup(cell, key)
    except KeyError:
        return None


def cell_plans(experiment: Experiment, cells: Sequence[Cell]) -> list[tuple[EvaluationPlan, ...]]:
    """Return what is measured of each cell: the experiment's plans, in which the sources of transfers are ids.

    Cells share the plans of an experiment without transfers.

    Args:
        experiment: The experiment.
        cells: All its cells.

    Raises:
        ConfigError: A transfer has no source for a cell.
    """
    plans = experiment.plans
    if not any(isinstance(one, Transfer) for plan in plans for one in plan.perturbations.values()):
        return [plans] * len(cells)
    known = {_position(experiment, cell): digest(identity_of(cell)) for cell in cells}

    def resolved(cell: Cell, name: str, perturbation: Perturbation) -> Perturbation:
        if not isinstance(perturbation, Transfer):
            return perturbation
        seeds, where = experiment.seeds, f"{experiment.name}: perturbations.{name}"
        seed = cell.seed
        if perturbation.seed == "next":
            seed = seeds[(seeds.index(cell.seed) + 1) % len(seeds)]
            if len(seeds) == 1:
                raise ConfigError(
                    f"{where}: seed next: expected two seeds or more, received {list(seeds)}; or seed same"
                )
        source = known.get(_position(experiment, cell, perturbation.source, seed))
        if source is None:
            arms = {str(arm_of(experiment, one)) for one in cells}
            hint = f"arms: {', '.join(sorted(arms))}{nearest(perturbation.source, arms)}"
            raise ConfigError(
                f"{where}: source {perturbation.source}: no such arm in the row of {describe_cell(cell)} ({hint})"
            )
        return perturbation.model_copy(update={"source": source, "seed": "next"})

    return [
        tuple(
            replace(plan, perturbations={name: resolved(cell, name, one) for name, one in plan.perturbations.items()})
            for plan in plans
        )
        for cell in cells
    ]


def _position(experiment: Experiment, cell: Cell, arm: str | None = None, seed: int | None = None) -> str:
    """The row, the arm and the seed of a cell in the table, or another arm or seed in the same row."""
    row = [lookup_or_none(cell, key) for key in experiment.table.rows]
    return f"{row} {arm or arm_of(experiment, cell)} {cell.seed if seed is None else seed}"


def check_layout(experiment: Experiment, cells: Sequence[Cell]) -> None:
    """Check, before anything is trained, that the layout of the table fits the cells.

    Raises:
        ConfigError: No cell has a row or arm key, or a key of a named arm; several cells of a seed are in one row; a
            cell is in no arm; no cell is in a named arm; a transfer has no source; the values along an axis of a figure
            are no numbers; or, at full scale, no cell is in the row of a claim.
    """
    table = experiment.table
    rows: list[Where] = []
    for key in table.rows:
        if all(lookup_or_none(cell, key) is None for cell in cells):
            _lookup_table_key(experiment, cells[0], key)
    _check_arm_keys(experiment, cells)
    positions: dict[str, Cell] = {}
    arms: set[str] = set()
    for cell in cells:
        arm = arm_of(experiment, cell)
        if arm is None:
            raise ConfigError(f"{experiment.name}: table.arms: {describe_cell(cell)} is in none of them")
        rows.append({key: lookup_or_none(cell, key) for key in table.rows})
        position = _position(experiment, cell)
        if position in positions:
            first, second = _by_key(to_plain(positions[position])), _by_key(to_plain(cell))
            keys = ", ".join(key for key in first | second if first.get(key) != second.get(key))
            raise ConfigError(
                f"{experiment.name}: table.rows: several cells of a seed fall into one row; they differ in {keys}: "
                "add it to table.rows, or name the arms by it in table.arms"
            )
        positions[position] = cell
        arms.add(arm)
    _check_arms(experiment, arms)
    if experiment.as_published:
        _check_claims(experiment, rows)
    _check_axes(experiment, cells)
    cell_plans(experiment, cells)


def is_in(row: Where, where: Where) -> bool:
    """Return whether a row of the table has these values of its keys, of a list one."""
    return all(row.get(key) in (value if isinstance(value, list) else [value]) for key, value in where.items())


def _check_claims(experiment: Experiment, rows: Sequence[Where]) -> None:
    """Raise for a claim in no row, which would vanish from the report. Smaller scales leave rows out on purpose."""
    for claim in experiment.claims:
        single = [{key: one} for key, values in claim.where.items() if isinstance(values, list) for one in values]
        for where in [*single, {}, *(arm.where for arm in claim.arms)]:
            wanted = {**claim.where, **where}
            if not any(is_in(row, wanted) for row in rows):
                raise ConfigError(f"{experiment.name}: claims: no cell has {wanted}, which a claim is about")


def _by_key(value: object, key: str = "") -> dict[str, object]:
    """Return the values in nested mappings by dotted key."""
    if not isinstance(value, Mapping):
        return {key: value}
    parts = [_by_key(part, f"{key}.{name}" if key else name) for name, part in value.items()]
    return {name: part for own in parts for name, part in own.items()}


def _check_arm_keys(experiment: Experiment, cells: Sequence[Cell]) -> None:
    """Raise for a key of a named arm that no cell has. Smaller scales leave cells out on purpose."""
    known = {key for cell in cells if experiment.table.arms for key in _by_key(to_plain(cell))}
    known |= set() if experiment.as_published else {field.key for field in fields_of(Cell)}
    for arm, values in experiment.table.arms.items():
        for key in values:
            if not any(one == key or one.startswith(f"{key}.") for one in known):
                hint = nearest(key, sorted(known))
                raise ConfigError(f"{experiment.name}: table.arms.{arm}: no cell has a key {key!r}{hint}")


def _check_arms(experiment: Experiment, arms: set[str]) -> None:
    table = experiment.table
    needed = {compared.arm for claim in experiment.claims for compared in claim.arms}
    if not all(claim.arms for claim in experiment.claims) or (len(arms) > 1 and not table.arms):
        needed |= {table.reference, table.treatment}
    absent = sorted(needed - arms)
    if absent and not experiment.overrides:  # an override may leave an arm out on purpose
        known = f"(known: {', '.join(sorted(arms))}){nearest(absent[0], arms)}"
        key = {table.reference: "table.reference: ", table.treatment: "table.treatment: "}.get(absent[0], "")
        raise ConfigError(f"{experiment.name}: {key}no cell is in the arm {absent[0]!r} {known}")


def _lookup_table_key(experiment: Experiment, cell: Cell, key: str) -> object:
    try:
        return lookup(cell, key)
    except KeyError:
        raise ConfigError(f"{experiment.name}: table: a cell has no key {key!r}") from None


def _check_axes(experiment: Experiment, cells: Sequence[Cell]) -> None:
    """Raise for curves and heat maps along values that are no numbers.

    Curves show cells without a value, as the arm without normalization has no c, as horizontal lines.
    """
    table = experiment.table
    if "curves" in table.figures and table.x:
        _check_numbers(experiment, [cell for cell in cells if lookup_or_none(cell, table.x) is not None], "x", table.x)
    if "heatmaps" in table.figures and table.x and table.y:  # without both there is no heat map
        _check_numbers(experiment, cells, "x", table.x)
        _check_numbers(experiment, cells, "y", table.y)
        # Several values at one position would hide each other.
        for key in (key for key in table.rows if key not in (table.x, table.y)):
            if len({str(lookup_or_none(cell, key)) for cell in cells}) > 1:
                raise ConfigError(f"{experiment.name}: table.rows: heat maps have no place for several values of {key}")


def _check_numbers(experiment: Experiment, cells: Sequence[Cell], axis: str, key: str) -> None:
    for cell in cells:
        value = lookup_or_none(cell, key)
        if not isinstance(value, int | float):
            received = f"none in {describe_cell(cell)}" if value is None else repr(value)
            raise ConfigError(f"{experiment.name}: table.{axis}: {key}: expected numbers, received {received}")

"""Aggregation of records into a table: mean, SEM and n per arm, differences between arms, and claims (claims.py).

No TensorFlow here: a report renders again from records in about a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bn_vuln import config, records
from bn_vuln.analysis.statistics import paired, unpaired
from bn_vuln.config import (
    Cell,
    Column,
    Experiment,
    SelectionRule,
    canonical_json,
    digest,
)
from bn_vuln.config.grid import arm_of, cell_plans, check_layout, expand, lookup_or_none
from bn_vuln.records import Store
from bn_vuln.records.comparability import with_check_of_transfer
from bn_vuln.reporting.claims import Comparison, compare, unequal_arms
from bn_vuln.reporting.results import Block, Difference, Run, Value, has, mean_over_arms

Ids = Mapping[tuple[str, str], str]  # (name, name of the evaluation) -> id


@dataclass(frozen=True)
class Results:
    """An experiment's table. `cells`, `failed`, `missing` count trainings; `devices` are those of the records."""

    experiment: Experiment
    blocks: tuple[Block, ...]
    comparisons: tuple[Comparison, ...]
    cells: int
    failed: int
    missing: int
    seconds: float
    devices: tuple[str, ...]
    versions: tuple[str, ...]
    store: Store

    @property
    def any_fails(self) -> bool:
        """Return whether the verdict on a claim is `fails`, be it a preview."""
        return any(comparison.verdict_at_full_scale == "fails" for comparison in self.comparisons)

    @property
    def damaged(self) -> list[records.Damaged]:
        """Return the files of its cells that are damaged or of another run: what is in them counts as missing."""
        own = {run.cell_id for block in self.blocks for run in block.runs} | {""}
        return [damaged for damaged in self.store.damaged if damaged.cell_id in own]


def aggregate(experiment: Experiment, results: Path | Store) -> Results:
    """Make the table of an experiment from records.

    Args:
        experiment: Its cells, evaluations, layout and claims.
        results: A results folder, packed or not, or a store that is open already.

    Raises:
        ConfigError: The layout names what the cells do not have.
        DamagedError: Nothing of the results can be read. Damaged records count as missing, and are in `damaged`.
    """
    store = records.open_store(results) if isinstance(results, Path) else results
    cells = expand(experiment)
    check_layout(experiment, cells)
    plans = cell_plans(experiment, cells)
    shared: dict[tuple[str, int], Ids] = {}  # by data set and plans: without transfers all cells have the same
    for cell, own in zip(cells, plans, strict=True):
        if (key := (cell.data.canonical, id(own))) not in shared:
            shared[key] = {(name, plan.name): found for plan in own for name, found in plan.ids(key[0]).items()}
    runs = [
        _read(cell, experiment, store, shared[cell.data.canonical, id(own)])
        for cell, own in zip(cells, plans, strict=True)
    ]
    blocks = _select(experiment, [_block(experiment, group) for group in _group(experiment, runs)])
    # Records of a run that took time of their own: those of an eps grid are one search, of which each has the time, and
    # evaluations may agree.
    timed = [(name, plan.name) for plan in experiment.plans for name in plan.perturbations]
    everything: list[records.Record | records.MeasurementRecord] = []
    for run in runs:
        found = {record.perturbation_id: record for name in timed if (record := run.records.get(name))}
        measured = {record.measurement_id: record for record in run.measurements.values()}
        everything += [*found.values(), *measured.values()]
    return Results(
        experiment=experiment,
        blocks=tuple(blocks),
        comparisons=compare(experiment, blocks),
        cells=len(runs),
        failed=sum(run.failed for run in runs),
        missing=sum(run.training is None for run in runs),
        seconds=sum(run.training.seconds for run in runs if run.training) + sum(r.seconds for r in everything),
        devices=_distinct(record.device for record in everything),
        versions=_distinct(", ".join(f"{k} {v}" for k, v in sorted(r.versions.items())) for r in everything),
        store=store,
    )


def _distinct(items: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(items)))


def _read(cell: Cell, experiment: Experiment, store: Store, ids: Ids) -> Run:
    cell_id = digest(config.identity_of(cell))
    known = experiment.measurements
    found = {key: store.record(cell_id, own) for key, own in ids.items() if key[0] not in known}
    measured = {key: store.measurement(cell_id, own) for key, own in ids.items() if key[0] in known}
    return Run(
        cell,
        arm_of(experiment, cell) or "",
        store,
        cell_id,
        store.training(cell_id),
        {key: with_check_of_transfer(store, cell_id, record) for key, record in found.items() if record},
        {key: record for key, record in measured.items() if record},
    )


def _group(experiment: Experiment, runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that share the values of the layout's row keys, in the order of the grid."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        key = canonical_json([lookup_or_none(run.cell, row) for row in experiment.table.rows])
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def _block(experiment: Experiment, runs: Sequence[Run]) -> Block:
    table = experiment.table
    where = {key: lookup_or_none(runs[0].cell, key) for key in table.rows}
    by_arm: dict[str, list[Run]] = {}
    for run in runs:
        by_arm.setdefault(run.arm, []).append(run)
    arms = {arm: {name: _collect(experiment, name, own) for name in table.columns} for arm, own in by_arm.items()}
    treatment, reference = arms.get(table.treatment, {}), arms.get(table.reference, {})
    differences = {}
    for name in table.columns if treatment and reference else ():
        one, other = treatment[name], reference[name]
        both = unpaired(one.estimate, other.estimate) if one.estimate and other.estimate else None
        differences[name] = Difference(paired(one.by_seed, other.by_seed), both)
    block = Block(where, arms, differences, tuple(runs))
    pair = [(block, table.treatment), (block, table.reference)]
    for name, difference in differences.items():
        if experiment.columns[name].is_accuracy and not experiment.columns[name].is_clean:
            differences[name] = replace(difference, flags=tuple(unequal_arms(experiment, pair, name)))
    return block


def _collect(experiment: Experiment, name: str, runs: Sequence[Run]) -> Value:
    """One arm in one column; a derived one has the flags of all that it is computed from."""
    column = experiment.columns[name]
    by_seed: dict[int, float] = {}
    raised: dict[tuple[str, str], list[records.Flag]] = {}
    failed = missing = 0
    for run in runs:
        value = _number(experiment, column, run)
        if run.failed:
            failed += 1
        elif value is None:
            missing += not any(run.is_not_applicable(part) for part in column.parts)
        else:
            by_seed[run.cell.seed] = value
            for part, record in ((part, record) for part in column.parts if (record := run.record(part))):
                for flag in record.flags:
                    raised.setdefault((str(part), flag.name), []).append(flag)
    flags = dict.fromkeys(_worst(flags, len(by_seed)) for flags in raised.values())
    counts = {next((n for run in runs if (n := run.examples(part))), None) for part in column.parts}
    n_examples = counts.pop() if len(counts) == 1 else None
    return Value(by_seed, failed, missing, tuple(flags), n_examples)


def _worst(flags: Sequence[records.Flag], seeds: int) -> records.Flag:
    """The flag of the seed with the largest value, for all seeds that have raised it."""
    worst = max(flags, key=lambda flag: abs(flag.value))
    if seeds == 1:
        return worst
    which = f"in {len(flags)} of {seeds} seeds{', at most' if len(flags) > 1 else ''}"
    return worst.model_copy(update={"message": f"{which}: {worst.message}"})


def _number(experiment: Experiment, column: Column, run: Run) -> float | None:
    """A run's number in a column; a derived one has one where all that it is computed from have."""
    values = [value for part in column.parts if (value := run.value(part)) is not None]
    if len(values) < len(column.parts):
        return None
    return experiment.derived[column.source].compute(values) if column.computed_from else values[0]


# ---------------------------------------------------------------- the row that is chosen


def _select(experiment: Experiment, blocks: list[Block]) -> list[Block]:
    """Mark the chosen block, of each group if the layout has them."""
    rule = experiment.table.select_by
    if rule is None:
        return blocks
    groups: dict[str, list[Block]] = {}
    for block in blocks:
        groups.setdefault(canonical_json([block.where.get(key) for key in rule.per]), []).append(block)
    chosen = [id(best) for group in groups.values() if (best := _best(rule, group)) is not None]
    return [Block(b.where, b.arms, b.differences, b.runs, selected=id(b) in chosen) for b in blocks]


def _best(rule: SelectionRule, blocks: Sequence[Block]) -> Block | None:
    """The block of the highest mean over the arms among those that qualify; the first of several that are equal."""
    scored = [(mean_over_arms(block, rule.by), block) for block in blocks if _qualifies(rule, block, blocks)]
    best = max((score for score, _ in scored if score is not None), default=None)
    return next((block for score, block in scored if score is not None and score == best), None)


def _qualifies(rule: SelectionRule, block: Block, among: Sequence[Block]) -> bool:
    """True if its column `of` is close enough to that of the block it is compared with."""
    if rule.of is None:
        return True
    bounds = [mean_over_arms(b, rule.of) for b in among if has(b, rule.where)]
    own = mean_over_arms(block, rule.of)
    if own is None or not bounds or bounds[0] is None:
        return False
    return own >= bounds[0] - rule.within - 1e-12

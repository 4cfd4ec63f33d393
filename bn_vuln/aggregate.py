"""Records -> a table: mean, SEM and n per arm, differences between arms, and the paper's figures beside ours.

No TensorFlow here: a report renders again from records in about a second.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bn_vuln import config, records
from bn_vuln.analysis.statistics import Estimate, estimate, paired, unpaired, verdict
from bn_vuln.config import Cell, Experiment, PaperValue
from bn_vuln.grid import check_layout, expand, lookup

UNEQUAL_ARMS = 0.02


@dataclass(frozen=True)
class Value:
    """Accuracies of one arm under one perturbation, by seed, with the flags of their records. `failed` and
    `missing` count seeds that did not train, or have no record yet: they are never averaged in."""

    by_seed: dict[int, float]
    failed: int
    missing: int
    flags: tuple[records.Flag, ...]
    n_examples: int | None

    @property
    def estimate(self) -> Estimate | None:
        return estimate(list(self.by_seed.values())) if self.by_seed else None


@dataclass(frozen=True)
class Difference:
    """treatment - reference: paired by seed, and unpaired (SEMs in quadrature); None without records."""

    paired: Estimate | None
    unpaired: Estimate | None


@dataclass(frozen=True)
class Block:
    """The rows of the table that share `where` (values of the layout's row keys): arm -> perturbation -> value."""

    where: dict[str, Any]
    arms: dict[str, dict[str, Value]]
    differences: dict[str, Difference]
    selected: bool = False


@dataclass(frozen=True)
class Comparison:
    """One figure of the paper beside ours, both fractions. `arm` None: a difference between arms. `verdict` is
    `preview` below full scale (`unscaled` says what it would be), `context` for a figure that is not judged."""

    where: dict[str, Any]
    perturbation: str
    arm: str | None
    ours: Estimate | None
    paper: PaperValue
    verdict: str
    unscaled: str
    flags: tuple[str, ...]

    @property
    def gap(self) -> float | None:
        """ours - the paper's."""
        return self.ours.mean - self.paper.value if self.ours else None


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


@dataclass(frozen=True)
class _Run:
    """What a results folder holds of one cell."""

    cell: Cell
    training: records.TrainingRecord | None
    found: dict[str, records.Record]


def aggregate(experiment: Experiment, root: Path) -> Results:
    """The table of an experiment from the records in a results folder. Raises `ConfigError` where the layout
    names what the cells do not have, `BnvulnError` for a damaged record."""
    cells = expand(experiment)
    check_layout(experiment, cells)
    runs = [_read(cell, experiment, root) for cell in cells]
    blocks = _select(experiment, [_block(experiment, group) for group in _group(experiment, runs)])
    everything = [record for run in runs for record in run.found.values()]
    return Results(
        experiment=experiment,
        blocks=tuple(blocks),
        comparisons=tuple(_compare(experiment, blocks)),
        cells=len(runs),
        failed=sum(run.training is not None and run.training.state == "failed" for run in runs),
        missing=sum(run.training is None for run in runs),
        seconds=sum(run.training.seconds for run in runs if run.training) + sum(r.seconds for r in everything),
        devices=_distinct(record.device for record in everything),
        versions=_distinct(", ".join(f"{k} {v}" for k, v in sorted(r.versions.items())) for r in everything),
    )


def _distinct(items: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(items)))


def _read(cell: Cell, experiment: Experiment, root: Path) -> _Run:
    folder = root / records.digest(config.identity(cell))
    found = {}
    for name, perturbation in experiment.perturbations.items():
        fields = records.perturbation_identity(experiment.evaluation, cell.data.canonical, perturbation)
        path = records.record_path(folder, records.digest(fields))
        if path.exists():
            found[name] = records.read_record(path)
    return _Run(cell, records.read_training(folder), found)


def _group(experiment: Experiment, runs: Sequence[_Run]) -> list[list[_Run]]:
    """Runs that share the values of the layout's row keys, in the order of the grid."""
    groups: dict[str, list[_Run]] = {}
    for run in runs:
        key = records.canonical_json([lookup(run.cell, row) for row in experiment.table.rows])
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def _block(experiment: Experiment, runs: Sequence[_Run]) -> Block:
    table = experiment.table
    where = {key: lookup(runs[0].cell, key) for key in table.rows}
    by_arm: dict[str, list[_Run]] = {}
    for run in runs:
        by_arm.setdefault(str(lookup(run.cell, table.arm)), []).append(run)
    arms = {arm: {name: _collect(name, own) for name in table.columns} for arm, own in by_arm.items()}
    treatment, reference = arms.get(table.treatment), arms.get(table.reference)
    differences = {}
    if treatment and reference:
        differences = {name: _difference(treatment[name], reference[name]) for name in table.columns}
    return Block(where, arms, differences)


def _collect(name: str, runs: Sequence[_Run]) -> Value:
    """One arm under one perturbation."""
    by_seed: dict[int, float] = {}
    flags: dict[str, records.Flag] = {}
    failed = missing = 0
    for run in runs:
        if run.training is not None and run.training.state == "failed":
            failed += 1
        elif name not in run.found:
            missing += 1
        else:
            by_seed[run.cell.seed] = run.found[name].accuracy
            flags |= {flag.name: flag for flag in run.found[name].flags}
    n_examples = next((run.found[name].n for run in runs if name in run.found), None)
    return Value(by_seed, failed, missing, tuple(flags.values()), n_examples)


def _difference(treatment: Value, reference: Value) -> Difference:
    ours, theirs = treatment.estimate, reference.estimate
    both = unpaired(ours, theirs) if ours and theirs else None
    return Difference(paired(treatment.by_seed, reference.by_seed), both)


def _select(experiment: Experiment, blocks: list[Block]) -> list[Block]:
    """Mark the block of the highest mean over the arms under `select_by`, if the layout asks for it."""
    name = experiment.table.select_by
    if name is None:
        return blocks
    scores = [mean_over_arms(block, name) for block in blocks]
    best = max((s for s in scores if s is not None), default=None)
    chosen = scores.index(best) if best is not None else None  # the first of several that are equal
    return [Block(b.where, b.arms, b.differences, selected=i == chosen) for i, b in enumerate(blocks)]


def mean_over_arms(block: Block, name: str) -> float | None:
    """The mean of the arms' accuracies; None unless every arm has one and no seed of it failed."""
    values = [arm[name] for arm in block.arms.values()]
    estimates = [value.estimate for value in values]
    if any(e is None for e in estimates) or any(value.failed for value in values):
        return None
    return sum(e.mean for e in estimates if e) / len(estimates)


# ---------------------------------------------------------------- beside the paper


def _compare(experiment: Experiment, blocks: Sequence[Block]) -> Iterable[Comparison]:
    for value, block in itertools.product(experiment.paper, blocks):
        if all(block.where.get(key) == expected for key, expected in value.where.items()):
            for name in value.perturbations:
                yield _comparison(experiment, block, value, name)


def _comparison(experiment: Experiment, block: Block, value: PaperValue, name: str) -> Comparison:
    table = experiment.table
    if value.arm is None:
        difference = block.differences.get(name)
        ours = difference.paired if difference else None
        involved = [block.arms.get(arm, {}).get(name) for arm in (table.treatment, table.reference)]
    else:
        involved = [block.arms.get(value.arm, {}).get(name)]
        ours = involved[0].estimate if involved[0] else None
    judged = value.arm is None and not value.approximate
    unscaled = verdict(ours, value.value, value.sem) if judged else "context"
    shown = unscaled if unscaled in ("context", "not run") or experiment.as_published else "preview"
    flags = _comparison_flags(experiment, block, ours, [v for v in involved if v])
    return Comparison(block.where, name, value.arm, ours, value, shown, unscaled, flags)


def _comparison_flags(
    experiment: Experiment, block: Block, ours: Estimate | None, involved: Sequence[Value]
) -> tuple[str, ...]:
    """The records' flags, plus what only several records can show: checks 15 and 16, and failed trainings."""
    found = [f"check {flag.check}: {flag.message}" for value in involved for flag in value.flags]
    if ours is not None and ours.n == 1:
        found.append("check 16: one seed: the spread over seeds is unknown")
    failed = sum(value.failed for value in involved)
    if failed:
        found.append(f"{failed} training(s) failed and are not in the mean")
    for name, difference in block.differences.items():
        clean = difference.paired if experiment.perturbations[name].kind == "clean" else None
        if clean and abs(clean.mean) > UNEQUAL_ARMS:
            found.append(f"check 15: the arms' clean accuracies differ by {100 * clean.mean:+.1f} points")
    return tuple(dict.fromkeys(found))

"""Claims beside our numbers: what is claimed, by the paper or by an experiment of one's own, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bn_vuln.analysis import statistics
from bn_vuln.analysis.statistics import Estimate
from bn_vuln.config import Claim, Column, ComparedArm, EqualsClaim, Experiment, RatioClaim, SlopeClaim
from bn_vuln.records import Flag
from bn_vuln.reporting.results import Block, Value, has
from bn_vuln.reporting.verdicts import FAILED, NOT_JUDGED, judge
from bn_vuln.typing import Mask, Plain

UNEQUAL_ARMS = statistics.UNEQUAL_CLEAN_ACCURACY

ArmInRow = tuple[Block | None, str]  # a row, None if it is not there, and the name of an arm


@dataclass(frozen=True)
class Comparison:
    """One claim beside our number, in the column's unit (accuracies: fractions).

    Attributes:
        where: Row keys and values, without that of a slope.
        verdict: `preview` below full scale (`verdict_at_full_scale` says what it would be), `context` for a figure that
            is not judged, `failed to train` where no seed of an arm did train.
        over_examples: With one seed, the 95% bootstrap interval over the examples of its runs alone.
    """

    claim: Claim
    where: Plain
    perturbation: str
    ours: Estimate | None
    verdict: str
    verdict_at_full_scale: str
    flags: tuple[str, ...]
    over_examples: tuple[float, float] | None = None

    @property
    def arm(self) -> str | None:
        """The arm that it is about; None stands for the difference treatment - reference."""
        return self.claim.arms[0].arm if self.claim.arms else None

    @property
    def gap(self) -> float | None:
        """The difference of our number and the claimed one; None if either is missing."""
        return self.ours.mean - self.claim.value if self.ours and self.claim.value is not None else None


def compare(experiment: Experiment, blocks: Sequence[Block]) -> tuple[Comparison, ...]:
    """Compare every claim of an experiment, in every row that it is about, with our numbers."""
    table, found = experiment.table, []
    for claim in experiment.claims:
        arms = claim.arms or (ComparedArm(arm=table.treatment), ComparedArm(arm=table.reference))
        # Where not all rows have all arms, a claim is about those that have its own, or one of the table's two.
        about = {arm.arm for arm in (claim.arms[:1] or arms)}
        rows = [block for block in blocks if has(block, claim.where) and about & block.arms.keys()]
        places: list[tuple[Plain, list[ArmInRow]]]
        if isinstance(claim, SlopeClaim):  # one slope through all of them
            where = {key: value for row in rows[:1] for key, value in row.where.items() if key != claim.along}
            places = [(where, [(row, arms[0].arm) for row in rows])] if rows else []
        else:
            places = [(row.where, [(_row(blocks, {**row.where, **a.where}), a.arm) for a in arms]) for row in rows]
        for where, compared in places:
            found += [_comparison(experiment, claim, where, compared, column) for column in claim.perturbations]
    return tuple(found)


def _row(blocks: Sequence[Block], where: Plain) -> Block | None:
    return next((block for block in blocks if block.where == where), None)


def _comparison(
    experiment: Experiment, claim: Claim, where: Plain, arms: Sequence[ArmInRow], column: str
) -> Comparison:
    ours = _slope(arms, claim, column) if isinstance(claim, SlopeClaim) else _ours(arms, claim, column)
    values = [value for arm in arms if (value := _arm_value(arm, column))]
    # There is no number because an arm has failed to train in every seed, which is a result too.
    failed = ours is None and any(value.failed and not value.by_seed and not value.missing for value in values)
    verdict = FAILED if failed else judge(claim, ours)
    shown = verdict if verdict in NOT_JUDGED or experiment.as_published else "preview"
    is_exact = isinstance(claim, EqualsClaim) and claim.exact
    one_seed = ours is not None and ours.n == 1 and not is_exact
    flags = _flags(experiment, arms, claim, column, one_seed=one_seed)
    interval = over_examples(arms, experiment.columns[column]) if one_seed and claim.in_unit else None
    return Comparison(claim, where, column, ours, shown, verdict, flags, interval)


# ---------------------------------------------------------------- our number


def _arm_value(arm_in_row: ArmInRow, column: str) -> Value | None:
    block, arm = arm_in_row
    return block.arms.get(arm, {}).get(column) if block else None


def _ours(arms: Sequence[ArmInRow], claim: Claim, column: str) -> Estimate | None:
    values = [value for arm in arms if (value := _arm_value(arm, column))]
    if len(values) < len(arms):
        return None
    if len(values) == 1:
        return values[0].estimate
    compare_seeds = statistics.ratio if isinstance(claim, RatioClaim) else statistics.paired
    return compare_seeds(*(value.by_seed for value in values))


def _slope(arms: Sequence[ArmInRow], claim: SlopeClaim, column: str) -> Estimate | None:
    """The slope of log(column) against log(the row key), over the rows of one arm, one for each seed that has all."""
    rows = [(block, value.by_seed) for block, arm in arms if block and (value := _arm_value((block, arm), column))]
    x = [float(block.where[claim.along]) ** claim.power for block, _ in rows]
    seeds = set.intersection(*(set(by_seed) for _, by_seed in rows)) if rows else set()
    if len(set(x)) < 2 or not seeds or any(by_seed[seed] <= 0 for _, by_seed in rows for seed in seeds):
        return None
    slopes = [statistics.log_log_slope(x, [by_seed[seed] for _, by_seed in rows]) for seed in sorted(seeds)]
    return statistics.estimate(slopes)


# ---------------------------------------------------------------- flags


def _flags(
    experiment: Experiment,
    arms: Sequence[ArmInRow],
    claim: Claim,
    column: str,
    *,
    one_seed: bool,
) -> tuple[str, ...]:
    """The records' flags, plus what only several records can show: checks 15 and 16, and failed trainings."""
    involved = [value for arm in arms if (value := _arm_value(arm, column))]
    found = [flag.text for value in involved for flag in value.flags]
    if one_seed:
        found.append("check 16: one seed: the spread over seeds is unknown")
    failed = sum(value.failed for value in involved)
    if failed:
        found.append(f"{failed} training(s) failed and are not in the mean")
    if claim.is_contrast:
        found += [flag.text for flag in unequal_arms(experiment, arms, column)]
    return tuple(dict.fromkeys(found))


def unequal_arms(experiment: Experiment, arms: Sequence[ArmInRow], column: str) -> Iterator[Flag]:
    """Give the flags of check 15 for two arms that are compared, on the images that the column is measured on."""
    evaluations = {part.at for part in experiment.columns[column].parts}
    for name in experiment.table.columns:
        where = experiment.columns[name].at
        if experiment.columns[name].is_clean and where in evaluations:
            first, second = (_arm_value(arm, name) for arm in arms)
            clean = statistics.paired(first.by_seed, second.by_seed) if first and second else None
            if clean and abs(clean.mean) > UNEQUAL_ARMS:
                at = f" at {where}" if where else ""
                message = f"the arms' clean accuracies{at} differ by {100 * clean.mean:+.1f} points"
                yield Flag(check=15, name="unequal arms", value=clean.mean, message=message)


def over_examples(arms: Sequence[ArmInRow], column: Column) -> tuple[float, float] | None:
    """Return the 95% bootstrap interval over the examples of one run, or of one pair of runs.

    Args:
        arms: The block and arm of the treatment, then of the reference.
        column: A column of accuracies.

    Returns:
        The interval; None with several seeds, or without knowing which examples are correct.
    """
    masks: list[Mask] = []
    for block, arm in arms:
        runs = [run for run in block.runs if run.arm == arm] if block else []
        found = [(run, record) for run in runs if column.is_accuracy and (record := run.record(column))]
        correct = found[0][0].store.correct(found[0][0].cell_id, found[0][1].perturbation_id) if found else None
        if len(found) != 1 or correct is None:
            return None
        masks.append(correct)
    return statistics.bootstrap_interval(*masks) if len({len(mask) for mask in masks}) == 1 else None

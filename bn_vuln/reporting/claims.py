"""Claims beside our numbers: what is claimed, by the paper or by an experiment of one's own, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bn_vuln.analysis import statistics
from bn_vuln.analysis.statistics import Estimate
from bn_vuln.config import Claim, Column, Experiment
from bn_vuln.records import Flag
from bn_vuln.reporting.results import Block, Value, has
from bn_vuln.typing import Mask, Plain

UNEQUAL_ARMS = statistics.UNEQUAL_CLEAN_ACCURACY
FAILED = "failed to train"


@dataclass(frozen=True)
class Comparison:
    """One claim beside our number, in the column's unit (accuracies: fractions).

    Attributes:
        where: Row keys and values, without the slope's x key.
        arm: None stands for the difference treatment - reference.
        verdict: `preview` below full scale (`verdict_at_full_scale` says what it would be), `context` for a figure that
            is not judged, `failed to train` where no seed of an arm did train.
        over_examples: With one seed, the 95% bootstrap interval over the examples of its runs alone.
    """

    where: Plain
    perturbation: str
    arm: str | None
    ours: Estimate | None
    paper: Claim
    verdict: str
    verdict_at_full_scale: str
    flags: tuple[str, ...]
    over_examples: tuple[float, float] | None = None

    @property
    def gap(self) -> float | None:
        """The difference of our number and the claimed one; None if either is missing."""
        value = self.paper.value
        return self.ours.mean - value if self.ours and value is not None else None


def compare(experiment: Experiment, blocks: Sequence[Block]) -> tuple[Comparison, ...]:
    """Compare every claim of an experiment, in every row that it is about, with our numbers."""
    found = []
    for claim in experiment.claims:
        # Where not all rows have all arms, a claim is about those that have its own, or one of those it compares.
        arms = {claim.arm} if claim.arm else {experiment.table.treatment, experiment.table.reference}
        rows = [block for block in blocks if has(block, claim.where) and arms & block.arms.keys()]
        if claim.how == "slope":
            rows = rows[:1]  # one slope through all of them
        for block in rows:
            for column in claim.perturbations:
                found.append(_comparison(experiment, blocks, claim, block, column))
    return tuple(found)


def _comparison(experiment: Experiment, blocks: Sequence[Block], claim: Claim, block: Block, column: str) -> Comparison:
    arms_compared = _compared_arms(experiment, blocks, claim, block)
    ours = _slope(arms_compared, claim, column) if claim.how == "slope" else _ours(arms_compared, claim, column)
    values = [value for row_and_arm in arms_compared if (value := _arm_value(row_and_arm, column))]
    # There is no number because an arm has failed to train in every seed, which is a result too.
    failed = ours is None and any(value.failed and not value.by_seed and not value.missing for value in values)
    verdict_at_full_scale = FAILED if failed else judge(claim, ours)
    shown = (
        verdict_at_full_scale
        if verdict_at_full_scale in ("context", "not run", FAILED) or experiment.as_published
        else "preview"
    )
    one_seed = ours is not None and ours.n == 1 and not claim.exact
    flags = _flags(experiment, arms_compared, claim, column, one_seed=one_seed)
    where = {k: v for k, v in block.where.items() if k != claim.along}
    interval = (
        over_examples(arms_compared, experiment.columns[column]) if one_seed and claim.how == "difference" else None
    )
    return Comparison(where, column, claim.arm, ours, claim, shown, verdict_at_full_scale, flags, interval)


def judge(claim: Claim, ours: Estimate | None) -> str:
    """Judge a claim by size and sign of a difference, by its sign alone, or by equality within a tolerance.

    Returns:
        `holds`, `holds in sign`, `fails`, `undecided` or `not run`; `context` for what is not judged: approximate
        figures, and those of a single arm without a tolerance.
    """
    value, tolerance = claim.value, claim.tolerance
    if claim.approximate or (tolerance is None and not claim.is_contrast):
        return "context"
    if claim.sign is not None or value is None:
        return statistics.sign_verdict(ours, claim.sign or 1)
    if tolerance is None:
        return statistics.difference_verdict(ours, value, claim.sem)
    if claim.exact and ours is not None and ours.n == 1:
        ours = Estimate(ours.mean, 0.0, 1)
    return statistics.equality_verdict(ours, value, claim.sem, tolerance)


# ---------------------------------------------------------------- our number


def _compared_arms(
    experiment: Experiment, blocks: Sequence[Block], claim: Claim, block: Block
) -> list[tuple[Block | None, str]]:
    """(block, arm) pairs: the compared one, then the baseline; for a slope, all rows."""
    table = experiment.table
    if claim.arm is None:
        return [(block, table.treatment), (block, table.reference)]
    if claim.how == "slope":
        return [(b, claim.arm) for b in blocks if has(b, claim.where) and claim.arm in b.arms]
    if claim.against is None:
        return [(block, claim.arm)]
    # The row that differs from this one in these values alone.
    wanted = {**block.where, **claim.against.where}
    return [(block, claim.arm), (next((b for b in blocks if b.where == wanted), None), claim.against.arm)]


def _arm_value(row_and_arm: tuple[Block | None, str], column: str) -> Value | None:
    block, arm = row_and_arm
    return block.arms.get(arm, {}).get(column) if block else None


def _ours(arms_compared: Sequence[tuple[Block | None, str]], claim: Claim, column: str) -> Estimate | None:
    values = [_arm_value(row_and_arm, column) for row_and_arm in arms_compared]
    by_seed = [value.by_seed for value in values if value]
    if len(by_seed) < len(arms_compared):
        return None
    if len(by_seed) == 1:
        return values[0].estimate if values[0] else None
    return (statistics.ratio if claim.how == "ratio" else statistics.paired)(*by_seed)


def _slope(arms_compared: Sequence[tuple[Block | None, str]], claim: Claim, column: str) -> Estimate | None:
    """The slope of log(column) against log(the row key), over the rows of one arm, one for each seed that has all."""
    rows = [
        (block, value.by_seed) for block, arm in arms_compared if block and (value := _arm_value((block, arm), column))
    ]
    x = [float(block.where[str(claim.along)]) ** claim.power for block, _ in rows]
    seeds = set.intersection(*(set(by_seed) for _, by_seed in rows)) if rows else set()
    if len(set(x)) < 2 or not seeds or any(by_seed[seed] <= 0 for _, by_seed in rows for seed in seeds):
        return None
    slopes = [statistics.log_log_slope(x, [by_seed[seed] for _, by_seed in rows]) for seed in sorted(seeds)]
    return statistics.estimate(slopes)


# ---------------------------------------------------------------- flags


def _flags(
    experiment: Experiment,
    arms_compared: Sequence[tuple[Block | None, str]],
    claim: Claim,
    column: str,
    *,
    one_seed: bool,
) -> tuple[str, ...]:
    """The records' flags, plus what only several records can show: checks 15 and 16, and failed trainings."""
    involved = [value for row_and_arm in arms_compared if (value := _arm_value(row_and_arm, column))]
    found = [flag.text for value in involved for flag in value.flags]
    if one_seed:
        found.append("check 16: one seed: the spread over seeds is unknown")
    failed = sum(value.failed for value in involved)
    if failed:
        found.append(f"{failed} training(s) failed and are not in the mean")
    if claim.is_contrast:
        found += [flag.text for flag in unequal_arms(experiment, arms_compared, column)]
    return tuple(dict.fromkeys(found))


def unequal_arms(
    experiment: Experiment, arms_compared: Sequence[tuple[Block | None, str]], column: str
) -> Iterator[Flag]:
    """Give the flags of check 15 for two arms that are compared, on the images that the column is measured on."""
    evaluations = {part.at for part in experiment.columns[column].parts}
    for name in experiment.table.columns:
        where = experiment.columns[name].at
        if experiment.columns[name].is_clean and where in evaluations:
            first, second = (_arm_value(row_and_arm, name) for row_and_arm in arms_compared)
            clean = statistics.paired(first.by_seed, second.by_seed) if first and second else None
            if clean and abs(clean.mean) > UNEQUAL_ARMS:
                at = f" at {where}" if where else ""
                message = f"the arms' clean accuracies{at} differ by {100 * clean.mean:+.1f} points"
                yield Flag(check=15, name="unequal arms", value=clean.mean, message=message)


def over_examples(arms_compared: Sequence[tuple[Block | None, str]], column: Column) -> tuple[float, float] | None:
    """Return the 95% bootstrap interval over the examples of one run, or of one pair of runs.

    Args:
        arms_compared: The block and arm of the treatment, then of the reference.
        column: A column of accuracies.

    Returns:
        The interval; None with several seeds, or without knowing which examples are correct.
    """
    masks: list[Mask] = []
    for block, arm in arms_compared:
        runs = [run for run in block.runs if run.arm == arm] if block else []
        found = [(run, record) for run in runs if column.is_accuracy and (record := run.record(column))]
        correct = found[0][0].store.correct(found[0][0].cell_id, found[0][1].perturbation_id) if found else None
        if len(found) != 1 or correct is None:
            return None
        masks.append(correct)
    return statistics.bootstrap_interval(*masks) if len({len(mask) for mask in masks}) == 1 else None

"""Where the columns of a table were measured, and how derived ones are computed, in notes under it."""

from __future__ import annotations

from collections.abc import Iterable

from bn_vuln.config import EVALUATION_SEPARATOR, EvaluationPlan
from bn_vuln.reporting.aggregate import Results

LISTED = 6  # columns whose names are all told
CORRUPTED = {
    frozenset({"made"}): "corrupted images: made by the published formulas",
    frozenset({"archive"}): "corrupted images: those that were published",
    frozenset({"made", "archive"}): (
        "corrupted images: in some records made by the published formulas, in others those that were published; these "
        "are not to be compared: choose one `source`"
    ),
}


def notes(results: Results, columns: Iterable[str]) -> list[str]:
    """What a reader must know of these columns of the table where not all are measured at the experiment's
    `evaluation`: how derived ones are computed, then data set, split, limit, BN statistics and n of each evaluation;
    and where corrupted images are from."""
    columns = list(columns)
    computed = _computed(results, [column for column in columns if column in results.experiment.derived])
    at = columns_by_evaluation(results, columns)
    places = [_where(results, plan, parts) for plan, parts in at] if any(s.name for s, _ in at) else []
    return computed + places + _corrupted(results, (part for _, parts in at for part in parts))


def columns_by_evaluation(results: Results, columns: Iterable[str]) -> list[tuple[EvaluationPlan, list[str]]]:
    """The evaluations behind columns of the table, each with the columns that are measured there; what a derived column
    is computed from stands in its place."""
    parts = list(dict.fromkeys(part for column in columns for part in results.experiment.source_columns(column)))
    at = [
        (plan, [p for p in parts if p.partition(EVALUATION_SEPARATOR)[2] == plan.name])
        for plan in results.experiment.plans
    ]
    return [(plan, found) for plan, found in at if found]


def n_examples(results: Results, parts: Iterable[str]) -> str:
    """How many examples the numbers of these columns are from: `10,000`, or `1,000, 10,000`; "" where there is none."""
    runs = [run for block in results.blocks for run in block.runs]
    counts = {n for part in parts for run in runs if (n := run.examples(part))}
    return ", ".join(f"{n:,}" for n in sorted(counts))


def _computed(results: Results, columns: list[str]) -> list[str]:
    """gap: clean, train - clean, for each training by itself. Many that are all X@there - X make one note."""
    alike: dict[str, list[str]] = {}
    for column in columns:
        alike.setdefault(_between(results, column) or column, []).append(column)
    told = []
    for how, group in alike.items():
        if len(group) > LISTED:
            told.append((_listed(_heads(results, group)), how))
        else:
            told += [(_heads(results, [column])[0], _how(results, column)) for column in group]
    return [f"{heads}: {how}, for each training by itself" for heads, how in told]


def _how(results: Results, column: str) -> str:
    heads = _heads(results, results.experiment.source_columns(column))
    if results.experiment.derived[column].difference:
        return " \N{MINUS SIGN} ".join(heads)
    return f"mean of {_listed(heads)}"


def _between(results: Results, column: str) -> str:
    """`X@batch - X` for a difference of one perturbation in two places; "" for what is none."""
    parts = [part.partition(EVALUATION_SEPARATOR) for part in results.experiment.source_columns(column)]
    one_name = len({name for name, _, _ in parts}) == 1
    if not (results.experiment.derived[column].difference and one_name):
        return ""
    return " \N{MINUS SIGN} ".join(f"X{at}{where}" for _, at, where in parts)


def _listed(heads: list[str]) -> str:
    """All of a few; of many the first, the last, and how many they are."""
    if len(heads) <= LISTED:
        return "; ".join(heads)
    return f"{heads[0]}; {heads[1]}; ...; {heads[-1]} ({len(heads)} columns)"


def _where(results: Results, plan: EvaluationPlan, parts: list[str]) -> str:
    """clean, train: mnist, train split, limit 10,000, tracked BN statistics, n = 10,000 examples."""
    where, n = plan.evaluation, n_examples(results, parts)
    limit = "no limit" if where.limit is None else f"limit {where.limit:,}"
    words = [dataset(results, plan), f"{where.split} split", limit, f"{where.bn_statistics} BN statistics"]
    return f"{_listed(_heads(results, parts))}: {', '.join([*words, f'n = {n} examples' if n else 'not run'])}"


def _corrupted(results: Results, parts: Iterable[str]) -> list[str]:
    runs = [run for block in results.blocks for run in block.runs]
    found = [run.record(part) for part in parts for run in runs]
    sources = frozenset(record.corruption_source for record in found if record and record.corruption_source)
    return [CORRUPTED[sources]] if sources else []


def dataset(results: Results, plan: EvaluationPlan) -> str:
    """The data set by the name that identifies it, user data by their content."""
    if plan.evaluation.dataset:
        return plan.evaluation.dataset
    names = {run.cell.data.canonical for block in results.blocks for run in block.runs}
    return names.pop() if len(names) == 1 else "the data trained on"


def _heads(results: Results, columns: Iterable[str]) -> list[str]:
    """What columns are called: as the table heads them, or by their name where it does not show them."""
    return [results.experiment.table.columns.get(column, column) for column in columns]

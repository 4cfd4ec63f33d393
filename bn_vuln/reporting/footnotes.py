"""Notes under a table: where its columns were measured, and how derived ones are computed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bn_vuln.config import Column, EvaluationPlan, column_name
from bn_vuln.reporting.aggregate import Results

MAX_LISTED = 6  # columns: of more, only the first two and the last are named
CORRUPTED = {
    frozenset({"made"}): "corrupted images: made by the published formulas",
    frozenset({"archive"}): "corrupted images: those that were published",
    frozenset({"made", "archive"}): (
        "corrupted images: in some records made by the published formulas, in others those that were published; these "
        "are not to be compared: choose one `source`"
    ),
}


def notes(results: Results, names: Iterable[str]) -> list[str]:
    """Return the notes for the columns of these names.

    Formulas of derived columns; where not all columns are measured at the experiment's `evaluation`, data set, split,
    limit, BN statistics and n of each evaluation; and the source of corrupted images.
    """
    columns = [results.experiment.columns[name] for name in names]
    lines = derived_notes(results, [column for column in columns if column.computed_from])
    evaluations = columns_by_evaluation(results, columns)
    if any(plan.name for plan, _ in evaluations):
        lines += [evaluation_note(results, plan, parts) for plan, parts in evaluations]
    runs = [run for block in results.blocks for run in block.runs]
    corrupted = [run.record(part) for _, parts in evaluations for part in parts for run in runs]
    sources = frozenset(record.corruption_source for record in corrupted if record and record.corruption_source)
    return [*lines, CORRUPTED[sources]] if sources else lines


def columns_by_evaluation(results: Results, columns: Iterable[Column]) -> list[tuple[EvaluationPlan, list[Column]]]:
    """Return the evaluations behind columns of the table, each with the columns that are measured there.

    A derived column is replaced by the columns that it is computed from.
    """
    parts = list(dict.fromkeys(part for column in columns for part in column.parts))
    by_plan = [(plan, [part for part in parts if part.at == plan.name]) for plan in results.experiment.plans]
    return [(plan, measured) for plan, measured in by_plan if measured]


def n_examples(results: Results, columns: Iterable[Column]) -> str:
    """Return the number of examples behind columns: `10,000`, or `1,000, 10,000`; "" without records."""
    runs = [run for block in results.blocks for run in block.runs]
    counts = {n for column in columns for run in runs if (n := run.examples(column))}
    return ", ".join(f"{n:,}" for n in sorted(counts))


def dataset_name(results: Results, plan: EvaluationPlan) -> str:
    """Return the data set of an evaluation, by the name or path that the config gives."""
    return plan.evaluation.dataset or trained_on(results)


def trained_on(results: Results) -> str:
    """Return the data set that the models are trained on, by the name or path that the config gives."""
    names = {run.cell.data.name for block in results.blocks for run in block.runs}
    return names.pop() if len(names) == 1 else "the data trained on"


def derived_notes(results: Results, columns: Iterable[Column]) -> list[str]:
    """Return the formulas of derived columns, as `gap: clean, train - clean`.

    Many differences X@evaluation - X share one note.
    """
    by_formula: dict[str, list[Column]] = {}
    for column in columns:
        difference = results.experiment.derived[column.source].difference
        is_shared = difference and len({(part.source, part.metric) for part in column.parts}) == 1
        names = [column_name("X", part.at) for part in column.parts]
        formula = " \N{MINUS SIGN} ".join(names) if is_shared else str(column)
        by_formula.setdefault(formula, []).append(column)
    lines = []
    for formula, group in by_formula.items():
        if len(group) > MAX_LISTED:
            lines.append(f"{join_listed(_titles(results, group))}: {formula}")
            continue
        for column in group:
            titles = _titles(results, column.parts)
            difference = results.experiment.derived[column.source].difference
            own_formula = " \N{MINUS SIGN} ".join(titles) if difference else f"mean of {join_listed(titles)}"
            lines.append(f"{_titles(results, [column])[0]}: {own_formula}")
    return [f"{line}, for each training by itself" for line in lines]


def evaluation_note(results: Results, plan: EvaluationPlan, columns: list[Column]) -> str:
    """Return `clean, train: mnist, train split, limit 10,000, tracked BN statistics, n = 10,000 examples`."""
    evaluation, n = plan.evaluation, n_examples(results, columns)
    parts = [
        dataset_name(results, plan),
        f"{evaluation.split} split",
        "no limit" if evaluation.limit is None else f"limit {evaluation.limit:,}",
        f"{evaluation.bn_statistics} BN statistics",
        f"n = {n} examples" if n else "not run",
    ]
    return f"{join_listed(_titles(results, columns))}: {', '.join(parts)}"


def _titles(results: Results, columns: Iterable[Column]) -> list[str]:
    """Titles of columns in the table, or their names where it does not show them."""
    return [results.experiment.table.columns.get(str(column), str(column)) for column in columns]


def join_listed(titles: Sequence[str]) -> str:
    """Return all of a few titles of columns; of many the first two, the last and the count."""
    if len(titles) <= MAX_LISTED:
        return "; ".join(titles)
    return f"{titles[0]}; {titles[1]}; ...; {titles[-1]} ({len(titles)} columns)"

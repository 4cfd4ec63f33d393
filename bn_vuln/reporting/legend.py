"""Legends of an experiment's tables: what its columns are, and what the verdicts in it mean, in a sentence each."""

from __future__ import annotations

from bn_vuln.config import METRICS, Column, describe_perturbation
from bn_vuln.reporting import footnotes
from bn_vuln.reporting.aggregate import Results
from bn_vuln.reporting.tables import KEY_NAMES, MEASUREMENT_NAMES, claimed_by, difference_label
from bn_vuln.reporting.verdicts import MEANINGS, rule

Lines = list[tuple[str, str]]


def columns(results: Results) -> Lines:
    """Return the heads of the table of accuracies with what they mean; columns that differ in eps alone are joined.

    Derived columns are left out: notes under the table give their formulas.
    """
    table = results.experiment.table
    lines: Lines = []
    if table.rows:
        keys = ", ".join(table.rows)
        names = ", ".join(KEY_NAMES.get(key, key) for key in table.rows)
        lines.append((names, f"settings of the training ({keys}); each combination is a block of rows"))
    arms = "the variants compared" if table.arms else f"the variants compared, by {table.arm}"
    if any(block.differences for block in results.blocks):
        arms += f"; {difference_label(table)} is their difference, seed by seed, then averaged"
    lines.append(("arm" if table.arms else KEY_NAMES.get(table.arm, table.arm), arms))
    lines.append(("n", "training seeds behind a mean; ± is its standard error over them (SEM), which takes two"))
    grouped: dict[str, list[str]] = {}
    for name, title in table.columns.items():
        column = results.experiment.columns[name]
        if not column.computed_from:
            grouped.setdefault(_meaning(column), []).append(title)
    return [*lines, *((footnotes.join_listed(titles), meaning) for meaning, titles in grouped.items())]


def _meaning(column: Column) -> str:
    """What a column that is not derived shows."""
    if column.measurement:
        measured = MEASUREMENT_NAMES[column.measurement.kind]
        text = measured if column.is_plain else f"{column.metric}, of: {measured}"
    elif column.perturbation:
        perturbation = describe_perturbation(column.perturbation)
        under = "on clean images" if column.perturbation.kind == "clean" else f"under {perturbation}"
        text = METRICS[column.metric].meaning.format(under=under, perturbation=perturbation)
    return f"{text}, at the evaluation {column.at}" if column.at else text


def verdicts(results: Results) -> Lines:
    """Return the heads of the table of claims with what they mean, and each verdict in it."""
    if not results.comparisons:
        return []
    claimed = claimed_by(results.experiment)
    stated = "the paper states" if claimed == "paper" else "the claim states"
    lines = [
        ("quantity, under", "what the claim is about, and the column of the table above that it is about"),
        ("measured", "the number measured here, mean ± SEM (n training seeds)"),
        (claimed, f"what {stated}: a number, or that it is above or below 0"),
    ]
    lines.append(("flags", "the numbers of the notes under this table"))
    for verdict in dict.fromkeys(comparison.verdict for comparison in results.comparisons):
        rules = dict.fromkeys(rule(c.claim) for c in results.comparisons if c.verdict == verdict)
        meanings = MEANINGS[verdict]
        texts = dict.fromkeys(meanings.get(own, meanings.get("", "")) for own in rules)
        lines.append((verdict, "; or ".join(filter(None, texts))))
    return lines

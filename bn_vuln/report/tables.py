"""Results as rows of text: one set of rows feeds Markdown, CSV, HTML and the terminal. Percent only here."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bn_vuln.aggregate import Block, Comparison, Results, Value
from bn_vuln.analysis.statistics import Estimate
from bn_vuln.config import describe_fields
from bn_vuln.records import Record

KEY_NAMES = {
    "data.width": "width",
    "normalization.name": "normalization",
    "normalization.c": "c",
    "train.batch_size": "batch size",
    "train.lr": "learning rate",
    "train.epochs": "epochs",
    "weight_decay": "weight decay",
}
MISSING = "-"


@dataclass(frozen=True)
class TextTable:
    """A title, column heads, rows of text, which rows are differences (set apart where rendered), footnotes."""

    title: str
    heads: list[str]
    rows: list[list[str]]
    differences: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def text_columns(self) -> frozenset[int]:
        """The columns of words, which are aligned to the left."""
        return frozenset(i for i, column in enumerate(zip(*self.rows, strict=True)) if _are_words(column))


def _are_words(column: Sequence[str]) -> bool:
    return any(text[:1].isalpha() and not text.startswith("about ") for text in column)


def percent(value: Estimate | None, *, signed: bool = False) -> str:
    """`97.71 ± 0.05`: mean and SEM in percent (points, where signed); no "±" for n = 1."""
    if value is None:
        return MISSING
    mean = f"{100 * value.mean:+.2f}" if signed else f"{100 * value.mean:.2f}"
    text = mean.replace("-", "\N{MINUS SIGN}")
    return text if value.sem is None else f"{text} ± {100 * value.sem:.2f}"


def accuracy_table(results: Results) -> TextTable:
    """One row for each arm of each block, and the paired difference under them."""
    table = results.experiment.table
    keys = [KEY_NAMES.get(key, key) for key in table.rows]
    heads = [*keys, KEY_NAMES.get(table.arm, table.arm), "n", *(f"{head}, %" for head in table.columns.values())]
    rows: list[list[str]] = []
    differences = set()
    for block in results.blocks:
        where = [_plain(value) for value in block.where.values()]
        for arm, values in block.arms.items():
            mark = " (chosen)" if block.selected else ""
            cells = [_cell(values[name]) for name in table.columns]
            rows.append([*where, arm + mark, _seeds(values), *cells])
        if block.differences:
            differences.add(len(rows))
            paired = [block.differences[name].paired for name in table.columns]
            n = str(max((p.n for p in paired if p), default=0))
            label = f"{table.treatment} \N{MINUS SIGN} {table.reference}"
            rows.append([*where, label, n, *(percent(p, signed=True) for p in paired)])
    scale = results.experiment.scale
    preview = "" if scale == "full" else f" (scale {scale}: a preview)"
    return TextTable(f"Accuracy, mean ± SEM over n seeds{preview}", heads, rows, frozenset(differences))


def _cell(value: Value) -> str:
    text = percent(value.estimate)
    notes = [f"{value.failed} failed to train"] if value.failed else []
    notes += [f"{value.missing} not run"] if value.missing else []
    return f"{text} ({', '.join(notes)})" if notes else text


def _seeds(values: dict[str, Value]) -> str:
    return str(max((len(value.by_seed) for value in values.values()), default=0))


def comparison_table(results: Results) -> TextTable | None:
    """Ours beside the paper's: one row for each figure and perturbation; None where the paper gives none."""
    if not results.comparisons:
        return None
    heads = [*(KEY_NAMES.get(key, key) for key in results.experiment.table.rows), "quantity", "under"]
    heads += ["ours ± SEM (n)", "paper", "ours \N{MINUS SIGN} paper", "verdict", "flags"]
    notes = list(dict.fromkeys(flag for c in results.comparisons for flag in c.flags))
    rows = [_comparison_row(results, c, notes) for c in results.comparisons]
    title = "Beside the paper (accuracies in %, differences in points; negative: batch norm harms)"
    return TextTable(title, heads, rows, notes=tuple(f"[{i}] {note}" for i, note in enumerate(notes, 1)))


def _comparison_row(results: Results, comparison: Comparison, notes: list[str]) -> list[str]:
    signed = comparison.arm is None
    ours, paper = comparison.ours, comparison.paper
    published = percent(Estimate(paper.value, paper.sem, 0), signed=signed)
    if paper.approximate:
        published = f"about {published}"
    gap = comparison.gap
    return [
        *(_plain(value) for value in comparison.where.values()),
        quantity(results, comparison),
        results.experiment.table.columns.get(comparison.perturbation, comparison.perturbation),
        f"{percent(ours, signed=signed)} ({ours.n})" if ours else MISSING,
        published,
        percent(Estimate(gap, None, 1), signed=True) if gap is not None else MISSING,
        comparison.verdict,
        " ".join(f"[{i}]" for i, note in enumerate(notes, 1) if note in comparison.flags) or "none",
    ]


def quantity(results: Results, comparison: Comparison) -> str:
    """What a comparison is about: a difference between the arms, or one arm's accuracy."""
    table = results.experiment.table
    if comparison.arm is None:
        return f"{table.treatment} \N{MINUS SIGN} {table.reference}"
    return f"accuracy of {comparison.arm}"


def _plain(value: Any) -> str:
    if value is None:
        return "native"
    return f"{value:g}" if isinstance(value, float) else str(value)


def where_text(block: Block) -> str:
    """A block's place in words: width 28, weight decay 0.01."""
    return ", ".join(f"{KEY_NAMES.get(key, key)} {_plain(value)}" for key, value in block.where.items())


def tables(results: Results) -> list[TextTable]:
    """All tables of an experiment."""
    comparison = comparison_table(results)
    return [accuracy_table(results), *([comparison] if comparison else [])]


def markdown_table(table: TextTable) -> str:
    """A Markdown table with aligned columns, readable as plain text too."""
    rows = [[text.replace("|", "\\|") for text in row] for row in (table.heads, *table.rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.heads))]
    lines = ["| " + " | ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    notes = [f"\n{note}" for note in table.notes]
    return "\n".join([*lines, *notes])


def records_table(found: Mapping[str, Record]) -> str:
    """Records of one classifier as a Markdown table, flags under it."""
    notes = list(dict.fromkeys(f"check {flag.check}: {flag.message}" for r in found.values() for flag in r.flags))
    numbers = {note: f"[{i}]" for i, note in enumerate(notes, 1)}
    rows = [
        [name, describe_fields(r.perturbation), str(r.n), f"{100 * r.accuracy:.2f}",
         " ".join(numbers[f"check {flag.check}: {flag.message}"] for flag in r.flags) or "none"]
        for name, r in found.items()
    ]  # fmt: skip
    table = TextTable("", ["name", "under", "examples", "accuracy, %", "flags"], rows)
    return markdown_table(replace(table, notes=tuple(f"{numbers[note]} {note}" for note in notes)))


def csv_text(results: Results) -> str:
    """One line for each arm, perturbation and seed: an export of the records, in fractions."""
    text = io.StringIO()
    keys = list(results.experiment.table.rows)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*keys, "arm", "perturbation", "seed", "accuracy", "examples", "flags"])
    for block in results.blocks:
        for arm, values in block.arms.items():
            for name, value in values.items():
                flags = " ".join(str(flag.check) for flag in value.flags)
                for seed, accuracy in sorted(value.by_seed.items()):
                    writer.writerow([*block.where.values(), arm, name, seed, repr(accuracy), value.n_examples, flags])
    return text.getvalue()


def to_json(results: Results) -> dict[str, Any]:
    """The table as plain data, fractions throughout."""
    return {
        "experiment": results.experiment.name,
        "scale": results.experiment.scale,
        "claim": results.experiment.claim,
        "cells": results.cells,
        "failed": results.failed,
        "missing": results.missing,
        "rows": [row for block in results.blocks for row in _json_rows(block)],
        "comparisons": [_json_comparison(c) for c in results.comparisons],
    }


def _json_rows(block: Block) -> Sequence[dict[str, Any]]:
    return [
        {
            "where": block.where,
            "arm": arm,
            "selected": block.selected,
            "perturbation": name,
            **_json_estimate(value.estimate),
            "examples": value.n_examples,
            "failed": value.failed,
            "missing": value.missing,
            "flags": [flag.model_dump() for flag in value.flags],
        }
        for arm, values in block.arms.items()
        for name, value in values.items()
    ]


def _json_comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "where": comparison.where,
        "perturbation": comparison.perturbation,
        "arm": comparison.arm,
        **_json_estimate(comparison.ours),
        "paper": comparison.paper.value,
        "paper_sem": comparison.paper.sem,
        "difference": comparison.gap,
        "verdict": comparison.verdict,
        "verdict_at_full_scale": comparison.unscaled,
        "flags": list(comparison.flags),
        "source": comparison.paper.source,
    }


def _json_estimate(value: Estimate | None) -> dict[str, Any]:
    return {"mean": value.mean if value else None, "sem": value.sem if value else None, "n": value.n if value else 0}

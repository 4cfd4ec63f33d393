"""Results as rows of text: one set of rows feeds Markdown, CSV, HTML and the terminal. Percent only here."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bn_vuln.analysis.statistics import Estimate
from bn_vuln.config import ColumnUnit, describe_fields, to_plain
from bn_vuln.records import Flag, MeasurementRecord, Record
from bn_vuln.reporting import footnotes
from bn_vuln.reporting.aggregate import Results
from bn_vuln.reporting.claims import Comparison
from bn_vuln.reporting.results import Block, Run, Value

KEY_NAMES = {
    "arch.name": "model",
    "arch.depth": "depth",
    "data.width": "width",
    "normalization.name": "normalization",
    "normalization.c": "c",
    "train.batch_size": "batch size",
    "train.lr": "learning rate",
    "train.epochs": "epochs",
    "train.adversarial.eps": "trained at eps",
    "train.augment.pad": "crop pad",
    "weight_decay": "weight decay",
}
MISSING = "-"
MEASURED = {
    "tilt": "angle of the boundary to the nearest-centroid classifier",
    "spectrum": "boundary's energy in directions of low variance",
    "fooling": "steps from noise to an image the network is confident of",
    "batch_statistics": "shift of batches' statistics from those that batch norm has tracked",
}


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
    return any(re.match(r"(\d+: )?[^\W\d_]", text) and not text.startswith("about ") for text in column)


# Of each unit of a column: what numbers are multiplied by to be shown, digits behind the point, name of a difference.
SHOWN: dict[ColumnUnit, tuple[float, int, str]] = {
    "%": (100.0, 2, "points"),
    "points": (100.0, 2, "points"),
    "deg": (1.0, 2, "deg"),
    "nats": (1.0, 4, "nats"),
    "steps": (1.0, 1, "steps"),
    "pixels": (1.0, 3, "pixels"),
    "standardized": (1.0, 3, "standardized"),
    "std": (1.0, 3, "std"),
    "log ratio": (1.0, 3, "log ratio"),
}


def number(value: Estimate | None, unit: ColumnUnit = "%", *, signed: bool = False) -> str:
    """`97.71 ± 0.05`: mean and SEM as a column of that unit shows them; no "±" for n = 1."""
    if value is None:
        return MISSING
    factor, digits, _ = SHOWN[unit]
    rounded = round(factor * value.mean, digits) + 0.0  # no "-0.00"
    mean = f"{rounded:{'+' if signed else ''}.{digits}f}"
    text = mean.replace("-", "\N{MINUS SIGN}")
    return text if value.sem is None else f"{text} ± {factor * value.sem:.{digits}f}"


def percent(value: Estimate | None, *, signed: bool = False) -> str:
    """The same of fractions: percent, or points where signed."""
    return number(value, "%", signed=signed)


def accuracy_table(results: Results) -> TextTable:
    """One row for each arm of each block, and the paired difference under them."""
    table = results.experiment.table
    keys = [KEY_NAMES.get(key, key) for key in table.rows]
    units = {name: results.experiment.unit(name) for name in table.columns}
    arm_head = "arm" if table.arms else KEY_NAMES.get(table.arm, table.arm)
    heads = [*keys, arm_head, "n", *(f"{head}, {units[name]}" for name, head in table.columns.items())]
    rows: list[list[str]] = []
    differences = set()
    flagged = _flagged(results)
    marks = {check: i for i, check in enumerate(flagged, 1)}  # the numbers of the notes
    for block in results.blocks:
        where = [plain(key, value) for key, value in block.where.items()]
        for arm, values in block.arms.items():
            mark = " (chosen)" if block.selected else ""
            cells = [_cell(values[name], units[name], marks) for name in table.columns]
            rows.append([*where, arm + mark, _seeds(values), *cells])
        if block.differences:
            differences.add(len(rows))
            paired = {name: block.differences[name].paired for name in table.columns}
            n = str(max((p.n for p in paired.values() if p), default=0))
            label = f"{table.treatment} \N{MINUS SIGN} {table.reference}"
            rows.append([*where, label, n, *(number(p, units[name], signed=True) for name, p in paired.items())])
    scale = results.experiment.scale
    preview = "" if scale == "full" else f" (scale {scale}: a preview)"
    what = "Accuracy" if set(units.values()) <= {"%", "points"} else "Measured"
    notes = (*_flag_notes(flagged), *footnotes.notes(results, table.columns))
    return TextTable(f"{what}, mean ± SEM over n seeds{preview}", heads, rows, frozenset(differences), notes)


def _cell(value: Value, unit: ColumnUnit, marks: Mapping[int, int]) -> str:
    text = number(value.estimate, unit)
    notes = [f"{value.failed} failed to train"] if value.failed else []
    notes += [f"{value.missing} not run"] if value.missing else []
    text = f"{text} ({', '.join(notes)})" if notes else text
    raised = sorted({marks[flag.check] for flag in value.flags})
    return f"{text} [{', '.join(map(str, raised))}]" if raised else text


def _flagged(results: Results) -> dict[int, list[tuple[str, Flag]]]:
    """By check, in order: where numbers have raised it, in words, and the flags."""
    found: dict[int, list[tuple[str, Flag]]] = {}
    for block in results.blocks:
        for arm, values in block.arms.items():
            for name, value in values.items():
                place = ", ".join(
                    part for part in (where_text(block), arm, results.experiment.table.columns[name]) if part
                )
                for flag in value.flags:
                    found.setdefault(flag.check, []).append((place, flag))
    return dict(sorted(found.items()))


def _flag_notes(flagged: Mapping[int, list[tuple[str, Flag]]]) -> list[str]:
    """One note for each check, with the flag that is farthest off."""
    notes = []
    for i, (check, raised) in enumerate(flagged.items(), 1):
        place, worst = max(raised, key=lambda one: abs(one[1].value))
        several = f", {len(raised)} numbers, farthest off {place}" if len(raised) > 1 else ""
        notes.append(f"[{i}] check {check}{several}: {worst.message}")
    return notes


def _seeds(values: dict[str, Value]) -> str:
    return str(max((len(value.by_seed) for value in values.values()), default=0))


def comparison_table(results: Results) -> TextTable | None:
    """Ours beside the paper's: one row for each claim, row and column it is about; None where there is none."""
    if not results.comparisons:
        return None
    found = claims(results)
    keys = list(dict.fromkeys(key for claim in found for key in claim.where))
    heads = [*(KEY_NAMES.get(key, key) for key in keys), "quantity", "under"]
    heads += ["ours ± SEM (n)", "paper", "ours \N{MINUS SIGN} paper", "verdict", "flags"]
    notes = list(dict.fromkeys(flag for claim in found for flag in claim.flags))
    rows = [
        [
            *(plain(key, claim.where[key]) if key in claim.where else MISSING for key in keys),
            claim.quantity, claim.under, claim.ours, claim.published, claim.gap, claim.verdict,
            " ".join(f"[{i}]" for i, note in enumerate(notes, 1) if note in claim.flags) or "none",
        ]
        for claim in found
    ]  # fmt: skip
    remarks = [f"[{i}] {note}" for i, note in enumerate(notes, 1)]
    remarks += dict.fromkeys(claim.remark for claim in found if claim.remark)
    if any(c.over_examples for c in results.comparisons):
        remarks.append("examples [...]: with one seed, the 95% bootstrap interval over the examples of its runs alone")
    remarks += footnotes.notes(results, dict.fromkeys(c.perturbation for c in results.comparisons))
    title = f"Beside what is claimed (accuracies in %, differences in points{_sign(results)})"
    return TextTable(title, heads, rows, notes=tuple(remarks))


def _sign(results: Results) -> str:
    """What a negative number means, where it is the same everywhere."""
    experiment, table = results.experiment, results.experiment.table
    costs = all(
        (c.arm is None and experiment.unit(c.perturbation) == "%") or not c.paper.is_contrast
        for c in results.comparisons
    )
    harms = costs and (table.treatment, table.reference) == ("batch", "none")
    return "; negative: batch norm harms" if harms else ""


@dataclass(frozen=True)
class ClaimText:
    """A claim beside ours, in words and numbers as they are shown."""

    where: dict[str, Any]
    quantity: str
    under: str
    ours: str
    published: str
    gap: str
    verdict: str
    flags: tuple[str, ...]
    remark: str


def claims(results: Results) -> list[ClaimText]:
    """Every comparison of an experiment as text."""
    return [
        ClaimText(
            c.where,
            quantity(results, c),
            results.experiment.table.columns.get(c.perturbation, c.perturbation),
            _ours(results, c),
            _published(results, c),
            _gap(results, c),
            c.verdict,
            c.flags,
            "" if c.unscaled == "holds" else c.paper.remark,
        )
        for c in results.comparisons
    ]


def _ours(results: Results, comparison: Comparison) -> str:
    """Our number with its n; of one seed with the interval over its examples."""
    ours, interval = comparison.ours, comparison.over_examples
    if ours is None:
        return MISSING
    if interval is None:
        text = f"{_of_claim(results, comparison, ours)} ({ours.n})"
        return text if comparison.paper.how == "difference" else f"{text}{_interval_text(results, comparison, ours)}"
    low, high = (_of_claim(results, comparison, Estimate(bound, None, 1)) for bound in interval)
    return f"{_of_claim(results, comparison, ours)} ({ours.n}; examples [{low}, {high}])"


def _interval_text(results: Results, comparison: Comparison, ours: Estimate) -> str:
    """The 95% t-interval of a slope or ratio, which no verdict stands for."""
    interval = ours.interval()
    if interval is None:
        return ""
    low, high = (_of_claim(results, comparison, Estimate(bound, None, 1)) for bound in interval)
    return f" [{low}, {high}]"


def _published(results: Results, comparison: Comparison) -> str:
    """The paper's figure, or the sign that it claims."""
    paper = comparison.paper
    if paper.value is None:
        return "above 0" if paper.sign == 1 else "below 0"
    text = _of_claim(results, comparison, Estimate(paper.value, paper.sem, 0))
    return f"about {text}" if paper.approximate else text


def _gap(results: Results, comparison: Comparison) -> str:
    if comparison.gap is None:
        return MISSING
    return _of_claim(results, comparison, Estimate(comparison.gap, None, 1), signed=True)


def _of_claim(results: Results, comparison: Comparison, value: Estimate, *, signed: bool | None = None) -> str:
    """A number as a claim has it: slopes and ratios have no unit."""
    paper = comparison.paper
    if paper.how != "difference":
        mean = f"{value.mean:{'+' if signed else ''}.3f}".replace("-", "\N{MINUS SIGN}")
        return mean if value.sem is None else f"{mean} ± {value.sem:.3f}"
    unit = results.experiment.unit(comparison.perturbation)
    return number(value, unit, signed=paper.is_contrast if signed is None else signed)


def quantity(results: Results, comparison: Comparison) -> str:
    """What a claim is about: its own words, a difference between the arms, or one arm's number."""
    table, paper = results.experiment.table, comparison.paper
    if paper.text:
        return paper.text
    if paper.arm is None:
        return f"{table.treatment} \N{MINUS SIGN} {table.reference}"
    if paper.how == "slope":
        power = f"^{paper.power}" if paper.power > 1 else ""
        return f"slope of log({paper.arm}) against log({KEY_NAMES.get(str(paper.along), str(paper.along))}{power})"
    if paper.against is None:
        is_accuracy = results.experiment.unit(comparison.perturbation) == "%"
        return f"accuracy of {paper.arm}" if is_accuracy else paper.arm
    sign = "/" if paper.how == "ratio" else "\N{MINUS SIGN}"
    other = ", ".join(
        [paper.against.arm, *(f"{KEY_NAMES.get(k, k)} {plain(k, v)}" for k, v in paper.against.where.items())]
    )
    return f"{paper.arm} {sign} {other}"


def plain(key: str, value: Any) -> str:
    """A value of a row key as it is shown."""
    if value is None:
        return "native" if key == "data.width" else MISSING
    return f"{value:g}" if isinstance(value, float) else str(value)


def where_text(block: Block) -> str:
    """A block's place in words: width 28, weight decay 0.01."""
    return ", ".join(words(block.where, named=True))


def words(where: Mapping[str, Any], *, named: bool = False) -> list[str]:
    """Values of row keys in words, as `width 28` and `mlp` (`named`: `model mlp`); without those that are missing."""
    shown = {key: plain(key, value) for key, value in where.items()}
    return [
        text if isinstance(where[key], str) and not named else f"{KEY_NAMES.get(key, key)} {text}"
        for key, text in shown.items()
        if text != MISSING
    ]


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
    notes = list(dict.fromkeys(flag.text for r in found.values() for flag in r.flags))
    numbers = {note: f"[{i}]" for i, note in enumerate(notes, 1)}
    far = any(r.mean_distance is not None or r.kind == "minimal" for r in found.values())
    rows = [
        [name, describe_fields(r.perturbation), str(r.n), f"{100 * r.accuracy:.2f}", *([_distance(r)] if far else []),
         " ".join(numbers[flag.text] for flag in r.flags) or "none"]
        for name, r in found.items()
    ]  # fmt: skip
    heads = ["name", "under", "examples", "accuracy, %", *(["distance"] if far else []), "flags"]
    table = TextTable("", heads, rows)
    return markdown_table(replace(table, notes=tuple(f"{numbers[note]} {note}" for note in notes)))


def _distance(record: Record) -> str:
    """Of a minimum-norm attack or a bisection, in norm and unit of its config."""
    if record.mean_distance is None:
        return MISSING
    norm, unit = {"inf": "Linf", "2": "L2"}[record.perturbation["ord"]], record.perturbation["unit"]
    return f"{norm} mean {record.mean_distance:.3f}, median {record.median_distance:.3f} {unit}"


def measurements_table(measured: Mapping[str, MeasurementRecord]) -> str:
    """Measurements of one classifier as a Markdown table."""
    rows = [
        [name, MEASURED.get(r.measurement["kind"], ""), str(r.n), _shown(r.value, r.unit),
         ", ".join(f"{key} {value:.4g}" for key, value in r.details.items())]
        for name, r in measured.items()
    ]  # fmt: skip
    return markdown_table(TextTable("", ["name", "what", "examples", "value", "further"], rows))


def _shown(value: float | None, unit: str) -> str:
    if value is None:
        return "not applicable"
    return f"{100 * value:.2f} {unit}" if unit == "%" else f"{value:.2f} {unit}"


def csv_text(results: Results) -> str:
    """One line for each arm, column and seed: an export of the records, in the column's unit, percent and points as
    fractions. `state` is measured, failed (to train), missing, or none where a model has no such number."""
    text = io.StringIO()
    keys = list(results.experiment.table.rows)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*keys, "arm", "perturbation", "seed", "value", "unit", "examples", "state", "flags"])
    for block in results.blocks:
        for arm, values in block.arms.items():
            runs = sorted((run for run in block.runs if run.arm == arm), key=lambda run: run.cell.seed)
            for name, value in values.items():
                unit = _plain_unit(results, name)
                flags = " ".join(dict.fromkeys(str(flag.check) for flag in value.flags))
                for run in runs:
                    found, state = value.by_seed.get(run.cell.seed), _state(results, run, name, value)
                    shown = "" if found is None else repr(found)
                    of = [run.cell.seed, shown, unit, value.n_examples, state, flags if shown else ""]
                    writer.writerow([*block.where.values(), arm, name, *of])
    return text.getvalue()


def _state(results: Results, run: Run, column: str, value: Value) -> str:
    if run.cell.seed in value.by_seed:
        return "measured"
    if run.failed:
        return "failed"
    return (
        "none" if any(run.is_not_applicable(part) for part in results.experiment.source_columns(column)) else "missing"
    )


def to_json(results: Results) -> dict[str, Any]:
    """The table as plain data, in the columns' units, percent and points as fractions."""
    return {
        "experiment": results.experiment.name,
        "scale": results.experiment.scale,
        "claim": results.experiment.claim,
        "evaluations": {plan.name: to_plain(plan.evaluation) for plan in results.experiment.plans if plan.name},
        "derived": {
            name: {"difference" if derived.difference else "mean": list(derived.source_columns)}
            for name, derived in results.experiment.derived.items()
        },
        "cells": results.cells,
        "failed": results.failed,
        "missing": results.missing,
        "rows": [row for block in results.blocks for row in _json_rows(results, block)],
        "differences": [row for block in results.blocks for row in _json_differences(results, block)],
        "comparisons": [_json_comparison(results, c) for c in results.comparisons],
    }


def _plain_unit(results: Results, column: str) -> str:
    """The unit of a column's plain numbers."""
    unit = results.experiment.unit(column)
    return "fraction" if unit in ("%", "points") else unit


def _json_rows(results: Results, block: Block) -> Sequence[dict[str, Any]]:
    return [
        {
            "where": block.where,
            "arm": arm,
            "selected": block.selected,
            "perturbation": name,
            "unit": _plain_unit(results, name),
            **_json_estimate(value.estimate),
            "examples": value.n_examples,
            "failed": value.failed,
            "missing": value.missing,
            "flags": [flag.model_dump() for flag in value.flags],
        }
        for arm, values in block.arms.items()
        for name, value in values.items()
    ]


def _json_differences(results: Results, block: Block) -> Sequence[dict[str, Any]]:
    """treatment - reference: paired by seed, and unpaired (SEMs in quadrature, as the authors do)."""
    table = results.experiment.table
    return [
        {
            "where": block.where,
            "treatment": table.treatment,
            "reference": table.reference,
            "perturbation": name,
            "unit": _plain_unit(results, name),
            "paired": _json_estimate(difference.paired),
            "unpaired": _json_estimate(difference.unpaired),
        }
        for name, difference in block.differences.items()
    ]


def _json_comparison(results: Results, comparison: Comparison) -> dict[str, Any]:
    return {
        "where": comparison.where,
        "perturbation": comparison.perturbation,
        "unit": _plain_unit(results, comparison.perturbation) if comparison.paper.how == "difference" else None,
        "arm": comparison.arm,
        **_json_estimate(comparison.ours),
        "paper": comparison.paper.value,
        "paper_sem": comparison.paper.sem,
        "difference": comparison.gap,
        "quantity": quantity(results, comparison),
        "verdict": comparison.verdict,
        "verdict_at_full_scale": comparison.unscaled,
        "flags": list(comparison.flags),
        "interval_over_examples": comparison.over_examples,
        "source": comparison.paper.source,
    }


def _json_estimate(value: Estimate | None) -> dict[str, Any]:
    return {"mean": value.mean if value else None, "sem": value.sem if value else None, "n": value.n if value else 0}

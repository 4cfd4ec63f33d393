"""Two models under the same perturbations: paired differences over the same examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bn_vuln.analysis.statistics import Estimate, estimate
from bn_vuln.config import describe_fields, present_perturbation
from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.records import Entry, Flag, Record, entry, find
from bn_vuln.records.comparability import unequal_clean_accuracy
from bn_vuln.reporting.tables import WIDTH, TextTable, format_estimate, text_table, wrap
from bn_vuln.typing import Plain


@dataclass(frozen=True)
class Comparison:
    """One perturbation measured on two models.

    Attributes:
        first: record of the first model.
        second: record of the second model.
        difference: accuracy of the second - that of the first over the same examples, with the standard error over
            examples (not over seeds: two runs are one pair of seeds).
    """

    first: Record
    second: Record
    difference: Estimate


def pair(first: str | Path, second: str | Path, root: Path) -> tuple[Entry, Entry, list[Comparison]]:
    """Compare two models under every perturbation that both have a record of, in the order of tables.

    Args:
        first: as `records.find` takes it.
        second: likewise.
        root: results folder of ids and external models.

    Returns:
        Both models, and paired differences, second - first.

    Raises:
        UsageError: where one is not found, or has no records.
        BnvulnError: where they share no perturbation, or were measured on different examples.
    """
    one, other = (_measured(target, root) for target in (first, second))
    if (one.id, one.folder.resolve()) == (other.id, other.folder.resolve()):
        raise UsageError(f"{first} and {second} are one model ({one.folder}): name two")
    measured = {record.perturbation_id: record for record in other.records}
    common = [record for record in one.records if record.perturbation_id in measured]
    if not common:
        raise BnvulnError(f"{first} and {second} share no perturbation{_other_data(one, other)}")
    return one, other, [_compare(one, other, record, measured[record.perturbation_id]) for record in common]


def _measured(target: str | Path, root: Path) -> Entry:
    found = entry(*find(target, root))
    if not found.records:
        damaged = f" ({found.problems[0]})" if found.problems else ""
        raise UsageError(
            f"{target}: no records here{damaged}; measure it first: bnvuln evaluate {target} --suite quick"
        )
    return found


def _other_data(one: Entry, other: Entry) -> str:
    """What to do where two models share no perturbation."""
    sets = [sorted({str(record.perturbation["dataset"]) for record in entry.records}) for entry in (one, other)]
    if set(sets[0]) & set(sets[1]):
        return "; run the same `bnvuln evaluate` on both"
    return "; they were measured on different data: run the same `bnvuln evaluate` on both, with one --data"


def _compare(one: Entry, other: Entry, first: Record, second: Record) -> Comparison:
    if first.n != second.n:
        raise BnvulnError(
            f"{one.folder} and {other.folder} were measured on different examples under {first.kind} "
            f"({first.n} and {second.n}): nothing can be paired; measure both with the same --limit"
        )
    correct = [model.store.correct(model.id, first.perturbation_id) for model in (one, other)]
    if correct[0] is None or correct[1] is None:
        missing = one if correct[0] is None else other
        raise BnvulnError(
            f"{missing.folder}: the outcomes of each example are missing under {first.kind} (outcomes/"
            f"{first.perturbation_id}.npz); measure it again with --force"
        )
    return Comparison(first, second, estimate((correct[1].astype(np.float64) - correct[0]).tolist()))


def flags(pairs: Sequence[Comparison]) -> list[Flag]:
    """Return check 15 wherever the clean accuracies of both models differ by more than 2 points."""
    clean = [pair for pair in pairs if pair.first.kind == "clean"]
    found = [unequal_clean_accuracy(p.second.accuracy, p.first.accuracy, ("second", "first")) for p in clean]
    return [flag for flag in found if flag is not None]


def text(one: Entry, other: Entry, pairs: Sequence[Comparison]) -> str:
    """Return a comparison for the terminal: a table, the models, and what is to be known of them."""
    lines = [text_table(table(pairs))]
    for label, model in (("first", one), ("second", other)):
        lines += wrap(f"{label:7} {model.name} ({model.folder})", WIDTH, indent=" " * 8)
    lines += ["± is one standard error over examples; the spread over seeds is unknown (n = 1)"]
    return "\n".join([*lines, *(line for flag in flags(pairs) for line in wrap(flag.text, WIDTH, indent="    "))])


def table(pairs: Sequence[Comparison]) -> TextTable:
    """Return one row for each perturbation, with the flags of the records in the notes."""
    notes = list(dict.fromkeys(flag.text for p in pairs for r in (p.first, p.second) for flag in r.flags))
    rows = [
        [describe_fields(p.first.perturbation), str(p.first.n), f"{100 * p.first.accuracy:.2f}",
         f"{100 * p.second.accuracy:.2f}", format_estimate(p.difference, signed=True), _note_numbers(p, notes)]
        for p in pairs
    ]  # fmt: skip
    header = ["under", "examples", "first, %", "second, %", "second \N{MINUS SIGN} first, points", "flags"]
    return TextTable("", header, rows, notes=tuple(f"[{i}] {note}" for i, note in enumerate(notes, 1)))


def _note_numbers(pair: Comparison, notes: Sequence[str]) -> str:
    """The numbers of the notes on each run: `first [1], second [1] [2]`."""
    found = []
    for name, record in (("first", pair.first), ("second", pair.second)):
        numbers = dict.fromkeys(f"[{1 + notes.index(flag.text)}]" for flag in record.flags)
        found += [f"{name} {' '.join(numbers)}"] if numbers else []
    return ", ".join(found) or "none"


def to_json(one: Entry, other: Entry, pairs: Sequence[Comparison]) -> Plain:
    """Return a comparison as plain data, fractions throughout."""
    return {
        "first": str(one.folder),
        "second": str(other.folder),
        "names": [one.name, other.name],
        "pairs": [
            {
                "perturbation": present_perturbation(p.first.perturbation),
                "perturbation_id": p.first.perturbation_id,
                "n": p.first.n,
                "first": p.first.accuracy,
                "second": p.second.accuracy,
                "difference": p.difference.mean,
                "standard_error_over_examples": p.difference.sem,
                "flags": [flag.model_dump() for flag in (*p.first.flags, *p.second.flags)],
            }
            for p in pairs
        ],
        "flags": [flag.model_dump() for flag in flags(pairs)],
    }

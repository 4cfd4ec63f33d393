"""Results as rows of text: one set of rows feeds Markdown, LaTeX, HTML and the terminal. Percent only here."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bn_vuln.analysis.statistics import Estimate
from bn_vuln.config import (
    ColumnUnit,
    ContextClaim,
    Experiment,
    RatioClaim,
    SignClaim,
    SlopeClaim,
    Table,
    describe_fields,
)
from bn_vuln.experiments import catalog
from bn_vuln.records import Flag, MeasurementRecord, Record
from bn_vuln.reporting import footnotes
from bn_vuln.reporting.aggregate import Results
from bn_vuln.reporting.claims import Comparison
from bn_vuln.reporting.results import Block, Difference, Value
from bn_vuln.runtime.escapes import markdown
from bn_vuln.typing import Where

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
    "mend.relative_c": "added c / median variance",
}
MISSING = "-"
MEASUREMENT_NAMES = {
    "tilt": "angle of the boundary to the nearest-centroid classifier",
    "spectrum": "boundary's energy in directions of low variance",
    "fooling": "steps from noise to an image the network is confident of",
    "batch_statistics": "shift of batches' statistics from those that batch norm has tracked",
}
NORMS = {"inf": "Linf", "2": "L2"}
# A cell that begins with a letter, also after a number as in `1: mlp`, makes its column one of words.
WORD = re.compile(r"(\d+: )?[^\W\d_]")


@dataclass(frozen=True)
class TextTable:
    """A title, the header, rows of text, the numbers of the rows that are differences, and footnotes.

    The first `keys` columns say what a row is about.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    differences: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()
    keys: int = 1

    @property
    def text_columns(self) -> frozenset[int]:
        """Return the columns of words, which are aligned to the left."""
        return frozenset(
            i
            for i, column in enumerate(zip(*self.rows, strict=True))
            if any(WORD.match(text) and not text.startswith("about ") for text in column)
        )


class UnitFormat(NamedTuple):
    """The factor that a plain number is multiplied by to be shown, and the digits behind the point."""

    factor: float
    digits: int


UNIT_FORMATS: dict[ColumnUnit, UnitFormat] = {
    "%": UnitFormat(100.0, 2),
    "points": UnitFormat(100.0, 2),
    "deg": UnitFormat(1.0, 2),
    "nats": UnitFormat(1.0, 4),
    "steps": UnitFormat(1.0, 1),
    "pixels": UnitFormat(1.0, 3),
    "standardized": UnitFormat(1.0, 3),
    "std": UnitFormat(1.0, 3),
    "log ratio": UnitFormat(1.0, 3),
}


def format_estimate(value: Estimate | None, unit: ColumnUnit = "%", *, signed: bool = False) -> str:
    """Return mean and SEM as a column of that unit shows them, `97.71 ± 0.05`; no "±" for n = 1.

    Fractions are shown in percent (in points where `signed`).
    """
    if value is None:
        return MISSING
    factor, digits = UNIT_FORMATS[unit]
    rounded = round(factor * value.mean, digits) + 0.0  # no "-0.00"
    mean = f"{rounded:{'+' if signed else ''}.{digits}f}"
    text = mean.replace("-", "\N{MINUS SIGN}")
    return text if value.sem is None else f"{text} ± {factor * value.sem:.{digits}f}"


def format_key_value(key: str, value: object) -> str:
    """Return a value of a row key as it is shown."""
    if value is None:
        return "native" if key == "data.width" else MISSING
    return f"{value:g}" if isinstance(value, float) else str(value)


def describe_keys(where: Where, *, named: bool = False) -> list[str]:
    """Return values of row keys, as `width 28` and `mlp` (`named`: `model mlp`), without those that are missing."""
    shown = {key: format_key_value(key, value) for key, value in where.items()}
    return [
        text if isinstance(where[key], str) and not named else f"{KEY_NAMES.get(key, key)} {text}"
        for key, text in shown.items()
        if text != MISSING
    ]


def block_title(block: Block) -> str:
    """Return the values of a block's row keys: `width 28, weight decay 0.01`."""
    return ", ".join(describe_keys(block.where, named=True))


def result_tables(results: Results) -> list[TextTable]:
    """Return all tables of an experiment."""
    comparison = comparison_table(results)
    return [accuracy_table(results), *([comparison] if comparison else [])]


def accuracy_table(results: Results) -> TextTable:
    """Return one row for each arm of each block, and the paired difference under them."""
    table = results.experiment.table
    columns = {name: results.experiment.columns[name] for name in table.columns}
    units = {name: column.unit for name, column in columns.items()}
    header = [KEY_NAMES.get(key, key) for key in table.rows]
    header += ["arm" if table.arms else KEY_NAMES.get(table.arm, table.arm), "n"]
    header += [f"{title}, {units[name]}" for name, title in table.columns.items()]
    rows: list[list[str]] = []
    differences = set()
    flagged = flags_by_check(results)
    note_numbers = {check: i for i, check in enumerate(flagged, 1)}
    for block in results.blocks:
        where = [format_key_value(key, value) for key, value in block.where.items()]
        for arm, values in block.arms.items():
            chosen = " (chosen)" if block.selected else ""
            seeds = max((len(value.by_seed) for value in values.values()), default=0)
            cells = [_format_value(values[name], units[name], note_numbers) for name in table.columns]
            rows.append([*where, arm + chosen, str(seeds), *cells])
        if block.differences:
            differences.add(len(rows))
            paired = {name: block.differences[name].paired for name in table.columns}
            n = str(max((p.n for p in paired.values() if p), default=0))
            label = difference_label(table)
            cells = [
                _with_notes(format_estimate(p, units[name], signed=True), block.differences[name].flags, note_numbers)
                for name, p in paired.items()
            ]
            rows.append([*where, label, n, *cells])
    scale = results.experiment.scale
    preview = "" if scale == "full" else f" (scale {scale}: a preview)"
    are_accuracies = all(part.is_accuracy for column in columns.values() for part in column.parts)
    quantities = "Accuracy" if are_accuracies else "Measured"
    notes = [*flag_notes(flagged), *footnotes.notes(results, table.columns)]
    title = f"{quantities}, mean ± SEM over n seeds{preview}"
    return TextTable(title, header, rows, frozenset(differences), tuple(notes), keys=len(table.rows) + 1)


def _format_value(value: Value, unit: ColumnUnit, note_numbers: Mapping[int, int]) -> str:
    """A cell: mean and SEM, seeds without a number, numbers of the notes on flags."""
    text = format_estimate(value.estimate, unit)
    absent = [f"{value.failed} failed to train"] if value.failed else []
    absent += [f"{value.missing} not run"] if value.missing else []
    return _with_notes(f"{text} ({', '.join(absent)})" if absent else text, value.flags, note_numbers)


def _with_notes(text: str, flags: Sequence[Flag], note_numbers: Mapping[int, int]) -> str:
    raised = sorted({note_numbers[flag.check] for flag in flags})
    return f"{text} [{', '.join(map(str, raised))}]" if raised else text


def flags_by_check(results: Results) -> dict[int, list[tuple[str, Flag]]]:
    """Return the flags of all numbers, each with row, arm and column of its number, by check in ascending order."""
    flagged: dict[int, list[tuple[str, Flag]]] = {}
    label = difference_label(results.experiment.table)
    for block in results.blocks:
        compared: dict[str, Mapping[str, Value | Difference]] = {**block.arms, label: block.differences}
        for arm, values in compared.items():
            for column, value in values.items():
                parts = [block_title(block), arm, results.experiment.table.columns[column]]
                for flag in value.flags:
                    flagged.setdefault(flag.check, []).append((", ".join(filter(None, parts)), flag))
    return dict(sorted(flagged.items()))


def flag_notes(flagged: Mapping[int, list[tuple[str, Flag]]]) -> list[str]:
    """Return one note for each check, with the flag of the largest value."""
    notes = []
    for i, (check, raised) in enumerate(flagged.items(), 1):
        cell, worst = max(raised, key=lambda one: abs(one[1].value))
        several = f" ({len(raised)} numbers, largest: {cell})" if len(raised) > 1 else ""
        notes.append(f"[{i}] check {check}{several}: {worst.message}")
    return notes


# ---------------------------------------------------------------- claims


def claimed_by(experiment: Experiment) -> str:
    """Return the head of the claimed numbers: `paper` for an experiment of the paper, else `claimed`."""
    return "paper" if experiment.name in catalog.names("paper") else "claimed"


def difference_label(table: Table) -> str:
    """Return the name of the difference of the arms: `batch - none`, with a minus sign."""
    return f"{table.treatment} \N{MINUS SIGN} {table.reference}"


@dataclass(frozen=True)
class ClaimText:
    """A claim beside our number, as text."""

    where: Where
    quantity: str
    under: str
    ours: str
    published: str
    gap: str
    verdict: str
    flags: tuple[str, ...]
    remark: str


def comparison_table(results: Results) -> TextTable | None:
    """Return what is measured beside what is claimed, one row for each claim, row and column; None without claims."""
    if not results.comparisons:
        return None
    claims = claim_texts(results)
    keys = list(dict.fromkeys(key for claim in claims for key in claim.where))
    header = [*(KEY_NAMES.get(key, key) for key in keys), "quantity", "under"]
    claimed = claimed_by(results.experiment)
    header += ["measured ± SEM (n)", claimed, f"measured \N{MINUS SIGN} {claimed}", "verdict", "flags"]
    flags = list(dict.fromkeys(flag for claim in claims for flag in claim.flags))
    rows = [
        [
            *(format_key_value(key, claim.where[key]) if key in claim.where else MISSING for key in keys),
            claim.quantity, claim.under, claim.ours, claim.published, claim.gap, claim.verdict,
            " ".join(f"[{i}]" for i, flag in enumerate(flags, 1) if flag in claim.flags) or "none",
        ]
        for claim in claims
    ]  # fmt: skip
    notes = [f"[{i}] {flag}" for i, flag in enumerate(flags, 1)]
    notes += dict.fromkeys(claim.remark for claim in claims if claim.remark)
    if any(c.over_examples for c in results.comparisons):
        notes.append("examples [...]: with one seed, the 95% bootstrap interval over the examples of its runs alone")
    notes += footnotes.notes(results, dict.fromkeys(c.perturbation for c in results.comparisons))
    title = f"Comparison with the claims (accuracies in %, differences in points{sign_convention(results)})"
    return TextTable(title, header, rows, notes=tuple(notes), keys=len(keys) + 2)


def sign_convention(results: Results) -> str:
    """Return the meaning of a negative number, where it is the same everywhere."""
    experiment, table = results.experiment, results.experiment.table
    is_cost = all(
        (c.arm is None and experiment.columns[c.perturbation].is_accuracy) or not c.claim.is_contrast
        for c in results.comparisons
    )
    arms = (table.treatment, table.reference)
    return "; negative: batch norm harms" if is_cost and arms == ("batch", "none") else ""


def claim_texts(results: Results) -> list[ClaimText]:
    """Return every comparison of an experiment as text."""
    texts = []
    for comparison in results.comparisons:
        claim, column = comparison.claim, comparison.perturbation
        if isinstance(claim, SignClaim):
            published = "above 0" if claim.sign == 1 else "below 0"
        else:
            published = _format_as_claimed(results, comparison, Estimate(claim.value, claim.sem, 0))
        if isinstance(claim, ContextClaim) and claim.approximate:
            published = f"about {published}"
        gap = MISSING
        if comparison.gap is not None:
            gap = _format_as_claimed(results, comparison, Estimate(comparison.gap, None, 1), signed=True)
        texts.append(
            ClaimText(
                comparison.where,
                quantity(results, comparison),
                results.experiment.table.columns.get(column, column),
                _format_ours(results, comparison),
                published,
                gap,
                comparison.verdict,
                comparison.flags,
                "" if comparison.verdict_at_full_scale == "holds" else results.experiment.remark(claim),
            )
        )
    return texts


def quantity(results: Results, comparison: Comparison) -> str:
    """Return the quantity of a claim: its own text, a difference between the arms, or one arm's number."""
    claim = comparison.claim
    if claim.text:
        return claim.text
    if not claim.arms:
        return difference_label(results.experiment.table)
    first, *others = claim.arms
    if isinstance(claim, SlopeClaim):
        power = f"^{claim.power}" if claim.power > 1 else ""
        return f"slope of log({first.arm}) against log({KEY_NAMES.get(claim.along, claim.along)}{power})"
    if not others:
        is_accuracy = results.experiment.columns[comparison.perturbation].is_accuracy
        return f"accuracy of {first.arm}" if is_accuracy else first.arm
    sign = "/" if isinstance(claim, RatioClaim) else "\N{MINUS SIGN}"
    where = [f"{KEY_NAMES.get(k, k)} {format_key_value(k, v)}" for k, v in others[0].where.items()]
    return f"{first.arm} {sign} {', '.join([others[0].arm, *where])}"


def _format_ours(results: Results, comparison: Comparison) -> str:
    """Our number with its n; of one seed with the interval over its examples.

    A slope or ratio has no sign verdict, so its 95% t-interval is shown.
    """
    ours = comparison.ours
    if ours is None:
        return MISSING
    text = _format_as_claimed(results, comparison, ours)
    interval = comparison.over_examples or (None if comparison.claim.in_unit else ours.interval())
    if interval is None:
        return f"{text} ({ours.n})"
    low, high = (_format_as_claimed(results, comparison, Estimate(bound, None, 1)) for bound in interval)
    if comparison.over_examples:
        return f"{text} ({ours.n}; examples [{low}, {high}])"
    return f"{text} ({ours.n}) [{low}, {high}]"


def _format_as_claimed(results: Results, comparison: Comparison, value: Estimate, *, signed: bool | None = None) -> str:
    """A number in the unit of the claim; slopes and ratios have none. Contrasts have a sign by default."""
    if not comparison.claim.in_unit:
        mean = f"{value.mean:{'+' if signed else ''}.3f}".replace("-", "\N{MINUS SIGN}")
        return mean if value.sem is None else f"{mean} ± {value.sem:.3f}"
    unit = results.experiment.columns[comparison.perturbation].unit
    return format_estimate(value, unit, signed=comparison.claim.is_contrast if signed is None else signed)


# ---------------------------------------------------------------- Markdown


def markdown_table(table: TextTable) -> str:
    """Return a Markdown table with aligned columns, readable as plain text too."""
    rows = [[markdown(text, in_cell=True) for text in row] for row in (table.header, *table.rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.header))]
    lines = ["| " + " | ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join([*lines, *(f"\n{markdown(note)}" for note in table.notes)])


# ---------------------------------------------------------------- the terminal

WIDTH = 80


def text_table(table: TextTable, width: int = WIDTH) -> str:
    """Return a table as plain text of at most `width` columns, with its notes under it.

    Cells of words are wrapped. Columns that do not fit beside each other follow below, again beside the keys.
    """
    columns = [[title, *(row[i] for row in table.rows)] for i, title in enumerate(table.header)]
    narrowest = [_narrowest(column, words=i in table.text_columns) for i, column in enumerate(columns)]
    keys = list(range(table.keys))
    blocks = [keys]
    for i in range(table.keys, len(columns)):
        if len(blocks[-1]) > len(keys) and sum(narrowest[j] + 2 for j in [*blocks[-1], i]) - 2 > width:
            blocks.append(keys)
        blocks[-1] = [*blocks[-1], i]
    lines = ["\n".join(_block_lines(columns, block, narrowest, table.text_columns, width)) for block in blocks]
    notes = ["\n".join(wrap(note, width, indent="    ")) for note in table.notes]
    return "\n\n".join([*lines, *(["\n".join(notes)] if notes else [])])


def wrap(text: str, width: int, indent: str = "") -> list[str]:
    """Wrap a line at its spaces, and words that are too long anywhere; `indent` begins every line but the first."""
    lines, line = [], ""
    text = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)
    for word in text.split(" "):
        joined = f"{line} {word}" if line else word
        if display_width(joined) <= width:
            line = joined
            continue
        lines += [line] if line.strip() else []
        line = indent * bool(lines) + word
        while display_width(line) > width:
            end = next(i for i in range(len(line), 0, -1) if display_width(line[:i]) <= width or i == 1)
            lines.append(line[:end])
            line = indent + line[end:] if len(indent) < width // 2 else line[end:]
    return [*lines, line]


def display_width(text: str) -> int:
    """Return the columns that a text takes on a terminal: two for wide characters, none for combining ones."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text
    )


def _narrowest(column: list[str], *, words: bool) -> int:
    """The width below which a column is not wrapped: its longest word, or its longest number."""
    if words:
        return max((min(display_width(word), 20) for text in column for word in text.split()), default=1)
    return max(display_width(text) for text in [*column[0].split(), *column[1:], MISSING])


def _block_lines(
    columns: list[list[str]], block: list[int], narrowest: list[int], text_columns: frozenset[int], width: int
) -> list[str]:
    """The lines of some columns: the widest ones are narrowed until all fit."""
    natural = {i: max(display_width(text) for text in columns[i]) for i in block}
    room = width - 2 * (len(block) - 1)
    limit = max(natural.values())
    while limit > 1 and sum(max(narrowest[i], min(natural[i], limit)) for i in block) > room:
        limit -= 1
    widths = {i: min(max(narrowest[i], min(natural[i], limit)), room) for i in block}
    lines: list[str] = []
    for row in range(len(columns[0])):
        cells = {i: wrap(columns[i][row], widths[i]) for i in block}
        for place in range(max(len(cell) for cell in cells.values())):
            texts = [cell[place] if place < len(cell) else "" for cell in cells.values()]
            padded = [
                text + gap if i in text_columns or not i else gap + text
                for i, text in zip(block, texts, strict=True)
                for gap in [" " * (widths[i] - display_width(text))]
            ]
            lines.append("  ".join(padded).rstrip())
        if not row:
            lines.append("  ".join("-" * widths[i] for i in block))
    return lines


def records_table(
    records: Mapping[str, Record], *, named: bool = True, datasets: Mapping[str, str] | None = None
) -> TextTable:
    """Return records of one classifier as a table, with the flags in its notes.

    Args:
        records: by name.
        named: has the name of each in the first column, beside the perturbation.
        datasets: what data sets are called, by the names that identify them; they are told where there are several.
    """
    measured_on = [str(record.perturbation.get("dataset")) for record in records.values()]
    has_data = len({*measured_on}) > 1
    flags = list(dict.fromkeys(flag.text for record in records.values() for flag in record.flags))
    numbers = {flag: f"[{i}]" for i, flag in enumerate(flags, 1)}
    has_distances = any(r.mean_distance is not None or r.kind == "minimal" for r in records.values())
    header = [*(["name"] if named else []), "under", *(["data"] if has_data else []), "examples", "accuracy, %"]
    header += [*(["distance"] if has_distances else []), "flags"]
    rows = []
    for name, record in records.items():
        distance = MISSING
        if record.mean_distance is not None:
            norm, unit = NORMS[record.perturbation["ord"]], record.perturbation["unit"]
            distance = f"{norm} mean {record.mean_distance:.3f}, median {record.median_distance:.3f} {unit}"
        row = [name] if named else []
        row += [describe_fields(record.perturbation)]
        data = str(record.perturbation.get("dataset"))
        row += [(datasets or {}).get(data, data)] if has_data else []
        row += [str(record.n), f"{100 * record.accuracy:.2f}"]
        row += [distance] if has_distances else []
        rows.append([*row, " ".join(numbers[flag.text] for flag in record.flags) or "none"])
    return TextTable("", header, rows, notes=tuple(f"{numbers[flag]} {flag}" for flag in flags))


def records_text(records: Mapping[str, Record], measurements: Mapping[str, MeasurementRecord]) -> str:
    """Return records and measurements of one classifier as tables for a terminal."""
    tables = [records_table(records), *([measurements_table(measurements)] if measurements else [])]
    return "\n\n".join(map(text_table, tables))


def measurements_table(measurements: Mapping[str, MeasurementRecord] | Sequence[MeasurementRecord]) -> TextTable:
    """Return measurements of one classifier as a table; those without names by their kinds."""
    rows = []
    if not isinstance(measurements, Mapping):
        names = [str(record.measurement["kind"]) for record in measurements]
        items = list(zip(names, measurements, strict=True))
    else:
        items = list(measurements.items())
    for name, record in items:
        value = "not applicable"
        if record.value is not None:
            value = f"{100 * record.value if record.unit == '%' else record.value:.2f} {record.unit}"
        details = ", ".join(f"{key} {detail:.4g}" for key, detail in record.details.items())
        rows.append([name, MEASUREMENT_NAMES.get(record.measurement["kind"], ""), str(record.n), value, details])
    return TextTable("", ["name", "what", "examples", "value", "further"], rows)

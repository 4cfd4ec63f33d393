"""Transfer between several models as tables: rows are source models, columns are target models."""

from __future__ import annotations

from bn_vuln.analysis.statistics import Proportion
from bn_vuln.config import describe_perturbation, to_plain
from bn_vuln.evaluation.transfer import TransferResult
from bn_vuln.records import Record
from bn_vuln.reporting.exports import record_fields
from bn_vuln.reporting.tables import MISSING, TextTable, markdown_table, text_table, wrap
from bn_vuln.runtime.escapes import markdown as markdown_text
from bn_vuln.typing import Plain

SOURCE = "source: "  # begins names and messages of flags that are of the source


def describe(transfers: TransferResult) -> str:
    """Describe the attack and the examples."""
    n = next(iter(transfers.clean.values())).n
    return f"n = {n:,} examples of {transfers.data}; {describe_perturbation(transfers.attack)}"


def shares(transfers: TransferResult, target: str, record: Record) -> dict[str, Proportion]:
    """Return the shares of examples of a pair: clean accuracy, accuracy of target and source, transfer rate."""
    return {
        "clean": Proportion(transfers.clean[target].correct, record.n),
        "accuracy": Proportion(record.correct, record.n),
        "source_accuracy": Proportion(record.source_correct or 0, record.n),
        "transfer": Proportion(record.transferred or 0, record.eligible or 0),
    }


def matrices(transfers: TransferResult) -> list[TextTable]:
    """Return the transfer rates and the accuracies, one row a source and one column a target, with their counts.

    Names are in the rows, numbered, and the numbers in the columns, which would otherwise be as wide as the names.
    """
    number = {target: str(i) for i, target in enumerate(transfers.targets, 1)}
    tables = []
    for name, title in (("transfer", "Transfer rate, %"), ("accuracy", "Accuracy of the target, %")):
        rows = []
        for source in transfers.sources:
            values = [shares(transfers, target, transfers.pairs[source, target])[name] for target in transfers.targets]
            texts = [MISSING if v.rate is None else f"{100 * v.rate:.1f} ({v.count}/{v.n})" for v in values]
            rows.append([f"{number[source]}: {transfers.names[source]}", *texts])
        tables.append(TextTable(title, ["source \\ target", *number.values()], rows))
    return tables


def pairs_table(transfers: TransferResult) -> TextTable:
    """Return one row a pair, with 95% Wilson intervals over the examples."""
    header = ["source", "target", "n", "target clean, %", "target on the source's examples, %",
              "source on them, %", "transfer rate, %"]  # fmt: skip
    rows = [
        [transfers.names[source], transfers.names[target], str(record.n),
         *(format_with_interval(value) for value in shares(transfers, target, record).values())]
        for (source, target), record in transfers.pairs.items()
    ]  # fmt: skip
    return TextTable("Every pair, with 95% Wilson intervals over examples", header, rows, keys=2)


def format_with_interval(value: Proportion) -> str:
    """Return percent, interval and counts: `50.0 [23.7, 76.3] (5/10)`."""
    interval = value.interval()
    if value.rate is None or interval is None:
        return MISSING
    low, high = (f"{100 * bound:.1f}" for bound in interval)
    return f"{100 * value.rate:.1f} [{low}, {high}] ({value.count}/{value.n})"


def text(transfers: TransferResult, *, matrix: bool) -> str:
    """Return the matrices, or one source's row of numbers, with what is wrong with them below."""
    tables = matrices(transfers) if matrix else [pairs_table(transfers)]
    parts = ["\n".join(wrap(describe(transfers), 80)), *(f"{one.title}\n{text_table(one)}" for one in tables)]
    flags = [line for flag in flag_lines(transfers) for line in wrap(flag, 80, indent="    ")]
    return "\n\n".join([*parts, "\n".join(flags)])


def flag_lines(transfers: TransferResult) -> list[str]:
    """Return the flags of models and pairs, one a line, each once."""
    names, lines = transfers.names, []
    for (source, target), record in transfers.pairs.items():
        pair = f"{names[source]} -> {names[target]}"
        for flag in (*transfers.clean[target].flags, *record.flags):
            of_source = flag.name.startswith(SOURCE)
            name = names[source] if of_source else pair if flag.check == 6 else names[target]
            lines.append(f"{name}: {flag.text.replace(SOURCE, '', of_source)}")
    lines += [
        f"{names[source]} -> {names[target]}: {flag.text}" for (source, target), flag in transfers.unequal().items()
    ]
    return list(dict.fromkeys(lines))


def markdown(transfers: TransferResult) -> str:
    """Return all tables and flags as a page."""
    parts = ["# Transfer of adversarial examples between models", f"{markdown_text(describe(transfers))}."]
    parts += [
        f"## {table.title}\n\n{markdown_table(table)}" for table in (*matrices(transfers), pairs_table(transfers))
    ]
    parts += ["\n".join(f"- {markdown_text(line)}" for line in flag_lines(transfers)) or "No flags."]
    return "\n\n".join(parts) + "\n"


def to_json(transfers: TransferResult) -> Plain:
    """Return all pairs as plain data: fractions with their counts and 95% Wilson intervals, and the records."""
    pairs = []
    for (source, target), record in transfers.pairs.items():
        numbers = {}
        for name, value in shares(transfers, target, record).items():
            low, high = value.interval() or (None, None)
            numbers[name] = {"rate": value.rate, "count": value.count, "n": value.n, "low": low, "high": high}
        pairs.append({"source": source, "target": target, "n": record.n, **numbers, "record": record_fields(record)})
    return {
        "attack": to_plain(transfers.attack),
        "models": [{"id": own, "name": name} for own, name in transfers.names.items()],
        "pairs": pairs,
        "flags": [
            {"source": source, "target": target, **flag.model_dump()}
            for (source, target), flag in transfers.unequal().items()
        ],
    }

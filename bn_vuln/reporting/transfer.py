"""Black-box transfer as tables, heat maps and a page: rows are source models, columns are target models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bn_vuln.analysis.statistics import Proportion
from bn_vuln.config import Cell, describe_cell, describe_fields, digest, is_cell, present_perturbation, validate
from bn_vuln.evaluation.transfer import TransferPair, TransferResult
from bn_vuln.records import Flag
from bn_vuln.reporting.figures.style import FigureFile, render, styled_pyplot
from bn_vuln.reporting.tables import MISSING, TextTable, markdown_table, text_table, wrap
from bn_vuln.runtime.files import atomic_write
from bn_vuln.typing import Floats, Plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CELL, LETTER, BAR = 0.75, 0.075, 1.3  # inches: a side of the heat map's cells, a letter of a label, the colour bar


@dataclass(frozen=True)
class Quantity:
    """A number of every pair: its name in files, its title, its description, and how to read it from a pair."""

    name: str
    title: str
    description: str
    value: Callable[[TransferPair], Proportion]


QUANTITIES = (
    Quantity(
        "rate",
        "transfer rate",
        "the share of examples that fool the target among those that both models classify correctly when clean and "
        "that fool the source, 100% for a model's own",
        lambda pair: pair.rate,
    ),
    Quantity(
        "accuracy",
        "accuracy of the target",
        "the target's accuracy on the source's adversarial examples; the diagonal is the white-box attack",
        lambda pair: pair.accuracy,
    ),
)


def file_stem(transfers: TransferResult) -> str:
    """Return the name of the files of a matrix: the same models under the same attack give the same name."""
    return f"transfer-{digest([transfers.sources, transfers.targets, transfers.perturbation])}"


def describe(transfers: TransferResult) -> str:
    """Describe the attack and the examples."""
    return f"n = {transfers.n:,} examples of {transfers.data}; {describe_fields(transfers.perturbation)}"


# ---------------------------------------------------------------- tables


def labels(transfers: TransferResult) -> tuple[list[str], list[str]]:
    """Return the labels of rows and columns of a matrix.

    Where each target is a source too, names are in the rows, numbered, and the numbers in the columns, which would
    otherwise be as wide as the names.
    """
    sources = [transfers.names[source] for source in transfers.sources]
    targets = [transfers.names[target] for target in transfers.targets]
    if not set(targets) <= set(sources):
        return sources, targets
    rows = [f"{number}: {name}" for number, name in enumerate(sources, 1)]
    return rows, [str(1 + sources.index(target)) for target in targets]


def matrix_table(transfers: TransferResult, quantity: Quantity) -> TextTable:
    """Return one row a source, one column a target: percent with the count behind it."""
    row_labels, column_labels = labels(transfers)
    rows = []
    for label, source in zip(row_labels, transfers.sources, strict=True):
        values = [quantity.value(transfers.pairs[source, target]) for target in transfers.targets]
        rows.append([label, *(MISSING if v.rate is None else f"{100 * v.rate:.1f} ({v.count}/{v.n})" for v in values)])
    return TextTable(f"{quantity.title}, %".capitalize(), ["source \\ target", *column_labels], rows)


def pairs_table(transfers: TransferResult) -> TextTable:
    """Return one row a pair, with 95% Wilson intervals over the examples."""
    header = ["source", "target", "n", "target clean, %", "target on the source's examples, %", "transfer rate, %",
              "attack success rate on the target, %"]  # fmt: skip
    rows = [
        [transfers.names[source], transfers.names[target], str(pair.record.n),
         *(format_with_interval(value) for value in (pair.clean, pair.accuracy, pair.rate, pair.success))]
        for (source, target), pair in transfers.pairs.items()
    ]  # fmt: skip
    return TextTable("Every pair, with 95% Wilson intervals over examples", header, rows, keys=2)


def format_with_interval(value: Proportion) -> str:
    """Return percent, interval and counts: `50.0 [23.7, 76.3] (5/10)`."""
    interval = value.interval()
    if value.rate is None or interval is None:
        return MISSING
    low, high = (f"{100 * bound:.1f}" for bound in interval)
    return f"{100 * value.rate:.1f} [{low}, {high}] ({value.count}/{value.n})"


def models_table(transfers: TransferResult) -> TextTable:
    """Return the models behind the short names."""
    identities = {source: pair.record.source for (source, _), pair in transfers.pairs.items()}
    identities |= {target: pair.record.target for (_, target), pair in transfers.pairs.items()}
    rows = []
    for key, name in transfers.names.items():
        identity = identities[key]
        if is_cell(identity):
            description = describe_cell(validate(Cell, dict(identity), "record"))
        else:
            description = "external model"
            if isinstance(identity.get("weights"), str):
                description += f", weights sha256 {identity['weights'][:12]}"
        rows.append([name, key, description])
    return TextTable("Models", ["name", "id", "what it is"], rows)


def text(transfers: TransferResult, *, matrix: bool) -> str:
    """Return the matrices, or one source's row of numbers, with what is wrong with them below."""
    tables = [matrix_table(transfers, q) for q in QUANTITIES] if matrix else [pairs_table(transfers)]
    parts = ["\n".join(wrap(describe(transfers), 80)), *(f"{one.title}\n{text_table(one)}" for one in tables)]
    flags = [line for flag in flag_lines(transfers) for line in wrap(flag, 80, indent="    ")]
    return "\n\n".join([*parts, "\n".join(flags)])


def flag_lines(transfers: TransferResult) -> list[str]:
    """Return the flags of models and pairs, one a line, each once."""
    names, pairs = transfers.names, transfers.pairs
    flagged = [(names[source], flag) for (source, _), pair in pairs.items() for flag in pair.record.flags]
    flagged += [(names[target], flag) for (_, target), pair in pairs.items() for flag in pair.record.target_flags]
    flagged += [(f"{names[source]} -> {names[target]}", flag) for (source, target), flag in _of_pairs(transfers)]
    return list(dict.fromkeys(f"{name}: {flag.text}" for name, flag in flagged))


def _of_pairs(transfers: TransferResult) -> list[tuple[tuple[str, str], Flag]]:
    """(ids of source and target, flag) of what is wrong with a pair rather than with one of its models."""
    return [*transfers.flags().items(), *transfers.unequal().items()]


# ---------------------------------------------------------------- figures


def draw(transfers: TransferResult, file_format: str = "svg") -> list[FigureFile]:
    """Draw a heat map of each quantity, as `svg` or `png`."""
    return [FigureFile(q.name, caption(transfers, q), draw_heat_map(transfers, q, file_format)) for q in QUANTITIES]


def caption(transfers: TransferResult, quantity: Quantity) -> str:
    """Describe a heat map, with n and the attack."""
    small = "; below it, of how many examples" if quantity.name == "rate" else ""
    return f"{quantity.title.capitalize()}, %: {quantity.description}{small}. {describe(transfers)}."


def rates(transfers: TransferResult, quantity: Quantity) -> Floats:
    """Return a quantity in percent, [sources, targets]; NaN where there is none."""
    pairs = transfers.pairs
    matrix = [[quantity.value(pairs[s, t]).rate for t in transfers.targets] for s in transfers.sources]
    return 100 * np.array(matrix, np.float64)


def draw_heat_map(transfers: TransferResult, quantity: Quantity, file_format: str) -> bytes:
    """Draw a quantity of all pairs as one heat map, with its numbers in the cells."""
    grid = rates(transfers, quantity)
    n_rows, n_columns = grid.shape
    row_labels, column_labels = labels(transfers)
    row_width, column_width = (LETTER * max(map(len, names)) for names in (row_labels, column_labels))
    with styled_pyplot() as plt:
        # Labels of the targets are slanted, so that names of any length stay apart; they take 1 / sqrt(2) of a length.
        height = max(CELL * n_rows, LETTER * len(quantity.title) + 0.5)  # room for the colour bar's label
        size = (CELL * n_columns + row_width + BAR + 0.4, height + 0.7 * column_width + 0.7)
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        image = axes.imshow(np.ma.masked_invalid(grid), aspect="auto", vmin=0, vmax=100, cmap="cividis")
        for (row, column), value in np.ndenumerate(grid):
            pair = transfers.pairs[transfers.sources[row], transfers.targets[column]]
            _write_number(axes, (column, row), value, quantity.value(pair).n if quantity.name == "rate" else None)
        slant = {} if max(map(len, column_labels)) < 3 else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(n_columns), column_labels, **slant)
        axes.set_yticks(range(n_rows), row_labels)
        axes.set_xlabel("target")
        axes.set_ylabel("source")
        figure.colorbar(image, ax=axes, label=f"{quantity.title}, %")
        return render(figure, file_format)


def _write_number(axes: Axes, cell: tuple[int, int], value: float, n: int | None) -> None:
    """A number in its cell, and below it, small, the number of examples."""
    text = f"{value:.1f}" if np.isfinite(value) else MISSING
    shade = "white" if value < 45 else "black"  # 4.5:1 at the least; black on NaN, whose cell is white
    axes.annotate(text, cell, (0, 4 if n is not None else 0), textcoords="offset points", ha="center",
                  va="center", color=shade)  # fmt: skip
    if n is not None:
        axes.annotate(f"of {n}", cell, (0, -8), textcoords="offset points", ha="center", va="center", color=shade,
                      fontsize=6.5)  # fmt: skip


# ---------------------------------------------------------------- page and data


def write(transfers: TransferResult, folder: Path) -> list[Path]:
    """Write the page (Markdown) with its heat maps (SVG and PNG) into a folder; return the files, the page last."""
    stem, captions, written = file_stem(transfers), {}, []
    for file_format in ("svg", "png"):
        for figure in draw(transfers, file_format):
            path = folder / f"{stem}-{figure.name}.{file_format}"
            atomic_write(path, figure.content)
            captions[path.with_suffix(".png").name] = figure.caption
            written.append(path)
    page = folder / f"{stem}.md"
    atomic_write(page, markdown(transfers, captions))
    return [*written, page]


def markdown(transfers: TransferResult, captions: Mapping[str, str]) -> str:
    """Return the page; `captions` are those of its figures, by file."""
    tables = [*(matrix_table(transfers, q) for q in QUANTITIES), pairs_table(transfers), models_table(transfers)]
    parts = ["# Transfer of adversarial examples between models", f"{describe(transfers)}."]
    parts += [f"## {table.title}\n\n{markdown_table(table)}" for table in tables]
    parts += [f"![{text.split(':')[0]}]({name})\n\n*{text}*" for name, text in captions.items()]
    parts += ["\n".join(f"- {line}" for line in flag_lines(transfers)) or "No flags."]
    return "\n\n".join(parts) + "\n"


def to_json(transfers: TransferResult) -> Plain:
    """Return all pairs as plain data, fractions throughout."""
    return {
        "perturbation": present_perturbation(transfers.perturbation),
        "n": transfers.n,
        "models": [{"id": key, "name": name} for key, name in transfers.names.items()],
        "pairs": [pair_fields(pair) for pair in transfers.pairs.values()],
        "flags": [
            {"source": source, "target": target, **flag.model_dump()} for (source, target), flag in _of_pairs(transfers)
        ],
    }


def pair_fields(pair: TransferPair) -> Plain:
    """Return a pair as plain data: ids, n, shares with their counts and 95% Wilson intervals, flags."""
    shares = {}
    for name, value in (
        ("clean", pair.clean),
        ("accuracy", pair.accuracy),
        ("transfer", pair.rate),
        ("fooled", pair.success),
    ):
        low, high = value.interval() or (None, None)
        shares[name] = {"rate": value.rate, "count": value.count, "n": value.n, "low": low, "high": high}
    record = pair.record
    return {
        "id": record.transfer_id,
        "source": record.source_id,
        "target": record.target_id,
        "n": record.n,
        **shares,
        "source_flags": [flag.model_dump() for flag in record.flags],
        "target_flags": [flag.model_dump() for flag in record.target_flags],
    }

"""Black-box transfer as tables, heat maps and a page: rows are the models that examples were made on, columns those
that they were given to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln.analysis.statistics import Proportion
from bn_vuln.config import Cell, describe_cell, describe_fields, digest, validate
from bn_vuln.evaluation.transfer import TransferPair, TransferResult
from bn_vuln.records import Flag
from bn_vuln.reporting.figures.style import STYLE, Drawn, pyplot, save
from bn_vuln.reporting.tables import MISSING, TextTable, markdown_table
from bn_vuln.runtime.files import atomic_write

CELL, LETTER, BAR = 0.75, 0.075, 1.3  # inches: a side of the heat map's cells, a letter of a label, the colour bar


@dataclass(frozen=True)
class Quantity:
    """A number of every pair: its name in files, its heading, what it is in words, and the number."""

    name: str
    title: str
    words: str
    of: Callable[[TransferPair], Proportion]


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


def stem(found: TransferResult) -> str:
    """What the files of a matrix are called: the same models under the same attack give the same name."""
    return f"transfer-{digest([found.sources, found.targets, found.perturbation])}"


def where(found: TransferResult) -> str:
    """The attack and the examples in words."""
    data = found.perturbation["dataset"]
    return f"n = {found.n:,} examples of {data}; {describe_fields(found.perturbation)}"


# ---------------------------------------------------------------- tables


def labels(found: TransferResult) -> tuple[list[str], list[str]]:
    """What rows and columns of a matrix are called. Where each target is a source too, names and all are in the rows,
    numbered, and the numbers in the columns, which would otherwise be as wide as the names."""
    sources, targets = [found.names[s] for s in found.sources], [found.names[t] for t in found.targets]
    if not set(targets) <= set(sources):
        return sources, targets
    rows = [f"{number}: {name}" for number, name in enumerate(sources, 1)]
    return rows, [str(1 + sources.index(target)) for target in targets]


def matrix_table(found: TransferResult, quantity: Quantity) -> TextTable:
    """One row a source, one column a target: percent with the count behind it."""
    left, heads = labels(found)
    rows = [
        [label, *(_cell(quantity.of(found.pairs[source, target])) for target in found.targets)]
        for label, source in zip(left, found.sources, strict=True)
    ]
    heads = ["source \\ target", *heads]
    return TextTable(f"{quantity.title}, %".capitalize(), heads, rows)


def _cell(value: Proportion) -> str:
    return MISSING if value.rate is None else f"{100 * value.rate:.1f} ({value.count}/{value.n})"


def pairs_table(found: TransferResult) -> TextTable:
    """One row a pair, with 95% Wilson intervals over the examples."""
    heads = ["source", "target", "n", "target clean, %", "target on the source's examples, %", "transfer rate, %",
             "fooled of the target's correct ones, %"]  # fmt: skip
    rows = [
        [found.names[source], found.names[target], str(pair.record.n),
         *(_with_interval(value) for value in (pair.clean, pair.accuracy, pair.rate, pair.success))]
        for (source, target), pair in found.pairs.items()
    ]  # fmt: skip
    return TextTable("Every pair, with 95% Wilson intervals over examples", heads, rows)


def _with_interval(value: Proportion) -> str:
    interval = value.interval()
    if value.rate is None or interval is None:
        return MISSING
    low, high = (f"{100 * bound:.1f}" for bound in interval)
    return f"{100 * value.rate:.1f} [{low}, {high}] ({value.count}/{value.n})"


def models_table(found: TransferResult) -> TextTable:
    """What the short names stand for."""
    identities = {i: pair.record.source for (i, _), pair in found.pairs.items()}
    identities |= {i: pair.record.target for (_, i), pair in found.pairs.items()}
    rows = [[name, key, _what(identities[key])] for key, name in found.names.items()]
    return TextTable("Models", ["name", "id", "what it is"], rows)


def _what(identity: Mapping[str, Any]) -> str:
    if "weights" in identity:
        return f"a model of the user's, weights sha256 {str(identity['weights'])[:12]}"
    return describe_cell(validate(Cell, dict(identity), "record")) if "arch" in identity else "a model of the user's"


def remarks(found: TransferResult) -> list[str]:
    """The flags of models and pairs in words, each once."""
    said = [
        _remark(found.names[source], flag) for (source, _), pair in found.pairs.items() for flag in pair.record.flags
    ]
    said += [
        _remark(found.names[target], flag)
        for (_, target), pair in found.pairs.items()
        for flag in pair.record.target_flags
    ]
    said += [
        _remark(f"{found.names[source]} -> {found.names[target]}", flag)
        for (source, target), flag in found.flags().items()
    ]
    return list(dict.fromkeys(said))


def _remark(what: str, flag: Flag) -> str:
    return f"{what}: {flag.text}"


def terminal_table(table: TextTable) -> Any:
    """A table for a rich console."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=table.title or None, title_justify="left")
    for i, head in enumerate(table.heads):
        drawn.add_column(Text(head), justify="left" if i in table.text_columns else "right", overflow="fold")
    for row in table.rows:
        drawn.add_row(*(Text(text) for text in row))
    return drawn


# ---------------------------------------------------------------- figures


def figures(found: TransferResult, form: str = "svg") -> list[Drawn]:
    """A heat map of each quantity: (name, caption, bytes as `svg` or `png`)."""
    return [(q.name, caption(found, q), _heat_map(found, q, form)) for q in QUANTITIES]


def caption(found: TransferResult, quantity: Quantity) -> str:
    """What a heat map shows, with n and the attack."""
    small = "; below it, of how many examples" if quantity.name == "rate" else ""
    return f"{quantity.title.capitalize()}, %: {quantity.words}{small}. {where(found)}."


def values(found: TransferResult, quantity: Quantity) -> NDArray[np.float64]:
    """A quantity in percent, [sources, targets]; NaN where there is none."""
    rates = [[quantity.of(found.pairs[s, t]).rate for t in found.targets] for s in found.sources]
    return 100 * np.array(rates, np.float64)


def _heat_map(found: TransferResult, quantity: Quantity, form: str) -> bytes:
    grid = values(found, quantity)
    rows, columns = grid.shape
    left, below = labels(found)
    wide, high = (LETTER * max(map(len, names)) for names in (left, below))
    plt = pyplot()
    with plt.rc_context(STYLE):
        # Labels of the targets are slanted, so that names of any length stay apart; they take 1 / sqrt(2) of a length.
        height = max(CELL * rows, LETTER * len(quantity.title) + 0.5)  # room for the colour bar's label
        size = (CELL * columns + wide + BAR + 0.4, height + 0.7 * high + 0.7)
        drawing, axes = plt.subplots(figsize=size, layout="constrained")
        image = axes.imshow(np.ma.masked_invalid(grid), aspect="auto", vmin=0, vmax=100, cmap="cividis")
        for (row, column), value in np.ndenumerate(grid):
            pair = found.pairs[found.sources[row], found.targets[column]]
            _write_number(axes, (column, row), value, quantity.of(pair).n if quantity.name == "rate" else None)
        upright = {} if max(map(len, below)) < 3 else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(columns), below, **upright)
        axes.set_yticks(range(rows), left)
        axes.set_xlabel("target")
        axes.set_ylabel("source")
        drawing.colorbar(image, ax=axes, label=f"{quantity.title}, %")
        return save(plt, drawing, form)


def _write_number(axes: Any, place: tuple[int, int], value: float, n: int | None) -> None:
    """A number in its cell, and below it, small, the number of examples."""
    text = f"{value:.1f}" if np.isfinite(value) else MISSING
    shade = "white" if value < 45 else "black"  # 4.5:1 at the least; black on NaN, whose cell is white
    axes.annotate(text, place, (0, 4 if n is not None else 0), textcoords="offset points", ha="center",
                  va="center", color=shade)  # fmt: skip
    if n is not None:
        axes.annotate(f"of {n}", place, (0, -8), textcoords="offset points", ha="center", va="center", color=shade,
                      fontsize=6.5)  # fmt: skip


# ---------------------------------------------------------------- page and data


def write(found: TransferResult, folder: Path) -> list[Path]:
    """Write the page (Markdown) with its heat maps (SVG and PNG) into a folder; the files written, the page last."""
    name, pictures, written = stem(found), {}, []
    for form in ("svg", "png"):
        for quantity, text, picture in figures(found, form):
            path = folder / f"{name}-{quantity}.{form}"
            atomic_write(path, picture)
            pictures[path.with_suffix(".png").name] = text
            written.append(path)
    page = folder / f"{name}.md"
    atomic_write(page, markdown(found, pictures))
    return [*written, page]


def markdown(found: TransferResult, pictures: Mapping[str, str]) -> str:
    """The page; `pictures` are the files of its figures, with their captions."""
    tables = [*(matrix_table(found, quantity) for quantity in QUANTITIES), pairs_table(found), models_table(found)]
    parts = ["# Transfer of adversarial examples between models", f"{where(found)}."]
    parts += [f"## {table.title}\n\n{markdown_table(table)}" for table in tables]
    parts += [f"![{text.split(':')[0]}]({name})\n\n*{text}*" for name, text in pictures.items()]
    parts += ["\n".join(f"- {remark}" for remark in remarks(found)) or "No flags."]
    return "\n\n".join(parts) + "\n"


def to_json(found: TransferResult) -> dict[str, Any]:
    """All pairs as plain data, fractions throughout."""
    return {
        "perturbation": found.perturbation,
        "n": found.n,
        "models": [{"id": key, "name": name} for key, name in found.names.items()],
        "pairs": [_plain(pair) for pair in found.pairs.values()],
        "flags": [
            {"source": source, "target": target, **flag.model_dump()}
            for (source, target), flag in found.flags().items()
        ],
    }


def _plain(pair: TransferPair) -> dict[str, Any]:
    record = pair.record
    numbers = {"clean": pair.clean, "accuracy": pair.accuracy, "transfer": pair.rate, "fooled": pair.success}
    return {
        "id": record.transfer_id,
        "source": record.source_id,
        "target": record.target_id,
        "n": record.n,
        **{name: _plain_proportion(value) for name, value in numbers.items()},
        "source_flags": [flag.model_dump() for flag in record.flags],
        "target_flags": [flag.model_dump() for flag in record.target_flags],
    }


def _plain_proportion(value: Proportion) -> dict[str, Any]:
    low, high = value.interval() or (None, None)
    return {"rate": value.rate, "count": value.count, "n": value.n, "low": low, "high": high}

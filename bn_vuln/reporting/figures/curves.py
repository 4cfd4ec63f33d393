"""Curves: every column of the table along one row key, one line for each value of the others and each arm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from bn_vuln.analysis.statistics import Estimate
from bn_vuln.reporting.aggregate import Results
from bn_vuln.reporting.figures.style import (
    ARM_STYLES,
    GREY,
    HEIGHT,
    STYLE,
    WIDTH,
    Drawn,
    axis_label,
    hide_spines,
    label,
    legend_columns,
    pyplot,
    save,
    scaled,
    with_seeds,
)
from bn_vuln.reporting.tables import KEY_NAMES

PANELS_IN_LINE = 3
DECADES = 30.0  # of largest to smallest value: above, the axis has the usual powers of ten

Line = list[tuple[float, dict[int, float], Estimate]]


def figure(results: Results, form: str) -> list[Drawn]:
    """One panel a column; arms without the key (no normalization has no c) are level lines."""
    lines, levels = _lines(results)
    columns = [c for c in results.experiment.table.columns if any(line.get(c) for line in lines.values())]
    if not columns:
        return []
    plt = pyplot()
    rows = math.ceil(len(columns) / PANELS_IN_LINE)
    with plt.rc_context(STYLE):
        size = (WIDTH, 0.85 * HEIGHT * rows + 0.3)
        drawing, axes = plt.subplots(
            rows, min(PANELS_IN_LINE, len(columns)), figsize=size, squeeze=False, layout="constrained"
        )
        for panel in axes.flat[len(columns) :]:
            panel.set_axis_off()
        for panel, column in zip(axes.flat, columns, strict=False):
            _panel(panel, results, column, lines, levels)
        handles = dict(zip(*reversed(axes.flat[0].get_legend_handles_labels()), strict=True))
        ncols = legend_columns(handles, 4)
        drawing.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=ncols, frameon=False)
        return [("curves", _caption(results), save(plt, drawing, form))]


def _caption(results: Results) -> str:
    x = KEY_NAMES.get(str(results.experiment.table.x), str(results.experiment.table.x))
    has_levels = any(block.where.get(str(results.experiment.table.x)) is None for block in results.blocks)
    dashed = f" Dashed: without {x}." if has_levels else ""
    return f"Along {x}: {with_seeds(results, 'mean ± SEM, dots are single seeds')}.{dashed}"


def _lines(results: Results) -> tuple[dict[str, dict[str, Line]], dict[str, dict[str, Line]]]:
    """(lines with values of the x key, levels without), by label, each by column."""
    key = results.experiment.table.x
    lines: dict[str, dict[str, Line]] = {}
    levels: dict[str, dict[str, Line]] = {}
    for block in results.blocks:
        x = block.where.get(str(key))
        others = {name: value for name, value in block.where.items() if name != key}
        for arm, values in block.arms.items():
            into = (levels if x is None else lines).setdefault(label(others, arm), {})
            for column, value in values.items():
                if value.estimate:
                    into.setdefault(column, []).append((0.0 if x is None else float(x), value.by_seed, value.estimate))
    return lines, levels


def _panel(
    axes: Any, results: Results, column: str, lines: dict[str, dict[str, Line]], levels: dict[str, dict[str, Line]]
) -> None:
    for number, (name, by_column) in enumerate(lines.items()):
        colour, marker = ARM_STYLES[number % len(ARM_STYLES)]
        line = sorted(by_column.get(column, []), key=lambda point: point[0])
        _draw(axes, results, column, line, colour, marker, name)
    for number, (name, by_column) in enumerate(levels.items()):
        for _, _, value in by_column.get(column, []):
            level = scaled(results, column, value.mean)
            axes.axhline(level, color=ARM_STYLES[number % len(ARM_STYLES)][0], linestyle="--", linewidth=1, label=name)
    x = str(results.experiment.table.x)
    _log_x(axes, [point[0] for by_column in lines.values() for points in by_column.values() for point in points])
    axes.set_xlabel(KEY_NAMES.get(x, x))
    axes.set_ylabel(axis_label(results, column))
    if results.experiment.unit(column) == "nats":
        axes.set_yscale("log")
        for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            formatter(lambda value, _: f"{value:.3g}")
    if results.experiment.unit(column) == "%":
        axes.set_ylim(top=min(axes.get_ylim()[1], 101))
    axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
    hide_spines(axes)


def _log_x(axes: Any, xs: Sequence[float]) -> None:
    """A logarithmic axis; where zero is among the values, one that is linear below the smallest other, if any."""
    if 0.0 in xs and any(xs):
        axes.set_xscale("symlog", linthresh=min(x for x in xs if x > 0))
        return
    if xs and not any(xs):
        axes.set_xticks([0.0])
        return
    axes.set_xscale("log")
    if xs and max(xs) <= DECADES * min(xs):  # few values close together, as widths are: named themselves
        axes.set_xticks(sorted(set(xs)), [f"{x:g}" for x in sorted(set(xs))])
        axes.set_xticks([], minor=True)


def _draw(
    axes: Any, results: Results, column: str, line: Sequence[tuple[float, dict[int, float], Estimate]], colour: str,
    marker: str, name: str,
) -> None:  # fmt: skip
    for x, by_seed, _ in line:
        dots = [scaled(results, column, v) for v in by_seed.values()]
        axes.plot([x] * len(dots), dots, linestyle="", marker=".", markersize=3, color=colour, alpha=0.5)
    means = [scaled(results, column, value.mean) for _, _, value in line]
    errors = [scaled(results, column, value.sem or 0.0) for _, _, value in line]
    axes.errorbar(
        [x for x, _, _ in line], means, yerr=errors, color=colour, marker=marker, markersize=5, capsize=2,
        linewidth=1.2, label=name,
    )  # fmt: skip

"""Curves: every column of the table along one row key, one line for each value of the others and each arm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from bn_vuln.analysis.statistics import Estimate
from bn_vuln.reporting.aggregate import Results
from bn_vuln.reporting.figures.style import (
    ARM_STYLES,
    GREY,
    HEIGHT,
    WIDTH,
    FigureFile,
    axis_label,
    describe_means,
    hide_spines,
    key_name,
    legend_columns,
    legend_label,
    render,
    styled_pyplot,
    to_shown_unit,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_PANELS_IN_ROW = 3
MAX_TICK_RANGE = 30.0  # of largest to smallest value: above, the axis has the usual powers of ten


class Point(NamedTuple):
    """A value of the x key with the numbers there."""

    x: float
    by_seed: dict[int, float]
    estimate: Estimate


Lines = dict[str, dict[str, list[Point]]]  # by label, then by column


def draw(results: Results, file_format: str) -> list[FigureFile]:
    """Draw one panel a column; arms without the key (no normalization has no c) are horizontal lines."""
    lines, constant = lines_by_label(results)
    columns = [c for c in results.experiment.table.columns if any(line.get(c) for line in lines.values())]
    if not columns:
        return []
    x = key_name(results.experiment.table.x)
    dashed = f" Dashed: without {x}." if constant else ""
    caption = f"Along {x}: {describe_means(results, 'mean ± SEM, dots are single seeds')}.{dashed}"
    rows = math.ceil(len(columns) / MAX_PANELS_IN_ROW)
    with styled_pyplot() as plt:
        size = (WIDTH, 0.85 * HEIGHT * rows + 0.3)
        figure, axes = plt.subplots(
            rows, min(MAX_PANELS_IN_ROW, len(columns)), figsize=size, squeeze=False, layout="constrained"
        )
        for panel in axes.flat[len(columns) :]:
            panel.set_axis_off()
        for panel, column in zip(axes.flat, columns, strict=False):
            _draw_panel(panel, results, column, lines, constant)
        handles = dict(zip(*reversed(axes.flat[0].get_legend_handles_labels()), strict=True))
        ncols = legend_columns(handles, 4)
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=ncols, frameon=False)
        return [FigureFile("curves", caption, render(figure, file_format))]


def lines_by_label(results: Results) -> tuple[Lines, Lines]:
    """Return the lines of rows and arms with values of the x key, and those of rows without one."""
    key = results.experiment.table.x
    lines: Lines = {}
    constant: Lines = {}
    for block in results.blocks:
        x = block.where.get(str(key))
        other_keys = {name: value for name, value in block.where.items() if name != key}
        for arm, values in block.arms.items():
            by_column = (constant if x is None else lines).setdefault(legend_label(other_keys, arm), {})
            for column, value in values.items():
                if value.estimate:
                    point = Point(0.0 if x is None else float(x), value.by_seed, value.estimate)
                    by_column.setdefault(column, []).append(point)
    return lines, constant


def _draw_panel(axes: Axes, results: Results, column: str, lines: Lines, constant: Lines) -> None:
    for number, (label, by_column) in enumerate(lines.items()):
        colour, marker = ARM_STYLES[number % len(ARM_STYLES)]
        points = sorted(by_column.get(column, []), key=lambda point: point.x)
        _draw_line(axes, results, column, points, colour, marker, label)
    for number, (label, by_column) in enumerate(constant.items()):
        colour = ARM_STYLES[number % len(ARM_STYLES)][0]
        for level in to_shown_unit(results, column, [point.estimate.mean for point in by_column.get(column, [])]):
            axes.axhline(level, color=colour, linestyle="--", linewidth=1, label=label)
    _scale_x(axes, [point.x for by_column in lines.values() for points in by_column.values() for point in points])
    axes.set_xlabel(key_name(results.experiment.table.x))
    axes.set_ylabel(axis_label(results, column))
    if results.experiment.columns[column].unit == "nats":
        axes.set_yscale("log")
        for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            set_formatter(lambda value, _: f"{value:.3g}")
    if results.experiment.columns[column].unit == "%":
        axes.set_ylim(top=min(axes.get_ylim()[1], 101))
    axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
    hide_spines(axes)


def _scale_x(axes: Axes, xs: Sequence[float]) -> None:
    """Make the axis logarithmic; where zero is among the values, linear below the smallest other, if any."""
    if 0.0 in xs and any(xs):
        axes.set_xscale("symlog", linthresh=min(x for x in xs if x > 0))
        return
    if xs and not any(xs):
        axes.set_xticks([0.0])
        return
    axes.set_xscale("log")
    if xs and max(xs) <= MAX_TICK_RANGE * min(xs):  # few values close together, as widths are: named themselves
        axes.set_xticks(sorted(set(xs)), [f"{x:g}" for x in sorted(set(xs))])
        axes.set_xticks([], minor=True)


def _draw_line(
    axes: Axes, results: Results, column: str, points: Sequence[Point], colour: str, marker: str, label: str
) -> None:
    for point in points:
        dots = to_shown_unit(results, column, [*point.by_seed.values()])
        axes.plot([point.x] * len(dots), dots, linestyle="", marker=".", markersize=3, color=colour, alpha=0.5)
    means = to_shown_unit(results, column, [point.estimate.mean for point in points])
    errors = to_shown_unit(results, column, [point.estimate.sem or 0.0 for point in points])
    axes.errorbar(
        [point.x for point in points], means, yerr=errors, color=colour, marker=marker, markersize=5, capsize=2,
        linewidth=1.2, label=label,
    )  # fmt: skip

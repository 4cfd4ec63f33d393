"""Heat maps over two row keys; over depth and batch size (Figure 2) with the depth that mean-field theory allows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bn_vuln.analysis import meanfield
from bn_vuln.reporting.aggregate import Results
from bn_vuln.reporting.figures.style import (
    WIDTH,
    FigureFile,
    describe_seeds,
    key_name,
    render,
    styled_pyplot,
    to_shown_unit,
)
from bn_vuln.reporting.tables import format_key_value
from bn_vuln.typing import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

PANEL = 2.7  # height of a row of panels
FAILED = -1.0  # in a grid of accuracies: every training failed
THEORY = ("train.batch_size", "arch.depth")  # the keys along x and y that mean-field theory is about
MIN_BATCH_SIZE = 4  # of mean-field theory
DASHED = (
    " Dashed: 16 / ln \N{GREEK SMALL LETTER LAMDA}(B), the depth to which nets with batch norm can be trained by "
    "mean-field theory (Yang et al. 2019)."
)


def draw(results: Results, file_format: str) -> list[FigureFile]:
    """Draw one row of panels an arm, one panel a column of fractions: the mean over seeds along the keys x and y."""
    table = results.experiment.table
    if table.x is None or table.y is None:
        return []
    columns = [column for column in table.columns if results.experiment.columns[column].unit == "%"]
    every_arm = dict.fromkeys(arm for block in results.blocks for arm in block.arms)
    arms = [arm for arm in every_arm if any(np.isfinite(means(results, arm, c)).any() for c in columns)]
    if not arms:
        return []
    over = f"Accuracy over {key_name(table.y)} and {key_name(table.x)}"
    dashed = DASHED if (table.x, table.y) == THEORY else ""
    caption = f"{over}, {describe_seeds(results)}; a grey cross: failed to train; empty: not run.{dashed}"
    with styled_pyplot() as plt:
        size = (WIDTH, PANEL * len(arms) + 0.4)
        figure, axes = plt.subplots(len(arms), len(columns), figsize=size, squeeze=False, layout="constrained")
        image = None
        for row, arm in zip(axes, arms, strict=True):
            for panel, column in zip(row, columns, strict=True):
                image = _draw_panel(panel, results, arm, column)
            row[0].set_ylabel(f"{arm}\n{key_name(table.y)}")
        for panel in axes[-1]:
            panel.set_xlabel(key_name(table.x))
        figure.colorbar(image, ax=axes, label="accuracy, %", shrink=0.8)
        return [FigureFile("heatmaps", caption, render(figure, file_format))]


def key_values(results: Results, key: str | None) -> list[float]:
    """Return the values of a row key, in ascending order."""
    return sorted({block.where[str(key)] for block in results.blocks})


def means(results: Results, arm: str, column: str) -> Floats:
    """Return means [y, x] in the unit of the column; NaN where there is none, FAILED where every training failed."""
    table = results.experiment.table
    xs, ys = key_values(results, table.x), key_values(results, table.y)
    grid = np.full((len(ys), len(xs)), np.nan)
    for block in results.blocks:
        value = block.arms.get(arm, {}).get(column)
        cell = ys.index(block.where[str(table.y)]), xs.index(block.where[str(table.x)])
        if value is not None and value.estimate:
            (grid[cell],) = to_shown_unit(results, column, [value.estimate.mean])
        elif value is not None and value.failed:
            grid[cell] = FAILED
    return grid


def _draw_panel(axes: Axes, results: Results, arm: str, column: str) -> AxesImage:
    """One map with its numbers, and the limit of the theory on that of the treatment."""
    table = results.experiment.table
    xs, ys = key_values(results, table.x), key_values(results, table.y)
    grid = means(results, arm, column)
    shown = np.ma.masked_invalid(np.where(grid == FAILED, np.nan, grid))
    axes.set_facecolor("white")
    image = axes.imshow(shown, origin="lower", aspect="auto", vmin=0, vmax=100, cmap="cividis")
    for (j, i), value in np.ndenumerate(grid):
        if value == FAILED:
            axes.text(i, j, "\N{MULTIPLICATION SIGN}", ha="center", va="center", color="#777777", fontsize=14)
        elif np.isfinite(value):
            shade = "white" if value < 60 else "black"
            axes.text(i, j, f"{value:.0f}", ha="center", va="center", color=shade, zorder=3)  # above the dashed line
    if arm == table.treatment and (table.x, table.y) == THEORY:
        usable = [(i, x) for i, x in enumerate(xs) if x >= MIN_BATCH_SIZE]
        limits = np.interp([meanfield.depth_limit(x) for _, x in usable], ys, range(len(ys)))  # in rows of the grid
        axes.plot([i for i, _ in usable], limits, color="#D55E00", linestyle="--", linewidth=1.6)
    axes.set_xticks(range(len(xs)), [format_key_value("", x) for x in xs])
    axes.set_yticks(range(len(ys)), [format_key_value("", y) for y in ys])
    axes.set_title(table.columns[column], loc="left")
    return image

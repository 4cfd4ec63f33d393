"""The table as a matrix: arms in rows, columns of percent in columns, a panel a row of the table."""

from __future__ import annotations

import numpy as np

from bn_vuln.reporting.aggregate import Results
from bn_vuln.reporting.figures.style import WIDTH, FigureFile, describe_seeds, render, styled_pyplot, to_shown_unit
from bn_vuln.reporting.results import Block
from bn_vuln.reporting.tables import describe_keys
from bn_vuln.typing import Floats

ROW = 0.55  # height of an arm


def draw(results: Results, file_format: str) -> list[FigureFile]:
    """Draw one panel a row of the table, with the mean over seeds of each arm in each column of percent."""
    table, n_arms = results.experiment.table, max((len(block.arms) for block in results.blocks), default=0)
    columns = [column for column in table.columns if results.experiment.columns[column].unit == "%"]
    grids = [means(results, block, columns) for block in results.blocks]
    if not any(np.isfinite(grid).any() for grid in grids):
        return []
    with styled_pyplot() as plt:
        size = (WIDTH, (ROW * n_arms + 0.4) * len(grids) + 1)
        figure, axes = plt.subplots(len(grids), figsize=size, squeeze=False, layout="constrained", sharex=True)
        image = None
        for panel, block, grid in zip(axes[:, 0], results.blocks, grids, strict=True):
            image = panel.imshow(np.ma.masked_invalid(grid), aspect="auto", vmin=0, vmax=100, cmap="cividis")
            for (row, column), value in np.ndenumerate(grid):
                if np.isfinite(value):
                    shade = "white" if value < 45 else "black"
                    panel.text(column, row, f"{value:.1f}", ha="center", va="center", color=shade)
            panel.set_title(", ".join(describe_keys(block.where)), loc="left")
            panel.set_yticks(range(len(block.arms)), list(block.arms))
        axes[-1, 0].set_xticks(range(len(columns)), [table.columns[column] for column in columns])
        figure.colorbar(image, ax=axes, label="%")
        caption = f"Arms in rows, mean over seeds in %, {describe_seeds(results)}; empty: not run."
        return [FigureFile("matrix", caption, render(figure, file_format))]


def means(results: Results, block: Block, columns: list[str]) -> Floats:
    """Return means [arm, column] in percent; NaN where there is none."""
    grid = np.full((len(block.arms), len(columns)), np.nan)
    for row, values in enumerate(block.arms.values()):
        for i, column in enumerate(columns):
            if (estimate := values[column].estimate) is not None:
                (grid[row, i],) = to_shown_unit(results, column, [estimate.mean])
    return grid

"""The table as a matrix: arms in rows, columns of percent in columns, a panel for each row of the table and metric."""

from __future__ import annotations

import numpy as np

from bn_vuln.reporting.aggregate import Results
from bn_vuln.reporting.figures.style import WIDTH, FigureFile, describe_seeds, render, styled_pyplot, to_shown_unit
from bn_vuln.reporting.results import Block
from bn_vuln.reporting.tables import describe_keys
from bn_vuln.typing import Floats

ROW, HEAD = 0.55, 0.9  # heights of an arm, and of the title and labels of a panel
LEVEL = 8  # titles that fit side by side
METRIC_NAMES = {"accuracy": "accuracy", "top5": "top-5 accuracy", "transfer_rate": "transfer rate"}


def draw(results: Results, file_format: str) -> list[FigureFile]:
    """Draw a panel for each row of the table and metric, with the mean over seeds of each arm in its columns."""
    table, by_metric = results.experiment.table, _columns(results)
    panels = [
        (block, metric, means(results, block, by_metric[metric])) for block in results.blocks for metric in by_metric
    ]
    if not any(np.isfinite(grid).any() for _, _, grid in panels):
        return []
    with styled_pyplot() as plt:
        heights = [ROW * len(block.arms) + HEAD for block, _, _ in panels]
        figure, axes = plt.subplots(
            len(panels),
            figsize=(WIDTH, sum(heights)),
            squeeze=False,
            layout="constrained",
            height_ratios=heights,
        )
        image = None
        for panel, (block, metric, grid) in zip(axes[:, 0], panels, strict=True):
            image = panel.imshow(np.ma.masked_invalid(grid), aspect="auto", vmin=0, vmax=100, cmap="cividis")
            for (row, column), value in np.ndenumerate(grid):
                if np.isfinite(value):
                    shade = "white" if value < 45 else "black"
                    panel.text(column, row, f"{value:.1f}", ha="center", va="center", color=shade)
            names = [*describe_keys(block.where), *([METRIC_NAMES.get(metric, "")] if len(by_metric) > 1 else [])]
            panel.set_title(", ".join(filter(None, names)), loc="left")
            panel.set_yticks(range(len(block.arms)), list(block.arms))
            titles = [table.columns[column] for column in by_metric[metric]]
            turned = {"rotation": 45, "ha": "right"} if len(titles) > LEVEL else {}
            panel.set_xticks(range(len(titles)), titles, **turned)
        figure.colorbar(image, ax=axes, label="%", fraction=0.05, aspect=40)
        caption = f"Arms in rows, mean over seeds in %, {describe_seeds(results)}; empty: not run."
        return [FigureFile("matrix", caption, render(figure, file_format))]


def _columns(results: Results) -> dict[str, list[str]]:
    """The columns of percent by their metric."""
    found: dict[str, list[str]] = {}
    for name in results.experiment.table.columns:
        column = results.experiment.columns[name]
        if column.unit == "%":
            found.setdefault(column.parts[0].metric, []).append(name)
    return found


def means(results: Results, block: Block, columns: list[str]) -> Floats:
    """Return means [arm, column] in percent; NaN where there is none."""
    grid = np.full((len(block.arms), len(columns)), np.nan)
    for row, values in enumerate(block.arms.values()):
        for i, column in enumerate(columns):
            if (estimate := values[column].estimate) is not None:
                (grid[row, i],) = to_shown_unit(results, column, [estimate.mean])
    return grid

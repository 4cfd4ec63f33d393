"""Heat maps over two row keys; over depth and batch size (Figure 2) with the depth that mean-field theory allows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln.analysis import meanfield
from bn_vuln.config import Table
from bn_vuln.reporting.aggregate import Results
from bn_vuln.reporting.figures.style import STYLE, WIDTH, Drawn, n_seeds, pyplot, save, scaled
from bn_vuln.reporting.tables import KEY_NAMES, plain

PANEL = 2.7  # height of a row of panels
THEORY = ("train.batch_size", "arch.depth")  # the keys along x and y that mean-field theory is about
DASHED = (
    " Dashed: 16 / ln \N{GREEK SMALL LETTER LAMDA}(B), the depth to which nets with batch norm can be trained by "
    "mean-field theory (Yang et al. 2019)."
)


def figure(results: Results, form: str) -> list[Drawn]:
    """One row of panels an arm, one panel a column of fractions: the mean over seeds along the keys x and y."""
    table = results.experiment.table
    if table.x is None or table.y is None:
        return []
    columns = [column for column in table.columns if results.experiment.unit(column) == "%"]
    arms = [arm for arm in _arms(results) if any(np.isfinite(_grid(results, arm, c)).any() for c in columns)]
    if not arms:
        return []
    plt = pyplot()
    with plt.rc_context(STYLE):
        size = (WIDTH, PANEL * len(arms) + 0.4)
        drawing, axes = plt.subplots(len(arms), len(columns), figsize=size, squeeze=False, layout="constrained")
        image = None
        for row, arm in zip(axes, arms, strict=True):
            for panel, column in zip(row, columns, strict=True):
                image = _panel(panel, results, arm, column)
            row[0].set_ylabel(f"{arm}\n{_name(table.y)}")
        for panel in axes[-1]:
            panel.set_xlabel(_name(table.x))
        drawing.colorbar(image, ax=axes, label="accuracy, %", shrink=0.8)
        return [("heatmaps", _caption(results), save(plt, drawing, form))]


def _caption(results: Results) -> str:
    table = results.experiment.table
    over = f"Accuracy over {_name(table.y)} and {_name(table.x)}"
    dashed = DASHED if (table.x, table.y) == THEORY else ""
    return f"{over}, {n_seeds(results)}; a grey cross: failed to train; empty: not run.{dashed}"


def _name(key: str | None) -> str:
    return KEY_NAMES.get(str(key), str(key))


def _arms(results: Results) -> list[str]:
    return list(dict.fromkeys(arm for block in results.blocks for arm in block.arms))


def _axes(results: Results) -> tuple[list[Any], list[Any]]:
    """The values of the x and y keys, ascending."""
    table: Table = results.experiment.table
    return tuple(sorted({block.where[str(key)] for block in results.blocks}) for key in (table.x, table.y))  # type: ignore[return-value]


def _grid(results: Results, arm: str, column: str) -> NDArray[np.float64]:
    """Means [y, x]; NaN where there is none, -1 where every training failed."""
    xs, ys = _axes(results)
    table = results.experiment.table
    grid = np.full((len(ys), len(xs)), np.nan)
    for block in results.blocks:
        value = block.arms.get(arm, {}).get(column)
        if value is not None:
            at = ys.index(block.where[str(table.y)]), xs.index(block.where[str(table.x)])
            failed = -1.0 if value.failed and not value.by_seed else np.nan
            grid[at] = scaled(results, column, value.estimate.mean) if value.estimate else failed
    return grid


def _panel(axes: Any, results: Results, arm: str, column: str) -> Any:
    grid = _grid(results, arm, column)
    xs, ys = _axes(results)
    shown = np.ma.masked_invalid(np.where(grid < 0, np.nan, grid))
    axes.set_facecolor("white")
    image = axes.imshow(shown, origin="lower", aspect="auto", vmin=0, vmax=100, cmap="cividis")
    for (j, i), value in np.ndenumerate(grid):
        if value == -1.0:
            axes.text(i, j, "\N{MULTIPLICATION SIGN}", ha="center", va="center", color="#777777", fontsize=14)
        elif np.isfinite(value):
            shade = "white" if value < 60 else "black"
            axes.text(i, j, f"{value:.0f}", ha="center", va="center", color=shade, zorder=3)  # above the dashed line
    table = results.experiment.table
    if arm == table.treatment and (table.x, table.y) == THEORY:
        _limit(axes, xs, ys)
    axes.set_xticks(range(len(xs)), [plain("", x) for x in xs])
    axes.set_yticks(range(len(ys)), [plain("", y) for y in ys])
    axes.set_title(results.experiment.table.columns[column], loc="left")
    return image


def _limit(axes: Any, xs: list[Any], ys: list[Any]) -> None:
    """The dashed line, in the places of the cells."""
    usable = [(i, x) for i, x in enumerate(xs) if x > 3]
    limits = [meanfield.depth_limit(x) for _, x in usable]
    places = np.interp(np.asarray(limits, float), ys, range(len(ys)))
    axes.plot([i for i, _ in usable], places, color="#D55E00", linestyle="--", linewidth=1.6)

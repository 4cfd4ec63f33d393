"""What all figures share: style, colours, saving. matplotlib is imported late."""

from __future__ import annotations

import io
from typing import Any

from bn_vuln.aggregate import Results
from bn_vuln.report.tables import SHOWN

# Okabe-Ito: told apart by colour-blind readers; shapes differ too, for print without colour.
ARM_STYLES = (
    ("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"),
    ("#000000", "X"),
)  # fmt: skip
PAPER_COLOUR = "#555555"
GREY = "#999999"
HEIGHT = 3.4
WIDTH = 9.0
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "bnvuln", "font.size": 9, "font.family": "sans-serif"}

Drawn = tuple[str, str, bytes]  # name (of the file, beside the experiment's), caption, the file


def pyplot() -> Any:
    """pyplot without a window."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(plt: Any, drawing: Any, form: str) -> bytes:
    """The bytes of a figure, the same for the same data, and the figure closed."""
    buffer = io.BytesIO()
    drawing.savefig(buffer, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
    plt.close(drawing)
    return buffer.getvalue()


def hide_spines(axes: Any) -> None:
    """Axes without a frame at top and right."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def n_seeds(results: Results) -> str:
    """`n = 5 seeds`, or `n = 1 to 5 seeds`: the seeds behind the numbers, for a caption."""
    counts = {len(v.by_seed) for b in results.blocks for arm in b.arms.values() for v in arm.values() if v.by_seed}
    low, high = min(counts, default=0), max(counts, default=0)
    if low != high:
        return f"n = {low} to {high} seeds"
    return f"n = {low} {'seed' if low == 1 else 'seeds'}"


def scaled(results: Results, column: str, value: float) -> float:
    """A number as its column shows it: percent of fractions."""
    return SHOWN[results.experiment.unit(column)][0] * value


def axis_label(results: Results, column: str) -> str:
    """The heading of a column with its unit."""
    return f"{results.experiment.table.columns[column]}, {results.experiment.unit(column)}"

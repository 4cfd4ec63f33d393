"""What all figures share: style, colours, saving. matplotlib is imported late."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from bn_vuln.reporting.aggregate import Results
from bn_vuln.reporting.tables import SHOWN, words

# Okabe-Ito: told apart by colour-blind readers; shapes differ too, for print without colour.
ARM_STYLES = (
    ("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"),
    ("#000000", "X"),
)  # fmt: skip
PAPER_COLOUR = "#555555"
GREY = "#999999"
HEIGHT = 3.4
WIDTH = 9.0
LETTER, HANDLE = 0.065, 0.65  # inches: a letter in a legend, and what stands before and between its labels
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "bnvuln", "font.size": 9, "font.family": "sans-serif"}
CLIP = re.compile(rb'(<clipPath id="|url\(#)(p[0-9a-f]{10})(?=[")])')  # where an SVG defines or uses a clip path

Drawn = tuple[str, str, bytes]  # name (of the file, beside the experiment's), caption, the file


def pyplot() -> Any:
    """pyplot without a window."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(plt: Any, drawing: Any, form: str) -> bytes:
    """The bytes of a figure, an SVG's the same for the same data, and the figure closed."""
    buffer = io.BytesIO()
    drawing.savefig(buffer, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
    plt.close(drawing)
    return _numbered(buffer.getvalue()) if form == "svg" else buffer.getvalue()


def _numbered(svg: bytes) -> bytes:
    """An SVG whose clip paths are numbered as they occur.

    matplotlib names them by a hash of where panels lie, to the last bit. The layout is solved in an order that depends
    on addresses in memory, so that the last bits, which are not written, differ from drawing to drawing.
    """
    numbers: dict[bytes, bytes] = {}
    return CLIP.sub(lambda found: found[1] + numbers.setdefault(found[2], b"clip%d" % len(numbers)), svg)


def hide_spines(axes: Any) -> None:
    """Axes without a frame at top and right."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def legend_columns(labels: Iterable[str], most: int, width: float = WIDTH) -> int:
    """How many columns of a legend fit into that many inches, so that none is cut off: at most `most`, at least one."""
    lengths = [len(label) for label in labels]
    for n in range(min(most, len(lengths)), 1, -1):
        longest = [max(column) for column in np.array_split(lengths, n)]  # as matplotlib divides them
        if sum(HANDLE + LETTER * length for length in longest) <= width:
            return n
    return 1


def n_seeds(results: Results) -> str:
    """`n = 5 seeds`, or `n = 1 to 5 seeds`: the seeds behind the numbers, for a caption."""
    counts = {len(v.by_seed) for b in results.blocks for arm in b.arms.values() for v in arm.values() if v.by_seed}
    low, high = min(counts, default=0), max(counts, default=0)
    if low != high:
        return f"n = {low} to {high} seeds"
    return f"n = {low} {'seed' if low == 1 else 'seeds'}"


def with_seeds(results: Results, means: str) -> str:
    """`mean ± SEM, n = 5 seeds`: what `means` says, and of how many seeds; one seed has neither mean nor SEM."""
    n = n_seeds(results)
    return n if n == "n = 1 seed" else f"{means}, {n}"


def label(where: Mapping[str, Any], arm: str) -> str:
    """What a legend calls an arm in a row: `width 28, batch`."""
    return ", ".join([*words(where), arm])


def scaled(results: Results, column: str, value: float) -> float:
    """A number as its column shows it: percent of fractions."""
    return SHOWN[results.experiment.unit(column)][0] * value


def axis_label(results: Results, column: str) -> str:
    """The heading of a column with its unit."""
    return f"{results.experiment.table.columns[column]}, {results.experiment.unit(column)}"

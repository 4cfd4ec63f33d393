"""Style, colours, labels and file contents that all figures share. matplotlib is imported late."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bn_vuln.reporting.aggregate import Results
from bn_vuln.reporting.tables import KEY_NAMES, UNIT_FORMATS, describe_keys
from bn_vuln.typing import Where

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe-Ito: told apart by colour-blind readers; shapes differ too, for print without colour.
ARM_STYLES = (
    ("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"),
    ("#000000", "X"),
)  # fmt: skip
CLAIM_COLOUR = "#555555"
GREY = "#999999"
HEIGHT = 3.4
WIDTH = 9.0
LETTER, HANDLE = 0.065, 0.65  # inches: a letter in a legend, and what stands before and between its labels
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "bnvuln", "font.size": 9, "font.family": "sans-serif"}
CLIP = re.compile(rb'(<clipPath id="|url\(#)(p[0-9a-f]{10})(?=[")])')  # where an SVG defines or uses a clip path


class FigureFile(NamedTuple):
    """A rendered figure; its name follows that of the experiment in the name of the file ("": nothing follows)."""

    name: str
    caption: str
    content: bytes


@contextmanager
def styled_pyplot() -> Iterator[ModuleType]:
    """Give pyplot without a window, in the style of all figures."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        yield pyplot


def render(figure: Figure, file_format: str) -> bytes:
    """Return a figure as `svg` or `png`, and close it. The SVG is the same for the same data.

    matplotlib names clip paths by a hash of where panels lie, to the last bit. The layout is solved in an order that
    depends on addresses in memory, so that the last bits, which are not written, differ from drawing to drawing. Here
    they are numbered as they occur.
    """
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.savefig(buffer, format=file_format, dpi=150, metadata={"Date": None} if file_format == "svg" else None)
    pyplot.close(figure)
    if file_format != "svg":
        return buffer.getvalue()
    numbers: dict[bytes, bytes] = {}
    return CLIP.sub(lambda path: path[1] + numbers.setdefault(path[2], b"clip%d" % len(numbers)), buffer.getvalue())


def hide_spines(axes: Axes) -> None:
    """Remove the frame of axes at top and right."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def legend_columns(labels: Iterable[str], maximum: int, width: float = WIDTH) -> int:
    """Return how many columns of a legend fit into `width` inches: at least one, at most `maximum`."""
    lengths = [len(label) for label in labels]
    for n in range(min(maximum, len(lengths)), 1, -1):
        longest = [max(column) for column in np.array_split(lengths, n)]  # as matplotlib divides them
        if sum(HANDLE + LETTER * length for length in longest) <= width:
            return n
    return 1


def describe_seeds(results: Results) -> str:
    """Return `n = 5 seeds`, or `n = 1 to 5 seeds`: the seeds behind the numbers, for a caption."""
    counts = {len(v.by_seed) for b in results.blocks for arm in b.arms.values() for v in arm.values() if v.by_seed}
    low, high = min(counts, default=0), max(counts, default=0)
    if low != high:
        return f"n = {low} to {high} seeds"
    return f"n = {low} {'seed' if low == 1 else 'seeds'}"


def describe_means(results: Results, means: str) -> str:
    """Return `means` and the number of seeds, `mean ± SEM, n = 5 seeds`; one seed has neither mean nor SEM."""
    n = describe_seeds(results)
    return n if n == "n = 1 seed" else f"{means}, {n}"


def legend_label(where: Where, arm: str) -> str:
    """Return the name of an arm in a row: `width 28, batch`."""
    return ", ".join([*describe_keys(where), arm])


def key_name(key: str | None) -> str:
    """Return the name of a row key, as on the axis along it."""
    return KEY_NAMES.get(str(key), str(key))


def to_shown_unit(results: Results, column: str, values: Sequence[float]) -> list[float]:
    """Return numbers of a column as they are shown: fractions in percent."""
    return [UNIT_FORMATS[results.experiment.columns[column].unit].factor * value for value in values]


def axis_label(results: Results, column: str) -> str:
    """Return the title of a column with its unit."""
    return f"{results.experiment.table.columns[column]}, {results.experiment.columns[column].unit}"

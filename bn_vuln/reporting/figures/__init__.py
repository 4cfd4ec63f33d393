"""The figures of an experiment, as its table asks for them."""

from __future__ import annotations

from collections.abc import Callable

from bn_vuln.config import Figure
from bn_vuln.reporting.aggregate import Results
from bn_vuln.reporting.figures import boundaries, curves, differences, eps_curves, examples, heatmaps, spectra
from bn_vuln.reporting.figures.style import Drawn

DRAWERS: dict[Figure, Callable[[Results, str], list[Drawn]]] = {
    "differences": differences.accuracies,
    "candidates": differences.candidates,
    "curves": curves.figure,
    "boundaries": boundaries.figure,
    "spectra": spectra.figure,
    "heatmaps": heatmaps.figure,
    "examples": examples.figure,
    "eps_curves": eps_curves.figure,
}


def figures(results: Results, form: str = "svg") -> list[Drawn]:
    """Every figure of an experiment that has something to show: (name, caption, bytes as `svg` or `png`)."""
    table = results.experiment.table
    wanted = table.figures or ("candidates" if table.selection_rule else "differences",)
    return [drawn for kind in wanted for drawn in DRAWERS[kind](results, form)]

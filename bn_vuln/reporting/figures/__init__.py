"""The figures of an experiment, as its table asks for them."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence

from bn_vuln.config import Figure
from bn_vuln.reporting.aggregate import Results
from bn_vuln.reporting.figures import boundaries, curves, differences, eps_curves, examples, heatmaps, spectra
from bn_vuln.reporting.figures.style import Drawn, pyplot

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


def figures_of_all(every: Sequence[Results], form: str = "svg") -> list[list[Drawn]]:
    """Draw the figures of several experiments, in a process a core: drawing takes most of the time of a report."""
    processes = min(len(os.sched_getaffinity(0)), len(every))
    if processes < 2 or "tensorflow" in sys.modules:  # whose threads do not survive a fork
        return [figures(results, form) for results in every]
    pyplot()  # before the processes are forked, which then have it
    with multiprocessing.get_context("fork").Pool(processes, _ASSIGNED.extend, ([(every, form)],)) as pool:
        return pool.map(_figures_of_one, range(len(every)), chunksize=1)


_ASSIGNED: list[tuple[Sequence[Results], str]] = []  # to a forked process


def _figures_of_one(number: int) -> list[Drawn]:
    every, form = _ASSIGNED[-1]
    return figures(every[number], form)

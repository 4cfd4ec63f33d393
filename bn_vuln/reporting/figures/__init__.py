"""The figures of an experiment, as its table asks for them."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence

from bn_vuln.config import Figure
from bn_vuln.records import Damaged
from bn_vuln.reporting.aggregate import Results
from bn_vuln.reporting.figures import boundaries, curves, differences, eps_curves, examples, heatmaps, matrix, spectra
from bn_vuln.reporting.figures.style import FigureFile, styled_pyplot

KINDS: dict[Figure, Callable[[Results, str], list[FigureFile]]] = {
    "differences": differences.draw_accuracies,
    "candidates": differences.draw_candidates,
    "curves": curves.draw,
    "boundaries": boundaries.draw,
    "spectra": spectra.draw,
    "heatmaps": heatmaps.draw,
    "matrix": matrix.draw,
    "examples": examples.draw,
    "eps_curves": eps_curves.draw,
}


def draw(results: Results, file_format: str = "svg") -> list[FigureFile]:
    """Render every figure of an experiment that has something to show, as `svg` or `png`."""
    table = results.experiment.table
    kinds = table.figures or ("candidates" if table.select_by else "differences",)
    return [figure for kind in kinds for figure in KINDS[kind](results, file_format)]


def draw_all(experiments: Sequence[Results], file_format: str = "svg") -> list[list[FigureFile]]:
    """Draw the figures of several experiments, on Linux in a process a core: drawing takes most of a report's time."""
    processes = min(len(os.sched_getaffinity(0)), len(experiments)) if sys.platform == "linux" else 1
    if processes < 2 or "tensorflow" in sys.modules:  # whose threads do not survive a fork
        return [draw(results, file_format) for results in experiments]
    with styled_pyplot():  # imported before the processes are forked, which then have it
        pool = multiprocessing.get_context("fork").Pool(processes, _IN_PROCESS.extend, ([(experiments, file_format)],))
    with pool:
        drawn = pool.map(_draw_in_process, range(len(experiments)), chunksize=1)
    for results, (_, damaged) in zip(experiments, drawn, strict=True):
        for one in damaged:  # whose arrays were read in the process alone
            results.store.note(one)
    return [figures for figures, _ in drawn]


_IN_PROCESS: list[tuple[Sequence[Results], str]] = []  # the arguments of `draw_all`, in a forked process


def _draw_in_process(number: int) -> tuple[list[FigureFile], list[Damaged]]:
    experiments, file_format = _IN_PROCESS[-1]
    return draw(experiments[number], file_format), experiments[number].store.damaged

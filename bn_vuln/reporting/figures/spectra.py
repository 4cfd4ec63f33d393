"""The mechanism: what a network amplifies of its input, and where its boundary's energy lies, by variance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bn_vuln.records import MeasurementRecord
from bn_vuln.reporting.aggregate import Results
from bn_vuln.reporting.figures.style import GREY, HEIGHT, WIDTH, FigureFile, hide_spines, render, styled_pyplot
from bn_vuln.reporting.results import Run
from bn_vuln.reporting.tables import describe_keys
from bn_vuln.typing import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

WINDOW = 9  # components averaged for a point of a curve
NEGLIGIBLE = 1e-9  # of the largest variance: components of pixels that are always black
Spectrum = dict[str, Floats]  # variance, gain, energy of each component


def draw(results: Results, file_format: str) -> list[FigureFile]:
    """Draw gain and cumulative energy against the variance: a row of panels for each value of the other row keys."""
    panels = mean_spectra(results)
    if not panels:
        return []
    measured = [run for block in results.blocks for run in block.runs if spectrum_record(results, run)]
    n = len({run.cell.seed for run in measured})
    caption = (
        f"Along the principal components of the training images, mean over n = {n} {'seed' if n == 1 else 'seeds'}. "
        "Left: gain, the RMS change of the logits for a step of length 1 along a component, relative to that along the "
        f"first ones (running mean of {WINDOW} components). Right: share of the margin gradient's energy in the "
        "components of at most that variance; what is missing to 100% lies in components of next to none, as of "
        "pixels that are nearly always black."
    )
    with styled_pyplot() as plt:
        size = (WIDTH, HEIGHT * len(panels))
        figure, axes = plt.subplots(len(panels), 2, figsize=size, squeeze=False, layout="constrained")
        for (left, right), (title, spectra) in zip(axes, panels.items(), strict=True):
            left.set_title(title, loc="left")
            _draw_panels(left, right, spectra, results.experiment.table.reference, plt.get_cmap("viridis"))
        return [FigureFile("spectra", caption, render(figure, file_format))]


def spectrum_record(results: Results, run: Run) -> MeasurementRecord | None:
    """Return the record of the first spectrum of a run at the experiment's evaluation."""
    names = [name for name, options in results.experiment.measurements.items() if options.kind == "spectrum"]
    return next((record for name in names if (record := run.measurements.get((name, "")))), None)


def mean_spectra(results: Results) -> dict[str, dict[str, Spectrum]]:
    """Return the mean over the seeds by title of the row of panels and label of the curve."""
    key = str(results.experiment.table.x)
    panels: dict[str, dict[str, Spectrum]] = {}
    for block in results.blocks:
        title = ", ".join(describe_keys({name: value for name, value in block.where.items() if name != key}))
        x = describe_keys({name: value for name, value in block.where.items() if name == key})
        for arm in block.arms:
            spectra = [
                arrays
                for run in block.runs
                if run.arm == arm
                and (record := spectrum_record(results, run))
                and (arrays := run.store.measurement_arrays(run.cell_id, record.measurement_id))
            ]
            if spectra:
                panels.setdefault(title, {})[", ".join([arm, *x])] = {
                    name: np.mean([s[name] for s in spectra], axis=0) for name in ("variance", "gain", "energy")
                }
    return panels


def running_mean(values: Floats) -> Floats:
    """Return the geometric running mean over WINDOW components."""
    window = min(WINDOW, len(values))
    logs = np.log(np.maximum(values, np.finfo(np.float64).tiny))
    return np.asarray(np.exp(np.convolve(logs, np.ones(window) / window, mode="valid")))


def _draw_panels(left: Axes, right: Axes, spectra: dict[str, Spectrum], reference: str, colours: Colormap) -> None:
    """Gain and energy of every label; the reference is dashed and black, above what it coincides with."""
    palette = iter(colours(np.linspace(0.0, 0.85, len(spectra))))
    for label, spectrum in spectra.items():
        is_reference = label == reference
        colour = "black" if is_reference else next(palette)
        line, zorder = ("--", 3) if is_reference else ("-", 2)
        used = spectrum["variance"] > NEGLIGIBLE * spectrum["variance"][0]
        variance, gain = spectrum["variance"][used], running_mean(spectrum["gain"][used])
        left.plot(running_mean(variance), gain / gain[0], line, color=colour, linewidth=1.3, label=label, zorder=zorder)
        energy = spectrum["energy"][used]
        cumulative = 100 * np.cumsum(energy[::-1])[::-1] / spectrum["energy"].sum()
        right.plot(variance, cumulative, line, color=colour, linewidth=1.3, label=label, zorder=zorder)
    left.set_ylabel("gain, relative")
    left.set_yscale("log")
    right.set_ylabel("energy at or below, %")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.invert_xaxis()
        axes.set_xlabel("variance of the component, pixels squared")
        axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
        hide_spines(axes)
    right.legend(frameon=False, fontsize=8)

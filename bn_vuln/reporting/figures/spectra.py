"""The mechanism: what a network amplifies of its input, and where its boundary's energy lies, by variance."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln.reporting.aggregate import Results
from bn_vuln.reporting.figures.style import GREY, HEIGHT, STYLE, WIDTH, Drawn, hide_spines, pyplot, save
from bn_vuln.reporting.results import Run
from bn_vuln.reporting.tables import words

WINDOW = 9  # components averaged for a point of a curve
NEGLIGIBLE = 1e-9  # of the largest variance: components of pixels that are always black
Spectrum = dict[str, NDArray[np.float64]]


def figure(results: Results, form: str) -> list[Drawn]:
    """One row of panels for each value of the other row keys: gain, and cumulative energy, against the variance."""
    groups = _groups(results)
    if not groups:
        return []
    plt = pyplot()
    with plt.rc_context(STYLE):
        size = (WIDTH, HEIGHT * len(groups))
        drawing, axes = plt.subplots(len(groups), 2, figsize=size, squeeze=False, layout="constrained")
        for (left, right), (title, spectra) in zip(axes, groups.items(), strict=True):
            _panels(left, right, title, spectra, results.experiment.table.reference, plt)
        return [("spectra", _caption(results), save(plt, drawing, form))]


def _caption(results: Results) -> str:
    names = {name for name, options in results.experiment.measurements.items() if options.kind == "spectrum"}
    n = len({run.cell.seed for block in results.blocks for run in block.runs if names & run.measurements.keys()})
    return (
        f"Along the principal components of the training images, mean over n = {n} {'seed' if n == 1 else 'seeds'}. "
        "Left: gain, the RMS change of the logits for a step of length 1 along a component, relative to that along the "
        f"first ones (running mean of {WINDOW} components). Right: share of the margin gradient's energy in the "
        "components of at most that variance; what is missing to 100% lies in components of next to none, as of "
        "pixels that are nearly always black."
    )


def _spectrum(results: Results, run: Run) -> Spectrum:
    for name, options in results.experiment.measurements.items():
        if options.kind == "spectrum" and (record := run.measurements.get(name)):
            return run.store.measurement_arrays(run.cell_id, record.measurement_id)
    return {}


def _groups(results: Results) -> dict[str, dict[str, Spectrum]]:
    """title of the row of panels -> label of the curve -> spectrum, the mean over the seeds."""
    key = str(results.experiment.table.x)
    groups: dict[str, dict[str, Spectrum]] = {}
    for block in results.blocks:
        title = ", ".join(words({name: value for name, value in block.where.items() if name != key}))
        own = words({name: value for name, value in block.where.items() if name == key})
        for arm in block.arms:
            spectra = [s for run in block.runs if run.arm == arm and (s := _spectrum(results, run))]
            if spectra:
                groups.setdefault(title, {})[", ".join([arm, *own])] = {
                    name: np.mean([s[name] for s in spectra], axis=0) for name in ("variance", "gain", "energy")
                }
    return groups


def _panels(left: Any, right: Any, title: str, spectra: dict[str, Spectrum], reference: str, plt: Any) -> None:
    """Gain and energy of every label; the reference is dashed and black, above what it coincides with."""
    colours = plt.get_cmap("viridis")(np.linspace(0.0, 0.85, len(spectra)))
    number = 0
    for label, spectrum in spectra.items():
        is_reference = label == reference
        colour = "black" if is_reference else colours[number]
        number += not is_reference
        style = {"color": colour, "linestyle": "--" if is_reference else "-", "linewidth": 1.3, "label": label}
        style["zorder"] = 3 if is_reference else 2
        used = spectrum["variance"] > NEGLIGIBLE * spectrum["variance"][0]
        variance, gain = spectrum["variance"][used], _smooth(spectrum["gain"][used])
        left.plot(_smooth(variance), gain / gain[0], **style)
        energy = spectrum["energy"][used]
        right.plot(variance, 100 * np.cumsum(energy[::-1])[::-1] / spectrum["energy"].sum(), **style)
    left.set_ylabel("gain, relative")
    left.set_yscale("log")
    right.set_ylabel("energy at or below, %")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.invert_xaxis()
        axes.set_xlabel("variance of the component, pixels squared")
        axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
        hide_spines(axes)
    left.set_title(title, loc="left")
    right.legend(frameon=False, fontsize=8)


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Geometric running mean over WINDOW components."""
    window = min(WINDOW, len(values))
    logs = np.log(np.maximum(values, np.finfo(np.float64).tiny))
    return np.asarray(np.exp(np.convolve(logs, np.ones(window) / window, mode="valid")))

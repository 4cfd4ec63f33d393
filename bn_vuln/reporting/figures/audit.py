"""Figures of an audit: the accuracy along eps, and what is measured of each normalization layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bn_vuln.auditing.findings import Findings
from bn_vuln.reporting.audit_numbers import half_eps_text, headline, short_names
from bn_vuln.reporting.figures.style import ARM_STYLES, GREY, STYLE, hide_spines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = 5.2, 3.3  # inches; legible on a phone, where it is scaled to two thirds
PANELS = {
    "amplification": "amplification",
    "through": "through the layer",
    "low_variance_share": "low-variance channels' share",
    "statistics_distance": "distance of the statistics",
}


def figures(findings: Findings) -> dict[str, Figure]:
    """Draw the figures that there are numbers for: `curve` and `layers`."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        drawn = {"curve": _curve(findings), "layers": _layers(findings)}
    return {name: figure for name, figure in drawn.items() if figure}


def _curve(findings: Findings) -> Figure | None:
    """Accuracies along eps with their intervals, the clean accuracy, and where half of it is left."""
    from matplotlib.figure import Figure

    if not any(model.curve for model in findings.models):
        return None
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log", base=2)
    scale = 255 if findings.ord == "inf" else 1
    eps = sorted({scale * point.eps for model in findings.models for point in model.curve if point.eps > 0})
    for i, (model, name) in enumerate(zip(findings.models, short_names(findings), strict=True)):
        colour, marker = ARM_STYLES[i]
        points = [point for point in model.curve if point.eps > 0]
        x = [scale * point.eps for point in points]
        low, high = ([100 * getattr(point.accuracy, end) for point in points] for end in ("low", "high"))
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        y = [100 * point.accuracy.value for point in points]
        axes.plot(x, y, color=colour, marker=marker, markersize=4, linewidth=1.6, label=name, clip_on=False)
        clean = headline(findings, model)["clean"]
        if clean and points:
            level = 100 * clean.accuracy.value
            axes.axhline(level, color=colour, linestyle="--", linewidth=1)
            if i == 0:
                axes.annotate("clean", (1, level), xycoords=("axes fraction", "data"), xytext=(0, 2),
                              textcoords="offset points", ha="right", color=colour)  # fmt: skip
            if model.half_eps is not None:
                half = scale * model.half_eps, level / 2
                axes.plot([x[0], half[0], half[0]], [half[1], half[1], 0], color=colour, linestyle=":", linewidth=1.2)
                if len(findings.models) == 1:
                    text = f"half at {half_eps_text(findings, model)}"
                    axes.annotate(text, half, xytext=(5, 4), textcoords="offset points", color=colour)
    shown = eps[:: 2 if len(eps) > 7 else 1]
    axes.set_xticks(shown, [f"1/{1 / x:g}" if 1 / x in (2, 4, 8, 16) else f"{x:.2g}" for x in shown], minor=False)
    axes.minorticks_off()
    axes.set_xlabel("L\N{INFINITY} eps, 1/255 of the pixel range" if scale == 255 else "L2 eps, pixels from 0 to 1")
    axes.set_ylabel("still classified correctly, %")
    axes.set_ylim(0, 102)
    axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
    _finish(axes, legend=len(findings.models) > 1)
    return figure


def _layers(findings: Findings) -> Figure | None:
    """What was measured of each layer along its place, one panel a number."""
    from matplotlib.figure import Figure

    layers = [layer for model in findings.models for layer in model.layers]
    shown = [field for field in PANELS if any(getattr(layer, field) is not None for layer in layers)]
    if not shown:
        return None
    figure = Figure(figsize=(2 * SIZE[0], 0.6 * SIZE[1] * len(shown)), layout="constrained")
    for field, axes in zip(shown, figure.subplots(len(shown), squeeze=False)[:, 0], strict=True):
        for i, (model, name) in enumerate(zip(findings.models, short_names(findings), strict=True)):
            colour, marker = ARM_STYLES[i]
            points = [(one.place, value) for one in model.layers if (value := getattr(one, field)) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=4, label=name)
        axes.set_ylabel(PANELS[field].replace(" ", "\n", 1))
        axes.set_ylim(bottom=0)
        axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
        _finish(axes, legend=len(findings.models) > 1)
    axes.set_xlabel("place of the normalization layer, from the input")
    return figure


def _finish(axes: Axes, *, legend: bool) -> None:
    """Take the frame away, and set names as they are: a dollar sign in them begins no formula."""
    hide_spines(axes)
    if legend:
        for text in axes.legend(frameon=False).get_texts():
            text.set_parse_math(False)

"""Figure 1: the plane with its points, the trained boundaries, and the points after batch normalization."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bn_vuln.analysis import closed_form, tilt
from bn_vuln.reporting.aggregate import Results
from bn_vuln.reporting.figures.style import ARM_STYLES, HEIGHT, WIDTH, FigureFile, hide_spines, render, styled_pyplot
from bn_vuln.typing import Arrays, Floats, Labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLASS_STYLES = (("#56B4E9", "o"), ("#E69F00", "s"))
MAX_POINTS = 150
BAYES_COLOUR = "black"
CAPTION = (
    "Left: the two classes and the boundaries of one seed; arrows are the directions of the weights, on axes of "
    f"equal scale. The Bayes solution is tilted by {closed_form.TOY.bayes_angle:.1f} degrees against the "
    "nearest-centroid direction, in closed form. Right: the same points as the batch-normalized classifier sees "
    "them."
)


def draw(results: Results, file_format: str) -> list[FigureFile]:
    """Draw points and boundaries of two classifiers of one seed.

    Left: points, boundaries and weights (arrows) without and with batch norm, beside the Bayes solution. Right: the
    same points and boundary after the normalization. Nothing where one of the two classifiers is missing.
    """
    pair = trained_pair(results)
    if pair is None:
        return []
    without_bn, with_bn = pair
    with styled_pyplot() as plt:
        figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 1.25 * HEIGHT), layout="constrained")
        _draw_inputs(axes[0], without_bn, with_bn)
        _draw_normalized(axes[1], with_bn)
        return [FigureFile("boundaries", CAPTION, render(figure, file_format))]


def trained_pair(results: Results) -> tuple[Arrays, Arrays] | None:
    """Return the measured arrays without BN and with the smallest c, of the first seed that has both."""
    by_seed: dict[int, dict[float, Arrays]] = {}
    for run in (run for block in results.blocks for run in block.runs):
        record = next((record for (_, at), record in run.measurements.items() if not at), None)
        arrays = run.store.measurement_arrays(run.cell_id, record.measurement_id) if record else {}
        if "points" in arrays:
            by_seed.setdefault(run.cell.seed, {})[getattr(run.cell.normalization, "c", np.inf)] = arrays
    complete = {seed: by_c for seed, by_c in by_seed.items() if np.inf in by_c and len(by_c) > 1}
    if not complete:
        return None
    by_c = complete[min(complete)]
    return by_c[np.inf], by_c[min(by_c)]


def _draw_inputs(axes: Axes, without_bn: Arrays, with_bn: Arrays) -> None:
    """Points and the three boundaries in the plane of the inputs."""
    _draw_points(axes, with_bn["points"], with_bn["labels"])
    for label, weights, bias, colour, style in (
        ("GD", without_bn["weights"], float(without_bn["bias"]), ARM_STYLES[0][0], "-"),
        ("BNGD", with_bn["weights"], float(with_bn["bias"]), ARM_STYLES[1][0], "-"),
        ("Bayes", closed_form.TOY.bayes_weights, 0.0, BAYES_COLOUR, ":"),
    ):
        angle = float(tilt.angle(weights, closed_form.TOY.centroid_weights))
        _draw_boundary(axes, weights, bias, colour, style, f"{label} ({angle:.1f} deg)")
    axes.set_xlim(-8.5, 8.5)
    axes.set_ylim(-5, 5)
    axes.set_aspect("equal")
    axes.set_xlabel("input 1 (between the classes)")
    axes.set_ylabel("input 2 (low variance)")
    axes.legend(frameon=False, loc="upper left", ncols=1)
    hide_spines(axes)


def _draw_normalized(axes: Axes, arrays: Arrays) -> None:
    """Points and boundary in normalized coordinates u = (x - mean) / scale: w x + b = (w scale) u + w mean + b."""
    mean, scale = arrays["mean"], arrays["scale"]
    _draw_points(axes, (arrays["points"] - mean) / scale, arrays["labels"])
    bias = float(arrays["bias"] + arrays["weights"] @ mean)
    _draw_boundary(axes, arrays["weights"] * scale, bias, ARM_STYLES[1][0], "-", "BNGD", length=1.5)
    axes.set_xlim(-3.2, 3.2)
    axes.set_ylim(-3.2, 3.2)
    axes.set_aspect("equal")
    axes.set_title("as batch norm shows them", loc="left")
    axes.set_xlabel("input 1, normalized")
    axes.set_ylabel("input 2, normalized")
    hide_spines(axes)


def _draw_points(axes: Axes, points: Floats, labels: Labels) -> None:
    for label, (colour, marker) in enumerate(CLASS_STYLES):
        shown = points[labels == label][:MAX_POINTS]
        axes.plot(*shown.T, linestyle="", marker=marker, markersize=3, color=colour, alpha=0.6)


def _draw_boundary(
    axes: Axes, weights: Floats, bias: float, colour: str, style: str, label: str, *, length: float = 3.0
) -> None:
    """The line w x + b = 0, and an arrow along w from its point nearest to the origin."""
    unit = weights / np.linalg.norm(weights)
    foot = -bias * weights / (weights @ weights)
    tip = foot + length * unit
    along = np.array([-unit[1], unit[0]])
    ends = np.stack([foot - 30 * along, foot + 30 * along])
    axes.plot(*ends.T, color=colour, linestyle=style, linewidth=1.4, label=label)
    arrow = {"arrowstyle": "->", "color": colour, "linewidth": 1.4}
    axes.annotate("", xy=(tip[0], tip[1]), xytext=(foot[0], foot[1]), arrowprops=arrow)

"""Figure 1: the plane with its points, the boundaries that were found, and the points as batch norm shows them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln.analysis import closed_form
from bn_vuln.config import EVALUATION_SEPARATOR
from bn_vuln.reporting.aggregate import Results
from bn_vuln.reporting.figures.style import ARM_STYLES, HEIGHT, STYLE, WIDTH, Drawn, hide_spines, pyplot, save
from bn_vuln.reporting.results import Run

Arrays = dict[str, NDArray[Any]]
CLASS_STYLES = (("#56B4E9", "o"), ("#E69F00", "s"))
MAX_POINTS = 150
EXACT = "black"


def figure(results: Results, form: str) -> list[Drawn]:
    """Left: points, boundaries and their weights (arrows) without and with batch norm, of the smallest seed and c,
    beside the Bayes solution. Right: the same points and boundary after the normalization."""
    plain, normalized = _arrays(results)
    if plain is None or normalized is None:
        return []
    plt = pyplot()
    with plt.rc_context(STYLE):
        drawing, axes = plt.subplots(1, 2, figsize=(WIDTH, 1.25 * HEIGHT), layout="constrained")
        _plane(axes[0], plain, normalized)
        _seen(axes[1], normalized)
        return [("boundaries", _caption(), save(plt, drawing, form))]


def _caption() -> str:
    return (
        "Left: the two classes and the boundaries of one seed; arrows are the directions of the weights, on axes of "
        f"equal scale. The Bayes solution is tilted by {closed_form.TOY.bayes_angle:.1f} degrees against the "
        "nearest-centroid direction, in closed form. Right: the same points as the batch-normalized classifier sees "
        "them."
    )


def _arrays(results: Results) -> tuple[Arrays | None, Arrays | None]:
    """What was measured of the run without BN and of the one with the smallest c, of the first seed that has both."""
    by_seed: dict[int, dict[float, Arrays]] = {}
    for run in (run for block in results.blocks for run in block.runs):
        arrays = _of(run)
        if "points" in arrays:
            by_seed.setdefault(run.cell.seed, {})[getattr(run.cell.normalization, "c", np.inf)] = arrays
    both = {seed: found for seed, found in by_seed.items() if np.inf in found and len(found) > 1}
    if not both:
        return None, None
    found = both[min(both)]
    return found[np.inf], found[min(found)]


def _of(run: Run) -> Arrays:
    record = next((record for name, record in run.measurements.items() if EVALUATION_SEPARATOR not in name), None)
    if record is None:
        return {}
    return run.store.measurement_arrays(run.cell_id, record.measurement_id)


def _plane(axes: Any, plain: Arrays, normalized: Arrays) -> None:
    _points(axes, normalized["points"], normalized["labels"])
    bayes = closed_form.TOY.bayes_weights
    for label, weights, bias, colour, style in (
        ("GD", plain["weights"], float(plain["bias"]), ARM_STYLES[0][0], "-"),
        ("BNGD", normalized["weights"], float(normalized["bias"]), ARM_STYLES[1][0], "-"),
        ("Bayes", bayes, 0.0, EXACT, ":"),
    ):
        angle = _angle(weights)
        _boundary(axes, weights, bias, colour, style, f"{label} ({angle:.1f} deg)")
    axes.set_xlim(-8.5, 8.5)
    axes.set_ylim(-5, 5)
    axes.set_aspect("equal")
    axes.set_xlabel("input 1 (between the classes)")
    axes.set_ylabel("input 2 (low variance)")
    axes.legend(frameon=False, loc="upper left", ncols=1)
    hide_spines(axes)


def _angle(weights: NDArray[Any]) -> float:
    from bn_vuln.analysis import tilt

    return float(tilt.angle(weights, closed_form.TOY.centroid_weights))


def _points(axes: Any, points: NDArray[Any], labels: NDArray[Any]) -> None:
    for label, (colour, marker) in enumerate(CLASS_STYLES):
        mine = points[labels == label][:MAX_POINTS]
        axes.plot(*mine.T, linestyle="", marker=marker, markersize=3, color=colour, alpha=0.6)


def _boundary(
    axes: Any, weights: NDArray[Any], bias: float, colour: str, style: str, label: str, *, length: float = 3.0
) -> None:
    """The line w x + b = 0, and an arrow along w from its point nearest to the origin."""
    unit = weights / np.linalg.norm(weights)
    foot = -bias * weights / (weights @ weights)
    along = np.array([-unit[1], unit[0]])
    ends = np.stack([foot - 30 * along, foot + 30 * along])
    axes.plot(*ends.T, color=colour, linestyle=style, linewidth=1.4, label=label)
    arrow = {"arrowstyle": "->", "color": colour, "linewidth": 1.4}
    axes.annotate("", xy=foot + length * unit, xytext=foot, arrowprops=arrow)


def _seen(axes: Any, arrays: Arrays) -> None:
    """In normalized coordinates u = (x - mean) / scale: w x + b = (w scale) u + w mean + b."""
    mean, scale = arrays["mean"], arrays["scale"]
    _points(axes, (arrays["points"] - mean) / scale, arrays["labels"])
    bias = float(arrays["bias"] + arrays["weights"] @ mean)
    _boundary(axes, arrays["weights"] * scale, bias, ARM_STYLES[1][0], "-", "BNGD", length=1.5)
    axes.set_xlim(-3.2, 3.2)
    axes.set_ylim(-3.2, 3.2)
    axes.set_aspect("equal")
    axes.set_title("as batch norm shows them", loc="left")
    axes.set_xlabel("input 1, normalized")
    axes.set_ylabel("input 2, normalized")
    hide_spines(axes)

"""Adversarial examples of the arms: the nearest ones to clean images, and fooling images that begin as noise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bn_vuln.config import Fooling, MinimumNorm
from bn_vuln.reporting.aggregate import Results
from bn_vuln.reporting.figures.style import WIDTH, FigureFile, render, styled_pyplot
from bn_vuln.reporting.results import Run
from bn_vuln.typing import Arrays, Images, Index

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS, CLASSES = 5, 10  # of each arm: examples, and fooling images at most
SHORT_UNITS = {"pixel": "pixels", "standardized": "std"}
UNITS = {"pixel": "pixels", "standardized": "standardized units"}
LARGEST = 1.2  # inches, of an image's side
TEXT = 6.5  # points, below images
ROWS = ("clean", "nearest", "change\nL2, {unit}")  # with the meaning of the text below the images
FOOLING = "fooling\nsteps"


@dataclass(frozen=True)
class ArmImages:
    """The images of one run; each kind is empty where it has none."""

    arm: str
    seed: int
    nearest: Arrays
    fooling: Arrays


def draw(results: Results, file_format: str) -> list[FigureFile]:
    """Draw one group of columns for each arm, of the first seed that has images of all.

    Clean images, the nearest adversarial examples, what was changed, and fooling images. Nothing where there is no
    image to show.
    """
    arms = images_by_arm(results)
    shown = shared_examples([arm.nearest for arm in arms if arm.nearest])
    classes = max((min(len(arm.fooling["images"]), CLASSES) for arm in arms if arm.fooling), default=0)
    if not len(shown) and not classes:
        return []
    columns = min(COLUMNS, max(len(shown), classes))
    fooling_rows = -(-classes // columns)
    rows = [row.format(unit=SHORT_UNITS[distance_unit(results)]) for row in ROWS] if len(shown) else []
    rows += [FOOLING] * fooling_rows
    side = min(WIDTH / (len(arms) * (columns + 0.5)), LARGEST)
    changes = [np.abs(_changes(arm.nearest, shown)).max(initial=0.0) for arm in arms if arm.nearest]
    scale = float(max(changes, default=0)) or 1.0
    with styled_pyplot() as plt:
        size = len(arms) * (columns + 0.5) * side, len(rows) * (side + 0.17) + 0.45
        figure = plt.figure(figsize=size, layout="constrained")
        groups = figure.subfigures(1, len(arms), squeeze=False)[0]
        for group, arm in zip(groups, arms, strict=True):
            group.suptitle(arm.arm)
            panels = group.subplots(len(rows), columns, squeeze=False)
            for panel in panels.flat:
                panel.set_axis_off()
            for panel, title in zip(panels[:, 0], rows, strict=True):
                position = {"rotation": 90, "ha": "right", "va": "center", "transform": panel.transAxes}
                panel.text(-0.08, 0.5, title, fontsize=TEXT, **position)
            _draw_arm(panels, panels[len(rows) - fooling_rows :].flat[:classes], arm, shown, scale)
        return [FigureFile("examples", caption(results, arms, len(shown)), render(figure, file_format))]


def caption(results: Results, arms: Sequence[ArmImages], n_examples: int) -> str:
    """Describe the rows of images that the figure has."""
    parts = []
    if n_examples:
        parts.append(
            "First row: clean images with their classes, the same for all arms: the first that all of them classify "
            "correctly and that the attack then succeeded on. Second: the nearest image found that the network takes "
            "for another class (below it). Third: what was changed (grey: nothing; one scale for all) and its L2 "
            f"distance in {UNITS[distance_unit(results)]}."
        )
    elif any(arm.nearest for arm in arms):
        parts.append(
            "Of the images that were kept none was classified correctly and then attacked with success in all arms."
        )
    if any(arm.fooling for arm in arms):
        options = next(o for o in results.experiment.measurements.values() if isinstance(o, Fooling))
        parts.append(
            "Last rows: fooling images, led from the same noise to each class: class, and steps to a confidence of "
            f"{100 * options.confidence:g}%, or the confidence after all {options.steps} steps where it was not "
            "reached."
        )
    return " ".join([*parts, f"n = 1: seed {arms[0].seed}."])


def distance_unit(results: Results) -> str:
    """Return the unit of the distances, a key of UNITS."""
    return next(o.unit for o in results.experiment.perturbations.values() if isinstance(o, MinimumNorm))


def images_by_arm(results: Results) -> list[ArmImages]:
    """Return the images of the first block and seed in which most arms have some."""
    candidates = []
    for block in results.blocks:
        for seed in sorted({run.cell.seed for run in block.runs}):
            runs = {run.arm: run for run in reversed(block.runs) if run.cell.seed == seed}
            arms = [ArmImages(arm, seed, nearest(results, runs[arm]), fooling(results, runs[arm]))
                    for arm in block.arms if arm in runs]  # fmt: skip
            candidates.append([arm for arm in arms if arm.nearest or arm.fooling])
    return max(candidates, key=len, default=[])


def nearest(results: Results, run: Run) -> Arrays:
    """Return the arrays of the first minimum-norm attack of a run: clean, adversarial, distance, labels, taken_for."""
    for name, options in results.experiment.perturbations.items():
        record = run.records.get((name, "")) if options.kind == "minimal" else None
        if record:
            arrays = run.store.arrays(run.cell_id, record.perturbation_id)
            return arrays if "adversarial" in arrays else {}
    return {}


def fooling(results: Results, run: Run) -> Arrays:
    """Return the arrays of the fooling images of a run: images, steps, confidence, reached."""
    for name, options in results.experiment.measurements.items():
        if options.kind == "fooling" and (record := run.measurements.get((name, ""))):
            return run.store.measurement_arrays(run.cell_id, record.measurement_id)
    return {}


def shared_examples(arms: Sequence[Arrays]) -> Index:
    """Return the first examples, COLUMNS at most, of which every arm has an adversarial one."""
    count = min((len(arrays["clean"]) for arrays in arms), default=0)
    distances = [arrays["distance"][:count] for arrays in arms]
    is_adversarial = np.array([(d > 0) & np.isfinite(d) for d in distances], np.bool_).reshape(len(arms), count)
    return np.flatnonzero(is_adversarial.all(axis=0))[:COLUMNS]


def _draw_arm(
    panels: Sequence[Sequence[Axes]], fooling_panels: Iterable[Axes], arm: ArmImages, shown: Index, scale: float
) -> None:
    """Clean images over their adversarial examples and the differences of the two; fooling images, one a class.

    Below a fooling image are the steps that it took, or its confidence where they were not enough.
    """
    arrays = arm.nearest
    changes = 0.5 + 0.5 * _changes(arrays, shown) / scale if arrays else ()
    for column, (example, change) in enumerate(zip(shown, changes, strict=False)):
        _draw_image(panels[0][column], arrays["clean"][example], f"{arrays['labels'][example]}")
        _draw_image(panels[1][column], arrays["adversarial"][example], f"{arrays['taken_for'][example]}")
        _draw_image(panels[2][column], change, f"{arrays['distance'][example]:.2f}")
    arrays = arm.fooling
    for number, (panel, image) in enumerate(zip(fooling_panels, arrays.get("images", ()), strict=False)):
        steps, confidence = arrays["steps"][number], 100 * float(arrays["confidence"][number])
        text = f"{number}: {steps}" if arrays["reached"][number] else f"{number}: {confidence:.0f}%"
        _draw_image(panel, image, text)


def _changes(arrays: Arrays, shown: Index) -> Images:
    return np.asarray(arrays["adversarial"][shown].astype(np.float32) - arrays["clean"][shown], np.float32)


def _draw_image(axes: Axes, image: Images, text: str) -> None:
    """Grey, or in colours, its pixels as squares."""
    pixels = np.clip(image.astype(np.float32), 0.0, 1.0)
    axes.imshow(
        pixels[..., 0] if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest"
    )
    axes.set_title(text, fontsize=TEXT, y=0, pad=-TEXT - 2)

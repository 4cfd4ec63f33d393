"""Images that fool the arms of an experiment: the nearest ones to clean images, and those that begin as noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln.config import Fooling, MinimumNorm
from bn_vuln.reporting.aggregate import Results
from bn_vuln.reporting.figures.style import STYLE, WIDTH, Drawn, pyplot, save
from bn_vuln.reporting.results import Block, Run

Arrays = dict[str, NDArray[Any]]
COLUMNS, CLASSES = 5, 10  # of each arm: examples, and fooling images at most
SHORT = {"pixel": "pixels", "standardized": "std"}
UNITS = {"pixel": "pixels", "standardized": "standardized units"}
LARGEST = 1.2  # inches, of an image's side
TEXT = 6.5  # points, below images
ROWS = ("clean", "nearest", "change\nL2, {unit}")  # with what stands below the images
FOOLING = "fooling\nsteps"


@dataclass(frozen=True)
class _Arm:
    """What one run has to show; empty where it has not."""

    name: str
    seed: int
    nearest: Arrays
    fooling: Arrays


def figure(results: Results, form: str) -> list[Drawn]:
    """One group of columns for each arm, of the first seed that has images of all: clean images, the nearest ones that
    fool, what was changed, and fooling images. Nothing where there is no image to show."""
    arms = _arms(results)
    shown = _shown([arm.nearest for arm in arms if arm.nearest])
    classes = max((min(len(arm.fooling["images"]), CLASSES) for arm in arms if arm.fooling), default=0)
    if not len(shown) and not classes:
        return []
    plt, columns = pyplot(), min(COLUMNS, max(len(shown), classes))
    fooling = -(-classes // columns)
    names = [*(row.format(unit=SHORT[_unit(results)]) for row in ROWS if len(shown)), *[FOOLING] * fooling]
    side = min(WIDTH / (len(arms) * (columns + 0.5)), LARGEST)
    with plt.rc_context(STYLE):
        size = len(arms) * (columns + 0.5) * side, len(names) * (side + 0.17) + 0.45
        drawing = plt.figure(figsize=size, layout="constrained")
        groups = drawing.subfigures(1, len(arms), squeeze=False)[0]
        scale = max((np.abs(_changes(arm.nearest, shown)).max(initial=0.0) for arm in arms if arm.nearest), default=0)
        for group, arm in zip(groups, arms, strict=True):
            group.suptitle(arm.name)
            axes = group.subplots(len(names), columns, squeeze=False)
            for one in axes.flat:
                one.set_axis_off()
            _name_rows(axes, names)
            if arm.nearest and len(shown):
                _nearest(axes, arm.nearest, shown, float(scale) or 1.0)
            if arm.fooling:
                _fooling(axes[len(names) - fooling :], arm.fooling)
        return [("examples", _caption(results, arms, len(shown)), save(plt, drawing, form))]


def _caption(results: Results, arms: Sequence[_Arm], shown: int) -> str:
    parts = []
    if shown:
        parts.append(
            "First row: clean images with their classes, the same for all arms: the first that all of them classify "
            "correctly and that were then fooled. Second: the nearest image found that the network takes for another "
            "class (below it). Third: what was changed (grey: nothing; one scale for all) and its L2 distance in "
            f"{UNITS[_unit(results)]}."
        )
    elif any(arm.nearest for arm in arms):
        parts.append("Of the images that were kept none was classified correctly and then fooled in all arms.")
    if any(arm.fooling for arm in arms):
        asked = _asked(results)
        parts.append(
            "Last rows: fooling images, led from the same noise to each class: class, and steps to a confidence of "
            f"{100 * asked.confidence:g}%, or the confidence after all {asked.steps} steps where it was not reached."
        )
    return " ".join([*parts, f"n = 1: seed {arms[0].seed}."])


def _unit(results: Results) -> str:
    """Of the distances; in words in `UNITS`."""
    return next(o.unit for o in results.experiment.perturbations.values() if isinstance(o, MinimumNorm))


def _asked(results: Results) -> Fooling:
    """The settings of the fooling images."""
    return next(o for o in results.experiment.measurements.values() if isinstance(o, Fooling))


def _arms(results: Results) -> list[_Arm]:
    """Those of the first block and seed in which most arms have images."""
    candidates = [
        [arm for name in block.arms if (arm := _arm(results, block, name, seed)) is not None]
        for block in results.blocks
        for seed in sorted({run.cell.seed for run in block.runs})
    ]
    return max(candidates, key=len, default=[])


def _arm(results: Results, block: Block, name: str, seed: int) -> _Arm | None:
    run = next((run for run in block.runs if run.arm == name and run.cell.seed == seed), None)
    if run is None:
        return None
    arm = _Arm(name, seed, _nearest_of(results, run), _fooling_of(results, run))
    return arm if arm.nearest or arm.fooling else None


def _nearest_of(results: Results, run: Run) -> Arrays:
    """The arrays of its first minimum-norm attack."""
    for name, options in results.experiment.perturbations.items():
        record = run.records.get(name) if options.kind == "minimal" else None
        if record:
            arrays = run.store.arrays(run.cell_id, record.perturbation_id)
            return arrays if "adversarial" in arrays else {}
    return {}


def _fooling_of(results: Results, run: Run) -> Arrays:
    for name, options in results.experiment.measurements.items():
        if options.kind == "fooling" and (record := run.measurements.get(name)):
            return run.store.measurement_arrays(run.cell_id, record.measurement_id)
    return {}


def _shown(arms: Sequence[Arrays]) -> NDArray[np.int64]:
    """The first examples that something was found for, in all arms that have images."""
    if not arms:
        return np.arange(0)
    count = min(len(arrays["clean"]) for arrays in arms)
    distances = np.stack([arrays["distance"][:count] for arrays in arms])
    return np.flatnonzero(((distances > 0) & np.isfinite(distances)).all(axis=0))[:COLUMNS]


def _changes(arrays: Arrays, shown: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.asarray(arrays["adversarial"][shown].astype(np.float32) - arrays["clean"][shown], np.float32)


def _nearest(axes: Any, arrays: Arrays, shown: NDArray[np.int64], scale: float) -> None:
    changes = _changes(arrays, shown)
    for column, example in enumerate(shown):
        _draw(axes[0, column], arrays["clean"][example], f"{arrays['labels'][example]}")
        _draw(axes[1, column], arrays["adversarial"][example], f"{arrays['taken_for'][example]}")
        _draw(axes[2, column], 0.5 + 0.5 * changes[column] / scale, f"{arrays['distance'][example]:.2f}")


def _name_rows(axes: Any, names: Sequence[str]) -> None:
    for one, name in zip(axes[:, 0], names, strict=True):
        place = {"rotation": 90, "ha": "right", "va": "center", "transform": one.transAxes}
        one.text(-0.08, 0.5, name, fontsize=TEXT, **place)


def _fooling(axes: Any, arrays: Arrays) -> None:
    for number, (place, image) in enumerate(zip(axes.flat, arrays["images"][:CLASSES], strict=False)):
        steps, confidence = arrays["steps"][number], 100 * float(arrays["confidence"][number])
        _draw(place, image, f"{number}: {steps}" if arrays["reached"][number] else f"{number}: {confidence:.0f}%")


def _draw(axes: Any, image: NDArray[Any], text: str) -> None:
    """Grey, or in colours, its pixels as squares."""
    pixels = np.clip(image.astype(np.float32), 0.0, 1.0)
    axes.imshow(
        pixels[..., 0] if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest"
    )
    axes.set_title(text, fontsize=TEXT, y=0, pad=-TEXT - 2)

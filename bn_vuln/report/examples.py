"""Images that fool the arms of an experiment: the nearest ones to clean images, and those that begin as noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln import records
from bn_vuln.aggregate import Results
from bn_vuln.report.drawing import STYLE, WIDTH, Drawn, pyplot, save
from bn_vuln.table import Block, Run

Arrays = dict[str, NDArray[Any]]
COLUMNS, CLASSES = 5, 10  # of each arm: examples, and fooling images at most
TEXT = 6.5  # points, below images
ROWS = ("clean", "nearest", "change")


@dataclass(frozen=True)
class _Arm:
    """What one run has to show; empty where it has not."""

    name: str
    nearest: Arrays
    fooling: Arrays


def figure(results: Results, form: str) -> list[Drawn]:
    """One group of columns for each arm, of the first seed that has images of all: clean images, the nearest ones that
    fool, what was changed, and fooling images."""
    arms = _arms(results)
    if not arms:
        return []
    plt, shown = pyplot(), _shown([arm.nearest for arm in arms if arm.nearest])
    fooling = max((-(-min(len(arm.fooling["images"]), CLASSES) // COLUMNS) for arm in arms if arm.fooling), default=0)
    names = [*(ROWS if len(shown) else ()), *["fooling"] * fooling]
    side = WIDTH / (len(arms) * (COLUMNS + 0.5))
    with plt.rc_context(STYLE):
        drawing = plt.figure(figsize=(WIDTH, len(names) * (side + 0.17) + 0.45), layout="constrained")
        groups = drawing.subfigures(1, len(arms), squeeze=False)[0]
        scale = max((np.abs(_changes(arm.nearest, shown)).max(initial=0.0) for arm in arms if arm.nearest), default=0)
        for group, arm in zip(groups, arms, strict=True):
            group.suptitle(arm.name)
            axes = group.subplots(len(names), COLUMNS, squeeze=False)
            for one in axes.flat:
                one.set_axis_off()
            if arm is arms[0]:
                _name_rows(axes, names)
            if arm.nearest:
                _nearest(axes, arm.nearest, shown, float(scale) or 1.0)
            if arm.fooling:
                _fooling(axes[len(names) - fooling :], arm.fooling)
        return [("examples", _caption(results, arms, len(shown)), save(plt, drawing, form))]


def _caption(results: Results, arms: Sequence[_Arm], shown: int) -> str:
    parts = []
    if shown:
        parts.append(
            "First row: clean test images, the same for all arms. Second: the nearest image that the network takes for "
            "another class (below it). Third: what was changed (grey: nothing; one scale for all), and its L2 distance."
        )
    asked = [options.confidence for options in results.experiment.measurements.values() if options.kind == "fooling"]
    if asked and any(arm.fooling for arm in arms):
        parts.append(
            "Last rows: fooling images, from the same noise to each class: class, steps, and the confidence in it "
            f"({100 * asked[0]:g}% was asked for)."
        )
    return " ".join([*parts, "One seed."])


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
    arm = _Arm(name, _nearest_of(results, run), _fooling_of(results, run))
    return arm if arm.nearest or arm.fooling else None


def _nearest_of(results: Results, run: Run) -> Arrays:
    """The arrays of its first minimum-norm attack."""
    for name, record in run.found.items():
        path = records.outcomes_path(run.folder, record.perturbation_id)
        if results.experiment.perturbations[name].kind == "minimal" and path.exists():
            arrays = records.read_arrays(path)
            return arrays if "adversarial" in arrays else {}
    return {}


def _fooling_of(results: Results, run: Run) -> Arrays:
    for name, record in run.measured.items():
        if results.experiment.measurements[name].kind == "fooling":
            return records.read_arrays(records.measurement_path(run.folder, record.measurement_id))
    return {}


def _shown(arms: Sequence[Arrays]) -> NDArray[np.int64]:
    """The first examples that something was found for, in all arms."""
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
        _draw(place, image, f"{number}: {steps}, {confidence:.0f}%")


def _draw(axes: Any, image: NDArray[Any], text: str) -> None:
    """Grey, or in colours, its pixels as squares."""
    pixels = np.clip(image.astype(np.float32), 0.0, 1.0)
    axes.imshow(
        pixels[..., 0] if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest"
    )
    axes.set_title(text, fontsize=TEXT, y=0, pad=-TEXT - 2)

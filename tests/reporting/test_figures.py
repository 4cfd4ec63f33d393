"""Figures of made-up records and arrays."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers_records import Accuracy, Arrays, fill, never, no_arrays, nothing, small, wobble
from numpy.typing import NDArray

from bn_vuln.analysis import closed_form, meanfield
from bn_vuln.config import Cell, Experiment
from bn_vuln.config.grid import check_layout, expand
from bn_vuln.errors import ConfigError
from bn_vuln.reporting import figures
from bn_vuln.reporting.aggregate import Results, aggregate
from bn_vuln.reporting.figures import boundaries, curves, differences, eps_curves, examples, heatmaps, matrix, spectra
from bn_vuln.reporting.figures.style import ARM_STYLES, FigureFile, render, styled_pyplot
from bn_vuln.reporting.pages import claims_table, html, write
from bn_vuln.reporting.tables import describe_keys

MINUS = "\N{MINUS SIGN}"
CROSS = "\N{MULTIPLICATION SIGN}"
N = 10_000
BN = [{"name": "batch", "c": 1e-5}, {"name": "batch", "c": 0.1}, {"name": "batch", "c": 10.0}]
BLUE, RED, GREEN = (colour for colour, _ in ARM_STYLES[:3])


def number(cell: Cell, column: str) -> float:
    """Numbers of all columns, with a spread over the seeds: they grow with c."""
    own = getattr(cell.normalization, "c", 1.0)
    scale = {"clean": 0.9, "bim": 0.5, "bim.loss": 2.0, "tilt": 40.0, "spectrum": 0.3}.get(column, 1.0)
    return scale * (1 + math.log10(own) / 100) * (1 + wobble(cell))


CURVES: dict[str, Any] = {
    "grid": {"normalization": ["none", *BN]},
    "measurements": {"tilt": {"kind": "tilt"}},
    "table": {
        "rows": ["normalization.c"],
        "columns": {"clean": "clean", "bim.loss": "BIM loss", "tilt": "angle"},
        "figures": ["curves"],
        "x": "normalization.c",
    },
    "claims": [],
}
PLANE: dict[str, Any] = {
    **CURVES,
    "base": {"data": {"name": "toy"}, "arch": {"name": "linear", "one_logit": True}},
    "seeds": [0, 1],
    "table": {**CURVES["table"], "columns": {"tilt": "angle"}, "figures": ["boundaries"]},
}
SPECTRA: dict[str, Any] = {
    **CURVES,
    "seeds": [0, 1],
    "measurements": {"spectrum": {"kind": "spectrum"}},
    "table": {**CURVES["table"], "columns": {"spectrum": "low-variance energy"}, "figures": ["spectra"]},
}
EXAMPLES: dict[str, Any] = {
    "grid": {"normalization": ["none", "batch"]},
    "seeds": [0, 1],
    "perturbations": {"clean": {"kind": "clean"}, "cw": {"kind": "minimal"}},
    "measurements": {"noise": {"kind": "fooling", "confidence": 0.9}},
    "table": {"columns": {"cw.distance": "distance", "noise": "steps"}, "figures": ["examples"]},
    "claims": [],
}
MATRIX: dict[str, Any] = {
    "table": {"rows": ["data.width"], "columns": {"clean": "clean", "bim": "BIM"}, "figures": ["matrix"]},
}
EPS_CURVES: dict[str, Any] = {
    "grid": {"data.width": [28, 56], "normalization": ["none", "batch"]},
    "perturbations": {
        "clean": {"kind": "clean"},
        "strong": {"kind": "attack", "attack": "strong", "eps": "16/255", "eps_grid": ["2/255", "8/255"]},
    },
    "table": {
        "rows": ["data.width"],
        "columns": {"strong": "16/255", "clean": "clean", "strong 8/255": "8/255", "strong 2/255": "2/255"},
        "figures": ["eps_curves"],
    },
    "claims": [],
}
DEPTHS, BATCH_SIZES = [10, 20, 30, 40, 50], [2, 5, 50, 250]
HEATMAPS: dict[str, Any] = {
    "base": {"arch": {"name": "deep"}, "train": {"epochs": 1}},
    "grid": {"arch.depth": DEPTHS, "train.batch_size": BATCH_SIZES, "normalization": ["none", "batch"]},
    "seeds": [0, 1],
    "table": {
        "rows": ["arch.depth", "train.batch_size"],
        "columns": {"clean": "clean", "bim": "BIM"},
        "figures": ["heatmaps"],
        "x": "train.batch_size",
        "y": "arch.depth",
    },
    "claims": [],
}


def rotated(vector: NDArray[np.float64], degrees: float) -> NDArray[np.float64]:
    turn = math.radians(degrees)
    return np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]) @ vector


def angle_of(cell: Cell) -> float:
    """Degrees to the nearest-centroid direction: none without batch norm, 60 with the smallest c."""
    return 60 / (1 + cell.normalization.c) if cell.normalization.name == "batch" else 0.0


def boundary(cell: Cell, name: str) -> dict[str, NDArray[Any]]:
    """Four points of two classes, and the boundary of a cell; of seed 1 it is elsewhere."""
    arrays: dict[str, NDArray[Any]] = {
        "points": np.array([[-5.0, 0.0], [5.0, 0.0], [-4.0, 0.25], [6.0, -0.25]], np.float32),
        "labels": np.array([0, 1, 0, 1], np.int32),
        "weights": rotated(closed_form.TOY.centroid_weights, angle_of(cell) + 90 * cell.seed),
        "bias": np.asarray(2.0),
    }
    return arrays | ({"mean": np.array([1.0, 0.0]), "scale": np.array([2.0, 0.5])} if angle_of(cell) else {})


COMPONENTS = 40


def spectrum(cell: Cell, name: str) -> dict[str, NDArray[Any]]:
    """Variances that fall by half, with two pixels that are always black; batch norm lifts the gain of the low ones.
    All energy of the seed 0 lies in the first component, that of the seed 1 in the second."""
    place = np.arange(COMPONENTS)
    variance = np.where(place < COMPONENTS - 2, 2.0**-place, 0.0)
    gain = np.full(COMPONENTS, 3.0) if cell.normalization.name == "none" else 3 * 2.0**place
    return {"variance": variance, "gain": gain, "energy": np.eye(COMPONENTS)[cell.seed]}


def nearest(cell: Cell, name: str) -> dict[str, NDArray[Any]]:
    """Eight images of 6 x 6 pixels and what fools a cell: of the first one nothing does without batch norm, the second
    is misclassified when clean. Or ten fooling images, of which the last one did not get there."""
    if name == "noise":
        return {
            "images": np.full((10, 6, 6, 1), 0.75, np.float16), "steps": np.arange(10, 30, dtype=np.int32),
            "confidence": np.full(20, 0.9625, np.float32), "reached": np.arange(20) != 9,
        }  # fmt: skip
    clean = np.linspace(0, 1, 8 * 36, dtype=np.float16).reshape(8, 6, 6, 1)
    change = 0.05 if cell.normalization.name == "batch" else 0.1
    distance = 6 * change + np.arange(10, dtype=np.float32) / 100
    distance[0], distance[1] = np.inf if cell.normalization.name == "none" else 1.0, 0.0
    adversarial = clean + np.float16(change) * np.float16(-1) ** np.arange(6)[:, None]
    labels = np.arange(8, dtype=np.int32)
    return {
        "clean": clean,
        "adversarial": adversarial,
        "distance": distance,
        "labels": labels,
        "taken_for": labels + 90,
    }


ARRAYS: dict[str, Arrays] = {
    "curves": no_arrays,
    "boundaries": boundary,
    "spectra": spectrum,
    "heatmaps": no_arrays,
    "matrix": no_arrays,
    "examples": nearest,
    "eps_curves": no_arrays,
}
KINDS: dict[str, tuple[dict[str, Any], ModuleType]] = {
    "curves": (CURVES, curves),
    "boundaries": (PLANE, boundaries),
    "spectra": (SPECTRA, spectra),
    "heatmaps": (HEATMAPS, heatmaps),
    "matrix": (MATRIX, matrix),
    "examples": (EXAMPLES, examples),
    "eps_curves": (EPS_CURVES, eps_curves),
}


def results(root: Path, kind: str, values: Accuracy = number, **options: Any) -> Results:
    """Made-up results for a kind of figure; `changes` are fields of its experiment."""
    experiment = small(**{**KINDS[kind][0], **options.pop("changes", {})})
    return aggregate(experiment, fill(root, experiment, values, n=N, also=values, arrays=ARRAYS[kind], **options))


def texts(svg: bytes) -> list[str]:
    return ["".join(e.itertext()) for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("}text")]


def only(found: Results) -> FigureFile:
    """The only figure of an experiment as SVG."""
    (figure,) = figures.draw(found)
    return figure


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def found(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return results(tmp_path_factory.mktemp(kind), kind)


@pytest.fixture
def axes_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Results], list[Any]]]:
    """Draws the only figure of an experiment and gives its axes as matplotlib has them."""
    from matplotlib import pyplot

    kept: list[Any] = []

    def keep(figure: Any, file_format: str) -> bytes:
        kept.append(figure)
        return b"kept"

    for module in (differences, *(module for _, module in KINDS.values())):
        monkeypatch.setattr(module, "render", keep)

    def draw(found: Results) -> list[Any]:
        figures.draw(found)
        return list(kept[-1].axes)

    yield draw
    for figure in kept:
        pyplot.close(figure)


def lines_of(axes: Any, **properties: str) -> list[NDArray[np.float64]]:
    """The points [n, 2] of the lines with these properties."""
    lines = [line for line in axes.lines if all(getattr(line, f"get_{k}")() == v for k, v in properties.items())]
    return [np.asarray(line.get_xydata()) for line in lines]


# ---------------------------------------------------------------- all kinds

LABELS = {
    # axes with their units, and the legend
    "curves": ["c", "clean, %", "BIM loss, nats", "angle, deg", "batch", "none"],
    "boundaries": [
        "input 1 (between the classes)", "input 2 (low variance)", "input 1, normalized", "input 2, normalized",
        "as batch norm shows them", "GD (0.0 deg)", "BNGD (60.0 deg)", "Bayes (78.7 deg)",
    ],
    "spectra": [
        "variance of the component, pixels squared", "gain, relative", "energy at or below, %",
        "none", "batch, c 1e-05", "batch, c 0.1", "batch, c 10",
    ],
    "examples": [
        "none", "batch", "2", "92", "0.32", "0.62", "6", "96", "0: 10", "9: 96%", "clean", "nearest", "L2, pixels",
        "fooling", "steps",
    ],
    "eps_curves": [
        "L\N{INFINITY} eps, 1/255 of the pixel range",
        "accuracy under strong, %", "difference, points", "width 28, none", "width 56, batch",
        f"width 28, batch {MINUS} none",
    ],
    "heatmaps": ["clean", "BIM", "batch size", "none", "batch", "depth", "accuracy, %", *map(str, BATCH_SIZES)],
    "matrix": ["clean", "BIM", "none", "batch", "width 28", "%"],
}  # fmt: skip
CAPTIONS = {
    "curves": "Along c: mean ± SEM, dots are single seeds, n = 4 seeds.",
    "boundaries": "The Bayes solution is tilted by 78.7 degrees",
    "spectra": "mean over n = 2 seeds.",
    "examples": "confidence of 90%, or the confidence after all 500 steps where it was not reached. n = 1: seed 0.",
    "eps_curves": "images: mean ± SEM, n = 4 seeds; differences are paired by seed.",
    "matrix": "Arms in rows, mean over seeds in %, n = 4 seeds; empty: not run.",
    "heatmaps": "n = 2 seeds; a grey cross: failed to train; empty: not run. Dashed: 16 / ln",
}


def test_a_figure_has_labels_a_legend_and_a_caption(found: Results, kind: str) -> None:
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    name, caption, svg = only(found)
    assert pyplot.get_fignums() == before  # none stays open
    assert name == kind.replace("_", "-")
    assert [label for label in LABELS[kind] if label not in texts(svg)] == []
    assert CAPTIONS[kind] in caption
    tags = {e.tag.rpartition("}")[2] for e in ElementTree.fromstring(svg).iter()}
    assert tags & {"script", "foreignObject"} == set()  # it loads nothing
    assert b"url(http" not in svg


@pytest.mark.slow
def test_the_svg_is_always_the_same_and_the_png_is_of_the_same_figure(found: Results) -> None:
    assert only(found) == only(found)
    ((name, caption, png),) = figures.draw(found, "png")
    assert (name, caption) == only(found)[:2]
    assert png.startswith(b"\x89PNG\r\n\x1a\n")


def two_panels(moved: float) -> bytes:
    """An SVG of two panels with an image and a line that goes beyond its panel, `moved` to the right."""
    with styled_pyplot() as plt:
        figure = plt.figure(figsize=(4, 2))
        for left in (0.1, 0.6):
            panel = figure.add_axes((left + moved, 0.1, 0.3, 0.8))
            panel.imshow(np.eye(3))
            panel.plot([-9, 9], [-9, 9], color="red")
            panel.set_xlim(0, 2)
        return render(figure, "svg")


def test_the_last_bits_of_a_layout_are_not_in_the_svg() -> None:
    """Layouts are solved in an order that depends on addresses in memory."""
    svg = two_panels(0.0)
    assert two_panels(1e-15) == svg
    assert two_panels(0.01) != svg
    defined, used = re.findall(rb'<clipPath id="(.+?)"', svg), re.findall(rb"url\(#(.+?)\)", svg)
    assert len(defined) == len(set(defined)) == 2
    assert set(used) == set(defined)


def test_without_records_or_the_numbers_of_its_columns_there_is_no_figure(tmp_path: Path) -> None:
    for kind, (fields, _) in KINDS.items():
        experiment = small(**fields)
        assert figures.draw(aggregate(experiment, tmp_path / kind)) == []
        fill(tmp_path / kind, experiment, nothing)
        assert figures.draw(aggregate(experiment, tmp_path / kind)) == []


def test_a_matrix_has_a_panel_for_each_metric(tmp_path: Path, axes_of: Callable[[Results], list[Any]]) -> None:
    columns = {"clean": "clean", "bim": "BIM", "clean.top5": "clean, top 5"}
    table = {**MATRIX["table"], "columns": columns}
    first, second, bar = axes_of(results(tmp_path, "matrix", changes={"table": table}))
    assert [panel.get_title(loc="left") for panel in (first, second)] == [
        "width 28, accuracy",
        "width 28, top-5 accuracy",
    ]
    assert [[label.get_text() for label in panel.get_xticklabels()] for panel in (first, second)] == [
        ["clean", "BIM"],
        ["clean, top 5"],
    ]
    assert bar.get_ylabel() == "%"


def test_figures_are_drawn_in_the_order_asked_for(tmp_path: Path) -> None:
    table = {**CURVES["table"], "figures": ["curves", "differences"], "columns": {"clean": "clean", "tilt": "angle"}}
    found = results(tmp_path, "curves", changes={"table": table})
    assert [(name, caption[:7]) for name, caption, _ in figures.draw(found)] == [
        ("curves", "Along c"),
        ("", "Accurac"),
    ]


def test_names_and_captions_reach_files_and_page(tmp_path: Path) -> None:
    found = results(tmp_path, "curves")
    name, caption, _ = only(found)
    assert [path.name for path in write(tmp_path, "md", only=found.experiment)] == [
        f"small-full-{name}.svg", f"small-full-{name}.png", "small-full.md",
    ]  # fmt: skip
    assert f"<figcaption>{caption}</figcaption>" in html([found])


def test_row_keys_are_described() -> None:
    where = {"arch.name": "mlp", "normalization.c": None, "data.width": None, "weight_decay": 0.01, "arch.one": "x"}
    assert describe_keys(where) == ["mlp", "width native", "weight decay 0.01", "x"]
    assert describe_keys(where, named=True) == ["model mlp", "width native", "weight decay 0.01", "arch.one x"]


def test_the_table_of_claims_links_the_page_of_an_experiment_with_overrides(tmp_path: Path) -> None:
    experiment = small(overrides=["seeds=[0]"], seeds=[0])
    folder = fill(tmp_path / "paper", experiment, number)
    write(folder, "md")
    (page,) = re.findall(r"\[small\]\((.+?)\)", claims_table([folder]))
    assert (tmp_path / page).exists()
    assert "width 28: batch" in claims_table([folder])


@pytest.mark.parametrize(
    ("kind", "table", "message"),
    [
        ("curves", {"x": "arch.name"}, "table.x: arch.name: expected numbers, received 'linear'"),
        ("heatmaps", {"y": "normalization.c"}, "table.y: normalization.c: expected numbers, received none in linear"),
        ("heatmaps", {}, "table.rows: heat maps have no place for several values of arch.name"),
    ],
)
def test_axes_without_numbers_are_refused_before_anything_is_trained(
    kind: str, table: dict[str, Any], message: str
) -> None:
    rows = ["arch.name", "normalization.c", "weight_decay", "train.lr"]
    layout = {"rows": rows, "columns": {"clean": "clean"}, "figures": [kind], "x": "weight_decay", "y": "train.lr"}
    grid = {"arch": ["linear", "mlp"], "normalization": ["none", *BN], "weight_decay": [0.0, 0.1]}
    experiment = small(grid=grid, table={**layout, **table}, claims=[])
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_layout(experiment, expand(experiment))


def test_an_axis_along_no_row_key_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'data\.widht' is not among table\.rows"):
        small(**{**CURVES, "table": {**CURVES["table"], "x": "data.widht"}})


@pytest.mark.parametrize(("kind", "key"), [("curves", "x"), ("heatmaps", "y")])
def test_without_the_row_keys_of_its_axes_there_is_no_figure(tmp_path: Path, kind: str, key: str) -> None:
    table = {**KINDS[kind][0]["table"], key: None}
    assert figures.draw(results(tmp_path, kind, changes={"table": table})) == []


# ---------------------------------------------------------------- curves


def test_curves_have_their_values_in_the_units_of_the_column(
    tmp_path: Path, axes_of: Callable[[Results], list[Any]]
) -> None:
    found = results(tmp_path, "curves")
    for axes, column, factor in zip(axes_of(found), ("clean", "bim.loss", "tilt"), (100, 1, 1), strict=True):
        means, dots = [], []
        for block in found.blocks[1:]:
            value, c = block.arms["batch"][column], block.where["normalization.c"]
            assert value.estimate is not None
            means.append((c, factor * value.estimate.mean))
            dots.append([(c, factor * own) for own in value.by_seed.values()])
        assert lines_of(axes, marker="o", color=BLUE)[0] == pytest.approx(np.array(means))
        for drawn, expected in zip(lines_of(axes, marker="."), dots, strict=True):
            assert drawn == pytest.approx(np.array(expected))
        assert axes.get_xscale() == "log"
        assert axes.get_yscale() == ("log" if column == "bim.loss" else "linear")


def test_the_arm_without_the_key_is_a_level(tmp_path: Path, axes_of: Callable[[Results], list[Any]]) -> None:
    found = results(tmp_path, "curves")
    value = found.blocks[0].arms["none"]["tilt"].estimate
    assert value is not None
    (level,) = lines_of(axes_of(found)[2], linestyle="--")
    assert level[:, 1] == pytest.approx([value.mean, value.mean])


def test_curves_of_several_rows_and_arms_have_the_colours_of_the_arms(
    tmp_path: Path, axes_of: Callable[[Results], list[Any]]
) -> None:
    changes = {
        "grid": {"arch": ["mlp", "linear"], "normalization": ["none", *BN]},
        "table": {**CURVES["table"], "rows": ["arch.name", "normalization.c"]},
    }
    found = results(tmp_path, "curves", changes=changes)
    (axes, *_) = axes_of(found)
    labels = set(axes.get_legend_handles_labels()[1])
    assert labels == {"mlp, none", "linear, none", "mlp, batch", "linear, batch"}
    assert [len(line) for line in lines_of(axes, marker="o", color=BLUE)] == [3]
    assert [len(line) for line in lines_of(axes, marker="s", color=RED)] == [3]
    assert [line.get_color() for line in axes.lines if line.get_linestyle() == "--"] == [BLUE, RED]


def test_the_caption_counts_seeds(tmp_path: Path) -> None:
    found = results(tmp_path, "curves", failed=lambda cell: cell.seed > 0 and angle_of(cell) > 50)
    assert "n = 1 to 4 seeds" in only(found).caption


def test_one_seed_is_drawn_without_error_bars_or_a_sem_in_the_caption(
    tmp_path: Path, axes_of: Callable[[Results], list[Any]]
) -> None:
    found = results(tmp_path, "curves", changes={"seeds": [0]})
    assert [len(line) for line in lines_of(axes_of(found)[0], marker="o")] == [3]
    caption = only(found).caption
    assert "n = 1 seed" in caption
    assert "±" not in caption


def test_labels_leave_out_what_a_row_has_not(tmp_path: Path, axes_of: Callable[[Results], list[Any]]) -> None:
    changes = {
        "grid": {"data.width": [28, 56], "normalization": ["none", BN[0]]},
        "table": {**CURVES["table"], "rows": ["data.width", "normalization.c"], "x": "data.width"},
    }
    (axes, *_) = axes_of(results(tmp_path, "curves", changes=changes))
    assert axes.get_legend_handles_labels()[1] == ["none", "c 1e-05, batch"]


def test_a_legend_of_long_labels_is_not_cut_off(tmp_path: Path, axes_of: Callable[[Results], list[Any]]) -> None:
    changes = {
        "grid": {"data.width": [28, 56], "weight_decay": [0.0, 0.01], "normalization": ["none", *BN]},
        "table": {**CURVES["table"], "rows": ["data.width", "weight_decay", "normalization.c"]},
    }
    drawing = axes_of(results(tmp_path, "curves", changes=changes))[0].figure
    drawing.draw_without_rendering()
    (legend,) = drawing.legends
    assert len(legend.get_texts()) == 8
    extent = legend.get_window_extent()
    assert drawing.bbox.x0 <= extent.x0 < extent.x1 <= drawing.bbox.x1


@pytest.mark.filterwarnings("error")
def test_curves_along_zero_alone(tmp_path: Path, axes_of: Callable[[Results], list[Any]]) -> None:
    changes = {
        "grid": {"weight_decay": [0.0], "normalization": ["none", "batch"]},
        "table": {**CURVES["table"], "rows": ["weight_decay"], "x": "weight_decay"},
    }
    for axes in axes_of(results(tmp_path, "curves", changes=changes)):
        low, high = axes.get_xlim()
        assert low < 0 < high
        assert list(axes.get_xticks()) == [0]


def test_a_column_without_numbers_has_no_panel(tmp_path: Path) -> None:
    found = results(tmp_path, "curves", lambda cell, name: None if name == "tilt" else number(cell, name))
    shown = texts(only(found).content)
    assert "clean, %" in shown
    assert "angle, deg" not in shown


# ---------------------------------------------------------------- boundaries


def test_the_boundaries_are_those_of_the_weights(tmp_path: Path, axes_of: Callable[[Results], list[Any]]) -> None:
    plane, normalized = axes_of(results(tmp_path, "boundaries"))
    for colour, weights in (
        (BLUE, closed_form.TOY.centroid_weights),
        (RED, rotated(closed_form.TOY.centroid_weights, 60 / (1 + 1e-5))),
    ):
        (line,) = lines_of(plane, color=colour)
        assert line @ weights + 2.0 == pytest.approx([0.0, 0.0], abs=1e-9)
        # The same line in normalized coordinates, x = u * scale + mean; only batch norm's is drawn there.
        for drawn in lines_of(normalized, color=colour):
            assert (drawn * [2.0, 0.5] + [1.0, 0.0]) @ weights + 2.0 == pytest.approx([0.0, 0.0], abs=1e-9)
    assert len(lines_of(normalized, color=BLUE)) == 0
    assert len(lines_of(normalized, color=RED)) == 1
    (bayes,) = lines_of(plane, linestyle=":")
    assert bayes @ closed_form.TOY.bayes_weights == pytest.approx([0.0, 0.0], abs=1e-9)


def test_the_points_and_how_batch_norm_shows_them(tmp_path: Path, axes_of: Callable[[Results], list[Any]]) -> None:
    plane, normalized = axes_of(results(tmp_path, "boundaries"))
    class_0, class_1 = lines_of(plane, linestyle="None")
    assert class_0 == pytest.approx(np.array([[-5, 0], [-4, 0.25]]))
    assert class_1 == pytest.approx(np.array([[5, 0], [6, -0.25]]))
    class_0, class_1 = lines_of(normalized, linestyle="None")
    assert class_0 == pytest.approx(np.array([[-3, 0], [-2.5, 0.5]]))
    assert class_1 == pytest.approx(np.array([[2, 0], [2.5, -0.5]]))


def test_the_boundaries_are_those_of_the_smallest_c_there_is(tmp_path: Path) -> None:
    found = results(tmp_path, "boundaries", missing=lambda cell: angle_of(cell) > 59)
    labels = [text for text in texts(only(found).content) if "BNGD" in text]
    assert labels == [f"BNGD ({60 / 1.1:.1f} deg)"]


def test_one_boundary_makes_no_figure(tmp_path: Path) -> None:
    found = results(tmp_path, "boundaries", missing=lambda cell: cell.normalization.name == "none")
    assert figures.draw(found) == []


def test_both_boundaries_are_those_of_one_seed(tmp_path: Path, axes_of: Callable[[Results], list[Any]]) -> None:
    absent = [("batch", 0)]
    found = results(tmp_path, "boundaries", missing=lambda cell: (cell.normalization.name, cell.seed) in absent)
    plane, _ = axes_of(found)
    (line,) = lines_of(plane, color=BLUE)
    assert line @ rotated(closed_form.TOY.centroid_weights, 90) + 2.0 == pytest.approx([0.0, 0.0], abs=1e-9)


# ---------------------------------------------------------------- spectra


def test_gain_and_energy_are_means_over_the_seeds(tmp_path: Path, axes_of: Callable[[Results], list[Any]]) -> None:
    left, right = axes_of(results(tmp_path, "spectra"))
    usable = 30  # components of more than 1e-9 of the largest variance: 2^-29 > 1e-9 > 2^-30
    points = usable - spectra.WINDOW + 1
    (flat,) = lines_of(left, linestyle="--")
    assert flat[:, 0] == pytest.approx(2.0 ** -(np.arange(points) + spectra.WINDOW // 2))
    assert flat[:, 1] == pytest.approx(np.ones(points))
    steep = lines_of(left, linestyle="-")
    assert len(steep) == 3
    for line in steep:
        assert line[:, 1] == pytest.approx(2.0 ** np.arange(points))
    for line in lines_of(right):
        # Half of the energy lies in the first component and half in the second.
        assert line[:, 0] == pytest.approx(2.0 ** -np.arange(usable))
        assert line[:, 1] == pytest.approx([100, 50, *[0] * (usable - 2)])
    assert all(axes.xaxis_inverted() and axes.get_xscale() == "log" for axes in (left, right))


def test_spectra_of_several_rows_are_rows_of_panels(tmp_path: Path) -> None:
    changes = {
        "grid": {"arch": ["mlp", "linear"], "normalization": ["none", *BN]},
        "table": {**SPECTRA["table"], "rows": ["arch.name", "normalization.c"]},
    }
    shown = texts(only(results(tmp_path, "spectra", changes=changes)).content)
    assert shown.count("gain, relative") == 2
    assert [text for text in shown if text in ("mlp", "linear")] == ["mlp", "linear"]


def test_the_caption_of_spectra_counts_seeds(tmp_path: Path) -> None:
    found = results(tmp_path, "spectra", missing=lambda cell: cell.seed == 1)
    assert "mean over n = 1 seed." in only(found).caption


def test_spectra_of_one_arm_alone(tmp_path: Path) -> None:
    found = results(tmp_path, "spectra", missing=lambda cell: cell.normalization.name == "none")
    assert "none" not in texts(only(found).content)


def test_the_reference_alone_is_dashed_and_lies_above(tmp_path: Path, axes_of: Callable[[Results], list[Any]]) -> None:
    """Also where the arms differ in nothing that is along x."""
    changes = {"grid": {"normalization": ["none", "batch"]}, "table": {**SPECTRA["table"], "rows": [], "x": None}}
    for axes in axes_of(results(tmp_path, "spectra", changes=changes)):
        reference, other = axes.lines
        assert (reference.get_label(), reference.get_linestyle(), reference.get_color()) == ("none", "--", "black")
        assert (other.get_label(), other.get_linestyle()) == ("batch", "-")
        assert reference.get_zorder() > other.get_zorder()


# ---------------------------------------------------------------- heat maps


def heat(cell: Cell, name: str) -> float:
    """Accuracies that tell every cell from every other one: .10 to .49."""
    place = DEPTHS.index(cell.arch.depth) * len(BATCH_SIZES) + BATCH_SIZES.index(cell.train.batch_size)  # type: ignore[union-attr]
    return 0.1 + 0.01 * place + (0.2 if cell.normalization.name == "batch" else 0.0)


def test_heat_maps_hold_the_means(tmp_path: Path, axes_of: Callable[[Results], list[Any]]) -> None:
    *panels, _ = axes_of(results(tmp_path, "heatmaps", heat))
    assert len(panels) == 4
    for panel, first in zip(panels, (10, 10, 30, 30), strict=True):
        expected = first + np.arange(20).reshape(len(DEPTHS), len(BATCH_SIZES))
        assert np.asarray(panel.images[0].get_array()) == pytest.approx(expected)
        assert panel.images[0].origin == "lower"
        assert [label.get_text() for label in panel.get_xticklabels()] == ["2", "5", "50", "250"]
        assert [label.get_text() for label in panel.get_yticklabels()] == ["10", "20", "30", "40", "50"]
        assert {(text.get_position(), text.get_text()) for text in panel.texts} == {
            ((i, j), f"{expected[j, i]:.0f}") for j in range(len(DEPTHS)) for i in range(len(BATCH_SIZES))
        }


def test_the_dashed_limit_is_that_of_mean_field_theory(tmp_path: Path, axes_of: Callable[[Results], list[Any]]) -> None:
    *panels, _ = axes_of(results(tmp_path, "heatmaps"))
    without, with_bn = panels[:2], panels[2:]
    assert [lines_of(panel) for panel in without] == [[], []]
    for panel in with_bn:
        (limit,) = lines_of(panel, linestyle="--", color="#D55E00")
        # The theory needs batches of more than 3; the depths of the rows are 10, 20, ... 50.
        assert limit[:, 0] == pytest.approx([1, 2, 3])
        assert limit[:, 1] == pytest.approx([(meanfield.depth_limit(b) - 10) / 10 for b in (5, 50, 250)])


def test_the_dashed_limit_stays_inside(tmp_path: Path, axes_of: Callable[[Results], list[Any]]) -> None:
    found = results(tmp_path, "heatmaps", changes={"grid": {**HEATMAPS["grid"], "arch.depth": [20, 30]}})
    *_, panel, _ = axes_of(found)
    (limit,) = lines_of(panel, linestyle="--")
    assert limit[:, 1] == pytest.approx([0, 1, 1])  # of 19.5, 39.4 and 41.3


def failing(cell: Cell) -> bool:
    """Trainings of 50 layers with batch norm fail, and one of two of 40 layers."""
    depth = cell.arch.depth if cell.arch.name == "deep" else 0
    return cell.normalization.name == "batch" and (depth == 50 or (depth == 40 and cell.seed == 0))


def test_failed_trainings_are_crossed_and_missing_ones_white(
    tmp_path: Path, axes_of: Callable[[Results], list[Any]]
) -> None:
    def missing(cell: Cell) -> bool:
        return cell.train.batch_size == 250 and not failing(cell)

    found = results(tmp_path, "heatmaps", heat, failed=failing, missing=missing)
    for panel in axes_of(found)[2:4]:
        marks = {text.get_position(): text.get_text() for text in panel.texts}
        assert {place for place, text in marks.items() if text == CROSS} == {
            *((i, 4) for i in range(4)),
            (3, 3),  # one failed, the other was not run
        }
        assert {place for place in np.ndindex(4, 5) if place not in marks} == {(3, 0), (3, 1), (3, 2)}
        assert marks[0, 3] == "42"  # the mean of what trained
        masked = np.ma.getmaskarray(panel.images[0].get_array())
        assert {(int(i), int(j)) for j, i in np.argwhere(masked)} == {
            *((i, 4) for i in range(4)),
            *((3, j) for j in range(4)),
        }


@pytest.mark.parametrize(
    ("failed", "missing", "arms"),
    [
        (lambda cell: cell.normalization.name == "batch", never, ["none", "batch"]),
        (never, lambda cell: cell.normalization.name == "none", ["batch"]),
    ],
)
def test_arms_that_were_run_have_a_row_of_panels(tmp_path: Path, failed: Any, missing: Any, arms: list[str]) -> None:
    shown = texts(only(results(tmp_path, "heatmaps", failed=failed, missing=missing)).content)
    assert [text for text in shown if text in ("none", "batch")] == arms
    assert shown.count("clean") == len(arms)


def test_other_heat_maps_have_no_line_of_the_theory(tmp_path: Path, axes_of: Callable[[Results], list[Any]]) -> None:
    changes = {
        "grid": {"data.width": [28, 56], "train.batch_size": [50, 250], "normalization": ["none", "batch"]},
        "base": {"train": {"epochs": 1}},
        "table": {**HEATMAPS["table"], "rows": ["data.width", "train.batch_size"], "y": "data.width"},
    }
    found = results(tmp_path, "heatmaps", changes=changes)
    assert [len(panel.lines) for panel in axes_of(found)[:4]] == [0, 0, 0, 0]
    assert figures.draw(found)[0][1].startswith("Accuracy over width and batch size, n = 2 seeds;")
    assert "Dashed" not in figures.draw(found)[0][1]


# ---------------------------------------------------------------- examples


def shown_in(axes: list[Any]) -> list[NDArray[np.float32]]:
    """The pixels of every panel that has an image, in the order of the panels."""
    return [np.asarray(one.images[0].get_array()) for one in axes if one.images]


def test_images_are_those_of_the_records(tmp_path: Path, axes_of: Callable[[Results], list[Any]]) -> None:
    drawn = shown_in(axes_of(results(tmp_path, "examples")))
    assert len(drawn) == 2 * (3 * 5 + 10)
    clean = np.linspace(0, 1, 8 * 36, dtype=np.float16).reshape(8, 6, 6)
    for first in (0, 25):  # of each arm: examples 2 to 6, for the others were not fooled by all arms
        assert np.stack(drawn[first : first + 5]) == pytest.approx(clean[2:7].astype(np.float32))
    sign = np.float32(-1) ** np.arange(6) * np.ones((6, 6), np.float32)
    assert drawn[5] == pytest.approx(np.clip(clean[2] + 0.1 * sign, 0, 1), abs=1e-3)
    # One scale of changes for the figure: the largest are black and white.
    assert drawn[10] == pytest.approx(0.5 + 0.5 * sign, abs=2e-3)
    assert drawn[25 + 10] == pytest.approx(0.5 + 0.25 * sign, abs=2e-3)
    assert np.stack(drawn[15:25]) == pytest.approx(0.75)


def test_an_arm_that_was_not_run_is_left_out(tmp_path: Path, axes_of: Callable[[Results], list[Any]]) -> None:
    found = results(tmp_path, "examples", missing=lambda cell: cell.normalization.name == "none")
    drawn = shown_in(axes_of(found))
    assert len(drawn) == 3 * 5 + 10
    first = np.linspace(0, 1, 8 * 36, dtype=np.float16).reshape(8, 6, 6)[0]
    assert drawn[0] == pytest.approx(first.astype(np.float32))  # fooled in the arm that there is


def test_the_seed_is_one_that_all_arms_have(tmp_path: Path) -> None:
    found = results(tmp_path, "examples", missing=lambda c: c.normalization.name == "none" and c.seed == 0)
    assert {"none", "batch"} <= set(texts(only(found).content))
    assert "n = 1: seed 1." in only(found).caption


def test_distances_are_in_the_unit_of_the_attack(tmp_path: Path) -> None:
    standardized = {"perturbations": {**EXAMPLES["perturbations"], "cw": {"kind": "minimal", "unit": "standardized"}}}
    _, caption, svg = only(results(tmp_path, "examples", changes=standardized))
    assert "L2 distance in standardized units." in caption
    assert "L2, std" in texts(svg)


def unfooled(cell: Cell, name: str) -> dict[str, NDArray[Any]]:
    """The same where nothing fools one of the arms."""
    arrays = nearest(cell, name)
    immune = name != "noise" and cell.normalization.name == "none"
    return {**arrays, "distance": np.full(10, np.inf, np.float32)} if immune else arrays


def test_without_an_example_that_all_arms_share_the_caption_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axes_of: Callable[[Results], list[Any]]
) -> None:
    monkeypatch.setitem(ARRAYS, "examples", unfooled)
    found = results(tmp_path, "examples")
    assert len(shown_in(axes_of(found))) == 2 * 10
    assert "none was classified correctly and then attacked with success in all arms" in only(found).caption


def test_without_any_image_to_show_nothing_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARRAYS, "examples", lambda cell, name: {} if name == "noise" else unfooled(cell, name))
    assert figures.draw(results(tmp_path, "examples")) == []


def test_few_images_take_few_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axes_of: Callable[[Results], list[Any]]
) -> None:
    """As of large images, of which few are kept."""

    def few(cell: Cell, name: str) -> dict[str, NDArray[Any]]:
        return {k: v[:4] if k in ("images", "clean", "adversarial") else v for k, v in nearest(cell, name).items()}

    monkeypatch.setitem(ARRAYS, "examples", few)
    axes = axes_of(results(tmp_path, "examples"))
    assert len(axes) == 2 * 4 * 4  # arms, rows, columns
    assert len(shown_in(axes)) == 2 * (3 * 2 + 4)


@pytest.mark.parametrize("absent", ["cw", "noise"])
def test_one_kind_of_images_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axes_of: Callable[[Results], list[Any]], absent: str
) -> None:
    arrays: Arrays = lambda cell, name: {} if name == absent else nearest(cell, name)  # noqa: E731
    monkeypatch.setitem(ARRAYS, "examples", arrays)
    found = results(tmp_path, "examples")
    assert len(shown_in(axes_of(found))) == 2 * (10 if absent == "cw" else 15)
    caption = only(found).caption
    assert ("fooling images" in caption) == (absent == "cw")
    assert ("First row" in caption) == (absent == "noise")


def test_coloured_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axes_of: Callable[[Results], list[Any]]
) -> None:
    def coloured(cell: Cell, name: str) -> dict[str, NDArray[Any]]:
        wanted = ("images", "clean", "adversarial")
        return {k: np.repeat(v, 3, axis=3) if k in wanted else v for k, v in nearest(cell, name).items()}

    monkeypatch.setitem(ARRAYS, "examples", coloured)
    assert {image.shape for image in shown_in(axes_of(results(tmp_path, "examples")))} == {(6, 6, 3)}


# ---------------------------------------------------------------- the default figures


def without_figures(**table: Any) -> Experiment:
    return small(measurements={"tilt": {"kind": "tilt"}}, table={"rows": ["data.width"], **table}, claims=[])


def test_a_table_without_accuracies_has_no_figure_of_them(tmp_path: Path) -> None:
    experiment = without_figures(columns={"tilt": "angle", "bim.loss": "loss"})
    found = aggregate(experiment, fill(tmp_path, experiment, number, also=number))
    assert figures.draw(found) == []


def test_angles_and_losses_are_left_out_of_the_figure_of_accuracies(tmp_path: Path) -> None:
    experiment = without_figures(columns={"tilt": "angle", "clean": "clean", "clean.loss": "loss"})
    found = aggregate(experiment, fill(tmp_path, experiment, number, also=number))
    shown = texts(only(found).content)
    assert "clean" in shown
    assert {"angle", "loss"} & set(shown) == set()
    assert f"batch {MINUS} none, points" in shown


def test_a_choice_has_the_figure_of_candidates(tmp_path: Path) -> None:
    experiment = small(
        grid={"train.lr": [0.1, 0.2], "normalization": ["none", "batch"]},
        table={
            "rows": ["train.lr"],
            "columns": {"clean": "clean", "bim": "BIM"},
            "figures": ["candidates"],
            "choice": {"by": "clean"},
        },
        claims=[],
    )
    found = aggregate(experiment, fill(tmp_path, experiment, number))
    assert "chosen" in texts(only(found).content)


def test_one_of_many_candidates_is_marked_within_its_panel(
    tmp_path: Path, axes_of: Callable[[Results], list[Any]]
) -> None:
    names = [f"p{i}" for i in range(6)]
    chosen = small(
        grid={"train.lr": [0.1, 0.2], "normalization": ["none", "batch"]},
        perturbations={name: {"kind": "clean"} for name in names},
        table={"rows": ["train.lr"], "columns": {name: name for name in names}, "select_by": "p0"},
        claims=[],
        seeds=[0],
    )
    found = aggregate(chosen, fill(tmp_path, chosen, lambda cell, name: cell.train.lr))
    assert "n = 1 seed" in figures.draw(found)[0][1]
    for panel in axes_of(found):
        panel.figure.draw_without_rendering()
        (ring,) = (line for line in panel.lines if line.get_label() == differences.CHOSEN)
        assert panel.bbox.containsx(ring.get_window_extent().x0)
        assert panel.bbox.containsx(ring.get_window_extent().x1)


def test_the_title_of_a_row_and_the_legend_do_not_overlap(
    tmp_path: Path, axes_of: Callable[[Results], list[Any]]
) -> None:
    title = "width 28, weight decay 0.01, learning rate 0.1, batch size 128"
    experiment = small(
        table={
            **small().table.model_dump(exclude_unset=True),
            "rows": ["data.width", "weight_decay", "train.lr", "train.batch_size"],
        },
        base={"train": {"epochs": 1, "lr": 0.1, "batch_size": 128}, "weight_decay": 0.01},
    )
    (left, _) = axes_of(aggregate(experiment, fill(tmp_path, experiment, number)))
    left.figure.draw_without_rendering()
    legend = left.get_legend()
    entries = [legend.get_title(), *legend.get_texts()]
    assert [entry.get_text() for entry in entries] == [title, "none (n = 4)", "batch (n = 4)"]
    assert left.get_title(loc="left") == ""
    boxes = [entry.get_window_extent() for entry in entries]
    assert [a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i]] == [False] * 3


# ---------------------------------------------------------------- eps_curves


def fragile(cell: Cell, column: str) -> float:
    """Accuracy falls by 2 points for each 255th, with batch norm by 4."""
    eps = {"clean": 0, "strong 2/255": 2, "strong 8/255": 8, "strong": 16}.get(column, 0)
    return 0.9 - (0.04 if cell.normalization.name == "batch" else 0.02) * eps + wobble(cell)


def test_a_robustness_curve_is_drawn_along_its_eps(tmp_path: Path, axes_of: Callable[[Results], list[Any]]) -> None:
    left, right = axes_of(results(tmp_path, "eps_curves", fragile))
    assert [bars.get_label() for bars in left.containers][:2] == ["width 28, none", "width 28, batch"]
    points = np.asarray(left.containers[0].lines[0].get_xydata())
    np.testing.assert_allclose(points[:, 0], [0, 2, 8, 16])
    np.testing.assert_allclose(points[:, 1], [90, 86, 74, 58], atol=3)
    harm = np.asarray(right.containers[0].lines[0].get_xydata())
    np.testing.assert_allclose(harm, [[0, 0], [2, -4], [8, -16], [16, -32]], atol=0.05)


def test_arms_and_differences_of_robustness_curves_have_colours_of_their_own(
    tmp_path: Path, axes_of: Callable[[Results], list[Any]]
) -> None:
    left, right = axes_of(results(tmp_path, "eps_curves", fragile))
    colours = [bars.lines[0].get_color() for axes in (left, right) for bars in axes.containers]
    assert len(colours) == len(set(colours)) == 4 + 2


def test_a_robustness_curve_without_records_is_not_drawn(tmp_path: Path) -> None:
    assert figures.draw(results(tmp_path, "eps_curves", lambda cell, name: None if name != "clean" else 0.9)) == []


def test_titles_that_would_overlap_stand_upright(tmp_path: Path) -> None:
    names = [f"p{i}" for i in range(12)]
    titles = {name: f"a title of letters {name}" for name in names}
    titles["p3"] = "a title of so many letters that a figure of the usual height had no place for it"
    chosen = small(
        perturbations={name: {"kind": "clean"} for name in names}, table={"columns": titles}, claims=[], seeds=[0]
    )
    fill(tmp_path, chosen, lambda cell, name: 0.5)
    shown = texts(only(aggregate(chosen, tmp_path)).content)
    assert set(titles.values()) - set(shown) == {titles["p3"]}  # only what is long is broken
    assert {"a title of so many", "letters that a figure of"} <= set(shown)

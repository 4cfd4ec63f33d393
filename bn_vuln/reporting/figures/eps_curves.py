"""Robustness curves: accuracy along the eps of an attack, and beside it what normalization costs at each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bn_vuln.analysis.statistics import Estimate
from bn_vuln.config import Attack, EvaluationPlan, describe_perturbation, with_eps_grid
from bn_vuln.reporting import footnotes
from bn_vuln.reporting.aggregate import Results
from bn_vuln.reporting.figures.style import (
    ARM_STYLES,
    GREY,
    HEIGHT,
    WIDTH,
    FigureFile,
    describe_means,
    hide_spines,
    legend_label,
    render,
    styled_pyplot,
)
from bn_vuln.reporting.tables import difference_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNITS = {"pixel": "1/255 of the pixel range", "standardized": "standardized"}
NORMS = {"inf": "L\N{INFINITY}", "2": "L2"}


def draw(results: Results, file_format: str) -> list[FigureFile]:
    """Draw one figure for each attack with an eps grid and each evaluation, of the eps that have records."""
    grids = [
        (plan, name, attack)
        for plan in results.experiment.plans
        for name, attack in plan.perturbations.items()
        if isinstance(attack, Attack) and attack.eps_grid
    ]
    figures = []
    for plan, name, attack in grids:
        parts = ["eps-curves", name, plan.name] if len(grids) > 1 else ["eps-curves"]
        content = _draw_attack(results, eps_by_column(results, plan, name, attack), attack, file_format)
        if content:
            figures.append(FigureFile("-".join(filter(None, parts)), caption(results, plan, attack), content))
    return figures


def eps_by_column(results: Results, plan: EvaluationPlan, name: str, attack: Attack) -> dict[str, float]:
    """Return the columns of an attack with their eps on the axis, in ascending order; clean images are at 0."""
    scale = 255.0 if attack.unit == "pixel" else 1.0
    grid = with_eps_grid({name: attack})
    eps: dict[str, float] = {}
    for key in results.experiment.table.columns:
        column = results.experiment.columns[key]
        options = grid.get(column.source)
        if column.at == plan.name and column.is_clean:
            eps[key] = 0.0
        elif column.at == plan.name and column.is_accuracy and isinstance(options, Attack):
            eps[key] = scale * options.eps
    return dict(sorted(eps.items(), key=lambda item: item[1]))


def caption(results: Results, plan: EvaluationPlan, attack: Attack) -> str:
    """Describe the attack, the images and the seeds behind a curve."""
    evaluation = plan.evaluation
    images = "all" if evaluation.limit is None else f"{evaluation.limit:,}"
    extra = f" ({footnotes.dataset_name(results, plan)}, {evaluation.bn_statistics} BN statistics)" if plan.name else ""
    return (
        f"Accuracy along eps (0: clean images) under {describe_perturbation(attack)}, on {images} {evaluation.split} "
        f"images{extra}: {describe_means(results, 'mean ± SEM')}; differences are paired by seed."
    )


def _draw_attack(results: Results, eps: dict[str, float], attack: Attack, file_format: str) -> bytes:
    """Accuracies at the left, differences at the right; b"" where no arm has two points of a curve."""
    arms = {
        legend_label(block.where, arm): points
        for block in results.blocks
        for arm, values in block.arms.items()
        if len(points := [(x, e) for column, x in eps.items() if (e := values[column].estimate)]) > 1
    }
    if not arms:
        return b""
    with styled_pyplot() as plt:
        figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, HEIGHT), layout="constrained")
        for number, (arm, points) in enumerate(arms.items()):
            _draw_curve(left, points, arm, number)
        left.set_ylabel(f"accuracy under {attack.attack}, %")
        left.set_ylim(-2, 102)  # points at 0 are seen whole
        _draw_differences(right, results, eps, len(arms))
        for axes in (left, right):
            axes.set_xlabel(f"{NORMS[attack.ord]} eps, {UNITS[attack.unit]}")
            axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
            hide_spines(axes)
            axes.legend(frameon=False)
        return render(figure, file_format)


def _draw_differences(axes: Axes, results: Results, eps: dict[str, float], first_colour: int) -> None:
    """Differences of the arms, in colours that no arm has."""
    table = results.experiment.table
    axes.axhline(0.0, color=GREY, linewidth=1)
    for number, block in enumerate(results.blocks):
        points = [(x, d.paired) for column, x in eps.items() if (d := block.differences.get(column)) and d.paired]
        if points:
            _draw_curve(axes, points, legend_label(block.where, difference_label(table)), first_colour + number)
    axes.set_ylabel("difference, points")


def _draw_curve(axes: Axes, points: Sequence[tuple[float, Estimate]], label: str, number: int) -> None:
    colour, marker = ARM_STYLES[number % len(ARM_STYLES)]
    axes.errorbar(
        [x for x, _ in points], [100 * e.mean for _, e in points], yerr=[100 * (e.sem or 0.0) for _, e in points],
        color=colour, marker=marker, markersize=4, capsize=2, linewidth=1.2, label=label,
    )  # fmt: skip

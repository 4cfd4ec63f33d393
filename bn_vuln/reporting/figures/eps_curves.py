"""Ladders: accuracy along the eps of an attack, and beside it what normalization costs at each."""

from __future__ import annotations

from typing import Any

from bn_vuln.analysis.statistics import Estimate
from bn_vuln.config import EVALUATION_SEPARATOR, Attack, EvaluationPlan, describe_perturbation, with_eps_grid
from bn_vuln.reporting import footnotes
from bn_vuln.reporting.aggregate import Results
from bn_vuln.reporting.figures.style import (
    ARM_STYLES,
    GREY,
    HEIGHT,
    STYLE,
    WIDTH,
    Drawn,
    hide_spines,
    label,
    pyplot,
    save,
    with_seeds,
)

Points = list[tuple[float, Estimate]]
UNITS = {"pixel": "1/255 of the pixel range", "standardized": "standardized"}
NORMS = {"inf": "L\N{INFINITY}", "2": "L2"}


def figure(results: Results, form: str) -> list[Drawn]:
    """One drawing for each attack with an eps grid and each evaluation, of what was measured of it."""
    return [drawn for plan, name, attack in _eps_grids(results) for drawn in _drawn(results, plan, name, attack, form)]


def _eps_grids(results: Results) -> list[tuple[EvaluationPlan, str, Attack]]:
    return [
        (plan, name, attack)
        for plan in results.experiment.plans
        for name, attack in plan.perturbations.items()
        if isinstance(attack, Attack) and attack.eps_grid
    ]


def _drawn(results: Results, plan: EvaluationPlan, name: str, attack: Attack, form: str) -> list[Drawn]:
    columns = _columns(results, plan, name, attack)
    arms = {
        label(block.where, arm): points
        for block in results.blocks
        for arm, values in block.arms.items()
        if len(points := [(x, e) for c, x in columns.items() if (e := values[c].estimate)]) > 1
    }
    if not arms:
        return []
    plt = pyplot()
    with plt.rc_context(STYLE):
        drawing, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, HEIGHT), layout="constrained")
        for number, (arm, points) in enumerate(arms.items()):
            _line(left, points, arm, number)
        left.set_ylabel(f"accuracy under {attack.attack}, %")
        left.set_ylim(-2, 102)  # points at 0 are seen whole
        _differences(right, results, columns, len(arms))
        for axes in (left, right):
            axes.set_xlabel(f"{NORMS[attack.ord]} eps, {UNITS[attack.unit]}")
            axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
            hide_spines(axes)
            axes.legend(frameon=False)
        words = ["eps_curves", name, plan.name] if len(_eps_grids(results)) > 1 else ["eps_curves"]
        return [("-".join(filter(None, words)), _caption(results, plan, attack), save(plt, drawing, form))]


def _columns(results: Results, plan: EvaluationPlan, name: str, attack: Attack) -> dict[str, float]:
    """The columns of the attack with their places on the axis; clean images at 0."""
    scale = 255.0 if attack.unit == "pixel" else 1.0
    every = {plan.column(key): options for key, options in with_eps_grid(plan.perturbations).items()}
    found: dict[str, float] = {}
    for column in results.experiment.table.columns:
        perturbation = every.get(column)
        if perturbation is not None and perturbation.kind == "clean":
            found[column] = 0.0
        elif isinstance(perturbation, Attack) and column.partition(EVALUATION_SEPARATOR)[0].split(" ")[0] == name:
            found[column] = scale * perturbation.eps
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _line(axes: Any, points: Points, name: str, number: int) -> None:
    colour, marker = ARM_STYLES[number % len(ARM_STYLES)]
    axes.errorbar(
        [x for x, _ in points], [100 * e.mean for _, e in points], yerr=[100 * (e.sem or 0.0) for _, e in points],
        color=colour, marker=marker, markersize=4, capsize=2, linewidth=1.2, label=name,
    )  # fmt: skip


def _differences(axes: Any, results: Results, columns: dict[str, float], first: int) -> None:
    """In colours from the `first` on, which no arm has."""
    table = results.experiment.table
    axes.axhline(0.0, color=GREY, linewidth=1)
    for number, block in enumerate(results.blocks):
        found = [(x, d.paired) for c, x in columns.items() if (d := block.differences.get(c)) and d.paired]
        if found:
            between = f"{table.treatment} \N{MINUS SIGN} {table.reference}"
            _line(axes, found, label(block.where, between), first + number)
    axes.set_ylabel("difference, points")


def _caption(results: Results, plan: EvaluationPlan, attack: Attack) -> str:
    evaluation = plan.evaluation
    images = "all" if evaluation.limit is None else f"{evaluation.limit:,}"
    where = "" if not plan.name else f" ({footnotes.dataset(results, plan)}, {evaluation.bn_statistics} BN statistics)"
    return (
        f"Accuracy along eps (0: clean images) under {describe_perturbation(attack)}, on {images} {evaluation.split} "
        f"images{where}: {with_seeds(results, 'mean ± SEM')}; differences are paired by seed."
    )

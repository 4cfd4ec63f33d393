"""Accuracies of the arms and their differences beside the paper's; or candidate settings, of which one is chosen."""

from __future__ import annotations

import textwrap
from typing import Any

from bn_vuln.analysis.statistics import Estimate
from bn_vuln.reporting.aggregate import Results
from bn_vuln.reporting.claims import over_examples
from bn_vuln.reporting.figures.style import (
    ARM_STYLES,
    GREY,
    HEIGHT,
    PAPER_COLOUR,
    STYLE,
    WIDTH,
    Drawn,
    hide_spines,
    legend_columns,
    n_seeds,
    pyplot,
    save,
    scaled,
)
from bn_vuln.reporting.results import Block, mean_over_arms
from bn_vuln.reporting.tables import KEY_NAMES, where_text

MAX_LETTERS = 56  # of the heads of columns that fit side by side
LINE = 24  # letters of a line of those that stand upright
LETTER = 0.07  # inches
MAX_BLOCKS = 8
CHOSEN = "chosen"
ACCURACIES = (
    "Left: accuracy of each arm, mean ± SEM over n seeds, dots are single seeds. Right: difference of the arms, paired "
    "by seed, with its 95% t-interval (dotted: one seed, and the 95% bootstrap interval over its examples alone); "
    "beside it the paper's, where it has one."
)
CANDIDATES = "what batch norm costs there, against the accuracy that chooses one."
RING = 13  # points: the mark of the candidate that is chosen


def candidates(results: Results, form: str) -> list[Drawn]:
    """What batch norm costs at each candidate setting, against the accuracy by which one of them is chosen: one
    panel for each of the other perturbations."""
    table, by = results.experiment.table, _chosen_by(results)
    names = [name for name in _columns(results) if name != by]
    blocks = [block for block in results.blocks if _is_complete(block, [by, *names])]
    if not blocks or not names:
        return []
    plt = pyplot()
    with plt.rc_context(STYLE):
        size = (WIDTH, HEIGHT)
        drawing, axes = plt.subplots(1, len(names), figsize=size, squeeze=False, sharey=True, layout="constrained")
        for panel, name in zip(axes[0], names, strict=True):
            _candidates(panel, results, blocks, name)
        axes[0][0].set_ylabel(f"{table.treatment} \N{MINUS SIGN} {table.reference}, points")
        # "chosen" comes last, wherever it was drawn.
        legend = sorted(zip(*axes[0][0].get_legend_handles_labels(), strict=True), key=lambda item: item[1] == CHOSEN)
        ncols = legend_columns([text for _, text in legend], len(legend))
        drawing.legend(*zip(*legend, strict=True), loc="outside upper center", ncols=ncols, frameon=False)
        what = " accuracy" if results.experiment.is_accuracy(by) else ""
        drawing.supxlabel(f"{table.columns[by]}{what}, mean of the arms, {results.experiment.unit(by)}", fontsize=9)
        caption = f"Each point is a candidate setting, {n_seeds(results)}: {CANDIDATES}"
        return [("", caption, save(plt, drawing, form))]


def _chosen_by(results: Results) -> str:
    """The column that chooses a row; "" where none does."""
    choice = results.experiment.table.selection_rule
    return choice.by if choice else ""


def _is_complete(block: Block, names: list[str]) -> bool:
    """Whether every difference of a candidate is there, and its score."""
    differences = [block.differences.get(name) for name in names]
    return (
        all(d is not None and d.paired is not None for d in differences) and mean_over_arms(block, names[0]) is not None
    )


def _candidates(axes: Any, results: Results, blocks: list[Block], name: str) -> None:
    """One panel: colours and shapes tell the values of the first row key apart."""
    table = results.experiment.table
    kinds = list(dict.fromkeys(str(next(iter(block.where.values()), "")) for block in blocks))
    seen: set[str] = set()
    for block in blocks:
        clean = mean_over_arms(block, _chosen_by(results))
        difference = block.differences[name].paired
        if clean is None or difference is None:
            continue
        kind = str(next(iter(block.where.values()), ""))
        colour, marker = ARM_STYLES[kinds.index(kind) % len(ARM_STYLES)]
        label = f"{KEY_NAMES.get(table.rows[0], table.rows[0])} {kind}" if kind and kind not in seen else None
        seen.add(kind)
        x, y = scaled(results, _chosen_by(results), clean), 100 * difference.mean
        axes.plot(x, y, linestyle="", marker=marker, color=colour, label=label, markersize=6)
        if block.selected:
            axes.plot(x, y, "o", markersize=RING, markerfacecolor="none", markeredgecolor="black", label=CHOSEN)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.margins(0.12)  # room for the ring in a narrow panel
    axes.set_title(table.columns[name].replace(", ", ",\n", 1), fontsize=9)
    hide_spines(axes)


def accuracies(results: Results, form: str) -> list[Drawn]:
    """Left: accuracy of each arm (mean, SEM, single seeds). Right: the paired difference with the paper's, where
    it gives one. One row of panels a block. Nothing where there is nothing to draw, or where rows of panels would fill
    pages (more than MAX_BLOCKS blocks): such a table stands without a figure, or asks for another kind."""
    blocks = [block for block in results.blocks if _has_values(block)]
    if not blocks or not _columns(results) or len(blocks) > MAX_BLOCKS:
        return []
    plt = pyplot()
    with plt.rc_context(STYLE):
        size = (WIDTH, (HEIGHT + _below(results)) * len(blocks))
        drawing, axes = plt.subplots(len(blocks), 2, figsize=size, squeeze=False, layout="constrained")
        for (left, right), block in zip(axes, blocks, strict=True):
            _accuracies(left, results, block)
            _differences(right, results, block)
        return [("", ACCURACIES, save(plt, drawing, form))]


def _has_values(block: Block) -> bool:
    return any(value.by_seed for arm in block.arms.values() for value in arm.values())


def _columns(results: Results) -> dict[str, str]:
    """The columns of accuracies, with their heads."""
    experiment = results.experiment
    return {name: head for name, head in experiment.table.columns.items() if experiment.is_accuracy(name)}


def _accuracies(axes: Any, results: Results, block: Block) -> None:
    names = list(_columns(results))
    between = min(0.32, 0.8 / len(block.arms))  # the arms of a column stand side by side
    for i, (arm, values) in enumerate(block.arms.items()):
        colour, marker = ARM_STYLES[i % len(ARM_STYLES)]
        shift = (i - (len(block.arms) - 1) / 2) * between
        label: str | None = f"{arm} (n = {max(len(v.by_seed) for v in values.values())})"
        for x, name in enumerate(names):
            value = values[name]
            if value.estimate is None:
                continue
            axes.plot(
                [x + shift + 0.28 * between] * len(value.by_seed), [100 * v for v in value.by_seed.values()],
                linestyle="", marker=".", markersize=4, color=colour, alpha=0.5,
            )  # fmt: skip
            axes.errorbar(
                x + shift, 100 * value.estimate.mean, yerr=100 * (value.estimate.sem or 0),
                fmt=marker, color=colour, markersize=6, capsize=3, label=label,
            )  # fmt: skip
            label = None
    _finish(axes, results)
    axes.set_ylim(-3, 103)
    axes.set_ylabel("accuracy, %")
    _legend_above(axes, where_text(block))


def _differences(axes: Any, results: Results, block: Block) -> None:
    table = results.experiment.table
    axes.axhline(0, color=GREY, linewidth=0.8)
    for x, name in enumerate(_columns(results)):
        difference = block.differences.get(name)
        if difference and difference.paired:
            _difference(axes, results, block, name, x - 0.1, difference.paired)
    label: str | None = "paper (± SEM)"
    for comparison in results.comparisons:
        published = comparison.paper.value
        if (
            comparison.arm is None
            and published is not None
            and comparison.where == block.where
            and comparison.perturbation in _columns(results)
        ):
            place = list(_columns(results)).index(comparison.perturbation) + 0.1
            yerr = 100 * (comparison.paper.sem or 0)
            axes.errorbar(
                place, 100 * published, yerr=yerr, fmt="D", color=PAPER_COLOUR,
                markerfacecolor="white", capsize=3, label=label,
            )  # fmt: skip
            label = None
    _finish(axes, results)
    axes.set_ylabel(f"{table.treatment} \N{MINUS SIGN} {table.reference}, points")
    _legend_above(axes)


def _difference(axes: Any, results: Results, block: Block, name: str, x: float, ours: Estimate) -> None:
    """One difference with its interval: over the seeds, or over the examples of the only one, which is dotted."""
    interval, what = ours.interval(), "ours (paired by seed, 95% interval)"
    if ours.n == 1:
        arms = results.experiment.table.treatment, results.experiment.table.reference
        interval, what = over_examples([(block, arm) for arm in arms], name), "ours (n = 1, 95% over examples)"
    low, high = interval or (ours.mean, ours.mean)
    yerr = [[100 * max(0.0, ours.mean - low)], [100 * max(0.0, high - ours.mean)]]  # rounding can go below 0
    label = "" if what in axes.get_legend_handles_labels()[1] else what
    _, _, bars = axes.errorbar(x, 100 * ours.mean, yerr=yerr, fmt="s", color=ARM_STYLES[1][0], capsize=3, label=label)
    if ours.n == 1:
        for bar in bars:
            bar.set_linestyle(":")


def _legend_above(axes: Any, title: str = "") -> None:
    """The legend above the axes, where it covers no data, and above it the title, if there is one."""
    handles, labels = axes.get_legend_handles_labels()
    ncols = legend_columns(labels, 2, WIDTH / 2)
    style: dict[str, Any] = {"frameon": False, "ncols": ncols, "borderaxespad": 0.2}
    if title and handles:
        place = {"loc": "lower left", "bbox_to_anchor": (0, 1)}
        axes.legend(**style, **place, title=title, title_fontsize="large", alignment="left")
    elif handles:
        axes.legend(**style, loc="lower right", bbox_to_anchor=(1, 1))
    else:
        axes.set_title(title, loc="left")


def _letters(heads: list[str]) -> int:
    """How many would stand side by side under the axis, if each head took as much space as the longest line."""
    return max(len(line) for head in heads for line in head.split("\n")) * len(heads)


def _heads(results: Results) -> tuple[list[str], bool]:
    """The heads of columns in lines as they stand under the axis, and whether they stand upright."""
    heads = list(_columns(results).values())
    for broken in ([head.replace(", ", ",\n", 1) for head in heads], [head.replace(" ", "\n", 2) for head in heads]):
        if _letters(broken) <= MAX_LETTERS:
            return broken, False
    return [textwrap.fill(head, LINE) for head in heads], True


def _below(results: Results) -> float:
    """Inches that upright heads take below the axis, which is as high with them as without."""
    heads, upright = _heads(results)
    return LETTER * max(len(line) for head in heads for line in head.split("\n")) if upright else 0.0


def _finish(axes: Any, results: Results) -> None:
    heads, upright = _heads(results)
    axes.set_xticks(range(len(heads)), heads, rotation=90 if upright else 0)
    axes.set_xlim(-0.6, len(heads) - 0.4)
    hide_spines(axes)

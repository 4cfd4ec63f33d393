"""Accuracies of the arms and their differences beside what is claimed; or candidate settings."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bn_vuln.analysis.statistics import Estimate
from bn_vuln.reporting.aggregate import Results
from bn_vuln.reporting.claims import over_examples
from bn_vuln.reporting.figures.style import (
    ARM_STYLES,
    CLAIM_COLOUR,
    GREY,
    HEIGHT,
    WIDTH,
    FigureFile,
    describe_seeds,
    hide_spines,
    key_name,
    legend_columns,
    render,
    styled_pyplot,
    to_shown_unit,
)
from bn_vuln.reporting.results import Block, mean_over_arms
from bn_vuln.reporting.tables import block_title, claimed_by, difference_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_LETTERS = 56  # of titles of columns that fit side by side
MAX_LABEL = 32  # letters of a line of a label: an arm may have any name
LINE = 24  # letters of a line of upright titles
LETTER = 0.07  # inches
MAX_BLOCKS = 8
LEAST_RANGE = 0.01  # of a panel of differences: one point
CHOSEN = "chosen"
ACCURACIES = (
    "Left: accuracy of each arm, mean ± SEM over n seeds, dots are single seeds. Right: difference of the arms, paired "
    "by seed, with its 95% t-interval (dotted: one seed, and the 95% bootstrap interval over its examples alone)"
)
ACCURACIES_ALONE = "Accuracy of each arm, mean ± SEM over n seeds, dots are single seeds"
CLAIMED = "; beside it what {claimed}, where there is such a number"
CLIPPED = "; a triangle ends an interval that is wider than is shown, as those of two seeds often are"
CANDIDATES = "the difference of the arms there, against the accuracy that chooses one."
RING = 13  # points: the mark of the candidate that is chosen


def draw_candidates(results: Results, file_format: str) -> list[FigureFile]:
    """Draw the difference of the arms at each candidate setting, against the accuracy that chooses one of them.

    One panel for each of the other perturbations. Candidates without all of these numbers are left out.
    """
    table, experiment = results.experiment.table, results.experiment
    selected_by = table.select_by.by if table.select_by else ""
    columns = [column for column in accuracy_columns(results) if column != selected_by]
    scores: list[tuple[Block, float]] = []
    for block in results.blocks:
        differences = [block.differences.get(column) for column in (selected_by, *columns)]
        if all(d is not None and d.paired is not None for d in differences):
            score = mean_over_arms(block, selected_by)
            scores += [(block, score)] if score is not None else []
    if not scores or not columns:
        return []
    with styled_pyplot() as plt:
        size = (WIDTH, HEIGHT)
        figure, axes = plt.subplots(1, len(columns), figsize=size, squeeze=False, sharey=True, layout="constrained")
        for panel, column in zip(axes[0], columns, strict=True):
            shown = to_shown_unit(results, selected_by, [score for _, score in scores])
            _draw_candidate_panel(panel, results, [block for block, _ in scores], shown, column)
        axes[0][0].set_ylabel(f"{difference_label(table)}, points")
        # "chosen" comes last, wherever it was drawn.
        legend = sorted(zip(*axes[0][0].get_legend_handles_labels(), strict=True), key=lambda item: item[1] == CHOSEN)
        ncols = legend_columns([text for _, text in legend], len(legend))
        figure.legend(*zip(*legend, strict=True), loc="outside upper center", ncols=ncols, frameon=False)
        quantity = " accuracy" if experiment.columns[selected_by].is_accuracy else ""
        title = f"{table.columns[selected_by]}{quantity}, mean of the arms, {experiment.columns[selected_by].unit}"
        figure.supxlabel(title, fontsize=9)
        caption = f"Each point is a candidate setting, {describe_seeds(results)}: {CANDIDATES}"
        return [FigureFile("", caption, render(figure, file_format))]


def _draw_candidate_panel(axes: Axes, results: Results, blocks: list[Block], scores: list[float], column: str) -> None:
    """One column; colours and shapes tell the values of the first row key apart."""
    table = results.experiment.table
    first_values = [str(next(iter(block.where.values()), "")) for block in blocks]
    kinds = list(dict.fromkeys(first_values))
    labelled: set[str] = set()
    for block, score, kind in zip(blocks, scores, first_values, strict=True):
        difference = block.differences[column].paired
        if difference is None:
            continue
        colour, marker = ARM_STYLES[kinds.index(kind) % len(ARM_STYLES)]
        label = f"{key_name(table.rows[0])} {kind}" if kind and kind not in labelled else None
        labelled.add(kind)
        y = 100 * difference.mean
        axes.plot(score, y, linestyle="", marker=marker, color=colour, label=label, markersize=6)
        if block.selected:
            axes.plot(score, y, "o", markersize=RING, markerfacecolor="none", markeredgecolor="black", label=CHOSEN)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.margins(0.12)  # room for the ring in a narrow panel
    axes.set_title(table.columns[column].replace(", ", ",\n", 1), fontsize=9)
    hide_spines(axes)


def draw_accuracies(results: Results, file_format: str) -> list[FigureFile]:
    """Draw accuracy of each arm (mean, SEM, single seeds), and the paired difference with what is claimed.

    One row of panels a block. Nothing where there is nothing to draw, or where rows of panels would fill pages (more
    than MAX_BLOCKS blocks): such a table stands without a figure, or asks for another kind.
    """
    blocks = [b for b in results.blocks if any(value.by_seed for arm in b.arms.values() for value in arm.values())]
    if not blocks or not accuracy_columns(results) or len(blocks) > MAX_BLOCKS:
        return []
    titles, upright = column_titles(results)
    # Upright titles take inches below the axis, which is as high with them as without.
    below = LETTER * max(len(line) for title in titles for line in title.split("\n")) if upright else 0.0
    with styled_pyplot() as plt:
        size = (WIDTH, (HEIGHT + below) * len(blocks))
        compared = any(block.differences for block in blocks)
        figure, axes = plt.subplots(len(blocks), 1 + compared, figsize=size, squeeze=False, layout="constrained")
        caption, claimed = ACCURACIES if compared else ACCURACIES_ALONE, _claimed_label(results)
        any_claimed = any_clipped = False
        for panels, block in zip(axes, blocks, strict=True):
            _draw_accuracy_panel(panels[0], results, block)
            for right in panels[1:]:
                any_clipped |= _draw_difference_panel(right, results, block)
                any_claimed |= claimed in right.get_legend_handles_labels()[1]
            for panel in panels:
                panel.set_xticks(range(len(titles)), titles, rotation=90 if upright else 0)
                panel.set_xlim(-0.6, len(titles) - 0.4)
                hide_spines(panel)
            panels[0].set_ylim(-3, 103)
        stated = "the paper states" if claimed_by(results.experiment) == "paper" else "is claimed"
        caption += CLAIMED.format(claimed=stated) if any_claimed else ""
        caption += CLIPPED if any_clipped else ""
        return [FigureFile("", f"{caption}.", render(figure, file_format))]


def accuracy_columns(results: Results) -> dict[str, str]:
    """Return the columns of accuracies, with their titles."""
    experiment = results.experiment
    return {name: title for name, title in experiment.table.columns.items() if experiment.columns[name].is_accuracy}


def column_titles(results: Results) -> tuple[list[str], bool]:
    """Return the titles of columns in lines as they stand under the axis, and True where they stand upright."""
    titles = list(accuracy_columns(results).values())
    for broken in ([t.replace(", ", ",\n", 1) for t in titles], [t.replace(" ", "\n", 2) for t in titles]):
        longest = max(len(line) for title in broken for line in title.split("\n"))
        if longest * len(titles) <= MAX_LETTERS:
            return broken, False
    return [textwrap.fill(title, LINE) for title in titles], True


def _draw_accuracy_panel(axes: Axes, results: Results, block: Block) -> None:
    columns = list(accuracy_columns(results))
    between = min(0.32, 0.8 / len(block.arms))  # the arms of a column stand side by side
    for i, (arm, values) in enumerate(block.arms.items()):
        colour, marker = ARM_STYLES[i % len(ARM_STYLES)]
        offset = (i - (len(block.arms) - 1) / 2) * between
        n = max(len(v.by_seed) for v in values.values())
        label: str | None = textwrap.fill(f"{arm} (n = {n})", MAX_LABEL)
        for x, column in enumerate(columns):
            value = values[column]
            if value.estimate is None:
                continue
            axes.plot(
                [x + offset + 0.28 * between] * len(value.by_seed), [100 * v for v in value.by_seed.values()],
                linestyle="", marker=".", markersize=4, color=colour, alpha=0.5,
            )  # fmt: skip
            axes.errorbar(
                x + offset, 100 * value.estimate.mean, yerr=100 * (value.estimate.sem or 0),
                fmt=marker, color=colour, markersize=6, capsize=3, label=label,
            )  # fmt: skip
            label = None
    axes.set_ylabel("accuracy, %")
    _add_legend_above(axes, block_title(block))


def _claimed_label(results: Results) -> str:
    return f"{claimed_by(results.experiment)} (± SEM)"


def _draw_difference_panel(axes: Axes, results: Results, block: Block) -> bool:
    """Draw the differences of a block and what is claimed of them; True where an interval is clipped."""
    table, columns = results.experiment.table, list(accuracy_columns(results))
    claims = [
        (columns.index(c.perturbation) + 0.1, c.claim.value, c.claim.sem or 0.0)
        for c in results.comparisons
        if c.arm is None and c.claim.value is not None and c.where == block.where and c.perturbation in columns
    ]
    axes.axhline(0, color=GREY, linewidth=0.8)
    seeds = [value for column in columns for value in _by_seed(results, block, column)]
    limits = _limits([0.0, *seeds, *(value + sign * sem for _, value, sem in claims for sign in (-1, 1))])
    clipped = False
    for x, column in enumerate(columns):
        difference = block.differences.get(column)
        if difference and difference.paired:
            clipped |= _draw_difference(axes, results, block, column, x - 0.1, difference.paired, limits)
    label: str | None = _claimed_label(results)
    for place, value, sem in claims:
        axes.errorbar(
            place,
            100 * value,
            yerr=100 * sem,
            fmt="D",
            color=CLAIM_COLOUR,
            markerfacecolor="white",
            capsize=3,
            label=label,
        )
        label = None
    axes.set_ylabel(textwrap.fill(f"{difference_label(table)}, points", MAX_LABEL))
    _add_legend_above(axes)
    return clipped


def _by_seed(results: Results, block: Block, column: str) -> list[float]:
    """The differences of the arms in a column, one for each seed that both have."""
    table = results.experiment.table
    treatment, reference = (
        block.arms[arm][column].by_seed if arm in block.arms else {} for arm in (table.treatment, table.reference)
    )
    return [treatment[seed] - reference[seed] for seed in treatment.keys() & reference.keys()]


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """The range that intervals are shown in: that of the values, and as much again on both sides.

    The t-interval of two seeds is 12.7 SEM to both sides, beside which nothing else would be seen.
    """
    room = max(max(values) - min(values), LEAST_RANGE)
    return min(values) - room, max(values) + room


def _draw_difference(
    axes: Axes,
    results: Results,
    block: Block,
    column: str,
    x: float,
    difference: Estimate,
    limits: tuple[float, float],
) -> bool:
    """One difference with its interval: over the seeds, or over the examples of the only one, which is dotted.

    True where the interval is clipped to the limits.
    """
    interval, name = difference.interval(), "measured (paired by seed, 95% interval)"
    if difference.n == 1:
        arms = results.experiment.table.treatment, results.experiment.table.reference
        interval = over_examples([(block, arm) for arm in arms], results.experiment.columns[column])
        name = "measured (n = 1, 95% over examples)"
    mean = difference.mean
    low, high = interval or (mean, mean)
    shown = max(low, limits[0]), min(high, limits[1])
    yerr = [[100 * max(0.0, mean - shown[0])], [100 * max(0.0, shown[1] - mean)]]  # rounding can go below 0
    label = "" if name in axes.get_legend_handles_labels()[1] else name
    _, caps, bars = axes.errorbar(x, 100 * mean, yerr=yerr, fmt="s", color=ARM_STYLES[1][0], capsize=3, label=label)
    for cap, marker, end, at in zip(caps, "v^", (low, high), shown, strict=True):
        if end != at:
            cap.set(marker=marker, markersize=5)
    if difference.n == 1:
        for bar in bars:
            bar.set_linestyle(":")
    return shown != (low, high)


def _add_legend_above(axes: Axes, title: str = "") -> None:
    """The legend above the axes, where it covers no data, and above it the title, if there is one."""
    handles, labels = axes.get_legend_handles_labels()
    ncols = legend_columns(labels, 2, WIDTH / 2)
    if handles:
        side, x = ("left", 0) if title else ("right", 1)
        axes.legend(
            frameon=False, ncols=ncols, borderaxespad=0.2, loc=f"lower {side}", bbox_to_anchor=(x, 1),
            title=title or None, title_fontsize="large" if title else None, alignment="left" if title else "center",
        )  # fmt: skip
    else:
        axes.set_title(title, loc="left")

"""Figures of an experiment: accuracies of the arms, and what batch norm costs beside the paper's figures."""

from __future__ import annotations

import io
from typing import Any

from bn_vuln.aggregate import Block, Results
from bn_vuln.report.tables import where_text

# Okabe-Ito: told apart by colour-blind readers; shapes differ too, for print without colour.
ARM_STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"))
PAPER_COLOUR = "#555555"
HEIGHT = 3.4
WIDTH = 9.0
MAX_BLOCKS = 6


def accuracy_figure(results: Results, form: str = "svg") -> bytes | None:
    """Left: accuracy of each arm (mean, SEM, single seeds). Right: the paired difference with the paper's, where
    it gives one. One row of panels a block; None where there is nothing to draw, or too many blocks."""
    blocks = [block for block in results.blocks if _has_values(block)]
    if not blocks or len(blocks) > MAX_BLOCKS:
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "bnvuln", "font.size": 9, "font.family": "sans-serif"}
    ):
        figure, axes = plt.subplots(
            len(blocks), 2, figsize=(WIDTH, HEIGHT * len(blocks)), squeeze=False, layout="constrained"
        )
        for (left, right), block in zip(axes, blocks, strict=True):
            _accuracies(left, results, block)
            _differences(right, results, block)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
        plt.close(figure)
    return buffer.getvalue()


def _has_values(block: Block) -> bool:
    return any(value.by_seed for arm in block.arms.values() for value in arm.values())


def _accuracies(axes: Any, results: Results, block: Block) -> None:
    names = list(results.experiment.table.columns)
    offset = 0.16
    for i, (arm, values) in enumerate(block.arms.items()):
        colour, marker = ARM_STYLES[i % len(ARM_STYLES)]
        shift = (i - (len(block.arms) - 1) / 2) * 2 * offset
        label: str | None = f"{arm} (n = {max(len(v.by_seed) for v in values.values())})"
        for x, name in enumerate(names):
            value = values[name]
            if value.estimate is None:
                continue
            axes.plot(
                [x + shift + 0.09] * len(value.by_seed), [100 * v for v in value.by_seed.values()],
                linestyle="", marker=".", markersize=4, color=colour, alpha=0.5,
            )  # fmt: skip
            axes.errorbar(
                x + shift, 100 * value.estimate.mean, yerr=100 * (value.estimate.sem or 0),
                fmt=marker, color=colour, markersize=6, capsize=3, label=label,
            )  # fmt: skip
            label = None
    _finish(axes, results, where_text(block))
    axes.set_ylim(-3, 103)
    axes.set_ylabel("accuracy, %")
    _legend_above(axes)


def _differences(axes: Any, results: Results, block: Block) -> None:
    table = results.experiment.table
    axes.axhline(0, color="#999999", linewidth=0.8)
    label: str | None = "ours (paired by seed, 95% interval)"
    for x, name in enumerate(table.columns):
        difference = block.differences.get(name)
        if difference is None or difference.paired is None:
            continue
        mean, interval = difference.paired.mean, difference.paired.interval()
        half = 100 * (interval[1] - mean) if interval else 0.0
        axes.errorbar(x - 0.1, 100 * mean, yerr=half, fmt="s", color=ARM_STYLES[1][0], capsize=3, label=label)
        label = None
    label = "paper (± SEM)"
    for comparison in results.comparisons:
        if comparison.arm is None and comparison.where == block.where and comparison.perturbation in table.columns:
            place = list(table.columns).index(comparison.perturbation) + 0.1
            yerr = 100 * (comparison.paper.sem or 0)
            axes.errorbar(
                place, 100 * comparison.paper.value, yerr=yerr, fmt="D", color=PAPER_COLOUR,
                markerfacecolor="white", capsize=3, label=label,
            )  # fmt: skip
            label = None
    _finish(axes, results, "")
    axes.set_ylabel(f"{table.treatment} \N{MINUS SIGN} {table.reference}, points")
    _legend_above(axes)


def _legend_above(axes: Any) -> None:
    """The legend above the axes, where it covers no data."""
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)


def _finish(axes: Any, results: Results, title: str) -> None:
    heads = list(results.experiment.table.columns.values())
    axes.set_xticks(range(len(heads)), [head.replace(", ", ",\n", 1) for head in heads])
    axes.set_xlim(-0.6, len(heads) - 0.4)
    axes.set_title(title, loc="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)

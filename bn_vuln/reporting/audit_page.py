"""The page of an audit, its lines in a terminal, its tables and figures; all drawn from its findings.

Example images lie beside `audit.json` as `examples_0.npz`, and `examples_1.npz` of the second model of a pair: arrays
`clean` and `attacked`, float32 [k, h, w, channels] in [0, 1], in the order of `ModelFindings.examples`.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bn_vuln.auditing import findings as records
from bn_vuln.auditing.findings import Accuracy, Difference, Finalist, Findings, Interval, Layer, ModelFindings
from bn_vuln.reporting import audit_numbers as numbers
from bn_vuln.reporting import templates
from bn_vuln.reporting.figures import audit as drawn
from bn_vuln.reporting.figures.style import ARM_STYLES, GREY, STYLE, render
from bn_vuln.reporting.tables import wrap
from bn_vuln.runtime.files import atomic_write
from bn_vuln.runtime.progress import duration
from bn_vuln.typing import Images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 79  # columns of a terminal
QUANTILES = (0, 25, 50, 75, 100)
# Colours of figures, which become those of the page, light or dark.
COLOURS = {
    ARM_STYLES[0][0]: "--first",
    ARM_STYLES[1][0]: "--second",
    "#000000": "--ink",
    GREY: "--soft",
    "#ffffff": "--paper",
}
MOST_DECADES = 3  # of the axis of gains, to each side
FILE = "index.html"  # of an audit's folder


@dataclass(frozen=True)
class Bar:
    """A column of the table of layers that has a bar in each cell, and the sentence that says what high means."""

    field: str
    title: str
    text: str
    digits: int = 1
    percent: bool = False
    mark: float | None = None

    def show(self, value: float) -> str:
        """Return a value as it is shown."""
        return f"{numbers.percent(value)}%" if self.percent else f"{value:,.{self.digits if value < 100 else 0}f}"


BARS = (
    Bar(
        "amplification", "amplification",
        "how many times further the attack's perturbation moves what the layer returns than a random one of the same "
        "length does. High: what the attack uses has been amplified up to here. 1 (thin line): no more than chance.",
        mark=1.0,
    ),
    Bar(
        "through", "through it",
        "amplification after the layer divided by that before it. High, above 1 (thin line): this very layer "
        "amplifies the attack's perturbation more than a random one.",
        mark=1.0,
    ),
    Bar(
        "low_variance_share", "low-variance share",
        "how much of what the decision is sensitive to (the squared gradient of the right class's lead) lies in "
        "those channels that together hold only 1% of the variance. High: the decision hangs on channels that "
        "hardly vary, and that the layer amplifies.",
        percent=True,
    ),
    Bar(
        "statistics_distance", "statistics off by",
        "how far what the layer returns is off because it uses the statistics tracked in training instead of those of "
        "the images, in standard deviations. High: the statistics are stale, or made of other data.",
        digits=2,
    ),
)  # fmt: skip


# ---------------------------------------------------------------- page


def write(folder: Path) -> Path:
    """Draw FOLDER/index.html from FOLDER/audit.json; the file.

    Raises:
        BnvulnError: There is no audit, or one of its files is damaged.
    """
    path = folder / FILE
    atomic_write(path, html(records.read(folder), folder))
    return path


def html(findings: Findings, folder: Path | None) -> str:
    """Return the page of an audit: one self-contained file, light and dark, readable on a phone, printable.

    Args:
        findings: What it found.
        folder: Where its example images are; None: the page has none.
    """
    names = numbers.short_names(findings)
    sections = [
        {
            "name": name,
            "model": model,
            "number": i,
            "examples": _examples(model, folder / f"examples_{i}.npz") if folder and model.examples else None,
            "layers": _layers_view(model.layers) if model.layers else None,
            "candidates": _candidates(model),
            "finalists": [(one, _differences(findings, one)) for one in model.finalists],
            "scale": max((abs(end) for one in model.finalists for _, d in _differences(findings, one)
                          for end in (d.difference.low, d.difference.high)), default=0.0),
        }
        for i, (model, name) in enumerate(zip(findings.models, names, strict=True))
    ]  # fmt: skip
    curve = drawn.figures(findings).get("curve")
    return templates.render(
        "audit.html.jinja", findings=findings, sections=sections, pair=len(names) > 1, tiles=_tiles(findings),
        accuracies=_accuracies(findings), halves=_halves(findings), curve=_inline(curve) if curve else "",
        bars=BARS, n=numbers, eps=lambda eps: numbers.eps_text(findings, eps), duration=duration,
    )  # fmt: skip


@dataclass(frozen=True)
class Row:
    """Accuracies of all models under one perturbation, and the paired difference of a pair."""

    name: str
    about: str
    accuracies: list[Accuracy | None]
    difference: Difference | None


def _tiles(findings: Findings) -> list[Row]:
    size = numbers.eps_text(findings, findings.eps)
    move = f"moves each pixel by at most {size}" if findings.ord == "inf" else f"moves pixels by an L2 length of {size}"
    about = {
        "clean": "images as they are",
        "noise": f"Gaussian noise of standard deviation {findings.noise_std:g}, pixels from 0 to 1",
        "strong": f"the strong attack {move}",
    }
    found = [numbers.headline(findings, model) for model in findings.models]
    return [
        Row(
            name,
            about[name],
            [one[name] for one in found],
            _difference(findings, next(filter(None, (one[name] for one in found)), None)),
        )
        for name in about
    ]


def _accuracies(findings: Findings) -> list[Row]:
    named = [
        {one.name: one for one in [*model.accuracies, *([model.strong] if model.strong else [])]}
        for model in findings.models
    ]
    every = {name: one for accuracies in reversed(named) for name, one in accuracies.items()}
    order = sorted(every, key=lambda name: name == "strong")
    return [
        Row(name, every[name].about, [one.get(name) for one in named], _difference(findings, every[name]))
        for name in order
    ]


def _difference(findings: Findings, accuracy: Accuracy | None) -> Difference | None:
    return next((one for one in findings.pair if accuracy and one.name == accuracy.name), None)


def _halves(findings: Findings) -> list[dict[str, Any]]:
    """The eps that leaves half of the clean accuracy: of the models, and of nets of this package beside them."""
    rows: list[dict[str, Any]] = []
    for model, name in zip(findings.models, numbers.short_names(findings), strict=True):
        if text := numbers.half_eps_text(findings, model):
            clean = numbers.headline(findings, model)["clean"]
            eps = model.curve[-1].eps if model.half_eps is None else model.half_eps
            rows.append({"name": name, "eps": eps, "text": text, "clean": clean and clean.accuracy.value, "own": True})
    for one in findings.references:
        seeds = "1 seed" if one.n == 1 else f"{one.n} seeds"
        text = numbers.eps_text(findings, one.half_eps)
        rows.append(
            {"name": f"{one.name} ({seeds})", "eps": one.half_eps, "text": text, "clean": one.clean, "own": False}
        )
    return rows


def _inline(figure: Figure) -> str:
    """A figure as an SVG element whose colours are those of the page."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        text = render(figure, "svg").decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", text, count=1, flags=re.DOTALL)
    for colour, name in COLOURS.items():
        text = re.sub(colour, f"var({name})", text, flags=re.IGNORECASE)
    return text


# ---------------------------------------------------------------- example images


def _examples(model: ModelFindings, path: Path) -> dict[str, Any] | None:
    """The images as addresses inside the page; None without a file. Differences are amplified, grey: no change."""
    try:
        arrays = records.read_examples(path, model.id)
    except FileNotFoundError:
        return None
    clean, attacked = arrays["clean"], arrays["attacked"]
    change = attacked - clean
    factor = _round_down(0.5 / max(float(np.abs(change).max(initial=0.0)), 1e-6))
    rows = [
        {"example": example, "uris": [_png(image) for image in (before, after, 0.5 + factor * moved)]}
        for example, before, after, moved in zip(model.examples, clean, attacked, change, strict=False)
    ]
    return {"factor": f"{factor:g}", "rows": rows}


def _round_down(value: float) -> float:
    """The largest of 1, 2, 5, 10, 20, ... that is not above a number, or of .5, .2, ..."""
    decade = 10.0 ** math.floor(math.log10(value))
    return max(step * decade for step in (1, 2, 5) if step * decade <= value * (1 + 1e-6))


def _png(image: Images) -> str:
    from PIL import Image

    pixels = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
    grey = np.round(pixels.mean(axis=-1)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[-1] == 3 else grey).save(buffer, "png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


# ---------------------------------------------------------------- layers and what-ifs


def _layers_view(layers: Sequence[Layer]) -> dict[str, Any]:
    """What the table of layers shows: columns that have a number, where their bars end, which layer is highest."""
    highest = {}
    for bar in BARS:
        measured = [layer for layer in layers if getattr(layer, bar.field) is not None]
        if measured:
            highest[bar.field] = max(measured, key=lambda layer: getattr(layer, bar.field))
    ratios = [ratio for layer in layers for ratio in layer.gain[1:] if ratio > 0]
    widest = max((abs(math.log10(ratio)) for ratio in ratios), default=1.0)
    decades = min(max(math.ceil(widest - 1e-9), 1), MOST_DECADES)
    return {
        "highest": highest,
        "ends": {f: 1.0 if f == "low_variance_share" else max(getattr(one, f), 1.0) for f, one in highest.items()},
        "rows": [(layer, [_place(ratio, decades) for ratio in layer.gain]) for layer in layers],
        "end": f"{10**decades:,}",
        "has": {f: any(getattr(one, f) is not None for one in layers) for f in ("dead", "below_c")}
        | {"gain": any(layer.gain for layer in layers)},
        "frozen": sum(layer.frozen for layer in layers),
        "momenta": sorted({layer.momentum for layer in layers if layer.momentum is not None}),
    }


def _place(ratio: float, decades: int) -> float:
    """The place of a ratio on a logarithmic axis from 10^-decades to 10^decades, from 0 to 100."""
    return round(min(max(50 + 50 * math.log10(max(ratio, 1e-12)) / decades, 0.0), 100.0), 2)


def _candidates(model: ModelFindings) -> list[dict[str, Any]]:
    """The model as it is and the candidates, with the numbers that are the best of their column."""
    fields = ("clean", "noise", "attacked")
    rows = [*([model.as_it_is] if model.as_it_is else []), *model.candidates]
    best = {field: max((getattr(one, field) for one in rows), default=0.0) for field in fields}
    return [
        {"candidate": one, "cells": [(getattr(one, f), getattr(one, f) == best[f]) for f in fields]} for one in rows
    ]


def _differences(findings: Findings, one: Finalist) -> list[tuple[str, Difference]]:
    """What was confirmed of a change: against the model as it is, and against statistics estimated again alone."""
    noise, strong = f"noise {findings.noise_std:g}", f"strong {numbers.eps_text(findings, findings.eps)}"
    beyond = ", beyond statistics"
    rows = [("clean", one.clean), (noise, one.noise), (strong, one.strong)]
    extra = [(noise + beyond, one.noise_beyond_statistics), (strong + beyond, one.beyond_statistics)]
    return rows + [(name, found) for name, found in extra if found is not None]


# ---------------------------------------------------------------- text


def text(findings: Findings) -> str:
    """Return what the command prints: for each model its advice and three numbers, then what else must be known."""
    lines = []
    for model, name in zip(findings.models, numbers.short_names(findings), strict=True):
        lines += _indented(
            "", f"{name}, {findings.data}, confirmed on {findings.n_reporting} images that chose nothing"
        )
        lines += _indented("  ", numbers.in_short(findings, model))
        for i, advice in enumerate(model.advice, 1):
            lines += _indented(f"  {i}. ", advice.text)
            lines += [f"     {advice.command}"] if advice.command else []
        shown = [_headline_text(findings, *item) for item in numbers.headline(findings, model).items()]
        lines += _indented("  ", "correct (95% interval): " + "; ".join(shown))
        if model.upper_bounds:
            lines += _indented("  ", "These numbers are upper bounds: gradients are masked.")
        lines += [line for flag in model.flags for line in _indented("  ", flag.text)]
        lines.append("")
    if findings.pair:
        changes = "; ".join(f"{one.name} {numbers.change(one.difference)}" for one in findings.pair)
        lines += [*_indented("", f"second {numbers.MINUS} first, points (95% interval): {changes}"), ""]
    for one in findings.requirements:
        lines += _indented("", f"{'met' if one.met else 'NOT met'}: {one.text} ({numbers.measured(findings, one)})")
    for skipped in findings.skipped:
        lines += _indented("", f"left out to keep the time: {skipped}")
    return "\n".join(lines).rstrip("\n") + "\n"


def _indented(begin: str, text: str) -> list[str]:
    """Lines of a text that begin where it begins, after `begin`."""
    first, *rest = wrap(text, WIDTH - len(begin))
    return [begin + first, *(" " * len(begin) + line for line in rest)]


def _headline_text(findings: Findings, name: str, accuracy: Accuracy | None) -> str:
    size = {"noise": f" {findings.noise_std:g}", "strong": f" {numbers.eps_text(findings, findings.eps)}"}.get(name, "")
    if accuracy is None:
        return f"{name}{size} not measured"
    shown = accuracy.accuracy
    return f"{name}{size} {numbers.rounded(shown)} ({numbers.span(shown, numbers.digits_of(shown))})"


# ---------------------------------------------------------------- tables and figures


def figures(findings: Findings) -> dict[str, Figure]:
    """Return the figures that there are numbers for: `curve` (accuracy along eps) and `layers`."""
    return drawn.figures(findings)


def tables(findings: Findings) -> dict[str, list[dict[str, Any]]]:
    """Return the plain rows of all tables; each row names its model, accuracies are fractions.

    Returns:
        `accuracies`, `curve`, `layers`, `what_ifs` (the model as it is and candidates, choosing half), `finalists`
        (reporting half, a row a difference), `advice`.
    """
    rows: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("accuracies", "curve", "layers", "what_ifs", "finalists", "advice")
    }
    for model in findings.models:
        source = {"model": model.source}
        every = [*model.accuracies, *([model.strong] if model.strong else [])]
        rows["accuracies"] += [
            {**source, "name": one.name, "about": one.about, **_interval("accuracy", one.accuracy), "n": one.n}
            for one in every
        ]
        rows["curve"] += [{**source, "eps": one.eps, **_interval("accuracy", one.accuracy)} for one in model.curve]
        rows["layers"] += [{**source, **_layer_row(one), "cause": one.name in model.causes} for one in model.layers]
        rows["what_ifs"] += [
            {**source, **one.model_dump(exclude={"mend"}), **one.mend.model_dump(exclude={"finetune"})}
            for one in [*([model.as_it_is] if model.as_it_is else []), *model.candidates]
        ]
        rows["finalists"] += [
            {**source, "title": one.title, "name": name, "before": d.before, "after": d.after,
             **_interval("difference", d.difference), "level": findings.level, "n": d.n, "gains": one.gains}
            for one in model.finalists for name, d in _differences(findings, one)
        ]  # fmt: skip
        rows["advice"] += [
            {**source, "rank": rank, "kind": one.kind, "text": one.text, "command": one.command}
            for rank, one in enumerate(model.advice, 1)
        ]
    return rows


def _interval(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, "low": interval.low, "high": interval.high}


def _layer_row(layer: Layer) -> dict[str, Any]:
    """A layer with a column for each quantile, None where it has none."""
    row = layer.model_dump(exclude={"variance", "gain"})
    for name, values in (("variance", layer.variance), ("gain", layer.gain)):
        shown = values or [None] * len(QUANTILES)
        row |= {f"{name}_{at}": value for at, value in zip(QUANTILES, shown, strict=True)}
    return row

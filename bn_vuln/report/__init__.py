"""Reports from records alone: Markdown, CSV, JSON and one-file HTML. No TensorFlow."""

from __future__ import annotations

import base64
import shlex
from pathlib import Path
from typing import Literal

from bn_vuln import catalog, config, records
from bn_vuln.aggregate import Results, aggregate
from bn_vuln.config import Experiment
from bn_vuln.errors import UsageError
from bn_vuln.progress import duration
from bn_vuln.report import tables

Format = Literal["html", "md", "csv"]


# By whether the layout selects a candidate.
CAPTIONS = {
    False: "Left: accuracy of each arm, mean ± SEM, dots are single seeds. Right: difference of the arms, paired by "
    "seed, with its 95% t-interval; beside it the paper's, where it has one.",
    True: "Each point is a candidate setting: what batch norm costs there, against the accuracy that chooses one.",
}


def experiments_in(folder: Path) -> list[Experiment]:
    """The experiments a results folder holds. Raises `UsageError` where there is none."""
    paths = sorted((folder / "experiments").glob("*.yaml"))
    if not paths:
        raise UsageError(f"{folder}: no experiment here (expected {folder}/experiments/NAME-SCALE.yaml); "
                         "`bnvuln reproduce NAME` makes one")  # fmt: skip
    return [config.validate(Experiment, config.read_yaml(path), str(path)) for path in paths]


def render(results: Results, form: Format) -> str:
    """One experiment as `md`, `csv` or `html` text."""
    if form == "csv":
        return tables.csv_text(results)
    if form == "md":
        return markdown(results)
    return html([results])


def write(folder: Path, form: Format = "html", only: Experiment | None = None) -> list[Path]:
    """Write the report of a results folder (or of one of its experiments) into FOLDER/report.

    html: one page for all; md (with the figure as SVG and PNG) and csv: one file for each experiment. Returns
    the files written.
    """
    from bn_vuln.report import figures

    chosen = [only] if only else experiments_in(folder)
    results = [aggregate(experiment, folder) for experiment in chosen]
    target = folder / "report"
    if form == "html":
        name = catalog.stem(chosen[0]) if only else "index"
        return [_write(target / f"{name}.html", html(results))]
    written = []
    for one in results:
        stem = catalog.stem(one.experiment)
        figure = figures.figure(one) if form == "md" else None
        if figure:
            written.append(_write(target / f"{stem}.svg", figure))
            written.append(_write(target / f"{stem}.png", figures.figure(one, "png") or b""))
        text = markdown(one, f"{stem}.png" if figure else None) if form == "md" else render(one, form)
        written.append(_write(target / f"{stem}.{form}", text))
    return written


def _write(path: Path, content: bytes | str) -> Path:
    records.replace_file(path, content)
    return path


def facts(results: Results) -> list[tuple[str, str]]:
    """What a reader needs beside the numbers: command, scale, counts, time, machine, versions."""
    experiment = results.experiment
    state = f"{results.cells} trainings"
    state += f", {results.failed} failed to train" if results.failed else ""
    state += f", {results.missing} not run" if results.missing else ""
    scale = "" if experiment.scale == "full" else f" --scale {experiment.scale}"
    scale += "".join(f" --set {shlex.quote(override)}" for override in experiment.overrides)
    measured = {v.n_examples for b in results.blocks for arm in b.arms.values() for v in arm.values() if v.n_examples}
    examples = ", ".join(f"{n:,}" for n in sorted(measured)) or "none yet"
    return [
        ("Command", f"bnvuln reproduce {_name(experiment)}{scale}"),
        ("Source", experiment.source),
        ("Scale", experiment.scale),
        ("Examples", f"{examples} ({experiment.evaluation.split})"),
        ("State", state),
        ("Time", f"{duration(results.seconds)} of training and evaluation"),
        ("Machine", "; ".join(results.devices) or "none yet"),
        ("Versions", "; ".join(results.versions) or "none yet"),
    ]


def _name(experiment: Experiment) -> str:
    """What the command takes: the name of an experiment that ships, or the file of another one."""
    known = [name for kind in catalog.KINDS for name in catalog.names(kind)]
    return experiment.name if experiment.name in known else f"{experiment.name}.yaml"


def markdown(results: Results, figure: str | None = None) -> str:
    """An experiment as a Markdown page."""
    experiment = results.experiment
    parts = [f"# {experiment.title}", f"Claim: {experiment.claim}"]
    for table in tables.tables(results):
        parts += [f"## {table.title}", tables.markdown_table(table)]
    if figure:
        parts.append(f"![{experiment.title}]({figure})")
    parts += [*(f"- {note}" for note in experiment.notes)]
    parts.append("\n".join(f"- {name}: {text}" for name, text in facts(results)))
    return "\n\n".join(parts) + "\n"


def html(results: list[Results]) -> str:
    """One self-contained page: no scripts, no network, light and dark, readable on a phone, printable."""
    import jinja2

    from bn_vuln.report import figures

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bn_vuln.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    sections = [
        {
            "results": one,
            "experiment": one.experiment,
            "tables": tables.tables(one),
            "facts": facts(one),
            "config": config.to_yaml(one.experiment),
            "caption": CAPTIONS[one.experiment.table.select_by is not None],
            "figure": _data_uri(figures.figure(one)),
        }
        for one in results
    ]
    return environment.get_template("report.html.jinja").render(sections=sections)


def _data_uri(svg: bytes | None) -> str | None:
    """An SVG as an address inside the page; a picture of its own is isolated from the page's styles."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}" if svg else None

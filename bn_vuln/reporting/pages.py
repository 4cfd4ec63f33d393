"""Reports from records alone: Markdown, CSV, JSON, LaTeX and one-file HTML. No TensorFlow."""

from __future__ import annotations

import base64
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from bn_vuln import config, records
from bn_vuln.config import Experiment
from bn_vuln.errors import UsageError
from bn_vuln.experiments import catalog
from bn_vuln.reporting import footnotes, tables
from bn_vuln.reporting.aggregate import Results, aggregate
from bn_vuln.runtime.progress import duration

Format = Literal["html", "md", "csv", "tex"]

# In the order in which a summary counts them; one that is not here comes last.
VERDICTS = ("holds", "holds in sign", "fails", "undecided", "preview", "not run")


def experiments_in(folder: Path) -> list[Experiment]:
    """The experiments a results folder holds. Raises `UsageError` where there is none."""
    paths = sorted((folder / "experiments").glob("*.yaml"))
    if not paths:
        raise UsageError(f"{folder}: no experiment here (expected {folder}/experiments/NAME-SCALE.yaml); "
                         "`bnvuln reproduce NAME` makes one")  # fmt: skip
    return [config.validate(Experiment, config.read_yaml(path), str(path)) for path in paths]


def render(results: Results, form: Format) -> str:
    """One experiment as `md`, `csv`, `tex` or `html` text."""
    from bn_vuln.reporting import latex  # which needs this module

    if form == "csv":
        return tables.csv_text(results)
    if form == "md":
        return markdown(results)
    return latex.latex(results) if form == "tex" else html([results])


def write(folder: Path, form: Format = "html", only: Experiment | None = None) -> list[Path]:
    """Write the report of a results folder (or of one of its experiments) into FOLDER/report.

    html: one page for all; md (with its figures as SVG and PNG), csv and tex: one file for each experiment. Returns
    the files written.
    """
    chosen = [only] if only else experiments_in(folder)
    results = [aggregate(experiment, folder) for experiment in chosen]
    target = folder / "report"
    if form == "html":
        name = catalog.stem(chosen[0]) if only else "index"
        return [_write(target / f"{name}.html", html(results))]
    written = []
    for one in results:
        drawn = _write_figures(target, one) if form == "md" else []
        pictures = {path.name: caption for path, caption in drawn if path.suffix == ".png"}
        text = markdown(one, pictures) if form == "md" else render(one, form)
        written += [*(path for path, _ in drawn), _write(target / f"{catalog.stem(one.experiment)}.{form}", text)]
    return written


def _write_figures(target: Path, results: Results) -> list[tuple[Path, str]]:
    """Every figure of an experiment as SVG and as PNG, with its caption."""
    from bn_vuln.reporting import figures

    stem = catalog.stem(results.experiment)
    drawn = {form: figures.figures(results, form) for form in ("svg", "png")}
    pairs = zip(drawn["svg"], drawn["png"], strict=True)
    both = [(f"{stem}-{name}" if name else stem, text, svg, png) for (name, text, svg), (_, _, png) in pairs]
    return [
        (_write(target / f"{name}.{form}", picture), text)
        for name, text, svg, png in both
        for form, picture in (("svg", svg), ("png", png))
    ]


def _write(path: Path, content: bytes | str) -> Path:
    records.replace_file(path, content)
    return path


def verdicts(results: Results) -> str:
    """The verdicts in one line, counted: `holds: 3, undecided: 1`; `preview` alone below full scale."""
    counts = Counter(comparison.verdict for comparison in results.comparisons)
    del counts["context"]
    if not counts:
        return "no figure of the paper to judge"
    if set(counts) == {"preview"}:
        return "preview"
    order = [*VERDICTS, *counts]
    return ", ".join(f"{verdict}: {counts[verdict]}" for verdict in sorted(counts, key=order.index))


def facts(results: Results) -> list[tuple[str, str]]:
    """What a reader needs beside the numbers: verdict, command, cost, scale, counts, time, machine, versions."""
    experiment = results.experiment
    state = f"{results.cells} trainings"
    state += f", {results.failed} failed to train" if results.failed else ""
    state += f", {results.missing} not run" if results.missing else ""
    scale = "" if experiment.scale == "full" else f" --scale {experiment.scale}"
    scale += "".join(f" --set {shlex.quote(override)}" for override in experiment.overrides)
    costs = ", ".join(f"{name} {text}" for name, text in experiment.cost.items())
    return [
        ("Verdict", verdicts(results)),
        ("Command", f"bnvuln reproduce {_name(experiment)}{scale}"),
        *([("Cost", f"{costs} on two cores (--jobs 2)")] if costs else []),
        ("Source", experiment.source),
        ("Scale", experiment.scale),
        ("Epochs", _epochs(results)),
        ("Examples", _examples(results)),
        ("State", state),
        ("Time", f"{duration(results.seconds)} of training and evaluation"),
        ("Machine", "; ".join(results.devices) or "none yet"),
        ("Versions", "; ".join(results.versions) or "none yet"),
    ]


def _epochs(results: Results) -> str:
    """Of training, of all cells: `8`, or `10, 40`."""
    return ", ".join(map(str, sorted({run.cell.train.epochs for block in results.blocks for run in block.runs})))


def _examples(results: Results) -> str:
    """How many of which split, for each evaluation that the table has columns of."""
    at = footnotes.measured_at(results, results.experiment.table.columns)
    counts = [(footnotes.examples(results, parts) or "none yet", plan) for plan, parts in at]
    return ", ".join(f"{n} ({plan.column(plan.evaluation.split)})" for n, plan in counts)


def _name(experiment: Experiment) -> str:
    """What the command takes: the name of an experiment that ships, or the file of another one."""
    known = [name for kind in catalog.KINDS for name in catalog.names(kind)]
    return experiment.name if experiment.name in known else f"{experiment.name}.yaml"


def markdown(results: Results, pictures: Mapping[str, str] | None = None) -> str:
    """An experiment as a Markdown page; `pictures` are the files of its figures, with their captions."""
    experiment = results.experiment
    parts = [f"# {experiment.title}", f"Claim: {experiment.claim}", f"Verdict: {verdicts(results)}"]
    for table in tables.tables(results):
        parts += [f"## {table.title}", tables.markdown_table(table)]
    parts += [f"![{experiment.title}]({name})\n\n*{caption}*" for name, caption in (pictures or {}).items()]
    parts += [*(f"- {note}" for note in experiment.notes)]
    parts.append("\n".join(f"- {name}: {text}" for name, text in facts(results)))
    return "\n\n".join(parts) + "\n"


def html(results: list[Results]) -> str:
    """One self-contained page: no scripts, no network, light and dark, readable on a phone, printable."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bn_vuln.reporting", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = [
        {
            "id": catalog.stem(one.experiment),
            "experiment": one.experiment,
            "verdict": verdicts(one),
            "tables": tables.tables(one),
            "figures": _pictures(one),
            "facts": facts(one),
            "config": config.to_yaml(one.experiment),
        }
        for one in results
    ]
    return environment.get_template("report.html.jinja").render(sections=sections)


def _pictures(results: Results) -> list[dict[str, str]]:
    """The figures of an experiment for a page."""
    from bn_vuln.reporting import figures

    title = results.experiment.title
    drawn = figures.figures(results)
    return [
        {"uri": _data_uri(svg), "caption": caption, "alt": f"{title}: {name}" if name else title}
        for name, caption, svg in drawn
    ]


def _data_uri(svg: bytes) -> str:
    """An SVG as an address inside the page; a picture of its own is isolated from the page's styles."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"

"""Reports from records alone: Markdown, CSV, JSON, LaTeX and one-file HTML. No TensorFlow."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from bn_vuln import config
from bn_vuln.config import Experiment
from bn_vuln.experiments import catalog
from bn_vuln.records import open_store
from bn_vuln.reporting import latex, summary, tables
from bn_vuln.reporting.aggregate import Results, aggregate
from bn_vuln.runtime.files import atomic_write

Format = Literal["html", "md", "csv", "tex"]


def render(results: Results, form: Format) -> str:
    """One experiment as `md`, `csv`, `tex` or `html` text."""
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
    store = open_store(folder)
    chosen = [only] if only else store.experiments()
    results = [aggregate(experiment, store) for experiment in chosen]
    target = folder / "report"
    if form == "html":
        name = catalog.file_stem(chosen[0]) if only else "index"
        return [_write(target / f"{name}.html", html(results))]
    written = []
    for one in results:
        drawn = _write_figures(target, one) if form == "md" else []
        pictures = {path.name: caption for path, caption in drawn if path.suffix == ".png"}
        text = markdown(one, pictures) if form == "md" else render(one, form)
        written += [*(path for path, _ in drawn), _write(target / f"{catalog.file_stem(one.experiment)}.{form}", text)]
    return written


def _write_figures(target: Path, results: Results) -> list[tuple[Path, str]]:
    """Every figure of an experiment as SVG and as PNG, with its caption."""
    from bn_vuln.reporting import figures

    stem = catalog.file_stem(results.experiment)
    drawn = {form: figures.figures(results, form) for form in ("svg", "png")}
    pairs = zip(drawn["svg"], drawn["png"], strict=True)
    both = [(f"{stem}-{name}" if name else stem, text, svg, png) for (name, text, svg), (_, _, png) in pairs]
    return [
        (_write(target / f"{name}.{form}", picture), text)
        for name, text, svg, png in both
        for form, picture in (("svg", svg), ("png", png))
    ]


def _write(path: Path, content: bytes | str) -> Path:
    atomic_write(path, content)
    return path


def markdown(results: Results, pictures: Mapping[str, str] | None = None) -> str:
    """An experiment as a Markdown page; `pictures` are the files of its figures, with their captions."""
    experiment = results.experiment
    parts = [f"# {experiment.title}", f"Claim: {experiment.claim}", f"Verdict: {summary.verdicts(results)}"]
    for table in tables.tables(results):
        parts += [f"## {table.title}", tables.markdown_table(table)]
    parts += [f"![{experiment.title}]({name})\n\n*{caption}*" for name, caption in (pictures or {}).items()]
    parts += [*(f"- {note}" for note in experiment.notes)]
    parts.append("\n".join(f"- {name}: {text}" for name, text in summary.summary_rows(results)))
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
            "id": catalog.file_stem(one.experiment),
            "experiment": one.experiment,
            "verdict": summary.verdicts(one),
            "tables": tables.tables(one),
            "figures": _pictures(one),
            "summary": summary.summary_rows(one),
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


def claims_table(folders: Iterable[Path], link: str = "{folder}/report/{stem}.md") -> str:
    """Make one Markdown table of every claim of every experiment beside ours, with its verdict.

    Args:
        folders: Results folders, packed or not.
        link: The address of an experiment's page; `{folder}`, `{stem}` (NAME-SCALE) and `{name}` are filled in.

    Returns:
        For each experiment a row with what it claims and its verdicts counted, then one row for each judged claim.
    """
    heads = ["experiment", "claim", "under", "paper", "ours ± SEM (n)", "verdict", "reason of a difference"]
    rows = []
    for folder in folders:
        store = open_store(folder)
        for results in (aggregate(experiment, store) for experiment in store.experiments()):
            name, stem = results.experiment.name, catalog.file_stem(results.experiment)
            page = link.format(folder=folder.name, stem=stem, name=name)
            rows.append([f"[{name}]({page})", results.experiment.claim, "", "", "", summary.verdicts(results), ""])
            for claim in tables.claims(results):
                if claim.verdict != "context":
                    place = ", ".join(tables.words(claim.where, named=True))
                    about = f"{place}: {claim.quantity}" if place else claim.quantity
                    rows.append(["", about, claim.under, claim.published, claim.ours, claim.verdict, claim.remark])
    lines = [" | ".join(text.replace("|", "\\|") for text in row) for row in (heads, *rows)]
    lines.insert(1, "|".join("---" for _ in heads))
    return "\n".join(f"| {line} |" for line in lines)

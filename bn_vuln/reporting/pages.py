"""Reports from existing records: Markdown, CSV, JSON, LaTeX and one-file HTML. No TensorFlow."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from bn_vuln import config
from bn_vuln.config import Experiment
from bn_vuln.experiments import catalog
from bn_vuln.records import Store, describe_damaged, open_store
from bn_vuln.reporting import exports, figures, latex, legend, models, summary, tables, templates
from bn_vuln.reporting.aggregate import Results, aggregate
from bn_vuln.runtime import escapes
from bn_vuln.runtime.files import atomic_write
from bn_vuln.runtime.progress import Progress, Quiet
from bn_vuln.typing import Plain

Format = Literal["html", "md", "csv", "tex"]


def render(results: Results, form: Format) -> str:
    """One experiment as `md`, `csv`, `tex` or `html` text."""
    if form == "csv":
        return exports.csv_text(results)
    if form == "md":
        return markdown(results)
    return latex.latex_tables(results) if form == "tex" else html([results])


def write(
    folder: Path, form: Format = "html", only: Experiment | None = None, progress: Progress | None = None
) -> list[Path]:
    """Write the report of a results folder (or of one of its experiments) into FOLDER/report.

    html: one page for all; md (with its figures as SVG and PNG), csv and tex: one file for each experiment. Without
    experiments it is of the runs and external models in the folder, which may be one of these. Returns the files
    written. Damaged files count as missing; they are named in the report, and to `progress`.
    """
    if only is None and not has_experiments(folder):
        return models.write(folder, form, progress)
    store = open_store(folder)
    written = _write_forms(store, folder / "report", form, only)
    for line in describe_damaged(store.damaged):
        (progress or Quiet()).message(f"damaged, counted as missing: {line}")
    return written


def _write_forms(store: Store, target: Path, form: Format, only: Experiment | None) -> list[Path]:
    chosen = [only] if only else store.experiments()
    results = [aggregate(experiment, store) for experiment in chosen]
    if form == "html":
        name = catalog.file_stem(chosen[0]) if only else "index"
        return [_write(target / f"{name}.html", html(results))]
    written = []
    every = _write_figures(target, results) if form == "md" else [[]] * len(results)
    for one, drawn in zip(results, every, strict=True):
        pictures = {path.name: caption for path, caption in drawn if path.suffix == ".png"}
        text = markdown(one, pictures) if form == "md" else render(one, form)
        written += [*(path for path, _ in drawn), _write(target / f"{catalog.file_stem(one.experiment)}.{form}", text)]
    return written


def write_all(folder: Path, only: Experiment, progress: Progress) -> None:
    """Write the report of an experiment in every format, and name the files; the page comes last, where it is seen."""
    forms: tuple[Format, ...] = ("md", "csv", "tex", "html")
    for path in (path for form in forms for path in write(folder, form, only)):
        progress.message(f"report: {path}")


def to_json(folder: Path) -> Plain:
    """Return what a report of a results folder, or of a run folder, has: its experiments, or its models."""
    if not has_experiments(folder):
        return {"models": [models.entry_fields(one) for one in models.read(folder)]}
    store = open_store(folder)
    return {"experiments": [exports.to_json(aggregate(experiment, store)) for experiment in store.experiments()]}


def has_experiments(folder: Path) -> bool:
    """Return whether a results folder has experiments, rather than single models."""
    return any((folder / "experiments").glob("*.yaml"))


def _write_figures(target: Path, every: Sequence[Results]) -> list[list[tuple[Path, str]]]:
    """Write the figures of each experiment as SVG and PNG. Return, for each, their files and captions."""
    written = []
    for results, svgs, pngs in zip(every, figures.draw_all(every), figures.draw_all(every, "png"), strict=True):
        stem = catalog.file_stem(results.experiment)
        written.append(
            [
                (_write(target / (f"{stem}-{name}.{form}" if name else f"{stem}.{form}"), picture), text)
                for pair in zip(svgs, pngs, strict=True)
                for form, (name, text, picture) in zip(("svg", "png"), pair, strict=True)
            ]
        )
    return written


def _write(path: Path, content: bytes | str) -> Path:
    atomic_write(path, content)
    return path


def text(results: Results) -> str:
    """Return the tables of an experiment for the terminal."""
    parts = [f"{results.experiment.title}\nClaim: {results.experiment.claim}"]
    parts += [f"{table.title}\n{tables.text_table(table)}" for table in tables.result_tables(results)]
    return "\n\n".join([*parts, *(f"Note: {note}" for note in results.experiment.notes)]) + "\n"


def markdown(results: Results, pictures: Mapping[str, str] | None = None) -> str:
    """An experiment as a Markdown page; `pictures` are the files of its figures, with their captions."""
    experiment = results.experiment
    title = escapes.markdown(experiment.title)
    parts = [f"# {title}", escapes.markdown(f"Claim: {experiment.claim}"), summary.verdicts(results).capitalize()]
    for table, lines in tables_with_legends(results):
        explained = [f"- **{escapes.markdown(term)}**: {escapes.markdown(text)}" for term, text in lines]
        parts += [f"## {escapes.markdown(table.title)}", tables.markdown_table(table), "\n".join(explained)]
    parts += [f"![{title}]({name})\n\n*{escapes.markdown(caption)}*" for name, caption in (pictures or {}).items()]
    parts += [*(f"- {escapes.markdown(note)}" for note in experiment.notes)]
    rows = summary.summary_rows(results)
    parts.append("\n".join(f"- {escapes.markdown(f'{name}: {text}')}" for name, text in rows))
    return "\n\n".join(parts) + "\n"


def tables_with_legends(results: Results) -> list[tuple[tables.TextTable, legend.Lines]]:
    """Return every table of an experiment with the lines that say what is in it."""
    lines = [legend.columns(results), legend.verdicts(results)]
    return list(zip(tables.result_tables(results), lines, strict=False))


def _name_column(table: tables.TextTable) -> int:
    """The column that names a row, after the row keys: the arm, which is before n, or the quantity claimed."""
    return table.header.index("quantity") if "quantity" in table.header else table.header.index("n") - 1


def html(results: list[Results]) -> str:
    """One self-contained page: no scripts, no network, light and dark, readable on a phone, printable."""
    sections = [
        {
            "id": catalog.file_stem(one.experiment),
            "experiment": one.experiment,
            "verdict": summary.verdicts(one),
            "tables": [(table, lines, _name_column(table)) for table, lines in tables_with_legends(one)],
            "figures": [
                {
                    # An address inside the page: a picture of its own is isolated from the page's styles.
                    "uri": f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}",
                    "caption": caption,
                    "alt": f"{one.experiment.title}: {name}" if name else one.experiment.title,
                }
                for name, caption, svg in drawn
            ],
            "summary": summary.summary_rows(one),
            "config": config.to_yaml(one.experiment),
        }
        for one, drawn in zip(results, figures.draw_all(results), strict=True)
    ]
    return templates.render("report.html.jinja", sections=sections, verdict=summary.verdicts(*results))


def claims_table(folders: Iterable[Path], link: str = "{folder}/report/{stem}.md") -> str:
    """Make one Markdown table of every claim of every experiment beside what was measured, with its verdict.

    Args:
        folders: Results folders, packed or not.
        link: The address of an experiment's page; `{folder}`, `{stem}` (NAME-SCALE) and `{name}` are filled in.

    Returns:
        For each experiment a row with what it claims and its verdicts counted, then one row for each judged claim.
    """
    heads = ["experiment", "claim", "under", "claimed", "measured ± SEM (n)", "verdict", "explanation"]
    rows = []
    for folder in folders:
        store = open_store(folder)
        for results in (aggregate(experiment, store) for experiment in store.experiments()):
            name, stem = results.experiment.name, catalog.file_stem(results.experiment)
            page = link.format(folder=folder.name, stem=stem, name=name)
            claimed = escapes.markdown(results.experiment.claim)
            rows.append([f"[{name}]({page})", claimed, "", "", "", summary.verdicts(results), ""])
            for claim in tables.claim_texts(results):
                if claim.verdict != "context":
                    place = ", ".join(tables.describe_keys(claim.where, named=True))
                    about = f"{place}: {claim.quantity}" if place else claim.quantity
                    texts = (about, claim.under, claim.published, claim.ours, claim.verdict, claim.remark)
                    rows.append(["", *(escapes.markdown(text, in_cell=True) for text in texts)])
    lines = [" | ".join(row) for row in (heads, *rows)]
    lines.insert(1, "|".join("---" for _ in heads))
    return "\n".join(f"| {line} |" for line in lines)

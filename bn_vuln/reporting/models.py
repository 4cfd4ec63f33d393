"""Runs and external models with their records: as a list, one by one, and as a page. No experiment is needed."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from bn_vuln.auditing.mended import Mended, changes
from bn_vuln.config import describe_cell, describe_fields, describe_weights, to_plain
from bn_vuln.errors import UsageError
from bn_vuln.records import Entry, TrainingRecord, entries, entry, is_packed, is_run_folder, open_run, open_store
from bn_vuln.reporting import templates
from bn_vuln.reporting.exports import measurement_fields, record_fields
from bn_vuln.reporting.tables import (
    MISSING,
    WIDTH,
    TextTable,
    markdown_table,
    measurements_table,
    records_table,
    text_table,
    wrap,
)
from bn_vuln.runtime import escapes
from bn_vuln.runtime.files import atomic_write
from bn_vuln.runtime.progress import Progress, Quiet
from bn_vuln.typing import Plain


def models_table(entries: Sequence[Entry]) -> TextTable:
    """Return one row for each model, with the files that cannot be read in the notes."""
    rows = []
    for one in entries:
        accuracy = MISSING if one.clean is None else f"{100 * one.clean.accuracy:.2f}"
        rows.append([one.name, one.id, one.dataset or MISSING, one.state, accuracy, str(len(one.records))])
    notes = [problem for one in entries for problem in one.problems]
    return TextTable("Models", ["model", "id", "data", "state", "clean, %", "records"], rows, notes=tuple(notes))


def listed(folder: Path) -> tuple[Plain, str]:
    """Return the models of a results folder, the newest first, as plain data and as text.

    Raises:
        UsageError: There is no such folder, or it is of one run.
    """
    if not folder.exists() and folder != Path("runs"):
        raise UsageError(f"{folder}: no such folder")
    if is_run_folder(folder) and not is_packed(folder):
        raise UsageError(f"{folder} is one run: bnvuln show {shlex.quote(str(folder))}")
    found = entries(open_store(folder))
    data = {"folder": str(folder), "models": [entry_row_fields(one) for one in found]}
    return data, text_table(models_table(found)) if found else _nothing_here(folder)


def _nothing_here(folder: Path) -> str:
    """Return what is said of a results folder without models: how to make some, and where there are some below it."""
    lines = [f"nothing in {folder}/: train a model (bnvuln train), or measure one of yours:"]
    lines += ["bnvuln evaluate MODEL.keras --data NAME"]
    below = sorted({path.parent for path in folder.glob("*/*") if is_run_folder(path)})
    below += sorted(path for path in folder.glob("*") if is_packed(path))
    lines += [f"there are models in {', '.join(map(str, below))}"] if below else []
    return "\n".join(lines)


def describe_training(record: TrainingRecord) -> str:
    """Return how a training ended, and what to try where it failed."""
    if record.state == "failed":
        kept = f" (epoch {record.best_epoch} of {record.epochs} is kept)" if record.best_epoch else ""
        remedy = "try another --lr, more --epochs, or --select last where few validation images choose the epoch"
        return f"failed to train{kept}: {record.reason}\n{remedy}"
    accuracy = f"validation accuracy {100 * (record.validation_accuracy or 0):.2f}%"
    if not record.epochs:
        return f"{accuracy} (nothing to train)"
    epochs = f"(epoch {record.best_epoch} of {record.epochs})"
    return f"{accuracy} {epochs}, {record.parameters:,} parameters, {record.images_per_second:,.0f} images/s"


def mended_text(found: Mended) -> str:
    """Return the table of before and after, with what it is of."""
    notes = (
        f"{found.n} images of {found.data} ({found.split}), none of which it was fitted on; paired differences",
        found.strong,
        *(f"flag: {flag}" for flag in found.flags),
    )
    title, rows = ". ".join(changes(found.mend)), [list(row) for row in found.rows]
    return f"{title}\n\n{text_table(TextTable(title, list(found.header), rows, notes=notes))}"


def summary_rows(entry: Entry) -> list[tuple[str, str]]:
    """Return what is known of a model besides its numbers, as (name, text)."""
    rows = [("folder", str(entry.folder)), ("state", entry.state)]
    if entry.cell is not None:
        rows += [("config", describe_cell(entry.cell))]
    if entry.external is not None:
        # What was found when it was opened, as it was said then: a word, and the rest of the line.
        found = [str(line).partition(" ") for line in entry.external.found.get("lines", ())]
        rows += [("file", entry.external.path or entry.external.source), *((n, text.strip()) for n, _, text in found)]
    elif entry.cell is None and entry.records:
        rows += [("missing", "config.yaml, or model.json of an external model: bnvuln attack MODEL writes that again")]
    training = entry.training
    if training is not None and entry.cell is not None and entry.cell.weights:
        rows += [("parameters", f"{training.parameters:,}, with {describe_weights(entry.cell)}")]
    elif training is not None:
        text = f"failed: {training.reason}"
        if training.state != "failed":
            text = f"{training.state}: validation accuracy {100 * (training.validation_accuracy or 0):.2f}%"
            text += f" (epoch {training.best_epoch} of {training.epochs})" if training.epochs else ""
        rows += [("training", f"{text}, {training.parameters:,} parameters, {training.seconds:.0f} s")]
    return [*rows, *(("damaged", problem) for problem in entry.problems)]


def text(entry: Entry) -> str:
    """Return a model with its records for the terminal."""
    rows = summary_rows(entry)
    width = max(len(name) for name, _ in rows)
    lines = wrap(entry.name, WIDTH)
    lines += [line for n, text in rows for line in wrap(f"{n:{width}}  {text}", WIDTH, indent=" " * (width + 2))]
    tables = [f"\n{table.title}\n{text_table(table)}" for table in result_tables(entry)]
    return "\n".join([*lines, *(tables or ["no records"])])


def next_steps(entry: Entry) -> list[str]:
    """Return the commands that make sense now."""
    run = shlex.quote(str(entry.folder))
    if entry.records:
        return [f"bnvuln compare {run} OTHER", *([f"bnvuln report {run}"] if entry.folder.is_dir() else [])]
    if entry.state == "trained":
        return [f"bnvuln attack {run} --eps 8/255", f"bnvuln evaluate {run}"]
    return ["the same bnvuln train again goes on"] if entry.state == "unfinished" else []


def result_tables(entry: Entry) -> list[TextTable]:
    """Return the records and the measurements of a model, as far as there are any."""
    records = {record.perturbation_id: record for record in entry.records}
    tables = [replace(records_table(records, named=False, datasets=entry.datasets), title="Records")] if records else []
    measurements = [replace(measurements_table(entry.measurements), title="Measurements")] if entry.measurements else []
    return [*tables, *measurements]


def entry_row_fields(entry: Entry) -> Plain:
    """Return the row of a model in a list as plain data."""
    return {
        "name": entry.name,
        "id": entry.id,
        "folder": str(entry.folder),
        "dataset": entry.dataset or None,
        "state": entry.state,
        "clean_accuracy": None if entry.clean is None else entry.clean.accuracy,
        "records": len(entry.records),
        "problems": list(entry.problems),
    }


def entry_fields(entry: Entry) -> Plain:
    """Return a model with its records as plain data."""
    return {
        **entry_row_fields(entry),
        "config": None if entry.cell is None else to_plain(entry.cell),
        "training": None if entry.training is None else entry.training.model_dump(mode="json"),
        "external": None if entry.external is None else entry.external.model_dump(mode="json"),
        "records": [record_fields(record) for record in entry.records],
        "measurements": [measurement_fields(record) for record in entry.measurements],
    }


# ---------------------------------------------------------------- pages


def read(folder: Path) -> list[Entry]:
    """Return the models of a results folder, or the one of a run folder."""
    if is_run_folder(folder) and not is_packed(folder):
        return [entry(*open_run(folder))]
    return entries(open_store(folder))


def write(folder: Path, form: Literal["html", "md", "csv", "tex"], progress: Progress | None = None) -> list[Path]:
    """Write the page of a results folder that has no experiments, or of one run folder, into FOLDER/report.

    Damaged files are left out, and named on the page and to `progress`.

    Returns:
        The file.

    Raises:
        UsageError: There is no model, or the format is one of experiments.
    """
    found = read(folder)
    if not found:
        below = list(dict.fromkeys(path.parent.parent for path in sorted(folder.glob("*/experiments/*.yaml"))))
        if below:
            names = ", ".join(map(str, below))
            raise UsageError(f"{folder}: no experiment here, but in {names}: bnvuln report {below[0]}")
        raise UsageError(
            f"{folder}: no experiment here (bnvuln reproduce NAME makes one), no run and no measured model"
        )
    if form == "tex":
        raise UsageError("--format tex is for experiments (bnvuln reproduce); expected html, md or csv")
    text = csv_text(found) if form == "csv" else markdown(found) if form == "md" else html(found)
    path = folder / "report" / f"models.{form}"
    atomic_write(path, text)
    for problem in (problem for one in found for problem in one.problems):
        (progress or Quiet()).message(f"left out: {problem}")
    return [path]


def markdown(found: Sequence[Entry]) -> str:
    """Return models with their records as a Markdown page."""
    parts = ["# Models and their records"]
    parts += [markdown_table(models_table(found))] if len(found) > 1 else []
    for one in found:
        rows = [f"- {escapes.markdown(f'{name}: {text}')}" for name, text in summary_rows(one)]
        parts += [f"## {escapes.markdown(f'{one.name} ({one.id})')}", "\n".join(rows)]
        parts += [f"### {table.title}\n\n{markdown_table(table)}" for table in result_tables(one)]
    return "\n\n".join(parts) + "\n"


def html(found: Sequence[Entry]) -> str:
    """Return models with their records as one self-contained page."""
    sections = [{"model": one, "summary": summary_rows(one), "tables": result_tables(one)} for one in found]
    overview = models_table(found) if len(found) > 1 else None
    return templates.render("models.html.jinja", sections=sections, overview=overview)


def csv_text(found: Sequence[Entry]) -> str:
    """Return one line for each record of each model, accuracies as fractions."""
    import pandas

    rows = []
    for one in found:
        for record in one.records:
            flags = " ".join(dict.fromkeys(str(flag.check) for flag in record.flags))
            numbers = [describe_fields(record.perturbation), record.n, record.accuracy, flags]
            rows.append([one.name, one.id, one.dataset, one.state, *numbers])
    names = ["model", "id", "dataset", "state", "perturbation", "examples", "accuracy", "flags"]
    cells = [[escapes.csv_cell(value) for value in row] for row in rows]
    return pandas.DataFrame(cells, columns=names).to_csv(index=False, lineterminator="\n")

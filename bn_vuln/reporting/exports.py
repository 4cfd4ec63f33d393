"""Exports of an experiment's table as a frame, CSV and plain data for JSON; fractions where tables show percent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from bn_vuln.analysis.statistics import Estimate
from bn_vuln.config import present_cell, present_perturbation, to_plain
from bn_vuln.records import MeasurementRecord, Record
from bn_vuln.reporting.aggregate import Results
from bn_vuln.reporting.claims import Comparison
from bn_vuln.reporting.results import Run, Value
from bn_vuln.reporting.tables import quantity
from bn_vuln.runtime import escapes
from bn_vuln.typing import Plain

if TYPE_CHECKING:
    from pandas import DataFrame


def frame(results: Results) -> DataFrame:
    """Return one row for each arm, column and seed, in the column's unit, percent and points as fractions.

    `state` is measured, failed (to train), missing, or none where a model has no such number.
    """
    import pandas

    rows = []
    for block in results.blocks:
        for arm, values in block.arms.items():
            runs = sorted((run for run in block.runs if run.arm == arm), key=lambda run: run.cell.seed)
            for column, value in values.items():
                flags = " ".join(dict.fromkeys(str(flag.check) for flag in value.flags))
                for run in runs:
                    number = value.by_seed.get(run.cell.seed)
                    fields = [plain_unit(results, column), value.n_examples, state(results, run, column, value)]
                    fields += ["" if number is None else flags]
                    rows.append([*block.where.values(), arm, column, run.cell.seed, number, *fields])
    names = ["arm", "perturbation", "seed", "value", "unit", "examples", "state", "flags"]
    made = pandas.DataFrame(rows, columns=[*results.experiment.table.rows, *names], dtype=object)
    return made.astype({"seed": "int64", "value": "float64", "examples": "Int64"})


def csv_text(results: Results) -> str:
    """Return the frame of an experiment as CSV, whose texts spreadsheets take for texts."""
    made = frame(results)
    texts = made.select_dtypes("object").map(escapes.csv_cell)
    safe = made.assign(**{str(name): texts[name] for name in texts}).rename(columns=escapes.csv_cell)
    return safe.to_csv(index=False, lineterminator="\n")


def state(results: Results, run: Run, column: str, value: Value) -> str:
    """Return `measured`, `failed`, `none` (the model has no such number) or `missing`."""
    if run.cell.seed in value.by_seed:
        return "measured"
    if run.failed:
        return "failed"
    parts = results.experiment.columns[column].parts
    return "none" if any(run.is_not_applicable(part) for part in parts) else "missing"


def plain_unit(results: Results, column: str) -> str:
    """Return the unit of a column's plain numbers."""
    unit = results.experiment.columns[column].unit
    return "fraction" if unit in ("%", "points") else unit


def to_json(results: Results) -> Plain:
    """Return the table as plain data, in the columns' units, percent and points as fractions.

    Differences are treatment - reference: paired by seed, and unpaired (SEMs in quadrature, as the authors do).
    """
    experiment, table = results.experiment, results.experiment.table
    return {
        "experiment": experiment.name,
        "scale": experiment.scale,
        "claim": experiment.claim,
        "evaluations": {plan.name: to_plain(plan.evaluation) for plan in experiment.plans if plan.name},
        "derived": {
            name: {"difference" if derived.difference else "mean": list(derived.source_columns)}
            for name, derived in experiment.derived.items()
        },
        "cells": results.cells,
        "failed": results.failed,
        "missing": results.missing,
        "damaged": [{"path": str(one.path), "reason": one.reason, "remedy": one.remedy} for one in results.damaged],
        "rows": [
            {
                "where": block.where,
                "arm": arm,
                "selected": block.selected,
                "perturbation": column,
                "unit": plain_unit(results, column),
                **estimate_fields(value.estimate),
                "examples": value.n_examples,
                "failed": value.failed,
                "missing": value.missing,
                "flags": [flag.model_dump() for flag in value.flags],
            }
            for block in results.blocks
            for arm, values in block.arms.items()
            for column, value in values.items()
        ],
        "differences": [
            {
                "where": block.where,
                "treatment": table.treatment,
                "reference": table.reference,
                "perturbation": column,
                "unit": plain_unit(results, column),
                "paired": estimate_fields(difference.paired),
                "unpaired": estimate_fields(difference.unpaired),
                "flags": [flag.model_dump() for flag in difference.flags],
            }
            for block in results.blocks
            for column, difference in block.differences.items()
        ],
        "comparisons": [comparison_fields(results, comparison) for comparison in results.comparisons],
    }


def comparison_fields(results: Results, comparison: Comparison) -> Plain:
    """Return a claim beside our number as plain data; slopes and ratios have no unit."""
    return {
        "where": comparison.where,
        "perturbation": comparison.perturbation,
        "unit": plain_unit(results, comparison.perturbation) if comparison.claim.in_unit else None,
        "arm": comparison.arm,
        **estimate_fields(comparison.ours),
        "claimed": comparison.claim.value,
        "claimed_sem": comparison.claim.sem,
        "difference": comparison.gap,
        "quantity": quantity(results, comparison),
        "verdict": comparison.verdict,
        "verdict_at_full_scale": comparison.verdict_at_full_scale,
        "flags": list(comparison.flags),
        "interval_over_examples": comparison.over_examples,
        "source": comparison.claim.source,
    }


def record_fields(record: Record) -> Plain:
    """Return a record as plain data, with its kind, under the present names of its fields."""
    fields = {"kind": record.kind, **record.model_dump(mode="json")}
    return _with_present_names(fields, "perturbation")


def measurement_fields(record: MeasurementRecord) -> Plain:
    """Return a measurement as plain data, under the present names of its fields."""
    return _with_present_names(record.model_dump(mode="json"), "measurement")


def records_to_json(
    target: object, records: Mapping[str, Record], measurements: Mapping[str, MeasurementRecord]
) -> Plain:
    """Return records and measurements of a classifier by name as plain data."""
    plain = {"target": str(target), "records": [{"name": n, **record_fields(one)} for n, one in records.items()]}
    others = [{"name": name, **measurement_fields(one)} for name, one in measurements.items()]
    return {**plain, **({"measurements": others} if others else {})}


def _with_present_names(fields: Plain, kind: str) -> Plain:
    return {**fields, kind: present_perturbation(fields[kind]), "cell": present_cell(fields["cell"])}


def estimate_fields(value: Estimate | None) -> Plain:
    """Return mean, SEM and n; n = 0 where there is no estimate."""
    return {"mean": value.mean if value else None, "sem": value.sem if value else None, "n": value.n if value else 0}

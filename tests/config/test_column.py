"""Columns of a table: their names, what they are numbers of, and metrics."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from helpers_records import SMALL, fill, small

from bn_vuln.config import METRICS, Attack, Clean, Column, Experiment, MinimumNorm, Spectrum
from bn_vuln.config.column import Metric
from bn_vuln.records import Record
from bn_vuln.reporting import exports, legend, tables
from bn_vuln.reporting.aggregate import aggregate

NEAR = MinimumNorm(unit="standardized")
PGD = Attack(eps=8 / 255, eps_grid=(2 / 255,))


def experiment(**changes: Any) -> Experiment:
    """Every kind of perturbation and measurement, here and at the evaluation `train`."""
    own = {**SMALL["perturbations"], "pgd": PGD, "near": NEAR}
    fields = {
        "perturbations": own,
        "measurements": {"low": "spectrum", "images": "fooling"},
        "evaluations": {"train": {"split": "train", "perturbations": [*own], "measurements": ["low", "images"]}},
        "derived": {"gap": {"difference": ["clean@train", "clean"]}, "both": {"mean": ["bim", "pgd"]},
                    "harder": {"difference": ["bim.loss", "clean.loss"]}},
        **changes,
    }  # fmt: skip
    return small(**fields)


def test_every_column_is_found_by_its_name() -> None:
    columns = experiment().columns
    assert [name for name, column in columns.items() if str(column) != name] == []
    perturbations = [f"{name}{metric}" for name in ("clean", "bim", "pgd 2/255", "pgd", "near")
                     for metric in ("", ".top5", ".loss")]  # fmt: skip
    measurements = ["low", "images", "images.reached", "images.confidence", "images.distance"]
    one_evaluation = [*perturbations, "near.distance", *measurements]
    expected = {*one_evaluation, *(f"{name}@train" for name in one_evaluation), "gap", "both", "harder"}
    assert columns.keys() == expected


def test_a_column_has_its_parts_as_fields() -> None:
    columns = experiment().columns
    for name, fields in {
        "bim": ("bim", "accuracy", "", "%"),
        "pgd 2/255.loss@train": ("pgd 2/255", "loss", "train", "nats"),
        "near.distance": ("near", "distance", "", "standardized"),
        "low@train": ("low", "value", "train", "%"),
        "images.reached@train": ("images", "reached", "train", "%"),
        "gap": ("gap", "value", "", "points"),
        "both": ("both", "value", "", "%"),
        "harder": ("harder", "value", "", "nats"),
    }.items():
        column = columns[name]
        assert (column.source, column.metric, column.at, column.unit) == fields
    assert columns["pgd 2/255"].perturbation == columns["pgd"].perturbation == PGD
    assert columns["low"].measurement == Spectrum()
    assert [str(part) for part in columns["gap"].parts] == ["clean@train", "clean"]
    assert columns["bim"].parts == (columns["bim"],)


def test_accuracies_and_clean_ones_are_known() -> None:
    columns = {name.removesuffix("@train"): column for name, column in experiment().columns.items()}
    assert {name for name, column in columns.items() if column.is_accuracy} == {
        "clean", "bim", "pgd 2/255", "pgd", "near", "both",
    }  # fmt: skip
    assert {name for name, column in columns.items() if column.is_clean} == {"clean"}


def test_a_name_goes_before_that_of_a_metric() -> None:
    own = {**SMALL["perturbations"], "clean.loss": {"kind": "awgn", "std": 0.1}}
    column = small(perturbations=own).columns["clean.loss"]
    assert (column.source, column.metric) == ("clean.loss", "accuracy")
    assert experiment().columns["clean.loss"] == Column("clean", "loss", "", "nats", perturbation=Clean())


def test_metrics_are_fields_or_properties_of_records() -> None:
    assert {metric.field for metric in METRICS.values()} <= {*Record.model_fields, *vars(Record)}


def test_a_metric_is_added_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = METRICS["distance"].unit
    monkeypatch.setitem(METRICS, "median", Metric("median_distance", "median distance of {perturbation}", unit))
    table = {"columns": {"near": "near", "near.median": "nearest"}}
    chosen = small(perturbations={**SMALL["perturbations"], "near": NEAR}, table=table, claims=[])
    assert "clean.median" not in chosen.columns
    fill(tmp_path, chosen, lambda cell, name: 0.5, also=lambda cell, name: 1.25 if name == "near.median" else None)
    results = aggregate(chosen, tmp_path)
    rows = list(csv.DictReader(io.StringIO(exports.csv_text(results))))
    assert {(row["value"], row["unit"]) for row in rows if row["perturbation"] == "near.median"} == {
        ("1.25", "standardized")
    }
    assert "nearest, standardized" in tables.accuracy_table(results).header
    heads, meaning = legend.columns(results)[-1]
    assert heads == "nearest"
    assert meaning.startswith("median distance of ")


@pytest.mark.parametrize(
    ("columns", "head"),
    [
        (["clean", "both", "gap"], "Accuracy"),
        (["clean", "images.reached"], "Measured"),
        (["clean", "slip"], "Measured"),
        (["clean", "aimed.target_rate"], "Measured"),
    ],
)
def test_only_a_table_of_accuracies_is_headed_so(columns: list[str], head: str, tmp_path: Path) -> None:
    own = {**SMALL["perturbations"], "aimed": Attack(eps=0.1, target="next")}
    derived = {"both": {"mean": ["clean", "bim"]}, "gap": {"difference": ["clean", "bim"]},
               "slip": {"difference": ["images.reached", "images.confidence"]}}  # fmt: skip
    arm = {"kind": "equals", "arms": ["batch"], "value": 0.5, "tolerance": 1, "source": "text"}
    chosen = small(
        perturbations=own, measurements={"images": "fooling"}, derived=derived,
        table={"columns": dict(zip(columns, columns, strict=True))}, claims=[{**arm, "perturbations": columns}],
    )  # fmt: skip
    assert chosen.columns["aimed.target_rate"].unit == "%"
    assert "bim.target_rate" not in chosen.columns
    fill(tmp_path, chosen, lambda cell, name: 0.5, also=lambda cell, name: 0.25)
    results = aggregate(chosen, tmp_path)
    table = tables.accuracy_table(results)
    assert table.title.startswith(f"{head}, mean")
    (index,) = [i for i, title in enumerate(table.header) if title.startswith(columns[-1])]
    beside = tables.comparison_table(results)
    assert beside is not None
    quantities = {row[-6]: row[-7] for row in beside.rows}
    assert quantities["clean"] == "accuracy of batch"
    assert quantities[columns[-1]] == "batch"
    if columns[-1] == "aimed.target_rate":
        assert {row[index] for row in table.rows[:1]} == {"25.00 ± 0.00"}
        assert dict(legend.columns(results))["aimed.target_rate"].startswith("share of examples classified as the targ")

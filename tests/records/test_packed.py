"""Packed results: the numbers of the working folder, the same bytes each time, errors that name the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_records import HARM, by_arm, fill, small, write_model

from bn_vuln import api, records
from bn_vuln.config import digest, identity_of, to_yaml
from bn_vuln.config.grid import expand
from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.records import DamagedError, Flag, FolderStore, PackedStore, Store, open_store
from bn_vuln.reporting import exports, pages
from bn_vuln.reporting.aggregate import aggregate
from bn_vuln.runtime.files import atomic_write

EXPERIMENT = small(measurements={"angle": {"kind": "tilt"}}, seeds=[0, 1])
RESULTS = Path(__file__).parents[2] / "results"


def run(root: Path, accuracies: Any = HARM, **options: Any) -> Path:
    """A working folder as a run leaves it: with configs, histories, models, flags and arrays."""
    numbers = {(arm, "angle"): (1.5, 2.5) for arm in ("none", "batch")}
    options = {"also": by_arm(numbers), "arrays": lambda cell, name: {"angles": np.arange(4.0)}, **options}
    flag = Flag(check=18, name="steps", value=0.05, message="too few")
    fill(root, EXPERIMENT, by_arm(accuracies), flags=lambda cell, name: [flag] if name == "bim" else [], **options)
    for cell in expand(EXPERIMENT):
        folder = root / digest(identity_of(cell))
        atomic_write(folder / "config.yaml", to_yaml(cell))
        atomic_write(folder / "history.csv", f"number,loss,seconds\n1,0.1,{cell.seed}\n")
        write_model(folder / "model.keras", folder.name)
    return root


@pytest.fixture
def yaml(tmp_path: Path) -> str:
    """The experiment as a file, which commands take in place of a name."""
    path = tmp_path / "small.yaml"
    path.write_text(to_yaml(EXPERIMENT))
    return str(path)


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def content(root: Path) -> dict[str, Any]:
    """All that a store says, through its interface."""
    store = open_store(root)
    return {
        cell_id: (
            store.cell(cell_id), store.training(cell_id), store.history(cell_id), store.records(cell_id),
            [store.correct(cell_id, record.perturbation_id).tolist() for record in store.records(cell_id)],
            store.measurements(cell_id),
            [store.measurement_arrays(cell_id, one.measurement_id)["angles"].tolist()
             for one in store.measurements(cell_id)],
        )
        for cell_id in store.cells()
    }  # fmt: skip


def test_a_round_trip_is_equal_to_the_byte(tmp_path: Path, yaml: str) -> None:
    source = run(tmp_path / "runs")
    (done,) = api.publish(yaml, tmp_path / "packed", source=source, models=1)
    assert (done.published, done.cells) == (4, 4)
    assert [p.name for p in api.unpack(tmp_path / "packed", tmp_path / "again")] == open_store(source).cells()
    api.publish(yaml, tmp_path / "packed again", source=tmp_path / "again", models=1)
    assert files(tmp_path / "packed") == files(tmp_path / "packed again")
    assert content(source) == content(tmp_path / "packed") == content(tmp_path / "again")
    assert len(list((tmp_path / "packed" / "models").iterdir())) == 2  # of seed 1
    assert api.publish(yaml, tmp_path / "packed", source=tmp_path / "again")  # nothing new
    assert files(tmp_path / "packed") == files(tmp_path / "packed again")


def test_reports_are_the_same(tmp_path: Path, yaml: str) -> None:
    api.publish(yaml, tmp_path / "packed", source=run(tmp_path / "runs"))
    made = [exports.to_json(aggregate(EXPERIMENT, tmp_path / name)) for name in ("runs", "packed")]
    assert made[0] == made[1]
    assert made[0]["rows"][0]["n"] == 2
    pages.write(tmp_path / "packed", "csv")
    assert (tmp_path / "packed" / "report" / "small-full.csv").exists()
    cells = [path.name for path in records.run_folders(tmp_path / "runs")][:2]
    pairs = [api.compare(*(tmp_path / name / cell for cell in cells)) for name in ("runs", "packed")]
    assert pairs[0] == pairs[1] != []


def test_a_line_says_what_it_is_about(tmp_path: Path, yaml: str) -> None:
    api.publish(yaml, tmp_path, source=run(tmp_path / "runs"))
    lines = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert [(line["cell_id"], line["perturbation_id"]) for line in lines] == sorted(
        (line["cell_id"], line["perturbation_id"]) for line in lines
    )
    bim = next(line for line in lines if line["experiments"] == ["small-full:bim"])
    assert list(bim)[:7] == [
        "cell_id", "perturbation_id", "n", "correct", "accuracy", "flags", "experiments",
    ]  # fmt: skip
    assert bim["flags"][0]["message"] == "too few"
    assert "cell" not in bim  # cells.jsonl has it once
    known = json.loads((tmp_path / "perturbations.json").read_text())
    assert digest(known[bim["perturbation_id"]]) == bim["perturbation_id"]
    cell = json.loads((tmp_path / "cells.jsonl").read_text().splitlines()[0])
    assert cell["label"].startswith("mlp mnist 28 ")
    assert cell["experiments"] == ["small-full"]


def test_publishing_adds_what_is_finished_and_asked_for(tmp_path: Path, yaml: str) -> None:
    source = run(tmp_path / "runs", missing=lambda cell: cell.seed == 1)
    for cell in expand(EXPERIMENT)[:1]:  # a record that no experiment asks for
        folder = source / digest(identity_of(cell))
        record = records.read_records(folder)[0]
        other = {**record.perturbation, "limit": record.n}
        record = record.model_copy(update={"perturbation_id": digest(other), "perturbation": other})
        records.write_record(folder, record, np.arange(record.n) < record.correct)
    assert len(FolderStore(source).records(folder.name)) == 3
    (done,) = api.publish(yaml, tmp_path / "packed", source=source)
    assert (done.published, done.cells) == (2, 4)
    assert digest(other) not in (tmp_path / "packed" / "records.jsonl").read_text()
    run(source)
    api.publish(yaml, tmp_path / "packed", source=source)
    assert len(open_store(tmp_path / "packed").cells()) == 4
    other = tmp_path / "other.yaml"
    fields = {"perturbations": {"clean": {"kind": "clean"}}, "table": {"columns": {"clean": "clean"}}, "seeds": [0]}
    other.write_text(to_yaml(small(name="other", claims=[], **fields)))
    api.publish(str(other), tmp_path / "packed", source=source)
    assert [one.name for one in open_store(tmp_path / "packed").experiments()] == ["other", "small"]
    asked = {tuple(json.loads(line)["experiments"]) for line in (tmp_path / "packed" / "records.jsonl").open()}
    assert asked == {("small-full:bim",), ("small-full:clean",), ("other-full:clean", "small-full:clean")}


def test_numbers_of_two_models_are_not_mixed(tmp_path: Path, yaml: str) -> None:
    api.publish(yaml, tmp_path / "packed", source=run(tmp_path / "runs"))
    before = files(tmp_path / "packed")
    other = run(tmp_path / "other", {**HARM, ("batch", "bim"): (0.3, 0.3)})
    for act in (lambda: api.publish(yaml, tmp_path / "packed", source=other),
                lambda: api.unpack(tmp_path / "packed", other)):  # fmt: skip
        with pytest.raises(BnvulnError, match=r"record \w{12} of \w{12}: the numbers in .* differ .*accuracy"):
            act()
    assert files(tmp_path / "packed") == before


def test_what_cannot_be_published_or_unpacked_is_said(tmp_path: Path, yaml: str) -> None:
    runs, packed = run(tmp_path / "runs"), tmp_path / "packed"
    api.publish(yaml, packed, source=runs)
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: api.publish("tabel6", packed, source=runs), "did you mean 'table6'"),
        (lambda: api.publish("table6", packed, source=runs), "none of its 30 cells is finished"),
        (lambda: api.publish(yaml, runs, source=runs), "a working folder"),
        (lambda: api.publish(yaml, packed, source=packed), "unpack it"),
        (lambda: api.unpack(runs, tmp_path / "x"), "no packed store"),
        (lambda: api.unpack(packed, packed), "a packed store"),
        (lambda: api.reproduce(yaml, root=packed), "unpack it first"),
        (lambda: api.compare(packed / "nowhere", packed / "nowhere"), "no such file, no run folder"),
    ]
    before = files(packed)
    for act, message in cases:
        with pytest.raises(UsageError, match=message):
            act()
    assert files(packed) == before


def read_all(root: Path) -> Store:
    """The store, after everything in it was read."""
    store = open_store(root)
    for cell_id in store.cells():
        store.cell(cell_id), store.model(cell_id), store.history(cell_id), store.training(cell_id)
        for record in store.records(cell_id):
            store.correct(cell_id, record.perturbation_id)
        for one in store.measurements(cell_id):
            store.measurement_arrays(cell_id, one.measurement_id)
    return store


@pytest.mark.parametrize("name", [
    "cells.jsonl", "records.jsonl", "measurements.jsonl", "perturbations.json", "outcomes.npz",
    "arrays.npz", "history.csv.gz",
])  # fmt: skip
def test_a_damaged_file_is_named(tmp_path: Path, yaml: str, name: str) -> None:
    api.publish(yaml, tmp_path / "packed", source=run(tmp_path / "runs"))
    path = tmp_path / "packed" / name
    whole = path.read_bytes()
    for damage in (whole[: len(whole) // 2], b"{}\n" if name.endswith("jsonl") else b"nonsense"):
        path.write_bytes(damage)
        assert str(path) in damage_found(tmp_path / "packed")
    path.unlink()
    assert str(path) in damage_found(tmp_path / "packed")


def damage_found(root: Path) -> str:
    """What is said of the damage: by the error where nothing can be read, else by the store."""
    try:
        return " ".join(one.text for one in read_all(root).damaged)
    except DamagedError as error:
        return str(error)


def test_a_model_that_is_gone_is_named(tmp_path: Path, yaml: str) -> None:
    api.publish(yaml, tmp_path / "packed", source=run(tmp_path / "runs"), models=0)
    path = next((tmp_path / "packed" / "models").iterdir())
    path.unlink()
    assert f"{path}: no such file" in damage_found(tmp_path / "packed")


def test_published_ids_are_those_that_the_code_computes_today() -> None:
    wrong, counts = [], {"cells": 0, "records": 0, "measurements": 0}
    for root in (RESULTS / "paper", RESULTS / "beyond", RESULTS / "posthoc"):
        store = open_store(root)
        assert isinstance(store, PackedStore)
        for cell_id in store.cells():
            identity = identity_of(store.cell(cell_id))
            ids = [(cell_id, identity)]
            ids += [(record.cell_id, record.cell) for record in store.records(cell_id)]
            ids += [(record.perturbation_id, record.perturbation) for record in store.records(cell_id)]
            ids += [(record.measurement_id, record.measurement) for record in store.measurements(cell_id)]
            wrong += [own for own, hashed in ids if digest(hashed) != own]
            counts["cells"] += 1
            counts["records"] += len(store.records(cell_id))
            counts["measurements"] += len(store.measurements(cell_id))
        # What experiments ask for is computed from configs, and found under the same ids.
        for results in (aggregate(experiment, store) for experiment in store.experiments()):
            assert results.missing < results.cells
    assert wrong == []
    assert counts == {"cells": 491, "records": 3321, "measurements": 218}


def test_a_working_folder_is_no_packed_store(tmp_path: Path) -> None:
    assert isinstance(open_store(run(tmp_path)), FolderStore)

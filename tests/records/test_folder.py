"""Run folders: records and trainings come back as they were written, and damaged files are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_records import training
from pydantic import ValidationError

from bn_vuln import records
from bn_vuln.config import Attack, Cell, Evaluation, digest, identity_of, perturbation_identity
from bn_vuln.errors import BnvulnError
from bn_vuln.records import Flag, Record, read_correct, read_record, read_records, read_training, write_record
from bn_vuln.runtime.files import atomic_write

BIM = Attack(attack="bim", eps=0.1)  # type: ignore[call-arg]


CELL = identity_of(Cell())
CELL_ID = digest(CELL)


def record(eps: float = 0.1, **changes: Any) -> Record:
    perturbation = perturbation_identity(Evaluation(), "mnist", BIM.model_copy(update={"eps": eps}))
    fields: dict[str, Any] = {
        "cell_id": CELL_ID,
        "perturbation_id": digest(perturbation),
        "cell": CELL,
        "perturbation": perturbation,
        "n": 3,
        "correct": 1,
        "accuracy": 1 / 3,
        "flags": (Flag(check=18, name="steps", value=0.05, message="too few"),),
        "versions": {"bnvuln": "0.0"},
        "device": "CPU",
        "seconds": 0.1,
    }
    return Record(**{**fields, **changes})


OWN = record().perturbation_id


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("n", [1, 7, 8, 1001])
def test_which_examples_are_correct_comes_back_bit_by_bit(tmp_path: Path, n: int) -> None:
    correct = np.random.default_rng(n).random(n) < 0.5
    write_record(tmp_path, record(n=n), correct)
    found = read_correct(tmp_path, OWN)
    assert found.dtype == np.bool_
    np.testing.assert_array_equal(found, correct)


def test_records_come_back(tmp_path: Path) -> None:
    written = record(top5=0.9, target_rate=0.1)
    path = write_record(tmp_path, written, np.array([True, False, False]))
    assert path == records.record_path(tmp_path, OWN)
    assert read_record(path) == written
    assert names(tmp_path) == ["outcomes", "records"]
    assert names(path.parent) == [f"{OWN}.json"]
    data = json.loads(path.read_text())
    assert (data["accuracy"], data["schema_version"]) == (1 / 3, records.SCHEMA)
    assert list(data) == sorted(data)
    with pytest.raises(ValidationError, match="frozen"):
        written.accuracy = 1.0  # type: ignore[misc]
    with pytest.raises(ValueError, match="JSON"):
        records.to_json(record(accuracy=float("nan")))


def test_all_records_of_a_folder_in_order(tmp_path: Path) -> None:
    every = [record(eps) for eps in (0.1, 0.2, 0.3)]
    for one in every:
        write_record(tmp_path, one, np.array([True, False, False]))
    found = [r.perturbation_id for r in read_records(tmp_path)]
    assert found == sorted(one.perturbation_id for one in every)
    assert read_records(tmp_path / "elsewhere") == []


def test_an_external_model_comes_back(tmp_path: Path) -> None:
    assert records.read_external(tmp_path / "none") is None
    written = records.ExternalRecord(
        cell_id=digest({"weights": "abc"}), source="Mein Netz.keras", path="/data/Mein Netz.keras",
        identity={"weights": "abc"}, found={"output": "softmax", "size": [32, 48]},
    )  # fmt: skip
    folder = tmp_path / written.cell_id
    assert records.write_external(folder, written) == folder / "model.json"
    assert records.read_external(folder) == written
    store = records.FolderStore(tmp_path)
    assert (store.cells(), store.external(folder.name)) == ([folder.name], written)
    (folder / "model.json").write_text("{")
    with pytest.raises(BnvulnError, match=r"model\.json: not a readable record of an external model"):
        records.read_external(folder)
    assert store.external(folder.name) is None
    assert [one.path for one in store.damaged] == [folder / "model.json"]


OTHER_SCHEMA = records.to_json(record()).replace('"schema_version": 1', '"schema_version": 2')
UNKNOWN_FIELD = json.dumps({**json.loads(records.to_json(record())), "extra": 1})


@pytest.mark.parametrize(
    "content", ["", "[]", '{"cell_id": "x"}', records.to_json(record())[:-40], OTHER_SCHEMA, UNKNOWN_FIELD]
)
def test_damaged_records_are_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "records" / "x.json"
    atomic_write(path, content)
    with pytest.raises(BnvulnError) as caught:
        read_records(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"no archive"])
def test_damaged_outcomes_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "outcomes" / "x.npz"
    if content is not None:
        atomic_write(path, content)
    with pytest.raises(BnvulnError, match=r"x\.npz"):
        read_correct(tmp_path, "x")


def test_older_names_of_fields_are_read(tmp_path: Path) -> None:
    data = json.loads(records.to_json(record(n_evaluations=2.5, robust_after={"pgd": 1})))
    path = tmp_path / f"{OWN}.json"
    data["looked_at"], data["standing"] = data.pop("n_evaluations"), data.pop("robust_after")
    del data["sha256"]  # which no older record has
    path.write_text(json.dumps(data))
    found = read_record(path)
    assert (found.n_evaluations, found.robust_after) == (2.5, {"pgd": 1})


@pytest.mark.parametrize("failed", [False, True])
def test_trainings_come_back(tmp_path: Path, failed: bool) -> None:
    assert read_training(tmp_path) is None
    written = training("c" * 12, failed=failed)
    atomic_write(tmp_path / "training.json", records.to_json(written))
    assert read_training(tmp_path) == written
    (tmp_path / "training.json").write_text('{"state": "trained"}')
    with pytest.raises(BnvulnError, match=r"training\.json: not a readable"):
        read_training(tmp_path)


def test_a_record_appears_after_its_outcomes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    monkeypatch.setattr("bn_vuln.runtime.files.os.replace", lambda _, path: order.append(path.suffix))
    write_record(tmp_path, record(), np.ones(3, bool))
    assert order == [".npz", ".json"]


def test_run_folders_hold_a_config_or_records(tmp_path: Path) -> None:
    atomic_write(tmp_path / "b" / "config.yaml", "")
    (tmp_path / "a" / "records").mkdir(parents=True)
    (tmp_path / "experiments").mkdir()
    atomic_write(tmp_path / "c" / "lock.json", "{}")
    atomic_write(tmp_path / "file.txt", "")
    assert [folder.name for folder in records.run_folders(tmp_path)] == ["a", "b"]
    assert records.run_folders(tmp_path / "nowhere") == []


def test_clearing_a_run_keeps_the_lock_and_other_files(tmp_path: Path) -> None:
    write_record(tmp_path, record(), np.ones(3, bool))
    for name in ("training.json", "model.keras", "history.csv", "config.yaml", "lock.json", "notes.txt"):
        atomic_write(tmp_path / name, "x")
    records.clear_run(tmp_path)
    assert [p.name for p in sorted(tmp_path.rglob("*")) if p.is_file()] == ["lock.json", "notes.txt"]
    records.clear_run(tmp_path)

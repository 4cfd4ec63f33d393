"""Working folders: a folder a cell, and in it one typed JSON file for each (cell, perturbation).

Layout of a working folder::

    ROOT/CELL/config.yaml model.keras history.csv training.json
    ROOT/CELL/records/PERT.json    ROOT/CELL/outcomes/PERT.npz    ROOT/CELL/measurements/ID.json ID.npz
    ROOT/CELL/transfer/ID.json ID.npz
    ROOT/CELL/model.json    (of an external model, instead of config, weights and history)
    ROOT/experiments/NAME-SCALE.yaml    ROOT/report/

CELL and PERT are ids (bn_vuln/config/identity.py).
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from bn_vuln import config
from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.records.schema import SCHEMA, ExternalRecord, MeasurementRecord, Record, TrainingRecord, TransferRecord
from bn_vuln.runtime.files import atomic_write
from bn_vuln.typing import Arrays, Mask

EXTERNAL = "model.json"
Kind = TypeVar("Kind", bound=BaseModel)


def to_json(model: BaseModel) -> str:
    """Return a record as indented JSON with sorted keys."""
    return json.dumps(model.model_dump(mode="json"), indent=2, sort_keys=True, allow_nan=False) + "\n"


def record_path(folder: Path, perturbation_id: str) -> Path:
    """Return where a run folder keeps a record."""
    return folder / "records" / f"{perturbation_id}.json"


def correct_path(folder: Path, perturbation_id: str) -> Path:
    """Return where a run folder keeps which examples are correct, and other arrays of a record."""
    return folder / "outcomes" / f"{perturbation_id}.npz"


def write_record(
    folder: Path, record: Record, correct: Mask, arrays: Mapping[str, NDArray[np.generic]] | None = None
) -> Path:
    """Write a record into a run folder and, before it, which examples are `correct`, bool [n], and other arrays."""
    packed: Arrays = {"correct": np.packbits(correct), "n": np.asarray(len(correct), np.int64)}
    _write_arrays(correct_path(folder, record.perturbation_id), {**packed, **(arrays or {})})
    path = record_path(folder, record.perturbation_id)
    atomic_write(path, to_json(record))
    return path


def read_record(path: Path) -> Record:
    """Read a record. Raises `BnvulnError` naming the file if it is damaged or of another schema."""
    return _read(path, Record, "record")


def _read(path: Path, kind: type[Kind], what: str) -> Kind:
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise BnvulnError(f"{path}: not a readable {what} of schema {SCHEMA} ({first_line(error)})") from None


def measurement_path(folder: Path, measurement_id: str) -> Path:
    """Return where a run folder keeps a measurement; its arrays have the suffix .npz."""
    return folder / "measurements" / f"{measurement_id}.json"


def write_measurement(folder: Path, record: MeasurementRecord, arrays: Arrays) -> Path:
    """Write a measurement and, before it, its arrays into a run folder."""
    path = measurement_path(folder, record.measurement_id)
    _write_arrays(path, arrays)
    atomic_write(path, to_json(record))
    return path


def _write_arrays(path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """Write arrays beside the record that will be at `path`."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    atomic_write(path.with_suffix(".npz"), buffer.getvalue())


def read_measurement(path: Path) -> MeasurementRecord:
    """Read a measurement. Raises `BnvulnError` naming the file if it is damaged or of another schema."""
    return _read(path, MeasurementRecord, "measurement")


def read_arrays(path: Path) -> Arrays:
    """Read the arrays beside a record. Raises `BnvulnError` naming the file if they are missing or damaged."""
    return _load(path.with_suffix(".npz"), "arrays")


def _load(path: Path, what: str, names: tuple[str, ...] | None = None) -> Arrays:
    """The arrays of these names in a file, or all."""
    try:
        with np.load(path) as arrays:
            return {name: arrays[name] for name in names or arrays.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise BnvulnError(f"{path}: not readable {what} ({first_line(error)})") from None


def transfer_path(folder: Path, transfer_id: str) -> Path:
    """Return where the run folder of a target keeps a transfer record; its outcomes have the suffix .npz."""
    return folder / "transfer" / f"{transfer_id}.json"


def write_transfer(folder: Path, record: TransferRecord, outcomes: Mapping[str, Mask]) -> Path:
    """Write a transfer record into the target's run folder and, before it, its outcomes, bool [n] by name."""
    path = transfer_path(folder, record.transfer_id)
    _write_arrays(path, {name: np.packbits(bits) for name, bits in outcomes.items()})
    atomic_write(path, to_json(record))
    return path


def read_transfer(path: Path) -> tuple[TransferRecord, dict[str, Mask]]:
    """Read a transfer record and its outcomes. Raises `BnvulnError` naming the file if one of them is damaged."""
    record = _read(path, TransferRecord, "transfer record")
    packed = read_arrays(path)
    return record, {name: np.unpackbits(bits, count=record.n).astype(bool) for name, bits in packed.items()}


def read_training(folder: Path) -> TrainingRecord | None:
    """Read how the training of a run folder ended; None while there is no such record."""
    path = folder / "training.json"
    if not path.exists():
        return None
    return _read(path, TrainingRecord, "training record")


def write_external(folder: Path, record: ExternalRecord) -> Path:
    """Write which external model the records of a folder are of."""
    path = folder / EXTERNAL
    atomic_write(path, to_json(record))
    return path


def read_external(folder: Path) -> ExternalRecord | None:
    """Read which external model the records of a folder are of; None where it says nothing."""
    path = folder / EXTERNAL
    return _read(path, ExternalRecord, "record of an external model") if path.exists() else None


def read_correct(folder: Path, perturbation_id: str) -> Mask:
    """Read which examples of a record are correct, bool [n]. Raises `BnvulnError` naming the file if it is damaged."""
    arrays = _load(correct_path(folder, perturbation_id), "outcomes", ("correct", "n"))
    return np.unpackbits(arrays["correct"], count=int(arrays["n"])).astype(bool)


def read_records(folder: Path) -> list[Record]:
    """Read all records of a run folder, in the order of their ids."""
    return [read_record(path) for path in sorted((folder / "records").glob("*.json"))]


def run_folders(root: Path) -> list[Path]:
    """Return the run folders directly in `root`: folders that hold a config, an external model or records."""
    return sorted(
        p for p in root.glob("*") if any((p / name).exists() for name in ("config.yaml", EXTERNAL, "records"))
    )


def read_cell(folder: Path) -> config.Cell:
    """Read the cell of a run folder from its config.yaml."""
    path = folder / "config.yaml"
    if not path.exists():
        raise UsageError(
            f"{folder}: not a run folder (no config.yaml); expected a run of `bnvuln train` or a .keras file"
        )
    return config.validate(config.Cell, config.read_yaml(path), str(path))


def clear_run(folder: Path) -> None:
    """Remove a run's files (not the lock), so that it can be trained again."""
    for name in ("training.json", "model.keras", "history.csv", "config.yaml", "checkpoint.npz"):
        (folder / name).unlink(missing_ok=True)
    clear_measured(folder)


def clear_measured(folder: Path) -> None:
    """Remove what was measured of a run."""
    for kind in ("records", "outcomes", "measurements", "transfer"):
        for path in (folder / kind).glob("*"):
            path.unlink()


def first_line(error: Exception) -> str:
    """Return the message of an error in one line."""
    return " ".join(str(error).split())[:200]


# ---------------------------------------------------------------- the store


def read_experiments(root: Path) -> list[config.Experiment]:
    """Return the experiments of a results folder, in the order of their files. Raises `UsageError` if it has none."""
    paths = sorted((root / "experiments").glob("*.yaml"))
    if not paths:
        raise UsageError(f"{root}: no experiment here (expected {root}/experiments/NAME-SCALE.yaml); "
                         "`bnvuln reproduce NAME` makes one")  # fmt: skip
    return [config.validate(config.Experiment, config.read_yaml(path), str(path)) for path in paths]


class FolderStore:
    """Results in a working folder, one folder a cell. See `Store`."""

    def __init__(self, root: Path) -> None:
        """`root` need not exist: it then holds nothing."""
        self.root = root

    def experiments(self) -> list[config.Experiment]:
        return read_experiments(self.root)

    def cells(self) -> list[str]:
        return [folder.name for folder in run_folders(self.root)]

    def cell(self, cell_id: str) -> config.Cell:
        return read_cell(self.root / cell_id)

    def training(self, cell_id: str) -> TrainingRecord | None:
        return read_training(self.root / cell_id)

    def external(self, cell_id: str) -> ExternalRecord | None:
        return read_external(self.root / cell_id)

    def history(self, cell_id: str) -> str | None:
        path = self.root / cell_id / "history.csv"
        return path.read_bytes().decode() if path.exists() else None

    def model(self, cell_id: str) -> Path | None:
        path = self.root / cell_id / "model.keras"
        return path if path.exists() else None

    def records(self, cell_id: str) -> list[Record]:
        return read_records(self.root / cell_id)

    def record(self, cell_id: str, perturbation_id: str) -> Record | None:
        path = record_path(self.root / cell_id, perturbation_id)
        return read_record(path) if path.exists() else None

    def correct(self, cell_id: str, perturbation_id: str) -> Mask | None:
        folder = self.root / cell_id
        return read_correct(folder, perturbation_id) if correct_path(folder, perturbation_id).exists() else None

    def arrays(self, cell_id: str, perturbation_id: str) -> Arrays:
        path = correct_path(self.root / cell_id, perturbation_id)
        found = read_arrays(path) if path.exists() else {}
        return {name: array for name, array in found.items() if name not in ("correct", "n")}

    def measurements(self, cell_id: str) -> list[MeasurementRecord]:
        return [read_measurement(path) for path in sorted((self.root / cell_id / "measurements").glob("*.json"))]

    def measurement(self, cell_id: str, measurement_id: str) -> MeasurementRecord | None:
        path = measurement_path(self.root / cell_id, measurement_id)
        return read_measurement(path) if path.exists() else None

    def measurement_arrays(self, cell_id: str, measurement_id: str) -> Arrays:
        return read_arrays(measurement_path(self.root / cell_id, measurement_id))

    def transfers(self, cell_id: str) -> list[tuple[TransferRecord, dict[str, Mask]]]:
        return [read_transfer(path) for path in sorted((self.root / cell_id / "transfer").glob("*.json"))]

"""Working folders: a folder a cell, and in it one typed JSON file for each (cell, perturbation).

Layout of a working folder::

    ROOT/CELL/config.yaml model.keras history.csv training.json
    ROOT/CELL/records/PERT.json    ROOT/CELL/outcomes/PERT.npz    ROOT/CELL/measurements/ID.json ID.npz
    ROOT/CELL/model.json    (of an external model, instead of config, weights and history)
    ROOT/experiments/NAME-SCALE.yaml    ROOT/report/

CELL and PERT are ids (bn_vuln/config/identity.py).
"""

from __future__ import annotations

import csv
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn, TypeVar

import numpy as np
from pydantic import BaseModel

from bn_vuln import config
from bn_vuln.config import digest, identity_of
from bn_vuln.config.identity import ID_LENGTH
from bn_vuln.errors import ConfigError, UsageError
from bn_vuln.records import checks, digests
from bn_vuln.records.reading import (
    Damaged,
    DamagedError,
    DamageLog,
    first_line,
    parse_json,
    unpack_bits,
)
from bn_vuln.records.schema import SCHEMA, ExternalRecord, MeasurementRecord, Record, TrainingRecord
from bn_vuln.runtime import lease
from bn_vuln.runtime.files import atomic_write, remove
from bn_vuln.runtime.limits import check_archive, read_file
from bn_vuln.typing import AnyArray, Arrays, Mask

EXTERNAL = "model.json"
Kind = TypeVar("Kind", bound=BaseModel)
MEASURED_FOLDERS = ("records", "outcomes", "measurements")
PARTS = "parts"  # finished parts of a measurement that goes on
MEASURE_AGAIN = "measure it again: bnvuln reproduce NAME, or bnvuln evaluate or attack again, replaces it"
TRAIN_AGAIN = "train it again: bnvuln reproduce NAME, or bnvuln train --force, replaces it"


def to_json(model: BaseModel, arrays_digest: str | None = None) -> str:
    """Return a record as a file has it: indented JSON with sorted keys, its digest and that of the arrays beside it."""
    beside = {} if arrays_digest is None else {digests.ARRAYS_KEY: arrays_digest}
    plain = digests.with_digest({**model.model_dump(mode="json"), **beside})
    return json.dumps(plain, indent=2, sort_keys=True, allow_nan=False) + "\n"


def record_path(folder: Path, perturbation_id: str) -> Path:
    """Return where a run folder keeps a record."""
    return folder / "records" / f"{perturbation_id}.json"


def correct_path(folder: Path, perturbation_id: str) -> Path:
    """Return where a run folder keeps which examples are correct, and other arrays of a record."""
    return folder / "outcomes" / f"{perturbation_id}.npz"


def check_no_links(folder: Path) -> None:
    """Refuse to write into a run folder whose folders are links: what is written would leave it.

    Raises:
        UsageError: One of them, which is named, is a link.
    """
    for path in (folder / name for name in (*MEASURED_FOLDERS, PARTS)):
        if path.is_symlink():
            raise UsageError(f"{path}: a link, and files are written into the run folder alone: put a folder there")


def write_record(folder: Path, record: Record, correct: Mask, arrays: Mapping[str, AnyArray] | None = None) -> Path:
    """Write a record into a run folder and, before it, which examples are `correct`, bool [n], and other arrays."""
    check_no_links(folder)
    beside = outcome_arrays(np.packbits(correct), len(correct), arrays or {})
    digest = digests.write_arrays(correct_path(folder, record.perturbation_id), beside)
    path = record_path(folder, record.perturbation_id)
    atomic_write(path, to_json(record, digest))
    return path


def outcome_arrays(bits: AnyArray, n: int, arrays: Mapping[str, AnyArray]) -> Arrays:
    """Return all arrays beside a record: which of n examples are correct, as packed bits, and others."""
    return {"correct": bits, "n": np.asarray(n, np.int64), **arrays}


def read_record(path: Path) -> Record:
    """Read a record. Raises `DamagedError` if it is damaged, of another schema, or not of its name."""
    return _read_record(path)[0]


def _read_record(path: Path) -> tuple[Record, str | None]:
    """A record, and the digest of its arrays."""
    record, digest = _read(path, Record, "record", MEASURE_AGAIN)
    _check_name(path, "perturbation_id", record.perturbation_id)
    return record, digest


def _read(path: Path, kind: type[Kind], what: str, remedy: str) -> tuple[Kind, str | None]:
    try:
        content, digest = digests.of_record(digests.without_digest(parse_json(read_file(path))))
        record = kind.model_validate(content)
        checks.check_numbers(record)
        checks.check_ids(record)
    except (OSError, ValueError) as error:
        _refuse(path, f"not a readable {what} of schema {SCHEMA} ({first_line(error)})", remedy)
    return record, digest


def _check_name(path: Path, name: str, received: str) -> None:
    """Refuse a record whose file has another name than its id."""
    if received != path.stem:
        _refuse(path, f"{name} is {received}, which is another one's", MEASURE_AGAIN)


def _refuse(path: Path, reason: str, remedy: str) -> NoReturn:
    folder = path.parent if path.parent.name not in MEASURED_FOLDERS else path.parent.parent
    raise DamagedError(Damaged(path, reason, remedy, folder.name)) from None


def measurement_path(folder: Path, measurement_id: str) -> Path:
    """Return where a run folder keeps a measurement; its arrays have the suffix .npz."""
    return folder / "measurements" / f"{measurement_id}.json"


def write_measurement(folder: Path, record: MeasurementRecord, arrays: Arrays) -> Path:
    """Write a measurement and, before it, its arrays into a run folder."""
    check_no_links(folder)
    path = measurement_path(folder, record.measurement_id)
    digest = digests.write_arrays(path.with_suffix(".npz"), arrays)
    atomic_write(path, to_json(record, digest))
    return path


def read_measurement(path: Path) -> MeasurementRecord:
    """Read a measurement. Raises `DamagedError` if it is damaged, of another schema, or not of its name."""
    return _read_measurement(path)[0]


def _read_measurement(path: Path) -> tuple[MeasurementRecord, str | None]:
    """A measurement, and the digest of its arrays."""
    record, digest = _read(path, MeasurementRecord, "measurement", MEASURE_AGAIN)
    _check_name(path, "measurement_id", record.measurement_id)
    return record, digest


def read_arrays(path: Path, expected: str | None = None) -> Arrays:
    """Read the arrays beside a record, which may say their digest. Raises `DamagedError` if they are not whole."""
    return _load(path.with_suffix(".npz"), "arrays", expected)


def _load(path: Path, what: str, expected: str | None = None) -> Arrays:
    try:
        return digests.read_arrays(path, expected)
    except (OSError, ValueError) as error:
        _refuse(path, f"not readable {what} ({first_line(error)})", MEASURE_AGAIN)


def read_training(folder: Path) -> TrainingRecord | None:
    """Read how the training of a run folder ended; None while there is no such record."""
    path = folder / "training.json"
    return _read(path, TrainingRecord, "training record", TRAIN_AGAIN)[0] if path.exists() else None


def write_external(folder: Path, record: ExternalRecord) -> Path:
    """Write which external model the records of a folder are of."""
    path = folder / EXTERNAL
    atomic_write(path, to_json(record))
    return path


def read_external(folder: Path) -> ExternalRecord | None:
    """Read which external model the records of a folder are of; None where it says nothing."""
    path, remedy = folder / EXTERNAL, "bnvuln attack MODEL writes it again"
    if not path.exists():
        return None
    record = _read(path, ExternalRecord, "record of an external model", remedy)[0]
    if run_id(folder) not in (None, record.cell_id):
        _refuse(path, f"that of {record.cell_id}, but the folder is named as {folder.resolve().name}", remedy)
    return record


def read_correct(folder: Path, perturbation_id: str, expected: str | None = None) -> Mask:
    """Read which examples of a record are correct, bool [n]; the record may say the digest of all arrays beside it.

    Raises `DamagedError` naming the file if it is damaged.
    """
    path = correct_path(folder, perturbation_id)
    arrays = _load(path, "outcomes", expected)
    try:
        return unpack_bits(arrays["correct"], int(arrays["n"]))
    except (KeyError, ValueError, TypeError) as error:
        _refuse(path, f"not readable outcomes ({first_line(error)})", MEASURE_AGAIN)


def read_records(folder: Path) -> list[Record]:
    """Read all records of a run folder, in the order of their ids."""
    return [read_record(path) for path in _json_files(folder, "records")]


def _json_files(folder: Path, kind: str) -> list[Path]:
    return sorted(path for path in (folder / kind).glob("*.json") if not path.name.startswith("."))


def read_history(folder: Path, training: TrainingRecord | None = None) -> str | None:
    """Read the epochs of a training as CSV text, which fit its record; None where there is none."""
    path = folder / "history.csv"
    if not path.exists():
        return None
    try:
        text = read_file(path).decode()
        checks.check_history(text, training)
    except (OSError, ValueError, csv.Error) as error:
        _refuse(path, f"not the epochs of this training ({first_line(error)})", TRAIN_AGAIN)
    return text


def run_folders(root: Path) -> list[Path]:
    """Return the run folders directly in `root`: folders that hold a config, an external model or records."""
    return sorted(
        p for p in root.glob("*") if any((p / name).exists() for name in ("config.yaml", EXTERNAL, "records"))
    )


def read_cell(folder: Path) -> config.Cell:
    """Read the cell of a run folder from its config.yaml.

    Raises:
        UsageError: There is none.
        DamagedError: It is damaged, or that of another run than the folder's name says.
    """
    path, named = folder / "config.yaml", run_id(folder)
    if not path.exists():
        raise UsageError(
            f"{folder}: not a run folder (no config.yaml); expected a run of `bnvuln train` or a .keras file"
        )
    remedy = "bnvuln reproduce NAME, or bnvuln train --force, writes it again"
    cell = _read_config(path, config.Cell, remedy, folder.name)
    if named not in (None, own := digest(identity_of(cell))):
        _refuse(path, f"that of run {own}, but the folder is named as run {named}",
                f"if the folder was renamed or copied, name it {own} (or any name that is no id)")  # fmt: skip
    return cell


def _read_config(path: Path, kind: type[Kind], remedy: str, cell_id: str = "") -> Kind:
    try:
        digests.check_yaml(path)
        return config.validate(kind, config.read_yaml(path), str(path))
    except (OSError, ValueError, ConfigError) as error:
        reason = first_line(error).removeprefix(f"{path}: ")
    raise DamagedError(Damaged(path, reason, remedy, cell_id))


def run_id(folder: Path) -> str | None:
    """Return the id that the name of a run folder says; None where the user chose another name (train --out)."""
    name = folder.resolve().name
    return name if re.fullmatch(rf"[0-9a-f]{{{ID_LENGTH}}}", name) else None


def model_sha256(path: Path) -> str:
    """Return the hash of architecture and weights in a `.keras` file, which holds a date besides.

    Raises:
        ValueError: It is damaged, or no `.keras` file.
    """
    found = hashlib.sha256()
    try:
        with zipfile.ZipFile(path) as archive:
            check_archive(archive)
            if not {"config.json", "model.weights.h5"} <= set(archive.namelist()):
                raise ValueError("no .keras file")
            for name in sorted(set(archive.namelist()) - {"metadata.json"}):
                found.update(f"{name}\0".encode())
                with archive.open(name) as member:
                    while block := member.read(2**20):
                        found.update(block)
    except Exception as error:  # zipfile and zlib raise many kinds; all of them mean the same to the user
        raise ValueError(first_line(error)) from None
    return found.hexdigest()


def check_model(path: Path, training: TrainingRecord) -> Path:
    """Return the path of a model that is whole, and that of a training where its record says which.

    Raises:
        DamagedError: It is not.
    """
    try:
        if not path.is_file():
            raise ValueError("no regular file")
        found = model_sha256(path)
    except ValueError as error:
        _refuse(path, f"no readable model ({first_line(error)})", TRAIN_AGAIN)
    if training.model_sha256 not in (None, found):
        _refuse(path, "not the model that training.json is of (architecture or weights differ)",
                f"restore the file that belongs to it, or {TRAIN_AGAIN}")  # fmt: skip
    return path


def set_aside(path: Path) -> Path | None:
    """Rename a damaged file to NAME.damaged, so that another can take its place.

    Returns:
        The new path; None where the file is not there.
    """
    if not os.path.lexists(path):
        return None
    others = (path.with_name(f"{path.name}.damaged{number or ''}") for number in itertools.count())
    free = next(other for other in others if not other.exists())
    with lease.checked(path):
        return path.rename(free)


def clear_run(folder: Path) -> None:
    """Remove a run's files (not the lease), so that it can be trained again."""
    for name in ("training.json", "model.keras", "history.csv", "config.yaml", "checkpoint.npz", "failed.json"):
        remove(folder / name)
    clear_measured(folder)


def clear_measured(folder: Path) -> None:
    """Remove what was measured of a run."""
    for kind in MEASURED_FOLDERS:
        if (folder / kind).is_symlink():
            remove(folder / kind)  # and nothing of what it leads to
        for path in (folder / kind).glob("*"):
            remove(path)
    shutil.rmtree(folder / PARTS, ignore_errors=True)


# ---------------------------------------------------------------- the store


def read_experiments(root: Path, log: DamageLog) -> list[config.Experiment]:
    """Return the experiments of a results folder, in the order of their files; damaged ones go into the log.

    Raises:
        UsageError: There is none, or none that is whole.
    """
    paths = sorted((root / "experiments").glob("*.yaml"))
    if not paths:
        raise UsageError(f"{root}: no experiment here (expected {root}/experiments/NAME-SCALE.yaml); "
                         "`bnvuln reproduce NAME` makes one")  # fmt: skip
    found = [experiment for path in paths if (experiment := log.attempt(functools.partial(read_experiment, path)))]
    if not found:
        raise ConfigError(log.damaged[-1].text)
    return found


def read_experiment(path: Path) -> config.Experiment:
    """Read an experiment of a results folder. Raises `DamagedError` if it is damaged."""
    return _read_config(path, config.Experiment, "bnvuln reproduce NAME writes it again")


class FolderStore(DamageLog):
    """Results in a working folder, one folder a cell. See `Store`."""

    def __init__(self, root: Path) -> None:
        """`root` need not exist: it then holds nothing."""
        super().__init__()
        self.root = root
        self._ids: dict[str, str | None] = {}

    def experiments(self) -> list[config.Experiment]:
        return read_experiments(self.root, self)

    def cells(self) -> list[str]:
        return [folder.name for folder in run_folders(self.root)]

    def cell(self, cell_id: str) -> config.Cell:
        return read_cell(self.root / cell_id)

    def training(self, cell_id: str) -> TrainingRecord | None:
        return self.attempt(lambda: self._training(cell_id))

    def _training(self, cell_id: str) -> TrainingRecord | None:
        training = read_training(self.root / cell_id)
        if training is not None:
            self._check_cell(self.root / cell_id / "training.json", cell_id, training.cell_id, TRAIN_AGAIN)
        return training

    def external(self, cell_id: str) -> ExternalRecord | None:
        return self.attempt(lambda: read_external(self.root / cell_id))

    def history(self, cell_id: str) -> str | None:
        return self.attempt(lambda: read_history(self.root / cell_id, self.training(cell_id)))

    def model(self, cell_id: str) -> Path | None:
        path, training = self.root / cell_id / "model.keras", self.training(cell_id)
        if not path.exists():
            return None
        return path if training is None else self.attempt(lambda: check_model(path, training))

    def records(self, cell_id: str) -> list[Record]:
        paths = _json_files(self.root / cell_id, "records")
        return [record for path in paths if (record := self.record(cell_id, path.stem))]

    def record(self, cell_id: str, perturbation_id: str) -> Record | None:
        return self.attempt(lambda: self._record(cell_id, perturbation_id))

    def _record(self, cell_id: str, perturbation_id: str) -> Record | None:
        """The record, if its outcomes and arrays, where there are any, are whole as well."""
        folder = self.root / cell_id
        path, outcomes = record_path(folder, perturbation_id), correct_path(folder, perturbation_id)
        if not path.exists():
            return None
        record, digest = _read_record(path)
        self._check_cell(path, cell_id, record.cell_id, MEASURE_AGAIN)
        if outcomes.exists():
            try:
                checks.check_outcomes(read_correct(folder, perturbation_id, digest), record)
            except ValueError as error:
                _refuse(outcomes, first_line(error), MEASURE_AGAIN)
        return record

    def correct(self, cell_id: str, perturbation_id: str) -> Mask | None:
        folder = self.root / cell_id
        if not correct_path(folder, perturbation_id).exists():
            return None
        return self.attempt(lambda: read_correct(folder, perturbation_id))

    def arrays(self, cell_id: str, perturbation_id: str) -> Arrays:
        path = correct_path(self.root / cell_id, perturbation_id)
        found = self.attempt(lambda: read_arrays(path)) if path.exists() else None
        return {name: array for name, array in (found or {}).items() if name not in ("correct", "n")}

    def measurements(self, cell_id: str) -> list[MeasurementRecord]:
        paths = _json_files(self.root / cell_id, "measurements")
        return [record for path in paths if (record := self.measurement(cell_id, path.stem))]

    def measurement(self, cell_id: str, measurement_id: str) -> MeasurementRecord | None:
        return self.attempt(lambda: self._measurement(cell_id, measurement_id))

    def _measurement(self, cell_id: str, measurement_id: str) -> MeasurementRecord | None:
        """The measurement, if its arrays are whole as well."""
        path = measurement_path(self.root / cell_id, measurement_id)
        if not path.exists():
            return None
        record, digest = _read_measurement(path)
        self._check_cell(path, cell_id, record.cell_id, MEASURE_AGAIN)
        read_arrays(path, digest)
        return record

    def measurement_arrays(self, cell_id: str, measurement_id: str) -> Arrays:
        return self.attempt(lambda: read_arrays(measurement_path(self.root / cell_id, measurement_id))) or {}

    def _check_cell(self, path: Path, cell_id: str, received: str, remedy: str) -> None:
        """Refuse a record of another run than its folder is of: by its name, its config, or its external model."""
        if cell_id not in self._ids:
            self._ids[cell_id] = self._id_of(self.root / cell_id)
        expected = self._ids[cell_id]
        if expected not in (None, received):
            _refuse(path, f"that of run {received}, but this folder is of run {expected}", remedy)

    def _id_of(self, folder: Path) -> str | None:
        if (named := run_id(folder)) is not None:
            return named
        if (folder / "config.yaml").exists():
            cell = self.attempt(lambda: read_cell(folder))
            return None if cell is None else digest(identity_of(cell))
        external = self.external(folder.name)
        return None if external is None else external.cell_id

"""Records: one typed JSON file for each (cell, perturbation), written aside and renamed.

Layout of a results folder::

    ROOT/CELL/config.yaml model.keras history.csv training.json
    ROOT/CELL/records/PERT.json    ROOT/CELL/outcomes/PERT.npz    ROOT/CELL/measurements/ID.json ID.npz
    ROOT/CELL/transfer/ID.json ID.npz
    ROOT/experiments/NAME-SCALE.yaml    ROOT/report/

CELL and PERT are hashes of what trains a model and of what is done to it at test time; paths, devices,
versions and numbers of jobs are never part of them. Accuracies are fractions.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import secrets
import socket
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from bn_vuln import config
from bn_vuln.config import identity
from bn_vuln.errors import BnvulnError, UsageError

SCHEMA: Literal[1] = 1
ID_LENGTH = 12
Arrays = dict[str, NDArray[Any]]
Kind = TypeVar("Kind", bound=BaseModel)


def canonical_json(data: Any) -> str:
    """JSON with sorted keys and no spaces: the same text for the same content. NaN and infinities are refused."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(data: Any) -> str:
    """The first 12 hex digits of the sha256 of the canonical JSON of `data`."""
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()[:ID_LENGTH]


class _Frozen(BaseModel):
    """What is read as it was written."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# Fields that were renamed since records of them were published: the name in those records -> the field.
RENAMED = {"looked_at": "n_evaluations", "standing": "robust_after", "facts": "dataset_info"}


class _Versioned(_Frozen):
    """The content of a file."""

    schema_version: Literal[1] = SCHEMA

    @model_validator(mode="before")
    @classmethod
    def _with_present_names(cls, data: Any) -> Any:
        return {RENAMED.get(key, key): value for key, value in data.items()} if isinstance(data, Mapping) else data


class Flag(_Frozen):
    """Why a number may lie. `check` is its number in docs/checks.md; `value` is what tripped it."""

    check: int
    name: str
    value: float
    message: str

    @property
    def text(self) -> str:
        """`check 12: rounded to 8 bits ...`"""
        return f"check {self.check}: {self.message}"


class Record(_Versioned):
    """One measured accuracy with its identity.

    `cell` is what trained the model, as its id hashes it (or {"weights": sha256} for a model that is not ours),
    `perturbation` is {dataset, split, limit, kind, every field of the attack or noise, bn_statistics}. `n` examples, of
    which `correct` are classified correctly; `accuracy`, `top5` (None below six classes) and `target_rate` (examples
    classified as the target of a targeted attack) are fractions; `loss` is the mean cross-entropy in nats (None where
    it is not finite, or before it was recorded); `seconds` is wall time. `bn_folded` BN layers were
    folded away in the copy whose gradients an attack climbed, `bn_kept` were not. Attacks that count any iterate say at
    how many points the classifier was evaluated, `n_evaluations` (mean over the examples), and how many
    examples were still correct, `robust_after` each attack of an ensemble. Minimum-norm attacks have the
    `mean_distance` and the `median_distance` of the examples that were correct when clean and adversarial then, in the
    unit of the perturbation. Corruptions have
    a `corruption_source`: whether the images were `made` or those of the published `archive`. Where BN has the
    statistics of the batch, that is `bn_batch_size` examples, in the fixed random order that limits take them in.
    """

    cell_id: str
    perturbation_id: str
    cell: dict[str, Any]
    perturbation: dict[str, Any]
    n: int
    correct: int
    accuracy: float
    top5: float | None = None
    target_rate: float | None = None
    loss: float | None = None
    flags: tuple[Flag, ...] = ()
    versions: dict[str, str]
    device: str
    seconds: float
    replicas: int = 1
    bn_folded: int = 0
    bn_kept: int = 0
    n_evaluations: float | None = None
    robust_after: dict[str, int] = {}
    mean_distance: float | None = None
    median_distance: float | None = None
    corruption_source: Literal["made", "archive"] | None = None
    bn_batch_size: int | None = None

    @property
    def kind(self) -> str:
        return str(self.perturbation["kind"])


class MeasurementRecord(_Versioned):
    """One number measured of a model besides accuracy: `value` in `unit` (deg, steps, std, or % for fractions), over
    `n` examples, with its identity. None, over none, where the model has no such number, as without BN the distance of
    its statistics. `details` are further numbers of it; arrays lie beside the record as .npz."""

    cell_id: str
    measurement_id: str
    cell: dict[str, Any]
    measurement: dict[str, Any]
    value: float | None
    unit: str
    n: int
    details: dict[str, float] = {}
    versions: dict[str, str]
    device: str
    seconds: float


class TransferRecord(_Versioned):
    """How one model, the target, does on adversarial examples of a model, the source, with its identity.

    `source` and `target` are the models' cells and `perturbation` the attack on the source, as in `Record`. Of `n`
    examples the target classifies `clean_correct` correctly when clean and `correct` after the attack on the source;
    `fooled` of the former are misclassified then. `transferred` of the `eligible` ones, which both models classify
    correctly when clean and which fool the source, fool the target: `transfer_rate` is their share, None where there
    are none. `flags` are those of the attack on the source, `target_flags` those of the target. `seconds` is wall time,
    that of the attack included; versions, device and BN layers are as in `Record`.
    """

    transfer_id: str
    source_id: str
    target_id: str
    source: dict[str, Any]
    target: dict[str, Any]
    perturbation: dict[str, Any]
    n: int
    clean_correct: int
    clean_accuracy: float
    correct: int
    accuracy: float
    fooled: int
    eligible: int
    transferred: int
    transfer_rate: float | None
    flags: tuple[Flag, ...] = ()
    target_flags: tuple[Flag, ...] = ()
    versions: dict[str, str]
    device: str
    seconds: float
    replicas: int = 1
    bn_folded: int = 0
    bn_kept: int = 0


class TrainingRecord(_Versioned):
    """How a training ended. `state` is `trained`, or `failed` for a net that did not learn (`reason` says how);
    the accuracies are those of the kept epoch (`best_epoch`, from 1), None where there is none. `seconds` is the time
    spent in epochs, over all `resumed` times. `synchronized`: BN's statistics over the `replicas`, None without BN.
    `dataset_info` is that of the data."""

    cell_id: str
    state: str
    reason: str | None = None
    best_epoch: int | None = None
    epochs: int
    loss: float | None = None
    train_accuracy: float | None = None
    validation_accuracy: float | None = None
    parameters: int
    images_per_second: float
    versions: dict[str, str]
    device: str
    seconds: float
    replicas: int = 1
    global_batch_size: int | None = None
    synchronized: bool | None = None
    deterministic: bool = False
    resumed: int = 0
    dataset_info: dict[str, Any] | None = None


def perturbation_identity(evaluation: BaseModel, dataset: str, perturbation: BaseModel) -> dict[str, Any]:
    """What identifies a perturbation: {dataset, split, limit, bn_statistics, kind, every field of it}.

    `evaluation` and `perturbation` are config objects; the data set the model was trained on, `dataset` (its canonical
    name), stands in where the evaluation names none.
    """
    fields = identity(evaluation)
    return {**fields, "dataset": fields["dataset"] or dataset, **identity(perturbation)}


# ---------------------------------------------------------------- files


def replace_file(path: Path, content: bytes | str) -> None:
    """Write `content` aside and rename it to `path`, so that a reader sees the old file or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A temporary path of the same suffix beside `path`; renamed to `path` on success, removed on failure."""
    aside = path.with_name(f".{path.stem}.{os.getpid()}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def to_json(model: BaseModel) -> str:
    """A record as indented JSON with sorted keys."""
    return json.dumps(model.model_dump(mode="json"), indent=2, sort_keys=True, allow_nan=False) + "\n"


def record_path(folder: Path, perturbation_id: str) -> Path:
    """Where a run folder keeps a record."""
    return folder / "records" / f"{perturbation_id}.json"


def correct_path(folder: Path, perturbation_id: str) -> Path:
    """Where a run folder keeps what became of each example."""
    return folder / "outcomes" / f"{perturbation_id}.npz"


def write_record(
    folder: Path, record: Record, outcomes: NDArray[np.bool_], arrays: Mapping[str, NDArray[Any]] | None = None
) -> Path:
    """Write a record and, before it, its per-example outcomes (True: correct) and other `arrays` (see `distances`) into
    a run folder."""
    packed: Arrays = {"correct": np.packbits(outcomes), "n": np.asarray(len(outcomes), np.int64)}
    _write_arrays(correct_path(folder, record.perturbation_id), {**packed, **(arrays or {})})
    path = record_path(folder, record.perturbation_id)
    replace_file(path, to_json(record))
    return path


def read_record(path: Path) -> Record:
    """The record in a file. Raises `BnvulnError` naming the file if it is damaged or of another schema."""
    return _read(path, Record, "record")


def _read(path: Path, kind: type[Kind], what: str) -> Kind:
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise BnvulnError(f"{path}: not a readable {what} of schema {SCHEMA} ({_first_line(error)})") from None


def measurement_path(folder: Path, measurement_id: str) -> Path:
    """Where a run folder keeps a measurement; its arrays have the suffix .npz."""
    return folder / "measurements" / f"{measurement_id}.json"


def write_measurement(folder: Path, record: MeasurementRecord, arrays: dict[str, NDArray[Any]]) -> Path:
    """Write a measurement and, before it, its arrays into a run folder."""
    path = measurement_path(folder, record.measurement_id)
    _write_arrays(path, arrays)
    replace_file(path, to_json(record))
    return path


def _write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays beside the record that will be at `path`."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    replace_file(path.with_suffix(".npz"), buffer.getvalue())


def read_measurement(path: Path) -> MeasurementRecord:
    """The measurement in a file. Raises `BnvulnError` naming the file if it is damaged or of another schema."""
    return _read(path, MeasurementRecord, "measurement")


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays beside a record. Raises `BnvulnError` naming the file if they are missing or damaged."""
    return _load(path.with_suffix(".npz"), "arrays")


def _load(path: Path, what: str, names: tuple[str, ...] | None = None) -> Arrays:
    """The arrays of these names in a file, or all."""
    try:
        with np.load(path) as arrays:
            return {name: arrays[name] for name in names or arrays.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise BnvulnError(f"{path}: not readable {what} ({_first_line(error)})") from None


def transfer_path(folder: Path, transfer_id: str) -> Path:
    """Where the run folder of a target keeps a transfer record; its outcomes have the suffix .npz."""
    return folder / "transfer" / f"{transfer_id}.json"


def write_transfer(folder: Path, record: TransferRecord, outcomes: Mapping[str, NDArray[np.bool_]]) -> Path:
    """Write a transfer record and, before it, its per-example outcomes, bool [n] by name, into the target's run
    folder."""
    path = transfer_path(folder, record.transfer_id)
    _write_arrays(path, {name: np.packbits(bits) for name, bits in outcomes.items()})
    replace_file(path, to_json(record))
    return path


def read_transfer(path: Path) -> tuple[TransferRecord, dict[str, NDArray[np.bool_]]]:
    """The transfer record in a file, and its outcomes. Raises `BnvulnError` naming the file if one of them is damaged
    or of another schema."""
    record = _read(path, TransferRecord, "transfer record")
    packed = read_arrays(path)
    return record, {name: np.unpackbits(bits, count=record.n).astype(bool) for name, bits in packed.items()}


def read_training(folder: Path) -> TrainingRecord | None:
    """How the training of a run folder ended; None while there is no such record."""
    path = folder / "training.json"
    if not path.exists():
        return None
    return _read(path, TrainingRecord, "training record")


def read_correct(folder: Path, perturbation_id: str) -> NDArray[np.bool_]:
    """Per-example correctness, shape [n], of a record of this run folder. Raises `BnvulnError` naming the file if
    it is missing or damaged."""
    arrays = _load(correct_path(folder, perturbation_id), "outcomes", ("correct", "n"))
    return np.unpackbits(arrays["correct"], count=int(arrays["n"])).astype(bool)


def read_records(folder: Path) -> list[Record]:
    """All records of a run folder, in the order of their ids."""
    return [read_record(path) for path in sorted((folder / "records").glob("*.json"))]


def run_folders(root: Path) -> list[Path]:
    """The run folders directly in `root`: those that hold a config or records."""
    return sorted(p for p in root.glob("*") if (p / "config.yaml").exists() or (p / "records").is_dir())


def read_cell(folder: Path) -> config.Cell:
    """The cell of a run folder, from its config.yaml."""
    path = folder / "config.yaml"
    if not path.exists():
        raise UsageError(
            f"{folder}: not a run folder (no config.yaml); expected a run of `bnvuln train` or a .keras file"
        )
    return config.validate(config.Cell, config.read_yaml(path), str(path))


def clear_run(folder: Path) -> None:
    """Remove a run's files (not the claim), so that it can be trained again."""
    for name in ("training.json", "model.keras", "history.csv", "config.yaml", "checkpoint.npz"):
        (folder / name).unlink(missing_ok=True)
    clear_measured(folder)


def clear_measured(folder: Path) -> None:
    """Remove what was measured of a run."""
    for kind in ("records", "outcomes", "measurements", "transfer"):
        for path in (folder / kind).glob("*"):
            path.unlink()


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


# ---------------------------------------------------------------- claims

_held: set[Path] = set()  # the claims of this process


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[bool]:
    """Claim a run folder for this process by a file created exclusively; yields False if it is held already.

    A claim left by a process of this host that no longer lives is taken over.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = (folder / "claim.json").resolve()
    if not _create_claim(path) and not _take_over(path):
        yield False
        return
    try:
        yield True
    finally:
        _held.discard(path)
        path.unlink(missing_ok=True)


def _create_claim(path: Path) -> bool:
    try:
        with path.open("x") as file:
            json.dump({"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}, file)
    except FileExistsError:
        return False
    _held.add(path)
    return True


def _take_over(path: Path) -> bool:
    """Replace a stale claim by a fresh one. A lock makes looking and replacing one step: of several processes
    that see the same stale claim, the second one sees the first one's fresh claim."""
    with (path.parent / ".claim.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_stale(path):
            return False
        path.unlink(missing_ok=True)
        return _create_claim(path)


def stale_claim(folder: Path) -> bool:
    """Whether a run folder's claim was left by a process of this host that no longer lives."""
    return _is_stale((folder / "claim.json").resolve())


def _is_stale(path: Path) -> bool:
    try:
        owner = json.loads(path.read_text())
        host, pid = owner["host"], int(owner["pid"])
    except FileNotFoundError:
        return False
    except (ValueError, TypeError, KeyError):
        return _is_old(path)
    if host != socket.gethostname():
        return False
    # Our own number on a claim that is not ours is that of an earlier process.
    return path not in _held if pid == os.getpid() else not _lives(pid)


def _is_old(path: Path) -> bool:
    """Whether an unreadable claim was left by a process killed while it wrote, rather than being written now."""
    try:
        return time.time() - path.stat().st_mtime > 60
    except FileNotFoundError:
        return False


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True

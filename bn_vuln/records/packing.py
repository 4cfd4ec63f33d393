"""Packing and unpacking: working folder -> packed store (bn_vuln/records/packed.py) -> working folder."""

from __future__ import annotations

import gzip
import io
import json
import re
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from bn_vuln.config import Cell, describe_cell, identity_of, to_plain, validate
from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.records import digests
from bn_vuln.records.digests import to_yaml
from bn_vuln.records.folder import (
    FolderStore,
    check_model,
    outcome_arrays,
    read_experiment,
    record_path,
    set_aside,
    to_json,
    write_measurement,
    write_record,
)
from bn_vuln.records.packed import (
    ARRAYS,
    CELLS,
    HISTORY,
    MEASUREMENTS,
    OUTCOMES,
    PERTURBATIONS,
    RECORDS,
    SUMS,
    PackedStore,
    is_packed,
    packed_files,
)
from bn_vuln.records.reading import DamagedError, describe_damaged
from bn_vuln.records.schema import MeasurementRecord, Record, TrainingRecord
from bn_vuln.records.store import Store
from bn_vuln.runtime import lease
from bn_vuln.runtime.files import atomic_path, atomic_write
from bn_vuln.runtime.progress import Progress, Quiet
from bn_vuln.typing import Arrays, Plain

Members = Mapping[tuple[str, str], Sequence[str]]  # (cell, id of a record or "") -> the experiments that ask for it
# Fields on how a number was made: they may differ where it was made twice.
PROVENANCE_FIELDS = {"versions", "device", "seconds", "images_per_second", "replicas", "hosts", "resumed",
                     "dataset_info", "model_sha256", "history_sha256"}  # fmt: skip
ZIP_TIMESTAMP = (1980, 1, 1, 0, 0, 0)  # the date of everything in an archive


@dataclass(frozen=True)
class Published:
    """A cell to be published: the ids of its records and measurements, and whether its model goes with them."""

    ids: Collection[str]
    model: bool = False


@dataclass
class _Content:
    """All that a packed store holds, by cell and id; of outcomes and arrays by CELL/ID."""

    cells: dict[str, Cell] = field(default_factory=dict)
    trainings: dict[str, TrainingRecord] = field(default_factory=dict)
    histories: dict[str, str] = field(default_factory=dict)
    models: dict[str, Path] = field(default_factory=dict)
    records: dict[tuple[str, str], Record] = field(default_factory=dict)
    measurements: dict[tuple[str, str], MeasurementRecord] = field(default_factory=dict)
    outcomes: Arrays = field(default_factory=dict)
    arrays: dict[str, Arrays] = field(default_factory=dict)

    def add(self, store: Store, cell_id: str, published: Published | None = None) -> None:
        """Take a cell from a store: all that is there of it, or what is to be published. What is held already stays.

        Raises `BnvulnError` where numbers of the same id differ.
        """
        self.cells.setdefault(cell_id, store.cell(cell_id))
        if training := store.training(cell_id):
            known_training = self.trainings.setdefault(cell_id, training)
            _check_same(store, f"the training of {cell_id}", known_training, training)
        if (history := store.history(cell_id)) is not None:
            self.histories.setdefault(cell_id, history)
        if (published is None or published.model) and (model := store.model(cell_id)):
            if cell_id in self.trainings:
                check_model(model, self.trainings[cell_id])  # which may be the earlier one
            self.models.setdefault(cell_id, model)
        for record in store.records(cell_id):
            if published is None or record.perturbation_id in published.ids:
                self._add_record(store, cell_id, record)
        for measurement in store.measurements(cell_id):
            own = measurement.measurement_id
            if published is None or own in published.ids:
                known = self.measurements.setdefault((cell_id, own), measurement)
                _check_same(store, f"measurement {own} of {cell_id}", known, measurement)
                self._add_arrays(f"{cell_id}/{own}", store.measurement_arrays(cell_id, own))

    def _add_record(self, store: Store, cell_id: str, record: Record) -> None:
        own = record.perturbation_id
        known = self.records.setdefault((cell_id, own), record)
        _check_same(store, f"record {own} of {cell_id}", known, record)
        correct = store.correct(cell_id, own)
        if correct is not None:
            if len(correct) != record.n:
                raise BnvulnError(f"{store.root}: record {own} of {cell_id}: {len(correct)} outcomes of {record.n}")
            bits = self.outcomes.setdefault(f"{cell_id}/{own}", np.packbits(correct))
            if not np.array_equal(bits, np.packbits(correct)):
                raise _conflict(store, f"record {own} of {cell_id}", "which examples are correct")
        self._add_arrays(f"{cell_id}/{own}", store.arrays(cell_id, own))

    def _add_arrays(self, prefix: str, arrays: Arrays) -> None:
        self.arrays[prefix] = {**arrays, **self.arrays.get(prefix, {})}

    def with_digests(self, row: Plain) -> Plain:
        """Return a line with its digest, and before it that of its arrays, if it has some."""
        prefix = f"{row['cell_id']}/{row.get('perturbation_id', row.get('measurement_id'))}"
        arrays = self.arrays.get(prefix, {})
        if prefix in self.outcomes:
            arrays = outcome_arrays(self.outcomes[prefix], row["n"], arrays)
        return digests.with_digest({**row, digests.ARRAYS_KEY: digests.of_arrays(arrays)} if arrays else row)


def _check_same(store: Store, what: str, known: BaseModel, new: BaseModel) -> None:
    """Raise `BnvulnError` where two files of one id have other numbers."""
    if known is new:
        return
    before, after = (model.model_dump(mode="json", exclude=PROVENANCE_FIELDS) for model in (known, new))
    other = [f"{name} {before[name]!r} and {after[name]!r}" for name in before if before[name] != after[name]]
    if other:
        raise _conflict(store, what, "; ".join(other[:3]))


def _conflict(store: Store, what: str, other: str) -> BnvulnError:
    return BnvulnError(
        f"{what}: the numbers in {store.root} differ from those that are there already ({other}); "
        "numbers of two models must not be mixed: use an empty folder"
    )


# ---------------------------------------------------------------- packing


def pack(
    source: Store,
    target: Path,
    published: Mapping[str, Published],
    experiments: Mapping[str, str],
    members: Members,
    progress: Progress | None = None,
) -> None:
    """Add cells to a packed store, which is made where there is none. Each file is replaced as a whole.

    Args:
        source: The results to take cells from.
        target: The folder of the packed store.
        published: By cell id, what is taken of each.
        experiments: The YAML of the experiments that are added, by the stem of their file.
        members: Which experiments ask for a cell or a record, for the lines of `target`.
        progress: Receiver of messages on files of `source` that are damaged, which are left out. None: no messages.

    Raises:
        BnvulnError: Numbers of the same id differ, a config is damaged, or anything of `target` is, which is written
            anew as a whole.
    """
    content = _Content()
    if is_packed(target):
        known = PackedStore(target)
        for cell_id in known.cells():
            content.add(known, cell_id)
        if known.damaged:
            raise DamagedError(known.damaged[0])
    for cell_id, wanted in published.items():
        content.add(source, cell_id, wanted)
    _report(source, progress)
    for stem, text in experiments.items():
        path = target / "experiments" / f"{stem}.yaml"
        if not path.exists() or path.read_text() != text.partition("\n")[2]:  # else it is older, without a digest
            atomic_write(path, text)
    _write(content, target, members)


def _report(store: Store, progress: Progress | None) -> None:
    """Name what is damaged of a store, and was left out."""
    for line in describe_damaged(store.damaged):
        (progress or Quiet()).message(f"left out: {line}")


def _write(content: _Content, target: Path, members: Members) -> None:
    """Write all files; arrays first, so that no line is there before what it is about."""
    names = {}
    for cell_id, path in content.models.items():  # named by its label, and the id that tells it from all others
        label = re.sub(r"[^\w.=+-]+", "-", describe_cell(content.cells[cell_id])).strip("-")
        names[cell_id] = f"models/{label}-{cell_id}.keras"
        if path.resolve() != (target / names[cell_id]).resolve():
            atomic_write(target / names[cell_id], path.read_bytes())
    atomic_write(target / OUTCOMES, _archive(content.outcomes))
    arrays = {f"{prefix}/{name}": array for prefix, own in content.arrays.items() for name, array in own.items()}
    atomic_write(target / ARRAYS, _archive(arrays))
    atomic_write(target / HISTORY, gzip.compress(_join_histories(content.histories).encode(), mtime=0))
    perturbations = {record.perturbation_id: record.perturbation for record in content.records.values()}
    perturbations |= {record.measurement_id: record.measurement for record in content.measurements.values()}
    lines = [f"{json.dumps(key)}: {_json(perturbations[key])}" for key in sorted(perturbations)]
    atomic_write(target / PERTURBATIONS, "{\n" + ",\n".join(lines) + "\n}\n")
    identities = {cell_id: identity_of(cell) for cell_id, cell in content.cells.items()}

    def experiments_field(cell_id: str, own: str = "") -> Plain:
        return {"experiments": sorted(members.get((cell_id, own), ()))}

    cells = [
        _cell_line(cell_id, cell, content.trainings.get(cell_id), names.get(cell_id), experiments_field(cell_id))
        for cell_id, cell in sorted(content.cells.items())
    ]
    records = [
        _line(record, ("cell_id", "perturbation_id", "n", "correct", "accuracy", "flags"), experiments_field(*key),
              {"perturbation": record.perturbation, "cell": identities[key[0]]})
        for key, record in sorted(content.records.items())
    ]  # fmt: skip
    measurements = [
        _line(record, ("cell_id", "measurement_id", "n", "value", "unit"), experiments_field(*key),
              {"measurement": record.measurement, "cell": identities[key[0]]})
        for key, record in sorted(content.measurements.items())
    ]  # fmt: skip
    for name, rows in ((RECORDS, records), (MEASUREMENTS, measurements), (CELLS, cells)):
        _write_lines(target / name, rows, content)
    sums = [f"{digests.of_file(path)}  {path.relative_to(target).as_posix()}\n" for path in packed_files(target)]
    atomic_write(target / SUMS, "".join(sums))


def _write_lines(path: Path, rows: Sequence[Plain], content: _Content) -> None:
    """Write rows with the digests of their arrays and their own; older lines, which have none, stay as they are."""
    before = set(path.read_text().split("\n")) if path.exists() else set()
    lines = [_json(row if _json(row) in before else content.with_digests(row)) for row in rows]
    atomic_write(path, "".join(f"{line}\n" for line in lines))


def _cell_line(
    cell_id: str, cell: Cell, training: TrainingRecord | None, model: str | None, experiments: Plain
) -> Plain:
    """A line of cells.jsonl. The config stands in it where the identity does not say all of it, as a path of data."""
    identity = identity_of(cell)
    row: Plain = {"cell_id": cell_id, "label": describe_cell(cell), **experiments}
    if model is not None:
        row["model"] = model
    if training is not None:
        row["training"] = _line(training, ("state",), {}, {"cell_id": cell_id})
    row["identity"] = identity
    if to_plain(validate(Cell, identity, cell_id)) != to_plain(cell):
        row["config"] = to_plain(cell)
    return row


def _line(model: BaseModel, first: Sequence[str], more: Plain, shared: Plain) -> Plain:
    """The fields of a record in a line: `first`, `more`, then those not at their default and not in `shared`."""
    fields = model.model_dump(mode="json")
    set_fields = model.model_dump(mode="json", exclude_defaults=True)
    row = {name: fields[name] for name in first} | more
    written = {*row, *(name for name in shared if shared[name] == fields[name])}
    row |= {name: value for name, value in set_fields.items() if name not in written}
    return row | {"schema_version": fields["schema_version"]}


def _json(data: object) -> str:
    return json.dumps(data, ensure_ascii=False, allow_nan=False)


def _archive(arrays: Arrays) -> bytes:
    """An .npz file whose bytes depend on the arrays alone."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(arrays):
            member, entry = io.BytesIO(), zipfile.ZipInfo(f"{name}.npy", ZIP_TIMESTAMP)
            entry.compress_type, entry.create_system = zipfile.ZIP_DEFLATED, 3
            np.lib.format.write_array(member, np.asarray(arrays[name]), allow_pickle=False)
            archive.writestr(entry, member.getvalue())
    return buffer.getvalue()


def _join_histories(histories: Mapping[str, str]) -> str:
    """All histories as one CSV; the header row is repeated where the columns change."""
    lines, head = [], ""
    for cell_id, text in sorted(histories.items()):
        first, *rows = text.splitlines(keepends=True)
        if first != head:
            lines.append(f"cell_id,{first}")
        head = first
        lines += [f"{cell_id},{row}" for row in rows]
    return "".join(lines)


# ---------------------------------------------------------------- unpacking


def unpack(
    source: Path, target: Path, cells: Collection[str] | None = None, progress: Progress | None = None
) -> list[Path]:
    """Write a packed store as a working folder, from which runs, measurements and reports go on.

    What is in `target` already stays, but for damaged files.

    Args:
        source: The folder of the packed store.
        target: The working folder.
        cells: The ids of the cells that are wanted; all of them by default.
        progress: Receiver of messages on damaged lines, which are left out. None: no messages.

    Returns:
        The run folders, in the order of the store.

    Raises:
        UsageError: `source` is no packed store, or `target` is one.
        BnvulnError: The store cannot be read, or `target` has other numbers for the same id.
    """
    if not is_packed(source):
        raise UsageError(f"{source}: no packed store here (expected {source / CELLS}); `bnvuln publish` makes one")
    if is_packed(target):
        raise UsageError(f"{target}: target is a packed store; choose a working folder")
    packed, store = PackedStore(source), FolderStore(target)
    for path in sorted((source / "experiments").glob("*.yaml")):
        copy = target / "experiments" / path.name
        if packed.attempt(partial(read_experiment, path)) and not copy.exists():
            atomic_write(copy, path.read_bytes())
    chosen = packed.cells() if cells is None else [cell_id for cell_id in packed.cells() if cell_id in cells]
    written = []
    for cell_id in chosen:
        with lease.waited(target / cell_id, progress):
            if packed.attempt(partial(_unpack_cell, packed, store, cell_id)):
                written.append(target / cell_id)
    _report(packed, progress)
    return written


def contents(folder: Path) -> dict[Path, set[Path]]:
    """Return the files of each run folder of a working folder."""
    return {run: set(run.rglob("*")) for run in folder.iterdir()} if folder.is_dir() else {}


def describe_unpacked(runs: Sequence[Path], before: Mapping[Path, set[Path]], after: Mapping[Path, set[Path]]) -> str:
    """Say how many of the unpacked runs are new to a working folder, of what its `contents` were and are."""
    added = sum(run not in before for run in runs)
    unchanged = sum(before.get(run) == after[run] for run in runs)
    completed = len(runs) - added - unchanged
    return f"added {added} runs, unchanged {unchanged}" + (f", completed {completed}" if completed else "")


def _unpack_cell(packed: PackedStore, store: FolderStore, cell_id: str) -> bool:
    """Write a cell; True, since a damaged one raises."""
    folder, cell = store.root / cell_id, packed.cell(cell_id)
    if not (folder / "config.yaml").exists() or store.attempt(lambda: store.cell(cell_id)) is None:
        set_aside(folder / "config.yaml")
        atomic_write(folder / "config.yaml", to_yaml(cell))
    training, own = packed.training(cell_id), store.training(cell_id)
    if training and own:
        _check_same(packed, f"the training of {cell_id}", own, training)
    model, history, kept = packed.model(cell_id), packed.history(cell_id), own or training
    fits = history is not None and (not kept or kept.history_sha256 in (None, digests.of_text(history)))
    if history is not None and fits and not (folder / "history.csv").exists():
        atomic_write(folder / "history.csv", history)
    if model and kept and not (folder / "model.keras").exists() and packed.attempt(partial(check_model, model, kept)):
        with atomic_path(folder / "model.keras") as temporary:
            temporary.write_bytes(model.read_bytes())
    _unpack_measured(packed, store, cell_id)
    if training and not own:  # last: a run that has it counts as trained
        set_aside(folder / "training.json")
        atomic_write(folder / "training.json", to_json(training))
    return True


def _unpack_measured(packed: PackedStore, store: FolderStore, cell_id: str) -> None:
    folder = store.root / cell_id
    for record in packed.records(cell_id):
        key = record.perturbation_id
        if known := store.record(cell_id, key):
            _check_same(packed, f"record {key} of {cell_id}", known, record)
        elif (arrays := _whole_arrays(packed, cell_id, key)) is None:
            continue
        elif (correct := packed.correct(cell_id, key)) is not None:
            write_record(folder, record, correct, arrays)
        else:
            atomic_write(record_path(folder, key), to_json(record))
    for measurement in packed.measurements(cell_id):
        key = measurement.measurement_id
        if known_measurement := store.measurement(cell_id, key):
            _check_same(packed, f"measurement {key} of {cell_id}", known_measurement, measurement)
        elif (arrays := _whole_arrays(packed, cell_id, key)) is not None:
            write_measurement(folder, measurement, arrays)


def _whole_arrays(packed: PackedStore, cell_id: str, own: str) -> Arrays | None:
    """The arrays beside a number; None where they are damaged: the number is left out, to be measured again."""
    before = len(packed.damaged)
    arrays = packed.arrays(cell_id, own)
    return arrays if len(packed.damaged) == before else None

"""Packed stores: what is published, in a dozen files that can be reviewed line by line.

::

    ROOT/cells.jsonl          a line a model: id, label, experiments, training, config
    ROOT/records.jsonl        a line a record: cell, perturbation, numbers, flags, experiments, how it was made
    ROOT/measurements.jsonl   the same of measurements
    ROOT/transfers.jsonl      the same of transfer records, if there are any
    ROOT/perturbations.json   the id of each perturbation and measurement -> what it identifies
    ROOT/outcomes.npz         CELL/PERTURBATION -> which examples are correct, as packed bits
    ROOT/arrays.npz           CELL/ID/NAME -> arrays beside records and measurements
    ROOT/history.csv.gz       the epochs of all trainings
    ROOT/experiments/*.yaml   ROOT/models/*.keras (few)

All files are sorted and have fixed dates: the same content gives the same bytes. A field at its default is left out.
Writing is done by bn_vuln/records/packing.py.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from bn_vuln import config
from bn_vuln.errors import BnvulnError
from bn_vuln.records.folder import first_line, read_experiments
from bn_vuln.records.schema import ExternalRecord, MeasurementRecord, Record, TrainingRecord, TransferRecord
from bn_vuln.typing import Arrays, Mask, Plain

CELLS, RECORDS, MEASUREMENTS, TRANSFERS = "cells.jsonl", "records.jsonl", "measurements.jsonl", "transfers.jsonl"
PERTURBATIONS, OUTCOMES, ARRAYS, HISTORY = "perturbations.json", "outcomes.npz", "arrays.npz", "history.csv.gz"
Kind = TypeVar("Kind", bound=BaseModel)
Rows = dict[str, dict[str, Plain]]  # cell id -> id -> line


def is_packed(root: Path) -> bool:
    """Return True if a folder is a packed store, whole or damaged."""
    return any((root / name).exists() for name in (CELLS, RECORDS, MEASUREMENTS))


class PackedStore:
    """Results in packed files. Nothing is read before it is asked for. See `Store`."""

    def __init__(self, root: Path) -> None:
        """`root` is a folder for which `is_packed` holds."""
        self.root = root

    def experiments(self) -> list[config.Experiment]:
        return read_experiments(self.root)

    def cells(self) -> list[str]:
        return list(self._cells)

    def cell(self, cell_id: str) -> config.Cell:
        row = self._row(cell_id)
        return config.validate(config.Cell, row.get("config", row["identity"]), f"{self.root / CELLS}: {cell_id}")

    def training(self, cell_id: str) -> TrainingRecord | None:
        fields = self._cells.get(cell_id, {}).get("training")
        return None if fields is None else self._parse_record(TrainingRecord, CELLS, {"cell_id": cell_id, **fields})

    def external(self, cell_id: str) -> ExternalRecord | None:
        return None

    def history(self, cell_id: str) -> str | None:
        return self._histories.get(cell_id)

    def model(self, cell_id: str) -> Path | None:
        name = self._cells.get(cell_id, {}).get("model")
        if name is not None and not (self.root / name).exists():
            raise BnvulnError(f"{self.root / name}: no such file, which {self.root / CELLS} names")
        return None if name is None else self.root / name

    def records(self, cell_id: str) -> list[Record]:
        return [self._record(cell_id, row) for row in self._records.get(cell_id, {}).values()]

    def record(self, cell_id: str, perturbation_id: str) -> Record | None:
        row = self._records.get(cell_id, {}).get(perturbation_id)
        return None if row is None else self._record(cell_id, row)

    def correct(self, cell_id: str, perturbation_id: str) -> Mask | None:
        row, key = self._records.get(cell_id, {}).get(perturbation_id), f"{cell_id}/{perturbation_id}"
        if row is None or key not in self._outcomes:
            return None
        return self._bits(key, int(row["n"]))

    def arrays(self, cell_id: str, perturbation_id: str) -> Arrays:
        return {name: self._array(ARRAYS, key) for name, key in self._names.get((cell_id, perturbation_id), {}).items()}

    def measurements(self, cell_id: str) -> list[MeasurementRecord]:
        return [self._measurement(cell_id, row) for row in self._measurements.get(cell_id, {}).values()]

    def measurement(self, cell_id: str, measurement_id: str) -> MeasurementRecord | None:
        row = self._measurements.get(cell_id, {}).get(measurement_id)
        return None if row is None else self._measurement(cell_id, row)

    def measurement_arrays(self, cell_id: str, measurement_id: str) -> Arrays:
        return self.arrays(cell_id, measurement_id)

    def transfers(self, cell_id: str) -> list[tuple[TransferRecord, dict[str, Mask]]]:
        found = []
        for row in self._transfers.get(cell_id, {}).values():
            fields = {"target": self._row(cell_id)["identity"], **row, "target_id": cell_id}
            fields["perturbation"] = self._identity(fields.pop("perturbation_id", ""))
            del fields["cell_id"]
            record = self._parse_record(TransferRecord, TRANSFERS, fields)
            prefix = f"{cell_id}/{record.transfer_id}/"
            names = [key.removeprefix(prefix) for key in self._outcomes if key.startswith(prefix)]
            found.append((record, {name: self._bits(prefix + name, record.n) for name in names}))
        return found

    # ------------------------------------------------------------ lines

    def _row(self, cell_id: str) -> Plain:
        if cell_id not in self._cells:
            raise BnvulnError(f"{self.root / CELLS}: no cell {cell_id}")
        return self._cells[cell_id]

    def _identity(self, key: str) -> Plain:
        if key not in self._perturbations:
            raise BnvulnError(f"{self.root / PERTURBATIONS}: no perturbation {key}, which another file names")
        return self._perturbations[key]

    def _record(self, cell_id: str, row: Plain) -> Record:
        fields = {"cell": self._row(cell_id)["identity"], **row, "cell_id": cell_id}
        return self._parse_record(Record, RECORDS, {**fields, "perturbation": self._identity(row["perturbation_id"])})

    def _measurement(self, cell_id: str, row: Plain) -> MeasurementRecord:
        fields = {"cell": self._row(cell_id)["identity"], **row, "cell_id": cell_id}
        measurement = self._identity(row["measurement_id"])
        return self._parse_record(MeasurementRecord, MEASUREMENTS, {**fields, "measurement": measurement})

    def _parse_record(self, kind: type[Kind], name: str, fields: Plain) -> Kind:
        try:
            return kind.model_validate({key: value for key, value in fields.items() if key != "experiments"})
        except ValidationError as error:
            raise BnvulnError(f"{self.root / name}: not a readable {kind.__name__} ({first_line(error)})") from None

    @functools.cached_property
    def _cells(self) -> dict[str, Plain]:
        return {row["cell_id"]: row for row in self._lines(CELLS, ("cell_id", "identity"))}

    @functools.cached_property
    def _records(self) -> Rows:
        return self._by_cell(RECORDS, "perturbation_id")

    @functools.cached_property
    def _measurements(self) -> Rows:
        return self._by_cell(MEASUREMENTS, "measurement_id")

    @functools.cached_property
    def _transfers(self) -> Rows:
        return self._by_cell(TRANSFERS, "transfer_id") if (self.root / TRANSFERS).exists() else {}

    def _by_cell(self, name: str, key: str) -> Rows:
        rows: Rows = {}
        for row in self._lines(name, ("cell_id", key, "n")):
            if row["cell_id"] not in self._cells:
                raise BnvulnError(f"{self.root / CELLS}: no cell {row['cell_id']}, which {name} names")
            rows.setdefault(row["cell_id"], {})[row[key]] = row
        return rows

    def _lines(self, name: str, needed: tuple[str, ...]) -> Iterator[Plain]:
        """The objects of a file, one a line."""
        text = self._bytes(name)
        if text and not text.endswith(b"\n"):
            raise BnvulnError(f"{self.root / name}: file is truncated (no final newline)")
        for number, line in enumerate(text.splitlines(), 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise BnvulnError(f"{self.root / name}: line {number} is no JSON ({error})") from None
            if not isinstance(row, dict) or any(key not in row for key in needed):
                raise BnvulnError(f"{self.root / name}: line {number} is no object with {', '.join(needed)}")
            yield row

    @functools.cached_property
    def _perturbations(self) -> dict[str, Plain]:
        try:
            found = json.loads(self._bytes(PERTURBATIONS))
        except ValueError as error:
            raise BnvulnError(f"{self.root / PERTURBATIONS}: no JSON ({error})") from None
        if not isinstance(found, dict):
            raise BnvulnError(f"{self.root / PERTURBATIONS}: expected an object")
        return found

    @functools.cached_property
    def _histories(self) -> dict[str, str]:
        """The CSV of each cell; the lines that begin with `cell_id` name the columns of those below them."""
        try:
            text = gzip.decompress(self._bytes(HISTORY)).decode()
        except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
            raise BnvulnError(f"{self.root / HISTORY}: not readable ({first_line(error)})") from None
        found: dict[str, list[str]] = {}
        head = ""
        for line in text.splitlines(keepends=True):
            cell_id, _, rest = line.partition(",")
            if cell_id == "cell_id":
                head = rest
            else:
                found.setdefault(cell_id, [head]).append(rest)
        return {cell_id: "".join(lines) for cell_id, lines in found.items()}

    def _bytes(self, name: str) -> bytes:
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise BnvulnError(f"{self.root / name}: {error.strerror}; a packed store has this file") from None

    # ------------------------------------------------------------ arrays

    @functools.cached_property
    def _outcomes(self) -> np.lib.npyio.NpzFile:
        archive = self._archive(OUTCOMES)
        for cell_id, own in (key.split("/")[:2] for key in archive.files):
            if own not in self._records.get(cell_id, {}) and own not in self._transfers.get(cell_id, {}):
                raise BnvulnError(f"{self.root / RECORDS}: no record {own} of {cell_id}, which {OUTCOMES} has")
        return archive

    @functools.cached_property
    def _archived(self) -> np.lib.npyio.NpzFile:
        return self._archive(ARRAYS)

    @functools.cached_property
    def _names(self) -> dict[tuple[str, str], dict[str, str]]:
        """(cell, id) -> name of an array -> its key."""
        found: dict[tuple[str, str], dict[str, str]] = {}
        for key in self._archived.files:
            cell_id, own, name = key.split("/", 2)
            if own not in self._records.get(cell_id, {}) and own not in self._measurements.get(cell_id, {}):
                raise BnvulnError(f"{self.root / MEASUREMENTS}: no number {own} of {cell_id}, which {ARRAYS} has")
            found.setdefault((cell_id, own), {})[name] = key
        return found

    def _archive(self, name: str) -> np.lib.npyio.NpzFile:
        try:
            # From memory: a file's position would be shared with forked processes.
            archive: np.lib.npyio.NpzFile = np.load(io.BytesIO(self._bytes(name)))
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise BnvulnError(f"{self.root / name}: not readable ({first_line(error)})") from None
        return archive

    def _array(self, name: str, key: str) -> np.ndarray:
        archive = self._outcomes if name == OUTCOMES else self._archived
        try:
            return archive[key]
        except (OSError, ValueError, EOFError, KeyError, zlib.error, zipfile.BadZipFile) as error:
            raise BnvulnError(f"{self.root / name}: {key} is not readable ({first_line(error)})") from None

    def _bits(self, key: str, n: int) -> Mask:
        return np.unpackbits(self._array(OUTCOMES, key), count=n).astype(bool)

"""Packed stores: what is published, in a dozen files that can be reviewed line by line.

::

    ROOT/cells.jsonl          a line a model: id, label, experiments, training, config
    ROOT/records.jsonl        a line a record: cell, perturbation, numbers, flags, experiments, how it was made
    ROOT/measurements.jsonl   the same of measurements
    ROOT/perturbations.json   the id of each perturbation and measurement -> what it identifies
    ROOT/outcomes.npz         CELL/PERTURBATION -> which examples are correct, as packed bits
    ROOT/arrays.npz           CELL/ID/NAME -> arrays beside records and measurements
    ROOT/history.csv.gz       the epochs of all trainings
    ROOT/experiments/*.yaml   ROOT/models/*.keras (few)
    ROOT/SHA256SUMS           the digests of all these files (sha256sum --check)

All files are sorted and have fixed dates: the same content gives the same bytes. A field at its default is left out.
Each line has its digest, and lines of numbers that of their arrays; older lines have none. Writing is done by
bn_vuln/records/packing.py.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn, TypeVar

from pydantic import BaseModel

from bn_vuln import config
from bn_vuln.errors import ConfigError
from bn_vuln.records import checks, digests
from bn_vuln.records.folder import check_model, outcome_arrays, read_experiments
from bn_vuln.records.reading import (
    Damaged,
    DamagedError,
    DamageLog,
    ParsedArrays,
    first_line,
    parse_json,
)
from bn_vuln.records.schema import ExternalRecord, MeasurementRecord, Record, TrainingRecord
from bn_vuln.runtime.limits import gunzip, is_plain_name, read_file
from bn_vuln.typing import AnyArray, Arrays, Mask, Plain

CELLS, RECORDS, MEASUREMENTS = "cells.jsonl", "records.jsonl", "measurements.jsonl"
PERTURBATIONS, OUTCOMES, ARRAYS, HISTORY = "perturbations.json", "outcomes.npz", "arrays.npz", "history.csv.gz"
SUMS = "SHA256SUMS"
Kind = TypeVar("Kind", bound=BaseModel)
Result = TypeVar("Result")
# Names that arrays beside a record cannot have: those of its outcomes and digest, and of parameters of np.savez.
RESERVED = ("correct", "n", "sha256", "file", "allow_pickle")
REMEDY = "restore the file from where the store is from, or publish the results again"
Rows = dict[str, dict[str, Plain]]  # cell id -> id -> line


def is_packed(root: Path) -> bool:
    """Return True if a folder is a packed store, whole or damaged."""
    return any((root / name).exists() for name in (CELLS, RECORDS, MEASUREMENTS))


def packed_files(root: Path) -> list[Path]:
    """Return the files of a packed store, those alone whose digests SHA256SUMS has."""
    named = (CELLS, RECORDS, MEASUREMENTS, PERTURBATIONS, OUTCOMES, ARRAYS, HISTORY)
    many = (path for pattern in ("experiments/*.yaml", "models/*.keras") for path in sorted(root.glob(pattern)))
    return [*(path for name in named if (path := root / name).exists()), *many]


class PackedStore(DamageLog):
    """Results in packed files. Nothing is read before it is asked for. See `Store`.

    A damaged line costs itself; so does a damaged file, but for those that all others refer to: `cells.jsonl` and
    `perturbations.json`, without which nothing can be read.
    """

    def __init__(self, root: Path) -> None:
        """`root` is a folder for which `is_packed` holds."""
        super().__init__()
        self.root = root

    def experiments(self) -> list[config.Experiment]:
        return read_experiments(self.root, self)

    def cells(self) -> list[str]:
        return list(self._cells)

    def cell(self, cell_id: str) -> config.Cell:
        row = self._row(cell_id)
        with self._refusing(CELLS, "{}", cell_id, (ConfigError,)):
            cell = config.validate(config.Cell, row.get("config", row["identity"]), cell_id)
        if (own := config.digest(config.identity_of(cell))) != cell_id:
            self._refuse(CELLS, f"the config of {cell_id} is that of {own}", cell_id)
        return cell

    def training(self, cell_id: str) -> TrainingRecord | None:
        fields = self._cells.get(cell_id, {}).get("training")
        return None if fields is None else self.attempt(lambda: self._training(cell_id, fields))

    def _training(self, cell_id: str, fields: object) -> TrainingRecord:
        if not isinstance(fields, Mapping):
            self._refuse(CELLS, f"the training of {cell_id} is no object", cell_id)
        return self._parse_record(TrainingRecord, CELLS, {**fields, "cell_id": cell_id}, cell_id)

    def external(self, cell_id: str) -> ExternalRecord | None:
        return None

    def history(self, cell_id: str) -> str | None:
        text = self._histories.get(cell_id)
        return None if text is None else self.attempt(lambda: self._history(cell_id, text))

    def _history(self, cell_id: str, text: str) -> str:
        with self._refusing(HISTORY, f"epochs of {cell_id}: {{}}", cell_id):
            checks.check_history(text, self.training(cell_id))
        return text

    def model(self, cell_id: str) -> Path | None:
        name = self._cells.get(cell_id, {}).get("model")
        return None if name is None else self.attempt(lambda: self._model(cell_id, name))

    def _model(self, cell_id: str, name: object) -> Path:
        folder = self.root / "models"
        path = self.root / str(name)
        if path.parent != folder:
            self._refuse(CELLS, f"the model of {cell_id} is not in {folder}", cell_id)
        if not path.exists():
            raise DamagedError(Damaged(path, f"no such file, which {CELLS} names", REMEDY, cell_id))
        if training := self.training(cell_id):
            check_model(path, training)
        return path

    def records(self, cell_id: str) -> list[Record]:
        return [record for own in self._records.get(cell_id, {}) if (record := self.record(cell_id, own))]

    def record(self, cell_id: str, perturbation_id: str) -> Record | None:
        row = self._records.get(cell_id, {}).get(perturbation_id)
        return None if row is None else self.attempt(lambda: self._record(cell_id, row))

    def correct(self, cell_id: str, perturbation_id: str) -> Mask | None:
        record = self.record(cell_id, perturbation_id)
        return None if record is None else self._correct(record)

    def _correct(self, record: Record) -> Mask | None:
        key = f"{record.cell_id}/{record.perturbation_id}"
        return self._bits(key, record.n, record.cell_id) if key in self._outcomes else None

    def arrays(self, cell_id: str, perturbation_id: str) -> Arrays:
        return self.attempt(lambda: self._arrays(cell_id, perturbation_id)) or {}

    def _arrays(self, cell_id: str, own: str) -> Arrays:
        return {name: self._array(key, cell_id) for name, key in self._names.get((cell_id, own), {}).items()}

    def measurements(self, cell_id: str) -> list[MeasurementRecord]:
        return [record for own in self._measurements.get(cell_id, {}) if (record := self.measurement(cell_id, own))]

    def measurement(self, cell_id: str, measurement_id: str) -> MeasurementRecord | None:
        row = self._measurements.get(cell_id, {}).get(measurement_id)
        return None if row is None else self.attempt(lambda: self._measurement(cell_id, row))

    def measurement_arrays(self, cell_id: str, measurement_id: str) -> Arrays:
        return self.arrays(cell_id, measurement_id)

    # ------------------------------------------------------------ lines

    def _refuse(self, name: str, reason: str, cell_id: str = "") -> NoReturn:
        raise DamagedError(Damaged(self.root / name, reason, REMEDY, cell_id)) from None

    @contextlib.contextmanager
    def _refusing(
        self, name: str, reason: str, cell_id: str = "", kinds: tuple[type[Exception], ...] = (ValueError,)
    ) -> Iterator[None]:
        """Refuse a file for what is raised meanwhile, which stands for {} in the reason."""
        try:
            yield
        except kinds as error:
            self._refuse(name, reason.replace("{}", first_line(error)), cell_id)

    def _row(self, cell_id: str) -> Plain:
        if cell_id not in self._cells:
            self._refuse(CELLS, f"no cell {cell_id}", cell_id)
        return self._cells[cell_id]

    def _identity(self, key: str, cell_id: str) -> Plain:
        if key not in self._perturbations:
            self._refuse(PERTURBATIONS, f"no perturbation {key}, which another file names", cell_id)
        return self._perturbations[key]

    def _record(self, cell_id: str, row: Plain) -> Record:
        fields = {**row, "cell_id": cell_id, "perturbation": self._identity(row["perturbation_id"], cell_id)}
        record = self._parse_record(Record, RECORDS, fields, cell_id)
        correct = self._correct(record)
        if correct is not None:
            with self._refusing(OUTCOMES, f"{record.perturbation_id} of {cell_id}: {{}}", cell_id):
                checks.check_outcomes(correct, record)
            if digests.ARRAYS_KEY in row:
                bits, own = self._outcomes[f"{cell_id}/{record.perturbation_id}"], record.perturbation_id
                self._check_arrays(RECORDS, row, outcome_arrays(bits, record.n, self._arrays(cell_id, own)))
        return record

    def _check_arrays(self, name: str, row: Plain, arrays: Arrays) -> None:
        """Refuse a line of other arrays; older lines have no digest of them."""
        if row.get(digests.ARRAYS_KEY) not in (None, digests.of_arrays(arrays)):
            own = row.get("perturbation_id", row.get("measurement_id"))
            self._refuse(name, f"{own} of {row['cell_id']}: its arrays have another sha256", row["cell_id"])

    def _measurement(self, cell_id: str, row: Plain) -> MeasurementRecord:
        fields = {**row, "cell_id": cell_id, "measurement": self._identity(row["measurement_id"], cell_id)}
        record = self._parse_record(MeasurementRecord, MEASUREMENTS, fields, cell_id)
        if digests.ARRAYS_KEY in row:
            self._check_arrays(MEASUREMENTS, row, self._arrays(cell_id, record.measurement_id))
        return record

    def _parse_record(self, kind: type[Kind], name: str, fields: Plain, cell_id: str) -> Kind:
        """A record of a line, of a cell and a perturbation whose ids are checked already."""
        fields = {key: value for key, value in fields.items() if key not in ("experiments", digests.ARRAYS_KEY)}
        about = [str(fields[key]) for key in ("perturbation_id", "measurement_id") if key in fields]
        reason = f"{' of '.join([*about, cell_id])}: not a readable {kind.__name__} ({{}})"
        with self._refusing(name, reason, cell_id, (ValueError, TypeError)):
            if kind in (Record, MeasurementRecord):
                if "cell" in fields:
                    checks.check_id("cell_id", cell_id, fields["cell"], "cell")
                fields = {"cell": self._row(cell_id)["identity"], **fields}
            record = kind.model_validate(fields)
            checks.check_numbers(record)
        return record

    @functools.cached_property
    def _cells(self) -> dict[str, Plain]:
        rows: dict[str, Plain] = {}
        for row in self._unique(CELLS, ("cell_id",), self._lines(CELLS, ("cell_id",))):
            try:
                if not isinstance(row.get("identity"), dict):
                    raise ValueError("identity: expected an object")
                checks.check_id("cell_id", row["cell_id"], row["identity"], "identity")
            except ValueError as error:
                self.note(Damaged(self.root / CELLS, first_line(error), REMEDY, row["cell_id"]))
            else:
                rows[row["cell_id"]] = row
        return rows

    @functools.cached_property
    def _records(self) -> Rows:
        return self._by_cell(RECORDS, "perturbation_id")

    @functools.cached_property
    def _measurements(self) -> Rows:
        return self._by_cell(MEASUREMENTS, "measurement_id")

    def _by_cell(self, name: str, key: str) -> Rows:
        rows: Rows = {}
        keys = ("cell_id", key)
        for row in self._unique(name, keys, self._or([], lambda: self._lines(name, keys))):
            cell_id = row["cell_id"]
            if cell_id in self._cells:
                rows.setdefault(cell_id, {})[row[key]] = row
            else:
                self.note(Damaged(self.root / CELLS, f"no cell {cell_id}, which {name} names", REMEDY, cell_id))
        return rows

    def _unique(self, name: str, keys: tuple[str, ...], rows: Iterable[Plain]) -> Iterator[Plain]:
        """The rows without those of an id that is there twice: which of them is right cannot be told."""
        found: dict[tuple[str, ...], list[Plain]] = {}
        for row in rows:
            found.setdefault(tuple(row[key] for key in keys), []).append(row)
        for own, alike in found.items():
            if len(alike) == 1:
                yield alike[0]
            else:
                about = " of ".join(reversed(own))
                self.note(Damaged(self.root / name, f"{len(alike)} lines of {about}", REMEDY, own[0]))

    def _lines(self, name: str, ids: tuple[str, ...]) -> list[Plain]:
        """The objects of a file, one a line, that have these ids; others are noted."""
        rows = []
        for number, line in enumerate(self._bytes(name).splitlines(keepends=True), 1):
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("truncated (no final newline)")
                row = digests.without_digest(parse_json(line))
                if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ids):
                    raise ValueError(f"no object with {', '.join(ids)}")
            except ValueError as error:
                self.note(Damaged(self.root / name, f"line {number}: {first_line(error)}", REMEDY))
            else:
                rows.append(row)
        return rows

    @functools.cached_property
    def _perturbations(self) -> dict[str, Plain]:
        with self._refusing(PERTURBATIONS, "no JSON ({})"):
            found = parse_json(self._bytes(PERTURBATIONS))
            if not isinstance(found, dict):
                raise ValueError("expected an object")
        whole = {}
        for key, identity in found.items():
            try:
                if not isinstance(identity, dict):
                    raise ValueError(f"{key}: expected an object")
                checks.check_id("id", key, identity, "fields")
            except ValueError as error:
                self.note(Damaged(self.root / PERTURBATIONS, first_line(error), REMEDY))
            else:
                whole[key] = identity
        return whole

    @functools.cached_property
    def _histories(self) -> dict[str, str]:
        """The CSV of each cell; the lines that begin with `cell_id` name the columns of those below them."""
        text = self._or("", self._history_text)
        found: dict[str, list[str]] = {}
        head = ""
        for line in text.splitlines(keepends=True):
            cell_id, _, rest = line.partition(",")
            if cell_id == "cell_id":
                head = rest
            else:
                found.setdefault(cell_id, [head]).append(rest)
        return {cell_id: "".join(lines) for cell_id, lines in found.items()}

    def _history_text(self) -> str:
        content = self._bytes(HISTORY)
        with self._refusing(HISTORY, "not readable ({})", kinds=(Exception,)):  # gzip and zlib raise many kinds
            return gunzip(content).decode()

    def _bytes(self, name: str) -> bytes:
        with self._refusing(name, "{}; a packed store has this file", kinds=(OSError, ValueError)):
            return read_file(self.root / name)

    def _or(self, other: Result, read: Callable[[], Result]) -> Result:
        """What is read, or something else where the file is damaged, which is noted."""
        found = self.attempt(read)
        return other if found is None else found

    # ------------------------------------------------------------ arrays

    @functools.cached_property
    def _outcomes(self) -> ParsedArrays:
        archive = self._archive(OUTCOMES)
        for parts in (key.split("/") for key in archive):
            cell_id, own = parts[0], parts[1] if len(parts) > 1 else ""
            if own not in self._records.get(cell_id, {}):
                self._note_alone(RECORDS, OUTCOMES, cell_id, own)
        return archive

    @functools.cached_property
    def _archived(self) -> ParsedArrays:
        return self._archive(ARRAYS)

    @functools.cached_property
    def _names(self) -> dict[tuple[str, str], dict[str, str]]:
        """(cell, id) -> name of an array -> its key."""
        found: dict[tuple[str, str], dict[str, str]] = {}
        for key in self._archived:
            cell_id, own, name = [*key.split("/", 2), "", ""][:3]
            if not is_plain_name(name) or name in RESERVED:
                self.note(Damaged(self.root / ARRAYS, f"{key[:80]!r} is no CELL/ID/NAME of an array", REMEDY, cell_id))
                continue
            if own not in self._records.get(cell_id, {}) and own not in self._measurements.get(cell_id, {}):
                self._note_alone(MEASUREMENTS, ARRAYS, cell_id, own)
            found.setdefault((cell_id, own), {})[name] = key
        return found

    def _note_alone(self, lines: str, archive: str, cell_id: str, own: str) -> None:
        """Note arrays that no line is about, unless a damaged line explains it."""
        if not any(one.path.name in (CELLS, RECORDS, MEASUREMENTS) for one in self.damaged):
            self.note(Damaged(self.root / lines, f"no number {own} of {cell_id}, which {archive} has", REMEDY, cell_id))

    def _archive(self, name: str) -> ParsedArrays:
        return self._or(ParsedArrays.none(), lambda: self._open(name))

    def _open(self, name: str) -> ParsedArrays:
        content = self._bytes(name)  # in memory: a file's position would be shared with forked processes
        with self._refusing(name, "not readable ({})"):
            return ParsedArrays(content)

    def _array(self, key: str, cell_id: str) -> AnyArray:
        with self._refusing(ARRAYS, f"{key} is not readable ({{}})", cell_id):
            return self._archived[key]

    def _bits(self, key: str, n: int, cell_id: str) -> Mask:
        with self._refusing(OUTCOMES, f"{key}: {{}}", cell_id):
            return self._outcomes.bits(key, n)

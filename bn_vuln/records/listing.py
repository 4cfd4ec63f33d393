"""The models of a results folder, runs and external ones: what there is of each, and how one is found by its name."""

from __future__ import annotations

import contextlib
import difflib
import os
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bn_vuln.config import Cell, is_cell, order_of, validate
from bn_vuln.errors import BnvulnError, ConfigError, UsageError
from bn_vuln.records.comparability import with_check_of_transfer
from bn_vuln.records.folder import EXTERNAL, FolderStore, read_external, run_folders
from bn_vuln.records.names import cell_name, differing_fields, external_name
from bn_vuln.records.packed import is_packed
from bn_vuln.records.schema import ExternalRecord, MeasurementRecord, Record, TrainingRecord
from bn_vuln.records.store import Store, open_run, open_store
from bn_vuln.runtime.lease import is_locked

SEEN = 26  # check of images that a run was trained on


@dataclass(frozen=True)
class Entry:
    """One model of a results folder, a run or an external one, with what was measured of it.

    Attributes:
        store: The store that it lies in, as `id`, the name of its folder there.
        cell: What trains it; None of external models, and where it is not there.
        external: Which external model it is.
        training: How its training ended.
        records: In the order of tables.
        problems: What is damaged, or of another model: file, reason and remedy.
        changed: When its folder changed, in seconds since 1970; 0 in packed stores.
        is_locked: True while a process works on it.
    """

    store: Store
    id: str
    cell: Cell | None
    external: ExternalRecord | None
    training: TrainingRecord | None
    records: tuple[Record, ...]
    measurements: tuple[MeasurementRecord, ...]
    problems: tuple[str, ...]
    changed: float
    is_locked: bool

    @property
    def folder(self) -> Path:
        """The folder, or STORE/CELL of a packed store."""
        return self.store.root / self.id

    @property
    def name(self) -> str:
        """The name that people read: `mlp batch c=1e-5 seed 0`, or an external model's file."""
        if self.external is not None:
            return external_name(self.external.source)
        return cell_name(self.cell) if self.cell is not None else "external model" if self.records else self.id

    @property
    def dataset(self) -> str:
        """The data set, user data without their folder; empty where it is not known."""
        if self.cell is not None:
            return self.cell.data.name.rpartition("/")[2]
        if self.external is not None and isinstance(spelled := self.external.found.get("dataset"), str):
            return spelled.rstrip("/").rpartition("/")[2]
        return ", ".join(dict.fromkeys(str(record.perturbation["dataset"])[:12] for record in self.records))

    @property
    def datasets(self) -> dict[str, str]:
        """What data sets are called, as far as that is known, by what identifies them; `dataset` comes last."""
        if self.cell is not None:
            return {self.cell.data.canonical: self.dataset}
        known = {} if self.external is None else self.external.found.get("datasets")
        if not isinstance(known, dict):
            return {}
        return {str(name): str(label).rstrip("/").rpartition("/")[2] for name, label in known.items()}

    @property
    def state(self) -> str:
        """`trained`, `failed`, `training`, `unfinished`, `external`, `records only` or `damaged`."""
        if self.problems:
            return "damaged"
        if self.external is not None or (self.cell is None and self.records):
            return "external"
        if self.training is not None:
            return self.training.state
        if self.is_locked:
            return "training"
        is_there = not isinstance(self.store, FolderStore) or (self.folder / "config.yaml").exists()
        return "unfinished" if is_there and not self.records else "records only"

    @property
    def clean(self) -> Record | None:
        """The clean accuracy; of several, that on `dataset`, unseen images, tracked statistics, most examples."""
        found = [record for record in self.records if record.kind == "clean"]
        own = next(reversed(self.datasets), None)
        return max(
            found,
            key=lambda r: (
                r.perturbation["dataset"] == own,
                r.perturbation["split"] in ("test", "all") and all(flag.check != SEEN for flag in r.flags),
                r.perturbation["bn_statistics"] == "tracked",
                r.n,
            ),
            default=None,
        )


def entries(store: Store) -> list[Entry]:
    """Return all models of a store, the newest first; those of a packed store by their names."""
    found = [entry(store, cell_id) for cell_id in store.cells()]
    return sorted(found, key=lambda one: (-one.changed, one.name, one.id))


def entry(store: Store, cell_id: str) -> Entry:
    """Return one model of a store. What is damaged is left out, and is among its problems."""
    in_folder, folder, cell = isinstance(store, FolderStore), store.root / cell_id, None
    external, training, found = store.external(cell_id), store.training(cell_id), store.records(cell_id)
    found = [with_check_of_transfer(store, cell_id, record) for record in found]
    measurements = store.measurements(cell_id)
    if not in_folder or (folder / "config.yaml").exists():
        cell = store.attempt(lambda: store.cell(cell_id))
    elif found and is_cell(found[0].cell):
        with contextlib.suppress(ConfigError):
            cell = validate(Cell, dict(found[0].cell), str(folder))
    return Entry(
        store,
        cell_id,
        cell,
        external,
        training,
        tuple(sorted(found, key=lambda record: order_of(record.perturbation))),
        tuple(measurements),
        tuple(one.text for one in store.damaged if one.cell_id == cell_id),
        max((path.stat().st_mtime for path in [folder, *folder.iterdir()] if path.exists()), default=0.0)
        if in_folder
        else 0.0,
        in_folder and is_locked(folder),
    )


# ---------------------------------------------------------------- finding one


def find(target: str | Path, root: Path) -> tuple[Store, str]:
    """Find a model by what its user calls it.

    Args:
        target: a run folder; STORE/CELL of a packed store; the file (or other name) of an external model that was
            measured; or the beginning of an id in `root`.
        root: results folder of the ids and of external models.

    Returns:
        Its store, and its id there.

    Raises:
        UsageError: where there is no such model, or several.
    """
    path = Path(os.path.expanduser(target))
    if not str(target):
        raise UsageError(f"the name of a model is empty; see bnvuln list {root}")
    if path.is_dir() and is_run_folder(path):
        return open_run(path)
    if not path.is_dir() and is_packed(path.parent):
        return open_store(path.parent), _by_prefix(path.name, path.parent, target)
    measured = [one for one in externals(root) if is_of(one[1], target)]
    if len(measured) == 1:
        return FolderStore(root), measured[0][0]
    if measured:
        raise UsageError(f"{target} was measured with several settings: name one by its id: {_describe(measured)}")
    if path.is_dir():
        raise UsageError(f"{target}: a folder, but of no run or measured model; see bnvuln list {target}")
    if path.exists():
        command = f"bnvuln evaluate {shlex.quote(str(target))} --data NAME"
        raise UsageError(f"{target} was never measured (no records of it in {root}/): {command}")
    if path.name != str(target):
        raise UsageError(f"{target}: no such file, and no run folder; see bnvuln list {root}")
    return open_store(root), _by_prefix(path.name, root, target)


def is_run_folder(folder: Path) -> bool:
    """Return whether a folder holds a run, an external model, or records."""
    return any((folder / name).exists() for name in ("config.yaml", EXTERNAL, "records", "training.json"))


def externals(root: Path) -> Iterator[tuple[str, ExternalRecord]]:
    """Yield the external models in a results folder, each with the name of its folder; not those that are damaged."""
    for folder in run_folders(root):
        try:
            external = read_external(folder)
        except BnvulnError:
            continue
        if external is not None:
            yield folder.name, external


def is_of(external: ExternalRecord, target: str | Path) -> bool:
    """Return whether an external model is the file, or has the name, that a user gives."""
    if external.path is not None and os.path.realpath(external.path) == os.path.realpath(os.path.expanduser(target)):
        return True
    return external.source == str(target) and external.path is None


def _describe(measured: Iterable[tuple[str, ExternalRecord]]) -> str:
    """Name several external models by what differs among them."""
    found = dict(measured)
    differing = differing_fields({key: external.identity for key, external in found.items()})
    return ", ".join(f"{key} ({', '.join(differing[key]) or 'alike'})" for key in found)


def _by_prefix(prefix: str, root: Path, target: str | Path) -> str:
    """The one id in a results folder that begins with `prefix`."""
    known = open_store(root).cells()
    found = [key for key in known if key == prefix] or [key for key in known if prefix and key.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    if found:
        shown = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        raise UsageError(f"{target}: {len(found)} models in {root}/ have ids that begin so: {shown}")
    close = difflib.get_close_matches(prefix, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else f"; see bnvuln list {root}"
    raise UsageError(f"{target}: no such file, no run folder, and no id in {root}/{hint}")

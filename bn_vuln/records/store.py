"""One interface to results, whether they lie in a working folder or packed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from bn_vuln.config import Cell, Experiment
from bn_vuln.errors import BnvulnError
from bn_vuln.records.folder import FolderStore
from bn_vuln.records.packed import PackedStore, is_packed
from bn_vuln.records.reading import Damaged, DamagedError
from bn_vuln.records.schema import ExternalRecord, MeasurementRecord, Record, TrainingRecord
from bn_vuln.typing import Arrays, Mask

Result = TypeVar("Result")


class Store(Protocol):
    """Results: experiments, cells, and what was measured of each.

    A cell is looked up by its id, the name of its run folder; what is not there is None, or empty. So is what is
    damaged, or of another run: it is noted in `damaged`. Only what nothing can be read without raises `DamagedError`.
    """

    root: Path
    damaged: list[Damaged]

    def note(self, damaged: Damaged) -> None:
        """Add a damaged file, once."""

    def attempt(self, read: Callable[[], Result]) -> Result | None:
        """Return what is read; None, and a note, where the file is damaged."""

    def experiments(self) -> list[Experiment]:
        """Return the experiments, in the order of their files. Raises `UsageError` if there is none."""

    def cells(self) -> list[str]:
        """Return the ids of all cells, sorted."""

    def cell(self, cell_id: str) -> Cell:
        """Return the config of a cell. Raises `DamagedError` if it is damaged."""

    def training(self, cell_id: str) -> TrainingRecord | None:
        """Return how the training of a cell ended."""

    def external(self, cell_id: str) -> ExternalRecord | None:
        """Return which external model the records of a folder are of; None of a run. Packed stores hold runs alone."""

    def history(self, cell_id: str) -> str | None:
        """Return the epochs of a training as CSV text."""

    def model(self, cell_id: str) -> Path | None:
        """Return the path of the trained model, which is whole and that of the training."""

    def records(self, cell_id: str) -> list[Record]:
        """Return all records of a cell, in the order of their ids."""

    def record(self, cell_id: str, perturbation_id: str) -> Record | None:
        """Return the record of one perturbation."""

    def correct(self, cell_id: str, perturbation_id: str) -> Mask | None:
        """Return which examples are classified correctly, bool [n]."""

    def arrays(self, cell_id: str, perturbation_id: str) -> Arrays:
        """Return further arrays of a record, as the distances of a minimum-norm attack."""

    def measurements(self, cell_id: str) -> list[MeasurementRecord]:
        """Return all measurements of a cell, in the order of their ids."""

    def measurement(self, cell_id: str, measurement_id: str) -> MeasurementRecord | None:
        """Return one measurement."""

    def measurement_arrays(self, cell_id: str, measurement_id: str) -> Arrays:
        """Return the arrays of a measurement."""


def open_store(root: Path) -> Store:
    """Open a results folder, packed or not."""
    return PackedStore(root) if is_packed(root) else FolderStore(root)


def open_run(folder: Path) -> tuple[Store, str]:
    """Open a run: a run folder, or STORE/CELL of a packed store. Return its store and the id of its cell there."""
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    return (FolderStore if folder.is_dir() else open_store)(folder.parent), folder.name


def open_trained(folder: Path) -> tuple[Cell, TrainingRecord, Path]:
    """Return config, training record and model of a run, which belong together.

    Args:
        folder: As `open_run` takes it.

    Raises:
        UsageError: The folder is no run folder.
        BnvulnError: The training failed or never finished, or a file is damaged or of another run.
    """
    store, cell_id = open_run(folder)
    cell, training, path = store.cell(cell_id), store.training(cell_id), store.model(cell_id)
    if store.damaged:
        raise DamagedError(store.damaged[0])
    if training is None or path is None:
        if training is None:
            raise BnvulnError(f"{folder}: no finished training here (no training.json)")
        raise BnvulnError(f"{folder}: the model is not there (no model.keras); bnvuln train --force trains it again")
    if training.state == "failed":
        raise BnvulnError(f"{folder}: failed to train ({training.reason}); there is nothing to evaluate")
    return cell, training, path

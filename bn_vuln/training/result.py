"""The result of a training, and the files of a finished one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bn_vuln import records
from bn_vuln.config import Cell, digest, identity_of
from bn_vuln.records import digests
from bn_vuln.runtime.files import atomic_path, atomic_write
from bn_vuln.runtime.progress import Epoch
from bn_vuln.typing import KerasModel


@dataclass
class TrainingResult:
    """A finished training.

    Attributes:
        load: gives the model.
        history: its epochs; none of a run that was finished before.
        record: the training outcome.
    """

    load: Callable[[], KerasModel]
    history: list[Epoch]
    record: records.TrainingRecord

    @cached_property
    def model(self) -> KerasModel:
        """The model with the weights of the kept epoch."""
        return self.load()


def cell_id(cell: Cell) -> str:
    """Return the id of a cell, a hash of all that trains it."""
    return digest(identity_of(cell))


def keep(folder: Path, model: KerasModel, record: records.TrainingRecord) -> records.TrainingRecord:
    """Write model.keras, then training.json, into a run folder.

    The record, which is returned, has the digests of the model, and of the history that is there already.
    """
    path = folder / "model.keras"
    with atomic_path(path) as temporary:
        model.save(temporary)
    found = {"model_sha256": records.model_sha256(path)}
    if record.epochs:
        found["history_sha256"] = digests.of_text((folder / "history.csv").read_bytes().decode())
    record = record.model_copy(update=found)
    atomic_write(folder / "training.json", records.to_json(record))
    return record

"""The result of a training, and the files of a finished one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bn_vuln import records
from bn_vuln.config import Cell, digest, identity_of
from bn_vuln.runtime.files import atomic_path
from bn_vuln.runtime.progress import Epoch
from bn_vuln.typing import KerasModel


@dataclass
class TrainingResult:
    """A finished training.

    Attributes:
        model: the model with the weights of the kept epoch.
        history: its epochs.
        record: the training outcome.
    """

    model: KerasModel
    history: list[Epoch]
    record: records.TrainingRecord


def cell_id(cell: Cell) -> str:
    """Return the id of a cell, a hash of all that trains it."""
    return digest(identity_of(cell))


def save_model(model: KerasModel, path: Path) -> None:
    """Write a `.keras` file atomically (temporary file, then rename)."""
    with atomic_path(path) as temporary:
        model.save(temporary)

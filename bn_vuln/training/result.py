"""What a training ends with, and the files of a finished one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bn_vuln import records
from bn_vuln.config import Cell, digest, identity_of
from bn_vuln.runtime.files import atomic_path
from bn_vuln.runtime.progress import Epoch


@dataclass
class Trained:
    """A finished training: the model with the kept epoch's weights, the history, and how it ended."""

    model: Any
    history: list[Epoch]
    record: records.TrainingRecord


def cell_id(cell: Cell) -> str:
    """The id of a cell: a hash of all that trains it."""
    return digest(identity_of(cell))


def save_model(model: Any, path: Path) -> None:
    """Write a `.keras` file aside and rename it."""
    with atomic_path(path) as aside:
        model.save(aside)

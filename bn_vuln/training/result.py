"""What a training ends with, and the files of a finished one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bn_vuln import records
from bn_vuln.config import Cell, identity
from bn_vuln.runtime.progress import Epoch


@dataclass
class Trained:
    """A finished training: the model with the kept epoch's weights, the history, and how it ended."""

    model: Any
    history: list[Epoch]
    record: records.TrainingRecord


def cell_id(cell: Cell) -> str:
    """The id of a cell: a hash of all that trains it."""
    return records.digest(identity(cell))


def save_model(model: Any, path: Path) -> None:
    """Write a `.keras` file aside and rename it."""
    with records.written_aside(path) as aside:
        model.save(aside)

"""Small cells on real MNIST, progress that keeps its messages, and interrupted trainings."""

from __future__ import annotations

from pathlib import Path

import pytest

from bn_vuln.config import Cell, validate
from bn_vuln.runtime.progress import Quiet

SMALL = {
    "data": {"name": "mnist", "width": 28, "limit": 2000},
    "arch": {"name": "mlp", "hidden": [32, 32]},
    "train": {"epochs": 3, "batch_size": 50, "lr": 0.1},
}


def small_cell(**changes: object) -> Cell:
    """A cell that trains in a second; `changes` are its top-level fields."""
    return validate(Cell, {**SMALL, **changes}, "test")


class MessageLog(Quiet):
    """Progress that keeps the messages."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def check_resume(cell: Cell, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train a cell of several epochs whole, and with an interruption after the first: the bits must be the same."""
    from bn_vuln.training import train

    whole = train(cell)
    with monkeypatch.context() as patch:
        interrupt_before(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            train(cell, folder)
    resumed = train(cell, folder)
    assert resumed.record.resumed == 1
    for a, b in zip(whole.model.get_weights(), resumed.model.get_weights(), strict=True):
        assert (a == b).all()


def interrupt_before(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    """Let Ctrl-C come when a training begins that epoch (from 0)."""
    from bn_vuln.training import TrainingLoop

    real = TrainingLoop.epoch

    def until(self: TrainingLoop, number: int, progress: object) -> object:
        if number == epoch:
            raise KeyboardInterrupt
        return real(self, number, progress)  # type: ignore[arg-type]

    monkeypatch.setattr(TrainingLoop, "epoch", until)

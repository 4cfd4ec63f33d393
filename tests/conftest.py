"""What the tests share: small trained runs on real MNIST, made once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("BNVULN_LOGICAL_CPUS", "2")  # before TensorFlow starts: replicas need devices

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


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders of a trained pair, by normalization. Tests that write must copy them."""
    from bn_vuln.training import train

    root = tmp_path_factory.mktemp("runs")
    for name in ("none", "batch"):
        train(small_cell(normalization=name), root / name)
    return {name: root / name for name in ("none", "batch")}


@pytest.fixture
def bnvuln(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command: (exit code, standard output, standard error)."""
    from bn_vuln.cli.main import main

    def run(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return int(str(exit_.value.code)), captured.out, captured.err

    return run


class Said(Quiet):
    """Progress that keeps the messages."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def eagerly() -> Iterator[None]:
    """Nothing is compiled: a short training is over sooner."""
    from bn_vuln.runtime import backend

    backend.tensorflow().config.run_functions_eagerly(True)
    yield
    backend.tensorflow().config.run_functions_eagerly(False)


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

"""What the tests share: small trained runs on real MNIST, made once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("BNVULN_LOGICAL_CPUS", "2")  # before TensorFlow starts: replicas need devices

from bn_vuln.config import Cell, validate

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
    from bn_vuln.train import train

    root = tmp_path_factory.mktemp("runs")
    for name in ("none", "batch"):
        train(small_cell(normalization=name), root / name)
    return {name: root / name for name in ("none", "batch")}

"""What the tests share: small trained runs on real MNIST, made once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("BNVULN_LOGICAL_CPUS", "2")  # before TensorFlow starts: replicas need devices

from helpers_runs import small_cell


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


@pytest.fixture
def eagerly() -> Iterator[None]:
    """Nothing is compiled: a short training is over sooner."""
    from bn_vuln.runtime import backend

    backend.tensorflow().config.run_functions_eagerly(True)
    yield
    backend.tensorflow().config.run_functions_eagerly(False)

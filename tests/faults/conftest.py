"""A sweep of two cells that no fault disturbs, which all others must equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers_commands import ALONE, outcome, prepare, run


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is in the results folder of a sweep that no fault disturbed, and what was printed ("")."""
    folder = prepare(tmp_path_factory.mktemp("undisturbed"))
    code, out, err = run(folder, *ALONE)
    assert code == 0, err
    return {**outcome(folder / "runs"), "": out}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the experiment."""
    return prepare(tmp_path)

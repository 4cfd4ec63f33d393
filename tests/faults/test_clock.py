"""Clocks that jump, and files of the future: leases and finished cells do not depend on the time of day."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from helpers_commands import SWEEP, ended, in_training, is_as, run, session, started, wait_for

pytestmark = pytest.mark.slow


def test_a_clock_that_jumps_changes_nothing(folder: Path, undisturbed: dict[str, Any]) -> None:
    """A sweep is killed, and its files are of tomorrow; then there are two at once."""
    options = {"hook": "jumping_clock slow note_trainings", "SECONDS": 0.5, "TRAININGS": folder / "trainings"}
    killed = started(folder, *SWEEP, **options)
    wait_for(lambda: in_training(folder))
    killed.kill()
    killed.wait()
    wait_for(lambda: not session(killed), seconds=30)
    for path in folder.glob("runs/**/*"):
        os.utime(path, (time.time() + 86400,) * 2)
    (folder / "trainings").unlink()
    both = [started(folder, *SWEEP, **options) for _ in range(2)]
    for process in both:
        is_as(undisturbed, folder, ended(process))
    trained = (folder / "trainings").read_text().splitlines()
    assert len(trained) == len(set(trained))
    assert run(folder, *SWEEP, **options)[0] == 0
    assert (folder / "trainings").read_text().splitlines() == trained

"""Commands that work in one folder at the same time, on one host and in two PID namespaces, awake and suspended."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers_commands import (
    ALONE,
    SWEEP,
    ended,
    in_training,
    is_as,
    left_over,
    outcome,
    run,
    started,
    wait_for,
    workers,
)

NAMESPACE = ("unshare", "-Urpf", "--mount-proc", "--kill-child")
HAS_NAMESPACES = subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode == 0
TRAIN = ("train", "--limit", "500", "--set", "arch.hidden=[16]", "--batch-size", "50", "--lr", "0.1", "--epochs", "4",
         "--deterministic", "--out", "runs/one")  # fmt: skip
ATTACK = ("attack", "runs/one", "--eps", "0.1", "--limit", "100", "--checks", "none")


def trainings(folder: Path) -> set[int]:
    """How often each epoch of each cell was trained; there are four of each."""
    found = Counter((folder / "trainings").read_text().splitlines())
    assert len(found) % 4 == 0
    return set(found.values())


def two_sweeps(folder: Path, undisturbed: dict[str, Any], words: tuple[str, ...], *before: tuple[str, ...]) -> None:
    both = [
        started(folder, *SWEEP, hook="note_trainings", TRAININGS=folder / "trainings", before=one) for one in before
    ]
    for process in both:
        is_as(undisturbed, folder, ended(process))
    assert trainings(folder) == {1}


def test_two_sweeps_at_once_train_each_cell_once(folder: Path, undisturbed: dict[str, Any]) -> None:
    two_sweeps(folder, undisturbed, ALONE, (), ())


@pytest.mark.slow
@pytest.mark.skipif(not HAS_NAMESPACES, reason="no PID namespaces here")
def test_two_sweeps_in_two_pid_namespaces_train_each_cell_once(folder: Path, undisturbed: dict[str, Any]) -> None:
    two_sweeps(folder, undisturbed, SWEEP, NAMESPACE, NAMESPACE)


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["worker", "all"])
def test_what_was_suspended_is_taken_over_and_writes_nothing_more(
    whom: str, folder: Path, undisturbed: dict[str, Any]
) -> None:
    first = started(folder, *SWEEP, hook="short_lease slow", SECONDS=0.5)
    _, worker = wait_for(lambda: in_training(folder))
    victims = [first.pid, *workers(first)] if whom == "all" else [worker]
    for pid in victims:
        os.kill(pid, signal.SIGSTOP)
    try:
        is_as(undisturbed, folder, run(folder, *SWEEP, hook="short_lease"))
        before = written(folder)
    finally:
        for pid in victims:
            os.kill(pid, signal.SIGCONT)
    is_as(undisturbed, folder, ended(first))
    assert written(folder) == before


def written(folder: Path) -> dict[Path, tuple[int, int]]:
    """Inode and time of each file of the run folders."""
    found = [path for path in folder.glob("runs/*/**/*") if "report" not in path.parts and path.suffix != ".yaml"]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found if path.name != ".lock"}


@pytest.mark.slow
def test_two_trainings_in_one_folder_are_one(tmp_path: Path) -> None:
    options = {"hook": "note_trainings slow", "TRAININGS": tmp_path / "trainings", "SECONDS": 0.5}
    first = started(tmp_path, *TRAIN, **options)
    wait_for((tmp_path / "runs" / "one" / "lock.json").exists)
    code, _, err = run(tmp_path, *TRAIN, quiet=False, **options)
    assert code == 0
    assert f"waiting for process {first.pid} on " in err
    assert "was finished by another process meanwhile" in err
    assert ended(first)[0] == 0
    assert trainings(tmp_path) == {1}
    assert left_over(tmp_path) == []


@pytest.mark.slow
def test_attacks_and_audits_of_one_run_at_once_and_while_it_is_trained_again(tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    audit = ("audit", "runs/one", "--limit", "20", "--time", "none", "--out", "audit")
    alone.mkdir()
    together.mkdir()
    for words in (TRAIN, ATTACK, audit):
        assert run(alone, *words)[0] == 0
    assert run(together, *TRAIN)[0] == 0
    training = started(together, *TRAIN, "--force", hook="slow", SECONDS=0.5)
    wait_for((together / "runs" / "one" / "lock.json").exists)
    attacks = [started(together, *ATTACK) for _ in range(2)]
    printed = []
    for process in (training, *attacks):
        code, out, err = ended(process)
        assert (code, err) == (0, "")
        printed.append(out)
    assert printed[1] == printed[2]
    for process in [started(together, *audit) for _ in range(2)]:
        code, _, err = ended(process)
        assert (code, err) == (0, "")
    assert left_over(together) == []
    assert outcome(together) == outcome(alone)

"""SIGKILL of workers, of the process that started them, and of single commands: a rerun ends as if nothing had been."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
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
    session,
    started,
    wait_for,
    workers,
)

SMALL = ["--limit", "500", "--set", "arch.hidden=[16]", "--batch-size", "50", "--lr", "0.1", "--deterministic"]
COMMANDS = {
    "train": ["train", *SMALL, "--epochs", "4", "--checkpoint-every", "1", "--out", "runs/one"],
    "attack": ["attack", "runs/one", "--eps", "0.1", "--limit", "100", "--checks", "none"],
    "evaluate": ["evaluate", "runs/one", "--suite", "quick", "--set", "limit=100"],
    "audit": ["audit", "runs/one", "--limit", "20", "--time", "none", "--out", "runs/audit"],
}
KILLS = 8


def test_a_killed_worker_costs_its_cell_alone(folder: Path, undisturbed: dict[str, Any]) -> None:
    process = started(folder, *SWEEP, quiet=False, hook="slow", SECONDS=0.5)
    _, worker = wait_for(lambda: in_training(folder))
    assert worker in workers(process)
    os.kill(worker, signal.SIGKILL)
    code, out, err = ended(process)
    assert code == 0, err
    assert err.count("its process was killed by SIGKILL") == 1
    assert err.count("finished in") == 2
    is_as(undisturbed, folder, (code, out, err))


@pytest.mark.slow
def test_a_killed_command_takes_its_workers_with_it(folder: Path, undisturbed: dict[str, Any]) -> None:
    process = started(folder, *SWEEP, hook="slow", SECONDS=0.5)
    _, worker = wait_for(lambda: in_training(folder))
    assert worker in workers(process)
    process.kill()
    process.wait()
    wait_for(lambda: not session(process), seconds=30)
    assert left_over(folder) == []  # they kept what was finished, and released their leases
    is_as(undisturbed, folder, run(folder, *ALONE))


@pytest.mark.slow
@pytest.mark.parametrize("which", ["worker", "command"])
def test_sweeps_killed_before_any_change_of_a_file(which: str, folder: Path, undisturbed: dict[str, Any]) -> None:
    """A process is killed before it creates, renames or removes a file: each of these moments is as likely."""
    rng, most = random.Random(which), changes(folder, which, *SWEEP)
    for number in [*rng.sample(range(1, most + 1), KILLS - 1), most]:
        shutil.rmtree(folder / "runs")
        fault = {"WHICH": which, "AT": number, "KILLED": folder / f"killed-{number}", "RUNS": folder / "runs"}
        process = started(folder, *SWEEP, hook="kill", **fault)
        code, _, err = ended(process)
        where = f"{which}, before change {number} of {most}"
        assert (folder / f"killed-{number}").exists(), where
        wait_for(lambda: not session(process), seconds=30)  # noqa: B023
        assert code == (0 if which == "worker" else -signal.SIGKILL), (where, err)
        is_as(undisturbed, folder, run(folder, *SWEEP), where)


@pytest.mark.slow
def test_sweeps_killed_at_any_time(folder: Path, undisturbed: dict[str, Any]) -> None:
    """Chains of kills of a worker or of the command in one folder, at any time, until one comes too late."""
    rng, begun = random.Random(29), time.monotonic()
    assert run(folder, *SWEEP)[0] == 0
    longest = time.monotonic() - begun
    for _ in range(KILLS // 4):
        shutil.rmtree(folder / "runs")
        for _ in range(3):
            process = started(folder, *SWEEP)
            time.sleep(rng.uniform(0.1, longest))
            victims = [process.pid] if rng.random() < 0.5 else workers(process)[:1]
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            assert ended(process)[0] in (0, -signal.SIGKILL)
            wait_for(lambda: not session(process), seconds=30)  # noqa: B023
        is_as(undisturbed, folder, run(folder, *SWEEP))


def changes(folder: Path, which: str, *words: str) -> int:
    """The number of changes of files in `runs` that one process of a command makes."""
    (folder / "counts").mkdir()
    code, _, err = run(folder, *words, hook="count", COUNTS=folder / "counts", RUNS=folder / "runs")
    assert code == 0, err
    return min(path.stat().st_size for path in folder.glob(f"counts/{which}-*") if path.stat().st_size)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained run."""
    root = tmp_path_factory.mktemp("trained")
    assert run(root, *COMMANDS["train"])[0] == 0
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_commands_killed_before_any_change_of_a_file(name: str, trained: Path, tmp_path: Path) -> None:
    def prepare(folder: Path) -> Path:
        if name == "train":
            folder.mkdir()
            return folder
        return shutil.copytree(trained, folder)

    words = COMMANDS[name]
    most = changes(prepare(tmp_path / "whole"), "command", *words)
    shutil.rmtree(tmp_path / "whole" / "counts")
    expected = outcome(tmp_path / "whole")
    for number in [*random.Random(name).sample(range(1, most), min(KILLS, most) - 1), most]:
        folder = prepare(tmp_path / str(number))
        fault = {"WHICH": "command", "AT": number, "KILLED": tmp_path / f"killed-{number}", "RUNS": folder / "runs"}
        where = f"{name}, before change {number} of {most}"
        assert run(folder, *words, hook="kill", **fault)[0] == -signal.SIGKILL, where
        code, _, err = run(folder, *words)
        assert (code, err) == (0, ""), where
        assert left_over(folder) == [], where
        assert outcome(folder) == expected, where


@pytest.mark.slow
def test_a_cell_that_is_killed_each_time_is_given_up_alone(folder: Path, undisturbed: dict[str, Any]) -> None:
    deadly = folder / "deadly"
    deadly.touch()
    code, out, err = run(folder, *SWEEP, quiet=False, hook="kill_cell", DEADLY=deadly)
    assert code == 1
    assert err.count("its process was killed by SIGKILL") == 4  # of three attempts, and in the last line
    assert "Traceback" not in err
    assert "Error: pair: 1 of 2 cells failed, the others are finished." in err
    assert "none           1" in out
    (failed,) = folder.glob("runs/*/failed.json")
    found = json.loads(failed.read_text())
    assert (found["attempts"], found["reason"][:35]) == (3, "its process was killed by SIGKILL (")
    assert [line[20:34] for line in found["log"] if "epoch 1/4" in line] == ["epoch 1/4  los"] * 3
    assert left_over(folder) == []
    code, out, _ = run(folder, "status", "runs", quiet=False)
    assert code == 0
    assert "pair at scale full: 2 cells, 1 finished, 1 failed" in out
    assert "after 3 attempts: its process was killed by SIGKILL" in out
    deadly.unlink()
    is_as(undisturbed, folder, run(folder, *SWEEP))
    assert not failed.exists()
    assert run(folder, "status", "runs", quiet=False)[1] == "pair at scale full: 2 cells, 2 finished\n"


@pytest.mark.slow
def test_ctrl_c_while_workers_start_leaves_no_process(folder: Path, undisturbed: dict[str, Any]) -> None:
    for seconds in (0.0, 0.01, 0.05, 0.3, 1.0):
        process = started(folder, *SWEEP)
        wait_for((folder / "runs" / "experiments").exists, every=0.005)
        if seconds:
            wait_for(lambda: workers(process), every=0.005)  # noqa: B023
            time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        code, _, err = ended(process, timeout=60)
        assert code == 130
        assert err.splitlines()[-1].startswith("Interrupted.")
        wait_for(lambda: not session(process), seconds=5)  # noqa: B023
        assert left_over(folder) == []
        shutil.rmtree(folder / "runs")
    is_as(undisturbed, folder, run(folder, *SWEEP))

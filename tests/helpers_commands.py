"""Commands as processes of their own: what starts them, what breaks them, and what they leave."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bn_vuln.runtime import lease

TEMPORARY = re.compile(r"^\..*\.[0-9]+\.[0-9a-f]{8}(\..*)?$")
# What differs from run to run, and digests of it: Keras writes addresses into the configs of models. A finished cell
# notes the times of its files, an audit what a gradient and a compilation cost.
VOLATILE = {"seconds", "images_per_second", "resumed", "sha256", "history_sha256", "model_sha256", "files"}
VOLATILE |= {"gradient", "compile"}
HOOKS = Path(__file__).parent / "faults" / "hooks"

EXPERIMENT = """
name: pair
title: "A pair"
claim: "Faults change nothing."
source: "tests"
base: {data: {name: mnist, limit: 500}, arch: {name: mlp, hidden: [16]}, train: {epochs: 4, batch_size: 50, lr: 0.1}}
grid: {normalization: [none, batch]}
seeds: [0]
evaluation: {limit: 100}
perturbations: {clean: {kind: clean}, awgn: {kind: awgn, std: 0.25}}
table: {columns: {clean: "clean", awgn: "noise"}}
claims: []
"""
SWEEP = ("reproduce", "pair.yaml", "--jobs", "2", "--deterministic", "--out", "runs")
ALONE = ("reproduce", "pair.yaml", "--deterministic", "--out", "runs")  # without workers: TensorFlow starts once
THREADS = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}  # of workers on two cores, and of all others


def prepare(folder: Path) -> Path:
    """Write the experiment into a folder."""
    (folder / "pair.yaml").write_text(EXPERIMENT)
    return folder


def started(
    folder: Path, *words: object, quiet: bool = True, hook: str = "", before: tuple[str, ...] = (), **variables: object
) -> subprocess.Popen[str]:
    """Start a command in a session of its own, as a terminal does; it ignores no signal.

    Args:
        folder: Its working directory.
        words: Of the command line.
        quiet: Add -q.
        hook: Name of a file in tests/faults/hooks, which this process and those that it starts run first.
        before: What the command is run by.
        variables: Of its environment.
    """
    environment = {**os.environ, **THREADS, **{name: str(value) for name, value in variables.items()}}
    if hook:
        environment |= {"PYTHONPATH": str(HOOKS), "FAULT": hook}
    return subprocess.Popen(
        [*before, "env", "--default-signal=INT,TERM,HUP", sys.executable, "-m", "bn_vuln",
         *map(str, words), *["-q"] * quiet],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str], timeout: float = 600) -> tuple[int, str, str]:
    """Wait for a command: (exit code, standard output, standard error)."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def run(folder: Path, *words: object, **options: Any) -> tuple[int, str, str]:
    """Run a command: (exit code, standard output, standard error)."""
    return ended(started(folder, *words, **options))


def session(process: subprocess.Popen[str]) -> dict[int, str]:
    """Return the processes of a command that run, itself included: process id -> command line."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, own = (path / "stat").read_text().rpartition(")")[2].split()[:4]
            if own == str(process.pid) and state not in "ZX":
                found[int(path.name)] = (path / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it has ended
            continue
    return found


def workers(process: subprocess.Popen[str]) -> list[int]:
    """Return the process ids of a sweep's workers."""
    return [pid for pid, line in session(process).items() if "popen_loky_posix" in line]


def wait_for(condition: Callable[[], Any], seconds: float = 300, every: float = 0.05) -> Any:
    """Wait until a condition holds, and return what it is."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {seconds:.0f} s"
        time.sleep(every)
    return found


def in_training(folder: Path) -> tuple[Path, int] | None:
    """Return the first run folder in `runs` whose training has finished an epoch, and the process that trains it."""
    for log in sorted(folder.glob("runs/*/log.txt")):
        holder = lease.holder(log.parent)
        if holder is not None and "epoch 1/" in log.read_text():
            return log.parent, holder.pid
    return None


def left_over(folder: Path) -> list[Path]:
    """Return the leases and temporary files in a folder."""
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return [name for name in names if name.name == "lock.json" or TEMPORARY.match(name.name)]


def plain(value: Any) -> Any:
    """Return what a JSON file says, without what differs from run to run."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key not in VOLATILE}
    return [plain(item) for item in value] if isinstance(value, list) else value


def content(path: Path) -> Any:
    """Return what a file says."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: array.tolist() for name, array in arrays.items()}
    if path.suffix == ".json":
        return plain(json.loads(path.read_text()))
    if path.suffix == ".csv":
        return plain(list(csv.DictReader(path.open())))
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            return archive.read("model.weights.h5")
    return path.read_text() if path.suffix == ".yaml" else None


def outcome(folder: Path) -> dict[str, Any]:
    """Return what is in a folder: file -> what it says. Hidden files, as the guard of a lease, do not count.

    Of reports the tables count, not the pages and figures.
    """
    paths = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(path): content(folder / path)
        for path in paths
        if not path.name.startswith(".") and ("report" not in path.parts or path.suffix == ".csv")
    }


def is_as(undisturbed: dict[str, Any], folder: Path, found: tuple[int, str, str], where: str = "") -> None:
    """Check that a sweep ended as the undisturbed one did: how it ended, what it printed, what is in `runs`.

    So there are no logs of attempts either.
    """
    code, out, err = found
    assert code == 0, (where, err)
    assert "Traceback" not in err, (where, err)
    assert left_over(folder) == [], where
    assert {**outcome(folder / "runs"), "": out} == undisturbed, where

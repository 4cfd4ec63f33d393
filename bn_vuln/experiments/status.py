"""How far a results folder is, from its files alone: which cells are finished, run, failed or wait."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bn_vuln import records
from bn_vuln.config import describe_cell
from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.experiments import attempts, catalog
from bn_vuln.experiments.task import tasks
from bn_vuln.runtime import lease
from bn_vuln.runtime.progress import duration
from bn_vuln.typing import Plain

STATES = ("finished", "running", "failed", "waiting")


def read(root: Path) -> Plain:
    """Read the state of a results folder.

    Args:
        root: The results folder, or one run folder.

    Returns:
        `experiments`: name, scale, and the number of cells and of those in each state. `running`: what is done, its
        process and host, seconds left. `failed`: the cells that were given up, with reason, attempts and log.
        `damaged`: configs of experiments that cannot be read.

    Raises:
        UsageError: There is no such folder, or a packed store, where nothing runs.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder; bnvuln reproduce and bnvuln train make one (--out)")
    if records.is_packed(root):
        raise UsageError(f"{root}: a packed store, where nothing runs; bnvuln list {root} shows what is in it")
    log = records.DamageLog()
    found: Plain = {"experiments": [], "running": [], "failed": []}
    states: dict[str, str] = {}
    names: dict[str, str] = {}
    with contextlib.suppress(UsageError):  # none there
        for experiment in records.read_experiments(root, log):
            try:
                todo = tasks(experiment)
            except BnvulnError as error:  # of data that are no longer there
                log.note(records.Damaged(root / "experiments" / experiment.name, str(error), "restore what it needs"))
                continue
            for task in todo:
                if task.id not in names:
                    names[task.id] = describe_cell(task.cell)
                    states[task.id] = "finished" if task.finished(root) else _state(task.folder(root))
            counts = Counter(states[task.id] for task in todo)
            found["experiments"].append(
                {"name": experiment.name, "scale": experiment.scale, "overrides": list(experiment.overrides),
                 "command": f"{catalog.command(experiment)} --out {shlex.quote(str(root))}", "cells": len(todo),
                 **{state: counts[state] for state in STATES}}
            )  # fmt: skip
    for folder in (root, *sorted(path for path in root.iterdir() if path.is_dir())):
        if _state(folder) == "running":
            found["running"].append(_running(folder, names))
        elif (failure := attempts.failure(folder)) is not None:
            found["failed"].append(
                {"id": folder.name, "cell": names.get(folder.name, folder.name), "reason": failure.reason,
                 "attempts": failure.attempts, "log": str(folder / attempts.FAILED)}
            )  # fmt: skip
    found["damaged"] = [damaged.text for damaged in log.damaged]
    return found


def _state(folder: Path) -> str:
    """Return the state of a cell that is not finished."""
    if lease.is_locked(folder):
        return "running"
    return "waiting" if attempts.failure(folder) is None else "failed"


def _running(folder: Path, names: dict[str, str]) -> Plain:
    """Return what is done in a folder, by its lease."""
    about: Plain = {"id": folder.name, "cell": names.get(folder.name, folder.name)}
    holder = lease.holder(folder)
    if holder is None:
        return about
    with contextlib.suppress(OSError):  # it was released in this moment
        about["silent"] = max(0.0, round(time.time() - (folder / lease.LOCK).stat().st_mtime, 1))
    about |= {"host": holder.host, "pid": holder.pid, "since": round(holder.since)}
    return {**about, **{key: holder.work.get(key) for key in ("title", "done", "total", "unit", "left")}}


def text(found: Plain) -> str:
    """Return a status as text."""
    lines = [_counts(one) for one in found["experiments"]]
    for one in found["running"]:
        lines += [f"running  {one['cell']}", f"         {_work(one)}"]
    for one in found["failed"]:
        lines += [
            f"failed   {one['cell']}",
            f"         after {one['attempts']} attempts: {one['reason']} ({one['log']})",
        ]
    lines += [f"damaged  {damaged}" for damaged in found["damaged"]]
    if not found["running"]:
        lines += [f"nothing runs; next: {one['command']}" for one in found["experiments"] if one["waiting"]]
    return "\n".join(lines) or "no experiment here, and nothing runs; bnvuln list shows the models of a folder"


def _counts(one: Plain) -> str:
    states = [f"{one[state]} {state}" for state in STATES if one[state]]
    changed = "".join(f", {override}" for override in one["overrides"])
    return f"{one['name']} at scale {one['scale']}{changed}: {one['cells']} cells, {', '.join(states)}"


def _work(one: dict[str, Any]) -> str:
    """Return what a process does, and which process it is."""
    if "pid" not in one:
        return "its lease cannot be read"
    parts = [(one["title"] or "at work").removesuffix(f" {one['cell']}")]
    if one["total"]:
        parts.append(f"{one['done']}/{one['total']} {one['unit']}")
    if one["left"] is not None:
        parts.append(f"{duration(one['left'])} left")
    parts.append(f"process {one['pid']} on {one['host']} since {time.strftime('%H:%M', time.localtime(one['since']))}")
    if one.get("silent", 0.0) > lease.EXPIRES_SECONDS:
        parts.append(f"silent for {duration(one['silent'])}: if it is gone, the next command takes over")
    return ", ".join(parts)


def is_over(found: Plain) -> bool:
    """Return whether nothing waits and nothing runs."""
    return not found["running"] and not any(one["waiting"] for one in found["experiments"])

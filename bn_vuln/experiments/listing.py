"""What is said of experiments before they run: their state, their cells, the work to do.

Functions that return a pair return the same as plain data and as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bn_vuln.config import Experiment, Scale, describe_cell, to_plain, to_yaml
from bn_vuln.experiments import catalog, plans
from bn_vuln.experiments.task import Task, check_names, tasks
from bn_vuln.typing import Plain


def experiments(root: Path) -> tuple[Plain, str]:
    """Return claim, command and cost of each shipped experiment, and how many cells a results folder has of it."""
    rows, lines = [], []
    for one in (catalog.experiment(name) for kind in ("paper", "beyond") for name in catalog.names(kind)):
        about = {key: getattr(one, key) for key in ("name", "title", "claim", "command")}
        rows.append({**about, "cost": dict(one.cost), "state": _state(one, root)})
        cost = ", ".join(f"{scale} {text}" for scale, text in one.cost.items())
        lines += [one.name, f"  claim: {one.claim}", f"  command: {one.command}"]
        lines += [f"  cost on two cores with --jobs 2, unless named: {cost}", f"  state in {root}: {rows[-1]['state']}"]
    return {"experiments": rows}, "\n".join(lines)


def _state(experiment: Experiment, root: Path) -> str:
    """Count the cells that are finished at each scale: `quick 2/6 cells, full 0/30 cells`."""
    scales: list[Scale] = list(dict.fromkeys([*experiment.scales, "full"]))
    todo = {scale: tasks(catalog.experiment(experiment.name, scale)) for scale in scales}
    counts = {scale: f"{sum(task.finished(root) for task in own)}/{len(own)}" for scale, own in todo.items()}
    return ", ".join(f"{scale} {count} cells" for scale, count in counts.items())


def announcement(experiment: Experiment, todo: Sequence[Task], root: Path) -> str:
    """Return a line on what is about to run, with the cost of the whole scale, to which --set makes no difference."""
    cost, whole = experiment.cost.get(experiment.scale), len(tasks(experiment))
    if all(task.finished(root) for task in todo):
        text = "every cell is finished"
    elif len(todo) < whole:
        text = f"{len(todo)} of {whole} cells"
    elif cost:
        text = f"the whole of it takes about {cost}" + ("" if " on " in cost else " on two cores with --jobs 2")
    else:
        text = f"{len(todo)} cells"
    return f"{experiment.name} at scale {experiment.scale}: {text}"


def dry_run(experiment: Experiment, todo: Sequence[Task]) -> tuple[Plain, str]:
    """Return the resolved config of an experiment, and the cells that would be run."""
    check_names(todo)
    cells = [{"id": task.folder(Path()).name, **to_plain(task.cell)} for task in todo]
    text = "\n".join([to_yaml(experiment), f"{len(todo)} cells:", *map(_line, todo)])
    return {"experiment": to_plain(experiment), "cells": cells}, text


def dry_run_of_plan(name: str, overrides: Sequence[str] = ()) -> tuple[Plain, str]:
    """Return the parts of a plan, each with its cells."""
    parts, lines = [], []
    for part in catalog.plan(name).parts:
        todo = plans.resolve(part, overrides)[1]
        parts.append({**to_plain(part), "cells": [task.folder(Path()).name for task in todo]})
        lines += [f"{part.text}: {len(todo)} cells", *map(_line, todo)]
    return {"parts": parts}, "\n".join(lines)


def _line(task: Task) -> str:
    return f"  {task.folder(Path()).name}  {describe_cell(task.cell)}"

"""How far a results folder is: what its files say, and nothing else is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers_runs import SMALL

from bn_vuln import api
from bn_vuln.errors import UsageError
from bn_vuln.experiments import attempts, catalog, status
from bn_vuln.experiments.task import Task, experiment_path, tasks
from bn_vuln.records import to_yaml
from bn_vuln.runtime import lease
from bn_vuln.runtime.files import atomic_write
from bn_vuln.runtime.progress import Noted, Quiet

EXPERIMENT = {
    "name": "four", "title": "Four", "claim": "none", "source": "none", "base": SMALL,
    "grid": {"normalization": ["none", "batch"]}, "seeds": [0, 1], "evaluation": {"limit": 50},
    "perturbations": {"clean": {"kind": "clean"}}, "table": {"columns": {"clean": "clean"}}, "claims": [],
}  # fmt: skip


@pytest.fixture
def todo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """Four cells of which the first one is finished, in the folder `runs`."""
    path = tmp_path / "four.yaml"
    path.write_text(yaml.safe_dump(EXPERIMENT))
    experiment = catalog.experiment(str(path))
    atomic_write(experiment_path(tmp_path / "runs", experiment), to_yaml(experiment))
    found = tasks(experiment)
    monkeypatch.setattr(Task, "finished", lambda task, _: task.id == found[0].id)
    return found


def test_cells_are_counted_and_those_at_work_described(todo: list[Task], tmp_path: Path, bnvuln: Any) -> None:
    root = tmp_path / "runs"
    first = api.status(root)
    (counted,) = first["experiments"]
    command = f"bnvuln reproduce four.yaml --out {root}"
    assert status.text(first).endswith(f"\nnothing runs; next: {command}")
    assert counted == {
        "name": "four", "scale": "full", "overrides": [], "command": command,
        "cells": 4, "finished": 1, "running": 0, "failed": 0, "waiting": 3,
    }  # fmt: skip
    assert not status.is_over(first)
    todo[3].folder(root).mkdir()
    attempts.give_up(todo[3].folder(root), "no luck", 3)
    with lease.locked(todo[1].folder(root)) as held, lease.locked(root / "of no experiment"):
        assert held
        noted = Noted(Quiet(), held.work)
        noted.start("training", 100, "steps", 50)
        noted.advance(75)
        held.beat()
        code, out, err = bnvuln("status", root, "--json")
        assert (code, err) == (0, "")
        found = json.loads(out)
        (counted,) = found["experiments"]
        assert [counted[state] for state in status.STATES] == [1, 1, 1, 1]
        other, running = sorted(found["running"], key=lambda one: one["id"] == todo[1].id)
        assert other["cell"] == "of no experiment"
        assert (running["title"], running["done"], running["total"], running["unit"]) == ("training", 75, 100, "steps")
        assert running["left"] >= 0
        (failed,) = found["failed"]
        assert (failed["id"], failed["reason"], failed["attempts"]) == (todo[3].id, "no luck", 3)
        code, out, _ = bnvuln("status", root)
        assert out.startswith("four at scale full: 4 cells, 1 finished, 1 running, 1 failed, 1 waiting\n")
        assert "training, 75/100 steps, 0 s left, process" in out
        assert "after 3 attempts: no luck" in out


def test_the_lease_of_a_dead_process_is_no_work(todo: list[Task], tmp_path: Path) -> None:
    root = tmp_path / "runs"
    with lease.locked(todo[1].folder(root)):
        path = todo[1].folder(root) / lease.LOCK
        content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "started": 1}))
    assert api.status(root)["experiments"][0]["running"] == 0
    path.write_text(json.dumps({**content, "machine": "another", "since": 0}))
    assert api.status(root)["experiments"][0]["running"] == 1
    path.write_text("")
    assert "its lease cannot be read" in status.text(api.status(root))


def test_watching_ends_when_nothing_runs_or_waits(
    todo: list[Task], tmp_path: Path, bnvuln: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = []

    def finish(_: float) -> None:
        waited.append(True)
        monkeypatch.setattr(Task, "finished", lambda *_: True)

    monkeypatch.setattr("bn_vuln.cli.results.time.sleep", finish)
    code, out, _ = bnvuln("status", tmp_path / "runs", "--watch")
    assert (code, waited) == (0, [True])
    assert out.splitlines() == [
        "four at scale full: 4 cells, 1 finished, 3 waiting",
        f"nothing runs; next: bnvuln reproduce four.yaml --out {tmp_path / 'runs'}",
        "four at scale full: 4 cells, 4 finished",
    ]


def test_watching_ends_when_nothing_has_run_for_a_while(
    todo: list[Task], tmp_path: Path, bnvuln: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bn_vuln.cli.results.IDLE_SECONDS", 0.05)
    monkeypatch.setattr("bn_vuln.cli.results.WATCH_SECONDS", 0.02)
    code, out, _ = bnvuln("status", tmp_path / "runs", "--watch")
    assert code == 0
    assert "nothing runs; next: bnvuln reproduce four.yaml" in out


def test_what_cannot_be_read_is_named(todo: list[Task], tmp_path: Path) -> None:
    (tmp_path / "runs" / "experiments" / "four-full.yaml").write_text("name: [")
    found = api.status(tmp_path / "runs")
    assert found["experiments"] == []
    assert "four-full.yaml" in found["damaged"][0]
    with pytest.raises(UsageError, match="no such folder"):
        api.status(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="a packed store, where nothing runs"):
        api.status(Path(__file__).parents[2] / "results" / "paper")
    (tmp_path / "empty").mkdir()
    assert (
        status.text(api.status(tmp_path / "empty"))
        == "no experiment here, and nothing runs; bnvuln list shows the models of a folder"
    )

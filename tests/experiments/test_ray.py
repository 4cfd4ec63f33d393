"""The engine Ray: cells on its workers, one of which is killed, with a shared folder and without."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers_runs import SMALL, MessageLog

from bn_vuln import api, records
from bn_vuln.config import Sweep
from bn_vuln.errors import UsageError
from bn_vuln.experiments import catalog, engines, parcels
from bn_vuln.experiments.engines import DiedError, Worker
from bn_vuln.experiments.task import tasks
from bn_vuln.runtime import lease

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not find this file
RAY = Sweep(engine="ray", jobs=2, cpus_per_cell=1)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A cluster of this machine, with two CPUs whatever it has."""
    tests = {"env_vars": {"PYTHONPATH": str(Path(__file__).parents[1])}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", runtime_env=tests)
    yield
    ray.shutdown()


def kill_first_time(folder: Path, item: str) -> int:
    if item == "b" and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def test_a_killed_worker_loses_its_call_alone(tmp_path: Path) -> None:
    def work(worker: Worker, item: str) -> str:
        try:
            return str(worker.call(kill_first_time, tmp_path, item))
        except DiedError as error:
            return f"died: {error}"

    with engines.opened(RAY, 4) as workers:
        found = dict(engines.run(workers, work, "abcd"))
        assert found["b"].startswith("died: Ray lost it")
        assert all(found[item].isdecimal() and int(found[item]) != os.getpid() for item in "acd")
        assert dict(engines.run(workers, work, "b"))["b"].isdecimal()


def refuse(item: str) -> None:
    raise UsageError(f"{item} is wrong")


def test_errors_of_calls_come_back_as_they_are() -> None:
    with engines.opened(RAY, 1) as workers, pytest.raises(UsageError, match="a is wrong"):
        workers[0].call(refuse, "a")


def test_more_than_a_host_has_is_refused() -> None:
    wrong = Sweep(engine="ray", cpus_per_cell=3)
    with pytest.raises(UsageError, match="no host of the cluster has 3 CPUs"), engines.opened(wrong, 1):
        pass


def sleep(folder: Path) -> None:
    (folder / "began").touch()
    try:
        while True:  # Ray interrupts between two steps of Python
            time.sleep(0.05)
    except KeyboardInterrupt:
        (folder / "kept").touch()
        raise


def test_what_runs_is_interrupted_as_by_ctrl_c_when_the_command_ends(tmp_path: Path) -> None:
    def work(worker: Worker, folder: Path) -> None:
        worker.call(sleep, folder)

    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()

    def interrupt_when_both_run() -> None:
        while not all((folder / "began").exists() for folder in folders):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt_when_both_run).start()
    with pytest.raises(KeyboardInterrupt), engines.opened(RAY, 2) as workers:
        list(engines.run(workers, work, folders))
    assert all((folder / "kept").exists() for folder in folders)


def kill_one_in_training(root: Path, killed: list[int]) -> None:
    """Kill the first process that has finished an epoch."""
    while True:
        for log in root.glob("*/log.txt"):
            holder = lease.holder(log.parent)
            if holder is not None and "epoch 1/" in log.read_text():
                os.kill(holder.pid, signal.SIGKILL)
                killed.append(holder.pid)
                return
        time.sleep(0.01)


@pytest.mark.parametrize("how", ["shared", "not shared", "killed"])
def test_a_sweep_on_ray_gives_the_records_of_one_without(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content: dict[str, Any] = {
        "name": "tiny", "title": "Tiny", "claim": "none", "source": "none",
        "base": {**SMALL, "train": {**SMALL["train"], "epochs": 30 if how == "killed" else 1}},
        "grid": {"normalization": ["none", "batch"]},
        "seeds": [0], "evaluation": {"limit": 50},
        "perturbations": {"clean": {"kind": "clean"}, "pgd": {"kind": "attack", "eps": 0.1, "steps": 2}},
        "table": {"columns": {"clean": "clean"}}, "claims": [],
    }  # fmt: skip
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    api.reproduce(str(path), root=tmp_path / "here")
    assert parcels.all_hosts_share(tmp_path / "here")
    if how == "not shared":
        monkeypatch.setattr(parcels, "all_hosts_share", lambda root: False)
    killed: list[int] = []
    log, root = MessageLog(), tmp_path / "ray"
    if how == "killed":
        threading.Thread(target=kill_one_in_training, args=(root, killed), daemon=True).start()
    api.reproduce(str(path), root=root, engine="ray", jobs=2, cpus_per_cell=1, progress=log)
    assert len(killed) == sum("Ray lost it" in line for line in log.lines) == (how == "killed")
    for task in tasks(catalog.experiment(str(path))):
        assert task.is_marked(root)
        found, expected = (
            [
                one.model_dump(include={"correct", "n", "perturbation_id"})
                for one in records.read_records(task.folder(own))
            ]
            for own in (root, tmp_path / "here")
        )
        assert found == expected
        assert not {"lock.json", "log.txt"} & {one.name for one in task.folder(root).iterdir()}

"""Engines: each call runs where it should, a killed one is lost alone, and workers end with the command."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import cloudpickle
import pytest

from bn_vuln.config import Sweep
from bn_vuln.errors import UsageError
from bn_vuln.experiments import engines
from bn_vuln.experiments.engines import DiedError, Worker

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not find this file


CHILD = """
import time
from bn_vuln.experiments import engines
import os
engines.exit_with_parent(os.getppid())
print("ready", flush=True)
time.sleep(300)
"""
PARENT = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {CHILD!r}]).pid, flush=True); input()"


def pid_and_threads(item: str) -> tuple[str, int, str, str]:
    return item, os.getpid(), os.environ["TF_NUM_INTRAOP_THREADS"], os.environ["BNVULN_MEMORY_SHARE"]


def kill_this_process(item: str) -> None:
    if item == "b":
        os.kill(os.getpid(), signal.SIGKILL)


def died(worker: Worker, item: str) -> str:
    try:
        worker.call(kill_this_process, item)
    except DiedError as error:
        return str(error)
    return "lives"


def test_one_cell_at_a_time_is_worked_on_here():
    with engines.opened(Sweep(), 3) as workers:
        found = list(engines.run(workers, lambda worker, item: worker.call(os.getpid), "ab"))
    assert found == [("a", os.getpid()), ("b", os.getpid())]


def test_every_item_is_worked_on_in_a_process_that_stays_with_its_share():
    with engines.opened(Sweep(jobs=2), 8) as workers:
        found = dict(engines.run(workers, lambda worker, item: worker.call(pid_and_threads, item), "abcdef"))
    assert set(found) == set("abcdef")
    pids = {pid for _, pid, *_ in found.values()}
    assert len(pids) == 2
    assert os.getpid() not in pids
    threads = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert {(item, *rest) for item, _, *rest in found.values()} == {(item, threads, "0.5") for item in "abcdef"}
    assert not any(map(runs, pids))


def test_a_killed_call_is_lost_alone():
    with engines.opened(Sweep(jobs=2), 8) as workers:
        found = dict(engines.run(workers, died, "abcd"))
    assert {found[item] for item in "acd"} == {"lives"}
    assert "its process was killed by SIGKILL" in found["b"]


def test_a_process_that_was_killed_while_it_had_nothing_to_do_is_replaced():
    with engines.opened(Sweep(jobs=2), 2) as (worker, _):
        first = worker.call(os.getpid)
        os.kill(first, signal.SIGKILL)
        while runs(first):
            time.sleep(0.05)
        time.sleep(0.5)
        assert worker.call(os.getpid) != first


class Broken:
    """What cannot be read where it was sent to."""

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return int, ("no number",)


def test_what_cannot_be_read_there_is_named():
    with engines.opened(Sweep(jobs=2), 2) as (worker, _):
        with pytest.raises(DiedError, match="un-serialize"):
            worker.call(print, Broken())
        assert worker.call(os.getpid) != os.getpid()


def test_what_is_used_of_loky_is_there():
    from joblib.externals.loky import process_executor

    assert hasattr(process_executor, "_USE_PSUTIL")  # or workers would be replaced after each cell, quietly


def test_what_the_work_raises_ends_it():
    def broken(worker: Worker, item: str) -> None:
        if item == "b":
            raise UsageError("broken")

    with engines.opened(Sweep(jobs=2), 8) as workers, pytest.raises(UsageError, match="broken"):
        list(engines.run(workers, broken, "abcd"))


def test_there_are_no_more_workers_than_work():
    with engines.opened(Sweep(jobs=5), 2) as workers:
        assert len(workers) == 2


@pytest.mark.parametrize(
    ("jobs", "gpus_per_cell", "expected"),
    [
        (1, None, ["0"]),
        (2, None, ["0", "1"]),
        (4, None, ["0", "0", "1", "1"]),
        (2, 0.5, ["0", "0"]),
        (3, None, ["0", "0", "1"]),
        (1, 2, ["0,1"]),
        (2, 0, ["", ""]),
    ],
)
def test_gpus_are_divided_among_cells(monkeypatch, jobs, gpus_per_cell, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    found = [engines._variables(worker, jobs, gpus_per_cell) for worker in range(jobs)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in found] == expected
    shared = len(set(expected)) < len(expected) and expected[0] != ""
    assert all(("TF_FORCE_GPU_ALLOW_GROWTH" in one) is shared for one in found)
    for gpu in set(expected):
        on_it = [one for one in found if one["CUDA_VISIBLE_DEVICES"] == gpu]
        assert sum(float(one.get("XLA_PYTHON_CLIENT_MEM_FRACTION", 0)) for one in on_it) <= 0.901


def test_more_gpus_than_there_are_are_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(
        UsageError, match="--gpus-per-cell 1 for 3 cells at a time: there are 2 GPUs; without it they are divided"
    ):
        engines._variables(0, 3, 1)


def test_ray_address_is_for_ray():
    with (
        pytest.raises(UsageError, match="--ray-address is for --engine ray"),
        engines.opened(Sweep(ray_address="auto"), 1),
    ):
        pass


def test_more_cores_than_there_are_are_refused():
    with pytest.raises(UsageError, match="--cpus-per-cell 999: there are"), engines.opened(Sweep(cpus_per_cell=999), 1):
        pass


def test_an_address_at_which_nothing_answers_is_refused_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    for given in (address, f"ray://{address}", "127.0.0.1:99999"):
        with pytest.raises(UsageError, match=r"--ray-address .*: nothing answers there"):
            engines._check_ray_answers(given)
    for given in (None, "auto"):
        engines._check_ray_answers(given)


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'bnvuln\[ray\]'"), engines.opened(Sweep(engine="ray"), 1):
        pass


def runs(pid: int) -> bool:
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        )  # ended, but not yet waited for
    except FileNotFoundError:
        return False


def test_a_worker_ends_when_its_parent_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    assert parent.stdout.readline() == "ready\n"
    assert runs(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 30
    while runs(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not runs(child)

"""Locks of run folders: one process holds one, and one that is left behind is taken over by one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bn_vuln.records import is_stale_lock, lock, locked
from bn_vuln.runtime.files import atomic_write


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


HOLD = """
import sys
from pathlib import Path
from bn_vuln.records import locked
with locked(Path(sys.argv[1])) as acquired:
    print(acquired, flush=True)
    sys.stdin.readline()
"""


@contextmanager
def other_process(folder: Path) -> Iterator[tuple[subprocess.Popen[str], bool]]:
    """Another process that locks `folder`, and if it acquired the lock; it releases it at the end."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline() == "True\n"
        finally:
            process.communicate("\n")


def can_lock(folder: Path) -> bool:
    with locked(folder) as acquired:
        return acquired


def write_lock(folder: Path, pid: int, host: str | None = None) -> Path:
    owner = {"host": socket.gethostname() if host is None else host, "pid": pid, "time": 0.0}
    atomic_write(folder / "lock.json", json.dumps(owner))
    return folder / "lock.json"


@pytest.fixture(scope="module")
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_lock_is_a_file_for_as_long_as_it_is_held(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with locked(folder) as acquired:
        assert acquired
        assert json.loads((folder / "lock.json").read_text())["pid"] == os.getpid()
    assert names(folder) == []
    assert can_lock(folder)


def fail_while_locked(folder: Path) -> None:
    with locked(folder):
        raise RuntimeError("training broke")


def test_a_lock_ends_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="training broke"):
        fail_while_locked(tmp_path)
    assert names(tmp_path) == []


def test_a_second_lock_of_this_process_fails(tmp_path: Path) -> None:
    with locked(tmp_path) as first:
        assert first
        assert not can_lock(tmp_path)


def test_a_lock_keeps_other_processes_out(tmp_path: Path) -> None:
    with locked(tmp_path) as acquired, other_process(tmp_path) as (_, acquired_there):
        assert acquired
        assert not acquired_there
    assert names(tmp_path) == []


def test_a_lock_of_another_process_keeps_us_out_until_it_ends(tmp_path: Path) -> None:
    with other_process(tmp_path) as (_, acquired_there):
        assert acquired_there
        assert not can_lock(tmp_path)
        assert not is_stale_lock(tmp_path)
        assert names(tmp_path) == ["lock.json"]
    assert can_lock(tmp_path)


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    with other_process(tmp_path) as (process, acquired_there):
        assert acquired_there
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert names(tmp_path) == ["lock.json"]
        assert is_stale_lock(tmp_path)
        with locked(tmp_path) as acquired:
            assert acquired
            assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    assert names(tmp_path) == []


def test_a_dead_pid_of_another_host_says_nothing(tmp_path: Path, dead_pid: int) -> None:
    path = write_lock(tmp_path, dead_pid, "elsewhere")
    before = path.read_text()
    assert not is_stale_lock(tmp_path)
    assert not can_lock(tmp_path)
    assert path.read_text() == before


def test_a_process_that_may_not_be_signalled_lives(
    tmp_path: Path, dead_pid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lock(tmp_path, dead_pid)

    def refuse(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert not can_lock(tmp_path)


def test_without_a_lock_nothing_is_stale(tmp_path: Path) -> None:
    assert not is_stale_lock(tmp_path)


@pytest.mark.parametrize(("age", "taken"), [(0, False), (3600, True)], ids=["fresh", "old"])
def test_a_lock_without_content_is_taken_over_when_old(tmp_path: Path, age: float, taken: bool) -> None:
    path = tmp_path / "lock.json"
    path.touch()
    os.utime(path, (time.time() - age,) * 2)
    assert can_lock(tmp_path) is taken
    assert path.exists() is not taken


def test_a_stale_lock_is_taken_over_by_one_of_many(tmp_path: Path, dead_pid: int) -> None:
    path = write_lock(tmp_path, dead_pid)
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lock._take_over, [path.resolve()] * 8))
    lock._held.discard(path.resolve())
    assert sum(taken) == 1


def test_who_saw_a_stale_lock_looks_again_before_taking_it(
    tmp_path: Path, dead_pid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lock(tmp_path, dead_pid)
    locked = lock.fcntl.flock

    def overtaken(*arguments: Any) -> None:
        locked(*arguments)
        path.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getppid(), "time": time.time()}))

    monkeypatch.setattr(lock.fcntl, "flock", overtaken)
    assert not can_lock(tmp_path)
    assert json.loads(path.read_text())["pid"] == os.getppid()

"""Leases of folders: one process holds one; the dead, the silent and those of other hosts give theirs up to one."""

from __future__ import annotations

import contextlib
import errno
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

import pytest
from helpers_runs import MessageLog

from bn_vuln import records
from bn_vuln.runtime import lease
from bn_vuln.runtime.files import atomic_write, remove
from bn_vuln.runtime.lease import LOCK, LeaseLostError, holder, is_locked, locked, waited


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != lease.GUARD)


HOLD = """
import sys
from pathlib import Path
from bn_vuln.runtime import files, lease
lease.BEAT_SECONDS = 0.1
with lease.locked(Path(sys.argv[1])) as held:
    print(held is not None, flush=True)
    sys.stdin.readline()
    files.atomic_write(Path(sys.argv[1]) / "written.txt", "by the other process")
"""


@contextmanager
def other_process(folder: Path, *before: str) -> Iterator[tuple[subprocess.Popen[str], bool]]:
    """Another process that locks `folder`, and if it acquired the lease; it writes a file there and ends."""
    pipe = subprocess.PIPE
    command = [*before, sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline() == "True\n"
        finally:
            process.send_signal(signal.SIGCONT)
            with contextlib.suppress(ValueError):  # the test did it
                process.communicate("\n")


def can_lock(folder: Path) -> bool:
    with locked(folder) as held:
        return held is not None


def watch(folder: Path, clock: list[float], seconds: float) -> None:
    """Let time go on, and look at the lease now and then, as who waits does."""
    while seconds > 0:
        step = min(seconds, 10.0)
        clock[0] += step
        seconds -= step
        is_locked(folder)


def write_lease(folder: Path, **changes: object) -> Path:
    """The lease of a dead process of this machine, but for the changes."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    owner = {"host": socket.gethostname(), "machine": lease._machine(), "pid": process.pid, "started": 1, "since": 0.0}
    path = folder / LOCK
    path.write_text(json.dumps({**owner, "beats": 1, "work": {}, **changes}))
    return path


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock that leases are watched by, which stands still until it is moved."""
    now = [1000.0]
    monkeypatch.setattr(lease.time, "monotonic", lambda: now[0])
    return now


def test_a_lease_is_a_file_for_as_long_as_it_is_held(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with locked(folder) as held:
        assert held
        assert lease.holds(folder)
        found = holder(folder)
        assert found is not None
        assert (found.pid, found.host) == (os.getpid(), socket.gethostname())
        assert abs(found.since - time.time()) < 60
        assert (folder / LOCK).stat().st_size == lease.SIZE
    assert names(folder) == []
    assert not lease.holds(folder)
    assert can_lock(folder)


def fail_while_locked(folder: Path) -> None:
    with locked(folder):
        raise RuntimeError("training broke")


def test_a_lease_ends_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="training broke"):
        fail_while_locked(tmp_path)
    assert names(tmp_path) == []


def test_a_second_lease_of_this_process_fails(tmp_path: Path) -> None:
    with locked(tmp_path) as first:
        assert first
        assert not can_lock(tmp_path)


def test_a_lease_keeps_other_processes_out(tmp_path: Path) -> None:
    with locked(tmp_path) as held, other_process(tmp_path) as (_, acquired_there):
        assert held
        assert not acquired_there


def test_a_lease_of_another_process_keeps_us_out_until_it_ends(tmp_path: Path) -> None:
    with other_process(tmp_path) as (_, acquired_there):
        assert acquired_there
        assert not can_lock(tmp_path)
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)
    assert can_lock(tmp_path)


def test_the_lease_of_a_killed_process_is_taken_over_at_once(tmp_path: Path) -> None:
    with other_process(tmp_path) as (process, acquired_there):
        assert acquired_there
        process.kill()
        process.wait()
        assert names(tmp_path) == [LOCK]
        assert not is_locked(tmp_path)
        with locked(tmp_path) as held:
            assert held
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert names(tmp_path) == []


def test_a_zombie_is_dead(tmp_path: Path) -> None:
    with other_process(tmp_path) as (process, acquired_there):
        assert acquired_there
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is dead, and not buried
        assert can_lock(tmp_path)


def test_another_process_of_the_same_id_is_not_the_holder(tmp_path: Path) -> None:
    write_lease(tmp_path, pid=os.getppid(), started=lease._started(os.getppid()))
    assert not can_lock(tmp_path)
    write_lease(tmp_path, pid=os.getppid(), started=lease._started(os.getppid()) - 1)
    assert can_lock(tmp_path)


def test_a_process_that_is_hidden_from_us_may_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lease(tmp_path)

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert not can_lock(tmp_path)
    assert path.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"host": "elsewhere", "machine": "another boot pid:[1]"},
        {"machine": f"{lease._machine()}0"},  # another PID namespace of this machine
        {"machine": ""},  # a system that does not say
        None,  # nothing: its holder was killed as it wrote the file, or is writing it now
    ],
    ids=["host", "namespace", "unknown", "empty"],
)
def test_a_lease_of_elsewhere_is_taken_over_when_it_stands_still(
    tmp_path: Path, clock: list[float], changes: dict[str, object] | None
) -> None:
    if changes is None:
        (tmp_path / LOCK).touch()
    else:
        write_lease(tmp_path, **changes)
    assert not can_lock(tmp_path)
    watch(tmp_path, clock, lease.EXPIRES_SECONDS - 1)
    assert is_locked(tmp_path)
    assert not can_lock(tmp_path)
    watch(tmp_path, clock, 1)
    assert not is_locked(tmp_path)
    assert can_lock(tmp_path)
    assert names(tmp_path) == []


def test_a_lease_of_elsewhere_that_beats_is_never_taken_over(tmp_path: Path, clock: list[float]) -> None:
    for beats in range(5):
        write_lease(tmp_path, machine="another", beats=beats)
        assert not can_lock(tmp_path)
        clock[0] += lease.EXPIRES_SECONDS - 1
    assert (tmp_path / LOCK).exists()


def test_who_has_not_watched_a_lease_does_not_know_that_it_stood_still(tmp_path: Path, clock: list[float]) -> None:
    write_lease(tmp_path, machine="another")
    assert not can_lock(tmp_path)
    clock[0] += 10 * lease.EXPIRES_SECONDS  # this process, or the file server, stood still
    assert not can_lock(tmp_path)
    watch(tmp_path, clock, lease.EXPIRES_SECONDS)
    assert can_lock(tmp_path)


def test_a_lease_that_is_a_link_or_a_pipe_is_no_way_out_of_its_folder(tmp_path: Path, clock: list[float]) -> None:
    important, folder = tmp_path / "important.txt", tmp_path / "run"
    important.write_text("important")
    folder.mkdir()
    for make in (
        lambda path: path.symlink_to(important),
        lambda path: path.symlink_to(tmp_path / "nowhere"),
        os.mkfifo,
    ):
        make(folder / LOCK)
        assert not can_lock(folder)
        watch(folder, clock, lease.EXPIRES_SECONDS)
        with locked(folder) as held:
            assert held
            with lease.checked(folder / "file") as own:
                assert own is held
        assert names(folder) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["important.txt", "run"]
    assert important.read_text() == "important"


def test_what_a_lease_says_is_checked(tmp_path: Path) -> None:
    wrong = {"title": 5, "left": float("inf"), "done": "x", "total": 3, "unit": "steps", "more": []}
    write_lease(tmp_path, work=wrong, since=1e300)
    found = holder(tmp_path)
    assert found is not None
    assert (found.since, found.work) == (0.0, {"total": 3, "unit": "steps"})


def test_each_thread_holds_its_own_leases(tmp_path: Path) -> None:
    with locked(tmp_path), ThreadPoolExecutor(1) as pool:
        assert lease.holds(tmp_path)
        assert pool.submit(lease.holds, tmp_path).result() is False


def test_a_forked_process_holds_no_lease_and_beats_for_its_own(tmp_path: Path) -> None:
    code = f"""
import os, time
from pathlib import Path
from bn_vuln.runtime import lease
lease.BEAT_SECONDS = 0.05
with lease.locked(Path({str(tmp_path / "parent")!r})):
    time.sleep(0.2)
    if (child := os.fork()) == 0:
        assert not lease.holds(Path({str(tmp_path / "parent")!r}))
        with lease.locked(Path({str(tmp_path / "child")!r})) as held:
            time.sleep(0.5)
            os._exit(0 if held.beats > 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert lease.is_locked(Path({str(tmp_path / "parent")!r}))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_work_that_json_does_not_hold_ends_no_beating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked(tmp_path) as held:
        assert held
        held.work["done"] = Path("of no kind of JSON")
        held.beat()
        assert holder(tmp_path) is not None


def test_a_file_system_without_locks_and_a_guard_that_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = pytest.raises(lease.GuardError, match=r"\.lock: another process has held it")
    with lease.guarded(tmp_path), held, lease.guarded(tmp_path, timeout=0.1):
        pass

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lease.fcntl, "flock", refuse)
    with lease.guarded(tmp_path):
        pass


def test_what_is_removed_or_renamed_needs_the_lease(tmp_path: Path) -> None:
    for name in ("checkpoint.npz", "a.json"):
        (tmp_path / name).touch()
    with locked(tmp_path):
        (tmp_path / LOCK).unlink()
        write_lease(tmp_path)
        for change in (lambda: remove(tmp_path / "checkpoint.npz"), lambda: records.set_aside(tmp_path / "a.json")):
            with pytest.raises(LeaseLostError):
                change()
    assert names(tmp_path) == ["a.json", "checkpoint.npz", LOCK]


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lease(tmp_path, machine="another", since=time.time() + 1e6)
    os.utime(path, (0, 0))
    assert not can_lock(tmp_path)
    monkeypatch.setattr(lease.time, "time", lambda: 1e11)
    assert not can_lock(tmp_path)
    assert is_locked(tmp_path)


def test_a_lease_beats_and_tells_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.01)
    with locked(tmp_path) as held:
        assert held
        held.work["title"] = "training"
        deadline = time.monotonic() + 10
        while not (found := holder(tmp_path)) or found.work != {"title": "training"}:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        before = (tmp_path / LOCK).read_bytes()
        while (tmp_path / LOCK).read_bytes() == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_suspended_holder_loses_its_lease_and_writes_nothing_more(tmp_path: Path, clock: list[float]) -> None:
    with other_process(tmp_path) as (process, acquired_there):
        assert acquired_there
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        assert not can_lock(tmp_path)
        watch(tmp_path, clock, lease.EXPIRES_SECONDS)
        with locked(tmp_path) as held:
            assert held
            process.send_signal(signal.SIGCONT)
            _, errors = process.communicate("\n")
            assert "LeaseLostError" in errors
            assert "another process has taken over" in errors
            assert held.is_held()
    assert names(tmp_path) == []


def test_what_is_taken_over_is_not_written(tmp_path: Path) -> None:
    with locked(tmp_path) as held:
        assert held
        atomic_write(tmp_path / "sub" / "first.txt", "first")
        (tmp_path / LOCK).unlink()
        write_lease(tmp_path)
        with pytest.raises(LeaseLostError, match=r"nothing is written \(second.txt\)"):
            atomic_write(tmp_path / "sub" / "second.txt", "second")
        atomic_write(tmp_path.parent / f"{tmp_path.name}.txt", "elsewhere")
    assert names(tmp_path) == [LOCK, "sub"]  # the other's lease stays
    assert names(tmp_path / "sub") == ["first.txt"]


def test_an_expired_lease_is_taken_over_by_one_of_many(tmp_path: Path) -> None:
    path = write_lease(tmp_path).resolve()
    with ThreadPoolExecutor(8) as pool:
        taken = [found for found in pool.map(lease._take_over, [path] * 8) if found]
    assert len(taken) == 1
    lease._release(taken[0])


def test_who_saw_an_expired_lease_looks_again_before_taking_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = write_lease(tmp_path), lease.guarded

    @contextmanager
    def overtaken(folder: Path, timeout: float) -> Iterator[None]:
        with real(folder, timeout):
            write_lease(tmp_path, pid=os.getppid())
            yield

    monkeypatch.setattr(lease, "guarded", overtaken)
    assert not can_lock(tmp_path)
    assert json.loads(path.read_text())["pid"] == os.getppid()


def test_who_stands_still_while_it_writes_is_not_overtaken_there(tmp_path: Path) -> None:
    """Nor does the other one hang: it looks again."""
    path = write_lease(tmp_path)
    with lease.guarded(tmp_path):
        assert not can_lock(tmp_path)
        assert path.exists()
    assert can_lock(tmp_path)


def test_who_was_overtaken_leaves_the_lease_of_the_other_one(tmp_path: Path) -> None:
    with locked(tmp_path) as held:
        assert held is not None
        held.path.unlink()
        write_lease(tmp_path, pid=os.getppid(), started=lease._started(os.getppid()))
    found = holder(tmp_path)
    assert found is not None
    assert found.pid == os.getppid()


def test_the_end_of_another_process_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.05)
    log = MessageLog()
    with other_process(tmp_path) as (process, acquired_there):
        assert acquired_there
        with ThreadPoolExecutor(1) as pool:
            ended = pool.submit(lambda: (time.sleep(0.3), process.communicate("\n")))
            with waited(tmp_path, log) as held:
                assert held.is_held()
                assert (tmp_path / "written.txt").exists()
            ended.result()
    assert log.lines == [f"waiting for process {process.pid} on {socket.gethostname()}, which works in {tmp_path} "
                         f"(lease: {tmp_path / LOCK})"]  # fmt: skip


def test_what_killed_processes_left_is_removed_with_a_lease(tmp_path: Path) -> None:
    kept = ["config.yaml", ".gitignore", ".config.12.yaml", "run/lock.json", "run/.model.1.00000000.keras"]
    left = [".config.123.0a1b2c3d.yaml", ".model.9.ffffffff", "records/.a.b.1.00000000.json",
            "pieces/0a1b/.0.1.00000000.json"]  # fmt: skip
    for name in (*kept, *left):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert can_lock(tmp_path)
    found = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(set(found) - {lease.GUARD}) == sorted(kept)


def test_what_killed_processes_left_elsewhere_is_removed_by_who_writes_there(tmp_path: Path) -> None:
    killed = f"""
import os, signal
from pathlib import Path
from bn_vuln.runtime import files
with files.atomic_path(Path({str(tmp_path)!r}) / "a.txt") as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", killed], check=False)
    (left,) = names(tmp_path)
    assert lease.TEMPORARY.fullmatch(left)
    alive = lease.temporary_name(tmp_path / "alive.txt")  # this process may be writing it
    elsewhere, old = f".b.{2**22}.{'0' * 8}.txt", f".c.{2**22}.{'0' * 8}.txt"
    for name in (alive, elsewhere, old):
        (tmp_path / name).touch()
    os.utime(tmp_path / old, (0, 0))
    atomic_write(tmp_path / "b.txt", "whole")
    assert names(tmp_path) == sorted([alive, elsewhere, "b.txt"])


def test_who_may_write_into_a_folder_may_hold_its_guard(tmp_path: Path) -> None:
    for mode in (0o700, 0o770, 0o755):
        folder = tmp_path / f"{mode:o}"
        folder.mkdir()
        folder.chmod(mode)
        with lease.guarded(folder):
            pass
        assert (folder / lease.GUARD).stat().st_mode & 0o777 == mode & 0o666


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), locked(tmp_path / "file"):
        pass


@pytest.mark.skipif(
    subprocess.run(["unshare", "-Urpf", "true"], capture_output=True, check=False).returncode != 0,
    reason="no PID namespaces here",
)
def test_two_pid_namespaces_of_one_host_keep_each_other_out(tmp_path: Path, clock: list[float]) -> None:
    unshare = ["unshare", "-Urpf", "--mount-proc", "--kill-child"]
    with other_process(tmp_path, *unshare) as (process, acquired_there):
        assert acquired_there
        found = holder(tmp_path)
        assert found is not None
        assert found.pid != process.pid  # a process of ours may have the same id
        assert not can_lock(tmp_path)
        watch(tmp_path, clock, lease.EXPIRES_SECONDS - 1)
        time.sleep(0.5)  # it beats
        assert not can_lock(tmp_path)
        process.kill()
        process.wait()
        time.sleep(0.3)
        assert not can_lock(tmp_path)
        watch(tmp_path, clock, lease.EXPIRES_SECONDS)
        assert can_lock(tmp_path)


def test_a_lease_that_a_full_disk_does_not_hold_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(OSError, match=r"No space left on device: '.*lock.json'"), locked(tmp_path):
        pass
    assert names(tmp_path) == []

"""Leases of folders: one process at a time works in a run folder, on whatever host, and the dead give theirs up.

A lease is the file `lock.json`. It says who holds it, and has a counter that the holder moves on every few seconds. It
has expired as soon as its holder is known to be dead, which a process of the same machine and PID namespace can see,
or when the counter has stood still for `EXPIRES_SECONDS` of the clock of who watches. No two clocks are compared: a
clock that jumps, or another host's, changes nothing. A holder whose lease was taken over, as after it was suspended,
writes nothing more (`checked`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import math
import os
import re
import secrets
import socket
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bn_vuln.errors import BnvulnError
from bn_vuln.runtime import signals
from bn_vuln.runtime.progress import Progress, Quiet
from bn_vuln.typing import Plain

LOCK = "lock.json"
GUARD = ".lock"  # held for the moment in which a lease is looked at and then replaced, or a file of its holder is
BEAT_SECONDS = 5.0
EXPIRES_SECONDS = 45.0
POLL_SECONDS = 2.0
GUARD_SECONDS = 60.0  # after which who waits for the guard gives up: a process stands still in it
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)  # of a file system without them
OLD_SECONDS = 3600.0  # after which a temporary file is one that a killed process has left
SIZE = 4096  # of the file, in bytes: each write covers all of it

_held: dict[Path, Lease] = {}  # those of this process, by their file
_seen: dict[Path, tuple[bytes, float, float]] = {}  # what was seen of others' leases, when first and when last
_beating = threading.Lock()


class LeaseLostError(BnvulnError):
    """Another process has taken over the folder, since this one stood still."""


class GuardError(BnvulnError):
    """Another process stands still in the guard of a folder."""


@dataclass(frozen=True)
class Holder:
    """A process that holds a lease.

    Attributes:
        host: Name of its host.
        machine: Boot of the machine, and the PID namespace; "" where they are not known.
        pid: Its process id there.
        started: When it started, in the kernel's ticks since boot; 0 where it is not known.
        since: Since when it has held the lease, in seconds since the epoch by its clock.
        work: What it does: title, total, unit, done, and seconds left (`progress.Noted`).
    """

    host: str
    machine: str
    pid: int
    started: int
    since: float
    work: Plain = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Process and host."""
        return f"process {self.pid} on {self.host}"

    @property
    def is_dead(self) -> bool:
        """Whether this process can see that the holder is gone; a holder elsewhere is never known to be."""
        if not self.machine or self.machine != _machine():
            return False
        return _started(self.pid) not in (0, self.started)


@dataclass
class Lease:
    """A lease that this process holds. What is put into `work` is seen by others (see `Holder`)."""

    path: Path
    descriptor: int
    work: Plain = field(default_factory=dict)
    beats: int = 0
    since: float = field(default_factory=time.time)
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    thread: int = field(default_factory=threading.get_ident)

    def beat(self) -> None:
        """Write the lease with the counter moved on, into the very file that was created."""
        self.beats += 1
        owner = {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid()}
        owner |= {"started": _started(os.getpid()), "since": self.since, "beats": self.beats, "token": self.token}
        text = json.dumps({**owner, "work": dict(self.work)}, default=str)
        if len(text) >= SIZE:
            text = json.dumps({**owner, "work": {}})
        os.pwrite(self.descriptor, f"{text:<{SIZE - 1}}\n".encode(), 0)
        os.fsync(self.descriptor)  # else other hosts of a network file system do not see it

    def is_held(self) -> bool:
        """Return False where another process has taken over.

        The file is opened and read: a network file system may answer other questions of what it remembers.
        """
        return self.token.encode() in (_read(self.path) or b"")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Lease | None]:
    """Hold the lease of a folder, which is made where there is none; yield None if another process holds it.

    Args:
        folder: The folder.

    Raises:
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / LOCK
    lease = None
    try:
        with signals.uninterrupted():
            lease = _create(path) or _take_over(path)
        if lease is not None:
            for one in _own_folders(folder):
                remove_temporaries(one, held=True)
        yield lease
    finally:
        with signals.uninterrupted():
            if lease is not None:
                _release(lease)


@contextlib.contextmanager
def waited(folder: Path, progress: Progress | None = None) -> Iterator[Lease]:
    """Hold the lease of a folder, after the process that holds it has ended its work.

    Args:
        folder: The folder.
        progress: Receiver of a line that says who is waited for.
    """
    said = False
    while True:
        with locked(folder) as lease:
            if lease is not None:
                yield lease
                return
        if not said:
            (progress or Quiet()).message(f"waiting for {describe(folder)}")
            said = True
        time.sleep(POLL_SECONDS)


def describe(folder: Path) -> str:
    """Return who holds the lease of a folder, and where its file is."""
    who = holder(folder)
    return f"{who.text if who else 'another process'}, which works in {folder} (lease: {folder / LOCK})"


def holder(folder: Path) -> Holder | None:
    """Return who holds the lease of a folder; None where nobody does, or the file says nothing."""
    content = _read(folder / LOCK)
    return None if content is None else _holder(content)


def holds(folder: Path) -> bool:
    """Return whether this thread holds the lease of a folder."""
    lease = _held.get(folder.resolve() / LOCK)
    return lease is not None and lease.thread == threading.get_ident()


def is_locked(folder: Path) -> bool:
    """Return whether there is a lease of a folder that has not expired, by what has been seen of it so far."""
    content = _read(path := folder.resolve() / LOCK)
    return content is not None and not _has_expired(path, content)


@contextlib.contextmanager
def checked(path: Path) -> Iterator[Lease | None]:
    """Run the block that puts a file into place, if this process still holds the lease of a folder that it is in.

    Yields:
        The lease; None where this process holds none of such a folder.

    Raises:
        LeaseLostError: The lease was taken over.
    """
    folders = path.resolve().parents
    lease = next((_held[folder / LOCK] for folder in folders if folder / LOCK in _held), None)
    if lease is None:
        yield None
        return
    with guarded(lease.path.parent):
        if not lease.is_held():
            raise LeaseLostError(
                f"{lease.path.parent}: another process has taken over, since this one stood still for "
                f"{EXPIRES_SECONDS:.0f} s or more; nothing is written ({path.name})"
            )
        yield lease


TEMPORARY = re.compile(r"\..+\.(\d+)\.([0-9a-f]{4})[0-9a-f]{4}(\.[^.]*)?")  # process, machine


def temporary_name(path: Path) -> str:
    """Return the name of a temporary file that becomes `path`, by which it is known as left by a killed process."""
    return f".{path.stem}.{os.getpid()}.{_machine_tag()}{secrets.token_hex(2)}{path.suffix}"


def remove_temporaries(folder: Path, *, held: bool = False, now: float | None = None) -> list[Path]:
    """Remove the temporary files that killed processes have left in a folder.

    Args:
        folder: The folder.
        held: This process holds its lease: then all are left by others. Else those are whose process was of this
            machine and is dead, and old ones.
        now: The time by the clock of its file system; None: by that of this process.

    Returns:
        What was removed.
    """
    removed = []
    for path in folder.glob(".*"):
        with contextlib.suppress(OSError):
            if is_left_over(path, held=held, now=now):
                path.unlink()
                removed.append(path)
    return removed


def is_left_over(path: Path, *, held: bool = False, now: float | None = None) -> bool:
    """Return whether a file is a temporary one that a killed process has left; `held` and `now` as above."""
    found = TEMPORARY.fullmatch(path.name)
    if found is None:
        return False
    dead = found[2] == _machine_tag() and _started(int(found[1])) < 0
    return held or dead or (time.time() if now is None else now) - path.lstat().st_mtime > OLD_SECONDS


def _own_folders(folder: Path) -> Iterator[Path]:
    """Yield a folder and two levels of those in it, as pieces and parts have, but none that has a lease of its own."""
    for path, folders, names in os.walk(folder):
        depth = len(Path(path).relative_to(folder).parts)
        if depth and LOCK in names:
            folders.clear()
            continue
        if depth == 2:
            folders.clear()
        yield Path(path)


# ---------------------------------------------------------------- the file


def _create(path: Path) -> Lease | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)  # less the umask
    except FileExistsError:
        return None
    lease = Lease(path, descriptor)
    try:
        lease.beat()
    except OSError as error:  # a full disk
        error.filename = str(path)
        os.close(descriptor)
        path.unlink(missing_ok=True)  # the file says nothing, so nobody else has taken it for expired yet
        raise
    with _beating:
        _held[path] = lease
        _seen.pop(path, None)
    _start_beating()
    return lease


@functools.cache
def _start_beating() -> None:
    threading.Thread(target=_keep_beating, daemon=True).start()


def _release(lease: Lease) -> None:
    with _beating:
        _held.pop(lease.path, None)
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        if lease.is_held():
            with contextlib.suppress(OSError, GuardError):  # a full disk, or who stands still in the guard
                stack.enter_context(guarded(lease.path.parent, timeout=BEAT_SECONDS))
        if lease.is_held():
            lease.path.unlink()
    os.close(lease.descriptor)


def _keep_beating() -> None:
    """Beat for all leases of this process."""
    pause = threading.Event()
    while not pause.wait(BEAT_SECONDS):
        with _beating:
            for lease in _held.values():
                with contextlib.suppress(Exception):  # the next one may succeed; if none does, the lease expires
                    lease.beat()


def _after_fork() -> None:
    """A forked child holds none of the leases of its parent, and has no thread that beats."""
    global _beating  # noqa: PLW0603
    _beating = threading.Lock()
    for lease in _held.values():
        os.close(lease.descriptor)
    _held.clear()
    _seen.clear()
    _start_beating.cache_clear()


os.register_at_fork(after_in_child=_after_fork)


def _take_over(path: Path) -> Lease | None:
    """Replace an expired lease by a new one; the guard makes looking and replacing one step."""
    content = _read(path)
    if content is None or not _has_expired(path, content):
        return None
    try:
        with guarded(path.parent, timeout=0):
            if _read(path) != content:  # another process was faster
                return None
            path.unlink()
            return _create(path)
    except GuardError:  # another process is at it, or the holder writes; one that stands still there goes on
        return None


@contextlib.contextmanager
def guarded(folder: Path, timeout: float = GUARD_SECONDS) -> Iterator[None]:
    """Hold a lock of the file system for a moment; where it has none, the lease alone must do.

    Raises:
        GuardError: Another process has held it for so many seconds.
    """
    mode = folder.stat().st_mode & 0o666 | 0o600  # who may write into the folder may hold it
    descriptor = os.open(folder / GUARD, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, mode)
    try:
        with contextlib.suppress(PermissionError):  # the file of another user
            os.fchmod(descriptor, mode)
        _flock(descriptor, time.monotonic() + timeout, folder)
        yield
    finally:
        os.close(descriptor)  # which releases it


def _flock(descriptor: int, deadline: float, folder: Path) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise GuardError(f"{folder / GUARD}: another process has held it too long; is it suspended?") from None
            time.sleep(0.02)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return
        else:
            return


def _has_expired(path: Path, content: bytes) -> bool:
    """Return whether a lease has expired, as far as this process has watched it."""
    if path in _held:
        return False
    found = _holder(content)
    if found is not None and found.is_dead:
        return True
    now, own = time.monotonic(), hashlib.sha256(content).digest()
    seen, first, last = _seen.get(path, (b"", now, now))
    if seen != own or now - last > EXPIRES_SECONDS / 2:  # it beats, or this process has stood still, or has not looked
        first = now
    _seen[path] = own, first, now
    return now - first >= EXPIRES_SECONDS


def _read(path: Path) -> bytes | None:
    """Return the bytes of a lease, of which no more than it can have are read; None where there is none.

    What is no file, as a link or a pipe, is a lease that says nothing.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        return None if error.errno in (errno.ENOENT, errno.ESTALE, errno.ENOTDIR) else b""
    try:
        return os.read(descriptor, SIZE) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    except OSError as error:
        return None if error.errno == errno.ESTALE else b""
    finally:
        os.close(descriptor)


def _holder(content: bytes) -> Holder | None:
    try:
        found = json.loads(content)
        since = float(found.get("since", 0))
        work = found.get("work", {})
        kinds: dict[str, type | tuple[type, ...]] = {
            "title": str, "unit": str, "done": int, "total": int, "left": (int, float)
        }  # fmt: skip
        return Holder(
            host=str(found["host"]),
            machine=str(found.get("machine", "")),
            pid=int(found["pid"]),
            started=int(found.get("started", 0)),
            since=since if 0 <= since < 2**33 else 0.0,
            work={
                key: work[key]
                for key, kind in kinds.items()
                if isinstance(work.get(key), kind) and (key in ("title", "unit") or math.isfinite(work[key]))
            },
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return None


# ---------------------------------------------------------------- processes


def _machine() -> str:
    """Return what is equal for processes that see each other: boot and name of the machine, and the PID namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')} {socket.gethostname()}"
    except OSError:
        return ""


@functools.cache
def _machine_tag() -> str:
    """Return four digits that tell machines apart, well enough for names of temporary files."""
    return hashlib.sha256((_machine() or socket.gethostname()).encode()).hexdigest()[:4]


def _started(pid: int) -> int:
    """Return when a process started, in ticks since boot; 0 where that is not seen, -1 where it is dead."""
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return -1 if status[0] in b"ZX" else int(status[19])  # a zombie is dead, though not buried
    except (OSError, ValueError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return -1
    except OSError:  # of another user, whose processes /proc hides
        pass
    return 0

"""Cells on hosts that do not share the results folder: a run folder goes there as bytes, and comes back as bytes.

The process that sends it holds its lease meanwhile. What a cell needs of others, the base that it changes or the
sources of its transfers, is trained before, and goes with it.
"""

from __future__ import annotations

import io
import secrets
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import TypeVar

from bn_vuln.errors import BnvulnError
from bn_vuln.experiments import engines
from bn_vuln.experiments.engines import Worker
from bn_vuln.experiments.task import Task
from bn_vuln.runtime import lease
from bn_vuln.runtime.files import atomic_write, remove

Result = TypeVar("Result")


def all_hosts_share(root: Path) -> bool:
    """Return whether every host of the Ray cluster sees the results folder of this one."""
    probe = root.absolute() / f".probe-{secrets.token_hex(8)}"
    probe.touch()
    try:
        return engines.all_hosts_see(probe)
    finally:
        probe.unlink()


def call(worker: Worker, run: Callable[[Task, Path], Result], task: Task, root: Path, busy: Result) -> Result:
    """Run a task in a worker, on a copy of its run folder there.

    Args:
        worker: The worker.
        run: (task, results folder) -> result; called there.
        task: The task.
        root: The results folder here.
        busy: What is returned where another process works on the cell.

    Returns:
        The result. Also of a failed attempt all files are here.

    Raises:
        DiedError: What ran it was killed or interrupted, and nothing came back: its checkpoint is lost.
    """
    for cell in task.needs:
        needed = Task(cell)
        if not needed.is_trained(root):
            with lease.waited(needed.folder(root)):
                if not needed.is_trained(root):
                    outcome = _send(worker, run, needed, root)
                    if not needed.is_trained(root):
                        return outcome
    with lease.locked(task.folder(root)) as held:
        return busy if held is None else _send(worker, run, task, root)


def _send(worker: Worker, run: Callable[[Task, Path], Result], task: Task, root: Path) -> Result:
    with_it = [task.folder(root), *(Task(cell).folder(root) for cell in task.needs)]
    sent = pack(with_it)
    result, parcel = worker.call(_run_there, run, task, sent)
    unpack(parcel, root, {task.id})
    for name in _names(sent) - _names(parcel):  # what was removed there, as a checkpoint
        if PurePosixPath(name).parts[0] == task.id:
            remove(root / name)
    if task.finished(root):
        task.mark(root)
    return result


def _run_there(run: Callable[[Task, Path], Result], task: Task, parcel: bytes) -> tuple[Result, bytes]:
    with tempfile.TemporaryDirectory(prefix="bnvuln-") as folder:
        root = Path(folder)
        unpack(parcel, root)
        return run(task, root), pack([task.folder(root)])


def _names(parcel: bytes) -> set[str]:
    with zipfile.ZipFile(io.BytesIO(parcel)) as archive:
        return set(archive.namelist())


def pack(folders: Iterable[Path]) -> bytes:
    """Return run folders as one zip archive, without their leases and temporary files."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", strict_timestamps=False) as archive:
        for folder in folders:
            for path in sorted(folder.rglob("*")):
                if path.is_file() and path.name[0] != "." and path.name != lease.LOCK:
                    archive.write(path, Path(folder.name, path.relative_to(folder)))
    return content.getvalue()


def unpack(parcel: bytes, root: Path, only: set[str] | None = None) -> None:
    """Write packed run folders into a results folder.

    Args:
        parcel: What `pack` returned.
        root: The results folder.
        only: Names of the run folders that are expected; None: any.

    Raises:
        BnvulnError: A file would be written elsewhere.
    """
    with zipfile.ZipFile(io.BytesIO(parcel)) as archive:
        for name in archive.namelist():
            path = PurePosixPath(name)
            is_plain = len(path.parts) > 1 and not path.is_absolute() and ".." not in path.parts
            if not is_plain or path.name in (lease.LOCK, lease.GUARD) or (only and path.parts[0] not in only):
                raise BnvulnError(f"a host sent a file that is not of its cell: {name}")
            atomic_write(root / path, archive.read(name))

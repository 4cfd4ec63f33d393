"""Cells on hosts that do not share the results folder: what goes there and comes back."""

from __future__ import annotations

import functools
import io
import os
import shutil
import zipfile
from pathlib import Path

import pytest
from helpers_runs import small_cell

from bn_vuln.config import Cell, Clean, Evaluation, EvaluationPlan, digest, identity_of
from bn_vuln.errors import BnvulnError
from bn_vuln.experiments import engines, parcels, runner
from bn_vuln.experiments.runner import Outcome, Task
from bn_vuln.runtime import lease

BUSY = Outcome("busy", "")
ATTEMPT = functools.partial(runner._attempt, strategy="none", progress=None)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def mended() -> Cell:
    return small_cell(normalization="batch", train={"epochs": 1, "batch_size": 50, "lr": 0.1}, mend={"c": 1e-2})


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, Path]:
    """A task that needs the model of another cell, which another host has finished; and the results folder here."""
    root = tmp_path_factory.mktemp("here")
    plan = EvaluationPlan(Evaluation(limit=50), {"clean": Clean()})
    task = Task(mended(), (plan,))
    assert parcels.call(engines.Here(), ATTEMPT, task, root, BUSY).state == "finished"
    return task, root


def test_everything_comes_back_and_what_it_needs_too(done: tuple[Task, Path]) -> None:
    task, root = done
    (base,) = task.needs
    assert task.is_marked(root)
    assert Task(base).is_trained(root)
    assert {path.name for path in root.iterdir()} == {task.id, digest(identity_of(base))}
    names = set(files(root))
    assert not {name for name in names if name.endswith((lease.LOCK, "log.txt"))}


def test_what_is_there_goes_with_the_cell(done: tuple[Task, Path], tmp_path: Path) -> None:
    task, root = done
    shutil.copytree(root, tmp_path / "here")
    (task.folder(tmp_path / "here") / "checkpoint.npz").touch()
    seen: list[dict[str, bytes]] = []

    def look(one: Task, there: Path) -> Outcome:
        assert os.path.commonpath([there, tmp_path]) != str(tmp_path)
        (one.folder(there) / "checkpoint.npz").unlink()
        seen.append(files(there))
        (one.folder(there) / "note.txt").write_text("it broke")
        return Outcome("failed", "it broke")

    assert parcels.call(engines.Here(), look, task, tmp_path / "here", BUSY).text == "it broke"
    guards = {name for name in files(root) if name.endswith(lease.GUARD)}
    assert seen == [{name: content for name, content in files(root).items() if name not in guards}]
    assert (task.folder(tmp_path / "here") / "note.txt").read_text() == "it broke"
    assert set(files(tmp_path / "here")) == set(files(root)) | {f"{task.id}/note.txt"}


def test_a_cell_that_another_process_works_on_is_busy(done: tuple[Task, Path]) -> None:
    task, root = done
    with lease.locked(task.folder(root)):
        assert parcels.call(engines.Here(), ATTEMPT, task, root, BUSY) == BUSY


@pytest.mark.parametrize("name", ["../out.txt", "/etc/out.txt", "other/out.txt", "cell/../../out.txt"])
def test_a_parcel_writes_nothing_else(tmp_path: Path, name: str) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(name, "text")
    with pytest.raises(BnvulnError, match="a host sent a file that is not of its cell"):
        parcels.unpack(content.getvalue(), tmp_path / "root", {"cell"})
    assert list(tmp_path.rglob("*.txt")) == []

"""Disks that are full or cannot be written, folders that vanish, and paths of all kinds."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers_commands import SWEEP, ended, in_training, is_as, left_over, outcome, run, started, wait_for

pytestmark = pytest.mark.slow
UNFINISHED = ("ballast", "log.txt", "history.csv", "checkpoint.npz")  # of a training that goes on
# The superuser may write anywhere: without these rights it is like any other user.
AS_USER = ("setpriv", "--inh-caps=-all", "--bounding-set=-all") if os.getuid() == 0 else ()
CAN_BE_USER = subprocess.run([*AS_USER, "true"], capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of two megabytes in `runs`."""
    (folder / "runs").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder / "runs")]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder / "runs"
    subprocess.run(["umount", str(folder / "runs")], check=True)


def fill(disk: Path, left: int) -> None:
    """Fill a disk up to so many bytes."""
    found = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(max(0, found.f_bavail * found.f_frsize - left)))


def says(err: str, what: str) -> bool:
    """Whether standard error ends with one line of an error, of a path in the folder, and has no other."""
    return err.count("Error") == 1 and bool(re.fullmatch(f"Error: [^ ]+: {what}", err.splitlines()[-1]))


@pytest.mark.parametrize("left", [0, 8, 24, 60, 100, 150])
def test_a_disk_that_becomes_full_stops_a_sweep_in_order(
    left: int, folder: Path, small_disk: Path, undisturbed: dict[str, Any]
) -> None:
    """With so many kilobytes left at the beginning."""
    fill(small_disk, left * 1024)
    code, _, err = run(folder, *SWEEP)
    assert code == 1
    assert says(err, "No space left on device")
    assert left_over(folder) == []
    made = {name: one for name, one in outcome(small_disk).items() if Path(name).name not in UNFINISHED}
    assert made == {name: undisturbed[name] for name in made}
    (small_disk / "ballast").unlink()
    is_as(undisturbed, folder, run(folder, *SWEEP))


def test_a_disk_that_becomes_full_in_training_stops_a_sweep_in_order(folder: Path, undisturbed: dict[str, Any]) -> None:
    full = folder / "full"
    process = started(folder, *SWEEP, hook="full slow", FULL=full, RUNS=folder / "runs", SECONDS=0.5)
    wait_for(lambda: in_training(folder))
    full.touch()
    code, _, err = ended(process)
    assert code == 1
    assert says(err, "No space left on device")
    assert left_over(folder) == []
    is_as(undisturbed, folder, run(folder, *SWEEP))


def test_a_temporary_folder_that_is_full_does_no_harm(
    folder: Path, small_disk: Path, undisturbed: dict[str, Any]
) -> None:
    fill(small_disk, 0)
    code, out, err = run(folder, *SWEEP[:-1], "elsewhere", TMPDIR=small_disk)
    assert (code, err) == (0, "")
    assert {**outcome(folder / "elsewhere"), "": out} == undisturbed


@pytest.mark.skipif(not CAN_BE_USER, reason="setpriv is not there")
def test_a_folder_that_cannot_be_written_is_named(folder: Path, undisturbed: dict[str, Any]) -> None:
    assert run(folder, *SWEEP)[0] == 0
    shutil.copytree(folder / "runs", folder / "rest", ignore=shutil.ignore_patterns("finished.json"))
    cell = next(folder.glob("runs/*/config.yaml")).parent.name
    for record in folder.glob(f"rest/{cell}/records/*"):
        record.unlink()
    before = outcome(folder)
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    train = ["train", "--limit", "500", "--set", "arch.hidden=[16]", "--batch-size", "50", "--epochs", "1", "--out"]
    for code, words in (
        (1, SWEEP),
        (2, [*SWEEP[:-1], "rest"]),  # a folder that is given is looked at before anything is done
        (2, [*SWEEP[:-1], "new"]),
        (2, [*train, "runs/new"]),
        (2, [*train, f"runs/{cell}", "--force"]),
        (1, ["attack", f"runs/{cell}", "--eps", "0.1"]),
        (1, ["evaluate", f"rest/{cell}", "--set", "limit=100"]),
        (2, ["audit", f"runs/{cell}", "--limit", "20", "--out", "new"]),
        (1, ["report", "runs"]),
        (1, ["report", "runs", "--format", "csv"]),
    ):
        found, _, err = run(folder, *words, before=AS_USER)
        assert found == code, (words, err)
        expected = (
            r"Error: [^ ]+: Permission denied" if code == 1 else "Error: .* cannot be written: .* is read-only .*"
        )
        assert re.fullmatch(expected, err.splitlines()[-1]), (words, err)
        assert "Traceback" not in err, (words, err)
    for words in (
        ["status", "runs"],
        ["status", "rest"],
        ["list", "runs"],
        ["show", f"runs/{cell}"],
        ["verify", "runs"],
    ):
        code, _, err = run(folder, *words, before=AS_USER, quiet=False)
        assert code == 0, (words, err)
    assert outcome(folder) == before


def test_a_run_folder_that_is_removed_while_its_cell_is_trained_is_made_again(
    folder: Path, undisturbed: dict[str, Any]
) -> None:
    process = started(folder, *SWEEP, hook="slow", SECONDS=0.5)
    run_folder, _ = wait_for(lambda: in_training(folder))
    shutil.rmtree(run_folder, ignore_errors=True)  # a file may be written meanwhile
    is_as(undisturbed, folder, ended(process))


def test_paths_of_all_kinds_and_what_was_removed_of_finished_cells(folder: Path, undisturbed: dict[str, Any]) -> None:
    there = folder / "über alles, 100% [a] 'b'"
    there.mkdir()
    (folder / "runs").symlink_to(there)
    is_as(undisturbed, folder, run(folder, *SWEEP))
    one, two = sorted(path.parent for path in there.glob("*/config.yaml"))
    next(one.glob("records/*")).unlink()
    older = next(two.glob("outcomes/*"))
    os.utime(older, (0, 0))
    is_as(undisturbed, folder, run(folder, *SWEEP))

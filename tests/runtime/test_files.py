"""Files that are whole: after an error or an interruption the old one is there, and nothing else."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from bn_vuln.runtime.files import atomic_path, atomic_write


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def half_write(path: Path, error: BaseException) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        assert path.read_text() == "old"
        raise error


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file.json"
    atomic_write(path, "old")
    with pytest.raises(type(error)):
        half_write(path, error)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.json"]


def test_a_write_that_fails_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.touch()
    for name in (None, ".*"):
        with pytest.raises(OSError, match="disk full") as raised, atomic_path(path) as temporary:
            raise OSError(errno.ENOSPC, "disk full", *([str(temporary)] if name else []))
        assert raised.value.filename == str(path)


def test_a_failing_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    atomic_write(path, "old")

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.json"]


def test_a_failing_first_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_bytes", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        atomic_write(tmp_path / "new" / "file.json", "new")
    assert names(tmp_path / "new") == []


def test_a_temporary_path_keeps_suffix_and_folder(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "file.keras") as temporary:
        temporary.write_bytes(b"content")
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".keras")
    assert names(tmp_path) == ["file.keras"]

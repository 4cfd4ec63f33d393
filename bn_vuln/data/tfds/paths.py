"""The folders of data on this machine, from the environment, which worker processes inherit."""

from __future__ import annotations

import os
from pathlib import Path

from bn_vuln.errors import UsageError

DATA_DIR, MANUAL_DIR = "TFDS_DATA_DIR", "BNVULN_MANUAL_DIR"


def data_dir() -> Path:
    """Where TFDS keeps prepared data sets: $TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    return Path(os.environ.get(DATA_DIR) or "~/tensorflow_datasets").expanduser().absolute()


def manual_dir() -> Path | None:
    """The folder of files downloaded by hand, $BNVULN_MANUAL_DIR, or None. Raises `UsageError` if it is no folder."""
    given = os.environ.get(MANUAL_DIR)
    if not given:
        return None
    folder = Path(given).expanduser().absolute()
    if not folder.is_dir():
        raise UsageError(f"manual folder {folder} (--manual-dir or ${MANUAL_DIR}): no such folder")
    return folder


def downloads() -> Path:
    """Where TFDS keeps downloaded files; those of a data set lie in a folder of its name."""
    return data_dir() / "downloads"


def extracted(name: str) -> Path:
    """Where a data set's archives are unpacked: a folder of its own, because TFDS takes an archive for unpacked
    where the folder has one of that file name, and MNIST's files and Fashion-MNIST's have the same names."""
    return downloads() / "extracted" / name


def manual(name: str) -> Path:
    """Where files downloaded by hand for a data set are looked for: the manual folder (without one TFDS' default), or
    the folder of the data set's name in it."""
    folder = manual_dir() or downloads() / "manual"
    own = folder / name
    return own if own.is_dir() else folder


def manual_advised(name: str) -> Path:
    """Where to put files downloaded by hand: the manual folder that was given, else one that needs no option."""
    return manual_dir() or downloads() / "manual" / name

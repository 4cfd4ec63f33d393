"""Folders of data on this machine, from environment variables, which worker processes inherit."""

from __future__ import annotations

import os
from pathlib import Path

from bn_vuln.errors import UsageError

DATA_DIR, MANUAL_DIR = "TFDS_DATA_DIR", "BNVULN_MANUAL_DIR"


def data_dir() -> Path:
    """The folder of prepared data sets: $TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    return Path(os.environ.get(DATA_DIR) or "~/tensorflow_datasets").expanduser().absolute()


def manual_dir() -> Path | None:
    """The folder of files downloaded by hand, $BNVULN_MANUAL_DIR, or None.

    Raises:
        UsageError: It is no folder.
    """
    given = os.environ.get(MANUAL_DIR)
    if not given:
        return None
    folder = Path(given).expanduser().absolute()
    if not folder.is_dir():
        raise UsageError(f"manual folder {folder} (--manual-dir or ${MANUAL_DIR}): no such folder")
    return folder


def downloads() -> Path:
    """The folder of TFDS' downloads; a data set's files lie in a folder of its name in it."""
    return data_dir() / "downloads"


def manual(name: str) -> Path:
    """The folder in which files downloaded by hand for a data set are looked for.

    It is the folder of the data set's name in the manual folder (without one TFDS' default), else that folder itself.
    """
    folder = manual_dir() or downloads() / "manual"
    subfolder = folder / name
    return subfolder if subfolder.is_dir() else folder


def suggested_manual_dir(name: str) -> Path:
    """The folder to put files downloaded by hand into: the one that was given, else one that needs no option."""
    return manual_dir() or downloads() / "manual" / name

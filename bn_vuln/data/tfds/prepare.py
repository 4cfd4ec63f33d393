"""Preparing a TFDS data set, once, whatever the number of processes that want it."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bn_vuln.data.describe import first_line
from bn_vuln.data.tfds import downloads, paths, prepared
from bn_vuln.errors import BnvulnError
from bn_vuln.runtime import backend


def is_prepared(builder: Any) -> bool:
    """Whether all of a builder's data set is there."""
    return prepared.read(Path(builder.data_dir)) is not None


def prepare(name: str, builder: Any) -> None:
    """Prepare a data set from its files, downloading those that are missing.

    Raises `BnvulnError` in one line: at once where a file is missing and cannot be downloaded, or is not the one that
    TFDS registers; later for whatever else goes wrong. What is left of an interrupted preparation is replaced.
    """
    downloads.require(name, builder)
    with _one_line(f"{name} could not be prepared in {paths.data_dir()}"), _alone(builder.name):
        if not is_prepared(builder):
            _download_and_prepare(builder)


def _download_and_prepare(builder: Any) -> None:
    import tensorflow_datasets

    backend.tensorflow()
    modes = tensorflow_datasets.GenerateMode
    config = tensorflow_datasets.download.DownloadConfig(
        extract_dir=paths.extracted(builder.name),
        manual_dir=paths.manual(builder.name),
        # A folder that is there and not whole would be taken for the data set.
        download_mode=modes.REUSE_CACHE_IF_EXISTS if Path(builder.data_dir).exists() else modes.REUSE_DATASET_IF_EXISTS,
        # What it offers has no registered sha256.
        try_download_gcs=False,
    )
    with _quiet():
        builder.download_and_prepare(download_dir=paths.downloads(), download_config=config)


@contextlib.contextmanager
def _alone(name: str) -> Iterator[None]:
    """Hold the lock of a data set's preparation, waiting for another process that prepares it."""
    path = paths.downloads() / name / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep TFDS off standard output, and its progress bars and warnings off what is no terminal."""
    import tensorflow_datasets

    logger, terminal = logging.getLogger("absl"), sys.stderr.isatty()
    level = logger.level
    logger.setLevel(logging.ERROR)
    if not terminal:
        tensorflow_datasets.disable_progress_bar()
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        try:
            yield
        finally:
            logger.setLevel(level)
            if not terminal:
                tensorflow_datasets.enable_progress_bar()


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Whatever TFDS, TensorFlow or the file system raises, as a `BnvulnError` with the first line of it."""
    try:
        yield
    except BnvulnError:
        raise
    except Exception as error:
        raise BnvulnError(f"{what}: {first_line(error)}") from error

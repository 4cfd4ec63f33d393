"""Preparation of a TFDS data set, done once whatever the number of processes that want it."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from bn_vuln.data.describe import first_line
from bn_vuln.data.tfds import downloads, paths, prepared
from bn_vuln.data.tfds.types import Builder
from bn_vuln.errors import BnvulnError
from bn_vuln.runtime import backend


def is_prepared(builder: Builder) -> bool:
    """Return True if all of a builder's data set is there."""
    return prepared.read(Path(builder.data_dir)) is not None


def prepare(name: str, builder: Builder) -> None:
    """Prepare a data set from its files, downloading those that are missing.

    Rests of an interrupted preparation are replaced.

    Args:
        name: The data set, for the error message.
        builder: Its builder.

    Raises:
        BnvulnError: In one line: at once where a file is missing and cannot be downloaded, or is not the one that TFDS
            registers; later for whatever else goes wrong.
    """
    downloads.require_available(name, builder)
    with _errors_in_one_line(f"{name} could not be prepared in {paths.data_dir()}"), _locked(builder.name):
        if not is_prepared(builder):
            _download_and_prepare(builder)


def _download_and_prepare(builder: Builder) -> None:
    import tensorflow_datasets

    backend.start()
    modes = tensorflow_datasets.GenerateMode
    config = tensorflow_datasets.download.DownloadConfig(
        extract_dir=paths.extracted(builder.name),
        manual_dir=paths.manual(builder.name),
        # TFDS would take an incomplete folder for the data set.
        download_mode=modes.REUSE_CACHE_IF_EXISTS if Path(builder.data_dir).exists() else modes.REUSE_DATASET_IF_EXISTS,
        # Google's prepared copies have no registered sha256.
        try_download_gcs=False,
    )
    with _quiet():
        builder.download_and_prepare(download_dir=paths.downloads(), download_config=config)


@contextlib.contextmanager
def _locked(name: str) -> Iterator[None]:
    """Hold the lock of a data set's preparation, waiting for another process that prepares it."""
    path = paths.downloads() / name / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep TFDS off standard output; show its progress bars on a terminal only, and its warnings never."""
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
def _errors_in_one_line(label: str) -> Iterator[None]:
    """Turn errors of TFDS, TensorFlow or the file system into a `BnvulnError` with their first line."""
    try:
        yield
    except BnvulnError:
        raise
    except Exception as error:
        raise BnvulnError(f"{label}: {first_line(error)}") from error

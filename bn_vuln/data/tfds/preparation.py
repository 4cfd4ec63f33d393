"""Preparation of a TFDS data set, done once whatever the number of processes that want it."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bn_vuln.data.describe import first_line
from bn_vuln.data.tfds import builders, downloads, paths, prepared
from bn_vuln.errors import BnvulnError
from bn_vuln.runtime import backend, lease

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder


def ensure_prepared(name: str) -> DatasetBuilder:
    """Prepare a data set if it is not prepared, downloading the files that are missing.

    Rests of an interrupted preparation are replaced.

    Args:
        name: As `find_builder` takes it.

    Returns:
        The builder of the prepared data set.

    Raises:
        UsageError: As `find_builder`.
        BnvulnError: In one line: at once where a file is missing and cannot be downloaded, or is not the one that TFDS
            registers; later for whatever else goes wrong.
    """
    builder = builders.find_builder(name)
    if _is_prepared(builder):
        return builder
    downloads.require_available(name, builder)
    try:
        folder = paths.downloads() / builder.name
        folder.mkdir(parents=True, exist_ok=True)
        with lease.guarded(folder):  # another process that prepares it is waited for
            if not _is_prepared(builder):
                _download_and_prepare(builder)
    except BnvulnError:
        raise
    except Exception as error:
        raise BnvulnError(f"{name} could not be prepared in {paths.data_dir()}: {first_line(error)}") from error
    return builders.find_builder(name)


def _is_prepared(builder: DatasetBuilder) -> bool:
    return prepared.read(Path(builder.data_dir)) is not None


def _download_and_prepare(builder: DatasetBuilder) -> None:
    import tensorflow_datasets

    backend.start()
    modes = tensorflow_datasets.GenerateMode
    config = tensorflow_datasets.download.DownloadConfig(
        # TFDS takes an archive for unpacked where the folder has one of its name: MNIST and Fashion-MNIST share names.
        extract_dir=paths.downloads() / "extracted" / builder.name,
        manual_dir=paths.manual(builder.name),
        # TFDS would take an incomplete folder for the data set.
        download_mode=modes.REUSE_CACHE_IF_EXISTS if Path(builder.data_dir).exists() else modes.REUSE_DATASET_IF_EXISTS,
        # Google's prepared copies have no registered sha256.
        try_download_gcs=False,
    )
    with _quiet():
        builder.download_and_prepare(download_dir=paths.downloads(), download_config=config)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep TFDS off standard output; show its progress bars on a terminal only, and its warnings never."""
    import tensorflow_datasets

    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        tensorflow_datasets.disable_progress_bar()
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        try:
            yield
        finally:
            logger.setLevel(level)

"""The files that TFDS registers for a data set: which, where they are, and a check of their content. No TensorFlow."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from bn_vuln.data.describe import format_list
from bn_vuln.data.tfds import network, paths
from bn_vuln.errors import BnvulnError

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder


@dataclass(frozen=True)
class File:
    """A file that a data set is made of.

    Attributes:
        name: File name.
        url: Where it is published.
        size: Size in bytes as TFDS registers it.
        sha256: Hex digits as TFDS registers them.
        manual: Its place in the manual folder; None where TFDS would not find it there.
        found: `downloaded`, its path in the manual folder, or None where it would have to be downloaded.
    """

    name: str
    url: str
    size: int
    sha256: str
    manual: Path | None
    found: str | None


def files(builder: DatasetBuilder) -> list[File]:
    """List the files that TFDS registers for a builder: for a config those whose URL names it, if there are such."""
    from tensorflow_datasets.core.download.resource import get_dl_fname

    config = builder.builder_config.name if builder.builder_config else ""
    every = dict(builder.url_infos or {})
    own = {url: info for url, info in every.items() if config and config in url}
    cached, listed = _cached(builder), []
    for url, info in (own or every).items():
        name = info.filename or unquote(urlsplit(url).path).rpartition("/")[2] or url
        # In the manual folder TFDS finds only files whose name it registers, or that it cannot download.
        manual = paths.manual(builder.name) / name if info.filename or by_hand(builder) else None
        found = str(manual) if manual and manual.is_file() else None
        found = "downloaded" if get_dl_fname(url, info.checksum) in cached else found
        listed.append(File(name, url, int(info.size), info.checksum, manual, found))
    return listed


def _cached(builder: DatasetBuilder) -> set[str]:
    """Names of TFDS' finished downloads: each has an .INFO beside it."""
    own = (paths.downloads() / builder.name).rglob("*.INFO")
    return {path.stem for path in (*own, *paths.downloads().glob("*.INFO"))}


def by_hand(builder: DatasetBuilder) -> str | None:
    """TFDS' instructions, in one line, for files that it cannot download; None where there are no such files."""
    return " ".join((builder.MANUAL_DOWNLOAD_INSTRUCTIONS or "").split()).rstrip(". ") or None


def require_available(name: str, builder: DatasetBuilder) -> None:
    """Check, within a second, that a data set can be prepared.

    Every file must be among TFDS' downloads, or in the manual folder and the right one, or on a host that answers.

    Args:
        name: The data set, for the error message.
        builder: Its builder.

    Raises:
        BnvulnError: A file is missing or wrong; in one line that says what to do.
    """
    listed, folder, advised = files(builder), paths.manual(builder.name), paths.suggested_manual_dir(builder.name)
    for file in listed:
        if file.manual and file.manual.is_file():
            _check_content(file.manual, file)
    absent = f"{name} is not prepared in {paths.data_dir()} and"
    if instructions := by_hand(builder):
        if not (folder.is_dir() and any(folder.iterdir())):
            raise BnvulnError(
                f"{absent} has to be downloaded by hand into {advised} (or any folder, with --manual-dir). "
                f"TFDS says: {instructions}"
            )
        return  # TFDS names the others
    missing = [file for file in listed if not file.found]
    if len(missing) < len(listed) and builder.builder_config and builder.builder_config.name not in listed[0].url:
        return  # what is there may be all that this config needs
    urls = [file.url for file in missing]
    homepage = builder.info.homepage  # TFDS' own where a builder names none
    if not listed and not _cached(builder) and "tensorflow.org" not in homepage:
        urls = [homepage]  # no files are registered: their host is most often this one
    unreachable = network.unreachable(urls)
    if not unreachable:
        return
    missing = [file for file in missing if network.host(file.url) in unreachable]
    names = format_list(file.name for file in missing) or "its files"
    if missing and all(file.manual for file in missing):
        remedy = f"put {names} into {advised} (or into any folder, with --manual-dir), or pass"
    else:
        remedy = f"{names} must be downloaded on a machine that has network; pass"
    raise BnvulnError(
        f"{absent} {format_list(unreachable)} cannot be reached: {remedy} --data-dir of a folder where it is prepared"
    )


def _check_content(path: Path, registered: File) -> None:
    with path.open("rb") as file:
        size, sha256 = path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
    if (size, sha256) != (registered.size, registered.sha256):
        raise BnvulnError(
            f"{path} is not the file that TFDS registers: it has {size} bytes and sha256 {sha256}, "
            f"expected {registered.size} bytes and sha256 {registered.sha256}"
        )

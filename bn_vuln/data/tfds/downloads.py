"""The files that a TFDS data set is made of: which, where they are, and a check of their content. No TensorFlow."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from bn_vuln.data.describe import format_list
from bn_vuln.data.tfds import network, paths
from bn_vuln.data.tfds.types import Builder
from bn_vuln.errors import BnvulnError


@dataclass(frozen=True)
class File:
    """A file that a data set is made of.

    Attributes:
        name: File name.
        url: Where it is published.
        size: Size in bytes as TFDS registers it, None where it does not.
        sha256: Hex digits as TFDS registers them, None where it does not.
        cached: The file is among TFDS' downloads.
        manual: The file of its name in the manual folder, if there is one.
    """

    name: str
    url: str
    size: int | None
    sha256: str | None
    cached: bool
    manual: Path | None

    @property
    def host(self) -> str:
        """The host that publishes it."""
        return network.host(self.url)

    @property
    def missing(self) -> bool:
        """True if it would have to be downloaded."""
        return not self.cached and self.manual is None

    @property
    def found(self) -> str | None:
        """`downloaded`, its path in the manual folder, or None where it is missing."""
        return "downloaded" if self.cached else str(self.manual) if self.manual else None


class RequiredFiles(NamedTuple):
    """The files a data set is made of; `by_hand`: it also needs files that TFDS cannot download."""

    files: list[File]
    by_hand: bool


def required_files(builder: Builder) -> RequiredFiles:
    """List the files that a TFDS builder would ask for, in that order, each once."""
    recorder = _DownloadRecorder()
    with contextlib.suppress(Exception), _without_tensorflow():
        beam = "pipeline" in inspect.signature(builder._split_generators).parameters
        # It ends where the builder looks into a file: the files are asked for before.
        builder._split_generators(recorder, **({"pipeline": None} if beam else {}))
    return RequiredFiles([_file(builder, request) for request in recorder.requested.values()], recorder.by_hand)


def registered_files(builder: Builder) -> list[File]:
    """List all files that TFDS registers for a builder, including those that this config of it does not need."""
    return [_file(builder, url) for url in builder.url_infos or {}]


def require_available(name: str, builder: Builder) -> None:
    """Check, within a second, that a data set can be prepared.

    Every file must be among TFDS' downloads, or in the manual folder and the right one, or on a host that answers.

    Args:
        name: The data set, for the error message.
        builder: Its builder.

    Raises:
        BnvulnError: A file is missing or wrong; in one line that says what to do.
    """
    required = required_files(builder)
    for file in registered_files(builder):
        if file.manual is not None and file.size is not None and file.sha256 is not None:
            check_content(file.manual, file.size, file.sha256)
    folder, advised = paths.manual(builder.name), paths.suggested_manual_dir(builder.name)
    if required.by_hand and not (folder.is_dir() and any(folder.iterdir())):
        raise BnvulnError(
            f"{name} is not prepared in {paths.data_dir()} and has to be downloaded by hand into {advised} (or any "
            f"folder, with --manual-dir). TFDS says: {manual_instructions(builder)}"
        )
    missing = [file for file in required.files if file.missing]
    unreachable = network.unreachable(file.url for file in missing)
    if not unreachable:
        return
    missing = [file for file in missing if file.host in unreachable]
    names = format_list(file.name for file in missing)
    # TFDS finds files in the manual folder by the names that it registers.
    if all(file.sha256 for file in missing):
        remedy = f"put {names} into {advised} (or into any folder, with --manual-dir), or pass"
    else:
        remedy = f"{names} must be downloaded on a machine that has network; pass"
    raise BnvulnError(
        f"{name} is not prepared in {paths.data_dir()} and {format_list(unreachable)} cannot be reached: {remedy} "
        "--data-dir of a folder where it is prepared"
    )


def manual_instructions(builder: Builder) -> str:
    """TFDS' instructions for files that it cannot download, in one line."""
    return " ".join((builder.MANUAL_DOWNLOAD_INSTRUCTIONS or "").split()).rstrip(". ")


def check_content(path: Path, size: int, sha256: str) -> None:
    """Check a file's size and hash.

    Args:
        path: The file.
        size: Expected size in bytes.
        sha256: Expected hex digits.

    Raises:
        BnvulnError: The file has another size or hash.
    """
    with path.open("rb") as file:
        found = path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
    if found != (size, sha256):
        raise BnvulnError(
            f"{path} is not the file that TFDS registers: it has {found[0]} bytes and sha256 {found[1]}, "
            f"expected {size} bytes and sha256 {sha256}"
        )


class _DownloadRecorder:
    """Stand-in for TFDS' download manager: records the requests by URL, and downloads nothing."""

    def __init__(self) -> None:
        self.requested: dict[str, object] = {}
        self.by_hand = False

    def download(self, request: object) -> object:
        """A path that does not exist for each URL, in the same structure of dicts and lists."""
        if isinstance(request, dict):
            return {key: self.download(value) for key, value in request.items()}
        if isinstance(request, list | tuple):
            return [self.download(value) for value in request]
        self.requested[_url(request)] = request
        return paths.downloads() / "nothing is here"

    download_and_extract = download

    @property
    def manual_dir(self) -> Path:
        self.by_hand = True
        return paths.downloads() / "nothing is here"


@contextlib.contextmanager
def _without_tensorflow() -> Iterator[None]:
    """Let imports of TensorFlow fail silently, unless it is imported already.

    The import takes seconds, and a builder that needs it has asked for all files by then.
    """
    if "tensorflow" in sys.modules:
        yield
        return
    sys.modules["tensorflow"] = None  # type: ignore[assignment]
    output = io.StringIO()  # TFDS then advises to install TensorFlow
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            yield
    finally:
        sys.modules.pop("tensorflow", None)


def _url(request: object) -> str:
    """The URL of a request, which is the URL itself or TFDS' `Resource`."""
    return str(getattr(request, "url", request))


def _file(builder: Builder, request: object) -> File:
    from tensorflow_datasets.core.download import resource

    url = _url(request)
    info = (builder.url_infos or {}).get(url)
    name = (info.filename if info else None) or unquote(urlsplit(url).path).rpartition("/")[2] or url
    # In the manual folder TFDS finds only files whose name it registers, or that it cannot download.
    by_hand = bool(info and info.filename) or builder.MANUAL_DOWNLOAD_INSTRUCTIONS is not None
    manual = paths.manual(builder.name) / name if by_hand else None
    subfolder = str(getattr(request, "relative_download_dir", ""))
    cached = resource.get_dl_fname(url, info.checksum if info else None)
    folders = [paths.downloads() / builder.name / subfolder, paths.downloads() / subfolder]
    return File(
        name=name,
        url=url,
        size=int(info.size) if info else None,
        sha256=info.checksum if info else None,
        cached=any(resource.is_locally_cached(folder / cached) for folder in folders),
        manual=manual if manual is not None and manual.is_file() else None,
    )

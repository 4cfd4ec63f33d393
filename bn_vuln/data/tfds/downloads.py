"""The files a TFDS data set is made of: which, where they are, whether they are the right ones. No TensorFlow."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from bn_vuln.data.describe import listed
from bn_vuln.data.tfds import network, paths
from bn_vuln.errors import BnvulnError


@dataclass(frozen=True)
class File:
    """A file at `url`. `size` in bytes and `sha256` as TFDS registers them, None where it does not. `cached`: it is
    among TFDS' downloads; `manual`: the file of its name in the manual folder, if there is one."""

    name: str
    url: str
    size: int | None
    sha256: str | None
    cached: bool
    manual: Path | None

    @property
    def host(self) -> str:
        """Where it can be downloaded."""
        return network.host(self.url)

    @property
    def missing(self) -> bool:
        """Whether it would have to be downloaded."""
        return not self.cached and self.manual is None


class Needs(NamedTuple):
    """The `files` a data set is made of; `by_hand`: it also needs files that TFDS cannot download."""

    files: list[File]
    by_hand: bool


def needs(builder: Any) -> Needs:
    """The files that a TFDS builder would ask for, in that order, each once."""
    recorder = _Recorder()
    with contextlib.suppress(Exception), _without_tensorflow():
        # It ends where the builder looks into a file: the files are asked for before.
        builder._split_generators(recorder, **_pipeline(builder))
    return Needs([_file(builder, asked) for asked in recorder.asked.values()], recorder.by_hand)


def registered(builder: Any) -> list[File]:
    """All files that TFDS registers for a builder, whether this config of it needs them or not."""
    return [_file(builder, url) for url in builder.url_infos or {}]


def require(name: str, builder: Any) -> None:
    """Raise `BnvulnError`, in one line and within a second, unless a data set can be prepared.

    Every file must be among TFDS' downloads, or in the manual folder and the right one, or on a host that answers.
    """
    needed = needs(builder)
    for file in registered(builder):
        if file.manual is not None and file.size is not None and file.sha256 is not None:
            check(file.manual, file.size, file.sha256)
    if needed.by_hand:
        _require_by_hand(name, builder)
    missing = [file for file in needed.files if file.missing]
    away = network.unreachable(file.url for file in missing)
    if away:
        raise BnvulnError(_missing_text(name, builder, [f for f in missing if f.host in away], away))


def instructions(builder: Any) -> str:
    """What TFDS says about files that it cannot download, in one line."""
    return " ".join((builder.MANUAL_DOWNLOAD_INSTRUCTIONS or "").split()).rstrip(". ")


def check(path: Path, size: int, sha256: str) -> None:
    """Raise `BnvulnError` unless a file has this size (bytes) and this sha256, in hex digits."""
    with path.open("rb") as file:
        found = path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
    if found != (size, sha256):
        raise BnvulnError(
            f"{path} is not the file that TFDS registers: it has {found[0]} bytes and sha256 {found[1]}, "
            f"expected {size} bytes and sha256 {sha256}"
        )


def _require_by_hand(name: str, builder: Any) -> None:
    folder = paths.manual(builder.name)
    if folder.is_dir() and any(folder.iterdir()):
        return
    raise BnvulnError(
        f"{name} is not prepared in {paths.data_dir()} and has to be downloaded by hand into "
        f"{paths.manual_advised(builder.name)} (or any folder, with --manual-dir). TFDS says: {instructions(builder)}"
    )


def _missing_text(name: str, builder: Any, missing: list[File], away: list[str]) -> str:
    names = listed(file.name for file in missing)
    # TFDS finds files in the manual folder by the names that it registers.
    put = (
        f"put {names} into {paths.manual_advised(builder.name)} (or into any folder, with --manual-dir), or pass"
        if all(file.sha256 for file in missing)
        else f"{names} must be downloaded on a machine that has network; pass"
    )
    where = f"{name} is not prepared in {paths.data_dir()} and {listed(away)} cannot be reached"
    return f"{where}: {put} --data-dir of a folder where it is prepared"


# ---------------------------------------------------------------- what a builder asks for


class _Recorder:
    """Stands in for TFDS' download manager: notes what is asked for, in `asked` by URL, and downloads nothing."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.by_hand = False

    def download(self, wanted: Any) -> Any:
        """A path that does not exist for each URL, in the same structure of dicts and lists."""
        if isinstance(wanted, dict):
            return {key: self.download(value) for key, value in wanted.items()}
        if isinstance(wanted, list | tuple):
            return [self.download(value) for value in wanted]
        self.asked[getattr(wanted, "url", wanted)] = wanted
        return _nowhere()

    download_and_extract = download

    @property
    def manual_dir(self) -> Path:
        self.by_hand = True
        return _nowhere()


def _nowhere() -> Path:
    return paths.downloads() / "nothing is here"


def _pipeline(builder: Any) -> dict[str, None]:
    """The argument that builders with Beam take."""
    return {"pipeline": None} if "pipeline" in inspect.signature(builder._split_generators).parameters else {}


@contextlib.contextmanager
def _without_tensorflow() -> Iterator[None]:
    """Let imports of TensorFlow fail, as long as it is not imported: it takes seconds, and whoever needs it has found
    all files by then."""
    if "tensorflow" in sys.modules:
        yield
        return
    sys.modules["tensorflow"] = None  # type: ignore[assignment]
    try:
        with _silence():  # TFDS then advises to install TensorFlow
            yield
    finally:
        sys.modules.pop("tensorflow", None)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def _file(builder: Any, asked: Any) -> File:
    from tensorflow_datasets.core.download import resource

    url = getattr(asked, "url", asked)
    info = (builder.url_infos or {}).get(url)
    name = (info.filename if info else None) or _basename(url)
    # In the manual folder TFDS finds only files whose name it registers, or that it cannot download.
    by_hand = bool(info and info.filename) or builder.MANUAL_DOWNLOAD_INSTRUCTIONS is not None
    manual = paths.manual(builder.name) / name if by_hand else None
    inside = getattr(asked, "relative_download_dir", "")
    cached = resource.get_dl_fname(url, info.checksum if info else None)
    folders = [paths.downloads() / builder.name / inside, paths.downloads() / inside]
    return File(
        name=name,
        url=url,
        size=int(info.size) if info else None,
        sha256=info.checksum if info else None,
        cached=any(resource.is_locally_cached(folder / cached) for folder in folders),
        manual=manual if manual is not None and manual.is_file() else None,
    )


def _basename(url: str) -> str:
    return unquote(urlsplit(url).path).rpartition("/")[2] or url

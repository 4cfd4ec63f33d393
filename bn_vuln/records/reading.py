"""Reading of files that may be damaged: every error becomes one that names the file, the reason and the remedy."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

import numpy as np
from pydantic import ValidationError

from bn_vuln.errors import BnvulnError
from bn_vuln.runtime import limits
from bn_vuln.typing import AnyArray, Mask

Result = TypeVar("Result")


@dataclass(frozen=True)
class Damaged:
    """A file that cannot be used: damaged, or of another run.

    Attributes:
        path: The file.
        reason: What is wrong with it, in one line.
        remedy: What to do about it, in one line.
        cell_id: The name of the run folder, or the id of the cell of a packed store; "" where it is of none.
    """

    path: Path
    reason: str
    remedy: str
    cell_id: str = ""

    @property
    def text(self) -> str:
        """File, reason and remedy in one line."""
        return f"{self.path}: {self.reason}; {self.remedy}"


class DamagedError(BnvulnError):
    """A file that cannot be used is needed."""

    def __init__(self, damaged: Damaged) -> None:
        super().__init__(damaged)
        self.damaged = damaged

    def __str__(self) -> str:
        return self.damaged.text


class DamageLog:
    """The damaged files that a store has met: what is in them counts as missing."""

    def __init__(self) -> None:
        self.damaged: list[Damaged] = []

    def note(self, damaged: Damaged) -> None:
        """Add a damaged file, once."""
        if damaged not in self.damaged:
            self.damaged.append(damaged)

    def attempt(self, read: Callable[[], Result]) -> Result | None:
        """Return what is read; None, and a note, where the file is damaged."""
        try:
            return read()
        except DamagedError as error:
            self.note(error.damaged)
            return None


def describe_damaged(damaged: Iterable[Damaged], most: int = 10) -> list[str]:
    """Return a line for each damaged file; of more than `most`, the number of the others."""
    lines = [one.text for one in damaged]
    rest = len(lines) - most
    return lines if rest <= 0 else [*lines[:most], f"and {rest} more"]


def parse_json(text: bytes) -> object:
    """Return what JSON says.

    Raises:
        ValueError: It is none, too long or too deep, or an object has a key twice, or a number is NaN or infinite, or a
            text is no Unicode.
    """
    try:
        limits.check_size(len(text), limits.TEXT_BYTES)
        data = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_reject_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    limits.check_depth(text, data)
    if b"\\u" in text:
        json.dumps(data, ensure_ascii=False).encode()  # half a surrogate pair cannot be written again
    return data


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the key {Counter(key for key, _ in pairs).most_common(1)[0][0][:80]!r} twice")
    return found


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


class ParsedArrays(Mapping[str, AnyArray]):
    """The arrays of an .npz file, read one by one as they are asked for; `ValueError` says why one cannot be."""

    def __init__(self, content: bytes) -> None:
        """Raise `ValueError` for a damaged file, a name that is there twice or a path, or far more data than bytes."""
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                limits.check_archive(archive)
            self._archive = np.load(io.BytesIO(content), allow_pickle=False)
            self._names = dict.fromkeys(self._archive.files)
        except Exception as error:  # zipfile, zlib and NumPy raise many kinds; all of them mean the same to the user
            raise ValueError(first_line(error)) from None

    @classmethod
    def none(cls) -> ParsedArrays:
        """Return those of an empty archive."""
        content = io.BytesIO()
        zipfile.ZipFile(content, "w").close()
        return cls(content.getvalue())

    def bits(self, name: str, n: int) -> Mask:
        """Return packed bits as bool [n]. Raise `ValueError` where they are not of n examples."""
        size = (n + 7) // 8
        with contextlib.suppress(Exception):  # then the other way says why
            content = self._archive.zip.read(f"{name}.npy")
            header = _header_of_bytes(size)
            if len(content) == len(header) + size and content.startswith(header):
                return np.unpackbits(np.frombuffer(content, np.uint8, size, len(header)), count=n).astype(bool)
        return unpack_bits(self[name], n)

    def __getitem__(self, name: str) -> AnyArray:
        try:
            limits.check_array(self._archive.zip, name)
            array = self._archive[name]
        except Exception as error:  # as above
            raise ValueError(first_line(error)) from None
        if not isinstance(array, np.ndarray):  # the bytes of a member that is none
            raise ValueError(f"{name} is no array")
        return array

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@functools.lru_cache(maxsize=64)
def _header_of_bytes(size: int) -> bytes:
    """What stands before uint8 [size] in an .npy file, which NumPy takes longer to read than the bytes."""
    content = io.BytesIO()
    np.lib.format.write_array(content, np.zeros(size, np.uint8))
    return content.getvalue()[:-size]


def unpack_bits(bits: AnyArray, n: int) -> Mask:
    """Return packed bits as bool [n]. Raises `ValueError` where they are not of n examples."""
    if bits.dtype != np.uint8 or bits.shape != ((n + 7) // 8,):
        raise ValueError(f"expected the outcomes of {n} examples, received {bits.dtype} {list(bits.shape)}")
    return np.unpackbits(bits, count=n).astype(bool)


def first_line(error: Exception) -> str:
    """Return the message of an error in one line; of several mistakes in a record, the first."""
    if isinstance(error, ValidationError):
        first, *others = error.errors()
        where, more = ".".join(map(str, first["loc"])), f" (and {len(others)} more)" if others else ""
        message = first["msg"].replace("Input should be", "expected").replace("Value error, ", "")
        return f"{where}: {message}{more}"[:200] if where else f"{message}{more}"[:200]
    text = str(error.strerror or error) if isinstance(error, OSError) else str(error)
    return " ".join(text.split())[:200] or type(error).__name__

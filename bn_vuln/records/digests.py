"""Digests: the sha256 of what a file holds, written into it and checked when it is read. Older files have none.

They are of the content, not of the bytes: JSON with sorted keys, arrays by name, type, shape and values. They find
damage and mix-ups; whoever can write a file can write its digest, too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from bn_vuln import config
from bn_vuln.records.reading import ParsedArrays
from bn_vuln.runtime.files import atomic_path
from bn_vuln.runtime.limits import read_file
from bn_vuln.typing import AnyArray, Arrays, Plain

KEY = "sha256"  # of an object in JSON, and of an .npz file
ARRAYS_KEY = "arrays_sha256"  # of the arrays beside a record, which it has as well
_FIRST_LINE = re.compile(rb"# sha256: ([0-9a-f]{64})\n")


def of_text(text: str) -> str:
    """Return the digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def of_file(path: Path) -> str:
    """Return the digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_plain(data: object) -> str:
    """Return the digest of plain data, which does not depend on the order of keys."""
    return of_text(json.dumps(data, sort_keys=True, separators=(",", ":")))


def of_arrays(arrays: Mapping[str, AnyArray]) -> str:
    """Return the digest of arrays: of their names, types, shapes and values."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        found.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def _check(found: str, expected: str) -> None:
    if found != expected:
        raise ValueError(f"changed since it was written: the sha256 of its content is {found[:12]}..., "
                         f"not {expected[:12]}...")  # fmt: skip


# ---------------------------------------------------------------- JSON


def with_digest(data: Plain) -> Plain:
    """Return an object of JSON with its digest, which comes last."""
    return {**data, KEY: of_plain(data)}


def without_digest(data: object) -> object:
    """Return what JSON says without its digest, if it has one. Raises `ValueError` where it is that of another."""
    if not isinstance(data, dict) or KEY not in data:
        return data
    content = {name: value for name, value in data.items() if name != KEY}
    _check(of_plain(content), str(data[KEY]))
    return content


def of_record(data: object) -> tuple[object, str | None]:
    """Return what a record says without the digest of the arrays beside it, and this digest, if it has one."""
    if not isinstance(data, dict) or ARRAYS_KEY not in data:
        return data, None
    return {name: value for name, value in data.items() if name != ARRAYS_KEY}, str(data[ARRAYS_KEY])


# ---------------------------------------------------------------- YAML


def to_yaml(model: BaseModel) -> str:
    """Return a config as a file of a results folder has it: YAML, below a line with its digest.

    The digest comes first: what is cut off is missed wherever the cut is.
    """
    text = config.to_yaml(model)
    return f"# sha256: {of_text(text)}\n{text}"


def check_yaml(path: Path) -> None:
    """Check a file against the digest in its first line, if there is one.

    Raises:
        OSError: It cannot be read.
        ValueError: It was changed.
    """
    content = read_file(path)
    first = _FIRST_LINE.match(content)
    if first and hashlib.sha256(content[first.end() :]).hexdigest() != first[1].decode():
        raise ValueError(
            "changed since it was written: its first line has another sha256 (if you changed it, remove that line)"
        )


# ---------------------------------------------------------------- arrays


def write_arrays(path: Path, arrays: Mapping[str, AnyArray], *, compressed: bool = True) -> str:
    """Write an .npz file atomically, with its digest, which is returned."""
    digest = of_arrays(arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    save = np.savez_compressed if compressed else np.savez
    with atomic_path(path) as temporary:
        save(temporary, **{**arrays, KEY: np.array(digest)})  # type: ignore[arg-type]
    return digest


def read_arrays(path: Path, expected: str | None = None) -> Arrays:
    """Read an .npz file.

    Args:
        path: The file.
        expected: The digest that another file says it has; None where none does.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged, or has another digest.
    """
    return checked_arrays(read_file(path), expected)


def checked_arrays(content: bytes, expected: str | None = None) -> Arrays:
    """Return the arrays of an .npz file, of its bytes. See `read_arrays`."""
    arrays = dict(ParsedArrays(content))
    own = arrays.pop(KEY, None)
    found = of_arrays(arrays) if own is not None or expected is not None else ""
    for other in (own, expected):
        if other is not None:
            _check(found, str(other))
    return arrays

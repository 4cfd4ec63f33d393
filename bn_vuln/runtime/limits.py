"""Limits of what is read from files that another person may have made: texts, archives and names. See SECURITY.md.

Every function raises `ValueError`, in one line; those who call it name the file.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import stat
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np

from bn_vuln.errors import BnvulnError
from bn_vuln.runtime.memory import SHARE, machine_memory

YAML_BYTES, TEXT_BYTES = 2**19, 2**24  # of a config; of a JSON text, or a line of one, and of lists of names
DEPTH = 100  # of what stands in each other, in YAML and JSON
FREE_BYTES, MAX_RATIO = 2**26, 200  # what is compressed may expand to the larger of this, and of this times its bytes
MODEL_OBJECTS, HDF5_OBJECTS = 10_000, 100_000  # layers and settings of a model; groups and arrays of its weights


def read_file(path: Path, most: float | None = None) -> bytes:
    """Return the bytes of a regular file; a pipe or a device, which may never end, is not opened.

    Args:
        path: The file, or a link to it.
        most: Bytes that it may have. None: half of the machine's memory.

    Raises:
        OSError: It cannot be read.
        ValueError: It is larger.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError("a directory, not a file" if stat.S_ISDIR(found.st_mode) else "no regular file")
    check_size(found.st_size, SHARE * machine_memory() if most is None else most)
    return path.read_bytes()


def check_size(n_bytes: int, most: float) -> None:
    """Refuse what has more bytes than are expected."""
    if n_bytes > most:
        raise ValueError(f"{n_bytes:,} bytes: expected at most {int(most):,}")


def load_json(text: bytes | str) -> Any:
    """Return what JSON says, of at most `TEXT_BYTES` and `DEPTH`."""
    check_size(len(text), TEXT_BYTES)
    try:
        data = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    check_depth(text, data)
    return data


def check_depth(text: bytes | str, data: object) -> None:
    """Refuse the data of a JSON text where they are nested deeper than `DEPTH`."""
    opening = (b"[", b"{") if isinstance(text, bytes) else ("[", "{")
    level, depth = [data], 0
    while level and sum(map(text.count, opening)) > DEPTH:  # type: ignore[arg-type]
        inner = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level, depth = [value for values in inner for value in values], depth + 1
        if depth > DEPTH + 1:
            raise ValueError("nested too deeply")


def is_plain_name(name: str) -> bool:
    """Return True for a name that stands for a file in its folder: no path, no `..`, nothing that is not printed."""
    return name not in ("", ".", "..") and len(name) <= 255 and name.isprintable() and not {*name} & {*"/\\"}


def check_names(names: Iterable[str]) -> None:
    """Refuse names of an archive's members that stand twice, or lead out of it."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{name} twice")
        seen.add(name)
        if not all(map(is_plain_name, name.removesuffix("/").split("/"))):
            raise ValueError(f"{name[:80]!r} is no plain name of a member")


def check_expansion(stored: int, expanded: int) -> None:
    """Refuse bytes that expand to far more than what people compress does, or to half of the machine's memory."""
    if expanded > max(FREE_BYTES, MAX_RATIO * stored):
        raise ValueError(f"{stored:,} bytes expand to {expanded:,}")
    check_size(expanded, SHARE * machine_memory())


def gunzip(content: bytes) -> bytes:
    """Return what gzip has packed."""
    most = max(FREE_BYTES, MAX_RATIO * len(content))
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        found = file.read(most + 1)
    check_expansion(len(content), len(found))
    return found


def check_archive(archive: zipfile.ZipFile) -> None:
    """Refuse a zip archive by what it declares: names, kinds of compression, sizes; no member is read."""
    members = archive.infolist()
    check_names(member.filename for member in members)
    odd = [one.filename for one in members if one.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]
    if odd:
        raise ValueError(f"{odd[0]} is neither stored nor deflated")
    assert archive.fp is not None
    check_expansion(archive.fp.seek(0, os.SEEK_END), sum(member.file_size for member in members))


def check_array(archive: zipfile.ZipFile, name: str) -> int:
    """Compare what the header of an array in a file declares with the bytes that are there.

    Args:
        archive: An .npz file.
        name: That of an array in it, without .npy.

    Returns:
        The bytes of the array; 0 where NumPy refuses it, or it is none.
    """
    member = next((one for one in (f"{name}.npy", name) if one in archive.NameToInfo), name)
    with archive.open(member) as file:
        if file.read(6) != b"\x93NUMPY":
            return 0
        version = tuple(file.read(2))
        headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in headers:
            raise ValueError(f"{name}: expected an array of numbers or texts")
        shape, _, dtype = headers[version](file)
        if dtype.hasobject:
            return 0
        n, there = math.prod(map(int, shape)), archive.getinfo(member).file_size - file.tell()
        declared = n * dtype.itemsize
    if any(size < 0 for size in shape) or declared != there or (n and not dtype.itemsize):
        raise ValueError(f"{name}: {dtype} {list(shape)} are {declared:,} bytes, but {there:,} are there")
    return declared


# ---------------------------------------------------------------- models of Keras


def check_model(path: Path) -> int:
    """Refuse a model's file, or one of weights, by what it declares, before Keras reads it.

    Args:
        path: A `.keras` or HDF5 file, or the folder of an unpacked `.keras` file.

    Returns:
        The bytes of all its arrays.

    Raises:
        BnvulnError: In one line, which names the file.
    """
    try:
        return _check_model(path)
    except Exception as error:  # zipfile, zlib and h5py raise many kinds; all of them mean the same to the user
        raise BnvulnError(f"{path}: refused, or damaged: {' '.join(str(error).split())[:200]}") from None


def _check_model(path: Path) -> int:
    if path.is_dir():
        _check_config(read_file(path / "config.json", TEXT_BYTES))
        weights = path / "model.weights.h5"
        return check_hdf5(weights, weights.stat().st_size) if weights.is_file() else 0
    if not zipfile.is_zipfile(path):
        return check_hdf5(path, path.stat().st_size)
    with zipfile.ZipFile(path) as archive:
        check_archive(archive)
        sizes = {member.filename: member.file_size for member in archive.infolist()}
        if "config.json" in sizes:
            check_size(sizes["config.json"], TEXT_BYTES)
            _check_config(archive.read("config.json"))
        if "model.weights.h5" not in sizes:
            return 0
        return check_hdf5(io.BytesIO(archive.read("model.weights.h5")), sizes["model.weights.h5"])


def _check_config(text: bytes) -> None:
    """Refuse the architecture of a model, in JSON, that is nested too deeply or of too many objects."""
    load_json(text)
    objects = text.count(b'"class_name"')
    if objects > MODEL_OBJECTS:
        raise ValueError(f"its architecture has {objects:,} objects: expected at most {MODEL_OBJECTS:,}")


def check_hdf5(file: Path | IO[bytes], stored: int) -> int:
    """Refuse an HDF5 file that leads to other files, or whose arrays are far larger than it.

    Args:
        file: The file; no array of it is read.
        stored: Its bytes.

    Returns:
        The bytes of all its arrays.
    """
    import h5py

    declared, seen = 0, set()
    with h5py.File(file, "r") as root:
        waiting: list[Any] = [root]
        while waiting:
            one = waiting.pop()
            if (place := h5py.h5o.get_info(one.id).addr) in seen:
                continue
            seen.add(place)
            if len(seen) > HDF5_OBJECTS:
                raise ValueError(f"expected at most {HDF5_OBJECTS:,} groups and arrays")
            _check_attributes(one, stored)
            if isinstance(one, h5py.Group):
                for name in one:
                    if not isinstance(one.get(name, getlink=True), h5py.HardLink):
                        raise ValueError(f"{name[:80]!r} is a link to another place")
                    waiting.append(one[name])
            elif isinstance(one, h5py.Dataset):
                if one.external or one.is_virtual or one.dtype.hasobject:
                    raise ValueError(f"{one.name[:80]!r} is no array of numbers in this file")
                shapes = (one.shape or (), one.chunks or ())
                declared += max(map(math.prod, shapes)) * one.dtype.itemsize
    check_expansion(stored, declared)
    return declared


def _check_attributes(one: Any, stored: int) -> None:
    """Refuse attributes of an HDF5 object that are too large; the architecture of a model is one."""
    import h5py

    for name in one.attrs:
        attribute = one.attrs.get_id(name)
        length = math.prod(attribute.shape)
        is_text = h5py.check_string_dtype(attribute.dtype) is not None
        size = length * (stored if attribute.dtype.hasobject else attribute.dtype.itemsize)
        if size > max(TEXT_BYTES, MAX_RATIO * stored) or (attribute.dtype.hasobject and not is_text):
            raise ValueError(f"the attribute {name[:80]!r} is too large, or no text")
        if name == "model_config" and is_text and length == 1:
            config = one.attrs[name]
            _check_config(config if isinstance(config, bytes) else str(config).encode())

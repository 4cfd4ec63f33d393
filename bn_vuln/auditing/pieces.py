"""What of an audit is done already, in small files, so that one that was interrupted goes on; and its time."""

from __future__ import annotations

import base64
import io
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bn_vuln.config import digest
from bn_vuln.records import ParsedArrays, digests, read_file
from bn_vuln.runtime.files import atomic_write
from bn_vuln.typing import Arrays, Mask, Plain

FOLDER = "pieces"


class Clock:
    """The time of an audit, over all runs that it was resumed in."""

    def __init__(self, budget: float | None) -> None:
        """Start it; `budget` is what the audit may take, in seconds, None as many as it needs."""
        self.budget, self.before = budget, 0.0
        self._begun = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds that the audit took, with those of earlier runs."""
        return self.before + time.monotonic() - self._begun

    @property
    def left(self) -> float:
        """Seconds that are left of the budget; infinite without one."""
        return math.inf if self.budget is None else self.budget - self.spent


class Pieces:
    """Finished pieces of the audit of one model, by name."""

    def __init__(self, folder: Path | None, identity: Plain, clock: Clock) -> None:
        """Find what is done.

        Args:
            folder: of the audit; None: nothing is kept.
            identity: all that changes a number: pieces of another one are left alone.
            clock: gets the time of what was done before.
        """
        self._folder = None if folder is None else folder / FOLDER / digest(identity)
        self._clock = clock

    def get(self, name: str, compute: Callable[[], Plain]) -> Plain:
        """Return a piece, computed now unless it was before. A damaged file counts as missing."""
        path = None if self._folder is None else self._folder / f"{digest({'piece': name})}.json"
        if path is not None and (kept := read(path)) is not None:
            self._clock.before += kept["seconds"]
            return dict(kept["value"])
        begun = time.monotonic()
        value = compute()
        seconds = time.monotonic() - begun
        if path is not None:
            kept = json.loads(json.dumps({"of": _of(path), "name": name, "seconds": seconds, "value": value}))
            atomic_write(path, json.dumps(digests.with_digest(kept)) + "\n")
        return value


def read(path: Path) -> Plain | None:
    """Return a piece of a file; None where there is none, or it is damaged, or the file of another piece."""
    try:
        data = json.loads(read_file(path))
        kept = digests.without_digest(data)
    except (OSError, ValueError, RecursionError):
        return None
    return kept if isinstance(kept, dict) and kept is not data and kept.get("of") == _of(path) else None


def _of(path: Path) -> str:
    """What a piece is of: the audit, and its name."""
    return f"{path.parent.name}/{path.stem}"


def packed(mask: Mask) -> str:
    """Return outcomes as text, a digit each."""
    return "".join("1" if one else "0" for one in mask)


def unpacked(text: str) -> Mask:
    """Return outcomes of text, bool [n]."""
    return np.array([one == "1" for one in text], bool)


def packed_arrays(arrays: Arrays) -> str:
    """Return arrays as text: their .npz file in base 64."""
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return base64.b64encode(file.getvalue()).decode()


def unpacked_arrays(text: str) -> Arrays:
    """Return arrays of text."""
    return dict(ParsedArrays(base64.b64decode(text)))

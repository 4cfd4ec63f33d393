"""The machine's memory, and a refusal of what it does not hold before it is read."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from bn_vuln.errors import UsageError

SHARE = 0.5  # of the memory, that arrays may take
SHARE_VARIABLE = "BNVULN_MEMORY_SHARE"  # of the machine's memory, that this process has where others work beside it


def machine_memory() -> float:
    """Return the memory in bytes: that of the machine or of the container, and of it the share of this process."""
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError, ValueError):  # where there is no limit it says "max"
        memory = min(memory, float(Path("/sys/fs/cgroup/memory.max").read_text()))
    return memory * float(os.environ.get(SHARE_VARIABLE, "1"))


def check_memory(n_bytes: float, what: str, remedy: str) -> None:
    """Refuse arrays that take more than half of the machine's memory.

    Args:
        n_bytes: what they take.
        what: what they are, for the message.
        remedy: what to do instead.

    Raises:
        UsageError: They take more.
    """
    memory = machine_memory()
    if n_bytes > SHARE * memory:
        raise UsageError(
            f"{what} take {n_bytes / 1e9:,.1f} GB at once, more than half of this machine's {memory / 1e9:,.1f} GB: "
            f"{remedy}"
        )

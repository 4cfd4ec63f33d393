"""The machine's memory, and a refusal of what it does not hold before it is read."""

from __future__ import annotations

import os

from bn_vuln.errors import UsageError

SHARE = 0.5  # of the memory, that arrays may take


def machine_memory() -> float:
    """Return the machine's memory in bytes."""
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


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

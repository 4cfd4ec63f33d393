"""How the cells of an experiment are run. It changes no result, and so it is in no identity and no record."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field

from bn_vuln.config.types import Count, Frozen, NonNegative, reject_if

Item = TypeVar("Item")


def _check_shard(text: str) -> str:
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    reject_if((not found or not 1 <= int(found[1]) <= int(found[2]), "expected I/N such as 1/8, with 1 <= I <= N"))
    return text


class Sweep(Frozen):
    """Which cells of an experiment a command runs, by which engine, and what each cell gets."""

    engine: Literal["local", "ray"] = Field(
        "local", description="Runner of the cells: processes of this machine, or Ray (extra ray)."
    )
    jobs: Count | None = Field(
        None, description="Number of cells at a time. Null: 1; with ray, as many as there are GPUs or else hosts."
    )
    shard: Annotated[str, AfterValidator(_check_shard)] = Field(
        "1/1", description="I/N: run every N-th cell from the I-th on, as one of N commands, e.g. of a job array."
    )
    ray_address: str | None = Field(
        None, description="Address of a Ray cluster; auto: the one of this host. Null: none, Ray is started here."
    )
    cpus_per_cell: Count | None = Field(None, description="CPU cores of a cell. Null: an equal share.")
    gpus_per_cell: NonNegative | None = Field(
        None,
        description="GPUs of a cell, below 1 to share one. Null: an equal share, at most 1.",
    )

    deterministic: bool = Field(False, description="Equal commands on one machine give equal bits; may be slower.")

    def cells(self, items: Sequence[Item]) -> list[Item]:
        """Return the items of the shard."""
        own, of = map(int, self.shard.split("/"))
        return list(items[own - 1 :: of])


ALL_CELLS = Sweep()

"""Nets of this package on the same data set, with which an audited model is compared."""

from __future__ import annotations

import functools
import json
from importlib import resources

from bn_vuln.auditing.findings import Reference
from bn_vuln.typing import Plain

FILE = "references.json"  # made by tools/audit_references.py


@functools.cache
def _stored() -> Plain:
    return dict(json.loads((resources.files("bn_vuln.auditing") / FILE).read_text(encoding="utf-8")))


def references(dataset: str, ord: str) -> tuple[Reference, ...]:
    """Return the nets on a data set, measured with the same curve; empty where there are none.

    Args:
        dataset: name that identifies the data.
        ord: norm of the attack.
    """
    found = _stored().get(dataset, [])
    return tuple(Reference.model_validate(one) for one in found if one["ord"] == ord)

"""Ids: hashes of what trains a model and of what is done to it at test time.

Paths, devices, versions and numbers of jobs are never part of them. Published ids stay, whatever is added or renamed
(`Frozen` in config/types.py says how).
"""

from __future__ import annotations

import hashlib
import json

from pydantic import BaseModel

from bn_vuln.typing import Plain

ID_LENGTH = 12
IDENTITY = {"purpose": "identity"}  # the serialization context of what an id hashes


def canonical_json(data: object) -> str:
    """Return JSON with sorted keys and no spaces: one text for one content. NaN and infinities are refused."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(data: object) -> str:
    """Return the id of plain data: the first 12 hex digits of the sha256 of its canonical JSON."""
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()[:ID_LENGTH]


def identity_of(model: BaseModel) -> Plain:
    """Return the plain dict whose hash is the id of a config object.

    It has every field, but for paths and for fields that were added after results had been published and stand at
    their default.
    """
    return model.model_dump(mode="json", context=IDENTITY)


def perturbation_identity(evaluation: BaseModel, dataset: str, perturbation: BaseModel) -> Plain:
    """Return what identifies a perturbation or a measurement: {dataset, split, limit, bn_statistics, kind, ...}.

    Args:
        evaluation: The config of where it is evaluated.
        dataset: The canonical name of the data set the model was trained on; it stands in where the evaluation names
            none.
        perturbation: The config of the perturbation or measurement, every field of which is part of the identity.
    """
    fields = identity_of(evaluation)
    return {**fields, "dataset": fields["dataset"] or dataset, **identity_of(perturbation)}

"""ImageNet: its classes and the constants of standardization of models trained on it."""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import replace
from pathlib import Path

from bn_vuln.data.constants import IMAGENET
from bn_vuln.data.info import DatasetInfo
from bn_vuln.errors import BnvulnError


@functools.cache
def classes() -> tuple[str, ...]:
    """Return the 1000 classes as WordNet ids, n01440764 first, in the order of every model's outputs."""
    return _lines("labels.txt")


@functools.cache
def validation_classes() -> tuple[str, ...]:
    """Return the class of each of the 50,000 validation images, ILSVRC2012_val_00000001 first."""
    return _lines("validation_labels.txt")


def _lines(name: str) -> tuple[str, ...]:
    """Read a list that TFDS has in its package, without starting it."""
    spec = importlib.util.find_spec("tensorflow_datasets")
    path = Path(str(spec.origin)).parent / "datasets" / "imagenet2012" / name if spec else None
    if path is None or not path.is_file():
        raise BnvulnError(f"tensorflow-datasets has no list {name} of ImageNet: expected version 4.9.10")
    return tuple(path.read_text(encoding="utf-8").split())


def info() -> DatasetInfo:
    """Return the info of ImageNet as models are evaluated on it: images of 224 pixels."""
    return replace(IMAGENET, shape=(224, 224, 3), classes=classes())

"""The result of one evaluation: the record, and the arrays behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from bn_vuln import records
from bn_vuln.errors import BnvulnError
from bn_vuln.records import Record
from bn_vuln.runtime.files import atomic_path
from bn_vuln.typing import Arrays, Floats, Images, Index, Labels, Mask


@dataclass(frozen=True)
class Result:
    """A record with the examples behind it.

    Attributes:
        record: the accuracy, its identity and its flags.
        correct: bool [n], True where the image is classified correctly.
        images: the images that were measured, float32 pixels [n, height, width, channels].
        labels: the true classes, int32 [n].
        min_eps: float64 [n], of attacks that keep the first success: the smallest eps at which the example is
            misclassified, 0 where it is misclassified when clean, infinite where no eps suffices. Of minimum-norm
            attacks the distance, likewise. None of all others.
        arrays: the arrays that lie beside the record.
        positions: of an eval set that was measured in parts, the examples whose images were kept; None: all.
    """

    record: records.Record
    correct: Mask
    images: Images
    labels: Labels
    min_eps: Floats | None = None
    arrays: Arrays = field(default_factory=dict)
    positions: Index | None = None

    def __repr__(self) -> str:
        """A line without the arrays."""
        record = self.record
        return f"Result({record.kind}: accuracy {record.accuracy:.4f} of {record.n}, {_flags(record)})"

    def with_flags(self, flags: tuple[records.Flag, ...]) -> Result:
        """Return the same with further flags in its record."""
        record = self.record.model_copy(update={"flags": (*self.record.flags, *flags)})
        return replace(self, record=record)


@dataclass(frozen=True)
class AttackResult:
    """What an attack found.

    Attributes:
        records: by name: `clean`, the attack at each smaller eps of a grid, and the attack by its own name.
        results: by the same names, those that were measured now rather than read.
        name: the attack.
        folder: where the records are kept; None: nowhere.
    """

    records: Mapping[str, Record]
    results: Mapping[str, Result]
    name: str
    folder: Path | None = None

    def __repr__(self) -> str:
        """Accuracies and flags, without the arrays."""
        names = ["clean", *(name for name in self.records if name != "clean")]
        parts = [f"{name} {self.records[name].accuracy:.4f}" for name in names if name in self.records]
        return f"AttackResult({', '.join(parts)} of {self.record.n}, {_flags(self.record)})"

    @property
    def record(self) -> Record:
        """The record of the attack, at the largest eps."""
        return self.records[self.name]

    @property
    def clean(self) -> Result:
        """The result on the clean images."""
        return self._measured("clean")

    @property
    def attacked(self) -> Result:
        """The result of the attack, at the largest eps."""
        return self._measured(self.name)

    @property
    def correct(self) -> Mask:
        """Bool [n], True where the image is still classified correctly."""
        return self.attacked.correct

    @property
    def images(self) -> Images:
        """The attacked images, float32 pixels [n, height, width, channels]."""
        return self.attacked.images

    @property
    def labels(self) -> Labels:
        """The true classes, int32 [n]."""
        return self.attacked.labels

    @property
    def min_eps(self) -> Floats | None:
        """The smallest eps of each example, or its distance, as in `Result`."""
        return self.attacked.min_eps

    def save(self, path: Path) -> None:
        """Write a file of NumPy: the images before (`x`) and after (`x_adv`), in pixels, and what is known of each.

        `smallest_eps` is the smallest eps at which it is adversarial, or its distance: 0 where the clean image is
        misclassified, infinite where no adversarial image was found.
        """
        arrays: Arrays = {"x": self.clean.images, "x_adv": self.images, "y": self.labels}
        arrays |= {"clean_correct": self.clean.correct, "correct": self.correct}
        arrays |= {} if self.min_eps is None else {"smallest_eps": self.min_eps}
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]

    def _measured(self, name: str) -> Result:
        if name not in self.results:
            raise BnvulnError(f"{name} was recorded before in {self.folder}, without images: attack with force=True")
        return self.results[name]


def _flags(record: Record) -> str:
    """The numbers of the checks that tripped."""
    return "flags: " + (", ".join(f"check {flag.check}" for flag in record.flags) or "none")

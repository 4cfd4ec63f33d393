"""The result of one evaluation: the record, and the arrays behind it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from bn_vuln import records
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

    def with_flags(self, flags: tuple[records.Flag, ...]) -> Result:
        """Return the same with further flags in its record."""
        record = self.record.model_copy(update={"flags": (*self.record.flags, *flags)})
        return replace(self, record=record)

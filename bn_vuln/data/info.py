"""Info of a data set: shape, classes, and the constants of standardization."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from bn_vuln.typing import Plain


@dataclass(frozen=True)
class DatasetInfo:
    """Shape, classes, sizes, and standardization constants of a data set.

    Attributes:
        name: The name that identifies the data: npz:DIGEST or folder:DIGEST for user data.
        shape: (height, width, channels) as published.
        classes: Names of the classes, in the order of their numbers.
        mean: Mean of the training images per channel, in pixels [0, 1].
        std: Standard deviation of the training images per channel, in pixels [0, 1].
        sizes: Number of examples in `train` (validation examples included) and `test`, as published.
    """

    name: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sizes: dict[str, int]

    def plain(self) -> Plain:
        """The fields as JSON has them, with lists for tuples."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_plain(cls, plain: Plain) -> DatasetInfo:
        """The info that `plain` was made of."""
        fields: Plain = {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}
        return cls(**fields)

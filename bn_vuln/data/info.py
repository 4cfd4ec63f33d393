"""Info of a data set: shape, classes, and the constants of standardization."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import overload

from bn_vuln.typing import Plain


class LazyNumbers(Sequence[float]):
    """A known number of numbers, which are computed when one of them is first read."""

    def __init__(self, n: int, compute: Callable[[], tuple[float, ...]]) -> None:
        self._n, self._compute = n, compute

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, key: int) -> float: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[float, ...]: ...
    def __getitem__(self, key: int | slice) -> float | tuple[float, ...]:
        return self._compute()[key]

    def __mul__(self, times: int) -> LazyNumbers:
        return LazyNumbers(self._n * times, lambda: self._compute() * times)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))


@dataclass(frozen=True)
class DatasetInfo:
    """Shape, classes, sizes, and standardization constants of a data set.

    Attributes:
        name: The name that identifies the data: npz:DIGEST or folder:DIGEST for user data.
        shape: (height, width, channels) as published; height and width are 0 where images are of several sizes.
        classes: Names of the classes, in the order of their numbers.
        mean: Mean of the training images per channel, in pixels [0, 1]; of all images where none are for training.
        std: Standard deviation of the same images per channel, in pixels [0, 1].
        sizes: Number of examples in `train`, `validation` and `test`, as far as they are published; in the `train` and
            `test` that are made of data published whole. Validation examples held out of `train` count to it.
        label: The data as their user knows them, for messages: the path of user data. It identifies nothing.
        notes: What was found in user data and how it was taken, a sentence each.
        flags: What makes results on these data doubtful, a sentence each.
    """

    name: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...] | LazyNumbers
    std: tuple[float, ...] | LazyNumbers
    sizes: dict[str, int]
    label: str = field(default="", compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)
    flags: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.name)

    @property
    def has_class_names(self) -> bool:
        """False where the classes are mere numbers: then a classifier may have more of them."""
        return self.classes != tuple(map(str, range(len(self.classes))))

    def size(self, split: str, validation: int = 0) -> int:
        """Number of examples that `load` gives.

        Args:
            split: `train`, `validation`, `test` or `all`.
            validation: Number of examples held out of `train`, where no validation split is published.

        Returns:
            The number; 0 where there is no such split.
        """
        if split == "all":
            return sum(self.sizes.values())
        held_out = validation if "train" in self.sizes and "validation" not in self.sizes else 0
        changes = {"train": self.sizes.get("train", 0) - held_out, "validation": held_out} if held_out else {}
        return {**self.sizes, **changes}.get(split, 0)

    def plain(self) -> Plain:
        """The fields that describe the data, as JSON has them, with lists for tuples."""
        described = [field.name for field in fields(self) if field.compare]
        values = {name: getattr(self, name) for name in described}
        return {key: list(value) if isinstance(value, tuple | LazyNumbers) else value for key, value in values.items()}

    @classmethod
    def from_plain(cls, plain: Plain) -> DatasetInfo:
        """The info that `plain` was made of."""
        values: Plain = {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}
        return cls(**values)

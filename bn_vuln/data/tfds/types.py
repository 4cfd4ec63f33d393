"""Types of the parts of TFDS' builders that are used here; TFDS has none that mypy reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol


class Feature(Protocol):
    """A feature of the examples: an image or a label."""

    shape: tuple[int | None, ...]
    np_dtype: type
    names: Sequence[str]


class Features(Protocol):
    """The features of a data set by name."""

    def __getitem__(self, key: str, /) -> Feature: ...


class SplitInfo(Protocol):
    """A published split."""

    num_examples: int


class BuilderInfo(Protocol):
    """The declaration of a data set."""

    features: Features
    splits: Mapping[str, SplitInfo]
    supervised_keys: Sequence[str] | None


class UrlInfo(Protocol):
    """The registered file of a URL."""

    filename: str | None
    size: int
    checksum: str


class Builder(Protocol):
    """A builder of a data set, one version and one config of it."""

    name: str
    data_dir: str
    info: BuilderInfo
    url_infos: Mapping[str, UrlInfo] | None
    MANUAL_DOWNLOAD_INSTRUCTIONS: str | None

    def as_dataset(self, **options: object) -> object:
        """A split as a tf.data.Dataset."""
        ...

    def download_and_prepare(self, **options: object) -> None:
        """Download the files and write the data set."""
        ...

    def _split_generators(self, *arguments: object, **options: object) -> object: ...

"""Images in files, decoded when they are asked for: what the images of a large folder are instead of an array."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from bn_vuln.data import image_files
from bn_vuln.data.describe import format_shape
from bn_vuln.data.image_files import ImageFile
from bn_vuln.data.transforms import Resize
from bn_vuln.errors import UsageError
from bn_vuln.runtime.threads import map_in_order
from bn_vuln.typing import DatasetImages, Index, StoredImages

CHOOSE = "choose how images are resized: --resize stretch, crop or pad"


@dataclass(frozen=True, eq=False)
class LazyImages:
    """Images in files. Indexing decodes and resizes them, in threads, and nothing decoded is kept.

    They stand where an array uint8 [n, height, width, channels] does: they have its `len`, `shape`, `dtype` and `ndim`;
    slices, positions and masks give such an array. Images of several sizes must be brought to one first: see `at`.

    Attributes:
        paths: The files, or images that lie in one file.
        native_sizes: (height, width) of each, turned as it will be; int32 [n, 2].
        channels: 1 or 3.
        exif: Whether images are turned as their EXIF orientation says.
        resized: (height, width) that they are resized to; None: they are not.
        how: As `transforms.resize_pixels` takes it.
    """

    paths: Sequence[ImageFile]
    native_sizes: NDArray[np.int32]
    channels: int
    exif: bool = True
    resized: tuple[int, int] | None = None
    how: Resize = "none"

    dtype = np.dtype(np.uint8)
    ndim = 4

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, height, width, channels); height and width are 0 where images are of several sizes."""
        height, width = self.resized or (0, 0)
        if self.resized is None and len(self) and (self.native_sizes == self.native_sizes[0]).all():
            height, width = self.native_sizes[0].tolist()
        return len(self), height, width, self.channels

    @property
    def nbytes(self) -> int:
        """Bytes of all images, decoded but not resized."""
        return int(self.native_sizes.astype(np.int64).prod(axis=1).sum()) * self.channels

    def __len__(self) -> int:
        return len(self.paths)

    def at(self, size: tuple[int, int], how: Resize, channels: int | None = None) -> LazyImages:
        """The same images at one size.

        Args:
            size: (height, width).
            how: As `transforms.resize_pixels` takes it. Images are resized as Pillow does it, to 8 bits, which is what
                most pipelines feed to a model. Images of this size are not touched.
            channels: 3; or 1, the luma of colour images. None: as they are.

        Returns:
            Images of which indexing gives uint8 [k, height, width, channels].

        Raises:
            UsageError: `how` is `none`, and a file, which is named, has another size.
        """
        others = np.flatnonzero((self.native_sizes != size).any(axis=1))
        if how == "none" and len(others):
            raise UsageError(
                f"expected images of {format_shape(size)}: {self._file_and_size(int(others[0]))}; {CHOOSE}"
            )
        return replace(self, resized=size, how=how, channels=channels or self.channels)

    def take(self, positions: Index | slice) -> LazyImages:
        """The images at these positions, in this order, still in their files."""
        at = np.arange(len(self))[positions]
        return replace(self, paths=[self.paths[i] for i in at], native_sizes=self.native_sizes[at])

    def check_one_size(self) -> None:
        """Raise `UsageError`, which names two files, where images are of several sizes."""
        if len(self) and not self.shape[1]:
            other = np.flatnonzero((self.native_sizes != self.native_sizes[0]).any(axis=1))[0]
            files = f"{self._file_and_size(0)} and {self._file_and_size(int(other))}"
            raise UsageError(f"expected images of one size: {files}; bring all to one size; or, to evaluate, {CHOOSE}")

    def stream(self, ahead: int = 0) -> Generator[StoredImages]:
        """Decode all images one after another: uint8 [1, height, width, channels], of several sizes where they are.

        Args:
            ahead: Images that are decoded ahead of the one that is taken; at least a few.
        """
        with image_files.quiet():
            yield from map_in_order(self._decode, range(len(self)), ahead)

    def __getitem__(self, key: Index | slice | Sequence[int] | int) -> StoredImages:
        """Decode some images: uint8 [k, height, width, channels]; of one position [height, width, channels]."""
        positions = np.arange(len(self))[key]
        wanted = self.take(np.atleast_1d(positions))
        images = wanted.joined(wanted.stream())
        return images.reshape(*positions.shape, *images.shape[1:])

    def joined(self, stream: Iterator[StoredImages]) -> StoredImages:
        """The next images of a stream as one array, as many as these are."""
        self.check_one_size()
        images = np.empty(self.shape, np.uint8)
        for place in images:
            place[:] = next(stream)[0]
        return images

    def __array__(self, dtype: np.dtype[np.generic] | None = None, copy: bool | None = None) -> NDArray[np.generic]:
        return self[:] if dtype is None else self[:].astype(dtype)

    def _decode(self, position: int) -> StoredImages:
        path, (height, width) = self.paths[position], self.native_sizes[position]
        image = image_files.decode(path, self.channels, exif=self.exif)
        if image.size != (width, height):
            raise UsageError(f"{path}: changed while it was in use; start again")
        resized = image if self.resized is None else image_files.resize(image, self.resized, self.how)
        return np.asarray(resized).reshape(1, resized.height, resized.width, self.channels)

    def _file_and_size(self, position: int) -> str:
        return f"{self.paths[position]} has {format_shape(self.native_sizes[position].tolist())}"


def lazy_images(paths: Sequence[ImageFile], *, exif: bool = True) -> tuple[LazyImages, list[ImageFile]]:
    """Return images that stay in their files, gray where all are, and which of the files are colour.

    Args:
        paths: The files; their headers are read.
        exif: As in `LazyImages`.

    Raises:
        UsageError: A file, which is named, is no image.
    """
    with image_files.quiet():
        headers = list(map_in_order(functools.partial(image_files.read_header, exif=exif), paths))
    sizes = np.array([(header.height, header.width) for header in headers], np.int32).reshape(-1, 2)
    colour = [path for path, header in zip(paths, headers, strict=True) if header.channels == 3]
    return LazyImages(paths, sizes, 3 if colour else 1, exif), colour


def decoded_ahead(images: DatasetImages, parts: Sequence[slice]) -> Generator[Callable[[], DatasetImages]]:
    """Yield functions that return parts of the images, in memory.

    Once a part is asked for, the next one is decoded while it is in use. Of parts that are not asked for nothing is.

    Args:
        images: An array, or lazy images.
        parts: Positions, one part after the other.

    Yields:
        For each part what returns its images. Close the iterator where it is not used up, so that decoding ends.
    """
    lazy = as_lazy(images)
    if lazy is None:
        for part in parts:
            yield functools.partial(take, images, part)
        return
    with contextlib.closing(_Ahead(lazy)) as ahead:
        yield from (functools.partial(ahead.decoded, part) for part in parts)


class _Ahead:
    """Lazy images, decoded one part ahead from the first part that is asked for."""

    def __init__(self, images: LazyImages) -> None:
        self._images, self._position = images, -1
        self._stream: Generator[StoredImages] | None = None

    def decoded(self, part: slice) -> DatasetImages:
        if self._stream is None or part.start != self._position:
            self.close()
            self._stream = self._images.take(slice(part.start, None)).stream(part.stop - part.start)
        self._position = part.stop
        return self._images.take(part).joined(self._stream)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()


def as_lazy(images: object) -> LazyImages | None:
    """The images where they are lazy, None where they are an array."""
    return images if isinstance(images, LazyImages) else None


def as_array(images: LazyImages) -> DatasetImages:
    """Lazy images under the type of the array that they stand for."""
    return cast("DatasetImages", images)


def take(images: DatasetImages, positions: Index | slice) -> DatasetImages:
    """The images at these positions; lazy images stay in their files."""
    lazy = as_lazy(images)
    return images[positions] if lazy is None else as_array(lazy.take(positions))


def concatenate(parts: Sequence[DatasetImages]) -> DatasetImages:
    """All images of some arrays, or of parts of one data set in files, in this order; these stay in their files."""
    lazy = [part for part in map(as_lazy, parts) if part is not None]
    if not lazy:
        return cast("DatasetImages", np.concatenate(parts))
    paths = [path for part in lazy for path in part.paths]
    return as_array(replace(lazy[0], paths=paths, native_sizes=np.concatenate([part.native_sizes for part in lazy])))

"""Random crops and flips of training images, another one for each image.

The random numbers depend on the seed, the epoch and the place in the epoch's order, and are made on the host: the same
in both arms of a pair, on any number of replicas, and in a training that was resumed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bn_vuln.config import Augment
from bn_vuln.errors import UsageError
from bn_vuln.runtime import backend, ops, random_streams
from bn_vuln.typing import Tensor


def random_crops(options: Augment, n: int, seed: int, epoch: int) -> NDArray[np.int32]:
    """Return (dy, dx, flip) for each place in the order of an epoch, int32 [n, 3].

    The first row and column of the crop in the padded image are uniform on 0..2 pad; flip is 1 where it is flipped.
    """
    generator = np.random.Generator(
        np.random.Philox(np.random.SeedSequence([seed, random_streams.AUGMENTATION, epoch, 1]))
    )
    # Flips first, and whether or not they are used: crops and flips are then the same with one another and alone.
    flips = generator.integers(0, 1, n, np.int32, endpoint=True)
    corners = generator.integers(0, 2 * options.pad, (n, 2), np.int32, endpoint=True)
    return np.column_stack([corners, flips if options.flip else np.zeros_like(flips)])


def check_pad(pad: int, shape: tuple[int, int, int], name: str) -> None:
    """Raise `UsageError` where crops of images [h, w, c] could be wholly black."""
    if pad >= min(shape[:2]):
        height, width = shape[:2]
        raise UsageError(
            f"train.augment.pad: expected less than the sides of {name}'s images, {height} x {width} pixels, "
            f"received {pad}"
        )


def crop(images: Tensor, crops: Tensor, pad: int) -> Tensor:
    """Return images [n, h, w, c], padded with zeros and cropped as `random_crops` (int32 [n, 3]) says.

    Two gathers, of rows and of columns, the latter in reverse for a flip: pixels are copied, never computed.
    """
    _, height, width, _ = images.shape
    dy, dx, flips = (column[:, None] for column in ops.unstack(crops, axis=1))
    across = ops.arange(width)[None]
    columns = dx + ops.where(flips > 0, width - 1 - across, across)
    padded = ops.pad(images, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
    rows = backend.gather(padded, dy + ops.arange(height)[None], axis=1)
    return backend.gather(rows, columns, axis=2)

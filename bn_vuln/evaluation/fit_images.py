"""Images brought to the size and the channels that an external model takes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bn_vuln.config import Resize
from bn_vuln.data import Dataset
from bn_vuln.data.images import as_array, as_lazy
from bn_vuln.data.transforms import resize_pixels
from bn_vuln.errors import UsageError
from bn_vuln.typing import DatasetImages


def fit_images(dataset: Dataset, size: tuple[int, int], channels: int, resize: Resize) -> Dataset:
    """Bring images to the channels of a model, and to its size unless they only have to be enlarged.

    Images are enlarged after noise and corruptions, as the paper does. Those that are reduced, cropped or padded are
    so before: what a user's model is given is what is perturbed.

    Args:
        dataset: the examples, as they are stored.
        size: (height, width) of the model's input.
        channels: of the model's input; gray images are repeated for a model of three.
        resize: as `resize_pixels` takes it; not `auto`.

    Returns:
        The examples, with uint8 images where they were uint8.

    Raises:
        UsageError: for images of another size where `resize` is `none`, and for RGB images for a gray model.
    """
    images, label = dataset.images, dataset.info.label
    if images.shape[3] > channels:
        raise UsageError(f"{label}: expected images of {channels} channels, received {images.shape[3]}")
    lazy = as_lazy(images)
    if lazy is not None:
        return replace(dataset, images=as_array(lazy.at(size, "none" if resize == "auto" else resize, channels)))
    if images.shape[3] == 1 and channels == 3:
        images = images.repeat(3, axis=3)
    if images.shape[3] != channels:
        raise UsageError(f"{label}: expected images of {channels} channels, received {images.shape[3]}")
    native = images.shape[1], images.shape[2]
    same_aspect = native[0] * size[1] == native[1] * size[0]
    enlarges = native[0] <= size[0] and native[1] <= size[1] and (resize == "stretch" or same_aspect)
    if native == size or (enlarges and resize not in ("none", "imagenet")):
        return replace(dataset, images=images)
    try:
        resized: DatasetImages = resize_pixels(images, size, "none" if resize == "auto" else resize)
    except UsageError as error:
        raise UsageError(f"{label}: {error}") from None
    if images.dtype == np.uint8:
        resized = np.round(255 * resized).astype(np.uint8)
    return replace(dataset, images=resized)

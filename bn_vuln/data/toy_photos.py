"""Made-up photos in the classes of ImageNet: patches of colour, to try out what is done with large images."""

from __future__ import annotations

import numpy as np

from bn_vuln.data.info import DatasetInfo
from bn_vuln.typing import Labels, StoredImages

HEIGHT, WIDTH, PATCH = 260, 300, 20  # pixels
INFO = DatasetInfo(
    name="toy_photos",
    shape=(HEIGHT, WIDTH, 3),
    classes=tuple(map(str, range(1000))),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    sizes={"train": 16, "test": 64},
)


def read(split: str) -> tuple[StoredImages, Labels]:
    """Make the photos of `train` or `test`.

    Returns:
        uint8 [n, 260, 300, 3]: patches of random colour with a little noise; labels int32 [n], random classes.
    """
    n = INFO.sizes[split]
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([2012, int(split == "test")])))
    patches = generator.normal(INFO.mean, INFO.std, (n, HEIGHT // PATCH, WIDTH // PATCH, 3))
    pixels = patches.repeat(PATCH, axis=1).repeat(PATCH, axis=2) + generator.normal(0, 0.02, (n, HEIGHT, WIDTH, 3))
    labels = generator.integers(0, len(INFO.classes), n)
    return np.round(255 * pixels.clip(0, 1)).astype(np.uint8), labels.astype(np.int32)

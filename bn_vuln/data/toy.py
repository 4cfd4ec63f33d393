"""The two Gaussian classes of the paper's Figure 1.

Points of the plane are kept as "images" of one pixel with two channels, so that all that works on images works on them.
They are float32, not pixels, and are not standardized.
"""

from __future__ import annotations

import numpy as np

from bn_vuln.data.info import DatasetInfo
from bn_vuln.typing import Images, Labels

MEANS = ((-5.0, 0.0), (5.0, 0.0))  # of class 0 and class 1
COVARIANCE = ((1.0, 0.05), (0.05, 0.01))  # of both
# The paper does not say how many points it draws: 1,000 here beside the 5,000 that validation takes by default.
INFO = DatasetInfo(
    name="toy",
    shape=(1, 1, 2),
    classes=("0", "1"),
    mean=(0.0, 0.0),
    std=(1.0, 1.0),
    sizes={"train": 6000, "test": 10000},
)


def read(split: str, subset_seed: int | None = None) -> tuple[Images, Labels]:
    """Sample the points of `train` or `test`.

    Args:
        split: `train` or `test`.
        subset_seed: Seed of another training sample; the test sample is always the same.

    Returns:
        Points float32 [n, 1, 1, 2] and labels int32 [n], equally many of both classes.
    """
    n = INFO.sizes[split]
    stream = [1, 0] if split == "test" else [0, 0] if subset_seed is None else [2, subset_seed]
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([20190, *stream])))
    labels = generator.permutation(np.arange(n) % 2)
    deviations = generator.multivariate_normal([0.0, 0.0], COVARIANCE, size=n, method="cholesky")
    points = np.asarray(MEANS)[labels] + deviations
    return points.reshape(n, 1, 1, 2).astype(np.float32), labels.astype(np.int32)

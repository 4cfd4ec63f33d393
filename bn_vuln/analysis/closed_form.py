"""Linear classifiers known in closed form: two Gaussians, and the limit of training with BN of the output."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from bn_vuln.analysis.tilt import angle, effective_weights
from bn_vuln.typing import Floats


@dataclass(frozen=True, eq=False)
class TwoGaussians:
    """Two classes of equal prior, N(mean_0, covariance) and N(mean_1, covariance).

    All weights are [d] and score class 0. Source: "Batch Normalization Increases Adversarial Vulnerability", section
    "Boundary tilting".

    Attributes:
        mean_0: Mean of class 0, float64 [d].
        mean_1: Mean of class 1, float64 [d].
        covariance: Covariance of each class, float64 [d, d].

    Raises:
        ValueError: Shapes do not fit, a number is not finite, or the covariance is not symmetric and positive definite.
    """

    mean_0: Floats
    mean_1: Floats
    covariance: Floats

    def __post_init__(self) -> None:
        for name in ("mean_0", "mean_1", "covariance"):
            array = np.array(getattr(self, name), np.float64)
            if not np.isfinite(array).all():
                raise ValueError(f"{name} is not finite")
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        d = self.mean_0.size
        if not (self.mean_0.shape == self.mean_1.shape == (d,) and self.covariance.shape == (d, d) and d):
            shapes = f"{self.mean_0.shape}, {self.mean_1.shape}, {self.covariance.shape}"
            raise ValueError(f"expected shapes [d], [d], [d, d], received {shapes}")
        try:
            np.linalg.cholesky(self.covariance)  # reads the lower triangle only
            is_valid = np.allclose(self.covariance, self.covariance.T, rtol=1e-10, atol=0)
        except np.linalg.LinAlgError:
            is_valid = False
        if not is_valid:
            raise ValueError("the covariance is not symmetric and positive definite")

    @property
    def centroid_weights(self) -> Floats:
        """Return the nearest-centroid weights: mean_0 - mean_1."""
        return np.asarray(self.mean_0 - self.mean_1)

    @property
    def bayes_weights(self) -> Floats:
        """Return the Bayes solution: covariance^-1 (mean_0 - mean_1)."""
        return np.asarray(np.linalg.solve(self.covariance, self.centroid_weights))

    @property
    def bayes_angle(self) -> float:
        """Return the degrees between the Bayes solution and the nearest-centroid classifier; NaN for equal means."""
        return float(angle(self.bayes_weights, self.centroid_weights))

    @property
    def variance(self) -> Floats:
        """Return the population variance of each input over both classes: within plus between."""
        return np.asarray(np.diag(self.covariance) + self.centroid_weights**2 / 4)

    def bn_weights(self, w: ArrayLike, c: float) -> Floats:
        """Return the input-space weights of `w` [d] behind BN of the input (gamma = 1)."""
        return effective_weights(w, self.variance, c)

    def bn_centroid_weights(self, c: float) -> Floats:
        """Return the nearest-centroid weights of batch-normalized data: (mean_0 - mean_1) / (variance + c)."""
        return self.bn_weights(self.bn_weights(self.centroid_weights, c), c)


TOY = TwoGaussians(np.array([-5.0, 0.0]), np.array([5.0, 0.0]), np.array([[1.0, 0.05], [0.05, 0.01]]))  # Figure 1


def uniform_margin_weights(x: ArrayLike, y: ArrayLike) -> Floats:
    """Return the minimum-norm least-squares solution w of x w = y, float64 [d].

    Where the rows of x are independent its margins y_i <w, x_i> are all 1, and this is the direction to which
    gradient descent from the span of the data takes a linear model with BN of its output (Cao et al. 2023, "The
    implicit bias of batch normalization in linear models and two-layer linear convolutional neural networks"; no bias,
    no subtraction of the mean). Why: BN gives gamma <w, x_i> / rms_j <w, x_j>, so whatever w is, the n normalized
    margins m_i have mean square gamma^2. For a convex decreasing loss l, mean l(m_i) >= l(mean m_i) >= l(gamma) by
    Jensen and by mean <= root mean square, with equality where all m_i = gamma: BN rewards equal margins, not large
    ones. Descent never leaves the span, where just this one w, up to scale, has them.

    With more examples than inputs there is no such w in general. The solution then has the largest ratio of
    mean to root-mean-square margin, so the most uniform margins in that sense, which is Fisher's discriminant: for
    balanced classes with means +-m and covariance S about them, w = S^-1 m / (1 + m^T S^-1 m). (Other losses weigh
    the deviations in another way there, and need not end in this direction.) Unlike nearest centroid, that direction
    does not depend on how the inputs are scaled, hence not on BN of them.

    Args:
        x: Examples, [n, d].
        y: Labels, [n], -1 or +1.

    Raises:
        ValueError: Shapes do not fit, or there are other labels.
    """
    examples, labels = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if examples.ndim != 2 or labels.shape != examples.shape[:1] or not examples.size:
        raise ValueError(f"expected shapes [n, d] and [n], received {examples.shape} and {labels.shape}")
    if not (np.abs(labels) == 1).all():
        raise ValueError("labels must be -1 or +1")
    return np.asarray(np.linalg.lstsq(examples, labels, rcond=None)[0])

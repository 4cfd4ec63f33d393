"""Linear classifiers known in closed form: two Gaussians, and what BN of the output prefers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bn_vuln.analysis.tilt import angle, effective_weights

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TwoGaussians:
    """Two classes of equal prior, N(mean_0, covariance) and N(mean_1, covariance); float64 [d], [d], [d, d].

    All weights are [d] and score class 0. Raises `ValueError` for shapes that do not fit, numbers that are not
    finite and a covariance that is not symmetric and positive definite. Source: "Batch Normalization Increases
    Adversarial Vulnerability", section "Boundary tilting".
    """

    mean_0: Array
    mean_1: Array
    covariance: Array

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
        if not _is_positive_definite(self.covariance):
            raise ValueError("the covariance is not symmetric and positive definite")

    @property
    def centroid_weights(self) -> Array:
        """Nearest centroid: mean_0 - mean_1."""
        return np.asarray(self.mean_0 - self.mean_1)

    @property
    def bayes_weights(self) -> Array:
        """The Bayes solution: covariance^-1 (mean_0 - mean_1)."""
        return np.asarray(np.linalg.solve(self.covariance, self.centroid_weights))

    @property
    def bayes_angle(self) -> float:
        """Degrees between the Bayes solution and the nearest-centroid classifier; NaN for equal means."""
        return float(angle(self.bayes_weights, self.centroid_weights))

    @property
    def variance(self) -> Array:
        """Population variance of each input over both classes, as BN of the input sees it: within plus between."""
        return np.asarray(np.diag(self.covariance) + self.centroid_weights**2 / 4)

    def bn_weights(self, w: ArrayLike, c: float) -> Array:
        """Input-space weights of `w` [d] behind BN of the input (gamma = 1) with the population's variance."""
        return effective_weights(w, self.variance, c)

    def bn_centroid_weights(self, c: float) -> Array:
        """Nearest centroid of the batch-normalized data, in input space: (mean_0 - mean_1) / (variance + c)."""
        return self.bn_weights(self.bn_weights(self.centroid_weights, c), c)


def _is_positive_definite(matrix: Array) -> bool:
    try:
        np.linalg.cholesky(matrix)  # reads the lower triangle only
    except np.linalg.LinAlgError:
        return False
    return np.allclose(matrix, matrix.T, rtol=1e-10, atol=0)


TOY = TwoGaussians(np.array([-5.0, 0.0]), np.array([5.0, 0.0]), np.array([[1.0, 0.05], [0.05, 0.01]]))  # Figure 1


def uniform_margin_weights(x: ArrayLike, y: ArrayLike) -> Array:
    """The minimum-norm least-squares solution w [d] of x w = y; `x` [n, d], labels `y` [n] in {-1, +1}.

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

    Raises `ValueError` for shapes that do not fit and other labels.
    """
    examples, labels = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if examples.ndim != 2 or labels.shape != examples.shape[:1] or not examples.size:
        raise ValueError(f"expected shapes [n, d] and [n], received {examples.shape} and {labels.shape}")
    if not (np.abs(labels) == 1).all():
        raise ValueError("labels must be -1 or +1")
    return np.asarray(np.linalg.lstsq(examples, labels, rcond=None)[0])

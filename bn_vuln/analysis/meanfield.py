"""Growth of gradients with depth in random ReLU networks with BN: the mean-field theory of Yang et al."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from bn_vuln.typing import Floats


@overload
def gradient_growth(batch_size: float) -> float: ...
@overload
def gradient_growth(batch_size: Sequence[int] | NDArray[np.generic]) -> Floats: ...
def gradient_growth(batch_size: float | Sequence[int] | NDArray[np.generic]) -> float | Floats:
    """Return lambda_G(B): the factor by which the expected squared gradient norm grows per layer towards the input.

    It holds for an infinitely wide network of layers (linear, BN with c = 0, ReLU) at initialization. As B grows it
    falls to pi / (pi - 1) = 1.467. Source: Yang et al. 2019, "A mean field theory of batch normalization", Theorem
    3.10.

    In short, with G = I - 1 1^T / B, the projection that subtracts the mean of the batch, and gradients that do not
    depend on the weights they pass through (the mean-field assumption):

    - Forward. A unit's pre-activations on the batch, h, are Gaussian; after BN, y = sqrt(B) G h / |G h|. At the fixed
      point G Cov(h) G = s G, so y is uniform on the sphere of radius sqrt(B) orthogonal to 1, and independent of
      |G h|^2, which is s times a chi^2 with B - 1 degrees of freedom. Two entries of y have the correlation
      rho = -1 / (B - 1); signs and products homogeneous in y have the expectation that they have for Gaussians:
      q = E[relu(y1) relu(y2)] = (sqrt(1 - rho^2) + rho (pi - arccos rho)) / (2 pi) and
      p = P(y1 > 0, y2 > 0) = 1/4 + arcsin(rho) / (2 pi). With E[relu(y1)^2] = 1/2, what the next BN divides by is
      s = 1/2 - q.
    - Backward. Let a unit's gradient with respect to its ReLU, before the mask D = diag(y > 0), have covariance G:
      that is what the BN of the layer above leaves, by symmetry (BN takes the same output for h + const, so its
      gradients sum to 0). The Jacobian of BN is J = sqrt(B) / |G h| (G - y y^T / B), so E[J D G D J] = lambda G.
      Traces give (B - 1) lambda = B E[1 / |G h|^2] E[tr((G - y y^T / B) D G D)], where
      E[1 / chi^2_{B-1}] = 1 / (B - 3) and the last factor is (B - 1) / B ((B - 1) / 2 + p - s). Hence

          lambda_G(B) = ((B - 1) / 2 + p - s) / (s (B - 3)).

    Args:
        batch_size: B, a number or an array.

    Returns:
        A factor of the shape of `batch_size`, float64.

    Raises:
        ValueError: B is 3 or less, where the expectation is infinite.
    """
    b = np.asarray(batch_size, np.float64)
    if not (b > 3).all():
        raise ValueError(f"the batch size must be greater than 3, received {batch_size}")
    rho = -1 / (b - 1)
    q = (np.sqrt(1 - rho**2) + rho * (np.pi - np.arccos(rho))) / (2 * np.pi)
    p = 1 / 4 + np.arcsin(rho) / (2 * np.pi)
    s = 1 / 2 - q
    growth = ((b - 1) / 2 + p - s) / (s * (b - 3))
    return growth if b.ndim else float(growth)


@overload
def depth_limit(batch_size: float, constant: float = 16.0) -> float: ...
@overload
def depth_limit(batch_size: Sequence[int] | NDArray[np.generic], constant: float = 16.0) -> Floats: ...
def depth_limit(batch_size: float | Sequence[int] | NDArray[np.generic], constant: float = 16.0) -> float | Floats:
    """Return the depth, in layers, to which a BN network is expected to train: constant / ln lambda_G(B).

    Args:
        batch_size: B, a number or an array.
        constant: Squared gradients grow by e^constant over that many layers. 16 is not theory but an empirical
            constant, from the authors' blog.

    Raises:
        ValueError: B is 3 or less.
    """
    growth = np.asarray(gradient_growth(np.asarray(batch_size)))
    limit = constant / np.log(growth)
    return np.asarray(limit) if growth.ndim else float(limit)

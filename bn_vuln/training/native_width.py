"""Training on images of native width, exactly, where a net sees them enlarged and its first layer is a dense one.

Enlarging is linear and keeps constants, so that standardized images are x = E u. The gradient of the first kernel is
then E (u^T delta): with weight decay or without, by SGD with or without momentum, the kernel stays in

    W = s W0 + E M,

W0 what it began with, and x^T W = u^T V with V = s (E^T W0) + (E^T E) M. So s and M are trained, with the gradient of V
in the place of M's: the same steps, on a kernel of a fourth (or a ninth) of the size, and no image is enlarged. E is
one matrix along the rows and one along the columns, and the products with it are small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bn_vuln.config import Cell, DeepArch, LinearArch, MLPArch, NoNormalization
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.transforms import bilinear_weights
from bn_vuln.runtime import backend


def can(cell: Cell, info: DatasetInfo) -> bool:
    """Whether a cell can be trained so: enlarged, dense from the first layer, by an optimizer that is linear in the
    gradients, not on images that were attacked when they were enlarged."""
    enlarged = cell.data.width is not None and cell.data.width > max(info.shape[:2])
    dense = isinstance(cell.arch, MLPArch | DeepArch)
    dense |= isinstance(cell.arch, LinearArch) and isinstance(cell.normalization, NoNormalization)
    return enlarged and dense and cell.train.optimizer == "sgd" and cell.train.adversarial is None


@dataclass(frozen=True)
class _Enlarging:
    """E, as one matrix [width, native] along the rows and one along the columns, on kernels of flat images (pixels by
    units), of native or of enlarged width."""

    rows: NDArray[np.float32]
    columns: NDArray[np.float32]

    def enlarge(self, matrix: NDArray[np.float32]) -> NDArray[np.float32]:
        """E M."""
        return self._both(matrix, self.rows, self.columns)

    def reduce(self, matrix: NDArray[np.float32]) -> NDArray[np.float32]:
        """E^T W."""
        return self._both(matrix, self.rows.T, self.columns.T)

    def gram(self, matrix: Any) -> Any:
        """(E^T E) M, on tensors."""
        tf = backend.tensorflow()
        height, width, units = self.rows.shape[1], self.columns.shape[1], matrix.shape[1]
        one = tf.matmul(self.rows.T @ self.rows, tf.reshape(matrix, (height, -1)))
        both = tf.matmul(self.columns.T @ self.columns, tf.reshape(one, (height, width, -1)))
        return tf.reshape(both, (-1, units))

    @staticmethod
    def _both(
        matrix: NDArray[np.float32], rows: NDArray[np.float32], columns: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        grid: NDArray[np.float32] = matrix.reshape(rows.shape[1], columns.shape[1], -1)
        grid = np.einsum("rh,hwk->rwk", rows, grid, optimize=True)
        grid = np.einsum("cw,rwk->rck", columns, grid, optimize=True)
        return grid.reshape(-1, matrix.shape[1])


class Native:
    """A Keras model of the images that were not enlarged, which shares all but the first kernel with the wide one."""

    def __init__(self, wide: Any, info: DatasetInfo) -> None:
        """`wide`: standardization, Flatten, a Dense layer, whatever follows."""
        import keras

        standardize, flatten = (type(one).from_config(one.get_config()) for one in wide.layers[1:3])
        self._dense = dense = wide.layers[3]
        self._enlarging = _Enlarging(*(bilinear_weights(n, wide.input_shape[1]) for n in info.shape[:2]))
        self._first = _layer(dense, self._enlarging)
        inputs = keras.Input(info.shape, name="pixels")
        outputs = self._first(flatten(standardize(inputs)))
        if dense is not wide.layers[-1]:
            outputs = keras.Model(dense.output, wide.output, name="after")(outputs)
        self.model = keras.Model(inputs, outputs, name=wide.name)

    def widen(self) -> None:
        """Give the wide model the kernel that was trained, once."""
        share, within = (np.asarray(variable) for variable in (self._first.share, self._first.kernel))
        self._dense.kernel.assign(share * np.asarray(self._dense.kernel) + self._enlarging.enlarge(within))


def squared_norms(model: Any) -> dict[int, Any]:
    """By the id of a trainable variable that is no kernel by itself, what stands for its squares in a penalty."""
    found: dict[int, Any] = {}
    for layer in backend.leaf_layers(model):
        if hasattr(layer, "squared_norm"):
            found |= {id(layer.kernel): layer.squared_norm, id(layer.share): lambda: 0.0}
    return found


def _layer(dense: Any, enlarging: _Enlarging) -> Any:
    """The layer u -> u^T V + bias, on flat standardized images of native width."""
    import keras

    tf = backend.tensorflow()
    units, first = dense.units, np.asarray(dense.kernel)
    begun = tf.constant(enlarging.reduce(first))
    square = float(np.sum(np.square(first, dtype=np.float64)))

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def effective(share: Any, within: Any) -> Any:
        return share * begun + enlarging.gram(within), lambda gradient: (tf.zeros_like(share), gradient)

    class Enlarged(keras.layers.Layer):  # type: ignore[misc]
        def build(self, shape: Any) -> None:
            # Both are called as what they make up is, which by its name has weight decay.
            self.kernel = self.add_weight(shape=(shape[-1], units), initializer="zeros", name="kernel")
            self.share = self.add_weight(shape=(), initializer="ones", name="kernel")
            self.bias = dense.bias

        def call(self, flat: Any) -> Any:
            product = tf.matmul(flat, effective(tf.convert_to_tensor(self.share), tf.convert_to_tensor(self.kernel)))
            return product if self.bias is None else product + self.bias

        def squared_norm(self) -> Any:
            """||s W0 + E M||^2."""
            within, share = tf.convert_to_tensor(self.kernel), tf.convert_to_tensor(self.share)
            return share**2 * square + tf.reduce_sum(within * (2.0 * share * begun + enlarging.gram(within)))

    return Enlarged(name=dense.name)

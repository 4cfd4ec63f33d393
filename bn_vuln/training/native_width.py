"""Exact training on images of native width, for a net of enlarged images whose first layer is a dense one.

Enlarging is linear and keeps constants, so that standardized images are x = E u. The gradient of the first kernel is
then E (u^T delta): with weight decay or without, by SGD with or without momentum, the kernel stays in

    W = s W0 + E M,

W0 what it began with, and x^T W = u^T V with V = s (E^T W0) + (E^T E) M. So s and M are trained, with the gradient of V
in the place of M's: the same steps, on a kernel of a fourth (or a ninth) of the size, and no image is enlarged. E is
one matrix along the rows and one along the columns, and the products with it are small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from bn_vuln.config import Cell, DeepArch, LinearArch, MLPArch, NoNormalization
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.transforms import bilinear_weights
from bn_vuln.runtime import backend
from bn_vuln.typing import KerasLayer, KerasModel, Tensor, Variable

Matrix = NDArray[np.float32]


class _Dense(KerasLayer, Protocol):
    """A dense layer of Keras."""

    units: int
    kernel: Variable
    bias: Variable | None


class _NativeDense(_Dense, Protocol):
    """The dense layer on images of native width, see `_native_dense`."""

    initial_kernel_scale: Variable

    def squared_norm(self) -> Tensor: ...


def applies_to(cell: Cell, info: DatasetInfo) -> bool:
    """Return True for a cell that can be trained at native width.

    Its images are enlarged and not attacked after that, it is dense from the first layer, and its optimizer is linear
    in the gradients.
    """
    enlarged = cell.data.width is not None and cell.data.width > max(info.shape[:2])
    dense = isinstance(cell.arch, MLPArch | DeepArch)
    dense |= isinstance(cell.arch, LinearArch) and isinstance(cell.normalization, NoNormalization)
    return enlarged and dense and cell.train.optimizer == "sgd" and cell.train.adversarial is None


@dataclass(frozen=True)
class _Enlargement:
    """E, as one matrix [width, native] along the rows and one along the columns.

    It acts on kernels of flat images (pixels by units), of native or of enlarged width.
    """

    rows: Matrix
    columns: Matrix

    def enlarge(self, kernel: Matrix) -> Matrix:
        """Return E M."""
        return self._apply(kernel, self.rows, self.columns)

    def reduce(self, kernel: Matrix) -> Matrix:
        """Return E^T W."""
        return self._apply(kernel, self.rows.T, self.columns.T)

    def gram(self, matrix: Tensor) -> Tensor:
        """Return (E^T E) M, on tensors."""
        tf = backend.tensorflow()
        height, width, units = self.rows.shape[1], self.columns.shape[1], matrix.shape[1]
        one = tf.matmul(self.rows.T @ self.rows, tf.reshape(matrix, (height, -1)))
        both = tf.matmul(self.columns.T @ self.columns, tf.reshape(one, (height, width, -1)))
        product: Tensor = tf.reshape(both, (-1, units))
        return product

    @staticmethod
    def _apply(matrix: Matrix, rows: Matrix, columns: Matrix) -> Matrix:
        grid: Matrix = matrix.reshape(rows.shape[1], columns.shape[1], -1)
        grid = np.einsum("rh,hwk->rwk", rows, grid, optimize=True)
        grid = np.einsum("cw,rwk->rck", columns, grid, optimize=True)
        return grid.reshape(-1, matrix.shape[1])


class NativeWidthModel:
    """A Keras model of images that are not enlarged, which shares all but the first kernel with the wide one."""

    def __init__(self, wide: KerasModel, info: DatasetInfo) -> None:
        """Build the model for `wide`: standardization, Flatten, a Dense layer, and what follows."""
        import keras

        standardize, flatten = (type(layer).from_config(layer.get_config()) for layer in wide.layers[1:3])
        self._dense = dense = cast("_Dense", wide.layers[3])
        self._enlargement = _Enlargement(*(bilinear_weights(n, wide.input_shape[1]) for n in info.shape[:2]))
        self._first = _native_dense(dense, self._enlargement)
        inputs = keras.Input(info.shape, name="pixels")
        outputs = self._first(flatten(standardize(inputs)))
        if dense is not wide.layers[-1]:
            outputs = keras.Model(dense.output, wide.output, name="after")(outputs)
        self.model: KerasModel = keras.Model(inputs, outputs, name=wide.name)

    def widen(self) -> None:
        """Copy the trained kernel into the full-width model; call once."""
        scale, native_kernel = (
            np.asarray(variable) for variable in (self._first.initial_kernel_scale, self._first.kernel)
        )
        self._dense.kernel.assign(scale * np.asarray(self._dense.kernel) + self._enlargement.enlarge(native_kernel))


def squared_norms(model: KerasModel) -> dict[int, Callable[[], Tensor | float]]:
    """Return, by id, functions of the squared norms of variables that are no kernels themselves."""
    found: dict[int, Callable[[], Tensor | float]] = {}
    for layer in backend.leaf_layers(model):
        if hasattr(layer, "squared_norm"):
            found |= {id(layer.kernel): layer.squared_norm, id(layer.initial_kernel_scale): lambda: 0.0}
    return found


def _native_dense(dense: _Dense, enlargement: _Enlargement) -> _NativeDense:
    """Return the layer u -> u^T V + bias, on flat standardized images of native width."""
    import keras

    tf = backend.tensorflow()
    units, first = dense.units, np.asarray(dense.kernel)
    start = tf.constant(enlargement.reduce(first))
    square = float(np.sum(np.square(first, dtype=np.float64)))

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def effective(scale: Tensor, native_kernel: Tensor) -> object:
        return scale * start + enlargement.gram(native_kernel), lambda gradient: (
            tf.zeros_like(scale),
            gradient,
        )

    class Enlarged(keras.layers.Layer):  # type: ignore[misc]
        def build(self, shape: tuple[int, ...]) -> None:
            # Both have the name of the kernel that they make up: by it they have weight decay.
            self.kernel = self.add_weight(shape=(shape[-1], units), initializer="zeros", name="kernel")
            self.initial_kernel_scale = self.add_weight(shape=(), initializer="ones", name="kernel")
            self.bias = dense.bias

        def call(self, flat: Tensor) -> Tensor:
            product: Tensor = tf.matmul(
                flat, effective(tf.convert_to_tensor(self.initial_kernel_scale), tf.convert_to_tensor(self.kernel))
            )
            return product if self.bias is None else product + self.bias

        def squared_norm(self) -> object:
            """Return ||s W0 + E M||^2."""
            native_kernel, scale = (
                tf.convert_to_tensor(self.kernel),
                tf.convert_to_tensor(self.initial_kernel_scale),
            )
            return scale**2 * square + tf.reduce_sum(
                native_kernel * (2.0 * scale * start + enlargement.gram(native_kernel))
            )

    return cast("_NativeDense", Enlarged(name=dense.name))

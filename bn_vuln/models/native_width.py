"""Exact training on images of native width, for a net of enlarged images whose first layer is a dense one.

Enlarging is linear and keeps constants, so that standardized images are x = E u. The gradient of the first kernel is
then E (u^T delta): with weight decay or without, by SGD with or without momentum, the kernel stays in

    W = s W0 + E M,

W0 what it began with, and x^T W = u^T V with V = s (E^T W0) + (E^T E) M. So s and M are trained, with the gradient of V
in the place of M's: the same steps, on a kernel of a fourth (or a ninth) of the size, and no image is enlarged. E is
the product of a matrix along the rows and one along the columns, and the products with these are small.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from bn_vuln.config import Cell, DeepArch, LinearArch, MLPArch, NoNormalization
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.transforms import bilinear_weights
from bn_vuln.runtime import ops
from bn_vuln.typing import KerasModel, Tensor, Variable

Matrix = NDArray[np.float32]
# Fields of `Train` that leave a step linear in its gradients. With any other, new ones too, images are enlarged.
LINEAR_FIELDS = frozenset(
    ("epochs", "batch_size", "lr", "momentum", "nesterov", "schedule", "warmup", "label_smoothing", "select", "augment")
)


class NativeWidthModel(KerasModel, Protocol):
    """A Keras model, pixels [n, h, w, c] of native width -> logits [n, classes]."""

    def squared_norm(self, variable: Variable) -> Tensor | float:
        """Return the squared norm of a trainable variable: that of W for M, and 0 for s."""

    def widen(self) -> None:
        """Give the wide model the first kernel W; call once."""


def applies_to(cell: Cell, info: DatasetInfo) -> bool:
    """Return True for a cell that can be trained at native width.

    Its images are enlarged, it is dense from the first layer, and only `LINEAR_FIELDS` of its training are not at their
    default: no attack, plain SGD.
    """
    enlarged = cell.data.width is not None and cell.data.width > max(info.shape[:2])
    dense = isinstance(cell.arch, MLPArch | DeepArch)
    dense |= isinstance(cell.arch, LinearArch) and isinstance(cell.normalization, NoNormalization)
    fields = type(cell.train).model_fields
    changed = {name for name, field in fields.items() if getattr(cell.train, name) != field.default}
    return enlarged and dense and changed <= LINEAR_FIELDS


def build(wide: Any, info: DatasetInfo) -> NativeWidthModel:
    """Build the model of native width, which shares all but the first kernel with a wide one.

    Args:
        wide: the model of enlarged images: standardization, Flatten, Dense, and what follows.
        info: the data set.
    """
    import keras

    standardize, flatten, dense, *after = wide.layers[1:]
    rows, columns = (bilinear_weights(side, wide.input_shape[1]) for side in info.shape[:2])
    start = _product(rows.T, columns.T, dense.kernel)  # E^T W0
    square = float(np.sum(np.square(dense.kernel, dtype=np.float64)))

    def gram(kernel: Tensor) -> Tensor:
        return _product(rows.T @ rows, columns.T @ columns, kernel)

    @ops.custom_gradient  # type: ignore[untyped-decorator]
    def effective(scale: Tensor, kernel: Tensor) -> object:
        return scale * start + gram(kernel), lambda gradient: (ops.zeros_like(scale), gradient)

    def tensors(model: Any) -> tuple[Tensor, Tensor]:
        return ops.copy(model.scale), ops.copy(model.kernel)  # tensors, not variables

    class NativeWidth(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(name=wide.name)
            self.input_shape = (None, *info.shape)
            # Both have the name of the kernel that they make up: by it they have weight decay.
            self.kernel = self.add_weight(shape=start.shape, initializer="zeros", name="kernel")
            self.scale = self.add_weight(shape=(), initializer="ones", name="kernel")
            self.bias = dense.bias
            self.after = keras.Model(dense.output, wide.output) if after else keras.layers.Identity()
            self.built = True

        def call(self, pixels: Tensor, training: bool | None = None) -> Tensor:
            x = ops.matmul(flatten(standardize(pixels)), effective(*tensors(self)))
            x = x if self.bias is None else x + self.bias
            return self.after(x, training=training)

        def squared_norm(self, variable: Variable) -> Tensor | float:
            if variable is self.scale:
                return 0.0
            if variable is not self.kernel:
                return ops.sum(ops.square(variable))
            scale, kernel = tensors(self)
            return scale**2 * square + ops.sum(kernel * (2.0 * scale * start + gram(kernel)))

        def widen(self) -> None:
            scale, kernel = tensors(self)
            dense.kernel.assign(scale * dense.kernel + _product(rows, columns, kernel))

    return cast("NativeWidthModel", NativeWidth())


def _product(rows: Matrix, columns: Matrix, kernel: Tensor) -> Tensor:
    """Multiply a kernel of flat images, pixels by units, along rows and columns of the images: E M, for instance."""
    (_, height), (_, width), (_, units) = rows.shape, columns.shape, kernel.shape
    along_rows = ops.matmul(rows, ops.reshape(kernel, (height, width * units)))
    both = ops.matmul(columns, ops.reshape(along_rows, (-1, width, units)))
    return ops.reshape(both, (-1, units))

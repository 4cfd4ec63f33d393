"""What the nets for ImageNet share. Their layers have the names of torchvision's, so that its weights fit by name."""

from __future__ import annotations

from bn_vuln.errors import UsageError
from bn_vuln.models.layers import Initializer
from bn_vuln.models.normalization import NormalizationFactory
from bn_vuln.typing import Tensor


def conv(
    x: Tensor,
    filters: int,
    size: int,
    name: str,
    initializer: Initializer,
    normalize: NormalizationFactory,
    *,
    stride: int = 1,
    padding: int | None = None,
) -> Tensor:
    """Apply a convolution without activation, zero-padded alike on every side, as PyTorch does it.

    Args:
        x: Keras tensor [n, height, width, channels].
        filters: number of output channels.
        size: height and width of the filters.
        name: of the layer.
        initializer: of kernel and bias.
        normalize: the factory, which says which class of convolution it is, and if it has a bias.
        stride: of the convolution.
        padding: pixels on every side; None: (size - 1) / 2.

    Returns:
        Keras tensor [n, height', width', filters].
    """
    import keras

    padding = size // 2 if padding is None else padding
    same = stride == 1 and padding == size // 2
    if padding and not same:
        x = keras.layers.ZeroPadding2D(padding, name=f"{name}.padding")(x)
    layer = normalize.convolution()(
        filters,
        size,
        strides=stride,
        padding="same" if same else "valid",
        use_bias=normalize.use_bias,
        name=name,
        **initializer.next(size * size * x.shape[-1]),
    )
    return layer(x)


def max_pool(x: Tensor, name: str, size: int, stride: int, padding: int = 0) -> Tensor:
    """Apply a max-pooling to a Keras tensor; `padding` is for values that are not negative, as behind ReLU."""
    import keras

    if padding:
        x = keras.layers.ZeroPadding2D(padding, name=f"{name}.padding")(x)
    return keras.layers.MaxPooling2D(size, strides=stride, name=name)(x)


def check_width(arch: str, width: int, *, exactly: int | None = None, at_least: int = 32) -> None:
    """Refuse widths that a net does not take.

    Raises:
        UsageError: The width is not the one that its Dense layers need, or too small for its strides.
    """
    if exactly is not None and width != exactly:
        raise UsageError(f"data.width: {arch} takes images of {exactly} pixels, received {width}")
    if width < at_least:
        raise UsageError(f"data.width: {arch} takes images of at least {at_least} pixels, received {width}")

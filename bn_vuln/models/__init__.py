"""Keras builders: one file a family, each takes a normalization factory and maps pixels in [0, 1] to logits.

A builder has the arguments

    arch         config of the architecture
    info         the data set: channels, classes, mean and std
    width        height and width of the images in pixels
    normalize    the normalization factory, called where a normalization goes
    initializer  gives each layer its initial kernel and bias

and returns an untrained model, float32 pixels [n, width, width, channels] -> logits [n, classes].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bn_vuln.config import Cell
from bn_vuln.data.info import DatasetInfo
from bn_vuln.models import deep, densenet, imagenet_resnet, imagenet_vgg, linear, mlp, resnet, vgg, wide_resnet
from bn_vuln.models.layers import Initializer, draw_by_numpy
from bn_vuln.models.normalization import make_factory
from bn_vuln.runtime import backend
from bn_vuln.typing import KerasModel

BUILDERS: dict[str, Callable[..., KerasModel]] = {
    "linear": linear.build,
    "nearest_centroid": linear.build_nearest_centroid,
    "mlp": mlp.build,
    "deep": deep.build,
    **dict.fromkeys(vgg.STAGES, vgg.build),
    **dict.fromkeys(resnet.BLOCKS, resnet.build),
    "wrn": wide_resnet.build,
    **dict.fromkeys((f"imagenet_{name}" for name in vgg.STAGES if name != "vgg8"), imagenet_vgg.build),
    "alexnet": imagenet_vgg.build_alexnet,
    **dict.fromkeys(imagenet_resnet.BLOCKS, imagenet_resnet.build),
    **dict.fromkeys(densenet.LAYERS, densenet.build),
    **dict.fromkeys(imagenet_resnet.PATCHES, imagenet_resnet.build_bagnet),
}


def build(cell: Cell, info: DatasetInfo) -> KerasModel:
    """Build the untrained Keras model of a cell.

    The initial kernels depend on the seed and the architecture only, not on the normalization (Fixup scales them); with
    `init_generator: numpy` not on the backend either.

    Args:
        cell: its architecture, normalization, seed, initialization and width are used.
        info: the data set: channels, classes, mean and std.

    Returns:
        A model, float32 pixels [n, width, width, channels] in [0, 1] -> logits [n, classes].

    Raises:
        UsageError: where the architecture does not fit the data set, or groups do not divide the channels.
    """
    backend.start()
    width = cell.data.width or info.shape[1]
    if not cell.standardize:
        info = replace(info, mean=(0.0,) * len(info.mean), std=(1.0,) * len(info.std))
    initializer = Initializer(cell.init, cell.seed)
    factory = make_factory(cell.normalization, cell.seed)
    model = BUILDERS[cell.arch.name](cell.arch, info, width, factory, initializer)
    if cell.init_generator == "numpy":
        draw_by_numpy(model)
    return model

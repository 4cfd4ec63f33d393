"""Keras builders: one file a family, each takes a normalization factory and maps pixels in [0, 1] to logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bn_vuln.config import Cell
from bn_vuln.data.info import DatasetInfo
from bn_vuln.models import deep, linear, mlp, resnet, vgg, wide_resnet
from bn_vuln.models.layers import Initializer
from bn_vuln.models.normalization import make_factory
from bn_vuln.runtime import backend

BUILDERS: dict[str, Callable[..., Any]] = {
    "linear": linear.build,
    "nearest_centroid": linear.build_nearest_centroid,
    "mlp": mlp.build,
    "deep": deep.build,
    **dict.fromkeys(vgg.STAGES, vgg.build),
    **dict.fromkeys(resnet.BLOCKS, resnet.build),
    "wrn": wide_resnet.build,
}


def build(cell: Cell, info: DatasetInfo) -> Any:
    """The untrained Keras model of a cell: float32 pixels [n, width, width, channels] -> logits [n, classes].

    The initial kernels depend on the seed and the architecture only, not on the normalization (Fixup scales them).
    """
    backend.tensorflow()
    width = cell.data.width or info.shape[1]
    if not cell.standardize:
        info = replace(info, mean=(0.0,) * len(info.mean), std=(1.0,) * len(info.std))
    initializer = Initializer(cell.init, cell.seed)
    return BUILDERS[cell.arch.name](cell.arch, info, width, make_factory(cell.normalization, cell.seed), initializer)

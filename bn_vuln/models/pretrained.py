"""Nets for ImageNet with the weights that torchvision, timm or the authors of BagNets have published.

The layers have the names of torchvision's (see `imagenet_layers`), so a file is read key by key: nothing is left out,
and nothing is left as it was initialized. PyTorch is not needed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bn_vuln import config
from bn_vuln.config.arch import PRETRAINED
from bn_vuln.data import imagenet
from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.models import BUILDERS, weight_files
from bn_vuln.models.layers import Initializer
from bn_vuln.models.normalization import make_factory
from bn_vuln.runtime import backend
from bn_vuln.runtime.files import regular_file_stat
from bn_vuln.typing import Floats, Images, KerasLayer, KerasModel

SIZE = 224
RANDOM = "random"
# timm's names of VGG's Dense layers, the first two of which are convolutions there.
_TIMM = {"pre_logits.fc1": "classifier.0", "pre_logits.fc2": "classifier.3", "head.fc": "classifier.6"}
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.(\d+)$")  # as files of torchvision have them
_COUNTERS = "num_batches_tracked"  # of PyTorch's BN layers, without effect on what they compute


def check(name: str, weights: str | Path | None) -> None:
    """Refuse names, sources and files that are none, before TensorFlow is started.

    Raises:
        UsageError: The name or the source is not known, or the file does not exist.
    """
    if not isinstance(name, str) or name not in PRETRAINED:
        raise UsageError(
            f"{name!r} is no pretrained net{config.nearest(str(name), PRETRAINED)} (known: {', '.join(PRETRAINED)})"
        )
    if weights is not None and str(weights) != RANDOM:
        weight_files.check(name, weights)


def pretrained(name: str, weights: str | Path | None = None, *, seed: int = 0) -> KerasModel:
    """Open a net for ImageNet with its published weights.

    Args:
        name: as torchvision has it: vgg11, vgg11_bn, ..., alexnet, resnet18, resnet50, densenet121; bagnet9, 17 or 33.
        weights: `torchvision`, `timm` or `bagnets`, whose file is fetched where it is not on this machine; a file
            (.safetensors; .pth with the extra `torch`), or a folder of NAME.safetensors; `random`, as initialized, to
            try things out; None: the file that is on this machine, else that of torchvision or of BagNets' authors.
        seed: of `random` weights.

    Returns:
        A Keras model: float32 pixels [n, 224, 224, 3] in [0, 1] -> logits [n, 1000]. Standardization is inside.

    Raises:
        UsageError: see `check`.
        BnvulnError: The file cannot be fetched or read, or does not fit the net; keys and variables are listed.
    """
    check(name, weights)
    if str(weights) == RANDOM:
        return build(name, "he", seed)
    path = weight_files.path_of(name, weights or weight_files.sources(name)[0])
    tensors = weight_files.read(path)
    model = build(name, "zeros")
    fill(model, tensors, str(path))
    return model


def convert(path: Path, target: Path, name: str) -> None:
    """Write a file of weights as .safetensors, if it fits a net.

    Args:
        path: the file, as `weight_files.read` takes it.
        target: the new file.
        name: the net.

    Raises:
        UsageError: The name is not known, there is no such file, or the new one is to have another suffix.
        BnvulnError: The file cannot be read, or does not fit the net.
    """
    check(name, None)
    regular_file_stat(path)
    if target.suffix != weight_files.KEPT:
        raise UsageError(f"{target}: expected a new file that ends in {weight_files.KEPT}")
    tensors = weight_files.read(path)
    fill(build(name, "zeros"), tensors, str(path))
    weight_files.write(target, tensors)


def build(name: str, init: str, seed: int = 0) -> KerasModel:
    """Build a net as it was published, with initial weights.

    Args:
        name: a name of `config.arch.PRETRAINED`.
        init: the scheme of `Initializer`; `zeros` is quick.
        seed: of the initial weights.
    """
    backend.start()
    arch, normalization = PRETRAINED[name]
    fields = {"data": {"name": "imagenet2012", "width": SIZE}, "arch": arch, "normalization": normalization}
    cell = config.validate(config.Cell, fields, name)
    model = BUILDERS[arch](cell.arch, imagenet.info(), SIZE, make_factory(cell.normalization), Initializer(init, seed))
    model.name = name
    return model


def fill(model: KerasModel, tensors: Mapping[str, Floats], source: str) -> None:
    """Give the variables of a net the values of PyTorch's tensors.

    Args:
        model: a net of `build`.
        tensors: by key, as PyTorch's state_dict has them.
        source: of the tensors, for messages.

    Raises:
        BnvulnError: Keys are missing or left over, or shapes differ.
    """
    left = {_present_key(key): value for key, value in tensors.items() if not key.endswith(_COUNTERS)}
    missing, unfit, filled = [], [], 0
    for layer in backend.leaf_layers(model):
        for suffix, attribute in _variables(layer).items():
            key = f"{layer.name}.{suffix}"
            value, variable = left.pop(key, None), getattr(layer, attribute)
            if value is None:
                missing.append(key)
                continue
            array = _as_keras(value, attribute, tuple(variable.shape), model)
            if array is None:
                unfit.append(f"{key} {list(value.shape)} for {_in_pytorch(variable.shape)}")
                continue
            variable.assign(array)
            filled += 1
    problems = [f"missing: {_listed(missing)}"] if missing else []
    problems += [f"not of this net: {_listed(list(left))}"] if left else []
    problems += [f"of other shapes: {_listed(unfit)}"] if unfit else []
    if problems or not filled:
        raise BnvulnError(f"{source}: these are no weights of {model.name}: {'; '.join(problems) or 'it is empty'}")


def _variables(layer: KerasLayer) -> dict[str, str]:
    """The names of PyTorch for what a layer holds, and Keras' attributes."""
    if hasattr(layer, "moving_mean"):
        return {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    if hasattr(layer, "kernel"):
        return {"weight": "kernel", **({"bias": "bias"} if getattr(layer, "use_bias", False) else {})}
    return {}


def _present_key(key: str) -> str:
    """The key as torchvision's modules have it today: without `module.`, timm's and old names replaced."""
    prefix, _, suffix = key.replace("module.", "").rpartition(".")  # VGG and AlexNet: features.module.0
    prefix = _TIMM.get(prefix, prefix)
    old = _OLD_DENSENET.match(prefix)
    return f"{old[1]}{old[2]}.{suffix}" if old else f"{prefix}.{suffix}"


def _as_keras(value: Floats, attribute: str, shape: tuple[int, ...], model: KerasModel) -> Images | None:
    """Return a tensor in Keras' order of axes; None where it does not fit.

    Kernels are [out, in, height, width] in PyTorch. The first Dense behind the convolutions gets its inputs channel by
    channel there, position by position here.
    """
    array = np.asarray(value, np.float32)
    if attribute == "kernel" and len(shape) == 4 and array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
    elif attribute == "kernel" and len(shape) == 2 and array.ndim in (2, 4):
        flattened = [layer for layer in model.layers if layer.name == "flatten"]
        features = tuple(flattened[0].input.shape[1:]) if flattened else None  # type: ignore[attr-defined]
        if features is not None and math.prod(features) == array[0].size == shape[0]:
            height, width, channels = features
            array = array.reshape(len(array), channels, height, width).transpose(0, 2, 3, 1)
        array = array.reshape(len(array), -1).T
    return array if array.shape == shape else None


def _in_pytorch(shape: Sequence[int]) -> list[int]:
    """The shape of a variable in PyTorch's order of axes."""
    order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(len(shape), range(len(shape)))
    return [shape[axis] for axis in order]


def _listed(keys: list[str]) -> str:
    shown = ", ".join(sorted(keys)[:5])
    return f"{shown}, ... ({len(keys)} in all)" if len(keys) > 5 else shown

"""A Keras net, as a chain of layers, copied into PyTorch with its weights: the yardstick of benchmarks."""

from __future__ import annotations

from typing import Any

import numpy as np


def copy(model: Any) -> Any:
    """Copy a Keras chain of dense and convolutional layers to PyTorch, in inference mode.

    Its images are [n, channels, height, width].

    Raises `ValueError` for a layer that is none of these.
    """
    import torch

    layers = [made for layer in model.layers if (made := _layer(torch, layer)) is not None]
    return torch.nn.Sequential(*layers).eval()


def _layer(torch: Any, layer: Any) -> Any:
    name, nn = type(layer).__name__, torch.nn
    if name == "InputLayer":
        return None
    if name == "Normalization":
        mean, variance = (np.ravel(np.asarray(value)) for value in (layer.mean, layer.variance))
        made = nn.BatchNorm2d(len(mean), eps=0.0, affine=False)
        made.running_mean[:], made.running_var[:] = torch.tensor(mean), torch.tensor(variance)
        return made
    if name == "BatchNormalization":
        return _batch_norm(torch, layer)
    if name == "Dense":
        kernel = layer.get_weights()[0]
        return _weighted(torch, nn.Linear(*kernel.shape, bias=layer.use_bias), kernel.T, layer)
    if name == "Conv2D":
        kernel = layer.get_weights()[0]
        channels, padding = kernel.shape[2:], layer.padding  # PyTorch refuses strides with padding="same"
        made = nn.Conv2d(*channels, kernel.shape[:2], layer.strides, padding=padding, bias=layer.use_bias)
        return _weighted(torch, made, kernel.transpose(3, 2, 0, 1), layer)
    simple = {
        "Flatten": lambda: _flatten(nn, layer),
        "ReLU": nn.ReLU,
        "MaxPooling2D": lambda: nn.MaxPool2d(2),
        "GlobalAveragePooling2D": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    }
    if name not in simple:
        raise ValueError(f"{layer.name}: no PyTorch layer for a {name}")
    return simple[name]()


def _flatten(nn: Any, layer: Any) -> Any:
    """Feature maps are flattened in Keras' order, channels last."""
    if len(layer.input.shape) != 4:
        return nn.Flatten()

    class ChannelsLast(nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return x.permute(0, 2, 3, 1)

    return nn.Sequential(ChannelsLast(), nn.Flatten())


def _weighted(torch: Any, made: Any, kernel: Any, layer: Any) -> Any:
    made.weight.data = torch.tensor(np.ascontiguousarray(kernel))
    if layer.use_bias:
        made.bias.data = torch.tensor(layer.get_weights()[1])
    return made


def _batch_norm(torch: Any, layer: Any) -> Any:
    features = int(layer.moving_mean.shape[0])
    kind = torch.nn.BatchNorm2d if len(layer.input.shape) == 4 else torch.nn.BatchNorm1d
    made = kind(features, eps=layer.epsilon)
    for ours, theirs in ((layer.gamma, made.weight), (layer.beta, made.bias)):
        if ours is not None:
            theirs.data = torch.tensor(np.asarray(ours))
    made.running_mean[:], made.running_var[:] = (
        torch.tensor(np.asarray(v)) for v in (layer.moving_mean, layer.moving_variance)
    )
    return made

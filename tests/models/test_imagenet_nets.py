"""Normalization is an argument of the nets for ImageNet, too: each builds, and nothing else differs."""

from __future__ import annotations

import numpy as np
import pytest

from bn_vuln import models
from bn_vuln.config import Cell, validate
from bn_vuln.data.info import DatasetInfo
from bn_vuln.errors import ConfigError
from bn_vuln.models import densenet, imagenet_resnet, imagenet_vgg
from bn_vuln.runtime import backend

CLASSES = tuple("0123456789")
PHOTOS = DatasetInfo("photos", (64, 64, 3), CLASSES, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), sizes={})
WIDTHS = {"imagenet_vgg11": 224, "alexnet": 224, "resnet18": 64, "resnet50": 64, "densenet121": 64, "bagnet9": 64}
LAYERS = {
    "none": "Conv2D",
    "batch": "BatchNormalization",
    "group": "GroupNormalization",
    "layer": "GroupNormalization",
    "instance": "GroupNormalization",
    "ws_group": "StandardizedConv2D",
    "frn": "FilterResponse",
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Fewer blocks, and smaller Dense layers: the tests are of what a normalization changes."""
    monkeypatch.setattr(imagenet_vgg, "UNITS", 16)
    monkeypatch.setattr(densenet, "LAYERS", {"densenet121": (2, 2, 2, 2)})
    monkeypatch.setattr(imagenet_resnet, "BLOCKS", {"resnet18": (1, 2, 1, 1), "resnet50": (1, 2, 1, 1)})


def build(arch, normalization):
    fields = {"data": {"width": WIDTHS[arch]}, "arch": arch, "normalization": normalization}
    return models.build(validate(Cell, fields, "test"), PHOTOS)


def kernels(model):
    """In their order: with a normalization torchvision counts VGG's layers differently."""
    return [np.asarray(layer.kernel) for layer in backend.leaf_layers(model) if hasattr(layer, "kernel")]


@pytest.mark.parametrize("arch", WIDTHS)
def test_every_normalization_builds_and_initial_kernels_are_the_same(arch):
    width = WIDTHS[arch]
    x = np.random.default_rng(0).random((2, width, width, 3), np.float32)
    plain = kernels(build(arch, "none"))
    for normalization, layer in LAYERS.items():
        model = build(arch, normalization)
        assert layer in {type(one).__name__ for one in model.layers}, normalization
        for kernel, expected in zip(kernels(model), plain, strict=True):
            np.testing.assert_array_equal(kernel, expected, err_msg=normalization)
        logits = np.asarray(model(x))
        assert logits.shape == (2, 10), normalization
        assert np.isfinite(logits).all(), normalization
        assert np.ptp(logits, axis=0).max() > 0, normalization


@pytest.mark.parametrize("arch", WIDTHS)
def test_fixup_is_refused_in_a_line(arch):
    with pytest.raises(ConfigError, match=rf"normalization fixup is for residual nets \(.*\), not for {arch}$") as e:
        build(arch, "fixup")
    assert "\n" not in str(e.value)

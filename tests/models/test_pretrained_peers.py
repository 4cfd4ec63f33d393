"""The same weights give the same logits in torchvision, timm, a BagNet written from the paper, and Keras' own VGG16."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

import helpers_torchvision
import numpy as np
import pytest

import bn_vuln as bnv
from bn_vuln.attacks import ThreatModel, active_set
from bn_vuln.attacks.active_set import EveryAttempt
from bn_vuln.attacks.pgd import PGD
from bn_vuln.models import pretrained
from bn_vuln.runtime import backend

# Not imported here: they crash where TensorFlow is.
without_torchvision = any(importlib.util.find_spec(library) is None for library in ("torch", "torchvision", "timm"))
needs_torchvision = pytest.mark.skipif(without_torchvision, reason="of the extra bench")
pytestmark = pytest.mark.slow

TORCHVISION = [name for name in pretrained.PRETRAINED if not name.startswith("bagnet")]
NETS = [
    *(("torchvision", name) for name in TORCHVISION),
    *(("timm", name) for name in TORCHVISION if name != "alexnet"),
    *(("bagnets", name) for name in pretrained.PRETRAINED if name.startswith("bagnet")),
]


@pytest.fixture
def folder():
    """A folder that is removed at once: weights are up to 575 MB, and pytest would keep them."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def images(n, seed=0):
    """Blocks of colour with noise, so that logits differ from image to image."""
    generator = np.random.default_rng(seed)
    blocks = generator.random((n, 7, 7, 3)).repeat(32, axis=1).repeat(32, axis=2)
    return (0.8 * blocks + 0.2 * generator.random((n, 224, 224, 3))).astype(np.float32)


def relative_difference(found, expected):
    """The largest difference, as a share of the largest distance of a logit from its mean over images."""
    return np.abs(found - expected).max() / np.abs(expected - expected.mean(axis=0)).max()


@needs_torchvision
@pytest.mark.parametrize(("source", "name"), NETS)
def test_logits_are_those_of_pytorch(source, name, folder):
    x = images(3)
    expected = helpers_torchvision.logits(source, name, folder, x)
    model = bnv.pretrained(name, weights=folder / "weights.safetensors")
    assert relative_difference(np.asarray(model(x)), expected) < 1e-4


@needs_torchvision
@pytest.mark.parametrize("name", ["alexnet", "resnet18"])
def test_adversarial_examples_fool_pytorch_too(name, folder):
    x, eps = images(100), 0.03 / 255
    y = helpers_torchvision.logits("torchvision", name, folder, x).argmax(axis=1)
    model = bnv.pretrained(name, weights=folder / "weights.safetensors")
    attack = PGD(model, ThreatModel("inf", eps, np.ones(1), 0.0, 1.0), 5, eps / 4, seed=3)
    index = np.arange(len(x), dtype=np.int32)
    searched = active_set.run(attack, x, y, EveryAttempt(eps), index=index, batch_size=20)
    adversarial = searched.points
    assert 0 < np.abs(adversarial - x).max() <= eps + 1e-6
    predict = backend.compile(lambda x: model(x, training=False))
    fooled = np.concatenate([np.asarray(predict(part)) for part in np.split(adversarial, 5)]).argmax(axis=1) != y
    theirs = helpers_torchvision.logits("torchvision", name, folder, adversarial).argmax(axis=1) != y
    assert len(set(y)) > 5
    assert 0.2 < fooled.mean() < 0.9
    assert np.mean(fooled == theirs) >= 0.99


def test_vgg16_is_that_of_keras():
    """With its random weights, in PyTorch's order of axes, moved into ours."""
    import keras

    theirs = keras.applications.VGG16(weights=None, classifier_activation=None)
    ours = pretrained.build("vgg16", "zeros")
    names = [layer.name for layer in backend.leaf_layers(ours) if hasattr(layer, "kernel")]
    tensors, generator = {}, np.random.default_rng(0)
    for name, layer in zip(names, (one for one in theirs.layers if hasattr(one, "kernel")), strict=True):
        kernel = generator.standard_normal(layer.kernel.shape, np.float32)
        kernel *= np.sqrt(2 / kernel[..., 0].size)  # signals keep their size
        bias = generator.normal(0, 0.1, layer.bias.shape).astype(np.float32)
        layer.set_weights([kernel, bias])
        if layer.name == "fc1":
            kernel = kernel.reshape(7, 7, 512, -1).transpose(3, 2, 0, 1).reshape(4096, -1)
        else:
            kernel = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
        tensors |= {f"{name}.weight": kernel, f"{name}.bias": bias}
    pretrained.fill(ours, tensors, "Keras")
    x = images(3)
    standardized = (x - np.float32(helpers_torchvision.MEAN)) / np.float32(helpers_torchvision.STD)
    assert relative_difference(np.asarray(ours(x)), np.asarray(theirs(standardized))) < 1e-4

"""Nets of torchvision, of timm and of the paper on BagNets with random weights, in a process without TensorFlow.

python tests/helpers_torchvision.py SOURCE NAME FOLDER reads FOLDER/images.npy, float32 [n, 224, 224, 3] in [0, 1], and
writes FOLDER/logits.npy, and FOLDER/weights.safetensors where it is not there. A process of its own, since torchvision
and timm crash where TensorFlow is.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PATCHES = {"bagnet9": 2, "bagnet17": 3, "bagnet33": 4}  # stages that begin with a 3x3 convolution


def logits(source: str, name: str, folder: Path, images: np.ndarray) -> np.ndarray:
    """Return the logits of a net, in a process of its own; its weights lie in FOLDER/weights.safetensors afterwards."""
    np.save(folder / "images.npy", images)
    command = [sys.executable, __file__, source, name, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return np.load(folder / "logits.npy")


def bagnet(name: str) -> nn.Module:
    """Return a BagNet as in Brendel and Bethge 2019: a ResNet-50 of 1x1 convolutions but for a few, without padding."""
    import torch
    from torch import nn

    def conv(inputs: int, filters: int, size: int, stride: int = 1) -> nn.Conv2d:
        return nn.Conv2d(inputs, filters, size, stride, bias=False)

    class Block(nn.Module):
        def __init__(self, inputs: int, filters: int, size: int, stride: int) -> None:
            super().__init__()
            self.conv1, self.bn1 = conv(inputs, filters, 1), nn.BatchNorm2d(filters)
            self.conv2, self.bn2 = conv(filters, filters, size, stride), nn.BatchNorm2d(filters)
            self.conv3, self.bn3 = conv(filters, 4 * filters, 1), nn.BatchNorm2d(4 * filters)
            self.downsample = nn.Identity()
            if inputs != 4 * filters:
                self.downsample = nn.Sequential(conv(inputs, 4 * filters, 1, stride), nn.BatchNorm2d(4 * filters))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(self.bn1(self.conv1(x)))
            y = torch.relu(self.bn2(self.conv2(y)))
            y = self.bn3(self.conv3(y))
            shortcut = self.downsample(x)[:, :, : y.shape[2], : y.shape[3]]  # what no padding has taken, at the end
            return torch.relu(shortcut + y)

    class BagNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2, self.bn1 = conv(3, 64, 1), conv(64, 64, 3), nn.BatchNorm2d(64)
            inputs = 64
            for stage, blocks in enumerate((3, 4, 6, 3), 1):
                filters, size, stride = 32 * 2**stage, 3 if stage <= PATCHES[name] else 1, 1 if stage == 4 else 2
                first = Block(inputs, filters, size, stride)
                rest = [Block(4 * filters, filters, 1, 1) for _ in range(blocks - 1)]
                setattr(self, f"layer{stage}", nn.Sequential(first, *rest))
                inputs = 4 * filters
            self.fc = nn.Linear(inputs, 1000)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.bn1(self.conv2(self.conv1(x))))
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
            return self.fc(x.mean((2, 3)))

    return BagNet()


def draw(module: nn.Module) -> None:
    """Draw kernels so that signals keep their size; no two numbers of a batch norm are equal."""
    for key, value in module.state_dict().items():
        if key.endswith("running_var") or (key.endswith("weight") and value.ndim == 1):
            value.uniform_(0.5, 1.5)
        elif key.endswith("weight"):
            value.normal_(0, (2 / value[0].numel()) ** 0.5)
        elif not key.endswith("num_batches_tracked"):
            value.normal_(0, 0.1)


def main(source: str, name: str, folder: Path) -> None:
    """Write logits.npy, and weights.safetensors if there are none: such that images differ in their classes."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    if source == "bagnets":
        module = bagnet(name)
    elif source == "timm":
        import timm

        module = timm.create_model(name, pretrained=False)
    else:
        import torchvision

        module = getattr(torchvision.models, name)(weights=None)
    images = torch.tensor(np.load(folder / "images.npy")).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    weights, is_new = folder / "weights.safetensors", not (folder / "weights.safetensors").exists()
    draw(module) if is_new else module.load_state_dict(load_file(weights))
    with torch.no_grad():
        found = torch.cat([module.eval()((batch - mean) / std) for batch in images.split(10)])
        if is_new:
            *_, bias = module.parameters()
            bias -= found.mean(0)
            found -= found.mean(0)
            save_file({key: value.contiguous() for key, value in module.state_dict().items()}, weights)
    np.save(folder / "logits.npy", found.numpy())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))

"""ResNets: published sizes, shortcuts, and the same logits as the same net in PyTorch."""

import numpy as np
import pytest
from helpers_attacks import keras

from bn_vuln import models
from bn_vuln.config import Cell, validate
from bn_vuln.data.info import DatasetInfo
from bn_vuln.data.mnist import INFO
from bn_vuln.errors import ConfigError

PHOTOS = DatasetInfo("photos", (32, 32, 3), tuple("0123456789"), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), sizes={})


def build(arch, normalization="batch", info=PHOTOS, **fields):
    return models.build(validate(Cell, {"arch": arch, "normalization": normalization, **fields}, "test"), info)


def trainable(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def images(width=32, channels=3, n=2):
    return np.random.default_rng(0).uniform(size=(n, width, width, channels)).astype(np.float32)


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("arch", "millions", "parameters"),
    [
        ("resnet20", 0.27, 269_722),
        ("resnet56", 0.85, 853_018),
        ("resnet110", 1.7, 1_727_962),
    ],
)
def test_parameter_counts_of_resnets_are_the_published_ones(arch, millions, parameters):
    """He et al. 2016, Table 6, and to the digit those of implementations without parameters in shortcuts."""
    assert trainable(build(arch)) == parameters
    assert parameters / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize(("depth", "widening", "millions"), [(28, 10, 36.5), (40, 1, 0.6)])
def test_parameter_counts_of_wide_resnets_are_the_published_ones(depth, widening, millions):
    """Zagoruyko and Komodakis 2016, Tables 2 to 5; to the digit by formula."""
    found = trainable(build({"name": "wrn", "depth": depth, "widening": widening}))
    assert found / 1e6 == pytest.approx(millions, abs=0.06)
    assert found == wide_resnet_parameters((depth - 4) // 6, widening)
    if (depth, widening) == (28, 10):
        assert found == 36_479_194


def wide_resnet_parameters(blocks, widening):
    total, channels = 3 * 9 * 16, 16
    for stage in (16, 32, 64):
        for _ in range(blocks):
            filters = stage * widening
            total += 9 * channels * filters + 9 * filters * filters + 2 * channels + 2 * filters
            total += channels * filters if channels != filters or (stage > 16 and channels != filters) else 0
            channels = filters
    return total + 2 * channels + 10 * channels + 10


def test_wide_resnets_have_whole_blocks():
    assert build({"name": "wrn", "depth": 10, "widening": 1}).name == "wrn_10_1"
    for depth in (9, 4):
        with pytest.raises(ConfigError, match=rf"expected 6 n \+ 4 .*, received {depth}"):
            validate(Cell, {"arch": {"name": "wrn", "depth": depth}}, "test")


@pytest.mark.parametrize(
    ("arch", "width"), [("resnet20", 33), ({"name": "wrn", "depth": 10, "widening": 2}, 28)], ids=str
)
def test_residual_nets_take_images_of_every_width(arch, width):
    model = build(arch, info=INFO, data={"width": width})
    assert model(images(width, 1)).shape == (2, 10)
    half = -(-width // 2)
    assert model.get_layer("add_3_1").output.shape[1:3] == (-(-half // 2),) * 2


# ---------------------------------------------------------------- shortcuts


def test_the_shortcut_takes_every_other_pixel_and_adds_channels_of_zeros():
    model = build("resnet20")
    names = ["relu_1_3_2", "shortcut_2_1"]
    x, shortcut = keras.Model(model.input, [model.get_layer(name).output for name in names])(images())
    np.testing.assert_array_equal(shortcut[..., :16], x[:, ::2, ::2])
    np.testing.assert_array_equal(shortcut[..., 16:], np.zeros((2, 16, 16, 16)))


def test_resnets_without_branches_are_their_shortcuts():
    """With the second convolution of each block at zero."""
    model = build("resnet20", "none")
    for layer in model.layers:
        if layer.name.startswith("conv_") and layer.name.endswith("_2"):
            layer.kernel.assign(np.zeros(layer.kernel.shape))
    x, last = keras.Model(model.input, [model.get_layer(n).output for n in ("relu", "relu_3_3_2")])(images())
    expected = np.zeros((2, 8, 8, 64))
    expected[..., :16] = x[:, ::4, ::4]
    np.testing.assert_array_equal(last, expected)


# ---------------------------------------------------------------- the same nets in PyTorch


def torch_nets():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (pip install bnvuln[bench])")
    nn = torch.nn

    class Scalar(nn.Module):
        """Fixup's bias, or its multiplier."""

        def __init__(self, value=0.0):
            super().__init__()
            self.value, self.times = nn.Parameter(torch.full((1,), value)), bool(value)

        def forward(self, x):
            return x * self.value if self.times else x + self.value

    class ResNetBlock(nn.Module):
        def __init__(self, inputs, outputs, stride, norm, scalar):
            super().__init__()
            bias = norm is nn.Identity and scalar is nn.Identity
            self.shift1, self.conv1 = scalar(), nn.Conv2d(inputs, outputs, 3, stride, 1, bias=bias)
            self.norm1, self.shift2 = norm(outputs), scalar()
            self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=bias)
            self.times, self.norm2 = (Scalar(1.0) if scalar is Scalar else nn.Identity()), norm(outputs)
            self.stride = stride

        def forward(self, x):
            taken = self.shift1(x)
            y = torch.relu(self.norm1(self.conv1(taken)))
            y = self.norm2(self.times(self.conv2(self.shift2(y))))
            if self.stride > 1:
                x = taken[:, :, ::2, ::2]
                x = torch.cat([x, torch.zeros_like(x)], 1)
            return torch.relu(x + y)

    class WideBlock(nn.Module):
        def __init__(self, inputs, outputs, stride, norm, scalar):
            super().__init__()
            bias = norm is nn.Identity and scalar is nn.Identity
            self.norm1, self.shift1 = norm(inputs), scalar()
            self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=bias)
            self.norm2, self.shift2 = norm(outputs), scalar()
            self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=bias)
            self.times = Scalar(1.0) if scalar is Scalar else nn.Identity()
            same = inputs == outputs and stride == 1
            self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=bias)

        def forward(self, x):
            taken = self.shift1(torch.relu(self.norm1(x)))
            y = self.conv2(self.shift2(torch.relu(self.norm2(self.conv1(taken)))))
            return self.times(y) + (x if self.shortcut is None else self.shortcut(taken))

    class Net(nn.Module):
        def __init__(self, block, blocks, filters, normalization):
            super().__init__()
            fixup = normalization == "fixup"
            scalar = Scalar if fixup else nn.Identity
            norm = {"batch": nn.BatchNorm2d, "none": nn.Identity, "fixup": lambda _: Scalar()}[normalization]
            self.wide, channels, stages = block is WideBlock, 16, []
            self.conv = nn.Conv2d(3, 16, 3, 1, 1, bias=normalization == "none")
            for stage, outputs in enumerate(filters):
                for number in range(blocks):
                    stages.append(block(channels, outputs, 2 if stage and not number else 1, norm, scalar))
                    channels = outputs
            self.norm, self.stages = norm(channels if self.wide else 16), nn.ModuleList(stages)
            self.shift, self.dense = scalar(), nn.Linear(channels, 10)

        def forward(self, x):
            x = self.conv(x) if self.wide else torch.relu(self.norm(self.conv(x)))
            for block in self.stages:
                x = block(x)
            x = torch.relu(self.norm(x)) if self.wide else x
            return self.dense(self.shift(x.mean((2, 3))))

    return torch, lambda block, *rest: Net({"resnet": ResNetBlock, "wrn": WideBlock}[block], *rest)


def copy_weights(torch, model, net, blocks):
    """Random values into both, matched by name."""
    generator = np.random.default_rng(0)

    def put(layer, module, name):
        if layer is None:
            return
        for variable in layer.variables:
            size = variable.shape
            value = generator.normal(scale=1 / np.sqrt(np.prod(size[:-1])) if len(size) > 1 else 0.5, size=size)
            value = np.abs(value) + 0.5 if "variance" in variable.name else value
            variable.assign(value)
            target = {
                "kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "moving_mean": "running_mean",
                "moving_variance": "running_var", "multiplier": "value",
            }[variable.name]  # fmt: skip
            target = "value" if hasattr(module, "value") else target
            order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(value.ndim, (0,))
            getattr(module, target).data = torch.tensor(value.transpose(order), dtype=torch.float32)

    def layer(name):
        return next((one for one in model.layers if one.name == name), None)

    put(layer("conv"), net.conv, "conv")
    put(layer("normalization"), net.norm, "normalization")
    put(layer("shift"), net.shift, "shift")
    put(layer("logits"), net.dense, "logits")
    for i, block in enumerate(net.stages):
        name = f"{i // blocks + 1}_{i % blocks + 1}"
        for part in (1, 2):
            put(layer(f"conv_{name}_{part}"), getattr(block, f"conv{part}"), name)
            put(layer(f"normalization_{name}_{part}"), getattr(block, f"norm{part}"), name)
            put(layer(f"shift_{name}_{part}"), getattr(block, f"shift{part}"), name)
        put(layer(f"multiplier_{name}"), block.times, name)
        if getattr(block, "shortcut", None) is not None:
            put(layer(f"shortcut_{name}"), block.shortcut, name)


@pytest.mark.parametrize(
    ("kind", "arch", "blocks", "filters", "normalization"),
    [
        ("resnet", "resnet20", 3, (16, 32, 64), "batch"),
        ("resnet", "resnet20", 3, (16, 32, 64), "fixup"),
        ("wrn", {"name": "wrn", "depth": 16, "widening": 2}, 2, (32, 64, 128), "fixup"),
        ("wrn", {"name": "wrn", "depth": 10, "widening": 1}, 1, (16, 32, 64), "none"),
    ],
    ids=["resnet20-batch", "resnet20-fixup", "wrn-16-2-fixup", "wrn-10-1-none"],
)
def test_logits_are_those_of_the_same_net_in_pytorch(kind, arch, blocks, filters, normalization):
    torch, make = torch_nets()
    model, net = build(arch, normalization), make(kind, blocks, filters, normalization)
    copy_weights(torch, model, net, blocks)
    assert sum(p.numel() for p in net.parameters()) == trainable(model)
    x = images(n=4)
    standardized = (x - np.array(PHOTOS.mean)) / np.array(PHOTOS.std)
    with torch.no_grad():
        expected = net.eval()(torch.tensor(standardized.transpose(0, 3, 1, 2), dtype=torch.float32)).numpy()
    assert expected.std() > 0.01
    np.testing.assert_allclose(model(x, training=False), expected, rtol=0, atol=2e-4 * np.abs(expected).max())

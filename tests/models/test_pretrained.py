"""Nets for ImageNet: published parameter counts, weights by name in every naming, and files that do not fit."""

from __future__ import annotations

import numpy as np
import pytest

import bn_vuln as bnv
from bn_vuln.errors import BnvulnError, UsageError
from bn_vuln.models import pretrained, weight_files

# As torchvision's documentation has them; BagNets: counted in their authors' code.
PARAMETERS = {
    "vgg11": 132_863_336, "vgg11_bn": 132_868_840, "vgg13": 133_047_848, "vgg13_bn": 133_053_736,
    "vgg16": 138_357_544, "vgg16_bn": 138_365_992, "vgg19": 143_667_240, "vgg19_bn": 143_678_248,
    "alexnet": 61_100_840, "resnet18": 11_689_512, "resnet50": 25_557_032, "densenet121": 7_978_856,
    "bagnet9": 15_688_744, "bagnet17": 16_213_032, "bagnet33": 18_310_184,
}  # fmt: skip
QUICK = ("alexnet", "resnet18", "densenet121", "bagnet9")


def tensors(model, seed=0):
    """Random tensors of PyTorch's shapes under torchvision's keys, made from the variables of a net."""
    generator, found = np.random.default_rng(seed), {}
    for layer in pretrained.backend.leaf_layers(model):
        for suffix, attribute in pretrained._variables(layer).items():
            shape = tuple(getattr(layer, attribute).shape)
            order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(len(shape), tuple(range(len(shape))))
            shape = tuple(shape[i] for i in order)
            values = generator.uniform(0.5, 1.5, shape) if suffix == "running_var" else generator.normal(size=shape)
            found[f"{layer.name}.{suffix}"] = (values / np.sqrt(max(1, np.prod(shape[1:])))).astype(np.float32)
    return found


@pytest.fixture(scope="module")
def resnet18():
    return pretrained.build("resnet18", "zeros")


def test_every_net_has_a_file_and_a_count():
    assert set(PARAMETERS) == set(pretrained.PRETRAINED) == set(weight_files.FILES)


@pytest.mark.parametrize("name", QUICK)
def test_parameter_counts_are_the_published_ones(name):
    model = pretrained.build(name, "zeros")
    assert sum(int(np.prod(variable.shape)) for variable in model.trainable_variables) == PARAMETERS[name]
    assert (model.input_shape, model.output_shape) == ((None, 224, 224, 3), (None, 1000))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(PARAMETERS) - set(QUICK)))
def test_parameter_counts_of_the_large_ones_too(name):
    model = pretrained.build(name, "zeros")
    assert sum(int(np.prod(variable.shape)) for variable in model.trainable_variables) == PARAMETERS[name]


def test_every_variable_is_filled(resnet18):
    given = tensors(resnet18)
    pretrained.fill(resnet18, {**given, "bn1.num_batches_tracked": np.array(3)}, "here")
    kernel = np.asarray(resnet18.get_layer("layer2.0.downsample.0").kernel)
    np.testing.assert_array_equal(kernel[0, 0], given["layer2.0.downsample.0.weight"][:, :, 0, 0].T)
    np.testing.assert_array_equal(np.asarray(resnet18.get_layer("fc").kernel), given["fc.weight"].T)
    assert all(np.any(np.asarray(variable)) for variable in resnet18.variables)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("layer1.0.conv1.weight"), "missing: layer1.0.conv1.weight"),
        (lambda t: t.update({"more.weight": np.zeros(3)}), "not of this net: more.weight"),
        (lambda t: t.update({"fc.weight": np.zeros((10, 512))}), r"of other shapes: fc.weight \[10, 512\] for"),
        (lambda t: t.update({"bn1.weight": np.zeros((8, 8))}), r"of other shapes: bn1.weight \[8, 8\] for \[64\]"),
        (lambda t: t.clear(), r"missing: bn1.bias, .*\(102 in all\)"),
    ],
)
def test_what_does_not_fit_is_listed(resnet18, change, message):
    given = tensors(resnet18)
    change(given)
    with pytest.raises(BnvulnError, match=f"file.safetensors: these are no weights of resnet18: {message}"):
        pretrained.fill(resnet18, given, "file.safetensors")


def test_keys_of_other_namings_are_read():
    same = {
        "pre_logits.fc1.weight": "classifier.0.weight",
        "head.fc.bias": "classifier.6.bias",
        "module.layer1.0.bn1.running_mean": "layer1.0.bn1.running_mean",
        "features.denseblock1.denselayer2.norm.1.weight": "features.denseblock1.denselayer2.norm1.weight",
        "features.denseblock1.denselayer2.conv.2.weight": "features.denseblock1.denselayer2.conv2.weight",
        "features.norm5.bias": "features.norm5.bias",
    }
    assert {key: pretrained._present_key(key) for key in same} == same


def test_a_file_is_opened_by_name(resnet18, tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "resnet18.safetensors"
    save_file(tensors(resnet18), path)
    model = bnv.pretrained("resnet18", weights=path)
    pretrained.fill(resnet18, tensors(resnet18), "here")
    x = np.random.default_rng(1).random((2, 224, 224, 3), np.float32)
    np.testing.assert_array_equal(np.asarray(model(x)), np.asarray(resnet18(x)))


def test_damaged_and_other_files_are_refused_in_a_line(tmp_path):
    bad, text = tmp_path / "bad.safetensors", tmp_path / "weights.txt"
    bad.write_bytes(b"\xff" * 100)
    text.write_text("1 2 3")
    for path, message in ((bad, "no readable .safetensors file"), (text, "expected weights as .safetensors")):
        with pytest.raises(BnvulnError, match=message) as error:
            bnv.pretrained("resnet18", weights=path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("resnet81", None, "did you mean 'resnet18'"),
        ("resnet18", "nothing.safetensors", "--weights nothing.safetensors: no such file"),
        ("alexnet", "timm", "timm has no weights of alexnet: expected torchvision"),
        ("bagnet9", "torchvision", "torchvision has no weights of bagnet9: expected bagnets"),
    ],
)
def test_names_and_sources_are_checked_first(name, weights, message):
    with pytest.raises(UsageError, match=message):
        bnv.pretrained(name, weights=weights)


def test_without_a_network_it_is_said_where_a_file_belongs(monkeypatch, tmp_path):
    import keras

    def no_network(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setenv("BNVULN_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(keras.utils, "get_file", no_network)
    with pytest.raises(BnvulnError, match=r"vgg11_bn-6002323d\.pth cannot be fetched") as error:
        bnv.pretrained("vgg11_bn")
    assert f"put them there as {tmp_path / 'vgg11_bn.safetensors'}" in str(error.value)


def test_a_fetched_file_must_have_the_known_digits(monkeypatch, tmp_path, resnet18):
    import hashlib

    import keras
    from safetensors.numpy import save

    content = save(tensors(resnet18))
    monkeypatch.setenv("BNVULN_WEIGHTS", str(tmp_path))

    def download(name, url, cache_dir, cache_subdir):
        path = tmp_path / name
        path.write_bytes(content)
        return str(path)

    monkeypatch.setattr(keras.utils, "get_file", download)
    with pytest.raises(UsageError, match="give it with --sha256"):
        weight_files.fetch("resnet18", "timm")
    with pytest.raises(BnvulnError, match=r"expected sha256 00ff\.\.\., received .*; it was removed"):
        weight_files.fetch("resnet18", "timm", "00ff")
    assert list(tmp_path.iterdir()) == []
    path = weight_files.fetch("resnet18", "timm", hashlib.sha256(content).hexdigest())
    assert path == tmp_path / "resnet18.safetensors"
    assert weight_files.path_of("resnet18", "timm") == path

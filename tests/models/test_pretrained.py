"""Nets for ImageNet: published parameter counts, weights by name in every naming, and files that do not fit."""

from __future__ import annotations

import hashlib
import sys

import numpy as np
import pytest
from safetensors.numpy import save, save_file

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
        "features.module.0.weight": "features.0.weight",
        "features.denseblock1.denselayer2.norm.1.weight": "features.denseblock1.denselayer2.norm1.weight",
        "features.denseblock1.denselayer2.conv.2.weight": "features.denseblock1.denselayer2.conv2.weight",
        "features.norm5.bias": "features.norm5.bias",
    }
    assert {key: pretrained._present_key(key) for key in same} == same


def test_a_file_is_opened_by_name(resnet18, tmp_path):
    path = tmp_path / "resnet18.safetensors"
    save_file(tensors(resnet18), path)
    model = bnv.pretrained("resnet18", weights=tmp_path)  # a folder, in which it has its name
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
        (None, None, "None is no pretrained net"),
        ("resnet81", None, "did you mean 'resnet18'"),
        ("resnet18", "nothing.safetensors", "--weights nothing.safetensors: no such file"),
        ("resnet18", "/", "--weights /resnet18.safetensors: no such file; expected a file, a folder"),
        ("alexnet", "timm", "timm has no weights of alexnet: expected torchvision"),
        ("bagnet9", "torchvision", "torchvision has no weights of bagnet9: expected bagnets"),
    ],
)
def test_names_and_sources_are_checked_first(name, weights, message):
    with pytest.raises(UsageError, match=message):
        bnv.pretrained(name, weights=weights)


@pytest.fixture
def site(monkeypatch, tmp_path):
    """What keras.utils.get_file is asked for, and gets: `content`, or an error. The folder of weights is empty."""
    import keras

    class Site:
        content, asked, error = b"", [], None

    def get_file(name, url, cache_dir, cache_subdir, force_download):
        assert cache_dir.is_dir()  # else Keras takes a folder of its own
        site.asked.append((url, force_download))
        print("the progress")
        if site.error:
            raise site.error
        path = cache_dir / cache_subdir / name
        path.write_bytes(site.content)
        return str(path)

    site = Site()
    site.folder, site.asked = tmp_path / "weights", []
    monkeypatch.setenv("BNVULN_WEIGHTS", str(site.folder))
    monkeypatch.setattr(keras.utils, "get_file", get_file)
    return site


def without_pytorch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)


def test_without_a_network_it_is_said_where_a_file_belongs(site, monkeypatch):
    monkeypatch.setattr(weight_files, "_torch", lambda *_: None)
    site.error = OSError("Name or service\n not known")
    with pytest.raises(
        BnvulnError, match=r"vgg11_bn-6002323d\.pth cannot be fetched \(Name or service not known\)"
    ) as e:
        bnv.pretrained("vgg11_bn")
    assert f"put them there as {site.folder / 'vgg11_bn.safetensors'}" in str(e.value)


def test_without_pytorch_its_files_are_not_fetched(site, monkeypatch):
    without_pytorch(monkeypatch)
    with pytest.raises(BnvulnError, match=r"vgg11_bn-6002323d\.pth: files of PyTorch need the extra torch") as error:
        bnv.pretrained("vgg11_bn")
    assert f"without it put them there as {site.folder / 'vgg11_bn.safetensors'}" in str(error.value)
    assert site.asked == []


def test_without_pytorch_its_files_are_not_read(monkeypatch, tmp_path):
    without_pytorch(monkeypatch)
    path = tmp_path / "alexnet.pth"
    path.write_bytes(b"")
    with pytest.raises(BnvulnError, match=r"alexnet.pth: files of PyTorch need the extra torch .*; .safetensors need"):
        bnv.pretrained("alexnet", path)


def test_a_fetched_file_must_have_the_known_digits(site, resnet18, capsys):
    site.content = save(tensors(resnet18))
    digits = hashlib.sha256(site.content).hexdigest()
    with pytest.raises(UsageError, match=r"its sha256 is not known here: .* --source timm --sha256 HEX"):
        weight_files.fetch("resnet18", "timm")
    for wrong in ("00ff", "", "x" * 64, digits + "0"):
        with pytest.raises(UsageError, match=f"--sha256: expected 8 to 64 hexadecimal digits, received '{wrong}'"):
            weight_files.fetch("resnet18", "timm", wrong)
    assert site.asked == []
    with pytest.raises(BnvulnError, match=r"expected sha256 0000ffff\.\.\., received .*; it was removed"):
        weight_files.fetch("resnet18", "timm", "0000ffff")
    assert list(site.folder.iterdir()) == []
    path = weight_files.fetch("resnet18", "timm", digits[:8].upper())
    assert (path, path.read_bytes()) == (site.folder / "resnet18.safetensors", site.content)
    assert list(site.folder.iterdir()) == [path]
    assert capsys.readouterr() == ("", "the progress\n" * 2)


def test_what_is_there_is_fetched_again_by_force_alone(site):
    site.content = save({"a": np.ones(3, np.float32)})
    digits = hashlib.sha256(site.content).hexdigest()
    path = weight_files.fetch("vgg16", "timm", digits)
    assert weight_files.path_of("vgg16", "timm") == weight_files.fetch("vgg16", "torchvision") == path
    weight_files.fetch("vgg16", "timm", digits, force=True)
    url = "https://huggingface.co/timm/vgg16.tv_in1k/resolve/main/model.safetensors"
    assert site.asked == [(url, False), (url, True)]


def test_files_of_pytorch_are_converted_when_they_are_fetched(site, tmp_path):
    torch = pytest.importorskip("torch", reason="of the extra torch")
    torch.save({"a": torch.arange(6).reshape(2, 3).T}, tmp_path / "file")
    site.content = (tmp_path / "file").read_bytes()
    with pytest.raises(BnvulnError, match=r"alexnet-owt-7be5be79\.pth: expected sha256 7be5be79\.\.\."):
        weight_files.fetch("alexnet", "torchvision")
    path = weight_files.fetch("alexnet", "torchvision", hashlib.sha256(site.content).hexdigest())
    np.testing.assert_array_equal(weight_files.read(path)["a"], [[0, 3], [1, 4], [2, 5]])
    assert list(site.folder.iterdir()) == [path]


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_files_of_pytorch_are_read(resnet18, tmp_path, old, wrapped):
    """Old ones, too; with parameters in place of tensors, in a checkpoint, of a net on several devices."""
    torch = pytest.importorskip("torch", reason="of the extra torch")
    given, path = tensors(resnet18), tmp_path / "resnet18.pth.tar"
    state = {f"module.{key}": torch.nn.Parameter(torch.tensor(value)) for key, value in given.items()}
    state["module.bn1.num_batches_tracked"] = torch.tensor(3)
    content = {"epoch": 90, "arch": "resnet18", "state_dict": state} if wrapped else state
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    pretrained.convert(path, tmp_path / "new" / "r.safetensors", "resnet18")
    found = weight_files.read(tmp_path / "new" / "r.safetensors")
    assert found.keys() == state.keys()
    np.testing.assert_array_equal(found["module.fc.weight"], given["fc.weight"])


def test_files_of_pytorch_that_hold_anything_else_are_refused(tmp_path):
    torch = pytest.importorskip("torch", reason="of the extra torch")
    path = tmp_path / "a.pth"
    for content, message in (
        (torch.nn.Linear(2, 2), "no weights of PyTorch: it is damaged, or holds more than tensors"),
        ([torch.ones(2)], "there are no tensors in it"),
        ({"state_dict": 3}, "there are no tensors in it"),
    ):
        torch.save(content, path)
        with pytest.raises(BnvulnError, match=f"a.pth: {message}"):
            weight_files.read(path)
    path.write_bytes(b"")
    with pytest.raises(BnvulnError, match="it is damaged"):
        weight_files.read(path)


def test_what_is_converted_fits_its_net(resnet18, tmp_path):
    path, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(tensors(resnet18), path)
    for wrong, message in (
        ((path, target, "resnet81"), "did you mean 'resnet18'"),
        ((path, tmp_path / "b.pth", "resnet18"), r"b\.pth: expected a new file that ends in \.safetensors"),
        ((tmp_path / "no.pth", target, "resnet18"), r"no\.pth: no such file"),
        ((tmp_path, target, "resnet18"), "expected a file, received a folder"),
        ((path, target, "resnet50"), "these are no weights of resnet50: missing: "),
    ):
        with pytest.raises(BnvulnError, match=message):
            pretrained.convert(*wrong)
    assert not target.exists()
    pretrained.convert(path, target, "resnet18")
    np.testing.assert_array_equal(weight_files.read(target)["fc.weight"], tensors(resnet18)["fc.weight"])

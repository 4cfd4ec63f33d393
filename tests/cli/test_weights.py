"""`bnvuln weights`: list, fetch, convert."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from safetensors.numpy import save

from bn_vuln.models import pretrained


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """The folder of weights: empty."""
    monkeypatch.setenv("BNVULN_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


def test_a_list_says_what_is_here(bnvuln, folder):
    folder.mkdir()
    (folder / "alexnet.safetensors").write_bytes(b"0" * 3 * 2**19)
    code, out, _ = bnvuln("weights", "list")
    assert code == 0
    assert [line.split() for line in out.splitlines() if "alexnet" in line] == [["alexnet", "torchvision", "1.5"]]
    assert out.endswith(f"here: in {folder}\n")
    listed = json.loads(bnvuln("weights", "list", "--json")[1])
    nets = {net["name"]: net for net in listed["nets"]}
    assert (listed["folder"], nets.keys()) == (str(folder), pretrained.PRETRAINED.keys())
    assert nets["vgg11"] == {
        "name": "vgg11",
        "sources": ["torchvision", "timm"],
        "file": str(folder / "vgg11.safetensors"),
        "bytes": None,
    }
    assert (nets["alexnet"]["bytes"], nets["bagnet9"]["sources"]) == (3 * 2**19, ["bagnets"])


def test_a_fetch_prints_the_file(bnvuln, folder, monkeypatch):
    import keras

    content = save({"a": np.ones(3, np.float32)})

    def get_file(name, url, cache_dir, cache_subdir, force_download):
        print("the progress")
        (cache_dir / name).write_bytes(content)
        return str(cache_dir / name)

    monkeypatch.setattr(keras.utils, "get_file", get_file)
    options = ("weights", "fetch", "vgg11", "--source", "timm", "--sha256", hashlib.sha256(content).hexdigest())
    path = folder / "vgg11.safetensors"
    assert bnvuln(*options) == (0, f"vgg11: {path}\n", "the progress\n")
    code, out, err = bnvuln(*options, "--json")
    assert (code, json.loads(out), err) == (0, {"name": "vgg11", "file": str(path), "bytes": len(content)}, "")
    assert bnvuln(*options, "--force")[2] == "the progress\n"
    path.write_bytes(b"")
    assert bnvuln(*options)[0] == 0
    assert path.read_bytes() == b""
    assert bnvuln(*options, "--force")[0] == 0
    assert path.read_bytes() == content


def test_a_conversion_prints_the_new_file(bnvuln, tmp_path, monkeypatch):
    file, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    file.write_bytes(save({"fc.weight": np.ones((10, 5), np.float32)}))
    code, printed, err = bnvuln("weights", "convert", file, out, "resnet18")
    assert (code, printed, out.exists()) == (1, "", False)
    assert "a.safetensors: these are no weights of resnet18: missing: bn1.bias" in err
    monkeypatch.setattr(pretrained, "fill", lambda *_: None)
    assert bnvuln("weights", "convert", file, out, "resnet18") == (0, f"resnet18: {out}\n", "")
    assert out.read_bytes() == file.read_bytes()

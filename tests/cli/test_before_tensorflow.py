"""Mistakes in paths and options show before TensorFlow, which takes seconds, is started."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest

MISTAKES = [
    ("attack nothing.keras --data d.npz", "nothing.keras: no such file"),
    ("attack nothing", "nothing: no such file or folder"),
    ("attack empty", "empty: not a run folder"),
    ("attack measured --data d.npz --input-scale 0-1", "measured: the records of an external model; give its file"),
    ("attack file.txt --data d.npz", "file.txt: expected a .keras or .h5 file"),
    ("attack text.keras --data d.npz", "text.keras: not a model file"),
    ("attack a.keras --data nothing.npz", "nothing.npz: no such file"),
    ("attack a.keras --data folder:nothing", "nothing: no such folder"),
    ("attack a.keras --data text.npz", "text.npz"),
    ("attack a.keras --data nope", "'nope' is not known"),
    ("attack a.keras --data d.npz --save file.txt/x.npz", "'--save': 'file.txt/x.npz' cannot be written"),
    ("attack a.keras --data d.npz --save empty", "'--save'"),
    ("attack a.keras --data d.npz --runs file.txt", "'--runs'"),
    ("attack a.keras --data d.npz --runs file.txt/x", "'--runs': 'file.txt/x' cannot be written"),
    ("attack a.keras --data d.npz --class-names nothing", "--class-names nothing: no such file"),
    ("attack a.keras --data d.npz --custom-objects nothing.py", "--custom-objects nothing.py: no such file"),
    ("attack a.keras --data d.npz --input-scale 0-300", "--input-scale: expected"),
    ("attack a.keras --data d.npz --weights none", "--weights is for keras.applications:NAME"),
    ("attack a.keras --data d.npz --limit 0", "limit"),
    ("attack keras.applications:MobileNetV2 --data d.npz --weights nothing.h5", "--weights nothing.h5: no such file"),
    ("evaluate nothing.keras --data d.npz", "nothing.keras: no such file"),
    ("evaluate a.keras --suite nothing.yaml", "nothing.yaml: no such file"),
    ("evaluate a.keras --data nothing.npz", "nothing.npz: no such file"),
    ("transfer a.keras nothing.keras --data d.npz", "nothing.keras: no such file"),
    ("transfer a.keras empty --data d.npz", "empty: not a run folder"),
    ("transfer a.keras --data d.npz", "two different models"),
    ("transfer a.keras b.keras --data d.npz --out file.txt/x", "'--out': 'file.txt/x' cannot be written"),
    ("compare a.keras nothing", "a.keras was never measured"),
    ("show empty", "empty: a folder, but of no run"),
    ("list file.txt", "is a file"),
    ("report file.txt", "is a file"),
    ("report empty", "no experiment here"),
    ("publish nothing.yaml --to packed", "nothing.yaml: no such file"),
    ("unpack empty runs", "no packed store here"),
    ("train --data nothing.npz", "nothing.npz: no such file"),
    ("train --out file.txt/x", "'--out': 'file.txt/x' cannot be written"),
    ("reproduce nothing.yaml", "nothing.yaml: no such file"),
    ("reproduce table6 --scale smoke --out file.txt/x", "'--out': 'file.txt/x' cannot be written"),
    ("scale-input --width 5", "expected >= 28, received 5"),
    ("data info nothing.npz", "nothing.npz: no such file"),
    ("weights fetch vgg", "'vgg' is no pretrained net"),
    ("weights fetch alexnet --source timm", "timm has no weights of alexnet: expected torchvision"),
    ("weights fetch vgg11 --source timm", "its sha256 is not known here"),
    ("weights fetch vgg11 --source timm --sha256 12", "--sha256: expected 8 to 64 hexadecimal digits, received '12'"),
    ("weights convert nothing.pth a.safetensors vgg11", "nothing.pth: no such file"),
    ("weights convert text.keras a.safetensors vgg11", "text.keras: expected weights as .safetensors"),
    ("weights convert text.keras a.pth vgg11", "a.pth: expected a new file that ends in .safetensors"),
    ("weights convert text.keras file.txt/a.safetensors vgg11", "cannot be written"),
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder, with what the mistakes name; TensorFlow cannot be started."""

    def start():
        raise AssertionError("TensorFlow was started")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bn_vuln.runtime.tensorflow_backend.tensorflow", start)
    for name in ("empty", "measured"):
        (tmp_path / name).mkdir()
    (tmp_path / "measured" / "model.json").write_text("{}")
    for name in ("file.txt", "text.keras", "text.npz"):
        (tmp_path / name).write_text("text")
    x, y = np.zeros((300, 4, 4), np.uint8), np.arange(300) % 2
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    for name in ("a.keras", "b.keras"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member in ("config.json", "metadata.json", "model.weights.h5"):
                archive.writestr(member, "{}")


def test_mistakes_show_before_tensorflow_starts(bnvuln, place):
    for line, fragment in MISTAKES:
        code, out, err = bnvuln(*line.split(" "))
        assert (code in (1, 2), out, fragment in err) == (True, "", True), (line, err)
        assert "Traceback" not in err

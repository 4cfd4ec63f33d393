"""The examples run as they are written, on less."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from bn_vuln.experiments import catalog
from bn_vuln.runtime import backend

EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = pytest.mark.slow


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> None:
    backend.start()  # the tests' logical devices, before an example trains with Keras alone
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_a_pair_on_mnist(monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    run(monkeypatch, "pair_on_mnist.py", "--epochs", "1", "--limit", "50", "--runs", str(tmp_path))
    assert "batch - none under PGD" in capsys.readouterr().out


def test_a_model_of_ones_own(monkeypatch: Any, capsys: Any) -> None:
    run(monkeypatch, "attack_your_model.py", "--limit", "40")
    out = capsys.readouterr().out
    assert "(the model begins with x * 0.003922;" in out
    assert re.search(r"^clean: .*% of 40 images$", out, re.M)
    assert re.search(r"^strong 8/255: .*% of 40 images$", out, re.M)


def test_a_model_that_is_audited_and_mended(monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    """So few steps leave statistics stale, so that there is something to mend."""
    less = ("--images", "1000", "--epochs", "8", "--limit", "60")
    run(monkeypatch, "audit_your_model.py", *less, "--out", str(tmp_path))
    out = capsys.readouterr().out
    assert "Estimate the statistics of batch norm again" in " ".join(out.split())
    assert "under | before, % | after, %" in out
    assert (tmp_path / "mended.keras").is_file()


def test_an_experiment_of_ones_own(monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    run(monkeypatch, "my_experiment.py", "--scale", "smoke", "--runs", str(tmp_path))
    assert "large c \N{MINUS SIGN} small c" in capsys.readouterr().out
    assert len(catalog.experiment(str(EXAMPLES / "my_experiment.yaml")).seeds) == 3


def test_the_notebook(monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    """Its cells in order, in one namespace. It is committed without outputs."""
    monkeypatch.chdir(tmp_path)
    cells = [c for c in json.loads((EXAMPLES / "tour.ipynb").read_text())["cells"] if c["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in cells)
    names: dict[str, Any] = {}
    for cell in cells:
        exec("".join(cell["source"]).replace("epochs, limit = 3, 300", "epochs, limit = 1, 40"), names)
    assert set(names["curves"]["batch"]) == {"clean", "pgd", "pgd 4/255", "pgd 8/255"}
    assert "deg" in capsys.readouterr().out


def test_python_of_readme_and_quickstart(monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("README.md", "docs/guide/quickstart.md"):
        (block,) = re.findall(
            r"^```python\n(.*?)^```", (EXAMPLES.parent / name).read_text(encoding="utf-8"), re.M | re.S
        )
        exec(block.replace('"epochs": 5', '"epochs": 1').replace("limit=1000", "limit=40"), {})
        assert len(capsys.readouterr().out.splitlines()) >= 2

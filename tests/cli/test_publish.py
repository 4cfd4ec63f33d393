"""`bnvuln publish` and `unpack`: what they print, and what they pass to the api; the store is in tests/records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers_records import HARM, by_arm, fill, small

from bn_vuln import api
from bn_vuln.config import digest, identity_of, to_yaml
from bn_vuln.config.grid import expand
from bn_vuln.runtime.files import atomic_write

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A working folder with an experiment, of which one seed has not run."""
    experiment = small(seeds=[0, 1])
    atomic_write(tmp_path / "small.yaml", to_yaml(experiment))
    for cell in expand(experiment):
        atomic_write(tmp_path / "runs" / digest(identity_of(cell)) / "config.yaml", to_yaml(cell))
    return fill(tmp_path / "runs", experiment, by_arm(HARM), missing=lambda cell: cell.seed == 1)


def test_publishing_unpacking_and_reporting(bnvuln: Run, tmp_path: Path, runs: Path) -> None:
    packed = tmp_path / "packed"
    code, out, _ = bnvuln("publish", tmp_path / "small.yaml", "--from", runs, "--to", packed)
    assert (code, out) == (0, f"published 2 of 4 cells of small (2 are not finished) to {packed}\n")
    assert bnvuln("unpack", packed, tmp_path / "again")[:2] == (0, f"{tmp_path / 'again'}: added 2 runs, unchanged 0\n")
    next((tmp_path / "again").glob("*/records/*.json")).unlink()
    again = bnvuln("unpack", packed, tmp_path / "again")[1]
    assert again == f"{tmp_path / 'again'}: added 0 runs, unchanged 1, completed 1\n"
    printed = json.loads(bnvuln("unpack", packed, tmp_path / "again", "--json")[1])
    assert sorted(Path(run).name for run in printed["runs"]) == sorted(
        path.parent.name for path in runs.glob("*/records")
    )
    code, out, _ = bnvuln("report", packed, "--format", "csv", "--json")
    assert code == 0
    assert json.loads(out)["experiments"][0]["missing"] == 2


def test_options_reach_the_api(bnvuln: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def publish(names: Any, target: Path, **options: Any) -> list[Any]:
        asked.update(options, names=names, target=target)
        return []

    monkeypatch.setattr(api, "publish", publish)
    code, out, _ = bnvuln("publish", "table6", "table7", "--to", "x", "--scale", "cpu", "--models", "3", "--json")
    assert (code, json.loads(out)) == (0, {"to": "x", "experiments": []})
    asked.pop("progress")
    assert asked == {
        "names": ("table6", "table7"), "target": Path("x"), "source": Path("runs"), "scale": "cpu", "models": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["publish", "--to", "x"], "Missing argument 'EXPERIMENT...'"),
        (["publish", "table6"], "Missing option '--to'"),
        (["publish", "table6", "--to", "x"], "table6: none of its 30 cells is finished in runs"),
        (["unpack", "nowhere", "runs"], "nowhere: no packed store here"),
    ],
)
def test_mistakes_are_explained(
    bnvuln: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = bnvuln(*command)
    assert (code, out) == (2, "")
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_what_to_run_first_is_the_file_that_was_named(
    bnvuln: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    atomic_write(Path("my files/mine.yaml"), to_yaml(small()))
    code, _, err = bnvuln("publish", "my files/mine.yaml", "--to", "x")
    assert code == 2
    assert err.endswith("run it first: bnvuln reproduce 'my files/mine.yaml' --scale full --out runs\n")

"""`bnvuln list`, `show`, `compare` and `report` on single runs and external models, found by any of their names."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers_records import MACHINE, by_arm, fill, small

from bn_vuln import api, records
from bn_vuln.config import Attack, Cell, Clean, Evaluation, digest, perturbation_identity, validate
from bn_vuln.errors import UsageError
from bn_vuln.records import ExternalRecord, Flag, Record
from bn_vuln.records.names import cell_name
from bn_vuln.runtime import lease

ACCURACIES = {
    ("none", "clean"): [0.97], ("batch", "clean"): [0.9], ("none", "bim"): [0.66], ("batch", "bim"): [0.26],
}  # fmt: skip
FLAG = Flag(check=18, name="steps", value=0.05, message="take more steps")


def external(root, path, weights, correct, **settings):
    """Write an external model with a clean record and one of an attack: their `correct` of 8 examples; its id."""
    identity = {"weights": weights, "input_scale": "0-1", **settings}
    key = digest(identity)
    lines = ["input          32 x 48 x 1, float32", "output         softmax of 10 classes"]
    found = {"dataset": "/data/my images.npz", "lines": lines, "output": {"kind": "softmax"}}
    model = ExternalRecord(cell_id=key, source=path.name, path=str(path), identity=identity, found=found)
    records.write_external(root / key, model)
    for perturbation, n_correct in zip((Clean(), Attack(eps=8 / 255)), correct, strict=True):  # type: ignore[call-arg]
        fields = perturbation_identity(Evaluation(dataset="mnist"), "mnist", perturbation)
        number = {"n": 8, "correct": n_correct, "accuracy": n_correct / 8}
        record = Record(cell_id=key, perturbation_id=digest(fields), cell=identity, perturbation=fields, **number,
                        flags=(FLAG,) if n_correct == 0 else (), seconds=1.0, **MACHINE)  # fmt: skip
        records.write_record(root / key, record, np.arange(8) < n_correct)
    return key


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A working folder `runs` with a trained pair, without its experiment; the current folder is above it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    folder = fill(tmp_path / "runs", small(seeds=[0]), by_arm(ACCURACIES), n=100)
    shutil.rmtree(folder / "experiments")
    return folder


def fits(text):
    return [line for line in text.splitlines() if len(line) > 80] == []


def by_arm_of(root):
    return {one.cell.normalization.name: one for one in records.entries(records.FolderStore(root))}


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "mlp none seed 0"),
        ({"normalization": "batch"}, "mlp batch c=1e-5 seed 0"),
        ({"normalization": {"name": "batch", "c": 0.1}, "seed": 3}, "mlp batch c=0.1 seed 3"),
        ({"arch": "vgg8", "data": {"name": "cifar10", "width": 56}}, "vgg8 none width=56 seed 0"),
        ({"train": {"adversarial": {"eps": "8/255"}, "lr": 0.1}}, "mlp none lr=0.1 adversarial eps=8/255 seed 0"),
        ({"arch": {"name": "wrn", "depth": 16, "widening": 4}}, "wrn-16-4 none seed 0"),
        ({"normalization": "batch", "mend": {"relative_c": 1}}, "mlp batch c=1e-5 mended c+1m seed 0"),
        ({"arch": "resnet18", "normalization": "batch", "weights": "timm"}, "resnet18 timm weights"),
        ({"arch": "alexnet", "weights": "random", "seed": 2}, "alexnet random weights seed 2"),
    ],
)
def test_names_of_runs_have_what_is_not_at_its_default(fields, name):
    assert cell_name(validate(Cell, fields, "test")) == name


# ---------------------------------------------------------------- list


def test_a_list_of_runs_and_external_models(bnvuln, root, tmp_path):
    key = external(root, tmp_path / "mein Netz ü.keras", "w", (8, 0))
    code, out, err = bnvuln("list")
    assert (code, fits(out)) == (0, True)
    assert err == f"records: runs\nnext: bnvuln show runs/{key}\n"  # the newest one is first
    rows = {tuple(line[:20].split()[:2]): line for line in out.splitlines()[2:]}
    assert "mein Netz ü" in out
    assert [word in rows["mlp", "batch"] for word in ("mnist", "trained", "90.00", " 2")] == [True] * 4
    printed = json.loads(bnvuln("list", "--json", "-q")[1])["models"]
    assert {(m["name"], m["state"], m["clean_accuracy"], m["records"]) for m in printed} == {
        ("mein Netz ü", "external", 1.0, 2),
        ("mlp none width=28 epochs=1 seed 0", "trained", 0.97, 2),
        ("mlp batch c=1e-5 width=28 epochs=1 seed 0", "trained", 0.9, 2),
    }


def test_nothing_is_said_to_be_nothing(bnvuln, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in ((), ("empty",)):
        (tmp_path / "empty").mkdir(exist_ok=True)
        code, out, err = bnvuln("list", *words)
        assert (code, err) == (0, "")
        assert out.startswith(f"nothing in {(*words, 'runs')[0]}/: train a model")
        assert json.loads(bnvuln("list", *words, "--json")[1])["models"] == []
    (tmp_path / "file").write_text("")
    for wrong, fragment in (("nowhere", "no such folder"), ("file", "is a file")):
        code, out, err = bnvuln("list", wrong)
        assert (code, out, fragment in err) == (2, "", True)
    assert "no id in runs/" in bnvuln("show", "abc")[2]


@pytest.mark.parametrize("name", ["config.yaml", "training.json", "record"])
@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\x00", b"a: [1"])
def test_a_damaged_file_costs_its_run_alone(bnvuln, root, name, content):
    damaged, good = by_arm_of(root).values()
    path = damaged.folder / name if name != "record" else next((damaged.folder / "records").iterdir())
    path.write_bytes(content)
    code, out, _ = bnvuln("list")
    assert (code, fits(out)) == (0, True)
    found = {m["id"]: m for m in json.loads(bnvuln("list", "--json")[1])["models"]}
    assert (found[damaged.id]["state"], found[good.id]["state"]) == ("damaged", good.state)
    assert found[good.id]["problems"] == []
    assert [path.name in problem for problem in found[damaged.id]["problems"]] == [True]
    code, out, _ = bnvuln("show", damaged.folder)
    assert (code, path.name in out, "accuracy" in out) == (0, True, True)  # what can be read is there


def test_a_run_that_is_being_trained(bnvuln, root):
    folder = root / "being trained"
    folder.mkdir()
    (folder / "config.yaml").write_text("arch: mlp\n")
    store = records.FolderStore(root)
    with lease.locked(folder):
        assert records.entry(store, "being trained").state == "training"
        assert bnvuln("list")[0] == 0
    assert records.entry(store, "being trained").state == "unfinished"


def test_hundreds_of_records_are_listed(bnvuln, root):
    one = by_arm_of(root)["none"]
    first = next((one.folder / "records").iterdir())
    record = json.loads(first.read_text())
    del record["sha256"]
    for number in range(500):
        record["perturbation"]["limit"] = number + 1
        record["perturbation_id"] = digest(record["perturbation"])
        (one.folder / "records" / f"{record['perturbation_id']}.json").write_text(json.dumps(record))
    assert " 502" in bnvuln("list")[1]


# ---------------------------------------------------------------- show


def test_a_model_is_found_by_each_of_its_names(bnvuln, root, tmp_path):
    path = tmp_path / "a b.keras"
    path.write_text("")
    key = external(root, path, "w", (8, 0))
    for name in (f"runs/{key}", key, key[:5], "a b.keras", path, "./a b.keras"):
        code, out, err = bnvuln("show", name)
        assert (code, fits(out)) == (0, True), name
        assert out.startswith("a b\n")
    for text in ("32 x 48 x 1", "softmax of 10", "eps 8/255", "[1] check 18: take more steps", "100.00", str(path)):
        assert "".join(text.split()) in "".join(out.split())
    assert out.index("clean (test)") < out.index("pgd inf")
    assert f"next: bnvuln compare runs/{key} OTHER" in err
    printed = json.loads(bnvuln("show", key, "--json", "-q")[1])
    assert printed["external"]["found"]["output"]["kind"] == "softmax"
    assert [record["perturbation"].get("keep") for record in printed["records"]] == [None, "first_success"]
    assert printed["records"][1]["flags"][0]["check"] == 18


def test_names_that_are_none_or_several_are_refused(bnvuln, root, tmp_path):
    path = tmp_path / "net.keras"
    path.write_text("")
    keys = [external(root, path, "w", (8, 0), input_scale=scale) for scale in ("0-1", "0-255")]
    code, out, err = bnvuln("show", "net.keras")
    assert (code, out) == (2, "")
    for key, scale in zip(keys, ("0-1", "0-255"), strict=True):
        assert f"{key} (input_scale={scale})" in err
    (tmp_path / "other net.keras").write_text("")
    for name, fragment in (
        ("other net.keras", "bnvuln evaluate 'other net.keras' --data NAME"),
        ("nothing.keras", "no such file"),
        ("sub/nothing.keras", "no such file"),
        ("", "is empty"),
        ("runs", "see bnvuln list runs"),
        (keys[0][:-1] + "x", f"did you mean {keys[0]}"),
    ):
        code, out, err = bnvuln("show", name)
        assert (code, out) == (2, "")
        assert fragment in err
        assert "Traceback" not in err


def test_a_prefix_of_several_ids_names_them(root):
    for name in ("abc1", "abc2"):
        (root / name / "records").mkdir(parents=True)
    with pytest.raises(UsageError, match="2 models in runs/ have ids that begin so: abc1, abc2"):
        records.find("abc", Path("runs"))
    assert records.find("abc1", Path("runs"))[1] == "abc1"


def test_cells_of_packed_stores_are_shown(bnvuln, tmp_path):
    experiment = small(seeds=[0])
    source = fill(tmp_path / "work", experiment, by_arm(ACCURACIES), n=100)
    for one in records.entries(records.FolderStore(source)):
        (one.folder / "config.yaml").write_text(json.dumps(one.records[0].cell))
    api.publish(str(next((source / "experiments").iterdir())), tmp_path / "packed", source=source)
    assert "mlp batch c=1e-5 width=28" in bnvuln("list", tmp_path / "packed")[1]
    key = json.loads(bnvuln("list", tmp_path / "packed", "--json")[1])["models"][0]["id"]
    for name in (key, key[:4]):
        assert "bim inf eps 0.1" in bnvuln("show", tmp_path / "packed" / name)[1]


# ---------------------------------------------------------------- compare


def test_external_models_are_compared_by_their_files(bnvuln, root, tmp_path):
    paths = [tmp_path / folder / "net.keras" for folder in ("one", "two")]
    for path, correct in zip(paths, ((8, 6), (4, 1)), strict=True):
        path.parent.mkdir()
        path.write_text("")
        external(root, path, path.parent.name, correct)
    code, out, err = bnvuln("compare", *paths)
    assert (code, fits(out)) == (0, True)
    assert out.index("clean (test)") < out.index("pgd inf eps 8/255")
    assert "check 15: the clean accuracies differ by -50.0 points" in out.replace("\n    ", " ")
    assert err.startswith("records: runs/")
    printed = json.loads(bnvuln("compare", *paths, "--json", "-q")[1])
    numbers = [(p["first"], p["second"], p["difference"]) for p in printed["pairs"]]
    assert numbers == [(1, 0.5, -0.5), (0.75, 0.125, -0.625)]
    assert [flag["check"] for flag in printed["flags"]] == [15]
    (tmp_path / "new.keras").write_text("")
    code, out, err = bnvuln("compare", paths[0], "new.keras")
    assert (code, out, "bnvuln evaluate new.keras --data" in err) == (2, "", True)
    assert "are one model" in bnvuln("compare", paths[0], paths[0])[2]


def test_equal_clean_accuracies_are_not_flagged(bnvuln, root, tmp_path):
    for name in ("a", "b"):
        external(root, tmp_path / f"{name}.keras", name, (8, 2))
    printed = json.loads(bnvuln("compare", "a.keras", "b.keras", "--json")[1])
    assert (printed["flags"], printed["names"]) == ([], ["a", "b"])


# ---------------------------------------------------------------- report


def test_a_report_of_models_without_an_experiment(bnvuln, root, tmp_path):
    key = external(root, tmp_path / "<b>net.keras", "w", (8, 0))
    for form in ("html", "md", "csv"):
        code, out, _ = bnvuln("report", root, "--format", form)
        assert (code, out.strip()) == (0, f"{root}/report/models.{form}")
        text = Path(out.strip()).read_text()
        assert key in text
        assert "eps 8/255" in text
        assert {"html": "&lt;b&gt;net", "md": "\\<b\\>net", "csv": "<b>net"}[form] in text
    assert bnvuln("report", root / key)[1].strip() == f"{root / key}/report/models.html"
    assert [m["name"] for m in json.loads(bnvuln("report", root / key, "--json")[1])["models"]] == ["<b>net"]
    code, _, err = bnvuln("report", root, "--format", "tex")
    assert (code, "for experiments" in err) == (2, True)


# ---------------------------------------------------------------- what all have in common


def test_nothing_heavy_is_imported(root, tmp_path):
    key = external(root, tmp_path / "net.keras", "w", (8, 0))
    code = (
        "import sys\nfrom bn_vuln.cli.main import main\n"
        f"for words in (['list'], ['show', {key!r}], ['report', 'runs', '--format', 'md']):\n"
        "    try: main(words)\n    except SystemExit as e: assert not e.code\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_models_of_different_data_and_missing_files_are_named_with_the_way_on(bnvuln, root, tmp_path):
    one, other = (external(root, tmp_path / f"{name}.keras", name, (8, 4)) for name in "ab")
    (root / one / "model.json").unlink()
    code, out, _ = bnvuln("show", root / one)
    assert (code, fits(out)) == (0, True)
    assert "missing  config.yaml, or model.json" in out
    outcomes = sorted((root / one / "outcomes").glob("*.npz"))
    for path in outcomes:
        path.unlink()
    code, _, err = bnvuln("compare", root / one, root / other)
    assert code == 1
    assert "outcomes of each example are missing" in err
    assert "--force" in err
    for path in (root / other / "records").glob("*.json"):
        path.unlink()
    fields = perturbation_identity(Evaluation(dataset="cifar10"), "cifar10", Clean())
    record = Record(cell_id=other, perturbation_id=digest(fields), cell={"weights": "b", "input_scale": "0-1"},
                    perturbation=fields, n=8, correct=8, accuracy=1.0, flags=(), seconds=1.0, **MACHINE)  # fmt: skip
    records.write_record(root / other, record, np.ones(8, bool))
    code, _, err = bnvuln("compare", root / one, root / other)
    assert code == 1
    assert "different data" in err
